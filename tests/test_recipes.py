"""benchmarks/recipes.py: materials before arms, what is finished is skipped, tables by hand."""

import dataclasses
import importlib
import json
import shlex
import shutil
from pathlib import Path

import pytest
import tyro
from committed_runs import check_reported_runs, module_of
from mutants import mutant

from benchmarks import daslam, general_reasoner, pages, passk, recipes, recipes_figure, shape

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
    """seeds[seed][task][name] - runs[against][seed][task][name]""",
    """runs[against][seed][task][name] - seeds[seed][task][name]""",
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


@mutant(
    "arms under other names",
    "benchmarks/recipes_figure.py",
    "[experiment.names[arm] for arm in arms]",
    "[experiment.names[arm] for arm in reversed(arms)]",
)
@mutant(
    "dots of another task",
    "benchmarks/recipes_figure.py",
    "return [scores[task]",
    "return [next(iter(scores.values()))",
)
def test_figure_by_hand(experiment, tmp_path, monkeypatch):
    """Catches an arm under another's name, dots of another task, and a mean of something else."""
    saved = []
    monkeypatch.setattr(recipes_figure, "save_figure", lambda figure, path: saved.append(figure) or path)
    first, second = experiment.measured
    right = {"before": [0.1, 0.3], "other": [0.5, 0.7], "plain": [0.4, 0.4]}
    runs = {
        arm: {
            f"seed{i}": {first: {"avg": value}, second: {"avg": value / 10}} for i, value in enumerate(values)
        }
        for arm, values in right.items()
    }
    recipes_figure.plot_arms(experiment, runs, tmp_path / "some.png")
    axes = saved[0].axes
    assert [label.get_text() for label in axes[0].get_yticklabels()] == ["SFT", "MFT"]
    for axis, divided in zip(axes, (1, 10)):
        (before,) = [line for line in axis.lines if line.get_label() == "before"]
        assert before.get_xdata() == pytest.approx([0.2 / divided] * 2)
        dots = [line.get_xdata() for line in axis.lines if line.get_markersize() == 3]
        assert dots[0] == pytest.approx([0.4 / divided] * 2) and axis.get_ylim()[0] > axis.get_ylim()[1]
        means = [line.get_xdata()[0] for line in axis.lines if line.get_markersize() == 7]
        assert means == pytest.approx([0.4 / divided, 0.6 / divided])


@mutant(
    "choice by avg alone",
    "benchmarks/recipes.py",
    "np.mean([scores[name] for name in experiment.chosen_by])",
    'scores["avg"]',
)
@mutant(
    "a dev score on as many problems as the test",
    "benchmarks/recipes.py",
    'if split == "dev" and experiment.on_dev:',
    "if False:",
)
def test_another_dev_score(experiment, commands, tmp_path):
    """Catches a choice by avg@n where the protocol says avg@n and pass@n, counts of the wrong problems, and a
    difference of another score under a column's name."""
    other = dict(
        on_dev=(3, 2), chosen_by=("avg", "pass"), compared=("avg", "pass@2"), grids={"plain": ["--lr 1"]}
    )
    experiment = dataclasses.replace(experiment, **other)
    args = recipes.Args(out=tmp_path / "out", scratch=tmp_path, one=100, trials=True, only=("plain",))
    recipes.main(experiment, args)
    (file,) = args.out.glob("trials/plain/*/seed100/dev.json")
    (counts,) = json.loads(file.read_text()).values()
    assert counts["samples"] == 2 and len(counts["correct"]) == 3
    recipes.save(file, {"chain?horizon=1": counts | {"correct": [2, 1, 0]}})
    (args.out / "trials.json").unlink(missing_ok=True)
    found = recipes.collect_trials(experiment, args.out)["plain"]["--lr 1"]
    assert found == {"100": round((1 / 2 + 2 / 3) / 2, 4)}
    assert "| dev mean of avg@2, pass@2 on `chain?horizon=1` |" in recipes.trials_table(experiment, args.out)
    runs = {
        arm: {"seed1": {"chain?horizon=1": recipes.scores_of(counts | {"samples": 4, "correct": right})}}
        for arm, right in (("before", [0]), ("plain", [2]), ("other", [4]))
    }
    title, *_, last = recipes.scores_table(experiment, runs, "chain?horizon=1", "plain").split("\n")
    assert title.endswith("| avg@4 minus that of SFT | pass@2 minus that of SFT |")
    assert last.endswith("| 0.500 | 0.167 |")  # of six pairs of four, two right, five have a right one


def test_the_premise_is_looked_at_first(experiment, commands, tmp_path, capsys):
    """Catches runs of hours in a world where there is nothing rare to find."""
    args = recipes.Args(out=tmp_path / "out", scratch=tmp_path, only=("nobody",))
    for right, ends in (([1, 1, 1, 0], False), ([4, 4, 0, 0], True), ([0, 0, 0, 0], True)):
        counts = {"samples": 4, "correct": right, "parsed": [4] * 4, "maj": 0.5}
        recipes.save(args.out / "premise.json", {"chain?horizon=1": counts})
        with pytest.raises(SystemExit, match="nothing rare to find" if ends else "--only nobody"):
            passk.main(experiment, args)
    assert "avg@4 0.1875, pass@4 0.7500" in capsys.readouterr().out and not commands


@mutant(
    "tables of seeds that are not there",
    "benchmarks/shape.py",
    "for kind in KINDS if seeds else ():",
    "for kind in KINDS:",
)
@pytest.mark.parametrize(
    "table",
    [
        shape.premise_table,
        daslam.premise_table,
        general_reasoner.agreement_table,
        general_reasoner.hacking_table,
    ],
)
def test_nothing_is_reported_yet(table, tmp_path):
    """Catches trials that end in a traceback, since no seed is reported yet, and development seeds in a
    table of reported ones."""
    recipes.save(tmp_path / "materials/seed100.json", {})
    assert len(table(tmp_path).split("\n")) == 2


EXPERIMENTS = ("deepdistill", "distill", "eit", "fslr", "mft", "passk", "rounds", "shape", "sources")
EXPERIMENTS += ("daslam", "dto", "general_reasoner", "latent_seek", "quiet_star", "srpo", "unir", "vectors")


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
        file, *flags = shlex.split(command.format(here="here", seed=7, out="out", split="dev"))
        assert "{" not in shlex.join([file, *flags])
        tyro.cli(module_of(file).Args, args=flags)


@pytest.mark.parametrize("module", pages.RECIPES)
def test_reported_runs(module):
    """Catches a seed left out, logs of another command, and a setting that the trials did not choose."""
    experiment = module.EXPERIMENT
    trials = json.loads((experiment.logs / "trials.json").read_text())
    assert trials.keys() == experiment.grids.keys()
    for arm, settings in trials.items():
        assert settings.keys() == set(experiment.grids[arm])
        assert {frozenset(seeds) for seeds in settings.values()} == {frozenset({"100", "101"})}
        assert experiment.chosen[arm] == recipes.best_setting(settings)

    def command(arm: str, setting: str, seed: int) -> str:
        here = f"runs/scratch/{experiment.name}/seed{seed}"
        *_, last = experiment.arms[arm].replace("{setting}", setting).split(" && ")
        return f"{last.format(here=here, seed=seed, out='out', split='test')} {setting}"

    check_reported_runs(experiment.logs, experiment.chosen, command)
    assert experiment.logs.with_name(f"{experiment.name}.png").exists()
