"""The orthogonal world: are two vectors of -1, 0 and 1 orthogonal? For models that begin with random weights.

    +0-,-+0          two vectors of three numbers; the products are -, 0 and 0, and their sum is -1
    -00,-1N          worked: the products, a comma, their sum, then Y or N

An idea of "General Reasoning Requires Learning to Reason from the Get-go" (arXiv 2502.19402). There are 16
symbols, an answer is short, and half of all answers are right by chance: so a model that knows nothing finds
reward. What stands before the last symbol is scratch, and nobody says what is to be written there.
"""

import re
from dataclasses import dataclass, field, replace

from plainrl.tasks import Grade, Problem, problem_rng, split_by_hash

SYMBOLS = ("+", "-", "0", "1", "2", "3", "4", "5", ",", "Y", "N", "?")  # and four of the chat template
MOST_SCRATCH = 12  # symbols before the answer
LARGEST_SUM = 5  # that is written; above it stands 5 too
SHORTEST, LONGEST = 2, 8  # of one number there are too few pairs for four splits
SPLITS = {"sft": range(0, 20), "train": range(20, 65), "dev": range(65, 75), "test": range(75, 100)}
ANSWER = re.compile(rf"([^YN]{{0,{MOST_SCRATCH}}})([YN])")
SIGNS = {-1: "-", 0: "0", 1: "+"}


def dot(first: tuple[int, ...], second: tuple[int, ...]) -> int:
    return sum(a * b for a, b in zip(first, second, strict=True))


def odd(first: tuple[int, ...], second: tuple[int, ...]) -> bool:
    """Is the number of products that are not 0 odd?"""
    return sum(a * b != 0 for a, b in zip(first, second, strict=True)) % 2 == 1


def written(vector: tuple[int, ...]) -> str:
    """
    >>> written((1, 0, -1))
    '+0-'
    """
    return "".join(SIGNS[number] for number in vector)


def worked(first: tuple[int, ...], second: tuple[int, ...]) -> str:
    """The products, their sum, and the answer.

    >>> worked((1, 0, -1), (-1, 1, 0)), worked((1, 1), (1, -1))
    ('-00,-1N', '+-,0Y')
    """
    products = tuple(a * b for a, b in zip(first, second, strict=True))
    total = sum(products)
    if total == 0:
        return f"{written(products)},0Y"
    return f"{written(products)},{'+' if total > 0 else '-'}{min(abs(total), LARGEST_SUM)}N"


def read(prompt: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The two vectors of a prompt.

    >>> read("+0-,-+0")
    ((1, 0, -1), (-1, 1, 0))
    """
    number = {sign: value for value, sign in SIGNS.items()}
    first, second = (tuple(number[sign] for sign in text) for text in prompt.split(","))
    return first, second


def by_parity(prompt: str) -> str:
    """The short cut: products that are not 0 cancel only if their number is even. Nothing is added up."""
    return "N" if odd(*read(prompt)) else "Y"


@dataclass
class OrthogonalTask:
    """Two vectors of n numbers, each -1, 0 or 1. Half of the problems are orthogonal, of every length. Of the
    others half have an odd number of products that are not 0, so that `by_parity` is right in three quarters.

    n: 2 to 8 of them; `n=2-4` draws it uniformly for every problem.

    No two splits share a pair of vectors, in whatever order.
    """

    n: str = "2-4"
    name: str = "orthogonal"
    max_horizon: int = field(default=LONGEST, init=False)
    grader = "orthogonal"
    world = "orthogonal"  # whose start model and defaults are taken, see `plainrl.flags.by_size`

    def __post_init__(self):
        low, _, high = str(self.n).partition("-")
        high = high or low
        is_range = all(re.fullmatch("[0-9]{1,4}", bound) for bound in (low, high))
        if not is_range or not SHORTEST <= int(low) <= int(high) <= LONGEST:
            raise ValueError(f"--task orthogonal: n={self.n} is not within {SHORTEST} to {LONGEST}")
        self.low, self.high = int(low), int(high)

    def problem(self, split: str, index: int, seed: int) -> Problem:
        """A pure function of its arguments."""
        rng = problem_rng(SPLITS, split, index, seed)
        n, orthogonal, is_odd = rng.randint(self.low, self.high), rng.random() < 0.5, rng.random() < 0.5
        while True:
            first, second = (tuple(rng.choices((-1, 0, 1), k=n)) for _ in range(2))
            pair = " ".join(sorted((written(first), written(second))))
            # With this word every split has pairs of two numbers of all three kinds.
            if split_by_hash(f"product {pair}", SPLITS) != split:
                continue
            if (dot(first, second) == 0) == orthogonal and (orthogonal or odd(first, second) == is_odd):
                break
        return Problem(
            prompt=f"{written(first)},{written(second)}",
            answer="Y" if orthogonal else "N",
            solution=worked(first, second),
            horizon=n,
            source="orthogonal",
            index=index,
        )

    def at_horizon(self, horizon: int) -> "OrthogonalTask":
        return replace(self, n=str(horizon))

    def grade(self, completion: str, problem: Problem) -> Grade:
        """Right: at most 12 symbols of scratch, then the right one of Y and N, and nothing after it."""
        found = ANSWER.fullmatch(completion.strip())
        if not found:
            return Grade(False, 0.0, None, "no_answer")
        right = found[2] == problem.answer
        return Grade(right, float(right), found[2], "correct" if right else "wrong")
