"""What every script passes on in a run at temperature 0.7, with a system turn and four updates a step: what
was sampled, scored and trained on, written down and compared with plain forward passes and with loops. The
model is in float64, so that no rounding turns a selection round."""

import hashlib
import itertools
import json
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from every_loss import (
    GUIDES,
    SCRIPTS,
    loss_by_hand,
    mean_entropy_by_hand,
    name_of,
    siren_entropy_by_hand,
)
from mutants import mutant
from random_model import Float64, gradient
from toys import HashTask, graded, quick_flags
from transformers import AutoTokenizer

import eval as eval_script
import grpo
import guide
import h1_curriculum
import siren
from papers import (
    adaptive_bonus,
    cispo,
    clip_cov,
    dapo,
    general_reasoner,
    gspo,
    guide_ablations,
    high_entropy_tokens,
    kl_cov,
    passk,
    rloo,
    srpo,
)
from plainrl import curves, scoring
from plainrl.flags import EVAL_SEED
from plainrl.rollout import Batch, Rollout, pad
from plainrl.run import Run
from plainrl.sampler import HFSampler, probe_gap
from plainrl.tasks import load_task

SYSTEM, TEMPERATURE = "Be brief.", 0.7
WIDE = dict(clip_low=0.9, clip_high=1.0)  # so that most tokens keep a gradient in the fourth update
# General-Reasoner samples with a verifier: tests/test_general_reasoner.py has its updates.
OTHERS = (guide_ablations, general_reasoner)
VARIANTS = {name_of(script): (script, {}) for script in SCRIPTS if script not in OTHERS} | {
    "grpo": (grpo, dict(kl_coef=0.3)),
    "siren": (siren, dict(beta=0.7)),
    "dapo": (dapo, dict(max_new_tokens=10)),
    "h1_curriculum": (h1_curriculum, dict(format_reward=True, completion_budgets=(5, 6))),
    "high_entropy_tokens": (high_entropy_tokens, dict(token_fraction=0.3, **WIDE)),
    "clip_cov": (clip_cov, dict(cov_fraction=0.1, cov_low=0.01, **WIDE)),
    "kl_cov": (kl_cov, dict(cov_fraction=0.1)),
    "gspo": (gspo, WIDE),
    "passk": (passk, dict(k=2)),
    "srpo": (srpo, dict(k=2)),
    "sequence": (guide_ablations, dict(correction="sequence", aggregation="token_mean")),
    "none": (guide_ablations, dict(correction="none", group="join", shaping="none")),
    "keep_hint": (guide_ablations, dict(correction="keep_hint", trigger="always", advantage="centred")),
}
WITH_STATISTICS = (siren, *GUIDES, high_entropy_tokens, clip_cov, kl_cov)
EACH = pytest.mark.parametrize("variant", VARIANTS)
GIVEN = "advantages completion_mask loss_mask rollout_logprobs old_logprobs ref_logprobs guided".split()


class PartialTask(HashTask):
    """Scores of 0, .25, .5 and 1, by a hash of the completion."""

    name = "partial"

    def __init__(self):
        super().__init__()
        self.made = []  # every problem, also those of other horizons

    def problem(self, split, index, seed):
        self.made.append(super().problem(split, index, seed))
        return self.made[-1]

    def grade(self, completion, problem):
        return graded(
            (0, 0, 0, 0.25, 0.25, 0.5, 0.5, 1)[hashlib.sha256(completion.encode()).digest()[0] % 8],
            completion,
        )


@dataclass
class Update:
    """One update of a run, as the script made it and with its groups as a batch of their own."""

    batch: dict
    own: list  # what accumulate_gradients had behind the usual three
    tables: list  # the distribution of each token just before the update
    sums: dict
    gradient: torch.Tensor
    alone: tuple[dict, torch.Tensor]


@dataclass
class Recorded:
    """What one run did."""

    args: object
    task: PartialTask
    updates: list[Update] = field(default_factory=list)
    sampled: list = field(default_factory=list)  # (prompt, temperature) of each prompt that was sampled
    scored: list = field(default_factory=list)  # the same of each row that was scored
    state: dict = field(default_factory=dict)  # what a checkpoint keeps
    rollout: Rollout | None = None  # everything that was sampled for the step


def terms_of(text: str, parsed: str | None) -> float:
    """In place of h1's terms for the format, which random completions never earn."""
    return len(text) % 3 / 4


def on_its_own(batch: Batch) -> Batch:
    """The groups of an update without what their script made of them, in memory of its own."""
    columns = {name: batch[name].clone() for name in GIVEN if name in batch}
    columns["ratios"] = torch.zeros_like(batch["rollout_logprobs"])
    columns["selected"] = torch.zeros_like(batch["completion_mask"])
    columns |= {name: torch.zeros_like(batch["completion_mask"]) for name in ("dropped", "penalised")}
    columns["bonus"] = torch.zeros_like(batch["rollout_logprobs"])
    return Batch(list(batch.prompt_ids), list(batch.completion_ids), columns)


def plain_forward(model, prompt_ids: list, completion_ids: list) -> list[np.ndarray]:
    """The distribution of every token of every completion at the temperature: one padded batch."""
    rows = [[*prompt, *completion] for prompt, completion in zip(prompt_ids, completion_ids)]
    ids, mask = pad(rows, "cpu")
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=mask.long(), use_cache=False).logits / TEMPERATURE
    whole = torch.log_softmax(logits, dim=-1).numpy()
    return [whole[i, len(prompt) - 1 : len(row) - 1] for i, (prompt, row) in enumerate(zip(prompt_ids, rows))]


def record_run(script, flags: dict, toy_model: str, folder, monkeypatch) -> Recorded:
    """One step with two groups an update, which moves the policy a good deal. No final model is made.

    Where a method finds something out about the batch, each update comes twice.
    """
    several = {} if script is rloo else dict(minibatches=2, epochs=1 + (script in WITH_STATISTICS))
    steps = dict(steps=1, prompts_per_step=4, train_size=40, lr=0.005, warmup_steps=1, max_new_tokens=6)
    scores = dict(eval_problems=1, test_problems=1, eval_samples=1, micro_batch_tokens=10**6)
    scores |= dict(max_horizon=2, eval_problems=2) if hasattr(script.Args, "max_horizon") else {}
    switches = dict(temperature=TEMPERATURE, system_prompt=SYSTEM, importance_cap=1.0, mask_truncated=True)
    args = script.Args(**quick_flags(toy_model, folder, **several | steps | scores | switches | flags))
    found = Recorded(args, PartialTask())
    update, generate, score = script.accumulate_gradients, HFSampler.generate, scoring._score

    def watched_update(model, batch, args, *own, **named):
        apart = on_its_own(batch)
        given = dict(apart.columns) | {
            name: getattr(apart, name) for name in ("prompt_ids", "completion_ids")
        }
        alone = update(model, apart, args, *own, **named), gradient(model)
        model.zero_grad()
        sums = update(model, batch, args, *own, **named)
        tables = plain_forward(model, apart.prompt_ids, apart.completion_ids)
        found.updates.append(
            Update(given, [*own, *named.values()], tables, sums, gradient(model).clone(), alone)
        )
        return sums

    def watched_generate(self, prompt_ids, n, tokens, temperature, *rest):
        found.sampled += [(prompt, temperature) for prompt in prompt_ids]
        return generate(self, prompt_ids, n, tokens, temperature, *rest)

    def watched_score(model, prompt_ids, completion_ids, temperature, *rest):
        found.scored += [(prompt, temperature) for prompt in prompt_ids]
        return score(model, prompt_ids, completion_ids, temperature, *rest)

    def finish(run):
        found.state, found.rollout = run.state, run.sampled
        run.close()

    monkeypatch.setattr("transformers.AutoModelForCausalLM", Float64)
    monkeypatch.setattr("plainrl.sampler.check_model", lambda model: None)
    monkeypatch.setattr(curves, "plot_run", lambda run: None)
    monkeypatch.setattr(Run, "finish", finish)
    for name in ("save_model", "save_checkpoint"):  # which take time, and nobody reads what they write
        monkeypatch.setattr(f"plainrl.run.{name}", lambda *given: None, raising=False)
    monkeypatch.setattr(script, "accumulate_gradients", watched_update)
    monkeypatch.setattr(h1_curriculum, "format_terms", terms_of)
    monkeypatch.setattr(HFSampler, "generate", watched_generate)
    monkeypatch.setattr(scoring, "_score", watched_score)
    script.main(args, task=found.task)
    return found


@pytest.fixture(scope="module")
def recorded(toy_model, tmp_path_factory):
    """recorded(variant): its run, made once."""
    runs = {}

    def function(variant: str) -> Recorded:
        if variant not in runs:
            with pytest.MonkeyPatch.context() as monkeypatch:
                folder = tmp_path_factory.mktemp(variant) / "run"
                runs[variant] = record_run(*VARIANTS[variant], toy_model, folder, monkeypatch)
        return runs[variant]

    return function


@pytest.fixture(scope="module")
def prompt_of(toy_model):
    """prompt_of(user) -> the ids of a prompt with the system turn."""
    tokenizer = AutoTokenizer.from_pretrained(toy_model)

    def function(user: str) -> tuple[int, ...]:
        turns = [dict(role="system", content=SYSTEM), dict(role="user", content=user)]
        return tuple(tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False))

    return function


@pytest.fixture(scope="module")
def start(toy_model):
    """The model that the runs start from."""
    return Float64.from_pretrained(toy_model)


# --- every statistic is the update's own --------------------------------------------------------------------


@mutant(
    "gamma over the other updates too",
    "guide.py",
    'gamma = shaping_gamma(batch["ratios"][guided_tokens], args.gamma_quantile)',
    'whole = batch["ratios"] if batch["ratios"]._base is None else batch["ratios"]._base\n'
    "        gamma = shaping_gamma(whole[whole > 0], args.gamma_quantile)",
    case="guide",
)
@mutant(
    "selection of the first epoch kept",
    "papers/high_entropy_tokens.py",
    'batch["dropped"][:] = low_entropy_tokens(model, batch, args)',
    'batch["dropped"] |= ~batch["dropped"].any() & low_entropy_tokens(model, batch, args)',
    case="high_entropy_tokens",
)
@EACH
def test_an_update_is_that_of_its_groups_alone(recorded, variant):
    """Catches a gamma, an entropy, a threshold or a selection of the whole step or of an earlier update."""
    found = recorded(variant)
    script, args = VARIANTS[variant][0], found.args
    assert len(found.updates) == (1 if script is rloo else args.minibatches * args.epochs)
    if script in GUIDES:
        guided = [update.batch["guided"].any() for update in found.updates]
        assert all(guided), "an update without a gamma cannot take another's: choose another seed"
    moved = [update.gradient.norm() > 1e-4 for update in found.updates]
    assert sum(moved) >= len(moved) / 2, "most updates have no gradient to compare: choose another seed"
    for update in found.updates:
        sums, alone = update.alone
        torch.testing.assert_close(update.gradient, alone, rtol=1e-9, atol=1e-12)
        assert update.sums == pytest.approx(sums, rel=1e-9, abs=1e-12)


@mutant(
    "gamma found before the first update",
    "guide.py",
    "        for minibatch in batch.split(args.minibatches) * args.epochs:\n",
    "        if any(guided):\n"
    '            whole = guided_ratios(run.model, batch, args)[batch["loss_mask"] & batch["guided"]]\n'
    "            globals().update(shaping_gamma=lambda *given: torch.quantile(whole, given[1]).item())\n"
    "        for minibatch in batch.split(args.minibatches) * args.epochs:\n",
    case="guide",
)
@EACH
def test_an_update_has_the_loss_of_its_groups(recorded, variant):
    """Catches what a script computes once for all updates of a step, or hands to the wrong one."""
    found, script = recorded(variant), VARIANTS[variant][0]
    own = [update.own[0] for update in found.updates if update.own]
    if script is h1_curriculum:
        assert own == [5, 5]  # of stage 1: --completion-budgets
    if script is siren:
        assert own == [found.state["anchor"]] * 4
    if script is clip_cov:
        assert len(set(own)) == 4  # another draw in every update
    if script is kl_cov:
        assert own == [True, False, False, False]  # the first one has no penalty
    if script is adaptive_bonus:
        entropies = [mean_entropy_by_hand(update.tables) for update in found.updates]
        changes = [found.args.bonus_rate * (found.state["entropy_at_start"] - each) for each in entropies]
        first = found.args.bonus
        bonuses = [first, first + changes[0], first + changes[0] + changes[1]]
        assert [*own, found.state["bonus"]] == pytest.approx(bonuses, rel=1e-6)
    for update in found.updates:
        expected = loss_by_hand(script, update.tables, update.batch, found.args, *update.own)
        for name, value in expected.items():
            assert update.sums[name] == pytest.approx(value, rel=1e-5, abs=1e-6), name


# --- every prompt has the system turn -----------------------------------------------------------------------


@mutant(
    "Guide trains without the system turn",
    "guide.py",
    "encode_prompt(run.tokenizer, problem.prompt, system) for problem",
    "encode_prompt(run.tokenizer, problem.prompt) for problem",
    case="guide",
)
@mutant(
    "samples without the system turn",
    "plainrl/run.py",
    "            system=self.args.system_prompt,\n",
    "",
    case="grpo",
)
@mutant(
    "scores without the system turn",
    "plainrl/run.py",
    "            args.temperature,\n            args.system_prompt,\n",
    "            args.temperature,\n",
    case="dapo",
)
@EACH
def test_every_prompt_has_the_system_turn(recorded, prompt_of, variant):
    """Catches a prompt that is sampled, scored, measured or trained on without it."""
    found, script = recorded(variant), VARIANTS[variant][0]
    problems = {problem.prompt: problem for problem in found.task.made}.values()
    plain = {prompt_of(problem.prompt) for problem in problems}
    hinted = {prompt_of(f"{problem.prompt}\nHint: {problem.hint}") for problem in problems}
    sampled, scored = ({tuple(prompt) for prompt, _ in met} for met in (found.sampled, found.scored))
    assert sampled | scored <= plain | (hinted if script in GUIDES else set())
    trained = {tuple(prompt) for update in found.updates for prompt in update.batch["prompt_ids"]}
    assert trained <= (hinted if variant == "keep_hint" else plain)
    if script in GUIDES:
        assert sampled & plain and sampled & hinted  # some were sampled with a hint and some without


def test_every_prompt_of_an_evaluation_has_the_system_turn(toy_model, prompt_of, tmp_path, monkeypatch):
    """Catches eval.py measuring, or writing down, prompts without it."""
    met, generate = [], HFSampler.generate

    def watched(self, prompt_ids, *rest):
        met.extend(map(tuple, prompt_ids))
        return generate(self, prompt_ids, *rest)

    monkeypatch.setattr(HFSampler, "generate", watched)
    task = "chain?horizon=1"
    flags = dict(problems=2, samples=1, max_new_tokens=2, temperature=1.0, system_prompt=SYSTEM)
    out = tmp_path / "scores"
    results, _ = eval_script.measure(toy_model, eval_script.Args(model=toy_model, task=task, **flags), out)
    problems = [load_task(task).problem("test", index, EVAL_SEED) for index in range(2)]
    prompts = {prompt_of(problem.prompt) for problem in problems}
    assert set(met) == prompts
    tokenizer, template = AutoTokenizer.from_pretrained(toy_model), results["settings"]["prompt_template"]
    rows = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    assert {row["prompt"] for row in rows} == {problem.prompt for problem in problems}
    written = {template.replace("{problem}", row["prompt"]) for row in rows}
    assert SYSTEM in template and written == {tokenizer.decode(prompt) for prompt in prompts}


@mutant(
    "sampler compared without the system turn",
    "plainrl/sampler.py",
    "[encode_prompt(tokenizer, problem.prompt, args.system_prompt) for problem",
    "[encode_prompt(tokenizer, problem.prompt) for problem",
)
@mutant(
    "sampler compared at temperature 1",
    "plainrl/sampler.py",
    "score_all(model, prompts, ids, args.temperature,",
    "score_all(model, prompts, ids, 1.0,",
)
def test_a_sampler_is_compared_on_the_prompts_and_at_the_temperature_of_the_run(toy_model, prompt_of, start):
    """Catches a comparison of sampler and trainer that leaves out the system turn or the temperature: the
    gap of a sampler that is right is 0."""
    met, task = [], PartialTask()
    sampler = HFSampler(start, [])

    def generate(prompt_ids, *rest):
        met.extend(map(tuple, prompt_ids))
        return HFSampler.generate(sampler, prompt_ids, *rest)

    settings = dict(system_prompt=SYSTEM, temperature=TEMPERATURE, micro_batch_tokens=10**6)
    args = SimpleNamespace(**settings, seed=0, max_new_tokens=4, max_logprob_gap=1e-5)
    tokenizer = AutoTokenizer.from_pretrained(toy_model)
    probe_gap(SimpleNamespace(generate=generate), start, tokenizer, task, args)
    assert set(met) == {prompt_of(problem.prompt) for problem in task.made}


# --- every pass is at the temperature -----------------------------------------------------------------------


@mutant(
    "reference at temperature 1",
    "plainrl/run.py",
    "        settings = (args.temperature, args.micro_batch_tokens, token_function)",
    "        settings = (1.0 if model else args.temperature, args.micro_batch_tokens, token_function)",
    case="grpo",
)
@mutant(
    "denominators of Guide at temperature 1",
    "guide.py",
    "run.score(batch, prompt_ids=rollout.prompt_ids)",
    "score_all(run.model, rollout.prompt_ids, batch.completion_ids, 1.0, args.micro_batch_tokens)",
    case="guide",
)
@mutant(
    "entropy target at temperature 1",
    "papers/adaptive_bonus.py",
    "run.score(batch)[1] * completion_mean",
    "run.score(batch, token_function=lambda logits, targets: "
    "tuple(map(torch.detach, logprob_and_live_entropy(args.temperature * logits, targets))))[1] "
    "* completion_mean",
    case="adaptive_bonus",
)
@mutant(
    "anchor at temperature 1",
    "siren.py",
    "regularised_entropy(run.model, batch, args)[1]",
    'regularised_entropy(run.model, batch, Args(**vars(args) | {"temperature": 1.0}))[1]',
    case="siren",
)
@EACH
def test_every_pass_of_a_run_is_at_the_temperature(recorded, prompt_of, start, variant):
    """Catches a reference, a denominator or a target entropy at another temperature than the policy's."""
    found, script = recorded(variant), VARIANTS[variant][0]
    assert {temperature for _, temperature in found.sampled + found.scored} == {TEMPERATURE}
    hinted = {
        prompt_of(problem.prompt): list(prompt_of(f"{problem.prompt}\nHint: {problem.hint}"))
        for problem in found.task.made
    }
    first_pass = found.updates[: found.args.minibatches] if script is not rloo else found.updates
    of_start = []  # the distribution of each token of the step under the starting model
    for batch in (update.batch for update in first_pass):
        prompts = list(batch["prompt_ids"])
        if variant in ("guide", "sequence"):
            saw_hint = batch["guided"][:, 0].tolist()
            prompts = [hinted[tuple(ids)] if hint else ids for ids, hint in zip(prompts, saw_hint)]
        tables = plain_forward(start, prompts, batch["completion_ids"])
        of_start += tables
        for name in {"old_logprobs", "ref_logprobs", "rollout_logprobs"} & batch.keys():
            for i, completion in enumerate(batch["completion_ids"]):
                expected = tables[i][range(len(completion)), completion]
                assert batch[name][i, : len(completion)].numpy() == pytest.approx(expected, abs=1e-5), name
    if script is siren:
        assert found.state["anchor"] == pytest.approx(siren_entropy_by_hand(of_start, found.args), rel=1e-5)
    if script is adaptive_bonus:
        assert found.state["entropy_at_start"] == pytest.approx(mean_entropy_by_hand(of_start), rel=1e-5)


# --- scores between 0 and 1 ---------------------------------------------------------------------------------


def shaped_rewards(script, group: Rollout) -> list[float]:
    """What the completions of a group are compared by."""
    rewards = [grade.score for grade in group.grades]
    if script is h1_curriculum:
        return [2 * reward + terms_of(text, None) for reward, text in zip(rewards, group.texts)]
    if script is dapo:  # the last two of ten tokens cost a quarter each
        return [reward - max(0, len(ids) - 8) / 4 for reward, ids in zip(rewards, group.completion_ids)]
    return rewards


def kept_by_guide(groups: list[Rollout], args) -> list[Rollout]:
    """The groups that Guide trains on, of those that it sampled: rounds of four, then the guided ones."""
    right = lambda group: sum(grade.score == 1 for grade in group.grades)  # noqa: E731
    kept, waiting = [], list(groups)
    while waiting:
        of_round, waiting = waiting[:4], waiting[4:]
        always = getattr(args, "trigger", None) == "always"
        for j, group in enumerate(of_round if not always else []):
            if right(group) == 0:
                guided = waiting.pop(0)
                assert guided.problems == group.problems
                of_round[j] = group + guided if getattr(args, "group", "") == "join" else guided
        kept += [group for group in of_round if 0 < right(group) < len(group.texts)]
    return kept


def compared(script, args, rewards: list[float]) -> list[float]:
    """The advantages of a group."""
    if script is rloo:
        return [reward - (sum(rewards) - reward) / (len(rewards) - 1) for reward in rewards]
    if script is srpo:
        pairs = zip(compared(grpo, args, rewards), compared(passk, args, rewards))
        return [first + bonus for first, bonus in pairs]
    if script is passk:
        sets = list(itertools.combinations(range(len(rewards)), args.k))
        is_right = {members: any(rewards[i] == 1 for i in members) for members in sets}
        mean, std = np.mean(list(is_right.values())), np.std(list(is_right.values()))
        of_each = [
            [right for members, right in is_right.items() if i in members] for i in range(len(rewards))
        ]
        return [(np.mean(own) - mean) / (std + 1e-6) for own in of_each]
    centred = [reward - sum(rewards) / len(rewards) for reward in rewards]
    if script in (grpo, dapo, cispo, gspo, guide) or getattr(args, "advantage", None) == "std":
        return [each / (np.std(rewards, ddof=1) + 1e-6) if any(centred) else 0.0 for each in centred]
    return centred


@mutant(
    "partial scores in DAPO's filter",
    "papers/dapo.py",
    "correct = run.sampled.correct()",
    "correct = run.sampled.rewards().sum(1).tolist()",
    case="dapo",
)
@mutant(
    "overlong punishment a token late",
    "papers/dapo.py",
    "lengths = torch.tensor([len(ids) for ids in rollout.completion_ids])",
    "lengths = torch.tensor([len(ids) - 1 for ids in rollout.completion_ids])",
    case="dapo",
)
@EACH
def test_groups_are_kept_by_right_answers_and_compared_by_scores(recorded, variant):
    """Catches a filter that takes half a point for a right answer, an advantage of right or wrong alone, and
    a punishment that begins a token early or late."""
    found, script = recorded(variant), VARIANTS[variant][0]
    sampled = found.rollout
    groups = [sampled.select([j]) for j in range(len(sampled.problems))]
    partial = [grade.score for grade in sampled.grades if 0 < grade.score < 1]
    assert len(partial) > 3
    updates = found.updates[:1] if script is rloo else found.updates[: found.args.minibatches]
    rows = [
        (tuple(ids), update.batch["advantages"][i, 0].item())
        for update in updates
        for i, ids in enumerate(update.batch["completion_ids"])
    ]
    if script in GUIDES:  # a guided group comes after its round's plain ones
        kept = kept_by_guide(groups, found.args)
    elif script is dapo:
        kept = [group for group in groups if 0 < sum(grade.score == 1 for grade in group.grades) < 4]
        lengths = {len(ids) for group in kept[:4] for ids in group.completion_ids}
        assert lengths >= {8, 9, 10}, "no length at each end of the buffer: choose another seed"
    else:
        kept = groups
    if script in (dapo, *GUIDES):
        assert any(len({grade.score for grade in group.grades}) > 1 for group in groups if group not in kept)
    expected = [
        (tuple(ids), advantage)
        for group in kept[:4]
        for ids, advantage in zip(
            group.completion_ids, compared(script, found.args, shaped_rewards(script, group))
        )
    ]
    assert [ids for ids, _ in rows] == [ids for ids, _ in expected]
    assert [each for _, each in rows] == pytest.approx([each for _, each in expected], abs=1e-5)


@mutant(
    "groups without a right answer have no differences",
    "plainrl/run.py",
    "(rewards.amax(1) == rewards.amin(1)).float().mean().item()",
    "(rewards.eq(1).sum(1) % rewards.shape[1] == 0).float().mean().item()",
    case="grpo",
)
@EACH
def test_what_is_logged_are_the_scores(recorded, variant):
    """Catches a mean reward, a share of groups without differences or a horizon's reward that rounds partial
    scores, or has in it what is added to them."""
    found = recorded(variant)
    G = found.args.group_size
    scores = [grade.score for grade in found.rollout.grades]
    groups = [scores[first : first + G] for first in range(0, len(scores), G)]
    lines = (found.args.out_dir / "metrics.jsonl").read_text().splitlines()
    logged = next(record for record in map(json.loads, lines) if "reward/mean" in record)
    assert logged["reward/mean"] == pytest.approx(sum(scores) / len(scores))
    same = sum(len(set(group)) == 1 for group in groups)
    assert logged["reward/frac_zero_std"] == pytest.approx(same / len(groups))
    for horizon in range(1, getattr(found.args, "max_horizon", 0) + 1):
        problems = found.rollout.problems
        own = [score for j, group in enumerate(groups) for score in group if problems[j].horizon == horizon]
        (reward,) = (value for name, value in logged.items() if name.endswith(f"/reward_{horizon}"))
        assert reward == (pytest.approx(sum(own) / len(own)) if own else None)
    samples = [json.loads(line) for line in (found.args.out_dir / "samples.jsonl").read_text().splitlines()]
    expected = [PartialTask().grade(row["completion"], None).score for row in samples]
    assert len(samples) >= G and [row["reward"] for row in samples] == expected
