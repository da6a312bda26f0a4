"""Draws curves from metrics.jsonl files: one run, or the reference runs of the README with their spread over seeds.

    python plot.py runs/grpo/chain-seed0       curves.png in that folder
    python plot.py                             the README's figure and table, from runs/reference
"""

import json
from fnmatch import fnmatch
from pathlib import Path

import matplotlib
import numpy as np
import tyro

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

REFERENCE = Path(__file__).parent / "runs/reference"
T_975 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}  # Student's t, by seeds
PANELS = [  # title, metrics drawn in it
    ("reward of the sampled batch", ["reward/mean"]),
    ("held-out score", ["eval/*/avg@*", "eval/*/pass@*", "eval/*/maj@*"]),
    ("entropy (nats per token)", ["policy/entropy", "siren/entropy", "siren/anchor", "siren/nucleus_entropy"]),
    ("completion length (tokens)", ["rollout/len_mean"]),
    ("share of completions or groups", ["rollout/frac_unparsed", "rollout/frac_truncated", "reward/frac_zero_std", "siren/frac_selected"]),
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
    """{variant: [curves of a seed, ...]} of everything under runs/reference that ran on the embedded model's default task."""
    runs: dict[str, list[dict]] = {}
    for path in sorted(REFERENCE.glob("*/*/seed*/metrics.jsonl")):
        curves = read_metrics(path.parent)
        if "test/chain/avg@16" in curves:
            runs.setdefault("/".join(path.parts[-4:-2]), []).append(curves)
    return runs


def plot_reference() -> Path:
    """Held-out accuracy over sampled tokens and entropy over steps: mean over seeds, band: 95% interval."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for variant, seeds in reference_runs().items():
        for axis, name in zip(axes, ("eval/chain/avg@16", "policy/entropy")):
            steps = sorted(set.intersection(*(set(curves[name]) for curves in seeds)))
            values = np.array([[curves[name][step] for step in steps] for curves in seeds])  # [seeds, steps]
            x = np.array([[curves["rollout/tokens_total"].get(step, 0) for step in steps] for curves in seeds]).mean(0)
            mean, half = zip(*(mean_and_half_width(list(column)) for column in values.T))
            (line,) = axis.plot(x / 1e3, mean, label=f"{variant} ({len(seeds)} seeds)")
            axis.fill_between(x / 1e3, np.subtract(mean, half), np.add(mean, half), alpha=0.2, color=line.get_color())
    axes[0].set(title="dev avg@16, chain of 3 steps", xlabel="sampled tokens (thousands)", ylim=(0, 1))
    axes[1].set(title="policy entropy (nats per token)", xlabel="sampled tokens (thousands)")
    for axis in axes:
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.savefig(REFERENCE / "figure.png", dpi=110)
    plt.close(figure)
    return REFERENCE / "figure.png"


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
        for variant, seeds in reference_runs().items():
            print(f"{variant}: {reference_row(seeds)}")


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
