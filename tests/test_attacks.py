"""Answers that try to run: none reaches a scorer that evaluates, and code that did run could do nothing."""

import ctypes
import json
import mmap
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mutants import mutant

from plainrl import sandbox, workers
from plainrl.plain_answers import DATA, FUNCTIONS, HARMLESS, LETTERS, NUMBERS, evaluates, is_plain
from plainrl.tasks import load_task
from plainrl.workers import ask_worker

gym = pytest.importorskip("reasoning_gym")

EVALUATING = sorted(DATA | NUMBERS | LETTERS | FUNCTIONS)
POSIX = pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no fork")
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox is Linux's")

# They try to write the file F, or change the scorer. Run in this process they would do no other harm.
ATTACKS = [
    "__import__('os').system('touch F')",
    "[setattr(type(self),'score_answer',lambda s,a,e:1.0)] and 'x'",
    "open('F','w').write('x')",
    "().__class__.__base__.__subclasses__()",
    "oracle_answer.split()",
    "oracle_answer",
    "entry['answer']",
    "valid_solutions[0]",
    "list(entry['answer'])",
    "self.score_answer.__globals__",
    "exec(\"open('F','w')\")",
    "eval(\"open('F','w')\")",
    "compile('1','F','eval')",
    "getattr(__builtins__, 'open')('F', 'w')",
    "__builtins__['open']('F','w')",
    "(lambda: open('F','w'))()",
    "[open('F','w') for _ in [1]]",
    "{open('F','w'): 1}",
    "f\"{open('F','w')}\"",
    "f'{entry}'",
    "(x := open('F','w'))",
    "[*open('F','w')]",
    "'%s' % open('F','w')",
    "'{0.__class__}'.format(self)",
    "(1).__class__",
    "1 if open('F','w') else 2",
    "[1][open('F','w') and 0]",
    "open('F','w') or 24",
    "not open('F','w')",
    "1 < open('F','w').fileno()",
    "print(open('F','w'))",
    "breakpoint()",
    "__import__('sys').modules['plainrl.workers'].__dict__",
    "__import__('ctypes').string_at(0)",
    "__import__('pickle').loads(b'cos\\nsystem\\n(S\"touch F\"\\ntR.')",
    "__import__('pathlib').Path('F').write_text('x')",
    "__import__('subprocess').run(['touch','F'])",
    "__import__('gc').get_objects()",
    "__import__('os').environ['HF_TOKEN']",
    "os.environ",
    "np.load('F', allow_pickle=True)",
    "numpy.fromfile('F')",
    "sympy.sympify(\"open('F','w')\")",
    "S(\"open('F','w')\")",
    'sympify(\'__import__("os").system("touch F")\')',
    "Symbol('x').func.__init__.__globals__",
    "Lambda(x, open('F','w'))(1)",
    "lambdify(x, \"open('F','w')\")(1)",
    "parse_expr(\"open('F','w')\")",
    "x.subs(x, 1).__class__",
    "sin.__class__.__base__",
    "Integer(24).__reduce__()",
    "preview(x, filename='F', viewer='file')",
    "24 # 1 2 3 4",
    "24\n__import__('os').system('touch F')",
    "1; open('F','w')",
    "\\open('F','w')",
    "open\uff08'F','w')",
    "\u212fval(\"open('F','w')\")",
    "raise SystemExit",
    "yield 1",
    "await x",
    "0x18",
    "1_0",
    "24j",
    "True",
    "x.y",
    "x[0]",
    "sin",
    "sin(x, x)",
    "sin(x=1)",
    "open(1)",
    "exit(1)",
    "Integral(x, x)",
    "diff(x, x)",
]
# They would take the machine's time, memory or processes. They never run here.
BOMBS = [
    "9**9**9",
    "9**9**9**9",
    "(9**99)**99**9",
    "((9**99)**99)**99",
    "9**(9**9)",
    "9**-(9**9)",
    "9**999",
    "(1+1)**(10*10*10)",
    "2**(10**10/1)",
    "9**1e9",
    "[1]*10**10",
    "'x'*10**10",
    "[0 for _ in iter(int, 1)]",
    "__import__('time').sleep(1e9)",
    "[__import__('os').fork() for _ in range(99)]",
    "factorial(10**10)",
    "10000000000!",
    "binomial(10**9, 10**8)",
    "Sum(1/x, (x, 1, 10**9)).doit()",
    "prime(10**12)",
    "(" * 500 + "1" + ")" * 500,
    "[" * 900,
    "-" * 5000 + "1",
    "not " * 250 + "1",
    "9" * 5000,
    "x" * 1000,
    "1+" * 2000 + "1",
    "f(" * 300 + "x" + ")" * 300,
    "{" * 300 + "}" * 300,
    "\x00",
    "",
]


def entry_of(name: str):
    """A dataset of reasoning-gym and its first question."""
    dataset = gym.create_dataset(name, seed=0, size=10)
    return dataset, dataset[0]


@pytest.fixture(scope="module")
def questions() -> dict:
    return {name: entry_of(name) for name in EVALUATING}


# Data, which `eval` gives back as it stands.
HARMLESS_DATA = {"True", "24j", "0x18", "1_0", "24 # 1 2 3 4"}


@mutant(
    "any function is arithmetic",
    "plainrl/plain_answers.py",
    "keywords=[]) if name in functions:",
    "keywords=[]):",
)
def test_no_attack_is_plain(questions):
    """Catches a hole in the grammar: an answer that is not plain data or arithmetic and yet is evaluated."""
    for name, (_, entry) in questions.items():
        for text in ATTACKS + BOMBS:
            if name not in DATA or text not in HARMLESS_DATA:
                assert not is_plain(text, entry, name), (name, text[:50])


@mutant(
    "scorers evaluate anything",
    "plainrl/gym.py",
    "if evaluates(dataset, self.dataset_name) and not is_plain(answer, entry, self.dataset_name):",
    "if False:",
)
def test_attacks_do_nothing(questions, tmp_path, monkeypatch):
    """Catches an answer that writes a file, reads the environment, or replaces the scorer, through any of the
    scorers that evaluate."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", "secret")
    for name, (dataset, entry) in questions.items():
        task = load_task(f"gym:{name}")
        scorer, before = type(dataset).score_answer, dict(os.environ)
        entry = task.entry(0, 0)
        prompt = task.prompt(entry)
        for text in ATTACKS:
            if text not in HARMLESS_DATA:
                assert task.score(0, 0, prompt, text) == 0.0, (name, text)
        assert not list(tmp_path.iterdir()) and dict(os.environ) == before
        assert type(dataset).score_answer is scorer
        assert task.score(0, 0, prompt, entry["answer"]) == 1.0


def test_plain_answers_reach_their_scorer(questions):
    """Catches a grammar so narrow that right answers earn nothing."""
    right = {
        "countdown": ["(1 + 2)*3", "-4/2 + 3**2", "7 - -1", " 8 * (9 - 3) "],
        "puzzle24": ["4*6", "8/(3-8/3)"],
        "polynomial_multiplication": ["x**2 + 2*x + 1", "-(y - 1)**3*z", "1.5*x"],
        "simple_integration": ["x**2/2 + C", "3*X**(5/3) + k", "-sin(2*x)/2 + C", "E**(x**2) + c"],
        "intermediate_integration": ["x*log(x) - x + C", "atan(3*x)*sqrt(1 - x**2)", "exp(-x)*cos(2*x)"],
        "n_queens": ["[['Q', '_'], ['_', 'Q']]"],
        "binary_matrix": ["[[0, 1], [1, 0]]"],
        "spiral_matrix": ["[1, 2, -3]", "(1, 2)"],
        "string_insertion": ["['A', 'B']"],
    }
    assert sorted(right) == EVALUATING
    for name, (_, entry) in questions.items():
        for text in [entry["answer"], *right[name]]:
            assert is_plain(text, entry, name), (name, text)
        assert is_plain(entry["answer"], dict(entry, answer="x*C"), name) or name in DATA


def test_every_evaluating_scorer_is_known():
    """Catches a release of reasoning-gym with one more scorer that evaluates answers."""
    found = {name for name, (kind, _) in gym.factory.DATASETS.items() if evaluates(kind.__new__(kind), name)}
    assert found == {*EVALUATING, "composite"}
    package = Path(gym.__file__).parent
    calls = {}
    for path in package.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        for word in ("eval(", "exec(", "parse_expr(", "sympify(", "pickle", "subprocess", "os.system"):
            times = sum(word in line and "def " not in line for line in text.splitlines())
            if times and "contrib" not in path.parts:
                calls[path.stem, word] = times
    answers = {(name, "eval(") for name in DATA | HARMLESS} | {
        (name, "parse_expr(") for name in NUMBERS | LETTERS
    }
    own = {("codeio", "exec("), ("bitwise_arithmetic", "eval("), ("basic_arithmetic", "eval(")}
    own |= {
        ("generators_00_49", "eval("),
        ("generators_50_99", "eval("),
        ("propositional_logic", "parse_expr("),
    }
    assert set(calls) == answers | own | {(name, "parse_expr(") for name in FUNCTIONS}


class Hostile:
    """A task whose scorer runs whatever an answer says, as if the grammar had a hole."""

    dataset_name = "countdown"
    points = 0.0

    def __init__(self, entry: dict):
        self.entry = entry

    def scored_entry(self, *_) -> dict:
        return self.entry

    def score(self, seed: int, position: int, prompt: str, answer: str) -> float:
        if answer == "1":
            type(self).points = 1.0  # every later answer would be right
        if answer == "2":
            while True:
                pass
        if answer == "3":
            os._exit(0)
        if answer == "4":
            return float("nan")
        return self.points


@POSIX
@mutant(
    "evaluating scorers run in the worker itself",
    "plainrl/workers.py",
    '    return _in_child(request["seconds"], task, place, answer)',
    '    return _points(task.score(*place, answer)), "", 0.0',
)
def test_an_answer_changes_no_later_verdict():
    """Catches a scorer that an answer replaced, an answer that hangs its worker for good, and a score that is
    no number."""
    task = Hostile(entry_of("countdown")[1])

    def verdict(answer: str) -> tuple[float, str]:
        request = {"seed": 0, "position": 0, "prompt": "", "answer": answer, "seconds": 0.2}
        try:
            return workers._gym(request, task, True, lambda said: None)[:2]
        finally:
            workers._end_after(0)

    assert verdict("9") == (0.0, "")
    assert verdict("1") == (1.0, "") and verdict("9") == (0.0, "")
    start = time.monotonic()
    assert verdict("2") == (0.0, "timeout") and time.monotonic() - start < 3
    assert verdict("open('F')") == (0.0, "not plain") and verdict("twelve") == (0.0, "")
    assert verdict("3") == (0.0, "crash")
    assert verdict("4") == (0.0, "error: ValueError: the scorer gave nan")
    assert verdict("9") == (0.0, "")


def attempts(secret: str, parent: int, port: int) -> dict:
    """What code would try that got into a worker."""
    libc = ctypes.CDLL(None, use_errno=True)

    def network():
        socket.create_connection(("127.0.0.1", port), timeout=1)

    def raw_call():
        if libc.syscall(41 if os.uname().machine == "x86_64" else 198, 2, 1, 0) < 0:  # socket
            raise OSError

    def memory():
        mmap.mmap(-1, 5 << 30)

    def trace():
        if libc.ptrace(0, 0, 0, 0) < 0:  # PTRACE_TRACEME, which harms nobody
            raise OSError

    def fork():
        if os.fork() == 0:
            os._exit(0)

    return {
        "write a file": lambda: open("F", "w"),
        "append to a file": lambda: open(secret, "a"),
        "make a folder": lambda: os.mkdir("D"),
        "remove a file": lambda: os.remove(secret),
        "rename a file": lambda: os.rename(secret, "G"),
        "change rights": lambda: os.chmod(secret, 0o777),
        "shorten a file": lambda: os.truncate(secret, 0),
        "link a file": lambda: os.symlink(secret, "L"),
        "read a file": lambda: open(secret).read(),
        "list a folder": lambda: os.listdir("/"),
        "read its parent's environment": lambda: open(f"/proc/{parent}/environ").read(),
        "read its own": lambda: open("/proc/self/environ").read(),
        "connect": network,
        "connect by number": raw_call,
        "listen": lambda: socket.socket(socket.AF_UNIX),
        "fork": fork,
        "start a program": lambda: subprocess.run(["true"]),
        "send its parent a signal": lambda: os.kill(parent, 0),
        "trace": trace,
        "take memory": memory,
        "write to memory": lambda: os.memfd_create("m"),
        "change its groups": lambda: os.setgroups([]),
        "become a program": lambda: os.execv(sys.executable, ["python", "-c", ""]),
    }


@LINUX
@mutant(
    "files stay open to workers",
    "plainrl/sandbox.py",
    "files, calls = _lock_files(), _lock_calls(may_fork)",
    "files, calls = True, _lock_calls(may_fork)",
)
@mutant(
    "system calls stay open to workers",
    "plainrl/sandbox.py",
    "    files, calls = _lock_files(), _lock_calls(may_fork)",
    "    files, calls = _lock_files(), True",
)
def test_code_that_runs_can_do_nothing(tmp_path, monkeypatch):
    """Catches a worker with rights: to write, to read the token, to reach the network, to start programs."""
    monkeypatch.chdir(tmp_path)
    secret = tmp_path / "secret"
    secret.write_text("token")
    reading, writing = os.pipe()
    with socket.create_server(("127.0.0.1", 0)) as server:
        child = os.fork()
        if child == 0:
            try:
                tried = attempts(str(secret), os.getppid(), server.getsockname()[1])
                succeeded = [f"lock: {what}" for what in sandbox.lock()]
                for what, attempt in tried.items():
                    try:
                        attempt()
                        succeeded.append(what)
                    except (OSError, MemoryError):
                        pass
                left = Path(sandbox.__file__).read_text()[:13]
                os.write(writing, json.dumps([succeeded, left]).encode())
            finally:
                os._exit(0)
        os.close(writing)
        found = os.read(reading, 10_000)
        os.close(reading)
        os.waitpid(child, 0)
    assert json.loads(found) == [[], '"""What a gra']  # nothing but computing, and reading Python's files
    assert [path.name for path in tmp_path.iterdir()] == ["secret"] and secret.read_text() == "token"


@POSIX
def test_attacks_through_the_worker(tmp_path, monkeypatch):
    """Catches a way round all this in the real worker: all attacks are refused quickly, right answers are
    right before and after."""
    monkeypatch.setattr(workers, "GRADE_SECONDS", 60.0)
    monkeypatch.chdir(tmp_path)
    task = load_task("gym:countdown")
    entry = task.entry(0, 5)
    place = {"spec": task.spec, "seed": 0, "position": 5, "prompt": task.prompt(entry)}

    def ask(answer: str) -> tuple[float, str]:
        return ask_worker({"kind": "gym", "answer": answer, **place})

    assert ask(entry["answer"]) == (1.0, "")
    pids = [worker.pid for worker in workers._all]
    start = time.monotonic()
    for text in ATTACKS + BOMBS:
        score, why = ask(text)
        assert score == 0.0 and why in ("not plain", "")
    assert time.monotonic() - start < 20
    assert ask(entry["answer"]) == (1.0, "") and ask("1 + 1")[0] < 1
    assert [worker.pid for worker in workers._all] == pids and not list(tmp_path.iterdir())
    assert not workers._missing or sys.platform != "linux"
