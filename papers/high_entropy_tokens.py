r"""80/20, high-entropy tokens (arXiv 2506.01939): `diff papers/dr_grpo.py papers/high_entropy_tokens.py`.

    J = Dr. GRPO over the token_fraction of tokens with the highest h_it, divided by token_fraction
    h_it = entropy of pi(. | s_it) over the full vocabulary

What changes against papers/dr_grpo.py, numbered here and where it happens
(`--token-fraction 1` equals it to the last bit):
[1] One pass without gradient over all that the optimizer step sees finds its tokens of high entropy.
[2] The others get no policy gradient.

Deviations from the paper, tagged again where they happen:
[D1] It stands on Dr. GRPO (the paper: DAPO), so that nothing but the method differs. The loss is divided by
     token_fraction too, as if by the tokens that are left (its authors' code: by their number).
[D2] The highest are those of the batch that one optimizer step sees, as in the paper (its authors' code: of a
     micro-batch; SIREN's comparison: of each completion).

    python papers/high_entropy_tokens.py  on the embedded model; shown in benchmarks/entropy.md

Letters in shapes: B prompts, G completions of each (a group), N = B*G rows, T completion tokens. Rows are
prompt-major: rows i*G .. i*G+G-1 belong to prompt i. Masks come from lengths; EOS is inside the mask when
the completion ended by itself.
"""

import math
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

sys.path.append(str(Path(__file__).resolve().parents[1]))  # where plainrl/ lies

from plainrl.flags import ClipRange, Count, Natural, NotNegative, Positive, RunFlags, Share, by_size, parse
from plainrl.ranks import total
from plainrl.rollout import Batch, completion_seed
from plainrl.run import Run
from plainrl.scoring import micro_batches, score, score_all, update_sums


@dataclass
class Args(RunFlags):
    token_fraction: Share = 0.2
    """share of tokens that are trained on"""
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

    pass_before_update: ClassVar[bool] = True
    """no flag, for --plan: low_entropy_tokens scores the batch before every update  [1]"""


# --- the mathematics ----------------------------------------------------------------------------------------


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


def top_tokens(values: torch.Tensor, mask: torch.Tensor, count: int) -> torch.Tensor:
    """The `count` tokens of the mask with the highest values, bool [N, T]; of equal ones, the first."""
    order = values.masked_fill(~mask, -torch.inf).flatten().sort(descending=True, stable=True).indices
    return torch.zeros_like(mask).view(-1).scatter(0, order[:count], True).view_as(mask) & mask


def truncated_importance(old_logprobs, rollout_logprobs, cap: float) -> torch.Tensor:
    """min(pi_old / sampler, cap) per token [N, T], no gradient: for a sampler that is not quite pi_old."""
    return torch.exp(old_logprobs - rollout_logprobs).clamp(max=cap).detach()


def constant(mask: torch.Tensor, max_new_tokens: int) -> torch.Tensor:
    """Weights of a sum over a completion's tokens / max_new_tokens, then a mean over completions.

    The loss is the weighted sum of the tokens' losses. [N, T] -> [N, T]
    """
    return mask / (max_new_tokens * mask.shape[0])


# --- the update ---------------------------------------------------------------------------------------------


def low_entropy_tokens(model, batch: Batch, args: Args) -> torch.Tensor:
    """The tokens that are not trained on, bool [N, T]: one pass without gradient.  [1], [D2]"""
    settings = (args.temperature, args.micro_batch_tokens)
    _, entropies = score_all(model, batch.prompt_ids, batch.completion_ids, *settings)
    mask = batch["loss_mask"]  # [N, T]
    entropies = torch.nn.functional.pad(entropies, (0, mask.shape[1] - entropies.shape[1]))  # [N, T]
    return mask & ~top_tokens(entropies, mask, math.ceil(args.token_fraction * mask.sum().item()))


def accumulate_gradients(model, batch: Batch, args: Args) -> Counter:
    """Backward pass of one optimizer step's loss, micro-batch by micro-batch. Returns sums for the log.

    The weights of the tokens are made before the split: loss and gradient are the same for any micro-batches.
    """
    sums = Counter()
    batch["dropped"][:] = low_entropy_tokens(model, batch, args)  # in place, for samples.jsonl
    weights = constant(batch["loss_mask"], args.max_new_tokens)  # [N, T]
    batch["weights"] = weights * ~batch["dropped"] / args.token_fraction  # [2], [D1]
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
        sums["dropped"] += part["dropped"].sum().item()
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
    run = Run("high_entropy_tokens", args, task, sampler)
    optimizer = torch.optim.AdamW(run.model.parameters(), args.lr, weight_decay=args.weight_decay, fused=True)
    run.restore(optimizer)
    B, G = args.prompts_per_step, args.group_size
    for step in run.steps():
        # --- 1 sample
        problems = [run.task.problem("train", index, args.seed) for index in problem_indices(args, step)]
        seeds = [completion_seed(args.seed, step, j, 0, i) for j in range(B) for i in range(G)]
        rollout = run.sample(problems, seeds)  # N graded completions

        # --- 2 reward and advantage
        advantages = group_advantages(rollout.rewards())  # [B, G]
        batch = rollout.batch(advantages, run.model.device, args.mask_truncated)
        batch["dropped"] = torch.zeros_like(batch["completion_mask"])  # [N, T]

        # --- 3 update
        optimizer.param_groups[0]["lr"] = learning_rate(args, step)
        if args.minibatches * args.epochs > 1:
            batch["old_logprobs"], _ = run.score(batch)  # [N, T], before the first of several updates
        for minibatch in batch.split(args.minibatches) * args.epochs:
            run.optimizer_step(optimizer, accumulate_gradients(run.model, minibatch, args))

        # --- 4 push the weights to the sampler, log, score dev, save
        own = {"high_entropy_tokens/frac_dropped": run.sums["dropped"] / run.sums["tokens"]}
        run.end_step(rollout, batch, own, dropped=batch["dropped"])
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
