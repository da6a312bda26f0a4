"""Runs of the training scripts that were killed with SIGKILL and resumed equal the uninterrupted ones to the
last bit."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from resume_driver import SCRIPTS, points_of
from toys import column, records

NAMES = [script.__name__.split(".")[-1] for script, _ in SCRIPTS]
POINTS = {  # what the kill must have left: the last checkpoint, complete lines of metrics.jsonl, and folders
    "before the first checkpoint": (None, 1, ["best"]),
    "in the middle of a log line": (2, 3, ["best", "last"]),
    "during a step": (2, 3, ["best", "last"]),
    "while sampling": (2, 3, ["best", "last"]),
    "while a checkpoint is written": (2, 5, ["best", "last", "last.tmp"]),
    "between the renames": (None, 5, ["best", "last.old", "last.tmp"]),
    "after last, before best": (4, 5, ["best", "last", "last.old"]),
}


@pytest.fixture(scope="module")
def killed_runs(toy_model, tmp_path_factory) -> Path:
    """What resume_driver.py leaves: each script's uninterrupted run, and for each of its points one killed
    there and resumed."""
    out = tmp_path_factory.mktemp("killed")
    command = [sys.executable, str(Path(__file__).with_name("resume_driver.py")), toy_model, str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-5000:]
    return out


@pytest.mark.parametrize("script, point", [(name, point) for name in NAMES for point in points_of(name)])
def test_killed_and_resumed_run_equals_the_uninterrupted_one(killed_runs, script, point):
    """Catches a resume off by one, without optimizer, score or tokens, with lines twice, or from a
    half-written folder."""
    report = json.loads((killed_runs / script / "report.json").read_text())
    assert (
        report["uninterrupted"] == 0
        and report[point]["killed"] == -signal.SIGKILL
        and report[point]["resumed"] == 0
    )
    checkpoint, log_lines, folders = POINTS[point]
    between = report[point]["between"]
    if script == "h1_curriculum" and folders != ["best"]:  # it also keeps the best checkpoint of the stage
        folders = sorted([*folders, "stage"])
    assert between == {
        "checkpoint": checkpoint,
        "log_lines": log_lines,
        "half_line": "log line" in point,
        "folders": folders,
    }

    ours, whole = killed_runs / script / point, killed_runs / script / "uninterrupted"
    assert records(ours) == records(whole)
    assert [record["step"] for record in records(whole)] == [0, 1, 2, 3, 4, 5, 5]
    for name in ("samples.jsonl", "groups.jsonl"):  # the driver has no scores of dev samples
        assert (ours / name).read_text() == (whole / name).read_text(), name
    for folder in ("last", "best", "final"):
        assert (ours / folder / "model.safetensors").read_bytes() == (
            whole / folder / "model.safetensors"
        ).read_bytes()
    assert (ours / "last" / "state.json").read_text() == (whole / "last" / "state.json").read_text()
    optimizers = [torch.load(path / "last" / "optimizer.pt")["state"] for path in (ours, whole)]
    for ours_of_one, whole_of_one in zip(optimizers[0].values(), optimizers[1].values(), strict=True):
        assert all(
            torch.equal(ours_of_one[name], whole_of_one[name]) for name in ("step", "exp_avg", "exp_avg_sq")
        )
    stage = {"stage"} if script == "h1_curriculum" else set()
    folders = {path.name for path in ours.iterdir() if path.is_dir()}
    assert folders == {"last", "last.old", "best", "final"} | stage  # nothing half-written stays


def test_resume_rehearsal_has_refills_and_state(killed_runs):
    """Catches a rehearsal in which papers/dapo.py never refilled, the weights never moved, or there was no
    state of an algorithm to keep."""
    folder = killed_runs / "dapo" / "uninterrupted"
    assert max(column(folder, "dapo/rounds")) > 1
    assert column(folder, "optim/grad_norm")[-1] > 0
    assert max(column(killed_runs / "guide" / "uninterrupted", "guide/frac_guided")) > 0
    assert column(killed_runs / "siren" / "uninterrupted", "siren/anchor")[-1] > 0
    assert column(killed_runs / "h1_curriculum" / "uninterrupted", "h1/stage") == [1, 1, 2, 2, 3]
    assert len(set(column(killed_runs / "adaptive_bonus" / "uninterrupted", "bonus/weight"))) == 5
