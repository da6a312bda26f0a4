r"""Is an answer right? The last \boxed{} counts, and it is compared by mathematical equivalence.

Two plain integers are compared here, anything else by math-verify in worker processes with a wall-clock
limit. So a completion can be wrong but can never stop or stall a run.
"""

import atexit
import functools
import json
import queue
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

from plainrl.tasks import Grade, Problem, load_task

GRADE_SECONDS = 5.0  # wall-clock limit for one answer
MAX_ANSWER_CHARS = 1000  # a longer box is not an answer


# --- reading an answer ------------------------------------------------------------------------------------


def last_boxed(text: str) -> str | None:
    r"""Content of the last \boxed{...}, braces balanced. None without a box or when it never closes.

    >>> last_boxed(r"so \boxed{1} or rather \boxed{\frac{1}{2}} apples")
    '\\frac{1}{2}'
    """
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    start += len("\\boxed{")
    depth = 1
    for brace in re.finditer(r"[{}]", text[start:]):
        depth += 1 if brace.group() == "{" else -1
        if depth == 0:
            return text[start : start + brace.start()].strip()
    return None


def plain_integer(text: str) -> int | None:
    """The integer that `text` plainly is, else None.

    Digits are ASCII digits; thousands may have commas where math-verify reads them too.

    >>> plain_integer("-1,000"), plain_integer("007"), plain_integer("1.0"), plain_integer("0,123")
    (-1000, 7, None, None)
    """
    text = text.strip().strip("$").strip()
    if re.fullmatch(r"[-+]?[0-9]{1,100}|-?[1-9][0-9]{0,2}(,[0-9]{3}){1,30}", text):
        return int(text.replace(",", ""))
    return None


def number(text: str) -> Fraction | None:
    """The number that `text` plainly is, as a whole number, a decimal or a fraction, else None.

    >>> number("1,000"), number("2.50"), number("-14951/125"), number("12 eggs")
    (Fraction(1000, 1), Fraction(5, 2), Fraction(-14951, 125), None)
    """
    if plain_integer(text) is not None:
        return Fraction(plain_integer(text))
    text = re.sub(r"(?<=[0-9]),(?=[0-9]{3}(?:[,.]|$))", "", text.strip().strip("$").strip())
    return Fraction(text) if re.fullmatch(r"-?[0-9]{1,20}(\.[0-9]{1,20}|/[1-9][0-9]{0,19})", text) else None


def canonical(answer: str) -> str:
    """One spelling for every plain integer; any other text as it stands.

    >>> canonical(" 1,000 "), canonical("x + 1")
    ('1000', 'x + 1')
    """
    value = plain_integer(answer)
    return answer.strip() if value is None else str(value)


# --- comparing it -----------------------------------------------------------------------------------------


def same_answer(first: str, second: str) -> bool:
    """Are two answers mathematically equivalent?

    Plain integers are compared here, anything else by math-verify, which is not symmetric: one direction is
    enough.
    """
    if plain_integer(first) is not None and plain_integer(second) is not None:
        return plain_integer(first) == plain_integer(second)
    return any(
        ask_worker({"kind": "math", "gold": gold, "answer": answer})[0] == 1.0
        for gold, answer in ((first, second), (second, first))
    )


def is_readable(answer: str) -> bool:
    """Is a gold answer an expression to math-verify? If not, it could only be compared as a string."""
    if plain_integer(answer) is not None:
        return True
    return ask_worker({"kind": "math", "gold": answer, "answer": None})[0] == 1.0


def grade_boxed(completion: str, problem: Problem) -> Grade:
    """Grade the last box against the problem's answer by mathematical equivalence."""

    def score(parsed: str) -> tuple[float, str]:
        ours, gold = plain_integer(parsed), plain_integer(problem.answer)
        if ours is not None and gold is not None:
            return float(ours == gold), ""
        return ask_worker({"kind": "math", "gold": problem.answer, "answer": parsed})

    return grade_box(completion, score)


def grade_box(completion: str, score: Callable[[str], tuple[float, str]]) -> Grade:
    """Grade the last box by `score`, from its content to (score, reason); no reason is an empty one."""
    parsed = last_boxed(completion)
    if not parsed:
        return Grade(False, 0.0, None, "no_box" if parsed is None else "empty_box")
    if len(parsed) > MAX_ANSWER_CHARS:
        return Grade(False, 0.0, None, "too_long")
    points, why = score(parsed)
    return Grade(points == 1.0, points, parsed, why or ("correct" if points == 1.0 else "wrong"))


def grade_all(task, completions: list[str], problems: list[Problem]) -> list[Grade]:
    """Grade in order, several at a time. A grader that raises costs its completion the reward, on record."""

    def grade(completion, problem):
        try:
            return task.grade(completion, problem)
        except Exception as error:  # a user's reward function may raise anything; counted in reward/errors
            return Grade(False, 0.0, None, f"error: {type(error).__name__}: {error}"[:200])

    with ThreadPoolExecutor(_workers.maxsize) as threads:
        return list(threads.map(grade, completions, problems))


def is_error(grade: Grade) -> bool:
    """True when the grader failed on the completion, as opposed to judging it wrong."""
    return grade.why.startswith(("timeout", "crash", "error"))


# --- worker processes -------------------------------------------------------------------------------------
# Workers are separate Python processes that read one JSON request a line and write one JSON answer a line.
# They are started when first needed and kept; one that hangs is killed at the limit, and the next request
# starts another.

_workers: queue.Queue = queue.Queue(maxsize=2)
for _ in range(_workers.maxsize):
    _workers.put(None)

# Python puts the working directory first on a `-c` program's path; -P prevents that, since a file there may
# be called like a module that the worker needs. The folder above plainrl/ comes first instead, wherever
# plainrl/ was copied to.
_WORKER = "import sys; sys.path.insert(0, sys.argv[1]); import plainrl.grading as g; g.worker_main()"
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
