"""The samplers on tiny random models: against exact distributions, the scorer and one another."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mutants import mutant
from random_model import (
    EOS,
    FEW,
    PROMPTS,
    ROUNDING,
    distance,
    distributions,
    gradient,
    one_token_at_a_time,
    random_model,
    roundings,
    sample,
)

from plainrl import models, sampler
from plainrl.rollout import completion_seed, pad, pad_values
from plainrl.sampler import HFSampler, draw, plain_generate, probe_gap
from plainrl.scoring import score, score_all
from plainrl.tasks import Problem

TEMPERATURES = pytest.mark.parametrize("temperature", [0.7, 1.3])
# --- drawing a token ----------------------------------------------------------------------------------------

PROBABILITIES = torch.tensor([0.05, 0.40, 0.15, 0.30, 0.10], dtype=torch.float64)


def test_draw_matches_the_distribution_exactly_on_a_grid():
    """Catches a biased draw: K evenly spaced uniform numbers must give every token K*p times, to within
    one."""
    uniforms = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    ids, logprobs = draw(PROBABILITIES.log().expand(10_000, -1), 1.0, uniforms)
    counts = torch.bincount(ids, minlength=5)
    assert (counts - 10_000 * PROBABILITIES).abs().max() <= 1
    torch.testing.assert_close(logprobs.exp(), PROBABILITIES[ids].float(), rtol=FEW * ROUNDING, atol=0)


@mutant("boundary on the wrong side", "plainrl/sampler.py", "right=True)", "right=False)")
def test_draw_at_a_boundary_of_the_distribution():
    """Catches an off-by-one at the boundaries, a token of probability zero, and an index past the end."""
    # A quarter each; the second and the last never.
    logits = torch.tensor([[0.0, -torch.inf, 0.0, 0.0, 0.0, -torch.inf]])
    uniforms = [0.0, np.nextafter(0.25, 0), 0.25, np.nextafter(0.5, 0), 0.5, 0.75, np.nextafter(1.0, 0)]
    ids, _ = draw(logits.expand(len(uniforms), -1), 1.0, torch.tensor(uniforms, dtype=torch.float64))
    assert ids.tolist() == [0, 0, 2, 2, 3, 4, 4]


@mutant(
    "no temperature in the sampler",
    "plainrl/sampler.py",
    "logits.float() / temperature, dim=-1)",
    "logits.float(), dim=-1)",
    case="0.7",
)
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


@mutant(
    "top-p off by one",
    "plainrl/sampler.py",
    "sorted_probs.cumsum(-1) - sorted_probs >= top_p",
    "sorted_probs.cumsum(-1) >= top_p",
)
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
    """Catches a nucleus one token too small or too large, kept in sorted order, or log-probabilities that do
    not sum to one."""
    uniforms = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    ids, logprobs = draw(PROBABILITIES.log().expand(2000, -1), 1.0, uniforms, top_p)
    kept = PROBABILITIES[nucleus] / PROBABILITIES[nucleus].sum()
    assert (torch.bincount(ids, minlength=5)[nucleus] - 2000 * kept).abs().max() <= 1
    assert set(ids.tolist()) == set(nucleus)
    for token, p in zip(nucleus, kept.tolist()):
        assert logprobs[ids == token].exp().tolist() == pytest.approx(
            [p] * int((ids == token).sum()), rel=1e-5
        )


def test_greedy_draw_takes_the_most_likely_token():
    """Catches a division by temperature zero."""
    ids, logprobs = draw(
        torch.tensor([[0.1, 0.3, 0.2], [5.0, -1.0, 4.0]]), 0, torch.tensor([0.99, 0.99], dtype=torch.float64)
    )
    assert ids.tolist() == [1, 0] and logprobs.tolist() == [0.0, 0.0]


# --- completions --------------------------------------------------------------------------------------------


@mutant("no temperature in the scorer", case="llama-0.7")
@mutant("no temperature in the sampler", case="llama-0.7")
@mutant(
    "positions of the wrong rows",
    "plainrl/sampler.py",
    "SampledRows(*(values[rows] for values in vars(self).values()))",
    'SampledRows(*(values[: len(rows)] if name == "start" else values[rows] for name, values '
    "in vars(self).items()))",
    case="llama-0.7",
)
@mutant(
    "completions tiled",
    "plainrl/sampler.py",
    "prompts = [prompt for prompt in prompt_ids[first:last] for _ in range(n)]",
    "prompts = [prompt for _ in range(n) for prompt in prompt_ids[first:last]]",
    case="llama-0.7",
)
@TEMPERATURES
@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_sampled_logprobs_equal_the_scorers(kind, temperature):
    """Catches a sampler that draws from another distribution than the one in the loss."""
    model = random_model(torch.float32, kind=kind)
    completions = sample(model, temperature=temperature)
    prompts = [prompt for prompt in PROMPTS for _ in range(4)]
    logprobs, _ = score_all(model, prompts, [c.ids for c in completions], temperature, 10_000)
    _, mask = pad([c.ids for c in completions], "cpu")
    assert len({len(c.ids) for c in completions}) > 3, "completions of many lengths"
    sampled = pad_values([completion.logprobs for completion in completions], mask)
    assert roundings(sampled, logprobs) <= FEW


def test_same_seeds_give_the_same_completions_in_any_batch():
    """Catches completions that depend on their neighbours: on order, padding, dropped rows or the size of the
    batch."""
    model = random_model()
    completions = sample(model)
    for rows_at_once in (1, 3, 7):
        assert [c.ids for c in sample(model, rows_at_once=rows_at_once)] == [c.ids for c in completions]
    seeds = [completion_seed(0, 1, j, 0, i) for j in range(len(PROMPTS)) for i in range(4)]
    for row in range(len(seeds)):  # alone
        (alone,) = sample(model, [PROMPTS[row // 4]], n=1, seeds=[seeds[row]])
        assert alone.ids == completions[row].ids and alone.finish_reason == completions[row].finish_reason
        assert roundings(alone.logprobs, completions[row].logprobs) <= FEW
    order = [3, 0, 4, 2, 1]  # prompts in another order, samples of each reversed
    shuffled = sample(
        model, [PROMPTS[j] for j in order], seeds=[seeds[4 * j + i] for j in order for i in (3, 2, 1, 0)]
    )
    assert [c.ids for c in shuffled] == [completions[4 * j + i].ids for j in order for i in (3, 2, 1, 0)]


@mutant(
    "random numbers that depend on the limit",
    "plainrl/sampler.py",
    "np.random.Philox(seed)).random(count)",
    "np.random.Philox(seed + count)).random(count)",
)
def test_a_shorter_limit_gives_the_beginning_of_the_same_completions():
    """Catches random numbers that depend on --max-new-tokens."""
    model = random_model()
    assert [c.ids[:5] for c in sample(model, tokens=16)] == [c.ids for c in sample(model, tokens=5)]


def is_near_a_boundary(model, prompt, ids: list[int], position: int, seed: int, limit: float) -> bool:
    """Whether the random number that drew ids[position] lies within `limit` of a boundary of the
    distribution."""
    probabilities = distributions(model, prompt, ids[: position + 1], 1.0)[-1].double().exp()
    uniform = np.random.Generator(np.random.Philox(seed)).random(position + 1)[position]
    return (probabilities.cumsum(0) - uniform).abs().min().item() <= limit


def test_every_difference_between_float32_batches_is_a_draw_at_a_boundary():
    """Catches any other reason to sample differently: rounding moves a token only when its draw is within
    1e-5 of a boundary."""
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
                assert is_near_a_boundary(model, prompts[row // 8], ours.ids, first, seeds[row], 1e-5), (
                    row,
                    first,
                )
    assert compared > 1000
    # the check itself: a token drawn by another random number is not excused
    assert not all(
        is_near_a_boundary(model, prompts[0], together[0].ids, 0, seed, 1e-5) for seed in range(100, 110)
    )


LONG_BEGINNING = [list(range(2, 50)) + rest for rest in ([7, 8, 9], [5], [60, 7], [7, 8, 9])]


@mutant(
    "random numbers of the wrong rows",
    "plainrl/sampler.py",
    "SampledRows(*(values[rows] for values in vars(self).values()))",
    'SampledRows(*(values[: len(rows)] if name == "uniforms" else values[rows] for name, '
    "values in vars(self).items()))",
    case="llama-0.7-short",
)
@mutant(
    "a row sees the one that had its place before",
    "plainrl/shared_prompts.py",
    "< self.first_column[:, None])",
    "< 0 * self.first_column[:, None])",
    case="llama-0.7-short",
)
@pytest.mark.parametrize("prompts", [PROMPTS, LONG_BEGINNING], ids=["short", "common"])
@pytest.mark.parametrize("temperature", [0, 0.7, 1.0])
@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_the_fast_sampler_equals_the_plain_one(kind, temperature, prompts):
    """Catches what the fast one has in addition and does wrong: the cache, the batch, the shared prompt, the
    exchange of rows."""
    model = random_model(kind=kind)
    ours = sample(model, prompts, tokens=24, temperature=temperature, rows_at_once=6)
    for row, fast in enumerate(ours):
        prompt, seed = prompts[row // 4], completion_seed(0, 1, row // 4, 0, row % 4)
        plain = plain_generate(model, prompt, 24, temperature, seed, [EOS, 17, 30, 45])
        assert fast.ids == plain.ids and fast.finish_reason == plain.finish_reason, row
        assert roundings(fast.logprobs, plain.logprobs) <= FEW
    assert sum(len(completion.ids) for completion in ours) > 60


@mutant(
    "plain sampler that goes on behind the end",
    "plainrl/sampler.py",
    "        if ids[-1] in eos_ids:\n            break\n",
    "",
)
@mutant(
    "plain sampler without temperature",
    "plainrl/sampler.py",
    "draw(logits, temperature, torch.tensor([uniform]",
    "draw(logits, 1.0, torch.tensor([uniform]",
)
@mutant(
    "plain sampler one position behind",
    "plainrl/sampler.py",
    "use_cache=False).logits[:, -1]",
    "use_cache=False).logits[:, -2]",
)
@mutant(
    "plain sampler with one random number",
    "plainrl/sampler.py",
    "torch.tensor([uniform], device",
    "torch.tensor(uniform_numbers(seed, 1), device",
)
@mutant(
    "plain sampler that never says stop",
    "plainrl/sampler.py",
    '"stop" if ids[-1] in eos_ids else "length")\n\n\n# --- the fast',
    '"length")\n\n\n# --- the fast',
)
def test_the_plain_sampler_draws_from_the_models_distribution():
    """Catches an oracle that is wrong itself: log-probabilities, ends and the uniform numbers that draw the
    tokens."""
    model, eos_ids = random_model(), [EOS, 17, 30, 45]
    ends = set()
    for seed in range(40):
        completion = plain_generate(model, PROMPTS[0], 8, 0.7, seed, eos_ids)
        rows = one_token_at_a_time(model, PROMPTS[0], completion.ids, 0.7)
        uniforms = np.random.Generator(np.random.Philox(seed)).random(8)
        for row, token, logprob, uniform in zip(rows, completion.ids, completion.logprobs, uniforms):
            assert logprob == pytest.approx(row[token].item(), abs=1e-5)
            before, up_to = row.exp()[:token].sum().item(), row.exp()[: token + 1].sum().item()
            assert before - 1e-5 <= uniform <= up_to + 1e-5
        ended = completion.ids[-1] in eos_ids
        assert not set(completion.ids[:-1]) & set(eos_ids) and (ended or len(completion.ids) == 8)
        assert completion.finish_reason == ("stop" if ended else "length")
        ends.add(completion.finish_reason)
    assert ends == {"stop", "length"}


def test_samples_of_one_prompt_differ_and_so_do_seeds():
    """Catches one seed for a whole group, and seeds that are ignored."""
    model = random_model()
    first, second = sample(model, seeds=list(range(20))), sample(model, seeds=list(range(20, 40)))
    assert len({tuple(c.ids) for c in first + second}) > 35
    same = sample(model, PROMPTS[:1], n=4, seeds=[7, 7, 8, 7])
    assert same[0].ids == same[1].ids == same[3].ids != same[2].ids


def test_sampled_pairs_of_tokens_have_their_exact_probabilities():
    """Catches random numbers that are reused from token to token, and seeds whose numbers are not uniform: 15
    degrees of freedom, 37.70 is exceeded once in a thousand."""
    model = random_model(torch.float32, vocab=4)
    seeds = [completion_seed(0, 1, 0, 0, i) for i in range(4000)]
    completions = sample(model, [[2, 3, 1]], n=4000, tokens=2, seeds=seeds, eos_ids=[99], rows_at_once=4000)
    pairs, counts = np.unique([c.ids for c in completions], axis=0, return_counts=True)
    statistic, mass = 0.0, 0.0
    for pair, count in zip(pairs.tolist(), counts):
        rows = distributions(model, [2, 3, 1], pair, 1.0)
        probability = (rows[0, pair[0]] + rows[1, pair[1]]).exp().item()
        statistic, mass = (
            statistic + (count - 4000 * probability) ** 2 / (4000 * probability),
            mass + probability,
        )
    assert statistic + 4000 * (1 - mass) < 37.70 and len(pairs) > 10


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_greedy_equals_generate_of_transformers(kind):
    """Catches wrong positions or a wrong cache: 40 tokens, through several doublings of the buffer, from
    padded prompts."""
    model = random_model(kind=kind)
    ours = sample(model, n=1, tokens=40, temperature=0, eos_ids=[EOS])
    for prompt, completion in zip(PROMPTS, ours):
        theirs = model.eval().generate(
            input_ids=torch.tensor([prompt]), do_sample=False, max_new_tokens=40, pad_token_id=EOS
        )
        assert completion.ids == theirs[0, len(prompt) :].tolist()
        assert completion.logprobs == [0.0] * len(completion.ids)


def test_top_p_samples_from_the_nucleus_with_renormalised_logprobs():
    """Catches a top_p that the sampler does not pass on."""
    model = random_model()
    completions = sample(model, top_p=0.5)
    for prompt, completion in zip([prompt for prompt in PROMPTS for _ in range(4)], completions):
        for row, token, logprob in zip(
            distributions(model, prompt, completion.ids, 1.0), completion.ids, completion.logprobs
        ):
            likelier = row[row > row[token]].exp().sum().item()
            assert likelier < 0.5
            masses = row.exp().sort(descending=True).values.cumsum(0)
            nucleus = masses[(masses < 0.5).sum()].item()
            assert logprob == pytest.approx(row[token].item() - np.log(nucleus), abs=1e-5)


@mutant(
    "EOS dropped from the completion",
    "plainrl/sampler.py",
    "torch.where(ended, t + 1, rows.length)",
    "torch.where(ended, t.clamp(min=1), rows.length)",
)
@mutant("finished rows end again", "plainrl/sampler.py", "live = rows.length == 0", "live = rows.length >= 0")
def test_completions_end_with_eos_exactly_once_or_at_the_limit():
    """Catches EOS dropped or doubled, tokens after the end, and a wrong finish reason, also for an EOS at the
    very last place."""
    eos_ids = {EOS, 17, 30, 45}
    completions = sample(random_model(), n=16, tokens=8)
    for completion in completions:
        stopped = completion.ids[-1] in eos_ids
        assert completion.finish_reason == ("stop" if stopped else "length")
        assert sum(token in eos_ids for token in completion.ids) == int(stopped)
        assert stopped or len(completion.ids) == 8
        assert len(completion.logprobs) == len(completion.ids)
    assert {c.finish_reason for c in completions} == {"stop", "length"}
    assert any(c.finish_reason == "stop" and len(c.ids) == 8 for c in completions), (
        "no case of an EOS at the last place"
    )


def test_each_of_several_eos_ids_ends_a_completion():
    """Catches a sampler that knows only the first EOS id (Llama 3 and Qwen have two)."""
    ends = {c.ids[-1] for c in sample(random_model(), n=16, tokens=60) if c.finish_reason == "stop"}
    assert ends == {EOS, 17, 30, 45}


def test_finished_rows_leave_the_batch():
    """Catches a sampler that computes finished rows until the last one ends."""
    model, rows = random_model(), []
    model.register_forward_pre_hook(
        lambda _, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    lengths = [len(c.ids) for c in sample(model, n=16, tokens=40)]
    assert len(rows) == max(lengths) and rows[0] == 80
    for t, ran in enumerate(rows):
        needed = sum(length > t for length in lengths)  # rows that still need token t
        assert needed <= ran < needed * 8 / 7 + 1, "more than an eighth is waste"
    assert sum(rows) < 0.6 * 80 * max(lengths), "the batch hardly shrank, so the test shows nothing"


def test_finished_rows_make_room_for_the_next():
    """Catches a batch that runs empty before the next rows begin, and rows that depend on when they began or
    on who was there before, and rows that wait beyond their last position, which a model with a table of
    positions does not have."""
    model, rows, positions = random_model(), [], []
    expected = sample(model, n=16, tokens=40)
    hook = model.register_forward_pre_hook(
        lambda _, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    last = model.register_forward_pre_hook(
        lambda _, args, kwargs: positions.append(int(kwargs["position_ids"].max())), with_kwargs=True
    )
    for at_once in (1, 6, 24):
        rows.clear()
        ours = sample(model, n=16, tokens=40, rows_at_once=at_once)
        assert [completion.ids for completion in ours] == [completion.ids for completion in expected]
        assert all(roundings(x.logprobs, y.logprobs) <= FEW for x, y in zip(ours, expected))
        tokens = sum(len(completion.ids) for completion in ours)
        assert max(rows) == at_once and sum(rows) < 1.15 * tokens + 40 * at_once
    assert max(positions) == max(map(len, PROMPTS)) - 1 + 40 - 1
    hook.remove()
    last.remove()


def test_prompts_are_kept_a_few_at_a_time(monkeypatch):
    """Catches keys of all prompts of an evaluation in memory at once, and completions in another order."""
    model, shapes, expected = random_model(), [], sample(random_model())
    model.model.register_forward_pre_hook(
        lambda _, args, kwargs: shapes.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    monkeypatch.setattr(sampler, "PROMPT_TOKENS_AT_ONCE", 9)
    assert [completion.ids for completion in sample(model)] == [completion.ids for completion in expected]
    prefilled = [shape[1] for shape in shapes if shape[1] > 1]
    assert prefilled == [6 + 1, 6, 3 + 1]  # prompts of 7 and 2 tokens, of 7, of 4 and 2


def test_the_prompt_is_prefilled_once_for_its_group():
    """Catches a prefill for each of the n samples."""
    model, shapes = random_model(), []
    model.model.register_forward_pre_hook(
        lambda _, args, kwargs: shapes.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    sample(model, n=16, tokens=3)
    # Three different prompts end to end, but for their last tokens, the first inputs.
    assert shapes[0] == (1, 6 + 1 + 3)
    assert shapes[1] == (80, 1)


def test_generation_config_changes_nothing():
    """Catches sampling defaults that come with a model and make the sampled policy another one than the
    trained."""
    model = random_model()
    expected, greedy = sample(model), sample(model, temperature=0)
    for name, value in dict(
        repetition_penalty=1.8,
        top_k=2,
        top_p=0.3,
        temperature=0.1,
        do_sample=True,
        no_repeat_ngram_size=2,
        suppress_tokens=[4, 5, 6],
        min_new_tokens=9,
        max_new_tokens=2,
        eos_token_id=3,
    ).items():
        setattr(model.generation_config, name, value)
    assert sample(model) == expected and sample(model, temperature=0) == greedy


def test_sampling_leaves_the_models_mode_and_gradients_alone():
    """Catches a model left in eval mode, and a graph kept through sampling."""
    model = random_model()
    sample(model, tokens=2)
    assert model.training and gradient(model).count_nonzero() == 0
    sample(model.eval(), tokens=2)
    assert not model.training


@mutant(
    "ids that are no token",
    "plainrl/models.py",
    "if model.get_input_embeddings().num_embeddings > tokens:",
    "if False:",
)
def test_ids_that_are_no_token_are_never_sampled(toy_model, tmp_path):
    """Catches rows that only fill a vocabulary up to a round number, as Qwen's do, taken for tokens."""
    model, tokenizer = models.load_model(toy_model)
    tokens = len(tokenizer)
    model.resize_token_embeddings(tokens + 16, mean_resizing=False)
    with torch.no_grad():
        # Of tokens they would be the most likely ones.
        model.lm_head.weight[tokens:] = 3 * torch.randn(16, 32)
    models.save_model(tmp_path / "filled", model, tokenizer)
    loaded, _ = models.load_model(str(tmp_path / "filled"))
    completions = HFSampler(loaded, [tokenizer.eos_token_id]).generate(
        [[5, 6, 7]], 8, 16, 1.0, list(range(8))
    )
    assert (
        max(token for completion in completions for token in completion.ids)
        < tokens
        == loaded.config.vocab_size
    )
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight[:tokens])


def test_load_weights_changes_the_policy_that_samples():
    """Catches a sampler that goes on with the weights it was made with."""
    model, other = random_model(seed=0), random_model(seed=1)
    ours, arguments = HFSampler(model, [EOS]), (PROMPTS, 1, 8, 1.0, [1, 2, 3, 4, 5])
    ours.load_weights(other)
    assert ours.generate(*arguments) == HFSampler(other, [EOS]).generate(*arguments)
    assert ours.generate(*arguments) != HFSampler(model, [EOS]).generate(*arguments)


@pytest.mark.parametrize("count", [0, 5, 9, 11])
def test_wrong_number_of_seeds_is_refused(count):
    """Catches seeds that are silently cut or reused: 5 prompts x 2 completions need 10."""
    with pytest.raises(ValueError, match="10 seeds"):
        HFSampler(random_model(), [EOS]).generate(PROMPTS, 2, 4, 1.0, list(range(count)))


def test_prompts_of_one_token():
    """Catches a crash deep inside transformers when nothing comes before the first input, for all prompts or
    for one."""
    model = random_model()
    for prompts in ([[5]], [[5], [7, 8, 9]]):
        logprobs, _ = score(model, prompts, [[6, 4]] * len(prompts), 1.0)
        for prompt, row in zip(prompts, logprobs):
            expected = one_token_at_a_time(model, prompt, [6, 4], 1.0)
            assert distance(row.detach(), expected[[0, 1], [6, 4]]) <= 1e-10
        assert len(sample(model, prompts)) == 4 * len(prompts)


@mutant("gap not compared")
def test_probe_stops_a_run_whose_sampler_has_other_weights():
    """Catches a probe that compares nothing: equal weights pass, stale ones stop the run, and so does another
    temperature."""
    model, stale = random_model(torch.float32, seed=0), random_model(torch.float32, seed=1)
    tokenizer = SimpleNamespace(chat_template=None, encode=lambda text: [3, 5, int(text)])
    task = SimpleNamespace(problem=lambda split, index, seed: Problem(str(index), "1"))
    args = SimpleNamespace(
        seed=0,
        system_prompt=None,
        max_new_tokens=8,
        temperature=0.7,
        micro_batch_tokens=1000,
        max_logprob_gap=1e-4,
    )
    probe_gap(HFSampler(model, [EOS]), model, tokenizer, task, args)
    with pytest.raises(SystemExit, match="sampler and trainer"):
        probe_gap(HFSampler(stale, [EOS]), model, tokenizer, task, args)
    hot = HFSampler(model, [EOS])
    hot.generate = lambda prompts, n, tokens, temperature, seeds: HFSampler(model, [EOS]).generate(
        prompts, n, tokens, 1.0, seeds
    )
    with pytest.raises(SystemExit, match="sampler and trainer"):
        probe_gap(hot, model, tokenizer, task, args)
