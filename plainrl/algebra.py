r"""Comparing two formulas with sympy. Runs in a grading worker, see plainrl/workers.py."""

import functools
import re
from fractions import Fraction


def to_latex(text: str) -> str:
    """What math-verify's reader of LaTeX understands; decimals as fractions, so that they stay exact."""
    text = text.replace("⦃", "\\{").replace("⦄", "\\}")
    text = re.sub(r"([0-9]+)\s*\^\\circ", r"\\frac{\1\\pi}{180}", text)
    text = re.sub(r"\\log\s*_\s*\{?e\}?(?![a-zA-Z])", r"\\ln ", text)
    text = re.sub(r"\\div(?![a-zA-Z])", "/", text)
    text = re.sub(r"\\tan\s*\^\s*\{?-1\}?", r"\\arctan ", text)
    text = re.sub(r"\\(sin|cos)\s*\^\s*\{?-1\}?", r"\\arc\1 ", text)
    text = re.sub(r"(?<![0-9.])([0-9]*)\.([0-9]+)(?![0-9.])", _decimal, text)
    text = re.sub(r"\^\s*(-?[0-9]{2,})", r"^{\1}", text)
    text = re.sub(r"\\sqrt\s*(\[[^\[\]]*\])?\s*([0-9a-zA-Z]|\\pi)", r"\\sqrt\1{\2}", text)
    text = re.sub(r"\\(frac|binom)\s*([0-9a-zA-Z])", r"\\\1{\2}", text)
    return re.sub(r"\\(frac|binom)\s*(\{(?:[^{}]|\{[^{}]*\})*\})\s*([0-9a-zA-Z])", r"\\\1\2{\3}", text)


def _decimal(match: re.Match) -> str:
    value = Fraction(match.group())
    return f"\\frac{{{value.numerator}}}{{{value.denominator}}}"


# What a formula may hold. The reader takes much else for letters, or stops before it without a word.
_COMMANDS = {
    "\\" + name
    for name in (
        "frac sqrt binom choose cdot times div pm mp sin cos tan cot sec csc arcsin arccos arctan sinh cosh "
        "tanh log ln lg exp pi infty sum prod int lim to left right lfloor rfloor lceil rceil lvert "
        "rvert vert alpha beta gamma delta epsilon varepsilon zeta eta theta iota kappa lambda mu nu xi rho "
        "sigma tau phi varphi chi psi omega Gamma Delta Theta Lambda Sigma Phi Psi Omega circ mathbb begin "
        "end det gcd lcm max min cup cap setminus emptyset in ell overline bar hat vec"
    ).split()
}


@functools.lru_cache(maxsize=256)
def formula_of(text: str):
    """The sympy object of a formula, evaluated as far as it goes. Raises whatever the reader raises."""
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig, latex2sympy

    unknown = set(re.findall(r"\\[a-zA-Z]+", text)) - _COMMANDS
    if unknown or re.search(r"[⟦'\"?:;&#%~$]|\.\.", text.replace("\\$", "$") if "matrix" not in text else ""):
        raise ValueError("words and signs of another kind are no formula")
    config = ConversionConfig(lowercase_symbols=False)
    formula = latex2sympy(to_latex(text), is_real=False, normalization_config=None, conversion_config=config)
    return _with_i(formula.doit())


def sympy_algebra(relation: str, first: str, second: str) -> bool:
    """`same`'s algebra: read by math-verify's reader, compared by numbers at several points to 50 digits.

    A formula that has no number at a point (an unknown function) is left to math-verify itself.
    """
    import math_verify
    import sympy

    try:
        one, other = formula_of(first), formula_of(second)
    except Exception:  # the reader raises anything on text that is no LaTeX; such text is equal to nothing
        return False
    if relation == "within":
        size = abs(one.evalf(40)) if isinstance(one, sympy.Expr) and not one.free_symbols else sympy.nan
        return bool(size.is_number and size.is_finite and size <= other)
    formulas = isinstance(one, sympy.Expr) and isinstance(other, sympy.Expr)
    if not formulas or one.atoms(_undefined_function()) or other.atoms(_undefined_function()):
        alike = relation == "equal" and (formulas or type(one) is type(other))
        return alike and math_verify.verify(one, other, timeout_seconds=None)
    if one == other:
        return relation != "equal" or not one.has(sympy.nan, sympy.zoo)
    if one.is_Rational and other.is_Rational and relation == "equal":
        return False
    letters, ratios = sorted(one.free_symbols | other.free_symbols, key=str), []
    for k in range(4 if letters else 1):
        point = {letter: _coordinate(k, i) for i, letter in enumerate(letters)}
        if relation == "equal":
            if not _close(one, other, point) and not (k == BELOW_0 and _is_not_real(one, other, point)):
                return False
            continue
        a, b = (expression.evalf(80, subs=point) for expression in (one, other))
        if not (a.is_finite and b.is_finite and a != 0 and b != 0):
            return False
        ratios.append(a / b)
    if relation == "equal":
        return True
    if relation == "scaled" and not all(ratio.is_real and ratio > 0 for ratio in ratios):
        return False
    return all(_close(ratio, ratios[0], {}) for ratio in ratios)


def _undefined_function():
    from sympy.core.function import AppliedUndef

    return AppliedUndef


def _with_i(expression):
    import sympy

    return expression.subs({letter: sympy.I for letter in expression.free_symbols if str(letter) == "i"})


BELOW_0 = 2  # the number of a point


def _is_not_real(one, other, point: dict) -> bool:
    """Is one of them no real number there, as x^{3/2} below 0? What a root is there is a matter of taste."""
    return not all(expression.evalf(30, subs=point).is_real for expression in (one, other))


def _coordinate(k: int, i: int):
    """A fraction that formulas rarely treat specially; above and below 0, whole at the end."""
    import sympy

    value = sympy.Rational((7919 * (k + 1) + 104729 * (i + 1)) % 1009 + 13, 401 + 6 * i + 2 * k)
    return [value, value + 1, -value, sympy.Integer(3 + 2 * i)][k]


def _close(a, b, point: dict) -> bool:
    """Equal at a point to 50 digits, relative to the larger one."""
    import sympy

    values = [expression.evalf(80, subs=point) for expression in (a, b)]
    sizes = [abs(value) for value in values]
    if (a - b).has(sympy.factorial, sympy.gamma, sympy.binomial):  # take seconds where many digits cancel
        difference = abs(values[0] - values[1])
    else:
        difference = abs((a - b).evalf(80, subs=point, maxn=500))
    if not all(size.is_number and size.is_finite for size in (*sizes, difference)):
        return False
    if difference <= max(sizes) * sympy.Rational(1, 10**50):
        return True
    return not point and difference < sympy.Rational(1, 10**100) and bool((a - b).equals(0))
