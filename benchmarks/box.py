"""The experiment behind docs/vision-rewards.md (Seg-Zero, arXiv 2503.06520): do the parts of its reward help?

    python benchmarks/box.py --trials    the trials on development seeds 100 and 101
    python benchmarks/box.py             the reported runs: every arm on seeds 1 to 5
    python benchmarks/box.py --tables    the tables again, from the committed logs

Rules and protocol, written down before the first reported run:

- World: box?size=8, a rectangle in 64 characters with two marked points. Start: models/tiny after SFT on
  2,048 answers in the right form, whose boxes and points are random: it knows how to answer and not what.
- The premise is looked at first: the start has an IoU above .5 in at least one of 16 samples of a tenth of
  the problems. Where it has not, a grid is too hard for it, and there is nothing to compare.
- Arms: GRPO with the sum of the five terms; with the IoU term alone; with the IoU as a number. 80 steps of 16
  problems x 16 completions each; problem order and seeds are the same.
- Every arm has the best of the same three learning rates, one more beyond where it is the first or the last:
  the highest avg@16 on 100 dev problems, mean over both development seeds. Right is, for all arms, an IoU
  above .5.
- Measured: the model after the last step on 200 test problems x 16 samples at temperature 1.
- The claim that can be asked here: the sum of five is above the IoU term alone. What an arm has more than
  that is paired by seed. The paper's own claim, about pictures outside of its training data, cannot.
"""

import json
import random
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks import recipes  # noqa: E402
from benchmarks.recipes import NO_SCORES, Experiment  # noqa: E402
from plainrl.box import BoxTask, worked  # noqa: E402

SIZE, ROWS, STEPS = 8, 2048, 80
MEASURED = f"box?size={SIZE}&reward=hit"
SEEN = 0.1  # pass@16 of the start, at least

OWN = f"--max-new-tokens 96 {NO_SCORES} --seed {{seed}} --out-dir {{out}}"
GRPO = f"grpo.py --model {{here}}/start/last --steps {STEPS} {OWN}"
ARMS = {reward: f"{GRPO} --task box?size={SIZE}&reward={reward}" for reward in ("hit", "sum", "iou")}


def premise(here: Path) -> dict[str, float]:
    """How often a start has the box, on dev. Ends the command where it next to never has."""
    counts = recipes.measure(EXPERIMENT, here / "start/last", "dev", str)[MEASURED]
    n, scores = counts["samples"], recipes.scores_of(counts)
    print(f"{here}: the start has avg@{n} {scores['avg']:.4f}, pass@{n} {scores['pass']:.4f}", flush=True)
    if scores["pass"] < SEEN:
        sys.exit(f"error: pass@{n} is below {SEEN}: the grid is too hard for the start; nothing is compared")
    return {"avg": round(scores["avg"], 4), "pass": round(scores["pass"], 4)}


EXPERIMENT = Experiment(
    file=__file__,
    materials={
        "rows.jsonl": "benchmarks/box.py --rows {here}/rows.jsonl --one {seed}",
        "start": f"sft.py --data {{here}}/rows.jsonl --task box?size={SIZE} --max-new-tokens 96 {NO_SCORES} "
        "--seed {seed} --out-dir {here}/start",
    },
    arms=ARMS,
    names={"hit": "IoU term alone", "sum": "sum of five terms", "iou": "IoU as a number"},
    grids=dict.fromkeys(ARMS, [f"--lr {lr}" for lr in ("1e-4", "3e-4", "1e-3")]),
    chosen={},
    measured={MEASURED: (200, 16)},
    decides=MEASURED,
    on_dev=(100, 16),
    start="{here}/start/last",
    max_new_tokens=96,
    describe=premise,
)


@dataclass
class Args(recipes.Args):
    rows: Path | None = None
    """write the rows of the start model there, drawn by --one, and stop"""


def rows_of_the_form(seed: int, count: int) -> list[dict]:
    """Prompts of the split sft with answers in the right form. Box and points are those of no problem."""
    task, rng, rows = BoxTask(side=SIZE), random.Random(seed), []
    for index in range(count):
        box = task.draw(rng)
        points = [[rng.randint(box[0], box[2]), rng.randint(box[1], box[3])] for _ in range(2)]
        rows.append({"prompt": task.problem("sft", index, seed).prompt, "completion": worked(box, points)})
    return rows


def main(experiment: Experiment, args: Args) -> None:
    if args.rows:
        rows = rows_of_the_form(args.one, ROWS)
        args.rows.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return
    recipes.main(experiment, args)


if __name__ == "__main__":
    main(EXPERIMENT, tyro.cli(Args, description=__doc__))
