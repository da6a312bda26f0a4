"""How long the scripts are, and how much of each diff against its base is the paper; writes diffs.md.

    python benchmarks/checks/diffs.py

A changed line is one that `diff BASE x.py` marks with < or >, blank ones left out. Plumbing among them are
imports, the line that finds plainrl/, the name of the run, flags that have moved, and refusals (`fail`). All
else is the paper's idea, its docstring, its flags or its log.
"""

import ast
import re
import subprocess
import sys
from pathlib import Path

import tyro

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
from plainrl.folder import write_text  # noqa: E402

BASES = {  # a script, and the one that it is read as a diff of
    "papers/dr_grpo.py": "grpo.py",
    "papers/dapo.py": "grpo.py",
    "papers/cispo.py": "grpo.py",
    "papers/gspo.py": "grpo.py",
    "papers/unir.py": "grpo.py",
    "papers/general_reasoner.py": "grpo.py",
    "papers/daslam.py": "grpo.py",
    "guide.py": "grpo.py",
    "siren.py": "papers/dr_grpo.py",
    "h1_curriculum.py": "papers/dr_grpo.py",
    "papers/adarft.py": "papers/dr_grpo.py",
    "papers/e2h.py": "papers/dr_grpo.py",
    "papers/naive_bonus.py": "papers/dr_grpo.py",
    "papers/adaptive_bonus.py": "papers/dr_grpo.py",
    "papers/entropy_advantage.py": "papers/dr_grpo.py",
    "papers/high_entropy_tokens.py": "papers/dr_grpo.py",
    "papers/clip_cov.py": "papers/dr_grpo.py",
    "papers/kl_cov.py": "papers/dr_grpo.py",
    "papers/rloo.py": "papers/dr_grpo.py",
    "papers/passk.py": "papers/dr_grpo.py",
    "papers/srpo.py": "papers/passk.py",
    "papers/guide_ablations.py": "guide.py",
    "papers/mft.py": "sft.py",
    "papers/dto.py": "sft.py",
    "papers/distill.py": "sft.py",
}
PLUMBING = re.compile(
    r"(import |from |    [A-Za-z_]+,$|\)$|sys\.path|    run = Run\(|    main\(parse|MOVED|ABLATIONS|"
    r"        fail\()"
)


def changed_lines(base: str, script: str) -> list[str]:
    """Lines of either file that the other has not, without blank ones."""
    diff = subprocess.run(["diff", base, script], cwd=ROOT, capture_output=True, text=True).stdout
    return [line[2:] for line in diff.splitlines() if line[:1] in "<>" and line[2:].strip()]


def length_of_main(script: str) -> int:
    tree = ast.parse((ROOT / script).read_text())
    found = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "main")
    return found.end_lineno - found.lineno + 1


def row(script: str) -> str:
    """A line of the table."""
    lines = len((ROOT / script).read_text().splitlines())
    cells = [f"`{script}`", str(lines), str(length_of_main(script))]
    if script not in BASES:
        return f"| {' | '.join(cells)} | | | |"
    changed = changed_lines(BASES[script], script)
    idea = [line for line in changed if not PLUMBING.match(line)]
    share = f"{100 * len(idea) / len(changed):.0f}%"
    return f"| {' | '.join([*cells, f'`{BASES[script]}`', str(len(changed)), share])} |"


def main() -> None:
    header = "| script | lines | of `main` | base | changed lines | the paper's |"
    table = "\n".join([header, "|---|---|---|---|---|---|", *map(row, ["grpo.py", *BASES])])
    how = " ".join(__doc__.split("\n\n")[-1].split())
    page = f"# What each script changes\n\n{how}\n\n{table}\n\n`python benchmarks/checks/diffs.py`\n"
    write_text(Path(__file__).with_suffix(".md"), page)
    print(page)


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
