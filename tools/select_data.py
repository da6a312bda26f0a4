r"""Chooses training problems by difficulty: samples each several times, and keeps those that are neither
always nor never right. Writes the problems (for RL) or what was sampled (for SFT).

    python tools/select_data.py --task chain --samples 8 --out kept.jsonl                  0 < right < 8
    python grpo.py --task subset:kept.jsonl
    python tools/select_data.py --task chain --samples 16 --low 0.1 --high 0.6 --out kept.jsonl
    python tools/select_data.py --task chain -n 4 --keep spread --min-cv 0.5 --traces correct --out rows.jsonl
    python tools/select_data.py --task chain -n 4 --traces wrong --per-problem 1 --out rows.jsonl
    python sft.py --data rows.jsonl

The last two are what DeepDistill does, and the wrong traces of Shape of Thought; there --model is a teacher.

Sources: DeepDistill (arXiv 2504.17565, eq. 5, 6 and algorithm 1), Shape of Thought (2512.22255), Vision-G1
(2508.12680). A problem has n samples with scores s_i from 0 to 1, those of its task:

    pass_rate = 1/n sum_i 1[s_i > tau]
    mu = 1/n sum_i s_i,    sigma^2 = 1/(n - ddof) sum_i (s_i - mu)^2,    cv = sigma / mu
    band:   low <= pass_rate <= high, by default 1/n and (n-1)/n
    spread: max_i s_i > tau and cv > min_cv; of the solved others a random share, keep_stable
    P(kept | p) = sum_{c = a..b} C(n, c) p^c (1-p)^(n-c)    for a band of a..b right samples

For scores of 0 and 1 cv is a function of the pass rate, sqrt((1-p)/p), so that cv > t is p < 1/(1 + t^2): a
rule for hard problems, not for undecided ones. It says something of its own where scores are graded.

Where the papers say less or something else, this is what is done, tagged again where it happens:
[D1] ddof is 0, as in DeepDistill's formula; its example divides by n - 1. Its thresholds of cv are not known.
[D2] A problem whose scores are all 0 has no cv. It is unsolved, and never kept by its spread.
[D3] A trace ended by itself: what was cut, or has no answer that can be read, is no wrong reasoning.

Letters in shapes: n samples of each problem.
"""

import math
import shlex
import sys
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

sys.path.append(str(Path(__file__).resolve().parents[1]))  # where plainrl/ lies

from plainrl.flags import (
    EMBEDDED,
    EVAL_LENGTHS,
    EVAL_SEED,
    Bounds,
    Count,
    Fraction,
    Length,
    NotNegative,
    Samples,
    Share,
    Temperature,
    by_size,
    check_flags,
    parse,
    resolve_defaults,
    resolve_model,
)
from plainrl.folder import (
    append_or_fail,
    claimed,
    json_lines,
    keep_settings,
    refuse_existing,
    write_or_fail,
)
from plainrl.grading import is_failure
from plainrl.models import eos_ids, keep_freed_memory, load_model
from plainrl.rollout import (
    check_prompt,
    check_template,
    completion_seed,
    encode_prompt,
    sample_rollout,
    set_thinking,
)
from plainrl.sampler import make_sampler
from plainrl.samples import finished_samples, sampling_settings
from plainrl.screen import fail, in_one_process, or_fail, say, shown, stoppable, time_left
from plainrl.subset import SubsetTask
from plainrl.tasks import Problem, first_problems, hash_number, load_task

SELECT_SEED = EVAL_SEED + 1  # no training run and no evaluation draws these random numbers
SHOWN_RATES = (0.01, 0.05, 0.2, 0.5, 0.9)  # for which the screen says how likely a band keeps a problem
WIDTH = 40  # letters of the longest bar
WORTH_SAYING = 0.1  # share of samples that were cut, or have no answer


@dataclass
class Args:
    task: str
    """whose training problems are sampled (see plainrl/tasks.py); subset:FILE measures a selection again"""
    out: Path
    """the file to write, JSON lines; must not exist"""
    model: str | None = None
    """Hugging Face folder, hub name or .gguf file that samples (default: models/tiny, or models/countdown
    with --task countdown)"""
    problems: Count | None = None
    """how many problems (default: all of a finite set, else 1,000)"""
    samples: Annotated[Samples, tyro.conf.arg(aliases=["-n"])] = 8
    """completions per problem, n"""
    keep: Literal["band", "spread"] = "band"
    """the rule: a band of pass rates, or scores that differ much for their mean"""
    low: Fraction | None = None
    """band: lowest pass rate (default: 1/n, one right)"""
    high: Fraction | None = None
    """band: highest pass rate (default: (n-1)/n, one not right)"""
    min_cv: NotNegative | None = None
    """spread: the coefficient of variation is above this (default: 0, not all scores equal)"""
    keep_stable: Fraction | None = None
    """spread: random share of the problems that are solved but do not vary so much (default: 0)"""
    tau: Annotated[float, Bounds(at_least=0, below=1)] = 0.99
    """a sample is right when its score is above this"""
    ddof: Literal[0, 1] = 0
    """the variance divides by n - ddof"""
    traces: Literal["correct", "wrong"] | None = None
    """write completions that are right, or wrong, as rows for sft.py, instead of problems; both ended by
    themselves, and wrong ones have an answer that can be read"""
    per_problem: Count | None = None
    """traces: at most so many of a problem, in the order in which they were sampled (default: all)"""
    paired: bool = False
    """traces: only problems that have both a right and a wrong trace to write, so that a file of each kind is
    of the same problems"""
    max_new_tokens: Length | None = by_size(**EVAL_LENGTHS)
    """longest completion"""
    temperature: Temperature = 1.0
    """sampling temperature"""
    top_p: Share = 1.0
    """nucleus sampling"""
    seed: Annotated[int, Bounds(at_least=0, below=EVAL_SEED)] = 0
    """the training run's seed, where problems depend on it (chain); every sampled token follows from it, and
    none is a training run's"""
    system_prompt: str | None = None
    """system turn put before every prompt"""
    enable_thinking: Literal["yes", "no"] | None = None
    """what the chat template is told of `enable_thinking` (default: nothing, so that its own default holds);
    a template that does not know the word ignores it"""
    engine: Literal["auto", "hf", "vllm"] = "auto"
    """sampler: hf (transformers) or vllm (needs requirements-vllm.txt); auto is vllm where it and a GPU are
    there, else hf"""
    rows_at_once: Count = 256
    """completions sampled together; smaller needs less memory"""
    samples_dir: Path | None = None
    """folder of samples.jsonl, every sample, and config.json; another rule with the same folder samples
    nothing anew (default: beside --out, with the ending .samples)"""


# --- the mathematics ----------------------------------------------------------------------------------------


def pass_rate(scores: list[float], tau: float = 0.99) -> float:
    """The share of samples with a score above tau (DeepDistill, eq. 5). n scores -> 0 to 1.

    >>> pass_rate([0.2, 0.6, 1.0, 1.0])
    0.5
    """
    return sum(score > tau for score in scores) / len(scores)


def cv(scores: list[float], ddof: int = 0) -> float | None:
    """The coefficient of variation, sigma / mu (DeepDistill, eq. 6). n scores -> 0 or more.

    None where the mean is 0 [D2]. Equal scores have exactly 0: rounding in their mean would leave something.

    >>> round(cv([0.9, 0.1, 0.7, 0.3, 0.5]), 6), round(cv([0.9, 0.1, 0.7, 0.3, 0.5], ddof=1), 6)
    (0.565685, 0.632456)
    """
    mu = sum(scores) / len(scores)
    if mu == 0:
        return None  # [D2]
    if min(scores) == max(scores):
        return 0.0
    variance = sum((score - mu) ** 2 for score in scores) / (len(scores) - ddof)  # [D1]
    return math.sqrt(variance) / mu


def in_band(rate: float, low: float, high: float) -> bool:
    """Is a pass rate within the band? Both ends belong to it."""
    return low <= rate <= high


def is_spread(scores: list[float], tau: float, min_cv: float, ddof: int = 0) -> bool:
    """Is one sample right, and do the scores differ enough? (DeepDistill, algorithm 1)"""
    variation = cv(scores, ddof)
    return max(scores) > tau and variation is not None and variation > min_cv


def keep_probability(p: float, n: int, first: int, last: int) -> float:
    """How likely a problem that is right with probability p is kept, by a band of first..last right of n.

    A problem is chosen by n samples and not by p, so hard ones are kept by luck:

    >>> round(keep_probability(0.05, 8, 1, 7), 6), round(keep_probability(0.2, 8, 1, 7), 6)
    (0.33658, 0.832225)
    """
    return sum(math.comb(n, c) * p**c * (1 - p) ** (n - c) for c in range(first, last + 1))


def is_kept(scores: list[float], prompt: str, args: Args) -> bool:
    """The rule of --keep. Chance, for --keep-stable, is a hash of the seed and the prompt."""
    if args.keep == "band":
        return in_band(pass_rate(scores, args.tau), args.low, args.high)
    if is_spread(scores, args.tau, args.min_cv, args.ddof):
        return True
    is_solved = max(scores) > args.tau
    return is_solved and hash_number(f"{args.seed}/stable/{prompt}") / 2**64 < args.keep_stable


def was_judged(row: dict) -> bool:
    """Whether the grader came to a verdict: it did not break, and its time was not over."""
    return not row["why"].startswith("timeout") and not is_failure(row["why"])


def traces_of(rows: list[dict], kind: str, tau: float) -> list[dict]:
    """A problem's samples that are right, or wrong, and may be learned from [D3]. Equal texts come once.

    A sample on which the grader failed is neither.
    """
    found = {}  # by text
    for row in rows:
        right = row["score"] > tau
        wrong = not right and row["parsed"] is not None and was_judged(row)
        ended = row["finish_reason"] == "stop" and row["completion"].strip()
        if ended and (right if kind == "correct" else wrong):
            found.setdefault(row["completion"], row)
    return list(found.values())


# --- sampling -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """One problem to sample; `index` is the one that it was asked by."""

    index: int
    problem: Problem
    prompt_ids: list[int]


def jobs_of(task, args: Args, tokenizer) -> list[Job]:
    """The problems, each prompt once, in the order in which they are sampled: by the length of the prompt, so
    that a batch has little padding."""
    count, problems = or_fail(first_problems, task, "train", args.problems, args.seed)
    if len(problems) < count:
        say(f"{count - len(problems):,} of {count:,} problems have the prompt of another, and are left out")
    jobs = [
        Job(index, problem, encode_prompt(tokenizer, problem.prompt, args.system_prompt))
        for index, problem in problems.items()
    ]
    return sorted(jobs, key=lambda job: len(job.prompt_ids))


def that_fit(jobs: list[Job], sampler, args: Args) -> list[Job]:
    """The problems whose prompts leave room for a completion, as in training. Where none does, or one cannot
    work at all, that ends the command."""
    room = getattr(sampler, "room", None)  # tokens of the model's context, None where nobody knows
    short = [job for job in jobs if room is None or len(job.prompt_ids) + args.max_new_tokens <= room]
    for job in short or jobs:
        check_prompt(job.prompt_ids, args.max_new_tokens, sampler, f"train problem {job.index}")
    if len(short) < len(jobs):
        say(
            f"{len(jobs) - len(short):,} of {len(jobs):,} problems are left out: with --max-new-tokens "
            f"{args.max_new_tokens} their prompts are too long for the model's context of {room} tokens"
        )
    return short


def settings_of(args: Args, model, tokenizer, sampler, task, jobs: list[Job]) -> dict:
    """Everything that the samples depend on. The rule that chooses among them is no part of it."""
    texts = [(job.index, job.problem.prompt, job.problem.answer) for job in jobs]
    return sampling_settings(args, args.model, model, tokenizer, sampler, task, texts)


def sample_batch(sampler, tokenizer, task, batch: list[Job], args: Args, stream: int) -> list[dict]:
    """Sample and grade some problems: a row for each of their n samples. `stream` is the model's own, so that
    two models draw different random numbers."""
    n, problems = args.samples, [job.problem for job in batch]
    seeds = [
        completion_seed(SELECT_SEED, args.seed, job.index, stream, sample)
        for job in batch
        for sample in range(n)
    ]
    prompts = [problem.prompt for problem in problems]
    how = (args.max_new_tokens, args.temperature, args.system_prompt, args.top_p)
    rollout = sample_rollout(sampler, tokenizer, task, problems, prompts, seeds, n, *how)
    return [
        {
            "index": batch[row // n].index,
            "sample": row % n,
            "prompt": prompts[row // n],
            "completion": rollout.texts[row],
            "answer": problems[row // n].answer,
            "parsed": grade.parsed,
            "score": grade.score,
            "why": grade.why,
            "tokens": len(rollout.completions[row].ids),
            "finish_reason": rollout.completions[row].finish_reason,
            "seed": seeds[row],
        }
        for row, grade in enumerate(rollout.grades)
    ]


def sample_all(sampler, tokenizer, task, jobs: list[Job], args: Args, settings: dict, path: Path) -> list:
    """Sample what is not yet in samples.jsonl (`path`), and return the n rows of each job."""
    n, stream = args.samples, int(settings["model_hash"], 16)
    size = max(1, args.rows_at_once // n)  # problems in a batch
    places = [{"index": job.index, "sample": sample} for job in jobs for sample in range(n)]
    rows = finished_samples(path, places, size * n)
    first = len(rows) // n
    if first:
        say(f"{first:,} of {len(jobs):,} problems are sampled already, in {path}")
    # For the time left: longer prompts have longer answers.
    work = [len(job.prompt_ids) for job in jobs]
    began, tokens = time.monotonic(), 0
    for start in range(first, len(jobs), size):
        new = sample_batch(sampler, tokenizer, task, jobs[start : start + size], args, stream)
        append_or_fail(path, new)
        rows += new
        tokens += sum(row["tokens"] for row in new)
        done, speed = len(rows) // n, tokens / max(time.monotonic() - began, 1e-9)
        left = time_left(began, sum(work[first:done]), sum(work[done:]))
        say(f"{done:>6} of {len(jobs)} problems | {speed:7.0f} tokens/s | left {left}")
    return [rows[i * n : (i + 1) * n] for i in range(len(jobs))]


# --- what is written ----------------------------------------------------------------------------------------


def numbers_of(rows: list[dict], args: Args) -> dict:
    """What was measured of a problem."""
    scores, n = [row["score"] for row in rows], len(rows)
    return {
        "pass_rate": pass_rate(scores, args.tau),
        "n": n,
        "cv": cv(scores, args.ddof),
        "mean_score": sum(scores) / n,
        "mean_tokens": sum(row["tokens"] for row in rows) / n,
        "frac_truncated": sum(row["finish_reason"] == "length" for row in rows) / n,
    }


def problem_line(job: Job, rows: list[dict], task, args: Args) -> dict:
    """A problem for RL: what jsonl:FILE reads, and the place that subset:FILE finds it by."""
    line = {name: getattr(job.problem, name) for name in ("prompt", "answer", "hint", "solution", "horizon")}
    line = {name: value for name, value in line.items() if value is not None}
    place = {"task": args.task, "task_split": "train", "index": job.index, "seed": args.seed}
    if isinstance(task, SubsetTask):  # the place in the task itself, so that the older file is not needed
        place = task.places[job.problem.index]
    return line | place | numbers_of(rows, args)


def trace_lines(job: Job, rows: list[dict], task, args: Args) -> list[dict]:
    """A problem's rows for sft.py."""
    traces = {kind: traces_of(rows, kind, args.tau) for kind in ("correct", "wrong")}
    if args.paired and not (traces["correct"] and traces["wrong"]):
        return []
    common = {"source": task.name, "horizon": job.problem.horizon} | numbers_of(rows, args)
    own = ("prompt", "completion", "answer", "index", "parsed", "score", "tokens")
    chosen = traces[args.traces][: args.per_problem]
    return [{name: row[name] for name in own} | common for row in chosen]


# --- what is shown ------------------------------------------------------------------------------------------


def histogram(rights: list[int], kept: list[bool], n: int) -> list[str]:
    """Lines with how many problems have c right of n samples: kept (#) and dropped (.) ones."""
    counts, counts_kept = Counter(rights), Counter(right for right, is_in in zip(rights, kept) if is_in)
    most = max(counts.values())
    title = f"right of {n}"
    lines = [f"{title:>14} | {'kept':>7} | {'dropped':>7} |"]
    for c in range(n + 1):
        inside, outside = counts_kept[c], counts[c] - counts_kept[c]
        if n > 32 and not counts[c]:
            continue
        bar = "#" * math.ceil(WIDTH * inside / most) + "." * math.ceil(WIDTH * outside / most)
        lines.append(f"{c:>14} | {inside:>7,} | {outside:>7,} | {bar}".rstrip())
    return lines


def band_counts(args: Args) -> list[int]:
    """The numbers of right samples that the band keeps."""
    return [c for c in range(args.samples + 1) if in_band(c / args.samples, args.low, args.high)]


def notes_of(samples: list[dict], args: Args) -> list[str]:
    """What a user should know of the samples before believing the counts."""
    count, notes = len(samples), []
    cut = sum(row["finish_reason"] == "length" for row in samples) / count
    ended = [row for row in samples if row["finish_reason"] != "length"]
    unread = sum(row["parsed"] is None for row in ended) / count
    broken = sum(not was_judged(row) for row in samples)
    if cut > WORTH_SAYING:
        notes.append(
            f"warning: {cut:.0%} of the samples were cut at --max-new-tokens {args.max_new_tokens} and count "
            "as not right: that is length, not difficulty"
        )
    if unread > WORTH_SAYING:
        notes.append(
            f"warning: {unread:.0%} of the samples ended without an answer that can be read and count as not "
            "right: that is format, not difficulty"
        )
    if broken:
        notes.append(f"warning: the grader failed on {broken:,} samples, which count as not right")
    return notes


def show(jobs: list[Job], groups: list[list[dict]], kept: list[bool], args: Args) -> None:
    """The histogram, and what belongs beside it."""
    samples = [row for rows in groups for row in rows]
    rights = [sum(row["score"] > args.tau for row in rows) for rows in groups]
    say("\n" + "\n".join(histogram(rights, kept, args.samples)))
    tokens = sum(row["tokens"] for row in samples)
    say(f"kept {sum(kept):,} of {len(jobs):,} problems")
    say(f"sampled {tokens:,} tokens: they belong to the budget of what is compared with this selection")
    if args.keep == "band":
        band = band_counts(args)
        chances = [keep_probability(p, args.samples, band[0], band[-1]) for p in SHOWN_RATES]
        said = ", ".join(f"{p:.0%}: {chance:.2f}" for p, chance in zip(SHOWN_RATES, chances))
        say(f"chance chooses too; how likely a problem is kept, by how often it is right: {said}")
    for note in notes_of(samples, args):
        say(note)
    if not any(row["parsed"] is not None or row["score"] > args.tau for row in samples):
        [(why, _)] = Counter(row["why"] for row in samples).most_common(1)
        fail(
            f"--model {args.model}: none of its {len(samples):,} samples has an answer that can be read "
            f"(most often: {shown(why, one_line=True)}): that is format, not difficulty; raise "
            "--max-new-tokens, say with --system-prompt how to answer, or take another model"
        )
    if not any(kept):
        fail(
            f"--keep {args.keep}: no problem is kept, see the table; take a wider rule, which samples "
            "nothing anew, or an easier or harder task"
        )


# --- the command --------------------------------------------------------------------------------------------


def samples_folder(args: Args) -> Path:
    return args.samples_dir or args.out.with_name(args.out.name.removesuffix(".jsonl") + ".samples")


def check_out(args: Args) -> None:
    """Refuse to write over anything."""
    if args.out.suffix != ".jsonl":
        fail(f"--out {args.out}: JSON lines are written; give a name that ends in .jsonl")
    refuse_existing("--out", args.out)
    try:
        args.out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        fail(f"--out {args.out}: cannot be written ({error.strerror or error}); choose another place")


def check_rule(args: Args) -> None:
    """Fill what is left open of the rule, and refuse one that cannot choose anything."""
    readers = {"low": "band", "high": "band", "min_cv": "spread", "keep_stable": "spread"}
    for name, rule in readers.items():
        if getattr(args, name) is not None and args.keep != rule:
            fail(f"--{name.replace('_', '-')}: belongs to --keep {rule}; leave one of them out")
    for name in ("per_problem", "paired"):
        if getattr(args, name) and args.traces is None:
            fail(f"--{name.replace('_', '-')}: belongs to --traces; say correct or wrong, or leave it out")
    n = args.samples
    if n == 1 and (args.keep == "spread" or (args.low, args.high) != (0, 1)):
        fail(
            "--samples 1: one sample is right or wrong and says nothing of how hard a problem is; give 4 or "
            "more (--low 0 --high 1 keeps every problem, whatever it is)"
        )
    if args.keep == "spread":
        args.min_cv, args.keep_stable = args.min_cv or 0.0, args.keep_stable or 0.0
        return
    args.low = 1 / n if args.low is None else args.low
    args.high = (n - 1) / n if args.high is None else args.high
    if args.low > args.high:
        fail(f"--low {args.low:g}: is above --high {args.high:g}; give a band from low to high")
    if not band_counts(args):
        fail(
            f"--low {args.low:g} --high {args.high:g}: no number of right samples out of {n} lies in this "
            "band; give a wider one, or more --samples"
        )


def write_lines(lines: list[dict], args: Args) -> None:
    """The file, which gets its name when it is whole."""
    if not lines:
        both = "both a right and a wrong trace" if args.paired else "such a trace"
        fail(
            f"--traces {args.traces}: no problem that is kept has {both}, ended by itself; take a wider "
            "rule, more --samples or a higher --max-new-tokens"
        )
    way_out = "nothing is lost: the same command writes it without sampling again"
    write_or_fail("--out", args.out, json_lines(lines), way_out)
    problems = len({line["index"] for line in lines})
    of = f"{len(lines):,} {args.traces} traces of " if args.traces else ""
    say(f"{args.out}: {of}{problems:,} problems")


def next_command(args: Args, task) -> str:
    """What to type to train on what was written."""
    out = shlex.quote(str(args.out))
    spec = task.spec if isinstance(task, SubsetTask) else args.task
    if args.traces:
        command = f"python sft.py --data {out} --task {shlex.quote(spec)}"
    else:
        command = f"python grpo.py --task {shlex.quote(f'subset:{args.out}')}"
        if args.model not in EMBEDDED:  # the problems are hard or easy for this one
            command += f" --model {shlex.quote(args.model)}"
    if args.system_prompt is not None:
        command += f" --system-prompt {shlex.quote(args.system_prompt)}"
    return command


@stoppable("the same command goes on after the last line of progress")
def main(args: Args, task=None, sampler=None) -> Path:
    """Sample, show, write; returns the file. A task or sampler of your own can be passed in."""
    in_one_process("tools/select_data.py")
    args = replace(args)
    check_flags(args)
    check_rule(args)
    check_out(args)
    keep_freed_memory()
    task = or_fail(load_task, args.task) if task is None else task
    resolve_model(args, task)
    check_flags(args)

    # --- sample
    model, tokenizer = load_model(args.model)
    resolve_defaults(args, model.num_parameters(), task)
    set_thinking(tokenizer, args.enable_thinking)
    check_template(tokenizer, args.system_prompt)
    sampler = sampler or make_sampler(args, model, eos_ids(model, tokenizer))
    jobs = that_fit(jobs_of(task, args, tokenizer), sampler, args)
    settings, folder = settings_of(args, model, tokenizer, sampler, task, jobs), samples_folder(args)
    with claimed("--samples-dir", folder, "config.json"):
        way_out = "give the old value or another --out, or delete the folder"
        keep_settings("--samples-dir", folder, settings, way_out)
        say(f"{args.model}: {len(jobs):,} problems x {args.samples} samples into {folder}")
        groups = sample_all(sampler, tokenizer, task, jobs, args, settings, folder / "samples.jsonl")

    # --- choose
    scores = [[row["score"] for row in rows] for rows in groups]
    kept = [is_kept(own, job.problem.prompt, args) for job, own in zip(jobs, scores)]
    show(jobs, groups, kept, args)

    # --- write
    chosen = [(job, rows) for job, rows, is_in in zip(jobs, groups, kept) if is_in]
    chosen.sort(key=lambda pair: pair[0].index)  # in the order of training
    if args.traces:
        lines = [line for job, rows in chosen for line in trace_lines(job, rows, task, args)]
    else:
        lines = [problem_line(job, rows, task, args) for job, rows in chosen]
    write_lines(lines, args)
    say(f"next: {next_command(args, task)}")
    return args.out


if __name__ == "__main__":
    main(parse(Args, __doc__))


# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "torch==2.13.0", "transformers>=5.16.1,<5.20", "safetensors", "numpy", "tyro", "filelock",
#     "math-verify>=0.9,<0.10", "antlr4-python3-runtime==4.13.2", "matplotlib", "jinja2",
# ]
# ///
