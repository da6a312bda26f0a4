"""benchmarks/countdown.py: a run in fifths with its counts, trials, and what is chosen by what."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from committed_runs import check_reported_runs
from mutants import mutant

from benchmarks import countdown
from plainrl.countdown import CountdownTask
from plainrl.flags import EVAL_SEED
from plainrl.models import eos_ids, load_model
from plainrl.sampler import HFSampler


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Two steps with a score after each, on few problems."""
    monkeypatch.setattr(countdown, "STEPS", 2)
    monkeypatch.setattr(countdown, "FIFTHS", (1, 2))
    monkeypatch.setattr(
        countdown, "COMMON", countdown.COMMON.replace("--prompts-per-step 16", "--prompts-per-step 2")
    )
    original = countdown.sampled
    monkeypatch.setattr(
        countdown, "sampled", lambda s, t, split, *rest: original(s, t, split, 3, 4, *rest[2:])
    )
    monkeypatch.setattr(countdown.where_entropy_is, "shares", lambda found: {"tokens": len(found)})
    monkeypatch.setattr(countdown.where_entropy_is, "positions", lambda *args: [])
    return countdown.Args(out=tmp_path / "out", scratch=tmp_path / "scratch")


def test_a_run_in_fifths_is_the_run_at_once(small):
    """Catches a run whose parts do not go on from each other, counts of the wrong checkpoint, a fifth that is
    measured twice, and a log that does not have every step."""
    small.one = "siren; --beta 0.1; 7"
    countdown.run_one(small)
    folder = small.out / "siren/seed7"
    first, last = (json.loads((folder / f"step{n}.json").read_text()) for n in (1, 2))
    assert first.keys() == {"dev", "H", "entropy", "1"} and last.keys() == first.keys() | {"0.6"}
    assert first != {name: last[name] for name in first}
    curves = json.loads((folder / "curves.json").read_text())
    assert len(curves["policy/entropy"]) == len(curves["siren/anchor"]) == 2 and curves["reward/mean"]
    assert not (small.scratch / "siren/seed7").exists()
    flags = json.loads((folder / "config.json").read_text())["flags"]
    assert (flags["lr"], flags["seed"], flags["steps"], flags["model"]) == (5e-5, 7, 2, "models/countdown")

    small.one, small.trials = "siren; --beta 0.1; 7", True
    countdown.run_one(small)
    trial = json.loads((small.out / "trials/siren/beta_0.1/seed7/step2.json").read_text())
    assert trial == {name: last[name] for name in ("dev", "H")}  # one run in one go


@mutant("half a run", "benchmarks/countdown.py", '"metrics.jsonl") < steps', '"metrics.jsonl") < -1')
def test_a_run_that_is_stopped_is_not_measured(small, monkeypatch):
    """Catches counts of half a run under the name of a whole one: after Ctrl-C a script saves and returns."""
    small.one = "siren; --beta 0.1; 7"
    monkeypatch.setattr(countdown.siren, "main", lambda args: None)
    with pytest.raises(SystemExit, match="stopped before its end"):
        countdown.run_one(small)
    assert not list((small.out / "siren/seed7").iterdir())


def test_what_is_finished_is_skipped(small, monkeypatch, capsys):
    """Catches a run that is made twice, an arm that there is not, and a failure that is called done."""
    ran = []

    def run(command, **options):
        ran.append(command[2])
        return SimpleNamespace(returncode=int("0.3" in command[2]))

    monkeypatch.setattr(countdown.subprocess, "run", run)
    monkeypatch.setattr(countdown, "measure", lambda *args: {"H": 1.0})
    small.only, small.trials = ("siren",), True
    done = small.out / "trials/siren/beta_0.1/seed100"
    done.mkdir(parents=True)
    (done / "curves.json").write_text(json.dumps({"policy/entropy": [0.4, 0.2]}))
    dev = {"correct": [4, 0], "parsed": [16, 8]}
    (done / f"step{countdown.STEPS}.json").write_text(json.dumps({"dev": dev, "H": 0.25}))
    countdown.run_all(small)
    settings = countdown.GRIDS["siren"][1]
    assert sorted(ran) == sorted(
        f"--one=siren; {setting}; {seed}"
        for setting in settings
        for seed in (100, 101)
        if (setting, seed) != ("--beta 0.1", 100)
    )
    out = capsys.readouterr().out
    assert "beta_0.1/seed100: already there" in out and "beta_0.3/seed100: not finished, see " in out
    assert "beta_1/seed100: done" in out
    small.only = ("sirene",)
    with pytest.raises(SystemExit, match="--only sirene: there is no such arm; there are dr_grpo, siren"):
        countdown.run_all(small)


def test_other_rates_follow_in_the_same_command(small, monkeypatch):
    """Catches other rates that are looked for before the coefficients have been tried."""
    tried = {}

    def run_jobs(args, jobs):
        for arm, setting, seed in jobs:
            score = {"score": 0.7 if "0.3" in setting else 0.5}
            tried.setdefault(arm, {}).setdefault(setting, {})[str(seed)] = score

    monkeypatch.setattr(countdown, "run_jobs", run_jobs)
    monkeypatch.setattr(countdown, "collect_trials", lambda out: tried)
    monkeypatch.setattr(countdown, "measure", lambda *args: {"H": 1.0})
    small.only, small.trials = ("siren",), True
    countdown.run_all(small)
    rates = [f"--beta 0.3 --lr {rate}" for rate in countdown.OTHER_RATES]
    assert list(tried["siren"]) == [*countdown.GRIDS["siren"][1], *rates]


@mutant("the worst", "benchmarks/countdown.py", "best = max(first, key", "best = min(first, key")
@mutant("before all are tried", "benchmarks/countdown.py", "< len(DEVELOPMENT_SEEDS) for", "< 1 for")
def test_other_rates_are_of_the_best_coefficient(small):
    """Catches rates that are tried of another coefficient, of Dr. GRPO, or before both seeds of all are
    there; and trials that are made again where only their summary is left."""
    first = countdown.GRIDS["siren"][1]
    trials = {"siren": {setting: {"100": {"score": 0.5}, "101": {"score": 0.5}} for setting in first}}
    trials["siren"][first[2]]["101"]["score"] = 0.7
    assert countdown.other_rates(trials, "siren") == [f"{first[2]} --lr 2.5e-5", f"{first[2]} --lr 1e-4"]
    assert countdown.other_rates(trials | {"dr_grpo": trials["siren"]}, "dr_grpo") == []
    small.out.mkdir()
    (small.out / "trials.json").write_text(json.dumps(trials))
    small.trials = True
    countdown.run_jobs(small, [("siren", setting, seed) for setting in first for seed in (100, 101)])
    del trials["siren"][first[3]]["101"]
    assert countdown.other_rates(trials, "siren") == []


@mutant(
    "ways that are the same",
    "benchmarks/countdown.py",
    "different.append(len({texts[row] for row in group if grades[row].correct}))",
    "different.append(sum(grades[row].correct for row in group))",
)
@mutant(
    "wrong ways too",
    "benchmarks/countdown.py",
    "{texts[row] for row in group if grades[row].correct}",
    "{texts[row] for row in group}",
)
def test_counts():
    """Catches counts of other problems than their own, and wrong or equal ways among the different right
    ones."""
    model, tokenizer = load_model(str(countdown.START))
    sampler, task = HFSampler(model, eos_ids(model, tokenizer)), CountdownTask()
    rows, rollouts = countdown.sampled(sampler, tokenizer, "dev", 20, 16)
    result = countdown.counts(rows, rollouts)
    texts = [text for rollout in rollouts for text in rollout.texts]
    for index in range(20):
        problem, own = task.problem("dev", index, EVAL_SEED), texts[16 * index : 16 * index + 16]
        grades = [task.grade(text, problem) for text in own]
        assert result["correct"][index] == sum(grade.correct for grade in grades)
        assert result["parsed"][index] == sum(grade.parsed is not None for grade in grades)
        right = [text for text, grade in zip(own, grades) if grade.correct]
        assert result["different"][index] == len(set(right))
    assert sum(result["why"].values()) == 320 and result["maj"].keys() == {16}
    assert sum(result["different"]) < sum(result["correct"])  # so a count of all is seen


@mutant(
    "the first rollout only",
    "benchmarks/countdown.py",
    "functools.reduce(operator.add, rollouts)",
    "rollouts[0]",
)
def test_masked_entropy_is_sirens(monkeypatch):
    """Catches an H that is not the one SIREN holds: of other tokens, or with other masks."""
    model, tokenizer = load_model(str(countdown.START))
    sampler = HFSampler(model, eos_ids(model, tokenizer))
    _, rollouts = countdown.sampled(sampler, tokenizer, "dev", 4, 8)
    (rollout,) = rollouts
    batch = rollout.batch(rollout.rewards(), model.device, False)
    args = countdown.siren.Args(micro_batch_tokens=32768)
    expected = countdown.siren.regularised_entropy(model, batch, args)[1].item()
    assert countdown.masked_entropy(model, rollouts) == pytest.approx(expected, rel=1e-5)
    parts = [rollout.select([0, 1]), rollout.select([2, 3])]  # as `evaluate` leaves them
    assert countdown.masked_entropy(model, parts) == pytest.approx(expected, rel=1e-5)


@mutant(
    "avg alone",
    "benchmarks/countdown_tables.py",
    "(right.mean() / 16 + (right > 0).mean()) / 2",
    "right.mean() / 16",
)
def test_score():
    """Catches a choice by another number than the protocol says."""
    assert countdown.dev_score({"correct": [0, 16, 8, 0]}) == pytest.approx((0.375 + 0.5) / 2)


def test_trials_are_summarised(small, monkeypatch):
    """Catches a table of one development seed only, and trials that are lost when their logs are gone."""
    small.out.mkdir()
    (small.out / "start.json").write_text(json.dumps({"H": 0.5}))
    for seed, right in ((100, 4), (101, 8)):
        folder = small.out / f"trials/siren/beta_0.1/seed{seed}"
        folder.mkdir(parents=True)
        dev = {"correct": [right, 0], "parsed": [16, 8]}
        (folder / "step2.json").write_text(json.dumps({"dev": dev, "H": 0.25 * right / 4}))
        (folder / "curves.json").write_text(json.dumps({"policy/entropy": [0.4, 0.2]}))
    table = countdown.trials_table(small.out)
    assert "| SIREN | `--beta 0.1` | 0.188 | 0.500 | 0.250 | 0.400 to 0.200 | 0.75 | 0.344 |" in table
    for file in small.out.glob("trials/*/*/*/*"):
        file.unlink()
    assert countdown.trials_table(small.out) == table
    assert np.isclose(
        json.loads((small.out / "trials.json").read_text())["siren"]["--beta 0.1"]["100"]["H"], 0.25
    )


def test_reported_runs_were_made_with_the_chosen_settings():
    """Catches an arm without its five seeds, and logs of another script, setting, length or seed than the one
    beside them."""

    def command(arm: str, setting: str, seed: int) -> str:
        return f"{countdown.command(arm, setting, seed)} --steps {countdown.STEPS} --resume"

    check_reported_runs(countdown.LOGS, countdown.CHOSEN, command, countdown.REPORTED_SEEDS)
    for arm in countdown.CHOSEN:
        for seed in countdown.REPORTED_SEEDS:
            folder = countdown.LOGS / arm / f"seed{seed}"
            assert all((folder / f"step{steps}.json").exists() for steps in countdown.FIFTHS), folder
            curves = json.loads((folder / "curves.json").read_text())
            assert len(curves["policy/entropy"]) == countdown.STEPS, folder
