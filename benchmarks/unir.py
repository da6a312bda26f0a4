"""The experiment behind docs/unir.md (UniR, arXiv 2505.19075): does a reasoner beside a frozen model beat
that model at its best temperature, does it lift a stronger one, and do two reasoners add up?

    python benchmarks/unir.py --trials    the trials on development seeds 100 and 101
    python benchmarks/unir.py             the reported runs: every arm on seeds 1 to 5
    python benchmarks/unir.py --tables    the tables again, from the committed logs

Rules and protocol, written down before the first reported run:

- World: chains of three steps, 80 steps of 16 prompts x 16 completions. The frozen model is models/tiny.
- Two reasoners: a fresh one of 2 layers x 64 with a head of zeros (zero), a seventh of the frozen model's
  size; and a copy of the frozen model (copy).
- Beside them: the frozen model at its best temperature; both reasoners at step 0; GRPO of the frozen model;
  and LoRA of it with as many trained parameters as the fresh reasoner has.
- The frozen model at temperature 1 / (1 + alpha) is the sum of it and alpha times its copy. So it is a run of
  one step whose learning rate is 0, with alpha in place of a rate. At step 0 the fresh reasoner is the frozen
  model ("before" in the tables), and the copy is alpha = 1.
- Transfer: the reasoners that were trained beside models/tiny, added to a stronger model, which is
  models/tiny after SFT on 512 worked chains; beside that model at its best temperature and after GRPO.
- Two reasoners: fresh ones trained on plain chains and on reversed ones, added up, on chains of both kinds;
  beside each alone and one that was trained on both kinds. The two have half of the steps each.
- Every arm with a rate of its own has the best of three by dev avg@16. An arm whose best is the first or the
  last one gets one more beyond it. Arms of transfer and of two reasoners take over the rate of zero or copy:
  they are measured on another model or task and not tuned on it.
- Measured: 400 test problems x 16 samples at temperature 1 of each task, the same random numbers for all.
- The claims: zero is above the frozen model at its best temperature (refuted if not) and above LoRA; zero and
  copy on the stronger model are above that model at its best temperature; the two added up are above each.
"""

import sys
from pathlib import Path

import tyro

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks import recipes  # noqa: E402
from benchmarks.recipes import NO_SCORES, Args, Experiment  # noqa: E402

CHAINS, MIXED = "chain?horizon=3", "chain?horizon=1&family=mixed"
TINY, STRONG, FRESH = "models/tiny", "{here}/strong/last", "{here}/fresh"
OWN = f"{NO_SCORES} --save-every 1000 --seed {{seed}} --out-dir {{out}}"
ON_CHAINS = f'--task "{CHAINS}" --steps 80 {OWN}'
STILL = f'--task "{CHAINS}" --steps 1 --lr 0 {OWN}'  # nothing is learned
ZERO, COPY = f"papers/unir.py --model {FRESH} --frozen {TINY}", f"papers/unir.py --model {TINY}"
LORA_RANK = 12  # trains 153,600 numbers of models/tiny; the fresh reasoner has 154,816


def on_family(family: str, steps: int) -> str:
    return f'{ZERO} --task "chain?horizon=1&family={family}" --steps {steps}'


ARMS = {
    "frozen": f"{COPY} {STILL}",
    "grpo": f"grpo.py --model {TINY} {ON_CHAINS}",
    "lora": f"grpo.py --model {TINY} --lora-rank {LORA_RANK} {ON_CHAINS}",
    "zero": f"{ZERO} {ON_CHAINS}",
    "copy": f"{COPY} {ON_CHAINS}",
    "strong": f"papers/unir.py --model {STRONG} {STILL}",
    "strong_grpo": f"grpo.py --model {STRONG} {ON_CHAINS}",
    "zero_on_strong": f"{ZERO} {ON_CHAINS}",
    "copy_on_strong": f"{COPY} {ON_CHAINS}",
    "plain": f"{on_family('plain', 80)} {OWN}",
    "reversed": f"{on_family('reversed', 80)} {OWN}",
    "both": f"{on_family('mixed', 80)} {OWN}",
    "sum": f"{on_family('plain', 40)} {{setting}} {OWN}.1 && {on_family('reversed', 40)} {OWN}",
}
BESIDE = dict.fromkeys(("frozen", "zero", "copy", "plain", "reversed", "both"), (TINY,))
BESIDE |= dict.fromkeys(("strong", "zero_on_strong", "copy_on_strong"), (STRONG,))
BESIDE |= {"sum": (TINY, "{out}.1/last")}

ALPHAS = [f"--alpha {alpha}" for alpha in ("0.33", "1", "3", "7")]  # temperatures of .75, .5, .25 and .125
RATES = [f"--lr {lr}" for lr in ("1e-4", "3e-4", "1e-3")]
HIGHER = [f"--lr {lr}" for lr in ("1e-3", "3e-3", "1e-2")]  # of few parameters
GRIDS = {"frozen": ALPHAS, "strong": ALPHAS, "zero": HIGHER, "lora": HIGHER}
GRIDS |= dict.fromkeys(("grpo", "copy", "strong_grpo"), RATES)
# What the trials of zero and copy choose is written here.
RATE_OF_ZERO, RATE_OF_COPY = HIGHER[1], RATES[1]
TAKEN_OVER = dict.fromkeys(("zero_on_strong", "plain", "reversed", "both", "sum"), RATE_OF_ZERO)
TAKEN_OVER |= {"copy_on_strong": RATE_OF_COPY}

EXPERIMENT = Experiment(
    file=__file__,
    materials={
        "fresh": f"tools/make_reasoner.py --like {TINY} --seed {{seed}} --out-dir {FRESH}",
        "strong": f'sft.py --model {TINY} --task "{CHAINS}" --train-size 512 {NO_SCORES} --seed {{seed}} '
        "--out-dir {here}/strong",
    },
    arms=ARMS,
    names={
        "frozen": "frozen model at its best temperature",
        "grpo": "GRPO",
        "lora": "LoRA",
        "zero": "UniR, fresh reasoner",
        "copy": "UniR, a copy as reasoner",
        "strong": "stronger model at its best temperature",
        "strong_grpo": "stronger model after GRPO",
        "zero_on_strong": "fresh reasoner, on the stronger model",
        "copy_on_strong": "copy as reasoner, on the stronger model",
        "plain": "reasoner of plain chains",
        "reversed": "reasoner of reversed chains",
        "both": "reasoner of both kinds",
        "sum": "two reasoners, added up",
    },
    grids=GRIDS,
    chosen=TAKEN_OVER,
    measured={CHAINS: (400, 16), MIXED: (400, 16)},
    decides=CHAINS,
    on_dev=(200, 16),
    compared=("avg", "pass"),
    beside=BESIDE,
)

if __name__ == "__main__":
    recipes.main(EXPERIMENT, tyro.cli(Args, description=__doc__))
