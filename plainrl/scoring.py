"""Score completions under the model: per-token log-probabilities and entropies, with and without gradient.

Letters in shapes: N rows (one prompt with one completion each), T completion tokens, M tokens of all rows
end to end, V vocabulary. Row n of a result is about completion n; where it has no token there is a zero.
"""

from collections.abc import Callable, Iterator
from itertools import groupby

import torch
from torch.utils.checkpoint import checkpoint

from plainrl import ranks
from plainrl.models import in_float32
from plainrl.rollout import LAST, Batch, pad
from plainrl.screen import fail
from plainrl.shared_prompts import common_length, follow, prefill, run_rows

LOGITS_AT_ONCE = 2**25  # the largest [tokens, V] block of logits that is scored at once, in numbers
PADDED_TIMES = (
    4  # completions, which attention alone pads, may take so many times --micro-batch-tokens when padded
)


def logprob_and_entropy(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What the scorer computes for every token: its log-probability, and the entropy of its distribution.

    logits [M, V] are float32 (or float64) and already divided by the temperature; targets [M]; two results
    [M]. The entropy is in nats and carries no gradient.
    """
    logprobs = torch.log_softmax(logits, dim=-1)
    chosen = logprobs.gather(-1, targets[:, None]).squeeze(
        1
    )  # first: recomputing for the backward pass ends here
    with torch.no_grad():
        entropy = -(logprobs.exp() * logprobs).sum(-1)
    return chosen, entropy


def score(
    model,
    prompt_ids: list[list[int]],
    completion_ids: list[list[int]],
    temperature: float,
    token_function: Callable = logprob_and_entropy,
    share_prompts: bool = True,
    shown_ids: torch.Tensor | None = None,
) -> tuple[torch.Tensor, ...]:
    """Per-token numbers of completions under the model: a tuple of [N, T], zero where a row has no token.

    `token_function(logits [M, V], targets [M])` returns one or more [M] tensors; the default gives
    log-probabilities and entropies. It sees blocks of tokens, recomputed in the backward pass, so no [N, T,
    V] tensor ever exists. Equal prompts are run once, forward and backward, for all their completions;
    `share_prompts` False is the plain padded forward.

    `shown_ids` [N, T] are what the model reads in place of the completions, which stay the targets: token t
    is scored after the prompt and the first t - 1 of them. Raises ValueError where they have another shape.
    """
    arguments = (model, prompt_ids, completion_ids, temperature, token_function, share_prompts, shown_ids)
    return ranks.inside(model, _score, *arguments)


def _score(model, prompt_ids, completion_ids, temperature, token_function, share_prompts, shown_ids):
    if not all(completion_ids):
        empty = list(map(len, completion_ids)).index(0)
        raise ValueError(f"completion {empty} has no token: keep at least its EOS")
    targets, mask = pad(completion_ids, model.device)  # [N, T]
    if shown_ids is not None:
        if shown_ids.shape != mask.shape:
            raise ValueError(f"shown_ids are {[*shown_ids.shape]}, and the completions {[*mask.shape]}")
        completion_ids = [row[: len(ids)] for row, ids in zip(shown_ids.tolist(), completion_ids)]
    hidden_states = shared_hidden_states if share_prompts else padded_hidden_states
    hidden = hidden_states(model, prompt_ids, completion_ids)  # [M, hidden size]

    head, flat_targets = model.get_output_embeddings(), targets[mask]  # [M]
    dtype = torch.promote_types(head.weight.dtype, torch.float32)

    def numbers_of_block(hidden_block, target_block):
        values = token_function(head(hidden_block).to(dtype) / temperature, target_block)
        return values if isinstance(values, tuple) else (values,)

    columns = in_blocks(numbers_of_block, LOGITS_AT_ONCE // head.weight.shape[0], hidden, flat_targets)
    return tuple(column.new_zeros(mask.shape).masked_scatter(mask, column) for column in columns)


def in_blocks(function: Callable, size: int, *columns: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """`function(*columns)`, a tuple of [M], for columns [M, ...], of `size` rows at a time (at least one):
    what it makes on the way is computed again in the backward pass, not kept."""
    parts = zip(*(column.split(max(1, size)) for column in columns), strict=True)
    blocks = [checkpoint(function, *part, use_reentrant=False) for part in parts]
    return tuple(torch.cat(values) for values in zip(*blocks))


def scored_inputs(prompt_ids: list[list[int]], completion_ids: list[list[int]]) -> list[list[int]]:
    """Logits at position t score token t+1: the inputs are the last prompt token and the completion without
    its last."""
    return [[prompt[-1], *completion[:-1]] for prompt, completion in zip(prompt_ids, completion_ids)]


def padded_hidden_states(model, prompt_ids, completion_ids) -> torch.Tensor:
    """Last hidden states of the tokens that predict the completions, [M, hidden size]: one padded batch."""
    inputs = scored_inputs(prompt_ids, completion_ids)
    mask = pad(inputs, model.device)[1]  # [N, T]
    rows = [[*prompt[:-1], *row] for prompt, row in zip(prompt_ids, inputs)]
    full_ids, full_mask = pad(rows, model.device)
    output = model.base_model(input_ids=full_ids, attention_mask=full_mask.long(), use_cache=False)
    hidden = output.last_hidden_state  # [N, longest row, hidden size]
    starts = torch.tensor([len(prompt) - 1 for prompt in prompt_ids], device=model.device)
    columns = starts[:, None] + torch.arange(mask.shape[1], device=model.device)  # [N, T]
    columns = columns.clamp(max=hidden.shape[1] - 1)
    return hidden.gather(1, columns[:, :, None].expand(-1, -1, hidden.shape[2]))[mask]


def shared_hidden_states(model, prompt_ids, completion_ids) -> torch.Tensor:
    """The same [M, hidden size], where equal prompts are run once."""
    starts = torch.tensor([len(prompt) - 1 for prompt in prompt_ids], device=model.device)
    inputs = scored_inputs(prompt_ids, completion_ids)
    return run_rows(model, inputs, starts, follow(prefill(model, prompt_ids)))[0]


def score_all(
    model,
    prompt_ids: list[list[int]],
    completion_ids: list[list[int]],
    temperature: float,
    tokens: int,
    token_function: Callable = logprob_and_entropy,
) -> tuple[torch.Tensor, ...]:
    """`score` without gradients, in micro-batches of `tokens`: a tuple of [N, T]. Ranks share the rows."""
    width, found = max(map(len, completion_ids)), []
    ranks.gather_weights(model)
    with torch.no_grad():
        for rows in micro_batch_rows(prompt_ids, completion_ids, tokens):
            columns = score(model, prompt_ids[rows], completion_ids[rows], temperature, token_function)
            padded = [torch.nn.functional.pad(column, (0, width - column.shape[1])) for column in columns]
            found.append((rows.start, padded))
    if not model.training:  # a reference model, which is not needed again in this step
        ranks.release_weights(model)
    if ranks.WORLD_SIZE > 1:
        found = ranks.gather([(first, [column.cpu() for column in columns]) for first, columns in found])
        found.sort(key=lambda part: part[0])
        found = [(first, [column.to(model.device) for column in columns]) for first, columns in found]
    return tuple(torch.cat(parts) for parts in zip(*(columns for _, columns in found)))


# --- micro-batches ------------------------------------------------------------------------------------------


def micro_batches(model, batch: Batch, tokens: int) -> Iterator[Batch]:
    """The batch in parts of at most `tokens` tokens, so that a forward and backward pass fits in memory.

    Each part's tensors are as wide as its longest completion, [n, T']. Of several ranks each gets its own
    parts.
    """
    ranks.gather_weights(model)
    for rows in micro_batch_rows(batch.prompt_ids, batch.completion_ids, tokens):
        yield batch.rows(rows, width=max(map(len, batch.completion_ids[rows])))


def micro_batch_rows(
    prompt_ids: list[list[int]], completion_ids: list[list[int]], tokens: int
) -> list[slice]:
    """Consecutive rows of at most `tokens`, equal prompts counted once, and at least one row in each part.

    A group is cut only where it does not fit. Of several ranks each gets its own parts, with about as many
    tokens; that cuts groups too.
    """
    lengths = [len(ids) for ids in completion_ids]
    if ranks.WORLD_SIZE > 1:
        in_all = sum(lengths) + sum(map(len, set(map(tuple, prompt_ids))))
        tokens = min(tokens, -(-in_all // ranks.WORLD_SIZE))  # rounded up
    common = common_length(prompt_ids)  # tokens that all prompts begin with, run once in each part

    parts, start = [], 0  # finished parts, and the first row of the one being filled
    prompts, size, longest = set(), common, 0  # of that one: its prompts, its tokens, its longest completion
    for rows in uncut_rows(prompt_ids, lengths, tokens):
        prompt = tuple(prompt_ids[rows.start])
        own = sum(lengths[rows])
        added = own if prompt in prompts else own + len(prompt) - common
        new_longest = max(longest, *lengths[rows])
        padded = new_longest * (rows.stop - start)
        if rows.start > start and max(size + added, padded / PADDED_TIMES) > tokens:
            parts.append(slice(start, rows.start))
            start, prompts = rows.start, set()
            size, longest, added = common, 0, own + len(prompt) - common
        prompts.add(prompt)
        size, longest = size + added, max(longest, *lengths[rows])
    parts.append(slice(start, len(prompt_ids)))
    return parts[ranks.RANK :: ranks.WORLD_SIZE]


def uncut_rows(prompt_ids: list[list[int]], lengths: list[int], tokens: int) -> Iterator[slice]:
    """Rows that stay together: a group where it fits, else each row by itself."""
    for prompt, group in groupby(range(len(prompt_ids)), key=lambda row: tuple(prompt_ids[row])):
        rows = list(group)
        own = [lengths[row] for row in rows]
        fits = max(len(prompt) + sum(own), max(own) * len(own) / PADDED_TIMES) <= tokens
        if fits and ranks.WORLD_SIZE == 1:
            yield slice(rows[0], rows[-1] + 1)
        else:
            yield from (slice(row, row + 1) for row in rows)


# --- what is logged of an update ----------------------------------------------------------------------------


def update_sums(
    part: Batch, logprobs, old_logprobs, entropy, clipped, policy_loss, total_loss
) -> dict[str, float]:
    """Sums over a micro-batch that every script logs: [n, T'] tensors and two numbers. `gap` is |trainer -
    sampler|.

    The numbers of each token go into the part's columns besides. A part is a view, so the whole batch keeps
    those of the last update that saw the token, for samples.jsonl.
    """
    mask, gap = part["completion_mask"], old_logprobs - part["rollout_logprobs"]  # [n, T']
    if "seen" in part:  # of a batch that `Rollout.batch` made
        ratio = torch.exp(logprobs.detach() - old_logprobs)  # [n, T']
        seen = dict(zip(LAST, (logprobs, entropy, ratio, clipped, part["weights"], gap), strict=True))
        for name, values in seen.items():
            part[name][:] = values.detach()
        part["seen"][:] = True
    return {
        "tokens": mask.sum().item(),
        "gap": (gap.abs() * mask).sum().item(),
        "entropy": (entropy * mask).sum().item(),
        "clipped": (clipped & mask).sum().item(),
        "policy_loss": policy_loss.item(),
        "total_loss": total_loss.item(),
    }


# --- does it work for this model? ---------------------------------------------------------------------------


def check_model(model, flag: str = "--model") -> None:
    """Stop the run if prompts that are run once do not give the model's own log-probabilities.

    Then some layer is no plain attention, or the head is more than a matrix product. The ids make no sense
    together. There log-probabilities of SmolLM2 move by 9 from bfloat16's rounding, so this is in float32.
    """
    prompts, completions = [[2, 3, 4, 5], [2, 3, 4, 5], [5, 4]], [[6, 7, 8, 9], [10, 11], [3, 2, 6]]
    try:
        if any(getattr(module, "rope_type", None) in ("dynamic", "longrope") for module in model.modules()):
            raise ValueError("its rotary embedding changes with the longest row of a batch")
        with torch.no_grad(), in_float32(model):
            ours, _ = score(model, prompts, completions, 1.0)
            for row, prompt, completion in zip(ours, prompts, completions):
                ids = torch.tensor([prompt + completion], device=model.device)
                logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].to(row.dtype)
                plain, _ = logprob_and_entropy(logits, torch.tensor(completion, device=model.device))
                gap = (row[: len(completion)] - plain).abs().max().item()
                if not gap <= 0.1:  # rounding alone: .005 was seen
                    raise ValueError(f"log-probabilities differ by {gap:.2g}")
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        fail(
            f"{flag}: {type(model).__name__} is none of the models that can share prompts ({reason}); use a "
            "plain one, such as Llama, Qwen2, Qwen3, Mistral, SmolLM or OLMo 2"
        )
