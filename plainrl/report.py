"""report.html: one page that shows a run, or several, token by token. It opens by a double click.

    python tools/report.py runs/grpo/chain-seed0        writes report.html in that folder again

Training scripts write it at their end. The page is one file without a server and without the network: text,
numbers, style and code stand in it. The numbers are from report_data.py and report_charts.py, the frame of
the page is report.html, its looks report.css, and what it does report_tokens.js, report_curves.js and
report.js, all beside this file.

What a model wrote is a stranger's text. It stands in the page as compressed data, the page shows it as text,
and the page's policy lets a browser run nothing but the code that was put there, and load nothing at all.
"""

import base64
import gzip
import hashlib
import html
import json
import re
from importlib.util import find_spec
from pathlib import Path

from plainrl.folder import write_text
from plainrl.report_charts import arms_of, chart, charts_of, differences, flags_of, scores_on_test
from plainrl.report_data import MOST_READ, OTHER_SHAPE, evenly, read_run
from plainrl.results import in_words, side_by_side
from plainrl.screen import shown

LARGEST = 16_000_000  # bytes of the page, Bokeh's 1.4 MB included; a default run has 1.6 MB
LONGEST_FLAG = 20_000  # letters of a value in the configuration that are shown
CUT = " … (cut here; all of it is in the run's folder)"
BOKEH = "bokeh==3.9.2"  # the version that the page was tried with
HERE = Path(__file__).resolve().parent


def write_report(runs: list[Path], path: Path | None = None) -> Path:
    """Write the page of these runs to `path`, or to report.html in the folder of the first one, and return
    where it is.

    Raises ValueError for a folder that holds no run, OSError where one cannot be read or the page not be
    written.
    """
    return write_page(make_page(runs), path or Path(runs[0]) / "report.html")


def write_page(page: dict, path: Path) -> Path:
    write_text(path, as_html(page))
    return path


def make_page(folders: list[Path]) -> dict:
    """Everything that the page shows, small enough for it. "notes" is what a reader must know about what is
    left out."""
    if not folders:
        raise ValueError("give the folder of a run, such as runs/grpo/chain-seed0")
    notes: list[str] = []
    labels = labels_of([Path(folder) for folder in folders])
    runs = [read_run(Path(folder), notes, MOST_READ // len(folders)) for folder in folders]
    charts = charts_of(runs)
    several, arms = len(runs) > 1, arms_of(runs)
    passes = [(label, run.pop("passes", None)) for label, run in zip(labels, runs)]
    lines = [line | ({"label": label} if several else {}) for label, line in passes if line]
    if lines:
        charts.append(chart("pass@k, 95% intervals", "pass@k", lines, xlabel="k"))
    for arm in arms:
        seeds = [flags_of(runs[number]).get("seed") for number in arm["runs"] if runs[number].get("curves")]
        if len(set(map(str, seeds))) < len(seeds):
            notes.append(
                f"{arm['label']}: some of these runs have the same seed, so the band is no band of seeds"
            )
    page = {
        "notes": notes,
        "bokeh": "" if has_bokeh() else BOKEH,  # what to install for charts that zoom
        "charts": charts,
        "arms": arms,
        "differences": [list(map(short_value, row)) for row in differences(runs)] if several else [],
        "tests": scores_on_test(labels, runs)._asdict(),
        "beside": beside(labels, runs, notes),
        "runs": [],
    }
    for run, label in zip(runs, labels):
        for name in ("curves", "results"):  # they are in the charts and tables
            run.pop(name, None)
        run |= {"label": label, "summary": summary_of(run, label, several), "config": flat(run["config"])}
        page["runs"].append(run)
    names = [arm["label"] + f" ({len(arm['runs'])} runs)" * (len(arm["runs"]) > 1) for arm in arms]
    page["title"] = ", ".join(names) if several else title_of(page["runs"][0])
    without = [run | {"groups": [], "dev": []} for run in page["runs"]]
    room = LARGEST - len(as_html(page | {"runs": without}).encode()) - 2_000  # for the notes
    for run in page["runs"]:
        fit(run, room // len(runs), notes)
    return page


def labels_of(folders: list[Path]) -> list[str]:
    """The last two parts of a folder's name, or as many as it takes to tell the folders apart."""
    parts = [folder.resolve().parts for folder in folders]
    for folder, part in zip(folders, parts):
        if parts.count(part) > 1:
            raise ValueError(f"{folder}: is given twice; it would count as two runs")
    count = 2
    while len({part[-count:] for part in parts}) < len(parts):
        count += 1
    return [shown("/".join(part[-count:]), one_line=True) for part in parts]


def beside(labels: list[str], runs: list[dict], notes: list[str]) -> list[dict]:
    """The tables of several evaluations side by side; none for one alone. Of one without results, or whose
    results cannot be read, a note says that it is not among them."""
    evaluations = [(label, run) for label, run in zip(labels, runs) if "evaluation" in run]
    for label, run in evaluations if len(evaluations) > 1 else []:
        if not run["results"]:
            finished = run["facts"]["finished"]
            reason = "its results cannot be read" if finished else f"it has not finished{how_far(run)}"
            notes.append(f"{label} is not in a table with the others, since {reason}")
    found = [(label, run["results"]) for label, run in evaluations if run["results"]]
    if len(found) < 2:
        return []
    names, evaluations = zip(*found)
    try:
        return [table._asdict() for table in side_by_side(names, evaluations)]
    except OTHER_SHAPE as error:
        what = f"a results.json is not as eval.py writes it: {in_words(error)}"
        notes.append(shown(f"these evaluations cannot be put side by side ({what})", one_line=True))
        return []


def summary_of(run: dict, label: str, several: bool) -> str:
    """What a run is, in one line. Of several it says whose the numbers at the head of the page are. An
    evaluation alone has model and task in its title."""
    facts = run["facts"]
    model = f", model {facts['model']}" if facts.get("model") else ""
    measured = f", {facts['measured']}" if facts.get("measured") else ""
    what = f"The numbers below are of {label}{model}{measured}" if several else f"{label}{model}"
    if not several and measured:
        what = facts["measured"]
    return f"{what}." + ("" if facts["finished"] else f" It has not finished{how_far(run)}.")


def how_far(run: dict) -> str:
    """Of a run that has not finished: how much of it is done."""
    facts = run["facts"]
    if "evaluation" not in run:
        return f": step {facts['steps']} of {facts['of_steps'] or '?'}"
    return f": {facts['done']} of {facts['problems'] or '?'} problems are done" if "done" in facts else ""


def title_of(run: dict) -> str:
    script, task = run["facts"].get("script"), run["facts"].get("task")
    if "evaluation" in run:
        return f"{run['facts'].get('model')} on {task}"
    return f"{script} on {task}" if script and task else run["label"]


def flat(config: dict) -> dict:
    """config.json as one table: the flags, and what stands beside them."""
    beside = {name: value for name, value in config.items() if name != "flags"}
    if isinstance(beside.get("versions"), dict):
        beside["versions"] = ", ".join(f"{name} {number}" for name, number in beside["versions"].items())
    values = (config.get("flags") or {}) | beside
    return {name: short_value(value) for name, value in values.items()}


def short_value(value):
    """A flag's value, cut where it is a very long text."""
    return shortened(value, LONGEST_FLAG) if isinstance(value, str) else value


# --- the page's size ----------------------------------------------------------------------------------------


def fit(run: dict, room: int, notes: list[str]) -> None:
    """Thin the dev samples and the groups of a run until they take `room` bytes, and say so in `notes`.

    Completions go before steps: where there are too many, evenly spread steps keep all of theirs and the
    others one of each kind. Only then do steps go. Scores on dev keep the first, the middle and the last.
    """
    unread = run.pop("unread", {})  # steps of a file that is too large to be read
    dev, groups = run.get("dev") or [], run.get("groups") or []
    label = run["label"]

    share = room // 2 if groups else room
    sizes = [cut(score, share // 3) for score in dev]
    kept = most_that_fit(len(dev), lambda places: sum(sizes[i] for i in places) <= share)
    run["dev"] = [dev[i] for i in kept]
    note_left_out(notes, label, "scores on dev", len(kept), len(dev) + unread.get("dev", 0))

    share = room - sum(sizes[i] for i in kept)
    sizes = [cut(group, share // 3) for group in groups]
    few, whole = groups, range(len(groups))
    if sum(sizes) > share:
        few = [one_of_each_kind(group) for group in groups]
        small = [size(group) for group in few]
        more = [large - small for large, small in zip(sizes, small)]
        whole = most_that_fit(len(groups), lambda places: sum(small) + sum(more[i] for i in places) <= share)
        sizes = [sizes[i] if i in whole else small[i] for i in range(len(groups))]
    kept = most_that_fit(len(groups), lambda places: sum(sizes[i] for i in places) <= share)
    run["groups"] = [groups[i] if i in whole else few[i] for i in kept]
    what = "problems" if "evaluation" in run else "steps"
    note_left_out(notes, label, what, len(kept), len(groups) + unread.get("groups", 0))
    fewer = sum("kept" in group for group in run["groups"])
    if fewer:
        notes.append(
            f"{label}: in {fewer} of these {what} one completion of each kind is in this page (right, wrong, "
            "cut off at the limit of tokens)"
        )


def note_left_out(notes: list[str], label: str, what: str, kept: int, total: int) -> None:
    if kept < total:
        notes.append(
            f"{label}: {kept} of {total} {what} are in this page, evenly spread; all are in the run's folder "
            f"(a page has at most {LARGEST // 1_000_000} MB)"
        )


def most_that_fit(total: int, fits) -> list[int]:
    """The most evenly spread numbers below `total` for which `fits` holds, at least the first, the middle and
    the last."""
    count = total
    while count > 3 and not fits(evenly(total, count)):
        count = int(count * 0.95)
    return evenly(total, count)


def one_of_each_kind(group: dict) -> dict:
    """A group with its first completion that is right, the first that is wrong and the first that was cut off
    at the limit of tokens. "kept" are their places; "right" and "of" count all."""
    rows = group["rows"]
    first: dict = {}  # kind: the place of its first completion
    for place, row in enumerate(rows):
        first.setdefault(row.get("right"), place)
        if row.get("truncated"):
            first.setdefault("truncated", place)
    kept = sorted(set(first.values()))
    if len(kept) == len(rows):
        return group
    counts = {"kept": kept, "right": sum(row.get("right", False) for row in rows), "of": len(rows)}
    also = {"also": group["also"][:1]} if "also" in group else {}
    return group | {"rows": [rows[i] for i in kept]} | counts | also


def size(value) -> int:
    """Bytes that it takes in the page."""
    return len(packed(value))


def cut(entry: dict, room: int) -> int:
    """Shorten the longest completions, prompts and other texts until the entry takes `room` bytes. Returns
    its size."""
    problems = entry.get("problems", [])
    rows = [*entry.get("rows", []), *entry.get("also", [])]
    rows += [sample for problem in problems for sample in problem["samples"]]
    limit, total = room, size(entry)
    while total > room and limit > 1000:
        for row in rows:
            shorten(row, limit)
        for place in (entry, *problems, *rows):
            shorten_texts(place, limit)
        limit, total = int(limit * 0.8), size(entry)
    return total


def shorten(row: dict, limit: int) -> None:
    """Leave `limit` bytes of a completion, its tokens and their numbers. "cut" is how many letters it had."""
    before = size(row)
    if before <= limit:
        return
    row.setdefault("cut", len(row["completion"]))
    row["completion"] = row["completion"][: int(len(row["completion"]) * limit / before)]
    if "tokens" in row:
        count = int(len(row["tokens"]) * limit / before)
        row["tokens"] = row["tokens"][:count]
        lists = {name: value for name, value in row["numbers"].items() if isinstance(value, list)}
        row["numbers"] |= {name: value[:count] for name, value in lists.items()}


def shorten_texts(place: dict, limit: int) -> None:
    """Leave `limit` letters of a prompt, a hint, a solution, a flag: of every text but a completion."""
    for name, text in place.items():
        if isinstance(text, str) and name != "completion":
            place[name] = shortened(text, limit)


def shortened(text: str, limit: int) -> str:
    return text if len(text) <= limit + len(CUT) else text[:limit] + CUT


# --- the file -----------------------------------------------------------------------------------------------


def packed(value) -> str:
    """JSON, compressed and written in letters and digits: nothing in it can end the <script> that it stands
    in. report_tokens.js unpacks it."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(gzip.compress(text.encode(), 6, mtime=0)).decode()


def as_html(page: dict) -> str:
    """The file: the parts put into report.html, and a policy that lets these scripts run and nothing else."""
    scripts = {"bokeh": bokeh(), "tokens": source("report_tokens.js")}
    scripts |= {"curves": source("report_curves.js"), "code": source("report.js")}
    allowed = " ".join(f"'sha256-{digest(script)}'" for script in scripts.values())
    policy = (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "font-src data:; base-uri 'none'; form-action 'none'"
    )
    fields = scripts | {
        "policy": html.escape(policy),
        "title": html.escape(page["title"]),
        "style": source("report.css"),
        "data": packed(page),
    }
    # In one pass: what stands in a run is never looked through for fields.
    return re.sub(r"\{\{(\w+)\}\}", lambda field: fields[field[1]], source("report.html"))


def source(name: str) -> str:
    return (HERE / name).read_text("utf-8")


def digest(script: str) -> str:
    """What the policy calls a script by: SHA-256 of its text."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def has_bokeh() -> bool:
    return find_spec("bokeh") is not None


def bokeh() -> str:
    """Bokeh's JavaScript, the two parts that line charts need; empty where Bokeh is not installed."""
    if not has_bokeh():
        return ""
    from bokeh.resources import Resources

    text = "\n".join(Resources(mode="inline", components=["bokeh", "bokeh-api"]).js_raw)
    if "</script" in text.lower() or "<!--" in text:
        raise ValueError(f"this version of Bokeh cannot stand inside a page; pip install {BOKEH}")
    return text
