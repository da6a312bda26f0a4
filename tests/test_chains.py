"""Tests of plainrl/chains.py and plainrl/world.py: composed chains, programs, and the embedded world."""

import doctest
import random
import re
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given, settings as example_settings, strategies as st
from mutants import mutant
from test_grading import box, grade, message

from plainrl import chains, hints, workers
from plainrl.chains import calculator_program, compose, run_program, step_value, templates, write_chain
from plainrl.hints import with_hint
from plainrl.tasks import BOXED_INSTRUCTION, Problem
from plainrl.world import ChainTask

CHAIN = ChainTask()


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """A busy machine must not turn a verdict into a timeout; the tests of the limit set their own."""
    monkeypatch.setattr(workers, "GRADE_SECONDS", 60.0)


@pytest.mark.parametrize("module", [chains, hints], ids=["chains", "hints"])
def test_doctests(module):
    """Catches an example in a docstring that is not what the function does."""
    result = doctest.testmod(module)
    assert result.attempted >= 1 and result.failed == 0


def check_solution(problem: Problem) -> list[Fraction]:
    """Every line is true arithmetic, and the box holds the last value, which is the answer. Returns the
    values."""
    *lines, boxed = problem.solution.split("\n")
    values = []
    for line in lines:
        work, result = re.fullmatch(r"(?:[A-Z]=|Step \d+: )(.*)=(.*)", line).groups()
        value = eval(re.sub(r"(\d+(\.\d+)?)", r"Fraction('\1')", work), {"Fraction": Fraction})
        assert value == Fraction(result), line
        values.append(value)
    assert (
        boxed == box(problem.answer)
        and values[-1] == Fraction(problem.answer)
        and len(values) == problem.horizon
    )
    return values


# --- composing chains -------------------------------------------------------------------------------------


def test_run_program():
    """Catches arithmetic that is rounded, or in another order than is usual."""
    assert (
        run_program("x*2+5", 4) == 13
        and run_program("2+3*x", 4) == 14
        and run_program("-(x-1)/2", 4) == Fraction(-3, 2)
    )
    assert run_program("0.1*x+0.2", 1) == Fraction(3, 10)  # floats would say 0.30000000000000004


@pytest.mark.parametrize(
    "program",
    [
        "__import__('os').getpid()",
        "abs(x)",
        "y+1",
        "x**2",
        "x//2",
        "x%2",
        "x if x else 1",
        "[x]",
        "'1'",
        "x.real",
        "x<2",
    ],
)
def test_run_program_rejects(program):
    """Catches a program that calls, names or grows without bound: only numbers, x, + - * / and brackets are
    run."""
    assert "only numbers, x, + - * / and brackets are allowed" in message(run_program, program, 2)


def test_run_program_rejects_no_expression():
    """Catches a statement that is run."""
    for program in ("import os", "x=1", "x+", ""):
        with pytest.raises((ValueError, SyntaxError)):
            run_program(program, 2)


def one_step(template: str, number: int, program: str, answer: str) -> Problem:
    return Problem(template.replace("{x}", str(number)), answer, template=template, program=program)


BOAT = one_step(
    "Gary's boat cost ${x} and lost 30%, then 30%, then 20% of its worth. Its worth?",
    9000,
    "x*0.7*0.7*0.8",
    "3528",
)
EGGS = one_step(
    "Rose buys {x} dozens of eggs at $2.40 a dozen and sells 3 eggs for $1. Her profit?",
    5,
    "x*12/3-x*2.4",
    "8",
)
NILE = one_step(
    "A crocodile of {x} feet grows 2 feet a year for 11 years. How long is it?", 4, "x+2*11", "26"
)
DEBT = one_step(
    "Mandy owes ${x} at 2% a month, not compounded. Her debt after 3 months?", 100, "x*(1+0.02*3)", "106"
)
PAIR = one_step(
    "Gerald and Julia share ${x} as 3 to 2, and Gerald spends $10. What has he left?", 100, "3*x/5-10", "50"
)
TRIO = one_step(
    "Carmen has ${x}, Samantha $25 more, Daisy $50 more than her. Together?", 100, "x+(x+25)+(x+25+50)", "400"
)
CAKE = one_step("{x} friends share a cake of 60 slices. How many has each?", 4, "60/x", "15")


@mutant(
    "substituted value of another step",
    "plainrl/chains.py",
    "values.append(step_value(step, values[-1] if values else None))",
    "values.append(step_value(step, values[0] if values else None))",
)
@pytest.mark.parametrize("chain, published", [([BOAT, EGGS], 5644.8), ([NILE, DEBT, PAIR, TRIO], 119.608)])
@pytest.mark.parametrize("style", ["short", "h1"])
def test_chains_of_the_h1_data(chain, published, style):
    """Catches a chain of the paper's data set (numbers as published there, wording ours) that misses its
    ground truth."""
    problem = write_chain(chain, style)
    assert float(Fraction(problem.answer)) == pytest.approx(published, abs=1e-9) and problem.horizon == len(
        chain
    )
    assert grade(box(str(published)), problem.answer).correct
    check_solution(problem)


def test_compose_hand_written_problems():
    """Catches an order of steps that is not evaluated exactly, a number that is not replaced, a limit on
    fractions."""
    pool = [BOAT, EGGS, NILE, DEBT, PAIR, TRIO, CAKE]
    for seed in range(30):
        problem = compose(pool, 4, random.Random(seed), style="h1", limit=None)
        used = sorted(
            (p for p in pool if p.template.split("{x}")[1] in problem.prompt),
            key=lambda p: problem.prompt.index(p.template.split("{x}")[1]),
        )
        value = float(used[0].answer)
        for step, letter in zip(used[1:], "UVW"):
            value = eval(step.program, {"x": value})
            assert step.template.replace("{x}", letter) in problem.prompt
        assert used[0].prompt in problem.prompt and len(used) == 4
        assert float(Fraction(problem.answer)) == pytest.approx(value, rel=1e-9)
        assert compose(pool, 4, random.Random(seed), style="h1", limit=None) == problem
        check_solution(problem)


def test_compose_keeps_within_the_limit():
    """Catches a value that comes twice, is no whole number or is not within the limit, and a pool without
    such a chain that is not refused."""
    pool = [one_step(f"{{x}} and {n}?", 4, f"x+{n}", str(4 + n)) for n in range(1, 9)]
    for seed in range(30):
        values = [
            int(line.rsplit("=")[-1])
            for line in compose(pool, 3, random.Random(seed), limit=20).solution.split("\n")[:-1]
        ]
        assert len(set(values)) == 3 and all(2 <= value <= 20 for value in values)
    assert "cannot chain 8 of these 8 problems" in message(compose, pool, 8, random.Random(0), "short", 20)
    assert "cannot chain 2 of these 6 problems" in message(
        compose, [EGGS] * 6, 2, random.Random(0), "short", 20
    )


def test_compose_refuses_what_it_cannot_write():
    """Catches more steps than problems or letters, no step, no problem and an unknown style that are not
    refused."""
    rng = random.Random(0)
    assert "cannot chain 3 of these 2 problems; give more problems" in message(
        compose, [NILE, DEBT], 3, rng, "short", None
    )
    assert "cannot chain 1 of these 0 problems" in message(compose, [], 1, rng)
    assert "horizon 0 is not within" in message(compose, [NILE], 0, rng)
    assert "horizon 26 is not within" in message(compose, [NILE] * 30, 26, rng, "short", None)
    assert "style 'long' is not one of short, h1" in message(compose, [NILE, DEBT], 2, rng, "long", None)


@mutant(
    "placeholders of the terse wording",
    "plainrl/chains.py",
    'letters = LETTERS if style == "short" else PLACEHOLDERS',
    "letters = LETTERS",
)
def test_h1_style_has_the_papers_steps():
    """Catches another number of steps than 2 * horizon - 1, a letter that is not named or not in its problem,
    and an answer that is not that of the terse wording."""
    for horizon in (2, 5, 10):
        for index in range(5):
            short = ChainTask(horizon=str(horizon)).problem("train", index, 0)
            long = ChainTask(horizon=str(horizon), style="h1").problem("train", index, 0)
            assert re.findall(r"^Step (\d+): ", long.prompt, re.M) == [str(n) for n in range(1, 2 * horizon)]
            parts = re.split(r"^Step \d+: ", long.prompt, flags=re.M)[1:]
            for letter, part in zip("UVWXYZBCD", parts[1::2]):
                instruction, text = part.strip().split("\n\n")
                assert f"in place of {letter} in this problem" in instruction and re.search(
                    rf"\b{letter} \w+", text
                )
            assert long.answer == short.answer and check_solution(long) == check_solution(short)
            assert long.hint.split(", then ")[1] == short.hint.split(", then ")[1] and long.hint.startswith(
                "Step 1: "
            )
            assert long.prompt.endswith("Put the final answer in \\boxed{}.")


def test_a_chain_of_one_step_is_the_plain_problem():
    """Catches "Step 1" around a single problem, and a hint or a worked solution that is lost."""
    plain = Problem(f"How many? {BOXED_INSTRUCTION}", "7", "count", "1+6=7\n\\boxed{7}", template="How {x}")
    assert compose([plain], 1, random.Random(0), "h1") == plain
    step = ChainTask(horizon="1").chain("train", 0, 0)[0]
    assert (
        ChainTask(horizon="1", style="h1").problem("train", 0, 0).prompt
        == f"{step.prompt} {BOXED_INSTRUCTION}"
    )


WORDS = st.text("abcdefgh ,.?", min_size=1).map(lambda text: f"a {text} b")


@st.composite
def step_problems(draw):
    """A one-step problem with a program, or without one."""
    head, tail, start, k = draw(WORDS), draw(WORDS), draw(st.integers(2, 10**6)), draw(st.integers(1, 99))
    template = f"{head} {{x}} {tail}"
    program = draw(st.sampled_from([None, f"x+{k}", f"x*{k}", f"(x-{k})/3", f"{k}-x*0.5"]))
    answer = str(run_program(program, start) if program else k)
    solution = draw(st.sampled_from([None, f"as it is\nso {answer}\n\\boxed{{{answer}}}"]))
    return Problem(
        template.replace("{x}", str(start)), answer, None, solution, template=template, program=program
    )


@mutant("substituted value of another step")
@mutant(
    "offset with the wrong sign",
    "plainrl/chains.py",
    "offset = 0 if step.program else number(start_number(step)) - value",
    "offset = 0 if step.program else value - number(start_number(step))",
)
@mutant(
    "offset although there is a program",
    "plainrl/chains.py",
    "offset = 0 if step.program else number(start_number(step)) - value",
    "offset = number(start_number(step)) - value",
)
@example_settings(max_examples=200, deadline=None)
@given(st.lists(step_problems(), min_size=1, max_size=25))
def test_any_chain_can_be_carried_out_as_it_is_written(steps):
    """Catches a prompt that does not lead to its gold answer when one does what it says, step by step."""
    problem = write_chain(steps, "h1")
    if len(steps) == 1:
        assert problem.prompt == f"{steps[0].prompt.rstrip()} {BOXED_INSTRUCTION}"
        return
    parts = re.split(r"(?:^|\n\n)Step (\d+): ", problem.prompt)[1:]
    assert parts[0::2] == [str(n) for n in range(1, 2 * len(steps))]
    value = Fraction(steps[0].answer)
    for step, part, letter in zip(steps[1:], parts[3::4], "UVWXYZBCDEFGHJKLMNOPQRST"):
        text = part.split("\n\n", 1)[1]
        shown = re.search(rf"\({letter}([+-][0-9/]+)\)|\b{letter}\b", text)
        assert len(re.findall(rf"\b{letter}\b", text)) == 1 and f"in place of {letter} in" in part
        received = value + Fraction(shown[1] or 0)
        head, tail = step.template.split("{x}")
        assert (text[: shown.start()], text[shown.end() :].rstrip()) == (head, tail.rstrip())
        if step.program is None:
            assert received == int(re.search(r" (\d+) ", step.prompt)[1])  # the number that stood there
        value = run_program(step.program, received) if step.program else Fraction(step.answer)
    assert value == Fraction(problem.answer)
    if all(step.program or step.solution for step in steps):
        assert problem.solution.endswith("\n" + box(str(value))) and problem.solution.count("boxed") == 1
        assert problem.solution.count("as it is\nso") == sum(step.program is None for step in steps)
    else:
        assert problem.solution is None


@mutant(
    "number that occurs twice",
    "plainrl/chains.py",
    "if value is not None and values.count(value) == 1 and value >= 2:",
    "if value is not None and value >= 2:",
)
def test_templates():
    """Catches a number that occurs twice, a part of a decimal, a word or a power, and a letter that the text
    already has."""
    found = lambda prompt: [shown for shown, _ in templates(prompt)]  # noqa: E731
    assert found("She has 5 hats, 1,200 pins and 2.5 m; 5 more, 3rd, x^2, 7/8, A4, 10% of $30.") == [
        "1,200",
        "2.5",
        "10",
        "30",
    ]
    assert (
        found("There are 0 or 1 of 2.") == ["2"] and found("Bus X has 12 seats.") == found("{x} of 12") == []
    )
    assert dict(templates("I had 12 of 20."))["12"] == "I had {x} of 20."
    assert found("It cost $1,250.50, not 0,123 or ٣ or 123456789012345678901234.5.") == ["1,250.50"]


@mutant(
    "program that gives another answer",
    "plainrl/chains.py",
    "return run_program(program, x) == result",
    "return run_program(program, x) is not None",
)
@mutant(
    "number of two origins",
    "plainrl/chains.py",
    "if any(operand in programs and operand in _EVERYDAY for operand in operands):",
    "if False:",
)
@mutant("result that is also given", "plainrl/chains.py", "if given & set(results):", "if False:")
@mutant("result that comes twice", "plainrl/chains.py", "if len(set(results)) < len(results):", "if False:")
@mutant(
    "number from nowhere",
    "plainrl/chains.py",
    "if any(operand not in explained and operand not in programs for operand in operands):",
    "if False:",
)
@mutant("result that is never used", "plainrl/chains.py", "if not set(before) <= used:", "if False:")
@mutant("number of everyday life replaced", "plainrl/chains.py", "if start in _EVERYDAY:", "if False:")
@mutant(
    "number that is glued to another word too",
    "plainrl/chains.py",
    "return digits.count(start) == 1",
    "return True",
)
@mutant(
    "number that is there in words too",
    "plainrl/chains.py",
    "if start in numbers_in_words(prompt):",
    "if False:",
)
@mutant("number twice in a note", "plainrl/chains.py", "if operands.count(start) > 1:", "if False:")
@mutant("answer without x", "plainrl/chains.py", 'if "x" not in programs[last]:', "if False:")
@mutant("steps after the last note", "plainrl/chains.py", "if number(answer) != results[-1]:", "if False:")
@pytest.mark.parametrize(
    "prompt, worked, answer, expected",
    [
        (
            "46 cups, half as many more.",
            "<<46/2=23>> <<46+23=69>>",
            "69",
            ("{x} cups, half as many more.", "x+(x/2)", ("x/2",)),
        ),
        (
            "$150 less 30%, twice.",
            "<<150*30%=45>> <<150-45=105>> <<105*2=210>>",
            "210",
            ("${x} less 30%, twice.", "(x-(x*(30/100)))*2", ("x*(30/100)", "x-(x*(30/100))")),
        ),
        ("$1,500 in 6 parts.", "<<1500/6=$250>>", "250", ("${x} in 6 parts.", "x/6", ())),
        ("9 and 9 and 14.", "<<9+9=18>> <<18+14=32>>", "32", ("9 and 9 and {x}.", "(9+9)+x", ("9+9",))),
        (
            "5 boxes of 40 pens, 3/5 of them blue.",
            "<<5*40=200>> <<200*3/5=120>>",
            "120",
            ("5 boxes of {x} pens, 3/5 of them blue.", "(5*x)*3/5", ("5*x",)),
        ),  # not the 5: it is in 3/5 too
        (
            "Six friends buy 6 sodas at $9.",
            "<<6*6=36>> <<36*9=324>>",
            "324",
            ("Six friends buy 6 sodas at ${x}.", "(6*6)*x", ("6*6",)),
        ),
        (
            "Six friends share 6 sodas at $9 each.",
            "<<6*9=54>>",
            "54",
            ("Six friends share 6 sodas at ${x} each.", "6*x", ()),
        ),  # not the 6: it is there in words too
        (
            "11 friends have 40 pens in 6 boxes.",
            "<<40*6=240>>",
            "240",
            ("11 friends have {x} pens in 6 boxes.", "x*6", ()),
        ),
        ("8 rows of as many chairs.", "<<8*8=64>>", "64", None),  # which 8 is the prompt's?
        (
            "48 eggs, 6 a tray, a tray is $15.",
            "<<48/6=8>> <<8*15=120>>",
            "120",
            ("{x} eggs, 6 a tray, a tray is $15.", "(x/6)*15", ("x/6",)),
        ),
        (
            "$150 less 20%, twice.",
            "<<150*20%=30>> <<150-30=120>> <<120*2=240>>",
            "240",
            None,
        ),  # a month's 30?
        (
            "9 rows of 8, 72 times 11 more.",
            "<<9*8=72>> <<72*11=792>>",
            "792",
            None,
        ),  # is 72 given or computed?
        ("56 less 20, and 108 by 3.", "<<56-20=36>> <<108/3=36>> <<36+36=72>>", "72", None),  # which 36?
        ("46 cups, half as many more.", "Half is 23. <<46+23=69>>", "69", None),  # a step without a note
        ("40 pages, 25% more the next day.", "50 pages. <<40+50=90>>", "90", None),
        ("130 go by bus, 50 in each, for $200.", "<<130/50=2.6>>, so 3. <<3*200=600>>", "600", None),  # 2.6?
        ("35 in 8 rows.", "<<35/8=4.4>> <<4.4*10=44>>", "44", None),  # rounded
        ("5 hours every weekday.", "<<5*5=25>>", "25", None),  # numbers of everyday life
        ("7 hours a day.", "<<7*5=35>>", "35", None),
        (
            "6 hours a day in 11 days, 6am.",
            "<<6*11=66>>",
            "66",
            ("6 hours a day in {x} days, 6am.", "6*x", ()),
        ),
        (
            "8 run 8km with 9 cups per km.",
            "<<8*8=64>> <<64*9=576>>",
            "576",
            ("8 run 8km with {x} cups per km.", "(8*8)*x", ("8*8",)),
        ),
        ("Each of 8 cups holds 8 and 8.", "<<8*8=64>>", "64", None),
        ("An $80 coat is 35% off.", "<<80*.65=52>>", "52", ("An ${x} coat is 35% off.", "x*.65", ())),
        ("11 a day, 5 days.", "<<11*5=55>>", "56", None),  # does not give the answer
        ("11 or so.", "<<round(11.2)=11>>", "11", None),
        ("11 or so.", "eleven", "11", None),
        ("11 or so.", "<<11>>", "11", None),
    ],
)
def test_calculator_program(prompt, worked, answer, expected):
    """Catches a program that is not the solution's, and one that would be wrong for another number."""
    assert calculator_program(prompt, worked, answer) == expected


@mutant(
    "half a tray",
    "plainrl/chains.py",
    "if any(part.denominator != 1 or part <= 0 for part in parts):",
    "if False:",
)
def test_what_counts_stays_whole():
    """Catches half a tray, or fewer than no hours, in the middle of a chain whose end is whole again."""
    tray = Problem("48 eggs", "120", template="{x} eggs", program="(x/6)*15", parts=("x/6",))
    assert [step_value(tray, Fraction(x)) for x in (48, 12, 2, 0, -6)] == [120, 30, None, None, None]
    assert step_value(Problem("p", "3", template="{x}", program="6/x"), Fraction(0)) is None


# --- the embedded world -----------------------------------------------------------------------------------

NUMBER = r"(\d+|[A-Z])"
MEANINGS = [  # the English sentences, read anew: k before x or x before k, and what a person would compute
    (rf"\w+ has (?P<k>\d+) more than (?P<x>{NUMBER}) \w+\.", lambda x, k: x + k),
    (rf"\w+ has (?P<k>\d+) fewer than (?P<x>{NUMBER}) \w+\.", lambda x, k: x - k),
    (rf"\w+ has (?P<k>\d+) times (?P<x>{NUMBER}) \w+\.", lambda x, k: x * k),
    (rf"\w+ has half of (?P<x>{NUMBER}) \w+\.", lambda x: Fraction(x, 2)),
    (rf"(?P<x>{NUMBER}) \w+ is (?P<k>\d+) more than \w+ has\.", lambda x, k: x - k),
    (rf"(?P<x>{NUMBER}) \w+ is (?P<k>\d+) fewer than \w+ has\.", lambda x, k: x + k),
]
REVERSED_SENTENCE = r"\w+ \w+ is \d+ (more|fewer) than \w+ has\."


def read(prompt: str) -> list[int]:
    """The value of every sentence of a problem in the terse wording, by the regular expressions above."""
    body, last = re.fullmatch(r"(.*) Give ([A-Z]) in \\boxed\{\}\.", prompt).groups()
    parts = re.split(r"(?:^| )([A-Z]): ", body)
    letters, sentences, values = parts[1::2], parts[2::2], {}
    for letter, sentence in zip(letters, sentences, strict=True):
        match, meaning = next((m, f) for pattern, f in MEANINGS if (m := re.fullmatch(pattern, sentence)))
        x, *rest = [match[name] for name in ("x", "k") if name in match.groupdict()]
        if values:
            assert x == list(values)[-1], "a step must use the answer of the step before it"
        values[letter] = meaning(values[x] if x in values else int(x), *map(int, rest))
    assert letters == list("ABCDEFGHIJ")[: len(letters)] and last == letters[-1]
    return list(values.values())


def check_chain(problem: Problem) -> None:
    """What holds for every problem of the embedded world in the terse wording."""
    values = read(problem.prompt)
    assert check_solution(problem) == values
    assert len(set(values)) == len(values) and all(
        value == int(value) and 2 <= value <= 999 for value in values
    )
    for line, before in zip(problem.solution.split("\n")[1:-1], values):
        assert re.match(rf"[A-J]={before}[-+*/]", line), (
            "a line must begin with the answer of the line before it"
        )
    known = re.findall(r"[A-J]=[^,]+", problem.hint)
    assert known == problem.solution.split("\n")[: 3 * len(values) // 4]
    assert problem.answer not in re.findall(r"\d+", problem.hint)
    next_operation = re.search(r"[-+*/]", problem.solution.split("\n")[len(known)])[0]
    assert problem.hint.endswith(
        {"+": "add.", "-": "subtract.", "*": "multiply.", "/": "halve."}[next_operation]
    )


def test_chain_agrees_with_an_independent_reader():
    """Catches sentences that do not mean what the gold answers say, in 300 problems of every kind and
    length."""
    task, horizons, backwards = ChainTask(horizon="1-10", family="mixed"), Counter(), 0
    for index in range(300):
        problem = task.problem("train", index, 11)
        check_chain(problem)
        horizons[problem.horizon] += 1
        found = len(re.findall(REVERSED_SENTENCE, problem.prompt))
        assert found == (problem.source == "chain/reversed")
        backwards += found
    assert set(horizons) == set(range(1, 11)) and max(horizons.values()) < 60
    assert 45 <= backwards <= 105  # a quarter of 300, within four standard deviations


def test_chain_reversed_family():
    """Catches a reversed problem without exactly one reversed sentence, always at one place, or in the plain
    family."""
    places, words = Counter(), Counter()
    for horizon in (1, 4):
        reversed_task, plain = (
            ChainTask(horizon=str(horizon), family="reversed"),
            ChainTask(horizon=str(horizon)),
        )
        for index in range(60):
            problem = reversed_task.problem("train", index, 1)
            check_chain(problem)
            sentences = re.split(r"(?:^| )[A-Z]: ", problem.prompt)[1:]
            hits = [i for i, sentence in enumerate(sentences) if re.match(REVERSED_SENTENCE, sentence)]
            assert len(hits) == 1 and problem.source == "chain/reversed"
            places[horizon, hits[0]] += 1
            words[re.match(REVERSED_SENTENCE, sentences[hits[0]])[1]] += 1
            assert not re.search(REVERSED_SENTENCE, plain.problem("train", index, 1).prompt)
    assert len(places) == 5 and min(places.values()) >= 4 and min(words["more"], words["fewer"]) >= 40


def test_chain_horizon_is_the_number_of_steps():
    """Catches a problem with more or fewer steps than were asked, and a range that never draws some of its
    lengths."""
    for horizon in range(1, 11):
        assert len(read(ChainTask(horizon=str(horizon)).problem("test", 0, 0).prompt)) == horizon
    assert {ChainTask(horizon="2-4").problem("train", index, 0).horizon for index in range(60)} == {2, 3, 4}
    assert ChainTask(horizon=3).problem("dev", 0, 0) == ChainTask().problem("dev", 0, 0)


def test_chain_problem_is_pure():
    """Catches a problem that depends on what was asked before, and an argument that does not matter."""
    for settings in ({}, {"horizon": "1-10", "family": "mixed"}, {"style": "h1", "family": "reversed"}):
        task, fresh = ChainTask(**settings), ChainTask(**settings)
        problems = [task.problem("train", index, 7) for index in range(20)]
        random.seed(0)
        assert [fresh.problem("train", index, 7) for index in reversed(range(20))] == problems[::-1]
        assert len(set(problems)) == 20
        assert task.problem("dev", 0, 7) != problems[0] != task.problem("train", 0, 8)


@pytest.mark.parametrize("horizon, many, few", [(1, 300, 100), (3, 200, 30), (10, 80, 10)])
def test_chain_splits_share_no_problem(horizon, many, few):
    """Catches a start number with the same operations in two splits, across seeds too: other names and things
    are no difference."""
    keys = {}
    for split, count in (("sft", many), ("train", many), ("dev", few), ("test", few)):
        task = ChainTask(horizon=str(horizon), family="mixed")
        keys[split] = set()
        for index in range(count):
            lines = task.problem(split, index, index % 3).solution.split("\n")[:-1]
            start = re.match(r"A=(\d+)", lines[0])[1]
            keys[split].add((start, *(re.match(r"[A-J]=\d+([-+*/]\d+)=", line)[1] for line in lines)))
    assert sum(map(len, keys.values())) == len(set().union(*keys.values()))
    assert min(map(len, keys.values())) > few / 2


def test_chain_cannot_be_guessed():
    """Catches an answer so frequent that always giving it earns 2% or more."""
    answers = Counter(CHAIN.problem("train", index, 2).answer for index in range(1000))
    assert answers.most_common(1)[0][1] < 20 and len(answers) > 250


def test_chain_solution_earns_the_reward():
    """Catches a worked solution that is graded wrong, and a hint that is an answer by itself."""
    for index in range(20):
        problem = CHAIN.problem("test", index, 0)
        assert CHAIN.grade(problem.solution, problem).correct
        assert CHAIN.grade(with_hint(problem), problem).why == "empty_box"  # the prompt's own \boxed{}


def test_chain_unknown_split():
    """Catches a typing error in a split's name that is searched for without end."""
    assert "split 'valid' is not one of sft, train, dev, test" in message(CHAIN.problem, "valid", 0, 0)


def test_chain_at_another_horizon():
    """Catches a family or a style that is lost on the way."""
    task = ChainTask(horizon="2-6", family="mixed", style="h1").at_horizon(3)
    assert (task.low, task.high, task.family, task.style) == (3, 3, "mixed", "h1")
    assert "horizon=11 is not within 1 to 10" in message(task.at_horizon, 11)
