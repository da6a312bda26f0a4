"""The results of evaluations: their rows, two of them compared problem by problem, and their tables, which
eval.py prints and report.html shows.

An entry is a number with its 95% interval: {value, low, high, too_narrow}, see `summarise` of metrics.py.
Letters in shapes: P problems, n samples of each.
"""

from typing import NamedTuple

import numpy as np

from plainrl.metrics import ENOUGH, decompose, ladder, problem_values, summarise

# --- rows ---------------------------------------------------------------------------------------------------


def by_metric(problems: list[dict]) -> dict[str, np.ndarray]:
    """{metric: its value for each problem, [P]}"""
    values = [problem_values(row) for row in problems]
    return {name: np.array([value[name] for value in values]) for name in values[0]}


def result_rows(problems: list[dict], settings: dict) -> list[dict]:
    """One row for each horizon, and one for all: the settings, and every metric with its interval.

    `runs` are the accuracies of the first, second, ... sample of every problem: their least, their greatest,
    and the spread between them. `independent_errors` is what accuracy would be if a chain of h steps failed
    only as its single steps do: p^h, with p the accuracy at horizon 1 (h1, arXiv 2510.07312).
    """
    values = by_metric(problems)
    horizons = sorted({row["horizon"] for row in problems})
    single = [row["correct"] / row["n"] for row in problems if row["horizon"] == 1]
    rows = []
    for horizon in [*horizons, "all"] if len(horizons) > 1 else horizons:
        chosen = [i for i, row in enumerate(problems) if horizon in ("all", row["horizon"])]
        columns = {name: column[chosen] for name, column in values.items()}
        strata = np.array([problems[i]["horizon"] for i in chosen])
        runs = np.mean([problems[i]["right"] for i in chosen], axis=0)  # [n]
        rows.append(
            {
                **settings,
                "horizon": horizon,
                "problems": len(chosen),
                "metrics": summarise(columns, strata),
                "runs": {
                    "count": len(runs),
                    "min": runs.min(),
                    "max": runs.max(),
                    "spread": runs.max() - runs.min(),
                },
                "independent_errors": np.mean(single) ** horizon if single and horizon != "all" else None,
            }
        )
    return rows


# --- two evaluations ----------------------------------------------------------------------------------------


def compare(before: dict, after: dict) -> dict:
    """Paired differences after - before, by horizon and for all problems, and where the gain comes from.

    `forgetting_by_chance` is the forgetting of a model against itself, right in one sample and wrong in the
    next; as much gain comes with it. Only what is beyond it says something about training.
    """
    old, new = before["problems"], after["problems"]
    n = after["settings"]["samples"]
    k = min(16, n)  # Guide's

    # Every number of every problem, in the problems' order: {metric: [P]}, [P, 3] and [P].
    old_values, new_values = by_metric(old), by_metric(new)
    parts = decompose(old, new, k)
    by_chance = np.array([forgetting_by_chance(row["correct"], n) for row in old])
    strata = np.array([row["horizon"] for row in new])

    rows = []
    for horizon in [row["horizon"] for row in after["rows"]]:
        chosen = [i for i, row in enumerate(new) if horizon in ("all", row["horizon"])]
        rows.append(
            {
                "horizon": horizon,
                "problems": len(chosen),
                "metrics": paired_differences(old_values, new_values, strata, chosen),
                "gain": summarise({name: parts[chosen, i] for i, name in enumerate(GAIN)}, strata[chosen]),
                "gain_k": k,
                "forgetting_by_chance": float(by_chance[chosen].mean()) if n > 1 else None,
            }
        )
    return {"settings": {"baseline": before["settings"], "model": after["settings"]}, "rows": rows}


GAIN = ("self-distillation", "capability gain", "forgetting")  # the columns of `decompose`


def forgetting_by_chance(correct: int, n: int) -> float:
    """Probability that of two different samples of a problem the first is right and the second wrong. This is
    an unbiased estimate of the forgetting (see `decompose`) of a model against itself.

    Three of four samples are right. Of the 12 ordered pairs 3 * 1 go from right to wrong:

    >>> forgetting_by_chance(3, 4)
    0.25
    """
    return correct * (n - correct) / (n * max(1, n - 1))


def paired_differences(
    old: dict[str, np.ndarray], new: dict[str, np.ndarray], strata: np.ndarray, chosen: list[int]
) -> dict:
    """{metric: {value, low, high, too_narrow, before, after, excludes_zero}} of the chosen problems.

    The interval is that of the differences problem by problem: hard problems are hard for both models, so
    these spread less than the two scores do.
    """
    differences = {name: new[name][chosen] - old[name][chosen] for name in new}
    summary = summarise(differences, strata[chosen], difference=True)
    for name, entry in summary.items():
        entry["before"] = float(np.mean(old[name][chosen]))
        entry["after"] = float(np.mean(new[name][chosen]))
        entry["excludes_zero"] = entry["low"] is not None and not entry["low"] <= 0 <= entry["high"]
    return summary


# --- tables -------------------------------------------------------------------------------------------------

BRACKETS = "in brackets: 95% interval, bootstrap over problems"
STAR = (
    f"* fewer than {ENOUGH} problems right, wrong or different: the interval may be too narrow "
    "(benchmarks/coverage.md)"
)
RATES = ("frac_unparsed", "frac_truncated", "len_mean")


class Table(NamedTuple):
    """Lines of cells below the names of their columns. `about` is what a reader must know, a line each."""

    title: str
    head: list[str]
    lines: list[list[str]]
    about: list[str]


def table_of(title: str, head: list[str], lines: list[list[str]], about: list[str]) -> Table:
    """The table, with the lines about its intervals: what they are, and that some are too narrow."""
    has_stars = any(cell.endswith("]*") for line in lines for cell in line)
    return Table(title, head, lines, [*about, BRACKETS] + [STAR] * has_stars)


def as_text(tables: list[Table]) -> str:
    """Tables for the terminal, and below all of them what is to be said about them, each line once."""
    texts = [f"{table.title}\n".lstrip() + aligned([table.head, *table.lines]) for table in tables]
    said = list(dict.fromkeys(line for table in tables for line in table.about))
    said.sort(key=lambda line: line in (BRACKETS, STAR))  # what is said of one table, then of all
    return "\n\n".join(texts) + "".join(f"\n{line}" for line in said)


def aligned(rows: list[list[str]]) -> str:
    """Columns of equal width."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join(
        "  ".join(f"{text:<{width}}" for text, width in zip(row, widths)).rstrip() for row in rows
    )


def cell(entry: dict, signed: bool = False) -> str:
    """A value with its interval; a star where the interval is narrower than it should be."""
    form = "+.3f" if signed else ".3f"
    ends = "-, -" if entry["low"] is None else f"{entry['low']:{form}}, {entry['high']:{form}}"
    return f"{entry['value']:{form}} [{ends}]" + "*" * (entry["too_narrow"] or entry["low"] is None)


def shown_metrics(n: int) -> list[str]:
    """avg@n, pass@k and maj@k, less those that are always avg@n: pass@1, maj@1 and maj@2 (ties are split).

    >>> shown_metrics(1), shown_metrics(4)
    (['avg@1'], ['avg@4', 'pass@2', 'pass@4', 'maj@4'])
    """
    return [f"avg@{n}", *(f"pass@{k}" for k in ladder(n) if k > 1), *(f"maj@{k}" for k in ladder(n) if k > 2)]


def score_if_graded(row: dict, n: int) -> list[str]:
    """["score"] where the grader's scores are not only 0 and 1, so that their mean is not avg@n; else []."""
    score, right = row["metrics"].get("score"), row["metrics"][f"avg@{n}"]
    parts = {"value", "before", "after"} & right.keys()
    graded = score is not None and any(abs(score[part] - right[part]) > 1e-9 for part in parts)
    return ["score"] * graded  # an older file has none


def main_metrics(row: dict, n: int) -> list[str]:
    """Of all metrics the most telling: the score, avg@n, pass@n and maj@n, less those that say the same."""
    last = [f"avg@{n}", f"pass@{n}", f"maj@{n}"]
    return score_if_graded(row, n) + [name for name in last if name in shown_metrics(n)]


def described(settings: dict) -> str:
    """What was measured, and how."""
    return f"{settings['model']} on {settings['task']}, {how_measured(settings)}"


def how_measured(settings: dict) -> str:
    return (
        f"{settings['split']}: {settings['problems']} problems x {settings['samples']} samples, temperature "
        f"{settings['temperature']:g}, top-p {settings['top_p']:g}, at most {settings['max_new_tokens']} "
        "tokens"
    )


def in_words(error: Exception) -> str:
    """Why a file could not be read or is of another shape, for people: Python names a field or a number.

    >>> in_words(KeyError("settings")), in_words(TypeError("list indices must be integers or slices"))
    ("'settings' is missing", 'a value is of another kind')
    """
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if isinstance(error, KeyError):
        return f"{error.args[0]!r} is missing"
    if isinstance(error, IndexError):
        return "a list is too short"
    return "it is no JSON" if isinstance(error, ValueError) else "a value is of another kind"


# --- the tables of one evaluation ---------------------------------------------------------------------------


def score_tables(rows: list[dict], n: int) -> list[Table]:
    """A table by horizon, if there are several, and every metric of all problems. `rows` are those of
    results.json."""
    if len(rows) == 1:
        return [metric_table(rows[0], n, "")]
    return [horizon_table(rows, n), metric_table(rows[-1], n, "All horizons")]


def horizon_table(rows: list[dict], n: int) -> Table:
    """One line for each horizon, and one for all."""
    names = main_metrics(rows[-1], n)
    expected = rows[0]["independent_errors"] is not None
    lines = []
    for row in rows:
        metrics, independent = row["metrics"], row["independent_errors"]
        line = [str(row["horizon"]), str(row["problems"]), *(cell(metrics[name]) for name in names)]
        line += ["" if independent is None else f"{independent:.3f}"] * expected
        line += [f"{metrics[name]['value']:.3f}" for name in ("frac_unparsed", "frac_truncated")]
        lines.append(line + [f"{metrics['len_mean']['value']:.1f}"])
    head = ["horizon", "problems", *names, *["p^h"] * expected, "unparsed", "truncated", "tokens"]
    about = [f"p^h: avg@{n} at horizon 1 to the power h, as if the steps of a chain failed independently"]
    return table_of("", head, lines, about * expected)


def metric_table(row: dict, n: int, title: str) -> Table:
    """One line for each metric."""
    metrics = row["metrics"]
    lines = [[name, cell(metrics[name])] for name in score_if_graded(row, n) + shown_metrics(n)]
    if n > 1:
        lines += [[f"{name} of {n} runs", f"{row['runs'][name]:.3f}"] for name in ("min", "max", "spread")]
    rates = ("frac_unparsed", "frac_truncated", "frac_timeout", "frac_errors", "len_mean")
    lines += [[name, f"{metrics[name]['value']:.3f}"] for name in rates]
    about = [f"runs: avg of the first, the second, ... sample of every problem, {n} in all"] * (n > 1)
    return table_of(title, ["metric", "value"], lines, about)


# --- the tables of several ----------------------------------------------------------------------------------

CHANCE = "differences are paired by problem; of 20 comparisons between equal models about one excludes 0"


def compared_lines(rows: list[dict], n: int) -> list[tuple[str, dict]]:
    """What evaluations are compared in: (name, entry), of all problems and then by horizon, if there are
    several. `rows` are those of an evaluation or of a comparison."""
    whole = rows[-1]
    names = [*score_if_graded(whole, n), *shown_metrics(n), *RATES]
    lines = [(name, whole["metrics"][name]) for name in names]
    for name in main_metrics(whole, n):
        if not name.startswith("maj@"):
            lines += [(f"{name}, horizon {row['horizon']}", row["metrics"][name]) for row in rows[:-1]]
    return lines


def excludes_zero(entry: dict) -> str:
    return "yes" if entry["excludes_zero"] else "no"


def comparison_tables(comparison: dict) -> list[Table]:
    """Which differences exclude zero, and where the gain comes from."""
    settings, rows = comparison["settings"], comparison["rows"]
    lines = []
    for name, entry in compared_lines(rows, settings["model"]["samples"]):
        scores = [f"{entry['before']:.3f}", f"{entry['after']:.3f}"]
        lines.append([name, *scores, cell(entry, signed=True), excludes_zero(entry)])
    title = f"{settings['model']['model']} against {settings['baseline']['model']}, the same problems"
    head = ["metric", "baseline", "model", "difference", "excludes 0"]
    return [table_of(title, head, lines, [CHANCE]), gain_table(comparison, "the baseline")]


def gain_table(comparison: dict, baseline: str, model: str = "") -> Table:
    """The parts of the difference in avg@n (see `decompose`), by the names of the two sides."""
    whole, n = comparison["rows"][-1], comparison["settings"]["model"]["samples"]
    k, chance = whole["gain_k"], whole["forgetting_by_chance"]
    meanings = (
        f"wrong before, right now; of {k} samples before at least one was right",
        f"wrong before, right now; of {k} samples before none was right",
        "right before, wrong now",
    )
    gain = zip("++-", whole["gain"].items(), meanings)
    lines = [[sign + name, cell(entry), meaning] for sign, (name, entry), meaning in gain]
    title = f"Where the gain {model and f'of {model} '}over {baseline} in avg@{n} comes from (Guide)"
    about = []
    if chance is not None:
        about = [f"by chance {baseline}, one sample against another, forgets {chance:.3f} and gains as much"]
    return table_of(title, ["part", "of the difference", "what it is"], lines, about)


def why_not_paired(before: dict, after: dict) -> str:
    """What in the settings of two evaluations rules out a paired difference; "" where nothing does."""
    if before["problems_hash"] != after["problems_hash"]:
        return "their problems are not the same"
    return "" if before["samples"] == after["samples"] else "their numbers of samples are not the same"


ORDER = ("problems", "samples of each", "score", "avg", "pass", "maj", *RATES)


def place_of(metric: str) -> tuple:
    """Where a line stands among those of several evaluations, which may differ in their numbers of samples:
    by kind, then by that number. Lines of one horizon stand below those of all.

    >>> sorted(["len_mean", "avg@4, horizon 2", "pass@16", "pass@4", "avg@4"], key=place_of)
    ['avg@4', 'pass@4', 'pass@16', 'len_mean', 'avg@4, horizon 2']
    """
    name, _, horizon = metric.partition(", horizon ")
    kind, _, samples = name.partition("@")
    return bool(horizon), ORDER.index(kind), int(samples or 0), int(horizon or 0)


def side_by_side(names: list[str], evaluations: list[dict]) -> list[Table]:
    """Contents of several results.json in one table: the difference of each from the first one, where both
    asked the same problems, and a column for each. Then a table for each difference, of where its gain comes
    from."""
    columns, differences, difference_names, about, gains = [], [], [], [], []
    for each in evaluations:
        n, column = each["settings"]["samples"], {"problems": str(each["settings"]["problems"])}
        column["samples of each"] = str(n)
        for metric, entry in compared_lines(each["rows"], n):
            column[metric] = f"{entry['value']:.3f}" if metric in RATES else cell(entry)
        columns.append(column)
    first = evaluations[0]
    for name, each in zip(names[1:], evaluations[1:]):
        reason = why_not_paired(first["settings"], each["settings"])
        if reason:
            about.append(f"{name} has no difference from {names[0]}: {reason}")
            continue
        comparison = compare(first, each)
        lines = compared_lines(comparison["rows"], each["settings"]["samples"])
        differences.append({metric: cell(entry, signed=True) for metric, entry in lines})
        differences.append({metric: excludes_zero(entry) for metric, entry in lines})
        difference_names += [f"{name} less {names[0]}", "excludes 0"]
        gains.append(gain_table(comparison, names[0], name))
    metrics = sorted({metric: None for column in columns for metric in column}, key=place_of)
    columns = differences + columns  # these stand first: a phone shows two columns
    lines = [[metric, *(column.get(metric, "") for column in columns)] for metric in metrics]
    head = ["metric", *difference_names, *names]
    about += [CHANCE] * bool(gains)
    return [table_of("The evaluations side by side", head, lines, about), *gains]
