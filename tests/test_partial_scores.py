"""Scores between 0 and 1, in the parts that decide by them: what counts as right, and what is a mean."""

import math
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from mutants import mutant
from toys import FakeSampler, FunctionTask, column, graded, quick_flags

import guide
import h1_curriculum
from papers import adarft, dapo, guide_ablations
from plainrl import curves
from plainrl.horizons import horizon_metrics
from plainrl.metrics import evaluate
from plainrl.rollout import Completion, Rollout
from plainrl.tasks import Problem

GROUPS = [  # scores of four completions
    [0.5, 0.5, 0.5, 0.5],  # no differences, none right
    [0.0, 0.25, 0.5, 0.5],  # differences, but none right
    [1.0, 0.5, 0.25, 0.0],
    [1.0, 1.0, 1.0, 0.5],
    [1.0, 1.0, 1.0, 1.0],
]
GUIDES = pytest.mark.parametrize("script", [guide, guide_ablations], ids=["guide", "ablations"])


def rollout_of(groups: list[list[float]], problems: list[Problem] | None = None) -> Rollout:
    """Completions of one token with these scores."""
    problems = problems or [Problem(f"q{j}", "12", f"hint {j}") for j in range(len(groups))]
    grades = [graded(score, "x") for group in groups for score in group]
    size = len(grades)
    return Rollout(problems, [[7]] * size, [Completion([5], [0.0], "stop")] * size, ["x"] * size, grades)


@mutant(
    "half a point is right",
    "plainrl/rollout.py",
    "torch.tensor([grade.correct for grade in self.grades])",
    "torch.tensor([grade.score >= 0.5 for grade in self.grades])",
)
@mutant(
    "partial scores rounded",
    "plainrl/rollout.py",
    "torch.tensor([grade.score for grade in self.grades], dtype=torch.float32)",
    "torch.tensor([float(grade.correct) for grade in self.grades], dtype=torch.float32)",
)
def test_only_a_score_of_one_is_right():
    """Catches right answers counted by half points, and rewards that are right or wrong alone."""
    rollout = rollout_of(GROUPS)
    assert rollout.rewards().tolist() == GROUPS
    assert rollout.correct() == [0, 0, 1, 3, 4]


@mutant(
    "groups with differences in score are kept by Guide",
    "guide.py",
    "return 0 < sum(group.correct()) < len(group.texts)",
    "return 0 < group.rewards().sum() < len(group.texts)",
    case="guide",
)
@GUIDES
def test_guide_keeps_groups_by_right_answers(script):
    """Catches a group without a right answer that is trained on, and one with some that is not."""
    kept = [script.has_differences(rollout_of([group])) for group in GROUPS]
    assert kept == [False, False, True, True, False]


@mutant(
    "half a point is no failure",
    "guide.py",
    "and not any(groups[j].correct())",
    "and not groups[j].rewards().any()",
    case="guide",
)
@mutant(
    "half a point is success with a hint",
    "guide.py",
    "guided_right=sum(guided.correct())",
    "guided_right=guided.rewards().sum().item()",
    case="guide",
)
@GUIDES
def test_a_group_without_a_right_answer_has_failed(script):
    """Catches half a point that keeps a hint away, and one that counts as solved."""
    asked, plain = [], rollout_of(GROUPS)

    def sample(problems, seeds, prompts=None):
        asked.append(prompts)
        return rollout_of([[0.5, 0.25, 0.5, 1.0]] * len(problems), problems) if prompts else plain

    args = script.Args(group_size=4)
    run = SimpleNamespace(args=args, sample=sample, sums=Counter(), state={"solved": []})
    groups = script.sample_groups(run, plain.problems, None, 1, 0)
    assert asked == [None, ["q0\nHint: hint 0", "q1\nHint: hint 1"]]
    assert [group.rewards()[0].tolist() for group in groups] == [[0.5, 0.25, 0.5, 1.0]] * 2 + GROUPS[2:]
    assert (run.sums["guided_right"], run.sums["guided_completions"]) == (2, 8)
    assert run.sums["first_solved"] == len(run.state["solved"]) == 3


@pytest.mark.parametrize("accuracy, helped", [(0.24, 2), (0.25, 3), (0.75, 4)])
def test_the_trigger_below_counts_right_answers(accuracy, helped):
    """Catches a mean score for an accuracy: that of the third group is .44, and one of four is right."""
    shown, plain = [], rollout_of(GROUPS)

    def sample(problems, seeds, prompts=None):
        shown.extend(prompts or [])
        return rollout_of(GROUPS[: len(problems)], problems)

    args = guide_ablations.Args(group_size=4, trigger="below", trigger_accuracy=accuracy)
    run = SimpleNamespace(args=args, sample=sample, sums=Counter(), state={"solved": []})
    guide_ablations.sample_groups(run, plain.problems, None, 1, 0)
    assert len(shown) == helped


# --- DAPO's punishment, token by token ----------------------------------------------------------------------


@mutant(
    "punishment begins a token early",
    "papers/dapo.py",
    "(max_new_tokens - buffer - lengths) / buffer",
    "(max_new_tokens - buffer - lengths - 1) / buffer",
    case="10-2",
)
@mutant(
    "punishment ends a token early",
    "papers/dapo.py",
    "(max_new_tokens - buffer - lengths) / buffer",
    "(max_new_tokens - buffer - lengths) / (buffer - 1)",
    case="100-20",
)
@pytest.mark.parametrize("limit, buffer", [(10, 2), (100, 20), (7, 1), (12, 3), (5, 5)])
def test_overlong_punishment_of_every_length(limit, buffer):
    """Catches a punishment that is a token off: 0 up to L_max - L_cache, then 1 / L_cache more a token."""
    lengths = list(range(1, limit + 1))
    expected = [0.0] * (limit - buffer) + [-(i + 1) / buffer for i in range(buffer)]
    ours = dapo.soft_overlong(torch.tensor(lengths), limit, buffer)
    assert ours.tolist() == pytest.approx(expected, abs=1e-6)
    assert ours[limit - buffer :].max() < 0 and ours[-1] == -1 and not ours[: limit - buffer].any()


# --- schedules ----------------------------------------------------------------------------------------------


def test_the_reward_of_a_horizon_is_a_mean_of_scores():
    """Catches a share of right answers in its place."""
    found = horizon_metrics("e2h", [1, 2, 1, 2, 2], torch.tensor(GROUPS), 3)
    # group sums 2, 1.25, 1.75, 3.5, 4
    expected = {"e2h/horizon": 1.6, "e2h/reward_1": 3.75 / 8, "e2h/reward_2": 8.75 / 12, "e2h/reward_3": None}
    assert found == pytest.approx(expected)


@mutant(
    "AdaRFT goes by right answers",
    "papers/adarft.py",
    "adarft_target(target, rewards.mean().item())",
    "adarft_target(target, rewards.eq(1).float().mean().item())",
)
@mutant(
    "AdaRFT adds a reward for a box",
    "papers/adarft.py",
    "        rewards, target = rollout.rewards(), run.state",
    "        boxed = torch.tensor(['boxed' in text for text in rollout.texts]).view(B, G)\n"
    "        rewards, target = rollout.rewards() + 0.5 * ~boxed, run.state",
)
def test_adarft_follows_the_mean_score(toy_model, tmp_path, monkeypatch):
    """Catches a target that goes by right answers, by advantages, or by what is added to the score."""
    monkeypatch.setattr(curves, "plot_run", lambda run: None)
    task = FunctionTask(lambda text, problem: {1: 0.75, 2: 0.25}[problem.horizon])
    flags = dict(max_horizon=2, eval_every=100, save_every=100, eval_samples=1)
    adarft.main(adarft.Args(**quick_flags(toy_model, tmp_path / "run", **flags)), task=task)
    change = 50 * math.tanh(2 * 0.25)  # 23.1: up for .75, down for .25
    targets = [0.0, change, 2 * change, 3 * change, 2 * change]
    assert column(tmp_path / "run", "adarft/target") == pytest.approx(targets, abs=1e-3)
    assert column(tmp_path / "run", "adarft/horizon") == [1, 1, 1, 2, 1]


def test_no_schedule_but_h1s_has_a_reward_for_the_format():
    """Catches the flag in a script whose schedule follows the mean reward: it would move the target."""
    assert "format_reward" in h1_curriculum.Args.__dataclass_fields__
    for script in (adarft, guide, dapo):
        assert "format_reward" not in script.Args.__dataclass_fields__


# --- measuring ----------------------------------------------------------------------------------------------


class Tokenizer:
    """Every prompt is its last number; a completion its one id."""

    chat_template = None

    def encode(self, text):
        return [int(text.split()[1])]

    def decode(self, ids, skip_special_tokens=True):
        return str(ids[0])


@mutant(
    "accuracy of half points",
    "plainrl/metrics.py",
    '"correct": sum(sample["correct"] for sample in samples)',
    '"correct": sum(sample["score"] >= 0.5 for sample in samples)',
)
@mutant(
    "score of right answers alone",
    "plainrl/metrics.py",
    '"score": row.get("score", row["correct"]) / n',
    '"score": row["correct"] / n',
)
def test_accuracy_counts_right_answers_and_the_score_is_a_mean():
    """Catches avg@k, pass@k or maj@k of partial scores, and a score that loses them."""
    sampler = FakeSampler(lambda prompt, sample, seed: ([10 * prompt[0] + sample], "stop"))
    task = FunctionTask(lambda text, problem: GROUPS[int(text) // 10][int(text) % 10])
    scores, rows = evaluate(sampler, Tokenizer(), task, "test", 5, 4, 8)
    assert [row["correct"] for row in rows] == [0, 0, 1, 3, 4]
    assert scores["avg@4"] == pytest.approx(8 / 20) and scores["pass@4"] == pytest.approx(3 / 5)
    assert scores["score"] == pytest.approx((2 + 1.25 + 1.75 + 3.5 + 4) / 20)
