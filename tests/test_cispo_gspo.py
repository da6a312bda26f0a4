"""papers/cispo.py and papers/gspo.py: the seven checks of tests/kit.py, TRL's numbers, exact expectations,
and what each does where PPO's clip does something else. And the bias-corrected KL of grpo.py. In float64."""

import itertools
import math

import kit
import pytest
import torch
import trl_driver
from mutants import mutant
from random_model import distributions, random_model
from safetensors.torch import load_file
from toys import HashTask, column, quick_flags

import grpo
from papers import cispo, dapo, gspo, rloo

SCRIPTS = {  # name: script, and flags with which some of the batch are clipped and others are not
    "cispo": (cispo, dict(clip_high=0.3)),
    "gspo": (gspo, dict(clip_low=0.1, clip_high=0.15)),
}
EACH = pytest.mark.parametrize("name", SCRIPTS)
WHEN = pytest.mark.parametrize("old", [False, True], ids=["on_policy", "old_logprobs"])


@pytest.fixture(autouse=True)
def float64():
    with kit.numbers(torch.float64):
        yield


def made(name: str, **flags):
    """The script, and its flags."""
    script, own = SCRIPTS[name]
    return script, kit.make_args(script, **own | flags)


# --- the loss in loops --------------------------------------------------------------------------------------


def log_ratio(now, start, batch, i: int, t: int) -> float:
    """log pi - log pi_old of a token; without old_logprobs pi_old is the policy before it was moved."""
    token = batch["completion_ids"][i][t]
    old = batch["old_logprobs"][i, t].item() if "old_logprobs" in batch else start[i][t, token]
    return now[i][t, token] - old


def importance(start, batch, args, i: int, t: int) -> float:
    """min(pi_old / sampler, cap) of a token, or 1 without --importance-cap."""
    token = batch["completion_ids"][i][t]
    old = batch["old_logprobs"][i, t].item() if "old_logprobs" in batch else start[i][t, token]
    cap = args.importance_cap
    return 1.0 if cap is None else min(cap, math.exp(old - batch["rollout_logprobs"][i, t].item()))


def cispo_loss(now, start, batch, args) -> float:
    """The mean over the tokens of all counted completions. What carries no gradient is taken from `start`."""
    total, tokens = 0.0, 0
    for i, completion in enumerate(batch["completion_ids"]):
        if not batch["loss_mask"][i].any():
            continue
        for t, token in enumerate(completion):
            weight = min(math.exp(log_ratio(start, start, batch, i, t)), 1 + args.clip_high)
            weight *= importance(start, batch, args, i, t)
            total -= weight * batch["advantages"][i].item() * now[i][t, token]
            tokens += 1
    return total / tokens


def gspo_loss(now, start, batch, args) -> float:
    """The mean over all counted completions of -min(s A, clip(s) A), s the root of the product of ratios."""
    losses = []
    for i, completion in enumerate(batch["completion_ids"]):
        if not batch["loss_mask"][i].any():
            continue
        places, A = range(len(completion)), batch["advantages"][i].item()
        product = math.prod(math.exp(log_ratio(now, start, batch, i, t)) for t in places)
        ratio = product ** (1 / len(completion))
        limited = min(max(ratio, 1 - args.clip_low), 1 + args.clip_high)
        cap = sum(importance(start, batch, args, i, t) for t in places) / len(completion)
        losses.append(-min(ratio * A, limited * A) * cap)
    return sum(losses) / len(losses)


LOSSES = {"cispo": cispo_loss, "gspo": gspo_loss}


@mutant("CISPO that lowers the reward", "papers/cispo.py", "return -advantages", "return advantages")
@mutant(
    "CISPO's bound without the 1", "papers/cispo.py", ".clamp(max=1 + clip_high)", ".clamp(max=clip_high)"
)
@mutant(
    "CISPO with a lower bound",
    "papers/cispo.py",
    ".clamp(max=1 + clip_high)",
    ".clamp(1 - clip_high, 1 + clip_high)",
)
@mutant(
    "CISPO's ratio upside down",
    "papers/cispo.py",
    "return torch.exp(logprobs - old_logprobs)",
    "return torch.exp(old_logprobs - logprobs)",
)
@mutant(
    "truncated completions in CISPO's loss",
    "papers/cispo.py",
    'token_mean(batch["loss_mask"])',
    'token_mean(batch["completion_mask"])',
)
def test_cispo_in_loops():
    """Catches a wrong sign, bound, mask or denominator, in one update and in a further one."""
    for old, cap in itertools.product((False, True), (None, 1.1)):
        kit.check_loops(cispo, cispo_loss, made("cispo", importance_cap=cap)[1], old)


@mutant("GSPO that lowers the reward", "papers/gspo.py", "return -torch.min(", "return torch.min(")
@mutant("GSPO's larger term", "papers/gspo.py", "return -torch.min(", "return -torch.max(")
@mutant(
    "GSPO's product of ratios",
    "papers/gspo.py",
    "keepdim=True) / mask.sum(dim=1, keepdim=True)",
    "keepdim=True)",
)
@mutant(
    "GSPO's mean of probabilities",
    "papers/gspo.py",
    "(logprobs * mask).sum(dim=1, keepdim=True) / mask.sum(dim=1, keepdim=True)",
    "((logprobs.exp() * mask).sum(dim=1, keepdim=True) / mask.sum(dim=1, keepdim=True)).log()",
)
@mutant(
    "GSPO's clip flags swapped",
    "papers/gspo.py",
    "args.clip_low, args.clip_high",
    "args.clip_high, args.clip_low",
)
@mutant(
    "truncated completions in GSPO's loss",
    "papers/gspo.py",
    'sequence_mean(batch["loss_mask"])',
    'sequence_mean(batch["completion_mask"])',
)
def test_gspo_in_loops():
    """Catches a wrong sign, ratio, clip side, mask or denominator, in one update and in a further one."""
    for old, cap in itertools.product((False, True), (None, 1.1)):
        kit.check_loops(gspo, gspo_loss, made("gspo", importance_cap=cap)[1], old)


@mutant(
    "CISPO's weight with a gradient",
    "papers/cispo.py",
    ".clamp(max=1 + clip_high).detach()",
    ".clamp(max=1 + clip_high)",
    case="old_logprobs-cispo",
)
@mutant(
    "GSPO's ratio without gradient",
    "papers/gspo.py",
    "return (logprobs * mask)",
    "return (logprobs.detach() * mask)",
    case="on_policy-gspo",
)
@EACH
@WHEN
def test_finite_difference(name, old):
    """Catches a term that has no gradient and should, or has one and should not."""
    script, args = made(name)
    kit.check_finite_difference(script, LOSSES[name], args, old)


# --- what must change nothing -------------------------------------------------------------------------------


@mutant(
    "CISPO's denominator of the micro-batch",
    "papers/cispo.py",
    '(loss_per_token * part["weights"])',
    '(loss_per_token * token_mean(part["loss_mask"]))',
    case="cispo",
)
@mutant(
    "GSPO's denominator of the micro-batch",
    "papers/gspo.py",
    '(loss_per_token * part["weights"])',
    '(loss_per_token * sequence_mean(part["loss_mask"]))',
    case="gspo",
)
@mutant(
    "GSPO's ratio with its padding", "papers/gspo.py", "(logprobs * mask).sum", "logprobs.sum", case="gspo"
)
@EACH
def test_micro_batches_padding_and_order(name):
    """Catches a denominator of the micro-batch, padding that is counted, and rows that are mixed up."""
    script, args = made(name)
    kit.check_micro_batches(script, args, old=True)
    kit.check_padding(script, args, old=True)
    kit.check_order(script, args, old=True)


@EACH
def test_everything_masked_has_gradient_zero(name):
    """Catches 0/0 where all completions were truncated."""
    script, args = made(name, micro_batch_tokens=100)
    batch = kit.make_batch(old=True)
    batch["loss_mask"][:] = False
    sums, ours = kit.update(script, random_model(), batch, args)
    assert ours.count_nonzero() == 0 and sums["policy_loss"] == 0.0
    assert all(map(math.isfinite, sums.values()))


# --- beside other scripts -----------------------------------------------------------------------------------


def test_one_update_has_the_gradient_of_the_base(monkeypatch):
    """Catches another difference than the further updates: before the policy has moved, GSPO's gradient is
    GRPO's, and CISPO's is DAPO's, which is REINFORCE's with a mean over tokens."""
    batch, model = kit.make_batch(truncated=True), random_model()
    own = {script: kit.update(script, model, batch, kit.make_args(script)) for script in (grpo, dapo, gspo)}
    assert kit.distance(own[gspo][1], own[grpo][1]) < 1e-12
    assert own[gspo][0]["policy_loss"] == pytest.approx(own[grpo][0]["policy_loss"], rel=1e-12)
    _, ours = kit.update(cispo, model, batch, kit.make_args(cispo))
    assert kit.distance(ours, own[dapo][1]) < 1e-12
    monkeypatch.setattr(rloo, "sequence_sum", dapo.token_mean)
    assert kit.distance(ours, kit.update(rloo, model, batch, kit.make_args(rloo))[1]) < 1e-12


def test_cispo_without_a_bound_has_the_gradient_of_the_ratio():
    """Catches a weight that is not the ratio below its bound: with none and with no clip, A ratio grad log pi
    is the gradient of A ratio, DAPO's."""
    batch, model, infinite = kit.make_batch(old=True, truncated=True), random_model(), float("inf")
    _, ours = kit.update(cispo, model, batch, kit.make_args(cispo, clip_high=infinite))
    _, theirs = kit.update(dapo, model, batch, kit.make_args(dapo, clip_low=infinite, clip_high=infinite))
    assert kit.distance(ours, theirs) < 1e-12


# What tests/trl_driver.py prints, made with trl 1.16.0, transformers 5.19.0 and torch 2.13.0 on a CPU.
TRL = {
    "cispo": {
        "loss": -0.08382915659981727,
        "norm": 4.097308437406279,
        "along": [0.7330642461907669, -0.8055843981589386, -0.28709245387652205],
    },
    "cispo, a high bound": {
        "loss": -0.17324022991264684,
        "norm": 4.581091629654047,
        "along": [1.5133980259327597, -0.8120815257681115, -0.39999172911998304],
    },
    "gspo": {
        "loss": -0.10415047165842112,
        "norm": 3.375967691380105,
        "along": [1.6731112049742662, -2.750319072783397, 1.2015457492422212],
    },
    "kl": {
        "loss": -0.04549898617613318,
        "norm": 4.348713752514516,
        "along": [2.4542190675948063, -3.8011353883789574, 1.95901647481473],
    },
    "corrected kl": {
        "loss": -0.04548300887890758,
        "norm": 4.293114157209622,
        "along": [2.6790357723799865, -4.048543527122597, 2.1818475968419153],
    },
}
AS_IN_TRL = {  # name: script, its flags for TRL's settings in tests/trl_driver.py
    "cispo": (cispo, dict(clip_high=0.2)),
    "cispo, a high bound": (cispo, dict(clip_high=4.0)),
    "gspo": (gspo, dict(clip_low=0.1, clip_high=0.15)),
    "kl": (grpo, dict(kl_coef=0.3)),
    "corrected kl": (grpo, dict(kl_coef=0.3, kl_bias_correction=True)),
}


@mutant("CISPO's bound without the 1", case="cispo")
@mutant("GSPO's product of ratios", case="gspo")
@mutant("KL corrected without a gradient", case="corrected kl")
@pytest.mark.parametrize("name", AS_IN_TRL)
def test_loss_and_gradient_are_those_of_trl(monkeypatch, name):
    """Catches another formula, mask, bound or denominator than TRL's GRPOTrainer has for the same batch."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)  # as in trl_driver.py
    script, flags = AS_IN_TRL[name]
    batch = kit.make_batch(old=True, truncated=script is cispo)
    sums, ours = kit.update(script, random_model(), batch, kit.make_args(script, **flags))
    found = trl_driver.numbers_of(sums["total_loss"], ours)
    assert found["loss"] == pytest.approx(TRL[name]["loss"], rel=1e-10)
    expected = [TRL[name]["norm"], *TRL[name]["along"]]
    assert [found["norm"], *found["along"]] == pytest.approx(expected, rel=1e-8)


# --- expectations, exactly ----------------------------------------------------------------------------------

REWARDS = torch.tensor([0.3, -1.0, 2.0, 0.0, 0.5, 1.0, -0.7, 0.1, 1.5], dtype=torch.float64)
PROMPT, TEMPERATURE = [2, 0, 1], 0.7


def chances(model, length: int) -> torch.Tensor:
    """Probabilities of all completions of `length` tokens, of three that there are."""
    logs = []
    for tokens in itertools.product(range(3), repeat=length):
        table = distributions(model, PROMPT, list(tokens), TEMPERATURE)
        logs.append(sum(table[t, token] for t, token in enumerate(tokens)))
    return torch.stack(logs).exp()


def expected_update(script, model, length: int, sampler=None, **flags) -> torch.Tensor:
    """The gradient of the expected loss over all completions of `length` tokens that `sampler` draws (the
    policy, if None): each counts by its chance. The reward is the advantage."""
    rows = [list(tokens) for tokens in itertools.product(range(3), repeat=length)]
    chance = chances(sampler or model, length)
    mask = torch.ones(len(rows), length, dtype=torch.bool)
    batch = {
        "prompt_ids": [PROMPT] * len(rows),
        "completion_ids": rows,
        "advantages": (REWARDS[: len(rows)] * chance * len(rows))[:, None],  # the loss is a mean over rows
        "completion_mask": mask,
        "loss_mask": mask,
        "rollout_logprobs": torch.zeros(mask.shape),
    }
    if sampler:
        tables = [distributions(sampler, PROMPT, row, TEMPERATURE) for row in rows]
        pairs = zip(tables, rows)
        batch["old_logprobs"] = torch.stack([table[range(length), row] for table, row in pairs])
    args = kit.make_args(script, temperature=TEMPERATURE, max_new_tokens=length, **flags)
    return kit.update(script, model, batch, args)[1]


@mutant("CISPO that lowers the reward", case="cispo")
@mutant("GSPO that lowers the reward", case="gspo")
@EACH
def test_expected_gradient_of_one_update(name):
    """Catches any bias on-policy: over all completions of two tokens the gradient is half that of -E[R], for
    both losses are a mean over the two tokens, and points nowhere else."""
    script, model = SCRIPTS[name][0], random_model(vocab=3)
    ours = expected_update(script, model, 2)
    reward = lambda: (chances(model, 2) @ REWARDS).item()  # noqa: E731
    for seed in range(3):
        assert kit.directional_derivative(model, reward, seed, -2 * ours) == pytest.approx(1.0, abs=1e-5)


@mutant("CISPO's ratio upside down")
def test_cispo_corrects_for_another_sampler():
    """Catches a weight that does not turn the sampler's expectation into the policy's.

    Over all completions of one token, as another policy draws them, CISPO without a bound has exactly the
    gradient of -E[R] under the policy. With its bound it has not, nor has PPO's clip."""
    model, sampler = random_model(vocab=3), random_model(vocab=3, seed=1)
    assert (chances(model, 1) / chances(sampler, 1)).max() > 1.3, "nothing to bound: choose another sampler"
    exact = expected_update(cispo, model, 1, sampler, clip_high=float("inf"))
    reward = lambda: (chances(model, 1) @ REWARDS[:3]).item()  # noqa: E731
    for seed in range(3):
        assert kit.directional_derivative(model, reward, seed, -exact) == pytest.approx(1.0, abs=1e-5)
    for script in (cispo, dapo):
        assert kit.distance(expected_update(script, model, 1, sampler), exact) > 0.05


@mutant("KL corrected upside down", case="another")
@mutant("KL corrected without a gradient", case="the_policy")
@pytest.mark.parametrize("seed", [0, 1], ids=["the_policy", "another"])
def test_corrected_kl_has_value_and_gradient_of_the_kl(monkeypatch, seed):
    """Catches a factor upside down or without gradient.

    Over all completions of two tokens, as another policy draws them or the policy itself, the expected loss
    is KL(policy || reference) of each token after those before it, in value and gradient. Without the factor
    it is not."""
    model, sampler, reference = (random_model(vocab=3, seed=each) for each in (0, seed, 2))
    rows, chance = [list(tokens) for tokens in itertools.product(range(3), repeat=2)], chances(sampler, 2)
    monkeypatch.setattr(grpo, "sequence_mean", lambda mask: mask * chance[:, None])  # an expectation
    mask = torch.ones(len(rows), 2, dtype=torch.bool)
    of_tokens = lambda of: torch.stack(  # noqa: E731
        [distributions(of, PROMPT, row, TEMPERATURE) for row in rows]
    )
    drawn = lambda of: of_tokens(of).gather(2, torch.tensor(rows)[:, :, None])[:, :, 0]  # noqa: E731
    batch = {
        "prompt_ids": [PROMPT] * len(rows),
        "completion_ids": rows,
        "advantages": torch.zeros(len(rows), 1),
        "completion_mask": mask,
        "loss_mask": mask,
        "rollout_logprobs": torch.zeros(mask.shape),
        "old_logprobs": drawn(sampler),
        "ref_logprobs": drawn(reference),
    }

    def kl() -> float:
        now = of_tokens(model)  # [9, 2, 3]
        return (chance @ (now.exp() * (now - of_tokens(reference))).sum(dim=(1, 2))).item()

    args = kit.make_args(grpo, temperature=TEMPERATURE, kl_coef=1.0, kl_bias_correction=True)
    sums, ours = kit.update(grpo, model, batch, args)
    assert sums["total_loss"] == pytest.approx(kl(), rel=1e-9)
    for direction in range(3):
        assert kit.directional_derivative(model, kl, direction, ours) == pytest.approx(1.0, abs=1e-5)
    args.kl_bias_correction = False
    model = random_model(vocab=3)
    assert kit.distance(kit.update(grpo, model, batch, args)[1], ours) > 0.1


# --- where PPO's clip does something else -------------------------------------------------------------------


def gradients(loss, log_ratios: list[float]) -> list[float]:
    """Of sum(loss(logprobs, old_logprobs)) in the log-probabilities of one completion."""
    logprobs = torch.tensor([log_ratios], requires_grad=True)
    loss(logprobs, torch.zeros(1, len(log_ratios))).sum().backward()
    return logprobs.grad[0].tolist()


@mutant("clipped tokens left out of CISPO", "papers/cispo.py", "return -advantages * logprobs",
        "return -advantages * logprobs * (logprobs < 0.5)")  # fmt: skip
@mutant("CISPO's bound without the 1")
@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_clipped_token_keeps_its_gradient_in_cispo(advantage):
    """Catches a bound that takes the gradient away, as PPO's clip does for A > 0: ratios of 1/4, 1 and 3."""
    A, ratios = torch.tensor([[advantage]]), [math.log(ratio) for ratio in (0.25, 1.0, 3.0)]

    def ours(logprobs, old_logprobs):
        return cispo.clipped_importance(logprobs, old_logprobs, 0.2) * cispo.reinforce(logprobs, A)

    assert gradients(ours, ratios) == pytest.approx([-0.25 * advantage, -advantage, -1.2 * advantage])
    of_ppo = gradients(lambda new, old: grpo.clipped_surrogate(new, old, A, 0.2, 0.2), ratios)
    assert of_ppo == pytest.approx([-0.25, -1.0, 0.0] if advantage > 0 else [0.0, 1.0, 3.0])


def test_one_token_does_not_clip_a_completion_in_gspo():
    """Catches a clip of tokens: one of 2,000 with ratio 1.5 is clipped by PPO; the completion's ratio is
    1.0002, and all of its tokens keep an equal gradient."""
    A, moved = torch.ones(1, 1), [math.log(1.5), *[0.0] * 1999]
    mask = torch.ones(1, 2000, dtype=torch.bool)

    def ours(logprobs, old_logprobs):
        new, old = (gspo.sequence_logprob(each, mask) for each in (logprobs, old_logprobs))
        return gspo.clipped_surrogate(new, old, A, 3e-4, 4e-4)

    ratio = 1.5 ** (1 / 2000)
    assert 1 < ratio < 1 + 4e-4
    assert gradients(ours, moved) == pytest.approx([-ratio / 2000] * 2000)
    of_ppo = gradients(lambda new, old: grpo.clipped_surrogate(new, old, A, 0.2, 0.2), moved)
    assert of_ppo[0] == 0.0 and set(of_ppo[1:]) == {-1.0}
    evenly = [math.log(1.001)] * 2000  # and the other way round: no token moved far, but all of them did
    assert set(gradients(ours, evenly)) == {0.0}
    assert all(gradients(lambda new, old: grpo.clipped_surrogate(new, old, A, 0.2, 0.2), evenly))


@mutant(
    "CISPO counts the others",
    "papers/cispo.py",
    "> 1 + args.clip_high",
    "<= 1 + args.clip_high",
    case="cispo",
)
@mutant(
    "GSPO counts the others",
    "papers/gspo.py",
    "loss_per_token > -torch",
    "loss_per_token <= -torch",
    case="gspo",
)
@EACH
def test_clipped_tokens_are_counted(name):
    """Catches a share of clipped tokens that is another one: CISPO's are those above the bound, whatever
    their advantage; of GSPO it is all tokens of the clipped completions."""
    script, args = made(name)
    model, batch, clipped = random_model(), kit.make_batch(old=True), 0
    tables = kit.tables(model, batch, args.temperature)
    for i, completion in enumerate(batch["completion_ids"]):
        logs = [log_ratio(tables, tables, batch, i, t) for t in range(len(completion))]
        if script is cispo:
            clipped += sum(math.exp(each) > 1 + args.clip_high for each in logs)
        else:
            ratio, up = math.exp(sum(logs) / len(logs)), batch["advantages"][i] > 0
            is_clipped = ratio > 1 + args.clip_high if up else ratio < 1 - args.clip_low
            clipped += is_clipped * len(completion)
    sums, _ = kit.update(script, model, batch, args)
    assert sums["clipped"] == clipped and 0 < clipped < sums["tokens"]


# --- a run --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, rank", [("cispo", None), ("gspo", 4)], ids=["cispo", "gspo_lora"])
def test_a_run_goes_on_to_the_last_bit(toy_model, tmp_path, quick, name, rank):
    """Catches a run that is another one after --resume, with several updates a step and with an adapter."""
    torch.set_default_dtype(torch.float32)
    script, whole, broken = SCRIPTS[name][0], tmp_path / "whole", tmp_path / "broken"
    flags = quick_flags(toy_model, whole, steps=3, minibatches=2, epochs=2, lora_rank=rank, lr=1e-2)
    script.main(script.Args(**flags), task=HashTask())
    script.main(script.Args(**flags | {"out_dir": broken, "steps": 2}), task=HashTask())
    script.main(script.Args(**flags | {"out_dir": broken, "resume": True}), task=HashTask())
    one, other = (load_file(folder / "last/model.safetensors") for folder in (whole, broken))
    assert all(torch.equal(weight, other[name]) for name, weight in one.items())
    assert max(column(whole, "policy/clip_frac")) > 0, "nothing was clipped in four updates a step"
    assert column(whole, "policy/clip_frac") == column(broken, "policy/clip_frac")


def test_cispo_refuses_a_lower_bound_and_a_negative_one(toy_model, tmp_path):
    """Catches a weight that would be above no ratio at all."""
    flags = quick_flags(toy_model, tmp_path / "run", clip_high=-0.5)
    with pytest.raises(SystemExit, match="--clip-high"):
        cispo.main(cispo.Args(**flags), task=HashTask())
