"""papers/quiet_star.py: mask, mixing, rewards and losses by hand, all thoughts at once against one at a time,
texts, and a run from beginning to end with what it leaves behind."""

import dataclasses
import itertools
import json
import shutil
from pathlib import Path

import kit
import pytest
import test_sft
import torch
import toys
from mutants import mutant
from random_model import distance, gradient, random_model
from safetensors.torch import load_file
from test_sft import row
from transformers import AutoTokenizer

import eval as evaluation
from benchmarks import quiet_star as benchmark, recipes
from papers import quiet_star
from plainrl import added, models, rows
from plainrl.rollout import pad
from plainrl.rows import batch_of

nll = torch.nn.functional.cross_entropy


# --- by hand ------------------------------------------------------------------------------------------------


def test_mask_by_hand():
    """Catches a thought that reads another's, or a text beyond its place: three places, two blocks."""
    mask = quiet_star.diagonal_mask(3, 2).int().tolist()
    assert mask == [[1, 0, 0, 1, 0, 0, 1, 0, 0], [1, 1, 0, 0, 1, 0, 0, 1, 0], [1, 1, 1, 0, 0, 1, 0, 0, 1]]
    assert quiet_star.diagonal_mask(2, 0).int().tolist() == [[1, 0], [1, 1]]


@mutant(
    "quiet: mixing the other way",
    "papers/quiet_star.py",
    "(1 - weight) * hidden + weight * after",
    "weight * hidden + (1 - weight) * after",
)
@mutant(
    "quiet: thought on top",
    "papers/quiet_star.py",
    "(1 - weight) * hidden + weight * after",
    "hidden + weight * after",
)
@pytest.mark.parametrize(
    "weight, expected",
    [
        (0.0, [0.861995, 1.861995, 0.861995]),
        (0.25, [1.061449, 1.561449, 0.811449]),
        (1.0, [1.861995, 0.861995, 0.861995]),
    ],
)
def test_mixing_by_hand(weight, expected):
    """Catches a weight that is squashed, or is the other side's. h = (1, 0), u = (0, 1), a head of three
    tokens: at w = 0 the logits are 1, 0 and 1."""
    head = torch.tensor([[1.0, 0], [0, 1], [1, 1]])
    mixed = quiet_star.mix(torch.tensor([1.0, 0]), torch.tensor([0.0, 1]), torch.tensor([weight]))
    found = [nll(head @ mixed, torch.tensor(token)).item() for token in range(3)]
    assert found == pytest.approx(expected, abs=1e-6)


REWARDS = torch.tensor([[[0.2, -0.1, 0.5], [0.0, 0.3, 0.5]]])  # one text, two passes, three places


@mutant(
    "quiet: rewards below the mean count",
    "papers/quiet_star.py",
    "keepdim=True)).clamp(min=0)",
    "keepdim=True))",
)
@mutant(
    "quiet: mean over places",
    "papers/quiet_star.py",
    "rewards.mean(dim=1, keepdim=True)",
    "rewards.mean(dim=2, keepdim=True)",
)
@mutant(
    "quiet: no mean over passes",
    "papers/quiet_star.py",
    "rewards - rewards.mean(dim=1, keepdim=True)",
    "rewards",
)
@mutant(
    "quiet: sign of the thoughts' loss",
    "papers/quiet_star.py",
    "return -advantages * logprobs",
    "return advantages * logprobs",
)
def test_advantages_and_losses_of_thoughts_by_hand():
    """Catches a sign, a missing clamp and another mean. The means over passes are .1, .1, .5. Losses of the
    first tokens are .1 * 1 and .2 * 1.5, of the second ones .1 and .2, in six places."""
    A = quiet_star.advantages(REWARDS)
    assert A[0].flatten().tolist() == pytest.approx([0.1, 0, 0, 0, 0.2, 0], abs=1e-6)
    logprobs = torch.tensor([[[-1.0, -2, -1], [-1, -1.5, -1]]])
    first, second = (
        quiet_star.thought_losses(each, A).mean().item() for each in (logprobs, -torch.ones(1, 2, 3))
    )
    assert (first, second) == pytest.approx((0.066667, 0.05), abs=1e-6)
    assert 1e6 * (first + second) / 2 == pytest.approx(58333.3, abs=0.1)


@mutant("quiet: rewards of one token", "papers/quiet_star.py", "for s in range(K)]\n", "for s in range(1)]\n")
@mutant(
    "quiet: base of the same place for all",
    "papers/quiet_star.py",
    "base[:, None, s : s + places]",
    "base[:, None, :places]",
)
@mutant(
    "quiet: rewards of what gets worse",
    "papers/quiet_star.py",
    "base[:, None, s : s + places] - mixed[s][..., :places]",
    "mixed[s][..., :places] - base[:, None, s : s + places]",
)
@mutant(
    "quiet: a gradient through rewards",
    "papers/quiet_star.py",
    "return sum(gains).detach()",
    "return sum(gains)",
)
def test_rewards_by_hand():
    """Catches a shift: L = 5, K = 2. Place 0 has (1 - .5) + (2 - 3), place 1 has (2 - 1) + (4 - 1), and so
    on."""
    base = torch.tensor([[1.0, 2, 4, 8]])
    mixed = [torch.tensor([[[0.5, 1, 4, 0]]], requires_grad=True), torch.tensor([[[3.0, 1, 0]]])]
    found = quiet_star.rewards(base, mixed)
    assert found.tolist() == [[[-0.5, 4.0]]] and not found.requires_grad


# --- all at once, and one at a time -------------------------------------------------------------------------


def thinking_model(m: int, moved: bool = True):
    """A random model in float64 with thoughts; `moved`: its gate has learned something."""
    model = random_model()
    torch.manual_seed(1)
    thoughts = quiet_star.Thoughts(0.25 * torch.randn(32), 32, m)
    if moved:
        torch.nn.init.normal_(thoughts.gate[-1].weight, std=0.5)
        thoughts.end.data += 0.003 * torch.randn(32)
    added.add(model, "thoughts", thoughts)
    return model


def some_texts(*lengths: int) -> list:
    generator = torch.Generator().manual_seed(3)
    draw = lambda count: torch.randint(0, 64, (count,), generator=generator).tolist()  # noqa: E731
    return [row(draw(1), draw(length - 1)) for length in lengths]


def batch_for(texts: list):
    batch = batch_of(texts, "cpu")
    batch["place"] = torch.arange(len(texts))[:, None]
    return batch


def make_args(**flags) -> quiet_star.Args:
    return quiet_star.Args(**{"thought": 3, "ahead": 2, "beta": 2.0, "micro_batch_tokens": 10**6} | flags)


def update(model, texts: list, **flags):
    model.zero_grad()
    args = make_args(**flags)
    sums, thoughts = quiet_star.accumulate_gradients(model, batch_for(texts), args, 4)
    return sums, gradient(model), thoughts


def written_out(model, ids: list[int], thoughts: list, K: int) -> dict:
    """Every sequence by itself, through the plain model: {name: {(pass, place, ...): number}}.

    thoughts[p][t] are the tokens of pass p about place t.
    """
    embed, head, own = model.get_input_embeddings(), model.get_output_embeddings(), model.thoughts
    vectors = embed(torch.tensor(ids))
    run = lambda inputs: model.base_model(inputs_embeds=inputs[None]).last_hidden_state[0]  # noqa: E731
    plain = run(vectors)
    found = {name: {} for name in ("b", "q", "w", "logprob", "right")}
    for t in range(len(ids) - 1):
        found["b"][t] = nll(head(plain[t]), torch.tensor(ids[t + 1]))
        for p, of_pass in enumerate(thoughts):
            drawn = of_pass[t]
            middle = [
                100 * own.start[None],
                embed(torch.tensor(drawn, dtype=torch.long)),
                100 * own.end[None],
            ]
            hidden = run(torch.cat([vectors[: t + 1], *middle, vectors[t + 1 : t + K]]))
            for j, token in enumerate(drawn):
                logits = head(hidden[t + 1 + j]) / 3
                found["logprob"][p, t, j] = torch.log_softmax(logits, -1)[token]
            for s in range(K):
                if t + s + 1 < len(ids):
                    h, u = plain[t + s], hidden[t + len(drawn) + 2 + s]
                    w = own.gate(torch.cat([h, u]))
                    logits = head((1 - w) * h + w * u)
                    found["q"][p, t, s] = nll(logits, torch.tensor(ids[t + s + 1]))
                    if s == 0:
                        found["w"][p, t] = w.item()
                        found["right"][p, t] = logits.argmax().item() == ids[t + 1]
    return found


def loss_by_loops(found: list[dict], lengths: list[int], args) -> tuple[torch.Tensor, dict]:
    """The loss of a step from what `written_out` says of each text, and numbers for the log."""
    P, K, m = args.passes, args.ahead, args.thought
    b = [value for each in found for value in each["b"].values()]
    loss = sum(b) / len(b) / 2
    for s in range(K):
        q = [value for each in found for key, value in each["q"].items() if key[2] == s]
        loss = loss + sum(q) / len(q) / 2 / K
    rewards, terms, advantages = [], [], []
    for each, length in zip(found, lengths):
        for t in range(length - 1 - K):
            r = [sum(each["b"][t + s].item() - each["q"][p, t, s].item() for s in range(K)) for p in range(P)]
            rewards += r
            A = [max(0.0, value - sum(r) / P) for value in r]
            advantages += A
            terms += [(A[p], [each["logprob"][p, t, j] for j in range(m)]) for p in range(P)]
    spread = torch.tensor(advantages).std(correction=0).item() if args.normalise else 1.0
    for A, logprobs in terms:
        for logprob in logprobs:
            loss = loss - args.beta * A / spread * logprob / m / len(terms)
    first = [value.item() for each in found for key, value in each["q"].items() if key[2] == 0]
    return loss, {
        "base": sum(b).item(),
        "mixed": sum(first) / P,
        "gate": sum(value for each in found for value in each["w"].values()) / P,
        "reward": sum(rewards) / P,
        "positive": sum(value > 0 for value in rewards) / P,
        "rewarded": len(rewards) / P,
        "right": sum(value for each in found for (p, _), value in each["right"].items() if p == 0),
    }


def drawn_thoughts(model, texts: list, args) -> list:
    """[text][pass][place] -> the tokens that accumulate_gradients draws in step 4."""
    batch = batch_for(texts)
    tokens = quiet_star.losses_of(model, batch, args, 4).thinking.tokens.unflatten(
        0, (len(texts), args.passes)
    )
    return [[each.T.tolist() for each in of_text] for of_text in tokens]


@mutant(
    "quiet: places of blocks",
    "papers/quiet_star.py",
    "device=embeddings.device) + blocks",
    "device=embeddings.device)",
    case="False-3-2-2",
)
@mutant(
    "quiet: blocks that see the whole text",
    "papers/quiet_star.py",
    "torch.ones(length, length, dtype=torch.bool).tril()",
    "torch.ones(length, length, dtype=torch.bool)",
    case="False-3-2-2",
)
@mutant(
    "quiet: blocks that see all of a block",
    "papers/quiet_star.py",
    "[causal] + [own_column] * blocks",
    "[causal] + [causal] * blocks",
    case="False-3-2-2",
)
@mutant(
    "quiet: S and E as they are kept",
    "papers/quiet_star.py",
    "lambda embedding: (LARGER * embedding).expand(rows, ids",
    "lambda embedding: embedding.expand(rows, ids",
    case="False-3-2-2",
)
@mutant(
    "quiet: no E",
    "papers/quiet_star.py",
    "[run_block(model, everywhere(thoughts.end), cache)]",
    "[run_block(model, everywhere(thoughts.start), cache)]",
    case="False-3-2-2",
)
@mutant(
    "quiet: true tokens that stay", "papers/quiet_star.py", "ids.roll(-s, dims=1)", "ids", case="False-3-2-2"
)
@mutant(
    "quiet: last token of a thought not read",
    "papers/quiet_star.py",
    "    run_block(model, inputs, cache)\n    after",
    "    after",
    case="False-3-2-2",
)
@mutant(
    "quiet: h of the same place for all",
    "papers/quiet_star.py",
    "thinking.hidden[:, s:-1]",
    "thinking.hidden[:, : L - 1 - s]",
    case="False-3-2-2",
)
@mutant(
    "quiet: targets of the next token for all",
    "papers/quiet_star.py",
    "targets = ids[:, s + 1 :]",
    "targets = ids[:, 1 : L - s]",
    case="False-3-2-2",
)
@mutant(
    "quiet: scored at 1", "papers/quiet_star.py", "SCORED_AT = 3.0", "SCORED_AT = 1.0", case="False-3-2-2"
)
@mutant(
    "quiet: text's loss without its half",
    "papers/quiet_star.py",
    ".sum() / places[0] / 2",
    ".sum() / places[0]",
    case="False-3-2-2",
)
@mutant(
    "quiet: sum over what is ahead",
    "papers/quiet_star.py",
    "(P * places[s]) / (2 * K)",
    "(P * places[s]) / 2",
    case="False-3-2-2",
)
@mutant(
    "quiet: sum over passes",
    "papers/quiet_star.py",
    "(P * places[s]) / (2 * K)",
    "places[s] / (2 * K)",
    case="False-3-2-2",
)
@mutant(
    "quiet: every s over as many places",
    "papers/quiet_star.py",
    "(P * places[s]) / (2 * K)",
    "(P * places[0]) / (2 * K)",
    case="False-3-2-2",
)
@mutant(
    "quiet: sum over the tokens of a thought",
    "papers/quiet_star.py",
    "/ (P * places[K]) / args.thought",
    "/ (P * places[K])",
    case="False-3-2-2",
)
@mutant(
    "quiet: rewards at the end of shorter texts",
    "papers/quiet_star.py",
    "rewards(numbers.base, numbers.mixed) * rewarded",
    "rewards(numbers.base, numbers.mixed)",
    case="False-3-2-2",
)
@mutant(
    "quiet: losses of padding",
    "papers/quiet_star.py",
    "(mixed * real[:, None, s:]).sum()",
    "mixed.sum()",
    case="False-3-2-2",
)
@mutant(
    "quiet: no beta",
    "papers/quiet_star.py",
    "text_loss + args.beta * thought_loss",
    "text_loss + thought_loss",
    case="False-3-2-2",
)
@mutant(
    "quiet: gate of the thought alone",
    "papers/quiet_star.py",
    "torch.cat([hidden, after], dim=-1)",
    "torch.cat([after, after], dim=-1)",
    case="False-3-2-2",
)
@mutant(
    "quiet: advantages as they are",
    "papers/quiet_star.py",
    "advantages(r) / (spread or 1.0)",
    "advantages(r)",
    case="True-2-1-3",
)
@mutant(
    "quiet: spread with padding",
    "papers/quiet_star.py",
    'found.append(A.movedim(1, 2)[part["completion_mask"][:, args.ahead :]])',
    "found.append(A.flatten())",
    case="True-2-1-3",
)
@mutant(
    "quiet: log-probabilities of another token",
    "papers/quiet_star.py",
    "drawn = numbers.thinking.tokens[:, j, ",
    "drawn = numbers.thinking.tokens[:, 0, ",
    case="False-3-2-2",
)
@pytest.mark.parametrize(
    "normalise, m, K, P", [(False, 3, 2, 2), (True, 2, 1, 3), (False, 0, 3, 1)], ids=lambda value: str(value)
)
def test_all_thoughts_at_once_are_one_thought_at_a_time(normalise, m, K, P):
    """Catches a mask, a position, a shift, a denominator and a detach: loss and gradient are those of every
    sequence written out, however the step is split, with texts of three lengths in one."""
    texts, flags = some_texts(9, 5, 7), dict(thought=m, ahead=K, passes=P, normalise=normalise)
    args = make_args(**flags)
    with kit.numbers(torch.float64):
        model = thinking_model(m)
        sums, ours, shown = update(model, texts, **flags)
        others = [update(model, texts, **flags, micro_batch_tokens=n) for n in (1, 16 * args.runs_of_a_token)]
        thoughts = drawn_thoughts(model, texts, args)
        model.zero_grad()
        ids = [[*each.prompt_ids, *each.completion_ids] for each in texts]
        found = [written_out(model, *each, K) for each in zip(ids, thoughts)]
        loss, numbers = loss_by_loops(found, [9, 5, 7], args)
        loss.backward()
        theirs = gradient(model)
    assert shown.T.tolist() == thoughts[0][0]
    for sums_of_one, gradient_of_one in [(sums, ours), *(each[:2] for each in others)]:
        assert sums_of_one["total_loss"] == pytest.approx(loss.item(), rel=1e-10)
        assert distance(gradient_of_one, theirs) <= 1e-10
        for name, value in numbers.items():
            assert sums_of_one[name] == pytest.approx(value, rel=1e-10, abs=1e-12), name


def test_shapes_of_the_papers_example():
    """Catches a column too many: n_ahead 6 (three tokens), K = 2, ten tokens, two passes."""
    model, args = thinking_model(3).float(), make_args()
    numbers = quiet_star.losses_of(model, batch_for(some_texts(10)), args, 1)
    assert [q.shape[1:] for q in numbers.mixed] == [(2, 9), (2, 8)]
    assert quiet_star.rewards(numbers.base, numbers.mixed).shape == (1, 2, 7)
    assert numbers.thinking.tokens.shape == (2, 3, 10) and args.runs_of_a_token == 1 + 2 * 6


@mutant(
    "quiet: a gate that begins anywhere",
    "papers/quiet_star.py",
    "        torch.nn.init.zeros_(self.gate[-1].weight)  # w = 0: the base model\n",
    "",
)
def test_it_starts_as_the_base_model():
    """Catches a mixing that changes a model before it has learned anything: losses are the base's, rewards 0,
    and thoughts give a gradient to the gate's last layer alone."""
    with kit.numbers(torch.float64):
        model, texts = thinking_model(3, moved=False), some_texts(9, 6)
        numbers = quiet_star.losses_of(model, batch_for(texts), make_args(), 4)
        for s, q in enumerate(numbers.mixed):
            assert (q - numbers.base[:, None, s:]).abs().max() < 1e-12
        assert quiet_star.rewards(numbers.base, numbers.mixed).abs().max() < 1e-12
        sums, ours, _ = update(model, texts)
        grads = {name: weight.grad for name, weight in model.thoughts.named_parameters()}
        moving = {name for name, grad in grads.items() if grad is not None and grad.abs().max() > 1e-12}
        assert moving == {"gate.4.weight"} and sums["thought_loss"] == pytest.approx(0, abs=1e-12)
        _, theirs, _ = update(model, texts, beta=0.0)
        assert distance(ours, theirs) < 1e-10


def test_a_thought_changes_no_other():
    """Catches a mask that lets one place read another's thought: other random numbers for one thought change
    its own column, and nothing else."""
    with kit.numbers(torch.float64):
        model, t = thinking_model(2), 4
        ids, _ = pad([[5, 6, 7, 8, 9, 10, 11, 12]], "cpu")
        uniforms = quiet_star.uniforms_of([(0, 1, 2)], [8], 2, 2, "cpu")
        other = uniforms.clone()
        other[0, :, t] = (other[0, :, t] + 0.5) % 1
        with torch.no_grad():
            one, two = (quiet_star.losses(model, ids, each, 2) for each in (uniforms, other))
    assert torch.equal(one.base, two.base)
    for ours, theirs in zip(one.mixed, two.mixed):
        change = (ours - theirs).abs()[0]
        assert change[0, t] > 1e-6
        change[0, t] = 0
        assert change.max() < 1e-12


@mutant(
    "quiet: thoughts drawn from the state before",
    "papers/quiet_star.py",
    "states.append(run_block(model, inputs, cache))\n        with",
    "states.append(run_block(model, inputs, cache))\n        states[-1] = states[0]\n        with",
)
@mutant("quiet: sign of the thoughts' loss")
def test_gradient_is_that_of_the_expected_reward(monkeypatch):
    """Catches tokens and logits that do not belong together, and a sign: over all 25 thoughts of two tokens
    of a vocabulary of five, the expected gradient with the rewards as advantages is minus that of the
    expected reward, whose probabilities are those of plain sequences. Both at temperature 1."""
    monkeypatch.setattr(quiet_star, "SCORED_AT", 1.0)
    ids, t, V = [2, 3, 4, 0], 1, 5
    expected = surrogate = 0.0
    with kit.numbers(torch.float64):
        model = random_model(vocab=V)
        thoughts = quiet_star.Thoughts(0.25 * torch.randn(32), 32, 2)
        torch.nn.init.normal_(thoughts.gate[-1].weight, std=0.5)
        added.add(model, "thoughts", thoughts)
        embed, head = model.get_input_embeddings(), model.get_output_embeddings()
        for drawn in itertools.product(range(V), repeat=2):
            tokens = iter(drawn)
            forced = lambda logits, u: (torch.full((len(logits),), next(tokens)), u)  # noqa: B023, E731
            monkeypatch.setattr(quiet_star, "draw_token", forced)
            numbers = quiet_star.losses(model, torch.tensor([ids]), torch.zeros(1, 2, 4), 1)
            r = quiet_star.rewards(numbers.base, numbers.mixed)[0, 0, t]
            inputs = torch.cat([embed(torch.tensor(ids[: t + 1])), 100 * thoughts.start[None]])
            probability, loss = 1.0, 0.0
            for j, state in enumerate(numbers.thinking.states):
                both = state[:, t], numbers.thinking.tokens[:, j, t]
                (logprob,) = quiet_star.token_numbers(model, quiet_star.logprob_of_drawn, *both)
                plain = head(model.base_model(inputs_embeds=inputs[None]).last_hidden_state[0, -1])
                probability = probability * plain.softmax(-1)[drawn[j]]
                inputs = torch.cat([inputs, embed(torch.tensor([drawn[j]]))])
                loss = loss + quiet_star.thought_losses(logprob, r).sum()
            expected = expected + probability * r
            surrogate = surrogate + probability.detach() * loss
        surrogate.backward()
        ours = gradient(model)
        model.zero_grad()
        expected.backward()
        theirs = gradient(model)
    assert theirs.norm() > 1e-3 and distance(ours, -theirs) < 1e-10


def test_random_numbers_of_a_text_are_its_own():
    """Catches thoughts that depend on the texts beside it, and equal ones in two passes, steps or places."""
    alone = quiet_star.uniforms_of([(0, 3, 1)], [5], 2, 3, "cpu")
    beside = quiet_star.uniforms_of([(0, 3, 0), (0, 3, 1)], [9, 5], 2, 3, "cpu")
    assert torch.equal(beside[2:, :, :5], alone) and alone.shape == (2, 3, 5)
    others = [quiet_star.uniforms_of([key], [5], 2, 3, "cpu") for key in ((0, 4, 1), (1, 3, 1), (0, 3, 0))]
    assert len({each.flatten()[0].item() for each in (alone, alone[1:], *others)}) == 5


# --- scores and samples with thoughts -----------------------------------------------------------------------


@mutant(
    "quiet: scores one place off",
    "papers/quiet_star.py",
    "own = slice(len(prompt_ids[row]) - 1, len(texts[row]) - 1)",
    "own = slice(len(prompt_ids[row]), len(texts[row]))",
)
@mutant(
    "quiet: scores without thoughts",
    "papers/quiet_star.py",
    "mixed, base = torch.stack(found, dim=1)",
    "base, mixed = torch.stack(found, dim=1)",
)
@mutant(
    "quiet: thoughts of scores by the place in a micro-batch",
    "papers/quiet_star.py",
    "keys = [(EVAL_SEED, row) for row in range(rows.start, rows.stop)]",
    "keys = [(EVAL_SEED, row) for row in range(rows.stop - rows.start)]",
)
def test_scores_are_those_of_every_sequence_by_itself():
    """Catches a completion that is scored with the prompt's losses, and scores that depend on how they
    are split."""
    prompts, completions = [[5, 6, 7], [8, 9]], [[3, 4], [10, 11, 12, 13]]
    with kit.numbers(torch.float64), torch.no_grad():
        model = thinking_model(2)
        mixed, base = quiet_star.score_with_thoughts(model, prompts, completions, tokens=1)
        again = quiet_star.score_with_thoughts(model, prompts, completions, tokens=10**6)
        for row_number, (prompt, completion) in enumerate(zip(prompts, completions)):
            ids = [*prompt, *completion]
            uniforms = quiet_star.uniforms_of([(quiet_star.EVAL_SEED, row_number)], [len(ids)], 1, 2, "cpu")
            thoughts = quiet_star.think(model, torch.tensor([ids]), uniforms, 1).tokens[0].T.tolist()
            found = written_out(model, ids, [thoughts], 1)
            for i in range(len(completion)):
                t = len(prompt) - 1 + i
                assert -base[row_number, i].item() == pytest.approx(found["b"][t].item(), rel=1e-10)
                assert -mixed[row_number, i].item() == pytest.approx(found["q"][0, t, 0].item(), rel=1e-10)
    assert mixed[0, 2:].eq(0).all() and base[0, 2:].eq(0).all()
    assert (again[0] - mixed).abs().max() < 1e-10 and (again[1] - base).abs().max() < 1e-10


def one_completion(model, prompt: list[int], count: int, temperature: float, seed: int, eos: int):
    """What ThinkingSampler should sample: every sequence by itself, without cache or padding."""
    m, own, ids, logprobs = model.thoughts.length, model.thoughts, [*prompt], []
    embed, head = model.get_input_embeddings(), model.get_output_embeddings()
    uniforms = torch.from_numpy(quiet_star.uniform_numbers(seed, count * (m + 1))).view(count, m + 1)
    for of_token in uniforms:
        inputs = embed(torch.tensor(ids))
        h = model.base_model(inputs_embeds=inputs[None]).last_hidden_state[0, -1]
        inputs = torch.cat([inputs, 100 * own.start[None]])
        for j in range(m):
            state = model.base_model(inputs_embeds=inputs[None]).last_hidden_state[0, -1]
            token, _ = quiet_star.draw(head(state)[None], 1.0, of_token[j : j + 1])
            inputs = torch.cat([inputs, embed(token)])
        inputs = torch.cat([inputs, 100 * own.end[None]])
        u = model.base_model(inputs_embeds=inputs[None]).last_hidden_state[0, -1]
        w = own.gate(torch.cat([h, u]))
        token, logprob = quiet_star.draw(head((1 - w) * h + w * u)[None], temperature, of_token[m:])
        ids.append(token.item())
        logprobs.append(logprob.item())
        if ids[-1] == eos:
            break
    return ids[len(prompt) :], logprobs


@mutant(
    "quiet: thoughts that stay in the text",
    "papers/quiet_star.py",
    "        cache.crop(columns)\n",
    "",
    case="0.8",
)
@mutant(
    "quiet: padding that is read",
    "papers/quiet_star.py",
    "attention_mask=visible.long()",
    "attention_mask=torch.ones_like(visible).long()",
    case="0.8",
)
@mutant(
    "quiet: samples without places",
    "papers/quiet_star.py",
    "(columns - start[:, None]).clamp(min=0)",
    "torch.zeros_like(columns - start[:, None])",
    case="0.8",
)
@mutant(
    "quiet: thoughts at the text's temperature",
    "papers/quiet_star.py",
    "    return draw(logits, 1.0, uniforms)",
    "    return draw(logits, 0.8, uniforms)",
    case="0.8",
)
@mutant(
    "quiet: samples one end short",
    "papers/quiet_star.py",
    "length = ends.index(True) + 1 if",
    "length = ends.index(True) if",
    case="0.8",
)
@mutant(
    "quiet: random numbers of the first token for all",
    "papers/quiet_star.py",
    "uniforms[:, t, :m]",
    "uniforms[:, 0, :m]",
    case="0.8",
)
@pytest.mark.parametrize("temperature", [0.8, 0.0])
def test_samples_are_those_of_every_sequence_by_itself(temperature):
    """Catches thoughts that are left in the cache, padding, random numbers that are used twice, and a row
    that ends early and stops the others."""
    prompts = [[5, 6, 7, 8, 9], [10], [11, 12, 13]]
    seeds = list(range(6))
    with kit.numbers(torch.float64), torch.no_grad():
        model = thinking_model(2)
        eos = one_completion(model, prompts[1], 3, temperature, seeds[2], -1)[0][2]  # one ends early
        sampler = quiet_star.ThinkingSampler(model, [eos], rows_at_once=4)
        found = sampler.generate(prompts, 2, 7, temperature, seeds)
        for i, (completion, seed) in enumerate(zip(found, seeds)):
            ids, logprobs = one_completion(model, prompts[i // 2], 7, temperature, seed, eos)
            assert completion.ids == ids
            assert completion.logprobs == pytest.approx(logprobs, abs=1e-5)
            assert completion.finish_reason == ("stop" if ids[-1] == eos else "length")
    assert len({len(each.ids) for each in found}) > 1 and model.training
    assert sampler.room == 256 - 2 - 2 and sampler.vocabulary == 64


# --- texts --------------------------------------------------------------------------------------------------


def texts_file(folder: Path, *lines) -> Path:
    path = folder / "texts.jsonl"
    path.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines))
    return path


@mutant(
    "quiet: the end of a text not learned",
    "papers/quiet_star.py",
    "    ids += [end_id] * (ids[-1:] != [end_id])\n",
    "",
)
@mutant(
    "quiet: a text's rest left out",
    "papers/quiet_star.py",
    "for first in range(0, len(ids), length)]",
    "for first in range(0, 1, length)]",
)
@mutant(
    "quiet: pieces without a reward",
    "papers/quiet_star.py",
    "if len(piece) >= least",
    "if piece",
)
def test_a_long_text_is_cut_into_pieces(toy_model):
    """Catches a text of which the end is lost, an end token where a text was cut, and a rest that no thought
    can be rewarded on."""
    tokenizer = AutoTokenizer.from_pretrained(toy_model)
    text = quiet_star.Row((), "A=1+2=3\nB=3*2=6")  # 15 tokens, and the end
    ids = tokenizer.encode(text.completion)
    pieces = lambda *rest: quiet_star.pieces_of(text, tokenizer, 1, *rest)  # noqa: E731
    assert len(ids) == 15
    (whole,) = pieces(16, 4)
    assert (*whole.prompt_ids, *whole.completion_ids) == (*ids, 1) and len(whole.prompt_ids) == 1
    assert [each.length for each in pieces(6, 4)] == [6, 6, 4]
    first, second = pieces(6, 5)
    assert [*first.prompt_ids, *first.completion_ids, *second.prompt_ids, *second.completion_ids] == ids[:12]


@pytest.mark.parametrize(
    "lines, said",
    [
        (
            [{"text": "A=1"}, {"prompt": "B"}],
            r"texts.jsonl, line 2: field 'text' is missing or empty; it must",
        ),
        ([{"text": " "}], r"texts.jsonl, line 1: field 'text' is missing or empty; it must be a text"),
        ([{"text": 5}], r"texts.jsonl, line 1: field 'text' is missing or empty"),
        ([{"text": "A=1"}, "{half\n"], r"texts.jsonl, line 2: "),
        ([], r"--text jsonl:.*texts.jsonl: holds no text; give objects with a field text"),
    ],
)
def test_a_file_that_cannot_be_learned(tmp_path, lines, said):
    """Catches a line that is left out without a word."""
    path = texts_file(tmp_path, *lines)
    with pytest.raises(ValueError, match=said):
        quiet_star.read_texts(f"jsonl:{path}")


# --- a run --------------------------------------------------------------------------------------------------


@pytest.fixture
def flags(toy_model, tmp_path, quick):
    """Flags of a run of five steps of 8 texts, on a file of 60."""
    lines = [{"text": f"A={i}+{i % 7}={i + i % 7}\n\\boxed{{{i + i % 7}}}"} for i in range(60)]
    own = dict(text=f"jsonl:{texts_file(tmp_path, *lines)}", length=12, thought=2, ahead=2, beta=10.0)
    flags = toys.quick_row_flags(toy_model, tmp_path / "run", task="none", save_every=2, eval_every=5, **own)
    return flags | {"micro_batch_tokens": 800}


def train(flags: dict, **changes) -> Path:
    args = quiet_star.Args(**flags | changes)
    quiet_star.main(args)
    return args.out_dir


def steps_of(folder: Path) -> list[dict]:
    return [record for record in toys.records(folder) if "nll/base" in record]


def all_weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors") | load_file(folder / "thoughts/weights.safetensors")


@mutant(
    "quiet: what was added in the model's file",
    "plainrl/models.py",
    "plain, own = added.split(weights, model)",
    "plain, own = weights, added.split(weights, model)[1]",
)
@mutant(
    "quiet: eval/loss without thoughts",
    "papers/quiet_star.py",
    "        run.score_rows = score_with_thoughts  # [3]\n",
    "",
)
@mutant(
    "quiet: a hash of what was added too",
    "plainrl/models.py",
    "weights, _ = added.split(ranks.full_weights(model), model)",
    "weights = ranks.full_weights(model)",
)
def test_a_run_from_texts_to_a_model_that_thinks(flags, toy_model, capsys):
    """Catches thoughts that are not trained, logged or saved, and a saved model that others cannot load."""
    folder = train(flags)
    log, steps = toys.records(folder), steps_of(folder)
    assert [record["step"] for record in steps] == [1, 2, 3, 4, 5]
    first, last = steps[0], steps[-1]
    assert first["nll/base"] == pytest.approx(first["nll/mixed"], rel=1e-6)
    assert first["quiet/gate_mean"] == first["quiet/reward_mean"] == first["loss/policy"] == 0
    assert last["quiet/gate_mean"] != 0 and last["nll/base"] != last["nll/mixed"]
    assert any(0 < record["quiet/frac_positive"] < 1 for record in steps)
    assert last["quiet/forward_tokens"] == 11 * last["sft/tokens_seen"]
    assert log[5]["eval/loss"] < log[0]["eval/loss"] - 0.1
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    plain = AutoTokenizer.from_pretrained(toy_model)
    first_text = samples[0]["prompt"] + samples[0]["completion"]
    assert samples[0]["with_thoughts"].startswith(first_text[0] + "[") and len(samples) == 5
    assert samples[0]["with_thoughts"].count("[") >= len(plain.encode(first_text))

    thinking, start = all_weights(folder / "final"), load_file(f"{toy_model}/model.safetensors")
    own = {name for name in thinking if name.startswith("thoughts.")}
    assert own == {
        "thoughts.start",
        "thoughts.end",
        *(
            f"thoughts.gate.{i}.{w}"
            for i, w in [(0, "weight"), (0, "bias"), (2, "weight"), (2, "bias"), (4, "weight")]
        ),
    }
    assert start.keys() == thinking.keys() - own == load_file(folder / "final/model.safetensors").keys()
    assert json.loads((folder / "config.json").read_text())["model_hash"] == models.model_hash(
        models.load_model(toy_model)[0]
    )
    model, tokenizer = models.load_model(str(folder / "final"))
    assert (
        model.config.quiet_star["thought"] == 2 and "papers/quiet_star.py" in model.config.quiet_star["needs"]
    )
    capsys.readouterr()
    evaluation.with_reasoners(model, tokenizer, (), evaluation.Args())
    assert (
        "note: measured without the thoughts that papers/quiet_star.py has taught it"
        in capsys.readouterr().out
    )

    # eval/loss of the last step is that of the final model, which thinks.
    quiet_star.add_thoughts(model, tokenizer, str(folder / "final"), 2)
    args = quiet_star.Args(**flags)
    flags_of = quiet_star.read_texts(args.text)
    _, held = rows.hold_out(flags_of, args.dev_share)
    pieces = [piece for text in held for piece in quiet_star.pieces_of(text, tokenizer, 1, 12, 4)]
    pieces.sort(key=lambda each: each.length)
    ids = [each.prompt_ids for each in pieces], [each.completion_ids for each in pieces]
    mixed, base = quiet_star.score_with_thoughts(model, *ids, tokens=800)
    count = sum(map(len, ids[1]))
    assert log[5]["eval/loss"] == pytest.approx(-mixed.double().sum().item() / count, rel=1e-5)
    assert abs(base.sum() - mixed.sum()) > 1e-4 * count


@mutant(
    "quiet: thoughts of the steps that were made here",
    "papers/quiet_star.py",
    "accumulate_gradients(run.model, batch, args, step)",
    "accumulate_gradients(run.model, batch, args, step - run.first_step)",
)
@mutant(
    "quiet: thoughts that a resumed run has not",
    "plainrl/models.py",
    "read_model(folder).state_dict() | added.load(folder, model)",
    "dict(model.state_dict()) | read_model(folder).state_dict()",
)
def test_killed_and_resumed_equals_the_uninterrupted(flags):
    """Catches thoughts, gate or random numbers that begin anew with the process."""
    whole = train(flags, out_dir=flags["out_dir"].with_name("whole"))
    test_sft.kill_after(4, lambda: train(flags))  # the last checkpoint is of step 2
    ours = train(flags, resume=True)
    assert toys.records(ours) == toys.records(whole)
    assert (ours / "samples.jsonl").read_text() == (whole / "samples.jsonl").read_text()
    ours, theirs = all_weights(ours / "last"), all_weights(whole / "last")
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    texts = [
        each["with_thoughts"] for each in map(json.loads, (whole / "samples.jsonl").read_text().splitlines())
    ]
    assert len(set(texts)) == 5
    with pytest.raises(SystemExit, match="--resume: --beta was 10.0 and is now 20.0; give the old value"):
        train(flags, resume=True, beta=20.0)


def test_without_thoughts_it_is_plain_continued_pretraining(flags, tmp_path):
    """Catches a part of the thoughts that stays with --passes 0: the same rows and losses as sft.py."""
    import sft

    folder = train(flags, passes=0)
    assert not (folder / "final/thoughts").exists() and "quiet/gate_mean" not in steps_of(folder)[0]
    args = quiet_star.Args(**flags)
    data = [{"prompt": "", "completion": each.completion} for each in quiet_star.read_texts(args.text)]
    assert (
        len(data) == 60
        and steps_of(folder)[0]["quiet/forward_tokens"] == steps_of(folder)[0]["sft/tokens_seen"]
    )
    model, tokenizer = models.load_model(args.model)
    learned = [
        piece
        for each in quiet_star.read_texts(args.text)
        for piece in quiet_star.pieces_of(each, tokenizer, 1, 12, 4)
    ][:8]
    batch = batch_of(learned, "cpu")
    ours = quiet_star.accumulate_plain(model, batch, args)
    found = gradient(model)
    model.zero_grad()
    theirs = sft.accumulate_gradients(model, batch_of(learned, "cpu"), sft.Args(micro_batch_tokens=800))
    assert ours["total_loss"] == theirs["total_loss"] and torch.equal(found, gradient(model))


def test_a_task_is_answered_with_thoughts(flags, monkeypatch):
    """Catches scores that are sampled from the model alone."""
    asked = []
    original = quiet_star.ThinkingSampler.generate
    monkeypatch.setattr(
        quiet_star.ThinkingSampler,
        "generate",
        lambda self, *rest: asked.append(len(rest[0])) or original(self, *rest),
    )
    folder = train(flags, task="chain?horizon=1", steps=1, eval_every=1)
    assert asked == [2, 2, 2, 2]  # test and dev, before and after
    last = toys.records(folder)[-2]
    assert {"eval/chain/score", "eval/loss"} <= last.keys()


def test_a_model_whose_thoughts_are_lost(flags, tmp_path):
    """Catches fresh thoughts in place of lost ones, without a word; and goes on with those that are there."""
    first = train(flags, steps=2)
    again = train(flags, model=str(first / "final"), lr=0.0, steps=2, out_dir=tmp_path / "again")
    ours, theirs = all_weights(again / "last"), all_weights(first / "final")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    shutil.rmtree(first / "final/thoughts")
    said = r"^error: --model .*final: its config.json says quiet_star, and it cannot think \(thoughts/weights"
    with pytest.raises(SystemExit, match=said):
        train(flags, model=str(first / "final"), out_dir=tmp_path / "third")
    assert not (tmp_path / "third").exists()
    shutil.rmtree(first / "last/thoughts")
    with pytest.raises(SystemExit, match="thoughts/weights.safetensors is missing"):
        train(flags, steps=4, resume=True)
    with pytest.raises(SystemExit, match="--passes 0: --model thinks, and plain training would not go on"):
        train(flags, model=str(first / "final"), passes=0, out_dir=tmp_path / "third")


@pytest.mark.parametrize(
    "changes, said",
    [
        (dict(text="notes.txt"), "--text notes.txt: unknown; use chain or jsonl:FILE"),
        (dict(text="jsonl:nowhere.jsonl"), "--text jsonl:nowhere.jsonl: cannot read the file"),
        (dict(data=(Path("x"),)), "--data x: rows have prompts; give plain texts with --text"),
        (dict(max_length=5), "--max-length 5: use --length, beyond which a text is cut"),
        (dict(loss_on="completion"), "--loss-on completion: a text has no prompt"),
        (dict(lora_rank=2), "--lora-rank: adapters are saved without the thoughts"),
        (dict(activation_checkpointing=True), "--activation-checkpointing: thoughts read the keys"),
        (dict(engine="vllm"), "--engine vllm: samples without thoughts; use --engine hf"),
        (dict(betas=(0.9, 1.0)), "--betas 0.9 1: must be at least 0 and below 1"),
        (dict(thought=0), "--thought 0: has no tokens to reward; add --beta 0 --passes 1"),
        (dict(passes=1), "--passes 1: a thought is compared with others about its place; use 2"),
        (
            dict(length=600),
            "--length 600: with its last thought a text takes 605 places, .* 507 or fewer",
        ),
        (dict(length=3), "--length 3: too short for a thought's reward"),
        (dict(length=40, ahead=37), "--text .*: no text has 39 tokens and is to be learned"),
        (dict(dev_share=0.0), "--dev-share 0: no text is held out"),
    ],
)
def test_what_cannot_work_is_one_line_and_leaves_no_folder(flags, changes, said):
    """Catches a traceback, a flag that is ignored, and a folder that would bar the next try."""
    with pytest.raises(SystemExit, match=f"^error: {said}"):
        train(flags, **changes)
    assert not flags["out_dir"].exists()


def test_several_processes_are_refused(flags, monkeypatch):
    """Catches ranks that each train a gate of their own."""
    monkeypatch.setattr(quiet_star.ranks, "WORLD_SIZE", 2)
    with pytest.raises(SystemExit, match="torchrun: thoughts are a part of the model that is not sharded"):
        train(flags)


def test_a_plan_counts_every_pass(flags, monkeypatch, capsys):
    """Catches hours and memory of a text that is read once."""
    ticks = iter(range(100))
    monkeypatch.setattr("plainrl.plan.clock", lambda device: next(ticks))
    with pytest.raises(SystemExit) as stop:
        train(flags, plan=True)
    assert stop.value.code == 0 and "time, measured: 11.0 s a step" in capsys.readouterr().out
    assert not flags["out_dir"].exists()


# --- the experiment -----------------------------------------------------------------------------------------


@mutant(
    "quiet: digits of every number",
    "benchmarks/quiet_star.py",
    "found.append(equals == 2 and token.isdigit())",
    "found.append(token.isdigit())",
)
def test_result_digits_of_a_solution():
    """Catches operands, the box or the digits of a line without arithmetic among the digits of results."""
    tokens = list("A=5+7=12\nB=12*2=24\n") + ["boxed", "{", "2", "4", "}"]
    found = benchmark.result_digits(tokens)
    assert [i for i, digit in enumerate(found) if digit] == [6, 7, 16, 17]


@mutant(
    "quiet: experiment without thoughts",
    "benchmarks/recipes.py",
    "make = experiment.sampler or (lambda",
    "make = (lambda",
)
def test_what_the_experiment_measures(flags, tmp_path):
    """Catches a model that is measured without the thoughts that it has learned, and numbers of other
    tokens: in a run at a learning rate of 0 thoughts change nothing, and after another they do."""
    found = {}
    experiment = dataclasses.replace(benchmark.EXPERIMENT, measured={"chain?horizon=1-2": (4, 1)})
    for name, own in {"plain": dict(passes=0), "still": dict(lr=0.0), "quiet": dict(beta=0.0)}.items():
        folder = train(flags, out_dir=tmp_path / name, steps=3, **own)
        found[name] = recipes.measure(experiment, folder / "last", "test", str)["chain?horizon=1-2"]
    more = {name: counts["more"] for name, counts in found.items()}
    assert all(counts["samples"] == 1 and len(counts["correct"]) == 4 for counts in found.values())
    for name in ("digits", "all"):
        assert more["plain"][name] == more["plain"][f"{name}, no thoughts"]
        assert more["still"][name] == pytest.approx(more["still"][f"{name}, no thoughts"], rel=1e-6)
        assert more["quiet"][name] != pytest.approx(more["quiet"][f"{name}, no thoughts"], rel=1e-4)
    assert more["quiet"]["all"] > more["still"]["all"]
