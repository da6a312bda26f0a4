"""guide.py and papers/guide_ablations.py: which prompt a log-probability belongs to, the loss against loops,
the expected gradient by enumeration, the switches, hints and what may be shown of them. In float64 unless a
test says otherwise."""

import itertools
import json
import math
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from kit import GROUP, assert_same, directional_derivative, make_batch
from mutants import mutant
from random_model import distance, distributions, random_model
from test_update import update
from toys import FunctionTask, HashTask, column, graded, quick_flags, records
from transformers import AutoTokenizer

import grpo
import guide
import plainrl.run as run_module
from papers import guide_ablations
from plainrl import curves
from plainrl.hints import load_hints, reveals
from plainrl.rollout import Completion, Rollout, completion_seed, encode_prompt
from plainrl.sampler import HFSampler
from plainrl.scoring import score_all
from plainrl.sources import ListTask
from plainrl.tasks import Problem, load_task
from tools import hints

SETTINGS = {  # of guide.py, and of papers/guide_ablations.py
    "Guide": {},
    "cap": dict(importance_cap=1.1),
    "defaults": dict(
        trigger="all_wrong",
        correction="token",
        shaping="quantile",
        group="replace",
        advantage="std",
        aggregation="sequence_mean",
    ),
    "clipped": dict(shaping="clip"),
    "as_it_is": dict(shaping="none"),
    "sequence": dict(correction="sequence", shaping="none", aggregation="constant"),
    "sequence_shaped": dict(correction="sequence", gamma_quantile=0.5),
    "token_mean_and_cap": dict(aggregation="token_mean", importance_cap=1.1),
}
SETTING = pytest.mark.parametrize("setting", SETTINGS)
SCRIPT = pytest.mark.parametrize("script", [guide, guide_ablations], ids=["guide", "ablations"])


def script_of(setting: str):
    return guide if setting in ("Guide", "cap") else guide_ablations


@pytest.fixture(autouse=True)
def float64(request):
    """Everything that torch makes without being told a type is float64; not in tests of the loop."""
    if "toy_model" not in request.fixturenames:
        torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def run(toy_model, tmp_path, monkeypatch):
    """run(script, name, task, **flags) -> the output folder of a quick run."""
    monkeypatch.setattr(curves, "plot_run", lambda run: None)

    def function(script, name, task, **changes):
        script.main(script.Args(**quick_flags(toy_model, tmp_path / name, **changes)), task=task)
        return tmp_path / name

    return function


def make_args(script=guide, **flags):
    return script.Args(**{"max_new_tokens": 12, "temperature": 0.8, "micro_batch_tokens": 10**6} | flags)


def args_of(setting: str, **flags):
    return make_args(script_of(setting), **flags, **SETTINGS[setting])


def option(args, name: str):
    """What guide.py does without a flag of that name."""
    return getattr(args, name, guide_ablations.Args.__dataclass_fields__[name].default)


def guided_batch(guided_groups=(1, 2), **options) -> dict:
    """A batch some of whose groups were sampled with a hint: their old log-probs lie far from the
    policy's."""
    batch = make_batch(old=True, **options)
    guided = torch.zeros(len(batch["prompt_ids"]), 1, dtype=torch.bool)
    for group in guided_groups:
        guided[group * GROUP : (group + 1) * GROUP] = True
    noise = 1.5 * torch.from_numpy(np.random.default_rng(7).standard_normal(batch["old_logprobs"].shape))
    batch["old_logprobs"] = torch.where(
        guided, batch["old_logprobs"] + noise * batch["completion_mask"], batch["old_logprobs"]
    )
    return batch | {"guided": guided, "ratios": torch.zeros_like(batch["old_logprobs"])}


# --- the mathematics ----------------------------------------------------------------------------------------


def loss_of_the_paper(
    model, batch: dict, args, rows: range, gamma: float | None = None
) -> tuple[float, float | None]:
    """Guide's loss in loops over completions and tokens, in numpy and float64, with no function of the
    script; and its gamma.

    A given gamma is held, as is everything that carries no gradient, for finite differences.
    """
    new, counted = {}, [i for i in rows if batch["loss_mask"][i].any()]
    for i in rows:
        table = distributions(
            model, batch["prompt_ids"][i], batch["completion_ids"][i], args.temperature
        ).numpy()
        for t, token in enumerate(batch["completion_ids"][i]):
            new[i, t] = table[t, token]
    ratio = {
        (i, t): math.exp(value) / math.exp(batch["old_logprobs"][i, t].item())
        for (i, t), value in new.items()
    }
    if option(args, "correction") == "sequence":
        for i in rows:
            if batch["guided"][i]:
                whole = math.prod(ratio[i, t] for t in range(len(batch["completion_ids"][i])))
                ratio |= {(i, t): whole for t in range(len(batch["completion_ids"][i]))}
    shaped = sorted(value for (i, t), value in ratio.items() if batch["guided"][i] and i in counted)
    if gamma is None and shaped:
        place = args.gamma_quantile * (len(shaped) - 1)
        below, above = shaped[math.floor(place)], shaped[math.ceil(place)]
        gamma = max(1e-4, below + (place - math.floor(place)) * (above - below))
    loss = 0.0
    for i in counted:
        length, advantage = len(batch["completion_ids"][i]), batch["advantages"][i, 0].item()
        for t in range(length):
            r = ratio[i, t]
            limited = min(max(r, 1 - args.clip_low), 1 + args.clip_high)
            if not batch["guided"][i] or option(args, "shaping") == "clip":
                objective = min(r * advantage, limited * advantage)
            else:
                objective = advantage * (r / (r + gamma) if option(args, "shaping") == "quantile" else r)
            if args.importance_cap is not None:
                old, sampler = batch["old_logprobs"][i, t].item(), batch["rollout_logprobs"][i, t].item()
                objective *= min(math.exp(old) / math.exp(sampler), args.importance_cap)
            total = sum(len(batch["completion_ids"][j]) for j in counted)
            shares = {
                "sequence_mean": 1 / len(counted) / length,
                "token_mean": 1 / total,
                "constant": 1 / len(rows) / args.max_new_tokens,
            }
            loss -= objective * shares[option(args, "aggregation")]
    return loss, gamma


@mutant("shaped loss with the wrong sign", case="Guide")
@mutant(
    "gamma over padding",
    "guide.py",
    'shaping_gamma(batch["ratios"][guided_tokens], args',
    'shaping_gamma(batch["ratios"].flatten(), args',
    case="Guide",
)
@mutant(
    "gamma over masked tokens",
    "guide.py",
    'guided_tokens = batch["loss_mask"] & batch["guided"]',
    'guided_tokens = batch["completion_mask"] & batch["guided"]',
    case="Guide",
)
@mutant(
    "gamma of unguided tokens too",
    "guide.py",
    'guided_tokens = batch["loss_mask"] & batch["guided"]',
    'guided_tokens = batch["loss_mask"]',
    case="Guide",
)
@mutant(
    "gamma of the token ratios",
    "papers/guide_ablations.py",
    "        old_logprobs = sequence_denominator(logprobs, old_logprobs)  # [2]\n",
    "        pass\n",
    case="sequence_shaped",
)
@mutant(
    "unguided tokens shaped",
    "guide.py",
    'torch.where(part["guided"], guided_loss, loss_per_token)',
    "guided_loss",
    case="Guide",
)
@mutant(
    "guided tokens clipped although shaped",
    "guide.py",
    'torch.where(part["guided"], guided_loss, loss_per_token)',
    "loss_per_token",
    case="Guide",
)
@SETTING
def test_loss_equals_loops_written_from_the_paper(setting):
    """Catches a wrong sign, a ratio that is clipped or shaped where it should not be, a gamma over padding,
    over unguided or masked tokens, of a sequence or of a micro-batch."""
    model, batch, args = random_model(), guided_batch(truncated=True), args_of(setting)
    for rows in (range(16), range(4, 12), range(12, 16)):
        sums, _ = update(model, batch, args, script_of(setting), slice(rows.start, rows.stop))
        loss, gamma = loss_of_the_paper(model, batch, args, rows)
        assert (
            sums["policy_loss"] == pytest.approx(loss, rel=1e-9) and sums["total_loss"] == sums["policy_loss"]
        )
        shaped = option(args, "shaping") == "quantile" and rows.start < 12
        assert sums["gamma"] == (pytest.approx(gamma, rel=1e-9) if shaped else 0)


@mutant(
    "sequence denominator with gradient",
    "papers/guide_ablations.py",
    ".sum(1, keepdim=True)).detach()",
    ".sum(1, keepdim=True))",
    case="sequence",
)
@SETTING
def test_gradient_equals_finite_differences_of_the_papers_loss(setting):
    """Catches a gamma or a denominator with gradient, and a gradient that is not that of the loss."""
    model, batch, args = (
        random_model(),
        guided_batch(guided_groups=(1,), truncated=True, groups=2),
        args_of(setting),
    )
    _, ours = update(model, batch, args, script_of(setting))
    _, gamma = loss_of_the_paper(model, batch, args, range(8))
    if (
        option(args, "correction") == "sequence"
    ):  # every token's loss is the whole completion's, its gradient the token's part of that
        lengths = torch.tensor(
            [
                len(completion) if guided else 1
                for completion, guided in zip(batch["completion_ids"], batch["guided"])
            ]
        )
        batch = batch | {"advantages": batch["advantages"] / lengths[:, None]}
    derivative = directional_derivative(
        model, lambda: loss_of_the_paper(model, batch, args, range(8), gamma)[0], 0, ours
    )
    assert derivative == pytest.approx(1.0, abs=1e-5)


@mutant(
    "low quantile for gamma",
    "guide.py",
    "torch.quantile(ratios, quantile).item()",
    "torch.quantile(ratios, 1 - quantile).item()",
    case="guide",
)
@mutant(
    "gamma without a floor",
    "guide.py",
    "return max(1e-4, torch.quantile(ratios, quantile).item())",
    "return torch.quantile(ratios, quantile).item()",
    case="guide",
)
@SCRIPT
def test_gamma_by_hand(script):
    """Catches another quantile, no interpolation, and a gamma of zero."""
    ratios = torch.tensor([0.5, 8.0, 1.0, 2.0, 4.0])
    assert script.shaping_gamma(ratios, 0.9) == pytest.approx(4.0 + 0.6 * 4.0)  # place 3.6 of .5 1 2 4 8
    assert script.shaping_gamma(ratios, 0.5) == 2.0 and script.shaping_gamma(ratios[:1], 0.9) == 0.5
    assert script.shaping_gamma(torch.zeros(3), 0.9) == 1e-4


@mutant(
    "shaped loss with the wrong sign",
    "guide.py",
    "return -advantages * (ratio / (ratio",
    "return advantages * (ratio / (ratio",
    case="guide",
)
@mutant(
    "guided ratio upside down",
    "guide.py",
    "ratio = torch.exp(logprobs - old_logprobs)  # [N, T]\n    return -advantages",
    "ratio = torch.exp(old_logprobs - logprobs)  # [N, T]\n    return -advantages",
    case="guide",
)
@mutant(
    "gamma in the numerator", "guide.py", "ratio / (ratio + gamma))", "gamma / (ratio + gamma))", case="guide"
)
@SCRIPT
def test_shaped_gradient_is_largest_where_the_ratio_is_gamma(script):
    """Catches gamma^2, a ratio that is clipped, and a gradient through gamma: A gamma ratio / (ratio +
    gamma)^2 in log pi."""
    ratios = torch.tensor([[0.01, 0.5, 2.0, 8.0, 400.0]])
    logprobs = torch.full((1, 5), -1.0, requires_grad=True)
    loss = script.shaped_surrogate(logprobs, -1.0 - ratios.log(), torch.tensor([[3.0]]), 2.0)
    loss.sum().backward()
    assert loss[0, 2].item() == pytest.approx(-3.0 / 2) and loss[0, 4].item() == pytest.approx(-3 * 400 / 402)
    expected = -3 * 2 * ratios / (ratios + 2) ** 2
    assert torch.allclose(logprobs.grad, expected, rtol=1e-12) and logprobs.grad.abs().argmax() == 2
    assert logprobs.grad[0, 2].item() == pytest.approx(-3 / 4)


# --- the expected gradient, by enumeration ------------------------------------------------------------------

PROMPT, HINTED = [2, 0, 1], [2, 0, 1, 2, 2]


def expected_gradients(
    length: int, correction: str, seed: int = 0, group: int = 2
) -> tuple[float, torch.Tensor, torch.Tensor]:
    """The script's expected gradient over all groups of completions of `length` tokens from a vocabulary of
    three, sampled with the hint, against that of -E[R] without it: |difference| / |theirs|, and both (ours
    divided by (1 - 1/G) / L)."""
    model = random_model(vocab=3, seed=seed)
    completions = [list(tokens) for tokens in itertools.product(range(3), repeat=length)]
    rewards = torch.from_numpy(np.random.default_rng(length).standard_normal(len(completions)))

    def chances(prompt: list[int]) -> torch.Tensor:
        tables = [distributions(model, prompt, tokens, 1.0) for tokens in completions]
        return torch.stack(
            [
                sum(row[token] for row, token in zip(table, tokens))
                for table, tokens in zip(tables, completions)
            ]
        ).exp()

    groups = list(itertools.product(range(len(completions)), repeat=group))
    chance = chances(HINTED)
    chance_of_group = torch.stack([chance[list(members)].prod() for members in groups])[:, None]
    assert chance.sum().item() == pytest.approx(1.0)
    advantages = guide_ablations.group_advantages(
        torch.stack([rewards[list(members)] for members in groups]), "centred"
    )
    advantages = advantages * chance_of_group * len(groups)
    rows = [completions[member] for members in groups for member in members]
    mask = torch.ones(len(rows), length, dtype=torch.bool)
    denominators = [PROMPT if correction == "none" else HINTED] * len(rows)
    old_logprobs, _ = score_all(model, denominators, rows, 1.0, 10**6)
    batch = {
        "prompt_ids": [PROMPT] * len(rows),
        "completion_ids": rows,
        "advantages": advantages.view(-1, 1),
        "completion_mask": mask,
        "loss_mask": mask,
        "rollout_logprobs": old_logprobs,
        "old_logprobs": old_logprobs,
        "guided": torch.ones(len(rows), 1, dtype=torch.bool),
        "ratios": torch.zeros(mask.shape),
    }
    args = make_args(
        guide_ablations,
        advantage="centred",
        aggregation="constant",
        shaping="none",
        correction=correction,
        temperature=1.0,
        max_new_tokens=length,
    )
    _, ours = update(model, batch, args, guide_ablations)
    ours = ours / ((1 - 1 / group) / length)

    model.zero_grad()
    tokens = torch.tensor(completions)
    logits = model(input_ids=torch.cat([torch.tensor(PROMPT).expand(len(tokens), -1), tokens], dim=1)).logits[
        :, len(PROMPT) - 1 : -1
    ]
    chance = torch.log_softmax(logits, -1).gather(-1, tokens[:, :, None]).sum((1, 2)).exp()
    (-(chance @ rewards)).backward()
    theirs = torch.cat(
        [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in model.parameters()]
    )
    return distance(ours, theirs), ours, theirs


@mutant(
    "mean ratio for the product",
    "papers/guide_ablations.py",
    "(logprobs - (logprobs - old_logprobs).sum(1, keepdim=True))",
    "(logprobs - (logprobs - old_logprobs).mean(1, keepdim=True))",
    case="2-2",
)
@pytest.mark.parametrize("length, group", [(1, 2), (2, 2), (1, 3)])
def test_the_sequence_ratio_is_the_exact_correction(length, group):
    """Catches a denominator under another prompt, or the product of something else: what is sampled with the
    hint has exactly (G-1)/G times the expected gradient of the reward without the hint."""
    assert expected_gradients(length, "sequence", group=group)[0] < 1e-9


def test_the_token_ratio_is_exact_for_one_token_and_biased_for_more():
    """Catches a token ratio that is another's, and the docstring's numbers: how far it lies off for two
    tokens."""
    assert expected_gradients(1, "token")[0] < 1e-9 and expected_gradients(1, "token", group=3)[0] < 1e-9
    assert expected_gradients(1, "none")[0] > 0.2
    token, none = (
        np.array([expected_gradients(2, correction, seed)[0] for seed in range(10)])
        for correction in ("token", "none")
    )
    stated = " ".join(guide.__doc__.split())
    ours = f"{token.mean():.2f} of the exact gradient's length on average (at most {token.max():.2f})"
    theirs = f"no correction by {none.mean():.2f} (at most {none.max():.2f})"
    assert f"by {ours}, and {theirs}, and by more in {(none > token).sum()} of them" in stated
    assert min(token) > 0.05 and min(none) > 0.2


def test_without_the_correction_the_gradient_is_another():
    """Catches a correction that is there although it was switched off."""
    assert expected_gradients(1, "none")[0] > 0.2


# --- what must change nothing -------------------------------------------------------------------------------


@SETTING
def test_micro_batches_change_nothing(setting):
    """Catches a gamma or a denominator of the micro-batch."""
    model, batch = random_model(), guided_batch(truncated=True)
    script = script_of(setting)
    expected = update(model, batch, args_of(setting), script)
    for budget in (250, 1):
        assert_same(update(model, batch, args_of(setting, micro_batch_tokens=budget), script), expected)


def test_without_guided_groups_it_is_grpo():
    """Catches a change for groups that nobody helped, to the last bit."""
    model, batch = random_model(), guided_batch(guided_groups=(), truncated=True)
    for script, flags in [
        (guide, {}),
        *((guide_ablations, {"shaping": shaping}) for shaping in ("quantile", "clip", "none")),
    ]:
        ours = update(model, batch, make_args(script, **flags), script)
        theirs = update(model, batch, grpo.Args(max_new_tokens=12, temperature=0.8, micro_batch_tokens=10**6))
        assert torch.equal(ours[1], theirs[1]) and ours[0]["policy_loss"] == theirs[0]["policy_loss"]


def test_with_its_defaults_the_ablations_are_guide():
    """Catches a change to one of the two files alone, to the last bit."""
    model, batch = random_model(), guided_batch(truncated=True)
    ours = update(model, batch, make_args(guide_ablations), guide_ablations)
    theirs = update(model, batch, make_args(guide), guide)
    assert torch.equal(ours[1], theirs[1]) and ours[0] == theirs[0]


# --- the loop -----------------------------------------------------------------------------------------------


def watch_updates(monkeypatch, look) -> None:
    """Call look(model, batch, args) before every update."""
    for script in (guide, guide_ablations):

        def function(model, batch, args, original=script.accumulate_gradients):
            look(model, batch, args)
            return original(model, batch, args)

        monkeypatch.setattr(script, "accumulate_gradients", function)


@mutant(
    "hint in the trained prompt",
    "guide.py",
    'batch["ratios"] = torch.zeros_like(batch["rollout_logprobs"])  # [N, T]\n',
    'batch["ratios"] = torch.zeros_like(batch["rollout_logprobs"])  # [N, T]\n        '
    "batch.prompt_ids = rollout.prompt_ids\n",
    case="Guide",
)
@mutant(
    "pi_old under the plain prompt",
    "guide.py",
    "run.score(batch, prompt_ids=rollout.prompt_ids)",
    "run.score(batch)",
    case="Guide",
)
@mutant(
    "correction that cannot be switched off",
    "papers/guide_ablations.py",
    'old_ids = plain_ids if args.correction == "none"',
    'old_ids = plain_ids if args.correction == "nothing"',
    case="none",
)
@mutant(
    "pi_old is left out",
    "guide.py",
    "if groups and (args.minibatches * args.epochs > 1 or any(guided)):",
    "if groups and args.minibatches * args.epochs > 1:",
    case="Guide",
)
@mutant(
    "guided rows of other groups",
    "guide.py",
    'batch["guided"] = torch.tensor(guided, ',
    'batch["guided"] = torch.tensor(guided[::-1], ',
    case="Guide",
)
@pytest.mark.parametrize("correction", ["Guide", "token", "none", "keep_hint"])
def test_which_prompt_each_logprob_is_taken_under(run, toy_model, monkeypatch, correction):
    """Catches a numerator under the hint, a denominator without it, and guided rows that are taken for
    others: all compared with the bare forward pass of the row under the prompt that it should be."""
    seen, counts, tokenizer = [], [], AutoTokenizer.from_pretrained(toy_model)

    def look(model, batch, args):
        for i, trained in enumerate(batch.prompt_ids):
            plain, hinted = next(pair for pair in seen if trained in pair)
            guided = batch["guided"][i].item()
            assert trained == (hinted if guided and correction == "keep_hint" else plain)
            behaviour = hinted if guided and correction != "none" else plain
            completion = batch.completion_ids[i]
            table = distributions(model, behaviour, completion, args.temperature)
            expected = table.gather(-1, torch.tensor(completion)[:, None]).squeeze(1)
            if guided:  # this model reads the hint: one prompt cannot stand in for the other
                other = distributions(
                    model, plain if behaviour is hinted else hinted, completion, args.temperature
                )
                assert (other - table).abs().max() > 1e-3
            for name in ("old_logprobs", "rollout_logprobs"):
                if name in batch:
                    assert torch.allclose(batch[name][i, : len(completion)], expected, atol=1e-5), name
        counts.append(int(batch["guided"].sum()) // 4)

    class Remembering(HashTask):
        def problem(self, split, index, seed):
            problem = super().problem(split, index, seed)
            seen.append(
                [
                    encode_prompt(tokenizer, text)
                    for text in (problem.prompt, f"{problem.prompt}\nHint: {problem.hint}")
                ]
            )
            return problem

    watch_updates(monkeypatch, look)
    script, flags = (guide, {}) if correction == "Guide" else (guide_ablations, {"correction": correction})
    folder = run(script, correction, Remembering(), prompts_per_step=4, steps=3, **flags)
    assert sum(counts) > 1 and any(count < 4 for count in counts)
    assert max(column(folder, "rollout/logprob_gap")) < 1e-5


@SCRIPT
def test_without_hints_and_with_mixed_groups_it_is_grpo(run, script):
    """Catches any other difference from grpo.py, to the last bit over a whole run."""
    flags = dict(group_size=24, prompts_per_step=2, minibatches=2)
    ours = run(script, "guide", HashTask(), trigger="never", **flags)
    theirs = run(grpo, "grpo", HashTask(), **flags)
    assert column(theirs, "reward/frac_zero_std") == [0.0] * 5, (
        "a group without differences: choose another seed"
    )
    own = [
        {name: value for name, value in record.items() if not name.startswith("guide/")}
        for record in records(ours)
    ]
    assert own == records(theirs)
    assert (ours / "last" / "model.safetensors").read_bytes() == (
        theirs / "last" / "model.safetensors"
    ).read_bytes()


def test_a_run_of_the_ablations_with_their_defaults_is_one_of_guide(run):
    """Catches a change to the sampling of one of the two files alone, to the last bit over a whole run."""
    theirs, ours = (
        run(script, script.__name__, HashTask(), prompts_per_step=4, minibatches=2)
        for script in (guide, guide_ablations)
    )
    assert records(ours) == records(theirs) and max(column(ours, "guide/frac_guided")) > 0
    for file in ("samples.jsonl", "last/model.safetensors"):
        assert (ours / file).read_bytes() == (theirs / file).read_bytes()


@mutant("dropped tokens not counted", case="guide")
@mutant(
    "groups that fail are kept",
    "guide.py",
    "return 0 < sum(group.correct()) < len(group.texts)",
    "return sum(group.correct()) < len(group.texts)",
    case="guide",
)
@mutant(
    "one refill too many",
    "guide.py",
    "in range(1 + args.max_refills):",
    "in range(2 + args.max_refills):",
    case="guide",
)
@SCRIPT
def test_guided_groups_that_fail_contribute_nothing(run, toy_model, monkeypatch, script):
    """Catches a failed group in the loss, a refill without end, and tokens with hint that are not counted."""
    calls = []
    original = HFSampler.generate

    def generate(self, prompt_ids, n, *rest):
        completions = original(self, prompt_ids, n, *rest)
        calls.append((len(prompt_ids), n, sum(len(completion.ids) for completion in completions)))
        return completions

    monkeypatch.setattr(HFSampler, "generate", generate)
    task = FunctionTask(lambda completion, problem: 0.0)
    folder = run(script, "never right", task, steps=2, max_refills=1, minibatches=2)
    assert column(folder, "optim/grad_norm") == [None, None] and column(folder, "guide/frac_guided") == [
        0.0,
        0.0,
    ]
    assert column(folder, "guide/guided_success") == [0.0, 0.0] and column(folder, "guide/rounds") == [2, 2]
    assert (folder / "last" / "model.safetensors").read_bytes() == (
        folder / "best" / "model.safetensors"
    ).read_bytes()
    training = [call for call in calls if call[1] == 4]
    assert len(training) == 8  # two steps, two rounds, without and with hint
    assert column(folder, "rollout/tokens_total")[-1] == sum(tokens for _, _, tokens in training)


@mutant(
    "groups that are all right are kept",
    "guide.py",
    "return 0 < sum(group.correct()) < len(group.texts)",
    "return 0 < sum(group.correct())",
)
def test_groups_that_are_all_right_contribute_nothing(run):
    """Catches a group that is kept although nothing tells its completions apart."""
    folder = run(
        guide, "always right", FunctionTask(lambda completion, problem: 1.0), steps=2, max_refills=1, epochs=2
    )
    assert column(folder, "optim/grad_norm") == [None, None] and column(folder, "guide/guided_success") == [
        None,
        None,
    ]
    assert column(folder, "guide/rounds") == [2, 2]


@mutant("refill with the same problems", "guide.py", "+ round * far", "")
@mutant("surplus groups are trained on", "guide.py", "groups = groups[:B]", "groups = groups")
def test_seeds_and_problems_are_a_function_of_step_prompt_round_and_sample(run, monkeypatch):
    """Catches a seed shared by two completions, with hint or without, a refill that samples the same again,
    and surplus groups that are carried over."""
    calls, trained, original = [], [], run_module.sample_rollout

    def sample(sampler, tokenizer, task, problems, prompts, seeds, **settings):
        calls.append(
            ([problem.prompt for problem in problems], ["Hint" in prompt for prompt in prompts], seeds)
        )
        return original(sampler, tokenizer, task, problems, prompts, seeds, **settings)

    monkeypatch.setattr(run_module, "sample_rollout", sample)
    watch_updates(monkeypatch, lambda model, batch, args: trained.append(len(batch)))
    folder = run(guide, "seeds", HashTask(), prompts_per_step=3, seed=7)
    assert set(trained) == {12}
    rounds, met = column(folder, "guide/rounds"), []
    assert max(rounds) > 1 and sum(not any(hinted) for _, hinted, _ in calls) == sum(rounds)
    waiting = list(calls)
    for step, count in enumerate(rounds, start=1):
        for round in range(count):
            prompts, _, seeds = waiting.pop(0)
            met += prompts
            assert seeds == [completion_seed(7, step, j, round, i) for j in range(3) for i in range(4)]
            if waiting and all(waiting[0][1]):
                failed, _, seeds = waiting.pop(0)
                assert seeds == [
                    completion_seed(7, step, prompts.index(p), round, 4 + i) for p in failed for i in range(4)
                ]
    assert not waiting and len(set(met)) == len(met)


def test_scores_never_see_a_hint(run, toy_model, monkeypatch):
    """Catches a held-out score of prompts with their hints."""
    asked = []
    evaluate = run_module.evaluate

    def watched(sampler, tokenizer, *rest):
        original = sampler.generate
        sampler.generate = lambda prompt_ids, *more: (
            asked.extend(map(tokenizer.decode, prompt_ids)) or original(prompt_ids, *more)
        )
        result = evaluate(sampler, tokenizer, *rest)
        del sampler.generate
        return result

    monkeypatch.setattr(run_module, "evaluate", watched)
    run(guide_ablations, "run", HashTask(), steps=1, trigger="always")
    assert len(asked) >= 8 and not any("Hint" in prompt for prompt in asked)


# --- which groups are guided --------------------------------------------------------------------------------

PROBLEMS = [
    Problem(f"q{place}", "12", hint)
    for place, hint in enumerate(["first 3", "first 4", None, "it is 12", "first 5"])
]
RIGHT = [0, 1, 0, 0, 4]  # of four, without a hint


def one_round(script=guide_ablations, **flags):
    """sample_groups on PROBLEMS with a sampler that is right as RIGHT says, twice with a hint.

    Returns what it was asked for: problems, prompts, and the number of the first sample; whether each group
    of G completions saw the hint, problem by problem; and how many problems went without a hint because
    there is none that may be shown.
    """
    asked, args = [], script.Args(group_size=4, **flags)
    key = {completion_seed(args.seed, 3, j, 2, i): (j, i) for j in range(5) for i in range(8)}

    def sample(problems, seeds, prompts=None):
        prompts = prompts or [problem.prompt for problem in problems]
        places, first = [PROBLEMS.index(problem) for problem in problems], key[seeds[0]][1]
        assert [key[seed] for seed in seeds] == [(j, first + i) for j in places for i in range(4)]
        asked.append((places, prompts, first))
        rights = [
            2 if "Hint" in prompt or "!" in prompt else RIGHT[place] for place, prompt in zip(places, prompts)
        ]
        grades = [graded(float(i < right), "x") for right in rights for i in range(4)]
        ids = [
            [place, prompt != PROBLEMS[place].prompt]
            for place, prompt in zip(places, prompts)
            for _ in range(4)
        ]
        return Rollout(
            problems, ids, [Completion([5], [0.0], "stop")] * len(grades), [""] * len(grades), grades
        )

    run = SimpleNamespace(args=args, sample=sample, sums=Counter(), state={"solved": []})
    groups = script.sample_groups(run, PROBLEMS, None, 3, 2)
    assert [[PROBLEMS.index(problem) for problem in set(group.problems)] for group in groups] == [
        [j] for j in range(5)
    ]
    guided = [[bool(hinted) for _, hinted in group.prompt_ids[::4]] for group in groups]
    plain_right = sum(
        RIGHT[j] > 0 and guided[j] != [True] or RIGHT[j] > 0 and len(asked) > 1 for j in range(5)
    )
    assert run.sums["first_solved"] == len(run.state["solved"]) == plain_right
    shown = sum(map(sum, guided))
    assert (run.sums["guided_completions"], run.sums["guided_right"], run.sums["rounds"]) == (
        4 * shown,
        2 * shown,
        1,
    )
    return asked, guided, run.sums["without_hint"]


ALL = (list(range(5)), [f"q{place}" for place in range(5)], 0)
UNAIDED, GUIDED, BOTH = [False], [True], [False, True]


@mutant(
    "seeds of the plain group again",
    "guide.py",
    "step, j, round, G + i) for j in helped",
    "step, j, round, i) for j in helped",
    case="guide",
)
@mutant(
    "hint where one was right",
    "guide.py",
    "and not any(groups[j].correct())",
    "and sum(groups[j].correct()) <= 1",
    case="guide",
)
@mutant(
    "hint with the answer is shown",
    "plainrl/hints.py",
    "return None if not hint or reveals(hint, problem.answer) else hint",
    "return hint or None",
    case="guide",
)
@mutant(
    "guided group beside the failed one",
    "guide.py",
    "groups[j] = guided.select([k])",
    "groups[j] = groups[j] + guided.select([k])",
    case="guide",
)
@SCRIPT
def test_failed_groups_get_the_hint(script):
    """Catches a prompt that is guided although one completion was right, a hint with the answer in it that
    is shown, a missing one that is shown as None, a failed group that stays, and seeds that were used
    before."""
    asked, guided, missing = one_round(script)
    assert (
        asked == [ALL, ([0], ["q0\nHint: first 3"], 4)] and missing == 2
    )  # problem 2 has no hint, that of 3 is its answer
    assert guided == [GUIDED, UNAIDED, UNAIDED, UNAIDED, UNAIDED]
    assert one_round(script, trigger="never") == ([ALL], [UNAIDED] * 5, 0)


@mutant(
    "threshold itself is not guided",
    "papers/guide_ablations.py",
    "sum(groups[j].correct()) / G <= highest",
    "sum(groups[j].correct()) / G < highest",
)
def test_the_trigger_is_that_of_the_flag():
    """Catches a threshold on the wrong side, and a flag that is ignored."""
    asked, guided, missing = one_round(trigger="below", trigger_accuracy=0.25)
    assert asked[1][0] == [0, 1] and guided == [GUIDED, GUIDED, UNAIDED, UNAIDED, UNAIDED] and missing == 2
    assert one_round(trigger="below", trigger_accuracy=0.24)[0][1][0] == [0]


def test_always_guided_and_joined_groups():
    """Catches a plain group that is sampled for nothing, and a joined group without one of its halves."""
    asked, guided, missing = one_round(trigger="always")
    assert asked == [
        (list(range(5)), ["q0\nHint: first 3", "q1\nHint: first 4", "q2", "q3", "q4\nHint: first 5"], 0)
    ]
    assert guided == [GUIDED, GUIDED, UNAIDED, UNAIDED, GUIDED] and missing == 2
    asked, guided, missing = one_round(group="join")
    assert guided == [BOTH, UNAIDED, UNAIDED, UNAIDED, UNAIDED] and asked[0] == ALL and missing == 2
    asked, guided, missing = one_round(trigger="always", group="join", hint_template="{hint}! {prompt}")
    assert guided == [BOTH, BOTH, UNAIDED, UNAIDED, BOTH] and asked[1] == (
        [0, 1, 4],
        ["first 3! q0", "first 4! q1", "first 5! q4"],
        4,
    )


@mutant(
    "joined groups are compared apart",
    "papers/guide_ablations.py",
    "rewards = [group.rewards().view(1, -1) for group in groups]",
    "rewards = [group.rewards() for group in groups]",
    case="join",
)
@pytest.mark.parametrize("group", ["Guide", "replace", "join"])
def test_advantages_are_those_of_the_group(run, monkeypatch, group):
    """Catches a guided group whose rewards are compared with another's, and a joined one that is not
    compared as one."""
    batches = []
    watch_updates(monkeypatch, lambda model, batch, args: batches.append(batch))
    script, flags = (guide, {}) if group == "Guide" else (guide_ablations, {"group": group})
    folder = run(script, group, HashTask(), steps=3, prompts_per_step=4, **flags)
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert samples and any(batch["guided"].any() for batch in batches)
    for batch in batches:
        start, sizes = 0, []
        while start < len(batch):
            size = (
                8
                if group == "join"
                and batch["guided"][start + 4 : start + 5].any()
                and not batch["guided"][start]
                else 4
            )
            part = batch["advantages"][start : start + size, 0]
            assert part.sum().abs() < 1e-5 and part.std().item() == pytest.approx(1, abs=1e-4)
            assert len({tuple(prompt) for prompt in batch.prompt_ids[start : start + size]}) == 1
            start, sizes = start + size, [*sizes, size]
        assert sizes == batch.rows_per_group


# --- hints --------------------------------------------------------------------------------------------------


@mutant(
    "substring gives the answer away",
    "plainrl/hints.py",
    "for i in range(len(hay) - len(needle) + 1))",
    "for i in [0]) or answer in hint",
)
@pytest.mark.parametrize(
    "hint, answer, shown",
    [
        ("Start with 112.", "12", False),
        ("You get 12.", "12", True),
        ("It is 1,000 m.", "1000", True),
        ("Take 12.5 of it.", "12", False),
        ("The cathedral", "cat", False),
        ("a Cat sat", "cat", True),
        ("x = 3 + 4", "3 + 4", True),
        ("7 - 12", "12", True),
        ("no numbers", "12", False),
        ("\\frac{1}{2} of it", "\\frac{1}{2}", True),
        ("minus -5 now", "-5", True),
        ("He has $71.00.", "71", True),
        ("so 7.5 m", "7.50", True),
        ("it is .5", "0.5", True),
        ("it is 0.5", "1/2", True),
        ("\\frac12 of it", "\\dfrac{1}{2}", True),
        ("so \u22125", "-5", True),
        ("48/2 = 24", "48", True),
        ("48/2 = 24", "2", True),
        ("Take a pen", "A", False),
        ("It is A.", "A", True),
        ("7/0", "7", True),
        ("1/2 of it", "3/2", False),
        ("take 71.01", "71", False),
    ],
)
def test_what_gives_the_answer_away(hint, answer, shown):
    """Catches substrings that count as the answer, and another spelling of it that does not."""
    assert reveals(hint, answer) is shown


def test_hints_that_cannot_be_used_are_refused_before_anything_is_written(run, tmp_path):
    """Catches a run without a single hint, and a template that does not show it."""
    silent = HashTask()
    silent.problem = lambda split, index, seed: Problem(f"{split} {index}", "0")
    with pytest.raises(
        SystemExit,
        match="--task .*: 0 of the first 1000 .*, 1000 have none, and that of 0 .*; make hints with tools",
    ):
        run(guide, "none", silent)
    telling = ListTask(
        "telling",
        {
            split: [Problem(f"{split} {i}", "7", "say 7") for i in range(3)]
            for split in ("train", "dev", "test")
        },
    )
    with pytest.raises(
        SystemExit, match="--task .*: 0 of the first 3 .*, 0 have none, and that of 3 contains the answer"
    ):
        run(guide, "telling", telling)
    for template in ("{prompt}", "{hint}", "{prompt} {hint} \\boxed{}", "{prompt} {hints}"):
        with pytest.raises(
            SystemExit, match="--hint-template .*must contain {prompt} and {hint}, and other braces doubled"
        ):
            run(guide, "template", HashTask(), hint_template=template)
    assert not any((tmp_path / name).exists() for name in ("none", "telling", "template"))
    run(guide, "filter", silent, trigger="never", steps=1)


@pytest.mark.parametrize(
    "line, said",
    [
        ("{", "line 2: not valid JSON"),
        ("3", "line 2: field 'prompt' must be a non-empty string"),
        ('{"prompt": "a"}', "line 2: field 'hint' must be"),
        ('{"prompt": "a", "hint": " "}', "line 2: field 'hint' must be"),
    ],
)
def test_broken_file_of_hints(tmp_path, line, said):
    """Catches a line that is skipped in silence."""
    file = tmp_path / "hints.jsonl"
    file.write_text('{"prompt": "a", "hint": "b"}\n' + line + "\n")
    with pytest.raises(ValueError, match=f"--hints .*hints.jsonl, {said}"):
        load_hints(file)
    with pytest.raises(ValueError, match="--hints .*nowhere.jsonl: cannot read the file"):
        load_hints(tmp_path / "nowhere.jsonl")


SOLVED = [
    (
        "Sold 48/2 = 24 in May.\nSold 48+24 = 72 in all.\n\\boxed{72}",
        "72",
        "Sold 48/2 = 24 in May.",
        "Sold … in May.",
    ),
    (
        "Add $1.50 to 2 x 3, and 50% more. Then there are five. So x = 3.",
        "3",
        None,
        "Add … to …, and … more.\nThen there are five.",
    ),
    ("Only one step.", "4", None, None),
    ("First 9.\nThen 4.\nThen 5.\nThen 6.", "4", "First 9.", "First ….\nThen ….\nThen …."),
    ("", "5", None, None),
]


@pytest.mark.parametrize("solution, answer, first, plan", SOLVED)
def test_hints_from_worked_solutions(solution, answer, first, plan):
    """Catches a hint with the last step or the answer in it, and a plan with numbers."""
    problem = Problem("q", answer, solution=solution)
    assert (
        hints.make_hint(problem, "first_steps", 0.5) == first
        and hints.make_hint(problem, "plan", 0.5) == plan
    )


def test_a_share_that_is_written_short():
    """Catches two of three steps where a third was asked for."""
    problem = Problem("q", "9", solution="First 1.\nThen 2.\nThen 9.")
    made = [hints.make_hint(problem, "first_steps", share) for share in (0.34, 0.67, 1.0)]
    assert made == ["First 1.", "First 1.\nThen 2.", "First 1.\nThen 2."]


def test_helper_command_makes_hints_that_guide_shows(tmp_path, capsys):
    """Catches a file that does not fit the task it was made from, a file that is overwritten, and problems
    that are not counted."""
    rows = [
        {"prompt": f"q{i}", "answer": str(100 + i), "solution": f"First {i}.\nThen {100 + i}."}
        for i in range(20)
    ]
    rows[0] |= {"solution": f"At once {100}.\nAgain 100."}
    del rows[1]["solution"]
    source, out = tmp_path / "own.jsonl", tmp_path / "hints.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    hints.main(hints.Args(task=f"jsonl:{source}", out=out))
    assert "14 hints; no solution: 1; nothing left without the answer: 1" in capsys.readouterr().out
    found, task = load_hints(out), load_task(f"jsonl:{source}")
    shown = [guide.hint_of(problem, found) for problem in task.members("train")]
    assert sorted(filter(None, shown)) == sorted(f"First {i}." for i in range(2, 20) if i % 10 not in (8, 9))
    with pytest.raises(SystemExit, match="--out .*hints.jsonl: exists and is never overwritten"):
        hints.main(hints.Args(task=f"jsonl:{source}", out=out))
    source.write_text("".join(json.dumps({"prompt": f"q{i}", "answer": "1"}) + "\n" for i in range(20)))
    with pytest.raises(SystemExit, match="none of its .* training problems carries a worked solution"):
        hints.main(hints.Args(task=f"jsonl:{source}", out=tmp_path / "other.jsonl"))
    source.write_text(
        "".join(json.dumps({"prompt": f"q{i}", "answer": "1", "solution": "1"}) + "\n" for i in range(20))
    )
    with pytest.raises(SystemExit, match="no part of any solution is free of its answer"):
        hints.main(hints.Args(task=f"jsonl:{source}", out=tmp_path / "other.jsonl"))
    with pytest.raises(SystemExit, match="--problems -3: must be at least 1"):
        hints.main(hints.Args(task=f"jsonl:{source}", out=tmp_path / "other.jsonl", problems=-3))
    assert not (tmp_path / "other.jsonl").exists()
    hints.main(hints.Args(task="chain", out=tmp_path / "new/chain.jsonl", problems=3, seed=4))
    assert capsys.readouterr().out.strip().endswith("chain.jsonl --train-size 3 --seed 4")


def test_a_file_of_hints_may_have_the_prompts_as_the_users_file_has_them(tmp_path):
    """Catches hints that are only found by the prompt with the instruction that jsonl adds."""
    file = tmp_path / "hints.jsonl"
    file.write_text('{"prompt": "How many?", "hint": "Count."}\n')
    for prompt in ("How many?", "How many? Put the final answer in \\boxed{}."):
        assert guide.hint_of(Problem(prompt, "3"), load_hints(file)) == "Count."


def test_any_field_of_a_file_can_be_the_hint(tmp_path):
    """Catches a field name that is ignored or mistyped."""
    file = tmp_path / "own.jsonl"
    file.write_text(
        "".join(json.dumps({"prompt": f"q{i}", "answer": "1", "plan": f"plan {i}"}) + "\n" for i in range(10))
    )
    assert load_task(f"jsonl:{file}").members("train")[0].hint is None
    assert load_task(f"jsonl:{file}?hint=plan").members("train")[0].hint == "plan 0"
    with pytest.raises(ValueError, match="no line has a field 'plans'"):
        load_task(f"jsonl:{file}?hint=plans")
