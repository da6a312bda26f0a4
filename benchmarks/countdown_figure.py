"""The figure of benchmarks/countdown.py: what is kept and paid, where the entropy is, what explodes."""

from pathlib import Path

import numpy as np

from benchmarks.countdown_tables import STOPPED, Runs, path_of
from benchmarks.figures import Style, draw, log_axis
from plainrl.curves import (
    BLACK,
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    SKY_BLUE,
    VERMILLION,
    finish_axis,
    new_figure,
    save_figure,
)
from plainrl.metrics import ladder

REACH = {"dr_grpo": BLACK, STOPPED: GREEN, "siren": BLUE, "siren_0.3": SKY_BLUE}
PATHS = {
    "dr_grpo": BLACK,
    "siren": BLUE,
    "naive_bonus_0.01": ORANGE,
    "entropy_advantage": VERMILLION,
    "kl_cov": PURPLE,
}
SPLIT = {"dr_grpo": BLACK, "siren": BLUE}
BONUSES = {
    "dr_grpo": BLACK,
    "siren": BLUE,
    "naive_bonus": GREEN,
    "naive_bonus_0.01": ORANGE,
    "naive_bonus_0.05": VERMILLION,
}


def draw_reach(axis, runs: Runs, names: dict[str, str]) -> None:
    """pass@k over k."""
    ks = ladder(runs.start["1"]["samples"])
    start = runs.start["scores"]["1"]
    axis.plot(ks, [start[f"pass@{k}"] for k in ks], "--", color=BLACK, linewidth=1, label="before")
    for arm, color in REACH.items():
        if arm in runs.arms():
            own = runs.scores(arm).values()
            draw(axis, ks, [[scores[f"pass@{k}"] for k in ks] for scores in own], Style(names[arm], color))
    axis.set_xscale("log", base=2)
    axis.set_xticks(ks, [str(k) for k in ks])
    finish_axis(axis, "what is within reach", "k", "test pass@k")


def draw_frontier(axis, runs: Runs, names: dict[str, str]) -> None:
    """avg@64 against pass@16 from the start through every fifth of the steps, means over seeds."""
    for arm, color in PATHS.items():
        if arm in runs.arms():
            paths = [
                [list(path_of(runs, arm, seed, name).values()) for name in ("avg", "pass@16")]
                for seed in runs.seeds(arm)
            ]
            avg, reach = np.mean(paths, axis=0)  # [points] each
            axis.plot(avg, reach, "o-", color=color, markersize=3, linewidth=1.4, label=names[arm])
    finish_axis(axis, "what it costs: one path a method, a point every fifth", "test avg@64", "test pass@16")


def draw_roles(axis, runs: Runs, names: dict[str, str]) -> None:
    """Entropy at choices, and on impossible tokens or after an error, over steps."""
    for arm, color in SPLIT.items():
        if arm not in runs.arms():
            continue
        for style, label, parts in (
            ("-", "choices", ("choice",)),
            (":", "errors", ("impossible tokens", "after an error")),
        ):
            rows = []
            for seed in runs.seeds(arm):
                found = [result["entropy"] for result in runs.steps[arm][seed].values()]
                rows.append([each["entropy"] * sum(each["shares"][p] for p in parts) for each in found])
            steps = list(runs.steps[arm][runs.seeds(arm)[0]])
            axis.plot(steps, np.mean(rows, axis=0), style, color=color, label=f"{names[arm]}: {label}")
    axis.set_ylim(0, None)
    finish_axis(axis, "where the entropy is", "step", "nats per token")


def draw_bonuses(axis, runs: Runs, names: dict[str, str]) -> None:
    """Entropy over steps, means of five, on a log axis."""
    log_axis(axis, [0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5])
    for arm, color in BONUSES.items():
        if arm in runs.arms():
            entropies = np.array([curves["policy/entropy"] for curves in runs.curves[arm].values()])
            count = entropies.shape[1] // 5 * 5
            means = entropies[:, :count].reshape(len(entropies), -1, 5).mean(axis=2)  # [seeds, count / 5]
            draw(
                axis,
                np.arange(3, count + 1, 5),
                np.maximum(means, 1e-3),
                Style(names[arm], color, seeds=True),
            )
    finish_axis(axis, "too large a bonus explodes", "step", "entropy, nats per token")


def plot_countdown(runs: Runs, names: dict[str, str], path: Path) -> Path:
    figure, axes = new_figure(rows=2, columns=2, width=5.4, height=3.9)
    for axis, panel in zip(axes, (draw_reach, draw_frontier, draw_roles, draw_bonuses)):
        panel(axis, runs, names)
    return save_figure(figure, path)
