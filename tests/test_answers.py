"""Tests of plainrl/answers.py, reading.py, wording.py, units.py, regions.py, equality.py and algebra.py."""

import doctest
import functools
import json
import time
from collections import Counter
from fractions import Fraction
from pathlib import Path

import pytest
from mutants import mutant
from test_grading import box, message

from plainrl import algebra, answers, equality, grading, metrics, reading, regions, units, wording
from plainrl.algebra import sympy_algebra
from plainrl.answers import NotExact, Undefined, bare_answer, exact, last_boxed, tidy
from plainrl.equality import NeedsAlgebra, choice_letter, same
from plainrl.grading import gold_answer, is_readable
from plainrl.metrics import votes
from plainrl.sources import ChoiceTask
from plainrl.tasks import Grade, Problem

CASES = [
    json.loads(line)
    for line in Path(__file__)
    .with_name("data")
    .joinpath("grading_cases.jsonl")
    .read_text("utf-8")
    .splitlines()
]


@pytest.mark.parametrize(
    "module",
    [answers, reading, wording, units, regions, equality, algebra, grading],
    ids=lambda module: module.__name__,
)
def test_doctests(module):
    """Catches an example in a docstring that is not what the function does."""
    assert doctest.testmod(module).failed == 0


# --- the committed cases ------------------------------------------------------------------------------------


def verdict(case: dict, algebra) -> bool:
    answer = last_boxed(case["completion"])
    return bool(answer) and same(case["gold"], answer, algebra)


PARTS = 8  # of the cases, each with some of every kind: a mutant is red after the first that sees it


@functools.cache
def easy_and_hard(part: int) -> tuple[list[dict], list[dict]]:
    """The cases that are decided without sympy, with the verdict under "got", and the others."""
    easy, hard = [], []
    for case in CASES[part::PARTS]:
        try:
            easy.append({**case, "got": verdict(case, grading._not_here)})
        except NeedsAlgebra:
            hard.append(case)
    return easy, hard


@mutant(
    "decimals that are nearly right",
    "plainrl/equality.py",
    "return values[0] == values[1]",
    "return abs(values[0] - values[1]) < Fraction(1, 10**5)",
)
@mutant("units that do not count", "plainrl/equality.py", "or unit[0] != its_unit[0]:", "or False:")
@mutant(
    "letters in any order",
    "plainrl/reading.py",
    'return ("words", plain_words(text))',
    'return ("words", "".join(sorted(plain_words(text))))',
)
@mutant(
    "end of a false equation",
    "plainrl/equality.py",
    "return _is_true(answer, algebra) and any(",
    "return any(",
)
@mutant("brackets that do not count", "plainrl/regions.py", "one[1] == other[1]", "True")
@mutant("profit that is a loss", "plainrl/equality.py", "if are_opposite(note, its_note):", "if False:")
@mutant(
    "integers that are real",
    "plainrl/wording.py",
    "if domains[0] != domains[1] and",
    "if False and",
)
@mutant(
    "decimals that contradict the exact value",
    "plainrl/equality.py",
    "if not all(_fits(value, decimal, algebra)",
    "if not all(True",
)
@mutant("morning for evening", "plainrl/equality.py", '12 * (half == "p")', "0")
@mutant("2 for {2}", "plainrl/equality.py", '(one[0] == "set") == (other[0] == "set") and', "")
@mutant("names in any order", "plainrl/equality.py", 'if other[0] == "named" and', "if False and")
@mutant(
    "numbered names in any order",
    "plainrl/reading.py",
    "if len(set(names)) == 1 or _are_roots(names):",
    "if len({name[0] for name in names}) == 1:",
)
@mutant("variance for the mean", "plainrl/equality.py", "if _are_marked_apart(one, other):", "if False:")
@mutant(
    "holes that are filled",
    "plainrl/regions.py",
    "if points and is_open and complete",
    "if points and complete",
)
@mutant(
    "yes that is taken back", "plainrl/wording.py", 'if denied and verdict in ("yes", "true")', "if False"
)
@mutant(
    "the value that is ruled out",
    "plainrl/wording.py",
    "return match[1] if value and value not in match[1]",
    "return match[1] if rejected",
)
@mutant(
    "the parity of another letter", "plainrl/equality.py", "(not one or not other or one == other)", "True"
)
@mutant("thinking that is not over", "plainrl/answers.py", "text = after_thinking(text)", "text = str(text)")
@pytest.mark.parametrize("part", range(PARTS))
def test_cases_that_need_no_algebra(part):
    """Catches a spelling of a right answer that is graded wrong, and the reverse: a rounded decimal, another
    unit, an anagram, a false equation, an open interval for a closed one, a box inside thinking, the opposite
    of a noun, another set of numbers, decimals beside an exact value that are not its own."""
    easy, hard = easy_and_hard(part)
    wrong = [(case["gold"], case["completion"]) for case in easy if case["got"] != case["expected"]]
    assert not wrong
    assert len(hard) < 100 < 300 < len(easy) + len(hard)


def test_cases_that_need_algebra():
    """Catches a formula in another form that is graded wrong, and a different one that is graded right. Every
    fifth case; benchmarks/graders.py grades all."""
    hard = [case for part in range(PARTS) for case in easy_and_hard(part)[1][::5]]
    wrong = [
        (case["gold"], case["completion"])
        for case in hard
        if verdict(case, sympy_algebra) != case["expected"]
    ]
    assert not wrong
    assert min(Counter(case["kind"] for case in CASES).values()) >= 2


@mutant(
    "tiny values are equal",
    "plainrl/algebra.py",
    "if difference <= max(sizes) * sympy.Rational(1, 10**50):",
    "if difference <= sympy.Rational(1, 10**10):",
)
@mutant(
    "equations with the same right side",
    "plainrl/algebra.py",
    'if relation == "scaled" and not all(',
    "if not all(",
)
def test_formulas_are_compared_relatively():
    """Catches a difference that is small because both numbers are, and equations that are compared only up to
    a factor which must be the same everywhere."""
    assert not sympy_algebra("equal", "e^{-90}", "e^{-91}") and sympy_algebra("equal", "e^{-90}", "1/e^{90}")
    assert sympy_algebra("proportional", "x-y", "3y-3x") and not sympy_algebra(
        "proportional", "x-y", "x^2-xy"
    )
    assert sympy_algebra("scaled", "x-y", "3x-3y") and not sympy_algebra("scaled", "x-y", "y-x")


@mutant(
    "residues that do not wrap",
    "plainrl/equality.py",
    "exact(node[1]) % modulus, modulus",
    "exact(node[1]), modulus",
)
@mutant(
    "any modulus",
    "plainrl/equality.py",
    "return gold[2] == answer[2] and _formula(gold[1]",
    "return _formula(gold[1]",
)
def test_congruences():
    """Catches residues that differ by the modulus and count as different ones, also fractions and powers, a
    residue with letters under another modulus, and a modulus of 0 that ends the comparison."""
    for gold, answer, expected in (
        ("7\\pmod5", "x\\equiv2\\pmod5", True),
        ("2^3\\pmod5", "-2\\pmod5", True),
        ("\\frac12\\pmod3", "\\frac72\\pmod3", True),
        ("\\frac12\\pmod3", "\\frac52\\pmod3", False),
        ("n\\text{ is odd}", "n\\equiv2+1\\pmod2", True),
        ("a+1\\pmod5", "1+a\\pmod5", True),
        ("a+1\\pmod5", "1+a\\pmod4", False),
        ("a+1\\pmod5", "a\\pmod5", False),
        ("3\\pmod0", "4\\pmod0", False),
        ("\\frac10\\pmod3", "\\frac10\\pmod{3.0}", False),
    ):
        assert same(gold, answer, sympy_algebra) == expected, (gold, answer)


@mutant(
    "huge numbers for a worker", "plainrl/equality.py", "if is_huge(first) or is_huge(second):", "if False:"
)
def test_huge_numbers_need_no_worker():
    """Catches a tower of powers that takes a worker all its time, and then the next one."""
    for text in (
        "9^{9^{9^9}}",
        "(10^{10})!",
        "10^{10^{10}}+1",
        "\\sin(9^{9^9})",
        "x^{9^{9^9}}",
        "1000000!",
        "e^{e^{e^{e^{e}}}}",
    ):
        assert not same("42", text, grading._not_here) and is_readable(text), text
        assert same(text, text, grading._not_here)
    assert same("2^{100000}", "4^{50000}", grading._not_here)


# --- reading ------------------------------------------------------------------------------------------------


def test_exact_numbers():
    """Catches digits that are lost (12\\,345 as 357, 2 1/3 as 2/3), and a value for 1/0."""
    for text, value in (
        ("12\\,345", 12345),
        ("12\u202f345", 12345),
        ("2 1/3", Fraction(7, 3)),
        ("-2\\frac{1}{3}", Fraction(-7, 3)),
        ("2\\frac{4}{3}", Fraction(8, 3)),  # no mixed number
        ("3.2e5", 320000),
        ("1.6\\times10^{-19}", Fraction(16, 10**20)),
        ("0.1\\overline{6}", Fraction(1, 6)),
        ("\\frac{1}{50!}\\cdot 50!", 1),
        ("\\binom{5}{2}", 10),
        ("2^{-80}", Fraction(1, 2**80)),
        ("\\sqrt[3]{-8}", -2),
    ):
        assert exact(tidy(text)) == value, text
    for text in ("0^0", "\\frac{0}{0}", "1/0"):
        with pytest.raises(Undefined):
            exact(text)
    for text in (
        "",
        "4 5",
        "4\\times",
        "\\sqrt{2}",
        "x",
        "9^{9^{9^9}}",
        "10^{10^{10}}",
        "(" * 500,
        "2^" * 400 + "2",
    ):
        with pytest.raises(NotExact):
            exact(text)


def test_last_box():
    """Catches a box that is not seen, one inside thinking that counts, and boxes that belong together."""
    for completion, content in (
        ("\\boxed{1}, \\boxed{2} and \\boxed{3}", "1, 2, 3"),
        ("\\boxed{1}. Then \\boxed{2}", "2"),
        ("\\boxed{2} or \\boxed{2}", "2"),
        ("$x=\\boxed{2}$ or $x=\\boxed{3}$", "x=2, x=3"),
        ("$\\boxed{2}$, $x=\\boxed{3}$", "3"),
        ("\\boxed 42.", "42"),
        ("\\boxed\n{42}", "42"),
        ("<think>\\boxed{1}", None),
        ("<think>\\boxed{1}</think>2", None),
        ("<think>a</think>\\boxed{2}<think>", "2"),
        ("\\boxed{1} <think> or \\boxed{2}", "1"),
        ("Let me think.\n<think>\\boxed{2}", None),
    ):
        assert last_boxed(completion) == content, completion


def test_hostile_answers_are_read_quickly():
    """Catches a regular expression or a recursion that an answer of 1,000 characters brings to a stop."""
    for text in (
        "(" * 999,
        "4 " + "a" * 950 + "!",
        "1," * 499 + "1",
        "\\frac" * 200,
        "\\text{" * 160 + "}" * 160,
        "2^" * 499,
    ):
        start = time.process_time()
        try:
            assert not same("4", text, grading._not_here)
        except NeedsAlgebra:
            pass
        assert time.process_time() - start < 2, text


# --- gold answers -------------------------------------------------------------------------------------------

GOLDS = [  # as a file has it, as it is used
    ("So 5*7=<<5*7=35>>35.\n#### 35", "35"),
    ("#### 2,150", "2,150"),
    ("Hence $x=1$ and the area is $\\boxed{\\frac{7}{2}}$.", "\\frac{7}{2}"),
    ("$$18$$", "18"),
    ("\\(18\\)", "18"),
    ("Answer: 18", "18"),
    ("The final answer is $18$.", "18"),
    ("18.", "18"),
    ("Anna has 18 marbles left.", "18"),
    ("a) 4 b) 9", "4, 9"),
    ("There are 4 cats and 9 dogs.", "4 cats and 9 dogs"),
    ("no solution", "no solution"),
    ("pi/3", "pi/3"),
    ("5 cm", "5 cm"),
]
NO_GOLDS = [
    ("", "holds no answer"),
    ("???", "holds no answer"),
    ("Proof.", "stands for no answer"),
    ("N/A", "stands for no answer"),
    ("see above:", "stands for no answer"),
    ("\\frac{1}{", "braces that do not match"),
    ("so \\boxed{}", "its last box is empty"),
    ("Tom has 3 pears and Ann has 4, which is 1 more.", "is a sentence"),
    ("\\frac{}{", "braces"),
]


def test_gold_answers():
    """Catches right answers as files have them that load and then reject the right answer, and lines without
    an answer that load."""
    for text, answer in GOLDS:
        assert bare_answer(text) == answer
    for text, reason in NO_GOLDS:
        assert reason in message(bare_answer, text)
    for gold, right, wrong in (
        ("pi/3", "\\frac{\\pi}{3}", "1.5"),
        ("3,14", "3.14", "314"),
        ("√7", "\\sqrt7", "7"),
        ("2**5", "32", "25"),
        ("5-9", "5 to 9", "-4"),
        ("B. 7", "B", "7"),
        ("(B) 7", "7", "C"),
    ):
        verdicts = [same(gold, answer, sympy_algebra) for answer in (right, wrong)]
        assert verdicts == [True, False], gold


def test_unreadable_gold_answers():
    """Catches a gold answer that no completion could match, and one that needs a worker and gets none."""
    assert "is no expression" in message(gold_answer, "\\frac{1}{2}\\unknown{3}")
    assert gold_answer("$\\frac{x}{2}$") == "\\frac{x}{2}"
    assert is_readable("x^2+1") and is_readable("\\text{blue}") and not is_readable("4\\times")


# --- multiple choice and votes ------------------------------------------------------------------------------


@mutant(
    "choice that hedges",
    "plainrl/equality.py",
    "return None if hedged or taken_back else match[1]",
    "return match[1]",
)
def test_choice():
    """Catches an answer that names several options, or takes one back, and is graded right; an option in
    another spelling that is not seen."""
    for text in (
        "B",
        "(B)",
        "[B]",
        "B. 12",
        "B: 12",
        "Option B",
        "\\textrm{B}",
        "\\mathrm{(B)}",
        "B\\text{ (12)}",
        "$B$",
    ):
        assert choice_letter(text) == "B", text
    for text in (
        "A or B",
        "A) or B)",
        "A. or B.",
        "(A)(B)(C)",
        "(A) and (C)",
        "A.B.C",
        "A:B",
        "A. Wrong; D",
        "A: false",
        "K",
        "AB",
    ):
        assert choice_letter(text) is None, text
    task = ChoiceTask("choice", {})
    for completion, why in (
        (box("b"), "correct"),
        (box("C"), "wrong"),
        (box("A or B"), "no_letter"),
        ("B", "no_box"),
        (box(""), "empty_box"),
    ):
        assert task.grade(completion, Problem("", "B")).why == why


@mutant("answers that hang are compared", "plainrl/metrics.py", "if answer not in failed else ()", "")
def test_votes_do_not_compare_what_hangs(monkeypatch):
    """Catches pairs of answers that hang compared with each other, 5 seconds each: half an hour a problem."""
    compared = []

    class Task:
        def same_answer(self, first, second):
            compared.append((first, second))
            return first.lower() == second.lower()

    def graded(*parsed):
        return [
            Grade(False, 0.0, answer, "timeout" if answer.startswith("9^") else "wrong") for answer in parsed
        ]

    assert votes(Task(), graded("a", "9^{9}", "A", "9^{8}", "9^{9}")) == ["a", "9^{9}", "a", "9^{8}", "9^{9}"]
    assert compared == [("a", "A")]
    monkeypatch.setattr(metrics, "VOTE_SECONDS", -1.0)
    assert votes(Task(), graded("a", "A")) == ["a", "A"]
