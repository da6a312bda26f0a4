"""Tests of plainrl/workers.py: the processes that compare and score answers."""

import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from queue import Queue

import pytest
from test_grading import box, grade

from plainrl import workers
from plainrl.grading import is_error, is_readable
from plainrl.tasks import Grade
from plainrl.workers import ask_worker


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """A busy machine must not turn a verdict into a timeout; the tests of the limit set their own."""
    monkeypatch.setattr(workers, "GRADE_SECONDS", 60.0)


def live_workers() -> list:
    """Both grading workers, started if need be and idle."""
    for _ in range(2):  # the queue hands them out in turn
        assert ask_worker({"kind": "math", "gold": "0.5", "answer": "1/2"}) == (1.0, "")
    return list(workers._workers.queue)


def test_hanging_answer_is_stopped_and_the_next_one_graded(monkeypatch):
    """Catches a completion that keeps sympy busy for ever and costs more than its limit, and a limit that is
    read once only."""
    live_workers()
    monkeypatch.setattr(workers, "GRADE_SECONDS", 1.0)
    start = time.monotonic()
    verdict = grade(box("9^{9^{9^9}}"), "42")
    assert verdict == Grade(False, 0.0, "9^{9^{9^9}}", "timeout") and is_error(verdict)
    assert 0.9 < time.monotonic() - start < 4
    monkeypatch.setattr(workers, "GRADE_SECONDS", 60.0)
    assert grade(box("0.5"), "1/2").correct and grade(box("0.5"), "1/2").correct


def test_workers_need_plainrl_alone(tmp_path):
    """Catches a worker that is only found from the clone's folder, one that imports what happens to lie in
    the working directory or beside the copy, and a second and gigabytes lost to torch in each."""
    copy, elsewhere = tmp_path / "copy", tmp_path / "elsewhere"
    shutil.copytree(
        Path(workers.__file__).parent, copy / "plainrl", ignore=shutil.ignore_patterns("tiny", "__pycache__")
    )
    for place in (
        copy / "tasks/__init__.py",
        elsewhere / "tasks/__init__.py",
        elsewhere / "queue.py",
        elsewhere / "math_verify.py",
        elsewhere / "plainrl/__init__.py",
    ):
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text("raise ImportError('a foreign module')\n")
    (copy / "fork.py").write_text(
        "import sys\n"
        "from plainrl import tasks, workers\n"
        "workers.GRADE_SECONDS = 60\n"
        "problem = tasks.Problem('', '1/2')\n"
        "print(tasks.load_task('jsonl:mine.jsonl').grade('so \\\\boxed{0.5}', problem).why)\n"
        "import math_verify\n"
        "print(sorted({'torch', 'transformers'} & sys.modules.keys()))\n"
    )
    (elsewhere / "mine.jsonl").write_text('{"prompt": "half?", "answer": "0.5"}\n')
    command = [sys.executable, str(copy / "fork.py")]
    assert subprocess.check_output(command, cwd=elsewhere, text=True, timeout=120) == "correct\n[]\n"


def test_killed_idle_workers_cost_nothing():
    """Catches a verdict lost because something else killed the workers between two answers."""
    killed = live_workers()
    for worker in killed:
        worker.kill()
        worker.wait()
    assert [grade(box("0.5"), "1/2").why for _ in range(3)] == ["correct"] * 3
    assert not {worker.pid for worker in live_workers()} & {worker.pid for worker in killed}


def test_killed_busy_worker_costs_one_answer():
    """Catches a killed worker that costs more than the answer under way, or that answer not counted as a
    crash."""
    busy, verdicts = live_workers(), []
    thread = threading.Thread(target=lambda: verdicts.append(grade(box("9^{9^{9^9}}"), "42")))
    thread.start()
    while workers._workers.qsize() == 2:
        time.sleep(0.01)
    time.sleep(0.2)
    for worker in busy:
        worker.kill()
    thread.join(30)
    assert verdicts == [Grade(False, 0.0, "9^{9^{9^9}}", "crash")] and is_error(verdicts[0])
    for worker in busy:
        worker.wait()
    assert [grade(box("0.5"), "1/2").why for _ in range(3)] == ["correct"] * 3


def test_worker_survives_requests_that_raise():
    """Catches an exception inside a worker that ends it, or that is not a reason to be counted."""
    pids = {worker.pid for worker in live_workers()}
    for request in ({"kind": "math"}, {"kind": "gym", "spec": "chain?horizon=99"}):
        score, why = ask_worker(request)
        assert score == 0.0 and is_error(Grade(False, score, "", why)) and len(why) <= 200
    assert {worker.pid for worker in live_workers()} == pids


def test_workers_are_reused():
    """Catches a worker started per answer, which would cost a second each."""
    pids = {worker.pid for worker in live_workers()}
    for _ in range(6):
        assert grade(box("\\frac{1}{2}"), "0.5").correct
    assert {worker.pid for worker in live_workers()} == pids and len(pids) == 2


@pytest.mark.skipif(not os.path.exists("/proc/self/limits"), reason="reads Linux's /proc")
def test_worker_memory_is_limited():
    """Catches a completion that makes sympy take the machine's memory instead of 4 GiB."""
    for worker in live_workers():
        with open(f"/proc/{worker.pid}/limits") as limits:
            assert re.search(r"Max address space +4294967296 +4294967296", limits.read())


def test_worker_that_cannot_start_says_so(monkeypatch):
    """Catches a missing math-verify that makes every answer a crash and every gold answer unreadable, in
    silence."""
    monkeypatch.setattr(workers, "_workers", Queue())
    workers._workers.put(None)
    monkeypatch.setattr(workers.sys, "executable", shutil.which("false"))
    for _ in range(2):  # and the slot comes back
        with pytest.raises(RuntimeError, match="grading worker does not start.*math_verify"):
            grade(box("0.5"), "1/2")


def test_ctrl_c_reaches_the_run_and_not_the_graders():
    """Catches graders that a terminal's Ctrl-C, sent to the whole process group, kills in the middle of an
    answer: the step that is finished afterwards would get rewards of 0."""
    assert is_readable("1/2")
    started = [
        worker for worker in list(workers._workers.queue) if worker is not None and worker.poll() is None
    ]
    assert started and all(os.getpgid(worker.pid) != os.getpgid(0) for worker in started)
