"""tools/make_tiny.py, which makes the embedded base model: its corpus, its student, and that it starts to
reproduce."""

import itertools
import json
import random
import re
from collections import Counter
from dataclasses import fields
from pathlib import Path

import pytest
from mutants import mutant
from transformers import AutoTokenizer

from tools import make_tiny

TINY = Path(__file__).resolve().parent.parent / "models" / "tiny"


def test_starts_to_reproduce_and_never_overwrites(tmp_path, monkeypatch):
    """Catches another corpus, initialisation, tokenizer or optimizer than those of models/tiny: the first
    five of its steps, with the default flags, give the losses that were recorded. Catches a warm-up that
    overwrites."""
    batches = make_tiny.batches
    monkeypatch.setattr(
        make_tiny, "batches", lambda *args: itertools.islice(batches(*args), 5)
    )  # so the command ends here
    make_tiny.main(make_tiny.Args(out_dir=tmp_path / "tiny"))
    settings, made_with = (
        json.loads((folder / "sft.json").read_text()) for folder in (tmp_path / "tiny", TINY)
    )
    assert (
        settings["first_losses"] == pytest.approx(made_with["first_losses"], rel=1e-4)
        and len(settings["first_losses"]) == 5
    )
    assert settings["last_loss"] == settings["first_losses"][-1] < settings["first_losses"][0]
    assert (TINY / "tokenizer.json").read_bytes() == (tmp_path / "tiny" / "tokenizer.json").read_bytes()
    assert all(
        made_with[field.name] == field.default for field in fields(make_tiny.Args) if field.name != "out_dir"
    )
    with pytest.raises(SystemExit, match="--out-dir .*tiny exists"):
        make_tiny.main(make_tiny.Args(out_dir=tmp_path / "tiny"))


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
    pairs = list(itertools.islice(make_tiny.corpus(0, make_tiny.Args(steps=10, prompts_per_step=30)), 300))
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
    for prompt, solutions in itertools.islice(make_tiny.corpus(3, make_tiny.Args(steps=1)), 200):
        _, marker, hint = prompt.partition("\nHint: ")
        lines = re.findall(r"[A-J]=[^,]*?=\d+(?=,)", hint)
        seen += bool(lines)
        assert not marker or hint.endswith(".")
        assert all(solution.split("\n")[: len(lines)] == lines for solution in solutions)
    assert seen > 20
