"""Tests of plainrl/tasks.py and plainrl/sources.py: files, datasets, reasoning-gym, their chains."""

import dataclasses
import json
import pickle
import re
import sys
from types import SimpleNamespace

import pytest
from mutants import mutant
from test_grading import box, message

from plainrl import workers
from plainrl.chains import run_program
from plainrl.files import split_list
from plainrl.grading import is_error
from plainrl.sources import BENCHMARKS, ChoiceTask, ComposedTask, ListTask, gsm8k_problem
from plainrl.tasks import BOXED_INSTRUCTION, Grade, Problem, load_task
from plainrl.world import split_of


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """A busy machine must not turn a verdict into a timeout; the tests of the limit set their own."""
    monkeypatch.setattr(workers, "GRADE_SECONDS", 60.0)


# --- your own file ----------------------------------------------------------------------------------------


def write_jsonl(folder, rows: list, name: str = "mine.jsonl") -> str:
    """A file of 12 good problems in which the given rows (dicts, or lines as they are) come first."""
    rows = rows + [{"prompt": f"What is {n}+1?", "answer": str(n + 1)} for n in range(12)]
    path = folder / name
    path.write_text(
        "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n", encoding="utf-8"
    )
    return str(path)


def all_problems(task: ListTask) -> list[Problem]:
    return [problem for split in task.problems.values() for problem in split]


def test_jsonl_reads_all_fields(tmp_path):
    """Catches a prompt, answer, hint or solution that is lost, a request for a box added twice, and an
    integer that is no answer."""
    first = {"prompt": "Half of 5?", "answer": " 5/2 ", "hint": "Divide.", "solution": "5/2\n\\boxed{5/2}"}
    rows = [
        first,
        {"prompt": "How many? Use \\boxed{}.", "answer": 42},
        "",
        {"prompt": "x\u2028y", "answer": "1", "id": 7},
    ]
    path = write_jsonl(
        tmp_path, [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    )
    task = load_task(f"jsonl:{path}")
    half, many, separated = all_problems(task)[:3]
    assert half == Problem(
        "Half of 5? Put the final answer in \\boxed{}.", "5/2", "Divide.", "5/2\n\\boxed{5/2}", source=path
    )
    assert (many.prompt, many.answer, many.hint) == ("How many? Use \\boxed{}.", "42", None)
    assert separated.prompt.startswith("x\u2028y")  # a separator that str.splitlines would cut at
    assert task.grade(box("2.5"), half).correct and not task.grade(box("2"), half).correct


@pytest.mark.parametrize(
    "line, said",
    [
        ("{'prompt': 'a', 'answer': '1'}", "not valid JSON"),
        ('{"prompt": "a"', "not valid JSON"),
        ('{"prompt": "a", "answer": ' + "1" * 5000 + "}", "not valid JSON"),  # too long for Python
        ('["a", "1"]', "expected an object with the fields prompt and answer"),
        ({"question": "a", "answer": "1"}, "field 'prompt' is missing"),
        ({"prompt": "a"}, "field 'answer' is missing"),
        ({"prompt": 5, "answer": "1"}, "field 'prompt' must be a non-empty string"),
        ({"prompt": " ", "answer": "1"}, "field 'prompt' must be a non-empty string"),
        ({"prompt": "a", "answer": ""}, "field 'answer' must be a non-empty string"),
        ({"prompt": "a", "answer": None}, "field 'answer' must be a non-empty string"),
        ({"prompt": "a", "answer": True}, "field 'answer' must be a non-empty string"),
        ({"prompt": "a", "answer": ["1"]}, "field 'answer' must be a non-empty string"),
        ({"prompt": "a", "answer": "1", "hint": ["b"]}, "field 'hint' must be a non-empty string"),
        ({"prompt": "a", "answer": "1", "solution": ""}, "field 'solution' must be a non-empty string"),
        ({"prompt": "a", "answer": "\\frac{1}{"}, "field 'answer' ('\\\\frac{1}{') is no expression"),
        ({"prompt": "a", "answer": "???"}, "field 'answer' ('???') is no expression"),
        ({"prompt": "a", "answer": "see above:"}, "field 'answer' ('see above:') is no expression"),
        ({"prompt": "a", "answer": "1" * 1001}, "field 'answer' is longer than 1000 characters"),
    ],
)
def test_jsonl_names_file_line_and_field(tmp_path, line, said):
    """Catches a bad line that is rewarded with 0 for ever instead of named when the file is loaded."""
    path = write_jsonl(tmp_path, [{"prompt": "fine", "answer": "1/2"}, "", line])
    text = message(load_task, f"jsonl:{path}")
    assert text.startswith(f"{path}, line 3: ") and said in text


def test_jsonl_file_that_cannot_be_read(tmp_path):
    """Catches a traceback for a missing file, a folder or a file that is no text."""
    (tmp_path / "latin.jsonl").write_bytes(b'{"prompt": "caf\xe9", "answer": "1"}\n')
    for name in ("missing.jsonl", "", "latin.jsonl"):
        path = str(tmp_path / name)
        assert f"--task jsonl:{path}: cannot read the file" in message(load_task, f"jsonl:{path}")


def test_jsonl_byte_order_mark_and_odd_paths(tmp_path):
    """Catches a file of a Windows editor that is not read, and a question mark in a path that starts
    settings."""
    path = write_jsonl(tmp_path, ["\ufeff" + json.dumps({"prompt": "first", "answer": "1"})], "what?.jsonl")
    assert all_problems(load_task(f"jsonl:{path}"))[0].prompt.startswith("first")


def test_jsonl_with_too_few_problems(tmp_path):
    """Catches an empty split that is trained or measured on; repeated lines are no further problems; `all`
    needs no splits."""
    path = tmp_path / "few.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"p{n % 9}", "answer": "1"}) + "\n" for n in range(40)))
    task = load_task(f"jsonl:{path}")
    assert message(task.problem, "test", 0, 0).startswith(
        "--task jsonl: its 40 problems leave nothing for test; give at least 10"
    )
    assert task.size("all") == 40 and task.size("dev") == 4
    path.write_text("")
    assert message(load_task, f"jsonl:{path}") == f"{path}: holds no problem"


def test_list_splits_are_disjoint(tmp_path):
    """Catches identical prompts on two sides, a problem that is nowhere, and another share than a tenth for
    dev and test."""
    repeated = [{"prompt": f"What is {n}+1?", "answer": str(n + 1)} for n in (3, 9, 8, 8)]
    rows = repeated + [{"prompt": f"p{n}", "answer": str(n)} for n in range(86)] + repeated
    task = load_task(f"jsonl:{write_jsonl(tmp_path, rows)}")
    prompts = {split: {problem.prompt for problem in problems} for split, problems in task.problems.items()}
    assert len(set().union(*prompts.values())) == sum(map(len, prompts.values())) == 98
    assert {split: len(members) for split, members in prompts.items()} == {"train": 80, "dev": 9, "test": 9}
    assert len(all_problems(task)) == len(rows) + 12


def test_list_task_order():
    """Catches an epoch that leaves out a training problem, one in the order of the epoch before, an order
    that is not by the seed, and a dev that is shuffled."""
    task = ListTask("mine", split_list([Problem(f"p{n}", str(n)) for n in range(50)], "here"))

    def epoch(number, seed):
        return [task.problem("train", 40 * number + i, seed).answer for i in range(40)]

    assert sorted(epoch(0, 5)) == sorted(epoch(1, 5)) == sorted(p.answer for p in task.problems["train"])
    assert epoch(0, 5) == epoch(0, 5) != epoch(1, 5) and epoch(0, 5) != epoch(0, 6)
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
        r"math500: [12] of 3 gold answers are no expression to math-verify", capsys.readouterr().out
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
    ("b", None),
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


# --- reasoning-gym ----------------------------------------------------------------------------------------


SUMS = "gym:basic_arithmetic?min_terms=2&max_terms=2&min_digits=1&max_digits=2&operators=['+','-']"
SUMS += "&allow_negation=False"


@pytest.fixture
def gym():
    return pytest.importorskip("reasoning_gym")


def test_gym_settings_reach_the_task(gym):
    """Catches a number, a truth value or a list (with a plus sign) that arrives as a text, and a box not
    asked for."""
    task = load_task(SUMS)
    config = task.dataset(0).config
    assert (config.min_terms, config.operators, config.allow_negation) == (2, ["+", "-"], False)
    assert task.name == "gym-basic_arithmetic" and task.problem("dev", 0, 0).prompt.endswith(
        "\n" + BOXED_INSTRUCTION
    )
    for index in range(20):
        problem = task.problem("train", index, 0)
        expression = re.match(r"Calculate ([-+() 0-9]+)\.\n", problem.prompt)[1]
        assert int(problem.answer) == eval(expression) and len(re.findall("[0-9]+", expression)) == 2


def test_gym_problem_is_pure(gym):
    """Catches a problem that depends on the instance or the order of asking, and an index or seed that does
    not matter."""
    for spec in (SUMS, "gym:leg_counting", "gym:countdown"):
        first, second = load_task(spec), load_task(spec)
        problems = [first.problem("train", index, 3) for index in range(12)]
        assert [second.problem("train", index, 3) for index in reversed(range(12))] == problems[::-1]
        assert len({problem.prompt for problem in problems}) >= 11
        assert first.problem("train", 0, 4) != problems[0]
    assert first.problem("train", 10**7, 3).prompt  # there is no end to training


def test_gym_splits_share_no_question(gym):
    """Catches splits by position: there are only some thousand sums of two numbers, so they would overlap."""
    task = load_task(SUMS)
    questions = {
        split: {task.problem(split, i, seed).prompt for i in range(count) for seed in range(2)}
        for split, count in (("train", 500), ("dev", 60), ("test", 60))
    }
    assert not questions["train"] & questions["dev"] and not questions["train"] & questions["test"]
    assert not questions["dev"] & questions["test"] and min(map(len, questions.values())) > 50


def test_gym_scorer_in_the_worker(gym):
    """Catches math-verify in place of the scorer: countdown takes any expression that uses the numbers and
    reaches the target."""
    task = load_task("gym:countdown?min_numbers=3&max_numbers=3")
    problem = task.problem("train", 2, 1)
    target = str(run_program(problem.answer, 0))
    assert task.grade(f"So {box(f'({problem.answer})')}", problem) == Grade(
        True, 1.0, f"({problem.answer})", "correct"
    )
    assert task.grade(box(problem.answer + "+1"), problem).why == "wrong"
    assert task.grade(box(target), problem).why == "wrong"  # the same value, but not from the numbers given
    assert task.grade("nothing", problem) == Grade(False, 0.0, None, "no_box")
    assert task.grade("\\boxed{}", problem) == Grade(False, 0.0, None, "empty_box")
    assert task.grade(box("1" * 1001), problem) == Grade(False, 0.0, None, "too_long")


def test_gym_problem_of_another_process_can_be_graded(gym):
    """Catches a problem that only the instance that made it can grade: after a resume it is another one."""
    problem = pickle.loads(pickle.dumps(load_task(SUMS).problem("train", 5, 8)))
    fresh = load_task(SUMS)
    assert (
        fresh.grade(box(problem.answer), problem).correct
        and not fresh.grade(box(problem.answer + "0"), problem).correct
    )


def test_gym_question_that_differs_in_the_worker_is_an_error(gym):
    """Catches a silently wrong reward: some tasks depend on Python's hash seed, and another question's answer
    would be scored."""
    task = load_task(SUMS)
    verdict = task.grade(
        box("1"), dataclasses.replace(task.problem("train", 0, 0), prompt="another question")
    )
    assert is_error(verdict) and not verdict.correct and "PYTHONHASHSEED=0" in verdict.why


@pytest.mark.parametrize(
    "spec, said",
    [
        ("gym:no_such_task", "'no_such_task' not registered"),
        ("gym:leg_counting?colour=3", "unexpected keyword argument 'colour'"),
        ("gym:leg_counting?min_animals=0", "min_animals must be positive"),
        ("gym:leg_counting?seed=3", "multiple values for keyword argument 'seed'"),
        ("gym:leg_counting?min_animals", "settings are written NAME?key=value&key=value"),
    ],
)
def test_gym_bad_task_or_setting(gym, spec, said):
    """Catches a refusal without the flag or without reasoning-gym's reason."""
    text = message(load_task, spec)
    assert text.startswith(f"--task {spec}: ") and said in text


def test_gym_with_too_few_questions(gym):
    """Catches an endless search in a pool that has no question for some split."""
    task = load_task(f"{SUMS}&size=1")
    empty = {"dev", "test"} - {split_of(task.dataset(0)[0]["question"])}
    assert f"has too few different questions for 1 in {min(empty)}" in message(task.problem, min(empty), 0, 0)


def test_gym_never_asks_twice_in_dev_and_test(gym):
    """Catches a score over 200 problems of which half are the same question: seventeen sums of one digit
    would be met again and again. What is asked does not depend on the order of asking, and a pool that is
    used up says so."""
    spec = "gym:chain_sum?min_terms=2&max_terms=2&min_digits=1&max_digits=1"
    task, other = load_task(spec), load_task(spec)
    asked = []
    with pytest.raises(ValueError, match=r"has too few different questions for \d+ in test; ask for fewer"):
        for index in range(1000):
            asked.append(task.problem("test", index, 5).prompt)
    assert len(set(asked)) == len(asked) > 3
    assert [other.problem("test", index, 5).prompt for index in reversed(range(len(asked)))] == asked[::-1]


def test_gym_package_missing(monkeypatch):
    """Catches a missing package without the line that installs it."""
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    assert message(load_task, "gym:leg_counting").endswith("not installed; run: pip install reasoning-gym")


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
    assert capsys.readouterr().out == "jsonl: 40 of 60 problems can be chained, by an offset\n"
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


def test_list_with_splits(tmp_path):
    """Catches splits of a file that are dealt out anew, and a file that names them for some lines."""
    rows = [
        {"prompt": f"{split} {n}?", "answer": "1", "split": split}
        for split in ("dev", "train", "test")
        for n in range(3)
    ]
    path = tmp_path / "split.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = load_task(f"jsonl:{path}")
    assert all(
        {problem.prompt.split()[0] for problem in task.members(split)} == {split}
        for split in ("train", "dev", "test")
    )
    for change, said in (
        ({"split": "sft"}, "line 1: field 'split' must be train, dev or test"),
        ({}, "line 2: field 'split' is new here"),
    ):
        path.write_text(
            "".join(json.dumps(row) + "\n" for row in [{"prompt": "p", "answer": "1"} | change, *rows])
        )
        assert said in message(load_task, f"jsonl:{path}")
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"prompt": "p", "answer": "1"}]))
    assert "line 10: field 'split' is missing; give it in every line or in none" in message(
        load_task, f"jsonl:{path}"
    )


def test_list_with_horizons(tmp_path):
    """Catches the field horizon ignored, accepted in any form, and a missing horizon that gives an empty
    task."""
    rows = [{"prompt": f"{h} {n}?", "answer": "1", "horizon": h} for n in range(10) for h in (1, 2)]
    (tmp_path / "both.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = load_task(f"jsonl:{tmp_path / 'both.jsonl'}")
    assert {task.at_horizon(2).problem(split, 0, 0).horizon for split in ("train", "dev", "test")} == {2}
    assert (
        message(task.at_horizon, 3)
        == "--task jsonl: has no problem of horizon 3, only of 1, 2; horizon=1 in --task chains them"
    )
    for wrong in ("2", 0, 1.5, True):
        (tmp_path / "wrong.jsonl").write_text(json.dumps({"prompt": "p", "answer": "1", "horizon": wrong}))
        assert "line 1: field 'horizon' must be a whole number from 1" in message(
            load_task, f"jsonl:{tmp_path / 'wrong.jsonl'}"
        )


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
        ("gsm8k?x=1", "--task gsm8k?x=1: unknown setting 'x'; known are horizon"),
        ("math500?hint=plan", "unknown setting 'hint'; known are horizon"),
        ("chain?name=foo", "unknown setting 'name'; known are horizon, family, style"),
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
        f"--task {spec}: unknown; use chain, jsonl:PATH, gym:NAME?key=value, gsm8k, math500"
    )


def test_load_task_passes_settings():
    """Catches settings of the flag that do not arrive."""
    task = load_task("chain?horizon=2-6&family=mixed&style=h1")
    assert (task.low, task.high, task.family, task.style, task.name) == (2, 6, "mixed", "h1", "chain")
