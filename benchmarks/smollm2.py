"""Measures SmolLM2-135M-Instruct with eval.py.

The problems are reasoning-gym's gsm_symbolic, asked plainly and after two worked examples, and sums of
fractions (benchmarks/fractions.jsonl), whose answers come in many spellings (for
benchmarks/against_lighteval.py).

    python benchmarks/smollm2.py --model runs/SmolLM2-135M-Instruct

(`tools/convert_gguf.py` makes that folder once.) Three evaluations of 20, 20 and 3 minutes on one thread;
what is finished is skipped. The committed results are in runs/reference/eval/.
"""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

ROOT = Path(__file__).parents[1]


def after_examples(instruction: str, *turns: tuple[str, str]) -> str:
    """A system prompt followed by example turns, in the markup of SmolLM2's chat template."""
    shown = "".join(
        f"<|im_end|>\n<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n{answer}"
        for question, answer in turns
    )
    return instruction + shown


ASK = "Give the result as your final answer. Do not include units.\nPut the final answer in \\boxed{}."
WORKED = after_examples(
    "Solve the problem step by step and put the final answer in \\boxed{}.",
    (
        f"A baker fills 4 trays with 12 rolls each and sells 30 of the rolls. How many rolls are left? {ASK}",
        "The baker makes 4 * 12 = 48 rolls. After selling 30 there are 48 - 30 = 18 rolls left. \\boxed{18}",
    ),
    (
        "Nina earns 9 dollars an hour. She works 3 hours on each of 5 days and spends 25 dollars. "
        f"How many dollars does she keep? {ASK}",
        "Nina works 3 * 5 = 15 hours. She earns 15 * 9 = 135 dollars. She keeps 135 - 25 = 110 dollars. "
        "\\boxed{110}",
    ),
)
SPELLED = after_examples(
    "You give the final answer in \\boxed{} and nothing else.",
    ("What is 1/4 + 1/4? Put the final answer in \\boxed{}.", "\\boxed{1/2}"),
    ("What is 1/5 + 2/5? Put the final answer in \\boxed{}.", "\\boxed{\\frac{3}{5}}"),
    ("What is 1/2 + 1/4? Put the final answer in \\boxed{}.", "\\boxed{0.75}"),
)
GSM = (
    "--task gym:gsm_symbolic -n 4 --problems 200 --max-new-tokens 256 --temperature 0.7 --rows-at-once 64"
).split()
FRACTIONS = (
    "--task jsonl:benchmarks/fractions.jsonl --split all -n 16 --max-new-tokens 16 --rows-at-once 64".split()
)
EVALUATIONS = {  # folder: flags of eval.py
    "smollm2-gsm_symbolic": GSM,
    "smollm2-gsm_symbolic-examples": [*GSM, "--system-prompt", WORKED],
    "smollm2-fractions": [*FRACTIONS, "--system-prompt", SPELLED],
}


@dataclass
class Args:
    model: str = "runs/SmolLM2-135M-Instruct"
    """the converted model"""
    out: Path = Path("runs/eval")
    """folder of the three evaluations"""


def main(args: Args) -> None:
    for name, flags in EVALUATIONS.items():
        command = ["eval.py", "--model", args.model, *flags, "--out-dir", args.out / name]
        subprocess.run([sys.executable, *command], cwd=ROOT, check=True)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
