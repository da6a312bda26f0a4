r"""Don't Think Longer, Think Wisely, DTO (arXiv 2505.21765): traces end where the answer is known already.

Read it as `diff sft.py papers/dto.py`. First the model's own traces are made shorter. A trace y of the prompt
x is cut into patterns d_1 .. d_n, such as its lines:

    exit      i' = the first i with p_i > T,    p_i: share of M samples that are right after d_1 .. d_i and
              an open \boxed{
    finish    y_w = the shortest right one of K ways to go on after d_1 .. d_i'
    prune     a pattern is left out where the answer is as likely without it; then finish once more

Then SimPO (arXiv 2405.14734) learns to prefer y_w to y_l = y, without a reference model:

    L = - mean over pairs of log sigmoid(beta (l_w - l_l) - gamma),    l = 1/T sum_t log pi(y_t | x, y_<t)

The pairs of a step come from --data, or are made so before the first step. A right trace makes a pair if it
became shorter, a wrong one if it became right.

The paper's code is not public, and its numbers are not known to us. Deviations, tagged again where they
happen; D1 to D4 are sft.py's own choices:
[D1] The end token is the one that the sampler stops at, once, and it is learned; not where a trace was cut.
[D2] No packing. The scorer runs the linear layers without padding and equal prompts once; pairs of about one
     length share a step.
[D3] A row is never cut. A pair with one that is too long is left out and counted, or the run stops.
[D4] AdamW's betas are 0.9 and 0.95, and the learning rate falls by a cosine to a tenth.
[D5] M, K, T, the words that begin a pattern and the texts of exit and finish are ours.
[D6] The last pattern is no exit: the answer stands in it.
[D7] What is left out is decided by the trained model: the mean log-probability of the right answer (the
     paper: another language model marks what is not needed). The first and the last pattern always stay.
[D8] An answer is right when the task's grader says so of the whole text (the paper: it contains the answer).
[D9] SimPO without its code's label smoothing and cross-entropy term, which are off there.

    python papers/dto.py --model MODEL      MODEL thinks too long (docs/dto.md makes one); not measured yet

Letters in shapes: N rows of a step, rows 2i and 2i+1 the chosen and the rejected one of a pair, T completion
tokens. Masks come from lengths; the end token is inside.
"""

import json
import math
import random
import re
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import torch

sys.path.append(str(Path(__file__).resolve().parents[1]))  # where plainrl/ lies

from plainrl import ranks
from plainrl.files import open_entries
from plainrl.flags import (
    EVAL_SEED,
    Count,
    Fraction,
    Length,
    NotNegative,
    Positive,
    Prompts,
    RowFlags,
    Samples,
    Temperature,
    by_size,
    parse,
    size_of,
)
from plainrl.folder import json_lines, or_one_line, write_text
from plainrl.grading import grade_all
from plainrl.ranks import total
from plainrl.rollout import (
    Batch,
    check_prompt,
    check_template,
    completion_seed,
    encode_prompt,
    thinks_at_once,
)
from plainrl.row_order import number_of_steps, rows_of_steps
from plainrl.rows import MADE, Row, batch_of, drop_long, encode_rows, hold_out, longest_row, row_sums, rows_of
from plainrl.run import Run
from plainrl.sampler import push_weights
from plainrl.scoring import logprob_and_entropy, micro_batches, score, score_all
from plainrl.screen import fail, or_fail, say
from plainrl.tasks import Problem, split_size

PAIR_SEED = EVAL_SEED + 2  # no training run, no evaluation and no selection draws these random numbers
# What the paper has of these is not known to us. [D5]
MARKERS = ("Wait", "Alternatively", "Let me verify", "Let me check", "Hmm", "Actually", "So")
OPEN_BOX = "\\boxed{"
EXIT_TEXT = {"lines": OPEN_BOX, "markers": f"\n\nI can give the final answer now: {OPEN_BOX}"}
FINISH_TEXT = {"lines": "", "markers": "\n\nThat is enough to answer.\n"}


@dataclass
class Args(RowFlags):
    data: tuple[Path, ...] = ()
    """files of pairs, objects with prompt, chosen and rejected; without it pairs are made of the model's own
    traces of --task"""
    train_size: Count | None = None
    """make pairs of the traces of this many problems, or learn this many pairs of --data (default: all; 512
    problems of a task that never ends)"""
    rows_per_step: Prompts | None = by_size(tiny=64, small=64, large=256)
    """N, rows of one optimizer step, two for each pair"""
    temperature: Temperature = 1.0
    """sampling temperature of traces, dev and test scores; the loss is always at 1"""
    cut: Literal["lines", "markers"] | None = None
    """what begins a pattern: every line, or the words of --markers (default: lines for a model as
    small as the embedded ones)"""
    markers: tuple[str, ...] = MARKERS
    """words that begin a pattern, where they begin a sentence"""
    exit_text: str | None = None
    """written behind the first patterns to hear the answer that the model has by then (default: an open
    \\boxed{, with --cut markers a sentence before it)"""
    finish_text: str | None = None
    """written behind the patterns that are kept, before the model goes on (default: nothing, with --cut
    markers a sentence)"""
    exit_samples: Samples = 8
    """M, answers that are sampled behind every pattern"""
    exit_tokens: Length | None = by_size(tiny=16, small=32, large=32)
    """longest of these answers"""
    threshold: Fraction = 0.5
    """T: a trace ends behind the first pattern with more than this share of right answers"""
    exit_twice: bool = False
    """and with more than this share behind the next pattern too: one alone may be luck"""
    finish_samples: Samples = 8
    """K, ways to go on from there, of which the shortest right one is kept"""
    prune: bool = True
    """leave out patterns without which the answer is as likely"""
    beta: Positive = 2.0
    """SimPO's beta, which multiplies the difference of the mean log-probabilities"""
    gamma_beta_ratio: NotNegative = 0.5
    """gamma / beta: how much likelier the chosen completion is to be, in nats a token"""
    lr: NotNegative | None = by_size(tiny=1e-4, small=1e-6, large=5e-7)
    """peak learning rate of AdamW"""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """how the learning rate goes from its peak to --final-lr-share of it"""
    warmup_share: Fraction = 0.03
    """share of the steps in which the learning rate rises to its peak"""
    final_lr_share: Fraction = 0.1
    """learning rate of the last step, as a share of the peak"""
    weight_decay: NotNegative = 0.0
    """AdamW's weight decay"""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's decay rates of the mean and of the mean square of the gradients"""

    pass_before_update: ClassVar[bool] = True
    """no flag: accumulate_gradients scores the pairs before every update"""


# --- the mathematics ----------------------------------------------------------------------------------------


def patterns_of(text: str, cut: str, markers: tuple[str, ...]) -> list[str]:
    r"""The patterns of a trace. Joined they are the trace again.

    >>> patterns_of("A=1+1=2\nWait.\n\\boxed{2}", "lines", ())
    ['A=1+1=2\n', 'Wait.\n', '\\boxed{2}']
    >>> patterns_of("It is 2. Wait, is it? So 2.", "markers", ("Wait", "So"))
    ['It is 2. ', 'Wait, is it? ', 'So 2.']
    """
    if cut == "lines":
        return re.findall(r"\n*[^\n]+\n*", text) or [text]  # empty lines stay with the line before
    words = "|".join(map(re.escape, markers))
    begins = [found.start() for found in re.finditer(rf"(?:(?<=[.!?]\s)|(?<=\n))(?:{words})\b", text)]
    places = sorted({0, *begins, len(text)})
    return [text[start:end] for start, end in zip(places, places[1:])] or [text]


def exit_of(shares: list[float], threshold: float, twice: bool = False) -> int | None:
    """i', how many patterns are kept: the first with a share above the threshold. None where none has.

    >>> exit_of([0.0, 0.25, 0.5, 1.0, 1.0], 0.5)
    4
    """
    above = [share > threshold for share in shares]
    for i in range(1, len(above) + 1):
        next_too = i < len(above) and above[i]
        if above[i - 1] and (next_too or not twice):
            return i
    return None


def attention_cost(length: int) -> int:
    """How many tokens all tokens of a completion look at, itself and those before: L (L + 1) / 2."""
    return length * (length + 1) // 2


def mean_logprobs(logprobs: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """l, mean log-probability of a completion's tokens, which are 0 behind its end. [N, T], [N] -> [N]"""
    return logprobs.sum(dim=1) / lengths


def simpo_loss(
    chosen: torch.Tensor, rejected: torch.Tensor, beta: float, gamma_beta_ratio: float
) -> torch.Tensor:
    """SimPO's loss of each pair, - log sigmoid(beta (l_w - l_l) - gamma). [P], [P] -> [P]

    >>> simpo_loss(torch.tensor([-0.5]), torch.tensor([-0.7]), beta=2.0, gamma_beta_ratio=0.25)
    tensor([0.7444])
    """
    return -torch.nn.functional.logsigmoid(beta * (chosen - rejected - gamma_beta_ratio))  # [D9]


def cross_entropy(logprobs: torch.Tensor) -> torch.Tensor:
    """The loss of each token, - log pi(o_it | q_i, o_i<t), in nats. [N, T] -> [N, T]"""
    return -logprobs


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


# --- from traces to pairs -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Response:
    """A completion, whether it was sampled whole or goes on from a beginning."""

    text: str
    tokens: int  # those of the beginning and the end token included
    right: bool
    ended: bool  # by itself


@dataclass
class Trace:
    """What the model wrote to a problem, and what became of it."""

    index: int
    problem: Problem
    original: Response
    patterns: list[str]
    shares: list[float] = field(default_factory=list)  # p_1, p_2, ...
    exit: int | None = None  # i'
    optimised: Response | None = None
    dropped: list[int] = field(default_factory=list)  # patterns before the exit that are left out, from 1

    def beginning(self, places: list[int]) -> str:
        """The patterns at these places, from 0."""
        return "".join(self.patterns[place] for place in places)

    @property
    def makes_a_pair(self) -> bool:
        before, after = self.original, self.optimised
        if after is None or after.text == before.text or not before.text.strip():
            return False
        return not before.right or after.tokens < before.tokens


def is_better(response: Response, other: Response | None) -> bool:
    """Whether it is right, ended, and shorter than what there is so far."""
    return response.right and response.ended and (other is None or response.tokens < other.tokens)


class TraceSampler:
    """Goes on from beginnings of completions with the run's model, and counts what it samples."""

    def __init__(self, run: Run, args: Args):
        self.run, self.args, self.tokens = run, args, 0

    def prompt_ids(self, problem: Problem, beginning: str) -> list[int]:
        own = encode_prompt(self.run.tokenizer, problem.prompt, self.args.system_prompt)
        return own + self.run.tokenizer.encode(beginning, add_special_tokens=False)

    def sample(self, starts: list[tuple], n: int, max_new_tokens: int) -> list[list[Response]]:
        """`n` responses for each start, (number of the problem, problem, beginning). Ranks share the starts.

        The random numbers are a function of the problem and of how many letters the beginning has.
        """
        run, args, responses = self.run, self.args, []
        mine = starts[ranks.share(len(starts))]
        prompts = [self.prompt_ids(problem, beginning) for _, problem, beginning in mine]
        for (index, _, _), ids in zip(mine, prompts):
            check_prompt(ids, max_new_tokens, run.sampler, f"train problem {index}, with what was begun,")
        seeds = [
            completion_seed(PAIR_SEED, args.seed, index, len(beginning), sample)
            for index, _, beginning in mine
            for sample in range(n)
        ]
        completions = run.sampler.generate(prompts, n, max_new_tokens, args.temperature, seeds)
        own = [start for start in mine for _ in range(n)]
        texts = []
        for (_, _, beginning), completion in zip(own, completions):
            texts.append(beginning + run.tokenizer.decode(completion.ids, skip_special_tokens=True))
        # A template that opens the thinking itself leaves its <think> in the prompt.
        bare = [self.prompt_ids(problem, "") for _, problem, _ in mine]
        opened = ["<think>" if thinks_at_once(run.tokenizer, ids) else "" for ids in bare for _ in range(n)]
        said = [begin + text for begin, text in zip(opened, texts)]
        grades = or_fail(grade_all, run.task, said, [problem for _, problem, _ in own])  # [D8]
        for row, (text, grade, completion) in enumerate(zip(texts, grades, completions)):
            begun = len(prompts[row // n]) - len(bare[row // n])
            ended = completion.finish_reason == "stop"
            responses.append(Response(text, begun + len(completion.ids), bool(grade.correct), ended))
            self.tokens += len(completion.ids)
        responses = ranks.gather(responses)
        return [responses[row : row + n] for row in range(0, len(responses), n)]

    def traces(self) -> list[Trace]:
        """One trace of each problem, cut into patterns."""
        run, args = self.run, self.args
        size = split_size(run.task, "train")
        wanted = args.train_size or size or MADE
        count = wanted if size is None else min(wanted, size)
        problems = [or_fail(run.task.problem, "train", index, args.seed) for index in range(count)]
        starts = [(index, problem, "") for index, problem in enumerate(problems)]
        found = self.sample(starts, 1, args.max_new_tokens)
        return [
            Trace(index, problem, response, patterns_of(response.text, args.cut, args.markers))
            for (index, problem, _), (response,) in zip(starts, found)
        ]

    def find_exits(self, traces: list[Trace]) -> None:
        """p_1, p_2, ... of every trace, until it has an exit; of all traces together, pattern by pattern."""
        args = self.args
        for i in range(1, max((len(trace.patterns) for trace in traces), default=0)):  # [D6]
            left = [trace for trace in traces if trace.exit is None and len(trace.patterns) > i]
            starts = [
                (trace.index, trace.problem, trace.beginning(range(i)) + args.exit_text) for trace in left
            ]
            found = self.sample(starts, args.exit_samples, args.exit_tokens)
            for trace, answers in zip(left, found):
                trace.shares.append(sum(answer.right for answer in answers) / len(answers))
                trace.exit = exit_of(trace.shares, args.threshold, args.exit_twice)

    def finish(self, traces: list[Trace], kept: list[list[int]]) -> None:
        """Go on from the patterns that are kept. The shortest right way counts, where it is shorter than what
        there is."""
        args = self.args
        starts = [
            (trace.index, trace.problem, trace.beginning(places) + args.finish_text)
            for trace, places in zip(traces, kept)
        ]
        found = self.sample(starts, args.finish_samples, args.max_new_tokens)
        for trace, places, responses in zip(traces, kept, found):
            for response in responses:
                if is_better(response, trace.optimised):
                    trace.optimised = response
                    trace.dropped = [place + 1 for place in range(trace.exit) if place not in places]

    def needed(self, traces: list[Trace]) -> list[list[int]]:
        """Places of the patterns before the exit without which the answer is less likely [D7].

        From the last to the first each is left out in turn, together with those that went before.
        """
        kept = [list(range(trace.exit)) for trace in traces]
        best = self.answer_logprobs(traces, kept)
        for back in range(2, max((trace.exit for trace in traces), default=0)):
            tried = [row for row, trace in enumerate(traces) if trace.exit - back >= 1]
            without = [[place for place in kept[row] if place != traces[row].exit - back] for row in tried]
            scores = self.answer_logprobs([traces[row] for row in tried], without)
            for row, places, value in zip(tried, without, scores):
                if value >= best[row]:
                    kept[row], best[row] = places, value
        return kept

    def answer_logprobs(self, traces: list[Trace], kept: list[list[int]]) -> list[float]:
        """Mean log-probability of the tokens of each problem's right answer, behind the patterns and the text
        of the exit."""
        if not traces:
            return []
        prompts, answers = [], []
        for trace, places in zip(traces, kept):
            prompts.append(self.prompt_ids(trace.problem, trace.beginning(places) + self.args.exit_text))
            answer = trace.problem.answer + "}"
            answers.append(self.run.tokenizer.encode(answer, add_special_tokens=False))
        temperature = 1.0
        inputs = (self.run.model, prompts, answers, temperature, self.args.micro_batch_tokens)
        logprobs, _ = score_all(*inputs)  # [rows, T]
        lengths = torch.tensor([len(ids) for ids in answers], device=logprobs.device)
        return mean_logprobs(logprobs, lengths).tolist()


def optimise(run: Run, args: Args) -> tuple[list[Trace], int]:
    """The model's traces, made shorter where that can be done, and how many tokens were sampled for it."""
    sampler = TraceSampler(run, args)
    traces = sampler.traces()
    say(f"{len(traces):,} traces sampled; looking where they could end")
    sampler.find_exits(traces)
    with_exit = [trace for trace in traces if trace.exit is not None]
    sampler.finish(with_exit, [list(range(trace.exit)) for trace in with_exit])
    if args.prune:
        finished = [trace for trace in with_exit if trace.optimised is not None]
        kept = sampler.needed(finished)
        pruned = [row for row, trace in enumerate(finished) if len(kept[row]) < trace.exit]
        sampler.finish([finished[row] for row in pruned], [kept[row] for row in pruned])
    tokens = sum(ranks.gather([sampler.tokens]))
    return traces, tokens


def line_of(trace: Trace) -> dict:
    """A pair as a line of pairs.jsonl, and how it came about."""
    return {
        "prompt": trace.problem.prompt,
        "chosen": trace.optimised.text,
        "rejected": trace.original.text,
        "rejected_end": trace.original.ended,
        "index": trace.index,
        "answer": trace.problem.answer,
        "was_right": trace.original.right,
        "patterns": len(trace.patterns),
        "exit": trace.exit,
        "exit_shares": trace.shares,
        "dropped": trace.dropped,
        "chosen_tokens": trace.optimised.tokens,
        "rejected_tokens": trace.original.tokens,
    }


def summary_of(traces: list[Trace], sampled_tokens: int) -> dict[str, float | None]:
    """What became of the traces: how many right ones are shorter, how much attention all right ones save, and
    how many wrong ones became right."""
    right = [trace for trace in traces if trace.original.right]
    wrong = [trace for trace in traces if not trace.original.right]
    shorter = [trace for trace in right if trace.makes_a_pair]
    before = sum(attention_cost(trace.original.tokens) for trace in right)
    saved = sum(
        attention_cost(trace.original.tokens) - attention_cost(trace.optimised.tokens) for trace in shorter
    )
    repaired = [trace for trace in wrong if trace.makes_a_pair]
    return {
        "traces": len(traces),
        "right": len(right),
        "with_exit": sum(trace.exit is not None for trace in traces),
        "shortened": len(shorter),
        "repaired": len(repaired),
        "pairs": len(shorter) + len(repaired),
        "frac_shortened": len(shorter) / len(right) if right else None,
        "attention_saved": saved / before if right else None,
        "frac_repaired": len(repaired) / len(wrong) if wrong else None,
        "sampled_tokens": sampled_tokens,
    }


# --- pairs --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pair:
    """Two completions of one prompt. It is held out and put in order like a row."""

    chosen: Row
    rejected: Row

    @property
    def first_prompt(self) -> str:
        return self.chosen.first_prompt

    @property
    def split(self) -> str | None:
        return self.chosen.split

    @property
    def length(self) -> int:
        return self.chosen.length + self.rejected.length


def pair_of(entry: dict | str, place: str) -> Pair:
    """The pair of one object, as `rows_of` reads a row. Raises ValueError."""
    if isinstance(entry, str):
        raise ValueError(f"{place}: {entry}")
    for side in ("chosen", "rejected"):
        if not entry.get(side):
            way_out = "a pair has prompt, chosen and rejected"
            raise ValueError(f"{place}: field {side!r} is missing or empty; {way_out}")
    if entry["chosen"] == entry["rejected"]:
        raise ValueError(f"{place}: chosen and rejected are the same; leave the pair out")
    own = ("chosen", "rejected", "rejected_end")
    rest = {name: value for name, value in entry.items() if name not in own}
    rejected_end = {"end": entry["rejected_end"]} if "rejected_end" in entry else {}
    (chosen,) = rows_of(rest | {"completion": entry["chosen"]}, place)
    (rejected,) = rows_of(rest | {"completion": entry["rejected"]} | rejected_end, place)
    return Pair(chosen, rejected)


def read_pairs(paths: tuple[Path, ...]) -> list[Pair]:
    """The pairs of files. Raises ValueError with the file, the line and the field."""
    pairs = []
    for path in map(str, paths):
        which, before = f"--data {path}", len(pairs)
        with open_entries(path, which, {"prompt": "", "answer": ""}, None) as (unit, entries):
            for line, entry in entries:
                if line is not None:  # else the header of a table
                    pairs.append(pair_of(entry, f"{path}, {unit} {line}"))
        if len(pairs) == before:
            raise ValueError(f"{which}: holds no pair; give objects with prompt, chosen and rejected")
    return pairs


def make_pairs(run: Run, args: Args) -> tuple[list[dict], dict]:
    """The lines of pairs.jsonl, and their summary. A run that goes on finds those that it made before."""
    file = run.dir / "pairs.jsonl"
    if args.resume and file.exists():
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        return lines, json.loads((run.dir / "pairs.json").read_text())
    if args.plan:
        fail("--plan: pairs are made by sampling, and nobody knows how many before; give some with --data")
    push_weights(run.sampler, run.model, run.tokenizer, run.task, args)
    traces, tokens = optimise(run, args)
    ranks.release_weights(run.model)  # so that the optimizer gets this rank's part of them, as after `Run`
    summary = summary_of(traces, tokens)
    say(
        f"{summary['right']:,} of {summary['traces']:,} traces are right, and {summary['shortened']:,} of "
        f"them became shorter; {summary['repaired']:,} wrong ones became right; {tokens:,} tokens sampled"
    )
    if not summary["pairs"]:
        fail(
            f"--model {args.model}: no trace makes a pair: none became shorter or right; take a model that "
            "thinks too long (docs/dto.md makes one), a lower --threshold, or pairs with --data"
        )
    return [line_of(trace) for trace in traces if trace.makes_a_pair], summary


def keep_pairs(run: Run, lines: list[dict], summary: dict) -> None:
    """pairs.jsonl and pairs.json in the run's folder."""
    if ranks.MAIN:
        with or_one_line(run.dir):
            write_text(run.dir / "pairs.json", json.dumps(summary, indent=1) + "\n")
            write_text(run.dir / "pairs.jsonl", json_lines(lines))


def load_pairs(run: Run, args: Args, lines: list[dict]) -> tuple[list[Pair], list[Pair]]:
    """The pairs to learn and those that are held out, with their ids: those of --data, or of the `lines` that
    were made. What cannot work ends the run in one line."""
    if args.data:
        pairs = or_fail(read_pairs, args.data)
    else:
        pairs = [or_fail(pair_of, line, f"pair {number}") for number, line in enumerate(lines, start=1)]
    rows = [row for pair in pairs for row in (pair.chosen, pair.rejected)]
    rows = encode_rows(rows, args, run.model, run.tokenizer)  # [D1]
    short = set(map(id, or_fail(drop_long, rows, longest_row(args, run.model), args.over_length)))
    both_short = [Pair(*two) for two in zip(rows[::2], rows[1::2]) if short.issuperset(map(id, two))]  # [D3]
    learned, held = hold_out(both_short, args.dev_share)
    random.Random(f"{args.seed}/rows").shuffle(learned)
    learned = learned[: args.train_size] if args.data else learned
    if not learned:
        fail("--dev-share: no pair is left to learn from; give a lower one, or more pairs")
    say(f"{len(learned):,} pairs to learn, {len(held):,} held out")
    return learned, held


# --- the update ---------------------------------------------------------------------------------------------


def numbers_of_token(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Log-probability, entropy, and whether the likeliest token is the right one. [M, V], [M] -> [M] each"""
    logprobs, entropy = logprob_and_entropy(logits, targets)
    return logprobs, entropy, logits.argmax(dim=-1) == targets


def accumulate_gradients(model, batch: Batch, args: Args) -> Counter:
    """Backward pass of one optimizer step's loss, micro-batch by micro-batch. Returns sums for the log.

    A pair's loss needs both of its rows, which may lie in two micro-batches. So a pass without gradient finds
    the losses and their slopes in every l. With these as weights, a sum of the tokens' cross-entropy has the
    same gradient, for any micro-batches.
    """
    sums, temperature = Counter(), 1.0
    lengths = torch.tensor([len(ids) for ids in batch.completion_ids], device=model.device)  # [N]
    rows = (batch.prompt_ids, batch.completion_ids)
    logprobs, _ = score_all(model, *rows, temperature, args.micro_batch_tokens)  # [N, T]
    means = mean_logprobs(logprobs, lengths).requires_grad_()  # [N], l
    chosen, rejected = means[0::2], means[1::2]  # [N / 2] each
    loss_of_step = simpo_loss(chosen, rejected, args.beta, args.gamma_beta_ratio).mean()
    (slopes,) = torch.autograd.grad(loss_of_step, means)  # [N], below 0 for chosen rows
    batch["weights"] = (-slopes / lengths)[:, None] * batch["completion_mask"]  # [N, T]
    for part in micro_batches(model, batch, args.micro_batch_tokens):
        inputs = (model, part.prompt_ids, part.completion_ids, temperature, numbers_of_token)
        logprobs, entropy, right = score(*inputs)  # [n, T']
        loss = (cross_entropy(logprobs) * part["weights"]).sum()
        loss.backward()
        sums.update(row_sums(part, logprobs, entropy, right, loss))
    sums = total(sums)  # over ranks
    of_step = {
        "total_loss": loss_of_step,
        "logp_chosen": chosen.mean(),
        "logp_rejected": rejected.mean(),
        "margin": args.beta * (chosen - rejected).mean(),
        "preferred": (chosen > rejected).float().mean(),
    }
    for name, value in of_step.items():  # every rank has those of all pairs
        sums[name] = value.item()
    return sums


# --- the loop -----------------------------------------------------------------------------------------------


def check_args(args: Args) -> None:
    """What can be refused before anything is loaded."""
    if not all(0 <= beta < 1 for beta in args.betas):
        fail(f"--betas {args.betas[0]:g} {args.betas[1]:g}: must be at least 0 and below 1")
    if args.loss_on == "all":
        fail("--loss-on all: a pair has one prompt, and SimPO compares completions; use --loss-on completion")
    if args.task == "none":
        fail("--task none: the loss on held-out rows does not choose a model here; give a task to score")
    if args.rows_per_step is not None and args.rows_per_step % 2:
        fail(f"--rows-per-step {args.rows_per_step}: is odd, and a pair has two rows; give an even number")
    if not all(marker.strip() for marker in args.markers) or not args.markers:
        fail("--markers: give at least one word, and none that is empty; --cut lines needs none")


def main(args: Args, task=None, sampler=None) -> Path:
    """Train and return the folder of the final model. A task or sampler of your own can be passed in."""
    check_args(args)
    run = Run("dto", args, task, sampler, state={"tokens_seen": 0})
    if args.cut is None:
        args.cut = "lines" if size_of(run.model.num_parameters()) == "tiny" else "markers"
    args.exit_text = EXIT_TEXT[args.cut] if args.exit_text is None else args.exit_text
    args.finish_text = FINISH_TEXT[args.cut] if args.finish_text is None else args.finish_text
    check_template(run.tokenizer, args.system_prompt)
    lines, summary = ([], {"sampled_tokens": 0}) if args.data else make_pairs(run, args)
    pairs, dev_pairs = load_pairs(run, args, lines)
    run.rows = [row for pair in pairs for row in (pair.chosen, pair.rejected)]
    run.dev_rows = sorted((pair.chosen for pair in dev_pairs), key=lambda row: row.length)
    args.steps = number_of_steps(args, len(run.rows))
    steps = rows_of_steps(pairs, None, args.rows_per_step // 2, args.seed, args.steps)  # [D2]
    optimizer = torch.optim.AdamW(
        run.model.parameters(), args.lr, args.betas, weight_decay=args.weight_decay, fused=True
    )
    run.restore(optimizer)
    if lines:
        keep_pairs(run, lines, summary)
    for step in run.steps():
        # --- 1 the pairs of the step
        rows = [row for pair in steps[step - 1] for row in (pair.chosen, pair.rejected)]
        batch = batch_of(rows, run.model.device)

        # --- 2 update
        share = lr_share(step, args.steps, args.schedule, args.warmup_share, args.final_lr_share)  # [D4]
        optimizer.param_groups[0]["lr"] = args.lr * share
        sums = accumulate_gradients(run.model, batch, args)
        run.optimizer_step(optimizer, sums)

        # --- 3 log, score dev, save
        run.state["tokens"] += sums["tokens"]  # what --token-budget counts
        run.state["tokens_seen"] += sum(row.length for row in rows)
        own = {
            "dto/logp_chosen": sums["logp_chosen"],
            "dto/logp_rejected": sums["logp_rejected"],
            "dto/margin": sums["margin"],
            "dto/frac_preferred": sums["preferred"],
            "dto/sampled_tokens": summary["sampled_tokens"],
            "sft/loss": sums["nll"] / sums["tokens"],
            "sft/accuracy": sums["right"] / sums["tokens"],
            "sft/tokens_total": run.state["tokens"],
            "sft/tokens_seen": run.state["tokens_seen"],
            "sft/rows_total": step * args.rows_per_step,
            "sft/epoch": step * args.rows_per_step / len(run.rows),
            "policy/entropy": sums["entropy"] / sums["tokens"],
        }
        run.end_step_on_rows(batch, own)
    return run.finish()


if __name__ == "__main__":
    main(parse(Args, __doc__))


# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "torch==2.13.0", "transformers>=5.16.1,<5.20", "safetensors", "numpy", "tyro", "filelock",
#     "math-verify>=0.9,<0.10", "antlr4-python3-runtime==4.13.2", "matplotlib", "jinja2",
# ]
# ///
