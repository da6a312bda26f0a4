"""SmolLM2-135M-Instruct on countdown: Dr. GRPO, stopped early and at the end, against SIREN with two betas.

    python benchmarks/countdown_smollm2.py --trials    the trials on development seed 100
    python benchmarks/countdown_smollm2.py             the reported runs on seed 1
    python benchmarks/countdown_smollm2.py --tables    the tables again, from the committed logs

`tools/convert_gguf.py` makes the folder of --model once. What is finished is skipped, so the same command
goes on.

Rules and protocol, written down before the first run:

- World: countdown with three numbers from 1 to 15. From four to eight worked examples as turns of the chat
  the model solves none of 256, so there is nothing to reinforce. All arms start from a supervised model:
  sft.py, one pass over 6,000 rows. Half are correct ways, two in five of which reach the target. Half are
  what is left of such a problem after a right first line: two numbers, and the line that hits the target.
- Three starts were given up, before any arm but Dr. GRPO was trained. After 2,000 right ways the model wrote
  the target behind the last "=" whatever stood before it: 74% wrong arithmetic. After 2,000 and 6,000 correct
  ways it did not look at the target: test avg@16 .051 and .079, where random ways would have .096. From the
  last of them 50 steps of Dr. GRPO at 1e-5 changed nothing, and at 3e-5 and 1e-4 the form was lost.
- The body of the model computes in bfloat16, as on a GPU (--bf16), in training and in measuring.
- 50 steps of 8 prompts x 8 completions, one update a step; same problems, order and sampling seeds.
- Tuning, on one seed: three learning rates of Dr. GRPO, then three betas of SIREN at the best one. The best
  has the highest mean of avg@16 and pass@16 on dev after the last step. Reported are the best beta and the
  next larger one, or, where the largest is best, the next smaller one.
- Reported: the model after every fifth of the steps, on 200 test problems x 16 samples at temperature 1.
- Early stopping is an arm: the fifth with the highest such mean on dev, the starting model among them.
- One run of each. Intervals are a bootstrap over problems and know nothing of the luck of a training run.
"""

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
import sft  # noqa: E402
from benchmarks import where_entropy_is  # noqa: E402
from benchmarks.arms import RealModelArgs, trial_name  # noqa: E402
from benchmarks.countdown import counts, masked_entropy, sampled, train_in_parts  # noqa: E402
from benchmarks.countdown_tables import STOPPED, Runs, dev_score, read_runs, scores_of, tokens_at  # noqa: E402
from benchmarks.recipes import NO_SCORES  # noqa: E402
from plainrl.countdown import LINE, CountdownTask, prompt_of  # noqa: E402
from plainrl.folder import json_lines, write_text  # noqa: E402
from plainrl.metrics import intervals, pass_at_k  # noqa: E402
from plainrl.models import eos_ids, load_model, model_hash  # noqa: E402
from plainrl.sampler import HFSampler  # noqa: E402
from plainrl.tasks import Problem  # noqa: E402
from tools import make_tiny  # noqa: E402

TRIAL_SEED = 100
STOPS = (10, 20, 30, 40, 50)
START_ROWS = 6000
START = (
    "--task countdown --epochs 1 --rows-per-step 16 --lr 2e-4 --seed 0 --max-new-tokens 32 "
    f"--bf16 {NO_SCORES}"
)
COMMON = (
    "--task countdown --prompts-per-step 8 --group-size 8 --max-new-tokens 32 --save-every 5 "
    f"--micro-batch-tokens 2048 --bf16 {NO_SCORES}"
)
SCRIPTS = {"dr_grpo": "papers/dr_grpo.py", "siren": "siren.py", "siren_strong": "siren.py"}
RATES = ("1e-5", "3e-5", "1e-4")
BETAS = ("0.03", "0.1", "0.3")
CHOSEN: dict[str, str] = {}
NAMES = {
    "dr_grpo": "Dr. GRPO",
    STOPPED: "Dr. GRPO, stopped early",
    "siren": "SIREN",
    "siren_strong": "SIREN, stronger",
}


@dataclass
class Args(RealModelArgs):
    out: Path = ROOT / "runs/reference/countdown_smollm2"
    """where the logs are collected"""
    trials: bool = False
    """the trials instead of the reported runs"""
    tables: bool = False
    """run nothing, show the tables"""
    samples: int = 16
    """completions of each"""
    only: tuple[str, ...] = ()
    """arms, instead of all"""


def measure(folder: Path, args: Args, what: str) -> dict:
    """What a model does on dev ("dev"), and on test and where its entropy is ("all")."""
    model, tokenizer = load_model(str(folder), bf16=True)
    sampler = HFSampler(model.eval(), eos_ids(model, tokenizer))
    rows, rollouts = sampled(sampler, tokenizer, "dev", args.problems // 2, args.samples)
    result = {"dev": counts(rows, rollouts), "H": masked_entropy(model, rollouts)}
    if what == "dev":
        return result
    result["model_hash"] = model_hash(model)
    settings = where_entropy_is.Args(models=(), problems=25, samples=4, max_new_tokens=32)
    found = where_entropy_is.positions(model, tokenizer, CountdownTask(), settings)
    result["entropy"] = where_entropy_is.shares(found)
    result["1"] = counts(*sampled(sampler, tokenizer, "test", args.problems, args.samples))
    return result


# --- running ------------------------------------------------------------------------------------------------


def write_start_rows(path: Path) -> None:
    """Whole problems, of the corpus that models/countdown was made from, and last lines in turn."""
    corpus = make_tiny.Args(world="countdown", four_numbers=0, hint_fraction=0, solutions_per_prompt=1)
    task, rows = CountdownTask(), []
    for index, (prompt, (way,)) in zip(range(START_ROWS // 2), make_tiny.countdown_corpus(0, corpus)):
        rows += [(prompt, way), last_line(task.problem("sft", index, 0))]
    lines = [{"prompt": prompt, "completion": way, "split": "train"} for prompt, way in rows]
    write_text(path, json_lines(lines))


def last_line(problem: Problem) -> tuple[str, str]:
    """What is left of a problem of three numbers after the first line of its solution, and the other line."""
    first, last = problem.solution.split("\n")
    one, _, other, result = LINE.fullmatch(first).groups()
    left = [*problem.options, result]
    left.remove(one)
    left.remove(other)
    return prompt_of(list(map(int, left)), int(problem.answer)), last


def supervised_start(args: Args) -> Path:
    """The model that all arms start from; made and measured once."""
    run, file = args.folder() / "start", args.out / "start.json"
    if not (run / "final").exists():
        resume = ["--resume"] if run.exists() else []
        rows = args.folder() / "start_rows.jsonl"
        write_start_rows(rows)
        paths = ["--model", os.path.relpath(args.model), "--data", os.path.relpath(rows)]
        paths += ["--out-dir", os.path.relpath(run)]
        sft.main(tyro.cli(sft.Args, args=[*START.split(), *paths, *resume]))
    args.out.mkdir(parents=True, exist_ok=True)
    if not file.exists():
        write_text(file, json.dumps(measure(run / "last", args, "all")) + "\n")
    elif json.loads(file.read_text())["model_hash"] != model_hash(load_model(str(run / "last"))[0]):
        sys.exit(
            f"error: {file}: of another start than {run}; remove it and the arms beside it, or the start"
        )
    return run / "last"


def train(args: Args, arm: str, setting: str, seed: int) -> dict:
    """One run, with its measurements; returns that of its last model."""
    name = f"{trial_name(arm, setting)}/seed{seed}" if args.trials else f"{arm}/seed{seed}"
    run, target = args.folder() / name, args.out / name
    last = target / f"step{STOPS[-1]}.json"
    if not (target / "curves.json").exists():
        model = os.path.relpath(supervised_start(args))
        command = f"{SCRIPTS[arm]} --model {model} {COMMON} {setting} --seed {seed}"
        what = "dev" if args.trials else "all"
        stops = STOPS[-1:] if args.trials else STOPS
        train_in_parts(command, stops, run, target, lambda folder, step: measure(folder, args, what))
    return json.loads(last.read_text())


def run_trials(args: Args) -> None:
    """Learning rates of Dr. GRPO, then betas at the better one; what they came to is kept in trials.json."""
    file = args.out / "trials.json"
    trials = json.loads(file.read_text()) if file.exists() else {}

    def score_of(arm: str, setting: str) -> float:
        if setting not in trials.setdefault(arm, {}):
            trials[arm][setting] = summary(train(args, arm, setting, TRIAL_SEED))
            args.out.mkdir(parents=True, exist_ok=True)
            write_text(file, json.dumps(trials, indent=1) + "\n")
        return trials[arm][setting]["score"]

    rate = max(RATES, key=lambda rate: score_of("dr_grpo", f"--lr {rate}"))
    for beta in BETAS:
        score_of("siren", f"--beta {beta} --lr {rate}")


def summary(result: dict) -> dict:
    scores = scores_of(result["dev"])
    values = {name: scores[name] for name in ("avg", "pass@16", "unparsed")}
    values |= {"H": result["H"], "score": dev_score(result["dev"])}
    return {name: round(value, 4) for name, value in values.items()}


# --- tables -------------------------------------------------------------------------------------------------


def trials_table(out: Path) -> str:
    """Every setting that was tried; those of the reported runs in bold."""
    lines = [
        "| arm | setting | dev avg@16 | pass@16 | unparsed | H / H of the start | score |",
        "|---" * 7 + "|",
    ]
    start, trials = (
        json.loads((out / "start.json").read_text())["H"],
        json.loads((out / "trials.json").read_text()),
    )
    for arm, settings in trials.items():
        for setting, found in settings.items():
            cells = [f"{found[name]:.3f}" for name in ("avg", "pass@16", "unparsed")]
            score = f"{found['score']:.3f}"
            cells += [f"{found['H'] / start:.2f}", f"**{score}**" if setting in CHOSEN.values() else score]
            lines.append(f"| {NAMES[arm]} | `{setting}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def values_of(counted: dict) -> np.ndarray:
    """Of every test problem avg@16, pass@4, pass@16 and the different right completions: [P, 4]."""
    n = counted["samples"]
    rows = zip(counted["correct"], counted["different"], strict=True)
    return np.array([[c / n, pass_at_k(n, c, 4), pass_at_k(n, c, n), different] for c, different in rows])


def scores_table(runs: Runs, seed: str) -> str:
    """Test scores of every arm, and what it has more than Dr. GRPO stopped early, paired by problem."""
    compared = ["avg@16", "pass@4", "pass@16", "different right of 16"]
    gained = " | ".join(f"{name} minus early stopping" for name in compared[:3])
    lines = [
        f"| | steps | {' | '.join(compared)} | maj@16 | unparsed | entropy at choices | H / H of the start "
        f"| thousands of sampled tokens | {gained} |",
        "|---" * 13 + "|",
    ]
    reference = values_of(runs.at(STOPPED, seed)["1"])
    rows = [("before", 0, runs.start, 0)]
    for arm in runs.arms():
        stopped = runs.stopped(seed) if arm == STOPPED else max(runs.steps[arm][seed])
        rows.append((NAMES[arm], stopped, runs.at(arm, seed), tokens_at(runs, arm, seed)))
    for name, steps, result, tokens in rows:
        scores, own = result["scores"]["1"], values_of(result["1"])
        cells = [*(f"{value:.3f}" for value in own.mean(0)), f"{scores['maj@16']:.3f}"]
        cells += [f"{scores['unparsed']:.3f}", f"{result['entropy']['shares']['choice']:.3f}"]
        cells += [f"{scores['H']:.2f}", f"{tokens / 1e3:.0f}"]
        low, high = intervals(own - reference, np.zeros(len(own)))
        gains = (own - reference).mean(0)
        for i in range(3):
            cells.append("" if name == NAMES[STOPPED] else f"{gains[i]:+.3f} [{low[i]:+.3f}, {high[i]:+.3f}]")
        lines.append(f"| {name} | {steps} | {' | '.join(cells)} |")
    return "\n".join(lines)


def path_table(runs: Runs, seed: str) -> str:
    """avg@16 and pass@16 after every fifth of the steps."""
    lines = ["| avg@16 / pass@16 after | " + " | ".join(f"{step} steps" for step in (0, *STOPS)) + " |"]
    lines.append("|---" * (len(STOPS) + 2) + "|")
    for arm, seeds in runs.steps.items():
        scores = [seeds[seed][step]["scores"]["1"] for step in (0, *STOPS)]
        cells = [f"{score['avg']:.3f} / {score['pass@16']:.3f}" for score in scores]
        lines.append(f"| {NAMES[arm]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def report(out: Path) -> dict[str, str]:
    """Every table, of what is there."""
    found = {}
    if (out / "trials.json").exists():
        found["trials"] = trials_table(out)
    if (out / "start.json").exists() and "dr_grpo" in (
        runs := read_runs(out, list(SCRIPTS), STOPS[-1])
    ).steps:
        (seed,) = runs.seeds("dr_grpo")
        found |= {"scores": scores_table(runs, seed), "path": path_table(runs, seed)}
    return found


def main(args: Args) -> None:
    os.chdir(ROOT)  # the scripts write where they are called
    if args.tables:
        return print("\n\n".join(report(args.out).values()))
    if not args.model.is_dir():
        sys.exit(f"error: --model {args.model}: no such folder; tools/convert_gguf.py makes it")
    if args.trials:
        run_trials(args)
    else:
        for arm in args.only or CHOSEN:
            train(args, arm, CHOSEN[arm], args.seed)
    print("\n\n".join(report(args.out).values()))


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
