"""Makes the logs under runs/reference: every variant below on every seed.

Finished runs are skipped, broken ones resumed.

    python benchmarks/reference.py                          everything that is missing (here: nothing)
    python benchmarks/reference.py --out runs/again         all of it again
    python benchmarks/reference.py --only grpo/dr_grpo      one variant
    python benchmarks/reference.py --seeds 100 101 --out runs/dev --extra="--lr 1e-3"
                                                            trials on development seeds

`--jobs` runs go side by side, one thread each: two threads each on two cores would be ten times slower.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import tyro

ROOT = Path(__file__).parents[1]
# <script>/<variant>: the exact command; docs/grpo.md, dr_grpo.md and dapo.md show the same lines.
VARIANTS = {
    "grpo/grpo": "grpo.py",
    "grpo/dr_grpo": "papers/dr_grpo.py",
    "dapo/dapo": "papers/dapo.py",
}


@dataclass
class Args:
    only: str | None = None
    """one variant instead of all"""
    seeds: tuple[int, ...] = (1, 2, 3, 4, 5)
    """seeds to run; 100 and above are development seeds, on which settings were chosen"""
    extra: str = ""
    """flags added to the command"""
    out: Path = ROOT / "runs/reference"
    """where the logs are collected"""
    scratch: Path = ROOT / "runs/scratch"
    """where the runs themselves live, with their checkpoints"""
    jobs: int = 2
    """runs side by side"""


def collect(run: Path, target: Path) -> None:
    """Keep config.json and the metrics with six digits, without those that are unknown."""
    target.mkdir(parents=True, exist_ok=True)
    shutil.copy(run / "config.json", target / "config.json")
    with open(target / "metrics.jsonl", "w") as file:
        for line in (run / "metrics.jsonl").read_text().splitlines():
            known = {name: value for name, value in json.loads(line).items() if value is not None}
            record = {
                name: float(f"{value:.6g}") if isinstance(value, float) else value
                for name, value in known.items()
            }
            file.write(json.dumps(record, separators=(",", ":")) + "\n")


def train(command: list[str], run: Path, target: Path, **options) -> bool:
    """Run a script into the folder `run`, going on where it stopped before. Collect its logs and return
    whether it came to its end."""
    resume = ["--resume"] if run.exists() else []
    run.parent.mkdir(parents=True, exist_ok=True)
    code = subprocess.run(
        [sys.executable, *command, "--out-dir", os.path.relpath(run, ROOT), *resume], cwd=ROOT, **options
    ).returncode
    finished = code == 0 and (run / "final").exists()  # Ctrl-C saves and ends with 0 too
    if finished:
        collect(run, target)
    return finished


def run_one(command: str, name: str, args, last_file: str = "metrics.jsonl", then=None) -> str:
    """Train one run, its screen in a log file, unless `last_file` is among its collected logs.

    Returns what became of it. Runs that go side by side have one thread each. `then(run, target, **options of
    subprocess.run)` is called at its end.
    """
    target, run = args.out / name, args.scratch / args.out.name / name
    if (target / last_file).exists():
        return f"{name}: already there"
    log_file = run.parent / f"{run.name}.log"
    log_file.parent.mkdir(parents=True, exist_ok=True)
    with open(log_file, "a") as log:
        threads = {"OMP_NUM_THREADS": "1"} if args.jobs > 1 else {}
        options = dict(env=os.environ | threads, stdout=log, stderr=log)
        finished = train(shlex.split(command), run, target, **options)
        if finished and then:
            then(run, target, **options)
    return f"{name}: " + ("done" if finished else f"not finished, see {log_file}; the same command goes on")


def run_all(jobs: list[tuple[str, str]], args, **options) -> None:
    """`run_one` for every (command, name), `args.jobs` of them side by side."""
    with ThreadPoolExecutor(args.jobs) as pool:
        for message in pool.map(lambda job: run_one(*job, args, **options), jobs):
            print(message, flush=True)


def main(args: Args) -> None:
    run_all(
        [
            (f"{VARIANTS[variant]} {args.extra} --seed {seed}", f"{variant}/seed{seed}")
            for seed in args.seeds
            for variant in VARIANTS
            if args.only in (None, variant)
        ],
        args,
    )


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
