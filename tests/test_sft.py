"""sft.py, plainrl/rows.py and plainrl/row_order.py: the loss, its gradient, the schedule, the order of
rows, what a file may hold, the end token, and a run from beginning to end."""

import functools
import itertools
import json
import math
import os
import signal
import sys
import time
from pathlib import Path

import kit
import pytest
import torch
import toys
import trl_driver
from distributed_driver import as_rank, free_port
from mutants import mutant
from random_model import EOS, Float64, distance, gradient, random_model
from transformers import AutoTokenizer

import sft
from plainrl import models, report_data, row_order, rows, run
from plainrl.rows import Row
from plainrl.tasks import NoTask, Problem

CHAT = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
CHAT += "{% if add_generation_prompt %}<|assistant|>{% endif %}"


# --- denominators -------------------------------------------------------------------------------------------

LOSSES = [[1.0, 2.0, 3.0], [4.0, 9.0, 9.0]]  # of two rows with three tokens and one
MASK = torch.tensor([[True, True, True], [True, False, False]])


@mutant("sft: tokens of padding in the mean", "sft.py", "mask / mask.sum()", "mask / mask.numel()")
@mutant("sft: rows of one weight a token", "sft.py", "mask / lengths.clamp(min=1) / (l", "mask / (l")
@mutant("sft: sum over rows", "sft.py", " / (lengths > 0).sum().clamp(min=1)", "")
@pytest.mark.parametrize("name, expected", [("token_mean", 10 / 4), ("sequence_mean", (2 + 4) / 2)])
def test_means_by_hand(name, expected):
    """Catches a denominator of the micro-batch, of the padded width or of the other kind."""
    weights = sft.AGGREGATIONS[name](MASK)
    assert (weights * torch.tensor(LOSSES)).sum().item() == pytest.approx(expected, abs=1e-6)


# --- the schedule -------------------------------------------------------------------------------------------


@mutant("sft: warm-up from 0", "sft.py", "return step / warmup", "return (step - 1) / warmup")
@mutant("sft: cosine that rises", "sft.py", "(1 + math.cos(", "(1 - math.cos(")
@mutant("sft: fall that counts the warm-up", "sft.py", "done = (step - warmup)", "done = step")
@mutant("sft: fall to 0", "sft.py", "final_share + (1 - final_share) * left", "left")
@pytest.mark.parametrize(
    "schedule, step, expected",
    [
        ("cosine", 1, 0.1),
        ("cosine", 10, 1.0),
        ("cosine", 30, 0.894720),
        ("cosine", 55, 0.55),
        ("cosine", 100, 0.1),
        ("linear", 30, 0.8),
        ("linear", 100, 0.1),
        ("constant", 5, 0.5),
        ("constant", 100, 1.0),
    ],
)
def test_schedule_by_hand(schedule, step, expected):
    """Catches a warm-up or a fall that is off by a step: S = 100, W = 10, f = 0.1, worked out on paper."""
    assert sft.lr_share(step, 100, schedule, 0.1, 0.1) == pytest.approx(expected, abs=1e-6)


def test_schedule_without_warm_up():
    """Catches a division by zero where there is no warm-up, or nothing but one."""
    assert sft.lr_share(1, 2, "linear", 0.0, 0.0) == 0.5
    assert sft.lr_share(1, 1, "cosine", 0.03, 0.1) == pytest.approx(0.1)
    assert sft.lr_share(4, 4, "cosine", 1.0, 0.1) == 1.0


# --- the order of rows --------------------------------------------------------------------------------------

LENGTHS = tuple(torch.randint(5, 400, (150,), generator=torch.Generator().manual_seed(0)).tolist())


@mutant("sft: every epoch in the same order", "plainrl/row_order.py", "{seed}/epoch {epoch}", "{seed}/epoch")
@mutant("sft: order without the seed", "plainrl/row_order.py", 'f"{seed}/epoch', 'f"epoch')
@mutant(
    "sft: an epoch that is passed over",
    "plainrl/row_order.py",
    "epochs = [], itertools.count()",
    "epochs = [], itertools.count(1)",
)
@mutant(
    "sft: rows of the step before",
    "plainrl/row_order.py",
    "order[first : first + rows_per_step]",
    "order[max(0, first - 1) : first + rows_per_step]",
)
@pytest.mark.parametrize("count, rows_per_step", [(150, 4), (150, 5), (150, 7), (3, 8), (8, 8)])
def test_each_row_is_learned_once_an_epoch(count, rows_per_step):
    """Catches rows that are skipped or replayed at the end of an epoch, and a seed without effect."""
    lengths = LENGTHS[:count]
    steps = math.ceil(3 * count / rows_per_step)
    learned = [row([number], [1] * length) for number, length in enumerate(lengths)]
    found = row_order.rows_of_steps(learned, None, rows_per_step, 1, steps)
    assert [len(rows_of_step) for rows_of_step in found] == [rows_per_step] * steps
    stream = [each.prompt_ids[0] for rows_of_step in found for each in rows_of_step]
    assert stream[:count] == row_order.order_of_epoch([1 + length for length in lengths], rows_per_step, 1, 0)
    epochs = [stream[first : first + count] for first in range(0, 3 * count, count)]
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
    if count > 8:
        assert epochs[0] != epochs[1] and epochs[0] != row_order.order_of_epoch(lengths, rows_per_step, 2, 0)


@mutant(
    "sft: rows as they come",
    "plainrl/row_order.py",
    "    window = sorted(window, key=lambda row: lengths[row])\n",
    "",
)
@mutant("sft: short rows first", "plainrl/row_order.py", "    rng.shuffle(steps)\n", "")
@mutant("sft: windows of all rows", "plainrl/row_order.py", "WINDOW = 16", "WINDOW = 10**6")
def test_rows_of_a_step_have_about_one_length():
    """Catches steps that mix all lengths, that come in the order of their lengths, and one window for all."""
    lengths, N = tuple(range(640)), 4
    order = row_order.order_of_epoch(lengths, N, 0, 0)
    steps = [order[first : first + N] for first in range(0, 640, N)]
    spread = [max(step) - min(step) for step in steps]
    assert 10 < sum(spread) / len(spread) < 60  # of 640 lengths; in one window of all rows it would be 3
    first = [min(step) for step in steps[:16]]
    assert first != sorted(first)


# --- --mixture ----------------------------------------------------------------------------------------------

SOURCES = ("a",) * 50 + ("b",) * 20 + ("c",) * 30


@mutant(
    "sft: sources without their shares",
    "plainrl/row_order.py",
    "(list(shares), list(shares.values()), k",
    "(list(shares), k",
)
@mutant(
    "sft: rows of a source by chance",
    "plainrl/row_order.py",
    "next(streams[source])",
    "rng.choice(rows_of[source])",
)
@mutant("sft: sources without the seed", "plainrl/row_order.py", 'f"{seed}/mixture"', '"mixture"')
@mutant("sft: rows of a source without the seed", "plainrl/row_order.py", 'f"{seed}/{source}"', "source")
@mutant(
    "sft: a mixture as it comes",
    "plainrl/row_order.py",
    "steps_of_one_length(window, lengths, rows_per_step, rng)\n    return order\n",
    "window\n    return order\n",
)
def test_each_draw_of_a_mixture_draws_its_source_first():
    """Catches shares of rows in place of draws, a source that is drawn without a share, rows of a source
    that are passed over or repeated before all have had their turn, and a seed without effect."""
    shares, N, lengths = {"a": 0.2, "b": 0.8, "c": 0.0}, 4, tuple(range(100))
    order = row_order.order_of_mixture(SOURCES, lengths, shares, N, 0, 500)
    assert len(order) == 32 * 64  # whole windows of 16 steps of 4 rows
    counts = [0] * 100
    for first in range(0, len(order), 64):
        window = order[first : first + 64]
        for row in window:
            counts[row] += 1
        for rows_of_source in (counts[:50], counts[50:70]):
            assert max(rows_of_source) - min(rows_of_source) <= 1
        spread = [max(window[i : i + N]) - min(window[i : i + N]) for i in range(0, 64, N)]
        assert sum(spread) / len(spread) < 12  # of 70 lengths; some 40 where rows come as they are drawn
    assert sum(counts[70:]) == 0
    assert abs(sum(counts[:50]) / 2048 - 0.2) < 0.03  # three deviations: sqrt(0.2 x 0.8 / 2048) = 0.009
    other = row_order.order_of_mixture(SOURCES, lengths, shares, N, 1, 500)
    as_sources = lambda rows: [SOURCES[row] for row in rows]  # noqa: E731
    assert sum(map(str.__ne__, as_sources(order), as_sources(other))) > 300
    one_source = [
        row_order.order_of_mixture(("a",) * 100, (1,) * 100, {"a": 1.0}, N, seed, 16) for seed in (0, 1)
    ]
    assert set(one_source[0]) != set(one_source[1])  # the first 64 of its 100 rows


@mutant(
    "sft: each epoch of a source in one order", "plainrl/row_order.py", "{key}/epoch {epoch}", "{key}/epoch"
)
def test_a_source_is_an_endless_stream_of_epochs():
    """Catches a row that is missing from an epoch, epochs that are all alike, and a stream that ends."""
    stream = list(itertools.islice(row_order.epochs_of_source(list(range(10)), "0/a"), 30))
    epochs = [stream[first : first + 10] for first in (0, 10, 20)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 3


def test_more_steps_of_a_mixture_begin_with_the_same_rows():
    """Catches a run that is continued with more steps and meets other rows, or some twice."""
    arguments = (SOURCES, LENGTHS[:100], {"a": 0.5, "b": 0.5}, 3, 0)
    longer = row_order.order_of_mixture(*arguments, 100)
    for steps in (1, 15, 16, 17, 40):
        shorter = row_order.order_of_mixture(*arguments, steps)
        assert 3 * steps <= len(shorter) and shorter == longer[: len(shorter)]


def of_sources(*sources) -> list[Row]:
    return [row([1], [2], source=source, place=f"x, line {n}") for n, source in enumerate(sources, 1)]


@mutant("sft: shares as they stand", "plainrl/rows.py", "source: share / total for", "source: share for")
def test_shares_need_not_sum_to_one(tmp_path, capsys):
    """Catches shares that are taken as they are, a source without a share that is not said, and rows that are
    asked of a source without one."""
    path = written(tmp_path, {"a": 3, "b": 1.0, "c": 0, "gone": 0}, name="w.json")
    shares = rows.read_mixture(path, of_sources("a", "a", "a", "b", "c", "d"))
    assert shares == {"a": 0.75, "b": 0.25}
    screen = capsys.readouterr().out
    assert "--mixture: the shares sum to 4 and are divided by that" in screen
    assert "--mixture: a: 0.750 of the draws, 1.50 passes an epoch over its 3 rows" in screen
    assert "--mixture: d: 0.000 of the draws, 0.00 passes an epoch over its 1 rows" in screen


@pytest.mark.parametrize(
    "text, said",
    [
        ('{"a": 1, "e": 1}', "no row to learn has the source 'e'; there are 'a', 'b'"),
        ('{"a": -0.5}', "the share of 'a' is '-0.5'; it must be a number from 0 to 1,000,000,000"),
        ('{"a": NaN}', "the share of 'a' is 'nan'; it must be a number"),
        ('{"a": 1e999}', "the share of 'a' is 'inf'; it must be a number"),
        ('{"a": true}', "the share of 'a' is 'True'; it must be a number"),
        ('{"a": "half"}', "the share of 'a' is 'half'; it must be a number"),
        ('{"a": 0, "b": 0.0}', "no share is above 0, so that there is nothing to learn; give one"),
        ("{}", "no share is above 0"),
        ('["a"]', "must hold one JSON object"),
        ('{"a": ', "cannot be read .Expecting value.*; give a JSON file with"),
    ],
)
def test_a_mixture_that_cannot_work_is_named(tmp_path, text, said):
    """Catches a source that is misspelt and never drawn, and shares that are no probabilities."""
    path = written(tmp_path, text, name="w.json")
    with pytest.raises(ValueError, match=f"^--mixture .*w.json: {said}"):
        rows.read_mixture(path, of_sources("a", "b"))


def test_a_mixture_needs_the_source_of_every_row(tmp_path):
    """Catches rows that are never drawn because nobody knows where they are from, and a missing file."""
    path = written(tmp_path, {"a": 1}, name="w.json")
    with pytest.raises(ValueError, match="w.json: x, line 2 has no field 'source'; every row to learn needs"):
        rows.read_mixture(path, of_sources("a", ""))
    with pytest.raises(ValueError, match="--mixture .*no.json: cannot be read .* No such file"):
        rows.read_mixture(tmp_path / "no.json", of_sources("a"))


# --- loss and gradient --------------------------------------------------------------------------------------


def row(prompt, completion, **more) -> Row:
    return Row((), "", prompt_ids=tuple(prompt), completion_ids=tuple(completion), **more)


@functools.cache
def some_rows() -> list[Row]:
    """Rows of random lengths, two with the same prompt, with ids 0 and EOS as ordinary tokens inside."""
    generator = torch.Generator().manual_seed(3)
    draw = lambda count: torch.randint(0, 64, (count,), generator=generator).tolist()  # noqa: E731
    found = [row(draw(4 + i), [*draw(1 + 3 * i), EOS]) for i in range(5)]
    return [*found, row(found[0].prompt_ids, [*draw(4), EOS, EOS]), row([7], [9])]


def by_loop(model, learned: list[Row], aggregation: str) -> torch.Tensor:
    """The loss of plain forward passes, one row each, with torch's own cross-entropy."""
    losses = []
    for each in learned:
        ids = torch.tensor([[*each.prompt_ids, *each.completion_ids]])
        logits = model(input_ids=ids).logits[0, len(each.prompt_ids) - 1 : -1]
        losses.append(
            torch.nn.functional.cross_entropy(logits, ids[0, len(each.prompt_ids) :], reduction="none")
        )
    if aggregation == "token_mean":
        return torch.cat(losses).mean()
    return torch.stack([loss.mean() for loss in losses]).mean()


def update(model, learned, **flags):
    model.zero_grad()
    args = sft.Args(**{"micro_batch_tokens": 10**6} | flags)
    sums = sft.accumulate_gradients(model, rows.batch_of(learned, "cpu"), args)
    return sums, gradient(model)


@mutant("sft: sign of the loss", "sft.py", "return -logprobs", "return logprobs")
@mutant(
    "sft: weights of the micro-batch",
    "sft.py",
    '* part["weights"]).sum()',
    '* part["completion_mask"]).mean()',
)
@mutant("sft: another temperature", "sft.py", "temperature = 1.0", "temperature = 0.7")
@mutant("sft: the other mean", "sft.py", "AGGREGATIONS[args.aggregation]", 'AGGREGATIONS["token_mean"]')
@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean"])
def test_loss_and_gradient_of_plain_loops(aggregation):
    """Catches a wrong sign, shift, mask, denominator or temperature: torch's cross-entropy, a row at a
    time."""
    with kit.numbers(torch.float64):
        model = random_model()
        sums, ours = update(model, some_rows(), aggregation=aggregation)
        model.zero_grad()
        loss = by_loop(model, some_rows(), aggregation)
        loss.backward()
    assert sums["total_loss"] == pytest.approx(loss.item(), rel=1e-12)
    assert distance(ours, gradient(model)) <= 1e-10


# What tests/trl_driver.py prints, made with trl 1.16.0, transformers 5.19.0 and torch 2.13.0 on a CPU.
TRL = {
    "loss": 7.742672765058923,
    "norm": 7.318365191045627,
    "along": [4.72282732995305, -4.104078193648419, 2.513181534735161],
    "lengths": [32, 38],
    "learned": 24,
}


def test_loss_and_gradient_are_those_of_trl(monkeypatch):
    """Catches another template, mask, end, shift or denominator than TRL's SFTTrainer has for the same two
    rows, in float64."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)  # as in trl_driver.py
    tokenizer = AutoTokenizer.from_pretrained(trl_driver.TOKENIZER)
    pairs = [asked(prompt, completion) for prompt, completion in trl_driver.PAIRS]
    learned = [rows.encode(each, tokenizer, tokenizer.eos_token_id, None) for each in pairs]
    assert sorted(each.length for each in learned) == TRL["lengths"]
    with kit.numbers(torch.float64):
        sums, ours = update(random_model(vocab=512), learned)
    assert sums["tokens"] == TRL["learned"]
    found = trl_driver.numbers_of(sums["total_loss"], ours)
    assert found["loss"] == pytest.approx(TRL["loss"], rel=1e-10)
    assert [found["norm"], *found["along"]] == pytest.approx([TRL["norm"], *TRL["along"]], rel=1e-8)


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean"])
def test_split_order_and_padding_change_nothing(aggregation):
    """Catches means of micro-batch means, rows that are mixed up, padding that is counted, and what a shared
    prompt would change."""
    learned = some_rows()
    with kit.numbers(torch.float64):
        model = random_model()
        sums, ours = update(model, learned, aggregation=aggregation)
        others = [
            update(model, learned, aggregation=aggregation, micro_batch_tokens=1),
            update(model, learned, aggregation=aggregation, micro_batch_tokens=40),
            update(model, learned[::-1], aggregation=aggregation),
        ]
    for their_sums, theirs in others:
        assert distance(theirs, ours) <= 1e-10
        for name in sums:
            assert their_sums[name] == pytest.approx(sums[name], rel=1e-10)


@mutant("sft: accuracy of the unlikeliest", "sft.py", "logits.argmax(dim=-1)", "logits.argmin(dim=-1)")
def test_accuracy_and_entropy_by_loops():
    """Catches metrics of another token, or over the padding."""
    with kit.numbers(torch.float64):
        model = random_model()
        likeliest = kit.distributions(model, [5, 6], [0], 1.0)[0].argmax().item()
        learned = [*some_rows(), row([5, 6], [likeliest])]
        sums, _ = update(model, learned)
        right = entropy = nll = 0.0
        for each in learned:
            tables = kit.distributions(model, list(each.prompt_ids), list(each.completion_ids), 1.0)
            for table, token in zip(tables, each.completion_ids):
                right += table.argmax().item() == token
                entropy -= (table.exp() * table).sum().item()
                nll -= table[token].item()
    assert right and sums["tokens"] == sum(len(each.completion_ids) for each in learned)
    assert [sums["right"], sums["entropy"], sums["nll"]] == pytest.approx([right, entropy, nll], rel=1e-9)


def test_learning_all_is_the_loss_of_every_token_but_the_first():
    """Catches --loss-on all that leaves the prompt out or learns a first token that nothing predicts."""
    tokenizer = Letters()
    whole = Row((user("ab"),), "cd", is_text=True)
    learned = rows.encode(whole, tokenizer, EOS, None, "all")
    assert learned.prompt_ids == (10,) and learned.completion_ids == (11, 12, 13, EOS)


# --- tokens of a row ----------------------------------------------------------------------------------------


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict:
    return {"role": "assistant", "content": text}


class Letters:
    """A tokenizer without a template: a letter is a token, and a text begins with BOS where it may."""

    chat_template, eos_token_id, bos = None, EOS, []

    def encode(self, text, add_special_tokens=True):
        return self.bos * add_special_tokens + [ord(letter) - 87 for letter in text]

    def decode(self, ids, **_):
        return "".join(chr(id + 87) for id in ids)


@pytest.fixture(scope="module")
def tokenizer(toy_model):
    return AutoTokenizer.from_pretrained(toy_model)


@mutant("sft: no end to learn", "plainrl/rows.py", "[end_id] * row.end", "[]")
@mutant("sft: an end where none should be", "plainrl/rows.py", "[end_id] * row.end", "[end_id]")
@mutant("sft: two ends", "plainrl/rows.py", "[end_id] * row.end", "[end_id] * 2 * row.end")
def test_the_end_is_learned_once(tokenizer):
    """Catches a model that never learns to stop, also where pad is the end token, two ends, and an end after
    what is only a beginning: then the loss of an end carries no gradient."""
    end = tokenizer.eos_token_id
    tokenizer.pad_token_id = end
    whole, begun = (
        Row((user("1+1?"),), "2", is_text=True, end=end_is_there) for end_is_there in (True, False)
    )
    learned = [rows.encode(each, tokenizer, end, None) for each in (whole, begun)]
    assert [each.completion_ids.count(end) for each in learned] == [1, 0]
    assert learned[0].completion_ids[-1] == end
    assert learned[0].completion_ids[:-1] == learned[1].completion_ids
    batch = rows.batch_of(learned, "cpu")
    assert batch["completion_mask"].sum(dim=1).tolist() == [len(each.completion_ids) for each in learned]


@mutant(
    "sft: the tokenizer's end", "plainrl/rows.py", "        if found := [id", "        if found := 0 and [id"
)
@mutant(
    "sft: an end that no sampler stops at",
    "plainrl/rows.py",
    "for id in after if id in stops]",
    "for id in after]",
)
def test_the_end_is_where_the_sampler_stops(tokenizer, toy_model):
    """Catches the tokenizer's end of text where turns end with another token, and a token behind the turn
    that nothing stops at."""
    model = models.load_model(toy_model)[0]
    ids = tokenizer.convert_tokens_to_ids
    model.generation_config.eos_token_id = None
    assert rows.end_token(model, tokenizer) == ids("<|end|>")
    turn_ends_with = "{% for m in messages %}{{ m.content }}<|user|>{% endfor %}"
    tokenizer.chat_template, before = turn_ends_with, tokenizer.chat_template
    try:
        assert rows.end_token(model, tokenizer) == ids("<|end|>")
        model.generation_config.eos_token_id = [ids("<|end|>"), ids("<|user|>")]
        assert rows.end_token(model, tokenizer) == ids("<|user|>")
        tokenizer.chat_template = None
        assert rows.end_token(model, tokenizer) == ids("<|end|>")
    finally:
        tokenizer.chat_template = before


@mutant(
    "sft: two beginnings",
    "plainrl/rows.py",
    "completion_ids = tokenizer.encode(row.completion, add_special_tokens=False)",
    "completion_ids = tokenizer.encode(row.completion)",
)
def test_a_row_has_one_beginning():
    """Catches a second BOS between prompt and completion."""
    tokenizer = Letters()
    tokenizer.bos = [2]
    learned = rows.encode(Row((user("ab"),), "cd", is_text=True), tokenizer, EOS, None)
    assert (learned.prompt_ids, learned.completion_ids) == ((2, 10, 11), (12, 13, EOS))


def test_a_row_without_a_token_to_learn_is_named():
    """Catches a row that trains on nothing: its loss would be 0/0."""
    with pytest.raises(ValueError, match="x, line 3: its completion has no token"):
        rows.encode(Row((user("ab"),), "", is_text=True, place="x, line 3"), Letters(), EOS, None)


def test_prompts_are_those_of_the_sampler(tokenizer):
    """Catches a prompt that sampling would write with other tokens, and a system turn that is forgotten."""
    from plainrl.rollout import encode_prompt

    for system in (None, "Be short."):
        plain = rows.encode(Row((user("2?"),), "2", is_text=True), tokenizer, EOS, system)
        turns = rows.encode(Row((user("2?"),), "2"), tokenizer, EOS, system)
        assert list(plain.prompt_ids) == list(turns.prompt_ids) == encode_prompt(tokenizer, "2?", system)


def test_a_conversation_is_a_row_for_each_answer(tokenizer):
    """Catches answers of the user that are learned, and a prompt that is not all that came before."""
    entry = {"messages": [user("a"), assistant("b"), user("c"), assistant("d")], "source": "s"}
    found = rows.rows_of(entry, "x, line 1")
    assert [each.completion for each in found] == ["b", "d"]
    assert [len(each.turns) for each in found] == [1, 3] and {each.source for each in found} == {"s"}
    learned = rows.encode(found[1], tokenizer, tokenizer.eos_token_id, None)
    assert tokenizer.decode(learned.prompt_ids) == "<|user|>a<|assistant|>b<|end|><|user|>c<|assistant|>"
    assert (
        rows.boundary_note(
            [rows.encode(each, tokenizer, tokenizer.eos_token_id, None) for each in found], tokenizer, None
        )
        is None
    )


def test_a_template_that_writes_something_else_is_said(tokenizer):
    """Catches tags that a template puts between prompt and answer, and nobody learns of."""
    before = tokenizer.chat_template
    tokenizer.chat_template = before.replace(
        "message['content']", "('! ' if message.role == 'assistant' else '') + message['content']"
    )
    try:
        learned = rows.encode(
            Row((user("a"),), "b", place="x, line 7"), tokenizer, tokenizer.eos_token_id, None
        )
        note = rows.boundary_note([learned], tokenizer, None)
    finally:
        tokenizer.chat_template = before
    assert note.startswith("1 of the first 1 rows") and "x, line 7" in note and "there '" in note


# --- files --------------------------------------------------------------------------------------------------


def written(folder: Path, *lines, name: str = "rows.jsonl") -> Path:
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (folder / name).write_text(text + "\n")
    return folder / name


GOOD = {"prompt": "2?", "completion": "2"}


@pytest.mark.parametrize(
    "entry, prompt, completion",
    [
        (GOOD, "2?", "2"),
        ({"Problem": "2?", "solution": "2 ", "answer": 2}, "2?", "2 "),
        ({"prompt": [user("2?")], "completion": [assistant("2")]}, "2?", "2"),
        ({"conversations": [{"from": "human", "value": "2?"}, {"from": "gpt", "value": "2"}]}, "2?", "2"),
        ({"prompt": "p", "messages": [user("2?"), assistant("2")]}, "2?", "2"),
    ],
)
def test_rows_as_people_have_them(tmp_path, entry, prompt, completion):
    """Catches a field under another usual name, and turns that are not understood."""
    (found,) = rows.read_rows((written(tmp_path, entry),))
    assert (found.first_prompt, found.completion, found.end) == (prompt, completion, True)


def test_tables_and_several_files(tmp_path):
    """Catches a CSV file whose header is a row or whose `end` is a word, and a second file that is
    forgotten."""
    table = written(tmp_path, "prompt,completion,end", '"1, 2?",3,false', "4?,5,", name="rows.csv")
    array = written(tmp_path, json.dumps([GOOD, GOOD | {"end": False}]), name="rows.json")
    found = rows.read_rows((table, array))
    assert [(each.first_prompt, each.end) for each in found] == [
        ("1, 2?", False),
        ("4?", True),
        ("2?", True),
        ("2?", False),
    ]


@pytest.mark.parametrize(
    "bad, said",
    [
        ({"prompt": "2?"}, "line 2: has no field completion .or solution., nor messages; there are 'prompt'"),
        ({"prompt": "2?", "completion": " "}, "line 2: field 'completion' is missing or empty"),
        ({"prompt": "", "completion": "2"}, "line 2: field 'prompt' is missing or empty"),
        ({"prompt": None, "completion": "2"}, "line 2: field 'prompt' is missing or empty"),
        ({"prompt": "2?", "completion": 2}, "line 2: field 'completion' .* must be a text"),
        ({"messages": [user("2?")]}, "line 2: field 'messages' has no turn of the assistant"),
        ({"messages": [user("2?"), assistant("")]}, "line 2: field 'messages': turn 2 has no text to learn"),
        ({"messages": ["2?"]}, "line 2: field 'messages' must be a list of turns with role and content"),
        ({"prompt": [user("1"), assistant("2")], "completion": "2"}, "line 2: field 'prompt' must end with"),
        (GOOD | {"end": "perhaps"}, "line 2: field 'end' is 'perhaps'; it must be true or false"),
        (GOOD | {"split": "mine"}, "line 2: field 'split' is 'mine'; it must be train, dev"),
        ("{broken", "line 2: not valid JSON"),
        ({"messages": [user("\ud800?"), assistant("2")]}, "line 2: half of a character"),
    ],
)
def test_a_row_that_cannot_be_learned_names_line_and_field(tmp_path, bad, said):
    """Catches a traceback, a row that is passed over, and an error nobody can find in the file."""
    with pytest.raises(ValueError, match=f"rows.jsonl, {said}"):
        rows.read_rows((written(tmp_path, GOOD, bad),))


def test_a_file_without_rows_is_refused(tmp_path):
    """Catches a run on nothing."""
    with pytest.raises(ValueError, match="--data .*rows.jsonl: holds no row"):
        rows.read_rows((written(tmp_path, ""),))
    with pytest.raises(ValueError, match="--data .*: cannot read the file"):
        rows.read_rows((tmp_path / "missing.jsonl",))


# --- long rows, held-out rows -------------------------------------------------------------------------------


@mutant(
    "sft: length of the completion alone",
    "plainrl/rows.py",
    "len(self.prompt_ids) + len",
    "0 * len(self.prompt_ids) + len",
)
@mutant(
    "sft: rows that just fit are dropped",
    "plainrl/rows.py",
    "if row.length > limit]",
    "if row.length >= limit]",
)
def test_long_rows_are_left_out_and_said_or_end_the_run(capsys):
    """Catches a row that is cut, that goes without a word, that counts without its prompt, and a run on
    nothing."""
    learned = [row([1] * 3, [2] * n, place=f"line {n}") for n in (2, 3, 4)]
    assert rows.drop_long(learned, 7, "fail") is learned
    assert rows.drop_long(learned, 6, "drop") == learned[:2]
    assert (
        "1 of 3 rows have more than 6 tokens, the first is line 4 with 3 of prompt and 4"
        in capsys.readouterr().out
    )
    with pytest.raises(ValueError, match="--over-length fail: 1 of 3 rows .* line 4"):
        rows.drop_long(learned, 6, "fail")
    with pytest.raises(ValueError, match="--max-length: no row is left"):
        rows.drop_long(learned, 3, "drop")


def asked(prompt: str, completion: str = "2", **more) -> Row:
    return Row((user(prompt),), completion, is_text=True, **more)


@mutant(
    "sft: held out by prompt and answer",
    "plainrl/rows.py",
    "row.first_prompt for row in rows)",
    "row.first_prompt + row.completion for row in rows)",
)
@mutant(
    "sft: a conversation on both sides",
    "plainrl/rows.py",
    '            if turn["role"] == "assistant":\n                break\n',
    "",
)
def test_equal_prompts_stay_on_one_side():
    """Catches an answer that is learned and measured: of the same prompt, or of the same conversation."""
    found = [asked(f"{i % 100}?", str(i)) for i in range(300)]
    chat = [[user(f"{i}?"), assistant("a"), user("b"), assistant("c")] for i in range(100)]
    found += [each for turns in chat for each in rows.rows_of({"messages": turns}, "x")]
    learned, held = rows.hold_out(found, 0.2)
    assert 50 < len(held) < 150 and len(learned) + len(held) == len(found)
    assert not {each.turns[0]["content"] for each in learned} & {each.turns[0]["content"] for each in held}
    again, _ = rows.hold_out([*found[::-1], asked("new")], 0.2)
    assert {each.first_prompt for each in again} - {"new"} == {each.first_prompt for each in learned}


def test_lines_may_say_their_split_and_few_are_held_out(monkeypatch):
    """Catches a test row that is learned, and half a day of scores on held-out rows."""
    named = [asked("a"), asked("b", split="dev"), asked("c", split="test"), asked("d", split="train")]
    learned, held = rows.hold_out(named, 0.5)
    assert [each.first_prompt for each in learned] == ["a", "d"] and held == [named[1]]
    monkeypatch.setattr(rows, "MOST_HELD_OUT", 10)
    assert len(rows.hold_out([asked(str(i)) for i in range(200)], 0.5)[1]) == 10
    assert rows.hold_out([asked(str(i)) for i in range(200)], 0.0)[1] == []


class SolvedTask(toys.HashTask):
    """With worked solutions; `more` are those without one."""

    more = ()

    def problem(self, split, index, seed):
        number = index % 50
        solution = None if index in self.more else f"{number}+1={number + 1}"
        return Problem(f"{split} {number}+1?", "0", solution=solution, source="sums")


def test_worked_solutions_are_the_rows_without_data():
    """Catches fewer rows than were asked for, and a problem without a solution that is passed over."""
    args = sft.Args(train_size=30, dev_share=0.3, eval_problems=2, test_problems=2)
    found = rows.solutions_or_fail(args, SolvedTask())
    learned, held = rows.hold_out(found, 0.3)
    assert len(learned) == 30 and held and found[0].source == "sums"
    broken = SolvedTask()
    broken.more = (3,)
    with pytest.raises(
        SystemExit, match="training problem 3 has no worked solution to learn from; give rows"
    ):
        rows.solutions_or_fail(args, broken)


# --- a run --------------------------------------------------------------------------------------------------


def lines_of_sums(count: int = 40) -> list[dict]:
    return [{"prompt": f"{i}+1?", "completion": f"{i}+1={i + 1}"} for i in range(count)]


@pytest.fixture
def flags(toy_model, tmp_path, quick):
    """Flags of a run of five steps on a file of 40 rows, 4 of which are held out."""
    data = written(tmp_path, *lines_of_sums())
    return toys.quick_row_flags(toy_model, tmp_path / "run", data=(data,), warmup_share=0.2)


def train(flags: dict, task=None, **changes) -> Path:
    args = sft.Args(**flags | changes)
    sft.main(args, task=task or (toys.HashTask() if args.task == "toy" else None))
    return args.out_dir


def test_a_run_logs_learns_and_leaves_what_all_leave(flags, capsys):
    """Catches a metric that is missing or of another step, rows that are not learned, and a folder that no
    other command could read."""
    folder = train(flags, epochs=20, steps=30, eval_every=10)
    log = toys.records(folder)
    assert log[-2]["eval/loss"] < log[0]["eval/loss"] - 1  # the last record is of test
    steps = [record for record in log if "sft/loss" in record]
    first, last = steps[0], steps[-1]
    assert first["sft/loss"] > last["sft/loss"] + 1 and first["sft/accuracy"] < last["sft/accuracy"]
    assert first["sft/loss"] == pytest.approx(first["loss/total"], rel=1e-4)  # token_mean
    assert last["sft/rows_total"] == 240 and last["sft/epoch"] == pytest.approx(240 / 36)
    assert first["optim/lr"] == pytest.approx(1e-2 / 6) and last["optim/lr"] == pytest.approx(1e-3)
    assert {"eval/hash/score", "eval/loss"} <= last.keys() and "test/hash/score" in log[-1]
    (line, *_) = map(json.loads, (folder / "samples.jsonl").read_text().splitlines())
    assert line["step"] == 1 and line["tokens"][-1] == "<|end|>" and line["prompt"].endswith("<|assistant|>")
    assert len(line["logprob"]) == len(line["entropy"]) == len(line["tokens"])
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {"last", "last.old", "best", "final"}
    screen = capsys.readouterr().out
    assert "36 rows to learn, 4 held out" in screen and "its completion ends with" in screen
    assert "30 steps of 8 rows, out of 36" in screen and "loss accuracy" in screen


@mutant(
    "sft: the highest loss is the best", "plainrl/run.py", "sign = 1 if self.has_task else -1", "sign = 1"
)
def test_without_a_task_the_lowest_loss_chooses(flags, monkeypatch, capsys):
    """Catches the worst step as the final model, and a run that samples although there is nothing to sample:
    the loss is made to fall and rise again."""
    losses = iter([3.0, 2.0, 1.0, 2.0])
    monkeypatch.setattr(run.Run, "dev_loss", lambda self: next(losses))
    folder = train(flags, task=NoTask("sums"), eval_every=2)
    chosen = json.loads((folder / "best" / "chosen.json").read_text())
    assert chosen == {"step": 4, "score": 1.0}
    assert "final = step 4, the best on dev (eval/loss 1.000)" in capsys.readouterr().out
    assert (folder / "final" / "model.safetensors").exists()


def test_task_none_is_named_after_the_data(flags, monkeypatch):
    """Catches --task none that is taken for a task, and a page or a picture that needs scores of one."""
    monkeypatch.undo()
    flags = flags | {"task": "none"}
    folder = train(flags)
    log = toys.records(folder)
    assert "eval/loss" in log[0] and not any("@" in name for record in log for name in record)
    assert (folder / "curves.png").exists() and (folder / "report.html").exists()
    page = report_data.read_run(folder, [])
    losses = page["curves"]["eval/loss"]
    assert page["facts"]["finished"] and page["facts"]["best"] == min(losses.values())
    assert (
        page["groups"][0]["rows"][0]["tokens"][-1] == "<|end|>"
        and "right" not in page["groups"][0]["rows"][0]
    )
    assert page["tiles"][-1][2].endswith(" tokens with loss")


@mutant(
    "sft: held-out loss without the end",
    "plainrl/run.py",
    "sum(map(len, completion_ids))\n",
    "(sum(map(len, completion_ids)) - len(completion_ids))\n",
)
def test_held_out_loss_by_loops(flags, toy_model):
    """Catches a mean over other tokens, and rows that are learned."""
    folder = train(flags, steps=1)
    model, tokenizer = models.load_model(toy_model)
    found = rows.read_rows(flags["data"])
    _, held = rows.hold_out(found, 0.2)
    held = [rows.encode(each, tokenizer, tokenizer.eos_token_id, None) for each in held]
    assert toys.records(folder)[0]["eval/loss"] == pytest.approx(
        by_loop(model, held, "token_mean").item(), rel=1e-5
    )


def test_token_budget_and_epochs_end_the_run(flags, capsys):
    """Catches a budget that counts the prompts, and --steps beyond the last epoch."""
    folder = train(flags, token_budget=1)
    (step,) = [record for record in toys.records(folder) if "sft/loss" in record]
    assert 1 < step["sft/tokens_total"] < step["sft/tokens_seen"]
    folder = train(flags, epochs=1, steps=100, out_dir=folder.with_name("epoch"))
    assert max(record["step"] for record in toys.records(folder)) == 5  # 36 rows, 8 a step
    assert "--epochs 1 ends the run after 5 steps, before --steps 100" in capsys.readouterr().out


@pytest.mark.parametrize(
    "changes, said",
    [
        (dict(task="none", data=()), "--task none: leaves nothing to learn from; give rows with --data"),
        (dict(task="none", dev_share=0.0), "--dev-share 0: none of 40 rows is held out"),
        (dict(betas=(0.9, 1.0)), "--betas 0.9 1: must be at least 0 and below 1"),
        (dict(max_length=4), "--max-length: no row is left: 40 of 40 rows have more than 4 tokens"),
        (dict(max_length=13, over_length="fail"), "--over-length fail: .*rows.jsonl, line 11 with"),
        (dict(dev_share=0.7), "--dev-share 0.7: must be at least 0 and at most 0.5"),
        (dict(rows_per_step=0), "--rows-per-step 0: must be at least 1"),
        (dict(lr=float("nan")), "--lr nan"),
    ],
)
def test_what_cannot_work_is_one_line_and_leaves_no_folder(flags, changes, said):
    """Catches a traceback, and a folder that would bar the next try."""
    with pytest.raises(SystemExit, match=f"^error: {said}"):
        train(flags, **changes)
    assert not flags["out_dir"].exists()


def test_copies_and_scored_problems_among_the_rows_are_said(flags, tmp_path, capsys):
    """Catches rows that are learned twice, and test problems that are learned, without a word."""
    leaked = toys.HashTask().problem("test", 1, rows.EVAL_SEED).prompt
    lines = [*lines_of_sums(), {"prompt": leaked, "completion": "0"}] + lines_of_sums()[:3]
    train(flags, data=(written(tmp_path, *lines, name="more.jsonl"),), dev_share=0.0, steps=1)
    screen = capsys.readouterr().out
    assert "warning: 3 rows are copies of another row" in screen
    assert "warning: 1 of the problems that are scored on dev or test are prompts of rows to learn" in screen


def test_five_steps_that_are_not_finite_end_the_run(flags, monkeypatch):
    """Catches a run that ends as if it had learned, with weights that are no numbers."""
    monkeypatch.setattr(sft, "cross_entropy", lambda logprobs: logprobs * math.nan)
    with pytest.raises(SystemExit, match="not finite in 5 updates in a row, in step 5 the last time; try a"):
        train(flags, epochs=5, steps=10)


def test_a_real_model_says_how_long_a_step_takes_and_changes_nothing(flags, monkeypatch, capsys):
    """Catches a measurement that leaves a gradient or another random number behind."""
    plain = train(flags, out_dir=flags["out_dir"].with_name("plain"))
    monkeypatch.setattr(run, "size_of", lambda parameters: "small")
    assert toys.records(train(flags)) == toys.records(plain)
    assert "a step takes about 0." in capsys.readouterr().out


def test_plan_says_what_a_run_needs_and_writes_nothing(flags, capsys):
    """Catches a plan of sampled batches, or one that begins the run."""
    for changes in ({}, {"task": "none"}):
        with pytest.raises(SystemExit) as ended:
            train(flags | changes, plan=True)
        assert ended.value.code == 0 and not flags["out_dir"].exists()
        screen = capsys.readouterr().out
        assert "36 rows, 5 steps of 8; nothing is written" in screen and "time, measured" in screen


@pytest.fixture
def mixed(flags, tmp_path) -> dict:
    """Flags of a run on 40 rows of two sources, three of four draws from a."""
    lines = [line | {"source": "ab"[i % 2]} for i, line in enumerate(lines_of_sums())]
    weights = written(tmp_path, {"a": 0.75, "b": 0.25}, name="w.json")
    return flags | dict(
        data=(written(tmp_path, *lines),), task="none", mixture=weights, report=False, schedule="constant"
    )


@mutant(
    "sft: the rows of the next step",
    "sft.py",
    "steps[step - 1]",
    "steps[step % len(steps)]",
)
def test_a_run_learns_the_rows_of_its_mixture_also_when_it_goes_on(mixed, monkeypatch):
    """Catches a mixture that the run does not follow, one that begins anew on resume, and one that is
    another than before."""
    learned, loaded, load = [], [], sft.load_rows
    monkeypatch.setattr(sft, "load_rows", lambda *them: loaded.append(load(*them)) or loaded[-1])
    monkeypatch.setattr(
        sft, "batch_of", lambda batch, device: learned.append(batch) or rows.batch_of(batch, device)
    )
    whole = train(mixed, out_dir=mixed["out_dir"].with_name("whole"))
    all_rows, drawn = loaded[0][0], sum(learned, [])
    sources, lengths = tuple(each.source for each in all_rows), tuple(each.length for each in all_rows)
    numbers = row_order.order_of_mixture(sources, lengths, {"a": 0.75, "b": 0.25}, 8, 0, 5)[:40]
    assert drawn == [all_rows[number] for number in numbers]
    learned.clear()
    folder = train(mixed, steps=2)
    train(mixed, resume=True)
    assert sum(learned, []) == drawn
    assert [record for record in toys.records(folder) if record["step"] > 2] == [
        record for record in toys.records(whole) if record["step"] > 2
    ]
    mixed["mixture"].write_text('{"a": 1}')
    with pytest.raises(SystemExit, match="--resume: --mixture was {'a': 0.75, 'b': 0.25} and is now {'a': 1"):
        train(mixed, steps=6, resume=True)


# --- resume and ranks ---------------------------------------------------------------------------------------


def forked(job) -> int:
    """What a process that does the job ends with; a negative number is a signal."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            job()
            status = 0
        except SystemExit as stop:
            print(stop.code, file=sys.stderr, flush=True)
        finally:
            os._exit(status)
    return child


def end_of(child: int, seconds: float = 60) -> int:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return -999


def kill_after(updates: int, train) -> None:
    """`train()` in a process of its own, which is killed after so many updates."""
    original, calls = run.Run.optimizer_step, []

    def die_there(*arguments):
        calls.append(arguments)
        made = original(*arguments)
        if len(calls) == updates:
            os.kill(os.getpid(), signal.SIGKILL)
        return made

    def killed():
        run.Run.optimizer_step = die_there
        train()

    assert end_of(forked(killed)) == -signal.SIGKILL


def on_one_and_two_ranks(train, out_dir: Path) -> list[Path]:
    """`train(folder)` in one process and in two, in float64. Returns the two folders, beside `out_dir`."""
    import transformers

    def as_one_of(rank: int, count: int, port: int, folder: Path):
        if count > 1:
            as_rank(rank, count, port)
        transformers.AutoModelForCausalLM = Float64
        train(folder)

    port, folders = free_port(), [out_dir.with_name(name) for name in ("one", "two")]
    jobs = [(0, 1, port, folders[0]), (0, 2, port, folders[1]), (1, 2, port, folders[1])]
    children = [forked(functools.partial(as_one_of, *job)) for job in jobs]
    assert [end_of(child) for child in children] == [0, 0, 0]
    return folders


@mutant(
    "sft: resume that replays a step",
    "sft.py",
    "steps[step - 1]",
    "steps[step - 1 - run.first_step]",
)
@pytest.mark.parametrize("at", [1, 4])
def test_killed_and_resumed_equals_the_uninterrupted(flags, at):
    """Catches rows that are skipped or replayed, an optimizer or counts that begin anew: before the first
    checkpoint (after step 2), and after it."""
    whole = train(flags, out_dir=flags["out_dir"].with_name("whole"))
    kill_after(at, lambda: train(flags))
    ours = train(flags, resume=True)
    assert toys.records(ours) == toys.records(whole)
    assert (ours / "samples.jsonl").read_text() == (whole / "samples.jsonl").read_text()
    for folder in ("last", "best", "final"):
        names = [path / folder / "model.safetensors" for path in (ours, whole)]
        assert names[0].read_bytes() == names[1].read_bytes(), folder
    states = [json.loads((path / "last" / "state.json").read_text()) for path in (ours, whole)]
    assert states[0] == states[1] and states[0]["step"] == 5


@mutant(
    "sft: seen tokens forgotten",
    "sft.py",
    'run.state["tokens_seen"] += sum',
    'run.state["tokens_seen"] = sum',
)
def test_epochs_may_be_raised_on_resume_and_the_rows_may_not(flags, toy_model):
    """Catches a finished run that cannot go on, one that goes on with other rows, and counts of anything but
    two passes over the rows."""
    folder = train(flags, steps=None, epochs=1)
    train(flags, steps=None, epochs=2, resume=True)
    numbers = [record["sft/epoch"] for record in toys.records(folder) if "sft/epoch" in record]
    assert numbers == [pytest.approx(step * 8 / 36) for step in range(1, 10)]
    tokenizer = AutoTokenizer.from_pretrained(toy_model)
    learned, _ = rows.hold_out(rows.read_rows(flags["data"]), 0.2)
    learned = [rows.encode(each, tokenizer, tokenizer.eos_token_id, None) for each in learned]
    last = toys.records(folder)[-2]
    assert last["sft/tokens_total"] == 2 * sum(len(each.completion_ids) for each in learned)
    assert last["sft/tokens_seen"] == 2 * sum(each.length for each in learned)
    with pytest.raises(SystemExit, match="--resume: --rows-per-step was 8 and is now 4"):
        train(flags, steps=None, epochs=2, resume=True, rows_per_step=4)
    flags["data"][0].write_text(flags["data"][0].read_text().replace("17+1=18", "17+1=19"))
    with pytest.raises(SystemExit, match="--resume: the rows to learn have changed since"):
        train(flags, steps=None, epochs=3, resume=True)


@mutant("sft: rows of one rank", "sft.py", "return total(sums)", "return sums")
def test_two_ranks_change_nothing(flags):
    """Catches denominators, metrics or gradients of one rank's rows. In float64."""
    own = dict(steps=3, eval_every=3, aggregation="sequence_mean")
    folders = on_one_and_two_ranks(lambda folder: train(flags, out_dir=folder, **own), flags["out_dir"])
    one, two = map(toys.records, folders)
    assert [record.keys() for record in one] == [record.keys() for record in two]
    for left, right in zip(one, two):
        for name in left:
            assert right[name] == pytest.approx(left[name], rel=1e-6, abs=1e-9), name
        for name in [name for name in left if name.startswith(("sft/", "loss/", "optim/"))]:
            assert right[name] == pytest.approx(left[name], rel=1e-10, abs=1e-12), name
