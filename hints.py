"""Makes hints for guide.py from worked solutions: a file with one {"prompt": ..., "hint": ...} a line.

    python hints.py --task gsm8k --out hints.jsonl                    the first half of each solution's steps
    python hints.py --task gsm8k --kind plan --out hints.jsonl        all steps but the last, their numbers left out
    python guide.py --task gsm8k --hints hints.jsonl

A step is a line of the solution or, where that is one line only, a sentence. A hint that would contain the final answer is
shortened by a step until it does not; where nothing is left there is no hint, and both are counted.
"""

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

import runtime
from tasks import Problem, load_task, reveals

NUMBERS = re.compile(r"[-+$]?\d[\d.,]*(?:\s*[-+*/=x×÷%$]\s*\$?\d[\d.,]*)*(?:\s*%)?(?<![.,])")  # a number, or a whole calculation


@dataclass
class Args:
    task: str
    """a task whose problems carry worked solutions: chain, gsm8k, or your own file as jsonl:PATH (field solution)"""
    out: Path
    """the file to write; must not exist"""
    kind: Literal["first_steps", "plan"] = "first_steps"
    """first_steps: the beginning of the solution; plan: what is done in which order, without numbers"""
    share: float = 0.5
    """first_steps: how much of a solution's steps, rounded up; never the last"""
    problems: int | None = None
    """training problems to make hints for (default: all of a finite set, else 1,000)"""
    seed: int = 0
    """the training run's seed, where problems depend on it (chain)"""


def steps_of(solution: str) -> list[str]:
    """The steps of a worked solution, without what only states the answer in a box.

    >>> steps_of("Half of 48 is 24. Both are 72.\\n\\\\boxed{72}")
    ['Half of 48 is 24.', 'Both are 72.']
    """
    lines = [line.strip() for line in solution.splitlines() if line.strip() and not re.fullmatch(r"\s*\\boxed\{.*\}\.?\s*", line)]
    return lines if len(lines) != 1 else re.split(r"(?<=[.!?;])\s+", lines[0])


def make_hint(problem: Problem, kind: str, share: float) -> str | None:
    """A hint from the problem's solution; None where no part of it is free of the answer."""
    steps = steps_of(problem.solution or "")
    steps = steps[: -1] if kind == "plan" else steps[: min(math.ceil(share * len(steps)), len(steps) - 1)]
    if kind == "plan":
        steps = [NUMBERS.sub("…", step) for step in steps]
    while steps and reveals("\n".join(steps), problem.answer):
        steps.pop()
    return "\n".join(steps) or None


def main(args: Args) -> None:
    if args.out.exists():
        runtime.fail(f"--out {args.out}: exists and is never overwritten; give another name or delete it")
    if not 0 < args.share <= 1:
        runtime.fail(f"--share {args.share:g}: must be above 0 and at most 1")
    task = runtime.or_fail(load_task, args.task)
    if args.problems is not None and args.problems < 1:
        runtime.fail(f"--problems {args.problems}: must be at least 1")
    finite = hasattr(task, "size")
    count = min(args.problems or 10**9, task.size("train")) if finite else args.problems or 1000
    problems = {problem.prompt: problem for problem in (task.problem("train", index, args.seed) for index in range(count))}
    without = sum(not problem.solution for problem in problems.values())
    if without == len(problems):
        runtime.fail(f"--task {args.task}: none of its {len(problems)} training problems carries a worked solution to make a hint from")
    hints = {prompt: make_hint(problem, args.kind, args.share) for prompt, problem in problems.items()}
    lines = [json.dumps({"prompt": prompt, "hint": hint}, ensure_ascii=False) + "\n" for prompt, hint in hints.items() if hint]
    if not lines:
        runtime.fail(f"--task {args.task}: no part of any solution is free of its answer, so there is no hint; try another --kind")
    runtime.write_text(args.out, "".join(lines))
    print(f"{args.out}: {len(lines)} hints; no solution: {without}; nothing left without the answer: {len(hints) - len(lines) - without}")
    same = "" if finite else f" --train-size {count} --seed {args.seed}"  # of an endless task, the problems that have hints
    print(f"next: python guide.py --task {args.task} --hints {args.out}{same}")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
