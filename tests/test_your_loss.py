"""A template: the seven checks of tests/kit.py on papers/rloo.py. Copy it for a script of your own."""

import kit
import pytest
from mutants import mutant

from papers import dr_grpo, rloo

ARGS = kit.make_args(rloo)


def loss(now, start, batch, args) -> float:
    """RLOO in loops: minus the mean over completions of A_i log pi(o_i)."""
    total = 0.0
    for i, completion in enumerate(batch["completion_ids"]):
        if batch["loss_mask"][i].any():
            log_pi = sum(now[i][t, token] for t, token in enumerate(completion))
            total -= batch["advantages"][i].item() * log_pi
    return total / len(batch["completion_ids"])


@mutant("mean of all for the mean of the others")
def test_by_hand():
    """Catches a completion compared with itself: of 1, 0, 2, 5 the others' means are 7/3, 8/3, 2 and 1."""
    kit.check_by_hand(rloo.group_advantages, [[1.0, 0.0, 0.0, 0.0]], [[1.0, -1 / 3, -1 / 3, -1 / 3]])
    kit.check_by_hand(rloo.group_advantages, [[1.0, 0.0, 2.0, 5.0]], [[-4 / 3, -8 / 3, 0.0, 4.0]])


def test_loops():
    """Catches a wrong sign, mask, denominator or weight."""
    kit.check_loops(rloo, loss, ARGS)


def test_finite_difference():
    """Catches a term that has no gradient and should, or has one and should not."""
    kit.check_finite_difference(rloo, loss, ARGS)


def test_micro_batches():
    """Catches a denominator of the micro-batch."""
    kit.check_micro_batches(rloo, ARGS)


def test_padding_and_order():
    """Catches padding that is counted, and rows that are mixed up."""
    kit.check_padding(rloo, ARGS)
    kit.check_order(rloo, ARGS)


def test_against_its_base():
    """Catches another difference to Dr. GRPO, whose gradient for equal advantages is this / 12."""
    kit.check_against_base(rloo, ARGS, dr_grpo, kit.make_args(dr_grpo), times=ARGS.max_new_tokens)


@pytest.mark.parametrize(
    "old, new",
    [
        ("return -advantages * logprobs", "return advantages * logprobs"),
        ("return mask / mask.shape[0]", "return mask / mask.sum()"),
        ('sequence_sum(batch["loss_mask"])', 'sequence_sum(batch["completion_mask"])'),
    ],
)
def test_a_mutant_goes_red(old, new):
    """Catches checks that see nothing: a wrong sign, a mean over tokens, masked completions in the loss."""
    kit.check_mutant(rloo, old, new, lambda script: kit.check_loops(script, loss, ARGS))
