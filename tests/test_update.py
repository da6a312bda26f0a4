"""accumulate_gradients of grpo.py, papers/dr_grpo.py and papers/dapo.py: the loss against loops written from
the papers, its gradient against finite differences and enumeration, and all that must not change it. In
float64 unless a test says otherwise."""

import functools
import math

import kit
import numpy as np
import pytest
import torch
from kit import BUDGETS, GROUP, as_float32, assert_same, directional_derivative, make_batch, reordered
from mutants import mutant
from random_model import GRADIENT, distance, distributions, random_model

import grpo
import guide
from papers import dapo, dr_grpo
from plainrl.rollout import pad_values
from plainrl.scoring import micro_batch_rows, score, score_all

SCRIPTS = pytest.mark.parametrize("script", [grpo, dr_grpo, dapo], ids=["grpo", "dr_grpo", "dapo"])
AGGREGATION = {grpo.Args: "sequence_mean", dr_grpo.Args: "constant", dapo.Args: "token_mean"}


@pytest.fixture(autouse=True)
def float64():
    """Everything that torch makes without being told a type is float64, so that tests can ask for 1e-10."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def make_args(script=grpo, **flags):
    return kit.make_args(script, **flags)


def update(model, batch: dict, args, script=grpo, rows: slice = slice(None)):
    return kit.update(script, model, batch, args, rows)


# --- the whole loss, as the papers write it -----------------------------------------------------------------


def loss_from_the_papers(
    model, batch: dict, args, rows: range, fixed: dict | None = None
) -> dict[str, float]:
    """GRPO's and DAPO's objective in loops over completions and tokens, in numpy and float64, with no
    function of the scripts.

    `fixed` are the old log-probs where the batch has none: those of the policy before it was moved for a
    finite difference.
    """
    logprobs, entropies = {}, {}
    for i in rows:
        table = distributions(
            model, batch["prompt_ids"][i], batch["completion_ids"][i], args.temperature
        ).numpy()
        for t, token in enumerate(batch["completion_ids"][i]):
            logprobs[i, t], entropies[i, t] = table[t, token], -np.sum(np.exp(table[t]) * table[t])
    policy_loss = kl_loss = gap = clipped = kl_sum = 0.0
    counted = [i for i in rows if batch["loss_mask"][i].any()]
    tokens_in_loss = sum(len(batch["completion_ids"][i]) for i in counted)
    for i in rows:
        length, advantage = len(batch["completion_ids"][i]), batch["advantages"][i, 0].item()
        for t in range(length):
            new, sampler = logprobs[i, t], batch["rollout_logprobs"][i, t].item()
            old = batch["old_logprobs"][i, t].item() if "old_logprobs" in batch else (fixed or logprobs)[i, t]
            ratio = math.exp(new) / math.exp(old)
            if ratio > 1 + args.clip_high:
                limited = 1 + args.clip_high
            elif ratio < 1 - args.clip_low:
                limited = 1 - args.clip_low
            else:
                limited = ratio
            objective = min(ratio * advantage, limited * advantage)
            clipped += limited * advantage < ratio * advantage
            gap += abs(old - sampler)
            if args.importance_cap is not None:
                objective *= min(math.exp(old) / math.exp(sampler), args.importance_cap)
            reference = batch["ref_logprobs"][i, t].item()
            kl = math.exp(reference) / math.exp(new) - math.log(math.exp(reference) / math.exp(new)) - 1
            kl *= ratio if getattr(args, "kl_bias_correction", False) else 1
            kl_sum += kl
            if i not in counted:
                continue
            aggregation = AGGREGATION[type(args)]
            if aggregation == "token_mean":
                share = 1 / tokens_in_loss
            elif aggregation == "sequence_mean":
                share = 1 / len(counted) / length
            else:
                share = 1 / len(rows) / args.max_new_tokens
            policy_loss -= objective * share
            kl_loss += kl * share
    kl_coef = getattr(args, "kl_coef", 0.0)
    result = {
        "policy_loss": policy_loss,
        "total_loss": policy_loss + kl_coef * kl_loss,
        "gap": gap,
        "clipped": clipped,
        "tokens": len(logprobs),
        "entropy": sum(entropies.values()),
        "logprobs": logprobs,
    }
    return result | ({"kl": kl_sum} if kl_coef else {})


VARIANTS = {
    "grpo": (grpo, {}),
    "grpo_with_everything": (grpo, dict(kl_coef=0.3, importance_cap=1.2, clip_low=0.1, clip_high=0.25)),
    "grpo_with_kl": (grpo, dict(kl_coef=0.04)),
    "grpo_with_corrected_kl": (grpo, dict(kl_coef=0.3, kl_bias_correction=True)),
    "dr_grpo": (dr_grpo, dict(importance_cap=2.0)),
    "dapo": (dapo, {}),
    "dapo_with_importance": (dapo, dict(importance_cap=1.2, clip_low=0.1)),
}
VARIANT = pytest.mark.parametrize("variant", VARIANTS)
EACH_AGGREGATION = pytest.mark.parametrize("variant", ["grpo_with_everything", "dr_grpo", "dapo"])


@mutant(
    "clip flags swapped",
    "grpo.py",
    "clipped_surrogate(logprobs, old_logprobs, advantages, args.clip_low, args.clip_high)",
    "clipped_surrogate(logprobs, old_logprobs, advantages, args.clip_high, args.clip_low)",
    case="old_logprobs-scored-grpo_with_everything",
)
@mutant(
    "clip fraction counts the others",
    "grpo.py",
    "clipped = loss_per_token > -torch",
    "clipped = loss_per_token <= -torch",
    case="old_logprobs-scored-grpo",
)
@mutant(
    "truncated completions in the loss after all",
    "grpo.py",
    'sequence_mean(batch["loss_mask"])',
    'sequence_mean(batch["completion_mask"])',
    case="on_policy-masked-grpo",
)
@mutant(
    "KL that is never corrected",
    "grpo.py",
    "if args.kl_bias_correction:",
    "if False:",
    case="old_logprobs-scored-grpo_with_corrected_kl",
)
@mutant(
    "KL corrected upside down",
    "grpo.py",
    "kl = kl * torch.exp(logprobs - old_logprobs)",
    "kl = kl * torch.exp(old_logprobs - logprobs)",
    case="old_logprobs-scored-grpo_with_corrected_kl",
)
@mutant("each completion divided by its own length", case="old_logprobs-scored-dr_grpo")
@mutant(
    "masked completions in Dr. GRPO's loss",
    "papers/dr_grpo.py",
    'constant(batch["loss_mask"],',
    'constant(batch["completion_mask"],',
    case="on_policy-masked-dr_grpo",
)
@VARIANT
@pytest.mark.parametrize("truncated", [False, True], ids=["scored", "masked"])
@pytest.mark.parametrize("old", [False, True], ids=["on_policy", "old_logprobs"])
def test_loss_equals_loops_written_from_the_papers(variant, old, truncated):
    """Catches any wrong sign, mask, denominator, clip side, ratio, KL direction or weight, in the loss and
    in what is logged."""
    script, flags = VARIANTS[variant]
    model, batch, args = random_model(), make_batch(old=old, truncated=truncated), make_args(script, **flags)
    for rows in (range(16), range(4, 12)):
        sums, _ = update(model, batch, args, script, slice(rows.start, rows.stop))
        expected = loss_from_the_papers(model, batch, args, rows)
        del expected["logprobs"]
        assert sums.keys() == expected.keys()
        for name, value in expected.items():
            assert sums[name] == pytest.approx(value, rel=1e-9), name
        assert not old or sums["clipped"] > 5, "nothing is clipped, so the test shows little"


@mutant(
    "old log-probs with gradient",
    "grpo.py",
    'part.get("old_logprobs", logprobs.detach())',
    'part.get("old_logprobs", logprobs)',
    case="on_policy-grpo",
)
@mutant(
    "KL corrected without a gradient",
    "grpo.py",
    "kl = kl * torch.exp(logprobs - old_logprobs)",
    "kl = kl * torch.exp(logprobs - old_logprobs).detach()",
    case="on_policy-grpo_with_corrected_kl",
)
@VARIANT
@pytest.mark.parametrize("old", [False, True], ids=["on_policy", "old_logprobs"])
def test_gradient_equals_finite_differences_of_the_papers_loss(variant, old):
    """Catches a detached term that should have a gradient, and the other way round, in the loss as a
    whole."""
    script, flags = VARIANTS[variant]
    model, batch, args = (
        random_model(),
        make_batch(old=old, truncated=True, groups=2),
        make_args(script, **flags),
    )
    _, ours = update(model, batch, args, script)
    fixed = loss_from_the_papers(model, batch, args, range(8))["logprobs"]
    loss = lambda: loss_from_the_papers(model, batch, args, range(8), fixed)["total_loss"]  # noqa: E731
    for seed in range(2):
        assert directional_derivative(model, loss, seed, ours) == pytest.approx(1.0, abs=1e-5)


@mutant(
    "no temperature in the update",
    "papers/dr_grpo.py",
    "part.completion_ids, args.temperature)",
    "part.completion_ids, 1.0)",
    case="0.7",
)
@pytest.mark.parametrize("temperature", [0.7, 1.3])
def test_expected_gradient_is_that_of_the_expected_reward(temperature):
    """Catches a gradient that points anywhere else, temperature included.

    With centred advantages and constant aggregation (L = 2, G = 2) the expected gradient of the loss is
    exactly -(1 - 1/G) / L times the gradient of E[R]: the mean that is subtracted contains the completion's
    own reward, which takes 1/G of the signal, and Dr. GRPO divides by L.
    """
    args = make_args(dr_grpo, max_new_tokens=2, temperature=temperature)
    kit.check_expected_gradient(dr_grpo, args, share=(1 - 1 / 2) / 2)


# --- what must change nothing -------------------------------------------------------------------------------


@mutant(
    "denominator of the micro-batch",
    "papers/dapo.py",
    '(loss_per_token * part["weights"])',
    '(loss_per_token * token_mean(part["loss_mask"]))',
    case="old_logprobs-dapo",
)
@EACH_AGGREGATION
@pytest.mark.parametrize("old", [False, True], ids=["on_policy", "old_logprobs"])
def test_micro_batches_change_nothing(variant, old):
    """Catches a denominator of the micro-batch instead of the batch, and a last micro-batch that is logged
    as the whole."""
    script, flags = VARIANTS[variant]
    model, batch = random_model(), make_batch(old=old, truncated=True)
    rows = batch["prompt_ids"], batch["completion_ids"]
    counts = {name: len(micro_batch_rows(*rows, budget)) for name, budget in BUDGETS.items()}
    assert counts == {"all": 1, "two": 2, "one": 16}
    expected = update(model, batch, make_args(script, **flags), script)
    for budget in (BUDGETS["two"], BUDGETS["one"]):
        assert_same(
            update(model, batch, make_args(script, micro_batch_tokens=budget, **flags), script), expected
        )


@EACH_AGGREGATION
def test_shared_prompts_change_nothing(variant, monkeypatch):
    """Catches a shared prompt whose gradient is not that of the plain padded forward."""
    script, flags = VARIANTS[variant]
    model, batch, args = random_model(), make_batch(old=True), make_args(script, **flags)
    shared = update(model, batch, args, script)
    monkeypatch.setattr(script, "score", functools.partial(score, share_prompts=False))
    assert_same(update(model, batch, args, script), shared)


@EACH_AGGREGATION
def test_order_of_groups_changes_nothing(variant):
    """Catches rows paired with another group's advantage or log-probs."""
    script, flags = VARIANTS[variant]
    model, batch, args = (
        random_model(),
        make_batch(old=True, truncated=True),
        make_args(script, micro_batch_tokens=100, **flags),
    )
    assert_same(
        update(model, reordered(batch, (3, 0, 2, 1)), args, script), update(model, batch, args, script)
    )


@mutant("sequence mean over the padded length", case="grpo_with_everything")
@EACH_AGGREGATION
def test_padding_changes_nothing(variant):
    """Catches padding in a mean: columns are added that hold absurd log-probs but no token."""
    script, flags = VARIANTS[variant]
    model, batch, args = random_model(), make_batch(old=True, truncated=True), make_args(script, **flags)
    expected = update(model, batch, args, script)
    wider = {}
    for name, value in batch.items():
        wider[name] = value
        if name.endswith("mask"):
            wider[name] = torch.cat([value, torch.zeros(16, 5, dtype=torch.bool)], dim=1)
        elif name.endswith("logprobs"):
            outside = torch.where(batch["completion_mask"], value, torch.tensor(-7.0))
            wider[name] = torch.cat([outside, torch.full((16, 5), 3.0)], dim=1)
    for budget in BUDGETS.values():
        assert_same(
            update(model, wider, make_args(script, **flags | {"micro_batch_tokens": budget}), script),
            expected,
        )


@SCRIPTS
def test_longer_masked_completions_change_nothing_but_their_count(script):
    """Catches padding or masked tokens that reach the gradient: a group longer than all others, and masked,
    is put in front."""
    model, batch, args = random_model(), make_batch(old=True), make_args(script, max_new_tokens=30)
    expected, expected_gradient = update(model, batch, args, script)
    front = [[9] * 3 + [5] * 27] * GROUP
    more = {
        "prompt_ids": [[8, 7, 6]] * GROUP + batch["prompt_ids"],
        "completion_ids": front + batch["completion_ids"],
    }
    for name, value in batch.items():
        if torch.is_tensor(value):
            wide = torch.nn.functional.pad(value, (0, 30 - 12)) if value.shape[1] > 1 else value
            more[name] = torch.cat(
                [torch.full((GROUP, wide.shape[1]), name != "loss_mask").to(wide.dtype), wide]
            )
    sums, ours = update(model, more, args, script)
    diluted = 16 / 20 if script is dr_grpo else 1.0  # Dr. GRPO divides by all completions, masked ones too
    assert distance(ours, expected_gradient * diluted) <= 1e-10
    assert sums["policy_loss"] == pytest.approx(expected["policy_loss"] * diluted, rel=1e-10)
    assert sums["tokens"] == expected["tokens"] + 4 * 30  # the log counts what was sampled


@SCRIPTS
def test_rows_of_a_minibatch_are_a_batch_of_their_own(script):
    """Catches denominators over the sampled batch where one optimizer step sees a part of it, and rows cut
    off by one."""
    model, batch, args = (
        random_model(),
        make_batch(old=True, truncated=True),
        make_args(script, micro_batch_tokens=100),
    )
    for first, last in ((0, 4), (4, 12), (12, 16)):
        alone = {name: value[first:last] for name, value in batch.items()}
        assert_same(
            update(model, batch, args, script, slice(first, last)), update(model, alone, args, script)
        )
    beyond_the_end = update(model, batch, args, script, slice(12, 20))
    assert_same(beyond_the_end, update(model, batch, args, script, slice(12, 16)))


@EACH_AGGREGATION
def test_float32_stays_within_its_rounding(variant):
    """Catches lost precision: micro-batches, order and shared prompts in float32, against float64."""
    script, flags = VARIANTS[variant]
    batch = make_batch(old=True, truncated=True)
    _, exact = update(random_model(), batch, make_args(script, **flags), script)
    torch.set_default_dtype(torch.float32)
    model = random_model(torch.float32)
    batch = as_float32(batch)
    for budget in BUDGETS.values():
        sums, ours = update(model, batch, make_args(script, micro_batch_tokens=budget, **flags), script)
        assert ours.dtype == torch.float32 and distance(ours.double(), exact) <= GRADIENT
        if budget == BUDGETS["all"]:
            whole = sums, ours
        assert_same((sums, ours), whole, GRADIENT)


@SCRIPTS
def test_activation_checkpointing_changes_no_gradient(script):
    """Catches a checkpointed update that is another update."""
    model, batch, args = random_model(), make_batch(old=True), make_args(script, micro_batch_tokens=100)
    expected = update(model, batch, args, script)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    assert_same(update(model, batch, args, script), expected)


# --- special batches ----------------------------------------------------------------------------------------


@EACH_AGGREGATION
def test_batch_whose_completions_are_all_masked_has_gradient_zero(variant):
    """Catches 0/0: a batch in which everything was truncated must not break the model."""
    script, flags = VARIANTS[variant]
    batch = make_batch(old=True)
    batch["loss_mask"][:] = False
    sums, ours = update(random_model(), batch, make_args(script, micro_batch_tokens=100, **flags), script)
    assert ours.count_nonzero() == 0 and sums["policy_loss"] == sums["total_loss"] == 0.0
    assert all(math.isfinite(value) for value in sums.values())


@SCRIPTS
def test_advantages_of_zero_give_no_gradient(script):
    """Catches a push where the group has no signal."""
    batch = make_batch(old=True)
    batch["advantages"][:] = 0.0
    sums, ours = update(random_model(), batch, make_args(script), script)
    assert ours.count_nonzero() == 0 and sums["policy_loss"] == 0.0 and sums["clipped"] == 0


@mutant("sign of the KL term", "grpo.py", "policy_loss + args.kl_coef", "policy_loss - args.kl_coef")
def test_kl_at_the_reference_is_zero_and_pulls_back_from_elsewhere():
    """Catches a KL term that is not there, or that drives away: descending it brings the policy closer to
    the reference."""
    model, batch, args = random_model(), make_batch(), make_args(kl_coef=1.0)
    batch["advantages"][:] = 0.0
    scoring = batch["prompt_ids"], batch["completion_ids"], args.temperature, 10**6
    batch["ref_logprobs"], _ = score_all(random_model(), *scoring)
    sums, ours = update(model, batch, args)
    assert sums["kl"] == pytest.approx(0.0, abs=1e-12) and ours.norm() < 1e-10
    batch["ref_logprobs"], _ = score_all(random_model(seed=1), *scoring)
    far, push = update(model, batch, args)
    assert far["total_loss"] > 0.5 and far["policy_loss"] == 0.0
    weights = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
    torch.nn.utils.vector_to_parameters(weights - 1e-3 * push, model.parameters())
    assert update(model, batch, args)[0]["total_loss"] < far["total_loss"]


@mutant("sign of the loss")
@SCRIPTS
def test_one_step_raises_good_and_lowers_bad_completions(script):
    """Catches a sign: after one small step completions with positive advantage are likelier, the others less
    likely."""
    model, batch, args = random_model(), make_batch(groups=1), make_args(script)
    batch["advantages"] = torch.tensor([[1.0], [-1.0], [0.5], [-0.5]])
    rows = batch["prompt_ids"], batch["completion_ids"], args.temperature, 10**6
    before = score_all(model, *rows)[0]
    update(model, batch, args, script)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 1e-4 * parameter.grad
    weights = 1 / batch["completion_mask"].sum(1) if script is grpo else torch.ones(4)
    assert (((score_all(model, *rows)[0] - before).sum(1) * weights) @ batch["advantages"]).item() > 0


@SCRIPTS
def test_first_of_two_minibatches_has_ratio_one_and_the_second_has_not(script):
    """Catches old log-probs that are taken again after an optimizer step (ratio 1 for ever) or never (no
    ratio at all)."""
    model, batch, args = (
        random_model(),
        make_batch(),
        make_args(script, minibatches=2, clip_low=0.01, clip_high=0.01),
    )
    on_policy = [
        update(model, batch, args, script, rows) for rows in (slice(0, 8), slice(8, 16))
    ]  # no old log-probs given
    batch["old_logprobs"], _ = score_all(
        model, batch["prompt_ids"], batch["completion_ids"], args.temperature, 10**6
    )
    kept = batch["old_logprobs"].clone()

    first = update(model, batch, args, script, slice(0, 8))
    assert first[0]["clipped"] == 0
    assert_same(first, on_policy[0])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 0.05 * parameter.grad

    second, second_gradient = update(model, batch, args, script, slice(8, 16))
    assert second["clipped"] > 0
    assert abs(second["policy_loss"] - on_policy[1][0]["policy_loss"]) > 1e-3
    expected = loss_from_the_papers(model, batch, args, range(8, 16))
    assert second["policy_loss"] == pytest.approx(expected["policy_loss"], rel=1e-9)
    assert torch.equal(batch["old_logprobs"], kept)
    del batch["old_logprobs"]  # and it is the old log-probs that make the difference
    assert update(model, batch, args, script, slice(8, 16))[0]["clipped"] == 0


def test_rollout_logprobs_are_read_only_where_asked_for():
    """Catches a ratio against the sampler's log-probs instead of the trainer's: without a cap they change
    nothing but the gap."""
    model, batch, args = random_model(), make_batch(old=True), make_args()
    sums, ours = update(model, batch, args)
    minus_one = pad_values([[-1.0] * len(ids) for ids in batch["completion_ids"]], batch["completion_mask"])
    other = batch | {"rollout_logprobs": minus_one}
    other_sums, other_gradient = update(model, other, args)
    assert torch.equal(ours, other_gradient) and sums["policy_loss"] == other_sums["policy_loss"]
    assert sums["gap"] != other_sums["gap"]
    _, weighted = update(model, other, make_args(importance_cap=2.0))
    assert distance(weighted, ours) > 1e-2


# --- which problems a step takes ----------------------------------------------------------------------------


@mutant("problems off by one", "grpo.py", "first = (step - 1) *", "first = step *")
def test_each_step_takes_the_next_problems():
    """Catches a problem trained on twice or never, and a finite training set that is not gone round."""
    args = make_args(prompts_per_step=4)
    assert [grpo.problem_indices(args, step) for step in (1, 2, 3)] == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [8, 9, 10, 11],
    ]
    args.train_size = 6
    assert [grpo.problem_indices(args, step) for step in (1, 2, 3)] == [
        [0, 1, 2, 3],
        [4, 5, 0, 1],
        [2, 3, 4, 5],
    ]


@mutant("refill of the same problems", "papers/dapo.py", "+ round * far", "")
def test_rounds_of_refilling_share_no_problem():
    """Catches a refill that samples the same problems again, or those of the next step, first rounds that
    are not grpo.py's, and a finite set of which the first rounds of all steps see the same part."""
    args = make_args(dapo, prompts_per_step=4, max_refills=3)
    taken = [
        index for step in (1, 2, 3) for round in range(4) for index in dapo.problem_indices(args, step, round)
    ]
    assert len(set(taken)) == 48
    assert all(dapo.problem_indices(args, step, 0) == grpo.problem_indices(args, step) for step in (1, 2, 3))
    for size in (5, 8, 44, 48, 88):
        args.train_size = size
        first_rounds = [index for step in range(1, 50) for index in dapo.problem_indices(args, step, 0)]
        assert set(first_rounds) == set(range(size))
        assert dapo.problem_indices(args, 1, 1) != dapo.problem_indices(args, 1, 0)
    args = make_args(dapo, prompts_per_step=16, max_refills=10)
    for args.train_size in (500, 1000, 1024):
        for step in (1, 2, 30):
            taken = [index for round in range(11) for index in dapo.problem_indices(args, step, round)]
            assert len(set(taken)) == len(taken) == 176
            assert taken == [
                index for round in range(11) for index in guide.problem_indices(args, step, round)
            ]
