r"""Measures a checkpoint on held-out problems: avg@k, pass@k, maj@k with intervals, by horizon, alone or against another model.

    python eval.py --model runs/grpo/chain-seed0/final --task chain --baseline models/tiny
    python eval.py --model Qwen/Qwen2.5-Math-7B --task aime24 --preset siren-32
    python eval.py --plot runs/eval/FIRST runs/eval/SECOND

`--task chain` measures the horizons 1 to 5 (100 problems x 16 samples each: a minute on a laptop). Every sample is a line of
samples.jsonl, every number is in results.json. The same command goes on where it was interrupted, and a finished evaluation
is shown again without sampling. Training scripts call `evaluate` for their dev and test scores.

Letters in shapes: P problems, n samples of each, M metrics.
"""

import functools
import hashlib
import json
import math
import multiprocessing
import os
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import tyro

import runtime
from rollout import completion_seed, encode_prompt, make_sampler, sample_rollout
from runtime import EVAL_SEED, fail
from tasks import ChainTask, ComposedTask, Grade, Problem, canonical, load_task, with_hint

# --- the metrics ----------------------------------------------------------------------------------------------------------


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


def votes(task, grades: list[Grade]) -> list[str | None]:
    """The vote of every sample of a problem: the first answer that is equivalent to its own; None where there was no answer.

    Equal canonical strings are one answer. Different ones are compared by the task's `same_answer`, if it has one (math-verify
    for mathematical answers), and only with one representative of each answer found before: that relation is not transitive
    (50% is 50 and is 0.5), so the order of the samples matters in rare cases.
    """
    same = getattr(task, "same_answer", lambda first, second: False)
    vote_of: dict[str, str] = {}
    for grade in grades:
        if grade.parsed is not None and (answer := canonical(grade.parsed)) not in vote_of:
            representatives = dict.fromkeys(vote_of.values())
            vote_of[answer] = next((other for other in representatives if same(other, answer)), answer)
    return [None if grade.parsed is None else vote_of[canonical(grade.parsed)] for grade in grades]


def maj_at_k(voted: list[str | None], correct: list[bool], k: int) -> float:
    """Expected accuracy of the most frequent answer among k of the samples, over all subsets of size k.

    Ties are split evenly; no answer (None) never wins, and a subset without any answer counts as wrong. An answer is worth the
    share of its samples that were graded correct (0 or 1, unless grader and equivalence disagree).

    >>> round(maj_at_k(["7", "7", "8", None], [True, True, False, False], 2), 6)  # 7 wins in 3 of 6 pairs, ties with 8 in 2
    0.666667
    """
    if not 1 <= k <= len(voted):
        raise ValueError(f"maj@{k} needs at least {k} samples, not {len(voted)}")
    sizes = Counter(vote for vote in voted if vote is not None)
    right = Counter(vote for vote, ok in zip(voted, correct) if vote is not None and ok)
    total = 0.0
    for answer, count in right.items():
        rivals = sorted(size for other, size in sizes.items() if other != answer)
        total += count / sizes[answer] * _wins(sizes[answer], tuple(rivals), voted.count(None), k)
    return float(min(1.0, total))


@functools.lru_cache(maxsize=100_000)
def _wins(size: int, rivals: tuple[int, ...], silent: int, k: int) -> float:
    """Probability that an answer with `size` votes wins among k votes drawn without replacement, ties split.

    Let each of the n samples enter the subset by itself with probability q: given that k did, they are a uniform subset. Then
    the answers' numbers of votes are independent binomials, and no term overflows, whatever n. For each number of votes j of
    our answer: ways[t, m] is the probability that m of the others' samples entered, t answers have j votes and none has more.
    """
    n = size + sum(rivals) + silent
    q, result = k / (n + 1), 0.0
    for j in range(1, min(size, k) + 1):
        weak = silent + sum(rival for rival in rivals if rival < j)  # these cannot reach j votes
        strong = [rival for rival in rivals if rival >= j]
        ways = np.zeros((min(len(strong), k // j - 1) + 1, k - j + 1))
        ways[0, : weak + 1] = _binomial(weak, q)[: k - j + 1]
        for rival in strong:
            enters, before, ways = _binomial(rival, q), ways, np.zeros_like(ways)
            for i in range(min(j, k - j + 1)):
                ways[:, i:] += enters[i] * before[:, : k - j + 1 - i]
            ways[1:, j:] += enters[j] * before[:-1, : max(0, k - j + 1 - j)]
        result += _binomial(size, q)[j] * (ways[:, k - j] / np.arange(1, len(ways) + 1)).sum()
    return result / _binomial(n, q)[k]


@functools.lru_cache(maxsize=10_000)
def _binomial(n: int, q: float) -> np.ndarray:
    """P(m successes in n trials) for m = 0..n, through logarithms."""
    m = np.arange(n + 1)
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])
    return np.exp(log_factorial[n] - log_factorial - log_factorial[::-1] + m * math.log(q) + (n - m) * math.log1p(-q))


def ladder(n: int) -> list[int]:
    """1, 2, 4, ... and n: the k that are shown.

    >>> ladder(20)
    [1, 2, 4, 8, 16, 20]
    """
    return [*(1 << i for i in range(n.bit_length()) if 1 << i < n), n]


def problem_values(row: dict) -> dict[str, float]:
    """Every metric of one problem; the metric of a set is their mean. pass@k for every k, maj@k for 1, 2, 4, ... and n."""
    n = row["n"]
    return {
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
    """Where a gain in accuracy comes from (Guide, arXiv 2506.13923): [P, 3] of self-distillation, capability gain, forgetting.

    For one sample s of the old model, one t of the new, and pass@k of k old samples that include s, a problem counts as
    self-distilled if s is wrong, pass@k and t right; as capability gain if pass@k is wrong and t right; as forgotten if s is
    right and t wrong. Here is the mean of these indicators over all choices of the samples, so for every problem exactly

        accuracy after - accuracy before = self-distillation + capability gain - forgetting.
    """
    s = np.array([row["correct"] / row["n"] for row in before])  # [P]
    t = np.array([row["correct"] / row["n"] for row in after])
    solvable = np.array([pass_at_k(row["n"], row["correct"], k) for row in before])
    return np.stack([(solvable - s) * t, (1 - solvable) * t, s * (1 - t)], axis=1)


# --- the intervals --------------------------------------------------------------------------------------------------------

DRAWS = 10_000
Z = 1.959964  # the normal distribution's 97.5% quantile
ENOUGH = 10  # problems right and problems wrong, at least, for an interval that covers (benchmarks/coverage.md)


def intervals(values: np.ndarray, strata: np.ndarray, draws: int = DRAWS, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """95% intervals [M], [M] of the column means of `values` [P, M]: bootstrap over problems, whose samples stay together.

    Problems are redrawn within their stratum (the horizon: its number of problems was chosen, not found). The percentiles are
    widened by t / z * sqrt(P / (P-1)): the bootstrap's standard error is too small by the root (Hesterberg, arXiv 1411.5279), and t
    has the degrees of freedom that the values' kurtosis leaves to their variance (Satterthwaite): few where few problems decide.
    Where all problems have the same number there is nothing to draw: the interval then reaches as far as a rate can be from what
    was seen P times in P, 1 - 0.025^(1/P). A stratum of one problem has no spread to draw from either: its interval is nan.
    """
    groups = [np.flatnonzero(strata == stratum) for stratum in np.unique(strata)]
    smallest, total = min(map(len, groups)), len(values)
    if smallest < 2:
        return np.full(values.shape[1], np.nan), np.full(values.shape[1], np.nan)
    rng, means = np.random.default_rng(seed), np.zeros((draws, values.shape[1]))
    for first in range(0, draws, 500):  # in blocks, which keeps the weights small
        block = means[first : first + 500]
        for group in groups:
            counts = rng.multinomial(len(group), np.full(len(group), 1 / len(group)), size=len(block))  # [block, problems]
            block += counts @ values[group] / total
    deviations = np.concatenate([values[group] - values[group].mean(0) for group in groups])  # [P, M]
    kurtosis = (deviations**4).mean(0) / np.maximum((deviations**2).mean(0) ** 2, 1e-300)  # [M], 3 for the normal distribution
    freedom = np.clip(2 * total / np.maximum(kurtosis - 1, 1e-9), 1, smallest - 1)
    t = Z + (Z**3 + Z) / (4 * freedom) + (5 * Z**5 + 16 * Z**3 + 3 * Z) / (96 * freedom**2)  # Student's 97.5% quantile
    mean, widen = values.mean(0), t / Z * math.sqrt(smallest / (smallest - 1))
    low, high = np.quantile(means, [0.025, 0.975], axis=0)
    unseen = np.where((values == values[0]).all(0) & (np.abs(values[0]) <= 1), 1 - 0.025 ** (1 / total), 0.0)  # [M]
    return mean + widen * (low - mean) - unseen, mean + widen * (high - mean) + unseen


def too_narrow(values: np.ndarray, difference: bool = False) -> bool:
    """True where an interval for the mean of these [P] numbers may hold less than it says: of a rate, fewer than ten problems' worth
    on the rarer side; of a difference, fewer than ten problems that decide it ((sum |d|)^2 / sum d^2 of them do)."""
    deciding = np.abs(values).sum() ** 2 / max((values**2).sum(), 1e-300) if difference else min(values.sum(), len(values) - values.sum())
    return bool(deciding < ENOUGH)


def summarise(columns: dict[str, np.ndarray], strata: np.ndarray, difference: bool = False) -> dict[str, dict]:
    """{metric: [P] values} -> {metric: {value, low, high, too_narrow}}. Rates stay within 0 and 1, differences within -1 and 1."""
    lows, highs = intervals(np.stack(list(columns.values()), axis=1), strata)
    summary = {}
    for (name, values), low, high in zip(columns.items(), lows.tolist(), highs.tolist()):
        if name == "len_mean":  # tokens, not a rate
            least, most, narrow = -math.inf, math.inf, False
        else:
            least, most, narrow = (-1.0 if difference else 0.0), 1.0, too_narrow(values, difference)
        ends = {"low": None, "high": None} if math.isnan(low) else {"low": max(low, least), "high": min(high, most)}
        summary[name] = {"value": float(values.mean()), **ends, "too_narrow": narrow}
    return summary


# --- sampling and counting ------------------------------------------------------------------------------------------------


def judged(task, rollout, first: int, n: int) -> list[dict]:
    """What the metrics need to know of each of a problem's n samples: rows first .. first+n-1 of the rollout."""
    rows = slice(first, first + n)
    grades, completions = rollout.grades[rows], rollout.completions[rows]
    return [{"parsed": grade.parsed, "vote": vote, "correct": grade.correct, "why": grade.why, "tokens": len(completion.ids),
             "finish_reason": completion.finish_reason}
            for grade, completion, vote in zip(grades, completions, votes(task, grades))]  # fmt: skip


def count(samples: list[dict], index: int, horizon: int, source: str) -> dict:
    """One problem: the counts of its samples, and the vote and verdict of each."""
    return {
        "index": index, "horizon": horizon, "source": source, "n": len(samples),
        "correct": sum(sample["correct"] for sample in samples),
        "parsed": sum(sample["parsed"] is not None for sample in samples),
        "truncated": sum(sample["finish_reason"] == "length" for sample in samples),
        "timeouts": sum(sample["why"].startswith("timeout") for sample in samples),
        "errors": sum(sample["why"].startswith(("crash", "error")) for sample in samples),
        "tokens": sum(sample["tokens"] for sample in samples),
        "votes": [sample["vote"] for sample in samples],
        "right": [sample["correct"] for sample in samples],
    }  # fmt: skip


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
            samples = judged(task, rollout, i * num_samples, num_samples)
            rows.append(count(samples, indices[i], problem.horizon, problem.source))
    values = [problem_values(row) for row in rows]
    names = [f"{name}@{num_samples}" for name in ("avg", "pass", "maj")] + ["frac_unparsed", "frac_truncated", "len_mean"]
    return {name: sum(value[name] for value in values) / num_problems for name in names}, rows


@dataclass
class Job:
    """One problem to sample, and the task that grades it."""

    task: object
    index: int
    problem: Problem
    prompt: str
    prompt_ids: list[int]


def jobs_of(tasks: list, args, tokenizer) -> list[Job]:
    """Every problem, in the order in which they are sampled: by the length of the prompt, so that a batch has little padding."""
    jobs = []
    for task in tasks:
        endless = 100 if len(tasks) > 1 else 200
        size = runtime.or_fail(task.size, args.split) if hasattr(task, "size") else args.problems or endless
        for index in range(min(args.problems or size, size)):
            problem = runtime.or_fail(task.problem, args.split, index, EVAL_SEED)
            if args.hint and problem.hint is None:
                fail(f"--hint: problem {index} of --task {args.task} has no hint; leave the flag out")
            prompt = with_hint(problem) if args.hint else problem.prompt
            jobs.append(Job(task, index, problem, prompt, encode_prompt(tokenizer, prompt, args.system_prompt)))
    return sorted(jobs, key=lambda job: len(job.prompt_ids))


def finished_samples(path: Path, batches: list[list[Job]], n: int) -> list[dict]:
    """The samples of all batches that are complete on the disk; what a kill left of another batch is cut off."""
    rows, size = [], 0
    if path.exists():
        lines = path.read_bytes().splitlines(keepends=True)
        for batch in batches:
            chunk = lines[len(rows) : len(rows) + len(batch) * n]
            if len(chunk) < len(batch) * n or not chunk[-1].endswith(b"\n"):
                break
            rows += map(json.loads, chunk)
            size += sum(map(len, chunk))
        os.truncate(path, size)
    return rows


def sample_batch(sampler, tokenizer, batch: list[Job], args, settings: dict) -> list[dict]:
    """Sample, grade and vote: one row a sample, with all that is needed to repeat and to judge it."""
    n, stream = args.samples, int(settings["model_hash"], 16)  # every model draws random numbers of its own
    seeds = [completion_seed(EVAL_SEED, args.seed, job.problem.horizon, job.index, stream, sample) for job in batch for sample in range(n)]
    rollout = sample_rollout(sampler, tokenizer, batch[0].task, [job.problem for job in batch], [job.prompt for job in batch], seeds, n,
                             args.max_new_tokens, args.temperature, args.system_prompt, args.top_p)  # fmt: skip
    kept = {name: settings[name] for name in ("model", "task", "split", "system_prompt", "temperature", "top_p", "grader")}
    rows = []
    for i, job in enumerate(batch):
        for sample, verdict in enumerate(judged(job.task, rollout, i * n, n)):
            row = i * n + sample
            rows.append({"index": job.index, "horizon": job.problem.horizon, "source": job.problem.source, "sample": sample,
                         "prompt": tokenizer.decode(job.prompt_ids), "completion": rollout.texts[row], "gold": job.problem.answer,
                         **verdict, "score": rollout.grades[row].score, "seed": seeds[row], **kept})  # fmt: skip
    return rows


def measure(model_name: str, args, out_dir: Path | None, before: dict | None = None) -> tuple[dict, Path]:
    """Evaluate a model, going on where an earlier call stopped; returns what is in results.json, and its folder. With the
    results of a baseline, stops before anything is sampled if the two could not be compared."""
    tasks = tasks_of(args)
    model, tokenizer = runtime.load_model(model_name)
    runtime.resolve_defaults(args, model, {size: {"max_new_tokens": length} for size, length in runtime.DEFAULT_LENGTHS.items()})
    jobs = jobs_of(tasks, args, tokenizer)
    texts = [(job.problem.horizon, job.index, job.prompt, job.problem.answer) for job in jobs]
    sampler = make_sampler(args, model, runtime.eos_ids(model, tokenizer))
    settings = {
        "model": model_name, "model_hash": runtime.model_hash(model), "task": args.task, "split": args.split,
        "problems": len(jobs), "problems_hash": hashlib.sha256(json.dumps(sorted(texts)).encode()).hexdigest()[:16],
        "samples": args.samples, "prompt_template": tokenizer.decode(encode_prompt(tokenizer, "{problem}", args.system_prompt)),
        "system_prompt": args.system_prompt, "hint": args.hint, "temperature": args.temperature, "top_p": args.top_p,
        "max_new_tokens": args.max_new_tokens, "seed": args.seed, "grader": getattr(tasks[0], "grader", type(tasks[0]).__name__),
        "sampler": type(sampler).__name__, "rows_at_once": args.rows_at_once, "device": runtime.device_name(),
        "versions": {name: version(name) for name in ("torch", "transformers", "math-verify")},
    }  # fmt: skip
    if before is not None:
        check_comparable(before["settings"], settings)
    out_dir = out_dir or default_folder(settings)
    lock = open_folder(out_dir, settings)
    if (out_dir / "results.json").exists():
        print(f"{model_name}: measured before, see {out_dir}", flush=True)
        return read_results(out_dir, "--out-dir"), out_dir
    print(f"{model_name}: {len(jobs)} problems x {args.samples} samples into {out_dir}", flush=True)

    size = max(1, args.rows_at_once // args.samples)  # a batch is a pure function of the flags; half a batch is sampled again
    batches = [jobs[start : start + size] for start in range(0, len(jobs), size)]
    rows = finished_samples(out_dir / "samples.jsonl", batches, args.samples)
    finished = math.ceil(len(rows) / args.samples / size)
    work = [sum(len(job.prompt_ids) for job in batch) for batch in batches]  # longer prompts, longer answers: for the time left
    started, tokens = time.time(), 0
    for i, batch in enumerate(batches[finished:], start=finished):
        new = sample_batch(sampler, tokenizer, batch, args, settings)
        with open(out_dir / "samples.jsonl", "a") as file:
            file.write("".join(json.dumps(row) + "\n" for row in new))
        rows, tokens = rows + new, tokens + sum(row["tokens"] for row in new)
        seconds = time.time() - started
        left = runtime.minutes(seconds / sum(work[finished : i + 1]) * sum(work[i + 1 :]))
        print(f"{len(rows) // args.samples:>6} of {len(jobs)} problems | {tokens / seconds:7.0f} tokens/s | left {left}", flush=True)

    problems = tally(rows, args.samples)
    results = {"settings": settings, "rows": result_rows(problems, settings), "problems": problems}
    runtime.write_text(out_dir / "results.json", json.dumps(results, indent=1) + "\n")
    lock.close()
    return results, out_dir


def measure_baseline(args) -> dict:
    """`measure` of --baseline. Where vLLM samples, or may, in a process of its own that frees the memory when it ends."""
    folder = args.out_dir and args.out_dir.with_name(f"{args.out_dir.name}-baseline")
    if not (torch.cuda.is_available() or args.engine == "vllm"):
        return measure(args.baseline, args, folder)[0]
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
        return alone.submit(measure, args.baseline, args, folder).result()[0]


def tally(rows: list[dict], n: int) -> list[dict]:
    """Rows of samples.jsonl -> one row a problem with its counts, by horizon and index."""
    groups = [rows[start : start + n] for start in range(0, len(rows), n)]
    problems = [count(group, group[0]["index"], group[0]["horizon"], group[0]["source"]) for group in groups]
    return sorted(problems, key=lambda problem: (problem["horizon"], problem["index"]))


def result_rows(problems: list[dict], settings: dict) -> list[dict]:
    """One row for each horizon, and one for all: the settings, and every metric with its interval.

    `runs` are the accuracies of the first, second, ... sample of every problem: their least, their greatest, and the spread
    between them. `independent_errors` is what accuracy would be if a chain of h steps failed only as its single steps do:
    p^h, with p the accuracy at horizon 1 (h1, arXiv 2510.07312).
    """
    values = [problem_values(row) for row in problems]
    horizons = sorted({row["horizon"] for row in problems})
    single = [row["correct"] / row["n"] for row in problems if row["horizon"] == 1]
    rows = []
    for horizon in [*horizons, "all"] if len(horizons) > 1 else horizons:
        chosen = [i for i, row in enumerate(problems) if horizon in ("all", row["horizon"])]
        columns = {name: np.array([values[i][name] for i in chosen]) for name in values[0]}
        runs = np.mean([problems[i]["right"] for i in chosen], axis=0)  # [n]
        rows.append({
            **settings, "horizon": horizon, "problems": len(chosen),
            "metrics": summarise(columns, np.array([problems[i]["horizon"] for i in chosen])),
            "runs": {"count": len(runs), "min": runs.min(), "max": runs.max(), "spread": runs.max() - runs.min()},
            "independent_errors": np.mean(single) ** horizon if single and horizon != "all" else None,
        })  # fmt: skip
    return rows


# --- the comparison -------------------------------------------------------------------------------------------------------

MUST_BE_EQUAL = ("problems_hash", "split", "samples", "hint", "temperature", "top_p", "max_new_tokens", "grader", "sampler")


def check_comparable(before: dict, after: dict) -> None:
    """Stop unless two evaluations (their settings) asked the same problems in the same way."""
    for name in MUST_BE_EQUAL:
        if before[name] != after[name]:
            fail(f"--baseline: was measured with {name} {before[name]}, the model with {after[name]}; measure both with the same flags")


def compare(before: dict, after: dict) -> dict:
    """Paired differences after - before on the same problems, by horizon and for all, and where the gain comes from.

    `forgetting_by_chance` is the forgetting of a model against itself, right in one sample and wrong in the next (unbiased from
    pairs of the baseline's samples); as much gain comes with it. Only what is beyond it says something about training.
    """
    check_comparable(before["settings"], after["settings"])
    n = after["settings"]["samples"]
    k = min(16, n)  # Guide's
    old, new = before["problems"], after["problems"]
    columns = [(problem_values(a), problem_values(b)) for a, b in zip(old, new)]
    parts = decompose(old, new, k)
    by_chance = np.array([row["correct"] * (n - row["correct"]) / (n * max(1, n - 1)) for row in old])
    rows = []
    for horizon in [row["horizon"] for row in after["rows"]]:
        chosen = [i for i, problem in enumerate(new) if horizon in ("all", problem["horizon"])]
        strata = np.array([new[i]["horizon"] for i in chosen])
        differences = {name: np.array([columns[i][1][name] - columns[i][0][name] for i in chosen]) for name in columns[0][0]}
        summary = summarise(differences, strata, difference=True)
        for name, entry in summary.items():
            entry["before"], entry["after"] = (float(np.mean([columns[i][side][name] for i in chosen])) for side in (0, 1))
            entry["excludes_zero"] = entry["low"] is not None and not entry["low"] <= 0 <= entry["high"]
        names = ("self-distillation", "capability gain", "forgetting")
        gain = summarise({name: parts[chosen, i] for i, name in enumerate(names)}, strata)
        rows.append({"horizon": horizon, "problems": len(chosen), "metrics": summary, "gain": gain, "gain_k": k,
                     "forgetting_by_chance": float(by_chance[chosen].mean()) if n > 1 else None})  # fmt: skip
    return {"settings": {"baseline": before["settings"], "model": after["settings"]}, "rows": rows}


# --- what is shown --------------------------------------------------------------------------------------------------------


def cell(entry: dict, signed: bool = False) -> str:
    """A value with its interval; a star where the interval is narrower than it should be."""
    form = "+.3f" if signed else ".3f"
    ends = "-, -" if entry["low"] is None else f"{entry['low']:{form}}, {entry['high']:{form}}"
    return f"{entry['value']:{form}} [{ends}]" + "*" * (entry["too_narrow"] or entry["low"] is None)


STAR = f"* fewer than {ENOUGH} problems right, wrong or different: the interval may be too narrow (benchmarks/coverage.md)"


def aligned(rows: list[list[str]]) -> str:
    """Columns of equal width."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(f"{text:<{width}}" for text, width in zip(row, widths)).rstrip() for row in rows)


def shown_metrics(n: int) -> list[str]:
    return [f"avg@{n}", *(f"pass@{k}" for k in ladder(n) if k > 1), *(f"maj@{k}" for k in ladder(n) if k > 2)]


def show(results: dict) -> None:
    """A table by horizon, if there are several, and every metric of all problems."""
    settings, rows = results["settings"], results["rows"]
    n, whole = settings["samples"], results["rows"][-1]
    print(f"\n{settings['model']} on {settings['task']}, {settings['split']}: {settings['problems']} problems x {n} samples, temperature "
          f"{settings['temperature']:g}, top-p {settings['top_p']:g}, at most {settings['max_new_tokens']} tokens\n")  # fmt: skip
    by_horizon = [["horizon", f"avg@{n}", "p^h", f"pass@{n}", f"maj@{n}", "unparsed", "truncated", "tokens"]]
    for row in rows:
        expected = "" if row["independent_errors"] is None else f"{row['independent_errors']:.3f}"
        metrics = row["metrics"]
        rates = [f"{metrics[name]['value']:.3f}" for name in ("frac_unparsed", "frac_truncated")]
        by_horizon.append([str(row["horizon"]), cell(metrics[f"avg@{n}"]), expected, cell(metrics[f"pass@{n}"]), cell(metrics[f"maj@{n}"]),
                           *rates, f"{metrics['len_mean']['value']:.1f}"])  # fmt: skip
    table = aligned(by_horizon) + "\n\n" if len(rows) > 1 else ""
    lines = [[name, cell(whole["metrics"][name])] for name in shown_metrics(n)]
    lines += [[f"{name} of {n} runs", f"{whole['runs'][name]:.3f}"] for name in ("min", "max", "spread") if n > 1]
    lines += [[name, f"{whole['metrics'][name]['value']:.3f}"]
              for name in ("frac_unparsed", "frac_truncated", "frac_timeout", "frac_errors", "len_mean")]  # fmt: skip
    table += ("all horizons\n" if len(rows) > 1 else "") + aligned(lines)
    print(table)
    known = len(rows) > 1 and rows[0]["independent_errors"] is not None
    print("[95% interval, bootstrap over problems]" + "  p^h: avg at horizon 1 to the power h" * known)
    if "*" in table:
        print(STAR)


def show_comparison(comparison: dict) -> None:
    """Which differences exclude zero, and where the gain comes from."""
    settings, whole = comparison["settings"], comparison["rows"][-1]
    n, k = settings["model"]["samples"], whole["gain_k"]
    print(f"\n{settings['model']['model']} against {settings['baseline']['model']}, the same problems:\n")
    lines = [["", "baseline", "model", "difference", "excludes 0"]]
    shown = [(name, name, whole) for name in (*shown_metrics(n), "frac_unparsed", "frac_truncated", "len_mean")]
    shown += [(f"{name}, horizon {row['horizon']}", name, row) for name in (f"avg@{n}", f"pass@{n}") for row in comparison["rows"][:-1]]
    for title, name, row in shown:
        entry = row["metrics"][name]
        verdict = "yes" if entry["excludes_zero"] else "no"
        lines.append([title, f"{entry['before']:.3f}", f"{entry['after']:.3f}", cell(entry, signed=True), verdict])
    gain = [[sign + name, cell(whole["gain"][name])] for sign, name in zip("++-", whole["gain"])]
    table = f"{aligned(lines)}\n\nwhere the gain in avg@{n} comes from (Guide; solvable before: pass@{k})\n{aligned(gain)}"
    print(table)
    if whole["forgetting_by_chance"] is not None:
        print(f"the baseline against itself, sample against sample: forgetting {whole['forgetting_by_chance']:.3f}, and as much gain")
    print("[95% intervals, paired bootstrap over problems; of 20 comparisons between equal models about one excludes 0]")
    if "*" in table:
        print(STAR)


# --- the command ----------------------------------------------------------------------------------------------------------

PRESETS = {  # the papers' protocols; the length limit stays with --max-new-tokens
    "siren-32": {"temperature": 0.6, "samples": 32},  # SIREN, on AIME and AMC
    "siren-8": {"temperature": 0.6, "samples": 8},  # SIREN, on MATH-500 and OlympiadBench
    "h1-greedy": {"temperature": 0.0, "samples": 1},  # h1, on everything but AIME
    "h1-avg32": {"temperature": 1.0, "samples": 32},  # h1, on AIME; its temperature is not published, this one is ours
}
DEFAULTS = {"temperature": 1.0, "samples": 16}  # greedy samples are all equal: one is enough


@dataclass
class Args:
    model: str = "models/tiny"
    """Hugging Face folder, hub name or .gguf file"""
    task: str = "chain"
    """what to measure it on (see tasks.py); a range of horizons (`chain` is `chain?horizon=1-5`) is measured at each of them"""
    split: Literal["test", "dev", "train", "all"] = "test"
    """which problems; `all` is every problem of a file of your own"""
    baseline: str | None = None
    """another model to measure on the same problems and compare with, or the folder of an evaluation that is there"""
    preset: Literal["siren-32", "siren-8", "h1-greedy", "h1-avg32"] | None = None
    """a paper's protocol: temperature and number of samples (flags given beside it win)"""
    problems: int | None = None
    """how many problems, for each horizon of a range (default: all of a finite set, 200 of an endless one, 100 a horizon)"""
    samples: Annotated[int | None, tyro.conf.arg(aliases=["-n"])] = None
    """completions per problem, n (default 16, greedy 1); 5 gives avg@5"""
    max_new_tokens: int | None = None
    """longest completion (default 160 for the embedded model, 3072 for real ones)"""
    temperature: float | None = None
    """sampling temperature (default 1); 0 is greedy"""
    top_p: float = 1.0
    """nucleus sampling"""
    seed: int = 0
    """of the sampling; the problems are always the same"""
    system_prompt: str | None = None
    """system turn put before every prompt"""
    hint: bool = False
    """show each problem's hint"""
    engine: Literal["auto", "hf", "vllm"] = "auto"
    """sampler: hf (transformers) or vllm (needs requirements-vllm.txt); auto is vllm where it and a GPU are there, else hf"""
    rows_at_once: int = 256
    """completions sampled together; smaller needs less memory"""
    out_dir: Path | None = None
    """where samples.jsonl and results.json go (default runs/eval/<model>-<task>-<hash of all settings>)"""
    plot: tuple[Path, ...] = ()
    """draw the pass@k curves of these finished evaluations (folders) into one picture, and measure nothing"""


def tasks_of(args) -> list:
    """The task that --task names; a range of horizons becomes one task for each."""
    task = runtime.or_fail(load_task, "chain?horizon=1-5" if args.task == "chain" else args.task)
    if isinstance(task, ChainTask | ComposedTask):
        return [task.at_horizon(horizon) for horizon in range(task.low, task.high + 1)]
    return [task]


def default_folder(settings: dict) -> Path:
    """A folder that no evaluation with other settings shares."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    parts = [*Path(settings["model"].removesuffix(".gguf")).parts[-2:], *settings["task"].split("/")[-1:], digest]
    name = "-".join("".join(letter if letter.isalnum() or letter in "._" else "-" for letter in part).strip("-") for part in parts)
    return Path("runs/eval") / name


def open_folder(folder: Path, settings: dict):
    """Make the folder, or find that it belongs to the same evaluation; returns its lock."""
    path = folder / "config.json"
    if folder.exists() and not folder.is_dir():
        fail(f"--out-dir {folder}: is a file; choose a folder")
    if folder.exists() and not path.exists() and any(child.name != ".lock" for child in folder.iterdir()):
        fail(f"--out-dir {folder}: is not the folder of an evaluation; choose another")
    folder.mkdir(parents=True, exist_ok=True)
    lock = runtime.lock(folder)
    if path.exists():
        measured = json.loads(path.read_text())
        for name, value in settings.items():
            if value != measured.get(name):
                fail(f"--out-dir {folder}: was measured with {name} {measured.get(name)}, now {value}; choose another --out-dir")
    runtime.write_text(path, json.dumps(settings | {"git_commit": runtime.git_commit()}, indent=1) + "\n")
    return lock


def read_results(folder: str | Path, flag: str) -> dict:
    try:
        results = json.loads(Path(folder, "results.json").read_text())
        return {name: results[name] for name in ("settings", "rows", "problems")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        fail(f"{flag} {folder}: is no finished evaluation of eval.py ({error}); give a folder with its results.json")


def plot_results(folders: tuple[Path, ...], out_dir: Path | None) -> Path:
    """pass@k over k of several evaluations, with 95% bands."""
    from plot import plot_bands  # matplotlib is only needed here

    curves = {}
    for folder in folders:
        results = read_results(folder, "--plot")
        row, n = results["rows"][-1], results["settings"]["samples"]
        label = f"{results['settings']['model']} on {results['settings']['task']}" + (f" ({folder.name})" if len(folders) > 1 else "")
        entries = [row["metrics"][f"pass@{k}"] for k in range(1, n + 1)]
        curves[label] = ([*range(1, n + 1)], *([entry[part] for entry in entries] for part in ("value", "low", "high")))
    path = (out_dir or folders[0]) / "pass_at_k.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    plot_bands(curves, path, "k", "pass@k", "pass@k, 95% intervals over problems")
    return path


def check_args(args: Args) -> None:
    """Refuse what cannot work, and fill what is left open."""
    greedy = {"samples": 1} if args.temperature == 0 else {}
    for name, value in (DEFAULTS | PRESETS.get(args.preset, {}) | greedy).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    runtime.check_at_least_one(args, "problems", "samples", "max_new_tokens", "rows_at_once")
    if not 0 <= args.temperature < math.inf:
        fail(f"--temperature {args.temperature:g}: must be 0 (greedy) or above")
    if not 0 < args.top_p <= 1:
        fail(f"--top-p {args.top_p:g}: must be above 0 and at most 1")
    if args.temperature == 0 and args.samples > 1:
        fail(f"--temperature 0 --samples {args.samples}: greedy samples are all equal; give -n 1")
    if args.seed < 0:
        fail(f"--seed {args.seed}: must not be negative")


def main(args: Args) -> dict:
    """Measure, show, compare; returns the content of results.json."""
    if args.plot:
        print(plot_results(args.plot, args.out_dir))
        return {}
    runtime.in_one_process("eval.py")
    runtime.keep_freed_memory()
    args = replace(args)
    check_args(args)
    before = None
    try:
        if args.baseline is not None:
            runtime.check_model(args.model)  # before the baseline takes its hours
            config = Path(args.baseline, "config.json")  # a model's, or an evaluation's
            if config.exists() and "problems_hash" in config.read_text():
                before = read_results(args.baseline, "--baseline")
            else:
                before = measure_baseline(args)
        results, folder = measure(args.model, args, args.out_dir, before)
        show(results)
        if before is not None:
            results["comparison"] = compare(before, results)
            show_comparison(results["comparison"])
            path = folder / f"against-{before['settings']['model_hash']}.json"
            runtime.write_text(path, json.dumps(results["comparison"], indent=1) + "\n")
        print(f"\neverything is in {folder}")
    except KeyboardInterrupt:
        sys.exit("\nstopped; the same command goes on after the last line of progress")
    return results


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
