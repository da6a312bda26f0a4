"""papers/latent_seek.py: its formulas against the official code's numbers and by hand, the search against a
loop written from the paper, samples of as many tokens, critics, files that go on where they stopped."""

import json
import math
from dataclasses import replace

import pytest
import torch
from mutants import mutant
from random_model import Float64
from test_general_reasoner import Asked
from toys import FunctionTask, HashTask

import eval as eval_py
from benchmarks import latent_seek as experiment, recipes
from papers import latent_seek
from papers.latent_seek import (
    POINTS,
    AfterPrefix,
    Args,
    Job,
    Lab,
    Latent,
    action_logprobs,
    by_judge,
    by_logprob,
    by_the_answer,
    by_verifier,
    first_states,
    latent_of,
    points_reward,
    search_loss,
    states_to_move,
)
from plainrl import metrics, ranks
from plainrl.models import eos_ids, load_model
from plainrl.report import make_page
from plainrl.rollout import Completion, Rollout, encode_prompt
from plainrl.sampler import HFSampler, plain_generate
from plainrl.tasks import Grade, Problem
from plainrl.verifier import Verifier

# --- the official code's numbers ----------------------------------------------------------------------------

STATES, HEAD = [[0.5, -0.25], [1.0, 2.0]], [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [-1.0, 0.5]]  # d = 2, V = 4
OFFICIAL = [  # R, loss, its gradient
    (-1.0, -1.386358, [[0.435462, -0.548755], [0.301000, 0.103174]]),
    (0.5, 0.693179, [[-0.217731, 0.274377], [-0.150500, -0.051587]]),
    (0.0, 0.0, [[0.0, 0.0], [0.0, 0.0]]),
]


def head_of(rows: list[list[float]]) -> torch.nn.Linear:
    head = torch.nn.Linear(len(rows[0]), len(rows), bias=False, dtype=torch.float64)
    head.weight.data = torch.tensor(rows, dtype=torch.float64)
    return head.requires_grad_(False)


def states(rows=STATES) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


@mutant(
    "latent: sign of the loss", "papers/latent_seek.py", "return -reward * action", "return reward * action"
)
@mutant(
    "latent: a mean over states", "papers/latent_seek.py", "(hidden, head).sum()", "(hidden, head).mean()"
)
@mutant("latent: the score left out", "papers/latent_seek.py", "return -reward *", "return -(reward != 0) *")
@mutant(
    "latent: the least likely token",
    "papers/latent_seek.py",
    "torch.log(probs.amax(-1) + 1e-10)",
    "torch.log(probs.amin(-1) + 1e-10)",
)
@pytest.mark.parametrize("reward, loss, gradient", OFFICIAL)
def test_official_loss_and_gradient(reward, loss, gradient):
    """Catches any other number than the official code's."""
    hidden, head = states().requires_grad_(), head_of(HEAD)
    assert action_logprobs(hidden, head).tolist() == pytest.approx([-0.946168, -0.440190], abs=1e-6)
    assert head(hidden).argmax(-1).tolist() == [0, 2]
    found = search_loss(hidden, head, reward)
    found.backward()
    assert found.item() == pytest.approx(loss, abs=1e-6)
    assert hidden.grad.tolist() == [pytest.approx(row, abs=1e-6) for row in gradient]


@mutant("latent: no first added number", "papers/latent_seek.py", "dim=-1) + 1e-8", "dim=-1)")
@mutant("latent: no second added number", "papers/latent_seek.py", "amax(-1) + 1e-10)", "amax(-1))")
def test_the_added_numbers():
    """Catches a logarithm without the two small numbers of the official code: of a sure token it is above
    0."""
    found = action_logprobs(states([[100.0, 0.0]]), head_of([[1.0, 0.0], [-1.0, 0.0]])).item()
    assert found == pytest.approx(math.log(1 + 1e-8 + 1e-10), rel=1e-6)


def test_the_gradient_is_that_of_the_formula():
    """Catches a gradient that goes through the choice of a token, or misses the other tokens: with sums over
    the vocabulary, d log(p_a + e) / dz = q_a (W_a - sum_v q_v W_v) / (q_a + e), q the softmax."""
    generator = torch.Generator().manual_seed(3)
    rows = torch.randn(5, 3, generator=generator, dtype=torch.float64).tolist()
    weight = torch.randn(7, 3, generator=generator, dtype=torch.float64).tolist()
    hidden = states(rows).requires_grad_()
    search_loss(hidden, head_of(weight), -0.7).backward()
    for z, found in zip(rows, hidden.grad.tolist()):
        logits = [sum(w * x for w, x in zip(row, z)) for row in weight]
        q = [math.exp(logit) / sum(map(math.exp, logits)) for logit in logits]
        a = q.index(max(q))
        mean = [sum(q[v] * weight[v][j] for v in range(7)) for j in range(3)]
        share = q[a] / (q[a] + 1e-8 + 1e-10)
        assert found == pytest.approx([0.7 * share * (weight[a][j] - mean[j]) for j in range(3)], rel=1e-9)


def latent(rows=STATES, **flags) -> Latent:
    return latent_of(states(rows), Args(**{"latent_lr": 0.03} | flags), 5)


def test_official_step():
    """Catches another optimizer, or one that keeps an old gradient: the states after a step with R = -1, and
    the next loss."""
    found, head = latent(), head_of(HEAD)
    found.step(head, -1.0)
    assert found.hidden.tolist() == [pytest.approx([0.47, -0.22]), pytest.approx([0.97, 1.97])]
    assert search_loss(found.hidden, head, -1.0).item() == pytest.approx(-1.428559, abs=1e-6)
    found.optimizer.zero_grad()
    before = found.hidden.detach().clone()
    found.hidden.grad = torch.full_like(before, 1e9)  # of another update
    found.step(head, 0.0)
    assert (found.hidden - before).abs().max() < 0.03  # momentum alone


def test_a_critic_that_refuses_makes_tokens_less_likely():
    """Catches a sign: R < 0 lowers the probability of what the states say, R > 0 raises it, R = 0 moves
    nothing, and the first step is as long for any R."""
    head = head_of(HEAD)
    before = action_logprobs(states(), head)
    for reward in (-1.0, -0.001, 0.5, 20.0):
        found = latent()
        found.step(head, reward)
        after = torch.log_softmax(head(found.hidden), -1).gather(1, torch.tensor([[0], [2]])).squeeze(1)
        assert ((after - before) * reward > 0).all()
        assert (found.hidden - states()).abs().flatten().tolist() == pytest.approx([0.03] * 4, rel=1e-3)
    found = latent()
    found.step(head, 0.0)
    assert torch.equal(found.hidden, states())


@mutant(
    "latent: random is the gradient", "papers/latent_seek.py", 'if args.direction == "random":', "if False:"
)
@mutant(
    "latent: a new direction each step",
    "papers/latent_seek.py",
    "self.hidden.grad = -reward * self.direction",
    "self.hidden.grad = torch.randn_like(self.hidden)",
)
@mutant("latent: one direction for all", "papers/latent_seek.py", "manual_seed(seed)", "manual_seed(0)")
def test_a_random_direction_is_kept():
    """Catches a control that wanders about, goes where the gradient goes, or the same way in all problems."""
    head, found = head_of(HEAD), latent(direction="random")
    for _ in range(5):
        found.step(head, -1.0)
    moved = found.hidden - states()
    assert moved.abs().flatten().tolist() == pytest.approx([0.15] * 4, rel=1e-3)  # five steps one way
    many = states([[1.0, 2.0]] * 40)
    ways = [latent_of(many, Args(latent_lr=0.03, direction="random"), seed).direction for seed in (5, 5, 6)]
    assert torch.equal(ways[0], ways[1]) and not torch.equal(ways[0], ways[2])
    first = latent(many.tolist(), direction="random")
    first.step(head, -1.0)
    assert 20 < ((first.hidden - many) > 0).sum() < 60  # of 80 numbers


@mutant("latent: m rounded", "papers/latent_seek.py", "int(k * length)", "round(k * length)")
@mutant("latent: no most states", "papers/latent_seek.py", "MOST_STATES = 300", "MOST_STATES = 10**9")
def test_how_many_states():
    """Catches another m than the official code's: the share is cut to a whole number, at most 300."""
    given = [(10, 0.2), (9, 0.1), (19, 0.1), (19, 1.0), (5000, 0.1), (1, 0.5)]
    assert [states_to_move(*each) for each in given] == [2, 0, 1, 19, 300, 0]


@mutant("latent: format costs nothing", "papers/latent_seek.py", "if readable else FORMAT", "if True else 2")
@mutant("latent: points weigh the same", "papers/latent_seek.py", "sum(POINTS[point][1] for", "sum(1 for")
def test_points_of_the_judge():
    """Catches other weights than the paper's: calculation 2, answer 1, completeness 2, understanding 1 and
    format 2, of 6."""
    given = [[], ["calculation"], ["answer"], ["completeness"], ["understanding"], [*POINTS]]
    assert [points_reward(each) * 6 for each in given] == pytest.approx([0, -2, -1, -2, -1, -6])
    assert points_reward([*POINTS], readable=False) == pytest.approx(-8 / 6)
    assert math.copysign(1, points_reward([])) == 1


# --- states and prefixes ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def toy(toy_model):
    """Model in float64, where no draw depends on rounding; tokenizer and sampler."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.AutoModelForCausalLM", Float64)
        model, tokenizer = load_model(toy_model)
    model.eval().requires_grad_(False)
    return model, tokenizer, HFSampler(model, eos_ids(model, tokenizer))


def jobs_for(tokenizer, task, count: int) -> list[Job]:
    problems = [task.problem("test", index, 0) for index in range(count)]
    return [Job(task, i, each, encode_prompt(tokenizer, each.prompt)) for i, each in enumerate(problems)]


def lab_of(toy, critic, **flags) -> Lab:
    defaults = {"k": 0.5, "latent_lr": 0.4, "max_steps": 6, "threshold": -0.2, "max_new_tokens": 12}
    return Lab(*toy, critic, Args(**defaults | flags), 77)


def rows_of(lab: Lab, jobs: list[Job]) -> list[dict]:
    settings = dict.fromkeys(("model", "task", "split", "system_prompt", "grader", "critic"))
    return latent_seek.work_on(lab, jobs, settings)


@mutant(
    "latent: states of the place before",
    "papers/latent_seek.py",
    "beginnings = [rollout.completion_ids[row][: sizes[row]]",
    "beginnings = [rollout.completion_ids[row][1 :][: sizes[row]]",
)
def test_first_states_are_those_that_the_head_reads(toy):
    """Catches states of the place before or after: by them the head says the greedy answer again, and they
    are those of a forward pass of the bare row. An answer of one token has none."""
    model, tokenizer, _ = toy
    prompts = [tokenizer.encode(text) for text in ("1+1?", "How many maps has Kim?", "1+1?", "2", "34")]
    sizes, whole = (7, 1, 4, 9, 1), HFSampler(model, [0]).generate(prompts, 1, 9, 0.0, [0] * 5)
    completions = [Completion(c.ids[:size], [0.0] * size, "length") for c, size in zip(whole, sizes)]
    assert [len(completion.ids) for completion in completions] == [*sizes], "one ended: choose other prompts"
    nothing = [Grade(False, 0.0, None, "")] * 5
    rollout = Rollout([Problem("", "")] * 5, prompts, completions, [""] * 5, nothing)
    found = first_states(model, rollout, 0.6)
    assert [len(hidden) for hidden in found] == [4, 0, 2, 5, 0]
    for prompt, completion, hidden in zip(prompts, completions, found):
        if len(hidden):
            ids = completion.ids
            assert model.get_output_embeddings()(hidden).argmax(-1).tolist() == ids[: len(hidden)]
            plain = model.base_model(input_ids=torch.tensor([prompt + ids])).last_hidden_state[0]
            torch.testing.assert_close(hidden, plain[len(prompt) - 1 :][: len(hidden)], rtol=1e-9, atol=1e-11)
    assert [len(hidden) for hidden in first_states(model, rollout, 0.1)] == [0] * 5


@mutant(
    "latent: an answer goes on behind its end", "papers/latent_seek.py", "if end is not None:", "if False:"
)
@mutant(
    "latent: the end is cut off", "papers/latent_seek.py", "prefix[: end + 1], [0.0]", "prefix[:end], [0.0]"
)
@mutant(
    "latent: longer than allowed",
    "papers/latent_seek.py",
    "completion.ids[:room], completion.logprobs[:room]",
    "completion.ids, completion.logprobs",
)
def test_what_follows_a_prefix(toy):
    """Catches an answer that is not the greedy one after its prefix, that is longer than allowed, or goes on
    behind its end."""
    model, tokenizer, sampler = toy
    prompts = [tokenizer.encode(text) for text in ("1+1?", "How many maps has Kim?", "2", "3", "4")]
    end = sampler.eos_ids[0].item()
    letters = [id for id in tokenizer.encode("ABC times") if id not in sampler.eos_ids.tolist()][:3]
    prefixes = [[], letters, [letters[0], end, letters[1]], letters[:1] * 9, letters * 4]
    found = AfterPrefix(sampler, prefixes).generate(prompts, 1, 9, 0.0, [0] * 5)
    ends = sampler.eos_ids.tolist()
    for prompt, prefix, completion in zip(prompts[:2], prefixes, found):
        plain = plain_generate(model, prompt + prefix, 9 - len(prefix), 0.0, 0, ends)
        assert completion.ids == prefix + plain.ids and completion.finish_reason == plain.finish_reason
        assert len(completion.logprobs) == len(completion.ids)
    assert [(c.ids, c.finish_reason) for c in found[2:4]] == [
        ([letters[0], end], "stop"),
        (letters[:1] * 9, "length"),
    ]
    assert len(found[0].ids) <= 9 and len(found[1].ids) <= 9
    (only,) = AfterPrefix(sampler, [[end]]).generate(prompts[:1], 1, 9, 0.0, [0])
    assert only.ids == [end]


def test_rooms_of_several_prefixes(toy):
    """Catches a row that gets the room of another: none is longer than allowed, and one that was cut says
    so."""
    model, tokenizer, sampler = toy
    prompts = [tokenizer.encode(f"{i} of 7?") for i in range(12)]
    prefixes = [tokenizer.encode("A" * i) for i in range(12)]
    found = AfterPrefix(sampler, prefixes).generate(prompts, 1, 13, 0.0, [0] * 12)
    ends = sampler.eos_ids.tolist()
    assert max(len(c.ids) for c in found) == 13
    for completion in found:
        assert completion.finish_reason == ("stop" if completion.ids[-1] in ends else "length")
        assert completion.finish_reason == "stop" or len(completion.ids) == 13


# --- the search ---------------------------------------------------------------------------------------------


def plain_search(toy, job: Job, critic, args: Args) -> list[tuple[list[int], float]]:
    """The paper's algorithm for one problem: the answers with their scores. Nothing is kept between tokens,
    gradient and Adam are written out."""
    model, _, sampler = toy
    ends, weight = sampler.eos_ids.tolist(), model.get_output_embeddings().weight.detach()  # [V, d]
    ids = plain_generate(model, job.prompt_ids, args.max_new_tokens, 0.0, 0, ends).ids
    tries = [(ids, critic(job, ids))]
    m = math.floor(args.k * len(ids))
    if m == 0:
        return tries
    row = torch.tensor([job.prompt_ids + ids])
    z = model.base_model(input_ids=row).last_hidden_state[0, len(job.prompt_ids) - 1 :][:m].clone()
    mean, square = torch.zeros_like(z), torch.zeros_like(z)
    for step in range(1, args.max_steps + 1):
        reward = tries[-1][1]
        if reward > args.threshold:
            break
        q = torch.softmax(z @ weight.T, dim=-1)
        top, a = q.max(dim=-1)
        gradient = -reward * (top / (top + 1e-8 + 1e-10))[:, None] * (weight[a] - q @ weight)
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
        corrected = mean / (1 - 0.9**step), square / (1 - 0.999**step)
        z = z - args.latent_lr * corrected[0] / (corrected[1].sqrt() + 1e-8)
        prefix = (z @ weight.T).argmax(-1).tolist()
        end = next((i for i, token in enumerate(prefix) if token in ends), None)
        if end is not None:
            ids = prefix[: end + 1]
        else:
            room = args.max_new_tokens - m
            rest = plain_generate(model, job.prompt_ids + prefix, room, 0.0, 0, ends).ids if room else []
            ids = prefix + rest
        tries.append((ids, critic(job, ids)))
    return tries


@mutant(
    "latent: the score of the greedy answer again and again",
    "papers/latent_seek.py",
    'latents[row].step(head, tries[row][-1]["reward"])',
    'latents[row].step(head, tries[row][0]["reward"])',
)
@mutant(
    "latent: the critic's threshold is enough",
    "papers/latent_seek.py",
    'if tries[row][-1]["reward"] <= args.threshold]',
    'if tries[row][-1]["reward"] < args.threshold]',
)
@mutant(
    "latent: a step more",
    "papers/latent_seek.py",
    "range(1, args.max_steps + 1)",
    "range(args.max_steps + 1)",
)
@mutant(
    "latent: the prefix of another problem",
    "papers/latent_seek.py",
    "prefixes = [latents[row].tokens(head) for row in rows]",
    "prefixes = [latents[rows[0]].tokens(head) for row in rows]",
)
@mutant(
    "latent: tokens before the update",
    "papers/latent_seek.py",
    "        self.optimizer.step()\n",
    "        pass\n",
)
def test_the_search_is_the_papers(toy):
    """Catches any other step than the paper's, and a batch that is not its problems one at a time: the
    answers and scores of every step, with a critic of several scores and one of them exactly the
    threshold."""
    model, tokenizer, _ = toy
    jobs, seen = jobs_for(tokenizer, HashTask(), 8), set()

    def level(text: str) -> float:
        return -(sum(map(ord, text)) % 5) / 4  # 0, -.25, .., -1

    def critic(job, ids):
        return level(tokenizer.decode(ids, skip_special_tokens=True))

    for flags in ({"k": 1.0, "latent_lr": 0.2}, {"threshold": -0.25}):
        lab = lab_of(toy, lambda rollout: [level(text) for text in rollout.texts], max_steps=4, **flags)
        rows = rows_of(lab, jobs)
        for job, row in zip(jobs, rows):
            expected = plain_search(toy, job, critic, lab.args)
            texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids, _ in expected]
            assert [each["completion"] for each in row["search"]] == texts
            assert [each["reward"] for each in row["search"]] == [reward for _, reward in expected]
            assert [each["tokens"] for each in row["search"]] == [len(ids) for ids, _ in expected]
            m = row["states"]
            behind = [len(expected[0][0]), *(max(0, len(ids) - m) for ids, _ in expected[1:])]
            assert [each["written"] for each in row["search"]] == behind
        seen |= {len(row["search"]) - 1 for row in rows}
        assert any(len({each["completion"] for each in row["search"]}) > 2 for row in rows)
        assert [rows_of(lab, [job])[0] for job in jobs[:2]] == rows[:2]  # sampling too
    assert len(seen) > 2 and {0, 4} <= seen, "all problems alike: choose other prompts"


def test_an_answer_too_short_to_search(toy):
    """Catches an update of no states: where k n is below 1, the greedy answer is returned, and nothing more
    is sampled."""
    lab = lab_of(toy, lambda rollout: [-1.0] * len(rollout.texts), k=0.01)
    for row in rows_of(lab, jobs_for(toy[1], HashTask(), 3)):
        assert row["states"] == 0 and len(row["search"]) == len(row["sampling"]) == 1


@mutant(
    "latent: the last of the best",
    "papers/latent_seek.py",
    "return max(range(len(rewards)),",
    "return max(range(len(rewards) - 1, -1, -1),",
)
@mutant(
    "latent: always the best",
    "papers/latent_seek.py",
    'if returned == "last":',
    "if False:",
)
def test_which_answer_is_returned(toy):
    """Catches the last answer where an earlier one was better, the later of equals, and a flag without
    effect."""
    jobs = jobs_for(toy[1], HashTask(), 4)

    def scores(values: list[float]):
        left = iter(values)
        return lambda rollout: [next(left)] * len(rollout.texts)

    values = [-1.0, -0.5, -0.5, -0.75, *[-1.0] * 100]
    for returned, place in (("best", 1), ("last", 3)):
        lab = lab_of(toy, scores(values), max_steps=3, returned=returned)
        for row in rows_of(lab, jobs):
            assert len(row["search"]) == 4
            assert row["completion"] == row["search"][place]["completion"]
            assert row["reward"] == values[place]


# --- samples of as many tokens ------------------------------------------------------------------------------


@mutant("latent: a sample that does not fit", "papers/latent_seek.py", "if left[row] >= 0:", "if True:")
@mutant(
    "latent: the greedy answer is free",
    "papers/latent_seek.py",
    'budget - answer["written"] for budget',
    "budget for budget",
)
@mutant(
    "latent: the same sample again",
    "papers/latent_seek.py",
    "lab.args.temperature, number)",
    "lab.args.temperature, 1)",
)
@mutant(
    "latent: samples beyond a right one",
    "papers/latent_seek.py",
    'left[row] > 0 and tries[row][-1]["reward"] <= lab.args.threshold',
    "left[row] > 0",
)
def test_samples_get_as_many_tokens_and_no_more(toy):
    """Catches a comparison at unequal tokens, samples that are all the same, and sampling that goes on after
    a success."""
    model, tokenizer, sampler = toy
    sampler = HFSampler(model, sampler.eos_ids.tolist()[:6])  # longer answers
    lab = lab_of((model, tokenizer, sampler), by_the_answer, k=0.2, latent_lr=0.1)
    jobs = jobs_for(tokenizer, HashTask(), 10)
    rows = rows_of(lab, jobs)
    ends, several, stopped = sampler.eos_ids.tolist(), 0, 0
    for job, row in zip(jobs, rows):
        steps, samples = row["search"], row["sampling"]
        assert samples[0] == steps[0]
        budget, used = latent_seek.written(steps), 0
        rewards = [each["reward"] for each in samples]
        assert all(reward == -1 for reward in rewards[:-1])
        for number in range(200):  # by hand: draw until one is right, or does not fit
            seed = lab.seed(job, number)
            settings = (job.prompt_ids, lab.args.max_new_tokens, float(number > 0), seed, ends)
            ids = plain_generate(model, *settings).ids
            used += len(ids)
            if used > budget:
                break
            text = tokenizer.decode(ids, skip_special_tokens=True)
            assert samples[number]["completion"] == text and samples[number]["written"] == len(ids)
            if samples[number]["correct"]:
                stopped += number > 0
                break
            if used == budget:
                number += 1
                break
        else:
            pytest.fail("never at an end")
        assert len(samples) == number + samples[-1]["correct"]
        several += len(samples) > 2
    assert several > 2 and stopped > 1, "nothing to see: choose other prompts"


# --- critics ------------------------------------------------------------------------------------------------


def rollout_of(texts: list[str], parsed: list[str | None], right: list[bool], completions=None) -> Rollout:
    problems = [Problem(f"question {i}", "3") for i in range(len(texts))]
    grades = [Grade(ok, float(ok), each, "") for ok, each in zip(right, parsed)]
    completions = completions or [Completion([1], [0.0], "stop")] * len(texts)
    return Rollout(problems, [[2, 3 + i] for i in range(len(texts))], completions, texts, grades)


def test_the_oracle():
    """Catches a critic that is not the task's grader: 0 for a right answer, -1 for any other."""
    assert by_the_answer(rollout_of(["a", "b"], ["3", None], [True, False])) == [0.0, -1.0]


@mutant(
    "latent: a sum of log-probabilities",
    "papers/latent_seek.py",
    "(logprobs.sum(dim=1) / lengths)",
    "logprobs.sum(dim=1)",
)
def test_the_models_own_probability(toy):
    """Catches a sum instead of a mean, padding that is counted, and another temperature than 1."""
    model, *_ = toy
    ids = [[9, 40, 41, 7], [60], [61, 8]]
    rollout = rollout_of(
        ["", "", ""], [None] * 3, [False] * 3, [Completion(i, [0.0] * len(i), "") for i in ids]
    )
    for found, prompt, row in zip(by_logprob(model, rollout), rollout.prompt_ids, ids):
        logits = model(input_ids=torch.tensor([prompt + row])).logits[0, len(prompt) - 1 : -1]
        logprobs = torch.log_softmax(logits, -1).gather(1, torch.tensor(row)[:, None])
        assert found == pytest.approx(logprobs.mean().item(), rel=1e-9)


@mutant(
    "latent: no answer is asked about",
    "papers/latent_seek.py",
    "is not None and next(verdicts) else",
    "is None or next(verdicts) else",
)
def test_the_verifier(toy):
    """Catches a verdict of another answer, a question about no answer, and silence that is a yes."""

    def say(prompt: str) -> str:
        answer = prompt.rpartition("=>")[2].partition("?")[0]
        return {"3": "Final Decision: Yes", "9": "well"}.get(answer, "Final Decision: No")

    verifier = Verifier(Asked(toy[1], say), toy[1], "{question} {reference}=>{answer}?", 40)
    rollout = rollout_of([""] * 5, ["3", None, "4", "9", "3"], [True] * 5)
    assert by_verifier(verifier, rollout) == [0.0, -1.0, -1.0, -1.0, 0.0]
    assert verifier.sampler.prompts[0].count("question 0 3=>3?") == 1


@mutant(
    "latent: silence is no refusal",
    "papers/latent_seek.py",
    "next(verdicts) is not True]",
    "next(verdicts) is False]",
)
def test_the_judge(toy):
    """Catches points of another answer, one that is not asked, silence that passes, and an answer that cannot
    be read and is not punished."""

    def say(prompt: str) -> str:
        if "calculation" in prompt and "Answer: bad" in prompt:
            return "Final Decision: No"
        return "hm" if "understood" in prompt and "Answer: odd" in prompt else "Final Decision: Yes"

    judge = Verifier(Asked(toy[1], say), toy[1], latent_seek.JUDGE_PROMPT, 40)
    rollout = rollout_of(["fine", "bad", "odd", "fine\n<|end|>again"], ["3", "3", "3", None], [False] * 4)
    assert by_judge(judge, rollout) == pytest.approx([0, -2 / 6, -1 / 6, -2 / 6])
    assert len(judge.sampler.prompts) == 16 and "Answer: fine again" in judge.sampler.prompts[-1]


def test_critics_by_their_flag(toy, toy_model):
    """Catches a critic under another's name, and one whose settings nobody keeps."""
    model, tokenizer, sampler = toy
    assert latent_seek.critic_of(Args(critic="oracle"), *toy) == (by_the_answer, {})
    own, about = latent_seek.critic_of(Args(critic="self"), *toy)
    assert own.func is by_logprob and own.args == (model,) and about == {}
    judge, about = latent_seek.critic_of(Args(critic="judge", verifier_tokens=5), *toy)
    assert judge.func is by_judge and judge.args[0].template == latent_seek.JUDGE_PROMPT
    assert judge.args[0].sampler is sampler and about == {"verifier_tokens": 5}
    flags = dict(critic="verifier", verifier=toy_model, verifier_tokens=8)
    verifier, about = latent_seek.critic_of(Args(**flags), *toy)
    assert verifier.func is by_verifier and len(about["verifier_hash"]) == 16
    assert about["verifier_prompt"] == verifier.args[0].template


# --- the command --------------------------------------------------------------------------------------------

QUICK = dict(task="chain?horizon=1", problems=8, k=0.5, latent_lr=0.4, max_steps=3, max_new_tokens=8)
QUICK |= dict(critic="self", rows_at_once=3)


@pytest.fixture
def seek(toy_model, tmp_path, monkeypatch):
    """seek(name, **flags) -> the folder of a quick search without a picture and a page."""
    monkeypatch.setattr(latent_seek.curves, "plot_bands", lambda *given: None)
    monkeypatch.setattr(latent_seek, "write_report", lambda *given: None)
    monkeypatch.setattr(metrics.intervals, "__defaults__", (100, 0))  # draws of a bootstrap

    def function(name="out", **changes):
        latent_seek.main(Args(model=toy_model, out_dir=tmp_path / name, **QUICK | changes))
        return tmp_path / name

    return function


FILES = [f"{folder}{name}.json" for folder in ("", "greedy/", "sampling/") for name in ("results", "config")]
FILES += ["samples.jsonl", "greedy/samples.jsonl", "sampling/samples.jsonl"]


@mutant(
    "latent: nothing is kept on the way",
    "papers/latent_seek.py",
    "        append_or_fail(path, new)\n",
    "        append_or_fail(path, new) if len(new) == size else None\n",
)
@mutant(
    "latent: begun again from the first batch",
    "papers/latent_seek.py",
    "batches[math.ceil(len(rows) / size) :]",
    "batches[len(rows) // size - (len(rows) > 3) :]",
)
def test_a_search_that_was_killed_goes_on(seek, tmp_path, monkeypatch):
    """Catches half a batch that is counted, work that is done twice, and numbers that depend on where one
    stopped: all files are the same to the last byte."""
    whole = seek("whole")
    text = (whole / "samples.jsonl").read_text()
    lines = text.splitlines(keepends=True)
    assert len(lines) == 8
    work_on, sizes = latent_seek.work_on, []
    monkeypatch.setattr(
        latent_seek, "work_on", lambda lab, jobs, how: sizes.append(len(jobs)) or work_on(lab, jobs, how)
    )
    for i, (kept, done) in enumerate((("".join(lines[:4]) + lines[4][:30], [3, 2]), (text, []))):
        sizes.clear()
        folder = tmp_path / str(i)
        folder.mkdir()
        (folder / "config.json").write_bytes((whole / "config.json").read_bytes())
        (folder / "samples.jsonl").write_text(kept)
        seek(str(i), resume=i == 0)
        assert sizes == done
        for name in FILES:
            assert (folder / name).read_bytes() == (whole / name).read_bytes(), name
    with pytest.raises(SystemExit, match="error: --out-dir .*whole: k was 0.5 and is now 0.4; choose"):
        seek("whole", k=0.4)
    with pytest.raises(SystemExit, match="error: --resume: there is no search in --out-dir .*nowhere; leave"):
        seek("nowhere", resume=True)
    assert not (tmp_path / "nowhere").exists()


def test_a_batch_is_its_problems(seek, monkeypatch):
    """Catches numbers that depend on --rows-at-once."""
    monkeypatch.setattr("transformers.AutoModelForCausalLM", Float64)
    found = []
    for rows in (1, 8):
        folder = seek(str(rows), rows_at_once=rows, task="chain?horizon=1-2", problems=2)
        lines = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
        for line in lines:
            for answer in (line, *line["search"], *line["sampling"]):
                answer["reward"] = (
                    pytest.approx(answer["reward"], rel=1e-9) if rows == 1 else answer["reward"]
                )
        found.append(lines)
    assert found[0] == found[1]


def a_row(index: int, right: list[bool], samples: list[bool]) -> dict:
    """A row of samples.jsonl: the answers of the search and of sampling, of ten tokens each."""

    def answer(ok: bool) -> dict:
        verdict = {"parsed": "1", "vote": "1", "correct": ok, "score": float(ok), "why": "", "tokens": 10}
        more = {"finish_reason": "stop", "reward": ok - 1.0, "written": 10, "completion": str(ok)}
        return verdict | more

    tries = {"search": [answer(ok) for ok in right], "sampling": [answer(ok) for ok in samples]}
    return {"index": index, "horizon": 1, "source": "here"} | tries


def settings_by_hand() -> dict:
    words = {name: "t" for name in ("model", "task", "split", "problems_hash", "grader", "sampler")}
    numbers = {"samples": 1, "problems": 40, "temperature": 1.0, "top_p": 1.0, "max_new_tokens": 8}
    return words | numbers | {"returned": "best", "hint": False, "sampling_temperature": 1.0}


@mutant(
    "latent: greedy is the search",
    "papers/latent_seek.py",
    'return row["search"][0], row["search"][:1]',
    'return row["search"][-1], row["search"][:1]',
)
@mutant(
    "latent: wrong to right turned round",
    "papers/latent_seek.py",
    "sum(a == before != b for",
    "sum(b == before != a for",
)
def test_the_table_by_hand(capsys):
    """Catches methods, directions or tokens that are mixed up: of 40 problems greedy has 10 right, the search
    turns 12 and the samples 20 of the others, and with --returned last two get lost."""
    rows = [a_row(i, [True], [True]) for i in range(10)]
    rows += [a_row(i, [False, False, True], [False, True]) for i in range(10, 22)]
    rows += [a_row(i, [False] * 4, [False, True]) for i in range(22, 30)]
    rows += [a_row(i, [False] * 4, [False] * 3) for i in range(30, 40)]
    settings = settings_by_hand()
    found = {method: latent_seek.evaluation(rows, method, settings) for method in latent_seek.METHODS}
    table = latent_seek.method_table(found)
    cells = {line[0]: line[1:] for line in table.lines}
    assert [line[0][:5] for line in cells.values()] == ["0.250", "0.550", "0.750"]
    assert [line[1][:6] for line in cells.values()] == ["", "+0.300", "+0.500"]
    assert [line[2:4] for line in cells.values()] == [["0", "0"], ["12", "0"], ["20", "0"]]
    answers = [1, (10 + 36 + 72) / 40, (10 + 40 + 30) / 40]
    shown = [[f"{number:.1f}" for number in (each, 10 * each)] for each in answers]
    assert [line[4:] for line in cells.values()] == shown
    assert "paired by problem: -0.200 [" in table.about[0]
    lost = [a_row(i, [True, False], [True]) for i in range(2)] + rows[2:]
    last = {method: latent_seek.evaluation(lost, method, settings | {"returned": "last"}) for method in found}
    cells = {line[0]: line[1:] for line in latent_seek.method_table(last).lines}
    assert cells["the search"][2:4] == ["12", "2"] and cells["best of plain samples"][2:4] == ["20", "0"]


def test_the_picture_goes_step_by_step(tmp_path, monkeypatch):
    """Catches a curve of other answers than those up to a step, and tokens of one answer alone."""
    drawn = []
    monkeypatch.setattr(latent_seek.curves, "plot_bands", lambda lines, *given: drawn.append(lines))
    rows = [a_row(i, [False, i < 5, i < 5], [i < 2, True][: 1 + (i >= 2)]) for i in range(20)]
    for row in rows[:5]:
        del row["search"][2:]
    latent_seek.plot(rows, settings_by_hand() | {"critic": "oracle"}, tmp_path / "x.png")
    tokens, right, low, high = drawn[0]["the search"]
    assert tokens == [10, 20, 10 * (2 * 5 + 3 * 15) / 20] and right == [0, 0.25, 0.25]
    assert all(a <= b <= c for a, b, c in zip(low, right, high))
    tokens, right, *_ = drawn[0]["best of plain samples"]
    assert tokens == [10, 10 * (2 + 2 * 18) / 20] and right == [0.1, 1.0]


@mutant(
    "latent: greedy answers at the samples' temperature",
    "papers/latent_seek.py",
    '    if method == "sampling":',
    "    if True:",
)
def test_the_folders_are_evaluations(seek):
    """Catches files that eval.py and the report cannot read, or that say another temperature than the
    answers had."""
    folder = seek()
    folders = [folder / "greedy", folder, folder / "sampling"]
    results = [eval_py.read_results(each, "--baseline") for each in folders]
    assert [each["settings"]["temperature"] for each in results] == [0.0, 0.0, 1.0]
    assert [each["settings"]["method"] for each in results] == [*latent_seek.METHODS]
    eval_py.check_comparable(results[0]["settings"], results[1]["settings"])
    page = make_page(folders)
    assert not page["notes"] and len(page["runs"]) == 3
    for each, method in zip(folders, latent_seek.METHODS):
        lines = [json.loads(line) for line in (each / "samples.jsonl").read_text().splitlines()]
        whole = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
        for line, row in zip(lines, whole):
            answer, _ = latent_seek.answer_of(row, method, "best")
            assert {name: line[name] for name in answer} == answer


def test_a_picture_and_a_page_at_the_end(toy_model, tmp_path, capsys):
    """Catches a search that ends without them."""
    flags = QUICK | {"problems": 3}
    latent_seek.main(Args(model=toy_model, out_dir=tmp_path / "out", **flags))
    assert (tmp_path / "out/right_over_tokens.png").stat().st_size > 5000
    assert "best of plain samples" in capsys.readouterr().out
    assert (tmp_path / "out/report.html").stat().st_size > 10_000


@mutant(
    "latent: self stops at the other critics' threshold",
    "papers/latent_seek.py",
    '0.0 if args.critic == "self" else -0.2',
    "-0.2",
)
def test_flags(toy_model, monkeypatch):
    """Catches a traceback, work that begins with flags that cannot work, and a threshold of another
    critic."""
    for critic, threshold in (("oracle", -0.2), ("self", 0.0), ("judge", -0.2)):
        args = Args(model=toy_model, critic=critic)
        latent_seek.check_args(args)
        assert args.threshold == threshold
    given = Args(model=toy_model, critic="self", threshold=-0.5)
    latent_seek.check_args(given)
    assert given.threshold == -0.5
    for flags, said in (
        ({"verifier": toy_model}, "--verifier: is asked by --critic verifier, and here it is oracle"),
        ({"k": 0.0}, "--k 0.0: must be above 0"),
        ({"latent_lr": 0.0}, "--latent-lr 0.0: must be above 0"),
        ({"max_steps": 0}, "--max-steps 0: must be at least 1"),
        ({"task": "nothing"}, "--task nothing: unknown"),
    ):
        with pytest.raises(SystemExit, match=f"^error: {said}"):
            latent_seek.main(Args(model=toy_model, **flags))
    monkeypatch.setattr(ranks, "WORLD_SIZE", 2)
    with pytest.raises(SystemExit, match="^error: papers/latent_seek.py runs in one process"):
        latent_seek.main(Args(model=toy_model))


def test_the_default_verifier_is_made_first(toy_model, tmp_path, monkeypatch):
    """Catches a folder that is looked for at the hub."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="is not there yet; `python sft.py --task verdicts"):
        latent_seek.main(Args(model=toy_model, critic="verifier"))
    assert not [*tmp_path.iterdir()]


@mutant(
    "latent: the first problems again",
    "plainrl/horizons.py",
    "range(first, last if",
    "range(0, last - first if",
)
def test_which_problems(toy, tmp_path):
    """Catches the first problems where others are asked for, more than there are, and no word where there are
    none."""
    _, tokenizer, _ = toy
    rows = [json.dumps({"prompt": f"{i}?", "answer": str(i)}) for i in range(12)]
    (tmp_path / "x.jsonl").write_text("\n".join(rows))

    def chosen(**flags) -> list[str]:
        args = Args(task=f"jsonl:{tmp_path / 'x.jsonl'}", split="all", **flags)
        jobs = latent_seek.jobs_of(latent_seek.each_horizon(args.task), args, tokenizer)
        return sorted(job.problem.answer for job in jobs)

    all_of_them = chosen()
    assert len(all_of_them) == 12 and len(chosen(first_problem=7)) == 5 and len(chosen(problems=50)) == 12
    parts = [chosen(first_problem=first, problems=4) for first in (0, 4, 8)]
    assert sorted(sum(parts, [])) == all_of_them
    with pytest.raises(SystemExit, match="^error: --first-problem 12: --task .* has fewer; give a lower one"):
        chosen(first_problem=12)


def test_seeds_are_a_problems_own(toy):
    """Catches problems, samples or models that share random numbers."""
    lab = lab_of(toy, by_the_answer)
    jobs = jobs_for(toy[1], FunctionTask(lambda *_: 0), 3)
    other = replace(lab, stream=78)
    seeds = {each.seed(job, number) for each in (lab, other) for job in jobs for number in range(4)}
    assert len(seeds) == 24


# --- the experiment -----------------------------------------------------------------------------------------


@mutant(
    "latent: greedy under the samples' name",
    "benchmarks/latent_seek.py",
    '"sampling": "sampling"}',
    '"sampling": "greedy"}',
)
@mutant(
    "recipes: a model where there is none",
    "benchmarks/recipes.py",
    "        if experiment.counts:\n",
    "        if False:\n",
)
def test_the_experiment_reads_what_the_search_wrote(tmp_path, monkeypatch):
    """Catches counts of another method or task, trials of test problems, seeds that share problems, and a
    table without what the arms are compared in."""
    commands = []

    def run(command: str, made) -> None:
        commands.append(command)
        longer = "horizon=3" in command
        rows = [a_row(i, [False, i < 3, longer][: 2 + longer], [False, i < 6]) for i in range(8)]
        for method, place in experiment.METHODS.items():
            (made / place).mkdir(parents=True, exist_ok=True)
            found = latent_seek.evaluation(rows, method, settings_by_hand())
            (made / place / "results.json").write_text(json.dumps(found))
        (made / "config.json").write_text("{}")

    monkeypatch.setattr(recipes, "run", run)
    monkeypatch.setattr(metrics.intervals, "__defaults__", (100, 0))
    chosen = dict.fromkeys(("oracle", "random"), experiment.GRID[0])
    small = replace(experiment.EXPERIMENT, materials={}, chosen=chosen)
    args = recipes.Args(out=tmp_path / "out", scratch=tmp_path / "scratch", only=("oracle", "random"), one=3)
    recipes.main(small, args)
    assert len(commands) == 4 and all(
        "--split test --problems 200 --first-problem 3000 " in c for c in commands
    )
    assert all(c.count(experiment.GRID[0]) == 1 for c in commands)
    counts = recipes.read(args.out / "oracle/seed3/test.json")
    short, long = (counts[task] for task in experiment.TASKS)
    assert short["correct"] == [1, 1, 1, 0, 0, 0, 0, 0] and long["correct"] == [1] * 8
    assert short["more"] == {
        "greedy": 0,
        "sampling": 0.75,
        "search less greedy": 0.375,
        "search less sampling": -0.375,
        "tokens of search": 20,
        "tokens of sampling": 20,
    }
    assert long["more"]["search less sampling"] == 0.25 and long["more"]["tokens of search"] == 30
    title, _, first, second = recipes.report(small, args.out)["chain?horizon=2"].split("\n")
    assert "| avg@1 | unparsed | greedy | search less greedy | sampling |" in title
    assert first.startswith(
        "| search by the task's grade | 1 | 0.375 | 0.000 | 0.000 | 0.375 | 0.750 | -0.375 |"
    )
    recipes.main(small, replace(args, trials=True, only=("random",), one=100))
    assert len(commands) == 4 + 2 * len(experiment.GRID) and not (args.out / "before").exists()
    assert "--split dev --problems 200 --first-problem 100000 " in commands[-1]
