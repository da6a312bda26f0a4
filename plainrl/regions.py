r"""Parts of the real line: intervals, unions, inequalities, and the line without some points.

A part is ("region", intervals, name) with (low, closed there, high, closed there) for every interval, or
("except", points, name) for the line without points. The bounds and points are formulas, the name is that of
the variable or None.
"""

import re
from collections.abc import Callable

from plainrl.answers import NotExact, Undefined, exact, split
from plainrl.units import has_letters, read_quantity

INFINITE = "-\\infty", "\\infty"
VARIABLE = re.compile(r"(?:[a-zA-Z]|\\(?:alpha|beta|gamma|theta|lambda|mu|phi|omega))(?:_\{?[a-z0-9]+\}?)?")
TURNED = {"<": ">", ">": "<", "\\le": "\\ge", "\\ge": "\\le", "\\ne": "\\ne"}


def region(intervals: list, name: str | None = None) -> tuple:
    return ("region", intervals, name)


def as_region(node: tuple) -> tuple | None:
    """A tree as a part of the line: (2, 3) may be an interval. None for what is none."""
    if node[0] == "tuple" and len(node[1]) == 2 and all(item[0] == "expr" for item in node[1]):
        closed = node[2] == "["
        return region([(node[1][0][1], closed, node[1][1][1], closed)])
    if node[0] == "expr" and re.fullmatch(r"\\mathbb\s*\{?R\}?", node[1]):
        return region([(INFINITE[0], False, INFINITE[1], False)])
    return node if node[0] in ("region", "except") else None


def positive_numbers(text: str) -> tuple | None:
    r"""\mathbb{R}^+, \mathbb{R}_{\ge 0}, \mathbb{R}^* and their like."""
    if re.fullmatch(r"\\mathbb\s*\{?R\}?\s*\^\s*\{?\s*(?:\*|\\ast|\\times)\s*\}?", text):
        return ("except", ["0"], None)
    match = re.fullmatch(
        r"\\mathbb\s*\{?R\}?\s*[\^_]\s*\{?\s*(\+|>\s*0|\\ge\s*0|-|<\s*0|\\le\s*0)\s*\}?", text
    )
    if not match:
        return None
    closed = "e" in match[1]
    if match[1][0] in "+>" or match[1].startswith("\\ge"):
        return region([("0", closed, INFINITE[1], False)])
    return region([(INFINITE[0], False, "0", closed)])


# --- inequalities -------------------------------------------------------------------------------------------

_ABSOLUTE = re.compile(r"(?:\||\\[lr]?vert)\s*(?P<inside>[^|]+?)\s*(?:\||\\[lr]?vert)")
_SHIFTED = re.compile(
    r"(?P<letter>[a-zA-Z])\s*(?:(?P<sign>[+-])\s*(?P<shift>.+))?|(?P<from>[^a-zA-Z]+?)\s*-\s*(?P<other>[a-zA-Z])"
)


def read_inequality(parts: list[str], signs: list[str]) -> tuple:
    r"""x<2, 1<x\le 3, |x-1|<2 as regions; other inequalities as they stand or as a difference."""
    if len(parts) == 2:
        left, sign, right = parts[0], signs[0], parts[1]
        if (VARIABLE.fullmatch(right) or _ABSOLUTE.fullmatch(right)) and not has_letters(left):
            left, sign, right = right, TURNED[sign], left
        if not has_letters(right):
            quantity = read_quantity(right, 0)
            right = quantity[1] if quantity and quantity[0] == "quantity" else right
            if distance := _ABSOLUTE.fullmatch(left):
                found = _within(distance["inside"], sign, right)
                if found:
                    return found
            if not left or VARIABLE.fullmatch(left):
                return _half_line(left or None, sign, right)
        if not left:
            return ("text", sign + right)
        if sign in (">", "\\ge"):
            left, sign, right = right, TURNED[sign], left
        return ("inequality", sign, f"({left})-({right})")
    if len(parts) == 3 and VARIABLE.fullmatch(parts[1]) and not any(map(has_letters, (parts[0], parts[2]))):
        low, high = parts[0], parts[2]
        if set(signs) <= {">", "\\ge"}:
            low, high, signs = high, low, [TURNED[signs[1]], TURNED[signs[0]]]
        if set(signs) <= {"<", "\\le"}:
            return region([(low, signs[0] == "\\le", high, signs[1] == "\\le")], parts[1])
    return ("text", re.sub(r"\s+", "", "".join(a + b for a, b in zip(parts, [*signs, ""], strict=True))))


def _half_line(name: str | None, sign: str, bound: str) -> tuple:
    if sign == "\\ne":
        return ("except", [bound], name)
    if sign in ("<", "\\le"):
        return region([(INFINITE[0], False, bound, sign == "\\le")], name)
    return region([(bound, sign == "\\ge", INFINITE[1], False)], name)


def _within(inside: str, sign: str, radius: str) -> tuple | None:
    """|x - 1| < 2 as an interval, |x| > 2 as two."""
    match = _SHIFTED.fullmatch(inside)
    if not match or has_letters(match["shift"] or ""):
        return None
    if _number(radius) is not None and _number(radius) < 0:
        return ("text", f"|{inside}|{sign}{radius}")
    centre = match["from"] or ""
    if match["shift"]:
        centre = f"{'-' if match['sign'] == '+' else ''}({match['shift']})"
    low, high = f"{centre}-({radius})", f"{centre}+({radius})" if centre else radius
    name, closed = match["letter"] or match["other"], "e" in sign
    if sign == ">" and _number(radius) == 0:
        return ("except", [centre or "0"], name)
    if sign == "\\ne":
        return ("except", [low, high], name)
    if sign in ("<", "\\le"):
        return region([(low, closed, high, closed)], name)
    return region([(INFINITE[0], False, low, closed), (high, closed, INFINITE[1], False)], name)


# --- several parts ------------------------------------------------------------------------------------------


def read_difference(text: str, read: Callable[[str], tuple]) -> tuple | None:
    r"""The line, or an interval, without points or an interval: \mathbb{R}\setminus\{1,2\}."""
    parts = split(text, r"\\(?:setminus|smallsetminus|backslash)(?![a-zA-Z])")
    if len(parts) == 1 and (match := re.fullmatch(r"(\\mathbb\s*\{?R\}?)\s*-\s*(⦃.*⦄)", text)):
        parts = [match[1], match[2]]
    if len(parts) != 2 or not all(parts):
        return None
    whole, taken = read(parts[0]), read(parts[1])
    line = as_region(whole)
    if line is None:
        return None
    if taken[0] == "expr" and not has_letters(taken[1]):
        taken = ("set", [taken])
    if taken[0] == "set" and all(item[0] == "expr" for item in taken[1]):
        return common([line, ("except", [item[1] for item in taken[1]], None)])
    taken = as_region(taken)
    if _is_line(line) and taken and taken[0] == "region" and len(taken[1]) == 1:
        low, at_low, high, at_high = taken[1][0]
        rest = [(INFINITE[0], False, low, not at_low), (high, not at_high, INFINITE[1], False)]
        return region([one for one in rest if bound(one[0]) != bound(one[2])])
    return None


def _is_line(node: tuple) -> bool:
    return node[0] == "region" and [(bound(one[0]), bound(one[2])) for one in node[1]] == [INFINITE]


def unite(nodes: list[tuple]) -> tuple | None:
    regions = [as_region(node) for node in nodes]
    if any(each is None or each[0] != "region" for each in regions):
        return None
    return region(sum((each[1] for each in regions), []), _common_name(regions))


def common(nodes: list[tuple]) -> tuple | None:
    r"""What several parts have in common: x>0, x\ne 1. None where that is not plain, or nothing."""
    regions = [as_region(node) for node in nodes]
    if any(each is None for each in regions) or len({each[2] for each in regions if each[2]}) > 1:
        return None
    name = _common_name(regions)
    points = [point for each in regions if each[0] == "except" for point in each[1]]
    lines = [each for each in regions if each[0] == "region" and not _is_line(each)]
    if not lines:
        line = region([(INFINITE[0], False, INFINITE[1], False)], name)
        return ("except", points, name) if points else line
    if any(len(line[1]) != 1 for line in lines) or len(lines) > 2:
        return None
    intervals = lines[0][1]
    if len(lines) == 2:
        ends = [line[1][0] for line in lines]
        upper = next((end for end in ends if bound(end[0]) == INFINITE[0]), None)
        lower = next((end for end in ends if bound(end[2]) == INFINITE[1]), None)
        if not upper or not lower or upper is lower or _is_below(upper[2], lower[0]):
            return None
        intervals = [(lower[0], lower[1], upper[2], upper[3])]
    for point in points:
        intervals = _without_point(intervals, point)
        if intervals is None:
            return None
    return region(intervals, name)


def _without_point(intervals: list, point: str) -> list | None:
    """Intervals of which the one that holds the point is cut there. None where numbers cannot tell."""
    cut = []
    for low, at_low, high, at_high in intervals:
        if not (_is_below(low, point) and _is_below(point, high)):
            return None
        cut += [(low, at_low, point, False), (point, False, high, at_high)]
    return cut


def _common_name(regions: list[tuple]) -> str | None:
    names = {each[2] for each in regions if each[2]}
    return names.pop() if len(names) == 1 else None


def _number(text: str):
    try:
        return exact(text)
    except (NotExact, Undefined):
        return None


def _is_below(low: str, high: str) -> bool:
    if bound(low) == INFINITE[0] or bound(high) == INFINITE[1]:
        return True
    one, other = _number(low), _number(high)
    return one is not None and other is not None and one < other


def bound(text: str) -> str:
    text = re.sub(r"\s+", "", text)
    return text.removeprefix("+") if text.endswith("\\infty") else text


def left_out(node: tuple) -> list[str] | None:
    """The points that a part leaves out of the line: 2 for x<2 or x>2. None where it leaves out more."""
    if node[0] == "except":
        return node[1]
    ends = sorted(bound(one[0]) for one in node[1]), sorted(bound(one[2]) for one in node[1])
    points = [point for point in ends[0] if point != INFINITE[0]]
    others = [point for point in ends[1] if point != INFINITE[1]]
    is_open = not any(one[1] or one[3] for one in node[1])
    complete = INFINITE[0] in ends[0] and INFINITE[1] in ends[1]
    return points if points and is_open and complete and points == others else None


def same_region(gold: tuple, answer: tuple, equal: Callable[[str, str], bool], match: Callable) -> bool:
    """Are two parts of the line the same? `equal` compares bounds, `match` lists in any order."""
    if gold[2] and answer[2] and gold[2] != answer[2]:
        return False
    if "except" in (gold[0], answer[0]):
        points = left_out(gold), left_out(answer)
        return None not in points and match(*points, equal)

    def same_interval(one: tuple, other: tuple) -> bool:
        ends_alike = one[1] == other[1] and one[3] == other[3]
        return ends_alike and all(equal(bound(one[i]), bound(other[i])) for i in (0, 2))

    return match(gold[1], answer[1], same_interval)
