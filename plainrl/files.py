"""Your own file of problems: JSON lines, one JSON array or object, or CSV, each also as .gz, or Parquet.

`load_file` reads it. Which fields hold the prompt and the answer is found by their names, or said in --task:
jsonl:PATH?prompt=question&answer=final. A line that cannot be used is left out and named on the screen; a
file of which more than half is like that is refused.
"""

import contextlib
import csv
import functools
import gzip
import itertools
import json
import math
import re
import time
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TextIO

from plainrl import grading
from plainrl.answers import MAX_ANSWER_CHARS, bare_answer, canonical, last_boxed, number, plain_integer
from plainrl.chains import calculator_program
from plainrl.sources import BENCHMARKS, ListTask
from plainrl.tasks import BOXED_INSTRUCTION, FILE_FIELDS, FILE_SETTINGS, Problem, optional_package, say
from plainrl.workers import WORKERS

# Where the prompt and the answer are looked for: the first that there is. A dot leads into an object.
# Capitals, spaces and signs do not matter: see `plain_name`.
PROMPTS = ("prompt", "problem", "question", "query", "messages", "conversations")
ANSWERS = ("answer", "final_answer", "expected_answer", "ground_truth", "reward_model.ground_truth")
ANSWERS += ("solution", "messages", "conversations")
WORKED = ("solution", "messages", "conversations")  # these show the answer in a box, if not named in --task
KNOWN_FILES = {
    ("question", "answer"): "GSM8K",
    ("problem", "solution"): "MATH",
    ("problem", "answer"): "OpenR1",
    ("prompt", "reward_model.ground_truth"): "DAPO-17k",
}
DAPO_REQUEST = re.compile(  # what DAPO-17k says round each question, against the box that is asked for here
    r"^Solve the following math problem step by step\. The last line of your response should be of the form "
    r"Answer: \$?Answer\$? \(without quotes\) where \$?Answer\$? is the answer to the problem\.\s*"
    r'|\s*Remember to put your answer on its own line after "Answer:"\.\s*$'
)
ASKS_FOR_A_BOX = re.compile(  # "\boxed{}", "\boxed{...}", "\boxed{your answer}", but not "\boxed{7}"
    r"\\boxed(?!\s*\{)|\\boxed\s*\{[\s.…_?$]*\}|\\boxed\s*\{[^{}]*\b(?:answer|result|solution|number)\b", re.I
)
SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test", "dev": "dev"}
SPLITS |= dict.fromkeys(("validation", "valid", "val", "development"), "dev")
ROLES = {"human": "user", "gpt": "assistant", "developer": "system"}
SLOW_SECONDS, PAUSE_SECONDS = 2.0, 10.0  # when the screen says first how far the reading is, and how often
SURROGATE = re.compile("[\ud800-\udfff]")  # no file and no tokenizer takes one alone
OTHER_FILES = {  # by their first bytes
    b"PK\x03\x04": "a zip archive or an Excel table",
    b"BZh": "packed by bzip2",
    b"\xfd7zXZ": "packed by xz",
    b"\x28\xb5\x2f\xfd": "packed by zstd",
    b"ARROW1": "an Arrow file",
    b"SQLite": "a database",
}
WAY_OUT = "write JSON lines, a JSON array or CSV in UTF-8, perhaps as .gz, or Parquet"
NAMED = 5  # so many of the lines that cannot be used are named


def load_file(path: str, given: dict[str, str] | None = None) -> ListTask:
    """The problems of a file. `given` says which field is the prompt, answer, hint, solution or split.

    An empty name leaves that field out. `given` may also have a level, "3-5": other problems are left out.
    Lines may name their split, else `split_list` deals them out. Raises ValueError with the file, the line or
    field, and the way out.
    """
    flag, name = f"--task jsonl:{path}", name_of(path)
    given = dict(given or {})
    level = given.pop("level", None)
    unit, entries, columns, clashes = read_entries(path, flag, given)
    if not entries:
        raise ValueError(f"{path}: holds no problem")
    if not any(isinstance(row, dict) for _, row in entries):
        line, reason = entries[0]
        raise ValueError(f"{path}, {unit} {line}: {reason}; no {unit} is an object; {WAY_OUT}")
    names = choose_fields(columns, clashes, given, flag)
    problems, splits, unusable, notes = {}, {}, {}, Counter()  # the first three by line
    if level is not None:
        read, entries = len(entries), at_level(entries, level, columns, flag)
        notes[f"left out by level={level}, of {read:,} {several(unit)}"] = read - len(entries)
    total, same = len(entries), {}
    entries.reverse()  # they are taken from the end: 1.8 million of DAPO-17k are not wanted in memory twice
    for _ in with_progress(range(total), name, f"of {total:,} {several(unit)} are made problems"):
        line, row = entries.pop()
        try:
            problem, splits[line] = make_problem(row, names, path, notes)
            problems[line] = same.setdefault(problem, problem)
        except ValueError as error:
            unusable[line] = str(error)
    golds = gold_answers((problem.answer for problem in problems.values()), name)
    for line, problem in list(problems.items()):
        gold, reason = golds[problem.answer]
        if gold != problem.answer:
            problems[line] = replace(problem, answer=gold)
        if reason:
            unusable[line] = f"field {names['answer']!r} ({short(problem.answer)}) {reason}"
            del problems[line], splits[line]
    said = "; ".join(f"{unit} {line}: {unusable[line]}" for line in sorted(unusable)[:NAMED])
    share = f"{len(unusable):,} of {total:,} {several(unit)} cannot be used"
    if 2 * len(unusable) > total:
        first = min(unusable)
        raise ValueError(f"{path}, {unit} {first}: {unusable[first]} ({share})")
    task = ListTask(name, deal(problems, splits, names["split"], path, unit), flag)
    lines = counts_of(list(problems.values()), task.problems) + fields_said(names)
    lines += [f"{note}: {count:,}" for note, count in notes.items()]
    lines += [f"left out, {share}: {said}"] if unusable else []
    for line in lines:
        say(f"{name}: {line}")
    return task


def name_of(path: str) -> str:
    """What the task is called in folders and metric keys: the file's name, in letters that are safe there.

    >>> name_of("data/my sums.jsonl.gz"), name_of("chain.json")
    ('my-sums', 'chain-file')
    """
    stem = without_gz(Path(path).name)
    stem = re.sub(r"\.(jsonl|ndjson|json|csv|tsv|parquet|txt)$", "", stem, flags=re.I)
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-.")[:60] or "file"
    return f"{stem}-file" if stem in ("chain", "gsm8k", *BENCHMARKS) else stem


def without_gz(name: str) -> str:
    return re.sub(r"\.gz$", "", name, flags=re.I)


def several(unit: str) -> str:
    """lines, entries, rows"""
    return unit.removesuffix("y") + ("ies" if unit.endswith("y") else "s")


def with_progress(items: Iterable, name: str, what: str) -> Iterator:
    """The items one after the other. When that takes long, the screen says how many there were."""
    said = time.monotonic() + SLOW_SECONDS - PAUSE_SECONDS
    for done, item in enumerate(items, start=1):
        yield item
        if time.monotonic() - said > PAUSE_SECONDS:
            said = time.monotonic()
            say(f"{name}: {done:,} {what}")


def short(text: str) -> str:
    """A stranger's text for a message: cut, and whatever is odd in it as an escape."""
    return ascii(text if len(text) <= 60 else text[:57] + "...")


def listed(names: Iterable[str]) -> str:
    """Names of fields for a message, 20 of them at most."""
    names = [short(str(name)) for name in names]
    return (", ".join(names[:20]) or "none") + (f" and {len(names) - 20} more" if len(names) > 20 else "")


# --- from a file to its entries -----------------------------------------------------------------------------


def read_entries(path: str, flag: str, given: dict[str, str]) -> tuple[str, list[tuple], list[str], dict]:
    """What an entry is called ("line", "entry", "row"), and what `slim_entries` makes of the entries.

    An entry is its number and an object, or a text that says why there is none. Fields that nothing is read
    from are dropped at once: OpenR1 has whole completions in them.
    """
    used = used_fields(given)
    with open_entries(path, flag, given, used) as (unit, entries):
        return unit, *slim_entries(entries, used, given, name_of(path))


def used_fields(given: dict[str, str]) -> list[str]:
    """The names of all fields that may be read."""
    used = [*PROMPTS, *ANSWERS, *FILE_SETTINGS, *filter(None, given.values())]
    return used + [name.partition(".")[0] for name in used if "." in name]


@contextlib.contextmanager
def open_entries(
    path: str, flag: str, given: dict[str, str], used: list[str] | None
) -> Iterator[tuple[str, Iterable[tuple]]]:
    """What an entry is called, and the entries, one after the other, while the file is open.

    An entry is as in `read_entries`, with all its fields; of a Parquet file those in `used` alone, unless
    that is None. Raises ValueError where the file cannot be read.
    """
    try:
        place = Path(path).expanduser()
        if place.is_dir():
            inside = listed(sorted(child.name for child in place.iterdir()))
            raise ValueError(f"{flag}: is a folder; name a file in it: there are {inside}")
        with open(place, "rb") as file:
            magic = file.read(6)
        for begin, what in OTHER_FILES.items():
            if magic.startswith(begin):
                raise ValueError(f"{flag}: cannot read the file ({what}); {WAY_OUT}")
        if magic.startswith(b"PAR1"):
            yield "row", read_parquet(place, used, flag)
            return
        is_packed = magic[:2] == b"\x1f\x8b"
        with (gzip.open if is_packed else open)(place, "rt", encoding="utf-8-sig", newline="") as file:
            yield text_entries(file, path, given)
    except UnicodeDecodeError as error:
        raise ValueError(f"{flag}: cannot read the file (no UTF-8: {error.reason}); {WAY_OUT}") from None
    except (OSError, EOFError, zlib.error, csv.Error, RuntimeError) as error:  # ~nobody is a RuntimeError
        settings = ", ".join(f"{name}=" for name in FILE_SETTINGS)
        known = f"; settings are {settings}" if "?" in path else ""
        raise ValueError(f"{flag}: cannot read the file ({error}){known}") from None


def plain_name(name: str) -> str:
    """What two spellings of a field's name have in common.

    >>> plain_name("Final Answer") == plain_name("finalAnswer") == plain_name("FINAL_ANSWER ")
    True
    """
    return re.sub(r"[\W_]", "", name).lower()


def slim_entries(
    entries: Iterable[tuple], used: list[str], given: dict[str, str], name: str
) -> tuple[list[tuple], list[str], dict[str, list[str]]]:
    """The entries as `slim` makes them, the names of all fields that there were, and the clashes."""
    columns, clashes = {}, {}
    slimmed = slim(entries, used, given, columns, clashes)
    return list(with_progress(slimmed, name, "entries are read")), list(columns), clashes


def slim(
    entries: Iterable[tuple], used: list[str], given: dict[str, str], columns: dict, clashes: dict
) -> Iterator[tuple]:
    """The entries, one after the other, with those fields alone that are used.

    A field in several spellings is called by the first one in the file, but a name in `given` means its own
    spelling alone. A clash is fields of one line that got the same name: {name: their spellings}. Both
    `columns`, whose keys are the names of all fields, and `clashes` are filled on the way. Tables give their
    header as an entry without a number, since there a name may stand twice; it is not passed on.
    """
    plain, first = set(map(plain_name, used)), {}  # first: {plain name: its first spelling in the file}
    chosen = [*given.values(), *(field.partition(".")[0] for field in given.values())]
    called = dict(zip(chosen, chosen))  # {a field of the file: what it is called here, None if not used}
    for line, row in entries:
        if line is None or isinstance(row, dict):
            for field in row:
                if field not in called:
                    key = plain_name(field)
                    called[field] = first.setdefault(key, field) if key in plain else None
            names = [called[field] for field in row if called[field]]
            if len(set(names)) < len(names):
                for same in set(names):
                    spellings = [field for field in row if called[field] == same]
                    if len(spellings) > 1:
                        clashes.setdefault(same, spellings)
        if isinstance(row, dict):
            columns |= dict.fromkeys(called[field] or field for field in row)
            row = {called[field]: value for field, value in row.items() if called[field]}
            for field, value in row.items():
                if isinstance(value, dict):
                    columns |= {f"{field}.{inner}": None for inner in value}
        if line is not None:
            yield line, row


def text_entries(file: TextIO, path: str, given: dict[str, str]) -> tuple[str, Iterable[tuple]]:
    """What an entry is called, and the entries. What the file begins with decides what it is."""
    prompts, answers = (
        {plain_name(name.partition(".")[0]) for name in ([given[field]] if given.get(field) else names)}
        for field, names in (("prompt", PROMPTS), ("answer", ANSWERS))
    )
    first = next((line for line in file if line.strip()), "").strip()
    file.seek(0)
    delimiter = max(",;\t|", key=first.count)
    header = {plain_name(cell) for cell in first.split(delimiter)}
    is_named_so = Path(without_gz(path)).suffix.lower() in (".csv", ".tsv")
    if is_named_so or (header & prompts and header & answers):
        return "line", read_csv(file, delimiter)
    one_a_line = is_json(first) and file_goes_on(file)
    if first.startswith("[") and not one_a_line:
        return "entry", read_array(file.read(), path)
    if first.startswith("{") and not one_a_line:
        entries = read_objects(file.read(), path)
        rows = members_of(entries[0][1], prompts, path) if len(entries) == 1 else None
        if rows is not None:
            return "entry", enumerate(map(as_object, rows), start=1)
        if entries:
            return "line", entries
        file.seek(0)
    return "line", read_lines(file)


def file_goes_on(file: TextIO) -> bool:
    """Is there more than one line that is not blank? The file is back at its start afterwards."""
    lines = (line for line in file if line.strip())
    goes_on = len(list(itertools.islice(lines, 2))) == 2
    file.seek(0)
    return goes_on


def is_json(text: str) -> bool:
    """Is the text whole? A field may be there twice."""
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


class RepeatedField(ValueError):
    """An object that has a field twice."""


def without_repeats(pairs: list[tuple]) -> dict:
    """The object of these fields. Raises RepeatedField: the first of two would be lost."""
    row = dict(pairs)
    if len(row) < len(pairs):
        field, _ = Counter(field for field, _ in pairs).most_common(1)[0]
        raise RepeatedField(f"the field {short(field)} is there twice")
    return row


JSON = json.JSONDecoder(object_pairs_hook=without_repeats)


def parse_json(text: str) -> object:
    """The object or list that a JSON text is, else a text that says why it is none."""
    try:
        value = JSON.decode(text)
    except json.JSONDecodeError as error:
        return f"not valid JSON ({error.msg}, line {error.lineno} column {error.colno})"
    except (ValueError, RecursionError) as error:  # an integer of 5,000 digits, 5,000 brackets
        return f"not valid JSON ({str(error)[:80]})"
    return value if isinstance(value, dict | list) else f"expected an object, found {short(text)}"


def as_object(value: object) -> dict | str:
    """An object, or a text that says why it is none."""
    if isinstance(value, dict | str):
        return value
    return f"expected an object, found {short(str(value))}"


def read_lines(file: TextIO) -> Iterator[tuple]:
    """One object a line; blank lines are passed over."""
    for line, text in enumerate(file, start=1):
        if text.strip():
            yield line, as_object(parse_json(text.strip()))


def read_array(text: str, path: str) -> Iterator[tuple]:
    """The members of one array. Raises ValueError where it is broken."""
    rows = parse_json(text)
    if isinstance(rows, str):
        raise ValueError(f"{path}: {rows}; the file begins like one array")
    for entry, row in enumerate(rows, start=1):
        yield entry, as_object([row] if isinstance(row, str) else row)


def read_objects(text: str, path: str) -> list[tuple]:
    """Objects of several lines, one after the other, each with its first line. Empty: the first is broken.

    Raises ValueError where a later one is broken, or one has a field twice.
    """
    entries, line, end = [], 1, 0
    while True:
        start = re.compile(r"\s*").match(text, end).end()
        line += text.count("\n", end, start)
        if start == len(text):
            return entries
        try:
            row, end = JSON.raw_decode(text, start)
        except (ValueError, RecursionError) as error:
            if not entries and not isinstance(error, RepeatedField):
                return []
            what = getattr(error, "msg", str(error)[:80])
            raise ValueError(
                f"{path}, line {line}: the object that begins here is no JSON ({what})"
            ) from None
        entries.append((line, as_object(row)))
        line += text.count("\n", start, end)


def members_of(whole, prompts: set[str], path: str) -> list | None:
    """The problems in one JSON value: {"data": [...]}, {"train": [...], "test": [...]}, columns, or by a key.

    `prompts` are the plain names that a prompt may have. None where the value is one problem, or is something
    else. Raises ValueError where it is not clear which they are.
    """
    if isinstance(whole, list):
        return whole if not whole or isinstance(whole[0], dict) else None
    if not isinstance(whole, dict):
        return None
    if asks(whole, prompts):
        return rows_of_columns(whole, prompts, path)
    found = {name: members_of(value, prompts, path) for name, value in whole.items()}
    found = {name: rows for name, rows in found.items() if rows is not None}
    with_prompt = {name: rows for name, rows in found.items() if rows and asks(rows[0], prompts)}
    found = with_prompt or found
    if found and all(name.strip().lower() in SPLITS for name in found):
        return [
            row_of_split(row, name) if isinstance(row, dict) else row
            for name, rows in found.items()
            for row in rows
        ]
    if len(found) > 1:
        raise ValueError(
            f"{path}: which are the problems? there are {listed(found)}; keep one of them in the file"
        )
    if found:
        return next(iter(found.values()))
    rows = list(whole.values())
    return rows if any(asks(row, prompts) for row in rows) else None


def row_of_split(row: dict, split: str) -> dict:
    """The row with the name of the list that it is in as its split, whatever else it says."""
    return {field: value for field, value in row.items() if plain_name(field) != "split"} | {"split": split}


def asks(row, prompts: set[str]) -> bool:
    """Is it an object with a prompt?"""
    return isinstance(row, dict) and any(plain_name(field) in prompts for field in row)


def rows_of_columns(table: dict, prompts: set[str], path: str) -> list[dict] | None:
    """The rows of {"prompt": [...], "answer": [...]}, or of {"prompt": {"0": ...}} as pandas writes it.

    None where it is one problem. Raises ValueError where a column is longer than another.
    """
    asked = next(value for name, value in table.items() if plain_name(name) in prompts)
    is_column = isinstance(asked, list) and asked and not isinstance(asked[0], dict)  # else it is a chat
    if not is_column and not (isinstance(asked, dict) and all(map(str.isdecimal, asked))):
        return None
    alike = {name: column for name, column in table.items() if type(column) is type(asked)}
    columns = {name: list(c.values()) if isinstance(c, dict) else c for name, c in alike.items()}
    sizes = {name: len(values) for name, values in columns.items()}
    if len(set(sizes.values())) > 1:
        said = ", ".join(f"{short(name)} {size:,}" for name, size in list(sizes.items())[:20])
        raise ValueError(f"{path}: its columns differ in length: {said}")
    return [dict(zip(columns, values)) for values in zip(*columns.values())]


def read_csv(file: TextIO, delimiter: str) -> Iterator[tuple]:
    """The header without a number, and the lines below; an empty cell is a field that is absent."""
    csv.field_size_limit(1 << 30)
    reader = csv.reader(file, delimiter=delimiter)
    named = (
        cells for cells in reader if "".join(cells).strip() and cells[0][:4] != "sep="
    )  # that is Excel's
    header = [cell.strip() for cell in next(named, [])]
    yield None, header
    horizons = [name for name in header if plain_name(name) == "horizon"]
    line = reader.line_num + 1
    for cells in reader:
        row = {name: cell for name, cell in zip(header, cells) if cell.strip()}
        for name in horizons:
            if row.get(name, "").isdecimal():
                row[name] = int(row[name])
        if len(cells) > len(header):
            yield line, f"has {len(cells)} cells under a header of {len(header)}"
        elif row:
            yield line, row
        line = reader.line_num + 1  # of the next: a cell may run over several lines


def read_parquet(path: Path, used: list[str] | None, flag: str) -> Iterator[tuple]:
    """The names without a number, and the rows with the columns that are used; others are there, empty.

    Without `used`, all are there.
    """
    optional_package("pyarrow", flag)
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(path)
        names = table.schema_arrow.names
        plain = set(map(plain_name, names if used is None else used))
        batches = table.iter_batches(1000, columns=[name for name in names if plain_name(name) in plain])
        yield None, names
        for line, row in enumerate((row for batch in batches for row in batch.to_pylist()), start=1):
            yield line, dict.fromkeys(names) | row
    except ValueError as error:  # pyarrow's own are of this kind
        raise ValueError(f"{flag}: cannot read the file ({' '.join(str(error).split())[:200]})") from None


# --- from an entry to a problem -----------------------------------------------------------------------------


def choose_fields(
    columns: list[str], clashes: dict[str, list[str]], given: dict[str, str], flag: str
) -> dict[str, str]:
    """The name that each of FILE_FIELDS and the horizon have in the file. "box": must answers be in one?

    Raises ValueError with the names that there are: for a field that is missing, or that two names fit.
    """
    spelt = {plain_name(column): column for column in reversed(columns)}  # the first of each
    spelt |= {column: column for column in columns}

    def find(name: str) -> str | None:
        return spelt.get(name, spelt.get(plain_name(name)))

    for name in given.values():
        if name and not find(name):
            raise ValueError(f"{flag}: no line has a field {name!r}; there are {listed(columns)}")
    names = {name: find(name) or name for name in (*FILE_FIELDS, "horizon")}
    names |= {field: name and find(name) for field, name in given.items()}
    names["box"] = ""
    for field, candidates in (("prompt", PROMPTS), ("answer", ANSWERS)):
        if not given.get(field):
            known = next((name for name in candidates if find(name)), None)
            names[field] = known and find(known)
            if field == "answer" and known in WORKED:
                names["box"] = "needed"
    missing = [field for field in ("prompt", "answer") if names[field] is None]
    if missing:
        asked = " and ".join(f"which field is the {field}" for field in missing)
        way_out = f"say ?{'&'.join(f'{field}=FIELD' for field in missing)} after the path"
        raise ValueError(f"{flag}: {asked}? there are {listed(columns)}; {way_out}")
    for field in (*FILE_FIELDS, "horizon"):
        same = clashes.get(names[field]) or clashes.get(names[field].partition(".")[0])
        if same:
            say_which = f"say ?{field}=FIELD, spelt as in the file, or " if field in FILE_FIELDS else ""
            way_out = f"{say_which if len(set(same)) > 1 else ''}rename one"
            raise ValueError(f"{flag}: which field is the {field}? there are {listed(same)}; {way_out}")
    return names


def at_level(entries: list[tuple], level: str, columns: list[str], flag: str) -> list[tuple]:
    """The entries whose level is within "3-5", or is "3"; a level is a number, alone or after a word.

    Raises ValueError where there is none. An entry that cannot be read stays: it is named later.
    """
    limits = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", level)
    if not limits:
        raise ValueError(f"{flag}: level={level} is no level; write level=3 or level=3-5")
    low, high = int(limits[1]), int(limits[2] or limits[1])
    if low > high:
        raise ValueError(f"{flag}: level={level} goes down; write level={high}-{low}")
    field = next((column for column in columns if plain_name(column) == "level"), None)
    if field is None:
        raise ValueError(f"{flag}: level={level} needs a field 'level'; there are {listed(columns)}")
    kept, others = [], Counter()
    for line, row in entries:
        text = str(row.get(field)) if isinstance(row, dict) else None
        found = text and re.fullmatch(r"(\D*)(\d{1,9})(?:\.0+)?", text)
        if found and re.search(r"(^|\W)[-−]$", found[1]):  # "-3" is below zero, "level-3" is not
            found = None
        if text is None or (found and low <= int(found[2]) <= high):
            kept.append((line, row))
        else:
            others[text] += 1
    if not any(isinstance(row, dict) for _, row in kept):
        raise ValueError(f"{flag}: no level is within level={level}; there are {listed(others)}")
    return kept


def fields_said(names: dict[str, str]) -> list[str]:
    """Which fields are read, where that is not plain from their names."""
    pair = [plain_name(names["prompt"]), plain_name(names["answer"])]
    if pair == ["prompt", "answer"]:
        return []
    like = [f", {whose}'s names" for known, whose in KNOWN_FILES.items() if pair == [*map(plain_name, known)]]
    said = f"the prompt is {short(names['prompt'])} and the answer {short(names['answer'])}"
    return [said + "".join(like)]


def value_of(row: dict, name: str):
    """A field, or by a dot one inside another. None where it is absent, null or blank."""
    outer, _, inner = name.partition(".")
    value = row.get(name)
    if value is None and isinstance(row.get(outer), dict):
        value = row[outer].get(inner)
    return None if isinstance(value, str) and not value.strip() else value


def text_of(row: dict, names: dict[str, str], field: str) -> str | None:
    """An optional field, None where it is absent. Raises ValueError where it is no text."""
    value = value_of(row, names[field])
    if value is not None and not isinstance(value, str):
        raise ValueError(f"field {names[field]!r} must be a text; ?{field}= leaves it out")
    return value


def make_problem(
    row: dict | str, names: dict[str, str], path: str, notes: Counter
) -> tuple[Problem, str | None]:
    """A problem, its answer as the file spells it, and the split that the line names.

    `notes` counts what was done to prompts. Raises ValueError with the field and the reason.
    """
    if isinstance(row, str):
        raise ValueError(row)
    prompt, reply = read_prompt(row, names["prompt"], notes), value_of(row, names["answer"])
    if reply is None:
        raise ValueError(f"field {names['answer']!r} is missing or empty")
    if isinstance(reply, list) and any(isinstance(turn, dict) for turn in reply):
        reply = read_chat(reply, names["answer"], Counter())[1]
    answer, worked = read_answer(reply, names["answer"], bool(names["box"]))
    hint, solution, split = (text_of(row, names, field) for field in ("hint", "solution", "split"))
    horizon = 1 if row.get(names["horizon"]) is None else row[names["horizon"]]
    if type(horizon) is not int or horizon < 1:  # True is an int to isinstance
        raise ValueError(f"field {names['horizon']!r} must be a whole number from 1")
    question = DAPO_REQUEST.sub("", prompt)
    if question != prompt:
        notes["prompts without their request for a line 'Answer:', since a box is asked for"] += 1
    if not ASKS_FOR_A_BOX.search(question):
        question = f"{question} {BOXED_INSTRUCTION}"
    texts = [text for text in (question, answer, hint, solution, worked) if text and not text.isascii()]
    if any(map(SURROGATE.search, texts)):
        raise ValueError("half of a character (\\ud800 to \\udfff) stands alone in it")
    problem = Problem(question, answer, hint, solution or worked, horizon, source=path)
    if (
        "<<" in str(reply) and plain_integer(answer) is not None
    ):  # GSM8K's calculator notes say how the answer is computed
        template, program, parts = calculator_program(question, reply, answer) or (None, None, ())
        problem = replace(problem, template=template, program=program, parts=parts)
    return problem, split


def read_prompt(row: dict, field: str, notes: Counter) -> str:
    """The prompt as it stands in its field, or the question of the chat that it is. Raises ValueError."""
    prompt = value_of(row, field)
    if prompt is None:
        raise ValueError(f"field {field!r} is missing or empty")
    if isinstance(prompt, list):
        prompt, _ = read_chat(prompt, field, notes)
    if not isinstance(prompt, str):
        raise ValueError(f"field {field!r} must be a text or a list of turns")
    return prompt


def role_and_text(turn: dict) -> tuple:
    """Who speaks in a turn of a chat and what is said, whatever names the turn has for them."""
    role, text = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
    if isinstance(text, list) and all(isinstance(part, dict) and "text" in part for part in text):
        text = "\n".join(str(part["text"]) for part in text)
    return role, text


def read_chat(turns: list, field: str, notes: Counter) -> tuple[str, str]:
    """The last question of a chat, after its system turn, and the turn that answers it, else ""."""
    said = []
    for turn in turns:
        if not isinstance(turn, dict):
            raise ValueError(f"field {field!r} must be a text or a list of turns with role and content")
        role, text = role_and_text(turn)
        if not isinstance(role, str) or not isinstance(text, str):
            raise ValueError(f"field {field!r} has a turn without a role and a content that is text")
        said.append((ROLES.get(role, role), text.strip()))
    asked = [i for i, (role, text) in enumerate(said) if role == "user" and text]
    if not asked:
        raise ValueError(f"field {field!r} has no turn of the user")
    system = [text for role, text in said if role == "system" and text]
    if system:
        notes["prompts that begin with the system turn of their chat"] += 1
    if any(role != "system" for role, _ in said[: asked[-1]]):
        notes["prompts without the turns before the last question of their chat"] += 1
    replies = [text for role, text in said[asked[-1] :] if role == "assistant"]
    return "\n\n".join([*system, said[asked[-1]][1]]), "".join(replies[:1])


def read_answer(value, field: str, needs_box: bool) -> tuple[str, str | None]:
    """The answer as it stands in the field, and the worked solution where the field is one."""
    if isinstance(value, list) and len({str(each) for each in value}) == 1:
        value = value[0]
    if isinstance(value, list):
        said = f"field {field!r} has no answer: it must be a text or a number"
        raise ValueError(f"{said}, not a list of {len(value)}")
    if isinstance(value, dict):
        way_out = f"?answer={field}.NAME reads one of {listed(value)}"
        raise ValueError(f"field {field!r} has no answer: it must be a text or a number; {way_out}")
    if isinstance(value, bool):
        value = str(value).lower()
    if isinstance(value, float) and math.isfinite(value):
        value = int(value) if value.is_integer() and abs(value) < 1e15 else value
        value = str(value)
    elif type(value) is int:
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"field {field!r} has no answer: it must be a text or a number")
    text, worked = value.strip(), None
    answer = text
    if "####" in text:
        worked, _, answer = (part.strip() for part in text.rpartition("####"))
        answer = canonical(answer)
        worked = re.sub(r"<<[^>]*>>", "", worked)
        worked = worked and f"{worked}\n\\boxed{{{answer}}}"
    elif last_boxed(text) is not None:
        worked, answer = text, last_boxed(text)
        worked = None if re.match(r"\\(boxed|fbox)", text) else text
    elif needs_box:
        raise ValueError(f"field {field!r} has no \\boxed{{}} with the answer (bare ones: ?answer={field})")
    if not answer:
        raise ValueError(f"field {field!r} has no answer after #### or in its box")
    if len(answer) > MAX_ANSWER_CHARS:
        raise ValueError(f"field {field!r} is longer than {MAX_ANSWER_CHARS:,} characters")
    return answer, worked or None


# --- gold answers -------------------------------------------------------------------------------------------


def gold_answers(texts: Iterable[str], name: str) -> dict[str, tuple[str, str]]:
    """For each text the gold answer that it is, or why it cannot be one: (gold, "") or (text, reason).

    Texts that are no plain integers are read several at a time, with a line on the screen when it takes long.
    """
    golds = dict.fromkeys(texts)
    hard = []
    for text in golds:
        golds[text] = (text.strip(" $"), "")
        if plain_integer(text) is None:
            hard.append(text)
    threads = ThreadPoolExecutor(WORKERS)
    try:
        read = zip(hard, threads.map(read_gold, hard))
        for text, gold in with_progress(read, name, f"of {len(hard):,} gold answers are read"):
            golds[text] = gold
    finally:
        threads.shutdown(cancel_futures=True)  # Ctrl-C does not wait for the rest
    return golds


@functools.cache
def is_readable_form(answer: str) -> bool:
    return grading.is_readable(answer)


def read_gold(text: str) -> tuple[str, str]:
    """The gold answer that a text is, or why it cannot be one: (gold, "") or (text, reason).

    A worker needs 10 ms for a formula. Whether it can be read hardly depends on its digits, so formulas that
    differ in them alone are asked once; where the answer is no, each is asked by itself.
    """
    try:
        answer = bare_answer(text)
        same_digits = re.sub("[1-9]", "7", answer)
        return answer if is_readable_form(same_digits) else grading.gold_answer(text), ""
    except ValueError as error:
        return text, str(error)


# --- splits -------------------------------------------------------------------------------------------------


def deal(
    problems: dict[int, Problem], splits: dict[int, str | None], field: str, path: str, unit: str
) -> dict[str, list]:
    """The problems by split: as their lines say in that field, or else dealt out by `split_list`."""
    lines = list(problems)
    names = {line: SPLITS.get((splits[line] or "").strip().lower()) for line in lines}
    for line in lines:
        where = f"{path}, {unit} {line}: field {field!r}"
        if (splits[line] is None) != (splits[lines[0]] is None):
            what = "new here" if splits[line] else "missing"
            raise ValueError(
                f"{where} is {what}; give it in every line or in none, or leave it out by ?split="
            )
        if splits[line] is not None and not names[line]:
            known = "must be train, dev (validation, valid, val) or test"
            raise ValueError(f"{where} is {short(splits[line])}; it {known}, or is left out by ?split=")
    if splits[lines[0]] is None:
        return split_list(list(problems.values()), path)
    dealt = {"train": [], "dev": [], "test": []}
    for line, problem in problems.items():
        dealt[names[line]].append(problem)
    return measured_once(dealt)


def split_list(problems: list[Problem], where: str) -> dict[str, list[Problem]]:
    """Every tenth problem of a horizon is dev, the one after it test, the others train.

    Identical prompts stay on one side.
    """
    if not problems:
        raise ValueError(f"{where}: holds no problem")
    splits = {"train": [], "dev": [], "test": []}
    side, counts = {}, Counter()
    for problem in problems:
        if problem.prompt not in side:
            side[problem.prompt] = {8: "dev", 9: "test"}.get(counts[problem.horizon] % 10, "train")
            counts[problem.horizon] += 1
        splits[side[problem.prompt]].append(problem)
    return measured_once(splits)


def measured_once(splits: dict[str, list[Problem]]) -> dict[str, list[Problem]]:
    """Dev and test without the copies of a prompt: the first counts."""
    for split in ("dev", "test"):
        splits[split] = list({problem.prompt: problem for problem in reversed(splits[split])}.values())[::-1]
    return splits


def counts_of(problems: list[Problem], splits: dict[str, list[Problem]]) -> list[str]:
    """What the screen says of sizes, of copies, and of measured problems that are trained on."""
    sizes = ", ".join(f"{len(members):,} {split}" for split, members in splits.items() if members)
    none_held_out = not splits["dev"] and not splits["test"]
    way_out = "; none is held out: eval.py measures all of them with --split all" if none_held_out else ""
    lines = [f"{sum(map(len, splits.values())):,} problems: {sizes}{way_out}"]
    answers = {}  # of each prompt
    for problem in problems:
        value = number(problem.answer)
        answers.setdefault(problem.prompt, set()).add(problem.answer if value is None else value)
    copies = len(problems) - len(answers)
    if copies:
        several = sum(len(found) > 1 for found in answers.values())
        lines.append(f"problems with the prompt of another: {copies:,}; dev and test have each prompt once")
        lines += [f"prompts that come with different answers: {several:,}"] if several else []
    trained = {problem.prompt for problem in splits["train"]}
    leaked = sum(problem.prompt in trained for split in ("dev", "test") for problem in splits[split])
    if leaked:
        lines.append(f"problems of dev and test that are in train as well: {leaked:,}")
    return lines
