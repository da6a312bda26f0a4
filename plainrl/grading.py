r"""Is an answer right? The last \boxed{} counts, and it is compared by what it means.

How is in plainrl/equality.py. What needs sympy is done in a worker, see plainrl/workers.py; the rest here.
"""

import math
import numbers
import queue
import re
import threading
import time
from collections.abc import Callable

from plainrl import workers
from plainrl.answers import MAX_ANSWER_CHARS, bare_answer, last_boxed, plain_integer
from plainrl.equality import NeedsAlgebra, readable, same
from plainrl.tasks import Grade, Problem
from plainrl.workers import WORKERS, WorkerError, ask_worker

TASK_SECONDS = 60.0  # wall-clock limit for one call of a task's grade()


def compare(gold: str, answer: str) -> tuple[float, str]:
    """1 if `answer` is the same as the gold answer, else 0; and a reason, or ""."""
    ours, theirs = plain_integer(answer), plain_integer(gold)
    if ours is not None and theirs is not None:
        return float(ours == theirs), ""
    try:
        return float(same(gold, answer, _not_here)), ""
    except NeedsAlgebra:
        return ask_worker({"kind": "math", "gold": gold, "answer": answer})


def _not_here(relation: str, first: str, second: str) -> bool:
    """`same`'s algebra in a process without sympy."""
    raise NeedsAlgebra


def same_answer(first: str, second: str) -> bool:
    """Do two answers mean the same? One direction is enough: a gold answer may have several readings."""
    return any(compare(gold, answer)[0] == 1.0 for gold, answer in ((first, second), (second, first)))


def is_readable(answer: str) -> bool:
    """Is every part of a gold answer something that can be compared, not just a string of characters?"""
    if plain_integer(answer) is not None:
        return True
    try:
        return readable(answer, _not_here)
    except NeedsAlgebra:
        return ask_worker({"kind": "math", "gold": answer, "answer": None})[0] == 1.0


def gold_answer(text: str) -> str:
    """The right answer in a text as files have them, see `plainrl.answers.bare_answer`.

    Raises ValueError with a reason, e.g. "stands for no answer", where there is none that could be compared.
    """
    answer = bare_answer(text)
    if not is_readable(answer):
        raise ValueError("is no expression that can be read")
    return answer


def grade_boxed(completion: str, problem: Problem) -> Grade:
    """Grade the last box against the problem's answer by what both mean."""
    parsed, why = read_box(completion, problem.answer)
    if parsed is None:
        return Grade(False, 0.0, None, why)
    return _graded(parsed, *compare(problem.answer, parsed))


def grade_box(completion: str, score: Callable[[str], tuple[float, str]], gold: str = "") -> Grade:
    r"""Grade the last box by `score`, from its content to (score, reason); no reason is an empty one.

    Where the content stands in \text{} or between $, `score` sees it without, and with it only if that is
    not worth 1. The box may be longer than usual where `gold` is.
    """
    parsed, why = read_box(completion, gold)
    if parsed is None:
        return Grade(False, 0.0, None, why)
    bare = unwrapped(parsed)
    points, why = score(bare)
    if points != 1.0 and bare != parsed and not why.startswith(("timeout", "crash")):
        points, why = max((points, why), score(parsed), key=lambda scored: scored[0])
    return _graded(parsed, points, why)


def read_box(completion: str, gold: str = "") -> tuple[str | None, str]:
    """Content of the last box, or None and the reason why there is no answer."""
    parsed = last_boxed(completion)
    if not parsed:
        return None, "no_box" if parsed is None else "empty_box"
    if len(parsed) > max(MAX_ANSWER_CHARS, 2 * len(gold)):
        return None, "too_long"
    return parsed, ""


def _graded(parsed: str, points: float, why: str) -> Grade:
    return Grade(points == 1.0, points, parsed, why or ("correct" if points == 1.0 else "wrong"))


_WRAPPERS = re.compile(
    r"\s*(?:\$\$?(?P<dollar>[^$]*)\$\$?|\\\((?P<inline>.*)\\\)|\\\[(?P<display>.*)\\\]"
    r"|\\(?:text(?:bf|rm|it|sf|tt)?|mbox|math(?:rm|bf|it|sf|tt))\s*\{(?P<text>(?:[^{}\\]|\\.|\{[^{}]*\})*)\}"
    r"|`(?P<code>[^`]*)`)\s*",
    re.S,
)


def unwrapped(answer: str) -> str:
    r"""Without $...$, \text{...} and their like round the whole of it, with \_ and \{ as plain characters.

    >>> unwrapped("$\\text{up, left}$"), unwrapped("\\text{\\{1: 2\\}}"), unwrapped("x")
    ('up, left', '{1: 2}', 'x')
    """
    for _ in range(4):
        match = _WRAPPERS.fullmatch(answer)
        if not match:
            break
        answer = match[match.lastgroup].strip()
    return re.sub(r"\\([_%$#&{}])", r"\1", answer)


# --- many at a time -----------------------------------------------------------------------------------------


def grade_all(task, completions: list[str], problems: list[Problem]) -> list[Grade]:
    """Grade in order, several at a time. A grader that raises costs its completion the reward, on record.

    Raises ValueError, one line naming the task, for a grade() that does not return within TASK_SECONDS, that
    raises on every completion of a batch of 4 or more, or that returns anything but a Grade with a number.
    So it does where the grader itself is broken, see `_refuse_a_broken_grader`.
    """
    grades = _checked(_called(task, completions, problems), task)
    _refuse_a_broken_grader(grades, task, problems)
    return grades


def _called(task, completions: list[str], problems: list[Problem]) -> list:
    """What grade() returns for each, or the exception that it raises."""
    if hasattr(task, "grade_many"):
        return list(task.grade_many(completions, problems))
    waiting, done = queue.SimpleQueue(), queue.SimpleQueue()
    for job in enumerate(zip(completions, problems, strict=True)):
        waiting.put(job)
    started = {}  # by position: when grade() was called, while it has not returned

    def grade_some() -> None:
        while True:
            try:
                i, (completion, problem) = waiting.get_nowait()
            except queue.Empty:
                return
            started[i] = time.monotonic()
            try:
                grade = task.grade(completion, problem)
            except Exception as error:  # a user's reward may raise anything; counted in reward/errors
                grade = error
            started.pop(i)
            done.put((i, grade))

    # Daemons: a call that never returns cannot be stopped, but it must not keep the process from ending.
    for _ in range(min(WORKERS, len(completions))):
        threading.Thread(target=grade_some, daemon=True).start()
    grades = [None] * len(completions)
    for _ in completions:
        i, grades[i] = _next_of(done, started, task)
    return grades


def _next_of(done: queue.SimpleQueue, started: dict, task) -> tuple[int, object]:
    """The next grade. Raises ValueError when a call takes longer than its limit."""
    limit = TASK_SECONDS + 2 * workers.GRADE_SECONDS  # an answer may wait for a worker, and has its own limit
    while True:
        try:
            return done.get(timeout=min(1.0, limit / 4))
        except queue.Empty:
            late = [since for since in list(started.values()) if time.monotonic() - since > limit]
            if late:
                raise ValueError(
                    f"{_named(task)}: grade() has not returned for {time.monotonic() - min(late):.0f} s on a "
                    "completion, and a call cannot be stopped from outside; give it a time limit of its own"
                ) from None


def _checked(grades: list, task) -> list[Grade]:
    """Exceptions as grades; whatever else is no Grade is refused."""
    errors = [grade for grade in grades if isinstance(grade, Exception)]
    if len(errors) == len(grades) >= 4:
        raise ValueError(
            f"{_named(task)}: grade() failed on all {len(grades)} completions of a batch, first with "
            f"{type(errors[0]).__name__}: {_one_line(errors[0])}"
        )
    without_worker = [error for error in errors if isinstance(error, WorkerError)]
    if len(without_worker) >= 4:  # fewer may be a machine that was busy
        raise ValueError(f"{_named(task)}: {_one_line(without_worker[0])}")
    for i, grade in enumerate(grades):
        if isinstance(grade, Exception):
            grades[i] = Grade(False, 0.0, None, f"error: {type(grade).__name__}: {grade}"[:200])
        else:
            _check_grade(grade, task)
    return grades


def _refuse_a_broken_grader(grades: list[Grade], task, problems: list[Problem]) -> None:
    """Raise ValueError where every answer of a batch, 4 or more, was an error, and right answers are too.

    A completion without an answer says nothing about the grader, and a timeout is its answer's fault. An
    error or a crash may be that as well: a weak model writes what a scorer raises on. So the right answers
    to these problems are graded before the run is ended.
    """
    answered = [i for i, grade in enumerate(grades) if grade.parsed is not None or is_error(grade)]
    failed = [i for i in answered if is_failure(grades[i].why)]
    if len(failed) < max(4, len(answered)):
        return
    right = list({problems[i].prompt: problems[i] for i in failed}.values())[:4]
    again = _checked(_called(task, [f"\\boxed{{{problem.answer}}}" for problem in right], right), task)
    if all(is_failure(grade.why) for grade in again):
        raise ValueError(
            f"{_named(task)}: the grader failed on all {len(failed)} answers of a batch, and on the right "
            f"ones too; first: {_one_line(grades[failed[0]].why)}"
        )


def _check_grade(grade: object, task) -> None:
    """Raise ValueError for what is no Grade, or one whose score cannot be a reward."""
    expected = "Grade(correct, score, parsed, why)"
    if not isinstance(grade, Grade):
        raise ValueError(f"{_named(task)}: grade() returned {type(grade).__name__} instead of {expected}")
    score = grade.score
    if isinstance(score, bool) or not isinstance(score, numbers.Real) or not math.isfinite(score):
        raise ValueError(
            f"{_named(task)}: grade() returned the score {_one_line(score)}; it must be a finite number"
        )
    if not isinstance(grade.why, str) or not isinstance(grade.parsed, str | None):
        raise ValueError(f"{_named(task)}: grade() must return {expected} with strings for parsed and why")


def _named(task) -> str:
    return f"--task {getattr(task, 'name', type(task).__name__)}"


def _one_line(value: object) -> str:
    return ascii(str(value))[1:-1][:150]


def is_error(grade: Grade) -> bool:
    """True when the grader failed on the completion, as opposed to judging it wrong."""
    return grade.why.startswith("timeout") or is_failure(grade.why)


def is_failure(why: str) -> bool:
    """True for a grader that broke, as opposed to one that was stopped when its time was over."""
    return why.startswith(("crash", "error"))
