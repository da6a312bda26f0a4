"""Worker processes that compare and score answers, each answer with a time limit.

So a completion can be wrong but can never stop, stall or deceive a run. Workers are separate Python processes
that read one JSON request a line and write JSON lines. They start with an empty environment in an empty
folder, and give up all rights before the first answer (plainrl/sandbox.py). They are kept; one that hangs is
killed at the limit, and the next request starts another.

A worker has one purpose: mathematics, or one reasoning-gym task. Where programs make the questions of a task,
they run here (`plainrl.gym.RUNS_PROGRAMS`). Some scorers of reasoning-gym evaluate what they are given. They
get plain answers only (plainrl/plain_answers.py), and each in a child process of the worker that ends with
it: whatever an answer may do there, the worker that judges the next one never ran it.
"""

import atexit
import contextlib
import io
import json
import math
import os
import re
import select
import shutil
import signal
import site
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from plainrl import sandbox
from plainrl.plain_answers import evaluates, is_plain
from plainrl.tasks import load_task

GRADE_SECONDS = 5.0  # wall-clock limit for one answer
START_SECONDS = 120.0  # and for starting a worker, or making the question that an answer belongs to

WORKERS = 2  # at the same time
KEPT = 4  # that wait for the next request; others are ended, the one that waits longest first
REMEMBERED = 10_000  # answers that are known to hang

# Python puts the working directory first on a `-c` program's path; -P prevents that, since a file there may
# be called like a module that the worker needs. The folder above plainrl/ comes first instead, wherever
# plainrl/ was copied to.
_WORKER = "import sys; sys.path.insert(0, sys.argv[1]); import plainrl.workers as w; w.worker_main()"
_ABOVE_PLAINRL = str(Path(__file__).resolve().parents[1])

# All that a worker's environment has of ours: what Python needs to find its libraries, and its hashes.
_PASSED = (
    "PYTHONHASHSEED", "PYTHONPATH", "PYTHONHOME", "PYTHONNOUSERSITE", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH",
    "SYSTEMROOT",
)  # fmt: skip
_FIXED = {"PATH": os.defpath, "LANG": "C.UTF-8", "PYTHONUTF8": "1"} | dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"
)
# Packages of `pip install --user`: Python looks for them in the home, of which a worker knows nothing.
_FIXED["PYTHONUSERBASE"] = site.getuserbase()


class WorkerError(RuntimeError):
    """A grading worker does not start. No answer is to blame; the message says what to look at."""


@dataclass
class Worker:
    """A process, what it is for, and the empty folder it runs in."""

    process: subprocess.Popen
    purpose: str
    folder: str
    cpu: float = 0.0  # processor seconds that it had used at its last reply
    has_children: bool = False  # which score answers, and are ended by it when they take too long

    @property
    def pid(self) -> int:
        return self.process.pid


def _begin() -> None:
    """The state of this process: no workers yet."""
    global _slots, _lock, _idle, _all, _starter, _broken, _hanging, _judged, _missing
    _slots = threading.BoundedSemaphore(WORKERS)
    _lock = threading.Lock()
    _idle = []  # workers, the one that has waited longest first
    _all = []
    _starter = ThreadPoolExecutor(1)  # a thread that stays: a worker ends with the thread that made it
    _broken = {}  # why a purpose has no workers
    _hanging = set()  # texts, and pairs of texts, that took all their time once
    _judged = {"0.5"}  # texts that did not
    _missing = None  # protections that do not hold, as a worker says


_begin()


def _begin_after_fork() -> None:
    """A forked process has no workers: those it knows of belong to its parent."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for worker in _all:  # a worker sees the end of its parent only when nobody else holds its input
        with contextlib.suppress(ValueError):  # closed already
            os.dup2(nowhere, worker.process.stdin.fileno())
            os.dup2(nowhere, worker.process.stdout.fileno())
        worker.process.returncode = 0  # not our child
    os.close(nowhere)
    _begin()


if hasattr(os, "register_at_fork"):  # Windows has none
    os.register_at_fork(after_in_child=_begin_after_fork)


# --- asking -------------------------------------------------------------------------------------------------


def ask_worker(request: dict) -> tuple[float, str]:
    """Send one request to a grading worker. Returns (score, why): 0 and a reason when it hangs or dies.

    A gym request without an answer gets the question and its answer in place of the score.

    An answer that hung is not tried again. Raises WorkerError when the worker does not start.
    """
    purpose = request["spec"] if request["kind"] == "gym" else "math"
    if _known_to_hang(request):
        return 0.0, "timeout"
    with _slots:
        if purpose in _broken:
            return 0.0, _broken[purpose]
        worker = _take(purpose)
        if worker is None:
            return 0.0, _broken[purpose]
        try:
            score, why, stage, cpu = _ask(worker, request)
        except BaseException:  # Ctrl-C: its reply would be taken for that to the next request
            _stop(worker)
            raise
        if worker.process.poll() is None:
            with _lock:
                _idle.append(worker)
    if why == "timeout" and cpu > GRADE_SECONDS / 2:  # else it is the machine that was busy
        _remember(request, stage)
    elif request["kind"] == "math" and request.get("answer") is not None and why not in ("timeout", "crash"):
        _judged.update((request.get("gold", ""), request["answer"]))
        if len(_judged) > REMEMBERED:
            _judged.clear()
            _judged.add("0.5")
    return score, why


def _ask(worker: Worker, request: dict) -> tuple[float, str, str, float]:
    """Score, reason, the last stage that the worker reached, and the processor seconds that it took.

    A worker that does not answer in time is ended.
    """
    line = json.dumps(request | {"seconds": GRADE_SECONDS}) + "\n"
    if request["kind"] == "gym":
        reply, stage, late = _converse(worker, line, START_SECONDS, until="prepared")
        if late:
            _stop(worker)
            return 0.0, f"error: its question is not made after {START_SECONDS:.0f} s", stage, 0.0
        if stage == "prepared":
            slack = 5.0 if worker.has_children else 0.0
            reply, _, late = _converse(worker, "", GRADE_SECONDS + slack)
    else:
        reply, stage, late = _converse(worker, line, GRADE_SECONDS)
    if reply is not None:
        score, why, cpu = reply
        worker.cpu += cpu
        return score, why, stage, cpu
    cpu = _stop(worker) - worker.cpu
    return 0.0, "timeout" if late else "crash", stage, cpu


def _converse(worker: Worker, line: str, seconds: float, until: str = "") -> tuple[list | None, str, bool]:
    """Send a line. Read stages, which are texts, until one that is asked for or the reply, which is a list.

    Returns the reply (None: there is none), the last stage, and whether the time was over.
    """
    late, stage = threading.Event(), ""
    timer = threading.Timer(seconds, lambda: (late.set(), _kill(worker)))
    timer.start()
    try:
        worker.process.stdin.write(line)
        worker.process.stdin.flush()
        while text := worker.process.stdout.readline():
            said = json.loads(text)
            if isinstance(said, list):
                return (None if late.is_set() else said), stage, late.is_set()
            stage = said
            if stage == until:
                break
    except (OSError, ValueError):  # it is gone, or what it wrote breaks off
        pass
    finally:
        timer.cancel()
        timer.join()  # from here on it cannot fire and kill a worker that the next request gets
    return None, stage, late.is_set()


# --- answers that hang --------------------------------------------------------------------------------------


def _marks(request: dict) -> list:
    """What may be known to hang in a request: each text by itself, and both together."""
    if request["kind"] == "gym":
        return [tuple(request.get(key) for key in ("spec", "seed", "position", "answer"))]
    gold, answer = request.get("gold"), request.get("answer")
    return [gold, answer, frozenset((gold, answer))] if answer is not None else [gold]


def _known_to_hang(request: dict) -> bool:
    return any(mark in _hanging for mark in _marks(request))


def _remember(request: dict, stage: str) -> None:
    """Remember which text hung. In doubt, which is when they are compared, it is not the one that was judged
    before; of two new ones each is compared with a number."""
    if len(_hanging) > REMEMBERED:
        _hanging.clear()
    marks = _marks(request)
    if len(marks) == 1:
        _hanging.add(marks[0])
        return
    gold, answer, both = marks
    _hanging.add(both)
    if stage == "gold":
        _hanging.add(gold)
    elif stage == "answer":
        _hanging.add(answer)
    elif gold not in _judged and answer not in _judged:
        ask_worker({"kind": "math", "gold": "0.5", "answer": gold})  # remembers it, or that it was judged
        if gold not in _hanging:
            _hanging.add(answer)
    elif answer not in _judged:
        _hanging.add(answer)
    elif gold not in _judged:
        _hanging.add(gold)


# --- starting and ending ------------------------------------------------------------------------------------


def _take(purpose: str) -> Worker | None:
    """A worker for this purpose: one that waits, else a new one. None when it cannot start: see `_broken`."""
    with _lock:
        found = None
        for worker in list(_idle):
            if worker.process.poll() is not None:  # something else killed it
                _idle.remove(worker)
                _stop(worker)
            elif worker.purpose == purpose and found is None:
                found = worker
        if found is not None:
            _idle.remove(found)
            return found
        while len(_idle) >= KEPT:
            _stop(_idle.pop(0))
    try:
        return _start(purpose)
    except OSError as error:  # no room for its folder, too many processes or open files
        raise WorkerError(f"the grading worker for {purpose} does not start ({error})") from None


def _start(purpose: str) -> Worker | None:
    global _missing
    folder = tempfile.mkdtemp(prefix="plainrl-worker-")
    try:
        process = _starter.submit(
            subprocess.Popen,
            [sys.executable, "-P", "-c", _WORKER, _ABOVE_PLAINRL, purpose],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            cwd=folder,
            env=_FIXED | {name: os.environ[name] for name in _PASSED if name in os.environ},
            start_new_session=True,  # Ctrl-C is for the run, which finishes its step with working graders
        ).result()
    except BaseException:
        os.rmdir(folder)
        raise
    worker = Worker(process, purpose, folder)
    _all.append(worker)
    # The imports, and making the task, do not count against the first answer.
    ready, _, late = _converse(worker, "", START_SECONDS)
    if ready is None:
        _stop(worker)
        if late:  # the next answer tries again
            raise WorkerError(
                f"the grading worker for {purpose} is not ready after {START_SECONDS:.0f} s; "
                "is the machine busy?"
            )
        modules = "plainrl.algebra, math_verify" if purpose == "math" else "plainrl.gym, reasoning_gym"
        raise WorkerError(
            f"the grading worker for {purpose} does not start; see what "
            f"`python -c 'import {modules}'` says in {_ABOVE_PLAINRL}"
        )
    missing, why, worker.cpu, worker.has_children = ready
    if why:
        _stop(worker)
        _broken[purpose] = why
        return None
    with _lock:
        new, _missing = _missing is None, missing
    if new and missing:
        from plainrl import screen  # here, because it takes torch along, which a grading worker has not

        screen.say(f"grading workers: this machine does not lock away {', '.join(missing)}")
    return worker


def _kill(worker: Worker) -> None:
    """End it and its children."""
    if worker.process.returncode is not None:
        return  # it is gone, and its number may be another's
    with contextlib.suppress(OSError):
        if hasattr(os, "killpg"):
            os.killpg(worker.pid, signal.SIGKILL)
        else:
            worker.process.kill()


def _stop(worker: Worker) -> float:
    """End it and leave nothing behind. Returns the processor seconds that it used, where that can be told."""
    _kill(worker)
    cpu, process = math.inf, worker.process
    if process.returncode is None and hasattr(os, "wait4"):
        with contextlib.suppress(ChildProcessError):
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            cpu = usage.ru_utime + usage.ru_stime
    process.wait()
    for pipe in (process.stdin, process.stdout):
        with contextlib.suppress(OSError):
            pipe.close()
    shutil.rmtree(worker.folder, ignore_errors=True)
    if worker in _all:
        _all.remove(worker)
    return cpu


@atexit.register
def _stop_all() -> None:
    for worker in list(_all):
        _stop(worker)


# --- the worker ---------------------------------------------------------------------------------------------


def worker_main() -> None:
    """The loop of a grading worker."""
    sandbox.die_with_parent()
    with contextlib.suppress(OSError):  # Windows
        os.rmdir(os.getcwd())  # a folder without a name stays empty, and is gone when this process is
    replies, sys.stdout = sys.stdout, sys.stderr  # whatever a scorer prints must not mix with the replies
    requests, sys.stdin = sys.stdin, io.StringIO()  # and a program that asks for input must not read requests

    def say(said) -> None:
        print(json.dumps(said), file=replies, flush=True)

    purpose = sys.argv[2]
    task, risky = None, False
    if purpose == "math":
        from plainrl.algebra import sympy_algebra

        sympy_algebra("equal", "\\frac{1}{2}+x", "0.5")  # imports sympy, which takes a second
    else:
        try:
            task = load_task(purpose)
            task = getattr(task, "base", task)  # the questions that a chained task is made of
            risky = evaluates(task.dataset(0), task.dataset_name)
        except Exception as error:
            say([[], _reason(error), 0.0, False])
            return
    children = risky and hasattr(os, "fork")
    missing = sandbox.lock(may_fork=children)
    if task is not None:
        task.is_locked_away = True
    say([missing, "", time.process_time(), children])
    for line in requests:
        request, began = json.loads(line), time.process_time()
        cpu = 0.0
        try:
            if task is None:
                _end_after(request["seconds"])
                score, why = _math(request, say), ""
            else:
                _end_after(START_SECONDS)
                score, why, cpu = _gym(request, task, risky, say)
        except Exception as error:  # adversarial text may raise anything inside sympy; it is reported
            score, why = 0.0, _reason(error)
        _end_after(0)
        say([score, why, cpu + time.process_time() - began])


def _math(request: dict, say) -> float:
    from plainrl import equality
    from plainrl.algebra import sympy_algebra

    gold, answer = request["gold"], request["answer"]
    say("gold")
    if answer is None:
        return float(equality.readable(gold, sympy_algebra))
    equality.prepare(gold)
    say("answer")
    equality.prepare(answer)
    say("compared")
    return float(equality.same(gold, answer, sympy_algebra))


def _gym(request: dict, task, risky: bool, say) -> tuple[float | tuple[str, str] | None, str, float]:
    """Score, reason, and the processor seconds of a child. Without an answer, the question in place of the
    score."""
    from plainrl.gym import fixed_part

    if request["answer"] is None:  # the question is asked for
        seed = request["seed"]
        entry = task.new_entry(task.dataset(seed), seed, request["position"])
        return fixed_part(entry), task.last_error if entry is None else "", 0.0
    place = request["seed"], request["position"], request["prompt"]
    answer, entry = request["answer"], task.scored_entry(*place)
    say("prepared")
    _end_after(request["seconds"])
    if not risky:
        return _points(task.score(*place, answer)), "", 0.0
    if not is_plain(answer, entry, task.dataset_name):
        words = re.fullmatch(r"[\w\s.,:-]*", answer)
        return 0.0, "" if words else "not plain", 0.0
    if not hasattr(os, "fork"):
        return _points(task.score(*place, answer)), "", 0.0
    return _in_child(request["seconds"], task, place, answer)


def _in_child(seconds: float, task, place: tuple, answer: str) -> tuple[float, str, float]:
    """Score an answer in a child process, which ends with it: nothing that it does outlasts it."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reading)
            sandbox.die_with_parent()
            sandbox.limit_cpu(math.ceil(seconds) + 2)
            sandbox.lock()
            try:
                reply = [_points(task.score(*place, answer)), ""]
            except Exception as error:
                reply = [0.0, _reason(error)]
            os.write(writing, json.dumps(reply).encode())
        finally:
            os._exit(0)
    os.close(writing)
    ready, _, _ = select.select([reading], [], [], seconds)
    text = os.read(reading, 1000) if ready else b""
    os.close(reading)
    os.kill(child, signal.SIGKILL)
    _, _, usage = os.wait4(child, 0)
    cpu = usage.ru_utime + usage.ru_stime
    try:
        score, why = json.loads(text)
        return _points(score), str(why)[:200], cpu
    except (ValueError, TypeError):
        return 0.0, "crash" if ready else "timeout", cpu


def _points(score) -> float:
    """A score as a number. Raises ValueError for none."""
    if not math.isfinite(float(score)):
        raise ValueError(f"the scorer gave {score}")
    return float(score)


def _reason(error: Exception) -> str:
    return f"error: {type(error).__name__}: {error}"[:200]


def _end_after(seconds: float) -> None:
    """The system ends this process after so much processor time and a little more; 0 takes that back.

    The process that asks ends it before that. This is for when that one was killed.
    """
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds and seconds + 2)
