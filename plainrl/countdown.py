"""The countdown world: reach a target from a few numbers. There are many right ways and many wrong ones.

    Make 14 from 8, 5 and 1, each used once. ...        8+5=13
                                                        13+1=14

Every line takes two of the numbers that are left and puts their result back. Arithmetic is easy here, so
nearly all that a model is uncertain about is which way to go: its entropy is choice. In the chain world it is
error in digits (docs/world.md, benchmarks/where_entropy_is.py).
"""

import functools
import itertools
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from plainrl.tasks import Grade, Problem, check_split, problem_rng, split_by_hash, whole_number

OPERATIONS = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}
LARGEST_RESULT = 99  # of a line; the least is 1
SPLITS = {"sft": range(0, 27), "train": range(27, 75), "dev": range(75, 83), "test": range(83, 100)}
LINE = re.compile(r"([0-9]{1,4})\s*([-+*])\s*([0-9]{1,4})\s*=\s*([0-9]{1,4})")
OTHER_SIGNS = str.maketrans("\u2212\u00d7\u00b7", "-**")  # the minus and the times of typesetting


# --- what is possible ---------------------------------------------------------------------------------------


def next_lines(numbers: tuple[int, ...]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every possible next line, and the numbers that are left after it. Equal lines come once.

    >>> [line for line, left in next_lines((5, 2))]
    ['5+2=7', '5-2=3', '5*2=10', '2+5=7', '2*5=10']
    """
    seen = set()
    for i, j in itertools.permutations(range(len(numbers)), 2):
        others = tuple(number for k, number in enumerate(numbers) if k not in (i, j))
        for sign, operation in OPERATIONS.items():
            result = operation(numbers[i], numbers[j])
            line = f"{numbers[i]}{sign}{numbers[j]}={result}"
            if 1 <= result <= LARGEST_RESULT and line not in seen:
                seen.add(line)
                yield line, (*others, result)


@functools.lru_cache(maxsize=10_000)
def ways(numbers: tuple[int, ...]) -> tuple[tuple[str, int], ...]:
    """Every possible completion, whatever it reaches: (its text, the last value).

    There are about 60 for three numbers, 1,500 for four.

    >>> ways((5, 2))
    (('5+2=7', 7), ('5-2=3', 3), ('5*2=10', 10), ('2+5=7', 7), ('2*5=10', 10))
    """
    if len(numbers) == 1:
        return (("", numbers[0]),)
    found = []
    for line, left in next_lines(numbers):
        found += [(f"{line}\n{rest}".strip(), value) for rest, value in ways(left)]
    return tuple(found)


@functools.lru_cache(maxsize=100_000)
def reachable(numbers: tuple[int, ...]) -> frozenset[int]:
    """The values that all of the numbers (sorted) together can make.

    The last line joins a value made from some of them with a value made from the others.
    """
    if len(numbers) == 1:
        return frozenset(numbers)
    values = set()
    places = range(len(numbers))
    for size in range(1, len(numbers) // 2 + 1):
        for part in itertools.combinations(places, size):
            first = reachable(tuple(numbers[i] for i in part))
            second = reachable(tuple(numbers[i] for i in places if i not in part))
            for a, b in itertools.product(first, second):
                values |= {a + b, a - b, b - a, a * b}
    return frozenset(value for value in values if 1 <= value <= LARGEST_RESULT)


@functools.lru_cache(maxsize=8)
def all_problems(count: int, largest: int) -> dict[str, list[tuple[tuple[int, ...], int]]]:
    """{split: (sorted numbers, target) of all its problems}. The hash of a problem says its split."""
    problems = {split: [] for split in SPLITS}
    for numbers in itertools.combinations_with_replacement(range(1, largest + 1), count):
        for target in sorted(reachable(numbers)):
            split = split_by_hash(f"{' '.join(map(str, numbers))} = {target}", SPLITS)
            problems[split].append((numbers, target))
    return problems


# --- the task -----------------------------------------------------------------------------------------------


@dataclass
class CountdownTask:
    """The countdown world: `numbers` from 1 to `largest`, and a target from 1 to 99 that they can reach.

    numbers: 2 to 4 of them; every step uses up one, so the horizon is numbers - 1.
    largest: 2 to 20.

    No two splits share numbers and target, in whatever order the numbers stand. Within a split all problems
    come once, in an order of the seed, before one comes again.
    """

    numbers: str | int = 3
    largest: str | int = 15
    name: str = "countdown"
    max_horizon: int = field(default=3, init=False)
    grader = "countdown"
    world = "countdown"  # whose start model and defaults are taken, see `plainrl.flags.by_size`

    def __post_init__(self):
        for setting, least, most in (("numbers", 2, 4), ("largest", 2, 20)):
            setattr(self, setting, whole_number("countdown", setting, getattr(self, setting), least, most))

    def size(self, split: str) -> int:
        """How many different problems a split has. Training goes through them over and over."""
        return len(self.problems(split))

    def problems(self, split: str) -> list[tuple[tuple[int, ...], int]]:
        check_split(SPLITS, split)
        return all_problems(self.numbers, self.largest)[split]

    def problem(self, split: str, index: int, seed: int) -> Problem:
        """A pure function of its arguments."""
        problems = self.problems(split)
        times, position = divmod(index, len(problems))
        numbers, target = problems[shuffled(len(problems), f"{seed}/{split}/{times}")[position]]
        rng = problem_rng(SPLITS, split, index, seed)
        numbers = rng.sample(numbers, len(numbers))  # in any order
        solution = rng.choice([text for text, value in ways(tuple(numbers)) if value == target])
        *first_lines, _ = solution.split("\n")
        hint = f"it can begin with {', '.join(first_lines)}."
        gives_target = any(line.endswith(f"={target}") for line in first_lines)
        return Problem(
            prompt=prompt_of(numbers, target),
            answer=str(target),
            hint=None if gives_target or not first_lines else hint,
            solution=solution,
            horizon=len(numbers) - 1,
            source="countdown",
            options=tuple(map(str, numbers)),
            index=index,
        )

    def at_horizon(self, horizon: int) -> "CountdownTask":
        return replace(self, numbers=horizon + 1)

    def grade(self, completion: str, problem: Problem) -> Grade:
        """Right: only possible lines with right results, all numbers used, and the last result is the target.

        `parsed` is the value that a possible way ends in, right or not. It is None for any other text, and
        `why` then says what is wrong first.
        """
        left, result = [int(number) for number in problem.options], None
        lines = [line for line in completion.translate(OTHER_SIGNS).split("\n") if line.strip()]
        for line in lines:
            found = LINE.fullmatch(line.strip())
            if not found:
                return Grade(False, 0.0, None, "not_a_step")
            first, sign, second, result = found.groups()
            for number in (int(first), int(second)):
                if number not in left:
                    return Grade(False, 0.0, None, "number_not_left")
                left.remove(number)
            result = int(result)
            if OPERATIONS[sign](int(first), int(second)) != result:
                return Grade(False, 0.0, None, "wrong_arithmetic")
            if not 1 <= result <= LARGEST_RESULT:
                return Grade(False, 0.0, None, "result_out_of_range")
            left.append(result)
        if result is None:
            return Grade(False, 0.0, None, "not_a_step")
        if len(left) > 1:
            return Grade(False, 0.0, None, "numbers_left_over")
        correct = str(result) == problem.answer
        return Grade(correct, float(correct), str(result), "correct" if correct else "wrong")


@functools.lru_cache(maxsize=64)
def shuffled(count: int, seed: str) -> list[int]:
    return random.Random(seed).sample(range(count), count)


def prompt_of(numbers: list[int], target: int) -> str:
    """
    >>> prompt_of([8, 5, 1], 14).split(".")[0]
    'Make 14 from 8, 5 and 1, each used once'
    """
    *others, last = map(str, numbers)
    return (
        f"Make {target} from {', '.join(others)} and {last}, each used once. Write one step a line, "
        f"like 2+3=5, with + - or *. Every result is from 1 to {LARGEST_RESULT}."
    )
