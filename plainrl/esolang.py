r"""Programs in languages that models have hardly seen: interpreters of Brainf**k and Befunge-93, and a task.

    esolang?language=bf&kind=sort          ,[.,] copies; which program sorts?
    esolang?language=befunge&kind=print    "!iH",,,@ prints Hi!

The task of "General Reasoning Requires Learning to Reason from the Get-go" (arXiv 2502.19402). The prompt has
the language's commands and an example. A program is run on inputs that the prompt does not show. It ends
after so many steps, never after so much time, so a grade is the same on every machine.
"""

import itertools
import math
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from plainrl.answers import after_thinking, last_boxed
from plainrl.tasks import Grade, Problem, problem_rng, split_by_hash

MOST_STEPS = 100_000  # of a program
WIDTH, HEIGHT = 80, 25  # of Befunge's field, whose ends are joined
KINDS = {"bf": ("print", "copy", "sort"), "befunge": ("print", "fibonacci", "factorial")}
HIDDEN = 3  # inputs that the prompt does not show
LARGEST_NUMBER = 12  # input of fibonacci and factorial
LETTERS = "abcdefghijklmnopqrstuvwxyz"
PRINTED = {"bf": 2, "befunge": 5}  # letters of a text to print
SPLITS = {"sft": range(0, 30), "train": range(30, 75), "dev": range(75, 85), "test": range(85, 100)}
FENCED = re.compile(r"```[^\n`]*\n(.*?)\n?```", re.DOTALL)

CARDS = {
    "bf": "Brainf**k: a tape of cells, all 0 at first, each from 0 to 255, and a pointer to the first one. "
    "> and < move the pointer to the right and to the left. + and - add and take away 1 (after 255 comes 0). "
    ". prints the cell's character, , reads one into it (0 at the end of the input). [ jumps behind its ] if "
    "the cell is 0, ] jumps back to its [ if it is not. All other characters are comments.",
    "befunge": "Befunge-93: a field of 80 x 25 characters whose ends are joined, and a stack. The program "
    "begins at the top left and goes right. > < ^ v turn, _ takes a number and goes right if it is 0, else "
    "left, | down or up. # skips the next character. 0 to 9 are put on the stack. + - * / % take b, then a, "
    'and put a+b and so on; ! is 1 for 0, else 0; ` is 1 where a > b, else 0. " puts the codes of all '
    'characters up to the next " on the stack. : doubles, \\ swaps, $ drops. . prints a number and a blank, '
    ", prints a character. & reads a number, ~ a character. g takes y, then x, and puts what the field has "
    "there; p takes y, x and a number and writes it there. @ ends.",
}
WHAT = {
    "print": "prints {example}",
    "copy": "prints its input",
    "sort": "prints the letters of its input in alphabetical order",
    "fibonacci": "reads a number n with & and with . prints the n-th Fibonacci number (of 1 and 2 it is 1)",
    "factorial": "reads a number n with & and with . prints n!, the product of 1 to n",
}


class ProgramError(Exception):
    """The program does something that is not allowed, or does not end; the text is a reason to be counted."""


# --- Brainf**k ----------------------------------------------------------------------------------------------


def matching_brackets(program: str) -> dict[int, int]:
    """{position of each bracket: that of the one it belongs to}

    >>> matching_brackets("[[]]")
    {1: 2, 2: 1, 0: 3, 3: 0}
    """
    open_ones, partner = [], {}
    for position, command in enumerate(program):
        if command == "[":
            open_ones.append(position)
        elif command == "]":
            if not open_ones:
                raise ProgramError("unmatched_bracket")
            start = open_ones.pop()
            partner |= {start: position, position: start}
    if open_ones:
        raise ProgramError("unmatched_bracket")
    return partner


def run_brainfuck(program: str, given: bytes = b"", most_steps: int = MOST_STEPS) -> bytes:
    """What a program prints. Cells count modulo 256; the tape grows to the right. Raises ProgramError.

    >>> run_brainfuck(",[.,]", b"abc"), run_brainfuck("-.")
    (b'abc', b'\\xff')
    """
    program = "".join(command for command in program if command in "><+-.,[]")
    partner, tape, cell, position, steps = matching_brackets(program), [0], 0, 0, 0
    read, printed = iter(given), bytearray()
    while position < len(program):
        steps += 1
        if steps > most_steps:
            raise ProgramError("too_many_steps")
        match program[position]:
            case ">":
                cell += 1
                if cell == len(tape):
                    tape.append(0)
            case "<":
                if cell == 0:
                    raise ProgramError("left_of_the_tape")
                cell -= 1
            case "+":
                tape[cell] = (tape[cell] + 1) % 256
            case "-":
                tape[cell] = (tape[cell] - 1) % 256
            case ".":
                printed.append(tape[cell])
            case ",":
                tape[cell] = next(read, 0)
            case "[":
                if tape[cell] == 0:
                    position = partner[position]
            case "]":
                if tape[cell] != 0:
                    position = partner[position]
        position += 1
    return bytes(printed)


# --- Befunge-93 ---------------------------------------------------------------------------------------------


def truncated_quotient(a: int, b: int) -> int:
    """a / b towards 0; 0 for a divisor of 0.

    >>> truncated_quotient(-7, 2), truncated_quotient(7, 0)
    (-3, 0)
    """
    return 0 if b == 0 else abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


BINARY = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": truncated_quotient,
    "%": lambda a, b: 0 if b == 0 else a - b * truncated_quotient(a, b),
    "`": lambda a, b: int(a > b),
}
TURNS = {">": (1, 0), "<": (-1, 0), "^": (0, -1), "v": (0, 1)}
LARGEST_VALUE = 10**30  # products double their length with every step: a program could fill the memory


def run_befunge(program: str, given: str = "", most_steps: int = MOST_STEPS) -> str:
    r"""What a program prints. An empty stack gives 0; at the end of the input & and ~ give -1. Raises
    ProgramError.

    >>> run_befunge('"!iH",,,@'), run_befunge("&:*.@", "12")
    ('Hi!', '144 ')
    """
    lines = program.split("\n")
    if len(lines) > HEIGHT or any(len(line) > WIDTH for line in lines):
        raise ProgramError("too_large")
    field = {(x, y): ord(character) for y, line in enumerate(lines) for x, character in enumerate(line)}
    stack, printed, place = [], [], 0  # place: in the input
    x, y, (dx, dy), in_string = 0, 0, TURNS[">"], False

    def pop() -> int:
        return stack.pop() if stack else 0

    for _ in range(most_steps):
        code = field.get((x, y), 32)
        command = chr(code) if 0 <= code < 0x110000 else " "
        if in_string and command != '"':
            stack.append(code)
        elif command == '"':
            in_string = not in_string
        elif command in TURNS:
            dx, dy = TURNS[command]
        elif command in "0123456789":
            stack.append(int(command))
        elif command in BINARY:
            b, a = pop(), pop()
            stack.append(BINARY[command](a, b))
            if abs(stack[-1]) > LARGEST_VALUE:
                raise ProgramError("number_too_large")
        else:
            match command:
                case "@":
                    return "".join(printed)
                case "?":
                    raise ProgramError("random_direction")  # else a grade would be chance
                case "!":
                    stack.append(int(pop() == 0))
                case "_":
                    dx, dy = TURNS[">" if pop() == 0 else "<"]
                case "|":
                    dx, dy = TURNS["v" if pop() == 0 else "^"]
                case ":":
                    top = pop()
                    stack += [top, top]
                case "\\":
                    top, below = pop(), pop()
                    stack += [top, below]
                case "$":
                    pop()
                case ".":
                    printed.append(f"{pop()} ")
                case ",":
                    code = pop()
                    if not 0 <= code < 0x110000:
                        raise ProgramError("no_character")
                    printed.append(chr(code))
                case "#":
                    x, y = x + dx, y + dy
                case "g":
                    row, column = pop(), pop()
                    stack.append(field.get((column, row), 32 if is_inside(column, row) else 0))
                case "p":
                    row, column, value = pop(), pop(), pop()
                    if is_inside(column, row):
                        field[column, row] = value
                case "&":
                    number = re.compile(r"\s*(-?[0-9]+)").match(given, place)
                    stack.append(int(number[1]) if number else -1)
                    place = number.end() if number else place
                case "~":
                    stack.append(ord(given[place]) if place < len(given) else -1)
                    place += 1
        x, y = (x + dx) % WIDTH, (y + dy) % HEIGHT
    raise ProgramError("too_many_steps")


def is_inside(column: int, row: int) -> bool:
    return 0 <= column < WIDTH and 0 <= row < HEIGHT


# --- right programs -----------------------------------------------------------------------------------------

# Every letter walks as many blocks of three cells to the right as it comes in the alphabet, leaves a trail on
# its way, and is counted there. Then all blocks are passed, each printing its letter as often as was counted.
SORTS = (
    ">>>,[<<<++++++++[->>>------------<<<]>>>[-[->>>+<<<]>+>>]>>+<<<<[-<<<]>>,]"
    ">>>>++++++++[-<++++++++++++>]<+>++++++++++++++++++++++++++"
    "[>[-<<.>>]<<[->>>+<<<]>>>+<<-[->>>+<<<]>>>]"
)
# Both keep a counter in the field, at column 9 of row 9.
FIBONACCI = """&99p01>99g!#v_99g1-99p:88p+88g\\v
      ^                        <
            >$.@"""
FACTORIAL = """&99p1>99g!#v_99g:1-99p*v
     ^                 <
           >.@"""


def prints_in_brainfuck(text: str) -> str:
    """A program that prints the text: the first letter by a product, the others by their difference.

    >>> prints_in_brainfuck("de")
    '++++++++++[>++++++++++<-]>.+.'
    """
    tens, ones = divmod(ord(text[0]), 10)
    program = f"{'+' * 10}[>{'+' * tens}<-]>{'+' * ones}."
    for before, letter in itertools.pairwise(text):
        step = ord(letter) - ord(before)
        program += ("+" if step > 0 else "-") * abs(step) + "."
    return program


def right_program(language: str, kind: str, text: str) -> str:
    """A program that does what is asked for; of all kinds but print it is always the same."""
    if kind == "print":
        return prints_in_brainfuck(text) if language == "bf" else f'"{text[::-1]}"{"," * len(text)}@'
    return {"copy": ",[.,]", "sort": SORTS, "fibonacci": FIBONACCI, "factorial": FACTORIAL}[kind]


def right_output(kind: str, given: str) -> str:
    """What a right program prints for an input; of print, `given` is the text itself.

    >>> right_output("sort", "cab"), right_output("fibonacci", "7"), right_output("factorial", "5")
    ('abc', '13 ', '120 ')
    """
    match kind:
        case "sort":
            return "".join(sorted(given))
        case "fibonacci":
            number, following = 0, 1
            for _ in range(int(given)):
                number, following = following, number + following
            return f"{number} "
        case "factorial":
            return f"{math.factorial(int(given))} "
    return given


def program_of(completion: str) -> str | None:
    r"""What stands in the last fenced block or the last box, whichever comes later. None without one.

    >>> program_of("```bf\n,.\n```"), program_of(r"\boxed{,[.,]}"), program_of("+.")
    (',.', ',[.,]', None)
    """
    text = after_thinking(completion)
    fenced = list(FENCED.finditer(text))
    if fenced and fenced[-1].end() > max(text.rfind("\\boxed"), text.rfind("\\fbox")):
        return fenced[-1][1]
    return last_boxed(text)


# --- the task -----------------------------------------------------------------------------------------------


@dataclass
class EsolangTask:
    """Write a program. It is right when its output is, on every input that the prompt does not show.

    language: bf or befunge.
    kind:     print, copy or sort of bf; print, fibonacci or factorial of befunge.
    card:     1: the prompt says what the language's commands do; 0: it does not.

    Of print every text is a problem of its own, of which no two splits share one. Of the other kinds there is
    but one thing to write, and only examples and inputs differ.
    """

    language: str = "bf"
    kind: str = "print"
    card: str | int = 1
    name: str = field(default="esolang", init=False)
    grader = "esolang"

    def __post_init__(self):
        if self.language not in KINDS:
            raise ValueError(f"--task esolang: language={self.language} is not one of {', '.join(KINDS)}")
        kinds = KINDS[self.language]
        if self.kind not in kinds:
            known = ", ".join(kinds)
            raise ValueError(f"--task esolang: kind={self.kind} is not one of {known} of {self.language}")
        if str(self.card) not in ("0", "1"):
            raise ValueError(f"--task esolang: card={self.card} is not 0 or 1")
        self.name = f"esolang-{self.language}-{self.kind}"

    def problem(self, split: str, index: int, seed: int) -> Problem:
        """A pure function of its arguments."""
        rng = problem_rng(SPLITS, split, index, seed)
        example, *hidden = next(
            inputs for inputs in self.draws(rng) if split_by_hash(" ".join(inputs), SPLITS) == split
        )
        program = right_program(self.language, self.kind, example)
        return Problem(
            prompt=self.prompt(example),
            answer=program,
            solution=f"```\n{program}\n```",
            source=self.name,
            options=tuple(hidden) if hidden else (example,),
            index=index,
        )

    def draws(self, rng: random.Random) -> Iterator[list[str]]:
        """Endless: the example's input, and hidden ones whose outputs are others than the example's. Of
        print the text alone."""
        while True:
            if self.kind == "print":
                yield ["".join(rng.choices(LETTERS, k=PRINTED[self.language]))]
                continue
            if self.kind in ("copy", "sort"):
                inputs = ["".join(rng.choices(LETTERS, k=rng.randint(3, 6))) for _ in range(1 + HIDDEN)]
            else:
                inputs = [str(number) for number in rng.sample(range(1, LARGEST_NUMBER + 1), 1 + HIDDEN)]
            if len({right_output(self.kind, each) for each in inputs}) == len(inputs):
                yield inputs

    def prompt(self, example: str) -> str:
        name = {"bf": "Brainf**k", "befunge": "Befunge-93"}[self.language]
        asked = f"Write a {name} program that {WHAT[self.kind].format(example=example)}."
        if self.kind != "print":
            asked += f" For the input {example} it prints {right_output(self.kind, example).strip()}."
        asked += " Put the program between two lines of ```."
        return f"{CARDS[self.language]}\n\n{asked}" if str(self.card) == "1" else asked

    def grade(self, completion: str, problem: Problem) -> Grade:
        program = program_of(completion)
        if not program or not program.strip():
            return Grade(False, 0.0, None, "no_program")
        for given in problem.options:
            try:
                printed = self.run(program, given)
            except ProgramError as error:
                return Grade(False, 0.0, program, str(error))
            if printed != right_output(self.kind, given):
                return Grade(False, 0.0, program, "wrong")
        return Grade(True, 1.0, program, "correct")

    def run(self, program: str, given: str) -> str:
        given = "" if self.kind == "print" else given
        if self.language == "bf":
            return run_brainfuck(program, given.encode()).decode("latin-1")
        return run_befunge(program, given)
