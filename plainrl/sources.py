"""Problems in memory, datasets of the hub, and chains of any task's problems."""

import copy
import functools
import math
import random
import re
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from plainrl.answers import MAX_ANSWER_CHARS
from plainrl.chains import PLACEHOLDERS, calculator_program, chainable, choose_chain, horizons, write_chain
from plainrl.equality import choice_letter
from plainrl.grading import (
    grade_boxed,
    is_readable,
    last_boxed,
    plain_integer,
    same_answer,
)
from plainrl.tasks import BOXED_INSTRUCTION, Grade, Problem, optional_package, say

# --- problems in memory -----------------------------------------------------------------------------------


@functools.lru_cache(maxsize=16)  # an epoch of each horizon of a curriculum
def shuffled(length: int, seed: int, epoch: int) -> array:
    """The order of an epoch. It takes seconds for a million problems, so it is made once."""
    return array("I", random.Random(f"{seed}/{epoch}").sample(range(length), length))


@dataclass
class ListTask:
    """A task over problems in memory, by split; answers are graded by what they mean, see `plainrl.equality`.

    `flag` is how messages call it, where that is not by its name. eval.py records the grader, and compares no
    results of different ones.
    """

    name: str
    problems: dict[str, list[Problem]]
    flag: str = ""
    grader = "plainrl.equality"

    def __post_init__(self):
        self.flag = self.flag or f"--task {self.name}"

    @functools.cached_property
    def different(self) -> list[Problem]:
        """Every problem, without copies of a prompt: the first counts."""
        every = [problem for members in self.problems.values() for problem in members]
        return list({problem.prompt: problem for problem in reversed(every)}.values())[::-1]

    def members(self, split: str) -> list[Problem]:
        """The problems of a split; "all" is every split, one after the other, without copies of a prompt."""
        if split == "all":
            return self.different
        if split not in self.problems:
            raise ValueError(f"{self.flag}: has no split {split!r}; it has {', '.join(self.problems)}")
        if not self.problems[split]:
            number = sum(map(len, self.problems.values()))
            way_out = "give at least 10 different ones, or measure them with eval.py --split all"
            if len(self.different) >= 10:
                way_out = "name it in the field split, or add ?split= to the path, which deals them out"
            raise ValueError(f"{self.flag}: its {number} problems leave nothing for {split}; {way_out}")
        return self.problems[split]

    def size(self, split: str) -> int:
        return len(self.members(split))

    def problem(self, split: str, index: int, seed: int) -> Problem:
        """Training: each epoch is another permutation, by the seed. Dev and test keep their order."""
        problems = self.members(split)
        epoch, position = divmod(index, len(problems))
        if split == "train":
            position = shuffled(len(problems), seed, epoch)[position]
        return replace(problems[position], index=position)

    def grade(self, completion: str, problem: Problem) -> Grade:
        return grade_boxed(completion, problem)

    def same_answer(self, first: str, second: str) -> bool:
        return same_answer(first, second)

    def at_horizon(self, horizon: int) -> "ListTask":
        """Those of its problems that have this horizon: of a file that tools/compose.py wrote."""
        chosen = {
            split: [problem for problem in members if problem.horizon == horizon]
            for split, members in self.problems.items()
        }
        if not any(chosen.values()):
            found = sorted({problem.horizon for problem in self.members("all")})
            raise ValueError(
                f"{self.flag}: has no problem of horizon {horizon}, "
                f"only of {', '.join(map(str, found))}; horizon=1 in --task chains them"
            )
        return replace(self, problems=chosen)


class ChoiceTask(ListTask):
    """Multiple choice: the box holds the letter of an option."""

    grader = "letter"

    def grade(self, completion: str, problem: Problem) -> Grade:
        parsed = last_boxed(completion)
        if not parsed:
            return Grade(False, 0.0, None, "no_box" if parsed is None else "empty_box")
        letter = choice_letter(parsed[:MAX_ANSWER_CHARS])
        if not letter and len(parsed.strip(" ().")) == 1:
            letter = choice_letter(parsed.upper())
        if not letter:
            return Grade(False, 0.0, None, "no_letter")
        correct = letter == problem.answer
        return Grade(correct, float(correct), letter, "correct" if correct else "wrong")

    def same_answer(self, first: str, second: str) -> bool:
        return first == second


# --- datasets of the hub ----------------------------------------------------------------------------------


def load_rows(task: str, path: str, config: str | None, split: str, rows: int, columns: str) -> list[dict]:
    """One split of a dataset, after checking that it still is what its card says: number of rows, columns."""
    datasets = optional_package("datasets", f"--task {task}")
    try:
        data = datasets.load_dataset(path, config, split=split)
    except (OSError, ValueError, RuntimeError) as error:
        message = f"--task {task}: cannot be loaded; it needs a network or a local cache of {path}"
        raise ValueError(f"{message}. Offline, use --task chain ({error})") from None
    missing = set(columns.split()) - set(data.column_names)
    if len(data) != rows or missing:
        what = f"has {len(data)} rows in {split} instead of {rows}"
        if missing:
            what = f"lacks the columns {sorted(missing)}"
        way_out = "use your own copy as --task jsonl:PATH"
        raise ValueError(f"--task {task}: {path} has changed: it {what}; {way_out}")
    return list(data)


def gsm8k_problem(question: str, answer: str, where: str) -> Problem:
    """A row of openai/gsm8k: its worked answer has calculator notes, <<48/2=24>>, and ends in '#### 42'."""
    worked, marker, final = answer.rpartition("####")
    if not marker or plain_integer(final) is None:
        raise ValueError(f"{where}: field 'answer' does not end in '#### <integer>'")
    prompt, final = f"{question.strip()} {BOXED_INSTRUCTION}", str(plain_integer(final))
    solution = re.sub(r"<<[^>]*>>", "", worked).strip()
    template, program, parts = calculator_program(prompt, worked, final) or (None, None, ())
    return Problem(
        prompt,
        final,
        solution=f"{solution}\n\\boxed{{{final}}}",
        source="gsm8k",
        template=template,
        program=program,
        parts=parts,
    )


def load_gsm8k() -> ListTask:
    """7,473 training and 1,319 test problems (the published card); the last 500 training problems are dev."""

    def problems(split: str, count: int) -> list[Problem]:
        rows = load_rows("gsm8k", "openai/gsm8k", "main", split, count, "question answer")
        return [
            gsm8k_problem(row["question"], row["answer"], f"gsm8k {split}[{i}]") for i, row in enumerate(rows)
        ]

    train = problems("train", 7473)
    return ListTask("gsm8k", {"train": train[:-500], "dev": train[-500:], "test": problems("test", 1319)})


class Benchmark(NamedTuple):
    """A test set of the hub: what its published card says, and how a row becomes a problem."""

    path: str
    config: str | None
    split: str
    rows: int
    columns: str
    make: Callable[[dict], Problem | None]  # None: the row is not part of it


def _asked(question: str, answer: str) -> Problem:
    return Problem(f"{question.strip()} {BOXED_INSTRUCTION}", answer)


def _whole_number(answer: object) -> str:
    """'025', '70', '336^\\circ' and 27.0 as a plain integer."""
    value = float(str(answer).replace("^\\circ", ""))
    if value != int(value):
        raise ValueError(f"{answer!r} is not a whole number")
    return str(int(value))


def _math500(row: dict) -> Problem:
    return _asked(row["problem"], row["answer"])


def _amc(row: dict) -> Problem:
    return _asked(row["question"], _whole_number(row["answer"]))


def _aime(row: dict) -> Problem:
    return _asked(row["problem"], _whole_number(row["answer"]))


def _olympiad(row: dict) -> Problem:
    answers = ", ".join(row["final_answer"]).strip()
    return _asked(row["question"], re.sub(r"^\$([^$]*)\$$", r"\1", answers))


def _gsm_symbolic(row: dict) -> Problem:
    return gsm8k_problem(row["question"], row["answer"], "row")


def _mmlu_pro_math(row: dict) -> Problem | None:
    if row["category"] != "math":
        return None
    options = "\n".join(f"{letter}. {option.strip()}" for letter, option in zip("ABCDEFGHIJ", row["options"]))
    instruction = "Put the letter of the right option in \\boxed{}."
    return Problem(f"{row['question'].strip()}\n{options}\n{instruction}", row["answer"])


BENCHMARKS = {
    "math500": Benchmark("HuggingFaceH4/MATH-500", None, "test", 500, "problem answer", _math500),
    "aime24": Benchmark("HuggingFaceH4/aime_2024", None, "train", 30, "problem answer", _aime),
    "aime25": Benchmark("math-ai/aime25", None, "test", 30, "problem answer", _aime),
    "amc23": Benchmark("math-ai/amc23", None, "test", 40, "question answer", _amc),
    "olympiadbench": Benchmark(
        "Hothan/OlympiadBench", "OE_TO_maths_en_COMP", "train", 674, "question final_answer", _olympiad
    ),
    "gsm_symbolic": Benchmark("apple/GSM-Symbolic", "main", "test", 5000, "question answer", _gsm_symbolic),
    "gsm_symbolic_p1": Benchmark("apple/GSM-Symbolic", "p1", "test", 5000, "question answer", _gsm_symbolic),
    "gsm_symbolic_p2": Benchmark("apple/GSM-Symbolic", "p2", "test", 2500, "question answer", _gsm_symbolic),
    "mmlu_pro_math": Benchmark(
        "TIGER-Lab/MMLU-Pro", None, "test", 12032, "question options answer category", _mmlu_pro_math
    ),
}


def load_benchmark(name: str) -> ListTask:
    """A benchmark of the hub: all of its problems are test.

    Gold answers that cannot be read are counted on the screen.
    """
    path, config, split, number, columns, make = BENCHMARKS[name]
    problems = []
    for i, row in enumerate(load_rows(name, path, config, split, number, columns)):
        try:
            problem = make(row)
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(
                f"--task {name}: {path} has changed: row {i} of {split} cannot be read ({error})"
            ) from None
        if problem:
            problems.append(problem)
    if name == "mmlu_pro_math":
        return ChoiceTask(name, {"test": problems})
    unread = sum(not is_readable(problem.answer) for problem in problems)
    if unread:
        say(
            f"{name}: {unread} of {len(problems)} gold answers cannot be read as numbers or formulas; "
            "only the same text is right there"
        )
    return ListTask(name, {"test": problems})


# --- their problems, chained ------------------------------------------------------------------------------


class ComposedTask:
    """The problems of another task, chained by h1's rule in style "h1", all answers whole numbers from 2.

    Where problems have a program (GSM8K), those alone are chained; else those are for which
    `plainrl.chains.chainable` finds a number, by an offset. The others are left out and counted on the
    screen. Every problem of a finite split starts one chain an epoch; further steps are drawn from the same
    split.
    """

    grader = ListTask.grader
    max_horizon = len(PLACEHOLDERS) + 1

    def __init__(self, base, horizon: str):
        self.base, self.name = base, base.name
        self.flag = getattr(base, "flag", f"--task {self.name}")
        self.low, self.high = horizons(horizon, base.name, self.max_horizon)
        self.pool = None  # the problems that can be chained, where they are finite
        self.need = "a whole number, 2 or more, in question and answer"
        if isinstance(base, ListTask):
            by_program = any(problem.program for problem in base.members("all"))
            pools = {}
            for split, members in base.problems.items():
                steps = (chainable(problem) for problem in members if problem.program or not by_program)
                pools[split] = [step for step in steps if step]
            self.pool = replace(base, problems=pools)
            self.size = lambda split: len(self.members(split))  # only a finite task has a size
            kept, whole = len(self.pool.members("all")), len(base.members("all"))
            how = "their programs" if by_program else "an offset"
            if by_program:
                self.need += ", and GSM8K's notes <<46+5=51>> that hold for other numbers; "
                self.need += "without any such notes they are chained by an offset"
            say(f"{self.name}: {kept} of {whole} problems can be chained, by {how}")

    def members(self, split: str) -> list[Problem]:
        """What the first steps of a split's chains are."""
        if not self.base.members(split) or not self.pool.problems.get(split, split == "all"):
            raise ValueError(
                f"{self.flag}: none of its problems in {split} can be chained; they need {self.need}"
            )
        return self.pool.members(split)

    def steps(self, split: str, index: int, seed: int) -> Iterator[tuple[Problem, list[Problem]]]:
        """The first step of a chain, and problems to draw the others from; again, where those do not do."""
        if self.pool:
            members = self.members(split)
            first = self.pool.problem(split, index, seed)
            yield from [(first, [step for step in members if step.prompt != first.prompt])] * 20
        else:
            width, found = 8 + 4 * self.high, []  # few problems of a gym task are in two chains
            for position in range(index * width, (index + 20) * width):
                step = chainable(self.base.problem(split, position, seed))
                found += [step] if step else []
                if (position + 1) % width == 0 and found:
                    yield found[0], found[1:]

    def problem(self, split: str, index: int, seed: int) -> Problem:
        rng = random.Random(f"{seed}/{split}/{index}/chain")
        horizon = rng.randint(self.low, self.high)
        for first, others in self.steps(split, index, seed):
            if chain := choose_chain(others, horizon, rng, math.inf, first):
                return replace(write_chain(chain, "h1"), index=index)
        raise ValueError(
            f"{self.flag}: cannot chain {horizon} of its problems in {split}; "
            f"it needs a shorter horizon, or more problems with {self.need}"
        )

    def grade(self, completion: str, problem: Problem) -> Grade:
        return grade_boxed(completion, problem)

    def same_answer(self, first: str, second: str) -> bool:
        return same_answer(first, second)

    def at_horizon(self, horizon: int) -> "ComposedTask":
        other = copy.copy(self)
        other.low, other.high = horizons(str(horizon), self.name, self.max_horizon)
        return other
