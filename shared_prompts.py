"""Run what many rows have in common once: the prompt of a group, and the instructions that all prompts begin with.

Such a stretch of tokens goes through the model once, and its keys and values are kept once: the queries of all rows that follow it
meet them in one matrix product. Rows of different lengths are run end to end, as one row without padding, and only attention lays
them side by side. Forward and backward, with or without activation checkpointing; the numbers are those of the plain padded forward.

It works for every model of transformers whose layers are softmax attention through its attention interface: Llama, Qwen2 and 3,
Mistral, Gemma 1 and 3, Phi, OLMo, SmolLM3, GPT-2, mixtures of experts of these; `check_model` finds out.
"""

import os
from dataclasses import dataclass, field

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

LONG_PREFIX = 32  # tokens that all prompts of a batch begin with and that are worth running once for all
LONG_ROW = 2  # sizes of a head: of longer rows, scores would take more room than keys and values repeated for every row


class Grid:
    """M things, each in one of R rows: `lay` puts them side by side, [M, ..] -> [R, C, ..], empty places zero; `lift` takes them back."""

    def __init__(self, rows: torch.Tensor, R: int):
        self.rows, counts = rows, torch.bincount(rows, minlength=R)  # [M], [R]
        self.shape = R, int(counts.max())
        columns = torch.arange(self.shape[1], device=rows.device)
        self.filled = columns < counts[:, None]  # [R, C]
        self.places = torch.empty_like(rows)  # [M], in [R * C]
        self.places[rows.argsort(stable=True)] = self.filled.flatten().nonzero().squeeze(1)
        self.full = torch.equal(self.places, torch.arange(self.filled.numel(), device=rows.device))

    def lay(self, x: torch.Tensor) -> torch.Tensor:
        if not self.full:
            things, x = x, x.new_zeros(self.filled.numel(), *x.shape[1:])
            x[self.places] = things
        return x.unflatten(0, self.shape)

    def lift(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(0, 1) if self.full else x.flatten(0, 1)[self.places]


class Stretch:
    """R rows of up to S tokens that others follow: their keys and values in every layer, [R, key heads, S, head size] each."""

    def __init__(self, start: torch.Tensor, filled: torch.Tensor):
        self.start = start  # [R]: how many tokens come before
        self.filled = filled  # [R, S]
        self.padding = None if filled.all() else ~filled
        self.layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def extend(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Take in the keys and values of the tokens being run, and return all that the stretch has."""
        self.layers[layer] = keys, values
        return keys, values

    def part(self, first: int, last: int) -> "Stretch":
        """Rows first .. last-1, without copying keys or values."""
        part = Stretch(self.start[first:last], self.filled[first:last])
        part.layers = {layer: (keys[first:last], values[first:last]) for layer, (keys, values) in self.layers.items()}
        return part


class GrowingStretch(Stretch):
    """A stretch that is run token by token, kept in buffers that double when full: a step writes one column and copies nothing."""

    def __init__(self):
        self.layers = {}
        self.buffers: dict[int, torch.Tensor] = {}  # of each layer: [2, N, key heads, columns, head size]

    def extend(self, layer, keys, values):
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
        """Keep these rows, without their first columns, and give `new` more rows a place."""
        for layer, (keys, _) in self.layers.items():
            kept, length = self.buffers[layer][:, :, :, columns:].index_select(1, keep), keys.shape[2] - columns
            self.buffers[layer] = torch.cat([kept, kept.new_zeros(2, new, *kept.shape[2:])], dim=1) if new else kept
            self.layers[layer] = tuple(self.buffers[layer][..., :length, :])


@dataclass
class Rows:
    """N rows of up to T tokens that are run end to end, and what they follow."""

    tokens: Grid | None  # the M tokens in [N, T]; None: one token of each row, which are side by side already
    start: torch.Tensor  # [N]: how many tokens come before a row's own
    above: list[tuple[Stretch, Grid]]  # stretches from the first to the last, and the N rows laid in [R, most followers]
    own: Stretch | None = None  # takes in the keys and values of these tokens, if others will follow them
    first: torch.Tensor | None = None  # [N]: where in `own` a row begins, if they have not begun together

    known: dict = field(default_factory=dict)  # hidden keys, which are the same in all layers

    def hidden_keys(self, S: int, window: int | None) -> list[torch.Tensor | None]:
        """Which keys a query must not see, [N, 1, 1 or T, keys] for each stretch above and for the S own tokens: padding, later
        tokens, and what lies outside of a sliding window (of so many tokens, the query among them). None: it sees all."""
        if window not in self.known:
            self.known[window] = self._hidden_keys(S, window)
        return self.known[window]

    def _hidden_keys(self, S, window):
        T, device = self.tokens.shape[1] if self.tokens else 1, self.start.device
        hidden = [None if part.padding is None else part.padding[grid.rows][:, None, None] for part, grid in self.above]
        hidden.append(torch.ones(T, S, dtype=torch.bool, device=device).triu(S - T + 1)[None, None] if T > 1 else None)
        if self.first is not None:  # T is 1
            hidden[-1] = (torch.arange(S, device=device) < self.first[:, None])[:, None, None]
        if window is None:
            return hidden
        begin = self.start if self.first is None else self.start - self.first
        starts = [part.start[grid.rows] for part, grid in self.above] + [begin]
        lengths = [part.filled.shape[1] for part, _ in self.above] + [S]
        queries = (begin[:, None] + torch.arange(S - T, S, device=device))[:, None, :, None]
        keys = [(start[:, None] + torch.arange(length, device=device))[:, None, None] for start, length in zip(starts, lengths)]
        far = [queries - part >= window for part in keys]
        return [part if hide is None else part | hide for part, hide in zip(far, hidden)]


def attention(module, query, key, value, attention_mask, scaling, dropout=0.0, sliding_window=None, batch: Rows | None = None, **kwargs):
    """Attention of the tokens being run to the stretches above them and, causally, to their own row so far.

    query [1, heads, M, D], key and value [1, key heads, M, D] -> [1, M, heads, D]. Without a `batch` it is that of transformers.
    """
    if batch is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, sliding_window=sliding_window, **kwargs)
    if kwargs.get("softcap") is not None or kwargs.get("s_aux") is not None:
        raise ValueError(f"{type(module).__name__} caps its attention scores or has sinks, which shared prompts do not know")
    if batch.tokens:
        query, key, value = (batch.tokens.lay(part[0].transpose(0, 1)).transpose(1, 2) for part in (query, key, value))  # [N, heads, T, D]
    if batch.own is not None:
        key, value = batch.own.extend(module.layer_idx, key, value)
    (N, H, T, D), (_, K, S, _) = query.shape, key.shape
    above = [(*part.layers[module.layer_idx], grid) for part, grid in batch.above]
    hidden = batch.hidden_keys(S, sliding_window)

    if T > LONG_ROW * D:
        keys, values = ([*(part[i][part[2].rows] for part in above), own] for i, own in enumerate((key, value)))
        seen = [torch.ones(1, 1, 1, part.shape[2], dtype=torch.bool, device=part.device) if hide is None else ~hide
                for hide, part in zip(hidden, keys)]  # fmt: skip
        mask = torch.cat([part.expand(N, 1, T, -1) for part in seen], dim=-1)
        keys, values, repeat = torch.cat(keys, 2), torch.cat(values, 2), H != K
        if repeat and query.is_cuda:  # whose kernels know either a mask or shared key heads; without one of them they keep all scores
            keys, values, repeat = keys.repeat_interleave(H // K, 1), values.repeat_interleave(H // K, 1), False
        output = scaled_dot_product_attention(query, keys, values, mask, scale=scaling, enable_gqa=repeat)
    else:
        query = (query * scaling).reshape(N, K, -1, D)  # the heads that share a key head are so many queries of it
        scores = [spread(gather(query, grid) @ keys.transpose(-1, -2), grid) for keys, _, grid in above]
        scores.append(query @ key.transpose(-1, -2))
        scores = [part if hide is None else part.unflatten(2, (-1, T)).masked_fill(hide[:, :, None], -torch.inf).flatten(2, 3)
                  for part, hide in zip(scores, hidden)]  # fmt: skip
        shares = torch.cat(scores, dim=-1).softmax(-1, dtype=torch.promote_types(query.dtype, torch.float32)).to(value.dtype)
        *shares, own_shares = shares.split([part.shape[-1] for part in scores], dim=-1)
        output = own_shares @ value
        for share, (_, values, grid) in zip(shares, above):
            output = output + spread(gather(share, grid) @ values, grid)
        output = output.view(N, H, T, D)
    output = output.transpose(1, 2)
    return (batch.tokens.lift(output)[None] if batch.tokens else output), None


def gather(x: torch.Tensor, followers: Grid) -> torch.Tensor:
    """[N, heads, queries, D] -> [R, heads, followers * queries, D]"""
    return followers.lay(x).transpose(1, 2).flatten(2, 3)


def spread(x: torch.Tensor, followers: Grid) -> torch.Tensor:
    """[R, heads, followers * queries, D] -> [N, heads, queries, D]"""
    return followers.lift(x.unflatten(2, (followers.shape[1], -1)).transpose(1, 2))


AttentionInterface.register("shared_prompts", attention)
AttentionMaskInterface.register("shared_prompts", sdpa_mask)


def run_rows(model: PreTrainedModel, ids: list[list[int]], start: torch.Tensor, above: list[tuple[Stretch, Grid]], keep: bool = False):
    """Run N rows of M tokens in all, of which row n follows start[n] tokens in the stretches above.

    Returns the last hidden states [M, hidden size], and with `keep` the stretch that they are for others.
    """
    lengths = torch.tensor([len(row) for row in ids], device=model.device)
    tokens = Grid(torch.arange(len(ids), device=model.device).repeat_interleave(lengths), len(ids))
    own = Stretch(start, tokens.filled) if keep else None
    flat_ids = torch.tensor([token for row in ids for token in row], device=model.device)
    positions = (start[:, None] + torch.arange(tokens.shape[1], device=model.device))[tokens.filled]
    output = model.base_model(input_ids=flat_ids[None], **run_arguments(positions[None], Rows(tokens, start, above, own)))
    return output.last_hidden_state[0], own


def run_arguments(positions: torch.Tensor, batch: Rows) -> dict:
    """What a transformers model needs for it; it leaves a mask of four dimensions as it is, and `attention` does not look at it."""
    return dict(position_ids=positions, use_cache=False, attention_mask=positions.new_ones(1, 1, 1, 1), batch=batch)


def prefill(model: PreTrainedModel, prompts: list[list[int]]) -> list[tuple[Stretch, torch.Tensor]]:
    """Run N prompts, each but for its last token (the first input of what follows): once what all have in common, if that is
    long, and once the rest of each distinct prompt. Returns these stretches, each with the row of it that each prompt has, [N]."""
    if model.config._attn_implementation != "shared_prompts":
        model.set_attn_implementation("shared_prompts")
    distinct = list(dict.fromkeys(tuple(prompt[:-1]) for prompt in prompts))
    place = {prompt: i for i, prompt in enumerate(distinct)}
    rows = torch.tensor([place[tuple(prompt[:-1])] for prompt in prompts], device=model.device)
    split = len(distinct[0]) if len(distinct) == 1 else common_length(distinct)
    stretches = []
    for rests, start, of in (([distinct[0][:split]], 0, rows * 0), ([prompt[split:] for prompt in distinct], split, rows)):
        if any(rests):
            starts = torch.full((len(rests),), start, device=model.device)
            above = [(stretch, Grid(starts * 0, 1)) for stretch, _ in stretches]
            stretches.append((run_rows(model, rests, starts, above, keep=True)[1], of))
    return stretches


def follow(stretches: list[tuple[Stretch, torch.Tensor]], rows=slice(None)) -> list[tuple[Stretch, Grid]]:
    """What some of the prompts that were run are for the rows that follow them."""
    above = []
    for stretch, of in stretches:
        of = of[rows]
        first, last = int(of.min()), int(of.max()) + 1
        above.append((stretch if last - first == len(stretch.start) else stretch.part(first, last), Grid(of - first, last - first)))
    return above


def common_length(prompts: list[list[int]]) -> int:
    """How many tokens all prompts begin with, if they are enough to be run once for all."""
    length = len(os.path.commonprefix(prompts))
    return length if length >= LONG_PREFIX else 0
