"""What comparisons made of several commands have in common: materials, arms, trials, counts, tables.

An experiment is a file of its own: its protocol in the docstring, its commands in an `Experiment`. For every
seed the materials are made first, rows and models that all arms of the seed share. Then come the arms: each
is one command, whose model is measured on test problems. Settings are chosen on the development seeds 100
and 101, whose materials are their own; the reported seeds are others.

What is finished is skipped and a broken run resumed, so the same command goes on after an interruption.
"""

import copy
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.arms import cell, chosen_arms, trial_name
from benchmarks.recipes_figure import plot_arms
from benchmarks.reference import ROOT
from plainrl.curves import read_metrics
from plainrl.folder import write_text
from plainrl.logit_sum import LogitSum, alpha_of
from plainrl.metrics import evaluate, ladder, maj_at_k, pass_at_k
from plainrl.models import eos_ids, keep_freed_memory, load_model
from plainrl.sampler import HFSampler
from plainrl.tasks import load_task

DEVELOPMENT_SEEDS = (100, 101)
# Scripts score little by themselves: what counts is measured afterwards, alike for all.
NO_SCORES = "--eval-every 1000 --eval-problems 8 --eval-samples 2 --test-problems 8 --no-report"
KEPT = (
    "sft/loss",
    "eval/loss",
    "rollout/tokens_total",
    "sft/tokens_total",
    "policy/entropy",
    "mft/rate",
    "distill/kl",
    "dto/logp_chosen",
    "dto/logp_rejected",
    "dto/margin",
    "dto/sampled_tokens",
    "nll/base",
    "nll/mixed",
    "quiet/gate_mean",
    "quiet/reward_mean",
    "quiet/frac_positive",
    "quiet/forward_tokens",
    "passk/group_pass@k",
    "passk/frac_no_bonus",
    "unir/kl_frozen",
    "unir/spread",
    "reward/mean",
    *(f"daslam/r{i}" for i in range(1, 6)),
    "daslam/subquestions",
    "daslam/solved",
    "solver/tokens",
    "verifier/yes_rate",
    "verifier/right",
    "verifier/false_yes",
    "verifier/false_no",
)


@dataclass(frozen=True)
class Experiment:
    """Commands are what follows "python". In them {here} is the folder of the seed's materials, {seed} the
    seed, {split} dev in trials and else test, and of an arm {out} the folder that it makes. Several commands
    of an arm have " && " between them; all but the last make {out}.1, {out}.2, ..., and {setting} in them is
    the arm's."""

    file: str  # the experiment's own, for the processes of its seeds
    materials: dict[str, str]  # {what it makes in {here}: the command}, in this order
    arms: dict[str, str]  # {arm: the command that makes its model}; its setting is added
    names: dict[str, str]  # {arm: what tables call it}
    grids: dict[str, list[str]]  # {arm: settings that are tried}; an arm that is not here has no choice
    chosen: dict[str, str]  # {arm: the one of the reported runs}
    measured: dict[str, tuple[int, int]]  # {task: test problems and samples of each}; {here} may be in a task
    decides: str  # the task whose dev score chooses the settings
    on_dev: tuple[int, int] | None = None  # problems and samples of the dev score; default: as on test
    chosen_by: tuple[str, ...] = ("avg",)  # the dev score is the mean of these
    compared: tuple[str, ...] = ("avg",)  # scores of which tables show what an arm has more than another
    start: str = "models/tiny"  # the model that tables show as "before"; {here} and {seed} may be in it
    model: str = "last"  # what is measured in {out}: last, final (the best on dev), or "." for itself
    max_new_tokens: int = 128
    temperature: float = 1.0  # of the samples that are measured
    sampler: Callable | None = None  # (folder, model, tokenizer) -> what samples; default: the model alone
    # (task, fill_in) -> the task as models are scored on it, where they do not answer it by themselves
    as_scored: Callable | None = None
    more: Callable | None = None  # (task, rollouts, model, tokenizer) -> {name: further number of the model}
    # (folder of an arm) -> {task: its counts}, where an arm is measured by its own command and makes no model
    counts: Callable | None = None
    more_shown: tuple[str, ...] = field(default=())  # which of these are columns of the tables
    # {arm: models whose logits are added to those of its own}; {here} and {out} may be in them
    beside: dict[str, tuple[str, ...]] = field(default_factory=dict)
    against: str | None = None  # the arm that the others are compared with, or "before"; default: the first
    describe: Callable | None = None  # (folder of the materials) -> what is to be known of them

    @property
    def name(self) -> str:
        return Path(self.file).stem

    @property
    def logs(self) -> Path:
        return ROOT / "runs/reference" / self.name


@dataclass
class Args:
    only: tuple[str, ...] = ()
    """arms, instead of all"""
    trials: bool = False
    """the trials on the development seeds instead of the reported runs"""
    tables: bool = False
    """run nothing, show the tables"""
    one: int | None = None
    """a single seed, in this process"""
    seeds: tuple[int, ...] = (1, 2, 3, 4, 5)
    """seeds of the reported runs"""
    jobs: int = 2
    """seeds side by side, one thread each"""
    out: Path | None = None
    """where the logs are collected (default: runs/reference/<experiment>)"""
    scratch: Path = ROOT / "runs/scratch"
    """where materials and runs live"""


# --- running ------------------------------------------------------------------------------------------------


def main(experiment: Experiment, args: Args) -> None:
    """Run what is missing, seed by seed, and show the tables."""
    args.out = args.out or experiment.logs
    chosen_arms(args.only, experiment.arms)
    if args.one is not None:
        return run_seed(experiment, args, args.one)
    collect_trials(experiment, args.out)  # here, so that of the seeds' processes none has anything to add
    if not args.tables:
        run_side_by_side(experiment, args)
    print(trials_table(experiment, args.out), *report(experiment, args.out).values(), sep="\n\n")
    if set(experiment.arms) & set(runs := reported(experiment, args.out)):
        plot_arms(experiment, runs, args.out.with_name(f"{args.out.name}.png"))


def run_side_by_side(experiment: Experiment, args: Args) -> None:
    """Every seed in a process of its own, with one thread."""

    def start(seed: int) -> str:
        log = args.scratch / experiment.name / f"seed{seed}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        own = ["--one", seed, "--out", args.out, "--scratch", args.scratch]
        own += (["--trials"] if args.trials else []) + (["--only", *args.only] if args.only else [])
        with open(log, "a") as file:
            command = [sys.executable, experiment.file, *map(str, own)]
            code = subprocess.run(command, cwd=ROOT, env=one_thread(), stdout=file, stderr=file).returncode
        done = "done" if code == 0 else f"not finished, see {log}; the same command goes on"
        return f"seed {seed}: {done}"

    with ThreadPoolExecutor(args.jobs) as pool:
        for message in pool.map(start, DEVELOPMENT_SEEDS if args.trials else args.seeds):
            print(message, flush=True)


def one_thread() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"}


def run_seed(experiment: Experiment, args: Args, seed: int) -> None:
    """Materials, then every arm that is missing: its settings on a development seed, else the chosen one."""
    keep_freed_memory()
    jobs = missing(experiment, args, seed)
    here = args.scratch / experiment.name / f"seed{seed}"
    here.mkdir(parents=True, exist_ok=True)
    place = lambda folder: os.path.relpath(folder, ROOT)  # noqa: E731
    split = "dev" if args.trials else "test"
    fill_in = lambda text, out=here: text.format(  # noqa: E731
        here=place(here), seed=seed, out=place(out), split=split
    )
    for made, command in experiment.materials.items() if jobs else ():
        run_once(fill_in(command), here / made)
    before = args.out / "before" / f"seed{seed}" / f"{split}.json"
    if jobs and not before.exists() and not experiment.counts:
        save(before, measure(experiment, ROOT / fill_in(experiment.start), split, fill_in))
    described = args.out / "materials" / f"seed{seed}.json"
    if jobs and experiment.describe and not described.exists():
        save(described, experiment.describe(here))
    for arm, setting, target in jobs:
        folder = here / "runs" / target.relative_to(args.out)
        *first, last = fill_in(experiment.arms[arm].replace("{setting}", setting), folder).split(" && ")
        for number, command in enumerate(first, start=1):
            run_once(command, folder.with_name(f"{folder.name}.{number}"))
        run_once(f"{last} {setting}", folder)
        if experiment.counts:
            counts = experiment.counts(folder)
        else:
            beside = [ROOT / fill_in(other, folder) for other in experiment.beside.get(arm, ())]
            counts = measure(experiment, folder / experiment.model, split, fill_in, beside)
        save(target / f"{split}.json", counts)
        shutil.copy(folder / "config.json", target / "config.json")
        save(target / "curves.json", curves_of(folder))
        for path in folder.parent.glob(f"{folder.name}*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def missing(experiment: Experiment, args: Args, seed: int) -> list[tuple[str, str, Path]]:
    """The runs of a seed that are not there yet: arm, setting, and the folder of their logs."""
    trials = collect_trials(experiment, args.out) if args.trials else {}
    found = []
    for arm in chosen_arms(args.only, experiment.arms):
        for setting in experiment.grids.get(arm, []) if args.trials else [experiment.chosen[arm]]:
            target = args.out / (trial_name(arm, setting) if args.trials else arm) / f"seed{seed}"
            summarised = str(seed) in trials.get(arm, {}).get(setting, {})
            if not summarised and not (target / "curves.json").exists():
                found.append((arm, setting, target))
    return found


def run_once(command: str, made: Path) -> None:
    """`run`, unless it came to its end before."""
    done = made.with_name(f"{made.name}.done")
    if not done.exists():
        run(command, made)
        done.touch()


def run(command: str, made: Path) -> None:
    """A command in a process. A run's folder that is there already is gone on with."""
    resume = ["--resume"] if (made / "config.json").exists() else []
    words = [sys.executable, *shlex.split(command), *resume]
    print(shlex.join(["python", *words[1:]]), flush=True)
    code = subprocess.run(words, cwd=ROOT, env=one_thread()).returncode
    if code != 0 or not made.exists():
        sys.exit(f"error: not finished: {command}; the same command goes on")


def curves_of(folder: Path) -> dict[str, dict[str, float]]:
    """{metric: {step: value}} of those that are kept; nothing where nothing was trained."""
    curves = read_metrics(folder) if (folder / "metrics.jsonl").exists() else {}
    kept = [name for name in curves if name in KEPT or name.endswith(("avg@4", "avg@8", "avg@16"))]
    return {name: {str(step): round(v, 5) for step, v in sorted(curves[name].items())} for name in kept}


def save(file: Path, content: dict) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps(content) + "\n")


def measure(
    experiment: Experiment, folder: Path, split: str, fill_in: Callable[[str], str], beside: list[Path] = ()
) -> dict:
    """{task: counts} of a model, on the same problems with the same random numbers for all models. The logits
    of those `beside` it are added to its own."""
    model, tokenizer = load_model(str(folder))
    if beside:
        models = [*(load_model(str(other))[0] for other in beside), model]
        model = LogitSum(models, [alpha_of(each) for each in models])
    make = experiment.sampler or (lambda *_: HFSampler(model, eos_ids(model, tokenizer)))
    sampler, found = make(folder, model.eval(), tokenizer), {}
    for name, (problems, samples) in experiment.measured.items():
        if split == "dev" and name != experiment.decides:
            continue
        if split == "dev" and experiment.on_dev:
            problems, samples = experiment.on_dev
        task, rollouts = load_task(fill_in(name)), []
        if experiment.as_scored:
            task = experiment.as_scored(task, fill_in)
        settings = (split, problems, samples, experiment.max_new_tokens, experiment.temperature)
        _, rows = evaluate(sampler, tokenizer, task, *settings, rollouts=rollouts)
        found[name] = {
            "samples": samples,
            "correct": [row["correct"] for row in rows],
            "parsed": [row["parsed"] for row in rows],
            "maj": round(float(np.mean([maj_at_k(row["votes"], row["right"], samples) for row in rows])), 4),
        }
        if experiment.more:
            found[name]["more"] = experiment.more(task, rollouts, model, tokenizer)
    return found


# --- tables -------------------------------------------------------------------------------------------------


def scores_of(counts: dict) -> dict[str, float]:
    """Every score of one model on one task."""
    n, right = counts["samples"], counts["correct"]
    scores = {
        "avg": float(np.mean(right)) / n,
        "pass": float(np.mean([pass_at_k(n, count, n) for count in right])),
        **{f"pass@{k}": float(np.mean([pass_at_k(n, count, k) for count in right])) for k in ladder(n)},
        "maj": counts["maj"],
        "unparsed": 1 - float(np.mean(counts["parsed"])) / n,
    }
    return scores | counts.get("more", {})


def read(file: Path) -> dict:
    return json.loads(file.read_text())


def collect_trials(experiment: Experiment, out: Path) -> dict:
    """Adds the trials whose files are there to trials.json, and returns all: {arm: {setting: {seed: dev
    score}}}."""
    file = out / "trials.json"
    before = read(file) if file.exists() else {}
    trials = copy.deepcopy(before)
    for arm, settings in experiment.grids.items():
        for setting in settings:
            for result in sorted((out / trial_name(arm, setting)).glob("seed*/dev.json")):
                if (result.parent / "curves.json").exists():
                    scores = scores_of(read(result)[experiment.decides])
                    score = np.mean([scores[name] for name in experiment.chosen_by])
                    seed = result.parent.name.removeprefix("seed")
                    trials.setdefault(arm, {}).setdefault(setting, {})[seed] = round(float(score), 4)
    if trials != before:
        save(file, trials)
    return trials


def best_setting(settings: dict[str, dict[str, float]]) -> str:
    """The one with the highest mean over the development seeds; of equals the first."""
    return max(settings, key=lambda setting: np.mean(list(settings[setting].values())))


def trials_table(experiment: Experiment, out: Path) -> str:
    """Dev score of every setting that was tried; the one of the reported runs in bold."""
    _, n = experiment.on_dev or experiment.measured[experiment.decides]
    decides = ", ".join(column_of(name, n) for name in experiment.chosen_by)
    decides = f"mean of {decides}" if len(experiment.chosen_by) > 1 else decides
    lines = [
        f"| arm | setting | dev {decides} on `{experiment.decides}` | seed by seed |",
        "|---" * 4 + "|",
    ]
    for arm, settings in collect_trials(experiment, out).items():
        for setting, seeds in settings.items():
            mean = f"{np.mean(list(seeds.values())):.3f}"
            mean = f"**{mean}**" if experiment.chosen.get(arm) == setting else mean
            each = ", ".join(f"{value:.3f}" for value in seeds.values())
            lines.append(f"| {experiment.names[arm]} | `{setting}` | {mean} | {each} |")
    return "\n".join(lines)


def known_materials(out: Path) -> list[dict]:
    """What is known of the materials of each reported seed."""
    return [read(file) for file in sorted((out / "materials").glob("seed[1-9].json"))]


def reported(experiment: Experiment, out: Path) -> dict[str, dict[str, dict]]:
    """{arm: {seed: {task: scores}}} of the finished runs; the models before training are the arm "before"."""
    found = {}
    for arm in ("before", *experiment.arms):
        for file in sorted((out / arm).glob("seed*/test.json")):
            if arm == "before" or (file.parent / "curves.json").exists():
                scores = {task: scores_of(counts) for task, counts in read(file).items()}
                found.setdefault(arm, {})[file.parent.name] = scores
    return found


def column_of(name: str, samples: int) -> str:
    """What a table calls a score: avg of 16 samples is avg@16."""
    return f"{name}@{samples}" if name in ("avg", "pass", "maj") else name


def scores_table(experiment: Experiment, runs: dict, task: str, against: str) -> str:
    """Test scores of every arm on a task, and what they have more than another arm's, paired by seed."""
    n = experiment.measured[task][1]
    scores = ("avg", "pass", "maj") if n > 1 else ("avg",)  # of one sample all are the same
    shown = {column_of(name, n): name for name in (*scores, "unparsed")}
    first = next(iter(next(iter(runs.values())).values()))  # scores of any run
    shown |= {name: name for name in experiment.more_shown if name in first[task]}
    against_it = experiment.names.get(against, against)
    titles = [f"`{task}`", "seeds", *shown]
    titles += [f"{column_of(name, n)} minus that of {against_it}" for name in experiment.compared]
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for arm, seeds in runs.items():
        cells = [str(len(seeds))]
        cells += [cell([scores[task][name] for scores in seeds.values()]) for name in shown.values()]
        both = sorted(seeds.keys() & runs.get(against, {}).keys())
        for name in experiment.compared:
            gains = [seeds[seed][task][name] - runs[against][seed][task][name] for seed in both]
            cells.append(cell(gains, signed=True) if gains and arm != against else "")
        lines.append(f"| {experiment.names.get(arm, arm)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def report(experiment: Experiment, out: Path) -> dict[str, str]:
    """{block: table} for every task."""
    runs, against = reported(experiment, out), experiment.against or next(iter(experiment.arms))
    if against not in runs:
        return {}
    return {task: scores_table(experiment, runs, task, against) for task in experiment.measured}
