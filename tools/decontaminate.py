r"""Finds training problems that share a long run of words with an evaluation set, and writes a file without.

    python tools/decontaminate.py --task jsonl:train.jsonl --against math500 aime24 --out clean.jsonl
    python tools/decontaminate.py --task jsonl:t.csv --against gsm8k:test jsonl:mine.jsonl --out clean.jsonl
    python grpo.py --task jsonl:clean.jsonl

A problem of an evaluation set is found in a training problem that has n of its words in a row: an n-gram.
Words are compared in lower case, without punctuation and LaTeX's spacing; signs such as + and \times are no
words. A number counts in groups of three digits, since "1,200" may be one number or two. Two Chinese or
Japanese characters count as one word. A whole copy, signs included, is found at any length.

Why n is 13: GPT-3 (arXiv 2005.14165) took it, and most have since. Fewer words find more, and more that is
none: at 8, "what is the smallest positive integer such that the" is a find. A false one costs a training
problem, one that is missed costs the result. Where an evaluation set's problems are short, try 8 to 10 and
read the report.

Wording is a run of words, longer than half of n and of 40 at most, that more than a tenth of a set's problems
have, such as a request for the form of the answer. An n-gram that is mostly wording is left aside. A problem
without n-grams, since it is short or all wording, is found where all its words stand in a row, if it has 5.
Nothing here sees a problem that is told in other words.
"""

import json
import re
import shlex
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import tee
from pathlib import Path
from typing import Annotated

sys.path.append(str(Path(__file__).resolve().parents[1]))  # where plainrl/ lies

from plainrl import files
from plainrl.flags import Bounds, Natural, check_flags, parse
from plainrl.folder import refuse_existing, write_or_fail, writing, written_aside
from plainrl.screen import fail, or_fail, say, shown
from plainrl.sources import BENCHMARKS
from plainrl.tasks import BOXED_INSTRUCTION, load_task, name_and_settings

SPLITS = ("train", "dev", "test", "all")
WORDING = 0.1  # what more than this share of a set's problems have in common is the set's wording
FEW = 4  # if it is more than so many problems
LONGEST = 40  # and no more than so many words: a longer text is a shared passage. DAPO's request has 34
WHOLE = 5  # words from which on a whole problem is looked for inside a row: fewer stand in any text
KEPT = 2**16  # prompts whose verdict is remembered: DAPO-17k has each of its 17,000 a hundred times
SHOWN = 400  # characters of a problem in the report

# --- words --------------------------------------------------------------------------------------------------

NOT_ASKED = re.compile(  # spacing and style of LaTeX, which say nothing
    r"\\[,;:!> ()\[\]]|~"
    r"|\\(?:q?quad|left|right|[lc]?dots|[bB]igg?[lr]?|displaystyle|text|textbf|textit|mathrm|mathbf|mbox)\b"
)
SIGNS = str.maketrans("×·⋅÷⁄", "***//")  # signs that are written in several ways, and are no words
LATEX_SIGNS = [
    (re.compile(r"\\(?:times|cdot)(?![a-z])"), "*"),
    (re.compile(r"\\[dtc]?frac *(\d) *(?=\d)"), r"/ \1 "),
    (re.compile(r"\\(?:[dtc]?frac|div)(?![a-z])"), "/"),
    (re.compile(r"\\leq?(?:slant)?(?![a-z])"), "≤"),
    (re.compile(r"\\geq?(?:slant)?(?![a-z])"), "≥"),
    (re.compile(r"\\neq?(?![a-z])"), "≠"),
]
APOSTROPHES = re.compile(r"(?<=\w)['’](?=\w)")
ALONE = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"  # Chinese and Japanese: no spaces between words
DIGITS = r"\d{1,3}(?=(?:\d{3}){1,5}(?!\d))"  # of a number those before its last three, in threes
TOKEN = re.compile(rf"{DIGITS}|\d+(?:\.\d+)?|[{ALONE}]|[^\W\d_{ALONE}]+|[^\w\s.,;:?\"'’`$\\{{}}]")
IS_ALONE = re.compile(f"[{ALONE}]").match


def tokens_of(text: str) -> list[str]:
    r"""Words, numbers and signs, in order, without what only says how the answer is to be written.

    >>> tokens_of("Tom has $1{,}000$ more. What is $\\dfrac{x}{2}+3.5$?")
    ['tom', 'has', '1', '000', 'more', 'what', 'is', '/', 'x', '2', '+', '3.5']
    """
    text = files.DAPO_REQUEST.sub("", text).replace(BOXED_INSTRUCTION, "")
    text = text.lower() if text.isascii() else unicodedata.normalize("NFKC", text).casefold().translate(SIGNS)
    if "\\" in text:
        for pattern, sign in LATEX_SIGNS:
            text = pattern.sub(sign, text)
    return TOKEN.findall(APOSTROPHES.sub("", NOT_ASKED.sub(" ", text)))


def words_of(tokens: list[str]) -> list[str]:
    """The tokens that are words or numbers."""
    return [token for token in tokens if token[0].isalnum()]


def ngrams(words: list[str], n: int) -> list[str]:
    """Every n words in a row, the i-th beginning at word i. Two of Chinese's characters are one word.

    A Chinese word has one character or two, so a find means about as much as one in English.

    >>> ngrams(["a", "b", "c"], 2), ngrams(["a"], 2), ngrams(["有", "3", "个", "苹", "果"], 2)
    (['a b', 'b c'], [], ['有 3 个', '3 个 苹'])
    """
    if all(map(str.isascii, words)):
        return [" ".join(words[start : start + n]) for start in range(len(words) - n + 1)]
    halves = [1 if IS_ALONE(word) else 2 for word in words]
    found, end, size = [], 0, 0  # size: how many halves of words there are from start to end
    for start, half in enumerate(halves):
        while size < 2 * n and end < len(words):
            size, end = size + halves[end], end + 1
        if size < 2 * n:
            break
        found.append(" ".join(words[start:end]))
        size -= half
    return found


def find_wording(problems: list[list[str]], n: int) -> list[list[range]]:
    """Of each problem, given as its words, the places of the words that are the wording of them all."""
    size, most = n // 2 + 1, max(FEW, WORDING * len(problems))
    times = Counter(gram for words in problems for gram in set(ngrams(words, size)))
    found = []
    for words in problems:
        runs = []
        for start, gram in enumerate(ngrams(words, size)):
            if times[gram] > most:
                first = runs.pop().start if runs and start < runs[-1].stop else start
                runs.append(range(first, start + len(gram.split())))
        found.append([run for run in runs if not ngrams(words[run.start : run.stop], LONGEST + 1)])
    return found


# --- the evaluation sets ------------------------------------------------------------------------------------


@dataclass
class Measured:
    """A problem of an evaluation set, and the training problem that shares most of it."""

    of: str  # the set, as --against names it
    index: int
    text: str
    ngrams: int  # how many different ones it is found by; none if it is short or all wording
    rows: int = 0  # training problems that it was found in
    copies: int = 0  # of these, whole copies
    share: float = 0.0  # of its n-grams, those that the worst training problem has
    worst: tuple = ()  # that one's line, its text, and the longest run of words that both have


@dataclass
class Sets:
    """All problems that are looked for, by what they are found with."""

    n: int
    problems: list[Measured] = field(default_factory=list)
    ngrams: dict[str, list[int]] = field(default_factory=dict)  # n-gram -> problems
    heads: dict[str, list] = field(default_factory=dict)  # first words -> [(problem, all words)]
    copies: dict[str, list[int]] = field(default_factory=dict)  # all tokens of a problem -> problems
    wording: dict[str, Counter] = field(default_factory=dict)  # set -> its wordings, with numbers of problems

    def add(self, name: str, texts: list[str]) -> None:
        """Take a set in. n-grams that are mostly the set's wording are left aside."""
        tokens = [tokens_of(text) for text in texts]
        all_words = [words_of(each) for each in tokens]
        wording = find_wording(all_words, self.n)
        parts = zip(all_words, wording)
        self.wording[name] = Counter(" ".join(words[i] for i in run) for words, runs in parts for run in runs)
        for index, (text, words) in enumerate(zip(texts, all_words)):
            number, common = len(self.problems), {place for run in wording[index] for place in run}
            own = set()
            for start, gram in enumerate(ngrams(words, self.n)):
                size = len(gram.split())
                if 2 * sum(place in common for place in range(start, start + size)) <= size:
                    own.add(gram)
            self.problems.append(Measured(name, index, text, len(own)))
            for gram in own:
                self.ngrams.setdefault(gram, []).append(number)
            for head in [] if own else ngrams(words, min(WHOLE, self.n))[:1]:
                self.heads.setdefault(head, []).append((number, words))
            if tokens[index]:
                self.copies.setdefault(" ".join(tokens[index]), []).append(number)

    def shared(self, text: str) -> list[tuple[int, bool, float, str]]:
        """What a training problem shares with which problems: [(problem, is it a copy, share, words)].

        The share is that of the problem's n-grams, and 1 where the whole problem is found; the words are the
        longest run that both have.
        """
        tokens = tokens_of(text)
        words, found, shared = words_of(tokens), {}, {}
        for start, gram in enumerate(ngrams(words, self.n)):
            for number in self.ngrams.get(gram, ()):
                found.setdefault(number, {})[start] = gram
        for number, grams in found.items():
            first, length = longest(list(grams))
            last = first + length - 1
            run = " ".join(words[first : last + len(grams[last].split())])
            shared[number] = (number, False, len(set(grams.values())) / self.problems[number].ngrams, run)
        for start, head in enumerate(ngrams(words, min(WHOLE, self.n)) if self.heads else ()):
            for number, whole in self.heads.get(head, ()):
                if words[start : start + len(whole)] == whole:
                    shared[number] = (number, False, 1.0, " ".join(whole))
        for number in self.copies.get(" ".join(tokens), ()):
            shared[number] = (number, True, 1.0, " ".join(words))
        return list(shared.values())


def longest(starts: list[int]) -> tuple[int, int]:
    """Where the longest row of successive numbers begins, and how long it is.

    >>> longest([1, 2, 5, 6, 7, 9])
    (5, 3)
    """
    best, first = (starts[0], 1), starts[0]
    for before, start in zip(starts, starts[1:]):
        first = first if start == before + 1 else start
        best = max(best, (first, start - first + 1), key=lambda row: row[1])
    return best


def problems_of(spec: str) -> list[str]:
    """The prompts of an evaluation set: NAME, or NAME:SPLIT. Raises ValueError."""
    name, colon, split = spec.rpartition(":")
    if not colon or split not in SPLITS:
        name, split = spec, "test" if spec == "gsm8k" else "all"
    kind, settings = name_and_settings(name)
    if not (kind.startswith("jsonl:") or kind in ("gsm8k", *BENCHMARKS)) or "horizon" in settings:
        raise ValueError(f"--task {spec}: unknown; use jsonl:PATH, gsm8k, {', '.join(BENCHMARKS)}")
    return [problem.prompt for problem in load_task(name).members(split)]


def problems_of_all_splits(spec: str, number: int) -> str:
    """How many problems are looked for. A file of no splits was dealt out when it was read, as for training:
    that is no matter here."""
    of = "" if spec.rpartition(":")[2] in SPLITS or spec == "gsm8k" else ", of all splits"
    return f"{counted(number, 'problem')}{of}"


def load_sets(specs: tuple[str, ...], n: int) -> Sets:
    sets = Sets(n)
    for spec in dict.fromkeys(specs):
        try:
            texts = problems_of(spec)
        except ValueError as error:  # these messages are about --task, since training reads the same sets
            text = str(error).replace("use --task chain", "give a copy as jsonl:FILE")
            fail(text.replace("--task ", "--against "))
        sets.add(spec, texts)
        short = sum(not ngrams(words_of(tokens_of(text)), n) for text in texts)
        bare = sum(not problem.ngrams for problem in sets.problems if problem.of == spec) - short
        way = f"found where they stand whole, below {WHOLE} words as copies alone"
        say(
            f"{spec}: {problems_of_all_splits(spec, len(texts))}"
            + (f"; {short:,} of fewer than {n} words: {way}" if short else "")
        )
        if sets.wording[spec]:
            [(most, _)], others = sets.wording[spec].most_common(1), len(sets.wording[spec]) - 1
            listed = f" and {others:,} more, in the report" if others else ""
            say(f'{spec}: its wording, left aside: "{in_a_line(most)}"{listed}')
            say(f"{spec}: problems that have only wording, found where they stand whole: {bare:,}")
    return sets


# --- the training file --------------------------------------------------------------------------------------


def training_rows(path: str, given: dict[str, str]) -> Iterator[tuple[str, int, dict | None, str]]:
    """What an entry is called, its number, and all that it says, with its prompt; or None and the reason.

    The file is read twice and never held: once for the names of its fields. Raises ValueError.
    """
    flag, used, columns, clashes = f"--task jsonl:{path}", files.used_fields(given), {}, {}
    with files.open_entries(path, flag, given, used) as (_, entries):
        count = sum(1 for _ in files.slim(entries, used, given, columns, clashes))
    if not count:
        raise ValueError(f"{path}: holds no problem")
    prompt = files.choose_fields(list(columns), clashes, given, flag)["prompt"]
    with files.open_entries(path, flag, given, None) as (unit, entries):
        entries, same = tee(entries)
        whole = (entry for entry in same if entry[0] is not None)
        for (line, row), (_, everything) in zip(files.slim(entries, used, given, {}, {}), whole):
            try:
                if isinstance(row, str):
                    raise ValueError(row)
                text = files.read_prompt(row, prompt, Counter())
            except ValueError as error:
                yield unit, line, None, str(error)
            else:
                yield unit, line, everything, text


def remember(problem: Measured, is_copy: bool, share: float, found: tuple) -> None:
    """Count a find, and keep the training problem that shares most: a copy first."""
    problem.rows += 1
    problem.copies += is_copy
    if not problem.worst or (is_copy, share) > (problem.worst[0], problem.share):
        problem.share, problem.worst = share, (is_copy, *found)


# --- the report ---------------------------------------------------------------------------------------------


def table_of(sets: Sets) -> list[str]:
    """One line a set: how many of its problems were found, and in how many training problems."""
    lines = []
    for name in dict.fromkeys(problem.of for problem in sets.problems):
        members = [problem for problem in sets.problems if problem.of == name]
        found = [problem for problem in members if problem.rows]
        copied = sum(problem.copies > 0 for problem in found)
        of = counted(len(members), "problem")
        lines.append(f"  {name}: {len(found):,} of {of}, {copied:,} as whole copies")
    return lines


def counted(number: int, what: str) -> str:
    """
    >>> counted(1, "row"), counted(1802, "row")
    ('1 row', '1,802 rows')
    """
    return f"{number:,} {what}{'s' * (number != 1)}"


def in_a_line(text: str) -> str:
    text = " ".join(text.split())
    return shown(text if len(text) <= SHOWN else text[:SHOWN] + " ...", True)


def report_of(sets: Sets, head: list[str], pairs: int) -> str:
    """The report as plain text: what is a stranger's is cut and stands in one line."""
    found = [problem for problem in sets.problems if problem.rows]
    found.sort(key=lambda problem: (not problem.worst[0], -problem.share))
    lines = [*head, *table_of(sets), ""]
    for name, wordings in sets.wording.items():
        for words, count in wordings.most_common():
            lines.append(f"wording of {name}, left aside in {count:,} problems: {in_a_line(words)}")
    lines += [f"the worst pairs, {min(pairs, len(found)):,} of {len(found):,}:"] if found else []
    for problem in found[:pairs]:
        is_copy, where, text, words = problem.worst
        share = f"{problem.share:.0%} of its {sets.n}-grams" if problem.ngrams else "all its words in a row"
        kind = "a whole copy" if is_copy else share
        rows = counted(problem.rows, "row")
        lines += ["", f"{problem.of}, problem {problem.index}: {kind}, in {rows}; the worst is {where}"]
        for title, said in (("shared", words), ("training", text), ("measured", problem.text)):
            lines.append(f"  {title}: {in_a_line(said)}")
    return "\n".join(lines) + "\n"


# --- the command --------------------------------------------------------------------------------------------


@dataclass
class Args:
    task: str
    """the training problems: your own file as jsonl:PATH, perhaps with ?prompt=FIELD"""
    out: Path
    """the file to write, JSON lines with all fields of the rows that are kept; must not exist"""
    against: tuple[str, ...] = ()
    """evaluation sets: math500, gsm8k:test, jsonl:PATH, ...; a split may follow a colon"""
    n: Annotated[int, Bounds(at_least=1, at_most=1000)] = 13
    """so many words in a row make a find"""
    report: Path | None = None
    """where the report goes (default: beside --out, with the ending .report.txt)"""
    pairs: Natural = 50
    """so many pairs stand in the report, the worst first"""


def check_paths(args: Args, source: str) -> Path:
    """Refuse to write over anything. Returns where the report goes."""
    report = args.report or args.out.with_name(args.out.name.removesuffix(".jsonl") + ".report.txt")
    if args.out.suffix != ".jsonl":
        fail(f"--out {args.out}: JSON lines are written; give a name that ends in .jsonl")
    for flag, path in (("--out", args.out), ("--report", report)):
        refuse_existing(flag, path)
    if report == args.out or Path(source).expanduser().resolve() in (args.out.resolve(), report.resolve()):
        fail(f"--out {args.out}: input, output and report must be three files")
    return report


def head_of(args: Args, counts: Counter, unreadable: dict[int, str]) -> list[str]:
    """The first lines of the report: how many rows were read, removed and kept, and what cannot be read."""
    head = [
        f"{args.task}: {counted(counts['read'], 'row')}, {counts['removed']:,} removed, {counts['copies']:,} "
        f"of them whole copies, {counts['kept']:,} kept; a find is {args.n} words in a row",
    ]
    if unreadable:
        first = "; ".join(list(unreadable.values())[: files.NAMED])
        head.append(f"left out, {counted(len(unreadable), 'row')} cannot be read: {first}")
    return head


def write_clean(rows: Iterator[tuple], sets: Sets, path: Path, name: str) -> tuple[Counter, dict[int, str]]:
    """Write the rows that share nothing. Returns the numbers of rows, and why lines cannot be read."""
    verdict = lru_cache(KEPT)(sets.shared)
    counts, unreadable = Counter(read=0, removed=0, copies=0, kept=0), {}
    with open(path, "w", encoding="utf-8", errors="backslashreplace") as file:
        for unit, line, row, text in files.with_progress(rows, name, "rows are read"):
            counts["read"] += 1
            if row is None:
                unreadable[line] = f"{unit} {line}: {text}"
                continue
            shared = verdict(text)
            for number, is_copy, share, words in shared:
                remember(sets.problems[number], is_copy, share, (f"{unit} {line}", text, words))
            counts["removed"] += bool(shared)
            counts["copies"] += any(is_copy for _, is_copy, _, _ in shared)
            if not shared:
                file.write(as_line(row, f"{unit} {line}"))
                counts["kept"] += 1
    return counts, unreadable


def as_line(row: dict, where: str) -> str:
    try:
        return json.dumps(row, ensure_ascii=False) + "\n"
    except TypeError as error:  # dates, bytes: of Parquet
        raise ValueError(f"{where}: cannot be written as JSON ({error}); leave such columns out") from None


def main(args: Args) -> None:
    check_flags(args)
    kind, given = or_fail(name_and_settings, args.task)
    source = kind.removeprefix("jsonl:")
    if source == kind:
        fail(f"--task {args.task}: must be a file of yours, jsonl:PATH")
    for setting in ("horizon", "level"):
        if setting in given:
            fail(f"--task {args.task}: leave {setting}= out, for training; the clean file keeps its fields")
    if not args.against:
        fail("--against: name the evaluation sets, e.g. --against math500 aime24 jsonl:mine.jsonl")
    report = check_paths(args, source)
    sets = load_sets(args.against, args.n)
    rows, name = training_rows(source, given), files.name_of(source)
    # The clean file gets its name when it is whole, has a row and the report is written.
    with writing("--out", args.out, "give another name"), written_aside(args.out) as aside:
        counts, unreadable = or_fail(write_clean, rows, sets, aside, name)
        head = head_of(args, counts, unreadable)
        write_or_fail("--report", report, report_of(sets, head, args.pairs), "give another name")
        say("\n".join([*head, *table_of(sets), f"the pairs: {report}"]))
        if not counts["kept"]:
            none = f"--task {args.task}: no row is left, so nothing is written"
            fail(f"{none}; see {report}, or try a larger --n")
    settings = args.task.removeprefix(kind)
    say(f"next: python grpo.py --task {shlex.quote(f'jsonl:{args.out}{settings}')}")


if __name__ == "__main__":
    main(parse(Args, __doc__))


# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "torch==2.13.0", "transformers>=5.16.1,<5.20", "safetensors", "numpy", "tyro", "filelock",
#     "math-verify>=0.9,<0.10", "antlr4-python3-runtime==4.13.2", "matplotlib", "jinja2",
# ]
# ///
