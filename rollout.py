"""Sample completions and score their tokens: the two things every reinforcement learning script here does with a model.

Letters in shapes: B prompts, G completions of each (a group), N = B*G rows, T completion tokens, V vocabulary.
Rows are prompt-major: rows i*G .. i*G+G-1 belong to prompt i. Prompts and completions stay lists of ids from the sampler to
the loss and are never tokenised again; masks come from their lengths, never from `ids == pad`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import groupby

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import distributed
import runtime
from shared_prompts import GrowingStretch, Rows, common_length, follow, prefill, run_arguments, run_rows
from tasks import Grade, Problem, grade_all

DROP_AT = 1 / 8  # share of finished rows at which they make room for others in the batch that is sampled
ROWS_AT_ONCE = 512  # completions that the sampler works on
PROMPT_TOKENS_AT_ONCE = 2**15  # whose keys and values the sampler keeps
LOGITS_AT_ONCE = 2**25  # the largest [tokens, V] block of logits that is scored at once, in numbers


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

    def rewards(self, group_size: int) -> torch.Tensor:
        """[B, G]"""
        return torch.tensor([grade.score for grade in self.grades], dtype=torch.float32).view(len(self.problems), group_size)

    def correct(self, group_size: int) -> list[int]:
        """Right completions of each prompt, B numbers."""
        return torch.tensor([grade.correct for grade in self.grades]).view(-1, group_size).sum(dim=1).tolist()

    def select(self, groups: list[int]) -> "Rollout":
        """The rollout of these prompts alone."""
        size = len(self.texts) // len(self.problems)
        pick = lambda rows: [rows[group * size + i] for group in groups for i in range(size)]  # noqa: E731
        return Rollout([self.problems[group] for group in groups], pick(self.prompt_ids), pick(self.completions), pick(self.texts),
                       pick(self.grades))  # fmt: skip

    def __add__(self, other: "Rollout") -> "Rollout":
        return Rollout(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))


def completion_seed(*key: int) -> int:
    """A 63-bit seed that depends only on its key: (seed, step, prompt, round, sample)."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]) >> 1


def encode_prompt(tokenizer: PreTrainedTokenizerBase, text: str, system: str | None = None) -> list[int]:
    """Ids of one user turn, ready for the model to answer. A model without a chat template gets the bare text."""
    if tokenizer.chat_template is None:
        return tokenizer.encode(f"{system}\n\n{text}" if system else text)
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": text})
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)


def sample_rollout(sampler, tokenizer, task, problems: list[Problem], prompts: list[str], seeds: list[int], group_size: int,
                   max_new_tokens: int, temperature: float, system: str | None = None, top_p: float = 1.0) -> Rollout:  # fmt: skip
    """Sample `group_size` completions for each prompt, one seed each, and grade them against the problems. Ranks share the prompts."""
    prompt_ids = [encode_prompt(tokenizer, prompt, system) for prompt in prompts]
    mine = distributed.share(len(prompts))
    rows = slice(mine.start * group_size, mine.stop * group_size)
    completions = sampler.generate(prompt_ids[mine], group_size, max_new_tokens, temperature, seeds[rows], top_p)
    assert len(completions) == len(problems[mine]) * group_size, "the sampler must return n completions for each prompt"
    texts = [tokenizer.decode(completion.ids, skip_special_tokens=True) for completion in completions]
    grades = grade_all(task, texts, [problem for problem in problems[mine] for _ in range(group_size)])
    completions, texts, grades = (distributed.gather(part) for part in (completions, texts, grades))
    return Rollout(problems, [ids for ids in prompt_ids for _ in range(group_size)], completions, texts, grades)


def pad(rows: list[list[int]], device) -> tuple[torch.Tensor, torch.Tensor]:
    """Lists of ids -> ids [N, T] padded on the right with 0, and the mask of real tokens [N, T] made from their lengths."""
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


# --- the sampler ----------------------------------------------------------------------------------------------------------


def draw(logits: torch.Tensor, temperature: float, uniforms: torch.Tensor, top_p: float = 1.0):
    """Inverse-CDF sampling: the first token whose cumulative probability exceeds the row's uniform number.

    logits [N, V], uniforms [N] in [0, 1) -> ids [N], their log-probabilities [N]. A row's draw depends on nothing but the row.
    Temperature 0 is greedy, with log-probability 0. top_p keeps the smallest set of tokens with at least that mass.
    """
    if temperature == 0:
        return logits.argmax(-1), torch.zeros(len(logits), device=logits.device)
    probs = torch.softmax(logits.float() / temperature, dim=-1)  # [N, V]
    if top_p < 1.0:
        sorted_probs, order = probs.sort(dim=-1, descending=True)
        dropped = sorted_probs.cumsum(-1) - sorted_probs >= top_p
        probs = probs.masked_fill(dropped.gather(-1, order.argsort(-1)), 0.0)
        probs = probs / probs.sum(-1, keepdim=True)
    cumulative = probs.cumsum(-1, dtype=torch.double)
    ids = torch.searchsorted(cumulative, uniforms[:, None] * cumulative[:, -1:], right=True).squeeze(1)
    ids = ids.clamp(max=logits.shape[1] - 1)
    return ids, probs.gather(-1, ids[:, None]).squeeze(1).log()


class HFSampler:
    """Samples from the transformers model that is being trained: no second copy, no weights to push.

    Prompts are run once (shared_prompts.py), and rows that finish make room for the next. A completion's tokens depend on its seed and
    prompt only, in whatever batch it is sampled, up to rounding: another batch may turn a draw on the boundary of two tokens.
    """

    shares_weights = True

    def __init__(self, model: PreTrainedModel, eos_ids: list[int], rows_at_once: int = ROWS_AT_ONCE):
        self.model, self.eos_ids, self.rows_at_once = model, torch.tensor(eos_ids, device=model.device), rows_at_once

    def load_weights(self, model: PreTrainedModel) -> None:
        self.model = model

    @torch.no_grad()
    def generate(self, prompt_ids: list[list[int]], n: int, max_new_tokens: int, temperature: float, seeds: list[int],
                 top_p: float = 1.0) -> list[Completion]:  # fmt: skip
        """`n` completions for each of B prompts, prompt-major; seeds has one entry a completion (B*n)."""
        if len(seeds) != len(prompt_ids) * n:
            raise ValueError(f"{len(prompt_ids)} prompts x {n} completions need {len(prompt_ids) * n} seeds, not {len(seeds)}")
        distributed.gather_weights(self.model)
        was_training = self.model.training
        self.model.eval()
        completions, first = [], 0
        while first < len(prompt_ids):
            last, tokens = first + 1, len(prompt_ids[first])
            while last < len(prompt_ids) and tokens + len(prompt_ids[last]) <= PROMPT_TOKENS_AT_ONCE:
                last, tokens = last + 1, tokens + len(prompt_ids[last])
            prompts = [prompt for prompt in prompt_ids[first:last] for _ in range(n)]
            completions += self._generate(prompts, max_new_tokens, temperature, seeds[first * n : last * n], top_p)
            first = last
        self.model.train(was_training)
        return completions

    @torch.inference_mode()
    def _generate(self, prompts, max_new_tokens, temperature, seeds, top_p) -> list[Completion]:
        """One completion for each prompt. Up to `rows_at_once` of them are rows of a batch; those that finish make room for the next."""
        # All rows write their next keys and values into the same `column` of the cache. A row that begins later has its `first` column
        # there, so that t = column - first is how many tokens it has; what lies before is another row's, and hidden from it.
        model, device = self.model, self.model.device
        stretches, completions, ends = prefill(model, prompts), [None] * len(prompts), set(self.eos_ids.tolist())

        def begin(rows: range, column: int) -> dict[str, torch.Tensor]:
            """State of new rows of the batch, whose first token comes into this column of the cache."""
            uniforms = [np.random.Generator(np.random.Philox(seeds[row])).random(max_new_tokens) for row in rows]
            return {"row": torch.tensor(rows, device=device), "first": torch.full((len(rows),), column, device=device),
                    "start": torch.tensor([len(prompts[row]) - 1 for row in rows], device=device),
                    "token": torch.tensor([prompts[row][-1] for row in rows], device=device),
                    "uniforms": torch.from_numpy(np.stack(uniforms)).to(device),  # [rows, max_new_tokens], as the next two
                    "ids": torch.zeros(len(rows), max_new_tokens, dtype=torch.long, device=device),
                    "logprobs": torch.zeros(len(rows), max_new_tokens, device=device),
                    "length": torch.zeros(len(rows), dtype=torch.long, device=device)}  # fmt: skip

        begun, column, own = min(self.rows_at_once, len(prompts)), 0, GrowingStretch()
        batch, together = begin(range(begun), 0), True
        above = follow(stretches, batch["row"])
        while True:
            t = (column - batch["first"]).clamp(max=max_new_tokens - 1)  # [rows] (a finished one may wait at the end)
            rows = Rows(None, batch["start"], above, own, None if together else batch["first"])
            logits = model(input_ids=batch["token"][:, None], **run_arguments((batch["start"] + t)[:, None], rows)).logits[:, 0]
            uniforms = batch["uniforms"].gather(1, t[:, None]).squeeze(1)
            batch["token"], logprob = draw(logits, temperature, uniforms, top_p)
            live = batch["length"] == 0
            places = live.nonzero().squeeze(1)
            batch["ids"][places, t[places]] = batch["token"][places]
            batch["logprobs"][places, t[places]] = logprob[places].float()
            ended = live & (torch.isin(batch["token"], self.eos_ids) | (t + 1 == max_new_tokens))
            batch["length"] = torch.where(ended, t + 1, batch["length"])
            column += 1
            finished = batch["length"] > 0
            if not finished.all() and finished.sum() < DROP_AT * len(finished):  # an exchange copies the cache: not for every single row
                continue
            for row, ids, logprobs, length in zip(*(batch[name][finished].tolist() for name in ("row", "ids", "logprobs", "length"))):
                completions[row] = Completion(ids[:length], logprobs[:length], "stop" if ids[length - 1] in ends else "length")

            keep = (~finished).nonzero().squeeze(1)
            new = range(begun, min(begun + self.rows_at_once - len(keep), len(prompts)))
            if not len(keep) + len(new):
                return completions
            batch = {name: value[keep] for name, value in batch.items()}
            unused = min([column, *batch["first"].tolist()])  # columns before all rows that stay
            unused = unused if 2 * unused >= column else 0
            own.exchange(keep, len(new), unused)
            batch["first"], column = batch["first"] - unused, column - unused
            if new:
                batch = {name: torch.cat([batch[name], value]) for name, value in begin(new, column).items()}
            begun, together = new.stop, not batch["first"].any()
            above = follow(stretches, batch["row"])


def make_sampler(args, model: PreTrainedModel, eos_ids: list[int]):
    """The sampler that --engine and --vllm-server name."""
    check_model(model)
    server, engine = getattr(args, "vllm_server", None), args.engine
    if engine == "auto":
        alone_on_gpu = torch.cuda.is_available() and distributed.WORLD_SIZE == 1
        engine = "vllm" if server or (alone_on_gpu and find_spec("vllm")) else "hf"
    if engine == "hf":
        return HFSampler(model, eos_ids)
    from rollout_vllm import ServerSampler, VLLMSampler, refuse_what_is_cut  # only needed here

    sampler = ServerSampler(server, model, eos_ids) if server else VLLMSampler(model, eos_ids, getattr(args, "vllm_memory", None))
    refuse_what_is_cut([[0]], args.max_new_tokens, sampler.room)  # before anything is written
    return sampler


def check_model(model: PreTrainedModel) -> None:
    """Stop the run if prompts that are run once do not give the model's own log-probabilities: some layer is no plain attention, or the
    head is more than a matrix product."""
    prompts, completions = [[2, 3, 4, 5], [2, 3, 4, 5], [5, 4]], [[6, 7, 8, 9], [10, 11], [3, 2, 6]]
    try:
        if any(getattr(module, "rope_type", None) in ("dynamic", "longrope") for module in model.modules()):
            raise ValueError("its rotary embedding changes with the longest row of a batch")
        with torch.no_grad():
            ours, _ = score(model, prompts, completions, 1.0)
            for row, prompt, completion in zip(ours, prompts, completions):
                logits = model(input_ids=torch.tensor([prompt + completion], device=model.device)).logits[0, len(prompt) - 1 : -1]
                plain, _ = logprob_and_entropy(logits.to(row.dtype), torch.tensor(completion, device=model.device))
                gap = (row[: len(completion)] - plain).abs().max().item()
                if not gap <= 0.1:  # rounding alone: .005 in float32 was seen, at ids that make no sense together
                    raise ValueError(f"log-probabilities differ by {gap:.2g}")
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        runtime.fail(f"--model: {type(model).__name__} is none of the models that can share prompts ({reason}); use a plain one, such as "
                     "Llama, Qwen2, Qwen3, Mistral, SmolLM or OLMo 2")  # fmt: skip


def push_weights(sampler, model: PreTrainedModel, tokenizer, task, args) -> None:
    """Hand the model's weights to a sampler that has its own, and make sure that it samples from them."""
    if not sampler.shares_weights:
        sampler.load_weights(model)
        probe_gap(sampler, model, tokenizer, task, args)


def probe_gap(sampler, model: PreTrainedModel, tokenizer, task, args) -> None:
    """Compare sampler and trainer on a few short completions and stop the run when they disagree.

    Catches weights that did not arrive, another temperature, a logit processor, an attention bug: everything that would turn
    the ratio of the loss into noise without any error message.
    """
    prompts = [encode_prompt(tokenizer, task.problem("dev", index, args.seed).prompt, args.system_prompt) for index in range(4)]
    seeds = [completion_seed(args.seed, 0, index, 0, 0) for index in range(4)]
    completions = sampler.generate(prompts, 1, min(32, args.max_new_tokens), args.temperature, seeds) if distributed.MAIN else []
    completions = distributed.gather(completions)  # the same for all ranks
    logprobs, _ = score_all(model, prompts, [c.ids for c in completions], args.temperature, args.micro_batch_tokens)
    gaps = [abs(ours - theirs) for row, c in zip(logprobs.tolist(), completions) for ours, theirs in zip(row, c.logprobs)]
    runtime.check_gap(sum(gaps) / len(gaps), args)


# --- the scorer -----------------------------------------------------------------------------------------------------------


def logprob_and_entropy(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What the scorer computes for every token: its log-probability, and the entropy of its distribution (nats, no gradient).

    logits [M, V] are float32 (or float64) and already divided by the temperature; targets [M]; two results [M].
    """
    logprobs = torch.log_softmax(logits, dim=-1)
    chosen = logprobs.gather(-1, targets[:, None]).squeeze(1)  # first, since what is recomputed in the backward pass ends with it
    with torch.no_grad():
        entropy = -(logprobs.exp() * logprobs).sum(-1)
    return chosen, entropy


def score(model: PreTrainedModel, prompt_ids: list[list[int]], completion_ids: list[list[int]], temperature: float,
          token_function: Callable = logprob_and_entropy, share_prompts: bool = True):  # fmt: skip
    """Per-token numbers of completions under the model: a tuple of [N, T], zero where a row has no token.

    `token_function(logits [M, V], targets [M])` returns one or more [M] tensors; the default gives log-probabilities and
    entropies. It sees blocks of tokens, recomputed in the backward pass, so no [N, T, V] tensor ever exists. Equal prompts are
    run once, forward and backward, for all their completions; `share_prompts` False is the plain padded forward.
    """
    return distributed.inside(model, _score, model, prompt_ids, completion_ids, temperature, token_function, share_prompts)


def _score(model, prompt_ids, completion_ids, temperature, token_function, share_prompts):
    if not all(completion_ids):
        raise ValueError(f"completion {list(map(len, completion_ids)).index(0)} has no token: keep at least its EOS")
    targets, mask = pad(completion_ids, model.device)  # [N, T]
    # Logits at position t score token t+1: the inputs are the last prompt token and the completion without its last.
    inputs = [[prompt[-1], *completion[:-1]] for prompt, completion in zip(prompt_ids, completion_ids)]
    starts = torch.tensor([len(prompt) - 1 for prompt in prompt_ids], device=model.device)
    if share_prompts:
        flat_hidden, _ = run_rows(model, inputs, starts, follow(prefill(model, prompt_ids)))
    else:
        full_ids, full_mask = pad([[*prompt[:-1], *row] for prompt, row in zip(prompt_ids, inputs)], model.device)
        hidden = model.base_model(input_ids=full_ids, attention_mask=full_mask.long(), use_cache=False).last_hidden_state
        columns = (starts[:, None] + torch.arange(mask.shape[1], device=model.device)).clamp(max=hidden.shape[1] - 1)
        flat_hidden = hidden.gather(1, columns[:, :, None].expand(-1, -1, hidden.shape[2]))[mask]

    head, flat_targets = model.get_output_embeddings(), targets[mask]  # flat_hidden is [M, hidden size]
    dtype = torch.promote_types(head.weight.dtype, torch.float32)

    def numbers_of_block(hidden_block, target_block):
        values = token_function(head(hidden_block).to(dtype) / temperature, target_block)
        return values if isinstance(values, tuple) else (values,)

    block = max(1, LOGITS_AT_ONCE // head.weight.shape[0])
    blocks = [checkpoint(numbers_of_block, flat_hidden[i : i + block], flat_targets[i : i + block], use_reentrant=False)
              for i in range(0, len(flat_targets), block)]  # fmt: skip
    columns = [torch.cat(parts) for parts in zip(*blocks)]
    return tuple(column.new_zeros(mask.shape).masked_scatter(mask, column) for column in columns)


def micro_batches(prompt_ids: list[list[int]], completion_ids: list[list[int]], tokens: int, rows: slice | None = None) -> list[slice]:
    """Consecutive rows of at most `tokens`, equal prompts counted once, and at least one row each; a group is cut only where it does not
    fit. (Padded completions, which only attention has, may be four times as many.) Of several ranks each gets its own, with about as many
    tokens, which cuts groups too."""
    start, stop, _ = (rows or slice(None)).indices(len(prompt_ids))
    if distributed.WORLD_SIZE > 1:
        everything = sum(map(len, completion_ids[start:stop])) + sum(map(len, set(map(tuple, prompt_ids[start:stop]))))
        tokens = min(tokens, math.ceil(everything / distributed.WORLD_SIZE))
    pieces = []  # (prompt, lengths of its completions)
    for prompt, group in groupby(range(start, stop), key=lambda row: tuple(prompt_ids[row])):
        lengths = [len(completion_ids[row]) for row in group]
        fits = max(len(prompt) + sum(lengths), max(lengths) * len(lengths) / 4) <= tokens
        whole = fits and distributed.WORLD_SIZE == 1
        pieces += [(prompt, lengths)] if whole else [(prompt, [length]) for length in lengths]
    shared = common_length(prompt_ids[start:stop])
    parts, row, prompts, size, longest = [], start, set(), shared, 0
    for prompt, lengths in pieces:
        added = sum(lengths) + (len(prompt) - shared if prompt not in prompts else 0)
        if row > start and max(size + added, max(longest, *lengths) * (row + len(lengths) - start) / 4) > tokens:
            parts.append(slice(start, row))
            start, prompts, size, longest, added = row, set(), shared, 0, sum(lengths) + len(prompt) - shared
        prompts.add(prompt)
        row, size, longest = row + len(lengths), size + added, max(longest, *lengths)
    parts.append(slice(start, stop))
    return parts[distributed.RANK :: distributed.WORLD_SIZE]


def score_all(model, prompt_ids, completion_ids, temperature: float, tokens: int, token_function: Callable = logprob_and_entropy):
    """`score` without gradients, in micro-batches of `tokens`: a tuple of [N, T]."""
    width, found = max(map(len, completion_ids)), []
    distributed.gather_weights(model)
    with torch.no_grad():
        for rows in micro_batches(prompt_ids, completion_ids, tokens):
            columns = score(model, prompt_ids[rows], completion_ids[rows], temperature, token_function)
            found.append((rows.start, [torch.nn.functional.pad(column, (0, width - column.shape[1])) for column in columns]))
    if not model.training:  # a reference model, which is not needed again in this step
        distributed.release_weights(model)
    if distributed.WORLD_SIZE > 1:
        found = distributed.gather([(first, [column.cpu() for column in columns]) for first, columns in found])
        found = [(first, [column.to(model.device) for column in columns]) for first, columns in sorted(found, key=lambda part: part[0])]
    return tuple(torch.cat(parts) for parts in zip(*(columns for _, columns in found)))
