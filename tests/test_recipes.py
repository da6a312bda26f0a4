"""benchmarks/recipes.py: materials before arms, what is finished is skipped, tables by hand."""

import importlib
import json
import shlex
import shutil
from pathlib import Path

import pytest
import tyro
from mutants import mutant

from benchmarks import recipes

ROOT = Path(__file__).parents[1]


@pytest.fixture
def experiment():
    """Two arms from rows that are made first; chains of one step are measured."""
    return recipes.Experiment(
        file=str(ROOT / "benchmarks/some.py"),
        materials={"rows.jsonl": "tools/traces.py --seed {seed} --out {here}/rows.jsonl"},
        arms={
            "plain": "sft.py --data {here}/rows.jsonl --seed {seed} --out-dir {out}",
            "other": "sft.py {setting} --out-dir {out}.1 && papers/mft.py --model {out}.1 --out-dir {out}",
        },
        names={"plain": "SFT", "other": "MFT", "before": "before"},
        grids={"plain": ["--lr 1e-3", "--lr 3e-3"], "other": ["--lr 1e-3"]},
        chosen={"plain": "--lr 3e-3", "other": "--lr 1e-3"},
        measured={"chain?horizon=1": (4, 4), "chain?horizon=2": (4, 2)},
        decides="chain?horizon=1",
    )


@pytest.fixture
def commands(monkeypatch):
    """Instead of running them: the commands, in their order. A run leaves the starting model."""
    called = []

    def run(command: str, made: Path) -> None:
        called.append(command)
        assert f"{made.name}" in command
        if "--out-dir" not in command:
            made.touch()
            return
        made.mkdir(parents=True)
        shutil.copytree(ROOT / "models/tiny", made / "last")
        (made / "config.json").write_text("{}")
        (made / "metrics.jsonl").write_text('{"step": 1, "sft/loss": 0.5, "eval/chain/avg@4": 0.25}\n')

    monkeypatch.setattr(recipes, "run", run)
    return called


@mutant(
    "settings of the trials",
    "benchmarks/recipes.py",
    "experiment.grids.get(arm, []) if args.trials else [experiment.chosen[arm]]",
    "experiment.grids[arm]",
)
@mutant(
    "twice",
    "benchmarks/recipes.py",
    "if not summarised and not (target",
    "if not (target",
)
def test_a_seed(experiment, commands, tmp_path):
    """Catches an arm without the seed's own materials, runs that are made twice, trials of a setting that is
    not in the grid, and models that are not measured."""
    args = recipes.Args(out=tmp_path / "out", scratch=tmp_path / "scratch", one=7)
    recipes.main(experiment, args)
    made, plain, first, other = commands
    assert made.startswith("tools/traces.py --seed 7 --out ") and made.endswith("seed7/rows.jsonl")
    assert plain.startswith("sft.py --data ") and " --seed 7 --out-dir " in plain
    assert plain.endswith("plain/seed7 --lr 3e-3")
    assert first.startswith("sft.py --lr 1e-3 --out-dir ") and first.endswith("other/seed7.1")
    assert "other/seed7.1 --out-dir " in other and other.endswith("other/seed7 --lr 1e-3")
    result = json.loads((args.out / "plain/seed7/test.json").read_text())
    assert result == json.loads((args.out / "before/seed7/test.json").read_text())  # models/tiny both times
    counts = result["chain?horizon=1"]
    assert counts["samples"] == 4 and len(counts["correct"]) == len(counts["parsed"]) == 4
    assert len(result["chain?horizon=2"]["correct"]) == 4
    curves = json.loads((args.out / "plain/seed7/curves.json").read_text())
    assert curves == {"sft/loss": {"1": 0.5}, "eval/chain/avg@4": {"1": 0.25}}
    assert not list((args.scratch / "some/seed7/runs").glob("*/*"))

    recipes.main(experiment, args)
    assert len(commands) == 4  # all is there
    args.trials, args.one = True, 100
    recipes.main(experiment, args)
    assert [command.split(" --lr ")[1][:4] for command in commands[5:]] == ["1e-3", "3e-3", "1e-3", "1e-3"]
    trials = recipes.collect_trials(experiment, args.out)
    assert trials["plain"].keys() == {"--lr 1e-3", "--lr 3e-3"} and trials["plain"]["--lr 1e-3"].keys() == {
        "100"
    }
    written = (args.out / "trials.json").stat().st_mtime_ns
    assert recipes.collect_trials(experiment, args.out) == trials  # and two processes may read it at once:
    assert (args.out / "trials.json").stat().st_mtime_ns == written
    shutil.rmtree(args.out / "trials")
    recipes.main(experiment, args)
    assert len(commands) == 9  # their summary is enough


@mutant(
    "the other sign",
    "benchmarks/recipes.py",
    """seeds[seed][task]["avg"] - runs[against][seed][task]["avg"]""",
    """runs[against][seed][task]["avg"] - seeds[seed][task]["avg"]""",
)
def test_tables_by_hand(experiment, tmp_path):
    """Catches differences that are not paired, have the wrong sign, or are of another task; and a choice by
    one seed alone."""
    right = {
        "before": {1: [0, 0, 0, 4], 2: [0, 0, 0, 0]},
        "plain": {1: [4, 4, 0, 0], 2: [4, 2, 0, 0]},
        "other": {1: [4, 4, 4, 0], 2: [4, 4, 2, 0]},
    }
    for arm, seeds in right.items():
        for seed, correct in seeds.items():
            counts = {"samples": 4, "correct": correct, "parsed": [4, 4, 4, 2], "maj": 0.5}
            recipes.save(tmp_path / arm / f"seed{seed}/test.json", dict.fromkeys(experiment.measured, counts))
            (tmp_path / arm / f"seed{seed}/curves.json").touch()
    runs = recipes.reported(experiment, tmp_path)
    title, _, before, plain, other = recipes.scores_table(experiment, runs, "chain?horizon=1", "plain").split(
        "\n"
    )
    assert title.endswith("| avg@4 minus that of SFT |")
    assert before.startswith("| before | 2 | 0.125 ± ") and plain.startswith("| SFT | 2 | 0.438 ± ")
    assert other.endswith("| +0.250 ± 0.000 |") and "| 0.125 ± 0.000 |" in other and plain.endswith("|  |")
    assert recipes.report(experiment, tmp_path).keys() == experiment.measured.keys()
    settings = {"a": {"100": 0.9, "101": 0.1}, "b": {"100": 0.6, "101": 0.6}}
    assert recipes.best_setting(settings) == "b"


EXPERIMENTS = ("deepdistill", "distill", "eit", "fslr", "mft", "rounds", "shape", "sources", "vectors")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_commands_can_be_read(name):
    """Catches a flag that a script does not have, hours before the run that would find it, and a choice that
    is not of the grid."""
    experiment = importlib.import_module(f"benchmarks.{name}").EXPERIMENT
    commands = list(experiment.materials.values())
    for arm, command in experiment.arms.items():
        assert arm in experiment.names and (arm in experiment.grids or arm in experiment.chosen)
        grid = experiment.grids.get(arm, [experiment.chosen.get(arm)])
        assert experiment.chosen.get(arm, grid[0]) in grid
        setting = grid[0]
        *first, last = command.replace("{setting}", setting).split(" && ")
        commands += [*first, f"{last} {setting}"]
    for command in commands:
        file, *flags = shlex.split(command.format(here="here", seed=7, out="out"))
        assert "{" not in command.format(here="here", seed=7, out="out")
        module = importlib.import_module(file.removesuffix(".py").replace("/", "."))
        tyro.cli(module.Args, args=flags)
