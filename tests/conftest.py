"""Shared by all tests: the repository's modules are importable, nothing looks for a network, one very small
model on disk."""

import gc
import os
import signal
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before the first import of transformers
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["OMP_NUM_THREADS"] = "1"  # before that of torch: workers with two threads each slow one another
if "PLAINRL_TEST_ON_GPU" not in os.environ:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # equalities are tested to the last bit, on the CPU
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import pytest  # noqa: E402

LONGEST_FIRST = [
    "test_distributed",
    "test_mutations",
    "test_server",  # waits most of the time: beside files that have several processes
    "test_loop",
    "test_resume",
    "test_compare",
    "test_eval",
]


def pytest_collection_finish() -> None:
    """What was imported by now stays: collections of garbage need not look through it again and again."""
    if gc.isenabled():  # it is not where one test is all that follows: in the children of mutation_driver.py
        gc.collect()
        gc.freeze()


def pytest_addoption(parser) -> None:
    parser.addoption("--every-mutant", action="store_true", help="all of tests/mutants.py, not every sixth")


def pytest_configure(config) -> None:
    """Files are handed to pytest-xdist's workers in the order below, not those with most tests first."""
    if config.getoption("every_mutant"):
        import mutants

        mutants.ONE_OF = 1
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


@pytest.hookimpl(trylast=True)  # after -k and --deselect
def pytest_collection_modifyitems(config, items) -> None:
    """The files that take longest begin first, so that no worker waits for another at the end. No test runs
    twice."""
    place = {name: position for position, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))
    twice = run_by_controls(items)
    if twice:
        config.hook.pytest_deselected(items=[item for item in items if item in twice])
        items[:] = [item for item in items if item not in twice]


def run_by_controls(items) -> set:
    """The tests that the chosen controls of test_mutations.py run too: on unbroken source, and all must pass.

    test_unbroken_source_passes[test_plan.py] runs those of tests/test_plan.py. `pytest tests/test_plan.py`
    chooses no control, so there all tests run by themselves.
    """
    tests = set()
    for item in items:
        if getattr(item, "originalname", "") == "test_unbroken_source_passes":
            tests.update(item.module.unbroken(item.callspec.params["module"])["tests"])
    names = {item: {f"{item.path.name}::{name}" for name in (item.name, item.originalname)} for item in items}
    return {item for item, its_names in names.items() if its_names & tests}


@pytest.fixture(scope="session")
def toy_model(tmp_path_factory) -> str:
    """Folder of a random model with two layers of 32 and the embedded world's kind of tokenizer."""
    ready_made = os.environ.get("PLAINRL_TOY_MODEL")  # test_mutations.py makes it once for all its runs
    if ready_made:
        return ready_made
    import toys

    return toys.save_toy_model(tmp_path_factory.mktemp("toy") / "model")


@pytest.fixture
def quick(monkeypatch):
    """No picture, no page, and Ctrl-C as at a terminal: a shell lets its background jobs ignore it."""
    from plainrl import curves, report

    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setattr(curves, "plot_run", lambda run: None)
    monkeypatch.setattr(report, "write_report", lambda runs: runs[0] / "report.html")
    yield
    signal.signal(signal.SIGINT, handler)
