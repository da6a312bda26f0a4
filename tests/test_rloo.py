"""papers/rloo.py beyond the template in tests/test_your_loss.py: what it is for, and what could break it."""

import math

import kit
import pytest
import torch
from mutants import mutant
from random_model import random_model

from papers import dr_grpo, rloo


@pytest.fixture(autouse=True)
def float64():
    with kit.numbers(torch.float64):
        yield


@mutant(
    "mean of all for the mean of the others",
    "papers/rloo.py",
    "/ (rewards.shape[1] - 1)",
    "/ rewards.shape[1]",
    case="3",
)
@pytest.mark.parametrize("size", [2, 3, 8, 16])
def test_advantages_are_a_multiple_of_dr_grpos(size):
    """Catches a mean over the wrong completions or axis: R_i - mean of others = G / (G-1) (R_i - mean)."""
    rewards = torch.rand(5, size, generator=torch.Generator().manual_seed(size))
    expected = dr_grpo.group_advantages(rewards) * size / (size - 1)
    torch.testing.assert_close(rloo.group_advantages(rewards), expected, rtol=1e-12, atol=1e-12)


@mutant(
    "rounding pushes a group without differences",
    "papers/rloo.py",
    "(rewards - others).masked_fill(no_signal, 0.0)",
    "rewards - others",
)
def test_group_without_differences_has_advantage_exactly_zero():
    """Catches rounding that pushes the policy where nothing was learned."""
    torch.set_default_dtype(torch.float32)
    rounded = 0
    for value in (1.0, 0.1, 0.7, 1 / 3, -0.9):
        for size in (2, 3, 5, 6, 7, 16):
            rewards = torch.full((2, size), value)
            others = (rewards.sum(dim=1, keepdim=True) - rewards) / (size - 1)
            rounded += int((rewards - others).any())
            assert rloo.group_advantages(rewards).tolist() == [[0.0] * size] * 2
    assert rounded > 5, "no case here rounds, so the test shows nothing"


@mutant(
    "RLOO that lowers the reward",
    "papers/rloo.py",
    "return -advantages * logprobs",
    "return advantages * logprobs",
    case="0.7",
)
@mutant(
    "a completion compared with itself",
    "papers/rloo.py",
    "(rewards.sum(dim=1, keepdim=True) - rewards) / (rewards.shape[1] - 1)",
    "rewards.mean(dim=1, keepdim=True)",
    case="0.7",
)
@pytest.mark.parametrize("temperature", [0.7, 1.3])
def test_expected_gradient_is_that_of_the_expected_reward(temperature):
    """Catches any bias: over all groups of two completions the gradient is exactly that of -E[R].

    (Dr. GRPO's, which compares a completion with itself too, is 1 - 1/G of it.)
    """
    kit.check_expected_gradient(rloo, kit.make_args(rloo, temperature=temperature))


@mutant(
    "RLOO with a mean over the tokens",
    "papers/rloo.py",
    "return mask / mask.shape[0]",
    "return mask / mask.sum()",
)
@mutant(
    "RLOO's importance weight that is ignored",
    "papers/rloo.py",
    "loss_per_token = loss_per_token * importance",
    "pass",
)
def test_importance_weights_tokens():
    """Catches a weight upside down, without its cap, or with a gradient."""
    batch, args = kit.make_batch(), kit.make_args(rloo, importance_cap=1.2)

    def loss(now, start, batch, args) -> float:
        total = 0.0
        for i, ids in enumerate(batch["completion_ids"]):
            for t, token in enumerate(ids):
                weight = min(math.exp(start[i][t, token] - batch["rollout_logprobs"][i, t].item()), 1.2)
                total -= (
                    weight * batch["advantages"][i].item() * now[i][t, token] * bool(batch["loss_mask"][i, t])
                )
        return total / len(batch["completion_ids"])

    kit.check_loops(rloo, loss, args)
    kit.check_finite_difference(rloo, loss, args)
    plain, weighted = (
        kit.update(rloo, random_model(), batch, each)[0] for each in (kit.make_args(rloo), args)
    )
    assert weighted["policy_loss"] != pytest.approx(plain["policy_loss"], rel=1e-2)


def test_everything_masked_has_gradient_zero():
    """Catches 0/0 where all completions were truncated."""
    batch = kit.make_batch()
    batch["loss_mask"][:] = False
    sums, ours = kit.update(rloo, random_model(), batch, kit.make_args(rloo, micro_batch_tokens=100))
    assert ours.count_nonzero() == 0 and sums["policy_loss"] == 0.0
