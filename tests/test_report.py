"""plainrl/report.py and its parts: what of a run stands in the page, and that nothing in it can get out.

What the page does in a browser is benchmarks/checks/browser.py.
"""

import base64
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

from benchmarks.checks.browser import HOSTILE, made_up_run
from plainrl import report, report_charts, report_data
from tools import report as command


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
    with pytest.raises(ValueError, match=r"holds runs and is none itself; .*: \S+/run$"):
        report.write_report([tmp_path])
    with pytest.raises(SystemExit, match="given twice"):
        command.main(command.Args((run, run / ".." / "run")))
    with pytest.raises(SystemExit, match="--out .* cannot be written"):
        command.main(command.Args((run,), out=tmp_path / "run" / "config.json" / "x.html"))
    command.main(command.Args((run,), out=tmp_path / "x.html"))
    assert (tmp_path / "x.html").exists() and not (run / "report.html").exists()


# --- a run as a whole ---------------------------------------------------------------------------------------


@mutant("the best step", "plainrl/report_data.py", "(points[step], step))", "(points[step], -step))")
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


@mutant("every text follows", "plainrl/report_data.py", "agreeing > total / 2", "total > 0")
@mutant("wrong ones follow", "plainrl/report_data.py", 'sample.get("right") is not False', "True")
def test_completions_that_follow_the_solution():
    """Catches a mark at the first line of a right answer in free text, and none in the embedded world, where
    most of a run's completions may be wrong."""

    def score(solution, *samples):
        rows = [{"completion": text} | ({} if right is None else {"right": right}) for text, right in samples]
        return [{"step": 0, "problems": [{"solution": solution, "samples": rows}]}]

    world = "A=1+2=3\nB=3*2=6\n\\boxed{6}"
    wrong = ("A=1+2=4\nB=4*2=8\n\\boxed{8}", False)
    assert report_data.follows_solutions(score(world, (world + "\n", True), wrong, wrong, wrong))
    assert report_data.follows_solutions(score(world, ("A=1+2=3\nB=3 * 2=6\nso", None)))
    free = "Tom has 3 + 4 = 7 eggs.\nHe sells 7 * 2 = 14.\n#### 14"
    assert not report_data.follows_solutions(score(free, ("First, 3 + 4 = 7.\nThen 14.\n#### 14", True)))
    assert not report_data.follows_solutions(score(world, wrong))
    assert not report_data.follows_solutions(score("", ("x", True)))


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


def test_an_evaluation(tmp_path):
    """Catches an evaluation without its curve, its votes or its verdicts, and problems out of order."""
    metrics = {f"pass@{k}": {"value": k / 4, "low": 0.1, "high": 0.9} for k in (1, 2)}
    fixed = {
        "horizon": 1,
        "prompt": "p",
        "completion": "c",
        "gold": "7",
        "parsed": "7",
        "vote": "7",
        "why": "",
    }
    fixed |= {"finish_reason": "length", "tokens": 3}

    def sample(index, n):
        return fixed | {"index": index, "sample": n, "correct": n == 0, "score": float(n == 0)}

    write_lines(
        tmp_path / "e" / "config.json", {"problems_hash": "0", "model": "m", "task": "t", "samples": 2}
    )
    write_lines(
        tmp_path / "e" / "results.json", {"rows": [{"horizon": 1, "problems": 2, "metrics": metrics}]}
    )
    write_lines(tmp_path / "e" / "samples.jsonl", *(sample(i, n) for i in (5, 2) for n in (0, 1)))
    difference = {"before": 0.1, "after": 0.3, "value": 0.2, "low": 0.0, "high": 0.4, "excludes_zero": False}
    against = {"settings": {"baseline": {"model": "b"}}, "rows": [{"metrics": {"avg@2": difference}}]}
    write_lines(tmp_path / "e" / "against-1.json", against)
    page = page_of(report.write_report([tmp_path / "e"]))
    (shown_run,) = page["runs"]
    assert [group["label"] for group in shown_run["groups"]] == [
        "problem 2, horizon 1",
        "problem 5, horizon 1",
    ]
    first, second = shown_run["groups"][0]["rows"]
    assert (first["right"], second["right"], first["vote"], first["truncated"]) == (True, False, "7", True)
    assert page["charts"][0]["lines"][0]["y"] == [0.25, 0.5] and page["title"] == "m on t"
    assert shown_run["comparisons"] == [
        {"baseline": "b", "rows": [["avg@2", 0.1, 0.3, 0.2, 0.0, 0.4, False]]}
    ]


def test_a_fork_has_the_page(tmp_path):
    """Catches a part of the page that is not copied with plainrl/."""
    for name in re.findall(r'source\("([\w.]+)"\)', (ROOT / "plainrl/report.py").read_text()):
        assert (ROOT / "plainrl" / name).exists(), name
    assert "bokeh" not in sys.modules or "bokeh" in report.BOKEH
