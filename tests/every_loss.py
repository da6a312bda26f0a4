"""The loss of every script with every switch, in loops over completions and tokens, in numpy and float64.

No function of a script is used but one: the random draw of papers/clip_cov.py, from candidates found here.
"""

import math

import numpy as np
import torch
from random_model import nucleus_entropy_by_loops

import grpo
import guide
import h1_curriculum
import siren
from papers import (
    adaptive_bonus,
    adarft,
    cispo,
    clip_cov,
    dapo,
    dr_grpo,
    e2h,
    entropy_advantage,
    general_reasoner,
    gspo,
    guide_ablations,
    high_entropy_tokens,
    kl_cov,
    naive_bonus,
    passk,
    rloo,
    srpo,
)

GUIDES = (guide, guide_ablations)
ENTROPY_METHODS = (
    siren,
    naive_bonus,
    adaptive_bonus,
    entropy_advantage,
    high_entropy_tokens,
    clip_cov,
    kl_cov,
)
SCRIPTS = [grpo, dr_grpo, dapo, rloo, cispo, gspo, *GUIDES, h1_curriculum, adarft, e2h, *ENTROPY_METHODS]
SCRIPTS += [passk, srpo, general_reasoner]
AGGREGATION = {grpo: "sequence_mean", guide: "sequence_mean", dapo: "token_mean", rloo: "sum"}
AGGREGATION |= {cispo: "token_mean", gspo: "sequence_mean", general_reasoner: "sequence_mean"}
GUIDES_OWN = {"correction": "token", "shaping": "quantile"}  # what guide.py has no flags for


def name_of(script) -> str:
    """papers/dr_grpo.py -> dr_grpo"""
    return script.__name__.split(".")[-1]


def quantile_by_hand(values: list[float], share: float) -> float:
    """Interpolated linearly between the two sorted values that it falls between."""
    ordered, place = sorted(values), share * (len(values) - 1)
    below, above = ordered[math.floor(place)], ordered[math.ceil(place)]
    return below + (place - math.floor(place)) * (above - below)


def siren_entropy_by_hand(tables: list[np.ndarray], args) -> float:
    """SIREN's H of these completions: a mean over each one's peaks, then over completions."""
    means = []
    for table in tables:
        h = [nucleus_entropy_by_loops(row, args.nucleus_p, args.nucleus_rule) for row in table]
        peaks = [value for value in h if args.tau == 0 or value > quantile_by_hand(h, args.tau)]
        means.append(sum(peaks) / len(peaks) if peaks else 0.0)
    return sum(means) / len(means)


def mean_entropy_by_hand(tables: list[np.ndarray]) -> float:
    """The bonuses' H of these completions: a mean over tokens, then over completions."""
    return float(np.mean([-np.sum(np.exp(table) * table, axis=1).mean() for table in tables]))


def loss_by_hand(script, tables: list[np.ndarray], batch: dict, args, *own) -> dict[str, float]:
    """What one update logs: its losses, and its gamma, H or number of dropped tokens where it has one.

    `tables[i][t]` is the distribution over the vocabulary (log-probabilities) of token t of completion i.
    `own` is what the script's accumulate_gradients has behind the usual three arguments.
    """
    completions, found = batch["completion_ids"], {}
    places = [(i, t) for i, ids in enumerate(completions) for t in range(len(ids))]
    in_loss = [(i, t) for i, t in places if batch["loss_mask"][i].any()]
    advantage = {(i, t): batch["advantages"][i, 0].item() for i, t in places}
    new = {(i, t): float(tables[i][t, completions[i][t]]) for i, t in places}
    on_policy = "old_logprobs" not in batch or script is rloo or (script is kl_cov and own[0])
    old = new if on_policy else {place: batch["old_logprobs"][place].item() for place in places}
    ratio = {place: math.exp(new[place] - old[place]) for place in places}

    singled_out, gamma = set(), 1.0
    guided = {(i, t) for i, t in in_loss if script in GUIDES and batch["guided"][i, 0]}
    flag = lambda name: getattr(args, name, GUIDES_OWN.get(name))  # noqa: E731
    if script is gspo:
        for i in range(len(completions)):
            row = [(i, t) for t in range(len(completions[i]))]
            ratio |= dict.fromkeys(row, math.prod(ratio[place] for place in row) ** (1 / len(row)))
    if guided and flag("correction") == "sequence":
        for i in {i for i, _ in guided}:
            row = [(i, t) for t in range(len(completions[i]))]
            ratio |= dict.fromkeys(row, math.prod(ratio[place] for place in row))
    if guided and flag("shaping") == "quantile":
        gamma = max(1e-4, quantile_by_hand([ratio[place] for place in guided], args.gamma_quantile))
        found["gamma"] = gamma
    if script is entropy_advantage:
        for i, t in in_loss:
            entropy = -np.sum(np.exp(tables[i][t]) * tables[i][t])
            most = abs(advantage[i, t]) / args.shape_kappa
            advantage[i, t] += min(args.shape_alpha * entropy, most)
    if script in (high_entropy_tokens, clip_cov, kl_cov) and in_loss:
        singled_out = singled_out_by_hand(script, tables, batch, args, in_loss, new, ratio, *own)
        found["penalised" if script is kl_cov else "dropped"] = len(singled_out)

    policy_loss = kl_loss = 0.0
    for i, t in in_loss:
        place, A = (i, t), advantage[i, t]
        r = ratio[place]
        if script is rloo:
            objective = A * new[place]
        elif script is cispo:
            objective = min(r, 1 + args.clip_high) * A * new[place]
        elif script is kl_cov:
            objective = r * A - args.kl_coef * abs(new[place] - old[place]) * (place in singled_out)
        elif place in guided and flag("shaping") != "clip":
            objective = A * (r / (r + gamma) if flag("shaping") == "quantile" else r)
        else:
            limited = min(max(r, 1 - args.clip_low), 1 + args.clip_high)
            objective = 0.0 if place in singled_out else min(r * A, limited * A)
        if args.importance_cap is not None:
            sampled = batch["rollout_logprobs"][place].item()
            objective *= min(math.exp(old[place] - sampled), args.importance_cap)
        share = share_by_hand(script, batch, args, in_loss, i, *own)
        policy_loss -= objective * share
        if script in (grpo, general_reasoner) and args.kl_coef:
            difference = batch["ref_logprobs"][place].item() - new[place]
            kl = (math.exp(difference) - 1 - difference) * (r if args.kl_bias_correction else 1)
            kl_loss += args.kl_coef * kl * share
    total_loss = policy_loss + kl_loss
    if script is siren:
        found["regularised"] = H = siren_entropy_by_hand(tables, args)
        total_loss += args.beta * (H - own[0]) ** 2 if args.anchor else -args.beta * H
    if script in (naive_bonus, adaptive_bonus):
        found["mean_entropy"] = H = mean_entropy_by_hand(tables)
        total_loss -= (own[0] if own else args.bonus) * H
    return found | {"policy_loss": policy_loss, "total_loss": total_loss}


def singled_out_by_hand(script, tables, batch, args, in_loss, new, ratio, *own) -> set[tuple[int, int]]:
    """The tokens (completion, position) that an entropy method drops or penalises."""
    if script is high_entropy_tokens:
        entropy = {(i, t): -np.sum(np.exp(tables[i][t]) * tables[i][t]) for i, t in in_loss}
        return set(in_loss) - highest(entropy, math.ceil(args.token_fraction * len(in_loss)))
    advantage = {(i, t): batch["advantages"][i, 0].item() for i, t in in_loss}
    mean_a, mean_l = (sum(values[place] for place in in_loss) / len(in_loss) for values in (advantage, new))
    covariance = {place: (advantage[place] - mean_a) * (new[place] - mean_l) for place in in_loss}
    count = max(1, math.floor(args.cov_fraction * len(in_loss)))
    if script is kl_cov:
        return highest(covariance, count)
    candidates = torch.zeros_like(batch["loss_mask"])
    for place in in_loss:
        A, r = advantage[place], ratio[place]
        clipped = (A > 0 and r > 1 + args.clip_high) or (A < 0 and r < 1 - args.clip_low)
        candidates[place] = args.cov_low < covariance[place] < args.cov_high and not clipped
    drawn = script.random_tokens(candidates, batch["loss_mask"], count, *own)
    return set(map(tuple, drawn.nonzero().tolist()))


def highest(values: dict, count: int) -> set:
    """The `count` places with the highest values."""
    order = sorted(values, key=values.get, reverse=True)
    tie = count < len(order) and values[order[count - 1]] - values[order[count]] < 1e-9
    assert not tie, "rounding decides which of two equal values is in: choose another share"
    return set(order[:count])


def share_by_hand(script, batch: dict, args, in_loss, i: int, *own) -> float:
    """What a token of completion i weighs in the loss."""
    rows, aggregation = len(batch["completion_ids"]), getattr(args, "aggregation", AGGREGATION.get(script))
    if aggregation == "token_mean":
        return 1 / len(in_loss)
    if aggregation == "sequence_mean":
        return 1 / len({row for row, _ in in_loss}) / len(batch["completion_ids"][i])
    if aggregation == "sum":
        return 1 / rows
    longest = own[0] if script is h1_curriculum else args.max_new_tokens
    return 1 / longest / rows / (args.token_fraction if script is high_entropy_tokens else 1)
