"""Trains SmolLM2-135M-Instruct with grpo.py on two-number sums and measures it before and after on 200 problems it never saw.

    python benchmarks/real_model.py --model runs/SmolLM2-135M-Instruct

(`benchmarks/convert_gguf.py` makes that folder once.) What is finished is skipped and a broken run resumed, so the same command
goes on after an interruption. Intervals: 95%, bootstrap over problems, before and after on the same problems.
"""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks.reference import collect  # noqa: E402

SYSTEM = """You are a calculator. You answer every problem with \\boxed{result} and nothing else.
Problem: 4 + 5 =
You: \\boxed{9}
Problem: 12 - 7 =
You: \\boxed{5}
Problem: 30 + 21 =
You: \\boxed{51}"""
TASK = "gym:chain_sum?max_terms=2&min_digits=1&max_digits=2"
COMMON = ["--task", TASK, "--system-prompt", SYSTEM, "--temperature", "0.7", "--max-new-tokens", "24"]
TRAIN = "--prompts-per-step 8 --group-size 8 --lr 1e-5 --steps 60 --eval-every 20 --eval-problems 32 --eval-samples 4 --test-problems 8"


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
    work: Path = ROOT / "runs/work/smollm2"
    """where the run itself lives, with its checkpoints"""
    out: Path = ROOT / "runs/reference/grpo/smollm2"
    """where its logs are collected"""


def call(script: str, *flags) -> None:
    subprocess.run([sys.executable, script, *map(str, flags)], cwd=ROOT, check=True)


def accuracy(rows: list[dict], name: str) -> float:
    """Correct completions as a share of all of them ("n") or of those with a readable answer ("parsed")."""
    return sum(row["correct"] for row in rows) / max(1, sum(row[name] for row in rows))


def interval(before: list[dict], after: list[dict], statistic, draws: int = 10_000) -> list[float]:
    """95% bootstrap interval of statistic(before, after) over problems, which both lists hold in the same order."""
    rng, count = np.random.default_rng(0), len(before)
    values = [statistic([before[i] for i in picked], [after[i] for i in picked]) for picked in rng.integers(0, count, (draws, count))]
    return [round(float(bound), 4) for bound in np.quantile(values, [0.025, 0.975])]


def main(args: Args) -> None:
    run, target = args.work / f"seed{args.seed}", args.out / f"seed{args.seed}"
    target.mkdir(parents=True, exist_ok=True)
    if not (run / "curves.png").exists():
        resume = ["--resume"] if run.exists() else []
        call("grpo.py", "--model", args.model.resolve(), *COMMON, *TRAIN.split(), "--seed", args.seed, "--out-dir", run, *resume)
        collect(run, target)
    rows = {}
    for when, model in (("before", args.model.resolve()), ("after", run / "final")):
        scores = args.work / f"{when}-seed{args.seed}.json"
        if not scores.exists():
            call("eval.py", "--model", model, *COMMON, "--problems", args.problems, "-n", args.samples, "--out", scores)
        rows[when] = json.loads(scores.read_text())["rows"]
    before, after = rows["before"], rows["after"]
    assert [row["index"] for row in before] == [row["index"] for row in after]
    summary = {"task": TASK, "problems": len(before), "samples": args.samples}
    for name, of in (("accuracy", "n"), ("accuracy among parsed", "parsed")):
        summary[name] = {
            "before": round(accuracy(before, of), 4),
            "before 95%": interval(before, after, lambda b, a, of=of: accuracy(b, of)),
            "after": round(accuracy(after, of), 4),
            "after 95%": interval(before, after, lambda b, a, of=of: accuracy(a, of)),
            "rise 95%": interval(before, after, lambda b, a, of=of: accuracy(a, of) - accuracy(b, of)),
        }
    for when, table in rows.items():
        summary[f"parsed {when}"] = round(sum(row["parsed"] for row in table) / sum(row["n"] for row in table), 4)
        lines = (json.dumps({name: row[name] for name in ("index", "n", "correct", "parsed", "truncated")}) for row in table)
        (target / f"test-{when}.jsonl").write_text("\n".join(lines) + "\n")
    (target / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    print(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
