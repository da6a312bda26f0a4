"""Several processes on one model: the same numbers as one process, whatever the number of ranks, and no run
that hangs."""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
import toys
from distributed_driver import EARLY_ENDS, RUNS, free_port
from mutants import mutant
from random_model import GRADIENT
from safetensors.torch import load_file

import eval as evaluation
from plainrl import ranks as ranks_module
from plainrl.folder import LOGS
from tools import make_tiny

TESTS = Path(__file__).resolve().parent


def launch(
    ranks: int, *arguments, script=TESTS / "distributed_driver.py", meeting: list = ("--standalone",)
) -> subprocess.Popen:
    """`torchrun --nproc-per-node ranks script arguments`; with 0 ranks without torchrun."""
    torchrun = ["-m", "torch.distributed.run", *meeting, "--nproc-per-node", ranks] if ranks else []
    command = [sys.executable, *torchrun, script, *arguments]
    environment = os.environ | {"PYTHONPATH": f"{TESTS.parent}:{TESTS}", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        list(map(str, command)), env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def finished(process: subprocess.Popen, seconds: float = 180) -> str:
    output, _ = process.communicate(timeout=seconds)
    assert process.returncode == 0, output
    return output


def ended(process: subprocess.Popen) -> dict:
    """How a job came to its end, which is none that it was meant to have."""
    started = time.monotonic()
    output, _ = process.communicate(timeout=120)
    return {"status": process.returncode, "output": output, "seconds": time.monotonic() - started}


@pytest.fixture(scope="module")
def runs(toy_model, tmp_path_factory) -> Path:
    """Three steps of every script with 1 and 2 ranks, of some with 4, runs that go on, and some whose ranks
    are killed: one process imports torch and forks all ranks."""
    out = tmp_path_factory.mktemp("ranks")
    plan = [{"ranks": ranks, "out": out / str(ranks)} for ranks in (1, 2)]
    plan.append({"ranks": 4, "out": out / "4", "only": ",".join(FOUR_RANKS)})
    for name, others in GOES_ON.items():  # two of three steps with 2 ranks, then the last with others
        plan.append({"ranks": 2, "out": out / name / "begun", "only": name, "steps": 2})
        plan += [
            {"ranks": n, "out": out / name / str(n), "only": name, "after": out / name / "begun"}
            for n in others
        ]
    plan += [{"ranks": 2, "out": out / how, "only": "grpo", "how": how} for how in EARLY_ENDS]
    plan.append(
        {"ranks": 2, "out": out / "goes on", "only": "grpo", "how": "go on", "after": out / "die first"}
    )
    plan.append({"ranks": 2, "out": out / "stops", "only": "grpo", "steps": 100_000, "how": "ctrl-c"})
    edge = {"ranks": 2, "out": out / "edge", "only": "h1_curriculum"}
    plan += [edge | {"steps": 2}, edge]  # a stage has two steps
    plan += [
        {"ranks": n, "out": out / f"float32 {n}", "only": "grpo", "steps": 1, "how": "float32"}
        for n in (1, 2)
    ]
    (out / "plan.json").write_text(json.dumps(plan, default=str))
    output = finished(launch(0, toy_model, "fork", out / "plan.json"), 900)  # minutes on a busy machine
    (out / "output.txt").write_text(output)
    return out


GOES_ON = {"grpo": (1, 4), "lora": (1,)}
FOUR_RANKS = ["dapo", "guide", "clip_cov", "few_rows", "pushed lora"]  # what is most uneven between ranks


def distance(one: Path, other: Path) -> float:
    """Largest relative L2 distance between weights of the same name."""
    one, other = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    assert one.keys() == other.keys() and all(weight.dtype == torch.float64 for weight in one.values())
    return max(((one[name] - other[name]).norm() / one[name].norm()).item() for name in one)


def without_gaps(path: Path) -> list[dict]:
    """The lines of a log without the gaps, which are rounding and nothing else."""
    rows = map(json.loads, path.read_text().splitlines())
    return [{name: row[name] for name in row if name not in ("gap", "largest_gap")} for row in rows]


@pytest.mark.parametrize("run, ranks", [(run, 2) for run in RUNS] + [(run, 4) for run in FOUR_RANKS])
def test_ranks_change_nothing(runs, run, ranks, toy_model):
    """Catches denominators, statistics or gradients of one rank's part, prompts sampled twice, and a rank's
    own random numbers."""
    one, several = runs / "1" / run, runs / str(ranks) / run
    assert (
        distance(one / "final", several / "final") < 1e-10
        and distance(one / "last", several / "last") < 1e-10
    )
    first, trained = (load_file(folder / "model.safetensors") for folder in (Path(toy_model), one / "last"))
    assert any((trained[name] - weight).norm() > 1e-3 * weight.norm() for name, weight in first.items())
    ours, theirs = toys.records(one), toys.records(several)
    assert len(ours) == len(theirs) == 5
    for left, right in zip(ours, theirs):
        assert left.keys() == right.keys()
        for name, value in left.items():
            exact = name.startswith(
                ("loss/", "optim/")
            )  # the sampler's log-probabilities are kept in float32
            close = dict(rel=1e-10, abs=1e-12) if exact else dict(rel=1e-6, abs=1e-9)
            assert right[name] == (pytest.approx(value, **close) if isinstance(value, float) else value), (
                left["step"],
                name,
            )
    for name in LOGS[1:]:
        assert without_gaps(one / name) == without_gaps(several / name), name


@pytest.mark.parametrize("run, ranks", [(run, ranks) for run, others in GOES_ON.items() for ranks in others])
def test_a_run_goes_on_with_another_number_of_ranks(runs, run, ranks):
    """Catches a checkpoint that holds one rank's part, or that only as many ranks can read."""
    assert distance(runs / "1" / run / "last", runs / run / str(ranks) / run / "last") < 1e-10


def test_two_machines(runs, toy_model, tmp_path):
    """Catches ranks that are told apart by their number on one machine. (Two torchruns that meet, on this
    one.)"""
    meeting = [
        "--nnodes",
        2,
        "--rdzv-backend",
        "c10d",
        "--rdzv-endpoint",
        f"localhost:{free_port()}",
        "--rdzv-id",
        "a test",
    ]
    machines = [launch(1, toy_model, tmp_path, "grpo", meeting=meeting) for _ in range(2)]
    for machine in machines:
        finished(machine)
    assert distance(runs / "1/grpo/last", tmp_path / "grpo/last") < 1e-10


def test_ctrl_c_saves_what_all_ranks_have_done(runs):
    """Catches ranks that stop after different steps, without a checkpoint of the last one, or not at all.
    (The second rank alone got the signal.)"""
    assert checkpoint(runs / "stops") == toys.records(runs / "stops/grpo")[-1]["step"] >= 3


def test_the_curriculum_goes_on_at_the_edge_of_a_stage(runs):
    """Catches a fresh optimizer that comes back as one that has made a step."""
    assert distance(runs / "1/h1_curriculum/last", runs / "edge/h1_curriculum/last") < 1e-10


def test_single_precision(runs):
    """Catches what float64 does not meet: sums of gradients that gloo or NCCL make in another way, a
    gradient that is lost there."""
    one, two = (toys.records(runs / f"float32 {ranks}" / "grpo")[1] for ranks in (1, 2))
    assert (
        two["optim/grad_norm"] == pytest.approx(one["optim/grad_norm"], rel=GRADIENT)
        and one["optim/grad_norm"] > 1e-3
    )


def checkpoint(out: Path) -> int:
    """The step of the last checkpoint of a run of grpo.py."""
    return json.loads((out / "grpo/last/state.json").read_text())["step"]


@pytest.mark.parametrize("how", EARLY_ENDS)
def test_a_rank_whose_neighbour_has_ended_ends_by_itself(runs, how):
    """Catches a rank that waits for one that was killed or has stopped with a message, where no torchrun ends
    it, and a checkpoint that this has spoiled, be it the writer's end."""
    assert checkpoint(runs / how) == 2


def test_a_rank_says_why_it_ends(runs):
    """Catches a rank that stops without its message, and one that only shows the traceback of a lost
    connection."""
    output = (runs / "output.txt").read_text()
    assert output.count("error: this rank alone") == 1 and output.count("error: this rank cannot go on") == 3


def test_a_job_whose_main_rank_was_killed_goes_on(runs):
    """Catches a checkpoint that is not gone on from."""
    assert distance(runs / "1/grpo/last", runs / "goes on/grpo/last") < 1e-10


def test_messages_come_once(tmp_path):
    """Catches an error line for every rank, and a job that does not end."""
    flags = ["--model", tmp_path / "not-there", "--out-dir", tmp_path / "out"]
    job = ended(launch(2, *flags, script=TESTS.parent / "grpo.py"))
    assert job["status"] != 0 and job["seconds"] < 60, job["output"]
    assert job["output"].count("error: --model") == 1, job["output"]


@mutant(
    "prompts that both ranks sample",
    "plainrl/ranks.py",
    "slice(count * RANK // WORLD_SIZE, count * (RANK + 1) // WORLD_SIZE)",
    "slice(0, count * (RANK + 1) // WORLD_SIZE)",
)
@pytest.mark.parametrize("ranks, count", [(1, 5), (3, 0), (3, 2), (4, 10)])
def test_ranks_share_everything_once(ranks, count, monkeypatch):
    """Catches prompts that no rank samples, or two, and a rank with most of the work."""
    monkeypatch.setattr(ranks_module, "WORLD_SIZE", ranks)
    parts = []
    for rank in range(ranks):
        monkeypatch.setattr(ranks_module, "RANK", rank)
        parts.append(list(range(count))[ranks_module.share(count)])
    assert sum(parts, []) == list(range(count)) and max(map(len, parts)) - min(map(len, parts)) <= 1


@mutant("statistics of one rank", "plainrl/ranks.py", "for each in gather([sums]):", "for each in [sums]:")
def test_sums_of_all_ranks(monkeypatch):
    """Catches statistics of one rank, and keys that only another rank has."""
    monkeypatch.setattr(ranks_module, "gather", lambda things: [*things, Counter(tokens=2, gap=0.5)])
    assert ranks_module.total(Counter(tokens=1, kl=3.0)) == Counter(tokens=3, gap=0.5, kl=3.0)


@pytest.mark.parametrize("module, flags", [(evaluation, {"model": "models/tiny"}), (make_tiny, {})])
def test_scripts_of_one_process_refuse_others(module, flags, monkeypatch):
    """Catches ranks that all write the same folder."""
    monkeypatch.setattr(ranks_module, "WORLD_SIZE", 2)
    with pytest.raises(
        SystemExit, match=rf"{module.__name__.split('.')[-1]}.py runs in one process; .* without torchrun"
    ):
        module.main(module.Args(**flags))
