"""Proof that a run loses nothing: killed at random moments, stopped by signals, its checkpoint damaged.

    python benchmarks/checks/kills.py                   all scripts, 15 minutes on one core; writes kills.md
    python benchmarks/checks/kills.py --only grpo       one script

Each run is five steps of a toy model, forked from one process that has imported torch. It is killed with
SIGKILL at random moments of its life, or stopped with SIGTERM, SIGHUP or SIGINT; or it is killed in its fifth
step, and one file of last/ (step 4) or of best/ is truncated, gets one bit flipped, is replaced or removed.
Then it goes on with --resume. What it leaves must equal an uninterrupted run to the last bit: metrics,
samples, weights of last/, best/ and final/, optimizer and state. Damage must be said on the screen.
"""

import os
import random
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
os.environ["HF_HUB_OFFLINE"] = "1"
import resume_driver as driver  # noqa: E402
import toys  # noqa: E402

from plainrl import curves, run  # noqa: E402
from plainrl.folder import write_text  # noqa: E402

REPORT = Path(__file__).with_suffix(".md")
SIGNALS = ("SIGTERM", "SIGHUP", "SIGINT")
NAMES = [script.__name__.split(".")[-1] for script, _ in driver.SCRIPTS]


@dataclass
class Args:
    kills: int = 20
    """random moments of each script at which it gets SIGKILL"""
    stops: int = 5
    """random moments of each script at which it gets each of SIGTERM, SIGHUP and SIGINT"""
    only: tuple[str, ...] = ()
    """these scripts alone, and no report"""
    seed: int = 0
    """of the random moments"""


# --- what a run left ----------------------------------------------------------------------------------------


def difference(one: Path, other: Path) -> str | None:
    """The first thing in which two finished runs differ, None where there is none."""
    try:
        if toys.records(one) != toys.records(other):
            return "metrics.jsonl"
        for name in ("samples.jsonl", "groups.jsonl", "last/state.json", "best/chosen.json"):
            if (one / name).read_bytes() != (other / name).read_bytes():
                return name
        for folder in ("last", "best", "final"):
            name = f"{folder}/model.safetensors"
            if (one / name).read_bytes() != (other / name).read_bytes():
                return name
        ours, theirs = (torch.load(path / "last" / "optimizer.pt")["state"] for path in (one, other))
        same = ours.keys() == theirs.keys() and all(
            torch.equal(ours[weight][name], theirs[weight][name])
            for weight in ours
            for name in ("step", "exp_avg", "exp_avg_sq")
        )
        return None if same else "last/optimizer.pt"
    except OSError as error:
        return str(error)


def goes_on(script, flags: dict, folder: Path, whole: Path) -> tuple[str | None, str]:
    """Resume to the end; returns what is not as in the uninterrupted run, None where nothing is, and what
    the screen said."""
    screen = folder.with_name(folder.name + ".screen")
    resume = {"out_dir": folder, "resume": folder.exists()}
    status = driver.end_of(driver.start(script, flags | resume, screen=screen))
    said = screen.read_text(errors="replace")
    return (f"exit status {status}: {said[-300:]}" if status else difference(folder, whole)), said


# --- kills and signals --------------------------------------------------------------------------------------


def struck(script, flags: dict, folder: Path, number: int, seconds: float) -> bool:
    """Start a run and send it a signal after so long; whether it was still alive then."""
    child = driver.start(script, flags | {"out_dir": folder}, screen=folder.with_name("screen"))
    time.sleep(seconds)
    ended = os.waitpid(child, os.WNOHANG)[0] == child
    if not ended:
        os.kill(child, number)
        driver.end_of(child)
    return not ended and not (folder / "final").exists()


def at_random_moments(script, flags: dict, out: Path, number: int, count: int, length: float, rng) -> list:
    """What differs after each of `count` runs that got this signal and went on."""
    found = []
    while len(found) < count:
        folder = out / f"{signal.Signals(number).name}-{len(found)}"
        if struck(script, flags, folder, number, rng.uniform(0, length)):
            found.append(goes_on(script, flags, folder, out / "whole")[0])
        shutil.rmtree(folder, ignore_errors=True)
    return found


# --- damage -------------------------------------------------------------------------------------------------


def truncate(path: Path, rng) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path, rng) -> None:
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def replace(path: Path, rng) -> None:
    """By the file of the checkpoint before, or of another one where that is the same."""
    before = path.parent.with_name(path.parent.name + ".old") / path.name
    content = before.read_bytes() if before.exists() else b"{}"
    path.write_bytes(content if content != path.read_bytes() else b"{}")


def remove(path: Path, rng) -> None:
    path.unlink()


DAMAGES = (truncate, flip, replace, remove)


def kill_in_step_five(script) -> None:
    driver.kill_on_call(run.Run, "log", 1, when=lambda self, record: record["step"] == 5)


def damaged(script, flags: dict, out: Path, which: str, rng) -> tuple[list, list, list[str]]:
    """(was it said, what differs after it went on) of every file of a folder and every kind of damage."""
    said, differs = [], []
    template = out / "killed in step 5"
    if not template.exists():
        killed = driver.start(script, flags | {"out_dir": template}, kill_in_step_five, out / "screen")
        assert driver.end_of(killed) == -signal.SIGKILL
    names = sorted(path.name for path in (template / which).iterdir())
    for name in names:
        for damage in DAMAGES:
            folder = out / "damaged"
            shutil.copytree(template, folder)
            damage(folder / which / name, rng)
            difference, screen = goes_on(script, flags, folder, out / "whole")
            said.append(f"/{which}: is damaged (" in screen)
            differs.append(difference)
            if difference or not said[-1]:
                print(f"  {which}/{name}, {damage.__name__}: {difference or 'nothing was said'}", flush=True)
            shutil.rmtree(folder)
    return said, differs, names


# --- the table ----------------------------------------------------------------------------------------------


def of(results: list) -> str:
    return f"{sum(map(bool, results))} of {len(results)}"


def equal(differences: list) -> str:
    return of([difference is None for difference in differences])


def check(script, extra: dict, toy_model: str, out: Path, args: Args) -> tuple[list[str], list[str], bool]:
    """One script's cells, the files of last/, and whether all is well."""
    rng, flags = random.Random(args.seed), driver.flags_of(toy_model, out, extra)
    started = time.monotonic()
    assert driver.end_of(driver.start(script, flags | {"out_dir": out / "whole"}, screen=out / "screen")) == 0
    length = time.monotonic() - started
    killed = at_random_moments(script, flags, out, signal.SIGKILL, args.kills, length, rng)
    stopped = []
    for name in SIGNALS:
        stopped.append(at_random_moments(script, flags, out, getattr(signal, name), args.stops, length, rng))
    last_said, last_differs, files = damaged(script, flags, out, "last", rng)
    best_said, best_differs, _ = damaged(script, flags, out, "best", rng)
    well = all(last_said) and all(best_said)
    for differences in (killed, *stopped, last_differs, best_differs):
        for difference in filter(None, differences):
            well = False
            print(f"  differs: {difference}", flush=True)
    cells = [equal(killed), *map(equal, stopped), of(last_said), equal(last_differs)]
    return [*cells, of(best_said), equal(best_differs)], files, well


def report(rows: dict[str, list[str]], files: list[str], minutes: float) -> str:
    titles = ["script", "SIGKILL: went on to the last bit", *(f"{name}: the same" for name in SIGNALS)]
    titles += ["last/ damaged: noticed", "went on to the last bit", "best/ damaged: noticed"]
    titles += ["went on to the last bit"]
    lines = ["# Killed, stopped, damaged", "", *__doc__.splitlines()[5:], ""]
    lines += [f"Files of `last/`: {', '.join(f'`{name}`' for name in files)}; each in four ways.", ""]
    lines += ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    lines += [f"| {name} | " + " | ".join(cells) + " |" for name, cells in rows.items()]
    lines += ["", f"Made by `python benchmarks/checks/kills.py` in {minutes:.0f} minutes.", ""]
    return "\n".join(lines)


def make_toy_model(folder: Path) -> str:
    """In a process of its own: the one that forks never computes."""
    child = os.fork()
    if child == 0:
        toys.save_toy_model(folder)
        os._exit(0)
    assert driver.end_of(child) == 0
    return str(folder)


def main(args: Args) -> None:
    torch.set_num_threads(1)
    curves.plot_run = lambda folder: None
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup hides it from what is started here
    started, rows, files, all_well = time.monotonic(), {}, [], True
    with tempfile.TemporaryDirectory() as scratch:
        toy_model = make_toy_model(Path(scratch) / "toy")
        for name, (script, extra) in zip(NAMES, driver.SCRIPTS):
            if args.only and name not in args.only:
                continue
            out = Path(scratch) / name
            out.mkdir()
            rows[name], files, well = check(script, extra, toy_model, out, args)
            print(f"{name}: {', '.join(rows[name])}", flush=True)
            all_well &= well
    if not args.only:
        write_text(REPORT, report(rows, files, (time.monotonic() - started) / 60))
    sys.exit(0 if all_well else 1)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
