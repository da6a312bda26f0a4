r"""Writes rows for sft.py from worked solutions, with another target: one {"prompt", "completion"} a line.

    python tools/traces.py --task chain --kind plan_steps --out rows.jsonl
    python sft.py --data rows.jsonl --task chain

What --kind makes of the lines A=115+3=118, B=118+6=124, C=124-2=122 and \boxed{122}:

    solution     the solution as the task has it
    steps        one step a line, then the box; of a text one sentence a line
    first_step   A=115+3                            a beginning: no end token follows it (FSLR, 2601.03682)
    sparse       ((115+3)+6)-2=122 and the box      what a terse annotator writes (EIT, 2412.16964)
    plan         Plan: add 3, add 6, subtract 2.    and then what sparse has (EIT)
    plan_steps   the same plan, then the steps (EIT)
    dialect      Adding three to one hundred ...    sentences, far from the model's own (2512.22255)
    corrupt      B=118+6=131                        a --share of the steps with wrong results (2512.22255)
    overthinking B=118+6=124, Wait., B=118+6=124    useless lines after a --share of the steps, for
                                                    papers/dto.py to take away (2505.21765)

Two kinds have prompts of their own, and are what papers/daslam.py starts from (DaSLaM, 2310.18338):

    subquestions A?, B?, C?                         what a decomposer asks, a --share of the lists damaged;
                                                    it reads no solution, the right one or a wrong one
    subanswers   B=118+6=124 and \boxed{124}        what a solver answers to `B?` with A=115+3=118 as a hint,
                                                    a row for each step; with all steps given the solution

Where all lines of a solution are such steps, each is computed anew, and so is the box. One that is wrong
makes no row. Of any other text solution, steps and first_step are possible, and the task grades its answer,
where it has one. What makes no row is counted by its reason.
"""

import random
import re
import shlex
import sys
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

sys.path.append(str(Path(__file__).resolve().parents[1]))  # where plainrl/ lies

from plainrl.answers import last_boxed, number
from plainrl.chains import run_program
from plainrl.flags import Count, Fraction, check_flags, parse, resolve_model
from plainrl.folder import json_lines, refuse_existing, write_or_fail
from plainrl.hints import steps_of_share
from plainrl.models import load_tokenizer
from plainrl.rows import source_of
from plainrl.screen import fail, or_fail, say, stoppable
from plainrl.subquestions import decomposer_prompt, in_context, with_answers
from plainrl.tasks import Problem, first_problems, load_task
from tools.hints import steps_of

Kind = Literal[
    "solution", "steps", "first_step", "sparse", "plan", "plan_steps", "dialect", "corrupt", "overthinking",
    "subquestions", "subanswers",
]  # fmt: skip
KINDS_OF_TEXTS = ("solution", "steps", "first_step")
KINDS_WITH_PROMPTS = ("subquestions", "subanswers")  # of their own
LINE = re.compile(r"([A-Z]=|Step [0-9]{1,3}: )([0-9]{1,9})([-+*/])([0-9]{1,9})=([0-9]{1,9})")
OPERATION = re.compile(r"[0-9)}%] *(?:[-+*/x×÷−^]|\\times|\\cdot|\\div) *[$({]*[0-9]|\\[dt]?frac")
SMALLEST, LARGEST = 2, 999  # results that the embedded world has
FURTHEST = 20  # a wrong result is at most so far from the right one
TRIES = 1000  # draws of wrong results, until all that follows from them is in the world too

INVERSE = {"+": "-", "-": "+", "*": "/", "/": "*"}
OPERATIONS = {"+": "add {}", "-": "subtract {}", "*": "multiply by {}", "/": "divide by {}"}
SENTENCES = {
    "+": "Adding {operand} to {received} gives {value}.",
    "-": "Taking {operand} away from {received} leaves {value}.",
    "*": "Taking {operand} times {received} makes {value}.",
    "/": "Dividing by {operand} turns {received} into {value}.",
}
ONES = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
ONES = f"{ONES} seventeen eighteen nineteen".split()
TENS = "zero ten twenty thirty forty fifty sixty seventy eighty ninety".split()


@dataclass
class Args:
    task: str
    """a task with worked solutions: chain, gsm8k, or your own file as jsonl:PATH (field solution)"""
    out: Path
    """the file to write; must not exist"""
    kind: Kind = "solution"
    """what is learned, see above"""
    share: Fraction = 1 / 3
    """corrupt: how many of a solution's steps get a wrong result, rounded up; overthinking: how likely
    useless lines follow a step; subquestions: how likely a list is damaged"""
    consistent: bool = True
    """corrupt: the steps after a wrong result go on from it; --no-consistent: from the right one"""
    model: str | None = None
    """first_step: the --model that sft.py will train, whose tokenizer decides where a step can be cut
    (default: models/tiny, or models/countdown with --task countdown)"""
    split: Literal["train", "dev", "test"] = "train"
    """whose problems; sft.py holds out the rows of dev, and leaves out those of test"""
    problems: Count | None = None
    """problems to make rows of (default: all of a finite set, else 1,000)"""
    seed: int = 0
    """the training run's seed, where problems depend on it (chain); wrong results depend on it too"""


# --- the steps of a solution --------------------------------------------------------------------------------


class LeftOut(Exception):
    """Why a problem makes no row."""


@dataclass(frozen=True)
class Step:
    """One line of a worked solution, such as B=118+6=124."""

    name: str  # "B=", or "Step 3: "
    received: int  # 118
    sign: str
    operand: int  # 6
    value: int  # 124, right or wrong

    @property
    def work(self) -> str:
        """The line without its result."""
        return f"{self.name}{self.received}{self.sign}{self.operand}"

    @property
    def line(self) -> str:
        return f"{self.work}={self.value}"


def result(step: Step, received: int) -> int | None:
    """What the step comes to with this number; None where it is not whole."""
    try:
        value = run_program(f"x{step.sign}{step.operand}", received)
    except ZeroDivisionError:
        return None
    return int(value) if value.denominator == 1 else None


def read_steps(solution: str) -> list[Step] | None:
    """The steps of a solution whose lines are all steps, but for the box at its end. None of any other
    text."""
    *lines, last = [line.strip() for line in solution.strip().splitlines()] or [""]
    found = [LINE.fullmatch(line) for line in lines]
    if not lines or not all(found) or not re.fullmatch(r"\\boxed\{.*\}", last):
        return None
    steps = []
    for match in found:
        name, received, sign, operand, value = match.groups()
        steps.append(Step(name, int(received), sign, int(operand), int(value)))
    return steps


def right_steps(steps: list[Step]) -> int:
    """How many steps are computed rightly, each from the number that it has received."""
    return sum(result(step, step.received) == step.value for step in steps)


def is_right(steps: list[Step], solution: str, answer: str) -> bool:
    """Is every line right, does it go on with the result before it, and is the last one in the box?"""
    follow = all(step.received == before.value for before, step in zip(steps, steps[1:]))
    in_box = number(last_boxed(solution) or "") == steps[-1].value == number(answer)
    return right_steps(steps) == len(steps) and follow and in_box


# --- the targets --------------------------------------------------------------------------------------------


def boxed(answer: str | int) -> str:
    return f"\\boxed{{{answer}}}"


def sparse(steps: list[Step]) -> str:
    """All steps in one line: the first in brackets, as what the second receives, and so on."""
    work = f"{steps[0].received}{steps[0].sign}{steps[0].operand}"
    for step in steps[1:]:
        work = f"({work}){step.sign}{step.operand}"
    return f"{work}={steps[-1].value}"


def plan(steps: list[Step]) -> str:
    """What is done in which order, without results."""
    return f"Plan: {', '.join(OPERATIONS[step.sign].format(step.operand) for step in steps)}."


def in_words(value: int) -> str:
    """A number below a million, as it is said.

    >>> in_words(0), in_words(70), in_words(115), in_words(342_021)
    ('zero', 'seventy', 'one hundred fifteen', 'three hundred forty-two thousand twenty-one')
    """
    if value < 20:
        return ONES[value]
    if value < 100:
        return TENS[value // 10] + (f"-{ONES[value % 10]}" if value % 10 else "")
    unit, name = (100, "hundred") if value < 1000 else (1000, "thousand")
    return f"{in_words(value // unit)} {name}" + (f" {in_words(value % unit)}" if value % unit else "")


def dialect(steps: list[Step]) -> str:
    """A sentence a step, what is done before what it is done to, and all numbers but the box in words."""
    sentences = []
    for step in steps:
        numbers = {name: getattr(step, name) for name in ("operand", "received", "value")}
        if max(numbers.values()) >= 10**6:
            raise LeftOut("a number too large for words")
        words = {name: in_words(value) for name, value in numbers.items()}
        sentences.append(SENTENCES[step.sign].format(**words))
    return " ".join([*sentences, f"The answer is {boxed(steps[-1].value)}."])


def corrupted(steps: list[Step], share: float, consistent: bool, rng: random.Random) -> list[Step]:
    """The steps, a share of them with a wrong result, at most FURTHEST from the right one.

    Those after it go on from it, or where not `consistent` from the right one. A larger share makes wrong
    what a smaller one does, and more. All results stay whole, and within SMALLEST and LARGEST.
    """
    order = list(range(len(steps)))
    rng.shuffle(order)
    wrong = order[: steps_of_share(share, len(steps))]
    errors = [*range(-FURTHEST, 0), *range(1, FURTHEST + 1)]
    for _ in range(TRIES):
        made = []
        for i, step in enumerate(steps):
            received = made[-1].value if made and consistent else step.received
            value = result(step, received)
            if value is not None and i in wrong:
                value += rng.choice(errors)
            if value is None or not SMALLEST <= value <= LARGEST:
                break
            made.append(replace(step, received=received, value=value))
        if len(made) == len(steps):
            return made
    raise LeftOut("no wrong results that fit")


def overthought(steps: list[Step], share: float, rng: random.Random) -> list[str]:
    """The lines of the steps. After each, with probability `share`, come one or two that change nothing: the
    line again, a second thought and the line again, or what undoes it."""
    lines = []
    for step in steps:
        lines.append(step.line)
        undone = f"{step.value}{INVERSE[step.sign]}{step.operand}={step.received}"
        if rng.random() < share:
            for _ in range(rng.choice((1, 2))):
                lines.append(rng.choice((step.line, f"Wait.\n{step.line}", undone)))
    return lines


def target_of_steps(steps: list[Step], kind: str, share: float, consistent: bool, rng: random.Random) -> str:
    """The completion of each kind but solution and first_step."""
    if kind == "dialect":
        return dialect(steps)
    if kind == "corrupt":
        steps = corrupted(steps, share, consistent, rng)
    lines = [step.line for step in steps]
    if kind == "overthinking":
        lines = overthought(steps, share, rng)
    if kind in ("sparse", "plan"):
        lines = [sparse(steps)]
    if kind in ("plan", "plan_steps"):
        lines = [plan(steps), *lines]
    return "\n".join([*lines, boxed(steps[-1].value)])


def damaged(letters: list[str], rng: random.Random) -> list[str]:
    """The letters in another order, without one of them, or with one in the place of another; one alone
    twice."""
    if len(letters) == 1:
        return 2 * letters
    match rng.choice(("order", "missing", "twice")):
        case "order":
            made = letters
            while made == letters:
                made = rng.sample(letters, len(letters))
        case "missing":
            place = rng.randrange(len(letters))
            made = letters[:place] + letters[place + 1 :]
        case "twice":
            place, other = rng.sample(range(len(letters)), 2)
            made = [*letters]
            made[place] = letters[other]
    return made


def pairs_of_steps(
    problem: Problem, steps: list[Step], kind: str, share: float, rng: random.Random
) -> list[tuple[str, str]]:
    """Prompts and completions of the kinds that have prompts of their own."""
    letters = [step.name.removesuffix("=") for step in steps]
    if any(len(letter) > 1 for letter in letters):
        raise LeftOut("steps without letters")
    lines = [step.line for step in steps]
    if kind == "subanswers":
        pairs = []
        for i, (letter, step) in enumerate(zip(letters, steps)):
            prompt = with_answers(in_context(problem.prompt, f"{letter}?"), lines[:i])
            pairs.append((prompt, f"{step.line}\n{boxed(step.value)}"))
        return [*pairs, (with_answers(problem.prompt, lines), problem.solution)]
    asked = damaged(letters, rng) if rng.random() < share else letters
    wrong = target_of_steps(steps, "corrupt", 1 / 3, True, rng)
    reasoning = rng.choice((None, problem.solution, wrong))
    return [(decomposer_prompt(problem.prompt, reasoning), "\n".join(f"{letter}?" for letter in asked))]


def steps_of_text(solution: str) -> str:
    """A text with one step a line, and its box behind them where it has one."""
    steps = steps_of(solution)
    box = last_boxed(solution)
    if box is not None and last_boxed("\n".join(steps)) is None:
        steps.append(boxed(box))
    return "\n".join(steps)


# --- the first step -----------------------------------------------------------------------------------------


def end_of_first_step(solution: str, steps: list[Step] | None) -> int:
    """Where the first step has said what it computes, and not yet what that comes to: before its last "=", of
    a text before its first."""
    if steps:
        return solution.index(steps[0].work) + len(steps[0].work)
    first = (steps_of(solution) or [""])[0]  # none: a box alone
    start = solution.index(first)
    end = solution.find("=", start, start + len(first))
    if end < 0:
        raise LeftOut("no operation in its first step")
    return len(solution[:end].rstrip())


def beginning(solution: str, end: int, tokenizer) -> tuple[str, int, int]:
    """The solution up to its last token that ends at `end` or before: its text, its tokens, and those of the
    whole solution with its end token.

    The tokens are those of the whole solution. Where the text by itself would have others, as sft.py would
    learn it, there is no row.
    """
    whole = tokenizer(solution, add_special_tokens=False, return_offsets_mapping=True)
    ids, ends = whole["input_ids"], [last for _, last in whole["offset_mapping"]]
    count = next((i for i, last in enumerate(ends) if last > end), len(ids))
    text = solution[: ends[count - 1]] if count else ""
    if not OPERATION.search(text):
        raise LeftOut("no operation in its first step")
    if tokenizer.encode(text, add_special_tokens=False) != ids[:count]:
        raise LeftOut("its first step has other tokens by itself than in the whole solution")
    return text, count, len(ids) + 1


# --- rows ---------------------------------------------------------------------------------------------------


def checked_steps(problem: Problem, args: Args, task) -> list[Step] | None:
    """The steps of a solution that is right, None where it is a text. Raises LeftOut."""
    solution = problem.solution
    if not solution or not solution.strip():
        raise LeftOut("no solution")
    steps = read_steps(solution)
    if steps is None:
        if args.kind not in KINDS_OF_TEXTS:
            raise LeftOut("no lines such as B=118+6=124")
        grade = or_fail(task.grade, solution, problem)
        right = grade.correct or grade.parsed is None  # a text without a box is as good as its author
    else:
        right = is_right(steps, solution, problem.answer)
    if not right:
        raise LeftOut("a wrong line or box")
    return steps


def completion_of(
    solution: str, steps: list[Step] | None, args: Args, tokenizer, rng: random.Random, counts: Counter
) -> str:
    """What the row of a problem learns. Raises LeftOut.

    `counts` are for the screen: solutions that are texts; tokens of first steps and of whole solutions.
    """
    if args.kind == "first_step":
        text, own, whole = beginning(solution, end_of_first_step(solution, steps), tokenizer)
        counts.update(own=own, whole=whole, texts=steps is None)
        return text
    counts["texts"] += steps is None
    if args.kind == "solution":
        return solution
    if steps is None:
        return steps_of_text(solution)
    return target_of_steps(steps, args.kind, args.share, args.consistent, rng)


def rows_of(problem: Problem, args: Args, task, tokenizer, counts: Counter) -> list[dict]:
    """The rows of a problem, one but for `subanswers`. Raises LeftOut."""
    steps, rng = checked_steps(problem, args, task), random.Random(f"{args.seed}/{problem.prompt}")
    if args.kind in KINDS_WITH_PROMPTS:
        pairs = pairs_of_steps(problem, steps, args.kind, args.share, rng)
    else:
        completion = completion_of(problem.solution, steps, args, tokenizer, rng, counts)
        pairs = [(problem.prompt, completion)]
    return [row_of(problem, *pair, args) for pair in pairs]


def row_of(problem: Problem, prompt: str, completion: str, args: Args) -> dict:
    """As sft.py reads it; the fields behind `split` are for whoever compares rows."""
    row = {"prompt": prompt, "completion": completion}
    if args.kind == "first_step":
        row["end"] = False
    more = {"answer": problem.answer, "horizon": problem.horizon, "source": source_of(problem)}
    return row | {"split": args.split} | more


def nothing_left(args: Args, count: int, why: Counter) -> str:
    """What is wrong where no problem makes a row."""
    if why["no solution"] == count:
        return f"--task {args.task}: none of its {count:,} problems of {args.split} carries a worked solution"
    if why["no solution"] + why["no lines such as B=118+6=124"] == count:
        other = "the solutions of --task have no lines such as B=118+6=124, which it needs"
        return f"--kind {args.kind}: {other}; use {', '.join(KINDS_OF_TEXTS)}, or --task chain"
    reasons = "; ".join(f"{reason}: {number:,}" for reason, number in why.items())
    return f"--kind {args.kind}: none of {count:,} problems makes a row ({reasons}); try another --kind"


def say_what_was_made(args: Args, rows: list[dict], counts: Counter) -> None:
    """What a comparison of kinds needs to know of the rows."""
    if args.kind == "first_step":
        share = counts["own"] / counts["whole"]
        learned = f"{counts['own']:,} of the solutions' {counts['whole']:,} tokens, {share:.0%}"
        say(f"cut with the tokenizer of {args.model}; learned are {learned}")
    if args.kind == "corrupt":
        made = [read_steps(row["completion"]) for row in rows]
        lines, right = sum(map(len, made)), sum(map(right_steps, made))
        boxes = sum(number(row["answer"]) == steps[-1].value for row, steps in zip(rows, made))
        say(f"{right:,} of {lines:,} steps and {boxes:,} of {len(rows):,} boxes are right")
    if counts["texts"]:
        say(f"{counts['texts']:,} solutions are texts, of which only the answer was looked at")
    if args.split == "train":
        model = f" --model {shlex.quote(args.model)}" if args.kind == "first_step" else ""
        data, task = shlex.quote(str(args.out)), shlex.quote(args.task)
        say(f"next: python sft.py --data {data} --task {task}{model}")


@stoppable("nothing is written")
def main(args: Args) -> None:
    refuse_existing("--out", args.out)
    check_flags(args)
    task = or_fail(load_task, args.task)
    resolve_model(args, task)
    tokenizer = load_tokenizer(args.model) if args.kind == "first_step" else None
    if tokenizer and not tokenizer.is_fast:
        fail(f"--model {args.model}: its tokenizer does not say where its tokens end; use another model")
    count, problems = or_fail(first_problems, task, args.split, args.problems, args.seed)
    rows, why, counts = [], Counter(), Counter()
    for problem in problems.values():
        try:
            rows += rows_of(problem, args, task, tokenizer, counts)
        except LeftOut as reason:
            why[str(reason)] += 1
    if not rows:
        fail(nothing_left(args, len(problems), why))
    write_or_fail("--out", args.out, json_lines(rows), "give another name")
    same = f"; the same prompt again: {count - len(problems):,}" if len(problems) < count else ""
    left_out = "".join(f"; {reason}: {number:,}" for reason, number in why.items())
    say(f"{args.out}: {len(rows):,} rows of kind {args.kind}{same}{left_out}")
    say_what_was_made(args, rows, counts)


if __name__ == "__main__":
    main(parse(Args, __doc__))


# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "torch==2.13.0", "transformers>=5.16.1,<5.20", "safetensors", "numpy", "tyro", "filelock",
#     "math-verify>=0.9,<0.10", "antlr4-python3-runtime==4.13.2", "matplotlib", "jinja2",
# ]
# ///
