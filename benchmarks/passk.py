"""The experiment behind docs/passk.md (Pass@k training, arXiv 2508.10751): does it keep pass@k without losing
pass@1, and does later training for pass@1 profit?

    python benchmarks/passk.py --trials    the trials on development seeds 100 and 101
    python benchmarks/passk.py             the reported runs: every arm on seeds 1 to 5
    python benchmarks/passk.py --tables    the tables again, from the committed logs

Rules and protocol, written down before the first reported run:

- World: countdown with the flags of benchmarks/countdown.py: from models/countdown, 200 steps of 16 prompts x
  16 completions, two updates a step. Steps are equal, and so are tokens but for a few: answers are two lines.
- The premise is looked at first: pass@16 of the start is at least twice its avg@16.
- Arms: Dr. GRPO; Pass@k training with k = 4 and with k = 8; SRPO with k = 4; and Pass@k training with k = 4
  for half of the steps, then Dr. GRPO. The second half of that arm has other problems and a fresh optimizer.
- Every arm has the best of the same four learning rates: AdamW undoes a common factor of the advantages, and
  those of Pass@k training are as large as Dr. GRPO's where 3 of 16 are right, about the start's share. An arm
  whose best rate is the first or the last one gets one more beyond it.
- The best has the highest mean of avg@16 and pass@16 on 200 dev problems, mean over both development seeds.
- Measured: the model after the last step on 400 test problems x 64 samples at temperature 1, with the same
  random numbers for all. What an arm has more than Dr. GRPO is paired by seed.
- The claims: pass@4 to pass@64 are above Dr. GRPO's, avg@64 is not below; and with the second half for
  pass@1, avg@64 is above Dr. GRPO's.
"""

import sys
from pathlib import Path

import tyro

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks import recipes  # noqa: E402
from benchmarks.countdown import COMMON, STEPS  # noqa: E402
from benchmarks.recipes import ROOT, Args, Experiment  # noqa: E402

HALF = STEPS // 2
OWN = f"{COMMON} --seed {{seed}} --out-dir {{out}}"
ARMS = {
    "dr_grpo": f"papers/dr_grpo.py --steps {STEPS} {OWN}",
    "passk_4": f"papers/passk.py --k 4 --steps {STEPS} {OWN}",
    "passk_8": f"papers/passk.py --k 8 --steps {STEPS} {OWN}",
    "srpo_4": f"papers/srpo.py --k 4 --steps {STEPS} {OWN}",
    "half": f"papers/passk.py --k 4 {{setting}} --steps {HALF} {OWN}.1 && "
    f"papers/dr_grpo.py --model {{out}}.1/last --steps {HALF} {COMMON} --seed 9{{seed}} --out-dir {{out}}",
}
RATES = [f"--lr {lr}" for lr in ("2.5e-5", "5e-5", "1e-4", "2e-4")]

EXPERIMENT = Experiment(
    file=__file__,
    materials={},
    arms=ARMS,
    names={
        "dr_grpo": "Dr. GRPO",
        "passk_4": "Pass@k training, k = 4",
        "passk_8": "Pass@k training, k = 8",
        "srpo_4": "SRPO, k = 4",
        "half": "Pass@k training, k = 4, then Dr. GRPO",
    },
    grids=dict.fromkeys(ARMS, RATES),
    chosen={},
    measured={"countdown": (400, 64)},
    decides="countdown",
    on_dev=(200, 16),
    chosen_by=("avg", "pass"),
    compared=("avg", "pass@4", "pass@8", "pass@16", "pass"),
    start="models/countdown",
    max_new_tokens=32,
    more_shown=("pass@4", "pass@8", "pass@16"),
)


def look_at_the_premise(experiment: Experiment, args: Args) -> None:
    """Print avg and pass of the start on dev. Ends the command where there is next to nothing to find."""
    file = (args.out or experiment.logs) / "premise.json"
    if not file.exists():
        recipes.save(file, recipes.measure(experiment, ROOT / experiment.start, "dev", str))
    counts = recipes.read(file)[experiment.decides]
    n, scores = counts["samples"], recipes.scores_of(counts)
    said = f"avg@{n} {scores['avg']:.4f}, pass@{n} {scores['pass']:.4f}"
    print(f"the start, {experiment.start}, on dev problems of {experiment.decides}: {said}", flush=True)
    if scores["pass"] < 2 * scores["avg"] or scores["pass"] == 0:
        sys.exit(f"error: pass@{n} is not twice avg@{n}: there is nothing rare to find; take another world")


def main(experiment: Experiment, args: Args) -> None:
    if args.one is None and not args.tables:
        look_at_the_premise(experiment, args)
    recipes.main(experiment, args)


if __name__ == "__main__":
    main(EXPERIMENT, tyro.cli(Args, description=__doc__))
