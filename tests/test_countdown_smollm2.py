"""benchmarks/countdown_smollm2.py: the supervised start, trials, arms from it, and their tables."""

import json
import shlex
import shutil
from pathlib import Path

import pytest
import tyro
from committed_runs import module_of
from mutants import mutant

from benchmarks import countdown_smollm2
from benchmarks.countdown_tables import read_runs
from plainrl.models import load_model, model_hash


def not_trained(command: str, stops: tuple, run: Path, target: Path, measured) -> None:
    """In place of a run: the model that it would start from, measured at every stop."""
    script, *flags = shlex.split(command)
    flags = vars(tyro.cli(module_of(script).Args, args=flags))
    target.mkdir(parents=True)
    for step in stops:
        (target / f"step{step}.json").write_text(json.dumps(measured(Path(flags["model"]), step)))
    (target / "curves.json").write_text(json.dumps({"rollout/tokens_total": [100, 200]}))
    (target / "config.json").write_text(json.dumps({"flags": flags}, default=str))


@mutant(
    "of itself",
    "benchmarks/countdown_smollm2.py",
    "gains = (own - reference).mean(0)",
    "gains = (reference - own).mean(0)",
)
def test_from_the_start_to_the_tables(monkeypatch, tmp_path, capsys):
    """Catches arms that do not begin at the supervised model, a beta at another rate than the better one, a
    difference with the wrong sign, and a second start."""
    monkeypatch.setattr(countdown_smollm2, "START_ROWS", 32)
    monkeypatch.setattr(countdown_smollm2, "STOPS", (1, 2))
    monkeypatch.setattr(countdown_smollm2, "train_in_parts", not_trained)
    monkeypatch.setattr(countdown_smollm2.where_entropy_is, "positions", lambda *args: [])
    monkeypatch.setattr(
        countdown_smollm2.where_entropy_is, "shares", lambda found: {"shares": {"choice": 0.5}}
    )
    monkeypatch.setattr(countdown_smollm2, "RATES", ("1e-5", "3e-5"))
    monkeypatch.setattr(countdown_smollm2, "BETAS", ("0.1",))
    args = countdown_smollm2.Args(
        model=Path("models/countdown"), problems=6, out=tmp_path / "out", scratch=tmp_path / "scratch"
    )
    args.trials = True
    countdown_smollm2.main(args)
    trials = json.loads((args.out / "trials.json").read_text())
    rates = trials["dr_grpo"]
    assert list(rates) == ["--lr 1e-5", "--lr 3e-5"]
    better = max(rates, key=lambda rate: rates[rate]["score"])
    assert list(trials["siren"]) == [f"--beta 0.1 {better}"]

    starts = (args.folder() / "start").stat().st_mtime_ns
    args.trials = False
    chosen = {"dr_grpo": "--lr 3e-5", "siren": "--beta 0.1 --lr 3e-5"}
    monkeypatch.setattr(countdown_smollm2, "CHOSEN", chosen)
    capsys.readouterr()
    countdown_smollm2.main(args)
    assert (args.folder() / "start").stat().st_mtime_ns == starts
    flags = json.loads((args.out / "siren/seed1/config.json").read_text())["flags"]
    assert flags["model"].endswith("start/last") and (flags["beta"], flags["lr"]) == (0.1, 3e-5)

    shown = capsys.readouterr().out
    assert "| Dr. GRPO, stopped early |" in shown
    runs = read_runs(args.out, ["dr_grpo", "siren"], 2)
    runs.steps["siren"]["seed1"][2]["1"]["correct"] = [16] * 6
    runs.steps["dr_grpo"]["seed1"] = {0: runs.start}
    runs.start["1"]["correct"] = [0] * 5 + [8]
    row = next(
        line for line in countdown_smollm2.scores_table(runs, "seed1").split("\n") if "| SIREN |" in line
    )
    assert "| +0.917 [" in row


@mutant(
    "arms from another start than the one that was measured",
    "benchmarks/countdown_smollm2.py",
    """json.loads(file.read_text())["model_hash"] !=""",
    """False and json.loads(file.read_text())["model_hash"] !=""",
)
def test_another_start(tmp_path):
    """Catches arms that begin at another start than the one that they are compared with, as on a machine that
    rounds otherwise."""
    args = countdown_smollm2.Args(out=tmp_path / "out", scratch=tmp_path / "scratch")
    run = args.folder() / "start"
    (run / "final").mkdir(parents=True)
    shutil.copytree("models/countdown", run / "last")
    args.out.mkdir()
    own = model_hash(load_model("models/countdown")[0])
    (args.out / "start.json").write_text(json.dumps({"model_hash": own}))
    assert countdown_smollm2.supervised_start(args) == run / "last"
    (args.out / "start.json").write_text(json.dumps({"model_hash": "another"}))
    with pytest.raises(SystemExit, match="start.json: of another start than"):
        countdown_smollm2.supervised_start(args)


def test_a_folder_that_is_not_there():
    """Catches a traceback where the model was not converted."""
    with pytest.raises(SystemExit, match="--model nowhere: no such folder; tools/convert_gguf.py makes it"):
        countdown_smollm2.main(countdown_smollm2.Args(model=Path("nowhere")))
