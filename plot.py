"""Draws curves from metrics.jsonl files: one run, or the reference runs of the README with their spread over seeds.

    python plot.py runs/grpo/chain-seed0       curves.png in that folder
    python plot.py                             every figure of the README, from runs/reference
"""

import json
from pathlib import Path

import matplotlib
import tyro

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

PANELS = [  # title, metrics drawn in it
    ("reward of the sampled batch", ["reward/mean"]),
    ("held-out score", ["eval/*/avg@*", "eval/*/pass@*", "eval/*/maj@*"]),
    ("entropy (nats per token)", ["policy/entropy"]),
    ("completion length (tokens)", ["rollout/len_mean"]),
    ("share of completions or groups", ["rollout/frac_unparsed", "rollout/frac_truncated", "reward/frac_zero_std"]),
    ("gradient norm", ["optim/grad_norm"]),
]


def read_metrics(run: Path) -> dict[str, list[tuple[int, float]]]:
    """metrics.jsonl -> {metric: [(step, value), ...]}"""
    curves: dict[str, list[tuple[int, float]]] = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        for name, value in record.items():
            if name != "step" and value is not None:
                curves.setdefault(name, []).append((record["step"], value))
    return curves


def plot_run(run: Path) -> Path:
    """Draw one run's curves into curves.png."""
    curves = read_metrics(run)
    figure, axes = plt.subplots(2, 3, figsize=(13, 6.5), layout="constrained")
    for axis, (title, patterns) in zip(axes.flat, PANELS):
        for name in curves:
            if any(Path(name).match(pattern) for pattern in patterns):
                steps, values = zip(*curves[name])
                axis.plot(steps, values, label=name, marker="o" if len(steps) < 15 else None, markersize=3)
        axis.set(title=title, xlabel="step")
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend(fontsize=7)
    figure.suptitle(str(run))
    figure.savefig(run / "curves.png", dpi=110)
    plt.close(figure)
    return run / "curves.png"


if __name__ == "__main__":
    for run in tyro.cli(tyro.conf.Positional[list[Path]], description=__doc__):
        print(plot_run(run))
