r"""What a task is: problems and a grader. `load_task` makes the one that a --task flag names.

    chain                        the embedded world: word problems, each using the answer before it (default)
    chain?horizon=5&family=mixed its settings, see `plainrl.world.ChainTask`
    chain?reward=prefix          a wrong answer earns something where the solution begins right
    countdown?numbers=4          reach a target from a few numbers, see `plainrl.countdown.CountdownTask`
    orthogonal?n=2-4             are two vectors orthogonal? For models that begin with random weights, see
                                 `plainrl.orthogonal.OrthogonalTask`
    esolang?language=bf&kind=sort
                                 write a program in Brainf**k or Befunge, see `plainrl.esolang.EsolangTask`
    box?size=20&points=2         where is the rectangle in a grid of characters? See `plainrl.box.BoxTask`
    geo?tau=200                  where is a capital? See `plainrl.geo.GeoTask`
    verdicts?rules=new           is an answer the same as the reference? See `plainrl.verdicts.VerdictTask`
    jsonl:PATH                   your own file: JSON lines, a JSON array, CSV or Parquet, with the fields
                                 prompt and answer; optional are hint, solution, horizon, split
    jsonl:PATH?prompt=FIELD&answer=FIELD&hint=FIELD&solution=FIELD&split=FIELD
                                 fields of other names, see `plainrl.files`; those of GSM8K, MATH, OpenR1,
                                 DAPO-17k and of chats are found without
    jsonl:PATH?level=3-5         only those whose field level is within that ("Level 3" of MATH is 3)
    gym:NAME?key=value&...       any reasoning-gym task with its settings and its own scorer
    gym:NAME*2,NAME?NAME.key=value
                                 several of them, by weight; a setting says whose it is
    gsm8k                        openai/gsm8k through the `datasets` library (needs a network)
    gsm8k?horizon=2-4, jsonl:PATH?horizon=3, gym:NAME?key=value&horizon=3
                                 their problems chained by h1's rule, see `plainrl.sources.ComposedTask`;
                                 tools/compose.py writes them to a file
    math500, aime24, aime25, amc23, olympiadbench,
    gsm_symbolic, gsm_symbolic_p1, gsm_symbolic_p2, mmlu_pro_math
                                 benchmarks, in the same way, for eval.py: they have the split "test" alone
    subset:FILE                  problems that tools/select_data.py chose, with their own task's grader, dev
                                 and test, see `plainrl.subset`

A task is any object with a `name` and two methods:

    problem(split, index, seed) -> Problem    a pure function; the splits train, dev and test share no problem
    grade(completion, problem)  -> Grade      correct when the score is 1

Where problems have a horizon, h1_curriculum.py asks for the same problems at another one:

    at_horizon(horizon)         -> task

Where many cost less than one by one, a task may grade many; no limit of time holds for it:

    grade_many(completions, problems) -> Grades

Answers are asked for in \boxed{}; the last box counts. How they are compared is in plainrl/grading.py.
countdown is another kind: there the way is the answer. orthogonal asks for Y or N, verdicts for Yes or No in
words, esolang for a program, box and geo for what stands in <answer>.
"""

import ast
import hashlib
import random
import re
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qsl

FILE_FIELDS = ("prompt", "answer", "hint", "solution", "split")  # of a file, with other names by --task
FILE_SETTINGS = (*FILE_FIELDS, "horizon", "level")

ENDLESS = 1000  # problems of a task that makes them without end, where nobody says how many
BOXED_INSTRUCTION = "Put the final answer in \\boxed{}."


@dataclass(frozen=True)
class Problem:
    """One problem with everything that is known about it.

    template, program and parts say how it becomes a step of a chain, see `plainrl.chains.compose`. Without a
    program, a chain keeps the number and the answer. The parts are what the program computes on the way and
    counts something, so they stay whole and above 0.
    """

    prompt: str
    answer: str
    hint: str | None = None  # guidance; never contains the answer
    solution: str | None = None  # worked, ends in \boxed{answer}
    horizon: int = 1  # explicit number of dependent steps
    source: str = ""
    template: str | None = None  # the prompt with {x} for one of its numbers
    program: str | None = None  # the answer as arithmetic in x, e.g. "x+5"
    parts: tuple[str, ...] = ()  # more arithmetic in x
    options: tuple[str, ...] = ()  # what an answer is made of or chosen from, where a grader needs it
    index: int | None = field(default=None, compare=False)  # in its split, for logs; None: nobody says


@dataclass(frozen=True)
class Grade:
    """`parsed` is the extracted answer (None: there was none), `why` a short reason that can be counted."""

    correct: bool
    score: float
    parsed: str | None
    why: str


@dataclass(frozen=True)
class NoTask:
    """In place of a task where nothing is sampled: it has a name, and neither problems nor a grader."""

    name: str


def load_task(spec: str):
    """The task that a --task flag names. Raises ValueError with the flag and the way out."""
    # Here, since they import this module.
    from plainrl import box, countdown, esolang, files, geo, gym, orthogonal, sources, subset, verdicts, world

    name, settings = name_and_settings(spec)
    if name == "chain":
        check_settings(spec, settings, "horizon", "family", "style", "reward")
        return world.ChainTask(**settings)
    if name == "countdown":
        check_settings(spec, settings, "numbers", "largest")
        return countdown.CountdownTask(**settings)
    if name == "orthogonal":
        check_settings(spec, settings, "n")
        return orthogonal.OrthogonalTask(**settings)
    if name == "esolang":
        check_settings(spec, settings, "language", "kind", "card")
        return esolang.EsolangTask(**settings)
    if name == "box":
        check_settings(spec, settings, "size", "points", "reward", "form")
        side = {"side": settings.pop("size")} if "size" in settings else {}
        return box.BoxTask(**side, **settings)
    if name == "geo":
        check_settings(spec, settings, "tau")
        return geo.GeoTask(**settings)
    if name == "verdicts":
        check_settings(spec, settings, "rules")
        return verdicts.VerdictTask(**settings)
    if name.startswith("subset:"):
        if settings:
            raise ValueError(f"--task {spec}: a subset has no settings; its file says which task it is of")
        return subset.SubsetTask(name[7:])
    horizon = settings.pop("horizon", None)
    if name.startswith("gym:") and ("," in name or "*" in name):
        task = gym.GymMixture(spec, name[4:], settings)
    elif name.startswith("gym:"):
        task = gym.GymTask(spec, name[4:], {key: _setting(value) for key, value in settings.items()})
    elif name.startswith("jsonl:"):
        check_settings(spec, settings, *FILE_SETTINGS)
        task = files.load_file(name[6:], settings)
    elif name == "gsm8k" or name in sources.BENCHMARKS:
        check_settings(spec, settings, "horizon")
        task = sources.load_gsm8k() if name == "gsm8k" else sources.load_benchmark(name)
    else:
        if Path(name).suffix or "/" in name:
            raise ValueError(f"--task {spec}: unknown; if it is a file, write --task jsonl:{spec}")
        known = ", ".join(sources.BENCHMARKS)
        known = f"jsonl:PATH, gym:NAME?key=value, gsm8k, {known}, subset:FILE"
        known = f"chain, countdown, orthogonal, esolang, box, geo, verdicts, {known}"
        raise ValueError(f"--task {spec}: unknown; use {known}")
    return task if horizon is None else sources.ComposedTask(task, horizon)


def name_and_settings(spec: str) -> tuple[str, dict[str, str]]:
    """What stands before the question mark of a --task flag, and the settings behind it. Raises ValueError.

    >>> name_and_settings("jsonl:my file.csv?answer=final&hint=")
    ('jsonl:my file.csv', {'answer': 'final', 'hint': ''})
    """
    if spec.startswith("jsonl:"):  # a path may have a "?" of its own
        pattern = rf"(jsonl:.*?)(?:\?((?:{'|'.join(FILE_SETTINGS)})=.*))?"
    else:
        pattern = r"([^?]*)\??(.*)"
    name, query = re.fullmatch(pattern, spec, re.S).groups(default="")
    try:
        pairs = parse_qsl(query.replace("+", "%2B"), keep_blank_values=True, strict_parsing=bool(query))
    except ValueError as error:
        raise ValueError(f"--task {spec}: settings are written NAME?key=value&key=value ({error})") from None
    return name, dict(pairs)


def check_settings(spec: str, settings: dict[str, str], *known: str) -> None:
    """Refuse a setting that the task does not have. Raises ValueError."""
    for name in settings:
        if name not in known:
            raise ValueError(f"--task {spec}: unknown setting {name!r}; known are {', '.join(known)}")


def _setting(text: str):
    """A setting's value as the Python literal it looks like, else as the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return {"true": True, "false": False}.get(text, text)


def split_size(task, split: str) -> int | None:
    """How many problems a split has; None where the task makes as many as are asked for. Raises ValueError
    where it has none."""
    return task.size(split) if hasattr(task, "size") else None


def scored(task, split: str, asked: int) -> int:
    """How many problems of a split are scored: as many as are asked for, or all where there are fewer."""
    size = split_size(task, split)
    return asked if size is None else min(asked, size)


def first_problems(task, split: str, asked: int | None, seed: int) -> tuple[int, dict[int, Problem]]:
    """The problems that a tool works on: as many as are asked for, or all, or ENDLESS where there
    is no end. Returns their number, and by index those whose prompt no earlier one has. Raises ValueError."""
    size, by_prompt = split_size(task, split), {}
    count = (asked or ENDLESS) if size is None else min(asked or size, size)
    for index in range(count):
        problem = task.problem(split, index, seed)
        by_prompt.setdefault(problem.prompt, (index, problem))
    return count, dict(by_prompt.values())


def hash_number(text: str) -> int:
    """A number from 0 to 2**64 - 1 that depends on nothing but the text."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big")


def check_split(splits, split: str) -> None:
    """Raises ValueError for a split that is none of these."""
    if split not in splits:
        raise ValueError(f"split {split!r} is not one of {', '.join(splits)}")


def problem_rng(splits, split: str, index: int, seed: int) -> random.Random:
    """What draws a problem: the same random numbers for the same arguments. Raises ValueError as
    `check_split`."""
    check_split(splits, split)
    return random.Random(f"{seed}/{split}/{index}")


def whole_number(task: str, setting: str, value: str | int, least: int, most: int) -> int:
    """The value of a task's setting, text or number. Raises ValueError where it is none within these."""
    text = str(value)
    if not re.fullmatch("[0-9]{1,4}", text) or not least <= int(text) <= most:
        raise ValueError(f"--task {task}: {setting}={text} is not one of {least} to {most}")
    return int(text)


def split_by_hash(text: str, splits: dict[str, range]) -> str:
    """The split that a problem belongs to, whatever seed or index found it; `splits` are per cent."""
    return next(split for split, part in splits.items() if hash_number(text) % 100 in part)


def say(text: str) -> None:
    """A line on the screen about a task."""
    from plainrl import screen  # here, because it takes torch along, which the graders' processes do without

    screen.say(text)


def optional_package(module: str, what: str, package: str | None = None):
    """Import an optional package or say how to get it."""
    try:
        return __import__(module)
    except ImportError:
        package = package or module
        raise ValueError(
            f"{what}: needs a package that is not installed; run: pip install {package}"
        ) from None
