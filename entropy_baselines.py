r"""Six other ways to keep the entropy of a policy from collapsing, on the Dr. GRPO that siren.py stands on.

    python entropy_baselines.py --method naive_bonus            on the embedded model
    python entropy_baselines.py --method kl_cov --minibatches 4

--method, with h_it the entropy of pi(. | s_it) over the full vocabulary and H the mean of h over a completion's tokens, then over
completions, as in siren.py (`siren.py --no-anchor --nucleus-p 1 --tau 0` is naive_bonus, up to rounding):
[1] naive_bonus           loss - bonus H.
[2] adaptive_bonus        the same, where after every update bonus <- max(0, bonus + bonus_rate (target - H)); the target is a
                          share of H of the first batch. A Lagrange multiplier, as in SAC (arXiv 1812.05905, section 5).
[3] entropy_advantage     A_it <- A_i + min(shape_alpha h_it, |A_i| / shape_kappa), h without gradient (arXiv 2506.14758, eq. 4).
[4] high_entropy_tokens   the policy gradient of the token_fraction of tokens with the highest h alone: "80/20" (2506.01939).
[5] clip_cov              a random cov_fraction of the tokens whose covariance lies between two bounds gets no policy gradient;
[6] kl_cov                the cov_fraction of the tokens with the highest covariance gets kl_coef |log pi - log pi_old| added to
                          its loss, and no ratio is clipped (both arXiv 2505.22617). cov_it = (A_i - mean A) (log pi_it - mean log pi).

Deviations, tagged again where they happen:
[D1] All methods stand on Dr. GRPO, so that nothing but the method differs (their papers: DAPO or GRPO, with other clips, means
     over tokens and lengths; the code of [5] clips at 0 and 2, here PPO's clip stays). Advantages are not divided by a std, so
     shape_alpha weighs more than in the paper of [3], and covariances are smaller than in that of [5] and [6]: so is the lower of
     the default bounds. Entropies are of all that was sampled, --mask-truncated or not. H in [1] is SIREN's mean, so a bonus
     weighs more than in SIREN's comparison, whose code divides the entropy by max_new_tokens too. A target in shares of the
     starting entropy [2] is ours.
[D2] 80/20 divides by token_fraction too, as if by the tokens that are left (its authors' code: by their number).
[D3] Thresholds and means are over the tokens that one optimizer step sees, in one pass without gradient (authors' code: over a
     micro-batch).
[D4] kl_cov does nothing in the first update of a batch, where log pi is log pi_old: give it --minibatches of 2 or more. (In the
     authors' code the two differ by rounding there, and the gradient of |log pi - log pi_old| is 1 or -1 however small it is.)
[D5] SIREN's comparison takes kappa 2 in the first version of its code and 1 in the second (here 2, as in the paper of [3]), the
     highest entropies of each completion for 80/20 (its paper and here: of the batch), and a naive bonus of 0.0001, 0.001 or
     0.005 in different places. In its first version SIREN's square overwrites the bonus of every other method, so the comparison
     in the paper cannot be made again with it.

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
    "tiny": dict(lr=3e-4, warmup_steps=5, steps=80, prompts_per_step=16, group_size=16, max_new_tokens=160,
                 micro_batch_tokens=32768, eval_every=20, eval_problems=64, eval_samples=16, test_problems=128,
                 bonus=0.003, bonus_rate=1e-3, cov_fraction=0.01),
    "real": dict(lr=1e-6, warmup_steps=5, steps=500, prompts_per_step=128, group_size=8, max_new_tokens=3072,
                 micro_batch_tokens=runtime.MICRO_BATCH_TOKENS, eval_every=20, eval_problems=128, eval_samples=4, test_problems=500,
                 bonus=1e-3, bonus_rate=1e-3, cov_fraction=2e-4),
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

    method: Literal["naive_bonus", "adaptive_bonus", "entropy_advantage", "high_entropy_tokens", "clip_cov", "kl_cov"] = "naive_bonus"
    """which of the six"""
    bonus: float | None = None
    """naive_bonus: weight of the entropy in the loss; adaptive_bonus: its first value"""
    bonus_rate: float | None = None
    """adaptive_bonus: how fast the weight follows the distance from the target, per update and nat"""
    target_share: float = 1.0
    """adaptive_bonus: the target, as a share of the starting model's entropy"""
    shape_alpha: float = 0.4
    """entropy_advantage: weight of a token's entropy in its advantage"""
    shape_kappa: float = 2.0
    """entropy_advantage: at most the advantage's absolute value divided by this is added; above 1 no sign can change"""
    token_fraction: float = 0.2
    """high_entropy_tokens: share of tokens that are trained on"""
    cov_fraction: float | None = None
    """clip_cov and kl_cov: share of all tokens that get the method's treatment (their paper: 2e-4; for kl_cov on a 7B model 2e-3)"""
    cov_low: float = 0.1
    """clip_cov: least covariance of a token that may lose its gradient (the paper, with standardised advantages: 1)"""
    cov_high: float = 5.0
    """clip_cov: greatest"""
    kl_coef: float = 1.0
    """kl_cov: weight of the KL penalty"""

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
    """output folder (default runs/entropy_baselines/<method>-<task>-seed<seed>)"""
    resume: bool = False
    """continue the run in --out-dir from its last checkpoint"""
    track: Literal["none", "wandb", "tensorboard"] = "none"
    """also send the metrics there"""


# --- the mathematics ------------------------------------------------------------------------------------------------------


def adapted(bonus: float, rate: float, entropy: float, target: float) -> float:
    """The next weight of an entropy bonus that holds the entropy at its target: more when it is below, never negative. [2]"""
    return max(0.0, bonus + rate * (target - entropy))


def shaped_advantages(advantages: torch.Tensor, entropies: torch.Tensor, alpha: float, kappa: float) -> torch.Tensor:
    """min(alpha h, |A| / kappa) on top of A: advantages [N, 1], entropies [N, T] -> [N, T]. [3]

    >>> shaped_advantages(torch.tensor([[-0.25]]), torch.tensor([[1.2]]), 0.4, 2.0)
    tensor([[-0.1250]])
    """
    return advantages + torch.min(alpha * entropies.detach(), advantages.abs() / kappa)


def top_tokens(values: torch.Tensor, mask: torch.Tensor, count: int) -> torch.Tensor:
    """The `count` tokens of the mask with the highest values, bool [N, T]; of equal ones, the first. [4], [6]"""
    order = values.masked_fill(~mask, -torch.inf).flatten().sort(descending=True, stable=True).indices
    return torch.zeros_like(mask).view(-1).scatter(0, order[:count], True).view_as(mask) & mask


def covariances(advantages: torch.Tensor, logprobs: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Each token's part of the covariance of advantage and log-probability over the batch: [N, 1], [N, T] -> [N, T]. [5], [6]

    Where it is high, a likely token is being made likelier: that is where entropy goes.
    """
    mean = lambda values: (values * mask).sum() / mask.sum().clamp(min=1)  # noqa: E731
    advantages = advantages.expand_as(logprobs)
    return (advantages - mean(advantages)) * (logprobs - mean(logprobs)) * mask


def random_tokens(candidates: torch.Tensor, mask: torch.Tensor, count: int, seed: int) -> torch.Tensor:
    """`count` of the candidates, drawn without replacement, bool [N, T]. The draw is the same however the batch is padded. [5]"""
    draw = torch.zeros(mask.shape, device=mask.device)
    draw[mask] = torch.rand(int(mask.sum()), generator=torch.Generator().manual_seed(seed)).to(mask.device)
    return top_tokens(draw, candidates, count)


def completion_mean(mask: torch.Tensor) -> torch.Tensor:
    """Weights of a mean over a completion's tokens, then over completions. [N, T] -> [N, T]"""
    return mask / mask.sum(dim=1, keepdim=True).clamp(min=1) / mask.shape[0]


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


def logprob_and_live_entropy(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """As `logprob_and_entropy`, but the entropy carries gradient."""
    logprobs = torch.log_softmax(logits, dim=-1)
    return logprobs.gather(-1, targets[:, None]).squeeze(1), -(logprobs.exp() * logprobs).sum(-1)


def touched_tokens(model, batch: dict, rows: slice, args: Args, seed: int) -> torch.Tensor:
    """The tokens of `rows` that methods 4 to 6 treat in another way, bool [n, T]: one pass without gradient."""  # [D3]
    mask, advantages = batch["loss_mask"][rows], batch["advantages"][rows]
    prompt_ids, completion_ids = batch["prompt_ids"][rows], batch["completion_ids"][rows]
    numbers = score_all(model, prompt_ids, completion_ids, args.temperature, args.micro_batch_tokens)
    logprobs, entropies = (torch.nn.functional.pad(part, (0, mask.shape[1] - part.shape[1])) for part in numbers)  # [n, T]
    if args.method == "high_entropy_tokens":
        return mask & ~top_tokens(entropies, mask, math.ceil(args.token_fraction * mask.sum().item()))
    covariance = covariances(advantages, logprobs, mask)  # [n, T]
    count = max(1, int(args.cov_fraction * mask.sum().item()))
    if args.method == "kl_cov":
        return top_tokens(covariance, mask, count)
    old_logprobs = batch["old_logprobs"][rows] if "old_logprobs" in batch else logprobs
    clipped = clipped_surrogate(logprobs, old_logprobs, advantages, args.clip_low, args.clip_high) > (
        -torch.exp(logprobs - old_logprobs) * advantages
    )
    return random_tokens(mask & ~clipped & (covariance > args.cov_low) & (covariance < args.cov_high), mask, count, seed)


def accumulate_gradients(model, batch: dict, rows: slice, args: Args, bonus: float, seed: int) -> Counter:
    """Backward pass of one optimizer step's loss over `rows` of the sampled batch, micro-batch by micro-batch.

    batch holds lists prompt_ids and completion_ids [N] and tensors advantages [N, 1], completion_mask, loss_mask,
    rollout_logprobs and (with several updates) old_logprobs [N, T]. `bonus` is the weight of the entropy in the loss, `seed` that of
    clip_cov's draw. Returns sums for the log.
    """
    gather_weights(model)
    sums = Counter()
    weights = torch.zeros_like(batch["rollout_logprobs"])  # [N, T], made before the split so that it does not depend on it
    weights[rows] = constant(batch["loss_mask"][rows], args.max_new_tokens)
    entropy_weights, touched = torch.zeros_like(weights), torch.zeros_like(batch["loss_mask"])  # [N, T]
    entropy_weights[rows] = completion_mean(batch["completion_mask"][rows])
    if args.method in ("high_entropy_tokens", "clip_cov", "kl_cov"):
        touched[rows] = touched_tokens(model, batch, rows, args, seed)
    if args.method in ("high_entropy_tokens", "clip_cov"):
        weights = weights * ~touched  # no policy gradient there  [4], [5]
    if args.method == "high_entropy_tokens":
        weights = weights / args.token_fraction  # [D2]
    clips = (math.inf, math.inf) if args.method == "kl_cov" else (args.clip_low, args.clip_high)  # [D1]
    for part in micro_batches(batch["prompt_ids"], batch["completion_ids"], args.micro_batch_tokens, rows):
        logprobs, entropy = score(model, batch["prompt_ids"][part], batch["completion_ids"][part], args.temperature,
                                  logprob_and_live_entropy if bonus else logprob_and_entropy)  # [n, T'], fmt: skip
        width = logprobs.shape[1]
        cut = {name: value[part, :width] for name, value in batch.items() if torch.is_tensor(value)}  # [n, T']
        mask, weight = cut["completion_mask"], weights[part, :width]
        old_logprobs = cut.get("old_logprobs", logprobs.detach())  # with one update per batch pi_old is the current policy
        advantages = cut["advantages"]  # [n, 1]
        if args.method == "entropy_advantage":
            advantages = shaped_advantages(advantages, entropy, args.shape_alpha, args.shape_kappa)  # [n, T'], [3]

        loss_per_token = clipped_surrogate(logprobs, old_logprobs, advantages, *clips)
        clipped = loss_per_token > -torch.exp(logprobs - old_logprobs) * advantages  # the min took the clipped term
        if args.method == "kl_cov":
            loss_per_token = loss_per_token + args.kl_coef * (logprobs - old_logprobs).abs() * touched[part, :width]  # [6], [D4]
        if args.importance_cap is not None:
            loss_per_token = loss_per_token * truncated_importance(old_logprobs, cut["rollout_logprobs"], args.importance_cap)
        policy_loss = (loss_per_token * weight).sum()
        mean_entropy = (entropy * entropy_weights[part, :width]).sum()  # this part's share of H
        total_loss = policy_loss - bonus * mean_entropy  # [1], [2]
        total_loss.backward()

        gap = (old_logprobs - cut["rollout_logprobs"]).abs() * mask
        sums.update(tokens=mask.sum().item(), gap=gap.sum().item(), entropy=(entropy * mask).sum().item(),
                    clipped=(clipped & mask).sum().item(), policy_loss=policy_loss.item(), total_loss=total_loss.item(),
                    mean_entropy=mean_entropy.item(), touched=touched[part].sum().item())  # fmt: skip
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
    args.out_dir = args.out_dir or Path(f"runs/entropy_baselines/{args.method}-{task.name}-seed{args.seed}")
    runtime.check_out_dir(args.out_dir, args.resume)
    model, tokenizer = runtime.load_model(args.model, args.activation_checkpointing, args.lora_rank)
    runtime.resolve_defaults(args, model, DEFAULTS)
    runtime.check_args(args)
    if args.method == "kl_cov" and args.minibatches * args.epochs == 1:  # [D4]
        runtime.fail("--method kl_cov: does nothing with one update per batch, where pi is pi_old; give --minibatches 2 or --epochs 2")
    if args.method == "clip_cov" and not -math.inf < args.cov_low < args.cov_high:
        runtime.fail(f"--cov-low {args.cov_low:g}: must be a number below --cov-high {args.cov_high:g}, or no token can be drawn")
    runtime.check_task(task, args)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=args.weight_decay, fused=True)
    sampler = sampler or make_sampler(args, model, runtime.eos_ids(model, tokenizer))
    run = runtime.Run("entropy_baselines", args, task.name, model)
    state = {"step": 0, "tokens": 0, "best": -1.0, "skips_in_a_row": 0, "test_before": {},
             "bonus": args.bonus if args.method in ("naive_bonus", "adaptive_bonus") else 0.0, "entropy_at_start": None}  # fmt: skip
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
                 "completion_mask": completion_mask, "loss_mask": loss_mask,
                 "rollout_logprobs": pad_values(rollout.logprobs, completion_mask)}  # fmt: skip

        # --- 3 update
        for group in optimizer.param_groups:
            group["lr"] = runtime.learning_rate(args, step)
        scoring = (rollout.prompt_ids, rollout.completion_ids, args.temperature, args.micro_batch_tokens)
        if args.minibatches * args.epochs > 1:
            batch["old_logprobs"], _ = score_all(model, *scoring)  # [N, T], before the first of several updates
        if state["entropy_at_start"] is None:
            state["entropy_at_start"] = (score_all(model, *scoring)[1] * completion_mean(completion_mask)).sum().item()  # [2]
        sums, grad_norms = Counter(), []
        rows_per_update = max(1, math.ceil(len(rewards) / args.minibatches)) * G
        for first in list(range(0, rewards.numel(), rows_per_update)) * args.epochs:
            current = dict(batch)
            if args.method == "kl_cov" and not grad_norms:
                del current["old_logprobs"]  # pi is pi_old, and |log pi - log pi_old| would be rounding  [D4]
            update = accumulate_gradients(model, current, slice(first, first + rows_per_update), args, state["bonus"],
                                          completion_seed(args.seed, step, len(grad_norms)))  # fmt: skip
            sums.update(update)
            if math.isfinite(update["total_loss"]):
                runtime.check_gap(update["gap"] / update["tokens"], args)
            grad_norms.append(clip_gradients(model, args.max_grad_norm))
            skipped = runtime.step_or_skip(optimizer, grad_norms[-1], update["total_loss"], state, run, rollout)
            sums["skipped"] += skipped
            optimizer.zero_grad()  # no memory for gradients while completions are sampled
            if args.method == "adaptive_bonus" and not skipped:
                target = args.target_share * state["entropy_at_start"]
                state["bonus"] = adapted(state["bonus"], args.bonus_rate, update["mean_entropy"], target)

        # --- 4 sync
        started_sync = time.time()
        push_weights(sampler, model, tokenizer, task, args)

        # --- 5 log, evaluate, save
        times = {"rollout": started_training - started, "train": started_sync - started_training, "sync": time.time() - started_sync}
        record = runtime.step_record(step, state["tokens"], rollout, G, sums, grad_norms, runtime.learning_rate(args, step), times)
        record |= {"baseline/entropy": sums["mean_entropy"] / len(grad_norms), "baseline/bonus": state["bonus"],
                   "baseline/frac_touched": sums["touched"] / sums["tokens"]}  # fmt: skip
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
