"""What comparisons of several arms on equal terms have in common.

First come trials on a development seed, then the reported runs on others, each followed by counts on the
test problems. benchmarks/entropy.py, hard_chains.py and horizons.py are made of it, and the comparisons on a
real model of its last part.
"""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.figures import mean_and_half_width
from benchmarks.reference import ROOT, run_all
from plainrl.curves import read_metrics

DEVELOPMENT_SEED = 100


@dataclass
class Args:
    only: tuple[str, ...] = ()
    """arms, instead of all"""
    trials: bool = False
    """the trials instead of the reported runs"""
    tables: bool = False
    """run nothing, show the tables"""
    measure: tuple[Path, Path] | None = None
    """a model's folder and a file: write its counts on the test problems there, and stop"""
    seeds: tuple[int, ...] = (1, 2, 3, 4, 5)
    """seeds of the reported runs; 100 is the development seed"""
    out: Path = ROOT / "runs/reference"
    """where the logs are collected"""
    scratch: Path = ROOT / "runs/scratch"
    """where the runs themselves live, with their checkpoints"""
    jobs: int = 2
    """runs side by side"""


def trial_name(arm: str, setting: str) -> str:
    return f"trials/{arm}/" + setting.replace("--", "").replace(" ", "_")


def collect_trials(out: Path, settings: dict[str, list[str]], summary: Callable[[str, dict], dict]) -> dict:
    """Adds the trials whose logs are there to trials.json, and returns all of them.

    {arm: {setting: summary(arm, curves)}}
    """
    file = out / "trials.json"
    trials = json.loads(file.read_text()) if file.exists() else {}
    for arm in settings:
        for setting in settings[arm]:
            folder = out / trial_name(arm, setting)
            if (folder / "metrics.jsonl").exists():
                trials.setdefault(arm, {})[setting] = summary(arm, read_metrics(folder))
    file.write_text(json.dumps(trials, indent=1) + "\n")
    return trials


def score(trial: dict, metrics: tuple[str, ...] = ("avg@16", "pass@16")) -> float:
    """What a setting is chosen by: mean of avg@16 and pass@16 on dev over the run's last two measurements."""
    return float(np.mean([trial[name][-2:] for name in metrics]))


def cell(values: list[float], signed: bool = False) -> str:
    """Mean over seeds +- 95% interval."""
    mean, half = mean_and_half_width(values)
    if len(values) == 1:
        return f"{mean:.3f}"
    return f"{mean:+.3f} ± {half:.3f}" if signed else f"{mean:.3f} ± {half:.3f}"


def chosen_arms(only: tuple[str, ...], known: Iterable[str]) -> Iterable[str]:
    """Those of --only, or all. A name that there is not ends the command."""
    for arm in only:
        if arm not in known:
            sys.exit(f"error: --only {arm}: there is no such arm; there are {', '.join(known)}")
    return only or known


def run_arms(
    args: Args, file: str, settings: dict[str, list[str]], chosen: dict[str, str], command: Callable
) -> None:
    """Trials: every setting of every arm. Else every arm as it was chosen, on each seed.

    All arms run on one seed, then on the next. After each run `file --measure` counts what the model after
    its last step does, in a process of its own. `command(arm, setting, seed)` is what trains.
    """
    known = settings if args.trials else chosen
    arms = chosen_arms(args.only, known)
    if args.trials:
        pairs = [(arm, setting) for arm in arms for setting in settings[arm]]
        run_all([(command(*pair, DEVELOPMENT_SEED), trial_name(*pair)) for pair in pairs], args)
        return
    measure = [sys.executable, file, "--measure"]
    if not (args.out / "tiny.json").exists():
        subprocess.run([*measure, ROOT / "models/tiny", args.out / "tiny.json"], cwd=ROOT, check=True)

    def measure_run(run: Path, target: Path, **options) -> None:
        subprocess.run([*measure, run / "last", target / "test.json"], cwd=ROOT, check=True, **options)

    jobs = [(command(arm, chosen[arm], seed), f"{arm}/seed{seed}") for seed in args.seeds for arm in arms]
    run_all(jobs, args, last_file="test.json", then=measure_run)


@dataclass
class RealModelArgs:
    """Flags of a comparison on SmolLM2-135M-Instruct; a subclass names the folder."""

    model: Path = Path("runs/SmolLM2-135M-Instruct")
    """the converted model"""
    seed: int = 1
    """seed of all training runs"""
    problems: int = 200
    """test problems"""
    samples: int = 8
    """completions of each"""
    out: Path = ROOT / "runs"
    """where the logs are collected (the committed ones are in runs/reference/)"""
    scratch: Path = ROOT / "runs/scratch"
    """where the runs themselves live, with their checkpoints"""
    jobs: int = 1
    """runs side by side; each has some 7 to 12 GB"""

    def folder(self) -> Path:
        return self.scratch / self.out.name


def train_arms(args: RealModelArgs, arms: dict[str, list[str]], flags: list) -> dict[str, str]:
    """Train `script and own flags` of every arm with the common flags.

    Returns {arm: its final weights}, relative to the repository.
    """
    if not args.model.is_dir():
        sys.exit(f"error: --model {args.model}: no such folder; tools/convert_gguf.py makes it")
    rest = ["--model", os.path.relpath(args.model, ROOT), *flags, "--seed", args.seed]
    commands = {arm: shlex.join(map(str, [*own, *rest])) for arm, own in arms.items()}
    run_all([(command, f"{arm}/seed{args.seed}") for arm, command in commands.items()], args)
    finals = {arm: args.folder() / arm / f"seed{args.seed}/final" for arm in arms}
    for arm, final in finals.items():
        if not final.exists():
            sys.exit(
                f"error: {arm} did not come to its end: there is no {final}; the same command goes on from "
                "the last checkpoint"
            )
    return {arm: os.path.relpath(final, ROOT) for arm, final in finals.items()}


def measure_model(args: RealModelArgs, weights: str, folder: str, flags: list) -> Path:
    """eval.py on the test problems; returns the folder of its files."""
    out = args.folder() / "test" / folder
    command = [
        "eval.py",
        "--model",
        weights,
        *flags,
        "--problems",
        args.problems,
        "-n",
        args.samples,
        "--out-dir",
        out,
    ]
    subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, check=True)
    return out
