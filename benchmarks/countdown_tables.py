"""The tables of benchmarks/countdown.py, from the files that its runs leave.

A run has a file for every fifth of its steps: {"dev", "1", "0.6": counts; "H"; "entropy": its parts}. The
starting model has one of the same kind. Letters in shapes: P test problems.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.arms import cell
from plainrl.metrics import ladder, pass_at_k

STOPPED = "dr_grpo_stopped"  # Dr. GRPO at the fifth that dev chooses


def trained(arm: str) -> str:
    """The arm whose runs these are: early stopping takes models of Dr. GRPO's."""
    return "dr_grpo" if arm == STOPPED else arm


def dev_score(dev: dict) -> float:
    """What a setting and a stopping point are chosen by: mean of avg@16 and pass@16 on dev."""
    right = np.array(dev["correct"])
    return float((right.mean() / 16 + (right > 0).mean()) / 2)


def scores_of(counts: dict) -> dict[str, float]:
    """Every metric of one set of counts."""
    n, correct = counts["samples"], counts["correct"]
    scores = {"avg": float(np.mean(correct)) / n}
    for k in ladder(n):
        scores[f"pass@{k}"] = float(np.mean([pass_at_k(n, right, k) for right in correct]))
    scores |= {f"maj@{k}": value for k, value in counts["maj"].items()}
    scores["different"] = float(np.mean(counts["different"]))
    scores["unparsed"] = 1 - float(np.mean(counts["parsed"])) / n
    return scores


def with_scores(result: dict, start: dict) -> dict:
    """What was measured of a model, and its "scores": {temperature: every metric}, with H as a share of the
    starting model's."""
    held = {"H": result["H"] / start["H"]}
    scores = {name: scores_of(result[name]) | held for name in ("1", "0.6") if name in result}
    return result | {"scores": scores}


@dataclass
class Runs:
    """Everything that was measured: `start`, and of every arm and seed {step: what was measured}, with the
    starting model as step 0, and the curves. Scores are with all of it."""

    start: dict
    steps: dict[str, dict[str, dict[int, dict]]]
    curves: dict[str, dict[str, dict[str, list[float]]]]

    def at(self, arm: str, seed: str) -> dict:
        """The last model of a run, or the one that early stopping chooses."""
        if arm == STOPPED:
            return self.steps["dr_grpo"][seed][self.stopped(seed)]
        return self.steps[arm][seed][max(self.steps[arm][seed])]

    def scores(self, arm: str, temperature: str = "1") -> dict[str, dict[str, float]]:
        """Every metric of that model, of each seed."""
        return {seed: self.at(arm, seed)["scores"][temperature] for seed in self.seeds(arm)}

    def stopped(self, seed: str, arm: str = "dr_grpo") -> int:
        """The step at which dev says to stop a run, once all of it is known; of equals the later one."""
        path = self.steps[arm][seed]
        return max(path, key=lambda step: (dev_score(path[step]["dev"]), step))

    def seeds(self, arm: str) -> list[str]:
        return list(self.steps[trained(arm)])

    def arms(self) -> list[str]:
        """Those that have a finished run; early stopping next to Dr. GRPO."""
        found = list(self.steps)
        if "dr_grpo" in found:
            found.insert(found.index("dr_grpo") + 1, STOPPED)
        return found


def read_runs(out: Path, arms: list[str], last: int) -> Runs:
    """The finished runs of these arms."""
    start = json.loads((out / "start.json").read_text())
    start = with_scores(start, start)
    steps, curves = {}, {}
    for arm in arms:
        for folder in sorted((out / arm).glob("seed*")):
            if not (folder / "curves.json").exists() or not (folder / f"step{last}.json").exists():
                continue
            files = {int(file.stem.removeprefix("step")): file for file in folder.glob("step*.json")}
            found = {step: with_scores(json.loads(files[step].read_text()), start) for step in sorted(files)}
            steps.setdefault(arm, {})[folder.name] = {0: start} | found
            curves.setdefault(arm, {})[folder.name] = json.loads((folder / "curves.json").read_text())
    return Runs(start, steps, curves)


# --- after the last step ------------------------------------------------------------------------------------


def differences(runs: Runs, arm: str, other: str, name: str, temperature: str = "1") -> list[float]:
    """What an arm has more of a metric than another, paired by seed."""
    own, others = runs.scores(arm, temperature), runs.scores(other, temperature)
    return [own[seed][name] - others[seed][name] for seed in own if seed in others]


def scores_table(runs: Runs, names: dict[str, str], shown: list[str], temperature: str, against: str) -> str:
    """Test scores after the last step, and what `against` has more, paired by seed."""
    metrics = ["avg", "pass@16", "pass@64", "maj@16", "different", "unparsed"]
    compared = ["avg", "pass@16", "pass@64", "maj@16"]
    lines = [
        f"| temperature {temperature} | seeds | avg@64 | pass@16 | pass@64 | maj@16 | different right of 64 "
        f"| unparsed | {names[against]} minus it: avg@64 | pass@16 | pass@64 | maj@16 |",
        "|---" * 12 + "|",
    ]
    start = runs.start["scores"][temperature]
    lines.append(
        "| before | 1 | "
        + " | ".join(f"{start[name]:.3f}" for name in metrics)
        + " |"
        + "  |" * len(compared)
    )
    for arm in shown:
        own = runs.scores(arm, temperature).values()
        cells = [str(len(own)), *(cell([scores[name] for scores in own]) for name in metrics)]
        for name in compared:
            gains = differences(runs, against, arm, name, temperature)
            cells.append("" if arm == against or not gains else cell(gains, signed=True))
        lines.append(f"| {names[arm]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def pass_table(runs: Runs, names: dict[str, str], shown: list[str], temperature: str = "1") -> str:
    """pass@k over k."""
    ks = ladder(runs.start[temperature]["samples"])
    lines = [
        f"| pass@k, temperature {temperature} | " + " | ".join(f"k = {k}" for k in ks) + " |",
        "|---" * (len(ks) + 1) + "|",
    ]
    start = runs.start["scores"][temperature]
    lines.append("| before | " + " | ".join(f"{start[f'pass@{k}']:.3f}" for k in ks) + " |")
    for arm in shown:
        own = runs.scores(arm, temperature).values()
        lines.append(
            f"| {names[arm]} | " + " | ".join(cell([s[f"pass@{k}"] for s in own]) for k in ks) + " |"
        )
    return "\n".join(lines)


def entropy_table(runs: Runs, names: dict[str, str], shown: list[str]) -> str:
    """Where the entropy and H went, and which part of the entropy is choice, after the last step."""
    lines = [
        "| method | entropy, first 20 steps | last 20 | H / H of the start | entropy at choices "
        "| probability of impossible tokens | thousands of sampled tokens |",
        "|---" * 7 + "|",
    ]
    parts = runs.start["entropy"]
    lines.append(
        f"| before |  |  | 1.00 | {parts['shares']['choice']:.3f} "
        f"| {parts['mass on impossible tokens']:.4f} |  |"
    )
    for arm in shown:
        results = [runs.at(arm, seed) for seed in runs.seeds(arm)]
        curves = [runs.curves[trained(arm)][seed] for seed in runs.seeds(arm)]
        of = lambda name: [curve[name] for curve in curves]  # noqa: E731, B023
        entropies, last = of("policy/entropy"), slice(-20, None)
        cells = [
            cell([float(np.mean(values[:20])) for values in entropies]),
            "" if arm == STOPPED else cell([float(np.mean(values[last])) for values in entropies]),
            cell([scores["H"] for scores in runs.scores(arm).values()]),
            cell([result["entropy"]["shares"]["choice"] for result in results]),
            f"{np.mean([result['entropy']['mass on impossible tokens'] for result in results]):.4f}",
            f"{np.mean([tokens_at(runs, arm, seed) for seed in runs.seeds(arm)]) / 1e3:.0f}",
        ]
        lines.append(f"| {names[arm]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def tokens_at(runs: Runs, arm: str, seed: str, step: int | None = None) -> int:
    """Tokens sampled for training until a step of a run (default: of its model in the tables)."""
    if step is None:
        step = runs.stopped(seed) if arm == STOPPED else max(runs.steps[arm][seed])
    curve = runs.curves[trained(arm)][seed]["rollout/tokens_total"]
    return int(curve[step - 1]) if step else 0


# --- along the run ------------------------------------------------------------------------------------------


def path_of(runs: Runs, arm: str, seed: str, name: str) -> dict[int, float]:
    """A test metric at temperature 1 at the start and after every fifth."""
    return {step: result["scores"]["1"][name] for step, result in runs.steps[arm][seed].items()}


def fifths_table(runs: Runs, names: dict[str, str], shown: list[str]) -> str:
    """avg@64 and pass@16 after every fifth of the steps."""
    steps = sorted(next(iter(runs.steps["dr_grpo"].values())))[1:]
    lines = [
        "| avg@64 / pass@16 after | " + " | ".join(f"{step} steps" for step in steps) + " |",
        "|---" * (len(steps) + 1) + "|",
    ]
    for arm in shown:
        cells = []
        for step in steps:
            means = [
                np.mean([path_of(runs, arm, seed, name)[step] for seed in runs.seeds(arm)])
                for name in ("avg", "pass@16")
            ]
            cells.append(" / ".join(f"{value:.3f}" for value in means))
        lines.append(f"| {names[arm]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def on_the_path(runs: Runs, seed: str, avg: float, name: str) -> float:
    """What Dr. GRPO has of a metric where, on its way, its avg@64 is first this large.

    Straight lines between the fifths. Beyond its largest avg@64 it is what it has there, before its first
    point what the starting model has.
    """
    avgs, values = path_of(runs, "dr_grpo", seed, "avg"), path_of(runs, "dr_grpo", seed, name)
    steps = sorted(avgs)
    for before, after in zip(steps, steps[1:]):
        if avgs[before] <= avg <= avgs[after]:
            part = (avg - avgs[before]) / (avgs[after] - avgs[before]) if avgs[after] > avgs[before] else 0.0
            return values[before] + part * (values[after] - values[before])
    return values[0] if avg < avgs[0] else values[max(steps, key=avgs.get)]


def gains_at_equal_avg(runs: Runs, arm: str, name: str) -> dict[str, float]:
    """Of every seed what an arm has more of a metric than Dr. GRPO had where it had as much avg@64."""
    gains = {}
    for seed, own in runs.scores(arm).items():
        if seed in runs.steps["dr_grpo"]:
            gains[seed] = own[name] - on_the_path(runs, seed, own["avg"], name)
    return gains


def frontier_table(runs: Runs, names: dict[str, str], shown: list[str]) -> str:
    """What a method keeps beyond stopping Dr. GRPO early: at equal avg@64, paired by seed."""
    metrics = ["pass@16", "pass@64", "maj@16"]
    lines = [
        "| at equal avg@64 | avg@64 | "
        + " | ".join(f"{name} minus that of Dr. GRPO on its way" for name in metrics)
        + " |",
        "|---" * (len(metrics) + 2) + "|",
    ]
    for arm in shown:
        gains = [gains_at_equal_avg(runs, arm, name) for name in metrics]
        own = runs.scores(arm)
        cells = [cell([own[seed]["avg"] for seed in gains[0]])]
        cells += [cell(list(gain.values()), signed=True) for gain in gains]
        lines.append(f"| {names[arm]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def equal_tokens_table(runs: Runs, names: dict[str, str], shown: list[str]) -> str:
    """avg@64 and pass@16 where all runs have sampled as many tokens as the one with the fewest."""
    fewest = min(tokens_at(runs, arm, seed) for arm in shown for seed in runs.seeds(arm))
    lines = [f"| after {fewest / 1e3:.0f} thousand tokens | avg@64 | pass@16 |", "|---" * 3 + "|"]
    for arm in shown:
        cells = []
        for name in ("avg", "pass@16"):
            values = []
            for seed in runs.seeds(arm):
                path = path_of(runs, arm, seed, name)
                tokens = [tokens_at(runs, arm, seed, step) for step in path]
                values.append(float(np.interp(fewest, tokens, list(path.values()))))
            cells.append(cell(values))
        lines.append(f"| {names[arm]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def tables(runs: Runs, names: dict[str, str], groups: dict[str, list[str]], against: str) -> dict[str, str]:
    """{block: table} of groups of arms, of those that have a finished run."""
    found = {}
    for group, arms in groups.items():
        shown = [arm for arm in arms if arm in runs.arms()]
        if not shown or against not in runs.arms():
            continue
        own_runs = [arm for arm in shown if arm == trained(arm)]
        found[f"{group} at 1"] = scores_table(runs, names, shown, "1", against)
        found[f"{group} at 0.6"] = scores_table(runs, names, shown, "0.6", against)
        found[f"{group} pass"] = pass_table(runs, names, shown)
        found[f"{group} entropy"] = entropy_table(runs, names, shown)
        found[f"{group} fifths"] = fifths_table(runs, names, own_runs)
        found[f"{group} frontier"] = frontier_table(runs, names, shown)
        found[f"{group} tokens"] = equal_tokens_table(runs, names, own_runs)
    return found
