r"""UniR: a small reasoner whose logits are added to those of a frozen model (Universal Reasoner, arXiv
2505.19075). Read it as `diff grpo.py papers/unir.py`.

    pi = softmax((z_frozen + alpha z_reasoner) / T)
    J = E[ 1/sum_i |o_i| sum_i sum_t min(ratio_it A_i, clip(ratio_it, 1 - clip_low, 1 + clip_high) A_i) ]
    ratio_it = pi(o_it) / pi_old(o_it),      A_i = (R_i - mean R) / std R over the G completions of one prompt

What changes against grpo.py, numbered here and where it happens:
[1] The policy is the sum of two models, z their logits. --model is the reasoner, which is trained; --frozen
    stays as it is. Completions are sampled from pi, and the ratio is that of pi. So the reasoner learns what
    the frozen model lacks: d log pi(y) / d z_reasoner = alpha / T (onehot(y) - pi).
[2] Every token of the batch weighs the same, as in DAPO. No KL term.
[3] What is saved is the reasoner alone. It can be added to another model of the same vocabulary, a larger
    one, and several can be added at once: `python eval.py --model BIG --reasoners A B`.

pi is the product of both distributions, renormalised. Two models that know a little each are surer together:
a copy of the frozen model as reasoner is the frozen model at half the temperature, before any training. So a
gain counts from there, and beside the frozen model at its best temperature. A reasoner that
tools/make_reasoner.py makes has a head of zeros, and begins as the frozen model itself.

Deviations from the paper, tagged again where they happen:
[D1] The temperature divides the logits in the loss as in the sampler (its code samples at 0.7 and computes
     the ratio at 1, which is another policy than the one that sampled).
[D2] The mean over tokens is that of the whole batch (its code: of each micro-batch).
[D3] A group whose rewards are all equal gets advantage exactly 0 (its code: by rounding about 0).
[D4] Logits are added in float32 (its code: in bfloat16).

    python papers/unir.py         on the embedded model, beside a frozen copy of itself: not measured yet

Letters in shapes: B prompts, G completions of each (a group), N = B*G rows, T completion tokens, M tokens end
to end, V vocabulary. Rows are prompt-major: rows i*G .. i*G+G-1 belong to prompt i. Masks come from lengths;
EOS is inside the mask when the completion ended by itself.
"""

import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch

sys.path.append(str(Path(__file__).resolve().parents[1]))  # where plainrl/ lies

from plainrl.flags import Bounds, ClipRange, Count, Natural, NotNegative, Positive, RunFlags, by_size, parse
from plainrl.logit_sum import LogitSum, load_beside, sample_here
from plainrl.models import eos_ids
from plainrl.ranks import total
from plainrl.rollout import Batch, completion_seed
from plainrl.run import Run
from plainrl.sampler import HFSampler
from plainrl.scoring import logprob_and_entropy, micro_batches, score, update_sums


@dataclass
class Args(RunFlags):
    frozen: str | None = None
    """model that the reasoner, --model, is added to: a Hugging Face folder, hub name or .gguf file (default:
    the one that --model names, as it is before training)"""
    alpha: Annotated[float, Bounds(above=0, at_most=100)] = 1.0
    """weight of the reasoner's logits"""
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


def numbers_of_token(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """[1] Log-probability and entropy of each token under pi, KL(pi || frozen) and the reasoner's spread.

    logits [M, 2, V]: z_frozen / T and alpha z_reasoner / T; targets [M] -> four [M]. The spread is the std of
    alpha z_reasoner / T over the vocabulary. A gradient reaches the reasoner alone, through the first.
    """
    frozen, reasoner = logits.unbind(dim=1)  # [M, V] each
    together = frozen.detach() + reasoner  # [M, V]  [D4]
    logprobs, entropy = logprob_and_entropy(together, targets)
    with torch.no_grad():
        log_pi, log_frozen = together.log_softmax(dim=-1), frozen.log_softmax(dim=-1)
        kl = (log_pi.exp() * (log_pi - log_frozen)).sum(dim=-1)
    return logprobs, entropy, kl, reasoner.detach().std(dim=-1)


def group_advantages(rewards: torch.Tensor) -> torch.Tensor:
    """Each completion's reward against its group, (R - mean) / (std + 1e-4).

    rewards [B, G] -> advantages [B, G]. The std is the unbiased one (ddof 1) that torch computes by default.

    >>> group_advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0]]))
    tensor([[ 1.4997, -0.4999, -0.4999, -0.4999]])
    """
    centred = rewards - rewards.mean(dim=1, keepdim=True)  # [B, G]
    centred = centred / (rewards.std(dim=1, keepdim=True) + 1e-4)
    no_signal = rewards.amax(1, keepdim=True) == rewards.amin(1, keepdim=True)  # [B, 1]
    return centred.masked_fill(no_signal, 0.0)  # [D3]


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


def accumulate_gradients(model, batch: Batch, args: Args, frozen) -> Counter:
    """Backward pass of one optimizer step's loss, micro-batch by micro-batch. Returns sums for the log.

    The weights of the tokens are made before the split: loss and gradient are the same for any micro-batches.
    """
    sums = Counter()
    batch["weights"] = token_mean(batch["loss_mask"])  # [N, T]  [2], [D2]
    policy = LogitSum([frozen, model], [1.0, args.alpha], apart=True)
    for part in micro_batches(policy, batch, args.micro_batch_tokens):
        rows = part.prompt_ids, part.completion_ids
        numbers = score(policy, *rows, args.temperature, numbers_of_token)  # [n, T'] each  [D1]
        logprobs, entropy, kl_frozen, spread = numbers
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
        sums["kl_frozen"] += (kl_frozen * part["completion_mask"]).sum().item()
        sums["spread"] += (spread * part["completion_mask"]).sum().item()
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
    sample_here(args, "papers/unir.py")
    run = Run("unir", args, task, sampler)
    args.frozen = args.frozen or args.model
    run.frozen = load_beside("--frozen", args.frozen, "--model", run.model, run.tokenizer)
    run.policy = LogitSum([run.frozen, run.model], [1.0, args.alpha])  # [1]
    run.model.config.unir = {"frozen": args.frozen, "alpha": args.alpha}  # [3] stands in every config.json
    if not run.own_sampler:
        run.sampler = HFSampler(run.policy, eos_ids(run.policy, run.tokenizer))
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
            run.optimizer_step(optimizer, accumulate_gradients(run.model, minibatch, args, run.frozen))

        # --- 4 push the weights to the sampler, log, score dev, save
        own = {
            "unir/kl_frozen": run.sums["kl_frozen"] / run.sums["tokens"],
            "unir/spread": run.sums["spread"] / run.sums["tokens"],
        }
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
