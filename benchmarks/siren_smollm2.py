"""SmolLM2-135M-Instruct with SIREN and with Dr. GRPO, on the task of benchmarks/real_model.py.

Both have the same seed, problems in the same order, and number of sampled tokens. Then both, and the model
they started from, are measured on 200 problems they never saw.

    python benchmarks/siren_smollm2.py --model runs/SmolLM2-135M-Instruct

(`tools/convert_gguf.py` makes that folder once.) What is finished is skipped and a broken run resumed, so the
same command goes on after an interruption.
"""

import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks.arms import RealModelArgs, measure_model, train_arms  # noqa: E402
from benchmarks.real_model import COMMON, TRAIN  # noqa: E402
from eval import cell  # noqa: E402
from plainrl.curves import read_metrics  # noqa: E402

ARMS = {
    "dr_grpo": ["siren.py", "--beta", "0"],
    "siren": ["siren.py"],
}  # beta 0: Dr. GRPO; else the authors' 0.005
BUDGET = TRAIN.replace("--steps 60", "--steps 1000 --token-budget 20000 --save-every 5").split()


@dataclass
class Args(RealModelArgs):
    out: Path = ROOT / "runs/siren_smollm2"
    """where the logs are collected (the committed ones are in runs/reference/siren_smollm2)"""


def page_table(out: Path) -> str:
    """What docs/siren.md shows of the logs and the comparison."""
    comparison = json.loads((out / "comparison.json").read_text())["rows"][-1]["metrics"]
    start = json.loads((out / "start.json").read_text())
    curves = {arm: read_metrics(next((out / arm).glob("seed*"))) for arm in ARMS}
    lines = ["| | before | Dr. GRPO | SIREN | SIREN minus Dr. GRPO (95% interval) |", "|---|---|---|---|---|"]
    for name, before in start.items():
        entry, name = comparison[name], name.removeprefix("frac_")
        values = f"{before:.3f} | {entry['before']:.3f} | {entry['after']:.3f}"
        lines.append(f"| {name} | {values} | {cell(entry, signed=True)} |")
    for title, name in (("entropy", "policy/entropy"), ("H (anchor {:.2f})", "siren/entropy")):
        title = title.format(next(iter(curves["siren"]["siren/anchor"].values())))
        values = {arm: [curve[name][step] for step in sorted(curve[name])] for arm, curve in curves.items()}
        ends = [f"{sum(values[arm][-10:]) / 10:.3f}" for arm in ARMS]
        lines.append(f"| {title}, last ten steps | {values['siren'][0]:.3f} | {ends[0]} | {ends[1]} | |")
    return "\n".join(lines)


def main(args: Args) -> None:
    dr_grpo, siren = train_arms(args, ARMS, [*COMMON, *BUDGET]).values()
    started = measure_model(args, os.path.relpath(args.model, ROOT), "start", COMMON)
    compared = measure_model(args, siren, "siren", [*COMMON, "--baseline", dr_grpo])
    shutil.copy(next(compared.glob("against-*.json")), args.out / "comparison.json")
    start = json.loads((started / "results.json").read_text())["rows"][-1]["metrics"]
    names = [f"{name}@{args.samples}" for name in ("avg", "pass", "maj")] + ["frac_unparsed"]
    (args.out / "start.json").write_text(
        json.dumps({name: start[name]["value"] for name in names}, indent=1) + "\n"
    )
    print(page_table(args.out))


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
