r"""h1: long horizons from short problems (arXiv 2510.07312). Read it as `diff grpo.py h1_curriculum.py`.

    chain of horizon h:   y_1 = f_1,  y_j = f_j(y_j-1)  for j = 2..h          all h problems in one prompt, y_h is graded
    stage h = 1..H:       Dr. GRPO on chains of horizon h alone; its best checkpoint starts stage h + 1

A policy that is right on each step with probability p solves a chain with p^h. Its reward, and with it the signal of a policy
gradient, falls exponentially with h; but once chains of h - 1 steps are learned, one of h is a single step further.

Dr. GRPO (arXiv 2503.20783) is `grpo.py --advantage centred --aggregation constant`, and `--schedule only_short` equals it on chains
of one step to the last bit. What changes against it, numbered here and where it happens:
[1] Problems of a step have the horizons that the schedule asks for; tasks.py composes them.
[2] The curriculum: a stage ends after --steps-per-stage steps, or as soon as its horizon's accuracy on dev reaches --advance-at;
    the next one starts from its best checkpoint with a new optimizer, as a run of its own would. A stage is scored on dev at its end
    and every --eval-every steps before that.
[3] Each horizon can have its own longest completion; a batch of several horizons has that of the longest.
[4] Dev and test are problems of all horizons in turn, and each horizon also has a score of its own.

The schedules it is compared with use the same number of samples: only_short (h = 1), only_long (h = H), uniform_mix (h drawn from
1..H), and two that move from easy to hard without stages: AdaRFT (arXiv 2504.05520) and E2H (arXiv 2506.06632).

Deviations from the paper, whose code was not at hand, tagged again where they happen:
[D1] The reward is the answer's correctness, as the paper's argument has it. Its runs add terms for the format; --format-reward does
     so too, written for \boxed{} instead of <reasoning> and <answer> tags.
[D2] Numbers that a chain hands on are whole and at least 2 (the paper: decimals, unrounded). Beyond six, placeholders go on after
     U to Z with B, C, D ... Both are in tasks.py: `ComposedTask` and PLACEHOLDERS.
[D3] The best checkpoint of a stage is the one with the highest accuracy on dev over all horizons (the paper: over 1 to 3, by hand).
[D4] Learning rate, clip range and KL are not known: ours are those of grpo.py, without a KL term.
[D5] AdaRFT and E2H take the horizon for the difficulty. E2H's time is the share of the steps or of the token budget that is used up,
     and its Gaussian has no floor under the probabilities.

    python h1_curriculum.py                                 on the embedded model: test avg@16 of chains of one to five steps 0.118
                                                            -> 0.787, of five 0.003 -> 0.725 (seed 0), 9 minutes on one CPU thread
    python h1_curriculum.py --schedule only_long            the same number of steps on chains of five alone

Letters in shapes: B prompts, G completions of each (a group), N = B*G rows, T completion tokens. Rows are prompt-major:
rows i*G .. i*G+G-1 belong to prompt i. Masks come from lengths; EOS is inside the mask when the completion ended by itself.
"""

import json
import math
import random
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
from tasks import Problem, load_task, number

DEFAULTS = {  # flags left at None: the embedded model, and real ones (batch, lr and length as in the papers of Dr. GRPO and SIREN)  [D4]
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
    """chain, gsm8k?horizon=1, gym:NAME?key=value&horizon=1, or jsonl:PATH with horizons (see tasks.py); the schedule sets the horizon"""
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

    schedule: Literal["curriculum", "only_short", "only_long", "uniform_mix", "adarft", "e2h_cosine", "e2h_gaussian"] = "curriculum"
    """which horizons are trained on, and when"""
    max_horizon: int = 5
    """H, the longest horizon that is trained on"""
    steps_per_stage: int | None = None
    """of the curriculum: steps of a stage (default: --steps divided by --max-horizon); the last one goes on to the end"""
    advance_at: float | None = None
    """of the curriculum: end a stage before that, once its horizon's avg@k on dev is at least this"""
    completion_budgets: tuple[int, ...] = ()
    """longest completions of horizon 1, 2, ... in training, and the constants that Dr. GRPO divides by; the last number holds for all
    longer ones (default: --max-new-tokens)"""
    format_reward: bool = False
    """add the paper's terms for the format to the reward"""
    clip_low: float = 0.2
    """the ratio is clipped below at 1 - clip_low"""
    clip_high: float = 0.2
    """the ratio is clipped above at 1 + clip_high"""
    mask_truncated: bool = False
    """leave completions that were cut out of the loss instead of scoring them"""
    importance_cap: float | None = None
    """weight tokens by min(pi_old / sampler, cap), for a sampler that differs from the trainer (2.0 is common)"""
    minibatches: int = 1
    """optimizer steps per pass over the sampled batch"""
    epochs: int = 1
    """passes over the sampled batch"""

    lr: float | None = None
    """peak learning rate of AdamW"""
    warmup_steps: int | None = None
    """steps of linear warm-up, in each stage of the curriculum anew; constant afterwards"""
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
    """train on this many problems of each horizon only, over and over"""
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


def draw_horizons(args: Args, step: int, state: dict) -> list[int]:
    """[1] The horizon of every prompt of a step, [B]: a pure function of the step and of what the checkpoint holds."""
    longest = args.max_horizon
    match args.schedule:
        case "curriculum":
            weights = one_horizon(state["stage"], longest)  # [2]
        case "only_short":
            weights = one_horizon(1, longest)
        case "only_long":
            weights = one_horizon(longest, longest)
        case "uniform_mix":
            weights = [1 / longest] * longest
        case "adarft":  # the horizon whose difficulty, (h - 1) / (H - 1) of 100, is closest to the target
            weights = one_horizon(1 + math.floor(state["target"] / 100 * (longest - 1) + 0.5), longest)
        case "e2h_cosine":
            weights = e2h_cosine(time_used(args, step, state["tokens"]), longest)
        case "e2h_gaussian":
            weights = e2h_gaussian(time_used(args, step, state["tokens"]), longest)
    rng = random.Random(f"{args.seed}/{step}/horizons")
    return rng.choices(range(1, longest + 1), weights, k=args.prompts_per_step)


def one_horizon(horizon: int, longest: int) -> list[float]:
    return [float(h == horizon) for h in range(1, longest + 1)]


def time_used(args: Args, step: int, tokens: int) -> float:
    """[D5] How much of the run is over before a step, from 0 to 1."""
    return min(1.0, max((step - 1) / args.steps, tokens / args.token_budget if args.token_budget else 0.0))


def e2h_cosine(time: float, levels: int) -> list[float]:
    """E2H's cosine schedule: probabilities that fall with the horizon at time 0 and rise with it at time 1, linearly in it.

    >>> [round(p, 3) for t in (0.0, 0.5, 1.0) for p in e2h_cosine(t, 2)]
    [0.667, 0.333, 0.5, 0.5, 0.333, 0.667]
    """
    alpha, total = 0.5 * (1 + math.cos(math.pi * time)), levels * (levels + 1) / 2
    return [(alpha * (levels - i) + (1 - alpha) * (i + 1)) / total for i in range(levels)]


def e2h_gaussian(time: float, levels: int, power: float = 0.5, sigma: float = 0.5) -> list[float]:
    """E2H's Gaussian schedule: weights round a horizon that moves from the first to the last as time ** power does.

    >>> [round(p, 3) for p in e2h_gaussian(0.25, 3)]
    [0.107, 0.787, 0.107]
    """
    mean = time**power * (levels - 1)
    weights = [math.exp(-((i - mean) ** 2) / (2 * sigma**2)) for i in range(levels)]
    return [weight / sum(weights) for weight in weights]


def adarft_target(target: float, accuracy: float, eta: float = 50.0, alpha: float = 2.0, beta: float = 0.5) -> float:
    """AdaRFT's target difficulty, 0 to 100, after a step: harder when more than beta of the completions were right.

    >>> adarft_target(0.0, 0.5), round(adarft_target(20.0, 0.75), 2), adarft_target(20.0, 0.0)
    (0.0, 43.11, 0.0)
    """
    return min(100.0, max(0.0, target + eta * math.tanh(alpha * (accuracy - beta))))


def stage_is_over(args: Args, state: dict, accuracy: float | None) -> bool:
    """[2] Does the next stage start? `accuracy` is that of the stage's horizon on dev, if it was just measured."""
    if args.schedule != "curriculum" or state["stage"] == args.max_horizon:
        return False
    reached = args.advance_at is not None and accuracy is not None and accuracy >= args.advance_at
    return reached or state["stage_step"] >= args.steps_per_stage


def completion_budget(args: Args, horizon: int) -> int:
    """[3] The longest completion of a horizon in training."""
    budgets = args.completion_budgets or (args.max_new_tokens,)
    return budgets[min(horizon, len(budgets)) - 1]


def format_terms(completion: str, parsed: str | None) -> float:
    r"""[D1] The paper's terms for the format, with a box for its tags, 0 to 2: a number in the box, one box only, the box last with
    work before it (0.5 each), and 0.5 less 0.001 for every character after it.

    >>> format_terms("1+1=2\n\\boxed{2}", "2"), format_terms("\\boxed{a}, so", "a"), format_terms("2", None)
    (2.0, 0.996, 0.0)
    """
    before, box, after = completion.rstrip().rpartition("\\boxed{")
    if not parsed or not box:
        return 0.0
    after = after.partition(parsed)[2].lstrip()[1:]  # behind the closing brace
    is_number, one_box, box_last = number(parsed) is not None, "\\boxed{" not in before, bool(before.strip()) and not after
    return 0.5 * (is_number + one_box + box_last) + max(0.0, 0.5 - 0.001 * len(after))


def group_advantages(rewards: torch.Tensor) -> torch.Tensor:
    """Dr. GRPO: each completion's reward against its group, R - mean: rewards [B, G] -> advantages [B, G].

    >>> group_advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0]]))
    tensor([[ 0.7500, -0.2500, -0.2500, -0.2500]])
    """
    centred = rewards - rewards.mean(dim=1, keepdim=True)  # [B, G]
    no_signal = rewards.amax(1, keepdim=True) == rewards.amin(1, keepdim=True)  # [B, 1]
    return centred.masked_fill(no_signal, 0.0)  # rounding in the mean would not be 0


def clipped_surrogate(logprobs, old_logprobs, advantages, clip_low: float, clip_high: float) -> torch.Tensor:
    """PPO's pessimistic loss per token, -min(ratio A, clip(ratio) A): logprobs [N, T], advantages [N, 1] -> [N, T].

    The gradient vanishes only where a clipped ratio already moved the way the advantage asks for.
    """
    ratio = torch.exp(logprobs - old_logprobs)  # [N, T]
    return -torch.min(ratio * advantages, ratio.clamp(1 - clip_low, 1 + clip_high) * advantages)


def truncated_importance(old_logprobs, rollout_logprobs, cap: float) -> torch.Tensor:
    """min(pi_old / sampler, cap) per token [N, T], without gradient: corrects for a sampler that is not quite the policy."""
    return torch.exp(old_logprobs - rollout_logprobs).clamp(max=cap).detach()


# Aggregation. A function turns the mask of what one optimizer step sees into a weight per token; the loss is the weighted
# sum. The denominator belongs to the whole batch, so any split into micro-batches gives the same loss and gradient.


def constant(mask: torch.Tensor, max_new_tokens: int) -> torch.Tensor:
    """Dr. GRPO: sum over tokens / max_new_tokens, mean over completions: no bias by length. [N, T] -> [N, T]"""
    return mask / (max_new_tokens * mask.shape[0])


# --- the update -----------------------------------------------------------------------------------------------------------


def accumulate_gradients(model, batch: dict, rows: slice, args: Args) -> Counter:
    """Backward pass of one optimizer step's loss over `rows` of the sampled batch, micro-batch by micro-batch.

    batch holds lists prompt_ids and completion_ids [N] and tensors advantages [N, 1], completion_mask, loss_mask,
    rollout_logprobs and (with several updates) old_logprobs [N, T], and longest. Returns sums for the log.
    """
    gather_weights(model)
    sums = Counter()
    weights = torch.zeros_like(batch["rollout_logprobs"])  # [N, T], made before the split so that it does not depend on it
    weights[rows] = constant(batch["loss_mask"][rows], batch["longest"])
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
        total_loss.backward()

        gap = (old_logprobs - cut["rollout_logprobs"]).abs() * mask
        sums.update(tokens=mask.sum().item(), gap=gap.sum().item(), entropy=(entropy * mask).sum().item(),
                    clipped=(clipped & mask).sum().item(), policy_loss=policy_loss.item(), total_loss=total_loss.item())  # fmt: skip
    return total(sums)


def problem_indices(args: Args, step: int) -> list[int]:
    """Which training problems a step samples: a pure function of the step, so resuming needs no data state."""
    first = (step - 1) * args.prompts_per_step
    return [index % args.train_size if args.train_size else index for index in range(first, first + args.prompts_per_step)]


class EveryHorizon:
    """[4] The problems that scores are taken on: one of each horizon in turn."""

    def __init__(self, task, longest: int):
        self.name, self.grade = task.name, task.grade
        self.tasks = [runtime.or_fail(task.at_horizon, horizon) for horizon in range(1, longest + 1)]
        if hasattr(task, "same_answer"):
            self.same_answer = task.same_answer
        if hasattr(task, "size"):  # none twice
            self.size = lambda split: longest * min(each.size(split) for each in self.tasks)

    def check(self, args: Args) -> None:
        """Find out before anything is written whether all problems of the scores can be made."""
        for split, count in (("dev", args.eval_problems), ("test", args.test_problems)):
            for index in range(min(count, self.size(split)) if hasattr(self, "size") else count):
                runtime.or_fail(self.problem, split, index, runtime.EVAL_SEED)

    def at_horizon(self, horizon: int):
        return self.tasks[horizon - 1]

    def problem(self, split: str, index: int, seed: int) -> Problem:
        return self.at_horizon(1 + index % len(self.tasks)).problem(split, index // len(self.tasks), seed)


def task_of_scores(args: Args) -> str | None:
    """What to ask eval.py for, so that it measures all horizons too."""
    name, _, query = (args.task or "").rpartition("?") if "?" in (args.task or "") else (args.task, "", "")
    others = [setting for setting in query.split("&") if setting and not setting.startswith("horizon=")]
    if name == "chain" or "horizon=" in query:
        return f"{name}?" + "&".join([f"horizon=1-{args.max_horizon}", *others])
    return args.task


def check_schedule(args: Args, task) -> None:
    """Refuse a schedule that cannot be carried out, and fill in the length of a stage."""
    runtime.check_at_least_one(args, "max_horizon", "steps_per_stage")
    if not hasattr(task, "at_horizon"):
        runtime.fail("the task has no method at_horizon(horizon), see tasks.py" if args.task is None else
                     f"--task {args.task}: its problems have no horizon; use chain, or chain them with horizon=1 in --task")  # fmt: skip
    for horizon in range(1, args.max_horizon + 1):
        try:
            found = [task.at_horizon(horizon).problem(split, 0, runtime.EVAL_SEED).horizon for split in ("train", "dev", "test")]
        except ValueError as error:
            runtime.fail(f"--max-horizon {args.max_horizon}: {error}")
        if set(found) != {horizon}:
            runtime.fail(f"--task {args.task}: at_horizon({horizon}) gives a problem whose field horizon is {found[0]}")
    if args.eval_problems < args.max_horizon:
        runtime.fail(f"--eval-problems {args.eval_problems}: must be at least --max-horizon {args.max_horizon}, one of each horizon")
    if args.schedule != "curriculum":
        for name in ("steps_per_stage", "advance_at"):
            if getattr(args, name) is not None:
                runtime.fail(f"--{name.replace('_', '-')}: is of --schedule curriculum; {args.schedule} has no stages")
        return
    if args.advance_at is not None and not 0 < args.advance_at <= 1:
        runtime.fail(f"--advance-at {args.advance_at:g}: must be above 0 and at most 1")
    if args.resume and args.steps_per_stage is None and (args.out_dir / "config.json").exists():  # more --steps, not longer stages
        args.steps_per_stage = json.loads((args.out_dir / "config.json").read_text())["flags"].get("steps_per_stage")
    args.steps_per_stage = args.steps_per_stage or math.ceil(args.steps / args.max_horizon)
    stages = math.ceil(args.steps / args.steps_per_stage)
    if stages < args.max_horizon and args.advance_at is None:
        runtime.say(f"--steps {args.steps}: end in stage {stages} of {args.max_horizon}")


def check_budgets(args: Args) -> None:
    """Refuse completion budgets that no horizon would have."""
    if len(args.completion_budgets) > args.max_horizon:
        runtime.fail(f"--completion-budgets: {len(args.completion_budgets)} numbers for --max-horizon {args.max_horizon}")
    for budget in args.completion_budgets:
        if not 1 <= budget <= args.max_new_tokens:
            runtime.fail(f"--completion-budgets {budget}: must be within 1 to --max-new-tokens {args.max_new_tokens}")


def h1_record(horizons: list[int], rewards: torch.Tensor, state: dict, args: Args) -> dict:
    """What h1_curriculum.py logs beside the common metrics: rewards [B, G] by horizon, None where a step has none of it."""
    rows = {h: [row for row, own in zip(rewards.tolist(), horizons) if own == h] for h in range(1, args.max_horizon + 1)}
    return {
        "h1/horizon": sum(horizons) / len(horizons),
        **({"h1/stage": state["stage"], "h1/stage_tokens": state["stage_tokens"]} if args.schedule == "curriculum" else {}),
        **({"h1/target": state["target"]} if args.schedule == "adarft" else {}),
        **{f"h1/reward_{h}": sum(map(sum, own)) / sum(map(len, own)) if own else None for h, own in rows.items()},
    }


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
    args.out_dir = args.out_dir or Path(f"runs/h1_curriculum/{task.name}-seed{args.seed}")
    runtime.check_out_dir(args.out_dir, args.resume)
    model, tokenizer = runtime.load_model(args.model, args.activation_checkpointing, args.lora_rank)
    runtime.resolve_defaults(args, model, DEFAULTS)
    runtime.check_args(args)
    check_budgets(args)
    check_schedule(args, task)
    task = EveryHorizon(task, args.max_horizon)
    task.check(args)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=args.weight_decay, fused=True)
    sampler = sampler or make_sampler(args, model, runtime.eos_ids(model, tokenizer))
    run = runtime.Run("h1_curriculum", args, task.name, model, keep=["steps", "token_budget"] if "e2h" in args.schedule else [])
    state = {"step": 0, "tokens": 0, "best": -1.0, "skips_in_a_row": 0, "test_before": {}, "stage": 1, "stage_step": 0,
             "stage_tokens": 0, "stage_best": -1.0, "target": 0.0}  # fmt: skip
    state = (runtime.load_checkpoint(args.out_dir / "last", model, optimizer) if args.resume else None) or state
    run.start(state["step"])
    stop = runtime.StopRequest()
    G = args.group_size
    sampling = dict(group_size=G, temperature=args.temperature, system=args.system_prompt)

    def measure(prefix: str, split: str, num_problems: int) -> dict:
        scores, rows = evaluate(sampler, tokenizer, task, split, num_problems, args.eval_samples, args.max_new_tokens,
                                args.temperature, args.system_prompt)  # fmt: skip
        by_horizon = {}  # [4]
        for horizon in sorted({row["horizon"] for row in rows}):
            rates = [row["correct"] / row["n"] for row in rows if row["horizon"] == horizon]
            by_horizon[f"{prefix}/{task.name}-h{horizon}/avg@{args.eval_samples}"] = sum(rates) / len(rates)
        return {f"{prefix}/{task.name}/{name}": value for name, value in scores.items()} | by_horizon

    push_weights(sampler, model, tokenizer, task, args)
    if state["step"] == 0:
        state["test_before"] = measure("test", "test", args.test_problems)
        run.log({"step": 0} | measure("eval", "dev", args.eval_problems) | state["test_before"])

    budget = math.inf if args.token_budget is None else args.token_budget
    for step in range(state["step"] + 1, args.steps + 1):
        if state["tokens"] >= budget:
            break
        # --- 1 sample, at the horizons that the schedule asks for  [1]
        started = time.time()
        horizons = draw_horizons(args, step, state)  # [B]
        longest = max(completion_budget(args, horizon) for horizon in horizons)  # [3]
        problems = [runtime.or_fail(task.at_horizon(horizon).problem, "train", index, args.seed)
                    for horizon, index in zip(horizons, problem_indices(args, step))]  # fmt: skip
        seeds = [completion_seed(args.seed, step, j, 0, i) for j in range(len(problems)) for i in range(G)]
        rollout = sample_rollout(sampler, tokenizer, task, problems, [p.prompt for p in problems], seeds, max_new_tokens=longest,
                                 **sampling)  # fmt: skip
        state["tokens"] += rollout.tokens
        state["stage_tokens"] += rollout.tokens
        started_training = time.time()

        # --- 2 reward and advantage
        rewards = rollout.rewards(G)  # [B, G]
        credited = rewards
        if args.format_reward:  # [D1]
            terms = torch.tensor([format_terms(text, grade.parsed) for text, grade in zip(rollout.texts, rollout.grades)])  # [N]
            credited = 2 * rewards + terms.view_as(rewards)  # [B, G]
        advantages = group_advantages(credited).view(-1, 1).to(model.device)  # [N, 1]
        _, completion_mask = pad(rollout.completion_ids, model.device)  # [N, T]
        loss_mask = completion_mask.clone()  # [N, T]
        if args.mask_truncated:
            loss_mask[torch.tensor(rollout.truncated, dtype=torch.bool, device=model.device)] = False
        batch = {"prompt_ids": rollout.prompt_ids, "completion_ids": rollout.completion_ids, "advantages": advantages,
                 "completion_mask": completion_mask, "loss_mask": loss_mask,
                 "rollout_logprobs": pad_values(rollout.logprobs, completion_mask), "longest": longest}  # fmt: skip

        # --- 3 update
        for group in optimizer.param_groups:
            group["lr"] = runtime.learning_rate(args, state["stage_step"] + 1)  # [2]
        if args.minibatches * args.epochs > 1:
            scoring = (rollout.prompt_ids, rollout.completion_ids, args.temperature, args.micro_batch_tokens)
            batch["old_logprobs"], _ = score_all(model, *scoring)  # [N, T], before the first of several updates
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
        record = runtime.step_record(step, state["tokens"], rollout, G, sums, grad_norms, group["lr"], times)
        record |= h1_record(horizons, rewards, state, args)
        state["target"] = adarft_target(state["target"], rewards.mean().item())
        state["stage_step"] += 1
        last = step == args.steps or state["tokens"] >= budget
        if state["stage_step"] % args.eval_every == 0 or state["stage_step"] == args.steps_per_stage or last:
            record |= measure("eval", "dev", args.eval_problems)
            dev = record[f"eval/{task.name}/avg@{args.eval_samples}"]
            if dev > state["best"]:
                state["best"] = dev
                runtime.save_model(args.out_dir / "best", model, tokenizer)
            if args.schedule == "curriculum" and dev > state["stage_best"]:  # [D3]
                state["stage_best"] = dev
                runtime.save_model(args.out_dir / "stage", model, tokenizer)
        run.log(record)
        run.sample(step, rollout, advantages)
        state["step"] = step
        stage_over = stage_is_over(args, state, record.get(f"eval/{task.name}-h{state['stage']}/avg@{args.eval_samples}"))
        if stage_over:  # [2]
            runtime.load_weights(args.out_dir / "stage", model)
            optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=args.weight_decay, fused=True)
            push_weights(sampler, model, tokenizer, task, args)
            state |= {"stage": state["stage"] + 1, "stage_step": 0, "stage_tokens": 0, "stage_best": -1.0}
            if not last:  # else no stage comes next
                runtime.say(f"next: stage {state['stage']}, chains of {state['stage']} steps, from the best model of the stage before")
        stopping = stop.requested
        if step % args.save_every == 0 or last or stopping or stage_over:
            runtime.save_checkpoint(args.out_dir / "last", model, tokenizer, optimizer, state)
        if stopping and not last:
            return run.interrupted()

    # --- the best checkpoint by dev, measured on test
    runtime.load_weights(args.out_dir / "best", model)
    push_weights(sampler, model, tokenizer, task, args)
    test_after = measure("test", "test", args.test_problems)
    run.log({"step": state["step"]} | test_after)
    args.task = task_of_scores(args)
    return run.finish(model, tokenizer, state["test_before"], test_after)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
