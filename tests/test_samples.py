"""plainrl/samples.py: completions token by token with the numbers of the update, the dev problems that are
kept, how every group fared; and that these files cost a run nothing but time."""

import doctest
import json
import math
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from kit import numbers
from mutants import mutant
from random_model import COMPLETIONS, EOS, PROMPTS, distributions, random_model
from tokenizers import Tokenizer, decoders, models
from toys import FakeSampler, FunctionTask, HashTask, quick_flags, records
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import grpo
import guide
import siren
from papers import clip_cov, dapo, entropy_advantage, guide_ablations
from plainrl import samples
from plainrl.flags import EVAL_SEED
from plainrl.folder import LOGS
from plainrl.horizons import EveryHorizon
from plainrl.models import load_model
from plainrl.rollout import Completion, Rollout, encode_prompt
from plainrl.run import Run
from plainrl.sources import ListTask
from plainrl.tasks import Grade, Problem, load_task

pytestmark = pytest.mark.usefixtures("quick")


class IndexedTask(HashTask):
    """Its problems know their index, and some have a hint."""

    def problem(self, split: str, index: int, seed: int) -> Problem:
        prompt = f"{split} {index} of {seed}?"
        return Problem(prompt, "0", f"word {index}", f"so\n{index}", index=index)


@pytest.fixture
def run(toy_model, tmp_path):
    """run(script, name, task=..., sampler=..., **flags) -> the output folder of a quick run."""

    def function(script, name="run", task=None, sampler=None, **changes) -> Path:
        flags = quick_flags(toy_model, tmp_path / name, **changes)
        script.main(script.Args(**flags), task=task or IndexedTask(), sampler=sampler)
        return tmp_path / name

    return function


def lines(folder: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def watch(monkeypatch, owner, name: str) -> list[tuple]:
    """Remember the arguments and the result of every call of owner.name."""
    original, calls = getattr(owner, name), []

    def function(*args, **kwargs):
        result = original(*args, **kwargs)
        calls.append((args, result))
        return result

    monkeypatch.setattr(owner, name, function)
    return calls


def spread(entry, length: int) -> list:
    """The numbers of all tokens, where a row has one for all of them."""
    return entry if isinstance(entry, list) else [entry] * length


# --- the texts of tokens ------------------------------------------------------------------------------------


def sentencepiece_like() -> PreTrainedTokenizerFast:
    """Words with their space as one sign, bytes for what is in no word: the first space of a text is lost."""
    words = [
        "<unk>",
        "<s>",
        "<end\u2581of\u2581text>",
        "<0xC3>",
        "<0xA9>",
        "a",
        "\u2581is",
        "\u2581",
        "12",
        "\n",
    ]
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, [], byte_fallback=True))
    steps = [
        decoders.Replace("\u2581", " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
        decoders.Strip(" ", 1, 0),
    ]
    tokenizer.decoder = decoders.Sequence(steps)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token=words[2])


@mutant(
    "the first space of a token is lost",
    "plainrl/samples.py",
    "self.decode([id]).removeprefix(self.first_text)",
    "self.tokenizer.decode([id])",
)
@mutant(
    "special tokens without a name", "plainrl/samples.py", 'text = "" if id in self.special else ', "text = "
)
@mutant(
    "half a letter shown as a question mark",
    "plainrl/samples.py",
    'if not text or "\\N{REPLACEMENT CHARACTER}" in text:',
    "if not text:",
)
def test_a_token_is_shown_as_the_model_sees_it(toy_model):
    """Catches a lost space in front of a word, an end of text that nobody sees, halves of a letter that all
    look alike, and a token without a name that ends the run."""
    texts = samples.TokenTexts(sentencepiece_like())
    assert [texts[id] for id in range(1, 10)] == [
        "<s>", "<end\u2581of\u2581text>", "<0xC3>", "<0xA9>", "a", " is", " ", "12", "\n",
    ]  # fmt: skip
    assert texts[999] == "<999>"

    tokenizer = AutoTokenizer.from_pretrained(toy_model)
    texts = samples.TokenTexts(tokenizer)
    for text in (" Tom has 5 more.\n\\boxed{12}", "a  b\t", "1 , 2 .", "<|end|>"):
        ids = [*tokenizer.encode(text), tokenizer.eos_token_id]
        assert "".join(texts[id] for id in ids) == tokenizer.decode(ids) == text + "<|end|>"
    first, second = tokenizer.encode("\u00e9")  # two bytes
    assert len({texts[first], texts[second], "\ufffd"}) == 3
    assert texts[len(tokenizer) + 7] == f"<{len(tokenizer) + 7}>"


def test_examples_in_docstrings():
    """Catches documentation that has drifted from the code."""
    result = doctest.testmod(samples)
    assert result.attempted == 2 and result.failed == 0


# --- the numbers of tokens ----------------------------------------------------------------------------------


@mutant(
    "one number where tokens differ",
    "plainrl/samples.py",
    "if len(set(values)) == 1 else values",
    "if values[0] == values[-1] else values",
)
def test_one_number_stands_for_equal_ones():
    """Catches one number for tokens that differ, a list where one would do, numbers that JSON does not have,
    and more digits than are promised."""
    rounded = [list(map(samples.decimals, row)) for row in ([0.1, 0.1001], [0.1, 0.2, 0.1], [2.0, -0.0001])]
    assert [samples.compact(row) for row in rounded] == [0.1, [0.1, 0.2, 0.1], [2, 0]]
    assert samples.compact([samples.digits(value) for value in (1.0001, 0.9999)]) == 1
    assert [samples.digits(value) for value in (1.23456, 0.000123456, -45678.0)] == [1.23, 0.000123, -45700]
    odd = (math.nan, math.inf, -math.inf)
    assert [function(value) for function in (samples.digits, samples.decimals) for value in odd] == [None] * 6


def rollout_of(grades: list[bool], sampler_gap: float = 0.01) -> Rollout:
    """Two prompts with two of the random model's completions each. The sampler's log-probabilities are -1,
    and `sampler_gap` less at each further token."""
    ids = [COMPLETIONS[0], COMPLETIONS[2], COMPLETIONS[4], COMPLETIONS[1]]
    completions = [
        Completion(
            row, [-1 - sampler_gap * t for t in range(len(row))], "stop" if row[-1] == EOS else "length"
        )
        for row in ids
    ]
    prompts = [PROMPTS[0]] * 2 + [PROMPTS[1]] * 2
    verdicts = [Grade(right, float(right), "7", "correct" if right else "wrong") for right in grades]
    problems = [Problem("first", "7", index=12), Problem("second", "7", index=30)]
    return Rollout(problems, prompts, completions, ["text"] * 4, verdicts)


@mutant(
    "numbers of the first update",
    "plainrl/scoring.py",
    "part[name][:] = values.detach()",
    'part[name][:] = torch.where(part["seen"], part[name], values.detach())',
)
@mutant(
    "numbers of the token before",
    "plainrl/scoring.py",
    "part[name][:] = values.detach()",
    "part[name][:] = values.detach().roll(1, 1)",
)
@mutant(
    "ratio to the sampler",
    "plainrl/scoring.py",
    "ratio = torch.exp(logprobs.detach() - old_logprobs)",
    'ratio = torch.exp(logprobs.detach() - part["rollout_logprobs"])',
)
@mutant(
    "numbers without those of EOS",
    "plainrl/samples.py",
    "length, numbers = len(batch.completion_ids[row]), {}",
    "length, numbers = len(batch.completion_ids[row]) - 1, {}",
)
@mutant(
    "numbers of another row",
    "plainrl/samples.py",
    "zip(*table[row][:length])",
    "zip(*table[row - 1][:length])",
)
@numbers(torch.float64)
def test_tokens_have_the_numbers_of_the_last_update_that_saw_them():
    """Catches numbers of an earlier update, of another token or row, of padding, without EOS, and one number
    that is called by another's name. Four updates of two rows each."""
    model, rollout = random_model(), rollout_of([True, False, True, False])
    args = grpo.Args(temperature=0.8, clip_low=0.01, clip_high=0.01, micro_batch_tokens=1)
    batch = rollout.batch(torch.tensor([[1.0, -1.0], [0.5, -0.5]]), "cpu")
    rows = list(zip(rollout.prompt_ids, rollout.completion_ids))
    now = lambda row: distributions(model, *rows[row], 0.8)  # noqa: E731  [T, V]
    start = [now(row) for row in range(4)]
    chosen = lambda table, row: table.gather(1, torch.tensor(rows[row][1])[:, None])[:, 0]  # noqa: E731  [T]
    batch["old_logprobs"] = torch.zeros(batch["completion_mask"].shape)
    for row, table in enumerate(start):
        batch["old_logprobs"][row, : len(table)] = chosen(table, row)
    seen = {}
    for update, minibatch in enumerate(batch.split(2) * 2):
        seen |= {row: now(row) for row in (2 * (update % 2), 2 * (update % 2) + 1)}
        grpo.accumulate_gradients(model, minibatch, args)
        with torch.no_grad():
            for weight in model.parameters():
                weight -= 0.05 * weight.grad
                weight.grad = None

    own = {"mine": batch["old_logprobs"].exp()}
    found, clipped = samples.token_numbers(batch, 4, own), []
    for row, given in enumerate(found):
        assert list(given) == ["logprob", "entropy", "ratio", "clipped", "weight", "gap", "mine"]
        ids, old, logprobs = rows[row][1], chosen(start[row], row), chosen(seen[row], row)
        ratio, advantage = torch.exp(logprobs - old), batch["advantages"][row].item()
        expected = {
            "logprob": logprobs,
            "entropy": -(seen[row].exp() * seen[row]).sum(1),
            "ratio": ratio,
            "clipped": (ratio * advantage > ratio.clamp(0.99, 1.01) * advantage).double(),
            "weight": torch.full_like(ratio, 1 / len(ids) / 2),
            "gap": old + 1 + 0.01 * torch.arange(len(ids)),
            "mine": old.exp(),
        }
        for name, values in expected.items():
            ours = torch.tensor(spread(given[name], len(ids)), dtype=torch.float64)
            assert len(ours) == len(ids), name
            torch.testing.assert_close(ours, values, rtol=0.051 if name == "gap" else 0.0051, atol=0.00051)
        clipped += spread(given["clipped"], len(ids))
    assert set(clipped) == {0, 1}
    assert all(isinstance(given["weight"], float) for given in found)  # one number for all tokens


@mutant(
    "rows of one rank alone", "plainrl/samples.py", "seen = dict(ranks.gather(mine))", "seen = dict(mine)"
)
def test_a_row_that_no_update_saw_has_no_numbers(monkeypatch):
    """Catches zeros that look like an update's numbers, a largest gap of nothing, and rows that another rank
    has seen and nobody shows."""
    batch = rollout_of([True, False, True, False]).batch(torch.zeros(2, 2), "cpu")
    assert samples.token_numbers(batch, 2, {}) == [{}, {}] and samples.largest(batch) == {}
    batch["seen"][1] = True
    assert samples.token_numbers(batch, 2, {})[0] == {} and len(samples.token_numbers(batch, 2, {})[1]) == 6
    monkeypatch.setattr(samples.ranks, "gather", lambda mine: [(0, {"ratio": 3}), *mine])
    first, second = samples.token_numbers(batch, 2, {})
    assert first == {"ratio": 3} and len(second) == 6


@mutant(
    "the largest gap is not the farthest from 0",
    "plainrl/samples.py",
    'batch[f"last_{name}"].abs().nan_to_num',
    'batch[f"last_{name}"].nan_to_num',
)
@mutant(
    "largest of one rank alone",
    "plainrl/samples.py",
    "in ranks.gather(mine):  # of equal",
    "in mine:  # of equal",
)
@mutant("largest number of padding", "plainrl/samples.py", "values.masked_fill(~seen, -1.0)", "values")
@mutant(
    "largest of another rank's row",
    "plainrl/samples.py",
    "key=lambda each: (each[0], -each[1])",
    "key=lambda each: each[1]",
)
def test_the_token_with_the_largest_gap_and_ratio(monkeypatch):
    """Catches a number of padding, of another rank's row, of another sign, and one that is no number and so
    stays unseen."""
    rollout = rollout_of([True, False, True, False])
    batch = rollout.batch(torch.zeros(2, 2), "cpu")
    batch["seen"][:] = True
    batch["last_gap"][:] = -9.0 * ~batch["completion_mask"]
    batch["last_gap"][0, 3], batch["last_gap"][2, 1] = 0.25, -0.5
    batch["last_ratio"][:] = 1.0
    batch["last_ratio"][3, 0], batch["last_ratio"][1, 2] = 1.5, 1.25
    texts = {id: f"t{id}" for id in range(64)}
    line = samples.step_line(rollout, rollout, samples.largest(batch), texts)
    gap = {"gap": 0.5, "token": "t0", "index": 30, "sample": 0, "position": 1}
    assert line["largest_gap"] == gap
    assert line["largest_ratio"] == {"ratio": 1.5, "token": "t9", "index": 30, "sample": 1, "position": 0}
    monkeypatch.setattr(
        samples.ranks,
        "gather",
        lambda mine: [*mine, ("gap", (0.75, 0, 3)), ("gap", (0.5, 1, 0)), ("ratio", (1.5, 1, 0))],
    )
    assert samples.largest(batch) == {"gap": (0.75, 0, 3), "ratio": (1.5, 1, 0)}
    monkeypatch.undo()
    batch["last_ratio"][0, 1] = math.nan
    assert samples.largest(batch)["ratio"] == (math.inf, 0, 1)
    line = samples.step_line(rollout, rollout, samples.largest(batch), texts)
    assert line["largest_ratio"] == {"ratio": None, "token": "t0", "index": 12, "sample": 0, "position": 1}


# --- a group, token by token --------------------------------------------------------------------------------


@mutant(
    "the tokens of another completion",
    "plainrl/samples.py",
    '{"tokens": [texts[id] for id in rollout.completion_ids[i]]}',
    '{"tokens": [texts[id] for id in rollout.completion_ids[-1 - i]]}',
)
@mutant("the others selected", "siren.py", 'selected=batch["selected"])', 'selected=~batch["selected"])')
@mutant("dropped tokens of a copy", "papers/clip_cov.py", 'batch["dropped"][:] = ', 'batch["dropped"] = ')
@mutant(
    "the whole advantage as the bonus",
    "papers/entropy_advantage.py",
    'part["bonus"][:] = advantages - part["advantages"]',
    'part["bonus"][:] = advantages',
)
@pytest.mark.parametrize(
    "script, name, flags",
    [
        (siren, "selected", {"tau": 0.5}),
        (clip_cov, "dropped", {"cov_low": -9.0, "cov_high": 9.0, "cov_fraction": 0.3}),
        (entropy_advantage, "bonus", {}),
    ],
    ids=["siren", "clip_cov", "entropy_advantage"],
)
def test_rows_show_the_first_group(run, toy_model, monkeypatch, script, name, flags):
    """Catches tokens of another completion, tokens singled out that were not, and an order of the keys or
    the rows that depends on chance."""
    calls = watch(monkeypatch, samples, "token_rows")
    folder = run(script, minibatches=2, micro_batch_tokens=40, steps=3, **flags)
    rows, tokenizer = lines(folder, "samples.jsonl"), AutoTokenizer.from_pretrained(toy_model)
    assert [row["step"] for row in rows] == [1] * 4 + [2] * 4 + [3] * 4
    singled_out = set()
    for step, ((rollout, batch, *_), _) in enumerate(calls):
        for i, row in enumerate(rows[4 * step : 4 * step + 4]):
            ids = rollout.completion_ids[i]
            assert "".join(row["tokens"]).encode() and len(row["tokens"]) == len(ids)
            assert row["completion"] == tokenizer.decode(ids, skip_special_tokens=True)
            if "\ufffd" not in tokenizer.decode(ids):
                assert "".join(row["tokens"]) == tokenizer.decode(ids)
            assert row["index"] == rollout.problems[0].index == 2 * step
            assert row["truncated"] == (rollout.completions[i].finish_reason == "length")
            own = spread(row[name], len(ids))
            singled_out |= set(map(bool, own))
            if name == "bonus":
                advantage = batch["advantages"][i].item()
                entropy = spread(row["entropy"], len(ids))
                expected = [min(0.4 * h, abs(advantage) / 2) for h in entropy]
                assert own == pytest.approx(expected, rel=0.01, abs=1e-3)
            else:
                assert own == batch[name][i, : len(ids)].int().tolist()
    assert singled_out == {True, False}


# --- Guide: what the group that was trained on replaced -----------------------------------------------------


@mutant(
    "the group that was trained on, again",
    "plainrl/samples.py",
    "and id(completion) not in trained",
    "or id(completion) in trained",
)
@mutant(
    "failed groups of other problems",
    "plainrl/samples.py",
    "if sampled.problems[row // G].prompt == problem.prompt and",
    "if",
)
@mutant(
    "a hint that was not shown",
    "guide.py",
    "unsolved = [replace(problems[j], hint=hint_of(problems[j], hints)) for j in helped]",
    "unsolved = [problems[j] for j in helped]",
)
def test_the_hint_and_the_group_that_failed_without_it(run, toy_model, tmp_path, monkeypatch):
    """Catches a failed group that is not that of the problem, one that was trained on, a hint that is not
    the one shown, and a prompt other than the one that was sampled from."""
    hints = [{"prompt": f"train {i} of 0?", "hint": f"look {i}"} for i in range(400)]
    (tmp_path / "hints.jsonl").write_text("\n".join(map(json.dumps, hints)))
    steps, sample = [], Run.sample

    def watched(self, problems, seeds, prompts=None, max_new_tokens=None):
        rollout = sample(self, problems, seeds, prompts, max_new_tokens)
        steps.append((self.state["step"] + 1, prompts, rollout))
        return rollout

    monkeypatch.setattr(Run, "sample", watched)
    folder = run(guide, steps=6, prompts_per_step=3, hints=tmp_path / "hints.jsonl", max_refills=1)
    tokenizer, guided = AutoTokenizer.from_pretrained(toy_model), 0
    for first in lines(folder, "samples.jsonl")[::4]:
        index, plain = first["index"], first["prompt"]
        failed = [
            rollout.select([rollout.problems.index(problem)])
            for step, prompts, rollout in steps
            for problem in rollout.problems
            if step == first["step"] and problem.prompt == plain and prompts is None
        ]
        if not first["guided"]:
            assert not first.keys() & {"hint", "sampled_prompt", "also_sampled"}
            continue
        guided += 1
        assert first["hint"] == f"look {index}" and plain == f"train {index} of 0?"
        shown = tokenizer.decode(encode_prompt(tokenizer, f"{plain}\nHint: look {index}"))
        assert first["sampled_prompt"] == shown
        (group,) = failed
        assert [other["completion"] for other in first["also_sampled"]] == group.texts
        assert {other["prompt"] for other in first["also_sampled"]} == {plain}
        assert {other["reward"] for other in first["also_sampled"]} == {0.0}
    assert guided
    for row in lines(folder, "samples.jsonl"):
        assert "also_sampled" not in row or row["tokens"]


@mutant(
    "half of a joined group",
    "plainrl/samples.py",
    "for i in range(batch.rows_per_group[0] if batch else",
    "for i in range(rollout.group_size if batch else",
)
@mutant(
    "hint of a joined group",
    "plainrl/samples.py",
    "hinted = [row for row in range(count)",
    "hinted = [row for row in range(1)",
)
@pytest.mark.parametrize("report", [True, False])
def test_both_halves_of_a_joined_group_are_shown(run, tmp_path, report):
    """Catches a group of 2G of which only the half that failed is shown, without the hint of the other."""
    hints = [{"prompt": f"train {i} of 0?", "hint": f"look {i}"} for i in range(400)]
    (tmp_path / "hints.jsonl").write_text("\n".join(map(json.dumps, hints)))
    flags = dict(steps=4, prompts_per_step=3, hints=tmp_path / "hints.jsonl", max_refills=1, report=report)
    folder, joined = run(guide_ablations, group="join", **flags), 0
    for step in range(1, 5):
        rows = [row for row in lines(folder, "samples.jsonl") if row["step"] == step]
        guided = [row["guided"] for row in rows]
        assert guided in ([False] * 4, [False] * 4 + [True] * 4)
        joined += len(rows) == 8
        if report:
            assert all(len(row["tokens"]) and "logprob" in row for row in rows)
            assert ("hint" in rows[0]) == (len(rows) == 8)
        if "hint" in rows[0]:
            assert rows[0]["hint"] == f"look {rows[0]['index']}" in rows[0]["sampled_prompt"]
            assert {row["reward"] for row in rows[:4]} == {0.0} and any(row["reward"] for row in rows[4:])
    assert joined


# --- dev ----------------------------------------------------------------------------------------------------


@mutant(
    "dev samples of another problem",
    "plainrl/samples.py",
    "kept = [group * G + i for group",
    "kept = [group * DEV_SAMPLES + i for group",
)
@mutant(
    "dev samples under another's prompt",
    "plainrl/samples.py",
    '"samples": samples[index * each :',
    '"samples": samples[index + each :',
)
@mutant(
    "entropy at temperature 1",
    "plainrl/samples.py",
    "settings = (args.temperature, args.micro_batch_tokens)\n    _, entropies",
    "settings = (1.0, args.micro_batch_tokens)\n    _, entropies",
)
@mutant(
    "dev samples of the step before",
    "plainrl/run.py",
    '[{"step": record["step"]} | row for row in rows]',
    '[{"step": record["step"] - 1} | row for row in rows]',
)
def test_the_first_problems_of_dev_are_kept(run, toy_model, monkeypatch):
    """Catches samples under another problem's prompt, completions that the score did not count, numbers at
    another temperature, and a score whose samples are missing."""
    calls = watch(monkeypatch, samples, "dev_lines")
    flags = dict(steps=4, eval_every=3, eval_problems=10, eval_samples=5, temperature=0.7)
    folder = run(grpo, **flags)
    rows, model = lines(folder, "dev_samples.jsonl"), load_model(toy_model)[0]
    tokenizer = AutoTokenizer.from_pretrained(toy_model)
    assert [row["step"] for row in rows] == [0] * 8 + [3] * 8 + [4] * 8
    assert [row["index"] for row in rows] == 3 * list(range(8))
    scores = [record for record in records(folder) if "eval/hash/avg@5" in record]
    for number, (((dev,), *_), _) in enumerate(calls):
        for row in rows[8 * number : 8 * number + 8]:
            index = row["index"]
            assert row["prompt"] == f"dev {index} of {EVAL_SEED}?" and row["solution"] == f"so\n{index}"
            assert row["gold"] == "0" and len(row["samples"]) == 4
            for i, sample in enumerate(row["samples"], start=5 * index):
                completion, grade = dev.completions[i], dev.grades[i]
                assert sample["completion"] == dev.texts[i] and len(sample["tokens"]) == len(completion.ids)
                assert (sample["parsed"], sample["reward"]) == (grade.parsed, grade.score)
                assert sample["truncated"] == (completion.finish_reason == "length")
                length = len(completion.ids)
                given = [spread(sample[name], length) for name in ("logprob", "entropy")]
                assert given[0] == pytest.approx(completion.logprobs, abs=0.00051)
                if number == 0:  # whose model is that in the folder
                    table = distributions(model, dev.prompt_ids[i], completion.ids, 0.7)
                    assert given[1] == pytest.approx((-(table.exp() * table).sum(1)).tolist(), abs=0.00051)
        counts = [line for line in lines(folder, "groups.jsonl") if line["split"] == "dev"][number]
        assert counts["step"] == scores[number]["step"] and counts["index"] == list(range(10))
        assert sum(counts["right"]) / 50 == pytest.approx(scores[number]["eval/hash/avg@5"])
        assert counts["right"] == dev.correct() and counts["of"] == [5] * 10
        assert counts["why"].get("", 0) == sum(counts["right"]) and sum(counts["why"].values()) == 50
    assert {token for row in rows for sample in row["samples"] for token in sample["tokens"]} - {""}
    assert tokenizer.eos_token == "<|end|>"


# --- every group --------------------------------------------------------------------------------------------


@mutant(
    "groups that were trained on alone",
    "plainrl/samples.py",
    'group_counts("train", [problem.index for problem in sampled.problems], sampled)',
    'group_counts("train", [problem.index for problem in rollout.problems], rollout)',
)
@mutant(
    "lengths of right and wrong swapped",
    "plainrl/run.py",
    "lengths[bool(grade.correct)]",
    "lengths[not grade.correct]",
)
@mutant(
    "groups all right counted as all wrong",
    "plainrl/run.py",
    '"reward/frac_all_wrong": (right_of_group == 0)',
    '"reward/frac_all_wrong": (right_of_group == G)',
)
@mutant(
    "groups with one right completion counted as all right",
    "plainrl/run.py",
    '"reward/frac_all_right": (right_of_group == G)',
    '"reward/frac_all_right": (right_of_group > 0)',
)
@mutant(
    "largest tokens looked for twice",
    "plainrl/run.py",
    "self.largest if batch else {}",
    "samples.largest(batch) if batch else {}",
)
def test_every_group_is_counted(run, monkeypatch):
    """Catches groups that were dropped and are not shown, counts of another group, lengths of right and wrong
    completions mixed up, shares of other groups, and ranks that meet twice a step over the same numbers."""
    whole, searched = watch(monkeypatch, samples, "step_line"), watch(monkeypatch, samples, "largest")
    task = FunctionTask(lambda text, problem: float(sum(map(ord, problem.prompt + text)) % 5 < 2))
    task.problem = lambda split, index, seed: Problem(f"{split} {index}", "0", index=3 * index)
    folder = run(dapo, task=task, steps=4, prompts_per_step=4, group_size=2, max_refills=2, overlong_buffer=4)
    found = [line for line in lines(folder, "groups.jsonl") if line["split"] == "train"]
    logged = [record for record in records(folder) if "reward/mean" in record]
    assert [line["step"] for line in found] == [1, 2, 3, 4]
    dropped, ends = 0, set()
    for line, record, ((sampled, rollout, *_), _) in zip(found, logged, whole, strict=True):
        groups = [
            [grade.correct for grade in sampled.grades[i : i + 2]] for i in range(0, len(sampled.grades), 2)
        ]
        assert line["right"] == list(map(sum, groups)) and line["of"] == [2] * len(groups)
        assert line["index"] == [problem.index for problem in sampled.problems]
        right = sum(map(sum, groups))
        assert line["why"] == {"": right, "wrong": 2 * len(groups) - right}
        dropped += len(sampled.problems) - len(rollout.problems)
        shares = [sum(sum(group) == right for group in groups) / len(groups) for right in (0, 2)]
        assert [record["reward/frac_all_wrong"], record["reward/frac_all_right"]] == pytest.approx(shares)
        ends |= {share > 0 for share in shares}
        for name, wanted in (("rollout/len_right", True), ("rollout/len_wrong", False)):
            sizes = [
                len(completion.ids)
                for completion, grade in zip(sampled.completions, sampled.grades)
                if grade.correct == wanted
            ]
            assert record[name] == pytest.approx(sum(sizes) / len(sizes))
        assert record["rollout/gap_max"] >= record["rollout/logprob_gap"] > 0
        assert line["largest_gap"]["gap"] == pytest.approx(record["rollout/gap_max"], rel=0.006)
        assert line["largest_ratio"]["ratio"] == pytest.approx(record["policy/ratio_max"], rel=0.006)
    assert dropped and True in ends and len(searched) == 4


def test_nothing_right_has_no_length(run, words_sampler):
    """Catches a mean of no completion, which is no number."""
    folder = run(
        grpo,
        task=FunctionTask(lambda text, problem: 0.0),
        steps=1,
        sampler=words_sampler,
        max_logprob_gap=math.inf,
    )
    record = records(folder)[1]
    assert record["rollout/len_right"] is None and record["rollout/len_wrong"] == 3
    assert record["reward/frac_all_wrong"] == 1 and record["reward/frac_all_right"] == 0


@pytest.fixture
def words_sampler(toy_model):
    tokenizer = AutoTokenizer.from_pretrained(toy_model)
    ids = [*tokenizer.encode("a b")[:2], tokenizer.eos_token_id]
    sampler = FakeSampler(lambda prompt, sample, seed: (ids, "stop"))
    sampler.shares_weights = True
    return sampler


# --- the flag, a resumed run, hostile text, time ------------------------------------------------------------


def equal_weights(one: Path, other: Path) -> bool:
    return (one / "last/model.safetensors").read_bytes() == (other / "last/model.safetensors").read_bytes()


@mutant(
    "the report's files in spite of the flag",
    "plainrl/run.py",
    "logged=self.args.report)",
    "logged=True)",
)
def test_without_a_report(run):
    """Catches a flag that changes the run, and one that leaves files or arrays in its folder."""
    with_one, without = run(grpo, "with"), run(grpo, "without", report=False)
    assert records(with_one) == records(without) and equal_weights(with_one, without)
    assert {path.name for path in with_one.iterdir()} - {path.name for path in without.iterdir()} >= {
        "dev_samples.jsonl", "groups.jsonl"
    }  # fmt: skip
    plain = {"step", "prompt", "completion", "gold", "parsed", "reward", "why", "advantage"}
    for row, whole in zip(lines(without, "samples.jsonl"), lines(with_one, "samples.jsonl"), strict=True):
        assert row.keys() == plain and all(whole[name] == value for name, value in row.items())


@mutant(
    "resume keeps the lines after its checkpoint",
    "plainrl/run.py",
    "            for name in LOGS:\n",
    '            for name in ("metrics.jsonl", "samples.jsonl"):\n',
)
@pytest.mark.parametrize("save_every, lost", [(2, 1), (100, 3)], ids=["checkpoint", "from the start"])
def test_a_resumed_run_leaves_the_same_files(run, save_every, lost):
    """Catches lines that a resumed run writes twice, or that it loses."""

    class Breaking(IndexedTask):
        def problem(self, split, index, seed):
            if (split, index) == ("train", 6):  # in the fourth step
                raise RuntimeError("the disk is full")
            return super().problem(split, index, seed)

    flags = dict(eval_every=1, save_every=save_every)
    with pytest.raises(RuntimeError, match="disk is full"):
        run(grpo, "broken", Breaking(), **flags)
    ours, whole = run(grpo, "broken", resume=True, **flags), run(grpo, "whole", **flags)
    for name in LOGS[1:]:
        assert (ours / name).read_bytes() == (whole / name).read_bytes(), name
    assert [line["step"] for line in lines(whole, "groups.jsonl")] == [
        0,
        *(s for s in range(1, 6) for _ in "12"),
    ]


def test_hostile_text_stays_text(tmp_path):
    """Catches a completion that begins a line of its own, or steers the terminal of one who reads the
    file."""
    text = "</script>\x1b[2J\x00\r\n\u2028\u202e\ud800{}"
    samples.append(tmp_path / "file", [{"step": 1, "tokens": [text]}, {"step": 2}])
    written = (tmp_path / "file").read_bytes()
    assert written.count(b"\n") == 2 and all(32 <= byte < 127 or byte == 10 for byte in written)
    assert json.loads(written.splitlines()[0]) == {"step": 1, "tokens": [text]}


@mutant(
    "seconds counted twice on the screen",
    "plainrl/run.py",
    'for name in ("rollout", "train", "sync"))',
    'for name in ("rollout", "train", "sync", "eval", "total"))',
)
@mutant(
    "time of the scores left out", "plainrl/run.py", 'self.times["eval"] = time.monotonic() - began', "pass"
)
def test_time_of_the_scores_and_in_all(run, capsys):
    """Catches a step's time without its scores, scores of one step in the next one's time, and a column that
    counts seconds twice."""
    folder = run(grpo, steps=3, eval_every=2)
    found = [record for record in lines(folder, "metrics.jsonl") if "time/total" in record]
    assert [record["step"] for record in found] == [1, 2, 3]
    assert [record["time/eval"] > 0 for record in found] == [False, True, True]
    for record in found:
        parts = [record[f"time/{name}"] for name in ("rollout", "train", "sync", "eval")]
        assert record["time/total"] >= sum(parts) > 0
    run = Run.__new__(Run)
    run.args, run.lines, run.first_began, run.first_step = SimpleNamespace(steps=9), 1, 0.0, 0
    run.sampled = SimpleNamespace(grades=[])
    times = {"time/rollout": 1.0, "time/train": 2.0, "time/sync": 0.5, "time/eval": 40.0, "time/total": 44.0}
    run.show({"step": 1, "optim/lr": 1e-3, "reward/mean": 0.5} | times)
    assert " 3.5 " in capsys.readouterr().out.splitlines()[-1]


# --- which problem it is ------------------------------------------------------------------------------------


@mutant(
    "index of the draw, not of the problem",
    "plainrl/sources.py",
    "replace(problems[position], index=position)",
    "replace(problems[position], index=index)",
)
@mutant(
    "the same index at every horizon",
    "plainrl/horizons.py",
    "index=problem.index * len(self.tasks) + position",
    "index=problem.index",
)
def test_a_problem_knows_its_index():
    """Catches an index that is another one in the next epoch, one that problems of two horizons share, and
    two equal problems that differ by it."""
    problems = [Problem(f"q{i}", str(i)) for i in range(5)]
    task = ListTask("five", {"train": problems, "dev": problems[:3]})
    for index in range(15):
        found = task.problem("train", index, 7)
        assert found == problems[found.index] and hash(found) == hash(problems[found.index])
    assert [task.problem("dev", index, 0).index for index in range(3)] == [0, 1, 2]
    assert problems[0].index is None

    args = SimpleNamespace(max_horizon=3, eval_problems=6, test_problems=3, task="chain")
    every = EveryHorizon(load_task("chain"), args)
    assert [every.problem("dev", index, EVAL_SEED).index for index in range(6)] == list(range(6))
    drawn = [every.training_problems([h] * 4, list(range(4)), 0) for h in (1, 2, 3)]
    assert Counter(problem.index for each in drawn for problem in each) == Counter(range(12))
    assert EveryHorizon(HashTask(), args).problem("dev", 4, 0).index is None
