r"""DAPO: decoupled clip and dynamic sampling (arXiv 2503.14476). Read it as `diff grpo.py papers/dapo.py`.

    J = E[ 1/sum_i |o_i| sum_i sum_t min(ratio_it A_i, clip(ratio_it, 1 - clip_low, 1 + clip_high) A_i) ]
    subject to 0 < number of correct completions in the group < G

What changes against grpo.py, numbered here and where it happens:
[1] Clip-higher: clip_high 0.28 over clip_low 0.2, so that unlikely tokens have room to become likely.
[2] Token-level loss: every token of the batch weighs the same. No KL term, no reference model.
[3] Dynamic sampling: groups that are all right or all wrong teach nothing; they are dropped and others
    sampled instead.
[4] Soft overlong punishment: a completion close to the limit loses up to half of what a right answer earns.

Deviations from the paper, tagged again where they happen:
[D1] Surplus groups of a refill are dropped, not kept for the next step, so that a step is a pure function of
     its number; after max_refills rounds the step trains on the groups it has. Groups are judged by
     correctness alone, without the punishment.
[D2] With one update per batch (the default) the ratio is 1 and clip-higher has no effect; the paper makes 16
     updates (--minibatches 16).
[D3] Rewards are 1 or 0 less up to 0.5 (the paper: 1 or -1 less up to 1): the same advantages, up to the 1e-6
     beside the std.

    python papers/dapo.py         on the embedded model: test avg@16 0.048 -> 0.870 +- 0.017 (five seeds),
                                  6 minutes on one CPU thread

Letters in shapes: B prompts, G completions of each (a group), N = B*G rows, T completion tokens. Rows are
prompt-major: rows i*G .. i*G+G-1 belong to prompt i. Masks come from lengths; EOS is inside the mask when
the completion ended by itself.
"""

import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).resolve().parents[1]))  # where plainrl/ lies

from plainrl.flags import ClipRange, Count, Natural, NotNegative, Positive, RunFlags, by_size, parse
from plainrl.ranks import total
from plainrl.rollout import Batch, completion_seed
from plainrl.run import Run
from plainrl.scoring import micro_batches, score, update_sums
from plainrl.screen import say_if_slow


@dataclass
class Args(RunFlags):
    clip_low: ClipRange = 0.2
    """the ratio is clipped below at 1 - clip_low"""
    clip_high: ClipRange = 0.28  # [1], [D2]
    """the ratio is clipped above at 1 + clip_high"""
    dynamic_sampling: bool = True
    """replace groups that are all right or all wrong"""
    max_refills: Natural = 10
    """rounds of further sampling before a step trains on the groups it has"""
    overlong_buffer: Natural | None = None
    """the last so many tokens before --max-new-tokens are punished (0: off;
    default: a fifth of it, as in the paper)"""
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


def soft_overlong(lengths: torch.Tensor, max_new_tokens: int, buffer: int) -> torch.Tensor:
    """0 up to max_new_tokens - buffer, then falling linearly to -1 at max_new_tokens (eq. 13). [N] -> [N]

    >>> soft_overlong(torch.tensor([16384, 18432, 20480]), 20480, 4096)
    tensor([ 0.0000, -0.5000, -1.0000])
    """
    if buffer == 0:
        return torch.zeros(lengths.shape)
    return ((max_new_tokens - buffer - lengths) / buffer).clamp(-1.0, 0.0)


def group_advantages(rewards: torch.Tensor) -> torch.Tensor:
    """Each completion's reward against its group, (R - mean) / (std + 1e-6).

    rewards [B, G] -> advantages [B, G]. The std is the unbiased one (ddof 1) that torch computes by default.

    >>> group_advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0]]))
    tensor([[ 1.5000, -0.5000, -0.5000, -0.5000]])
    """
    centred = rewards - rewards.mean(dim=1, keepdim=True)  # [B, G]
    centred = centred / (rewards.std(dim=1, keepdim=True) + 1e-6)
    no_signal = rewards.amax(1, keepdim=True) == rewards.amin(1, keepdim=True)  # [B, 1]
    return centred.masked_fill(no_signal, 0.0)  # rounding in the mean, divided by 1e-6, would not be 0


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


def token_mean(mask: torch.Tensor) -> torch.Tensor:
    """Weights of a mean over all tokens of the batch, so that long completions weigh more. [N, T] -> [N, T]

    The loss is the weighted sum of the tokens' losses.
    """
    return mask / mask.sum().clamp(min=1)


# --- the update ---------------------------------------------------------------------------------------------


def accumulate_gradients(model, batch: Batch, args: Args) -> Counter:
    """Backward pass of one optimizer step's loss, micro-batch by micro-batch. Returns sums for the log.

    The weights of the tokens are made before the split: loss and gradient are the same for any micro-batches.
    """
    sums = Counter()
    batch["weights"] = token_mean(batch["loss_mask"])  # [N, T]  [2]
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


def problem_indices(args: Args, step: int, round: int) -> list[int]:
    """The training problems of a round of a step: a pure function, so resuming needs no data state.

    Round 0 has those of grpo.py. Refills start far away, in a finite set by equal shares of it.
    """
    far = max(1, args.train_size // (args.max_refills + 1)) if args.train_size else 1_000_000_007
    first = (step - 1) * args.prompts_per_step + round * far
    indices = range(first, first + args.prompts_per_step)
    return [index % args.train_size if args.train_size else index for index in indices]


def learning_rate(args: Args, step: int) -> float:
    """Linear warm-up to `lr` over `warmup_steps`, then constant; the step counts from 1."""
    return args.lr * min(1.0, step / max(1, args.warmup_steps))


# --- the loop -----------------------------------------------------------------------------------------------


def main(args: Args, task=None, sampler=None) -> Path:
    """Train and return the folder of the final model. A task or sampler of your own can be passed in."""
    run = Run("dapo", args, task, sampler)
    if args.overlong_buffer is None:
        args.overlong_buffer = args.max_new_tokens // 5
    optimizer = torch.optim.AdamW(run.model.parameters(), args.lr, weight_decay=args.weight_decay, fused=True)
    run.restore(optimizer)
    B, G = args.prompts_per_step, args.group_size
    for step in run.steps():
        # --- 1 sample, and again until B groups have right and wrong completions  [3]
        kept, rounds = [], 0  # the groups of all that was sampled that are trained on; rounds so far
        while rounds == 0 or (len(kept) < B and rounds <= args.max_refills):
            began = time.monotonic()
            indices = problem_indices(args, step, rounds)
            problems = [run.task.problem("train", index, args.seed) for index in indices]
            seeds = [completion_seed(args.seed, step, j, rounds, i) for j in range(B) for i in range(G)]
            run.sample(problems, seeds)
            correct = run.sampled.correct()  # right completions of every group so far
            kept = [i for i, count in enumerate(correct) if 0 < count < G or not args.dynamic_sampling]
            rounds += 1
            if len(kept) < B:
                say_if_slow(began, f"  round {rounds}: {len(kept)} of {B} groups have differences")
        rollout = run.sampled.select(kept[:B])  # N graded completions  [D1]

        # --- 2 reward and advantage
        rewards = rollout.rewards()  # [B, G], of as many groups as were found
        lengths = torch.tensor([len(ids) for ids in rollout.completion_ids])  # [N]
        overlong = soft_overlong(lengths, args.max_new_tokens, args.overlong_buffer).view_as(rewards)
        rewards = rewards + overlong / 2  # [4], [D3]
        advantages = group_advantages(rewards) if kept else rewards  # [B, G]
        batch = rollout.batch(advantages, run.model.device, args.mask_truncated)

        # --- 3 update
        optimizer.param_groups[0]["lr"] = learning_rate(args, step)
        if args.minibatches * args.epochs > 1 and kept:
            batch["old_logprobs"], _ = run.score(batch)  # [N, T], before the first of several updates
        for minibatch in batch.split(args.minibatches) * args.epochs:
            run.optimizer_step(optimizer, accumulate_gradients(run.model, minibatch, args))

        # --- 4 push the weights to the sampler, log, score dev, save
        own = {"dapo/rounds": rounds, "dapo/frac_kept": len(kept) / len(correct)}
        run.end_step(rollout, batch, own)
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
