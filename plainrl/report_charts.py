"""Line charts of report.html: their numbers, and which runs share a line.

A chart is {"title", "ylabel", "xlabel", "lines"}. A line is {"label", "x", "y"}, where it has a band with
"low" and "high", and with "seeds", the single runs behind a mean. "look" is the number of its colour and
dashes, where that is not its place among the lines. report_curves.js draws them.
"""

import json
import math

from plainrl.curves import MOST_LINES, is_number, panels_of, worth_drawing
from plainrl.results import Table

# Flags that say nothing about the method. Runs that differ in these alone are repetitions of one another.
NEUTRAL = {"seed", "out_dir", "resume", "track", "report", "save_every", "git_commit", "device"}
MOST_POINTS = 500  # of a line; of a longer one every second, third, ... point is drawn


def chart(title: str, ylabel: str, lines: list[dict], xlabel: str = "step") -> dict:
    return {"title": title, "ylabel": ylabel, "xlabel": xlabel, "lines": lines}


def line_of(label: str, x: list, y: list, low=None, high=None, seeds=()) -> dict:
    """A line of a chart; `seeds` are the (x, y) of its single runs."""
    line = {"label": label, "x": thinned(x), "y": thinned(y)}
    if low is not None:
        line |= {"low": thinned(low), "high": thinned(high)}
    if seeds:
        line["seeds"] = [{"x": thinned(x), "y": thinned(y)} for x, y in seeds]
    return line


def thinned(values: list) -> list:
    """At most MOST_POINTS of them, evenly spread, with five digits."""
    stride = max(1, math.ceil(len(values) / MOST_POINTS))
    return [float(f"{value:.5g}") if isinstance(value, float) else value for value in values[::stride]]


# --- one run ------------------------------------------------------------------------------------------------


def group_charts(lines: list[dict]) -> list[dict]:
    """Train lines of groups.jsonl -> two charts: groups all wrong and all right, and what answers came to."""
    if not lines:
        return []
    steps = [line.get("step") for line in lines]
    groups = [list(zip(line["right"], line["of"])) for line in lines]
    all_wrong = [share(sum(right == 0 for right, _ in each), len(each)) for each in groups]
    all_right = [share(sum(right == of for right, of in each), len(each)) for each in groups]
    counts = [line["why"] if isinstance(line.get("why"), dict) else {} for line in lines]
    totals = [sum(filter(is_number, each.values())) for each in counts]
    reasons = {
        why: [share(each.get(why, 0), total) for each, total in zip(counts, totals)]
        for why in dict.fromkeys(why for each in counts for why in each)
    }
    frequent = sorted(reasons, key=lambda why: -sum(reasons[why]))[:MOST_LINES]
    ends = [line_of("all wrong", steps, all_wrong), line_of("all right", steps, all_right)]
    whys = [line_of(why or "right", steps, reasons[why]) for why in frequent]
    return [
        chart("groups with no or only right completions", "share of groups", ends),
        chart("what the completions came to", "share", whys),
    ]


def share(part, whole) -> float:
    return part / whole if whole and is_number(part) else 0.0


# --- several runs -------------------------------------------------------------------------------------------


def charts_of(runs: list[dict]) -> list[dict]:
    """The panels of plainrl/curves.py. One run: up to five metrics a panel. Several runs: a panel for each
    metric, with a line for each arm: the mean of its seeds between the lowest and the highest of them."""
    training = [run for run in runs if run.get("curves")]
    panels = panels_of(list(dict.fromkeys(name for run in training for name in worth_drawing(run["curves"]))))
    if len(training) == 1:
        curves = training[0]["curves"]
        line = lambda name: line_of(name, list(curves[name]), list(curves[name].values()))  # noqa: E731
        return [chart(panel.title, panel.ylabel, [line(name) for name in panel.metrics]) for panel in panels]
    arms, drawn = arms_of(training), []
    for panel in panels:
        for name in panel.metrics:
            lines = []
            for look, arm in enumerate(arms):
                seeds = [training[number]["curves"].get(name, {}) for number in arm["runs"]]
                lines.append(arm_line(arm["label"], seeds) | {"look": look})
            drawn.append(chart(name, panel.ylabel, [line for line in lines if line["x"]]))
    return [each for each in drawn if each["lines"]]


def arm_line(label: str, seeds: list[dict[int, float]]) -> dict:
    """Mean, lowest and highest of the seeds at the steps that all of them have."""
    steps = [step for step in seeds[0] if all(step in points for points in seeds)]
    columns = [[points[step] for points in seeds] for step in steps]
    mean = [sum(column) / len(column) for column in columns]
    if len(seeds) == 1:
        return line_of(label, steps, mean)
    single = [(list(points), list(points.values())) for points in seeds]
    low, high = list(map(min, columns)), list(map(max, columns))
    return line_of(f"{label}, {len(seeds)} seeds", steps, mean, low, high, single)


def flags_of(run: dict) -> dict:
    """Script and flags of a run, settings of an evaluation, and what else in config.json is one value."""
    config = run["config"]
    single = {name: value for name, value in config.items() if not isinstance(value, dict | list)}
    return single | (config.get("flags") or {})


def arms_of(runs: list[dict]) -> list[dict]:
    """Runs that differ in the seed alone are an arm: [{"script", "label", "runs": their numbers}]. The label
    is the script, and the first flags in which it differs from other arms of that script."""
    arms: dict[str, dict] = {}
    for number, run in enumerate(runs):
        method = {name: value for name, value in flags_of(run).items() if name not in NEUTRAL}
        script = str(run["config"].get("script") or run["config"].get("model") or "run")
        arms.setdefault(json.dumps(method, sort_keys=True), {"script": script, "runs": []})["runs"].append(
            number
        )
    for number, arm in enumerate(arms.values(), start=1):
        same = [runs[other["runs"][0]] for other in arms.values() if other["script"] == arm["script"]]
        names = [name for name, *_ in differences(same) if name not in NEUTRAL][:3]
        flags = flags_of(runs[arm["runs"][0]])
        arm["label"] = " ".join([arm["script"], *(f"{name}={flags.get(name)}" for name in names)])
        if any(arm["label"] == other.get("label") for other in arms.values() if other is not arm):
            arm["label"] += f" ({number})"  # they differ in a flag further down
    return list(arms.values())


def differences(runs: list[dict]) -> list[list]:
    """[flag, its value in each run] for the flags in which runs differ."""
    flags = [flags_of(run) for run in runs]
    names = dict.fromkeys(name for each in flags for name in each if name not in ("out_dir", "resume"))
    rows = [[name, *(each.get(name) for each in flags)] for name in names]
    return [row for row in rows if any(value != row[1] for value in row[2:])]


def scores_on_test(names: list[str], runs: list[dict]) -> Table:
    """The scores on test of several training runs: a line for each score, a column for each run."""
    scores = [{score["name"]: score for score in run["facts"].get("test", [])} for run in runs]
    change = lambda score: f"{score['before']:.3f} → {score['after']:.3f}" if score else "–"  # noqa: E731
    known = dict.fromkeys(name for each in scores for name in each)
    lines = [[name, *(change(each.get(name)) for each in scores)] for name in known]
    return Table("", ["test, before → after", *names], lines, [])
