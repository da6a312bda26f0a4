r"""Guide's ablations: what each part of it is worth (arXiv 2506.13923).
Read it as `diff guide.py papers/guide_ablations.py`.

With its defaults it equals guide.py to the last bit, whose docstring has the equations.

What changes against guide.py, numbered here and where it happens:
[1] --trigger: hints also where few completions are right (below), or for every prompt (always).
[2] --correction: what the ratio of a guided completion is.
    token        pi(o_t | q) / pi_old(o_t | q, h), as in guide.py.
    sequence     The product of these over the completion, the exact correction. With --advantage centred
                 --aggregation constant --shaping none a guided group's expected gradient is (G-1)/G times
                 that of the reward without hint, over max_new_tokens (tests/test_guide.py enumerates it).
    none         pi(o_t | q) / pi_old(o_t | q), as if the plain prompt had sampled it.
    keep_hint    pi(o_t | q, h) / pi_old(o_t | q, h): the prompt with the hint is trained.
    The last two are shaped too, unless --shaping says otherwise.
[3] --shaping: guided tokens are clipped as all others are (clip), or nothing limits their ratio (none).
[4] --group join: the guided group does not replace the failed one, both make one group of 2G.
[5] --advantage and --aggregation: those of Dr. GRPO and DAPO, also for the tokens without a hint.

    python papers/guide_ablations.py --correction none    on the embedded model; what the parts are worth on
                                                          hard problems: benchmarks/hard_chains.py

Letters in shapes: B prompts, G completions of each (a group), N = B*G rows, T completion tokens. Rows are
prompt-major: rows i*G .. i*G+G-1 belong to prompt i. Masks come from lengths; EOS is inside the mask when
the completion ended by itself.
"""

import sys
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal
from zlib import crc32

import torch

sys.path.append(str(Path(__file__).resolve().parents[1]))  # where plainrl/ lies

from plainrl.flags import ClipRange, Count, Fraction, Natural, NotNegative, Positive, RunFlags, by_size, parse
from plainrl.hints import check_hints, hint_of, load_hints
from plainrl.ranks import total
from plainrl.rollout import Batch, Rollout, completion_seed, encode_prompt
from plainrl.run import Run
from plainrl.scoring import micro_batches, score, score_all, update_sums
from plainrl.screen import or_fail
from plainrl.tasks import Problem


@dataclass
class Args(RunFlags):
    trigger: Literal["all_wrong", "never", "below", "always"] = "all_wrong"
    """which prompts get a hint: those without a right completion, none (Filter-GRPO), those at or below
    --trigger-accuracy, or all"""
    trigger_accuracy: Fraction = 0.25
    """of --trigger below: the highest accuracy of a group that gets a hint"""
    correction: Literal["token", "sequence", "none", "keep_hint"] = "token"
    """of guided completions. token: pi_old is taken under the prompt with the hint (Guide); sequence: and the
    ratio is the product over the completion; none: pi_old under the plain prompt; keep_hint: train on the
    prompt with the hint"""
    shaping: Literal["quantile", "clip", "none"] = "quantile"
    """of guided tokens' ratios: ratio / (ratio + gamma), PPO's clip, or as they are"""
    group: Literal["replace", "join"] = "replace"
    """the guided group takes the failed one's place, or both make one group of 2G"""
    advantage: Literal["std", "centred"] = "std"
    """how a reward is compared with its group. std: (R - mean) / std (GRPO); centred: R - mean (Dr. GRPO)"""
    aggregation: Literal["sequence_mean", "token_mean", "constant"] = "sequence_mean"
    """how token losses become one number: GRPO, DAPO and Dr. GRPO in this order"""
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


def group_advantages(rewards: torch.Tensor, normalisation: str) -> torch.Tensor:
    """Each completion's reward against its group: rewards [B, G] -> advantages [B, G].

    "std": (R - mean) / (std + 1e-6), with the unbiased std (ddof 1) that torch computes by default;
    "centred": R - mean.

    >>> group_advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0]]), "std")
    tensor([[ 1.5000, -0.5000, -0.5000, -0.5000]])
    """
    centred = rewards - rewards.mean(dim=1, keepdim=True)  # [B, G]
    if normalisation == "std":
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


def shaped_surrogate(logprobs, old_logprobs, advantages, gamma: float | None) -> torch.Tensor:
    """Loss of guided tokens, -A ratio / (ratio + gamma), or -A ratio without a gamma.

    logprobs [N, T], advantages [N, 1] -> [N, T].

    The gradient in log pi is -A gamma ratio / (ratio + gamma)^2: largest, A / 4, where the ratio is gamma,
    less on both sides.
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
    """[2] What to subtract from logprobs so that every token has the ratio of its whole completion.

    [N, T] each, zero in the padding -> [N, T], without gradient. That ratio is the product of the tokens'
    ratios; the gradient of a token is its own times that product.
    """
    return (logprobs - (logprobs - old_logprobs).sum(1, keepdim=True)).detach()


def truncated_importance(old_logprobs, rollout_logprobs, cap: float) -> torch.Tensor:
    """min(pi_old / sampler, cap) per token [N, T], no gradient: for a sampler that is not quite pi_old."""
    return torch.exp(old_logprobs - rollout_logprobs).clamp(max=cap).detach()


# [5] Aggregation: the mask of what one optimizer step sees -> a weight of each token, [N, T] -> [N, T]. The
# loss is the weighted sum of the tokens' losses.


def sequence_mean(mask: torch.Tensor, max_new_tokens: int) -> torch.Tensor:
    """GRPO: mean over a completion's tokens, then over completions. Those without a token do not count."""
    lengths = mask.sum(dim=1, keepdim=True)  # [N, 1]
    return mask / lengths.clamp(min=1) / (lengths > 0).sum().clamp(min=1)


def token_mean(mask: torch.Tensor, max_new_tokens: int) -> torch.Tensor:
    """DAPO: mean over all tokens of the batch, so that long completions weigh more."""
    return mask / mask.sum().clamp(min=1)


def constant(mask: torch.Tensor, max_new_tokens: int) -> torch.Tensor:
    """Dr. GRPO: sum over a completion's tokens / max_new_tokens, then mean over completions."""
    return mask / (max_new_tokens * mask.shape[0])


AGGREGATIONS = {"sequence_mean": sequence_mean, "token_mean": token_mean, "constant": constant}


# --- the update ---------------------------------------------------------------------------------------------


def guided_ratios(model, batch: Batch, args: Args) -> torch.Tensor:
    """Ratios of the guided completions [N, T], zero elsewhere: one pass without gradient over those alone."""
    rows = batch["guided"][:, 0].nonzero().squeeze(1).tolist()
    prompt_ids, completion_ids = [batch.prompt_ids[i] for i in rows], [batch.completion_ids[i] for i in rows]
    logprobs, _ = score_all(model, prompt_ids, completion_ids, args.temperature, args.micro_batch_tokens)
    old_logprobs, mask = batch["old_logprobs"][rows], batch["completion_mask"][rows]  # [guided rows, T]
    logprobs = torch.nn.functional.pad(logprobs, (0, mask.shape[1] - logprobs.shape[1]))
    if args.correction == "sequence":
        old_logprobs = sequence_denominator(logprobs, old_logprobs)  # [2]
    ratios = torch.zeros_like(batch["old_logprobs"])
    ratios[rows] = torch.exp(logprobs - old_logprobs) * mask
    return ratios


def accumulate_gradients(model, batch: Batch, args: Args) -> Counter:
    """Backward pass of one optimizer step's loss, micro-batch by micro-batch. Returns sums for the log.

    The weights of the tokens are made before the split: loss and gradient are the same for any micro-batches.
    """
    sums = Counter()
    batch["weights"] = AGGREGATIONS[args.aggregation](batch["loss_mask"], args.max_new_tokens)  # [N, T]  [5]
    guided_tokens = batch["loss_mask"] & batch["guided"]  # [N, T]
    gamma = None  # of no effect where no token is guided
    if guided_tokens.any():
        batch["ratios"][:] = guided_ratios(model, batch, args)  # in place: the whole batch keeps them
        if args.shaping == "quantile":  # [3]
            gamma = shaping_gamma(batch["ratios"][guided_tokens], args.gamma_quantile)
            sums.update(gamma=gamma, guided_updates=1)
    for part in micro_batches(model, batch, args.micro_batch_tokens):
        logprobs, entropy = score(model, part.prompt_ids, part.completion_ids, args.temperature)  # [n, T']
        old_logprobs = part.get("old_logprobs", logprobs.detach())  # one update: pi_old is the policy
        advantages = part["advantages"]  # [n, 1]

        denominators = old_logprobs
        if args.correction == "sequence":  # [2]
            whole = sequence_denominator(logprobs, old_logprobs)
            denominators = torch.where(part["guided"], whole, old_logprobs)
        loss_per_token = clipped_surrogate(logprobs, denominators, advantages, args.clip_low, args.clip_high)
        clipped = loss_per_token > -torch.exp(logprobs - denominators) * advantages  # the clipped term won
        if args.shaping != "clip":  # [3]
            guided_loss = shaped_surrogate(logprobs, denominators, advantages, gamma)
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
    """One group for each problem: without the hint, or with it where the trigger says so.

    Rewards of three problems with G = 4, for example:

        without hint    with hint                            returned     returned with --group join
        0 0 0 0         1 0 0 1                              1 0 0 1      0 0 0 0 1 0 0 1
        0 1 0 0         (not sampled: one is right)          0 1 0 0      0 1 0 0
        0 0 0 0         (not sampled: there is no hint)      0 0 0 0      0 0 0 0
    """
    args, B, G = run.args, len(problems), run.args.group_size
    if args.trigger == "always" and args.group == "replace":
        return sample_hinted(run, problems, hints, step, round)
    seeds = [completion_seed(args.seed, step, j, round, i) for j in range(B) for i in range(G)]
    plain = run.sample(problems, seeds)
    groups = [plain.select([j]) for j in range(B)]
    count_solved(run, groups)

    highest = {"never": -1.0, "all_wrong": 0.0, "below": args.trigger_accuracy, "always": 1.0}[args.trigger]
    failed = [j for j in range(B) if sum(groups[j].correct()) / G <= highest]  # [1]
    helped = [j for j in failed if hint_of(problems[j], hints)]
    run.sums.update(rounds=1, without_hint=len(failed) - len(helped))
    if helped:
        unsolved = [replace(problems[j], hint=hint_of(problems[j], hints)) for j in helped]
        prompts = [args.hint_template.format(prompt=p.prompt, hint=p.hint) for p in unsolved]
        seeds = [completion_seed(args.seed, step, j, round, G + i) for j in helped for i in range(G)]
        guided = run.sample(unsolved, seeds, prompts)
        run.sums.update(guided_right=sum(guided.correct()), guided_completions=len(guided.texts))
        for k, j in enumerate(helped):
            new = guided.select([k])
            groups[j] = groups[j] + new if args.group == "join" else new  # [4]
    return groups


def sample_hinted(
    run: Run, problems: list[Problem], hints: dict | None, step: int, round: int
) -> list[Rollout]:
    """[1] One group for each problem, with its hint if it has one: what would be replaced is not sampled."""
    args, B, G = run.args, len(problems), run.args.group_size
    shown = [hint_of(problem, hints) for problem in problems]
    problems = [replace(problem, hint=hint) if hint else problem for problem, hint in zip(problems, shown)]
    prompts = [
        args.hint_template.format(prompt=problem.prompt, hint=hint) if hint else problem.prompt
        for problem, hint in zip(problems, shown)
    ]
    seeds = [completion_seed(args.seed, step, j, round, i) for j in range(B) for i in range(G)]
    sampled = run.sample(problems, seeds, prompts)
    groups = [sampled.select([j]) for j in range(B)]
    guided = [group for group, hint in zip(groups, shown) if hint]
    count_solved(run, [group for group, hint in zip(groups, shown) if not hint])
    run.sums.update(rounds=1, without_hint=B - len(guided), guided_completions=len(guided) * G)
    run.sums["guided_right"] += sum(sum(group.correct()) for group in guided)
    return groups


def has_differences(group: Rollout) -> bool:
    """Whether the group has right and wrong completions, so that there is something to learn from it."""
    return 0 < sum(group.correct()) < len(group.texts)


def plain_prompts(run: Run, rollout: Rollout) -> list[list[int]]:
    """Ids of the prompts without hints, N."""
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
    sums, groups = run.sums, batch["guided"].split(batch.rows_per_group)
    ratios = batch["ratios"][batch["loss_mask"] & batch["guided"]]  # [M]
    mean = lambda total, count: sums[total] / sums[count] if sums[count] else None  # noqa: E731
    quantile = lambda share: torch.quantile(ratios, share).item() if len(ratios) else None  # noqa: E731
    return {
        "guide/frac_guided": sum(group.any().item() for group in groups) / max(1, len(groups)),
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
    run = Run("guide_ablations", args, task, sampler, state={"solved": []})
    hints = or_fail(load_hints, args.hints) if args.hints else None
    if args.trigger != "never":
        check_hints(run.task, args, hints)
    optimizer = torch.optim.AdamW(run.model.parameters(), args.lr, weight_decay=args.weight_decay, fused=True)
    run.restore(optimizer)
    B, G = args.prompts_per_step, args.group_size
    for step in run.steps():
        # --- 1 sample, and sample further problems until there are B groups with differences
        groups = []
        for round in range(1 + args.max_refills):
            indices = problem_indices(args, step, round)
            problems = [run.task.problem("train", index, args.seed) for index in indices]
            sampled = sample_groups(run, problems, hints, step, round)
            groups += [group for group in sampled if has_differences(group)]
            if len(groups) >= B:
                break
        groups = groups[:B]  # surplus groups are dropped, not kept for the next step
        rollout = sum(groups, Rollout([], [], [], [], []))  # end to end; a joined group is there twice  [4]

        # --- 2 reward and advantage
        rewards = [group.rewards().view(1, -1) for group in groups]  # [1, G] each, or [1, 2G]  [4]
        advantages = [group_advantages(group, args.advantage).flatten() for group in rewards]
        advantages = torch.cat([torch.zeros(0), *advantages])  # [N]
        batch = rollout.batch(advantages, run.model.device, args.mask_truncated)
        batch.rows_per_group = [len(group.texts) for group in groups]
        plain_ids = plain_prompts(run, rollout)
        guided = [ids != plain for ids, plain in zip(rollout.prompt_ids, plain_ids)]  # N, saw the hint
        if args.correction != "keep_hint":  # [2]
            batch.prompt_ids = plain_ids
        batch["guided"] = torch.tensor(guided, dtype=torch.bool, device=run.model.device)[:, None]  # [N, 1]
        batch["ratios"] = torch.zeros_like(batch["rollout_logprobs"])  # [N, T]

        # --- 3 update
        optimizer.param_groups[0]["lr"] = learning_rate(args, step)
        if groups and (args.minibatches * args.epochs > 1 or any(guided)):
            old_ids = plain_ids if args.correction == "none" else rollout.prompt_ids  # [2]
            batch["old_logprobs"], _ = run.score(batch, prompt_ids=old_ids)  # [N, T]
        if args.correction == "none" and any(guided):  # as if the plain prompt had sampled them  [2]
            pretended = torch.where(batch["guided"], batch["old_logprobs"], batch["rollout_logprobs"])
            batch["rollout_logprobs"] = pretended
        for minibatch in batch.split(args.minibatches) * args.epochs:
            run.optimizer_step(optimizer, accumulate_gradients(run.model, minibatch, args))

        # --- 4 push the weights to the sampler, log, score dev, save
        own = guide_metrics(run, batch)
        run.end_step(rollout, batch, own, guided=guided[: 2 * G])  # [4]
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
