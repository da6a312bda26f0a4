"""papers/dto.py: SimPO's loss, where a trace is cut and where it ends, what becomes a pair, and a run from
beginning to end. What it has of sft.py is tests/test_sft.py's."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import kit
import pytest
import test_sft
import torch
import toys
import trl_driver
from mutants import mutant
from random_model import random_model
from safetensors.torch import load_file
from transformers import AutoTokenizer

from papers import dto
from plainrl import plan
from plainrl.rows import KEPT_NUMBERS
from plainrl.tasks import Problem

# --- SimPO --------------------------------------------------------------------------------------------------

GOLDEN = [  # l_w, l_l, and what the authors' simpo_loss says for (beta, gamma / beta)
    (-0.5, -0.7, {(2, 0.25): 0.744397, (2, 0.5): 1.037488, (10, 0.3): 1.313262}),
    (-0.7, -0.5, {(2, 0.25): 1.241154, (2, 0.5): 1.620417, (10, 0.3): 5.006715}),
    (-1.2, -0.3, {(2, 0.25): 2.395545, (2, 0.5): 2.859033, (10, 0.3): 12.000006}),
]


@mutant(
    "dto: the rejected one is preferred",
    "papers/dto.py",
    "(chosen - rejected - gamma_beta_ratio)",
    "(rejected - chosen - gamma_beta_ratio)",
)
@mutant(
    "dto: a margin that is given away",
    "papers/dto.py",
    "(chosen - rejected - gamma_beta_ratio)",
    "(chosen - rejected + gamma_beta_ratio)",
)
@mutant(
    "dto: gamma in place of gamma / beta",
    "papers/dto.py",
    "(chosen - rejected - gamma_beta_ratio)",
    "(chosen - rejected) - gamma_beta_ratio",
)
def test_loss_is_that_of_the_authors_function():
    """Catches another sign, another margin, and beta in another place: values and one gradient of their
    code."""
    for chosen, rejected, expected in GOLDEN:
        for (beta, ratio), loss in expected.items():
            pair = [torch.tensor([value], dtype=torch.float64) for value in (chosen, rejected)]
            assert dto.simpo_loss(*pair, beta, ratio).item() == pytest.approx(loss, abs=5e-7)
    pair = [torch.tensor([value], dtype=torch.float64, requires_grad=True) for value in (-0.5, -0.7)]
    slopes = torch.autograd.grad(dto.simpo_loss(*pair, 2.0, 0.25).sum(), pair)
    assert [slope.item() for slope in slopes] == pytest.approx([-1.049958, 1.049958], abs=5e-7)


def accumulate_gradients(model, batch, args):
    """papers/dto.py's, of a batch that has besides what `batch_of` makes for the log."""
    for name in KEPT_NUMBERS:
        batch[name] = torch.zeros(batch["completion_mask"].shape)
    batch["seen"] = torch.zeros(len(batch), 1, dtype=torch.bool)
    return dto.accumulate_gradients(model, batch, args)


SCRIPT = SimpleNamespace(Args=dto.Args, accumulate_gradients=accumulate_gradients)


def flags_of_loss():
    return kit.make_args(dto, temperature=1.0, beta=3.0, gamma_beta_ratio=0.3)


def loss_by_loops(now, start, batch, args) -> float:
    means = []
    for table, ids in zip(now, batch["completion_ids"]):
        means.append(sum(table[t][token] for t, token in enumerate(ids)) / len(ids))
    losses = []
    for chosen, rejected in zip(means[::2], means[1::2]):
        z = args.beta * (chosen - rejected) - args.beta * args.gamma_beta_ratio
        losses.append(math.log(1 + math.exp(-z)))
    return sum(losses) / len(losses)


@mutant(
    "dto: sums in place of means", "papers/dto.py", "logprobs.sum(dim=1) / lengths", "logprobs.sum(dim=1)"
)
@mutant(
    "dto: pairs of rows that are none",
    "papers/dto.py",
    "means[0::2], means[1::2]",
    "means.chunk(2)",
)
def test_loss_by_loops():
    """Catches a mean over padding, a sum over tokens, and rows of two pairs that are compared."""
    kit.check_loops(SCRIPT, loss_by_loops, flags_of_loss())


@mutant("dto: the gradient uphill", "papers/dto.py", "(-slopes / lengths)", "(slopes / lengths)")
@mutant("dto: tokens of long rows weigh more", "papers/dto.py", "(-slopes / lengths)", "(-slopes)")
def test_gradient_by_finite_differences():
    """Catches slopes of another sign or length: the weighted sum of tokens has the loss's gradient."""
    kit.check_finite_difference(SCRIPT, loss_by_loops, flags_of_loss())


@mutant(
    "dto: a mean of micro-batches",
    "papers/dto.py",
    "        loss = (cross_entropy(logprobs) * part[",
    "        loss = 2 * (cross_entropy(logprobs) * part[",
)
def test_split_padding_and_order_change_nothing():
    """Catches a pair that must lie in one micro-batch, padding that is counted, and rows mixed up."""
    kit.check_micro_batches(SCRIPT, flags_of_loss())
    kit.check_padding(SCRIPT, flags_of_loss())
    kit.check_order(SCRIPT, flags_of_loss())
    kit.check_finite_difference(SCRIPT, loss_by_loops, flags_of_loss())


def test_what_is_logged_of_a_step():
    """Catches a mean over other rows, and a margin without beta."""
    with kit.numbers(torch.float64):
        model, batch, args = random_model(), kit.make_batch(), flags_of_loss()
        sums, _ = kit.update(SCRIPT, model, batch, args)
        now = kit.tables(model, batch, 1.0)
    means = [
        sum(table[t][token] for t, token in enumerate(ids)) / len(ids)
        for table, ids in zip(now, batch["completion_ids"])
    ]
    chosen, rejected = means[::2], means[1::2]
    assert sums["logp_chosen"] == pytest.approx(sum(chosen) / 8, rel=1e-9)
    assert sums["logp_rejected"] == pytest.approx(sum(rejected) / 8, rel=1e-9)
    assert sums["margin"] == pytest.approx(3 * (sum(chosen) - sum(rejected)) / 8, rel=1e-9)
    assert sums["preferred"] == pytest.approx(sum(w > x for w, x in zip(chosen, rejected)) / 8)


TRL = {  # of `python tests/trl_driver.py`
    "loss": 1.0157807334321443,
    "norm": 8.277767627301845,
    "along": [-7.59562991168119, 5.654538623189367, 1.1901185908350425],
}


def test_loss_and_gradient_are_those_of_trl():
    """Catches another mean, pair or margin than TRL's CPOTrainer has with loss_type simpo, for the same
    tensors, in float64."""
    with kit.numbers(torch.float64):
        args = kit.make_args(dto, temperature=1.0, beta=2.0, gamma_beta_ratio=0.25)
        sums, ours = kit.update(SCRIPT, random_model(), kit.make_batch(), args)
    found = trl_driver.numbers_of(sums["total_loss"], ours)
    assert found["loss"] == pytest.approx(TRL["loss"], rel=1e-10)
    assert [found["norm"], *found["along"]] == pytest.approx([TRL["norm"], *TRL["along"]], rel=1e-8)


# --- patterns and exits -------------------------------------------------------------------------------------


@mutant(
    "dto: words in the middle of a sentence",
    "papers/dto.py",
    r"(?:(?<=[.!?]\s)|(?<=\n))(?:{words})",
    r"(?:{words})",
)
@mutant("dto: parts of words", "papers/dto.py", r"(?:{words})\b", r"(?:{words})")
@mutant(
    "dto: empty lines are patterns",
    "papers/dto.py",
    r're.findall(r"\n*[^\n]+\n*", text)',
    "text.splitlines(True)",
)
@pytest.mark.parametrize(
    "text, cut, expected",
    [
        ("A=1\nWait.\nB=2", "lines", ["A=1\n", "Wait.\n", "B=2"]),
        ("\nA=1\n\n\nB=2\n", "lines", ["\nA=1\n\n\n", "B=2\n"]),
        ("", "lines", [""]),
        ("\n", "lines", ["\n"]),
        (
            "It is 2. Wait, no! So wait, So 3?\nHmm, Sofia. Some",
            "markers",
            ["It is 2. ", "Wait, no! ", "So wait, So 3?\n", "Hmm, Sofia. Some"],
        ),
        ("Wait, what", "markers", ["Wait, what"]),
        ("", "markers", [""]),
    ],
)
def test_patterns_by_hand(text, cut, expected):
    """Catches a word that is a part of another, or in the middle of a sentence, and text that is lost."""
    found = dto.patterns_of(text, cut, ("Wait", "So", "Hmm"))
    assert found == expected and "".join(found) == text


@mutant(
    "dto: an exit at the threshold",
    "papers/dto.py",
    "share > threshold for share in shares",
    "share >= threshold for share in shares",
)
@mutant("dto: one lucky exit", "papers/dto.py", "(next_too or not twice)", "True")
def test_exits_by_hand():
    """Catches a share at the threshold that counts, and one lucky pattern where two are asked for."""
    shares = [0.0, 0.25, 0.5, 1.0, 1.0]
    assert [dto.exit_of(shares, threshold) for threshold in (0.25, 0.5, 0.75, 1.0)] == [3, 4, 4, None]
    assert dto.exit_of([0.9, 0.1, 0.9, 0.9], 0.5, twice=True) == 3
    assert dto.exit_of([0.9, 0.1, 0.9], 0.5, twice=True) is None
    assert dto.exit_of([], 0.5) is None


@mutant(
    "dto: attention without itself", "papers/dto.py", "length * (length + 1) // 2", "length * length // 2"
)
def test_attention_by_hand():
    """Catches a cost that is no sum over positions: 3,000 tokens against 5,000."""
    assert dto.attention_cost(4) == 1 + 2 + 3 + 4
    assert dto.attention_cost(3000) / dto.attention_cost(5000) == pytest.approx(0.360048, abs=5e-7)


def trace(text: str, right: bool = True, tokens: int = 20, index: int = 0) -> dto.Trace:
    original = dto.Response(text, tokens, right, True)
    problem = Problem(f"problem {index}", "7", index=index)
    return dto.Trace(index, problem, original, dto.patterns_of(text, "lines", ()))


class ScriptedSampler(dto.TraceSampler):
    """What is sampled, and how likely answers are, is what functions say."""

    def __init__(self, sampled=None, likely=None, **flags):
        flags = dict(exit_text="<", exit_samples=4, exit_tokens=5, finish_text=">", finish_samples=3) | flags
        super().__init__(None, dto.Args(**flags))
        self.sampled, self.likely, self.asked = sampled, likely, []

    def sample(self, starts, n, max_new_tokens):
        self.asked += [(index, beginning, n, max_new_tokens) for index, _, beginning in starts]
        return [self.sampled(index, beginning) for index, _, beginning in starts]

    def answer_logprobs(self, traces, kept):
        return [self.likely(each.beginning(places)) for each, places in zip(traces, kept)]


@mutant(
    "dto: an exit behind the answer", "papers/dto.py", "len(trace.patterns) > i]", "len(trace.patterns) >= i]"
)
@mutant(
    "dto: the exit without its text",
    "papers/dto.py",
    "trace.beginning(range(i)) + args.exit_text",
    "trace.beginning(range(i))",
)
def test_exits_are_looked_for_pattern_by_pattern():
    """Catches an exit of another trace, one behind the answer, and samples behind an exit."""
    answers = lambda *right: [dto.Response("", 1, bool(each), True) for each in right]  # noqa: E731
    told = {"a\n<": answers(0, 1, 1, 0), "a\nb\n<": answers(1, 1, 1, 0), "x\n<": answers(0, 0, 0, 0)}
    sampler = ScriptedSampler(lambda index, beginning: told[beginning])
    traces = [trace("a\nb\nc\nd"), trace("x\ny", index=1), trace("one", index=2)]
    sampler.find_exits(traces)
    assert [each.shares for each in traces] == [[0.5, 0.75], [0.0], []]
    assert [each.exit for each in traces] == [2, None, None]
    assert sampler.asked == [(0, "a\n<", 4, 5), (1, "x\n<", 4, 5), (0, "a\nb\n<", 4, 5)]


@mutant(
    "dto: a wrong way to go on",
    "papers/dto.py",
    "response.right and response.ended and",
    "response.ended and",
)
@mutant(
    "dto: a way that was cut", "papers/dto.py", "response.right and response.ended and", "response.right and"
)
@mutant(
    "dto: the longest way",
    "papers/dto.py",
    "response.tokens < other.tokens",
    "response.tokens > other.tokens",
)
@mutant(
    "dto: the finish without its text",
    "papers/dto.py",
    "trace.beginning(places) + args.finish_text",
    "trace.beginning(places)",
)
def test_the_shortest_right_way_counts():
    """Catches one that is wrong, cut, or longer than what there is, and patterns that are called dropped."""
    ways = [("wrong", 3, 0, 1), ("cut", 4, 1, 0), ("long", 9, 1, 1), ("short", 6, 1, 1), ("same", 6, 1, 1)]
    sampler = ScriptedSampler(lambda *start: [dto.Response(*way) for way in ways])
    each = trace("a\nb\nc\nd")
    each.exit = 3
    sampler.finish([each], [[0, 1, 2]])
    assert each.optimised.text == "short" and each.dropped == []
    assert sampler.asked == [(0, "a\nb\nc\n>", 3, None)]
    sampler.finish([each], [[0, 2]])  # no shorter one
    assert each.dropped == []
    ways.append(("pruned", 5, 1, 1))
    sampler.finish([each], [[0, 2]])
    assert each.optimised.text == "pruned" and each.dropped == [2]


@mutant("dto: equal likelihoods keep a pattern", "papers/dto.py", "value >= best[row]", "value > best[row]")
@mutant(
    "dto: the first pattern may go", "papers/dto.py", "trace.exit - back >= 1]", "trace.exit - back >= 0]"
)
@mutant(
    "dto: the last pattern may go", "papers/dto.py", "for back in range(2, max", "for back in range(1, max"
)
@mutant(
    "dto: each pattern by itself",
    "papers/dto.py",
    "for place in kept[row] if place !=",
    "for place in range(traces[row].exit) if place !=",
)
def test_patterns_that_are_needed():
    """Catches another order, a comparison with all patterns, and a first or last pattern that is dropped: the
    answer needs c, and b where d is missing. Without anything it would be likeliest."""
    score = {"abcde": 0.5, "abce": 0.5, "abe": 0.4, "ace": 0.45, "xyz": 0.1, "xz": 0.2}
    asked = []

    def likely(text):
        asked.append(text.replace("\n", ""))
        return score.get(asked[-1], 9.0)

    traces = [trace("a\nb\nc\nd\ne\nanswer"), trace("x\ny\nz\nanswer"), trace("p\nq")]
    for each, exit in zip(traces, (5, 3, 1)):
        each.exit = exit
    kept = ScriptedSampler(likely=likely).needed(traces)
    assert kept == [[0, 1, 2, 4], [0, 2], [0]]
    assert asked == ["abcde", "xyz", "p", "abce", "xz", "abe", "ace"]


@mutant(
    "dto: longer than before",
    "papers/dto.py",
    "return not before.right or after.tokens < before.tokens",
    "return True",
)
@mutant("dto: a pair of equal texts", "papers/dto.py", "or after.text == before.text or", "or")
@mutant(
    "dto: right ones alone",
    "papers/dto.py",
    "return not before.right or after.tokens < before.tokens",
    "return after.tokens < before.tokens",
)
@mutant(
    "dto: attention of the short ones alone",
    "papers/dto.py",
    "attention_cost(trace.original.tokens) for trace in right)",
    "attention_cost(trace.original.tokens) for trace in shorter)",
)
def test_what_became_of_the_traces_by_hand():
    """Catches shares of all traces, a right trace that is to become longer, and attention of some alone."""
    optimised = {0: 10, 1: 25, 3: 30}  # tokens, of 20 before; 0, 1 and 2 were right, 3 and 4 were wrong
    traces = [trace("a\nb", right=index < 3, index=index) for index in range(5)]
    for index, tokens in optimised.items():
        traces[index].exit, traces[index].optimised = 1, dto.Response("c", tokens, True, True)
    assert dto.summary_of(traces, 1234) == {
        "traces": 5,
        "right": 3,
        "with_exit": 3,
        "shortened": 1,
        "repaired": 1,
        "pairs": 2,
        "frac_shortened": pytest.approx(1 / 3),
        "attention_saved": pytest.approx((210 - 55) / 630),
        "frac_repaired": 0.5,
        "sampled_tokens": 1234,
    }
    same = trace("a\nb", tokens=20)  # by other tokens than the tokenizer's own
    same.optimised = dto.Response("a\nb", 10, True, True)
    assert not same.makes_a_pair and not trace("a\nb").makes_a_pair
    nothing = dto.summary_of([], 0)
    assert nothing["frac_shortened"] is nothing["attention_saved"] is nothing["frac_repaired"] is None


# --- pairs in a file ----------------------------------------------------------------------------------------


def test_pairs_as_people_have_them():
    """Catches a prompt or an end that is lost, and a chat that is not read."""
    pair = dto.pair_of({"question": "1+1?", "chosen": "2", "rejected": "1, 2"}, "x")
    assert [row.completion for row in (pair.chosen, pair.rejected)] == ["2", "1, 2"]
    assert pair.first_prompt == "1+1?" and pair.chosen.end and pair.rejected.end
    chat = [{"role": "user", "content": "1+1?"}]
    said = lambda text: [{"role": "assistant", "content": text}]  # noqa: E731
    entry = {
        "prompt": chat,
        "chosen": said("2"),
        "rejected": said("3"),
        "split": "dev",
        "rejected_end": False,
    }
    pair = dto.pair_of(entry, "x")
    assert (pair.chosen.completion, pair.rejected.completion, pair.split) == ("2", "3", "dev")
    assert pair.chosen.end and not pair.rejected.end


@pytest.mark.parametrize(
    "line, said",
    [
        (
            {"prompt": "1", "chosen": "2"},
            "line 2: field 'rejected' is missing or empty; a pair has prompt, cho",
        ),
        ({"prompt": "1", "chosen": "", "rejected": "2"}, "line 2: field 'chosen' is missing or empty"),
        ({"prompt": "1", "chosen": "2", "rejected": "2"}, "line 2: chosen and rejected are the same; leave"),
        ({"chosen": "2", "rejected": "3"}, "line 2: has no field prompt, nor messages"),
        ({"prompt": "1", "chosen": 2, "rejected": "3"}, "line 2: field 'completion' is missing or empty"),
        ("no json", "line 2: "),
    ],
)
def test_a_pair_that_cannot_be_learned_names_line_and_field(tmp_path, line, said):
    """Catches a traceback, and a pair of equal texts, from which nothing is learned."""
    path = test_sft.written(tmp_path, {"prompt": "1", "chosen": "2", "rejected": "3"}, line)
    with pytest.raises(ValueError, match=said):
        dto.read_pairs((path,))


# --- a run --------------------------------------------------------------------------------------------------


@pytest.fixture
def flags(toy_model, tmp_path, quick):
    """Flags of a run of five steps of 4 pairs."""
    data = test_sft.written(tmp_path, *lines_of_pairs())
    own = dict(data=(data,), eval_every=5, warmup_share=0.2)
    return toys.quick_row_flags(toy_model, tmp_path / "run", **own)


def lines_of_pairs(count: int = 24) -> list[dict]:
    more = lambda i: "\nWait." * (1 + i % 3)  # noqa: E731
    return [
        {"prompt": f"{i}+1?", "chosen": f"{i}+1={i + 1}", "rejected": f"{i}+1={i + 1}{more(i)}"}
        for i in range(count)
    ]


def train(flags: dict, world=None, sampler=None, **changes) -> Path:
    args = dto.Args(**flags | changes)
    dto.main(args, task=world or toys.HashTask(), sampler=sampler)
    return args.out_dir


def steps_of(folder: Path) -> list[dict]:
    return [record for record in toys.records(folder) if "dto/margin" in record]


@mutant(
    "dto: the sides of a pair exchanged",
    "papers/dto.py",
    "for pair in steps[step - 1] for row in (pair.chosen, pair.rejected)]",
    "for pair in steps[step - 1] for row in (pair.rejected, pair.chosen)]",
)
def test_a_run_learns_to_prefer_what_was_chosen(flags, capsys):
    """Catches a run that prefers the rejected ones, and metrics of something else."""
    folder = train(flags, epochs=20, steps=12, eval_every=12, save_every=12)
    steps = steps_of(folder)
    shown = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert not any("Wait" in row["completion"] for row in shown)  # the first of a step's rows is a chosen one
    first, last = steps[0], steps[-1]
    assert last["dto/margin"] > first["dto/margin"] + 0.5 and last["dto/frac_preferred"] == 1
    assert last["loss/total"] < first["loss/total"]
    difference = first["dto/logp_chosen"] - first["dto/logp_rejected"]
    assert first["dto/margin"] == pytest.approx(2.0 * difference, rel=1e-4)
    assert first["dto/sampled_tokens"] == 0 and first["sft/rows_total"] == 8
    assert json.loads((folder / "config.json").read_text())["script"] == "dto"
    screen = capsys.readouterr().out
    assert "pairs to learn" in screen and "12 steps of 8 rows" in screen


TRACES = {True: "a\nb\nc\nd\n\\boxed{0}", False: "a\nb\nc\n\\boxed{1}"}


def toy_sampler(toy_model: str) -> toys.FakeSampler:
    """Two of three traces are right. The answer is known after two lines; a way to go on may be longer."""
    tokenizer = AutoTokenizer.from_pretrained(toy_model)

    def answer(prompt_ids, sample, seed):
        asked = tokenizer.decode(prompt_ids, skip_special_tokens=True)
        begun = asked.partition("?")[2].lstrip()
        if not begun:
            text = TRACES[int(asked.split()[-3]) % 3 > 0]
        elif begun.endswith("\\boxed{"):
            text = "0}" if begun.count("\n") >= 2 else "1}"
        else:
            text = ("c\n" if sample == 0 else "") + "\\boxed{0}"
        return tokenizer.encode(text, add_special_tokens=False) + [tokenizer.eos_token_id], "stop"

    return toys.FakeSampler(answer)


def is_zero(text: str, problem) -> float:
    return float(text.endswith("\\boxed{0}"))


def train_on_own(flags: dict, **changes) -> tuple[Path, toys.FakeSampler]:
    """A run that makes its pairs of twelve traces."""
    sampler = toy_sampler(flags["model"])
    own = flags | dict(data=(), train_size=12, exit_samples=2, finish_samples=2, max_new_tokens=30)
    return train(own | changes, toys.FunctionTask(is_zero), sampler), sampler


@mutant(
    "dto: answers are graded without their beginning",
    "papers/dto.py",
    "texts.append(beginning + run",
    "texts.append(run",
)
@mutant(
    "dto: lengths from the exit on", "papers/dto.py", "begun + len(completion.ids)", "len(completion.ids)"
)
@mutant("dto: tokens of one call", "papers/dto.py", "self.tokens += len(", "self.tokens = len(")
@mutant("dto: one draw for all beginnings", "papers/dto.py", "index, len(beginning), sample", "index, sample")
@mutant("dto: one draw for all samples", "papers/dto.py", "len(beginning), sample)", "len(beginning))")
def test_pairs_are_made_of_the_models_own_traces(flags, toy_model):
    """Catches a pair that was graded or counted by its end alone, one without its history, and equal random
    numbers for two samples."""
    folder, sampler = train_on_own(flags, steps=2)
    tokenizer = AutoTokenizer.from_pretrained(toy_model)
    length = lambda text: len(tokenizer.encode(text, add_special_tokens=False)) + 1  # noqa: E731
    pairs = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    assert [pair["index"] for pair in pairs] == list(range(12))
    for pair in pairs:
        right = pair["index"] % 3 > 0
        assert pair["was_right"] == right and pair["rejected"] == TRACES[right]
        assert pair["prompt"].startswith(f"train {pair['index']} of 0") and pair["rejected_end"]
        assert pair["chosen"] == "a\nb\n\\boxed{0}" and pair["dropped"] == []
        assert (pair["patterns"], pair["exit"], pair["exit_shares"]) == (5 if right else 4, 2, [0.0, 1.0])
        # The beginning was made tokens by itself, as it was sampled from.
        begun = length("a\nb\n") - 1 + length("\\boxed{0}")
        assert (pair["chosen_tokens"], pair["rejected_tokens"]) == (begun, length(pair["rejected"]))
    summary = json.loads((folder / "pairs.json").read_text())
    assert (summary["right"], summary["shortened"], summary["repaired"]) == (8, 8, 4)
    traces = 8 * length(TRACES[True]) + 4 * length(TRACES[False])
    exits = 12 * 2 * (length("1}") + length("0}"))
    finishes = 12 * (length("c\n\\boxed{0}") + length("\\boxed{0}"))
    assert summary["sampled_tokens"] == traces + exits + finishes
    assert steps_of(folder)[0]["dto/sampled_tokens"] == summary["sampled_tokens"]
    calls = [seeds for seeds in sampler.calls if len(seeds) in (12, 24)][:4]  # the traces, two exits, finish
    assert list(map(len, calls)) == [12, 24, 24, 24]
    assert len(set(sum(calls, []))) == 84
    # Trained on again from the file, it is the same run but for the tokens.
    again = train(flags, data=(folder / "pairs.jsonl",), steps=2, out_dir=folder.with_name("again"))
    assert [step["dto/margin"] for step in steps_of(again)] == [
        step["dto/margin"] for step in steps_of(folder)
    ]


@mutant("dto: no pattern is pruned", "papers/dto.py", "    if args.prune:\n", "    if False:\n", seconds=60)
def test_patterns_are_pruned_and_the_answer_is_sampled_again(flags, monkeypatch):
    """Catches --no-prune that prunes, and a run that never does: here no pattern is needed."""
    monkeypatch.setattr(dto.TraceSampler, "answer_logprobs", lambda self, traces, kept: [0.0] * len(kept))
    # The answer is known at once behind an exit that is asked for twice, and so after three lines.
    monkeypatch.setattr(dto, "exit_of", lambda shares, *_: 3 if len(shares) == 3 else None)
    read = lambda folder: [  # noqa: E731
        json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()
    ]
    folder, _ = train_on_own(flags, steps=1, train_size=6, dev_share=0.0)
    right = [pair for pair in read(folder) if pair["was_right"]]
    assert len(right) == 4
    assert all(pair["dropped"] == [2] and pair["chosen"] == "a\nc\n\\boxed{0}" for pair in right)
    folder, _ = train_on_own(
        flags, steps=1, train_size=6, dev_share=0.0, prune=False, out_dir=folder.with_name("whole")
    )
    right = [pair for pair in read(folder) if pair["was_right"]]
    assert all(pair["dropped"] == [] and pair["chosen"] == "a\nb\nc\n\\boxed{0}" for pair in right)


@torch.no_grad()
@mutant(
    "dto: the exit's text is scored with the answer",
    "papers/dto.py",
    "prompts.append(self.prompt_ids(trace.problem, trace.beginning(places) + self.args.exit_text))",
    "prompts.append(self.prompt_ids(trace.problem, trace.beginning(places)))",
)
def test_how_likely_an_answer_is_by_a_plain_pass(toy_model):
    """Catches a sum, a shift, and a beginning that is not there: one forward pass a row."""
    from plainrl.models import load_model

    model, tokenizer = load_model(toy_model)
    args = dto.Args(exit_text="\\boxed{", micro_batch_tokens=50)
    sampler = dto.TraceSampler(SimpleNamespace(model=model, tokenizer=tokenizer), args)
    traces = [trace("a\nb\nc"), trace("d\ne", index=1)]
    for each, kept, found in zip(
        traces, [[0, 2], [0]], sampler.answer_logprobs(traces, [[0, 2], [0]]), strict=True
    ):
        begun = sampler.prompt_ids(each.problem, each.beginning(kept) + "\\boxed{")
        answer = tokenizer.encode("7}", add_special_tokens=False)
        logits = model(input_ids=torch.tensor([begun + answer])).logits[0, len(begun) - 1 : -1]
        expected = -torch.nn.functional.cross_entropy(logits, torch.tensor(answer)).item()
        assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    "changes, said",
    [
        (dict(loss_on="all"), "--loss-on all: a pair has one prompt"),
        (dict(task="none"), "--task none: the loss on held-out rows does not choose a model"),
        (dict(rows_per_step=5), "--rows-per-step 5: is odd, and a pair has two rows; give an even number"),
        (dict(betas=(0.9, 1.0)), "--betas 0.9 1: must be at least 0 and below 1"),
        (dict(beta=0.0), "--beta 0.0: must be above 0"),
        (dict(threshold=1.1), "--threshold 1.1: must be at least 0 and at most 1"),
        (dict(markers=()), "--markers: give at least one word"),
        (dict(markers=("Wait", " ")), "--markers: give at least one word"),
        (dict(data=(), plan=True), "--plan: pairs are made by sampling"),
        (dict(data=(), train_size=4), "--model .*: no trace makes a pair"),
        (dict(over_length="fail", max_length=3), "--over-length fail: "),
    ],
)
def test_what_cannot_work_is_one_line_and_leaves_no_folder(flags, changes, said):
    """Catches a traceback, and a folder that would bar the next try."""
    with pytest.raises(SystemExit, match=f"^error: {said}") as stop:
        train(flags, toys.FunctionTask(lambda text, problem: 0.0), **changes)
    assert "\n" not in str(stop.value) and not flags["out_dir"].exists()


def test_a_pair_with_a_long_row_is_left_out(flags, tmp_path, capsys):
    """Catches the other row of a pair, which would then be compared with a row of the next."""
    data = test_sft.written(
        tmp_path, *lines_of_pairs(), {"prompt": "1?", "chosen": "2", "rejected": "2" * 200}, name="long.jsonl"
    )
    train(flags, data=(data,), max_length=60, steps=1, dev_share=0.0)
    screen = capsys.readouterr().out
    assert "1 of 50 rows have more than 60 tokens" in screen and "24 pairs to learn, 0 held out" in screen


@mutant("plan: pairs that are scored in no time", "plainrl/plan.py", "a_row += a_row / 3", "pass")
def test_the_plan_counts_the_pass_before_the_update(flags, capsys, monkeypatch):
    """Catches a plan whose time is that of sft.py, which scores nothing before it updates."""
    ticks = iter(range(0, 1000, 3))
    monkeypatch.setattr(plan, "clock", lambda device: float(next(ticks)))
    with pytest.raises(SystemExit) as ended:
        train(flags, plan=True, micro_batch_tokens=10**6)
    assert ended.value.code == 0 and not flags["out_dir"].exists()
    assert "time, measured: 4.0 s a step" in capsys.readouterr().out  # 3 for the update, 1 for the pass


# --- resume, adapters, ranks --------------------------------------------------------------------------------


@mutant(
    "dto: pairs that are made again", "papers/dto.py", "if args.resume and file.exists():", "if args.plan:"
)
def test_killed_and_resumed_equals_the_uninterrupted(flags):
    """Catches pairs that are made anew by another policy, and a run that goes on with others."""
    flags = flags | dict(save_every=1)
    whole, _ = train_on_own(flags, out_dir=flags["out_dir"].with_name("whole"), steps=4)
    test_sft.kill_after(2, lambda: train_on_own(flags, steps=4))
    ours, sampler = train_on_own(flags, steps=4, resume=True)
    assert toys.records(ours) == toys.records(whole)
    names = [path / "last" / "model.safetensors" for path in (ours, whole)]
    assert names[0].read_bytes() == names[1].read_bytes()
    assert not any(len(seeds) in (12, 24) for seeds in sampler.calls), "pairs were made again"
    file = ours / "pairs.jsonl"
    file.write_text(file.read_text().replace("\\\\boxed{1}", "\\\\boxed{2}"))
    with pytest.raises(SystemExit, match="--resume: the rows to learn have changed"):
        train_on_own(flags, steps=6, resume=True)


def test_adapters_learn(flags, toy_model):
    """Catches a loss that does not reach the adapters."""
    folder = train(flags, lora_rank=4, epochs=20, steps=8, eval_every=8, save_every=8, lr=3e-2)
    margins = [step["dto/margin"] for step in steps_of(folder)]
    assert margins[-1] > margins[0] + 0.1
    first, last = load_file(f"{toy_model}/model.safetensors"), load_file(folder / "final/model.safetensors")
    assert first.keys() == last.keys()


@mutant(
    "dto: an optimizer of whole weights",
    "papers/dto.py",
    "    ranks.release_weights(run.model)  # so that",
    "    # so that",
)
@mutant("dto: sums of one rank", "papers/dto.py", "sums = total(sums)  # over ranks", "pass")
@mutant("dto: tokens of one rank", "papers/dto.py", "sum(ranks.gather([sampler.tokens]))", "sampler.tokens")
def test_two_ranks_change_nothing(flags):
    """Catches traces, pairs or sums of one rank. In float64."""
    folders = test_sft.on_one_and_two_ranks(
        lambda folder: train_on_own(flags, out_dir=folder, steps=2), flags["out_dir"]
    )
    assert (folders[0] / "pairs.jsonl").read_text() == (folders[1] / "pairs.jsonl").read_text()
    for left, right in zip(*map(steps_of, folders), strict=True):
        for name in [name for name in left if name.startswith(("sft/", "dto/", "loss/", "optim/"))]:
            assert right[name] == pytest.approx(left[name], rel=1e-10, abs=1e-12), name
