"""Seven checks of a loss, for a script of your own. tests/test_your_loss.py shows them at work: copy it.

Each is a function of a script module, such as `from papers import rloo`, and its flags. It calls the script's
`accumulate_gradients` on a random model of two layers, in float64, with a batch of 4 prompts x 4 completions
of random lengths. `own` are the arguments that your `accumulate_gradients` has behind the usual three; `old`
says whether the batch has old_logprobs. The loss to compare with is a function that you write, in loops and
without a line of the script:

    def loss(now, start, batch, args) -> float:
        ...

`now[i][t]` is the distribution over the vocabulary (log-probabilities, numpy) of token t of completion i,
and `start` the same before the model was moved for a finite difference: what carries no gradient
(old log-probabilities of a single update, a threshold, a mask) is computed from it. The batch is a dict, with
the columns that the script gets.
"""

import contextlib
import dataclasses
import itertools
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from random_model import EOS, as_batch, distance, distributions, gradient, random_model

from plainrl.rollout import pad
from plainrl.scoring import score_all

GROUP = 4
BUDGETS = {"all": 10**6, "two": 100, "one": 1}  # tokens per micro-batch, for the batch of `make_batch`


# --- a batch, and what the script makes of it ---------------------------------------------------------------


@contextlib.contextmanager
def numbers(dtype):
    """What torch makes without being told a type is of this one: float64, so that tests can ask for 1e-10."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def make_args(script, **flags):
    """The flags of a script, with few tokens and a temperature that is not 1."""
    return script.Args(**{"max_new_tokens": 12, "temperature": 0.8, "micro_batch_tokens": 10**6} | flags)


def make_batch(
    seed: int = 0, groups: int = 4, noise: float = 0.4, old: bool = False, truncated: bool = False
) -> dict:
    """`groups` prompts x GROUP completions of random lengths, with log-probs near those of `random_model`.

    `old`: with old_logprobs, as in several updates of one batch; `truncated`: some completions are left out
    of the loss.
    """
    generator = np.random.default_rng(seed)
    tokens = lambda count: [int(token) for token in generator.integers(0, 64, count)]  # noqa: E731
    prompts = [tokens(generator.integers(2, 9)) for _ in range(groups)]
    prompt_ids = [prompt for prompt in prompts for _ in range(GROUP)]
    completion_ids = [tokens(generator.integers(1, 13)) for _ in prompt_ids]
    completion_ids[1], completion_ids[2] = tokens(12), tokens(1)
    for completion in completion_ids[::3]:
        completion[-1] = EOS
    _, mask = pad(completion_ids, "cpu")
    now, _ = score_all(random_model(), prompt_ids, completion_ids, 0.8, 10**6)
    noisy = lambda: now + noise * torch.from_numpy(generator.standard_normal(now.shape)) * mask  # noqa: E731
    batch = {
        "prompt_ids": prompt_ids,
        "completion_ids": completion_ids,
        "completion_mask": mask,
        "loss_mask": mask.clone(),
        "advantages": torch.from_numpy(generator.standard_normal((len(prompt_ids), 1))),
        "rollout_logprobs": noisy(),
        "ref_logprobs": noisy(),
        **{name: torch.zeros_like(mask) for name in ("dropped", "penalised")},  # which `main` makes
        "bonus": torch.zeros(mask.shape),
    }
    if old:
        batch["old_logprobs"] = noisy()
    if truncated:
        batch["loss_mask"][torch.from_numpy(generator.random(len(prompt_ids)) < 0.3)] = False
        batch["loss_mask"][0] = False
    return batch


def update(script, model, batch: dict, args, rows: slice = slice(None), **own):
    """Sums for the log and the gradient as one vector."""
    model.zero_grad()
    sums = script.accumulate_gradients(model, as_batch(batch, rows), args, **own)
    return sums, gradient(model)


def assert_same(ours, theirs, limit: float = 1e-10) -> None:
    """Two results of `update` are equal: gradients in relative L2, sums one by one."""
    (our_sums, our_gradient), (their_sums, their_gradient) = ours, theirs
    assert their_gradient.norm() > 1e-4, "no gradient to compare"
    assert distance(our_gradient, their_gradient) <= limit
    assert our_sums.keys() == their_sums.keys()
    for name, value in their_sums.items():
        assert our_sums[name] == pytest.approx(value, rel=limit, abs=limit), name


def as_float32(batch: dict) -> dict:
    """The batch with its numbers in float32."""
    floating = lambda value: torch.is_tensor(value) and value.is_floating_point()  # noqa: E731
    return {name: value.float() if floating(value) else value for name, value in batch.items()}


def reordered(batch: dict, groups: tuple[int, ...]) -> dict:
    """The batch with its groups in another order."""
    rows = [group * GROUP + i for group in groups for i in range(GROUP)]
    pick = lambda value: value[rows] if torch.is_tensor(value) else [value[row] for row in rows]  # noqa: E731
    return {name: pick(value) for name, value in batch.items()}


def widened(batch: dict) -> dict:
    """The batch with five more columns, and absurd numbers wherever there is no token."""
    wider = {}
    for name, value in batch.items():
        if torch.is_tensor(value) and value.shape[1] > 1:
            filler = False if value.dtype == torch.bool else -7.0
            value = value.masked_fill(~batch["completion_mask"], filler)
            value = torch.nn.functional.pad(value, (0, 5), value=filler)
        wider[name] = value
    return wider


def tables(model, batch: dict, temperature: float) -> list[np.ndarray]:
    """The distribution of every token of every completion, each row in a forward pass of its own."""
    rows = zip(batch["prompt_ids"], batch["completion_ids"])
    return [distributions(model, prompt, completion, temperature).numpy() for prompt, completion in rows]


def directional_derivative(
    model, function: Callable, seed: int, ours: torch.Tensor, step: float = 1e-6
) -> float:
    """Central difference of `function` along a random direction, over what the gradient `ours` says it is."""
    direction = torch.randn(ours.shape, generator=torch.Generator().manual_seed(seed))
    direction = direction / direction.norm() + ours / ours.norm()  # not at a right angle to the gradient
    start = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
    values = []
    for move in (step, -step, 0.0):
        torch.nn.utils.vector_to_parameters(start + move * direction, model.parameters())
        values.append(function() if move else None)
    return (values[0] - values[1]) / (2 * step) / (direction @ ours).item()


# --- the seven checks ---------------------------------------------------------------------------------------


def check_by_hand(function: Callable, given: list, by_hand: list) -> None:
    """1. A pure function of a tensor gives what you worked out on paper."""
    torch.testing.assert_close(function(torch.tensor(given)), torch.tensor(by_hand), rtol=1e-6, atol=1e-6)


@numbers(torch.float64)
def check_loops(script, loss: Callable, args, old: bool = False, **own) -> None:
    """2. The loss is that of plain loops, with all completions and with some left out of it."""
    model = random_model()
    for truncated in (False, True):
        batch = make_batch(old=old, truncated=truncated)
        now = tables(model, batch, args.temperature)
        sums, _ = update(script, model, batch, args, **own)
        assert sums["total_loss"] == pytest.approx(loss(now, now, batch, args), rel=1e-9)


@numbers(torch.float64)
def check_finite_difference(script, loss: Callable, args, old: bool = False, **own) -> None:
    """3. The gradient is that of the same loops: all that should carry one does, and nothing else."""
    model, batch = random_model(), make_batch(groups=2, old=old, truncated=True)
    _, ours = update(script, model, batch, args, **own)
    start = tables(model, batch, args.temperature)
    moved = lambda: loss(tables(model, batch, args.temperature), start, batch, args)  # noqa: E731
    for seed in range(2):
        assert directional_derivative(model, moved, seed, ours) == pytest.approx(1.0, abs=1e-5)


@numbers(torch.float64)
def check_micro_batches(script, args, old: bool = False, **own) -> None:
    """4. Denominators and statistics are of the whole batch: any split into micro-batches gives the same."""
    model, batch = random_model(), make_batch(old=old, truncated=True)
    expected = update(script, model, batch, args, **own)
    for tokens in (BUDGETS["two"], BUDGETS["one"]):
        smaller = dataclasses.replace(args, micro_batch_tokens=tokens)
        assert_same(update(script, model, batch, smaller, **own), expected)


@numbers(torch.float64)
def check_padding(script, args, old: bool = False, **own) -> None:
    """5a. Padding is not counted."""
    model, batch = random_model(), make_batch(old=old, truncated=True)
    assert_same(update(script, model, widened(batch), args, **own), update(script, model, batch, args, **own))


@numbers(torch.float64)
def check_order(script, args, old: bool = False, **own) -> None:
    """5b. No row meets another row's advantage: the order of the groups changes nothing."""
    model, batch = random_model(), make_batch(old=old, truncated=True)
    expected = update(script, model, batch, args, **own)
    assert_same(update(script, model, reordered(batch, (3, 0, 2, 1)), args, **own), expected)


@numbers(torch.float32)
def check_against_base(script, args, base, base_args, times: float = 1.0, old: bool = False, **own) -> None:
    """6. With its switch off the script is its base to the last bit, in float32 as in a run.

    A script without a switch has `times` the gradient of its base, to 1e-5.
    """
    with numbers(torch.float64):
        batch = as_float32(make_batch(old=old, truncated=True))
    model = random_model(torch.float32)
    args, base_args = (dataclasses.replace(each, micro_batch_tokens=250) for each in (args, base_args))
    their_sums, theirs = update(base, model, batch, base_args)
    sums, ours = update(script, model, batch, args, **own)
    assert theirs.norm() > 1e-4, "no gradient to compare"
    if times == 1:
        assert torch.equal(ours, theirs) and {name: sums[name] for name in their_sums} == their_sums
    else:
        assert distance(ours, times * theirs) <= 1e-5


def mutant(script, old: str, new: str):
    """The script with one place in its source replaced, as a module."""
    path = Path(script.__file__)
    source = path.read_text()
    assert source.count(old) == 1, f"{old!r} stands {source.count(old)} times in {path.name}"
    module = types.ModuleType(script.__name__)
    module.__file__ = str(path)
    exec(compile(source.replace(old, new), path, "exec"), vars(module))
    return module


def check_mutant(script, old: str, new: str, check: Callable) -> None:
    """7. A check sees the bug: it passes for the script, and fails where `old` is replaced by `new`."""
    check(script)
    wrong = mutant(script, old, new)
    with pytest.raises(AssertionError):
        check(wrong)


# --- beyond the seven: an expectation, exactly --------------------------------------------------------------


@numbers(torch.float64)
def check_expected_gradient(script, args, share: float = 1.0) -> None:
    """The expected gradient of the loss is `share` times that of -E[R], and points nowhere else.

    All completions of two tokens over a vocabulary of three are enumerated, and all pairs of them as a group.
    """
    model, prompt = random_model(vocab=3), [2, 0, 1]
    completions = [list(tokens) for tokens in itertools.product(range(3), repeat=2)]  # 9
    rewards = torch.tensor([0.3, -1.0, 2.0, 0.0, 0.5, 1.0, -0.7, 0.1, 1.5])

    def probabilities() -> torch.Tensor:
        tables = [distributions(model, prompt, tokens, args.temperature) for tokens in completions]
        pairs = zip(tables, completions)
        return torch.stack([table[0, first] + table[1, second] for table, (first, second) in pairs]).exp()

    groups = list(itertools.product(range(9), repeat=2))  # 81, each with its probability
    chance = probabilities()
    assert chance.sum().item() == pytest.approx(1.0)
    chance_of_group = torch.stack([chance[list(members)].prod() for members in groups])[:, None]  # [81, 1]
    advantages = script.group_advantages(torch.stack([rewards[list(members)] for members in groups]))
    advantages = advantages * chance_of_group * len(groups)  # [81, 2]; the loss is a mean over groups
    rows = [completions[member] for members in groups for member in members]
    mask = torch.ones(len(rows), 2, dtype=torch.bool)
    batch = {
        "prompt_ids": [prompt] * len(rows),
        "completion_ids": rows,
        "advantages": advantages.view(-1, 1),
        "completion_mask": mask,
        "loss_mask": mask,
        "rollout_logprobs": torch.zeros(mask.shape),
    }
    _, ours = update(script, model, batch, args)
    expected_reward = lambda: (probabilities() @ rewards).item()  # noqa: E731
    for seed in range(3):
        derivative = directional_derivative(model, expected_reward, seed, -ours / share)
        assert derivative == pytest.approx(1.0, abs=1e-5)
