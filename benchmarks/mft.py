"""The experiment behind docs/mft.md: does Masked Thought beat plain SFT where data is small?

    python benchmarks/mft.py --trials    the trials on development seeds 100 and 101
    python benchmarks/mft.py             the reported runs: every arm on seeds 1 to 5
    python benchmarks/mft.py --tables    the tables again, from the committed logs

Rules and protocol, written down before the first reported run:

- 128 worked solutions of chains of three steps, 64 rows a step, from models/tiny. Every epoch is scored on
  64 dev problems x 4 samples, and the best epoch is the model that counts, in every arm.
- Every arm has twelve settings: of SFT four learning rates x 10, 20 or 30 epochs; of MFT, with random tokens
  and with the padding token, three rates of replacement x two learning rates x 10 or 30 epochs. The best has
  the highest dev avg@16.
- The premise: with so few rows plain SFT overfits, so that the loss on held-out rows turns up before its last
  epoch. It is looked at first.
- Measured: chains of three; of four to six, which no arm trains on; and how much the loss of a worked
  solution rises when one number of its question is another. A model that looks at the question rises more.
"""

import random
import re
import sys
from pathlib import Path

import torch
import tyro

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.recipes import Args, Experiment, main  # noqa: E402
from plainrl.rollout import encode_prompt  # noqa: E402
from plainrl.scoring import score  # noqa: E402

TASK = "chain?horizon=3"
FLAGS = (
    f'--task "{TASK}" --train-size 128 --rows-per-step 64 --dev-share 0.2 --eval-every 2 --eval-problems 64 '
    "--eval-samples 4 --test-problems 8 --no-report --seed {seed} --out-dir {out}"
)
ARMS = {
    "sft": f"sft.py {FLAGS}",
    "random": f"papers/mft.py --mask-with random {FLAGS}",
    "pad": f"papers/mft.py --mask-with pad {FLAGS}",
}
OF_SFT = [f"--lr {lr} --epochs {n}" for lr in ("3e-4", "1e-3", "2e-3", "4e-3") for n in (10, 20, 30)]
OF_MFT = [
    f"--mask-rate {rate} --lr {lr} --epochs {n}"
    for rate in (0.05, 0.2, 0.4)
    for lr in ("1e-3", "2e-3")
    for n in (10, 30)
]


def with_another_number(prompt: str, rng: random.Random) -> str:
    """The question with one of its numbers replaced by another one of as many digits."""
    found = rng.choice(list(re.finditer(r"\d+", prompt)))
    first, last = 10 ** (len(found[0]) - 1), 10 ** len(found[0]) - 1
    other = rng.choice([n for n in range(max(2, first), last + 1) if n != int(found[0])])
    return prompt[: found.start()] + str(other) + prompt[found.end() :]


@torch.no_grad()
def rise_with_another_number(task, rollouts: list, model, tokenizer) -> dict[str, float]:
    """How many nats a worked solution's loss rises by, in sum, where a number of its question is another."""
    problems = [problem for rollout in rollouts for problem in rollout.problems]
    completions = [tokenizer.encode(problem.solution, add_special_tokens=False) for problem in problems]
    losses = []
    for change in (lambda prompt, rng: prompt, with_another_number):
        prompts = [change(problem.prompt, random.Random(problem.prompt)) for problem in problems]
        ids = [encode_prompt(tokenizer, prompt, None) for prompt in prompts]
        losses.append(-score(model, ids, completions, 1.0)[0].sum().item() / len(problems))
    return {"rise with another number": losses[1] - losses[0]}


EXPERIMENT = Experiment(
    file=__file__,
    materials={},
    arms=ARMS,
    names={"sft": "SFT", "random": "MFT, random tokens", "pad": "MFT, padding token"},
    grids={"sft": OF_SFT, "random": OF_MFT, "pad": OF_MFT},
    chosen={},
    measured={TASK: (200, 16)} | {f"chain?horizon={h}": (100, 16) for h in (4, 5, 6)},
    decides=TASK,
    model="final",
    more=rise_with_another_number,
    more_shown=("rise with another number",),
)

if __name__ == "__main__":
    main(EXPERIMENT, tyro.cli(Args, description=__doc__))
