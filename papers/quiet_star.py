r"""Quiet-STaR (arXiv 2403.09629): the model learns to think before every token of a plain text.

Read it as `diff sft.py papers/quiet_star.py`. At every place t of a text x the model writes a thought that
nobody sees. A learned weight w mixes what it would predict after the thought into its ordinary prediction:

    thought    x_0 .. x_t, S, z_1 .. z_m, E        z sampled at temperature 1; S and E have embeddings of
               their own; u: last hidden state, at E and then after each of the true x_t+1 .. x_t+K-1
    mixing     q_t,s = -log softmax(W ((1 - w) h_t+s + w u_t,s))[x_t+s+1],     w = MLP([h_t+s; u_t,s])
    text       L_text = 1/2 mean_t b_t + 1/2 mean_s mean_t q_t,s,     b_t: the loss without a thought
    reward     r_t = sum_s (b_t+s - q_t,s),     A_t = max(0, r_t - mean of r_t over the passes)
    thoughts   L_thoughts = mean_j mean_t -A_t log softmax(logits_t,j / 3)[z_t,j]

    L = L_text + beta L_thoughts

The last layer of the MLP starts at zero: w = 0, and the mixed prediction is the base model's. The thoughts of
all places are written at once. Step k of them appends a block of L keys, of which place t sees its own.

What changes against sft.py, numbered here and where it happens:
[1] Rows are plain texts, of which all but the first token is learned. There are no questions and no grader.
[2] Thoughts, mixing and the two losses. With --passes 0 there are none: plain continued pretraining.
[3] eval/loss, and the scores of a --task, are those of the model that thinks. A saved model needs this file
    for that, and the folder thoughts/ beside its weights.

Deviations from the paper's code, tagged again where they happen; D1, D2 and D4 are sft.py's own choices:
[D1] The end token is the one that the sampler stops at, once, and it is learned; not where a text was cut.
[D2] No packing: no two texts meet. Texts of about one length share a step.
[D3] A long text is cut into pieces of --length tokens (the code: its first 256, and the rest is left out).
     Pieces of too few tokens for a thought's reward are left out.
[D4] AdamW's betas are 0.9 and 0.95, and the learning rate falls by a cosine to a tenth.
[D5] S and E are no tokens of the vocabulary, so none can be sampled (the code: they are, with logits of
     -1e10). They begin as the mean of the embeddings of "---", which may be several tokens.
[D6] Means are over the real places of the step (the code: that of the thoughts' loss counts padding, those of
     the text's leave out losses of exactly 0).
[D7] beta belongs to the learning rate: the code's 1e6 goes with 1e-6, and the embedded model has its own.
     --normalise is ours.
[D8] --thought is m, the tokens between S and E, in training and afterwards (the code's n_ahead is m + 3 in
     training, and one token more is sampled afterwards).
[D9] The pass over the text itself is made once for all thoughts about it (the code: once for each).

    python papers/quiet_star.py      on worked solutions of the embedded world as plain text; not measured yet

Letters in shapes: N texts, L tokens, P passes (thoughts about each place), R = N P rows, m tokens of a
thought, K = --ahead, d hidden size. Column t of a loss is about what is predicted at place t.
"""

import math
import random
import sys
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch

sys.path.append(str(Path(__file__).resolve().parents[1]))  # where plainrl/ lies

from plainrl import added, ranks
from plainrl.files import name_of, open_entries, with_progress
from plainrl.flags import (
    EVAL_SEED,
    Bounds,
    Count,
    Fraction,
    Length,
    Natural,
    NotNegative,
    Prompts,
    RowFlags,
    by_size,
    parse,
)
from plainrl.models import eos_ids, find_model
from plainrl.rollout import Batch, Completion, pad
from plainrl.row_order import number_of_steps, rows_of_steps
from plainrl.rows import Row, batch_of, check_ids, end_token, hold_out, row_sums, solutions_or_fail
from plainrl.run import Run
from plainrl.sampler import ROWS_AT_ONCE, context_length, draw, uniform_numbers
from plainrl.scoring import (
    LOGITS_AT_ONCE,
    in_blocks,
    logprob_and_entropy,
    micro_batch_rows,
    micro_batches,
    score,
)
from plainrl.screen import fail, or_fail, say
from plainrl.tasks import NoTask, load_task

CHAINS, TEXTS = "chain?horizon=1-5", 1600  # what --text chain is, and how many without --train-size
SCORED_AT = 3.0  # the temperature of the thoughts' loss; they are sampled at 1
LARGER = 100.0  # S and E are kept divided by this, so that an update moves them as many times as far
LIKE = "---"  # what they begin as


@dataclass
class Args(RowFlags):
    text: str = "chain"
    """what is learned: chain (worked solutions of chains of 1 to 5 steps, without their questions), or
    jsonl:FILE with the field "text" in every line"""
    length: Length | None = by_size(tiny=72, small=256, large=256)
    """most tokens of a text; longer ones are cut into pieces"""
    thought: Natural | None = by_size(tiny=4, small=9, large=9)
    """m, tokens of a thought; 0 leaves the start and the end of one, and the mixing"""
    ahead: Count | None = by_size(tiny=2, small=4, large=4)
    """K, how many tokens after a thought are predicted with it"""
    passes: Annotated[int, Bounds(at_least=0, at_most=64)] = 2
    """P, thoughts about each place of a text; 0: none, plain continued pretraining"""
    beta: Annotated[float, Bounds(at_least=0, at_most=1e9)] | None = by_size(tiny=100.0, small=1e5, large=1e6)
    """weight of the thoughts' loss; it belongs to the learning rate"""
    normalise: bool = False
    """divide the advantages by their standard deviation over the step, for one more pass without gradient"""
    data: tuple[Path, ...] = ()
    """not here: texts come from --text"""
    task: str = "none"
    """none: the loss on held-out texts is measured; or problems to answer with a thought before every token
    (chain, jsonl:PATH, ...), as in the other scripts"""
    loss_on: Literal["completion", "all"] = "all"
    """a text has no prompt: all of it is learned"""
    max_length: Length | None = None
    """not here: --length says how long a text may be"""
    epochs: Count = 1
    """passes over the texts"""
    rows_per_step: Prompts | None = by_size(tiny=8, small=8, large=8)
    """N, texts of one optimizer step"""
    train_size: Count | None = None
    """learn this many texts, drawn by --seed (default: all; 1,600 of chain)"""
    eval_every: Count | None = by_size(tiny=50, small=50, large=50)
    """steps between two losses on held-out texts"""
    lr: NotNegative | None = by_size(tiny=3e-4, small=1e-5, large=1e-6)
    """peak learning rate of AdamW"""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """how the learning rate goes from its peak to --final-lr-share of it"""
    warmup_share: Fraction = 0.03
    """share of the steps in which the learning rate rises to its peak"""
    final_lr_share: Fraction = 0.1
    """learning rate of the last step, as a share of the peak"""
    weight_decay: NotNegative = 1e-3
    """AdamW's weight decay"""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's decay rates of the mean and of the mean square of the gradients"""

    @property
    def runs_of_a_token(self) -> int:
        """The text, and for each pass S, m tokens, E and the K - 1 true ones after it. [D9]"""
        return 1 + self.passes * (self.thought + 1 + self.ahead)


# --- the mathematics ----------------------------------------------------------------------------------------


def diagonal_mask(length: int, blocks: int) -> torch.Tensor:
    """Which keys the queries of the last of so many blocks of thoughts see. [L, (1 + blocks) L]

    Of the text all up to their place, of every block their own column: [causal | I | I | ...].

    >>> diagonal_mask(3, 2)[1].int().tolist()
    [1, 1, 0, 0, 1, 0, 0, 1, 0]
    """
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    own_column = torch.eye(length, dtype=torch.bool)
    return torch.cat([causal] + [own_column] * blocks, dim=1)


def mix(hidden: torch.Tensor, after: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The hidden state that predicts: (1 - w) h + w u. The weight is not squashed. [.., d], [.., 1]"""
    return (1 - weight) * hidden + weight * after


def rewards(base: torch.Tensor, mixed: list[torch.Tensor]) -> torch.Tensor:
    """By how many nats a thought lowers the loss of the next K tokens: r_t = sum_s (b_t+s - q_t,s).

    base [N, L - 1]; of `mixed`, one for each s, [N, P, L - 1 - s]; result [N, P, L - 1 - K], no gradient. The
    last place is left out that could have one, as in the paper's code.
    """
    K, places = len(mixed), base.shape[1] - len(mixed)
    gains = [base[:, None, s : s + places] - mixed[s][..., :places] for s in range(K)]
    return sum(gains).detach()


def advantages(rewards: torch.Tensor) -> torch.Tensor:
    """What a thought's reward is above the mean over the passes, and never below 0. [N, P, places]

    >>> print(advantages(torch.tensor([[[0.2, -0.1, 0.5], [0.0, 0.3, 0.5]]])))
    tensor([[[0.1000, 0.0000, 0.0000],
             [0.0000, 0.2000, 0.0000]]])
    """
    return (rewards - rewards.mean(dim=1, keepdim=True)).clamp(min=0)


def thought_losses(logprobs: torch.Tensor, advantages: torch.Tensor) -> torch.Tensor:
    """The loss of each token of a thought, -A_t log pi(z_t,j). [N, P, places] each"""
    return -advantages * logprobs


def lr_share(step: int, steps: int, schedule: str, warmup_share: float, final_share: float) -> float:
    """The learning rate of a step as a share of its peak; steps count from 1.

    It rises evenly over the first W steps, then falls to `final_share` at the last one.

    >>> [round(lr_share(step, 100, "cosine", 0.1, 0.1), 6) for step in (1, 10, 30, 55, 100)]
    [0.1, 1.0, 0.89472, 0.55, 0.1]
    """
    warmup = round(warmup_share * steps)  # W
    if step <= warmup:
        return step / warmup
    done = (step - warmup) / (steps - warmup)  # of the way down, above 0 and at most 1
    left = {"cosine": (1 + math.cos(math.pi * done)) / 2, "linear": 1 - done, "constant": 1.0}[schedule]
    return 1.0 if schedule == "constant" else final_share + (1 - final_share) * left


# --- what is added to the model -----------------------------------------------------------------------------


class Thoughts(torch.nn.Module):
    """The embeddings of S and E, and the MLP that makes w."""

    def __init__(self, like: torch.Tensor, d: int, length: int):
        super().__init__()
        self.length = length  # m [D8]
        self.start = torch.nn.Parameter(like / LARGER)
        self.end = torch.nn.Parameter(like / LARGER)
        self.gate = torch.nn.Sequential(
            torch.nn.Linear(2 * d, d),
            torch.nn.ReLU(),
            torch.nn.Linear(d, d),
            torch.nn.ReLU(),
            torch.nn.Linear(d, 1, bias=False),
        )
        torch.nn.init.zeros_(self.gate[-1].weight)  # w = 0: the base model

    def mixing_weight(self, hidden: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        """w of every place. [.., d], [.., d] -> [.., 1]"""
        return self.gate(torch.cat([hidden, after], dim=-1))


def add_thoughts(model, tokenizer, name: str, thought: int) -> None:
    """Give the model fresh ones, or those of the folder that it was loaded from. From now on its config.json
    says that it needs them. Raises ValueError where they are missing."""
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    marks = tokenizer.encode(LIKE, add_special_tokens=False)
    like = embeddings.weight[marks].detach().mean(dim=0)  # [D5]
    added.add(model, "thoughts", Thoughts(like, head.weight.shape[1], thought))
    if hasattr(model.config, "quiet_star"):
        try:
            model.load_state_dict(added.load(Path(find_model(name)), model), strict=False)
        except (ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(
                f"--model {name}: its config.json says quiet_star, and it cannot think ({reason}); put the "
                "folder thoughts/ back, or take quiet_star out of config.json to begin anew"
            ) from None
    model.config.quiet_star = {"thought": thought, "needs": "papers/quiet_star.py and thoughts/"}  # [3]


# --- thoughts at all places at once -------------------------------------------------------------------------


@dataclass
class Thinking:
    """What the model has read and thought about N texts. Row n P + p is pass p over text n."""

    hidden: torch.Tensor  # [N, L, d]: h, of the text alone
    states: list[torch.Tensor]  # m of [R, L, d]: what each token of a thought was drawn from
    tokens: torch.Tensor  # [R, m, L]: the tokens
    after: list[torch.Tensor]  # K of [R, L, d]: u, after the thought and s true tokens


def run_block(model, embeddings: torch.Tensor, cache) -> torch.Tensor:
    """Run one more input at every place, [R, L, d]: the text itself, or a block of the thoughts about it.
    The cache takes in its keys and values."""
    rows, length, _ = embeddings.shape
    blocks = cache.get_seq_length() // length  # before this one, the text among them
    mask = diagonal_mask(length, blocks).to(embeddings.device)
    positions = torch.arange(length, device=embeddings.device) + blocks  # a thought goes on where t is
    output = model.base_model(
        inputs_embeds=embeddings,
        attention_mask=mask.expand(rows, 1, *mask.shape),
        position_ids=positions[None],
        past_key_values=cache,
        use_cache=True,
    )
    return output.last_hidden_state


def think(model, ids: torch.Tensor, uniforms: torch.Tensor, ahead: int) -> Thinking:
    """Read the texts, ids [N, L], and think about every place; uniforms [R, m, L] draw the thoughts."""
    from transformers import DynamicCache

    embed, thoughts, cache = model.get_input_embeddings(), model.thoughts, DynamicCache()
    rows, m, _ = uniforms.shape
    passes = rows // len(ids)
    hidden = run_block(model, embed(ids), cache)  # [N, L, d]
    cache.batch_repeat_interleave(passes)  # [D9]

    everywhere = lambda embedding: (LARGER * embedding).expand(rows, ids.shape[1], -1)  # noqa: E731
    inputs, states, tokens = everywhere(thoughts.start), [], []
    for j in range(m):
        states.append(run_block(model, inputs, cache))
        with torch.no_grad():
            drawn, _ = token_numbers(model, draw_token, states[-1], uniforms[:, j])  # [R, L]
        tokens.append(drawn)
        inputs = embed(drawn)
    run_block(model, inputs, cache)
    after = [run_block(model, everywhere(thoughts.end), cache)]
    for s in range(1, ahead):
        true_tokens = ids.roll(-s, dims=1)  # x_t+s; what comes round from the beginning has no loss
        after.append(run_block(model, embed(true_tokens).repeat_interleave(passes, dim=0), cache))
    return Thinking(hidden, states, torch.stack(tokens, dim=1) if m else uniforms.long(), after)


def draw_token(logits: torch.Tensor, uniforms: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A token of a thought. [M, V], [M] -> its id and its log-probability, [M] each"""
    return draw(logits, 1.0, uniforms)


def logprob_of_drawn(logits: torch.Tensor, drawn: torch.Tensor) -> tuple[torch.Tensor]:
    """Its log-probability in the thoughts' loss. [M, V], [M] -> [M]"""
    return logprob_and_entropy(logits / SCORED_AT, drawn)[:1]


def numbers_of_token(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Log-probability, entropy, and whether the likeliest token is the right one. [M, V], [M] -> [M] each"""
    logprobs, entropy = logprob_and_entropy(logits, targets)
    return logprobs, entropy, logits.argmax(dim=-1) == targets


def token_numbers(model, function, hidden: torch.Tensor, column: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """`function(logits, column)` at every place: hidden [.., d], column [..] -> a tuple of [..].

    It sees a block of places at a time, computed again in the backward pass, as the scorer does it.
    """
    head = model.get_output_embeddings()
    dtype = torch.promote_types(head.weight.dtype, torch.float32)
    of_block = lambda hidden, column: function(head(hidden).to(dtype), column)  # noqa: E731
    rows = (hidden.reshape(-1, hidden.shape[-1]), column.reshape(-1))
    found = in_blocks(of_block, LOGITS_AT_ONCE // head.weight.shape[0], *rows)
    return tuple(values.view(column.shape) for values in found)


@dataclass
class Losses:
    """Losses at every place of N texts, without and with a thought. Columns are as in the docstring above."""

    thinking: Thinking
    base: torch.Tensor  # [N, L - 1]: b
    mixed: list[torch.Tensor]  # K of [N, P, L - 1 - s]: q
    weights: torch.Tensor  # [N, P, L - 1]: w of the next token
    entropy: torch.Tensor  # [N, P, L - 1]: of the mixed prediction of the next token
    right: torch.Tensor  # [N, P, L - 1]: whether that token is the likeliest


def losses(model, ids: torch.Tensor, uniforms: torch.Tensor, ahead: int) -> Losses:
    """Think about the texts, ids [N, L], and predict their tokens without and with the thoughts."""
    thinking, (N, L) = think(model, ids, uniforms, ahead), ids.shape
    passes, mixed, next_token = len(uniforms) // N, [], []
    logprobs, *_ = token_numbers(model, numbers_of_token, thinking.hidden[:, :-1], ids[:, 1:])
    for s, after in enumerate(thinking.after):
        hidden = thinking.hidden[:, s:-1].repeat_interleave(passes, dim=0)  # [R, L - 1 - s, d], h_t+s
        after = after[:, : L - 1 - s]
        weight = model.thoughts.mixing_weight(hidden, after)  # [R, L - 1 - s, 1]
        targets = ids[:, s + 1 :].repeat_interleave(passes, dim=0)
        numbers = token_numbers(model, numbers_of_token, mix(hidden, after, weight), targets)
        mixed.append(-numbers[0].view(N, passes, -1))
        if s == 0:
            next_token = [values.view(N, passes, -1) for values in (weight.detach(), *numbers[1:])]
    return Losses(thinking, -logprobs, mixed, *next_token)


def uniforms_of(keys: list[tuple[int, ...]], lengths: list[int], passes: int, m: int, device) -> torch.Tensor:
    """The random numbers of thoughts about N texts, [R, m, longest]: those of a text depend on its key, its
    length and nothing else."""
    found = np.zeros((len(keys), passes, m, max(lengths)))
    for row, (key, length) in enumerate(zip(keys, lengths)):
        found[row, ..., :length] = np.random.default_rng(key).random((passes, m, length))
    return torch.from_numpy(found).flatten(0, 1).to(device)


# --- the update ---------------------------------------------------------------------------------------------


def losses_of(model, part: Batch, args: Args, step: int) -> Losses:
    """`losses` of a micro-batch."""
    texts = [[*prompt, *rest] for prompt, rest in zip(part.prompt_ids, part.completion_ids)]
    ids, _ = pad(texts, model.device)  # [n, L]
    keys = [(args.seed, step, place) for place in part["place"].flatten().tolist()]
    uniforms = uniforms_of(keys, list(map(len, texts)), args.passes, args.thought, model.device)
    return losses(model, ids, uniforms, args.ahead)


@torch.no_grad()
def spread_of_advantages(model, batch: Batch, args: Args, step: int) -> float:
    """The standard deviation of a step's advantages, which are those of the update that follows. [D7]"""
    found = []
    for part in micro_batches(model, batch, tokens_at_once(args)):
        numbers = losses_of(model, part, args, step)
        A = advantages(rewards(numbers.base, numbers.mixed))  # [n, P, L - 1 - K]
        found.append(A.movedim(1, 2)[part["completion_mask"][:, args.ahead :]])
    return torch.cat(found).std(correction=0).item()


def tokens_at_once(args: Args) -> int:
    """Tokens of text in a micro-batch: each goes through the model several times."""
    return max(1, args.micro_batch_tokens // args.runs_of_a_token)


def accumulate_gradients(model, batch: Batch, args: Args, step: int) -> tuple[Counter, torch.Tensor | None]:
    """Backward pass of one optimizer step's loss, micro-batch by micro-batch. Returns sums for the log, and
    the first pass of thoughts about the first text, [m, L]. [2]

    The denominators are counted before the split: loss and gradient are the same for any micro-batches. [D6]
    """
    if not args.passes:
        return accumulate_plain(model, batch, args), None
    sums, thoughts, P, K = Counter(), None, args.passes, args.ahead
    mask = batch["completion_mask"]  # [N, T]; T = L - 1: places with a true token after them
    places = [mask[:, s:].sum().item() for s in range(K + 1)]  # and with one s places further on
    batch["weights"] = mask / places[0]
    spread = spread_of_advantages(model, batch, args, step) if args.normalise else 1.0
    for part in micro_batches(model, batch, tokens_at_once(args)):
        numbers, real = losses_of(model, part, args, step), part["completion_mask"]
        text_loss = (numbers.base * real).sum() / places[0] / 2
        for s, mixed in enumerate(numbers.mixed):
            text_loss = text_loss + (mixed * real[:, None, s:]).sum() / (P * places[s]) / (2 * K)

        rewarded = real[:, None, K:]  # [n, 1, L - 1 - K]
        r = rewards(numbers.base, numbers.mixed) * rewarded
        A = advantages(r) / (spread or 1.0)
        thought_loss = torch.zeros_like(text_loss)
        for j, state in enumerate(numbers.thinking.states):
            drawn = numbers.thinking.tokens[:, j, : r.shape[2]]  # [n P, L - 1 - K]
            (logprobs,) = token_numbers(model, logprob_of_drawn, state[:, : r.shape[2]], drawn)
            per_place = thought_losses(logprobs.view(r.shape), A) * rewarded
            thought_loss = thought_loss + per_place.sum() / (P * places[K]) / args.thought
        loss = text_loss + args.beta * thought_loss  # [D7]
        loss.backward()

        now = numbers.mixed[0][:, 0], numbers.entropy[:, 0], numbers.right[:, 0]  # of the first pass
        sums.update(row_sums(part, -now[0], *now[1:], loss))
        sums.update(
            base=(numbers.base * real).sum().item(),
            mixed=(numbers.mixed[0].mean(dim=1) * real).sum().item(),
            gate=(numbers.weights.mean(dim=1) * real).sum().item(),
            reward=r.mean(dim=1).sum().item(),
            positive=(r > 0).sum().item() / P,
            rewarded=rewarded.sum().item(),
            thought_loss=thought_loss.item(),
        )
        thoughts = numbers.thinking.tokens[0] if thoughts is None else thoughts
    return sums, thoughts


def accumulate_plain(model, batch: Batch, args: Args) -> Counter:
    """The same without thoughts: the mean loss of the step's tokens, as in sft.py."""
    sums = Counter()
    batch["weights"] = batch["completion_mask"] / batch["completion_mask"].sum()  # [N, T]
    for part in micro_batches(model, batch, args.micro_batch_tokens):
        temperature = 1.0
        inputs = (model, part.prompt_ids, part.completion_ids, temperature, numbers_of_token)
        logprobs, entropy, right = score(*inputs)  # [n, T']
        loss = -(logprobs * part["weights"]).sum()
        loss.backward()
        sums.update(row_sums(part, logprobs, entropy, right, loss))
    sums["base"] = sums["nll"]
    return sums


# --- scores with thoughts -----------------------------------------------------------------------------------


@torch.no_grad()
def score_with_thoughts(
    model, prompt_ids: list[list[int]], completion_ids: list[list[int]], tokens: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of completions with one thought before every token, and without: [N, T] each, zero
    where a row has no token. In micro-batches of `tokens`; the thoughts of a row are always the same. [3]"""
    width, m, found = max(map(len, completion_ids)), model.thoughts.length, []
    texts = [[*prompt, *completion] for prompt, completion in zip(prompt_ids, completion_ids)]
    for rows in micro_batch_rows(prompt_ids, completion_ids, max(1, tokens // (m + 3))):
        ids, _ = pad(texts[rows], model.device)
        keys = [(EVAL_SEED, row) for row in range(rows.start, rows.stop)]
        uniforms = uniforms_of(keys, list(map(len, texts[rows])), 1, m, model.device)
        numbers = losses(model, ids, uniforms, ahead=1)
        for i, row in enumerate(range(rows.start, rows.stop)):
            own = slice(len(prompt_ids[row]) - 1, len(texts[row]) - 1)  # what predicts the completion
            both = torch.stack([-numbers.mixed[0][i, 0, own], -numbers.base[i, own]])  # [2, its tokens]
            found.append(torch.nn.functional.pad(both, (0, width - both.shape[1])))
    mixed, base = torch.stack(found, dim=1)
    return mixed, base


class ThinkingSampler:
    """Samples completions with a thought before every token. It has what plainrl/sampler.py asks of one.

    The cache keeps the text alone: after every thought it is cut back. Prompts are padded on the left.
    """

    shares_weights = True

    def __init__(self, model, eos_ids: list[int], rows_at_once: int = ROWS_AT_ONCE):
        self.model, self.rows_at_once = model, rows_at_once
        self.eos_ids = torch.tensor(eos_ids, device=model.device)
        longest = context_length(model.config)
        self.room = longest and longest - model.thoughts.length - 2  # a thought goes on after the text
        self.vocabulary = model.get_input_embeddings().num_embeddings

    def load_weights(self, model) -> None:
        self.model = model

    @torch.no_grad()
    def generate(
        self,
        prompt_ids: list[list[int]],
        n: int,
        max_new_tokens: int,
        temperature: float,
        seeds: list[int],
        top_p: float = 1.0,
    ) -> list[Completion]:
        """`n` completions for each of B prompts, prompt-major; seeds has one entry a completion (B*n). The
        temperature is that of the text; thoughts are sampled at 1."""
        was_training = self.model.training
        self.model.eval()
        prompts = [prompt for prompt in prompt_ids for _ in range(n)]
        found = []
        for first in range(0, len(prompts), self.rows_at_once):
            rows = slice(first, first + self.rows_at_once)
            found += self.generate_rows(prompts[rows], max_new_tokens, temperature, seeds[rows], top_p)
        self.model.train(was_training)
        return found

    def generate_rows(self, prompts, max_new_tokens, temperature, seeds, top_p) -> list[Completion]:
        """A completion for each of R prompts."""
        from transformers import DynamicCache

        model, m, cache = self.model, self.model.thoughts.length, DynamicCache()
        reversed_ids, mask = pad([prompt[::-1] for prompt in prompts], model.device)
        inputs, visible = reversed_ids.flip(1), mask.flip(1)  # [R, longest prompt]
        start = (~visible).sum(dim=1)  # [R]: columns of padding
        uniforms = np.stack([uniform_numbers(seed, max_new_tokens * (m + 1)) for seed in seeds])
        uniforms = torch.from_numpy(uniforms).to(model.device).view(len(prompts), max_new_tokens, m + 1)
        ids, logprobs, live = [], [], torch.ones(len(prompts), dtype=torch.bool, device=model.device)
        for t in range(max_new_tokens):
            hidden = self.run(model.get_input_embeddings()(inputs), visible, start, cache)
            mixed = self.after_a_thought(hidden, visible, start, cache, uniforms[:, t, :m])  # [R, d]
            logits = model.get_output_embeddings()(mixed)
            drawn, logprob = draw(logits, temperature, uniforms[:, t, m], top_p)  # [R], [R]
            ids.append(drawn)
            logprobs.append(logprob)
            live = live & ~torch.isin(drawn, self.eos_ids)
            if not live.any():
                break
            inputs, visible = drawn[:, None], torch.nn.functional.pad(visible, (0, 1), value=True)
        return self.completions(torch.stack(ids, 1), torch.stack(logprobs, 1))

    def run(
        self, embeddings: torch.Tensor, visible: torch.Tensor, start: torch.Tensor, cache
    ) -> torch.Tensor:
        """Last hidden states at the last place, [R, d], of inputs [R, inputs, d] that stand behind what is in
        the cache; visible [R, columns] says of all of them what is no padding."""
        columns = torch.arange(visible.shape[1], device=visible.device)[-embeddings.shape[1] :]
        output = self.model.base_model(
            inputs_embeds=embeddings,
            attention_mask=visible.long(),
            position_ids=(columns - start[:, None]).clamp(min=0),
            past_key_values=cache,
            use_cache=True,
        )
        return output.last_hidden_state[:, -1]

    def after_a_thought(self, hidden, visible, start, cache, uniforms: torch.Tensor) -> torch.Tensor:
        """The hidden states that predict the next token, [R, d]; uniforms [R, m]. The cache is left as it
        was."""
        model, thoughts, columns = self.model, self.model.thoughts, cache.get_seq_length()
        everywhere = lambda embedding: (LARGER * embedding).expand(len(hidden), 1, -1)  # noqa: E731
        inputs = everywhere(thoughts.start)
        for j in range(uniforms.shape[1] + 2):  # S, the m tokens, E
            visible = torch.nn.functional.pad(visible, (0, 1), value=True)
            state = self.run(inputs, visible, start, cache)  # [R, d]
            if j < uniforms.shape[1]:
                drawn, _ = token_numbers(model, draw_token, state, uniforms[:, j])
                inputs = model.get_input_embeddings()(drawn)[:, None]
            else:
                inputs = everywhere(thoughts.end)
        cache.crop(columns)
        return mix(hidden, state, thoughts.mixing_weight(hidden, state))

    def completions(self, ids: torch.Tensor, logprobs: torch.Tensor) -> list[Completion]:
        """Each up to its end. [R, tokens] each"""
        found = []
        columns = (ids, logprobs, torch.isin(ids, self.eos_ids))
        for row, numbers, ends in zip(*(column.tolist() for column in columns)):
            length = ends.index(True) + 1 if any(ends) else len(row)
            reason = "stop" if any(ends) else "length"
            found.append(Completion(row[:length], numbers[:length], reason))
        return found


# --- texts --------------------------------------------------------------------------------------------------


def read_texts(text: str) -> list[Row]:
    """The texts of a file, each a row that has no ids yet. Raises ValueError with the file, the line and the
    field."""
    path, rows = text.removeprefix("jsonl:"), []
    with open_entries(path, f"--text {text}", {"prompt": "", "answer": ""}, None) as (unit, entries):
        for line, entry in with_progress(entries, name_of(path), "entries are read"):
            if line is None:  # the header of a table
                continue
            place = f"{path}, {unit} {line}"
            if isinstance(entry, str):
                raise ValueError(f"{place}: {entry}")
            found = entry.get("text")
            if not isinstance(found, str) or not found.strip():
                raise ValueError(f"{place}: field 'text' is missing or empty; it must be a text")
            rows.append(Row(({"role": "user", "content": found},), found, place=place, is_text=True))
    if not rows:
        raise ValueError(f"--text {text}: holds no text; give objects with a field text")
    return rows


def pieces_of(row: Row, tokenizer, end_id: int, length: int, least: int) -> list[Row]:
    """A text's tokens as rows of at most `length`, whose prompt is their first token; a piece of fewer than
    `least` is left out. [1], [D1], [D3]"""
    ids = tokenizer.encode(row.completion)
    ids += [end_id] * (ids[-1:] != [end_id])
    pieces = [tuple(ids[first : first + length]) for first in range(0, len(ids), length)]
    return [
        replace(row, prompt_ids=piece[:1], completion_ids=piece[1:])
        for piece in pieces
        if len(piece) >= least
    ]


def load_texts(args: Args, run: Run) -> tuple[list[Row], list[Row]]:
    """The texts to learn and those that are held out. What cannot work ends the run in one line."""
    if args.text == "chain":
        args.train_size = args.train_size or TEXTS
        rows = solutions_or_fail(args, load_task(CHAINS))
    else:
        rows = or_fail(read_texts, args.text)
    end_id, least = end_token(run.model, run.tokenizer), args.ahead + 2
    learned, held = hold_out(rows, args.dev_share)  # whole texts
    cut = lambda rows: [  # noqa: E731
        piece for row in rows for piece in pieces_of(row, run.tokenizer, end_id, args.length, least)
    ]
    learned, held = cut(learned), cut(held)
    if not learned:
        fail(f"--text {args.text}: no text has {least} tokens and is to be learned; give longer or more ones")
    if not held and not run.has_task:
        fail(
            f"--dev-share {args.dev_share:g}: no text is held out, and nothing else chooses the best step; "
            "give a larger share, more texts, or a --task"
        )
    check_ids(learned + held, run.model)
    random.Random(f"{args.seed}/rows").shuffle(learned)
    learned = learned[: args.train_size]
    tokens = sum(row.length for row in learned)
    say(f"{len(learned):,} texts to learn, {len(held):,} held out; {tokens:,} tokens")
    return learned, sorted(held, key=lambda row: row.length)


# --- the loop -----------------------------------------------------------------------------------------------


def check_args(args: Args) -> None:
    """What can be refused before anything is loaded."""
    if not all(0 <= beta < 1 for beta in args.betas):
        fail(f"--betas {args.betas[0]:g} {args.betas[1]:g}: must be at least 0 and below 1")
    if args.text != "chain" and not args.text.startswith("jsonl:"):
        fail(f"--text {args.text}: unknown; use chain or jsonl:FILE, whose lines have a field text")
    if args.data:
        fail(f"--data {args.data[0]}: rows have prompts; give plain texts with --text jsonl:FILE")
    if args.max_length is not None:
        fail(f"--max-length {args.max_length}: use --length, beyond which a text is cut into pieces")
    if args.loss_on != "all":
        fail(f"--loss-on {args.loss_on}: a text has no prompt, and all of it is learned; leave it out")
    if args.lora_rank:
        fail("--lora-rank: adapters are saved without the thoughts that belong to them; leave it out")
    if args.activation_checkpointing:
        fail(
            "--activation-checkpointing: thoughts read the keys and values that it would throw away; use a "
            "smaller --micro-batch-tokens"
        )
    if args.engine == "vllm" or args.vllm_server:
        fail("--engine vllm: samples without thoughts; use --engine hf")
    args.engine = "hf"
    if ranks.WORLD_SIZE > 1:
        fail(
            "torchrun: thoughts are a part of the model that is not sharded; start papers/quiet_star.py in "
            "one process"
        )


def check_thoughts(args: Args, model) -> None:
    """What depends on defaults, and so on the size of the model."""
    if args.passes == 0 and hasattr(model.config, "quiet_star"):
        fail("--passes 0: --model thinks, and plain training would not go on with that; leave it out")
    if args.passes and args.beta and args.thought == 0:
        fail("--thought 0: has no tokens to reward; add --beta 0 --passes 1")
    if args.passes == 1 and args.beta:
        fail("--passes 1: a thought is compared with others about its place; use 2 or more, or --beta 0")
    longest, needed = context_length(model.config), args.length + args.thought + args.ahead + 1
    if longest and needed > longest:
        fail(
            f"--length {args.length}: with its last thought a text takes {needed} places, and the model's "
            f"context has {longest}; ask for {longest - needed + args.length} or fewer"
        )
    if args.length < args.ahead + 2:
        fail(f"--length {args.length}: too short for a thought's reward; it takes --ahead + 2 or more")


def with_thoughts(row: Row, thoughts: torch.Tensor, tokenizer) -> str:
    """A text with the thought about each place in brackets behind it; thoughts [m, L]."""
    ids, written = [*row.prompt_ids, *row.completion_ids], ""
    for id, thought in zip(ids, thoughts.T.tolist()):
        written += f"{tokenizer.decode([id])}[{tokenizer.decode(thought)}]"
    return written


def main(args: Args, task=None, sampler=None) -> Path:
    """Train and return the folder of the final model. A task or sampler of your own can be passed in."""
    check_args(args)
    if task is None and args.task == "none":
        task = NoTask("chain" if args.text == "chain" else name_of(args.text.removeprefix("jsonl:")))
    run = Run("quiet_star", args, task, sampler, state={"tokens_seen": 0, "forward_tokens": 0})
    check_thoughts(args, run.model)
    if args.passes:
        or_fail(add_thoughts, run.model, run.tokenizer, args.model, args.thought)
        run.score_rows = score_with_thoughts  # [3]
        if not run.own_sampler:
            run.sampler = ThinkingSampler(run.model, eos_ids(run.model, run.tokenizer))
    run.rows, run.dev_rows = load_texts(args, run)
    args.steps = number_of_steps(args, len(run.rows))
    steps = rows_of_steps(run.rows, None, args.rows_per_step, args.seed, args.steps)  # [D2]
    optimizer = torch.optim.AdamW(
        run.model.parameters(), args.lr, args.betas, weight_decay=args.weight_decay, fused=True
    )
    run.restore(optimizer)
    for step in run.steps():
        # --- 1 the texts of the step
        rows = steps[step - 1]
        batch = batch_of(rows, run.model.device)
        batch["place"] = torch.arange(len(rows), device=run.model.device)[:, None]  # which draws its thoughts

        # --- 2 think, and update
        share = lr_share(step, args.steps, args.schedule, args.warmup_share, args.final_lr_share)  # [D4]
        optimizer.param_groups[0]["lr"] = args.lr * share
        sums, thoughts = accumulate_gradients(run.model, batch, args, step)
        run.optimizer_step(optimizer, sums)

        # --- 3 log, score dev, save
        run.state["tokens"] += sums["tokens"]  # what --token-budget counts
        run.state["tokens_seen"] += sum(row.length for row in rows)
        runs = args.runs_of_a_token * (1 + args.normalise)
        run.state["forward_tokens"] += sum(row.length for row in rows) * runs
        own = {
            "nll/base": sums["base"] / sums["tokens"],
            "sft/accuracy": sums["right"] / sums["tokens"],
            "sft/tokens_total": run.state["tokens"],
            "sft/tokens_seen": run.state["tokens_seen"],
            "sft/rows_total": step * args.rows_per_step,
            "sft/epoch": step * args.rows_per_step / len(run.rows),
            "quiet/forward_tokens": run.state["forward_tokens"],
            "policy/entropy": sums["entropy"] / sums["tokens"],
        }
        shown = {}
        if args.passes:
            own |= {
                "nll/mixed": sums["mixed"] / sums["tokens"],
                "quiet/gate_mean": sums["gate"] / sums["tokens"],
                "quiet/reward_mean": sums["reward"] / sums["rewarded"],
                "quiet/frac_positive": sums["positive"] / sums["rewarded"],
                "loss/policy": sums["thought_loss"],
            }
            shown["with_thoughts"] = with_thoughts(rows[0], thoughts, run.tokenizer)
        run.end_step_on_rows(batch, own, **shown)
    final = run.finish()
    if args.passes and not run.interrupted:
        say(f"it thinks in this script alone: --model {final} goes on with it, or measures it on a --task")
    return final


if __name__ == "__main__":
    main(parse(Args, __doc__))


# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "torch==2.13.0", "transformers>=5.16.1,<5.20", "safetensors", "numpy", "tyro", "filelock",
#     "math-verify>=0.9,<0.10", "antlr4-python3-runtime==4.13.2", "matplotlib", "jinja2",
# ]
# ///
