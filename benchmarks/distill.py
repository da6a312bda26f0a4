"""The experiment behind docs/distill.md (MobileLLM-R1, arXiv 2509.24945): does a small model gain more from
a teacher than from RL of its own?

    python benchmarks/distill.py --trials    the trials on development seeds 100 and 101
    python benchmarks/distill.py             the reported runs: every arm on seeds 1 to 5
    python benchmarks/distill.py --tables    the tables again, from the committed logs

Rules and protocol, written down before the first reported run:

- Chains of three steps, from models/tiny. The teacher is a sibling: models/tiny after 80 steps of grpo.py, of
  another seed. It samples 4 traces for each of 1,024 training problems; its right ones are the rows.
- Arms: SFT on these rows; distillation on them (KL to the teacher at every token); GRPO with as many sampled
  tokens as the traces have, so that the teacher's training is not counted; and GRPO with those of the teacher
  besides. Rows are learned for three epochs of 64 a step.
- Every arm has the best of four learning rates, by dev avg@16.
- Measured: the trained task, and chains of five, which no arm trains on.
"""

import sys
from pathlib import Path

import tyro

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.recipes import NO_SCORES, Args, Experiment, main  # noqa: E402

TASK = "chain?horizon=3"
OWN = f"{NO_SCORES} --seed {{seed}} --out-dir {{out}}"
ROWS = f'--task "{TASK}" --data {{here}}/rows.jsonl --rows-per-step 64 --epochs 3 {OWN}'
GRPO = f'grpo.py --task "{TASK}" --steps 80 {NO_SCORES}'
SELECT = f'tools/select_data.py --task "{TASK}" --problems 1024 -n 4 --low 0 --high 1 --traces correct'
TRACES, TEACHER = 170_000, 850_000  # sampled tokens, about

ARMS = {
    "sft": f"sft.py {ROWS}",
    "distill": f"papers/distill.py --teacher {{here}}/teacher/last {ROWS}",
    "grpo": f'grpo.py --task "{TASK}" --steps 1000 --token-budget {TRACES} {OWN}',
    "grpo_longer": f'grpo.py --task "{TASK}" --steps 1000 --token-budget {TRACES + TEACHER} {OWN}',
}
OF_ROWS = [f"--lr {lr}" for lr in ("3e-4", "1e-3", "2e-3", "4e-3")]
OF_RL = [f"--lr {lr}" for lr in ("1e-4", "3e-4", "6e-4", "1e-3")]

EXPERIMENT = Experiment(
    file=__file__,
    materials={
        "teacher": f"{GRPO} --seed {{seed}}0 --out-dir {{here}}/teacher",
        "rows.jsonl": f"{SELECT} --model {{here}}/teacher/last --seed {{seed}} --out {{here}}/rows.jsonl",
    },
    arms=ARMS,
    names={
        "sft": "SFT on the teacher's right traces",
        "distill": "distillation on them",
        "grpo": "GRPO, as many tokens as the traces",
        "grpo_longer": "GRPO, and as many as the teacher's training",
    },
    grids={"sft": OF_ROWS, "distill": OF_ROWS, "grpo": OF_RL, "grpo_longer": OF_RL},
    chosen={},
    measured={TASK: (200, 16), "chain?horizon=5": (100, 16)},
    decides=TASK,
)

if __name__ == "__main__":
    main(EXPERIMENT, tyro.cli(Args, description=__doc__))
