"""Tests of plainrl/files.py: people's own files of problems, as they have them."""

import doctest
import gzip
import json
import sys
import time
from types import SimpleNamespace

import pytest
from mutants import mutant
from test_grading import box, message
from toys import quick_flags

import grpo
from plainrl import files, grading, workers
from plainrl.sources import ListTask, gsm8k_problem
from plainrl.tasks import BOXED_INSTRUCTION, Problem, load_task


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """A busy machine must not turn a verdict into a timeout."""
    monkeypatch.setattr(workers, "GRADE_SECONDS", 60.0)


def lines_of(rows: list) -> str:
    """JSON lines; a text among the rows is a line as it is."""
    return "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)


def sums(count: int) -> list[dict]:
    return [{"prompt": f"What is {n}+1?", "answer": str(n + 1)} for n in range(count)]


def load(folder, content: list | str | bytes, name: str = "mine.jsonl", settings: str = "") -> ListTask:
    """The task of a file with this content: rows, a text or bytes."""
    content = lines_of(content) if isinstance(content, list) else content
    (folder / name).write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    return load_task(f"jsonl:{folder / name}{settings}")


def all_problems(task: ListTask) -> list[Problem]:
    return [problem for split in task.problems.values() for problem in split]


def test_doctests():
    """Catches examples that are wrong."""
    assert doctest.testmod(files).failed == 0


# --- kinds of files -----------------------------------------------------------------------------------------


def table(separator: str, *header: str) -> str:
    cells = [
        header or ("answer", "prompt", "note"),
        *((row["answer"], row["prompt"], "") for row in sums(12)),
    ]
    return "".join(separator.join(line) + "\n" for line in cells)


def made(make) -> str:
    """JSON lines of what `make` makes of question and answer."""
    return lines_of([make(row["prompt"], row["answer"]) for row in sums(12)])


def turns(question: str, reply: str | None = None) -> list[dict]:
    asked = [{"role": "user", "content": question}]
    return asked + ([{"role": "assistant", "content": reply}] if reply else [])


def dapo(question: str) -> str:
    before = (
        "Solve the following math problem step by step. The last line of your response should be of the form"
    )
    before += " Answer: $Answer (without quotes) where $Answer is the answer to the problem.\n\n"
    return before + question + '\n\nRemember to put your answer on its own line after "Answer:".'


LINES, ARRAY = lines_of(sums(12)), json.dumps(sums(12))
KINDS = {  # {file name: what is in it}
    "lines.jsonl": LINES,
    "mark.jsonl": "\ufeff" + LINES,
    "windows.jsonl": LINES.replace("\n", "\r\n"),
    "blank.jsonl": LINES.replace("\n", "\n\n  \n"),
    "no-newline.jsonl": LINES.strip(),
    "array.json": ARRAY,
    "array.jsonl": "\ufeff\n " + json.dumps(sums(12), indent=1),
    "array-of-lines.json": ARRAY.replace("}, ", "},\n"),
    "pretty.jsonl": "\n".join(json.dumps(row, indent=2) for row in sums(12)),
    "lines.jsonl.gz": gzip.compress(LINES.encode()),
    "packed.jsonl": gzip.compress(b"\xef\xbb\xbf" + ARRAY.encode()),
    "comma.csv": table(","),
    "semicolon.csv": "\ufeff" + table(";").replace("\n", "\r\n"),
    "tab.tsv": table("\t"),
    "comma.csv.gz": gzip.compress(table(",").encode()),
    "csv.jsonl": table(","),
    "capitals.CSV": table(",", "Answer", "Question", "Note"),
    "capitals.txt": table("|", "Final Answer", " PROMPT ", "Note"),
    "excel.csv": "\ufeffsep=;\r\n\r\n" + table(";"),
    "capitals.JSONL": made(lambda q, a: {"Problem": q, "ANSWER": a, "Solution": None, "Id": 1}),
    "data.json": json.dumps({"version": 2, "licenses": [{"name": "MIT"}], "data": sums(12), "empty": []}),
    "pretty-data.json": json.dumps({"examples": sums(12)}, indent=2),
    "splits.json": json.dumps(
        {"data": {"train": sums(12)[:10], "Test": [sums(12)[10]], "val": sums(12)[11:]}}
    ),
    "columns.json": json.dumps({name: [row[name] for row in sums(12)] for name in ("prompt", "answer")}),
    "pandas.json": json.dumps(
        {name: {n: row[name] for n, row in enumerate(sums(12))} for name in ("prompt", "answer")}
    ),
    "by-id.json": json.dumps({f"q{n}": row for n, row in enumerate(sums(12))}),
    "int.jsonl": made(lambda q, a: {"prompt": q, "answer": int(a)}),
    "float.jsonl": made(lambda q, a: {"prompt": q, "answer": float(a)}),
    "list.jsonl": made(lambda q, a: {"prompt": q, "answer": [a, a]}),
    "dollars.jsonl": made(lambda q, a: {"prompt": q, "answer": f" ${a}$"}),
    "hash.jsonl": made(lambda q, a: {"prompt": q, "answer": f"#### {a}"}),
    "boxes.jsonl": made(lambda q, a: {"prompt": q, "answer": box(a)}),
    "null.jsonl": made(
        lambda q, a: {
            "prompt": q,
            "answer": a,
            "hint": None,
            "solution": None,
            "split": None,
            "horizon": None,
        }
    ),
    "empty.jsonl": made(lambda q, a: {"prompt": q, "answer": a, "hint": "", "solution": " ", "split": ""}),
    "turns.jsonl": made(lambda q, a: {"prompt": turns(q), "answer": a}),
    "parts.jsonl": made(lambda q, a: {"prompt": turns([{"type": "text", "text": q}]), "answer": a}),
    "messages.jsonl": made(lambda q, a: {"messages": turns(q, box(a)), "source": "x"}),
    "sharegpt.jsonl": made(
        lambda q, a: {"conversations": [{"from": "human", "value": q}, {"from": "gpt", "value": box(a)}]}
    ),
    "gsm8k.jsonl": made(lambda q, a: {"question": q, "answer": f"Add.\n#### {a}"}),
    "math.jsonl": made(lambda q, a: {"problem": q, "level": "Level 1", "solution": f"So $1=1$, ${box(a)}$."}),
    "openr1.jsonl": made(
        lambda q, a: {"problem": q, "solution": "Add.", "answer": a, "messages": turns(q, "?"), "uuid": "1"}
    ),
    "dapo.jsonl": made(
        lambda q, a: {"prompt": turns(dapo(q)), "reward_model": {"ground_truth": a, "style": "rule"}}
    ),
}


@mutant(
    "a byte order mark is text",
    "plainrl/files.py",
    'place, "rt", encoding="utf-8-sig"',
    'place, "rt", encoding="utf-8"',
)
@mutant(
    "packed files by name alone", "plainrl/files.py", 'magic[:2] == b"\\x1f\\x8b"', 'path.endswith(".gz")'
)
@mutant(
    "null is a value",
    "plainrl/files.py",
    'if row.get(names["horizon"]) is None',
    'if names["horizon"] not in row',
)
@mutant(
    "the first box of a solution", "plainrl/files.py", "text, last_boxed(text)", "text, text.split('$')[1]"
)
@mutant(
    "names as they are spelt",
    "plainrl/files.py",
    "first.setdefault(key, field) if key in plain else None",
    "field if field in used else None",
)
@mutant(
    "one object is one problem",
    "plainrl/files.py",
    "prompts, path) if len(entries) == 1 else None",
    "prompts, path) if not entries else None",
)
@mutant("DAPO asks for a line", "plainrl/files.py", 'DAPO_REQUEST.sub("", prompt)', "prompt")
@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_file(tmp_path, name):
    """Catches a file as people have them that is refused, or of which something else is read."""
    task = load(tmp_path, KINDS[name], name)
    assert {(problem.prompt, problem.answer) for problem in all_problems(task)} == {
        (f"{row['prompt']} {BOXED_INSTRUCTION}", row["answer"]) for row in sums(12)
    }
    assert {split: len(members) for split, members in task.problems.items()} == {
        "train": 10,
        "dev": 1,
        "test": 1,
    }
    assert all(problem.horizon == 1 and problem.hint is None for problem in all_problems(task))


def test_a_parquet_file(tmp_path, monkeypatch):
    """Catches columns that are lost or all loaded, and a missing package without the way to install it."""
    rows = [{"question": row["prompt"], "answer": row["answer"]} for row in sums(12)]
    asked = []

    class ParquetFile:
        schema_arrow = SimpleNamespace(names=["question", "answer", "generations"])

        def __init__(self, path):
            asked.append(path.name)

        def iter_batches(self, size, columns):
            asked.append(columns)
            return [SimpleNamespace(to_pylist=lambda part=part: part) for part in (rows[:8], rows[8:])]

    parquet = SimpleNamespace(ParquetFile=ParquetFile)
    monkeypatch.setitem(sys.modules, "pyarrow", SimpleNamespace(parquet=parquet, __path__=[]))
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", parquet)
    task = load(tmp_path, b"PAR1....", "my.parquet")
    assert asked == ["my.parquet", ["question", "answer"]] and task.name == "my"
    assert sorted(int(problem.answer) for problem in all_problems(task)) == list(range(1, 13))
    assert "'generations'" in message(load, tmp_path, b"PAR1", "my.parquet", "?answer=final")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert message(load, tmp_path, b"PAR1", "my.parquet").endswith("run: pip install pyarrow")


def test_home_folder_and_odd_paths(tmp_path, monkeypatch):
    """Catches a home folder that is not found, and a question mark or a name of a setting in a path that
    starts settings."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("mine.jsonl", "what?.jsonl", "horizon=1.jsonl"):
        (tmp_path / name).write_text(LINES)
        assert load_task(f"jsonl:~/{name}").size("all") == 12
    assert load_task("jsonl:~/what?.jsonl?hint=&horizon=1").base.size("all") == 12


@mutant(
    "the folder in the name of a file", "plainrl/files.py", "without_gz(Path(path).name)", "without_gz(path)"
)
def test_the_files_name_is_the_tasks_name(tmp_path):
    """Catches a name that is no folder, a metric key with a slash, and one that is the embedded world's."""
    names = {
        "a/b.jsonl": "b",
        "my sums?.v2.json.gz": "my-sums-.v2",
        "chain.jsonl": "chain-file",
        "...": "file",
    }
    names |= {"math500.csv": "math500-file", "日本.jsonl": "file", "x.parquet": "x", "-f.jsonl": "f"}
    assert {path: files.name_of(path) for path in names} == names
    assert load(tmp_path, LINES, "own sums.jsonl").name == "own-sums"


# --- fields -------------------------------------------------------------------------------------------------


@mutant(
    "a box that is shown asks for one",
    "plainrl/files.py",
    "ASKS_FOR_A_BOX.search(question)",
    '"boxed" in question',
)
def test_all_fields_are_read(tmp_path):
    """Catches a prompt, answer, hint or solution that is lost, a request for a box added twice, one left out
    because the question shows a box, and a line end inside a text."""
    first = {"prompt": "Half of 5?", "answer": " 5/2 ", "hint": "Divide.", "solution": "5/2\n\\boxed{5/2}"}
    asked = ["How many? Use \\boxed{}.", "Put it in \\boxed{your answer}, please.", "Write \\boxed with it."]
    rows = [first, *({"prompt": text, "answer": 42} for text in asked), ""]
    rows += ['{"prompt": "x\u2028y", "answer": "1", "id": 7}', {"prompt": "Why \\boxed{7}?", "answer": "2"}]
    task = load(tmp_path, rows)
    half, *many, separated, shown = all_problems(task)
    assert half == Problem(
        "Half of 5? Put the final answer in \\boxed{}.",
        "5/2",
        "Divide.",
        "5/2\n\\boxed{5/2}",
        source=str(tmp_path / "mine.jsonl"),
    )
    assert [(p.prompt, p.answer, p.hint) for p in many] == [(text, "42", None) for text in asked]
    assert separated.prompt.startswith("x\u2028y")  # a separator that str.splitlines would cut at
    assert shown.prompt == f"Why \\boxed{{7}}? {BOXED_INSTRUCTION}"
    assert task.grade(box("2.5"), half).correct and not task.grade(box("2"), half).correct


@mutant(
    "other names are ignored",
    "plainrl/files.py",
    "find(name) for field, name in given.items()}",
    "find(name) for field, name in ()}",
)
def test_fields_of_other_names(tmp_path, capsys):
    """Catches a setting that does not reach its field, one inside another that is not found, and an empty
    name that leaves nothing out."""
    row = {
        "q": "1+1?",
        "meta": {"gold": 2, "part": "val"},
        "plan": "Add.",
        "how": "So \\boxed{2}.",
        "hint": 5,
    }
    names = "?prompt=q&answer=meta.gold&hint=plan&solution=how&split=meta.part"
    task = load(tmp_path, [row], settings=names)
    [problem] = task.problems["dev"]
    assert (problem.answer, problem.hint, problem.solution) == ("2", "Add.", "So \\boxed{2}.")
    assert "mine: the prompt is 'q' and the answer 'meta.gold'\n" in capsys.readouterr().out
    without = load(tmp_path, [row], settings="?prompt=q&answer=how&hint=&solution=&split=")
    [problem] = without.problems["train"]
    assert (problem.answer, problem.hint) == ("2", None)
    bare = load(tmp_path, [{"prompt": "1+1?", "solution": "2"}], settings="?answer=solution")
    assert all_problems(bare)[0].answer == "2"


@mutant("the last of two fields wins", "plainrl/files.py", "clashes.setdefault(same, spellings)", "pass")
def test_two_fields_that_fit(tmp_path):
    """Catches a field that wins in silence over another of its name, be it in another spelling, a choice in
    --task that does not decide, and a refusal because of fields that nothing is read from."""
    row = "What is 1+1?,2,3\n"
    which = "mine.csv: which field is the answer? there are "
    both, choose = "'Answer', 'answer'", "; say ?answer=FIELD, spelt as in the file, or rename one"
    for header, said in (
        ("Prompt,Answer,Answer", "'Answer', 'Answer'; rename one"),
        ("prompt,answer,answer", "'answer', 'answer'; rename one"),
        ("Prompt,Answer,answer", both + choose),
    ):
        assert message(load, tmp_path, f"{header}\n{row}", "mine.csv").endswith(which + said)
    said = message(load, tmp_path, f"prompt,Gold,Gold\n{row}", "mine.csv", "?answer=Gold")
    assert said.endswith(which + "'Gold', 'Gold'; rename one")
    assert both in message(load, tmp_path, "prompt,Answer,answer\n1+1?,,2\n1+2?,3,\n", "mine.csv")
    for name, answer in (("Answer", "2"), ("answer", "3")):
        task = load(tmp_path, f"Prompt,Answer,answer\n{row}", "mine.csv", f"?answer={name}")
        assert all_problems(task)[0].answer == answer
    for header, settings in (("Prompt,Answer,note,note,,", ""), ("Prompt,Answer,hint,Hint", "?hint=")):
        assert load(tmp_path, f"{header}\n{row}", "mine.csv", settings).size("all") == 1
    twice = {"Prompt": "a", "PROMPT": "b", "answer": "1"}
    assert "which field is the prompt? there are 'Prompt', 'PROMPT'; say ?prompt=FIELD" in message(
        load, tmp_path, [*sums(12), twice]
    )
    [problem] = all_problems(load(tmp_path, [twice], settings="?prompt=PROMPT"))
    assert problem.prompt.startswith("b ")
    said = message(load, tmp_path, '{\n"prompt": "a",\n"answer": "1",\n"answer": "2"\n}')
    assert said.endswith("line 1: the object that begins here is no JSON (the field 'answer' is there twice)")
    first = '{"prompt": "a", "answer": "1", "answer": "2"}'
    assert load(tmp_path, [first, *sums(12)]).size("all") == 12
    inner = [{"prompt": "a", "Meta": {"gold": "1"}, "meta": {"gold": "2"}}]
    assert all_problems(load(tmp_path, inner, settings="?answer=meta.gold"))[0].answer == "2"
    horizons = {"prompt": "a", "answer": "1", "horizon": 1, "Horizon": 2}
    assert message(load, tmp_path, [horizons]).endswith("there are 'horizon', 'Horizon'; rename one")


def test_names_are_said_as_the_file_has_them(tmp_path, capsys):
    """Catches a message with a name that is not in the file, and lines that spell a field in another way."""
    table = "ID,Prompt,Final Answer,Horizon\n1,What is 1+1?,2,1\n2,What is 1+2?,,x\n"
    said = message(load, tmp_path, table, "mine.csv", "?prompt=Question")
    assert said.endswith(
        "no line has a field 'Question'; there are 'ID', 'Prompt', 'Final Answer', 'Horizon'"
    )
    load(tmp_path, table, "mine.csv")
    said = capsys.readouterr().out
    assert "mine: the prompt is 'Prompt' and the answer 'Final Answer'\n" in said
    assert "line 3: field 'Final Answer' is missing or empty\n" in said
    load(tmp_path, table.replace("1+2?,", "1+2?,3"), "mine.csv", "?answer=final_answer")
    assert "line 3: field 'Horizon' must be" in capsys.readouterr().out
    rows = [{"Question": "a", "ANSWER": "#### 1"}, {"question": "b", "Answer": "2", "Split": "dev"}]
    assert "line 2: field 'Split' is new here" in message(load, tmp_path, rows)
    assert load(tmp_path, rows, settings="?split=").size("all") == 2
    assert "the prompt is 'Question' and the answer 'ANSWER', GSM8K's names\n" in capsys.readouterr().out


def test_the_screen_says_whose_names_they_are(tmp_path, capsys):
    """Catches fields that were guessed in silence."""
    said = {"gsm8k": "GSM8K's", "math": "MATH's", "openr1": "OpenR1's", "dapo": "DAPO-17k's"}
    for name, whose in said.items():
        load(tmp_path, KINDS[f"{name}.jsonl"], f"{name}.jsonl")
        assert f", {whose} names\n" in capsys.readouterr().out
    load(tmp_path, LINES)
    assert capsys.readouterr().out == "mine: 12 problems: 10 train, 1 dev, 1 test\n"


def test_a_file_of_gsm8k_is_what_the_task_gsm8k_makes_of_it(tmp_path):
    """Catches a worked answer whose notes stay, whose solution or whose program for chains is lost."""
    worked = "Half: 1846/2=<<1846/2=923>>923. All: 1846+923=<<1846+923=2769>>2769.\n#### 2,769"
    question = "Ann sold 1846 cups, then half as many. Together?"
    [problem] = load(tmp_path, [{"question": question, "answer": worked}]).problems["train"]
    assert problem == Problem(
        **vars(gsm8k_problem(question, worked, "")) | {"source": str(tmp_path / "mine.jsonl")}
    )
    assert problem.program == "x+(x/2)" and problem.solution.endswith("\n\\boxed{2769}")


@mutant("the first question of a chat", "plainrl/files.py", "said[asked[-1]][1]", "said[asked[0]][1]")
@mutant("no system turn", "plainrl/files.py", '"\\n\\n".join([*system, said', '"\\n\\n".join([said')
def test_chats(tmp_path, capsys):
    """Catches another turn than the last question and its reply, and a system turn that is lost in
    silence."""
    long = turns("1+1?", box("2")) + turns("And 1+2?", f"So {box('3')}.")
    rows = [
        {"messages": long},
        {"messages": [{"role": "system", "content": "Be short."}, *turns("1+3?", box("4"))]},
    ]
    last, short = all_problems(load(tmp_path, rows))
    assert (last.prompt, last.answer) == (f"And 1+2? {BOXED_INSTRUCTION}", "3")
    assert last.solution == "So \\boxed{3}."
    assert (short.prompt, short.answer) == (f"Be short.\n\n1+3? {BOXED_INSTRUCTION}", "4")
    said = capsys.readouterr().out
    assert "mine: prompts that begin with the system turn of their chat: 1\n" in said
    assert "mine: prompts without the turns before the last question of their chat: 1\n" in said


def test_numbers_and_cells(tmp_path):
    """Catches 72.0 for a whole number, a decimal that is rounded, and a horizon that a table cannot give."""
    rows = [{"prompt": f"{n}?", "answer": n} for n in (0.5, 72.0, -3, True)]
    assert [problem.answer for problem in all_problems(load(tmp_path, rows))] == ["0.5", "72", "-3", "true"]
    cells = 'prompt,answer,Horizon\n"Two\nlines, and ""quotes""",5,2\nplain,6,\n'
    two, one = all_problems(load(tmp_path, cells, "mine.csv"))
    assert two.prompt.startswith('Two\nlines, and "quotes"') and (two.horizon, one.horizon) == (2, 1)


# --- what cannot be used ------------------------------------------------------------------------------------


BAD_LINES = [
    ("{'prompt': 'a', 'answer': '1'}", "not valid JSON"),
    ('{"prompt": "a"', "not valid JSON"),
    ('{"prompt": "a", "answer": ' + "1" * 5000 + "}", "not valid JSON"),  # too long for Python
    ("[" * 100_000, "not valid JSON"),  # too deep for Python
    ('{"prompt": "a", "answer": "1", "answer": "2"}', "not valid JSON (the field 'answer' is there twice)"),
    ('["a", "1"]', "expected an object"),
    ('"a"', "expected an object"),
    ("5", "expected an object, found '5'"),
    ({"question": "a", "answer": "1"}, "field 'prompt' is missing"),
    ({"prompt": "a"}, "field 'answer' is missing"),
    ({"prompt": 5, "answer": "1"}, "field 'prompt' must be a text or a list of turns"),
    ({"prompt": " ", "answer": "1"}, "field 'prompt' is missing or empty"),
    ({"prompt": ["a"], "answer": "1"}, "field 'prompt' must be a text or a list of turns"),
    ({"prompt": [{"role": "user"}], "answer": "1"}, "field 'prompt' has a turn without"),
    ({"prompt": [{"role": "system", "content": "a"}], "answer": "1"}, "has no turn of the user"),
    ({"prompt": "a", "answer": ""}, "field 'answer' is missing or empty"),
    ({"prompt": "a", "answer": None}, "field 'answer' is missing or empty"),
    ('{"prompt": "a", "answer": NaN}', "field 'answer' has no answer: it must be"),
    ({"prompt": "a", "answer": ["1", "2"]}, "it must be a text or a number, not a list of 2"),
    ({"prompt": "a", "answer": {"gold": "2"}}, "; ?answer=answer.NAME reads one of 'gold'"),
    ({"prompt": "a", "answer": turns("1+1?")}, "field 'answer' has no answer: it must be"),
    ({}, "field 'prompt' is missing"),
    ({"prompt": "a", "answer": "so ####"}, "field 'answer' has no answer after ####"),
    ({"prompt": "a", "answer": "1", "hint": ["b"]}, "field 'hint' must be a text; ?hint= leaves it out"),
    ({"prompt": "a", "answer": "1" * 1001}, "field 'answer' is longer than 1,000 characters"),
    ('{"prompt": "\\ud800", "answer": "1"}', "half of a character"),
    ({"prompt": "a", "answer": "\\frac{1}{"}, "field 'answer' ('\\\\frac{1}{') "),
    ({"prompt": "a", "answer": "?\x1b?"}, "field 'answer' ('?\\x1b?') "),
    *(({"prompt": "a", "answer": "1", "horizon": h}, "'horizon' must be") for h in ("2", 0, 1.5, True)),
]


@mutant(
    "one bad line is passed over in silence",
    "plainrl/files.py",
    '    lines += [f"left out, ',
    '    lines = lines or [f"left out, ',
)
@mutant("the text of a stranger as it is", "plainrl/files.py", "return ascii(text if", "return str(text if")
def test_a_line_that_cannot_be_used_is_left_out_and_named(tmp_path, capsys):
    """Catches a bad line that is rewarded with 0 for ever, one that costs the whole file, one without its
    number or reason, and a stranger's text that reaches the terminal as it is."""
    for line, reason in BAD_LINES:
        task = load(tmp_path, [{"prompt": "fine", "answer": "2"}, "", line, *sums(12)])
        assert task.size("all") == 13, line
        shown = capsys.readouterr().out
        assert "mine: left out, 1 of 14 lines cannot be used: line 3: " in shown and reason in shown, line
        assert "\x1b" not in shown and len(shown.splitlines()) == 2
    load(tmp_path, [*(["x"] * 7), *sums(8)])
    shown = capsys.readouterr().out.splitlines()[-1]
    assert "7 of 15" in shown and shown.count(": line ") + shown.count("; line ") == 5


@mutant(
    "half a file is enough to go on",
    "plainrl/files.py",
    "2 * len(unusable) > total",
    "len(unusable) == total",
)
def test_a_file_of_which_more_than_half_is_bad_is_refused(tmp_path):
    """Catches a run on the few lines that happen to be readable, and a refusal that does not say why."""
    path, good = tmp_path / "mine.jsonl", sums(3)
    assert load(tmp_path, [*good, "x", "x", "x"]).size("all") == 3
    said = message(load, tmp_path, ["", *good, "x", "x", "x", "y"])
    assert said.startswith(f"{path}, line 5: not valid JSON (") and said.endswith(
        "(4 of 7 lines cannot be used)"
    )
    said = message(load, tmp_path, json.dumps([*good, 1, 2, 3, 4]), "mine.json")
    assert said.startswith(f"{tmp_path}/mine.json, entry 4: expected an object, found '1'")
    said = message(load, tmp_path, "prompt,answer\n1+1?,2,3\n1+2?,3,4\n", "mine.csv")
    assert said.startswith(f"{tmp_path}/mine.csv, line 2: has 3 cells under a header of 2")


def test_a_file_without_the_fields_says_what_it_has(tmp_path):
    """Catches a refusal that names neither what is there nor the way out."""
    said = message(load, tmp_path, [{"text": "1+1?", "gold": "2"}])
    assert (
        "which field is the prompt and which field is the answer? there are 'text', 'gold'; say ?prom" in said
    )
    assert "which field is the answer? there are none;" in message(load, tmp_path, [{}, "x"])
    said = message(load, tmp_path, [{"prompt": "1+1?", "gold": "2"}])
    assert said.endswith(
        "which field is the answer? there are 'prompt', 'gold'; say ?answer=FIELD after the path"
    )
    said = message(load, tmp_path, sums(3), "mine.jsonl", "?answer=final")
    assert said.endswith("mine.jsonl: no line has a field 'final'; there are 'prompt', 'answer'")
    said = message(load, tmp_path, [{f"f{n}\n": n for n in range(30)}])
    assert "'f0\\n', " in said and "and 10 more" in said
    said = message(load, tmp_path, [{"problem": "1+1?", "solution": "2"}])
    assert "field 'solution' has no \\boxed{} with the answer (bare ones: ?answer=solution)" in said


def test_a_file_that_cannot_be_read(tmp_path):
    """Catches a traceback for a missing file, a folder, a file that is no text, and one that is cut off."""
    (tmp_path / "latin.jsonl").write_bytes(b'{"prompt": "caf\xe9", "answer": "1"}\n')
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(LINES.encode())[:60])
    (tmp_path / "book.xlsx").write_bytes(b"PK\x03\x04\x14\x00")
    for name in ("missing.jsonl", "latin.jsonl", "cut.jsonl.gz", "book.xlsx"):
        path = str(tmp_path / name)
        assert f"--task jsonl:{path}: cannot read the file" in message(load_task, f"jsonl:{path}")
    said = message(load_task, f"jsonl:{tmp_path}")
    assert "is a folder; name a file in it: there are 'book.xlsx', 'cut.jsonl.gz', 'latin.jsonl'" in said
    assert "settings are prompt=, answer=" in message(load_task, f"jsonl:{tmp_path}/no.jsonl?colour=red")
    assert message(load, tmp_path, "") == f"{tmp_path}/mine.jsonl: holds no problem"
    said = message(load, tmp_path, '[{"prompt": "a", "answer": "1"},\n{"prompt": "b"\n]', "cut.json")
    assert f"{tmp_path}/cut.json: not valid JSON (" in said and "line 3" in said and "like one array" in said
    assert "no line is an object; write JSON lines" in message(load, tmp_path, "1+1? 2\n", "sums.txt")
    lists = {"easy": sums(2), "hard": sums(2)}
    assert "which are the problems? there are 'easy', 'hard';" in message(load, tmp_path, json.dumps(lists))
    uneven = json.dumps({"prompt": ["1+1?", "1+2?"], "answer": ["2"]})
    assert "columns differ in length: 'prompt' 2, 'answer' 1" in message(load, tmp_path, uneven)
    said = message(load, tmp_path, '{\n"prompt": "a",\n"answer": "1"\n}\n\n{\n"prompt": "b"\n"answer": 2}')
    assert f"{tmp_path}/mine.jsonl, line 6: the object that begins here is no JSON" in said
    assert message(load_task, "my.jsonl").endswith("if it is a file, write --task jsonl:my.jsonl")


@mutant(
    "the highest level is left out",
    "plainrl/files.py",
    "low <= int(found[2]) <= high",
    "low <= int(found[2]) < high",
)
@mutant("levels are read from the first digit", "plainrl/files.py", r"(\D*)(\d{1,9})(?:", r"(\D*)(\d).*(?:")
@mutant("a level below zero is one above", "plainrl/files.py", r'r"(^|\W)[-−]$"', r'r"(^|\W)[-−]$(?!)"')
def test_levels(tmp_path, capsys):
    """Catches the hard half of MATH that is trained on whole, limits that are not within, and problems that
    go without a word."""
    levels = ["Level 1", "level-2", 3, "4", 5.0, "Level 10", "Level ?", None, "5 of 6", -3, "Level -2"] * 12
    rows = [row | {"level": level} for row, level in zip(sums(len(levels)), levels)]
    for settings, kept in (
        ("?level=3-5", {3, "4", 5.0}),
        ("?level=2", {"level-2"}),
        ("?level=10", {"Level 10"}),
    ):
        task = load(tmp_path, rows, settings=settings)
        wanted = {f"What is {n}+1? {BOXED_INSTRUCTION}" for n, level in enumerate(levels) if level in kept}
        assert {problem.prompt for problem in all_problems(task)} == wanted
        assert (
            f"left out by level={settings[7:]}, of 132 lines: {132 - len(wanted)}" in capsys.readouterr().out
        )
    assert len(all_problems(load(tmp_path, rows))) == 132
    broken = load(tmp_path, ["{", *rows[:33]], settings="?prompt=prompt&level=3-5")
    assert (
        len(all_problems(broken)) == 9 and "1 of 10 lines cannot be used: line 1" in capsys.readouterr().out
    )


def test_levels_that_are_not_there(tmp_path):
    """Catches a level that leaves nothing, a field that is missing, and a limit that is none."""
    rows = [row | {"level": "Level 1"} for row in sums(12)]
    for settings, said in (
        ("?level=3-5", "no level is within level=3-5; there are 'Level 1'"),
        ("?level=5-3", "level=5-3 goes down; write level=3-5"),
        ("?level=hard", "level=hard is no level; write level=3 or level=3-5"),
    ):
        text = message(load, tmp_path, rows, "mine.jsonl", settings)
        assert text.startswith("--task jsonl:") and said in text
    text = message(load, tmp_path, sums(12), "mine.jsonl", "?level=3")
    assert "level=3 needs a field 'level'; there are 'prompt', 'answer'" in text


# --- gold answers -------------------------------------------------------------------------------------------


@mutant(
    "one gold answer after the other",
    "plainrl/files.py",
    "ThreadPoolExecutor(WORKERS)",
    "ThreadPoolExecutor(1)",
)
@mutant(
    "the same gold answer again and again",
    "plainrl/files.py",
    "    hard = []\n    for text in golds:",
    "    hard = []\n    for text in [*golds, *golds]:",
)
def test_gold_answers_are_read_once_each_several_at_a_time(monkeypatch, capsys):
    """Catches one answer after the other, the same one twice, plain integers sent round, an answer that goes
    to another text, and a long wait in silence."""
    asked, busy, together = [], [], []

    def read_gold(text: str) -> tuple[str, str]:
        asked.append(text)
        busy.append(text)
        time.sleep(0.02)
        together.append(len(busy))
        busy.remove(text)
        return text.strip("$"), "" if "$" in text else "is no answer"

    monkeypatch.setattr(files, "read_gold", read_gold)
    monkeypatch.setattr(files, "SLOW_SECONDS", 0.1)
    texts = [f"${n}/7$" for n in range(20)] + ["proof"]
    golds = files.gold_answers(iter(texts * 3 + ["5"] * 100), "mine")
    assert max(together) == workers.WORKERS > 1 and sorted(asked) == sorted(texts)
    read = {f"${n}/7$": (f"{n}/7", "") for n in range(20)}
    assert golds == read | {"proof": ("proof", "is no answer"), "5": ("5", "")}
    shown = capsys.readouterr().out
    assert shown.count("\n") == 1 and shown.startswith("mine: ") and "of 21 gold answers are read" in shown


@mutant(
    "one form speaks for all its numbers", "plainrl/files.py", "else grading.gold_answer(text)", 'else ""'
)
@mutant("every number is asked for", "plainrl/files.py", 're.sub("[1-9]", "7", answer)', "answer")
def test_formulas_that_differ_in_their_digits_are_asked_once(monkeypatch):
    """Catches 46,000 formulas that are sent to a worker one by one, and one that is refused because another
    with its form cannot be read."""
    asked = []

    def is_readable(answer: str) -> bool:
        asked.append(answer)
        return answer in ("77\\sqrt{7}", "413_8")

    monkeypatch.setattr(grading, "is_readable", is_readable)
    files.is_readable_form.cache_clear()
    assert [files.read_gold(f"${n}\\sqrt{{{n % 9 + 1}}}$") for n in (12, 35)] == [
        ("12\\sqrt{4}", ""),
        ("35\\sqrt{9}", ""),
    ]
    assert asked == ["77\\sqrt{7}"]
    assert files.read_gold("413_8") == ("413_8", "") and files.read_gold("419_8")[1]  # there is no digit 9
    assert asked[1:] == ["777_7", "413_8", "419_8"]
    files.is_readable_form.cache_clear()


# --- splits -------------------------------------------------------------------------------------------------


def test_too_few_problems(tmp_path):
    """Catches an empty split that is trained or measured on; repeated lines are no further problems; `all`
    needs no splits."""
    task = load(tmp_path, [{"prompt": f"p{n % 9}", "answer": "1"} for n in range(40)])
    assert message(task.problem, "test", 0, 0).startswith(
        f"--task jsonl:{tmp_path}/mine.jsonl: its 37 problems leave nothing for test; give at least 10"
    )
    assert task.size("all") == 9 and task.size("dev") == 1 and task.size("train") == 36
    held_out = load(tmp_path, [row | {"split": "validation"} for row in sums(12)])
    said = message(held_out.problem, "train", 0, 0)
    assert "leave nothing for train; name it in the field split, or add ?split= to the path" in said


@mutant(
    "a word on nothing held out",
    "plainrl/files.py",
    'not splits["dev"] and not splits["test"]',
    "False",
)
@mutant(
    "splits without a problem are said", "plainrl/files.py", "splits.items() if members)", "splits.items())"
)
def test_a_file_that_is_only_measured_is_no_error(tmp_path, capsys):
    """Catches "0 dev, 0 test" on the screen, which reads like an error where a file is all for eval.py."""

    def said(rows):
        load(tmp_path, rows)
        return capsys.readouterr().out.splitlines()[0]

    way_out = "none is held out: eval.py measures all of them with --split all"
    assert said(sums(3)) == f"mine: 3 problems: 3 train; {way_out}"
    assert said([row | {"split": "train"} for row in sums(12)]) == f"mine: 12 problems: 12 train; {way_out}"
    assert said([row | {"split": "test"} for row in sums(3)]) == "mine: 3 problems: 3 test"
    assert said(sums(9)) == "mine: 9 problems: 8 train, 1 dev"
    assert said(sums(10)) == "mine: 10 problems: 8 train, 1 dev, 1 test"


@mutant("few problems without a word", "plainrl/run.py", "            say_if_few(self.task, args)\n", "")
@mutant(
    "word on few problems that nobody asks for",
    "plainrl/run.py",
    "min(asked, FEW_PROBLEMS)",
    "FEW_PROBLEMS",
)
@mutant("few problems are many", "plainrl/run.py", "FEW_PROBLEMS = 20", "FEW_PROBLEMS = 5")
def test_few_problems_to_measure_by_are_said(tmp_path, toy_model, capsys):
    """Catches a run that is measured on one problem without a word, and a word where no more were asked for,
    where there are enough, or where nothing is trained."""

    def said(count, **asked):
        load(tmp_path, sums(count))
        assert "to measure by" not in capsys.readouterr().out  # eval.py loads it too
        flags = {"eval_problems": 64, "test_problems": 128} | asked
        flags = quick_flags(toy_model, tmp_path / "run", task=f"jsonl:{tmp_path / 'mine.jsonl'}", **flags)
        with pytest.raises(SystemExit):
            grpo.main(grpo.Args(**flags, max_logprob_gap=1.0, plan=True))
        return [line for line in capsys.readouterr().out.splitlines() if "to measure by" in line]

    (line,) = said(12)
    assert line.startswith(
        "mine: few problems to measure by: 1 dev, 1 test; with fewer than 20, each weighs more"
    )
    assert line.endswith(
        "more are needed: in a file by more rows, or by a field split that says which they are"
    )
    assert said(12, eval_problems=1)[0].startswith("mine: few problems to measure by: 1 test; ")
    assert said(12, eval_problems=1, test_problems=1) == [] == said(200)
    assert "19 dev, 19 test" in said(190)[0]


@mutant("copies are measured", "plainrl/files.py", "return measured_once(splits)", "return splits")
def test_splits_are_disjoint(tmp_path):
    """Catches identical prompts on two sides or measured twice, a problem that is nowhere, and another share
    than a tenth for dev and test."""
    repeated = [{"prompt": f"What is {n}+1?", "answer": str(n + 1)} for n in (3, 9, 8, 8)]
    many = [{"prompt": f"p{n}", "answer": str(n)} for n in range(86)]
    task = load(tmp_path, repeated + many + many[:20] + repeated + sums(12))
    prompts = {split: {problem.prompt for problem in problems} for split, problems in task.problems.items()}
    assert len(set().union(*prompts.values())) == sum(map(len, prompts.values())) == 98
    assert {split: len(members) for split, members in prompts.items()} == {"train": 80, "dev": 9, "test": 9}
    assert [task.size(split) for split in ("train", "dev", "test", "all")] == [80 + 4 + 16 + 4, 9, 9, 98]


@mutant("no contradictions", "plainrl/files.py", "sum(len(found) > 1 for", "sum(len(found) > 9 for")
@mutant(
    "another spelling is a contradiction",
    "plainrl/files.py",
    "problem.answer if value is None else value",
    "problem.answer",
)
def test_copies_and_contradictions_are_counted(tmp_path, capsys):
    """Catches a file that says twice as much as it has, and one that says two things, in silence."""
    others = [{"prompt": f"What is {n}+1?", "answer": answer} for n, answer in ((0, "2"), (1, "2.0"))]
    load(tmp_path, sums(12) + sums(2) + others)
    assert capsys.readouterr().out.splitlines()[1:] == [
        "mine: problems with the prompt of another: 4; dev and test have each prompt once",
        "mine: prompts that come with different answers: 1",
    ]
    load(tmp_path, [row | {"split": split} for row in sums(3) for split in ("train", "dev", "dev", "test")])
    assert capsys.readouterr().out.splitlines() == [
        "mine: 9 problems: 3 train, 3 dev, 3 test",
        "mine: problems with the prompt of another: 9; dev and test have each prompt once",
        "mine: problems of dev and test that are in train as well: 6",
    ]


@mutant(
    "validation is no dev",
    "plainrl/files.py",
    '"valid", "val", "development"), "dev"',
    '"valid", "val", "development"), "test"',
)
@mutant(
    "lists of splits are one list",
    "plainrl/files.py",
    "row_of_split(row, name) if isinstance(row, dict)",
    "row if isinstance(row, dict)",
)
def test_splits_that_a_file_names(tmp_path):
    """Catches splits of a file that are dealt out anew, other spellings of them that are not known, and a
    file that names them for some lines."""
    names = {"dev": ("dev", "validation", "Valid"), "train": ("train", " TRAIN", "training")}
    names["test"] = ("test", "test", "testing")
    rows = [
        {"prompt": f"{split} {n}?", "answer": "1", "split": spelt}
        for split, spellings in names.items()
        for n, spelt in enumerate(spellings)
    ]
    task = load(tmp_path, rows)
    for split in names:
        assert [problem.prompt.split()[0] for problem in task.members(split)] == [split] * 3
    lists = {split: [row | {"split": None} for row in rows if split in row["prompt"]] for split in names}
    assert load(tmp_path, json.dumps(lists)).problems == task.problems
    plain, path = {"prompt": "p", "answer": "1"}, tmp_path / "mine.jsonl"
    assert message(load, tmp_path, [plain | {"split": "s\x1bft"}, *rows]) == (
        f"{path}, line 1: field 'split' is 's\\x1bft'; "
        "it must be train, dev (validation, valid, val) or test, or is left out by ?split="
    )
    assert f"{path}, line 2: field 'split' is new here" in message(load, tmp_path, [plain, *rows])
    assert f"{path}, line 10: field 'split' is missing; give it in every line or in none" in message(
        load, tmp_path, [*rows, plain]
    )
    assert load(tmp_path, [plain | {"split": "sft"}, *rows], settings="?split=").size("train") == 8


def test_horizons_of_a_file(tmp_path):
    """Catches the field horizon ignored, and a missing horizon that gives an empty task."""
    rows = [{"prompt": f"{h} {n}?", "answer": "1", "horizon": h} for n in range(10) for h in (1, 2)]
    task = load(tmp_path, rows)
    assert {task.at_horizon(2).problem(split, 0, 0).horizon for split in ("train", "dev", "test")} == {2}
    assert (
        message(task.at_horizon, 3) == f"--task jsonl:{tmp_path}/mine.jsonl: has no problem of horizon 3, "
        "only of 1, 2; horizon=1 in --task chains them"
    )
