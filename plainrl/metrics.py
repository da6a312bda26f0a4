"""The numbers of an evaluation: avg@k, pass@k and maj@k of every problem, their 95% intervals, and
`evaluate`, which measures a model on a task. eval.py and the training scripts share them.

Letters in shapes: P problems, n samples of each, M metrics.
"""

import functools
import math
import time
from collections import Counter

import numpy as np

from plainrl.answers import canonical
from plainrl.flags import EVAL_SEED
from plainrl.grading import is_error, is_failure
from plainrl.hints import with_hint
from plainrl.rollout import completion_seed, sample_rollout
from plainrl.screen import or_fail, working
from plainrl.tasks import Grade, scored

VOTE_SECONDS = 60.0  # for comparing the answers to one problem with each other

# --- the metrics of one problem -----------------------------------------------------------------------------


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Probability that k of the samples, drawn without replacement, contain a correct one.

    This is the unbiased estimator 1 - C(n-c, k) / C(n, k) (Chen et al., arXiv 2107.03374, eq. 1), written as
    a product that cannot overflow. Raises ValueError for fewer than k samples.

    >>> pass_at_k(4, 1, 2)
    0.5
    """
    if not 1 <= k <= num_samples:
        raise ValueError(f"pass@{k} needs at least {k} samples, not {num_samples}")
    if num_samples - num_correct < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / i for i in range(num_samples - num_correct + 1, num_samples + 1))


def votes(task, grades: list[Grade]) -> list[str | None]:
    """The vote of every sample of a problem: the first answer equivalent to its own; None for no answer.

    Equal canonical strings are one answer. Different ones are compared by the task's `same_answer`, if it has
    one (plainrl/equality.py for mathematical answers), and only with one representative of each answer found
    before. That relation is not transitive (50% is 50 and is 0.5), so the order of the samples matters in
    rare cases. An answer on which the grader failed (it hung) is not compared, nor is any after VOTE_SECONDS.
    """
    same = getattr(task, "same_answer", lambda first, second: False)
    vote_of: dict[str, str] = {}
    end = time.monotonic() + VOTE_SECONDS
    failed = {canonical(grade.parsed) for grade in grades if grade.parsed is not None and is_error(grade)}
    for grade in grades:
        if grade.parsed is not None and (answer := canonical(grade.parsed)) not in vote_of:
            others = dict.fromkeys(vote_of.values()) if answer not in failed else ()
            alike = (
                other
                for other in others
                if other not in failed and time.monotonic() < end and or_fail(same, other, answer)
            )
            vote_of[answer] = next(alike, answer)
    return [None if grade.parsed is None else vote_of[canonical(grade.parsed)] for grade in grades]


def maj_at_k(voted: list[str | None], correct: list[bool], k: int) -> float:
    """Expected accuracy of the most frequent answer among k of the samples, over all subsets of size k.

    Ties are split evenly; no answer (None) never wins, and a subset without any answer counts as wrong. An
    answer is worth the share of its samples that were graded correct (0 or 1, unless grader and equivalence
    disagree). Raises ValueError for fewer than k samples.

    Two of the samples 7, 7, 8 and no answer: 7 wins three of the six pairs (7 7, and twice 7 with no answer),
    and in two it ties with 8. If 7 is right, that is (3 + 2 * 1/2) / 6:

    >>> round(maj_at_k(["7", "7", "8", None], [True, True, False, False], 2), 6)
    0.666667
    """
    if not 1 <= k <= len(voted):
        raise ValueError(f"maj@{k} needs at least {k} samples, not {len(voted)}")
    sizes = Counter(vote for vote in voted if vote is not None)
    right = Counter(vote for vote, ok in zip(voted, correct) if vote is not None and ok)
    total = 0.0
    for answer, num_right in right.items():
        rivals = sorted(size for other, size in sizes.items() if other != answer)
        total += num_right / sizes[answer] * _wins(sizes[answer], tuple(rivals), voted.count(None), k)
    return float(min(1.0, total))


@functools.lru_cache(maxsize=100_000)
def _wins(size: int, rivals: tuple[int, ...], silent: int, k: int) -> float:
    """Probability that an answer with `size` votes wins among k samples, drawn without replacement.

    A tie of t answers counts 1/t. `rivals` are the votes of the other answers, `silent` samples have none.

    Counting subsets takes binomials of hundreds of digits, so another experiment stands for the draw: each of
    the n samples enters by itself with probability q. Given that k entered, all subsets of size k are equally
    likely, so

        P(wins | k drawn) = P(wins and k entered) / P(k entered).

    Now the numbers of votes of the answers are independent binomials. The numerator is a sum over j, the
    number of our answer's votes: P(j of ours entered) * P(k - j others entered, no rival with more than j),
    ties split.

    For the answer 7 of `maj_at_k`'s example (two votes, one rival with one, one sample silent):

    >>> print(_wins(2, (1,), 1, k=2).round(6))
    0.666667
    """
    n = size + sum(rivals) + silent
    q = k / (n + 1)  # any q gives the same result; with this one k entries are likely, which keeps the digits
    wins_and_k_entered = 0.0
    for j in range(1, min(size, k) + 1):
        by_ties = _rivals_up_to(j, rivals, silent, k - j, q)[:, k - j]  # [ties + 1]
        in_front = np.arange(1, len(by_ties) + 1)  # our answer and those that tie with it
        wins_and_k_entered += _binomial(size, q)[j] * (by_ties / in_front).sum()
    return wins_and_k_entered / _binomial(n, q)[k]


def _rivals_up_to(j: int, rivals: tuple[int, ...], silent: int, room: int, q: float) -> np.ndarray:
    """ways [ties + 1, room + 1]: ways[t, m] is the probability that m samples entered that are not ours (up
    to `room`), that t rivals have j votes, and that no rival has more."""
    # A rival with fewer than j samples never reaches j votes. For us its samples are as good as silent.
    weak = silent + sum(rival for rival in rivals if rival < j)
    strong = [rival for rival in rivals if rival >= j]
    most_ties = min(len(strong), room // j)  # each takes j of the room

    # The weak samples alone: nobody ties.
    ways = np.zeros((most_ties + 1, room + 1))
    ways[0, : weak + 1] = _binomial(weak, q)[: room + 1]

    # Add the strong rivals one by one. Of a rival with i votes, ways[:, m] moves to ways[:, m + i].
    for rival in strong:
        before, ways = ways, np.zeros_like(ways)
        enters = _binomial(rival, q)
        for i in range(min(j, room + 1)):  # it has i votes, fewer than ours
            ways[:, i:] += enters[i] * before[:, : room + 1 - i]
        ways[1:, j:] += enters[j] * before[:-1, : max(0, room + 1 - j)]  # it has as many as ours: a tie more
    return ways


@functools.lru_cache(maxsize=10_000)
def _binomial(n: int, q: float) -> np.ndarray:
    """P(m successes in n trials) for m = 0..n, through logarithms: [n + 1]."""
    m = np.arange(n + 1)
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])
    log_choose = log_factorial[n] - log_factorial - log_factorial[::-1]
    return np.exp(log_choose + m * math.log(q) + (n - m) * math.log1p(-q))


def ladder(n: int) -> list[int]:
    """1, 2, 4, ... and n: the k that are shown.

    >>> ladder(20)
    [1, 2, 4, 8, 16, 20]
    """
    return [*(1 << i for i in range(n.bit_length()) if 1 << i < n), n]


def problem_values(row: dict) -> dict[str, float]:
    """Every metric of one problem, a row of `count`; the metric of a set of problems is their mean. pass@k is
    there for every k, maj@k for 1, 2, 4, ... and n.

    `score` is the mean of the grader's scores, which may lie between wrong and right. Rows of older files
    have none: their problems count as wrong or right.
    """
    n = row["n"]
    return {
        "score": row.get("score", row["correct"]) / n,
        f"avg@{n}": row["correct"] / n,
        **{f"pass@{k}": pass_at_k(n, row["correct"], k) for k in range(1, n + 1)},
        **{f"maj@{k}": maj_at_k(row["votes"], row["right"], k) for k in ladder(n)},
        "frac_unparsed": 1 - row["parsed"] / n,
        "frac_truncated": row["truncated"] / n,
        "frac_timeout": row["timeouts"] / n,
        "frac_errors": row["errors"] / n,
        "len_mean": row["tokens"] / n,
    }


def decompose(before: list[dict], after: list[dict], k: int) -> np.ndarray:
    """Where a gain in accuracy comes from: [P, 3] of self-distillation, capability gain and forgetting
    (Guide, arXiv 2506.13923).

    For one sample s of the old model, one t of the new, and pass@k of k old samples that include s, a problem
    counts as self-distilled if s is wrong, pass@k and t right; as capability gain if pass@k is wrong and t
    right; as forgotten if s is right and t wrong. Here is the mean of these indicators over all choices of
    the samples, so for every problem exactly

        accuracy after - accuracy before = self-distillation + capability gain - forgetting.
    """
    s = np.array([row["correct"] / row["n"] for row in before])  # [P]
    t = np.array([row["correct"] / row["n"] for row in after])
    solvable = np.array([pass_at_k(row["n"], row["correct"], k) for row in before])
    return np.stack([(solvable - s) * t, (1 - solvable) * t, s * (1 - t)], axis=1)


# --- the intervals ------------------------------------------------------------------------------------------

DRAWS = 10_000
Z = 1.959964  # the normal distribution's 97.5% quantile
ENOUGH = 10  # right and wrong problems, at least, for an interval that covers (benchmarks/coverage.md)


def intervals(
    values: np.ndarray, strata: np.ndarray, draws: int = DRAWS, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """95% intervals of the column means of `values` [P, M]: their lower ends [M] and their upper ends [M].

    This is a bootstrap over problems: draw as many problems with replacement, each with all its samples, take
    the mean, repeat; the interval holds the middle 95% of these means. Problems are redrawn within their
    stratum (`strata` [P], the horizon), since the number of problems at each horizon was chosen, not found.

    Where problems are few, that interval is too short. Three things are done about it:

    1. It is widened by sqrt(P / (P-1)), with the P of the smallest stratum: by so much the bootstrap's
       standard error is too small (Hesterberg, arXiv 1411.5279).
    2. It is widened by Student's quantile over the normal one: the spread itself is an estimate (`_student`).
    3. Where all problems have the same number, there is nothing to draw. The interval then reaches as far as
       a rate can be from what was seen P times in P, which is 1 - 0.025^(1/P).

    A stratum of one problem has no spread to draw from either: all intervals are nan.

    Of 20 problems 6 are right. The percentiles of the bootstrap's means are .10 and .50:

    >>> low, high = intervals(np.array([[1.0]] * 6 + [[0.0]] * 14), strata=np.zeros(20))
    >>> print(low.round(3), high.round(3))
    [0.081] [0.519]
    """
    groups = [np.flatnonzero(strata == stratum) for stratum in np.unique(strata)]
    smallest, total = min(map(len, groups)), len(values)
    if smallest < 2:
        return np.full(values.shape[1], np.nan), np.full(values.shape[1], np.nan)
    mean = values.mean(0)  # [M]
    means = _bootstrap_means(values, groups, draws, seed)  # [draws, M]
    low, high = np.quantile(means, [0.025, 0.975], axis=0)  # [M] each
    widen = _student(values, groups) / Z * math.sqrt(smallest / (smallest - 1))  # [M]
    is_rate = np.abs(values[0]) <= 1  # [M]; a length in tokens is none
    all_alike = (values == values[0]).all(0) & is_rate  # [M]
    unseen = np.where(all_alike, 1 - 0.025 ** (1 / total), 0.0)  # [M]
    return mean + widen * (low - mean) - unseen, mean + widen * (high - mean) + unseen


def _bootstrap_means(values: np.ndarray, groups: list[np.ndarray], draws: int, seed: int) -> np.ndarray:
    """Column means [draws, M] of problems drawn with replacement, within each group (their row numbers)."""
    rng = np.random.default_rng(seed)
    means = np.zeros((draws, values.shape[1]))
    for first in range(0, draws, 500):  # in blocks, which keeps `times_drawn` small
        block = means[first : first + 500]  # a view: what is added here is added to `means`
        for group in groups:
            size, evenly = len(group), np.full(len(group), 1 / len(group))
            times_drawn = rng.multinomial(size, evenly, size=len(block))  # [block, problems of the group]
            block += times_drawn @ values[group] / len(values)
    return means


def _student(values: np.ndarray, groups: list[np.ndarray]) -> np.ndarray:
    """Student's 97.5% quantile [M], with the degrees of freedom of each column's estimated variance.

    P values have 2 P / (kurtosis - 1) degrees (Satterthwaite), at most P - 1 of the smallest group. The
    kurtosis of the normal distribution is 3, which gives P. It is large where few problems decide: with 10
    right of 200 it is 18.1, which leaves 23 degrees.
    """
    deviations = np.concatenate([values[group] - values[group].mean(0) for group in groups])  # [P, M]
    variance = (deviations**2).mean(0)  # [M]
    kurtosis = (deviations**4).mean(0) / np.maximum(variance**2, 1e-300)  # [M]
    freedom = np.clip(2 * len(values) / np.maximum(kurtosis - 1, 1e-9), 1, min(map(len, groups)) - 1)
    # The first terms of the expansion of Student's quantile in 1 / freedom.
    return Z + (Z**3 + Z) / (4 * freedom) + (5 * Z**5 + 16 * Z**3 + 3 * Z) / (96 * freedom**2)


def too_narrow(values: np.ndarray, difference: bool = False) -> bool:
    """Whether fewer than ten problems decide the mean of these [P] numbers: its interval may then hold the
    true value less often than it says.

    Of a rate the right or the wrong problems decide, whichever are fewer. Of a difference d it is
    (sum |d|)^2 / sum d^2 of them: where all that differ do so by the same, their number.

    >>> too_narrow(np.array([1.0] * 9 + [0.0] * 91)), too_narrow(np.array([1.0] * 10 + [0.0] * 90))
    (True, False)
    """
    if difference:
        deciding = np.abs(values).sum() ** 2 / max((values**2).sum(), 1e-300)
    else:
        right = values.sum()
        deciding = min(right, len(values) - right)
    return bool(deciding < ENOUGH)


def summarise(
    columns: dict[str, np.ndarray], strata: np.ndarray, difference: bool = False
) -> dict[str, dict]:
    """{metric: [P] values} -> {metric: {value, low, high, too_narrow}}. Rates stay within 0 and 1,
    differences within -1 and 1; low and high are None where there is no interval. Lengths, and scores of a
    grader that gives more or less, have no such bounds."""
    lows, highs = intervals(np.stack(list(columns.values()), axis=1), strata)
    summary = {}
    for (name, values), low, high in zip(columns.items(), lows.tolist(), highs.tolist()):
        entry = {"value": float(values.mean()), "low": low, "high": high, "too_narrow": False}
        least = -1.0 if difference else 0.0
        if name != "len_mean" and least <= values.min() and values.max() <= 1:
            entry["low"] = max(low, least)
            entry["high"] = min(high, 1.0)
            entry["too_narrow"] = too_narrow(values, difference)
        if math.isnan(low):
            entry["low"] = entry["high"] = None
        summary[name] = entry
    return summary


# --- measuring a model --------------------------------------------------------------------------------------


def judged(task, rollout, first: int, n: int) -> list[dict]:
    """What the metrics need to know of each of a problem's n samples: rows first .. first+n-1 of the
    rollout."""
    rows = slice(first, first + n)
    grades, completions = rollout.grades[rows], rollout.completions[rows]
    return [
        {
            "parsed": grade.parsed,
            "vote": vote,
            "correct": grade.correct,
            "score": grade.score,
            "why": grade.why,
            "tokens": len(completion.ids),
            "finish_reason": completion.finish_reason,
        }
        for grade, completion, vote in zip(grades, completions, votes(task, grades))
    ]


def count(samples: list[dict], index: int, horizon: int, source: str) -> dict:
    """One problem: the counts of its samples, and the vote and verdict of each."""
    return {
        "index": index,
        "horizon": horizon,
        "source": source,
        "n": len(samples),
        "correct": sum(sample["correct"] for sample in samples),
        "score": sum(sample.get("score", sample["correct"]) for sample in samples),
        "parsed": sum(sample["parsed"] is not None for sample in samples),
        "truncated": sum(sample["finish_reason"] == "length" for sample in samples),
        "timeouts": sum(sample["why"].startswith("timeout") for sample in samples),
        "errors": sum(is_failure(sample["why"]) for sample in samples),
        "tokens": sum(sample["tokens"] for sample in samples),
        "votes": [sample["vote"] for sample in samples],
        "right": [sample["correct"] for sample in samples],
    }


def evaluate(
    sampler,
    tokenizer,
    task,
    split: str,
    num_problems: int,
    num_samples: int,
    max_new_tokens: int,
    temperature: float = 1.0,
    system: str | None = None,
    rollouts: list | None = None,
    top_p: float = 1.0,
    hint: bool = False,
    at_once: int = 64,
) -> tuple[dict, list[dict]]:
    """Returns (metrics, rows): the mean score, avg@n, pass@n, maj@n and the rates behind them, and one row a
    problem with its counts.

    A split that has fewer problems than `num_problems` is measured on all of them, once. Problems and random
    numbers are the same at every call, whatever the run's seed. The screen says how far it is where that
    takes long. What was sampled is added to `rollouts`, where they are given, `at_once` problems each.
    """
    rows, settings = [], (num_samples, max_new_tokens, temperature, system, top_p)
    num_problems = scored(task, split, num_problems)
    with working(f"scoring {split}", num_problems * num_samples, "completions") as work:
        for start in range(0, num_problems, at_once):
            indices = range(start, min(start + at_once, num_problems))
            problems = [task.problem(split, index, EVAL_SEED) for index in indices]
            prompts = [with_hint(problem) if hint else problem.prompt for problem in problems]
            seeds = [
                completion_seed(EVAL_SEED, 0, index, 0, sample)
                for index in indices
                for sample in range(num_samples)
            ]
            rollout = sample_rollout(sampler, tokenizer, task, problems, prompts, seeds, *settings)
            if rollouts is not None:
                rollouts.append(rollout)
            for i, problem in enumerate(problems):
                samples = judged(task, rollout, i * num_samples, num_samples)
                rows.append(count(samples, indices[i], problem.horizon, problem.source))
            work["before"] = len(rows) * num_samples
    values = [problem_values(row) for row in rows]
    names = ["score", f"avg@{num_samples}", f"pass@{num_samples}", f"maj@{num_samples}"]
    names += ["frac_unparsed", "frac_truncated", "len_mean"]
    return {name: sum(value[name] for value in values) / num_problems for name in names}, rows
