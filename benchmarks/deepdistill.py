"""The experiment behind docs/select_data.md (DeepDistill, arXiv 2504.17565): do rows chosen by difficulty
teach more, and does SFT on traces want a high learning rate?

    python benchmarks/deepdistill.py --trials    the trials on development seeds 100 and 101
    python benchmarks/deepdistill.py             the reported runs: every arm on seeds 1 to 5
    python benchmarks/deepdistill.py --tables    the tables again, from the committed logs

Rules and protocol, written down before the first reported run:

- The teacher is models/tiny after 40 steps of grpo.py on chains of three, one for every seed. It samples 4
  traces for each of 2,048 chains of one to eight steps. Rows are its right traces, of:
    all       all problems that it solves
    random    a random part of these
    spread    those it does not solve every time (cv > 0; for scores of 0 and 1 the band of 1 to 3 of 4)
    hard      those it solves once (cv > 1)
  random, spread and hard are cut to 12,000 target tokens. Every arm learns from six times as many, with a
  constant learning rate, from models/tiny.
- Every arm has the best of three learning rates, by dev avg@16 on chains of three.
- The premise: the pool has problems that are always solved and such that never are.
- The learning rate: all rows at six rates from 1e-4 to 3e-2, from models/tiny and from a sibling of the
  teacher with another seed. No choice is made there; every rate is an arm.
"""

import json
import random
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks import recipes  # noqa: E402
from benchmarks.recipes import NO_SCORES  # noqa: E402

TASK, POOL = "chain?horizon=3", "chain?horizon=1-8"
GRPO = f'grpo.py --task "{TASK}" --steps 40 {NO_SCORES}'
SELECT = (
    f'tools/select_data.py --task "{POOL}" --model {{here}}/teacher/last --problems 2048 -n 4 '
    "--traces correct --seed {seed} --samples-dir {here}/samples"
)
RULES = {
    "all": "--low 0 --high 1",
    "spread": "--keep spread --min-cv 0",
    "hard": "--keep spread --min-cv 1",
}
CUT, TOKENS, PASSES = ("random", "spread", "hard"), 12_000, 6
TRAIN = (
    f'sft.py --task "{TASK}" --rows-per-step 64 --epochs 1000 --schedule constant '
    f"--token-budget {PASSES * TOKENS} {NO_SCORES} --seed {{seed}} --out-dir {{out}}"
)
RATES = [f"--lr {lr}" for lr in ("3e-4", "1e-3", "2e-3")]
SWEEP = ("1e-4", "3e-4", "1e-3", "3e-3", "1e-2", "3e-2")
STARTS = {"base": "models/tiny", "after_rl": "{here}/sibling/last"}


@dataclass
class Args(recipes.Args):
    cut: Path | None = None
    """make the rows of the arms in this folder, and stop"""
    cut_seed: int = 0
    """of the random part"""


def cut_to_the_same_tokens(here: Path, seed: int) -> None:
    """The rows of every arm, in random order; those of CUT up to TOKENS tokens."""
    rows = {rule: [json.loads(line) for line in (here / f"of_{rule}.jsonl").open()] for rule in RULES}
    for rule, each in (rows | {"random": rows["all"]}).items():
        shuffled, kept, count = list(each), [], 0
        random.Random(f"{seed}/{rule}").shuffle(shuffled)
        for row in shuffled:
            if rule not in CUT or count + row["tokens"] <= TOKENS:
                kept.append(row)
                count += row["tokens"]
        if rule in CUT and count < 0.99 * TOKENS:
            sys.exit(f"error: rows of {rule} have only {count} tokens, not {TOKENS}")
        (here / f"{rule}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    (here / "rows").touch()


def describe(here: Path) -> dict:
    """Rows and tokens of every arm, and how many problems of each horizon have 0 to 4 right traces."""
    found = {}
    for rule in (*RULES, "random"):
        rows = [json.loads(line) for line in (here / f"{rule}.jsonl").open()]
        horizons = [row["horizon"] for row in rows]
        found[rule] = {
            "rows": len(rows),
            "tokens": sum(row["tokens"] for row in rows),
            "mean horizon": sum(horizons) / len(rows),
        }
    right = {}
    for sample in map(json.loads, (here / "samples/samples.jsonl").open()):
        right[sample["index"]] = right.get(sample["index"], 0) + (sample["score"] == 1)
    found["right of 4"] = [sum(count == c for count in right.values()) for c in range(5)]
    return found


ARMS = {rule: f"{TRAIN} --data {{here}}/{rule}.jsonl" for rule in (*CUT, "all")}
ARMS |= {
    f"{start}_{lr}": f"{TRAIN} --data {{here}}/all.jsonl --model {model} --lr {lr}"
    for start, model in STARTS.items()
    for lr in SWEEP
}
SAID = {"base": "from models/tiny", "after_rl": "after GRPO"}

EXPERIMENT = recipes.Experiment(
    file=__file__,
    materials={
        "teacher": f"{GRPO} --seed {{seed}} --out-dir {{here}}/teacher",
        "sibling": f"{GRPO} --seed {{seed}}0 --out-dir {{here}}/sibling",
        **{
            f"of_{rule}.jsonl": f"{SELECT} {how} --out {{here}}/of_{rule}.jsonl"
            for rule, how in RULES.items()
        },
        "rows": "benchmarks/deepdistill.py --cut {here} --cut-seed {seed}",
    },
    arms=ARMS,
    names={
        "random": "a random part",
        "spread": "not solved every time",
        "hard": "solved once of four",
        "all": "all right traces",
    }
    | {f"{start}_{lr}": f"{said}, {lr}" for start, said in SAID.items() for lr in SWEEP},
    grids=dict.fromkeys((*CUT, "all"), RATES),
    chosen={arm: "" for arm in ARMS if arm not in (*CUT, "all")},
    measured={TASK: (200, 16), "chain?horizon=6": (100, 16)},
    decides=TASK,
    describe=describe,
)


def main(args: Args) -> None:
    if args.cut:
        return cut_to_the_same_tokens(args.cut, args.cut_seed)
    recipes.main(EXPERIMENT, args)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
