r"""LatentSeek: move the model's own hidden states until a critic likes the answer (arXiv 2505.13308).

It is the text half of MILR (2509.22761), too. Nothing is trained, and every problem is a search of its own.
Read it as `diff eval.py papers/latent_seek.py`.

    z_1 .. z_m      the last hidden states behind the first m tokens of the greedy answer, m = min(k n, 300)
    p_i = softmax(W z_i) + 1e-8,    a_i = argmax p_i                                 W: the model's head
    loss = - R sum_i log(p_i[a_i] + 1e-10),    one step of Adam on z                 R: the critic's score
    then the tokens argmax(W z), and a greedy answer from there on, which has a new R

until R is above --threshold, or for --max-steps. Then the best answer is returned. Two things to know: the
action is what z says already, so a negative R only makes it less likely, until one of its tokens flips. And z
is free: after a step it is nothing that the network would compute at that place.

An answer by sampling costs tokens too. So for every problem three answers stand beside each other: the
greedy one; the search's; and the best of plain samples by the same critic, of as many tokens.

--critic  oracle    R = 0 for a right answer, else -1. It knows the answer: an upper bound, no method
          self      R = the mean log-probability of the answer's tokens under the model
          judge     the paper's: the model is asked about four points; R = -(weights of refused ones) / 6
          verifier  R = 0 or -1, as a verifier of papers/general_reasoner.py compares it with the right answer

Deviations from the paper's code, tagged again where they happen:
[D1] The best answer by the critic is returned, of equals the first (its code: the last, --returned last).
[D2] An end token in the prefix ends the answer there (its code writes on behind it).
[D3] The greedy part after the prefix is decoded with keys and values that are kept (its code runs prompt and
     answer anew for each token); the tokens are the same.
[D4] The judge's questions are our own words, and an answer that cannot be read loses the two further points
     of the paper's format rule.
[D5] --latent-lr and --k are the paper's .03 and .1, but .3 and .2 on an embedded model, so that tokens turn
     within ten steps.

    python papers/latent_seek.py                          the embedded model, chains of two, the oracle
    python papers/latent_seek.py --critic self --task "chain?horizon=3"

Tokens are counted where the model writes them one by one: not those of the prefix, which the search reads off
z, nor a critic's. Letters in shapes: m states of one problem, d numbers in each, V vocabulary.
"""

import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch

sys.path.append(str(Path(__file__).resolve().parents[1]))  # where plainrl/ lies

from plainrl import curves
from plainrl.flags import (
    EVAL_LENGTHS,
    EVAL_SEED,
    Count,
    Length,
    Natural,
    Number,
    Positive,
    Share,
    Temperature,
    by_size,
    check_flags,
    parse,
    resolve_defaults,
    resolve_model,
)
from plainrl.folder import append_or_fail, claimed, json_lines, keep_settings, write_or_fail, writing
from plainrl.horizons import asked_problems, each_horizon
from plainrl.metrics import count, judged, summarise
from plainrl.models import eos_ids, keep_freed_memory, load_model, model_hash
from plainrl.report import write_report
from plainrl.results import (
    Table,
    as_text,
    cell,
    compare,
    described,
    result_rows,
    table_of,
)
from plainrl.rollout import (
    Completion,
    Rollout,
    check_prompt,
    check_template,
    completion_seed,
    encode_prompt,
    sample_rollout,
    set_thinking,
)
from plainrl.run import git_commit
from plainrl.sampler import make_sampler
from plainrl.samples import finished_samples, folder_of, sampling_settings
from plainrl.scoring import score_all, shared_hidden_states
from plainrl.screen import fail, in_one_process, or_fail, say, stoppable, time_left
from plainrl.tasks import Problem
from plainrl.verifier import VERIFIER, Verifier, check_verifier, load_verifier

MOST_STATES = 300  # of one problem
TOKENS_AT_ONCE = 2**14  # that are scored in one pass
POINTS = {  # what the judge is asked, and how much a point weighs
    "calculation": ("Is every calculation right?", 2),
    "answer": ("Is the final answer right?", 1),
    "completeness": ("Is all answered that was asked?", 2),
    "understanding": ("Is the problem understood as it is meant?", 1),
}
FORMAT = 2  # weight of an answer that cannot be read
JUDGE_PROMPT = """Problem: {question}
Answer: {answer}
{reference} End with Final Decision: Yes or No."""  # in the place of the reference stands a point's question


@dataclass
class Args:
    model: str | None = None
    """Hugging Face folder, hub name or .gguf file (default: models/tiny, or models/countdown with --task
    countdown)"""
    task: str = "chain?horizon=2"
    """what it is asked (see plainrl/tasks.py)"""
    critic: Literal["oracle", "self", "judge", "verifier"] = "oracle"
    """who scores an answer, see above"""
    k: Share | None = by_size(tiny=0.2, small=0.1, large=0.1)  # [D5]
    """share of the greedy answer's tokens whose states are moved, at most 300"""
    latent_lr: Positive | None = by_size(tiny=0.3, small=0.03, large=0.03)
    """Adam's learning rate: about how far each number of a state moves in a step"""
    max_steps: Count = 10
    """steps, each with a new answer"""
    threshold: Number | None = None
    """a score above it ends the search and the sampling of a problem (default: -0.2; of the critic self 0,
    which is never reached)"""
    returned: Literal["best", "last"] = "best"
    """which answer the search returns: the best by the critic, or the last as in the paper's code"""
    direction: Literal["gradient", "random"] = "gradient"
    """which way Adam goes: as the loss says, or one way by chance for each problem, with steps of the same
    length. The control: is the gradient used at all?"""
    split: Literal["test", "dev", "train", "all"] = "test"
    """which problems; `all` is every problem of a file of your own"""
    problems: Count | None = None
    """how many problems (default: all of a finite set, 200 of an endless one, 100 a horizon of a range)"""
    first_problem: Natural = 0
    """index of the first of them"""
    max_new_tokens: Length | None = by_size(**EVAL_LENGTHS)
    """longest answer, prefix included"""
    temperature: Temperature = 1.0
    """of the plain samples"""
    seed: Natural = 0
    """of the plain samples and of random directions; the problems are always the same"""
    system_prompt: str | None = None
    """system turn put before every prompt"""
    enable_thinking: Literal["yes", "no"] | None = None
    """what the chat template is told of `enable_thinking` (default: nothing, so that its own default holds);
    a template that does not know the word ignores it"""
    verifier: str | None = None
    """--critic verifier: model that compares an answer with the right one (default: what `python sft.py
    --task verdicts --train-size 12288` leaves)"""
    verifier_prompt: Path | None = None
    """--critic verifier: file with what it is asked, with {question}, {reference} and {answer} in their
    places (default: as in --task verdicts)"""
    verifier_tokens: Length | None = by_size(tiny=64, small=1024, large=2048)
    """most tokens of what a verifier or a judge writes"""
    rows_at_once: Count = 64
    """problems that are worked on together; fewer need less memory"""
    out_dir: Path | None = None
    """where everything goes (default: runs/latent_seek/<model>-<task>-<critic>-<hash of all settings>)"""
    resume: bool = False
    """go on with what is in --out-dir, and refuse to begin anew (without it the same command goes on, too)"""

    # No flags, but what is asked of every sampling here.
    samples: ClassVar[int] = 1  # every method has one answer to a problem
    top_p: ClassVar[float] = 1.0
    engine: ClassVar[str] = "hf"  # the states are in this process


# --- the mathematics ----------------------------------------------------------------------------------------


def states_to_move(length: int, k: float) -> int:
    """m, of an answer of so many tokens, its end token among them.

    >>> states_to_move(10, 0.2), states_to_move(9, 0.1), states_to_move(5000, 0.1)
    (2, 0, 300)
    """
    return min(int(k * length), MOST_STATES)


def action_logprobs(hidden: torch.Tensor, head) -> torch.Tensor:
    """log(p_i[a_i] + 1e-10) of the tokens a that the states themselves say: [m, d] -> [m]."""
    logits = head(hidden)  # [m, V]
    dtype = torch.promote_types(logits.dtype, torch.float32)
    probs = torch.softmax(logits.to(dtype), dim=-1) + 1e-8  # [m, V]
    return torch.log(probs.amax(-1) + 1e-10)  # a is the argmax, so its probability is the largest


def search_loss(hidden: torch.Tensor, head, reward: float) -> torch.Tensor:
    """- R sum_i log p_i[a_i], of states [m, d]."""
    return -reward * action_logprobs(hidden, head).sum()


def points_reward(refused: list[str], readable: bool = True) -> float:
    """The judge's R: 0 where it refuses no point, -1 where it refuses all.

    >>> points_reward([]), points_reward(["answer", "completeness"]), points_reward([*POINTS], readable=False)
    (0.0, -0.5, -1.3333333333333333)
    """
    lost = sum(POINTS[point][1] for point in refused) + (0 if readable else FORMAT)  # [D4]
    return 0.0 - lost / sum(weight for _, weight in POINTS.values())


def best(rewards: list[float]) -> int:
    """Place of the best answer, of equals of the first.

    >>> best([-1.0, -0.5, -0.5])
    1
    """
    return max(range(len(rewards)), key=lambda i: rewards[i])


# --- the states of one problem ------------------------------------------------------------------------------


@dataclass
class Latent:
    """The free states of one problem, and what moves them."""

    hidden: torch.nn.Parameter  # [m, d]
    optimizer: torch.optim.Adam
    direction: torch.Tensor | None  # [m, d]: takes the place of the gradient of log p

    def step(self, head, reward: float) -> None:
        """One update by the score of the last answer."""
        self.optimizer.zero_grad()
        if self.direction is None:
            search_loss(self.hidden, head, reward).backward()
        else:
            self.hidden.grad = -reward * self.direction
        self.optimizer.step()

    @torch.no_grad()
    def tokens(self, head) -> list[int]:
        """What the states say now."""
        return head(self.hidden).argmax(-1).tolist()


def latent_of(hidden: torch.Tensor, args: Args, seed: int) -> Latent:
    """Of states [m, d]. Adam undoes the length of a gradient, so a random one makes steps as long."""
    parameter = torch.nn.Parameter(hidden.to(torch.promote_types(hidden.dtype, torch.float32), copy=True))
    direction = None
    if args.direction == "random":
        chance = torch.Generator().manual_seed(seed)
        direction = torch.randn(hidden.shape, generator=chance).to(hidden)
    return Latent(parameter, torch.optim.Adam([parameter], lr=args.latent_lr), direction)


@torch.no_grad()
def first_states(model, rollout: Rollout, k: float) -> list[torch.Tensor]:
    """The states [m, d] behind the first tokens of each answer, as the head reads them; m may be 0."""
    sizes = [states_to_move(len(ids), k) for ids in rollout.completion_ids]
    rows = [row for row, size in enumerate(sizes) if size]
    if not rows:
        return [torch.empty(0)] * len(sizes)
    beginnings = [rollout.completion_ids[row][: sizes[row]] for row in rows]
    hidden = shared_hidden_states(model, [rollout.prompt_ids[row] for row in rows], beginnings)  # [sum m, d]
    return [*hidden.split(sizes)]


class AfterPrefix:
    """A sampler whose completions begin with tokens that are given, one list for each prompt."""

    def __init__(self, sampler, prefixes: list[list[int]]):
        self.sampler, self.prefixes, self.ends = sampler, prefixes, set(sampler.eos_ids.tolist())

    def generate(
        self, prompt_ids, n, max_new_tokens: int, temperature: float, seeds, top_p: float = 1.0
    ) -> list[Completion]:
        found: list[Completion | None] = [None] * len(prompt_ids)
        for row, prefix in enumerate(self.prefixes):
            end = next((i for i, token in enumerate(prefix) if token in self.ends), None)
            if end is not None:  # [D2]
                found[row] = Completion(prefix[: end + 1], [0.0] * (end + 1), "stop")
            elif len(prefix) >= max_new_tokens:
                found[row] = Completion(prefix, [0.0] * len(prefix), "length")
        rows = [row for row in range(len(found)) if found[row] is None]
        if not rows:
            return found
        begun = [prompt_ids[row] + self.prefixes[row] for row in rows]
        # A row with a longer prefix has room for fewer tokens than the row with most of it.
        rooms = [max_new_tokens - len(self.prefixes[row]) for row in rows]
        own_seeds = [seeds[row] for row in rows]
        endings = self.sampler.generate(begun, n, max(rooms), temperature, own_seeds, top_p)  # [D3]
        for row, room, completion in zip(rows, rooms, endings):
            ids, logprobs = completion.ids[:room], completion.logprobs[:room]
            reason = "stop" if ids[-1] in self.ends else "length"
            prefix = self.prefixes[row]
            found[row] = Completion(prefix + ids, [0.0] * len(prefix) + logprobs, reason)
        return found


# --- critics ------------------------------------------------------------------------------------------------
#
# Each takes a rollout with one answer to a problem, and returns R of each.


def by_the_answer(rollout: Rollout) -> list[float]:
    return [float(grade.correct) - 1 for grade in rollout.grades]


def by_logprob(model, rollout: Rollout) -> list[float]:
    """Mean log-probability of the tokens."""
    logprobs, _ = score_all(model, rollout.prompt_ids, rollout.completion_ids, 1.0, TOKENS_AT_ONCE)  # [N, T]
    lengths = torch.tensor([len(ids) for ids in rollout.completion_ids], device=logprobs.device)
    return (logprobs.sum(dim=1) / lengths).tolist()


def by_verifier(verifier: Verifier, rollout: Rollout) -> list[float]:
    """0 for a yes. Where there is no answer, nobody is asked."""
    pairs = list(zip(rollout.problems, rollout.grades))
    asked = [
        (problem.prompt, problem.answer, verifier.one_line(grade.parsed))
        for problem, grade in pairs
        if grade.parsed is not None
    ]
    verdicts = iter(verifier.verdicts(asked))
    return [0.0 if grade.parsed is not None and next(verdicts) else -1.0 for _, grade in pairs]


def by_judge(judge: Verifier, rollout: Rollout) -> list[float]:
    """A point without a clear yes is refused."""
    asked = [
        (problem.prompt, question, judge.one_line(text))
        for problem, text in zip(rollout.problems, rollout.texts)
        for question, _ in POINTS.values()
    ]
    verdicts, rewards = iter(judge.verdicts(asked)), []
    for grade in rollout.grades:
        refused = [point for point in POINTS if next(verdicts) is not True]
        rewards.append(points_reward(refused, grade.parsed is not None))
    return rewards


def critic_of(args: Args, model, tokenizer, sampler) -> tuple[Callable[[Rollout], list[float]], dict]:
    """The critic, and what is to be known of it to repeat its scores."""
    if args.critic == "oracle":
        return by_the_answer, {}
    if args.critic == "self":
        return partial(by_logprob, model), {}
    if args.critic == "judge":
        judge = Verifier(sampler, tokenizer, JUDGE_PROMPT, args.verifier_tokens)
        return partial(by_judge, judge), {"verifier_tokens": args.verifier_tokens}
    frozen, verifier = load_verifier(args)
    about = {"verifier": args.verifier, "verifier_hash": model_hash(frozen)}
    about |= {"verifier_prompt": verifier.template, "verifier_tokens": args.verifier_tokens}
    return partial(by_verifier, verifier), about


# --- the search, and samples of as many tokens --------------------------------------------------------------


@dataclass
class Job:
    """One problem, and the task that grades it."""

    task: object
    index: int
    problem: Problem
    prompt_ids: list[int]


@dataclass
class Lab:
    """What every answer needs."""

    model: object
    tokenizer: object
    sampler: object
    critic: Callable[[Rollout], list[float]]
    args: Args
    stream: int  # every model draws random numbers of its own

    def seed(self, job: Job, number: int) -> int:
        return completion_seed(EVAL_SEED, self.args.seed, job.problem.horizon, job.index, self.stream, number)


def answers(
    lab: Lab, jobs: list[Job], prefixes: list[list[int]], temperature: float, number: int
) -> tuple[Rollout, list[dict]]:
    """An answer to each problem that begins with its prefix; and what is kept of it: text and verdict, the
    critic's score, and how many tokens were written for it."""
    problems = [job.problem for job in jobs]
    prompts, seeds = [problem.prompt for problem in problems], [lab.seed(job, number) for job in jobs]
    how = (lab.args.max_new_tokens, temperature, lab.args.system_prompt)
    sampler = AfterPrefix(lab.sampler, prefixes)
    rollout = sample_rollout(sampler, lab.tokenizer, jobs[0].task, problems, prompts, seeds, 1, *how)
    found = []
    for row, reward in enumerate(lab.critic(rollout)):
        (verdict,) = judged(jobs[row].task, rollout, row, 1)
        own = {"reward": reward, "written": max(0, verdict["tokens"] - len(prefixes[row]))}
        found.append({"completion": rollout.texts[row]} | verdict | own)
    return rollout, found


def search(lab: Lab, jobs: list[Job], rollout: Rollout, first: list[dict]) -> tuple[list[list[dict]], list]:
    """The answers to each problem, step by step, from the greedy ones on; and m of each."""
    head, args = lab.model.get_output_embeddings(), lab.args
    tries, states = [[answer] for answer in first], first_states(lab.model, rollout, args.k)
    latents = [latent_of(hidden, args, lab.seed(job, 0)) for job, hidden in zip(jobs, states)]
    for step in range(1, args.max_steps + 1):
        unsolved = [row for row in range(len(jobs)) if tries[row][-1]["reward"] <= args.threshold]
        rows = [row for row in unsolved if len(states[row])]
        if not rows:
            break
        for row in rows:
            latents[row].step(head, tries[row][-1]["reward"])
        prefixes = [latents[row].tokens(head) for row in rows]
        _, found = answers(lab, [jobs[row] for row in rows], prefixes, 0.0, step)
        for row, answer in zip(rows, found):
            tries[row].append(answer)
    return tries, [len(hidden) for hidden in states]


def sample_as_many(lab: Lab, jobs: list[Job], first: list[dict], tokens: list[int]) -> list[list[dict]]:
    """The greedy answer and then plain samples, up to one that the critic likes. Those count that fit into
    as many tokens as the search has written for the problem."""
    tries, number = [[answer] for answer in first], 0
    left = [budget - answer["written"] for budget, answer in zip(tokens, first)]
    while rows := [
        row for row in range(len(jobs)) if left[row] > 0 and tries[row][-1]["reward"] <= lab.args.threshold
    ]:
        number += 1
        open_jobs, nothing = [jobs[row] for row in rows], [[] for _ in rows]
        _, found = answers(lab, open_jobs, nothing, lab.args.temperature, number)
        for row, answer in zip(rows, found):
            left[row] -= answer["written"]
            if left[row] >= 0:
                tries[row].append(answer)
    return tries


def work_on(lab: Lab, jobs: list[Job], settings: dict) -> list[dict]:
    """A row of samples.jsonl for each problem: the search's answer, and all answers on the way."""
    rollout, first = answers(lab, jobs, [[] for _ in jobs], 0.0, 0)
    searched, sizes = search(lab, jobs, rollout, first)
    sampled = sample_as_many(lab, jobs, first, [written(tries) for tries in searched])
    kept = ("model", "task", "split", "system_prompt", "grader", "critic")
    rows = []
    for job, size, steps, samples in zip(jobs, sizes, searched, sampled):
        about = {
            "index": job.index,
            "horizon": job.problem.horizon,
            "source": job.problem.source,
            "sample": 0,
            "prompt": job.problem.prompt,
            "gold": job.problem.answer,
        }
        answer = steps[chosen(steps, lab.args.returned)]
        more = {"states": size, "search": steps, "sampling": samples}
        rows.append(about | answer | {name: settings[name] for name in kept} | more)
    return rows


def written(tries: list[dict]) -> int:
    """Tokens of all answers together."""
    return sum(answer["written"] for answer in tries)


def chosen(tries: list[dict], returned: str = "best") -> int:
    """Place of the answer that is returned."""
    if returned == "last":
        return len(tries) - 1
    return best([answer["reward"] for answer in tries])  # [D1]


# --- all problems -------------------------------------------------------------------------------------------


def jobs_of(tasks: list, args: Args, tokenizer) -> list[Job]:
    """Every problem, in the order in which they are worked on: by the length of the prompt, so that a batch
    has little padding."""
    jobs = []
    for task, index, problem in asked_problems(tasks, args, args.first_problem):
        ids = encode_prompt(tokenizer, problem.prompt, args.system_prompt)
        jobs.append(Job(task, index, problem, ids))
    if not jobs:
        fail(f"--first-problem {args.first_problem}: --task {args.task} has fewer; give a lower one")
    return sorted(jobs, key=lambda job: len(job.prompt_ids))


OWN = ("split", "system_prompt", "critic", "k", "latent_lr", "max_steps", "threshold")
OWN += ("returned", "direction")


def settings_of(args: Args, model, tokenizer, sampler, tasks: list, jobs: list[Job], critic: dict) -> dict:
    """Everything that the numbers depend on; it stands in config.json, and in every row of results.json."""
    texts = [(job.problem.horizon, job.index, job.problem.prompt, job.problem.answer) for job in jobs]
    own = {name: getattr(args, name) for name in OWN} | critic | {"hint": False}  # as eval.py has them
    own |= {"enable_thinking": args.enable_thinking} if args.enable_thinking else {}
    own |= {"temperature": 0.0, "sampling_temperature": args.temperature}  # the search is greedy
    return sampling_settings(args, args.model, model, tokenizer, sampler, tasks[0], texts) | own


def work_on_all(lab: Lab, jobs: list[Job], settings: dict, path: Path) -> list[dict]:
    """Work on what is not yet in samples.jsonl (`path`), and return all of its rows."""
    # A batch is a pure function of the flags. Half a batch that a kill left is worked on again.
    size = lab.args.rows_at_once
    batches = [jobs[start : start + size] for start in range(0, len(jobs), size)]
    places = [{"horizon": job.problem.horizon, "index": job.index, "sample": 0} for job in jobs]
    rows = finished_samples(path, places, size)
    began, before = time.monotonic(), len(rows)
    for batch in batches[math.ceil(len(rows) / size) :]:
        new = work_on(lab, batch, settings)
        append_or_fail(path, new)
        rows = rows + new
        left = time_left(began, len(rows) - before, len(jobs) - len(rows))
        say(f"{len(rows):>6} of {len(jobs)} problems | left {left}")
    return rows


# --- what comes out -----------------------------------------------------------------------------------------

METHODS = ("greedy", "search", "sampling")
NAMES = {"greedy": "greedy", "search": "the search", "sampling": "best of plain samples"}


def answer_of(row: dict, method: str, returned: str) -> tuple[dict, list[dict]]:
    """The answer of a method to a problem, and all that it was chosen from."""
    if method == "greedy":
        return row["search"][0], row["search"][:1]
    tries = row[method]
    return tries[chosen(tries, returned if method == "search" else "best")], tries


def evaluation(rows: list[dict], method: str, settings: dict) -> dict:
    """What eval.py would write as results.json, had it measured the method's answers."""
    own = settings | {"method": method}
    if method == "sampling":
        own["temperature"] = settings["sampling_temperature"]
    problems = []
    for row in rows:
        answer, tries = answer_of(row, method, settings["returned"])
        problem = count([answer], row["index"], row["horizon"], row["source"])
        problems.append(problem | {"written": written(tries), "answers": len(tries)})
    problems.sort(key=lambda problem: (problem["horizon"], problem["index"]))
    return {"settings": own, "rows": result_rows(problems, own), "problems": problems}


def gain(before: dict, after: dict) -> dict:
    """The paired difference in right answers between two of them."""
    return compare(before, after)["rows"][-1]["metrics"]["avg@1"]


def method_table(found: dict[str, dict]) -> Table:
    """The three methods beside each other. `found` are their evaluations."""
    right = {name: [problem["correct"] for problem in results["problems"]] for name, results in found.items()}
    lines = []
    for method, results in found.items():
        problems, first = results["problems"], right["greedy"]
        line = [NAMES[method], cell(results["rows"][-1]["metrics"]["avg@1"])]
        line.append("" if method == "greedy" else cell(gain(found["greedy"], results), signed=True))
        for before in (0, 1):  # wrong -> right, right -> wrong
            line.append(str(sum(a == before != b for a, b in zip(first, right[method]))))
        line += [f"{np.mean([problem[name] for problem in problems]):.1f}" for name in ("answers", "written")]
        lines.append(line)
    head = ["", "right", "less greedy", "wrong -> right", "right -> wrong", "answers", "tokens"]
    less = cell(gain(found["sampling"], found["search"]), signed=True)
    temperature = found["sampling"]["settings"]["temperature"]
    about = [
        f"the search less the best of plain samples, paired by problem: {less}",
        f"plain samples: at temperature {temperature:g}, as many as fit into the tokens of the search",
        "answers, tokens: of a problem, the greedy answer among them",
    ]
    return table_of("", head, lines, about)


def plot(rows: list[dict], settings: dict, path: Path) -> None:
    """Right answers over the tokens of a problem, after 0, 1, 2, ... steps or samples."""
    strata, lines = np.array([row["horizon"] for row in rows]), {}
    for method in ("search", "sampling"):
        columns, tokens = {}, []
        for number in range(1, 1 + max(len(row[method]) for row in rows)):
            cut = [row | {method: row[method][:number]} for row in rows]
            found = [answer_of(row, method, settings["returned"]) for row in cut]
            columns[str(number)] = np.array([float(answer["correct"]) for answer, _ in found])
            tokens.append(float(np.mean([written(tries) for _, tries in found])))
        entries = summarise(columns, strata).values()
        parts = ([entry[part] for entry in entries] for part in ("value", "low", "high"))
        lines[NAMES[method]] = (tokens, *parts)
    title = f"{settings['task']}, critic {settings['critic']}, 95% intervals over problems"
    with writing("--out-dir", path, "give another one"):
        curves.plot_bands(lines, path, "tokens written for a problem", "right", title)


def write_evaluations(folder: Path, found: dict[str, dict], rows: list[dict]) -> list[Path]:
    """The methods as evaluations of eval.py: the search is this folder's, the others are folders in it."""
    way_out = "nothing is lost: the same command writes it without searching again"
    folders = []
    for method in ("greedy", "sampling"):
        here, settings = folder / method, found[method]["settings"]
        lines = []
        for row in rows:
            answer, _ = answer_of(row, method, settings["returned"])
            own = {name: value for name, value in row.items() if name not in ("search", "sampling", "states")}
            lines.append(own | answer)
        write_or_fail("--out-dir", here / "samples.jsonl", json_lines(lines), way_out)
        write_or_fail("--out-dir", here / "config.json", json.dumps(settings, indent=1) + "\n", way_out)
        write_or_fail("--out-dir", here / "results.json", json.dumps(found[method], indent=1) + "\n", way_out)
        folders.append(here)
    path = folder / "results.json"  # last: it says that all is there
    write_or_fail("--out-dir", path, json.dumps(found["search"], indent=1) + "\n", way_out)
    return [folders[0], folder, folders[1]]


# --- the command --------------------------------------------------------------------------------------------


def check_args(args: Args) -> None:
    """Fill what is left open, and refuse what cannot work."""
    if args.threshold is None:
        args.threshold = 0.0 if args.critic == "self" else -0.2
    if args.critic == "verifier":
        args.verifier = args.verifier or VERIFIER
        check_verifier(args.verifier)
    elif args.verifier or args.verifier_prompt:
        fail(
            f"--verifier: is asked by --critic verifier, and here it is {args.critic}; leave one of them out"
        )
    resolve_model(args, each_horizon(args.task)[0])
    check_flags(args)


@stoppable("the same command goes on after the last line of progress")
def main(args: Args) -> dict[str, dict]:
    """Search, sample, show; returns {method: what eval.py would write of its answers}."""
    in_one_process("papers/latent_seek.py")
    keep_freed_memory()
    args = replace(args)
    check_args(args)

    # --- 1 the problems
    tasks = each_horizon(args.task)
    model, tokenizer = load_model(args.model)
    model.eval().requires_grad_(False)
    resolve_defaults(args, model.num_parameters())
    set_thinking(tokenizer, args.enable_thinking)
    check_template(tokenizer, args.system_prompt)
    jobs = jobs_of(tasks, args, tokenizer)
    sampler = make_sampler(args, model, eos_ids(model, tokenizer))
    for job in jobs:
        check_prompt(job.prompt_ids, args.max_new_tokens, sampler, f"{args.split} problem {job.index}")

    # --- 2 search and sample
    critic, about = critic_of(args, model, tokenizer, sampler)
    settings = settings_of(args, model, tokenizer, sampler, tasks, jobs, about)
    lab = Lab(model, tokenizer, sampler, critic, args, int(settings["model_hash"], 16))
    folder = args.out_dir or folder_of("latent_seek", settings, settings["critic"])
    if args.resume and not (folder / "config.json").exists():
        fail(f"--resume: there is no search in --out-dir {folder}; leave the flag out to begin one")
    with claimed("--out-dir", folder, "config.json"):
        keep_settings("--out-dir", folder, settings, "choose another --out-dir", git_commit=git_commit())
        say(f"{args.model}: {len(jobs)} problems, critic {args.critic}, into {folder}")
        rows = work_on_all(lab, jobs, settings, folder / "samples.jsonl")

        # --- 3 what came of it
        found = {method: evaluation(rows, method, settings) for method in METHODS}
        folders = write_evaluations(folder, found, rows)
        plot(rows, settings, folder / "right_over_tokens.png")
        with writing("--out-dir", folder / "report.html", "give another one"):
            or_fail(write_report, folders, folder / "report.html")
    say(f"\n{described(settings)}\n\n{as_text([method_table(found)])}")
    say(f"\neverything is in {folder}: report.html, right_over_tokens.png, every step in samples.jsonl")
    if args.direction == "gradient":
        say("is it the gradient? The same command with --direction random, and another --out-dir, tells")
    return found


if __name__ == "__main__":
    main(parse(Args, __doc__))


# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "torch==2.13.0", "transformers>=5.16.1,<5.20", "safetensors", "numpy", "tyro", "filelock",
#     "math-verify>=0.9,<0.10", "antlr4-python3-runtime==4.13.2", "matplotlib", "jinja2",
# ]
# ///
