"""entropy_baselines.py: each of the six methods against hand arithmetic, loops written from its paper, and Dr. GRPO."""

import doctest
import functools
import math

import numpy as np
import pytest
import torch
from random_model import distance, distributions, gradient, random_model
from test_update import BUDGETS, as_float32, assert_same, directional_derivative, make_batch, reordered, widened

import entropy_baselines as baselines
import grpo
import siren
from rollout import score, score_all

METHODS = {
    "naive_bonus": {},
    "adaptive_bonus": {},
    "entropy_advantage": {},
    "high_entropy_tokens": dict(token_fraction=0.3),
    "clip_cov": dict(cov_fraction=0.1, cov_low=0.2, cov_high=3.0),
    "kl_cov": dict(cov_fraction=0.1, kl_coef=0.7),
}
METHOD = pytest.mark.parametrize("method", METHODS)
BONUS = 0.3
OFF = {  # settings in which a method is Dr. GRPO
    "naive_bonus": {},  # with a bonus of 0
    "adaptive_bonus": {},
    "entropy_advantage": dict(shape_alpha=0.0),
    "high_entropy_tokens": dict(token_fraction=1.0),
    "clip_cov": dict(cov_low=math.inf),
    "kl_cov": dict(kl_coef=0.0),
}


@pytest.fixture(autouse=True)
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def make_args(method: str, **flags) -> baselines.Args:
    flags = {"max_new_tokens": 12, "temperature": 0.8, "micro_batch_tokens": 10**6, "cov_fraction": 0.1, "kl_coef": 0.7} | flags
    return baselines.Args(method=method, **METHODS[method] | flags)


def bonus_of(method: str) -> float:
    return BONUS if method.endswith("bonus") else 0.0


def update(model, batch: dict, args, rows: slice = slice(0, 16), bonus: float | None = None, seed: int = 5):
    model.zero_grad()
    bonus = bonus_of(args.method) if bonus is None else bonus
    return baselines.accumulate_gradients(model, batch, rows, args, bonus, seed), gradient(model)


# --- the pure functions ---------------------------------------------------------------------------------------------------


def test_adapted_bonus_by_hand():
    """Catches a weight that falls when the entropy is below its target, and one that turns negative."""
    assert baselines.adapted(0.1, 0.5, entropy=0.2, target=0.4) == pytest.approx(0.2)
    assert baselines.adapted(0.1, 0.5, entropy=0.4, target=0.3) == pytest.approx(0.05)
    assert baselines.adapted(0.1, 0.5, entropy=0.9, target=0.3) == 0.0


def test_shaped_advantages_by_hand():
    """Catches a lost cap, a cap that can turn a sign, a sign lost in |A|, and a gradient through the entropy."""
    entropies = torch.tensor([[0.1, 1.2, 5.0]] * 3, requires_grad=True)
    ours = baselines.shaped_advantages(torch.tensor([[1.0], [-0.25], [0.0]]), entropies, 0.4, 2.0)
    # .4 h is .04, .48, 2; the caps are .5, .125, 0
    assert ours.tolist() == [pytest.approx([1.04, 1.48, 1.5]), pytest.approx([-0.21, -0.125, -0.125]), [0.0] * 3]
    assert baselines.shaped_advantages(torch.tensor([[-0.25]]), entropies, 0.4, 1.0)[0, 1].item() == 0.0
    assert not ours.requires_grad


def test_top_tokens_by_hand():
    """Catches the lowest, tokens outside the mask, too many where there are ties or too few tokens."""
    values = torch.tensor([[3.0, 1.0, 9.0], [3.0, 2.0, 3.0]])
    mask = torch.tensor([[True, True, False], [True, True, True]])
    chosen = lambda count: baselines.top_tokens(values, mask, count).nonzero().tolist()  # noqa: E731
    assert chosen(2) == [[0, 0], [1, 0]] and chosen(4) == [[0, 0], [1, 0], [1, 1], [1, 2]]
    assert chosen(0) == [] and len(chosen(6)) == 5


def test_covariances_equal_numpy():
    """Catches means over padding or over completions in place of tokens: they add up to the covariance of the tokens."""
    generator = np.random.default_rng(0)
    advantages, logprobs, lengths = generator.standard_normal((6, 1)), -generator.random((6, 9)), np.array([9, 1, 4, 2, 0, 7])
    mask = np.arange(9) < lengths[:, None]
    ours = baselines.covariances(torch.from_numpy(advantages), torch.from_numpy(logprobs), torch.from_numpy(mask)).numpy()
    of_tokens = np.broadcast_to(advantages, mask.shape)[mask], logprobs[mask]
    np.testing.assert_allclose(ours[mask], (of_tokens[0] - of_tokens[0].mean()) * (of_tokens[1] - of_tokens[1].mean()), rtol=1e-12)
    assert not ours[~mask].any() and ours.sum() / mask.sum() == pytest.approx(np.cov(*of_tokens, ddof=0)[0, 1])


def test_random_tokens_are_drawn_from_the_candidates():
    """Catches a draw outside the candidates, the same for every seed, one that depends on the padding, or that is not uniform."""
    mask = torch.arange(10) < torch.tensor([10, 4])[:, None]
    candidates = mask & (torch.arange(10) % 2 == 0)  # 5 + 2
    draws = [baselines.random_tokens(candidates, mask, 3, seed) for seed in range(300)]
    assert all(draw.sum() == 3 and not (draw & ~candidates).any() for draw in draws)
    often = torch.stack(draws).sum(0)[candidates]
    assert 85 < often.min() and often.max() < 175  # 300 * 3 / 7 = 128.6, with a standard deviation of 8.6
    pad = lambda tensor: torch.nn.functional.pad(tensor, (0, 4))  # noqa: E731
    assert all(torch.equal(baselines.random_tokens(pad(candidates), pad(mask), 3, seed), pad(draws[seed])) for seed in range(20))
    assert not baselines.random_tokens(torch.zeros_like(mask), mask, 3, 0).any()


# --- the whole loss, in loops ---------------------------------------------------------------------------------------------


def loss_of_the_papers(model, batch: dict, args, rows: range, fixed: dict | None = None) -> dict:
    """Dr. GRPO with one of the methods in loops, in numpy and float64. `fixed` holds what carries no gradient."""
    logprobs, entropies, old, advantages = {}, {}, {}, {}
    for i in rows:
        table = distributions(model, batch["prompt_ids"][i], batch["completion_ids"][i], args.temperature).numpy()
        for t, token in enumerate(batch["completion_ids"][i]):
            logprobs[i, t], entropies[i, t] = table[t, token], -np.sum(np.exp(table[t]) * table[t])
            old[i, t] = batch["old_logprobs"][i, t].item() if "old_logprobs" in batch else logprobs[i, t]
            advantages[i, t] = batch["advantages"][i, 0].item()
    tokens = [place for place in logprobs if batch["loss_mask"][place[0]].any()]
    if fixed is None:
        mean = lambda values: sum(values[place] for place in tokens) / len(tokens)  # noqa: E731
        mean_a, mean_l = mean(advantages), mean(logprobs)
        covariance = {place: (advantages[place] - mean_a) * (logprobs[place] - mean_l) for place in tokens}
        touched, count = set(), max(1, math.floor(args.cov_fraction * len(tokens)))
        if args.method == "high_entropy_tokens":
            touched = set(sorted(tokens, key=entropies.get)[: len(tokens) - math.ceil(args.token_fraction * len(tokens))])
        if args.method == "kl_cov":
            touched = set(sorted(tokens, key=covariance.get)[-count:])
        if args.method == "clip_cov":
            touched = {place for place in tokens if args.cov_low < covariance[place] < args.cov_high}
            ratio = {place: math.exp(logprobs[place] - old[place]) for place in tokens}
            touched -= {place for place in touched if ratio[place] > 1 + args.clip_high and advantages[place] > 0}
            touched -= {place for place in touched if ratio[place] < 1 - args.clip_low and advantages[place] < 0}
            assert len(touched) > count  # something is left to chance
        fixed = {"old": old, "entropies": entropies, "touched": touched, "count": count}
    policy_loss = mean_entropy = 0.0
    for i, t in logprobs:
        mean_entropy += entropies[i, t] / len(batch["completion_ids"][i]) / len(rows)
    for place in tokens:
        advantage = advantages[place]
        if args.method == "entropy_advantage":
            advantage += min(args.shape_alpha * fixed["entropies"][place], abs(advantage) / args.shape_kappa)
        ratio = math.exp(logprobs[place] - fixed["old"][place])
        loss = -min(ratio * advantage, min(max(ratio, 1 - args.clip_low), 1 + args.clip_high) * advantage)
        if args.method == "kl_cov":
            loss = -ratio * advantage
            loss += args.kl_coef * abs(logprobs[place] - fixed["old"][place]) if place in fixed["touched"] else 0.0
        if args.method in ("high_entropy_tokens", "clip_cov") and place in fixed["touched"]:
            loss = 0.0
        length = args.max_new_tokens * (args.token_fraction if args.method == "high_entropy_tokens" else 1)
        policy_loss += loss / length / len(rows)
    return {"policy_loss": policy_loss, "mean_entropy": mean_entropy,
            "total_loss": policy_loss - bonus_of(args.method) * mean_entropy, "fixed": fixed}  # fmt: skip


def with_the_scripts_choice(batch: dict, args, rows: range, expected: dict) -> None:
    """clip_cov draws at random: check the draw, then let the loops have it."""
    drawn = baselines.touched_tokens(random_model(), batch, slice(rows.start, rows.stop), args, 5).nonzero().tolist()
    places = {(rows.start + i, t) for i, t in drawn}
    assert places < expected["fixed"]["touched"] and len(places) == expected["fixed"]["count"]
    expected["fixed"]["touched"] = places


@METHOD
@pytest.mark.parametrize("truncated", [False, True], ids=["scored", "masked"])
def test_loss_equals_loops_written_from_the_papers(method, truncated):
    """Catches a wrong sign, mask, threshold, denominator or weight, in the loss and in what is logged."""
    model, batch, args = random_model(), make_batch(old=True, truncated=truncated), make_args(method)
    for rows in (range(16), range(4, 12)):
        sums, _ = update(model, batch, args, slice(rows.start, rows.stop))
        expected = loss_of_the_papers(model, batch, args, rows)
        if method == "clip_cov":
            with_the_scripts_choice(batch, args, rows, expected)
            expected = loss_of_the_papers(model, batch, args, rows, expected["fixed"])
        for name in ("policy_loss", "total_loss", "mean_entropy"):
            assert sums[name] == pytest.approx(expected[name], rel=1e-9), name
        assert sums["touched"] == len(expected["fixed"]["touched"])
        assert (sums["touched"] > 2) == (method in ("high_entropy_tokens", "clip_cov", "kl_cov"))


@METHOD
def test_gradient_equals_finite_differences_of_the_papers_loss(method):
    """Catches a term without its gradient, and a gradient through a threshold or a shaped advantage."""
    model, batch, args = random_model(), make_batch(old=True, truncated=True, groups=2), make_args(method)
    _, ours = update(model, batch, args, slice(0, 8))
    expected = loss_of_the_papers(model, batch, args, range(8))
    if method == "clip_cov":
        with_the_scripts_choice(batch, args, range(8), expected)
    loss = lambda: loss_of_the_papers(model, batch, args, range(8), expected["fixed"])["total_loss"]  # noqa: E731
    assert directional_derivative(model, loss, 0, ours) == pytest.approx(1.0, abs=1e-5)


@METHOD
@pytest.mark.parametrize("old", [False, True], ids=["on_policy", "old_logprobs"])
def test_switched_off_it_is_dr_grpo(method, old):
    """Catches any difference to grpo.py that is not the method: sums and gradient are equal to the last bit."""
    torch.set_default_dtype(torch.float32)
    model, batch = random_model(torch.float32), as_float32(make_batch(old=old, truncated=True))
    flags = dict(max_new_tokens=12, temperature=0.8, micro_batch_tokens=250)
    if method == "kl_cov":  # its ratios are not clipped
        flags |= dict(clip_low=math.inf, clip_high=math.inf)
    theirs_sums = grpo.accumulate_gradients(model, batch, slice(0, 16), grpo.Args(aggregation="constant", **flags))
    theirs = gradient(model)
    sums, ours = update(model, batch, make_args(method, **flags | OFF[method]), bonus=0.0)
    assert torch.equal(ours, theirs) and ours.norm() > 1e-4
    assert {name: sums[name] for name in theirs_sums} == theirs_sums
    switched_on = update(model, batch, make_args(method, **flags))[1]
    changes = not (method == "kl_cov" and not old)  # [D4]: on-policy the penalty has no gradient
    assert (distance(switched_on, theirs) > 1e-3) == changes


@METHOD
def test_what_must_change_nothing(method, monkeypatch):
    """Catches thresholds and denominators of a micro-batch, rows that are mixed up, and padding that is counted."""
    model, batch, args = random_model(), make_batch(old=True, truncated=True), make_args(method)
    expected = update(model, batch, args)
    for budget in (BUDGETS["two"], BUDGETS["one"]):
        assert_same(update(model, batch, make_args(method, micro_batch_tokens=budget)), expected)
    assert_same(update(model, widened(batch), args), expected)
    if method != "clip_cov":  # the draw follows the rows
        assert_same(update(model, reordered(batch, (3, 0, 2, 1)), args), expected)
    alone = {name: value[4:12] for name, value in batch.items()}
    assert_same(update(model, batch, args, slice(4, 12)), update(model, alone, args, slice(0, 8)))
    monkeypatch.setattr(baselines, "score", functools.partial(score, share_prompts=False))
    assert_same(update(model, batch, args), expected)


@METHOD
def test_everything_masked_is_finite(method):
    """Catches 0/0 where nothing is left in the loss."""
    batch = make_batch(old=True)
    batch["loss_mask"][:] = False
    sums, ours = update(random_model(), batch, make_args(method))
    assert ours.isfinite().all() and sums["policy_loss"] == 0.0 and sums["touched"] == 0
    assert (ours.norm() > 0) == method.endswith("bonus")


def test_naive_bonus_is_siren_with_everything_off():
    """Catches two different entropies under one name: SIREN without masks and anchor has the same loss and gradient."""
    model, batch = random_model(), make_batch(old=True)
    sums, ours = update(model, batch, make_args("naive_bonus"))
    args = siren.Args(beta=BONUS, nucleus_p=1.0, tau=0.0, anchor=False, max_new_tokens=12, temperature=0.8, micro_batch_tokens=10**6)
    model.zero_grad()
    theirs = siren.accumulate_gradients(model, batch | {"selected": torch.zeros_like(batch["loss_mask"])}, slice(0, 16), args, 1.0)
    assert distance(ours, gradient(model)) <= 1e-10
    assert sums["total_loss"] == pytest.approx(theirs["total_loss"], rel=1e-12)


def test_bonus_raises_the_entropy():
    """Catches a bonus that is a punishment."""
    model, batch, args = random_model(), make_batch(), make_args("naive_bonus")
    batch["advantages"][:] = 0.0
    rows = batch["prompt_ids"], batch["completion_ids"], 0.8, 10**6
    before, push = score_all(model, *rows)[1].sum(), update(model, batch, args)[1]
    start = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
    torch.nn.utils.vector_to_parameters(start - 1e-3 * push / push.norm(), model.parameters())
    assert score_all(model, *rows)[1].sum() > before + 1e-4


def test_defaults_are_those_of_the_papers():
    """Catches a default that has drifted from its paper (the lower bound of Clip-Cov is ours, [D1])."""
    args = baselines.Args()
    assert (args.shape_alpha, args.shape_kappa, args.token_fraction, args.kl_coef) == (0.4, 2.0, 0.2, 1.0)
    assert (args.cov_high, args.cov_low, args.target_share) == (5.0, 0.1, 1.0)
    assert baselines.DEFAULTS["real"]["cov_fraction"] == 2e-4


def test_at_least_one_token_is_touched():
    """Catches a share of a small batch that rounds to nothing."""
    for method in ("clip_cov", "kl_cov"):
        assert update(random_model(), make_batch(old=True), make_args(method, cov_fraction=1e-6))[0]["touched"] == 1


def test_examples_in_docstrings():
    """Catches documentation that has drifted from the code."""
    torch.set_default_dtype(torch.float32)
    result = doctest.testmod(baselines)
    assert result.attempted > 1 and result.failed == 0
