"""Tests of plainrl/tasks.py and plainrl/sources.py: lists, datasets, reasoning-gym, their chains."""

import importlib
import json
import random
import re
import sys
from types import SimpleNamespace

import pytest
from mutants import mutant
from test_grading import box, message

from plainrl import workers
from plainrl.files import split_list
from plainrl.sources import BENCHMARKS, ChoiceTask, ComposedTask, ListTask, gsm8k_problem
from plainrl.tasks import Problem, first_problems, load_task


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """A busy machine must not turn a verdict into a timeout; the tests of the limit set their own."""
    monkeypatch.setattr(workers, "GRADE_SECONDS", 60.0)


# --- problems in memory ------------------------------------------------------------------------------------


@mutant(
    "one order for all epochs",
    "plainrl/sources.py",
    'random.Random(f"{seed}/{epoch}").sample',
    'random.Random(f"{seed}").sample',
)
@mutant(
    "an order kept for another seed",
    "plainrl/sources.py",
    "shuffled(len(problems), seed,",
    "shuffled(len(problems), 0,",
)
def test_list_task_order():
    """Catches an epoch that leaves out a training problem, one in the order of the epoch before, an order
    that is not by the seed, and a dev that is shuffled."""
    task = ListTask("mine", split_list([Problem(f"p{n}", str(n)) for n in range(50)], "here"))

    def epoch(number, seed):
        return [task.problem("train", 40 * number + i, seed).answer for i in range(40)]

    assert sorted(epoch(0, 5)) == sorted(epoch(1, 5)) == sorted(p.answer for p in task.problems["train"])
    assert epoch(0, 5) == epoch(0, 5) != epoch(1, 5) and epoch(0, 5) != epoch(0, 6)
    order = random.Random("5/1").sample(range(40), 40)  # that of the committed runs
    assert epoch(1, 5) == [task.problems["train"][i].answer for i in order]
    assert (
        [task.problem("dev", i, 5) for i in range(5)]
        == task.problems["dev"]
        == [task.problem("dev", i, 6) for i in range(5)]
    )


# --- gsm8k ------------------------------------------------------------------------------------------------


def test_gsm8k_problem():
    """Catches calculator notes left in the solution, and a final answer with its commas or outside of the
    box."""
    worked = "Each box holds 12*25=<<12*25=300>>300 nails.\nFour hold 4*300=<<4*300=1200>>1200.\n#### 1,200"
    problem = gsm8k_problem(" How many nails? ", worked, "here")
    assert problem.prompt == "How many nails? Put the final answer in \\boxed{}." and problem.answer == "1200"
    assert problem.solution == "Each box holds 12*25=300 nails.\nFour hold 4*300=1200.\n\\boxed{1200}"
    assert gsm8k_problem("Q", "It falls. #### -5 ", "here").answer == "-5"
    assert load_task("chain").grade(problem.solution, problem).correct


@pytest.mark.parametrize("answer", ["", "42", "#### ", "#### 4.5", "#### forty", "#### 42 apples", "### 42"])
def test_gsm8k_malformed_row(answer):
    """Catches a row without a whole number at its end that is not named."""
    assert (
        message(gsm8k_problem, "Q", answer, "train[7]")
        == "train[7]: field 'answer' does not end in '#### <integer>'"
    )


class Rows(list):
    def __init__(self, rows, columns: str = ""):
        super().__init__(rows)
        self.column_names = columns.split() or list(self[0])


def gsm8k_rows(train: int = 7473, test: int = 1319) -> dict:
    return {
        name: Rows({"question": f"{name} {n}", "answer": f"Think. #### {n}"} for n in range(count))
        for name, count in (("train", train), ("test", test))
    }


def fake_datasets(monkeypatch, result, path="openai/gsm8k", config="main") -> None:
    def load_dataset(*arguments, split):
        assert arguments == (path, config)
        if isinstance(result, Exception):
            raise result
        return result[split]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))


def test_gsm8k_splits(monkeypatch):
    """Catches one of the last 500 training rows (dev) that is trained on, and another test set than the
    published one."""
    fake_datasets(monkeypatch, gsm8k_rows())
    task = load_task("gsm8k")
    assert {split: len(problems) for split, problems in task.problems.items()} == {
        "train": 6973,
        "dev": 500,
        "test": 1319,
    }
    assert (
        task.problem("dev", 0, 0).prompt.startswith("train 6973 ")
        and task.problem("test", 3, 0).answer == "3"
    )
    assert task.problems["train"][-1].prompt.startswith("train 6972 ")


def test_gsm8k_that_is_not_as_published(monkeypatch):
    """Catches wrong row counts or columns that are not found at load, a failing download without the way out,
    and a missing package that is not named."""
    fake_datasets(monkeypatch, gsm8k_rows(test=1318))
    assert "openai/gsm8k has changed: it has 1318 rows in test instead of 1319" in message(load_task, "gsm8k")
    renamed = gsm8k_rows()
    renamed["train"].column_names = ["problem", "answer"]
    fake_datasets(monkeypatch, renamed)
    assert "openai/gsm8k has changed: it lacks the columns ['question']" in message(load_task, "gsm8k")
    fake_datasets(monkeypatch, ConnectionError("no route to host"))
    assert re.search(
        "needs a network or a local cache .*Offline, use --task chain.*no route", message(load_task, "gsm8k")
    )
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert (
        message(load_task, "gsm8k")
        == "--task gsm8k: needs a package that is not installed; run: pip install datasets"
    )


# --- benchmarks of the hub --------------------------------------------------------------------------------


ROWS = {  # a row of each, with the columns of its published card, and what it must become
    "math500": (
        {
            "problem": "Convert (0,3).",
            "solution": "",
            "answer": "\\left( 3, \\frac{\\pi}{2} \\right)",
            "subject": "Precalculus",
            "level": 2,
            "unique_id": "test/precalculus/807.json",
        },
        "Convert (0,3).",
        "\\left( 3, \\frac{\\pi}{2} \\right)",
    ),
    "aime24": (
        {"id": 60, "problem": "Find m+n.", "solution": "", "answer": "025", "url": "", "year": "2024"},
        "Find m+n.",
        "25",
    ),
    "aime25": ({"problem": "Find the angle.", "answer": "336^\\circ", "id": "19"}, "Find the angle.", "336"),
    "amc23": ({"id": 0, "answer": 27.0, "url": "", "question": "How many hours?"}, "How many hours?", "27"),
    "olympiadbench": (
        {
            "id": 1606,
            "question": "Find the power.",
            "solution": [""],
            "final_answer": ["$2^{1009}$"],
            "context": None,
            "is_multiple_answer": False,
            "unit": None,
            "error": None,
        },
        "Find the power.",
        "2^{1009}",
    ),
    "gsm_symbolic": (
        {
            "id": 0,
            "instance": 3,
            "question": "How many nails?",
            "answer": "12*2=<<12*2=24>>24\n#### 24",
            "original_id": 7,
            "original_question": "",
            "original_answer": "",
            "canary": "",
        },
        "How many nails?",
        "24",
    ),
    "mmlu_pro_math": (
        {
            "question_id": 1,
            "question": "What is 2+2?",
            "options": [" 3", "4", "5"],
            "answer": "B",
            "answer_index": 1,
            "cot_content": "",
            "category": "math",
            "src": "",
        },
        "What is 2+2?\nA. 3\nB. 4\nC. 5",
        "B",
    ),
}
ROWS |= {name: ROWS["gsm_symbolic"] for name in ("gsm_symbolic_p1", "gsm_symbolic_p2")}


def fake_benchmark(monkeypatch, name: str, rows: list[dict]) -> None:
    path, config, split, number, columns, make = BENCHMARKS[name]
    monkeypatch.setitem(BENCHMARKS, name, (path, config, split, len(rows), columns, make))
    fake_datasets(monkeypatch, {split: Rows(rows)}, path, config)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_benchmark_row_becomes_a_problem(monkeypatch, name):
    """Catches a column read wrongly, an answer left in its packing ('025', '$...$', '336^\\circ', '27.0',
    '#### 24')."""
    row, question, answer = ROWS[name]
    fake_benchmark(monkeypatch, name, [row])
    task = load_task(name)
    problem = task.problem("test", 0, 0)
    assert problem.prompt.startswith(question) and "\\boxed{}" in problem.prompt and problem.answer == answer
    assert task.size("test") == 1 and task.grade(f"So \\boxed{{{answer}}}.", problem).correct
    assert task.grader == "letter" or importlib.import_module(task.grader).same  # eval.py records it
    assert not task.grade("So \\boxed{1}.", problem).correct
    assert message(task.problem, "dev", 0, 0) == f"--task {name}: has no split 'dev'; it has test"


@pytest.mark.parametrize("name", BENCHMARKS)
def test_benchmark_that_is_not_as_published(monkeypatch, name):
    """Catches a changed number of rows, a column that is gone or a field of another kind that is not found at
    load and named."""
    path, config, split, number, columns, _ = BENCHMARKS[name]
    row = ROWS[name][0]
    fake_datasets(monkeypatch, {split: Rows([row])}, path, config)
    assert f"{path} has changed: it has 1 rows in {split} instead of {number}" in message(load_task, name)
    fake_datasets(monkeypatch, {split: Rows([row] * number, "id")}, path, config)
    assert f"{path} has changed: it lacks the columns {sorted(columns.split())}" in message(load_task, name)
    if name in ("aime24", "amc23", "gsm_symbolic"):
        fake_benchmark(monkeypatch, name, [row, row | {"answer": "one half"}])
        assert f"{path} has changed: row 1 of" in message(load_task, name)


def test_benchmark_counts_the_golds_that_it_cannot_read(monkeypatch, capsys):
    """Catches a share of problems that can hardly be solved, and nobody knows."""
    row = ROWS["math500"][0]
    fake_benchmark(monkeypatch, "math500", [row, row | {"answer": "\\text{Evelyn}"}, row | {"answer": "!!!"}])
    load_task("math500")
    assert re.search(
        r"math500: [12] of 3 gold answers cannot be read as numbers or formulas; only the same",
        capsys.readouterr().out,
    )


def test_mmlu_pro_math_is_its_math_part(monkeypatch):
    """Catches questions of other subjects in a measurement of mathematics."""
    row = ROWS["mmlu_pro_math"][0]
    fake_benchmark(monkeypatch, "mmlu_pro_math", [row, row | {"category": "law"}])
    assert load_task("mmlu_pro_math").size("test") == 1


BOXES = [
    ("B", "B"),
    ("(B)", "B"),
    ("\\text{B}", "B"),
    ("\\textbf{(B)}", "B"),
    ("B. 4", "B"),
    ("$B$", "B"),
    ("b", "B"),
    ("4", None),
    ("Because", None),
    ("I think", None),
    ("K", None),
    ("", None),
]


@pytest.mark.parametrize("box, parsed", BOXES)
def test_the_letter_in_the_box(box, parsed):
    """Catches a letter in a usual wrapping that is not seen, and a word or the option's text taken for
    one."""
    task = ChoiceTask("choice", {"test": [Problem("?", "B")]})
    grade = task.grade(f"\\boxed{{{box}}}", task.problem("test", 0, 0))
    assert (grade.parsed, grade.correct) == (parsed, parsed == "B")


# --- problems of other tasks, chained ---------------------------------------------------------------------


@pytest.fixture
def questions(tmp_path):
    """A file of 60 sums, 20 of them without a whole number to replace or to hand on."""
    rows = [
        {"prompt": f"What is {n} and {n + 7}?", "answer": str(2 * n + 7), "solution": "add"}
        for n in range(10, 50)
    ]
    rows += [{"prompt": f"Half of {2 * n + 1}?", "answer": f"{n}.5"} for n in range(10, 20)]
    rows += [{"prompt": f"Which letter? {'z' * n}", "answer": str(n + 2)} for n in range(10)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "sums.jsonl"


@mutant(
    "steps of the other splits",
    "plainrl/sources.py",
    "            members = self.members(split)\n            first",
    '            members = self.pool.members("all")\n            first',
)
def test_composed_list(questions, capsys):
    """Catches steps from another split, a first step that comes twice, a problem that is no pure function,
    and a silent loss."""
    spec = f"jsonl:{questions}?horizon=2-4"
    task, plain = load_task(spec), load_task(f"jsonl:{questions}")
    assert "\nsums: 40 of 60 problems can be chained, by an offset\n" in capsys.readouterr().out
    for split, sums in (("train", 32), ("dev", 4), ("test", 4)):
        answers = {
            match[1]: p.answer
            for p in plain.members(split)
            if (match := re.search(r"What is \d+ and (\d+)", p.prompt))
        }
        firsts = set()
        for index in range(sums):
            problem = task.problem(split, index, 3)
            assert problem == load_task(spec).problem(split, index, 3) and 2 <= problem.horizon <= 4
            second_numbers = re.findall(r"What is (?:\d+|\([U-Z][+-]\d+\)|[U-Z]) and (\d+)\?", problem.prompt)
            assert (
                len(set(second_numbers)) == problem.horizon and answers[second_numbers[-1]] == problem.answer
            )
            assert set(second_numbers) <= answers.keys() and problem.prompt.count("\\boxed") == 1
            assert (
                task.grade(box(problem.answer), problem).correct and not task.grade(box("1"), problem).correct
            )
            firsts.add(second_numbers[0])
        assert len(answers) == len(firsts) == sums == task.size(split)
    assert task.problem("train", 0, 3) != task.problem("train", 0, 4)
    assert "has no split 'sft'" in message(task.problem, "sft", 0, 0)


def test_composed_list_at_another_horizon(questions):
    """Catches a horizon that changes the task it came from, a horizon of 1 that is not the plain problem, and
    a pool run dry."""
    task = load_task(f"jsonl:{questions}?horizon=2")
    assert [task.at_horizon(h).problem("dev", 0, 0).horizon for h in (1, 3, 2)] == [1, 3, 2] and (
        task.low,
        task.high,
    ) == (2, 2)
    assert (
        task.at_horizon(1).problem("dev", 0, 0).prompt
        == load_task(f"jsonl:{questions}").problem("dev", 0, 0).prompt
    )
    assert "horizon=26 is not within 1 to 25" in message(task.at_horizon, 26)
    assert "cannot chain 5 of its problems in test" in message(task.at_horizon(5).problem, "test", 0, 0)
    (questions.parent / "words.jsonl").write_text(
        "".join(json.dumps({"prompt": f"{'z' * n}?", "answer": "a"}) + "\n" for n in range(20))
    )
    without_numbers = load_task(f"jsonl:{questions.parent / 'words.jsonl'}?horizon=1")
    assert "none of its problems in dev can be chained" in message(without_numbers.problem, "dev", 0, 0)


def test_problems_without_a_program_are_left_out_where_others_have_one(capsys):
    """Catches a GSM8K problem that is chained by an offset because its notes give no program that can be
    trusted."""
    rows = [
        gsm8k_problem(
            f"Ann has {n} cups, Bob {n + 100}.", f"<<{n}+{n + 100}={2 * n + 100}>>\n#### {2 * n + 100}", ""
        )
        for n in range(33, 45)
    ]
    rows += [
        gsm8k_problem(f"Ann has {n} cups and doubles them.", f"{2 * n}\n#### {2 * n}", "here")
        for n in range(33, 45)
    ]
    task = ComposedTask(ListTask("gsm8k", {"train": rows}), "3")
    assert capsys.readouterr().out == "gsm8k: 12 of 24 problems can be chained, by their programs\n"
    for index in range(24):
        problem = task.problem("train", index, 0)
        assert (
            "doubles" not in problem.prompt
            and "(U" not in problem.prompt
            and len(problem.solution.split("\n")) == 4
        )
    said = message(task.at_horizon(13).problem, "train", 0, 0)
    assert "or more problems with a whole number" in said and said.endswith("chained by an offset")


def test_composed_gym():
    """Catches an item whose answer is no number, a step of another split, and a label that the offset does
    not keep."""
    task = load_task("gym:basic_arithmetic?max_terms=2&horizon=2")
    for split in ("train", "test"):
        problem = task.problem(split, 0, 1)
        assert problem == task.problem(split, 0, 1) != task.problem(split, 1, 1) and problem.horizon == 2
        assert task.grade(box(problem.answer), problem).correct and "(U" in problem.prompt
    for horizon in (1, 5):  # also where a stretch of questions has none with a whole answer
        prompts = {task.at_horizon(horizon).problem("train", index, 0).prompt for index in range(200)}
        assert len(prompts) > 190


# --- the flag --task --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spec, said",
    [
        ("chain?horizon=0", "horizon=0 is not within 1 to 10"),
        ("chain?horizon=11", "horizon=11 is not within 1 to 10"),
        ("chain?horizon=5-2", "horizon=5-2 is not within 1 to 10"),
        ("chain?horizon=2-11", "horizon=2-11 is not within 1 to 10"),
        ("chain?horizon=x", "horizon=x is not a whole number"),
        ("chain?horizon=２", "horizon=２ is not a whole number"),
        ("chain?horizon=2.5", "horizon=2.5 is not a whole number"),
        ("chain?horizon=", "horizon= is not a whole number"),
        ("chain?horizon", "settings are written NAME?key=value&key=value"),
        ("chain?family=foo", "family=foo is not one of plain, reversed, mixed"),
        ("chain?style=foo", "style=foo is not one of short, h1"),
        ("chain?reward=foo", "reward=foo is not one of answer, prefix"),
        ("gsm8k?x=1", "--task gsm8k?x=1: unknown setting 'x'; known are horizon"),
        ("math500?hint=plan", "unknown setting 'hint'; known are horizon"),
        ("chain?name=foo", "unknown setting 'name'; known are horizon, family, style, reward"),
        ("chain?horizon=3&colour=red", "unknown setting 'colour'"),
    ],
)
def test_chain_bad_setting(spec, said):
    """Catches a refused setting that is not named, or without what it may be."""
    text = message(load_task, spec)
    assert text.startswith("--task") and said in text


@pytest.mark.parametrize("spec", ["", "chains", "gym", "math", "jsonl", "math?horizon=2"])
def test_unknown_task(spec):
    """Catches an unknown task without the flag, what was given and what there is."""
    assert message(load_task, spec).startswith(
        f"--task {spec}: unknown; use chain, countdown, orthogonal, esolang, box, geo, verdicts, "
        "jsonl:PATH, gym:NAME?key=value, gsm8k, math500"
    )


def test_load_task_passes_settings():
    """Catches settings of the flag that do not arrive."""
    task = load_task("chain?horizon=2-6&family=mixed&style=h1")
    assert (task.low, task.high, task.family, task.style, task.name) == (2, 6, "mixed", "h1", "chain")


@mutant(
    "tasks: the last of equal prompts",
    "plainrl/tasks.py",
    "by_prompt.setdefault(problem.prompt, (index, problem))",
    "by_prompt[problem.prompt] = (index, problem)",
)
@mutant(
    "tasks: more problems than there are", "plainrl/tasks.py", "min(asked or size, size)", "asked or size"
)
def test_the_problems_that_a_tool_works_on():
    """Catches an index beyond the last, a prompt that comes twice, and another number than was asked for."""

    class Letters:
        def problem(self, split, index, seed):
            return Problem("abac"[index % 4], str(index))

    class Few(Letters):
        def size(self, split):
            return 4

    found = {asked: first_problems(Few(), "train", asked, 0) for asked in (None, 2, 9)}
    assert found[9] == found[None] and found[None][0] == 4 and found[2][0] == 2
    assert {index: each.prompt for index, each in found[None][1].items()} == {0: "a", 1: "b", 3: "c"}
    assert [*found[2][1]] == [0, 1]
    assert first_problems(Letters(), "train", None, 0)[0] == 1000
    assert first_problems(Letters(), "train", 2500, 0)[0] == 2500
