"""The six entropy methods of papers/: hand arithmetic, loops written from their papers, and Dr. GRPO."""

import dataclasses
import functools
import math

import kit
import numpy as np
import pytest
import torch
from kit import GROUP, make_batch
from mutants import mutant
from random_model import as_batch, distance, gradient, random_model

import siren
from papers import (
    adaptive_bonus,
    clip_cov,
    dr_grpo,
    entropy_advantage,
    high_entropy_tokens,
    kl_cov,
    naive_bonus,
)
from plainrl.scoring import score, score_all

SCRIPTS = [naive_bonus, adaptive_bonus, entropy_advantage, high_entropy_tokens, clip_cov, kl_cov]
EACH = pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__.split(".")[-1])
BONUS = 0.3
FLAGS = {
    naive_bonus: dict(bonus=BONUS),
    adaptive_bonus: {},
    entropy_advantage: {},
    high_entropy_tokens: dict(token_fraction=0.3),
    clip_cov: dict(cov_fraction=0.1, cov_low=0.2, cov_high=3.0),
    kl_cov: dict(cov_fraction=0.1, kl_coef=0.7),
}
OFF = {  # settings in which a method is Dr. GRPO
    naive_bonus: dict(bonus=0.0),
    adaptive_bonus: {},  # with a bonus of 0
    entropy_advantage: dict(shape_alpha=0.0),
    high_entropy_tokens: dict(token_fraction=1.0),
    clip_cov: dict(cov_low=math.inf),
    kl_cov: dict(kl_coef=0.0),
}
OWN = {
    adaptive_bonus: dict(bonus=BONUS),
    clip_cov: dict(seed=5),
    kl_cov: dict(first=False),
}  # arguments of the update
SINGLED_OUT = {
    high_entropy_tokens: "dropped",
    clip_cov: "dropped",
    kl_cov: "penalised",
}  # their sums in the log
BONUSES = (naive_bonus, adaptive_bonus)


@pytest.fixture(autouse=True)
def float64():
    with kit.numbers(torch.float64):
        yield


def make_args(script, **flags):
    return kit.make_args(script, **FLAGS[script] | flags)


def update(script, model, batch: dict, args, rows: slice = slice(0, 16), **own):
    return kit.update(script, model, batch, args, rows, **OWN.get(script, {}) | own)


# --- the pure functions -------------------------------------------------------------------------------------


@mutant(
    "bonus that chases the wrong way",
    "papers/adaptive_bonus.py",
    "rate * (target - entropy)",
    "rate * (entropy - target)",
)
def test_adapted_bonus_by_hand():
    """Catches a weight that falls when the entropy is below its target, and one that turns negative."""
    assert adaptive_bonus.adapted(0.1, 0.5, entropy=0.2, target=0.4) == pytest.approx(0.2)
    assert adaptive_bonus.adapted(0.1, 0.5, entropy=0.4, target=0.3) == pytest.approx(0.05)
    assert adaptive_bonus.adapted(0.1, 0.5, entropy=0.9, target=0.3) == 0.0


@mutant(
    "advantages without a cap",
    "papers/entropy_advantage.py",
    "torch.min(alpha * entropies.detach(), advantages.abs() / kappa)",
    "alpha * entropies.detach() * advantages.sign().abs()",
)
@mutant(
    "gradient through the shaped advantage",
    "papers/entropy_advantage.py",
    "alpha * entropies.detach()",
    "alpha * entropies",
)
def test_shaped_advantages_by_hand():
    """Catches a lost cap, one that can turn a sign, a sign lost in |A|, a gradient through the entropy."""
    entropies = torch.tensor([[0.1, 1.2, 5.0]] * 3, requires_grad=True)
    shaped = entropy_advantage.shaped_advantages
    ours = shaped(torch.tensor([[1.0], [-0.25], [0.0]]), entropies, 0.4, 2.0)
    # .4 h is .04, .48, 2; the caps are .5, .125, 0
    by_hand = [[1.04, 1.48, 1.5], [-0.21, -0.125, -0.125], [0.0, 0.0, 0.0]]
    assert ours.tolist() == [pytest.approx(row) for row in by_hand]
    assert shaped(torch.tensor([[-0.25]]), entropies, 0.4, 1.0)[0, 1].item() == 0.0
    assert not ours.requires_grad


@pytest.mark.parametrize("script", SINGLED_OUT, ids=lambda script: script.__name__.split(".")[-1])
def test_top_tokens_by_hand(script):
    """Catches the lowest, tokens outside the mask, too many where there are ties or too few tokens."""
    values = torch.tensor([[3.0, 1.0, 9.0], [3.0, 2.0, 3.0]])
    mask = torch.tensor([[True, True, False], [True, True, True]])
    chosen = lambda count: script.top_tokens(values, mask, count).nonzero().tolist()  # noqa: E731
    assert chosen(2) == [[0, 0], [1, 0]] and chosen(4) == [[0, 0], [1, 0], [1, 1], [1, 2]]
    assert chosen(0) == [] and len(chosen(6)) == 5


@mutant("covariance of Clip-Cov with the wrong sign", case="clip_cov")
@mutant(
    "covariance of completions",
    "papers/clip_cov.py",
    "mean_advantage = (advantages * mask).sum() / count",
    "mean_advantage = advantages[:, 0].mean()",
    case="clip_cov",
)
@pytest.mark.parametrize("script", [clip_cov, kl_cov], ids=["clip_cov", "kl_cov"])
def test_covariances_equal_numpy(script):
    """Catches means over padding or over completions: they add up to the covariance of the tokens."""
    generator = np.random.default_rng(0)
    advantages, logprobs = generator.standard_normal((6, 1)), -generator.random((6, 9))
    mask = np.arange(9) < np.array([9, 1, 4, 2, 0, 7])[:, None]
    ours = script.covariances(*map(torch.from_numpy, (advantages, logprobs, mask))).numpy()
    a, l = np.broadcast_to(advantages, mask.shape)[mask], logprobs[mask]  # noqa: E741
    np.testing.assert_allclose(ours[mask], (a - a.mean()) * (l - l.mean()), rtol=1e-12)
    assert not ours[~mask].any() and ours.sum() / mask.sum() == pytest.approx(np.cov(a, l, ddof=0)[0, 1])


@mutant(
    "draw of the padded batch",
    "papers/clip_cov.py",
    "draw[mask] = torch.rand(int(mask.sum()), generator=torch.Generator().manual_seed(seed)).to(mask.device)",
    "draw[:] = torch.rand(mask.shape, generator=torch.Generator().manual_seed(seed)).to(mask.device)",
)
def test_random_tokens_are_drawn_from_the_candidates():
    """Catches a draw outside the candidates, the same for every seed, that depends on the padding, or is not
    uniform."""
    mask = torch.arange(10) < torch.tensor([10, 4])[:, None]
    candidates = mask & (torch.arange(10) % 2 == 0)  # 5 + 2
    draws = [clip_cov.random_tokens(candidates, mask, 3, seed) for seed in range(300)]
    assert all(draw.sum() == 3 and not (draw & ~candidates).any() for draw in draws)
    often = torch.stack(draws).sum(0)[candidates]
    assert 85 < often.min() and often.max() < 175  # 300 * 3 / 7 = 128.6, with a standard deviation of 8.6
    pad = lambda tensor: torch.nn.functional.pad(tensor, (0, 4))  # noqa: E731
    wider = [clip_cov.random_tokens(pad(candidates), pad(mask), 3, seed) for seed in range(20)]
    assert all(torch.equal(ours, pad(draw)) for ours, draw in zip(wider, draws))
    assert not clip_cov.random_tokens(torch.zeros_like(mask), mask, 3, 0).any()


# --- the whole loss, in loops -------------------------------------------------------------------------------


def singled_out(script, start, batch: dict, args) -> set[tuple[int, int]]:
    """Tokens (completion, position) that a method drops or penalises; of Clip-Cov: that it draws from."""
    completions = [i for i in range(len(start)) if batch["loss_mask"][i].any()]
    tokens = [(i, t) for i in completions for t in range(len(batch["completion_ids"][i]))]
    logprob = {(i, t): start[i][t, batch["completion_ids"][i][t]] for i, t in tokens}
    advantage = {(i, t): batch["advantages"][i, 0].item() for i, t in tokens}
    if script is high_entropy_tokens:
        entropy = {(i, t): -np.sum(np.exp(start[i][t]) * start[i][t]) for i, t in tokens}
        return set(
            sorted(tokens, key=entropy.get)[: len(tokens) - math.ceil(args.token_fraction * len(tokens))]
        )
    mean_a, mean_l = (sum(values.values()) / len(tokens) for values in (advantage, logprob))
    covariance = {place: (advantage[place] - mean_a) * (logprob[place] - mean_l) for place in tokens}
    if script is kl_cov:
        return set(sorted(tokens, key=covariance.get)[-count(args, batch) :])
    ratio = {(i, t): math.exp(logprob[i, t] - batch["old_logprobs"][i, t].item()) for i, t in tokens}
    rose = {place for place in tokens if ratio[place] > 1 + args.clip_high and advantage[place] > 0}
    fell = {place for place in tokens if ratio[place] < 1 - args.clip_low and advantage[place] < 0}
    return {place for place in tokens if args.cov_low < covariance[place] < args.cov_high} - rose - fell


def count(args, batch: dict) -> int:
    """How many tokens Clip-Cov and KL-Cov treat."""
    return max(1, math.floor(args.cov_fraction * batch["loss_mask"].sum().item()))


def drawn(batch: dict, args) -> set[tuple[int, int]]:
    """What papers/clip_cov.py draws, which loops cannot say."""
    return set(map(tuple, clip_cov.drawn_tokens(random_model(), as_batch(batch), args, 5).nonzero().tolist()))


def loss_of_the_paper(script, now, start, batch: dict, args) -> float:
    """Dr. GRPO with one of the methods in loops, in numpy and float64."""
    total, rows = 0.0, len(batch["completion_ids"])
    special = set()
    if script in SINGLED_OUT:
        special = drawn(batch, args) if script is clip_cov else singled_out(script, start, batch, args)
    for i, ids in enumerate(batch["completion_ids"]):
        for t, token in enumerate(ids):
            if script in BONUSES:
                total += BONUS * np.sum(np.exp(now[i][t]) * now[i][t]) / len(ids) / rows
            if not batch["loss_mask"][i].any():
                continue
            advantage, change = (
                batch["advantages"][i, 0].item(),
                now[i][t, token] - batch["old_logprobs"][i, t].item(),
            )
            if script is entropy_advantage:
                entropy = -np.sum(np.exp(start[i][t]) * start[i][t])
                advantage += min(args.shape_alpha * entropy, abs(advantage) / args.shape_kappa)
            ratio = math.exp(change)
            if script is kl_cov:
                loss = -ratio * advantage + (args.kl_coef * abs(change) if (i, t) in special else 0.0)
            else:
                limited = min(max(ratio, 1 - args.clip_low), 1 + args.clip_high)
                loss = 0.0 if (i, t) in special else -min(ratio * advantage, limited * advantage)
            share = args.token_fraction if script is high_entropy_tokens else 1
            total += loss / share / args.max_new_tokens / rows
    return total


@mutant(
    "dropped tokens in the loss after all",
    "papers/clip_cov.py",
    'weights * ~batch["dropped"]',
    "weights",
    case="clip_cov",
)
@mutant(
    "entropy of all tokens alike",
    "papers/naive_bonus.py",
    "mask / mask.sum(dim=1, keepdim=True) / mask.shape[0]",
    "mask / mask.sum()",
    case="naive_bonus",
)
@mutant(
    "the low-entropy tokens",
    "papers/high_entropy_tokens.py",
    "mask & ~top_tokens(entropies",
    "mask & top_tokens(entropies",
    case="high_entropy_tokens",
)
@mutant(
    "high-entropy loss divided by all tokens",
    "papers/high_entropy_tokens.py",
    " / args.token_fraction  # [2], [D1]",
    "",
    case="high_entropy_tokens",
)
@mutant(
    "covariance with the wrong sign",
    "papers/kl_cov.py",
    "* (logprobs - mean_logprob) * mask",
    "* (mean_logprob - logprobs) * mask",
    case="kl_cov",
)
@mutant(
    "KL-Cov clips",
    "papers/kl_cov.py",
    "return -ratio * advantages +",
    "return -ratio.clamp(0.8, 1.2) * advantages +",
    case="kl_cov",
)
@mutant(
    "KL-Cov pushes away",
    "papers/kl_cov.py",
    "advantages + kl_coef *",
    "advantages - kl_coef *",
    case="kl_cov",
)
@EACH
def test_loss_equals_loops_written_from_the_papers(script):
    """Catches a wrong sign, mask, threshold, denominator or weight."""
    loss = functools.partial(loss_of_the_paper, script)
    kit.check_loops(script, loss, make_args(script), old=True, **OWN.get(script, {}))


@mutant(
    "covariance of Clip-Cov with the wrong sign",
    "papers/clip_cov.py",
    "(logprobs - mean_logprob) * mask",
    "(mean_logprob - logprobs) * mask",
    case="scored-clip_cov",
)
@mutant(
    "clipped tokens drawn too",
    "papers/clip_cov.py",
    "candidates = mask & ~clipped &",
    "candidates = mask &",
    case="scored-clip_cov",
)
@EACH
@pytest.mark.parametrize("truncated", [False, True], ids=["scored", "masked"])
def test_what_is_logged_equals_loops(script, truncated):
    """Catches a mean entropy over all tokens, and tokens singled out that the paper would not, too many."""
    model, batch, args = random_model(), make_batch(old=True, truncated=truncated), make_args(script)
    sums, _ = update(script, model, batch, args)
    start = kit.tables(model, batch, args.temperature)
    if script in BONUSES:
        entropies = [-np.sum(np.exp(table) * table, axis=1).mean() for table in start]
        assert sums["mean_entropy"] == pytest.approx(np.mean(entropies), rel=1e-9)
        assert sums["total_loss"] == pytest.approx(sums["policy_loss"] - BONUS * np.mean(entropies), rel=1e-9)
    if script in SINGLED_OUT:
        expected = singled_out(script, start, batch, args)
        wanted = count(args, batch) if script is clip_cov else len(expected)
        assert wanted > 2 and sums[SINGLED_OUT[script]] == wanted
    if script is clip_cov:
        assert drawn(batch, args) < expected  # something is left to chance


@EACH
def test_gradient_equals_finite_differences_of_the_papers_loss(script):
    """Catches a term without its gradient, and a gradient through a threshold or a shaped advantage."""
    loss = functools.partial(loss_of_the_paper, script)
    kit.check_finite_difference(script, loss, make_args(script), old=True, **OWN.get(script, {}))


@mutant(
    "a bonus for every method",
    "papers/naive_bonus.py",
    "policy_loss - args.bonus * mean_entropy",
    "policy_loss - max(args.bonus, 1e-3) * mean_entropy",
    case="on_policy-naive_bonus",
)
@EACH
@pytest.mark.parametrize("old", [False, True], ids=["on_policy", "old_logprobs"])
def test_switched_off_it_is_dr_grpo(script, old):
    """Catches any difference to papers/dr_grpo.py that is not the method: sums and gradient are equal to the
    last bit."""
    base = kit.make_args(dr_grpo)
    if script is kl_cov:  # its ratios are not clipped
        base = dataclasses.replace(base, clip_low=math.inf, clip_high=math.inf)
    own = OWN.get(script, {}) | {adaptive_bonus: dict(bonus=0.0), kl_cov: dict(first=not old)}.get(script, {})
    kit.check_against_base(script, make_args(script, **OFF[script]), dr_grpo, base, old=old, **own)


@EACH
def test_switched_on_it_is_not(script):
    """Catches a method that does nothing."""
    model, batch = random_model(), make_batch(old=True, truncated=True)
    _, ours = update(script, model, batch, make_args(script))
    own = dict(bonus=0.0) if script is adaptive_bonus else {}
    _, theirs = update(script, model, batch, make_args(script, **OFF[script]), **own)
    assert distance(ours, theirs) > 1e-3


@mutant(
    "KL-Cov penalises rounding",
    "papers/kl_cov.py",
    'logprobs.detach() if first else part["old_logprobs"]',
    'part["old_logprobs"]',
)
def test_kl_cov_does_nothing_in_the_first_update_of_a_batch():
    """Catches a penalty on rounding, where pi is pi_old: its gradient does not shrink with the difference."""
    model, batch = random_model(), make_batch(old=True)
    free, held = (
        update(kl_cov, model, batch, make_args(kl_cov, kl_coef=coef), first=True) for coef in (0.0, 5.0)
    )
    assert torch.equal(free[1], held[1]) and free[0] == held[0]


@EACH
def test_what_must_change_nothing(script, monkeypatch):
    """Catches thresholds and denominators of a micro-batch, mixed up rows, and padding that counts."""
    args, own = make_args(script), OWN.get(script, {})
    kit.check_micro_batches(script, args, old=True, **own)
    kit.check_padding(script, args, old=True, **own)
    if script is not clip_cov:  # the draw follows the rows
        kit.check_order(script, args, old=True, **own)
    model, batch = random_model(), make_batch(old=True, truncated=True)
    alone = {name: value[GROUP : 3 * GROUP] for name, value in batch.items()}
    rows = slice(GROUP, 3 * GROUP)
    kit.assert_same(update(script, model, batch, args, rows), update(script, model, alone, args))
    expected = update(script, model, batch, args)
    monkeypatch.setattr(script, "score", functools.partial(score, share_prompts=False))
    kit.assert_same(update(script, model, batch, args), expected)


@EACH
def test_everything_masked_is_finite(script):
    """Catches 0/0 where nothing is left in the loss."""
    batch = make_batch(old=True)
    batch["loss_mask"][:] = False
    sums, ours = update(script, random_model(), batch, make_args(script))
    assert ours.isfinite().all() and sums["policy_loss"] == 0.0 and sums[SINGLED_OUT.get(script, "none")] == 0
    assert (ours.norm() > 0) == (script in BONUSES)


def test_naive_bonus_is_siren_with_everything_off():
    """Catches two different entropies under one name: SIREN without masks and anchor has the same loss and
    gradient."""
    model, batch = random_model(), make_batch(old=True)
    sums, ours = update(naive_bonus, model, batch, make_args(naive_bonus))
    args = kit.make_args(siren, beta=BONUS, nucleus_p=1.0, tau=0.0, anchor=False)
    model.zero_grad()
    selected = {"selected": torch.zeros_like(batch["loss_mask"])}
    theirs = siren.accumulate_gradients(model, as_batch(batch | selected), args, 1.0)
    assert distance(ours, gradient(model)) <= 1e-10
    assert sums["total_loss"] == pytest.approx(theirs["total_loss"], rel=1e-12)


@mutant(
    "adaptive bonus that lowers the entropy",
    "papers/adaptive_bonus.py",
    "policy_loss - bonus * mean_entropy",
    "policy_loss + bonus * mean_entropy",
    case="adaptive_bonus",
)
@mutant(
    "bonus subtracted from the entropy",
    "papers/naive_bonus.py",
    "policy_loss - args.bonus * mean_entropy",
    "policy_loss + args.bonus * mean_entropy",
    case="naive_bonus",
)
@mutant(
    "bonus without gradient",
    "papers/adaptive_bonus.py",
    "total_loss = policy_loss - bonus * mean_entropy",
    "total_loss = policy_loss - bonus * mean_entropy.detach()",
    case="adaptive_bonus",
)
@pytest.mark.parametrize("script", BONUSES, ids=["naive_bonus", "adaptive_bonus"])
def test_bonus_raises_the_entropy(script):
    """Catches a bonus that is a punishment."""
    model, batch, args = random_model(), make_batch(), make_args(script)
    batch["advantages"][:] = 0.0
    rows = batch["prompt_ids"], batch["completion_ids"], 0.8, 10**6
    before, push = score_all(model, *rows)[1].sum(), update(script, model, batch, args)[1]
    start = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
    torch.nn.utils.vector_to_parameters(start - 1e-3 * push / push.norm(), model.parameters())
    assert score_all(model, *rows)[1].sum() > before + 1e-4


def test_defaults_are_those_of_the_papers():
    """Catches a default that has drifted from its paper (the lower bound of Clip-Cov is ours, [D1])."""
    shape = entropy_advantage.Args()
    assert (shape.shape_alpha, shape.shape_kappa) == (0.4, 2.0)
    assert high_entropy_tokens.Args().token_fraction == 0.2 and kl_cov.Args().kl_coef == 1.0
    assert (clip_cov.Args().cov_high, clip_cov.Args().cov_low, adaptive_bonus.Args().target_share) == (
        5.0,
        0.1,
        1.0,
    )
    for script in (clip_cov, kl_cov):
        (field,) = (field for field in dataclasses.fields(script.Args) if field.name == "cov_fraction")
        assert field.metadata["by_size"]["large"] == 2e-4


@mutant("no token touched", "papers/kl_cov.py", "max(1, int(", "max(0, int(", case="kl_cov")
@mutant("no token drawn", "papers/clip_cov.py", "count = max(1, int(", "count = max(0, int(", case="clip_cov")
@pytest.mark.parametrize("script", [clip_cov, kl_cov], ids=["clip_cov", "kl_cov"])
def test_at_least_one_token_is_touched(script):
    """Catches a share of a small batch that rounds to nothing."""
    args = make_args(script, cov_fraction=1e-6)
    assert update(script, random_model(), make_batch(old=True), args)[0][SINGLED_OUT[script]] == 1
