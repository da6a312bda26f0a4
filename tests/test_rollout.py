"""Rollouts and batches: seeds, prompts, masks, the order of rows, and what an optimizer step gets."""

import copy
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mutants import mutant
from random_model import COMPLETIONS, EOS, random_model

from plainrl.horizons import EveryHorizon
from plainrl.rollout import (
    Completion,
    NextThatFits,
    PromptRoom,
    Rollout,
    check_prompt,
    check_prompts,
    check_template,
    completion_seed,
    encode_prompt,
    pad,
    pad_values,
    sample_rollout,
    set_thinking,
    with_short_prompts,
)
from plainrl.sampler import context_length, make_sampler
from plainrl.sources import ListTask
from plainrl.tasks import Grade, Problem


@mutant(
    "sample left out of the key",
    "plainrl/rollout.py",
    "np.random.SeedSequence(key)",
    "np.random.SeedSequence(key[:-1])",
)
def test_completion_seed_depends_on_every_part_of_its_key():
    """Catches a part left out (one seed for a group, for a round, for all steps), and seeds that a sampler
    cannot take."""
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


def test_encode_prompt_with_and_without_chat_template():
    """Catches a prompt that does not end where the model is to answer, and a system prompt that is lost."""
    calls = []
    apply = lambda messages, **options: calls.append((messages, options)) or [1, 2]  # noqa: E731
    chat = SimpleNamespace(chat_template="x", apply_chat_template=apply)
    assert encode_prompt(chat, "2+3?", "Be brief.") == [1, 2] == encode_prompt(chat, "2+3?")
    system, user = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+3?"}
    assert [messages for messages, _ in calls] == [[system, user], [user]]
    assert all(options["add_generation_prompt"] and not options["return_dict"] for _, options in calls)
    bare = SimpleNamespace(chat_template=None, encode=list)
    assert "".join(encode_prompt(bare, "2+3?")) == "2+3?"
    assert "".join(encode_prompt(bare, "2+3?", "Be brief.")) == "Be brief.\n\n2+3?"


@mutant(
    "template not told of thinking",
    "plainrl/rollout.py",
    "{} if thinking is None else",
    "{} if not thinking else",
)
def test_enable_thinking_reaches_the_template():
    """Catches a flag that the template never hears of, "no" that is taken for nothing, and a template that
    is told something where the flag is left open."""
    told = []
    apply = lambda messages, **options: told.append(options.get("enable_thinking", "nothing")) or [1]  # noqa: E731
    chat = SimpleNamespace(chat_template="x", apply_chat_template=apply)
    encode_prompt(chat, "2+3?")
    for choice in (None, "yes", "no"):
        set_thinking(chat, choice)
        encode_prompt(chat, "2+3?")
    assert told == ["nothing", "nothing", True, False]


# --- prompts that cannot work -------------------------------------------------------------------------------


def tokenizer_with(template) -> SimpleNamespace:
    """A tokenizer whose chat template is this function of {role: content}; a token is a letter's number."""

    def apply(messages, **options):
        text = template({message["role"]: message["content"] for message in messages})
        return list(map(ord, text))

    return SimpleNamespace(chat_template="x", apply_chat_template=apply)


def raises(error: Exception):
    raise error


GOOD = lambda turns: turns.get("system", "") + turns["user"] + ">"  # noqa: E731


@mutant(
    "system turn left out without a word",
    "plainrl/rollout.py",
    "if with_system == plain:",
    "if False:",
)
@mutant(
    "template that forgets the prompt",
    "plainrl/rollout.py",
    'if not plain or plain == encoded_or_fail(tokenizer, "2", None, "--model", "use another model"):',
    "if not plain:",
)
def test_templates_that_are_refused():
    """Catches a system prompt that the model never sees, a traceback out of a template, and one that leaves
    the problem out."""
    check_template(tokenizer_with(GOOD), "Be brief.")
    check_template(SimpleNamespace(chat_template=None, encode=list), "Be brief.")

    def no_system(turns):
        return raises(KeyError("System role\nnot supported")) if "system" in turns else GOOD(turns)

    check_template(tokenizer_with(no_system))
    for template, said in (
        (no_system, "--system-prompt: the chat template of --model cannot write a system turn .KeyError"),
        (lambda turns: turns["user"], "--system-prompt: the chat template of --model leaves a system turn"),
        (lambda turns: raises(TypeError("x")), "--model: the chat template of --model cannot write a prompt"),
        (lambda turns: ">", "--model: its chat template leaves the prompt out"),
        (lambda turns: "", "--model: its chat template leaves the prompt out"),
    ):
        with pytest.raises(SystemExit, match=f"^error: {said}") as stop:
            check_template(tokenizer_with(template), "Be brief.")
        assert "\n" not in stop.value.code


@mutant(
    "context that is one token short",
    "plainrl/rollout.py",
    "if room is not None and len(ids) + max_new_tokens > room:",
    "if room is not None and len(ids) + max_new_tokens >= room:",
)
@mutant(
    "token that is one too many",
    "plainrl/rollout.py",
    "max(ids) >= vocabulary:",
    "max(ids) > vocabulary:",
)
def test_prompts_that_are_refused():
    """Catches a prompt that the model's context has no room for, one without a token, and a token that the
    model has no weights for; and one refused that fits exactly."""
    sampler = SimpleNamespace(room=10, vocabulary=50)
    check_prompt([49] * 6, 4, sampler, "it")
    check_prompt([99] * 1000, 4, SimpleNamespace(), "it")  # nobody knows
    for ids, said in (
        ([1] * 7, "--max-new-tokens 4: dev problem 3 has 7 tokens, .* context 10; ask for 3 or fewer"),
        ([1] * 12, "--max-new-tokens 4: dev problem 3 has 12 tokens, .* context 10; take shorter problems"),
        ([], "--task: dev problem 3 has no token"),
        ([1, 50], "--model: its tokenizer makes token 50 of dev problem 3, and its weights have 50"),
    ):
        with pytest.raises(SystemExit, match=f"^error: {said}"):
            check_prompt(ids, 4, sampler, "dev problem 3")


@mutant(
    "test prompts not looked at",
    "plainrl/rollout.py",
    '(("dev", args.eval_problems), ("test", args.test_problems)):\n        for index in range(or_fail(',
    '(("dev", args.eval_problems),):\n        for index in range(or_fail(',
)
@mutant(
    "problems looked for beyond the last",
    "plainrl/rollout.py",
    "range(or_fail(scored, task, split, count))",
    "range(count)",
)
def test_prompts_are_checked_before_the_start():
    """Catches a long prompt that is met after hours, one in a split that nobody looked at, and a short list
    asked for more than it has."""
    lengths = {"dev": 5, "test": 4}
    asked = []

    def problem(split, index, seed):
        if index >= lengths[split]:
            raise ValueError(f"no {split} {index}")
        asked.append(split)
        return Problem("x" * (90 if (split, index) == long else 5), "1")

    task = SimpleNamespace(problem=problem, size=lengths.get)
    args = SimpleNamespace(system_prompt=None, eval_problems=9, test_problems=3, max_new_tokens=10)
    long = None
    arguments = (task, tokenizer_with(GOOD), SimpleNamespace(room=50), args)
    check_prompts(*arguments)
    assert asked == ["dev"] * 5 + ["test"] * 3
    for long in (("dev", 4), ("test", 2)):
        with pytest.raises(SystemExit, match=f"{long[0]} problem {long[1]} has 91 tokens"):
            check_prompts(*arguments)


@mutant(
    "completions that can never end",
    "plainrl/sampler.py",
    "if min(eos_ids) >= vocabulary:",
    "if False:",
)
@mutant(
    "sampler that does not know the context",
    "plainrl/sampler.py",
    "self.room = context_length(model.config)",
    "self.room = None",
)
def test_sampler_knows_what_fits():
    """Catches a sampler whose prompts nobody measures, and a tokenizer whose EOS the model does not have:
    every completion would be cut."""
    model, args = random_model(), SimpleNamespace(engine="hf", vllm_server=None)
    sampler = make_sampler(args, model, [EOS])
    assert sampler.room == model.config.max_position_embeddings
    assert sampler.vocabulary == model.config.vocab_size
    with pytest.raises(SystemExit, match="error: --model: it ends with token 9000, and its weights have"):
        make_sampler(args, model, [9000])


def test_context_length_of_a_config():
    """Catches a context taken from before its scaling, and a model without one that is refused."""
    config = lambda **values: SimpleNamespace(get_text_config=lambda: SimpleNamespace(**values))  # noqa: E731
    yarn = {"factor": 4.0, "original_max_position_embeddings": 100}
    assert context_length(config(max_position_embeddings=100)) == 100
    assert context_length(config(max_position_embeddings=100, rope_scaling=yarn)) == 400
    assert context_length(config(max_position_embeddings=800, rope_parameters=yarn)) == 800
    assert context_length(config()) is context_length(config(max_position_embeddings=-1)) is None


@mutant(
    "mask from token values", "plainrl/rollout.py", "    return ids, mask\n", "    return ids, ids != 0\n"
)
def test_mask_comes_from_lengths():
    """Catches a mask made by `ids == pad`: tokens that equal the padding count, and EOS counts exactly
    once."""
    ids, mask = pad(COMPLETIONS, "cpu")
    assert mask.sum(1).tolist() == [4, 1, 7, 1, 3]
    assert [row[keep].tolist() for row, keep in zip(ids, mask)] == COMPLETIONS
    assert ((ids == EOS) & mask).sum(1).tolist() == [1, 0, 1, 1, 0]
    assert mask.int().diff(dim=1).max() <= 0  # no hole: real tokens first
    assert pad([], "cpu")[0].shape == (0, 0)


def test_pad_values_puts_each_number_at_its_token():
    """Catches numbers spread over the padding or shifted between rows."""
    _, mask = pad([[5], [6, 7, 8]], "cpu")
    assert pad_values([[-0.5], [-1.0, -2.0, -3.0]], mask).tolist() == [[-0.5, 0.0, 0.0], [-1.0, -2.0, -3.0]]


# --- a rollout ----------------------------------------------------------------------------------------------


class CountingSampler:
    """Returns completions that name the prompt and the sample they belong to."""

    def generate(self, prompt_ids, n, max_new_tokens, temperature, seeds, top_p=1.0):
        self.arguments = (prompt_ids, n, max_new_tokens, temperature, seeds, top_p)
        finish = ["length"] + ["stop"] * (n - 1)
        return [
            Completion([prompt[-1], i], [-0.5, -float(i)], finish[i])
            for prompt in prompt_ids
            for i in range(n)
        ]


class PairTask:
    """Right is the completion whose sample number is the problem's answer; worth 10 points a prompt
    besides."""

    name = "pair"

    def grade(self, completion, problem):
        prompt, i = completion.split()
        assert prompt == problem.prompt, "a completion was graded against another prompt's problem"
        return Grade(i == problem.answer, 10.0 * int(prompt) + int(i), i, "")


def pair_rollout(count: int = 3, group_size: int = 4, first: int = 0) -> Rollout:
    tokenizer = SimpleNamespace(
        chat_template=None,
        encode=lambda text: [9, int(text)],
        decode=lambda ids, skip_special_tokens=False: " ".join(map(str, ids)),
    )
    problems = [Problem(str(j), str(j % group_size)) for j in range(first, first + count)]
    return sample_rollout(
        CountingSampler(),
        tokenizer,
        PairTask(),
        problems,
        [p.prompt for p in problems],
        list(range(count * group_size)),
        group_size,
        8,
        1.0,
    )


@mutant(
    "thinking that the prompt opened",
    "plainrl/rollout.py",
    'rstrip().endswith("<think>")',
    'endswith("</think>")',
)
def test_thinking_that_the_prompt_opens_has_no_answer_until_it_ends():
    """Catches an unfinished thought that is graded where the chat template ends with <think>, and a template
    that closes its empty thinking and is taken for one that does not."""
    graded = []

    class Task:
        def grade(self, completion, problem):
            graded.append(completion)
            return Grade(False, 0.0, None, "wrong")

    for end in ("<think>\n", "<think>\n\n</think>\n"):
        tokenizer = SimpleNamespace(
            chat_template=None,
            encode=lambda text, end=end: [9, end],
            decode=lambda ids, skip_special_tokens=False: "".join(map(str, ids)),
        )
        problems = [Problem("1", "1")]
        rollout = sample_rollout(
            CountingSampler(), tokenizer, Task(), problems, ["1"], [0, 1], 2, 8, temperature=1.0
        )
        assert rollout.texts == [f"{end}0", f"{end}1"]
    assert graded == ["<think><think>\n0", "<think><think>\n1", *rollout.texts]


@mutant(
    "problems tiled",
    "plainrl/rollout.py",
    "[problem for problem in problems[mine] for _ in range(group_size)]",
    "problems[mine] * group_size",
)
@mutant(
    "prompts tiled",
    "plainrl/rollout.py",
    "[ids for ids in prompt_ids for _ in range(group_size)]",
    "prompt_ids * group_size",
)
@mutant(
    "rewards sample by sample",
    "plainrl/rollout.py",
    "scores.view(len(self.problems), self.group_size)",
    "scores.view(self.group_size, len(self.problems)).T",
)
def test_rows_are_prompt_major_from_sampler_to_reward():
    """Catches completions paired with another prompt's problem, or rewards laid out sample by sample."""
    batch = pair_rollout()
    assert batch.prompt_ids == [[9, j] for j in range(3) for _ in range(4)]
    assert batch.completion_ids == [[j, i] for j in range(3) for i in range(4)]
    assert batch.rewards().tolist() == [[10.0 * j + i for i in range(4)] for j in range(3)]
    assert [grade.correct for grade in batch.grades] == [i == j for j in range(3) for i in range(4)]
    assert batch.correct() == [1, 1, 1] and batch.group_size == 4
    assert batch.logprobs == [[-0.5, -float(i)] for _ in range(3) for i in range(4)]
    assert batch.truncated == [i == 0 for _ in range(3) for i in range(4)] and batch.tokens == 24


@mutant(
    "groups picked in another order",
    "plainrl/rollout.py",
    "rows = [group * self.group_size + i for group in groups",
    "rows = [group * self.group_size + i for group in sorted(groups)",
)
def test_select_and_addition_keep_rows_prompt_major():
    """Catches groups torn apart when dynamic sampling drops some and adds others."""
    batch = pair_rollout()
    some = batch.select([2, 0])
    assert [p.prompt for p in some.problems] == ["2", "0"]
    assert some.rewards().tolist() == [[20.0, 21.0, 22.0, 23.0], [0.0, 1.0, 2.0, 3.0]]
    assert some.prompt_ids == [[9, 2]] * 4 + [[9, 0]] * 4 and some.texts[:2] == ["2 0", "2 1"]
    both = some + pair_rollout(count=2, first=7)
    assert [p.prompt for p in both.problems] == ["2", "0", "7", "8"]
    assert (
        both.rewards()[:, 0].tolist() == [20.0, 0.0, 70.0, 80.0] and len(both.texts) == len(both.grades) == 16
    )
    assert both.select([3]).completion_ids == [[8, i] for i in range(4)]
    assert batch.select([]).rewards().numel() == 0 and batch.select([]).correct() == []


def test_sampler_must_return_n_completions_for_each_prompt():
    """Catches a sampler of one's own that returns one completion a prompt."""
    sampler = SimpleNamespace(generate=lambda *_: [Completion([1], [0.0], "stop")])
    tokenizer = SimpleNamespace(
        chat_template=None, encode=lambda text: [1, 2], decode=lambda ids, skip_special_tokens: ""
    )
    with pytest.raises(ValueError, match="n completions"):
        sample_rollout(sampler, tokenizer, PairTask(), [Problem("1", "1")], ["1"], [0, 1], 2, 8, 1.0)


@mutant(
    "long prompts met in training go on",
    "plainrl/rollout.py",
    'check_prompt(ids, max_new_tokens, sampler, f"the prompt {prompt[:40]!r}")',
    "pass",
)
def test_a_long_prompt_in_training_is_named(monkeypatch):
    """Catches completions sampled beyond the model's context without a word."""
    monkeypatch.setattr(CountingSampler, "room", 9, raising=False)
    with pytest.raises(SystemExit, match="--max-new-tokens 8: the prompt '0' has 2 tokens"):
        pair_rollout()


# --- training prompts that are too long ---------------------------------------------------------------------


def letters(lengths: list[int]) -> list[Problem]:
    """Problems whose prompts have so many letters; the template adds a token."""
    return [Problem(chr(97 + i) * length, "1") for i, length in enumerate(lengths)]


NO_LIMIT = SimpleNamespace(train_size=None, seed=0)  # of the training problems


def room_of(tokens: int | None) -> PromptRoom:
    """Room for so many tokens; None: nobody knows."""
    args = SimpleNamespace(system_prompt=None, max_new_tokens=10)
    return PromptRoom(tokenizer_with(GOOD), SimpleNamespace(room=tokens and tokens + 10), args)


@mutant("long prompts stay", "plainrl/rollout.py", 'task.problems | {"train": short}', "task.problems")
@mutant(
    "prompts by their letters alone",
    "plainrl/rollout.py",
    "<= self.tokens or self.length(prompt) <= self.tokens",
    "<= self.tokens",
)
def test_long_training_prompts_of_a_list_are_left_out(capsys):
    """Catches a run that ends at a prompt in the middle of a file, and at each resume; one that fits exactly
    and is left out; and another order where nothing is too long."""
    train = letters([5, 40, 39, 41, 5])
    task = ListTask("list", {"train": train, "dev": letters([90])})
    kept = with_short_prompts(task, room_of(40), NO_LIMIT)
    assert kept.problems == {"train": [train[0], train[2], train[4]], "dev": task.problems["dev"]}
    out = capsys.readouterr().out
    assert out.startswith(
        "--task list: left out: 2 of 5 training problems have prompts of more than 40 tokens"
    )
    assert f"('{'b' * 40}' has 41; '{'d' * 40}' has 42)" in out
    for room in (room_of(42), room_of(None)):
        assert with_short_prompts(task, room, NO_LIMIT) is task
    assert len(task.problems["train"]) == 5 and capsys.readouterr().out == ""
    with pytest.raises(SystemExit, match="--task list: 10 of 10 training problems .*; ...\\); give a lower"):
        with_short_prompts(ListTask("list", {"train": train * 2}), room_of(3), NO_LIMIT)


@mutant("the long prompt itself", "plainrl/rollout.py", "other = index + further", "other = index")
@mutant(
    "horizons that nobody looks at", "plainrl/rollout.py", "if isinstance(task, EveryHorizon):", "if False:"
)
def test_the_next_training_problem_takes_the_place_of_a_long_one(capsys):
    """Catches a rare long prompt that ends a run at its step and at every resume, one in the problems of a
    horizon, and a held-out problem that gives way."""
    problems = letters([5, 90, 90, 6])
    task = SimpleNamespace(name="made", problem=lambda split, index, seed: problems[index % 4])
    fitting = with_short_prompts(task, room_of(40), NO_LIMIT)
    assert [fitting.problem("train", i, 0) for i in range(4)] == [problems[i] for i in (0, 3, 3, 3)]
    assert fitting.problem("dev", 1, 0) == problems[1] and fitting.name == "made"
    said = "training problem 1 has a prompt of 91 tokens, and --max-new-tokens leaves room for 40"
    assert capsys.readouterr().out.count(said) == 1
    limited = with_short_prompts(task, room_of(40), SimpleNamespace(train_size=2, seed=0))  # --train-size
    assert limited.problem("train", 1, 0) == problems[0]
    assert copy.copy(limited).name == "made"
    with pytest.raises(
        SystemExit, match="--task made: the prompts of 100 training problems in a row, from 0 "
    ):
        with_short_prompts(task, room_of(4), NO_LIMIT)
    horizons = EveryHorizon.__new__(EveryHorizon)
    horizons.tasks = [task, ListTask("list", {"train": problems})]
    assert with_short_prompts(horizons, room_of(40), NO_LIMIT) is horizons
    assert horizons.training_problems([1, 2], [1, 1], 0)[0] == problems[3]
    assert isinstance(horizons.tasks[0], NextThatFits) and horizons.tasks[1].size("train") == 2


# --- a batch ------------------------------------------------------------------------------------------------


def advantages_of(rollout: Rollout) -> torch.Tensor:
    """Another number for every row."""
    return torch.arange(len(rollout.texts), dtype=torch.float32)


def ending(rollout: Rollout, changes: dict[int, tuple[list[int], str]]) -> Rollout:
    """The rollout with other ids and ends in some rows."""
    completions = list(rollout.completions)
    for row, (ids, reason) in changes.items():
        completions[row] = Completion(ids, [-0.1 * (i + 1) for i in range(len(ids))], reason)
    return replace(rollout, completions=completions)


@mutant(
    "the others masked",
    "plainrl/rollout.py",
    "loss_mask[torch.tensor(self.truncated",
    "loss_mask[~torch.tensor(self.truncated",
)
def test_batch_masks_and_values():
    """Catches an EOS outside of the mask, truncated completions that stay in the loss or leave the log, the
    others masked in their place, and log-probabilities at other tokens."""
    rollout = ending(
        pair_rollout(count=2, group_size=2),
        {1: ([7, 0, 0, EOS], "stop"), 2: ([8, 8, 8], "length"), 3: ([EOS], "stop")},
    )
    assert rollout.truncated == [True, False, True, False]
    filled = [[1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 0], [1, 0, 0, 0]]
    for mask_truncated in (False, True):
        batch = rollout.batch(advantages_of(rollout), "cpu", mask_truncated=mask_truncated)
        assert batch["completion_mask"].int().tolist() == filled
        counted = [[0] * 4 if mask_truncated and row in (0, 2) else filled[row] for row in range(4)]
        assert batch["loss_mask"].int().tolist() == counted
        assert batch["advantages"].tolist() == [[0.0], [1.0], [2.0], [3.0]]
        np.testing.assert_allclose(batch["rollout_logprobs"][1], [-0.1, -0.2, -0.3, -0.4], rtol=1e-6)
        np.testing.assert_allclose(batch["rollout_logprobs"][3], [-0.1, 0, 0, 0], rtol=1e-6)
        assert (
            batch.completion_ids == rollout.completion_ids
            and batch.prompt_ids == rollout.prompt_ids
            and len(batch) == 4
        )


def test_batch_takes_advantages_of_groups_and_of_rows():
    """Catches advantages [B, G] that are laid out sample by sample."""
    rollout = pair_rollout()
    flat, grouped = (
        rollout.batch(values, "cpu")["advantages"] for values in (advantages_of(rollout), rollout.rewards())
    )
    assert flat.shape == grouped.shape == (12, 1)
    assert grouped.squeeze(1).tolist() == [10.0 * j + i for j in range(3) for i in range(4)]


@mutant(
    "groups per step rounded down",
    "plainrl/rollout.py",
    "max(1, -(-groups // parts))",
    "max(1, groups // parts)",
)
@mutant(
    "parts that forget their groups", "plainrl/rollout.py", "            minibatch.rows_per_group = own\n", ""
)
@mutant(
    "prompts of other rows",
    "plainrl/rollout.py",
    "Batch(self.prompt_ids[rows],",
    "Batch(self.prompt_ids[: len(self.completion_ids[rows])],",
)
@mutant(
    "rows_per_group lost in the batch",
    "plainrl/rollout.py",
    "rows_per_group=[self.group_size] * len(self.problems),",
    "",
)
@pytest.mark.parametrize(
    "groups, parts, expected",
    [
        (4, 1, [4]),
        (4, 2, [2, 2]),
        (4, 4, [1] * 4),
        (5, 2, [3, 2]),
        (5, 4, [2, 2, 1]),
        (2, 4, [1, 1]),
        (0, 2, []),
    ],
)
def test_split_keeps_whole_groups_in_order(groups, parts, expected):
    """Catches a group cut between two steps, rows lost where groups do not divide, empty steps, and more than
    asked."""
    rollout = pair_rollout(count=groups)
    batch = rollout.batch(advantages_of(rollout), "cpu")
    minibatches = batch.split(parts)
    assert [len(part) for part in minibatches] == [4 * count for count in expected]
    assert [part.rows_per_group for part in minibatches] == [[4] * count for count in expected]
    assert [value for part in minibatches for value in part["advantages"].flatten().tolist()] == list(
        range(4 * groups)
    )
    assert [ids for part in minibatches for ids in part.completion_ids] == batch.completion_ids
    assert [ids for part in minibatches for ids in part.prompt_ids] == batch.prompt_ids


@mutant(
    "groups of one size",
    "plainrl/rollout.py",
    "start = sum(self.rows_per_group[:first])",
    "start = first * self.rows_per_group[0]",
)
def test_split_knows_groups_of_different_sizes():
    """Catches joined groups (2G rows of one prompt) that are cut where one of G rows would end."""
    rollout = pair_rollout(count=4, group_size=2)
    batch = rollout.batch(advantages_of(rollout), "cpu")
    batch.rows_per_group = [4, 2, 2]  # the first two groups joined
    assert [part["advantages"].flatten().tolist() for part in batch.split(3)] == [
        [0, 1, 2, 3],
        [4, 5],
        [6, 7],
    ]
    assert [part.rows_per_group for part in batch.split(2)] == [[4, 2], [2]]


@mutant(
    "parts that are copies",
    "plainrl/rollout.py",
    "values[rows, :width] for name",
    "values[rows, :width].clone() for name",
)
def test_parts_are_views_and_have_the_columns_of_the_algorithm():
    """Catches copies, in which what a micro-batch writes would be lost, and columns that are not cut with the
    rest."""
    rollout = pair_rollout(count=4)
    batch = rollout.batch(advantages_of(rollout), "cpu")
    batch["old_logprobs"] = torch.zeros(16, 2)
    assert (
        "old_logprobs" in batch
        and "weights" not in batch
        and batch.get("weights") is None
        and batch.get("weights", 1) == 1
    )
    for number, part in enumerate(batch.split(2)):
        assert part["old_logprobs"].shape == (8, 2)
        part.rows(slice(2, 5), width=1)["old_logprobs"][:] = number + 1
    expected = [[float(1 + row // 8) * (2 <= row % 8 < 5), 0.0] for row in range(16)]
    assert batch["old_logprobs"].tolist() == expected


@mutant(
    "width that is ignored", "plainrl/rollout.py", "values[rows, :width] for name", "values[rows] for name"
)
def test_rows_have_a_width():
    """Catches a width that cuts the one column of a number per row, or the ids."""
    rollout = ending(pair_rollout(count=1), {1: ([5, 6, 7, 8], "stop")})
    part = rollout.batch(advantages_of(rollout), "cpu").rows(slice(2, 4), width=2)
    assert part["completion_mask"].shape == part["rollout_logprobs"].shape == (2, 2) and part[
        "advantages"
    ].tolist() == [[2.0], [3.0]]
    assert part.completion_ids == [[0, 2], [0, 3]] and len(part) == 2
