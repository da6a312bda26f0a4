r"""Measures a checkpoint on held-out problems: avg@k, pass@k, maj@k. Training scripts call `evaluate` for their dev and test scores.

    python eval.py --model runs/grpo/chain-seed0/final --task "chain?horizon=5"
"""

import math
from collections import Counter

from rollout import completion_seed, sample_rollout
from tasks import plain_integer

EVAL_SEED = 2**31  # evaluation has its own seed, so every checkpoint meets the same problems and the same random numbers


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
    """Returns (metrics, rows): avg@n, pass@n, maj@n and the rates behind them, and one row a problem with its counts."""
    rows = []
    for start in range(0, num_problems, at_once):
        indices = range(start, min(start + at_once, num_problems))
        problems = [task.problem(split, index, EVAL_SEED) for index in indices]
        prompts = [f"{p.prompt}\nHint: {p.hint}" if hint else p.prompt for p in problems]
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
