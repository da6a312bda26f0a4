"""Run.optimizer_step on a model of two weights; tests/test_loop.py has the same guards in whole runs."""

import math
from collections import Counter
from types import SimpleNamespace

import pytest
import torch

from plainrl.run import Run


@pytest.fixture
def run() -> Run:
    """A run without a folder, whose two weights are 1."""
    run = Run.__new__(Run)
    run.model = torch.nn.Linear(2, 1, bias=False)
    torch.nn.init.constant_(run.model.weight, 1.0)
    run.args = SimpleNamespace(max_grad_norm=0.5, max_logprob_gap=1e-3)
    run.state, run.sums, run.grad_norms = {"skips_in_a_row": 0}, Counter(), []
    return run


def step(run: Run, gradient: list[float], loss: float = 1.0, gap: float = 0.0) -> bool:
    """One update of plain gradient descent; `gap` is that of each of ten tokens."""
    optimizer = torch.optim.SGD(run.model.parameters(), lr=1.0)
    (run.model.weight * torch.tensor([gradient])).sum().backward()
    return run.optimizer_step(optimizer, Counter(total_loss=loss, gap=10 * gap, tokens=10))


def test_an_update_is_clipped(run):
    """Catches another limit than the flag's, a norm logged after clipping, and gradients that stay."""
    assert step(run, [3.0, 4.0]) and run.grad_norms == [5.0]
    torch.testing.assert_close(run.model.weight, torch.tensor([[1 - 0.3, 1 - 0.4]]))
    assert step(run, [0.3, 0.0]) and run.grad_norms[-1] == pytest.approx(0.3)  # the first gradient is gone
    assert run.sums == Counter(total_loss=2.0, tokens=20, gap=0.0, skipped=0)


@pytest.mark.parametrize(
    "gradient, loss", [(math.nan, 1.0), (math.inf, 1.0), (1.0, math.nan), (1.0, -math.inf)]
)
def test_an_update_that_is_not_finite_is_skipped(run, gradient, loss):
    """Catches weights that become nan, a skip that nobody counts, or one that is never forgiven."""
    assert not step(run, [gradient, 0.0], loss)
    assert run.model.weight.tolist() == [[1.0, 1.0]]
    assert run.sums["skipped"] == 1 and run.state["skips_in_a_row"] == 1
    assert step(run, [0.0, 0.1]) and run.model.weight.tolist() == [[1.0, pytest.approx(0.9)]]
    assert run.sums["skipped"] == 1 and run.state["skips_in_a_row"] == 0


def test_a_sampler_that_differs_is_stopped_before_the_update(run):
    """Catches a gap that is only looked at after a push: one that shares the weights has none."""
    assert step(run, [1.0, 0.0], gap=1e-3)
    before = run.model.weight.tolist()
    with pytest.raises(SystemExit, match="--max-logprob-gap"):
        step(run, [1.0, 0.0], gap=1.1e-3)
    assert run.model.weight.tolist() == before
