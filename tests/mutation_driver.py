"""Runs tests against broken source, two cases at a time. `python mutation_driver.py CASES TOY_MODEL OUT`

CASES is a JSON list of {"edits": {file: [old, new]}, "tests": [...], "seconds": limit}; with old null, new is
appended. One process imports torch and compiles this repository's files. It forks one for the cases of each
test module, which starts pytest and imports the module. That one forks again for each case. The child forgets
the edited files and all that import them, so that these are imported anew, and runs the tests. OUT gets
<number>.txt, what the child wrote, and <number>.json: the edited files that were imported,
{test: [outcome, ...]}, the processor time, or that it was killed because its time was over.
"""

import functools
import gc
import importlib.abc
import importlib.util
import json
import os
import re
import signal
import sys
import time
import traceback
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
OPTIONS = ["-q", "--tb=line", "--assert=plain", f"--rootdir={ROOT}"]
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


IMPORT = re.compile(r"^ *(?:from +([\w.]+) +)?import +(\([^)]*\)|.*)", re.MULTILINE)


def imported_by(source: str) -> set[str]:
    """Names of all modules that a source may import, wherever in it."""
    names = set()
    for package, what in IMPORT.findall(source):
        words = re.findall(r"[\w.]+", what)
        names |= {package, *(f"{package}.{word}" for word in words)} if package else set(words)
    return names


@functools.cache
def importers() -> dict[str, set[str]]:
    """The modules that import each of this repository's modules."""
    found = {module_of(file): set() for file in SOURCES}
    for file, source in SOURCES.items():
        for name in imported_by(source) & found.keys():
            found[name].add(module_of(file))
    return found


def built_on(modules: set[str]) -> set[str]:
    """These modules, those that import them, those that import these, and so on."""
    found, new = set(), set(modules)
    while new:
        found |= new
        new = set().union(*(importers()[name] for name in new)) - found
    return found


class Repository(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports this repository's files from compiled code, the edited ones with a marker in the module."""

    def __init__(self):
        self.files, self.edits = {module_of(file): file for file in SOURCES}, {}

    def edit(self, edits: dict[str, list[str]]) -> None:
        """From now on these files have other sources. What was made of the old ones is forgotten."""
        self.edits = {file: edited(file, *edit) for file, edit in edits.items()}
        for name in built_on({module_of(file) for file in edits}):
            sys.modules.pop(name, None)
            package, _, short = name.rpartition(".")
            if package in sys.modules:
                vars(sys.modules[package]).pop(short, None)  # where `from package import short` finds it

    def find_spec(self, name, path, target=None):
        if name in self.files:
            return importlib.util.spec_from_file_location(name, ROOT / self.files[name], loader=self)

    def exec_module(self, module):
        file = self.files[module.__name__]
        if file in self.edits:
            setattr(module, MARKER, True)
        exec(compiled(file, self.edits.get(file, SOURCES[file])), vars(module))


def modules_of(case: dict) -> tuple[str, ...]:
    """The test modules of a case's tests."""
    return tuple(sorted({test.partition("::")[0] for test in case["tests"]}))


class Group:
    """A plugin of pytest: cases of the same test modules, each in a fork of a process that imported them."""

    def __init__(self, cases: dict[int, dict], out: Path):
        self.cases, self.out = cases, out
        self.modules = sorted({module for case in cases.values() for module in modules_of(case)})
        self.place, self.case, self.outcomes = None, None, {}  # of a child

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection(self, session):
        """pytest is ready to look for tests. It does so in the children, and finds none in their parent."""
        gc.disable()  # a second's work leaves little garbage
        repository = Repository()
        sys.meta_path.insert(0, repository)
        for module in self.modules:
            with suppress(Exception, pytest.skip.Exception):  # of which the children's output tells
                importlib.import_module(module.removesuffix(".py"))
        gc.freeze()  # what was imported here need not be looked through in every child
        for number, case in self.cases.items():
            place = self.out / str(number)
            child = os.fork()
            if child == 0:
                self.case, self.place = case, place
                begin(session.config, case, place)
                repository.edit(case["edits"])
                return None
            finish(place.with_suffix(".json"), **wait_for(child, case["seconds"]))
        return True

    @pytest.hookimpl(tryfirst=True)
    def pytest_ignore_collect(self, collection_path):
        """pytest need not look at the other files of the folder,"""
        return True if collection_path.suffix == ".py" and collection_path.name not in self.modules else None

    @pytest.hookimpl(tryfirst=True)
    def pytest_pycollect_makeitem(self, name):
        """nor at other tests."""
        wanted = {test.partition("::")[2].partition("[")[0] for test in self.case["tests"]}
        return [] if name.startswith("test_") and name not in wanted else None

    def pytest_runtest_logreport(self, report):
        if report.when == "call" or report.outcome != "passed":
            outcome = report.outcome if report.when == "call" else f"{report.when} {report.outcome}"
            self.outcomes.setdefault(report.nodeid.removeprefix("tests/"), []).append(outcome)

    def run(self) -> None:
        files = [f"tests/{module}" for module in self.modules]
        place = f"--basetemp={self.out / str(min(self.cases))}.tmp"  # emptied before each child uses it
        status = int(pytest.main([*OPTIONS, place, *files], plugins=[self]))
        if self.place:
            edits = self.case["edits"]
            imported = [file for file in edits if hasattr(sys.modules.get(module_of(file)), MARKER)]
            result = {"status": status, "imported": imported, "outcomes": self.outcomes}
            self.place.with_suffix(".json").write_text(json.dumps(result))
        else:
            assert status == pytest.ExitCode.NO_TESTS_COLLECTED, "its children came to no end"


def begin(config, case: dict, place: Path) -> None:
    """In a child: a group of processes of its own, for `end`, and pytest's options for this case."""
    os.setpgid(0, 0)
    config.args = [f"tests/{test}" for test in case["tests"]]
    config.option.maxfail = int(len(case["tests"]) == 1)  # one case that is red is enough
    capture = config.pluginmanager.getplugin("capturemanager")
    capture.stop_global_capturing()  # it holds the parent's output
    with open(place.with_suffix(".txt"), "w") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    capture.start_global_capturing()
    capture.suspend_global_capture()


def end(child: int) -> None:
    """Kill what is left of a child and of the processes that it started."""
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)


def wait_for(child: int, seconds: float) -> dict:
    """How a child ended: its processor time, or that it took longer than it may."""
    deadline = time.monotonic() + seconds
    try:
        while time.monotonic() < deadline:
            ended, _, used = os.wait4(child, os.WNOHANG)
            if ended:
                return {"seconds": used.ru_utime + used.ru_stime}
            time.sleep(0.005)
    finally:
        end(child)
    os.waitpid(child, 0)
    return {"hung": True}


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
    importers()
    hypothesis.settings.register_profile("any failure", phases=[hypothesis.Phase.generate], database=None)
    hypothesis.settings.load_profile("any failure")  # that is red, and need not be made small
    groups = {}
    for number, case in enumerate(cases):
        groups.setdefault(modules_of(case), {})[number] = case
    waiting, running = sorted(groups.values(), key=len, reverse=True), 0
    while waiting or running:
        while waiting and running < AT_ONCE:
            group = Group(waiting.pop(0), out)
            running += 1
            if os.fork() == 0:
                status = 1
                try:
                    group.run()
                    status = 0
                except BaseException:
                    traceback.print_exc()
                finally:  # of this process, and of each child that it forks
                    sys.stdout.flush()
                    os._exit(status)
        _, status = os.wait()
        assert status == 0, "a group of cases came to no end: see above"
        running -= 1


def finish(file: Path, **more) -> None:
    """Add to the result of a child, which may have left none."""
    found = json.loads(file.read_text()) if file.exists() and not more.get("hung") else {}
    file.write_text(json.dumps(found | more))


if __name__ == "__main__":
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    os.environ["PLAINRL_TOY_MODEL"] = sys.argv[2]
    main(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[3]))
