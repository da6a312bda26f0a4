"""The experiment of benchmarks/hard_chains.py: same terms for all arms, and tables that say what the logs
say."""

import json
import shlex

import numpy as np
import pytest
from committed_runs import check_reported_runs, flags_of
from mutants import mutant

import grpo
import guide
from benchmarks import arms, hard_chains
from benchmarks.figures import HARD_ARMS, NEAR_ARMS
from papers import guide_ablations

SCRIPTS = {"grpo.py": grpo, "guide.py": guide, "papers/guide_ablations.py": guide_ablations}
SWITCHES = {  # what makes an arm what it is called
    "grpo": {},
    "guide": {},
    "filter": {"trigger": "never"},
    "no_correction": {"correction": "none"},
    "always": {"trigger": "always"},
    "joined": {"group": "join"},
    "grpo_near": {},
    "guide_near": {},
    "no_correction_near": {"correction": "none"},
}


def test_all_arms_run_on_the_same_terms():
    """Catches an arm with another task, seed, batch, length or number of tokens than the others, or another
    switch than its name's."""
    assert hard_chains.ARMS.keys() == (HARD_ARMS | NEAR_ARMS).keys() == SWITCHES.keys()
    for arm, switches in SWITCHES.items():
        for setting in hard_chains.SETTINGS:
            script, *flags = shlex.split(hard_chains.command(arm, setting, 7))
            every = "--eval-every 12" if script == "grpo.py" else f"--eval-every 3 {hard_chains.REFILLS}"
            terms = shlex.split(f"{hard_chains.TERMS['hard']} {setting} --seed 7 {every}")
            common = flags_of(SCRIPTS[script], terms)
            near = {"task": "chain?horizon=4&family=reversed", "token_budget": 400_000}
            near = near if arm in NEAR_ARMS else {}
            assert flags_of(SCRIPTS[script], flags) == common | switches | near, arm
            assert (script == "grpo.py") == arm.startswith("grpo"), arm


@pytest.fixture
def logs(tmp_path):
    """Two arms of two seeds, and the starting model; 100 problems each of which 16 samples were drawn."""
    counts = {
        "guide/seed1": [16] * 40 + [8] * 20 + [0] * 40,
        "guide/seed2": [16] * 40 + [0] * 60,
        "grpo/seed1": [16] * 20 + [0] * 80,
        "grpo/seed2": [16] * 20 + [0] * 80,
    }
    for name, right in counts.items():
        (tmp_path / name).mkdir(parents=True)
        part = {"correct": right, "parsed": [12] * 100}
        (tmp_path / name / "test.json").write_text(json.dumps({"hard": part, "near": part, "easy": part}))
    part = {"correct": [8] * 10 + [0] * 90, "parsed": [16] * 100}
    (tmp_path / "tiny.json").write_text(json.dumps({"hard": part, "near": part, "easy": part}))
    return tmp_path


def test_scores_table_by_hand(logs):
    """Catches differences that are not paired by seed or have the wrong sign, and gains that are taken for
    one another."""
    table = hard_chains.scores_table(logs, ["grpo", "guide"], "hard").splitlines()
    assert table[2] == "| before | 1 | 0.050 | 0.100 |  |  |  | 0.000 |  |  |  |"
    # of the first ten half were right before: .05 of self-distillation; of the others ten are gained.
    # Guide's gain: .4 and .3; pass .6, .4
    assert table[3].startswith(
        "| GRPO | 2 | 0.200 ± 0.000 | 0.200 ± 0.000 | 0.050 ± 0.000 | 0.100 ± 0.000 | 0.000 ± 0.000 | 0.250 |"
    )
    assert table[3].endswith("| +0.300 ± 1.271 | +0.250 ± 0.635 | +0.000 ± 0.000 |")
    assert table[4].startswith(
        "| Guide | 2 | 0.450 ± 0.635 | 0.500 ± 1.271 | 0.050 ± 0.000 | 0.350 ± 0.635 |"
    )


def test_trials_are_scored_to_their_end(tmp_path):
    """Catches a regular score that is taken for a closing one and left out, and a closing one that counts
    twice."""
    for arm, steps in (("guide", [0, 3, 6, 9]), ("grpo", [0, 12, 24, 25])):
        folder = tmp_path / "trials" / arm / "lr_1e-4"
        folder.mkdir(parents=True)
        rows = [
            {
                "step": step,
                "policy/entropy": 1.0,
                "eval/chain/avg@16": step / 100,
                "eval/chain/pass@16": step / 100,
            }
            for step in steps
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    trials = hard_chains.collect_trials(tmp_path)
    assert trials["guide"]["--lr 1e-4"]["avg@16"] == [0.0, 0.03, 0.06, 0.09]
    assert (
        trials["grpo"]["--lr 1e-4"]["pass@16"] == [0.0, 0.12, 0.24]
        and trials["grpo"]["--lr 1e-4"]["steps"] == 25
    )


@mutant("the longer run", "benchmarks/hard_chains.py", "min(map(length, pair))", "max(map(length, pair))")
@mutant(
    "guide minus guide", "benchmarks/hard_chains.py", "both[:, 0] - both[:, 1]", "both[:, 0] - both[:, 0]"
)
def test_equal_steps_by_hand(tmp_path):
    """Catches a comparison at the end of the longer run, or at its next score, and differences of the wrong
    sign or of other seeds."""
    runs = {  # {step: dev score}, tokens a step
        "guide/seed1": ({0: 0.0, 3: 0.3, 6: 0.6}, 100_000),
        "guide/seed2": ({0: 0.0, 3: 0.1, 5: 0.2}, 100_000),
        "grpo/seed1": ({0: 0.0, 12: 0.4}, 10_000),
        "grpo/seed2": ({0: 0.0, 12: 0.24}, 10_000),
        "grpo/seed3": ({0: 0.0, 12: 1.0}, 10_000),  # no run of Guide has this seed
    }
    for name, (dev, tokens) in runs.items():
        rows = []
        for step in range(max(dev) + 1):
            row = {"step": step} | ({"policy/entropy": 1.0} if step else {})
            row["rollout/tokens_total"] = step * tokens
            if step in dev:
                row |= {"eval/chain/avg@16": dev[step], "eval/chain/pass@16": 2 * dev[step]}
            rows.append(json.dumps(row) + "\n")
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "metrics.jsonl").write_text("".join(rows))
    table = hard_chains.equal_steps_table(tmp_path).splitlines()
    # GRPO after 6 and after 5 of its 12 steps: .2 and .1
    spread = 12.706 * np.std([0.4, 0.1], ddof=1) / np.sqrt(2)
    assert table[2].startswith("| GRPO | 2 | 6 | 55 | 550 | 0.150 ± ")
    assert f"| +0.250 ± {spread:.3f} | +0.500 ± {2 * spread:.3f} |" in table[2]
    assert table[3].startswith("| Guide | 2 | 6 | 550 | 550 | 0.400 ± ") and table[3].endswith("|  |  |")


def test_an_arm_without_a_finished_run_is_left_out(logs):
    """Catches tables that break while runs are going on."""
    for seed in (1, 2):
        (logs / f"grpo/seed{seed}/test.json").unlink()
    report = hard_chains.report(logs)
    assert all("| Guide |" in report[task] and "| GRPO |" not in report[task] for task in ("hard", "easy"))
    assert "| before |" in report["near"] and "Guide |" not in report["near"].splitlines()[-1]


def test_counts_are_those_of_the_test_problems_without_hints(tmp_path, monkeypatch):
    """Catches another split, number of problems or samples, and easy problems that are hard."""
    asked = []

    def evaluate(sampler, tokenizer, task, split, problems, samples, max_new_tokens, temperature):
        asked.append(
            (task.low, task.high, task.family, split, problems, samples, max_new_tokens, temperature)
        )
        return {}, [{"correct": 9, "parsed": 16}]

    monkeypatch.setattr(hard_chains, "evaluate", evaluate)
    hard_chains.measure(hard_chains.ROOT / "models/tiny", tmp_path / "some" / "test.json")
    assert asked == [
        (7, 7, "plain", "test", 200, 16, 128, 1.0),
        (4, 4, "reversed", "test", 100, 16, 128, 1.0),
        (1, 3, "plain", "test", 100, 16, 128, 1.0),
    ]
    counts = {"correct": [9], "parsed": [16]}
    assert json.loads((tmp_path / "some" / "test.json").read_text()) == {
        "hard": counts,
        "near": counts,
        "easy": counts,
    }


def test_settings_are_the_best_of_the_trials_that_are_listed():
    """Catches a setting that was picked otherwise than by the rule, or for one arm alone."""
    trials = json.loads((hard_chains.LOGS / "trials.json").read_text())
    assert trials.keys() == hard_chains.ARMS.keys() == hard_chains.CHOSEN.keys()
    for arm, settings in trials.items():
        assert settings.keys() == set(hard_chains.SETTINGS)
        assert hard_chains.CHOSEN[arm] == max(settings, key=lambda setting: arms.score(settings[setting])), (
            arm
        )


def test_reported_runs_were_made_with_the_chosen_settings():
    """Catches an arm without its five or ten seeds, and logs of another setting, script or seed than the one
    beside them."""
    check_reported_runs(hard_chains.LOGS, hard_chains.CHOSEN, hard_chains.command, ten=("grpo", "guide"))
