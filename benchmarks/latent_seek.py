"""The experiment behind docs/latent-seek.md (LatentSeek, arXiv 2505.13308): does the search make wrong
answers right, is it the gradient that does, and is it better than samples of as many tokens?

    python benchmarks/latent_seek.py --trials    the trials on development seeds 100 and 101
    python benchmarks/latent_seek.py             the reported runs: every arm on seeds 1 to 5
    python benchmarks/latent_seek.py --tables    the tables again, from the committed logs

Rules and protocol, written down before the first reported run:

- World: chains of two and of three steps, models/tiny, ten steps of search. Nothing is trained. Every seed
  has 200 problems of its own for each task, of test where results are reported, of dev in trials.
- Arms: the search with the task's grade as the critic, the upper bound; the same with directions by chance,
  which Adam goes in steps of equal length; with the model's own mean log-probability; and with a verifier,
  models/tiny after one epoch of `sft.py --task verdicts`.
- Beside each arm, on the same problems: the greedy answers; and the best of plain samples at temperature 1 by
  the same critic, of no more tokens than the search has written.
- Settings are k and Adam's learning rate, nine for each arm, chosen by the search's accuracy on chains of
  two, mean over both development seeds. The verifier's arm takes over what the grade's chose. Sampling is not
  tuned, so that a tie is no proof for the search, and a loss is.
- Measured: the share of right answers. "search less greedy" and "search less sampling" are paired by problem.
- The claims: with the grade, search less greedy is above 0 (1); so is search less sampling (2). The first is
  refuted, too, if directions by chance come as far; the second if sampling comes as far.
- Left out: the paper's judge, since models/tiny cannot be asked; more than ten steps; a real model.
"""

import sys
from pathlib import Path

import numpy as np
import tyro

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks import recipes  # noqa: E402
from benchmarks.recipes import NO_SCORES, Args, Experiment  # noqa: E402

PROBLEMS = 200
TASKS = ("chain?horizon=2", "chain?horizon=3")
METHODS = {"greedy": "greedy", "search": ".", "sampling": "sampling"}  # and where their results are


def seek(flags: str) -> str:
    """One command for each task; the seed's problems begin at a thousand times the seed."""
    own = f"papers/latent_seek.py {flags} --split {{split}} --problems {PROBLEMS} --first-problem {{seed}}000"
    first, second = (f'{own} --task "{task}" --seed {{seed}}' for task in TASKS)
    return f"{first} {{setting}} --out-dir {{out}}.1 && {second} --out-dir {{out}}"


ARMS = {
    "oracle": seek("--critic oracle"),
    "random": seek("--critic oracle --direction random"),
    "self": seek("--critic self"),
    "verifier": seek("--critic verifier --verifier {here}/verifier/last"),
}
GRID = [f"--k {k} --latent-lr {lr}" for k in (0.1, 0.2, 0.5) for lr in (0.03, 0.1, 0.3)]
CHOSEN_BY_ORACLE = GRID[5]  # what the trials of the arm oracle choose is written here


def counts_of(folder: Path) -> dict:
    """{task: right answers of the search, and how the other methods did}."""
    found = {}
    for task, here in zip(TASKS, (folder.with_name(f"{folder.name}.1"), folder)):
        problems = {
            name: recipes.read(here / place / "results.json")["problems"] for name, place in METHODS.items()
        }
        right = {name: [row["correct"] for row in rows] for name, rows in problems.items()}
        more = {name: float(np.mean(right[name])) for name in ("greedy", "sampling")}
        for other in ("greedy", "sampling"):
            more[f"search less {other}"] = float(np.mean(right["search"])) - more[other]
        for name in ("search", "sampling"):
            more[f"tokens of {name}"] = float(np.mean([row["written"] for row in problems[name]]))
        found[task] = {
            "samples": 1,
            "correct": right["search"],
            "parsed": [row["parsed"] for row in problems["search"]],
            "maj": float(np.mean(right["search"])),
            "more": more,
        }
    return found


EXPERIMENT = Experiment(
    file=__file__,
    materials={
        "verifier": f"sft.py --task verdicts --epochs 1 --train-size 12288 {NO_SCORES} --seed {{seed}} "
        "--out-dir {here}/verifier"
    },
    arms=ARMS,
    names={
        "oracle": "search by the task's grade",
        "random": "the same in directions by chance",
        "self": "search by the model's own log-probability",
        "verifier": "search by a verifier",
    },
    grids=dict.fromkeys(("oracle", "random", "self"), GRID),
    chosen={"verifier": CHOSEN_BY_ORACLE},
    measured=dict.fromkeys(TASKS, (PROBLEMS, 1)),
    decides=TASKS[0],
    more_shown=(
        "greedy",
        "search less greedy",
        "sampling",
        "search less sampling",
        "tokens of search",
        "tokens of sampling",
    ),
    counts=counts_of,
)

if __name__ == "__main__":
    recipes.main(EXPERIMENT, tyro.cli(Args, description=__doc__))
