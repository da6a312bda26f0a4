"""plainrl/report.py and its parts: what of a run stands in the page, and that nothing in it can get out.

What the page does in a browser is benchmarks/checks/browser.py.
"""

import base64
import doctest
import gzip
import hashlib
import html
import json
import random
import re
import string
import sys

import pytest
from mutants import ROOT, mutant

import eval as evaluation
from benchmarks.checks.browser import HOSTILE, made_up_evaluation, made_up_run
from plainrl import countdown, report, report_charts, report_data, results
from tools import report as command

EVALUATIONS = ROOT / "runs/reference/eval"


@pytest.fixture(autouse=True)
def no_bokeh(monkeypatch):
    """A megabyte less in each page; one test asks for Bokeh."""
    monkeypatch.setattr(report, "has_bokeh", lambda: False)


def page_of(path) -> dict:
    """The data that stands in a page."""
    packed = re.search(r'<script type="text/plain" id="data">(.*?)</script>', path.read_text("utf-8"))[1]
    return json.loads(gzip.decompress(base64.b64decode(packed)))


def write_lines(path, *rows) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("module", [results, report_data])
def test_doctests(module):
    """Catches examples that are wrong."""
    assert doctest.testmod(module).failed == 0


# --- the file -----------------------------------------------------------------------------------------------


@mutant(
    "a completion ends the script",
    "plainrl/report.py",
    "return base64.b64encode(gzip.compress(text.encode(), 6, mtime=0)).decode()",
    "return text",
)
def test_nothing_that_a_model_wrote_is_part_of_the_page(tmp_path):
    """Catches a completion that closes its element, opens another, or steers what reads the page."""
    path = report.write_report([made_up_run(tmp_path / "run", hostile=True)])
    text = path.read_text("utf-8")
    assert text.count("<script") == text.count("</script>") == 5 and text.count("<img") == 0
    assert not re.search("[\x00-\x08\x0b-\x1f\u200b\u202c\u202e\u2028\u2029]", text)
    completions = [row["completion"] for group in page_of(path)["runs"][0]["groups"] for row in group["rows"]]
    assert HOSTILE in completions[0] and "\\x1b[2J" in completions[0] and "\\ud800" in completions[0]


@mutant("scripts of strangers", "plainrl/report.py", "script-src {allowed};", "script-src 'unsafe-inline';")
def test_the_page_runs_its_own_code_and_loads_nothing(tmp_path):
    """Catches a policy that would let a browser run what stands in a completion, or fetch something."""
    text = report.write_report([made_up_run(tmp_path / "run")]).read_text("utf-8")
    policy = html.unescape(re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1])
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    assert rules["script-src"].split() == [f"'sha256-{digest}'" for digest in digests]
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert not {"http:", "https:", "*"} & set(policy.replace(";", " ").split())


def test_the_code_of_the_page_makes_no_html():
    """Catches a line of JavaScript that would read a text as HTML or as code."""
    for name in ("report.js", "report_curves.js", "report_tokens.js"):
        source = report.source(name)
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\(|Function\(", source
        ), name
        assert "</script" not in source and "<!--" not in source, name


@mutant(
    "fields in a run",
    "plainrl/report.py",
    'source("report.html"))',
    'source("report.html").replace("{{title}}", fields["title"]))',
)
def test_a_run_may_look_like_the_page_itself(tmp_path):
    """Catches a template that is filled in twice: {{data}} in a run's title stays what it is."""
    run = tmp_path / "{{data}}"
    write_lines(run / "samples.jsonl", {"step": 1, "completion": "{{code}} {{data}}", "reward": 0.0})
    write_lines(run / "metrics.jsonl", {"step": 1, "reward/mean": 0.0})
    path = report.write_report([run])
    assert page_of(path)["runs"][0]["groups"][0]["rows"][0]["completion"] == "{{code}} {{data}}"
    assert "/{{data}}</title>" in path.read_text("utf-8")


def test_charts_by_bokeh_where_it_is_installed(tmp_path, monkeypatch):
    """Catches a page that loads Bokeh instead of holding it, and one that does not say how to get it."""
    run = made_up_run(tmp_path / "run")
    path = report.write_report([run])
    assert page_of(path)["bokeh"] == report.BOKEH and path.stat().st_size < 300_000
    pytest.importorskip("bokeh")
    monkeypatch.undo()
    path = report.write_report([run])
    assert page_of(path)["bokeh"] == "" and 1_000_000 < path.stat().st_size < 5_000_000
    assert "Bokeh" in path.read_text("utf-8")


# --- rows ---------------------------------------------------------------------------------------------------


@mutant(
    "numbers that are one",
    "plainrl/report_data.py",
    "if is_number(row[name]) or of_tokens(row, name)}",
    "if of_tokens(row, name)}",
)
@mutant("numbers of other tokens", "plainrl/report_data.py", "or len(value) != len(tokens)", "")
def test_numbers_of_tokens(tmp_path):
    """Catches a number that is the same for all tokens and gets lost, one of an unknown name, and a list
    that belongs to other tokens."""
    row = {
        "step": 1,
        "tokens": ["a", "b"],
        "completion": "ab",
        "entropy": 0.5,
        "own": [1, None],
        "ratio": [1],
    }
    row |= {"round": 2, "reward": 1.0, "advantage": 0.5, "index": 4, "why": "correct", "parsed": 6}
    other = {"step": 1, "tokens": ["a"], "completion": "a", "own": 0, "reward": 0.5}
    (group,) = report_data.read_groups([row, other])
    first, second = group["rows"]
    assert first["numbers"] == {"entropy": 0.5, "own": [1, None]} and second["numbers"] == {"own": 0}
    assert first["facts"] == {"round": 2} and first["right"] and first["parsed"] == "6"
    assert not second["right"] and "advantage" not in second


def test_an_older_run_has_its_completions(tmp_path):
    """Catches a report that needs the files of today."""
    run = tmp_path / "run"
    write_lines(run / "metrics.jsonl", {"step": 1, "reward/mean": 0.5, "policy/entropy": float("nan")})
    write_lines(
        run / "samples.jsonl", {"step": 1, "prompt": "p", "completion": "c", "gold": "1", "reward": 1.0}
    )
    page = page_of(report.write_report([run]))
    (shown_run,) = page["runs"]
    assert shown_run["groups"][0]["rows"] == [{"completion": "c", "why": "", "reward": 1.0, "right": True}]
    assert shown_run["dev"] == [] and shown_run["map"] is None and not page["notes"]
    assert [chart["title"] for chart in page["charts"]] == ["reward of the sampled batch"]


def test_a_run_without_rewards(tmp_path):
    """Catches a report that calls the samples of supervised training wrong, since nobody graded them."""
    run, sample = tmp_path / "run", {"completion": "c", "tokens": ["c"], "logprob": -1}
    write_lines(run / "config.json", {"script": "sft", "flags": {"task": "chain"}})
    write_lines(run / "dev_samples.jsonl", {"step": 0, "index": 3, "prompt": "p", "samples": [sample]})
    page = page_of(report.write_report([run]))
    (problem,) = page["runs"][0]["dev"][0]["problems"]
    assert "right" not in problem["samples"][0] and problem["samples"][0]["numbers"] == {"logprob": -1}
    assert page["title"] == "sft on chain" and page["charts"] == []


def test_hints_and_what_was_sampled_in_vain(tmp_path):
    """Catches a guided group without its hint, its prompt or the group that failed before."""
    page = page_of(report.write_report([made_up_run(tmp_path / "run", script="guide")]))
    group = page["runs"][0]["groups"][0]
    assert group["hint"] == "A=1+2" and group["sampled_prompt"] == "the prompt with its hint"
    assert group["rows"][0]["guided"] and [row["completion"] for row in group["also"]] == ["B=9"]


# --- files that are broken ----------------------------------------------------------------------------------


@mutant("the last line", "plainrl/report_data.py", 'elif line.endswith(b"\\n"):', "else:")
def test_a_broken_line_is_named(tmp_path):
    """Catches a line that is lost without a word, and a complaint about the line that a run is writing."""
    good = {"step": 1, "reward/mean": 0.5}
    write_lines(
        tmp_path / "metrics.jsonl", good, "{broken\n", "[1]\n", "\n", good | {"step": 2}, '{"step": 3, "rew'
    )
    notes = []
    assert [row["step"] for row in report_data.read_lines(tmp_path / "metrics.jsonl", notes)] == [1, 2]
    assert [re.search(r"metrics.jsonl: line (\d)", note)[1] for note in notes] == ["2", "3"]


def test_rows_of_another_shape(tmp_path):
    """Catches a report that fails on a field that is something else than it should be."""
    run = made_up_run(tmp_path / "run")
    odd = [{"step": [1], "completion": 3, "tokens": "x", "also_sampled": 5, "why": None, "reward": "no"}, {}]
    write_lines(run / "samples.jsonl", *odd)
    write_lines(run / "dev_samples.jsonl", {"samples": 3}, {"step": 1, "samples": [3, {}]})
    write_lines(run / "groups.jsonl", {"split": "dev", "right": 3}, {"split": "train", "right": [], "of": []})
    write_lines(run / "config.json", "[]")
    page = page_of(report.write_report([run]))
    write_lines(run / "config.json", {"flags": 3, "script": ["grpo"]})
    report.write_report([run])
    assert [row["completion"] for group in page["runs"][0]["groups"] for row in group["rows"]] == ["", ""]
    assert len(page["notes"]) == 1 and "config.json" in page["notes"][0]


def test_a_folder_that_is_no_run(tmp_path, monkeypatch, capsys):
    """Catches a trace instead of the one line that says what to give."""
    (tmp_path / "model").mkdir()
    write_lines(tmp_path / "model" / "config.json", {"model_type": "llama"})
    for folder, message in ((tmp_path / "model", "metrics.jsonl"), (tmp_path / "none", "no such folder")):
        with pytest.raises(ValueError, match=message):
            report.write_report([folder])
        with pytest.raises(SystemExit, match=message):
            command.main(command.Args((folder,)))
    with pytest.raises(SystemExit, match="give the folder"):
        command.main(command.Args(()))
    run = made_up_run(tmp_path / "run")
    with pytest.raises(ValueError, match=r"holds runs or evaluations and is none itself; .*: \S+/run$"):
        report.write_report([tmp_path])
    with pytest.raises(SystemExit, match="given twice"):
        command.main(command.Args((run, run / ".." / "run")))
    with pytest.raises(SystemExit, match=r"--out \S+ cannot be written \([A-Z][a-z ]+\); choose another$"):
        command.main(command.Args((run,), out=tmp_path / "run" / "config.json" / "x.html"))
    command.main(command.Args((run,), out=tmp_path / "x.html"))
    assert (tmp_path / "x.html").exists() and not (run / "report.html").exists()


@mutant("a page over a log", "tools/report.py", 'args.out.suffix != ".html"', "False")
def test_a_page_takes_no_other_files_place(tmp_path):
    """Catches a page that is written over a log of the run, or over any other file that is no page."""
    run = made_up_run(tmp_path / "run")
    before = (run / "metrics.jsonl").read_bytes()
    for name in ("metrics.jsonl", "report", "model.html.bak"):
        with pytest.raises(SystemExit, match=rf"^error: --out \S+{name}: .* a name that ends in .html$"):
            command.main(command.Args((run,), out=run / name))
    assert (run / "metrics.jsonl").read_bytes() == before and not (run / "report").exists()


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    """Catches the number of a system's error where the reason belongs."""
    run = made_up_run(tmp_path / "run")

    def refuse(*args):
        raise PermissionError(13, "Permission denied", str(run / "metrics.jsonl"))

    monkeypatch.setattr(report_data, "read_steps", refuse)
    with pytest.raises(SystemExit, match=r"^error: \S+metrics.jsonl: cannot be read \(Permission denied\)$"):
        command.main(command.Args((run,)))


@mutant(
    "a folder of evaluations",
    "plainrl/report_data.py",
    'LOGS = ("metrics.jsonl", "results.json", "samples.jsonl")',
    'LOGS = ("metrics.jsonl",)',
)
def test_a_folder_of_folders_names_them(tmp_path):
    """Catches a folder of evaluations, or of the runs of several scripts, of which the page only says that it
    is none; and a folder of an older version that is not told from any other."""
    run, folders = made_up_run(tmp_path / "runs/grpo/seed0"), tmp_path / "runs/eval"
    made_up_evaluation(folders / "a", [[1]])
    (made_up_evaluation(folders / "b", [[1]]) / "results.json").unlink()  # it has not finished
    with pytest.raises(ValueError, match=rf"none itself; .*: {folders / 'a'} {folders / 'b'}$"):
        report.write_report([folders])
    with pytest.raises(ValueError, match=rf"none itself; .*: {folders / 'a'} {folders / 'b'} {run}$"):
        report.write_report([tmp_path / "runs"])
    with pytest.raises(ValueError, match="holds a comparison of two evaluations and not their results"):
        report.write_report([EVALUATIONS / "grpo-chain-seed0"])


# --- a run as a whole ---------------------------------------------------------------------------------------


@mutant(
    "the best step", "plainrl/report_data.py", "(sign * points[step], step))", "(sign * points[step], -step))"
)
@mutant(
    "a run that goes on", "plainrl/report_data.py", "len(scores) > 1 for scores", "len(scores) > 0 for scores"
)
def test_the_head_says_what_came_of_a_run(tmp_path):
    """Catches a final model that is another than the run keeps, and a run called finished that goes on."""
    scores = {0: 0.1, 5: 0.6, 10: 0.6, 15: 0.5}
    curves = {"eval/chain/score": scores, "test/chain/avg@4": {0: 0.1}, "reward/mean": {15: 0.3}}
    facts = report_data.facts_of_run({"script": "grpo", "flags": {"steps": 20}}, curves)
    assert (facts["best_step"], facts["best"], facts["first"]) == (10, 0.6, 0.1)
    assert (facts["finished"], facts["steps"], facts["of_steps"], facts["test"]) == (False, 15, 20, [])
    curves |= {"test/chain/score": {0: 0.1, 20: 0.7}, "test/chain/avg@4": {0: 0.1, 20: 0.7}}
    facts = report_data.facts_of_run({}, curves)
    assert facts["finished"] and facts["test"] == [{"name": "chain/avg@4", "before": 0.1, "after": 0.7}]


@mutant(
    "the first of several scores",
    "plainrl/report_data.py",
    'len(facts["scores"]) == 1',
    'len(facts["scores"]) >= 1',
)
@mutant(
    "a run that learned nothing",
    "plainrl/report_data.py",
    'not any(facts["scores"])',
    'facts["scores"][0] == 0',
)
@mutant("the start that won", "plainrl/report_data.py", 'facts["best_step"] == 0', 'facts["best_step"] < 0')
@pytest.mark.parametrize(
    "scores, step, said",
    [
        ({0: 0.1, 5: 0.6, 10: 0.4}, "step 5", "eval/chain/score 0.100 → 0.600, the best on dev"),
        ({0: 0.0, 5: 0.2}, "step 5", "eval/chain/score 0.000 → 0.200, the best on dev"),
        ({0: 0.5, 5: 0.4, 10: 0.3}, "step 0", "the starting model: no step scored as well on dev"),
        ({0: 0.0, 5: 0.0}, "step 5", "eval/chain/score was 0 at every score: nothing was learned"),
        ({0: -0.5, 5: -0.25}, "step 5", "eval/chain/score -0.500 → -0.250, the best on dev"),
        ({0: 0.0}, "step 0", "eval/chain/score 0.000, the only score so far"),
    ],
)
def test_what_a_run_came_to_in_words(scores, step, said):
    """Catches a run that learned nothing, or whose starting model stayed the best, called a success; and one
    that has only begun called a failure."""
    curves = {"eval/chain/score": scores, "rollout/tokens_total": {5: 12345}}
    best, steps = report_data.tiles_of(report_data.facts_of_run({}, curves))
    assert best[:2] == ["best so far", step] and best[2].startswith(said)
    assert steps == ["steps", str(max(max(scores), 5)), "12,345 tokens sampled"]
    curves["test/chain/avg@4"] = {0: 0.25, 10: 0.5}
    test, best, _ = report_data.tiles_of(report_data.facts_of_run({}, curves))
    assert test == ["test chain/avg@4", "0.250 → 0.500", "before → after"] and best[0] == "final model"


@mutant(
    "scores of the first run alone",
    "plainrl/report_charts.py",
    "known = dict.fromkeys(name for each in scores for name in each)",
    "known = dict.fromkeys(scores[0])",
)
def test_the_test_scores_of_several_runs(tmp_path):
    """Catches a table that gives a run the scores of another, or that leaves out a score which the first run
    does not have."""
    folders = [made_up_run(tmp_path / "grpo"), made_up_run(tmp_path / "siren", script="siren")]
    write_lines(
        folders[0] / "metrics.jsonl", {"step": 0, "test/a/avg@4": 0.1}, {"step": 9, "test/a/avg@4": 0.2}
    )
    later = [{"step": step, "test/a/avg@4": step / 10, "test/a/pass@4": step / 5} for step in (0, 3)]
    write_lines(folders[1] / "metrics.jsonl", *later)
    page = page_of(report.write_report(folders))
    assert page["tests"]["head"][1:] == [run["label"] for run in page["runs"]]
    assert page["tests"]["lines"] == [
        ["a/avg@4", "0.100 → 0.200", "0.000 → 0.300"],
        ["a/pass@4", "–", "0.000 → 0.600"],
    ]


def test_groups_that_teach_nothing():
    """Catches shares of all wrong and all right that are mixed up, and reasons that are no shares."""
    lines = [{"step": 1, "right": [0, 4, 2, 0], "of": [4, 4, 4, 4], "why": {"": 6, "wrong": 10}}]
    ends, reasons = report_charts.group_charts(lines)
    assert {line["label"]: line["y"] for line in ends["lines"]} == {"all wrong": [0.5], "all right": [0.25]}
    assert {line["label"]: line["y"] for line in reasons["lines"]} == {"wrong": [0.625], "right": [0.375]}


@mutant(
    "no number is small",
    "plainrl/report_data.py",
    'math.inf if row["value"] is None',
    '0 if row["value"] is None',
)
def test_the_largest_ratio_is_one_that_moved():
    """Catches a table of ratios of 1, small gaps before large ones, and a gap that is not finite left out."""
    line = lambda step, gap, ratio: {  # noqa: E731
        "step": step,
        "largest_gap": {"gap": gap, "token": "7"},
        "largest_ratio": {"ratio": ratio, "token": "8"},
    }
    log = [line(1, 1e-6, 1), line(2, -3e-6, 1.5)]
    assert [row["step"] for row in report_data.extremes_of(log, "gap")] == [2, 1]
    assert [(row["step"], row["token"]) for row in report_data.extremes_of(log, "ratio")] == [(2, "8")]
    log.append(line(3, None, None))  # not finite
    assert [row["step"] for row in report_data.extremes_of(log, "gap")] == [3, 2, 1]
    assert [row["value"] for row in report_data.extremes_of(log, "ratio")] == [None, 1.5]


# --- several runs -------------------------------------------------------------------------------------------


@mutant("seeds are methods", "plainrl/report_charts.py", 'NEUTRAL = {"seed", ', "NEUTRAL = {")
@mutant(
    "steps of one seed",
    "plainrl/report_charts.py",
    "if all(step in points for points in seeds)",
    "if any(step in points for points in seeds[:1])",
)
def test_seeds_are_one_line(tmp_path):
    """Catches runs that differ in the seed drawn as two methods, and a mean over less than all seeds."""
    runs = [made_up_run(tmp_path / f"grpo{seed}", seed=seed) for seed in (0, 1)]
    runs.append(made_up_run(tmp_path / "siren", script="siren"))
    write_lines(runs[0] / "metrics.jsonl", *({"step": step, "reward/mean": 0.2} for step in (1, 2, 3)))
    write_lines(runs[1] / "metrics.jsonl", *({"step": step, "reward/mean": 0.6} for step in (1, 2)))
    page = page_of(report.write_report(runs))
    assert [(arm["label"], arm["runs"]) for arm in page["arms"]] == [("grpo", [0, 1]), ("siren", [2])]
    chart = next(chart for chart in page["charts"] if chart["title"] == "reward/mean")
    mean, single = chart["lines"]
    assert (mean["x"], mean["y"], mean["low"], mean["high"]) == ([1, 2], [0.4, 0.4], [0.2, 0.2], [0.6, 0.6])
    assert [seed["x"] for seed in mean["seeds"]] == [[1, 2, 3], [1, 2]] and "low" not in single
    assert page["title"] == "grpo (2 runs), siren" and not page["notes"]
    runs.append(made_up_run(tmp_path / "copy", seed=1))
    assert "the same seed" in page_of(report.write_report(runs))["notes"][0]
    assert {row[0]: row[1:] for row in page["differences"]} == {
        "script": ["grpo", "grpo", "siren"],
        "seed": [0, 1, 0],
    }


@mutant(
    "a killed run is a method",
    "plainrl/report_data.py",
    '    config.pop("saved", None)  # says',
    "    pass  # says",
)
def test_a_seed_that_goes_on_is_of_its_method(tmp_path):
    """Catches a run that goes on, or was killed, drawn as another method than the finished seeds, and said to
    differ from them."""
    runs = [made_up_run(tmp_path / f"grpo{seed}", seed=seed) for seed in (0, 1)]
    for run, saved in zip(runs, (True, False)):
        config = json.loads((run / "config.json").read_text())
        write_lines(run / "config.json", config | {"saved": saved})
    page = page_of(report.write_report(runs))
    assert [arm["runs"] for arm in page["arms"]] == [[0, 1]] and page["arms"][0]["label"] == "grpo"
    assert [row[0] for row in page["differences"]] == ["seed"]
    assert all("saved" not in run["config"] for run in page["runs"])


def test_a_method_has_one_look_in_all_charts(tmp_path):
    """Catches a method that changes its colour where another has no such metric."""
    runs = [made_up_run(tmp_path / name, script=name) for name in ("grpo", "siren")]
    write_lines(runs[1] / "metrics.jsonl", {"step": 1, "siren/anchor": 0.2, "reward/mean": 0.5})
    page = page_of(report.write_report(runs))
    looks = {(line["label"], line["look"]) for chart in page["charts"] for line in chart["lines"]}
    assert looks == {("grpo", 0), ("siren", 1)}


def test_arms_of_one_script_are_told_apart():
    """Catches two settings of a script with one name, also where they differ in the fourth flag alone."""
    flags = [dict(zip("abcd", values)) for values in ((1, 1, 1, 1), (1, 1, 1, 2), (2, 2, 2, 2))]
    arms = report_charts.arms_of([{"config": {"script": "x", "flags": each}} for each in flags])
    assert [arm["label"] for arm in arms] == ["x a=1 b=1 c=1", "x a=1 b=1 c=1 (2)", "x a=2 b=2 c=2"]
    config = lambda beta, seed: {"config": {"script": "siren", "flags": {"beta": beta, "seed": seed}}}  # noqa: E731
    arms = report_charts.arms_of([config(0.1, 0), config(0.2, 0), config(0.1, 1)])
    assert [(arm["label"], arm["runs"]) for arm in arms] == [
        ("siren beta=0.1", [0, 2]),
        ("siren beta=0.2", [1]),
    ]


# --- the page's size ----------------------------------------------------------------------------------------


@mutant(
    "the last step", "plainrl/report_data.py", "round(i * (total - 1) / (count - 1))", "i * total // count"
)
@mutant("the step in the middle", "plainrl/report_data.py", "count - (count % 2 == 0)", "count - count % 2")
@mutant("steps of what was read", "plainrl/report.py", 'len(groups) + unread.get("groups", 0)', "len(groups)")
def test_a_long_run_is_thinned(tmp_path, monkeypatch):
    """Catches a page that grows with the run, thinning without a word or with a wrong count, and a page
    without the first, the middle or the last score."""
    run = made_up_run(tmp_path / "run", steps=60)
    whole = report.write_report([run]).stat().st_size
    most = whole - 20_000
    monkeypatch.setattr(report, "LARGEST", most)
    monkeypatch.setattr(report, "MOST_READ", (run / "samples.jsonl").stat().st_size // 2)
    path = report.write_report([run])
    page = page_of(path)
    (shown_run,) = page["runs"]
    assert path.stat().st_size < most
    labels = [group["label"] for group in shown_run["groups"]]
    assert labels[0] == "step 1" and labels[-1] == "step 60" and 2 < len(labels) < 60
    steps = [score["step"] for score in shown_run["dev"]]
    assert steps[0] == 0 and 30 in steps and steps[-1] == 60 and len(steps) < 21
    assert any(f"{len(labels)} of 60 steps are in this page" in note for note in page["notes"])
    assert any(f"{len(steps)} of 21 scores" in note for note in page["notes"])
    assert not any("cut" in row for group in shown_run["groups"] for row in group["rows"])


@mutant(
    "steps before completions",
    "plainrl/report.py",
    "few = [one_of_each_kind(group) for group in groups]",
    "few = groups",
)
def test_completions_go_before_steps(tmp_path):
    """Catches steps that are lost although fewer completions of each would do."""
    notes = []
    run = report_data.read_run(made_up_run(tmp_path / "run", steps=60), notes) | {"label": "it", "dev": []}
    report.fit(run, int(sum(map(report.size, run["groups"])) * 0.9), notes)
    fewer = [group for group in run["groups"] if "kept" in group]
    assert len(run["groups"]) == 60 and 5 < len(fewer) < 60 and "kept" not in run["groups"][0]
    assert len(notes) == 1 and f"in {len(fewer)} of these steps one completion of each kind" in notes[0]
    for group in fewer:
        assert len(group["rows"]) == len(group["kept"]) < group["of"] == 4


@mutant("no other kind", "plainrl/report.py", 'if row.get("truncated"):', "if False:")
def test_one_completion_of_each_kind():
    """Catches a kind that is left out, a second of one kind, and counts of what is left."""
    kinds = [(False, False), (False, False), (True, False), (True, False), (False, True), (False, True)]
    rows = [{"completion": str(i), "right": right, "truncated": cut} for i, (right, cut) in enumerate(kinds)]
    group = {"label": "step 1", "rows": rows, "also": [{"completion": "a"}, {"completion": "b"}]}
    few = report.one_of_each_kind(group)
    assert [row["completion"] for row in few["rows"]] == ["0", "2", "4"] and few["kept"] == [0, 2, 4]
    assert (few["right"], few["of"], len(few["also"])) == (2, 6, 1)
    assert report.one_of_each_kind({"rows": rows[1:3]}) == {"rows": rows[1:3]}


def letters(count: int) -> str:
    """A text that cannot be compressed to much less than it is."""
    return "".join(random.Random(0).choices(string.ascii_letters + string.digits, k=count))


def test_a_huge_completion_is_cut(tmp_path, monkeypatch):
    """Catches one completion that makes the page too large, and others that are cut with it."""
    long = letters(400_000)
    pieces = [long[i : i + 2] for i in range(0, len(long), 2)]
    rows = [{"step": 1, "completion": "ab" * 50, "reward": 0.0}, {"step": 1, "completion": letters(10**6)}]
    rows.append(
        {"step": 1, "completion": "".join(pieces), "tokens": pieces, "entropy": [0.5, 0.25] * 100_000}
    )
    write_lines(tmp_path / "run" / "samples.jsonl", *rows)
    write_lines(tmp_path / "run" / "metrics.jsonl", {"step": 1})
    monkeypatch.setattr(report, "LARGEST", 900_000)
    path = report.write_report([tmp_path / "run"])
    short, text, tokens = page_of(path)["runs"][0]["groups"][0]["rows"]
    assert path.stat().st_size < 900_000 and "cut" not in short
    assert text["cut"] == 10**6 and letters(10**6).startswith(text["completion"])
    assert tokens["cut"] == 400_000 and len(tokens["tokens"]) == len(tokens["numbers"]["entropy"]) > 1000


@mutant(
    "prompts of any length",
    "plainrl/report.py",
    "for place in (entry, *problems, *rows):",
    "for place in ():",
)
@mutant("flags of any length", "plainrl/report.py", "name: short_value(value) for", "name: value for")
def test_huge_prompts_hints_and_flags_are_cut(tmp_path, monkeypatch):
    """Catches a page that a long prompt, a long hint or a long system prompt makes too large."""
    run, huge = made_up_run(tmp_path / "run", script="guide"), letters(500_000)
    rows = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    rows[0] |= {"prompt": huge, "hint": huge[::-1]}
    write_lines(run / "samples.jsonl", *rows)
    dev = [json.loads(line) for line in (run / "dev_samples.jsonl").read_text().splitlines()]
    write_lines(run / "dev_samples.jsonl", dev[0] | {"prompt": huge, "solution": huge[1::2]}, *dev[1:])
    write_lines(run / "config.json", {"script": "guide", "flags": {"system_prompt": huge}})
    monkeypatch.setattr(report, "LARGEST", 500_000)
    path = report.write_report([run])
    (shown_run,) = page_of(path)["runs"]
    group, problem = shown_run["groups"][0], shown_run["dev"][0]["problems"][0]
    assert path.stat().st_size < 500_000
    for text in (group["prompt"], group["hint"], problem["prompt"], shown_run["config"]["system_prompt"]):
        assert text.endswith(report.CUT) and len(text) > 1000
    assert not any("cut" in row for row in group["rows"])


@mutant("a map of any size", "plainrl/report_data.py", "MOST_CELLS // max(1, problems)", "len(lines)")
def test_a_huge_map_is_thinned():
    """Catches a table that a browser cannot draw."""
    line = {"index": [*range(1000)], "right": [1] * 1000, "of": [2] * 1000}
    notes = []
    shown_map = report_data.map_of([line | {"step": step} for step in range(101)], notes)
    assert (len(shown_map["index"]), len(shown_map["steps"])) == (1000, 39)
    assert (shown_map["steps"][0], shown_map["steps"][-1]) == (0, 100) and len(shown_map["of"]) == 39
    assert "1000 of 1000 problems at 39 of 101 scores" in notes[0]


def dev_score(solution: str, *samples: tuple[str, bool | None]) -> list[dict]:
    """What `read_dev` makes of one problem: its worked solution, and (completion, is it right) of samples."""
    rows = [{"completion": text} | ({} if right is None else {"right": right}) for text, right in samples]
    return [{"step": 0, "problems": [{"solution": solution, "samples": rows}]}]


@mutant("every text follows", "plainrl/report_data.py", ">= FOLLOWING * len(equal)", ">= 0")
@mutant("most of the right ones", "plainrl/report_data.py", "FOLLOWING = 0.9", "FOLLOWING = 0.75")
@mutant("a few right ones", "plainrl/report_data.py", "ENOUGH_RIGHT = 10", "ENOUGH_RIGHT = 9")
@mutant("wrong ones follow", "plainrl/report_data.py", 'sample.get("right") is not False', "True")
def test_completions_that_follow_the_solution():
    """Catches a mark at the first line of a right answer in free text, one after a handful of right answers,
    and none in the chain world, where most of a run's completions may be wrong."""
    follows = lambda solution, *samples: report_data.follows_solutions(dev_score(solution, *samples))  # noqa: E731
    world = "A=1+2=3\nB=3*2=6\n\\boxed{6}"
    right, wrong = (world.replace("*", " * ") + "\n", True), ("A=1+2=4\nB=4*2=8\n\\boxed{8}", False)
    other = ("B=3*2=6\n\\boxed{6}", True)
    assert follows(world, *[right] * 10, *[wrong] * 100)
    assert follows(world, *[(world, None)] * 10)  # nobody graded them
    assert not follows(world, *[right] * 9, *[wrong] * 100)
    assert follows(world, *[right] * 9, other) and not follows(world, *[right] * 8, other, other)
    free = "Tom has 3 + 4 = 7 eggs.\nHe sells 7 * 2 = 14.\n#### 14"
    assert not follows(free, *[("Tom has 3 + 4 = 7 eggs.\nHe sells 14.\n#### 14", True)] * 20)
    assert not follows(world, *[wrong] * 20) and not follows("", *[("x", True)] * 20)


def test_where_many_ways_are_right_none_is_marked():
    """Catches a mark at a possible step of the countdown world, since the worked solution is another way."""
    task, rng, dev = countdown.CountdownTask(), random.Random(0), []
    for index in range(40):
        problem = task.problem("dev", index, 0)
        ways = countdown.ways(tuple(map(int, problem.options)))
        right = [text for text, value in ways if str(value) == problem.answer]
        dev += dev_score(problem.solution, (problem.solution, True), (rng.choice(right), True))
    assert not report_data.follows_solutions(dev)


@mutant(
    "all of a large file",
    "plainrl/report_data.py",
    "if not line.strip() or (wanted is not None and step_of(line) not in wanted):",
    "if not line.strip():",
)
def test_of_a_file_too_large_for_the_memory_steps_are_read(tmp_path):
    """Catches a report that reads gigabytes at the end of a long run."""
    write_lines(
        tmp_path / "samples.jsonl", *({"step": step, "completion": "x"} for step in range(100) for _ in "ab")
    )
    notes = []
    rows = report_data.read_lines(tmp_path / "samples.jsonl", notes, most=2_000)
    steps = [row["step"] for row in rows]
    assert steps[:2] == [0, 0] and steps[-2:] == [99, 99] and 10 < len(rows) < 100
    assert f"{100 - len(rows) // 2} of its steps were not read" in notes[0]


# --- evaluations --------------------------------------------------------------------------------------------


@mutant(
    "older prompts in their template",
    "plainrl/report_data.py",
    ".removeprefix(before).removesuffix(after)",
    "",
)
@mutant(
    "problems as they were sampled",
    "plainrl/report_data.py",
    'return sorted(groups, key=lambda group: group["place"])',
    "return groups",
)
def test_the_samples_of_an_evaluation(tmp_path):
    """Catches an evaluation without its votes or its verdicts, problems out of order, and a problem among the
    marks of a chat template, as files of older evaluations have it."""
    folder = made_up_evaluation(tmp_path / "e", [[3, 0], [1, 4]])
    lines = (folder / "samples.jsonl").read_text().splitlines(keepends=True)
    hinted = json.loads(lines[-1]) | {
        "horizon": 3,
        "hint": "A=1",
        "sampled_prompt": "with a hint",
        "vote": None,
    }
    hinted |= {"finish_reason": "length", "prompt": "plain"}
    write_lines(folder / "samples.jsonl", hinted, *lines[8:], *lines[4:8], *lines[:4])
    page = page_of(report.write_report([folder]))
    groups = page["runs"][0]["groups"]
    assert [group["label"] for group in groups] == [
        "problem 0, horizon 1",
        "problem 1, horizon 1",
        "problem 0, horizon 2",
        "problem 1, horizon 2",
        "problem 1, horizon 3",
    ]
    assert groups[0]["prompt"] == "problem 0 of 1 steps" and groups[4]["prompt"] == "plain"
    assert (groups[4]["hint"], groups[4]["sampled_prompt"]) == ("A=1", "with a hint")
    assert groups[4]["rows"][0]["truncated"] and "vote" not in groups[4]["rows"][0]
    assert [row["right"] for row in groups[0]["rows"]] == [True, True, True, False]
    assert [row["vote"] for row in groups[0]["rows"]] == ["10", "10", "10", "93"]
    assert page["title"] == "models/tiny on chain" and page["charts"][0]["lines"][0]["x"] == [1, 2, 3, 4]
    write_lines(folder / "samples.jsonl", *lines[:8])
    assert page_of(report.write_report([folder]))["runs"][0]["groups"][0]["label"] == "problem 0"


def test_the_page_says_what_the_screen_says(tmp_path, capsys):
    """Catches a number, a warning or a table that eval.py prints and its page does not have, or the other way
    round, and a result whose comparison has been lost."""
    before = made_up_evaluation(tmp_path / "before", [[0, 1, 2, 3], [0, 0, 1, 1]])
    after = made_up_evaluation(tmp_path / "after", [[2, 3, 4, 4], [1, 2, 2, 2]], model="trained")
    contents = [json.loads((folder / "results.json").read_text()) for folder in (before, after)]
    comparison = results.compare(*contents)
    write_lines(after / "against-1.json", comparison)
    evaluation.show(contents[1])
    printed = capsys.readouterr().out
    evaluation.show_comparison(comparison)
    (shown_run,) = page_of(report.write_report([after]))["runs"]
    tables = [results.Table(**table) for table in shown_run["evaluation"]]
    assert results.as_text(tables[:2]) in printed and results.as_text(tables[2:]) in capsys.readouterr().out
    assert shown_run["summary"] == (
        "test: 8 problems x 4 samples, temperature 1, top-p 1, at most 160 tokens."  # the title has the rest
    )
    assert f"trained on chain, {shown_run['summary'].rstrip('.')}\n" in printed
    assert shown_run["tiles"][0] == ["avg@4", "0.625", "0.399 to 0.794, 95% interval*"]
    assert "results" not in shown_run and page_of(after / "report.html")["beside"] == []


@mutant("a table that warns of nothing", "plainrl/results.py", "[STAR] * has_stars", "[]")
@mutant(
    "repeated lines",
    "plainrl/results.py",
    'maj@{k}" for k in ladder(n) if k > 2',
    'maj@{k}" for k in ladder(n) if k > 1',
)
@mutant(
    "columns that repeat avg@1",
    "plainrl/results.py",
    "[name for name in last if name in shown_metrics(n)]",
    "last",
)
def test_no_line_repeats_another_and_warnings_are_there(tmp_path):
    """Catches lines and columns that say the same (with one sample pass@1 and maj@1 are avg@1, and maj@2
    always is), an interval of a number that is shown without, and tables that do not warn of few problems."""
    folder = made_up_evaluation(tmp_path / "e", [[0, 1, 2, 3, 4], [2, 0, 1, 4, 4]])
    content = json.loads((folder / "results.json").read_text())
    by_horizon, whole = results.score_tables(content["rows"], 4)
    values = dict(whole.lines)
    assert [name for name in values if "@" in name] == ["avg@4", "pass@2", "pass@4", "maj@4"]
    assert values["frac_unparsed"] == "0.000" and results.STAR in whole.about
    assert by_horizon.head[:5] == ["horizon", "problems", "avg@4", "pass@4", "maj@4"]
    assert [line[:2] for line in by_horizon.lines] == [["1", "5"], ["2", "5"], ["all", "10"]]
    one = [
        row | {"n": 1, "right": row["right"][:1], "votes": row["votes"][:1]} for row in content["problems"]
    ]
    one = [row | {"correct": int(row["right"][0]), "score": float(row["right"][0])} for row in one]
    rows = results.result_rows(one, content["settings"] | {"samples": 1})
    by_horizon, whole = results.score_tables(rows, 1)
    assert by_horizon.head[2:4] == ["avg@1", "p^h"] and [line[0] for line in whole.lines][:2] == [
        "avg@1",
        "frac_unparsed",
    ]
    many = made_up_evaluation(tmp_path / "many", [[0, 1, 2, 3, 4] * 10])
    rows = json.loads((many / "results.json").read_text())["rows"]
    (table,) = results.score_tables(rows, 4)
    assert not table.lines[0][1].endswith("*") and results.BRACKETS in table.about


@mutant(
    "partial scores left out",
    "plainrl/results.py",
    "return score_if_graded(row, n) + [name for name in last",
    "return [name for name in last",
)
@mutant("a tile without its warning", "plainrl/report_data.py", '"*" * entry["too_narrow"]', '""')
def test_partial_scores_stand_first(tmp_path):
    """Catches an evaluation with partial credit that shows its right answers alone, and a number in large
    letters whose interval is too narrow and does not say so."""
    folder = made_up_evaluation(tmp_path / "e", [[0, 1, 2, 3]] * 2)
    content = json.loads((folder / "results.json").read_text())
    for row in content["problems"]:
        row["score"] = row["correct"] + 0.5 * (4 - row["correct"])
    content["rows"] = results.result_rows(content["problems"], content["settings"])
    write_lines(folder / "results.json", content)
    page = page_of(report.write_report([folder]))
    (shown_run,) = page["runs"]
    by_horizon, whole = shown_run["evaluation"]
    assert [tile[:2] for tile in shown_run["tiles"][:2]] == [["score", "0.688"], ["avg@4", "0.375"]]
    assert all(tile[2].endswith(", 95% interval*") for tile in shown_run["tiles"])
    assert by_horizon["head"][2] == whole["lines"][0][0] == "score"


@mutant("sides exchanged", "plainrl/results.py", "compare(first, each)", "compare(each, first)")
@mutant(
    "differences of other problems",
    "plainrl/results.py",
    'if before["problems_hash"] != after["problems_hash"]:',
    "if False:",
)
@mutant(
    "a wrong number of samples",
    "plainrl/results.py",
    'return "" if before["samples"] == after["samples"] else',
    'return "" if True else',
)
def test_evaluations_side_by_side(tmp_path):
    """Catches two evaluations without a table of both, a difference turned round or of other problems, and
    one that is left out without a reason."""
    before = made_up_evaluation(tmp_path / "before", [[0, 1, 2, 3], [0, 0, 1, 1]])
    after = made_up_evaluation(tmp_path / "after", [[2, 3, 4, 4], [1, 2, 2, 2]], model="trained")
    others = made_up_evaluation(tmp_path / "others", [[4, 4, 4, 4, 4]], problems_hash="f")
    page = page_of(report.write_report([before, after, others], tmp_path / "page.html"))
    scores, gain = page["beside"]
    labels = [run["label"] for run in page["runs"]]
    difference = f"{labels[1]} less {labels[0]}"
    assert scores["head"] == ["metric", difference, "excludes 0", *labels]
    lines = {name: cells for name, *cells in scores["lines"]}
    assert lines["problems"] == ["", "", "8", "8", "5"] and lines["samples of each"][2:] == ["4", "4", "4"]
    assert lines["avg@4"][2].startswith("0.250 [") and lines["avg@4"][3].startswith("0.625 [")
    assert lines["avg@4"][0].startswith("+0.375 [") and lines["avg@4"][1] == "yes"
    assert lines["avg@4, horizon 2"][4] == "" and lines["frac_unparsed"][2:] == ["0.000"] * 3
    for run, what in zip(page["runs"], ("models/tiny, test: 8", "trained, test: 8", "models/tiny, test: 5")):
        said = f"The numbers below are of {run['label']}, model {what} problems x 4 samples"
        assert run["summary"].startswith(said)
    assert any(
        "others has no difference" in line and "problems are not the same" in line for line in scores["about"]
    )
    assert results.CHANCE in scores["about"] and f"of {labels[1]} over {labels[0]} in avg@4" in gain["title"]
    parts = [float(line[1].split()[0]) for line in gain["lines"]]
    assert parts[0] + parts[1] - parts[2] == pytest.approx(0.375, abs=0.002)
    assert [line["label"] for line in page["charts"][0]["lines"]] == labels
    assert results.why_not_paired({"problems_hash": 1, "samples": 4}, {"problems_hash": 1, "samples": 8})


def test_evaluations_of_other_ages_open(tmp_path):
    """Catches results of an older version that the page refuses, and a file of another shape that ends in a
    traceback or is left out without a word."""
    plain, examples = (
        EVALUATIONS / name for name in ("smollm2-gsm_symbolic", "smollm2-gsm_symbolic-examples")
    )
    page = page_of(report.write_report([plain, examples], tmp_path / "page.html"))
    lines = {name: cells for name, *cells in page["beside"][0]["lines"]}
    assert lines["frac_unparsed"][2:] == ["0.983", "0.209"] and lines["frac_unparsed"][1] == "yes"
    assert not page["notes"] and page["runs"][0]["groups"] == []
    folder = made_up_evaluation(tmp_path / "e", [[1, 2]])
    write_lines(folder / "against-1.json", {"rows": [{}]})
    other = made_up_evaluation(tmp_path / "other", [[1, 2]])
    content = json.loads((other / "results.json").read_text())
    write_lines(other / "results.json", content | {"problems": [{}, 3]})
    page = page_of(report.write_report([folder, other], tmp_path / "page.html"))
    plain = "is not as eval.py writes it ('settings' is missing)"
    assert len(page["notes"]) == 2 and f"against-1.json: {plain}" in page["notes"][0]
    assert page["notes"][1].endswith("not as eval.py writes it: 'n' is missing)") and page["beside"] == []
    write_lines(other / "results.json", {"rows": [{"metrics": 3}]})
    page = page_of(report.write_report([other]))
    assert "results.json: is not as eval.py writes it (a value is of another kind)" in page["notes"][0]
    assert "has not finished" not in page["runs"][0]["summary"]
    assert page["runs"][0]["evaluation"] == [] and len(page["runs"][0]["groups"]) == 2


@mutant(
    "settings of results",
    "plainrl/report_data.py",
    "config = settings_in_results(folder, notes)",
    "pass",
)
def test_an_evaluation_without_its_config(tmp_path):
    """Catches an evaluation that is called no run although its results are there, and an error that asks for
    the files that the folder has."""
    folder, whole = (made_up_evaluation(tmp_path / name, [[1, 2]]) for name in "ab")
    for content in ("{broken", "[]", None):
        (folder / "config.json").unlink() if content is None else write_lines(folder / "config.json", content)
        page = page_of(report.write_report([folder]))
        assert "config.json: has no settings of eval.py; they are from results.json" in page["notes"][-1]
        (shown_run,) = page["runs"]
        assert shown_run["tiles"] == page_of(report.write_report([whole]))["runs"][0]["tiles"]
        assert page["title"] == "models/tiny on chain" and len(shown_run["groups"]) == 2
    (folder / "results.json").unlink()
    with pytest.raises(ValueError, match=r": its config.json is missing, .*; put it back$"):
        report.write_report([folder])
    write_lines(folder / "config.json", "{broken")
    with pytest.raises(ValueError, match=r": its config.json is damaged, .*; put it back$"):
        report.write_report([folder])


@mutant("problems that are not done", "plainrl/report_data.py", '== config.get("samples") for', ">= 0 for")
@mutant(
    "an evaluation that is left out",
    "plainrl/report.py",
    "for label, run in evaluations if len(evaluations) > 1 else []:",
    "for label, run in []:",
)
def test_an_evaluation_that_goes_on(tmp_path):
    """Catches two evaluations that are not side by side without a word, and one that has not finished and
    does not say how far it is; half a problem that a kill left counts as none."""
    done, going = (made_up_evaluation(tmp_path / name, [[1, 2, 3]]) for name in ("done", "going"))
    (going / "results.json").unlink()
    lines = (going / "samples.jsonl").read_text().splitlines(keepends=True)
    write_lines(going / "samples.jsonl", *lines[:10])
    (alone,) = page_of(report.write_report([going]))["runs"]
    assert alone["summary"].endswith("160 tokens. It has not finished: 2 of 3 problems are done.")
    page = page_of(report.write_report([done, going]))
    assert page["beside"] == [] and page["runs"][1]["summary"].endswith("2 of 3 problems are done.")
    (note,) = page["notes"]
    assert note.endswith(
        "/going is not in a table with the others, since it has not finished: 2 of 3 problems are done"
    )
    write_lines(going / "results.json", "{broken")
    notes = page_of(report.write_report([done, going]))["notes"]
    assert notes[1].endswith("/going is not in a table with the others, since its results cannot be read")


@mutant(
    "lines as they come",
    "plainrl/results.py",
    "for column in columns for metric in column}, key=place_of)",
    "for column in columns for metric in column}, key=lambda metric: 0)",
)
def test_lines_of_other_numbers_of_samples_stand_together(tmp_path):
    """Catches an avg@n below the lengths, since the first evaluation has another number of samples."""
    few = made_up_evaluation(tmp_path / "few", [[1, 2], [0, 1]])
    content = json.loads((few / "results.json").read_text())
    for problem in content["problems"]:
        problem |= {"n": 2, "right": problem["right"][:2], "votes": problem["votes"][:2]}
        problem |= {"correct": sum(problem["right"]), "score": float(sum(problem["right"]))}
    settings = content["settings"] | {"samples": 2}
    content = {"settings": settings, "rows": results.result_rows(content["problems"], settings)}
    many = json.loads((made_up_evaluation(tmp_path / "many", [[1, 2], [0, 1]]) / "results.json").read_text())
    (table,) = results.side_by_side(["few", "many"], [content | {"problems": []}, many])
    names = [name for name, *_ in table.lines if "horizon" not in name]
    assert names == ["problems", "samples of each", "avg@2", "avg@4", "pass@2", "pass@4", "maj@4"] + [
        *results.RATES
    ]
    below = [name for name, *_ in table.lines][len(names) :]
    assert len(below) == 8 and all(", horizon " in name for name in below)


def test_a_fork_has_the_page(tmp_path):
    """Catches a part of the page that is not copied with plainrl/."""
    for name in re.findall(r'source\("([\w.]+)"\)', (ROOT / "plainrl/report.py").read_text()):
        assert (ROOT / "plainrl" / name).exists(), name
    assert "bokeh" not in sys.modules or "bokeh" in report.BOKEH
