r"""Measures a checkpoint on held-out problems: avg@k, pass@k, maj@k. Training scripts call `evaluate` for their dev and test scores.

    python eval.py --model runs/grpo/chain-seed0/final --task "chain?horizon=5"
"""

import json
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

import runtime
from rollout import completion_seed, make_sampler, sample_rollout
from runtime import EVAL_SEED
from tasks import load_task, plain_integer, with_hint


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Probability that k of the samples, drawn without replacement, contain a correct one: the unbiased estimator
    1 - C(n-c, k) / C(n, k) (Chen et al., arXiv 2107.03374, eq. 1), as a product that cannot overflow.

    >>> pass_at_k(4, 1, 2)
    0.5
    """
    if not 1 <= k <= num_samples:
        raise ValueError(f"pass@{k} needs at least {k} samples, not {num_samples}")
    if num_samples - num_correct < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / i for i in range(num_samples - num_correct + 1, num_samples + 1))


def majority(parsed: list[str | None], correct: list[bool]) -> float:
    """maj@n of n samples: 1 if the most frequent answer is correct; ties are split evenly, no answer never wins.

    >>> majority(["7", "7", "8", None], [True, True, False, False])
    1.0
    """
    names = [answer if answer is None or plain_integer(answer) is None else str(plain_integer(answer)) for answer in parsed]
    votes = Counter(name for name in names if name is not None)
    if not votes:
        return 0.0
    winners = [name for name, count in votes.items() if count == max(votes.values())]
    right = {name for name, ok in zip(names, correct) if ok}
    return sum(name in right for name in winners) / len(winners)


def evaluate(sampler, tokenizer, task, split: str, num_problems: int, num_samples: int, max_new_tokens: int, temperature: float = 1.0,
             system: str | None = None, top_p: float = 1.0, hint: bool = False, at_once: int = 64) -> tuple[dict, list[dict]]:  # fmt: skip
    """Returns (metrics, rows): avg@n, pass@n, maj@n and the rates behind them, and one row a problem with its counts.

    A split that has fewer problems than `num_problems` is measured on all of them, once.
    """
    rows = []
    num_problems = min(num_problems, task.size(split)) if hasattr(task, "size") else num_problems
    for start in range(0, num_problems, at_once):
        indices = range(start, min(start + at_once, num_problems))
        problems = [task.problem(split, index, EVAL_SEED) for index in indices]
        prompts = [with_hint(problem) if hint else problem.prompt for problem in problems]
        seeds = [completion_seed(EVAL_SEED, 0, index, 0, sample) for index in indices for sample in range(num_samples)]
        rollout = sample_rollout(sampler, tokenizer, task, problems, prompts, seeds, num_samples, max_new_tokens, temperature,
                                 system, top_p)  # fmt: skip
        for i, problem in enumerate(problems):
            group = slice(i * num_samples, (i + 1) * num_samples)
            grades, completions = rollout.grades[group], rollout.completions[group]
            rows.append({
                "index": indices[i], "horizon": problem.horizon, "source": problem.source, "n": num_samples,
                "correct": sum(grade.correct for grade in grades),
                "parsed": sum(grade.parsed is not None for grade in grades),
                "truncated": sum(completion.finish_reason == "length" for completion in completions),
                "tokens": sum(len(completion.ids) for completion in completions),
                "majority": majority([grade.parsed for grade in grades], [grade.correct for grade in grades]),
            })  # fmt: skip
    total = num_problems * num_samples
    metrics = {
        f"avg@{num_samples}": sum(row["correct"] for row in rows) / total,
        f"pass@{num_samples}": sum(pass_at_k(num_samples, row["correct"], num_samples) for row in rows) / num_problems,
        f"maj@{num_samples}": sum(row["majority"] for row in rows) / num_problems,
        "frac_unparsed": 1 - sum(row["parsed"] for row in rows) / total,
        "frac_truncated": sum(row["truncated"] for row in rows) / total,
        "len_mean": sum(row["tokens"] for row in rows) / total,
    }
    return metrics, rows


@dataclass
class Args:
    model: str = "models/tiny"
    """Hugging Face folder, hub name or .gguf file"""
    task: str = "chain"
    """what to measure it on (see tasks.py)"""
    split: Literal["test", "dev", "train"] = "test"
    """which problems"""
    problems: int = 200
    """how many problems"""
    samples: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 16
    """completions per problem, n: gives avg@n, pass@n and maj@n"""
    max_new_tokens: int | None = None
    """longest completion (default 160 for the embedded model, 3072 for real ones)"""
    temperature: float = 1.0
    """sampling temperature; 0 is greedy"""
    top_p: float = 1.0
    """nucleus sampling"""
    system_prompt: str | None = None
    """system turn put before every prompt"""
    hint: bool = False
    """show each problem's hint"""
    engine: str = "auto"
    """sampler, as in training"""
    out: Path | None = None
    """also write the scores and one row a problem here, as JSON"""


def main(args: Args) -> dict:
    runtime.keep_freed_memory()
    runtime.check_at_least_one(args, "problems", "samples", "max_new_tokens")
    if not args.temperature >= 0 or not 0 < args.top_p <= 1:
        runtime.fail(f"--temperature {args.temperature:g} --top-p {args.top_p:g}: need at least 0, and above 0 and at most 1")
    task = runtime.or_fail(load_task, args.task)
    model, tokenizer = runtime.load_model(args.model)
    runtime.resolve_defaults(args, model, {size: {"max_new_tokens": length} for size, length in runtime.DEFAULT_LENGTHS.items()})
    sampler = make_sampler(args.engine, model, runtime.eos_ids(model, tokenizer))
    metrics, rows = evaluate(sampler, tokenizer, task, args.split, args.problems, args.samples, args.max_new_tokens, args.temperature,
                             args.system_prompt, args.top_p, args.hint)  # fmt: skip
    print(f"{args.model} on {args.task}, {args.split}: {len(rows)} problems x {args.samples} at T={args.temperature:g}")
    for name, value in metrics.items():
        print(f"{name:16} {value:8.3f}")
    if args.out:
        flags = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
        args.out.write_text(json.dumps({"flags": flags, "metrics": metrics, "rows": rows}, indent=1) + "\n")
    return metrics


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
