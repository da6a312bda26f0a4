"""The experiment behind docs/traces.md (Shape of Thought, arXiv 2512.22255): do wrong traces of a stronger
model teach more than right solutions in words of their own?

    python benchmarks/shape.py --trials    the trials on development seeds 100 and 101
    python benchmarks/shape.py             the reported runs: every arm on seeds 1 to 5
    python benchmarks/shape.py --tables    the tables again, from the committed logs

Rules and protocol, written down before the first reported run:

- Chains of three steps. The stronger model is a sibling of the student: models/tiny after 40 steps of
  grpo.py, one for every seed. It samples 8 traces for each of 1,024 training problems.
- All arms of a seed have the same 256 problems, those first in order for which the teacher has both a right
  and a wrong trace that ended and has an answer; one row each.
    right        a trace of the teacher that is right (G)
    wrong        one that is wrong (W)
    dialect      the worked solution in sentences, numbers in words: right, and far from the student (H)
    rewritten    the same solution in the student's lines (P)
    corrupt 1/3, 2/3, all: the solution with so many wrong results, from which the next lines go on (C)
    corrupt 1/3, inconsistent: the lines after a wrong result go on from the right one
- 24 steps of 64 rows from models/tiny; every arm has the best of three learning rates, by dev avg@16.
- The premise: the dialect is farther from the student than wrong traces are (nats a token under models/tiny,
  before training), and more than half of the steps in wrong traces are right. Both are measured first.
- In this world the lines are the whole skill, so wrong lines should hurt more than in the paper.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks import recipes  # noqa: E402
from benchmarks.recipes import NO_SCORES  # noqa: E402
from plainrl.models import load_model  # noqa: E402
from plainrl.rollout import encode_prompt  # noqa: E402
from plainrl.scoring import score  # noqa: E402
from tools.traces import read_steps, right_steps  # noqa: E402

TASK = "chain?horizon=3"
PROBLEMS, ROWS = 1024, 256
TEACHER = f'--task "{TASK}" --steps 40'
SELECT = (
    f'tools/select_data.py --task "{TASK}" --model {{here}}/teacher/last --problems {PROBLEMS} -n 8 '
    "--paired --per-problem 1 --seed {seed} --samples-dir {here}/samples"
)
TRACES = f'tools/traces.py --task "{TASK}" --problems {PROBLEMS} --seed {{seed}}'
WRITTEN = {  # arms whose rows come from worked solutions
    "dialect": "--kind dialect",
    "rewritten": "--kind steps",
    "corrupt_third": "--kind corrupt --share 0.3333",
    "corrupt_two_thirds": "--kind corrupt --share 0.6667",
    "corrupt_all": "--kind corrupt --share 1",
    "corrupt_inconsistent": "--kind corrupt --share 0.3333 --no-consistent",
}
KINDS = ("rewritten", "dialect", "right", "wrong", *list(WRITTEN)[2:])
RATES = [f"--lr {lr}" for lr in ("3e-4", "1e-3", "2e-3")]
TRAIN = (
    f'sft.py --task "{TASK}" --rows-per-step 64 --epochs 100 --steps 24 {NO_SCORES} --seed {{seed}} '
    "--out-dir {out}"
)


@dataclass
class Args(recipes.Args):
    same_problems: Path | None = None
    """cut the rows in this folder to the problems that all arms have, and stop"""


def rows_of(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def cut_to_the_same_problems(here: Path) -> None:
    """Of every file all_KIND.jsonl the rows of the first ROWS problems that all have, as KIND.jsonl."""
    rows = {kind: {row["prompt"]: row for row in rows_of(here / f"all_{kind}.jsonl")} for kind in KINDS}
    common = [prompt for prompt in rows["rewritten"] if all(prompt in each for each in rows.values())]
    if len(common) < ROWS:
        sys.exit(f"error: only {len(common)} problems have a row in every arm")
    for kind in KINDS:
        lines = [json.dumps(rows[kind][prompt]) + "\n" for prompt in common[:ROWS]]
        (here / f"{kind}.jsonl").write_text("".join(lines))
    (here / "rows").write_text(f"{ROWS} of {len(common)} problems\n")


@torch.no_grad()
def describe(here: Path) -> dict:
    """Of every arm's rows: the distance from the student, in nats a token; tokens of a row; how many of its
    steps are right, and of its boxes."""
    model, tokenizer = load_model(str(ROOT / "models/tiny"))
    found = {}
    for kind in KINDS:
        rows = rows_of(here / f"{kind}.jsonl")
        prompts = [encode_prompt(tokenizer, row["prompt"], None) for row in rows]
        completions = [
            tokenizer.encode(row["completion"], add_special_tokens=False) + [tokenizer.eos_token_id]
            for row in rows
        ]
        logprobs, _ = score(model, prompts, completions, 1.0)
        tokens = sum(map(len, completions))
        steps = [read_steps(row["completion"]) for row in rows]
        known = [each for each in steps if each]
        found[kind] = {
            "distance": -logprobs.sum().item() / tokens,
            "tokens": tokens / len(rows),
            "right steps": sum(map(right_steps, known)) / max(1, sum(map(len, known))) if known else 1.0,
        }
    return found


def premise_table(out: Path) -> str:
    """What the rows are like, before any training: mean over seeds +- 95% interval."""
    seeds = recipes.known_materials(out)
    lines = ["| rows | nats a token under the student | tokens a row | right steps |", "|---" * 4 + "|"]
    for kind in KINDS if seeds else ():
        columns = [[seed[kind][name] for seed in seeds] for name in ("distance", "tokens", "right steps")]
        lines.append(f"| {NAMES[kind]} | {' | '.join(recipes.cell(column) for column in columns)} |")
    return "\n".join(lines)


NAMES = {
    "rewritten": "right, in the student's lines",
    "dialect": "right, in sentences",
    "right": "the teacher's right traces",
    "wrong": "the teacher's wrong traces",
    "corrupt_third": "a third of the results wrong",
    "corrupt_two_thirds": "two thirds wrong",
    "corrupt_all": "all wrong",
    "corrupt_inconsistent": "a third wrong, the rest as if right",
}

EXPERIMENT = recipes.Experiment(
    file=__file__,
    materials={
        "teacher": f"grpo.py {TEACHER} {NO_SCORES} --seed {{seed}} --out-dir {{here}}/teacher",
        "all_right.jsonl": f"{SELECT} --traces correct --out {{here}}/all_right.jsonl",
        "all_wrong.jsonl": f"{SELECT} --traces wrong --out {{here}}/all_wrong.jsonl",
        **{
            f"all_{kind}.jsonl": f"{TRACES} {flags} --out {{here}}/all_{kind}.jsonl"
            for kind, flags in WRITTEN.items()
        },
        "rows": "benchmarks/shape.py --same-problems {here}",
    },
    arms={kind: f"{TRAIN} --data {{here}}/{kind}.jsonl" for kind in KINDS},
    names=NAMES,
    grids=dict.fromkeys(KINDS, RATES),
    chosen={
        "rewritten": "--lr 1e-3",
        "dialect": "--lr 3e-4",
        "right": "--lr 1e-3",
        "wrong": "--lr 1e-3",
        "corrupt_all": "--lr 1e-3",
        "corrupt_third": "--lr 1e-3",
        "corrupt_two_thirds": "--lr 1e-3",
        "corrupt_inconsistent": "--lr 1e-3",
    },
    measured={TASK: (200, 16)},
    decides=TASK,
    describe=describe,
)


def main(args: Args) -> None:
    if args.same_problems:
        return cut_to_the_same_problems(args.same_problems)
    recipes.main(EXPERIMENT, args)
    if args.one is None:
        print("\n" + premise_table(args.out))


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
