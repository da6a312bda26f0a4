r"""Is an answer right? The last \boxed{} counts, and it is compared by mathematical equivalence.

Two plain integers are compared here, anything else by math-verify in plainrl/workers.py.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from plainrl.answers import MAX_ANSWER_CHARS, last_boxed, plain_integer
from plainrl.tasks import Grade, Problem
from plainrl.workers import WORKERS, ask_worker


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

    with ThreadPoolExecutor(WORKERS) as threads:
        return list(threads.map(grade, completions, problems))


def is_error(grade: Grade) -> bool:
    """True when the grader failed on the completion, as opposed to judging it wrong."""
    return grade.why.startswith(("timeout", "crash", "error"))
