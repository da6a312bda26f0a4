"""The experiment behind docs/cispo-gspo.md: which bound is best when an older policy sampled?

    python benchmarks/off_policy.py --trials           the trials on development seed 100
    python benchmarks/off_policy.py                    the reported runs: every arm on seeds 1 to 5
    python benchmarks/off_policy.py --only reuse/cispo reuse/token_clip     some arms
    python benchmarks/off_policy.py --tables           the tables again, from the committed logs

An arm is a loss in a regime. All regimes sample the same number of completions, of chains of three steps:

    on_policy   80 steps of 16 prompts, one update each
    reuse       80 steps of 16 prompts, 16 updates each: eight parts of the batch, twice
    stale       20 steps of 64 prompts, 16 updates each: every completion once, the last ones 15 updates late

All losses have the same starting model and sampling seeds, in a regime also the same problems in the same
order. Each chooses from as many settings on the development seed: three learning rates, and off-policy two
bounds, its own and one that others use or that suits short completions. `token_clip` is CISPO with PPO's
clip in the place of its weight, nothing else; GRPO is the same to GSPO. Before the policy has moved the two
of a pair have one gradient (tests/test_cispo_gspo.py), so on-policy one of each runs.

What is judged, all on test with avg@16 unless said otherwise, differences paired by seed with their 95%
interval:
- The premise of both: off-policy PPO's clip takes the gradient of many tokens. Share of clipped tokens of
  token_clip and GRPO; below 0.01 the verdict is that the premise does not hold here.
- CISPO's claim, better and faster than the clip: cispo minus token_clip, at the end, and the mean of the dev
  scores over the run.
- GSPO's claim, more stable and better than GRPO: gspo minus grpo, at the end; what the dev score lost between
  its best and its last measurement; the spread over seeds.
Confirmed in direction where the interval lies above 0 in one regime and not below 0 in the other.

What is finished is skipped and a broken run resumed, so the same command goes on. Two runs go side by side,
one thread each.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks import arms  # noqa: E402
from benchmarks.arms import cell, run_arms, score  # noqa: E402
from benchmarks.figures import scores  # noqa: E402
from plainrl.curves import read_metrics  # noqa: E402
from plainrl.folder import write_text  # noqa: E402
from plainrl.metrics import evaluate  # noqa: E402
from plainrl.models import eos_ids, load_model  # noqa: E402
from plainrl.sampler import HFSampler  # noqa: E402
from plainrl.tasks import load_task  # noqa: E402

LOGS = ROOT / "runs/reference/off_policy"
TASK, PROBLEMS = "chain?horizon=3", 200
COMMON = f"--task {TASK} --eval-problems 100 --test-problems 8 --save-every 1000 --no-report"
REGIMES = {  # warm-up and dev scores come after equal numbers of completions
    "on_policy": "--prompts-per-step 16 --steps 80 --warmup-steps 4 --eval-every 16",
    "reuse": "--prompts-per-step 16 --steps 80 --minibatches 8 --epochs 2 --warmup-steps 4 --eval-every 16",
    "stale": "--prompts-per-step 64 --steps 20 --minibatches 16 --warmup-steps 1 --eval-every 4",
}
LOSSES = {
    "dr_grpo": "papers/dr_grpo.py",
    "token_clip": "papers/dapo.py --no-dynamic-sampling --overlong-buffer 0",
    "cispo": "papers/cispo.py",
    "grpo": "grpo.py",
    "gspo": "papers/gspo.py",
}
NAMES = {
    "dr_grpo": "Dr. GRPO",
    "token_clip": "token mean, PPO's clip",
    "cispo": "CISPO",
    "grpo": "GRPO",
    "gspo": "GSPO",
}
PAIRS = {"cispo": "token_clip", "gspo": "grpo"}  # what differs in the bound alone
RATES = ("5e-5", "1e-4", "3e-4")
PPO = ("--clip-low 0.2 --clip-high 0.2", "--clip-low 0.2 --clip-high 0.28")  # the second is DAPO's
BOUNDS = {
    "dr_grpo": PPO,
    "token_clip": PPO,
    "cispo": ("--clip-high 0.2", "--clip-high 4"),  # the second is ScaleRL's
    "grpo": PPO,
    # The paper's, and ten times that: completions have some 40 tokens, and the mean of so few moves more.
    "gspo": ("--clip-low 3e-4 --clip-high 4e-4", "--clip-low 3e-3 --clip-high 4e-3"),
}
SETTINGS = {f"on_policy/{loss}": [f"--lr {lr}" for lr in RATES] for loss in ("dr_grpo", "cispo", "grpo")}
SETTINGS |= {
    f"{regime}/{loss}": [f"--lr {lr} {bound}" for bound in BOUNDS[loss] for lr in RATES]
    for regime in ("reuse", "stale")
    for loss in LOSSES
}
DEV = "eval/chain/"


@dataclass
class Args(arms.Args):
    out: Path = LOGS
    """where the logs are collected"""


def command(arm: str, setting: str, seed: int) -> str:
    """The exact command of a run, all but its --out-dir."""
    regime, loss = arm.split("/")
    return f"{LOSSES[loss]} {COMMON} {REGIMES[regime]} {setting} --seed {seed}"


def measure(folder: Path, file: Path) -> None:
    """16 samples of each test problem, with the same random numbers for every model: how many are right, how
    many have an answer."""
    model, tokenizer = load_model(str(folder))
    sampler = HFSampler(model, eos_ids(model, tokenizer))
    _, rows = evaluate(sampler, tokenizer, load_task(TASK), "test", PROBLEMS, 16, 160, 1.0)
    write_text(file, json.dumps({what: [row[what] for row in rows] for what in ("correct", "parsed")}) + "\n")


# --- the trials ---------------------------------------------------------------------------------------------


def dev_scores(arm: str, curves: dict, name: str) -> list[float]:
    """Those of a run, in their order."""
    every = int(REGIMES[arm.split("/")[0]].split()[-1])  # of --eval-every
    return [value for _, value in scores(curves[DEV + name], every)]


def summary(arm: str, curves: dict) -> dict:
    """A trial: dev scores in their order, share of clipped tokens, the largest ratio."""
    trial = {name: dev_scores(arm, curves, name) for name in ("avg@16", "pass@16")}
    trial["clip_frac"] = round(float(np.mean(list(curves["policy/clip_frac"].values()))), 4)
    trial["ratio_max"] = round(float(np.max(list(curves["policy/ratio_max"].values()))), 2)
    return trial


def chosen(trials: dict) -> dict[str, str]:
    """The best setting of each arm whose trials are all there: of equals the first. See `arms.score`."""
    tried = {arm: trials[arm] for arm in SETTINGS if trials.get(arm, {}).keys() >= set(SETTINGS[arm])}
    return {arm: max(SETTINGS[arm], key=lambda setting: score(tried[arm][setting])) for arm in tried}


def trials_table(trials: dict) -> str:
    """Every setting that was tried; the best of each arm in bold."""
    lines = ["| arm | setting | dev avg@16 | clipped tokens | largest ratio | score |", "|---" * 6 + "|"]
    best = chosen(trials)
    for arm, settings in SETTINGS.items():
        for setting in [each for each in settings if each in trials.get(arm, {})]:
            trial = trials[arm][setting]
            shown = f"**{score(trial):.3f}**" if best.get(arm) == setting else f"{score(trial):.3f}"
            curve = " ".join(f"{value:.3f}" for value in trial["avg@16"])
            cells = [f"`{setting}`", curve, f"{trial['clip_frac']:.3f}", f"{trial['ratio_max']:g}", shown]
            lines.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(lines)


# --- the reported runs --------------------------------------------------------------------------------------


def test_scores(file: Path) -> dict[str, float]:
    """Of the model after its last step."""
    counts = {what: np.array(values) for what, values in json.loads(file.read_text()).items()}
    right = counts["correct"]
    return {
        "avg@16": float(right.mean()) / 16,
        "pass@16": float((right > 0).mean()),
        "unparsed": 1 - float(counts["parsed"].mean()) / 16,
    }


def reported(out: Path, arm: str) -> dict[str, dict[str, float]]:
    """{seed: its numbers} of the finished runs of an arm."""
    found = {}
    for file in sorted((out / arm).glob("seed*/test.json")):
        curves = read_metrics(file.parent)
        dev = dev_scores(arm, curves, "avg@16")
        found[file.parent.name] = test_scores(file) | {
            "mean dev avg@16": float(np.mean(dev[1:])),
            "lost since its best": max(dev) - dev[-1],
            "clipped tokens": float(np.mean(list(curves["policy/clip_frac"].values()))),
            "largest ratio": float(np.max(list(curves["policy/ratio_max"].values()))),
            "tokens": float(max(curves["rollout/tokens_total"].values())),
        }
    return found


def results_table(out: Path, regime: str) -> str:
    """Every loss of a regime, mean over seeds +- 95% interval; and beside CISPO and GSPO what they have more
    than the loss that differs in its bound alone, paired by seed."""
    columns = ["avg@16", "pass@16", "unparsed", "mean dev avg@16", "lost since its best", "clipped tokens"]
    titles = [regime, "seeds", "tokens", *columns, "largest ratio", "avg@16 minus its pair"]
    titles += ["mean dev avg@16 minus its pair"]
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for loss in LOSSES:
        seeds, pair = reported(out, f"{regime}/{loss}"), reported(out, f"{regime}/{PAIRS.get(loss)}")
        if not seeds:
            continue
        cells = [str(len(seeds)), f"{np.mean([each['tokens'] for each in seeds.values()]):,.0f}"]
        cells += [cell([each[name] for each in seeds.values()]) for name in columns]
        cells.append(f"{max(each['largest ratio'] for each in seeds.values()):.1f}")
        for name in ("avg@16", "mean dev avg@16"):
            both = sorted(seeds.keys() & pair.keys())
            cells.append(cell([seeds[s][name] - pair[s][name] for s in both], signed=True) if both else "")
        lines.append(f"| {NAMES[loss]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def report(out: Path) -> dict[str, str]:
    """{regime: its table}"""
    return {regime: results_table(out, regime) for regime in REGIMES}


def main(args: Args) -> None:
    if args.measure:
        return measure(*args.measure)
    if args.trials and not args.tables:
        run_arms(args, __file__, SETTINGS, {}, command)
    trials = arms.collect_trials(args.out, SETTINGS, summary) if args.out.exists() else {}
    if args.trials or args.tables:
        print(f"{trials_table(trials)}\n")
    if args.trials:
        return
    if not args.tables:
        best = chosen(trials)
        if missing := [arm for arm in arms.chosen_arms(args.only, SETTINGS) if arm not in best]:
            sys.exit(f"error: no setting is chosen for {', '.join(missing)}; --trials makes their trials")
        run_arms(args, __file__, SETTINGS, best, command)
    print("\n\n".join(report(args.out).values()))


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
