"""One sampled and graded batch: what a step of reinforcement learning works on.

Letters in shapes: B prompts, G completions of each (a group), N = B*G rows, T completion tokens. Rows are
prompt-major: rows i*G .. i*G+G-1 belong to prompt i. Prompts and completions stay lists of ids from the
sampler to the loss and are never tokenised again. Masks come from their lengths, never from `ids == pad`.
"""

from dataclasses import dataclass, field, replace

import numpy as np
import torch

from plainrl import ranks
from plainrl.flags import EVAL_SEED
from plainrl.grading import grade_all
from plainrl.horizons import EveryHorizon
from plainrl.screen import fail, or_fail, say
from plainrl.sources import ListTask
from plainrl.tasks import Grade, Problem, scored

# Numbers of each token in the last update that saw it: log-probability and entropy (nats) under the trained
# policy, pi / pi_old, whether the clipped term won, weight in the loss, and trainer - sampler in
# log-probability. `plainrl.scoring.update_sums` fills them in.
LAST = ("last_logprob", "last_entropy", "last_ratio", "last_clipped", "last_weight", "last_gap")
MOST_LONG_IN_A_ROW = 100  # training problems whose prompts are too long; more end the run


@dataclass(frozen=True)
class Completion:
    """One sampled completion. It ended by itself ("stop": the last id is EOS) or was cut ("length")."""

    ids: list[int]
    logprobs: list[float]  # of each id under the sampler, after temperature and top-p
    finish_reason: str


@dataclass(frozen=True)
class Rollout:
    """One sampled and graded batch; every list is prompt-major."""

    problems: list[Problem]  # B
    prompt_ids: list[list[int]]  # N, each prompt repeated G times
    completions: list[Completion]  # N
    texts: list[str]  # N
    grades: list[Grade]  # N

    @property
    def group_size(self) -> int:
        """G"""
        return len(self.texts) // max(1, len(self.problems))

    @property
    def completion_ids(self) -> list[list[int]]:
        return [completion.ids for completion in self.completions]

    @property
    def logprobs(self) -> list[list[float]]:
        return [completion.logprobs for completion in self.completions]

    @property
    def tokens(self) -> int:
        return sum(len(completion.ids) for completion in self.completions)

    @property
    def truncated(self) -> list[bool]:
        return [completion.finish_reason == "length" for completion in self.completions]

    def rewards(self) -> torch.Tensor:
        """The score of each completion, [B, G]."""
        scores = torch.tensor([grade.score for grade in self.grades], dtype=torch.float32)
        return scores.view(len(self.problems), self.group_size)

    def correct(self) -> list[int]:
        """Right completions of each prompt, B numbers."""
        if not self.problems:
            return []
        return (
            torch.tensor([grade.correct for grade in self.grades])
            .view(-1, self.group_size)
            .sum(dim=1)
            .tolist()
        )

    def select(self, groups: list[int]) -> "Rollout":
        """The rollout of these prompts alone."""
        rows = [group * self.group_size + i for group in groups for i in range(self.group_size)]
        pick = lambda column: [column[row] for row in rows]  # noqa: E731
        problems = [self.problems[group] for group in groups]
        return Rollout(problems, *map(pick, (self.prompt_ids, self.completions, self.texts, self.grades)))

    def __add__(self, other: "Rollout") -> "Rollout":
        return Rollout(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))

    def batch(self, advantages: torch.Tensor, device, mask_truncated: bool = False) -> "Batch":
        """What the update works on: ids, advantages, masks and the sampler's log-probabilities.

        Truncated completions leave the loss when they are masked. All else, the log too, still counts their
        tokens.
        """
        _, completion_mask = pad(self.completion_ids, device)  # [N, T]
        loss_mask = completion_mask.clone()
        if mask_truncated:
            loss_mask[torch.tensor(self.truncated, dtype=torch.bool, device=device)] = False
        columns = {
            "advantages": advantages.view(-1, 1).to(device),  # [N, 1]
            "completion_mask": completion_mask,  # [N, T], EOS included
            "loss_mask": loss_mask,  # [N, T]
            "rollout_logprobs": pad_values(self.logprobs, completion_mask),  # [N, T]
            "seen": torch.zeros(len(completion_mask), 1, dtype=torch.bool, device=device),  # by an update
            **{name: torch.zeros(completion_mask.shape, device=device) for name in LAST},  # [N, T] each
        }
        return Batch(
            self.prompt_ids,
            self.completion_ids,
            columns,
            rows_per_group=[self.group_size] * len(self.problems),
        )


@dataclass
class Batch:
    """Rows of a rollout as tensors, by name: batch["advantages"] and batch["seen"] are [N, 1], others [N, T].

    An algorithm adds its own, batch["old_logprobs"] = ..., and they are cut with the rest. What `split`
    returns are views: writing into a part's tensor in place writes into the whole.
    """

    prompt_ids: list[list[int]]  # N
    completion_ids: list[list[int]]  # N
    columns: dict[str, torch.Tensor] = field(default_factory=dict)  # [N, 1] or [N, T] each
    rows_per_group: list[int] = field(
        default_factory=list
    )  # how many rows each group has: G, or 2G where two were joined

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.columns[name]

    def __setitem__(self, name: str, values: torch.Tensor) -> None:
        self.columns[name] = values

    def __contains__(self, name: str) -> bool:
        return name in self.columns

    def __len__(self) -> int:
        return len(self.completion_ids)

    def get(self, name: str, default=None):
        return self.columns.get(name, default)

    def rows(self, rows: slice, width: int | None = None) -> "Batch":
        """These rows, and of their tokens the first `width`."""
        columns = {name: values[rows, :width] for name, values in self.columns.items()}
        return Batch(self.prompt_ids[rows], self.completion_ids[rows], columns)

    def split(self, parts: int) -> list["Batch"]:
        """The batch of each of `parts` optimizer steps: whole groups, in order."""
        groups = len(self.rows_per_group)
        groups_per_part = max(1, -(-groups // parts))  # rounded up
        minibatches = []
        for first in range(0, groups, groups_per_part):
            start = sum(self.rows_per_group[:first])
            own = self.rows_per_group[first : first + groups_per_part]
            minibatch = self.rows(slice(start, start + sum(own)))
            minibatch.rows_per_group = own
            minibatches.append(minibatch)
        return minibatches


def completion_seed(*key: int) -> int:
    """A 63-bit seed that depends only on its key: (seed, step, prompt, round, sample)."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]) >> 1


def encode_prompt(tokenizer, text: str, system: str | None = None) -> list[int]:
    """Ids of one user turn, ready for the model to answer. A model without a chat template gets the bare
    text. `set_thinking` says what a template hears of thinking."""
    if tokenizer.chat_template is None:
        return tokenizer.encode(f"{system}\n\n{text}" if system else text)
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": text})
    return apply_template(tokenizer, messages)


def apply_template(tokenizer, turns: list[dict], answer: bool = True) -> list[int]:
    """Ids of a conversation in the model's chat template. `answer`: the assistant is to speak next."""
    thinking = getattr(tokenizer, "enable_thinking", None)
    told = {} if thinking is None else {"enable_thinking": thinking}
    return tokenizer.apply_chat_template(
        turns, add_generation_prompt=answer, tokenize=True, return_dict=False, **told
    )


def set_thinking(tokenizer, enable_thinking: str | None) -> None:
    """--enable-thinking, kept with the tokenizer: every prompt that is made with it, sampled or scored, is
    made alike."""
    tokenizer.enable_thinking = None if enable_thinking is None else enable_thinking == "yes"


def thinks_at_once(tokenizer, prompt_ids: list[int]) -> bool:
    """Does the prompt end with <think>, as the templates of some thinking models do?"""
    return tokenizer.decode(prompt_ids[-16:]).rstrip().endswith("<think>")


# --- prompts that cannot work -------------------------------------------------------------------------------


def check_template(tokenizer, system: str | None = None) -> None:
    """Refuse a chat template that cannot write a prompt, or that drops what the prompt should hold."""
    plain = encoded_or_fail(tokenizer, "1", None, "--model", "use another model")
    if not plain or plain == encoded_or_fail(tokenizer, "2", None, "--model", "use another model"):
        fail("--model: its chat template leaves the prompt out; use another model")
    if system:
        way_out = "leave the flag out, or put the text into the prompts"
        with_system = encoded_or_fail(tokenizer, "1", system, "--system-prompt", way_out)
        if with_system == plain:
            fail(f"--system-prompt: the chat template of --model leaves a system turn out; {way_out}")


def encoded_or_fail(tokenizer, text: str, system: str | None, flag: str, way_out: str) -> list[int]:
    """`encode_prompt`, where the template may raise."""
    try:
        return encode_prompt(tokenizer, text, system)
    except Exception as error:  # a template is a program of its own and raises what it likes
        kind, said = type(error).__name__, " ".join(str(error).split())[:200]
        turns = "a system turn" if system else "a prompt"
        fail(f"{flag}: the chat template of --model cannot write {turns} ({kind}: {said}); {way_out}")


def check_prompts(task, tokenizer, sampler, args) -> None:
    """Refuse a template that cannot work, and prompts that are scored and cannot be.

    For a run to call before anything is written. Training prompts are `with_short_prompts`'s.
    """
    check_template(tokenizer, args.system_prompt)
    for split, count in (("dev", args.eval_problems), ("test", args.test_problems)):
        for index in range(or_fail(scored, task, split, count)):
            problem = or_fail(task.problem, split, index, EVAL_SEED)
            ids = encode_prompt(tokenizer, problem.prompt, args.system_prompt)
            check_prompt(ids, args.max_new_tokens, sampler, f"{split} problem {index}")


def check_prompt(ids: list[int], max_new_tokens: int, sampler, which: str) -> None:
    """Refuse a prompt without a token, with one that the model does not have, or too long for its context.

    `sampler.room` and `sampler.vocabulary`, in tokens, are None or absent where nobody knows them.
    """
    room, vocabulary = getattr(sampler, "room", None), getattr(sampler, "vocabulary", None)
    if not ids:
        fail(f"--task: {which} has no token; leave it out")
    if vocabulary is not None and max(ids) >= vocabulary:
        fail(
            f"--model: its tokenizer makes token {max(ids)} of {which}, and its weights have {vocabulary} "
            "tokens; the tokenizer is another model's"
        )
    if room is not None and len(ids) + max_new_tokens > room:
        left = room - len(ids)
        way_out = f"ask for {left} or fewer" if left > 0 else "take shorter problems"
        fail(
            f"--max-new-tokens {max_new_tokens}: {which} has {len(ids)} tokens, and the model's context "
            f"{room}; {way_out}, or use a model with a longer context"
        )


# --- training prompts that are too long ---------------------------------------------------------------------


class PromptRoom:
    """The room for a prompt: the model's context without --max-new-tokens. None where nobody knows it."""

    def __init__(self, tokenizer, sampler, args):
        self.tokenizer, self.system = tokenizer, args.system_prompt
        room = getattr(sampler, "room", None)
        self.tokens = None if room is None else room - args.max_new_tokens
        self.is_said = False  # that a hint had no room
        self.template = len(encode_prompt(tokenizer, "1", self.system))  # tokens round any prompt

    def holds(self, prompt: str) -> bool:
        if self.tokens is None:
            return True
        size = len(prompt.encode("utf-8", "surrogatepass"))  # no token is shorter than a byte
        return size + self.template <= self.tokens or self.length(prompt) <= self.tokens

    def length(self, prompt: str) -> int:
        return len(encode_prompt(self.tokenizer, prompt, self.system))


def with_short_prompts(task, room: PromptRoom, args):
    """The task without the training problems whose prompts are too long.

    Those of a list are left out, which the screen says. Of any other task nobody knows them before they
    come: see `NextThatFits`. Where nothing is too long, every problem stays where it was.
    """
    if room.tokens is None:
        return task
    if isinstance(task, EveryHorizon):
        task.tasks = [with_short_prompts(each, room, args) for each in task.tasks]
        return task
    if isinstance(task, ListTask):
        return without_long_prompts(task, room)
    fitting = NextThatFits(task, room, args.train_size)
    or_fail(fitting.problem, "train", 0, args.seed)  # where none fits, the run ends before it begins
    return fitting


def without_long_prompts(task: ListTask, room: PromptRoom) -> ListTask:
    """Stops with one line where no training problem is left."""
    problems = task.problems.get("train", [])
    short, long = [], []
    for problem in problems:
        if room.holds(problem.prompt):
            short.append(problem)
        else:
            long.append(problem.prompt)
    if not long:
        return task
    first = "; ".join(f"{text[:40]!r} has {room.length(text)}" for text in long[:5])
    said = (
        f"{len(long)} of {len(problems)} training problems have prompts of more than {room.tokens} tokens, "
        f"all that --max-new-tokens leaves of the model's context ({first}{'; ...' * (len(long) > 5)})"
    )
    if not short:
        fail(f"{task.flag}: {said}; give a lower --max-new-tokens, or a model with a longer context")
    say(f"{task.flag}: left out: {said}")
    return replace(task, problems=task.problems | {"train": short})


class NextThatFits:
    """A task in whose training the next problem that fits takes the place of one that is too long.

    So a rare long one does not end a run, at its step and again at every resume. Which one comes depends on
    nothing but the index. All else is the task's own.
    """

    def __init__(self, task, room: PromptRoom, train_size: int | None):
        self.task, self.room, self.train_size, self.is_said = task, room, train_size, False

    def __getattr__(self, name: str):
        if name == "task":  # of a copy that is not filled yet
            raise AttributeError(name)
        return getattr(self.task, name)

    def problem(self, split: str, index: int, seed: int) -> Problem:
        found = self.task.problem(split, index, seed)
        if split != "train":
            return found
        for further in range(1, 1 + MOST_LONG_IN_A_ROW):
            if self.room.holds(found.prompt):
                return found
            if not self.is_said:
                self.is_said = True
                say(
                    f"training problem {index} has a prompt of {self.room.length(found.prompt)} tokens, and "
                    f"--max-new-tokens leaves room for {self.room.tokens}: the next takes its place, as that "
                    "of every other that is too long"
                )
            other = index + further
            found = self.task.problem(split, other % self.train_size if self.train_size else other, seed)
        fail(
            f"--task {self.task.name}: the prompts of {MOST_LONG_IN_A_ROW} training problems in a row, from "
            f"{index} on, have more than {self.room.tokens} tokens, all that --max-new-tokens leaves of the "
            "model's context; give a lower one, take shorter problems, or use a model with a longer context"
        )


# --- sampling -----------------------------------------------------------------------------------------------


def sample_rollout(
    sampler,
    tokenizer,
    task,
    problems: list[Problem],
    prompts: list[str],
    seeds: list[int],
    group_size: int,
    max_new_tokens: int,
    temperature: float,
    system: str | None = None,
    top_p: float = 1.0,
) -> Rollout:
    """Sample `group_size` completions for each prompt, one seed each, and grade them. Ranks share the
    prompts."""
    prompt_ids = [encode_prompt(tokenizer, prompt, system) for prompt in prompts]
    for prompt, ids in zip(prompts, prompt_ids):
        check_prompt(ids, max_new_tokens, sampler, f"the prompt {prompt[:40]!r}")
    mine = ranks.share(len(prompts))
    rows = slice(mine.start * group_size, mine.stop * group_size)
    completions = sampler.generate(
        prompt_ids[mine], group_size, max_new_tokens, temperature, seeds[rows], top_p
    )
    if len(completions) != len(problems[mine]) * group_size:
        raise ValueError("the sampler must return n completions for each prompt")
    texts = [tokenizer.decode(completion.ids, skip_special_tokens=True) for completion in completions]
    # A template that opens the thinking itself leaves its <think> in the prompt.
    opened = ["<think>" if thinks_at_once(tokenizer, ids) else "" for ids in prompt_ids[mine]]
    said = [opened[row // group_size] + text for row, text in enumerate(texts)]
    grades = or_fail(
        grade_all, task, said, [problem for problem in problems[mine] for _ in range(group_size)]
    )
    completions, texts, grades = (ranks.gather(part) for part in (completions, texts, grades))
    return Rollout(
        problems, [ids for ids in prompt_ids for _ in range(group_size)], completions, texts, grades
    )


def pad(rows: list[list[int]], device) -> tuple[torch.Tensor, torch.Tensor]:
    """Lists of ids -> ids [N, T], padded on the right with 0, and the mask of real tokens [N, T] from their
    lengths."""
    lengths = torch.tensor([len(row) for row in rows], device=device)
    mask = torch.arange(max(map(len, rows), default=0), device=device) < lengths[:, None]
    ids = torch.zeros(mask.shape, dtype=torch.long, device=device)
    ids[mask] = torch.tensor([token for row in rows for token in row], dtype=torch.long, device=device)
    return ids, mask


def pad_values(rows: list[list[float]], mask: torch.Tensor) -> torch.Tensor:
    """Numbers per token -> [N, T] float32, zero outside the mask."""
    values = torch.zeros(mask.shape, device=mask.device)
    values[mask] = torch.tensor([value for row in rows for value in row], device=mask.device)
    return values
