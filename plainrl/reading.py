r"""What an answer is: the text that `tidy` has written, read into a small tree.

A tree is a tuple that begins with its kind: ("expr", formula), ("quantity", number, unit, note),
("words", text), ("assign", name, tree), ("chain", trees), ("list" or "set", trees), ("region", ...) and
others. Trees are compared in plainrl/equality.py.
"""

import re

from plainrl.answers import NotExact, Undefined, exact, split
from plainrl.regions import (
    common,
    positive_numbers,
    read_difference,
    read_inequality,
    region,
    unite,
)
from plainrl.units import (
    CONNECTED,
    compound_of,
    has_letters,
    read_quantity,
    turned_round,
    without_marks,
    words_of,
)
from plainrl.wording import (
    meaning,
    plain_words,
    singular,
    split_sayings,
    verdict_of,
    with_digits,
    without_rejected,
    without_sentence,
)

NOTHING = ("nothing",)  # no answer, or one that contradicts itself; equal to nothing

_PREFIX = re.compile(
    r"⟦?\s*(?:so|thus|hence|therefore)?,?\s*(?:(?:the |my )?(?:final |correct )?"
    r"(?:answer|result|solution|value|total)s?(?!\s+[a-z]+\s*⟧\s*[=:])"
    r"(?:\s+(?:is|are))?(?!\s+(?:of|[a-z]+ (?:is|are))\b)|there (?:are|is)|it is|answer|ans|答案[是为]?)"
    r"\s*[:：]?\s*⟧?\s*[:=]?\s*(?=[^\s⟧])",
    re.I,
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
_MONTH = (
    "(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?"
    "|oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)"
)
_DATE = re.compile(  # March 5th, 2024 and 5 March 2024
    rf"(?:(?P<month>{_MONTH})\.? (?P<day>[0-9]{{1,2}})(?:st|nd|rd|th)?"
    rf"|(?P<its_day>[0-9]{{1,2}})(?:st|nd|rd|th)? (?:of )?(?P<its_month>{_MONTH}))\.?"
    r"(?:,? (?P<year>[0-9]{4}))?",
    re.I,
)
_CASES = re.compile(r"\\begin\s*\{d?cases\}(.*?)(?:\\\\\s*)?\\end\s*\{d?cases\}", re.S)
_NAME = re.compile(
    r"(?:\\(?:alpha|beta|gamma|delta|epsilon|theta|lambda|mu|rho|sigma|tau|phi|omega|Delta|Omega|angle|triangle|overline"
    r"|sin|cos|tan|bar|hat|vec|lim|max|min|gcd|deg|det|Area|Pr)(?![a-zA-Z])\s*)*"
    r"(?:⟦[^⟦⟧]*⟧|[a-zA-Z]{1,3}'{0,2}|\{[a-zA-Z]{1,3}\}|(?<=[a-z]))(?:\s*_\s*(?:\{[^{}]*\}|[a-zA-Z0-9]))?"
    r"(?:\s*\^\s*\{?\(?-?[a-z0-9*]\)?\}?(?=\s*\())?(?:\s*\([a-zA-Z0-9, ]{0,9}\))?\s*"
)
_NAMED_BY_SIGNS = re.compile(  # what names a value without being an equation in its letters
    r"\|[^|]*(?:[A-Z]|i(?![a-z])|\\cap|\\cup|\\vec|\\over|z)[^|]*\||\\\|.+\\\||\[\s*(?:\\triangle\s*)?[A-Z]{2,}\s*\]|\\?#.+"
    r"|(?:m\s*)?\\(?:measuredangle|angle|lim|i?int|oint|sum|prod|max|min|sup|inf|gcd|lcm|det|dim|arg|Pr)(?![a-zA-Z]).*"
    r"|\\(?:zeta|Gamma|phi|sigma|tau|mu)\s*\(.+\)"
    r"|\\(?:Var|Cov)\s*[(\[].+[)\]]"
    r"|\\frac\s*\{\s*(?:d|\\partial)\s*(?:\^\s*\{?[0-9]\}?)?\s*[a-zA-Z]\s*\}\s*"
    r"\{(?:\s*(?:d|\\partial)\s*[a-zA-Z]\s*(?:\^\s*\{?[0-9]\}?)?)+\s*\}"
    r"|(?:[fghFGHPQENSTVAn]'{0,2}|p|Var|Cov|\\mathbb\s*\{?[PE]\}?|\([a-zA-Z](?:\s*\^\\circ\s*[a-zA-Z])+\))\s*[(\[].+[)\]]"
    r"|\\(?:sin|cos|tan|cot|log|ln)\s*\((?:\\?[a-zA-Z]+|[-+\s])+\)"
    r"|⟦[^⟦⟧]*⟧\s*(?:\\triangle\s*)?[A-Z]{1,5}|[a-zA-Z]\s*\^\s*\{?(?:\*|\\ast)\s*\}?"
)
_ATOM = (
    r"(?:\\(?:vec|overline|overrightarrow)\s*\{?[a-zA-Z]{1,2}\}?|[A-Z]{1,3}|\\(?:alpha|beta|gamma|theta)"
    r"|[a-z](?:\([0-9]\)|_\{?[a-z0-9]+\}?)?)"
)
_COMBINATION = re.compile(
    rf"{_ATOM}(?:\s*(?:[-+/:]|\\cdot(?![a-zA-Z])|\\times(?![a-zA-Z])|)\s*{_ATOM})+|\\frac\s*\{{{_ATOM}\}}\s*\{{{_ATOM}\}}"
)
SUM_OF_NAMES = re.compile(r"[a-zA-Z](?:_\{?[a-z0-9]+\}?)?(?:\s*[-+]\s*[a-zA-Z](?:_\{?[a-z0-9]+\}?)?)+")
_VARIABLE = (
    r"(?:[a-zA-Z]|\\(?:alpha|beta|gamma|theta|phi|lambda|mu|sigma))\s*(?:_\s*\{?\s*[a-zA-Z0-9]+\s*\}?)?"
)
_POINT = re.compile(rf"[A-Z]?\(\s*{_VARIABLE}(?:\s*,\s*{_VARIABLE})+\s*\)")
_ABOUT = re.compile(
    r"[\s,;]*(?:⟦[\s,;]*)?(\(?)(?<![\\a-zA-Z])(?:(?:or|i\.e\.|which is) )?"
    r"(?:approximately|approx\.?|about|roughly|around)\b\s*⟧?\s*(?=[-0-9.\\$])",
    re.I,
)
_APPROXIMATE = r"\\(?:approx|doteq|thickapprox)(?![a-zA-Z])"


def read(text: str, depth: int = 0) -> tuple:
    """The tree of an answer that tidy() has written."""
    if depth > 8 or not text.strip(" =."):
        return NOTHING
    text = CONNECTED.sub(r" \1 ", text)
    text = re.sub(r"(?<=[0-9])(\s*⟦[a-zA-Z ]+?),? (and|or)\s*⟧(?=\s*[0-9])", r"\1⟧ \2 ", text)
    if re.fullmatch(r"⟦[^⟦⟧]*⟧", text):
        text = text[1:-1]
    text = re.sub(r"⟦([^⟦⟧]*[0-9][^⟦⟧]*)⟧", r" \1 ", text).strip()  # words with numbers in them
    if prefix := _PREFIX.match(text):
        text = text[prefix.end() :]
    text = without_sentence(without_rejected(text))
    text = split_sayings(text)[0].rstrip(" .")
    text = re.sub(
        r"^(?:\\approx|=|\\Rightarrow|\\therefore)\s*", "", _ABOUT.sub(r"\1 \\approx ", text).strip()
    )
    text = re.sub(r"^⟦?\s*(?:negative|minus)\s*⟧?\s*(?=[0-9.\\(])", "-", text)
    text = _read_membership(turned_round(text))
    plain = without_marks(text)
    if verdict := verdict_of(plain):
        return ("words", verdict)
    if _is_words(text):
        text = plain = with_digits(plain) or meaning(plain) or text
    if between := re.fullmatch(r"between (.+) and (.+)", plain, re.I):
        return region([(between[1], False, between[2], False)])
    for pattern, relation in _ENGLISH:
        if pattern.match(plain):
            text = plain = pattern.sub(relation, plain)
            break
    for reader in (
        _read_code,
        _read_base,
        _read_cases,
        _read_matrix,
        _read_bracketed,
        _read_union,
        _read_list,
        _read_part,
    ):
        node = reader(text, depth)
        if node:
            return node
    if _is_words(text):
        return ("words", plain_words(text))
    for reader in (
        _read_approximation,
        _read_plus_minus,
        _read_mod,
        _read_relation,
        _read_ratio,
        read_quantity,
    ):
        node = reader(text, depth)
        if node:
            return node
    while (inner := re.fullmatch(r"\((.*)\)", text, re.S)) and _is_balanced(inner[1]):
        text = inner[1].strip()
        if split(text, ",|;|=|<|>|:")[1:] or "\\pm" in text:
            return read(text, depth + 1)
    if "⟦" in text or re.search(
        r"(?<![\\a-zA-Z])[a-zA-Z]{4,}|\\ldots|\\to(?![a-zA-Z])|\\Rightarrow|\\mid", text
    ):
        return ("text", words_of(text))
    if undefined(text):
        return NOTHING
    return ("expr", text)


def _read_membership(text: str) -> str:
    r"""P(1, 2) as (1, 2), x \in M as M; x \ne 1, 2 and "all reals except 2" as the line without points."""
    text = re.sub(r"^[a-zA-Z]\s*\\in\s*(?=[(\[\]⦃]|\\(?:mathbb|emptyset)(?![a-zA-Z]))", "", text)
    text = re.sub(r"^[A-Z]\s*(?=\([^()]+,[^()]+\)$)", "", text)  # P(4, -1)
    text = re.sub(r"\\mathbb\{Z\}\s*[\^_]\s*\{?\s*(?:\+|>\s*0)\s*\}?$", r"\\mathbb{N}", text)
    match = re.fullmatch(r"[a-zA-Z]\s*\\(?:notin\s*⦃(.+)⦄|ne\s*([^=<>]+))", text)
    points = match and (match[1] or match[2])
    if points and not (
        match[1] or "\\ne" not in points and ("\\pm" in points or split(points, _SEPARATOR)[1:])
    ):
        points = None
    if not points and (
        match := re.fullmatch(
            r"([a-zA-Z ]+?),? (?:except|excluding|other than)(?: for)? (.+)", without_marks(text)
        )
    ):
        if meaning(match[1]) != "\\mathbb{R}":
            return text
        points = re.sub(r"\b[a-z]\s*(?:=|\\ne)\s*", "", match[2])
    return f"\\mathbb{{R}}\\setminus ⦃{', '.join(split(points, _SEPARATOR))}⦄" if points else text


def _read_part(text: str, depth: int) -> tuple | None:
    """A part of the line that is written with the sign of a set of numbers."""
    return positive_numbers(text) or read_difference(text, lambda part: read(part, depth + 1))


def _read_approximation(text: str, depth: int) -> tuple | None:
    r"""An exact value, and decimals for it: \frac{1}{3}\approx 0.333."""
    text = re.sub(rf"\(\s*({_APPROXIMATE}[^()]*)\)$", r"\1", text)
    parts = split(text, _APPROXIMATE)
    if len(parts) == 1:
        return None
    value = re.sub(r"(?:,|;|⟦?\s*\bor\b\s*⟧?)$", "", parts[0].strip())
    if not value or not all(parts):
        return NOTHING
    decimals = [re.sub(r"\s*\\ldots$", "", part) for part in parts[1:]]
    return ("approximation", read(value, depth + 1), [read(part, depth + 1) for part in decimals])


def undefined(text: str) -> bool:
    try:
        exact(text)
    except Undefined:
        return True
    except NotExact:
        pass
    return False


def is_exact(text: str) -> bool:
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
    plain = re.sub(r"^(?:12 )?(noon|midnight)$", _noon, without_marks(text), flags=re.I)
    if date := re.fullmatch(
        r"([0-9]{4})-([0-9]{1,2})-([0-9]{1,2})|([0-9]{1,2})/([0-9]{1,2})/([0-9]{2,4})", plain
    ):
        return ("date", tuple(int(field) for field in date.groups() if field), "-" in plain)
    if date := _DATE.fullmatch(plain):
        fields = date["month"] or date["its_month"], int(date["day"] or date["its_day"]), date["year"]
        return ("date", (fields[0][:3].lower(), *fields[1:]), False)
    if clock := re.fullmatch(
        r"([0-9]{1,2})(?::([0-5][0-9])(?::([0-5][0-9]))?|(?=\s*[ap]\.?m))\s*([ap]\.?m?\.?)?", plain, re.I
    ) or re.fullmatch(r"([0-9]{1,2}) ?: ?([0-5][0-9])()\s*([ap]\.?m\.?)", plain, re.I):
        half = (clock[4] or "").lower()[:1]
        return ("clock", tuple(int(field or 0) for field in clock.groups()[: 3 if clock[3] else 2]), half)
    if number := re.fullmatch(r"([0-9]+) (?:out of|in) ([0-9]+)", plain):
        return ("expr", f"\\frac{{{number[1]}}}{{{number[2]}}}")
    if number := re.fullmatch(r"([0-9]+)\s*(?:-|to)\s*([0-9]+)", plain):
        return ("range", number[1], number[2], plain)
    if re.fullmatch(r"[0-9]+(?:-[0-9]+){2,}", plain) or re.fullmatch(
        r"(?!0b)(?:[a-zA-Z]{3,}[0-9]|[a-zA-Z]{2}[0-9]{2})[a-zA-Z0-9]*", plain
    ):
        return ("words", plain.casefold())
    return None


def _noon(match: re.Match) -> str:
    return "12:00 PM" if match[1].lower() == "noon" else "12:00 AM"


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
        return _read_multiple(text, depth)
    if match[2] in ("v", "V") or "|" in match[1] + match[4]:
        return ("expr", text)
    rows = [[read(cell, depth + 1) for cell in split(row, "&")] for row in split(match[3], r"\\\\")]
    return ("matrix", rows)


def _read_cases(text: str, depth: int) -> tuple | None:
    """A function by cases: pairs of a value and when it holds."""
    match = _CASES.fullmatch(text)
    if not match:
        return None
    rows = [split(row, "&") for row in split(match[1], r"\\\\") if row.strip()]
    if any(len(row) != 2 for row in rows):
        return None
    conditions = [re.sub(r"⟦[\s,]*(?:if|for|when|where)\b\s*⟧?", "", row[1]).strip() for row in rows]
    values = [row[0].strip(" ,") for row in rows]
    pairs = zip(values, conditions, strict=True)
    return ("cases", [[read(part, depth + 1) for part in pair] for pair in pairs])


def _read_multiple(text: str, depth: int) -> tuple | None:
    """A number times a matrix: the number goes into every cell."""
    factor, begin, rest = text.partition("\\begin")
    opening = re.search(r"[(\[|]\s*$", factor)
    factor, rest = (
        (factor[: opening.start()], opening.group() + begin + rest) if opening else (factor, begin + rest)
    )
    factor = re.sub(r"\s*(?:\\cdot|\\times|\*)?\s*$", "", factor)
    factor = "-1" if factor == "-" else factor
    if not is_exact(factor) or not (match := _MATRIX.fullmatch(rest)):
        return None
    node = _read_matrix(match.group(), depth)
    if node[0] != "matrix" or any(cell[0] != "expr" for row in node[1] for cell in row):
        return None
    return ("matrix", [[("expr", f"({factor})*({cell[1]})") for cell in row] for row in node[1]])


def _read_bracketed(text: str, depth: int) -> tuple | None:
    """Sets, tuples and intervals."""
    if match := _SET_OF.fullmatch(text):
        return read(match[2], depth + 1)
    if match := re.fullmatch(r"\\langle\s*(.*?)\s*\\rangle", text, re.S):
        return ("tuple", [read(part, depth + 1) for part in split(match[1], ",")], "(")
    if len(text) < 2 or text[0] not in "([]⦃" or text[-1] not in ")][⦄":
        return None
    inside = text[1:-1].strip()
    if not _is_balanced(inside):
        return None
    if text[0] == "(" and re.fullmatch(r"[0-9]+(?: [0-9]+)+", inside):  # a cycle: (1 2 3)
        return ("text", "(" + " ".join(inside.split()) + ")")
    parts = split(inside, ",|;")
    if (text[0] == "⦃") != (text[-1] == "⦄"):
        return None
    if text[0] == "⦃":
        items = _flat([read(part, depth + 1) for part in parts])  # \pm 1 is two of them
        return ("set", [item for i, item in enumerate(items) if item not in items[:i]])
    if len(parts) == 1:
        return (
            None
            if text[0] == "("
            else (read(inside, depth + 1) if text[0] == "[" and text[-1] == "]" else None)
        )
    if "\\pm" in inside:
        return _read_plus_minus(text, depth)
    if len(parts) == 2 and (text[0], text[-1]) not in (("(", ")"), ("[", "]")):
        return region([(parts[0], text[0] == "[", parts[1], text[-1] == "]")])
    return ("tuple", [read(part, depth + 1) for part in parts], text[0])


def _read_union(text: str, depth: int) -> tuple | None:
    parts = split(text, r"\\cup(?![a-zA-Z])")
    if len(parts) > 1:
        nodes = [read(part, depth + 1) for part in parts]
        if all(node[0] == "set" for node in nodes):
            return ("set", sum((node[1] for node in nodes), []))
        return unite(nodes)
    return None


_SEPARATOR = r",\s*(?:and|or)\b|,|;|\\\\|\n|\band\b|\bor\b"


def _read_list(text: str, depth: int) -> tuple | None:
    """Several answers, in any order. x=2, y=3 becomes a point with names."""
    if re.fullmatch(r"[0-9]+(?:\.[0-9]+)?(?:\s+[0-9]+(?:\.[0-9]+)?)+", text):
        return ("list", [("expr", part) for part in text.split()])
    if compound_of(text):
        return None
    parts = split(text, _SEPARATOR)
    if len(parts) == 1:
        return None
    if not all(parts):
        return NOTHING
    nodes = [read(part, depth + 1) for part in parts]
    if any("\\ldots" in part for part in parts):
        return ("text", re.sub(r"\s+", "", text))
    if all(node[0] in ("region", "except") or node == ("expr", "\\mathbb{R}") for node in nodes):
        said_or = re.search(r"\bor\b", text)
        part = unite(nodes) if said_or else common(nodes)
        if not part and not re.search(r"\band\b", text) and all(node[2] for node in nodes):
            part = unite(nodes)  # x<1, x>2
        if part or said_or:
            return part
    if all(node[0] == "assign" for node in nodes):
        names = [_bare_name(node[1]) for node in nodes]
        # f(x) keeps its name, since the argument may have another one
        values = [node if "(" in node[1] else node[2] for node in nodes]
        if len(set(names)) == 1 or _are_roots(names):
            return ("set", values)
        if len(set(names)) == len(names):
            return ("named", dict(zip(names, values, strict=True)), "")
    nouns = [re.match(r"[^a-zA-Z\\]*[0-9][\s⟦]*([a-zA-Z]{2,})", part) for part in parts]
    if all(nouns) and all(node[0] == "quantity" and node[2] == "noun" for node in nodes):
        names = [singular(noun[1].lower()) for noun in nouns]
        if len(set(names)) == len(names):  # 3 red, 4 blue
            return ("named", dict(zip(names, nodes, strict=True)), "")
    if all(
        node[0] == "words" or node[0] == "expr" and re.fullmatch(r"(?:\\\w+\s*)?[a-zA-Z]", node[1])
        for node in nodes
    ):
        connectives = re.findall(r"\b(?:and|or)\b", text)
        return ("list", nodes, " ".join(sorted(set(connectives))))  # of words: "and" is not "or"
    return ("list", _flat(nodes))


def _bare_name(name: str) -> str:
    r"""A name without spaces, braces and marks: x_{1} is x_1, \text{length} is length, x(t) is x."""
    bare = re.sub(r"[\s{}⟦⟧]", "", name)
    bare = re.sub(r"(\\(?:sin|cos|tan|cot|log|ln))\((.+)\)$", r"\1\2", bare)
    bare = re.sub(r"\\frac\\partial([a-zA-Z])\\partial([a-z])", r"\1_\2", bare)
    return re.sub(r"(?<=[a-z'])\([a-z]\)$", "", bare)


def _are_roots(names: list[str]) -> bool:
    """Are they numbered roots x_1, x_2 of an equation, or eigenvalues? a_1 and a_2 are different things."""
    numbered = [re.fullmatch(r"([xyzt]|\\lambda)_[1-9]", name) for name in names]
    return all(numbered) and len({match[1] for match in numbered}) == 1 < len(set(names))


def _flat(nodes: list[tuple]) -> list[tuple]:
    return [item for node in nodes for item in (_flat(node[1]) if node[0] == "list" else [node])]


def _read_plus_minus(text: str, depth: int) -> tuple | None:
    if not re.search(r"\\(?:pm|mp)(?![a-zA-Z])", text):
        return None
    upper = re.sub(r"\\mp(?![a-zA-Z])\s*", "-", re.sub(r"\\pm(?![a-zA-Z])\s*", "+", text))
    lower = re.sub(r"\\mp(?![a-zA-Z])\s*", "+", re.sub(r"\\pm(?![a-zA-Z])\s*", "-", text))
    nodes = [read(re.sub(r"(^|[=(,{])\s*\+", r"\1", part), depth + 1) for part in (upper, lower)]
    nodes = [node[2] if node[0] == "assign" else node for node in nodes]
    return ("list", _flat(nodes))


_MOD = re.compile(
    r"(?:(.+?)\s*(?:\\equiv|=)\s*)?(.+?)\s*\(?\s*\\?(?:pmod|bmod|mod)(?![a-zA-Z])\s*\{?\s*([0-9]+)\s*\}?\s*\)?"
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
    return read_inequality(parts, signs)


def _read_equation(parts: list[str], depth: int) -> tuple:
    """A value with a name, a chain of equal values, or an equation between variables."""
    if not parts[0]:
        parts = parts[1:]
        if len(parts) == 1:
            return read(parts[0], depth + 1)
    if not all(parts):
        return NOTHING
    if len(parts) == 2 and _POINT.fullmatch(parts[0]):
        names = [_bare_name(name) for name in split(parts[0][parts[0].index("(") + 1 : -1], ",")]
        point = read(parts[1], depth + 1)
        if point[0] == "tuple" and len(names) == len(set(names)) == len(point[1]):
            return ("named", dict(zip(names, point[1], strict=True)), "in this order")  # (x, y) = (2, 3)
        return point
    name, values = None, parts
    parts = [_as_fraction(parts[0]), *parts[1:]]
    if _is_name(parts[0], parts[-1]):
        name, values = parts[0].strip(), parts[1:]
    elif _is_name(parts[-1], parts[0]) and not _variables(parts[0]):
        name, values = parts[-1].strip(), parts[:-1]
    if name and not _variables(values[-1]):  # A = ab/2 = 12: formulas before the value are names, too
        values = [value for value in values if not _variables(value)]
    if name and len(values) == 1:
        if re.fullmatch(r"[a-zA-Z]", name) and re.search(rf"(?<![a-zA-Z\\]){name}(?![a-zA-Z])", values[0]):
            return ("equation", name, values[0])
        return ("assign", name, read(values[0], depth + 1))
    if name or not any(map(_variables, values)):
        values = [value if value.startswith("\\$") else value.replace("\\$", "") for value in values]
        return ("chain", [_read_value(value, depth) for value in values])
    if len(parts) == 2:
        return ("equation", *parts)
    return ("text", re.sub(r"\s+", "", "=".join(parts)))


def _as_fraction(name: str) -> str:
    """dy/dx and d/dx f(x) as one fraction."""
    name = re.sub(r"^((?:d|\\partial)\s*[a-zA-Z])\s*/\s*((?:d|\\partial)\s*[a-z])$", r"\\frac{\1}{\2}", name)
    return re.sub(r"^\\frac\s*\{d\}\s*(\{d\s*[a-z]\})\s*([a-zA-Z])\s*(?:\([a-z]\))?$", r"\\frac{d\2}\1", name)


def _read_value(text: str, depth: int) -> tuple:
    """A value in a chain. 50-8 is a difference there, no range."""
    node = read(text, depth + 1)
    return ("expr", text) if node[0] == "range" else node


def _is_name(left: str, value: str) -> bool:
    """Does one side of an equation name the other?"""
    if _NAME.fullmatch(left):
        return True
    if _NAMED_BY_SIGNS.fullmatch(left):
        return not re.fullmatch(r"([np])\(.*\1.*\)", left)  # n(n+1) is a product
    atoms = re.findall(_ATOM, left.replace("\\frac", ""))
    return bool(_COMBINATION.fullmatch(left)) and len(set(atoms)) == len(atoms) and not _variables(value)


def _variables(value: str) -> bool:
    """Has a value variables? Its unit does not count."""
    quantity = read_quantity(value, 0)
    return has_letters(quantity[1] if quantity and quantity[0] == "quantity" else value)


def _read_ratio(text: str, depth: int) -> tuple | None:
    parts = split(without_marks(text), r":|\bto\b(?! the\b)")
    return ("ratio", parts) if len(parts) > 1 and all(parts) else None
