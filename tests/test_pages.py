"""The pages say what the committed logs and the scripts say: generated blocks, and numbers in sentences."""

import json
import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from mutants import all_mutants

from benchmarks import arms, countdown, coverage, entropy, fslr, pages, recipes
from benchmarks.countdown_tables import Runs, differences

ROOT = Path(__file__).resolve().parent.parent
BLOCKS = [
    (page.relative_to(ROOT), name)
    for page in pages.pages()
    for _, name, _, _ in pages.BLOCK.findall(page.read_text())
]


@pytest.mark.parametrize("page, name", BLOCKS)
def test_a_block_is_what_the_logs_say(page, name):
    """Catches a number or a line of code edited by hand, and logs or a script that changed under a page."""
    shown = [text for _, found, text, _ in pages.BLOCK.findall((ROOT / page).read_text()) if found == name]
    assert shown == [pages.block(name) + "\n"] * len(shown), "run: python benchmarks/pages.py"


def test_every_table_is_shown():
    """Catches a table that no page shows, and a page whose block was forgotten."""
    assert set(pages.all_tables()) == {name for _, name in BLOCKS if name.split()[0] not in pages.SOURCES}


# --- numbers in sentences -----------------------------------------------------------------------------------


def evaluation(folder: str, metric: str) -> str:
    results = json.loads((ROOT / "runs/reference/eval" / folder / "results.json").read_text())
    (row,) = results["rows"]
    assert row["problems"] == len(results["problems"]) == 200 and row["samples"] == 4
    return f"{row['metrics'][metric]['value']:.3f}"


def by_chance() -> str:
    return f"{json.loads(pages.COMPARISON.read_text())['rows'][-1]['forgetting_by_chance']:.3f}"


def paired(arm: str, other: str, metric: str, signed: bool = True) -> str:
    """What an arm of the entropy comparison has more than another, paired by seed."""
    first, second = (entropy.test_scores(entropy.LOGS, name, "1") for name in (arm, other))
    return arms.cell([first[seed][metric] - second[seed][metric] for seed in sorted(first)], signed)


@cache
def countdown_runs() -> Runs:
    return countdown.reported(countdown.LOGS)


def in_countdown(arm: str, other: str, metric: str, temperature: str = "1") -> str:
    """The same in the countdown world."""
    return arms.cell(differences(countdown_runs(), arm, other, metric, temperature), signed=True)


def both_stopped(metric: str) -> str:
    """What SIREN has more than Dr. GRPO where dev stops both."""
    runs = countdown_runs()

    def stopped(arm: str, seed: str) -> float:
        return runs.steps[arm][seed][runs.stopped(seed, arm)]["scores"]["1"][metric]

    gains = [stopped("siren", seed) - stopped("dr_grpo", seed) for seed in runs.seeds("siren")]
    return arms.cell(gains, signed=True)


def at_choices(arm: str) -> str:
    """Nats a token at choices, of an arm of the countdown world."""
    runs = countdown_runs()
    found = [runs.at(arm, seed)["entropy"] for seed in runs.seeds(arm)]
    return arms.cell([each["entropy"] * each["shares"]["choice"] for each in found])


def held() -> str:
    return coverage.held_range((ROOT / "benchmarks/coverage.md").read_text())


def of_first_steps(horizon: str) -> str:
    """What first steps have more of avg@16 than whole solutions at their learning rate, paired by seed."""
    runs, task = recipes.reported(fslr.EXPERIMENT, fslr.EXPERIMENT.logs), f"chain?horizon={horizon}"
    own, other = runs["first_step"], runs["solution_slow"]
    return arms.cell([own[seed][task]["avg"] - other[seed][task]["avg"] for seed in own], signed=True)


def first_steps(count: int) -> str:
    """Minutes of sampling and training that they took, the mean over the reference runs."""
    runs = [pages.read_metrics(folder) for folder in (pages.LOGS / "grpo/grpo").glob("seed*")]
    seconds = [run[part][step] for run in runs for part in TIMES for step in range(1, count + 1)]
    return f"{sum(seconds) / len(runs) / 60:.0f}"


TIMES = ("time/rollout", "time/train")
PLAIN, EXAMPLES = "smollm2-gsm_symbolic", "smollm2-gsm_symbolic-examples"
SENTENCES = [  # page, sentence, what stands in its braces
    ("README.md", "{:,} ways to break it", lambda: len(all_mutants())),
    ("docs/measuring.md", "a true value between .1 and .9 in {} of cases", held),
    ("docs/measuring.md", "boxes next to nothing (unparsed {}", lambda: evaluation(PLAIN, "frac_unparsed")),
    ("docs/measuring.md", ", avg@4 {}); after two worked examples", lambda: evaluation(PLAIN, "avg@4")),
    ("docs/measuring.md", "it does (unparsed {})", lambda: evaluation(EXAMPLES, "frac_unparsed")),
    ("docs/measuring.md", "hardly ever right: avg@4 {},", lambda: evaluation(EXAMPLES, "avg@4")),
    ("docs/measuring.md", ", pass@4 {}.", lambda: evaluation(EXAMPLES, "pass@4")),
    ("docs/grpo.md", "({} for the starting model against itself)", by_chance),
    ("docs/first-run.md", "The 40 steps take {} minutes on one thread", lambda: first_steps(40)),
    ("docs/entropy.md", "a gain of {}", lambda: paired("clip_cov", "dr_grpo", "pass@16")),
    ("docs/siren.md", "over Dr. GRPO in pass@16, {},", lambda: paired("clip_cov", "dr_grpo", "pass@16")),
    (
        "docs/siren.md",
        "with 16 samples as Dr. GRPO or more (pass@16 {})",
        lambda: paired("siren_no_top_p_strong", "dr_grpo", "pass@16"),
    ),
    (
        "docs/siren.md",
        "has lost {} of avg@16",
        lambda: paired("dr_grpo", "siren_no_top_p_strong", "avg@16", signed=False),
    ),
    (
        "docs/entropy.md",
        "with maj@16 {}: p =",
        lambda: in_countdown("entropy_advantage", "dr_grpo", "maj@16"),
    ),
    ("docs/siren.md", "at temperature 0.6 {})", lambda: in_countdown("siren", "dr_grpo", "maj@16", "0.6")),
    ("docs/siren.md", "as much avg@64 ({});", lambda: in_countdown("siren", "dr_grpo", "avg", "0.6")),
    ("docs/siren.md", "stopped early (avg@64 {}, pass", lambda: both_stopped("avg")),
    ("docs/siren.md", ", pass@16 {}). Of the [other", lambda: both_stopped("pass@16")),
    ("docs/siren.md", "there are {} nats a token at choices", lambda: at_choices("siren")),
    ("docs/siren.md", "instead of Dr. GRPO's {}, and", lambda: at_choices("dr_grpo")),
    ("docs/traces.md", "first steps have {} on one step", lambda: of_first_steps("1&family=reversed")),
    ("docs/traces.md", "on one step, {} on two", lambda: of_first_steps("2&family=reversed")),
    ("docs/traces.md", "on two and {} on three", lambda: of_first_steps("3&family=reversed")),
    ("docs/traces.md", "more of the common reading ({})", lambda: of_first_steps("1")),
    ("papers/README.md", "the gain in pass@16 is {}", lambda: paired("clip_cov", "dr_grpo", "pass@16")),
]


@pytest.mark.parametrize("page, sentence, number", SENTENCES)
def test_a_number_in_a_sentence(page, sentence, number):
    """Catches a number in the text that the logs do not give."""
    assert sentence.format(number()) in (ROOT / page).read_text()


def computed(page: Path) -> list[str]:
    """The numbers in sentences of a page that are checked above."""
    return [str(number()) for file, _, number in SENTENCES if ROOT / file == page]


VERDICTS = [page for page in pages.pages() if "- **Verdict" in page.read_text()]


@pytest.mark.parametrize("page", VERDICTS, ids=lambda page: page.stem)
def test_a_verdict_quotes_its_tables(page):
    """Catches a verdict whose numbers are not in the tables below it: with three digits, or checked above."""
    text = page.read_text()
    verdicts = "\n".join(line for line in text.splitlines() if line.startswith("- **Verdict"))
    tables = "\n".join(block for _, _, block, _ in pages.BLOCK.findall(text))
    checked = computed(page)
    for number in re.findall(r"[-+]?\d\.\d{3}(?: ± \d\.\d{3})?", verdicts):
        assert number in tables or number in checked, number


@cache
def measured() -> str:
    """Every table, as a page shows it (the tests above hold that), and the output of every check."""
    texts = [file.read_text() for file in ROOT.glob("benchmarks/checks/*.md")]
    for page in pages.pages():
        blocks = pages.BLOCK.findall(page.read_text())
        texts += [table for _, name, table, _ in blocks if name.split()[0] not in pages.SOURCES]
    return "\n".join(texts)


@pytest.mark.parametrize("page", pages.pages(), ids=lambda page: page.relative_to(ROOT).as_posix())
def test_a_sentence_quotes_a_table(page):
    """Catches a mean with its interval that is in no table any more: one of fewer seeds, say."""
    checked = computed(page)
    for number in re.findall(r"[-+]?\d\.\d{3} ± \d\.\d{3}", pages.BLOCK.sub("", page.read_text())):
        assert number in measured() or number in checked, number


def test_the_three_runs_are_of_their_kind():
    """Catches a table of a healthy, a collapsed and an exploding run that shows something else."""
    runs = {kind: pages.read_metrics(pages.LOGS / folder) for kind, folder in pages.THREE_RUNS.items()}
    last = {}
    for kind, run in runs.items():
        last[kind] = {name: np.mean(list(curve.values())[-5:]) for name, curve in run.items()}
    assert last["healthy"]["reward/mean"] > 0.7 and last["healthy"]["rollout/frac_unparsed"] < 0.01
    assert last["collapsed"]["reward/mean"] < 0.01 and last["collapsed"]["rollout/frac_unparsed"] < 0.01
    assert last["exploding"]["policy/entropy"] > 2 and last["exploding"]["rollout/frac_truncated"] == 1


# --- the command itself -------------------------------------------------------------------------------------


def test_only_the_inside_of_a_block_is_rewritten():
    """Catches a command that touches what was written by hand, or leaves an old table."""
    text = "before\n<!-- generated: memory -->\nold\n<!-- end -->\nafter\n"
    table = pages.block("memory")
    assert pages.rewritten(text) == f"before\n<!-- generated: memory -->\n{table}\n<!-- end -->\nafter\n"
    assert pages.rewritten(pages.rewritten(text)) == pages.rewritten(text)


@pytest.mark.parametrize(
    "text, words",
    [
        ("<!-- generated: nothing -->\n<!-- end -->", "nothing: there is no such block"),
        ("<!-- generated: memory -->\n", "has no `<!-- end -->`"),
        ("<!-- generated: code grpo.py no_such -->\n<!-- end -->", "no_such: 0 functions of this name"),
        ("<!-- generated: diff grpo.py grpo.py -->\n<!-- end -->", "their code is the same"),
        ("<!-- generated: metrics no/such -->\n<!-- end -->", "docs/metrics.md has no such row"),
        ("<!-- generated: deviations plainrl/__init__.py -->\n<!-- end -->", "its docstring has none"),
    ],
)
def test_a_block_that_cannot_be_made_is_named(text, words):
    """Catches a typing error in a mark that is passed over, or answered with a traceback."""
    with pytest.raises(ValueError, match=re.escape(words)):
        pages.rewritten(text)


def test_code_is_shown_without_its_docstring():
    """Catches a function that is cut off, or shown with what the page says beside it."""
    shown = pages.code("grpo.py", "k3").splitlines()
    assert shown[0] == "```python" and shown[1].startswith("def k3(") and shown[-1] == "```"
    assert '"""' not in "".join(shown) and shown[-2].strip().startswith("return torch.expm1")


def test_rows_are_those_of_the_glossary():
    """Catches numbers of a run in a table of meanings."""
    shown = pages.metrics("reward/mean", "dapo/").splitlines()
    assert [line.split("`")[1] for line in shown[2:]] == ["reward/mean", "dapo/rounds", "dapo/frac_kept"]


TOY = '''"""{title}"""
import sys


def first(x):
    """{title}"""
    return x{more}


def {name}(x):
    y = "kept"
    return y
'''


def test_a_diff_shows_code_alone(tmp_path, monkeypatch):
    """Catches docstrings in a diff, a line under another function's name, and + for -."""
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    (tmp_path / "one.py").write_text(TOY.format(title="Old.", more="", name="second"))
    (tmp_path / "two.py").write_text(TOY.format(title="New.", more=" + 1", name="other"))
    shown = pages.diff("one.py", "two.py").splitlines()
    assert shown[1:5] == ["--- one.py", "+++ two.py", "@@ first @@", "-    return x"]
    assert shown[5:-1] == ["+    return x + 1", "@@ second @@", "-def second(x):", "+def other(x):"]


def test_deviations_are_those_of_the_docstring():
    """Catches one that is lost or runs into the next, and text that a browser would take for a tag."""
    shown = pages.deviations("h1_curriculum.py").splitlines()
    assert [line[:8] for line in shown] == [f"- **[D{i}]" for i in range(1, len(shown) + 1)] and len(
        shown
    ) >= 5
    assert "&lt;reasoning&gt;" in "".join(shown)
