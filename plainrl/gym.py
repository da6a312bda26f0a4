"""Any task of reasoning-gym, with its own scorer, and mixtures of them. docs/gym.md has the table of all."""

import contextlib
import copy
import io
import itertools
import json
import os
import random
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from zlib import crc32

from plainrl import workers
from plainrl.answers import last_boxed
from plainrl.grading import grade_box, same_answer
from plainrl.plain_answers import evaluates, is_plain
from plainrl.tasks import BOXED_INSTRUCTION, Grade, Problem, load_task, optional_package, say
from plainrl.workers import ask_worker
from plainrl.world import SPLITS, split_of

SIZE = 1_000_000  # questions of a task; they are made one by one, when they are asked
SIZES = {"acre": 5_000, "word_ladder": 20_000}  # acre makes all at once, word_ladder refuses more
HASH_DEPENDENT = (  # they walk through sets of texts, whose order differs from process to process
    "codeio",
    "intermediate_integration",
    "isomorphic_strings",
    "knight_swap",
    "polynomial_multiplication",
    "ransom_note",
    "word_ladder",
)
RUNS_PROGRAMS = ("codeio",)  # its questions are what programs of its data set return
LOAD_SECONDS = 60.0  # wall-clock limit for preparing a task
QUESTION_SECONDS = 60.0  # and for making one question of it

CONSTANTS = ("0", "1", "2", "-1", "x", "A", "True", "False", "yes", "no", "None", "[]", "{}")
PROBED_QUESTIONS = 20
PROBE_SECONDS = 1.0  # at most, for making the questions that are probed, and again for scoring them
WORTH_SAYING = 0.05  # mean score of a constant answer
SLOW_SECONDS = 60.0  # for 100 dev problems

ANY_ANSWER = "(any valid answer)"
EXAMPLES = ("possible_answer", "example_answer", "example_correct_answer")  # where a task has no one answer
KEPT = 64  # questions that are kept, since a group of completions is scored on the same one
MAX_WEIGHT = 100  # of a member of a mixture
MAX_NAME = 60  # letters of what a mixture is called in folders
MAX_WORKERS = 16  # grading workers that a mixture keeps; each holds about 120 MB

_said: set[str] = set()


class GymTask:
    """A reasoning-gym task with its own scorer.

    Splits are decided by the question's text, so they are disjoint. Dev and test never ask a question
    twice. The first problem that is asked for checks the task, see `check`.
    """

    is_locked_away = False  # in a grading worker, which has given up its rights

    def __init__(self, spec: str, dataset_name: str, settings: dict):
        self.gym = optional_package("reasoning_gym", f"--task gym:{dataset_name}", "reasoning-gym")
        self.name, self.spec = f"gym-{dataset_name}", spec
        self.dataset_name, self.settings = dataset_name, settings
        self.grader = f"reasoning-gym {version('reasoning-gym')}"
        self.datasets = {}  # by seed
        self.entries = {}  # by (seed, position): the last questions made
        self.held_out = {}  # by (split, seed): the problems found so far, and an iterator over more
        self.checked = False
        self.last_error = ""  # of reasoning-gym, at a question that it could not make
        if dataset_name == "composite" and "datasets" not in settings:
            raise ValueError(
                f"--task {spec}: composite mixes tasks that a flag cannot name to it; "
                "write the tasks themselves, e.g. gym:leg_counting*2,chain_sum"
            )
        self.dataset(0)

    def dataset(self, seed: int):
        if seed not in self.datasets:
            self.datasets[seed] = self.new_dataset(seed)
        return self.datasets[seed]

    def new_dataset(self, seed: int):
        settings = {"size": SIZES.get(self.dataset_name, SIZE), **self.settings}
        try:
            with time_limit(LOAD_SECONDS), fixed_chance(str(seed)):
                return self.gym.create_dataset(self.dataset_name, seed=seed, **settings)
        except TooSlow:
            raise ValueError(
                f"--task {self.spec}: reasoning-gym is not ready after {LOAD_SECONDS:.0f} s; it may prepare "
                f"all {settings['size']:,} questions at once: give it fewer, e.g. size=10000"
            ) from None
        except Exception as error:  # its tasks check their settings in many ways
            raise ValueError(f"--task {self.spec}: reasoning-gym refuses it ({error})") from None

    def entry(self, seed: int, position: int) -> dict | None:
        """reasoning-gym's question at a position, made once. None where it makes none that has an answer."""
        if (seed, position) not in self.entries:
            if len(self.entries) == KEPT:
                del self.entries[next(iter(self.entries))]  # the oldest
            self.entries[seed, position] = self.new_entry(self.dataset(seed), seed, position)
        return self.entries[seed, position]

    def new_entry(self, dataset, seed: int, position: int) -> dict | None:
        if self.dataset_name in RUNS_PROGRAMS and not self.is_locked_away:
            return self.entry_of_worker(seed, position)
        size = dataset.size
        try:
            with time_limit(QUESTION_SECONDS), fixed_chance(f"{seed}/{position}"):
                entry = dataset[position]
        except TooSlow:
            raise ValueError(
                f"--task {self.spec}: question {position} is not made after {QUESTION_SECONDS:.0f} s; "
                "give settings with easier questions, or take another task"
            ) from None
        except Exception as error:  # a puzzle without a solution, say: other positions may do
            self.last_error = f"{type(error).__name__}: {error}"
            return None
        finally:
            dataset.size = size  # word_ladder cuts itself short at a failure: questions would depend on order
        if not last_boxed(f"\\boxed{{{shown_answer(entry)}}}"):
            self.last_error = "an answer that no box can hold"  # string_manipulation has empty ones
            return None
        if self.dataset_name in RUNS_PROGRAMS and made_of_nothing(entry):
            self.last_error = "its program fails"
            return None
        return entry

    def entry_of_worker(self, seed: int, position: int) -> dict | None:
        """As `entry`, but made by a grading worker: the programs run where they have no rights."""
        place = {"spec": self.spec, "seed": seed, "position": position}
        made, why = ask_worker({"kind": "gym", "answer": None, **place})
        if why:  # also when the program ended the worker, or did not end itself
            self.last_error = why
            return None
        question, answer = made
        return {"question": question, "answer": answer, "metadata": {}}

    def problem(self, split: str, index: int, seed: int) -> Problem:
        """A question of the split. `source` says which it is, so that any process can score it."""
        if split not in SPLITS:
            raise ValueError(f"--task {self.spec}: has no split {split!r}; it has train, dev, test")
        if not self.checked:
            self.check(seed)
            self.checked = True
        if split == "train":
            problem = next(self.draw(split, seed, f"{seed}/{split}/{index}"), None)
        else:
            if (split, seed) not in self.held_out:
                self.held_out[split, seed] = [], self.draw(split, seed, f"{seed}/{split}")
            found, more = self.held_out[split, seed]
            found += itertools.islice(more, max(0, index + 1 - len(found)))
            problem = found[index] if index < len(found) else None
        if problem is None:
            failed = f" (at some it fails: {self.last_error})" if self.last_error else ""
            raise ValueError(
                f"--task {self.spec}: has too few different questions for {index + 1} in {split}{failed}; "
                "ask for fewer problems, or give settings with more questions"
            )
        return replace(problem, index=index)

    def draw(self, split: str, seed: int, stream: str) -> Iterator[Problem]:
        """Questions of the split in a random order, none asked twice.

        Ends after 1,000 draws without a new one. `stream` seeds the order.
        """
        size, rng, asked, in_vain = len(self.dataset(seed)), random.Random(stream), set(), 0
        while in_vain < 1000:
            position = rng.randrange(size)
            entry = self.entry(seed, position)
            in_vain += 1
            if entry is None or entry["question"] in asked:
                continue
            member = split_of(entry["question"])
            if member == split or (split == "train" and member == "sft"):
                asked.add(entry["question"])
                in_vain = 0
                source = f"{self.spec}#{seed}#{position}"
                solution = worked_solution(entry)
                yield Problem(self.prompt(entry), shown_answer(entry), solution=solution, source=source)

    # --- is the task fit for training? ----------------------------------------------------------------------

    def check(self, seed: int) -> None:
        """Refuse a task whose questions differ from time to time, and say what its scorer pays for nothing.

        Raises ValueError. What PYTHONHASHSEED changes is not seen within one process: the tasks known for it
        are listed, and `score` notices any other.
        """
        if self.dataset_name in HASH_DEPENDENT and os.environ.get("PYTHONHASHSEED", "random") == "random":
            raise ValueError(
                f"--task {self.spec}: asks other questions in every process; "
                "write PYTHONHASHSEED=0 before the command, e.g. PYTHONHASHSEED=0 python grpo.py ..."
            )
        if self.dataset_name in RUNS_PROGRAMS:
            self.say(
                "its questions are what programs of its data set return; "
                "grading workers run these, see docs/gym.md"
            )
        rng, size = random.Random(f"{seed}/check"), len(self.dataset(seed))
        start, cpu, entries = time.monotonic(), time.process_time(), {}
        for _ in range(PROBED_QUESTIONS):
            position = rng.randrange(size)
            entries[position] = self.entry(seed, position)
            if len(entries) > 1 and time.monotonic() - start > PROBE_SECONDS:
                break
        seconds = (time.process_time() - cpu) / len(entries)
        again = self.new_dataset(seed)
        for position in list(entries)[2::-1]:  # in another order, from a task that has made no other yet
            if fixed_part(self.new_entry(again, seed, position)) != fixed_part(entries[position]):
                raise ValueError(
                    f"--task {self.spec}: reasoning-gym makes other questions of the same seed each time, so "
                    "nothing could be scored or repeated; take another task, see docs/gym.md"
                )
        made = [entry for entry in entries.values() if entry is not None]
        self.say_what_is_free(seed, made)
        if 2000 * seconds > SLOW_SECONDS:
            self.say(
                f"a question takes {seconds:.2f} s to make, and one in 20 is for dev: "
                f"100 dev problems take about {2000 * seconds:.0f} s"
            )

    def say_what_is_free(self, seed: int, entries: list[dict]) -> None:
        """Say what the best answer earns that is the same for every question, and what right answers miss."""
        free, own, questions = self.constants(seed, entries)
        best = max(free, key=free.get, default=None)
        if best is not None and round(free[best], 2) > WORTH_SAYING:
            advice = "take another task" if free[best] >= 0.9 else "what is learned shows above that"
            best_text = " ".join(best.split())
            self.say(
                f"\\boxed{{{best_text}}} alone earns {free[best]:.2f} on average, whatever is asked "
                f"({questions} questions); {advice}"
            )
        if own < 1:
            self.say(f"its own answers earn {own:.2f} on average ({questions} questions); 1 is out of reach")

    def constants(self, seed: int, entries: list[dict]) -> tuple[dict[str, float], float, int]:
        """What constant answers earn, what the task's own do, and over how many questions these are means.

        There are fewer of them than given where scoring takes long.
        """
        golds = Counter(map(shown_answer, entries))
        frequent = [gold for gold, times in golds.items() if times > 2 and len(gold) <= 40]
        texts = [*CONSTANTS, *(gold for gold in frequent if gold not in (*CONSTANTS, ANY_ANSWER))]
        rows, start = [], time.monotonic()
        with contextlib.suppress(TooSlow), time_limit(PROBE_SECONDS), fixed_chance("probe"):
            for entry in entries:
                answers = [shown_answer(entry), *texts]
                row = [self.plain_score(seed, answer, entry) for answer in answers]
                if time.monotonic() - start > PROBE_SECONDS:
                    break  # a scorer's bare `except` may have swallowed the limit: its verdict counts nothing
                rows.append(row)
        if not rows:
            return {}, 1.0, 0
        own, *free = (sum(column) / len(rows) for column in zip(*rows, strict=True))
        return dict(zip(texts, free, strict=True)), own, len(rows)

    def plain_score(self, seed: int, answer: str, entry: dict) -> float:
        """What the scorer gives an answer of ours, here in this process. 0 where it fails."""
        if answer == ANY_ANSWER:
            return 1.0
        try:
            return float(self.dataset(seed).score_answer(answer, copy.deepcopy(entry)))
        except Exception:  # as in the worker, where it is counted
            return 0.0

    def say(self, text: str) -> None:
        """One line on the screen, once for each task of the process."""
        line = f"{self.spec}: {text}"
        if line not in _said:
            _said.add(line)
            say(line)

    def prompt(self, entry: dict) -> str:
        return f"{entry['question'].strip()}\n{BOXED_INSTRUCTION}"

    def grade(self, completion: str, problem: Problem) -> Grade:
        def score(parsed: str) -> tuple[float, str]:
            seed, position = map(int, problem.source.rsplit("#", 2)[1:])
            request = {"spec": self.spec, "seed": seed, "position": position, "prompt": problem.prompt}
            return ask_worker({"kind": "gym", "answer": parsed, **request})

        return grade_box(completion, score, problem.answer)

    def same_answer(self, first: str, second: str) -> bool:
        """Numbers by equivalence; words (names, moves) only where they are written the same way."""
        return bool(re.search("[0-9]", first) and re.search("[0-9]", second)) and same_answer(first, second)

    def score(self, seed: int, position: int, prompt: str, answer: str) -> float:
        """The scorer's verdict, in the worker. 0 for an answer that it must not evaluate.

        Raises ValueError where the question comes out otherwise there, and what the scorer raises.
        """
        entry, dataset = self.scored_entry(seed, position, prompt), self.dataset(seed)
        if evaluates(dataset, self.dataset_name) and not is_plain(answer, entry, self.dataset_name):
            return 0.0
        return float(dataset.score_answer(answer, copy.deepcopy(entry)))  # a scorer may change the entry

    def scored_entry(self, seed: int, position: int, prompt: str) -> dict:
        """The question that an answer belongs to. Raises ValueError where it comes out otherwise here."""
        entry = self.entry(seed, position)
        if entry is None or self.prompt(entry) != prompt:
            raise ValueError(
                "this reasoning-gym task differs from process to process; "
                "set PYTHONHASHSEED=0 and start again"
            )
        return entry


class GymMixture:
    """Several reasoning-gym tasks in one, by weight: gym:leg_counting*2,chain_sum.

    A problem is one of a member: the member's splits, its scorer, its grading worker. `source` begins with
    the member's own name. Settings name their member: chain_sum.max_terms=3. Raises ValueError for what
    cannot be mixed.
    """

    def __init__(self, spec: str, listed: str, settings: dict[str, str]):
        self.spec, weights = spec, {}  # weights: by the member's name
        for part in listed.split(","):
            name, star, weight = (text.strip() for text in part.partition("*"))
            if not name:
                raise ValueError(f"--task {spec}: a name is missing; write gym:leg_counting*2,chain_sum")
            if name in weights:
                raise ValueError(f"--task {spec}: {name} is there twice; a weight says how often: {name}*2")
            if star and not (weight.isdecimal() and 1 <= int(weight) <= MAX_WEIGHT):
                raise ValueError(
                    f"--task {spec}: the weight of {name} is {weight!r}; "
                    f"it must be a whole number from 1 to {MAX_WEIGHT}"
                )
            weights[name] = int(weight) if star else 1
        if len(weights) == 1:
            raise ValueError(f"--task {spec}: a weight needs a second task beside it, after a comma")
        queries = {name: [] for name in weights}
        for key, value in settings.items():
            member, _, setting = key.rpartition(".")
            if member not in weights:
                whose = f"of a task that is not in it, {member}" if member else "of no task"
                raise ValueError(
                    f"--task {spec}: the setting {key!r} is {whose}; "
                    f"write whose it is, e.g. {next(reversed(weights))}.{setting}={value}"
                )
            if setting == "horizon":
                raise ValueError(f"--task {spec}: write horizon={value}: all tasks are chained, or none")
            # Letters that a setting's text may have, but that mean something between settings.
            queries[member].append(f"{setting}={value.replace('%', '%25').replace('&', '%26')}")
        specs = [f"gym:{name}" + "?" * bool(query) + "&".join(query) for name, query in queries.items()]
        self.members = [load_task(member) for member in specs]
        self.by_spec = dict(zip(specs, self.members))
        self.weights = list(weights.values())
        self.cycle = [i for i, weight in enumerate(self.weights) for _ in range(weight)]
        self.name = name_of_mixture(weights)
        self.grader = self.members[0].grader
        self.checked = False
        # Problems of all members are graded in turn, and a worker that was ended takes a second to start.
        workers.KEPT = max(workers.KEPT, min(len(specs) + 1, MAX_WORKERS))

    def member_of(self, split: str, index: int, seed: int) -> tuple[GymTask, int]:
        """Whose problem has this index, and which of that member's it is.

        Of as many problems in a row as the weights add up to, every member has exactly its share. Their order
        is drawn anew each time: a step that begins with the same member every time would show that one alone.
        """
        turn, place = divmod(index, len(self.cycle))
        order = list(self.cycle)
        random.Random(f"{seed}/{split}/{turn}/mixture").shuffle(order)
        which = order[place]
        return self.members[which], turn * self.weights[which] + order[:place].count(which)

    def problem(self, split: str, index: int, seed: int) -> Problem:
        """A member's problem. The first that is asked for checks all members, before a run begins."""
        if not self.checked:
            for member in self.members:
                member.problem("train", 0, seed)
            self.checked = True
        member, position = self.member_of(split, index, seed)
        return replace(member.problem(split, position, seed), index=index)

    def grade(self, completion: str, problem: Problem) -> Grade:
        return self.by_spec[problem.source.rsplit("#", 2)[0]].grade(completion, problem)

    def same_answer(self, first: str, second: str) -> bool:
        return self.members[0].same_answer(first, second)  # the rule is the same for all


def name_of_mixture(weights: dict[str, int]) -> str:
    """What a mixture is called in folders and metric keys: gym:leg_counting*2,chain_sum is
    gym-leg_counting-x2-chain_sum. Settings are not in it.

    A long name is cut, and a checksum of all of it keeps it apart from others that begin like it.
    """
    name = "gym-" + "-".join(each + f"-x{weight}" * (weight > 1) for each, weight in weights.items())
    return name if len(name) <= MAX_NAME else f"{name[: MAX_NAME - 9]}-{crc32(name.encode()):08x}"


def shown_answer(entry: dict) -> str:
    """The answer of a question: its own, an example of it where there are many, else `ANY_ANSWER`."""
    if entry["answer"] is not None:
        return str(entry["answer"])
    for name in EXAMPLES:
        example = entry["metadata"].get(name)
        if example:
            return example if isinstance(example, str) else json.dumps(example)
    return ANY_ANSWER


def worked_solution(entry: dict) -> str | None:
    r"""The worked solution that gsm_symbolic knows of each question, with the answer in a box at its end.

    >>> worked_solution({"metadata": {"answer_cot": "There are 80+17 = 97 of them.\n#### 97"}})
    'There are 80+17 = 97 of them.\n\\boxed{97}'
    """
    work, mark, answer = entry["metadata"].get("answer_cot", "").rpartition("####")
    return f"{work.rstrip()}\n\\boxed{{{answer.strip()}}}" if mark else None


def fixed_part(entry: dict | None) -> tuple[str, str] | None:
    """What must be the same every time that a question is made."""
    return None if entry is None else (entry["question"], shown_answer(entry))


def made_of_nothing(entry: dict) -> bool:
    """codeio asks for {} given {} where its program could not run."""
    values = [entry["metadata"].get(name) for name in ("input_data", "output_data")]
    return all(isinstance(value, dict) and not value for value in values)


class TooSlow(BaseException):
    """Raised by `time_limit`. No Exception, since reasoning-gym catches those."""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TooSlow in what runs longer. Without effect outside the main thread and on Windows."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def ring(*_):
        raise TooSlow

    handler = signal.signal(signal.SIGALRM, ring)
    # Once more every second: a bare `except` in reasoning-gym may swallow the first.
    timer = signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, *timer)
        signal.signal(signal.SIGALRM, handler)


@contextlib.contextmanager
def fixed_chance(seed: str) -> Iterator[None]:
    """Random numbers of Python and NumPy that depend on `seed` alone, and nothing printed.

    Some tasks draw from them instead of from their own. Afterwards they go on as if nothing had been.
    """
    import numpy as np  # here, because reasoning-gym has it loaded, and other tasks do without

    states = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(random.getrandbits(32))
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
