"""How often eval.py's 95% intervals hold the true value: 2,000 simulated evaluations of each kind, no model.

    python benchmarks/coverage.py --out benchmarks/coverage.md

Every problem has its own probability of being solved, drawn from a beta distribution: "alike" problems
(concentration 10) or "split" ones, most of them nearly always or nearly never solved (concentration 0.5).
There are 16 samples of each, or one. In a paired comparison seven problems in ten are as hard for the second
model as for the first; the others are drawn anew with another mean.
"""

import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from plainrl.metrics import intervals, pass_at_k, too_narrow  # noqa: E402

MEANS = (0.01, 0.03, 0.1, 0.3, 0.5, 0.7, 0.9, 0.97, 0.99)
CONCENTRATIONS = {"alike": 10, "split": 0.5}
METRICS = ("avg@16", "avg@1", "pass@4", "avg@16, paired difference", "pass@4, paired difference")
SAMPLES = 16
PASS_AT_4 = np.array([pass_at_k(SAMPLES, correct, 4) for correct in range(SAMPLES + 1)])


@dataclass
class Args:
    evaluations: int = 2000
    """simulated evaluations of each kind"""
    problems: tuple[int, ...] = (30, 100, 500)
    """numbers of problems"""
    out: Path | None = None
    """also write the tables here"""


def true_value(metric: str, p: np.ndarray) -> np.ndarray:
    """What the metric is for problems that are solved with probability p."""
    return 1 - (1 - p) ** 4 if metric.startswith("pass@4") else p


def simulate(
    metric: str, concentration: float, mean: float, problems: int, evaluations: int
) -> tuple[float, float, float]:
    """Share of intervals that hold the true value, share that eval.py marks as too narrow, and the (first)
    model's true value.

    The truth is that of a million problems. With one sample of each problem nothing needs to be simulated:
    the number of right ones is binomial, and the shares are sums over all that it can be.
    """
    if metric == "avg@1":
        # [P, P+1]: an evaluation with 0, 1, ... P right ones in each column, and the chance of each [P+1].
        values = (np.arange(problems)[:, None] < np.arange(problems + 1)).astype(float)
        chance = np.array(
            [math.comb(problems, c) * mean**c * (1 - mean) ** (problems - c) for c in range(problems + 1)]
        )
        low, high = intervals(values, np.zeros(problems))
        held, marked = (low <= mean) & (mean <= high), np.array([too_narrow(column) for column in values.T])
        return float(chance[held].sum()), float(chance[marked].sum()), mean
    rng = np.random.default_rng([problems, int(1000 * mean), int(10 * concentration)])
    shape, paired = (problems, evaluations), metric.endswith("difference")
    # The mean of the problems that are drawn anew for the second model.
    other = mean + 0.1 if mean <= 0.5 else mean - 0.1

    def draw(mean, shape):
        return rng.beta(concentration * mean, concentration * (1 - mean), shape)

    def measured(p):
        correct = rng.binomial(SAMPLES, p)
        return PASS_AT_4[correct] if metric.startswith("pass@4") else correct / SAMPLES

    p = draw(mean, shape)
    values, first = measured(p), float(true_value(metric, draw(mean, 1_000_000)).mean())
    truth = first
    if paired:
        q = np.where(rng.random(shape) < 0.7, p, draw(other, shape))
        values, truth = (
            measured(q) - values,
            0.3 * (float(true_value(metric, draw(other, 1_000_000)).mean()) - first),
        )
    low, high = intervals(values, np.zeros(problems))
    marked = [too_narrow(column, paired) for column in values.T]
    return float(np.mean((low <= truth) & (truth <= high))), float(np.mean(marked)), first


def table(args: Args) -> str:
    head = [
        "true avg@16",
        *(
            title
            for kind in CONCENTRATIONS
            for title in (f"{kind}: true value", *(f"P={p}" for p in args.problems))
        ),
    ]
    lines = []
    for metric in METRICS:
        lines += [f"\n## {metric}\n", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
        for mean in MEANS:
            cells = [f"{mean:g}"]
            for concentration in CONCENTRATIONS.values():
                found = [
                    simulate(metric, concentration, mean, problems, args.evaluations)
                    for problems in args.problems
                ]
                cells.append(f"{found[0][2]:.3f}")
                cells += [
                    f"{held:.3f}" + (f" ({marked:.0%} marked)" if marked >= 0.005 else "")
                    for held, marked, _ in found
                ]
            lines.append(f"| {' | '.join(cells)} |")
            print(metric, lines[-1], flush=True)
    return "\n".join(lines) + "\n"


def held_range(text: str) -> str:
    """What docs/measuring.md says of the committed tables: the range from 100 problems on and for true values
    of .1 to .9."""
    held = []
    for line in text.splitlines():
        if line.startswith("| 0"):
            cells = line.strip("| ").split(" | ")
            for truth, *shares in (cells[1:5], cells[5:9]):
                held += [float(share.split()[0]) for share in shares[1:] if 0.1 <= float(truth) <= 0.9]
    return f"{min(held):.1%} to {max(held):.1%}"


def main(args: Args) -> None:
    text = table(args)
    if args.out:
        head = [
            "# Coverage of the 95% intervals of eval.py\n",
            f"{args.evaluations:,} simulated evaluations a cell (avg@1: exact); 0.95 is the aim. "
            "In brackets: the share of the intervals",
            "that eval.py itself marks. `python benchmarks/coverage.py --out benchmarks/coverage.md` makes "
            "this file.\n",
        ]
        args.out.write_text("\n".join(head) + text)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
