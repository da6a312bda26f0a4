r"""Are two answers the same? What they are (numbers, lists, intervals, words) decides how they are compared.

Both are brought to one spelling and read into a small tree (plainrl/reading.py). Parts that are arithmetic
are compared exactly: a decimal is exactly the number that its digits say, so 0.5 is 1/2 and 0.333333 is not
1/3. What is left, formulas with letters, roots or functions, goes to `algebra`, which needs sympy and runs in
a worker.
"""

import re
from collections.abc import Callable
from fractions import Fraction

from plainrl.answers import MAX_ANSWER_CHARS, NotExact, Undefined, exact, is_huge, plain_arithmetic, tidy
from plainrl.reading import NOTHING, SUM_OF_NAMES, is_exact, read, undefined
from plainrl.regions import as_region, same_region
from plainrl.units import are_opposite, has_letters, without_marks
from plainrl.wording import aligned, letters_of, with_letter


class NeedsAlgebra(Exception):
    """The answers cannot be told apart without sympy."""


def same(gold: str, answer: str, algebra: Callable[[str, str, str], bool]) -> bool:
    r"""Is the answer the same as the gold answer?

    `algebra(relation, first, second)` decides about two formulas: "equal", "proportional" and "scaled" for
    the two sides of equations and inequalities, or "within" for a difference and the most it may be.
    It may raise NeedsAlgebra, which is passed on.
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
        return bool(content) and _same(read(content), read(answer), algebra)
    if gold == answer and read(gold) != NOTHING and not undefined(gold):
        return True
    pair = aligned(gold, answer)
    if pair is None:
        return False
    gold, answer = pair
    golds = [gold]
    if re.fullmatch(r"-?[0-9]+,[0-9]{1,2}|-?0,[0-9]+", gold):  # a list, or a number with a decimal comma
        golds.append(gold.replace(",", "."))
    return any(_same(read(one), read(answer), algebra) for one in golds)


def readable(gold: str, algebra: Callable[[str, str, str], bool]) -> bool:
    """Is every part of a gold answer something that can be compared?"""
    gold = tidy(gold[: 2 * MAX_ANSWER_CHARS])
    return bool(gold) and _readable(read(gold), algebra)


def _readable(node: tuple, algebra) -> bool:
    kind = node[0]
    if kind == "nothing":
        return False
    if kind in ("expr", "quantity", "equation"):
        parts = node[1:2] if kind == "quantity" else node[1:]
        return all(is_exact(part) or is_huge(part) or algebra("equal", part, part) for part in parts)
    if kind in ("list", "set", "tuple", "chain"):
        return all(_readable(item, algebra) for item in node[1])
    if kind == "approximation":
        return _readable(node[1], algebra)
    return kind != "assign" or _readable(node[2], algebra)


# --- multiple choice

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


# --- comparing ----------------------------------------------------------------------------------------------


def _formula(first: str, second: str, algebra) -> bool:
    """Two formulas: exactly where both are numbers, else by algebra."""
    first, second = (re.sub(r"(?<![0-9a-zA-Z])\s+|\s+(?![0-9a-zA-Z])", "", text) for text in (first, second))
    if first == second:
        return not undefined(first)
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
    if is_huge(first) or is_huge(second):  # 9^{9^9} would take all the time that a worker has
        return False
    return algebra("equal", plain_arithmetic(first), plain_arithmetic(second))


def _same(gold: tuple, answer: tuple, algebra) -> bool:
    """Compare two trees."""
    if NOTHING in (gold, answer):
        return False
    if answer[0] == "chain":
        return _is_true(answer, algebra) and any(_same(gold, value, algebra) for value in answer[1])
    if gold[0] == "chain":
        return _is_true(gold, algebra) and any(_same(value, answer, algebra) for value in gold[1])
    if gold == answer:
        return True
    if gold[0] == "approximation":
        return any(_same(value, answer, algebra) for value in (gold[1], *gold[2]))
    if answer[0] == "approximation":
        return _same_approximation(gold, answer, algebra)
    gold, answer = _alone(gold, answer), _alone(answer, gold)
    gold, answer = _without_names(gold, answer), _without_names(answer, gold)
    kinds = gold[0], answer[0]
    if {"mod", "words"} & set(kinds):
        congruences = _as_congruence(gold), _as_congruence(answer)
        if None not in congruences:
            (one, *first), (other, *second) = congruences
            return first == second and (not one or not other or one == other)
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
        if other[0] == "words" or not re.fullmatch("[a-z]{2,3}", word[1]) or word[1] in _SHORT_WORDS:
            return False
        return bool(re.search(r"\\|\s|\*|\^", other[1])) and algebra("equal", word[1], other[1])
    regions = as_region(gold), as_region(answer)
    if None not in regions and kinds != ("tuple", "tuple"):
        return same_region(*regions, lambda one, other: _formula(one, other, algebra), _match)
    if set(kinds) <= {"list", "set", "tuple", "named"}:
        return _same_items(gold, answer, algebra)
    if kinds == ("matrix", "matrix"):
        shapes = [[len(row) for row in node[1]] for node in (gold, answer)]
        pairs = zip(sum(gold[1], []), sum(answer[1], []))
        return shapes[0] == shapes[1] and all(_same(one, other, algebra) for one, other in pairs)
    if kinds == ("cases", "cases"):
        return _match(
            gold[1], answer[1], lambda one, other: all(_same(*pair, algebra) for pair in zip(one, other))
        )
    if set(kinds) == {"tuple", "expr"}:
        gold, answer = _with_components(gold), _with_components(answer)
        return gold[0] == answer[0] and _same_items(gold, answer, algebra)
    if set(kinds) == {"matrix", "tuple"}:
        rows_of = [_as_matrix(node) for node in (gold, answer)]
        if None not in rows_of:
            return _same(*rows_of, algebra)
        matrix, row = (gold, answer) if kinds[0] == "matrix" else (answer, gold)
        cells = sum(matrix[1], [])
        vector = len(cells) == max(len(matrix[1]), len(matrix[1][0]))
        return (
            vector and len(cells) == len(row[1]) and all(_same(*pair, algebra) for pair in zip(cells, row[1]))
        )
    if kinds == ("mod", "mod"):  # residues with letters or roots
        return gold[2] == answer[2] and _formula(gold[1], answer[1], algebra)
    if set(kinds) <= {"expr", "quantity"}:
        return _same_quantity(gold, answer, algebra)
    return False


_LINEAR = re.compile(r"(?P<factor>[0-9]{1,6})\*?(?P<letter>[a-zA-Z])(?P<rest>[-+][0-9]{1,6})?")
_PARITY = re.compile(r"(?:([a-z]) )?(odd|even)(?: (?:integer )?([a-z]))?")


def _as_congruence(node: tuple) -> tuple[str, int | Fraction, int] | None:
    r"""Letter (or ""), residue and modulus of n\equiv1\pmod4, n=4k+1 and "n is odd"; else None."""
    if node[0] == "words":
        parity = _PARITY.fullmatch(node[1])
        return (parity[1] or parity[3] or "", int(parity[2] == "odd"), 2) if parity else None
    if node[0] == "mod":
        modulus = int(node[2])
        try:
            return ("", exact(node[1]) % modulus, modulus) if modulus else None
        except (NotExact, Undefined):
            return None
    name, value = (node[1], node[2]) if node[0] == "assign" else ("", node)
    linear = value[0] == "expr" and _LINEAR.fullmatch(re.sub(r"\s|\\cdot", "", value[1]))
    if not linear or linear["letter"] == name or not int(linear["factor"]):
        return None
    return name, int(linear["rest"] or 0) % int(linear["factor"]), int(linear["factor"])


def _as_matrix(node: tuple) -> tuple | None:
    """[[1, 2], [3, 4]] as a matrix. None for a point."""
    if node[0] == "matrix":
        return node
    rows = node[1] if all(row[0] == "tuple" and row[2] == "[" for row in node[1]) else []
    return ("matrix", [row[1] for row in rows]) if rows else None


_SHORT_WORDS = set(
    "no on so yes not odd one two six ten an and or is it in of to at all any red max min".split()
)


def _alone(node: tuple, other: tuple) -> tuple:
    """{2} is 2, but not where the other is a set, and {{2}} and {\\emptyset} are not what is in them."""
    if node[0] not in ("list", "set") or len(node[1]) != 1 or other[0] == node[0]:
        return node
    inner = node[1][0]
    return node if inner[0] == "set" or inner == ("expr", "\\emptyset") else inner


def _without_names(node: tuple, other: tuple) -> tuple:
    """(x, y) = (2, 3) is (2, 3) where the other has no names, or quite other ones."""
    if node[0] != "named" or not node[2]:
        return node
    if other[0] == "named" and (not other[2] or node[1].keys() & other[1].keys()):
        return node
    return ("tuple", list(node[1].values()), "(")


def _with_components(node: tuple) -> tuple:
    """2i-j+4k as (2, -1, 4), where the other answer is a vector. Other formulas as they are."""
    text = re.sub(r"[{}⟦⟧]|\s", "", node[1]) if node[0] == "expr" else ""
    terms = re.findall(r"([-+]?[^-+ijk]*)([ijk])", text)
    names = [name for _, name in terms]
    if "j" not in names or "".join(map("".join, terms)) != text or len(set(names)) != len(names):
        return node
    factors = {name: factor + "1" if factor in ("", "+", "-") else factor for factor, name in terms}
    letters = "ijk" if "k" in factors else "ij"
    return ("tuple", [("expr", factors.get(name, "0").removeprefix("+")) for name in letters], "(")


def _is_true(chain: tuple, algebra) -> bool:
    """2+2=4 and 1/2=50% are true."""
    *values, last = chain[1]
    return all(_same_value(value, last, algebra) for value in values)


def _same_value(one: tuple, other: tuple, algebra) -> bool:
    """Are two numbers the same, where a percentage is its hundredth?"""
    if one[0] == "assign" or other[0] == "assign" or "chain" in (one[0], other[0]):
        return False
    percent = [node[0] == "quantity" and node[2] == "%" for node in (one, other)]
    if any(percent) and {one[0], other[0]} <= {"expr", "quantity"}:
        first, second = (
            f"({node[1]})/100" if is_percent else node[1] for node, is_percent in zip((one, other), percent)
        )
        return _formula(first, second, algebra)
    return _same(one, other, algebra)


def _same_approximation(gold: tuple, answer: tuple, algebra) -> bool:
    r"""\frac{5}{36}\approx 0.139 is right where the decimals fit the exact value and one of them is right."""
    exact_value, decimals = answer[1:]
    value = exact_value[2] if exact_value[0] == "assign" else exact_value
    value = value[1][-1] if value[0] == "chain" else value
    if value[0] not in ("expr", "quantity"):
        return False
    if not all(_fits(value, decimal, algebra) for decimal in decimals):
        return False
    if _same(gold, exact_value, algebra):
        return True
    rounded = gold[0] in ("expr", "quantity") and "." in gold[1]
    return rounded and any(_same(gold, decimal, algebra) for decimal in decimals)


def _fits(value: tuple, decimal: tuple, algebra) -> bool:
    """Is a number the value to the digits that it has? Rounded down or up, both will do."""
    if decimal[0] not in ("expr", "quantity") or not is_exact(decimal[1]):
        return False
    digits = re.match(r"-?[0-9]*(?:\.([0-9]*))?", decimal[1])
    power = re.search(r"10\s*\^\s*\{?\s*(-?[0-9]{1,3})\s*\}?$", decimal[1])
    unit = Fraction(10) ** ((int(power[1]) if power else 0) - len(digits[1] or ""))
    most = unit / 2
    if re.search(r"\\frac|/", decimal[1]):
        most = abs(exact(decimal[1])) / 100
    of_value, of_decimal = (node[0] == "quantity" and node[2] == "%" for node in (value, decimal))
    factor = 1 if of_value == of_decimal else 100 if of_decimal else Fraction(1, 100)
    difference = f"({value[1]})*{factor}-({decimal[1]})"
    below = f"{difference}{'+' if decimal[1].startswith('-') else '-'}{most}"  # cut off, not rounded
    return any(_is_within(each, most, algebra) for each in (difference, below))


def _is_within(difference: str, most: Fraction, algebra) -> bool:
    try:
        return abs(exact(difference)) <= most
    except Undefined:
        return False
    except NotExact:
        return not is_huge(difference) and algebra("within", plain_arithmetic(difference), str(most))


def _same_assignment(gold: tuple, answer: tuple, algebra) -> bool:
    """x=5 is 5. Two values with names: the names of functions do not count, those of variables do."""
    if gold[0] == answer[0] == "assign":
        (one, first), (other, second) = gold[1:], answer[1:]
        if any(SUM_OF_NAMES.fullmatch(name) for name in (one, other)) or _turned(gold, answer):
            if not first[0] == second[0] == "expr":
                return False
            return algebra("proportional", f"({one})-({first[1]})", f"({other})-({second[1]})")
        arguments = [re.search(r"\(\s*([a-zA-Z])\s*\)$", name) for name in (one, other)]
        if all(arguments):
            second = _with_argument(second, arguments[1][1], arguments[0][1])
            if second is None:
                return False
        if _are_marked_apart(one, other):
            return False
        named_apart = re.sub(r"\s", "", one) != re.sub(r"\s", "", other)
        constant = all(
            node[0] in ("expr", "quantity") and not has_letters(node[1]) for node in (first, second)
        )
        if named_apart and constant and _name_two_things(one.strip(), other.strip()):
            return False
        if named_apart and {one.strip(), other.strip()} <= set("xyz"):
            return False
        return _same(first, second, algebra)
    if "equation" in (gold[0], answer[0]):
        assign, equation = (gold, answer) if gold[0] == "assign" else (answer, gold)
        if assign[2][0] != "expr":
            return False
        return algebra("proportional", f"({assign[1]})-({assign[2][1]})", f"({equation[1]})-({equation[2]})")
    if gold[0] == "assign":
        if SUM_OF_NAMES.fullmatch(gold[1]) and gold[1].islower():  # x+y=4 is a line
            return False
        return answer[0] not in ("region", "inequality") and _same(gold[2], answer, algebra)
    return gold[0] not in ("region", "inequality") and _same(gold, answer[2], algebra)


_DERIVATIVE = re.compile(
    r"\\frac\{(?P<sign>d|\\partial)(?:\^(?P<order>[0-9]))?(?P<function>[a-zA-Z])\}"
    r"\{(?:d|\\partial)(?P<variable>[a-zA-Z])(?:\^[0-9])?\}"
)
_OPERATORS = {"E": "mean", "Var": "variance", "V": "variance", "D": "variance", "SD": "deviation"}
_OPERATORS |= {"Cov": "covariance", "P": "probability", "Pr": "probability"}


def _marks(name: str) -> dict[str, str]:
    r"""What makes a name another thing than its letter: y', f^{-1}, f_x, \frac{dy}{dx}, \sin A, Var(X)."""
    bare = re.sub(r"(?<=\^)\{([0-9])\}", r"\1", re.sub(r"\s", "", name))
    if derivative := _DERIVATIVE.fullmatch(bare):
        order, variable = int(derivative["order"] or 1), derivative["variable"]
        if derivative["sign"] == "d":
            return {"primes": "'" * order, "variable": variable}
        return {"below": variable * order, "letter": derivative["function"]}
    below = "".join(re.findall(r"_(\{[^{}]*\}|\w+)", bare))
    bare = re.sub(r"[{}⟦⟧]", "", bare)
    operator = re.match(r"\\?(?:mathbb)?([A-Z][a-z]*)(?=[(\[](?![a-z][)\]]))", bare)
    return {
        "primes": "'" * bare.count("'"),
        "inverse": "inverse" if "^-1" in bare else "",
        "functions": " ".join(re.findall(r"\\(?:sin|cos|tan|cot|sec|csc|log|ln)(?![a-z])", bare)),
        "operator": _OPERATORS.get(operator[1], "") if operator else "",
        "below": re.sub(r"\\triangle|[{}⟦⟧\\]", "", below),
        "letter": bare.partition("_")[0],
    }


def _are_marked_apart(one: str, other: str) -> bool:
    r"""y' and y, f^{-1} and f, a_1 and a_2, S_n and a_n, E(X) and Var(X); not \frac{dy}{dx} and y'."""
    first, second = _marks(one), _marks(other)
    if any(first.get(mark, "") != second.get(mark, "") for mark in ("primes", "functions")):
        return True
    if first.get("inverse", "") != second.get("inverse", "") and "y" not in (one, other):
        return True
    for mark in ("operator", "variable"):
        if first.get(mark) and second.get(mark) and first[mark] != second[mark]:
            return True
    if first.get("below") and second.get("below"):
        return (first["below"], first["letter"]) != (second["below"], second["letter"])
    below = first.get("below") or second.get("below") or ""
    return below in ("x", "y", "z")  # a derivative of f, or a part of v


def _are_turned(one: str, other: str) -> bool:
    r"""AB and BA, \angle ABC and \angle CBA, P(A\cap B) and P(B\cap A); not P(A|B) and P(B|A)."""
    if sorted(one) != sorted(other) or re.findall("[0-9]+", one) != re.findall("[0-9]+", other):
        return False
    if re.search(r"[-/:]|\\(?:frac|mid|log)|\(.*\|.*\)", one) and one != other:
        return False
    points = [re.fullmatch(r"(?:m?\s*\\(?:measured)?angle)?\s*([A-Z]{3})", name) for name in (one, other)]
    return not all(points) or points[0][1] in (points[1][1], points[1][1][::-1])


def _name_two_things(one: str, other: str) -> bool:
    """x and y, P(A) and P(B), x and |x|; not f(x) and g(x), AB and BA, S and \\text{Area}."""
    functions = [re.fullmatch(r"[a-zA-Z]'*\s*\([a-z]\)", name) for name in (one, other)]
    if all(functions) or _are_turned(one, other):
        return False
    shapes = [
        re.sub("[A-Z]", "A", re.sub("[a-z]", "a", re.sub("[0-9]+", "0", name))) for name in (one, other)
    ]
    inside = any(len(name) == 1 and name in letters_of(whole) for name, whole in ((one, other), (other, one)))
    return shapes[0] == shapes[1] or inside


def _turned(gold: tuple, answer: tuple) -> bool:
    """Is each name part of the other's value, as in x=y+1 and y=x-1?"""
    single = all(re.fullmatch("[a-zA-Z]", node[1]) and node[2][0] == "expr" for node in (gold, answer))
    return single and gold[1] in letters_of(answer[2][1]) and answer[1] in letters_of(gold[2][1])


def _with_argument(node: tuple, old: str, new: str) -> tuple | None:
    """The value of a function under another name of its argument. None where that name is taken."""
    if node[0] != "expr" or old == new:
        return node
    return None if new in letters_of(node[1]) else ("expr", with_letter(node[1], old, new))


def _same_code(gold: tuple, answer: tuple, algebra) -> bool:
    kinds = gold[0], answer[0]
    if kinds == ("clock", "clock"):
        return _same_time(gold, answer)
    if set(kinds) == {"clock", "ratio"} and gold[0] == "clock" and [*map(str, gold[1])] == answer[1]:
        return True  # 3 : 45
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


def _same_time(gold: tuple, answer: tuple) -> bool:
    """5 p.m. is 5:00 PM and 17:00. A clock without a.m. or p.m. may mean either, unless it counts to 24."""
    times = [gold[1], answer[1]]
    if gold[2] != answer[2] and (gold[2] and answer[2] or max(time[0] for time in times) > 12):
        halves = gold[2], answer[2]
        times = [
            (time[0] % 12 + 12 * (half == "p"), *time[1:]) if half else time
            for time, half in zip(times, halves)
        ]
    return times[0] == times[1]


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
        if gold[1].keys() != answer[1].keys():
            return _same_under_other_names(gold[1], answer[1], algebra)
        return all(_same(gold[1][name], answer[1][name], algebra) for name in gold[1])
    if len(gold[1]) != len(answer[1]) or kinds >= {"set", "tuple"} or kinds >= {"set", "named"}:
        return False
    if kinds <= {"list", "set"}:
        connectives = {node[2] for node in (gold, answer) if len(node) == 3} - {""}
        if len(connectives) == 2:  # p and q, p or q
            return False
        return _match(gold[1], answer[1], lambda one, other: _same_item(one, other, algebra))
    if kinds == {"tuple"} and gold[2] != answer[2] and len(gold[1]) == 2:
        return False
    if "list" in kinds and any(node[0] == "tuple" and node[2] == "[" for node in (gold, answer)):
        return False
    pairs = zip(*map(_in_order, (gold, answer)))
    return all(_same(one, other, algebra) for one, other in pairs)


def _in_order(node: tuple) -> list[tuple]:
    """The items as they are written, but x, y and z in the order of the alphabet."""
    if node[0] != "named":
        return node[1]
    names = sorted(node[1]) if node[1].keys() <= set("xyz") else list(node[1])
    return [node[1][name] for name in names]


def _same_under_other_names(gold: dict, answer: dict, algebra) -> bool:
    """length=5, width=3 is l=5, w=3, in this order. Where all names are letters they are other variables."""
    if len(gold) != len(answer) or gold.keys() & answer.keys():
        return False
    if all(re.fullmatch(r"[a-zA-Z](?:_\w+)?", name) for name in [*gold, *answer]):
        return False
    sides = [
        [value if value[0] == "assign" else ("assign", name, value) for name, value in side.items()]
        for side in (gold, answer)
    ]
    return all(_same_assignment(one, other, algebra) for one, other in zip(*sides))


def _same_item(one: tuple, other: tuple, algebra) -> bool:
    """Items of sets: 2 is not {2} there."""
    return (one[0] == "set") == (other[0] == "set") and _same(one, other, algebra)


def _above_one(text: str) -> bool:
    try:
        return abs(exact(text)) > 1
    except (NotExact, Undefined):
        return False


def _same_quantity(gold: tuple, answer: tuple, algebra) -> bool:
    """Units: the same, convertible, or given on one side only. 15% is 15, and 0.15 is 15%."""
    (value, unit, note), (other, its_unit, its_note) = (
        (node[1], "", "") if node[0] == "expr" else node[1:] for node in (gold, answer)
    )
    if are_opposite(note, its_note):
        return False
    if note and note == its_note:  # 200 profit, $200 profit
        unit, its_unit = ("" if each == "noun" else each for each in (unit, its_unit))
    if unit == _DEGREES and _is_in_radians(other, its_unit):
        return _formula(f"({value})\\times\\frac{{\\pi}}{{180}}", other, algebra)
    if its_unit == _DEGREES and _is_in_radians(value, unit):
        return _formula(value, f"({other})\\times\\frac{{\\pi}}{{180}}", algebra)
    if "%" in (unit, its_unit):
        if unit == its_unit:
            return _formula(value, other, algebra)
        if unit not in ("", "%") or its_unit not in ("", "%"):
            return False
        percent, number = (value, other) if unit == "%" else (other, value)
        as_written = bool(_FRACTION.search(percent)) == bool(_FRACTION.search(number))  # 0.5% is not 1/2
        if as_written and (unit == "%" or _above_one(value)):  # 42% may repeat the question's unit
            if _formula(percent, number, algebra):
                return True
        return _formula(f"({percent})/100", number, algebra)
    if not unit or not its_unit or unit == its_unit == "noun":
        return "compound" not in (note, its_note) and _formula(value, other, algebra)
    if "noun" in (unit, its_unit) or unit[0] != its_unit[0]:
        return False
    if unit[1] == its_unit[1]:
        return _formula(value, other, algebra)
    factor = unit[1] / its_unit[1]
    return _formula(f"({value})\\times \\frac{{{factor.numerator}}}{{{factor.denominator}}}", other, algebra)


_FRACTION = re.compile(r"\\frac|/")
_DEGREES, _RADIANS = ((("angle", 1),), 1), ((("radian", 1),), 1)


def _is_in_radians(value: str, unit: tuple | str) -> bool:
    return unit == _RADIANS or not unit and "\\pi" in value


def prepare(text: str) -> None:
    """Evaluate the formulas of an answer, so that one that takes too long is known to be at fault."""
    from plainrl.algebra import formula_of  # here, because it needs sympy, and the process that asks does not

    for formula in _formulas(read(tidy(text))):
        if not is_exact(formula) and not is_huge(formula):
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
