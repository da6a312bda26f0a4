"""What a script says it needs, for `uv run script.py`, is what requirements.txt says."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.py", "papers/*.py", "tools/*.py")
    for path in ROOT.glob(pattern)
    if "__main__" in path.read_text(encoding="utf-8")
)
BLOCK = re.compile(r"(?m)^# /// (?P<type>[a-zA-Z0-9-]+)$\s(?P<content>(^#(| .*)$\s)+)^# ///$")  # of PEP 723


def metadata(script: str) -> dict:
    """The block of a script, read as PEP 723 reads it. It ends the file, so that a reader meets it last."""
    text = (ROOT / script).read_text(encoding="utf-8")
    blocks = [block for block in BLOCK.finditer(text) if block["type"] == "script"]
    assert len(blocks) == 1, f"{script}: {len(blocks)} blocks `# /// script`"
    assert text[blocks[0].end() :] == "\n", f"{script}: lines behind the block"
    return tomllib.loads(re.sub("(?m)^# ?", "", blocks[0]["content"]))


def required() -> list[str]:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_there_are_scripts():
    """Catches a search that finds none."""
    assert {"grpo.py", "siren.py", "eval.py", "papers/dapo.py", "tools/compose.py"} <= set(SCRIPTS)


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_needs_what_requirements_say(script):
    """Catches a version that was changed in one place, and a script that uv would run without a package."""
    assert metadata(script)["dependencies"] == required()


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_python_of_a_script_is_that_of_the_project(script):
    """Catches a block that asks for a Python in which the project is not checked."""
    oldest = re.search(r'target-version = "py3(\d+)"', (ROOT / "ruff.toml").read_text(encoding="utf-8"))
    assert metadata(script)["requires-python"] == f">=3.{oldest[1]}"
