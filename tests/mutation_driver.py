"""Runs tests against broken source, two cases at a time. `python mutation_driver.py CASES TOY_MODEL OUT`

CASES is a JSON list of {"edits": {file: [old, new]}, "tests": [...], "seconds": limit}; with old null, new is
appended. One process imports torch and compiles this repository's files, then it forks for each case.
The child runs the files and the tests anew, the edited ones among them. OUT gets <number>.txt, what the child
wrote, and <number>.json: the edited files that were imported, {test: [outcome, ...]}, the processor time, or
that it was killed because its time was over.
"""

import functools
import gc
import importlib.abc
import importlib.util
import json
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import hypothesis
import math_verify  # noqa: F401
import matplotlib.backends.backend_agg  # noqa: F401
import matplotlib.figure  # noqa: F401
import numpy  # noqa: F401
import peft  # noqa: F401
import pytest
import torch  # noqa: F401
import torch.distributed.checkpoint.state_dict  # noqa: F401
import torch.distributed.fsdp  # noqa: F401
import torch.utils.checkpoint  # noqa: F401
import tyro  # noqa: F401
from transformers import (  # noqa: F401
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaForCausalLM,
    MistralForCausalLM,
    Qwen2ForCausalLM,
)
from transformers.conversion_mapping import get_checkpoint_conversion_mapping
from transformers.models.auto import modeling_auto  # noqa: F401

ROOT = Path(__file__).resolve().parent.parent
MARKER = "BROKEN_BY_TEST"
AT_ONCE = 2
OPTIONS = ["-q", "--tb=line", "--assert=plain"]
NOT_NEEDED = """cacheprovider unraisableexception threadexception junitxml pastebin doctest stepwise setuponly
setupplan faulthandler logging unittest legacypath""".split()  # pytest's own plugins; some collect garbage
OPTIONS += [option for plugin in NOT_NEEDED for option in ("-p", f"no:{plugin}")]


def module_of(file: str) -> str:
    """plainrl/run.py -> plainrl.run, tests/toys.py -> toys"""
    return ".".join(Path(file).with_suffix("").parts).removeprefix("tests.")


SOURCES = {  # of all files that a test may import
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for folder in ("", "plainrl", "papers", "tools", "benchmarks", "benchmarks/checks", "tests")
    for path in sorted((ROOT / folder).glob("*.py"))
    if path.name != "__init__.py"
}


@functools.cache
def compiled(file: str, source: str):
    """The code of a file with this source. What one process has compiled its forks need not."""
    return compile(source, ROOT / file, "exec", dont_inherit=True)


def edited(file: str, old: str | None, new: str) -> str:
    """The source of a file with `new` in the place of `old`, or at its end."""
    source = SOURCES[file]
    assert old is None or source.count(old) == 1, f"{old!r} stands in {file} {source.count(old)} times"
    return source + new if old is None else source.replace(old, new)


class Repository(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports this repository's files from compiled code, the edited ones with a marker in the module."""

    def __init__(self, edits: dict[str, list[str]]):
        self.sources = SOURCES | {file: edited(file, *edit) for file, edit in edits.items()}
        self.edits = edits
        self.files = {module_of(file): file for file in self.sources}

    def find_spec(self, name, path, target=None):
        if name in self.files:
            return importlib.util.spec_from_file_location(name, ROOT / self.files[name], loader=self)

    def exec_module(self, module):
        file = self.files[module.__name__]
        if file in self.edits:
            setattr(module, MARKER, True)
        exec(compiled(file, self.sources[file]), vars(module))


class Outcomes:
    """A plugin of pytest that keeps what became of each test."""

    def __init__(self):
        self.of = {}

    def pytest_runtest_logreport(self, report):
        if report.when == "call" or report.outcome != "passed":
            outcome = report.outcome if report.when == "call" else f"{report.when} {report.outcome}"
            self.of.setdefault(report.nodeid.removeprefix("tests/"), []).append(outcome)


def run_case(case: dict, place: Path) -> dict:
    """In the child: import the edited source and run the tests."""
    with open(place.with_suffix(".txt"), "w") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    gc.disable()  # a second's work leaves little garbage
    sys.meta_path.insert(0, Repository(case["edits"]))
    outcomes = Outcomes()
    options = [*OPTIONS, f"--rootdir={ROOT}", f"--basetemp={place}.tmp"]
    options += ["--exitfirst"] * (len(case["tests"]) == 1)  # one case that is red is enough
    status = int(pytest.main([*options, *(f"tests/{test}" for test in case["tests"])], plugins=[outcomes]))
    imported = [file for file in case["edits"] if hasattr(sys.modules.get(module_of(file)), MARKER)]
    return {"status": status, "imported": imported, "outcomes": outcomes.of}


def start(case: dict, place: Path) -> int:
    """Fork a child that runs the case, and return its id. It leads a group of its own, for `end`."""
    child = os.fork()
    if child == 0:
        try:
            os.setpgid(0, 0)
            place.with_suffix(".json").write_text(json.dumps(run_case(case, place)))
        finally:
            sys.stdout.flush()
            os._exit(0)
    return child


def end(child: int) -> None:
    """Kill what is left of a child and of the processes that it started."""
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)


def compile_expressions() -> None:
    """Import what has many regular expressions, and forget it: Python keeps these by their text."""
    for module in ("equality", "algebra", "chains"):
        importlib.import_module(f"plainrl.{module}")
    for name in [name for name in sys.modules if name.partition(".")[0] == "plainrl"]:
        del sys.modules[name]


def main(cases: list[dict], out: Path) -> None:
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # other packages' plugins are not needed either
    pytest.main(["--help", "--noconftest"])  # imports pytest's own plugins, once for all children
    get_checkpoint_conversion_mapping("llama")  # a table that the first model that is loaded needs
    for file, source in SOURCES.items():
        compiled(file, source)
    compile_expressions()
    for case in cases:
        if len(case["edits"]) > 1:  # a control, as of every other test module
            for file, edit in case["edits"].items():
                compiled(file, edited(file, *edit))
    hypothesis.settings.register_profile("any failure", phases=[hypothesis.Phase.generate], database=None)
    hypothesis.settings.load_profile("any failure")  # that is red, and need not be made small
    gc.freeze()  # what was imported here need not be looked through in every child
    waiting, running = list(enumerate(cases)), {}  # number and deadline of each child
    try:
        while waiting or running:
            while waiting and len(running) < AT_ONCE:
                number, case = waiting.pop(0)
                running[start(case, out / str(number))] = number, time.monotonic() + case["seconds"]
            child, _, used = os.wait4(-1, os.WNOHANG)
            if child:
                number, _ = running.pop(child)
                end(child)
                finish(out / f"{number}.json", seconds=used.ru_utime + used.ru_stime)
                continue
            for child, (number, deadline) in list(running.items()):
                if time.monotonic() > deadline:
                    end(child)
                    os.waitpid(child, 0)
                    running.pop(child)
                    finish(out / f"{number}.json", hung=True)
            time.sleep(0.01)
    finally:
        for child in running:
            end(child)


def finish(file: Path, **more) -> None:
    """Add to the result of a child, which may have left none."""
    found = json.loads(file.read_text()) if file.exists() and not more.get("hung") else {}
    file.write_text(json.dumps(found | more))


if __name__ == "__main__":
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    os.environ["PLAINRL_TOY_MODEL"] = sys.argv[2]
    main(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[3]))
