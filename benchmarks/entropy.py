"""The experiment behind the README's comparison of entropy methods: which of them keep exploring, and does it pay?

    python benchmarks/entropy.py --trials              the trials on development seed 100
    python benchmarks/entropy.py                       the reported runs: every arm on seeds 1 to 5
    python benchmarks/entropy.py --only siren dr_grpo  some arms
    python benchmarks/entropy.py --tables              the tables again, from the committed logs

Every arm has the same starting model, problems in the same order, sampling seeds and number of sampled tokens. What is finished is
skipped and a broken run resumed, so the same command goes on. Two runs go side by side, one thread each.
"""

import os
import shlex
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import tyro

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks.reference import train  # noqa: E402

LOGS = ROOT / "runs/reference/entropy"
COMMON = ("--task chain?horizon=1&family=mixed --prompts-per-step 8 --minibatches 4 --max-new-tokens 64 --steps 1000 "
          "--token-budget 190000 --eval-every 20 --eval-problems 100 --test-problems 200 --save-every 1000")  # fmt: skip
LR = "1e-4"  # of all arms: chosen for Dr. GRPO, whose only setting it is
SIREN, OTHERS = "siren.py", "entropy_baselines.py --method"
TRIALS = {  # <arm>: the command, and the four settings that were tried for it
    "dr_grpo": (f"{SIREN} --beta 0", ["--lr 5e-5", "--lr 1e-4", "--lr 2e-4", "--lr 3e-4"]),
    "siren": (SIREN, ["--beta 0.001", "--beta 0.003", "--beta 0.01", "--beta 0.03"]),
    "naive_bonus": (f"{OTHERS} naive_bonus", ["--bonus 0.003", "--bonus 0.01", "--bonus 0.03", "--bonus 0.1"]),
    "adaptive_bonus": (f"{OTHERS} adaptive_bonus --bonus 0", [f"--bonus-rate {rate} --target-share {share}" for rate in (0.001, 0.01)
                                                              for share in (1.0, 0.5)]),
    "entropy_advantage": (f"{OTHERS} entropy_advantage", ["--shape-alpha 0.1", "--shape-alpha 0.4", "--shape-alpha 1",
                                                          "--shape-alpha 0.4 --shape-kappa 1.2"]),
    "high_entropy_tokens": (f"{OTHERS} high_entropy_tokens", [f"--token-fraction {share}" for share in (0.1, 0.2, 0.4, 0.7)]),
    "clip_cov": (f"{OTHERS} clip_cov", [f"--cov-fraction {share}" for share in (0.002, 0.01, 0.03, 0.1)]),
    "kl_cov": (f"{OTHERS} kl_cov", [f"--cov-fraction {share}" for share in (0.002, 0.01, 0.03, 0.1)]),
    "siren_no_top_p": (f"{SIREN} --nucleus-p 1", ["--beta 0.001", "--beta 0.003", "--beta 0.01", "--beta 0.03"]),
    "siren_no_peaks": (f"{SIREN} --tau 0", ["--beta 0.03", "--beta 0.1", "--beta 0.3", "--beta 1"]),
    "siren_anchor_alone": (f"{SIREN} --nucleus-p 1 --tau 0", ["--beta 0.03", "--beta 0.1", "--beta 0.3", "--beta 1"]),
    "siren_no_anchor": (f"{SIREN} --no-anchor", ["--beta 0.0003", "--beta 0.001", "--beta 0.003", "--beta 0.01"]),
}  # fmt: skip


@dataclass
class Args:
    only: tuple[str, ...] = ()
    """arms, instead of all"""
    trials: bool = False
    """the trials instead of the reported runs"""
    tables: bool = False
    """run nothing, show the tables"""
    seeds: tuple[int, ...] = (1, 2, 3, 4, 5)
    """seeds of the reported runs; 100 is the development seed"""
    out: Path = LOGS
    """where the logs are collected"""
    scratch: Path = ROOT / "runs/scratch"
    """where the runs themselves live, with their checkpoints"""
    jobs: int = 2
    """runs side by side"""


def run_one(command: str, seed: int, name: str, args: Args) -> str:
    target, run = args.out / name, args.scratch / args.out.name / name
    if (target / "metrics.jsonl").exists():
        return f"{name}: already there"
    run.parent.mkdir(parents=True, exist_ok=True)
    flags = shlex.split(command) + ["--seed", str(seed)]
    log_file = run.parent / f"{run.name}.log"
    with open(log_file, "a") as log:
        finished = train(flags, run, target, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=log, stderr=log)
    return f"{name}: " + ("done" if finished else f"not finished, see {log_file}; the same command goes on")


def main(args: Args) -> None:
    jobs = []
    for arm in args.only or TRIALS:
        command, settings = TRIALS[arm]
        if args.trials:
            for setting in settings:
                lr = "" if "--lr" in setting else f" --lr {LR}"
                name = f"trials/{arm}/" + setting.replace("--", "").replace(" ", "_")
                jobs.append((f"{command} {COMMON}{lr} --test-problems 8 {setting}", 100, name))
    with ThreadPoolExecutor(args.jobs) as pool:
        for message in pool.map(lambda job: run_one(*job, args), jobs):
            print(message, flush=True)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
