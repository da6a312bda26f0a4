"""Some of a task's problems, as a task of their own: subset:FILE, with a file of tools/select_data.py.

A line says which problem it is: its task, the seed and the index there. The problem is asked of that task
again, so that it keeps all that the task knows of it, and the task's own grader above all. A prompt and an
answer alone, as in jsonl:FILE, cannot say how an answer of reasoning-gym is scored.
"""

import copy
from dataclasses import replace

from plainrl import files
from plainrl.sources import ListTask
from plainrl.tasks import Grade, Problem, load_task, say, split_size

HELD_OUT = ("dev", "test")  # splits that are the task's own
FIELDS = {"task": str, "task_split": str, "index": int, "seed": int, "prompt": str, "answer": str}
PLACE = ("task", "task_split", "index", "seed")


class SubsetTask:
    """Train is the file's problems. Dev and test, and how an answer is graded, are those of the task that the
    problems are from. So scores have that task's name, and compare; a run's folder has the file's.

    `places` says of each training problem, in the file's order, where it is from: {"task": what --task was,
    "task_split": "train", "index": ..., "seed": ...}. Raises ValueError with the file and the line, also
    where the task now has another problem in that place.
    """

    def __init__(self, path: str):
        self.flag, self.folder_name = f"--task subset:{path}", files.name_of(path)
        rows = read_places(path, self.flag)
        self.places = [{name: row[name] for name in PLACE} for row in rows.values()]
        self.spec = self.places[0]["task"]
        try:
            self.base = load_task(self.spec)
        except ValueError as error:
            raise ValueError(f"{next(iter(rows))}: its task cannot be used: {error}") from None
        self.name = self.base.name
        again = f"of {len(rows):,} problems are asked again"
        asked = files.with_progress(rows.items(), self.folder_name, again)
        problems = [problem_of(self.base, row, where) for where, row in asked]
        self.train = ListTask(self.folder_name, {"train": problems}, self.flag)
        self.grader = getattr(self.base, "grader", type(self.base).__name__)
        self.world = getattr(self.base, "world", "tiny")
        if hasattr(self.base, "same_answer"):
            self.same_answer = self.base.same_answer
        say(f"{self.folder_name}: {len(problems):,} training problems of {self.spec}, and its dev and test")

    def size(self, split: str) -> int | None:
        """None for dev and test of a task that makes them without end."""
        return split_size(self.base if split in HELD_OUT else self.train, split)

    def problem(self, split: str, index: int, seed: int) -> Problem:
        """Training: each epoch is another permutation, by the seed; `index` is then the place in the file."""
        return (self.base if split in HELD_OUT else self.train).problem(split, index, seed)

    def grade(self, completion: str, problem: Problem) -> Grade:
        return self.base.grade(completion, problem)

    def at_horizon(self, horizon: int) -> "SubsetTask":
        """The file's problems of this horizon, and the task's own dev and test of it."""
        if not hasattr(self.base, "at_horizon"):
            raise ValueError(f"{self.flag}: the problems of its task {self.spec} have no horizon")
        problems = self.train.problems["train"]
        chosen = [i for i, problem in enumerate(problems) if problem.horizon == horizon]
        if not chosen:
            there = ", ".join(map(str, sorted({problem.horizon for problem in problems})))
            raise ValueError(f"{self.flag}: has no problem of horizon {horizon}, only of {there}")
        other = copy.copy(self)
        other.base = self.base.at_horizon(horizon)
        other.train = replace(self.train, problems={"train": [problems[i] for i in chosen]})
        other.places = [self.places[i] for i in chosen]
        return other


def read_places(path: str, flag: str) -> dict[str, dict]:
    """The objects of the file by where they stand, "FLAG, line 3". Raises ValueError with place and field."""
    rows = {}
    with files.open_entries(path, flag, {"prompt": "", "answer": ""}, None) as (unit, entries):
        for line, row in entries:
            if line is not None:  # else the header of a table
                rows[f"{flag}, {unit} {line}"] = check_place(row, f"{flag}, {unit} {line}")
    if not rows:
        raise ValueError(f"{flag}: holds no problem; give a file of tools/select_data.py")
    first = next(iter(rows.values()))["task"]
    for where, row in rows.items():
        if row["task"] != first:
            raise ValueError(
                f"{where}: is of {row['task']}, the lines before of {first}; dev and test can be "
                "those of one alone: keep one in the file"
            )
    return rows


def check_place(row: dict | str, where: str) -> dict:
    """The row, if it says where its problem is from. Raises ValueError."""
    if isinstance(row, str):
        raise ValueError(f"{where}: {row}")
    for name, kind in FIELDS.items():
        if name not in row:
            way_out = "give a file that tools/select_data.py wrote without --traces"
            raise ValueError(f"{where}: has no field {name!r}; {way_out}")
        if type(row[name]) is not kind or (kind is int and row[name] < 0):
            expected = "a text" if kind is str else "a whole number from 0"
            raise ValueError(f"{where}: field {name!r} must be {expected}")
    if row["task_split"] != "train":
        found = files.short(row["task_split"])
        raise ValueError(f"{where}: field 'task_split' is {found}; only problems of train may be trained on")
    if row["task"].startswith("subset:"):
        raise ValueError(f"{where}: field 'task' is a subset; name the task that its problems are from")
    return row


def problem_of(task, row: dict, where: str) -> Problem:
    """The problem of a line, asked of its task. Raises ValueError where it is another one by now."""
    try:
        problem = task.problem("train", row["index"], row["seed"])
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    for name in ("prompt", "answer"):
        if getattr(problem, name) != row[name]:
            raise ValueError(
                f"{where}: {row['task']} has another {name} at index {row['index']} of seed {row['seed']}; "
                "the task has changed since the file was written (its own file, its package, or this line): "
                "undo that, or select again"
            )
    return problem
