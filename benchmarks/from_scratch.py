"""The experiment behind docs/from-scratch.md (General Reasoning Requires Learning to Reason from the Get-go,
arXiv 2502.19402): does RL from random weights generalise better than SFT and then RL?

    python benchmarks/from_scratch.py --trials    the trials on development seeds 100 and 101
    python benchmarks/from_scratch.py             the reported runs: every arm on seeds 1 to 5
    python benchmarks/from_scratch.py --tables    the tables again, from the committed logs

Rules and protocol, written down before the first reported run:

- World: orthogonal. All arms begin with the same random weights of a seed, 0.2 million of them. They train on
  vectors of 2 to 4 numbers, and are tested on others of 2 to 4 and on longer ones of 5 to 8.
- Chance is .5. The short cut of parity, which adds nothing up, is printed first: an arm that is not above it
  has not shown that it adds.
- Arms: RL alone, 400 steps of 16 problems x 16 completions; RL with vectors of two numbers for the first 130
  of these steps; SFT alone on the worked solutions of 6,400 problems, the number that RL meets, three times
  over; SFT on 3,200 of them, then 200 steps of RL, which is as many problems; and the same with 400 steps of
  RL, which is about as many sampled tokens. What follows a first part has other problems of the same task and
  a fresh optimizer.
- RL has the best of three learning rates, SFT alone too; the SFT before RL has 3e-3. The best has the highest
  avg@16 on 200 dev problems of 2 to 4 numbers, mean over both development seeds. One whose best rate is the
  first or the last gets one more beyond it.
- Measured: the model after the last step on 400 test problems x 16 samples at temperature 1. Beside accuracy:
  symbols of scratch, and the probability of the right one of Y and N after a completion's own scratch, and
  after as many random symbols. Where both are alike the scratch is not used.
- The claims: RL alone is above SFT and then RL on the longer vectors; with two numbers first it is above RL
  alone. What an arm has more than RL alone is paired by seed.
- Left out: the paper's third claim, a small context. It needs a model whose attention has a window of 8.
"""

import random
import sys
from pathlib import Path

import numpy as np
import torch
import tyro

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks import recipes  # noqa: E402
from benchmarks.recipes import NO_SCORES, Args, Experiment  # noqa: E402
from plainrl.flags import EVAL_SEED  # noqa: E402
from plainrl.orthogonal import ANSWER, SYMBOLS, OrthogonalTask, by_parity  # noqa: E402
from plainrl.scoring import score_all  # noqa: E402

STEPS, EASY, PROBLEMS = 400, 130, 6400
SHORT, LONGER = "orthogonal?n=2-4", "orthogonal?n=5-8"
SCRATCH = [symbol for symbol in SYMBOLS if symbol not in "YN?"]
OF_EACH = 4  # samples of a problem whose scratch is looked at

OWN = f"{NO_SCORES} --seed {{seed}} --out-dir {{out}}"
FRESH = "--init random --task orthogonal"
RL = f"grpo.py {FRESH} --steps {STEPS} {OWN}"
SFT = f"sft.py {FRESH} --epochs 3"
FIRST_SFT = f"{SFT} --train-size {PROBLEMS // 2} --lr 3e-3 {OWN}.1"
THEN_RL = f"grpo.py --model {{out}}.1/last --task orthogonal {NO_SCORES} --seed 9{{seed}} --out-dir {{out}}"
ARMS = {
    "rl": RL,
    "easy_first": f"grpo.py --init random --task orthogonal?n=2 --steps {EASY} {{setting}} {OWN}.1 && "
    f"{THEN_RL} --steps {STEPS - EASY}",
    "sft": f"{SFT} --train-size {PROBLEMS} {OWN}",
    "sft_rl": f"{FIRST_SFT} && {THEN_RL} --steps {STEPS // 2}",
    "sft_rl_tokens": f"{FIRST_SFT} && {THEN_RL} --steps {STEPS}",
}


def scratch_of(text: str) -> str | None:
    """What stands before the answer of a completion; None where there is no answer.

    >>> scratch_of("-00,-1N"), scratch_of("Y"), scratch_of("YY")
    ('-00,-1', '', None)
    """
    found = ANSWER.fullmatch(text.strip())
    return found[1] if found else None


def right_after(model, prompt_ids: list[list[int]], scratch: list[list[int]], answers: list[tuple]) -> list:
    """The probability of the right answer after a scratch, where only it and the wrong one are possible.

    `answers` are the ids of both, the right one first. One number a row.
    """
    logprobs = []
    for which in (0, 1):
        completions = [ids + [pair[which]] for ids, pair in zip(scratch, answers, strict=True)]
        found, _ = score_all(model, prompt_ids, completions, 1.0, 32768)  # [N, T]
        last = torch.tensor([len(ids) - 1 for ids in completions], device=found.device)
        logprobs.append(found.gather(1, last[:, None])[:, 0])  # [N]
    return torch.sigmoid(logprobs[0] - logprobs[1]).tolist()


def scratch_numbers(name: str, rollouts: list, model, tokenizer) -> dict[str, float]:
    """How long the scratch is, and what the answer is worth after it and after noise of its length. nan where
    no completion has an answer."""
    rng, prompts, own, noise, answers = random.Random(0), [], [], [], []
    id_of = tokenizer.get_vocab()
    ids_of = lambda symbols: [id_of[symbol] for symbol in symbols]  # noqa: E731
    for rollout in rollouts:
        for row, text in enumerate(rollout.texts):
            scratch, problem = scratch_of(text), rollout.problems[row // rollout.group_size]
            if scratch is None or row % rollout.group_size >= OF_EACH:
                continue
            prompts.append(rollout.prompt_ids[row])
            own.append(ids_of(scratch))
            noise.append(ids_of(rng.choices(SCRATCH, k=len(scratch))))
            answers.append(tuple(ids_of("YN" if problem.answer == "Y" else "NY")))
    if not prompts:
        return dict.fromkeys(("scratch", "own", "noise"), float("nan"))
    return {
        "scratch": float(np.mean(list(map(len, own)))),
        "own": float(np.mean(right_after(model, prompts, own, answers))),
        "noise": float(np.mean(right_after(model, prompts, noise, answers))),
    }


RL_RATES = [f"--lr {lr}" for lr in ("3e-4", "1e-3", "3e-3")]
EXPERIMENT = Experiment(
    file=__file__,
    materials={  # the random weights themselves: a step at rate 0 leaves them as they are
        "start": f"sft.py {FRESH} --train-size 64 --steps 1 --lr 0 {NO_SCORES} --seed {{seed}} "
        "--out-dir {here}/start"
    },
    arms=ARMS,
    names={
        "rl": "RL alone",
        "easy_first": "RL, two numbers first",
        "sft": "SFT alone",
        "sft_rl": "SFT, then RL; as many problems",
        "sft_rl_tokens": "SFT, then RL; as many tokens",
    },
    grids=dict.fromkeys(ARMS, RL_RATES) | {"sft": [f"--lr {lr}" for lr in ("1e-3", "3e-3", "1e-2")]},
    chosen={},
    measured={SHORT: (400, 16), LONGER: (400, 16)},
    decides=SHORT,
    on_dev=(200, 16),
    start="{here}/start/last",
    max_new_tokens=14,
    more=scratch_numbers,
    more_shown=("scratch", "own", "noise"),
)


def parity_is_right(task: OrthogonalTask, problems: int = 400) -> float:
    """How often the short cut gives the right answer on test."""
    asked = [task.problem("test", index, EVAL_SEED) for index in range(problems)]
    return float(np.mean([by_parity(problem.prompt) == problem.answer for problem in asked]))


def main(experiment: Experiment, args: Args) -> None:
    if args.one is None:
        for n in ("2-4", "5-8"):
            print(f"n = {n}: chance .500, parity alone {parity_is_right(OrthogonalTask(n)):.3f}", flush=True)
    recipes.main(experiment, args)


if __name__ == "__main__":
    main(EXPERIMENT, tyro.cli(Args, description=__doc__))
