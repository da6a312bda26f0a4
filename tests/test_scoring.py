"""The scorer on tiny random models, against one token at a time and against the plain padded forward."""

import gc
import weakref
from itertools import groupby

import numpy as np
import pytest
import torch
from mutants import mutant
from random_model import (
    COMPLETIONS,
    EOS,
    FEW,
    PROMPTS,
    distance,
    gradient,
    in_float64,
    one_token_at_a_time,
    random_model,
    roundings,
    sample,
)
from transformers import AutoConfig, AutoModelForCausalLM, MistralConfig, MistralForCausalLM

from plainrl import ranks, scoring
from plainrl.models import compute_in_bfloat16
from plainrl.rollout import Batch
from plainrl.sampler import HFSampler
from plainrl.scoring import (
    check_model,
    logprob_and_entropy,
    micro_batch_rows,
    micro_batches,
    score,
    score_all,
)
from plainrl.shared_prompts import GrowingCache, Layout

TEMPERATURES = pytest.mark.parametrize("temperature", [0.7, 1.3])


def reference(model, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities and entropies [N, T] of COMPLETIONS, one token per forward pass."""
    logprobs, entropies = torch.zeros(2, len(PROMPTS), max(map(len, COMPLETIONS)), dtype=model.dtype)
    for i, (prompt, completion) in enumerate(zip(PROMPTS, COMPLETIONS)):
        rows = one_token_at_a_time(model, prompt, completion, temperature)
        logprobs[i, : len(completion)] = rows[torch.arange(len(completion)), completion]
        entropies[i, : len(completion)] = -(rows.exp() * rows).sum(-1)
    return logprobs, entropies


def gradients_of(model, **options) -> torch.Tensor:
    """Gradient of a sum of scored log-probabilities that weighs every token differently."""
    model.zero_grad()
    logprobs, _ = score(model, PROMPTS, COMPLETIONS, 0.7, **options)
    weights = torch.linspace(-1, 2, logprobs.numel(), dtype=logprobs.dtype).view(logprobs.shape)
    (logprobs * weights).sum().backward()
    return gradient(model)


# --- per-token numbers --------------------------------------------------------------------------------------


@mutant("mask from token values", case="llama-shared-0.7")
@mutant(
    "shift by one in the scorer",
    "plainrl/scoring.py",
    "[[prompt[-1], *completion[:-1]] for prompt",
    "[[*completion] for prompt",
    case="llama-shared-0.7",
)
@mutant(
    "no temperature in the scorer",
    "plainrl/scoring.py",
    "head(hidden_block).to(dtype) / temperature",
    "head(hidden_block).to(dtype)",
    case="llama-plain-1.3",
)
@mutant(
    "positions without the prompt",
    "plainrl/shared_prompts.py",
    "positions = start[:, None] + torch.arange(tokens",
    "positions = 0 * start[:, None] + torch.arange(tokens",
    case="llama-shared-0.7",
)
@mutant(
    "padding of shorter prompts is seen",
    "plainrl/shared_prompts.py",
    "self.padding = None if filled.all() else ~filled",
    "self.padding = None",
    case="llama-shared-0.7",
)
@mutant(
    "later tokens are seen",
    "plainrl/shared_prompts.py",
    ".triu(S - T + 1)",
    ".triu(S - T + 2)",
    case="llama-shared-0.7",
)
@mutant(
    "no scaling of the scores",
    "plainrl/shared_prompts.py",
    "query = (query * scaling)",
    "query = (query * 1)",
    case="llama-shared-0.7",
)
@mutant(
    "values of the wrong prompts",
    "plainrl/shared_prompts.py",
    "by_prefix(part, followers) @ values, followers)",
    "by_prefix(part, followers) @ values.flip(0), followers)",
    case="llama-shared-0.7",
)
@TEMPERATURES
@pytest.mark.parametrize("share_prompts", [True, False], ids=["shared", "plain"])
@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_score_equals_one_token_at_a_time(kind, share_prompts, temperature):
    """Catches a shift by one, a forgotten temperature, wrong positions, padding that is attended to, or real
    tokens that equal the padding and are not."""
    model = random_model(kind=kind)
    with torch.no_grad():
        logprobs, entropies = score(model, PROMPTS, COMPLETIONS, temperature, share_prompts=share_prompts)
    expected_logprobs, expected_entropies = reference(model, temperature)
    assert distance(logprobs, expected_logprobs) <= 1e-10 and distance(entropies, expected_entropies) <= 1e-10


@TEMPERATURES
def test_score_in_float32_is_within_its_rounding(temperature):
    """Catches lost precision, as from log(softmax) or a sum in another order of magnitude."""
    model = random_model(torch.float32)
    with torch.no_grad():
        logprobs, _ = score(model, PROMPTS, COMPLETIONS, temperature)
    expected, _ = reference(model.double(), temperature)
    assert roundings(logprobs, expected) <= FEW


@mutant(
    "a window of one token more",
    "plainrl/shared_prompts.py",
    "- keys[:, None, :] >= window",
    "- keys[:, None, :] > window",
)
@mutant(
    "a window from where the batch began",
    "plainrl/shared_prompts.py",
    "begin = self.start if self.first_column is None else self.start - self.first_column",
    "begin = self.start",
)
def test_score_with_a_sliding_window_equals_one_token_at_a_time():
    """Catches padding between a prompt and its completion, which a sliding window would count as tokens."""
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        sliding_window=3,
        initializer_range=0.25,
    )
    model = in_float64(MistralForCausalLM(config))
    expected, _ = reference(model, 1.0)
    for share_prompts in (True, False):
        with torch.no_grad():
            logprobs, _ = score(model, PROMPTS, COMPLETIONS, 1.0, share_prompts=share_prompts)
        assert distance(logprobs, expected) <= 1e-10
    completions = HFSampler(model, [EOS, 5, 17, 30], rows_at_once=4).generate(
        PROMPTS, 2, 12, 1.0, list(range(10))
    )
    assert len({len(completion.ids) for completion in completions}) > 3, "no row joined others in mid-way"
    for prompt, completion in zip([prompt for prompt in PROMPTS for _ in range(2)], completions):
        rows = one_token_at_a_time(model, prompt, completion.ids, 1.0)
        scored = rows[torch.arange(len(completion.ids)), completion.ids]
        assert roundings(completion.logprobs, scored) <= FEW  # drawn in float32


def test_shared_prompts_have_the_gradient_of_the_plain_forward():
    """Catches a shared prompt that is detached, or counted once for a whole group."""
    model = random_model()
    plain = gradients_of(model, share_prompts=False)
    assert distance(gradients_of(model, share_prompts=True), plain) <= 1e-10

    model.zero_grad()  # and the plain one is that of an ordinary forward pass, row by row
    width = max(map(len, COMPLETIONS))
    weights = torch.linspace(-1, 2, len(PROMPTS) * width, dtype=torch.float64).view(-1, width)
    for prompt, completion, weight in zip(PROMPTS, COMPLETIONS, weights):
        logits = model(input_ids=torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
        logprobs = torch.log_softmax(logits / 0.7, dim=-1)[torch.arange(len(completion)), completion]
        (logprobs * weight[: len(completion)]).sum().backward()
    assert distance(gradient(model), plain) <= 1e-10


@pytest.mark.parametrize("share_prompts", [True, False], ids=["shared", "plain"])
def test_prompts_are_run_once_when_shared_and_the_head_sees_completions_only(share_prompts, monkeypatch):
    """Catches sharing that silently does nothing, and logits made for prompt positions."""
    model, tokens, head_rows = random_model(), [], []
    model.model.register_forward_pre_hook(
        lambda _, args, kwargs: tokens.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    model.lm_head.register_forward_pre_hook(lambda _, args: head_rows.append(args[0].shape[:-1].numel()))
    with torch.no_grad():
        score(model, PROMPTS[:1] * 8, COMPLETIONS[:1] * 8, 1.0, share_prompts=share_prompts)
    assert sum(head_rows) == 8 * 4  # completions of 4 tokens
    expected = 6 + 8 * 4 if share_prompts else 8 * (6 + 4)  # the prompt's 7th token is the first input
    assert sum(tokens) == expected


LONG = (
    [list(range(2, 50)) + rest for rest in ([7, 8, 9], [5], [], [7, 8, 9])],
    [[4, 0, EOS], [9], [8] * 40, [7] * 5],
)


@mutant("later tokens are seen", case="long-llama")
@mutant(
    "keys of the wrong prompts",
    "plainrl/shared_prompts.py",
    "part[followers.rows] for part, _, followers",
    "part[followers.rows.flip(0)] for part, _, followers",
    case="long-llama",
)
@mutant(
    "what is common is left out",
    "plainrl/shared_prompts.py",
    "prefixes.append((cache, rows))",
    "prefixes = [(cache, rows)]",
    case="common-llama",
)
@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize(
    "prompts, completions",
    [(PROMPTS, COMPLETIONS), LONG, (PROMPTS, [[5] * 40, [6] * 70, [1], [9, 9], [3] * 33])],
    ids=[
        "short",
        "common",
        "long",
    ],  # the prompts have a long common beginning; rows longer than two head sizes
)
def test_end_to_end_rows_have_the_numbers_and_gradients_of_padded_ones(kind, prompts, completions):
    """Catches tokens of one row that see those of another, keys mixed up between rows, and gradients lost on
    the way: in either way of computing attention, with and without what all prompts begin with, whole groups
    and broken ones."""
    model, weights = random_model(kind=kind), torch.linspace(-1, 2, 1000, dtype=torch.float64)
    for order in (slice(None), [3, 0, 1], [2, 2, 1, 0]):
        rows = torch.arange(len(prompts))[order].tolist()
        results = []
        for share_prompts in (True, False):
            model.zero_grad()
            logprobs, entropies = score(
                model,
                [prompts[i] for i in rows],
                [completions[i] for i in rows],
                0.7,
                share_prompts=share_prompts,
            )
            (logprobs * weights[: logprobs.numel()].view_as(logprobs)).sum().backward()
            results.append((logprobs.detach(), entropies.detach(), gradient(model)))
        for ours, theirs in zip(*results):
            assert distance(ours, theirs) <= 1e-10


def test_what_all_prompts_begin_with_is_run_once():
    """Catches a common beginning that is run for every prompt, in the scorer and in the sampler."""
    model, shapes = random_model(), []
    model.model.register_forward_pre_hook(
        lambda _, args, kwargs: shapes.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    # 48 tokens in common, but for the last of the shortest, its first input; then 4, 1 (twice) and 0.
    prompts, completions = LONG
    with torch.no_grad():
        score(model, prompts, completions, 1.0)
    assert shapes == [(1, 47), (1, 3 + 1), (1, 3 + 1 + 40 + 5)]
    shapes.clear()
    sample(model, prompts, tokens=1)
    assert shapes == [(1, 47), (1, 3 + 1), (16, 1)]


def test_layout_lays_things_side_by_side_and_takes_them_back():
    """Catches a place taken twice, another order, and full rows in another order that are taken for ordered
    ones."""
    generator = torch.Generator().manual_seed(0)
    for rows in ([0, 0, 1, 1], [1, 0, 1, 0], [2, 0, 2, 2], [0], [1, 1, 0, 2, 0, 1]):
        layout, things = (
            Layout(torch.tensor(rows), 3 if 2 in rows else max(rows) + 1),
            torch.randn(len(rows), 5, generator=generator),
        )
        laid = layout.to_padded(things)
        for row in range(len(laid)):
            mine = [thing for thing, at in zip(things, rows) if at == row]
            assert torch.equal(laid[row, : len(mine)], torch.stack(mine) if mine else laid[row, :0])
            assert not laid[row, len(mine) :].any() and layout.filled[row].sum() == len(mine)
        assert torch.equal(layout.to_packed(laid), things)


def test_growing_cache_equals_concatenation():
    """Catches keys lost when the buffer doubles, or mixed up when rows are dropped."""
    cache, expected = GrowingCache(), {0: [], 1: []}
    generator = torch.Generator().manual_seed(0)
    for i in range(80):
        for layer in expected:
            new = torch.randn(2, 3 if 40 <= i <= 60 else 4, 2, 1, 8, generator=generator)
            expected[layer].append(new)
            for got, parts in zip(cache.extend(layer, *new), zip(*expected[layer])):
                assert torch.equal(got, torch.cat(parts, dim=2))
        if i == 39:  # three rows of the four stay, in another order
            rows = torch.tensor([3, 0, 2])
            cache.exchange(rows, 0, 0)
            expected = {layer: [new[:, rows] for new in parts] for layer, parts in expected.items()}
        if i == 60:  # the first of them leaves with the first 20 columns, two others come
            cache.exchange(torch.tensor([1, 2]), 2, 20)
            expected = {
                layer: [torch.cat([new[:, 1:], torch.zeros(2, 2, 2, 1, 8)], dim=1) for new in parts[20:]]
                for layer, parts in expected.items()
            }


# --- models that can share prompts --------------------------------------------------------------------------

SMALL = dict(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)


@pytest.mark.parametrize(
    "kind", ["qwen3", "gemma", "gemma3_text", "phi3", "gpt2", "gpt_neox", "olmo2", "smollm3", "qwen3_moe"]
)
def test_other_architectures_can_share_prompts(kind):
    """Catches a model of the list in shared_prompts.py that cannot."""
    torch.manual_seed(0)
    check_model(AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SMALL)).eval())


@pytest.mark.parametrize(
    "kind, reason",
    [("gemma2", "caps its attention scores"), ("bloom", ""), ("mamba", ""), ("cohere", "differ by")],
)
def test_models_that_cannot_share_prompts_are_refused(kind, reason):
    """Catches a run whose ratios are noise, or that ends in a traceback."""
    torch.manual_seed(0)
    with pytest.raises(
        SystemExit, match=f"--model: .* is none of the models that can share prompts .*{reason}"
    ):
        check_model(AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SMALL)).eval())


def test_positions_that_depend_on_the_batch_are_refused():
    """Catches rows whose log-probabilities change when a longer one is beside them."""
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    config = AutoConfig.for_model("llama", **SMALL, rope_parameters=rope)
    with pytest.raises(SystemExit, match="rotary embedding changes"):
        check_model(AutoModelForCausalLM.from_config(config).eval())


def test_completions_without_tokens_are_refused():
    """Catches rows that are scored as the ones before them."""
    with pytest.raises(ValueError, match="completion 1 has no token"):
        score(random_model(), [[5, 6], [5, 6], [7, 8]], [[6, 4], [], [9]], 1.0)


def test_rounding_refuses_no_model():
    """Catches a limit that float32 alone exceeds: .005 was seen on a trained SmolLM2, at ids that make no
    sense together."""
    model = random_model(torch.float32, kind="qwen2")
    with torch.no_grad():
        model.lm_head.weight.mul_(10_000)  # log-probabilities of -50,000, whose last digit is worth .004
        (shared, _), (plain, _) = (
            score(model, PROMPTS, COMPLETIONS, 1.0, share_prompts=share) for share in (True, False)
        )
    assert (shared - plain).abs().max() > 1e-3
    check_model(model)


@mutant(
    "a model refused for bfloat16's rounding",
    "plainrl/scoring.py",
    "with torch.no_grad(), in_float32(model):",
    "with torch.no_grad():",
)
@mutant(
    "a model that stays in float32 after its check",
    "plainrl/models.py",
    "        for body in bodies:\n            body.bf16 = True\n",
    "        pass\n",
)
def test_bfloat16_refuses_no_model():
    """Catches a GPU, or --bf16, on which a trained model is refused, and a check after which all goes on in
    float32. SmolLM2's log-probabilities move by 9 at these ids, here it is the head that makes rounding
    large."""
    model = random_model(torch.float32)
    with torch.no_grad():
        model.lm_head.weight.mul_(1_000)
        exact, _ = score(model, PROMPTS, COMPLETIONS, 1.0)
        compute_in_bfloat16(model.base_model, "cpu")
        check_model(model)
        rounded, _ = score(model, PROMPTS, COMPLETIONS, 1.0)
    assert (rounded - exact).abs().max() > 0.1


@mutant(
    "autocast that does not end",
    "plainrl/models.py",
    "body.casting.__exit__(None, None, None)",
    "pass",
)
@mutant(
    "autocast that an error leaves on",
    "plainrl/models.py",
    "body.register_forward_hook(leave, always_call=True)",
    "body.register_forward_hook(leave)",
)
def test_bfloat16_leaves_nothing_behind():
    """Catches autocast that goes on after the pass or after an error in it, and a model that keeps its memory
    when nobody holds it any more: two runs in one process would need twice the memory."""
    gc.disable()
    try:
        model = random_model(torch.float32)
        compute_in_bfloat16(model.base_model, "cpu")
        score(model, PROMPTS, COMPLETIONS, 1.0)
        with pytest.raises(IndexError):
            model.base_model(torch.tensor([[10_000]]))
        assert not torch.is_autocast_enabled("cpu")
        weight = weakref.ref(model.lm_head.weight)
        del model
        assert weight() is None
    finally:
        gc.enable()


# --- blocks of the vocabulary -------------------------------------------------------------------------------


def test_vocabulary_blocks_change_nothing_and_bound_the_logits(monkeypatch):
    """Catches a wrong block boundary, a block left out, or a full [N, T, V] tensor of logits, also in the
    backward pass."""
    model = random_model()
    whole, expected = score(model, PROMPTS, COMPLETIONS, 0.7), gradients_of(model)
    total = sum(map(len, COMPLETIONS))
    for rows in (1, 3, total - 1, total):
        sizes = []
        hook = model.lm_head.register_forward_hook(
            lambda _, args, output, sizes=sizes: sizes.append(output.shape)
        )
        monkeypatch.setattr(scoring, "LOGITS_AT_ONCE", rows * 64 + 63)  # not quite room for one row more
        blocks = score(model, PROMPTS, COMPLETIONS, 0.7)
        assert sum(shape[0] for shape in sizes) == total
        assert distance(blocks[0], whole[0]) <= 1e-12 and distance(blocks[1], whole[1]) <= 1e-12
        assert distance(gradients_of(model), expected) <= 1e-10
        assert all(len(shape) == 2 and shape[0] <= rows for shape in sizes)
        hook.remove()


def test_blocks_keep_no_logits_for_the_backward_pass(monkeypatch):
    """Catches blocks without recomputation: all logits would then be alive at once when the backward pass
    starts."""
    model, saved = random_model(vocab=67), []
    monkeypatch.setattr(scoring, "LOGITS_AT_ONCE", 4 * 67)
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: saved.append(tensor.shape) or tensor, lambda tensor: tensor
    ):
        score(model, PROMPTS, COMPLETIONS, 0.7)
    assert saved and not any(shape[-1:] == (67,) for shape in saved)


def test_vocabulary_larger_than_a_block_still_works(monkeypatch):
    """Catches a block of zero rows."""
    monkeypatch.setattr(scoring, "LOGITS_AT_ONCE", 10)
    model = random_model()
    expected, _ = reference(model, 1.3)
    assert distance(score(model, PROMPTS, COMPLETIONS, 1.3)[0].detach(), expected) <= 1e-10


@mutant(
    "entropy of the sample",
    "plainrl/scoring.py",
    "entropy = -(logprobs.exp() * logprobs).sum(-1)",
    "entropy = -logprobs.gather(-1, targets[:, None]).squeeze(1)",
)
def test_entropy_is_that_of_the_full_vocabulary_and_carries_no_gradient():
    """Catches the surprise of the sampled tokens (-logprob) in place of the entropy, a log in base 2, and a
    gradient."""
    logits = torch.randn(
        7, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True
    )
    logprobs, entropy = logprob_and_entropy(logits, torch.arange(7))
    for row, ours in zip(logits.detach().numpy(), entropy.tolist()):
        p = np.exp(row) / np.exp(row).sum()
        assert ours == pytest.approx(-sum(x * np.log(x) for x in p), rel=1e-10)
    assert logprobs.requires_grad and not entropy.requires_grad
    uniform = logprob_and_entropy(torch.zeros(1, 64), torch.zeros(1, dtype=torch.long))
    assert uniform[1].item() == pytest.approx(np.log(64)) and uniform[0].item() == pytest.approx(-np.log(64))
    scored = score(random_model(), PROMPTS, COMPLETIONS, 0.7)
    assert scored[0].requires_grad and not scored[1].requires_grad


def test_score_takes_other_functions_of_the_logits():
    """Catches a scorer that hands on raw logits, loses a result, or puts numbers where there is no token."""
    model = random_model()

    def largest(logits, targets):
        return logits.amax(-1) - logits.logsumexp(-1)

    with torch.no_grad():
        (ours,) = score(model, PROMPTS, COMPLETIONS, 0.7, largest)
    for i, (prompt, completion) in enumerate(zip(PROMPTS, COMPLETIONS)):
        expected = one_token_at_a_time(model, prompt, completion, 0.7).amax(-1)
        torch.testing.assert_close(ours[i, : len(completion)], expected)
        assert not ours[i, len(completion) :].any()


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_activation_checkpointing_changes_nothing(kind):
    """Catches a checkpointed forward that loses the keys of the shared prompt, and one that recomputes
    nothing."""
    model = random_model(kind=kind)
    expected, calls = gradients_of(model), []
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    assert distance(gradients_of(model), expected) <= 1e-10
    assert len(calls) == 4, "one forward pass and one recomputation, of the prompts and of the completions"
    logprobs, _ = reference(model.eval(), 0.7)
    assert distance(score(model, PROMPTS, COMPLETIONS, 0.7)[0].detach(), logprobs) <= 1e-10


# --- micro-batches ------------------------------------------------------------------------------------------


def test_score_all_equals_score():
    """Catches rows lost or widths mixed up when micro-batches have completions of different lengths."""
    model = random_model()
    with torch.no_grad():
        expected = score(model, PROMPTS, COMPLETIONS, 0.7)
    for tokens in (1, 20, 10_000):
        ours = score_all(model, PROMPTS, COMPLETIONS, 0.7, tokens)
        assert len(ours) == 2 and not ours[0].requires_grad
        assert distance(ours[0], expected[0]) <= 1e-10 and distance(ours[1], expected[1]) <= 1e-10


@mutant(
    "a group that is cut though it fits",
    "plainrl/scoring.py",
    "if fits and ranks.WORLD_SIZE == 1:",
    "if False:",
)
def test_micro_batches_cover_every_row_once_within_the_budget():
    """Catches rows lost or doubled at a boundary, a budget that forgets the prompt, counts it for every row
    or forgets the padding, a group that is cut though it fits, a batch that ends too early, and an endless
    empty one."""
    generator = np.random.default_rng(0)
    for _ in range(100):
        counts = [int(generator.integers(0, 5)) for _ in range(10)]
        prompts = [
            prompt for count in counts for prompt in [[0] * int(generator.integers(2, 20))] * count
        ] + [[0]]
        completions = [[0] * int(generator.integers(1, 30)) for _ in prompts]
        groups = [list(group) for _, group in groupby(range(len(prompts)), key=prompts.__getitem__)]
        for tokens in (1, 40, 100, 10_000):
            check_parts(prompts, completions, groups, tokens)
    assert micro_batch_rows([[0]], [[0]], 1) == [slice(0, 1)]


def check_parts(prompts, completions, groups, tokens: int) -> None:
    """Every row once, each part within the budget and as large as it allows, no group cut that fits."""

    def size(rows):
        distinct, lengths = {tuple(prompts[row]) for row in rows}, [len(completions[row]) for row in rows]
        return max(sum(map(len, distinct)) + sum(lengths), max(lengths) * len(rows) / 4)

    rows = list(range(len(prompts)))
    parts = [rows[part] for part in micro_batch_rows(prompts, completions, tokens)]
    assert [row for part in parts for row in part] == rows
    assert all(len(part) == 1 or (part and size(part) <= tokens) for part in parts)
    whole = [group for group in groups if size(group) <= tokens]
    assert all(any(set(group) <= set(part) for part in parts) for group in whole)
    for left, right in zip(parts, parts[1:]):
        following = next((group for group in whole if right[0] in group), right[:1])
        assert size(left + following) > tokens


def test_micro_batches_are_rows_of_the_batch_as_wide_as_their_longest():
    """Catches tensors cut at other rows than the ids, columns of padding that every row of a part has, and
    copies."""
    lengths = [len(ids) for ids in COMPLETIONS]
    values = torch.arange(5 * max(lengths)).view(5, -1)
    batch = Batch(PROMPTS, COMPLETIONS, {"values": values, "advantages": torch.arange(5)[:, None]})
    for tokens in (1, 16, 30, 1000):
        parts, first = list(micro_batches(random_model(), batch, tokens)), 0
        assert len(parts) == len(micro_batch_rows(PROMPTS, COMPLETIONS, tokens))
        for part in parts:
            rows = slice(first, first + len(part))
            assert part.prompt_ids == PROMPTS[rows] and part.completion_ids == COMPLETIONS[rows]
            assert torch.equal(part["values"], values[rows, : max(lengths[rows])])
            assert part["advantages"].tolist() == [[row] for row in range(*rows.indices(5))]
            first = rows.stop
        assert first == 5 and parts[-1]["values"].data_ptr() == values[rows].data_ptr()


def test_ranks_share_the_rows_of_a_batch(monkeypatch):
    """Catches rows that no rank or two ranks score, and a rank that has much more to do than the others."""
    monkeypatch.setattr(ranks, "WORLD_SIZE", 3)
    prompts, completions, found = [[5, 6, 7]] * 9 + [[8]] * 9, [[1] * (4 + row % 5) for row in range(18)], []
    for rank in range(3):
        monkeypatch.setattr(ranks, "RANK", rank)
        found.append(
            [row for part in micro_batch_rows(prompts, completions, 1000) for row in range(*part.indices(18))]
        )
    assert sorted(sum(found, [])) == list(range(18))
    tokens = [sum(len(completions[row]) for row in rows) for rows in found]
    assert max(tokens) <= 1.5 * min(tokens)
