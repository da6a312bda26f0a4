"""Draws this repository's own figures from the logs under runs/reference, and computes table rows from them.

    python benchmarks/figures.py        every figure, and the rows of the first table

Lines are means over seeds with their 95% interval. Where the runs of a method split in two, a band would hide
it: there the single seeds are thin lines. Every panel has at most five methods.
"""

import json
import math
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import mpmath
import numpy as np
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from plainrl.curves import (  # noqa: E402
    BLACK,
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    SKY_BLUE,
    VERMILLION,
    finish_axis,
    new_figure,
    read_metrics,
    save_figure,
)

REFERENCE = Path(__file__).resolve().parents[1] / "runs/reference"
TOKENS = "sampled tokens (thousands)"

VARIANTS = {"grpo/grpo": "GRPO", "grpo/dr_grpo": "Dr. GRPO", "dapo/dapo": "DAPO"}
ENTROPY_METHODS = {
    "dr_grpo": "Dr. GRPO",
    "siren": "SIREN",
    "naive_bonus": "naive bonus",
    "adaptive_bonus": "adaptive bonus",
    "entropy_advantage": "entropy advantage",
    "high_entropy_tokens": "80/20 tokens",
    "clip_cov": "Clip-Cov",
    "kl_cov": "KL-Cov",
}
STRONG = {  # coefficients that matter, whatever they cost
    "siren_strong": "SIREN, beta 0.1",
    "naive_bonus_strong": "naive bonus, 0.03",
}
HARD_ARMS = {
    "grpo": "GRPO",
    "filter": "Filter-GRPO",
    "guide": "Guide",
    "no_correction": "Guide, no correction",
    "always": "Guide, always",
    "joined": "Guide, joined groups",
}
NEAR_ARMS = {"grpo_near": "GRPO", "guide_near": "Guide", "no_correction_near": "Guide, no correction"}
SCHEDULES = {
    "only_short": "only short",
    "only_long": "only long",
    "uniform_mix": "uniform mix",
    "curriculum": "curriculum",
    "adarft": "AdaRFT",
    "e2h_cosine": "E2H, cosine",
    "e2h_gaussian": "E2H, Gaussian",
}
REACHED = 0.5  # accuracy at which a horizon counts as learned
STUDENT = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262]
T_975 = dict(enumerate(STUDENT, start=2))  # Student's 97.5% quantile, by the number of seeds


# --- numbers from the logs ----------------------------------------------------------------------------------


def mean_and_half_width(values: list[float]) -> tuple[float, float]:
    """Mean over seeds and half of its 95% t interval (nan with one seed)."""
    if len(values) == 1:
        return float(values[0]), math.nan
    half = T_975[len(values)] * np.std(values, ddof=1) / np.sqrt(len(values))
    return float(np.mean(values)), float(half)


def p_value(values: list[float]) -> float:
    """Two-sided p of Student's t test that the mean of paired differences is 0."""
    n, spread = len(values), np.std(values, ddof=1)
    if spread == 0:
        return 1.0 if np.mean(values) == 0 else 0.0
    t, freedom = np.mean(values) / spread * math.sqrt(n), n - 1
    tail = mpmath.betainc(freedom / 2, 0.5, 0, freedom / (freedom + t**2), regularized=True)
    return float(tail)


def holm(p_values: dict[str, float]) -> dict[str, float]:
    """Holm's correction: p values that may each be compared with 0.05, and share one error of 5%.

    The smallest is multiplied by their number, the next by one less, and so on; none is below one before it.

    >>> {name: round(p, 3) for name, p in holm({"a": 0.04, "b": 0.01, "c": 0.03}).items()}
    {'a': 0.06, 'b': 0.03, 'c': 0.06}
    """
    corrected, least = {}, 0.0
    for rank, name in enumerate(sorted(p_values, key=p_values.get)):
        least = max(least, min(1.0, p_values[name] * (len(p_values) - rank)))
        corrected[name] = least
    return {name: corrected[name] for name in p_values}


def geometric_mean(values: list[float]) -> float:
    return float(np.exp(np.mean(np.log(values)))) if values else math.nan


def read_seeds(arm: str) -> list[dict]:
    """The curves of every seed of an arm, e.g. entropy/siren. Empty where there are no logs."""
    return [read_metrics(file.parent) for file in sorted(REFERENCE.glob(f"{arm}/seed*/metrics.jsonl"))]


def reference_runs() -> dict[str, list[dict]]:
    """{variant: [curves of a seed, ...]} of GRPO, Dr. GRPO and DAPO on the embedded model's default task."""
    runs: dict[str, list[dict]] = {}
    files = [*REFERENCE.glob("dapo/*/seed*/metrics.jsonl"), *REFERENCE.glob("grpo/*/seed*/metrics.jsonl")]
    for path in sorted(files):
        if json.loads(path.with_name("config.json").read_text())["flags"]["task"] == "chain":
            runs.setdefault("/".join(path.parts[-4:-2]), []).append(read_metrics(path.parent))
    return runs


def reference_row(seeds: list[dict]) -> str:
    """A variant's cells in the first table: test scores before -> after, mean over seeds ± 95% interval,
    minutes."""
    cells = [str(len(seeds))]
    for name in ("avg@16", "pass@16", "frac_unparsed"):
        curves = [run[f"test/chain/{name}"] for run in seeds]
        before = np.mean([curve[min(curve)] for curve in curves])
        after, half = mean_and_half_width([curve[max(curve)] for curve in curves])
        cells.append(f"{before:.3f} → {after:.3f}" + (f" ± {half:.3f}" if name == "avg@16" else ""))
    names = ("time/rollout", "time/train", "time/sync")  # without the scores
    timed = [[run[name] for name in names if name in run] for run in seeds]
    seconds = [sum(sum(curve.values()) for curve in curves) for curves in timed]
    return " | ".join([*cells, f"{np.mean(seconds) / 60:.1f}"])


def scores(curve: dict[int, float], every: int = 20) -> list[tuple[int, float]]:
    """(step, score) in order.

    The closing score is taken at the step that used up the token budget. Where it comes soon after the one
    before it, it is left out, so that all runs of an arm have the same number of scores.
    """
    points = sorted(curve.items())
    if len(points) > 1 and points[-1][0] - points[-2][0] < every / 2:
        return points[:-1]
    return points


def h_over_anchor(curves: dict[str, dict[int, float]]) -> list[float]:
    """H / H_anchor of every step of a run of siren.py, in their order."""
    return [H / curves["siren/anchor"][step] for step, H in sorted(curves["siren/entropy"].items())]


def over_tokens(seeds: list[dict], metric: str, points: int = 13) -> tuple[np.ndarray, list[np.ndarray]]:
    """A metric at the same numbers of sampled tokens for all seeds, interpolated: grid [points], a row a
    seed."""
    tokens = [{0: 0.0} | curves["rollout/tokens_total"] for curves in seeds]
    grid = np.linspace(0, min(max(each.values()) for each in tokens), points)
    rows = []
    for each, curves in zip(tokens, seeds):
        steps = sorted(curves[metric])
        rows.append(np.interp(grid, [each[step] for step in steps], [curves[metric][step] for step in steps]))
    return grid, rows


class Learned(NamedTuple):
    """Tokens that a run sampled until a horizon was learned; if it never was, until its end."""

    tokens: float
    learned: bool


def tokens_to_learn(
    out: Path, horizons: Iterable[int], reached: float = REACHED
) -> dict[str, dict[int, dict[str, Learned]]]:
    """{training: {horizon: {seed: tokens until the first dev score of at least `reached`}}}, of the runs on
    one horizon alone and of the curriculum through all of them."""
    found: dict[str, dict[int, dict[str, Learned]]] = {}
    for title, folder in (("on this horizon alone", "direct_h{}"), ("by the curriculum", "ladder")):
        for h in horizons:
            files = sorted(out.glob(f"{folder.format(h)}/seed*/metrics.jsonl"))
            runs = {file.parent.name: tokens_until(read_metrics(file.parent), h, reached) for file in files}
            found.setdefault(title, {})[h] = runs
    return found


def tokens_until(curves: dict[str, dict[int, float]], horizon: int, reached: float) -> Learned:
    tokens = {0: 0.0} | curves["rollout/tokens_total"]
    dev = sorted(curves[f"eval/chain-h{horizon}/avg@8"].items())
    steps = [step for step, value in dev if value >= reached]
    return Learned(tokens[steps[0]], True) if steps else Learned(max(tokens.values()), False)


# --- the figures --------------------------------------------------------------------------------------------


class Style(NamedTuple):
    """How a method is drawn: the same in all panels of a figure."""

    label: str
    color: str
    width: float = 1.4
    seeds: bool = False  # single seeds as thin lines instead of a band: the runs split in two


def draw(axis, x, rows, style: Style) -> None:
    """One method: the mean over seeds, with its 95% interval or with the single seeds.

    x [points], rows [seeds, points]. On a log axis mean and interval are those of the logarithms.
    """
    rows, log = np.asarray(rows), axis.get_yscale() == "log"
    values = np.log(rows) if log else rows
    mean, half = (np.array(part) for part in zip(*(mean_and_half_width(list(column)) for column in values.T)))
    back = np.exp if log else np.asarray
    label = style.label + " (thin: its seeds)" * style.seeds
    axis.plot(x, back(mean), "-", label=label, color=style.color, linewidth=style.width)
    if style.seeds:
        for row in rows:
            axis.plot(x, row, "-", color=style.color, linewidth=0.6, alpha=0.6)
    else:
        axis.fill_between(x, back(mean - half), back(mean + half), alpha=0.15, color=style.color, linewidth=0)


VARIANT_STYLES = {
    "grpo/grpo": Style(VARIANTS["grpo/grpo"], BLUE),
    "grpo/dr_grpo": Style(VARIANTS["grpo/dr_grpo"], ORANGE),
    "dapo/dapo": Style(VARIANTS["dapo/dapo"], GREEN),
}


def log_axis(axis, ticks: list[float]) -> None:
    """A log scale with plain numbers beside it."""
    axis.set_yscale("log")
    axis.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.set_yticks([], minor=True)


def plot_reference() -> Path:
    """Held-out accuracy and entropy over sampled tokens, of the scripts without a paper's own idea."""
    figure, axes = new_figure(rows=1, columns=2, width=5.2, height=3.8)
    for variant, seeds in reference_runs().items():
        style = VARIANT_STYLES[variant]
        for axis, name in zip(axes, ("eval/chain/avg@16", "policy/entropy")):
            steps = sorted(set.intersection(*(set(curves[name]) for curves in seeds)))
            rows = [[curves[name][step] for step in steps] for curves in seeds]
            draw(axis, tokens_at(steps, seeds), rows, style)
    axes[0].set_ylim(0, 1)
    axes[1].set_ylim(0, None)
    finish_axis(axes[0], "held-out accuracy, chains of 3 steps", TOKENS, "dev avg@16")
    finish_axis(axes[1], "policy entropy", TOKENS, "nats per token")
    return save_figure(figure, REFERENCE / "figure.png")


ENTROPY_STYLES = {
    "dr_grpo": Style(ENTROPY_METHODS["dr_grpo"], BLACK),
    "siren": Style(ENTROPY_METHODS["siren"], BLUE, width=2.2),
    "naive_bonus": Style(ENTROPY_METHODS["naive_bonus"], ORANGE),
    "adaptive_bonus": Style(ENTROPY_METHODS["adaptive_bonus"], GREEN),
    "entropy_advantage": Style(ENTROPY_METHODS["entropy_advantage"], VERMILLION),
    "high_entropy_tokens": Style(ENTROPY_METHODS["high_entropy_tokens"], ORANGE),
    "clip_cov": Style(ENTROPY_METHODS["clip_cov"], VERMILLION),
    "kl_cov": Style(ENTROPY_METHODS["kl_cov"], GREEN),
    "siren_strong": Style(STRONG["siren_strong"], SKY_BLUE, width=2.2, seeds=True),
    "naive_bonus_strong": Style(STRONG["naive_bonus_strong"], ORANGE, seeds=True),
}
ENTROPY_GROUPS = {  # methods beside Dr. GRPO and SIREN; limits of the panels of entropy, avg@16 and pass@16
    "bonus, shaped advantage": (
        ["naive_bonus", "adaptive_bonus", "entropy_advantage"],
        [(0.02, 0.3), (0.3, 0.9), (0.8, 1)],
    ),
    "choice of tokens": (
        ["high_entropy_tokens", "clip_cov", "kl_cov"],
        [(0.02, 0.3), (0.3, 0.9), (0.8, 1)],
    ),
    "strong coefficients": (
        ["siren_strong", "naive_bonus_strong"],
        [(0.02, 15), (0, 1), (0, 1)],
    ),
}


def plot_entropy_methods() -> Path:
    """What keeps the entropy, and does it pay? The methods of benchmarks/entropy.py, one group a row.

    Columns: entropy (means of five steps), avg@16 and pass@16 on dev, and what SIREN holds, H / H_anchor.
    """
    figure, axes = new_figure(rows=len(ENTROPY_GROUPS), columns=4, width=4.1, height=3.2)
    for row, (group, (members, limits)) in enumerate(ENTROPY_GROUPS.items()):
        entropy, avg, coverage, last = axes[4 * row : 4 * row + 4]
        log_axis(entropy, [0.02, 0.05, 0.1, 0.2, 0.5, 1, 2])
        for axis, (low, high) in zip((entropy, avg, coverage), limits):
            axis.set_ylim(low, high)
        for name in ("dr_grpo", "siren", *members):
            seeds, style = read_seeds(f"entropy/{name}"), ENTROPY_STYLES[name]
            if not seeds:
                continue
            steps = common_steps(seeds)
            totals = [means_of_five(curves["rollout/tokens_total"], steps) for curves in seeds]
            x = np.mean(totals, axis=0) / 1e3
            draw(entropy, x, [means_of_five(curves["policy/entropy"], steps) for curves in seeds], style)
            draw(avg, *at_the_scores(seeds, "eval/chain/avg@16"), style)
            draw(coverage, *at_the_scores(seeds, "eval/chain/pass@16"), style)
            if "siren_strong" in members and "siren/anchor" in seeds[0]:
                held = [dict(enumerate(h_over_anchor(curves), start=1)) for curves in seeds]
                draw(last, x, [means_of_five(curve, steps) for curve in held], style)
        finish_axis(entropy, f"{group}: policy entropy", TOKENS, "nats per token", legend=bool(last.lines))
        finish_axis(avg, "held-out accuracy", TOKENS, "dev avg@16", legend=False)
        finish_axis(coverage, "held-out coverage", TOKENS, "dev pass@16", legend=False)
        if last.lines:
            last.set_ylim(0, None)
            finish_axis(last, "what SIREN holds", TOKENS, "H / H_anchor")
        else:  # room for a legend that covers no line
            last.set_axis_off()
            last.legend(*entropy.get_legend_handles_labels(), loc="center left", fontsize=9, title=group)
    return save_figure(figure, REFERENCE / "entropy.png")


def common_steps(seeds: list[dict]) -> int:
    """How many steps all seeds have, in whole fives."""
    return min(max(curves["rollout/tokens_total"]) for curves in seeds) // 5 * 5


def means_of_five(curve: dict[int, float], steps: int) -> np.ndarray:
    """Means of the steps 1 to 5, 6 to 10, ... [steps / 5]; a step without a number is left out."""
    values = np.array([curve.get(step, np.nan) for step in range(1, steps + 1)], dtype=float)
    return np.nanmean(values.reshape(-1, 5), axis=1)


def tokens_at(steps: list[int], seeds: list[dict]) -> np.ndarray:
    """Thousands of tokens sampled by these steps, mean over seeds."""
    totals = [curves["rollout/tokens_total"] for curves in seeds]
    return np.mean([[total.get(step, 0) / 1e3 for step in steps] for total in totals], axis=0)


def at_the_scores(seeds: list[dict], metric: str) -> tuple[np.ndarray, list[list[float]]]:
    """Sampled tokens [points] and scores [seeds, points], as many as the run with the fewest has."""
    points = [scores(curves[metric]) for curves in seeds]
    fewest = min(map(len, points))
    tokens = [tokens_at([step for step, _ in row[:fewest]], [curves]) for row, curves in zip(points, seeds)]
    return np.mean(tokens, axis=0), [[value for _, value in row[:fewest]] for row in points]


HARD_STYLES = {
    "grpo": Style(HARD_ARMS["grpo"], BLACK, seeds=True),
    "filter": Style(HARD_ARMS["filter"], ORANGE),
    "guide": Style(HARD_ARMS["guide"], BLUE, width=2.2),
    "no_correction": Style(HARD_ARMS["no_correction"], VERMILLION),
    "always": Style(HARD_ARMS["always"], GREEN),
    "joined": Style(HARD_ARMS["joined"], PURPLE),
}
HARD_PANELS = {  # title: arms; those on chains of 4 are drawn like the arms that they are named after
    "chains of 7": ["grpo", "filter", "guide"],
    "chains of 7, parts of Guide": ["guide", "no_correction", "always", "joined"],
    "chains of 4 with a rare reading": list(NEAR_ARMS),
}


def plot_hard_chains() -> Path:
    """Solved share of the problems of benchmarks/hard_chains.py over sampled tokens, those with a hint
    included. Arms score dev at different numbers of tokens, so curves are interpolated."""
    figure, axes = new_figure(rows=2, columns=3, width=4.8, height=3.4)
    for row, metric in enumerate(("pass@16", "avg@16")):
        for axis, (title, arms) in zip(axes[3 * row : 3 * row + 3], HARD_PANELS.items()):
            for arm in arms:
                seeds = read_seeds(f"hard_chains/{arm}")
                if seeds:
                    grid, rows = over_tokens(seeds, f"eval/chain/{metric}")
                    draw(axis, grid / 1e3, rows, HARD_STYLES[arm.removesuffix("_near")])
            axis.set_ylim(0, None)
            finish_axis(axis, title, TOKENS, f"dev {metric}", legend=row == 0)
    return save_figure(figure, REFERENCE / "hard_chains.png")


SCHEDULE_STYLES = {
    "only_short": Style(SCHEDULES["only_short"], ORANGE),
    "only_long": Style(SCHEDULES["only_long"], VERMILLION, seeds=True),
    "uniform_mix": Style(SCHEDULES["uniform_mix"], GREEN),
    "curriculum": Style(SCHEDULES["curriculum"], BLUE, width=2.2),
    "adarft": Style(SCHEDULES["adarft"], ORANGE),
    "e2h_cosine": Style(SCHEDULES["e2h_cosine"], GREEN),
    "e2h_gaussian": Style(SCHEDULES["e2h_gaussian"], VERMILLION),
}
SCHEDULE_GROUPS = {  # the curriculum beside three others each
    "fixed mixtures": ["only_short", "only_long", "uniform_mix", "curriculum"],
    "other curricula": ["adarft", "e2h_cosine", "e2h_gaussian", "curriculum"],
}


def plot_horizons() -> Path:
    """The schedules of benchmarks/horizons.py, one group a row: accuracy by horizon after the last step,
    held-out accuracy over sampled tokens, and the reward of the sampled batch, which says little where
    schedules sample different horizons."""
    figure, axes = new_figure(rows=len(SCHEDULE_GROUPS), columns=3, width=4.8, height=3.4)
    for row, (group, schedules) in enumerate(SCHEDULE_GROUPS.items()):
        by_horizon, dev, reward = axes[3 * row : 3 * row + 3]
        by_horizon.axvspan(5.5, 8.2, color="0.93", zorder=0)
        by_horizon.text(6.85, 0.04, "never trained on", ha="center", fontsize=8)
        for name in schedules:
            style = SCHEDULE_STYLES[name]
            folders = [path.parent for path in sorted(REFERENCE.glob(f"horizons/{name}/seed*/test.json"))]
            if not folders:
                continue
            tests = [json.loads((folder / "test.json").read_text()) for folder in folders]
            horizons, rates = [int(h) for h in tests[0]], [rates_by_horizon(test) for test in tests]
            draw(by_horizon, horizons, rates, style)
            if name == "curriculum" and row == 1:  # the first row shows the starting model instead
                expected = np.mean(np.array(rates)[:, :1] ** horizons, axis=0)
                by_horizon.plot(horizons, expected, ":", color=style.color, linewidth=1, label="its $p^h$")
            seeds = [read_metrics(folder) for folder in folders]
            for axis, metric in ((dev, "eval/chain/avg@8"), (reward, "reward/mean")):
                grid, values = over_tokens(seeds, metric)
                draw(axis, grid / 1e3, values, style)
        if row == 0:
            before = json.loads((REFERENCE / "horizons/tiny.json").read_text())
            rates = rates_by_horizon(before)
            by_horizon.plot([int(h) for h in before], rates, "--", color=BLACK, linewidth=1, label="before")
        for axis in (by_horizon, dev, reward):
            axis.set_ylim(0, 1)
        title = f"{group}: by horizon (trained up to 5)"
        finish_axis(by_horizon, title, "steps of the chain", "test accuracy")
        finish_axis(dev, f"{group}: 1 to 5 steps", TOKENS, "dev avg@8", legend=False)
        finish_axis(reward, f"{group}: the sampled batch", TOKENS, "mean reward", legend=False)
    return save_figure(figure, REFERENCE / "horizons.png")


def rates_by_horizon(test: dict) -> list[float]:
    """Share of right completions at each horizon of a test.json: of 16 samples, beyond 5 steps of 128."""
    return [np.mean(test[h]["correct"]) / (16 if int(h) <= 5 else 128) for h in test]


def plot_reach() -> Path:
    """Sampled tokens until a horizon is learned, on a log scale: a line through the geometric means of the
    seeds that learned it, a point for each seed, an open triangle at the end of a run that never did."""
    figure, (axis,) = new_figure(rows=1, columns=1, width=6.5, height=4.2)
    log_axis(axis, [10, 20, 50, 100, 200, 500, 1000])
    point = dict(marker="o", markersize=4)
    never = dict(marker="^", markersize=8, fillstyle="none", linestyle="none")
    found = tokens_to_learn(REFERENCE / "horizons", range(1, 7))
    for (title, horizons), color in zip(found.items(), (ORANGE, BLUE)):
        learned = {h: [run.tokens for run in seeds.values() if run.learned] for h, seeds in horizons.items()}
        means = [geometric_mean(tokens) / 1e3 for tokens in learned.values()]
        axis.plot(list(learned), means, "-", color=color, label=title)
        for h, seeds in horizons.items():
            for run in seeds.values():
                axis.plot(h, run.tokens / 1e3, color=color, **(point if run.learned else never))
    axis.plot([], [], color=BLACK, label="not learned by then", **never)
    title = f"until half of the dev problems are right (avg@8 = {REACHED})"
    finish_axis(axis, title, "steps of the chain", TOKENS)
    return save_figure(figure, REFERENCE / "reach.png")


def main() -> None:
    for plot in (plot_reference, plot_entropy_methods, plot_hard_chains, plot_horizons, plot_reach):
        print(plot())
    for variant, seeds in reference_runs().items():
        print(f"{variant}: {reference_row(seeds)}")


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
