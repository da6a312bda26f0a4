"""Mutants: the source broken in one place, named beside the test that must go red for it.

    @mutant("sign of the loss", "grpo.py", "return -torch.min(", "return torch.min(")
    def test_clipped_surrogate_in_each_quadrant(...):

`old` stands in `file` once, and `new` takes its place. A mutant that several tests must catch stands on each
of them: in full on one of them, with its name alone on the others. A test with parameters is red when one of
its cases is; `case` is the id of the one to run, where all would take long. A mutant has `seconds` to end. If
it takes longer it is killed, and it alone counts as not caught.

tests/test_mutations.py finds these lines in the text of the test files, so what stands in them are literals.
It tries every sixth of a test file's, and all of them with `pytest --every-mutant tests/test_mutations.py`.
"""

import ast
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ONE_OF = 6  # conftest.py makes it 1 for --every-mutant


@dataclass
class Mutant:
    """One of them, with all the tests that must catch it: ids of pytest, below tests/."""

    name: str
    file: str = ""
    old: str = ""
    new: str = ""
    seconds: int = 60
    tests: list[str] = field(default_factory=list)


def mutant(name: str, file: str = "", old: str = "", new: str = "", *, case: str = "", seconds: int = 60):
    """A decorator that leaves the test as it is."""
    return lambda test: test


def all_mutants() -> list[Mutant]:
    """Those of all test files. Raises ValueError for a name that no test explains, or more than one."""
    found: dict[str, Mutant] = {}
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        text = path.read_text(encoding="utf-8")
        if "@mutant(" not in text:
            continue
        for function in ast.parse(text).body:
            for line in getattr(function, "decorator_list", []):
                if isinstance(line, ast.Call) and ast.unparse(line.func) == "mutant":
                    name, *change = map(ast.literal_eval, line.args)
                    options = {option.arg: ast.literal_eval(option.value) for option in line.keywords}
                    case = f"[{options.pop('case')}]" if "case" in options else ""
                    here = found.setdefault(name, Mutant(name))
                    here.tests.append(f"{path.name}::{function.name}{case}")
                    if change and here.file:
                        raise ValueError(f"two tests say what the mutant {name!r} is: {here.tests}")
                    if change:
                        here.file, here.old, here.new = change
                    here.seconds = options.get("seconds", here.seconds)
    unknown = [each.name for each in found.values() if not each.file]
    if unknown:
        raise ValueError(f"no test says what these mutants are: {unknown}")
    return list(found.values())


def chosen_mutants() -> list[Mutant]:
    """Of each test file the first mutant and every sixth after it; or all."""
    of_file: dict[str, list[Mutant]] = {}
    for each in all_mutants():
        of_file.setdefault(each.tests[0].partition("::")[0], []).append(each)
    return [each for mutants in of_file.values() for each in mutants[::ONE_OF]]
