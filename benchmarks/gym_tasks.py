"""Goes through every task of the installed reasoning-gym, as --task gym:NAME has it with its own settings.

    python benchmarks/gym_tasks.py
    python benchmarks/gym_tasks.py --tasks countdown maze

Each task has a process of its own and a time limit. Measured are the seconds until it can be trained on and
for a question, whether its own answers score 1 when a completion gives them in a box, and what the best
answer earns that is the same for every question. Seconds are those of a processor, but for grading, where
they are those of a clock. It took 19 minutes on two busy cores. Without `--tasks` the figures are written to
runs/reference/gym/tasks.json, and `python benchmarks/pages.py` makes the table of docs/gym.md of them.
"""

import hashlib
import json
import multiprocessing
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import tyro

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from plainrl import gym  # noqa: E402
from plainrl.screen import say  # noqa: E402
from plainrl.tasks import load_task  # noqa: E402
from plainrl.workers import WORKERS  # noqa: E402

LOG = ROOT / "runs/reference/gym/tasks.json"
OWN_ANSWERS = 10  # graded
QUESTIONS = 100  # over which constant answers are scored
CONSTANT_SECONDS = 5.0  # at most, for that
SAME, SAME_SECONDS = 300, 1.5  # questions compared between processes, while they take no longer
AVOID = 0.9  # a constant answer that earns this leaves nothing to learn


@dataclass
class Args:
    tasks: tuple[str, ...] = ()
    """only these, and nothing is written"""
    seconds: float = 60.0
    """wall-clock limit of a task"""
    digests: bool = False
    """only print a digest of each task's questions, to compare with those of another process"""


def all_tasks() -> list[str]:
    from reasoning_gym.factory import DATASETS  # optional, and this file is imported for its table too

    return sorted(DATASETS)


def digest(task: gym.GymTask) -> list[str]:
    """Of some questions and their answers, one each."""
    found, start = [], time.process_time()
    while len(found) < SAME and time.process_time() - start < SAME_SECONDS:
        question = gym.fixed_part(task.entry(0, len(found)))
        found.append(hashlib.sha256(repr(question).encode()).hexdigest()[:8])
    return found


def digests(names: list[str], seconds: float) -> dict[str, list[str]]:
    """{task: digest}, without tasks that are refused or take too long: the table has them anyway."""
    found = {}
    for name in names:
        try:
            with gym.time_limit(seconds):
                found[name] = digest(load_task(f"gym:{name}"))
        except (ValueError, gym.TooSlow):
            pass
    return found


def measure(name: str, report) -> None:
    """Send what is found about a task, piece by piece, so that a limit costs only what comes after it."""
    start = time.process_time()
    try:
        task = load_task(f"gym:{name}")
        first = task.problem("train", 0, 0)
    except ValueError as error:
        report.send({"refused": str(error)})
        return
    report.send({"load_seconds": time.process_time() - start})

    start = time.process_time()
    problems = [first, *(task.problem("train", index, 0) for index in range(1, OWN_ANSWERS))]
    report.send({"question_seconds": (time.process_time() - start) / (OWN_ANSWERS - 1)})
    answers = [problem.answer for problem in problems]
    longest, lines = max(map(len, answers)), 1 + max(answer.count("\n") for answer in answers)
    report.send({"longest": longest, "lines": lines})

    if gym.ANY_ANSWER not in answers:
        for _ in range(WORKERS):
            task.grade("\\boxed{?}", first)  # starts one of them
        start, scores, why = time.monotonic(), [], {}
        for problem in problems:
            grade = task.grade(f"So it is \\boxed{{{problem.answer}}}", problem)
            scores.append(grade.score)
            if not grade.correct:
                why[grade.why] = why.get(grade.why, 0) + 1
        seconds = (time.monotonic() - start) / len(problems)
        report.send({"own": sum(scores) / len(scores), "own_why": why, "grade_seconds": seconds})

    report.send({"digest": digest(task)})
    gym.PROBE_SECONDS = CONSTANT_SECONDS
    start, entries = time.monotonic(), []
    for position in range(QUESTIONS):
        entry = task.entry(0, position)
        entries += [] if entry is None else [entry]
        if time.monotonic() - start > CONSTANT_SECONDS:
            break
    free, _, questions = task.constants(0, entries)
    best = max(free, key=free.get, default=None)
    report.send({"constant": best, "earns": free.get(best), "questions": questions})


def in_a_process(name: str, seconds: float) -> dict:
    """What `measure` finds within the limit."""
    context = multiprocessing.get_context("fork")  # what is imported here need not be imported again
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=measure, args=(name, theirs))
    process.start()
    theirs.close()
    row, end = {"task": name}, time.monotonic() + seconds
    try:
        while ours.poll(max(0.0, end - time.monotonic())):
            row |= ours.recv()
        row["over"] = f"not done within {seconds:.0f} s"
        process.kill()
    except EOFError:  # it has said everything
        process.join()
        if process.exitcode:
            row["over"] = f"ended with {process.exitcode}"
    return row


def remarks(row: dict) -> str:
    """What to know about a task before training on it."""
    if "refused" in row:
        return f"refused: {row['refused'].partition(': ')[2]}"
    found = []
    if row.get("earns") is not None and row["earns"] >= AVOID:
        found.append("**avoid**: an answer without thought earns nearly everything")
    if row["task"] in gym.HASH_DEPENDENT:
        found.append("start with `PYTHONHASHSEED=0`")
    elif row.get("differs"):
        found.append("**avoid**: differs from process to process")
    if row["task"] in gym.SIZES:
        found.append(f"{gym.SIZES[row['task']]:,} questions")
    if row.get("own_why"):
        found.append("own answers: " + ", ".join(f"{times} x {why}" for why, times in row["own_why"].items()))
    if "own" not in row and "longest" in row and "over" not in row:
        found.append("reasoning-gym gives no answer along that could be tried")
    if row.get("lines", 1) > 1:
        found.append("answers of several lines")
    if "over" in row:
        found.append(row["over"])
    return "; ".join(found)


def page_table(log: dict) -> str:
    """What docs/gym.md shows of it."""
    titles = ["task", "ready (s)", "a question (s)", "grading (s)", "own answer", "best constant", "it earns"]
    titles += ["longest answer", "remarks"]
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for row in log["rows"]:
        constant = row.get("constant") if row.get("earns") else None
        cells = [
            f"`{row['task']}`",
            shown(row.get("load_seconds"), ".1f"),
            shown(row.get("question_seconds"), ".3f"),
            shown(row.get("grade_seconds"), ".2f"),
            shown(row.get("own"), ".2f"),
            "" if constant is None else f"`{' '.join(constant.split()).replace('|', ' ')[:20].strip()}`",
            shown(row.get("earns"), ".2f"),
            shown(row.get("longest"), "d"),
            remarks(row).replace("|", " "),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def shown(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def summary(log: dict) -> str:
    """The sentence above the table."""
    rows = log["rows"]
    refused = [row["task"] for row in rows if "refused" in row]
    tried = [row for row in rows if "own" in row]
    right = [row for row in tried if row["own"] == 1]
    avoid = [row["task"] for row in rows if "**avoid**" in remarks(row)]
    names = lambda tasks: ", ".join(f"`{task}`" for task in tasks) or "none"  # noqa: E731
    return (
        f"reasoning-gym {log['version']}: of {len(rows)} tasks {len(rows) - len(refused)} load "
        f"(refused: {names(refused)}). Own answers score 1 in {len(right)} of the {len(tried)} tasks "
        f"that give some along. To avoid: {names(avoid)}."
    )


def main(args: Args) -> None:
    known = all_tasks()
    names = list(args.tasks) or known
    if args.digests:
        print(json.dumps(digests(names, 10.0)))
        return
    if os.environ.get("PYTHONHASHSEED") != "0":  # else some tasks are refused
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, [sys.executable, *sys.argv])
    start, rows = time.monotonic(), []
    other = subprocess.run(
        [sys.executable, __file__, "--digests", *(["--tasks", *args.tasks] if args.tasks else [])],
        env=os.environ | {"PYTHONHASHSEED": "1"},
        stdout=subprocess.PIPE,
        check=True,
    )
    others = json.loads(other.stdout.splitlines()[-1])
    for name in names:
        row = in_a_process(name, args.seconds)
        both = list(zip(row.pop("digest", []), others.get(name, []), strict=False))  # what both had time for
        row["compared"], row["differs"] = len(both), any(here != there for here, there in both)
        numbers = {key: round(value, 4) for key, value in row.items() if isinstance(value, float)}
        rows.append(row | numbers)
        say(json.dumps(rows[-1], ensure_ascii=False))
    say(f"{time.monotonic() - start:.0f} s")
    if not args.tasks:
        from importlib.metadata import version

        LOG.parent.mkdir(parents=True, exist_ok=True)
        log = {"version": version("reasoning-gym"), "rows": rows}
        LOG.write_text(json.dumps(log, indent=1, ensure_ascii=False) + "\n")
        say(f"wrote {LOG.relative_to(ROOT)}; now run: python benchmarks/pages.py")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
