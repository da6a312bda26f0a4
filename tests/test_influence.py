"""tools/influence.py: inner products of gradients, their sign and scale, the joint number of a row, shares of
sources, what is kept and written, and commands that are broken off."""

import itertools
import json
import math
from pathlib import Path

import kit
import pytest
import torch
import toys
from mutants import mutant
from random_model import EOS, distance, gradient, random_model
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

import sft
from plainrl import rows
from plainrl.rows import Row
from tools import influence as tool

# --- golden values ------------------------------------------------------------------------------------------

# LESS's own calculate_influence_score and normalisation, run on these vectors.
TRAIN = [(3, 4, 0), (1, 0, 0), (-1, -1, 1)]
SUBTASKS = [[(1, 0, 0), (0, 2, 0)], [(0, 0, 5), (1, 1, 0)]]
COSINES = [
    [0.6, 0.8, 0, 0.989949],
    [1, 0, 0, 0.707107],
    [-0.577350, -0.577350, 0.577350, -0.816497],
]


def vector(*numbers) -> list[torch.Tensor]:
    """A gradient of two weights."""
    numbers = torch.tensor([float(number) for number in numbers], dtype=torch.float64)
    return [numbers[:1], numbers[1:]]


def of_less(normalise: bool) -> torch.Tensor:
    """Influences of one checkpoint, three rows and two subtasks, [1, 3, 2]."""
    vectors = [tool.probe_vector([vector(*own) for own in subtask], normalise) for subtask in SUBTASKS]
    found = [[tool.influence(vector(*row), probe, normalise) for probe in vectors] for row in TRAIN]
    return torch.tensor([found], dtype=torch.float64)


@mutant(
    "influence: harm is help",
    "tools/influence.py",
    "return inner(gradient, vector) /",
    "return -inner(gradient, vector) /",
)
@mutant(
    "influence: rows of any length",
    "tools/influence.py",
    "(length_of(gradient) if normalise else 1.0)\n",
    "1.0\n",
)
@mutant(
    "influence: probes of any length",
    "tools/influence.py",
    "1 / length_of(gradient) if normalise else 1.0",
    "1.0",
)
@mutant(
    "influence: squared length",
    "tools/influence.py",
    "math.sqrt(inner(gradient, gradient))",
    "inner(gradient, gradient)",
)
@mutant("influence: sum over the probe", "tools/influence.py", "[part / count for part in total]", "total")
@mutant(
    "influence: the last row of the probe",
    "tools/influence.py",
    "part.add_(own, alpha=scale)",
    "part.copy_(own * scale)",
)
@mutant("influence: the smallest group", "tools/influence.py", "summed.amax(dim=1)", "summed.amin(dim=1)")
def test_cosines_and_the_largest_group_are_those_of_less():
    """Catches a sign, a length that is left in, a sum in place of a mean, and another group."""
    for probe, column in zip(sum(SUBTASKS, []), zip(*COSINES)):
        alone = tool.probe_vector([vector(*probe)], True)
        ours = [tool.influence(vector(*row), alone, True) for row in TRAIN]
        assert ours == pytest.approx(column, abs=1e-6)
    assert tool.joint(of_less(True), "max").tolist() == pytest.approx([0.7, 0.5, -0.119573], abs=1e-6)


@mutant(
    "influence: always normalised",
    "tools/influence.py",
    "length_of(gradient) if normalise else 1.0)\n",
    "length_of(gradient))\n",
)
@mutant("influence: sum over groups", "tools/influence.py", "summed.mean(dim=1)", "summed.sum(dim=1)")
def test_without_normalisation_it_is_the_mean_inner_product():
    """Catches gradients that are made unit vectors all the same: 4.5 is (3 + 8 + 0 + 7) / 4."""
    assert tool.joint(of_less(False), "mean").tolist() == pytest.approx([4.5, 0.5, 0], abs=1e-9)


def test_one_weight_by_hand():
    """l = (theta - x)^2 / 2 at theta 0: x = 1 and a probe of x = 0.5 have the gradients -1 and -0.5.

    A step of 0.1 against -1 leads to theta 0.1, and the probe's loss from 0.125 to 0.08: it helps, and the
    influence is +0.5.
    """
    found = tool.influence([torch.tensor([-1.0])], tool.probe_vector([[torch.tensor([-0.5])]], False), False)
    assert found == 0.5
    eta, loss = 1e-6, lambda theta: (theta - 0.5) ** 2 / 2
    assert (loss(0) - loss(0 - eta * -1.0)) / eta == pytest.approx(found, abs=1e-5)
    assert loss(0.1) == pytest.approx(0.08)


@mutant(
    "influence: checkpoints alike", "tools/influence.py", "[t / total for t in", "[1 / checkpoints for t in"
)
@mutant(
    "influence: the first checkpoint twice",
    "tools/influence.py",
    "weights[:, None, None] * influences",
    "weights[:, None, None] * influences[:1]",
)
def test_checkpoints_have_weights_by_their_number():
    """.1 x .5 + .2 x .1 - .3 x .2 + .4 x .3 = 0.13."""
    assert tool.alphas(4) == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert tool.alphas(1) == [1.0]
    influences = torch.tensor([0.5, 0.1, -0.2, 0.3], dtype=torch.float64)[:, None, None]
    for over_groups in ("mean", "max"):
        assert tool.joint(influences, over_groups).tolist() == pytest.approx([0.13])


INFLUENCES, TOKENS, SOURCES = [0.2, -0.1, 0.4, 0.6, -0.3, 0.1], [100, 50, 80, 20, 60, 40], list("aabbcc")


@mutant("influence: rows of one weight in rho", "tools/influence.py", "+= value * size", "+= value")
@mutant(
    "influence: shares of unhelpful sources",
    "tools/influence.py",
    "{source: max(value, 0.0) / total for",
    "{source: value / total for",
)
@mutant(
    "influence: unhelpful sources in the sum",
    "tools/influence.py",
    "sum(max(value, 0.0) for value",
    "sum(value for value",
)
def test_shares_of_sources_are_those_of_the_paper():
    """Catches a mean over rows in place of tokens, and shares that are negative. a: (20 - 5)/150 = .1."""
    rhos = tool.rho(INFLUENCES, TOKENS, SOURCES)
    assert [rhos[source] for source in "abc"] == pytest.approx([0.1, 0.44, -0.14])
    shares = tool.mixture(rhos)
    assert [shares[source] for source in "abc"] == pytest.approx([0.185185, 0.814815, 0], abs=1e-6)


@pytest.mark.parametrize("rhos", [{"a": -0.1, "b": -0.2}, {"a": 0.0}])
def test_there_is_no_mixture_of_sources_that_do_not_help(rhos):
    """Catches shares that are 0/0, or those of the least harmful."""
    assert tool.mixture(rhos) is None


@mutant(
    "influence: the least helpful rows",
    "tools/influence.py",
    "key=lambda row: -influences[row]",
    "key=lambda row: influences[row]",
)
@mutant(
    "influence: rows that just do not help",
    "tools/influence.py",
    "influences[row] > above",
    "influences[row] >= above",
)
def test_the_most_helpful_rows_are_kept_in_their_order():
    """Catches the other end, an order by influence, ties by chance, and rows that make no difference."""
    numbers = [0.3, -0.1, 0.0, 0.5, 0.3, 0.3]
    assert tool.kept_rows(numbers, 0.5, None) == [0, 3, 4]
    assert tool.kept_rows(numbers, 1.0, 0.0) == [0, 3, 4, 5]
    assert tool.kept_rows(numbers, 0.01, None) == [3]
    assert tool.kept_rows(numbers, 0.1 * 3, 0.4) == [3]  # 0.3 x 6 is 1.8, or two rows
    assert tool.kept_rows([0.1] * 30, 0.1, None) == [0, 1, 2]  # 0.1 x 30 is a hair above 3


def test_a_gradient_of_zeros_has_no_influence():
    """Catches 0/0 where a row is learned to the last bit."""
    assert tool.influence(vector(0, 0, 0), vector(1, 2, 3), True) == 0.0
    assert tool.probe_vector([vector(0, 0, 0), vector(2, 0, 0)], True)[0].tolist() == [0.5]


# --- gradients of a model -----------------------------------------------------------------------------------


def row(prompt, completion, **more) -> Row:
    return Row((), "", prompt_ids=tuple(prompt), completion_ids=tuple(completion), **more)


SOME = [row([5, 9, 2], [7, 7, EOS]), row([3], [8]), row([4, 0, EOS, 6], [0, 11, 12, 13, 14, EOS])]
PROBE = [row([5, 2], [7, 40, EOS]), row([30, 31, 32], [9, 9])]


def probe_loss(model) -> float:
    """Mean over the probe's rows of the mean loss of their tokens: plain forward passes."""
    found = 0.0
    with torch.no_grad():
        for each in PROBE:
            tables = kit.distributions(model, list(each.prompt_ids), list(each.completion_ids), 1.0)
            picked = [table[token].item() for table, token in zip(tables, each.completion_ids)]
            found -= sum(picked) / len(picked) / len(PROBE)
    return found


def moved(model, direction: list[torch.Tensor], step: float) -> float:
    """The probe's loss after a step against the direction."""
    with torch.no_grad():
        for sign in (-1, 1):
            for weight, part in zip(model.parameters(), direction):
                weight.add_(part, alpha=sign * step)
            if sign < 0:
                loss = probe_loss(model)
    return loss


@mutant("influence: sum over tokens", "tools/influence.py", "-logprobs.mean()", "-logprobs.sum()")
@mutant(
    "influence: the gradient of the likelihood",
    "tools/influence.py",
    "grad(-logprobs.mean()",
    "grad(logprobs.mean()",
)
def test_gradient_of_a_row_is_that_of_sft():
    """Catches a loss, a mask or a mean that sft.py does not have for the same row alone."""
    with kit.numbers(torch.float64):
        model = random_model()
        for each in SOME:
            ours = torch.cat([part.flatten() for part in tool.row_gradient(model, each)])
            model.zero_grad()
            sft.accumulate_gradients(model, rows.batch_of([each], "cpu"), sft.Args(micro_batch_tokens=1000))
            assert distance(ours, gradient(model)) <= 1e-12


@mutant(
    "influence: another temperature",
    "tools/influence.py",
    "[[*row.completion_ids]], 1.0)",
    "[[*row.completion_ids]], 0.7)",
)
@mutant("influence: harm is help")
@mutant("influence: sum over the probe")
def test_sign_and_scale_against_finite_differences():
    """(L(theta - eta g_i) - L(theta + eta g_i)) / (-2 eta) -> <g_probe, g_i>: so much does the probe's loss
    fall by SGD on row i."""
    with kit.numbers(torch.float64):
        model = random_model(kind="qwen2", tied=True)
        probe = tool.probe_vector([tool.row_gradient(model, each) for each in PROBE], False)
        for each in SOME:
            direction, eta = tool.row_gradient(model, each), 1e-6
            fall = (moved(model, direction, -eta) - moved(model, direction, eta)) / (2 * eta)
            assert tool.influence(direction, probe, False) == pytest.approx(fall, rel=1e-6, abs=1e-8)


def test_normalised_is_the_mean_cosine():
    """Catches lengths of single weights in place of the whole gradient's: numpy's dot products."""
    with kit.numbers(torch.float64):
        model = random_model()
        flat = lambda each: torch.cat([part.flatten() for part in tool.row_gradient(model, each)]).numpy()  # noqa: E731
        probe = tool.probe_vector((tool.row_gradient(model, each) for each in PROBE), True)
        for each in SOME:
            ours, cosines = flat(each), []
            for theirs in map(flat, PROBE):
                cosines.append(ours @ theirs / math.sqrt((ours @ ours) * (theirs @ theirs)))
            found = tool.influence(tool.row_gradient(model, each), probe, True)
            assert found == pytest.approx(sum(cosines) / 2, rel=1e-12)


def test_a_gradient_that_is_not_finite_is_named():
    """Catches a row whose influence is no number, and that of every row after it."""
    model = random_model()
    with torch.no_grad():
        model.model.norm.weight[0] = math.nan
    with pytest.raises(SystemExit, match="error: x, line 7: the gradient is not finite"):
        tool.row_gradient(model, row([1], [2], place="x, line 7"))


# --- the command --------------------------------------------------------------------------------------------


def written(path: Path, *lines) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def sums(count: int, first: int = 0, **more) -> list[dict]:
    return [
        {"prompt": f"{i}+1?", "completion": f"{i}+1={i + 1}", **more} for i in range(first, first + count)
    ]


@pytest.fixture
def flags(toy_model, tmp_path) -> dict:
    """Flags of a command on 12 rows of two sources, with a probe of two rows."""
    lines = sums(6, source="sums", id=7) + [
        {"prompt": f"{i}?", "solution": "abc" * (i + 1), "source": "words"} for i in range(6)
    ]
    return dict(
        data=(written(tmp_path / "mix.jsonl", *lines),),
        probe=(str(written(tmp_path / "probe.jsonl", *sums(2, 50))),),
        model=toy_model,
        out=tmp_path / "kept.jsonl",
    )


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def command(flags: dict, **changes) -> list[float]:
    return tool.main(tool.Args(**flags | changes))


@mutant(
    "influence: influences of other rows",
    "tools/influence.py",
    "numbered[i][0]: influences[i] for",
    "numbered[i][0]: influences[i - 1] for",
)
def test_rows_are_kept_with_their_influence_and_sources_get_shares(flags, tmp_path, capsys):
    """Catches lines that lose their fields or their order, rows and sources that are mixed up, and a file
    that sft.py does not take."""
    weights = tmp_path / "weights.json"
    influences = command(flags, keep_share=0.5, mixture=weights)
    lines = read(flags["out"])
    kept = sorted(sorted(range(12), key=lambda i: -influences[i])[:6])
    all_lines = read(flags["data"][0])
    assert lines == [all_lines[i] | {"influence": influences[i]} for i in kept]
    shares = json.loads(weights.read_text())
    screen = capsys.readouterr().out
    assert set(shares) == {"sums", "words"} and sum(shares.values()) == pytest.approx(1)
    assert "source                       rows     tokens         rho       w" in screen
    assert "kept.jsonl: 6 of 12 rows" in screen and "next: python sft.py --data" in screen
    learned = rows.read_rows(flags["data"])
    assert rows.read_mixture(weights, learned) == {name: share for name, share in shares.items() if share}
    assert len(rows.read_rows((flags["out"],))) == 6


@mutant(
    "influence: rho of all tokens",
    "tools/influence.py",
    "len(row.completion_ids) for _, row",
    "row.length for _, row",
)
def test_shares_are_by_the_tokens_with_loss(flags, monkeypatch, tmp_path):
    """Catches tokens of prompts that count in rho: influences of .01, .02, ..., .12 by hand, the tokens by
    the tokenizer."""
    numbers = itertools.count(1)
    monkeypatch.setattr(tool, "influence", lambda *of_row: next(numbers) / 100)
    command(flags, mixture=tmp_path / "weights.json")
    tokenizer, rhos = AutoTokenizer.from_pretrained(flags["model"]), []
    texts = [line.get("completion", line.get("solution")) for line in read(flags["data"][0])]
    tokens = [len(tokenizer.encode(text, add_special_tokens=False)) + 1 for text in texts]  # with the end
    for part in (range(6), range(6, 12)):
        rhos.append(sum(tokens[i] * (i + 1) / 100 for i in part) / sum(tokens[i] for i in part))
    shares = json.loads((tmp_path / "weights.json").read_text())
    expected = {"sums": rhos[0] / sum(rhos), "words": rhos[1] / sum(rhos)}
    assert shares == pytest.approx(expected, rel=1e-12)


@mutant(
    "influence: numbers without the long rows",
    "tools/influence.py",
    "numbered[i][0]: influences[i] for i",
    "i: influences[i] for i",
)
def test_a_row_that_is_too_long_is_left_out(flags, tmp_path, capsys):
    """Catches influences that slip to the row before, since a row was too long to be scored."""
    long = {"prompt": "1?", "completion": "1" * 90}
    data = written(tmp_path / "long.jsonl", long, *sums(2))
    influences = command(flags, data=(data,), max_length=60)
    assert read(flags["out"]) == [line | {"influence": own} for line, own in zip(sums(2), influences)]
    assert "--over-length drop: left out: 1 of 3 rows have more than 60 tokens" in capsys.readouterr().out


def test_a_row_of_the_probe_itself_has_a_cosine_of_one(flags, capsys):
    """Catches rows that are scored with another prompt or end than the probe's, and a leak without a word."""
    probe = written(flags["out"].with_name("one.jsonl"), *sums(1, 3))
    influences = command(flags, probe=(str(probe),))
    assert influences[3] == pytest.approx(1.0, abs=1e-6) and max(influences[:3] + influences[4:]) < 0.999
    assert "warning: 1 rows are rows of the probe too, and help themselves" in capsys.readouterr().out


@mutant(
    "influence: all checkpoints are the first",
    "tools/influence.py",
    "enumerate(models, start=1)",
    "enumerate(models[:1] * len(models), start=1)",
)
@mutant(
    "influence: groups of another order",
    "tools/influence.py",
    "for vector in vectors])",
    "for vector in vectors[:1] * len(vectors)])",
)
def test_checkpoints_and_groups_are_those_of_single_commands(flags, tmp_path):
    """Catches checkpoints or groups that are mixed up, or of another weight."""
    other = toys.save_toy_model(tmp_path / "other")
    file = Path(other) / "model.safetensors"
    save_file({name: weight * 1.2 for name, weight in load_file(file).items()}, file, {"format": "pt"})
    two = written(tmp_path / "two.jsonl", *sums(2, 50, source="a"), *sums(2, 70, source="b"))
    of = lambda name, number: written(tmp_path / f"{name}.jsonl", *sums(2, number))  # noqa: E731
    single = {}
    for name, number in (("a", 50), ("b", 70)):
        for t, checkpoint in enumerate((flags["model"], other)):
            own = dict(probe=(str(of(name, number)),), model=checkpoint, out=tmp_path / f"{name}{t}.jsonl")
            single[name, t] = torch.tensor(command(flags, **own))
    joint = {name: single[name, 0] / 3 + single[name, 1] * 2 / 3 for name in "ab"}
    both = dict(probe=(str(two),), model=None, checkpoints=(flags["model"], other))
    found = command(flags, **both, out=tmp_path / "mean.jsonl")
    assert found == pytest.approx(((joint["a"] + joint["b"]) / 2).tolist(), rel=1e-5, abs=1e-7)
    folder = tmp_path / "mean.scores"
    found = command(flags, **both, out=tmp_path / "max.jsonl", over_groups="max", scores_dir=folder)
    assert found == pytest.approx(torch.maximum(joint["a"], joint["b"]).tolist(), rel=1e-5, abs=1e-7)


def test_rows_of_dev_and_test_are_neither_scored_nor_lost(flags, tmp_path):
    """Catches held-out rows that are chosen among, or that the kept file has no more; and a probe of a file's
    dev rows that takes its others."""
    lines = [*sums(3), *sums(1, 50, split="dev"), *sums(1, 60, split="test"), *sums(1, 70, split="train")]
    data = written(tmp_path / "splits.jsonl", *lines)
    influences = command(flags, data=(data,), probe=(str(data),), keep_share=0.01)
    assert len(influences) == 4
    best = max(range(4), key=influences.__getitem__)
    kept = [line for line in read(flags["out"]) if "influence" in line]
    assert kept == [[*lines[:3], lines[5]][best] | {"influence": influences[best]}]
    assert [line for line in read(flags["out"]) if "influence" not in line] == lines[3:5]
    header = read(tmp_path / "kept.scores" / "checkpoint-1.jsonl")[0]
    assert [size for size, _ in header["groups"].values()] == [1] and header["rows"] == 4


def test_each_answer_of_a_chat_has_its_own_influence(flags, tmp_path):
    """Catches a conversation of which one answer stands for all, and a line that sft.py reads as another."""
    turns = [
        {"role": role, "content": text} for role, text in zip(["user", "assistant"] * 2, ["1", "2", "3", "4"])
    ]
    data = written(tmp_path / "chat.jsonl", {"messages": turns, "source": "chat", "id": 3}, *sums(1))
    influences = command(flags, data=(data,))
    assert len(influences) == 3
    first, second, third = read(flags["out"])
    assert second == {
        "prompt": turns[:3],
        "completion": "4",
        "source": "chat",
        "id": 3,
        "influence": influences[1],
    }
    assert first["prompt"] == turns[:1] and third["prompt"] == "0+1?"
    before, after = rows.read_rows((data,)), rows.read_rows((flags["out"],))
    assert [(each.turns, each.completion) for each in before] == [
        (each.turns, each.completion) for each in after
    ]


def test_a_task_is_a_probe_of_its_dev_problems(flags, tmp_path):
    """Catches a probe of training or test problems, and one without the task's own prompt and solution."""
    from plainrl.tasks import load_task

    found = tool.read_probe(tool.Args(**flags | {"probe": ("chain?horizon=2",), "probe_problems": 3}))
    assert [len(own) for own in found.values()] == [3]
    for index, each in enumerate(found["chain?horizon=2"]):
        problem = load_task("chain?horizon=2").problem("dev", index, 2**31)
        assert (each.first_prompt, each.completion) == (problem.prompt, problem.solution) and each.is_text


@mutant(
    "influence: a broken line is kept",
    "tools/influence.py",
    "os.truncate(path, sum(map(len, lines)))",
    "pass",
)
@mutant(
    "influence: a row is scored twice",
    "tools/influence.py",
    "in range(len(found), len(rows)):",
    "in range(max(0, len(found) - 1), len(rows)):",
)
def test_a_command_that_is_broken_off_goes_on(flags, monkeypatch, tmp_path, capsys):
    """Catches rows that are scored twice or not at all, and half a line that spoils the file."""
    whole = command(flags, out=tmp_path / "whole.jsonl")
    original, calls = tool.row_gradient, []

    def interrupted(model, row):
        calls.append(row)
        if len(calls) == 2 + 5:  # two of the probe
            raise KeyboardInterrupt
        return original(model, row)

    with monkeypatch.context() as patch:
        patch.setattr(tool, "row_gradient", interrupted)
        with pytest.raises(SystemExit, match="stopped; the same command goes on where it was"):
            command(flags)
    scores = tmp_path / "kept.scores" / "checkpoint-1.jsonl"
    assert len(read(scores)) == 1 + 4 and not flags["out"].exists()
    with open(scores, "a") as file:
        file.write('{"row": 4, "infl')
    assert command(flags) == whole
    assert "4 of 12 rows are scored already" in capsys.readouterr().out
    assert scores.read_bytes() == (tmp_path / "whole.scores" / "checkpoint-1.jsonl").read_bytes()
    assert flags["out"].read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_another_rule_takes_no_gradient_anew(flags, monkeypatch, tmp_path):
    """Catches hours that are spent twice, and scores of other rows or of another kind that are taken for
    these."""
    first, folder = command(flags), tmp_path / "kept.scores"
    again = dict(out=tmp_path / "again.jsonl", scores_dir=folder)
    with monkeypatch.context() as patch:
        patch.setattr(tool, "row_gradient", lambda model, row: pytest.fail("a gradient is taken"))
        assert command(flags, **again, keep_share=0.25) == first
    assert len(read(tmp_path / "again.jsonl")) == 3
    again["out"] = tmp_path / "third.jsonl"
    with pytest.raises(SystemExit, match="checkpoint-1.jsonl: normalise was True and is now False; give"):
        command(flags, **again, normalise=False)
    data = written(tmp_path / "other.jsonl", *sums(12))
    with pytest.raises(SystemExit, match="checkpoint-1.jsonl: rows_hash was .* and is now"):
        command(flags, **again, data=(data,))
    scores = folder / "checkpoint-1.jsonl"
    scores.write_text(scores.read_text().replace('"row": 3', '"row": 5'))
    with pytest.raises(SystemExit, match="checkpoint-1.jsonl: is damaged; delete it, and its gradients"):
        command(flags, **again)


def test_no_shares_are_written_where_no_source_helps(flags, monkeypatch, tmp_path, capsys):
    """Catches a mixture of harmful sources."""
    monkeypatch.setattr(tool, "influence", lambda *of_row: -1.0)
    with pytest.raises(SystemExit, match="--mixture: no source helps, since no rho is above 0"):
        command(flags, out=None, mixture=tmp_path / "w.json")
    assert not (tmp_path / "w.json").exists()
    assert "sums                            6" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="--keep-above 0: no row's influence is above it; give a lower one"):
        command(flags, keep_above=0.0)


def test_adapters_alone_have_gradients_and_fresh_ones_are_said(flags, tmp_path, capsys, quick):
    """Catches gradients of a frozen base, a checkpoint whose adapter is not loaded, and a measurement of half
    of the adapter without a word."""
    pytest.importorskip("peft")
    own = dict(lora_rank=2, lr=0.1, steps=2, eval_every=5, data=flags["data"], rows_per_step=4)
    run = toys.quick_row_flags(flags["model"], tmp_path / "run", **own)
    sft.main(sft.Args(**run), task=toys.HashTask())
    capsys.readouterr()
    fresh = command(flags, lora_rank=2)
    assert "warning: --lora-rank: every B of" in capsys.readouterr().out
    last = str(tmp_path / "run" / "last")
    again = dict(lora_rank=2, checkpoints=(last,), out=tmp_path / "warm.jsonl")
    warm = command(flags, **again)
    assert "warning: --lora-rank" not in capsys.readouterr().out and warm != fresh
    model, _ = tool.load_checkpoint(last, tool.Args(**flags | again))
    found = tool.row_gradient(model, row([5], [6, 7]))
    names = [name for name, weight in model.named_parameters() if weight.requires_grad]
    assert len(found) == len(names) and all(".lora_" in name for name in names)
    assert all(part.any() for part in found)
    with pytest.raises(
        SystemExit, match="--checkpoints .*: is damaged .*; give folders of a run with --lora"
    ):
        command(flags, lora_rank=2, checkpoints=(flags["model"],), out=tmp_path / "no.jsonl")


@pytest.mark.parametrize(
    "changes, said",
    [
        (dict(data=()), "--data: names nothing; give one or more"),
        (dict(probe=()), "--probe: names nothing; give one or more"),
        (dict(out=None), "--out: nothing would be kept of it; give --out FILE, --mixture FILE or"),
        (dict(keep_share=0.0), "--keep-share 0.0: must be above 0"),
        (dict(out=None, mixture="w.json", keep_share=0.5), "--keep-share, --keep-above: choose the rows of"),
        (dict(mixture="kept.jsonl"), "--mixture .*: is --out as well; give another name"),
        (dict(out="mix.jsonl"), "--out .*mix.jsonl: exists and is never overwritten"),
        (dict(mixture="probe.jsonl"), "--mixture .*probe.jsonl: exists and is never overwritten"),
        (dict(scores_dir="mix.jsonl"), "--scores-dir .*: is a file; choose a folder"),
        (dict(checkpoints=("a", "b")), "--model: --checkpoints are models already; leave one of them out"),
        (dict(model=None, checkpoints=("./no",)), "--checkpoints ./no: no such folder or file"),
        (dict(probe=("no.jsonl",)), "--probe no.jsonl: no such file"),
        (dict(probe=("nothing",)), "--probe nothing: unknown; use chain"),
        (dict(probe=("chain?step=3",)), "--probe chain.step=3: unknown setting 'step'"),
        (dict(data=("no.jsonl",)), "--data .*no.jsonl: cannot read the file"),
        (dict(max_length=3), "--max-length: no row is left: 12 of 12 rows"),
    ],
)
def test_what_cannot_work_is_one_line_and_writes_nothing(flags, tmp_path, monkeypatch, changes, said):
    """Catches a traceback, an output that is written over, and a run of hours with nothing to write."""
    monkeypatch.chdir(tmp_path)
    paths = {"out", "mixture", "scores_dir"}
    changes = {
        name: tmp_path / value if name in paths and value else value for name, value in changes.items()
    }
    changes["data"] = (
        tuple(tmp_path / name for name in changes["data"]) if "data" in changes else flags["data"]
    )
    before = {path: path.read_bytes() for path in tmp_path.glob("*.jsonl")}
    with pytest.raises(SystemExit, match=f"^error: {said}"):
        command(flags, **changes)
    assert {path: path.read_bytes() for path in tmp_path.glob("*.jsonl")} == before


def test_sources_are_needed_for_a_mixture_and_for_nothing_else(flags, tmp_path, capsys):
    """Catches a share for rows of which nobody knows where they are from."""
    data = (written(tmp_path / "bare.jsonl", *sums(3, source="a"), *sums(1, 9)),)
    with pytest.raises(SystemExit, match="--mixture: .*bare.jsonl, line 4 has no field 'source'; every row"):
        command(flags, data=data, mixture=tmp_path / "w.json")
    assert len(command(flags, data=data)) == 4
    assert "(none)                          1" in capsys.readouterr().out
