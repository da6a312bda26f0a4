"""Sample completions from the model that is trained.

`plain_generate` is the whole idea in a dozen lines. `HFSampler` is what the scripts use: the same tokens,
many at once. `make_sampler` takes vLLM in its place where there is one (vllm_sampler.py). Every sampler has:

    generate(prompt_ids, n, max_new_tokens, temperature, seeds, top_p=1.0) -> B*n completions, prompt-major
    load_weights(model)     sample from these weights from now on
    shares_weights          whether its weights are the trainer's own, so that none need to be pushed

Letters in shapes: R rows that are sampled together, L = max_new_tokens, V vocabulary.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
import torch

from plainrl import ranks
from plainrl.rollout import Completion, completion_seed, encode_prompt
from plainrl.scoring import check_model, score_all
from plainrl.screen import fail, progress
from plainrl.shared_prompts import GrowingCache, PackedRows, follow, model_arguments, prefill

DROP_AT = 1 / 8  # share of finished rows at which they make room for others in the batch that is sampled
ROWS_AT_ONCE = 512  # completions that the sampler works on
PROMPT_TOKENS_AT_ONCE = 2**15  # whose keys and values the sampler keeps


# --- drawing a token ----------------------------------------------------------------------------------------


def draw(
    logits: torch.Tensor, temperature: float, uniforms: torch.Tensor, top_p: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Inverse-CDF sampling: the first token whose cumulative probability exceeds the row's uniform number.

    logits [R, V], uniforms [R] in [0, 1) -> ids [R], their log-probabilities [R]. A row's draw depends on
    nothing but the row. Temperature 0 is greedy, with log-probability 0. top_p keeps the smallest set of
    tokens with at least that mass.
    """
    if temperature == 0:
        return logits.argmax(-1), torch.zeros(len(logits), device=logits.device)
    probs = torch.softmax(logits.float() / temperature, dim=-1)  # [R, V]
    if top_p < 1.0:
        sorted_probs, order = probs.sort(dim=-1, descending=True)
        dropped = sorted_probs.cumsum(-1) - sorted_probs >= top_p
        probs = probs.masked_fill(dropped.gather(-1, order.argsort(-1)), 0.0)
        probs = probs / probs.sum(-1, keepdim=True)
    cumulative = probs.cumsum(-1, dtype=torch.double)
    ids = torch.searchsorted(cumulative, uniforms[:, None] * cumulative[:, -1:], right=True).squeeze(1)
    ids = ids.clamp(max=logits.shape[1] - 1)
    return ids, probs.gather(-1, ids[:, None]).squeeze(1).log()


def uniform_numbers(seed: int, count: int) -> np.ndarray:
    """The numbers in [0, 1) that draw a completion's tokens, one each; the first do not depend on `count`."""
    return np.random.Generator(np.random.Philox(seed)).random(count)


# --- the plain sampler --------------------------------------------------------------------------------------


@torch.no_grad()
def plain_generate(
    model, prompt_ids: list[int], max_new_tokens: int, temperature: float, seed: int, eos_ids: list[int]
) -> Completion:
    """One completion, token by token: the whole row through the model, then one draw from its last logits.

    `HFSampler` gives the same tokens for the same seed; a test compares them. What saves it time:

    - It keeps the keys and values of earlier tokens (a KV cache): a step runs one new token, not all of them.
    - It samples many rows at once: a step takes hardly longer for many than for one.
    - It runs a prompt once for its n completions, whose keys and values of the prompt are the same.
    - A row that has ended makes room for the next: the longest would else keep all others waiting.

    The two round differently, which may turn a draw that lies on the boundary of two tokens.
    """
    ids, logprobs = [], []
    for uniform in uniform_numbers(seed, max_new_tokens):
        row = torch.tensor([prompt_ids + ids], device=model.device)
        logits = model(input_ids=row, use_cache=False).logits[:, -1]  # [1, V]
        token, logprob = draw(logits, temperature, torch.tensor([uniform], device=model.device))
        ids.append(token.item())
        logprobs.append(logprob.item())
        if ids[-1] in eos_ids:
            break
    return Completion(ids, logprobs, "stop" if ids[-1] in eos_ids else "length")


# --- the fast one -------------------------------------------------------------------------------------------


class HFSampler:
    """Samples from the transformers model that is being trained: no second copy, no weights to push.

    Prompts are run once (shared_prompts.py), and rows that finish make room for the next. A completion's
    tokens depend on its seed and prompt only, in whatever batch it is sampled, up to rounding: another batch
    may turn a draw on the boundary of two tokens.
    """

    shares_weights = True

    def __init__(self, model, eos_ids: list[int], rows_at_once: int = ROWS_AT_ONCE):
        self.model, self.rows_at_once = model, rows_at_once
        self.eos_ids = torch.tensor(eos_ids, device=model.device)
        self.room = context_length(model.config)  # what `check_prompt` asks for
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
        """`n` completions for each of B prompts, prompt-major; seeds has one entry a completion (B*n)."""
        if len(seeds) != len(prompt_ids) * n:
            wanted = len(prompt_ids) * n
            raise ValueError(
                f"{len(prompt_ids)} prompts x {n} completions need {wanted} seeds, not {len(seeds)}"
            )
        ranks.gather_weights(self.model)
        was_training = self.model.training
        self.model.eval()
        completions, first = [], 0
        while first < len(prompt_ids):
            last, tokens = first + 1, len(prompt_ids[first])
            while last < len(prompt_ids) and tokens + len(prompt_ids[last]) <= PROMPT_TOKENS_AT_ONCE:
                last, tokens = last + 1, tokens + len(prompt_ids[last])
            prompts = [prompt for prompt in prompt_ids[first:last] for _ in range(n)]
            own_seeds = seeds[first * n : last * n]
            settings = (max_new_tokens, temperature, own_seeds, top_p, len(completions))
            completions += self._generate(prompts, *settings)
            first = last
        self.model.train(was_training)
        return completions

    @torch.inference_mode()
    def _generate(self, prompts, max_new_tokens, temperature, seeds, top_p, before) -> list[Completion]:
        """One completion for each prompt; `before` others are done already."""
        completions = [None] * len(prompts)
        finished = 0
        batch = ContinuousBatch(self.model, self.eos_ids, prompts, seeds, max_new_tokens, self.rows_at_once)
        while len(batch):
            batch.step(temperature, top_p)
            if batch.many_are_finished():
                for row, completion in batch.finished_completions():
                    completions[row] = completion
                    finished += 1
                batch.exchange_finished()
            progress(before + finished)
        return completions


@dataclass
class SampledRows:
    """What is known of R rows that are sampled together."""

    number: torch.Tensor  # [R]: which of the completions it is
    start: torch.Tensor  # [R]: position of its first input, the last token of the prompt
    first_column: torch.Tensor  # [R]: column of the cache that this input is in
    token: torch.Tensor  # [R]: its next input
    uniforms: torch.Tensor  # [R, L]: the random number of each token
    ids: torch.Tensor  # [R, L]: its tokens so far, then zeros
    logprobs: torch.Tensor  # [R, L]
    length: torch.Tensor  # [R]: 0 while it is sampled, then how many tokens it has

    @property
    def finished(self) -> torch.Tensor:
        """[R]"""
        return self.length > 0

    def select(self, rows: torch.Tensor) -> "SampledRows":
        return SampledRows(*(values[rows] for values in vars(self).values()))

    def __add__(self, other: "SampledRows") -> "SampledRows":
        return SampledRows(*map(torch.cat, zip(vars(self).values(), vars(other).values())))


class ContinuousBatch:
    """One completion for each of N prompts; at most `rows_at_once` are sampled together, the others wait.

    All rows write keys and values of their next input into the same column of one cache: a step is one write.
    A row that takes the place of a finished one begins in a later column, its `first_column`:

        column      0    1    2    3    4    5    6
        row 0       p    a    b    c    d    e    f        p: the last token of the prompt is the first input
        row 1       .    .    .    p    a    b    c        a: drawn from p's logits, it is the input after p

    In columns 0 to 2 another row was, which row 1 must not see. So column - first_column is how many tokens a
    row has before the step that writes `column`.
    """

    def __init__(self, model, eos_ids, prompts, seeds, max_new_tokens, rows_at_once):
        self.model, self.eos_ids, self.prompts, self.seeds = model, eos_ids, prompts, seeds
        self.max_new_tokens, self.rows_at_once = max_new_tokens, rows_at_once
        self.prefixes = prefill(model, prompts)
        self.cache = GrowingCache()
        self.column = 0  # of the cache, which the next step writes
        self.begun = min(rows_at_once, len(prompts))  # how many completions do not wait any more
        self.rows = self.new_rows(range(self.begun))
        self.set_context()

    def __len__(self) -> int:
        return len(self.rows.number)

    def new_rows(self, numbers: range) -> SampledRows:
        """Rows for these completions, whose first inputs come into the next column."""
        device, width = self.model.device, (len(numbers), self.max_new_tokens)
        prompts = [self.prompts[number] for number in numbers]
        uniforms = [uniform_numbers(self.seeds[number], self.max_new_tokens) for number in numbers]
        return SampledRows(
            number=torch.tensor(numbers, device=device),
            start=torch.tensor([len(prompt) - 1 for prompt in prompts], device=device),
            first_column=torch.full((len(numbers),), self.column, device=device),
            token=torch.tensor([prompt[-1] for prompt in prompts], device=device),
            uniforms=torch.from_numpy(np.stack(uniforms)).to(device),
            ids=torch.zeros(width, dtype=torch.long, device=device),
            logprobs=torch.zeros(width, device=device),
            length=torch.zeros(len(numbers), dtype=torch.long, device=device),
        )

    def set_context(self) -> None:
        """What the rows attend to besides their own tokens. It stays the same until rows are exchanged."""
        self.followed = follow(self.prefixes, self.rows.number)
        self.first_column = self.rows.first_column if self.rows.first_column.any() else None

    def step(self, temperature: float, top_p: float) -> None:
        """Draw the next token of every row."""
        rows = self.rows
        # [R]: how many tokens a row has. A finished one that waits for the others stays at its last position.
        t = (self.column - rows.first_column).clamp(max=self.max_new_tokens - 1)
        packed_rows = PackedRows(None, rows.start, self.followed, self.cache, self.first_column)
        arguments = model_arguments((rows.start + t)[:, None], packed_rows)
        logits = self.model(input_ids=rows.token[:, None], **arguments).logits[:, 0]  # [R, V]
        uniforms = rows.uniforms.gather(1, t[:, None]).squeeze(1)
        rows.token, logprobs = draw(logits, temperature, uniforms, top_p)  # [R], [R]

        live = rows.length == 0
        places = live.nonzero().squeeze(1)
        rows.ids[places, t[places]] = rows.token[places]
        rows.logprobs[places, t[places]] = logprobs[places].float()
        ended = live & (torch.isin(rows.token, self.eos_ids) | (t + 1 == self.max_new_tokens))
        rows.length = torch.where(ended, t + 1, rows.length)
        self.column += 1

    def many_are_finished(self) -> bool:
        """Whether an exchange is worth its price, a copy of the cache: not for every single row."""
        finished = self.rows.finished
        return bool(finished.all() or finished.sum() >= DROP_AT * len(finished))

    def finished_completions(self) -> Iterator[tuple[int, Completion]]:
        """Each with its number."""
        rows, finished, eos_ids = self.rows, self.rows.finished, set(self.eos_ids.tolist())
        columns = (rows.number, rows.ids, rows.logprobs, rows.length)
        for number, ids, logprobs, length in zip(*(column[finished].tolist() for column in columns)):
            reason = "stop" if ids[length - 1] in eos_ids else "length"
            yield number, Completion(ids[:length], logprobs[:length], reason)

    def exchange_finished(self) -> None:
        """Waiting completions take the places of finished rows. Columns that no row needs are dropped."""
        keep = (~self.rows.finished).nonzero().squeeze(1)
        waiting = range(self.begun, min(self.begun + self.rows_at_once - len(keep), len(self.prompts)))
        self.rows = self.rows.select(keep)
        if not len(keep) + len(waiting):
            return
        unused = min([self.column, *self.rows.first_column.tolist()])
        unused = unused if 2 * unused >= self.column else 0  # only if it is much
        self.cache.exchange(keep, len(waiting), unused)
        self.rows.first_column = self.rows.first_column - unused
        self.column -= unused
        if waiting:
            self.rows += self.new_rows(waiting)
        self.begun += len(waiting)
        self.set_context()


def context_length(config) -> int | None:
    """The most tokens that the model was made for, prompt and completion together; None where its config
    does not say.

    A model whose positions are scaled (YaRN, Llama 3) may name the length before scaling.
    """
    config = config.get_text_config()
    longest = getattr(config, "max_position_embeddings", None)
    if not isinstance(longest, int) or longest < 1:
        return None
    scaling = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    factor, original = scaling.get("factor"), scaling.get("original_max_position_embeddings")
    return max(longest, int(factor * original)) if factor and original else longest


# --- the sampler of a run -----------------------------------------------------------------------------------


def make_sampler(args, model, eos_ids: list[int]):
    """The sampler that --engine and --vllm-server name."""
    check_model(model)
    vocabulary = model.get_input_embeddings().num_embeddings
    if min(eos_ids) >= vocabulary:
        fail(
            f"--model: it ends with token {min(eos_ids)}, and its weights have {vocabulary} tokens; the "
            "tokenizer is another model's"
        )
    server, engine = getattr(args, "vllm_server", None), args.engine
    if engine == "auto":
        alone_on_gpu = torch.cuda.is_available() and ranks.WORLD_SIZE == 1
        engine = "vllm" if server or (alone_on_gpu and find_spec("vllm")) else "hf"
    if engine == "hf":
        return HFSampler(model, eos_ids)
    from plainrl.vllm_sampler import ServerSampler, VLLMSampler, refuse_what_is_cut  # only needed here

    if server:
        sampler = ServerSampler(server, model, eos_ids)
    else:
        sampler = VLLMSampler(model, eos_ids, getattr(args, "vllm_memory", None))
    refuse_what_is_cut([[0]], args.max_new_tokens, sampler.room)  # before anything is written
    return sampler


def push_weights(sampler, model, tokenizer, task, args, end=fail) -> None:
    """Hand the model's weights to a sampler that has its own, and make sure that it samples from them."""
    if not sampler.shares_weights:
        sampler.load_weights(model)
        probe_gap(sampler, model, tokenizer, task, args, end)


def probe_gap(sampler, model, tokenizer, task, args, end=fail) -> None:
    """Compare sampler and trainer on a few short completions and stop the run when they disagree.

    Catches weights that did not arrive, another temperature, a logit processor, an attention bug: everything
    that would turn the ratio of the loss into noise without any error message.
    """
    problems = [task.problem("dev", index, args.seed) for index in range(4)]
    prompts = [encode_prompt(tokenizer, problem.prompt, args.system_prompt) for problem in problems]
    seeds = [completion_seed(args.seed, 0, index, 0, 0) for index in range(4)]
    completions = []
    if ranks.MAIN:
        tokens = min(32, args.max_new_tokens)
        completions = sampler.generate(prompts, 1, tokens, args.temperature, seeds)
    completions = ranks.gather(completions)  # the same for all ranks
    ids = [completion.ids for completion in completions]
    logprobs, _ = score_all(model, prompts, ids, args.temperature, args.micro_batch_tokens)
    pairs = zip(logprobs.tolist(), completions)
    gaps = [abs(ours - theirs) for row, c in pairs for ours, theirs in zip(row, c.logprobs)]
    check_gap(sum(gaps) / len(gaps), args, end)


def check_gap(gap: float, args, end=fail) -> None:
    """Stop when sampler and trainer do not agree on the log-probability of the sampled tokens. `end` is what
    ends the run with a message."""
    if not gap <= args.max_logprob_gap:
        end(
            f"sampler and trainer log-probabilities differ by {gap:.2g} on average, more than "
            f"--max-logprob-gap {args.max_logprob_gap:g}; the sampler is not sampling from the policy that "
            "is trained (stale weights, another temperature or dtype, a model whose logits are processed): "
            "fix that, or raise the limit; --importance-cap, in a new run, makes up for what remains"
        )
