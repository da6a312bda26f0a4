"""What a report's files cost a run: processor time of its training steps with and without them, and bytes.

    python benchmarks/logging_cost.py                    grpo.py, the embedded model; writes logging_cost.md
    python benchmarks/logging_cost.py --script siren     another script; the table on the screen alone
    python benchmarks/logging_cost.py --folder RUN       the bytes of a run's folder alone, file by file
    python benchmarks/logging_cost.py --folder RUN --default    and into logging_cost.md, as a default run's

A round is the same run twice, with --report and with --no-report, in alternating order. Both do the same
work: weights and metrics are equal to the last bit. So each step is compared with itself. The scores before
the first step and after the last belong to no step; the dev score of step 20 does.
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
from plainrl.models import device_name  # noqa: E402
from plainrl.run import Run  # noqa: E402

PAGE = Path(__file__).with_suffix(".md")
DEFAULT_RUN = "\n## The folder of a default run\n"  # the page's last part, which is written on its own
MODELS = ("last", "last.old", "best", "final", "stage")


@dataclass
class Args:
    script: str = "grpo"
    """grpo, siren, guide, h1_curriculum or papers.NAME"""
    rounds: int = 3
    """runs with and runs without"""
    steps: int = 20
    """of each run; the default has one dev score among them"""
    minibatches: int = 1
    """updates a step"""
    folder: Path | None = None
    """a run's folder: show its bytes and run nothing"""
    default: bool = False
    """with --folder: it is that of a default run, and the page gets it"""


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


def table_of_sizes(folder: Path) -> str:
    """Bytes by file, the largest first, as a table."""
    found = sizes(folder)
    rows = [f"| {name} | {size:,} |" for name, size in sorted(found.items(), key=lambda item: -item[1])]
    return "\n".join(["| file | bytes |", "|---|---:|", *rows, f"| all | {sum(found.values()):,} |"])


def table_of_times(times: dict[bool, list[list[float]]]) -> str:
    """Seconds of each step of each round, with the report's files (True) and without -> a table."""
    every = {report: [second for one in rounds for second in one] for report, rounds in times.items()}
    ratios = [more / less for more, less in zip(every[True], every[False], strict=True)]
    by_round = [sum(more) / sum(less) - 1 for more, less in zip(times[True], times[False])]
    lines = ["| seconds of a step | without | with | more |", "|---|---:|---:|---:|"]
    for name, middle in (("mean", statistics.mean), ("median", statistics.median)):
        less, more = middle(every[False]), middle(every[True])
        lines.append(f"| {name} | {less:.3f} | {more:.3f} | {more / less - 1:+.2%} |")
    lines.append(f"| median over steps of each one's own ratio | | | {statistics.median(ratios) - 1:+.2%} |")
    lines.append(f"| mean, lowest and highest round | | | {min(by_round):+.2%}, {max(by_round):+.2%} |")
    return "\n".join(lines)


def of_a_default_run(folder: Path) -> str:
    """The page's last part."""
    steps = sum('"reward/mean"' in line for line in open(folder / "metrics.jsonl"))
    return f"""{DEFAULT_RUN}
`python benchmarks/logging_cost.py --folder RUN --default`, after a default run of {steps} steps: bytes in its
folder without the models. Bokeh was installed, which is 1.4 MB of the page.

{table_of_sizes(folder)}
"""


def main(args: Args) -> None:
    measured, _, last = PAGE.read_text().partition(DEFAULT_RUN)
    if args.folder:
        print(table_of_sizes(args.folder))
        if args.default:
            PAGE.write_text(measured + of_a_default_run(args.folder))
        return
    times = {True: [], False: []}  # with the files, and without
    with tempfile.TemporaryDirectory() as place:
        for number in range(args.rounds):
            for report in (True, False) if number % 2 else (False, True):
                folder = Path(place) / f"{number}-{report}"
                times[report].append(seconds_of_steps(args, folder, report))
        files = table_of_sizes(Path(place) / "0-True")
    page = f"""# What the files of a report cost a run

`python benchmarks/logging_cost.py` on {device_name()}: {args.script}, {args.rounds} times with --report and
{args.rounds} times with --no-report, {args.steps} steps each, of which the first is not counted. Processor
time, so that other work on the machine counts little. The work is the same: each step is compared with
itself.

{table_of_times(times)}

Bytes in the folder of a run of {args.steps} steps with its report, without the models:

{files}
"""
    print(page)
    if args == Args():
        PAGE.write_text(page + (DEFAULT_RUN + last if last else ""))


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
