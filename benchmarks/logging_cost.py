"""What a report's files cost a run: processor time of its training steps with and without them, and bytes.

    python benchmarks/logging_cost.py                    grpo.py on the embedded model, 5 rounds
    python benchmarks/logging_cost.py --script siren     another script
    python benchmarks/logging_cost.py --folder RUN       the bytes of a run's folder alone, file by file

A round is the same run twice, with --report and with --no-report, in alternating order. Both do the same
work: weights and metrics are equal to the last bit. So each step is compared with itself. Printed are the
ratio of the sums over all steps, the median over steps, and what a step's files need. The scores before the
first step and after the last belong to no step; the dev score of step 20 does.
"""

import importlib
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import tyro

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from plainrl.run import Run  # noqa: E402

MODELS = ("last", "last.old", "best", "final", "stage")


@dataclass
class Args:
    script: str = "grpo"
    """grpo, siren, guide, h1_curriculum or papers.NAME"""
    rounds: int = 5
    """runs with and runs without"""
    steps: int = 20
    """of each run; the default has one dev score among them"""
    minibatches: int = 1
    """updates a step"""
    folder: Path | None = None
    """a run's folder: show its bytes and run nothing"""


def seconds_of_steps(args: Args, folder: Path, report: bool) -> list[float]:
    """Processor time of each step of one run but the first, which warms up."""
    script, seconds, steps = importlib.import_module(args.script), [], Run.steps

    def timed_steps(run):
        for step in steps(run):
            began = time.process_time()
            yield step
            seconds.append(time.process_time() - began)

    Run.steps = timed_steps
    try:
        script.main(
            script.Args(
                steps=args.steps,
                minibatches=args.minibatches,
                test_problems=1,
                report=report,
                out_dir=folder,
            )
        )
    finally:
        Run.steps = steps
    return seconds[1:]


def sizes(folder: Path) -> dict[str, int]:
    """Bytes of the files of a run that are no model's."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): path.stat().st_size
        for path in files
        if path.relative_to(folder).parts[0] not in MODELS
    }


def show_sizes(folder: Path) -> None:
    found = sizes(folder)
    for name, size in sorted(found.items(), key=lambda item: -item[1]):
        print(f"{size:>10,}  {name}")
    print(f"{sum(found.values()):>10,}  all, without models")


def main(args: Args) -> None:
    if args.folder:
        show_sizes(args.folder)
        return
    times = {True: [], False: []}  # with the files, and without
    with tempfile.TemporaryDirectory() as place:
        for number in range(args.rounds):
            for report in (True, False) if number % 2 else (False, True):
                folder = Path(place) / f"{number}-{report}"
                times[report] += seconds_of_steps(args, folder, report)
        show_sizes(Path(place) / "0-True")
    pairs = list(zip(times[True], times[False], strict=True))
    ratio = sum(times[True]) / sum(times[False])
    median = statistics.median(with_files / without for with_files, without in pairs)
    a_step = sum(times[False]) / len(pairs)
    print(f"{len(pairs)} steps, {a_step:.2f} s of processor time each without the files")
    print(f"with them: {ratio - 1:+.2%} of all steps' time, {median - 1:+.2%} in the median step")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
