"""papers/unir.py and plainrl/logit_sum.py: the sum of two models' logits in sampler, scorer and loss, against
one row at a time and the reference's numbers; a run; eval.py beside a reasoner; tools/make_reasoner.py."""

import functools
import itertools
import json
import math
import shutil
from pathlib import Path

import kit
import numpy as np
import pytest
import torch
import toys
from mutants import mutant
from random_model import COMPLETIONS, EOS, PROMPTS, distributions, random_model, sample
from safetensors.torch import load_file
from test_sft import kill_after, on_one_and_two_ranks
from transformers import AutoModelForCausalLM

import eval as evaluation
from benchmarks import recipes
from papers import dapo, unir
from plainrl import samples
from plainrl.logit_sum import LogitSum
from plainrl.models import eos_ids, load_model
from plainrl.sampler import HFSampler, plain_generate
from plainrl.scoring import check_model, score, score_all
from tools import make_reasoner


def frozen_model(dtype=torch.float64, **options):
    """Another architecture than the reasoner's."""
    return random_model(dtype, seed=5, kind="qwen2", **options).requires_grad_(False)


def with_zero_head(model):
    """Its logits are 0."""
    torch.nn.init.zeros_(model.get_output_embeddings().weight)
    return model


def two_models(alpha: float = 0.7) -> LogitSum:
    return LogitSum([frozen_model(), random_model()], [1.0, alpha])


# --- the numbers of the reference ---------------------------------------------------------------------------

FROZEN, REASONER = [[2.0, 0.0, -1.0], [0.5, 0.5, 0.0]], [[-1.0, 1.0, 0.5], [0.0, -2.0, 1.0]]
TARGETS = torch.tensor([0, 2])


def numbers(alpha: float, temperature: float, frozen=FROZEN, reasoner=REASONER) -> tuple:
    """What the scorer computes of both logits."""
    frozen, reasoner = torch.tensor(frozen).double(), torch.tensor(reasoner).double()
    return unir.numbers_of_token(torch.stack([frozen, alpha * reasoner], dim=1) / temperature, TARGETS)


@mutant("unir: the reasoner alone", "papers/unir.py", "frozen.detach() + reasoner", "0 * frozen + reasoner")
@mutant("unir: against the frozen model", "papers/unir.py", "frozen.detach() + reasoner", "frozen - reasoner")
def test_log_probabilities_of_the_reference():
    """Catches another sum, a temperature of one model alone, and an alpha of the frozen model."""
    for temperature, expected in ((1.0, [-0.798916, -0.523909]), (0.7, [-0.750151, -0.417168])):
        assert numbers(1.0, temperature)[0].tolist() == pytest.approx(expected, abs=1e-6)
    assert numbers(0.0, 1.0)[0].tolist() == pytest.approx([-0.169846, -1.458020], abs=1e-6)
    row = [numbers(0.5, 1.0, FROZEN[:1] * 2, REASONER[:1] * 2)[0][0].item()]
    assert row == pytest.approx([-0.387490], abs=1e-6)
    assert math.exp(-0.387490) + math.exp(-1.387490) + math.exp(-2.637490) == pytest.approx(1, abs=1e-5)


@mutant(
    "unir: a frozen model that learns", "papers/unir.py", "frozen.detach() + reasoner", "frozen + reasoner"
)
def test_loss_and_gradient_of_the_reference():
    """Catches a gradient that reaches the frozen logits, another sign, and pi of one model alone."""
    frozen, reasoner = (torch.tensor(each).double().requires_grad_() for each in (FROZEN, REASONER))
    logprobs = unir.numbers_of_token(torch.stack([frozen, reasoner], dim=1), TARGETS)[0][:, None]
    advantages = torch.tensor([[1.5], [-0.5]]).double()
    losses = unir.clipped_surrogate(logprobs, logprobs.detach(), advantages, 0.2, 0.2)
    loss = (losses * unir.token_mean(torch.ones(2, 1, dtype=torch.bool))).sum()
    assert loss.item() == pytest.approx(-0.5)
    loss.backward()
    expected = [-0.412638, 0.337362, 0.075276, -0.089797, -0.012153, 0.101950]
    assert reasoner.grad.flatten().tolist() == pytest.approx(expected, abs=1e-6)
    assert frozen.grad is None or not frozen.grad.any()


@mutant("unir: 1e-6 beside the std", "papers/unir.py", "keepdim=True) + 1e-4)", "keepdim=True) + 1e-6)")
@mutant("unir: std with ddof 0", "papers/unir.py", "rewards.std(dim=1,", "rewards.std(correction=0, dim=1,")
@mutant(
    "unir: advantages by rounding",
    "papers/unir.py",
    "return centred.masked_fill(no_signal, 0.0)",
    "return centred",
)
def test_advantages_of_the_reference():
    """Catches another std, and rounding where all rewards are equal."""
    rewards = torch.tensor([[1.0, 0, 0, 0, 0, 0, 0, 1], [0.1] * 8]).double()
    right, wrong = 1.619835, -0.539945
    found = unir.group_advantages(rewards)
    assert found[0].tolist() == pytest.approx([right, *[wrong] * 6, right], abs=1e-6)
    for size in (3, 5, 7, 16):
        assert unir.group_advantages(torch.full((1, size), 0.1)).tolist() == [[0.0] * size]


@mutant(
    "unir: KL of the other direction",
    "papers/unir.py",
    "(log_pi.exp() * (log_pi",
    "(-log_frozen.exp() * (log_pi",
)
@mutant("unir: spread of the sum", "papers/unir.py", "reasoner.detach().std(", "together.detach().std(")
def test_kl_and_spread_by_hand():
    """Catches KL(frozen || pi), and a spread that is not the reasoner's."""
    _, entropy, kl, spread = numbers(1.0, 0.7)
    for row in range(2):
        frozen = np.array(FROZEN[row]) / 0.7
        both = frozen + np.array(REASONER[row]) / 0.7
        p, q = (np.exp(z) / np.exp(z).sum() for z in (both, frozen))
        assert kl[row].item() == pytest.approx((p * np.log(p / q)).sum(), abs=1e-12)
        assert entropy[row].item() == pytest.approx(-(p * np.log(p)).sum(), abs=1e-12)
        assert spread[row].item() == pytest.approx(np.std(np.array(REASONER[row]) / 0.7, ddof=1), abs=1e-12)


# --- the seven checks of a loss -----------------------------------------------------------------------------


@functools.cache
def of_the_frozen(prompt: tuple[int, ...], completion: tuple[int, ...], temperature: float) -> np.ndarray:
    """Its distributions of a row, [T, V]."""
    return distributions(frozen_model(), list(prompt), list(completion), temperature).numpy()


def as_one(tables: list[np.ndarray], batch, args) -> list[np.ndarray]:
    """The reasoner's distributions -> those of the sum. Its softmax forgets how the parts were normalised."""
    summed = []
    for own, prompt, completion in zip(tables, batch["prompt_ids"], batch["completion_ids"]):
        logits = of_the_frozen(tuple(prompt), tuple(completion), args.temperature) + args.alpha * own
        summed.append(logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True)))
    return summed


def loss(now, start, batch, args) -> float:
    """In loops: minus the mean over all tokens of min(ratio A, clip(ratio) A), ratios of the sum."""
    now, start = as_one(now, batch, args), as_one(start, batch, args)
    total = tokens = 0
    for i, completion in enumerate(batch["completion_ids"]):
        A = batch["advantages"][i].item()
        for t, token in enumerate(completion) if batch["loss_mask"][i].any() else ():
            old = batch["old_logprobs"][i, t].item() if "old_logprobs" in batch else start[i][t, token]
            ratio = math.exp(now[i][t, token] - old)
            total -= min(ratio * A, min(max(ratio, 1 - args.clip_low), 1 + args.clip_high) * A)
            tokens += 1
    return total / tokens


def own_args(script=unir, **flags):
    return kit.make_args(script, **{"alpha": 0.6} | flags)


def test_by_hand():
    """Catches a formula that is wrong where one can still count: mean 1/4, std 1/2, and 1e-4 beside it."""
    by_hand = [[0.75 / 0.5001, *[-0.25 / 0.5001] * 3]]
    kit.check_by_hand(unir.group_advantages, [[1.0, 0.0, 0.0, 0.0]], by_hand)


@mutant(
    "unir: alpha of the sampler alone",
    "papers/unir.py",
    "[1.0, args.alpha], apart=True)",
    "[1.0, 1.0], apart=True)",
)
@mutant("unir: sum without weights", "plainrl/logit_sum.py", "[weight * head(part) for", "[head(part) for")
@mutant("unir: sign of the loss", "papers/unir.py", "return -torch.min(ratio", "return torch.min(ratio")
@mutant(
    "unir: masked completions in the loss",
    "papers/unir.py",
    'token_mean(batch["loss_mask"])',
    'token_mean(batch["completion_mask"])',
)
@mutant("unir: sum over tokens", "papers/unir.py", "mask / mask.sum().clamp(min=1)", "mask / len(mask)")
def test_loops():
    """Catches a wrong sign, mask, denominator or clip, and a policy that is not the sum of both models."""
    kit.check_loops(unir, loss, own_args(), frozen=frozen_model())
    kit.check_loops(unir, loss, own_args(), old=True, frozen=frozen_model())


def test_finite_difference():
    """Catches a term that has no gradient and should, or has one and should not."""
    args = own_args(clip_low=0.6, clip_high=2.0)
    kit.check_finite_difference(unir, loss, args, old=True, frozen=frozen_model())


def test_micro_batches_padding_and_order():
    """Catches a denominator of the micro-batch, padding that is counted, and rows that are mixed up."""
    kit.check_micro_batches(unir, own_args(), frozen=frozen_model())
    kit.check_padding(unir, own_args(), frozen=frozen_model())
    kit.check_order(unir, own_args(), frozen=frozen_model())


def test_beside_a_model_that_says_nothing_it_is_dapo():
    """Catches another difference than the sum: beside logits of 0 it is GRPO's clip with DAPO's mean over
    tokens, to the bit."""
    args, base = own_args(alpha=1.0), kit.make_args(dapo, clip_high=0.2)
    kit.check_against_base(
        unir, args, dapo, base, old=True, frozen=with_zero_head(frozen_model(torch.float32))
    )


def test_a_mutant_goes_red():
    """Catches checks that see nothing."""
    check = lambda script: kit.check_loops(script, loss, own_args(script), frozen=frozen_model())  # noqa: E731
    kit.check_mutant(unir, "return -torch.min(ratio", "return torch.min(ratio", check)


@mutant(
    "unir: KL over the padding",
    "papers/unir.py",
    '(kl_frozen * part["completion_mask"]).sum()',
    "kl_frozen.mean()",
)
@mutant(
    "unir: spread over the padding",
    "papers/unir.py",
    '(spread * part["completion_mask"]).sum()',
    "spread.mean()",
)
def test_sums_for_the_log_by_loops():
    """Catches KL and spread of other rows, or of places without a token."""
    with kit.numbers(torch.float64):
        model, frozen, args = random_model(), frozen_model(), own_args()
        batch = kit.make_batch()
        sums, _ = kit.update(unir, model, batch, args, frozen=frozen)
        kl = spread = 0.0
        for prompt, completion in zip(batch["prompt_ids"], batch["completion_ids"]):
            ids = torch.tensor([prompt + completion])
            with torch.no_grad():
                first, second = (
                    net(input_ids=ids).logits[0, len(prompt) - 1 : -1] for net in (frozen, model)
                )
            own = args.alpha * second / args.temperature
            pi, there = (
                z.log_softmax(-1) for z in (first / args.temperature + own, first / args.temperature)
            )
            kl += torch.nn.functional.kl_div(there, pi, reduction="sum", log_target=True).item()
            spread += own.std(-1).sum().item()
    assert [sums["kl_frozen"], sums["spread"]] == pytest.approx([kl, spread], rel=1e-10)


@kit.numbers(torch.float64)
def test_exact_gradient_by_enumeration():
    """Catches a gradient that is not that of the reward under the sum of both models: all nine completions of
    two tokens over a vocabulary of three, each with its probability."""
    model, frozen, prompt = random_model(vocab=3), frozen_model(vocab=3), [2, 0, 1]
    args, rewards = own_args(), torch.tensor([0.3, -1.0, 2.0, 0.0, 0.5, 1.0, -0.7, 0.1, 1.5])
    both = LogitSum([frozen, model], [1.0, args.alpha])
    rows = [list(tokens) for tokens in itertools.product(range(3), repeat=2)]

    def chances() -> torch.Tensor:
        tables = [distributions(both, prompt, tokens, args.temperature) for tokens in rows]
        pairs = zip(tables, rows)
        return torch.stack([table[0, first] + table[1, second] for table, (first, second) in pairs]).exp()

    mask = torch.ones(9, 2, dtype=torch.bool)
    batch = {
        "prompt_ids": [prompt] * 9,
        "completion_ids": rows,
        "advantages": (rewards * chances())[:, None],
        "completion_mask": mask,
        "loss_mask": mask,
        "rollout_logprobs": torch.zeros(mask.shape),
    }
    assert chances().sum().item() == pytest.approx(1.0)
    _, ours = kit.update(unir, model, batch, args, frozen=frozen)
    for seed in range(3):  # a mean over 18 tokens
        expected = lambda: (chances() @ rewards).item()  # noqa: E731
        derivative = kit.directional_derivative(model, expected, seed, -18 * ours)
        assert derivative == pytest.approx(1.0, abs=1e-5)


# --- two models as one --------------------------------------------------------------------------------------


def test_the_scorer_equals_plain_forward_passes():
    """Catches hidden states, heads or prompts of one model that the other reads: each row by itself."""
    both = two_models()
    check_model(both)
    for share_prompts in (True, False):
        found, _ = score(both, PROMPTS, COMPLETIONS, 0.8, share_prompts=share_prompts)
        for row, prompt, completion in zip(found, PROMPTS, COMPLETIONS):
            ids = torch.tensor([prompt + completion])
            logits = [net(input_ids=ids).logits[0, len(prompt) - 1 : -1] for net in both.models]
            plain = ((logits[0] + 0.7 * logits[1]) / 0.8).log_softmax(-1)
            expected = plain.gather(-1, torch.tensor(completion)[:, None])[:, 0]
            torch.testing.assert_close(row[: len(completion)], expected, rtol=1e-10, atol=1e-10)


@mutant(
    "one cache for the layers of two models",
    "plainrl/shared_prompts.py",
    "    tokens, own = packed_rows.tokens, packed_rows.own\n",
    "    tokens, own, module = packed_rows.tokens, packed_rows.own, module.layer_idx\n",
)
@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_the_sampler_equals_one_row_at_a_time(kind):
    """Catches keys and values of one model in the place of the other's, rows that are exchanged in one of the
    two, and log-probabilities of another policy."""
    both = LogitSum([random_model(seed=4, kind=kind).requires_grad_(False), random_model()], [1.0, 0.7])
    seeds, eos, rows = (
        list(range(100, 110)),
        [EOS, 17, 30, 45],
        [prompt for prompt in PROMPTS for _ in range(2)],
    )
    plain = [plain_generate(both, prompt, 12, 0.9, seed, eos) for prompt, seed in zip(rows, seeds)]
    for rows_at_once in (512, 3):
        found = sample(both, n=2, tokens=12, temperature=0.9, seeds=seeds, rows_at_once=rows_at_once)
        for ours, theirs in zip(found, plain, strict=True):
            assert (ours.ids, ours.finish_reason) == (theirs.ids, theirs.finish_reason)
            assert ours.logprobs == pytest.approx(theirs.logprobs, abs=1e-5)
    assert {each.finish_reason for each in plain} == {"stop", "length"}
    scored, _ = score_all(both, rows, [each.ids for each in found], 0.9, 100)
    for row, completion in zip(scored.tolist(), found):
        assert completion.logprobs == pytest.approx(row[: len(completion.ids)], abs=1e-5)


@pytest.mark.parametrize("which", ["a head of zeros", "alpha 0"])
def test_a_reasoner_that_says_nothing_changes_nothing(which):
    """Catches a sum that is not the frozen model where it must be, to the bit, in float32 as in a run."""
    frozen, reasoner = frozen_model(torch.float32), random_model(torch.float32)
    if which == "a head of zeros":
        both = LogitSum([frozen, with_zero_head(reasoner)], [1.0, 1.0])
    else:
        both = LogitSum([frozen, reasoner], [1.0, 0.0])
    for ours, theirs in zip(score(both, PROMPTS, COMPLETIONS, 0.8), score(frozen, PROMPTS, COMPLETIONS, 0.8)):
        assert torch.equal(ours, theirs)
    assert [vars(each) for each in sample(both)] == [vars(each) for each in sample(frozen)]


def test_a_copy_is_half_the_temperature():
    """Catches weights that are not exponents: pi^(1 + alpha) is the frozen model at 1 / (1 + alpha)."""
    frozen = frozen_model()
    for alpha in (1.0, 3.0):
        both = LogitSum([frozen, frozen_model()], [1.0, alpha])
        ours, theirs = (
            score(both, PROMPTS, COMPLETIONS, 1.0),
            score(frozen, PROMPTS, COMPLETIONS, 1 / (1 + alpha)),
        )
        for one, other in zip(ours, theirs):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_three_models_add_up():
    """Catches a sum that knows no more than two models, where `eval.py --reasoners A B` asks for three."""
    nets, weights = [frozen_model(), random_model(), random_model(seed=2)], [1.0, 0.5, -0.3]
    found, _ = score(LogitSum(nets, weights), PROMPTS[:1], COMPLETIONS[:1], 1.0)
    ids = torch.tensor([PROMPTS[0] + COMPLETIONS[0]])
    logits = sum(weight * net(input_ids=ids).logits for weight, net in zip(weights, nets))
    plain = logits[0, len(PROMPTS[0]) - 1 : -1].log_softmax(-1)
    assert found[0].tolist() == pytest.approx([row[id].item() for row, id in zip(plain, COMPLETIONS[0])])


@mutant(
    "unir: a graph of the frozen model",
    "plainrl/logit_sum.py",
    "        with torch.no_grad():\n            for model in frozen",
    "        if True:\n            for model in frozen",
)
def test_the_gradient_reaches_the_last_model_alone():
    """Catches activations of the frozen model that are kept for a gradient that nobody asks for."""
    both = two_models()
    both.models[0].requires_grad_(True)
    score(both, PROMPTS, COMPLETIONS, 0.8)[0].sum().backward()
    assert all(weight.grad is None for weight in both.models[0].model.parameters())
    assert all(weight.grad is not None for weight in both.models[1].parameters())


@mutant(
    "unir: the longest context of all", "plainrl/logit_sum.py", "self.config = min(", "self.config = max("
)
def test_the_context_is_the_shortest_one():
    """Catches rows that are longer than one of the models can read."""
    frozen, reasoner = frozen_model(), random_model()
    for short, other in ((frozen, reasoner), (reasoner, frozen)):
        short.config.max_position_embeddings, other.config.max_position_embeddings = 99, 256
        assert HFSampler(LogitSum([frozen, reasoner], [1.0, 1.0]), [EOS]).room == 99


# --- a run --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def frozen(toy_model, tmp_path_factory) -> str:
    return toys.with_other_weights(toy_model, tmp_path_factory.mktemp("frozen") / "model")


@pytest.fixture
def flags(toy_model, frozen, tmp_path, quick):
    return toys.quick_flags(toy_model, tmp_path / "run", frozen=frozen, alpha=0.5)


def train(flags: dict, **changes) -> Path:
    args = unir.Args(**flags | changes)
    unir.main(args, task=toys.HashTask())
    return args.out_dir


def weights_of(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


@mutant(
    "unir: a sampler of the reasoner alone",
    "papers/unir.py",
    "HFSampler(run.policy,",
    "HFSampler(run.model,",
)
@mutant(
    "unir: old log-probabilities of the reasoner",
    "plainrl/run.py",
    "score_all(model or self.policy,",
    "score_all(model or self.model,",
)
@mutant(
    "unir: dev entropies of the reasoner",
    "plainrl/run.py",
    "samples.dev_lines(rollouts, self.policy,",
    "samples.dev_lines(rollouts, self.model,",
)
@mutant("unir: alpha of the loss alone", "papers/unir.py", "[1.0, args.alpha])  # [1]", "[1.0, 1.0])  # [1]")
@mutant(
    "unir: KL that is a sum",
    "papers/unir.py",
    '"unir/kl_frozen": run.sums["kl_frozen"] / run.sums["tokens"]',
    '"unir/kl_frozen": run.sums["kl_frozen"]',
)
def test_a_run_samples_and_scores_the_sum_and_saves_the_reasoner(flags, frozen, toy_model, monkeypatch):
    """Catches a sampler, old log-probabilities or dev numbers of one model alone, a frozen model that moves,
    and a folder that nothing else can load."""
    before, scored_on_dev, dev_lines = weights_of(Path(frozen)), [], samples.dev_lines

    def remember(rollouts, model, *rest):
        scored_on_dev.append(type(model))
        return dev_lines(rollouts, model, *rest)

    monkeypatch.setattr(samples, "dev_lines", remember)
    folder = train(flags, minibatches=2)
    assert set(scored_on_dev) == {LogitSum}
    steps = [record for record in toys.records(folder) if "reward/mean" in record]
    assert all(record["rollout/logprob_gap"] < 1e-5 for record in steps)
    assert all(record["policy/ratio_max"] < 1.5 for record in steps)  # the first of two updates is at 1
    assert all(0 < record["unir/kl_frozen"] < 1 and record["unir/spread"] > 0 for record in steps)
    assert weights_of(Path(frozen)) == before != weights_of(folder / "final")
    final, was = (AutoModelForCausalLM.from_pretrained(path) for path in (folder / "final", toy_model))
    assert final.num_parameters() == was.num_parameters()
    assert final.config.unir == {"frozen": frozen, "alpha": 0.5}


def test_a_fresh_reasoner_begins_as_the_frozen_model(flags, frozen, tmp_path):
    """Catches a first step that is not the frozen model's own, and a body that never gets a gradient."""
    fresh = tmp_path / "fresh"
    make_reasoner.main(make_reasoner.Args(like=frozen, out_dir=fresh, width=32))
    folder = train(flags, model=str(fresh), alpha=1.0, steps=4, save_every=1)
    first, *_, last = [record for record in toys.records(folder) if "reward/mean" in record]
    assert first["unir/kl_frozen"] == first["unir/spread"] == 0 < last["unir/kl_frozen"]
    old, new = load_file(fresh / "model.safetensors"), load_file(folder / "last" / "model.safetensors")
    assert not any(
        torch.equal(old[name], new[name]) for name in old if "layers.0" in name and "norm" not in name
    )


def test_adapters_are_the_reasoner(flags):
    """Catches adapters on the frozen model, and a final model without them."""
    folder = train(flags, lora_rank=4, lr=3e-2, steps=2)
    first, *_, last = [
        record["unir/kl_frozen"] for record in toys.records(folder) if "unir/kl_frozen" in record
    ]
    assert first != last and "lora" not in " ".join(load_file(folder / "final" / "model.safetensors"))


@mutant("unir: a frozen model that may change", "plainrl/flags.py", '"frozen": "frozen model", ', "")
def test_killed_and_resumed_equals_the_uninterrupted(flags, frozen, tmp_path):
    """Catches a frozen model that has moved, or may have moved, in a run that goes on."""
    own = tmp_path / "own frozen"
    shutil.copytree(frozen, own)
    flags = flags | dict(frozen=str(own), minibatches=2)
    whole = train(flags, out_dir=flags["out_dir"].with_name("whole"))
    kill_after(7, lambda: train(flags))
    kept = weights_of(own)
    shutil.copy(Path(flags["model"]) / "model.safetensors", own)
    with pytest.raises(SystemExit, match="--resume: the weights of --frozen have changed since"):
        train(flags, resume=True)
    (own / "model.safetensors").write_bytes(kept)
    ours = train(flags, resume=True)
    assert toys.records(ours) == toys.records(whole)
    for folder in ("last", "best", "final"):
        assert weights_of(ours / folder) == weights_of(whole / folder), folder


@mutant("unir: sums of one rank", "papers/unir.py", "return total(sums)  # over ranks", "return sums")
def test_two_ranks_change_nothing(flags):
    """Catches a frozen model that is not gathered, and denominators, metrics or gradients of one rank. In
    float64."""
    own = dict(steps=2, minibatches=2, prompts_per_step=4, micro_batch_tokens=60, eval_every=100)
    folders = on_one_and_two_ranks(lambda folder: train(flags, out_dir=folder, **own), flags["out_dir"])
    one, two = map(toys.records, folders)
    assert [record.keys() for record in one] == [record.keys() for record in two]
    for left, right in zip(one, two):
        for name in [name for name in left if name.startswith(("unir/", "reward/", "loss/", "optim/"))]:
            assert right[name] == pytest.approx(left[name], rel=1e-9, abs=1e-11), name


# --- what is refused, and what is said ----------------------------------------------------------------------


@mutant(
    "unir: any frozen model is taken",
    "plainrl/logit_sum.py",
    "or_fail(check_same_tokens, where, its_tokenizer.get_vocab(),",
    "or_fail(check_same_tokens, where, tokenizer.get_vocab(),",
)
@pytest.mark.parametrize(
    "name, said",
    [
        (
            "models/countdown",
            "differs from --model in .* token ids, first in .*; give models with the same tokens",
        ),
        ("./nowhere", "no such folder or file"),
        ("runs/nowhere", "no such folder or file"),
    ],
)
def test_what_cannot_be_added_is_one_line_and_leaves_no_folder(flags, name, said, tmp_path, monkeypatch):
    """Catches a traceback, a message about another flag, and a folder that would bar the next try."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=f"^error: --frozen {name}: {said}") as stop:
        train(flags, frozen=name)
    assert "\n" not in str(stop.value) and not flags["out_dir"].exists()


def test_a_larger_head_is_refused(flags, frozen, monkeypatch):
    """Catches logits of two lengths, which torch would complain of in the middle of a step."""
    from plainrl import logit_sum

    original = logit_sum.load_model

    def with_fewer_tokens(name, flag):
        model, tokenizer = original(name, flag=flag)
        model.resize_token_embeddings(200)
        return model, tokenizer

    monkeypatch.setattr(logit_sum, "load_model", with_fewer_tokens)
    with pytest.raises(SystemExit, match=f"--frozen {frozen}: its head has 200 tokens, that of --model 288"):
        train(flags)


def test_vllm_is_refused(flags):
    """Catches an engine that does not know a sum."""
    for more in (dict(engine="vllm"), dict(vllm_server="http://localhost:1")):
        with pytest.raises(
            SystemExit, match="papers/unir.py: adds the logits of several models, which vLLM cannot"
        ):
            train(flags, **more)


@mutant(
    "unir: a plan without it",
    "plainrl/plan.py",
    "in FROZEN.items()}",
    "in FROZEN.items() if name != 'frozen model'}",
)
def test_the_plan_counts_the_frozen_model(flags, frozen, capsys):
    """Catches a plan whose memory is that of the reasoner alone."""
    with pytest.raises(SystemExit) as ended:
        train(flags, plan=True)
    assert ended.value.code == 0 and not flags["out_dir"].exists()
    size = f"frozen model {4 * load_model(frozen)[0].num_parameters() / 1e9:.2g}"
    assert capsys.readouterr().out.count(size) == 2


@mutant(
    "unir: an engine that does not know a sum",
    "plainrl/logit_sum.py",
    '    args.engine = "hf"\n',
    "    pass\n",
)
@mutant(
    "unir: no default",
    "papers/unir.py",
    "args.frozen = args.frozen or args.model",
    "args.frozen = args.frozen or 'models/tiny'",
)
@mutant(
    "unir: eval of the reasoner alone",
    "plainrl/run.py",
    '"--model", self.args.frozen, "--reasoners", str(model)]',
    '"--model", str(model)]',
)
def test_what_a_run_says_of_itself(toy_model, tmp_path, quick, capsys):
    """Catches a command that would measure the reasoner alone, a default of --frozen that config.json does
    not keep for --resume, and --engine auto, which would be vLLM where a GPU is."""
    flags = toys.quick_flags(toy_model, tmp_path / "run", steps=1, task="chain?horizon=1")
    unir.main(unir.Args(**flags))
    words = f"eval.py --model {toy_model} --reasoners {tmp_path / 'run/final'} --task 'chain?horizon=1'"
    assert words in capsys.readouterr().out
    kept = json.loads((tmp_path / "run/config.json").read_text())["flags"]
    assert (kept["frozen"], kept["engine"]) == (toy_model, "hf")


# --- a reasoner in eval.py and in an experiment -------------------------------------------------------------

QUICK = dict(task="chain?horizon=1", problems=2, samples=2, max_new_tokens=8)


@pytest.fixture
def reasoner(toy_model, tmp_path) -> str:
    """A model that says it was trained with alpha 0.5, beside the toy model."""
    folder = tmp_path / "reasoner"
    shutil.copytree(toy_model, folder)
    config = json.loads((folder / "config.json").read_text())
    config["unir"] = {"frozen": "elsewhere", "alpha": 0.5}
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


@mutant(
    "eval: alphas that nobody gave",
    "eval.py",
    "[*(args.alphas or map(alpha_of, beside))]",
    "[1.0] * len(beside)",
)
@mutant(
    "eval: reasoners beside the baseline",
    "eval.py",
    "measure(args.baseline, args, folder)[0]",
    "measure(args.baseline, args, folder, None, args.reasoners)[0]",
)
@mutant(
    "eval: a reasoner that is not heard",
    "eval.py",
    "return LogitSum([model, *beside], [1.0, *alphas]), alphas",
    "return model, alphas",
)
def test_eval_adds_reasoners_to_the_model_alone(toy_model, frozen, reasoner, tmp_path):
    """Catches a reasoner beside the baseline too, an alpha that is not the one of its training, and settings
    that do not tell a sum from its parts."""
    own = dict(model=frozen, reasoners=(reasoner, toy_model), out_dir=tmp_path / "sum")
    results = evaluation.main(evaluation.Args(**QUICK, **own, baseline=frozen))
    settings = results["settings"]
    assert settings["alphas"] == [0.5, 1.0] and settings["sampler"] == "HFSampler"
    assert settings["model"] == f"{frozen} + {reasoner} + {toy_model}"
    alone = json.loads((tmp_path / "sum-baseline" / "config.json").read_text())
    assert "alphas" not in alone and alone["model"] == frozen
    assert alone["model_hash"] != settings["model_hash"]
    rows = [json.loads(line) for line in (tmp_path / "sum/samples.jsonl").read_text().splitlines()]
    nets = [load_model(name)[0] for name in (frozen, reasoner, toy_model)]
    both, tokenizer = LogitSum(nets, [1.0, 0.5, 1.0]), load_model(frozen)[1]
    prompt = evaluation.encode_prompt(tokenizer, rows[0]["prompt"], None)
    (again,) = HFSampler(both, eos_ids(both, tokenizer)).generate([prompt], 1, 8, 1.0, [rows[0]["seed"]])
    assert tokenizer.decode(again.ids, skip_special_tokens=True) == rows[0]["completion"]


def test_eval_says_what_it_cannot_add(toy_model, reasoner, tmp_path, capsys):
    """Catches a reasoner that is measured alone without a word, alphas for nobody, and a traceback."""
    evaluation.main(evaluation.Args(**QUICK, model=reasoner, out_dir=tmp_path / "alone"))
    assert "note: a reasoner, measured alone; it was trained beside elsewhere" in capsys.readouterr().out
    for own, said in (
        (
            dict(reasoners=(reasoner,), alphas=(1.0, 2.0)),
            "--alphas: 2 for 1 of --reasoners; give one for each",
        ),
        (dict(reasoners=("models/countdown",)), "--reasoners models/countdown: differs from --model in "),
        (dict(reasoners=(reasoner,), engine="vllm"), "--reasoners: adds the logits of several models"),
    ):
        with pytest.raises(SystemExit, match=f"error: {said}"):
            evaluation.main(evaluation.Args(**QUICK, model=toy_model, **own, out_dir=tmp_path / "none"))


@mutant(
    "recipes: beside nobody",
    "benchmarks/recipes.py",
    "    if beside:\n        models = [*",
    "    if False:\n        models = [*",
)
@mutant(
    "recipes: alphas of 1",
    "benchmarks/recipes.py",
    "[alpha_of(each) for each in models]",
    "[1.0] * len(models)",
)
def test_an_experiment_measures_the_sum(toy_model, frozen, reasoner, monkeypatch):
    """Catches an arm whose reasoner is measured alone, or with another alpha."""
    seen = []

    def evaluate(sampler, *rest, **more):
        seen.append(score(sampler.model, PROMPTS, COMPLETIONS, 1.0)[0].detach())
        return {}, []

    monkeypatch.setattr(recipes, "evaluate", evaluate)
    monkeypatch.setattr(recipes.np, "mean", lambda values: 0.0)
    experiment = recipes.Experiment(
        "x.py", {}, {}, {}, {}, {}, {"chain?horizon=1": (1, 1)}, "chain?horizon=1"
    )
    recipes.measure(experiment, Path(reasoner), "test", str, [Path(frozen)])
    nets = [load_model(frozen)[0], load_model(reasoner)[0]]
    expected, _ = score(LogitSum(nets, [1.0, 0.5]), PROMPTS, COMPLETIONS, 1.0)
    assert torch.equal(seen[0], expected.detach())


# --- a fresh reasoner ---------------------------------------------------------------------------------------


@mutant(
    "make_reasoner: a head that speaks",
    "tools/make_reasoner.py",
    "    torch.nn.init.zeros_(model.lm_head.weight)\n",
    "",
)
@mutant(
    "make_reasoner: tied embeddings",
    "tools/make_reasoner.py",
    "tie_word_embeddings=False",
    "tie_word_embeddings=True",
)
def test_a_fresh_reasoner_says_nothing(frozen, tmp_path):
    """Catches logits that are not 0, embeddings of zeros, another vocabulary, a seed that does nothing."""
    folders = [tmp_path / str(seed) for seed in (0, 1)]
    for seed, folder in enumerate(folders):
        make_reasoner.main(make_reasoner.Args(like=frozen, out_dir=folder, layers=1, width=64, seed=seed))
    model, tokenizer = load_model(str(folders[0]))
    assert not model(input_ids=torch.tensor([[3, 5, 7]])).logits.any()
    embeddings = [load_model(str(folder))[0].get_input_embeddings().weight for folder in folders]
    assert embeddings[0].any() and not torch.equal(*embeddings)
    assert tokenizer.get_vocab() == load_model(frozen)[1].get_vocab()
    assert (model.config.num_hidden_layers, model.config.hidden_size) == (1, 64)
    assert model.config.max_position_embeddings == load_model(frozen)[0].config.max_position_embeddings


@pytest.mark.parametrize(
    "own, said",
    [
        (dict(width=50), "--width 50: is no multiple of 32"),
        (dict(out_dir=Path(__file__).parent), "--out-dir .*: exists and is never overwritten"),
        (dict(like="./nowhere"), "--like ./nowhere: no such folder or file"),
    ],
)
def test_what_no_reasoner_can_be(own, said, frozen, tmp_path):
    """Catches a traceback, and a folder that is written over."""
    with pytest.raises(SystemExit, match=f"error: {said}"):
        make_reasoner.main(make_reasoner.Args(**{"like": frozen, "out_dir": tmp_path / "fresh"} | own))
