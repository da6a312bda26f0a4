r"""Chains of problems by h1's rule (arXiv 2510.07312): the answer of one step replaces a number of the next.

Three parts, each usable alone:

    choose_chain, write_chain   which problems make a chain, and its prompt, hint and worked solution
    templates, chainable        where the problem of another source has a number that can be replaced
    calculator_program          the arithmetic behind a GSM8K problem, so that its answer can be computed anew

Programs are arithmetic in x, computed exactly (`run_program`); nothing else in them is evaluated.
"""

import ast
import functools
import operator
import random
import re
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction

from plainrl.answers import number
from plainrl.hints import reveals
from plainrl.tasks import BOXED_INSTRUCTION, Problem

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWYZ"  # what the answers of the steps are called in style "short"
PLACEHOLDERS = "UVWXYZ" + "BCDEFGHJKLMNOPQRST"  # in style "h1": the paper's six, then ours; A and I are words


# --- arithmetic -------------------------------------------------------------------------------------------

_OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.USub: operator.neg,
}


def run_program(program: str, x: Fraction | int) -> Fraction:
    """Evaluate arithmetic in x exactly. Only numbers, x, + - * / and brackets are allowed.

    >>> run_program("x*2+5", 4)
    Fraction(13, 1)
    """

    def value(node):
        match node:
            case ast.Expression(body=body):
                return value(body)
            case ast.Constant(value=int() | float()):
                return Fraction(str(node.value))
            case ast.Name(id="x"):
                return Fraction(x)
            case ast.UnaryOp(op=op, operand=operand) if type(op) in _OPERATORS:
                return _OPERATORS[type(op)](value(operand))
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
                return _OPERATORS[type(op)](value(left), value(right))
        raise ValueError(f"program {program!r}: only numbers, x, + - * / and brackets are allowed")

    return value(_parse_program(program))


@functools.lru_cache(maxsize=4096)
def _parse_program(program: str) -> ast.Expression:
    return ast.parse(program, mode="eval")


# --- choosing a chain -------------------------------------------------------------------------------------


def compose(
    problems: list[Problem], horizon: int, rng: random.Random, style: str = "short", limit: float | None = 999
) -> Problem:
    """Chain `horizon` one-step problems: the answer of one replaces a number of the next (arXiv 2510.07312).

    `problems` need a `template`. Where there is a `program` the step's answer is computed anew from the
    number it receives. Where there is none, the offset to the number that stood there is written out,
    "(U+7)", and the answer stays true (R-HORIZON, arXiv 2510.08189); where that number does not matter to
    the problem, neither does the step before it.

    style "short" is the embedded world's terse wording (A: ... B: ... A ...). "h1" has the paper's
    2*horizon - 1 numbered steps: solve, substitute, solve, substitute, ...; one problem alone stays as it
    is.
    """
    longest = {"short": len(LETTERS), "h1": len(PLACEHOLDERS) + 1}.get(style)
    if longest is None:
        raise ValueError(f"style {style!r} is not one of short, h1")
    if not 1 <= horizon <= longest:
        raise ValueError(f"horizon {horizon} is not within 1 to {longest}")
    chain = choose_chain(problems, horizon, rng, limit)
    if chain is None:
        raise ValueError(
            f"cannot chain {horizon} of these {len(problems)} problems; give more problems or a larger limit"
        )
    return write_chain(chain, style)


def choose_chain(
    problems: list[Problem],
    horizon: int,
    rng: random.Random,
    limit: float | None = 999,
    first: Problem | None = None,
) -> list[Problem] | None:
    """Pick `horizon` of the problems in an order that can be chained, starting with `first` if there is one.

    Every answer is fed to the next problem, is new, and (with a limit, which may be math.inf) is an integer
    from 2 to it. None when the pool runs dry.
    """
    pool = rng.sample(problems, len(problems))
    chain = [first] if first else []
    values = chain_values(chain)
    while len(chain) < horizon:
        for candidate in pool:
            value = step_value(candidate, values[-1] if chain else None)
            fits = value is not None and (limit is None or (value.denominator == 1 and 2 <= value <= limit))
            if fits and value not in values and (candidate.template or not chain):
                break
        else:
            return None
        pool.remove(candidate)
        chain.append(candidate)
        values.append(value)
    return chain


def step_value(step: Problem, x: Fraction | None) -> Fraction | None:
    """A step's answer when it receives x: by its program, or its own where there is no program or no x.

    None where it has no answer, or one of its `parts` would not be whole and above 0.
    """
    if x is None or step.program is None:
        return number(step.answer)
    try:
        parts = [run_program(part, x) for part in step.parts]
        if any(part.denominator != 1 or part <= 0 for part in parts):
            return None  # half a tray
        return run_program(step.program, x)
    except ZeroDivisionError:
        return None


def chain_values(chain: list[Problem]) -> list[Fraction]:
    """The answer of every step when each receives the answer before it."""
    values = []
    for step in chain:
        values.append(step_value(step, values[-1] if values else None))
    return values


def horizons(text: str, task: str, longest: int) -> tuple[int, int]:
    """The setting horizon=2-4 as (2, 4), horizon=3 as (3, 3). Raises ValueError outside of 1 to `longest`."""
    low, _, high = text.partition("-")
    high = high or low
    for bound in (low, high):
        if not re.fullmatch("[0-9]+", bound):
            raise ValueError(f"--task: horizon={bound} is not a whole number")
    if not 1 <= int(low) <= int(high) <= longest:
        raise ValueError(f"--task {task}: horizon={text} is not within 1 to {longest}")
    return int(low), int(high)


# --- wording it -------------------------------------------------------------------------------------------


def write_chain(chain: list[Problem], style: str) -> Problem:
    r"""Word a chain whose steps are already chosen: its prompt, answer, hint and worked solution.

    The letter `letters[i]` stands for the answer of step i; step i+1 has it in place of its number.

    >>> pens = Problem("Tom has 5 more than 20 pens.", "25", template="Tom has 5 more than {x} pens.",
    ...                program="x+5")
    >>> eggs = Problem("Ann has 2 times 30 eggs.", "60", template="Ann has 2 times {x} eggs.", program="x*2")
    >>> chained = write_chain([pens, eggs], "short")
    >>> print(chained.prompt)
    A: Tom has 5 more than 20 pens. B: Ann has 2 times A eggs. Give B in \boxed{}.
    >>> chained.answer, chained.hint
    ('50', 'A=20+5=25, then multiply.')
    >>> print(chained.solution)
    A=20+5=25
    B=25*2=50
    \boxed{50}
    """
    if style == "h1" and len(chain) == 1 and "\\boxed" in chain[0].prompt:
        return chain[0]  # a plain problem asks for its box already, and keeps its own hint and solution
    values = chain_values(chain)
    answer = str(values[-1])
    letters = LETTERS if style == "short" else PLACEHOLDERS
    texts = step_texts(chain, values, letters)
    if style == "short":
        prompt, names = short_prompt(texts), [f"{letter}=" for letter in letters[: len(chain)]]
    else:
        prompt, names = h1_prompt(texts), [f"Step {2 * i + 1}: " for i in range(len(chain))]
    lines = worked_lines(chain, values, names)
    hint = hint_text(chain, lines[: hinted_steps(len(chain))], letters)
    if style == "h1" and reveals(hint, answer):  # be it only by the number of a step, "Step 7"
        hint = None
    solution = chain_solution(chain, names, lines, answer)
    any_reversed = any(step.source == "chain/reversed" for step in chain)
    source = "chain/reversed" if any_reversed else chain[0].source
    return Problem(prompt, answer, hint, solution, len(chain), source)


def step_texts(chain: list[Problem], values: list[Fraction], letters: str) -> list[str]:
    """The text of every step: the first as it is, the others with a letter for their number.

    The chain asks for a box once, at its end, so the steps must not ask for boxes of their own.
    """
    texts = [chain[0].prompt]
    for step, letter, value in zip(chain[1:], letters, values):
        texts.append(substituted(step, letter, value))
    return [text.removesuffix(BOXED_INSTRUCTION).rstrip() for text in texts]


def substituted(step: Problem, letter: str, value: Fraction) -> str:
    """A step with a letter for its number, where the letter stands for `value`.

    A step with a program is solved anew for that value. One without a program has an answer for its own
    number alone, so what is missing from `value` to that number is written beside the letter.

    >>> substituted(Problem("What is 12 and 9?", "21", template="What is {x} and 9?"), "U", Fraction(5))
    'What is (U+7) and 9?'
    """
    head, tail = step.template.split("{x}", 1)
    offset = 0 if step.program else number(start_number(step)) - value
    sign = "+" if offset > 0 else "-"
    shown = f"({letter}{sign}{abs(offset)})" if offset else letter
    return head + shown + tail


def short_prompt(texts: list[str]) -> str:
    """The embedded world's wording: every step named by the letter of its answer."""
    steps = " ".join(f"{letter}: {text}" for letter, text in zip(LETTERS, texts))
    return f"{steps} Give {LETTERS[len(texts) - 1]} in \\boxed{{}}."


def h1_prompt(texts: list[str]) -> str:
    """The paper's numbered steps: odd ones solve a problem, even ones put its answer into the next."""
    if len(texts) == 1:
        return f"{texts[0]} {BOXED_INSTRUCTION}"
    steps = [f"Step 1: Solve this problem step by step.\n\n{texts[0]}"]
    for i, (letter, text) in enumerate(zip(PLACEHOLDERS, texts[1:]), start=1):
        steps.append(
            f"Step {2 * i}: Put the final answer of Step {2 * i - 1} in place of {letter} in this problem "
            f"and write the problem out with that number.\n\n{text}"
        )
        steps.append(f"Step {2 * i + 1}: Solve the problem from Step {2 * i} step by step.")
    return "\n\n".join(steps) + f" {BOXED_INSTRUCTION}"


def worked_lines(chain: list[Problem], values: list[Fraction], names: list[str]) -> list[str]:
    """One line a step, "B=25*2=50": its name, its program with the input written in, its value.

    A step without a program has its name and value alone.
    """
    lines = []
    for i, (step, name, value) in enumerate(zip(chain, names, values)):
        if step.program:
            received = values[i - 1] if i else start_number(step)
            lines.append(f"{name}{_fill(step.program, received)}={value}")
        else:
            lines.append(f"{name}{value}")
    return lines


def chain_solution(chain: list[Problem], names: list[str], lines: list[str], answer: str) -> str | None:
    """The worked lines, then the box. A step without a program shows its own solution, less the box.

    None where a step has neither program nor solution: a worked solution must not have a gap.
    """
    worked = []
    for step, name, line in zip(chain, names, lines):
        if step.program:
            worked.append(line)
        elif step.solution:
            worked.append(name + re.sub(r"\s*\\boxed\{.*\}\.?\s*$", "", step.solution))
        else:
            return None
    return "\n".join([*worked, f"\\boxed{{{answer}}}"])


def right_beginning(completion: str, solution: str) -> tuple[int, int]:
    r"""How many lines of a chain's worked solution a completion begins with, and how many there are.

    The box is no line of it; spaces and empty lines do not count. Lines are compared as text.

    >>> right_beginning("A=20+5=25\nB=25*2=40\n\\boxed{40}", "A=20+5=25\nB=25*2=50\n\\boxed{50}")
    (1, 2)
    """
    *steps, _ = ["".join(line.split()) for line in solution.splitlines()]
    written = ["".join(line.split()) for line in completion.splitlines() if line.strip()]
    right = 0
    while right < min(len(steps), len(written)) and written[right] == steps[right]:
        right += 1
    return right, len(steps)


def hinted_steps(horizon: int) -> int:
    """How many steps a hint works out: the first three quarters, so never the last."""
    return 3 * horizon // 4


def hint_text(chain: list[Problem], lines: list[str], letters: str = LETTERS) -> str:
    """Guidance for a chain: its first lines, worked, and the operation that comes next."""
    step = chain[len(lines)]
    if step.program:
        plan = _plan(step.program, letters[len(lines) - 1] if lines else start_number(step))
    else:
        plan = "solve the next problem"
    return ", ".join([*lines, f"then {plan}." if lines else f"{plan}."])


_VERBS = {"+": "add", "-": "subtract", "*": "multiply", "/": "halve"}


def _plan(program: str, x: str) -> str:
    """What a step does, in a word when it is one of the embedded world's operations."""
    if re.fullmatch(r"x([-+*][0-9]+|/2)", program):
        return _VERBS[program[1]]
    return f"compute {_fill(program, x)}"


def _fill(program: str, x: Fraction | str) -> str:
    """The program with its input written in."""
    return program.replace("x", f"({x})" if re.search("[-/]", str(x)) else str(x))


def start_number(problem: Problem) -> str:
    """The number of `prompt` that `template` replaces by {x}."""
    head, tail = problem.template.split("{x}", 1)
    return problem.prompt[len(head) : len(problem.prompt) - len(tail)]


# --- a number that can be replaced ------------------------------------------------------------------------

_NUMBER = re.compile(  # one that stands alone in a text
    r"(?<![\w.,/^])(\d{1,3}(?:,\d{3})+|\d+)(\.\d+)?(?![\w/^]|[.,]\d)", re.ASCII
)


def templates(prompt: str) -> Iterator[tuple[str, str]]:
    """Every number of a prompt that could be replaced, as (number, the prompt with {x} for it).

    It must be 2 or more and occur in the prompt once. A prompt that has a placeholder's letter already has
    none.
    """
    if "{x}" in prompt or re.search(rf"\b[{PLACEHOLDERS}]\b", prompt):
        return
    matches = list(_NUMBER.finditer(prompt))
    values = [number(match[0]) for match in matches]
    for match, value in zip(matches, values):
        if value is not None and values.count(value) == 1 and value >= 2:
            yield match[0], prompt[: match.start()] + "{x}" + prompt[match.end() :]


def chainable(problem: Problem) -> Problem | None:
    """The problem with a template, its own or one for the first number that can be replaced.

    None: it has no such number, or its answer is not a whole number from 2.
    """
    answer = number(problem.answer)
    if answer is None or answer.denominator != 1 or answer < 2:
        return None
    if problem.template:
        return problem
    _, template = next(templates(problem.prompt), (None, None))
    return replace(problem, template=template) if template else None


# --- the arithmetic behind a GSM8K problem ----------------------------------------------------------------

_WORDS = {
    word: n
    for n, word in enumerate("zero one two three four five six seven eight nine ten eleven twelve".split())
}
_WORDS |= {"twice": 2, "double": 2, "half": 2, "third": 3, "triple": 3, "thrice": 3, "quarter": 4}
_WORDS |= {"dozen": 12, "fifteen": 15, "twenty": 20}
_EVERYDAY = {0, 1, 2, 3, 4, 5, 7, 10, 12, 16, 24, 25, 30, 31, 52, 60, 100, 365, 1000}  # days, coins, per cent
_OPERAND = re.compile(r"\d+(?:\.\d+)?|\.\d+", re.ASCII)  # a number in the work of a note
MAX_PROGRAM_CHARS = 500  # a note that uses an earlier one twice doubles its program, so length could explode


def calculator_program(prompt: str, worked: str, answer: str) -> tuple[str, str, tuple[str, ...]] | None:
    """The arithmetic of a GSM8K problem in terms of one of its numbers, as (template, program, parts).

    GSM8K's solutions carry calculator notes, <<46/2=23>>. Which number of a note is which is nowhere said,
    so it is found by value:

        prompt                          Ann sold 46 cups, then half as many. Together?
        notes                           <<46/2=23>>   <<46+23=69>>
        x for the prompt's 46           x/2           x+23
        23 is the first note's result                 x+(x/2)

    The template is the prompt with {x} for that number, the program is the last note, and `parts` are the
    other results that count something (are whole and above 0).

    None where that might be wrong with another number in its place. The checks, each with its reason, are
    here, in `varies_alone` (is this number of the prompt only what it seems?) and in `programs_in_x` (does
    it pass through the notes without ambiguity?).

    >>> worked = "Half: 46/2=<<46/2=23>>23. All: 46+23=<<46+23=69>>69."
    >>> calculator_program("Ann sold 46 cups, then half as many. Together?", worked, "69")
    ('Ann sold {x} cups, then half as many. Together?', 'x+(x/2)', ('x/2',))
    """
    notes = calculator_notes(worked)
    if not notes:
        return None  # steps in words only, or a note that is no equation
    results = [result for _, result in notes]
    if number(answer) != results[-1]:
        return None  # the solution does something more after its last note
    if len(set(results)) < len(results):
        return None  # two notes give 36: which one does a later 36 mean?
    given = {number(match[0]) for match in _NUMBER.finditer(prompt)} - {None} | numbers_in_words(prompt)
    if given & set(results):
        return None  # the prompt says 72 and a note gives 72: which one does a later 72 mean?
    for shown, template in templates(prompt):
        start = number(shown)
        programs = programs_in_x(notes, given, start) if varies_alone(start, prompt) else None
        if programs:
            *before, last = programs
            counts = [result.denominator == 1 and result > 0 for result in results]
            return template, last, tuple(part for part, whole in zip(before, counts) if whole)
    return None


def calculator_notes(worked: str) -> list[tuple[str, Fraction]] | None:
    """The calculator notes of a solution as (work, result). None where one is not `work=number`.

    >>> calculator_notes("Half: <<46/2=23>>23, at $2: <<23*2=$46>>46")
    [('46/2', Fraction(23, 1)), ('23*2', Fraction(46, 1))]
    """
    notes = []
    for note in re.findall(r"<<([^<>]*)>>", worked):
        work, _, result = re.sub(r"[\s$,]", "", note).partition("=")
        if number(result) is None:  # also where there is no "=", or a second one
            return None
        notes.append((work, number(result)))
    return notes


def numbers_in_words(prompt: str) -> set[int]:
    """The values of the number words of a text, as far as GSM8K needs them.

    >>> numbers_in_words("Two friends share half a dozen.") == {2, 12}
    True
    """
    return {value for word, value in _WORDS.items() if re.search(rf"\b{word}", prompt, re.I)}


def varies_alone(start: Fraction, prompt: str) -> bool:
    """Does a number of the prompt stand for one thing only, so that another can take its place?"""
    if start in _EVERYDAY:
        return False  # the 7 in a note may be the week's days and not the prompt's 7
    if start in numbers_in_words(prompt):
        return False  # "six friends ... 6 sodas": a note's 6 may be either
    digits = [number(text.rstrip(".")) for text in re.findall(r"\d[\d,]*(?:\.\d+)?", prompt)]
    return digits.count(start) == 1  # "8 run 8km": glued to a word too, where `templates` does not see it


def programs_in_x(
    notes: list[tuple[str, Fraction]], given: set[Fraction], start: Fraction
) -> list[str] | None:
    """The work of every note in terms of x, which is the prompt's number `start`. None where it is in doubt.

    >>> programs_in_x([("46/2", Fraction(23)), ("46+23", Fraction(69))], {46, 2}, Fraction(46))
    ['x/2', 'x+(x/2)']
    """
    shares = {share for value in given - {start} for share in (value / 100, 1 - value / 100, 1 + value / 100)}
    explained = {start} | given | _EVERYDAY | shares  # 20% off may be written .2, .8 or 1.2
    programs: dict[Fraction, str] = {}  # by the result of the note
    used = set()  # every number that a note works with
    for work, result in notes:
        work = re.sub(r"([0-9.]+)%", r"(\1/100)", work)
        operands = [Fraction(operand) for operand in _OPERAND.findall(work)]
        if any(operand in programs and operand in _EVERYDAY for operand in operands):
            return None  # an earlier note gave 30: is this that 30, or the days of a month?
        if any(operand not in explained and operand not in programs for operand in operands):
            return None  # a number from nowhere: the solution computed it in words, perhaps from x
        if operands.count(start) > 1:
            return None  # 8*8: only one of them may be x
        program = _OPERAND.sub(functools.partial(_in_terms_of_x, start=start, programs=programs), work)
        if not _gives(program, start, result):
            return None  # the note is rounded, wrong or no plain arithmetic
        programs[result] = program
        used.update(operands)
    *before, last = programs
    if not set(before) <= used:
        return None  # 2.6 buses, "so 3": what happens to an unused result stands between the notes
    if "x" not in programs[last]:
        return None  # the answer does not depend on x
    return list(programs.values())


def _in_terms_of_x(operand: re.Match, start: Fraction, programs: dict[Fraction, str]) -> str:
    """A number of a note as what it stands for: an earlier note, the prompt's number x, or itself."""
    value = Fraction(operand[0])
    if value in programs:
        return f"({programs[value]})"
    return "x" if value == start else operand[0]


def _gives(program: str, x: Fraction, result: Fraction) -> bool:
    """Is it a program, short enough to run, with this result?"""
    if len(program) > MAX_PROGRAM_CHARS:
        return False
    try:
        return run_program(program, x) == result
    except (ValueError, SyntaxError, ZeroDivisionError):
        return False
