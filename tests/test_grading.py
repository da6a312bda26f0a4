"""Tests of plainrl/answers.py and plainrl/grading.py: which box counts, when two answers are the same."""

import doctest
import functools
import os
import random
import time
from collections import Counter
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import math_verify
import pytest
from mutants import mutant

from plainrl import answers as reading, grading, workers
from plainrl.answers import number, plain_integer
from plainrl.grading import (
    grade_all,
    grade_box,
    grade_boxed,
    is_error,
    same_answer,
)
from plainrl.sources import ChoiceTask, ListTask
from plainrl.tasks import Grade, Problem


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """A busy machine must not turn a verdict into a timeout; the tests of the limit set their own."""
    monkeypatch.setattr(workers, "GRADE_SECONDS", 60.0)


def box(content: str) -> str:
    return f"\\boxed{{{content}}}"


def grade(completion: str, gold: str) -> Grade:
    return grade_boxed(completion, Problem(prompt="", answer=gold))


def message(call, *arguments) -> str:
    """The text of the ValueError that a call raises; it has to fit on one line of a terminal session."""
    with pytest.raises(ValueError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_doctests():
    """Catches an example in a docstring that is not what the function does."""
    result = doctest.testmod(reading)
    assert result.attempted >= 3 and result.failed == 0


# --- reading and comparing answers ------------------------------------------------------------------------

MEGABYTE = 1_000_000
RIGHT, WRONG, NO_BOX, EMPTY_BOX, TOO_LONG = "correct", "wrong", "no_box", "empty_box", "too_long"
GRADES = [  # (completion, gold, why)
    # which box
    ("", "42", NO_BOX),
    ("42", "42", NO_BOX),
    ("The answer is 42.", "42", NO_BOX),
    ("\\boxed 42", "42", RIGHT),
    ("\\boxed {42}", "42", RIGHT),
    ("\\fbox{42}", "42", RIGHT),
    ("boxed{42}", "42", NO_BOX),
    ("\\boxed{}", "42", EMPTY_BOX),
    ("\\boxed{  \n }", "42", EMPTY_BOX),
    ("\\boxed{}{42}", "42", EMPTY_BOX),
    ("\\boxed{42", "42", NO_BOX),
    ("\\boxed{42} no, \\boxed{43", "42", NO_BOX),  # the last box counts, and it has no content
    ("\\boxed{\\frac{1}{2}", "1/2", NO_BOX),
    ("A=6*7=42\n\\boxed{42}", "42", RIGHT),
    ("\\boxed{41} no, \\boxed{42}", "42", RIGHT),
    ("\\boxed{42} no, \\boxed{41}", "42", WRONG),
    ("\\boxed{41}\\boxed{42}\\boxed{}", "42", EMPTY_BOX),
    ("\\boxed{\\boxed{42}}", "42", RIGHT),
    ("\\boxed{42} apples, because } and { are brackets", "42", RIGHT),
    ("$$\\boxed{42}$$", "42", RIGHT),
    # plain integers
    (box("42"), "42", RIGHT),
    (box("43"), "42", WRONG),
    (box(" 42 "), "42", RIGHT),
    (box("\n42\n"), "42", RIGHT),
    (box("-42"), "42", WRONG),
    (box("-42"), "-42", RIGHT),
    (box("\u221242"), "-42", RIGHT),  # the minus sign of typesetting
    (box("-0"), "0", RIGHT),
    (box("+7"), "7", RIGHT),
    (box("007"), "7", RIGHT),
    (box("1,000"), "1000", RIGHT),
    (box("1,000"), "1,000", RIGHT),
    (box("1,00"), "100", WRONG),
    (box("0,123"), "123", WRONG),  # a decimal comma, if anything
    (box("1.000"), "1000", WRONG),
    (box("1{,}000"), "1000", RIGHT),
    (box("1\\!,\\!000"), "1000", RIGHT),
    (box("1\\,000"), "1000", RIGHT),
    (box("4 2"), "42", WRONG),
    (box("4\n2"), "42", WRONG),
    (box("$42$"), "42", RIGHT),
    # units and words
    (box("42 apples"), "42", RIGHT),
    (box("42\\text{ cm}"), "42", RIGHT),
    (box("42\\,\\text{cm}"), "42", RIGHT),
    (box("43\\text{ cm}"), "42", WRONG),
    (box("$42"), "42", RIGHT),
    (box("\\$42"), "42", RIGHT),
    (box("42\\%"), "42", RIGHT),  # the sign may repeat the question's unit
    (box("42\\%"), "0.42", RIGHT),
    (box("42^\\circ"), "42", RIGHT),
    (box("\\text{42}"), "42", RIGHT),
    (box("forty-two"), "42", RIGHT),
    (box("Tom has 42"), "42", WRONG),
    # other numbers
    (box("\\frac{1}{2}"), "0.5", RIGHT),
    (box("\\frac12"), "1/2", RIGHT),
    (box("\\dfrac{1}{2}"), "1/2", RIGHT),
    (box("1/2"), "0.5", RIGHT),
    (box(".5"), "1/2", RIGHT),
    (box("-\\frac{1}{2}"), "-0.5", RIGHT),
    (box("\\frac{\\frac{3}{2}}{3}"), "1/2", RIGHT),
    (box("\\frac{2}{1}"), "1/2", WRONG),
    (box("0.3333"), "1/3", WRONG),
    (box("7.00"), "7", RIGHT),
    (box("10,000.5"), "10000.5", RIGHT),
    (box("42.0000001"), "42", WRONG),
    (box("1\\times10^3"), "1000", RIGHT),
    (box("119.608"), "14951/125", RIGHT),  # what `compose` writes for a fraction
    # mathematics
    (box("\\pi"), "\\pi", RIGHT),
    (box("3.14"), "\\pi", WRONG),
    (box("\\sqrt{2}"), "\\frac{2}{\\sqrt{2}}", RIGHT),
    (box("\\sqrt{4}"), "2", RIGHT),
    (box("x^2+2x+1"), "(x+1)^2", RIGHT),
    (box("x=5"), "5", RIGHT),
    (box("A=30-6=24"), "24", RIGHT),  # the end of an equation is its value
    (box("A=30-6=24"), "30", WRONG),
    (box("\\{1,2\\}"), "\\{2,1\\}", RIGHT),
    (box("\\{1,2\\}"), "\\{1,2,3\\}", WRONG),
    (box("(1,2)"), "(2,1)", WRONG),
    (box("[1,2)"), "[1,2)", RIGHT),
    (box("[1,2]"), "[1,2)", WRONG),
    (box("(-\\infty, 3]"), "(-\\infty,3]", RIGHT),
    # two answers in one box are no answer
    (box("5 or 6"), "5", WRONG),
    (box("5 or 6"), "6", WRONG),
    (box("5, 6"), "6", WRONG),
    (box("$5$ and $6$"), "6", WRONG),
    (box("\\{5,6\\}"), "5", WRONG),
    # digits are ASCII digits: a sampler that draws others has not learned the format
    (box("４２"), "42", WRONG),
    (box("٤٢"), "42", WRONG),
    (box("4²"), "16", RIGHT),
    # hostile text
    (box("9**9**9"), "42", WRONG),
    (box("\\frac{1}{0}"), "42", WRONG),
    (box("0/0"), "0", WRONG),
    (box("\\infty"), "42", WRONG),
    (box("nan"), "42", WRONG),
    (box("__import__('os').system('touch pwned')"), "42", WRONG),
    (box("\\input{/etc/passwd}"), "42", WRONG),
    (box("\\begin{pmatrix}1&2\\\\3\\end{pmatrix}"), "42", WRONG),
    (box("\\sin\\sin\\sin"), "42", WRONG),
    (box("4\x002"), "42", WRONG),
    (box("42\ud800"), "42", WRONG),
    (box("1" * 500), "1" * 500, RIGHT),
    (box("1" * 500), "1" * 499 + "2", WRONG),
    (box("1" * 5000), "42", TOO_LONG),
    (box("1" * 5000), "1" * 5000, RIGHT),  # as long as the right answer is
    (box("1" * 5000), "1" * 4999 + "2", WRONG),
    (box("1" * 5000), "1" * 2400, TOO_LONG),
    (box("1" * MEGABYTE), "42", TOO_LONG),
    (box("{" * MEGABYTE + "}" * MEGABYTE), "42", TOO_LONG),
    ("\\boxed{" + "{" * MEGABYTE, "42", NO_BOX),
    ("{" * MEGABYTE, "42", NO_BOX),
    ("\\boxed{" * 100_000, "42", NO_BOX),
    ("[" * MEGABYTE + box("42") + "}" * MEGABYTE, "42", RIGHT),
]


def short_name(case: int) -> str:
    return ascii(GRADES[case][0])[:40]


@pytest.mark.parametrize("case", range(len(GRADES)), ids=short_name)
def test_grade_table(case):
    """Catches a string that gets the wrong verdict or reason, and a box without content that counts as
    parsed."""
    completion, gold, why = GRADES[case]
    verdict = grade(completion, gold)
    assert verdict.why == why and not is_error(verdict)
    assert verdict.correct == (why == RIGHT) and verdict.score == float(verdict.correct)
    assert (verdict.parsed is None) == (why in (NO_BOX, EMPTY_BOX, TOO_LONG))
    assert not os.path.exists("pwned") and not Path(workers.__file__).with_name("pwned").exists()


@mutant(
    "first box for the last",
    "plainrl/answers.py",
    'text.rfind("\\\\boxed", 0, end_of_search)',
    'text.find("\\\\boxed", 0, end_of_search)',
)
def test_grade_reports_what_was_in_the_last_box():
    """Catches a log that shows the first box, or one cut at the first inner brace."""
    assert grade("\\boxed{1} \\boxed{ \\frac{1}{2} } {}", "0.5").parsed == "\\frac{1}{2}"


def spelling(rng: random.Random, value: int) -> str:
    """One of the ways to write a whole number, some of them with two readings."""
    digits = rng.choice(
        [f"{abs(value)}", f"{abs(value):,}", f"0{abs(value)}", f"00{abs(value)}", f"0{abs(value):,}"]
    )
    sign = "-" if value < 0 else rng.choice(["", "", "+"] if value else ["", "-", "+"])
    return rng.choice(["{}", "{}", " {} ", "${}$", "${}", "{}$", "$ {} $"]).format(sign + digits)


def test_plain_integers_never_disagree_with_math_verify():
    """Catches a spelling that the short cut reads otherwise than math-verify, e.g. 0,123 as 123."""
    parse = functools.partial(math_verify.parse, parsing_timeout=None)
    verify = functools.partial(math_verify.verify, timeout_seconds=None)
    rng, compared = random.Random(0), Counter()
    while compared.total() < 300:
        value = rng.choice([0, 7, rng.randint(-99, 99), rng.randint(-(10**7), 10**7), rng.randint(0, 10**60)])
        other = (
            value
            if rng.random() < 0.7
            else rng.choice([-value, value + 1, value * 10, value // 10, value * 1000])
        )
        answer, gold = spelling(rng, value).strip(), spelling(rng, other)
        ours, theirs = plain_integer(answer), plain_integer(gold)
        if ours is None or theirs is None:
            continue
        assert (ours, theirs) == (value, other)
        assert verify(parse(box(gold)), parse(box(answer))) == (ours == theirs), (answer, gold)
        compared[ours == theirs] += 1
    assert min(compared[True], compared[False]) > 50


def test_number():
    """Catches a unit or a formula taken for a number, and a decimal that is rounded."""
    assert number("1,234.50") == Fraction(2469, 2) and number("12,34") is None
    assert [number(text) for text in ("12", "-3", "1,000", "0.1", "-1/3", " $2.50 ")] == [
        12,
        -3,
        1000,
        Fraction(1, 10),
        Fraction(-1, 3),
        Fraction(5, 2),
    ]
    assert [number(text) for text in ("", "x", "1e3", "1/0", "2 eggs", "1.2.3", "\\frac12", "٣")] == [
        None
    ] * 8


def test_same_answer():
    """Catches equivalent spellings that vote apart, different answers that vote together, names multiplied
    out."""
    for first, second in (
        ("1/2", "0.5"),
        ("0.5", "\\frac{1}{2}"),
        ("1,000", "1000"),
        ("x+1", "1+x"),
        ("2\\sqrt{3}", "\\sqrt{12}"),
    ):
        assert same_answer(first, second) and same_answer(second, first), (first, second)
    for first, second in (("1/2", "2"), ("12", "13"), ("x+1", "x-1"), ("\\frac{", "7")):
        assert not same_answer(first, second), (first, second)
    assert not ChoiceTask("choice", {}).same_answer("A", "B")


# --- many at a time ---------------------------------------------------------------------------------------


class MoodyTask:
    """Scores the number in the completion after a nap that reverses the order of finishing; raises on a
    zero."""

    def grade(self, completion: str, problem: Problem) -> Grade:
        time.sleep(0.02 * (3 - int(completion) % 4))
        return Grade(True, 1 / int(completion), problem.answer, "correct")


def test_grade_all_keeps_order_and_counts_exceptions():
    """Catches a verdict that goes to another completion because it finished first, and a reward function
    whose exception ends the run."""
    numbers = [1, 2, 3, 0, 4, 5, 6, 7, 0, 8]
    verdicts = grade_all(MoodyTask(), [str(n) for n in numbers], [Problem("", f"gold {n}") for n in numbers])
    for n, verdict in zip(numbers, verdicts, strict=True):
        if n:
            assert verdict == Grade(True, 1 / n, f"gold {n}", "correct") and not is_error(verdict)
        else:
            assert verdict == Grade(
                False, 0.0, None, "error: ZeroDivisionError: division by zero"
            ) and is_error(verdict)


def test_grade_all_with_workers_keeps_order():
    """Catches the replies of two workers mixed up."""
    golds = [f"{n}/7" for n in range(1, 25)]
    answers = [box(gold) if n % 3 else box("5/11") for n, gold in enumerate(golds)]
    verdicts = grade_all(ListTask("list", {}), answers, [Problem("", gold) for gold in golds])
    assert [v.correct for v in verdicts] == [bool(n % 3) for n in range(24)]


class StrangeTask:
    """Its grade() does what it is told to."""

    name = "strange"

    def __init__(self, does):
        self.does = does

    def grade(self, completion: str, problem: Problem) -> Grade:
        return self.does() if callable(self.does) else self.does


def refusal(does, completions: int = 4) -> str:
    return message(grade_all, StrangeTask(does), ["1"] * completions, [Problem("", "1")] * completions)


@mutant("NaN as a score", "plainrl/grading.py", "or not math.isfinite(score)", "")
def test_what_is_no_grade_is_refused():
    """Catches a reward function that forgets its return, or returns a bare number or a score of nan, which
    ends in rewards of nan or in a crash in the middle of the loss."""
    for value in (None, True, 0.5, "right", (True, 1.0, "1", "right")):
        assert f"grade() returned {type(value).__name__} instead of Grade(" in refusal(value)
    for score in (float("nan"), float("inf"), None, True, "1"):
        said = refusal(Grade(False, score, "1", ""))
        assert said.startswith("--task strange: grade() returned the score") and "finite number" in said
    assert "strings for parsed and why" in refusal(Grade(True, 1.0, 1, "right"))
    assert "strings for parsed and why" in refusal(Grade(True, 1.0, "1", None))
    assert grade_all(StrangeTask(Grade(True, 1, None, "")), ["1"], [Problem("", "1")])[0].score == 1


@mutant("errors on all completions", "plainrl/grading.py", "len(grades) >= 4", "len(grades) >= 4000")
def test_grade_that_always_raises_ends_the_run():
    """Catches a broken reward function that trains for hours on rewards of 0, and an exception whose text
    takes over the terminal."""

    def fail():
        raise KeyError("field\x1b[2J\nmissing")

    said = refusal(fail)
    assert "failed on all 4 completions of a batch" in said and "KeyError" in said and "\x1b" not in said
    assert all(
        map(is_error, grade_all(StrangeTask(fail), ["1"] * 3, [Problem("", "1")] * 3))
    )  # it may be chance


def failing(why_of) -> SimpleNamespace:
    """A task whose scorer gives a reason for each answer; "error..." and the like are failures."""
    score = lambda problem: lambda answer: (float(answer == problem.answer), why_of(answer))  # noqa: E731
    return SimpleNamespace(
        name="partial", grade=lambda completion, problem: grade_box(completion, score(problem))
    )


@mutant(
    "grader that fails on every answer",
    "plainrl/grading.py",
    "    _refuse_a_broken_grader(grades, task, problems)\n",
    "",
)
@mutant(
    "weak answers end the run",
    "plainrl/grading.py",
    "if all(is_failure(grade.why) for grade in again):",
    "if True:",
)
@mutant(
    "hanging answers end the run",
    "plainrl/grading.py",
    "if is_failure(grades[i].why)]",
    "if is_error(grades[i])]",
)
@mutant("answers without a worker", "plainrl/grading.py", "if len(without_worker) >= 4:", "if False:")
@pytest.mark.parametrize("why", ["error: \x1b[2J", "crash"])
def test_a_grader_that_fails_on_every_answer_ends_the_run(why):
    """Catches a scorer that is broken and trains on rewards of 0, and a run that ends because its answers are
    too weak for the scorer, or hang."""
    texts = ["no box", *map(box, "abcd")]
    grades = lambda task: grade_all(task, texts, [Problem("1?", "7")] * 5)  # noqa: E731
    errors = lambda why_of: sum(map(is_error, grades(failing(why_of))))  # noqa: E731
    said = message(grades, failing(lambda answer: why))
    assert said.startswith("--task partial: the grader failed on all 4 answers") and "\x1b" not in said
    assert errors(lambda answer: why * (answer != "7")) == 4  # all that the model writes
    assert errors(lambda answer: why * (answer != "d")) == 3
    assert errors(lambda answer: "timeout" if answer == "d" else why) == 4

    def some_need_a_worker(completion, problem):
        if completion == "no box":
            return Grade(False, 0.0, None, "no_box")
        raise workers.WorkerError("the grading worker does not start")

    said = message(grades, SimpleNamespace(name="partial", grade=some_need_a_worker))
    assert said == "--task partial: the grading worker does not start"


def test_grade_that_never_returns_ends_the_run(monkeypatch):
    """Catches a reward function that sleeps for ever: the run stands still without a word."""
    monkeypatch.setattr(grading, "TASK_SECONDS", 0.1)
    monkeypatch.setattr(workers, "GRADE_SECONDS", 0.05)
    start = time.monotonic()
    assert "grade() has not returned for" in refusal(lambda: time.sleep(3))
    assert time.monotonic() - start < 2


@mutant("gym answers with wrappers", "plainrl/grading.py", "score(bare)", "score(parsed)")
def test_wrappers_do_not_cost_the_reward():
    r"""Catches \text{} or $ round the answer to a reasoning-gym question that reaches the scorer, and a
    wrapper that is part of the answer and is taken away."""
    asked = []

    def score(answer):
        asked.append(answer)
        return float(answer == "up, left"), ""

    for spelled in ("up, left", "\\text{up, left}", "$\\text{up, left}$", "\\(up, left\\)", "`up, left`"):
        asked.clear()
        verdict = grade_box(box(spelled), score)
        assert verdict.correct and verdict.parsed == spelled and asked == ["up, left"]
    assert grade_box(box("$x$"), lambda answer: (float(answer == "$x$"), "")).correct
    assert grade_box(box("$x$"), lambda answer: (0.0, "timeout")).why == "timeout"
    assert grade_box(box("ab" * 800), score).why == "too_long"
    assert grade_box(box("ab" * 800), score, gold="ab" * 800).why == "wrong"
