"""Problems from elsewhere: your own file, datasets of the hub, reasoning-gym, and chains of these."""

import copy
import itertools
import json
import math
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import NamedTuple

from plainrl.chains import PLACEHOLDERS, calculator_program, chainable, choose_chain, horizons, write_chain
from plainrl.grading import (
    MAX_ANSWER_CHARS,
    ask_worker,
    grade_box,
    grade_boxed,
    is_readable,
    last_boxed,
    plain_integer,
    same_answer,
)
from plainrl.tasks import BOXED_INSTRUCTION, Grade, Problem
from plainrl.world import SPLITS, split_of

# --- problems in memory -----------------------------------------------------------------------------------


@dataclass
class ListTask:
    """A task over problems in memory, by split; answers are graded by mathematical equivalence."""

    name: str
    problems: dict[str, list[Problem]]
    grader = "math-verify"

    def members(self, split: str) -> list[Problem]:
        """The problems of a split; "all" is every split, one after the other."""
        if split == "all":
            return [problem for members in self.problems.values() for problem in members]
        if split not in self.problems:
            raise ValueError(f"--task {self.name}: has no split {split!r}; it has {', '.join(self.problems)}")
        if not self.problems[split]:
            number = sum(map(len, self.problems.values()))
            raise ValueError(
                f"--task {self.name}: its {number} problems leave nothing for {split}; "
                "give at least 10 different ones, or measure them with eval.py --split all"
            )
        return self.problems[split]

    def size(self, split: str) -> int:
        return len(self.members(split))

    def problem(self, split: str, index: int, seed: int) -> Problem:
        """Training: each epoch is another permutation, by the seed. Dev and test keep their order."""
        problems = self.members(split)
        epoch, position = divmod(index, len(problems))
        if split == "train":
            position = random.Random(f"{seed}/{epoch}").sample(range(len(problems)), len(problems))[position]
        return problems[position]

    def grade(self, completion: str, problem: Problem) -> Grade:
        return grade_boxed(completion, problem)

    def same_answer(self, first: str, second: str) -> bool:
        return same_answer(first, second)

    def at_horizon(self, horizon: int) -> "ListTask":
        """Those of its problems that have this horizon: of a file that tools/compose.py wrote."""
        chosen = {
            split: [problem for problem in members if problem.horizon == horizon]
            for split, members in self.problems.items()
        }
        if not any(chosen.values()):
            found = sorted({problem.horizon for problem in self.members("all")})
            raise ValueError(
                f"--task {self.name}: has no problem of horizon {horizon}, "
                f"only of {', '.join(map(str, found))}; horizon=1 in --task chains them"
            )
        return replace(self, problems=chosen)


class ChoiceTask(ListTask):
    """Multiple choice: the box holds the letter of an option."""

    grader = "letter"

    def grade(self, completion: str, problem: Problem) -> Grade:
        parsed = last_boxed(completion)
        # B, (B), $B$, \text{B}, \textbf{(B)}, "B. 4"
        wrapped_letter = r"\$?(?:\\(?:text|mathrm|mathbf|textbf)\{)?[\s({]*([A-J])(?:[.:)}$]|$)"
        letter = re.match(wrapped_letter, parsed or "")
        if not letter:
            return Grade(False, 0.0, None, "no_box" if parsed is None else "no_letter")
        correct = letter[1] == problem.answer
        return Grade(correct, float(correct), letter[1], "correct" if correct else "wrong")

    def same_answer(self, first: str, second: str) -> bool:
        return first == second


# --- your own file ----------------------------------------------------------------------------------------


def load_jsonl(path: str, hint: str = "hint") -> ListTask:
    """One problem a line; `hint` names the field that holds the hint.

    Lines may name their split, else `split_list` deals them out. Raises ValueError with the file, line and
    field.
    """
    problems, named = [], {"train": [], "dev": [], "test": []}
    try:
        with open(path, encoding="utf-8-sig") as file:  # with or without a byte order mark
            lines = list(file)
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--task jsonl:{path}: cannot read the file ({error})") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        row = _read_row(line, where, hint)
        if row.get("split", "train") not in named:
            raise ValueError(f"{where}: field 'split' must be train, dev or test")
        if ("split" in row) != any(named.values()) and problems:
            what = "new here" if "split" in row else "missing"
            raise ValueError(f"{where}: field 'split' is {what}; give it in every line or in none")
        prompt = row["prompt"] if "\\boxed" in row["prompt"] else f"{row['prompt']} {BOXED_INSTRUCTION}"
        answer, horizon = row["answer"].strip(), row.get("horizon", 1)
        problems.append(Problem(prompt, answer, row.get(hint), row.get("solution"), horizon, source=path))
        if "split" in row:
            named[row["split"]].append(problems[-1])
    if hint != "hint" and not any(problem.hint for problem in problems):
        raise ValueError(f"--task jsonl:{path}?hint={hint}: no line has a field {hint!r}")
    return ListTask("jsonl", named if any(named.values()) else split_list(problems, path))


def _read_row(line: str, where: str, hint: str) -> dict:
    """A line of the file as an object whose fields are checked. An answer that is a number becomes a text."""
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where}: not valid JSON ({error})") from None
    if not isinstance(row, dict):
        raise ValueError(f"{where}: expected an object with the fields prompt and answer")
    for name in ("prompt", "answer"):
        if name not in row:
            raise ValueError(f"{where}: field {name!r} is missing")
    if type(row["answer"]) is int:  # True is an int to isinstance
        row["answer"] = str(row["answer"])
    for name in ("prompt", "answer", hint, "solution"):
        if name in row and (not isinstance(row[name], str) or not row[name].strip()):
            example = ', e.g. "0.5"' if name == "answer" else ""
            raise ValueError(f"{where}: field {name!r} must be a non-empty string{example}")
    check_answer(row["answer"], where)
    horizon = row.get("horizon", 1)
    if type(horizon) is not int or horizon < 1:
        raise ValueError(f"{where}: field 'horizon' must be a whole number from 1")
    return row


def check_answer(answer: str, where: str) -> None:
    """Raise when a gold answer cannot be read: better at load than as a silent reward of 0 for ever."""
    if not is_readable(answer):
        what = f"{where}: field 'answer' ({answer[:60]!r})"
        raise ValueError(f"{what} is no expression that math-verify can read; write the bare answer")
    if len(answer) > MAX_ANSWER_CHARS:
        raise ValueError(f"{where}: field 'answer' is longer than {MAX_ANSWER_CHARS} characters")


def split_list(problems: list[Problem], where: str) -> dict[str, list[Problem]]:
    """Every tenth problem of a horizon is dev, the one after it test, the others train.

    Identical prompts stay on one side.
    """
    if not problems:
        raise ValueError(f"{where}: holds no problem")
    splits = {"train": [], "dev": [], "test": []}
    side, counts = {}, Counter()
    for problem in problems:
        if problem.prompt not in side:
            side[problem.prompt] = {8: "dev", 9: "test"}.get(counts[problem.horizon] % 10, "train")
            counts[problem.horizon] += 1
        splits[side[problem.prompt]].append(problem)
    return splits


# --- datasets of the hub ----------------------------------------------------------------------------------


def load_rows(task: str, path: str, config: str | None, split: str, rows: int, columns: str) -> list[dict]:
    """One split of a dataset, after checking that it still is what its card says: number of rows, columns."""
    datasets = _optional("datasets", f"--task {task}")
    try:
        data = datasets.load_dataset(path, config, split=split)
    except (OSError, ValueError, RuntimeError) as error:
        message = f"--task {task}: cannot be loaded; it needs a network or a local cache of {path}"
        raise ValueError(f"{message}. Offline, use --task chain ({error})") from None
    missing = set(columns.split()) - set(data.column_names)
    if len(data) != rows or missing:
        what = f"has {len(data)} rows in {split} instead of {rows}"
        if missing:
            what = f"lacks the columns {sorted(missing)}"
        way_out = "use your own copy as --task jsonl:PATH"
        raise ValueError(f"--task {task}: {path} has changed: it {what}; {way_out}")
    return list(data)


def gsm8k_problem(question: str, answer: str, where: str) -> Problem:
    """A row of openai/gsm8k: its worked answer has calculator notes, <<48/2=24>>, and ends in '#### 42'."""
    worked, marker, final = answer.rpartition("####")
    if not marker or plain_integer(final) is None:
        raise ValueError(f"{where}: field 'answer' does not end in '#### <integer>'")
    prompt, final = f"{question.strip()} {BOXED_INSTRUCTION}", str(plain_integer(final))
    solution = re.sub(r"<<[^>]*>>", "", worked).strip()
    template, program, parts = calculator_program(prompt, worked, final) or (None, None, ())
    return Problem(
        prompt,
        final,
        solution=f"{solution}\n\\boxed{{{final}}}",
        source="gsm8k",
        template=template,
        program=program,
        parts=parts,
    )


def load_gsm8k() -> ListTask:
    """7,473 training and 1,319 test problems (the published card); the last 500 training problems are dev."""

    def problems(split: str, count: int) -> list[Problem]:
        rows = load_rows("gsm8k", "openai/gsm8k", "main", split, count, "question answer")
        return [
            gsm8k_problem(row["question"], row["answer"], f"gsm8k {split}[{i}]") for i, row in enumerate(rows)
        ]

    train = problems("train", 7473)
    return ListTask("gsm8k", {"train": train[:-500], "dev": train[-500:], "test": problems("test", 1319)})


class Benchmark(NamedTuple):
    """A test set of the hub: what its published card says, and how a row becomes a problem."""

    path: str
    config: str | None
    split: str
    rows: int
    columns: str
    make: Callable[[dict], Problem | None]  # None: the row is not part of it


def _asked(question: str, answer: str) -> Problem:
    return Problem(f"{question.strip()} {BOXED_INSTRUCTION}", answer)


def _whole_number(answer: object) -> str:
    """'025', '70', '336^\\circ' and 27.0 as a plain integer."""
    value = float(str(answer).replace("^\\circ", ""))
    if value != int(value):
        raise ValueError(f"{answer!r} is not a whole number")
    return str(int(value))


def _math500(row: dict) -> Problem:
    return _asked(row["problem"], row["answer"])


def _amc(row: dict) -> Problem:
    return _asked(row["question"], _whole_number(row["answer"]))


def _aime(row: dict) -> Problem:
    return _asked(row["problem"], _whole_number(row["answer"]))


def _olympiad(row: dict) -> Problem:
    answers = ", ".join(row["final_answer"]).strip()
    return _asked(row["question"], re.sub(r"^\$([^$]*)\$$", r"\1", answers))


def _gsm_symbolic(row: dict) -> Problem:
    return gsm8k_problem(row["question"], row["answer"], "row")


def _mmlu_pro_math(row: dict) -> Problem | None:
    if row["category"] != "math":
        return None
    options = "\n".join(f"{letter}. {option.strip()}" for letter, option in zip("ABCDEFGHIJ", row["options"]))
    instruction = "Put the letter of the right option in \\boxed{}."
    return Problem(f"{row['question'].strip()}\n{options}\n{instruction}", row["answer"])


BENCHMARKS = {
    "math500": Benchmark("HuggingFaceH4/MATH-500", None, "test", 500, "problem answer", _math500),
    "aime24": Benchmark("HuggingFaceH4/aime_2024", None, "train", 30, "problem answer", _aime),
    "aime25": Benchmark("math-ai/aime25", None, "test", 30, "problem answer", _aime),
    "amc23": Benchmark("math-ai/amc23", None, "test", 40, "question answer", _amc),
    "olympiadbench": Benchmark(
        "Hothan/OlympiadBench", "OE_TO_maths_en_COMP", "train", 674, "question final_answer", _olympiad
    ),
    "gsm_symbolic": Benchmark("apple/GSM-Symbolic", "main", "test", 5000, "question answer", _gsm_symbolic),
    "gsm_symbolic_p1": Benchmark("apple/GSM-Symbolic", "p1", "test", 5000, "question answer", _gsm_symbolic),
    "gsm_symbolic_p2": Benchmark("apple/GSM-Symbolic", "p2", "test", 2500, "question answer", _gsm_symbolic),
    "mmlu_pro_math": Benchmark(
        "TIGER-Lab/MMLU-Pro", None, "test", 12032, "question options answer category", _mmlu_pro_math
    ),
}


def load_benchmark(name: str) -> ListTask:
    """A benchmark of the hub: all of its problems are test.

    Gold answers that math-verify cannot read are counted on the screen.
    """
    path, config, split, number, columns, make = BENCHMARKS[name]
    problems = []
    for i, row in enumerate(load_rows(name, path, config, split, number, columns)):
        try:
            problem = make(row)
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(
                f"--task {name}: {path} has changed: row {i} of {split} cannot be read ({error})"
            ) from None
        if problem:
            problems.append(problem)
    if name == "mmlu_pro_math":
        return ChoiceTask(name, {"test": problems})
    unread = sum(not is_readable(problem.answer) for problem in problems)
    if unread:
        print(
            f"{name}: {unread} of {len(problems)} gold answers are no expression to math-verify; "
            "only the same text is right there"
        )
    return ListTask(name, {"test": problems})


# --- reasoning-gym ----------------------------------------------------------------------------------------


class GymTask:
    """A reasoning-gym task with its own scorer.

    Splits are decided by the question's text, so they are disjoint. Dev and test never ask a question
    twice. A few tasks must prepare all their questions at once and need a smaller pool, e.g.
    gym:word_ladder?size=10000.
    """

    def __init__(self, spec: str, dataset_name: str, settings: dict):
        self.gym = _optional("reasoning_gym", f"--task gym:{dataset_name}", "reasoning-gym")
        self.name, self.spec = f"gym-{dataset_name}", spec
        self.dataset_name, self.settings = dataset_name, settings
        self.grader = f"reasoning-gym {version('reasoning-gym')}"
        self.datasets = {}  # by seed
        self.held_out = {}  # by (split, seed): the positions found so far, and an iterator over more
        self.dataset(0)

    def dataset(self, seed: int):
        if seed not in self.datasets:
            try:
                settings = {"size": 1_000_000, **self.settings}
                self.datasets[seed] = self.gym.create_dataset(self.dataset_name, seed=seed, **settings)
            except (ValueError, TypeError, AssertionError) as error:
                raise ValueError(f"--task {self.spec}: reasoning-gym refuses it ({error})") from None
        return self.datasets[seed]

    def problem(self, split: str, index: int, seed: int) -> Problem:
        """A question of the split. `source` says which it is, so that any process can score it."""
        if split not in SPLITS:
            raise ValueError(f"--task {self.spec}: has no split {split!r}; it has train, dev, test")
        if split == "train":
            position = next(self.draw(split, seed, f"{seed}/{split}/{index}"), None)
        else:
            if (split, seed) not in self.held_out:
                self.held_out[split, seed] = [], self.draw(split, seed, f"{seed}/{split}")
            found, more = self.held_out[split, seed]
            found += itertools.islice(more, max(0, index + 1 - len(found)))
            position = found[index] if index < len(found) else None
        if position is None:
            raise ValueError(
                f"--task {self.spec}: has too few different questions for {index + 1} in {split}; "
                "ask for fewer problems, or give settings with more questions"
            )
        entry = self.dataset(seed)[position]
        return Problem(self.prompt(entry), str(entry["answer"]), source=f"{self.spec}#{seed}#{position}")

    def draw(self, split: str, seed: int, stream: str) -> Iterator[int]:
        """Positions of the split's questions in a random order, none asked twice.

        Ends after 1,000 draws without a new one. `stream` seeds the order.
        """
        dataset, rng, asked, in_vain = self.dataset(seed), random.Random(stream), set(), 0
        while in_vain < 1000:
            position = rng.randrange(len(dataset))
            question = dataset[position]["question"]
            member = split_of(question)
            in_vain += 1
            if question not in asked and (member == split or (split == "train" and member == "sft")):
                asked.add(question)
                in_vain = 0
                yield position

    def prompt(self, entry: dict) -> str:
        return f"{entry['question'].strip()}\n{BOXED_INSTRUCTION}"

    def grade(self, completion: str, problem: Problem) -> Grade:
        def score(parsed: str) -> tuple[float, str]:
            seed, position = map(int, problem.source.rsplit("#", 2)[1:])
            request = {"spec": self.spec, "seed": seed, "position": position, "prompt": problem.prompt}
            return ask_worker({"kind": "gym", "answer": parsed, **request})

        return grade_box(completion, score)

    def same_answer(self, first: str, second: str) -> bool:
        """Numbers by equivalence; words (names, moves) only where they are written the same way."""
        return bool(re.search("[0-9]", first) and re.search("[0-9]", second)) and same_answer(first, second)

    def score(self, seed: int, position: int, prompt: str, answer: str) -> float:
        """The scorer's verdict, in the worker. Raises where the question comes out otherwise there."""
        entry = self.dataset(seed)[position]
        if self.prompt(entry) != prompt:
            raise ValueError(
                "this reasoning-gym task differs from process to process; "
                "set PYTHONHASHSEED=0 and start again"
            )
        return float(self.dataset(seed).score_answer(answer, entry))


# --- their problems, chained ------------------------------------------------------------------------------


class ComposedTask:
    """The problems of another task, chained by h1's rule in style "h1", all answers whole numbers from 2.

    Where problems have a program (GSM8K), those alone are chained; else those are for which
    `plainrl.chains.chainable` finds a number, by an offset. The others are left out and counted on the
    screen. Every problem of a finite split starts one chain an epoch; further steps are drawn from the same
    split.
    """

    grader = "math-verify"
    max_horizon = len(PLACEHOLDERS) + 1

    def __init__(self, base: ListTask | GymTask, horizon: str):
        self.base, self.name = base, base.name
        self.low, self.high = horizons(horizon, base.name, self.max_horizon)
        self.pool = None  # the problems that can be chained, where they are finite
        if isinstance(base, ListTask):
            by_program = any(problem.program for problem in base.members("all"))
            pools = {}
            for split, members in base.problems.items():
                steps = (chainable(problem) for problem in members if problem.program or not by_program)
                pools[split] = [step for step in steps if step]
            self.pool = replace(base, problems=pools)
            self.size = lambda split: len(self.members(split))  # only a finite task has a size
            kept, whole = len(self.pool.members("all")), len(base.members("all"))
            how = "their programs" if by_program else "an offset"
            print(f"{self.name}: {kept} of {whole} problems can be chained, by {how}")

    def members(self, split: str) -> list[Problem]:
        """What the first steps of a split's chains are."""
        if not self.base.members(split) or not self.pool.problems.get(split, split == "all"):
            raise ValueError(
                f"--task {self.name}: none of its problems in {split} can be chained; "
                "they need a whole number, 2 or more, in question and answer"
            )
        return self.pool.members(split)

    def steps(self, split: str, index: int, seed: int) -> Iterator[tuple[Problem, list[Problem]]]:
        """The first step of a chain, and problems to draw the others from; again, where those do not do."""
        if self.pool:
            members = self.members(split)
            first = self.pool.problem(split, index, seed)
            yield from [(first, [step for step in members if step.prompt != first.prompt])] * 20
        else:
            width, found = 8 + 4 * self.high, []  # few problems of a gym task are in two chains
            for position in range(index * width, (index + 20) * width):
                step = chainable(self.base.problem(split, position, seed))
                found += [step] if step else []
                if (position + 1) % width == 0 and found:
                    yield found[0], found[1:]

    def problem(self, split: str, index: int, seed: int) -> Problem:
        rng = random.Random(f"{seed}/{split}/{index}/chain")
        horizon = rng.randint(self.low, self.high)
        for first, others in self.steps(split, index, seed):
            if chain := choose_chain(others, horizon, rng, math.inf, first):
                return write_chain(chain, "h1")
        raise ValueError(
            f"--task {self.name}: cannot chain {horizon} of its problems in {split}; "
            "it needs more with whole numbers in question and answer, or a shorter horizon"
        )

    def grade(self, completion: str, problem: Problem) -> Grade:
        return grade_boxed(completion, problem)

    def same_answer(self, first: str, second: str) -> bool:
        return same_answer(first, second)

    def at_horizon(self, horizon: int) -> "ComposedTask":
        other = copy.copy(self)
        other.low, other.high = horizons(str(horizon), self.name, self.max_horizon)
        return other


def _optional(module: str, what: str, package: str | None = None):
    """Import an optional package or say how to get it."""
    try:
        return __import__(module)
    except ImportError:
        package = package or module
        raise ValueError(
            f"{what}: needs a package that is not installed; run: pip install {package}"
        ) from None
