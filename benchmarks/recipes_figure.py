"""One figure for a comparison of benchmarks/recipes.py: every arm on every measured task."""

from pathlib import Path

import numpy as np

from benchmarks.figures import mean_and_half_width
from plainrl.curves import BLACK, BLUE, finish_axis, new_figure, save_figure

NAMES_WIDTH = 2.6  # inches, left of the panels


def plot_arms(experiment, runs: dict[str, dict[str, dict]], path: Path) -> Path:
    """A panel a task. Small dots are seeds, the large one is their mean with its 95% interval; the dashed
    line is the model before training."""
    arms = [arm for arm in experiment.arms if arm in runs]
    tasks = list(experiment.measured)
    height = 0.9 + 0.3 * len(arms)
    figure, axes = new_figure(rows=1, columns=len(tasks), width=3.3, height=height, names=NAMES_WIDTH)
    for axis, task in zip(axes, tasks):
        draw_task(axis, [scores_of_seeds(runs[arm], task) for arm in arms])
        if "before" in runs:
            before = np.mean(scores_of_seeds(runs["before"], task))
            axis.axvline(before, color=BLACK, linestyle="--", linewidth=1, label="before")
        finish_axis(axis, task, f"test avg@{experiment.measured[task][1]}", "")
        axis.set_yticks(range(len(arms)), [""] * len(arms))
    axes[0].set_yticks(range(len(arms)), [experiment.names[arm] for arm in arms])
    return save_figure(figure, path)


def scores_of_seeds(seeds: dict[str, dict], task: str) -> list[float]:
    return [scores[task]["avg"] for scores in seeds.values()]


def draw_task(axis, rows: list[list[float]]) -> None:
    """`rows` has the scores of every arm's seeds; the first arm is at the top."""
    for place, values in enumerate(rows):
        mean, half = mean_and_half_width(values)
        axis.plot(values, [place] * len(values), "o", color=BLUE, alpha=0.4, markersize=3)
        axis.errorbar(mean, place, xerr=half, fmt="o", color=BLUE, markersize=7, capsize=3)
    axis.set_ylim(len(rows) - 0.5, -0.5)
