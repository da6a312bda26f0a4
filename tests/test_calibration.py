"""The embedded start models leave each paper's phenomenon room to show itself.

Here are the committed measurement, and a live sample of it.
"""

import json
from pathlib import Path

import pytest

from benchmarks import calibration
from plainrl.models import load_model, model_hash

ROOT = Path(__file__).resolve().parent.parent
TABLE = json.loads((ROOT / "benchmarks/calibration.json").read_text())
ROWS = {(row["horizon"], row["family"], row["hint"], row["temperature"]): row for row in TABLE["rows"]}


@pytest.fixture(scope="module")
def embedded():
    return load_model(str(ROOT / "models/tiny"))


def test_calibration_was_measured_on_this_model(embedded):
    """Catches a table that belongs to an older model."""
    assert TABLE["model_hash"] == model_hash(embedded[0]) and TABLE["problems"] >= 200


def test_size_and_architecture(embedded):
    """Catches a model that vLLM would not take, or that does not belong in a repository."""
    model, tokenizer = embedded
    assert (
        1e6 <= model.num_parameters() <= 2e6
        and model.config.model_type == "llama"
        and model.config.head_dim in (32, 64)
    )
    assert sum(path.stat().st_size for path in (ROOT / "models/tiny").iterdir()) <= 8e6
    for text in (
        "1,024",
        "naïve 東京 \U0001f600",
        "\\boxed{7}\n\t",
    ):  # any text survives; every digit is a token of its own
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode("90210")) == 5


def test_a_hard_horizon_has_room():
    """Catches nothing between too easy and hopeless: reinforcement would have nothing to sharpen."""
    assert any(
        ROWS[h, "plain", False, 1.0]["avg@16"] <= 0.25 and ROWS[h, "plain", False, 1.0]["pass@16"] >= 0.6
        for h in range(1, 11)
    )


def test_the_hint_brings_the_longest_horizon_within_reach():
    """Catches guidance that is not needed, or does not help."""
    assert ROWS[10, "plain", False, 1.0]["pass@16"] <= 0.05 and ROWS[10, "plain", True, 1.0]["pass@16"] >= 0.3


def test_the_right_reading_is_rare():
    """Catches a family without anything to discover."""
    assert 0.02 <= ROWS[1, "reversed", False, 1.0]["avg@16"] <= 0.10


def test_success_falls_with_the_horizon():
    """Catches a world in which long chains are no harder than short ones."""
    scores = [ROWS[h, "plain", False, 1.0]["avg@16"] for h in range(1, 6)]
    assert all(0.3 <= after / before <= 0.75 for before, after in zip(scores, scores[1:])), scores


def test_gains_on_the_default_task_are_not_format():
    """Catches a base that fails to box its answer would gain by format alone."""
    row = ROWS[3, "plain", False, 1.0]
    assert row["frac_unparsed"] <= 0.05 and row["frac_truncated"] <= 0.05


@pytest.mark.parametrize(
    "horizon, family, hint, problems",
    [(1, "plain", False, 32), (3, "plain", False, 32), (1, "reversed", False, 32), (10, "plain", True, 8)],
)
def test_the_committed_table_is_what_the_model_does(embedded, horizon, family, hint, problems):
    """Catches a table that was edited by hand, another sampler, hint or world.

    The first problems are sampled again with the same seeds, and at most one sample in a hundred (a draw on
    the boundary of the distribution) comes out otherwise.
    """
    live = calibration.measure(*embedded, problems, 16, horizon, family, hint, 1.0)["first"]
    committed = ROWS[horizon, family, hint, 1.0]["first"]
    assert len(live) == problems and sum(abs(a - b) for a, b in zip(live, committed)) <= 0.01 * 16 * problems
    assert (
        len(committed) == 32 and abs(sum(committed) / 512 - ROWS[horizon, family, hint, 1.0]["avg@16"]) < 0.1
    )


# --- countdown ----------------------------------------------------------------------------------------------

COUNTDOWN = json.loads((ROOT / "benchmarks/calibration_countdown.json").read_text())
CASES = {(row["numbers"], row["hint"], row["temperature"]): row for row in COUNTDOWN["rows"]}


@pytest.fixture(scope="module")
def embedded_countdown():
    return load_model(str(ROOT / "models/countdown"))


def test_size_of_the_countdown_model(embedded_countdown):
    """Catches a table of an older model, one that vLLM would not take or that does not belong in a
    repository, and numbers that are not written digit by digit."""
    model, tokenizer = embedded_countdown
    assert COUNTDOWN["model_hash"] == model_hash(model) and COUNTDOWN["problems"] >= 200
    assert model.num_parameters() <= 5e5 and model.config.model_type == "llama"
    assert model.config.head_dim in (32, 64)
    assert sum(path.stat().st_size for path in (ROOT / "models/countdown").iterdir()) <= 3e6
    assert (
        len(tokenizer.encode("12+3=15")) == 7
        and tokenizer.decode(tokenizer.encode("na\u00efve")) == "na\u00efve"
    )


def test_countdown_has_room_in_both_directions():
    """Catches a start that is always right, one that is never, one whose reach is nothing to lose, and gains
    that would be format."""
    row = CASES[3, False, 1.0]
    assert 0.1 <= row["avg@64"] <= 0.25 and row["pass@64"] >= 0.95 and row["frac_unparsed"] <= 0.05
    assert CASES[4, False, 1.0]["avg@64"] < row["avg@64"] < CASES[3, True, 1.0]["avg@64"]
    assert CASES[3, False, 0.0]["avg@1"] <= 0.4  # greedy decoding does not save it


def test_the_committed_countdown_table_is_what_the_model_does(embedded_countdown):
    """Catches a table that was edited by hand, another sampler, hint or world."""
    live = calibration.measure_countdown(*embedded_countdown, 32, 64, 3, False, 1.0)["first"]
    committed = CASES[3, False, 1.0]["first"]
    assert len(live) == 32 and sum(abs(a - b) for a, b in zip(live, committed)) <= 0.01 * 64 * 32
