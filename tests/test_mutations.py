"""Breaks the source in many ways, one at a time, and runs the tests that claim to see it: each must go red.

The ways stand beside these tests, as tests/mutants.py explains. A sample of them is tried, and every one with
`pytest --every-mutant tests/test_mutations.py`. `pytest -s` shows what took longest.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from mutants import ROOT, Mutant, chosen_mutants

MUTANTS = chosen_mutants()
MODULES = sorted({test.partition("::")[0] for mutant in MUTANTS for test in mutant.tests})


def unbroken(module: str) -> dict:
    """The control of a test module: the files that its mutants change get one more line, and its tests must
    stay green."""
    edits, tests = {}, []
    for mutant in MUTANTS:
        own = [test for test in mutant.tests if test.startswith(f"{module}::")]
        tests += own
        if own:
            edits[mutant.file] = [None, "\nNO_OP = True\n"]
    return {"edits": edits, "tests": list(dict.fromkeys(tests)), "seconds": 300}


def broken(mutant: Mutant) -> dict:
    edits = {mutant.file: [mutant.old, mutant.new]}
    return {"edits": edits, "tests": mutant.tests, "seconds": mutant.seconds}


@pytest.fixture(scope="module")
def results(request, toy_model, tmp_path_factory) -> dict[str, dict]:
    """What mutation_driver.py found for each selected mutant and for the test modules that they need."""
    chosen = [item.callspec.params for item in request.session.items if hasattr(item, "callspec")]
    mutants = [params["mutant"] for params in chosen if isinstance(params.get("mutant"), Mutant)]
    modules = {test.partition("::")[0] for mutant in mutants for test in mutant.tests}
    modules |= {params["module"] for params in chosen if params.get("module") in MODULES}
    cases = {module: unbroken(module) for module in MODULES if module in modules}  # before the mutants
    cases |= {mutant.name: broken(mutant) for mutant in mutants if ROOT.joinpath(mutant.file).exists()}

    out = tmp_path_factory.mktemp("mutations")
    (out / "cases.json").write_text(json.dumps(list(cases.values())))
    driver = str(Path(__file__).with_name("mutation_driver.py"))
    done = subprocess.run(
        [sys.executable, driver, str(out / "cases.json"), toy_model, str(out)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    found = {}
    for number, name in enumerate(cases):
        result, output = (out / f"{number}.{kind}" for kind in ("json", "txt"))
        found[name] = json.loads(result.read_text()) | {"output": output.read_text()[-4000:]}
    seconds = {name: result.get("seconds", cases[name]["seconds"]) for name, result in found.items()}
    print(f"\n{sum(seconds.values()):.0f} s of processor time in {len(seconds)} cases; the longest:")
    for name in sorted(seconds, key=seconds.get, reverse=True)[:20]:
        print(f"{seconds[name]:6.2f}  {name}: {' '.join(cases[name]['tests'])[:80]}")
    return found


def outcomes_of(test: str, result: dict) -> set[str]:
    """The outcomes of a test, all of its parameters together."""
    cases = result.get("outcomes", {}).items()
    return {each for name, seen in cases if name == test or name.startswith(f"{test}[") for each in seen}


@pytest.mark.parametrize("module", MODULES)
def test_unbroken_source_passes(module, results):
    """Catches a harness in which everything fails anyway, or that tests other modules than those it broke.

    It stands for these tests: where it is chosen, conftest.py does not run them by themselves too.
    """
    result = results[module]
    assert not result.get("hung"), f"not over within 300 s\n{result['output']}"
    assert result.get("status") == 0, result["output"]
    for test in unbroken(module)["tests"]:
        assert outcomes_of(test, result) == {"passed"}, f"{test}\n{result['output']}"


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name.replace(" ", "-"))
def test_broken_source_fails(mutant, results):
    """Catches a test that passes on wrong code, and a mutant whose old text is not there (once) any more."""
    times = (ROOT / mutant.file).read_text(encoding="utf-8").count(mutant.old)
    assert times == 1, f"change this mutant: its old text stands in {mutant.file} {times} times"
    result = results[mutant.name]
    assert not result.get("hung"), f"not over within {mutant.seconds} s\n{result['output']}"
    assert result.get("imported") == [mutant.file], result["output"]
    for test in mutant.tests:
        unbroken_outcomes = outcomes_of(test, results[test.partition("::")[0]])
        assert unbroken_outcomes == {"passed"}, f"{test} fails without the mutant too"
        assert "failed" in outcomes_of(test, result), f"{test} does not see it\n{result['output']}"
