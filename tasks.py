r"""Problems, how they are composed into chains, and how an answer is graded. Training and evaluation use the same code.

    chain                        the embedded world: word problems, each one using the answer of the one before (default)
    chain?horizon=5&family=mixed its settings, see `ChainTask`
    jsonl:PATH[?hint=FIELD]      your own file, one {"prompt": ..., "answer": ...} a line; optional are hint, solution, horizon, split
    gym:NAME?key=value&...       any reasoning-gym task with its settings and its own scorer
    gsm8k                        openai/gsm8k through the `datasets` library (needs a network)
    gsm8k?horizon=2-4, jsonl:PATH?horizon=3, gym:NAME?key=value&horizon=3
                                 their problems chained by h1's rule, see `ComposedTask`; compose.py writes them to a file
    math500, aime24, aime25, amc23, olympiadbench, gsm_symbolic, gsm_symbolic_p1, gsm_symbolic_p2, mmlu_pro_math
                                 benchmarks, in the same way, for eval.py: they have the split "test" alone

A task is any object with a `name` and two methods:

    problem(split, index, seed) -> Problem      a pure function; split is "train", "dev" or "test", and they share no problem
    grade(completion, problem)  -> Grade        correct when the score is 1

One whose problems have a horizon also gives a task of the same problems at another one (h1_curriculum.py asks for it):

    at_horizon(horizon)         -> task

Answers are asked for in \boxed{}; the last box counts. Two plain integers are compared here, anything else by math-verify
in worker processes with a wall-clock limit, so a completion can be wrong but can never stop or stall a run.
"""

import ast
import atexit
import copy
import functools
import hashlib
import itertools
import json
import math
import operator
import queue
import random
import re
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from fractions import Fraction
from importlib.metadata import version
from pathlib import Path
from urllib.parse import parse_qsl

BOXED_INSTRUCTION = "Put the final answer in \\boxed{}."
GRADE_SECONDS = 5.0  # wall-clock limit for one answer
MAX_ANSWER_CHARS = 1000  # a longer box is not an answer


@dataclass(frozen=True)
class Problem:
    """One problem with everything that is known about it."""

    prompt: str
    answer: str
    hint: str | None = None  # guidance; never contains the answer
    solution: str | None = None  # worked, ends in \boxed{answer}
    horizon: int = 1  # explicit number of dependent steps
    source: str = ""
    template: str | None = None  # the prompt with {x} for one of its numbers: can be chained by `compose`
    program: str | None = None  # the answer as arithmetic in x, e.g. "x+5"; without one, a chain keeps the number and the answer
    parts: tuple[str, ...] = ()  # what the program computes on the way and counts something: must stay whole and above 0


@dataclass(frozen=True)
class Grade:
    """`parsed` is the extracted answer (None: there was none), `why` a short reason that can be counted."""

    correct: bool
    score: float
    parsed: str | None
    why: str


def with_hint(problem: Problem) -> str:
    """The prompt followed by its guidance, in the one wording that the embedded model has seen."""
    return f"{problem.prompt}\nHint: {problem.hint}"


def reveals(hint: str, answer: str) -> bool:
    """Does a hint give the answer away? Words are compared, and numbers by value: 12 is not in "112 apples", but 1,000 is in
    "1000.00 m" and 1/2 in "0.5". A number in words is not seen.

    >>> reveals("Start with 112.", "12"), reveals("In the end you have $12.00.", "12")
    (False, True)
    """
    texts = [re.sub(r"\\[dt]?frac\{?(\d+)\}?\{?(\d+)\}?", r"\1/\2", text.replace("\u2212", "-")) for text in (hint, answer)]
    if len(answer.strip()) > 1:  # the letter of an option is not the article "a"
        texts = [text.lower() for text in texts]
    for one_number in (r"\d+/0*[1-9]\d*|", ""):  # a fraction as one number, then as two: 48 is in 48/2
        hay, needle = ([_value(word) for word in re.findall(rf"{one_number}\d+(?:,\d{{3}})*(?:\.\d+)?|\.\d+|[^\W\d_]+|[^\w\s]", text)]
                       for text in texts)  # fmt: skip
        if any(hay[i : i + len(needle)] == needle for i in range(len(hay) - len(needle) + 1)):
            return True
    return False


def _value(word: str) -> str | Fraction:
    return Fraction(word.replace(",", "")) if word[-1].isdigit() and word.isascii() else word


def hint_key(prompt: str) -> str:
    """What a file of hints is looked up by: the prompt, whether or not it ends in the instruction to use a box."""
    return prompt.strip().removesuffix(BOXED_INSTRUCTION).strip()


def load_hints(path: Path) -> dict[str, str]:
    """{`hint_key` of the prompt: hint} of a file with one JSON object a line. Raises ValueError with the line and the field."""
    hints = {}
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--hints {path}: cannot read the file ({error})") from None
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"--hints {path}, line {number}: not valid JSON ({error})") from None
            for name in ("prompt", "hint"):
                if not isinstance(row, dict) or not isinstance(row.get(name), str) or not row[name].strip():
                    raise ValueError(f"--hints {path}, line {number}: field {name!r} must be a non-empty string")
            hints[hint_key(row["prompt"])] = row["hint"].strip()
    return hints


# --- grading ------------------------------------------------------------------------------------------------------------


def last_boxed(text: str) -> str | None:
    r"""Content of the last \boxed{...}, braces balanced; None without a box or when the last box never closes.

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
    """The integer that `text` plainly is, else None. ASCII digits; thousands commas only where math-verify reads them too.

    >>> plain_integer("-1,000"), plain_integer("007"), plain_integer("1.0"), plain_integer("0,123")
    (-1000, 7, None, None)
    """
    text = text.strip().strip("$").strip()
    if re.fullmatch(r"[-+]?[0-9]{1,100}|-?[1-9][0-9]{0,2}(,[0-9]{3}){1,30}", text):
        return int(text.replace(",", ""))
    return None


def canonical(answer: str) -> str:
    """One spelling for every plain integer; any other text as it stands.

    >>> canonical(" 1,000 "), canonical("x + 1")
    ('1000', 'x + 1')
    """
    value = plain_integer(answer)
    return answer.strip() if value is None else str(value)


def same_answer(first: str, second: str) -> bool:
    """Are two answers mathematically equivalent? Plain integers are compared here, anything else by math-verify, which is not
    symmetric: one direction is enough."""
    if plain_integer(first) is not None and plain_integer(second) is not None:
        return plain_integer(first) == plain_integer(second)
    ask = lambda gold, answer: ask_worker({"kind": "math", "gold": gold, "answer": answer})[0] == 1.0  # noqa: E731
    return ask(first, second) or ask(second, first)


def grade_boxed(completion: str, problem: Problem) -> Grade:
    """Grade the last box against the problem's answer by mathematical equivalence."""
    parsed = last_boxed(completion)
    if not parsed:
        return Grade(False, 0.0, None, "no_box" if parsed is None else "empty_box")
    if len(parsed) > MAX_ANSWER_CHARS:
        return Grade(False, 0.0, None, "too_long")
    ours, gold = plain_integer(parsed), plain_integer(problem.answer)
    if ours is not None and gold is not None:
        score, why = float(ours == gold), ""
    else:
        score, why = ask_worker({"kind": "math", "gold": problem.answer, "answer": parsed})
    return Grade(score == 1.0, score, parsed, why or ("correct" if score == 1.0 else "wrong"))


def grade_all(task, completions: list[str], problems: list[Problem]) -> list[Grade]:
    """Grade in order, several at a time. A grader that raises costs its completion the reward, with the reason on record."""

    def grade(completion, problem):
        try:
            return task.grade(completion, problem)
        except Exception as error:  # a user's reward function may raise anything; it is counted in reward/errors
            return Grade(False, 0.0, None, f"error: {type(error).__name__}: {error}"[:200])

    with ThreadPoolExecutor(_workers.maxsize) as threads:
        return list(threads.map(grade, completions, problems))


def is_error(grade: Grade) -> bool:
    """True when the grader failed on the completion, as opposed to judging it wrong."""
    return grade.why.startswith(("timeout", "crash", "error"))


# Workers are separate Python processes that read one JSON request a line and write one JSON answer a line. They are started
# when first needed and kept; one that hangs is killed at the limit, and the next request starts another.

_workers: queue.Queue = queue.Queue(maxsize=2)
for _ in range(_workers.maxsize):
    _workers.put(None)


def _start_worker() -> subprocess.Popen:
    command = [sys.executable, __file__, "--grading-worker"]
    worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                              start_new_session=True)  # Ctrl-C is for the run, which finishes its step with working graders
    atexit.register(worker.kill)
    if not worker.stdout.readline():  # "ready": the imports do not count against the first answer
        raise RuntimeError("the grading worker does not start; see what `python -c 'import math_verify'` says")
    return worker


def ask_worker(request: dict) -> tuple[float, str]:
    """Send one request to a grading worker. Returns (score, why); a score of 0 and a reason when it hangs or dies."""
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


def _worker_main() -> None:
    """The loop of a grading worker."""
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
    except (ImportError, ValueError, OSError):
        pass  # Windows has no such limit, macOS refuses it
    import math_verify

    replies, sys.stdout = sys.stdout, sys.stderr  # whatever a scorer prints must not mix with the replies
    print("ready", file=replies, flush=True)
    gym_tasks = {}
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if request["kind"] == "math":
                parse = functools.partial(math_verify.parse, parsing_timeout=None)
                gold = f"\\boxed{{{request['gold']}}}"
                if request["answer"] is None:  # is this gold answer an expression? Else it would be compared as a string
                    score = float(bool(parse(gold, fallback_mode="no_fallback")))
                else:
                    answer = f"\\boxed{{{request['answer']}}}"
                    score = float(math_verify.verify(parse(gold), parse(answer), timeout_seconds=None))
            else:
                spec = request["spec"]
                task = gym_tasks[spec] = gym_tasks.get(spec) or load_task(spec)
                score = task.score(request["seed"], request["position"], request["prompt"], request["answer"])
            reply = [score, ""]
        except Exception as error:  # adversarial text may raise anything inside sympy; it is reported, not hidden
            reply = [0.0, f"error: {type(error).__name__}: {error}"[:200]]
        print(json.dumps(reply), file=replies, flush=True)


# --- composing chains ---------------------------------------------------------------------------------------------------

_OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
              ast.USub: operator.neg}  # fmt: skip


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


def number(text: str) -> Fraction | None:
    """The number that `text` plainly is, as a whole number, a decimal or a fraction, else None.

    >>> number("1,000"), number("2.50"), number("-14951/125"), number("12 eggs")
    (Fraction(1000, 1), Fraction(5, 2), Fraction(-14951, 125), None)
    """
    if plain_integer(text) is not None:
        return Fraction(plain_integer(text))
    text = re.sub(r"(?<=[0-9]),(?=[0-9]{3}(?:[,.]|$))", "", text.strip().strip("$").strip())
    return Fraction(text) if re.fullmatch(r"-?[0-9]{1,20}(\.[0-9]{1,20}|/[1-9][0-9]{0,19})", text) else None


def choose_chain(problems: list[Problem], horizon: int, rng: random.Random, limit: float | None = 999,
                 first: Problem | None = None) -> list[Problem] | None:  # fmt: skip
    """Pick `horizon` of the problems in an order that can be chained, starting with `first` if there is one: every answer is fed to
    the next problem, is new, and (with a limit, which may be math.inf) is an integer from 2 to it. None when the pool runs dry."""
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
    """A step's answer when it receives x: by its program; without one, or without x, its own. None: it has none."""
    if x is None or step.program is None:
        return number(step.answer)
    try:
        parts = [run_program(part, x) for part in step.parts]
        return run_program(step.program, x) if all(part.denominator == 1 and part > 0 for part in parts) else None
    except ZeroDivisionError:
        return None


def compose(problems: list[Problem], horizon: int, rng: random.Random, style: str = "short", limit: float | None = 999) -> Problem:
    """Chain `horizon` one-step problems by h1's rule: the answer of one replaces a number of the next (arXiv 2510.07312).

    `problems` need a `template`. Where there is a `program` the step's answer is computed anew from the number it receives; where
    there is none, the offset to the number that stood there is written out, "(U+7)", and the answer stays true (R-HORIZON, arXiv
    2510.08189); where that number does not matter to the problem, neither does the step before it.

    style "short" is the embedded world's terse wording (A: ... B: ... A ...), "h1" has the paper's 2*horizon - 1 numbered steps:
    solve, substitute, solve, substitute, ...; one problem alone stays as it is.
    """
    longest = {"short": len(LETTERS), "h1": len(PLACEHOLDERS) + 1}.get(style)
    if longest is None:
        raise ValueError(f"style {style!r} is not one of short, h1")
    if not 1 <= horizon <= longest:
        raise ValueError(f"horizon {horizon} is not within 1 to {longest}")
    chain = choose_chain(problems, horizon, rng, limit)
    if chain is None:
        raise ValueError(f"cannot chain {horizon} of these {len(problems)} problems; give more problems or a larger limit")
    return write_chain(chain, style)


def chain_values(chain: list[Problem]) -> list[Fraction]:
    """The answer of every step when each receives the answer before it."""
    values = []
    for step in chain:
        values.append(step_value(step, values[-1] if values else None))
    return values


def write_chain(chain: list[Problem], style: str) -> Problem:
    """Word a chain whose steps are already chosen."""
    if style == "h1" and len(chain) == 1 and "\\boxed" in chain[0].prompt:
        return chain[0]
    values = chain_values(chain)
    letters = LETTERS if style == "short" else PLACEHOLDERS
    texts = [chain[0].prompt] + [_substituted(*step) for step in zip(chain[1:], letters, values)]
    texts = [text.removesuffix(BOXED_INSTRUCTION).rstrip() for text in texts]
    if style == "short":
        names = [f"{letter}=" for letter in letters[: len(chain)]]
        prompt = " ".join(f"{letter}: {text}" for letter, text in zip(letters, texts)) + f" Give {letters[len(chain) - 1]} in \\boxed{{}}."
    else:
        names = [f"Step {2 * i + 1}: " for i in range(len(chain))]
        steps = [texts[0] if len(chain) == 1 else f"Step 1: Solve this problem step by step.\n\n{texts[0]}"]
        for i, (letter, text) in enumerate(zip(letters, texts[1:]), start=1):
            steps.append(f"Step {2 * i}: Put the final answer of Step {2 * i - 1} in place of {letter} in this problem and "
                         f"write the problem out with that number.\n\n{text}")  # fmt: skip
            steps.append(f"Step {2 * i + 1}: Solve the problem from Step {2 * i} step by step.")
        prompt = "\n\n".join(steps) + f" {BOXED_INSTRUCTION}"

    inputs = [start_number(chain[0]) if chain[0].program else None, *values[:-1]]
    works = [f"{_fill(step.program, x)}=" if step.program else "" for step, x in zip(chain, inputs)]
    lines = [f"{name}{work}{value}" for name, work, value in zip(names, works, values)]
    hint = hint_text(chain, lines[: hinted_steps(len(chain))], letters)
    if style == "h1" and reveals(hint, str(values[-1])):  # also by the number of a step
        hint = None
    solution = "\n".join([*map(_worked, chain, names, lines), f"\\boxed{{{values[-1]}}}"])
    if not all(step.program or step.solution for step in chain):
        solution = None
    sources = {step.source for step in chain}
    source = "chain/reversed" if "chain/reversed" in sources else chain[0].source
    return Problem(prompt, str(values[-1]), hint, solution, len(chain), source)


def _worked(step: Problem, name: str, line: str) -> str:
    """A step's line of the solution; without a program, its own solution less the box."""
    return line if step.program or not step.solution else name + re.sub(r"\s*\\boxed\{.*\}\.?\s*$", "", step.solution)


def _substituted(step: Problem, letter: str, value: Fraction) -> str:
    """A step with a letter for its number; where it has no program, with what is missing from `value` to the number."""
    head, tail = step.template.split("{x}", 1)
    offset = 0 if step.program else number(start_number(step)) - value
    return head + (f"({letter}{'+' if offset > 0 else '-'}{abs(offset)})" if offset else letter) + tail


LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWYZ"
PLACEHOLDERS = "UVWXYZ" + "BCDEFGHJKLMNOPQRST"  # of style "h1": the paper's six, then ours; A and I are words
_VERBS = {"+": "add", "-": "subtract", "*": "multiply", "/": "halve"}


def hinted_steps(horizon: int) -> int:
    """How many steps a hint works out: the first three quarters, so never the last."""
    return 3 * horizon // 4


def hint_text(chain: list[Problem], lines: list[str], letters: str = LETTERS) -> str:
    """Guidance for a chain: its first lines, worked, and the operation that comes next."""
    step = chain[len(lines)]
    plan = _plan(step.program, letters[len(lines) - 1] if lines else start_number(step)) if step.program else "solve the next problem"
    return ", ".join([*lines, f"then {plan}." if lines else f"{plan}."])


def _fill(program: str, x: Fraction | str) -> str:
    """The program with its input written in."""
    return program.replace("x", f"({x})" if re.search("[-/]", str(x)) else str(x))


def _plan(program: str, x: str) -> str:
    """What a step does, in a word when it is one of the embedded world's operations."""
    return _VERBS[program[1]] if re.fullmatch(r"x([-+*][0-9]+|/2)", program) else f"compute {_fill(program, x)}"


def start_number(problem: Problem) -> str:
    """The number of `prompt` that `template` replaces by {x}."""
    head, tail = problem.template.split("{x}", 1)
    return problem.prompt[len(head) : len(problem.prompt) - len(tail)]


_NUMBER = re.compile(r"(?<![\w.,/^])(\d{1,3}(?:,\d{3})+|\d+)(\.\d+)?(?![\w/^]|[.,]\d)", re.ASCII)  # one that stands alone in a text
_WORDS = {word: n for n, word in enumerate("zero one two three four five six seven eight nine ten eleven twelve".split())} | {
    "twice": 2, "double": 2, "half": 2, "third": 3, "triple": 3, "thrice": 3, "quarter": 4, "dozen": 12, "fifteen": 15, "twenty": 20,
}  # fmt: skip
_UNSAID = {0, 1, 2, 3, 4, 5, 7, 10, 12, 16, 24, 25, 30, 31, 52, 60, 100, 365, 1000}  # of everyday life: days, coins, per cent
_LEAF = re.compile(r"\d+(?:\.\d+)?|\.\d+", re.ASCII)


def templates(prompt: str) -> Iterator[tuple[str, str]]:
    """Every number of a prompt that occurs there once, is 2 or more and could be replaced: (number, the prompt with {x} for it)."""
    if "{x}" not in prompt and not re.search(rf"\b[{PLACEHOLDERS}]\b", prompt):
        matches = list(_NUMBER.finditer(prompt))
        values = [number(match[0]) for match in matches]
        for match, value in zip(matches, values):
            if value is not None and values.count(value) == 1 and value >= 2:
                yield match[0], prompt[: match.start()] + "{x}" + prompt[match.end() :]


def chainable(problem: Problem) -> Problem | None:
    """The problem with a template, its own or one for the first number that can be replaced. None: it has none, or its answer is not
    a whole number from 2."""
    answer = number(problem.answer)
    if answer is None or answer.denominator != 1 or answer < 2:
        return None
    if problem.template:
        return problem
    _, template = next(templates(problem.prompt), (None, None))
    return replace(problem, template=template) if template else None


def calculator_program(prompt: str, worked: str, answer: str) -> tuple[str, str, tuple[str, ...]] | None:
    """(template, program, parts) of a GSM8K problem from the calculator notes of its solution, <<48/2=24>>: the last note, with the
    notes whose results it uses written in, and x for a number of the prompt.

    None where another number could make it wrong: every note must be exact, every result must be used, once computed and never
    given, and every other number must be one of the prompt or of everyday life (the 7 of a week); x must stand once in the prompt,
    not in words either, and once in each note; and the program must give the answer. What counts something on the way (is whole
    and above 0) is returned as `parts`.

    >>> calculator_program("Ann sold 46 cups, then half as many. Together?", "Half: <<46/2=23>>23, all: <<46+23=69>>69", "69")
    ('Ann sold {x} cups, then half as many. Together?', 'x+(x/2)', ('x/2',))
    """
    notes = [re.sub(r"[\s$,]", "", note).split("=") for note in re.findall(r"<<([^<>]*)>>", worked)]
    if not notes or any(len(note) != 2 or number(note[1]) is None for note in notes):
        return None
    results = [number(result) for _, result in notes]
    alone = [number(match[0]) for match in _NUMBER.finditer(prompt)]
    words = {value for word, value in _WORDS.items() if re.search(rf"\b{word}", prompt, re.I)}
    given = {value for value in alone if value is not None} | words
    if len(set(results)) < len(results) or given & set(results) or number(answer) != results[-1]:
        return None
    digits = [number(text.rstrip(".")) for text in re.findall(r"\d[\d,]*(?:\.\d+)?", prompt)]
    for shown, template in templates(prompt):
        start = number(shown)
        if start not in _UNSAID | words and digits.count(start) == 1:
            if found := _program(notes, given, start):
                return template, *found
    return None


def _program(notes: list[list[str]], given: set[Fraction], start: Fraction) -> tuple[str, tuple[str, ...]] | None:
    """The last note in terms of x, and the other results that are whole and above 0; None where that cannot be trusted."""
    others, programs, used = given - {start}, {}, set()
    known = {start} | others | _UNSAID | {share for value in others for share in (value / 100, 1 - value / 100, 1 + value / 100)}
    for work, result in notes:
        work = re.sub(r"([0-9.]+)%", r"(\1/100)", work)
        leaves = [Fraction(leaf) for leaf in _LEAF.findall(work)]
        used.update(leaves)
        two_origins = programs.keys() & _UNSAID & set(leaves)
        if two_origins or not set(leaves) <= known | programs.keys() or leaves.count(start) > 1:
            return None

        def origin(match):
            value = Fraction(match[0])
            return f"({programs[value]})" if value in programs else "x" if value == start else match[0]

        program = _LEAF.sub(origin, work)
        try:
            if len(program) > 500 or run_program(program, start) != number(result):
                return None
        except (ValueError, SyntaxError, ZeroDivisionError):
            return None  # a note that is no plain arithmetic
        programs[number(result)] = program
    *before, last = programs
    if "x" not in programs[last] or not set(before) <= used:
        return None
    return programs[last], tuple(programs[value] for value in before if value.denominator == 1 and value > 0)


# --- the embedded world -------------------------------------------------------------------------------------------------

_NAMES = ["Tom", "Ann", "Sue", "Ben", "Kim", "Max", "Eva", "Leo"]
_THINGS = ["pens", "eggs", "nuts", "cups", "hats", "keys", "maps", "toys"]
_SENTENCES = {  # what a one-step problem computes, and how it says so
    "x+{k}": "{name} has {k} more than {x} {things}.",
    "x-{k}": "{name} has {k} fewer than {x} {things}.",
    "x*{k}": "{name} has {k} times {x} {things}.",
    "x/2": "{name} has half of {x} {things}.",
}
_REVERSED = {  # "more" where one has to subtract: the right reading is rare under the embedded base model
    "x-{k}": "{x} {things} is {k} more than {name} has.",
    "x+{k}": "{x} {things} is {k} fewer than {name} has.",
}
SPLITS = {"sft": range(0, 50), "train": range(50, 90), "dev": range(90, 95), "test": range(95, 100)}  # per cent of a hash


def split_of(text: str) -> str:
    """The split that a problem belongs to, whatever seed or index found it."""
    bucket = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % 100
    return next(split for split, buckets in SPLITS.items() if bucket in buckets)


def _one_step(rng: random.Random, reversed_reading: bool) -> Problem:
    """A one-step problem of the embedded world."""
    sentences = _REVERSED if reversed_reading else _SENTENCES
    pattern = rng.choices(list(sentences), [8, 8, 6, 2][: len(sentences)])[0]  # few halves: they let errors cancel
    k = rng.randint(2, 3) if pattern == "x*{k}" else rng.randint(2, 9)
    x = 2 * rng.randint(6, 99) if pattern == "x/2" else rng.randint(11, 199)
    wording = sentences[pattern].format(name=rng.choice(_NAMES), things=rng.choice(_THINGS), k=k, x="{x}")
    program = pattern.format(k=k)
    return Problem(wording.replace("{x}", str(x)), str(run_program(program, x)), template=wording, program=program,
                   source="chain/reversed" if reversed_reading else "chain")  # fmt: skip


def horizons(text: str, task: str, longest: int) -> tuple[int, int]:
    """The setting horizon=2-4 as (2, 4), horizon=3 as (3, 3)."""
    low, _, high = text.partition("-")
    low, high = _whole(low, "horizon"), _whole(high or low, "horizon")
    if not 1 <= low <= high <= longest:
        raise ValueError(f"--task {task}: horizon={text} is not within 1 to {longest}")
    return low, high


@dataclass
class ChainTask:
    """The embedded world: GSM8K-like steps chained by h1's rule, integer answers from 2 to 999.

    horizon: number of dependent steps, 1 to 10; `horizon=2-6` draws it uniformly for every problem.
    family:  plain; reversed (exactly one step, at a random place, says "A is 5 more than" where one has to subtract);
             mixed (a quarter of the problems are reversed).
    style:   short or h1, see `compose`.
    """

    horizon: str = "3"
    family: str = "plain"
    style: str = "short"
    name: str = "chain"
    max_horizon: int = field(default=10, init=False)
    grader = "plain integers"

    def __post_init__(self):
        self.low, self.high = horizons(str(self.horizon), "chain", self.max_horizon)
        if self.family not in ("plain", "reversed", "mixed"):
            raise ValueError(f"--task chain: family={self.family} is not one of plain, reversed, mixed")
        if self.style not in ("short", "h1"):
            raise ValueError(f"--task chain: style={self.style} is not one of short, h1")

    def chain(self, split: str, index: int, seed: int) -> list[Problem]:
        """The steps of a problem, a pure function of its arguments. Splits are disjoint in start number and programs."""
        if split not in SPLITS:
            raise ValueError(f"split {split!r} is not one of {', '.join(SPLITS)}")
        rng = random.Random(f"{seed}/{split}/{index}")
        horizon = rng.randint(self.low, self.high)
        has_reversed = self.family == "reversed" or (self.family == "mixed" and rng.random() < 0.25)
        while True:
            pool = [_one_step(rng, reversed_reading=False) for _ in range(3 * horizon)]
            steps = choose_chain(pool, horizon, rng)
            if steps and has_reversed:
                steps[rng.randrange(horizon)] = _one_step(rng, reversed_reading=True)
                values = chain_values(steps)
                steps = steps if all(v.denominator == 1 and 2 <= v <= 999 for v in values) else None
                steps = steps if steps and len(set(values)) == horizon else None
            if not steps or split_of(" ".join([steps[0].answer, *(step.program for step in steps)])) != split:
                continue
            problem = write_chain(steps, "short")
            if split == "sft" or problem.answer not in re.findall("[0-9]+", problem.hint):  # not even by chance; sft.py has its own
                return steps

    def problem(self, split: str, index: int, seed: int) -> Problem:
        return write_chain(self.chain(split, index, seed), self.style)

    def at_horizon(self, horizon: int) -> "ChainTask":
        return replace(self, horizon=str(horizon))

    def grade(self, completion: str, problem: Problem) -> Grade:
        parsed = last_boxed(completion)
        if parsed and plain_integer(parsed) is None:  # "30-6" is equal to 24, but leaves the work undone
            return Grade(False, 0.0, None, "not_an_integer")
        return grade_boxed(completion, problem)


# --- other sources ------------------------------------------------------------------------------------------------------


@dataclass
class ListTask:
    """A task over problems in memory, by split; answers are graded by mathematical equivalence."""

    name: str
    problems: dict[str, list[Problem]]
    grader = "math-verify"

    def members(self, split: str) -> list[Problem]:
        """The problems of a split; "all" is every split, one after the other."""
        if split == "all":
            return [problem for members in self.problems.values() for problem in members]
        if split not in self.problems:
            raise ValueError(f"--task {self.name}: has no split {split!r}; it has {', '.join(self.problems)}")
        if not self.problems[split]:
            number = sum(map(len, self.problems.values()))
            raise ValueError(f"--task {self.name}: its {number} problems leave nothing for {split}; give at least 10 different ones, "
                             "or measure them with eval.py --split all")  # fmt: skip
        return self.problems[split]

    def size(self, split: str) -> int:
        return len(self.members(split))

    def problem(self, split: str, index: int, seed: int) -> Problem:
        """Every epoch is a fresh permutation of the split, a pure function of the seed; dev and test keep their order."""
        problems = self.members(split)
        epoch, position = divmod(index, len(problems))
        if split == "train":
            position = random.Random(f"{seed}/{epoch}").sample(range(len(problems)), len(problems))[position]
        return problems[position]

    def grade(self, completion: str, problem: Problem) -> Grade:
        return grade_boxed(completion, problem)

    def same_answer(self, first: str, second: str) -> bool:
        return same_answer(first, second)

    def at_horizon(self, horizon: int) -> "ListTask":
        """Those of its problems that have this horizon: a file that compose.py wrote."""
        chosen = {split: [problem for problem in members if problem.horizon == horizon] for split, members in self.problems.items()}
        if not any(chosen.values()):
            found = sorted({problem.horizon for problem in self.members("all")})
            raise ValueError(f"--task {self.name}: has no problem of horizon {horizon}, only of {', '.join(map(str, found))}; "
                             "horizon=1 in --task chains them")  # fmt: skip
        return replace(self, problems=chosen)


class ChoiceTask(ListTask):
    """Multiple choice: the box holds the letter of an option."""

    grader = "letter"

    def grade(self, completion: str, problem: Problem) -> Grade:
        parsed = last_boxed(completion)
        letter = re.match(r"\$?(?:\\(?:text|mathrm|mathbf|textbf)\{)?[\s({]*([A-J])(?:[.:)}$]|$)", parsed or "")
        if not letter:
            return Grade(False, 0.0, None, "no_box" if parsed is None else "no_letter")
        correct = letter[1] == problem.answer
        return Grade(correct, float(correct), letter[1], "correct" if correct else "wrong")

    def same_answer(self, first: str, second: str) -> bool:
        return first == second


def split_list(problems: list[Problem], where: str) -> dict[str, list[Problem]]:
    """Every tenth problem of a horizon is dev, the one after it test, the others train; identical prompts stay on one side."""
    if not problems:
        raise ValueError(f"{where}: holds no problem")
    splits = {"train": [], "dev": [], "test": []}
    side, counts = {}, Counter()
    for problem in problems:
        if problem.prompt not in side:
            side[problem.prompt] = {8: "dev", 9: "test"}.get(counts[problem.horizon] % 10, "train")
            counts[problem.horizon] += 1
        splits[side[problem.prompt]].append(problem)
    return splits


def is_readable(answer: str) -> bool:
    """Is a gold answer an expression to math-verify? If not, it could only be compared as a string."""
    return plain_integer(answer) is not None or ask_worker({"kind": "math", "gold": answer, "answer": None})[0] == 1.0


def check_answer(answer: str, where: str) -> None:
    """Raise when a gold answer cannot be read: better at load than as a silent reward of 0 for ever."""
    if not is_readable(answer):
        what = f"{where}: field 'answer' ({answer[:60]!r})"
        raise ValueError(f"{what} is no expression that math-verify can read; write the bare answer")
    if len(answer) > MAX_ANSWER_CHARS:
        raise ValueError(f"{where}: field 'answer' is longer than {MAX_ANSWER_CHARS} characters")


def load_jsonl(path: str, hint: str = "hint") -> ListTask:
    """One problem a line; `hint` names the field that holds the hint. Lines may name their split, else `split_list` deals them out."""
    problems, named = [], {"train": [], "dev": [], "test": []}
    try:
        with open(path, encoding="utf-8-sig") as file:  # with or without a byte order mark
            lines = list(file)
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--task jsonl:{path}: cannot read the file ({error})") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{where}: not valid JSON ({error})") from None
        if not isinstance(row, dict):
            raise ValueError(f"{where}: expected an object with the fields prompt and answer")
        for name in ("prompt", "answer"):
            if name not in row:
                raise ValueError(f"{where}: field {name!r} is missing")
        for name in ("prompt", "answer", hint, "solution"):
            if name == "answer" and type(row[name]) is int:
                row[name] = str(row[name])
            if not isinstance(row.get(name, ""), str) or not row.get(name, "x").strip():
                raise ValueError(f"{where}: field {name!r} must be a non-empty string" + ', e.g. "0.5"' * (name == "answer"))
        check_answer(row["answer"], where)
        horizon = row.get("horizon", 1)
        if type(horizon) is not int or horizon < 1:
            raise ValueError(f"{where}: field 'horizon' must be a whole number from 1")
        prompt = row["prompt"] if "\\boxed" in row["prompt"] else f"{row['prompt']} {BOXED_INSTRUCTION}"
        if row.get("split", "train") not in named:
            raise ValueError(f"{where}: field 'split' must be train, dev or test")
        if ("split" in row) != any(named.values()) and problems:
            raise ValueError(f"{where}: field 'split' is {'new here' if 'split' in row else 'missing'}; give it in every line or in none")
        problems.append(Problem(prompt, row["answer"].strip(), row.get(hint), row.get("solution"), horizon, path))
        if "split" in row:
            named[row["split"]].append(problems[-1])
    if hint != "hint" and not any(problem.hint for problem in problems):
        raise ValueError(f"--task jsonl:{path}?hint={hint}: no line has a field {hint!r}")
    return ListTask("jsonl", named if any(named.values()) else split_list(problems, path))


def gsm8k_problem(question: str, answer: str, where: str) -> Problem:
    """One row of openai/gsm8k: the worked answer ends in '#### 42' and carries <<48/2=24>> calculator notes."""
    worked, marker, final = answer.rpartition("####")
    if not marker or plain_integer(final) is None:
        raise ValueError(f"{where}: field 'answer' does not end in '#### <integer>'")
    prompt, final = f"{question.strip()} {BOXED_INSTRUCTION}", str(plain_integer(final))
    solution = re.sub(r"<<[^>]*>>", "", worked).strip()
    template, program, parts = calculator_program(prompt, worked, final) or (None, None, ())
    return Problem(prompt, final, None, f"{solution}\n\\boxed{{{final}}}", source="gsm8k", template=template, program=program, parts=parts)


def load_rows(task: str, path: str, config: str | None, split: str, rows: int, columns: str) -> list[dict]:
    """One split of a dataset of the hub, after checking that it still is what its card says: number of rows, columns."""
    datasets = _optional("datasets", f"--task {task}")
    try:
        data = datasets.load_dataset(path, config, split=split)
    except (OSError, ValueError, RuntimeError) as error:
        message = f"--task {task}: cannot be loaded; it needs a network or a local cache of {path}. Offline, use --task chain"
        raise ValueError(f"{message} ({error})") from None
    missing = set(columns.split()) - set(data.column_names)
    if len(data) != rows or missing:
        what = f"lacks the columns {sorted(missing)}" if missing else f"has {len(data)} rows in {split} instead of {rows}"
        raise ValueError(f"--task {task}: {path} has changed: it {what}; use your own copy as --task jsonl:PATH")
    return list(data)


def load_gsm8k() -> ListTask:
    """7,473 training and 1,319 test problems (the published card); the last 500 training problems are dev."""
    make = lambda split, rows: [  # noqa: E731
        gsm8k_problem(row["question"], row["answer"], f"gsm8k {split}[{i}]")
        for i, row in enumerate(load_rows("gsm8k", "openai/gsm8k", "main", split, rows, "question answer"))
    ]
    train = make("train", 7473)
    return ListTask("gsm8k", {"train": train[:-500], "dev": train[-500:], "test": make("test", 1319)})


def _asked(question: str, answer: str) -> Problem:
    return Problem(f"{question.strip()} {BOXED_INSTRUCTION}", answer)


def _whole_number(answer: object) -> str:
    """'025', '70', '336^\\circ' and 27.0 as a plain integer."""
    value = float(str(answer).replace("^\\circ", ""))
    if value != int(value):
        raise ValueError(f"{answer!r} is not a whole number")
    return str(int(value))


def _multiple_choice(row: dict) -> Problem:
    options = "\n".join(f"{letter}. {option.strip()}" for letter, option in zip("ABCDEFGHIJ", row["options"]))
    return Problem(f"{row['question'].strip()}\n{options}\nPut the letter of the right option in \\boxed{{}}.", row["answer"])


BENCHMARKS = {  # name: dataset, config, split, rows and columns by its published card, a row as a problem (None: not part of it)
    "math500": ("HuggingFaceH4/MATH-500", None, "test", 500, "problem answer",
                lambda row: _asked(row["problem"], row["answer"])),
    "aime24": ("HuggingFaceH4/aime_2024", None, "train", 30, "problem answer",
               lambda row: _asked(row["problem"], _whole_number(row["answer"]))),
    "aime25": ("math-ai/aime25", None, "test", 30, "problem answer",
               lambda row: _asked(row["problem"], _whole_number(row["answer"]))),
    "amc23": ("math-ai/amc23", None, "test", 40, "question answer",
              lambda row: _asked(row["question"], _whole_number(row["answer"]))),
    "olympiadbench": ("Hothan/OlympiadBench", "OE_TO_maths_en_COMP", "train", 674, "question final_answer",
                      lambda row: _asked(row["question"], re.sub(r"^\$([^$]*)\$$", r"\1", ", ".join(row["final_answer"]).strip()))),
    "gsm_symbolic": ("apple/GSM-Symbolic", "main", "test", 5000, "question answer",
                     lambda row: gsm8k_problem(row["question"], row["answer"], "row")),
    "gsm_symbolic_p1": ("apple/GSM-Symbolic", "p1", "test", 5000, "question answer",
                        lambda row: gsm8k_problem(row["question"], row["answer"], "row")),
    "gsm_symbolic_p2": ("apple/GSM-Symbolic", "p2", "test", 2500, "question answer",
                        lambda row: gsm8k_problem(row["question"], row["answer"], "row")),
    "mmlu_pro_math": ("TIGER-Lab/MMLU-Pro", None, "test", 12032, "question options answer category",
                      lambda row: _multiple_choice(row) if row["category"] == "math" else None),
}  # fmt: skip


def load_benchmark(name: str) -> ListTask:
    """A benchmark of the hub: all of its problems are test. Gold answers that math-verify cannot read are counted on the screen."""
    path, config, split, number, columns, make = BENCHMARKS[name]
    problems = []
    for i, row in enumerate(load_rows(name, path, config, split, number, columns)):
        try:
            problem = make(row)
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"--task {name}: {path} has changed: row {i} of {split} cannot be read ({error})") from None
        problems += [problem] if problem else []
    task = (ChoiceTask if name == "mmlu_pro_math" else ListTask)(name, {"test": problems})
    unread = 0 if isinstance(task, ChoiceTask) else sum(not is_readable(problem.answer) for problem in problems)
    if unread:
        print(f"{name}: {unread} of {len(problems)} gold answers are no expression to math-verify; only the same text is right there")
    return task


class GymTask:
    """A reasoning-gym task with its own scorer. Splits are decided by the question's text, so they are disjoint; dev and test
    never ask a question twice.

    A few tasks must prepare all their questions at once and need a smaller pool, e.g. gym:word_ladder?size=10000.
    """

    def __init__(self, spec: str, dataset_name: str, settings: dict):
        self.gym = _optional("reasoning_gym", f"--task gym:{dataset_name}", "reasoning-gym")
        self.spec, self.name, self.dataset_name, self.settings = spec, f"gym-{dataset_name}", dataset_name, settings
        self.grader = f"reasoning-gym {version('reasoning-gym')}"
        self.datasets, self.held_out = {}, {}
        self.dataset(0)

    def dataset(self, seed: int):
        if seed not in self.datasets:
            try:
                settings = {"size": 1_000_000, **self.settings}
                self.datasets[seed] = self.gym.create_dataset(self.dataset_name, seed=seed, **settings)
            except (ValueError, TypeError, AssertionError) as error:
                raise ValueError(f"--task {self.spec}: reasoning-gym refuses it ({error})") from None
        return self.datasets[seed]

    def problem(self, split: str, index: int, seed: int) -> Problem:
        """Questions are drawn until one belongs to the split. `source` says which it is, so that any process can score it."""
        if split not in SPLITS:
            raise ValueError(f"--task {self.spec}: has no split {split!r}; it has train, dev, test")
        if split == "train":
            position = next(self.draw(split, seed, f"{seed}/{split}/{index}"), None)
        else:
            if (split, seed) not in self.held_out:
                self.held_out[split, seed] = [], self.draw(split, seed, f"{seed}/{split}")
            found, more = self.held_out[split, seed]
            found += itertools.islice(more, max(0, index + 1 - len(found)))
            position = found[index] if index < len(found) else None
        if position is None:
            raise ValueError(f"--task {self.spec}: has too few different questions for {index + 1} in {split}; ask for fewer problems, "
                             "or give settings with more questions")  # fmt: skip
        entry = self.dataset(seed)[position]
        return Problem(self.prompt(entry), str(entry["answer"]), source=f"{self.spec}#{seed}#{position}")

    def draw(self, split: str, seed: int, stream: str) -> Iterator[int]:
        """Positions of the split's questions in a random order, none asked twice; ends after 1,000 draws without a new one."""
        dataset, rng, asked, in_vain = self.dataset(seed), random.Random(stream), set(), 0
        while in_vain < 1000:
            position = rng.randrange(len(dataset))
            question = dataset[position]["question"]
            member = split_of(question)
            in_vain += 1
            if question not in asked and (member == split or (split == "train" and member == "sft")):
                asked.add(question)
                in_vain = 0
                yield position

    def prompt(self, entry: dict) -> str:
        return f"{entry['question'].strip()}\n{BOXED_INSTRUCTION}"

    def grade(self, completion: str, problem: Problem) -> Grade:
        parsed = last_boxed(completion)
        if not parsed:
            return Grade(False, 0.0, None, "no_box" if parsed is None else "empty_box")
        if len(parsed) > MAX_ANSWER_CHARS:
            return Grade(False, 0.0, None, "too_long")
        seed, position = map(int, problem.source.rsplit("#", 2)[1:])
        request = {"spec": self.spec, "seed": seed, "position": position, "prompt": problem.prompt, "answer": parsed}
        score, why = ask_worker({"kind": "gym", **request})
        return Grade(score == 1.0, score, parsed, why or ("correct" if score == 1.0 else "wrong"))

    def same_answer(self, first: str, second: str) -> bool:
        """Numbers by equivalence; words (names, moves) are the same only when they are written the same way."""
        return bool(re.search("[0-9]", first) and re.search("[0-9]", second)) and same_answer(first, second)

    def score(self, seed: int, position: int, prompt: str, answer: str) -> float:
        """The scorer's verdict, in the worker. A question that comes out otherwise there must not be scored by mistake."""
        entry = self.dataset(seed)[position]
        if self.prompt(entry) != prompt:
            raise ValueError("this reasoning-gym task differs from process to process; set PYTHONHASHSEED=0 and start again")
        return float(self.dataset(seed).score_answer(answer, entry))


class ComposedTask:
    """The problems of another task, chained by h1's rule in style "h1" (`compose`), all answers whole numbers from 2.

    Where problems have a program (GSM8K), those alone are chained; else those are for which `chainable` finds a number, by an
    offset. The others are left out and counted on the screen. Every problem of a finite split starts one chain an epoch; further
    steps are drawn from the same split.
    """

    grader = "math-verify"
    max_horizon = len(PLACEHOLDERS) + 1

    def __init__(self, base: "ListTask | GymTask", horizon: str):
        self.base, self.name = base, base.name
        self.low, self.high = horizons(horizon, base.name, self.max_horizon)
        self.pool = None
        if isinstance(base, ListTask):
            by_program = any(problem.program for problem in base.members("all"))
            pools = {split: [step for problem in members if (problem.program or not by_program) and (step := chainable(problem))]
                     for split, members in base.problems.items()}  # fmt: skip
            self.pool = replace(base, problems=pools)
            self.size = lambda split: len(self.members(split))
            kept, whole = len(self.pool.members("all")), len(base.members("all"))
            print(f"{self.name}: {kept} of {whole} problems can be chained, by {'their programs' if by_program else 'an offset'}")

    def members(self, split: str) -> list[Problem]:
        """What the first steps of a split's chains are."""
        if not self.base.members(split) or not self.pool.problems.get(split, split == "all"):
            raise ValueError(f"--task {self.name}: none of its problems in {split} can be chained; they need a whole number, 2 or more, in "
                             "question and answer")  # fmt: skip
        return self.pool.members(split)

    def steps(self, split: str, index: int, seed: int) -> Iterator[tuple[Problem, list[Problem]]]:
        """The first step of a chain, and problems to draw the others from; more of them where those do not do."""
        if self.pool:
            members = self.members(split)
            first = self.pool.problem(split, index, seed)
            yield from [(first, [step for step in members if step.prompt != first.prompt])] * 20
        else:
            width, found = 8 + 4 * self.high, []  # few problems of a gym task are in two chains
            for position in range(index * width, (index + 20) * width):
                step = chainable(self.base.problem(split, position, seed))
                found += [step] if step else []
                if (position + 1) % width == 0 and found:
                    yield found[0], found[1:]

    def problem(self, split: str, index: int, seed: int) -> Problem:
        rng = random.Random(f"{seed}/{split}/{index}/chain")
        horizon = rng.randint(self.low, self.high)
        for first, others in self.steps(split, index, seed):
            if chain := choose_chain(others, horizon, rng, math.inf, first):
                return write_chain(chain, "h1")
        raise ValueError(f"--task {self.name}: cannot chain {horizon} of its problems in {split}; it needs more with whole numbers in "
                         "question and answer, or a shorter horizon")  # fmt: skip

    def grade(self, completion: str, problem: Problem) -> Grade:
        return grade_boxed(completion, problem)

    def same_answer(self, first: str, second: str) -> bool:
        return same_answer(first, second)

    def at_horizon(self, horizon: int) -> "ComposedTask":
        other = copy.copy(self)
        other.low, other.high = horizons(str(horizon), self.name, self.max_horizon)
        return other


def _optional(module: str, what: str, package: str | None = None):
    """Import an optional package or say how to get it."""
    try:
        return __import__(module)
    except ImportError:
        raise ValueError(f"{what}: needs a package that is not installed; run: pip install {package or module}") from None


def _whole(text: str, name: str) -> int:
    if not re.fullmatch("[0-9]+", text):
        raise ValueError(f"--task: {name}={text} is not a whole number")
    return int(text)


def _setting(text: str):
    """A setting's value as the Python literal it looks like, else as the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return {"true": True, "false": False}.get(text, text)


def load_task(spec: str):
    """The task that a --task flag names."""
    pattern = r"(jsonl:.*?)(?:\?((?:hint|horizon)=.*))?" if spec.startswith("jsonl:") else r"([^?]*)\??(.*)"  # a path may have a "?"
    name, query = re.fullmatch(pattern, spec, re.S).groups(default="")
    try:
        settings = dict(parse_qsl(query.replace("+", "%2B"), keep_blank_values=True, strict_parsing=bool(query)))
    except ValueError as error:
        raise ValueError(f"--task {spec}: settings are written NAME?key=value&key=value ({error})") from None
    if name == "chain":
        check_settings(spec, settings, "horizon", "family", "style")
        return ChainTask(**settings)
    horizon = settings.pop("horizon", None)
    if name.startswith("gym:"):
        task = GymTask(spec, name[4:], {key: _setting(value) for key, value in settings.items()})
    elif name.startswith("jsonl:"):
        check_settings(spec, settings, "hint", "horizon")
        task = load_jsonl(name[6:], settings.get("hint", "hint"))
    elif name == "gsm8k" or name in BENCHMARKS:
        check_settings(spec, settings, "horizon")
        task = load_gsm8k() if name == "gsm8k" else load_benchmark(name)
    else:
        raise ValueError(f"--task {spec}: unknown; use chain, jsonl:PATH, gym:NAME?key=value, gsm8k, {', '.join(BENCHMARKS)}")
    return task if horizon is None else ComposedTask(task, horizon)


def check_settings(spec: str, settings: dict[str, str], *known: str) -> None:
    for name in settings:
        if name not in known:
            raise ValueError(f"--task {spec}: unknown setting {name!r}; known are {', '.join(known)}")


if __name__ == "__main__" and sys.argv[1:] == ["--grading-worker"]:
    _worker_main()
