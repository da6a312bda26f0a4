"""The experiment behind docs/h1.md and docs/adarft-e2h.md: chains of one to five steps, by the schedules of
h1_curriculum.py, papers/adarft.py and papers/e2h.py.

    python benchmarks/horizons.py --trials              the trials on development seed 100
    python benchmarks/horizons.py                       the reported runs: every schedule on seeds 1 to 5
    python benchmarks/horizons.py --only curriculum uniform_mix only_long --seeds 6 7 8 9 10
                                                        some schedules, and five seeds more of them
    python benchmarks/horizons.py --reach               tokens until a horizon is learned, directly and by
                                                        the curriculum
    python benchmarks/horizons.py --tables              the tables again, from the committed logs

Every schedule has the same starting model, number of sampled tokens, batch and seeds. Models are measured
after their last step, on chains of one to eight steps. What is finished is skipped and a broken run resumed,
so the same command goes on. Two runs go side by side, one thread each.
"""

import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks import arms  # noqa: E402
from benchmarks.arms import cell, run_arms, score  # noqa: E402
from benchmarks.figures import (  # noqa: E402
    REACHED,
    SCHEDULES,
    Learned,
    geometric_mean,
    holm,
    mean_and_half_width,
    p_value,
    scores,
    tokens_to_learn,
)
from benchmarks.reference import run_all  # noqa: E402
from plainrl.folder import write_text  # noqa: E402
from plainrl.metrics import evaluate, ladder, pass_at_k  # noqa: E402
from plainrl.models import eos_ids, load_model  # noqa: E402
from plainrl.sampler import HFSampler  # noqa: E402
from plainrl.world import ChainTask  # noqa: E402

LOGS = ROOT / "runs/reference/horizons"
LONGEST = 5  # that is trained on
UNSEEN = range(LONGEST + 1, LONGEST + 4)
MEASURED = dict.fromkeys(range(1, LONGEST + 1), (100, 16)) | dict.fromkeys(
    UNSEEN, (25, 128)
)  # problems, samples
TERMS = (
    f"--max-horizon {LONGEST} --token-budget 400000 --prompts-per-step 8 --group-size 16 --minibatches 4 "
    "--max-new-tokens 128 --steps 10000 --eval-problems 80 --eval-samples 8 --test-problems 10 "
    "--save-every 1000"
)
SETTINGS = ["--lr 3e-5", "--lr 1e-4", "--lr 3e-4"]  # that every schedule may choose from
STAGE = 15  # steps of each stage of the curriculum: five of them use up the token budget
# steps between two dev scores, some 40,000 tokens; else 8
EVERY = {"only_short": 18, "only_long": 5, "curriculum": 5}
COMPARED = "curriculum"
TEN = ("curriculum", "uniform_mix", "only_long")  # have seeds 1 to 10, the others 1 to 5

# {horizon: tokens after which it is given up}
DIRECT = {1: 100_000, 2: 150_000, 3: 300_000, 4: 500_000, 5: 800_000, 6: 1_100_000}
REACH_SEEDS = (1, 2, 3)
LADDER = (
    f"--schedule curriculum --max-horizon 6 --eval-problems 96 --advance-at {REACHED} --steps-per-stage 60 "
    "--token-budget 1100000"
)

CHOSEN = {schedule: "--lr 1e-4" for schedule in SCHEDULES}  # the best of the trials of each, see `score`


@dataclass
class Args(arms.Args):
    out: Path = LOGS
    """where the logs are collected"""
    reach: bool = False
    """the runs that count tokens until a horizon is learned"""


SCRIPTS = {  # and the flags that make it this schedule; else h1_curriculum.py
    "curriculum": f"h1_curriculum.py --schedule curriculum --steps-per-stage {STAGE}",
    "adarft": "papers/adarft.py",
    "e2h_cosine": "papers/e2h.py --schedule cosine",
    "e2h_gaussian": "papers/e2h.py --schedule gaussian",
}


def command(schedule: str, setting: str, seed: int) -> str:
    """The exact command of a run, all but its --out-dir."""
    script = SCRIPTS.get(schedule, f"h1_curriculum.py --schedule {schedule}")
    return f"{script} --eval-every {EVERY.get(schedule, 8)} {TERMS} {setting} --seed {seed}"


def reach_commands(seed: int) -> dict[str, str]:
    """{name: command} of the runs on one horizon alone, and of the one curriculum that passes through all of
    them. All score a horizon on the same 16 dev problems."""
    fixed = TERMS.split(" --prompts-per-step")[1].replace("--eval-problems 80 ", "")
    rest = f"--prompts-per-step{fixed} --eval-every 3 --seed {seed}"
    direct = {}
    for h, budget in DIRECT.items():
        own = f"--schedule only_long --max-horizon {h} --eval-problems {16 * h} --token-budget {budget}"
        direct[f"direct_h{h}"] = f"{own} {CHOSEN['only_long']}"
    runs = direct | {"ladder": f"{LADDER} {CHOSEN[COMPARED]}"}
    return {name: f"h1_curriculum.py {flags} {rest}" for name, flags in runs.items()}


def reach_table(out: Path) -> str:
    """Tokens until each horizon is learned: geometric mean over the seeds that learned it, and how many did;
    and how many times the tokens of the curriculum direct training needs, paired by seed, at this dev score
    and at others."""
    title = f"thousands of sampled tokens until dev avg@8 reaches {REACHED}"
    lines = [
        f"| {title} | " + " | ".join(f"h = {h}" for h in DIRECT) + " |",
        "|---" * (len(DIRECT) + 1) + "|",
    ]
    for title, horizons in tokens_to_learn(out, DIRECT).items():
        cells = []
        for seeds in horizons.values():
            tokens = [run.tokens for run in seeds.values() if run.learned]
            some = f" ({len(tokens)} of {len(seeds)})" if len(tokens) < len(seeds) else ""
            cells.append((f"{geometric_mean(tokens) / 1e3:.0f}" if tokens else "never") + some)
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    for reached in (REACHED, 0.4, 0.6):
        alone, curriculum = tokens_to_learn(out, DIRECT, reached).values()
        title = "alone / curriculum" if reached == REACHED else f"the same at {reached}"
        lines.append(f"| {title} | " + " | ".join(ratio_cell(alone[h], curriculum[h]) for h in DIRECT) + " |")
    return "\n".join(lines)


def ratio_cell(alone: dict[str, Learned], curriculum: dict[str, Learned]) -> str:
    """Geometric mean of the ratios of seeds [95% interval, t on their logarithms]. A run that never got
    there counts with the tokens at its end: the ratio is then at least (of a direct run) or at most (of a
    curriculum) so large."""
    pairs = [(alone[seed], curriculum[seed]) for seed in sorted(alone.keys() & curriculum.keys())]
    # no tokens: the starting model is there already
    pairs = [(a, b) for a, b in pairs if a.tokens and (a.learned or b.learned)]
    if len(pairs) < 2:
        return "–"
    bound = "≥ " * (not all(a.learned for a, _ in pairs)) + "≤ " * (not all(b.learned for _, b in pairs))
    mean, half = mean_and_half_width([math.log(a.tokens / b.tokens) for a, b in pairs])
    return f"{bound}{math.exp(mean):.2f} [{math.exp(mean - half):.2f}, {math.exp(mean + half):.2f}]"


def measure(folder: Path, file: Path) -> None:
    """Samples of the test problems of every horizon, with the same random numbers for every model: counts of
    right ones."""
    model, tokenizer = load_model(str(folder))
    sampler, result = HFSampler(model, eos_ids(model, tokenizer)), {}
    for horizon, (problems, samples) in MEASURED.items():
        task, settings = ChainTask(horizon=str(horizon)), ("test", problems, samples, 160, 1.0)
        _, rows = evaluate(sampler, tokenizer, task, *settings, at_once=16)
        result[horizon] = {what: [row[what] for row in rows] for what in ("correct", "parsed")}
    write_text(file, json.dumps(result) + "\n")


def summary(schedule: str, curves: dict) -> dict:
    """A trial: dev scores in their order, over all horizons and at the longest, and steps."""
    names = {"avg@8": "eval/chain/avg@8", "longest": f"eval/chain-h{LONGEST}/avg@8"}
    trial = {
        short: [round(value, 4) for _, value in scores(curves[name], EVERY.get(schedule, 8))]
        for short, name in names.items()
    }
    return trial | {"steps": max(curves["policy/entropy"])}


def collect_trials(out: Path) -> dict:
    return arms.collect_trials(out, {schedule: SETTINGS for schedule in SCHEDULES}, summary)


def trials_table(trials: dict) -> str:
    """Every setting that was tried; the one of the reported runs in bold."""
    lines = [
        f"| schedule | setting | steps | dev avg@8, horizons 1 to {LONGEST} | at {LONGEST} | score |",
        "|---|---|---|---|---|---|",
    ]
    for schedule in SCHEDULES:
        for setting, trial in trials.get(schedule, {}).items():
            cells = [" ".join(f"{value:.3f}" for value in trial[name][-4:]) for name in ("avg@8", "longest")]
            value = score(trial, ("avg@8",))
            shown = f"**{value:.3f}**" if setting == CHOSEN.get(schedule) else f"{value:.3f}"
            lines.append(
                f"| {SCHEDULES[schedule]} | `{setting}` | {trial['steps']} | {' | '.join(cells)} | {shown} |"
            )
    return "\n".join(lines)


def counts(out: Path, schedule: str) -> dict[str, dict[int, np.ndarray]]:
    """{seed: {horizon: right completions of each test problem}} of a schedule's models, or of the starting
    model ("before")."""
    files = [out / "tiny.json"] if schedule == "before" else sorted((out / schedule).glob("seed*/test.json"))

    def read(file: Path) -> dict[int, np.ndarray]:
        return {int(h): np.array(part["correct"]) for h, part in json.loads(file.read_text()).items()}

    return {file.parent.name: read(file) for file in files}


def accuracy(right: dict[int, np.ndarray], horizon: int) -> float:
    return float(right[horizon].mean() / MEASURED[horizon][1])


def accuracy_table(out: Path, shown: list[str]) -> str:
    """Accuracy by horizon, mean over seeds +- 95% interval; under each schedule p^h with its own p."""
    lines = [
        "| | " + " | ".join(f"h = {h}" + " (unseen)" * (h > LONGEST) for h in MEASURED) + " |",
        "|---" * (len(MEASURED) + 1) + "|",
    ]
    for schedule in ["before", *shown]:
        models = counts(out, schedule).values()
        rates = [cell([accuracy(right, h) for right in models]) for h in MEASURED]
        powers = [cell([accuracy(right, 1) ** h for right in models]).split(" ")[0] for h in MEASURED]
        lines += [
            f"| {SCHEDULES.get(schedule, schedule)} | " + " | ".join(rates) + " |",
            "| $p^h$ | " + " | ".join(powers) + " |",
        ]
    return "\n".join(lines)


def difference_table(out: Path, shown: list[str]) -> str:
    """What the curriculum has more in accuracy than each other schedule, paired by seed: by horizon, and
    over the unseen ones. Then the same of what accuracy has more than p^h."""
    unseen = list(UNSEEN)
    columns = {f"h = {h}": [h] for h in MEASURED} | {f"{unseen[0]} to {unseen[-1]} together": unseen}
    lines = ["| curriculum minus | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    models = {schedule: counts(out, schedule) for schedule in {COMPARED, *shown}}

    def value(schedule: str, seed: str, horizons: list[int], less_chance: bool) -> float:
        right = models[schedule][seed]
        return float(np.mean([accuracy(right, h) - less_chance * accuracy(right, 1) ** h for h in horizons]))

    for less_chance in (False, True):
        for schedule in (schedule for schedule in shown if schedule != COMPARED):
            seeds = sorted(models[schedule].keys() & models[COMPARED].keys())
            cells = [SCHEDULES[schedule] + ", both less their $p^h$" * less_chance]
            for horizons in columns.values():
                terms = (horizons, less_chance)
                gains = [value(COMPARED, seed, *terms) - value(schedule, seed, *terms) for seed in seeds]
                cells.append(cell(gains, signed=True))
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def unseen_gains(out: Path, schedule: str) -> list[float]:
    """What the curriculum has more on the unseen horizons together, for each seed that both have."""
    own, compared = counts(out, schedule), counts(out, COMPARED)
    return [
        float(np.mean([accuracy(compared[seed], h) - accuracy(own[seed], h) for h in UNSEEN]))
        for seed in sorted(own.keys() & compared.keys())
    ]


def corrected_table(out: Path, shown: list[str]) -> str:
    """The same comparisons on the unseen horizons together, corrected for their number."""
    gains = {schedule: unseen_gains(out, schedule) for schedule in shown if schedule != COMPARED}
    plain = {schedule: p_value(values) for schedule, values in gains.items() if len(values) > 1}
    corrected = holm(plain)
    unseen = f"{UNSEEN[0]} to {UNSEEN[-1]}"
    lines = [
        f"| curriculum minus, h = {unseen} together | seeds | difference | p | p, corrected for {len(plain)} "
        "comparisons | holds |",
        "|---" * 6 + "|",
    ]
    for schedule, p in plain.items():
        cells = [str(len(gains[schedule])), cell(gains[schedule], signed=True)]
        cells += [f"{p:.4f}", f"{corrected[schedule]:.4f}", "yes" if corrected[schedule] < 0.05 else "no"]
        lines.append(f"| {SCHEDULES[schedule]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def pass_table(out: Path, shown: list[str]) -> str:
    """pass@k on the unseen horizons together, mean over seeds +- 95% interval."""
    unseen = list(UNSEEN)
    samples = MEASURED[unseen[0]][1]
    head = " | ".join([f"pass@k, h = {unseen[0]} to {unseen[-1]}", *(f"k = {k}" for k in ladder(samples))])
    lines = [f"| {head} |", "|---" * (len(ladder(samples)) + 1) + "|"]
    for schedule in ["before", *shown]:
        curves = [unseen_pass(right, unseen, samples) for right in counts(out, schedule).values()]
        cells = [SCHEDULES.get(schedule, schedule), *(cell(list(column)) for column in zip(*curves))]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def unseen_pass(right: dict[int, np.ndarray], unseen: list[int], samples: int) -> list[float]:
    """pass@k for k = 1, 2, 4, ... over the problems of the unseen horizons."""
    solved = np.concatenate([right[h] for h in unseen])
    return [float(np.mean([pass_at_k(samples, int(count), k) for count in solved])) for k in ladder(samples)]


def report(out: Path) -> dict[str, str]:
    """Every table of the reported runs."""
    found = [schedule for schedule in SCHEDULES if list((out / schedule).glob("seed*/test.json"))]
    return {
        "accuracy": accuracy_table(out, found),
        "difference": difference_table(out, found),
        "corrected": corrected_table(out, found),
        "pass": pass_table(out, found),
        "reach": reach_table(out),
    }


def main(args: Args) -> None:
    if args.measure:
        return measure(*args.measure)
    if args.reach:
        seeds = ((seed, reach_commands(seed)) for seed in REACH_SEEDS)
        run_all([(line, f"{name}/seed{seed}") for seed, runs in seeds for name, line in runs.items()], args)
    elif not args.tables:
        run_arms(args, __file__, {schedule: SETTINGS for schedule in SCHEDULES}, CHOSEN, command)
    if args.trials or args.tables:
        print(trials_table(collect_trials(args.out)) + "\n")
    if not args.trials:
        print("\n\n".join(report(args.out).values()))


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
