"""Tests of plainrl/workers.py: the processes that compare and score answers."""

import contextlib
import os
import re
import shutil
import signal
import site
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from mutants import mutant

from plainrl import workers
from plainrl.grading import is_error
from plainrl.screen import or_fail
from plainrl.tasks import Grade
from plainrl.workers import ask_worker


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """A busy machine must not turn a verdict into a timeout; the tests of the limit set their own."""
    monkeypatch.setattr(workers, "GRADE_SECONDS", 60.0)
    monkeypatch.setattr(workers, "_hanging", set())
    monkeypatch.setattr(workers, "_judged", {"0.5"})
    monkeypatch.setattr(workers, "_broken", {})


# sympy looks for an antiderivative for minutes
HANGS = "\\int_0^1 \\frac{\\sin(x^7+\\sqrt{x^5+1})}{\\ln(x^3+2)+e^{x^2}}\\,dx"


def math(gold: str, answer: str | None) -> tuple[float, str]:
    return ask_worker({"kind": "math", "gold": gold, "answer": answer})


def live_workers() -> list:
    """Two grading workers for mathematics, started if need be and idle."""
    taken = [workers._take("math"), workers._take("math")]
    workers._idle.extend(taken)
    return taken


def test_hanging_answer_is_stopped_and_the_next_one_graded(monkeypatch):
    """Catches a completion that keeps sympy busy for ever and costs more than its limit, and a limit that is
    read once only."""
    live_workers()
    monkeypatch.setattr(workers, "GRADE_SECONDS", 1.0)
    start = time.monotonic()
    assert math("42", HANGS) == (0.0, "timeout") and is_error(Grade(False, 0.0, HANGS, "timeout"))
    assert 0.9 < time.monotonic() - start < 4
    monkeypatch.setattr(workers, "GRADE_SECONDS", 60.0)
    assert math("1/2", "0.5") == math("1/2", "0.5") == (1.0, "")


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
        "assert not {'torch', 'transformers'} & sys.modules.keys()\n"  # what a worker imports
        "workers.GRADE_SECONDS = 60\n"
        "problem = tasks.Problem('', '2x')\n"
        "print(tasks.load_task('jsonl:mine.jsonl').grade('so \\\\boxed{x+x}', problem).why)\n"
        "import math_verify\n"
        "print(len(workers._all))\n"
    )
    (elsewhere / "mine.jsonl").write_text('{"prompt": "half?", "answer": "0.5"}\n')
    command = [sys.executable, str(copy / "fork.py")]
    assert subprocess.check_output(command, cwd=elsewhere, text=True, timeout=120).endswith("correct\n1\n")


@mutant(
    "pipes of a lost worker stay open",
    "plainrl/workers.py",
    "            pipe.close()",
    "            pass",
)
def test_killed_idle_workers_cost_nothing():
    """Catches a verdict lost because something else killed the workers between two answers, and two files
    and a folder left behind for each: a long run would have no more of them."""
    killed = live_workers()
    pipes = [pipe for worker in killed for pipe in (worker.process.stdin, worker.process.stdout)]
    for worker in killed:
        worker.process.kill()
        worker.process.wait()
    assert [math("1/2", "0.5") for _ in range(3)] == [(1.0, "")] * 3
    assert not {worker.pid for worker in live_workers()} & {worker.pid for worker in killed}
    assert all(pipe.closed for pipe in pipes) and not any(os.path.exists(worker.folder) for worker in killed)
    assert not set(map(id, killed)) & set(map(id, workers._all))


def test_killed_busy_worker_costs_one_answer():
    """Catches a killed worker that costs more than the answer under way, or that answer not counted as a
    crash."""
    busy, verdicts = live_workers(), []
    thread = threading.Thread(target=lambda: verdicts.append(math("42", HANGS)))
    thread.start()
    while set(map(id, busy)) <= set(map(id, workers._idle)):
        time.sleep(0.01)
    time.sleep(0.2)
    for worker in busy:
        worker.process.kill()
    thread.join(30)
    assert verdicts == [(0.0, "crash")] and is_error(Grade(False, 0.0, HANGS, "crash"))
    for worker in busy:
        worker.process.wait()
    assert [math("1/2", "0.5") for _ in range(3)] == [(1.0, "")] * 3


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
        assert math("0.5", "\\frac{1}{2}") == (1.0, "")
    assert {worker.pid for worker in live_workers()} == pids and len(pids) == 2


@pytest.mark.skipif(not os.path.exists("/proc/self/limits"), reason="reads Linux's /proc")
def test_worker_memory_is_limited():
    """Catches a completion that makes sympy take the machine's memory instead of 4 GiB."""
    for worker in live_workers():
        with open(f"/proc/{worker.pid}/limits") as limits:
            assert re.search(r"Max address space +4294967296 +4294967296", limits.read())


def raises(error: Exception):
    """A function that raises it, whatever it is called with."""

    def function(*args, **kwargs):
        raise error

    return function


@mutant(
    "traceback of a worker that does not start",
    "plainrl/screen.py",
    "except (ValueError, WorkerError) as error:",
    "except ValueError as error:",
)
@mutant(
    "traceback where a worker's folder has no room",
    "plainrl/workers.py",
    "except OSError as error:  #",
    "except EOFError as error:  #",
)
def test_worker_that_cannot_start_says_so(monkeypatch):
    """Catches a missing math-verify, or a full disk, that makes every answer a crash and every gold answer
    unreadable, in silence; and a traceback."""
    monkeypatch.setattr(workers, "_idle", [])
    monkeypatch.setattr(workers.sys, "executable", shutil.which("false"))
    for _ in range(2):  # and the slot comes back
        with pytest.raises(SystemExit, match="^error: the grading worker .*not start.*plainrl.algebra"):
            or_fail(math, "1/2", "0.5")
    monkeypatch.setattr(workers.tempfile, "mkdtemp", raises(OSError(28, "No space left on device")))
    with pytest.raises(workers.WorkerError, match="does not start .*No space left"):
        math("1/2", "0.5")


def test_ctrl_c_reaches_the_run_and_not_the_graders():
    """Catches graders that a terminal's Ctrl-C, sent to the whole process group, kills in the middle of an
    answer: the step that is finished afterwards would get rewards of 0."""
    assert all(os.getpgid(worker.pid) != os.getpgid(0) for worker in live_workers())


@pytest.mark.skipif(not os.path.exists("/proc/self/environ"), reason="reads Linux's /proc")
@mutant(
    "workers know the environment",
    "plainrl/workers.py",
    "env=_FIXED | {",
    "env=os.environ | {",
)
@mutant(
    "a worker's time begins before it is ready",
    "plainrl/workers.py",
    'ready, _, late = _converse(worker, "", START_SECONDS)',
    'ready, _, late = _converse(worker, "", GRADE_SECONDS)',
)
def test_worker_starts_with_nothing_and_outside_the_limit(monkeypatch):
    """Catches a worker that knows the token of the hub, or where the run lies, and a start-up on a busy
    machine that makes right answers time out."""
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setattr(workers, "_WORKER", "import time; time.sleep(0.6); " + workers._WORKER)
    monkeypatch.setattr(workers, "GRADE_SECONDS", 0.5)
    monkeypatch.setattr(workers, "_idle", idle := [])
    assert math("1/2", "0.5") == (1.0, "")
    knows = Path(f"/proc/{idle[0].pid}/environ").read_text()
    assert "secret" not in knows and "HOME=" not in knows and "LANG=C.UTF-8" in knows
    assert f"PYTHONUSERBASE={site.getuserbase()}" in knows  # for packages of pip install --user
    assert not os.path.exists(os.readlink(f"/proc/{idle[0].pid}/cwd"))  # an empty folder, gone already
    workers._stop(idle[0])


@pytest.mark.skipif(sys.platform != "linux", reason="the system ends them at once on Linux only")
def test_workers_end_with_a_killed_run():
    """Catches workers that compute on for ever after the run was killed, one more pair at each restart."""
    code = (
        "import sys, threading, time; sys.path.insert(0, sys.argv[1]); from plainrl import workers as w\n"
        f"ask = lambda: w.ask_worker({{'kind': 'math', 'gold': '42', 'answer': {HANGS!r}}})\n"
        "threading.Thread(target=ask).start()\n"
        "while not w._all or w._missing is None: time.sleep(0.01)\n"
        "time.sleep(0.2); print(w._all[0].pid, flush=True)\n"
    )
    command = [sys.executable, "-c", code, str(Path(workers.__file__).parents[1])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as run:
        pid = int(run.stdout.readline())
        run.kill()
    for _ in range(200):
        try:
            if "Z" in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]:
                break
        except OSError:
            break
        time.sleep(0.02)
    else:
        os.kill(pid, signal.SIGKILL)
        pytest.fail("it computes on")


@mutant(
    "hanging answers are tried again",
    "plainrl/workers.py",
    "    if _known_to_hang(request):",
    "    if False:",
)
@mutant(
    "who hangs is not told",
    "plainrl/workers.py",
    "        if gold not in _hanging:\n            _hanging.add(answer)",
    "        _hanging.add(answer)",
)
@mutant(
    "a busy machine is a hanging answer",
    "plainrl/workers.py",
    'if why == "timeout" and cpu > GRADE_SECONDS / 2:',
    'if why == "timeout":',
)
def test_hanging_answers_cost_their_time_once(monkeypatch):
    """Catches votes over pairs of hanging answers, each pair twice for its full time, and an answer that is
    taken to hang because it was compared with one that does, or because the machine was busy once."""
    tried = []

    def ask(worker, request: dict) -> tuple[float, str, str, float]:
        tried.append((request["gold"], request["answer"]))
        if any("^" in str(text) for text in tried[-1]):
            return 0.0, "timeout", "compared", 60.0
        return 1.0, "", "compared", 0.1

    idle = SimpleNamespace(process=SimpleNamespace(poll=lambda: None))
    monkeypatch.setattr(workers, "_ask", ask)
    monkeypatch.setattr(workers, "_idle", [])
    monkeypatch.setattr(workers, "_take", lambda purpose: idle)
    assert math("9^9", "7/8") == (0.0, "timeout")  # the answers of two samples, neither known
    assert tried == [("9^9", "7/8"), ("0.5", "9^9")]
    assert math("7/8", "9^9") == math("9^9", "x") == math("3", "9^9") == (0.0, "timeout")
    assert len(tried) == 2
    assert math("7/8", "0.875") == (1.0, "")
    assert math("0.875", "8^8") == math("8^8", "0.875") == math("2", "8^8") == (0.0, "timeout")
    assert math("0.875", "7/8") == (1.0, "")
    assert len(tried) == 5
    busy = [(0.0, "timeout", "compared", 0.01), (1.0, "", "compared", 0.01)]
    monkeypatch.setattr(workers, "_ask", lambda worker, request: busy.pop(0))
    assert [math("3/4", "0.75"), math("3/4", "0.75")] == [(0.0, "timeout"), (1.0, "")]


@mutant(
    "a worker is for every purpose",
    "plainrl/workers.py",
    "elif worker.purpose == purpose and found is None:",
    "elif found is None:",
)
def test_a_worker_has_one_purpose(monkeypatch):
    """Catches a worker that scored a reasoning-gym task and then judges another one or mathematics, and
    processes that pile up when many tasks are tried."""
    started = []

    def start(purpose: str):
        process = subprocess.Popen(["true"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        monkeypatch.setattr(process, "poll", lambda: None)
        started.append(workers.Worker(process, purpose, "/nowhere"))
        return started[-1]

    monkeypatch.setattr(workers, "_start", start)
    monkeypatch.setattr(workers, "_kill", lambda worker: None)
    monkeypatch.setattr(workers, "_idle", idle := [])
    for purpose in ("math", "gym:a", "gym:b", "math", "gym:a", "gym:c", "gym:d", "gym:e"):
        worker = workers._take(purpose)
        assert worker.purpose == purpose
        idle.append(worker)
        assert len(idle) <= workers.KEPT
    assert [worker.purpose for worker in started] == ["math", "gym:a", "gym:b", "gym:c", "gym:d", "gym:e"]
    for worker in idle:
        workers._stop(worker)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no fork")
@mutant(
    "workers are shared with a forked process",
    "plainrl/workers.py",
    "    os.register_at_fork(after_in_child=_begin_after_fork)",
    "    pass",
)
def test_forked_process_asks_workers_of_its_own():
    """Catches two processes that talk to one worker and read each other's verdicts, and a worker that
    outlives the run because a forked process holds its input open."""
    held = {worker.process.stdin.fileno() for worker in live_workers()}
    child = os.fork()
    if child == 0:
        try:
            shared = bool(workers._idle or workers._all)
            for descriptor in held:
                with contextlib.suppress(OSError):  # closed
                    shared |= not os.path.samestat(os.fstat(descriptor), os.stat(os.devnull))
        finally:
            os._exit(int(shared))
    assert os.waitpid(child, 0)[1] == 0
    assert math("1/2", "0.5") == (1.0, "")
