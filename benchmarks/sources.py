"""The experiment behind docs/influence.md (MobileLLM-R1, arXiv 2509.24945): does influence find the sources,
and the rows, that help?

    python benchmarks/sources.py --trials    the trials on development seeds 100 and 101
    python benchmarks/sources.py             the reported runs: every arm on seeds 1 to 5
    python benchmarks/sources.py --tables    the tables again, from the committed logs

Rules and protocol, written down before the first reported run:

- Five sources of 256 rows: worked chains of one to three steps (right); the same kind with all results
  wrong (wrong); wrong answers of models/tiny to one-step problems with the rare reading (misread); chains in
  one line (terse); and worked solutions of countdown, which is another task (unrelated). The probe is 128 dev
  chains of three steps.
- Influence is measured once, at models/tiny, before any training.
- Arms, all of 24 steps of 64 rows from models/tiny: the same share for every source; the shares w of
  influence; the source with the largest w alone; the right rows alone, which nobody knows beforehand
  (oracle); all rows in turn; of all rows those with positive influence.
- Every arm has the best of three learning rates, by dev avg@16.
- Leaving one source out of the equal shares, five arms at the same rate as those, is what eq. 1 calls the
  source's worth. The rank correlation of rho with it says whether influence measures that.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks import recipes  # noqa: E402
from benchmarks.recipes import NO_SCORES  # noqa: E402

TASK = "chain?horizon=3"
SOURCES = ("right", "wrong", "misread", "terse", "unrelated")
ROWS = 256
CHAINS = 'tools/traces.py --task "chain?horizon=1-3" --problems 300'
MISREAD = (
    'tools/select_data.py --task "chain?horizon=1&family=reversed" --model models/tiny --problems 400 -n 2 '
    "--low 0 --high 1 --traces wrong --per-problem 1"
)
MADE = {  # what makes each source; seeds differ, so that no prompt has two answers
    "right": f"{CHAINS} --kind solution --seed {{seed}}",
    "wrong": f"{CHAINS} --kind corrupt --share 1 --seed {{seed}}1",
    "misread": f"{MISREAD} --seed {{seed}}2",
    "terse": f"{CHAINS} --kind sparse --seed {{seed}}3",
    "unrelated": "tools/traces.py --task countdown --problems 300 --kind solution --seed {seed}",
}
INFLUENCE = f'tools/influence.py --data {{here}}/mix.jsonl --probe "{TASK}" --scores-dir {{here}}/scores'
TRAIN = (
    f'sft.py --task "{TASK}" --rows-per-step 64 --epochs 1000 --steps 24 {NO_SCORES} --seed {{seed}} '
    "--out-dir {out}"
)
MIXED = f"{TRAIN} --data {{here}}/mix.jsonl"
TUNED = ("equal", "influence", "best", "oracle", "all", "positive")
CHOSEN: dict[str, str] = {}
RATES = [f"--lr {lr}" for lr in ("3e-4", "1e-3", "2e-3")]


@dataclass
class Args(recipes.Args):
    merge: Path | None = None
    """make mix.jsonl of this folder, each row with its source, and stop"""
    shares: Path | None = None
    """make the mixtures of the arms in this folder, and stop"""


def merge(here: Path) -> None:
    """The first ROWS rows of every source, in one file."""
    with open(here / "mix.jsonl", "w") as file:
        for source in SOURCES:
            lines = (here / f"of_{source}.jsonl").read_text().splitlines()[:ROWS]
            if len(lines) < ROWS:
                sys.exit(f"error: {source} has only {len(lines)} rows")
            for line in lines:
                row = json.loads(line)
                known = {name: row[name] for name in ("prompt", "completion", "answer")}
                file.write(json.dumps(known | {"source": source}) + "\n")


def make_shares(here: Path) -> None:
    """A file of shares for every arm that has some."""
    equal = dict.fromkeys(SOURCES, 1 / len(SOURCES))
    weights = json.loads((here / "influence.json").read_text())
    shares = {"equal": equal, "oracle": {"right": 1.0}, "best": {max(weights, key=weights.get): 1.0}}
    shares |= {f"without_{source}": equal | {source: 0.0} for source in SOURCES}
    for name, each in shares.items():
        (here / f"{name}.json").write_text(json.dumps(each))
    (here / "shares").touch()


def describe(here: Path) -> dict:
    """Of every source the shares w, rho, and how many rows have positive influence."""
    rows = [json.loads(line) for line in (here / "scored.jsonl").open()]
    found = {"w": json.loads((here / "influence.json").read_text())}
    for source in SOURCES:
        own = [row for row in rows if row["source"] == source]
        tokens = np.array([row["tokens"] for row in own])
        values = np.array([row["influence"] for row in own])
        found[source] = {
            "rho": float((tokens * values).sum() / tokens.sum()),
            "positive": float((values > 0).mean()),
            "quartiles": np.quantile(values, (0, 0.25, 0.5, 0.75, 1)).round(4).tolist(),
        }
    return found


ARMS = {arm: f"{MIXED} --mixture {{here}}/{arm}.json" for arm in ("equal", "influence", "best", "oracle")}
ARMS |= {"all": MIXED, "positive": f"{TRAIN} --data {{here}}/positive.jsonl"}
ARMS |= {f"without_{source}": f"{MIXED} --mixture {{here}}/without_{source}.json" for source in SOURCES}

EXPERIMENT = recipes.Experiment(
    file=__file__,
    materials={
        **{f"of_{source}.jsonl": f"{how} --out {{here}}/of_{source}.jsonl" for source, how in MADE.items()},
        "mix.jsonl": "benchmarks/sources.py --merge {here}",
        "influence.json": f"{INFLUENCE} --mixture {{here}}/influence.json --out {{here}}/scored.jsonl",
        "positive.jsonl": f"{INFLUENCE} --keep-above 0 --out {{here}}/positive.jsonl",
        "shares": "benchmarks/sources.py --shares {here}",
    },
    arms=ARMS,
    names={
        "equal": "equal shares",
        "influence": "shares by influence",
        "best": "the best source by influence",
        "oracle": "the right rows alone",
        "all": "all rows in turn",
        "positive": "rows with positive influence",
    }
    | {f"without_{source}": f"equal shares, without {source}" for source in SOURCES},
    grids=dict.fromkeys(TUNED, RATES),
    chosen=CHOSEN | {arm: CHOSEN.get("equal", "") for arm in ARMS if arm not in TUNED},
    measured={TASK: (200, 16)},
    decides=TASK,
    describe=describe,
)


def main(args: Args) -> None:
    if args.merge:
        return merge(args.merge)
    if args.shares:
        return make_shares(args.shares)
    recipes.main(EXPERIMENT, args)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
