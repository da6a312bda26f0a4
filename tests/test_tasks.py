"""Tests of tasks.py: grading, composed chains, the embedded world and the other sources of problems."""

import dataclasses
import doctest
import json
import os
import pickle
import random
import re
import shutil
import sys
import threading
import time
from collections import Counter
from fractions import Fraction
from queue import Queue
from types import SimpleNamespace

import pytest
from hypothesis import given, settings as example_settings, strategies as st

import tasks
from tasks import (
    ChainTask,
    Grade,
    ListTask,
    Problem,
    ask_worker,
    compose,
    grade_boxed,
    gsm8k_problem,
    is_error,
    load_task,
    run_program,
)

CHAIN = ChainTask()


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """A busy machine must not turn a verdict into a timeout; the tests of the limit set their own."""
    monkeypatch.setattr(tasks, "GRADE_SECONDS", 60.0)


def box(content: str) -> str:
    return f"\\boxed{{{content}}}"


def grade(completion: str, gold: str) -> Grade:
    return grade_boxed(completion, Problem(prompt="", answer=gold))


def live_workers() -> list:
    """Both grading workers, started if need be and idle."""
    for _ in range(2):  # the queue hands them out in turn
        assert ask_worker({"kind": "math", "gold": "0.5", "answer": "1/2"}) == (1.0, "")
    return list(tasks._workers.queue)


def message(call, *arguments) -> str:
    """The text of the ValueError that a call raises; it has to fit on one line of a terminal session."""
    with pytest.raises(ValueError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_doctests():
    """The examples in the docstrings are what the functions do."""
    result = doctest.testmod(tasks)
    assert result.attempted >= 3 and result.failed == 0


# --- grading ------------------------------------------------------------------------------------------------------------

MEGABYTE = 1_000_000
RIGHT, WRONG, NO_BOX, EMPTY_BOX, TOO_LONG = "correct", "wrong", "no_box", "empty_box", "too_long"
GRADES = [  # (completion, gold, why)
    # which box
    ("", "42", NO_BOX),
    ("42", "42", NO_BOX),
    ("The answer is 42.", "42", NO_BOX),
    ("\\boxed 42", "42", NO_BOX),
    ("\\boxed {42}", "42", NO_BOX),
    ("\\fbox{42}", "42", NO_BOX),
    ("boxed{42}", "42", NO_BOX),
    ("\\boxed{}", "42", EMPTY_BOX),
    ("\\boxed{  \n }", "42", EMPTY_BOX),
    ("\\boxed{}{42}", "42", EMPTY_BOX),
    ("\\boxed{42", "42", NO_BOX),
    ("\\boxed{42} no, \\boxed{43", "42", NO_BOX),  # the last box counts, and it has no content
    ("\\boxed{\\frac{1}{2}", "1/2", NO_BOX),
    ("A=6*7=42\n\\boxed{42}", "42", RIGHT),
    ("\\boxed{41} no, \\boxed{42}", "42", RIGHT),
    ("\\boxed{42} no, \\boxed{41}", "42", WRONG),
    ("\\boxed{41}\\boxed{42}\\boxed{}", "42", EMPTY_BOX),
    ("\\boxed{\\boxed{42}}", "42", RIGHT),
    ("\\boxed{42} apples, because } and { are brackets", "42", RIGHT),
    ("$$\\boxed{42}$$", "42", RIGHT),
    # plain integers
    (box("42"), "42", RIGHT),
    (box("43"), "42", WRONG),
    (box(" 42 "), "42", RIGHT),
    (box("\n42\n"), "42", RIGHT),
    (box("-42"), "42", WRONG),
    (box("-42"), "-42", RIGHT),
    (box("\u221242"), "-42", RIGHT),  # the minus sign of typesetting
    (box("-0"), "0", RIGHT),
    (box("+7"), "7", RIGHT),
    (box("007"), "7", RIGHT),
    (box("1,000"), "1000", RIGHT),
    (box("1,000"), "1,000", RIGHT),
    (box("1,00"), "100", WRONG),
    (box("0,123"), "123", WRONG),  # a decimal comma, if anything
    (box("1.000"), "1000", WRONG),
    (box("1{,}000"), "1000", RIGHT),
    (box("1\\!,\\!000"), "1000", RIGHT),
    (box("1\\,000"), "1000", WRONG),  # math-verify joins no digits over a space
    (box("4 2"), "42", WRONG),
    (box("4\n2"), "42", WRONG),
    (box("$42$"), "42", RIGHT),
    # units and words
    (box("42 apples"), "42", RIGHT),
    (box("42\\text{ cm}"), "42", RIGHT),
    (box("42\\,\\text{cm}"), "42", RIGHT),
    (box("43\\text{ cm}"), "42", WRONG),
    (box("$42"), "42", RIGHT),
    (box("\\$42"), "42", RIGHT),
    (box("42\\%"), "42", RIGHT),  # the sign may repeat the question's unit
    (box("42\\%"), "0.42", RIGHT),
    (box("42^\\circ"), "42", RIGHT),
    (box("\\text{42}"), "42", RIGHT),
    (box("forty-two"), "42", WRONG),
    (box("Tom has 42"), "42", WRONG),
    # other numbers
    (box("\\frac{1}{2}"), "0.5", RIGHT),
    (box("\\frac12"), "1/2", RIGHT),
    (box("\\dfrac{1}{2}"), "1/2", RIGHT),
    (box("1/2"), "0.5", RIGHT),
    (box(".5"), "1/2", RIGHT),
    (box("-\\frac{1}{2}"), "-0.5", RIGHT),
    (box("\\frac{\\frac{3}{2}}{3}"), "1/2", RIGHT),
    (box("\\frac{2}{1}"), "1/2", WRONG),
    (box("0.3333"), "1/3", WRONG),
    (box("7.00"), "7", RIGHT),
    (box("10,000.5"), "10000.5", RIGHT),
    (box("42.0000001"), "42", WRONG),
    (box("1\\times10^3"), "1000", RIGHT),
    (box("119.608"), "14951/125", RIGHT),  # what `compose` writes for a fraction
    # mathematics
    (box("\\pi"), "\\pi", RIGHT),
    (box("3.14"), "\\pi", WRONG),
    (box("\\sqrt{2}"), "\\frac{2}{\\sqrt{2}}", RIGHT),
    (box("\\sqrt{4}"), "2", RIGHT),
    (box("x^2+2x+1"), "(x+1)^2", RIGHT),
    (box("x=5"), "5", RIGHT),
    (box("A=30-6=24"), "24", RIGHT),  # the end of an equation is its value
    (box("A=30-6=24"), "30", WRONG),
    (box("\\{1,2\\}"), "\\{2,1\\}", RIGHT),
    (box("\\{1,2\\}"), "\\{1,2,3\\}", WRONG),
    (box("(1,2)"), "(2,1)", WRONG),
    (box("[1,2)"), "[1,2)", RIGHT),
    (box("[1,2]"), "[1,2)", WRONG),
    (box("(-\\infty, 3]"), "(-\\infty,3]", RIGHT),
    # two answers in one box are no answer
    (box("5 or 6"), "5", WRONG),
    (box("5 or 6"), "6", WRONG),
    (box("5, 6"), "6", WRONG),
    (box("$5$ and $6$"), "6", WRONG),
    (box("\\{5,6\\}"), "5", WRONG),
    # digits are ASCII digits: a sampler that draws others has not learned the format, and 5.0 would not be the only reading
    (box("４２"), "42", WRONG),
    (box("٤٢"), "42", WRONG),
    (box("4²"), "16", WRONG),
    # hostile text
    (box("9**9**9"), "42", WRONG),
    (box("\\frac{1}{0}"), "42", WRONG),
    (box("0/0"), "0", WRONG),
    (box("\\infty"), "42", WRONG),
    (box("nan"), "42", WRONG),
    (box("__import__('os').system('touch pwned')"), "42", WRONG),
    (box("\\input{/etc/passwd}"), "42", WRONG),
    (box("\\begin{pmatrix}1&2\\\\3\\end{pmatrix}"), "42", WRONG),
    (box("\\sin\\sin\\sin"), "42", WRONG),
    (box("4\x002"), "42", WRONG),
    (box("42\ud800"), "42", WRONG),
    (box("1" * 500), "1" * 500, RIGHT),
    (box("1" * 500), "1" * 499 + "2", WRONG),
    (box("1" * 5000), "1" * 5000, TOO_LONG),
    (box("1" * MEGABYTE), "42", TOO_LONG),
    (box("{" * MEGABYTE + "}" * MEGABYTE), "42", TOO_LONG),
    ("\\boxed{" + "{" * MEGABYTE, "42", NO_BOX),
    ("{" * MEGABYTE, "42", NO_BOX),
    ("\\boxed{" * 100_000, "42", NO_BOX),
    ("[" * MEGABYTE + box("42") + "}" * MEGABYTE, "42", RIGHT),
]


def short_name(case: int) -> str:
    return ascii(GRADES[case][0])[:40]


@pytest.mark.parametrize("case", range(len(GRADES)), ids=short_name)
def test_grade_table(case):
    """Any string gets the right verdict and the right reason; only a box with content counts as parsed."""
    completion, gold, why = GRADES[case]
    verdict = grade(completion, gold)
    assert verdict.why == why and not is_error(verdict)
    assert verdict.correct == (why == RIGHT) and verdict.score == float(verdict.correct)
    assert (verdict.parsed is None) == (why in (NO_BOX, EMPTY_BOX, TOO_LONG))
    assert not os.path.exists("pwned") and not os.path.exists(os.path.join(os.path.dirname(tasks.__file__), "pwned"))


def test_grade_reports_what_was_in_the_last_box():
    """The log shows the content of the last box, inner braces kept, not that of the first and not cut at the first brace."""
    assert grade("\\boxed{1} \\boxed{ \\frac{1}{2} } {}", "0.5").parsed == "\\frac{1}{2}"


def spelling(rng: random.Random, value: int) -> str:
    """One of the ways to write a whole number, some of them with two readings."""
    digits = rng.choice([f"{abs(value)}", f"{abs(value):,}", f"0{abs(value)}", f"00{abs(value)}", f"0{abs(value):,}"])
    sign = "-" if value < 0 else rng.choice(["", "", "+"] if value else ["", "-", "+"])
    return rng.choice(["{}", "{}", " {} ", "${}$", "${}", "{}$", "$ {} $"]).format(sign + digits)


def test_plain_integers_never_disagree_with_math_verify():
    """Catches a spelling that the short cut reads otherwise than math-verify, e.g. 0,123 as 123."""
    rng, compared = random.Random(0), Counter()
    while compared.total() < 300:
        value = rng.choice([0, 7, rng.randint(-99, 99), rng.randint(-(10**7), 10**7), rng.randint(0, 10**60)])
        other = value if rng.random() < 0.7 else rng.choice([-value, value + 1, value * 10, value // 10, value * 1000])
        answer, gold = spelling(rng, value).strip(), spelling(rng, other)
        ours, theirs = tasks.plain_integer(answer), tasks.plain_integer(gold)
        if ours is None or theirs is None:
            continue
        assert (ours, theirs) == (value, other)
        assert ask_worker({"kind": "math", "gold": gold, "answer": answer}) == (float(ours == theirs), ""), (answer, gold)
        compared[ours == theirs] += 1
    assert min(compared[True], compared[False]) > 50


# --- grading workers ------------------------------------------------------------------------------------------------------


def test_hanging_answer_is_stopped_and_the_next_one_graded(monkeypatch):
    """A completion that keeps sympy busy for ever costs its limit and nothing else; the limit is read at every call."""
    live_workers()
    monkeypatch.setattr(tasks, "GRADE_SECONDS", 1.0)
    start = time.monotonic()
    verdict = grade(box("9^{9^{9^9}}"), "42")
    assert verdict == Grade(False, 0.0, "9^{9^{9^9}}", "timeout") and is_error(verdict)
    assert 0.9 < time.monotonic() - start < 4
    monkeypatch.setattr(tasks, "GRADE_SECONDS", 60.0)
    assert grade(box("0.5"), "1/2").correct and grade(box("0.5"), "1/2").correct


def test_killed_idle_workers_cost_nothing():
    """Workers that something else killed between two answers are replaced without a lost verdict."""
    killed = live_workers()
    for worker in killed:
        worker.kill()
        worker.wait()
    assert [grade(box("0.5"), "1/2").why for _ in range(3)] == ["correct"] * 3
    assert not {worker.pid for worker in live_workers()} & {worker.pid for worker in killed}


def test_killed_busy_worker_costs_one_answer():
    """The answer under way is counted as a crash, the next ones are graded."""
    workers, verdicts = live_workers(), []
    thread = threading.Thread(target=lambda: verdicts.append(grade(box("9^{9^{9^9}}"), "42")))
    thread.start()
    while tasks._workers.qsize() == 2:
        time.sleep(0.01)
    time.sleep(0.2)
    for worker in workers:
        worker.kill()
    thread.join(30)
    assert verdicts == [Grade(False, 0.0, "9^{9^{9^9}}", "crash")] and is_error(verdicts[0])
    for worker in workers:
        worker.wait()
    assert [grade(box("0.5"), "1/2").why for _ in range(3)] == ["correct"] * 3


def test_worker_survives_requests_that_raise():
    """An exception inside a worker becomes a counted reason, and the same worker answers the next request."""
    pids = {worker.pid for worker in live_workers()}
    for request in ({"kind": "math"}, {"kind": "gym", "spec": "chain?horizon=99"}):
        score, why = ask_worker(request)
        assert score == 0.0 and is_error(Grade(False, score, "", why)) and len(why) <= 200
    assert {worker.pid for worker in live_workers()} == pids


def test_workers_are_reused():
    """Catches a worker started per answer, which would cost a second each."""
    pids = {worker.pid for worker in live_workers()}
    for _ in range(6):
        assert grade(box("\\frac{1}{2}"), "0.5").correct
    assert {worker.pid for worker in live_workers()} == pids and len(pids) == 2


@pytest.mark.skipif(not os.path.exists("/proc/self/limits"), reason="reads Linux's /proc")
def test_worker_memory_is_limited():
    """A completion that makes sympy allocate without end hits 4 GiB, not the machine's memory."""
    for worker in live_workers():
        with open(f"/proc/{worker.pid}/limits") as limits:
            assert re.search(r"Max address space +4294967296 +4294967296", limits.read())


def test_worker_that_cannot_start_says_so(monkeypatch):
    """Without math-verify every answer would silently be a crash, and every gold answer unreadable."""
    monkeypatch.setattr(tasks, "_workers", Queue())
    tasks._workers.put(None)
    monkeypatch.setattr(tasks.sys, "executable", shutil.which("false"))
    for _ in range(2):  # and the slot comes back
        with pytest.raises(RuntimeError, match="grading worker does not start.*math_verify"):
            grade(box("0.5"), "1/2")


class MoodyTask:
    """Scores the number in the completion after a nap that reverses the order of finishing; raises on a zero."""

    def grade(self, completion: str, problem: Problem) -> Grade:
        time.sleep(0.02 * (3 - int(completion) % 4))
        return Grade(True, 1 / int(completion), problem.answer, "correct")


def test_grade_all_keeps_order_and_counts_exceptions():
    """Verdicts belong to their completions whatever finishes first; a reward function that raises does not end the run."""
    numbers = [1, 2, 3, 0, 4, 5, 6, 7, 0, 8]
    verdicts = tasks.grade_all(MoodyTask(), [str(n) for n in numbers], [Problem("", f"gold {n}") for n in numbers])
    for number, verdict in zip(numbers, verdicts, strict=True):
        if number:
            assert verdict == Grade(True, 1 / number, f"gold {number}", "correct") and not is_error(verdict)
        else:
            assert verdict == Grade(False, 0.0, None, "error: ZeroDivisionError: division by zero") and is_error(verdict)


def test_grade_all_with_workers_keeps_order():
    """Replies of two workers do not get mixed up."""
    golds = [f"{n}/7" for n in range(1, 25)]
    answers = [box(gold) if n % 3 else box("5/11") for n, gold in enumerate(golds)]
    verdicts = tasks.grade_all(ListTask("list", {}), answers, [Problem("", gold) for gold in golds])
    assert [v.correct for v in verdicts] == [bool(n % 3) for n in range(24)]


# --- your own file --------------------------------------------------------------------------------------------------------


def write_jsonl(folder, rows: list, name: str = "mine.jsonl") -> str:
    """A file of 12 good problems in which the given rows (dicts, or lines as they are) come first."""
    rows = rows + [{"prompt": f"What is {n}+1?", "answer": str(n + 1)} for n in range(12)]
    path = folder / name
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n", encoding="utf-8")
    return str(path)


def all_problems(task: ListTask) -> list[Problem]:
    return [problem for split in task.problems.values() for problem in split]


def test_jsonl_reads_all_fields(tmp_path):
    """Prompt, answer, hint and solution arrive; the request for a box is added once; an integer is an answer as well."""
    first = {"prompt": "Half of 5?", "answer": " 5/2 ", "hint": "Divide.", "solution": "5/2\n\\boxed{5/2}"}
    rows = [first, {"prompt": "How many? Use \\boxed{}.", "answer": 42}, "", {"prompt": "x\u2028y", "answer": "1", "id": 7}]
    path = write_jsonl(tmp_path, [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows])
    task = load_task(f"jsonl:{path}")
    half, many, separated = all_problems(task)[:3]
    assert half == Problem("Half of 5? Put the final answer in \\boxed{}.", "5/2", "Divide.", "5/2\n\\boxed{5/2}", source=path)
    assert (many.prompt, many.answer, many.hint) == ("How many? Use \\boxed{}.", "42", None)
    assert separated.prompt.startswith("x\u2028y")  # a separator that str.splitlines would cut at
    assert task.grade(box("2.5"), half).correct and not task.grade(box("2"), half).correct


@pytest.mark.parametrize("line, said", [
    ("{'prompt': 'a', 'answer': '1'}", "not valid JSON"),
    ('{"prompt": "a"', "not valid JSON"),
    ('{"prompt": "a", "answer": ' + "1" * 5000 + "}", "not valid JSON"),  # Python reads no integer of that length
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
])  # fmt: skip
def test_jsonl_names_file_line_and_field(tmp_path, line, said):
    """A bad line is found when the file is loaded and named, not rewarded with 0 for ever."""
    path = write_jsonl(tmp_path, [{"prompt": "fine", "answer": "1/2"}, "", line])
    text = message(load_task, f"jsonl:{path}")
    assert text.startswith(f"{path}, line 3: ") and said in text


def test_jsonl_file_that_cannot_be_read(tmp_path):
    """A missing file, a folder and a file that is no text are named with the flag, not shown as a traceback."""
    (tmp_path / "latin.jsonl").write_bytes(b'{"prompt": "caf\xe9", "answer": "1"}\n')
    for name in ("missing.jsonl", "", "latin.jsonl"):
        path = str(tmp_path / name)
        assert f"--task jsonl:{path}: cannot read the file" in message(load_task, f"jsonl:{path}")


def test_jsonl_byte_order_mark_and_odd_paths(tmp_path):
    """Files that a Windows editor saved are read, and a question mark in the path does not start settings."""
    path = write_jsonl(tmp_path, ["\ufeff" + json.dumps({"prompt": "first", "answer": "1"})], "what?.jsonl")
    assert all_problems(load_task(f"jsonl:{path}"))[0].prompt.startswith("first")


def test_jsonl_with_too_few_problems(tmp_path):
    """Catches an empty split that is trained or measured on; repeated lines are no further problems; `all` needs no splits."""
    path = tmp_path / "few.jsonl"
    path.write_text(''.join(json.dumps({"prompt": f"p{n % 9}", "answer": "1"}) + "\n" for n in range(40)))
    task = load_task(f"jsonl:{path}")
    assert message(task.problem, "test", 0, 0).startswith("--task jsonl: its 40 problems leave nothing for test; give at least 10")
    assert task.size("all") == 40 and task.size("dev") == 4
    path.write_text("")
    assert message(load_task, f"jsonl:{path}") == f"{path}: holds no problem"


def test_list_splits_are_disjoint(tmp_path):
    """Identical prompts stay on one side, every problem is somewhere, and a tenth is dev and a tenth test."""
    repeated = [{"prompt": f"What is {n}+1?", "answer": str(n + 1)} for n in (3, 9, 8, 8)]
    rows = repeated + [{"prompt": f"p{n}", "answer": str(n)} for n in range(86)] + repeated
    task = load_task(f"jsonl:{write_jsonl(tmp_path, rows)}")
    prompts = {split: {problem.prompt for problem in problems} for split, problems in task.problems.items()}
    assert len(set().union(*prompts.values())) == sum(map(len, prompts.values())) == 98
    assert {split: len(members) for split, members in prompts.items()} == {"train": 80, "dev": 9, "test": 9}
    assert len(all_problems(task)) == len(rows) + 12


def test_list_task_order():
    """An epoch shows every training problem once, the next in another order, a pure function of the seed; dev keeps its order."""
    task = ListTask("mine", tasks.split_list([Problem(f"p{n}", str(n)) for n in range(50)], "here"))

    def epoch(number, seed):
        return [task.problem("train", 40 * number + i, seed).answer for i in range(40)]

    assert sorted(epoch(0, 5)) == sorted(epoch(1, 5)) == sorted(p.answer for p in task.problems["train"])
    assert epoch(0, 5) == epoch(0, 5) != epoch(1, 5) and epoch(0, 5) != epoch(0, 6)
    assert [task.problem("dev", i, 5) for i in range(5)] == task.problems["dev"] == [task.problem("dev", i, 6) for i in range(5)]


def test_ctrl_c_reaches_the_run_and_not_the_graders():
    """Catches graders that a terminal's Ctrl-C, sent to the whole process group, kills in the middle of an answer: the step that is
    finished afterwards would get rewards of 0."""
    tasks.check_answer("1/2", "here")
    workers = [worker for worker in list(tasks._workers.queue) if worker is not None and worker.poll() is None]
    assert workers and all(os.getpgid(worker.pid) != os.getpgid(0) for worker in workers)


# --- gsm8k ----------------------------------------------------------------------------------------------------------------


def test_gsm8k_problem():
    """Calculator notes leave the solution, the final answer loses its commas and ends up in the box."""
    worked = "Each box holds 12*25=<<12*25=300>>300 nails.\nFour hold 4*300=<<4*300=1200>>1200.\n#### 1,200"
    problem = gsm8k_problem(" How many nails? ", worked, "here")
    assert problem.prompt == "How many nails? Put the final answer in \\boxed{}." and problem.answer == "1200"
    assert problem.solution == "Each box holds 12*25=300 nails.\nFour hold 4*300=1200.\n\\boxed{1200}"
    assert gsm8k_problem("Q", "It falls. #### -5 ", "here").answer == "-5"
    assert CHAIN.grade(problem.solution, problem).correct


@pytest.mark.parametrize("answer", ["", "42", "#### ", "#### 4.5", "#### forty", "#### 42 apples", "### 42"])
def test_gsm8k_malformed_row(answer):
    """A row without a whole number at its end is named."""
    assert message(gsm8k_problem, "Q", answer, "train[7]") == "train[7]: field 'answer' does not end in '#### <integer>'"


class Rows(list):
    def __init__(self, rows, columns: str = ""):
        super().__init__(rows)
        self.column_names = columns.split() or list(self[0])


def gsm8k_rows(train: int = 7473, test: int = 1319) -> dict:
    return {name: Rows({"question": f"{name} {n}", "answer": f"Think. #### {n}"} for n in range(count))
            for name, count in (("train", train), ("test", test))}  # fmt: skip


def fake_datasets(monkeypatch, result, path="openai/gsm8k", config="main") -> None:
    def load_dataset(*arguments, split):
        assert arguments == (path, config)
        if isinstance(result, Exception):
            raise result
        return result[split]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))


def test_gsm8k_splits(monkeypatch):
    """The last 500 training rows are dev, and none of them is trained on; test is the published test set."""
    fake_datasets(monkeypatch, gsm8k_rows())
    task = load_task("gsm8k")
    assert {split: len(problems) for split, problems in task.problems.items()} == {"train": 6973, "dev": 500, "test": 1319}
    assert task.problem("dev", 0, 0).prompt.startswith("train 6973 ") and task.problem("test", 3, 0).answer == "3"
    assert task.problems["train"][-1].prompt.startswith("train 6972 ")


def test_gsm8k_that_is_not_as_published(monkeypatch):
    """Wrong row counts or columns stop at load; a failing download says what to use instead; the package is named."""
    fake_datasets(monkeypatch, gsm8k_rows(test=1318))
    assert "openai/gsm8k has changed: it has 1318 rows in test instead of 1319" in message(load_task, "gsm8k")
    renamed = gsm8k_rows()
    renamed["train"].column_names = ["problem", "answer"]
    fake_datasets(monkeypatch, renamed)
    assert "openai/gsm8k has changed: it lacks the columns ['question']" in message(load_task, "gsm8k")
    fake_datasets(monkeypatch, ConnectionError("no route to host"))
    assert re.search("needs a network or a local cache .*Offline, use --task chain.*no route", message(load_task, "gsm8k"))
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert message(load_task, "gsm8k") == "--task gsm8k: needs a package that is not installed; run: pip install datasets"


# --- benchmarks of the hub ------------------------------------------------------------------------------------------------

ROWS = {  # a row of each, with the columns of its published card, and what it must become
    "math500": ({"problem": "Convert (0,3).", "solution": "", "answer": "\\left( 3, \\frac{\\pi}{2} \\right)", "subject": "Precalculus",
                 "level": 2, "unique_id": "test/precalculus/807.json"}, "Convert (0,3).", "\\left( 3, \\frac{\\pi}{2} \\right)"),
    "aime24": ({"id": 60, "problem": "Find m+n.", "solution": "", "answer": "025", "url": "", "year": "2024"}, "Find m+n.", "25"),
    "aime25": ({"problem": "Find the angle.", "answer": "336^\\circ", "id": "19"}, "Find the angle.", "336"),
    "amc23": ({"id": 0, "answer": 27.0, "url": "", "question": "How many hours?"}, "How many hours?", "27"),
    "olympiadbench": ({"id": 1606, "question": "Find the power.", "solution": [""], "final_answer": ["$2^{1009}$"], "context": None,
                       "is_multiple_answer": False, "unit": None, "error": None}, "Find the power.", "2^{1009}"),
    "gsm_symbolic": ({"id": 0, "instance": 3, "question": "How many nails?", "answer": "12*2=<<12*2=24>>24\n#### 24", "original_id": 7,
                      "original_question": "", "original_answer": "", "canary": ""}, "How many nails?", "24"),
    "mmlu_pro_math": ({"question_id": 1, "question": "What is 2+2?", "options": [" 3", "4", "5"], "answer": "B", "answer_index": 1,
                       "cot_content": "", "category": "math", "src": ""}, "What is 2+2?\nA. 3\nB. 4\nC. 5", "B"),
}  # fmt: skip
ROWS |= {name: ROWS["gsm_symbolic"] for name in ("gsm_symbolic_p1", "gsm_symbolic_p2")}


def fake_benchmark(monkeypatch, name: str, rows: list[dict]) -> None:
    path, config, split, number, columns, make = tasks.BENCHMARKS[name]
    monkeypatch.setitem(tasks.BENCHMARKS, name, (path, config, split, len(rows), columns, make))
    fake_datasets(monkeypatch, {split: Rows(rows)}, path, config)


@pytest.mark.parametrize("name", tasks.BENCHMARKS)
def test_benchmark_row_becomes_a_problem(monkeypatch, name):
    """A column read wrongly, an answer left in its packing ('025', '$...$', '336^\\circ', '27.0', '#### 24')."""
    row, question, answer = ROWS[name]
    fake_benchmark(monkeypatch, name, [row])
    task = load_task(name)
    problem = task.problem("test", 0, 0)
    assert problem.prompt.startswith(question) and "\\boxed{}" in problem.prompt and problem.answer == answer
    assert task.size("test") == 1 and task.grade(f"So \\boxed{{{answer}}}.", problem).correct
    assert not task.grade("So \\boxed{1}.", problem).correct
    assert message(task.problem, "dev", 0, 0) == f"--task {name}: has no split 'dev'; it has test"


@pytest.mark.parametrize("name", tasks.BENCHMARKS)
def test_benchmark_that_is_not_as_published(monkeypatch, name):
    """A changed number of rows, a column that is gone, a field of another kind: found at load, and named."""
    path, config, split, number, columns, _ = tasks.BENCHMARKS[name]
    row = ROWS[name][0]
    fake_datasets(monkeypatch, {split: Rows([row])}, path, config)
    assert f"{path} has changed: it has 1 rows in {split} instead of {number}" in message(load_task, name)
    fake_datasets(monkeypatch, {split: Rows([row] * number, "id")}, path, config)
    assert f"{path} has changed: it lacks the columns {sorted(columns.split())}" in message(load_task, name)
    if name in ("aime24", "amc23", "gsm_symbolic"):
        fake_benchmark(monkeypatch, name, [row, row | {"answer": "one half"}])
        assert f"{path} has changed: row 1 of" in message(load_task, name)


def test_benchmark_counts_the_golds_that_it_cannot_read(monkeypatch, capsys):
    """A share of problems that can hardly be solved, and nobody knows."""
    row = ROWS["math500"][0]
    fake_benchmark(monkeypatch, "math500", [row, row | {"answer": "\\text{Evelyn}"}, row | {"answer": "!!!"}])
    load_task("math500")
    assert re.search(r"math500: [12] of 3 gold answers are no expression to math-verify", capsys.readouterr().out)


def test_mmlu_pro_math_is_its_math_part(monkeypatch):
    """Questions of other subjects in a measurement of mathematics."""
    row = ROWS["mmlu_pro_math"][0]
    fake_benchmark(monkeypatch, "mmlu_pro_math", [row, row | {"category": "law"}])
    assert load_task("mmlu_pro_math").size("test") == 1


BOXES = [("B", "B"), ("(B)", "B"), ("\\text{B}", "B"), ("\\textbf{(B)}", "B"), ("B. 4", "B"), ("$B$", "B"), ("b", None), ("4", None),
         ("Because", None), ("I think", None), ("K", None), ("", None)]  # fmt: skip


@pytest.mark.parametrize("box, parsed", BOXES)
def test_the_letter_in_the_box(box, parsed):
    """A letter in a usual wrapping that is not seen, or a word or the option's text taken for one."""
    task = tasks.ChoiceTask("choice", {"test": [Problem("?", "B")]})
    grade = task.grade(f"\\boxed{{{box}}}", task.problem("test", 0, 0))
    assert (grade.parsed, grade.correct) == (parsed, parsed == "B")


def test_same_answer():
    """Equivalent spellings that vote apart, different answers that vote together, names that are multiplied out."""
    for first, second in (("1/2", "0.5"), ("0.5", "\\frac{1}{2}"), ("1,000", "1000"), ("x+1", "1+x"), ("2\\sqrt{3}", "\\sqrt{12}")):
        assert tasks.same_answer(first, second) and tasks.same_answer(second, first), (first, second)
    for first, second in (("1/2", "2"), ("12", "13"), ("x+1", "x-1"), ("\\frac{", "7")):
        assert not tasks.same_answer(first, second), (first, second)
    assert not tasks.ChoiceTask("choice", {}).same_answer("A", "B")


# --- reasoning-gym --------------------------------------------------------------------------------------------------------

SUMS = "gym:basic_arithmetic?min_terms=2&max_terms=2&min_digits=1&max_digits=2&operators=['+','-']&allow_negation=False"


@pytest.fixture
def gym():
    return pytest.importorskip("reasoning_gym")


def test_gym_settings_reach_the_task(gym):
    """Numbers, truth values and lists (with a plus sign) arrive as such, and the box is asked for."""
    task = load_task(SUMS)
    config = task.dataset(0).config
    assert (config.min_terms, config.operators, config.allow_negation) == (2, ["+", "-"], False)
    assert task.name == "gym-basic_arithmetic" and task.problem("dev", 0, 0).prompt.endswith("\n" + tasks.BOXED_INSTRUCTION)
    for index in range(20):
        problem = task.problem("train", index, 0)
        expression = re.match(r"Calculate ([-+() 0-9]+)\.\n", problem.prompt)[1]
        assert int(problem.answer) == eval(expression) and len(re.findall("[0-9]+", expression)) == 2


def test_gym_problem_is_pure(gym):
    """The same arguments give the same problem in any instance and order; other indices and seeds mostly give others."""
    for spec in (SUMS, "gym:leg_counting", "gym:countdown"):
        first, second = load_task(spec), load_task(spec)
        problems = [first.problem("train", index, 3) for index in range(12)]
        assert [second.problem("train", index, 3) for index in reversed(range(12))] == problems[::-1]
        assert len({problem.prompt for problem in problems}) >= 11
        assert first.problem("train", 0, 4) != problems[0]
    assert first.problem("train", 10**7, 3).prompt  # there is no end to training


def test_gym_splits_share_no_question(gym):
    """There are only some thousand sums of two numbers, so splits by position would overlap."""
    task = load_task(SUMS)
    questions = {split: {task.problem(split, i, seed).prompt for i in range(count) for seed in range(2)}
                 for split, count in (("train", 500), ("dev", 60), ("test", 60))}  # fmt: skip
    assert not questions["train"] & questions["dev"] and not questions["train"] & questions["test"]
    assert not questions["dev"] & questions["test"] and min(map(len, questions.values())) > 50


def test_gym_scorer_in_the_worker(gym):
    """Countdown takes any expression that uses the numbers and reaches the target: its scorer decides, not math-verify."""
    task = load_task("gym:countdown?min_numbers=3&max_numbers=3")
    problem = task.problem("train", 2, 1)
    target = str(run_program(problem.answer, 0))
    assert task.grade(f"So {box(f'({problem.answer})')}", problem) == Grade(True, 1.0, f"({problem.answer})", "correct")
    assert task.grade(box(problem.answer + "+1"), problem).why == "wrong"
    assert task.grade(box(target), problem).why == "wrong"  # the same value, but not from the numbers given
    assert task.grade("nothing", problem) == Grade(False, 0.0, None, "no_box")
    assert task.grade("\\boxed{}", problem) == Grade(False, 0.0, None, "empty_box")
    assert task.grade(box("1" * 1001), problem) == Grade(False, 0.0, None, "too_long")


def test_gym_problem_of_another_process_can_be_graded(gym):
    """A problem carries what its scorer needs: an instance that never made it (after a resume, say) grades it the same."""
    problem = pickle.loads(pickle.dumps(load_task(SUMS).problem("train", 5, 8)))
    fresh = load_task(SUMS)
    assert fresh.grade(box(problem.answer), problem).correct and not fresh.grade(box(problem.answer + "0"), problem).correct


def test_gym_question_that_differs_in_the_worker_is_an_error(gym):
    """Some tasks depend on Python's hash seed; scoring another question's answer would be a silently wrong reward."""
    task = load_task(SUMS)
    verdict = task.grade(box("1"), dataclasses.replace(task.problem("train", 0, 0), prompt="another question"))
    assert is_error(verdict) and not verdict.correct and "PYTHONHASHSEED=0" in verdict.why


@pytest.mark.parametrize("spec, said", [
    ("gym:no_such_task", "'no_such_task' not registered"),
    ("gym:leg_counting?colour=3", "unexpected keyword argument 'colour'"),
    ("gym:leg_counting?min_animals=0", "min_animals must be positive"),
    ("gym:leg_counting?seed=3", "multiple values for keyword argument 'seed'"),
    ("gym:leg_counting?min_animals", "settings are written NAME?key=value&key=value"),
])  # fmt: skip
def test_gym_bad_task_or_setting(gym, spec, said):
    """The flag and reasoning-gym's reason are shown."""
    text = message(load_task, spec)
    assert text.startswith(f"--task {spec}: ") and said in text


def test_gym_with_too_few_questions(gym):
    """A pool without a question for some split ends with a message, not with an endless search."""
    task = load_task(f"{SUMS}&size=1")
    empty = {"dev", "test"} - {tasks.split_of(task.dataset(0)[0]["question"])}
    assert f"has too few different questions for 1 in {min(empty)}" in message(task.problem, min(empty), 0, 0)


def test_gym_never_asks_twice_in_dev_and_test(gym):
    """Catches a score over 200 problems of which half are the same question: seventeen sums of one digit would be met again and
    again. What is asked does not depend on the order of asking, and a pool that is used up says so."""
    spec = "gym:chain_sum?min_terms=2&max_terms=2&min_digits=1&max_digits=1"
    task, other = load_task(spec), load_task(spec)
    asked = []
    with pytest.raises(ValueError, match=r"has too few different questions for \d+ in test; ask for fewer"):
        for index in range(1000):
            asked.append(task.problem("test", index, 5).prompt)
    assert len(set(asked)) == len(asked) > 3
    assert [other.problem("test", index, 5).prompt for index in reversed(range(len(asked)))] == asked[::-1]


def test_gym_package_missing(monkeypatch):
    """The install line is shown."""
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    assert message(load_task, "gym:leg_counting").endswith("not installed; run: pip install reasoning-gym")


# --- composing chains -----------------------------------------------------------------------------------------------------


def test_run_program():
    """Exact arithmetic with the usual precedence."""
    assert run_program("x*2+5", 4) == 13 and run_program("2+3*x", 4) == 14 and run_program("-(x-1)/2", 4) == Fraction(-3, 2)
    assert run_program("0.1*x+0.2", 1) == Fraction(3, 10)  # floats would say 0.30000000000000004


@pytest.mark.parametrize("program", [
    "__import__('os').getpid()", "abs(x)", "y+1", "x**2", "x//2", "x%2", "x if x else 1", "[x]", "'1'", "x.real", "x<2",
])  # fmt: skip
def test_run_program_rejects(program):
    """Only numbers, x, + - * / and brackets; nothing that calls, names or grows without bound."""
    assert "only numbers, x, + - * / and brackets are allowed" in message(run_program, program, 2)


def test_run_program_rejects_no_expression():
    """Statements are not run either."""
    for program in ("import os", "x=1", "x+", ""):
        with pytest.raises((ValueError, SyntaxError)):
            run_program(program, 2)


def one_step(template: str, number: int, program: str, answer: str) -> Problem:
    return Problem(template.replace("{x}", str(number)), answer, template=template, program=program)


BOAT = one_step("Gary's boat cost ${x} and lost 30%, then 30%, then 20% of its worth. Its worth?", 9000, "x*0.7*0.7*0.8", "3528")
EGGS = one_step("Rose buys {x} dozens of eggs at $2.40 a dozen and sells 3 eggs for $1. Her profit?", 5, "x*12/3-x*2.4", "8")
NILE = one_step("A crocodile of {x} feet grows 2 feet a year for 11 years. How long is it?", 4, "x+2*11", "26")
DEBT = one_step("Mandy owes ${x} at 2% a month, not compounded. Her debt after 3 months?", 100, "x*(1+0.02*3)", "106")
PAIR = one_step("Gerald and Julia share ${x} as 3 to 2, and Gerald spends $10. What has he left?", 100, "3*x/5-10", "50")
TRIO = one_step("Carmen has ${x}, Samantha $25 more, Daisy $50 more than her. Together?", 100, "x+(x+25)+(x+25+50)", "400")
CAKE = one_step("{x} friends share a cake of 60 slices. How many has each?", 4, "60/x", "15")


@pytest.mark.parametrize("chain, published", [([BOAT, EGGS], 5644.8), ([NILE, DEBT, PAIR, TRIO], 119.608)])
@pytest.mark.parametrize("style", ["short", "h1"])
def test_chains_of_the_h1_data(chain, published, style):
    """Two chains of the paper's data set (numbers as published there, wording ours) come out at its ground truth."""
    problem = tasks.write_chain(chain, style)
    assert float(Fraction(problem.answer)) == pytest.approx(published, abs=1e-9) and problem.horizon == len(chain)
    assert grade(box(str(published)), problem.answer).correct
    check_solution(problem)


def test_compose_hand_written_problems():
    """Any order that is drawn is evaluated exactly, every number replaced is gone, and fractions need no limit."""
    pool = [BOAT, EGGS, NILE, DEBT, PAIR, TRIO, CAKE]
    for seed in range(30):
        problem = compose(pool, 4, random.Random(seed), style="h1", limit=None)
        used = sorted((p for p in pool if p.template.split("{x}")[1] in problem.prompt),
                      key=lambda p: problem.prompt.index(p.template.split("{x}")[1]))  # fmt: skip
        value = float(used[0].answer)
        for step, letter in zip(used[1:], "UVW"):
            value = eval(step.program, {"x": value})
            assert step.template.replace("{x}", letter) in problem.prompt
        assert used[0].prompt in problem.prompt and len(used) == 4
        assert float(Fraction(problem.answer)) == pytest.approx(value, rel=1e-9)
        assert compose(pool, 4, random.Random(seed), style="h1", limit=None) == problem
        check_solution(problem)


def test_compose_keeps_within_the_limit():
    """With a limit every value is a whole number from 2 to it, none twice; a pool that has no such chain is refused."""
    pool = [one_step(f"{{x}} and {n}?", 4, f"x+{n}", str(4 + n)) for n in range(1, 9)]
    for seed in range(30):
        values = [int(line.rsplit("=")[-1]) for line in compose(pool, 3, random.Random(seed), limit=20).solution.split("\n")[:-1]]
        assert len(set(values)) == 3 and all(2 <= value <= 20 for value in values)
    assert "cannot chain 8 of these 8 problems" in message(compose, pool, 8, random.Random(0), "short", 20)
    assert "cannot chain 2 of these 6 problems" in message(compose, [EGGS] * 6, 2, random.Random(0), "short", 20)


def test_compose_refuses_what_it_cannot_write():
    """More steps than problems or letters, no step, no problem, an unknown style."""
    rng = random.Random(0)
    assert "cannot chain 3 of these 2 problems; give more problems" in message(compose, [NILE, DEBT], 3, rng, "short", None)
    assert "cannot chain 1 of these 0 problems" in message(compose, [], 1, rng)
    assert "horizon 0 is not within" in message(compose, [NILE], 0, rng)
    assert "horizon 26 is not within" in message(compose, [NILE] * 30, 26, rng, "short", None)
    assert "style 'long' is not one of short, h1" in message(compose, [NILE, DEBT], 2, rng, "long", None)


def test_h1_style_has_the_papers_steps():
    """2 * horizon - 1 numbered steps, each letter named and present in its problem, the same answer as the terse wording."""
    for horizon in (2, 5, 10):
        for index in range(5):
            short = ChainTask(horizon=str(horizon)).problem("train", index, 0)
            long = ChainTask(horizon=str(horizon), style="h1").problem("train", index, 0)
            assert re.findall(r"^Step (\d+): ", long.prompt, re.M) == [str(n) for n in range(1, 2 * horizon)]
            parts = re.split(r"^Step \d+: ", long.prompt, flags=re.M)[1:]
            for letter, part in zip("UVWXYZBCD", parts[1::2]):
                instruction, text = part.strip().split("\n\n")
                assert f"in place of {letter} in this problem" in instruction and re.search(rf"\b{letter} \w+", text)
            assert long.answer == short.answer and check_solution(long) == check_solution(short)
            assert long.hint.split(", then ")[1] == short.hint.split(", then ")[1] and long.hint.startswith("Step 1: ")
            assert long.prompt.endswith("Put the final answer in \\boxed{}.")


def test_a_chain_of_one_step_is_the_plain_problem():
    """Catches "Step 1" around a single problem, and a hint or a worked solution that is lost."""
    plain = Problem(f"How many? {tasks.BOXED_INSTRUCTION}", "7", "count", "1+6=7\n\\boxed{7}", template="How {x}")
    assert compose([plain], 1, random.Random(0), "h1") == plain
    step = ChainTask(horizon="1").chain("train", 0, 0)[0]
    assert ChainTask(horizon="1", style="h1").problem("train", 0, 0).prompt == f"{step.prompt} {tasks.BOXED_INSTRUCTION}"


WORDS = st.text("abcdefgh ,.?", min_size=1).map(lambda text: f"a {text} b")


@st.composite
def step_problems(draw):
    """A one-step problem with a program, or without one."""
    head, tail, start, k = draw(WORDS), draw(WORDS), draw(st.integers(2, 10**6)), draw(st.integers(1, 99))
    template = f"{head} {{x}} {tail}"
    program = draw(st.sampled_from([None, f"x+{k}", f"x*{k}", f"(x-{k})/3", f"{k}-x*0.5"]))
    answer = str(run_program(program, start) if program else k)
    solution = draw(st.sampled_from([None, f"as it is\nso {answer}\n\\boxed{{{answer}}}"]))
    return Problem(template.replace("{x}", str(start)), answer, None, solution, template=template, program=program)


@example_settings(max_examples=200, deadline=None)
@given(st.lists(step_problems(), min_size=1, max_size=25))
def test_any_chain_can_be_carried_out_as_it_is_written(steps):
    """2h-1 steps, each placeholder once in its problem's text; reading the prompt and doing what it says gives the gold answer."""
    problem = tasks.write_chain(steps, "h1")
    if len(steps) == 1:
        assert problem.prompt == f"{steps[0].prompt.rstrip()} {tasks.BOXED_INSTRUCTION}"
        return
    parts = re.split(r"(?:^|\n\n)Step (\d+): ", problem.prompt)[1:]
    assert parts[0::2] == [str(n) for n in range(1, 2 * len(steps))]
    value = Fraction(steps[0].answer)
    for step, part, letter in zip(steps[1:], parts[3::4], "UVWXYZBCDEFGHJKLMNOPQRST"):
        text = part.split("\n\n", 1)[1]
        shown = re.search(rf"\({letter}([+-][0-9/]+)\)|\b{letter}\b", text)
        assert len(re.findall(rf"\b{letter}\b", text)) == 1 and f"in place of {letter} in" in part
        received = value + Fraction(shown[1] or 0)
        head, tail = step.template.split("{x}")
        assert (text[: shown.start()], text[shown.end() :].rstrip()) == (head, tail.rstrip())
        if step.program is None:
            assert received == int(re.search(r" (\d+) ", step.prompt)[1])  # the number that stood there
        value = run_program(step.program, received) if step.program else Fraction(step.answer)
    assert value == Fraction(problem.answer)
    if all(step.program or step.solution for step in steps):
        assert problem.solution.endswith("\n" + box(str(value))) and problem.solution.count("boxed") == 1
        assert problem.solution.count("as it is\nso") == sum(step.program is None for step in steps)
    else:
        assert problem.solution is None


def test_number():
    """Catches a unit or a formula taken for a number, and a decimal that is rounded."""
    assert tasks.number("1,234.50") == Fraction(2469, 2) and tasks.number("12,34") is None
    assert [tasks.number(text) for text in ("12", "-3", "1,000", "0.1", "-1/3", " $2.50 ")] == [
        12, -3, 1000, Fraction(1, 10), Fraction(-1, 3), Fraction(5, 2)]  # fmt: skip
    assert [tasks.number(text) for text in ("", "x", "1e3", "1/0", "2 eggs", "1.2.3", "\\frac12", "٣")] == [None] * 8


def test_templates():
    """Catches a number that occurs twice, a part of a decimal, a word or a power, and a letter that the text already has."""
    found = lambda prompt: [shown for shown, _ in tasks.templates(prompt)]  # noqa: E731
    assert found("She has 5 hats, 1,200 pins and 2.5 m; 5 more, 3rd, x^2, 7/8, A4, 10% of $30.") == ["1,200", "2.5", "10", "30"]
    assert found("There are 0 or 1 of 2.") == ["2"] and found("Bus X has 12 seats.") == found("{x} of 12") == []
    assert dict(tasks.templates("I had 12 of 20."))["12"] == "I had {x} of 20."
    assert found("It cost $1,250.50, not 0,123 or ٣ or 123456789012345678901234.5.") == ["1,250.50"]


@pytest.mark.parametrize("prompt, worked, answer, expected", [
    ("46 cups, half as many more.", "<<46/2=23>> <<46+23=69>>", "69", ("{x} cups, half as many more.", "x+(x/2)", ("x/2",))),
    ("$150 less 30%, twice.", "<<150*30%=45>> <<150-45=105>> <<105*2=210>>", "210",
     ("${x} less 30%, twice.", "(x-(x*(30/100)))*2", ("x*(30/100)", "x-(x*(30/100))"))),
    ("$1,500 in 6 parts.", "<<1500/6=$250>>", "250", ("${x} in 6 parts.", "x/6", ())),
    ("9 and 9 and 14.", "<<9+9=18>> <<18+14=32>>", "32", ("9 and 9 and {x}.", "(9+9)+x", ("9+9",))),
    ("5 boxes of 40 pens, 3/5 of them blue.", "<<5*40=200>> <<200*3/5=120>>", "120",
     ("5 boxes of {x} pens, 3/5 of them blue.", "(5*x)*3/5", ("5*x",))),  # not the 5: it is in 3/5 too
    ("Six friends buy 6 sodas at $9.", "<<6*6=36>> <<36*9=324>>", "324", ("Six friends buy 6 sodas at ${x}.", "(6*6)*x", ("6*6",))),
    ("48 eggs, 6 a tray, a tray is $15.", "<<48/6=8>> <<8*15=120>>", "120", ("{x} eggs, 6 a tray, a tray is $15.", "(x/6)*15", ("x/6",))),
    ("$150 less 20%, twice.", "<<150*20%=30>> <<150-30=120>> <<120*2=240>>", "240", None),  # is 30 computed, or a month's days?
    ("9 rows of 8, 72 times 11 more.", "<<9*8=72>> <<72*11=792>>", "792", None),  # is 72 given or computed?
    ("56 less 20, and 108 by 3.", "<<56-20=36>> <<108/3=36>> <<36+36=72>>", "72", None),  # which 36?
    ("46 cups, half as many more.", "Half is 23. <<46+23=69>>", "69", None),  # a step without a note
    ("40 pages, 25% more the next day.", "50 pages. <<40+50=90>>", "90", None),
    ("130 go by bus, 50 in each, for $200.", "<<130/50=2.6>>, so 3. <<3*200=600>>", "600", None),  # a result that is not used
    ("35 in 8 rows.", "<<35/8=4.4>> <<4.4*10=44>>", "44", None),  # rounded
    ("5 hours every weekday.", "<<5*5=25>>", "25", None), ("7 hours a day.", "<<7*5=35>>", "35", None),  # numbers of everyday life
    ("6 hours a day in 11 days, 6am.", "<<6*11=66>>", "66", ("6 hours a day in {x} days, 6am.", "6*x", ())),
    ("8 run 8km with 9 cups per km.", "<<8*8=64>> <<64*9=576>>", "576", ("8 run 8km with {x} cups per km.", "(8*8)*x", ("8*8",))),
    ("Each of 8 cups holds 8 and 8.", "<<8*8=64>>", "64", None),
    ("An $80 coat is 35% off.", "<<80*.65=52>>", "52", ("An ${x} coat is 35% off.", "x*.65", ())),
    ("11 a day, 5 days.", "<<11*5=55>>", "56", None),  # does not give the answer
    ("11 or so.", "<<round(11.2)=11>>", "11", None), ("11 or so.", "eleven", "11", None), ("11 or so.", "<<11>>", "11", None),
])  # fmt: skip
def test_calculator_program(prompt, worked, answer, expected):
    """Catches a program that is not the solution's, and one that would be wrong for another number."""
    assert tasks.calculator_program(prompt, worked, answer) == expected


def test_what_counts_stays_whole():
    """Catches half a tray, or fewer than no hours, in the middle of a chain whose end is whole again."""
    tray = Problem("48 eggs", "120", template="{x} eggs", program="(x/6)*15", parts=("x/6",))
    assert [tasks.step_value(tray, Fraction(x)) for x in (48, 12, 2, 0, -6)] == [120, 30, None, None, None]
    assert tasks.step_value(Problem("p", "3", template="{x}", program="6/x"), Fraction(0)) is None


# --- problems of other tasks, chained ---------------------------------------------------------------------------------------


@pytest.fixture
def questions(tmp_path):
    """A file of 60 sums, 20 of them without a whole number to replace or to hand on."""
    rows = [{"prompt": f"What is {n} and {n + 7}?", "answer": str(2 * n + 7), "solution": "add"} for n in range(10, 50)]
    rows += [{"prompt": f"Half of {2 * n + 1}?", "answer": f"{n}.5"} for n in range(10, 20)]
    rows += [{"prompt": f"Which letter? {'z' * n}", "answer": str(n + 2)} for n in range(10)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "sums.jsonl"


def test_composed_list(questions, capsys):
    """Catches steps from another split, a first step that comes twice, a problem that is no pure function, and a silent loss."""
    spec = f"jsonl:{questions}?horizon=2-4"
    task, plain = load_task(spec), load_task(f"jsonl:{questions}")
    assert capsys.readouterr().out == "jsonl: 40 of 60 problems can be chained, by an offset\n"
    for split, sums in (("train", 32), ("dev", 4), ("test", 4)):
        answers = {match[1]: p.answer for p in plain.members(split) if (match := re.search(r"What is \d+ and (\d+)", p.prompt))}
        firsts = set()
        for index in range(sums):
            problem = task.problem(split, index, 3)
            assert problem == load_task(spec).problem(split, index, 3) and 2 <= problem.horizon <= 4
            second_numbers = re.findall(r"What is (?:\d+|\([U-Z][+-]\d+\)|[U-Z]) and (\d+)\?", problem.prompt)
            assert len(set(second_numbers)) == problem.horizon and answers[second_numbers[-1]] == problem.answer
            assert set(second_numbers) <= answers.keys() and problem.prompt.count("\\boxed") == 1
            assert task.grade(box(problem.answer), problem).correct and not task.grade(box("1"), problem).correct
            firsts.add(second_numbers[0])
        assert len(answers) == len(firsts) == sums == task.size(split)
    assert task.problem("train", 0, 3) != task.problem("train", 0, 4)
    assert "has no split 'sft'" in message(task.problem, "sft", 0, 0)


def test_composed_list_at_another_horizon(questions):
    """Catches a horizon that changes the task it came from, a horizon of 1 that is not the plain problem, and a pool run dry."""
    task = load_task(f"jsonl:{questions}?horizon=2")
    assert [task.at_horizon(h).problem("dev", 0, 0).horizon for h in (1, 3, 2)] == [1, 3, 2] and (task.low, task.high) == (2, 2)
    assert task.at_horizon(1).problem("dev", 0, 0).prompt == load_task(f"jsonl:{questions}").problem("dev", 0, 0).prompt
    assert "horizon=26 is not within 1 to 25" in message(task.at_horizon, 26)
    assert "cannot chain 5 of its problems in test" in message(task.at_horizon(5).problem, "test", 0, 0)
    (questions.parent / "words.jsonl").write_text("".join(json.dumps({"prompt": f"{'z' * n}?", "answer": "a"}) + "\n" for n in range(20)))
    assert "none of its problems in dev can be chained" in message(load_task(f"jsonl:{questions.parent / 'words.jsonl'}?horizon=1").problem,
                                                                   "dev", 0, 0)  # fmt: skip


def test_problems_without_a_program_are_left_out_where_others_have_one(capsys):
    """Catches a GSM8K problem that is chained by an offset because its notes give no program that can be trusted."""
    rows = [gsm8k_problem(f"Ann has {n} cups, Bob {n + 100}.", f"<<{n}+{n + 100}={2 * n + 100}>>\n#### {2 * n + 100}", "here")
            for n in range(33, 45)]  # fmt: skip
    rows += [gsm8k_problem(f"Ann has {n} cups and doubles them.", f"{2 * n}\n#### {2 * n}", "here") for n in range(33, 45)]
    task = tasks.ComposedTask(ListTask("gsm8k", {"train": rows}), "3")
    assert capsys.readouterr().out == "gsm8k: 12 of 24 problems can be chained, by their programs\n"
    for index in range(24):
        problem = task.problem("train", index, 0)
        assert "doubles" not in problem.prompt and "(U" not in problem.prompt and len(problem.solution.split("\n")) == 4


def test_composed_gym():
    """Catches an item whose answer is no number, a step of another split, and a label that the offset does not keep."""
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
    rows = [{"prompt": f"{split} {n}?", "answer": "1", "split": split} for split in ("dev", "train", "test") for n in range(3)]
    path = tmp_path / "split.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = load_task(f"jsonl:{path}")
    assert all({problem.prompt.split()[0] for problem in task.members(split)} == {split} for split in ("train", "dev", "test"))
    for change, said in (({"split": "sft"}, "line 1: field 'split' must be train, dev or test"), ({}, "line 2: field 'split' is new here")):
        path.write_text("".join(json.dumps(row) + "\n" for row in [{"prompt": "p", "answer": "1"} | change, *rows]))
        assert said in message(load_task, f"jsonl:{path}")
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"prompt": "p", "answer": "1"}]))
    assert "line 10: field 'split' is missing; give it in every line or in none" in message(load_task, f"jsonl:{path}")


def test_list_with_horizons(tmp_path):
    """Catches the field horizon ignored, accepted in any form, and a missing horizon that gives an empty task."""
    rows = [{"prompt": f"{h} {n}?", "answer": "1", "horizon": h} for n in range(10) for h in (1, 2)]
    (tmp_path / "both.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = load_task(f"jsonl:{tmp_path / 'both.jsonl'}")
    assert {task.at_horizon(2).problem(split, 0, 0).horizon for split in ("train", "dev", "test")} == {2}
    assert message(task.at_horizon, 3) == "--task jsonl: has no problem of horizon 3, only of 1, 2; horizon=1 in --task chains them"
    for wrong in ("2", 0, 1.5, True):
        (tmp_path / "wrong.jsonl").write_text(json.dumps({"prompt": "p", "answer": "1", "horizon": wrong}))
        assert "line 1: field 'horizon' must be a whole number from 1" in message(load_task, f"jsonl:{tmp_path / 'wrong.jsonl'}")


def test_chain_at_another_horizon():
    """Catches a family or a style that is lost on the way."""
    task = ChainTask(horizon="2-6", family="mixed", style="h1").at_horizon(3)
    assert (task.low, task.high, task.family, task.style) == (3, 3, "mixed", "h1")
    assert "horizon=11 is not within 1 to 10" in message(task.at_horizon, 11)


# --- the embedded world ---------------------------------------------------------------------------------------------------

NUMBER = r"(\d+|[A-Z])"
MEANINGS = [  # the English sentences, read anew: k before x or x before k, and what a person would compute
    (rf"\w+ has (?P<k>\d+) more than (?P<x>{NUMBER}) \w+\.", lambda x, k: x + k),
    (rf"\w+ has (?P<k>\d+) fewer than (?P<x>{NUMBER}) \w+\.", lambda x, k: x - k),
    (rf"\w+ has (?P<k>\d+) times (?P<x>{NUMBER}) \w+\.", lambda x, k: x * k),
    (rf"\w+ has half of (?P<x>{NUMBER}) \w+\.", lambda x: Fraction(x, 2)),
    (rf"(?P<x>{NUMBER}) \w+ is (?P<k>\d+) more than \w+ has\.", lambda x, k: x - k),
    (rf"(?P<x>{NUMBER}) \w+ is (?P<k>\d+) fewer than \w+ has\.", lambda x, k: x + k),
]
REVERSED_SENTENCE = r"\w+ \w+ is \d+ (more|fewer) than \w+ has\."


def read(prompt: str) -> list[int]:
    """The value of every sentence of a problem in the terse wording, by the regular expressions above."""
    body, last = re.fullmatch(r"(.*) Give ([A-Z]) in \\boxed\{\}\.", prompt).groups()
    parts = re.split(r"(?:^| )([A-Z]): ", body)
    letters, sentences, values = parts[1::2], parts[2::2], {}
    for letter, sentence in zip(letters, sentences, strict=True):
        match, meaning = next((m, f) for pattern, f in MEANINGS if (m := re.fullmatch(pattern, sentence)))
        x, *rest = [match[name] for name in ("x", "k") if name in match.groupdict()]
        if values:
            assert x == list(values)[-1], "a step must use the answer of the step before it"
        values[letter] = meaning(values[x] if x in values else int(x), *map(int, rest))
    assert letters == list("ABCDEFGHIJ")[: len(letters)] and last == letters[-1]
    return list(values.values())


def check_solution(problem: Problem) -> list[Fraction]:
    """Every line is true arithmetic, and the box holds the last value, which is the answer. Returns the values."""
    *lines, boxed = problem.solution.split("\n")
    values = []
    for line in lines:
        work, result = re.fullmatch(r"(?:[A-Z]=|Step \d+: )(.*)=(.*)", line).groups()
        value = eval(re.sub(r"(\d+(\.\d+)?)", r"Fraction('\1')", work), {"Fraction": Fraction})
        assert value == Fraction(result), line
        values.append(value)
    assert boxed == box(problem.answer) and values[-1] == Fraction(problem.answer) and len(values) == problem.horizon
    return values


def check_chain(problem: Problem) -> None:
    """What holds for every problem of the embedded world in the terse wording."""
    values = read(problem.prompt)
    assert check_solution(problem) == values
    assert len(set(values)) == len(values) and all(value == int(value) and 2 <= value <= 999 for value in values)
    for line, before in zip(problem.solution.split("\n")[1:-1], values):
        assert re.match(rf"[A-J]={before}[-+*/]", line), "a line must begin with the answer of the line before it"
    known = re.findall(r"[A-J]=[^,]+", problem.hint)
    assert known == problem.solution.split("\n")[: 3 * len(values) // 4]
    assert problem.answer not in re.findall(r"\d+", problem.hint)
    next_operation = re.search(r"[-+*/]", problem.solution.split("\n")[len(known)])[0]
    assert problem.hint.endswith({"+": "add.", "-": "subtract.", "*": "multiply.", "/": "halve."}[next_operation])


def test_chain_agrees_with_an_independent_reader():
    """The sentences mean what the gold answers say: 300 problems of every kind and length."""
    task, horizons, backwards = ChainTask(horizon="1-10", family="mixed"), Counter(), 0
    for index in range(300):
        problem = task.problem("train", index, 11)
        check_chain(problem)
        horizons[problem.horizon] += 1
        found = len(re.findall(REVERSED_SENTENCE, problem.prompt))
        assert found == (problem.source == "chain/reversed")
        backwards += found
    assert set(horizons) == set(range(1, 11)) and max(horizons.values()) < 60
    assert 45 <= backwards <= 105  # a quarter of 300, within four standard deviations


def test_chain_reversed_family():
    """Exactly one reversed sentence, at any place, and never where the family is plain."""
    places, words = Counter(), Counter()
    for horizon in (1, 4):
        reversed_task, plain = ChainTask(horizon=str(horizon), family="reversed"), ChainTask(horizon=str(horizon))
        for index in range(60):
            problem = reversed_task.problem("train", index, 1)
            check_chain(problem)
            sentences = re.split(r"(?:^| )[A-Z]: ", problem.prompt)[1:]
            hits = [i for i, sentence in enumerate(sentences) if re.match(REVERSED_SENTENCE, sentence)]
            assert len(hits) == 1 and problem.source == "chain/reversed"
            places[horizon, hits[0]] += 1
            words[re.match(REVERSED_SENTENCE, sentences[hits[0]])[1]] += 1
            assert not re.search(REVERSED_SENTENCE, plain.problem("train", index, 1).prompt)
    assert len(places) == 5 and min(places.values()) >= 4 and min(words["more"], words["fewer"]) >= 40


def test_chain_horizon_is_the_number_of_steps():
    """One step asked, one step given, up to ten; a range draws all of its lengths."""
    for horizon in range(1, 11):
        assert len(read(ChainTask(horizon=str(horizon)).problem("test", 0, 0).prompt)) == horizon
    assert {ChainTask(horizon="2-4").problem("train", index, 0).horizon for index in range(60)} == {2, 3, 4}
    assert ChainTask(horizon=3).problem("dev", 0, 0) == ChainTask().problem("dev", 0, 0)


def test_chain_problem_is_pure():
    """The same arguments give the same problem, whatever was asked before; each argument matters."""
    for settings in ({}, {"horizon": "1-10", "family": "mixed"}, {"style": "h1", "family": "reversed"}):
        task, fresh = ChainTask(**settings), ChainTask(**settings)
        problems = [task.problem("train", index, 7) for index in range(20)]
        random.seed(0)
        assert [fresh.problem("train", index, 7) for index in reversed(range(20))] == problems[::-1]
        assert len(set(problems)) == 20
        assert task.problem("dev", 0, 7) != problems[0] != task.problem("train", 0, 8)


@pytest.mark.parametrize("horizon, many, few", [(1, 300, 100), (3, 200, 30), (10, 80, 10)])
def test_chain_splits_share_no_problem(horizon, many, few):
    """No start number with the same operations on two sides, across seeds too: names and things are no difference."""
    keys = {}
    for split, count in (("sft", many), ("train", many), ("dev", few), ("test", few)):
        task = ChainTask(horizon=str(horizon), family="mixed")
        keys[split] = set()
        for index in range(count):
            lines = task.problem(split, index, index % 3).solution.split("\n")[:-1]
            start = re.match(r"A=(\d+)", lines[0])[1]
            keys[split].add((start, *(re.match(r"[A-J]=\d+([-+*/]\d+)=", line)[1] for line in lines)))
    assert sum(map(len, keys.values())) == len(set().union(*keys.values()))
    assert min(map(len, keys.values())) > few / 2


def test_chain_cannot_be_guessed():
    """The most frequent answer of the default task earns less than 2%."""
    answers = Counter(CHAIN.problem("train", index, 2).answer for index in range(1000))
    assert answers.most_common(1)[0][1] < 20 and len(answers) > 250


def test_chain_solution_earns_the_reward():
    """The worked solution is graded right and the hint alone is not an answer."""
    for index in range(20):
        problem = CHAIN.problem("test", index, 0)
        assert CHAIN.grade(problem.solution, problem).correct
        assert CHAIN.grade(tasks.with_hint(problem), problem).why == "empty_box"  # the prompt's own \boxed{}


@pytest.mark.parametrize("spec, said", [
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
])  # fmt: skip
def test_chain_bad_setting(spec, said):
    """The setting and what it may be are named."""
    text = message(load_task, spec)
    assert text.startswith("--task") and said in text


def test_chain_unknown_split():
    """A typing error in a split's name does not search for ever."""
    assert "split 'valid' is not one of sft, train, dev, test" in message(CHAIN.problem, "valid", 0, 0)


@pytest.mark.parametrize("spec", ["", "chains", "gym", "math", "jsonl", "math?horizon=2"])
def test_unknown_task(spec):
    """The flag, what was given and what there is are named."""
    assert message(load_task, spec).startswith(f"--task {spec}: unknown; use chain, jsonl:PATH, gym:NAME?key=value, gsm8k, math500")


def test_load_task_passes_settings():
    """Settings of the flag arrive."""
    task = load_task("chain?horizon=2-6&family=mixed&style=h1")
    assert (task.low, task.high, task.family, task.style, task.name) == (2, 6, "mixed", "h1", "chain")
