"""Trains SmolLM2-135M-Instruct with grpo.py to find a fact in a short text.

The task is needle_haystack of reasoning-gym. The model is measured before and after, on 200 problems it
never saw.

    python benchmarks/real_model.py --model runs/SmolLM2-135M-Instruct

(`tools/convert_gguf.py` makes that folder once.) What is finished is skipped and a broken run resumed, so the
same command goes on after an interruption. summary.json: each rate with its 95% interval, bootstrap over
problems, paired for the rises.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks.reference import train  # noqa: E402

SYSTEM = """You give the final answer in \\boxed{} and nothing else.<|im_end|>
<|im_start|>user
Maria likes tea. John hates rain.
Who hates rain? Reply only with a name.
Put the final answer in \\boxed{}.<|im_end|>
<|im_start|>assistant
\\boxed{John}<|im_end|>
<|im_start|>user
Peter adores books. Anna fears dogs. Omar enjoys chess.
Who adores books? Reply only with a name.
Put the final answer in \\boxed{}.<|im_end|>
<|im_start|>assistant
\\boxed{Peter}"""  # two examples follow the system text, as turns of SmolLM2's chat template
TASK = "gym:needle_haystack?min_num_statements=2&max_num_statements=4"
COMMON = ["--task", TASK, "--system-prompt", SYSTEM, "--max-new-tokens", "16"]
TRAIN = (
    "--prompts-per-step 16 --group-size 8 --lr 1e-5 --steps 60 "
    "--eval-every 20 --eval-problems 32 --eval-samples 4 --test-problems 8"
)


@dataclass
class Args:
    model: Path = Path("runs/SmolLM2-135M-Instruct")
    """the converted model"""
    seed: int = 1
    """seed of the training run"""
    problems: int = 200
    """test problems"""
    samples: int = 4
    """completions of each"""
    scratch: Path = ROOT / "runs/scratch/smollm2"
    """where the run itself lives, with its checkpoints"""
    out: Path = ROOT / "runs/smollm2"
    """where its logs are collected (the committed ones are in runs/reference/grpo/smollm2)"""


def page_table(summary: dict) -> str:
    """What docs/grpo.md shows of summary.json."""
    lines = ["| | before | after | rise (95% interval) |", "|---|---|---|---|"]
    for title in ("accuracy", "accuracy among parsed", "parsed"):
        rise, low, high = summary[f"{title} rise"]
        before, after = summary[f"{title} before"][0], summary[f"{title} after"][0]
        lines.append(f"| {title} | {before:.3f} | {after:.3f} | {rise:+.3f} ({low:+.3f} to {high:+.3f}) |")
    return "\n".join(lines)


def main(args: Args) -> None:
    run, target, model = (
        args.scratch / f"seed{args.seed}",
        args.out / f"seed{args.seed}",
        os.path.relpath(args.model, ROOT),
    )
    if not (run / "final").exists():
        command = ["grpo.py", "--model", model, *COMMON, *TRAIN.split(), "--seed", str(args.seed)]
        if not train(command, run, target):
            sys.exit("training did not come to its end; the same command goes on from the last checkpoint")

    counts = {}  # {before or after: {correct, parsed or n: [problems]}}
    for when, weights in (("before", model), ("after", run / "final")):
        scores = args.scratch / f"{when}-seed{args.seed}"
        command = [
            "eval.py",
            "--model",
            weights,
            *COMMON,
            "--problems",
            args.problems,
            "-n",
            args.samples,
            "--out-dir",
            scores,
        ]
        subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, check=True)
        rows = json.loads((scores / "results.json").read_text())["problems"]
        names = ("index", "n", "correct", "parsed", "truncated")
        lines = (json.dumps({name: row[name] for name in names}) for row in rows)
        (target / f"test-{when}.jsonl").write_text("\n".join(lines) + "\n")
        counts[when] = {name: np.array([row[name] for row in rows]) for name in ("correct", "parsed", "n")}

    # The same problems before and after.
    drawn = np.random.default_rng(0).integers(0, args.problems, (10_000, args.problems))
    summary = {"task": TASK, "problems": args.problems, "samples": args.samples}
    for title, part, whole in (
        ("accuracy", "correct", "n"),
        ("accuracy among parsed", "correct", "parsed"),
        ("parsed", "parsed", "n"),
    ):
        value = {when: count[part].sum() / max(1, count[whole].sum()) for when, count in counts.items()}
        draws = {
            when: count[part][drawn].sum(1) / np.maximum(1, count[whole][drawn].sum(1))
            for when, count in counts.items()
        }  # [draws]
        value["rise"], draws["rise"] = value["after"] - value["before"], draws["after"] - draws["before"]
        for name in value:
            low, high = np.quantile(draws[name], [0.025, 0.975])
            summary[f"{title} {name}"] = [round(float(number), 4) for number in (value[name], low, high)]
    (target / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    print(page_table(summary))


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
