"""Draws curves from metrics.jsonl files: one run, or the reference runs of the README with their spread over seeds.

    python plot.py runs/grpo/chain-seed0       curves.png in that folder
    python plot.py                             the README's figures and first table, from runs/reference
"""

import json
import math
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import tyro

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

REFERENCE = Path(__file__).parent / "runs/reference"
ENTROPY_METHODS = {"dr_grpo": "Dr. GRPO", "siren": "SIREN", "naive_bonus": "naive bonus", "adaptive_bonus": "adaptive bonus",
                   "entropy_advantage": "entropy advantage", "high_entropy_tokens": "80/20 tokens", "clip_cov": "Clip-Cov",
                   "kl_cov": "KL-Cov"}  # fmt: skip
STRONG = {"siren_strong": "SIREN, beta 0.1", "naive_bonus_strong": "naive bonus, 0.03"}  # coefficients that matter, whatever they cost
HARD_ARMS = {"grpo": "GRPO", "filter": "Filter-GRPO", "guide": "Guide", "no_correction": "Guide, no correction",
             "always": "Guide, always", "joined": "Guide, joined groups"}  # fmt: skip
NEAR_ARMS = {"grpo_near": "GRPO", "guide_near": "Guide", "no_correction_near": "Guide, no correction"}
SCHEDULES = {"only_short": "only short", "only_long": "only long", "uniform_mix": "uniform mix", "curriculum": "curriculum",
             "adarft": "AdaRFT", "e2h_cosine": "E2H, cosine", "e2h_gaussian": "E2H, Gaussian"}  # fmt: skip
REACHED = 0.5  # accuracy at which a horizon counts as learned
T_975 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}  # Student's t, by seeds
PANELS = [  # title, metrics drawn in it
    ("reward of the sampled batch", ["reward/mean"]),
    ("held-out score", ["eval/*/avg@*", "eval/*/pass@*", "eval/*/maj@*"]),
    ("entropy (nats per token)", ["policy/entropy", "siren/entropy", "siren/anchor", "siren/nucleus_entropy"]),
    ("completion length (tokens)", ["rollout/len_mean"]),
    ("shares", ["rollout/frac_unparsed", "rollout/frac_truncated", "reward/frac_zero_std", "siren/frac_selected"]),
    ("gradient norm", ["optim/grad_norm"]),
]


def read_metrics(run: Path) -> dict[str, dict[int, float]]:
    """metrics.jsonl -> {metric: {step: value}}"""
    curves: dict[str, dict[int, float]] = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        for name, value in record.items():
            if name != "step" and value is not None:
                curves.setdefault(name, {})[record["step"]] = value
    return curves


def plot_run(run: Path) -> Path:
    """Draw one run's curves into curves.png."""
    curves = read_metrics(run)
    figure, axes = plt.subplots(2, 3, figsize=(13, 6.5), layout="constrained")
    for axis, (title, patterns) in zip(axes.flat, PANELS):
        for name, points in curves.items():
            if any(fnmatch(name, pattern) for pattern in patterns):
                axis.plot(list(points), list(points.values()), label=name, marker="o" if len(points) < 15 else None, markersize=3)
        axis.set(title=title, xlabel="step")
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend(fontsize=7)
    figure.suptitle(str(run))
    figure.savefig(run / "curves.png", dpi=110)
    plt.close(figure)
    return run / "curves.png"


def plot_bands(curves: dict[str, tuple], path: Path, xlabel: str, ylabel: str, title: str) -> None:
    """{label: (x, middle, low, high)} -> lines with bands; x grows by powers of two. An end that is None leaves a gap."""
    figure, axis = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for label, (x, middle, low, high) in curves.items():
        (line,) = axis.plot(x, middle, label=label, marker="o" if len(x) < 15 else None, markersize=3)
        low, high = np.array(low, dtype=float), np.array(high, dtype=float)
        axis.fill_between(x, low, high, alpha=0.2, color=line.get_color())
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter("{x:g}")
    axis.set(title=title, xlabel=xlabel, ylabel=ylabel)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def mean_and_half_width(values: list[float]) -> tuple[float, float]:
    """Mean over seeds and half of its 95% t interval (nan with one seed)."""
    half = T_975[len(values)] * np.std(values, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else float("nan")
    return float(np.mean(values)), float(half)


def reference_runs() -> dict[str, list[dict]]:
    """{variant: [curves of a seed, ...]} of grpo.py and dapo.py under runs/reference, on the embedded model's default task."""
    runs: dict[str, list[dict]] = {}
    for path in sorted([*REFERENCE.glob("dapo/*/seed*/metrics.jsonl"), *REFERENCE.glob("grpo/*/seed*/metrics.jsonl")]):
        if json.loads(path.with_name("config.json").read_text())["flags"]["task"] == "chain":
            runs.setdefault("/".join(path.parts[-4:-2]), []).append(read_metrics(path.parent))
    return runs


def scores(curve: dict[int, float], every: int = 20) -> list[tuple[int, float]]:
    """(step, score) in order. The closing score is taken at the step that used up the token budget: where it comes soon after the
    one before it, it is left out, so that all runs of an arm have the same number of scores."""
    points = sorted(curve.items())
    return points[:-1] if len(points) > 1 and points[-1][0] - points[-2][0] < every / 2 else points


def draw_band(axis, x: list[float], values: list[list[float]], **style) -> None:
    """Mean over seeds with its 95% interval, both of the logarithms on a log axis: x [points], values [seeds, points]."""
    there, back = (np.log, np.exp) if axis.get_yscale() == "log" else (np.asarray, np.asarray)
    mean, half = (np.array(part) for part in zip(*(mean_and_half_width(list(column)) for column in there(values).T)))
    (line,) = axis.plot(x, back(mean), **style)
    axis.fill_between(x, back(mean - half), back(mean + half), alpha=0.15, color=line.get_color(), linewidth=0)


def plot_reference() -> Path:
    """Held-out accuracy over sampled tokens and entropy over steps: mean over seeds, band: 95% interval."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for variant, seeds in reference_runs().items():
        for axis, name in zip(axes, ("eval/chain/avg@16", "policy/entropy")):
            steps = sorted(set.intersection(*(set(curves[name]) for curves in seeds)))
            x = np.mean([[curves["rollout/tokens_total"].get(step, 0) / 1e3 for step in steps] for curves in seeds], axis=0)
            values = [[curves[name][step] for step in steps] for curves in seeds]
            draw_band(axis, x, values, label=f"{variant} ({len(seeds)} seeds)")
    axes[0].set(title="dev avg@16, chain of 3 steps", ylim=(0, 1))
    axes[1].set(title="policy entropy (nats per token)")
    return finish(figure, axes, REFERENCE / "figure.png")


def h_over_anchor(curves: dict[str, dict[int, float]]) -> list[float]:
    """H / H_anchor of every step of a run of siren.py, in their order."""
    return [H / curves["siren/anchor"][step] for step, H in sorted(curves["siren/entropy"].items())]


def plot_entropy_methods() -> Path:
    """What keeps the entropy, and does it pay? The methods of benchmarks/entropy.py: entropy and H / H_anchor (means of five steps),
    avg@16, pass@16. Dashed: coefficients that matter, whatever they cost."""
    figure, axes = plt.subplots(2, 2, figsize=(13, 8.5), layout="constrained")
    axes = list(axes.flat)
    axes[0].set(title="policy entropy (nats per token)", yscale="log", ylim=(0.02, 5))
    for name, label in (ENTROPY_METHODS | STRONG).items():
        seeds = [read_metrics(path.parent) for path in sorted(REFERENCE.glob(f"entropy/{name}/seed*/metrics.jsonl"))]
        if not seeds:
            continue
        base = name.removesuffix("_strong")
        style = dict(label=label, color=f"C{list(ENTROPY_METHODS).index(base)}", linewidth=2.5 if base == "siren" else 1.2,
                     linestyle="--" if name in STRONG else "-")  # fmt: skip
        steps = min(max(curves["rollout/tokens_total"]) for curves in seeds) // 5 * 5
        fives = lambda values, steps=steps: np.nanmean(np.array(values[:steps], dtype=float).reshape(-1, 5), axis=1)  # noqa: E731
        in_order = lambda curve, steps=steps: [curve.get(step, np.nan) for step in range(1, steps + 1)]  # noqa: E731
        x = np.mean([fives(in_order(curves["rollout/tokens_total"])) / 1e3 for curves in seeds], axis=0)
        draw_band(axes[0], x, [fives(in_order(curves["policy/entropy"])) for curves in seeds], **style)
        if "siren/anchor" in seeds[0]:
            draw_band(axes[1], x, [fives(h_over_anchor(curves)) for curves in seeds], **style)
        for axis, metric in zip((axes[2], axes[3]), ("eval/chain/avg@16", "eval/chain/pass@16")):
            points = [scores(curves[metric]) for curves in seeds]
            points = [row[: min(map(len, points))] for row in points]
            tokens = [[curves["rollout/tokens_total"].get(step, 0) / 1e3 for step, _ in row] for curves, row in zip(seeds, points)]
            draw_band(axis, np.mean(tokens, axis=0), [[value for _, value in row] for row in points], **style)
    axes[1].set(title="H / H_anchor: what SIREN holds (Dr. GRPO: without holding it)", ylim=(0, None))
    axes[2].set(title="dev avg@16", ylim=(0, 1))
    axes[3].set(title="dev pass@16", ylim=(0, 1))
    return finish(figure, axes, REFERENCE / "entropy.png")


def plot_hard_chains() -> Path:
    """Solved share of the problems of benchmarks/hard_chains.py over sampled tokens, those with a hint included. Arms score dev at
    different numbers of tokens, so curves are interpolated."""
    figure, axes = plt.subplots(1, 3, figsize=(17, 4.5), layout="constrained")
    panels = [(HARD_ARMS, "pass@16", "dev pass@16, chains of 7"), (HARD_ARMS, "avg@16", "dev avg@16, chains of 7"),
              (NEAR_ARMS, "pass@16", "dev pass@16, chains of 4 with a rare reading")]  # fmt: skip
    for axis, (arms, metric, title) in zip(axes, panels):
        for name, label in arms.items():
            seeds = [read_metrics(path.parent) for path in sorted(REFERENCE.glob(f"hard_chains/{name}/seed*/metrics.jsonl"))]
            if not seeds:
                continue
            grid, values = over_tokens(seeds, f"eval/chain/{metric}")
            color = f"C{list(HARD_ARMS.values()).index(label)}"
            draw_band(axis, grid / 1e3, values, label=label, color=color, linewidth=2.5 if label == "Guide" else 1.2)
        axis.set(title=title, ylim=(0, None))
    return finish(figure, axes, REFERENCE / "hard_chains.png")


def plot_horizons() -> Path:
    """The schedules of benchmarks/horizons.py: accuracy by horizon after the last step (dotted: p^h), held-out accuracy over sampled
    tokens, and the reward of the sampled batch, which says little where the schedules sample different horizons."""
    figure, axes = plt.subplots(1, 3, figsize=(17, 4.5), layout="constrained")
    axes[0].set(title="test accuracy by number of steps (trained up to 5)", xlabel="steps", ylim=(0, 1))
    rate = lambda test: [np.mean(test[h]["correct"]) / (16 if int(h) <= 5 else 128) for h in test]  # noqa: E731
    axes[1].set(title="dev accuracy, mean of 1 to 5 steps", ylim=(0, 1))
    axes[2].set(title="reward of the sampled batch, whatever its horizons", ylim=(0, 1))
    axes[0].axvspan(5.5, 8.2, color="0.93", zorder=0)
    axes[0].text(6.85, 0.04, "never trained on", ha="center", fontsize=8)
    axes[0].plot([], [], ":", color="0.5", linewidth=1, label="$p^h$ of the same color")
    for color, (name, label) in enumerate(SCHEDULES.items()):
        folders = [path.parent for path in sorted(REFERENCE.glob(f"horizons/{name}/seed*/test.json"))]
        if not folders:
            continue
        style = dict(label=label, color=f"C{color}", linewidth=2.5 if name == "curriculum" else 1.2)
        tests = [json.loads((folder / "test.json").read_text()) for folder in folders]
        horizons, rates = [int(h) for h in tests[0]], [rate(test) for test in tests]
        draw_band(axes[0], horizons, rates, **style)
        axes[0].plot(horizons, np.mean(np.array(rates)[:, :1] ** horizons, axis=0), ":", color=style["color"], linewidth=1)
        seeds = [read_metrics(folder) for folder in folders]
        for axis, metric in ((axes[1], "eval/chain/avg@8"), (axes[2], "reward/mean")):
            grid, values = over_tokens(seeds, metric)
            draw_band(axis, grid / 1e3, values, **style)
    before = json.loads((REFERENCE / "horizons/tiny.json").read_text())
    axes[0].plot([int(h) for h in before], rate(before), "k--", linewidth=1, label="before")
    return finish(figure, axes, REFERENCE / "horizons.png")


def plot_reach() -> Path:
    """Sampled tokens until a horizon is learned, on a log scale: a line through the geometric means of the seeds that learned it, a
    point for each seed, an open triangle at the end of a run that never did."""
    figure, axis = plt.subplots(figsize=(6.5, 4.2), layout="constrained")
    for title, horizons in tokens_to_learn(REFERENCE / "horizons", range(1, 7)).items():
        learned = {h: [run.tokens for run in seeds.values() if run.learned] for h, seeds in horizons.items()}
        (line,) = axis.plot(list(learned), [geometric_mean(seeds) / 1e3 for seeds in learned.values()], label=title)
        for h, seeds in horizons.items():
            for run in seeds.values():
                axis.plot(h, run.tokens / 1e3, "o" if run.learned else "^", color=line.get_color(), markersize=4 if run.learned else 8,
                          fillstyle="full" if run.learned else "none")  # fmt: skip
    axis.plot([], [], "k^", fillstyle="none", markersize=8, linestyle="none", label="not learned by then")
    axis.set(title=f"until half of the dev problems are right (avg@8 = {REACHED})", xlabel="steps of the chain", yscale="log",
             ylabel="sampled tokens (thousands)")  # fmt: skip
    return finish(figure, [axis], REFERENCE / "reach.png")


class Learned(NamedTuple):
    """Tokens that a run sampled until a horizon was learned; if it never was, until its end."""

    tokens: float
    learned: bool


def tokens_to_learn(out: Path, horizons: Iterable[int], reached: float = REACHED) -> dict[str, dict[int, dict[str, Learned]]]:
    """{training: {horizon: {seed: tokens until the first dev score of at least `reached`}}}, of the runs on one horizon alone and of the
    curriculum through all of them."""
    found: dict[str, dict[int, dict[str, Learned]]] = {}
    for title, folder in (("on this horizon alone", "direct_h{}"), ("by the curriculum", "ladder")):
        for h in horizons:
            files = sorted(out.glob(f"{folder.format(h)}/seed*/metrics.jsonl"))
            found.setdefault(title, {})[h] = {file.parent.name: tokens_until(read_metrics(file.parent), h, reached) for file in files}
    return found


def tokens_until(curves: dict[str, dict[int, float]], horizon: int, reached: float) -> Learned:
    tokens = {0: 0.0} | curves["rollout/tokens_total"]
    steps = [step for step, value in sorted(curves[f"eval/chain-h{horizon}/avg@8"].items()) if value >= reached]
    return Learned(tokens[steps[0]], True) if steps else Learned(max(tokens.values()), False)


def geometric_mean(values: list[float]) -> float:
    return float(np.exp(np.mean(np.log(values)))) if values else math.nan


def over_tokens(seeds: list[dict], metric: str, points: int = 13) -> tuple[np.ndarray, list[np.ndarray]]:
    """A metric at the same numbers of sampled tokens for all seeds, interpolated: grid [points], one row a seed."""
    tokens = [{0: 0.0} | curves["rollout/tokens_total"] for curves in seeds]
    grid = np.linspace(0, min(max(each.values()) for each in tokens), points)
    steps = [sorted(curves[metric]) for curves in seeds]
    return grid, [np.interp(grid, [each[step] for step in own], [curves[metric][step] for step in own])
                  for each, curves, own in zip(tokens, seeds, steps)]  # fmt: skip


def finish(figure, axes, path: Path) -> Path:
    """What the figures over sampled tokens have in common."""
    for axis in axes:
        axis.set(xlabel=axis.get_xlabel() or "sampled tokens (thousands)")
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def reference_row(seeds: list[dict]) -> str:
    """A variant's cells in the README's table: scores on test before -> after, mean over seeds +- 95% interval, and minutes."""
    cells = [str(len(seeds))]
    for name in ("avg@16", "pass@16", "frac_unparsed"):
        curves = [run[f"test/chain/{name}"] for run in seeds]
        before = np.mean([curve[min(curve)] for curve in curves])
        after, half = mean_and_half_width([curve[max(curve)] for curve in curves])
        cells.append(f"{before:.3f} → {after:.3f}" + (f" ± {half:.3f}" if name == "avg@16" else ""))
    seconds = [sum(sum(values.values()) for name, values in run.items() if name.startswith("time/")) for run in seeds]
    return " | ".join([*cells, f"{np.mean(seconds) / 60:.1f}"])


def main(runs: tyro.conf.Positional[tuple[Path, ...]] = ()) -> None:
    for run in runs:
        print(plot_run(run))
    if not runs:
        print(plot_reference())
        print(plot_entropy_methods())
        print(plot_hard_chains())
        print(plot_horizons())
        print(plot_reach())
        for variant, seeds in reference_runs().items():
            print(f"{variant}: {reference_row(seeds)}")


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
