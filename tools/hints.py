"""Makes hints for guide.py from worked solutions: a file with one {"prompt": ..., "hint": ...} a line.

    python tools/hints.py --task gsm8k --out hints.jsonl              the first half of each solution's steps
    python tools/hints.py --task gsm8k --out hints.jsonl --kind plan  all steps but the last, without numbers
    python guide.py --task gsm8k --hints hints.jsonl

A step is a line of the solution or, where that is one line only, a sentence. A hint that would contain the
final answer is shortened by a step until it does not; where nothing is left there is no hint, and both are
counted.
"""

import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

sys.path.append(str(Path(__file__).resolve().parents[1]))  # where plainrl/ lies

from plainrl.flags import Count, Share, check_flags, parse
from plainrl.folder import json_lines, refuse_existing, write_or_fail
from plainrl.hints import reveals, steps_of_share
from plainrl.screen import fail, or_fail, say
from plainrl.tasks import Problem, load_task, split_size

DIGITS = r"\$?\d[\d.,]*"
NUMBERS = re.compile(  # a number, or a whole calculation: 48, $1,000, 20%, 48/2 = 24
    rf"[-+$]?\d[\d.,]*(?:\s*[-+*/=x×÷%$]\s*{DIGITS})*(?:\s*%)?(?<![.,])"
)


@dataclass
class Args:
    task: str
    """a task with worked solutions: chain, gsm8k, or your own file as jsonl:PATH (field solution)"""
    out: Path
    """the file to write; must not exist"""
    kind: Literal["first_steps", "plan"] = "first_steps"
    """first_steps: the beginning of the solution; plan: what is done in which order, without numbers"""
    share: Share = 0.5
    """first_steps: how much of a solution's steps, rounded up; never the last"""
    problems: Count | None = None
    """training problems to make hints for (default: all of a finite set, else 1,000)"""
    seed: int = 0
    """the training run's seed, where problems depend on it (chain)"""


def steps_of(solution: str) -> list[str]:
    """The steps of a worked solution, without what only states the answer in a box.

    >>> steps_of("Half of 48 is 24. Both are 72.\\n\\\\boxed{72}")
    ['Half of 48 is 24.', 'Both are 72.']
    """
    lines = [line.strip() for line in solution.splitlines()]
    lines = [line for line in lines if line and not re.fullmatch(r"\\boxed\{.*\}\.?", line)]
    return lines if len(lines) != 1 else re.split(r"(?<=[.!?;])\s+", lines[0])


def make_hint(problem: Problem, kind: str, share: float) -> str | None:
    """A hint from the problem's solution; None where no part of it is free of the answer."""
    steps = steps_of(problem.solution or "")
    if kind == "plan":
        steps = [NUMBERS.sub("…", step) for step in steps[:-1]]
    else:
        steps = steps[: min(steps_of_share(share, len(steps)), len(steps) - 1)]
    while steps and reveals("\n".join(steps), problem.answer):
        steps.pop()
    return "\n".join(steps) or None


def main(args: Args) -> None:
    refuse_existing("--out", args.out)
    check_flags(args)
    task = or_fail(load_task, args.task)
    size = split_size(task, "train")
    count = (args.problems or 1000) if size is None else min(args.problems or size, size)
    drawn = (task.problem("train", index, args.seed) for index in range(count))
    problems = {problem.prompt: problem for problem in drawn}
    without = sum(not problem.solution for problem in problems.values())
    if without == len(problems):
        fail(
            f"--task {args.task}: none of its {len(problems)} training problems carries a worked solution "
            "to make a hint from"
        )
    hints = {prompt: make_hint(problem, args.kind, args.share) for prompt, problem in problems.items()}
    rows = [{"prompt": prompt, "hint": hint} for prompt, hint in hints.items() if hint]
    if not rows:
        fail(
            f"--task {args.task}: no part of any solution is free of its answer, so there is no hint; "
            "try another --kind"
        )
    write_or_fail("--out", args.out, json_lines(rows), "give another name")
    left_out = f"no solution: {without}; nothing left without the answer: {len(hints) - len(rows) - without}"
    say(f"{args.out}: {len(rows)} hints; {left_out}")
    # Of an endless task, guide.py must train on the problems that have hints.
    same = "" if size is not None else f" --train-size {count} --seed {args.seed}"
    task, hints_file = shlex.quote(args.task), shlex.quote(str(args.out))
    say(f"next: python guide.py --task {task} --hints {hints_file}{same}")


if __name__ == "__main__":
    main(parse(Args, __doc__))


# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "torch==2.13.0", "transformers>=5.16.1,<5.20", "safetensors", "numpy", "tyro", "filelock",
#     "math-verify>=0.9,<0.10", "antlr4-python3-runtime==4.13.2", "matplotlib", "jinja2",
# ]
# ///
