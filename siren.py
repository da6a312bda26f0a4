r"""SIREN: selective entropy regularisation (arXiv 2509.25133). Read it as `diff papers/dr_grpo.py siren.py`.

    loss = Dr. GRPO + beta (H - H_anchor)^2
    h_it = entropy of pi(. | s_it) over its top-p nucleus, renormalised    top-p mask: which tokens
    m_it = 1 if h_it > tau-quantile of the h of completion i, else 0       peak-entropy mask: where
    H    = 1/N sum_i (sum_t m_it h_it / sum_t m_it)                        H_anchor: H of the starting model

What changes against papers/dr_grpo.py, numbered here and where it happens
(`--beta 0` equals it to the last bit):
[1] The scorer also gives each token's nucleus entropy, with gradient.
[2] One pass without gradient over all that the optimizer step sees finds m and H, and so the slope of the
    square. By the chain rule the gradient is 2 beta (H - H_anchor) dH, exactly so for any micro-batches.
[3] H_anchor is H of the first sampled batch before the first update: measured once, kept in the checkpoint.

The paper's ablations are flags: `--nucleus-p 1` (no top-p mask), `--tau 0` (no peak-entropy mask),
`--no-anchor` (the loss is then -beta H, a plain bonus on the masked entropy).

The names above are the paper's. Its equations were not at hand: formulas and values are those of the
authors' code (github.com/Linn3a/siren, December 2025). Where this file, that code and what is known of the
paper part ways:
[D1] The paper names a top-p mask, in the word's usual sense the smallest set of tokens that holds p, with
     the token that crosses p ("standard", our default). Its code leaves that token out ("official"): where
     p_1 + p_2 >= 0.8 the entropy is 0, and a fair choice between two ways is invisible. Such forks are what
     exploration is for.
[D2] Code: squares H of each micro-batch on its own, which also punishes differences between completions.
     Here the square is of the batch that one optimizer step sees. With --minibatches that can be few
     prompts, and part of this remains.
[D3] Code: compares padded positions with the quantile too, so one can be selected. Its first version
     (September 2025, so probably the paper's numbers) also took h >= quantile, which selects everything
     where most h are 0. Here h > quantile, among the completion's tokens alone.
[D4] Code: the anchor is not in the checkpoint and has to be given by hand after a resume. The first version
     took it from the first micro-batch of each GPU. In the second, micro-batches sorted by length pair
     entropies with other rows' masks there.
[D5] Code: the script asks for clip 0.28, but the configuration's 0.2 on both sides wins: 0.2 here. No dual
     clip (code: 3), no limit to the 10,000 likeliest tokens. 16 updates a batch and weight decay 0.1 are
     flags (--minibatches, --weight-decay).
[D6] With --mask-truncated, H is still of all that was sampled, as the anchor is.
[D7] The policy's loss is divided by --max-new-tokens and H is not, as in the code: the shorter completions
     are compared with that limit, the more weight has the same beta.

    python siren.py               on the embedded model: test avg@16 0.048 -> 0.866, 12 minutes on one CPU
                                  thread; H falls, at beta 0.001 (seed 0: one run, log not kept)
    python siren.py --beta 0.1    H is held, at the cost of learning: 0.048 -> 0.095 (the same)
    python siren.py --task countdown    where entropy is choice, 2 minutes: avg@16 0.175 -> 0.294, pass@16
                                  0.867 -> 0.820 (papers/dr_grpo.py: 0.302 and 0.789; the same)

Letters in shapes: B prompts, G completions of each (a group), N = B*G rows, T completion tokens, V
vocabulary. Rows are prompt-major: rows i*G .. i*G+G-1 belong to prompt i. Masks come from lengths; EOS is
inside the mask when the completion ended by itself.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import torch

from plainrl.flags import (
    Bounds,
    ClipRange,
    Count,
    Natural,
    NotNegative,
    Positive,
    RunFlags,
    Share,
    by_size,
    parse,
)
from plainrl.ranks import total
from plainrl.rollout import Batch, completion_seed
from plainrl.run import Run
from plainrl.scoring import logprob_and_entropy, micro_batches, score, score_all, update_sums


@dataclass
class Args(RunFlags):
    beta: NotNegative | None = by_size(tiny=0.001, small=0.005, large=0.005, countdown=0.03)
    """weight of beta (H - H_anchor)^2, where H is the mean entropy of the regularised tokens in nats; with
    --no-anchor the weight of a bonus, -beta H (0.005 is the authors' code's; 0.001 scored best on chains of
    one step, 0.03 in the countdown world, see benchmarks/trials.md)"""
    nucleus_p: Share = 0.8
    """p of the top-p mask: entropy is taken over the most likely tokens that together hold this much
    probability, so that exploration stays within meaningful actions; 1: over the whole vocabulary"""
    tau: Annotated[float, Bounds(at_least=0, below=1)] = 0.8
    """quantile of the peak-entropy mask: only tokens whose nucleus entropy is above it, among those of their
    own completion, are regularised (0.8: the top fifth, or less where entropies are equal); 0: every token"""
    nucleus_rule: Literal["standard", "official"] = "standard"
    """whether the nucleus includes the token that crosses p (standard) or leaves it out,
    as the authors' code does (official)"""
    anchor: bool = True
    """self-anchored: hold H at its value under the starting model;
    --no-anchor: a bonus that raises H without end"""

    clip_low: ClipRange = 0.2
    """the ratio is clipped below at 1 - clip_low"""
    clip_high: ClipRange = 0.2
    """the ratio is clipped above at 1 + clip_high"""
    mask_truncated: bool = False
    """leave completions cut at --max-new-tokens out of the policy loss instead of scoring them"""
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
    """no flag, for --plan: regularised_entropy scores the batch before every update  [2]"""


# --- the mathematics ----------------------------------------------------------------------------------------


def nucleus_entropy(
    logits: torch.Tensor, top_p: float, rule: str = "standard", largest: int = 32
) -> torch.Tensor:
    """Entropy of the renormalised top-p nucleus, in nats, with gradient: logits [..., V] -> [...].

    The logits are those divided by the temperature. The nucleus is the most likely tokens that hold top_p,
    with the token that crosses top_p ("standard") or without it ("official"); a nucleus of one token or none
    has entropy 0. top_p 1 is the whole vocabulary.

    Which tokens are inside carries no gradient; the gradient in the logits is -q (log q + h) inside, q being
    the renormalised probability, and 0 outside.

    Sorting a whole vocabulary at every position is slow: the `largest` tokens are looked at, and more where
    they do not hold top_p.

    >>> logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    >>> [round(nucleus_entropy(logits, 0.8, rule).item(), 6) for rule in ("standard", "official")]
    [1.060857, 0.682908]
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # bfloat16 sums are too coarse
    if top_p >= 1:
        logprobs = torch.log_softmax(logits, dim=-1)
        return -(logprobs.exp() * logprobs).sum(dim=-1)
    with torch.no_grad():
        probs, ids = torch.softmax(logits, dim=-1).topk(min(largest, logits.shape[-1]), dim=-1)  # [..., K]
        mass = probs.cumsum(dim=-1)
        kept = (mass - probs if rule == "standard" else mass) < top_p  # [D1]
        kept[..., 0] = True  # one token and none are both entropy 0, and this one has no log 0
    inside = logits.gather(-1, ids).masked_fill(~kept, -torch.inf)
    logprobs = torch.log_softmax(inside, dim=-1)  # log q [..., K]
    entropy = -(logprobs.exp() * logprobs.masked_fill(~kept, 0.0)).sum(dim=-1)
    too_few = mass[..., -1] < top_p  # rows so flat that the nucleus goes on behind the tokens looked at
    if largest < logits.shape[-1] and too_few.any():  # those again, with more tokens
        entropy = entropy.masked_scatter(too_few, nucleus_entropy(logits[too_few], top_p, rule, 8 * largest))
    return entropy


def peak_mask(entropies: torch.Tensor, completion_mask: torch.Tensor, quantile: float) -> torch.Tensor:
    """Tokens whose entropy is above the quantile of their own completion: [N, T], [N, T] -> bool [N, T].

    The quantile is interpolated linearly over the completion's tokens alone. Quantile 0 selects all of them.

    >>> entropies = torch.tensor([[0.0, 0.1, 0.2, 0.9, 1.1]])  # whose 0.8 quantile is 0.94
    >>> peak_mask(entropies, torch.ones(1, 5, dtype=torch.bool), 0.8)
    tensor([[False, False, False, False,  True]])
    """
    if quantile == 0:
        return completion_mask.clone()
    in_completion = entropies.detach().masked_fill(~completion_mask, torch.nan)
    threshold = in_completion.nanquantile(quantile, dim=1, keepdim=True)  # [N, 1]
    return (entropies > threshold) & completion_mask  # [D3]


def peak_mean(selected: torch.Tensor) -> torch.Tensor:
    """Weights of a mean over a completion's selected tokens, then over all completions. [N, T] -> [N, T]

    A completion without a selected token counts as 0.
    """
    return selected / selected.sum(dim=1, keepdim=True).clamp(min=1) / selected.shape[0]


def regulariser(entropy, anchor: float | None, beta: float):
    """beta (H - H_anchor)^2 pulls H up below the anchor and down above it. Without one: a bonus, -beta H."""
    return -beta * entropy if anchor is None else beta * (entropy - anchor) ** 2


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


def token_numbers(args: Args):
    """What the scorer computes for every token: log-probability, full entropy and nucleus entropy.  [1]"""

    def numbers(logits, targets):
        return *logprob_and_entropy(logits, targets), nucleus_entropy(
            logits, args.nucleus_p, args.nucleus_rule
        )

    return numbers


def regularised_entropy(model, batch: Batch, args: Args) -> tuple[torch.Tensor, torch.Tensor]:
    """The regularised tokens, bool [N, T], and H, a number: one pass without gradient.  [2]"""
    settings = (args.temperature, args.micro_batch_tokens, token_numbers(args))
    *_, entropies = score_all(model, batch.prompt_ids, batch.completion_ids, *settings)
    mask = batch["completion_mask"]  # [N, T]; of all that was sampled, truncated or not  [D6]
    entropies = torch.nn.functional.pad(entropies, (0, mask.shape[1] - entropies.shape[1]))  # [N, T]
    selected = peak_mask(entropies, mask, args.tau)
    return selected, (entropies * peak_mean(selected)).sum()


def accumulate_gradients(model, batch: Batch, args: Args, anchor: float) -> Counter:
    """Backward pass of one optimizer step's loss, micro-batch by micro-batch. Returns sums for the log.

    The weights of the tokens are made before the split: loss and gradient are the same for any micro-batches.
    """
    sums = Counter()
    batch["weights"] = constant(batch["loss_mask"], args.max_new_tokens)  # [N, T]  [D7]
    selected, H = regularised_entropy(model, batch, args)
    batch["selected"][:] = selected  # in place: the whole batch keeps it for samples.jsonl
    batch["peak_weights"] = peak_mean(selected)  # [N, T]
    penalty = regulariser(H.requires_grad_(), anchor if args.anchor else None, args.beta)
    (slope,) = torch.autograd.grad(penalty, H)  # d penalty / d H, of the whole batch  [2], [D2]
    for part in micro_batches(model, batch, args.micro_batch_tokens):
        settings = (args.temperature, token_numbers(args))
        logprobs, entropy, nucleus = score(model, part.prompt_ids, part.completion_ids, *settings)  # [n, T']
        old_logprobs = part.get("old_logprobs", logprobs.detach())  # one update: pi_old is the policy
        advantages = part["advantages"]  # [n, 1]

        loss_per_token = clipped_surrogate(logprobs, old_logprobs, advantages, args.clip_low, args.clip_high)
        clipped = loss_per_token > -torch.exp(logprobs - old_logprobs) * advantages  # the clipped term won
        if args.importance_cap is not None:
            importance = truncated_importance(old_logprobs, part["rollout_logprobs"], args.importance_cap)
            loss_per_token = loss_per_token * importance
        policy_loss = (loss_per_token * part["weights"]).sum()
        part_of_H = (nucleus * part["peak_weights"]).sum()
        total_loss = policy_loss + slope * part_of_H  # has the gradient of the penalty, not its value  [2]
        total_loss.backward()
        sums.update(update_sums(part, logprobs, old_logprobs, entropy, clipped, policy_loss, policy_loss))
        sums["nucleus"] += (nucleus * part["completion_mask"]).sum().item()
        sums["selected"] += part["selected"].sum().item()
    sums = total(sums)  # over ranks
    sums["total_loss"] += penalty.item()
    sums["regularised"] += H.item()
    return sums


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
    run = Run("siren", args, task, sampler, state={"anchor": None})
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
        batch["selected"] = torch.zeros_like(batch["completion_mask"])  # [N, T]

        # --- 3 update
        optimizer.param_groups[0]["lr"] = learning_rate(args, step)
        if args.minibatches * args.epochs > 1:
            batch["old_logprobs"], _ = run.score(batch)  # [N, T], before the first of several updates
        if run.state["anchor"] is None:
            run.state["anchor"] = regularised_entropy(run.model, batch, args)[1].item()  # [3], [D4]
        for minibatch in batch.split(args.minibatches) * args.epochs:
            update = accumulate_gradients(run.model, minibatch, args, run.state["anchor"])
            run.optimizer_step(optimizer, update)

        # --- 4 push the weights to the sampler, log, score dev, save
        sums, updates = run.sums, len(run.grad_norms)
        own = {
            "siren/entropy": sums["regularised"] / updates,
            "siren/anchor": run.state["anchor"],
            "siren/nucleus_entropy": sums["nucleus"] / sums["tokens"],
            "siren/frac_selected": sums["selected"] / sums["tokens"],
        }
        run.end_step(rollout, batch, own, selected=batch["selected"])
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
