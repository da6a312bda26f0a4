r"""Guide: a hint where every completion failed, and a gradient for the prompt without it (Guide-GRPO, arXiv 2506.13923).

    unguided group, o ~ pi_old(. | q):      loss_it = -min(ratio_it A_i, clip(ratio_it, 1 - clip_low, 1 + clip_high) A_i)
    all of them wrong, o ~ pi_old(. | q,h): loss_it = -A_i ratio_it / (ratio_it + gamma)

    ratio_it = pi(o_it | q, o_i<t) / pi_old(o_it | the prompt that sampled it, o_i<t)
    gamma    = 0.9 quantile of the guided tokens' ratios in the optimizer step's batch, without gradient

What changes against grpo.py, numbered here and where it happens:
[1] Where all completions of a prompt are wrong, a fresh group is sampled with the problem's hint in the prompt. It takes the
    failed group's place, with advantages of its own.
[2] The importance correction: the denominator of the ratio is the policy that sampled, with the hint, the numerator the policy
    that is wanted, without. A right completion teaches nothing about how to find it unless the plain prompt makes it likelier.
[3] Policy shaping: guided ratios can be anything, so they are not clipped but squeezed into ratio / (ratio + gamma).
    A guided token's gradient is then scaled by ratio gamma / (ratio + gamma)^2, at most a quarter of another's at ratio 1.
[4] Groups without differences, guided or not, are dropped, and further problems sampled. No KL term, no reference model.

Deviations from the paper and its released code, tagged again where they happen:
[D1] gamma is taken over the valid guided tokens of the whole optimizer step; the code takes it in each sequence, padding included.
[D2] Surplus groups are dropped, not kept for the next step, so that a step is a pure function of its number; after max_refills
     rounds the step trains on the groups it has.
[D3] Every failed prompt is guided; the code rounds their number to the number of GPUs, and guides all prompts of a batch in which
     no group has a signal.
[D4] One update per batch (the default); the code makes two (--minibatches 2).
[D5] The wording around the hint is ours (--hint-template).
[D6] The paper's ratio is a token's. The exact correction of a completion is the product of its ratios (--correction sequence):
     centred, unshaped, unclipped and with the constant aggregation, its expected gradient is (G-1)/G times that of the reward
     without hint, over max_new_tokens. The token ratio's is so for completions of one token only; for longer ones it is biased.
     Over all completions of two tokens of ten random models (tests/test_guide.py) it lies off by 0.36 of the exact gradient's length
     on average (at most 0.56), and without correction by 0.67 (at most 1.73), and by more in 8 of them.

    python guide.py                             on the embedded model: test avg@16 0.048 -> 0.856 (seed 0), 9 minutes on one CPU
                                                thread
    python guide.py --trigger never             Filter-GRPO: groups without differences dropped, no hints

Letters in shapes: B prompts, G completions of each (a group), N = B*G rows, T completion tokens. Rows are prompt-major:
rows i*G .. i*G+G-1 belong to prompt i. Masks come from lengths; EOS is inside the mask when the completion ended by itself.
"""

import math
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from zlib import crc32

import torch
import tyro

import runtime
from distributed import clip_gradients, gather_weights, total
from eval import evaluate
from rollout import (
    Rollout,
    completion_seed,
    encode_prompt,
    make_sampler,
    micro_batches,
    pad,
    pad_values,
    push_weights,
    sample_rollout,
    score,
    score_all,
)
from tasks import Problem, hint_key, load_hints, load_task, reveals

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
    trigger: Literal["all_wrong", "never", "below", "always"] = "all_wrong"
    """which prompts get a hint: those without a right completion, none (Filter-GRPO), those at or below --trigger-accuracy, or all"""
    trigger_accuracy: float = 0.25
    """of --trigger below: the highest accuracy of a group that gets a hint"""
    correction: Literal["token", "sequence", "none", "keep_hint"] = "token"
    """of guided completions. token: pi_old is taken under the prompt with the hint (Guide); sequence: and the ratio is the product
    over the completion; none: pi_old under the plain prompt, as if that had sampled them; keep_hint: train on the prompt with the hint.
    The last two are shaped too, unless --shaping says otherwise"""
    shaping: Literal["quantile", "clip", "none"] = "quantile"
    """of guided tokens' ratios: ratio / (ratio + gamma), PPO's clip, or as they are"""
    gamma_quantile: float = 0.9
    """gamma is this quantile of the guided ratios"""
    group: Literal["replace", "join"] = "replace"
    """the guided group takes the failed one's place, or both make one group of 2G"""
    hints: Path | None = None
    """file of {"prompt": ..., "hint": ...} lines, as hints.py makes it; without one, the hints that the task's problems carry"""
    hint_template: str = "{prompt}\nHint: {hint}"
    """the user turn of a guided prompt"""
    max_refills: int = 10
    """rounds of further sampling before a step trains on the groups it has"""
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
    return centred.masked_fill(no_signal, 0.0)  # rounding in the mean, divided by 1e-6, would not be 0


def clipped_surrogate(logprobs, old_logprobs, advantages, clip_low: float, clip_high: float) -> torch.Tensor:
    """PPO's pessimistic loss per token, -min(ratio A, clip(ratio) A): logprobs [N, T], advantages [N, 1] -> [N, T].

    The gradient vanishes only where a clipped ratio already moved the way the advantage asks for.
    """
    ratio = torch.exp(logprobs - old_logprobs)  # [N, T]
    return -torch.min(ratio * advantages, ratio.clamp(1 - clip_low, 1 + clip_high) * advantages)


def shaped_surrogate(logprobs, old_logprobs, advantages, gamma: float | None) -> torch.Tensor:
    """[3] Loss of guided tokens, -A ratio / (ratio + gamma), or -A ratio without a gamma: logprobs [N, T], advantages [N, 1] -> [N, T].

    The gradient in log pi is -A gamma ratio / (ratio + gamma)^2: largest, A / 4, where the ratio is gamma, less on both sides.
    """
    ratio = torch.exp(logprobs - old_logprobs)  # [N, T]
    return -advantages * (ratio if gamma is None else ratio / (ratio + gamma))


def shaping_gamma(ratios: torch.Tensor, quantile: float) -> float:
    """gamma: the quantile of the guided tokens' ratios [M], interpolated linearly, at least 1e-4.

    >>> round(shaping_gamma(torch.tensor([5.0, 1.0, 3.0, 2.0, 4.0]), 0.9), 4)
    4.6
    """
    return max(1e-4, torch.quantile(ratios, quantile).item())


def sequence_denominator(logprobs, old_logprobs) -> torch.Tensor:
    """[D6] What to subtract from logprobs so that the ratio of every token is that of its whole completion, the product of the
    tokens' ratios, and its gradient the token's own times it: [N, T] each, zero in the padding -> [N, T], without gradient."""
    return (logprobs - (logprobs - old_logprobs).sum(1, keepdim=True)).detach()


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


def guided_ratios(model, batch: dict, rows: slice, args: Args) -> torch.Tensor:
    """Ratios [n, T] of the guided completions among `rows`, zero elsewhere, from one pass without gradient over those alone."""
    guided = batch["guided"][rows, 0].nonzero().squeeze(1).tolist()
    old_logprobs, mask = batch["old_logprobs"][rows][guided], batch["completion_mask"][rows][guided]  # [g, T]
    prompt_ids, completion_ids = ([batch[name][rows][i] for i in guided] for name in ("prompt_ids", "completion_ids"))
    logprobs, _ = score_all(model, prompt_ids, completion_ids, args.temperature, args.micro_batch_tokens)
    logprobs = torch.nn.functional.pad(logprobs, (0, mask.shape[1] - logprobs.shape[1]))  # [g, T]
    if args.correction == "sequence":
        old_logprobs = sequence_denominator(logprobs, old_logprobs)
    ratios = torch.zeros_like(batch["old_logprobs"][rows])
    ratios[guided] = torch.exp(logprobs - old_logprobs) * mask
    return ratios


def accumulate_gradients(model, batch: dict, rows: slice, args: Args) -> Counter:
    """Backward pass of one optimizer step's loss over `rows` of the sampled batch, micro-batch by micro-batch.

    batch holds lists prompt_ids (those that are trained: plain) and completion_ids [N] and tensors advantages and guided [N, 1],
    completion_mask, loss_mask, rollout_logprobs and, where they are needed, old_logprobs [N, T]. Returns sums for the log.
    """
    gather_weights(model)
    sums = Counter()
    weights = torch.zeros_like(batch["rollout_logprobs"])  # [N, T], made before the split so that it does not depend on it
    weights[rows] = AGGREGATIONS[args.aggregation](batch["loss_mask"][rows], args.max_new_tokens)
    gamma, guided_tokens = None, batch["loss_mask"][rows] & batch["guided"][rows]  # [n, T]
    if guided_tokens.any():
        batch["ratios"][rows] = guided_ratios(model, batch, rows, args)  # [n, T], kept for the log
        if args.shaping == "quantile":
            gamma = shaping_gamma(batch["ratios"][rows][guided_tokens], args.gamma_quantile)  # [3], [D1]
            sums.update(gamma=gamma, guided_updates=1)
    for part in micro_batches(batch["prompt_ids"], batch["completion_ids"], args.micro_batch_tokens, rows):
        logprobs, entropy = score(model, batch["prompt_ids"][part], batch["completion_ids"][part], args.temperature)  # [n, T']
        width = logprobs.shape[1]
        cut = {name: value[part, :width] for name, value in batch.items() if torch.is_tensor(value)}  # [n, T']
        mask, weight = cut["completion_mask"], weights[part, :width]
        old_logprobs = cut.get("old_logprobs", logprobs.detach())  # with one update per batch pi_old is the current policy

        denominators = old_logprobs
        if args.correction == "sequence":  # [D6]
            denominators = torch.where(cut["guided"], sequence_denominator(logprobs, old_logprobs), old_logprobs)
        loss_per_token = clipped_surrogate(logprobs, denominators, cut["advantages"], args.clip_low, args.clip_high)
        clipped = loss_per_token > -torch.exp(logprobs - denominators) * cut["advantages"]  # the min took the clipped term
        if args.shaping != "clip":
            guided_loss = shaped_surrogate(logprobs, denominators, cut["advantages"], gamma)
            loss_per_token, clipped = torch.where(cut["guided"], guided_loss, loss_per_token), clipped & ~cut["guided"]
        if args.importance_cap is not None:
            loss_per_token = loss_per_token * truncated_importance(old_logprobs, cut["rollout_logprobs"], args.importance_cap)
        policy_loss = total_loss = (loss_per_token * weight).sum()
        total_loss.backward()

        gap = (old_logprobs - cut["rollout_logprobs"]).abs() * mask
        sums.update(tokens=mask.sum().item(), gap=gap.sum().item(), entropy=(entropy * mask).sum().item(),
                    clipped=(clipped & mask).sum().item(), policy_loss=policy_loss.item(), total_loss=total_loss.item())  # fmt: skip
    return total(sums)


def problem_indices(args: Args, step: int, round: int) -> list[int]:
    """Which training problems a round of a step samples: a pure function, so resuming needs no data state. Round 0 has those of
    grpo.py; refills start far away, in a finite set by equal shares of it."""
    far = max(1, args.train_size // (args.max_refills + 1)) if args.train_size else 1_000_000_007
    first = (step - 1) * args.prompts_per_step + round * far
    return [index % args.train_size if args.train_size else index for index in range(first, first + args.prompts_per_step)]


def stated_hint(problem: Problem, hints: dict[str, str] | None) -> str | None:
    """The problem's hint, or the one that a file has for it."""
    return problem.hint if hints is None else hints.get(hint_key(problem.prompt))


def hint_of(problem: Problem, hints: dict[str, str] | None) -> str | None:
    """The hint that may be shown: none where there is none, or one that gives the answer away."""
    hint = stated_hint(problem, hints)
    return None if not hint or reveals(hint, problem.answer) else hint


def check_hints(task, args: Args, hints: dict[str, str] | None) -> str:
    """Refuse, before anything is written, a template without its places and a task without a hint that may be shown; else say how
    many of the first problems have one."""
    try:
        filled = args.hint_template.format(prompt="the prompt", hint="the hint")
    except (KeyError, IndexError, ValueError):
        filled = ""
    if "the prompt" not in filled or "the hint" not in filled:
        runtime.fail(f"--hint-template {args.hint_template!r}: must contain {{prompt}} and {{hint}}, and other braces doubled")
    if args.trigger == "never":
        return "no hints are shown"
    count = min(1000, args.train_size or 1000, task.size("train") if hasattr(task, "size") else 1000)
    problems = [task.problem("train", index, args.seed) for index in range(count)]
    usable = sum(hint_of(problem, hints) is not None for problem in problems)
    missing = sum(not stated_hint(problem, hints) for problem in problems)
    found = f"{usable} of the first {count} training problems have a hint that may be shown, {missing} have none, and that of " \
            f"{count - usable - missing} contains the answer"  # fmt: skip
    if not usable:
        flag = f"--task {args.task}" if hints is None else f"--hints {args.hints}"
        runtime.fail(f"{flag}: {found}; make hints with hints.py, or train without them: --trigger never")
    return found


def guided_groups(sample, problems: list[Problem], hints: dict[str, str] | None, args: Args):
    """[1] One round: every problem without its hint, then those that the trigger picks with it.

    `sample(places, prompts, first)` samples G completions of each prompt, from the seeds of samples first .. first+G-1 of those
    problems. Returns what was sampled, in blocks of G rows; for each block whether the hint was shown; for each problem the
    blocks of its group; and how many problems went without a hint because there is none that may be shown.
    """
    places, own = range(len(problems)), [hint_of(problem, hints) for problem in problems]
    plain_prompts, groups = [problem.prompt for problem in problems], [(place,) for place in places]
    hinted_prompts = [args.hint_template.format(prompt=plain, hint=hint) if hint else plain
                      for plain, hint in zip(plain_prompts, own)]  # [D5]
    if args.trigger == "always" and args.group == "replace":  # what would be replaced need not be sampled
        return sample(places, hinted_prompts, 0), [hint is not None for hint in own], groups, own.count(None)
    plain = sample(places, plain_prompts, 0)
    limit = {"never": -1.0, "all_wrong": 0.0, "below": args.trigger_accuracy, "always": 1.0}[args.trigger]
    picked = [place for place, right in enumerate(plain.correct(args.group_size)) if right / args.group_size <= limit]
    shown = [place for place in picked if own[place]]  # [D3]
    if not shown:
        return plain, [False] * len(problems), groups, len(picked)
    guided = sample(shown, [hinted_prompts[place] for place in shown], args.group_size)
    for block, place in enumerate(shown, start=len(problems)):
        groups[place] = (place, block) if args.group == "join" else (block,)
    return plain + guided, [False] * len(problems) + [True] * len(shown), groups, len(picked) - len(shown)


def guide_record(batch: dict, sampled: Rollout, is_guided: list[bool], kept: list[tuple], sums: Counter, G: int) -> dict:
    """What guide.py logs beside the common metrics; None where a step has no guided group."""
    shown = [right for right, guided in zip(sampled.correct(G), is_guided) if guided]
    record = {
        "guide/frac_guided": sum(any(is_guided[block] for block in group) for group in kept) / max(1, len(kept)),
        "guide/guided_success": sum(shown) / (len(shown) * G) if shown else None,
        "guide/gamma": sums["gamma"] / sums["guided_updates"] if sums["guided_updates"] else None,
    }
    ratios = batch["ratios"][batch["loss_mask"] & batch["guided"]]
    for share in (0.1, 0.5, 0.9):
        record[f"guide/ratio_q{100 * share:.0f}"] = torch.quantile(ratios, share).item() if len(ratios) else None
    return record


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
    args.out_dir = args.out_dir or Path(f"runs/guide/{task.name}-seed{args.seed}")
    runtime.check_out_dir(args.out_dir, args.resume)
    model, tokenizer = runtime.load_model(args.model, args.activation_checkpointing, args.lora_rank)
    runtime.resolve_defaults(args, model, DEFAULTS)
    runtime.check_args(args)
    runtime.check_task(task, args)
    hints = None if args.hints is None else runtime.or_fail(load_hints, args.hints)
    hints_found = check_hints(task, args, hints)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=args.weight_decay, fused=True)
    sampler = sampler or make_sampler(args, model, runtime.eos_ids(model, tokenizer))
    run = runtime.Run("guide", args, task.name, model)
    state = {"step": 0, "tokens": 0, "best": -1.0, "skips_in_a_row": 0, "test_before": {}, "solved": []}
    state = (runtime.load_checkpoint(args.out_dir / "last", model, optimizer) if args.resume else None) or state
    run.start(state["step"])
    runtime.say(f"hints: {hints_found}")
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
        # --- 1 sample, with the hint where all are wrong, and again until there are enough groups to learn from  [1], [4]
        started = time.time()
        sampled, is_guided, kept = None, [], []  # everything sampled, in blocks of G rows; groups, as the numbers of their blocks
        rounds, without_hint, solved = 0, 0, set()
        while rounds == 0 or (len(kept) < args.prompts_per_step and rounds <= args.max_refills):
            problems = [task.problem("train", index, args.seed) for index in problem_indices(args, step, rounds)]

            def sample(places, prompts, first, step=step, round=rounds, problems=problems):
                seeds = [completion_seed(args.seed, step, place, round, first + i) for place in places for i in range(G)]
                return sample_rollout(sampler, tokenizer, task, [problems[place] for place in places], prompts, seeds, **sampling)

            part, hinted, groups, missing = guided_groups(sample, problems, hints, args)
            right = part.correct(G)  # [blocks]
            kept += [tuple(len(is_guided) + block for block in group) for group in groups
                     if 0 < sum(right[block] for block in group) < G * len(group)]  # fmt: skip
            solved |= {crc32(problem.prompt.encode()) for problem, count, guided in zip(part.problems, right, hinted)
                       if count and not guided}  # fmt: skip
            sampled, is_guided = part if sampled is None else sampled + part, is_guided + hinted
            rounds, without_hint = rounds + 1, without_hint + missing
        kept = kept[: args.prompts_per_step]  # [D2]
        rollout = sampled.select([block for group in kept for block in group])
        guided = torch.tensor([is_guided[block] for group in kept for block in group], dtype=torch.bool).repeat_interleave(G)[:, None]
        state["tokens"] += sampled.tokens
        started_training = time.time()

        # --- 2 reward and advantage
        rewards = rollout.rewards(G)  # [blocks, G]
        per_group = rewards.split([len(group) for group in kept])  # a joined group has two blocks
        advantages = torch.cat([torch.zeros(1, 0), *(group_advantages(part.view(1, -1), args.advantage) for part in per_group)], dim=1)
        advantages = advantages.view(-1, 1).to(model.device)  # [N, 1]
        _, completion_mask = pad(rollout.completion_ids, model.device)  # [N, T]
        loss_mask = completion_mask.clone()  # [N, T]
        if args.mask_truncated:
            loss_mask[torch.tensor(rollout.truncated, dtype=torch.bool, device=model.device)] = False
        plain_ids = [ids for problem in rollout.problems for ids in [encode_prompt(tokenizer, problem.prompt, args.system_prompt)] * G]
        batch = {"prompt_ids": rollout.prompt_ids if args.correction == "keep_hint" else plain_ids,
                 "completion_ids": rollout.completion_ids, "advantages": advantages, "guided": guided.to(model.device),
                 "completion_mask": completion_mask, "loss_mask": loss_mask,
                 "rollout_logprobs": pad_values(rollout.logprobs, completion_mask)}  # fmt: skip

        # --- 3 update
        for group in optimizer.param_groups:
            group["lr"] = runtime.learning_rate(args, step)
        if kept and (args.minibatches * args.epochs > 1 or guided.any()):  # [2], [D4]
            behaviour_ids = plain_ids if args.correction == "none" else rollout.prompt_ids
            batch["old_logprobs"], _ = score_all(model, behaviour_ids, rollout.completion_ids, args.temperature, args.micro_batch_tokens)
        if args.correction == "none" and guided.any():  # as if the plain prompt had sampled them
            batch["rollout_logprobs"] = torch.where(batch["guided"], batch["old_logprobs"], batch["rollout_logprobs"])
        batch["ratios"] = torch.zeros_like(batch["rollout_logprobs"])
        sums, grad_norms = Counter(), []
        sizes = [G * len(group) for group in kept]  # rows of each group; a joined one has two blocks
        groups_per_update = max(1, math.ceil(len(kept) / args.minibatches))
        for first in list(range(0, len(kept), groups_per_update)) * args.epochs:
            rows = slice(sum(sizes[:first]), sum(sizes[: first + groups_per_update]))
            update = accumulate_gradients(model, batch, rows, args)
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
        record = runtime.step_record(step, state["tokens"], sampled, G, sums, grad_norms, runtime.learning_rate(args, step), times)
        record |= guide_record(batch, sampled, is_guided, kept, sums, G)
        record |= {"guide/rounds": rounds, "guide/without_hint": without_hint, "guide/first_solved": len(solved - set(state["solved"]))}
        state["solved"] = sorted(solved | set(state["solved"]))
        last = step == args.steps or state["tokens"] >= budget
        if step % args.eval_every == 0 or last:
            record |= measure("eval", "dev", args.eval_problems)
            dev = record[f"eval/{task.name}/avg@{args.eval_samples}"]
            if dev > state["best"]:
                state["best"] = dev
                runtime.save_model(args.out_dir / "best", model, tokenizer)
        run.log(record)
        if kept:
            run.sample(step, rollout, advantages, guided=guided[:G, 0].tolist())
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
