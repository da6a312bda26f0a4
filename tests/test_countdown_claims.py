"""benchmarks/countdown_claims.py: what is a yes, and of which arms a row is."""

import pytest
from mutants import mutant
from test_countdown_tables import measured

from benchmarks import countdown_claims as cc
from benchmarks.countdown_claims import Row, verdict
from benchmarks.countdown_tables import Runs, with_scores

ARMS = ("dr_grpo", *cc.BETAS, *cc.EARLIER, "naive_bonus_0.05", *cc.PARTS)


def row(values: list[float], bound: float = 0.0, below: bool = False) -> Row:
    return Row("a claim", "a minus b", values, bound, below)


@mutant("sides of a claim", "benchmarks/countdown_claims.py", "== row.below else", "!= row.below else")
@mutant(
    "a claim without bound",
    "benchmarks/countdown_claims.py",
    "abs(mean - row.bound) > half",
    "abs(mean) > half",
)
@mutant(
    "a claim without correction", "benchmarks/countdown_claims.py", "if corrected < 0.05", "if corrected < 2"
)
def test_verdict():
    """Catches a yes for a claim that the numbers are against, one from one seed, and one that the number of
    rows takes back."""
    assert verdict(row([0.2, 0.21, 0.22]), 0.01) == "yes"
    assert verdict(row([-0.2, -0.21, -0.22]), 0.01) == "no"
    assert verdict(row([-0.2, -0.21, -0.22], below=True), 0.01) == "yes"
    assert verdict(row([0.2, 0.21, 0.22], below=True), 0.01) == "no"
    assert verdict(row([0.2, 0.21, 0.22], bound=0.3), 0.01) == "no"
    assert verdict(row([0.2, 0.21, 0.22], bound=0.21), 0.01) == "not decided"
    assert verdict(row([-0.2, 0.2, 0.3]), 0.9) == verdict(row([0.9]), 1.0) == "not decided"
    assert verdict(row([0.2, 0.21, 0.22]), 0.06) == "yes (one by one)"


@mutant(
    "p of another bound",
    "benchmarks/countdown_claims.py",
    "p_value([value - row.bound for value in row.values])",
    "p_value(row.values)",
)
def test_table_corrects_within_a_claim():
    """Catches a correction that knows nothing of the other rows, or of the bound."""
    near = [0.010, 0.012, 0.013, 0.030]  # p = 0.036
    alone = cc.claims_table([row(near)])
    assert "| a claim | a minus b | +0.016 ± 0.015 | above 0 | yes |" in alone
    both = cc.claims_table([row(near), Row("a claim", "c minus b", [0.0, 0.1, -0.1, 0.05])])
    assert "above 0 | yes (one by one) |" in both and "|  | c minus b | +0.013 ± 0.136 |" in both
    other = Row("another", "c minus b", [0.0, 0.1, -0.1, 0.05])
    assert "above 0 | yes |" in cc.claims_table([row(near), other])
    assert "below 2 | yes |" in cc.claims_table([row([-0.1, 0.1, 0.05, -0.02], 2, below=True)])


@pytest.fixture
def runs():
    """All arms, three seeds each, whose tables differ by arm and seed."""
    start = measured(0.25, 0.25, 2.0)
    start = with_scores(start, start)
    steps, curves = {}, {}
    for place, arm in enumerate(ARMS):
        for seed in (1, 2, 3):
            first = measured(0.25 + place / 64, 0.25)
            last = measured((16 + place + seed) / 64, 0.75, H=1.0 + place / 64)
            found = [with_scores(result, start) for result in (first, last)]
            steps.setdefault(arm, {})[f"seed{seed}"] = dict(enumerate([start, *found]))
            curves.setdefault(arm, {})[f"seed{seed}"] = {}
    return Runs(start, steps, curves)


@mutant("H in nats", "benchmarks/countdown_tables.py", '"H": result["H"] / start["H"]', '"H": result["H"]')
@mutant("differences the other way")
@mutant(
    "another seed's",
    "benchmarks/countdown_claims.py",
    "[own[seed] - without[seed] for",
    '[own["seed1"] - without[seed] for',
)
def test_rows_are_of_their_arms(runs):
    """Catches a difference of other arms, the other way round, of unlike seeds, or of another H."""
    names = {name: name for name in (*ARMS, cc.STOPPED)}
    rows = {each.measured: each for each in cc.claims(runs, runs, names)}
    place = {arm: index for index, arm in enumerate(ARMS)}
    assert rows["siren_0.1: H / H of the start"].values == pytest.approx(
        [(1 + place["siren_0.1"] / 64) / 2] * 3
    )
    assert rows["naive_bonus_0.01 minus Dr. GRPO: H / H of the start"].values == pytest.approx(
        [place["naive_bonus_0.01"] / 128] * 3
    )
    assert rows["SIREN minus clip_cov: avg@64"].values == pytest.approx([(1 - place["clip_cov"]) / 64] * 3)
    runs.steps["kl_cov"].pop("seed2")
    rows = {each.measured: each for each in cc.claims(runs, runs, names)}
    assert len(rows["SIREN minus kl_cov: maj@16"].values) == 2
    part = rows["SIREN minus siren_no_anchor: pass@16 beyond Dr. GRPO's at equal avg@64"].values
    own, without = (cc.gains_at_equal_avg(runs, arm, "pass@16") for arm in ("siren", "siren_no_anchor"))
    assert part == pytest.approx([own[seed] - without[seed] for seed in own])
    assert len(set(map(str, own.values()))) > 1
    others = rows["clip_cov minus Dr. GRPO on its way: pass@16 at equal avg@64"].values
    assert others == list(cc.gains_at_equal_avg(runs, "clip_cov", "pass@16").values())
