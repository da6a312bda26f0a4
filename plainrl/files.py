"""Your own file of problems, one JSON object a line."""

import json
from collections import Counter

from plainrl.answers import MAX_ANSWER_CHARS
from plainrl.grading import is_readable
from plainrl.sources import ListTask
from plainrl.tasks import BOXED_INSTRUCTION, Problem


def load_jsonl(path: str, hint: str = "hint") -> ListTask:
    """One problem a line; `hint` names the field that holds the hint.

    Lines may name their split, else `split_list` deals them out. Raises ValueError with the file, line and
    field.
    """
    problems, named = [], {"train": [], "dev": [], "test": []}
    try:
        with open(path, encoding="utf-8-sig") as file:  # with or without a byte order mark
            lines = list(file)
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--task jsonl:{path}: cannot read the file ({error})") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        row = _read_row(line, where, hint)
        if row.get("split", "train") not in named:
            raise ValueError(f"{where}: field 'split' must be train, dev or test")
        if ("split" in row) != any(named.values()) and problems:
            what = "new here" if "split" in row else "missing"
            raise ValueError(f"{where}: field 'split' is {what}; give it in every line or in none")
        prompt = row["prompt"] if "\\boxed" in row["prompt"] else f"{row['prompt']} {BOXED_INSTRUCTION}"
        answer, horizon = row["answer"].strip(), row.get("horizon", 1)
        problems.append(Problem(prompt, answer, row.get(hint), row.get("solution"), horizon, source=path))
        if "split" in row:
            named[row["split"]].append(problems[-1])
    if hint != "hint" and not any(problem.hint for problem in problems):
        raise ValueError(f"--task jsonl:{path}?hint={hint}: no line has a field {hint!r}")
    return ListTask("jsonl", named if any(named.values()) else split_list(problems, path))


def _read_row(line: str, where: str, hint: str) -> dict:
    """A line of the file as an object whose fields are checked. An answer that is a number becomes a text."""
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where}: not valid JSON ({error})") from None
    if not isinstance(row, dict):
        raise ValueError(f"{where}: expected an object with the fields prompt and answer")
    for name in ("prompt", "answer"):
        if name not in row:
            raise ValueError(f"{where}: field {name!r} is missing")
    if type(row["answer"]) is int:  # True is an int to isinstance
        row["answer"] = str(row["answer"])
    for name in ("prompt", "answer", hint, "solution"):
        if name in row and (not isinstance(row[name], str) or not row[name].strip()):
            example = ', e.g. "0.5"' if name == "answer" else ""
            raise ValueError(f"{where}: field {name!r} must be a non-empty string{example}")
    check_answer(row["answer"], where)
    horizon = row.get("horizon", 1)
    if type(horizon) is not int or horizon < 1:
        raise ValueError(f"{where}: field 'horizon' must be a whole number from 1")
    return row


def check_answer(answer: str, where: str) -> None:
    """Raise when a gold answer cannot be read: better at load than as a silent reward of 0 for ever."""
    if not is_readable(answer):
        what = f"{where}: field 'answer' ({answer[:60]!r})"
        raise ValueError(f"{what} is no expression that math-verify can read; write the bare answer")
    if len(answer) > MAX_ANSWER_CHARS:
        raise ValueError(f"{where}: field 'answer' is longer than {MAX_ANSWER_CHARS} characters")


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
    return splits
