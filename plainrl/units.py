r"""Numbers with units: what stands round the number, and when two units are the same or can be converted."""

import re
from fractions import Fraction

CONNECTED = re.compile(r"⟦\s*,?\s*(and|or)\s*⟧")
_GREEK = re.compile(
    r"\\(?:alpha|beta|gamma|delta|epsilon|theta|lambda|mu|rho|sigma|tau|phi|omega|Delta|Omega)(?![a-zA-Z])"
)


def without_marks(text: str) -> str:
    """Without the marks round words."""
    return re.sub(r"\s+", " ", text.replace("⟦", " ").replace("⟧", " ")).strip()


def has_letters(formula: str) -> bool:
    """Has the formula variables? e is a number."""
    bare = re.sub(r"\\[a-zA-Z]+", " ", _GREEK.sub("x", formula))
    return bool(re.search(r"[a-df-zA-Z]", bare))


def words_of(text: str) -> str:
    """Words to compare: case, punctuation and spacing do not count."""
    plain = re.sub(r"[.,;:!?\"'()\s]+", " ", without_marks(text)).strip().casefold()
    return plain.removeprefix("the ")


_SCALES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_SCALES |= {name + "s": size for name, size in _SCALES.items()} | {"tens": 10, "score": 20, "gross": 144}
_SCALES |= {"dozen": 12, "万": 10**4, "亿": 10**8}
_ORDINALS = "fourth fifth sixth seventh eighth ninth tenth eleventh twelfth".split()
_PARTS = {"half": 2, "halves": 2, "third": 3} | {name: i for i, name in enumerate(_ORDINALS, 4)}
_PARTS |= {"hundredth": 10**2, "thousandth": 10**3, "millionth": 10**6}
_SCALES |= {name + "s" * plural: Fraction(1, n) for name, n in _PARTS.items() for plural in (0, 1)}
_TABLE = """
length: m=1 meter=1 metre=1 cm=1/100 centimeter=1/100 centimetre=1/100 mm=1/1000 millimeter=1/1000
length: dm=1/10 km=1000 kilometer=1000 kilometre=1000 nm=1/1000000000 in=127/5000 inch=127/5000
length: ft=381/1250 foot=381/1250 feet=381/1250 yd=1143/1250 yard=1143/1250 mi=201168/125 mile=201168/125
length: 毫米=1/1000 厘米=1/100 分米=1/10 米=1 千米=1000 公里=1000
volume: l=1/1000 liter=1/1000 litre=1/1000 ml=1/1000000 milliliter=1/1000000 millilitre=1/1000000 升=1/1000
time: ms=1/1000 s=1 sec=1 second=1 min=60 minute=60 h=3600 hr=3600 hour=3600 day=86400 week=604800
time: 秒=1 分钟=60 小时=3600 天=86400
month: month=1 year=12 yr=12 decade=120 century=1200
mass: mg=1/1000 g=1 gram=1 kg=1000 kilogram=1000 tonne=1000000 克=1 千克=1000 吨=1000000
mass: lb=45359237/100000 pound=45359237/100000 oz=45359237/1600000 ounce=45359237/1600000
dollar: dollar=1 usd=1 buck=1 cent=1/100 ¢=1/100
euro: euro=1 eur=1 €=1
gbp: gbp=1 £=1
yen: yen=1 ¥=1
yuan: yuan=1 元=1
rupee: rupee=1 ₹=1
angle: degree=1 deg=1 arcminute=1/60 度=1
radian: radian=1 rad=1
celsius: celsius=1
fahrenheit: fahrenheit=1
kelvin: kelvin=1
force: n=1 newton=1
energy: j=1 joule=1 kj=1000
power: w=1 watt=1 kw=1000
voltage: v=1 volt=1
frequency: hz=1 hertz=1 khz=1000 mhz=1000000
mole: mol=1 mole=1
byte: byte=1 bit=1/8
"""
_UNITS = {  # name: (dimension, size in the unit that the dimension is counted in)
    entry.split("=")[0]: (line.split(":")[0], Fraction(entry.split("=")[1]))
    for line in _TABLE.strip().splitlines()
    for entry in line.split(":")[1].split()
}
_PLAIN_UNITS = re.compile(r"(?:(?:square|cubic|sq) )?units?(?:\^[23])?", re.I)  # they say nothing
_NO_UNIT = set(
    "or and not more less than least most to but mod if when where otherwise between choose over squared "
    "cubed remainder factorial with without from away before after plus minus is are was has have had only "
    "either neither except however because am pm above below west east maybe approximately about each all "
    "none never no doubled quarters percentage reversed wrong right instead cancelled short fewer invalid "
    "incorrect false fail fails failed extraneous rejected discarded excluded impossible inadmissible".split()
)
_LETTER = r"[A-Za-z¢€£¥₹\u4e00-\u9fff]"
_WORD = _LETTER + "+"
_TAIL = re.compile(
    rf"(?P<value>.*?(?:[0-9.)}}!]|\\pi|\\infty|(?=⟦)))\s*(?P<unit>(?:⟦[^⟦⟧]*⟧|{_LETTER})"
    rf"(?:⟦[^⟦⟧]*⟧|{_LETTER}|[\s/.-]|\^\s*\{{?\s*-?[0-9]\s*\}}?|\\cdot)*)",
    re.S,
)


def _known_unit(word: str) -> tuple[str, Fraction] | None:
    lower = word.lower() if len(word) > 1 or word in "LNJVW" else word
    if len(word) == 1 and word.isascii() and word not in "mghsLNJVWl€£¥₹":
        return None
    for name in (lower, lower.removesuffix("s"), lower.removesuffix("es")):
        if name in _UNITS:
            return _UNITS[name]
    return None


_OPPOSITES = [  # words behind a number that make it another answer; the words of one entry mean the same
    line.split(" / ")
    for line in """
profit gain surplus / loss deficit
north northward / south southward / east eastward / west westward
increase rise growth increased / decrease drop fall reduction decline decreased
left leftward / right rightward
up upward upwards / down downward downwards
early ahead / late behind
clockwise / counterclockwise anticlockwise
boys males men boy male man / girls females women girl female woman
heads / tails
wins win / losses
deposit / withdrawal
adults adult / children child
forward forwards / backward backwards
credit / debit
""".strip().splitlines()
]
_SENSES = {
    word: (i, j)
    for i, line in enumerate(_OPPOSITES)
    for j, words in enumerate(line)
    for word in words.split()
}
_ANY_SENSE = rf"(?:{'|'.join(sorted(_SENSES, key=len, reverse=True))})"
_WITH_SENSE = re.compile(
    rf"(?P<number>.*[0-9].*?)(?:(?<![a-zA-Z])|(?=⟦))⟦?\s*(?:(?:to the|to|due|in) )?"
    rf"\b(?P<words>{_ANY_SENSE}(?:(?: of| and| to)? {_ANY_SENSE})*)\s*⟧?",
    re.S | re.I,
)
_SENSE_FIRST = re.compile(
    rf"⟦?\s*(?:an? )?(?P<word>{_ANY_SENSE}) (?:of|by)\s*⟧?\s*(?P<number>.*[0-9].*)", re.S | re.I
)


def turned_round(text: str) -> str:
    """ "an increase of 20%" as "20% increase"."""
    match = _SENSE_FIRST.fullmatch(text)
    return f"{match['number']} ⟦{match['word']}⟧" if match else text


def are_opposite(one: object, other: object) -> bool:
    """Do the notes of two quantities say the opposite: profit and loss, north and south?"""
    if not (isinstance(one, tuple) and isinstance(other, tuple)):
        return False
    return {pair for pair, _ in one} == {pair for pair, _ in other} and one != other


def read_quantity(text: str, depth: int) -> tuple | None:
    """A number with a unit: ("quantity", number, unit, note). A unit: "%", "noun", (dimensions, size), "".

    The note is "compound" for 2 h 30 min, which is no number where the unit is left out, or the places of
    words like "profit" among those that have an opposite, or "".
    """
    match = _WITH_SENSE.fullmatch(text.strip())
    if not match:
        return _read_plain_quantity(text, depth)
    number = match["number"].strip()
    number += "⟧" if number.count("⟦") > number.count("⟧") else ""
    node = _read_plain_quantity(number, depth) or ("quantity", number, "", "")
    if node[0] not in ("quantity", "expr") or has_letters(node[1]) or "⟦" in node[1]:
        return _read_plain_quantity(text, depth)
    senses = tuple(_SENSES[word] for word in match["words"].lower().split() if word in _SENSES)
    return ("quantity", node[1], node[2] if node[0] == "quantity" and node[2] else "noun", senses)


_UNIT_FRACTION = re.compile(
    rf"\\frac\s*\{{\s*(⟦?\s*{_WORD}\s*⟧?)\s*\}}\s*\{{\s*(⟦?\s*{_WORD}\s*⟧?(?:\s*\^\s*\{{?[23]\}}?)?)\s*\}}$"
)


def _fraction_of_units(match: re.Match) -> str:
    r"""\frac{km}{h} as km/h. Where both are no units it stays."""
    words = [re.findall(_WORD, part)[0] for part in match.groups()]
    if not all(_known_unit(word) for word in words):
        return match.group()
    return f" ⟦{without_marks(match[1])}/{without_marks(match[2])}⟧"


def _read_plain_quantity(text: str, depth: int) -> tuple | None:
    text = _UNIT_FRACTION.sub(_fraction_of_units, text)
    text = re.sub(r"\bdegrees? (?=celsius|fahrenheit)", "", text, flags=re.I)
    if compound := compound_of(text):
        return ("quantity", compound[0], compound[1], "compound")
    text = re.sub(r"^([^$€£]*[0-9])\s*(\\\$|[€£])$", r"\2\1", text.strip())
    if match := re.fullmatch(
        r"(-?)\s*⟦?\s*(?:US|A|C)?(\\\$|[€£¥₹]|(?:USD|EUR|GBP|Rs\.?)(?=[\s0-9⟧]))\s*⟧?\s*(.+)", text, re.S
    ):
        sign = {"\\$": "dollar", "USD": "dollar", "EUR": "euro", "GBP": "gbp"}.get(match[2], match[2])
        dimension, size = _UNITS["rupee" if sign.startswith("Rs") else sign]
        rest = match[1] + re.sub(r"\s*⟦?\s*(?:dollars?|USD|each|(?:per|an?) [a-z]+)\s*⟧?$", "", match[3])
        inner = read_quantity(rest, depth)
        if inner and inner[0] == "quantity":
            if inner[2] not in ("", "noun"):
                return None if inner[2] == "%" else ("text", words_of(text))
            rest = inner[1]
        return ("quantity", rest, (((dimension, 1),), size), "")
    if match := re.fullmatch(
        r"(.+?)\s*(?:\\?%|⟦?\s*(?:percent|per cent|percentage|pct)\s*⟧?)", text, re.S | re.I
    ):
        return ("quantity", match[1].strip(), "%", "")
    if match := re.fullmatch(r"([^'a-zA-Z]+?)\s*\^\\circ\s*(?:⟦?\s*([CF])\s*⟧?)?", text):
        dimension = {"C": "celsius", "F": "fahrenheit"}.get(match[2], "angle")
        return ("quantity", match[1].strip(), (((dimension, 1),), Fraction(1)), "")
    if (
        re.search(r"\\circ", text)
        and (match := re.fullmatch(r"(.+?)\s*\^\\circ", text))
        and not re.search(r"\\(?:sin|cos|tan|cot|sec|csc)(?![a-zA-Z])", text)
    ):
        return ("quantity", match[1].strip(), (((("angle"), 1),), Fraction(1)), "")
    match = _TAIL.fullmatch(text)
    if not match or not match["value"] or match["value"].rstrip()[-1:] in tuple("+-*/^_=("):
        return None
    value, tail, spaced = (
        match["value"].rstrip(),
        match["unit"],
        text[len(match["value"]) - 1 : len(match["value"])] == " ",
    )
    spaced = spaced or text[match.start("unit") - 1] == " "
    words = [
        (word, bool(mark))
        for mark, content, bare in re.findall(rf"(⟦)([^⟦⟧]*)⟧|({_WORD})", tail)
        for word in re.findall(_WORD, content or bare)
    ]
    lowered = [word.lower() for word, _ in words]
    if not words or set(lowered) & _NO_UNIT:
        return None
    for i, (word, marked) in enumerate(words):
        noun = len(word) > 2 and re.search("[aeiouyAEIOUY]", word) and set(word) - set("xyz")
        chinese = ord(word[0]) > 127
        if i and word in ("of", "in", "the", "a"):  # pieces of candy
            continue
        if not marked and not chinese:
            known = (_known_unit(word) or word in ("mph", "kph", "kmh")) and (len(word) > 1 or spaced or i)
            if not known and not (noun and (spaced or i) and "\\" not in value and not has_letters(value)):
                return None
            if len(word) == 1 and not i and word not in "mghsLNJVW":
                return None
    scale = 1
    while lowered and lowered[0] in _SCALES:
        scale *= _SCALES[lowered.pop(0)]
    if scale != 1:
        value = f"({value})\\times {scale}" if scale > 1 else f"\\frac{{{value}}}{{{1 / scale}}}"
        tail = re.sub(rf"^\W*(?:{'|'.join(_SCALES)})", "", without_marks(tail), flags=re.I).strip()
        if not lowered:
            return ("expr", value)
    return ("quantity", value, _unit(without_marks(tail)), "")


def _unit(text: str) -> tuple | str:
    """A unit as its dimensions and size: km/h is length 1, time -1 and 5/18. "noun" for another word."""
    text = text.strip(" .")
    if _PLAIN_UNITS.fullmatch(text):
        return ""
    text = re.sub(r"\bper\b", "/", text).replace("\\cdot", " ")
    dimensions, size, sign, power, last = {}, Fraction(1), 1, 1, None
    for token in re.findall(
        rf"\^\s*\{{?\s*-?[0-9]\s*\}}?|/|{_WORD}",
        re.sub(r"\b(mph|kmh|kph)\b", lambda m: {"mph": "mi/h"}.get(m[1], "km/h"), text),
    ):
        if token == "/":
            sign = -1
        elif token.startswith("^"):
            again = int(re.sub(r"[^0-9-]", "", token)) - 1
            if last is None or abs(again) > 9:
                return "noun"
            dimensions[last[0]] = dimensions.get(last[0], 0) + sign * again
            size *= last[1] ** (sign * again)
        elif token.lower() in ("square", "sq", "cubic", "cu", "平方", "立方"):
            power = 2 if token.lower() in ("square", "sq", "平方") else 3
        else:
            if chinese := re.fullmatch("(平方|立方)(.+)", token):
                power, token = (2 if chinese[1] == "平方" else 3), chinese[2]
            known = _known_unit(token)
            if not known:
                return "noun"
            last = known
            dimensions[known[0]] = dimensions.get(known[0], 0) + sign * power
            size *= known[1] ** (sign * power)
            power = 1
    if "volume" in dimensions:
        dimensions["length"] = dimensions.get("length", 0) + 3 * dimensions.pop("volume")
    dimensions = tuple(sorted((name, power) for name, power in dimensions.items() if power))
    return (dimensions, size) if dimensions else "noun"


_COMPOUND = re.compile(
    r"((?:[0-9]+(?:\.[0-9]+)?\s*(?:⟦\s*[a-zA-Z]+\.?\s*⟧|[a-zA-Z]+\.?|\^\\circ|''|')\s*(?:,|and\b|⟦\s*and\s*⟧)?\s*){2,4})"
)


def compound_of(text: str) -> tuple[str, tuple] | None:
    """2 h 30 min: the sum in the base unit. None where it is anything else."""
    text = re.sub(r"⟦\s*([a-zA-Z]+),? and\s*⟧", r"⟦\1⟧ and ", CONNECTED.sub(r" \1 ", text))
    if not _COMPOUND.fullmatch(text):
        return None
    total, dimension, last = Fraction(0), None, None
    for value, word in re.findall(r"([0-9]+(?:\.[0-9]+)?)\s*(?:⟦\s*)?([a-zA-Z]+|\^\\circ|''|')", text):
        small = {
            "'": ("angle", Fraction(1, 60)),
            "''": ("angle", Fraction(1, 3600)),
            "^\\circ": ("angle", Fraction(1)),
        }
        unit = small.get(word) or _known_unit(word)
        if not unit or (dimension and unit[0] != dimension) or (last and unit[1] >= last):
            return None
        dimension, last = unit[0], unit[1]
        total += Fraction(value) * unit[1]
    return f"\\frac{{{total.numerator}}}{{{total.denominator}}}", (((dimension, 1),), Fraction(1))
