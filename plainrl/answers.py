r"""Reading an answer: the last \boxed{} of a completion, and the number that a text plainly is."""

import re
from fractions import Fraction

MAX_ANSWER_CHARS = 1000  # a longer box is not an answer


def last_boxed(text: str) -> str | None:
    r"""Content of the last \boxed{...}, braces balanced. None without a box or when it never closes.

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
    """The integer that `text` plainly is, else None.

    Digits are ASCII digits; thousands may have commas where math-verify reads them too.

    >>> plain_integer("-1,000"), plain_integer("007"), plain_integer("1.0"), plain_integer("0,123")
    (-1000, 7, None, None)
    """
    text = text.strip().strip("$").strip()
    if re.fullmatch(r"[-+]?[0-9]{1,100}|-?[1-9][0-9]{0,2}(,[0-9]{3}){1,30}", text):
        return int(text.replace(",", ""))
    return None


def number(text: str) -> Fraction | None:
    """The number that `text` plainly is, as a whole number, a decimal or a fraction, else None.

    >>> number("1,000"), number("2.50"), number("-14951/125"), number("12 eggs")
    (Fraction(1000, 1), Fraction(5, 2), Fraction(-14951, 125), None)
    """
    if plain_integer(text) is not None:
        return Fraction(plain_integer(text))
    text = re.sub(r"(?<=[0-9]),(?=[0-9]{3}(?:[,.]|$))", "", text.strip().strip("$").strip())
    return Fraction(text) if re.fullmatch(r"-?[0-9]{1,20}(\.[0-9]{1,20}|/[1-9][0-9]{0,19})", text) else None


def canonical(answer: str) -> str:
    """One spelling for every plain integer; any other text as it stands.

    >>> canonical(" 1,000 "), canonical("x + 1")
    ('1000', 'x + 1')
    """
    value = plain_integer(answer)
    return answer.strip() if value is None else str(value)
