"""Runs tests against mutated source, two mutations at a time. `python mutation_driver.py CASES TOY_MODEL OUT`

CASES is a JSON list of {"edits": {file: [old, new]}, "tests": [...]}; with old null, new is appended. One process imports torch
once and forks for each case; the child imports the mutated files, everything that uses them and the tests anew, and leaves
OUT/<number>.json: the marker of each mutated module and {test: [outcome, ...]}.
"""

import gc
import importlib.abc
import importlib.util
import json
import os
import signal
import sys
from pathlib import Path

import matplotlib.pyplot  # noqa: F401
import numpy  # noqa: F401
import peft  # noqa: F401
import pytest
import torch  # noqa: F401
import torch.distributed.checkpoint.state_dict  # noqa: F401
import torch.distributed.fsdp  # noqa: F401
import torch.utils.checkpoint  # noqa: F401
import tyro  # noqa: F401
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM  # noqa: F401
from transformers.models.auto import modeling_auto  # noqa: F401

ROOT = Path(__file__).resolve().parent.parent
MARKER = "MUTATED_BY_TEST"
SECONDS = 300  # for one case


class MutatedSource(importlib.abc.MetaPathFinder, importlib.abc.SourceLoader):
    """Imports the edited files from memory, with a marker in the module, and leaves every other import alone."""

    def __init__(self, edits: dict[str, list[str]]):
        self.sources = {}
        for file, (old, new) in edits.items():
            source = (ROOT / file).read_text()
            assert old is None or source.count(old) == 1, f"{file}: {old!r} occurs {source.count(old)} times"
            self.sources[file] = source + new if old is None else source.replace(old, new)

    def find_spec(self, name, path, target=None):
        if f"{name}.py" in self.sources:
            return importlib.util.spec_from_file_location(name, ROOT / f"{name}.py", loader=self)

    def get_filename(self, name):
        return str(ROOT / f"{name}.py")

    def get_data(self, path):
        return self.sources[Path(path).name].encode()

    def exec_module(self, module):
        setattr(module, MARKER, True)
        super().exec_module(module)


class Outcomes:
    """A pytest plugin that keeps what became of each test."""

    def __init__(self):
        self.of = {}

    def pytest_runtest_logreport(self, report):
        if report.when == "call" or report.outcome != "passed":
            outcome = report.outcome if report.when == "call" else f"{report.when} {report.outcome}"
            self.of.setdefault(report.nodeid.removeprefix("tests/"), []).append(outcome)


def run_case(number: int, case: dict, out: Path) -> None:
    """In the child: import the mutated source, run the tests, write the result."""
    signal.alarm(SECONDS)
    with open(out / f"{number}.txt", "w") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    sys.meta_path.insert(0, MutatedSource(case["edits"]))
    outcomes = Outcomes()
    options = ["-q", "-p", "no:cacheprovider", "--tb=line", "--assert=plain", f"--rootdir={ROOT}"]
    options.append(f"--basetemp={out / f'{number}.tmp'}")
    status = int(pytest.main([*options, *(f"tests/{test}" for test in case["tests"])], plugins=[outcomes]))
    modules = {file: getattr(sys.modules.get(Path(file).stem), MARKER, None) for file in case["edits"]}
    (out / f"{number}.json").write_text(json.dumps({"status": status, "markers": modules, "outcomes": outcomes.of}))


def main(cases: list[dict], out: Path) -> None:
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    gc.freeze()  # what was imported here need not be looked through in every child
    waiting, running = list(enumerate(cases)), 0
    while waiting or running:
        if waiting and running < 2:
            number, case = waiting.pop(0)
            if os.fork() == 0:
                try:
                    run_case(number, case, out)
                finally:
                    sys.stdout.flush()
                    os._exit(0)
            running += 1
        else:
            os.wait()
            running -= 1


if __name__ == "__main__":
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    os.environ["PLAINRL_TOY_MODEL"] = sys.argv[2]
    main(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[3]))
