"""The embedded world: endless word problems in chains of 1 to 10 steps, made here, with exact answers."""

import math
import random
import re
from dataclasses import dataclass, field, replace

from plainrl.answers import last_boxed, plain_integer
from plainrl.chains import chain_values, choose_chain, horizons, right_beginning, run_program, write_chain
from plainrl.grading import grade_boxed
from plainrl.tasks import Grade, Problem, problem_rng, split_by_hash

NAMES = ["Tom", "Ann", "Sue", "Ben", "Kim", "Max", "Eva", "Leo"]
THINGS = ["pens", "eggs", "nuts", "cups", "hats", "keys", "maps", "toys"]
SENTENCES = {  # what a one-step problem computes, and how it says so
    "x+{k}": "{name} has {k} more than {x} {things}.",
    "x-{k}": "{name} has {k} fewer than {x} {things}.",
    "x*{k}": "{name} has {k} times {x} {things}.",
    "x/2": "{name} has half of {x} {things}.",
}
REVERSED = {  # "more" where one has to subtract: the right reading is rare under the embedded base model
    "x-{k}": "{x} {things} is {k} more than {name} has.",
    "x+{k}": "{x} {things} is {k} fewer than {name} has.",
}
FREQUENCIES = [8, 8, 6, 2]  # of the sentences, in their order; few halves, because they let errors cancel
SPLITS = {  # per cent of a hash
    "sft": range(0, 50),
    "train": range(50, 90),
    "dev": range(90, 95),
    "test": range(95, 100),
}
KEPT = 10_000  # problems of dev and test
MOST_FOR_A_BEGINNING = 0.95  # however long it is: 1 is for the right answer alone


def split_of(text: str) -> str:
    return split_by_hash(text, SPLITS)


def one_step(rng: random.Random, reversed_reading: bool) -> Problem:
    """A one-step problem of the embedded world."""
    sentences = REVERSED if reversed_reading else SENTENCES
    pattern = rng.choices(list(sentences), FREQUENCIES[: len(sentences)])[0]
    k = rng.randint(2, 3) if pattern == "x*{k}" else rng.randint(2, 9)
    x = 2 * rng.randint(6, 99) if pattern == "x/2" else rng.randint(11, 199)  # a half is whole
    template = sentences[pattern].format(name=rng.choice(NAMES), things=rng.choice(THINGS), k=k, x="{x}")
    program = pattern.format(k=k)
    return Problem(
        prompt=template.replace("{x}", str(x)),
        answer=str(run_program(program, x)),
        template=template,
        program=program,
        source="chain/reversed" if reversed_reading else "chain",
    )


@dataclass
class ChainTask:
    """The embedded world: GSM8K-like steps chained by h1's rule, integer answers from 2 to 999.

    horizon: number of dependent steps, 1 to 10; `horizon=2-6` draws it uniformly for every problem.
    family:  plain; mixed (a quarter of the problems are reversed);
             reversed (one step, at a random place, says "A is 5 more than" where one has to subtract).
    style:   short or h1, see `plainrl.chains.compose`.
    reward:  answer (1 or 0), or prefix: a wrong answer after l of h right lines earns sqrt(l / h), at most
             .95, as a right beginning of an answer does in GREAM (arXiv 2510.20815).
    """

    horizon: str = "3"
    family: str = "plain"
    style: str = "short"
    reward: str = "answer"
    name: str = "chain"
    max_horizon: int = field(default=10, init=False)
    grader = "plain integers"

    def __post_init__(self):
        self.low, self.high = horizons(str(self.horizon), "chain", self.max_horizon)
        self.held_out = {}  # problems of dev and test: every evaluation asks for the same ones
        if self.family not in ("plain", "reversed", "mixed"):
            raise ValueError(f"--task chain: family={self.family} is not one of plain, reversed, mixed")
        if self.style not in ("short", "h1"):
            raise ValueError(f"--task chain: style={self.style} is not one of short, h1")
        if self.reward not in ("answer", "prefix"):
            raise ValueError(f"--task chain: reward={self.reward} is not one of answer, prefix")

    def chain(self, split: str, index: int, seed: int) -> list[Problem]:
        """The steps of a problem, a pure function of its arguments.

        No two splits share a start number with the same programs.
        """
        rng = problem_rng(SPLITS, split, index, seed)
        horizon = rng.randint(self.low, self.high)
        has_reversed = self.family == "reversed" or (self.family == "mixed" and rng.random() < 0.25)
        while True:
            pool = [one_step(rng, reversed_reading=False) for _ in range(3 * horizon)]
            steps = choose_chain(pool, horizon, rng)
            if steps and has_reversed:
                steps[rng.randrange(horizon)] = one_step(rng, reversed_reading=True)
                values = chain_values(steps)  # the steps after it now receive another number
                if any(value.denominator != 1 or not 2 <= value <= 999 for value in values):
                    continue
                if len(set(values)) < horizon:
                    continue
            if not steps or split_of(" ".join([steps[0].answer, *(step.program for step in steps)])) != split:
                continue
            if split == "sft":
                return steps  # tools/make_tiny.py shows hints of its own
            problem = write_chain(steps, "short")
            if problem.answer not in re.findall("[0-9]+", problem.hint):  # not even by chance
                return steps

    def problem(self, split: str, index: int, seed: int) -> Problem:
        key = split, index, seed
        problem = self.held_out.get(key)
        if problem is None:
            problem = replace(write_chain(self.chain(*key), self.style), index=index)
        if split in ("dev", "test") and len(self.held_out) < KEPT:
            self.held_out[key] = problem
        return problem

    def at_horizon(self, horizon: int) -> "ChainTask":
        return replace(self, horizon=str(horizon))

    def grade(self, completion: str, problem: Problem) -> Grade:
        parsed = last_boxed(completion)
        if parsed and plain_integer(parsed) is None:  # "30-6" is equal to 24, but leaves the work undone
            return Grade(False, 0.0, None, "not_an_integer")
        grade = grade_boxed(completion, problem)
        if self.reward == "answer" or grade.correct or grade.parsed is None:
            return grade
        right, steps = right_beginning(completion, problem.solution)
        return replace(grade, score=min(MOST_FOR_A_BEGINNING, math.sqrt(right / steps)))
