r"""KL-Cov (arXiv 2505.22617). Read it as `diff papers/dr_grpo.py papers/kl_cov.py`.

    loss_it = -ratio_it A_i + kl_coef |log pi_it - log pi_old,it| for the cov_fraction of tokens with the
              highest cov_it, and -ratio_it A_i for all others
    cov_it  = (A_i - mean A) (log pi_it - mean log pi), means over the tokens of the batch

What changes against papers/dr_grpo.py, numbered here and where it happens
(`--kl-coef 0` equals it to the last bit where nothing would be clipped):
[1] One pass without gradient over all that the optimizer step sees finds the tokens of highest covariance.
[2] Those are held back by a penalty. No ratio is clipped.

Deviations from the paper:
[D1] It stands on Dr. GRPO (the paper: GRPO), so that nothing but the method differs. Advantages are not
     divided by a std, so covariances are smaller.
[D2] The highest, and the means, are of the tokens that one optimizer step sees
     (the authors' code: of a micro-batch).
[D3] It does nothing in the first update of a batch, where pi is pi_old, so there are two by default. (In the
     authors' code the two differ by rounding there, and the gradient of |log pi - log pi_old| is 1 or -1
     however small it is.)

    python papers/kl_cov.py               on the embedded model; shown in benchmarks/entropy.md

Letters in shapes: B prompts, G completions of each (a group), N = B*G rows, T completion tokens. Rows are
prompt-major: rows i*G .. i*G+G-1 belong to prompt i. Masks come from lengths; EOS is inside the mask when
the completion ended by itself.
"""

import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

sys.path.append(str(Path(__file__).resolve().parents[1]))  # where plainrl/ lies

from plainrl.flags import Count, Natural, NotNegative, Positive, RunFlags, Share, by_size, parse
from plainrl.ranks import total
from plainrl.rollout import Batch, completion_seed
from plainrl.run import Run
from plainrl.scoring import micro_batches, score, score_all, update_sums
from plainrl.screen import fail


@dataclass
class Args(RunFlags):
    cov_fraction: Share | None = by_size(tiny=0.01, small=2e-4, large=2e-4)
    """share of all tokens that are penalised (the paper: 2e-4; on a 7B model 2e-3)"""
    kl_coef: NotNegative = 1.0
    """weight of the penalty"""
    mask_truncated: bool = False
    """leave completions cut at --max-new-tokens out of the loss instead of scoring them"""
    importance_cap: Positive | None = None
    """weight tokens by min(pi_old / sampler, cap), if the sampler differs from the trainer (2.0 is common)"""
    minibatches: Count = 2  # [D3]
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
    """no flag, for --plan: high_covariance_tokens scores the batch before every update  [1]"""
    kl_to_start: ClassVar[bool] = False
    """no flag, for --plan: --kl-coef compares with the policy before the updates"""


# --- the mathematics ----------------------------------------------------------------------------------------


def group_advantages(rewards: torch.Tensor) -> torch.Tensor:
    """Each completion's reward against its group, R - mean: rewards [B, G] -> advantages [B, G].

    >>> group_advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0]]))
    tensor([[ 0.7500, -0.2500, -0.2500, -0.2500]])
    """
    centred = rewards - rewards.mean(dim=1, keepdim=True)  # [B, G]
    no_signal = rewards.amax(1, keepdim=True) == rewards.amin(1, keepdim=True)  # [B, 1]
    return centred.masked_fill(no_signal, 0.0)  # exactly 0, without the rounding error of the mean


def covariances(advantages: torch.Tensor, logprobs: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Each token's part of the covariance of advantage and log-probability: [N, 1], [N, T] -> [N, T].

    Means are over the tokens of the mask. Where it is high, a likely token is being made likelier: that is
    where entropy goes.
    """
    count = mask.sum().clamp(min=1)
    advantages = advantages.expand_as(logprobs)
    mean_advantage = (advantages * mask).sum() / count
    mean_logprob = (logprobs * mask).sum() / count
    return (advantages - mean_advantage) * (logprobs - mean_logprob) * mask


def top_tokens(values: torch.Tensor, mask: torch.Tensor, count: int) -> torch.Tensor:
    """The `count` tokens of the mask with the highest values, bool [N, T]; of equal ones, the first."""
    order = values.masked_fill(~mask, -torch.inf).flatten().sort(descending=True, stable=True).indices
    return torch.zeros_like(mask).view(-1).scatter(0, order[:count], True).view_as(mask) & mask


def penalised_surrogate(logprobs, old_logprobs, advantages, penalised, kl_coef: float) -> torch.Tensor:
    """-ratio A per token, plus kl_coef |log pi - log pi_old| for the penalised ones, bool [N, T].

    logprobs [N, T], advantages [N, 1] -> [N, T].
    """
    ratio = torch.exp(logprobs - old_logprobs)  # [N, T]
    return -ratio * advantages + kl_coef * (logprobs - old_logprobs).abs() * penalised  # [2]


def truncated_importance(old_logprobs, rollout_logprobs, cap: float) -> torch.Tensor:
    """min(pi_old / sampler, cap) per token [N, T], no gradient: for a sampler that is not quite pi_old."""
    return torch.exp(old_logprobs - rollout_logprobs).clamp(max=cap).detach()


def constant(mask: torch.Tensor, max_new_tokens: int) -> torch.Tensor:
    """Weights of a sum over a completion's tokens / max_new_tokens, then a mean over completions.

    The loss is the weighted sum of the tokens' losses. [N, T] -> [N, T]
    """
    return mask / (max_new_tokens * mask.shape[0])


# --- the update ---------------------------------------------------------------------------------------------


def high_covariance_tokens(model, batch: Batch, args: Args) -> torch.Tensor:
    """The tokens that are penalised, bool [N, T]: one pass without gradient.  [1], [D2]"""
    settings = (args.temperature, args.micro_batch_tokens)
    logprobs, _ = score_all(model, batch.prompt_ids, batch.completion_ids, *settings)
    mask = batch["loss_mask"]  # [N, T]
    logprobs = torch.nn.functional.pad(logprobs, (0, mask.shape[1] - logprobs.shape[1]))  # [N, T]
    covariance = covariances(batch["advantages"], logprobs, mask)
    return top_tokens(covariance, mask, max(1, int(args.cov_fraction * mask.sum().item())))


def accumulate_gradients(model, batch: Batch, args: Args, first: bool) -> Counter:
    """Backward pass of one optimizer step's loss, micro-batch by micro-batch. Returns sums for the log.

    The weights of the tokens are made before the split: loss and gradient are the same for any micro-batches.
    In the first update of a batch the policy is pi_old.
    """
    sums = Counter()
    batch["penalised"][:] = high_covariance_tokens(model, batch, args)  # in place, for samples.jsonl
    batch["weights"] = constant(batch["loss_mask"], args.max_new_tokens)  # [N, T]
    for part in micro_batches(model, batch, args.micro_batch_tokens):
        logprobs, entropy = score(model, part.prompt_ids, part.completion_ids, args.temperature)  # [n, T']
        old_logprobs = logprobs.detach() if first else part["old_logprobs"]  # [D3]: no rounding between them
        advantages, penalised = part["advantages"], part["penalised"]  # [n, 1], [n, T']

        loss_per_token = penalised_surrogate(logprobs, old_logprobs, advantages, penalised, args.kl_coef)
        clipped = torch.zeros_like(penalised)  # none is
        if args.importance_cap is not None:
            importance = truncated_importance(old_logprobs, part["rollout_logprobs"], args.importance_cap)
            loss_per_token = loss_per_token * importance
        policy_loss = total_loss = (loss_per_token * part["weights"]).sum()
        total_loss.backward()
        sums.update(update_sums(part, logprobs, old_logprobs, entropy, clipped, policy_loss, total_loss))
        sums["penalised"] += part["penalised"].sum().item()
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
    if args.minibatches * args.epochs == 1:  # [D3]
        fail("--minibatches 1: with one update per batch KL-Cov does nothing; give 2 or more, or --epochs 2")
    run = Run("kl_cov", args, task, sampler)
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
        batch["penalised"] = torch.zeros_like(batch["completion_mask"])  # [N, T]

        # --- 3 update
        optimizer.param_groups[0]["lr"] = learning_rate(args, step)
        batch["old_logprobs"], _ = run.score(batch)  # [N, T], before the first of several updates
        for minibatch in batch.split(args.minibatches) * args.epochs:
            update = accumulate_gradients(run.model, minibatch, args, first=not run.grad_norms)
            run.optimizer_step(optimizer, update)

        # --- 4 push the weights to the sampler, log, score dev, save
        own = {"kl_cov/frac_penalised": run.sums["penalised"] / run.sums["tokens"]}
        run.end_step(rollout, batch, own, penalised=batch["penalised"])
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
