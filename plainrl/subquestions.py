r"""Sub-questions: what a decomposer reads and writes, and what a solver is asked with them.

    A: Ben has 9 fewer than 51 eggs. B: Sue has 3 times A nuts. Give B in \boxed{}.
    Reasoning: A=51-9=50, B=50*3=150, \boxed{150}
    Sub-questions?

A decomposer reads this and writes `A?` and `B?`. Each is asked behind what the question says before its last
sentence, and what was answered before is a hint (plainrl/hints.py):

    A: Ben has 9 fewer than 51 eggs. B: Sue has 3 times A nuts. Give B in \boxed{}.
    Hint: A=51-9=42.

papers/daslam.py trains a decomposer, tools/traces.py makes the rows that one starts from.
"""

import re
from dataclasses import replace

from plainrl.answers import last_boxed
from plainrl.hints import with_hint
from plainrl.tasks import BOXED_INSTRUCTION, Problem

SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
BOX_ALONE = re.compile(r"\s*\\boxed\{.*\}\.?\s*")


def in_one_line(text: str) -> str:
    """A worked text with commas between its lines."""
    return ", ".join(line.strip() for line in text.splitlines() if line.strip())


def decomposer_prompt(question: str, reasoning: str | None = None) -> str:
    """The question, an attempt at it if there is one, and what is wanted."""
    shown = f"\nReasoning: {in_one_line(reasoning)}" if reasoning and reasoning.strip() else ""
    return f"{question}{shown}\nSub-questions?"


def read_subquestions(text: str, fewest: int, most: int) -> list[str]:
    r"""The sentences and lines of a text that end in a question mark; none where there are too few.

    >>> read_subquestions("A?\nB is next. Then what is B? C?\nC", 3, 16)
    ['A?', 'Then what is B?', 'C?']
    """
    pieces = [piece for line in text.splitlines() for piece in SENTENCE_END.split(line.strip())]
    found = [piece for piece in pieces if piece.endswith("?")]
    return found[:most] if len(found) >= fewest else []


def context_of(question: str) -> str:
    r"""What a question says before its last sentence, which asks.

    >>> context_of("A: Ben has 3 pens. B: Sue has 2 more than A eggs. Give B in \\boxed{}.")
    'A: Ben has 3 pens. B: Sue has 2 more than A eggs.'
    """
    *before, _ = SENTENCE_END.split(question.strip().removesuffix(BOXED_INSTRUCTION).strip())
    return " ".join(before)


def in_context(question: str, subquestion: str) -> str:
    r"""A sub-question behind what it is about. One that is a name alone is asked as the embedded world asks.

    >>> in_context("A: Ben has 3 pens. Give A in \\boxed{}.", "A?")
    'A: Ben has 3 pens. Give A in \\boxed{}.'
    """
    name = re.fullmatch(r"([A-Z])\?", subquestion)
    asks = f"Give {name[1]} in \\boxed{{}}." if name else f"{subquestion} {BOXED_INSTRUCTION}"
    return f"{context_of(question)} {asks}".strip()


def with_answers(prompt: str, answers: list[str]) -> str:
    """A prompt with what was answered before it, in the wording of hints. A box alone is left out, where an
    answer has more than that."""
    shown = []
    for answer in answers:
        worked = "\n".join(line for line in answer.splitlines() if not BOX_ALONE.fullmatch(line))
        shown.append(in_one_line(worked) or (last_boxed(answer) or "").strip())
    hint = ", ".join(each for each in shown if each)
    return with_hint(replace(Problem(prompt, ""), hint=f"{hint.removesuffix('.')}.")) if hint else prompt
