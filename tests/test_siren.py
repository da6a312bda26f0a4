"""siren.py against hand arithmetic, loops written from the paper, finite differences, and everything that
must not change it."""

import dataclasses
import doctest
import functools
import json
import math

import numpy as np
import pytest
import torch
from kit import (
    BUDGETS,
    as_float32,
    assert_same,
    directional_derivative,
    make_batch,
    reordered,
    widened,
)
from mutants import mutant
from random_model import (
    EOS,
    GRADIENT,
    as_batch,
    distance,
    distributions,
    gradient,
    nucleus_entropy_by_loops,
    random_model,
)
from toys import HashTask, quick_flags

import plainrl.run as run_module
import siren
from papers import dr_grpo
from plainrl import scoring
from plainrl.models import load_model
from plainrl.rollout import pad
from plainrl.scoring import logprob_and_entropy, micro_batch_rows, score, score_all

RULES = pytest.mark.parametrize("rule", ["standard", "official"])
SETTINGS = {  # the method, its ablations and the authors' nucleus
    "siren": {},
    "official": dict(nucleus_rule="official"),
    "whole vocabulary": dict(nucleus_p=1.0),
    "every token": dict(tau=0.0),
    "anchor alone": dict(nucleus_p=1.0, tau=0.0),
    "no anchor": dict(anchor=False),
}
SETTING = pytest.mark.parametrize("setting", SETTINGS)


@pytest.fixture(autouse=True)
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def make_args(**flags) -> siren.Args:
    flags = {"beta": 0.7, "max_new_tokens": 12, "temperature": 0.8, "micro_batch_tokens": 10**6} | flags
    return siren.Args(**flags)


def siren_batch(**options) -> dict:
    batch = make_batch(**options)
    return batch | {"selected": torch.zeros_like(batch["completion_mask"])}


def update(model, batch: dict, args, anchor: float = 1.0, rows: slice = slice(None)):
    """Sums for the log, without the policy's where there is none, and the gradient as one vector."""
    model.zero_grad()
    sums = siren.accumulate_gradients(model, as_batch(batch, rows), args, anchor)
    return sums, gradient(model)


# --- the entropy of the nucleus -----------------------------------------------------------------------------

GOLDEN = [  # probabilities; entropy without the token that crosses, by the standard rule, of all tokens
    ((0.9, 0.05, 0.05), 0.0, 0.0, 0.394398),
    ((0.5, 0.4, 0.1), 0.0, 0.686962, 0.943348),
    ((0.4, 0.3, 0.2, 0.1), 0.682908, 1.060857, 1.279854),
    ((0.3, 0.25, 0.2, 0.15, 0.1), 1.085189, 1.354885, 1.544480),
]


@mutant(
    "crossing token left out",
    "siren.py",
    'kept = (mass - probs if rule == "standard" else mass) < top_p',
    "kept = mass < top_p",
)
@mutant(
    "crossing token kept",
    "siren.py",
    'kept = (mass - probs if rule == "standard" else mass) < top_p',
    "kept = mass - probs < top_p",
)
@mutant(
    "nucleus of the least likely",
    "siren.py",
    "logits.shape[-1]), dim=-1)",
    "logits.shape[-1]), dim=-1, largest=False)",
)
@mutant(
    "nucleus not renormalised",
    "siren.py",
    "torch.log_softmax(inside, dim=-1)",
    "torch.log_softmax(logits, dim=-1).gather(-1, ids)",
)
@mutant("nucleus of the first tokens", "siren.py", "logits.gather(-1, ids)", "logits[..., : ids.shape[-1]]")
@mutant("sign of the entropy", "siren.py", "entropy = -(logprobs.exp()", "entropy = (logprobs.exp()")
@pytest.mark.parametrize("probabilities, official, standard, full", GOLDEN)
def test_nucleus_entropy_golden_values(probabilities, official, standard, full):
    """Catches the crossing token on the wrong side, a nucleus that is not renormalised, bits for nats. By
    hand for (.5, .4, .1): .5 alone is below .8, .5 + .4 crosses it; 5/9 and 4/9 have entropy .326549 +
    .360413. For the last: 3, 2.5, 2 and 1.5 of 9 have .366204 + .355815 + .334239 + .298627."""
    for order in (list(range(len(probabilities))), list(reversed(range(len(probabilities))))):
        logits = torch.tensor(probabilities)[order].log() + 3.0  # a constant in the logits is no matter
        assert siren.nucleus_entropy(logits, 0.8, "official").item() == pytest.approx(official, abs=1e-6)
        assert siren.nucleus_entropy(logits, 0.8, "standard").item() == pytest.approx(standard, abs=1e-6)
        for rule in ("official", "standard"):
            assert siren.nucleus_entropy(logits, 1.0, rule).item() == pytest.approx(full, abs=1e-6)
            assert siren.nucleus_entropy(logits.float(), 0.8, rule).item() == pytest.approx(
                {"official": official, "standard": standard}[rule], abs=1e-6
            )


def test_nucleus_entropy_golden_gradient():
    """Catches a gradient outside the nucleus or through its choice: of (.4, .3, .2, .1) the nucleus is the
    first three, and dh/dz = -q (log q + h) with q = 4/9, 3/9, 2/9."""
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log().requires_grad_()
    siren.nucleus_entropy(logits, 0.8).backward()
    assert logits.grad.tolist() == pytest.approx([-0.111079, 0.012585, 0.098493, 0.0], abs=1e-6)
    assert logits.grad[3].item() == 0.0 and abs(logits.grad.sum().item()) < 1e-12


@mutant("p of 1 cuts the tail", "siren.py", "if top_p >= 1:", "if top_p > 1:", case="1.0-official")
@RULES
@pytest.mark.parametrize("p", [0.5, 0.8, 0.95, 1.0])
def test_nucleus_entropy_equals_loops_and_finite_differences(rule, p):
    """Catches a wrong set, a set of another row, and a gradient that is not that of the entropy while the
    set stays the same."""
    logits = 2 * torch.randn(20, 30, generator=torch.Generator().manual_seed(0))
    logits.requires_grad_()
    ours = siren.nucleus_entropy(logits, p, rule)
    table = torch.log_softmax(logits.detach(), -1).numpy()
    np.testing.assert_allclose(
        ours.detach().numpy(),
        [nucleus_entropy_by_loops(row, p, rule) for row in table],
        rtol=1e-10,
        atol=1e-12,
    )
    ours.sum().backward()
    inside = 0
    for row, token in [(row, token) for row in range(20) for token in range(0, 30, 3)]:
        values = []
        for move in (1e-6, -1e-6):
            moved = logits.detach()[row].clone()
            moved[token] += move
            values.append(nucleus_entropy_by_loops(torch.log_softmax(moved, -1).numpy(), p, rule))
        assert logits.grad[row, token].item() == pytest.approx((values[0] - values[1]) / 2e-6, abs=1e-7)
        inside += logits.grad[row, token].item() != 0
    assert 2 < inside <= 200 and (inside < 200) == (p < 1)
    assert logits.grad.sum(-1).abs().max() < 1e-12  # nothing moves between nucleus and tail


@mutant(
    "empty nucleus",
    "siren.py",
    "        kept[..., 0] = True  # one token and none are both entropy 0, and this one has no log 0\n",
    "",
)
def test_nucleus_of_one_token_or_none_is_no_entropy_and_no_gradient():
    """Catches log 0 and 0/0: a certain token, a token above p, infinite logits below."""
    logits = torch.tensor([[50.0, 0.0, 0.0], [3.0, 0.0, 0.0], [0.0, 900.0, 0.0]], requires_grad=True)
    for rule in ("official", "standard"):
        entropy = siren.nucleus_entropy(logits, 0.8, rule)
        entropy.sum().backward()
        assert entropy.tolist() == [0.0] * 3 and logits.grad.count_nonzero() == 0


def test_nucleus_of_equally_likely_tokens():
    """Catches ties that drag the rest of the vocabulary in: of eight equal tokens p = .5 takes four, and the
    official rule three."""
    assert siren.nucleus_entropy(torch.zeros(8), 0.5).item() == pytest.approx(math.log(4))
    assert siren.nucleus_entropy(torch.zeros(8), 0.5, "official").item() == pytest.approx(math.log(3))
    assert siren.nucleus_entropy(torch.zeros(8), 0.51, "official").item() == pytest.approx(math.log(4))


@mutant("nucleus cut short", "siren.py", "if largest < logits.shape[-1] and too_few.any():", "if False:")
@RULES
def test_nucleus_larger_than_the_first_look(rule):
    """Catches a nucleus that ends with the tokens that were looked at first (32, then 256), in a row that
    needs more or beside one."""
    flat, peaked = torch.zeros(5000), torch.arange(5000) * -1.0
    ours = siren.nucleus_entropy(torch.stack([flat, peaked]), 0.8, rule)
    table = torch.log_softmax(torch.stack([flat, peaked]), -1).numpy()
    assert ours.tolist() == pytest.approx(
        [nucleus_entropy_by_loops(row, 0.8, rule) for row in table], rel=1e-3
    )
    assert ours[0].item() == pytest.approx(math.log(4000), abs=1e-3)
    alone = siren.nucleus_entropy(peaked, 0.8, rule)
    assert ours[1].item() == pytest.approx(alone.item(), rel=1e-12)


@mutant(
    "search for the nucleus without end",
    "siren.py",
    "if largest < logits.shape[-1] and too_few.any():",
    "if too_few.any():",
)
def test_nucleus_that_rounding_never_fills():
    """Catches a search without end: for p a hair below 1 the probabilities may add up to less."""
    logits = torch.randn(50, 700, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    ours, whole = (siren.nucleus_entropy(logits, p) for p in (1 - 1e-9, 1.0))
    torch.testing.assert_close(ours, whole, rtol=1e-4, atol=0)


def test_bfloat16_logits_have_the_entropy_of_their_values():
    """Catches sums of hundreds of probabilities in 8 bits."""
    logits = torch.randn(5, 3000, generator=torch.Generator().manual_seed(0)).bfloat16()
    ours = siren.nucleus_entropy(logits, 0.8)
    torch.testing.assert_close(
        ours, siren.nucleus_entropy(logits.double(), 0.8), rtol=1e-4, atol=0, check_dtype=False
    )
    assert siren.peak_mask(ours[None], torch.ones(1, 5, dtype=torch.bool), 0.5).sum() == 2


def test_defaults_are_those_of_the_code():
    """Catches a default that has drifted: p = tau = 0.8 and beta = 0.005 are what the authors' script runs
    (the rule is ours)."""
    args = siren.Args()
    assert (args.nucleus_p, args.tau, args.nucleus_rule, args.anchor, args.beta) == (
        0.8,
        0.8,
        "standard",
        True,
        None,
    )
    beta = next(flag for flag in dataclasses.fields(siren.Args) if flag.name == "beta")
    assert beta.metadata["by_size"]["large"] == 0.005


# --- which tokens -------------------------------------------------------------------------------------------


@mutant(
    "peaks at the quantile",
    "siren.py",
    "(entropies > threshold) & completion_mask",
    "(entropies >= threshold) & completion_mask",
)
@mutant("padding selected", "siren.py", "(entropies > threshold) & completion_mask", "entropies > threshold")
@mutant(
    "quantile over padding",
    "siren.py",
    "in_completion.nanquantile(quantile, dim=1, keepdim=True)",
    "entropies.detach().quantile(quantile, dim=1, keepdim=True)",
)
@mutant(
    "quantile of the batch", "siren.py", "nanquantile(quantile, dim=1, keepdim=True)", "nanquantile(quantile)"
)
@mutant("peaks of the others", "siren.py", "(entropies > threshold)", "(entropies < threshold)")
def test_peak_mask_by_hand():
    """Catches >= for >, a quantile over padding or over the batch, and selected padding."""
    entropies = torch.tensor(
        [
            [
                0.0,
                0.1,
                0.2,
                0.9,
                1.1,
                9.0,
            ],  # five tokens: the .8 quantile lies .2 of the way from .9 to 1.1, at .94
            [0.0, 0.0, 0.0, 0.0, 0.0, 9.0],  # all certain: the quantile is 0, and nothing is above it
            [0.0, 0.0, 0.0, 0.0, 0.0, 0.3],  # six tokens: 0, and one is above it
            [0.7, 9.0, 9.0, 9.0, 9.0, 9.0],  # one token is its own quantile
            [0.1, 0.4, 9.0, 9.0, 9.0, 9.0],  # two: .34
            [9.0, 9.0, 9.0, 9.0, 9.0, 9.0],  # none
        ]
    )
    mask = torch.arange(6) < torch.tensor([5, 5, 6, 1, 2, 0])[:, None]
    selected = siren.peak_mask(entropies, mask, 0.8)
    assert selected.nonzero().tolist() == [[0, 4], [2, 5], [4, 1]]
    assert torch.equal(siren.peak_mask(entropies, mask, 0.0), mask)  # by definition every token
    at_the_quantile = siren.peak_mask(
        torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]]), torch.ones(1, 6, dtype=torch.bool), 0.8
    )
    assert at_the_quantile.tolist() == [[False, False, False, False, False, True]]  # the quantile is 5 itself


@pytest.mark.parametrize("quantile", [0.2, 0.5, 0.8, 0.95])
def test_peak_mask_equals_numpy(quantile):
    """Catches another interpolation."""
    generator = np.random.default_rng(0)
    entropies, lengths = generator.random((40, 30)), generator.integers(1, 31, 40)
    selected = siren.peak_mask(
        torch.from_numpy(entropies), torch.arange(30) < torch.from_numpy(lengths)[:, None], quantile
    )
    for row, length, ours in zip(entropies, lengths, selected.numpy()):
        expected = row[:length] > np.quantile(row[:length], quantile)
        assert ours[:length].tolist() == expected.tolist() and not ours[length:].any()


@mutant("square left out", "siren.py", "beta * (entropy - anchor) ** 2", "beta * (entropy - anchor)")
def test_regulariser_golden_value():
    """Catches a weight or a square that is missing: H 1.1, anchor .7, beta .005 -> .005 * .16; and its slope
    2 beta (H - anchor)."""
    entropies, mask = (
        torch.tensor([[0.0, 0.1, 0.2, 0.9, 1.1]], requires_grad=True),
        torch.ones(1, 5, dtype=torch.bool),
    )
    H = (entropies * siren.peak_mean(siren.peak_mask(entropies, mask, 0.8))).sum()
    loss = siren.regulariser(H, 0.7, 0.005)
    loss.backward()
    assert H.item() == pytest.approx(1.1) and loss.item() == pytest.approx(0.0008, rel=1e-6)
    assert entropies.grad.tolist() == [pytest.approx([0, 0, 0, 0, 0.004])]
    assert (
        siren.regulariser(0.5, 0.7, 0.005) == pytest.approx(0.0002)
        and siren.regulariser(0.5, None, 0.005) == -0.0025
    )


@mutant(
    "mean over completions that have peaks",
    "siren.py",
    "clamp(min=1) / selected.shape[0]",
    "clamp(min=1) / (selected.sum(dim=1) > 0).sum().clamp(min=1)",
)
@mutant(
    "mean over all selected tokens",
    "siren.py",
    "selected / selected.sum(dim=1, keepdim=True).clamp(min=1) / selected.shape[0]",
    "selected / selected.sum().clamp(min=1)",
)
def test_completion_without_a_selected_token_counts_as_zero():
    """Catches a mean over those completions alone that have selected tokens, and a mean over all tokens of
    the batch."""
    selected = torch.tensor([[True, True, False], [False, False, False], [True, False, False]])
    weights = siren.peak_mean(selected)
    assert weights.tolist() == [[1 / 6, 1 / 6, 0.0], [0.0] * 3, [1 / 3, 0.0, 0.0]]


# --- the whole loss, in loops -------------------------------------------------------------------------------


def mean_entropy_by_loops(
    model, batch: dict, args, rows: range, chosen: dict | None = None
) -> tuple[float, dict, dict]:
    """H in loops over completions and tokens, the selected tokens, and every token's entropy. `chosen` keeps
    the selection."""
    entropies, selected, mean = {}, {}, 0.0
    for i in rows:
        table = distributions(
            model, batch["prompt_ids"][i], batch["completion_ids"][i], args.temperature
        ).numpy()
        h = [nucleus_entropy_by_loops(row, args.nucleus_p, args.nucleus_rule) for row in table]
        entropies |= {(i, t): value for t, value in enumerate(h)}
        above = (
            chosen[i]
            if chosen
            else [t for t in range(len(h)) if args.tau == 0 or h[t] > np.quantile(h, args.tau)]
        )
        selected[i] = above
        mean += sum(h[t] for t in above) / len(above) / len(rows) if above else 0.0
    return mean, selected, entropies


def loss_by_loops(model, batch: dict, args, rows: range, anchor: float, fixed: dict | None = None) -> dict:
    """Dr. GRPO and the regulariser in loops, in numpy and float64, with no function of the script.

    `fixed` holds what carries no gradient, for finite differences: the old log-probs and the selected tokens.
    """
    H, selected, entropies = mean_entropy_by_loops(model, batch, args, rows, fixed and fixed["selected"])
    policy_loss, logprobs = 0.0, {}
    for i in rows:
        table = distributions(
            model, batch["prompt_ids"][i], batch["completion_ids"][i], args.temperature
        ).numpy()
        for t, token in enumerate(batch["completion_ids"][i]):
            logprobs[i, t] = table[t, token]
            old = (
                batch["old_logprobs"][i, t].item()
                if "old_logprobs" in batch
                else (fixed["logprobs"] if fixed else logprobs)[i, t]
            )
            ratio, advantage = math.exp(table[t, token]) / math.exp(old), batch["advantages"][i, 0].item()
            limited = min(max(ratio, 1 - args.clip_low), 1 + args.clip_high)
            if batch["loss_mask"][i].any():
                policy_loss -= min(ratio * advantage, limited * advantage) / args.max_new_tokens / len(rows)
    penalty = args.beta * (H - anchor) ** 2 if args.anchor else -args.beta * H
    return {
        "policy_loss": policy_loss,
        "total_loss": policy_loss + penalty,
        "regularised": H,
        "nucleus": sum(entropies.values()),
        "selected": selected,
        "logprobs": logprobs,
    }


@SETTING
@pytest.mark.parametrize("anchor", [0.1, 2.0], ids=["below H", "above H"])
def test_loss_equals_loops(setting, anchor):
    """Catches any wrong sign, set, mask, mean, square or weight, in the loss and in what is logged."""
    model, batch, args = random_model(), siren_batch(old=True, truncated=True), make_args(**SETTINGS[setting])
    for rows in (range(16), range(4, 12)):
        sums, _ = update(model, batch, args, anchor, slice(rows.start, rows.stop))
        expected = loss_by_loops(model, batch, args, rows, anchor)
        for name in ("policy_loss", "total_loss", "regularised", "nucleus"):
            assert sums[name] == pytest.approx(expected[name], rel=1e-9), name
        chosen = {i: batch["selected"][i].nonzero().flatten().tolist() for i in rows}
        assert chosen == expected["selected"] and sums["selected"] == sum(map(len, chosen.values()))
        assert args.tau == 0 or 0.05 < sums["selected"] / sums["tokens"] < 0.3


@mutant(
    "entropy without gradient",
    "siren.py",
    "            logits, args.nucleus_p, args.nucleus_rule",
    "            logits.detach(), args.nucleus_p, args.nucleus_rule",
    case="on_policy-siren",
)
@SETTING
@pytest.mark.parametrize("old", [False, True], ids=["on_policy", "old_logprobs"])
def test_gradient_equals_finite_differences_of_the_loops(setting, old):
    """Catches an entropy without gradient, a gradient through the choice of tokens, and a slope that is not
    that of the square."""
    model, batch, args = (
        random_model(),
        siren_batch(old=old, truncated=True, groups=2),
        make_args(**SETTINGS[setting]),
    )
    for anchor in (0.1, 2.0):
        _, ours = update(model, batch, args, anchor)
        fixed = loss_by_loops(model, batch, args, range(8), anchor)
        loss = lambda: loss_by_loops(model, batch, args, range(8), anchor, fixed)["total_loss"]  # noqa: B023, E731
        start = torch.nn.utils.parameters_to_vector(model.parameters()).detach().clone()
        assert directional_derivative(model, loss, 0, ours) == pytest.approx(1.0, abs=1e-5)
        torch.nn.utils.vector_to_parameters(start, model.parameters())


def without_policy(**options) -> dict:
    batch = siren_batch(**options)
    batch["advantages"][:] = 0.0
    return batch


@mutant("square left out")
@mutant(
    "away from the anchor",
    "siren.py",
    "else beta * (entropy - anchor) ** 2",
    "else -beta * (entropy - anchor) ** 2",
)
def test_gradient_changes_its_sign_at_the_anchor():
    """Catches a one-sided regulariser and a swapped sign: as far below the anchor as above it is the
    opposite gradient, at the anchor there is none, and a step against the gradient brings H closer from both
    sides."""
    model, batch, args = random_model(), without_policy(), make_args()
    H = siren.regularised_entropy(model, as_batch(batch), args)[1].item()
    above, below = update(model, batch, args, H - 0.3)[1], update(model, batch, args, H + 0.3)[1]
    assert above.norm() > 1e-3 and distance(above, -below) < 1e-10
    assert update(model, batch, args, H)[1].abs().max() < 1e-14
    for push, closer in ((above, -1), (below, 1)):
        start = torch.nn.utils.parameters_to_vector(model.parameters()).detach().clone()
        torch.nn.utils.vector_to_parameters(start - 1e-3 * push / push.norm(), model.parameters())
        moved = siren.regularised_entropy(model, as_batch(batch), args)[1].item()
        assert (moved - H) * closer > 1e-5
        torch.nn.utils.vector_to_parameters(start, model.parameters())


@mutant(
    "bonus with the wrong sign",
    "siren.py",
    "return -beta * entropy if anchor is None",
    "return beta * entropy if anchor is None",
)
@mutant("anchor that cannot be left out", "siren.py", "anchor if args.anchor else None", "anchor")
def test_bonus_without_anchor_pushes_one_way():
    """Catches an anchor that is read although it is off, and a bonus that lowers the entropy."""
    model, batch, args = random_model(), without_policy(), make_args(anchor=False)
    H = siren.regularised_entropy(model, as_batch(batch), args)[1].item()
    pushes = [update(model, batch, args, anchor)[1] for anchor in (H - 1, H + 1)]
    assert torch.equal(*pushes)
    anchored = update(model, batch, make_args(), H + 0.5)[1]  # slope 2 beta (-.5) = -beta
    assert distance(pushes[0], anchored) < 1e-10


def test_gradient_vanishes_outside_the_mask(monkeypatch):
    """Catches entropies that are regularised where no peak is: the logits of all other tokens get no
    gradient at all."""
    model, batch, args, logits = random_model(), without_policy(groups=2), make_args(), []
    original = siren.nucleus_entropy

    def watched(block, *rest):
        if block.requires_grad:
            block.register_hook(logits.append)
        return original(block, *rest)

    monkeypatch.setattr(siren, "nucleus_entropy", watched)
    update(model, batch, args, 3.0)
    gradients = torch.cat(logits)  # one row a token, in the order of the completions
    touched = gradients.abs().amax(1) > 0
    assert torch.equal(touched, batch["selected"][batch["completion_mask"]]) and 0 < touched.sum() < len(
        touched
    )


@mutant(
    "tau of 0 leaves the lowest out",
    "siren.py",
    "    if quantile == 0:\n        return completion_mask.clone()\n",
    "",
)
def test_whole_vocabulary_and_every_token_are_the_plain_mean_entropy():
    """Catches masks that are not off at p = 1 and tau = 0: H is the mean over completions of their mean
    entropy."""
    model, batch, args = random_model(), siren_batch(), make_args(nucleus_p=1.0, tau=0.0)
    rows = batch["prompt_ids"], batch["completion_ids"], args.temperature
    _, entropies = score_all(model, *rows, 10**6, logprob_and_entropy)
    mask = batch["completion_mask"]
    selected, H = siren.regularised_entropy(model, as_batch(batch), args)
    expected = sum(row[chosen].mean().item() for row, chosen in zip(entropies, mask)) / len(mask)
    assert torch.equal(selected, mask) and H.item() == pytest.approx(expected, rel=1e-12)
    sums, _ = update(model, batch, args)
    assert sums["nucleus"] == pytest.approx(sums["entropy"], rel=1e-12)


# --- what must change nothing -------------------------------------------------------------------------------


@mutant(
    "peak weights of the micro-batch",
    "siren.py",
    '(nucleus * part["peak_weights"])',
    '(nucleus * peak_mean(part["selected"]))',
    case="siren",
)
@SETTING
def test_micro_batches_change_nothing(setting):
    """Catches a square of each micro-batch (which also punishes the differences between them), and any
    denominator of a part."""
    model, batch = random_model(), siren_batch(old=True, truncated=True)
    counts = {
        name: len(list(micro_batch_rows(batch["prompt_ids"], batch["completion_ids"], budget)))
        for name, budget in BUDGETS.items()
    }
    assert counts == {"all": 1, "two": 2, "one": 16}
    expected = update(model, batch, make_args(**SETTINGS[setting]))
    for budget in (BUDGETS["two"], BUDGETS["one"]):
        assert_same(update(model, batch, make_args(micro_batch_tokens=budget, **SETTINGS[setting])), expected)


def test_shared_prompts_order_padding_and_checkpointing_change_nothing(monkeypatch):
    """Catches rows paired with another completion's entropies, and padding that is selected or counted."""
    model, batch, args = (
        random_model(),
        siren_batch(old=True, truncated=True),
        make_args(micro_batch_tokens=100),
    )
    expected = update(model, batch, args)
    permuted = reordered(batch, (3, 0, 2, 1))
    permuted["selected"][:] = False
    assert_same(update(model, permuted, args), expected)
    assert (
        torch.equal(permuted["selected"], reordered(batch, (3, 0, 2, 1))["selected"])
        and permuted["selected"].any()
    )
    assert_same(update(model, widened(batch), args), expected)
    monkeypatch.setattr(siren, "score", functools.partial(score, share_prompts=False))
    assert_same(update(model, batch, args), expected)
    monkeypatch.undo()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    assert_same(update(model, batch, args), expected)


def test_rows_of_a_minibatch_are_a_batch_of_their_own():
    """Catches an H of the sampled batch where one optimizer step sees a part of it."""
    model, batch, args = (
        random_model(),
        siren_batch(old=True, truncated=True),
        make_args(micro_batch_tokens=100),
    )
    for first, last in ((0, 4), (4, 12), (12, 16)):
        alone = {name: value[first:last] for name, value in batch.items()}
        assert_same(update(model, batch, args, rows=slice(first, last)), update(model, alone, args))


def test_float32_stays_within_its_rounding():
    """Catches lost precision, and a selection that rounding turns round, against float64."""
    batch, args = siren_batch(old=True), make_args(micro_batch_tokens=100)
    _, exact = update(random_model(), batch, args)
    torch.set_default_dtype(torch.float32)
    _, ours = update(random_model(torch.float32), as_float32(batch), args)
    assert ours.dtype == torch.float32 and distance(ours.double(), exact) <= GRADIENT


def test_beta_zero_is_dr_grpo_to_the_last_bit():
    """Catches any difference between the two files that is not SIREN, here in one update (and in
    test_loop.py in a whole run)."""
    torch.set_default_dtype(torch.float32)
    model, batch = random_model(torch.float32), as_float32(make_batch(old=True, truncated=True))
    flags = dict(max_new_tokens=12, temperature=0.8, micro_batch_tokens=250)
    theirs_sums = dr_grpo.accumulate_gradients(model, as_batch(batch), dr_grpo.Args(**flags))
    theirs = gradient(model)
    sums, ours = update(
        model, batch | {"selected": torch.zeros_like(batch["loss_mask"])}, siren.Args(beta=0.0, **flags)
    )
    assert torch.equal(ours, theirs) and ours.norm() > 1e-4
    assert {name: sums[name] for name in theirs_sums} == theirs_sums


# --- special batches ----------------------------------------------------------------------------------------


def certain_model():
    """A model whose every next token is certain, whatever came before."""
    model = random_model()
    with torch.no_grad():
        model.lm_head.weight.mul_(300.0)
    return model


@SETTING
def test_certain_completions_short_ones_and_masked_ones_stay_finite(setting):
    """Catches 0/0 and nan: nothing above the quantile, completions of one to four tokens, everything masked
    from the loss."""
    args = make_args(**SETTINGS[setting])
    short = siren_batch()
    short["completion_ids"] = [[5, 6, 7, EOS][-(1 + row % 4) :] for row in range(16)]
    mask = pad(short["completion_ids"], "cpu")[1]
    short = {name: value[:, :4] if torch.is_tensor(value) else value for name, value in short.items()}
    short |= {"completion_mask": mask, "loss_mask": mask.clone(), "selected": torch.zeros_like(mask)}
    masked = siren_batch(old=True)
    masked["loss_mask"][:] = False
    for model, batch in ((certain_model(), siren_batch()), (random_model(), short), (random_model(), masked)):
        sums, ours = update(model, batch, args)
        assert ours.isfinite().all() and all(math.isfinite(value) for value in sums.values())
    assert (
        sums["policy_loss"] == 0.0 and ours.norm() > 1e-4
    )  # masked from the policy loss, H is of all that was sampled


def test_a_model_without_entropy_is_left_alone_by_the_masks():
    """Catches a push at h = 0: where every nucleus is one token there is nothing to select."""
    batch, args = without_policy(), make_args()
    sums, ours = update(certain_model(), batch, args, anchor=1.0)
    assert sums["selected"] == 0 and sums["regularised"] == 0.0 and ours.count_nonzero() == 0
    assert sums["total_loss"] == pytest.approx(
        args.beta
    )  # beta (0 - 1)^2: logged, although nothing can be done about it


def test_no_logits_are_kept_for_the_backward_pass(monkeypatch):
    """Catches memory that grows with vocabulary times length: blocks of 4 tokens, whatever the batch, and
    none of them kept."""
    model, batch, args, saved, blocks = random_model(vocab=67), siren_batch(), make_args(), [], []
    monkeypatch.setattr(scoring, "LOGITS_AT_ONCE", 4 * 67)
    original = siren.nucleus_entropy
    monkeypatch.setattr(
        siren, "nucleus_entropy", lambda logits, *rest: blocks.append(len(logits)) or original(logits, *rest)
    )
    backward = torch.Tensor.backward
    monkeypatch.setattr(torch.Tensor, "backward", lambda loss: saved.append("backward") or backward(loss))
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: saved.append(tensor.shape) or tensor, lambda tensor: tensor
    ):
        update(model, batch, args)
    assert (
        max(blocks) == 4 and sum(blocks) == 3 * batch["completion_mask"].sum()
    )  # the pass for H, forward, and again for backward
    forward = saved[: saved.index("backward")]
    assert len(forward) > 20 and not any(shape[-1:] == (67,) for shape in forward)


# --- the anchor and the log ---------------------------------------------------------------------------------


def test_examples_in_docstrings():
    """Catches documentation that has drifted from the code."""
    torch.set_default_dtype(torch.float32)
    result = doctest.testmod(siren)
    assert result.attempted > 3 and result.failed == 0


def whole_batch(first, second) -> dict:
    """Two minibatches of a step as the batch that they were split from."""
    columns = {name: torch.cat([first[name], second[name]]) for name in first.columns}
    both = {name: getattr(first, name) + getattr(second, name) for name in ("prompt_ids", "completion_ids")}
    return both | columns


@mutant("anchor measured at every step", "siren.py", 'if run.state["anchor"] is None:', "if True:")
@mutant(
    "anchor of one group",
    "siren.py",
    "regularised_entropy(run.model, batch, args)[1]",
    "regularised_entropy(run.model, batch.rows(slice(0, G)), args)[1]",
)
@mutant("H logged of all updates", "siren.py", 'sums["regularised"] / updates', 'sums["regularised"]')
def test_anchor_is_that_of_the_first_batch_under_the_starting_model(toy_model, tmp_path, monkeypatch):
    """Catches an anchor of one mini-batch, one measured after an update, one that moves, and one that is
    lost in the checkpoint."""
    torch.set_default_dtype(torch.float32)
    monkeypatch.setattr(run_module.Run, "draw_curves", lambda self: None)
    halves, original = [], siren.accumulate_gradients  # the minibatches of all steps, two a step

    def accumulate_gradients(model, batch, args, anchor):
        halves.append((batch, anchor))
        return original(model, batch, args, anchor)

    sums_of = []
    monkeypatch.setattr(
        siren,
        "accumulate_gradients",
        lambda *args: sums_of.append(accumulate_gradients(*args)) or sums_of[-1],
    )
    flags = quick_flags(toy_model, tmp_path / "run", minibatches=2, lr=3e-2, warmup_steps=1, beta=1.0)
    args = siren.Args(**flags)
    siren.main(args, task=HashTask())
    model, _ = load_model(toy_model)
    batches = [whole_batch(first, second) for (first, _), (second, _) in zip(halves[::2], halves[1::2])]
    anchor = halves[0][1]
    expected, _, _ = mean_entropy_by_loops(model, batches[0], args, range(8))
    assert {anchor for _, anchor in halves} == {
        json.loads((tmp_path / "run/last/state.json").read_text())["anchor"]
    }
    assert anchor == pytest.approx(expected, rel=1e-5)
    logged = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    steps = [record for record in logged if "siren/anchor" in record]
    assert len(steps) == 5 and {record["siren/anchor"] for record in steps} == {anchor}
    of_one_half = [
        mean_entropy_by_loops(model, batches[0], args, rows)[0] for rows in (range(4), range(4, 8))
    ]
    assert all(abs(half - expected) > 1e-3 for half in of_one_half)
    assert abs(steps[-1]["siren/entropy"] - anchor) > 1e-3

    for step, record in enumerate(steps):  # what is logged, of two updates each
        first, second = sums_of[2 * step : 2 * step + 2]
        tokens = first["tokens"] + second["tokens"]
        assert record["siren/entropy"] == pytest.approx((first["regularised"] + second["regularised"]) / 2)
        assert record["siren/nucleus_entropy"] == pytest.approx(
            (first["nucleus"] + second["nucleus"]) / tokens
        )
        assert record["siren/frac_selected"] == pytest.approx(
            (first["selected"] + second["selected"]) / tokens
        )
    samples = [json.loads(line) for line in (tmp_path / "run/samples.jsonl").read_text().splitlines()]
    for step in range(5):
        for i, row in enumerate(samples[4 * step : 4 * step + 4]):
            selected = batches[step]["selected"][i, : len(row["tokens"])].int().tolist()
            assert row["selected"] == (selected if len(set(selected)) == 2 else selected[0])
    assert any(isinstance(row["selected"], list) for row in samples)
