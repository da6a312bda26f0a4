"""Pictures of your own runs: curves.png of a training run, pass@k of evaluations.

    python -m plainrl.curves runs/grpo/chain-seed0       draws curves.png in that folder again

Training scripts draw it at every evaluation and at the end, eval.py --plot calls `plot_bands`. matplotlib
takes 0.4 s to import, so it is imported where a picture begins. Figures are made without pyplot, which would
look for a screen and keep every figure in memory until it is closed.
"""

import json
import math
import sys
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

import numpy as np

# The palette of Okabe and Ito, which colour-blind readers can tell apart, without its yellow (too pale for a
# line).
BLUE, ORANGE, GREEN, VERMILLION, PURPLE = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7"
SKY_BLUE, BLACK = "#56B4E9", "#000000"
PALETTE = (BLUE, ORANGE, GREEN, VERMILLION, PURPLE, SKY_BLUE, BLACK)
MOST_LINES = 5  # in one panel; more are spread over several


class Panel(NamedTuple):
    """A panel of curves.png, and patterns of the metrics drawn in it. docs/metrics.md says what each metric
    is."""

    title: str
    ylabel: str
    metrics: list[str]


# A panel appears when the log has one of its metrics; a metric is drawn in the first panel that names it.
PANELS = [
    Panel("reward of the sampled batch", "mean reward", ["reward/mean"]),
    Panel("loss of the rows, learned and held out", "nats per token", ["*/loss"]),
    Panel("likeliest token is the right one", "share of tokens", ["*/accuracy"]),
    Panel("held-out accuracy by horizon", "share right", ["eval/*-h[0-9]*/avg@*"]),
    Panel(
        "held-out score",
        "score on dev",
        ["eval/*/score", "eval/*/avg@*", "eval/*/pass@*", "eval/*/maj@*"],
    ),
    Panel("entropy", "nats per token", ["*/entropy", "siren/anchor", "siren/nucleus_entropy"]),
    Panel("completion length", "tokens", ["rollout/len_mean"]),
    Panel("shares", "share", ["rollout/frac_unparsed", "rollout/frac_truncated", "reward/frac_zero_std"]),
    Panel("gradient norm", "norm", ["optim/grad_norm"]),
    Panel("KL to the starting model", "nats per token", ["policy/kl_ref"]),
    # Sampling in rounds: dapo, guide.
    Panel("rounds of sampling", "rounds", ["*/rounds"]),
    Panel("groups with right and wrong completions", "share of groups", ["dapo/frac_kept"]),
    # Entropy: siren and the bonus papers.
    Panel(
        "tokens that the method singles out",
        "share of tokens",
        ["siren/frac_selected", "*/frac_dropped", "*/frac_penalised", "*/frac_touched"],
    ),
    Panel("entropy bonus", "weight", ["*/weight", "*/bonus"]),
    # Sets of k completions: passk, srpo.
    Panel("sets of k completions", "share", ["passk/group_pass@k", "passk/frac_no_bonus"]),
    # A verifier that rewards: general_reasoner.
    Panel("verifier: says yes, and is right", "share", ["verifier/yes_rate", "verifier/right"]),
    Panel("verifier: errors", "share", ["verifier/false_yes", "verifier/false_no", "verifier/undecided"]),
    # A decomposer and its solver: daslam.
    Panel("parts of the reward", "mean of an episode", [f"daslam/r{i}" for i in range(1, 6)]),
    Panel("sub-questions", "of an episode", ["daslam/subquestions"]),
    Panel("questions that the solver answers alone", "share", ["daslam/solved"]),
    Panel("the solver's calls", "in a step", ["solver/calls"]),
    Panel("the solver's tokens", "in a step", ["solver/tokens"]),
    # Two models whose logits are added: unir.
    Panel("KL to the frozen model", "nats per token", ["unir/kl_frozen"]),
    Panel("reasoner's logits", "std over the vocabulary", ["unir/spread"]),
    # Pairs: dto.
    Panel("pairs: how likely a token is", "nats per token", ["dto/logp_chosen", "dto/logp_rejected"]),
    Panel("pairs: beta times the difference", "nats", ["dto/margin"]),
    # Thoughts before every token: quiet_star.
    Panel("next token without and with a thought", "nats per token", ["nll/base", "nll/mixed"]),
    Panel("reward of thoughts", "nats", ["quiet/reward_mean"]),
    Panel(
        "thoughts: weight in the mixing, and share that helps",
        "share",
        ["quiet/gate_mean", "quiet/frac_positive"],
    ),
    # Hints: guide.
    Panel("hints: groups, and right completions", "share", ["guide/frac_guided", "guide/guided_success"]),
    Panel("ratios of guided tokens", "plain over hinted prompt", ["guide/ratio_q*", "guide/gamma"]),
    Panel("hints: problems", "problems", ["guide/without_hint", "guide/first_solved"]),
    # Horizons: h1, and the schedules it is compared with.
    Panel("horizon of the sampled problems", "steps of the chain", ["*/horizon"]),
    Panel("reward by horizon", "mean reward", ["*/reward_*"]),
    Panel("target difficulty", "0 to 100", ["*/target"]),
]
NOT_DRAWN = {"h1/stage", "h1/stage_tokens"}  # h1/horizon shows the stages
NOT_DRAWN |= {"sft/tokens_total", "sft/tokens_seen", "sft/rows_total", "sft/epoch"}  # they count
NOT_DRAWN |= {"quiet/forward_tokens"}
NOT_A_METHOD = {"reward", "rollout", "policy", "loss", "optim", "time", "perf", "eval", "test"}


def read_metrics(run: Path) -> dict[str, dict[int, float]]:
    """metrics.jsonl of a run -> {metric: {step: value}}. A last line that a kill cut short is left out.

    Raises ValueError for any other line that is no record.
    """
    records, lines = [], (run / "metrics.jsonl").read_text().splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            if number == len(lines):
                break
            raise ValueError(f"{run / 'metrics.jsonl'}: line {number} is no JSON record") from None
    return curves_of(records)


def curves_of(records: list[dict]) -> dict[str, dict[int, float]]:
    """Records of metrics.jsonl -> {metric: {step: value}}, of the values that are numbers."""
    curves: dict[str, dict[int, float]] = {}
    for record in records:
        for name, value in record.items():
            if name != "step" and is_number(value) and is_number(record.get("step")):
                curves.setdefault(name, {})[record["step"]] = value
    return curves


def is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def worth_drawing(curves: dict[str, dict[int, float]]) -> list[str]:
    """The metrics of a run, less the scores on dev that are avg@k all along, as they are where an answer is
    right or wrong and nothing between."""
    right = [curves[name] for name in curves if fnmatchcase(name, "eval/*/avg@*")]
    return [name for name in curves if not (fnmatchcase(name, "eval/*/score") and curves[name] in right)]


def panels_of(metrics: list[str]) -> list[Panel]:
    """The panels for these metrics, by name instead of by pattern, with at most five lines each. A metric of
    a method that no panel names has one of its own."""
    found, left = [], list(metrics)
    for panel in PANELS:
        names = [name for name in left if any(fnmatchcase(name, pattern) for pattern in panel.metrics)]
        left = [name for name in left if name not in names]
        for first in range(0, len(names), MOST_LINES):
            found.append(panel._replace(metrics=names[first : first + MOST_LINES]))
    own = [name for name in left if name.split("/")[0] not in NOT_A_METHOD and name not in NOT_DRAWN]
    return found + [Panel(name, "", [name]) for name in own]


def plot_run(run: Path) -> Path:
    """Draw a run's curves into curves.png of its folder, and return the picture's path."""
    curves = read_metrics(run)
    panels = panels_of(worth_drawing(curves))
    columns = 3 if len(panels) <= 9 else 4
    figure, axes = new_figure(max(1, math.ceil(len(panels) / columns)), columns, heading=str(run))
    for axis, panel in zip(axes, panels):
        for name in panel.metrics:
            points = curves[name]
            marker = "o" if len(points) < 15 else None
            axis.plot(
                list(points), list(points.values()), label=name, linewidth=1.2, marker=marker, markersize=3
            )
        axis.locator_params(nbins=5)  # few ticks: most of the drawing time goes into their labels
        finish_axis(axis, panel.title, "step", panel.ylabel)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    return save_figure(figure, run / "curves.png")


def plot_bands(curves: dict[str, tuple], path: Path, xlabel: str, ylabel: str, title: str) -> None:
    """{label: (x, middle, low, high)} -> lines with bands; x grows by powers of two. An end that is None
    leaves a gap."""
    figure, (axis,) = new_figure(rows=1, columns=1, width=7, height=4.5)
    for label, (x, middle, low, high) in curves.items():
        (line,) = axis.plot(x, middle, label=label, marker="o" if len(x) < 15 else None, markersize=3)
        low, high = np.array(low, dtype=float), np.array(high, dtype=float)
        axis.fill_between(x, low, high, alpha=0.2, color=line.get_color(), linewidth=0)
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter("{x:g}")
    finish_axis(axis, title, xlabel, ylabel)
    save_figure(figure, path)


# --- parts of a picture -------------------------------------------------------------------------------------


def new_figure(
    rows: int, columns: int, width: float = 4.4, height: float = 3.1, heading: str = "", names: float = 0.0
):
    """A figure and the list of its panels, row by row. Width and height of a panel with its labels are in
    inches, and so is `names`, the room left of all panels for what long ticks are called.

    The margins are set by hand: a layout engine would draw everything twice.
    """
    from matplotlib.figure import Figure

    top = 0.3 if heading else 0.0
    total_width, total_height = names + columns * width, rows * height + top
    left, right, bottom, above = 0.65, 0.1, 0.5, 0.3  # inches round a panel, for its labels and its title
    figure = Figure(figsize=(total_width, total_height))
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    figure.subplots_adjust(
        left=(names + left) / total_width,
        right=1 - right / total_width,
        wspace=(left + right) / (width - left - right),
        bottom=bottom / total_height,
        top=1 - (above + top) / total_height,
        hspace=(bottom + above) / (height - bottom - above),
    )
    figure.text(0.5, 1 - 0.1 / total_height, heading, ha="center", va="top", fontsize=11)
    for axis in axes:
        style_axis(axis)
    return figure, axes


def style_axis(axis) -> None:
    """The palette, and a grid behind the lines."""
    from cycler import cycler

    axis.set_prop_cycle(cycler(linestyle=["-", "--"]) * cycler(color=PALETTE))
    axis.grid(alpha=0.3)
    axis.set_axisbelow(True)


def finish_axis(axis, title: str, xlabel: str, ylabel: str, legend: bool = True) -> None:
    """Labels, and a legend of the lines that have a name."""
    axis.set_title(title, fontsize=10)
    axis.set_xlabel(xlabel, fontsize=9)
    axis.set_ylabel(ylabel, fontsize=9)
    axis.tick_params(labelsize=8)
    if legend and axis.get_legend_handles_labels()[1]:
        axis.legend(fontsize=7, framealpha=0.7)


def save_figure(figure, path: Path) -> Path:
    """Write aside, then rename: who looks at the picture of a run that goes on never finds half of it."""
    aside = path.with_name(path.name + ".tmp")
    figure.savefig(aside, dpi=110, format="png")
    aside.replace(path)
    return path


def main(runs: list[str]) -> None:
    from plainrl.screen import fail, say

    if not runs:
        fail("give the folder of a run: python -m plainrl.curves runs/grpo/chain-seed0")
    for run in runs:
        if not (Path(run) / "metrics.jsonl").is_file():
            fail(f"{run}: has no metrics.jsonl; give the folder of a training run")
        say(f"{plot_run(Path(run))}")


if __name__ == "__main__":
    main(sys.argv[1:])
