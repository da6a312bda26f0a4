"""The experiment of benchmarks/horizons.py: same terms for all schedules, and tables that say what the logs
say."""

import json
import shlex

import pytest
import tyro
from committed_runs import check_reported_runs
from mutants import mutant

import h1_curriculum
from benchmarks import arms, horizons
from benchmarks.figures import SCHEDULES, holm, p_value, tokens_to_learn
from papers import adarft, e2h

SCRIPTS = {"h1_curriculum.py": h1_curriculum, "papers/adarft.py": adarft, "papers/e2h.py": e2h}

FINISHED = len(list(horizons.LOGS.glob("*/seed[1-5]/test.json"))) == 5 * len(SCHEDULES)
measured = pytest.mark.skipif(not FINISHED, reason="the reported runs are not finished")


OWN_FLAGS = {
    "curriculum": {"schedule": "curriculum", "steps_per_stage": 15},
    "adarft": {},
    "e2h_cosine": {"schedule": "cosine"},
    "e2h_gaussian": {"schedule": "gaussian"},
}


def test_all_schedules_run_on_the_same_terms():
    """Catches a schedule with another seed, batch, length or number of tokens than the others."""
    for schedule in SCHEDULES:
        for setting in horizons.SETTINGS:
            script, *flags = shlex.split(horizons.command(schedule, setting, 7))
            ours = vars(tyro.cli(SCRIPTS[script].Args, args=flags))
            common = vars(
                tyro.cli(SCRIPTS[script].Args, args=shlex.split(f"{horizons.TERMS} {setting} --seed 7"))
            )
            own = {"eval_every": ours["eval_every"]} | OWN_FLAGS.get(schedule, {"schedule": schedule})
            assert ours == common | own, schedule
            assert (ours["max_horizon"], ours["token_budget"]) == (5, 400_000)
            assert (script == "h1_curriculum.py") == (
                schedule not in ("adarft", "e2h_cosine", "e2h_gaussian")
            )


@pytest.fixture
def logs(tmp_path):
    """Two schedules of two seeds, and the starting model: share of right completions at horizon 1, and at
    all others."""
    rates = {
        "curriculum/seed1": (0.75, 0.5),
        "curriculum/seed2": (0.75, 0.25),
        "only_long/seed1": (0.5, 0.25),
        "only_long/seed2": (0.5, 0.25),
    }
    for name, (first, other) in rates.items():
        write_counts(tmp_path / name / "test.json", first, other)
    write_counts(tmp_path / "tiny.json", 0.25, 0.0)
    return tmp_path


def write_counts(file, first: float, other: float) -> None:
    """Every problem is solved by that share of its samples."""
    file.parent.mkdir(parents=True, exist_ok=True)
    counts = {
        h: [int((first if h == 1 else other) * samples)] * problems
        for h, (problems, samples) in horizons.MEASURED.items()
    }
    file.write_text(json.dumps({h: {"correct": right, "parsed": right} for h, right in counts.items()}))


def test_accuracy_table_by_hand(logs):
    """Catches p^h of another model's p, and horizons mixed up."""
    table = horizons.accuracy_table(logs, ["only_long", "curriculum"]).splitlines()
    assert table[0].count("unseen") == 3 and table[0].startswith("| | h = 1 | h = 2 |")
    assert table[2] == "| before | 0.250 |" + " 0.000 |" * 7
    assert table[3].startswith("| $p^h$ | 0.250 | 0.062 | 0.016 |")
    assert table[4] == "| only long | 0.500 ± 0.000 |" + " 0.250 ± 0.000 |" * 7
    assert table[6].startswith("| curriculum | 0.750 ± 0.000 | 0.375 ± 1.588 |")
    assert table[7].startswith("| $p^h$ | 0.750 | 0.562 | 0.422 |")
    assert len(table) == 8


def test_difference_table_by_hand(logs):
    """Catches differences that are not paired or have the wrong sign, and horizons that were trained on
    among the unseen."""
    write_counts(logs / "only_long/seed3/test.json", 0.0, 0.0)  # a seed that the curriculum does not have yet
    table = horizons.difference_table(logs, ["only_long", "curriculum"]).splitlines()
    assert table[0].endswith("| h = 8 | 6 to 8 together |")
    assert (
        table[2] == "| only long | +0.250 ± 0.000 |" + " +0.125 ± 1.588 |" * 8
    )  # .25 and 0: mean .125, 12.706 x .125
    # less p^h: at two steps .5 - .75^2 and .25 - .75^2 against .25 - .5^2: -.0625 and -.3125
    assert (
        table[3].startswith("| only long, both less their $p^h$ | +0.000 ± 0.000 | -0.188 ± 1.588 |")
        and len(table) == 4
    )


@mutant(
    "no correction", "benchmarks/figures.py", "p_values[name] * (len(p_values) - rank)", "p_values[name] * 1"
)
@mutant("Bonferroni", "benchmarks/figures.py", "(len(p_values) - rank)", "len(p_values)")
@mutant("one side", "benchmarks/figures.py", "freedom / 2, 0.5, 0", "freedom / 2, 0.5, 0.5")
def test_corrected_comparisons(logs):
    """Catches a p value that is not Student's, and a correction that is none or too strict."""
    assert p_value([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx(0.013236, abs=1e-5)  # t = 4.2426, 4 degrees
    assert p_value([-1.0, 2.0, -3.0, 4.0, 1.0]) == pytest.approx(0.645547, abs=1e-5)
    assert p_value([0.0, 0.0]) == 1.0 and p_value([0.1, 0.1]) == 0.0
    assert holm({"a": 0.04, "b": 0.01, "c": 0.03, "d": 0.9}) == pytest.approx(
        {"a": 0.09, "b": 0.04, "c": 0.09, "d": 0.9}
    )
    table = horizons.corrected_table(logs, ["only_long", "curriculum"]).splitlines()
    assert "corrected for 1 comparisons" in table[0] and table[2].startswith("| only long | ")


def test_pass_table_by_hand(logs):
    """Catches horizons that were trained on, and a k that is not the estimator's."""
    table = horizons.pass_table(logs, ["curriculum"]).splitlines()
    assert table[0].startswith("| pass@k, h = 6 to 8 | k = 1 | k = 2 |") and table[0].endswith("| k = 128 |")
    assert table[2] == "| before |" + " 0.000 |" * 8
    # half of 128 right: pass@2 = 1 - 64 * 63 / (128 * 127) = .7520; a quarter: 1 - 96 * 95 / (128 * 127) =
    # .4390; mean .5955
    assert table[3].startswith("| curriculum | 0.375 ± 1.588 | 0.595 ± ")


def test_tokens_until_a_horizon_is_learned(tmp_path):
    """Catches the last time instead of the first, another horizon's score, and a run that never learned it
    counted as if."""
    scores = {
        "direct_h1/seed1": [0.2, 0.5, 0.4],
        "direct_h1/seed2": [0.2, 0.3, 0.9],
        "direct_h2/seed1": [0.1, 0.2, 0.3],
        "direct_h2/seed2": [0.1, 0.2, 0.3],
        "ladder/seed1": [0.1, 0.5, 0.8],
        "ladder/seed2": [0.1, 0.7, 0.8],
    }
    for name, values in scores.items():
        (tmp_path / name).mkdir(parents=True)
        rows = [
            {"step": 3 * i, "eval/chain-h1/avg@8": value, "eval/chain-h2/avg@8": 0.4 + 0.05 * i}
            for i, value in enumerate(values)
        ]
        rows = [row | {f"eval/chain-h{h}/avg@8": 0.1 for h in range(3, 7)} for row in rows]
        rows = [row | ({"rollout/tokens_total": 1000 * row["step"]} if row["step"] else {}) for row in rows]
        (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = tokens_to_learn(tmp_path, [1, 2, 3])
    assert found["on this horizon alone"] == {
        1: {"seed1": (3000, True), "seed2": (6000, True)},
        2: {"seed1": (6000, True), "seed2": (6000, True)},
        3: {},
    }
    assert found["by the curriculum"][3] == {"seed1": (6000, False), "seed2": (6000, False)}
    lines = horizons.reach_table(tmp_path).splitlines()
    # seeds at 3,000 and 6,000 tokens: geometric mean 4,243
    assert lines[2].startswith("| on this horizon alone | 4 | 6 | never |")
    assert lines[3].startswith("| by the curriculum | 3 | 6 | never (0 of 2) |")
    # ratios 1 and 2: geometric mean 1.41, half width of the logarithms 12.706 x .490 / sqrt 2 = 4.404, a
    # factor of 81.8
    assert lines[4].startswith("| alone / curriculum | 1.41 [0.02, 115.60] | 1.00 [1.00, 1.00] | – |")
    assert lines[5].startswith(
        "| the same at 0.4 | 1.41 [0.02, 115.60] | – |"
    )  # two steps are solved by the starting model
    # at 0.6 seed 1 alone never gets there in 6,000 tokens, by the curriculum in 6,000; seed 2 in 6,000 and
    # in 3,000
    assert lines[6].startswith("| the same at 0.6 | ≥ 1.41 [0.02, 115.60] | – |")


def test_runs_that_count_tokens():
    """Catches a comparison on other terms than the schedules', a horizon that is not the one in its name, and
    other dev problems."""
    for name, line in horizons.reach_commands(3).items():
        args = tyro.cli(h1_curriculum.Args, args=shlex.split(line)[1:])
        common = tyro.cli(h1_curriculum.Args, args=shlex.split(f"{horizons.TERMS} --lr 1e-4 --seed 3"))
        for flag in (
            "prompts_per_step",
            "group_size",
            "minibatches",
            "max_new_tokens",
            "seed",
            "task",
            "model",
            "lr",
        ):
            assert getattr(args, flag) == getattr(common, flag), (name, flag)
        assert args.schedule == ("curriculum" if name == "ladder" else "only_long")
        assert (
            args.max_horizon == (6 if name == "ladder" else int(name[-1]))
            and args.eval_problems == 16 * args.max_horizon
        )


def test_trials_are_scored_to_their_end(tmp_path):
    """Catches a closing score that is left out, or counts twice."""
    for schedule, steps in (("curriculum", [0, 5, 10, 14]), ("only_short", [0, 18, 36, 38])):
        folder = tmp_path / "trials" / schedule / "lr_1e-4"
        folder.mkdir(parents=True)
        rows = [
            {
                "step": step,
                "policy/entropy": 1.0,
                "eval/chain/avg@8": step / 100,
                "eval/chain-h5/avg@8": step / 200,
            }
            for step in steps
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    trials = horizons.collect_trials(tmp_path)
    assert trials["curriculum"]["--lr 1e-4"] == {
        "avg@8": [0.0, 0.05, 0.1, 0.14],
        "longest": [0.0, 0.025, 0.05, 0.07],
        "steps": 14,
    }
    assert trials["only_short"]["--lr 1e-4"]["avg@8"] == [0.0, 0.18, 0.36]


def test_settings_are_the_best_of_the_trials_that_are_listed():
    """Catches a setting that was picked otherwise than by the rule."""
    trials = json.loads((horizons.LOGS / "trials.json").read_text())
    assert trials.keys() == SCHEDULES.keys() == horizons.CHOSEN.keys()
    for schedule, settings in trials.items():
        assert settings.keys() == set(horizons.SETTINGS)
        assert horizons.CHOSEN[schedule] == max(
            settings, key=lambda setting: arms.score(settings[setting], ("avg@8",))
        ), schedule


@measured
def test_reported_runs_were_made_with_the_chosen_settings():
    """Catches a schedule without its five or ten seeds, and logs of another setting, schedule or seed than
    those beside them."""
    check_reported_runs(horizons.LOGS, horizons.CHOSEN, horizons.command, ten=horizons.TEN)


@measured
def test_runs_that_count_tokens_were_made_with_their_commands():
    """Catches logs of other settings, horizons or seeds than the table says."""
    names = dict.fromkeys(horizons.reach_commands(1), "")

    def command(name: str, setting: str, seed: int) -> str:
        return horizons.reach_commands(seed)[name]

    check_reported_runs(horizons.LOGS, names, command, horizons.REACH_SEEDS)
