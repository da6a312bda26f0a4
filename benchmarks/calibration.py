"""Measures the embedded base model against what its world promises.

That is success by horizon, with and without the hint, and the rare reading. The output is committed as
benchmarks/calibration.json; a test re-checks the bounds.

    python benchmarks/calibration.py --model models/tiny
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from plainrl.metrics import evaluate  # noqa: E402
from plainrl.models import eos_ids, keep_freed_memory, load_model, model_hash  # noqa: E402
from plainrl.sampler import HFSampler  # noqa: E402
from plainrl.world import ChainTask  # noqa: E402


@dataclass
class Args:
    model: str = "models/tiny"
    """model to measure"""
    problems: int = 200
    """problems per row"""
    samples: int = 16
    """completions per problem"""
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


def page_table(rows: list[dict]) -> str:
    """What docs/world.md shows of it."""
    lines = ["| steps | family | hint | avg@16 | pass@16 | unparsed |", "|---|---|---|---|---|---|"]
    for row in rows:
        if row["temperature"] == 1.0:
            scores = " | ".join(f"{row[name]:.3f}" for name in ("avg@16", "pass@16", "frac_unparsed"))
            hint = "yes" if row["hint"] else "no"
            lines.append(f"| {row['horizon']} | {row['family']} | {hint} | {scores} |")
    return "\n".join(lines)


def main(args: Args) -> None:
    keep_freed_memory()
    model, tokenizer = load_model(args.model)
    cases = [(h, "plain", False, 1.0) for h in range(1, 11)]
    cases += [(h, "plain", True, 1.0) for h in (5, 10)]
    cases += [(h, "reversed", hint, 1.0) for h in (1, 2, 3) for hint in (False, True)]
    cases += [(h, family, False, 0.0) for h in (1, 3) for family in ("plain", "reversed")]
    rows = []
    for horizon, family, hint, temperature in cases:
        samples = args.samples if temperature else 1
        row = measure(model, tokenizer, args.problems, samples, horizon, family, hint, temperature)
        numbers = {name: value for name, value in row.items() if isinstance(value, float)}
        rows.append(row | {name: round(value, 4) for name, value in numbers.items()})
        shown = "  ".join(f"{name} {numbers[name]:6.3f}" for name in numbers if name != "temperature")
        case = f"horizon {horizon:2d}  {family:8s}  {'hint ' if hint else 'plain'}  T={temperature:g}"
        print(f"{case}  {shown}", flush=True)
    if args.out:
        result = {"problems": args.problems, "samples": args.samples, "rows": rows}
        result = {"model_hash": model_hash(model)} | result
        args.out.write_text(json.dumps(result, indent=1) + "\n")
        print(page_table(rows))


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
