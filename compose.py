"""Writes chains of another task's problems (h1, arXiv 2510.07312) to a file that every script and eval.py read.

    python compose.py --task gsm8k --horizons 1 2 3 --problems 500 --out chains.jsonl
    python h1_curriculum.py --task jsonl:chains.jsonl
    python eval.py --task jsonl:chains.jsonl --split all

One {"prompt", "answer", "horizon", "hint", "solution"} a line. All chains come from one split of the task; a file is split anew by
whoever reads it, so write training and test problems to two files.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

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
    """chains of each horizon"""
    split: Literal["train", "dev", "test"] = "train"
    """of the task, whose problems are used"""
    seed: int = 0
    """which problems are chained follows from it"""


def main(args: Args) -> None:
    if args.out.exists():
        runtime.fail(f"--out {args.out}: exists and is never overwritten; give another name or delete it")
    runtime.check_at_least_one(args, "problems")
    spec = args.task if args.task.startswith("chain") else f"{args.task}{'&' if '?' in args.task else '?'}horizon=1"
    task, rows = runtime.or_fail(load_task, spec), {}
    for horizon in args.horizons:
        at_horizon = runtime.or_fail(task.at_horizon, horizon)
        for index in range(args.problems):
            problem = runtime.or_fail(at_horizon.problem, args.split, index, args.seed)
            row = {name: getattr(problem, name) for name in ("prompt", "answer", "horizon", "hint", "solution")}
            rows[problem.prompt] = {name: value for name, value in row.items() if value is not None}
    runtime.write_text(args.out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows.values()))
    counts = {horizon: sum(row["horizon"] == horizon for row in rows.values()) for horizon in args.horizons}
    print(f"{args.out}: " + ", ".join(f"{count} of horizon {horizon}" for horizon, count in counts.items()) + " (each prompt once)")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
