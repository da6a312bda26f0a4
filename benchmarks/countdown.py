"""The experiment behind docs/siren.md: does SIREN keep exploring where entropy is choice, and does it pay?

    python benchmarks/countdown.py --trials              the trials on development seeds 100 and 101
    python benchmarks/countdown.py                       the reported runs: every arm on seeds 1 to 5
    python benchmarks/countdown.py --only siren dr_grpo  some arms
    python benchmarks/countdown.py --tables              the tables again, from the committed logs

Rules and protocol, written down before the first reported run:

- World: countdown with three numbers from 1 to 15 (plainrl/countdown.py). All arms start from
  models/countdown, with the same problems in the same order and the same sampling seeds.
- 200 steps of 16 prompts x 16 completions, two updates a step (KL-Cov does nothing in the first update of a
  batch). The 3,200 training problems differ, or are the same 200 over and over (arms with "finite").
- Tuning: Dr. GRPO has six learning rates. Each other arm has three or four settings of its own coefficient at
  the rate that was best for Dr. GRPO, and then the best of them at half and at twice that rate. The best has
  the highest mean of avg@16 and pass@16 on dev after the last step, mean over both development seeds.
- Reported: the model after every fifth of the steps, on 400 test problems x 64 samples at temperature 1, and
  after the last also at 0.6, SIREN's own. The random numbers are the same for all models.
- Early stopping is an arm: of each run of Dr. GRPO the fifth with the highest mean of avg@16 and pass@16 on
  dev, the starting model among them.
- Pairs are of one seed. Intervals are 95%, Student's t over seeds.

What is finished is skipped, so the same command goes on. Two runs go side by side, one thread each.
"""

import functools
import gc
import importlib
import json
import operator
import os
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
import siren  # noqa: E402
from benchmarks import where_entropy_is  # noqa: E402
from benchmarks.arms import chosen_arms, trial_name  # noqa: E402
from benchmarks.countdown_claims import claims, claims_table  # noqa: E402
from benchmarks.countdown_figure import plot_countdown  # noqa: E402
from benchmarks.countdown_tables import STOPPED, Runs, dev_score, read_runs, tables  # noqa: E402
from benchmarks.figures import ENTROPY_METHODS  # noqa: E402
from plainrl.countdown import CountdownTask  # noqa: E402
from plainrl.curves import read_metrics  # noqa: E402
from plainrl.folder import last_step, write_text  # noqa: E402
from plainrl.metrics import evaluate, maj_at_k  # noqa: E402
from plainrl.models import eos_ids, keep_freed_memory, load_model  # noqa: E402
from plainrl.sampler import HFSampler  # noqa: E402

LOGS = ROOT / "runs/reference/countdown"
START = ROOT / "models/countdown"
DEVELOPMENT_SEEDS, REPORTED_SEEDS = (100, 101), (1, 2, 3, 4, 5)
STEPS, FIFTHS = 200, (40, 80, 120, 160, 200)
COMMON = (
    "--task countdown --prompts-per-step 16 --group-size 16 --minibatches 2 --max-new-tokens 32 "
    "--eval-every 1000 --eval-problems 8 --eval-samples 2 --test-problems 8 --save-every 1000 --no-report"
)
LR = "5e-5"  # the best of Dr. GRPO, and of all arms whose setting does not say another
OTHER_RATES = ("2.5e-5", "1e-4")  # at which the best coefficient of every other arm is tried too
SIREN = "siren.py"
GRIDS = {  # arm: the command, and the settings that were tried for it
    "dr_grpo": (
        "papers/dr_grpo.py",
        [f"--lr {lr}" for lr in ("2e-5", "3e-5", "5e-5", "1e-4", "2e-4", "3e-4")],
    ),
    "siren": (SIREN, ["--beta 0.03", "--beta 0.1", "--beta 0.3", "--beta 1"]),
    "siren_no_top_p": (f"{SIREN} --nucleus-p 1", ["--beta 0.03", "--beta 0.1", "--beta 0.3", "--beta 1"]),
    "siren_no_peaks": (f"{SIREN} --tau 0", ["--beta 0.3", "--beta 1", "--beta 3", "--beta 10"]),
    "siren_anchor_alone": (
        f"{SIREN} --nucleus-p 1 --tau 0",
        ["--beta 0.3", "--beta 1", "--beta 3", "--beta 10"],
    ),
    "siren_no_anchor": (
        f"{SIREN} --no-anchor",
        ["--beta 0.001", "--beta 0.003", "--beta 0.01", "--beta 0.03"],
    ),
    "naive_bonus": (
        "papers/naive_bonus.py",
        ["--bonus 0.003", "--bonus 0.01", "--bonus 0.02", "--bonus 0.05"],
    ),
    "adaptive_bonus": (
        "papers/adaptive_bonus.py --bonus 0",
        [f"--bonus-rate {rate} --target-share {share}" for rate in (0.001, 0.01) for share in (1.0, 0.7)],
    ),
    "entropy_advantage": (
        "papers/entropy_advantage.py",
        ["--shape-alpha 0.1", "--shape-alpha 0.4", "--shape-alpha 1"],
    ),
    "high_entropy_tokens": (
        "papers/high_entropy_tokens.py",
        ["--token-fraction 0.1", "--token-fraction 0.2", "--token-fraction 0.4"],
    ),
    "clip_cov": ("papers/clip_cov.py", ["--cov-fraction 0.01", "--cov-fraction 0.03", "--cov-fraction 0.1"]),
    "kl_cov": ("papers/kl_cov.py", ["--cov-fraction 0.01", "--cov-fraction 0.03", "--cov-fraction 0.1"]),
}
CHOSEN = {  # of the reported runs; an arm that ends in a number is its method with that coefficient
    "dr_grpo": "--lr 5e-5",
    "siren": "--beta 0.03",
    "siren_0.1": "--beta 0.1",
    "siren_0.3": "--beta 0.3",
    "siren_no_top_p": "--beta 0.03",
    "siren_no_peaks": "--beta 0.3",
    "siren_anchor_alone": "--beta 0.3",
    "siren_no_anchor": "--beta 0.003",
    "naive_bonus": "--bonus 0.003",
    "naive_bonus_0.01": "--bonus 0.01",
    "naive_bonus_0.05": "--bonus 0.05",
    "adaptive_bonus": "--bonus-rate 0.001 --target-share 1.0",
    "entropy_advantage": "--shape-alpha 1",
    "high_entropy_tokens": "--token-fraction 0.4",
    "clip_cov": "--cov-fraction 0.01",
    "kl_cov": "--cov-fraction 0.01",
    "dr_grpo_finite": "--lr 5e-5",
    "siren_finite": "--beta 0.03",
    "naive_bonus_finite": "--bonus 0.003",
}
NAMES = ENTROPY_METHODS | {
    "siren_no_top_p": "SIREN, p = 1",
    "siren_no_peaks": "SIREN, tau = 0",
    "siren_anchor_alone": "SIREN, p = 1, tau = 0",
    "siren_no_anchor": "SIREN, no anchor",
    STOPPED: "Dr. GRPO, stopped early",
    "siren_0.1": "SIREN, beta 0.1",
    "siren_0.3": "SIREN, beta 0.3",
    "naive_bonus_0.01": "naive bonus, 0.01",
    "naive_bonus_0.05": "naive bonus, 0.05",
}
GROUPS = {
    "methods": [
        "dr_grpo",
        STOPPED,
        "siren",
        *[arm for arm in ENTROPY_METHODS if arm not in ("dr_grpo", "siren")],
    ],
    "holding": [
        "dr_grpo",
        STOPPED,
        "siren",
        "siren_0.1",
        "siren_0.3",
        "naive_bonus",
        "naive_bonus_0.01",
        "naive_bonus_0.05",
    ],
    "parts": [
        "dr_grpo",
        "siren",
        "siren_no_top_p",
        "siren_no_peaks",
        "siren_anchor_alone",
        "siren_no_anchor",
    ],
}
FINITE_GROUPS = {"finite": ["dr_grpo", STOPPED, "siren", "naive_bonus"]}
KEPT = [  # of metrics.jsonl, for every step
    "reward/mean",
    "policy/entropy",
    "rollout/frac_unparsed",
    "rollout/tokens_total",
    "siren/entropy",
    "siren/anchor",
    "bonus/weight",
    "optim/skipped",
]


@dataclass
class Args:
    only: tuple[str, ...] = ()
    """arms, instead of all"""
    trials: bool = False
    """the trials instead of the reported runs"""
    tables: bool = False
    """run nothing, show the tables"""
    one: str | None = None
    """a single run in this process, as "arm; setting; seed"; --trials says of which kind"""
    seeds: tuple[int, ...] = REPORTED_SEEDS
    """seeds of the reported runs"""
    out: Path = LOGS
    """where the logs are collected"""
    scratch: Path = ROOT / "runs/scratch/countdown"
    """where the runs themselves live, with their checkpoints"""
    jobs: int = 2
    """runs side by side"""


# --- measuring ----------------------------------------------------------------------------------------------


def sampled(sampler, tokenizer, split: str, problems: int, samples: int, temperature: float = 1.0) -> tuple:
    """The problems' counts, and everything that was sampled."""
    rollouts: list = []
    settings = (split, problems, samples, 32, temperature)
    _, rows = evaluate(sampler, tokenizer, CountdownTask(), *settings, rollouts=rollouts)
    return rows, rollouts


def counts(rows: list[dict], rollouts: list) -> dict:
    """Of each problem the right and the possible completions and how many different ones are right; maj@16
    and maj@64; and how often the grader gave each reason."""
    texts = [text for rollout in rollouts for text in rollout.texts]
    grades = [grade for rollout in rollouts for grade in rollout.grades]
    samples, different = rows[0]["n"], []
    for first in range(0, len(texts), samples):
        group = range(first, first + samples)
        different.append(len({texts[row] for row in group if grades[row].correct}))
    majorities = {
        k: float(np.mean([maj_at_k(row["votes"], row["right"], k) for row in rows]))
        for k in (16, 64)
        if k <= samples
    }
    return {
        "samples": samples,
        "correct": [row["correct"] for row in rows],
        "parsed": [row["parsed"] for row in rows],
        "different": different,
        "maj": {k: round(value, 4) for k, value in majorities.items()},
        "why": dict(Counter(grade.why for grade in grades).most_common()),
    }


def masked_entropy(model, rollouts: list) -> float:
    """SIREN's H, with its default masks, of any model on what it sampled."""
    rollout = functools.reduce(operator.add, rollouts)
    batch = rollout.batch(rollout.rewards(), model.device)
    return siren.regularised_entropy(model, batch, siren.Args(micro_batch_tokens=32768))[1].item()


def measure(folder: Path, what: str) -> dict:
    """What a model does: on dev alone (a trial), on dev and test, or also at temperature 0.6 ("all")."""
    model, tokenizer = load_model(str(folder))
    sampler = HFSampler(model.eval(), eos_ids(model, tokenizer))
    rows, rollouts = sampled(sampler, tokenizer, "dev", 200, 16)
    result = {"dev": counts(rows, rollouts), "H": masked_entropy(model, rollouts)}
    if what == "dev":
        return result
    settings = where_entropy_is.Args(models=(), problems=50, samples=4, max_new_tokens=32)
    found = where_entropy_is.positions(model, tokenizer, CountdownTask(), settings)
    result["entropy"] = where_entropy_is.shares(found)
    result["1"] = counts(*sampled(sampler, tokenizer, "test", 400, 64))
    if what == "all":
        result["0.6"] = counts(*sampled(sampler, tokenizer, "test", 400, 64, 0.6))
    return result


def command_of(arm: str) -> str:
    """The script and flags of an arm. A number behind its name is another coefficient; "finite" means 200
    training problems, over and over."""
    if arm.endswith("_finite"):
        return f"{command_of(arm.removesuffix('_finite'))} --train-size 200"
    return GRIDS[arm.split("_0.")[0]][0]


def command(arm: str, setting: str, seed: int | str) -> str:
    """The command of a run, but for its steps and folder."""
    lr = "" if "--lr" in setting else f"--lr {LR}"
    return f"{command_of(arm)} {COMMON} {lr} {setting} --seed {seed}"


# --- running ------------------------------------------------------------------------------------------------


def run_one(args: Args) -> None:
    """A single run in this process: train to a fifth, measure, go on to the next; a trial all at once."""
    arm, setting, seed = args.one.split("; ")
    name = f"{trial_name(arm, setting)}/seed{seed}" if args.trials else f"{arm}/seed{seed}"

    def measured(folder: Path, steps: int) -> dict:
        all_temperatures = steps == STEPS or arm.startswith("dr_grpo")  # which may be stopped here
        return measure(folder, "dev" if args.trials else ("all" if all_temperatures else "test"))

    stops = (STEPS,) if args.trials else FIFTHS
    train_in_parts(command(arm, setting, seed), stops, args.scratch / name, args.out / name, measured)


def train_in_parts(command: str, stops: tuple[int, ...], run: Path, target: Path, measured: Callable) -> None:
    """Train to one step after the other, and write what `measured(folder of the model, step)` finds at each.

    A part whose file is there is skipped, a broken one resumed. The run's folder is removed at the end.
    """
    keep_freed_memory()
    path, *own = shlex.split(command)
    module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
    target.mkdir(parents=True, exist_ok=True)
    for steps in stops:
        file = target / f"step{steps}.json"
        if file.exists():
            continue
        resume = ["--resume"] if run.exists() else []
        flags = [*own, "--steps", str(steps), "--out-dir", os.path.relpath(run), *resume]
        gc.collect()  # models of earlier runs, which circles of references may still hold
        module.main(tyro.cli(module.Args, args=flags))
        if last_step(run / "metrics.jsonl") < steps:
            sys.exit("stopped before its end; the same command goes on")  # Ctrl-C saves and returns
        write_text(file, json.dumps(measured(run / "last", steps)) + "\n")
    curves = read_metrics(run)
    columns = {
        name: [round(value, 5) for _, value in sorted(curves[name].items())]
        for name in KEPT
        if name in curves
    }
    write_text(target / "curves.json", json.dumps(columns) + "\n")
    shutil.copy(run / "config.json", target / "config.json")
    shutil.rmtree(run)


def run_jobs(args: Args, jobs: list[tuple[str, str, int]]) -> None:
    """Every (arm, setting, seed) that is not there yet, `args.jobs` side by side, each in a process."""
    trials = collect_trials(args.out) if args.trials else {}

    def start(job: tuple[str, str, int]) -> str:
        arm, setting, seed = job
        name = f"{trial_name(arm, setting)}/seed{seed}" if args.trials else f"{arm}/seed{seed}"
        if str(seed) in trials.get(arm, {}).get(setting, {}) or (args.out / name / "curves.json").exists():
            return f"{name}: already there"
        log = args.scratch / f"{name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        where = ["--out", args.out, "--scratch", args.scratch, *(["--trials"] if args.trials else [])]
        command = [sys.executable, __file__, f"--one={arm}; {setting}; {seed}", *map(str, where)]
        with open(log, "a") as file:
            env = os.environ | {"OMP_NUM_THREADS": "1"}
            code = subprocess.run(command, cwd=ROOT, env=env, stdout=file, stderr=file).returncode
        return f"{name}: " + ("done" if code == 0 else f"not finished, see {log}; the same command goes on")

    with ThreadPoolExecutor(args.jobs) as pool:
        for message in pool.map(start, jobs):
            print(message, flush=True)


def run_all(args: Args) -> None:
    """The trials of every arm, its coefficients and then other rates of the best; or the reported runs."""
    known = GRIDS if args.trials else CHOSEN
    arms = chosen_arms(args.only, known)
    if not (args.out / "start.json").exists():
        args.out.mkdir(parents=True, exist_ok=True)
        write_text(args.out / "start.json", json.dumps(measure(START, "all")) + "\n")
    if not args.trials:
        return run_jobs(args, [(arm, CHOSEN[arm], seed) for seed in args.seeds for arm in arms])
    for arm in arms:
        run_settings(args, arm, GRIDS[arm][1])
        run_settings(args, arm, other_rates(collect_trials(args.out), arm))


def run_settings(args: Args, arm: str, settings: list[str]) -> None:
    run_jobs(args, [(arm, setting, seed) for setting in settings for seed in DEVELOPMENT_SEEDS])


# --- tables -------------------------------------------------------------------------------------------------


def other_rates(trials: dict, arm: str) -> list[str]:
    """The best coefficient of an arm at other learning rates; none of Dr. GRPO, nor before all are tried."""
    first, tried = GRIDS[arm][1], trials.get(arm, {})
    if arm == "dr_grpo" or any(len(tried.get(setting, {})) < len(DEVELOPMENT_SEEDS) for setting in first):
        return []
    best = max(first, key=lambda setting: mean_score(tried[setting]))
    return [f"{best} --lr {rate}" for rate in OTHER_RATES]


def mean_score(seeds: dict[str, dict]) -> float:
    """Of a setting, over the development seeds."""
    return float(np.mean([seed["score"] for seed in seeds.values()]))


def collect_trials(out: Path) -> dict:
    """Adds the trials that are there to trials.json, and returns all: {arm: {setting: {seed: summary}}}."""
    file = out / "trials.json"
    before = file.read_text() if file.exists() else "{}"
    trials = json.loads(before)
    for arm, (_, first) in GRIDS.items():
        for setting in first:
            add_trials(trials, out, arm, setting)
        for setting in other_rates(trials, arm):
            add_trials(trials, out, arm, setting)
    if trials != json.loads(before):
        write_text(file, json.dumps(trials, indent=1) + "\n")
    return trials


def add_trials(trials: dict, out: Path, arm: str, setting: str) -> None:
    for folder in sorted((out / trial_name(arm, setting)).glob("seed*")):
        if (folder / "curves.json").exists():
            of_setting = trials.setdefault(arm, {}).setdefault(setting, {})
            of_setting[folder.name.removeprefix("seed")] = summary(folder)


def summary(trial: Path) -> dict:
    result = json.loads((trial / f"step{STEPS}.json").read_text())
    entropies = json.loads((trial / "curves.json").read_text())["policy/entropy"]
    right, parsed = np.array(result["dev"]["correct"]), np.array(result["dev"]["parsed"])
    values = {
        "avg@16": right.mean() / 16,
        "pass@16": (right > 0).mean(),
        "unparsed": 1 - parsed.mean() / 16,
        "first entropy": entropies[0],
        "last entropy": entropies[-1],
        "H": result["H"],
        "score": dev_score(result["dev"]),
    }
    return {name: round(float(value), 4) for name, value in values.items()}


def trials_table(out: Path) -> str:
    """Every setting that was tried, mean of the development seeds; the one of the reported runs in bold."""
    lines = [
        "| arm | setting | dev avg@16 | pass@16 | unparsed | entropy, first to last step "
        "| H / H of the start | score |",
        "|---" * 8 + "|",
    ]
    start, trials = json.loads((out / "start.json").read_text())["H"], collect_trials(out)
    for arm, settings in trials.items():
        for setting, seeds in settings.items():
            mean = {name: np.mean([seed[name] for seed in seeds.values()]) for name in seeds["100"]}
            cells = [f"{mean[name]:.3f}" for name in ("avg@16", "pass@16", "unparsed")]
            cells += [
                f"{mean['first entropy']:.3f} to {mean['last entropy']:.3f}",
                f"{mean['H'] / start:.2f}",
            ]
            value = f"{mean['score']:.3f}"
            cells.append(f"**{value}**" if CHOSEN.get(arm) == setting else value)
            lines.append(f"| {NAMES[arm]} | `{setting}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def reported(out: Path) -> Runs:
    """The finished runs of all arms."""
    return read_runs(out, list(CHOSEN), STEPS)


def report(out: Path) -> dict[str, str]:
    """Every table of the reported runs."""
    if not (out / "start.json").exists():
        return {}
    runs = reported(out)
    suffix = "_finite"
    finite = Runs(
        runs.start,
        {arm.removesuffix(suffix): seeds for arm, seeds in runs.steps.items() if arm.endswith(suffix)},
        {arm.removesuffix(suffix): seeds for arm, seeds in runs.curves.items() if arm.endswith(suffix)},
    )
    found = tables(runs, NAMES, GROUPS, "siren") | tables(finite, NAMES, FINITE_GROUPS, "siren")
    if all(len(runs.steps.get(arm, ())) == len(REPORTED_SEEDS) for arm in CHOSEN):  # nothing is judged before
        found["claims"] = claims_table(claims(runs, finite, NAMES))
    return found


def main(args: Args) -> None:
    if args.one:
        return run_one(args)
    if not args.tables:
        run_all(args)
    if args.trials or args.tables:
        print(trials_table(args.out) + "\n")
    if not args.trials:
        print("\n\n".join(report(args.out).values()))
        print(plot_countdown(reported(args.out), NAMES, args.out.with_suffix(".png")))


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
