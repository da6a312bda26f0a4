"""Rewrites the generated blocks of README.md, docs/ and benchmarks/: nothing in them is copied by hand.

    python benchmarks/pages.py

A block stands between two marks, and its name says where it comes from:

    <!-- generated: horizons.accuracy -->
    ...
    <!-- end -->

Tables of numbers come from the committed logs under runs/reference (`tables` lists them). `code FILE NAME` is
a function without its docstring, `diff FILE FILE` what changes between two scripts, `deviations FILE` what
the docstring of a script numbers, `metrics KEY ...` are rows of the glossary in docs/metrics.md.
tests/test_pages.py holds every block equal to what this command writes.
"""

import ast
import difflib
import html
import json
import re
import sys
from collections.abc import Callable
from functools import cache, partial
from itertools import groupby, zip_longest
from pathlib import Path

import numpy as np
import tyro

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks import (  # noqa: E402
    calibration,
    compare,
    countdown,
    eit,
    entropy,
    fslr,
    graders,
    guide_smollm2,
    gym_tasks,
    h1_smollm2,
    hard_chains,
    horizons,
    memory,
    real_model,
    recipes,
    reference,
    siren_smollm2,
    where_entropy_is,
)
from benchmarks.arms import cell  # noqa: E402
from benchmarks.figures import SCHEDULES, VARIANTS, reference_row, reference_runs  # noqa: E402
from eval import cell as interval  # noqa: E402
from plainrl.curves import read_metrics  # noqa: E402

LOGS = ROOT / "runs/reference"
GLOSSARY = ROOT / "docs/metrics.md"
BLOCK = re.compile(r"(<!-- generated: (.+?) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def pages() -> list[Path]:
    """Every page that may hold blocks; the glossary first, since others take rows of it."""
    found = [
        ROOT / "README.md",
        *ROOT.glob("docs/*.md"),
        *ROOT.glob("papers/*.md"),
        *ROOT.glob("benchmarks/*.md"),
    ]
    return sorted(found, key=lambda page: (page != GLOSSARY, page))


# --- tables of numbers --------------------------------------------------------------------------------------

COMPARISON = LOGS / "eval/grpo-chain-seed0/comparison.json"


def read(file: Path) -> dict:
    return json.loads(file.read_text())


def reference_table() -> str:
    """What the default commands reach on the embedded model."""
    lines = [
        "| method | command | seeds | test avg@16 | pass@16 | unparsed | minutes |",
        "|---|---|---|---|---|---|---|",
    ]
    for variant, seeds in reference_runs().items():
        command = f"`python {reference.VARIANTS[variant]}`"
        lines.append(f"| {VARIANTS[variant]} | {command} | {reference_row(seeds)} |")
    return "\n".join(lines)


def comparison_table() -> str:
    """eval.py: the model that the default command trains against the one that it started from."""
    lines = [
        "| steps | avg@16 | difference | excludes 0 | pass@16 | difference | excludes 0 |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in read(COMPARISON)["rows"]:
        cells = []
        for name in ("avg@16", "pass@16"):
            entry = row["metrics"][name]
            verdict = "yes" if entry["excludes_zero"] else "no"
            cells += [f"{entry['before']:.3f} → {entry['after']:.3f}", interval(entry, signed=True), verdict]
        lines.append(f"| {row['horizon']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def gain() -> str:
    """Where that gain comes from."""
    parts = read(COMPARISON)["rows"][-1]["gain"]
    shown = ", ".join(f"{name} {interval(part)}" for name, part in parts.items())
    return f"where the gain comes from: {shown}."


def uniform_table() -> str:
    """Accuracy that AdaRFT and E2H have more than the uniform mix, paired by seed: their papers' claim."""
    longest = horizons.LONGEST
    columns = {f"h = 1 to {longest} together": range(1, longest + 1)}
    columns[f"{longest + 1} to {longest + 3} together (unseen)"] = range(longest + 1, longest + 4)
    lines = ["| minus uniform mix | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    uniform = horizons.counts(horizons.LOGS, "uniform_mix")

    def mean(right: dict, column: range) -> float:
        return float(np.mean([horizons.accuracy(right, h) for h in column]))

    for schedule in ("adarft", "e2h_cosine", "e2h_gaussian", "curriculum"):
        models, cells = horizons.counts(horizons.LOGS, schedule), []
        for column in columns.values():
            seeds = sorted(models.keys() & uniform.keys())
            gains = [mean(models[seed], column) - mean(uniform[seed], column) for seed in seeds]
            cells.append(cell(gains, signed=True))
        lines.append(f"| {SCHEDULES[schedule]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def sft_table() -> str:
    """What `python sft.py` reaches on the embedded model, and what its rows cost."""
    run = read_metrics(LOGS / "sft/chain-seed0")
    lines = ["| | before | after |", "|---|---|---|"]
    for name in ("test/chain/avg@16", "test/chain/pass@16", "test/chain/frac_unparsed", "eval/loss"):
        first, *_, last = run[name].values()
        digits = 4 if name == "eval/loss" else 3
        lines.append(f"| {name} | {first:.{digits}f} | {last:.{digits}f} |")
    tokens, seconds = max(run["sft/tokens_total"].values()), sum(run["time/train"].values())
    rows = int(max(run["sft/rows_total"].values()))
    lines.append(f"| after {rows:,} rows, {tokens:,} tokens with loss, {seconds:.0f} s of training | | |")
    return "\n".join(lines)


THREE_RUNS = {  # one committed run of each kind
    "healthy": "entropy/dr_grpo/seed1",
    "collapsed": "horizons/only_long/seed5",
    "exploding": "entropy/naive_bonus_strong/seed1",
}
WATCHED = (
    "reward/mean",
    "reward/frac_zero_std",
    "rollout/len_mean",
    "rollout/frac_truncated",
    "rollout/frac_unparsed",
    "policy/entropy",
    "policy/clip_frac",
    "loss/policy",
    "loss/total",
    "optim/grad_norm",
)


def three_runs_table() -> str:
    """Metrics at the first step, after half of the steps and at the last: means of up to five steps there."""
    runs = {title: read_metrics(LOGS / folder) for title, folder in THREE_RUNS.items()}
    lines = ["| first → half → last five steps | " + " | ".join(runs) + " |", "|---" * (len(runs) + 1) + "|"]
    for name in WATCHED:
        cells = []
        for curves in runs.values():
            values = [value for _, value in sorted(curves[name].items())]
            half = len(values) // 2
            parts = (values[:5], values[half - 2 : half + 3], values[-5:])
            cells.append(" → ".join(f"{np.mean(part):.3f}".replace("-0.000", "0.000") for part in parts))
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines)


ON_A_CPU = {  # runs of SmolLM2-135M-Instruct
    "[a name from a short text](grpo.md#a-real-model-on-two-cores)": "grpo/smollm2/seed1",
    "[a sum of four digits, worked](guide.md#a-real-model)": "guide_smollm2/grpo/seed1",
    "[a chain of one to three sums](h1.md#a-real-model)": "h1_smollm2/curriculum/seed1",
}


def costs_table() -> str:
    """What runs of SmolLM2-135M took on a CPU; minutes are sampling and training alone."""
    titles = ["task", "prompts x completions", "tokens, mean (limit)", "threads", "steps", "seconds a step"]
    titles += ["minutes", "peak"]
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for task, folder in ON_A_CPU.items():
        config, run = read(LOGS / folder / "config.json"), read_metrics(LOGS / folder)
        flags, length = config["flags"], np.mean(list(run["rollout/len_mean"].values()))
        seconds = [run["time/rollout"][step] + run["time/train"][step] for step in run["time/train"]]
        cells = [
            task,
            f"{flags['prompts_per_step']} x {flags['group_size']}",
            f"{length:.0f} ({flags['max_new_tokens']})",
            re.search(r"(\d+) threads", config["device"])[1],
            f"{len(seconds)}",
            f"{np.mean(seconds):.0f}",
            f"{sum(seconds) / 60:.0f}",
            f"{max(run['perf/peak_gb'].values()):.1f} GB",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def trials_of(experiment) -> dict:
    return read(experiment.LOGS / "trials.json")


def trials_table(experiment) -> str:
    return experiment.trials_table(trials_of(experiment))


@cache
def report_of(experiment) -> dict[str, str]:
    """Every table of a comparison's reported runs."""
    return experiment.report(experiment.LOGS)


def reported(experiment, name: str) -> str:
    return report_of(experiment)[name]


RECIPES = (eit, fslr)  # the comparisons of benchmarks/recipes.py that were made


def recipe_tables() -> dict[str, Callable[[], str]]:
    """Of each its trials, and a table for every measured task: `eit.trials`, `eit.chain?horizon=3`."""
    found = {}
    for module in RECIPES:
        experiment = module.EXPERIMENT
        found[f"{experiment.name}.trials"] = partial(recipes.trials_table, experiment, experiment.logs)
        for task, table in recipes.report(experiment, experiment.logs).items():
            found[f"{experiment.name}.{task}"] = partial(str, table)
    return found


def tables() -> dict[str, Callable[[], str]]:
    """{name of a block: what makes it}"""
    found = {
        "reference": reference_table,
        "comparison": comparison_table,
        "comparison.gain": gain,
        "horizons.uniform": uniform_table,
        "metrics.three_runs": three_runs_table,
        "costs": costs_table,
        "memory": memory.table,
        "memory.cards": memory.cards_table,
        "calibration": lambda: calibration.page_table(read(ROOT / "benchmarks/calibration.json")["rows"]),
        "calibration_countdown": lambda: calibration.countdown_table(
            read(ROOT / "benchmarks/calibration_countdown.json")["rows"]
        ),
        "countdown.trials": partial(countdown.trials_table, countdown.LOGS),
        "where_entropy_is": partial(where_entropy_is.page_table, LOGS / "where_entropy"),
        "sft": sft_table,
        "real_model": lambda: real_model.page_table(read(LOGS / "grpo/smollm2/seed1/summary.json")),
        "siren_smollm2": partial(siren_smollm2.page_table, LOGS / "siren_smollm2"),
        "guide_smollm2": partial(guide_smollm2.page_table, LOGS / "guide_smollm2"),
        "h1_smollm2": partial(h1_smollm2.page_table, LOGS / "h1_smollm2"),
        "graders.table": graders.table,
        "gym.summary": lambda: gym_tasks.summary(read(LOGS / "gym/tasks.json")),
        "gym.table": lambda: gym_tasks.page_table(read(LOGS / "gym/tasks.json")),
        "entropy.rules": lambda: entropy.rules_table(trials_of(entropy)),
    }
    for experiment in (entropy, hard_chains, horizons):
        title = experiment.__name__.rpartition(".")[2]
        found[f"{title}.trials"] = partial(trials_table, experiment)
        for name in report_of(experiment):
            found[f"{title}.{name}"] = partial(reported, experiment, name)
    for name in report_of(countdown):
        found[f"countdown.{name}"] = partial(reported, countdown, name)
    found |= recipe_tables()
    for name in report_of(compare):
        found[f"speed.{name}"] = partial(reported, compare, name)
    return found


# --- from the source ----------------------------------------------------------------------------------------


def code(file: str, name: str) -> str:
    """A function of a script as a code block, without its docstring."""
    source = (ROOT / file).read_text()
    found = [node for node in ast.walk(ast.parse(source)) if getattr(node, "name", None) == name]
    if len(found) != 1:
        raise ValueError(f"code {file} {name}: {len(found)} functions of this name, not one")
    (node,), lines = found, source.splitlines()
    if ast.get_docstring(node) is None:
        kept = lines[node.lineno - 1 : node.end_lineno]
    else:
        docstring = node.body[0]
        kept = lines[node.lineno - 1 : docstring.lineno - 1] + lines[docstring.end_lineno : node.end_lineno]
    return "```python\n" + "\n".join(kept) + "\n```"


def statements(file: str) -> list[tuple[str, str]]:
    """The lines of a script without docstrings and empty ones, each with the function or class around it."""
    source = (ROOT / file).read_text()
    tree, left_out, owner = ast.parse(source), set(), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(getattr(node.value, "value", None), str):
            left_out |= set(range(node.lineno, node.end_lineno + 1))
    for node in tree.body:
        owner |= dict.fromkeys(range(node.lineno, node.end_lineno + 1), getattr(node, "name", ""))
    lines = enumerate(source.splitlines(), start=1)
    return [
        (line, owner.get(number, "")) for number, line in lines if line.strip() and number not in left_out
    ]


def diff(first: str, second: str) -> str:
    """What changes in the code from one script to another, under the names of the functions it stands in."""
    old, new = statements(first), statements(second)
    texts = [[line for line, _ in script] for script in (old, new)]
    matcher = difflib.SequenceMatcher(None, *texts, autojunk=False)
    place_of = lambda statement: statement[1] or "module"  # noqa: E731
    shown, place = [], None
    for kind, i, j, k, m in matcher.get_opcodes():
        if kind == "equal":
            continue
        blocks = ([list(block) for _, block in groupby(part, place_of)] for part in (old[i:j], new[k:m]))
        for before, after in zip_longest(*blocks, fillvalue=[]):
            if place_of((before or after)[0]) != place:
                place = place_of((before or after)[0])
                shown.append(f"@@ {place} @@")
            shown += [f"-{line}" for line, _ in before] + [f"+{line}" for line, _ in after]
    if not shown:
        raise ValueError(f"diff {first} {second}: their code is the same")
    return "\n".join(["```diff", f"--- {first}", f"+++ {second}", *shown, "```"])


def deviations(file: str) -> str:
    """The numbered deviations from the paper in a script's docstring, [D1], [D2], ..., as a list."""
    docstring = ast.get_docstring(ast.parse((ROOT / file).read_text()))
    items = re.findall(r"^\[(D\d+)\] (.*?)(?=^\[|\n\n|\Z)", docstring, flags=re.DOTALL | re.MULTILINE)
    if not items:
        raise ValueError(f"deviations {file}: its docstring has none")
    return "\n".join(
        f"- **[{number}]** {html.escape(' '.join(text.split()), quote=False)}" for number, text in items
    )


def metrics(*keys: str) -> str:
    """Rows of the glossary: those of a key, or of all keys that begin with what ends in a slash."""
    head, inside, rows = "", False, []
    for line in GLOSSARY.read_text().splitlines():
        if line.startswith("| key |"):
            head, inside = line, True
        inside = inside and line.startswith("|")  # other tables have keys too
        names = re.findall(r"`([^`]+)`", line.split(" | ")[0]) if inside else []
        if any(name == key or (key.endswith("/") and name.startswith(key)) for name in names for key in keys):
            rows.append(line)
    if not rows:
        raise ValueError(f"metrics {' '.join(keys)}: docs/metrics.md has no such row")
    return "\n".join([head, "|---" * (head.count("|") - 1) + "|", *rows])


SOURCES = {"code": code, "diff": diff, "deviations": deviations, "metrics": metrics}

# --- the pages ----------------------------------------------------------------------------------------------


@cache
def all_tables() -> dict[str, Callable[[], str]]:
    return tables()


def block(name: str) -> str:
    """What stands between the marks of a block."""
    kind, *words = name.split()
    if kind in SOURCES and words:
        return SOURCES[kind](*words)
    if name not in all_tables():
        raise ValueError(f"{name}: there is no such block; there are {', '.join([*SOURCES, *all_tables()])}")
    return all_tables()[name]()


def rewritten(text: str) -> str:
    """The text of a page with every block made anew."""
    if text.count("<!-- generated: ") != len(BLOCK.findall(text)):
        raise ValueError("a mark `<!-- generated: NAME -->` has no `<!-- end -->`")
    return BLOCK.sub(lambda found: f"{found[1]}{block(found[2])}\n{found[4]}", text)


def main() -> None:
    for page in pages():
        text = page.read_text()
        try:
            new = rewritten(text)
        except (ValueError, OSError) as error:
            sys.exit(f"error: {page.relative_to(ROOT)}: {error}")
        if new != text:
            page.write_text(new)
            print(f"{page.relative_to(ROOT)}: rewritten")


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
