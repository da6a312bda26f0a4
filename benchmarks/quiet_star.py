"""The experiment behind docs/quiet-star.md (Quiet-STaR, arXiv 2403.09629): do thoughts make hard tokens of a
plain text likelier, and are they worth what they cost?

    python benchmarks/quiet_star.py --trials    the trials on development seeds 100 and 101
    python benchmarks/quiet_star.py             the reported runs: every arm on seeds 1 to 5
    python benchmarks/quiet_star.py --tables    the tables again, from the committed logs

Rules and protocol, written down before the first reported run:

- models/tiny goes on with worked solutions of chains of one to five steps, without their questions: 150 steps
  of 8 texts. It is the paper's setting as far as a small world has it: no questions, no answers.
- The premise is looked at first: the digits of a result, which have to be computed, are harder for the start
  than the mean token. What is random in such a text, the first number and what is done with it, no thought
  can help.
- Arms: (a) plain continued pretraining; (b) the same with as many tokens through the model as the longest
  thoughts take, 15 times as many texts; (c) S, E and the gate, but no token between them: pause tokens; (d)
  thoughts of 2 and of 4 tokens that are never rewarded, beta 0; (e) the same with their loss.
- (a) to (c) and (d) with 4 tokens have the best of three learning rates. (e) with 4 tokens has the rate that
  (d) has, and the best of four settings of beta. (d) and (e) with 2 tokens take the settings of 4 tokens. The
  best setting has the highest log-probability of result digits on dev, with thoughts where there are some.
- Measured: the model after the last step on 200 test problems. Mean log-probability of result digits and of
  all tokens of their solutions, without the question as in training, with and without thoughts (the same
  random numbers for all); and greedy answers to the questions, with a thought before every token.
- The claims: (e) is above (a) in result digits and answers; with 4 tokens it gains more than with 2; result
  digits gain more than the mean token. Only (e) above (d) and (c) shows that rewards matter, and only (e)
  above (b) that thoughts are worth their compute.
- Left out: longer thoughts and other K, the paper's two tokens of thought fewer in training than afterwards,
  other texts.
"""

import sys
from pathlib import Path

import torch
import tyro

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.recipes import Args, Experiment, main  # noqa: E402
from papers import quiet_star  # noqa: E402
from plainrl.models import eos_ids  # noqa: E402
from plainrl.sampler import HFSampler  # noqa: E402
from plainrl.scoring import score_all  # noqa: E402

STEPS, TEXTS, K = 150, 8, 2
RUNS = quiet_star.Args(thought=4, ahead=K, passes=2).runs_of_a_token  # of a token, with the longest thoughts
COMMON = (
    f"--ahead {K} --rows-per-step {TEXTS} --eval-every 1000 --no-report --seed {{seed}} --out-dir {{out}}"
)
ONCE = f"papers/quiet_star.py --steps {STEPS} --train-size {STEPS * TEXTS} {COMMON}"
MORE = f"papers/quiet_star.py --steps {STEPS * RUNS} --train-size {STEPS * TEXTS * RUNS} {COMMON}"
ARMS = {
    "plain": f"{ONCE} --passes 0",
    "more": f"{MORE} --passes 0",
    "pause": f"{ONCE} --thought 0 --passes 1 --beta 0",
    "random_2": f"{ONCE} --thought 2 --beta 0",
    "random_4": f"{ONCE} --thought 4 --beta 0",
    "quiet_2": f"{ONCE} --thought 2",
    "quiet_4": f"{ONCE} --thought 4",
}
RATES = [f"--lr {lr}" for lr in ("1e-4", "3e-4", "1e-3")]
RATE = "3e-4"  # of thoughts without reward: the default, until their trials have chosen one
BETAS = [f"--lr {RATE} --beta {beta}" for beta in ("10", "100", "1000", "1 --normalise")]  # tried after it
TASK = "chain?horizon=1-5"


def sampler_of(folder: Path, model, tokenizer):
    """What answers: the model with a thought before every token, if it has learned to think."""
    ends = eos_ids(model, tokenizer)
    if not hasattr(model.config, "quiet_star"):
        return HFSampler(model, ends)
    quiet_star.add_thoughts(model, tokenizer, str(folder), model.config.quiet_star["thought"])
    return quiet_star.ThinkingSampler(model, ends)


def result_digits(tokens: list[str]) -> list[bool]:
    r"""Which tokens of a solution are digits of a result: those behind the last = of a line.

    >>> [token for token, digit in zip("A=5+7=12", result_digits([*"A=5+7=12", "\n"])) if digit]
    ['1', '2']
    """
    found, equals = [], 0
    for token in tokens:
        equals = 0 if "\n" in token else equals + token.count("=")
        found.append(equals == 2 and token.isdigit())
    return found


def likelihoods(task, rollouts: list, model, tokenizer) -> dict[str, float]:
    """Mean log-probability of result digits and of all tokens of the worked solutions, with thoughts (where
    there are some) and without."""
    problems = [problem for rollout in rollouts for problem in rollout.problems]
    texts = [[*tokenizer.encode(problem.solution), tokenizer.eos_token_id] for problem in problems]
    rows, budget = ([ids[:1] for ids in texts], [ids[1:] for ids in texts]), 8192
    if hasattr(model, "thoughts"):
        mixed, base = quiet_star.score_with_thoughts(model, *rows, tokens=budget)
    else:
        base, _ = score_all(model, *rows, temperature=1.0, tokens=budget)
        mixed = base
    every, digits = torch.zeros_like(base, dtype=torch.bool), torch.zeros_like(base, dtype=torch.bool)
    for row, ids in enumerate(rows[1]):
        every[row, : len(ids)] = True
        is_digit = result_digits([tokenizer.decode([id]) for id in texts[row]])[1:]
        digits[row, : len(ids)] = torch.tensor(is_digit, device=base.device)
    return {
        "digits": mixed[digits].mean().item(),
        "digits, no thoughts": base[digits].mean().item(),
        "all": mixed[every].mean().item(),
        "all, no thoughts": base[every].mean().item(),
    }


EXPERIMENT = Experiment(
    file=__file__,
    materials={},
    arms=ARMS,
    names={
        "plain": "(a) plain",
        "more": f"(b) plain, {RUNS} times as many texts",
        "pause": "(c) pause tokens",
        "random_2": "(d) thoughts of 2 tokens, no reward",
        "random_4": "(d) thoughts of 4 tokens, no reward",
        "quiet_2": "(e) Quiet-STaR, 2 tokens",
        "quiet_4": "(e) Quiet-STaR, 4 tokens",
    },
    grids=dict.fromkeys(("plain", "more", "pause", "random_4"), RATES) | {"quiet_4": BETAS},
    chosen={"random_2": f"--lr {RATE}", "quiet_2": BETAS[1]},  # to become those of 4 tokens
    measured={TASK: (200, 1)},
    decides=TASK,
    chosen_by=("digits",),
    compared=("digits", "avg"),
    temperature=0.0,
    sampler=sampler_of,
    more=likelihoods,
    more_shown=("digits", "digits, no thoughts", "all", "all, no thoughts"),
)

if __name__ == "__main__":
    main(EXPERIMENT, tyro.cli(Args, description=__doc__))
