"""plainrl/metrics.py: its estimators against enumeration and scipy, its intervals against what they
promise."""

import itertools
import math
import random
import re
from collections import Counter
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from mutants import mutant

from benchmarks import coverage
from eval import cell
from plainrl import grading, metrics
from plainrl.sources import ChoiceTask, ListTask
from plainrl.tasks import Grade

ROOT = Path(__file__).resolve().parent.parent


# --- pass@k -------------------------------------------------------------------------------------------------


@mutant(
    "pass@k with replacement",
    "plainrl/metrics.py",
    "range(num_samples - num_correct + 1, num_samples + 1)",
    "[num_samples] * num_correct",
)
@mutant(
    "pass@k off by one",
    "plainrl/metrics.py",
    "if num_samples - num_correct < k:",
    "if num_samples - num_correct <= k:",
)
def test_pass_at_k_equals_enumeration_of_all_subsets():
    """Catches a biased estimator (1 - (1 - c/n)^k) and every off-by-one in the product."""
    for n in range(1, 11):
        for c in range(n + 1):
            for k in range(1, n + 1):
                subsets = list(itertools.combinations([True] * c + [False] * (n - c), k))
                by_counting = sum(any(subset) for subset in subsets) / len(subsets)
                assert metrics.pass_at_k(n, c, k) == pytest.approx(by_counting, abs=1e-12), (n, c, k)


def test_pass_at_k_of_a_thousand_samples():
    """Catches binomials that overflow: all c and many k against scipy's hypergeometric distribution."""
    for c in (0, 1, 2, 10, 500, 998, 999, 1000):
        for k in (1, 2, 3, 16, 100, 499, 500, 501, 999, 1000):
            ours = metrics.pass_at_k(1000, c, k)
            assert (
                ours == pytest.approx(scipy.stats.hypergeom(1000, c, k).sf(0), abs=1e-10) and 0 <= ours <= 1
            )


@pytest.mark.parametrize("k", [0, 5, -1])
def test_too_few_samples_for_k(k):
    """Catches a silent pass@k or maj@k from too few samples."""
    with pytest.raises(ValueError, match=f"pass@{k} needs"):
        metrics.pass_at_k(4, 1, k)
    with pytest.raises(ValueError, match=f"maj@{k} needs"):
        metrics.maj_at_k(["1"] * 4, [True] * 4, k)


# --- maj@k --------------------------------------------------------------------------------------------------


def majority_by_counting(voted: list, worth: dict, k: int) -> Fraction:
    """The definition: over all subsets of size k, the mean worth of the answers with the most votes."""
    subsets = list(itertools.combinations(range(len(voted)), k))
    total = Fraction(0)
    for subset in subsets:
        count = Counter(voted[i] for i in subset if voted[i] is not None)
        most = max(count.values(), default=0)
        winners = [answer for answer in count if count[answer] == most]
        total += sum(Fraction(worth[answer]) for answer in winners) / max(1, len(winners))
    return total / len(subsets)


@mutant("ties all win", "plainrl/metrics.py", "(by_ties / in_front).sum()", "by_ties.sum()")
@mutant("silence left out of the draw", "plainrl/metrics.py", "weak = silent + sum(", "weak = sum(")
@mutant(
    "rivals that overtake",
    "plainrl/metrics.py",
    "for i in range(min(j, room + 1))",
    "for i in range(min(j + 1, room + 1))",
)
def test_maj_at_k_equals_enumeration_of_all_subsets():
    """Catches ties that go to one side, silence that votes, and every error of the counting: all splits of up
    to eight samples into one right answer, two wrong ones and silence, and every k; then random ones with
    five answers, several of them right."""
    for n in range(1, 9):
        for sizes in itertools.product(range(n + 1), repeat=3):
            if (silent := n - sum(sizes)) < 0 or sizes[1] < sizes[2] or (n > 7 and sum(sizes) % 3 != n % 3):
                continue
            voted = ["right"] * sizes[0] + ["b"] * sizes[1] + ["c"] * sizes[2] + [None] * silent
            correct = [vote == "right" for vote in voted]
            for k in range(1, n + 1):
                by_counting = majority_by_counting(voted, {"right": 1, "b": 0, "c": 0}, k)
                assert metrics.maj_at_k(voted, correct, k) == pytest.approx(float(by_counting), abs=1e-12), (
                    sizes,
                    silent,
                    k,
                )
    rng = random.Random(1)
    for _ in range(60):
        voted = rng.choices(["a", "b", "c", "d", "e", None], k=rng.randint(1, 9))
        right = set(rng.sample("abcde", rng.randint(0, 3)))
        k = rng.randint(1, len(voted))
        by_counting = majority_by_counting(voted, {answer: answer in right for answer in "abcde"}, k)
        assert metrics.maj_at_k(voted, [vote in right for vote in voted], k) == pytest.approx(
            float(by_counting), abs=1e-12
        )


def test_maj_at_k_of_two_answers_is_a_hypergeometric_tail():
    """Catches overflow and lost digits at n = 1,000, where enumeration is out of reach."""
    for c, k in ((500, 3), (501, 100), (700, 1000), (300, 999), (510, 500), (1, 1000), (999, 2)):
        votes = scipy.stats.hypergeom(1000, c, k)
        expected = votes.sf(k // 2) + (votes.pmf(k // 2) / 2 if k % 2 == 0 else 0)
        voted = ["right"] * c + ["wrong"] * (1000 - c)
        assert metrics.maj_at_k(voted, [vote == "right" for vote in voted], k) == pytest.approx(
            expected, abs=1e-9
        ), (c, k)


def test_maj_at_k_of_a_thousand_different_answers():
    """Catches a number that is not finite, and time or memory that explodes."""
    voted = ["right"] * 40 + [str(i // 2) for i in range(900)] + [None] * 60
    values = [metrics.maj_at_k(voted, [vote == "right" for vote in voted], k) for k in (1, 10, 100, 1000)]
    assert (
        values[0] == pytest.approx(0.04)
        and values[-1] == 1
        and values == sorted(values)
        and all(map(math.isfinite, values))
    )


def test_an_answer_is_worth_the_share_of_its_samples_that_are_right():
    """Catches a vote that counts as right because one sample in it was: grader and equivalence may
    disagree."""
    assert metrics.maj_at_k(["a", "a", "a", "a"], [True, True, True, False], 4) == 0.75


@pytest.mark.parametrize(
    "parsed, correct, by_hand",
    [
        (["7", "7", "8"], [True, True, False], 1.0),
        (["8", "8", "7"], [False, False, True], 0.0),
        (["7", "8"], [True, False], 0.5),  # a tie is split
        (["7", "8", "9"], [True, False, False], 1 / 3),
        (["7", "8", "8", "7", "9"], [True, False, False, True, False], 0.5),
        ([None, None, "7"], [False, False, True], 1.0),  # no answer does not vote
        ([None, None], [False, False], 0.0),
        (["7", "07", "8", "8", " 7 "], [True, True, False, False, True], 1.0),  # one number, three spellings
        (["1,000", "1000", "5", "5"], [True, True, False, False], 0.5),
        (["x", "x", "7"], [False, False, True], 0.0),
    ],
)
def test_majority_by_hand(parsed, correct, by_hand):
    """Catches votes for no answer, ties that go to the first, and spellings of one number counted apart."""
    grades = [Grade(ok, float(ok), answer, "") for answer, ok in zip(parsed, correct)]
    assert metrics.maj_at_k(metrics.votes(None, grades), correct, len(parsed)) == pytest.approx(by_hand)


@mutant(
    "votes by string",
    "plainrl/metrics.py",
    "time.monotonic() < end and or_fail(same, other, answer)",
    "other == answer",
)
def test_votes_by_equivalence():
    """Catches voting by string: 1/2 wins over 2 only when its spellings vote together. Names and letters are
    not multiplied out."""
    answers = ["2", "1/2", "2", "0.5", "\\frac12", None, "2"]
    grades = [Grade(False, 0.0, answer, "") for answer in answers]
    assert metrics.votes(ListTask("mine", {}), grades) == ["2", "1/2", "2", "1/2", "1/2", None, "2"]
    names = [Grade(False, 0.0, answer, "") for answer in ("mary", "army", "Mary", "mary")]
    assert metrics.votes(ChoiceTask("mine", {}), names) == ["mary", "army", "Mary", "mary"]


def test_math_verify_is_asked_only_about_representatives(monkeypatch):
    """Catches a comparison of every pair: minutes for 64 samples."""
    asked = []
    monkeypatch.setattr(grading, "ask_worker", lambda request: asked.append(request) or (0.0, ""))
    grades = [Grade(False, 0.0, answer, "") for answer in ["7", "8", "x", "7", "x", "8", "9", "x"] * 8]
    assert metrics.votes(ListTask("mine", {}), grades)[:7] == ["7", "8", "x", "7", "x", "8", "9"]
    assert len(asked) == 2 * 3  # x against 7, 8 and 9 in both orders; never one number against another


# --- intervals ----------------------------------------------------------------------------------------------


@mutant(
    "interval of 90 percent",
    "plainrl/metrics.py",
    "np.quantile(means, [0.025, 0.975], axis=0)",
    "np.quantile(means, [0.05, 0.95], axis=0)",
)
@mutant(
    "interval not widened",
    "plainrl/metrics.py",
    "_student(values, groups) / Z * math.sqrt(smallest / (smallest - 1))",
    "1.0",
)
def test_interval_is_the_percentile_bootstrap_widened():
    """Catches one-sided quantiles, redrawn samples instead of problems, and a factor that is left out or
    upside down: for numbers as regular as the normal distribution's quantiles the answer is Student's
    interval, 10 percent wider than the bare bootstrap."""
    values = scipy.stats.norm.ppf((np.arange(20) + 0.5) / 20)[:, None]
    low, high = metrics.intervals(values, np.zeros(20), draws=100_000)
    half = scipy.stats.t.ppf(0.975, 19) * values.std(ddof=1) / math.sqrt(20)
    assert (high[0] - low[0]) / 2 == pytest.approx(half, rel=0.015) and (
        high[0] + low[0]
    ) / 2 == pytest.approx(0, abs=0.02 * half)


def test_few_deciding_problems_widen_the_interval():
    """Catches degrees of freedom that do not see the kurtosis: a rate of .05 among 200 has kurtosis 18.1, so
    23 instead of 199."""
    values = np.array([1.0] * 10 + [0.0] * 190)[:, None]
    low, high = metrics.intervals(values, np.zeros(200), draws=40_000)
    rng = np.random.default_rng(3)
    bare = np.quantile(rng.binomial(200, 0.05, 1_000_000) / 200, [0.025, 0.975])
    factor = scipy.stats.t.ppf(0.975, 2 * 200 / 17.05) / scipy.stats.norm.ppf(0.975) * math.sqrt(200 / 199)
    assert high[0] - low[0] == pytest.approx((bare[1] - bare[0]) * factor, rel=0.02)


def test_all_alike_reaches_as_far_as_a_rate_can():
    """Catches certainty from nothing seen: 0 of 50 is compatible with a rate of 1 - 0.025^(1/50), Clopper and
    Pearson's bound."""
    bound = scipy.stats.beta.ppf(0.975, 1, 50)
    for value, expected in ((0.0, (0.0, bound)), (1.0, (1 - bound, 1.0))):
        entry = metrics.summarise({"avg@4": np.full(50, value)}, np.zeros(50))["avg@4"]
        assert (entry["low"], entry["high"]) == pytest.approx(expected) and entry["too_narrow"]


def test_rates_stay_within_0_and_1():
    """Catches an interval that ends above 1, or a difference that is cut at 0."""
    skewed = np.array([0.0] * 2 + [1.0] * 18)
    assert metrics.intervals(skewed[:, None], np.zeros(20))[1][0] > 1
    assert metrics.summarise({"avg@4": skewed}, np.zeros(20))["avg@4"]["high"] == 1
    assert metrics.summarise({"avg@4": skewed - 0.95}, np.zeros(20), difference=True)["avg@4"]["low"] < 0


def test_interval_is_seeded_and_fixed_strata_add_no_spread():
    """Catches intervals that change from call to call, and horizons that are redrawn as if their numbers were
    found by chance."""
    values = np.array([[0.0]] * 20 + [[1.0]] * 20)
    assert [end.tolist() for end in metrics.intervals(values, np.repeat([1, 2], 20))] == [[0.5], [0.5]]
    uneven = np.array(
        [[0.0], [1.0], [0.0], [1.0]] + [[0.3]] * 36
    )  # the spread of the first stratum alone, at its weight of a tenth
    low, high = metrics.intervals(uneven, np.repeat([1, 2], [4, 36]))
    assert low[0] > 0.2 and high[0] - low[0] < 0.2
    first, again = (metrics.intervals(values, np.zeros(40)) for _ in range(2))
    assert first == again and first[0] < 0.4 and first[1] > 0.6
    assert all(math.isnan(end[0]) for end in metrics.intervals(np.ones((3, 1)), np.array([1, 1, 2])))


@pytest.mark.parametrize(
    "metric, concentration, mean",
    [("avg@16", 0.5, 0.3), ("avg@1", 10, 0.9), ("avg@16, paired difference", 0.5, 0.1)],
)
def test_coverage_at_a_hundred_problems(metric, concentration, mean):
    """Catches intervals that do not hold what they promise; benchmarks/coverage.md has the whole table."""
    held, _, _ = coverage.simulate(metric, concentration, mean, 100, 1000)
    assert 0.93 <= held <= 0.975


def test_committed_coverage():
    """Catches a table that does not hold what is promised: 93 to 97 percent from 100 problems between .1 and
    .9, and a mark in most evaluations wherever an interval holds less than nine times in ten."""
    text = (ROOT / "benchmarks/coverage.md").read_text()
    low, high = re.findall(r"([0-9.]+)%", coverage.held_range(text))
    assert 93 <= float(low) <= float(high) <= 97
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| 0")]
    assert len(rows) == len(coverage.METRICS) * len(coverage.MEANS)
    for held in (share for row in rows for share in (*row[2:5], *row[6:9])):
        marked = re.search(r"\((\d+)% marked", held)
        assert float(held.split()[0]) >= 0.9 or int(marked[1]) > 50, held


@pytest.mark.parametrize(
    "values, narrow",
    [
        ([0.0] * 100, True),
        ([1.0] * 100, True),
        ([1.0] * 9 + [0.0] * 91, True),
        ([1.0] * 10 + [0.0] * 90, False),
        ([0.5] * 19, True),
        ([0.5] * 20, False),
    ],
)
def test_warning_near_0_and_1(values, narrow):
    """Catches an interval of width zero at accuracy 0 without a word."""
    entry = metrics.summarise({"avg@4": np.array(values)}, np.zeros(len(values)))["avg@4"]
    assert entry["too_narrow"] == narrow and ("*" in cell(entry)) == narrow
    assert 0 <= entry["low"] <= entry["value"] <= entry["high"] <= 1


@mutant(
    "differences marked by their sum",
    "plainrl/metrics.py",
    "deciding = np.abs(values).sum() ** 2 / max((values**2).sum(), 1e-300)",
    "deciding = values.sum()",
)
def test_warning_of_a_difference():
    """Catches a mark that looks at the sum (nine problems that differ are few though their sum is 9, ten that
    cancel are enough), or that counts problems which differ by next to nothing."""
    for values, narrow in (
        ([1.0] * 9 + [0.0] * 91, True),
        ([1.0] * 5 + [-1.0] * 6 + [0.0] * 90, False),
        ([1.0] * 5 + [0.001] * 95, True),
    ):
        assert (
            metrics.summarise({"avg@4": np.array(values)}, np.zeros(len(values)), True)["avg@4"]["too_narrow"]
            == narrow
        )


def test_one_problem_has_no_interval():
    """Catches an interval of width zero, which looks like certainty."""
    entry = metrics.summarise({"avg@4": np.array([0.5])}, np.zeros(1))["avg@4"]
    assert cell(entry) == "0.500 [-, -]*" and entry["low"] is None
