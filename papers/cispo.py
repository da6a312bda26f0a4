r"""CISPO: clip the importance weight, not the update (MiniMax-M1, arXiv 2506.13585, eq. 4 and 5). Read it as
`diff grpo.py papers/cispo.py`.

    J = E[ 1/sum_i |o_i| sum_i sum_t weight_it A_i log pi(o_it) ]
    weight_it = min(ratio_it, 1 + clip_high), without gradient

What changes against grpo.py, numbered here and where it happens:
[1] A token whose ratio is above 1 + clip_high weighs less and still counts. PPO's clip takes its gradient
    away if the advantage is positive. The paper saw that befall rare words at which reasoning turns: once an
    update has made them likelier, their ratio is large, and the batch's further updates leave them out.
[2] Every token of the batch weighs the same, as in DAPO.
The advantage is GRPO's. No KL term, no reference model.

Deviations from the paper, tagged again where they happen:
[D1] The formula has a lower bound of the weight too. The paper sets it where it never acts; here is none.
[D2] The paper gives no number for clip_high; 0.2 is PPO's. verl's example has 0.2 too, ScaleRL
     (arXiv 2510.13786) a bound of 5, which is --clip-high 4.
[D3] One update per batch (the default): the weights are 1, and the gradient is GRPO's with a mean over all
     tokens. The paper makes 16 (--minibatches 16).
[D4] Without DAPO's dynamic sampling and punishment of long completions, which the paper takes over.

TRL's loss_type="cispo" computes the same with two other counts. Its epsilon_high is the bound itself, so that
--clip-high 4 is epsilon_high=5, and its default of 0.2 makes nearly every weight 0.2. And it divides each
update by the tokens of the whole sampled batch over the number of updates, not by the update's own tokens.

    python papers/cispo.py        on the embedded model: not measured yet

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

from plainrl.flags import Count, Natural, NotNegative, Positive, RunFlags, by_size, parse
from plainrl.ranks import total
from plainrl.rollout import Batch, completion_seed
from plainrl.run import Run
from plainrl.scoring import micro_batches, score, update_sums


@dataclass
class Args(RunFlags):
    clip_high: Positive = 0.2  # [D2]
    """the importance weight of a token is at most 1 + clip_high (inf: whatever the ratio is)"""
    mask_truncated: bool = False
    """leave completions cut at --max-new-tokens out of the loss instead of scoring them"""
    importance_cap: Positive | None = None
    """weight tokens by min(pi_old / sampler, cap), if the sampler differs from the trainer (2.0 is common)"""
    minibatches: Count = 1  # [D3]
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


def clipped_importance(logprobs, old_logprobs, clip_high: float) -> torch.Tensor:
    """[1] min(ratio, 1 + clip_high) per token [N, T], no gradient. No ratio is too small.  [D1]"""
    return torch.exp(logprobs - old_logprobs).clamp(max=1 + clip_high).detach()


def reinforce(logprobs, advantages) -> torch.Tensor:
    """REINFORCE's loss per token, -A log pi: logprobs [N, T], advantages [N, 1] -> [N, T]."""
    return -advantages * logprobs


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

        weight = clipped_importance(logprobs, old_logprobs, args.clip_high)  # [n, T']
        loss_per_token = weight * reinforce(logprobs, advantages)
        clipped = torch.exp(logprobs - old_logprobs) > 1 + args.clip_high  # they weigh less, but they count
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
    run = Run("cispo", args, task, sampler)
    optimizer = torch.optim.AdamW(run.model.parameters(), args.lr, weight_decay=args.weight_decay, fused=True)
    run.restore(optimizer)
    B, G = args.prompts_per_step, args.group_size
    for step in run.steps():
        # --- 1 sample
        problems = [run.task.problem("train", index, args.seed) for index in problem_indices(args, step)]
        seeds = [completion_seed(args.seed, step, j, 0, i) for j in range(B) for i in range(G)]
        rollout = run.sample(problems, seeds)  # N graded completions  [D4]

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
