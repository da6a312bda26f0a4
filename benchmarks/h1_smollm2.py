"""SmolLM2-135M-Instruct on chains of small sums, worded as h1 does: the curriculum over one, two and three
steps, and three steps from the start, with the same seed and number of sampled tokens; then both, and the
model they started from, on chains they never saw, of one step to five.

    python benchmarks/h1_smollm2.py --model runs/SmolLM2-135M-Instruct

(`tools/convert_gguf.py` makes that folder once.) What is finished is skipped and a broken run resumed, so
the same command goes on after an interruption.
"""

import json
import os
import random
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks.arms import RealModelArgs, measure_model, train_arms  # noqa: E402
from benchmarks.smollm2 import after_examples  # noqa: E402
from eval import cell  # noqa: E402
from plainrl.chains import compose  # noqa: E402
from plainrl.folder import write_text  # noqa: E402
from plainrl.tasks import Problem  # noqa: E402

LONGEST, MEASURED = 3, 5  # horizons: trained on, and measured
SCHEDULE = f"h1_curriculum.py --max-horizon {LONGEST} --schedule"
ARMS = {
    "only_long": [*SCHEDULE.split(), "only_long"],
    "curriculum": [*SCHEDULE.split(), "curriculum", "--steps-per-stage", "5"],
}
BUDGET = (
    "--token-budget 30000 --steps 1000 --prompts-per-step 8 --group-size 8 --lr 1e-5 --eval-every 5 "
    "--eval-problems 30 --eval-samples 4 --test-problems 3 --save-every 5 --micro-batch-tokens 2048"
).split()
SUMS = [
    Problem(
        f"What is {a} {sign} {b}?", str(answer), template=f"What is {{x}} {sign} {b}?", program=f"x{sign}{b}"
    )
    for a in range(2, 10)
    for b in range(2, 10)
    for sign, answer in (("+", a + b), ("-", a - b))
    if answer >= 2
]


def chains(horizon: int, count: int, seed: int) -> list[Problem]:
    """Different chains whose every number is from 2 to 30, each with its worked solution."""
    rng, found = random.Random(f"{seed}/{horizon}"), {}
    while len(found) < count:
        problem = compose(SUMS, horizon, rng, style="h1", limit=30)
        found[problem.prompt] = problem
    return list(found.values())


EXAMPLES = [chains(horizon, 1, seed=99)[0] for horizon in (1, 2)]
SYSTEM = after_examples(
    "You solve problems step by step and give the final answer in \\boxed{}.",
    *((example.prompt, example.solution) for example in EXAMPLES),
)
COMMON = ["--system-prompt", SYSTEM, "--max-new-tokens", "80", "--temperature", "0.7"]


@dataclass
class Args(RealModelArgs):
    problems: int = 1000
    """test problems of all horizons together, at most; there are some 230"""
    out: Path = ROOT / "runs/h1_smollm2"
    """where the logs are collected (the committed ones are in runs/reference/h1_smollm2)"""


def write_chains(file: Path) -> None:
    """One {"prompt", "answer", "horizon", "split"} a line, without the examples of the system turn."""
    shown, rows = {example.prompt for example in EXAMPLES}, []
    for horizon in range(1, MEASURED + 1):
        known = len(SUMS) if horizon == 1 else 400
        fresh = [problem for problem in chains(horizon, known, seed=0) if problem.prompt not in shown]
        tests = min(50, len(fresh) // 3)
        for i, problem in enumerate(fresh):
            split = "test" if i < tests else "dev" if i < tests + 10 else "train"
            rows.append(
                {"prompt": problem.prompt, "answer": problem.answer, "horizon": horizon, "split": split}
            )
    write_text(file, "".join(json.dumps(row) + "\n" for row in rows))


def page_table(out: Path) -> str:
    """What docs/h1.md shows: accuracy by horizon, and what the curriculum has more."""
    before, compared = (
        json.loads((out / file).read_text())["rows"]
        for file in ("only_long.json", "curriculum-only_long.json")
    )
    samples = max(int(name.split("@")[1]) for name in before[0]["metrics"] if name.startswith("avg@"))
    titles = ("before", "only three steps", "curriculum", "curriculum minus only three (95% interval)")
    lines = [f"| avg@{samples} at h = | " + " | ".join(titles) + " |", "|---" * (len(titles) + 1) + "|"]
    for start, row in zip(before, compared):
        first, entry = start["metrics"][f"avg@{samples}"], row["metrics"][f"avg@{samples}"]
        cells = [f"{value:.3f}" for value in (first["before"], entry["before"], entry["after"])]
        lines.append(f"| {row['horizon']} | " + " | ".join([*cells, cell(entry, signed=True)]) + " |")
    return "\n".join(lines)


def main(args: Args) -> None:
    file, test = args.folder() / "chains.jsonl", args.folder() / "test"
    write_chains(file)
    flags = ["--task", f"jsonl:{os.path.relpath(file, ROOT)}", *COMMON]
    finals = train_arms(args, ARMS, [*flags, *BUDGET])
    for name, arm, baseline in (
        ("only_long", "only_long", args.model),
        ("curriculum-only_long", "curriculum", test / "only_long"),
    ):
        against = ["--baseline", os.path.relpath(baseline, ROOT)]
        compared = measure_model(args, finals[arm], arm, [*flags, *against])
        shutil.copy(next(compared.glob("against-*.json")), args.out / f"{name}.json")
    print(page_table(args.out))


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
