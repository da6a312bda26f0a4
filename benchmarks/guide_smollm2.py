"""SmolLM2-135M-Instruct with Guide and with GRPO on sums of four digits, which it mostly gets wrong.

The sums are worked step by step. Both have the same seed, problems in the same order, and number of sampled
tokens, those with a hint included. Then both, and the model they started from, are measured on 200 sums they
never saw, without hints.

    python benchmarks/guide_smollm2.py --model runs/SmolLM2-135M-Instruct

(`tools/convert_gguf.py` makes that folder once.) What is finished is skipped and a broken run resumed, so the
same command goes on after an interruption.
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
from plainrl.folder import write_text  # noqa: E402
from plainrl.tasks import BOXED_INSTRUCTION  # noqa: E402

ARMS = {"grpo": ["grpo.py"], "guide": ["guide.py", "--max-refills", "2"]}
BUDGET = (
    "--token-budget 80000 --steps 1000 --prompts-per-step 8 --group-size 8 --lr 1e-5 --eval-every 10 "
    "--eval-problems 32 --eval-samples 4 --test-problems 8 --save-every 5 --micro-batch-tokens 4096"
).split()
DIGITS = 4
SHOWN = {"avg@8": "avg@8", "pass@8": "pass@8", "frac_unparsed": "unparsed"}


def work(numbers: list[int]) -> tuple[str, list[str], str]:
    """A sum as a question, its steps, and the answer."""
    steps, total = [], numbers[0]
    for number in numbers[1:]:
        steps.append(f"{total}+{number}={total + number}")
        total += number
    return f"What is {' + '.join(map(str, numbers))}?", steps, str(total)


def example(numbers: list[int], hinted: bool) -> tuple[str, str]:
    """A turn of the chat that shows how it is done: with a hint, all steps but the last."""
    question, steps, answer = work(numbers)
    hint = "\nHint: " + ", ".join(steps[:-1]) if hinted else ""
    return f"{question} {BOXED_INSTRUCTION}{hint}", "\n".join(steps) + f"\n\\boxed{{{answer}}}"


SYSTEM = after_examples(
    "You add numbers step by step and give the final answer in \\boxed{}.",
    example([7, 2, 5, 4], False),
    example([4, 7, 8, 2], True),
)
COMMON = ["--system-prompt", SYSTEM, "--max-new-tokens", "48", "--temperature", "0.7"]


@dataclass
class Args(RealModelArgs):
    out: Path = ROOT / "runs/guide_smollm2"
    """where the logs are collected (the committed ones are in runs/reference/guide_smollm2)"""


def write_sums(file: Path) -> None:
    """3,000 different sums, one {"prompt", "answer", "hint"} a line: a file that any guide.py run can use."""
    rng, rows = random.Random(0), {}
    while len(rows) < 3000:
        question, steps, answer = work([rng.randint(2, 9) for _ in range(DIGITS)])
        rows[question] = {"prompt": question, "answer": answer, "hint": ", ".join(steps[:-1])}
    write_text(file, "".join(json.dumps(row) + "\n" for row in rows.values()))


def page_table(out: Path) -> str:
    """What docs/guide.md shows: scores without hints, and where the gain comes from."""
    comparisons = {arm: json.loads((out / f"{arm}.json").read_text())["rows"][-1] for arm in ARMS}
    guided = json.loads((out / "guide-grpo.json").read_text())["rows"][-1]["metrics"]
    lines = ["| | before | GRPO | Guide | Guide minus GRPO (95% interval) |", "|---|---|---|---|---|"]
    for name, title in SHOWN.items():
        entries = [comparisons[arm]["metrics"][name] for arm in ARMS]
        scores = f"{entries[0]['before']:.3f} | {entries[0]['after']:.3f} | {entries[1]['after']:.3f}"
        lines.append(f"| {title} | {scores} | {cell(guided[name], signed=True)} |")
    for name in comparisons["grpo"]["gain"]:
        gains = [cell(comparisons[arm]["gain"][name]) for arm in ARMS]
        lines.append(f"| {name} | | {gains[0]} | {gains[1]} | |")
    return "\n".join(lines)


def main(args: Args) -> None:
    sums, test = args.folder() / "sums.jsonl", args.folder() / "test"
    write_sums(sums)
    flags = ["--task", f"jsonl:{os.path.relpath(sums, ROOT)}", *COMMON]
    grpo, guide = train_arms(args, ARMS, [*flags, *BUDGET]).values()
    for name, weights, folder, baseline in (
        ("grpo", grpo, "grpo", args.model),
        ("guide", guide, "guide", test / "grpo-baseline"),
        ("guide-grpo", guide, "guide", test / "grpo"),
    ):
        compared = measure_model(
            args, weights, folder, [*flags, "--baseline", os.path.relpath(baseline, ROOT)]
        )
        shutil.copy(max(compared.glob("against-*.json"), key=os.path.getmtime), args.out / f"{name}.json")
    print(page_table(args.out))


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
