r"""RLOO: REINFORCE, leave one out (arXiv 2402.14740). Read it as `diff papers/dr_grpo.py papers/rloo.py`.

    grad J = E[ 1/G sum_i A_i grad log pi(o_i) ],      log pi(o_i) = sum_t log pi(o_it)
    A_i = R_i - 1/(G-1) sum_{j != i} R_j over the G completions of one prompt

What changes against papers/dr_grpo.py:
- A completion is compared with the mean of the others, without itself: G / (G-1) times Dr. GRPO's advantage,
  and so an unbiased gradient of the expected reward.
- A completion is one action: its log-probability is the sum of its tokens', divided by nothing.
- REINFORCE instead of PPO: one update per batch, no ratio, no clip.

Deviations from the paper:
[D1] No KL to the starting model inside the reward (the paper: 0.03 or 0.10 times it), as everywhere here.
[D2] Rewards are the answer's correctness (the paper: a learned reward model), and G is 16 or 8 (2 or 4).

    python papers/rloo.py         on the embedded model: test avg@16 0.048 -> 0.829 (seed 0: one run,
                                  log not kept)

Letters in shapes: B prompts, G completions of each (a group), N = B*G rows, T completion tokens. Rows are
prompt-major: rows i*G .. i*G+G-1 belong to prompt i. Masks come from lengths; EOS is inside the mask when
the completion ended by itself.
"""

import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).resolve().parents[1]))  # where plainrl/ lies

from plainrl.flags import Natural, NotNegative, Positive, RunFlags, by_size, parse
from plainrl.ranks import total
from plainrl.rollout import Batch, completion_seed
from plainrl.run import Run
from plainrl.scoring import micro_batches, score, update_sums


@dataclass
class Args(RunFlags):
    mask_truncated: bool = False
    """leave completions cut at --max-new-tokens out of the loss instead of scoring them"""
    importance_cap: Positive | None = None
    """weight tokens by min(policy / sampler, cap), if the sampler differs from the trainer (2.0 is common)"""
    lr: NotNegative | None = by_size(tiny=3e-4, small=1e-5, large=1e-6, countdown=5e-5)
    """peak learning rate of AdamW"""
    warmup_steps: Natural | None = by_size(tiny=5, small=5, large=5)
    """steps of linear warm-up; constant afterwards"""
    weight_decay: NotNegative = 0.0
    """AdamW's weight decay"""


# --- the mathematics ----------------------------------------------------------------------------------------


def group_advantages(rewards: torch.Tensor) -> torch.Tensor:
    """Each completion's reward against the mean of the others': rewards [B, G] -> advantages [B, G].

    >>> group_advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0]]))
    tensor([[ 1.0000, -0.3333, -0.3333, -0.3333]])
    """
    others = (rewards.sum(dim=1, keepdim=True) - rewards) / (rewards.shape[1] - 1)  # [B, G]
    no_signal = rewards.amax(1, keepdim=True) == rewards.amin(1, keepdim=True)  # [B, 1]
    return (rewards - others).masked_fill(no_signal, 0.0)  # exactly 0, without the rounding error of the mean


def reinforce(logprobs, advantages) -> torch.Tensor:
    """REINFORCE's loss per token, -A log pi: logprobs [N, T], advantages [N, 1] -> [N, T]."""
    return -advantages * logprobs


def truncated_importance(old_logprobs, rollout_logprobs, cap: float) -> torch.Tensor:
    """min(pi_old / sampler, cap) per token [N, T], no gradient: for a sampler that is not quite pi_old."""
    return torch.exp(old_logprobs - rollout_logprobs).clamp(max=cap).detach()


def sequence_sum(mask: torch.Tensor) -> torch.Tensor:
    """Weights of a sum over a completion's tokens, then a mean over completions.

    The loss is the weighted sum of the tokens' losses. [N, T] -> [N, T]
    """
    return mask / mask.shape[0]


# --- the update ---------------------------------------------------------------------------------------------


def accumulate_gradients(model, batch: Batch, args: Args) -> Counter:
    """Backward pass of one optimizer step's loss, micro-batch by micro-batch. Returns sums for the log.

    The weights of the tokens are made before the split: loss and gradient are the same for any micro-batches.
    """
    sums = Counter()
    batch["weights"] = sequence_sum(batch["loss_mask"])  # [N, T]
    for part in micro_batches(model, batch, args.micro_batch_tokens):
        logprobs, entropy = score(model, part.prompt_ids, part.completion_ids, args.temperature)  # [n, T']
        old_logprobs = logprobs.detach()  # one update: pi_old is the policy
        advantages = part["advantages"]  # [n, 1]

        loss_per_token = reinforce(logprobs, advantages)
        clipped = torch.zeros_like(part["loss_mask"])  # none is
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
    run = Run("rloo", args, task, sampler)
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

        # --- 3 update
        optimizer.param_groups[0]["lr"] = learning_rate(args, step)
        run.optimizer_step(optimizer, accumulate_gradients(run.model, batch, args))

        # --- 4 push the weights to the sampler, log, score dev, save
        run.end_step(rollout, batch)
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
