"""papers/adarft.py and papers/e2h.py: which horizons they draw, and what a resumed run keeps."""

import doctest
import json
import math
from collections import Counter

import pytest
from mutants import mutant
from stopping import assert_same_run, stopping_after
from toys import FunctionTask, HashTask, column, quick_flags, records

from papers import adarft, dr_grpo, e2h

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture
def run(toy_model, tmp_path):
    """run(script, name, task=..., **flags) -> the output folder of a quick run."""

    def function(script, name="run", task=None, **changes):
        args = script.Args(**quick_flags(toy_model, tmp_path / name, **changes))
        script.main(args, task=task or HashTask())
        return tmp_path / name

    return function


@pytest.mark.parametrize("script", [adarft, e2h], ids=["adarft", "e2h"])
def test_doctests(script):
    """Catches examples that are not true."""
    result = doctest.testmod(script)
    assert result.attempted >= 3 and result.failed == 0


@pytest.mark.parametrize("script", [adarft, e2h], ids=["adarft", "e2h"])
def test_one_horizon_is_dr_grpo(run, script):
    """Catches anything that is left of them where there is one horizon: equal to papers/dr_grpo.py to the
    last bit."""
    ours = run(script, "ours", max_horizon=1, minibatches=2)
    theirs = run(dr_grpo, "theirs", minibatches=2)
    for one, other in zip(records(ours), records(theirs), strict=True):
        assert {name: one[name] for name in other} == other
    assert (ours / "last/model.safetensors").read_bytes() == (theirs / "last/model.safetensors").read_bytes()


@pytest.mark.parametrize("script", [adarft, e2h], ids=["adarft", "e2h"])
def test_refused_tasks(toy_model, tmp_path, script):
    """Catches a task without horizons that is refused late, or without the way out."""
    flags = quick_flags(toy_model, tmp_path / "run")
    with pytest.raises(SystemExit, match="use chain, or chain them with horizon=1 in --task"):
        script.main(script.Args(**flags | {"task": "gym:leg_counting"}))
    with pytest.raises(SystemExit, match="error: --eval-problems 2: must be at least --max-horizon 3"):
        script.main(script.Args(**flags, max_horizon=3), task=HashTask())
    assert not (tmp_path / "run").exists()


# --- AdaRFT -------------------------------------------------------------------------------------------------


@mutant(
    "target away from the accuracy",
    "papers/adarft.py",
    "target + eta * math.tanh(",
    "target - eta * math.tanh(",
)
@mutant(
    "target without bounds",
    "papers/adarft.py",
    "return min(100.0, max(0.0, target + eta",
    "return (lambda value: value)((target + eta",
)
@mutant("horizon rounded down", "papers/adarft.py", "(longest - 1) + 0.5)", "(longest - 1))")
def test_adarft_by_hand():
    """Catches a target that moves the wrong way or leaves its range, and one that is rounded to the wrong
    horizon."""
    assert adarft.adarft_target(40.0, 0.5) == 40.0
    assert adarft.adarft_target(40.0, 0.6) == pytest.approx(40 + 50 * math.tanh(0.2))
    assert adarft.adarft_target(40.0, 0.1) == pytest.approx(40 - 50 * math.tanh(0.8))
    assert adarft.adarft_target(90.0, 1.0) == 100.0 and adarft.adarft_target(10.0, 0.0) == 0.0
    # H = 5: horizons at difficulty 0, 25, 50, 75, 100
    targets = {0.0: 1, 12.4: 1, 12.6: 2, 62.4: 3, 62.6: 4, 87.6: 5, 100.0: 5}
    assert {target: adarft.closest_horizon(target, 5) for target in targets} == targets
    assert adarft.closest_horizon(100.0, 1) == 1


@mutant(
    "target that is never updated",
    "papers/adarft.py",
    'run.state["target"] = adarft_target(target,',
    "adarft_target(target,",
)
def test_adarft_follows_the_accuracy(run):
    """Catches a target that is not updated, or with another number than the batch's accuracy."""
    task = FunctionTask(lambda text, problem: float(problem.horizon < 3))
    folder = run(adarft, task=task, max_horizon=3, steps=8, eval_problems=3)
    horizons = column(folder, "adarft/horizon")
    assert column(folder, "reward/mean") == [float(horizon < 3) for horizon in horizons]
    # all right: tanh(1) = .76, so + 38 a step: 0, 38, 76 -> horizons 1, 2, 3; all wrong: back to 38, ...
    targets = [0.0, 38.08, 76.16, 38.08, 76.16, 38.08, 76.16, 38.08]
    assert column(folder, "adarft/target") == pytest.approx(targets, abs=0.01)
    assert horizons == [1, 2, 3, 2, 3, 2, 3, 2]
    for step, horizon in enumerate(horizons, start=1):
        rewards = {h: records(folder)[step][f"adarft/reward_{h}"] for h in (1, 2, 3)}
        assert rewards == {1: None, 2: None, 3: None} | {horizon: float(horizon < 3)}


# --- E2H ----------------------------------------------------------------------------------------------------


@mutant(
    "cosine from hard to easy",
    "papers/e2h.py",
    "0.5 * (1 + math.cos(math.pi * time))",
    "0.5 * (1 - math.cos(math.pi * time))",
)
@mutant(
    "mean that moves evenly",
    "papers/e2h.py",
    "mean = time**power * (levels - 1)",
    "mean = time * (levels - 1)",
)
def test_e2h_by_hand():
    """Catches the roles of start and end exchanged, and weights that do not sum to one."""
    # L = 5, Z = 15: at the start (5, 4, 3, 2, 1) / 15, at the end the other way round, in the middle 1/5 each
    assert e2h.e2h_cosine(0.0, 5) == pytest.approx([5 / 15, 4 / 15, 3 / 15, 2 / 15, 1 / 15])
    assert e2h.e2h_cosine(0.5, 5) == pytest.approx([0.2] * 5)
    assert e2h.e2h_cosine(1.0, 5) == pytest.approx([1 / 15, 2 / 15, 3 / 15, 4 / 15, 5 / 15])
    # alpha = (1 + cos 45 deg) / 2
    assert e2h.e2h_cosine(0.25, 2) == pytest.approx([0.5 + math.sqrt(0.5) / 6, 0.5 - math.sqrt(0.5) / 6])
    # sigma 1/2: weights exp(-2 d^2) at distance d from the mean, which is sqrt(time) (L - 1)
    near, far = math.exp(-2), math.exp(-8)
    assert e2h.e2h_gaussian(0.0, 3) == pytest.approx([w / (1 + near + far) for w in (1, near, far)])
    assert e2h.e2h_gaussian(1.0, 3) == pytest.approx([w / (1 + near + far) for w in (far, near, 1)])
    half_way = e2h.e2h_gaussian(0.25, 5)  # after a quarter of the time
    assert half_way[2] == max(half_way)


def drawn(args, steps) -> Counter:
    return Counter(horizon for step in steps for horizon in e2h.draw_horizons(args, step, 0))


@mutant(
    "time that does not see the tokens",
    "papers/e2h.py",
    "max((step - 1) / args.steps, tokens_used)",
    "(step - 1) / args.steps",
    case="cosine",
)
@pytest.mark.parametrize("schedule", ["cosine", "gaussian"])
def test_e2h_moves_from_short_to_long(schedule):
    """Catches a time that stands still, runs backwards, or does not see the token budget."""
    args = e2h.Args(schedule=schedule, prompts_per_step=10, steps=400)
    early, late = drawn(args, range(1, 101)), drawn(args, range(301, 401))
    mean = lambda counts: sum(h * n for h, n in counts.items()) / counts.total()  # noqa: E731
    assert mean(early) + 0.5 < mean(late)
    args = e2h.Args(steps=1000, token_budget=200)
    used = [e2h.time_used(args, step, tokens) for step, tokens in ((1, 0), (1, 100), (501, 0), (1, 500))]
    assert used == [0.0, 0.5, 0.5, 1.0]


def test_e2h_draws_are_pure():
    """Catches a draw that is the same in all steps or for all prompts, one that is not the seed's, and one
    that does not follow its probabilities."""
    args, other = (e2h.Args(prompts_per_step=10, steps=400, seed=seed) for seed in (0, 1))
    draws = [e2h.draw_horizons(args, step, 0) for step in range(1, 6)]
    assert draws == [e2h.draw_horizons(args, step, 0) for step in range(1, 6)]
    assert len(set(map(tuple, draws))) == 5 and len(set(draws[0])) > 1
    assert e2h.draw_horizons(other, 1, 0) != draws[0]
    counts = drawn(args, range(1, 401))  # over the whole time every horizon is as likely as the others
    assert all(abs(counts[h] - 800) < 5 * math.sqrt(4000 * 0.2 * 0.8) for h in range(1, 6))


# --- resumed runs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", [adarft, e2h], ids=["adarft", "e2h"])
@pytest.mark.parametrize("stop_at", [2, 3])
def test_stopped_and_resumed(run, script, stop_at):
    """Catches a resume that forgets AdaRFT's target, or how much of E2H's time is over."""
    flags = dict(max_horizon=2, steps=4, save_every=100, eval_every=1)
    with stopping_after(stop_at):
        stopped = run(script, "stopped", **flags)
    assert json.loads((stopped / "last" / "state.json").read_text())["step"] == stop_at
    assert not (stopped / "final").exists()
    run(script, "stopped", resume=True, **flags)
    assert_same_run(stopped, run(script, "whole", **flags))


def test_resume_with_another_length(run):
    """Catches a run of E2H, whose schedule is spread over the whole length, that goes on with another one."""
    flags = dict(max_horizon=2, eval_every=100, save_every=1)
    run(e2h, steps=3, **flags)
    with pytest.raises(SystemExit, match="--resume: --steps was 3 and is now 5"):
        run(e2h, steps=5, resume=True, **flags)
    with pytest.raises(SystemExit, match="--resume: --token-budget was None and is now 900"):
        run(e2h, steps=3, token_budget=900, resume=True, **flags)
    run(adarft, "adarft", steps=3, **flags)
    longer = run(adarft, "adarft", steps=4, resume=True, **flags)
    whole = run(adarft, "whole", steps=4, **flags)
    assert all(column(longer, name) == column(whole, name) for name in ("reward/mean", "adarft/target"))
