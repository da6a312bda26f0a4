"""The experiment behind docs/siren.md and docs/entropy.md: which methods keep exploring, and does it pay?

    python benchmarks/entropy.py --trials              the trials on development seed 100
    python benchmarks/entropy.py                       the reported runs: every arm on seeds 1 to 5
    python benchmarks/entropy.py --only siren dr_grpo  some arms
    python benchmarks/entropy.py --tables              the tables again, from the committed logs

Every arm has the same starting model, problems in the same order, sampling seeds and number of sampled
tokens. What is finished is skipped and a broken run resumed, so the same command goes on. Two runs go side
by side, one thread each.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks import arms  # noqa: E402
from benchmarks.arms import cell, run_arms, score  # noqa: E402
from benchmarks.figures import ENTROPY_METHODS, STRONG, h_over_anchor, scores  # noqa: E402
from plainrl.curves import read_metrics  # noqa: E402
from plainrl.flags import EVAL_SEED  # noqa: E402
from plainrl.folder import write_text  # noqa: E402
from plainrl.metrics import evaluate, maj_at_k  # noqa: E402
from plainrl.models import eos_ids, load_model  # noqa: E402
from plainrl.sampler import HFSampler  # noqa: E402
from plainrl.tasks import load_task  # noqa: E402

LOGS = ROOT / "runs/reference/entropy"
TASK = "chain?horizon=1&family=mixed"
COMMON = (
    f"--task {TASK} --prompts-per-step 8 --minibatches 4 --max-new-tokens 64 --steps 1000 "
    "--token-budget 190000 --eval-every 20 --eval-problems 100 --test-problems 8 --save-every 1000"
)
LR = "1e-4"  # of all arms: chosen for Dr. GRPO, whose only setting it is
SIREN = "siren.py"
GRIDS = {  # arm: the command, and the four settings that were tried for it
    "dr_grpo": (f"{SIREN} --beta 0", ["--lr 5e-5", "--lr 1e-4", "--lr 2e-4", "--lr 3e-4"]),
    "siren": (SIREN, ["--beta 0.001", "--beta 0.003", "--beta 0.01", "--beta 0.03"]),
    "naive_bonus": (
        "papers/naive_bonus.py",
        ["--bonus 0.003", "--bonus 0.01", "--bonus 0.03", "--bonus 0.1"],
    ),
    "adaptive_bonus": (
        "papers/adaptive_bonus.py --bonus 0",
        [f"--bonus-rate {rate} --target-share {share}" for rate in (0.001, 0.01) for share in (1.0, 0.5)],
    ),
    "entropy_advantage": (
        "papers/entropy_advantage.py",
        ["--shape-alpha 0.1", "--shape-alpha 0.4", "--shape-alpha 1", "--shape-alpha 0.4 --shape-kappa 1.2"],
    ),
    "high_entropy_tokens": (
        "papers/high_entropy_tokens.py",
        [f"--token-fraction {share}" for share in (0.1, 0.2, 0.4, 0.7)],
    ),
    "clip_cov": ("papers/clip_cov.py", [f"--cov-fraction {share}" for share in (0.002, 0.01, 0.03, 0.1)]),
    "kl_cov": ("papers/kl_cov.py", [f"--cov-fraction {share}" for share in (0.002, 0.01, 0.03, 0.1)]),
    "siren_no_top_p": (
        f"{SIREN} --nucleus-p 1",
        ["--beta 0.001", "--beta 0.003", "--beta 0.01", "--beta 0.03"],
    ),
    "siren_no_peaks": (f"{SIREN} --tau 0", ["--beta 0.03", "--beta 0.1", "--beta 0.3", "--beta 1"]),
    "siren_anchor_alone": (
        f"{SIREN} --nucleus-p 1 --tau 0",
        ["--beta 0.03", "--beta 0.1", "--beta 0.3", "--beta 1"],
    ),
    "siren_no_anchor": (
        f"{SIREN} --no-anchor",
        ["--beta 0.0003", "--beta 0.001", "--beta 0.003", "--beta 0.01"],
    ),
}
TRIALS = GRIDS | {  # coefficients that matter, whatever they cost, where they are not among the four
    "siren_strong": (SIREN, ["--beta 0.1"]),
    "naive_bonus_strong": ("papers/naive_bonus.py", []),
    "siren_no_top_p_strong": (f"{SIREN} --nucleus-p 1", []),
    "siren_no_peaks_strong": (f"{SIREN} --tau 0", ["--beta 3", "--beta 10"]),
    "siren_anchor_alone_strong": (f"{SIREN} --nucleus-p 1 --tau 0", []),
    "siren_no_anchor_strong": (f"{SIREN} --no-anchor", ["--beta 0.02", "--beta 0.03", "--beta 0.1"]),
    # does it matter that an update sees two prompts? all eight of a step in one
    "dr_grpo_one_update": (f"{SIREN} --beta 0", ["--minibatches 1", "--minibatches 1 --lr 3e-4"]),
    "siren_one_update": (
        SIREN,
        [f"--minibatches 1 --beta {setting}" for setting in ("0.1", "0.03 --lr 3e-4", "0.1 --lr 3e-4")],
    ),
}

# The best of each arm's trials, see `score`; of the last three, the one whose H / H_anchor is nearest to
# SIREN's with 0.1.
CHOSEN = {
    "dr_grpo": "--lr 1e-4",
    "siren": "--beta 0.001",
    "naive_bonus": "--bonus 0.003",
    "adaptive_bonus": "--bonus-rate 0.001 --target-share 0.5",
    "entropy_advantage": "--shape-alpha 0.4 --shape-kappa 1.2",
    "high_entropy_tokens": "--token-fraction 0.1",
    "clip_cov": "--cov-fraction 0.1",
    "kl_cov": "--cov-fraction 0.002",
    "siren_no_top_p": "--beta 0.001",
    "siren_no_peaks": "--beta 0.03",
    "siren_anchor_alone": "--beta 0.03",
    "siren_no_anchor": "--beta 0.001",
    "siren_strong": "--beta 0.1",
    "naive_bonus_strong": "--bonus 0.03",
    "siren_no_top_p_strong": "--beta 0.03",
    "siren_no_peaks_strong": "--beta 3",
    "siren_anchor_alone_strong": "--beta 1",
}
NAMES = (
    ENTROPY_METHODS
    | {
        "siren_no_top_p": "SIREN, p = 1",
        "siren_no_peaks": "SIREN, tau = 0",
        "siren_anchor_alone": "SIREN, p = 1, tau = 0",
        "siren_no_anchor": "SIREN, no anchor",
        "dr_grpo_one_update": "Dr. GRPO, one update a step",
        "siren_one_update": "SIREN, one update a step",
    }
    | STRONG
)
ABLATION = ["dr_grpo", "siren", "siren_no_top_p", "siren_no_peaks", "siren_anchor_alone", "siren_no_anchor"]
HOLDING = [
    "dr_grpo",
    "siren_strong",
    "siren_no_top_p_strong",
    "siren_no_peaks_strong",
    "siren_anchor_alone_strong",
]
NAMES |= {
    arm: f"{NAMES[arm.removesuffix('_strong')]}, {CHOSEN[arm].removeprefix('--')}" for arm in HOLDING[2:]
}
DEV = "eval/chain/"
SINGLED_OUT = [  # share of tokens that a method selects, leaves out or penalises
    "siren/frac_selected",
    "high_entropy_tokens/frac_dropped",
    "clip_cov/frac_dropped",
    "kl_cov/frac_penalised",
    "baseline/frac_touched",  # all but SIREN's, in the committed logs
]


@dataclass
class Args(arms.Args):
    out: Path = LOGS
    """where the logs are collected"""


def command(arm: str, setting: str, seed: int) -> str:
    """The exact command of a run, all but its --out-dir."""
    lr = "" if "--lr" in setting else f"--lr {LR} "
    return f"{TRIALS[arm][0]} {COMMON} {lr}{setting} --seed {seed}"


def measure(folder: Path, file: Path) -> None:
    """16 samples of each of 200 test problems at temperature 1 and at the paper's 0.6, with the same random
    numbers for every model: how many are right, how many have an answer, and maj@16."""
    model, tokenizer = load_model(str(folder))
    sampler, result = HFSampler(model, eos_ids(model, tokenizer)), {}
    for temperature in (1.0, 0.6):
        _, rows = evaluate(sampler, tokenizer, load_task(TASK), "test", 200, 16, 64, temperature)
        majority = [round(maj_at_k(row["votes"], row["right"], 16), 4) for row in rows]
        counts = {name: [row[name] for row in rows] for name in ("correct", "parsed")}
        result[f"{temperature:g}"] = counts | {"maj@16": majority}
    write_text(file, json.dumps(result) + "\n")


# --- the trials ---------------------------------------------------------------------------------------------


def held(curves: dict) -> float:
    """H / H_anchor, mean of the last ten steps."""
    return float(np.mean(h_over_anchor(curves)[-10:]))


def summary(arm: str, curves: dict) -> dict:
    """A trial: dev scores in their order, entropy at the first and the last step, share of tokens that the
    method selects, leaves out or penalises, H / H_anchor over the last ten steps."""
    trial = {
        name: [value for _, value in scores(curves[DEV + name])] for name in ("avg@16", "pass@16", "maj@16")
    }
    trial["entropy"] = [round(curves["policy/entropy"][end], 4) for end in (1, max(curves["policy/entropy"]))]
    touched = next((curves[name] for name in SINGLED_OUT if curves.get(name)), {0: 0.0})
    trial["touched"] = round(float(np.mean(list(touched.values()))), 4)
    if "siren/anchor" in curves:
        trial["h_over_anchor"] = round(held(curves), 4)
    return trial


def collect_trials(out: Path) -> dict:
    return arms.collect_trials(out, {arm: settings for arm, (_, settings) in TRIALS.items()}, summary)


def trials_table(trials: dict) -> str:
    """Every setting that was tried; those of the reported runs in bold."""
    lines = [
        "| arm | setting | dev avg@16 | pass@16 | maj@16 | entropy, first to last step | H / H_anchor "
        "| tokens | score |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for arm in TRIALS:
        for setting, trial in trials.get(arm, {}).items():
            cells = [
                " ".join(f"{value:.3f}" for value in trial[name][1:])
                for name in ("avg@16", "pass@16", "maj@16")
            ]
            chosen = (CHOSEN.get(arm), CHOSEN.get(f"{arm}_strong"))
            shown = f"**{score(trial):.3f}**" if setting in chosen else f"{score(trial):.3f}"
            held = f"{trial['h_over_anchor']:.2f}" if "h_over_anchor" in trial else ""
            cells += [
                " to ".join(f"{value:.3f}" for value in trial["entropy"]),
                held,
                f"{trial['touched']:.3f}",
                shown,
            ]
            lines.append(
                " | ".join([f"| {NAMES[arm.removesuffix('_strong')]}", f"`{setting}`", *cells]) + " |"
            )
    return "\n".join(lines)


def rules_table(trials: dict) -> str:
    """The setting of each arm, and what it would be if pass@16 or maj@16 alone decided."""
    lines = ["| arm | as chosen | best by pass@16 | best by maj@16 |", "|---|---|---|---|"]
    for arm in GRIDS:
        cells = []
        for metrics in (("avg@16", "pass@16"), ("pass@16",), ("maj@16",)):
            best = max(trials[arm], key=lambda setting: score(trials[arm][setting], metrics))
            values = " / ".join(
                f"{score(trials[arm][best], (name,)):.3f}" for name in ("avg@16", "pass@16", "maj@16")
            )
            cells.append(f"`{best}`: {values}")
        lines.append(f"| {NAMES[arm]} | {' | '.join(cells)} |")
    return "\n".join(lines)


# --- the reported runs --------------------------------------------------------------------------------------


def read_arms(out: Path) -> dict[str, dict[int, dict]]:
    """{arm: {seed: curves}} of the arms that have a finished run"""
    return {
        arm: {int(file.parent.name.removeprefix("seed")): read_metrics(file.parent) for file in files}
        for arm in NAMES
        if (files := sorted((out / arm).glob("seed*/test.json")))
    }


def test_scores(out: Path, arm: str, temperature: str) -> dict[str, dict[str, float]]:
    """{seed: {metric: value}} of the model after its last step, on 200 test problems."""
    found = {}
    for file in sorted((out / arm).glob("seed*/test.json")) if arm in TRIALS else [out / "tiny.json"]:
        result = json.loads(file.read_text())[temperature]
        right = np.array(result["correct"])
        found[file.parent.name] = {
            "avg@16": right.mean() / 16,
            "pass@16": (right > 0).mean(),
            "maj@16": np.mean(result["maj@16"]),
            "unparsed": 1 - np.mean(result["parsed"]) / 16,
        }
    return found


def scores_table(out: Path, shown: list[str], temperature: str, against: str = "siren") -> str:
    """Held-out scores, and what `against` has more, paired by seed: mean over seeds +- 95% interval."""
    lines = [
        f"| temperature {temperature} | seeds | avg@16 | pass@16 | maj@16 | unparsed "
        f"| {NAMES[against]} minus it: avg@16 | pass@16 | maj@16 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    reference = test_scores(out, against, temperature)
    for arm in ["before", *shown]:
        own = test_scores(out, arm, temperature)
        cells = [cell([score[name] for score in own.values()]) for name in ("avg@16", "pass@16", "maj@16")]
        cells = [str(len(own)), *cells, f"{np.mean([score['unparsed'] for score in own.values()]):.3f}"]
        for name in ("avg@16", "pass@16", "maj@16"):
            differences = [
                reference[seed][name] - own[seed][name] for seed in sorted(own.keys() & reference.keys())
            ]
            cells.append("" if arm in (against, "before") else cell(differences, signed=True))
        lines.append(" | ".join([f"| {NAMES.get(arm, arm)}", *cells]) + " |")
    return "\n".join(lines)


def entropy_table(arms: dict, shown: list[str]) -> str:
    """Entropies in the first and the last ten steps, the distance of H from its anchor, and what happened to
    the answers."""
    lines = [
        "| method | entropy, first ten steps | last ten | H / H_anchor, last ten | last dev avg@16 "
        "| unparsed, last ten |",
        "|---|---|---|---|---|---|",
    ]
    first_ten, last_ten = slice(None, 10), slice(-10, None)
    mean = lambda curve, part: float(np.mean(list(curve.values())[part]))  # noqa: E731  of the steps, in their order
    for arm in shown:
        runs = list(arms[arm].values())
        cells = [cell([mean(run["policy/entropy"], part) for run in runs]) for part in (first_ten, last_ten)]
        cells.append(cell([held(run) for run in runs]) if "siren/anchor" in runs[0] else "")
        cells.append(cell([mean(run[DEV + "avg@16"], slice(-1, None)) for run in runs]))
        cells.append(f"{np.mean([mean(run['rollout/frac_unparsed'], last_ten) for run in runs]):.3f}")
        lines.append(" | ".join([f"| {NAMES[arm]}", *cells]) + " |")
    return "\n".join(lines)


def kinds_table(arms: list[str], out: Path) -> str:
    """Accuracy and share solved by 16 samples on the test problems of each reading, mean over seeds."""
    task, kinds = load_task(TASK), {}
    for index in range(200):
        problem = task.problem("test", index, EVAL_SEED)
        rare = problem.source == "chain/reversed"
        kinds.setdefault(
            ("rare: fewer" if "fewer" in problem.prompt else "rare: more") if rare else "usual", []
        ).append(index)
    lines = [
        "| method | "
        + " | ".join(f"{kind} ({len(kinds[kind])}): avg@16 | pass@16" for kind in sorted(kinds)[::-1])
        + " |",
        "|---" * (1 + 2 * len(kinds)) + "|",
    ]
    for arm in ["before", *arms]:
        files = [out / "tiny.json"] if arm == "before" else sorted((out / arm).glob("seed*/test.json"))
        right = np.array(
            [json.loads(file.read_text())["1"]["correct"] for file in files]
        )  # [seeds, problems], of 16
        cells = []
        for kind in sorted(kinds)[::-1]:
            part = right[:, kinds[kind]]
            cells += [cell(list((part / 16).mean(axis=1))), cell(list((part > 0).mean(axis=1)))]
        lines.append(" | ".join([f"| {NAMES.get(arm, arm)}", *cells]) + " |")
    return "\n".join(lines)


def report(out: Path) -> dict[str, str]:
    """Every table of the reported runs. benchmarks/entropy.md shows all, docs/ those at temperature 1."""
    arms = read_arms(out)
    finished = lambda names: [arm for arm in names if arm in arms]  # noqa: E731
    methods, parts = finished([*ENTROPY_METHODS, *STRONG]), finished(dict.fromkeys(ABLATION + HOLDING))
    groups = {
        "methods": (methods, "siren"),
        "ablation": (finished(ABLATION), "siren"),
        "holding": (finished(HOLDING), "siren_strong"),
    }
    tables = {
        f"{title} at {temperature}": scores_table(out, shown, temperature, against)
        for title, (shown, against) in groups.items()
        for temperature in ("1", "0.6")
    }
    tables |= {
        "entropies": entropy_table(arms, methods),
        "entropies of the parts": entropy_table(arms, parts),
    }
    return tables | {"kinds": kinds_table(list(arms), out)}


def main(args: Args) -> None:
    if args.measure:
        return measure(*args.measure)
    if not args.tables:
        settings = {arm: tried for arm, (_, tried) in TRIALS.items()}
        run_arms(args, __file__, settings, CHOSEN, command)
    if args.trials or args.tables:
        trials = collect_trials(args.out)
        print(f"{trials_table(trials)}\n\n{rules_table(trials)}\n")
    if not args.trials:
        print("\n\n".join(report(args.out).values()))


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
