r"""GRPO: group relative policy optimisation, the baseline that every other script here is read against.

DeepSeekMath (arXiv 2402.03300, section 4.1):

    J = E[ 1/G sum_i 1/|o_i| sum_t min(ratio_it A_i, clip(ratio_it, 1 - clip_low, 1 + clip_high) A_i)
           - kl_coef KL_it ]
    ratio_it = pi(o_it) / pi_old(o_it),      A_i = (R_i - mean R) / std R over the G completions of one prompt

Deviations from the paper, tagged again where they happen:
[D1] kl_coef is 0 by default (the paper: 0.04), as in Dr. GRPO and DAPO; a reference model is loaded only
     when it is used.
[D2] A group whose rewards are all equal gets advantage exactly 0 (the paper's formula is 0/0).
[D3] The paper gives no clip range; 0.2 is PPO's. With one update per batch the ratio is 1 and nothing is
     ever clipped.
[D4] Rewards are the answer's correctness, 0 or 1 (the paper: a learned reward model). Scorers of
     reasoning-gym and your own may give something in between.
[D5] --kl-bias-correction multiplies the KL estimate by the ratio (arXiv 2512.02556): TRL's default.

    python grpo.py                on the embedded model: test avg@16 0.048 -> 0.840 +- 0.014 (five seeds),
                                  4 minutes on one CPU thread

Letters in shapes: B prompts, G completions of each (a group), N = B*G rows, T completion tokens. Rows are
prompt-major: rows i*G .. i*G+G-1 belong to prompt i. Masks come from lengths; EOS is inside the mask when
the completion ended by itself.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch

from plainrl.flags import ClipRange, Count, Natural, NotNegative, Positive, RunFlags, by_size, parse
from plainrl.ranks import total
from plainrl.rollout import Batch, completion_seed
from plainrl.run import Run
from plainrl.scoring import micro_batches, score, update_sums

MOVED = {"advantage": "Dr. GRPO is papers/dr_grpo.py", "aggregation": "papers/ has DAPO's and Dr. GRPO's"}


@dataclass
class Args(RunFlags):
    clip_low: ClipRange = 0.2
    """the ratio is clipped below at 1 - clip_low"""
    clip_high: ClipRange = 0.2
    """the ratio is clipped above at 1 + clip_high"""
    kl_coef: NotNegative = 0.0
    """beta, weight of the k3 estimate of KL(policy || starting model) in the loss"""
    kl_bias_correction: bool = False
    """multiply that estimate by pi / pi_old, so that its gradient is that KL's too"""
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


def group_advantages(rewards: torch.Tensor) -> torch.Tensor:
    """Each completion's reward against its group, (R - mean) / (std + 1e-6).

    rewards [B, G] -> advantages [B, G]. The std is the unbiased one (ddof 1) that torch computes by default.

    >>> group_advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0]]))
    tensor([[ 1.5000, -0.5000, -0.5000, -0.5000]])
    """
    centred = rewards - rewards.mean(dim=1, keepdim=True)  # [B, G]
    centred = centred / (rewards.std(dim=1, keepdim=True) + 1e-6)
    no_signal = rewards.amax(1, keepdim=True) == rewards.amin(1, keepdim=True)  # [B, 1]
    return centred.masked_fill(no_signal, 0.0)  # [D2]: rounding in the mean, divided by 1e-6, would not be 0


def clipped_surrogate(logprobs, old_logprobs, advantages, clip_low: float, clip_high: float) -> torch.Tensor:
    """PPO's pessimistic loss per token, -min(ratio A, clip(ratio) A).

    logprobs [N, T], advantages [N, 1] -> [N, T]. The gradient vanishes only where a clipped ratio already
    moved the way the advantage asks for.
    """
    ratio = torch.exp(logprobs - old_logprobs)  # [N, T]
    return -torch.min(ratio * advantages, ratio.clamp(1 - clip_low, 1 + clip_high) * advantages)


def k3(logprobs, ref_logprobs) -> torch.Tensor:
    """KL(policy || reference) per token, estimated on the policy's own samples (eq. 4).

    exp(d) - 1 - d with d = ref_logprobs - logprobs: [N, T], [N, T] -> [N, T]. Unbiased and never negative as
    a value. As a loss its gradient is that of the KL in the other direction, KL(reference || policy), since
    only the value was made unbiased. Times pi / pi_old, differentiated too, it has value and gradient of
    KL(policy || reference), and is right for samples of pi_old.
    """
    difference = ref_logprobs - logprobs  # [N, T]
    return torch.expm1(difference) - difference


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

        loss_per_token = clipped_surrogate(logprobs, old_logprobs, advantages, args.clip_low, args.clip_high)
        clipped = loss_per_token > -torch.exp(logprobs - old_logprobs) * advantages  # the clipped term won
        if args.importance_cap is not None:
            importance = truncated_importance(old_logprobs, part["rollout_logprobs"], args.importance_cap)
            loss_per_token = loss_per_token * importance
        policy_loss = total_loss = (loss_per_token * part["weights"]).sum()
        if args.kl_coef:
            kl = k3(logprobs, part["ref_logprobs"])
            if args.kl_bias_correction:
                kl = kl * torch.exp(logprobs - old_logprobs)  # [D5]
            total_loss = policy_loss + args.kl_coef * (kl * part["weights"]).sum()
            sums["kl"] += (kl.detach() * part["completion_mask"]).sum().item()
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
    run = Run("grpo", args, task, sampler)
    reference = run.load_reference() if args.kl_coef else None  # [D1]
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
        if reference is not None:
            batch["ref_logprobs"], _ = run.score(batch, reference)  # [N, T]
        for minibatch in batch.split(args.minibatches) * args.epochs:
            run.optimizer_step(optimizer, accumulate_gradients(run.model, minibatch, args))

        # --- 4 push the weights to the sampler, log, score dev, save
        run.end_step(rollout, batch)
    return run.finish()


if __name__ == "__main__":
    main(parse(Args, __doc__, moved=MOVED))


# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "torch==2.13.0", "transformers>=5.16.1,<5.20", "safetensors", "numpy", "tyro", "filelock",
#     "math-verify>=0.9,<0.10", "antlr4-python3-runtime==4.13.2", "matplotlib", "jinja2",
# ]
# ///
