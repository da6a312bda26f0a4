"""The pure functions of grpo.py, papers/dr_grpo.py and papers/dapo.py against hand arithmetic, exact
enumeration and analytic gradients."""

import doctest
import importlib
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from mutants import mutant

import grpo
from papers import dapo, dr_grpo

SCRIPTS = pytest.mark.parametrize(
    "script", [grpo, dapo], ids=["grpo", "dapo"]
)  # which divide by the group's std

# --- advantages ---------------------------------------------------------------------------------------------


@mutant(
    "std of the population",
    "grpo.py",
    "rewards.std(dim=1, keepdim=True) + 1e-6",
    "rewards.std(dim=1, keepdim=True, correction=0) + 1e-6",
)
@SCRIPTS
@pytest.mark.parametrize(
    "rewards, by_hand",
    [
        # mean 1/4; squares 9/16 + 3/16 = 3/4, over G-1 = 3: variance 1/4, std 1/2; 3/4 : 1/2 = 1.5 (over G:
        # 1.732)
        ([1, 0, 0, 0], [1.5, -0.5, -0.5, -0.5]),
        # mean 1/2; squares 4/4 over 3: std sqrt(1/3) = 0.57735
        ([1, 0, 0, 1], [0.866025, -0.866025, -0.866025, 0.866025]),
        # mean 2; squares 4 + 1 + 0 + 9 = 14 over 3: std sqrt(14/3) = 2.160247
        ([0, 1, 2, 5], [-0.925820, -0.462910, 0.0, 1.388730]),
        # two completions: mean 1, squares 1 + 1 over 1: std sqrt(2)
        ([2, 0], [0.707107, -0.707107]),
    ],
)
def test_advantages_by_hand(script, rewards, by_hand):
    """Catches ddof 0 instead of 1, a forgotten mean or std, a swapped sign."""
    advantages = script.group_advantages(torch.tensor([rewards], dtype=torch.float64))
    torch.testing.assert_close(advantages, torch.tensor([by_hand], dtype=torch.float64), rtol=1e-5, atol=1e-6)


@mutant(
    "advantage with the wrong sign",
    "papers/dr_grpo.py",
    "centred = rewards - rewards.mean(dim=1, keepdim=True)",
    "centred = rewards.mean(dim=1, keepdim=True) - rewards",
)
@mutant(
    "std that Dr. GRPO does not have",
    "papers/dr_grpo.py",
    "return centred.masked_fill(no_signal, 0.0)",
    "return (centred / (rewards.std(dim=1, keepdim=True) + 1e-6)).masked_fill(no_signal, 0.0)",
)
def test_centred_advantages_by_hand():
    """Catches a Dr. GRPO advantage that is still divided by the std, or that uses the mean of the others "
    "(RLOO: 1, -1/3, ...)."""
    advantages = dr_grpo.group_advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 2.0, 5.0]]))
    assert advantages.tolist() == [[0.75, -0.25, -0.25, -0.25], [-2.0, -1.0, 0.0, 3.0]]


@mutant("another epsilon", "grpo.py", "keepdim=True) + 1e-6)", "keepdim=True) + 1e-4)")
@SCRIPTS
def test_advantage_epsilon_is_1e_6_beside_the_std(script):
    """Catches another epsilon, or one under the square root: rewards 0 and 1e-6 have std 0.7071e-6, so A = "
    "0.5 / 1.7071."""
    advantages = script.group_advantages(torch.tensor([[0.0, 1e-6]], dtype=torch.float64))
    torch.testing.assert_close(
        advantages, torch.tensor([[-0.292893, 0.292893]], dtype=torch.float64), rtol=1e-5, atol=0
    )


@mutant(
    "no guard for groups without differences",
    "grpo.py",
    "return centred.masked_fill(no_signal, 0.0)",
    "return centred",
)
@SCRIPTS
def test_group_without_differences_has_advantage_exactly_zero(script):
    """Catches rounding in the mean divided by the epsilon: a group of equal rewards must not push the "
    "policy at all."""
    rounded = 0
    for value in (0.0, 1.0, -1.0, 0.1, 0.2, 0.3, 0.7, 1 / 3, -0.9, 1e-3, 1e6 + 0.1):
        for size in (2, 3, 5, 6, 7, 8, 16, 64):
            rewards = torch.full((2, size), value)
            rounded += int((rewards - rewards.mean(dim=1, keepdim=True)).any())
            assert script.group_advantages(rewards).tolist() == [[0.0] * size] * 2, (value, size)
            assert dr_grpo.group_advantages(rewards).tolist() == [[0.0] * size] * 2, (value, size)
    assert rounded > 5, "no case here rounds, so the test shows nothing"


@mutant(
    "mean of the batch",
    "papers/dapo.py",
    "rewards - rewards.mean(dim=1, keepdim=True)",
    "rewards - rewards.mean()",
)
@SCRIPTS
def test_advantages_of_one_group_ignore_the_others(script):
    """Catches a mean or std over the whole batch, or over the wrong axis."""
    rewards = torch.tensor([[1.0, 0.0, 0.0], [5.0, 5.0, 9.0], [0.0, 0.0, 0.0], [-3.0, 100.0, 7.0]])
    together = script.group_advantages(rewards)
    for i in range(len(rewards)):
        assert torch.equal(together[i : i + 1], script.group_advantages(rewards[i : i + 1]))
    rewards[1] = torch.tensor([0.0, 1000.0, 2.0])
    assert torch.equal(together[[0, 2, 3]], script.group_advantages(rewards)[[0, 2, 3]])


@SCRIPTS
def test_advantages_follow_permutations_of_groups_and_members(script):
    """Catches any dependence on where a group or a completion stands."""
    rewards = torch.rand(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    groups, members = torch.tensor([3, 0, 4, 1, 2]), torch.tensor([2, 0, 3, 1])
    permuted = script.group_advantages(rewards[groups][:, members])
    torch.testing.assert_close(
        permuted, script.group_advantages(rewards)[groups][:, members], rtol=1e-12, atol=1e-12
    )


# --- the clipped surrogate ----------------------------------------------------------------------------------


@mutant("sign of the loss", "grpo.py", "return -torch.min(", "return torch.min(")
@mutant("max for min", "grpo.py", "return -torch.min(", "return -torch.max(")
@mutant(
    "no clip below", "grpo.py", "ratio.clamp(1 - clip_low, 1 + clip_high)", "ratio.clamp(max=1 + clip_high)"
)
@mutant(
    "no clip above",
    "papers/dapo.py",
    "ratio.clamp(1 - clip_low, 1 + clip_high)",
    "ratio.clamp(min=1 - clip_low)",
)
@mutant(
    "clip sides swapped",
    "papers/dapo.py",
    "ratio.clamp(1 - clip_low, 1 + clip_high)",
    "ratio.clamp(1 - clip_high, 1 + clip_low)",
)
@mutant(
    "ratio upside down",
    "grpo.py",
    "ratio = torch.exp(logprobs - old_logprobs)",
    "ratio = torch.exp(old_logprobs - logprobs)",
)
@SCRIPTS
@pytest.mark.parametrize(
    # with clip_low .2 and clip_high .28: 0.8 ... 1.28; d(-ratio A)/d logprob = -ratio A
    "advantage, ratio, loss, gradient",
    [
        (1.0, 1.00, -1.00, -1.00),  # on-policy
        (1.0, 1.10, -1.10, -1.10),  # A > 0 inside
        (1.0, 1.25, -1.25, -1.25),  # A > 0 inside, outside if low and high were swapped
        (1.0, 1.50, -1.28, 0.00),  # A > 0 above: clipped, the probability rose enough
        (1.0, 0.50, -0.50, -0.50),  # A > 0 below: not clipped, the probability should come back
        (-1.0, 0.90, 0.90, 0.90),  # A < 0 inside
        (-1.0, 1.10, 1.10, 1.10),
        (-1.0, 0.75, 0.80, 0.00),  # A < 0 below: clipped at 0.8 (0.75 is inside if low and high were swapped)
        (-1.0, 0.50, 0.80, 0.00),
        (-1.0, 1.50, 1.50, 1.50),  # A < 0 above: not clipped, the probability should come back
        (2.0, 1.50, -2.56, 0.00),
        (-3.0, 0.50, 2.40, 0.00),
        (0.0, 1.50, 0.00, 0.00),
    ],
)
def test_clipped_surrogate_in_each_quadrant(script, advantage, ratio, loss, gradient):
    """Catches max for min, a clip reversed for A < 0, swapped clip sides, a flipped sign, a gradient where "
    "it is clipped."""
    old_logprobs = torch.tensor([[-1.3]], dtype=torch.float64)
    logprobs = (old_logprobs + math.log(ratio)).requires_grad_()
    ours = script.clipped_surrogate(
        logprobs, old_logprobs, torch.tensor([[advantage]], dtype=torch.float64), 0.2, 0.28
    )
    ours.sum().backward()
    assert ours.item() == pytest.approx(loss, abs=1e-12)
    assert logprobs.grad.item() == pytest.approx(gradient, abs=1e-12)


@SCRIPTS
def test_clipped_surrogate_gives_each_row_its_advantage(script):
    """Catches an advantage spread along the wrong axis, with as many rows as tokens so that shapes cannot "
    "tell."""
    zeros = torch.zeros(3, 3)
    loss = script.clipped_surrogate(zeros, zeros, torch.tensor([[1.0], [2.0], [-3.0]]), 0.2, 0.2)
    assert loss.tolist() == [[-1.0] * 3, [-2.0] * 3, [3.0] * 3]


@mutant("importance weight with gradient", "grpo.py", ".clamp(max=cap).detach()", ".clamp(max=cap)")
@mutant(
    "importance weight upside down",
    "papers/dapo.py",
    "torch.exp(old_logprobs - rollout_logprobs).clamp",
    "torch.exp(rollout_logprobs - old_logprobs).clamp",
)
@SCRIPTS
def test_truncated_importance_value_direction_cap_and_no_gradient(script):
    """Catches sampler / policy instead of policy / sampler, a cap below instead of above, a gradient "
    "through the weight."""
    old = torch.tensor([[-1.0, -1.0, -1.0, -6.0]], requires_grad=True)
    sampler = torch.tensor([[-1.0, -1.5, -2.0, -1.0]], requires_grad=True)
    weight = script.truncated_importance(old, sampler, 2.0)
    # exp(0), exp(.5), exp(1) = 2.718 capped, exp(-5): no floor
    torch.testing.assert_close(weight, torch.tensor([[1.0, 1.648721, 2.0, 0.006738]]), rtol=1e-4, atol=0)
    assert not weight.requires_grad


@mutant("clip-higher left out", "papers/dapo.py", "clip_high: ClipRange = 0.28", "clip_high: ClipRange = 0.2")
def test_dapos_clip_is_higher_above():
    """Catches clip-higher left out, or switched on in the baselines."""
    ranges = {script: (script.Args().clip_low, script.Args().clip_high) for script in (grpo, dr_grpo, dapo)}
    assert ranges == {grpo: (0.2, 0.2), dr_grpo: (0.2, 0.2), dapo: (0.2, 0.28)}


# --- DAPO's punishment of long completions ------------------------------------------------------------------


@mutant(
    "overlong without its buffer",
    "papers/dapo.py",
    "(max_new_tokens - buffer - lengths)",
    "(max_new_tokens - lengths)",
)
def test_soft_overlong_golden_values():
    """Catches a wrong sign, slope or start: limit 20480, buffer 4096 (DAPO, eq. 13)."""
    lengths = torch.tensor([0, 1, 16383, 16384, 16385, 17408, 18432, 19456, 20479, 20480, 30000])
    by_hand = [0.0, 0.0, 0.0, 0.0, -1 / 4096, -0.25, -0.5, -0.75, -4095 / 4096, -1.0, -1.0]
    assert dapo.soft_overlong(lengths, 20480, 4096).tolist() == by_hand


def test_soft_overlong_without_buffer_is_zero():
    """Catches a division by zero, or a punishment that cannot be switched off."""
    assert dapo.soft_overlong(torch.tensor([1, 99, 100, 101]), 100, 0).tolist() == [0.0] * 4


def test_soft_overlong_with_buffer_of_the_whole_length():
    """Catches an off-by-one at the other end: with buffer 4 of 4, length 1 costs a quarter and length 4 "
    "all."""
    assert dapo.soft_overlong(torch.tensor([1, 2, 3, 4]), 4, 4).tolist() == [-0.25, -0.5, -0.75, -1.0]


# --- the KL estimate ----------------------------------------------------------------------------------------

POLICY = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
REFERENCE = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)


def exact_kl(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    return sum(p[x] * (p[x].log() - q[x].log()) for x in range(len(p)))


@mutant(
    "sign inside k3",
    "grpo.py",
    "torch.expm1(difference) - difference",
    "torch.expm1(difference) + difference",
)
def test_k3_golden_value():
    """Catches a swapped difference: log pi - log pi_ref = .3 gives exp(-.3) - 1 + .3 = .040818 (swapped: "
    ".049859)."""
    ours = grpo.k3(torch.tensor([-1.0], dtype=torch.float64), torch.tensor([-1.3], dtype=torch.float64))
    assert ours.item() == pytest.approx(0.040818, abs=1e-6)


@mutant(
    "KL of the other direction",
    "grpo.py",
    "difference = ref_logprobs - logprobs",
    "difference = logprobs - ref_logprobs",
)
def test_k3_is_the_kl_of_the_policy_from_the_reference():
    """Catches k3 in the wrong direction: its expectation, enumerated under the policy, is KL(policy || "
    "reference)."""
    expected = (POLICY * grpo.k3(POLICY.log(), REFERENCE.log())).sum()
    torch.testing.assert_close(expected, exact_kl(POLICY, REFERENCE), rtol=1e-12, atol=0)
    assert (
        abs(exact_kl(POLICY, REFERENCE) - exact_kl(REFERENCE, POLICY)) > 0.03
    )  # the pair can tell the two directions
    swapped = (POLICY * grpo.k3(REFERENCE.log(), POLICY.log())).sum()
    assert abs(swapped - expected) > 0.03


def test_k3_gradient_is_that_of_the_reversed_kl():
    """Catches a docstring that promises more: as a loss on the policy's own samples, k3 descends "
    "KL(reference || policy)."""
    logits = POLICY.log().clone().requires_grad_()
    logprobs = torch.log_softmax(logits, dim=0)
    (
        POLICY * grpo.k3(logprobs, REFERENCE.log())
    ).sum().backward()  # the samples' probabilities carry no gradient
    torch.testing.assert_close(
        logits.grad, POLICY - REFERENCE, rtol=1e-12, atol=1e-12
    )  # of KL(ref || policy), by hand
    of_forward_kl = POLICY * (
        (POLICY / REFERENCE).log() - exact_kl(POLICY, REFERENCE)
    )  # of KL(policy || ref), by hand
    assert (logits.grad - of_forward_kl).abs().max() > 0.1


def test_k3_is_accurate_and_never_negative_for_small_differences():
    """Catches exp(d) - 1 in place of expm1(d), whose rounding swamps d^2/2 in float32."""
    for difference in (1e-4, -1e-4, 1e-3, -1e-3):
        ours = grpo.k3(torch.zeros(1), torch.tensor([difference])).item()
        assert ours == pytest.approx(difference**2 / 2, rel=1e-2) and ours > 0
    assert grpo.k3(torch.tensor([-2.0]), torch.tensor([-2.0])).item() == 0.0


# --- aggregation --------------------------------------------------------------------------------------------

# two completions with token losses [1, 2] and [.5, .5, .5, .5]; 99 stands where there is no token
LOSSES = torch.tensor([[1.0, 2.0, 99.0, 99.0], [0.5, 0.5, 0.5, 0.5]])
MASK = torch.tensor([[True, True, False, False], [True, True, True, True]])


FUNCTIONS = {
    "token_mean": dapo.token_mean,
    "sequence_mean": grpo.sequence_mean,
    "constant": lambda mask: dr_grpo.constant(mask, 8),  # 8 new tokens at most
}


@mutant(
    "sequence mean over the padded length",
    "grpo.py",
    "return mask / lengths.clamp(min=1) /",
    "return mask / mask.shape[1] /",
)
@mutant(
    "token mean over the padding",
    "papers/dapo.py",
    "mask / mask.sum().clamp(min=1)",
    "mask / mask.numel()",
    case="token_mean-0.8333333333333334",
)
@mutant(
    "constant of the batch instead of the flag",
    "papers/dr_grpo.py",
    "mask / (max_new_tokens * mask.shape[0])",
    "mask / (mask.shape[1] * mask.shape[0])",
    case="constant-0.3125",
)
@mutant(
    "each completion divided by its own length",
    "papers/dr_grpo.py",
    "mask / (max_new_tokens * mask.shape[0])",
    "mask / mask.sum(dim=1, keepdim=True).clamp(min=1) / mask.shape[0]",
    case="constant-0.3125",
)
@pytest.mark.parametrize(
    "name, by_hand",
    [
        ("token_mean", 5 / 6),  # (3 + 2) / 6 tokens
        ("sequence_mean", 1.0),  # (3/2 + 2/4) / 2 completions
        ("constant", 0.3125),  # (3/8 + 2/8) / 2 completions
    ],
)
def test_aggregation_golden_values(name, by_hand):
    """Catches a wrong denominator, and padding inside the mean."""
    assert (FUNCTIONS[name](MASK) * LOSSES).sum().item() == pytest.approx(by_hand, rel=1e-6)


@mutant(
    "sequence mean over all completions", "grpo.py", "/ (lengths > 0).sum().clamp(min=1)", "/ mask.shape[0]"
)
@pytest.mark.parametrize(
    "name, by_hand", [("token_mean", 5 / 6), ("sequence_mean", 1.0), ("constant", 5 / 8 / 3)]
)
def test_aggregation_with_a_completion_that_has_no_token_left(name, by_hand):
    """Catches masked completions that still count in the mean over completions, or that no longer count in "
    "the constant."""
    mask = torch.cat([MASK, torch.zeros(1, 4, dtype=torch.bool)])
    losses = torch.cat([LOSSES, torch.full((1, 4), 99.0)])
    assert (FUNCTIONS[name](mask) * losses).sum().item() == pytest.approx(by_hand, rel=1e-6)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_aggregation_of_an_all_masked_batch_is_zero(name):
    """Catches 0/0."""
    assert FUNCTIONS[name](torch.zeros(2, 3, dtype=torch.bool)).tolist() == [[0.0] * 3] * 2


@pytest.mark.parametrize("name", FUNCTIONS)
def test_aggregations_agree_for_completions_of_the_full_length(name):
    """Catches a scale error of one of them: all completions max_new_tokens long leave nothing to differ "
    "in."""
    torch.testing.assert_close(
        FUNCTIONS[name](torch.ones(3, 8, dtype=torch.bool)), torch.full((3, 8), 1 / 24)
    )


# --- the gradient of the whole formula on a policy of one token ---------------------------------------------


@SCRIPTS
def test_gradient_of_a_one_token_policy_is_the_analytic_one(script):
    """Catches a sign or scale error: on-policy the gradient is -1/N sum A_i (onehot(x_i) - "
    "softmax(theta))."""
    logits = torch.tensor([0.3, -1.2, 0.8, 0.1], dtype=torch.float64, requires_grad=True)
    tokens, rewards = (
        torch.tensor([2, 0, 3, 1, 2, 2]),
        torch.tensor([[1.0, 0.0, 0.5], [0.0, 2.0, 1.0]], dtype=torch.float64),
    )
    advantages = script.group_advantages(rewards).view(-1, 1)
    logprobs = torch.log_softmax(logits, dim=0)[tokens][:, None]  # [N, 1]
    weights = dapo.token_mean(torch.ones(6, 1, dtype=torch.bool))
    (script.clipped_surrogate(logprobs, logprobs.detach(), advantages, 0.2, 0.2) * weights).sum().backward()

    p = np.exp(logits.detach().numpy()) / np.exp(logits.detach().numpy()).sum()
    by_hand = np.zeros(4)
    for i, token in enumerate(tokens.tolist()):
        by_hand -= advantages[i, 0].item() / 6 * (np.eye(4)[token] - p)
    np.testing.assert_allclose(logits.grad.numpy(), by_hand, rtol=1e-6, atol=1e-9)  # 1/6 is made in float32


# --- the examples in the docstrings -------------------------------------------------------------------------


ROOT = Path(__file__).resolve().parent.parent
WITH_EXAMPLES = [
    path.relative_to(ROOT)
    for folder in (ROOT, ROOT / "papers", ROOT / "plainrl", ROOT / "tools")
    for path in sorted(folder.glob("*.py"))
    if ">>> " in path.read_text()
]


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=str)
def test_examples_in_docstrings(path):
    """Catches documentation that has drifted from the code."""
    module = importlib.import_module(".".join(path.with_suffix("").parts))
    result = doctest.testmod(module)
    assert result.attempted > 0 and result.failed == 0
