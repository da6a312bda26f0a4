"""plainrl/screen.py: a stranger's text on the terminal, terminals that cannot show it or are gone, and what
is said while something takes long."""

import ast
import io
import os
import sys
from types import SimpleNamespace

import pytest
from mutants import ROOT, mutant
from toys import FakeSampler, FunctionTask, quick_flags

import eval as evaluation
import guide
from papers import dapo
from plainrl import run as run_module, screen
from plainrl.tasks import Grade, Problem

HOSTILE = {
    "\x1b[2J": r"\x1b[2J",
    "\x1b]0;title\x07": r"\x1b]0;title\x07",
    "\r": r"\r",
    "\x00\x08\x7f": r"\x00\x08\x7f",
    "\x85\x9b2J": r"\x85\x9b2J",
    "\u202e\u2066\u200b\ufeff": r"\u202e\u2066\u200b\ufeff",
    "\u2028\u2029": r"\u2028\u2029",
    "\ud800": r"\ud800",
    "\U000e0041": r"\U000e0041",
}
ATTACK = "".join(HOSTILE)
HARMLESS = "a  b\tc\n\u00e4\u00a0\u3000\u4f60\u597d \U0001f600 \\x1b \u00bd"


def is_safe(printed: str) -> bool:
    """Whether nothing in it steers a terminal."""
    return all(char in "\n\t" or char.isprintable() or char in "\u00a0\u3000" for char in printed)


@mutant(
    "escape sequences on the screen",
    "plainrl/screen.py",
    "for char in text]\n    return",
    'if True else ""]\n    return',
)
@mutant(
    "letters of other scripts spelt out",
    "plainrl/screen.py",
    "return char.isprintable() or",
    "return char.isascii() and char.isprintable() or",
)
@mutant(
    "lines forged within a line",
    "plainrl/screen.py",
    'kept = "" if one_line else "\\n\\t"',
    'kept = "\\n\\t"',
)
def test_shown():
    """Catches text that clears the screen, sets the window's title, overwrites its line or turns it round,
    and harmless text of other languages that is spelt out."""
    for text, spelt in HOSTILE.items():
        assert screen.shown(f"a{text}b") == f"a{spelt}b" and is_safe(screen.shown(text))
    assert screen.shown(HARMLESS) == HARMLESS
    assert len(screen.shown(f"{ATTACK}\n{ATTACK}").splitlines()) == 2
    assert screen.shown("7\n 9/9\t", one_line=True) == r"7\n 9/9\t"


@mutant("text printed as it is", "plainrl/screen.py", "print(shown(text).encode", "print(text.encode")
@mutant(
    "error text printed as it is", "plainrl/screen.py", 'f"error: {shown(message)}"', 'f"error: {message}"'
)
def test_whatever_is_said_is_safe(capsys):
    """Catches a way to the terminal that leads around `shown`: a line, a complaint, an error."""
    screen.say(f"prompt {ATTACK} {HARMLESS}")
    screen.complain(ATTACK)
    with pytest.raises(SystemExit) as stop:
        screen.or_fail(int, f"{ATTACK}")
    with pytest.raises(SystemExit) as other:
        screen.fail(f"--task {ATTACK}: unknown")
    out, err = capsys.readouterr()
    assert is_safe(out) and HARMLESS in out and all(spelt in out for spelt in HOSTILE.values())
    assert is_safe(err) and err and is_safe(stop.value.code) and is_safe(other.value.code)


def test_a_sample_on_the_screen_is_safe(tmp_path, capsys):
    """Catches a completion, prompt, gold or parsed answer of the first group that reaches the terminal as it
    is, or begins a line of its own."""
    problem = Problem(f"prompt {ATTACK}\rstep", f"gold {ATTACK}")
    grade = Grade(False, 0.0, f"parsed {ATTACK}", f"why {ATTACK}")
    rollout = SimpleNamespace(
        problems=[problem], group_size=1, texts=[f"text {ATTACK}\x0b9/9 | 1.0"], grades=[grade]
    )
    run = run_module.Run.__new__(run_module.Run)
    run.dir, run.state, run.args = tmp_path, {"step": 0}, SimpleNamespace(report=False)
    run.log_samples(rollout, None)
    out = capsys.readouterr().out
    assert is_safe(out) and "gold" in out and all(line.startswith("  | ") for line in out.splitlines())


def test_evaluation_shows_names_safely(capsys):
    """Catches a model's or a task's name that steers the terminal from eval.py's tables."""
    entry = {"value": 0.5, "low": 0.4, "high": 0.6, "too_narrow": False}
    names = ("avg@1", "pass@1", "maj@1", "frac_unparsed", "frac_truncated", "frac_timeout", "frac_errors")
    row = {"metrics": dict.fromkeys((*names, "len_mean"), entry), "independent_errors": None, "horizon": 1}
    settings = {"model": ATTACK, "task": ATTACK, "split": "test", "problems": 1, "samples": 1}
    settings |= {"temperature": 1.0, "top_p": 1.0, "max_new_tokens": 8}
    evaluation.show({"settings": settings, "rows": [row]})
    out = capsys.readouterr().out
    assert is_safe(out) and "avg@1" in out and "score" not in out


OTHER_ENDS = {"plainrl/screen.py", "plainrl/ranks.py", "plainrl/workers.py"}  # ranks: what `fail` hands over


def test_nothing_is_printed_around_the_screen():
    """Catches a new `print`, or `sys.exit` with a message, which a stranger's text passes as it is."""
    paths = [
        path for folder in (".", "plainrl", "papers", "tools") for path in ROOT.joinpath(folder).glob("*.py")
    ]
    found = []
    for path in paths:
        name = str(path.relative_to(ROOT))
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and name not in OTHER_ENDS:
                text = ast.unparse(call)
                exits = text.startswith("sys.exit(") and not isinstance(call.args[0], ast.Constant)
                found += [f"{name}, line {call.lineno}: {text}"] * (text.startswith("print(") or exits)
    assert not found


# --- terminals ----------------------------------------------------------------------------------------------


@mutant(
    "terminal that knows ASCII only", "plainrl/screen.py", '"backslashreplace").decode', '"strict").decode'
)
@pytest.mark.parametrize(
    "encoding, shown", [("ascii", r"\xe4 \U0001f600"), ("latin-1", "\u00e4 \\U0001f600")]
)
def test_terminal_that_is_not_utf8(monkeypatch, encoding, shown):
    """Catches a run that ends in a UnicodeEncodeError, after hours, at the first letter that a terminal
    lacks."""
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding))
    screen.say("\u00e4 \U0001f600")
    assert written.getvalue().decode(encoding) == shown + "\n"


@mutant(
    "closed pipe that ends the run",
    "plainrl/screen.py",
    "    except OSError:\n        with",
    "    except KeyError:\n        with",
)
@mutant(
    "complaint at the end about a closed pipe",
    "plainrl/screen.py",
    "os.dup2(nowhere, stream.fileno())",
    "pass",
)
def test_closed_pipe(monkeypatch):
    """Catches a run that ends when `| head -1` has seen enough, and a traceback at its end."""
    reader, writer = os.pipe()
    stream = open(writer, "w", encoding="utf-8")
    monkeypatch.setattr(sys, "stdout", stream)
    os.close(reader)
    screen.say("nobody reads this")
    screen.say("nor this")
    stream.close()  # as the interpreter does at its end; raises if something could not be written
    screen.say("closed")
    monkeypatch.setattr(sys, "stdout", None)  # started with >&-
    screen.say("none")


# --- what takes long ----------------------------------------------------------------------------------------


@mutant(
    "line of progress at every call",
    "plainrl/screen.py",
    'time.monotonic() - work["said"] < EVERY',
    'time.monotonic() - work["said"] < 0',
)
@mutant(
    "progress that forgets what was done before",
    "plainrl/screen.py",
    'work["before"] + done * ranks.WORLD_SIZE',
    "done * ranks.WORLD_SIZE",
)
def test_progress(monkeypatch, capsys):
    """Catches minutes of silence before the first step, a line for every token, and lines while a step is
    sampled, which has its own."""
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(screen, "time", clock)
    screen.progress(1)  # outside
    with screen.working("scoring test", 40, "completions") as work:
        for done in range(20):
            clock.now += 1
            screen.progress(done)
        work["before"] = 20
        for done in range(20):
            clock.now += 1
            screen.progress(done)
    clock.now += 100
    screen.progress(1)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "  scoring test: 9 of 40 completions after 0:00:10" and len(lines) == 4
    assert lines[2] == "  scoring test: 29 of 40 completions after 0:00:30"
    screen.say_if_slow(clock.now - 4, "quick")
    screen.say_if_slow(clock.now - 6, "slow")
    assert capsys.readouterr().out == "slow\n"


def test_work_that_fails_is_over():
    """Catches a score that failed and whose progress is shown in all that follows."""
    with pytest.raises(KeyError), screen.working("scoring test", 40, "completions"):
        raise KeyError
    assert screen.work is None


@mutant(
    "rounds of refilling in silence",
    "guide.py",
    'say_if_slow(began, f"  round {round + 1}: {len(groups)} of {B} groups have differences")',
    "pass",
    case="guide",
)
@mutant(
    "rounds of refilling in silence, DAPO",
    "papers/dapo.py",
    'say_if_slow(began, f"  round {rounds}: {len(kept)} of {B} groups have differences")',
    "pass",
    case="dapo",
)
@pytest.mark.parametrize("script", [guide, dapo], ids=["guide", "dapo"])
def test_rounds_of_refilling_are_said(quick, toy_model, tmp_path, monkeypatch, capsys, script):
    """Catches many minutes of a step without a word."""
    sampler = FakeSampler(lambda prompt, sample, seed: ([5, 6], "stop"))
    flags = quick_flags(toy_model, tmp_path / "run", steps=1, max_refills=1, max_logprob_gap=1e9)
    flags |= {"trigger": "never"} if script is guide else {}
    monkeypatch.setattr(screen, "SLOW", -1)
    script.main(script.Args(**flags), FunctionTask(lambda text, problem: 0.0), sampler)
    out = capsys.readouterr().out
    assert "  round 1: 0 of 2 groups have differences\n  round 2: 0 of 2 groups" in out


@mutant("screen: time of all the work", "plainrl/screen.py", "/ done * left", "/ left * done")
def test_time_left_and_ctrl_c(monkeypatch):
    """Catches the time that the whole work takes, or took, and a traceback where a user stops a command."""
    monkeypatch.setattr(screen.time, "monotonic", lambda: 100.0)
    assert screen.time_left(began=40.0, done=30, left=15) == "0:00:30"  # half of the minute so far

    @screen.stoppable("the same command goes on")
    def stopped():
        raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(SystemExit, match="^\nstopped; the same command goes on$"):
            stopped()
