r"""GRPO: group relative policy optimisation, the baseline that every other script here is read against.

DeepSeekMath (arXiv 2402.03300, section 4.1) and, with two flags, Dr. GRPO (arXiv 2503.20783):

    J = E[ 1/G sum_i 1/|o_i| sum_t min(ratio_it A_i, clip(ratio_it, 1 - clip_low, 1 + clip_high) A_i) - kl_coef KL_it ]
    ratio_it = pi(o_it) / pi_old(o_it),      A_i = (R_i - mean R) / std R over the G completions of one prompt

Deviations from the paper, tagged again where they happen:
[D1] kl_coef is 0 by default (the paper: 0.04), as in Dr. GRPO and DAPO; the reference model is loaded only when it is used.
[D2] A group whose rewards are all equal gets advantage exactly 0 (the paper's formula is 0/0).
[D3] The paper gives no clip range; 0.2 is PPO's. With one update per batch the ratio is 1 and nothing is ever clipped.
[D4] Rewards are the answer's correctness, 0 or 1 (the paper: a learned reward model). Scorers of reasoning-gym and your own may
     give something in between.

    python grpo.py                                                     GRPO on the embedded model
    python grpo.py --advantage centred --aggregation constant          Dr. GRPO

Letters in shapes: B prompts, G completions of each (a group), N = B*G rows, T completion tokens. Rows are prompt-major:
rows i*G .. i*G+G-1 belong to prompt i. Masks come from lengths; EOS is inside the mask when the completion ended by itself.
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
    "tiny": dict(lr=3e-4, warmup_steps=5, steps=80, prompts_per_step=16, group_size=16, max_new_tokens=160,
                 micro_batch_tokens=32768, eval_every=20, eval_problems=64, eval_samples=16, test_problems=128),
    "real": dict(lr=1e-6, warmup_steps=5, steps=500, prompts_per_step=128, group_size=8, max_new_tokens=3072,
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
    """longest completion; also the constant of --aggregation constant"""
    temperature: float = 1.0
    """sampling temperature; the same one divides the logits in the loss"""

    advantage: Literal["std", "centred"] = "std"
    """std: (R - mean) / std (GRPO); centred: R - mean (Dr. GRPO)"""
    aggregation: Literal["sequence_mean", "token_mean", "constant"] = "sequence_mean"
    """how token losses become one number: GRPO, DAPO and Dr. GRPO in this order"""
    clip_low: float = 0.2
    """the ratio is clipped below at 1 - clip_low"""
    clip_high: float = 0.2
    """the ratio is clipped above at 1 + clip_high"""
    kl_coef: float = 0.0
    """beta, weight of the k3 estimate of KL(policy || starting model) in the loss"""
    mask_truncated: bool = False
    """leave completions cut at --max-new-tokens out of the loss instead of scoring them"""
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


def group_advantages(rewards: torch.Tensor, normalisation: str) -> torch.Tensor:
    """Each completion's reward against its group: rewards [B, G] -> advantages [B, G].

    "std": (R - mean) / (std + 1e-6), with the unbiased std (ddof 1) that torch computes by default; "centred": R - mean.

    >>> group_advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0]]), "std")
    tensor([[ 1.5000, -0.5000, -0.5000, -0.5000]])
    """
    centred = rewards - rewards.mean(dim=1, keepdim=True)  # [B, G]
    if normalisation == "std":
        centred = centred / (rewards.std(dim=1, keepdim=True) + 1e-6)
    no_signal = rewards.amax(1, keepdim=True) == rewards.amin(1, keepdim=True)  # [B, 1]
    return centred.masked_fill(no_signal, 0.0)  # [D2]: rounding in the mean, divided by 1e-6, would not be 0


def clipped_surrogate(logprobs, old_logprobs, advantages, clip_low: float, clip_high: float) -> torch.Tensor:
    """PPO's pessimistic loss per token, -min(ratio A, clip(ratio) A): logprobs [N, T], advantages [N, 1] -> [N, T].

    The gradient vanishes only where a clipped ratio already moved the way the advantage asks for.
    """
    ratio = torch.exp(logprobs - old_logprobs)  # [N, T]
    return -torch.min(ratio * advantages, ratio.clamp(1 - clip_low, 1 + clip_high) * advantages)


def k3(logprobs, ref_logprobs) -> torch.Tensor:
    """KL(policy || reference) per token, estimated on the policy's own samples: exp(d) - 1 - d, d = ref_logprobs - logprobs.

    Eq. 4 of the paper. Unbiased and never negative as a value; but as a loss its gradient is that of the KL in the other
    direction, KL(reference || policy), since only the value was made unbiased.
    """
    difference = ref_logprobs - logprobs  # [N, T]
    return torch.expm1(difference) - difference


def truncated_importance(old_logprobs, rollout_logprobs, cap: float) -> torch.Tensor:
    """min(pi_old / sampler, cap) per token [N, T], without gradient: corrects for a sampler that is not quite the policy."""
    return torch.exp(old_logprobs - rollout_logprobs).clamp(max=cap).detach()


# Aggregation. Each function turns the mask of what one optimizer step sees into a weight per token; the loss is the weighted
# sum. The denominators belong to the whole batch, so any split into micro-batches gives the same loss and gradient.


def sequence_mean(mask: torch.Tensor, max_new_tokens: int) -> torch.Tensor:
    """GRPO: mean over a completion's tokens, then over completions (those with no token left do not count). [N, T] -> [N, T]"""
    lengths = mask.sum(dim=1, keepdim=True)  # [N, 1]
    return mask / lengths.clamp(min=1) / (lengths > 0).sum().clamp(min=1)


def token_mean(mask: torch.Tensor, max_new_tokens: int) -> torch.Tensor:
    """DAPO: mean over all tokens of the batch, so long completions weigh more. [N, T] -> [N, T]"""
    return mask / mask.sum().clamp(min=1)


def constant(mask: torch.Tensor, max_new_tokens: int) -> torch.Tensor:
    """Dr. GRPO: sum over tokens / max_new_tokens, mean over completions: no bias by length. [N, T] -> [N, T]"""
    return mask / (max_new_tokens * mask.shape[0])


AGGREGATIONS = {"sequence_mean": sequence_mean, "token_mean": token_mean, "constant": constant}


# --- the update -----------------------------------------------------------------------------------------------------------


def accumulate_gradients(model, batch: dict, rows: slice, args: Args) -> Counter:
    """Backward pass of one optimizer step's loss over `rows` of the sampled batch, micro-batch by micro-batch.

    batch holds lists prompt_ids and completion_ids [N] and tensors advantages [N, 1], completion_mask, loss_mask,
    rollout_logprobs and, where they are needed, old_logprobs and ref_logprobs [N, T]. Returns sums for the log.
    """
    gather_weights(model)
    sums = Counter()
    weights = torch.zeros_like(batch["rollout_logprobs"])  # [N, T], made before the split so that it does not depend on it
    weights[rows] = AGGREGATIONS[args.aggregation](batch["loss_mask"][rows], args.max_new_tokens)
    for part in micro_batches(batch["prompt_ids"], batch["completion_ids"], args.micro_batch_tokens, rows):
        logprobs, entropy = score(model, batch["prompt_ids"][part], batch["completion_ids"][part], args.temperature)  # [n, T']
        width = logprobs.shape[1]
        cut = {name: value[part, :width] for name, value in batch.items() if torch.is_tensor(value)}  # [n, T']
        mask, weight = cut["completion_mask"], weights[part, :width]
        old_logprobs = cut.get("old_logprobs", logprobs.detach())  # with one update per batch pi_old is the current policy

        loss_per_token = clipped_surrogate(logprobs, old_logprobs, cut["advantages"], args.clip_low, args.clip_high)
        clipped = loss_per_token > -torch.exp(logprobs - old_logprobs) * cut["advantages"]  # the min took the clipped term
        if args.importance_cap is not None:
            loss_per_token = loss_per_token * truncated_importance(old_logprobs, cut["rollout_logprobs"], args.importance_cap)
        policy_loss = total_loss = (loss_per_token * weight).sum()
        if args.kl_coef:
            kl = k3(logprobs, cut["ref_logprobs"])
            total_loss = policy_loss + args.kl_coef * (kl * weight).sum()
            sums["kl"] += (kl.detach() * mask).sum().item()
        total_loss.backward()

        gap = (old_logprobs - cut["rollout_logprobs"]).abs() * mask
        sums.update(tokens=mask.sum().item(), gap=gap.sum().item(), entropy=(entropy * mask).sum().item(),
                    clipped=(clipped & mask).sum().item(), policy_loss=policy_loss.item(), total_loss=total_loss.item())  # fmt: skip
    return total(sums)


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
    args.out_dir = args.out_dir or Path(f"runs/grpo/{task.name}-seed{args.seed}")
    runtime.check_out_dir(args.out_dir, args.resume)
    model, tokenizer = runtime.load_model(args.model, args.activation_checkpointing, args.lora_rank)
    runtime.resolve_defaults(args, model, DEFAULTS)
    runtime.check_args(args)
    runtime.check_task(task, args)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=args.weight_decay, fused=True)
    sampler = sampler or make_sampler(args, model, runtime.eos_ids(model, tokenizer))
    reference = runtime.load_model(args.model)[0].eval().requires_grad_(False) if args.kl_coef else None  # [D1]
    run = runtime.Run("grpo", args, task.name, model)
    state = {"step": 0, "tokens": 0, "best": -1.0, "skips_in_a_row": 0, "test_before": {}}
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
        advantages = group_advantages(rewards, args.advantage).view(-1, 1).to(model.device)  # [N, 1]
        _, completion_mask = pad(rollout.completion_ids, model.device)  # [N, T]
        loss_mask = completion_mask.clone()  # [N, T]
        if args.mask_truncated:
            loss_mask[torch.tensor(rollout.truncated, dtype=torch.bool, device=model.device)] = False
        batch = {"prompt_ids": rollout.prompt_ids, "completion_ids": rollout.completion_ids, "advantages": advantages,
                 "completion_mask": completion_mask, "loss_mask": loss_mask,
                 "rollout_logprobs": pad_values(rollout.logprobs, completion_mask)}  # fmt: skip

        # --- 3 update
        for group in optimizer.param_groups:
            group["lr"] = runtime.learning_rate(args, step)
        scoring = (rollout.prompt_ids, rollout.completion_ids, args.temperature, args.micro_batch_tokens)
        if args.minibatches * args.epochs > 1:
            batch["old_logprobs"], _ = score_all(model, *scoring)  # [N, T], before the first of several updates
        if reference is not None:
            batch["ref_logprobs"], _ = score_all(reference, *scoring)  # [N, T]
        sums, grad_norms = Counter(), []
        rows_per_update = max(1, math.ceil(len(rewards) / args.minibatches)) * G
        for first in list(range(0, rewards.numel(), rows_per_update)) * args.epochs:
            update = accumulate_gradients(model, batch, slice(first, first + rows_per_update), args)
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
        last = step == args.steps or state["tokens"] >= budget
        if step % args.eval_every == 0 or last:
            record |= measure("eval", "dev", args.eval_problems)
            dev = record[f"eval/{task.name}/avg@{args.eval_samples}"]
            if dev > state["best"]:
                state["best"] = dev
                runtime.save_model(args.out_dir / "best", model, tokenizer)
        run.log(record)
        run.sample(step, rollout, advantages)
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
