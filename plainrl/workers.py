"""Worker processes that compare and score answers, each with a wall-clock limit.

So a completion can be wrong but can never stop or stall a run. Workers are separate Python processes that
read one JSON request a line and write one JSON answer a line. They are started when first needed and kept;
one that hangs is killed at the limit, and the next request starts another.
"""

import atexit
import functools
import json
import queue
import subprocess
import sys
import threading
from pathlib import Path

from plainrl.tasks import load_task

GRADE_SECONDS = 5.0  # wall-clock limit for one answer

WORKERS = 2  # at the same time

_workers: queue.Queue = queue.Queue()
for _ in range(WORKERS):
    _workers.put(None)

# Python puts the working directory first on a `-c` program's path; -P prevents that, since a file there may
# be called like a module that the worker needs. The folder above plainrl/ comes first instead, wherever
# plainrl/ was copied to.
_WORKER = "import sys; sys.path.insert(0, sys.argv[1]); import plainrl.workers as w; w.worker_main()"
_ABOVE_PLAINRL = str(Path(__file__).resolve().parents[1])


def _start_worker() -> subprocess.Popen:
    worker = subprocess.Popen(
        [sys.executable, "-P", "-c", _WORKER, _ABOVE_PLAINRL],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,  # Ctrl-C is for the run, which finishes its step with working graders
    )
    atexit.register(worker.kill)
    if not worker.stdout.readline():  # "ready": the imports do not count against the first answer
        raise RuntimeError(
            "the grading worker does not start; see what `python -c 'import math_verify'` says"
        )
    return worker


def ask_worker(request: dict) -> tuple[float, str]:
    """Send one request to a grading worker. Returns (score, why): 0 and a reason when it hangs or dies."""
    worker = _workers.get()
    try:
        if worker is None or worker.poll() is not None:
            worker = _start_worker()
        timed_out = threading.Event()
        timer = threading.Timer(GRADE_SECONDS, lambda: (timed_out.set(), worker.kill()))
        timer.start()
        try:
            worker.stdin.write(json.dumps(request) + "\n")
            worker.stdin.flush()
            reply = worker.stdout.readline()
        except OSError:
            reply = ""
        timer.cancel()
        timer.join()  # from here on it cannot fire and kill a worker that the next request gets
        if reply and not timed_out.is_set():
            return tuple(json.loads(reply))
        worker.kill()
        worker.wait()
        worker = None
        return 0.0, "timeout" if timed_out.is_set() else "crash"
    finally:
        _workers.put(worker)


def worker_main() -> None:
    """The loop of a grading worker."""
    _limit_memory()
    import math_verify  # here, because it takes a second, and the process that asks does not need it

    replies, sys.stdout = sys.stdout, sys.stderr  # whatever a scorer prints must not mix with the replies
    print("ready", file=replies, flush=True)
    parse = functools.partial(math_verify.parse, parsing_timeout=None)
    load_once = functools.cache(load_task)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if request["kind"] == "gym":
                task = load_once(request["spec"])
                score = task.score(request["seed"], request["position"], request["prompt"], request["answer"])
            else:
                gold = f"\\boxed{{{request['gold']}}}"
                if (
                    request["answer"] is None
                ):  # is this gold answer an expression? Else it would be compared as a string
                    score = float(bool(parse(gold, fallback_mode="no_fallback")))
                else:
                    answer = f"\\boxed{{{request['answer']}}}"
                    score = float(math_verify.verify(parse(gold), parse(answer), timeout_seconds=None))
            reply = [score, ""]
        except Exception as error:  # adversarial text may raise anything inside sympy; it is reported
            reply = [0.0, f"error: {type(error).__name__}: {error}"[:200]]
        print(json.dumps(reply), file=replies, flush=True)


def _limit_memory() -> None:
    """Hold this process to 4 GiB, where the system can: an answer may make sympy allocate without end."""
    try:
        import resource  # Windows has none

        resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
    except (ImportError, ValueError, OSError):  # macOS refuses it
        pass
