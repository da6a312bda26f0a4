"""Writes chains of another task's problems (h1, arXiv 2510.07312) to a file that every script and eval.py read.

    python compose.py --task gsm8k --horizons 1 2 3 --out chains.jsonl
    python h1_curriculum.py --task jsonl:chains.jsonl --max-horizon 3
    python eval.py --task jsonl:chains.jsonl

One {"prompt", "answer", "horizon", "split", "hint", "solution"} a line. A chain's problems all come from the split that it belongs to.
"""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import tyro

import runtime
from tasks import load_task


@dataclass
class Args:
    task: str
    """whose problems are chained: gsm8k, jsonl:PATH, gym:NAME?key=value, or chain?style=h1"""
    out: Path
    """the file to write; must not exist"""
    horizons: tuple[int, ...] = (1, 2, 3, 4, 5)
    """numbers of dependent steps"""
    problems: int = 500
    """training chains of each horizon"""
    held_out: int = 50
    """dev chains of each horizon, and as many for test"""
    seed: int = 0
    """which problems are chained follows from it"""


def main(args: Args) -> None:
    if args.out.exists():
        runtime.fail(f"--out {args.out}: exists and is never overwritten; give another name or delete it")
    runtime.check_at_least_one(args, "problems", "held_out")
    if "horizon=" in args.task.partition("?")[2] and not args.task.startswith("chain"):
        runtime.fail(f"--task {args.task}: leave horizon= out; --horizons says which chains are written")
    spec = args.task if args.task.startswith("chain") else f"{args.task}{'&' if '?' in args.task else '?'}horizon=1"
    task, rows = runtime.or_fail(load_task, spec), {}
    for horizon in args.horizons:
        try:
            at_horizon = task.at_horizon(horizon)
        except ValueError as error:
            runtime.fail(f"--horizons {horizon}: {error}")
        for split, number in (("train", args.problems), ("dev", args.held_out), ("test", args.held_out)):
            for index in range(number):
                problem = runtime.or_fail(at_horizon.problem, split, index, args.seed)
                row = {name: getattr(problem, name) for name in ("prompt", "answer", "horizon", "hint", "solution")} | {"split": split}
                rows.setdefault(problem.prompt, {name: value for name, value in row.items() if value is not None})
    runtime.write_text(args.out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows.values()))
    counts = Counter((row["horizon"], row["split"]) for row in rows.values())
    print(f"{args.out}, each prompt once:")
    for horizon in args.horizons:
        print(f"  horizon {horizon}: " + ", ".join(f"{counts[horizon, split]} {split}" for split in ("train", "dev", "test")))


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
