r"""Pass@k training: k completions are right where one of them is (arXiv 2508.10751).

    A_i = (mean reward of the sets of k that hold completion i - rho) / sigma
    rho = 1 - C(N, k) / C(G, k),      sigma = sqrt(rho (1 - rho)),      N: wrong completions of the group

Read it as `diff papers/dr_grpo.py papers/passk.py`. What changes is the advantage. A set of k completions of
a group has the reward 1 where any of them is right, else 0. rho and sigma are the mean and the std of that
reward over all sets. Every set with a certain right completion is right: A = (1 - rho) / sigma. A wrong one
has k - 1 companions, and in 1 - C(N - 1, k - 1) / C(G - 1, k - 1) of its sets one of them is right. No set is
drawn, all count: this is the paper's "analytical derivation".
- The advantages of a group add up to 0. Where fewer than k completions are wrong, every set is right, and the
  group teaches nothing: what counts is that a problem is solved at all.
- k = 1 is Dr. GRPO's advantage over the std. k = G leaves no advantage.
- Of 16 completions and with k = 4, advantages are larger than Dr. GRPO's where one or two are right, smaller
  where three or more are. A learning rate that was tuned for one is not tuned for the other.

Deviations from the paper, tagged again where they happen:
[D1] A group whose sets all have the same reward gets advantage exactly 0 (its code: by rounding about 0).
[D2] All rewards but 1 count as wrong (its code leaves what is neither 0 nor 1 as its own advantage).
[D3] The loss is Dr. GRPO's: what the paper published is the advantage alone.

    python papers/passk.py        on the embedded model

Letters in shapes: B prompts, G completions of each (a group), N = B*G rows, T completion tokens. Rows are
prompt-major: rows i*G .. i*G+G-1 belong to prompt i. Masks come from lengths; EOS is inside the mask when
the completion ended by itself.
"""

import math
import sys
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
from plainrl.screen import fail, say


@dataclass
class Args(RunFlags):
    k: Count = 4
    """size of the sets in which one right completion is enough; less than --group-size"""
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


def pass_at_k(size: int, right: int, k: int) -> float:
    """Share of the sets of k completions that hold one of the right ones: rho.

    >>> pass_at_k(4, 1, 2)
    0.5
    """
    return 1 - math.comb(size - right, k) / math.comb(size, k)


def set_advantages(size: int, right: int, k: int) -> tuple[float, float]:
    """The advantage of a right completion and that of a wrong one, in a group of `size` with `right` right.

    Of 8 completions 2 are right. 55 of the 70 sets of 4 hold one of them, and of the 35 sets with a certain
    wrong completion 25:

    >>> [round(advantage, 4) for advantage in set_advantages(8, 2, 4)]
    [0.5222, -0.1741]
    """
    rho = pass_at_k(size, right, k)
    if rho in (0, 1):
        return 0.0, 0.0  # [D1]
    sigma = math.sqrt(rho * (1 - rho))
    beside_wrong = pass_at_k(size - 1, right, k - 1)  # is one of its k - 1 companions right?
    return (1 - rho) / (sigma + 1e-6), (beside_wrong - rho) / (sigma + 1e-6)


def group_advantages(rewards: torch.Tensor, k: int) -> torch.Tensor:
    """Each completion's sets of k against all sets: rewards [B, G] -> advantages [B, G].

    >>> group_advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0]]), k=2)
    tensor([[ 1.0000, -0.3333, -0.3333, -0.3333]])
    """
    right = rewards == 1  # [B, G]  [D2]
    pairs = [set_advantages(rewards.shape[1], count, k) for count in right.sum(dim=1).tolist()]  # B of them
    of_right, of_wrong = rewards.new_tensor(pairs).split(1, dim=1)  # [B, 1] each
    return torch.where(right, of_right, of_wrong)


def passk_metrics(correct: list[int], size: int, k: int) -> dict[str, float]:
    """For the log: pass@k of the sampled groups, and the share of them that have advantage 0."""
    rhos = [pass_at_k(size, right, k) for right in correct]
    without = sum(rho in (0, 1) for rho in rhos)
    return {"passk/group_pass@k": sum(rhos) / len(rhos), "passk/frac_no_bonus": without / len(rhos)}


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
    run = Run("passk", args, task, sampler)
    if args.k > args.group_size:
        fail(f"--k {args.k}: is more than --group-size {args.group_size}; give a number below it")
    if args.k == args.group_size:
        say(f"--k {args.k}: is all of --group-size, so every advantage is 0 and nothing is learned")
    optimizer = torch.optim.AdamW(run.model.parameters(), args.lr, weight_decay=args.weight_decay, fused=True)
    run.restore(optimizer)
    B, G = args.prompts_per_step, args.group_size
    for step in run.steps():
        # --- 1 sample
        problems = [run.task.problem("train", index, args.seed) for index in problem_indices(args, step)]
        seeds = [completion_seed(args.seed, step, j, 0, i) for j in range(B) for i in range(G)]
        rollout = run.sample(problems, seeds)  # N graded completions

        # --- 2 reward and advantage
        advantages = group_advantages(rollout.rewards(), args.k)  # [B, G]
        batch = rollout.batch(advantages, run.model.device, args.mask_truncated)

        # --- 3 update
        optimizer.param_groups[0]["lr"] = learning_rate(args, step)
        if args.minibatches * args.epochs > 1:
            batch["old_logprobs"], _ = run.score(batch)  # [N, T], before the first of several updates
        for minibatch in batch.split(args.minibatches) * args.epochs:
            run.optimizer_step(optimizer, accumulate_gradients(run.model, minibatch, args))

        # --- 4 push the weights to the sampler, log, score dev, save
        run.end_step(rollout, batch, own=passk_metrics(rollout.correct(), G, args.k))
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
