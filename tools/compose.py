"""Writes chains of another task's problems (h1, arXiv 2510.07312) to a file that all scripts read.

    python tools/compose.py --task gsm8k --horizons 1 2 3 --out chains.jsonl
    python h1_curriculum.py --task jsonl:chains.jsonl --max-horizon 3
    python eval.py --task jsonl:chains.jsonl

One {"prompt", "answer", "horizon", "split", "hint", "solution"} a line. A chain's problems all come from the
split that it belongs to.
"""

import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # where plainrl/ lies

from plainrl.flags import Count, Natural, check_flags, parse
from plainrl.folder import json_lines, refuse_existing, write_or_fail
from plainrl.screen import fail, or_fail, say
from plainrl.tasks import load_task

FIELDS = ("prompt", "answer", "horizon", "hint", "solution")


@dataclass
class Args:
    task: str
    """whose problems are chained: gsm8k, jsonl:PATH, gym:NAME?key=value, or chain?style=h1"""
    out: Path
    """the file to write; must not exist"""
    horizons: tuple[int, ...] = (1, 2, 3, 4, 5)
    """numbers of dependent steps"""
    problems: Count = 500
    """training chains of each horizon"""
    held_out: Natural = 50
    """dev chains of each horizon, and as many for test; 0 of a file that is too small for splits"""
    seed: int = 0
    """which problems are chained follows from it"""


def main(args: Args) -> None:
    refuse_existing("--out", args.out)
    check_flags(args)
    own_world = args.task.startswith("chain")
    if "horizon=" in args.task.partition("?")[2] and not own_world:
        fail(f"--task {args.task}: leave horizon= out; --horizons says which chains are written")
    chained = args.task + ("&" if "?" in args.task else "?") + "horizon=1"
    task = or_fail(load_task, args.task if own_world else chained)
    rows = {}  # by prompt: each is written once
    for horizon in args.horizons:
        try:
            at_horizon = task.at_horizon(horizon)
        except ValueError as error:
            fail(f"--horizons {horizon}: {error}")
        for split, number in (("train", args.problems), ("dev", args.held_out), ("test", args.held_out)):
            for index in range(number):
                problem = or_fail(at_horizon.problem, split, index, args.seed)
                row = {name: getattr(problem, name) for name in FIELDS} | {"split": split}
                rows.setdefault(
                    problem.prompt, {name: value for name, value in row.items() if value is not None}
                )
    write_or_fail("--out", args.out, json_lines(rows.values()), "give another name")
    counts = Counter((row["horizon"], row["split"]) for row in rows.values())
    say(f"{args.out}, each prompt once:")
    for horizon in args.horizons:
        numbers = ", ".join(f"{counts[horizon, split]} {split}" for split in ("train", "dev", "test"))
        say(f"  horizon {horizon}: {numbers}")


if __name__ == "__main__":
    main(parse(Args, __doc__))


# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "torch==2.13.0", "transformers>=5.16.1,<5.20", "safetensors", "numpy", "tyro", "filelock",
#     "math-verify>=0.9,<0.10", "antlr4-python3-runtime==4.13.2", "matplotlib", "jinja2",
# ]
# ///
