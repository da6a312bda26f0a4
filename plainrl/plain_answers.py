"""Which answers may reach a scorer of reasoning-gym that evaluates them.

Some of its scorers call Python's `eval` or sympy's `parse_expr` (which evaluates too) on the answer. Such a
scorer gets an answer only if it is plain: data, such as [[0, 1], [1, 0]], or arithmetic in single letters.
What is plain is decided here on the syntax tree, and nothing is evaluated.
"""

import ast
import inspect
import re
from fractions import Fraction

# Their scorers call `eval` on an answer that is not one of the right ones, to see whether it is a list.
DATA = {"binary_matrix", "n_queens", "spiral_matrix", "string_insertion"}
# Their scorers call `parse_expr`. With numbers alone, with letters, with letters and functions.
NUMBERS = {"countdown", "puzzle24"}
LETTERS = {"polynomial_multiplication"}
FUNCTIONS = {"intermediate_integration", "simple_integration"}

# Its scorer calls `eval` on its own right answer alone.
HARMLESS = {"number_sorting"}

_FUNCTIONS = set("sin cos tan cot sec csc asin acos atan sinh cosh tanh asinh atanh".split())
_FUNCTIONS |= {"exp", "log", "ln", "sqrt", "Abs"}
_CONSTANTS = {"E", "pi"} | set("abcdefghijklmnopqrstuvwxyzABCDFGHIJKLMPRTUVWXYZ")  # N O Q S are sympy's
MAX_EXPONENT = 100
MAX_POWER = 1000  # the product of exponents one inside the other


def evaluates(dataset, name: str) -> bool:
    """Does the scorer of this reasoning-gym dataset evaluate answers?

    It is one of the known ones, one that hands on to others, or one whose text says so.
    """
    if name in DATA | NUMBERS | LETTERS | FUNCTIONS or name == "composite":
        return True
    if name in HARMLESS:
        return False
    scorer = inspect.getsource(type(dataset).score_answer)
    return re.search(r"\b(eval|exec|compile|parse_expr|sympify|parse_latex)\(", scorer) is not None


def is_plain(answer: str, entry: dict, name: str) -> bool:
    """May this answer reach the evaluating scorer of the dataset `name`? `entry` is the question."""
    metadata = entry.get("metadata") or {}
    name = metadata.get("source_dataset", name)
    right = [entry["answer"], *(metadata.get("valid_answers") or [])]
    if answer.strip() in [str(each).strip() for each in right]:
        return True
    if name in NUMBERS:
        return _is_arithmetic(answer, set(), set())
    if name in LETTERS | FUNCTIONS:
        letters = _CONSTANTS | set(re.findall(r"[A-Za-z]\w*", str(entry["answer"]))) - _FUNCTIONS
        return _is_arithmetic(answer, letters, _FUNCTIONS if name in FUNCTIONS else set())
    if name in DATA:
        return _is_data(answer)
    return _is_data(answer) or _is_arithmetic(answer, set(), set())  # an unknown one: only what means itself


def _is_data(text: str) -> bool:
    """Is it a number, a string, or a list of such, as Python writes them?"""
    try:
        ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return False
    return True


def _is_arithmetic(text: str, names: set[str], functions: set[str]) -> bool:
    """Is it arithmetic: + - * / ** and brackets, numbers, these names, these functions of one argument?"""
    known = r"[A-Za-z0-9_+\-*/(). ]*" if names else r"[0-9+\-*/(). ]*"  # no # either: it hides the rest
    if not re.fullmatch(known, text.strip()) or re.search("[0-9][A-Za-z_]", text):  # 0x18, 1_000
        return False
    try:
        _power(ast.parse(text.strip(), mode="eval").body, names, functions)
    except (ValueError, SyntaxError, MemoryError, RecursionError, ZeroDivisionError):
        return False
    return True


def _power(node: ast.AST, names: set[str], functions: set[str]) -> float:
    """The largest product of exponents one inside the other. Raises ValueError for what is not arithmetic.

    >>> _power(ast.parse("3*(x**2+1)**4 - x**7", mode="eval").body, {"x"}, set())
    8.0
    """
    match node:
        case ast.Constant(value=bool()):
            raise ValueError("a truth value")
        case ast.Constant(value=int() | float()):
            return 1.0
        case ast.Name(id=name) if name in names:
            return 1.0
        case ast.Call(func=ast.Name(id=name), args=[inner], keywords=[]) if name in functions:
            return _power(inner, names, functions)
        case ast.UnaryOp(op=ast.UAdd() | ast.USub(), operand=inner):
            return _power(inner, names, functions)
        case ast.BinOp(op=ast.Add() | ast.Sub() | ast.Mult() | ast.Div(), left=left, right=right):
            return max(_power(left, names, functions), _power(right, names, functions))
        case ast.BinOp(op=ast.Pow(), left=ast.Name(id="E"), right=right) if "E" in names:
            return _power(right, names, functions)
        case ast.BinOp(op=ast.Pow(), left=left, right=right):
            exponent = abs(_value(right))
            power = _power(left, names, functions) * max(1.0, float(exponent))
            if exponent <= MAX_EXPONENT and power <= MAX_POWER:
                return power
    raise ValueError("not arithmetic")


def _value(node: ast.AST) -> Fraction:
    """The value of an exponent: numbers with + - * /. Raises ValueError for anything else.

    >>> _value(ast.parse("-(3/2)", mode="eval").body)
    Fraction(-3, 2)
    """
    match node:
        case ast.Constant(value=int() | float()):
            return Fraction(node.value)
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            return -_value(inner)
        case ast.UnaryOp(op=ast.UAdd(), operand=inner):
            return _value(inner)
        case ast.BinOp(op=ast.Add(), left=left, right=right):
            return _value(left) + _value(right)
        case ast.BinOp(op=ast.Sub(), left=left, right=right):
            return _value(left) - _value(right)
        case ast.BinOp(op=ast.Mult(), left=left, right=right):
            return _value(left) * _value(right)
        case ast.BinOp(op=ast.Div(), left=left, right=right):
            return _value(left) / _value(right)
    raise ValueError("not a number")
