"""Run what many rows have in common once: a group's prompt, and the instructions that all prompts begin with.

Such a prefix goes through the model once, and its keys and values are kept once. The queries of all rows that
follow it meet them in one matrix product. It works forward and backward, with or without activation
checkpointing, and the numbers are those of the plain padded forward.

Who sees what: all prompts begin with s; p and q are the rests of two; rows a and b follow p, c follows q.

    query   common prefix   rest of its prompt   its own row
    a1      s s s s         p p p                a1
    a2      s s s s         p p p                a1 a2
    b1      s s s s         p p p                b1
    c1      s s s s         q . .                c1
    c2      s s s s         q . .                c1 c2             . is padding, which is hidden

All five queries meet s in one product; a1, a2 and b1 meet p in one. The softmax goes over a whole line.

It works for every model of transformers whose layers are softmax attention through its attention interface:
Llama, Qwen2 and 3, Mistral, Gemma 1 and 3, Phi, OLMo, SmolLM3, GPT-2, mixtures of experts of these.
`scoring.check_model` finds out.

Letters in shapes: N rows of up to T tokens, M tokens in all; R prefixes; S keys of one row; H query heads,
K key heads, D numbers in a head.
"""

import os
from dataclasses import dataclass, field

import torch
from torch.nn.functional import scaled_dot_product_attention

LONG_PREFIX = 32  # tokens that all prompts of a batch begin with and that are worth running once for all
LONG_ROW = 2  # in D: scores of longer rows would take more room than keys and values repeated for every row


class Layout:
    """M things, each in one of R rows: packed end to end, [M, ..], or padded with zeros to [R, C, ..].

    packed  a1 a2 a3 b1 c1 c2        padded  a1 a2 a3
                                             b1 .  .
                                             c1 c2 .
    """

    def __init__(self, rows: torch.Tensor, R: int):
        self.rows, counts = rows, torch.bincount(rows, minlength=R)  # [M], [R]
        self.shape = R, int(counts.max())
        columns = torch.arange(self.shape[1], device=rows.device)
        self.filled = columns < counts[:, None]  # [R, C]
        self.places = torch.empty_like(rows)  # [M]: place of each thing among the R * C
        self.places[rows.argsort(stable=True)] = self.filled.flatten().nonzero().squeeze(1)
        # Without padding and in order, both layouts are the same numbers.
        self.same = torch.equal(self.places, torch.arange(self.filled.numel(), device=rows.device))

    def to_padded(self, x: torch.Tensor) -> torch.Tensor:
        """[M, ..] -> [R, C, ..]"""
        if not self.same:
            packed, x = x, x.new_zeros(self.filled.numel(), *x.shape[1:])
            x[self.places] = packed
        return x.unflatten(0, self.shape)

    def to_packed(self, x: torch.Tensor) -> torch.Tensor:
        """[R, C, ..] -> [M, ..]"""
        return x.flatten(0, 1) if self.same else x.flatten(0, 1)[self.places]


# --- keys and values that are kept --------------------------------------------------------------------------


class PrefixCache:
    """R prefixes, which other rows follow: their keys and values of every layer, [R, K, longest, D] each."""

    def __init__(self, start: torch.Tensor, filled: torch.Tensor):
        self.start = start  # [R]: how many tokens come before
        self.filled = filled  # [R, longest]: no padding
        self.padding = None if filled.all() else ~filled
        self.layers: dict[object, tuple[torch.Tensor, torch.Tensor]] = {}  # by the layer's attention module

    def extend(self, layer, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Take in keys and values of tokens being run and return all there are: a prefix is run at once."""
        self.layers[layer] = keys, values
        return keys, values

    def part(self, first: int, last: int) -> "PrefixCache":
        """Prefixes first .. last-1, without copying keys or values."""
        part = PrefixCache(self.start[first:last], self.filled[first:last])
        part.layers = {
            layer: (keys[first:last], values[first:last]) for layer, (keys, values) in self.layers.items()
        }
        return part


class GrowingCache:
    """Keys and values of N rows that are sampled token by token, [N, K, columns, D] each.

    The buffers double when they are full: a step writes one column and copies nothing.
    """

    def __init__(self):
        self.layers: dict[object, tuple[torch.Tensor, torch.Tensor]] = {}  # the columns in use
        self.buffers: dict[object, torch.Tensor] = {}  # [2, N, K, room, D], keys and values

    def extend(self, layer, keys: torch.Tensor, values: torch.Tensor):
        """Write those of one token a row, [N, K, 1, D] each, into the next column; return all there are."""
        length = self.layers[layer][0].shape[2] if layer in self.layers else 0
        if layer not in self.buffers or length == self.buffers[layer].shape[3]:
            larger = keys.new_empty(2, *keys.shape[:2], max(32, 2 * length), keys.shape[3])
            if length:
                larger[..., :length, :] = self.buffers[layer]
            self.buffers[layer] = larger
        for column, new in zip(self.buffers[layer][..., length, :], (keys, values)):
            column.copy_(new.squeeze(2))
        self.layers[layer] = tuple(self.buffers[layer][..., : length + 1, :])
        return self.layers[layer]

    def exchange(self, keep: torch.Tensor, new: int, columns: int) -> None:
        """Keep these rows, without their first columns, and make room for `new` more rows behind them."""
        for layer, (keys, _) in self.layers.items():
            kept = self.buffers[layer][:, :, :, columns:].index_select(1, keep)
            length = keys.shape[2] - columns
            if new:
                kept = torch.cat([kept, kept.new_zeros(2, new, *kept.shape[2:])], dim=1)
            self.buffers[layer] = kept
            self.layers[layer] = tuple(kept[..., :length, :])


# --- attention ----------------------------------------------------------------------------------------------


@dataclass
class PackedRows:
    """The N rows of one forward pass: what attention has to know besides queries, keys and values."""

    # Of the M tokens, padded to [N, T]. None: each row has one token, so that T is 1.
    tokens: Layout | None
    # [N]: how many tokens come before a row's own.
    start: torch.Tensor
    # The common prefix first. The layout groups the N rows by the prefix that they follow.
    prefixes: list[tuple[PrefixCache, Layout]]
    # Takes in the keys and values of these tokens, if others will follow them.
    own: PrefixCache | GrowingCache | None = None
    # [N]: column of `own` that a row begins in. None: all begin in column 0.
    first_column: torch.Tensor | None = None
    # `hidden_keys` by window, which are the same in all layers.
    masks: dict[int | None, list[torch.Tensor | None]] = field(default_factory=dict)

    @property
    def row_length(self) -> int:
        """T"""
        return self.tokens.shape[1] if self.tokens else 1

    def hidden_keys(self, S: int, window: int | None) -> list[torch.Tensor | None]:
        """Which keys a query must not see, [N, 1, 1 or T, keys]: of each prefix, then of the row's S own.

        `window` is a sliding window of so many tokens, the query among them. None in the list: it sees all.
        """
        if window not in self.masks:
            hidden = [self.hidden_in_prefix(*prefix) for prefix in self.prefixes] + [self.hidden_in_row(S)]
            if window is not None:
                outside = self.outside_window(S, window)
                hidden = [far if mask is None else far | mask for far, mask in zip(outside, hidden)]
            self.masks[window] = hidden
        return self.masks[window]

    def hidden_in_prefix(self, cache: PrefixCache, followers: Layout) -> torch.Tensor | None:
        """The padding of shorter prefixes, [N, 1, 1, keys]."""
        return None if cache.padding is None else cache.padding[followers.rows][:, None, None]

    def hidden_in_row(self, S: int) -> torch.Tensor | None:
        """Later tokens, [1, 1, T, S]; in sampling the columns before the row's first, [N, 1, 1, S]."""
        T, device = self.row_length, self.start.device
        if self.first_column is not None:  # T is 1
            return (torch.arange(S, device=device) < self.first_column[:, None])[:, None, None]
        if T == 1:
            return None
        return torch.ones(T, S, dtype=torch.bool, device=device).triu(S - T + 1)[None, None]

    def outside_window(self, S: int, window: int) -> list[torch.Tensor]:
        """Keys at least `window` tokens before the query, [N, 1, T, keys]: of each prefix and of the row."""
        device = self.start.device
        # Position of a key in column 0, which is another row's where the row begins later.
        begin = self.start if self.first_column is None else self.start - self.first_column  # [N]
        queries = begin[:, None] + torch.arange(S - self.row_length, S, device=device)  # [N, T]
        starts = [cache.start[followers.rows] for cache, followers in self.prefixes] + [begin]
        lengths = [cache.filled.shape[1] for cache, _ in self.prefixes] + [S]
        outside = []
        for start, length in zip(starts, lengths):
            keys = start[:, None] + torch.arange(length, device=device)  # [N, keys]
            outside.append((queries[:, :, None] - keys[:, None, :] >= window)[:, None])
        return outside


def attention(
    module,
    query,
    key,
    value,
    attention_mask,
    scaling,
    dropout=0.0,
    sliding_window=None,
    packed_rows: PackedRows | None = None,
    **kwargs,
):
    """Attention of the tokens being run to the prefixes of their row and, causally, to the row so far.

    query [1, H, M, D], key and value [1, K, M, D] -> [1, M, H, D]. In sampling, where each row has one token,
    query [N, H, 1, D], key and value [N, K, 1, D] -> [N, 1, H, D]. Without `packed_rows`: transformers' own.
    """
    if packed_rows is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        options = {"sliding_window": sliding_window, **kwargs}
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **options)
    if kwargs.get("softcap") is not None or kwargs.get("s_aux") is not None:
        name = type(module).__name__
        raise ValueError(f"{name} caps its attention scores or has sinks, which shared prompts do not know")
    tokens, own = packed_rows.tokens, packed_rows.own
    if tokens:
        query, key, value = (pad_heads(x, tokens) for x in (query, key, value))  # [N, heads, T, D]
    if own is not None:
        key, value = own.extend(module, key, value)  # [N, K, S, D]
    prefixes = [(*cache.layers[module], followers) for cache, followers in packed_rows.prefixes]
    hidden = packed_rows.hidden_keys(key.shape[2], sliding_window)

    T, D = query.shape[2:]
    attend = attend_to_whole_rows if T > LONG_ROW * D else attend_part_by_part
    output = attend(query, key, value, prefixes, hidden, scaling).transpose(1, 2)  # [N, T, H, D]
    return (tokens.to_packed(output)[None] if tokens else output), None


def attend_part_by_part(query, key, value, prefixes, hidden, scaling) -> torch.Tensor:
    """[N, H, T, D]: scores with the keys of each prefix, which are not copied, then one softmax over all."""
    (N, H, T, D), K = query.shape, key.shape[1]
    query = (query * scaling).reshape(N, K, -1, D)  # H / K heads share a key head, as so many queries of it
    scores = []  # [N, K, H / K * T, keys] each
    for keys, _, followers in prefixes:
        scores.append(by_row(by_prefix(query, followers) @ keys.transpose(-1, -2), followers))
    scores.append(query @ key.transpose(-1, -2))
    scores = [hide(part, mask, T) for part, mask in zip(scores, hidden)]

    dtype = torch.promote_types(query.dtype, torch.float32)
    weights = torch.cat(scores, dim=-1).softmax(-1, dtype=dtype).to(value.dtype)
    *prefix_weights, own_weights = weights.split([part.shape[-1] for part in scores], dim=-1)
    output = own_weights @ value
    for part, (_, values, followers) in zip(prefix_weights, prefixes):
        output = output + by_row(by_prefix(part, followers) @ values, followers)
    return output.view(N, H, T, D)


def attend_to_whole_rows(query, key, value, prefixes, hidden, scaling) -> torch.Tensor:
    """The same [N, H, T, D], where keys and values of the prefixes are repeated for every row."""
    (N, H, T, _), K = query.shape, key.shape[1]
    keys = [*(part[followers.rows] for part, _, followers in prefixes), key]  # [N, K, keys, D] each
    values = [*(part[followers.rows] for _, part, followers in prefixes), value]
    seen = [
        torch.ones(1, 1, 1, part.shape[2], dtype=torch.bool, device=part.device) if mask is None else ~mask
        for mask, part in zip(hidden, keys)
    ]
    mask = torch.cat([part.expand(N, 1, T, -1) for part in seen], dim=-1)
    keys, values, repeat = torch.cat(keys, 2), torch.cat(values, 2), H != K
    # Kernels of a GPU know either a mask or shared key heads; without one of them they keep all scores.
    if repeat and query.is_cuda:
        keys, values = keys.repeat_interleave(H // K, 1), values.repeat_interleave(H // K, 1)
        repeat = False
    return scaled_dot_product_attention(query, keys, values, mask, scale=scaling, enable_gqa=repeat)


def pad_heads(x: torch.Tensor, tokens: Layout) -> torch.Tensor:
    """[1, heads, M, D] -> [N, heads, T, D]"""
    return tokens.to_padded(x[0].transpose(0, 1)).transpose(1, 2)


def by_prefix(x: torch.Tensor, followers: Layout) -> torch.Tensor:
    """[N, heads, queries, D] -> [R, heads, followers * queries, D], rows of one prefix together"""
    return followers.to_padded(x).transpose(1, 2).flatten(2, 3)


def by_row(x: torch.Tensor, followers: Layout) -> torch.Tensor:
    """[R, heads, followers * queries, D] -> [N, heads, queries, D]"""
    return followers.to_packed(x.unflatten(2, (followers.shape[1], -1)).transpose(1, 2))


def hide(scores: torch.Tensor, mask: torch.Tensor | None, T: int) -> torch.Tensor:
    """scores [N, K, H / K * T, keys], minus infinity where the mask [N, 1, 1 or T, keys] is true."""
    if mask is None:
        return scores
    by_head = scores.unflatten(2, (-1, T))  # [N, K, H / K, T, keys]
    return by_head.masked_fill(mask[:, :, None], -torch.inf).flatten(2, 3)


# --- running a model ----------------------------------------------------------------------------------------


def use_shared_prompts(model) -> None:
    """Make `attention` the model's. transformers, slow to import, is only imported here."""
    if model.config._attn_implementation != "shared_prompts":
        from transformers import AttentionInterface, AttentionMaskInterface
        from transformers.masking_utils import sdpa_mask

        AttentionInterface.register("shared_prompts", attention)
        AttentionMaskInterface.register("shared_prompts", sdpa_mask)
        model.set_attn_implementation("shared_prompts")


def model_arguments(positions: torch.Tensor, packed_rows: PackedRows) -> dict:
    """What a forward pass of a transformers model gets besides the ids."""
    return {
        "position_ids": positions,
        "use_cache": False,
        # The model leaves a mask of four dimensions as it is, and `attention` does not look at it.
        "attention_mask": positions.new_ones(1, 1, 1, 1),
        "packed_rows": packed_rows,
    }


def run_rows(
    model,
    ids: list[list[int]],
    start: torch.Tensor,
    prefixes: list[tuple[PrefixCache, Layout]],
    keep: bool = False,
) -> tuple[torch.Tensor, PrefixCache | None]:
    """Run N rows of M tokens in all, of which row n follows start[n] tokens of its prefixes.

    Returns the last hidden states [M, hidden size], and with `keep` these rows as prefixes of others.
    """
    lengths = torch.tensor([len(row) for row in ids], device=model.device)
    tokens = Layout(torch.arange(len(ids), device=model.device).repeat_interleave(lengths), len(ids))
    own = PrefixCache(start, tokens.filled) if keep else None
    flat_ids = torch.tensor([token for row in ids for token in row], device=model.device)  # [M]
    positions = start[:, None] + torch.arange(tokens.shape[1], device=model.device)  # [N, T]
    arguments = model_arguments(positions[tokens.filled][None], PackedRows(tokens, start, prefixes, own))
    output = model.base_model(input_ids=flat_ids[None], **arguments)
    return output.last_hidden_state[0], own


def prefill(model, prompts: list[list[int]]) -> list[tuple[PrefixCache, torch.Tensor]]:
    """Run N prompts, each but for its last token, which is the first input of what follows.

    What all have in common is run once, if it is long, and then the rest of each distinct prompt. Returns the
    prefixes made so, each with its row for each prompt, [N].
    """
    use_shared_prompts(model)
    distinct = list(dict.fromkeys(tuple(prompt[:-1]) for prompt in prompts))
    number = {prompt: i for i, prompt in enumerate(distinct)}
    rows = torch.tensor([number[tuple(prompt[:-1])] for prompt in prompts], device=model.device)  # [N]
    common = len(distinct[0]) if len(distinct) == 1 else common_length(distinct)
    rests = [prompt[common:] for prompt in distinct]

    prefixes = []
    if common:
        start = torch.zeros(1, dtype=torch.long, device=model.device)
        _, cache = run_rows(model, [distinct[0][:common]], start, [], keep=True)
        prefixes.append((cache, torch.zeros_like(rows)))
    if any(rests):
        start = torch.full((len(rests),), common, device=model.device)
        followed = [(cache, Layout(torch.zeros_like(start), 1)) for cache, _ in prefixes]
        _, cache = run_rows(model, rests, start, followed, keep=True)
        prefixes.append((cache, rows))
    return prefixes


def follow(
    prefixes: list[tuple[PrefixCache, torch.Tensor]], rows=slice(None)
) -> list[tuple[PrefixCache, Layout]]:
    """The prefixes that some of the N prompts (`rows`) need, and which of these rows follow which prefix."""
    followed = []
    for cache, prefix_rows in prefixes:
        prefix_rows = prefix_rows[rows]
        first, last = int(prefix_rows.min()), int(prefix_rows.max()) + 1
        if last - first < len(cache.start):
            cache = cache.part(first, last)
        followed.append((cache, Layout(prefix_rows - first, last - first)))
    return followed


def common_length(prompts: list[list[int]]) -> int:
    """How many tokens all prompts begin with, if they are enough to be run once for all; else 0."""
    length = len(os.path.commonprefix(prompts))
    return length if length >= LONG_PREFIX else 0
