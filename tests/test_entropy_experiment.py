"""The experiment of benchmarks/entropy.py: same terms for all arms, and tables that say what the logs say."""

import json
import shlex

import pytest
import scipy.stats
from committed_runs import check_reported_runs, flags_of

import siren
from benchmarks import arms, entropy, figures
from papers import adaptive_bonus, clip_cov, entropy_advantage, high_entropy_tokens, kl_cov, naive_bonus

PAPERS = [naive_bonus, adaptive_bonus, entropy_advantage, high_entropy_tokens, clip_cov, kl_cov]
SCRIPTS = {"siren.py": siren} | {f"{module.__name__.replace('.', '/')}.py": module for module in PAPERS}


OWN_FLAGS = {  # what an arm may set beside the terms that are common to all
    "dr_grpo": {"beta", "lr"},
    "siren": {"beta"},
    "siren_strong": {"beta"},
    "naive_bonus": {"bonus"},
    "naive_bonus_strong": {"bonus"},
    "adaptive_bonus": {"bonus", "bonus_rate", "target_share"},
    "entropy_advantage": {"shape_alpha", "shape_kappa"},
    "high_entropy_tokens": {"token_fraction"},
    "clip_cov": {"cov_fraction"},
    "kl_cov": {"cov_fraction"},
    "siren_no_top_p": {"beta", "nucleus_p"},
    "siren_no_peaks": {"beta", "tau"},
    "siren_anchor_alone": {"beta", "nucleus_p", "tau"},
    "siren_no_anchor": {"beta", "anchor"},
}
OWN_FLAGS |= {f"{arm}_strong": OWN_FLAGS[arm] for arm in entropy.ABLATION[2:]}
OWN_FLAGS |= {f"{arm}_one_update": {"beta", "lr", "minibatches"} for arm in ("dr_grpo", "siren")}

SWITCHES = {  # what makes an arm what it is called; the others are scripts of their name
    "dr_grpo": {"beta": 0.0},
    "siren": {"nucleus_p": 0.8, "tau": 0.8, "anchor": True},
    "siren_no_top_p": {"nucleus_p": 1.0, "tau": 0.8},
    "siren_no_peaks": {"nucleus_p": 0.8, "tau": 0.0},
    "siren_anchor_alone": {"nucleus_p": 1.0, "tau": 0.0, "anchor": True},
    "siren_no_anchor": {"anchor": False},
}


def test_all_arms_run_on_the_same_terms():
    """Catches an arm with another task, seed, batch, length, learning rate or number of tokens than the
    others, or more trials."""
    assert (
        entropy.TRIALS.keys()
        == OWN_FLAGS.keys()
        >= entropy.NAMES.keys()
        >= entropy.CHOSEN.keys()
        >= entropy.GRIDS.keys()
    )
    defaults = {script: flags_of(module, []) for script, module in SCRIPTS.items()}
    plain = flags_of(siren, shlex.split(f"{entropy.COMMON} --lr {entropy.LR} --seed 7"))
    for arm, (_, settings) in entropy.TRIALS.items():
        base = arm.removesuffix("_strong").removesuffix("_one_update")
        assert (len(settings) == 4) if arm in entropy.GRIDS else (base != arm)
        for setting in settings:
            script, *flags = shlex.split(entropy.command(arm, setting, 7))
            ours = flags_of(SCRIPTS[script], flags)
            other = {
                name: value
                for name, value in ours.items()
                if value != plain.get(name, defaults[script][name])
            }
            assert other.keys() <= OWN_FLAGS[arm], (arm, setting, other)
            assert script == ("siren.py" if base in SWITCHES else f"papers/{base}.py")
            assert all(ours[name] == value for name, value in SWITCHES.get(base, {}).items()), arm
    names = [
        entropy.arms.trial_name(arm, setting)
        for arm, (_, settings) in entropy.TRIALS.items()
        for setting in settings
    ]
    assert len(set(names)) == len(names)


def test_settings_are_the_best_of_the_trials_that_are_listed():
    """Catches a setting that was picked otherwise than by the rule, or for one arm alone."""
    trials = json.loads((entropy.LOGS / "trials.json").read_text())
    target = trials["siren_strong"][entropy.CHOSEN["siren_strong"]]["h_over_anchor"]
    assert trials.keys() <= entropy.TRIALS.keys()
    for arm, (_, tried) in entropy.TRIALS.items():
        settings = trials.get(arm, {})
        assert settings.keys() == set(tried)
        if arm in entropy.GRIDS:
            assert entropy.CHOSEN[arm] == max(
                settings, key=lambda setting: entropy.score(settings[setting])
            ), arm
        elif arm in entropy.HOLDING[2:]:  # among its own trials and the weaker ones
            tried = settings | trials[arm.removesuffix("_strong")]
            distance = {setting: abs(trial["h_over_anchor"] - target) for setting, trial in tried.items()}
            assert entropy.CHOSEN[arm] == min(distance, key=distance.get), arm


def test_closing_score_soon_after_another_is_left_out():
    """Catches runs of one arm with different numbers of scores, and a last score that is lost where it is
    the only late one."""
    assert figures.scores({0: 0.1, 20: 0.2, 40: 0.3, 41: 0.4}) == [(0, 0.1), (20, 0.2), (40, 0.3)]
    assert figures.scores({40: 0.3, 0: 0.1, 20: 0.2, 58: 0.4}) == [(0, 0.1), (20, 0.2), (40, 0.3), (58, 0.4)]
    assert figures.scores({0: 0.1}) == [(0, 0.1)]


def write_log(folder, steps: int, avg: float, anchored: bool = True, hole: bool = False) -> None:
    """A run of `steps` steps with entropy 1/step, scored every 20 and at its end."""
    folder.mkdir(parents=True)
    with open(folder / "metrics.jsonl", "w") as file:
        for step in range(steps + 1):
            record = {"step": step}
            if step:
                record |= {
                    "policy/entropy": None if hole and step == 7 else 1 / step,
                    "rollout/tokens_total": 2000 * step,
                    "rollout/frac_unparsed": 0.25,
                    "baseline/frac_touched": 0.5,
                }
                record |= (
                    {"siren/entropy": 0.6, "siren/anchor": 0.8, "siren/frac_selected": 0.1}
                    if anchored
                    else {}
                )
            if step % 20 == 0 or step == steps:
                record |= {f"eval/chain/{name}@16": avg for name in ("avg", "pass", "maj")}
            file.write(json.dumps(record) + "\n")


@pytest.fixture
def logs(tmp_path, monkeypatch):
    """Two arms of two seeds, of unequal length, one with a step that has no number."""
    for arm, right in (("dr_grpo", (4, 8)), ("siren", (8, 16))):
        for seed, count in enumerate(right, start=1):
            folder = tmp_path / "entropy" / arm / f"seed{seed}"
            write_log(folder, 60 + seed, count / 16, arm == "siren", hole=seed == 2)
            scores = {
                "correct": [count] * 100 + [0] * 100,
                "parsed": [12] * 200,
                "maj@16": [0.5 * seed] * 200,
            }
            (folder / "test.json").write_text(json.dumps({"1": scores, "0.6": scores}))
    scores = {"correct": [2] * 200, "parsed": [16] * 200, "maj@16": [0.0] * 200}
    (tmp_path / "entropy" / "tiny.json").write_text(json.dumps({"1": scores, "0.6": scores}))
    monkeypatch.setattr(figures, "REFERENCE", tmp_path)
    return tmp_path / "entropy"


def test_scores_table_by_hand(logs):
    """Catches differences that are not paired by seed or have the wrong sign, and a mean over the wrong
    axis."""
    table = entropy.scores_table(logs, ["dr_grpo", "siren"], "0.6").splitlines()
    assert table[2] == "| before | 1 | 0.125 | 1.000 | 0.000 | 0.000 |  |  |  |"
    # avg 1/8 and 1/4: mean 3/16, s = .088388, t(1) = 12.706: +- .794; SIREN's are twice that: the
    # differences are 1/8 and 1/4 too
    assert table[3] == (
        "| Dr. GRPO | 2 | 0.188 ± 0.794 | 0.500 ± 0.000 | 0.750 ± 3.176 | 0.250 "
        "| +0.188 ± 0.794 | +0.000 ± 0.000 | +0.000 ± 0.000 |"
    )
    assert table[4].startswith("| SIREN | 2 | 0.375 ± 1.588 |") and table[4].endswith("|  |  |  |")


def test_entropy_table_by_hand(logs):
    """Catches the first steps for the last, and an anchor's share turned round."""
    arms = entropy.read_arms(logs)
    first = sum(1 / step for step in range(1, 11)) / 10
    table = entropy.entropy_table({"siren": {1: arms["siren"][1]}}, ["siren"]).splitlines()
    last = sum(1 / step for step in range(52, 62)) / 10
    assert table[2] == f"| SIREN | {first:.3f} | {last:.3f} | 0.750 | 0.500 | 0.250 |"
    assert entropy.entropy_table(arms, ["dr_grpo"]).splitlines()[2].split(" | ")[3] == ""


def test_kinds_table_counts_every_problem(logs):
    """Catches a reading that is taken for another: the numbers of problems add up to 200, and all kinds are
    there."""
    title = entropy.kinds_table(["siren"], logs).splitlines()[0]
    kinds = [f"{kind}: avg@16 | pass@16" for kind in ("usual (151)", "rare: more (20)", "rare: fewer (29)")]
    assert title == f"| method | {' | '.join(kinds)} |"


def test_kinds_table_by_hand(logs):
    """Catches problems that are counted with another reading: here those of one reading alone are always
    right."""
    task, fewer = entropy.load_task(entropy.TASK), []
    for index in range(200):
        problem = task.problem("test", index, entropy.EVAL_SEED)
        fewer.append(problem.source == "chain/reversed" and "fewer" in problem.prompt)
    scores = {"correct": [16 * right for right in fewer], "parsed": [16] * 200, "maj@16": [0.0] * 200}
    for file in (logs / "siren").glob("seed*/test.json"):
        file.write_text(json.dumps({"1": scores, "0.6": scores}))
    row = entropy.kinds_table(["siren"], logs).splitlines()[3]
    assert row == "| SIREN" + 4 * " | 0.000 ± 0.000" + 2 * " | 1.000 ± 0.000" + " |"


def test_an_arm_without_a_finished_run_is_left_out(logs):
    """Catches tables that break while runs are going on."""
    (logs / "siren/seed2/test.json").unlink()
    for file in (logs / "dr_grpo").glob("seed*/test.json"):
        file.unlink()
    arms = entropy.read_arms(logs)
    assert {arm: list(runs) for arm, runs in arms.items()} == {"siren": [1]}
    assert all("SIREN" in table and "Dr. GRPO" not in table for table in entropy.report(logs).values())


def test_the_model_after_the_last_step_is_measured(tmp_path, monkeypatch):
    """Catches counts of the checkpoint that is best on dev, which every arm has picked for itself, and a
    start that is not measured."""
    calls = []
    monkeypatch.setattr(arms.subprocess, "run", lambda command, **options: calls.append(command))
    monkeypatch.setattr(
        arms, "run_all", lambda jobs, args, last_file, then: then(tmp_path / "run", tmp_path / "target")
    )
    arms.run_arms(
        arms.Args(out=tmp_path), "script.py", {"arm": ["--x 1"]}, {"arm": "--x 1"}, lambda *parts: ""
    )
    assert calls[0][1:] == ["script.py", "--measure", entropy.ROOT / "models/tiny", tmp_path / "tiny.json"]
    assert calls[1][1:] == [
        "script.py",
        "--measure",
        tmp_path / "run" / "last",
        tmp_path / "target" / "test.json",
    ]


def test_jobs_of_trials_and_of_reported_runs(tmp_path, monkeypatch):
    """Catches a development seed among the reported ones, and an arm that is not run with its chosen
    setting."""
    asked = []
    monkeypatch.setattr(arms, "run_all", lambda jobs, args, **options: asked.append(jobs))
    (tmp_path / "tiny.json").touch()
    settings, command = (
        {"a": ["--x 1", "--x 2"], "b": ["--y 3"]},
        lambda arm, setting, seed: f"{arm} {setting} {seed}",
    )
    for trials in (True, False):
        arms.run_arms(
            arms.Args(out=tmp_path, trials=trials, seeds=(1, 2)),
            "",
            settings,
            {"a": "--x 2", "b": "--y 3"},
            command,
        )
    assert asked[0] == [
        ("a --x 1 100", "trials/a/x_1"),
        ("a --x 2 100", "trials/a/x_2"),
        ("b --y 3 100", "trials/b/y_3"),
    ]
    assert asked[1] == [
        ("a --x 2 1", "a/seed1"),
        ("b --y 3 1", "b/seed1"),
        ("a --x 2 2", "a/seed2"),
        ("b --y 3 2", "b/seed2"),
    ]


def test_counts_are_those_of_the_test_problems(tmp_path, monkeypatch):
    """Catches another split, number of problems or samples, a temperature that is not applied, and votes
    that are not counted."""
    asked = []

    def evaluate(sampler, tokenizer, task, split, problems, samples, max_new_tokens, temperature):
        asked.append((task.name, split, problems, samples, max_new_tokens, temperature))
        votes = ["7"] * 9 + ["8"] * 7
        return {}, [{"correct": 9, "parsed": 16, "votes": votes, "right": [vote == "7" for vote in votes]}]

    monkeypatch.setattr(entropy, "evaluate", evaluate)
    entropy.measure(entropy.ROOT / "models/tiny", tmp_path / "some" / "test.json")
    assert asked == [("chain", "test", 200, 16, 64, 1.0), ("chain", "test", 200, 16, 64, 0.6)]
    counts = {"correct": [9], "parsed": [16], "maj@16": [1.0]}
    assert json.loads((tmp_path / "some" / "test.json").read_text()) == {"1": counts, "0.6": counts}


def test_intervals_are_students():
    """Catches a wrong entry of the table of t."""
    assert figures.T_975 == pytest.approx(
        {count: scipy.stats.t.ppf(0.975, count - 1) for count in figures.T_975}, abs=5e-4
    )


def test_unknown_arm_is_refused():
    """Catches a traceback for a mistyped name, and for an arm that has trials and no reported runs."""
    for arm in ("sirn", "siren_one_update"):
        with pytest.raises(
            SystemExit, match=f"error: --only {arm}: there is no such arm; there are dr_grpo, siren, "
        ):
            entropy.main(entropy.Args(only=(arm,)))


def test_figure_bears_runs_of_unequal_length(logs):
    """Catches a figure that breaks on a seed with one score more, on a step without a number, or on an arm
    that is not there."""
    assert figures.plot_entropy_methods().stat().st_size > 10_000


def test_a_trial_is_scored_by_its_last_two_scores():
    """Catches the first scores, or one of the two metrics."""
    trial = {"avg@16": [0.1, 0.2, 0.4, 0.6], "pass@16": [0.2, 0.3, 0.8, 1.0], "maj@16": [0.0] * 4}
    assert entropy.score(trial) == pytest.approx((0.4 + 0.6 + 0.8 + 1.0) / 4)


def test_reported_runs_were_made_with_the_chosen_settings():
    """Catches an arm without its five seeds, and logs of another setting, script or seed than the one beside
    them."""
    check_reported_runs(entropy.LOGS, entropy.CHOSEN, entropy.command)
