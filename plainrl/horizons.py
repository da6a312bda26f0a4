"""Training and scores on problems of several horizons, from 1 step to --max-horizon.

h1_curriculum.py, papers/adarft.py and papers/e2h.py differ in the horizons that a step trains on. What they
have in common is here. So is what commands ask that measure a model on all horizons of a task.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch

from plainrl.flags import EVAL_SEED
from plainrl.screen import fail, or_fail
from plainrl.sources import ComposedTask
from plainrl.tasks import Problem, load_task, scored, split_size
from plainrl.world import ChainTask


class EveryHorizon:
    """The problems of a task at horizon 1, 2, ..., --max-horizon, 1, 2, ... in turn. Scores are taken on it.

    So the scores of dev and test have all horizons in equal parts, whatever a step trains on.
    `training_problems` gives problems of chosen horizons.
    """

    score_each_horizon = True  # plainrl.run.Run also logs a score of each one

    def __init__(self, task, args):
        """Stops with one line where the task lacks a horizon, or one of the problems that are scored."""
        check_horizons(task, args)
        self.name, self.grade = task.name, task.grade
        self.tasks = [task.at_horizon(horizon) for horizon in range(1, args.max_horizon + 1)]
        if hasattr(task, "same_answer"):
            self.same_answer = task.same_answer
        for split, count in (("dev", args.eval_problems), ("test", args.test_problems)):
            for index in range(scored(self, split, count)):
                or_fail(self.problem, split, index, EVAL_SEED)

    def size(self, split: str) -> int | None:
        """As many as there are of the rarest horizon, of each: so no problem comes twice."""
        sizes = [split_size(each, split) for each in self.tasks]
        return None if None in sizes else len(sizes) * min(sizes)

    def at_horizon(self, horizon: int):
        return self.tasks[horizon - 1]

    def problem(self, split: str, index: int, seed: int) -> Problem:
        rounds, position = divmod(index, len(self.tasks))
        return self.numbered(self.tasks[position].problem(split, rounds, seed), position)

    def training_problems(self, horizons: list[int], indices: list[int], seed: int) -> list[Problem]:
        """A training problem of each of these horizons."""
        problems = []
        for horizon, index in zip(horizons, indices):
            problem = or_fail(self.at_horizon(horizon).problem, "train", index, seed)
            problems.append(self.numbered(problem, horizon - 1))
        return problems

    def numbered(self, problem: Problem, position: int) -> Problem:
        """The problem of one of the tasks with an index that no problem of another has."""
        if problem.index is None:
            return problem
        return replace(problem, index=problem.index * len(self.tasks) + position)


def each_horizon(spec: str) -> list:
    """The task that --task names; a range of horizons becomes one task for each."""
    task = or_fail(load_task, spec)
    if isinstance(task, ChainTask | ComposedTask):
        return [task.at_horizon(horizon) for horizon in range(task.low, task.high + 1)]
    return [task]


def asked_problems(tasks: list, args, first: int = 0) -> Iterator[tuple[object, int, Problem]]:
    """As many problems of each task as --problems says, with their task and index, from the index `first` on:
    of a finite split all, of an endless one 200 and of several tasks 100 each, where it says nothing."""
    for task in tasks:
        size = or_fail(split_size, task, args.split)
        last = first + (args.problems or size or (100 if len(tasks) > 1 else 200))
        for index in range(first, last if size is None else min(last, size)):
            yield task, index, or_fail(task.problem, args.split, index, EVAL_SEED)


def check_horizons(task, args) -> None:
    """Refuse a task without problems of every horizon, and a dev score without a problem of each."""
    if not hasattr(task, "at_horizon"):
        if args.task is None:
            fail("the task has no method at_horizon(horizon), see plainrl/tasks.py")
        way_out = "use chain, or chain them with horizon=1 in --task"
        fail(f"--task {args.task}: its problems have no horizon; {way_out}")
    for horizon in range(1, args.max_horizon + 1):
        for split in ("train", "dev", "test"):
            try:
                found = task.at_horizon(horizon).problem(split, 0, EVAL_SEED).horizon
            except ValueError as error:
                fail(f"--max-horizon {args.max_horizon}: {error}")
            if found != horizon:
                given = f"at_horizon({horizon}) gives a problem whose field horizon is {found}"
                fail(f"--task {args.task}: {given}")
    if args.eval_problems < args.max_horizon:
        fail(
            f"--eval-problems {args.eval_problems}: must be at least --max-horizon {args.max_horizon}, "
            "one of each horizon"
        )


def horizon_metrics(
    name: str, horizons: list[int], rewards: torch.Tensor, longest: int
) -> dict[str, float | None]:
    """The mean horizon of a step's problems, and the mean reward at each; None where the step has none.

    horizons, B numbers; rewards [B, G].

    >>> horizon_metrics("h1", [1, 3], torch.tensor([[1.0, 0.0], [0.0, 0.0]]), 3)
    {'h1/horizon': 2.0, 'h1/reward_1': 0.5, 'h1/reward_2': None, 'h1/reward_3': 0.0}
    """
    metrics = {f"{name}/horizon": sum(horizons) / len(horizons)}
    for horizon in range(1, longest + 1):
        rows = [row for row, own in zip(rewards.tolist(), horizons) if own == horizon]
        count = sum(map(len, rows))
        metrics[f"{name}/reward_{horizon}"] = sum(map(sum, rows)) / count if rows else None
    return metrics


def all_horizons(spec: str | None, longest: int) -> str | None:
    """The --task with which eval.py measures horizons 1 to `longest`, as the run did.

    A file that has problems of several horizons stays as it is, and so does None, a task of your own.

    >>> all_horizons("chain?family=mixed", 5)
    'chain?horizon=1-5&family=mixed'
    """
    if spec is None:
        return None
    name, _, query = spec.rpartition("?") if "?" in spec else (spec, "", "")
    settings = query.split("&") if query else []
    others = [setting for setting in settings if not setting.startswith("horizon=")]
    is_chained = name == "chain" or len(others) < len(settings)
    return f"{name}?" + "&".join([f"horizon=1-{longest}", *others]) if is_chained else spec
