"""Any task of reasoning-gym, with its own scorer."""

import itertools
import random
import re
from collections.abc import Iterator
from importlib.metadata import version

from plainrl.grading import grade_box, same_answer
from plainrl.tasks import BOXED_INSTRUCTION, Grade, Problem, optional_package
from plainrl.workers import ask_worker
from plainrl.world import SPLITS, split_of


class GymTask:
    """A reasoning-gym task with its own scorer.

    Splits are decided by the question's text, so they are disjoint. Dev and test never ask a question
    twice. A few tasks must prepare all their questions at once and need a smaller pool, e.g.
    gym:word_ladder?size=10000.
    """

    def __init__(self, spec: str, dataset_name: str, settings: dict):
        self.gym = optional_package("reasoning_gym", f"--task gym:{dataset_name}", "reasoning-gym")
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
