"""Every switch of a loss together with every other that it can meet, in every script: the loss of loops that
know all of them (tests/every_loss.py). In float64."""

import functools
import itertools
import operator

import kit
import pytest
import torch
from every_loss import GUIDES, SCRIPTS, loss_by_hand, name_of
from kit import GROUP, make_batch
from mutants import mutant
from random_model import random_model

import grpo
import h1_curriculum
import siren
from papers import (
    adaptive_bonus,
    cispo,
    clip_cov,
    entropy_advantage,
    gspo,
    guide_ablations,
    high_entropy_tokens,
    kl_cov,
    naive_bonus,
    rloo,
)

EACH = pytest.mark.parametrize("script", SCRIPTS, ids=name_of)
OWN = {siren: (1.0,), adaptive_bonus: (0.3,), clip_cov: (5,), kl_cov: (False,), h1_curriculum: (9,)}
MASKED, OLD = dict(truncated=True), dict(old=True)  # of the batch: some left out of the loss, a second update
SWITCHES = {  # beside importance_cap, mask_truncated, several updates and no clip, which most have
    grpo: [dict(kl_coef=0.3), dict(kl_coef=0.3, kl_bias_correction=True)],
    cispo: [dict(clip_high=1.0)],
    gspo: [dict(clip_low=0.1, clip_high=0.2)],
    siren: [dict(anchor=False), dict(nucleus_p=1.0), dict(tau=0.0), dict(nucleus_rule="official")],
    naive_bonus: [dict(bonus=0.3)],
    entropy_advantage: [dict(shape_alpha=2.0), dict(shape_kappa=0.7)],
    high_entropy_tokens: [dict(token_fraction=0.5)],
    clip_cov: [dict(cov_low=0.3), dict(cov_high=1.0)],
    kl_cov: [dict(kl_coef=0.4)],
    guide_ablations: [
        dict(correction="sequence"),
        dict(shaping="clip"),
        dict(shaping="none"),
        dict(aggregation="token_mean"),
        dict(aggregation="constant"),
    ],
}
AT_REST = {  # of every pair
    siren: dict(beta=0.7),
    naive_bonus: dict(bonus=0.1),
    clip_cov: dict(cov_fraction=0.1, cov_low=0.2, cov_high=3.0),
    kl_cov: dict(cov_fraction=0.1),
}


@pytest.fixture(autouse=True)
def float64():
    with kit.numbers(torch.float64):
        yield


def switches_of(script) -> list[dict]:
    """Each is a change of the flags, or one of the batch."""
    common = [dict(importance_cap=1.05), MASKED, *SWITCHES.get(script, [])]
    if hasattr(script.Args, "clip_low"):
        common += [dict(clip_low=float("inf"), clip_high=float("inf"))]
    return common if script in (rloo, kl_cov, *GUIDES) else [*common, OLD]


def settings_of(script) -> list[dict]:
    """All switches but one, for each of them: every two are on together, beside different others.

    Where flags have more than two values: every pair of values.
    """
    switches = switches_of(script)
    if script is guide_ablations:
        pairs = itertools.combinations(switches, 2)
        return [first | second for first, second in pairs if not first.keys() & second.keys()]
    chosen = itertools.combinations(switches, len(switches) - 1)
    return [functools.reduce(operator.or_, others) for others in chosen]


@functools.cache
def whole_batch() -> dict:
    """Two groups, with old log-probabilities and some completions left out of the loss."""
    return make_batch(groups=2, old=True, truncated=True)


def batch_of(script, truncated: bool = False, old: bool = False) -> dict:
    """The batch with these switches; of the guides the second group was sampled with a hint."""
    batch = dict(whole_batch())
    if not truncated:
        batch["loss_mask"] = batch["completion_mask"]
    if script in GUIDES:
        guided = torch.arange(2 * GROUP)[:, None] >= GROUP
        noise = torch.randn(batch["old_logprobs"].shape, generator=torch.Generator().manual_seed(7))
        batch["old_logprobs"] = batch["old_logprobs"] + 0.7 * noise * guided * batch["completion_mask"]
        return batch | {"guided": guided, "ratios": torch.zeros_like(batch["old_logprobs"])}
    if not old and script is not kl_cov:
        del batch["old_logprobs"]
    return batch | {"selected": torch.zeros_like(batch["loss_mask"])}


@mutant(
    "cap over the sequence's denominators",
    "papers/guide_ablations.py",
    "importance = truncated_importance(old_logprobs,",
    "importance = truncated_importance(denominators,",
    case="guide_ablations",
)
@mutant(
    "KL weighted by the importance",
    "grpo.py",
    "            kl = k3(logprobs, part",
    "            kl = (1 if args.importance_cap is None else importance) * k3(logprobs, part",
    case="grpo",
)
@mutant(
    "high-entropy tokens counted over the masked",
    "papers/high_entropy_tokens.py",
    'mask = batch["loss_mask"]  # [N, T]',
    'mask = batch["completion_mask"]  # [N, T]',
    case="high_entropy_tokens",
)
@mutant(
    "penalty without the cap",
    "papers/kl_cov.py",
    "            loss_per_token = loss_per_token * importance\n",
    "            penalty = args.kl_coef * (logprobs - old_logprobs).abs() * penalised\n"
    "            loss_per_token = (loss_per_token - penalty) * importance + penalty\n",
    case="kl_cov",
)
@EACH
def test_switches_together(script):
    """Catches a switch that is right alone and wrong beside another: an importance weight of other
    log-probabilities than the sampler's policy, a mask or a cap that one branch forgets."""
    model, temperature = random_model(), 0.7
    own = OWN.get(script, ())
    tables = kit.tables(model, batch_of(script), temperature)  # the masks change no token
    losses = set()
    for settings in settings_of(script):
        of_batch = {name: settings[name] for name in ("truncated", "old") if name in settings}
        flags = {name: value for name, value in settings.items() if name not in of_batch}
        args = kit.make_args(script, temperature=temperature, **AT_REST.get(script, {}) | flags)
        batch = batch_of(script, **of_batch)
        expected = loss_by_hand(script, tables, batch, args, *own)
        sums = script.accumulate_gradients(model, kit.as_batch(batch), args, *own)
        for name, value in expected.items():
            assert sums[name] == pytest.approx(value, rel=1e-9, abs=1e-12), (settings, name)
        losses.add(round(expected["total_loss"], 9))
    assert len(losses) > len(settings_of(script)) / 2, "most switches change nothing here"
