r"""Measures a model on held-out problems, alone or against another: avg@k, pass@k, maj@k and intervals.

    python eval.py --model runs/grpo/chain-seed0/final --task chain --baseline models/tiny
    python eval.py --model Qwen/Qwen2.5-Math-7B --task aime24 --preset siren-32
    python eval.py --plot runs/eval/FIRST runs/eval/SECOND

`--task chain` measures the horizons 1 to 5 (100 problems x 16 samples each: a minute on a laptop). Every
sample is a line of samples.jsonl, every number is in results.json. The same command goes on where it was
interrupted, and a finished evaluation is shown again without sampling. What the numbers are is in
plainrl/metrics.py, how two models are compared in plainrl/results.py.

Letters in shapes: P problems, n samples of each.
"""

import json
import math
import multiprocessing
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from plainrl import curves, ranks
from plainrl.flags import (
    EVAL_LENGTHS,
    EVAL_SEED,
    Bounds,
    Count,
    Length,
    Natural,
    Number,
    Positive,
    Share,
    by_size,
    check_flags,
    parse,
    resolve_defaults,
    resolve_model,
)
from plainrl.folder import append_or_fail, claimed, keep_settings, write_or_fail, writing
from plainrl.geo import shares_within
from plainrl.hints import with_hint
from plainrl.horizons import asked_problems, each_horizon
from plainrl.logit_sum import LogitSum, alpha_of, load_beside, sample_here
from plainrl.metrics import (
    count,
    judged,
    pass_at_k,  # noqa: F401  (others import it from here)
)
from plainrl.models import check_model_name, eos_ids, keep_freed_memory, load_model
from plainrl.results import (
    as_text,
    cell,  # noqa: F401  (benchmarks import it from here)
    compare,
    comparison_tables,
    described,
    in_words,
    result_rows,
    score_tables,
)
from plainrl.rollout import (
    check_prompt,
    check_template,
    completion_seed,
    encode_prompt,
    sample_rollout,
    set_thinking,
)
from plainrl.run import git_commit
from plainrl.sampler import make_sampler
from plainrl.samples import finished_samples, folder_of, sampling_settings
from plainrl.screen import fail, say, time_left
from plainrl.tasks import Problem

PRESETS = {  # the papers' protocols; the length limit stays with --max-new-tokens
    "siren-32": {"temperature": 0.6, "samples": 32},  # SIREN, on AIME and AMC
    "siren-8": {"temperature": 0.6, "samples": 8},  # SIREN, on MATH-500 and OlympiadBench
    "h1-greedy": {"temperature": 0.0, "samples": 1},  # h1, on everything but AIME
    "h1-avg32": {"temperature": 1.0, "samples": 32},  # h1, on AIME; its temperature is not published: ours
}
DEFAULTS = {"temperature": 1.0, "samples": 16}  # greedy samples are all equal: one is enough


@dataclass
class Args:
    model: str | None = None
    """Hugging Face folder, hub name or .gguf file (default: models/tiny, or models/countdown with --task
    countdown)"""
    task: str = "chain"
    """what to measure it on (see plainrl/tasks.py); a range of horizons (`chain` is `chain?horizon=1-5`) is
    measured at each of them"""
    split: Literal["test", "dev", "train", "all"] = "test"
    """which problems; `all` is every problem of a file of your own"""
    baseline: str | None = None
    """another model to measure on the same problems and compare with, or the folder of an evaluation that is
    there"""
    reasoners: tuple[str, ...] = ()
    """models of papers/unir.py whose logits are added to those of --model, and not to those of --baseline"""
    alphas: tuple[Number, ...] = ()
    """weight of each reasoner's logits (default: the one that it was trained with, 1 where nobody knows)"""
    preset: Literal["siren-32", "siren-8", "h1-greedy", "h1-avg32"] | None = None
    """a paper's protocol: temperature and number of samples (flags given beside it win)"""
    problems: Count | None = None
    """how many problems, for each horizon of a range (default: all of a finite set, 200 of an endless one,
    100 a horizon)"""
    samples: Annotated[int | None, Bounds(at_least=1, at_most=10_000), tyro.conf.arg(aliases=["-n"])] = None
    """completions per problem, n; 5 gives avg@5 (default: 16, greedy 1)"""
    max_new_tokens: Length | None = by_size(**EVAL_LENGTHS)
    """longest completion"""
    temperature: Annotated[float, Bounds(at_least=0, at_most=100)] | None = None
    """sampling temperature; 0 is greedy (default: 1)"""
    top_p: Share = 1.0
    """nucleus sampling"""
    seed: Natural = 0
    """of the sampling; the problems are always the same"""
    system_prompt: str | None = None
    """system turn put before every prompt"""
    enable_thinking: Literal["yes", "no"] | None = None
    """what the chat template is told of `enable_thinking` (default: nothing, so that its own default holds);
    a template that does not know the word ignores it"""
    hint: bool = False
    """show each problem's hint"""
    thresholds: tuple[Positive, ...] = ()
    """km: show the share of answers within each of these distances, of a task that has distances (geo)"""
    engine: Literal["auto", "hf", "vllm"] = "auto"
    """sampler: hf (transformers) or vllm (needs requirements-vllm.txt); auto is vllm where it and a GPU are
    there, else hf"""
    rows_at_once: Count = 256
    """completions sampled together; smaller needs less memory"""
    out_dir: Path | None = None
    """where samples.jsonl and results.json go (default: runs/eval/<model>-<task>-<hash of all settings>)"""
    plot: tuple[Path, ...] = ()
    """draw the pass@k curves of these finished evaluations (folders) into one picture, and measure nothing"""


# --- sampling and counting ----------------------------------------------------------------------------------


@dataclass
class Job:
    """One problem to sample, and the task that grades it."""

    task: object
    index: int
    problem: Problem
    prompt: str
    prompt_ids: list[int]


def tasks_of(args: Args) -> list:
    """The task that --task names; a range of horizons becomes one task for each."""
    return each_horizon("chain?horizon=1-5" if args.task == "chain" else args.task)


def jobs_of(tasks: list, args: Args, tokenizer) -> list[Job]:
    """Every problem, in the order in which they are sampled: by the length of the prompt, so that a batch has
    little padding."""
    jobs = []
    for task, index, problem in asked_problems(tasks, args):
        if args.hint and problem.hint is None:
            fail(f"--hint: problem {index} of --task {args.task} has no hint; leave the flag out")
        prompt = with_hint(problem) if args.hint else problem.prompt
        ids = encode_prompt(tokenizer, prompt, args.system_prompt)
        jobs.append(Job(task, index, problem, prompt, ids))
    return sorted(jobs, key=lambda job: len(job.prompt_ids))


def with_reasoners(model, tokenizer, reasoners: tuple[str, ...], args: Args):
    """The model, or its sum with the reasoners; and the weights of their logits."""
    if not reasoners:
        if hasattr(model.config, "unir"):
            say(f"note: a reasoner, measured alone; it was trained beside {model.config.unir['frozen']}")
        if hasattr(model.config, "quiet_star"):
            say("note: measured without the thoughts that papers/quiet_star.py has taught it")
        return model, []
    beside = [load_beside("--reasoners", name, "--model", model, tokenizer) for name in reasoners]
    alphas = [*(args.alphas or map(alpha_of, beside))]
    return LogitSum([model, *beside], [1.0, *alphas]), alphas


def settings_of(
    args: Args, model_name: str, model, tokenizer, sampler, tasks: list, jobs: list[Job], alphas: list
) -> dict:
    """Everything that the numbers depend on; it stands in config.json, and in every row of results.json."""
    texts = [(job.problem.horizon, job.index, job.prompt, job.problem.answer) for job in jobs]
    own = {"split": args.split, "system_prompt": args.system_prompt, "hint": args.hint}
    own |= {"enable_thinking": args.enable_thinking} if args.enable_thinking else {}
    own |= {"alphas": alphas} if alphas else {}
    return sampling_settings(args, model_name, model, tokenizer, sampler, tasks[0], texts) | own


def sample_batch(sampler, tokenizer, batch: list[Job], args: Args, settings: dict) -> list[dict]:
    """Sample, grade and vote: one row a sample, with all that is needed to repeat and to judge it."""
    n, stream = args.samples, int(settings["model_hash"], 16)  # every model draws random numbers of its own
    seeds = [
        completion_seed(EVAL_SEED, args.seed, job.problem.horizon, job.index, stream, sample)
        for job in batch
        for sample in range(n)
    ]
    problems, prompts = [job.problem for job in batch], [job.prompt for job in batch]
    how = (args.max_new_tokens, args.temperature, args.system_prompt, args.top_p)
    rollout = sample_rollout(sampler, tokenizer, batch[0].task, problems, prompts, seeds, n, *how)
    kept = ("model", "task", "split", "system_prompt", "temperature", "top_p", "grader")
    rows = []
    for i, job in enumerate(batch):
        for sample, verdict in enumerate(judged(job.task, rollout, i * n, n)):
            row = i * n + sample
            rows.append(
                {
                    "index": job.index,
                    "horizon": job.problem.horizon,
                    "source": job.problem.source,
                    "sample": sample,
                    **prompt_fields(job, tokenizer),
                    "completion": rollout.texts[row],
                    "gold": job.problem.answer,
                    **verdict,
                    "score": rollout.grades[row].score,
                    "seed": seeds[row],
                    **{name: settings[name] for name in kept},
                }
            )
    return rows


def prompt_fields(job: Job, tokenizer) -> dict:
    """The prompt of a row as in the logs of training: the problem alone. With a hint, that and what the model
    read; else what it read is the prompt in `prompt_template` of config.json."""
    plain = {"prompt": job.problem.prompt}
    if job.prompt == job.problem.prompt:
        return plain
    return plain | {"sampled_prompt": tokenizer.decode(job.prompt_ids), "hint": job.problem.hint}


def sample_all(sampler, tokenizer, jobs: list[Job], args: Args, settings: dict, path: Path) -> list[dict]:
    """Sample what is not yet in samples.jsonl (`path`), and return all of its rows."""
    # A batch is a pure function of the flags. Half a batch that a kill left is sampled again.
    n, size = args.samples, max(1, args.rows_at_once // args.samples)
    batches = [jobs[start : start + size] for start in range(0, len(jobs), size)]
    places = [
        {"horizon": job.problem.horizon, "index": job.index, "sample": sample}
        for job in jobs
        for sample in range(n)
    ]
    rows = finished_samples(path, places, size * n)
    finished = math.ceil(len(rows) / n / size)
    # For the time left: longer prompts have longer answers.
    work = [sum(len(job.prompt_ids) for job in batch) for batch in batches]
    began, tokens = time.monotonic(), 0
    for i, batch in enumerate(batches[finished:], start=finished):
        new = sample_batch(sampler, tokenizer, batch, args, settings)
        append_or_fail(path, new)
        rows, tokens = rows + new, tokens + sum(row["tokens"] for row in new)
        speed = tokens / max(time.monotonic() - began, 1e-9)  # a clock may stand still
        left = time_left(began, sum(work[finished : i + 1]), sum(work[i + 1 :]))
        done = f"{len(rows) // n:>6} of {len(jobs)} problems"
        say(f"{done} | {speed:7.0f} tokens/s | left {left}")
    return rows


def measure(
    model_name: str,
    args: Args,
    out_dir: Path | None,
    before: dict | None = None,
    reasoners: tuple[str, ...] = (),
) -> tuple[dict, Path]:
    """Evaluate a model, with reasoners or alone, going on where an earlier call stopped. Returns the content
    of results.json, and its folder.

    With the results of a baseline (`before`), stops before anything is sampled if the two cannot be compared.
    """
    tasks = tasks_of(args)
    model, tokenizer = load_model(model_name)
    resolve_defaults(args, model.num_parameters())
    set_thinking(tokenizer, args.enable_thinking)
    check_template(tokenizer, args.system_prompt)
    jobs = jobs_of(tasks, args, tokenizer)
    model, alphas = with_reasoners(model, tokenizer, reasoners, args)
    model_name = " + ".join([model_name, *reasoners])
    sampler = make_sampler(args, model, eos_ids(model, tokenizer))
    for job in jobs:
        check_prompt(job.prompt_ids, args.max_new_tokens, sampler, f"{args.split} problem {job.index}")
    settings = settings_of(args, model_name, model, tokenizer, sampler, tasks, jobs, alphas)
    if before is not None:
        check_comparable(before["settings"], settings)
    out_dir = out_dir or folder_of("eval", settings)
    with claimed("--out-dir", out_dir, "config.json"):
        keep_settings("--out-dir", out_dir, settings, "choose another --out-dir", git_commit=git_commit())
        if (out_dir / "results.json").exists():
            say(f"{model_name}: measured before, see {out_dir}")
            return read_results(out_dir, "--out-dir"), out_dir
        say(f"{model_name}: {len(jobs)} problems x {args.samples} samples into {out_dir}")
        rows = sample_all(sampler, tokenizer, jobs, args, settings, out_dir / "samples.jsonl")
        problems = tally(rows, args.samples)
        results = {"settings": settings, "rows": result_rows(problems, settings), "problems": problems}
        write_json(out_dir / "results.json", results)
    return results, out_dir


def measure_baseline(args: Args) -> dict:
    """`measure` of --baseline. Where vLLM may sample, a process of its own frees the memory at its end."""
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


# --- what is shown ------------------------------------------------------------------------------------------

MUST_BE_EQUAL = ("problems_hash", "split", "samples", "hint", "temperature", "top_p", "max_new_tokens")
MUST_BE_EQUAL += ("grader", "sampler")


def check_comparable(before: dict, after: dict) -> None:
    """Stop unless two evaluations (their settings) asked the same problems in the same way."""
    for name in MUST_BE_EQUAL:
        if before[name] != after[name]:
            fail(
                f"--baseline: was measured with {name} {before[name]}, the model with {after[name]}; "
                "measure both with the same flags"
            )


def show(results: dict) -> None:
    """A table by horizon, if there are several, and every metric of all problems."""
    settings = results["settings"]
    say(f"\n{described(settings)}\n")
    say(as_text(score_tables(results["rows"], settings["samples"])))


def show_thresholds(args: Args, folder: Path) -> None:
    """How many of all samples in samples.jsonl are within each of --thresholds. No place is none."""
    (task,), distances = tasks_of(args), []
    for line in (folder / "samples.jsonl").read_text("utf-8").splitlines():
        row = json.loads(line)
        distances.append(
            task.distance_km(row["completion"], task.problem(args.split, row["index"], EVAL_SEED))
        )
    shares = shares_within(distances, args.thresholds)
    say("\n" + "   ".join(f"within {limit:g} km {share:.3f}" for limit, share in shares.items()))


def show_comparison(comparison: dict) -> None:
    """Which differences exclude zero, and where the gain comes from."""
    say(f"\n{as_text(comparison_tables(comparison))}")


# --- folders ------------------------------------------------------------------------------------------------


def write_json(path: Path, content: dict) -> None:
    way_out = "nothing is lost: the same command writes it without sampling again"
    write_or_fail("--out-dir", path, json.dumps(content, indent=1) + "\n", way_out)


def read_results(folder: str | Path, flag: str) -> dict:
    try:
        results = json.loads(Path(folder, "results.json").read_text())
        return {name: results[name] for name in ("settings", "rows", "problems")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        fail(
            f"{flag} {folder}: is no finished evaluation of eval.py (results.json: {in_words(error)}); give "
            "a folder with its results.json"
        )


def plot_results(folders: tuple[Path, ...], out_dir: Path | None) -> Path:
    """pass@k over k of several evaluations, with 95% bands."""
    lines = {}
    for folder in folders:
        results = read_results(folder, "--plot")
        settings, metrics = results["settings"], results["rows"][-1]["metrics"]
        label = f"{settings['model']} on {settings['task']}" + (
            f" ({folder.name})" if len(folders) > 1 else ""
        )
        ks = [*range(1, settings["samples"] + 1)]
        value, low, high = ([metrics[f"pass@{k}"][part] for k in ks] for part in ("value", "low", "high"))
        lines[label] = (ks, value, low, high)
    path = (out_dir or folders[0]) / "pass_at_k.png"
    with writing("--plot", path, "give another --out-dir"):
        path.parent.mkdir(parents=True, exist_ok=True)
        curves.plot_bands(lines, path, "k", "pass@k", "pass@k, 95% intervals over problems")
    return path


# --- the command --------------------------------------------------------------------------------------------


def check_args(args: Args) -> None:
    """Fill what is left open, and refuse what cannot work."""
    greedy = {"samples": 1} if args.temperature == 0 else {}
    for name, value in (DEFAULTS | PRESETS.get(args.preset, {}) | greedy).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    resolve_model(args, tasks_of(args)[0])
    check_flags(args)
    if args.reasoners:
        sample_here(args, "--reasoners")
    if args.alphas and len(args.alphas) != len(args.reasoners):
        fail(f"--alphas: {len(args.alphas)} for {len(args.reasoners)} of --reasoners; give one for each")
    if args.thresholds and not hasattr(tasks_of(args)[0], "distance_km"):
        fail(f"--thresholds: --task {args.task} has no distances; take geo, or leave them out")
    if args.temperature == 0 and args.samples > 1:
        fail(f"--temperature 0 --samples {args.samples}: greedy samples are all equal; give -n 1")


def main(args: Args) -> dict:
    """Measure, show, compare; returns the content of results.json."""
    if args.plot:
        say(f"{plot_results(args.plot, args.out_dir)}")
        return {}
    if ranks.WORLD_SIZE > 1:
        fail("eval.py runs in one process; start it without torchrun, one on each GPU (CUDA_VISIBLE_DEVICES)")
    keep_freed_memory()
    args = replace(args)
    check_args(args)
    before = None
    try:
        if args.baseline is not None:
            check_model_name(args.model)  # before the baseline takes its hours
            config = Path(args.baseline, "config.json")  # a model's, or an evaluation's
            if config.exists() and "problems_hash" in config.read_text():
                before = read_results(args.baseline, "--baseline")
            else:
                before = measure_baseline(args)
        results, folder = measure(args.model, args, args.out_dir, before, args.reasoners)
        show(results)
        if args.thresholds:
            show_thresholds(args, folder)
        if before is not None:
            results["comparison"] = compare(before, results)
            show_comparison(results["comparison"])
            path = folder / f"against-{before['settings']['model_hash']}.json"
            write_json(path, results["comparison"])
        say(f"\neverything is in {folder}; a page that shows it: python tools/report.py {folder}")
    except KeyboardInterrupt:
        sys.exit("\nstopped; the same command goes on after the last line of progress")
    return results


if __name__ == "__main__":
    main(parse(Args, __doc__))


# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "torch==2.13.0", "transformers>=5.16.1,<5.20", "safetensors", "numpy", "tyro", "filelock",
#     "math-verify>=0.9,<0.10", "antlr4-python3-runtime==4.13.2", "matplotlib", "jinja2",
# ]
# ///
