"""The experiment behind docs/traces.md (FSLR, arXiv 2601.03682): do first steps alone teach what is to do?

    python benchmarks/fslr.py --trials    the trials on development seeds 100 and 101
    python benchmarks/fslr.py             the reported runs: every arm on seeds 1 to 5
    python benchmarks/fslr.py --tables    the tables again, from the committed logs

Rules and protocol, written down before the first reported run:

- The claim needs a model whose errors are about which operation to choose, not about sums. models/tiny errs
  on both, so every seed first makes its start: models/tiny after 48 steps of 64 worked one-step problems of
  the common readings. What is learned then is the rare reading: "more" that means subtract.
- Rows are 256 one-step problems with the rare reading. Targets: the whole solution; its first step without
  the result, after which no end token is learned; or first steps with a quarter of whole solutions besides.
- Equal rows: 8 steps of 64 rows. Equal target tokens: first steps once more, for as many steps as give it
  the tokens of the whole solutions.
- Every arm has the best of four learning rates, by dev avg@16 on the trained task.
- One arm was added when the others were known: whole solutions at the learning rate that was best for first
  steps. A lower rate forgets less, and without it nobody knows whether the target or the rate did so.
- Measured: the trained task; two and three steps with the rare reading, which no arm trains on; and the
  common reading, which can be forgotten. "operations right" is the share of completions that name the right
  sign and number in every line, whatever their sums.
"""

import re
import sys
from pathlib import Path

import tyro

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.recipes import NO_SCORES, Args, Experiment, main  # noqa: E402

TASK, COMMON_READING = "chain?horizon=1&family=reversed", "chain?horizon=1"
START = f'sft.py --task "{COMMON_READING}" --train-size 1024 --epochs 3 --rows-per-step 64 {NO_SCORES}'
TRAIN = (
    f'sft.py --model {{here}}/start/last --task "{TASK}" --rows-per-step 64 --epochs 100 {NO_SCORES} '
    "--seed {seed} --out-dir {out}"
)
STEPS, LONGER = 8, 24
RATES = [f"--lr {lr}" for lr in ("1e-4", "3e-4", "1e-3", "3e-3")]
TRACES = f'tools/traces.py --task "{TASK}" --seed {{seed}}'

ARMS = {
    "solution": f"{TRAIN} --data {{here}}/solution.jsonl --steps {STEPS}",
    "first_step": f"{TRAIN} --data {{here}}/first_step.jsonl --steps {STEPS}",
    "first_step_longer": f"{TRAIN} --data {{here}}/first_step.jsonl --steps {LONGER}",
    "quarter": f"{TRAIN} --data {{here}}/first_step.jsonl {{here}}/quarter.jsonl --steps {STEPS}",
}
OPERATION = re.compile(r"[A-Z]=[0-9]+([-+*/])([0-9]+)=?[0-9]*")


def operations(text: str) -> list[tuple[str, str]]:
    """Sign and number of every line that is a step."""
    return [found.groups() for line in text.split("\n") if (found := OPERATION.fullmatch(line.strip()))]


def operations_right(task, rollouts: list, *model) -> dict[str, float]:
    """The share of completions whose steps do what the solution's do, in its order."""
    right, count = 0, 0
    for rollout in rollouts:
        per_problem = len(rollout.texts) // len(rollout.problems)
        for row, text in enumerate(rollout.texts):
            right += operations(text) == operations(rollout.problems[row // per_problem].solution)
            count += 1
    return {"operations right": right / count}


EXPERIMENT = Experiment(
    file=__file__,
    materials={
        "start": f"{START} --seed {{seed}} --out-dir {{here}}/start",
        "solution.jsonl": f"{TRACES} --kind solution --problems 270 --out {{here}}/solution.jsonl",
        "first_step.jsonl": f"{TRACES} --kind first_step --problems 270 --out {{here}}/first_step.jsonl",
        "quarter.jsonl": f"{TRACES} --kind solution --problems 68 --out {{here}}/quarter.jsonl",
    },
    arms=ARMS | {"solution_slow": ARMS["solution"]},
    names={
        "solution": "whole solutions",
        "first_step": "first steps, as many rows",
        "first_step_longer": "first steps, as many tokens",
        "quarter": "first steps and a quarter of whole solutions",
        "solution_slow": "whole solutions, at the rate of first steps",
    },
    grids=dict.fromkeys(ARMS, RATES),
    chosen={
        "solution": "--lr 1e-3",
        "first_step": "--lr 3e-4",
        "first_step_longer": "--lr 3e-4",
        "quarter": "--lr 1e-3",
        "solution_slow": "--lr 3e-4",
    },
    measured={
        TASK: (200, 16),
        "chain?horizon=2&family=reversed": (100, 16),
        "chain?horizon=3&family=reversed": (100, 16),
        COMMON_READING: (200, 16),
    },
    decides=TASK,
    start="{here}/start/last",
    more=operations_right,
    more_shown=("operations right",),
)

if __name__ == "__main__":
    main(EXPERIMENT, tyro.cli(Args, description=__doc__))
