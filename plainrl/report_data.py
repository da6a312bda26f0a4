"""What a report shows, read from the folders of runs and evaluations.

Everything here is plain lists and dicts that become JSON. A folder of any age will do: what a file or a row
lacks is left out. A line that is no record is left out too, and a note on the page says which.
"""

import json
import math
import re
from fnmatch import fnmatchcase
from functools import lru_cache
from itertools import groupby
from pathlib import Path

from plainrl.curves import curves_of, is_number
from plainrl.report_charts import group_charts, line_of
from plainrl.results import comparison_tables, how_measured, in_words, main_metrics, score_tables
from plainrl.screen import shown

MOST_READ = 100_000_000  # bytes; of larger files evenly spread steps are read, for the memory's sake
LOGS = ("metrics.jsonl", "results.json", "samples.jsonl")  # where there is one of them, there is a run
MOST_CELLS = 40_000  # of the map of all problems: a browser has an element for each
FOLLOWING = 0.9  # share of the right completions that are the worked solution, where its lines are a measure
ENOUGH_RIGHT = 10  # right completions from which on that share says something
# The same few thousand numbers and tokens come again and again: each is kept in the memory once.
known_float = lru_cache(100_000)(float)
known_token = lru_cache(100_000)(shown)
# Numbers of a token that the scripts log. A row may have others: any list of it as long as its tokens.
TOKEN_NUMBERS = {"entropy", "logprob", "weight", "ratio", "clipped", "gap"}
TOKEN_NUMBERS |= {"selected", "dropped", "penalised"}
# What else the page has a place for. Any other single value of a row is shown beside its name.
ROW_FIELDS = {
    "step",
    "index",
    "prompt",
    "gold",
    "completion",
    "tokens",
    "reward",
    "advantage",
    "why",
    "parsed",
}
ROW_FIELDS |= {"vote", "guided", "truncated", "correct", "sampled_prompt", "hint", "also_sampled"}


def read_run(folder: Path, notes: list[str], most: int = MOST_READ) -> dict:
    """A run's folder, or an evaluation's. What cannot be read is said in `notes`. Of each file `most` bytes
    are read.

    Raises ValueError for a folder that is neither.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: there is no such folder; give the folder of a run")
    config = read_object(folder / "config.json", notes)
    config.pop("saved", None)  # says how far the run has come, and nothing about its method
    is_training = "flags" in config or (folder / "metrics.jsonl").exists()
    if not is_training and "problems_hash" not in config:
        config = settings_in_results(folder, notes)
    if "problems_hash" in config:
        return {"config": config} | read_evaluation(folder, config, notes, most)
    if not is_training:
        raise ValueError(f"{folder}: {why_no_run(folder)}")
    if not isinstance(config.get("flags"), dict):
        config["flags"] = {}
    curves = curves_of(read_lines(folder / "metrics.jsonl", notes, most))
    log = read_lines(folder / "groups.jsonl", notes, most)
    log = [line for line in log if isinstance(line.get("right"), list) and isinstance(line.get("of"), list)]
    samples, unread_groups = read_steps(folder / "samples.jsonl", notes, most)
    dev_samples, unread_dev = read_steps(folder / "dev_samples.jsonl", notes, most)
    dev = read_dev(dev_samples)
    facts = facts_of_run(config, curves)
    return {
        "config": config,
        "curves": curves,
        "facts": facts,
        "tiles": tiles_of(facts),
        "groups": read_groups(samples),
        "dev": dev,
        "unread": {"groups": unread_groups, "dev": unread_dev},
        "follows": follows_solutions(dev),
        "map": map_of([line for line in log if line.get("split") == "dev"], notes),
        "charts": group_charts([line for line in log if line.get("split") == "train"]),
        "extremes": extremes_of(log, "gap") + extremes_of(log, "ratio"),
    }


def settings_in_results(folder: Path, notes: list[str]) -> dict:
    """The settings of an evaluation whose config.json does not say them, as its results.json has them."""
    settings = read_object(folder / "results.json", []).get("settings")
    if not isinstance(settings, dict) or "problems_hash" not in settings:
        return {}
    notes.append(shown(f"{folder / 'config.json'}: has no settings of eval.py; they are from results.json"))
    return settings


def why_no_run(folder: Path) -> str:
    """What a folder is that is neither a run nor an evaluation, and what to give instead."""
    if any((folder / name).exists() for name in ("samples.jsonl", "results.json")):
        config = folder / "config.json"
        damaged = "is damaged" if config.exists() else "is missing"
        return f"its config.json {damaged}, which says what was run here; put it back"
    logs = [log for place in ("*", "*/*") for name in LOGS for log in folder.glob(f"{place}/{name}")]
    inside = sorted({log.parent for log in logs})
    if inside:
        runs = " ".join(map(str, inside[:5])) + " ..." * (len(inside) > 5)
        return f"holds runs or evaluations and is none itself; give one or more of them: {runs}"
    if any(folder.glob("comparison.json")) or any(folder.glob("against-*.json")):
        return (
            "holds a comparison of two evaluations and not their results, so there is no page of it; measure "
            "again with eval.py --baseline, and give the folder that it names"
        )
    return (
        "is no folder of a run; give one that holds the metrics.jsonl of a training script or the "
        "results.json of eval.py"
    )


# --- files --------------------------------------------------------------------------------------------------


def read_object(path: Path, notes: list[str]) -> dict:
    """A JSON file that holds one object; empty where there is none."""
    if not path.exists():
        return {}
    try:
        content = clean(json.loads(path.read_bytes()))
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        notes.append(shown(f"{path}: is no JSON object; what it says is left out"))
        return {}
    return content


def read_lines(path: Path, notes: list[str], most: int = MOST_READ) -> list[dict]:
    """The records of a file. Where it is too large to be read as a whole a note says so."""
    records, unread = read_steps(path, notes, most)
    if unread:
        notes.append(shown(f"{path}: has more than {most} bytes; {unread} of its steps were not read"))
    return records


def read_steps(path: Path, notes: list[str], most: int) -> tuple[list[dict], int]:
    """The records of a file with one a line, and how many of its steps were not read because it has more than
    `most` bytes. No record where there is no file.

    The last line of a run that goes on may be half written: that one is left out without a note.
    """
    if not path.exists():
        return [], 0
    wanted, unread = steps_to_read(path, most)
    records = []
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip() or (wanted is not None and step_of(line) not in wanted):
                continue
            try:
                record = clean(json.loads(line, parse_float=known_float))
            except (ValueError, RecursionError):
                record = None
            if isinstance(record, dict):
                records.append(record)
            elif line.endswith(b"\n"):
                notes.append(shown(f"{path}: line {number} is no JSON record; it is left out"))
    return records, unread


def steps_to_read(path: Path, most: int) -> tuple[set | None, int]:
    """Evenly spread steps of a file that is too large to be read, and how many others it has. None stands for
    all steps."""
    size = path.stat().st_size
    if size <= most:
        return None, 0
    with open(path, "rb") as file:
        steps = list(dict.fromkeys(step for step in map(step_of, file) if step))
    kept = evenly(len(steps), max(3, len(steps) * most // size))
    return {steps[i] for i in kept}, len(steps) - len(kept)


def step_of(line: bytes) -> bytes | None:
    """The step of a line, or the problem of an evaluation's: what stands first in it."""
    found = re.match(rb'\{"(?:step|index)": ?(\d+)', line)
    return found and found[1]


def evenly(total: int, count: int) -> list[int]:
    """At most `count` of the numbers below `total`, evenly spread, always with the first, the middle and the
    last: so an odd count of them, at least three.

    >>> evenly(9, 6)
    [0, 2, 4, 6, 8]
    """
    if count >= total or total <= 3:
        return list(range(total))
    count = max(3, count - (count % 2 == 0))
    return [round(i * (total - 1) / (count - 1)) for i in range(count)]


def clean(value):
    """A value of a file as it may stand in the page: what would turn the writing direction, or cannot be
    seen, is spelt out (see plainrl/screen.py), and a number that is none is None."""
    if isinstance(value, str):
        return known_token(value) if len(value) < 40 else shown(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [clean(each) for each in value]
    if isinstance(value, dict):
        return {shown(name): clean(each) for name, each in value.items()}
    return value


# --- completions --------------------------------------------------------------------------------------------


def as_sample(row: dict, names: set[str]) -> dict:
    """A row of a file -> what the page shows of a completion. `names` are those of its token numbers."""
    sample = {"completion": text_of(row, "completion"), "why": text_of(row, "why")}
    tokens = row.get("tokens")
    if isinstance(tokens, list) and tokens and all(isinstance(token, str) for token in tokens):
        known = [name for name in row if name in names]
        numbers = {name: row[name] for name in known if is_number(row[name]) or of_tokens(row, name)}
        sample |= {"tokens": tokens, "numbers": numbers}
    sample |= {name: row[name] for name in ("reward", "advantage") if is_number(row.get(name))}
    sample |= {name: str(row[name]) for name in ("parsed", "vote") if row.get(name) is not None}
    sample |= {name: bool(row[name]) for name in ("guided", "truncated") if row.get(name) is not None}
    if isinstance(row.get("correct"), bool) or "reward" in sample:
        sample["right"] = row["correct"] if isinstance(row.get("correct"), bool) else sample["reward"] == 1
    own = {name: value for name, value in row.items() if name not in ROW_FIELDS and name not in names}
    facts = {name: value for name, value in own.items() if isinstance(value, str | int | float)}
    return sample | ({"facts": facts} if facts else {})


def text_of(row: dict, name: str) -> str:
    return row[name] if isinstance(row.get(name), str) else ""


def rows_in(value) -> list[dict]:
    """The rows in a field that should hold some."""
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []


def of_tokens(row: dict, name: str) -> bool:
    """Whether a row has a list of that name with a number for each token."""
    value, tokens = row.get(name), row.get("tokens")
    if not isinstance(value, list) or not isinstance(tokens, list) or len(value) != len(tokens):
        return False
    return name != "tokens" and all(each is None or isinstance(each, int | float) for each in value)


def number_names(rows: list[dict]) -> set[str]:
    """The names of all numbers of tokens. Where all tokens of a row have the same one it holds that one
    alone, so an unknown name is one of them if some row has it as a list."""
    return TOKEN_NUMBERS | {name for row in rows for name in row if of_tokens(row, name)}


def read_groups(rows: list[dict]) -> list[dict]:
    """samples.jsonl -> one entry a step: its first group, with the hint and what was sampled in vain."""
    names, groups = number_names(rows), []
    for step, members in groupby(rows, key=lambda row: row.get("step")):
        members = list(members)
        group = {"label": f"step {step}", "rows": [as_sample(row, names) for row in members]}
        for name in ("prompt", "gold", "sampled_prompt", "hint"):
            texts = [str(row[name]) for row in members if row.get(name) is not None]
            group |= {name: texts[0]} if texts else {}
        if is_number(members[0].get("index")):
            group["index"] = members[0]["index"]
        also = rows_in(members[0].get("also_sampled"))
        group |= {"also": [as_sample(row, names) for row in also]} if also else {}
        groups.append(group)
    return groups


def read_dev(lines: list[dict]) -> list[dict]:
    """dev_samples.jsonl -> one entry a score: {"step", "problems": [{"index", "prompt", ..., "samples"}]}."""
    samples = [rows_in(line.get("samples")) for line in lines]
    names, scores = number_names(sum(samples, [])), []
    for line, rows in zip(lines, samples):
        if not scores or scores[-1]["step"] != line.get("step"):
            scores.append({"step": line.get("step"), "problems": []})
        problem = {name: text_of(line, name) for name in ("prompt", "gold", "solution")}
        problem |= {"index": line.get("index"), "samples": [as_sample(row, names) for row in rows]}
        if rows:
            scores[-1]["problems"].append(problem)
    return [score for score in scores if score["problems"]]


def follows_solutions(dev: list[dict]) -> bool:
    """Whether completions that are not wrong are the worked solution, line by line: nearly all of them, and
    enough of them to tell. Then the first line that differs is where another one went wrong. Where many ways
    lead to an answer it would be another way, in free text an accident of wording."""
    equal = []
    for problem in (problem for score in dev for problem in score["problems"]):
        wanted = lines_of(problem["solution"])
        for sample in problem["samples"]:
            if wanted and sample.get("right") is not False:
                equal.append(lines_of(sample["completion"]) == wanted)
    return len(equal) >= ENOUGH_RIGHT and sum(equal) >= FOLLOWING * len(equal)


def lines_of(text: str) -> list[str]:
    """The lines that are not empty, without their spaces."""
    return [line for line in ("".join(line.split()) for line in text.split("\n")) if line]


# --- a run as a whole ---------------------------------------------------------------------------------------


def facts_of_run(config: dict, curves: dict[str, dict[int, float]]) -> dict:
    """What stands at the top of the page: scores on test before and after, the best score on dev, the end."""
    flags = config.get("flags") or {}
    tests = {name: list(points.values()) for name, points in curves.items() if name.startswith("test/")}
    ended = any(len(scores) > 1 for scores in tests.values())  # test is scored before and after a run
    right = [scores for name, scores in tests.items() if "/avg@" in name]
    last = max((step for points in curves.values() for step in points), default=0)
    if not tests:  # nothing to sample, and so no score on test: sft.py with --task none
        ended = "eval/loss" in curves and last == flags.get("steps")
    facts = {
        "script": config.get("script"),
        "task": flags.get("task"),
        "model": flags.get("model"),
        "steps": last,
        "of_steps": flags.get("steps"),
        "tokens": max(curves.get("rollout/tokens_total", {0: 0}).values()),
        "learned": max(curves.get("sft/tokens_total", {0: 0}).values()),  # of rows, where none is sampled
        "finished": ended,
        "test": [
            {"name": name.split("/", 1)[1], "before": scores[0], "after": scores[-1]}
            for name, scores in tests.items()
            if ended and ("@" in name or (name.endswith("/score") and scores not in right))  # partial credit
        ],
    }
    dev = [name for name in curves if fnmatchcase(name, "eval/*/score")]
    dev = dev or [name for name in curves if fnmatchcase(name, "eval/*/avg@*")]
    dev = dev or [name for name in curves if name == "eval/loss"]
    if dev:
        points = curves[dev[0]]
        sign = -1 if dev[0] == "eval/loss" else 1  # a loss is better where it is lower
        best = max(points, key=lambda step: (sign * points[step], step))  # of equal ones the latest
        first = next(iter(points.values()))
        facts |= {"dev": dev[0], "best_step": best, "best": points[best], "first": first}
        facts["scores"] = list(points.values())
    return facts


def tiles_of(facts: dict) -> list[list[str]]:
    """What stands in large letters at the head of a run: (name, value, what stands beside it)."""
    tiles = []
    for score in facts["test"]:
        values = f"{score['before']:.3f} → {score['after']:.3f}"
        tiles.append([f"test {score['name']}", values, "before → after"])
    if "dev" in facts:
        dev = facts["dev"]
        beside = f"{dev} {facts['first']:.3f} → {facts['best']:.3f}, the best on dev"
        if facts["best_step"] == 0:
            beside = f"the starting model: no step scored as well on dev ({dev})"
        if not any(facts["scores"]):
            beside = f"{dev} was 0 at every score: nothing was learned"
        if len(facts["scores"]) == 1:
            beside = f"{dev} {facts['best']:.3f}, the only score so far"
        name = "final model" if facts["finished"] else "best so far"
        tiles.append([name, f"step {facts['best_step']}", beside])
    if facts["steps"]:
        sampled = f"{facts['tokens']:,} tokens sampled" if facts["tokens"] else ""
        learned = f"{facts['learned']:,} tokens with loss" if facts["learned"] else ""
        tiles.append(["steps", str(facts["steps"]), sampled or learned])
    return tiles


def map_of(lines: list[dict], notes: list[str]) -> dict | None:
    """Dev lines of groups.jsonl -> {"index": [P], "steps": [S], "right": [S][P], "of": [S][P]}.

    At most MOST_CELLS of them: a larger map has the first problems, and evenly spread scores."""
    if not lines:
        return None
    longest = max(lines, key=lambda line: len(line["right"]))
    index = longest.get("index")
    index = index if isinstance(index, list) else list(range(len(longest["right"])))
    problems = min(len(index), MOST_CELLS // 3)
    kept = [lines[i] for i in evenly(len(lines), max(3, MOST_CELLS // max(1, problems)))]
    if problems < len(index) or len(kept) < len(lines):
        notes.append(
            f"the map of all problems shows {problems} of {len(index)} problems at {len(kept)} of "
            f"{len(lines)} scores; all are in groups.jsonl"
        )
    return {
        "index": index[:problems],
        "steps": [line.get("step") for line in kept],
        "right": [line["right"][:problems] for line in kept],
        "of": [line["of"][:problems] for line in kept],
    }


def extremes_of(lines: list[dict], kind: str, count: int = 10) -> list[dict]:
    """The steps with the largest gap, or ratio, and the token that had it. A ratio of 1 is none. Before all
    others stands a value that is no number, None: not finite, so worse than any."""
    rows = []
    for line in lines:
        found = line.get(f"largest_{kind}")
        if not isinstance(found, dict) or kind not in found or found[kind] == 1:
            continue
        if found[kind] is None or is_number(found[kind]):
            place = {name: found.get(name) for name in ("token", "index", "sample", "position")}
            rows.append({"kind": kind, "step": line.get("step"), "value": found[kind]} | place)
    size = lambda row: math.inf if row["value"] is None else abs(row["value"])  # noqa: E731
    return sorted(rows, key=size, reverse=True)[:count]


# --- evaluations --------------------------------------------------------------------------------------------

OTHER_SHAPE = (LookupError, TypeError, AttributeError, ValueError)  # what a field that is missing ends in


def read_evaluation(folder: Path, config: dict, notes: list[str], most: int) -> dict:
    """A folder of eval.py: its tables, pass@k, and its samples as groups, one a problem. "results" is what
    results.json holds, empty where there is none that can be read."""
    results, tables = read_object(folder / "results.json", notes), []
    settings = ("model", "task", "split", "problems", "samples", "temperature")
    facts = {"script": "eval", "finished": (folder / "results.json").exists()}
    facts |= {name: config.get(name) for name in settings}
    shown_run: dict = {"tiles": [], "passes": None}
    try:
        facts["measured"] = how_measured(config)
    except OTHER_SHAPE as error:
        notes.append(not_as_written(folder / "config.json", error))
    try:
        if results:
            n, whole = config["samples"], results["rows"][-1]
            tables = score_tables(results["rows"], n)
            shown_run = {"tiles": score_tiles(whole, n), "passes": passes_of(config, whole["metrics"])}
    except OTHER_SHAPE as error:
        notes.append(not_as_written(folder / "results.json", error))
        results = {}
    for path in sorted(folder.glob("against-*.json")):
        comparison = read_object(path, notes)
        try:
            tables += comparison_tables(comparison) if comparison else []
        except OTHER_SHAPE as error:
            notes.append(not_as_written(path, error))
    samples, unread = read_steps(folder / "samples.jsonl", notes, most)
    groups = evaluation_groups(samples, str(config.get("prompt_template", "")))
    if not unread:
        facts["done"] = sum(len(group["rows"]) == config.get("samples") for group in groups)
    return shown_run | {
        "facts": facts,
        "results": results,
        "evaluation": [table._asdict() for table in tables],
        "groups": groups,
        "unread": {"groups": unread},
    }


def not_as_written(path: Path, error: Exception) -> str:
    return shown(
        f"{path}: is not as eval.py writes it ({in_words(error)}); what it says is left out", one_line=True
    )


def score_tiles(whole: dict, n: int) -> list[list[str]]:
    """The most telling metrics as (name, value, what stands beside it)."""
    tiles = []
    for name in main_metrics(whole, n):
        entry = whole["metrics"][name]
        beside = "one problem has no interval"
        if entry["low"] is not None:
            star = "*" * entry["too_narrow"]  # as in the tables, which say what it means
            beside = f"{entry['low']:.3f} to {entry['high']:.3f}, 95% interval{star}"
        tiles.append([name, f"{entry['value']:.3f}", beside])
    return tiles


def passes_of(config: dict, metrics: dict) -> dict:
    """pass@k over k with its interval, as a line of a chart."""
    ks = [k for k in range(1, config["samples"] + 1) if f"pass@{k}" in metrics]
    value, low, high = ([metrics[f"pass@{k}"].get(part) for k in ks] for part in ("value", "low", "high"))
    return line_of(f"{config.get('model')} on {config.get('task')}", ks, value, low, high)


def evaluation_groups(samples: list[dict], template: str) -> list[dict]:
    """samples.jsonl of eval.py -> one entry a problem, by horizon and index. `template` is what a model reads
    round a problem: older files have it in every prompt."""
    several, groups = len({row.get("horizon") for row in samples}) > 1, []
    before, _, after = template.partition("{problem}")
    for (horizon, index), rows in groupby(samples, key=lambda row: (row.get("horizon"), row.get("index"))):
        rows = list(rows)
        shown_rows = [
            {name: row.get(name) for name in ("completion", "parsed", "vote", "correct", "why")}
            | {"reward": row.get("score"), "truncated": row.get("finish_reason") == "length"}
            for row in rows
        ]
        label = f"problem {index}" + f", horizon {horizon}" * several
        group = {"label": label, "place": [horizon or 0, index or 0], "gold": str(rows[0].get("gold"))}
        group["prompt"] = text_of(rows[0], "prompt").removeprefix(before).removesuffix(after)
        group |= {name: rows[0][name] for name in ("sampled_prompt", "hint") if rows[0].get(name)}
        groups.append(group | {"rows": [as_sample(row, set()) for row in shown_rows]})
    return sorted(groups, key=lambda group: group["place"])
