r"""GSPO: one ratio, one clip for a whole completion (arXiv 2507.18071). Read it as
`diff grpo.py papers/gspo.py`.

    J = E[ 1/G sum_i min(ratio_i A_i, clip(ratio_i, 1 - clip_low, 1 + clip_high) A_i) ]
    ratio_i = (pi(o_i) / pi_old(o_i))^(1/|o_i|) = exp( 1/|o_i| sum_t log(pi(o_it) / pi_old(o_it)) )

What changes against grpo.py, numbered here and where it happens:
[1] The reward is of a completion, and so is the ratio: the geometric mean of its tokens' ratios (eq. 7).
    All its tokens are clipped together or not at all; one that moved far is a small part of the mean.
[2] A mean moves far less than its parts, and so the clip range is narrow: 3e-4 below and 4e-4 above.
The advantage and the mean over completions are GRPO's. No KL term, no reference model.

GSPO-token, the paper's other form, gives each token the ratio of its completion and a gradient of its own.
Where all tokens of a completion have one advantage, as here, it has the same loss and the same gradient.

Deviations from the paper, tagged again where they happen:
[D1] One update per batch (the default): the ratio is 1 and the gradient is GRPO's. The paper makes four
     (--minibatches 4).
[D2] --importance-cap weighs token by token, as in grpo.py: a completion's loss is multiplied by the mean of
     its tokens' weights. The paper has no such weight.

TRL's importance_sampling_level="sequence" computes the same with loss_type="grpo", epsilon=3e-4 and
epsilon_high=4e-4; its defaults are another loss_type, which weighs completions by their lengths, and 0.2.
It divides by all completions, those that mask_truncated leaves out too.

    python papers/gspo.py         on the embedded model: not measured yet

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

from plainrl.flags import ClipRange, Count, Natural, NotNegative, Positive, RunFlags, by_size, parse
from plainrl.ranks import total
from plainrl.rollout import Batch, completion_seed
from plainrl.run import Run
from plainrl.scoring import micro_batches, score, update_sums


@dataclass
class Args(RunFlags):
    clip_low: ClipRange = 3e-4  # [2]
    """the ratio of a completion is clipped below at 1 - clip_low"""
    clip_high: ClipRange = 4e-4
    """the ratio of a completion is clipped above at 1 + clip_high"""
    mask_truncated: bool = False
    """leave completions cut at --max-new-tokens out of the loss instead of scoring them"""
    importance_cap: Positive | None = None
    """weight tokens by min(pi_old / sampler, cap), if the sampler differs from the trainer (2.0 is common)"""
    minibatches: Count = 1  # [D1]
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


def sequence_logprob(logprobs, mask) -> torch.Tensor:
    """[1] 1/|o| log pi(o), the mean over a completion's tokens: [N, T], mask [N, T] -> [N, 1]."""
    return (logprobs * mask).sum(dim=1, keepdim=True) / mask.sum(dim=1, keepdim=True)


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


def sequence_mean(mask: torch.Tensor) -> torch.Tensor:
    """Weights of a mean over a completion's tokens, then over completions. [N, T] -> [N, T]

    The loss is the weighted sum of the tokens' losses. Completions without a token in the mask do not count.
    """
    lengths = mask.sum(dim=1, keepdim=True)  # [N, 1]
    return mask / lengths.clamp(min=1) / (lengths > 0).sum().clamp(min=1)


# --- the update ---------------------------------------------------------------------------------------------


def accumulate_gradients(model, batch: Batch, args: Args) -> Counter:
    """Backward pass of one optimizer step's loss, micro-batch by micro-batch. Returns sums for the log.

    The weights of the tokens are made before the split: loss and gradient are the same for any micro-batches.
    """
    sums = Counter()
    batch["weights"] = sequence_mean(batch["loss_mask"])  # [N, T]
    for part in micro_batches(model, batch, args.micro_batch_tokens):
        logprobs, entropy = score(model, part.prompt_ids, part.completion_ids, args.temperature)  # [n, T']
        old_logprobs = part.get("old_logprobs", logprobs.detach())  # one update: pi_old is the policy
        advantages = part["advantages"]  # [n, 1]

        new, old = (sequence_logprob(each, part["completion_mask"]) for each in (logprobs, old_logprobs))
        loss_per_token = clipped_surrogate(new, old, advantages, args.clip_low, args.clip_high)  # [n, 1]  [1]
        clipped = loss_per_token > -torch.exp(new - old) * advantages  # the clipped term won, [n, 1]
        if args.importance_cap is not None:
            importance = truncated_importance(old_logprobs, part["rollout_logprobs"], args.importance_cap)
            loss_per_token = loss_per_token * importance  # [n, T']  [D2]
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
    run = Run("gspo", args, task, sampler)
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
