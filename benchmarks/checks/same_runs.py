"""Proof that a move of the code changes nothing: five steps of every script, at a commit and as it is now.

    python benchmarks/checks/same_runs.py --before 212a0fd                      all runs; writes same_runs.md
    python benchmarks/checks/same_runs.py --before 212a0fd --only grpo siren    some runs

Both must have the same metrics (but for times and memory), the same samples, and in last/, best/ and final/
the same weights and optimizer, to the last bit. It runs on the CPU, where equal seeds give equal numbers.
The commit is checked out under runs/checks, as a git worktree that goes again at the end.
"""

import filecmp
import json
import os
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
from plainrl.folder import write_text  # noqa: E402
from plainrl.screen import fail  # noqa: E402

SCRATCH = ROOT / "runs/checks/same_runs"
FLAGS = (
    "--steps 5 --eval-every 2 --save-every 2 --eval-problems 10 --eval-samples 4 --test-problems 10 "
    "--prompts-per-step 4 --group-size 8"
)
FIVE = '--task "chain?horizon=5"'
TWICE = "--minibatches 2 --epochs 2"
RUNS = {  # name: command
    "grpo": "grpo.py",
    "grpo_kl": f"grpo.py --kl-coef 0.1 {TWICE} --mask-truncated --max-new-tokens 48 --importance-cap 2",
    "grpo_lora": "grpo.py --lora-rank 4 --lr 1e-2",
    "dr_grpo": "papers/dr_grpo.py",
    "dapo": "papers/dapo.py --minibatches 2",
    "siren": "siren.py --minibatches 2 --beta 0.1",
    "siren_default": "siren.py",
    "siren_ablation": "siren.py --no-anchor --nucleus-p 1 --tau 0",
    "guide": "guide.py --minibatches 2",
    "guide_default": f"guide.py {FIVE}",
    "guide_never": "papers/guide_ablations.py --trigger never",
    "guide_none": f"papers/guide_ablations.py {FIVE} --correction none",
    "guide_join": f"papers/guide_ablations.py {FIVE} --group join",
    "guide_always": f"papers/guide_ablations.py {FIVE} --trigger always",
    "guide_sequence": f"papers/guide_ablations.py {FIVE} --correction sequence --shaping none "
    "--advantage centred --aggregation constant",
    "guide_keep": f"papers/guide_ablations.py {FIVE} --correction keep_hint --shaping clip --trigger below",
    "h1": "h1_curriculum.py --max-horizon 3 --minibatches 2",
    "h1_budgets": "h1_curriculum.py --max-horizon 3 --completion-budgets 40 80 --format-reward "
    "--advance-at 0.3",
    "h1_only_short": "h1_curriculum.py --schedule only_short --max-horizon 3",
    "h1_only_long": "h1_curriculum.py --schedule only_long --max-horizon 3",
    "h1_uniform_mix": "h1_curriculum.py --schedule uniform_mix --max-horizon 3",
    "adarft": "papers/adarft.py --max-horizon 3",
    "e2h_cosine": "papers/e2h.py --schedule cosine --max-horizon 3",
    "e2h_gaussian": "papers/e2h.py --schedule gaussian --max-horizon 3",
    "naive_bonus": "papers/naive_bonus.py --minibatches 2",
    "adaptive_bonus": "papers/adaptive_bonus.py --minibatches 2",
    "entropy_advantage": "papers/entropy_advantage.py --minibatches 2",
    "high_entropy_tokens": "papers/high_entropy_tokens.py --minibatches 2",
    "clip_cov": "papers/clip_cov.py --minibatches 2",
    "kl_cov": f"papers/kl_cov.py {TWICE}",
}
BASELINES = "naive_bonus", "adaptive_bonus", "entropy_advantage", "high_entropy_tokens", "clip_cov", "kl_cov"
EARLIER_COMMANDS = {  # what a command began with where papers/ was not there
    "papers/dr_grpo.py": "grpo.py --advantage centred --aggregation constant",
    "papers/dapo.py": "dapo.py",
    "papers/guide_ablations.py": "guide.py",
    "papers/adarft.py": "h1_curriculum.py --schedule adarft",
    "papers/e2h.py --schedule ": "h1_curriculum.py --schedule e2h_",
    **{f"papers/{method}.py": f"entropy_baselines.py --method {method}" for method in BASELINES},
}
EARLIER_METRICS = {  # what a metric's name began with there
    "adarft/": "h1/",
    "e2h/": "h1/",
    "bonus/entropy": "baseline/entropy",
    "bonus/weight": "baseline/bonus",
    "clip_cov/frac_dropped": "baseline/frac_touched",
    "high_entropy_tokens/frac_dropped": "baseline/frac_touched",
    "kl_cov/frac_penalised": "baseline/frac_touched",
}


@dataclass
class Args:
    before: str
    """the commit that is compared with"""
    only: tuple[str, ...] = ()
    """some of the runs; same_runs.md is not written"""
    jobs: int = 2
    """runs side by side, of one thread each"""


# --- running ------------------------------------------------------------------------------------------------


def git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        fail(f"git {shlex.join(arguments)}: {(done.stderr.strip() or 'no message').splitlines()[-1]}")
    return done.stdout.strip()


def command_in(tree: Path, command: str) -> str:
    """The command as it was in a tree that does not have its script yet."""
    if (tree / shlex.split(command)[0]).exists():
        return command
    for now, earlier in EARLIER_COMMANDS.items():
        if command.startswith(now):
            return earlier + command.removeprefix(now)
    fail(f"{command}: the commit has no such script, and what it was called is not known")


def train(tree: Path, command: str, out: Path) -> int:
    """Run one command in a tree, its screen in a log file; returns its exit status."""
    shutil.rmtree(out, ignore_errors=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    variables = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    arguments = [sys.executable, *shlex.split(command), *FLAGS.split(), "--out-dir", str(out)]
    with open(out.with_suffix(".log"), "w") as log:
        done = subprocess.run(arguments, cwd=tree, env=os.environ | variables, stdout=log, stderr=log)
    return done.returncode


def check(name: str, tree: Path, command: str) -> tuple[list[str], list[str]]:
    """One run there and here: what differs, and the metrics that one of them alone logs."""
    folders = {when: SCRATCH / when / name for when in ("before", "now")}
    for when, (where, what) in zip(folders, ((tree, command), (ROOT, RUNS[name]))):
        if status := train(where, what, folders[when]):
            log = folders[when].with_suffix(".log").relative_to(ROOT)
            return [f"{when} it ended with code {status}, see {log}"], []
    return compare(*folders.values())


# --- comparing ----------------------------------------------------------------------------------------------


def compare(before: Path, now: Path) -> tuple[list[str], list[str]]:
    """What differs between the folders of two runs, and the metrics that one of them alone logs."""
    different, alone = compare_metrics(read_metrics(before), read_metrics(now))
    if not filecmp.cmp(before / "samples.jsonl", now / "samples.jsonl", shallow=False):
        different.append("samples.jsonl")
    for folder in ("last", "best", "final"):
        names = [
            {file.relative_to(run) for file in (run / folder).rglob("*.safetensors")} for run in (before, now)
        ]
        for file in sorted(names[0] | names[1]):
            both = file in names[0] & names[1]
            if not both or not filecmp.cmp(before / file, now / file, shallow=False):
                different.append(str(file))
        if not names[0]:
            different.append(f"{folder}/ has no weights")
    states = [torch.load(run / "last/optimizer.pt", weights_only=True) for run in (before, now)]
    if not same_state(*states):
        different.append("last/optimizer.pt")
    return different, alone


def read_metrics(run: Path) -> list[dict]:
    """The records of a run, without times and memory."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    varying = ("time/", "perf/")
    return [{name: record[name] for name in record if not name.startswith(varying)} for record in records]


def compare_metrics(before: list[dict], now: list[dict]) -> tuple[list[str], list[str]]:
    """The first difference of two logs, and the metrics that one of them alone has, by their names now."""
    if len(before) != len(now):
        return [f"metrics.jsonl: {len(before)} records and {len(now)}"], []
    alone = set()
    for old, new in zip(before, now):
        old = dict(old)
        for name, value in new.items():
            earlier = name if name in old else earlier_metric(name)
            if earlier not in old:
                alone.add(f"{name} (now)")
            elif old[earlier] != value:
                return [f"metrics.jsonl: step {new['step']}, {name}: {old[earlier]} and {value}"], []
            old.pop(earlier, None)
        alone |= {f"{name} (before)" for name in old}
    return [], sorted(alone)


def earlier_metric(name: str) -> str:
    for now, earlier in EARLIER_METRICS.items():
        if name.startswith(now):
            return earlier + name.removeprefix(now)
    return name


def same_state(one, other) -> bool:
    """Nested dicts, lists, numbers and tensors, these to the last bit."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same_state(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same_state, one, other))
    if isinstance(one, torch.Tensor):
        alike = one.dtype == other.dtype and one.shape == other.shape
        return alike and one.numpy().tobytes() == other.numpy().tobytes()
    return one == other


# --- the page -----------------------------------------------------------------------------------------------


def page(before: str, commands: dict[str, str], found: dict[str, tuple[list[str], list[str]]]) -> str:
    same = sum(not different for different, _ in found.values())
    lines = [
        "# The same runs before and after a move",
        "",
        f"{same} of {len(found)} runs have the same metrics (but for times and memory), samples, weights and "
        "optimizer, to the last bit. A metric that one of them alone logs is not compared.",
        "",
        f"| now | at {before} | differs | logged by one alone |",
        "|---|---|---|---|",
    ]
    for name, (different, alone) in found.items():
        now, earlier = RUNS[name], commands[name]
        cells = [f"`{now}`", "the same" if earlier == now else f"`{earlier}`"]
        cells += ["; ".join(different) or "nothing", ", ".join(alone)]
        lines.append("| " + " | ".join(cells) + " |")
    command = f"python benchmarks/checks/same_runs.py --before {before}"
    lines += ["", f"All with `{FLAGS}`. torch {torch.__version__}, one CPU thread a run: `{command}`"]
    return "\n".join(lines) + "\n"


def main(args: Args) -> None:
    for name in args.only:
        if name not in RUNS:
            fail(f"--only {name}: there is no such run; there are {', '.join(RUNS)}")
    names = args.only or tuple(RUNS)
    before = git("rev-parse", "--short", f"{args.before}^{{commit}}")
    tree = SCRATCH / before
    git("worktree", "prune")
    if not tree.exists():  # else it was left by a run that was interrupted
        git("worktree", "add", "--detach", str(tree), before)
    commands, found = {name: command_in(tree, RUNS[name]) for name in names}, {}
    with ThreadPoolExecutor(args.jobs) as pool:
        results = pool.map(lambda name: check(name, tree, commands[name]), names)
        for name, (different, alone) in zip(names, results):
            found[name] = different, alone
            only_one = f"; logged by one alone: {', '.join(alone)}" if alone else ""
            print(f"{name}: {'; '.join(different) or 'the same'}{only_one}", flush=True)
    if not args.only:
        write_text(Path(__file__).with_suffix(".md"), page(before, commands, found))
    git("worktree", "remove", "--force", str(tree))
    if any(different for different, _ in found.values()):
        sys.exit(1)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
