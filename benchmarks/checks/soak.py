"""Proof that a long run stays as it was: memory, open files and time, in tenths of it.

    python benchmarks/checks/soak.py                       one hour on models/tiny; writes soak.md
    python benchmarks/checks/soak.py --minutes 1           a minute, and no report

grpo.py with scores on dev, a picture and a checkpoint every ten steps. The learning rate is 0, so that the
policy, and with it the length of its completions, stays what it was and the times can be compared. Processor
time is that of the whole process, scores and checkpoints included; seconds also hold what other work on the
machine costs. At the end it gets SIGTERM, as a scheduler's, and must have saved.
"""

import json
import os
import signal
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import tyro

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
import grpo  # noqa: E402
from plainrl.folder import write_text  # noqa: E402
from plainrl.models import device_name  # noqa: E402
from plainrl.run import Run  # noqa: E402

REPORT = Path(__file__).with_suffix(".md")


@dataclass
class Args:
    minutes: float = 60
    """how long to train; the report is only written for an hour or more"""
    task: str = "chain"
    """a task"""


def now(began: float) -> dict[str, float]:
    """Of this process: seconds since the beginning and those of a processor, memory in MB, open files."""
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return {
        "clock": time.monotonic() - began,
        "cpu": time.process_time(),
        "memory": resident / 1e6,
        "files": len(os.listdir("/proc/self/fd")),
    }


def soak(args: Args, folder: Path) -> tuple[list[dict], dict]:
    """What was measured after every step, and the state that was saved at the end."""
    found, began, log, save = [], time.monotonic(), Run.log, Run.save

    def log_and_measure(self, record):
        log(self, record)
        if "reward/mean" in record:
            seconds = sum(self.times.values())
            tokens = record["perf/tokens_per_s"] * seconds
            row = now(began) | {"step": record["step"], "tokens": tokens, "train": seconds}
            row["step_cpu"] = row["cpu"] - (found[-1]["cpu"] if found else 0)
            found.append(row)
            if time.monotonic() - began > 60 * args.minutes:
                os.kill(os.getpid(), signal.SIGTERM)

    def save_and_measure(self, now=False):
        before = time.monotonic()
        save(self, now)
        found[-1]["save"] = time.monotonic() - before

    Run.log, Run.save = log_and_measure, save_and_measure
    every_ten = dict(save_every=10, eval_every=10, eval_problems=16, eval_samples=4, test_problems=16)
    grpo.main(grpo.Args(task=args.task, out_dir=folder, steps=10**6, lr=0.0, **every_ten))
    return found, json.loads((folder / "last" / "state.json").read_text())


def table(found: list[dict]) -> str:
    """Means over tenths of the steps: the first, without the first step, which sets things up, and three
    later ones."""
    tenths = [found[max(1, len(found) * i // 10) : len(found) * (i + 1) // 10] for i in (0, 1, 5, 9)]
    lines = ["| tenth of the run | first | second | sixth | last |", "|---|---|---|---|---|"]
    rows = {
        "memory, MB": lambda row: row["memory"],
        "open files": lambda row: row["files"],
        "processor seconds a step": lambda row: row["step_cpu"],
        "seconds a step (sampling, training)": lambda row: row["train"],
        "milliseconds for 1,000 tokens": lambda row: 1e6 * row["train"] / row["tokens"],
        "seconds a checkpoint": lambda row: row.get("save", 0) if row["step"] % 10 == 0 else None,
    }
    for name, value in rows.items():
        parts = [[value(row) for row in part if value(row) is not None] for part in tenths]
        if all(parts):
            means = (f"{statistics.fmean(part):,.3f}" for part in parts)
            lines.append(f"| {name} | {' | '.join(means)} |")
    return "\n".join(lines)


def main(args: Args) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        found, state = soak(args, Path(scratch) / "run")
    assert state["step"] == found[-1]["step"], "SIGTERM lost a step"
    minutes = found[-1]["clock"] / 60
    about = f"{len(found)} steps in {minutes:.0f} minutes on {device_name()}; --task {args.task}"
    page = f"# A long run\n\n{chr(10).join(__doc__.splitlines()[5:])}\n\n{about}\n\n{table(found)}\n"
    print(page)
    if args.minutes >= 60:
        write_text(REPORT, page)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
