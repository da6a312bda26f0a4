r"""Guide: a hint where every completion failed, and a gradient for the prompt without it (Guide-GRPO,
arXiv 2506.13923). Read it as `diff grpo.py guide.py`.

    o ~ pi_old(. | q):                            loss_it = -min(ratio_it A_i, clip(ratio_it) A_i)
    all of them wrong, then o ~ pi_old(. | q, h): loss_it = -A_i ratio_it / (ratio_it + gamma)

    ratio_it = pi(o_it | q, o_i<t) / pi_old(o_it | the prompt that sampled it, o_i<t)
    gamma    = 0.9 quantile of the guided tokens' ratios in the optimizer step's batch, without gradient

What changes against grpo.py, numbered here and where it happens:
[1] Where all completions of a prompt are wrong, a fresh group is sampled with the problem's hint in the
    prompt. It takes the failed group's place, with advantages of its own.
[2] The importance correction: the denominator of the ratio is the policy that sampled, with the hint, the
    numerator the policy that is wanted, without. A right completion teaches nothing about how to find it
    unless the plain prompt makes it likelier.
[3] Policy shaping: guided ratios can be anything, so they are not clipped but squeezed into
    ratio / (ratio + gamma). A guided token's gradient is then scaled by ratio gamma / (ratio + gamma)^2, at
    most a quarter of another's at ratio 1.
[4] Groups without differences, guided or not, are dropped, and further problems sampled.
There is no KL term and no reference model.

Deviations from the paper and its released code, tagged again where they happen:
[D1] gamma is taken over the valid guided tokens of the whole optimizer step; the code takes it in each
     sequence, padding included.
[D2] Surplus groups are dropped, not kept for the next step, so that a step is a pure function of its number;
     after max_refills rounds the step trains on the groups it has.
[D3] Every failed prompt is guided; the code rounds their number to the number of GPUs, and guides all prompts
     of a batch in which no group has a signal.
[D4] One update per batch (the default); the code makes two (--minibatches 2).
[D5] The wording around the hint is ours (--hint-template).
[D6] The paper's ratio is a token's. It corrects exactly for completions of one token only; for longer ones it
     is biased. The exact correction of a completion is the product of its ratios
     (papers/guide_ablations.py --correction sequence). Over all completions of two tokens of ten random
     models (tests/test_guide.py) the token's ratio lies off by 0.36 of the exact gradient's length on average
     (at most 0.56), and no correction by 0.67 (at most 1.73), and by more in 8 of them.

    python guide.py                   on the embedded model: test avg@16 0.048 -> 0.856 (seed 0), 9 minutes on
                                      one CPU thread
    python guide.py --trigger never   Filter-GRPO, the paper's baseline: groups without differences dropped,
                                      no hints

Letters in shapes: B prompts, G completions of each (a group), N = B*G rows, T completion tokens. Rows are
prompt-major: rows i*G .. i*G+G-1 belong to prompt i. Masks come from lengths; EOS is inside the mask when
the completion ended by itself.
"""

import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal
from zlib import crc32

import torch

from plainrl.flags import ClipRange, Count, Fraction, Natural, NotNegative, Positive, RunFlags, by_size, parse
from plainrl.hints import check_hints, hint_of, load_hints
from plainrl.ranks import total
from plainrl.rollout import Batch, Rollout, completion_seed, encode_prompt
from plainrl.run import Run
from plainrl.scoring import micro_batches, score, score_all, update_sums
from plainrl.screen import or_fail, say_if_slow
from plainrl.tasks import Problem

ABLATIONS = "trigger-accuracy correction shaping group advantage aggregation".split()
ABLATIONS += ["trigger below", "trigger always"]
MOVED = dict.fromkeys(ABLATIONS, "papers/guide_ablations.py has it")


@dataclass
class Args(RunFlags):
    trigger: Literal["all_wrong", "never"] = "all_wrong"
    """which prompts get a hint: those without a right completion, or none (Filter-GRPO)"""
    gamma_quantile: Fraction = 0.9
    """gamma is this quantile of the guided ratios"""
    hints: Path | None = None
    """file of {"prompt": ..., "hint": ...} lines, as tools/hints.py makes it; without one, the hints that the
    task's problems carry"""
    hint_template: str = "{prompt}\nHint: {hint}"
    """the user turn of a guided prompt"""
    max_refills: Natural = 10
    """rounds of further sampling before a step trains on the groups it has"""

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


def group_advantages(rewards: torch.Tensor) -> torch.Tensor:
    """Each completion's reward against its group, (R - mean) / (std + 1e-6).

    rewards [B, G] -> advantages [B, G]. The std is the unbiased one (ddof 1) that torch computes by default.

    >>> group_advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0]]))
    tensor([[ 1.5000, -0.5000, -0.5000, -0.5000]])
    """
    centred = rewards - rewards.mean(dim=1, keepdim=True)  # [B, G]
    centred = centred / (rewards.std(dim=1, keepdim=True) + 1e-6)
    no_signal = rewards.amax(1, keepdim=True) == rewards.amin(1, keepdim=True)  # [B, 1]
    return centred.masked_fill(no_signal, 0.0)  # rounding in the mean, divided by 1e-6, would not be 0


def clipped_surrogate(logprobs, old_logprobs, advantages, clip_low: float, clip_high: float) -> torch.Tensor:
    """PPO's pessimistic loss per token, -min(ratio A, clip(ratio) A).

    logprobs [N, T], advantages [N, 1] -> [N, T]. The gradient vanishes only where a clipped ratio already
    moved the way the advantage asks for.
    """
    ratio = torch.exp(logprobs - old_logprobs)  # [N, T]
    return -torch.min(ratio * advantages, ratio.clamp(1 - clip_low, 1 + clip_high) * advantages)


def shaped_surrogate(logprobs, old_logprobs, advantages, gamma: float) -> torch.Tensor:
    """[3] Loss of guided tokens, -A ratio / (ratio + gamma): logprobs [N, T], advantages [N, 1] -> [N, T].

    The gradient in log pi is -A gamma ratio / (ratio + gamma)^2: largest, A / 4, where the ratio is gamma,
    less on both sides.
    """
    ratio = torch.exp(logprobs - old_logprobs)  # [N, T]
    return -advantages * (ratio / (ratio + gamma))


def shaping_gamma(ratios: torch.Tensor, quantile: float) -> float:
    """gamma: the quantile of the guided tokens' ratios [M], interpolated linearly, at least 1e-4.

    >>> round(shaping_gamma(torch.tensor([5.0, 1.0, 3.0, 2.0, 4.0]), 0.9), 4)
    4.6
    """
    return max(1e-4, torch.quantile(ratios, quantile).item())


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


def guided_ratios(model, batch: Batch, args: Args) -> torch.Tensor:
    """Ratios of the guided completions [N, T], zero elsewhere: one pass without gradient over those alone."""
    rows = batch["guided"][:, 0].nonzero().squeeze(1).tolist()
    prompt_ids, completion_ids = [batch.prompt_ids[i] for i in rows], [batch.completion_ids[i] for i in rows]
    logprobs, _ = score_all(model, prompt_ids, completion_ids, args.temperature, args.micro_batch_tokens)
    old_logprobs, mask = batch["old_logprobs"][rows], batch["completion_mask"][rows]  # [guided rows, T]
    logprobs = torch.nn.functional.pad(logprobs, (0, mask.shape[1] - logprobs.shape[1]))
    ratios = torch.zeros_like(batch["old_logprobs"])
    ratios[rows] = torch.exp(logprobs - old_logprobs) * mask
    return ratios


def accumulate_gradients(model, batch: Batch, args: Args) -> Counter:
    """Backward pass of one optimizer step's loss, micro-batch by micro-batch. Returns sums for the log.

    The weights of the tokens are made before the split: loss and gradient are the same for any micro-batches.
    """
    sums = Counter()
    batch["weights"] = sequence_mean(batch["loss_mask"])  # [N, T]
    guided_tokens = batch["loss_mask"] & batch["guided"]  # [N, T]
    gamma = 1.0  # of no effect where no token is guided
    if guided_tokens.any():
        batch["ratios"][:] = guided_ratios(model, batch, args)  # in place: the whole batch keeps them
        gamma = shaping_gamma(batch["ratios"][guided_tokens], args.gamma_quantile)  # of all at once  [D1]
        sums.update(gamma=gamma, guided_updates=1)
    for part in micro_batches(model, batch, args.micro_batch_tokens):
        logprobs, entropy = score(model, part.prompt_ids, part.completion_ids, args.temperature)  # [n, T']
        old_logprobs = part.get("old_logprobs", logprobs.detach())  # one update: pi_old is the policy
        advantages = part["advantages"]  # [n, 1]

        loss_per_token = clipped_surrogate(logprobs, old_logprobs, advantages, args.clip_low, args.clip_high)
        clipped = loss_per_token > -torch.exp(logprobs - old_logprobs) * advantages  # the clipped term won
        guided_loss = shaped_surrogate(logprobs, old_logprobs, advantages, gamma)  # [3]
        loss_per_token = torch.where(part["guided"], guided_loss, loss_per_token)
        clipped = clipped & ~part["guided"]  # those have no clip
        if args.importance_cap is not None:
            importance = truncated_importance(old_logprobs, part["rollout_logprobs"], args.importance_cap)
            loss_per_token = loss_per_token * importance
        policy_loss = total_loss = (loss_per_token * part["weights"]).sum()
        total_loss.backward()
        sums.update(update_sums(part, logprobs, old_logprobs, entropy, clipped, policy_loss, total_loss))
    return total(sums)  # over ranks


def problem_indices(args: Args, step: int, round: int) -> list[int]:
    """The training problems of a round of a step: a pure function, so resuming needs no data state.

    Round 0 has those of grpo.py. Refills start far away, in a finite set by equal shares of it.
    """
    far = max(1, args.train_size // (args.max_refills + 1)) if args.train_size else 1_000_000_007
    first = (step - 1) * args.prompts_per_step + round * far
    indices = range(first, first + args.prompts_per_step)
    return [index % args.train_size if args.train_size else index for index in indices]


def learning_rate(args: Args, step: int) -> float:
    """Linear warm-up to `lr` over `warmup_steps`, then constant; the step counts from 1."""
    return args.lr * min(1.0, step / max(1, args.warmup_steps))


# --- sampling -----------------------------------------------------------------------------------------------


def sample_groups(
    run: Run, problems: list[Problem], hints: dict | None, step: int, round: int
) -> list[Rollout]:
    """[1] One group for each problem: without the hint, or with it where no completion was right without it.

    Rewards of three problems with G = 4, for example:

        without hint    with hint                            returned
        0 0 0 0         1 0 0 1                              1 0 0 1
        0 1 0 0         (not sampled: one is right)          0 1 0 0
        0 0 0 0         (not sampled: there is no hint)      0 0 0 0
    """
    args, B, G = run.args, len(problems), run.args.group_size
    seeds = [completion_seed(args.seed, step, j, round, i) for j in range(B) for i in range(G)]
    plain = run.sample(problems, seeds)
    groups = [plain.select([j]) for j in range(B)]
    count_solved(run, groups)

    failed = [j for j in range(B) if args.trigger != "never" and not any(groups[j].correct())]
    helped = [j for j in failed if hint_of(problems[j], hints)]  # all of them, however many  [D3]
    run.sums.update(rounds=1, without_hint=len(failed) - len(helped))
    if helped:
        unsolved = [replace(problems[j], hint=hint_of(problems[j], hints)) for j in helped]
        prompts = [args.hint_template.format(prompt=p.prompt, hint=p.hint) for p in unsolved]  # [D5]
        seeds = [completion_seed(args.seed, step, j, round, G + i) for j in helped for i in range(G)]
        guided = run.sample(unsolved, seeds, prompts)
        run.sums.update(guided_right=sum(guided.correct()), guided_completions=len(guided.texts))
        for k, j in enumerate(helped):
            groups[j] = guided.select([k])  # takes the failed group's place
    return groups


def has_differences(group: Rollout) -> bool:
    """[4] Whether the group has right and wrong completions, so that there is something to learn from it."""
    return 0 < sum(group.correct()) < len(group.texts)


def plain_prompts(run: Run, rollout: Rollout) -> list[list[int]]:
    """[2] Ids of the prompts without hints, N: those that are trained."""
    G, system = rollout.group_size, run.args.system_prompt
    prompts = [encode_prompt(run.tokenizer, problem.prompt, system) for problem in rollout.problems]
    return [ids for ids in prompts for _ in range(G)]


def count_solved(run: Run, groups: list[Rollout]) -> None:
    """For the log: problems that were solved without a hint for the first time in this run."""
    right = [group.problems[0].prompt for group in groups if any(group.correct())]
    new = {crc32(prompt.encode()) for prompt in right} - set(run.state["solved"])
    run.state["solved"] = sorted(new | set(run.state["solved"]))
    run.sums["first_solved"] += len(new)


def guide_metrics(run: Run, batch: Batch) -> dict:
    """What is logged beside the common metrics; None where a step has no guided group."""
    sums = run.sums
    ratios = batch["ratios"][batch["loss_mask"] & batch["guided"]]  # [M]
    mean = lambda total, count: sums[total] / sums[count] if sums[count] else None  # noqa: E731
    quantile = lambda share: torch.quantile(ratios, share).item() if len(ratios) else None  # noqa: E731
    return {
        "guide/frac_guided": batch["guided"].sum().item() / max(1, len(batch)),
        "guide/guided_success": mean("guided_right", "guided_completions"),
        "guide/gamma": mean("gamma", "guided_updates"),
        "guide/ratio_q10": quantile(0.1),
        "guide/ratio_q50": quantile(0.5),
        "guide/ratio_q90": quantile(0.9),
        "guide/rounds": sums["rounds"],
        "guide/without_hint": sums["without_hint"],
        "guide/first_solved": sums["first_solved"],
    }


# --- the loop -----------------------------------------------------------------------------------------------


def main(args: Args, task=None, sampler=None) -> Path:
    """Train and return the folder of the final model. A task or sampler of your own can be passed in."""
    run = Run("guide", args, task, sampler, state={"solved": []})
    hints = or_fail(load_hints, args.hints) if args.hints else None
    if args.trigger != "never":
        check_hints(run.task, args, hints)
    optimizer = torch.optim.AdamW(run.model.parameters(), args.lr, weight_decay=args.weight_decay, fused=True)
    run.restore(optimizer)
    B, G = args.prompts_per_step, args.group_size
    for step in run.steps():
        # --- 1 sample, and sample further problems until there are B groups with differences  [4]
        groups = []
        for round in range(1 + args.max_refills):
            began = time.monotonic()
            indices = problem_indices(args, step, round)
            problems = [run.task.problem("train", index, args.seed) for index in indices]
            sampled = sample_groups(run, problems, hints, step, round)
            groups += [group for group in sampled if has_differences(group)]
            if len(groups) >= B:
                break
            say_if_slow(began, f"  round {round + 1}: {len(groups)} of {B} groups have differences")
        groups = groups[:B]  # surplus groups are dropped, not kept for the next step  [D2]
        rollout = sum(groups, Rollout([], [], [], [], []))  # end to end

        # --- 2 reward and advantage
        rewards = rollout.rewards()  # [B, G], of as many groups as were found
        advantages = group_advantages(rewards) if groups else rewards  # [B, G]
        batch = rollout.batch(advantages, run.model.device, args.mask_truncated)
        batch.prompt_ids = plain_prompts(run, rollout)  # pi(o | q) is trained, without the hint  [2]
        guided = [ids != plain for ids, plain in zip(rollout.prompt_ids, batch.prompt_ids)]  # N, saw the hint
        batch["guided"] = torch.tensor(guided, dtype=torch.bool, device=run.model.device)[:, None]  # [N, 1]
        batch["ratios"] = torch.zeros_like(batch["rollout_logprobs"])  # [N, T]

        # --- 3 update
        optimizer.param_groups[0]["lr"] = learning_rate(args, step)
        if groups and (args.minibatches * args.epochs > 1 or any(guided)):  # [D4]
            # pi_old(o | the prompt that sampled it): with the hint, where one was shown  [2], [D6]
            batch["old_logprobs"], _ = run.score(batch, prompt_ids=rollout.prompt_ids)  # [N, T]
        for minibatch in batch.split(args.minibatches) * args.epochs:
            run.optimizer_step(optimizer, accumulate_gradients(run.model, minibatch, args))

        # --- 4 push the weights to the sampler, log, score dev, save
        own = guide_metrics(run, batch)
        run.end_step(rollout, batch, own, guided=guided[:G])
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
