"""plainrl/esolang.py: both interpreters against hand values, the problems, and a grader that runs what it
grades."""

import doctest
import subprocess
import sys
from pathlib import Path

import pytest
from mutants import mutant

from plainrl import esolang
from plainrl.esolang import (
    KINDS,
    SPLITS,
    EsolangTask,
    ProgramError,
    prints_in_brainfuck,
    program_of,
    right_output,
    run_befunge,
    run_brainfuck,
)
from plainrl.tasks import load_task

ROOT = Path(__file__).parents[1]


def reason(run, *arguments) -> str:
    with pytest.raises(ProgramError) as error:
        run(*arguments)
    return str(error.value)


# --- Brainf**k ----------------------------------------------------------------------------------------------


@mutant("cells without an end", "plainrl/esolang.py", "(tape[cell] - 1) % 256", "tape[cell] - 1 & 511")
@mutant("cells up to 256", "plainrl/esolang.py", "(tape[cell] + 1) % 256", "(tape[cell] + 1) % 257")
@mutant("no 0 at the end of the input", "plainrl/esolang.py", "next(read, 0)", "next(read, 10)")
@mutant("a loop at least once", "plainrl/esolang.py", "if tape[cell] == 0:", "if tape[cell] == -1:")
@mutant(
    "comments that are commands",
    "plainrl/esolang.py",
    'program = "".join(command for command in program if command in "><+-.,[]")',
    'program = "".join(command if command in "><+-.,[]" else "." for command in program)',
)
def test_brainfuck_by_hand():
    """Catches cells that do not wrap, a loop that is entered at 0, another end of the input, and comments
    that do something."""
    assert run_brainfuck("++++++++[>++++++++<-]>+.") == b"A"  # 8 * 8 + 1
    assert run_brainfuck(",[.,]", b"abc") == b"abc"
    assert run_brainfuck(",>,<[>+<-]>.", bytes([3, 64])) == b"C"
    assert run_brainfuck("-.") == bytes([255])
    assert run_brainfuck("-+.") == bytes([0])
    assert run_brainfuck("[.]add one: + print it .") == bytes([1])
    assert run_brainfuck(",,.", b"x") == bytes([0])
    assert run_brainfuck("") == b""


@mutant("left of the tape", "plainrl/esolang.py", "if cell == 0:", "if cell == -9:")
@mutant(
    "a bracket that is never closed",
    "plainrl/esolang.py",
    "    if open_ones:\n",
    "    if False:\n",
)
@mutant("a bracket that opens nothing", "plainrl/esolang.py", "if not open_ones:", "if False:")
@mutant("one step more", "plainrl/esolang.py", "if steps > most_steps:", "if steps > most_steps + 1:")
def test_brainfuck_that_is_refused():
    """Catches a cell left of the tape, brackets without a partner, and a program that never ends."""
    assert reason(run_brainfuck, "<") == "left_of_the_tape"
    assert reason(run_brainfuck, "[") == reason(run_brainfuck, "+]") == "unmatched_bracket"
    assert reason(run_brainfuck, "][") == "unmatched_bracket"
    assert reason(run_brainfuck, "+[]") == "too_many_steps"
    assert run_brainfuck("+" * 100, b"", 100) == b""
    assert reason(run_brainfuck, "+" * 101, b"", 100) == "too_many_steps"


# --- Befunge-93 ---------------------------------------------------------------------------------------------


@mutant("which operand comes first", "plainrl/esolang.py", "b, a = pop(), pop()", "a, b = pop(), pop()")
@mutant(
    "quotients downwards",
    "plainrl/esolang.py",
    "abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)",
    "a // b",
)
@mutant("no blank after a number", "plainrl/esolang.py", 'f"{pop()} "', 'f"{pop()}"')
@mutant("an empty stack", "plainrl/esolang.py", "stack.pop() if stack else 0", "stack.pop() if stack else 1")
@mutant(
    "the zero branch",
    "plainrl/esolang.py",
    'TURNS[">" if pop() == 0 else "<"]',
    'TURNS["<" if pop() == 0 else ">"]',
)
@mutant(
    "the other branch",
    "plainrl/esolang.py",
    'TURNS["v" if pop() == 0 else "^"]',
    'TURNS["^" if pop() == 0 else "v"]',
)
@mutant("a field with ends", "plainrl/esolang.py", "(x + dx) % WIDTH", "(x + dx) % 8")
@mutant("nothing is skipped", "plainrl/esolang.py", "x, y = x + dx, y + dy", "x, y = x, y")
@mutant("x before y", "plainrl/esolang.py", "row, column = pop(), pop()", "column, row = pop(), pop()")
@mutant(
    "where it writes",
    "plainrl/esolang.py",
    "row, column, value = pop(), pop(), pop()",
    "column, row, value = pop(), pop(), pop()",
)
@mutant("strings without an end", "plainrl/esolang.py", "in_string = not in_string", "in_string = True")
@mutant("swapped twice", "plainrl/esolang.py", "stack += [top, below]", "stack += [below, top]")
@mutant(
    "the greater one", "plainrl/esolang.py", '"`": lambda a, b: int(a > b)', '"`": lambda a, b: int(a >= b)'
)
@mutant(
    "a number that is read again",
    "plainrl/esolang.py",
    "place = number.end() if number else place",
    "place = 0",
)
@pytest.mark.parametrize(
    "program, given, printed",
    [
        ('"!iH",,,@', "", "Hi!"),
        ("25*:*.@", "", "100 "),
        ("7 3/.7 3%.@", "", "2 1 "),
        ("07-2/.07-2%.70/.70%.@", "", "-3 -1 0 0 "),  # towards 0, and 0 for a divisor of 0
        ("&>:1-:v v *_$.@ \n ^    _$>\\:^", "5", "120 "),
        (".,@", "", "0 \0"),
        ("0!.5!.@", "", "1 0 "),
        ("12`.21`.11`.@", "", "0 1 0 "),
        ("12\\.$.@", "", "1 0 "),
        ("0#v_1.@\n  >2.@", "", "1 "),
        ("v2.@\n0\n|\n1\n.\n@", "", "1 "),
        ("<@.7", "", "7 "),  # leaves at the left, comes back at the right: 7 . @
        ("&&~~~.......@", "12 34xy", "-1 121 120 34 12 0 0 "),
        ("&.&.@", "x", "-1 -1 "),
        ("20g,@", "", "g"),  # x 2, y 0
        ('"Z"01p01g.@', "", "90 "),  # x 0, y 1
        ('"@"75+0p1.2.3.4.', "", "1 2 "),  # writes its end where the 3 stood
        ('99g.5 99p99g.@', "", "32 5 "),
    ],
)  # fmt: skip
def test_befunge_by_hand(program, given, printed):
    """Catches an operand, a branch or a coordinate that is exchanged, a field with ends, and an empty stack
    that is not 0."""
    assert run_befunge(program, given) == printed


@mutant("chance in a program", "plainrl/esolang.py", 'raise ProgramError("random_direction")', "pass")
@mutant("a field of any size", "plainrl/esolang.py", "len(lines) > HEIGHT or", "False or")
@mutant(
    "numbers that fill the memory",
    "plainrl/esolang.py",
    "if abs(stack[-1]) > LARGEST_VALUE:",
    "if False:",
)
def test_befunge_that_is_refused():
    """Catches a program that never ends, one whose way is chance, one larger than the field, and products
    that double their length with every step."""
    assert reason(run_befunge, ">") == "too_many_steps"
    assert reason(run_befunge, "?@") == "random_direction"
    assert reason(run_befunge, "\n" * 25 + "@") == reason(run_befunge, " " * 81) == "too_large"
    assert run_befunge("@" + "\n" * 24) == ""
    assert reason(run_befunge, "9v\n >:*", "", 800) == "number_too_large"
    assert reason(run_befunge, "01-,@") == "no_character"


# --- the problems -------------------------------------------------------------------------------------------

EVERY_KIND = [(language, kind) for language, kinds in KINDS.items() for kind in kinds]


@mutant("what sort sorts", "plainrl/esolang.py", '"".join(sorted(given))', '"".join(sorted(given))[::-1]')
@mutant(
    "the next Fibonacci number", "plainrl/esolang.py", "number, following = 0, 1", "number, following = 1, 1"
)
@mutant(
    "difference of letters", "plainrl/esolang.py", '("+" if step > 0 else "-")', '("-" if step > 0 else "+")'
)
@mutant("a text forwards", "plainrl/esolang.py", "text[::-1]", "text")
@pytest.mark.parametrize("language, kind", EVERY_KIND)
def test_worked_solutions_are_right(language, kind):
    """Catches a worked solution or a reference that the grader refuses, in a fence or in a box."""
    task = EsolangTask(language, kind)
    for index in range(12):
        problem = task.problem("train", index, 0)
        for text in (problem.solution, f"\\boxed{{{problem.answer}}}"):
            grade = task.grade(text, problem)
            assert (grade.correct, grade.score, grade.why) == (True, 1.0, "correct"), text
    assert right_output("sort", "cab") == "abc" and right_output("factorial", "5") == "120 "
    assert [right_output("fibonacci", str(n)) for n in (1, 2, 3, 10)] == ["1 ", "1 ", "2 ", "55 "]


@mutant(
    "inputs of another split",
    "plainrl/esolang.py",
    'if split_by_hash(" ".join(inputs), SPLITS) == split',
    "if inputs",
)
@mutant(
    "hidden inputs like the example",
    "plainrl/esolang.py",
    "if len({right_output(self.kind, each) for each in inputs}) == len(inputs):",
    "if inputs:",
)
def test_problems():
    """Catches a text to print that two splits share, a problem that is no function of its arguments, and an
    example whose output is that of a hidden input."""
    seen = {}
    for split in SPLITS:
        for index in range(60):
            problem = EsolangTask().problem(split, index, index % 3)
            assert seen.setdefault(problem.options, split) == split
            assert problem == EsolangTask().problem(split, index, index % 3)
    task = EsolangTask("befunge", "fibonacci")
    for index in range(200):
        problem = task.problem("train", index, 0)
        example = problem.prompt.split("For the input ")[1].split(" ")[0]
        outputs = [right_output("fibonacci", given) for given in (example, *problem.options)]
        assert len(set(outputs)) == 4
    with pytest.raises(ValueError, match="split 'all' is not one of sft, train"):
        task.problem("all", 0, 0)


@mutant(
    "one hidden input is enough",
    "plainrl/esolang.py",
    "for given in problem.options:",
    "for given in problem.options[:0]:",
)
@pytest.mark.parametrize("kind", ["copy", "sort"])
def test_printing_the_example_is_wrong(kind):
    """Catches a grader that is content with the output of the example, and one that sees half of the
    inputs."""
    task = EsolangTask("bf", kind)
    for index in range(20):
        problem = task.problem("train", index, 0)
        example = problem.prompt.split("For the input ")[1].split(" ")[0]
        constant = prints_in_brainfuck(right_output(kind, example))
        assert task.grade(f"```\n{constant}\n```", problem).why == "wrong"
        first = prints_in_brainfuck(right_output(kind, problem.options[0]))
        assert task.grade(f"```\n{first}\n```", problem).why == "wrong"


@mutant("the first program", "plainrl/esolang.py", "return fenced[-1][1]", "return fenced[0][1]")
@mutant(
    "a fence always",
    "plainrl/esolang.py",
    'if fenced and fenced[-1].end() > max(text.rfind("\\\\boxed"), text.rfind("\\\\fbox")):',
    "if fenced:",
)
@mutant("a box always", "plainrl/esolang.py", "return fenced[-1][1]", "return last_boxed(text)")
def test_which_program_counts():
    """Catches a fence that wins over a later box, the first of two, a program in the thinking, and blanks
    that are lost at the beginning of a line of Befunge."""
    assert program_of("```\na\n```\n\\boxed{b}") == "b"
    assert program_of("\\boxed{b}\n```\na\n```") == "a"
    assert program_of("```bf\n+.\n``` or\n```\n-.\n```") == "-."
    assert program_of("<think>```\n+.\n```</think>,.") is None
    assert program_of("```\n v\n  @\n```") == " v\n  @"
    task = EsolangTask()
    problem = task.problem("train", 0, 0)
    for text in ("no program", "```\n\n```", ""):
        assert task.grade(text, problem).parsed is None and task.grade(text, problem).why == "no_program"
    for program, why in (("+[]", "too_many_steps"), ("[", "unmatched_bracket"), ("<", "left_of_the_tape")):
        grade = task.grade(f"\\boxed{{{program}}}", problem)
        assert (grade.correct, grade.parsed, grade.why) == (False, program, why)


@pytest.mark.parametrize(
    "spec, said",
    [
        ("esolang?language=c", "language=c is not one of bf, befunge"),
        ("esolang?kind=factorial", "kind=factorial is not one of print, copy, sort of bf"),
        (
            "esolang?language=befunge&kind=sort",
            "kind=sort is not one of print, fibonacci, factorial of befunge",
        ),
        ("esolang?card=2", "card=2 is not 0 or 1"),
        ("esolang?size=3", "unknown setting 'size'; known are language, kind, card"),
    ],
)
def test_settings_that_are_refused(spec, said):
    """Catches a setting that is not named, or without what it may be."""
    with pytest.raises(ValueError, match="--task esolang") as error:
        load_task(spec)
    assert said in str(error.value)


@mutant("a card that cannot be left out", "plainrl/esolang.py", 'if str(self.card) == "1" else asked', "")
def test_the_card():
    """Catches a card that stays with card=0, and a task that imports torch in the graders' processes."""
    with_card, without = (load_task(f"esolang?kind=sort&card={card}") for card in (1, 0))
    long, short = (task.problem("test", 0, 0).prompt for task in (with_card, without))
    assert long == f"{esolang.CARDS['bf']}\n\n{short}" and with_card.name == "esolang-bf-sort"
    code = "import sys, plainrl.esolang, plainrl.orthogonal; print('torch' in sys.modules)"
    command, options = [sys.executable, "-c", code], dict(capture_output=True, text=True, cwd=ROOT)
    printed = subprocess.run(command, check=True, **options).stdout
    assert printed == "False\n"


def test_examples():
    """Catches an example of a docstring that is not true."""
    assert doctest.testmod(esolang).failed == 0
