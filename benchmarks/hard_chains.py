"""The experiment behind docs/guide.md, on problems that the starting model hardly ever solves.

They are chains of seven steps, and chains of four steps one of which says "more" where one has to subtract
(the arms with "near" in their name).

    python benchmarks/hard_chains.py --trials               the trials on development seed 100
    python benchmarks/hard_chains.py                        the reported runs: every arm on seeds 1 to 5
    python benchmarks/hard_chains.py --only grpo guide --seeds 6 7 8 9 10
                                                            five more of these two
    python benchmarks/hard_chains.py --only guide grpo      some arms
    python benchmarks/hard_chains.py --tables               the tables again, from the committed logs

Every arm has the same starting model, problems in the same order, sampling seeds and number of sampled
tokens, those with a hint included. What is finished is skipped and a broken run resumed, so the same command
goes on. Two runs go side by side, one thread each.
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
from benchmarks.figures import HARD_ARMS, NEAR_ARMS, scores  # noqa: E402
from plainrl.curves import read_metrics  # noqa: E402
from plainrl.folder import write_text  # noqa: E402
from plainrl.metrics import decompose, evaluate  # noqa: E402
from plainrl.models import eos_ids, load_model  # noqa: E402
from plainrl.sampler import HFSampler  # noqa: E402
from plainrl.tasks import load_task  # noqa: E402

LOGS = ROOT / "runs/reference/hard_chains"
TASKS = {"hard": "chain?horizon=7", "near": "chain?horizon=4&family=reversed", "easy": "chain?horizon=1-3"}
PROBLEMS = {"hard": 200, "near": 100, "easy": 100}  # measured after the last step
BATCH = (
    "--prompts-per-step 8 --group-size 16 --minibatches 4 --max-new-tokens 128 --steps 10000 "
    "--eval-problems 64 --test-problems 8 --save-every 1000"
)
TERMS = {
    "hard": f"--task {TASKS['hard']} --token-budget 600000 {BATCH}",
    "near": f"--task {TASKS['near']} --token-budget 400000 {BATCH}",
}
# Of guide.py. With its default, the arm without hints would spend all its tokens on five steps.
REFILLS = "--max-refills 2"
SETTINGS = ["--lr 3e-5", "--lr 1e-4", "--lr 3e-4"]  # that every arm may choose from
ARMS = {
    "grpo": "grpo.py",
    "filter": "guide.py --trigger never",
    "guide": "guide.py",
    "no_correction": "papers/guide_ablations.py --correction none",
    "always": "papers/guide_ablations.py --trigger always",
    "joined": "papers/guide_ablations.py --group join",
    "grpo_near": "grpo.py",
    "guide_near": "guide.py",
    "no_correction_near": "papers/guide_ablations.py --correction none",
}
SHOWN = {"hard": HARD_ARMS, "near": NEAR_ARMS, "easy": HARD_ARMS}  # whose models each table shows
LABELS = HARD_ARMS | {arm: f"{label} (chains of 4)" for arm, label in NEAR_ARMS.items()}

CHOSEN = {  # the best of each arm's trials, see `score`
    "grpo": "--lr 1e-4",
    "filter": "--lr 3e-5",
    "guide": "--lr 1e-4",
    "no_correction": "--lr 3e-4",
    "always": "--lr 1e-4",
    "joined": "--lr 1e-4",
    "grpo_near": "--lr 1e-4",
    "guide_near": "--lr 1e-4",
    "no_correction_near": "--lr 1e-4",
}
DEV = "eval/chain/"


@dataclass
class Args(arms.Args):
    out: Path = LOGS
    """where the logs are collected"""


def every(arm: str) -> int:
    """Steps between two dev scores, some 100,000 tokens.

    A step with hints and refills samples about four times as many as one of grpo.py.
    """
    return 12 if ARMS[arm] == "grpo.py" else 3


def command(arm: str, setting: str, seed: int) -> str:
    """The exact command of a run, all but its --out-dir."""
    refills = "" if ARMS[arm] == "grpo.py" else f" {REFILLS}"
    terms = TERMS["near" if arm in NEAR_ARMS else "hard"]
    return f"{ARMS[arm]}{refills} --eval-every {every(arm)} {terms} {setting} --seed {seed}"


def measure(folder: Path, file: Path) -> None:
    """16 samples of each test problem of all tasks, without hints, with the same random numbers each time."""
    model, tokenizer = load_model(str(folder))
    sampler, result = HFSampler(model, eos_ids(model, tokenizer)), {}
    for name, task in TASKS.items():
        _, rows = evaluate(sampler, tokenizer, load_task(task), "test", PROBLEMS[name], 16, 128, 1.0)
        result[name] = {what: [row[what] for row in rows] for what in ("correct", "parsed")}
    write_text(file, json.dumps(result) + "\n")


def summary(arm: str, curves: dict) -> dict:
    """A trial: dev scores in their order, steps, share of guided groups."""
    trial = {
        name: [value for _, value in scores(curves[DEV + name], every(arm))] for name in ("avg@16", "pass@16")
    }
    trial["steps"] = max(curves["policy/entropy"])
    trial["guided"] = round(float(np.mean(list(curves.get("guide/frac_guided", {0: 0.0}).values()))), 3)
    return trial


def collect_trials(out: Path) -> dict:
    return arms.collect_trials(out, {arm: SETTINGS for arm in ARMS}, summary)


def trials_table(trials: dict) -> str:
    """Every setting that was tried; the one of the reported runs in bold."""
    lines = ["| arm | setting | steps | dev avg@16 | pass@16 | groups guided | score |", "|---" * 7 + "|"]
    for arm in LABELS:
        for setting, trial in trials.get(arm, {}).items():
            cells = [" ".join(f"{value:.3f}" for value in trial[name][-4:]) for name in ("avg@16", "pass@16")]
            shown = f"**{score(trial):.3f}**" if setting == CHOSEN.get(arm) else f"{score(trial):.3f}"
            cells = [
                LABELS[arm],
                f"`{setting}`",
                str(trial["steps"]),
                *cells,
                f"{trial['guided']:.2f}",
                shown,
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def test_scores(out: Path, arm: str, task: str) -> dict[str, dict[str, float]]:
    """{seed: {metric: value}} on the test problems after the last step, and where the gain comes from."""
    counts = lambda file: json.loads(file.read_text())[task]  # noqa: E731
    rows = lambda file: [{"n": 16, "correct": count} for count in counts(file)["correct"]]  # noqa: E731
    before, found = rows(out / "tiny.json"), {}
    for file in sorted((out / arm).glob("seed*/test.json")) if arm in ARMS else [out / "tiny.json"]:
        right = np.array(counts(file)["correct"])
        parts = decompose(before, rows(file), 16).mean(axis=0)
        found[file.parent.name] = {
            "avg@16": right.mean() / 16,
            "pass@16": (right > 0).mean(),
            **dict(zip(("distilled", "gained", "forgotten"), parts)),
            "unparsed": 1 - np.mean(counts(file)["parsed"]) / 16,
        }
    return found


def scores_table(out: Path, shown: list[str], task: str) -> str:
    """Held-out scores without hints, and how far Guide's are from them, paired by seed: mean +- 95%."""
    compared = ("pass@16", "gained", "forgotten")
    lines = [
        f"| {task}: `{TASKS[task]}` | seeds | avg@16 | pass@16 | self-distillation | capability gain "
        "| forgetting | unparsed | Guide minus it: pass@16 | capability gain | forgetting |",
        "|---" * 11 + "|",
    ]
    compared_with = next(arm for arm, label in SHOWN[task].items() if label == "Guide")
    guide = test_scores(out, compared_with, task)
    for arm in ["before", *shown]:
        own = test_scores(out, arm, task)
        names = ("avg@16", "pass@16", "distilled", "gained", "forgotten")
        cells = [cell([score[name] for score in own.values()]) for name in names]
        cells = [str(len(own)), *cells, f"{np.mean([score['unparsed'] for score in own.values()]):.3f}"]
        if arm == "before":
            cells[3:6] = [""] * 3
        for name in compared:
            differences = [guide[seed][name] - own[seed][name] for seed in sorted(own.keys() & guide.keys())]
            cells.append("" if arm in (compared_with, "before") else cell(differences, signed=True))
        lines.append(" | ".join([f"| {SHOWN[task].get(arm, arm)}", *cells]) + " |")
    return "\n".join(lines)


def at_step(curve: dict[int, float], step: int) -> float:
    """A curve between its scores, on straight lines."""
    steps = sorted(curve)
    return float(np.interp(step, steps, [curve[each] for each in steps]))


def at_equal_steps(pairs: list[tuple[dict, dict]], name: str) -> np.ndarray:
    """A metric of pairs of runs after the steps of the shorter one of each pair: [pairs, 2]."""
    length = lambda curves: max(curves["policy/entropy"])  # noqa: E731
    return np.array([[at_step(run[name], min(map(length, pair))) for run in pair] for pair in pairs])


def equal_steps_table(out: Path) -> str:
    """The paper's own count: dev scores after equally many steps, and the tokens sampled until then."""
    lines = [
        "| at equal steps | seeds | steps | thousands of tokens | and of Guide | dev avg@16 | pass@16 "
        "| Guide minus it: avg@16 | pass@16 |",
        "|---" * 9 + "|",
    ]
    guide = seeds_of(out, "guide")
    for arm, label in HARD_ARMS.items():
        pairs = [(guide[seed], curves) for seed, curves in seeds_of(out, arm).items() if seed in guide]
        if not pairs:
            continue
        steps = np.mean([min(max(run["policy/entropy"]) for run in pair) for pair in pairs])
        of_guide, own = at_equal_steps(pairs, "rollout/tokens_total").mean(axis=0) / 1e3
        values = [at_equal_steps(pairs, DEV + name) for name in ("avg@16", "pass@16")]
        cells = [label, str(len(pairs)), f"{steps:.0f}", f"{own:.0f}", f"{of_guide:.0f}"]
        cells += [cell(list(both[:, 1])) for both in values]
        for both in values:
            cells.append("" if arm == "guide" else cell(list(both[:, 0] - both[:, 1]), signed=True))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def seeds_of(out: Path, arm: str) -> dict[str, dict]:
    """{seed: curves} of an arm."""
    return {
        file.parent.name: read_metrics(file.parent)
        for file in sorted((out / arm).glob("seed*/metrics.jsonl"))
    }


def report(out: Path) -> dict[str, str]:
    """Every table of the reported runs."""
    finished = lambda arm: any((out / arm).glob("seed*/test.json"))  # noqa: E731
    tables = {task: scores_table(out, list(filter(finished, SHOWN[task])), task) for task in TASKS}
    return tables | ({"steps": equal_steps_table(out)} if seeds_of(out, "guide") else {})


def main(args: Args) -> None:
    if args.measure:
        return measure(*args.measure)
    if not args.tables:
        run_arms(args, __file__, {arm: SETTINGS for arm in ARMS}, CHOSEN, command)
    if args.trials or args.tables:
        print(trials_table(collect_trials(args.out)) + "\n")
    if not args.trials:
        print("\n\n".join(report(args.out).values()))


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
