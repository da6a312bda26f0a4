r"""SIREN: selective entropy regularisation (arXiv 2509.25133). Read it as `diff grpo.py siren.py`.

    loss = Dr. GRPO + beta (H - H_anchor)^2
    h_it = entropy of pi(. | s_it) over its top-p nucleus, renormalised           top-p mask: which tokens may be explored
    m_it = 1 if h_it > tau-quantile of the h of completion i, else 0              peak-entropy mask: where they may be
    H    = 1/N sum_i (sum_t m_it h_it / sum_t m_it)                               H_anchor: H of the starting model

Dr. GRPO (arXiv 2503.20783) is `grpo.py --advantage centred --aggregation constant`, and `--beta 0` equals it to the last bit.
What changes against it, numbered here and where it happens:
[1] The scorer also gives each token's nucleus entropy, with gradient.
[2] One pass without gradient over all that the optimizer step sees finds m and H, and so the slope of the square: by the chain
    rule the gradient is 2 beta (H - H_anchor) dH, exactly so under any split into micro-batches.
[3] H_anchor is H of the first sampled batch before the first update: measured once, kept in the checkpoint.

The paper's ablations are flags: `--nucleus-p 1` (no top-p mask), `--tau 0` (no peak-entropy mask), `--no-anchor` (the loss is then
-beta H, a plain bonus on the masked entropy).

The names above are the paper's; its equations were not at hand, so the formulas and values are those of the authors' code
(github.com/Linn3a/siren, December 2025). Where this file, that code and what is known of the paper part ways:
[D1] The paper names a top-p mask, in the word's usual sense the smallest set of tokens that holds p, with the token that crosses
     p ("standard", our default). Its code leaves that token out ("official"), so where p_1 + p_2 >= 0.8 the entropy is 0, and a
     fair choice between two ways is invisible. Standard is the default because such forks are what exploration is for.
[D2] Code: squares H of each micro-batch on its own, which also punishes differences between completions. Here the square is of
     the batch that one optimizer step sees. With --minibatches that can be few prompts, and part of this remains.
[D3] Code: compares padded positions with the quantile too, so one can be selected; its first version (September 2025, so probably
     the paper's numbers) also took h >= quantile, which selects everything where most h are 0. Here h > quantile, among the
     completion's tokens alone.
[D4] Code: the anchor is not in the checkpoint and has to be given by hand after a resume; the first version took it from the
     first micro-batch of each GPU, and in the second, micro-batches sorted by length pair entropies with other rows' masks there.
[D5] Code: the script asks for clip 0.28, but the configuration's 0.2 on both sides wins: 0.2 here. No dual clip (code: 3), no limit
     to the 10,000 likeliest tokens. 16 updates a batch and weight decay 0.1 are flags (--minibatches, --weight-decay).
[D6] With --mask-truncated, H is still of all that was sampled, as the anchor is.
[D7] The policy's loss is divided by --max-new-tokens and H is not, as in the code: the shorter completions are compared with that
     limit, the more weight has the same beta.

    python siren.py                             on the embedded model: test avg@16 0.048 -> 0.866 (seed 0), 12 minutes on one CPU
                                                thread; H falls, at beta 0.001
    python siren.py --beta 0.1                  H is held, at the cost of learning: 0.048 -> 0.095

Letters in shapes: B prompts, G completions of each (a group), N = B*G rows, T completion tokens, V vocabulary. Rows are
prompt-major: rows i*G .. i*G+G-1 belong to prompt i. Masks come from lengths; EOS is inside the mask when the completion ended
by itself.
"""

import math
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro

import runtime
from distributed import clip_gradients, gather_weights, total
from eval import evaluate
from rollout import (
    completion_seed,
    logprob_and_entropy,
    make_sampler,
    micro_batches,
    pad,
    pad_values,
    push_weights,
    sample_rollout,
    score,
    score_all,
)
from tasks import load_task

DEFAULTS = {  # flags left at None: the embedded model, and real ones (batch, lr and length as in the papers of Dr. GRPO and SIREN)
    "tiny": dict(lr=3e-4, warmup_steps=5, beta=0.001, steps=80, prompts_per_step=16, group_size=16, max_new_tokens=160,
                 micro_batch_tokens=32768, eval_every=20, eval_problems=64, eval_samples=16, test_problems=128),
    "real": dict(lr=1e-6, warmup_steps=5, beta=0.005, steps=500, prompts_per_step=128, group_size=8, max_new_tokens=3072,
                 micro_batch_tokens=runtime.MICRO_BATCH_TOKENS, eval_every=20, eval_problems=128, eval_samples=4, test_problems=500),
}  # fmt: skip


@dataclass
class Args:
    model: str = "models/tiny"
    """Hugging Face folder, hub name or .gguf file to start from"""
    task: str = "chain"
    """chain[?horizon=3&family=plain], jsonl:PATH, gym:NAME?key=value or gsm8k (see tasks.py)"""
    system_prompt: str | None = None
    """system turn put before every prompt"""
    steps: int | None = None
    """steps: batches sampled and trained on"""
    token_budget: int | None = None
    """stop after this many sampled tokens, should that come before --steps"""
    prompts_per_step: int | None = None
    """B, prompts sampled per step"""
    group_size: int | None = None
    """G, completions per prompt"""
    max_new_tokens: int | None = None
    """longest completion; also the constant that Dr. GRPO divides by"""
    temperature: float = 1.0
    """sampling temperature; the same one divides the logits in the loss"""

    beta: float | None = None
    """weight of the self-anchored regularisation, beta (H - H_anchor)^2, where H is the mean entropy of the regularised tokens in
    nats; with --no-anchor the weight of a bonus, -beta H (default: 0.005 for real models, as in the authors' code; 0.001 for the
    embedded one, which scored best in benchmarks/trials.md on chains of one step)"""
    nucleus_p: float = 0.8
    """p of the top-p mask: entropy is taken over the most likely tokens that together hold this much probability, so that
    exploration stays within a meaningful subset of actions; 1: over the whole vocabulary"""
    tau: float = 0.8
    """quantile of the peak-entropy mask: only tokens whose nucleus entropy is above it, among those of their own completion, are
    regularised, a meaningful subset of states (0.8: the top fifth, or less where entropies are equal); 0: every token"""
    nucleus_rule: Literal["standard", "official"] = "standard"
    """whether the nucleus includes the token that crosses p (standard) or leaves it out, as the authors' code does (official)"""
    anchor: bool = True
    """self-anchored: hold H at its value under the starting model; --no-anchor: a bonus that raises H without end"""

    clip_low: float = 0.2
    """the ratio is clipped below at 1 - clip_low"""
    clip_high: float = 0.2
    """the ratio is clipped above at 1 + clip_high"""
    mask_truncated: bool = False
    """leave completions cut at --max-new-tokens out of the policy loss instead of scoring them"""
    importance_cap: float | None = None
    """weight tokens by min(pi_old / sampler, cap), for a sampler that differs from the trainer (2.0 is common)"""
    minibatches: int = 1
    """optimizer steps per pass over the sampled batch"""
    epochs: int = 1
    """passes over the sampled batch"""

    lr: float | None = None
    """peak learning rate of AdamW"""
    warmup_steps: int | None = None
    """steps of linear warm-up; constant afterwards"""
    weight_decay: float = 0.0
    """AdamW's weight decay"""
    max_grad_norm: float = 1.0
    """gradients are clipped to this norm"""
    micro_batch_tokens: int | None = None
    """tokens per forward and backward pass, equal prompts counted once; changes memory and speed, never the result"""
    activation_checkpointing: bool = False
    """recompute activations in the backward pass: less memory, about a third slower"""
    lora_rank: int | None = None
    """train adapters of this rank instead of all weights (LoRA; needs peft)"""

    seed: int = 0
    """problems, their order and every sampled token follow from it"""
    train_size: int | None = None
    """train on this many problems only, over and over"""
    engine: Literal["auto", "hf", "vllm"] = "auto"
    """sampler; auto takes vLLM where CUDA and vLLM are there, in one process"""
    vllm_server: str | None = None
    """sample on this vLLM server instead (its URL; rollout_vllm.py says how to start it)"""
    vllm_memory: float = 0.4
    """share of the GPU that vLLM in this process may take while it samples"""
    max_logprob_gap: float | None = None
    """stop when sampler and trainer differ by more than this on average (default 1e-4, or 0.05 in bfloat16)"""
    eval_every: int | None = None
    """steps between two scores on dev"""
    eval_problems: int | None = None
    """problems in a dev score"""
    eval_samples: int | None = None
    """completions per problem in dev and test scores: k of avg@k, pass@k, maj@k"""
    test_problems: int | None = None
    """problems in the test score, taken before the first step and after the last"""
    save_every: int = 20
    """steps between two checkpoints"""
    out_dir: Path | None = None
    """output folder (default runs/<script>/<task>-seed<seed>)"""
    resume: bool = False
    """continue the run in --out-dir from its last checkpoint"""
    track: Literal["none", "wandb", "tensorboard"] = "none"
    """also send the metrics there"""


# --- the mathematics ------------------------------------------------------------------------------------------------------


def nucleus_entropy(logits: torch.Tensor, top_p: float, rule: str = "standard", largest: int = 32) -> torch.Tensor:
    """Entropy of the renormalised top-p nucleus, in nats, with gradient: logits [..., V], divided by the temperature -> [...].

    The nucleus is the most likely tokens that hold top_p, with the token that crosses top_p ("standard") or without it
    ("official"); a nucleus of one token or none has entropy 0. top_p 1 is the whole vocabulary. Which tokens are inside carries
    no gradient; the gradient in the logits is -q (log q + h) inside, q being the renormalised probability, and 0 outside.

    Sorting a whole vocabulary at every position is slow: the `largest` tokens are looked at, and more where they do not hold top_p.

    >>> logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    >>> [round(nucleus_entropy(logits, 0.8, rule).item(), 6) for rule in ("standard", "official")]
    [1.060857, 0.682908]
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # sums of probabilities are too coarse in bfloat16
    if top_p >= 1:
        logprobs = torch.log_softmax(logits, dim=-1)
        return -(logprobs.exp() * logprobs).sum(dim=-1)
    with torch.no_grad():
        probs, ids = torch.softmax(logits, dim=-1).topk(min(largest, logits.shape[-1]), dim=-1)  # [..., K], falling
        mass = probs.cumsum(dim=-1)
        kept = (mass - probs if rule == "standard" else mass) < top_p  # [D1]
        kept[..., 0] = True  # one token and none are both entropy 0, and this one has no log 0
    logprobs = torch.log_softmax(logits.gather(-1, ids).masked_fill(~kept, -torch.inf), dim=-1)  # log q [..., K]
    entropy = -(logprobs.exp() * logprobs.masked_fill(~kept, 0.0)).sum(dim=-1)
    too_few = mass[..., -1] < top_p  # rows so flat that the nucleus goes on behind the tokens looked at: again, with more of them
    if largest < logits.shape[-1] and too_few.any():
        entropy = entropy.masked_scatter(too_few, nucleus_entropy(logits[too_few], top_p, rule, 8 * largest))
    return entropy


def peak_mask(entropies: torch.Tensor, completion_mask: torch.Tensor, quantile: float) -> torch.Tensor:
    """Tokens whose entropy is above the quantile of their own completion: [N, T], [N, T] -> bool [N, T].

    The quantile is interpolated linearly over the completion's tokens alone. Quantile 0 selects all of them.

    >>> peak_mask(torch.tensor([[0.0, 0.1, 0.2, 0.9, 1.1]]), torch.ones(1, 5, dtype=torch.bool), 0.8)  # the quantile is 0.94
    tensor([[False, False, False, False,  True]])
    """
    if quantile == 0:
        return completion_mask.clone()
    threshold = entropies.detach().masked_fill(~completion_mask, torch.nan).nanquantile(quantile, dim=1, keepdim=True)  # [N, 1]
    return (entropies > threshold) & completion_mask  # [D3]


def peak_mean(selected: torch.Tensor) -> torch.Tensor:
    """Weights of a mean over a completion's selected tokens, then over all completions (one with none counts as 0).
    [N, T] -> [N, T]"""
    return selected / selected.sum(dim=1, keepdim=True).clamp(min=1) / selected.shape[0]


def regulariser(entropy, anchor: float | None, beta: float):
    """beta (H - H_anchor)^2: pulls H up below the anchor and down above it. Without an anchor the plain bonus, -beta H."""
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
    """PPO's pessimistic loss per token, -min(ratio A, clip(ratio) A): logprobs [N, T], advantages [N, 1] -> [N, T].

    The gradient vanishes only where a clipped ratio already moved the way the advantage asks for.
    """
    ratio = torch.exp(logprobs - old_logprobs)  # [N, T]
    return -torch.min(ratio * advantages, ratio.clamp(1 - clip_low, 1 + clip_high) * advantages)


def truncated_importance(old_logprobs, rollout_logprobs, cap: float) -> torch.Tensor:
    """min(pi_old / sampler, cap) per token [N, T], without gradient: corrects for a sampler that is not quite the policy."""
    return torch.exp(old_logprobs - rollout_logprobs).clamp(max=cap).detach()


def constant(mask: torch.Tensor, max_new_tokens: int) -> torch.Tensor:
    """Dr. GRPO: sum over tokens / max_new_tokens, mean over completions: no bias by length. [N, T] -> [N, T]"""
    return mask / (max_new_tokens * mask.shape[0])


# --- the update -----------------------------------------------------------------------------------------------------------


def token_numbers(args: Args):
    """What the scorer computes for every token: log-probability, full entropy and, with gradient, the nucleus entropy."""

    def numbers(logits, targets):
        return *logprob_and_entropy(logits, targets), nucleus_entropy(logits, args.nucleus_p, args.nucleus_rule)

    return numbers


def regularised_entropy(model, batch: dict, rows: slice, args: Args) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens of `rows` that are regularised, bool [n, T], and H of them, a number: one pass without gradient."""  # [2]
    prompt_ids, completion_ids = batch["prompt_ids"][rows], batch["completion_ids"][rows]
    *_, entropies = score_all(model, prompt_ids, completion_ids, args.temperature, args.micro_batch_tokens, token_numbers(args))  # [n, T']
    mask = batch["completion_mask"][rows]  # [D6]
    entropies = torch.nn.functional.pad(entropies, (0, mask.shape[1] - entropies.shape[1]))  # [n, T]
    selected = peak_mask(entropies, mask, args.tau)
    return selected, (entropies * peak_mean(selected)).sum()


def accumulate_gradients(model, batch: dict, rows: slice, args: Args, anchor: float) -> Counter:
    """Backward pass of one optimizer step's loss over `rows` of the sampled batch, micro-batch by micro-batch.

    batch holds lists prompt_ids and completion_ids [N] and tensors advantages [N, 1], completion_mask, loss_mask,
    rollout_logprobs, (with several updates) old_logprobs and selected [N, T], in which the tokens that were regularised are noted.
    Returns sums for the log.
    """
    gather_weights(model)
    sums = Counter()
    weights = torch.zeros_like(batch["rollout_logprobs"])  # [N, T], made before the split so that it does not depend on it
    weights[rows] = constant(batch["loss_mask"][rows], args.max_new_tokens)
    selected, H = regularised_entropy(model, batch, rows, args)
    batch["selected"][rows] = selected  # kept for samples.jsonl
    peak_weights = torch.zeros_like(weights)  # [N, T]
    peak_weights[rows] = peak_mean(selected)
    penalty = regulariser(H.requires_grad_(), anchor if args.anchor else None, args.beta)
    (slope,) = torch.autograd.grad(penalty, H)  # d penalty / d H  [2], [D2]
    for part in micro_batches(batch["prompt_ids"], batch["completion_ids"], args.micro_batch_tokens, rows):
        logprobs, entropy, nucleus = score(model, batch["prompt_ids"][part], batch["completion_ids"][part], args.temperature,
                                           token_numbers(args))  # [n, T'], [1], fmt: skip
        width = logprobs.shape[1]
        cut = {name: value[part, :width] for name, value in batch.items() if torch.is_tensor(value)}  # [n, T']
        mask, weight = cut["completion_mask"], weights[part, :width]
        old_logprobs = cut.get("old_logprobs", logprobs.detach())  # with one update per batch pi_old is the current policy

        loss_per_token = clipped_surrogate(logprobs, old_logprobs, cut["advantages"], args.clip_low, args.clip_high)
        clipped = loss_per_token > -torch.exp(logprobs - old_logprobs) * cut["advantages"]  # the min took the clipped term
        if args.importance_cap is not None:
            loss_per_token = loss_per_token * truncated_importance(old_logprobs, cut["rollout_logprobs"], args.importance_cap)
        policy_loss = (loss_per_token * weight).sum()  # [D7]
        total_loss = policy_loss + slope * (nucleus * peak_weights[part, :width]).sum()  # has the gradient, not the value  [2]
        total_loss.backward()

        gap = (old_logprobs - cut["rollout_logprobs"]).abs() * mask
        sums.update(tokens=mask.sum().item(), gap=gap.sum().item(), entropy=(entropy * mask).sum().item(),
                    clipped=(clipped & mask).sum().item(), policy_loss=policy_loss.item(), total_loss=policy_loss.item(),
                    nucleus=(nucleus * mask).sum().item(), selected=cut["selected"].sum().item())  # fmt: skip
    sums = total(sums)
    sums["total_loss"] += penalty.item()
    sums["regularised"] += H.item()
    return sums


def problem_indices(args: Args, step: int) -> list[int]:
    """Which training problems a step samples: a pure function of the step, so resuming needs no data state."""
    first = (step - 1) * args.prompts_per_step
    return [index % args.train_size if args.train_size else index for index in range(first, first + args.prompts_per_step)]


# --- the loop -------------------------------------------------------------------------------------------------------------


def main(args: Args, task=None, sampler=None) -> Path:
    """Train and return the folder of the final model. A task or sampler of your own can be passed in."""
    # --- setup
    runtime.start_process()
    torch.manual_seed(args.seed)
    if task is None:
        task = runtime.or_fail(load_task, args.task)
    else:
        args.task = None  # a task of your own
    args.out_dir = args.out_dir or Path(f"runs/siren/{task.name}-seed{args.seed}")
    runtime.check_out_dir(args.out_dir, args.resume)
    model, tokenizer = runtime.load_model(args.model, args.activation_checkpointing, args.lora_rank)
    runtime.resolve_defaults(args, model, DEFAULTS)
    runtime.check_args(args)
    runtime.check_task(task, args)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=args.weight_decay, fused=True)
    sampler = sampler or make_sampler(args, model, runtime.eos_ids(model, tokenizer))
    run = runtime.Run("siren", args, task.name, model)
    state = {"step": 0, "tokens": 0, "best": -1.0, "skips_in_a_row": 0, "test_before": {}, "anchor": None}
    state = (runtime.load_checkpoint(args.out_dir / "last", model, optimizer) if args.resume else None) or state
    run.start(state["step"])
    stop = runtime.StopRequest()
    G = args.group_size
    sampling = dict(group_size=G, max_new_tokens=args.max_new_tokens, temperature=args.temperature, system=args.system_prompt)

    def measure(prefix: str, split: str, num_problems: int) -> dict:
        scores, _ = evaluate(sampler, tokenizer, task, split, num_problems, args.eval_samples, args.max_new_tokens,
                             args.temperature, args.system_prompt)  # fmt: skip
        return {f"{prefix}/{task.name}/{name}": value for name, value in scores.items()}

    push_weights(sampler, model, tokenizer, task, args)
    if state["step"] == 0:
        state["test_before"] = measure("test", "test", args.test_problems)
        run.log({"step": 0} | measure("eval", "dev", args.eval_problems) | state["test_before"])

    budget = math.inf if args.token_budget is None else args.token_budget
    for step in range(state["step"] + 1, args.steps + 1):
        if state["tokens"] >= budget:
            break
        # --- 1 sample
        started = time.time()
        problems = [task.problem("train", index, args.seed) for index in problem_indices(args, step)]
        seeds = [completion_seed(args.seed, step, j, 0, i) for j in range(len(problems)) for i in range(G)]
        rollout = sample_rollout(sampler, tokenizer, task, problems, [p.prompt for p in problems], seeds, **sampling)
        state["tokens"] += rollout.tokens
        started_training = time.time()

        # --- 2 reward and advantage
        rewards = rollout.rewards(G)  # [B, G]
        advantages = group_advantages(rewards).view(-1, 1).to(model.device)  # [N, 1]
        _, completion_mask = pad(rollout.completion_ids, model.device)  # [N, T]
        loss_mask = completion_mask.clone()  # [N, T]
        if args.mask_truncated:
            loss_mask[torch.tensor(rollout.truncated, dtype=torch.bool, device=model.device)] = False
        batch = {"prompt_ids": rollout.prompt_ids, "completion_ids": rollout.completion_ids, "advantages": advantages,
                 "completion_mask": completion_mask, "loss_mask": loss_mask, "selected": torch.zeros_like(completion_mask),
                 "rollout_logprobs": pad_values(rollout.logprobs, completion_mask)}  # fmt: skip

        # --- 3 update
        for group in optimizer.param_groups:
            group["lr"] = runtime.learning_rate(args, step)
        scoring = (rollout.prompt_ids, rollout.completion_ids, args.temperature, args.micro_batch_tokens)
        if args.minibatches * args.epochs > 1:
            batch["old_logprobs"], _ = score_all(model, *scoring)  # [N, T], before the first of several updates
        if state["anchor"] is None:
            state["anchor"] = regularised_entropy(model, batch, slice(0, rewards.numel()), args)[1].item()  # [3], [D4]
        sums, grad_norms = Counter(), []
        rows_per_update = max(1, math.ceil(len(rewards) / args.minibatches)) * G
        for first in list(range(0, rewards.numel(), rows_per_update)) * args.epochs:
            update = accumulate_gradients(model, batch, slice(first, first + rows_per_update), args, state["anchor"])
            sums.update(update)
            if math.isfinite(update["total_loss"]):
                runtime.check_gap(update["gap"] / update["tokens"], args)
            grad_norms.append(clip_gradients(model, args.max_grad_norm))
            sums["skipped"] += runtime.step_or_skip(optimizer, grad_norms[-1], update["total_loss"], state, run, rollout)
            optimizer.zero_grad()  # no memory for gradients while completions are sampled

        # --- 4 sync
        started_sync = time.time()
        push_weights(sampler, model, tokenizer, task, args)

        # --- 5 log, evaluate, save
        times = {"rollout": started_training - started, "train": started_sync - started_training, "sync": time.time() - started_sync}
        record = runtime.step_record(step, state["tokens"], rollout, G, sums, grad_norms, runtime.learning_rate(args, step), times)
        record |= {"siren/entropy": sums["regularised"] / len(grad_norms), "siren/anchor": state["anchor"],
                   "siren/nucleus_entropy": sums["nucleus"] / sums["tokens"],
                   "siren/frac_selected": sums["selected"] / sums["tokens"]}  # fmt: skip
        last = step == args.steps or state["tokens"] >= budget
        if step % args.eval_every == 0 or last:
            record |= measure("eval", "dev", args.eval_problems)
            dev = record[f"eval/{task.name}/avg@{args.eval_samples}"]
            if dev > state["best"]:
                state["best"] = dev
                runtime.save_model(args.out_dir / "best", model, tokenizer)
        run.log(record)
        run.sample(step, rollout, advantages, selected=runtime.marked_tokens(tokenizer, rollout.completion_ids[:G], batch["selected"]))
        state["step"] = step
        stopping = stop.requested
        if step % args.save_every == 0 or last or stopping:
            runtime.save_checkpoint(args.out_dir / "last", model, tokenizer, optimizer, state)
        if stopping and not last:
            return run.interrupted()

    # --- the best checkpoint by dev, measured on test
    runtime.load_weights(args.out_dir / "best", model)
    push_weights(sampler, model, tokenizer, task, args)
    test_after = measure("test", "test", args.test_problems)
    run.log({"step": state["step"]} | test_after)
    return run.finish(model, tokenizer, state["test_before"], test_after)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
