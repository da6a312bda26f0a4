"""tools/make_tiny.py, which makes the embedded base model: its corpus, its student, and that it starts to
reproduce."""

import itertools
import json
import random
import re
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import pytest
from mutants import mutant
from transformers import AutoTokenizer

from tools import make_tiny

MODELS = Path(__file__).resolve().parent.parent / "models"


@pytest.mark.parametrize("world, committed", [("chain", "tiny"), ("countdown", "countdown")])
def test_starts_to_reproduce_and_never_overwrites(world, committed, tmp_path, monkeypatch):
    """Catches another corpus, initialisation, tokenizer or optimizer than those of the committed model: the
    first five of its steps, with the default flags, give the losses that were recorded. Catches a warm-up
    that overwrites."""
    batches, new, old = make_tiny.batches, tmp_path / "new", MODELS / committed
    monkeypatch.setattr(
        make_tiny, "batches", lambda *args: itertools.islice(batches(*args), 5)
    )  # so the command ends here
    make_tiny.main(make_tiny.Args(world=world, out_dir=new))
    settings, made_with = (json.loads((folder / "sft.json").read_text()) for folder in (new, old))
    assert (
        settings["first_losses"] == pytest.approx(made_with["first_losses"], rel=1e-4)
        and len(settings["first_losses"]) == 5
    )
    assert settings["last_loss"] == settings["first_losses"][-1] < settings["first_losses"][0]
    assert (old / "tokenizer.json").read_bytes() == (new / "tokenizer.json").read_bytes()
    defaults = asdict(make_tiny.Args(world=world))
    flags = made_with.keys() & defaults.keys() - {"out_dir"}  # models/tiny is older than some
    assert {name: made_with[name] for name in flags} == {name: defaults[name] for name in flags}
    with pytest.raises(SystemExit, match="--out-dir .*new: exists"):
        make_tiny.main(make_tiny.Args(world=world, out_dir=new))


@mutant(
    "no end to learn", "tools/make_tiny.py", "tokenizer.encode(solution + END)", "tokenizer.encode(solution)"
)
def test_learns_the_end_and_not_the_prompt(toy_model):
    """Catches a corpus without an end to learn, with two of them, or with completion text in the prompt."""
    tokenizer = AutoTokenizer.from_pretrained(toy_model)
    end, assistant = tokenizer.convert_tokens_to_ids([make_tiny.END, make_tiny.ASSISTANT])
    args = make_tiny.Args(prompts_per_step=4, solutions_per_prompt=2)
    for prompt_ids, completion_ids in itertools.islice(make_tiny.batches(args, tokenizer), 4):
        assert len(prompt_ids) == len(completion_ids) == 8
        for prompt, completion in zip(prompt_ids, completion_ids):
            assert completion.count(end) == 1 and completion[-1] == end
            assert end not in prompt and prompt[-1] == assistant and prompt.count(assistant) == 1
            assert assistant not in completion and tokenizer.decode(completion[:-1]).splitlines()[
                -1
            ].startswith("\\boxed{")


def test_corpus_is_of_its_own_split(monkeypatch):
    """Catches a base model that has seen train, dev or test, a corpus without long chains, hints or reversed
    steps."""
    original, calls = make_tiny.ChainTask.chain, []
    monkeypatch.setattr(make_tiny.ChainTask, "chain", lambda *args: calls.append(args) or original(*args))
    pairs = list(
        itertools.islice(make_tiny.chain_corpus(0, make_tiny.Args(steps=10, prompts_per_step=30)), 300)
    )
    assert {split for _, split, *_ in calls} == {"sft"} and len({index for _, _, index, _ in calls}) == 300
    horizons = [int(task.horizon) for task, *_ in calls]
    assert (
        horizons[:12] == [1] * 12 and max(horizons[:50]) <= 4 and set(horizons) == set(range(1, 11))
    )  # they grow
    assert 75 < sum("Hint:" in prompt for prompt, _ in pairs) < 135
    assert 45 < sum(task.family == "reversed" for task, *_ in calls) < 105


def test_student_follows_the_hint_and_turns_sloppy():
    """Catches a student who ignores what a hint gives, errs while still careful, is always right, or drops
    the value before."""
    args, rng, right = make_tiny.Args(), random.Random(0), Counter()
    for index in range(100):
        horizon, family = 1 + index % 10, "plain" if index < 50 else "reversed"
        chain = make_tiny.ChainTask(horizon=str(horizon), family=family).chain("sft", index, 0)
        solution = make_tiny.write_chain(chain, "short").solution.split("\n")[:-1]
        known = 3 * horizon // 4
        wrong_hint = [re.sub(r"\d+$", "500", line) for line in solution[:known]]
        for hint, sloppy in itertools.product((None, solution[:known], wrong_hint), (True, False)):
            lines = make_tiny.student_solution(chain, hint, sloppy, rng, args)
            assert len(lines) == horizon and lines[: len(hint or [])] == (hint or [])
            values = [int(line.rsplit("=", 1)[1]) for line in lines]
            assert all(1 <= value <= 999 for value in values)
            for i in range(1, horizon):  # a step goes on from the value before, right or wrong
                assert (
                    hint is wrong_hint and i < known or lines[i].split("=")[1].startswith(str(values[i - 1]))
                )
            if hint is not None:
                wanted, written = (
                    re.search(r"[-+*/]\d+", line).group() for line in (solution[known], lines[known])
                )
                assert wanted == written  # the hint names the next operation
            if hint is not wrong_hint:
                right[hint is not None, sloppy, family] += lines == solution
    assert right[True, False, "plain"] == right[False, False, "plain"] == 50
    assert (
        right[False, False, "reversed"] < 15 < right[True, False, "reversed"]
    )  # rarely read right without the hint
    assert 0 < right[False, True, "plain"] < right[True, True, "plain"] < 40


def test_hints_come_before_their_solutions():
    """Catches a corpus whose solutions do not follow the hint in the prompt, in the wording of a task."""
    seen = 0
    for prompt, solutions in itertools.islice(make_tiny.chain_corpus(3, make_tiny.Args(steps=1)), 200):
        _, marker, hint = prompt.partition("\nHint: ")
        lines = re.findall(r"[A-J]=[^,]*?=\d+(?=,)", hint)
        seen += bool(lines)
        assert not marker or hint.endswith(".")
        assert all(solution.split("\n")[: len(lines)] == lines for solution in solutions)
    assert seen > 20


@mutant(
    "nobody looks at the target",
    "tools/make_tiny.py",
    "reaching if rng.random() < args.attentive else possible",
    "possible",
)
@mutant(
    "everybody does",
    "tools/make_tiny.py",
    "reaching if rng.random() < args.attentive else possible",
    "reaching",
)
@mutant(
    "hints are not followed", "tools/make_tiny.py", 'if way[0].split("\\n")[:-1] == begin', "if len(way) == 2"
)
@mutant(
    "its own split",
    "tools/make_tiny.py",
    'task.problem("sft", index, seed)',
    'task.problem("train", index, seed)',
)
def test_countdown_corpus(monkeypatch):
    """Catches solutions with errors, all of which reach the target or none more than by chance, problems of
    another split, a hint that the solution does not follow, problems of one size only."""
    original, seen = make_tiny.CountdownTask.problem, []

    def problem(self, split, index, seed):
        seen.append((split, original(self, split, index, seed)))
        return seen[-1][1]

    monkeypatch.setattr(make_tiny.CountdownTask, "problem", problem)
    args, task = make_tiny.Args(world="countdown"), make_tiny.CountdownTask()
    right, hinted, solutions_seen = 0, 0, 0
    for prompt, solutions in itertools.islice(make_tiny.countdown_corpus(0, args), 600):
        current = seen[-1][1]
        grades = [task.grade(solution, current) for solution in solutions]
        assert all(grade.parsed for grade in grades) and len(solutions) == args.solutions_per_prompt
        if "Hint:" in prompt:
            hinted += 1
            begin = prompt.split("it can begin with ")[1].rstrip(".").split(", ")
            assert all(solution.split("\n")[:-1] == begin for solution in solutions)
        else:
            right, solutions_seen = (
                right + sum(grade.correct for grade in grades),
                solutions_seen + len(grades),
            )
    assert {split for split, _ in seen} == {"sft"} and 30 < hinted < 90
    assert 0.4 < right / solutions_seen < 0.5  # by chance one in ten of the others reaches it too
    assert 120 < sum(len(current.options) == 4 for _, current in seen) < 240
