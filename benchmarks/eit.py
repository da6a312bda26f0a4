"""The experiment behind docs/traces.md (EIT, arXiv 2412.16964): is a solution with a plan the better target?

    python benchmarks/eit.py --trials    the trials on development seeds 100 and 101
    python benchmarks/eit.py             the reported runs: every arm on seeds 1 to 5
    python benchmarks/eit.py --tables    the tables again, from the committed logs

Rules and protocol, written down before the first reported run:

- Rows are worked solutions of 256 chains of three steps, a quarter of which has the rare reading ("more"
  that means subtract): with their steps, with a plan before them, terse, or with a plan before the terse one.
  tools/traces.py makes them. All arms of a seed have the same problems, start from models/tiny, and take 36
  steps of 64 rows.
- At equal target tokens: steps and sparse once more, for so many steps that they learn from as many tokens as
  the arm with the plan.
- Every arm has the best of four learning rates, by dev avg@16 on the trained task.
- Measured: chains of three with the rare reading in a quarter, and of four and five, which no arm trains on.
- The claim: plan and steps are better than steps, and plan better than sparse. Sparse against steps is no
  fair comparison here, since the model knows worked lines and no terse ones.
"""

import sys
from pathlib import Path

import tyro

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.recipes import NO_SCORES, Args, Experiment, main  # noqa: E402

TASK = "chain?horizon=3&family=mixed"
KINDS = ("steps", "plan_steps", "sparse", "plan")
TRAIN = (
    f'sft.py --task "{TASK}" --rows-per-step 64 --epochs 100 {NO_SCORES} --seed {{seed}} --out-dir {{out}}'
)
STEPS, LONGER = 36, {"steps": 55, "sparse": 67}  # as many target tokens as plan_steps and plan have in 36
RATES = [f"--lr {lr}" for lr in ("3e-4", "1e-3", "2e-3", "4e-3")]

ARMS = {kind: f"{TRAIN} --data {{here}}/{kind}.jsonl --steps {STEPS}" for kind in KINDS}
ARMS |= {f"{kind}_longer": f"{TRAIN} --data {{here}}/{kind}.jsonl --steps {n}" for kind, n in LONGER.items()}

EXPERIMENT = Experiment(
    file=__file__,
    materials={
        f"{kind}.jsonl": f'tools/traces.py --task "{TASK}" --kind {kind} --problems 270 --seed {{seed}} '
        f"--out {{here}}/{kind}.jsonl"
        for kind in KINDS
    },
    arms=ARMS,
    names={
        "steps": "steps",
        "plan_steps": "plan, then steps",
        "sparse": "terse",
        "plan": "plan, then terse",
        "steps_longer": "steps, as many tokens as plan and steps",
        "sparse_longer": "terse, as many tokens as plan and terse",
    },
    grids=dict.fromkeys(ARMS, RATES),
    chosen={
        "steps": "--lr 2e-3",
        "plan_steps": "--lr 2e-3",
        "sparse": "--lr 2e-3",
        "plan": "--lr 2e-3",
        "steps_longer": "--lr 1e-3",
        "sparse_longer": "--lr 4e-3",
    },
    measured={
        TASK: (200, 16),
        "chain?horizon=4&family=mixed": (100, 16),
        "chain?horizon=5&family=mixed": (100, 16),
    },
    decides=TASK,
)

if __name__ == "__main__":
    main(EXPERIMENT, tyro.cli(Args, description=__doc__))
