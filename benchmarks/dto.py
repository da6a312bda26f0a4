"""The experiment behind docs/dto.md (DTO, arXiv 2505.21765): does a model that thinks too long become
shorter, and not worse, by preferring its own traces that end where the answer is known?

    python benchmarks/dto.py --trials    the trials on development seeds 100 and 101
    python benchmarks/dto.py             the reported runs: every arm on seeds 1 to 5
    python benchmarks/dto.py --tables    the tables again, from the committed logs

Rules and protocol, written down before the first reported run:

- Chains of three steps. models/tiny does not think too long, so every seed first makes a start that does:
  models/tiny after 4,096 worked solutions in which half of the steps are followed by one or two lines that
  change nothing (tools/traces.py --kind overthinking).
- The premise is in the materials: how long the start's traces are, against worked solutions.
- Pairs are made of 512 training problems, as papers/dto.py makes them. Claims 1 and 2 are about them alone:
  how much attention right traces save, and how many wrong ones become right.
- Arms, all from this start: SimPO on DTO's pairs; SFT on what these pairs chose; SimPO on the shortest and
  the longest right one of K samples, which needs no patterns; and GRPO with DAPO's length penalty,
  which begins at 40 tokens, what worked solutions have.
- Sampled tokens are equal, those that find exits and finishes included: the samples of the third arm are of
  as many problems, with the K that comes nearest, and GRPO ends at the same number. The arms on pairs or
  rows make 60 steps, GRPO as many as its tokens allow.
- Every arm has the best of four learning rates, by dev avg@16; SimPO at beta 2 and gamma / beta 0.5.
- Measured: avg@16 and mean length on 200 test problems of the trained task, and on chains of five, which no
  arm trains on. The claim: shorter than the start at an accuracy that is not lower. It is refuted if the arm
  that needs no patterns has the same accuracy at the same length.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks import recipes  # noqa: E402
from benchmarks.recipes import NO_SCORES, Experiment  # noqa: E402
from plainrl.folder import json_lines  # noqa: E402

TASK = "chain?horizon=3"
PROBLEMS, STEPS = 512, 60
SAMPLED = 210_000  # tokens that the pairs of 512 problems take, about: 410 a problem in a first try
K = 6  # samples of a problem that take about as many
START = "--model {here}/start/last"
OWN = f'--task "{TASK}" {NO_SCORES} --seed {{seed}} --out-dir {{out}}'
ROWS = f"--rows-per-step 64 --epochs 1000 --steps {STEPS}"
SELECT = f'tools/select_data.py --task "{TASK}" --problems {PROBLEMS} -n {K} --low 0 --high 1'
RATES = [f"--lr {lr}" for lr in ("3e-5", "1e-4", "3e-4", "1e-3")]

ARMS = {
    "dto": f"papers/dto.py {START} --data {{here}}/pairs/pairs.jsonl {ROWS} {OWN}",
    "sft": f"sft.py {START} --data {{here}}/chosen.jsonl {ROWS} {OWN}",
    "shortest": f"papers/dto.py {START} --data {{here}}/shortest.jsonl {ROWS} {OWN}",
    "grpo": f"papers/dapo.py {START} --overlong-buffer 120 --steps 1000 --token-budget {SAMPLED} {OWN}",
}


@dataclass
class Args(recipes.Args):
    make: str | None = None
    """write the rows of an arm, "chosen" or "shortest", to --rows, and nothing else"""
    of: Path | None = None
    """the file that they are made of"""
    rows: Path | None = None
    """where they go"""


# --- rows of the arms ---------------------------------------------------------------------------------------


def chosen_rows(lines: list[dict]) -> list[dict]:
    """Of every pair what was chosen, as a row for sft.py."""
    return [{"prompt": line["prompt"], "completion": line["chosen"]} for line in lines]


def shortest_pairs(lines: list[dict]) -> list[dict]:
    """Of every problem its shortest right sample, and its longest. None where all are of one length."""
    right = {}
    for line in lines:
        if line["score"] == 1 and line["finish_reason"] == "stop":
            right.setdefault(line["prompt"], []).append(line)
    pairs = []
    for prompt, samples in right.items():
        samples.sort(key=lambda line: line["tokens"])
        if samples[0]["tokens"] < samples[-1]["tokens"]:
            chosen, rejected = samples[0]["completion"], samples[-1]["completion"]
            pairs.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    return pairs


MAKERS = {"chosen": chosen_rows, "shortest": shortest_pairs}


# --- what is measured ---------------------------------------------------------------------------------------


def lengths(task, rollouts: list, *model) -> dict[str, float]:
    """Mean tokens of all completions, the end included."""
    tokens = [len(completion.ids) for rollout in rollouts for completion in rollout.completions]
    return {"tokens": sum(tokens) / len(tokens)}


def describe(here: Path) -> dict:
    """What became of the start's traces: claims 1 and 2, and the tokens that were sampled for the pairs."""
    pairs = [json.loads(line) for line in (here / "pairs/pairs.jsonl").read_text().splitlines()]
    pruned = sum(bool(pair["dropped"]) for pair in pairs)
    return recipes.read(here / "pairs/pairs.json") | {"pruned": pruned}


EXPERIMENT = Experiment(
    file=__file__,
    materials={
        "overthinking.jsonl": f'tools/traces.py --task "{TASK}" --kind overthinking --share 0.5 '
        "--problems 4096 --seed {seed}1 --out {here}/overthinking.jsonl",
        "start": "sft.py --data {here}/overthinking.jsonl --rows-per-step 64 --epochs 2 --lr 2e-3 "
        f'--task "{TASK}" {NO_SCORES} --seed {{seed}} --out-dir {{here}}/start',
        "pairs": f'papers/dto.py {START} --task "{TASK}" --train-size {PROBLEMS} --steps 1 {NO_SCORES} '
        "--seed {seed} --out-dir {here}/pairs",
        "chosen.jsonl": "benchmarks/dto.py --make chosen --of {here}/pairs/pairs.jsonl "
        "--rows {here}/chosen.jsonl",
        "samples.jsonl": f"{SELECT} {START} --seed {{seed}} --out {{here}}/samples.jsonl",
        "shortest.jsonl": "benchmarks/dto.py --make shortest --of {here}/samples.samples/samples.jsonl "
        "--rows {here}/shortest.jsonl",
    },
    arms=ARMS,
    names={
        "dto": "SimPO on DTO's pairs",
        "sft": "SFT on what they chose",
        "shortest": "SimPO on shortest and longest right",
        "grpo": "GRPO with DAPO's length penalty",
    },
    grids=dict.fromkeys(ARMS, RATES),
    chosen={},
    measured={TASK: (200, 16), "chain?horizon=5": (100, 16)},
    decides=TASK,
    start="{here}/start/last",
    more=lengths,
    more_shown=("tokens",),
    compared=("avg", "tokens"),
    against="before",
    describe=describe,
)


def main(args: Args) -> None:
    if args.make is None:
        return recipes.main(EXPERIMENT, args)
    lines = [json.loads(line) for line in args.of.read_text().splitlines()]
    args.rows.write_text(json_lines(MAKERS[args.make](lines)))


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
