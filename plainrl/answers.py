r"""Reading an answer: the last box of a completion, one spelling for one meaning, and the exact number it is.

Pure functions of text. How two answers are compared is in plainrl/equality.py.
"""

import math
import re
from fractions import Fraction

MAX_ANSWER_CHARS = 1000  # a longer box is not an answer, unless the right answer is as long

# --- which text is the answer -------------------------------------------------------------------------------

_BOX = re.compile(r"\\(?:boxed|fbox)(?![a-zA-Z])\s*(?:\{|(?P<bare>[-+]?[0-9][0-9.,/]*))")
_BOX_NAME = r"[a-zA-Z](?:_\{?[a-zA-Z0-9]\}?)?"
_SPACE = r"(?:[\s$]|\\q?quad(?![a-zA-Z])|\\[ ,;!])*"
_BETWEEN_BOXES = re.compile(
    rf"{_SPACE}(?:[,;]|,?\s*\b(?:and|or)\b|,?\s*\\text\s*\{{\s*,?\s*(?:and|or)\s*\}}){_SPACE}(?:({_BOX_NAME})\s*=\s*)?"
)
_BEFORE_BOX = re.compile(rf"(?<![\\a-zA-Z])({_BOX_NAME})\s*=\s*$")


def after_thinking(text: str) -> str:
    """What follows the last </think>, up to a <think> that does not end.

    >>> after_thinking("<think>1 or 2?</think> 2"), after_thinking("<think>1"), after_thinking("1 <think>2")
    (' 2', '', '1 ')
    """
    return text.rpartition("</think>")[2].partition("<think>")[0]


def last_boxed(text: str) -> str | None:
    r"""Content of the last \boxed{...}, braces balanced. None without a box or when it never closes.

    A box may also be opened as \boxed {42}, \boxed 42 or \fbox{42}. Boxes joined by a comma, "and" or "or"
    are one answer, with names between them, too. A box inside thinking does not count.

    >>> last_boxed(r"so \boxed{1} or rather \boxed{\frac{1}{2}} apples")
    '\\frac{1}{2}'
    >>> last_boxed(r"$x=\boxed{2}$ and $\boxed{3}$")
    '2, 3'
    >>> last_boxed(r"$x=\boxed{2}$, $y=\boxed{3}$")
    'x=2, y=3'
    """
    text = after_thinking(text)
    opening = None
    end_of_search = len(text)
    while opening is None:  # from the end, since only the last box counts
        start = max(text.rfind("\\boxed", 0, end_of_search), text.rfind("\\fbox", 0, end_of_search))
        if start < 0:
            return None
        opening = _BOX.match(text, start)
        end_of_search = start
    if opening["bare"]:
        return opening["bare"].rstrip(".,/")
    content = _balanced(text, opening.end())
    if content is None:
        return None
    found, start = [content.strip()], opening.start()
    names = []
    while joined := _box_before(text, start):
        content, start, name = joined
        found.insert(0, content)
        names.insert(0, name)
    first = _BEFORE_BOX.search(text, max(0, start - 20), start)
    if any(names) and not first:  # 2 and x=3: the first may be of a step before
        return found[-1]
    names.insert(0, first and first[1])
    if len(names) > 1 and all(names):
        found = [f"{name}={content}" for name, content in zip(names, found, strict=True)]
    return found[0] if len(set(found)) == 1 else ", ".join(found)


def _balanced(text: str, start: int) -> str | None:
    """What stands from `start` to the brace that closes it."""
    depth = 1
    for brace in re.compile(r"[{}]").finditer(text, start):
        depth += 1 if brace.group() == "{" else -1
        if depth == 0:
            return text[start : brace.start()]
    return None


def _box_before(text: str, end: int) -> tuple[str, int, str | None] | None:
    """Content and start of the box that is joined to the one at `end` by a comma, "and" or "or", and the name
    that the latter has."""
    start = text.rfind("\\boxed{", 0, end)
    if start < 0 or end - start > 2 * MAX_ANSWER_CHARS:
        return None
    content = _balanced(text, start + len("\\boxed{"))
    if not content or not content.strip():
        return None
    close = start + len("\\boxed{") + len(content) + 1
    between = _BETWEEN_BOXES.fullmatch(text, close, end) if close <= end else None
    return (content.strip(), start, between[1]) if between else None


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


# --- one spelling for one meaning ---------------------------------------------------------------------------

# What tidy() writes: ⦃ ⦄ for braces of a set, ⟦ ⟧ round what stood in \text{}. All else is LaTeX.
_SYMBOLS = {
    **dict.fromkeys("\u2212\u2013\u2012\u2014\ufe63\uff0d", "-"),
    **dict.fromkeys("\u00a0\u2009\u202f\u2007\u2002\u2003\u2006\u3000", "\\,"),
    **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff✓✔", ""),
    **dict.fromkeys("·⋅∙", "\\cdot "),
    **{"×": "\\times ", "÷": "\\div ", "⁄": "/", "∕": "/", "∶": ":", "：": ":", "√": "\\sqrt ", "±": "\\pm "},
    **{
        "≤": "\\le ",
        "⩽": "\\le ",
        "≥": "\\ge ",
        "⩾": "\\ge ",
        "≠": "\\ne ",
        "≈": "\\approx ",
        "≡": "\\equiv ",
    },
    **{"∞": "\\infty ", "∅": "\\emptyset ", "∪": "\\cup ", "∩": "\\cap ", "∈": "\\in ", "→": "\\to "},
    **{
        "⇒": "\\Rightarrow ",
        "∠": "\\angle ",
        "°": "^\\circ ",
        "º": "^\\circ ",
        "′": "'",
        "’": "'",
        "″": "''",
    },
    **{
        "…": "\\ldots ",
        "，": ", ",
        "；": ";",
        "。": ".",
        "（": "(",
        "）": ")",
        "％": "%",
        "＝": "=",
        "＋": "+",
    },
    **{"ℝ": "\\mathbb{R}", "ℤ": "\\mathbb{Z}", "ℚ": "\\mathbb{Q}", "ℕ": "\\mathbb{N}", "ℂ": "\\mathbb{C}"},
    **{"½": "\\frac12 ", "⅓": "\\frac13 ", "⅔": "\\frac23 ", "¼": "\\frac14 ", "¾": "\\frac34 "},
    **{"⅕": "\\frac15 ", "⅛": "\\frac18 ", "⦃": "", "⦄": "", "⟦": "", "⟧": ""},
    **{"α": "\\alpha ", "β": "\\beta ", "γ": "\\gamma ", "δ": "\\delta ", "ε": "\\epsilon ", "θ": "\\theta "},
    **{"λ": "\\lambda ", "μ": "\\mu ", "π": "\\pi ", "ρ": "\\rho ", "σ": "\\sigma ", "τ": "\\tau "},
    **{"φ": "\\phi ", "ω": "\\omega ", "Δ": "\\Delta ", "Ω": "\\Omega "},
}
_SYMBOLS = {ord(symbol): text for symbol, text in _SYMBOLS.items()}
_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ", "0123456789-+n")
_LOWERED = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
_INNER = r"(?:[^{}]|\{[^{}]*\})"  # a sign, or braces without braces in them
_SUBSTITUTIONS = [
    (re.compile(pattern), text)
    for pattern, text in (
        # sizes, styles and what only decorates
        (r"\{\\(?:rm|bf|it|sf|tt)\s+([^{}]*)\}", r"\\mathrm{\1}"),
        (r"\\(?:left|right)\s*\.|\\phantom\s*\{[^{}]*\}|\\newline(?![a-zA-Z])", ""),
        (r"\\(?:left|right|[bB]igg?[lrm]?)(?![a-zA-Z])\s*", ""),
        (r"\\\\\s*\[[0-9.]+\s*(?:pt|em|ex|mm|cm)\]", r"\\\\"),
        (
            r"\\(?:displaystyle|textstyle|scriptstyle|limits|nolimits|bf|rm|it|sf|tt|boldmath|checkmark|quad"
            r"|qquad|enspace|thinspace|medspace|large|Large|huge|small|centering|blacksquare|square|Box)"
            r"(?![a-zA-Z])",
            " ",
        ),
        (r"\\[hv]space\*?\{[^{}]*\}|\\(?:label|tag)\*?\{[^{}]*\}", " "),
        (r"\\textcolor\s*\{[^{}]*\}|\\color\s*\{[^{}]*\}|\\colorbox\s*\{[^{}]*\}", ""),
        (r"\\(?:[dtcs]|nice|flat)frac(?![a-zA-Z])", r"\\frac"),
        (r"\\[dt]binom(?![a-zA-Z])", r"\\binom"),
        (r"\{([^{}]+)\\choose([^{}]+)\}", r"\\binom{\1}{\2}"),
        (rf"\{{({_INNER}*?)\\over(?![a-zA-Z])({_INNER}*)\}}", r"\\frac{\1}{\2}"),
        (rf"((?:(?![=,;<>]){_INNER})+?)\\over(?![a-zA-Z])((?:(?![=,;<>]){_INNER})+)", r"\\frac{\1}{\2}"),
        (r"\\var(phi|theta|epsilon|rho|sigma)(?![a-zA-Z])", r"\\\1"),
        (r"(?:\{\s*\})?[\^_]\{?([0-9]+)\}?\s*C\s*_\s*\{?([0-9]+)\}?", r"\\binom{\1}{\2}"),
        (r"\\lg(?![a-zA-Z])", r"\\log_{10} "),
        (r"(?<![a-zA-Z])\{\s*:\s*\}", ":"),
        (r"\\not\s*\\in(?![a-zA-Z])", r"\\notin "),
        (r"\\(?:leqslant|leq)(?![a-zA-Z])", r"\\le "),
        (r"\\(?:geqslant|geq)(?![a-zA-Z])", r"\\ge "),
        (r"\\not\s*=|\\neq(?![a-zA-Z])|(?<![0-9)])!=", r"\\ne "),
        (r"\\lt(?![a-zA-Z])", "<"),
        (r"\\gt(?![a-zA-Z])", ">"),
        (r"<=", r"\\le "),
        (r">=", r"\\ge "),
        (r"\\(?:approx|simeq|thickapprox)(?![a-zA-Z])", r"\\approx "),
        (r"\\(?:varnothing|empty)(?![a-zA-Z])|⦃\s*⦄", r"\\emptyset "),
        (r"\\(?:dots|dotsc|cdots|dotsb|hdots)(?![a-zA-Z])|\.\.\.+", r"\\ldots "),
        (r"\\(?:colon)(?![a-zA-Z])", ":"),
        (r"\\(?:prime)(?![a-zA-Z])", "'"),
        (r"\\(?:rightarrow|longrightarrow|mapsto)(?![a-zA-Z])", r"\\to "),
        (r"\^\{?\s*\\circ\s*\}?|\\degree(?![a-zA-Z])|\\circ(?![a-zA-Z])", r"^\\circ "),
        (r"\^\s*\{\s*('+)\s*\}", r"\1"),
        (r"\\(?:hat|vec)\s*\{?\s*(?:\\([ij])math|([ijk])(?![a-zA-Z]))\s*\}?", r"\1\2"),
        (r"\^\s*\{?\s*(\\(?:text|mathrm|rm)\s*\{\s*(?:st|nd|rd|th)\s*\})\s*\}?", r"\1"),
        (r"\\lor(?![a-zA-Z])|\\vee(?![a-zA-Z])", " or "),
        (r"\\land(?![a-zA-Z])|\\wedge(?![a-zA-Z])", " and "),
        (r"\\(?:operatorname\*?|mathop)\s*\{([a-zA-Z]+)\}", r"\\\1 "),
        (
            r"\\(?:mathrm|text|rm)\s*\{\s*(ln|log|sin|cos|tan|cot|sec|csc|exp|gcd|lcm|max|min)\s*\}(?=\s*[^\s=])",
            r"\\\1 ",
        ),
        (
            r"\\(?:overset|underset)\s*\{[^{}]*\}|\\(?:underline|overbrace|underbrace|ensuremath)(?=\{)",
            "",
        ),
        (r"\\(?:[bx]?cancel|sout)(?=\{)", r"\\text{cancelled}"),
        (r"\*\*", "^"),
        (r"\\mathbb\s*([A-Z])(?![a-zA-Z])", r"\\mathbb{\1}"),
    )
]
_STYLED = re.compile(
    r"\\(?P<name>text(?:bf|rm|it|sf|tt|normal)?|mbox|math(?:rm|bf|it|sf|tt|normal|ord|bin)|emph|bm|boldsymbol|fbox|boxed)"
    r"(?![a-zA-Z])\s*(?:(?P<brace>\{)|(?P<one>[a-zA-Z0-9]))"
)
_GROUP = re.compile(
    r"(?<![\w.])(?:[1-9][0-9]{0,2})(?:(?:\{,\}|,?\\!,?(?:\\!)?|\\,|\\ |\\;|\\:|~|'|_)[0-9]{3})+(?![0-9])"
)
_SPACED = re.compile(r"(?<![\w.,\\])(?<![\w)}] )[1-9][0-9]{0,2}(?: [0-9]{3})+(?![0-9/]| [0-9])")
_COMMAS = re.compile(r"(?<![\w.,])[1-9][0-9]{0,2}(?:,[0-9]{3})+(?![0-9]|,[0-9])")
_NAMES = re.compile(
    r"(?<![\\a-zA-Z])(pi|infty|sqrt|sin|cos|tan|cot|sec|csc|arcsin|arccos|arctan|log|ln|exp)(?![a-zA-Z])"
)


_MARKDOWN = re.compile(r"^(\*\*|\*|__|_|`)(?=\S)([^*_`]+)(?<=\S)\1$")
_GOES_ON = re.compile(r"(?<![0-9.])([0-9]*)\.([0-9]*?)((?=0*[1-9])[0-9]{1,9}?)\3+\s*\\ldots(?!\s*[0-9])")


def tidy(text: str) -> str:
    r"""The answer in one spelling: decorations, sizes and delimiters gone, symbols as LaTeX, digits joined.

    >>> tidy("$\\dfrac{1}{2}$"), tidy("12\\,345"), tidy("\\textcolor{red}{4}."), tidy("x ≥ 2")
    ('\\frac{1}{2}', '12345', '4', 'x \\ge 2')
    """
    text = _MARKDOWN.sub(r"\2", text.strip()).translate(_SYMBOLS)
    text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ]+", lambda m: "^{" + m.group().translate(_RAISED) + "}", text)
    text = re.sub("[₀₁₂₃₄₅₆₇₈₉]+", lambda m: "_{" + m.group().translate(_LOWERED) + "}", text)
    text = _without_delimiters(text)
    text = re.sub(r"\\\{|\\lbrace(?![a-zA-Z])", "⦃", text)
    text = re.sub(r"\\\}|\\rbrace(?![a-zA-Z])", "⦄", text)
    text = _GROUP.sub(lambda m: re.sub(r"[^0-9]", "", m.group()), text)
    text = re.sub(r"\{,\}(?=[0-9])", ".", text)  # what is no group is a decimal comma
    text = re.sub(r"(?<!\\)\\[!/]", "", text)
    text = re.sub(r"(?<!\\)\\[,;:>\s]|~", " ", text)
    for pattern, replacement in _SUBSTITUTIONS:
        text = pattern.sub(replacement, text)
    text = _unstyled(text)
    text = _SPACED.sub(lambda m: m.group().replace(" ", ""), text)
    text = _join_commas(text)
    if "⟦" in text:
        parts = re.split(r"(⟦[^⟦⟧]*⟧)", text)
        text = "".join(part if part.startswith("⟦") else _NAMES.sub(r"\\\1 ", part) for part in parts)
    elif not re.search(r"[a-zA-Z]{3,} [a-zA-Z]{3,}", text):
        text = _NAMES.sub(r"\\\1 ", text)
    text = re.sub(r"\\sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}", text)
    text = re.sub(r"\\sqrt\s+([0-9]+)", r"\\sqrt{\1}", text)  # √10 and \sqrt 10 mean the number
    text = _GOES_ON.sub(r"\1.\2\\overline{\3}", text)  # 0.333...
    text = re.sub(r"[ \t]+", " ", text).strip()
    while True:
        shorter = re.sub(r"(?:\\\\|\\\s*$|[,;.\s])+$", "", text)
        shorter = _without_outer_braces(shorter)
        if shorter == text:
            return text
        text = shorter


def _without_delimiters(text: str) -> str:
    r"""Without $...$, $$...$$, \(...\) and \[...\]. A $ before a number that no other $ closes is money."""
    text = re.sub(r"\\[\[\]()]", " ", text) if not re.search(r"\\\\[\[(]", text) else text
    text = text.replace("\\$", "＄")
    if len(re.findall(r"\$", text)) % 2:
        text = re.sub(r"\$(?=\s*[0-9.])", "＄", text, count=1)
    return re.sub(r"\$+", " ", text).replace("＄", "\\$")


def _unstyled(text: str) -> str:
    r"""A styled letter, number or formula as it stands; styled words between marks: \text{ cm} is ⟦ cm⟧."""
    written, place = [], 0
    while match := _STYLED.search(text, place):
        written.append(text[place : match.start()])
        content = match["one"] or _balanced(text, match.end())
        if content is None:
            break
        place = match.end() + (0 if match["one"] else len(content) + 1)
        content = _unstyled(content)
        written.append(content if _is_formula(match["name"], content) else f"⟦{re.sub('[⟦⟧]', '', content)}⟧")
    return "".join(written) + text[place:]


def _is_formula(style: str, content: str) -> bool:
    if style in ("fbox", "boxed") or re.fullmatch(r"[^a-zA-Z\u0080-\uffff]*|[a-zA-Z]", content):
        return True
    if re.fullmatch(r"\s*\(?[A-Z]\)?[.:]?\s*", content):  # an option
        return True
    bare = re.sub(r"\\[a-zA-Z]+", "", content)
    return bool(re.search(r"[\\^_=<>]", content)) and not re.search(r"[a-zA-Z]{3}", bare)


def _join_commas(text: str) -> str:
    """Join 1,234 outside of brackets, where a comma separates."""
    if "," not in text:
        return text
    depths, depth = [], 0
    for character in text:
        depth += (character in "([⦃") - (character in ")]⦄")
        depths.append(depth)
    return _COMMAS.sub(lambda m: m.group() if depths[m.start()] > 0 else m.group().replace(",", ""), text)


def _without_outer_braces(text: str) -> str:
    """{42} is 42; {1,2,3} is a set."""
    if not (text.startswith("{") and text.endswith("}")) or _balanced(text, 1) != text[1:-1]:
        return text
    return f"⦃{text[1:-1]}⦄" if len(split(text[1:-1], ",")) > 1 else text[1:-1].strip()


def split(text: str, separator: str) -> list[str]:
    """The parts between separators (a regular expression) that stand outside of all brackets."""
    parts, depth, start = [], 0, 0
    for token in re.compile(
        rf"(?P<open>[(\[{{⦃⟦]|\\begin)|(?P<close>[)\]}}⦄⟧]|\\end)|(?:{separator})"
    ).finditer(text):
        if token["open"]:
            depth += 1
        elif token["close"]:
            depth -= 1
        elif depth <= 0:
            parts.append(text[start : token.start()].strip())
            start = token.end()
    return [*parts, text[start:].strip()]


# --- exact numbers ------------------------------------------------------------------------------------------


class NotExact(Exception):
    """The text is no arithmetic of whole numbers and decimals."""


class Huge(NotExact):
    """The arithmetic comes to a number with too many digits."""


class Undefined(Exception):
    """The arithmetic has no value: 1/0, 0^0."""


_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]{1,4}(?![0-9.]))?)"
    r"|(?P<command>\\[a-zA-Z]+)|(?P<sign>[-+*/^!(){}\[\]|]))"
)
_DECIMAL = r"(?<![0-9.])([0-9]*)\.([0-9]*)"
_REPEATING = [
    re.compile(_DECIMAL + r"\\(?:overline|bar)\s*\{([0-9]+)\}(?![0-9])"),
    re.compile(_DECIMAL + r"\\(?:overline|bar)\s*([0-9])(?![0-9])"),
    re.compile(_DECIMAL + r"\\dot\s*\{?([0-9]\}?[0-9]*\\dot\s*\{?[0-9])\}?(?![0-9])"),
    re.compile(_DECIMAL + r"\\dot\s*\{?([0-9])\}?(?![0-9\\])"),
    re.compile(_DECIMAL + r"\(([0-9]+)\)(?![0-9])"),
]
_MAX_BITS = 120_000


def exact(text: str) -> Fraction:
    r"""The number that arithmetic of whole numbers and decimals comes to. A decimal is exactly what it says.

    `text` is what tidy() returns. Raises NotExact where it is anything else, Undefined where it has no value.

    >>> exact("\\frac12 + 0.25"), exact("3.2\\times 10^5"), exact("0.\\overline{3}"), exact("2 1/3")
    (Fraction(3, 4), Fraction(320000, 1), Fraction(1, 3), Fraction(7, 3))
    """
    try:
        return _Arithmetic(plain_arithmetic(text)).result()
    except RecursionError:
        raise NotExact from None


def plain_arithmetic(text: str) -> str:
    """Repeating decimals and mixed numbers as fractions, so that no other reader takes them otherwise."""
    for pattern in _REPEATING:
        text = pattern.sub(_repeating, text)
    text = re.sub(r"([0-9.])\s+[x]\s+(10\s*\^)", r"\1\\times \2", text)
    text = re.sub(
        r"(?<![0-9.a-zA-Z^_}/{\\])([0-9]+)\s*\\frac\s*(?:\{([0-9]+)\}|([0-9]))\s*(?:\{([0-9]+)\}|([0-9]))",
        _mixed,
        text,
    )
    text = re.sub(r"(?<![0-9.a-zA-Z^_}/{\\])([0-9]+)\s+([0-9]+)()\s*/\s*([0-9]+)()(?![0-9.])", _mixed, text)
    return text


def _repeating(match: re.Match) -> str:
    whole, once, again = match[1] or "0", match[2], re.sub(r"[^0-9]", "", match[3])
    shift = 10 ** len(again)
    value = Fraction(int(whole + once + again) - int(whole + once), (shift - 1) * 10 ** len(once))
    return f"\\frac{{{value.numerator}}}{{{value.denominator}}}"


def _mixed(match: re.Match) -> str:
    """2 1/3 as a fraction; a product where the fraction is none of a mixed number."""
    whole, top, bottom = int(match[1]), int(match[2] or match[3]), int(match[4] or match[5])
    if not 0 < top < bottom or not whole:
        return match.group()
    return f"\\frac{{{whole * bottom + top}}}{{{bottom}}}"


class _Arithmetic:
    """A reader of sums, products, powers, fractions, roots, factorials and rounding brackets."""

    def __init__(self, text: str):
        self.tokens, place = [], 0
        text = text.rstrip()
        while place < len(text):
            token = _TOKEN.match(text, place)
            if not token:
                raise NotExact
            kind = token.lastgroup
            self.tokens.append((kind, token[kind]))
            place = token.end()
        self.place = self.depth = 0

    def peek(self) -> str:
        return self.tokens[self.place][1] if self.place < len(self.tokens) else ""

    def take(self, expected: str = "") -> str:
        token = self.peek()
        if not token or (expected and token != expected):
            raise NotExact
        self.place += 1
        return token

    def result(self) -> Fraction:
        value = self.sum()
        if self.peek():
            raise NotExact
        return value

    def sum(self) -> Fraction:
        self.depth += 1
        if self.depth > 40:
            raise NotExact
        value = self.product()
        while self.peek() in ("+", "-"):
            value = value + self.product() if self.take() == "+" else value - self.product()
        self.depth -= 1
        return _small(value)

    def product(self) -> Fraction:
        value = self.signed()
        while True:
            sign = self.peek()
            if sign in ("*", "\\cdot", "\\times"):
                self.take()
                value = _small(value * self.signed())
            elif sign in ("/", "\\div"):
                self.take()
                value = _divide(value, self.signed())
            elif sign in ("(", "\\frac", "\\sqrt", "\\binom"):
                value = _small(value * self.power())
            else:
                return value

    def signed(self) -> Fraction:
        sign = 1
        for _ in range(2):  # 2*-3, but not ---3
            if self.peek() in ("+", "-"):
                sign *= -1 if self.take() == "-" else 1
                if self.peek() in ("+", "-"):
                    raise NotExact
        return sign * self.power()

    def power(self) -> Fraction:
        value = self.atom()
        while self.peek() == "!":
            self.take()
            if value.denominator != 1 or value < 0:
                raise NotExact
            if value > 5000:
                raise Huge
            value = Fraction(math.factorial(value.numerator))
        if self.peek() == "^":
            self.take()
            exponent = self.signed()
            return _power(value, exponent)
        return value

    def atom(self) -> Fraction:
        kind, token = self.tokens[self.place] if self.place < len(self.tokens) else ("", "")
        if kind == "number":
            self.take()
            if len(token) > 2500:
                raise NotExact
            return _small(Fraction(token if not token.endswith(".") else token[:-1]))
        if token in ("(", "{", "["):
            return self.bracketed({"(": ")", "{": "}", "[": "]"}[token])
        if token == "\\lfloor":
            return Fraction(math.floor(self.bracketed("\\rfloor")))
        if token == "\\lceil":
            return Fraction(math.ceil(self.bracketed("\\rceil")))
        if token == "|":
            return abs(self.bracketed("|"))
        if token == "\\frac":
            self.take()
            top = self.argument()
            return _divide(top, self.argument())
        if token == "\\binom":
            self.take()
            top, bottom = self.argument(), self.argument()
            return _choose(top, bottom)
        if token == "\\sqrt":
            self.take()
            degree = self.bracketed("]") if self.peek() == "[" else Fraction(2)
            return _root(self.argument(), degree)
        raise NotExact

    def bracketed(self, close: str) -> Fraction:
        self.take()
        value = self.sum()
        if close == "}" and self.peek() == "\\choose":
            self.take()
            value = _choose(value, self.sum())
        self.take(close)
        return value

    def argument(self) -> Fraction:
        r"""One argument of a command: braces, or a single digit, of which \frac12 has two."""
        kind, token = self.tokens[self.place] if self.place < len(self.tokens) else ("", "")
        if kind == "number" and token.isdigit():
            if len(token) == 1:
                self.take()
            else:
                self.tokens[self.place] = ("number", token[1:])
            return Fraction(int(token[0]))
        if token == "{":
            return self.bracketed("}")
        if token in ("\\frac", "\\sqrt", "\\binom"):
            return self.atom()
        raise NotExact


def _small(value: Fraction) -> Fraction:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > _MAX_BITS:
        raise Huge
    return value


def _divide(top: Fraction, bottom: Fraction) -> Fraction:
    if bottom == 0:
        raise Undefined
    return _small(top / bottom)


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if base == 0 and exponent <= 0:
        raise Undefined
    if exponent.denominator != 1:
        if base < 0 or exponent.denominator > 100:
            raise NotExact
        base, exponent = _root(base, Fraction(exponent.denominator)), Fraction(exponent.numerator)
    bits = math.log2(max(abs(base.numerator), base.denominator))
    if abs(exponent) > _MAX_BITS or abs(exponent) * bits > _MAX_BITS:
        if base in (0, 1):
            return base
        raise Huge
    return base**exponent.numerator


_EXPONENT = re.compile(r"(?P<digits>[0-9)\]}]?)\s*\^\s*(?:\{|(?P<bare>[0-9]+))")
_LARGEST_EXPONENT = 10**6  # of a letter


def is_huge(text: str) -> bool:
    r"""Would it take too long to evaluate a formula, for the size of a power or a factorial in it?

    >>> is_huge("9^{9^{9}}"), is_huge("\\sin(10^{10^{10}})"), is_huge("x^{100}"), is_huge("\\sqrt{2}^{100}")
    (True, True, False, False)
    >>> is_huge("e^{e^{e^{e^{e}}}}"), is_huge("e^{e^{e}}")
    (True, False)
    """
    if any(int(digits) > 5000 for digits in re.findall(r"([0-9]{4,})\s*!", text)):
        return True
    try:
        exact(text)
    except Huge:
        return True
    except (NotExact, Undefined):
        pass
    for match in _EXPONENT.finditer(text):
        exponent = match["bare"] or _balanced(text, match.end())
        exponent = re.sub(r"(?<![a-zA-Z\\])e(?![a-zA-Z])|\\pi(?![a-zA-Z])", "(3)", exponent or "")
        try:
            size = abs(exact(exponent))
        except Huge:
            return True
        except (NotExact, Undefined):
            continue
        if size > (_MAX_BITS if match["digits"] else _LARGEST_EXPONENT):
            return True
    return False


def _root(value: Fraction, degree: Fraction) -> Fraction:
    """The root where it is a fraction. Raises NotExact where it is not."""
    if degree.denominator != 1 or not 1 <= degree <= 100:
        raise NotExact
    n, sign = degree.numerator, 1
    if value < 0:
        if n % 2 == 0:
            raise NotExact
        sign = -1
    top, bottom = (_whole_root(abs(part), n) for part in (value.numerator, value.denominator))
    return Fraction(sign * top, bottom)


def _whole_root(value: int, n: int) -> int:
    low, high = 0, 1 << (value.bit_length() // n + 1)
    while low < high:
        middle = (low + high) // 2
        if middle**n < value:
            low = middle + 1
        else:
            high = middle
    if low**n != value:
        raise NotExact
    return low


def _choose(top: Fraction, bottom: Fraction) -> Fraction:
    if top.denominator != 1 or bottom.denominator != 1 or not 0 <= bottom <= top:
        raise NotExact
    if top > 2000:
        raise Huge if min(bottom, top - bottom) > 20_000 else NotExact
    return Fraction(math.comb(top.numerator, bottom.numerator))


# --- right answers as files have them -----------------------------------------------------------------------

_NO_ANSWER = re.compile(
    r"proofs?|q\.?e\.?d\.?|n/?a|none given|null|nan|tbd|todo|unknown|not available|no answer|see\b.*|as above"
    r"|omitted|answers? (?:may )?var(?:y|ies)\b.*|\[(?:proof|asy|image|figure)\].*|\\text\{(?:proof|n/?a)\}",
    re.I | re.S,
)
_ASKS_FOR_MORE = re.compile(
    r"\b(?:is|are|has|have|had|was|were|makes?|gets?|got|costs?|needs?|takes?|pays?|equals|can|will|would|because"
    r"|therefore|since|then|which|that)\b",
    re.I,
)


def bare_answer(text: str) -> str:
    r"""The right answer in a text as files have them. Raises ValueError with a reason for what is no answer.

    Read are "#### 72" at the end of a worked solution, a box, $...$, "Answer: 7", a sentence with one number
    and labelled parts. Refused are words that stand for no answer ("proof", "N/A"), prose, and broken LaTeX.

    >>> bare_answer("5*7=35\\n#### 35"), bare_answer("$x=2$, so \\boxed{5}."), bare_answer("It has 42 beds.")
    ('35', '5', '42')
    """
    text = text.strip()
    if "####" in text:
        text = text.rpartition("####")[2].strip()
    if re.search(r"\\(?:boxed|fbox)", text):
        boxed = last_boxed(text)
        if not boxed:
            raise ValueError("its last box is empty or does not close")
        text = boxed
    text = re.sub(r"^(?:the )?(?:final )?answer\s*(?:is|:)\s*:?\s*", "", text, flags=re.I)
    text = re.sub(r"^there (?:are|is)\s+", "", text, flags=re.I).strip()
    text = re.sub(r"(?<!\.)\.$", "", text).strip()
    for opening, closing in (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]")):
        inside = text[len(opening) : -len(closing)]
        if (
            len(text) > 2 * len(opening)
            and text.startswith(opening)
            and text.endswith(closing)
            and opening not in inside
        ):
            text = inside.strip()
    if not text or not re.search(r"\w|\\[a-zA-Z]|[^\x00-\x7f]", text):
        raise ValueError("holds no answer")
    if _NO_ANSWER.fullmatch(text):
        raise ValueError("stands for no answer")
    if not braces_match(text):
        raise ValueError("has braces that do not match")
    if re.match(r"\(?a\)\s*\S.*\(?b\)\s*\S", text, re.S):
        text = ", ".join(
            part.strip(" ,;.\n") for part in re.split(r"\(?(?<![a-zA-Z])[a-h]\)", text) if part.strip()
        )
    return _from_prose(text)


def _from_prose(text: str) -> str:
    """The number of a sentence that has one. Raises ValueError for a sentence that is no answer."""
    words = re.findall(r"(?<![\\a-zA-Z])[a-zA-Z]{2,}", re.sub(r"\\(?:begin|end)\{[a-z]*\}", "", text))
    if len(words) < 3 or not (_ASKS_FOR_MORE.search(text) or len(words) > 6):
        return text
    numbers = re.findall(r"(?<![\w.])-?(?:\\?\$)?[0-9][0-9,]*(?:\.[0-9]+)?(?:/[0-9]+)?(?![\w/])", text)
    if len(numbers) == 1 and not re.search(r"\\[a-zA-Z]|[=<>^_]", text):
        return re.sub(r"[\\$]", "", numbers[0]).rstrip(",")
    if numbers or len(words) > 12:
        raise ValueError("is a sentence, not an answer")
    return text


def braces_match(text: str) -> bool:
    """Does every brace of a formula have its partner?"""
    depth = 0
    for brace in re.findall(r"(?<!\\)[{}]", text):
        depth += 1 if brace == "{" else -1
        if depth < 0:
            return False
    return depth == 0
