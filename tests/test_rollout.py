"""The scorer and the sampler of rollout.py on tiny random models, against one token at a time and against exact distributions."""

from itertools import groupby
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from random_model import EOS, distance, distributions, gradient, one_token_at_a_time, random_model
from transformers import AutoConfig, AutoModelForCausalLM, MistralConfig, MistralForCausalLM

import rollout
import runtime
from rollout import Completion, HFSampler, Rollout, check_model, completion_seed, draw, micro_batches, pad, score, score_all
from shared_prompts import Grid, GrowingStretch
from tasks import Grade, Problem

# prompts of different lengths, two of them equal; 0 (what `pad` fills with) and EOS are ordinary tokens inside
PROMPTS = [[3, 0, EOS, 7, 9, 20, 33], [5, 6], [3, 0, EOS, 7, 9, 20, 33], [40, 41, 42, 0], [5, 6]]
COMPLETIONS = [[4, 0, 0, EOS], [9], [8, 8, 8, 8, 60, 61, EOS], [EOS], [0, 0, 0]]
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
    (logprobs * torch.linspace(-1, 2, logprobs.numel(), dtype=logprobs.dtype).view(logprobs.shape)).sum().backward()
    return gradient(model)


# --- the scorer -----------------------------------------------------------------------------------------------------------


@TEMPERATURES
@pytest.mark.parametrize("share_prompts", [True, False], ids=["shared", "plain"])
@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_score_equals_one_token_at_a_time(kind, share_prompts, temperature):
    """Catches a shift by one, a forgotten temperature, wrong positions, padding that is attended to, or real tokens that equal
    the padding and are not."""
    model = random_model(kind=kind)
    with torch.no_grad():
        logprobs, entropies = score(model, PROMPTS, COMPLETIONS, temperature, share_prompts=share_prompts)
    expected_logprobs, expected_entropies = reference(model, temperature)
    assert distance(logprobs, expected_logprobs) <= 1e-10 and distance(entropies, expected_entropies) <= 1e-10


@TEMPERATURES
def test_score_in_float32_is_within_1e_5(temperature):
    """Catches lost precision, as from log(softmax) or a sum in another order of magnitude."""
    model = random_model(torch.float32)
    with torch.no_grad():
        logprobs, _ = score(model, PROMPTS, COMPLETIONS, temperature)
    expected, _ = reference(model.double(), temperature)
    assert (logprobs - expected).abs().max() <= 1e-5


def test_score_with_a_sliding_window_equals_one_token_at_a_time():
    """Catches padding between a prompt and its completion, which a sliding window would count as tokens."""
    torch.manual_seed(0)
    config = MistralConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
                           num_key_value_heads=1, head_dim=16, sliding_window=3, initializer_range=0.25)  # fmt: skip
    model = MistralForCausalLM(config)
    expected, _ = reference(model, 1.0)
    for share_prompts in (True, False):
        with torch.no_grad():
            logprobs, _ = score(model, PROMPTS, COMPLETIONS, 1.0, share_prompts=share_prompts)
        assert (logprobs - expected).abs().max() <= 1e-5
    completions = HFSampler(model, [EOS, 5, 17, 30], rows_at_once=4).generate(PROMPTS, 2, 12, 1.0, list(range(10)))
    assert len({len(completion.ids) for completion in completions}) > 3, "no row joined others in mid-way"
    for prompt, completion in zip([prompt for prompt in PROMPTS for _ in range(2)], completions):
        rows = one_token_at_a_time(model, prompt, completion.ids, 1.0)
        scored = rows[torch.arange(len(completion.ids)), completion.ids]
        assert (scored - torch.tensor(completion.logprobs)).abs().max() <= 1e-5


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
    model.model.register_forward_pre_hook(lambda _, args, kwargs: tokens.append(kwargs["input_ids"].numel()), with_kwargs=True)
    model.lm_head.register_forward_pre_hook(lambda _, args: head_rows.append(args[0].shape[:-1].numel()))
    with torch.no_grad():
        score(model, PROMPTS[:1] * 8, COMPLETIONS[:1] * 8, 1.0, share_prompts=share_prompts)
    assert sum(head_rows) == 8 * 4  # completions of 4 tokens
    assert sum(tokens) == (6 + 8 * 4 if share_prompts else 8 * (6 + 4))  # the prompt's 7th token is the first input


LONG = [[list(range(2, 50)) + rest for rest in ([7, 8, 9], [5], [], [7, 8, 9])], [[4, 0, EOS], [9], [8] * 40, [7] * 5]]


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize("prompts, completions", [(PROMPTS, COMPLETIONS), LONG, (PROMPTS, [[5] * 40, [6] * 70, [1], [9, 9], [3] * 33])],
                         ids=["short", "common", "long"])  # of a common beginning; longer than two head sizes  # fmt: skip
def test_end_to_end_rows_have_the_numbers_and_gradients_of_padded_ones(kind, prompts, completions):
    """Catches tokens of one row that see those of another, keys mixed up between rows, and gradients lost on the way: in either way of
    computing attention, with and without what all prompts begin with, whole groups and broken ones."""
    model, weights = random_model(kind=kind), torch.linspace(-1, 2, 1000, dtype=torch.float64)
    for order in (slice(None), [3, 0, 1], [2, 2, 1, 0]):
        rows = torch.arange(len(prompts))[order].tolist()
        results = []
        for share_prompts in (True, False):
            model.zero_grad()
            logprobs, entropies = score(model, [prompts[i] for i in rows], [completions[i] for i in rows], 0.7, share_prompts=share_prompts)
            (logprobs * weights[: logprobs.numel()].view_as(logprobs)).sum().backward()
            results.append((logprobs.detach(), entropies.detach(), gradient(model)))
        for ours, theirs in zip(*results):
            assert distance(ours, theirs) <= 1e-10


def test_what_all_prompts_begin_with_is_run_once():
    """Catches a common beginning that is run for every prompt, in the scorer and in the sampler."""
    model, shapes = random_model(), []
    model.model.register_forward_pre_hook(lambda _, args, kwargs: shapes.append(kwargs["input_ids"].shape), with_kwargs=True)
    prompts, completions = LONG  # 48 tokens in common, but for the last of the shortest, its first input; then 4, 1 (twice) and 0
    with torch.no_grad():
        score(model, prompts, completions, 1.0)
    assert shapes == [(1, 47), (1, 3 + 1), (1, 3 + 1 + 40 + 5)]
    shapes.clear()
    sample(model, prompts, tokens=1)
    assert shapes == [(1, 47), (1, 3 + 1), (16, 1)]


def test_grid_lays_things_side_by_side_and_takes_them_back():
    """Catches a place taken twice, another order, and full grids in another order that are taken for ordered ones."""
    generator = torch.Generator().manual_seed(0)
    for rows in ([0, 0, 1, 1], [1, 0, 1, 0], [2, 0, 2, 2], [0], [1, 1, 0, 2, 0, 1]):
        grid, things = Grid(torch.tensor(rows), 3 if 2 in rows else max(rows) + 1), torch.randn(len(rows), 5, generator=generator)
        laid = grid.lay(things)
        for row in range(len(laid)):
            mine = [thing for thing, at in zip(things, rows) if at == row]
            assert torch.equal(laid[row, : len(mine)], torch.stack(mine) if mine else laid[row, :0])
            assert not laid[row, len(mine) :].any() and grid.filled[row].sum() == len(mine)
        assert torch.equal(grid.lift(laid), things)


SMALL = dict(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
             max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2)  # fmt: skip


@pytest.mark.parametrize("kind", ["qwen3", "gemma", "gemma3_text", "phi3", "gpt2", "gpt_neox", "olmo2", "smollm3", "qwen3_moe"])
def test_other_architectures_can_share_prompts(kind):
    """Catches a model of the list in shared_prompts.py that cannot."""
    torch.manual_seed(0)
    check_model(AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SMALL)).eval())


@pytest.mark.parametrize("kind, reason", [("gemma2", "caps its attention scores"), ("bloom", ""), ("mamba", ""), ("cohere", "differ by")])
def test_models_that_cannot_share_prompts_are_refused(kind, reason):
    """Catches a run whose ratios are noise, or that ends in a traceback."""
    torch.manual_seed(0)
    with pytest.raises(SystemExit, match=f"--model: .* is none of the models that can share prompts .*{reason}"):
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
    """Catches a limit that float32 alone exceeds: .005 was seen on a trained SmolLM2, at ids that make no sense together."""
    model = random_model(torch.float32, kind="qwen2")
    with torch.no_grad():
        model.lm_head.weight.mul_(1000)  # log-probabilities of -5000, whose last digit is worth .0005
        (shared, _), (plain, _) = (score(model, PROMPTS, COMPLETIONS, 1.0, share_prompts=share) for share in (True, False))
    assert (shared - plain).abs().max() > 1e-3
    check_model(model)


def test_vocabulary_blocks_change_nothing_and_bound_the_logits(monkeypatch):
    """Catches a wrong block boundary, a block left out, or a full [N, T, V] tensor of logits, also in the backward pass."""
    model = random_model()
    whole, expected = score(model, PROMPTS, COMPLETIONS, 0.7), gradients_of(model)
    total = sum(map(len, COMPLETIONS))
    for rows in (1, 3, total - 1, total):
        sizes = []
        hook = model.lm_head.register_forward_hook(lambda _, args, output, sizes=sizes: sizes.append(output.shape))
        monkeypatch.setattr(rollout, "LOGITS_AT_ONCE", rows * 64 + 63)  # not quite room for one row more
        blocks = score(model, PROMPTS, COMPLETIONS, 0.7)
        assert sum(shape[0] for shape in sizes) == total
        assert distance(blocks[0], whole[0]) <= 1e-12 and distance(blocks[1], whole[1]) <= 1e-12
        assert distance(gradients_of(model), expected) <= 1e-10
        assert all(len(shape) == 2 and shape[0] <= rows for shape in sizes)
        hook.remove()


def test_blocks_keep_no_logits_for_the_backward_pass(monkeypatch):
    """Catches blocks without recomputation: all logits would then be alive at once when the backward pass starts."""
    model, saved = random_model(vocab=67), []
    monkeypatch.setattr(rollout, "LOGITS_AT_ONCE", 4 * 67)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor.shape) or tensor, lambda tensor: tensor):
        score(model, PROMPTS, COMPLETIONS, 0.7)
    assert saved and not any(shape[-1:] == (67,) for shape in saved)


def test_vocabulary_larger_than_a_block_still_works(monkeypatch):
    """Catches a block of zero rows."""
    monkeypatch.setattr(rollout, "LOGITS_AT_ONCE", 10)
    model = random_model()
    expected, _ = reference(model, 1.3)
    assert distance(score(model, PROMPTS, COMPLETIONS, 1.3)[0].detach(), expected) <= 1e-10


def test_entropy_is_that_of_the_full_vocabulary_and_carries_no_gradient():
    """Catches the surprise of the sampled tokens (-logprob) in place of the entropy, a log in base 2, and a gradient."""
    logits = torch.randn(7, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    logprobs, entropy = rollout.logprob_and_entropy(logits, torch.arange(7))
    for row, ours in zip(logits.detach().numpy(), entropy.tolist()):
        p = np.exp(row) / np.exp(row).sum()
        assert ours == pytest.approx(-sum(x * np.log(x) for x in p), rel=1e-10)
    assert logprobs.requires_grad and not entropy.requires_grad
    uniform = rollout.logprob_and_entropy(torch.zeros(1, 64), torch.zeros(1, dtype=torch.long))
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
    """Catches a checkpointed forward that loses the keys of the shared prompt, and one that recomputes nothing."""
    model = random_model(kind=kind)
    expected, calls = gradients_of(model), []
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    assert distance(gradients_of(model), expected) <= 1e-10
    assert len(calls) == 4, "one forward pass and one recomputation, of the prompts and of the completions"
    logprobs, _ = reference(model.eval(), 0.7)
    assert distance(score(model, PROMPTS, COMPLETIONS, 0.7)[0].detach(), logprobs) <= 1e-10


def test_mask_comes_from_lengths():
    """Catches a mask made by `ids == pad`: tokens that equal the padding count, and EOS counts exactly once."""
    ids, mask = pad(COMPLETIONS, "cpu")
    assert mask.sum(1).tolist() == [4, 1, 7, 1, 3]
    assert [row[keep].tolist() for row, keep in zip(ids, mask)] == COMPLETIONS
    assert ((ids == EOS) & mask).sum(1).tolist() == [1, 0, 1, 1, 0]
    assert mask.int().diff(dim=1).max() <= 0  # no hole: real tokens first
    assert pad([], "cpu")[0].shape == (0, 0)


def test_pad_values_puts_each_number_at_its_token():
    """Catches numbers spread over the padding or shifted between rows."""
    _, mask = pad([[5], [6, 7, 8]], "cpu")
    assert rollout.pad_values([[-0.5], [-1.0, -2.0, -3.0]], mask).tolist() == [[-0.5, 0.0, 0.0], [-1.0, -2.0, -3.0]]


def test_score_all_equals_score():
    """Catches rows lost or widths mixed up when micro-batches have completions of different lengths."""
    model = random_model()
    with torch.no_grad():
        expected = score(model, PROMPTS, COMPLETIONS, 0.7)
    for tokens in (1, 20, 10_000):
        ours = score_all(model, PROMPTS, COMPLETIONS, 0.7, tokens)
        assert len(ours) == 2 and not ours[0].requires_grad
        assert distance(ours[0], expected[0]) <= 1e-10 and distance(ours[1], expected[1]) <= 1e-10


def test_micro_batches_cover_every_row_once_within_the_budget():
    """Catches rows lost or doubled at a boundary, a budget that forgets the prompt, counts it for every row or forgets the padding, a
    group that is cut though it fits, a batch that ends too early, and an endless empty one."""
    generator = np.random.default_rng(0)
    for _ in range(50):
        prompts = [[0] * int(generator.integers(2, 20)) for _ in range(10) for _ in range(int(generator.integers(0, 5)))] + [[0]]
        completions = [[0] * int(generator.integers(1, 30)) for _ in prompts]

        def size(part):
            distinct, lengths = {tuple(prompts[row]) for row in part}, [len(completions[row]) for row in part]  # noqa: B023
            return max(sum(map(len, distinct)) + sum(lengths), max(lengths) * len(part) / 4)

        first, last = sorted(int(x) for x in generator.integers(0, len(prompts) + 1, size=2))
        for tokens in (1, 40, 100, 10_000):
            for rows in (None, slice(0, len(prompts)), slice(first, last), slice(first, None), slice(first, 10 * len(prompts))):
                wanted = list(range(len(prompts)))[rows or slice(None)]
                if not wanted:
                    continue
                parts = [list(range(len(prompts)))[part] for part in micro_batches(prompts, completions, tokens, rows)]
                assert [row for part in parts for row in part] == wanted
                assert all(len(part) == 1 or (part and size(part) <= tokens) for part in parts)
                groups = [list(group) for _, group in groupby(wanted, key=lambda row: prompts[row])]  # noqa: B023
                whole = [group for group in groups if size(group) <= tokens]
                assert all(any(set(group) <= set(part) for part in parts) for group in whole)
                for left, right in zip(parts, parts[1:]):
                    following = next((group for group in whole if right[0] in group), right[:1])
                    assert size(left + following) > tokens
    assert list(micro_batches([[0]], [[0]], 1)) == [slice(0, 1)]


# --- drawing a token ------------------------------------------------------------------------------------------------------

PROBABILITIES = torch.tensor([0.05, 0.40, 0.15, 0.30, 0.10], dtype=torch.float64)


def test_draw_matches_the_distribution_exactly_on_a_grid():
    """Catches a biased draw: K evenly spaced uniform numbers must give every token K*p times, to within one."""
    uniforms = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    ids, logprobs = draw(PROBABILITIES.log().expand(10_000, -1), 1.0, uniforms)
    counts = torch.bincount(ids, minlength=5)
    assert (counts - 10_000 * PROBABILITIES).abs().max() <= 1
    torch.testing.assert_close(logprobs.exp(), PROBABILITIES[ids].float(), rtol=1e-6, atol=0)


def test_draw_at_a_boundary_of_the_distribution():
    """Catches an off-by-one at the boundaries, a token of probability zero, and an index past the end."""
    logits = torch.tensor([[0.0, -torch.inf, 0.0, 0.0, 0.0, -torch.inf]])  # a quarter each; the second and the last never
    uniforms = [0.0, np.nextafter(0.25, 0), 0.25, np.nextafter(0.5, 0), 0.5, 0.75, np.nextafter(1.0, 0)]
    ids, _ = draw(logits.expand(len(uniforms), -1), 1.0, torch.tensor(uniforms, dtype=torch.float64))
    assert ids.tolist() == [0, 0, 2, 2, 3, 4, 4]


@TEMPERATURES
def test_draw_applies_the_temperature(temperature):
    """Catches a temperature that multiplies, or that the returned log-probability has not seen."""
    logits = torch.tensor([[1.0, -0.5, 2.0]], dtype=torch.float64)
    p = np.exp(logits[0].numpy() / temperature) / np.exp(logits[0].numpy() / temperature).sum()
    uniforms = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    ids, logprobs = draw(logits.expand(1000, -1), temperature, uniforms)
    assert np.abs(np.bincount(ids, minlength=3) - 1000 * p).max() <= 1
    np.testing.assert_allclose(logprobs.exp(), p[ids], rtol=1e-5)


def test_draw_frequencies_pass_a_chi_square_test():
    """Catches the same with random numbers: 4 degrees of freedom, 18.47 is exceeded once in a thousand."""
    uniforms = torch.from_numpy(np.random.default_rng(0).random(20_000))
    ids, _ = draw(PROBABILITIES.log().expand(20_000, -1), 1.0, uniforms)
    expected = 20_000 * PROBABILITIES
    assert ((torch.bincount(ids, minlength=5) - expected) ** 2 / expected).sum() < 18.47


@pytest.mark.parametrize(
    "top_p, nucleus",
    [
        (0.05, [1]),  # at least one token
        (0.39, [1]),
        (0.41, [1, 3]),  # the token that crosses the border belongs to the nucleus
        (0.69, [1, 3]),
        (0.71, [1, 2, 3]),
        (0.94, [1, 2, 3, 4]),
        (1.0, [0, 1, 2, 3, 4]),
    ],
)
def test_top_p_keeps_the_smallest_set_with_that_mass(top_p, nucleus):
    """Catches a nucleus one token too small or too large, kept in sorted order, or log-probabilities that do not sum to one."""
    uniforms = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    ids, logprobs = draw(PROBABILITIES.log().expand(2000, -1), 1.0, uniforms, top_p)
    kept = PROBABILITIES[nucleus] / PROBABILITIES[nucleus].sum()
    assert (torch.bincount(ids, minlength=5)[nucleus] - 2000 * kept).abs().max() <= 1
    assert set(ids.tolist()) == set(nucleus)
    for token, p in zip(nucleus, kept.tolist()):
        assert logprobs[ids == token].exp().tolist() == pytest.approx([p] * int((ids == token).sum()), rel=1e-5)


def test_greedy_draw_takes_the_most_likely_token():
    """Catches a division by temperature zero."""
    ids, logprobs = draw(torch.tensor([[0.1, 0.3, 0.2], [5.0, -1.0, 4.0]]), 0, torch.tensor([0.99, 0.99], dtype=torch.float64))
    assert ids.tolist() == [1, 0] and logprobs.tolist() == [0.0, 0.0]


# --- the sampler ----------------------------------------------------------------------------------------------------------


def sample(model, prompts=PROMPTS, n=4, tokens=16, temperature=1.0, seeds=None, eos_ids=(EOS, 17, 30, 45), top_p=1.0, **options):
    """Completions that end early often: four tokens of 64 end them."""
    seeds = seeds or [completion_seed(0, 1, j, 0, i) for j in range(len(prompts)) for i in range(n)]
    return HFSampler(model, list(eos_ids), **options).generate(prompts, n, tokens, temperature, seeds, top_p)


@TEMPERATURES
@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_sampled_logprobs_equal_the_scorers(kind, temperature):
    """Catches a sampler that draws from another distribution than the one in the loss."""
    model = random_model(torch.float32, kind=kind)
    completions = sample(model, temperature=temperature)
    prompts = [prompt for prompt in PROMPTS for _ in range(4)]
    logprobs, _ = score_all(model, prompts, [c.ids for c in completions], temperature, 10_000)
    ours, _ = pad([c.ids for c in completions], "cpu")
    assert len({len(c.ids) for c in completions}) > 3, "completions of many lengths"
    for completion, row in zip(completions, logprobs):
        np.testing.assert_allclose(completion.logprobs, row[: len(completion.ids)], atol=1e-5, rtol=0)


def test_same_seeds_give_the_same_completions_in_any_batch():
    """Catches completions that depend on their neighbours: on order, padding, dropped rows or the size of the batch."""
    model = random_model()
    completions = sample(model)
    for rows_at_once in (1, 3, 7):
        assert [c.ids for c in sample(model, rows_at_once=rows_at_once)] == [c.ids for c in completions]
    seeds = [completion_seed(0, 1, j, 0, i) for j in range(len(PROMPTS)) for i in range(4)]
    for row in range(len(seeds)):  # alone
        (alone,) = sample(model, [PROMPTS[row // 4]], n=1, seeds=[seeds[row]])
        assert alone.ids == completions[row].ids and alone.finish_reason == completions[row].finish_reason
        np.testing.assert_allclose(alone.logprobs, completions[row].logprobs, atol=1e-6)
    order = [3, 0, 4, 2, 1]  # prompts in another order, samples of each reversed
    shuffled = sample(model, [PROMPTS[j] for j in order], seeds=[seeds[4 * j + i] for j in order for i in (3, 2, 1, 0)])
    assert [c.ids for c in shuffled] == [completions[4 * j + i].ids for j in order for i in (3, 2, 1, 0)]


def test_a_shorter_limit_gives_the_beginning_of_the_same_completions():
    """Catches random numbers that depend on --max-new-tokens."""
    model = random_model()
    assert [c.ids[:5] for c in sample(model, tokens=16)] == [c.ids for c in sample(model, tokens=5)]


def is_near_a_boundary(model, prompt, ids: list[int], position: int, seed: int, limit: float) -> bool:
    """Whether the random number that drew ids[position] lies within `limit` of a boundary of the distribution."""
    cumulative = distributions(model, prompt, ids[: position + 1], 1.0)[-1].double().exp().cumsum(0)
    uniform = np.random.Generator(np.random.Philox(seed)).random(position + 1)[position]
    return (cumulative - uniform).abs().min().item() <= limit


def test_every_difference_between_float32_batches_is_a_draw_at_a_boundary():
    """Catches any other reason to sample differently: rounding moves a token only when its draw is within 1e-5 of a boundary."""
    model = random_model(torch.float32)
    prompts = [[int(x) for x in np.random.default_rng(j).integers(0, 64, 2 + j % 7)] for j in range(8)]
    seeds = list(range(8 * 8))
    together = sample(model, prompts, n=8, tokens=24, seeds=seeds)
    compared = 0
    for rows_at_once in (3, 5):
        apart = sample(model, prompts, n=8, tokens=24, seeds=seeds, rows_at_once=rows_at_once)
        for row, (ours, theirs) in enumerate(zip(apart, together)):
            compared += len(ours.ids)
            if ours.ids != theirs.ids:
                first = next(i for i, (a, b) in enumerate(zip(ours.ids, theirs.ids)) if a != b)
                assert is_near_a_boundary(model, prompts[row // 8], ours.ids, first, seeds[row], 1e-5), (row, first)
    assert compared > 1000
    # the check itself: a token drawn by another random number is not excused
    assert not all(is_near_a_boundary(model, prompts[0], together[0].ids, 0, seed, 1e-5) for seed in range(100, 110))


def test_samples_of_one_prompt_differ_and_so_do_seeds():
    """Catches one seed for a whole group, and seeds that are ignored."""
    model = random_model()
    first, second = sample(model, seeds=list(range(20))), sample(model, seeds=list(range(20, 40)))
    assert len({tuple(c.ids) for c in first + second}) > 35
    same = sample(model, PROMPTS[:1], n=4, seeds=[7, 7, 8, 7])
    assert same[0].ids == same[1].ids == same[3].ids != same[2].ids


def test_sampled_pairs_of_tokens_have_their_exact_probabilities():
    """Catches random numbers that are reused from token to token, and seeds whose numbers are not uniform: 15 degrees of freedom,
    37.70 is exceeded once in a thousand."""
    model = random_model(torch.float32, vocab=4)
    seeds = [completion_seed(0, 1, 0, 0, i) for i in range(4000)]
    completions = sample(model, [[2, 3, 1]], n=4000, tokens=2, seeds=seeds, eos_ids=[99], rows_at_once=4000)
    pairs, counts = np.unique([c.ids for c in completions], axis=0, return_counts=True)
    statistic, mass = 0.0, 0.0
    for pair, count in zip(pairs.tolist(), counts):
        rows = distributions(model, [2, 3, 1], pair, 1.0)
        probability = (rows[0, pair[0]] + rows[1, pair[1]]).exp().item()
        statistic, mass = statistic + (count - 4000 * probability) ** 2 / (4000 * probability), mass + probability
    assert statistic + 4000 * (1 - mass) < 37.70 and len(pairs) > 10


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_greedy_equals_generate_of_transformers(kind):
    """Catches wrong positions or a wrong cache: 40 tokens, through several doublings of the buffer, from padded prompts."""
    model = random_model(kind=kind)
    ours = sample(model, n=1, tokens=40, temperature=0, eos_ids=[EOS])
    for prompt, completion in zip(PROMPTS, ours):
        theirs = model.eval().generate(input_ids=torch.tensor([prompt]), do_sample=False, max_new_tokens=40, pad_token_id=EOS)
        assert completion.ids == theirs[0, len(prompt) :].tolist()
        assert completion.logprobs == [0.0] * len(completion.ids)


def test_top_p_samples_from_the_nucleus_with_renormalised_logprobs():
    """Catches a top_p that the sampler does not pass on."""
    model = random_model()
    completions = sample(model, top_p=0.5)
    for prompt, completion in zip([prompt for prompt in PROMPTS for _ in range(4)], completions):
        for row, token, logprob in zip(distributions(model, prompt, completion.ids, 1.0), completion.ids, completion.logprobs):
            likelier = row[row > row[token]].exp().sum().item()
            assert likelier < 0.5
            masses = row.exp().sort(descending=True).values.cumsum(0)
            nucleus = masses[(masses < 0.5).sum()].item()
            assert logprob == pytest.approx(row[token].item() - np.log(nucleus), abs=1e-5)


def test_completions_end_with_eos_exactly_once_or_at_the_limit():
    """Catches EOS dropped or doubled, tokens after the end, and a wrong finish reason, also for an EOS at the very last place."""
    eos_ids = {EOS, 17, 30, 45}
    completions = sample(random_model(), n=16, tokens=8)
    for completion in completions:
        stopped = completion.ids[-1] in eos_ids
        assert completion.finish_reason == ("stop" if stopped else "length")
        assert sum(token in eos_ids for token in completion.ids) == int(stopped)
        assert stopped or len(completion.ids) == 8
        assert len(completion.logprobs) == len(completion.ids)
    assert {c.finish_reason for c in completions} == {"stop", "length"}
    assert any(c.finish_reason == "stop" and len(c.ids) == 8 for c in completions), "no case of an EOS at the last place"


def test_each_of_several_eos_ids_ends_a_completion():
    """Catches a sampler that knows only the first EOS id (Llama 3 and Qwen have two)."""
    ends = {c.ids[-1] for c in sample(random_model(), n=16, tokens=60) if c.finish_reason == "stop"}
    assert ends == {EOS, 17, 30, 45}


def test_finished_rows_leave_the_batch():
    """Catches a sampler that computes finished rows until the last one ends."""
    model, rows = random_model(), []
    model.register_forward_pre_hook(lambda _, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True)
    lengths = [len(c.ids) for c in sample(model, n=16, tokens=40)]
    unfinished = [sum(length > t for length in lengths) for t in range(max(lengths))]  # rows that still need token t
    assert len(rows) == max(lengths) and rows[0] == 80
    assert all(needed <= ran < needed * 8 / 7 + 1 for needed, ran in zip(unfinished, rows))  # at most an eighth is waste
    assert sum(rows) < 0.6 * 80 * max(lengths), "the batch hardly shrank, so the test shows nothing"


def test_finished_rows_make_room_for_the_next():
    """Catches a batch that runs empty before the next rows begin, and rows that depend on when they began or on who was there before,
    and rows that wait beyond their last position, which a model with a table of positions does not have."""
    model, rows, positions = random_model(), [], []
    expected = sample(model, n=16, tokens=40)
    hook = model.register_forward_pre_hook(lambda _, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True)
    last = model.register_forward_pre_hook(lambda _, args, kwargs: positions.append(int(kwargs["position_ids"].max())), with_kwargs=True)
    for at_once in (1, 6, 24):
        rows.clear()
        ours = sample(model, n=16, tokens=40, rows_at_once=at_once)
        assert [completion.ids for completion in ours] == [completion.ids for completion in expected]
        assert max(abs(a - b) for x, y in zip(ours, expected) for a, b in zip(x.logprobs, y.logprobs)) < 1e-6
        tokens = sum(len(completion.ids) for completion in ours)
        assert max(rows) == at_once and sum(rows) < 1.15 * tokens + 40 * at_once
    assert max(positions) == max(map(len, PROMPTS)) - 1 + 40 - 1
    hook.remove()
    last.remove()


def test_prompts_are_kept_a_few_at_a_time(monkeypatch):
    """Catches keys of all prompts of an evaluation in memory at once, and completions in another order."""
    model, shapes, expected = random_model(), [], sample(random_model())
    model.model.register_forward_pre_hook(lambda _, args, kwargs: shapes.append(kwargs["input_ids"].shape), with_kwargs=True)
    monkeypatch.setattr(rollout, "PROMPT_TOKENS_AT_ONCE", 9)
    assert [completion.ids for completion in sample(model)] == [completion.ids for completion in expected]
    assert [shape[1] for shape in shapes if shape[1] > 1] == [6 + 1, 6, 3 + 1]  # prompts of 7 and 2 tokens, of 7, of 4 and 2


def test_the_prompt_is_prefilled_once_for_its_group():
    """Catches a prefill for each of the n samples."""
    model, shapes = random_model(), []
    model.model.register_forward_pre_hook(lambda _, args, kwargs: shapes.append(kwargs["input_ids"].shape), with_kwargs=True)
    sample(model, n=16, tokens=3)
    assert shapes[0] == (1, 6 + 1 + 3)  # three different prompts end to end, but for their last tokens, the first inputs
    assert shapes[1] == (80, 1)


def test_generation_config_changes_nothing():
    """Catches sampling defaults that come with a model and make the sampled policy another one than the trained."""
    model = random_model()
    expected, greedy = sample(model), sample(model, temperature=0)
    for name, value in dict(repetition_penalty=1.8, top_k=2, top_p=0.3, temperature=0.1, do_sample=True, no_repeat_ngram_size=2,
                            suppress_tokens=[4, 5, 6], min_new_tokens=9, max_new_tokens=2, eos_token_id=3).items():  # fmt: skip
        setattr(model.generation_config, name, value)
    assert sample(model) == expected and sample(model, temperature=0) == greedy


def test_sampling_leaves_the_models_mode_and_gradients_alone():
    """Catches a model left in eval mode, and a graph kept through sampling."""
    model = random_model()
    sample(model, tokens=2)
    assert model.training and gradient(model).count_nonzero() == 0
    sample(model.eval(), tokens=2)
    assert not model.training


def test_ids_that_are_no_token_are_never_sampled(toy_model, tmp_path):
    """Catches rows that only fill a vocabulary up to a round number, as Qwen's do, taken for tokens."""
    model, tokenizer = runtime.load_model(toy_model)
    tokens = len(tokenizer)
    model.resize_token_embeddings(tokens + 16, mean_resizing=False)
    with torch.no_grad():
        model.lm_head.weight[tokens:] = 3 * torch.randn(16, 32)  # of tokens they would be the most likely ones
    runtime.save_model(tmp_path / "filled", model, tokenizer)
    loaded, _ = runtime.load_model(str(tmp_path / "filled"))
    completions = HFSampler(loaded, [tokenizer.eos_token_id]).generate([[5, 6, 7]], 8, 16, 1.0, list(range(8)))
    assert max(token for completion in completions for token in completion.ids) < tokens == loaded.config.vocab_size
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight[:tokens])


def test_load_weights_changes_the_policy_that_samples():
    """Catches a sampler that goes on with the weights it was made with."""
    model, other = random_model(seed=0), random_model(seed=1)
    sampler, arguments = HFSampler(model, [EOS]), (PROMPTS, 1, 8, 1.0, [1, 2, 3, 4, 5])
    sampler.load_weights(other)
    assert sampler.generate(*arguments) == HFSampler(other, [EOS]).generate(*arguments)
    assert sampler.generate(*arguments) != HFSampler(model, [EOS]).generate(*arguments)


@pytest.mark.parametrize("count", [0, 5, 9, 11])
def test_wrong_number_of_seeds_is_refused(count):
    """Catches seeds that are silently cut or reused: 5 prompts x 2 completions need 10."""
    with pytest.raises(ValueError, match="10 seeds"):
        HFSampler(random_model(), [EOS]).generate(PROMPTS, 2, 4, 1.0, list(range(count)))


def test_prompts_of_one_token():
    """Catches a crash deep inside transformers when nothing comes before the first input, for all prompts or for one."""
    model = random_model()
    for prompts in ([[5]], [[5], [7, 8, 9]]):
        logprobs, _ = score(model, prompts, [[6, 4]] * len(prompts), 1.0)
        for prompt, row in zip(prompts, logprobs):
            expected = one_token_at_a_time(model, prompt, [6, 4], 1.0)
            assert distance(row.detach(), expected[[0, 1], [6, 4]]) <= 1e-10
        assert len(sample(model, prompts)) == 4 * len(prompts)


def test_probe_stops_a_run_whose_sampler_has_other_weights():
    """Catches a probe that compares nothing: equal weights pass, stale ones stop the run, and so does another temperature."""
    model, stale = random_model(torch.float32, seed=0), random_model(torch.float32, seed=1)
    tokenizer = SimpleNamespace(chat_template=None, encode=lambda text: [3, 5, int(text)])
    task = SimpleNamespace(problem=lambda split, index, seed: Problem(str(index), "1"))
    args = SimpleNamespace(seed=0, system_prompt=None, max_new_tokens=8, temperature=0.7, micro_batch_tokens=1000,
                           max_logprob_gap=1e-4)  # fmt: skip
    rollout.probe_gap(HFSampler(model, [EOS]), model, tokenizer, task, args)
    with pytest.raises(SystemExit, match="sampler and trainer"):
        rollout.probe_gap(HFSampler(stale, [EOS]), model, tokenizer, task, args)
    hot = HFSampler(model, [EOS])
    hot.generate = lambda prompts, n, tokens, temperature, seeds: HFSampler(model, [EOS]).generate(prompts, n, tokens, 1.0, seeds)
    with pytest.raises(SystemExit, match="sampler and trainer"):
        rollout.probe_gap(hot, model, tokenizer, task, args)


def test_completion_seed_depends_on_every_part_of_its_key():
    """Catches a part left out (one seed for a group, for a round, for all steps), and seeds that a sampler cannot take."""
    key = (3, 5, 7, 0, 2)
    seeds = {completion_seed(*key)}
    for place in range(5):
        for change in (1, 2, 100):
            seeds.add(completion_seed(*(part + change * (i == place) for i, part in enumerate(key))))
    assert len(seeds) == 16
    assert completion_seed(*key) == completion_seed(*key)
    assert completion_seed(0, 1, 2, 3, 4) != completion_seed(0, 2, 1, 3, 4)
    many = [completion_seed(0, step, 0, 0, sample) for step in range(40) for sample in range(40)]
    assert len(set(many)) == 1600 and all(0 <= seed < 2**63 for seed in many) and max(many) > 2**62


def test_growing_stretch_equals_concatenation():
    """Catches keys lost when the buffer doubles, or mixed up when rows are dropped."""
    stretch, expected = GrowingStretch(), {0: [], 1: []}
    generator = torch.Generator().manual_seed(0)
    for i in range(80):
        for layer in expected:
            new = torch.randn(2, 3 if 40 <= i <= 60 else 4, 2, 1, 8, generator=generator)
            expected[layer].append(new)
            for got, parts in zip(stretch.extend(layer, *new), zip(*expected[layer])):
                assert torch.equal(got, torch.cat(parts, dim=2))
        if i == 39:  # three rows of the four stay, in another order
            rows = torch.tensor([3, 0, 2])
            stretch.exchange(rows, 0, 0)
            expected = {layer: [new[:, rows] for new in parts] for layer, parts in expected.items()}
        if i == 60:  # the first of them leaves with the first 20 columns, two others come
            stretch.exchange(torch.tensor([1, 2]), 2, 20)
            expected = {layer: [torch.cat([new[:, 1:], torch.zeros(2, 2, 2, 1, 8)], dim=1) for new in parts[20:]]
                        for layer, parts in expected.items()}  # fmt: skip


# --- a batch of completions -----------------------------------------------------------------------------------------------


class CountingSampler:
    """Returns completions that name the prompt and the sample they belong to."""

    def generate(self, prompt_ids, n, max_new_tokens, temperature, seeds, top_p=1.0):
        self.arguments = (prompt_ids, n, max_new_tokens, temperature, seeds, top_p)
        finish = ["length"] + ["stop"] * (n - 1)
        return [Completion([prompt[-1], i], [-0.5, -float(i)], finish[i]) for prompt in prompt_ids for i in range(n)]


class PairTask:
    """Right is the completion whose sample number is the problem's answer; worth 10 points a prompt besides."""

    name = "pair"

    def grade(self, completion, problem):
        prompt, i = completion.split()
        assert prompt == problem.prompt, "a completion was graded against another prompt's problem"
        return Grade(i == problem.answer, 10.0 * int(prompt) + int(i), i, "")


def pair_rollout(count: int = 3, group_size: int = 4, first: int = 0) -> Rollout:
    tokenizer = SimpleNamespace(chat_template=None, encode=lambda text: [9, int(text)],
                                decode=lambda ids, skip_special_tokens: " ".join(map(str, ids)))  # fmt: skip
    problems = [Problem(str(j), str(j % group_size)) for j in range(first, first + count)]
    return rollout.sample_rollout(CountingSampler(), tokenizer, PairTask(), problems, [p.prompt for p in problems],
                                  list(range(count * group_size)), group_size, 8, 1.0)  # fmt: skip


def test_rows_are_prompt_major_from_sampler_to_reward():
    """Catches completions paired with another prompt's problem, or rewards laid out sample by sample."""
    batch = pair_rollout()
    assert batch.prompt_ids == [[9, j] for j in range(3) for _ in range(4)]
    assert batch.completion_ids == [[j, i] for j in range(3) for i in range(4)]
    assert batch.rewards(4).tolist() == [[10.0 * j + i for i in range(4)] for j in range(3)]
    assert [grade.correct for grade in batch.grades] == [i == j for j in range(3) for i in range(4)]
    assert batch.logprobs == [[-0.5, -float(i)] for _ in range(3) for i in range(4)]
    assert batch.truncated == [i == 0 for _ in range(3) for i in range(4)] and batch.tokens == 24


def test_select_and_addition_keep_rows_prompt_major():
    """Catches groups torn apart when dynamic sampling drops some and adds others."""
    batch = pair_rollout()
    some = batch.select([2, 0])
    assert [p.prompt for p in some.problems] == ["2", "0"]
    assert some.rewards(4).tolist() == [[20.0, 21.0, 22.0, 23.0], [0.0, 1.0, 2.0, 3.0]]
    assert some.prompt_ids == [[9, 2]] * 4 + [[9, 0]] * 4 and some.texts[:2] == ["2 0", "2 1"]
    both = some + pair_rollout(count=2, first=7)
    assert [p.prompt for p in both.problems] == ["2", "0", "7", "8"]
    assert both.rewards(4)[:, 0].tolist() == [20.0, 0.0, 70.0, 80.0] and len(both.texts) == len(both.grades) == 16
    assert both.select([3]).completion_ids == [[8, i] for i in range(4)]
    assert batch.select([]).rewards(4).shape == (0, 4)


def test_sampler_must_return_n_completions_for_each_prompt():
    """Catches a sampler of one's own that returns one completion a prompt."""
    sampler = SimpleNamespace(generate=lambda *_: [Completion([1], [0.0], "stop")])
    tokenizer = SimpleNamespace(chat_template=None, encode=lambda text: [1, 2], decode=lambda ids, skip_special_tokens: "")
    with pytest.raises(AssertionError, match="n completions"):
        rollout.sample_rollout(sampler, tokenizer, PairTask(), [Problem("1", "1")], ["1"], [0, 1], 2, 8, 1.0)


def test_encode_prompt_with_and_without_chat_template():
    """Catches a prompt that does not end where the model is to answer, and a system prompt that is lost."""
    calls = []
    apply = lambda messages, **options: calls.append((messages, options)) or [1, 2]  # noqa: E731
    chat = SimpleNamespace(chat_template="x", apply_chat_template=apply)
    assert rollout.encode_prompt(chat, "2+3?", "Be brief.") == [1, 2] == rollout.encode_prompt(chat, "2+3?")
    system, user = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+3?"}
    assert [messages for messages, _ in calls] == [[system, user], [user]]
    assert all(options["add_generation_prompt"] and not options["return_dict"] for _, options in calls)
    bare = SimpleNamespace(chat_template=None, encode=list)
    assert "".join(rollout.encode_prompt(bare, "2+3?")) == "2+3?"
    assert "".join(rollout.encode_prompt(bare, "2+3?", "Be brief.")) == "Be brief.\n\n2+3?"
