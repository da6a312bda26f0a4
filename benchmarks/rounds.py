"""The experiment behind docs/select_data.md (Vision-G1, arXiv 2508.12680): does difficulty that is measured
anew beat difficulty that is measured once, and that none?

    python benchmarks/rounds.py --trials    the trials on development seeds 100 and 101
    python benchmarks/rounds.py             the reported runs: every arm on seeds 1 to 5
    python benchmarks/rounds.py --tables    the tables again, from the committed logs

Rules and protocol, written down before the first reported run:

- A pool of 512 chains of one to eight steps, and 900,000 sampled tokens for each arm, of which those that
  choose problems are a part: about 120,000 for 4 samples of each problem in the pool.
- Arms, from models/tiny: GRPO on the pool; GRPO on the problems with 1 to 3 right of 4, chosen once; the
  same in three rounds, each with the model of the round before; DAPO on the pool, which leaves out groups
  without both right and wrong as it goes, and samples others in their place.
- Every arm has the best of three learning rates, by dev avg@16.
- The premise: pass rates in the pool are spread, and move while training.
- Measured: chains of one to eight steps together, and of six alone.
"""

import sys
from pathlib import Path

import tyro

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.recipes import NO_SCORES, Args, Experiment, main  # noqa: E402

POOL = "chain?horizon=1-8"
SEEDED = f"{NO_SCORES} --seed {{seed}}"
BUDGET, CHOOSING, ROUNDS = 900_000, 120_000, 3
WHOLE = f'--task "{POOL}" --train-size 512 --steps 1000 --token-budget {BUDGET} {SEEDED} --out-dir {{out}}'


def chosen_by(model: str, number: int) -> str:
    """The command that chooses problems of the pool with a model; the number-th of its arm."""
    return (
        f'tools/select_data.py --task "{POOL}" --model {model} --problems 512 -n 4 --seed {{seed}} '
        f"--samples-dir {{out}}.{number}.samples --out {{out}}.{number}"
    )


def trained_on(number: int, model: str, tokens: int, out: str) -> str:
    """The command that trains on the number-th file."""
    return (
        f"grpo.py --task subset:{{out}}.{number} --model {model} --steps 1000 --token-budget {tokens} "
        f"{SEEDED} --out-dir {out}"
    )


def in_rounds() -> str:
    """Choose, train, choose, train: in all as many tokens as the other arms have."""
    tokens, model, commands = BUDGET // ROUNDS - CHOOSING, "models/tiny", []
    for number in range(1, 2 * ROUNDS, 2):
        out = "{out}" if number == 2 * ROUNDS - 1 else f"{{out}}.{number + 1}"
        setting = "" if out == "{out}" else " {setting}"
        commands += [chosen_by(model, number), trained_on(number, model, tokens, out) + setting]
        model = f"{out}/last"
    return " && ".join(commands)


ARMS = {
    "pool": f"grpo.py {WHOLE}",
    "once": f"{chosen_by('models/tiny', 1)} && {trained_on(1, 'models/tiny', BUDGET - CHOOSING, '{out}')}",
    "rounds": in_rounds(),
    "dapo": f"papers/dapo.py {WHOLE}",
}

EXPERIMENT = Experiment(
    file=__file__,
    materials={},
    arms=ARMS,
    names={
        "pool": "GRPO on all",
        "once": "GRPO on a band, chosen once",
        "rounds": "GRPO on a band, in three rounds",
        "dapo": "DAPO on all",
    },
    grids=dict.fromkeys(ARMS, [f"--lr {lr}" for lr in ("1e-4", "3e-4", "6e-4")]),
    chosen={},
    measured={POOL: (160, 16), "chain?horizon=6": (100, 16)},
    decides=POOL,
)

if __name__ == "__main__":
    main(EXPERIMENT, tyro.cli(Args, description=__doc__))
