"""benchmarks/countdown_tables.py: early stopping, and comparisons at equal accuracy, tokens and seeds."""

import json

import pytest
from mutants import mutant

from benchmarks import countdown, countdown_figure, countdown_tables as ct
from benchmarks.countdown_tables import STOPPED

NAMES = {"dr_grpo": "Dr. GRPO", STOPPED: "stopped", "siren": "SIREN"}


def counts(right: list[int], samples: int, maj: float = 0.5) -> dict:
    found = {"samples": samples, "correct": right, "parsed": [samples] * len(right), "different": right}
    return found | {"maj": {"16": maj} | ({"64": maj} if samples == 64 else {}), "why": {}}


def measured(avg: float, dev: float, H: float = 0.5) -> dict:
    """Four test problems and two of dev of which this share of samples is right; `dev` in dev's one half."""
    right = [int(64 * avg)] * 4
    return {
        "dev": counts([int(16 * dev), int(16 * dev)], 16),
        "1": counts(right, 64, avg),
        "0.6": counts(right, 64, avg),
        "H": H,
        "entropy": {"shares": {"choice": 0.9}, "mass on impossible tokens": 0.01},
    }


@pytest.fixture
def out(tmp_path):
    """Two seeds of Dr. GRPO, whose dev falls after the first half in seed 1, and two of SIREN."""
    (tmp_path / "start.json").write_text(json.dumps(measured(0.125, 0.25, 1.0)))
    runs = {
        "dr_grpo/seed1": [measured(0.25, 0.75), measured(0.5, 0.5)],
        "dr_grpo/seed2": [measured(0.25, 0.25), measured(0.5, 0.5)],
        "siren/seed1": [measured(0.125, 0.25), measured(0.375, 0.5)],
        "siren/seed2": [measured(0.125, 0.25), measured(0.25, 0.5)],
        "siren/seed3": [measured(0.125, 0.25)],  # not finished
    }
    for name, steps in runs.items():
        (tmp_path / name).mkdir(parents=True)
        for step, result in enumerate(steps, start=1):
            (tmp_path / name / f"step{step}.json").write_text(json.dumps(result))
        curves = {"rollout/tokens_total": [1000, 2000], "policy/entropy": [0.4, 0.2]}
        (tmp_path / name / "curves.json").write_text(json.dumps(curves))
    return tmp_path


@pytest.fixture
def runs(out):
    return ct.read_runs(out, ["dr_grpo", "siren"], last=2)


@mutant("the first of equals", "benchmarks/countdown_tables.py", '["dev"]), step))', '["dev"]), -step))')
@mutant(
    "stopped by test",
    "benchmarks/countdown_tables.py",
    'dev_score(path[step]["dev"])',
    'dev_score(path[step]["1"])',
)
def test_early_stopping_is_chosen_on_dev(runs):
    """Catches a stopping point that is chosen on test, or that is the last whatever dev says; and a run that
    is not finished."""
    assert runs.seeds("siren") == ["seed1", "seed2"] and runs.arms() == ["dr_grpo", STOPPED, "siren"]
    assert (runs.stopped("seed1"), runs.stopped("seed2")) == (1, 2)
    assert runs.at(STOPPED, "seed1")["1"]["correct"] == [16] * 4
    assert runs.at("dr_grpo", "seed1")["1"]["correct"] == [32] * 4
    equal = runs.steps["dr_grpo"]["seed2"]
    equal[1]["dev"] = equal[2]["dev"]
    assert runs.stopped("seed2") == 2


@mutant(
    "differences the other way",
    "benchmarks/countdown_tables.py",
    "own[seed][name] - others[seed][name]",
    "others[seed][name] - own[seed][name]",
)
def test_scores_table_by_hand(runs):
    """Catches differences of the wrong sign, and a stopped run that is shown at its end."""
    table = ct.scores_table(runs, NAMES, ["dr_grpo", STOPPED, "siren"], "1", "siren").splitlines()
    assert table[2].startswith("| before | 1 | 0.125 | ") and table[2].count("|") == table[0].count("|")
    assert table[3].startswith("| Dr. GRPO | 2 | 0.500 ± 0.000 | 1.000 ± 0.000 | 1.000 ± 0.000 | 0.500 ± ")
    assert table[3].split(" | ")[8].startswith("-0.188 ± ")
    assert table[4].startswith("| stopped | 2 | 0.375 ± ") and table[5].startswith("| SIREN | 2 | 0.312 ± ")
    assert all(line.count("|") == table[0].count("|") for line in table)


@mutant(
    "the end of the path",
    "benchmarks/countdown_tables.py",
    "values[before] + part *",
    "values[after] + 0 * part *",
)
def test_equal_accuracy_by_hand(runs):
    """Catches a comparison with Dr. GRPO's end instead of its way there."""
    for seed, expected in (("seed1", 0.375), ("seed2", 0.25)):
        assert ct.on_the_path(runs, seed, expected, "avg") == pytest.approx(expected)
    # pass@4 of avg 1/8, 1/4, 1/2 of 64 samples
    start, first, last = (ct.scores_of(measured(avg, 0)["1"])["pass@4"] for avg in (0.125, 0.25, 0.5))
    assert ct.on_the_path(runs, "seed1", 0.375, "pass@4") == pytest.approx((first + last) / 2)
    assert ct.on_the_path(runs, "seed1", 0.9, "pass@4") == last  # beyond its best
    assert ct.on_the_path(runs, "seed1", 0.01, "pass@4") == start
    table = ct.frontier_table(runs, NAMES, ["siren"]).splitlines()
    own = [ct.scores_of(measured(avg, 0)["1"])["pass@16"] for avg in (0.375, 0.25)]
    path = [ct.on_the_path(runs, seed, avg, "pass@16") for seed, avg in (("seed1", 0.375), ("seed2", 0.25))]
    gain = sum(a - b for a, b in zip(own, path)) / 2
    assert table[2].startswith("| SIREN | 0.312 ± ") and f"| {gain:+.3f} ± " in table[2]


@mutant(
    "steps instead of tokens",
    "benchmarks/countdown_tables.py",
    "np.interp(fewest, tokens,",
    "np.interp(fewest, list(path),",
)
@mutant(
    "one step early",
    "benchmarks/countdown_tables.py",
    "int(curve[step - 1]) if step",
    "int(curve[step - 2]) if step",
)
def test_equal_tokens_by_hand(runs):
    """Catches scores that were taken after different numbers of tokens."""
    runs.curves["siren"]["seed1"]["rollout/tokens_total"] = [500, 1000]
    table = ct.equal_tokens_table(runs, NAMES, ["dr_grpo", "siren"]).splitlines()
    assert table[0].startswith("| after 1 thousand tokens")
    assert table[2].startswith("| Dr. GRPO | 0.250 ± 0.000 |")
    assert table[3].startswith("| SIREN | 0.250 ± ")  # 0.375 at its end, 0.125 in the middle


def test_every_table_has_its_columns(out, runs):
    """Catches a row of another length than its head, and tables of arms that are not there."""
    found = ct.tables(
        runs, NAMES, {"methods": ["dr_grpo", STOPPED, "siren", "kl_cov"], "none": ["clip_cov"]}, "siren"
    )
    assert {name.split(" ")[0] for name in found} == {"methods"} and len(found) == 7
    for name, table in found.items():
        assert len({line.count("|") for line in table.splitlines()}) == 1, name
        assert "nan" not in table, name
    fifths, entropies = found["methods fifths"].splitlines(), found["methods entropy"].splitlines()
    assert fifths[2] == "| Dr. GRPO | 0.250 / 0.995 | 0.500 / 1.000 |"
    assert entropies[4] == "| stopped | 0.300 ± 0.000 |  | 0.500 ± 0.000 | 0.900 ± 0.000 | 0.0100 | 2 |"


def test_the_figure(runs, tmp_path, monkeypatch):
    """Catches a panel without its lines, or with too many to tell apart, a path that does not begin
    at the start, and an entropy of one role that is drawn as that of another."""
    parts = {"choice": 0.75, "impossible tokens": 0.125, "after an error": 0.125}
    for seeds in runs.steps.values():
        for path in seeds.values():
            for result in path.values():
                result["entropy"] |= {"entropy": 0.2, "shares": parts}
    for seeds in runs.curves.values():
        for curves in seeds.values():
            curves["policy/entropy"] = [0.1] * 5 + [0.4] * 5
    panels = {}
    monkeypatch.setattr(countdown_figure, "save_figure", lambda figure, path: panels.update(all=figure.axes))
    countdown_figure.plot_countdown(runs, NAMES, tmp_path / "figure.png")
    lines = [
        {line.get_label(): line for line in axis.lines if line.get_label()[0] != "_"}
        for axis in panels["all"]
    ]
    reach, frontier, roles, bonuses = lines
    assert list(reach) == ["before", "Dr. GRPO", "stopped", "SIREN"] and all(
        len(panel) <= 5 for panel in lines
    )
    assert list(frontier["SIREN"].get_xdata()) == pytest.approx([0.125, 0.125, 0.3125])
    assert list(roles["SIREN: choices"].get_ydata()) == pytest.approx([0.15] * 3)
    assert list(roles["Dr. GRPO: errors"].get_ydata()) == pytest.approx([0.05] * 3)
    (drawn,) = [line for label, line in bonuses.items() if label.startswith("SIREN")]
    assert list(drawn.get_xdata()) == [3, 8] and list(drawn.get_ydata()) == pytest.approx([0.1, 0.4])
    arms = [countdown_figure.REACH, countdown_figure.PATHS, countdown_figure.BONUSES]
    assert all(len(panel) <= 5 and set(panel) <= {*countdown.NAMES} for panel in arms)


def test_settings_are_the_best_of_all_trials():
    """Catches a setting that was picked otherwise than by the rule, or for one arm alone; trials of one
    development seed; and a coefficient that is not that of the arm's name."""
    trials = json.loads((countdown.LOGS / "trials.json").read_text())
    assert trials.keys() == countdown.GRIDS.keys()
    for arm, settings in trials.items():
        assert settings.keys() == {*countdown.GRIDS[arm][1], *countdown.other_rates(trials, arm)}
        assert all(seeds.keys() == {"100", "101"} for seeds in settings.values()), arm
        best = max(settings, key=lambda setting: countdown.mean_score(settings[setting]))
        assert countdown.CHOSEN[arm] == best, arm
    for arm, setting in countdown.CHOSEN.items():
        base, _, number = arm.removesuffix("_finite").partition("_0.")
        assert base in countdown.GRIDS
        assert setting.endswith(f" 0.{number}") if number else setting == countdown.CHOSEN[base]
        assert ("--train-size 200" in countdown.command_of(arm)) == arm.endswith("_finite")


@mutant("a number is part of the name", "benchmarks/countdown.py", 'arm.split("_0.")[0]', "arm")
def test_arms_of_the_report(out, monkeypatch):
    """Catches a finite arm that is compared with the endless Dr. GRPO, or trained like it."""
    assert countdown.command_of("siren_0.1") == countdown.command_of("siren") == "siren.py"
    assert countdown.command_of("dr_grpo_finite") == "papers/dr_grpo.py --train-size 200"
    assert countdown.command_of("siren_no_anchor") == "siren.py --no-anchor"
    monkeypatch.setattr(countdown, "STEPS", 2)
    arms = ["dr_grpo", "siren", "dr_grpo_finite", "siren_finite"]
    monkeypatch.setattr(countdown, "CHOSEN", dict.fromkeys(arms, ""))
    for arm in ("dr_grpo", "siren"):
        (out / f"{arm}_finite").symlink_to(out / arm)
    report = countdown.report(out)
    assert report["finite at 1"].splitlines()[3] == report["methods at 1"].splitlines()[3]
    assert {name.split(" ")[0] for name in report} == {"methods", "holding", "parts", "finite"}
    (out / "start.json").unlink()
    assert countdown.report(out) == {}
