"""The experiment behind docs/daslam.md (DaSLaM, arXiv 2310.18338): do a decomposer's sub-questions lead a
frozen solver further than its own samples do, and does reinforcement learning make it ask better?

    python benchmarks/daslam.py --trials    the trials on development seeds 100 and 101
    python benchmarks/daslam.py             the reported runs: every arm on seeds 1 to 5
    python benchmarks/daslam.py --tables    the tables again, from the committed logs

Rules and protocol, written down before the first reported run:

- Chains of three to five steps, test problems of the same kind. No arm sees the solver's weights.
- models/tiny is no solver for this claim: it works in steps anyway, and step by step it is right as often as
  at once. Both numbers are in the first table. So every seed makes a solver that can do one step and not the
  chain: models/tiny after the answers to single steps, each with those before it as a hint (tools/traces.py
  --kind subanswers), and after its own wrong solutions of whole chains, so that it goes on to answer these as
  before.
- The decomposer is another copy of models/tiny, after lists of sub-questions of which 30% are damaged (--kind
  subquestions). What the claim of a much larger solver says, equal sizes cannot show.
- The premise comes first, for both solvers: how often they are right at once, by the vote of 16 samples, with
  the right list and with the right list shuffled, and how many tokens that takes. Vote and episodes are
  compared at equal tokens: 16 samples take at least as many as an episode, so the vote has the advantage.
- Arms: the decomposer before RL; RL with R3; RL with the sum R1 to R5; RL with R3 where the decomposer reads
  the question alone. All RL arms end at the same number of tokens, the solver's included.
- Every RL arm has the best of three learning rates by dev avg@4.
- Measured: 200 test problems, 4 lists of each at temperature 1, each asked to its end.
- The claims: with the decomposer the solver is above itself and above its vote (refuted if not); R3 is above
  the decomposer before RL; and the sum is not below R3.
- Left out: a large model that decomposes by prompting, and PPO. There is none of the first here, and the
  second has a value model that the other scripts do not have.
"""

import random
import re
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import tyro

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks import recipes  # noqa: E402
from benchmarks.arms import cell  # noqa: E402
from benchmarks.recipes import NO_SCORES, Args, Experiment  # noqa: E402
from papers import daslam  # noqa: E402
from papers.daslam import Episode, InPieces  # noqa: E402
from plainrl.flags import EVAL_SEED  # noqa: E402
from plainrl.metrics import evaluate  # noqa: E402
from plainrl.models import eos_ids, load_model  # noqa: E402
from plainrl.sampler import HFSampler  # noqa: E402
from plainrl.tasks import load_task  # noqa: E402

TASK = "chain?horizon=3-5"
SOLVER, DECOMPOSER = "{here}/solver/last", "{here}/decomposer/last"
ROWS = 1024  # problems of each file
BUDGET = 600_000  # tokens of an RL arm, those of the solver included
TRACES = f'tools/traces.py --task "{TASK}" --problems {ROWS} --seed {{seed}}1'
LEARN = "--task none --lr 2e-3 --eval-every 1000 --no-report --seed {seed} --out-dir {here}"
RL = f'papers/daslam.py --model {DECOMPOSER} --solver {SOLVER} --task "{TASK}" --group-size 8 {NO_SCORES} '
RL += "--save-every 10 --seed {seed} --out-dir {out}"
TO_THE_END = f"--steps 1000 --token-budget {BUDGET}"
RATES = [f"--lr {lr}" for lr in ("1e-4", "3e-4", "1e-3")]
ARMS = {
    "before_rl": f"{RL} --steps 1 --lr 0",
    "answer": f"{RL} {TO_THE_END}",
    "full": f"{RL} {TO_THE_END} --reward full",
    "question_alone": f"{RL} {TO_THE_END} --condition none",
}
SHOWN = 200  # problems of the premise
VOTES = 16


def solver_of(folder: str, tokens: int = 160) -> daslam.Solver:
    """The model of a folder as the script asks it."""
    return daslam.load_solver(daslam.Args(solver=folder, solver_tokens=tokens), SimpleNamespace(), None)


def in_pieces(task, fill_in) -> InPieces:
    """The task as a decomposer is scored on it."""
    args = daslam.Args(eval_problems=SHOWN, test_problems=SHOWN)
    return InPieces(task, solver_of(fill_in(SOLVER)), args, SimpleNamespace(holds=lambda prompt: True))


def more(task: InPieces, rollouts: list, model, tokenizer) -> dict[str, float]:
    """Sub-questions of an episode, and tokens of the solver, the attempt included."""
    episodes = [episode for episode, _ in task.played]
    texts = [[each.attempt, *each.answers, each.final] for each in episodes]
    tokens = [sum(len(tokenizer.encode(text)) for text in said) for said in texts]
    asked = [len(each.subquestions) for each in episodes]
    return {"sub-questions": float(np.mean(asked)), "solver tokens": float(np.mean(tokens))}


# --- the premise --------------------------------------------------------------------------------------------


def led_by(task, solver: daslam.Solver, shuffled: bool) -> dict[str, float]:
    """How often the solver is right when it is asked for every letter of the problem, and what that takes."""
    rng, episodes, solver.spent = random.Random(0), [], Counter()
    for index in range(SHOWN):
        problem = task.problem("test", index, EVAL_SEED)
        letters = re.findall(r"\b([A-Z]): ", problem.prompt)
        asked = rng.sample(letters, len(letters)) if shuffled else letters
        episodes.append(Episode(problem, "", [f"{letter}?" for letter in asked]))
    daslam.play(episodes, solver)
    right = [task.grade(each.final, each.question).correct for each in episodes]
    return {"right": float(np.mean(right)), "tokens": solver.spent["tokens"] / SHOWN}


def premise(folder: str) -> dict[str, dict[str, float]]:
    """A solver alone, once and by vote, and led by the right list and by a shuffled one."""
    task, solver = load_task(TASK), solver_of(folder)
    problems = [task.problem("test", index, EVAL_SEED) for index in range(SHOWN)]
    texts = solver([problem.prompt for problem in problems])
    right = [task.grade(text, problem).correct for text, problem in zip(texts, problems)]
    found = {"alone": {"right": float(np.mean(right)), "tokens": solver.spent["tokens"] / SHOWN}}
    model, tokenizer = load_model(folder)
    sampler = HFSampler(model.eval(), eos_ids(model, tokenizer))
    scores, rows = evaluate(sampler, tokenizer, task, "test", SHOWN, VOTES, 160)
    tokens = sum(row["tokens"] for row in rows) / SHOWN
    found["vote"] = {"right": scores[f"maj@{VOTES}"], "tokens": tokens}
    found |= {"order": led_by(task, solver, shuffled=False), "shuffled": led_by(task, solver, shuffled=True)}
    return found


def describe(here: Path) -> dict:
    return {"tiny": premise("models/tiny"), "prepared": premise(str(here / "solver/last"))}


WHO = {"tiny": "models/tiny", "prepared": "prepared solver"}
HOW = {
    "alone": "alone",
    "vote": f"vote of {VOTES} samples",
    "order": "right list",
    "shuffled": "the same list, shuffled",
}


def premise_table(out: Path) -> str:
    """The solvers with and without lists, mean over the reported seeds."""
    seeds = recipes.known_materials(out)
    lines = ["| solver | asked | right | solver's tokens |", "|---" * 4 + "|"]
    for who in WHO if seeds else ():
        for how in HOW:
            cells = [cell([seed[who][how][name] for seed in seeds]) for name in ("right", "tokens")]
            lines.append(f"| {WHO[who]} | {HOW[how]} | {' | '.join(cells)} |")
    return "\n".join(lines)


EXPERIMENT = Experiment(
    file=__file__,
    materials={
        "lists.jsonl": f"{TRACES} --kind subquestions --share 0.3 --out {{here}}/lists.jsonl",
        "answers.jsonl": f"{TRACES} --kind subanswers --out {{here}}/answers.jsonl",
        "own.jsonl": f'tools/select_data.py --task "{TASK}" --problems {ROWS} -n 1 --low 0 --high 1 '
        "--traces wrong --seed {seed}1 --out {here}/own.jsonl",
        "decomposer": f"sft.py --data {{here}}/lists.jsonl --epochs 2 {LEARN}/decomposer",
        "solver": f"sft.py --data {{here}}/answers.jsonl {{here}}/own.jsonl --epochs 2 {LEARN}/solver",
    },
    arms=ARMS,
    names={
        "before_rl": "decomposer after SFT",
        "answer": "and RL, R3",
        "full": "and RL, R1 to R5",
        "question_alone": "and RL, R3, without the attempt",
    },
    grids=dict.fromkeys(("answer", "full", "question_alone"), RATES),
    chosen={"before_rl": ""},
    measured={TASK: (SHOWN, 4)},
    decides=TASK,
    start=DECOMPOSER,
    max_new_tokens=64,
    as_scored=in_pieces,
    more=more,
    more_shown=("sub-questions", "solver tokens"),
    describe=describe,
)


if __name__ == "__main__":
    args = tyro.cli(Args, description=__doc__)
    recipes.main(EXPERIMENT, args)
    if args.one is None:
        print("", premise_table(args.out or EXPERIMENT.logs), sep="\n\n")
