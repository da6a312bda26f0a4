"""Measures the embedded start models against what their worlds promise.

That is success by the number of steps, with and without the hint, the rare reading of the chain world, and
how much of countdown's solutions is possible at all. The output is committed as benchmarks/calibration.json
and calibration_countdown.json; a test re-checks the bounds.

    python benchmarks/calibration.py
    python benchmarks/calibration.py --world countdown
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from plainrl.countdown import CountdownTask  # noqa: E402
from plainrl.metrics import evaluate  # noqa: E402
from plainrl.models import eos_ids, keep_freed_memory, load_model, model_hash  # noqa: E402
from plainrl.sampler import HFSampler  # noqa: E402
from plainrl.world import ChainTask  # noqa: E402


@dataclass
class Args:
    world: Literal["chain", "countdown"] = "chain"
    """what to measure it on"""
    model: str | None = None
    """model to measure (default: the embedded one of the world)"""
    problems: int = 200
    """problems per row"""
    samples: int | None = None
    """completions per problem (default: 16 of a chain, 64 of countdown)"""
    out: Path | None = None
    """also write the table here as JSON"""


def measure(
    model, tokenizer, problems: int, samples: int, horizon: int, family: str, hint: bool, temperature: float
) -> dict:
    sampler = HFSampler(model, eos_ids(model, tokenizer))
    task = ChainTask(horizon=str(horizon), family=family)
    scores, rows = evaluate(sampler, tokenizer, task, "dev", problems, samples, 160, temperature, hint=hint)
    first = [row["correct"] for row in rows[:32]]  # for the test that samples these again
    case = {"horizon": horizon, "family": family, "hint": hint, "temperature": temperature}
    return case | scores | {"first": first}


def measure_countdown(
    model, tokenizer, problems: int, samples: int, numbers: int, hint: bool, temperature: float
) -> dict:
    sampler = HFSampler(model, eos_ids(model, tokenizer))
    settings = ("dev", problems, samples, 32, temperature)
    scores, rows = evaluate(sampler, tokenizer, CountdownTask(numbers), *settings, hint=hint)
    first = [row["correct"] for row in rows[:32]]
    return {"numbers": numbers, "hint": hint, "temperature": temperature} | scores | {"first": first}


def countdown_table(rows: list[dict]) -> str:
    """What docs/world.md shows of the countdown world."""
    lines = ["| numbers | hint | temperature | avg@64 | pass@64 | maj@64 | unparsed |", "|---" * 7 + "|"]
    for row in rows:
        if row["temperature"]:
            names = ("avg@64", "pass@64", "maj@64", "frac_unparsed")
            cells = [str(row["numbers"]), "yes" if row["hint"] else "no", f"{row['temperature']:g}"]
            lines.append(f"| {' | '.join([*cells, *(f'{row[name]:.3f}' for name in names)])} |")
    return "\n".join(lines)


def page_table(rows: list[dict]) -> str:
    """What docs/world.md shows of it."""
    lines = ["| steps | family | hint | avg@16 | pass@16 | unparsed |", "|---|---|---|---|---|---|"]
    for row in rows:
        if row["temperature"] == 1.0:
            scores = " | ".join(f"{row[name]:.3f}" for name in ("avg@16", "pass@16", "frac_unparsed"))
            hint = "yes" if row["hint"] else "no"
            lines.append(f"| {row['horizon']} | {row['family']} | {hint} | {scores} |")
    return "\n".join(lines)


def chain_rows(model, tokenizer, args: Args) -> Iterator[dict]:
    cases = [(h, "plain", False, 1.0) for h in range(1, 11)]
    cases += [(h, "plain", True, 1.0) for h in (5, 10)]
    cases += [(h, "reversed", hint, 1.0) for h in (1, 2, 3) for hint in (False, True)]
    cases += [(h, family, False, 0.0) for h in (1, 3) for family in ("plain", "reversed")]
    for *case, temperature in cases:
        samples = args.samples or 16 if temperature else 1
        yield measure(model, tokenizer, args.problems, samples, *case, temperature)


def countdown_rows(model, tokenizer, args: Args) -> Iterator[dict]:
    cases = [
        (3, False, 1.0),
        (3, False, 0.6),
        (3, True, 1.0),
        (4, False, 1.0),
        (4, True, 1.0),
        (3, False, 0.0),
    ]
    for *case, temperature in cases:
        samples = args.samples or 64 if temperature else 1
        yield measure_countdown(model, tokenizer, args.problems, samples, *case, temperature)


def main(args: Args) -> None:
    keep_freed_memory()
    start = {"chain": "models/tiny", "countdown": "models/countdown"}[args.world]
    model, tokenizer = load_model(args.model or start)
    of_world = {"chain": chain_rows, "countdown": countdown_rows}[args.world]
    rows = []
    for row in of_world(model, tokenizer, args):
        rows.append(
            {name: round(value, 4) if isinstance(value, float) else value for name, value in row.items()}
        )
        print("  ".join(f"{name} {value}" for name, value in rows[-1].items() if name != "first"), flush=True)
    if args.out:
        result = {"model_hash": model_hash(model), "problems": args.problems, "rows": rows}
        args.out.write_text(json.dumps(result, indent=1) + "\n")
        print((page_table if args.world == "chain" else countdown_table)(rows))


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
