r"""English in an answer: numbers in words, sentences round an answer, phrases that mean the same, and what is
said of its letters ("for any integer k").

Functions of text that `tidy` has written; ⟦ ⟧ stand round what was in \text{}.
"""

import re

from plainrl.units import without_marks, words_of

# --- numbers in words ---------------------------------------------------------------------------------------

_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_NUMBERS = {word: i for i, word in enumerate(_ONES)} | {word: 20 + 10 * i for i, word in enumerate(_TENS)}
_SCALES = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9}
_PARTS = {"half": 2, "halve": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6}
_PARTS |= {"seventh": 7, "eighth": 8, "ninth": 9, "tenth": 10}


def with_digits(words: str) -> str | None:
    r"""Words with the number that they begin with in digits. None where they begin with none.

    >>> with_digits("forty-two"), with_digits("negative five"), with_digits("two thirds"), with_digits("dog")
    ('42', '-5', '\\frac{2}{3}', None)
    """
    left = words.lower().replace("-", " ").split()
    sign = "-" if left and left[0] in ("negative", "minus") else ""
    left = left[1:] if sign else left
    if (
        left[:1] in (["half"], ["hundred"])
        or left[:1] in (["a"], ["an"])
        and left[1:]
        and left[1] in _SCALES | _PARTS
    ):
        left = ["one", *left[1:]] if left[0] in ("a", "an") else ["one", *left]
    if left == ["a", "dozen"]:
        return sign + "12"
    value, used = _leading_number(left)
    if not used:
        return None
    left = left[used:]
    number = str(value)
    if left and singular(left[0]) in _PARTS:
        number, left = f"\\frac{{{value}}}{{{_PARTS[singular(left[0])]}}}", left[1:]
    elif left[:3] == ["and", "a", "half"]:
        number, left = f"\\frac{{{2 * value + 1}}}{{2}}", left[3:]
    if left and (left[0] in ("of", "or", "and", "to", "point", "dozen") or left[0] in _NUMBERS | _SCALES):
        return None
    return " ".join([sign + number, *left])


def _leading_number(words: list[str]) -> tuple[int, int]:
    """The number that words begin with, and how many of them it takes. 0 words where they begin with none."""
    total = current = used = 0
    for i, word in enumerate(words):
        after = words[i + 1] if i + 1 < len(words) else ""
        if word in _NUMBERS:
            fits = current % 100 == 0 or (current % 10 == 0 and current % 100 >= 20 and _NUMBERS[word] < 10)
            if not fits or (i and words[i - 1] == "zero"):
                return 0, 0
            current += _NUMBERS[word]
        elif word == "hundred" and 0 < current < 10:
            current *= 100
        elif word in _SCALES and word != "hundred" and current:
            total, current = total + current * _SCALES[word], 0
        elif not (word == "and" and i and words[i - 1] in _SCALES and after in _NUMBERS):
            break
        used = i + 1
    return total + current, used


# --- sentences ----------------------------------------------------------------------------------------------

_GAP = r"[\s⟦⟧]+"
_OPENING = re.compile(
    (
        r"⟦?\s*(?:"
        r"(?:so|thus|hence|therefore|then|finally)\b,?"
        r"|(?:we|i|you) (?:get|have|find|obtain|conclude)\b(?: that\b)?"
        r"|(?:the|its|their|our|my)(?: [a-z]+'?){1,8}? (?:is|are|equals|was)\b(?: equal to\b)?"
        r"|(?:it|this|that|there|they|these) (?:is|are|equals)\b|all(?= [0-9])"
        r"|(?:only|exactly|precisely|just|a total of)\b"
        r"|all (?:real )?(?:numbers|values|reals|x|values of x)(?: that are)?"
        r"(?= (?:greater|less|at|more|between)\b)"
        r"|[a-z](?: is)?(?= (?:greater|less|at|more|between)\b)|all(?=[\s⟦⟧]+[a-z]\s*(?:\\[gln]e|[<>]))"
        r"|[a-z]{4,}(?: [a-z]+){0,3}[\s⟦⟧]*:(?![^:]*:)(?=[\s⟦⟧]*[-0-9\\$])"
        r")"
    ).replace(" ", _GAP)
    + r"\s*[:=]?[\s⟦]*⟧?\s*(?=[^\s⟧])",
    re.I,
)
_NAMED = re.compile(rf"([a-zA-Z]){_GAP}(?:is|equals)(?:{_GAP}equal{_GAP}to)?{_GAP}(?=[-0-9\\$.])")
_DENIAL = re.compile(
    r"\b(?:not|no|never|wrong|incorrect|false|except|but|opposite|reciprocal|(?:sum|product|negative) of"
    r"|rejected|extraneous|invalid|discarded|previous|previously|guess|negation)\b|n't"
    r"|^[\s⟦]*before\b",
    re.I,
)
_MADE_OF_THE_ANSWER = re.compile(  # what is said to be the number is another quantity
    (
        r"\b(?:twice|triple|squared|cubed|plus|minus|divided|numerator|denominator|(?:lower|upper) bound"
        r"|its (?:square|cube) is|(?:square|cube) root|inverse is|(?:answer|result) before"
        r"|(?:half|double)(?! (?:life|circle|plane|integral|angle))"
        r"|(?:square|cube|inverse|first|last) of (?:(?:the|my|our|this|that) )?(?:answer|result|it)s?"
        r"|other (?:root|answer|solution|value|zero)s?)\b"
    ).replace(" ", _GAP),
    re.I,
)
_CLOSING = re.compile(
    r"[\s⟦]+(?:only|altogether|in total|in all|total"
    r"|is the (?:(?:final|correct|right|only) )?(?:answer|result|solution|value|minimum|maximum))\s*⟧?$",
    re.I,
)


def without_sentence(text: str) -> str:
    r"""The answer in "Hence the area is 5" and "exactly 5". A sentence that denies something stays.

    >>> without_sentence("Hence the area is 5"), without_sentence("⟦It is negative ⟧5")
    ('5', '⟦negative ⟧5')
    >>> without_sentence("The wrong answer is 5"), without_sentence("Its double is 5")
    ('The wrong answer is 5', 'Its double is 5')
    """
    for _ in range(4):
        match = _OPENING.match(text)
        opening = match.group() if match else ""
        if not match or _DENIAL.search(opening) or _MADE_OF_THE_ANSWER.search(opening):
            break
        inside = opening.count("⟦") - opening.count("⟧") == 1 and "⟧" in text[match.end() :]
        text = ("⟦" if inside else "") + text[match.end() :]
    text = _NAMED.sub(r"\1=", text, count=1) if _NAMED.match(text) else text
    shorter = _CLOSING.sub("", text)
    return shorter + "⟧" if shorter.count("⟦") > shorter.count("⟧") else shorter


_REMARK = re.compile(r"(.+?)[\s,;⟦]*\(([^()]*)\)", re.S)
_REJECTED = re.compile(
    r"(?:[a-z]\s*=\s*)?(?P<value>[^\sa-zA-Z]+) (?:is |being )?(?:an? )?"
    r"(?:extraneous|rejected|discarded|invalid)(?: (?:root|solution|value))?"
    r"|(?:reject|discard)(?:ing|ed)? (?:[a-z]\s*=\s*)?(?P<other>[^\sa-zA-Z]+)"
)


def without_rejected(text: str) -> str:
    r"""The answer without a remark that another value is none.

    >>> without_rejected("x=5 (x=-1⟦ is extraneous⟧)"), without_rejected("5 (5⟦ is extraneous⟧)")
    ('x=5', '5 (5⟦ is extraneous⟧)')
    """
    match = _REMARK.fullmatch(text)
    rejected = match and _REJECTED.fullmatch(" ".join(without_marks(match[2]).split()))
    value = rejected and (rejected["value"] or rejected["other"])
    return match[1] if value and value not in match[1] else text


# --- phrases ------------------------------------------------------------------------------------------------

_ARTICLES = {"a", "an", "the", "all", "any", "every", "only"}
_GENERIC = {"number", "line", "one", "triangle", "function", "sequence", "series", "value"}
_NO_ADJECTIVES = {"no", "not", "real", "rational", "complex", "natural"}  # "no line" is not "no"
_LEADING = re.compile(
    r"(?:(?:it|they|this|that|there|these|he|she) (?:is|are|was|were) |it |is |are |on |in |at )+(?=\S)"
)


def singular(word: str) -> str:
    """dogs, boxes and cities in the singular. A name may lose its s, on both sides."""
    if len(word) < 4 or word.endswith(("ss", "us", "is")):
        return word
    if word.endswith("ies"):
        return word[:-3] + "y"
    if word.endswith(("xes", "ches", "shes", "sses")):
        return word[:-2]
    return word.removesuffix("s")


def plain_words(text: str) -> str:
    """Words to compare: articles, plurals, "all", "only" and what leads to an answer do not count.

    >>> plain_words("It is a circle."), plain_words("On Tuesdays"), plain_words("isn't even")
    ('circle', 'tuesday', 'not even')
    """
    text = re.sub(r"\bcan(?:'t|not)\b", "can not", text, flags=re.I)
    text = re.sub(r"(?:\bis)?n't\b", " not", text, flags=re.I)
    words = words_of(text).replace("-", " ")
    words = _LEADING.sub("", words, count=1)
    kept = words.split()
    kept = [
        word for i, word in enumerate(kept) if word not in _ARTICLES or word == "a" and i == len(kept) - 1
    ]
    kept = [singular(word) for word in kept]
    if len(kept) == 2 and kept[1] in _GENERIC and kept[0] not in _NO_ADJECTIVES:  # odd number
        kept = kept[:1]
    return " ".join(kept) or words


_MEANINGS = {
    plain_words(phrase): meaning
    for meaning, phrases in {
        "\\emptyset": "no solution|no solution exists|solution does not exist|has no solution|empty set"
        "|null set|equation has no solution|system has no solution|no such solution|none|none of them",
        "\\infty": "infinity|positive infinity|plus infinity",
        "-\\infty": "negative infinity|minus infinity",
        "dne": "dne|does not exist|do not exist|undefined|not defined|limit does not exist|no limit"
        "|no limit exists|limit dne|value does not exist|limit is undefined|expression is undefined"
        "|slope is undefined",
        "infinitely many": "infinitely many|infinite|infinitely many solutions|infinite number"
        "|infinite number of solutions|infinite solutions|has infinitely many solutions",
        "not enough": "cannot be determined|not enough information|insufficient information|can not determine"
        "|not enough data|impossible to determine|can not tell|not possible to determine",
    }.items()
    for phrase in phrases.split("|")
}
_SET_OF_NUMBERS = re.compile(
    r"(?:set of )?(?P<every>(?:all|any|every) )?(?:the )?(?P<sign>(?:non ?-?)?(?:positive|negative|zero) )?"
    r"(?P<kind>reals|integers|(?:real|rational|complex|natural|integer)(?: (?:numbers?|values?))?)"
    r"(?: of [a-z]$| [a-z]$)?"
)
_SETS = {
    "real": "R",
    "reals": "R",
    "rational": "Q",
    "complex": "C",
    "natural": "N",
    "integer": "Z",
    "integers": "Z",
}
_PARTS_OF_R = {
    "": "\\mathbb{R}",
    "positive": "(0,\\infty)",
    "negative": "(-\\infty,0)",
    "nonnegative": "[0,\\infty)",
    "nonpositive": "(-\\infty,0]",
    "nonzero": "\\mathbb{R}\\setminus ⦃0⦄",
}


def meaning(text: str) -> str | None:
    r"""One way to say "no solution", "all real numbers", "infinitely many" and their like. None for others.

    >>> meaning("There are no solutions."), meaning("all real numbers"), meaning("a circle")
    ('\\emptyset', '\\mathbb{R}', None)
    """
    known = _MEANINGS.get(plain_words(text))
    if known:
        return known
    match = _SET_OF_NUMBERS.fullmatch(words_of(text))
    if not match or not (match["every"] or match["kind"].endswith("s")):
        return None
    name = _SETS[match["kind"].split()[0]]
    sign = re.sub("[ -]", "", match["sign"] or "")
    if name == "R":
        return _PARTS_OF_R.get(sign)
    if name == "Z" and sign == "positive":
        return "\\mathbb{N}"
    return None if sign else f"\\mathbb{{{name}}}"


_VERDICT = re.compile(r"(yes|no|true|false)\b[\s,.;:-]+(.+)", re.I | re.S)
_CLAUSE = re.compile(r"(?:it|they|he|she|this|that|such|these|the|there|because|since|we|as)\b", re.I)


def verdict_of(text: str) -> str | None:
    """The verdict in "Yes, it is prime". None where it is taken back, or where there is none.

    >>> verdict_of("No, it is not"), verdict_of("Yes, but no"), verdict_of("Yes, it is not")
    ('no', None, None)
    """
    match = _VERDICT.fullmatch(without_marks(text))
    if not match or not _CLAUSE.match(match[2]):
        return None
    verdict, rest = match[1].lower(), match[2]
    if re.search(r"\b(?:yes|no|maybe|or|but|true|false|however|unless)\b", rest, re.I):
        return None
    denied = re.search(r"\bnot\b|n't|\bnever\b", rest, re.I)
    return None if denied and verdict in ("yes", "true") else verdict


# --- what is said of letters --------------------------------------------------------------------------------

_LETTER = r"(?:[a-zA-Z]|\\(?:alpha|beta|gamma|delta|theta|lambda|mu|phi))"
_LETTERS = rf"{_LETTER}(?:\s*(?:,|and)\s*{_LETTER})*"
_SAYING = re.compile(
    r"[\s,;(\[⟦]+(?:\b(?:for|where|with)\b[\s⟧]*"
    rf"|(?={_LETTERS}[\s⟦⟧]*(?:\\in(?![a-zA-Z])|is an? |are )))"
    rf"|(?<![a-zA-Z0-9])\(\s*(?={_LETTERS}\s*(?:\\[gln]e(?![a-zA-Z])|[<>])[^()]*\)$)"
)
_SET = (
    rf"({_LETTERS})\s*\\in\s*\\mathbb\s*\{{?([ZRNQC])\}}?\s*"
    r"(?:[\^_]\s*\{?\s*([+*-]|\\ast|>\s*0|\\ge\s*0|0)\s*\}?)?"
)
_SET_BUILDER = re.compile(r"⦃\s*([^⦃⦄:|]*[^⦃⦄:|\s\\][^⦃⦄:|]+?)\s*(?:\\mid(?![a-zA-Z])|\||:)([^⦃⦄:|]+)⦄")
_ADJECTIVES = set("positive negative nonnegative nonzero even odd natural rational complex".split())
_FILLING = set("all any every each some an the arbitrary fixed given is are be being of value number".split())
_KINDS = {"integer": "Z", "real": "R", "constant": "R", "natural": "N", "rational": "Q", "complex": "C"}


def split_sayings(text: str) -> tuple[str, dict[str, str], dict[str, str]]:
    r"""The answer, what is said of its letters behind it (a domain each), and the values that they are given.

    >>> split_sayings("2k, k\\in\\mathbb{Z}"), split_sayings("x+c, ⟦where ⟧c=5")
    (('2k', {'k': 'Z'}, {}), ('x+c', {}, {'c': '5'}))
    """
    if "\\begin" in text:  # conditions there are part of the answer
        return text, {}, {}
    if builder := _SET_BUILDER.fullmatch(text):  # {6k: k an integer}
        said = _said(without_marks(builder[2]))
        of_itself = said and builder[1].strip() in said[0] and _is_relation(said[0][builder[1].strip()])
        if said and said[0] and not of_itself and not re.search(r"\\in(?![a-zA-Z])|[<>=]", builder[1]):
            return builder[1], *said
    for match in _SAYING.finditer(text):
        answer, body = text[: match.start()], without_marks(text[match.end() :])
        body = body.strip(" ,.")
        if body.count(")") + body.count("]") > body.count("(") + body.count("["):  # (k an integer)
            body = body[:-1].strip()
        said = _said(body)
        if said is not None and answer.strip(" ⟦⟧(,;") and not _is_open(answer) and _concerns(answer, *said):
            answer = answer.strip(" ,;")
            return (answer + "⟧" if answer.count("⟦") > answer.count("⟧") else answer), *said
    return text, {}, {}


def _concerns(answer: str, domains: dict[str, str], values: dict[str, str]) -> bool:
    """Has the answer the letters that are restricted behind it? "5 for x>0" is not 5."""
    restricted = [letter for letter, domain in domains.items() if _is_relation(domain)] + list(values)
    return all(letter in (letters_of(answer) if len(letter) == 1 else answer) for letter in restricted)


def _is_relation(domain: str) -> bool:
    return bool(re.search(r"[<>=\\]", domain))


def _is_open(text: str) -> bool:
    """Does a bracket of a text not close?"""
    return len(re.findall(r"[(\[⦃{]", text)) > len(re.findall(r"[)\]⦄}]", text))


def letters_of(text: str) -> set[str]:
    """The single letters of a formula. Words and commands are none."""
    bare = re.sub(r"\\[a-zA-Z]+|⟦[^⟦⟧]*⟧|[a-zA-Z]{4,}", " ", text)
    return set(re.findall("[a-zA-Z]", bare))


def with_letter(text: str, old: str, new: str) -> str:
    """A formula with another letter, or a number, for one of its letters."""
    return re.sub(
        rf"(\\[a-zA-Z]+|⟦[^⟦⟧]*⟧|[a-zA-Z]{{4,}})|{re.escape(old)}", lambda match: match[1] or new, text
    )


def aligned(gold: str, answer: str) -> tuple[str, str] | None:
    r"""Both without what is said of their letters, with the same letters for what may have any.

    None where the sayings contradict each other, as k\in\mathbb{Z} and k\in\mathbb{R} do.

    >>> aligned("2k, k\\in\\mathbb{Z}", "2n, ⟦for any integer ⟧n")
    ('2k', '2k')
    >>> aligned("2k, k\\in\\mathbb{Z}", "2k, k\\in\\mathbb{R}")
    """
    (gold, said, values), (answer, its_said, its_values) = split_sayings(gold), split_sayings(answer)
    for letter, value in values.items():
        gold = with_letter(gold, letter, f"({value})")
    for letter, value in its_values.items():
        answer = with_letter(answer, letter, f"({value})")
    gold, answer = (re.sub(r"C_\{?1\}?", "C", text) if "C_2" not in text else text for text in (gold, answer))
    ours, theirs = letters_of(_value_of(gold)), letters_of(_value_of(answer))
    new, old = _only(ours - theirs, said), _only(theirs - ours, its_said)
    if (
        new
        and old
        and new not in letters_of(answer)
        and (said or its_said or _are_constants(gold, new, answer, old))
    ):
        answer = with_letter(answer, old, new)
        its_said = {new if letter == old else letter: domain for letter, domain in its_said.items()}
    for letter in said.keys() & its_said.keys():
        domains = said[letter], its_said[letter]
        counting = "N" in domains and any(map(_is_relation, domains))  # n in N, n >= 1
        if domains[0] != domains[1] and not counting:
            return None
    return gold, answer


def _value_of(text: str) -> str:
    """Without the letter that it is the value of, as in x=2k."""
    match = re.fullmatch(r"([a-zA-Z])\s*=([^=]+)", text)
    return match[2] if match and match[1] not in letters_of(match[2]) else text


def _only(letters: set[str], said: dict[str, str]) -> str | None:
    """The one letter of these, one of which something is said where anything is."""
    letters = letters & said.keys() if said else letters
    return next(iter(letters)) if len(letters) == 1 else None


def _are_constants(gold: str, new: str, answer: str, old: str) -> bool:
    """Are both letters the constant of an integral, or of the solution of a differential equation?"""
    if not {new, old} <= set("CcKkA") or {"a", "b"} & letters_of(gold):
        return False
    added, factor = r"(?:^|\+)\s*{}\s*(?=$|[-+])", r"(?<![a-zA-Z\\^_]){}\s*(?:\\cdot\s*)?e\s*\^"
    return any(
        re.search(pattern.format(new), gold) and re.search(pattern.format(old), answer)
        for pattern in (added, factor)
    )


def _said(body: str) -> tuple[dict[str, str], dict[str, str]] | None:
    """Domains and values of letters. None for what says nothing of letters."""
    if match := re.fullmatch(rf"(?:(?:all|any|every|each|some)\s+)?{_SET}", body):
        part = re.sub(r"\s", "", match[3] or "")
        domain = "N" if match[2] == "Z" and part in ("+", ">0") else match[2]
        domain += part if domain in "RQC" or part in ("-", "\\ge0", "0") else ""
        letters = re.findall(_LETTER, match[1].replace("and", ","))
        return (dict.fromkeys(letters, domain), {}) if len(set(letters)) == len(letters) else None
    if match := re.fullmatch(rf"({_LETTER})\s*=\s*([^,;=<>]+)", body):
        return {}, {match[1]: match[2].strip()}
    if match := re.fullmatch(
        rf"(?:(?:all|any|every|each|some)\s+)?(?:integers? |reals? |real numbers? )?"
        rf"(({_LETTER})\s*(?:\\[gln]e(?![a-zA-Z])|[<>=]|\\in).+)",
        body,
    ):
        return {match[2]: re.sub(r"\s", "", match[1])}, {}
    if re.fullmatch(rf"{_LETTER} (?:is|denotes|represents|stands for) (?:the|a|an) [a-zA-Z ]+", body):
        kind = _domain_of(body)
        return kind if kind else ({}, {})
    return _domain_of(body)


def _domain_of(body: str) -> tuple[dict[str, str], dict[str, str]] | None:
    """ "any integer k", "c is a real constant", "all real numbers x"."""
    tokens = re.findall(r"\\?[a-zA-Z]+|\S", re.sub(r"\bnon[- ](?=[a-z])", "non", body))
    letters, words = [], []
    for i, token in enumerate(tokens):
        article = token == "a" and i + 1 < len(tokens) and len(tokens[i + 1]) > 1
        if re.fullmatch(_LETTER, token) and not article:
            letters.append(token)
        elif token.isalpha() and not article and token != "and":
            words.append(singular(token.lower()))
        elif token not in (",", "and", "a"):
            return None
    if not words or not set(words) <= _FILLING | _ADJECTIVES | set(_KINDS):
        return None
    kinds = [_KINDS[word] for word in words if word in _KINDS]
    if not kinds and "number" not in words and not (letters and set(words) <= _FILLING):
        return None
    domain = next((kind for kind in kinds if kind != "R"), "R" if kinds else "")
    signs = sorted(set(words) & _ADJECTIVES - set(_KINDS))
    domain = "N" if domain == "Z" and signs == ["positive"] else domain + " ".join(signs)
    return {letter: domain for letter in letters if domain}, {}
