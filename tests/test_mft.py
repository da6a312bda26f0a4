"""papers/mft.py: what is replaced, how often and with what, the loss under it, and a run from beginning to
end. What it has of sft.py is tests/test_sft.py's: without replacements both are the same."""

import json
from pathlib import Path
from types import SimpleNamespace

import kit
import numpy as np
import pytest
import test_sft
import torch
import toys
from mutants import mutant
from random_model import EOS, distance, gradient, random_model
from safetensors.torch import load_file
from test_sft import row, some_rows
from transformers import AutoTokenizer

import sft
from papers import mft
from plainrl import rows, scoring
from plainrl.rollout import Batch, pad

# --- how much is replaced -----------------------------------------------------------------------------------


@mutant("mft: share without its + 1", "papers/mft.py", "(warmup_share * steps + 1)", "(warmup_share * steps)")
@mutant("mft: share without an end", "papers/mft.py", "return min(most, most * done", "return (most * done")
@mutant("mft: share of the whole run", "papers/mft.py", "(warmup_share * steps + 1)", "(steps + 1)")
@pytest.mark.parametrize(
    "steps, done, expected",
    [
        (100, 0, 0.0),
        (100, 1, 0.005970),  # .4 / 67
        (100, 33, 0.197015),
        (100, 66, 0.394030),
        (100, 67, 0.4),
        (100, 99, 0.4),
        (80, 20, 0.148699),  # .4 * 20 / 53.8
        (80, 53, 0.394052),
        (80, 54, 0.4),
    ],
)
def test_schedule_of_the_authors_line(steps, done, expected):
    """Catches a share that rises too fast, too slowly or too far: values of the authors' line, p_max 0.4."""
    assert mft.mask_rate(done, steps, 0.4, 0.66) == pytest.approx(expected, abs=5e-7)


TARGET = [5, 6, 7, 8, 9, 2]
MASK = np.array([63])  # in none of the rows


def draws(substitutes, rate: float = 0.4, count: int = 4000) -> np.ndarray:
    """What is shown of TARGET, [count, 6]."""
    return np.array([mft.corrupt(TARGET, rate, substitutes, 0, 1 + i // 8, i % 8) for i in range(count)])


@mutant(
    "mft: what should stay is replaced", "papers/mft.py", "rng.random(len(ids)) < rate", "rng.random() > rate"
)
@mutant("mft: whole rows are replaced", "papers/mft.py", "rng.random(len(ids)) < rate", "rng.random() < rate")
@mutant(
    "mft: the end is never replaced",
    "papers/mft.py",
    "  # [T]\n    return np.where(replaced,",
    "  # [T]\n    replaced[-1] = False\n    return np.where(replaced,",
)
def test_replacements_are_those_of_the_authors_code():
    """Catches tokens that are replaced together, at some places only, or too often. In 4,000 rows of six the
    authors' code replaced .392 to .408 of each place, 2.40 a row with variance 1.44; it kept 1 in 10 tokens
    of those that it replaced with one of ten."""
    replaced = draws(MASK) == MASK  # [4000, 6]
    assert np.abs(replaced.mean(axis=0) - 0.4).max() < 0.031  # 4 times sqrt(.4 * .6 / 4000)
    counts = replaced.sum(axis=1)
    assert counts.mean() == pytest.approx(2.4, abs=0.076)  # 4 times sqrt(1.44 / 4000)
    assert counts.var() == pytest.approx(1.44, abs=0.14)
    correlations = np.corrcoef(replaced.T)[np.triu_indices(6, 1)]
    assert np.abs(correlations).max() < 0.063  # 4 / sqrt(4000)
    random = draws(np.arange(10))
    assert ((random == TARGET) | replaced).all()  # the same places, whatever takes their place
    assert (random == TARGET)[replaced].mean() == pytest.approx(0.1, abs=0.013)
    shares = np.bincount(random[replaced], minlength=10) / replaced.sum()
    assert np.abs(shares - 0.1).max() < 0.013  # every id is as likely, 4 times sqrt(.09 / 9600)


@mutant(
    "mft: the same in every step",
    "papers/mft.py",
    "default_rng((seed, step, place))",
    "default_rng((seed, place))",
)
@mutant(
    "mft: the same in every row",
    "papers/mft.py",
    "default_rng((seed, step, place))",
    "default_rng((seed, step))",
)
@mutant(
    "mft: the same for every seed",
    "papers/mft.py",
    "default_rng((seed, step, place))",
    "default_rng((step, place))",
)
@mutant(
    "mft: draws that no resumed run finds again",
    "papers/mft.py",
    "default_rng((seed, step, place))",
    "default_rng()",
)
def test_replacements_are_a_function_of_seed_step_and_place():
    """Catches one that depends on what was drawn before, and equal draws in two steps, rows or runs."""
    ids = list(range(10, 40))
    shown = {key: mft.corrupt(ids, 0.4, MASK, *key) for key in [(0, 1, 0), (0, 1, 1), (0, 2, 0), (1, 1, 0)]}
    assert len(set(map(tuple, shown.values()))) == 4
    assert all(mft.corrupt(ids, 0.4, MASK, *key) == found for key, found in shown.items())
    assert mft.corrupt(ids, 0.0, MASK, 0, 1, 0) == ids
    assert mft.corrupt(ids, 1.0, MASK, 0, 1, 0) == [63] * 30


def test_share_that_was_changed_by_hand():
    """Catches a mean over rows, or of the tokens that are left: 3 of 5."""
    assert mft.share_changed([[1, 2, 9, 9], [9]], [[1, 2, 3, 4], [5]]) == 3 / 5


@mutant("mft: special tokens among the random", "papers/mft.py", "if id not in special and", "if")
@mutant("mft: ids that the model has not", "papers/mft.py", " and id < vocabulary]", "]")
@mutant(
    "mft: masks of the end token",
    "papers/mft.py",
    "np.array([tokenizer.pad_token_id])",
    "np.array([tokenizer.eos_token_id])",
)
def test_what_may_take_the_place_of_a_token(toy_model):
    """Catches a turn or an end of text in the middle of a completion, an id without an embedding, and a mask
    that is another token."""
    tokenizer = AutoTokenizer.from_pretrained(toy_model)
    names = ("<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
    named = set(tokenizer.convert_tokens_to_ids(names))
    vocabulary = len(tokenizer)
    found = mft.substitutes_for("random", tokenizer, vocabulary)
    assert sorted({*found.tolist(), *named}) == list(range(vocabulary)) and not named & {*found.tolist()}
    assert mft.substitutes_for("random", tokenizer, 50).max() == 49
    assert mft.substitutes_for("pad", tokenizer, vocabulary).tolist() == [tokenizer.pad_token_id]
    tokenizer.pad_token = None
    with pytest.raises(
        ValueError, match="--mask-with pad: --model has no padding token; use --mask-with ran"
    ):
        mft.substitutes_for("pad", tokenizer, vocabulary)


# --- the loss -----------------------------------------------------------------------------------------------

W = torch.tensor([[0.0, 1, 2, 3], [1, 0, 1, 2], [2, 1, 0, 1], [3, 2, 1, 0]])  # logits after each token


class Bigram(torch.nn.Module):
    """The next token depends on the last one alone: its hidden state is one-hot, its head is W."""

    device, config = torch.device("cpu"), SimpleNamespace(_attn_implementation="shared_prompts")

    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(4, 4, bias=False)
        self.head.weight.data = W.T.clone()

    def get_output_embeddings(self):
        return self.head

    def base_model(self, input_ids, **_):
        return SimpleNamespace(last_hidden_state=torch.nn.functional.one_hot(input_ids, 4).float())


@mutant(
    "mft: the model reads the targets",
    "plainrl/scoring.py",
    "completion_ids = [row[: len(ids)] for row, ids in zip(shown_ids.tolist(), completion_ids)]",
    "pass",
)
@mutant(
    "mft: what is shown is the target",
    "plainrl/scoring.py",
    "    if shown_ids is not None:\n",
    "    if shown_ids is not None:\n        targets = shown_ids\n",
)
@pytest.mark.parametrize("share_prompts", [True, False])
def test_loss_of_a_bigram_model_by_hand(share_prompts):
    """Catches targets that are replaced too, and inputs that are not, are shifted or are those of another
    row. Prompt 0, target 1 2 3: the loss after token i is the log-sum-exp of W's row i less the target's
    logit."""
    prompts, targets = [[0], [0]], [[1, 2, 3], [1, 2, 3]]
    shown = torch.tensor([[1, 2, 3], [3, 2, 3]])
    logprobs, _ = scoring.score(Bigram(), prompts, targets, 1.0, share_prompts=share_prompts, shown_ids=shown)
    clean, corrupted = -logprobs
    assert clean.tolist() == pytest.approx([2.440190, 1.626523, 1.626523], abs=1e-6)
    assert clean.mean().item() == pytest.approx(1.897746, abs=1e-6)
    assert corrupted.tolist() == pytest.approx([2.440190, 2.440190, 1.626523], abs=1e-6)
    assert corrupted.mean().item() == pytest.approx(2.168968, abs=1e-6)
    batch = Batch(prompts[1:], targets[1:], rows.batch_of([row([0], [1, 2, 3])], "cpu").columns)
    batch["shown_ids"] = shown[1:]
    sums = mft.accumulate_gradients(Bigram(), batch, mft.Args(micro_batch_tokens=100))
    assert sums["total_loss"] == pytest.approx(2.168968, abs=1e-6)


def corrupted_batch(rate: float, learned: list) -> tuple[list[list[int]], Batch]:
    batch = rows.batch_of(learned, "cpu")
    shown = [mft.corrupt(ids, rate, np.arange(2, 60), 0, 3, i) for i, ids in enumerate(batch.completion_ids)]
    batch["shown_ids"], _ = pad(shown, "cpu")
    return shown, batch


def update(model, batch: Batch, **flags):
    model.zero_grad()
    sums = mft.accumulate_gradients(model, batch, mft.Args(**{"micro_batch_tokens": 10**6} | flags))
    return sums, gradient(model)


@mutant("mft: clean inputs", "papers/mft.py", 'score(*inputs, shown_ids=part["shown_ids"])', "score(*inputs)")
@mutant(
    "mft: targets left out of the loss",
    "papers/mft.py",
    '[args.aggregation](batch["completion_mask"])',
    '[args.aggregation](batch["completion_mask"] & (batch["shown_ids"] % 2 == 0))',
)
@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean"])
def test_loss_and_gradient_of_plain_loops_however_it_is_split(aggregation):
    """Catches prompts that are touched, targets out of the loss, and what is shown that does not go with its
    row into a micro-batch: torch's cross-entropy of plain forward passes, a row at a time."""
    learned, losses = some_rows(), []
    with kit.numbers(torch.float64):
        model = random_model()
        shown, batch = corrupted_batch(0.4, learned)
        sums, ours = update(model, batch, aggregation=aggregation)
        others = [update(model, batch, aggregation=aggregation, micro_batch_tokens=n) for n in (1, 40)]
        model.zero_grad()
        for each, inputs in zip(learned, shown):
            ids = torch.tensor([[*each.prompt_ids, *inputs]])
            logits = model(input_ids=ids).logits[0, len(each.prompt_ids) - 1 : -1]
            targets = torch.tensor(each.completion_ids)
            losses.append(torch.nn.functional.cross_entropy(logits, targets, reduction="none"))
        means = torch.stack([loss.mean() for loss in losses])
        loss = torch.cat(losses).mean() if aggregation == "token_mean" else means.mean()
        loss.backward()
        theirs = gradient(model)
    assert sums["tokens"] == sum(len(each.completion_ids) for each in learned)
    for found, own in [(sums, ours), *others]:
        assert found["total_loss"] == pytest.approx(loss.item(), rel=1e-12)
        assert distance(own, theirs) <= 1e-10


def test_the_first_token_and_the_last_ones_own_id_do_not_matter():
    """Catches prompts that are touched, and a shift by one: before the first token there is only the prompt,
    and behind the last one comes nothing."""
    with kit.numbers(torch.float64):
        model, prompts, targets = random_model(), [[5, 6, 7], [8, 9]], [[3, 4, 5, EOS], [9, 8, EOS]]
        scored = lambda *shown: scoring.score(  # noqa: E731
            model, prompts, targets, 1.0, shown_ids=pad([*shown], "cpu")[0]
        )[0]
        clean = scored(*targets)
        assert torch.equal(scored([3, 4, 5, 40], [9, 8, 41]), clean)
        other = scored([30, 31, 32, 33], [34, 35, 36])
    assert (other[:, 0] - clean[:, 0]).abs().max() < 1e-12
    assert (other[:, 1:] - clean[:, 1:]).abs()[clean[:, 1:] != 0].min() > 1e-6


@pytest.mark.parametrize("share_prompts", [True, False])
def test_what_is_shown_has_the_completions_shape_and_changes_nothing_where_it_is_theirs(share_prompts):
    """Catches another way to the same numbers, and ids of another batch that would be cut without a word."""
    model, prompts, targets = random_model(torch.float32), [[5, 6, 7], [8, 9]], [[3, 4, 5, EOS], [9, 8]]
    given = (model, prompts, targets, 1.0, scoring.logprob_and_entropy, share_prompts)
    plain, shown = scoring.score(*given), scoring.score(*given, pad(targets, "cpu")[0])
    assert all(map(torch.equal, plain, shown))
    with pytest.raises(ValueError, match=r"shown_ids are \[2, 3\], and the completions \[2, 4\]"):
        scoring.score(*given, torch.zeros(2, 3, dtype=torch.long))


# --- a run --------------------------------------------------------------------------------------------------


@pytest.fixture
def flags(toy_model, tmp_path, quick):
    """Flags of a run of five steps on a file of 40 rows, 4 of which are held out."""
    data = test_sft.written(tmp_path, *test_sft.lines_of_sums())
    return toys.quick_row_flags(toy_model, tmp_path / "run", data=(data,), eval_every=5)


def train(flags: dict, script=mft, **changes) -> Path:
    args = script.Args(**flags | changes)
    script.main(args, task=toys.HashTask())
    return args.out_dir


def steps_of(folder: Path) -> list[dict]:
    return [record for record in toys.records(folder) if "sft/loss" in record]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "last" / "model.safetensors")


def test_without_replacements_it_is_sft(flags):
    """Catches any other difference to the base, in weights and log, to the last bit."""
    ours = train(flags, mask_rate=0.0)
    theirs = train(flags, script=sft, out_dir=flags["out_dir"].with_name("sft"))
    own = {"mft/rate", "mft/frac_corrupted"}
    without = [{name: v for name, v in record.items() if name not in own} for record in toys.records(ours)]
    assert without == toys.records(theirs)
    assert all(record["mft/rate"] == record["mft/frac_corrupted"] == 0 for record in steps_of(ours))
    ours, theirs = weights(ours), weights(theirs)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@mutant(
    "mft: share of the step that comes",
    "papers/mft.py",
    "mask_rate(step - 1, args.steps",
    "mask_rate(step, args.steps",
)
@mutant(
    "mft: shares of the tokens that stay",
    "papers/mft.py",
    "sum(id != other for",
    "sum(id == other for",
)
def test_a_run_replaces_more_and_more_and_scores_without(flags, capsys):
    """Catches a share that is not the schedule's, replacements that are not logged or reach the held-out
    rows, and a prompt or target that changes: with a learning rate of 0 nothing but what is read does."""
    folder = train(flags, mask_rate=0.9, mask_with="pad", lr=0.0, steps=5)
    clean = train(flags, script=sft, lr=0.0, steps=5, out_dir=flags["out_dir"].with_name("sft"))
    ours, theirs = steps_of(folder), steps_of(clean)
    rates = [record["mft/rate"] for record in ours]  # .9 d / 4.3
    assert rates == pytest.approx([0.0, 0.209302, 0.418605, 0.627907, 0.837209], abs=1e-6)
    for record in ours:  # 8 rows of about 8 tokens: 3 times sqrt(.25 / 64)
        assert abs(record["mft/frac_corrupted"] - record["mft/rate"]) < 0.19
    losses = [[record["sft/loss"] for record in records] for records in (ours, theirs)]
    assert losses[0][0] == losses[1][0]
    assert all(one != other for one, other in zip(losses[0][1:], losses[1][1:]))
    for name in ("sft/tokens_total", "sft/tokens_seen"):
        assert [record[name] for record in ours] == [record[name] for record in theirs]
    held_out = [
        [record["eval/loss"] for record in toys.records(path) if "eval/loss" in record]
        for path in (folder, clean)
    ]
    assert held_out[0] == held_out[1] and len(set(held_out[0])) == 1
    shown = [
        [json.loads(line)["completion"] for line in (path / "samples.jsonl").read_text().splitlines()]
        for path in (folder, clean)
    ]
    assert shown[0] == shown[1]


@pytest.mark.parametrize(
    "changes, said",
    [
        (
            dict(loss_on="all"),
            "--loss-on all: makes prompts targets, and prompts are never masked; use --los",
        ),
        (dict(mask_rate=1.1), "--mask-rate 1.1: must be at least 0 and at most 1"),
        (dict(mask_warmup_share=-0.1), "--mask-warmup-share -0.1: must be at least 0"),
        (dict(mask_rate=float("nan")), "--mask-rate nan: must be at least 0"),
    ],
)
def test_what_cannot_work_is_one_line_and_leaves_no_folder(flags, changes, said):
    """Catches a traceback, and a folder that would bar the next try."""
    with pytest.raises(SystemExit, match=f"^error: {said}"):
        train(flags, **changes)
    assert not flags["out_dir"].exists()


def test_a_model_without_padding_token_is_refused(flags, toy_model, tmp_path):
    """Catches a mask that is no token, found out in the middle of a run."""
    tokenizer = AutoTokenizer.from_pretrained(toy_model)
    tokenizer.pad_token = None
    model = tmp_path / "without"
    model.mkdir()
    for path in Path(toy_model).iterdir():
        (model / path.name).write_bytes(path.read_bytes())
    tokenizer.save_pretrained(model)
    with pytest.raises(SystemExit, match="^error: --mask-with pad: --model has no padding token; use --mask"):
        train(flags, model=str(model), mask_with="pad")
    assert not flags["out_dir"].exists()


@mutant(
    "mft: draws of the steps that were made here",
    "papers/mft.py",
    "substitutes, args.seed, step, place)",
    "substitutes, args.seed, step - run.first_step, place)",
)
def test_killed_and_resumed_equals_the_uninterrupted(flags):
    """Catches replacements or a share that begin anew with the process."""
    whole = train(flags, out_dir=flags["out_dir"].with_name("whole"))
    test_sft.kill_after(4, lambda: train(flags))  # the last checkpoint is of step 2
    ours = train(flags, resume=True)
    assert toys.records(ours) == toys.records(whole)
    assert all(torch.equal(weights(ours)[name], values) for name, values in weights(whole).items())
    with pytest.raises(SystemExit, match="--resume: --mask-rate was 0.05 and is now 0.2; give the old value"):
        train(flags, resume=True, mask_rate=0.2)


def test_two_ranks_change_nothing(flags):
    """Catches replacements by the place in a rank's part of the step. In float64."""
    own = dict(steps=2, mask_warmup_share=0.0)
    both = test_sft.on_one_and_two_ranks
    folders = both(lambda folder: train(flags, out_dir=folder, **own), flags["out_dir"])
    one, two = map(steps_of, folders)
    assert [record["mft/frac_corrupted"] > 0 for record in two] == [False, True]
    for left, right in zip(one, two, strict=True):
        for name in [name for name in left if name.startswith(("sft/", "mft/", "loss/", "optim/"))]:
            assert right[name] == pytest.approx(left[name], rel=1e-10, abs=1e-12), name


def test_adapters_learn_under_replacements(flags, toy_model):
    """Catches a loss that does not reach the adapters, or inputs that they do not get."""
    plain = train(flags, mask_warmup_share=0.0, steps=2)
    adapted = train(
        flags, mask_warmup_share=0.0, steps=2, lora_rank=4, out_dir=flags["out_dir"].with_name("lora")
    )
    ours, theirs = steps_of(adapted), steps_of(plain)
    assert ours[0]["sft/loss"] == pytest.approx(theirs[0]["sft/loss"], rel=1e-5)  # a new adapter does nothing
    assert ours[1]["mft/frac_corrupted"] == theirs[1]["mft/frac_corrupted"] > 0
    first, last = load_file(f"{toy_model}/model.safetensors"), weights(adapted)
    assert {name for name in first if not torch.equal(first[name], last[name])} == {
        name for name in first if "_proj.weight" in name
    }
