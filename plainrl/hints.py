"""Hints: how one is shown, whether it gives the answer away, and a file of them."""

import json
import math
import re
from fractions import Fraction
from pathlib import Path

from plainrl.tasks import BOXED_INSTRUCTION, Problem, split_size


def with_hint(problem: Problem) -> str:
    """The prompt followed by its guidance, in the one wording that the embedded model has seen."""
    return f"{problem.prompt}\nHint: {problem.hint}"


def reveals(hint: str, answer: str) -> bool:
    """Does a hint give the answer away?

    Words are compared, and numbers by value: 12 is not in "112 apples", but 1,000 is in "1000.00 m" and 1/2
    in "0.5". A number in words is not seen.

    >>> reveals("Start with 112.", "12"), reveals("In the end you have $12.00.", "12")
    (False, True)
    """
    texts = [text.replace("\u2212", "-") for text in (hint, answer)]  # the minus sign of typesetting
    texts = [re.sub(r"\\[dt]?frac\{?(\d+)\}?\{?(\d+)\}?", r"\1/\2", text) for text in texts]
    if len(answer.strip()) > 1:  # the letter of an option is not the article "a"
        texts = [text.lower() for text in texts]
    for one_number in (r"\d+/0*[1-9]\d*|", ""):  # a fraction as one number, then as two: 48 is in 48/2
        word = rf"{one_number}\d+(?:,\d{{3}})*(?:\.\d+)?|\.\d+|[^\W\d_]+|[^\w\s]"
        hay, needle = ([_value(found) for found in re.findall(word, text)] for text in texts)
        if any(hay[i : i + len(needle)] == needle for i in range(len(hay) - len(needle) + 1)):
            return True
    return False


def _value(word: str) -> str | Fraction:
    """A number by its value, any other word as it stands."""
    return Fraction(word.replace(",", "")) if word[-1].isdigit() and word.isascii() else word


def hint_key(prompt: str) -> str:
    """What a file of hints is looked up by: the prompt, less the instruction to use a box if it has one."""
    return prompt.strip().removesuffix(BOXED_INSTRUCTION).strip()


def steps_of_share(share: float, steps: int) -> int:
    """How many of so many steps, rounded up. A share that is written short is not taken at its word: 0.67 of
    three steps are two.

    >>> [steps_of_share(share, 3) for share in (0, 0.01, 0.34, 0.5, 0.67, 1)], steps_of_share(0.7, 10)
    ([0, 1, 1, 2, 2, 3], 7)
    """
    too_much = 0.03  # of a step: 0.34 and 0.67 of three steps are 0.02 and 0.01 more than meant
    return max(math.ceil(share * steps - too_much), int(share > 0))


def load_hints(path: Path) -> dict[str, str]:
    """{`hint_key` of the prompt: hint} of a file with one JSON object a line.

    Raises ValueError with the line and the field.
    """
    hints = {}
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--hints {path}: cannot read the file ({error})") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"--hints {path}, line {number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{where}: not valid JSON ({error})") from None
        for name in ("prompt", "hint"):
            if not isinstance(row, dict) or not isinstance(row.get(name), str) or not row[name].strip():
                raise ValueError(f"{where}: field {name!r} must be a non-empty string")
        hints[hint_key(row["prompt"])] = row["hint"].strip()
    return hints


def stated_hint(problem: Problem, hints: dict[str, str] | None) -> str | None:
    """The problem's hint, or the one that a file has for it."""
    return problem.hint if hints is None else hints.get(hint_key(problem.prompt))


def hint_of(problem: Problem, hints: dict[str, str] | None) -> str | None:
    """The hint that may be shown: none where there is none, or one that gives the answer away."""
    hint = stated_hint(problem, hints)
    return None if not hint or reveals(hint, problem.answer) else hint


def check_hints(task, args, hints: dict[str, str] | None) -> None:
    """Refuse a template without its places, and a task without a hint that may be shown.

    Else say how many of the first problems have one.
    """
    from plainrl.screen import fail, say  # here: it imports torch, which the graders' processes do without

    try:
        filled = args.hint_template.format(prompt="the prompt", hint="the hint")
    except (KeyError, IndexError, ValueError):
        filled = ""
    if "the prompt" not in filled or "the hint" not in filled:
        rule = "must contain {prompt} and {hint}, and other braces doubled"
        fail(f"--hint-template {args.hint_template!r}: {rule}")
    size = split_size(task, "train")
    count = min(1000, args.train_size or 1000, 1000 if size is None else size)
    problems = [task.problem("train", index, args.seed) for index in range(count)]
    usable = sum(hint_of(problem, hints) is not None for problem in problems)
    missing = sum(not stated_hint(problem, hints) for problem in problems)
    found = (
        f"{usable} of the first {count} training problems have a hint that may be shown, {missing} have none,"
        f" and that of {count - usable - missing} contains the answer"
    )
    if not usable:
        flag = f"--task {args.task}" if hints is None else f"--hints {args.hints}"
        fail(f"{flag}: {found}; make hints with tools/hints.py, or train without them: --trigger never")
    say(f"hints: {found}")
