r"""Are two answers the same? What they are (numbers, lists, intervals, words) decides how they are compared.

Both are brought to one spelling and read into a small tree. Parts that are arithmetic are compared exactly:
a decimal is exactly the number that its digits say, so 0.5 is 1/2 and 0.333333 is not 1/3. What is left,
formulas with letters, roots or functions, goes to `algebra`, which needs sympy and runs in a worker.
"""

import re
from collections.abc import Callable

from plainrl.answers import MAX_ANSWER_CHARS, NotExact, Undefined, exact, plain_arithmetic, split, tidy
from plainrl.units import CONNECTED, compound_of, has_letters, read_quantity, without_marks, words_of


class NeedsAlgebra(Exception):
    """The answers cannot be told apart without sympy."""


NOTHING = ("nothing",)  # no answer, or one that contradicts itself; equal to nothing


def same(gold: str, answer: str, algebra: Callable[[str, str, str], bool]) -> bool:
    r"""Is the answer the same as the gold answer?

    `algebra(relation, first, second)` decides about two formulas: "equal", or "proportional" and "scaled" for
    the two sides of equations and inequalities. It may raise NeedsAlgebra, which is passed on.
    """
    if max(len(gold), len(answer)) > MAX_ANSWER_CHARS:  # as long as no formula is: compared as text
        return "".join(gold.split()) == "".join(answer.split())
    gold, answer = tidy(gold), tidy(answer)
    if not gold or not answer:
        return False
    letter, content = _option(gold)
    if letter:
        if choice_letter(answer) == letter:
            return True
        return bool(content) and _same(_read(content), _read(answer), algebra)
    if gold == answer and _read(gold) != NOTHING and not _undefined(gold):
        return True
    golds, answers = [gold], [answer]
    if re.fullmatch(r"-?[0-9]+,[0-9]{1,2}|-?0,[0-9]+", gold):  # a list, or a number with a decimal comma
        golds.append(gold.replace(",", "."))
    return any(_same(_read(one), _read(other), algebra) for one in golds for other in answers)


def readable(gold: str, algebra: Callable[[str, str, str], bool]) -> bool:
    """Is every part of a gold answer something that can be compared?"""
    gold = tidy(gold[: 2 * MAX_ANSWER_CHARS])
    return bool(gold) and _readable(_read(gold), algebra)


def _readable(node: tuple, algebra) -> bool:
    kind = node[0]
    if kind == "nothing":
        return False
    if kind in ("expr", "quantity", "equation", "chain"):
        parts = node[1] if kind == "chain" else node[1:2] if kind == "quantity" else node[1:]
        return all(_is_exact(part) or algebra("equal", part, part) for part in parts)
    if kind in ("list", "set", "tuple"):
        return all(_readable(item, algebra) for item in node[1])
    return kind != "assign" or _readable(node[2], algebra)


# --- what an answer is --------------------------------------------------------------------------------------

_OPTION = re.compile(r"(\()?([A-J])(?(1)\))(?:[.:)]?$|(?:(?<=\))\s|[.:)]\s)\s*(.+))")


def _option(gold: str) -> tuple[str | None, str]:
    """The letter of a gold answer that is an option of a multiple choice, and what it says in "(B) 12"."""
    match = _OPTION.fullmatch(without_marks(gold))
    if not match:
        return None, ""
    return match[2], (match[3] or "") if match[1] else ""


def choice_letter(text: str) -> str | None:
    r"""The option that an answer chooses: B, (B), \text{B}, "B. 4", "Option B". None where it names several.

    >>> choice_letter("\\textbf{(B)}\\ 12"), choice_letter("A or B"), choice_letter("B: 5")
    ('B', None, 'B')
    """
    text = without_marks(tidy(text))
    text = re.sub(
        r"^(?:(?:the )?(?:final |correct |right )?(?:answer|option|choice)\s*(?:is)?\s*:?\s*)+",
        "",
        text,
        flags=re.I,
    )
    match = re.match(
        r"[\[(⦃{]*\s*([A-J])\s*(?:$|[\])}⦄]+\s*[.:,]?\s*|[.:,]\s*|\s+(?=[(0-9\\$-]))(.*)", text, re.S
    )
    if not match:
        return None
    rest = re.sub(r"\bA(?= [a-z])", "", match[2]) if not re.search(r"\b(?:or|and)\b", match[2]) else match[2]
    hedged = re.search(r"(?<![a-zA-Z\\])[A-J](?![a-zA-Z])", rest)
    taken_back = re.search(r"\b(?:wrong|false|incorrect|not|no)\b", rest, re.I)
    return None if hedged or taken_back else match[1]


_PREFIX = re.compile(
    r"⟦?\s*(?:so|thus|hence|therefore)?,?\s*(?:(?:the |my )?(?:final |correct )?"
    r"(?:answer|result|solution|value|total)s?"
    r"(?:\s+(?:is|are))?|there (?:are|is)|it is|answer|ans|答案[是为]?)"
    r"\s*[:：]?\s*⟧?\s*[:=]?\s*(?=[^\s⟧])",
    re.I,
)
_FOR_ALL = re.compile(
    r"[\s,]*⟦?\s*\b(?:for (?:all|every|any|each)|where)\b.*$"
    r"|\s*,\s*[a-z]\s*\\in\s*(?:\\mathbb\s*\{?[ZNRQC]\}?|⟦[^⟦⟧]*⟧)$",
    re.S,
)
_ENGLISH = [
    (re.compile(pattern, re.I), text)
    for pattern, text in (
        (r"^(?:at least|no less than|not less than)\s+(.+)$", r"\\ge \1"),
        (r"^(?:at most|no more than|not more than|up to)\s+(.+)$", r"\\le \1"),
        (r"^(?:more than|greater than|larger than|over|above)\s+(.+)$", r">\1"),
        (r"^(?:less than|fewer than|smaller than|under|below)\s+(.+)$", r"<\1"),
        (r"^([^,]+?)\s*(?:or|and) (?:more|greater|above|higher|larger)$", r"\\ge \1"),
        (r"^([^,]+?)\s*(?:or|and) (?:less|fewer|below|lower|smaller)$", r"\\le \1"),
    )
]
_DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_BASES = {
    "two": 2,
    "three": 3,
    "four": 4,
    "five": 5,
    "six": 6,
    "seven": 7,
    "eight": 8,
    "nine": 9,
    "ten": 10,
    "eleven": 11,
    "twelve": 12,
    "sixteen": 16,
}
_BASE = re.compile(
    r"(?:⟦\s*)?\(?([0-9A-Z]*[0-9][0-9A-Z]*|[A-F]{2,})\s*\)?"
    r"(?:_\s*\{?\s*\(?|\s+(?:in )?\(?(?=base))(?:base\s*)?([0-9]+|[a-z]+)\s*\)?\s*\}?"
)
_SET_OF = re.compile(r"⦃\s*([a-zA-Z])\s*(?:\\in\s*\\mathbb\s*\{?R\}?\s*)?(?:\\mid|\||:)\s*(.+)⦄")
_MATRIX = re.compile(
    r"([(\[|]?)\s*\\begin\s*\{(p|b|B|v|V|small)?(?:matrix|array)\}\s*(?:(?<=array\})\s*\{[^{}]*\})?(.*?)(?:\\\\\s*)?"
    r"\\end\s*\{[a-zA-Z]*(?:matrix|array)\}\s*([)\]|]?)",
    re.S,
)
_NAME = re.compile(
    r"(?:\\(?:alpha|beta|gamma|delta|epsilon|theta|lambda|mu|rho|sigma|tau|phi|omega|Delta|Omega|angle|triangle|overline"
    r"|sin|cos|tan|bar|hat|vec|lim|max|min|gcd|deg|det|Area|Pr)(?![a-zA-Z])\s*)*"
    r"(?:⟦[^⟦⟧]*⟧|[a-zA-Z]{1,3}'{0,2}|\{[a-zA-Z]{1,3}\}|(?<=[a-z]))(?:\s*_\s*(?:\{[^{}]*\}|[a-zA-Z0-9]))?"
    r"(?:\s*\^\s*\{?\(?-?[a-z0-9*]\)?\}?(?=\s*\())?(?:\s*\([a-zA-Z0-9, ]{0,9}\))?\s*"
)
_NAMED_BY_SIGNS = re.compile(
    r"\|\s*[A-Z]{1,3}\s*\||\\lim(?![a-zA-Z]).*|[a-zA-Z]\s*\^\s*\{?(?:\*|\\ast)\s*\}?"
)
_SUM_OF_NAMES = re.compile(r"[a-zA-Z](?:\s*\+\s*[a-zA-Z])+")
_VARIABLE = re.compile(r"(?:[a-zA-Z]|\\(?:alpha|beta|gamma|theta|lambda|mu|phi|omega))(?:_\{?[a-z0-9]+\}?)?")


def _read(text: str, depth: int = 0) -> tuple:
    """The tree of an answer that tidy() has written."""
    if depth > 8 or not text.strip(" =."):
        return NOTHING
    text = CONNECTED.sub(r" \1 ", text)
    if re.fullmatch(r"⟦[^⟦⟧]*⟧", text):
        text = text[1:-1]
    text = re.sub(r"⟦([^⟦⟧]*[0-9][^⟦⟧]*)⟧", r" \1 ", text).strip()  # words with numbers in them
    if prefix := _PREFIX.match(text):
        text = text[prefix.end() :]
    without = _FOR_ALL.sub("", text)
    text = (without or text).strip().rstrip(" .")
    text = re.sub(r"^(?:\\approx|=|\\Rightarrow|\\therefore)\s*", "", text)
    plain = without_marks(text)
    if between := re.fullmatch(r"between (.+) and (.+)", plain, re.I):
        return _region([(between[1], False, between[2], False)])
    for pattern, relation in _ENGLISH:
        if pattern.match(plain):
            text = plain = pattern.sub(relation, plain)
            break
    for reader in (_read_code, _read_base, _read_matrix, _read_bracketed, _read_union, _read_list):
        node = reader(text, depth)
        if node:
            return node
    if _is_words(text):
        return ("words", words_of(text))
    for reader in (_read_plus_minus, _read_mod, _read_relation, _read_ratio, read_quantity):
        node = reader(text, depth)
        if node:
            return node
    while (inner := re.fullmatch(r"\((.*)\)", text, re.S)) and _is_balanced(inner[1]):
        text = inner[1].strip()
        if split(text, ",|;|=|<|>|:")[1:] or "\\pm" in text:
            return _read(text, depth + 1)
    if "⟦" in text or re.search(
        r"(?<![\\a-zA-Z])[a-zA-Z]{4,}|\\ldots|\\to(?![a-zA-Z])|\\Rightarrow|\\mid", text
    ):
        return ("text", words_of(text))
    if _undefined(text):
        return NOTHING
    return ("expr", text)


def _undefined(text: str) -> bool:
    try:
        exact(text)
    except Undefined:
        return True
    except NotExact:
        pass
    return False


def _is_exact(text: str) -> bool:
    try:
        exact(text)
    except (NotExact, Undefined):
        return False
    return True


def _is_balanced(text: str) -> bool:
    depth = 0
    for bracket in re.findall(r"[(\[⦃)\]⦄]", text):
        depth += 1 if bracket in "([⦃" else -1
        if depth < 0:
            return False
    return depth == 0


def _is_words(text: str) -> bool:
    """Words: letters only, among them a run of two or more; x, y and z are variables."""
    plain = without_marks(text)
    if re.search(r"[0-9=<>+*/^_|\\⦃⦄{}&\[\]]", plain):
        return False
    runs = re.findall(r"[^\W\d_]+", plain)
    if any(ord(letter) > 127 for run in runs for letter in run):
        return True
    return any(len(run) > 1 and set(run) - set("xyz") for run in runs)


def _read_code(text: str, depth: int) -> tuple | None:
    """Dates, clocks, telephone numbers, ranges and words with digits: compared as they are written."""
    plain = without_marks(text)
    if date := re.fullmatch(
        r"([0-9]{4})-([0-9]{1,2})-([0-9]{1,2})|([0-9]{1,2})/([0-9]{1,2})/([0-9]{2,4})", plain
    ):
        return ("date", tuple(int(field) for field in date.groups() if field), "-" in plain)
    if clock := re.fullmatch(r"([0-9]{1,2}):([0-5][0-9])(?::([0-5][0-9]))?\s*([ap]\.?m?\.?)?", plain, re.I):
        half = (clock[4] or "").lower()[:1]
        return ("clock", tuple(int(field) for field in clock.groups()[:3] if field), half)
    if number := re.fullmatch(r"([0-9]+)\s*(?:-|to)\s*([0-9]+)", plain):
        return ("range", number[1], number[2], plain)
    if re.fullmatch(r"[0-9]+(?:-[0-9]+){2,}", plain) or re.fullmatch(
        r"(?!0b)(?:[a-zA-Z]{3,}[0-9]|[a-zA-Z]{2}[0-9]{2})[a-zA-Z0-9]*", plain
    ):
        return ("words", plain.casefold())
    return None


def _read_base(text: str, depth: int) -> tuple | None:
    text = without_marks(text)
    if match := re.fullmatch(r"0b([01]+)", text):
        return ("base", match[1], 2)
    match = _BASE.fullmatch(text)
    if not match:
        return None
    base = int(match[2]) if match[2].isdigit() and len(match[2]) < 3 else _BASES.get(match[2], 0)
    if not 2 <= base <= 36 or any(_DIGITS.index(digit) >= base for digit in match[1]):
        return NOTHING if match[2].isdigit() and re.fullmatch("[0-9]+", match[1]) else None
    return ("base", match[1].lstrip("0") or "0", base)


def _read_matrix(text: str, depth: int) -> tuple | None:
    match = _MATRIX.fullmatch(text)
    if not match:
        return None
    if match[2] in ("v", "V") or "|" in match[1] + match[4]:
        return ("expr", text)
    rows = [[_read(cell, depth + 1) for cell in split(row, "&")] for row in split(match[3], r"\\\\")]
    return ("matrix", rows)


def _read_bracketed(text: str, depth: int) -> tuple | None:
    """Sets, tuples and intervals."""
    text = (
        re.sub(r"^[a-zA-Z]\s*\\in\s*", "", text) if re.match(r"^[a-zA-Z]\s*\\in\s*[(\[\]⦃]", text) else text
    )
    if match := _SET_OF.fullmatch(text):
        return _read(match[2], depth + 1)
    if match := re.fullmatch(r"\\langle\s*(.*?)\s*\\rangle", text, re.S):
        return ("tuple", [_read(part, depth + 1) for part in split(match[1], ",")], "(")
    if len(text) < 2 or text[0] not in "([]⦃" or text[-1] not in ")][⦄":
        return None
    inside = text[1:-1].strip()
    if not _is_balanced(inside):
        return None
    parts = split(inside, ",|;")
    if (text[0] == "⦃") != (text[-1] == "⦄"):
        return None
    if text[0] == "⦃":
        items = [_read(part, depth + 1) for part in parts]
        return ("set", [item for i, item in enumerate(items) if item not in items[:i]])
    if len(parts) == 1:
        return (
            None
            if text[0] == "("
            else (_read(inside, depth + 1) if text[0] == "[" and text[-1] == "]" else None)
        )
    if len(parts) == 2 and (text[0], text[-1]) not in (("(", ")"), ("[", "]")):
        return _region([(parts[0], text[0] == "[", parts[1], text[-1] == "]")])
    return ("tuple", [_read(part, depth + 1) for part in parts], text[0])


def _region(intervals: list, name: str | None = None) -> tuple:
    """Part of the real line: (low, closed there, high, closed there) for every interval."""
    return ("region", intervals, name)


def _as_region(node: tuple) -> tuple | None:
    if node[0] == "tuple" and len(node[1]) == 2 and all(item[0] == "expr" for item in node[1]):
        closed = node[2] == "["
        return _region([(node[1][0][1], closed, node[1][1][1], closed)])
    if node in (("expr", "\\mathbb{R}"), ("expr", "\\mathbb R")):
        return _region([("-\\infty", False, "\\infty", False)])
    return node if node[0] == "region" else None


def _read_union(text: str, depth: int) -> tuple | None:
    text = re.sub(r"^[a-zA-Z]\s*\\in\s*", "", text)
    parts = split(text, r"\\cup(?![a-zA-Z])")
    if len(parts) > 1:
        return _unite([_read(part, depth + 1) for part in parts])
    return None


def _unite(nodes: list[tuple]) -> tuple | None:
    regions = [_as_region(node) for node in nodes]
    if any(region is None for region in regions):
        return None
    names = {region[2] for region in regions}
    return _region(sum((region[1] for region in regions), []), names.pop() if len(names) == 1 else None)


def _read_list(text: str, depth: int) -> tuple | None:
    """Several answers, in any order. x=2, y=3 becomes a point with names."""
    if re.fullmatch(r"[0-9]+(?:\.[0-9]+)?(?:\s+[0-9]+(?:\.[0-9]+)?)+", text):
        return ("list", [("expr", part) for part in text.split()])
    if compound_of(text):
        return None
    parts = [part for part in split(text, r",\s*(?:and|or)\b|,|;|\\\\|\n|\band\b|\bor\b")]
    if len(parts) == 1:
        return None
    if not all(parts):
        return NOTHING
    nodes = [_read(part, depth + 1) for part in parts]
    if any("\\ldots" in part for part in parts):
        return ("text", re.sub(r"\s+", "", text))
    if re.search(r"\bor\b", text) and all(node[0] == "region" for node in nodes):
        return _unite(nodes)
    if all(
        node[0] == "assign" and re.fullmatch(r"[a-zA-Z](?:_\{?[a-zA-Z0-9]\}?)?", node[1]) for node in nodes
    ):
        names = [node[1] for node in nodes]
        values = [node[2] for node in nodes]
        if len({name[0] for name in names}) == 1:  # x=2, x=3 or x_1=2, x_2=3
            return ("set", values)
        if len(set(names)) == len(names):
            return ("named", dict(zip(names, values, strict=True)))
    return ("list", _flat(nodes))


def _flat(nodes: list[tuple]) -> list[tuple]:
    return [item for node in nodes for item in (_flat(node[1]) if node[0] == "list" else [node])]


def _read_plus_minus(text: str, depth: int) -> tuple | None:
    if not re.search(r"\\(?:pm|mp)(?![a-zA-Z])", text):
        return None
    upper = re.sub(r"\\mp(?![a-zA-Z])\s*", "-", re.sub(r"\\pm(?![a-zA-Z])\s*", "+", text))
    lower = re.sub(r"\\mp(?![a-zA-Z])\s*", "+", re.sub(r"\\pm(?![a-zA-Z])\s*", "-", text))
    nodes = [_read(re.sub(r"(^|[=(,{])\s*\+", r"\1", part), depth + 1) for part in (upper, lower)]
    nodes = [node[2] if node[0] == "assign" else node for node in nodes]
    return ("list", _flat(nodes))


_MOD = re.compile(
    r"(?:(.+?)\s*\\equiv\s*)?(.+?)\s*\(?\s*\\?(?:pmod|bmod|mod)(?![a-zA-Z])\s*\{?\s*([0-9]+)\s*\}?\s*\)?"
)


def _read_mod(text: str, depth: int) -> tuple | None:
    match = _MOD.fullmatch(without_marks(text))
    return ("mod", match[2], match[3]) if match else None


_RELATIONS = re.compile(r"\\(?:le|ge|ne)(?![a-zA-Z])|<|>|=")


def _read_relation(text: str, depth: int) -> tuple | None:
    parts = split(text, r"\\(?:le|ge|ne)(?![a-zA-Z])|<|>|=")
    if len(parts) == 1:
        return None
    signs = []
    rest = text
    for part in parts[:-1]:  # the signs between the parts
        rest = rest[rest.index(part) + len(part) :].lstrip() if part else rest.lstrip()
        sign = _RELATIONS.match(rest)
        if not sign:
            return NOTHING
        signs.append(sign.group())
        rest = rest[sign.end() :]
    if not parts[-1]:
        return NOTHING
    if set(signs) == {"="}:
        return _read_equation(parts, depth)
    if "=" in signs:
        return ("text", re.sub(r"\s+", "", text))
    return _read_inequality(parts, signs)


def _read_equation(parts: list[str], depth: int) -> tuple:
    """A value with a name, a chain of equal values, or an equation between variables."""
    if not parts[0]:
        parts = parts[1:]
        if len(parts) == 1:
            return _read(parts[0], depth + 1)
    if not all(parts):
        return NOTHING
    if len(parts) == 2 and re.fullmatch(r"[A-Z]?\(\s*[a-zA-Z](?:\s*,\s*[a-zA-Z])+\s*\)", parts[0]):
        return _read(parts[1], depth + 1)  # (x, y) = (2, 3)
    name, values = None, parts
    if any(names.fullmatch(parts[0]) for names in (_NAME, _NAMED_BY_SIGNS)) or (
        _SUM_OF_NAMES.fullmatch(parts[0]) and not has_letters(parts[-1])
    ):
        name, values = parts[0].strip(), parts[1:]
    elif _NAME.fullmatch(parts[-1]) and not has_letters(parts[0]):
        name, values = parts[-1].strip(), parts[:-1]
    if name and len(values) == 1:
        if re.fullmatch(r"[a-zA-Z]", name) and re.search(rf"(?<![a-zA-Z\\]){name}(?![a-zA-Z])", values[0]):
            return ("equation", name, values[0])
        return ("assign", name, _read(values[0], depth + 1))
    if name or not any(map(has_letters, values)):
        return ("chain", [_value_text(value) for value in values])
    if len(parts) == 2:
        return ("equation", *parts)
    return ("text", re.sub(r"\s+", "", "=".join(parts)))


def _value_text(text: str) -> str:
    """The number of a quantity, for a chain like 3+4=7 cm."""
    node = read_quantity(text, 0)
    return node[1] if node and node[0] == "quantity" else text


_TURNED = {"<": ">", ">": "<", "\\le": "\\ge", "\\ge": "\\le", "\\ne": "\\ne"}


def _read_inequality(parts: list[str], signs: list[str]) -> tuple:
    if len(parts) == 2:
        left, sign, right = parts[0], signs[0], parts[1]
        if _VARIABLE.fullmatch(right) and not has_letters(left):
            left, sign, right = right, _TURNED[sign], left
        if (not left or _VARIABLE.fullmatch(left)) and not has_letters(right):
            quantity = read_quantity(right, 0)
            right = quantity[1] if quantity and quantity[0] == "quantity" else right
            below = ("-\\infty", False, right, sign == "\\le")
            above = (right, sign == "\\ge", "\\infty", False)
            intervals = [below, above] if sign == "\\ne" else [below] if sign in ("<", "\\le") else [above]
            return _region(intervals, left or None)
        if not left:
            return ("text", sign + right)
        if sign in (">", "\\ge"):
            left, sign, right = right, _TURNED[sign], left
        return ("inequality", sign, f"({left})-({right})")
    if len(parts) == 3 and _VARIABLE.fullmatch(parts[1]) and not any(map(has_letters, (parts[0], parts[2]))):
        low, high = parts[0], parts[2]
        if set(signs) <= {">", "\\ge"}:
            low, high, signs = high, low, [_TURNED[signs[1]], _TURNED[signs[0]]]
        if set(signs) <= {"<", "\\le"}:
            return _region([(low, signs[0] == "\\le", high, signs[1] == "\\le")], parts[1])
    return ("text", re.sub(r"\s+", "", "".join(a + b for a, b in zip(parts, [*signs, ""], strict=True))))


def _read_ratio(text: str, depth: int) -> tuple | None:
    parts = split(without_marks(text), r":|\bto\b")
    return ("ratio", parts) if len(parts) > 1 and all(parts) else None


# --- comparing ----------------------------------------------------------------------------------------------


def _formula(first: str, second: str, algebra) -> bool:
    """Two formulas: exactly where both are numbers, else by algebra."""
    first, second = (re.sub(r"(?<![0-9a-zA-Z])\s+|\s+(?![0-9a-zA-Z])", "", text) for text in (first, second))
    if first == second:
        return not _undefined(first)
    values = []
    for text in (first, second):
        try:
            values.append(exact(text))
        except Undefined:
            return False
        except NotExact:
            values.append(None)
    if None not in values:
        return values[0] == values[1]
    return algebra("equal", plain_arithmetic(first), plain_arithmetic(second))


def _same(gold: tuple, answer: tuple, algebra) -> bool:
    """Compare two trees."""
    if NOTHING in (gold, answer):
        return False
    if answer[0] == "chain":
        return _chain_value(answer, algebra, lambda value: _same(gold, _read(value), algebra))
    if gold[0] == "chain":
        return _chain_value(gold, algebra, lambda value: _same(_read(value), answer, algebra))
    if gold == answer:
        return True
    gold, answer = _alone(gold), _alone(answer)
    kinds = gold[0], answer[0]
    if "assign" in kinds:
        return _same_assignment(gold, answer, algebra)
    if kinds == ("equation", "equation"):
        return algebra("proportional", *(f"({node[1]})-({node[2]})" for node in (gold, answer)))
    if kinds == ("inequality", "inequality"):
        return gold[1] == answer[1] and algebra("scaled", gold[2], answer[2])
    if {"range", "ratio", "clock", "date"} & set(kinds):
        return _same_code(gold, answer, algebra)
    if "base" in kinds:
        return _same_base(gold, answer)
    if "words" in kinds and set(kinds) <= {"words", "expr"}:
        word, other = (gold, answer) if kinds[0] == "words" else (answer, gold)
        if other[0] == "words" or not re.fullmatch("[a-z]{2,3}", word[1]):
            return False
        return bool(re.search(r"\\|\s|\*|\^", other[1])) and algebra("equal", word[1], other[1])
    regions = _as_region(gold), _as_region(answer)
    if None not in regions and kinds != ("tuple", "tuple"):
        return _same_region(*regions, algebra)
    if set(kinds) <= {"list", "set", "tuple", "named"}:
        return _same_items(gold, answer, algebra)
    if kinds == ("matrix", "matrix"):
        shapes = [[len(row) for row in node[1]] for node in (gold, answer)]
        pairs = zip(sum(gold[1], []), sum(answer[1], []))
        return shapes[0] == shapes[1] and all(_same(one, other, algebra) for one, other in pairs)
    if set(kinds) == {"matrix", "tuple"}:
        matrix, row = (gold, answer) if kinds[0] == "matrix" else (answer, gold)
        cells = sum(matrix[1], [])
        vector = len(cells) == max(len(matrix[1]), len(matrix[1][0]))
        return (
            vector and len(cells) == len(row[1]) and all(_same(*pair, algebra) for pair in zip(cells, row[1]))
        )
    if kinds == ("mod", "mod"):
        same_modulus = gold[2] == answer[2]
        try:
            return same_modulus and (exact(gold[1]) - exact(answer[1])) % int(gold[2]) == 0
        except (NotExact, Undefined):
            return same_modulus and _formula(gold[1], answer[1], algebra)
    if set(kinds) <= {"expr", "quantity"}:
        return _same_quantity(gold, answer, algebra)
    return False


def _alone(node: tuple) -> tuple:
    return node[1][0] if node[0] in ("list", "set") and len(node[1]) == 1 else node


def _chain_value(node: tuple, algebra, compare) -> bool:
    """2+2=4 is 4 where the equation is true."""
    values = node[1]
    return compare(values[-1]) and all(_formula(value, values[-1], algebra) for value in values[:-1])


def _same_assignment(gold: tuple, answer: tuple, algebra) -> bool:
    """x=5 is 5. Two values with names: the names of functions do not count, those of variables do."""
    if gold[0] == answer[0] == "assign":
        (one, first), (other, second) = gold[1:], answer[1:]
        if any(_SUM_OF_NAMES.fullmatch(name) for name in (one, other)):
            if not first[0] == second[0] == "expr":
                return False
            return algebra("proportional", f"({one})-({first[1]})", f"({other})-({second[1]})")
        arguments = [re.search(r"\(\s*([a-zA-Z])\s*\)$", name) for name in (one, other)]
        if all(arguments):
            second = _rename(second, arguments[1][1], arguments[0][1])
        named_apart = re.sub(r"\s", "", one) != re.sub(r"\s", "", other)
        constant = all(node[0] == "expr" and not has_letters(node[1]) for node in (first, second))
        single = all(re.fullmatch("[a-zA-Z]", name) for name in (one, other))
        of_argument = any(
            argument and argument[1] == name for argument, name in zip(arguments, (other, one), strict=True)
        )
        if named_apart and constant and (single or of_argument):
            return False
        return _same(first, second, algebra)
    if "equation" in (gold[0], answer[0]):
        assign, equation = (gold, answer) if gold[0] == "assign" else (answer, gold)
        if assign[2][0] != "expr":
            return False
        return algebra("proportional", f"({assign[1]})-({assign[2][1]})", f"({equation[1]})-({equation[2]})")
    if gold[0] == "assign":
        return answer[0] not in ("region", "inequality") and _same(gold[2], answer, algebra)
    return gold[0] not in ("region", "inequality") and _same(gold, answer[2], algebra)


def _rename(node: tuple, old: str, new: str) -> tuple:
    if node[0] != "expr" or old == new:
        return node
    return ("expr", re.sub(rf"(?<![a-zA-Z\\]){old}(?![a-zA-Z])", new, node[1]))


def _same_code(gold: tuple, answer: tuple, algebra) -> bool:
    kinds = gold[0], answer[0]
    if kinds == ("clock", "clock"):
        return gold[1] == answer[1] and (gold[2] == answer[2] or not gold[2] or not answer[2])
    if kinds == ("date", "date"):
        return gold[1:] == answer[1:]
    if kinds == ("range", "range"):
        return gold[1:3] == answer[1:3]
    if gold[0] == "range":
        return (
            answer[0] == "ratio" and "to" in gold[3] and _same_ratio([gold[1], gold[2]], answer[1], algebra)
        )
    if answer[0] == "range" and "to" not in answer[3]:
        return _same(gold, ("expr", answer[3]), algebra)  # a difference
    if answer[0] == "range" and gold[0] == "ratio":
        return _same_ratio(gold[1], [answer[1], answer[2]], algebra)
    if gold[0] == "ratio":
        if answer[0] == "ratio":
            return _same_ratio(gold[1], answer[1], algebra)
        if answer[0] == "clock" and min(answer[1][1:]) >= 10:  # not 3:05
            return _same_ratio(gold[1], [str(part) for part in answer[1]], algebra)
        whole = len(gold[1]) == 2 and answer[0] == "expr" and re.search(r"/|\\frac", answer[1])
        return bool(whole) and _formula(f"\\frac{{{gold[1][0]}}}{{{gold[1][1]}}}", answer[1], algebra)
    if answer[0] == "ratio" and len(answer[1]) == 2 and gold[0] == "expr" and re.search(r"/|\\frac", gold[1]):
        return _formula(gold[1], f"\\frac{{{answer[1][0]}}}{{{answer[1][1]}}}", algebra)
    return False


def _same_ratio(first: list[str], second: list[str], algebra) -> bool:
    """2:3:4 is 4:6:8."""
    if len(first) != len(second):
        return False
    try:
        one, other = [exact(part) for part in first], [exact(part) for part in second]
    except (NotExact, Undefined):
        return all(_formula(*pair, algebra) for pair in zip(first, second))
    return (
        any(one)
        and any(other)
        and all(a * d == b * c for a, b in zip(one, other) for c, d in zip(one, other))
    )


def _same_base(gold: tuple, answer: tuple) -> bool:
    if gold[0] == answer[0]:
        return int(gold[1], gold[2]) == int(answer[1], answer[2])
    based, other = (gold, answer) if gold[0] == "base" else (answer, gold)
    digits = other[1] if other[0] in ("expr", "words") else None
    return digits is not None and digits.strip("()").lstrip("0").upper() == based[1]


def _same_region(gold: tuple, answer: tuple, algebra) -> bool:
    if gold[2] and answer[2] and gold[2] != answer[2]:
        return False

    def equal(one: tuple, other: tuple) -> bool:
        return (
            one[1] == other[1]
            and one[3] == other[3]
            and all(_formula(_bound(one[i]), _bound(other[i]), algebra) for i in (0, 2))
        )

    return _match(gold[1], answer[1], equal)


def _bound(text: str) -> str:
    text = re.sub(r"\s+", "", text)
    return text.removeprefix("+") if text.endswith("\\infty") else text


def _match(gold: list, answer: list, equal: Callable) -> bool:
    """Are they the same but for the order?"""
    if len(gold) != len(answer):
        return False
    left = list(answer)
    for item in gold:
        found = next((i for i, other in enumerate(left) if equal(item, other)), None)
        if found is None:
            return False
        left.pop(found)
    return True


def _same_items(gold: tuple, answer: tuple, algebra) -> bool:
    """Lists and sets in any order, tuples in theirs; x=2, y=3 is (2, 3)."""
    kinds = {gold[0], answer[0]}
    if kinds == {"named"}:
        return gold[1].keys() == answer[1].keys() and all(
            _same(gold[1][name], answer[1][name], algebra) for name in gold[1]
        )
    if len(gold[1]) != len(answer[1]) or kinds >= {"set", "tuple"} or kinds >= {"set", "named"}:
        return False
    if kinds <= {"list", "set"}:
        return _match(gold[1], answer[1], lambda one, other: _same(one, other, algebra))
    if kinds == {"tuple"} and gold[2] != answer[2] and len(gold[1]) == 2:
        return False
    if "list" in kinds and any(node[0] == "tuple" and node[2] == "[" for node in (gold, answer)):
        return False
    ordered = [
        [node[1][name] for name in sorted(node[1])] if node[0] == "named" else node[1]
        for node in (gold, answer)
    ]
    return all(_same(one, other, algebra) for one, other in zip(*ordered))


def _above_one(text: str) -> bool:
    try:
        return abs(exact(text)) > 1
    except (NotExact, Undefined):
        return False


def _same_quantity(gold: tuple, answer: tuple, algebra) -> bool:
    """Units: the same, convertible, or given on one side only. 15% is 15, and 0.15 is 15%."""
    (value, unit, compound), (other, its_unit, also) = (
        (node[1], "", "") if node[0] == "expr" else node[1:] for node in (gold, answer)
    )
    if "%" in (unit, its_unit):
        if unit == its_unit:
            return _formula(value, other, algebra)
        if unit not in ("", "%") or its_unit not in ("", "%"):
            return False
        percent, number = (value, other) if unit == "%" else (other, value)
        if unit == "%" or _above_one(value):  # 42% may repeat the question's unit, 0.15% is not 0.15
            if _formula(percent, number, algebra):
                return True
        return _formula(f"({percent})/100", number, algebra)
    if not unit or not its_unit or unit == its_unit == "noun":
        return not compound and not also and _formula(value, other, algebra)
    if "noun" in (unit, its_unit) or unit[0] != its_unit[0]:
        return False
    if unit[1] == its_unit[1]:
        return _formula(value, other, algebra)
    factor = unit[1] / its_unit[1]
    return _formula(f"({value})\\times \\frac{{{factor.numerator}}}{{{factor.denominator}}}", other, algebra)


def prepare(text: str) -> None:
    """Evaluate the formulas of an answer, so that one that takes too long is known to be at fault."""
    from plainrl.algebra import formula_of  # here, because it needs sympy, and the process that asks does not

    for formula in _formulas(_read(tidy(text))):
        if not _is_exact(formula):
            try:
                formula_of(plain_arithmetic(formula))
            except Exception:  # what cannot be read is equal to nothing
                pass


def _formulas(node: object) -> list[str]:
    """The formulas in a tree. Names and words are among them, which does no harm."""
    if isinstance(node, str):
        return [node]
    if isinstance(node, dict):
        return _formulas(list(node.values()))
    return [formula for part in node for formula in _formulas(part)] if isinstance(node, tuple | list) else []
