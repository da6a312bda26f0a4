r"""h1: long horizons from short problems (arXiv 2510.07312).

    chain of horizon h:   y_1 = f_1,  y_j = f_j(y_j-1)  for j = 2..h; one prompt has all h problems, and the
                          reward is for y_h alone
    stage h = 1..H:       Dr. GRPO on chains of horizon h alone; its best checkpoint starts stage h + 1

A policy that is right on each step with probability p solves a chain with p^h. Its reward, and with it the
signal of a policy gradient, falls exponentially with h; but once chains of h - 1 steps are learned, one of h
is a single step further.

Read it as `diff papers/dr_grpo.py h1_curriculum.py`. What changes, numbered here and where it happens
(`--schedule only_short` equals Dr. GRPO on chains of one step to the last bit):
[1] Problems of a step have the horizons that the schedule asks for; plainrl/chains.py composes them.
[2] The curriculum: a stage ends after --steps-per-stage steps, or as soon as its horizon's accuracy on dev
    reaches --advance-at. The next one starts from its best checkpoint with a new optimizer, as a run of its
    own would. A stage is scored on dev at its end and every --eval-every steps before that.
[3] Each horizon can have its own longest completion; a batch of several horizons has that of the longest.
[4] Dev and test are problems of all horizons in turn, and each horizon also has a score of its own.

The paper's comparisons sample as many completions: only_short (h = 1), only_long (h = H) and uniform_mix (h
drawn from 1..H). Two schedules without stages are papers of their own: papers/adarft.py and papers/e2h.py.

--task is what gets chained (chain, gsm8k?horizon=1, ...); --train-size is that many problems of each horizon.

Deviations from the paper, whose code was not at hand, tagged again where they happen:
[D1] The reward is the answer's correctness, as the paper's argument has it. Its runs add terms for the
     format; --format-reward does so too, written for \boxed{} instead of <reasoning> and <answer> tags.
[D2] Numbers that a chain hands on are whole and at least 2 (the paper: decimals, unrounded): `ComposedTask`
     in plainrl/sources.py.
[D3] Beyond the paper's six, placeholders go on after U to Z with B, C, D ...:
     PLACEHOLDERS in plainrl/chains.py.
[D4] The best checkpoint of a stage is the one with the highest accuracy on dev over all horizons (the paper:
     over 1 to 3, by hand).
[D5] Learning rate, clip range and KL are not known: ours are those of papers/dr_grpo.py, without a KL term.

    python h1_curriculum.py       on the embedded model, 9 minutes on one CPU thread (seed 0): test avg@16 of
                                  chains of one to five steps 0.118 -> 0.787, of five 0.003 -> 0.725
    python h1_curriculum.py --schedule only_long      the same number of steps on chains of five alone

Letters in shapes: B prompts, G completions of each (a group), N = B*G rows, T completion tokens. Rows are
prompt-major: rows i*G .. i*G+G-1 belong to prompt i. Masks come from lengths; EOS is inside the mask when
the completion ended by itself.
"""

import json
import math
import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch

from plainrl.answers import number
from plainrl.flags import ClipRange, Count, Natural, NotNegative, Positive, RunFlags, Share, by_size, parse
from plainrl.horizons import EveryHorizon, all_horizons, horizon_metrics
from plainrl.models import load_weights, save_model
from plainrl.ranks import total
from plainrl.rollout import Batch, completion_seed
from plainrl.run import Run
from plainrl.scoring import micro_batches, score, update_sums
from plainrl.screen import fail, say

SCHEDULES = ("curriculum", "only_short", "only_long", "uniform_mix")
NEW_STAGE = {"stage_step": 0, "stage_tokens": 0, "stage_best": -1.0}


@dataclass
class Args(RunFlags):
    schedule: str = "curriculum"
    """which horizons are trained on, and when: curriculum, only_short, only_long or uniform_mix"""
    max_horizon: Count = 5
    """H, the longest horizon that is trained on"""
    steps_per_stage: Count | None = None
    """of the curriculum: steps of a stage (default: --steps divided by --max-horizon); the last one goes on
    to the end"""
    advance_at: Share | None = None
    """of the curriculum: end a stage before that, once its horizon's avg@k on dev is at least this"""
    completion_budgets: tuple[int, ...] = ()
    """longest completions of horizon 1, 2, ... in training, and the constants that Dr. GRPO divides by; the
    last number holds for all longer ones (default: --max-new-tokens)"""
    format_reward: bool = False
    """add the paper's terms for the format to the reward"""
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
    """steps of linear warm-up, in each stage of the curriculum anew; constant afterwards"""
    weight_decay: NotNegative = 0.0
    """AdamW's weight decay"""


# --- the mathematics ----------------------------------------------------------------------------------------


def draw_horizons(args: Args, step: int, stage: int) -> list[int]:
    """The horizon of each problem of a step, B numbers.  [1]

    Nothing decides but seed, step and stage, so resuming needs no data state.
    """
    if args.schedule == "uniform_mix":
        rng = random.Random(f"{args.seed}/{step}/horizons")
        return rng.choices(range(1, args.max_horizon + 1), k=args.prompts_per_step)
    horizon = {"curriculum": stage, "only_short": 1, "only_long": args.max_horizon}[args.schedule]
    return [horizon] * args.prompts_per_step


def completion_budget(args: Args, horizon: int) -> int:
    """The longest completion of a horizon in training.  [3]"""
    budgets = args.completion_budgets or (args.max_new_tokens,)
    return budgets[min(horizon, len(budgets)) - 1]


def format_terms(completion: str, parsed: str | None) -> float:
    r"""The paper's terms for the format, with a box for its tags, 0 to 2.  [D1]

    0.5 each for a number in the box, one box only, and the box last with work before it; then 0.5 less 0.001
    for every character after the box.

    >>> format_terms("1+1=2\n\\boxed{2}", "2"), format_terms("\\boxed{a}, so", "a"), format_terms("2", None)
    (2.0, 0.996, 0.0)
    """
    before, box, after = completion.rstrip().rpartition("\\boxed{")
    if not parsed or not box:
        return 0.0
    after = after.partition(parsed)[2].lstrip()[1:]  # behind the closing brace
    is_number = number(parsed) is not None
    one_box = "\\boxed{" not in before
    box_last = bool(before.strip()) and not after
    return 0.5 * (is_number + one_box + box_last) + max(0.0, 0.5 - 0.001 * len(after))


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


def accumulate_gradients(model, batch: Batch, args: Args, budget: int) -> Counter:
    """Backward pass of one optimizer step's loss, micro-batch by micro-batch. Returns sums for the log.

    The weights of the tokens are made before the split: loss and gradient are the same for any micro-batches.
    """
    sums = Counter()
    batch["weights"] = constant(batch["loss_mask"], budget)  # [N, T]  [3]
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


# --- the stages of the curriculum  [2] ----------------------------------------------------------------------


def stage_length(args: Args) -> int:
    """The steps of a stage: an equal share of --steps, where --steps-per-stage is not given.

    A resumed run keeps what it had: more --steps do not make its stages longer.
    """
    config = args.out_dir / "config.json"
    if args.steps_per_stage is None and args.resume and config.exists():
        args.steps_per_stage = json.loads(config.read_text())["flags"].get("steps_per_stage")
    length = args.steps_per_stage or math.ceil(args.steps / args.max_horizon)
    reached = math.ceil(args.steps / length)
    if reached < args.max_horizon and args.advance_at is None:
        say(f"--steps {args.steps}: end in stage {reached} of {args.max_horizon}")
    return length


def end_step_of_stage(run: Run, rollout, batch: Batch, own: dict, args: Args) -> torch.optim.Optimizer:
    """`Run.end_step` in a stage, whose own steps say when to score. Returns the next step's optimizer."""
    stage, steps = run.state["stage"], run.state["stage_step"]
    run.push_weights()
    record = run.record(batch) | own | {"h1/stage": stage, "h1/stage_tokens": run.state["stage_tokens"]}
    if steps % args.eval_every == 0 or steps == args.steps_per_stage or run.is_last:
        record |= score_stage(run)
    run.log(record)
    run.log_samples(rollout, batch)
    accuracy = record.get(f"eval/{run.task.name}-h{stage}/avg@{args.eval_samples}")
    over = stage_is_over(args, run.state, accuracy)
    if over:
        run.save_best()  # the next stage has other weights
        start_next_stage(run, args)
    run.save(now=over)
    return run.optimizer


def score_stage(run: Run) -> dict[str, float]:
    """Scores on dev. The best model of the stage so far is kept in stage/, from where the next one starts."""
    scores = run.score_dev()
    if scores[run.dev_score] >= run.state["stage_best"]:  # over all horizons, of equal ones the later  [D4]
        run.state["stage_best"] = scores[run.dev_score]
        save_model(run.dir / "stage", run.model, run.tokenizer)
    return scores


def stage_is_over(args: Args, state: dict, accuracy: float | None) -> bool:
    """Does the next stage start? `accuracy` is that of its horizon on dev, None where it was not measured."""
    if state["stage"] == args.max_horizon:
        return False  # the last one goes on to the end of the run
    reached = args.advance_at is not None and accuracy is not None and accuracy >= args.advance_at
    return reached or state["stage_step"] >= args.steps_per_stage


def start_next_stage(run: Run, args: Args) -> None:
    """From the best model of the stage that is over, with a new optimizer, as a run of its own would."""
    load_weights(run.dir / "stage", run.model)
    weights = run.model.parameters()
    run.optimizer = torch.optim.AdamW(weights, args.lr, weight_decay=args.weight_decay, fused=True)
    run.push_weights()
    stage = run.state["stage"] + 1
    run.state |= {"stage": stage} | NEW_STAGE
    if not run.is_last:  # else no step comes next
        say(f"next: stage {stage}, chains of {stage} steps, from the best model of the stage before")


# --- what cannot work ---------------------------------------------------------------------------------------


def check_schedule(args: Args) -> None:
    """Refuse a schedule that there is not, and flags that it has no use for."""
    if args.schedule not in SCHEDULES:
        elsewhere = "AdaRFT and E2H are papers/adarft.py and papers/e2h.py"
        fail(f"--schedule {args.schedule}: is not one of {', '.join(SCHEDULES)}; {elsewhere}")
    if args.schedule != "curriculum" and (args.steps_per_stage or args.advance_at) is not None:
        fail(f"--steps-per-stage, --advance-at: --schedule {args.schedule} has no stages; leave them out")


def check_budgets(args: Args) -> None:
    """Refuse completion budgets that no horizon would have, or no completion could use up."""
    count, most = len(args.completion_budgets), args.max_new_tokens
    if count > args.max_horizon:
        fail(f"--completion-budgets: {count} numbers for --max-horizon {args.max_horizon}")
    for budget in args.completion_budgets:
        if not 1 <= budget <= most:
            fail(f"--completion-budgets {budget}: must be within 1 to --max-new-tokens {most}")


# --- the loop -----------------------------------------------------------------------------------------------


def main(args: Args, task=None, sampler=None) -> Path:
    """Train and return the folder of the final model. A task or sampler of your own can be passed in."""
    check_schedule(args)
    run = Run("h1_curriculum", args, task, sampler, state={"stage": 1} | NEW_STAGE)
    check_budgets(args)
    if args.schedule == "curriculum":
        args.steps_per_stage = stage_length(args)
    run.task = EveryHorizon(run.task, args)  # [4]
    optimizer = torch.optim.AdamW(run.model.parameters(), args.lr, weight_decay=args.weight_decay, fused=True)
    run.restore(optimizer)
    B, G = args.prompts_per_step, args.group_size
    for step in run.steps():
        # --- 1 sample
        horizons = draw_horizons(args, step, run.state["stage"])  # [1]
        budget = max(completion_budget(args, horizon) for horizon in horizons)  # [3]
        problems = run.task.training_problems(horizons, problem_indices(args, step), args.seed)
        seeds = [completion_seed(args.seed, step, j, 0, i) for j in range(B) for i in range(G)]
        rollout = run.sample(problems, seeds, max_new_tokens=budget)  # N graded completions
        run.state["stage_step"] += 1
        run.state["stage_tokens"] += rollout.tokens

        # --- 2 reward and advantage
        rewards = rollout.rewards()  # [B, G]
        if args.format_reward:
            terms = [format_terms(text, grade.parsed) for text, grade in zip(rollout.texts, rollout.grades)]
            rewards = 2 * rewards + torch.tensor(terms).view(B, G)  # [D1]
        advantages = group_advantages(rewards)  # [B, G]
        batch = rollout.batch(advantages, run.model.device, args.mask_truncated)

        # --- 3 update
        optimizer.param_groups[0]["lr"] = learning_rate(args, run.state["stage_step"])  # [2]
        if args.minibatches * args.epochs > 1:
            batch["old_logprobs"], _ = run.score(batch)  # [N, T], before the first of several updates
        for minibatch in batch.split(args.minibatches) * args.epochs:
            run.optimizer_step(optimizer, accumulate_gradients(run.model, minibatch, args, budget))

        # --- 4 push the weights to the sampler, log, score dev, save
        own = horizon_metrics("h1", horizons, rollout.rewards(), args.max_horizon)
        if args.schedule == "curriculum":
            optimizer = end_step_of_stage(run, rollout, batch, own, args)  # [2]
        else:
            run.end_step(rollout, batch, own)
    args.task = all_horizons(args.task, args.max_horizon)  # for the command that evaluates the model
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
