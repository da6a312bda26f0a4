"""The experiment behind docs/passk.md (SRPO of GREAM, arXiv 2510.20815): does it beat GRPO and Pass@k
training where hardly anything is right, and what does the reward for a right beginning add?

    python benchmarks/srpo.py --trials    the trials on development seeds 100 and 101
    python benchmarks/srpo.py             the reported runs: every arm on seeds 1 to 5
    python benchmarks/srpo.py --tables    the tables again, from the committed logs

Rules and protocol, written down before the first reported run:

- World: chains of seven steps, from models/tiny, of whose completions next to none is right. The premise is
  looked at first: pass@16 of the start is at least twice its avg@16.
- Arms: GRPO, Pass@k training and SRPO, k = 4, where right answers alone earn something; GRPO and SRPO where
  right beginnings do (`reward=prefix`). All have Dr. GRPO's loss, so they differ in the advantage alone: GRPO
  is SRPO with k = 16, the whole group, whose bonus is 0.
- 600,000 sampled tokens, 8 prompts x 16 completions a step, two updates of it.
- Every arm has the best of four learning rates by dev avg@16, which counts right answers alone, whatever was
  rewarded. An arm whose best rate is the first or the last one gets one more beyond it.
- Measured: right answers to 400 test problems x 16 samples, and with how many right lines completions begin.
- The claims: SRPO is above GRPO and Pass@k training with right answers alone, and above GRPO with beginnings.
"""

import sys
from pathlib import Path

import numpy as np
import tyro

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.passk import main  # noqa: E402
from benchmarks.recipes import NO_SCORES, Args, Experiment  # noqa: E402
from plainrl.chains import right_beginning  # noqa: E402

TASK = "chain?horizon=7"
OWN = (
    "--prompts-per-step 8 --group-size 16 --minibatches 2 --max-new-tokens 128 --steps 1000 "
    f"--token-budget 600000 {NO_SCORES} --save-every 1000 --seed {{seed}} --out-dir {{out}}"
)
ON_ANSWERS, ON_BEGINNINGS = f'--task "{TASK}" {OWN}', f'--task "{TASK}&reward=prefix" {OWN}'
ARMS = {
    "grpo": f"papers/srpo.py --k 16 {ON_ANSWERS}",
    "passk": f"papers/passk.py --k 4 {ON_ANSWERS}",
    "srpo": f"papers/srpo.py --k 4 {ON_ANSWERS}",
    "grpo_prefix": f"papers/srpo.py --k 16 {ON_BEGINNINGS}",
    "srpo_prefix": f"papers/srpo.py --k 4 {ON_BEGINNINGS}",
}


def lines_that_are_right(task, rollouts: list, model, tokenizer) -> dict[str, float]:
    """With how many lines of the worked solution a completion begins, mean over all."""
    found = []
    for rollout in rollouts:
        for row, text in enumerate(rollout.texts):
            problem = rollout.problems[row // rollout.group_size]
            found.append(right_beginning(text, problem.solution)[0])
    return {"right lines of 7": float(np.mean(found))}


EXPERIMENT = Experiment(
    file=__file__,
    materials={},
    arms=ARMS,
    names={
        "grpo": "GRPO",
        "passk": "Pass@k training",
        "srpo": "SRPO",
        "grpo_prefix": "GRPO, right beginnings rewarded",
        "srpo_prefix": "SRPO, right beginnings rewarded",
    },
    grids=dict.fromkeys(ARMS, [f"--lr {lr}" for lr in ("1e-4", "3e-4", "6e-4", "1e-3")]),
    chosen={},
    measured={TASK: (400, 16)},
    decides=TASK,
    on_dev=(200, 16),
    compared=("avg", "pass"),
    more=lines_that_are_right,
    more_shown=("right lines of 7",),
)

if __name__ == "__main__":
    main(EXPERIMENT, tyro.cli(Args, description=__doc__))
