r"""E2H: from easy to hard as time goes by (arXiv 2506.06632).

    cosine:    p_i ~ alpha(t) (L - i) + (1 - alpha(t)) (i + 1),    alpha(t) = (1 + cos(pi t)) / 2
    gaussian:  p_i ~ exp(-(i - mu(t))^2 / (2 sigma^2)),            mu(t) = sqrt(t) (L - 1)
    p_i: probability of difficulty i = 0..L-1 at time t, which runs from 0 to 1

Read it as `diff papers/dr_grpo.py papers/e2h.py`. What changes:
[1] Every problem of a step has a horizon of its own, drawn with these probabilities.
[2] Dev and test are problems of all horizons in turn, and each horizon also has a score of its own.

sigma 0.5 is the paper's. Deviations from it:
[D1] Difficulty is the horizon of a chain (the paper: labels of the data, or how often a model fails).
[D2] Time is the share of the steps or of the token budget that is used up, whichever is more. A run cannot be
     resumed with another --steps or --token-budget, which would be another schedule.
[D3] The Gaussian schedule has no floor under the probabilities.
[D4] The update is Dr. GRPO (the paper: GRPO with a small KL term),
     as for every schedule that h1 is compared with.

    python papers/e2h.py                          on the embedded model, chains of one to five steps
    python papers/e2h.py --schedule gaussian

Letters in shapes: B prompts, G completions of each (a group), N = B*G rows, T completion tokens. Rows are
prompt-major: rows i*G .. i*G+G-1 belong to prompt i. Masks come from lengths; EOS is inside the mask when
the completion ended by itself.
"""

import math
import random
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

sys.path.append(str(Path(__file__).resolve().parents[1]))  # where plainrl/ lies

from plainrl.flags import ClipRange, Count, Natural, NotNegative, Positive, RunFlags, by_size, parse
from plainrl.horizons import EveryHorizon, all_horizons, horizon_metrics
from plainrl.ranks import total
from plainrl.rollout import Batch, completion_seed
from plainrl.run import Run
from plainrl.scoring import micro_batches, score, update_sums


@dataclass
class Args(RunFlags):
    schedule: Literal["cosine", "gaussian"] = "cosine"
    """how the horizons grow: all are there from start to end (cosine), or one after the other (gaussian)"""
    max_horizon: Count = 5
    """H, the longest horizon that is trained on"""
    clip_low: ClipRange = 0.2
    """the ratio is clipped below at 1 - clip_low"""
    clip_high: ClipRange = 0.2
    """the ratio is clipped above at 1 + clip_high"""
    mask_truncated: bool = False
    """leave completions cut at --max-new-tokens out of the loss instead of scoring them"""
    importance_cap: Positive | None = None
    """weight tokens by min(pi_old / sampler, cap), if the sampler differs from the trainer (2.0 is common)"""
    minibatches: Count = 1
    """optimizer steps per pass over the sampled batch"""
    epochs: Count = 1
    """passes over the sampled batch"""
    lr: NotNegative | None = by_size(tiny=3e-4, small=1e-5, large=1e-6, countdown=5e-5)
    """peak learning rate of AdamW"""
    warmup_steps: Natural | None = by_size(tiny=5, small=5, large=5)
    """steps of linear warm-up; constant afterwards"""
    weight_decay: NotNegative = 0.0
    """AdamW's weight decay"""


# --- the mathematics ----------------------------------------------------------------------------------------


def e2h_cosine(time: float, levels: int) -> list[float]:
    """Probabilities that fall with the difficulty at time 0 and rise with it at time 1, linearly in it.

    >>> [round(p, 3) for t in (0.0, 0.5, 1.0) for p in e2h_cosine(t, 2)]
    [0.667, 0.333, 0.5, 0.5, 0.333, 0.667]
    """
    alpha, total = 0.5 * (1 + math.cos(math.pi * time)), levels * (levels + 1) / 2
    return [(alpha * (levels - i) + (1 - alpha) * (i + 1)) / total for i in range(levels)]


def e2h_gaussian(time: float, levels: int, power: float = 0.5, sigma: float = 0.5) -> list[float]:
    """Probabilities round a mean that moves from the first difficulty to the last as time ** power does.

    There is no floor under them.  [D3]

    >>> [round(p, 3) for p in e2h_gaussian(0.25, 3)]
    [0.107, 0.787, 0.107]
    """
    mean = time**power * (levels - 1)
    weights = [math.exp(-((i - mean) ** 2) / (2 * sigma**2)) for i in range(levels)]
    return [weight / sum(weights) for weight in weights]


def time_used(args: Args, step: int, tokens: int) -> float:
    """How much of the run is over before a step, from 0 to 1.  [D2]"""
    tokens_used = tokens / args.token_budget if args.token_budget else 0.0
    return min(1.0, max((step - 1) / args.steps, tokens_used))


def draw_horizons(args: Args, step: int, tokens: int) -> list[int]:
    """The horizon of each problem of a step, B numbers.  [1]

    `tokens` were sampled before. Nothing else decides but seed and step, so resuming needs no data state.
    """
    probabilities = {"cosine": e2h_cosine, "gaussian": e2h_gaussian}[args.schedule]
    weights = probabilities(time_used(args, step, tokens), args.max_horizon)
    rng = random.Random(f"{args.seed}/{step}/horizons")
    return rng.choices(range(1, args.max_horizon + 1), weights, k=args.prompts_per_step)


def group_advantages(rewards: torch.Tensor) -> torch.Tensor:
    """Each completion's reward against its group, R - mean: rewards [B, G] -> advantages [B, G].

    >>> group_advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0]]))
    tensor([[ 0.7500, -0.2500, -0.2500, -0.2500]])
    """
    centred = rewards - rewards.mean(dim=1, keepdim=True)  # [B, G]
    no_signal = rewards.amax(1, keepdim=True) == rewards.amin(1, keepdim=True)  # [B, 1]
    return centred.masked_fill(no_signal, 0.0)  # exactly 0, without the rounding error of the mean


def clipped_surrogate(logprobs, old_logprobs, advantages, clip_low: float, clip_high: float) -> torch.Tensor:
    """PPO's pessimistic loss per token, -min(ratio A, clip(ratio) A).

    logprobs [N, T], advantages [N, 1] -> [N, T]. The gradient vanishes only where a clipped ratio already
    moved the way the advantage asks for.
    """
    ratio = torch.exp(logprobs - old_logprobs)  # [N, T]
    return -torch.min(ratio * advantages, ratio.clamp(1 - clip_low, 1 + clip_high) * advantages)


def truncated_importance(old_logprobs, rollout_logprobs, cap: float) -> torch.Tensor:
    """min(pi_old / sampler, cap) per token [N, T], no gradient: for a sampler that is not quite pi_old."""
    return torch.exp(old_logprobs - rollout_logprobs).clamp(max=cap).detach()


def constant(mask: torch.Tensor, max_new_tokens: int) -> torch.Tensor:
    """Weights of a sum over a completion's tokens / max_new_tokens, then a mean over completions.

    The loss is the weighted sum of the tokens' losses. [N, T] -> [N, T]
    """
    return mask / (max_new_tokens * mask.shape[0])


# --- the update ---------------------------------------------------------------------------------------------


def accumulate_gradients(model, batch: Batch, args: Args) -> Counter:
    """Backward pass of one optimizer step's loss, micro-batch by micro-batch. Returns sums for the log.

    The weights of the tokens are made before the split: loss and gradient are the same for any micro-batches.
    """
    sums = Counter()
    batch["weights"] = constant(batch["loss_mask"], args.max_new_tokens)  # [N, T]
    for part in micro_batches(model, batch, args.micro_batch_tokens):
        logprobs, entropy = score(model, part.prompt_ids, part.completion_ids, args.temperature)  # [n, T']
        old_logprobs = part.get("old_logprobs", logprobs.detach())  # one update: pi_old is the policy
        advantages = part["advantages"]  # [n, 1]

        loss_per_token = clipped_surrogate(logprobs, old_logprobs, advantages, args.clip_low, args.clip_high)
        clipped = loss_per_token > -torch.exp(logprobs - old_logprobs) * advantages  # the clipped term won
        if args.importance_cap is not None:
            importance = truncated_importance(old_logprobs, part["rollout_logprobs"], args.importance_cap)
            loss_per_token = loss_per_token * importance
        policy_loss = total_loss = (loss_per_token * part["weights"]).sum()
        total_loss.backward()
        sums.update(update_sums(part, logprobs, old_logprobs, entropy, clipped, policy_loss, total_loss))
    return total(sums)  # over ranks


def problem_indices(args: Args, step: int) -> list[int]:
    """The training problems of a step: a pure function of its number, so resuming needs no data state."""
    first = (step - 1) * args.prompts_per_step
    indices = range(first, first + args.prompts_per_step)
    return [index % args.train_size if args.train_size else index for index in indices]


def learning_rate(args: Args, step: int) -> float:
    """Linear warm-up to `lr` over `warmup_steps`, then constant; the step counts from 1."""
    return args.lr * min(1.0, step / max(1, args.warmup_steps))


# --- the loop -----------------------------------------------------------------------------------------------


def main(args: Args, task=None, sampler=None) -> Path:
    """Train and return the folder of the final model. A task or sampler of your own can be passed in."""
    run = Run("e2h", args, task, sampler, keep=("steps", "token_budget"))  # [D2]
    run.task = EveryHorizon(run.task, args)  # [2]
    optimizer = torch.optim.AdamW(run.model.parameters(), args.lr, weight_decay=args.weight_decay, fused=True)
    run.restore(optimizer)
    B, G = args.prompts_per_step, args.group_size
    for step in run.steps():
        # --- 1 sample
        horizons = draw_horizons(args, step, run.state["tokens"])  # [1]
        problems = run.task.training_problems(horizons, problem_indices(args, step), args.seed)
        seeds = [completion_seed(args.seed, step, j, 0, i) for j in range(B) for i in range(G)]
        rollout = run.sample(problems, seeds)  # N graded completions

        # --- 2 reward and advantage
        advantages = group_advantages(rollout.rewards())  # [B, G]
        batch = rollout.batch(advantages, run.model.device, args.mask_truncated)

        # --- 3 update
        optimizer.param_groups[0]["lr"] = learning_rate(args, step)
        if args.minibatches * args.epochs > 1:
            batch["old_logprobs"], _ = run.score(batch)  # [N, T], before the first of several updates
        for minibatch in batch.split(args.minibatches) * args.epochs:
            run.optimizer_step(optimizer, accumulate_gradients(run.model, minibatch, args))

        # --- 4 push the weights to the sampler, log, score dev, save
        own = horizon_metrics("e2h", horizons, rollout.rewards(), args.max_horizon)
        run.end_step(rollout, batch, own)
    args.task = all_horizons(args.task, args.max_horizon)  # for the command that evaluates the model
    return run.finish()


if __name__ == "__main__":
    main(parse(Args, __doc__))


# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "torch==2.13.0", "transformers>=5.16.1,<5.20", "safetensors", "numpy", "tyro", "filelock",
#     "math-verify>=0.9,<0.10", "antlr4-python3-runtime==4.13.2", "matplotlib", "jinja2",
# ]
# ///
