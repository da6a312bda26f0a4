r"""DaSLaM: a small decomposer asks sub-questions that lead a frozen solver to the answer (arXiv 2310.18338).

Read it as `diff grpo.py papers/daslam.py`. An episode of a question q:

    attempt    CoT1: the solver answers q. Where that is right, q is not trained on.
    ask        the decomposer reads q and CoT1 and writes sub-questions s_1 .. s_n
    answer     a_i: the solver answers s_i behind what q says, its context
    finish     CoT3: the solver answers q with all a_i before it

    R1 = 1 - |N(q) symmetric difference N(s)| / |N(q)|           N: the nouns of a text; 0 if n = 0
    R2 = 1/4 sum_i cos(context + s_i, a_i)
    R3 = 1 if CoT3 has the right answer, else 0
    R4 = sum over lines j of  c1 / 2 if c3 > c1, else -1 - c1 / 2
         c1 = cos(gold_j, CoT1_j), c3 = cos(gold_j, CoT3_j), gold: the worked solution
    R5 = sum over pairs of operators of gold and CoT3 of  1/2 if they are equal, else -1/2

What changes against grpo.py is what a step samples and where its rewards come from. The decomposer is trained
on one reward an episode. The solver is a model that stays as it is, or a function that is passed to `main`.

Deviations from the paper, tagged again where they happen:
[D1] GRPO, and a decomposer that samples at --temperature (the paper: PPO with a value model and a KL towards
     4 nats; temperature .2 and top-p .18, which leave a group no differences).
[D2] The reward is R3; --reward full has the sum, and each part is logged. R4 punishes every line of CoT3 that
     is not nearer to the gold one than that of CoT1 was.
[D3] The decomposer reads CoT1, as the paper says (its code: the gold solution, --condition gold).
[D4] An answer is a hint to the questions after it (the paper: each is asked by itself).
[D5] Nouns are words that begin with a capital, vectors are counts of words; `main` takes others (the paper:
     spaCy's).
[D6] Right is what the task's grader says, of a box or of the last [[Answer: x]] (its code: equal strings).
[D7] What the solver answers to a prompt follows from the prompt, as if it were drawn once for all.
[D8] Questions that the solver answers alone make a step smaller (its code fills the batch by repetition).
[D9] Of a list that is too long the first --most-subquestions count.

    python papers/daslam.py       from a model that knows both parts (docs/daslam.md); not measured yet

Letters in shapes: B prompts, G completions of each (a group), N = B*G rows, T completion tokens. Rows are
prompt-major: rows i*G .. i*G+G-1 belong to prompt i. Masks come from lengths; EOS is inside the mask when
the completion ended by itself.
"""

import re
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch

sys.path.append(str(Path(__file__).resolve().parents[1]))  # where plainrl/ lies

from plainrl import ranks
from plainrl.asked import ask, load_asked
from plainrl.flags import (
    EVAL_SEED,
    Bounds,
    ClipRange,
    Count,
    Length,
    Natural,
    NotNegative,
    Positive,
    RunFlags,
    Share,
    by_size,
    parse,
)
from plainrl.grading import grade_all
from plainrl.ranks import total
from plainrl.rollout import Batch, PromptRoom, completion_seed
from plainrl.run import Run
from plainrl.scoring import micro_batches, score, update_sums
from plainrl.screen import fail, or_fail
from plainrl.subquestions import (
    context_of,
    decomposer_prompt,
    in_context,
    read_subquestions,
    with_answers,
)
from plainrl.tasks import Grade, Problem, hash_number, scored

START = "runs/sft/daslam/final"  # where the commands of docs/daslam.md leave a model of both parts
SOLVER_SEED = EVAL_SEED + 4  # nothing else draws these random numbers
# In this order, and found wherever they stand: also the + of C++ and the sec of seconds.
OPERATORS = "+ - * / sin log ^ cos tan cot sec cosec sqrt pi exp".split()


@dataclass
class Args(RunFlags):
    model: str | None = START
    """decomposer to start from: a Hugging Face folder, hub name or .gguf file that has learned to ask
    (docs/daslam.md makes the default one)"""
    solver: str | None = None
    """model that answers, and stays as it is: a Hugging Face folder, hub name or .gguf file (default: the one
    that --model names, as it is before training)"""
    solver_tokens: Length | None = by_size(tiny=160, small=256, large=256)
    """most tokens of what it writes; --token-budget counts them"""
    solver_temperature: Annotated[float, Bounds(at_least=0, at_most=100)] = 0.9
    """its sampling temperature; 0 is greedy"""
    solver_top_p: Share = 0.18
    """it samples from the likeliest tokens that have this probability together"""
    condition: Literal["solver", "gold", "none"] = "solver"  # [D3]
    """what the decomposer reads besides the question: the solver's attempt, the worked solution, nothing"""
    reward: Literal["answer", "full"] = "answer"  # [D2]
    """R3 alone, or R1 + R2 + R3 + R4 + R5"""
    fewest_subquestions: Natural = 3
    """a shorter list counts as none"""
    most_subquestions: Count = 16  # [D9]
    """of a longer list the first ones count"""
    clip_low: ClipRange = 0.2
    """the ratio is clipped below at 1 - clip_low"""
    clip_high: ClipRange = 0.2
    """the ratio is clipped above at 1 + clip_high"""
    kl_coef: NotNegative = 0.0
    """beta, weight of the k3 estimate of KL(policy || starting model) in the loss"""
    kl_bias_correction: bool = False
    """multiply that estimate by pi / pi_old, so that its gradient is that KL's too"""
    mask_truncated: bool = False
    """leave completions cut at --max-new-tokens out of the loss instead of scoring them"""
    importance_cap: Positive | None = None
    """weight tokens by min(pi_old / sampler, cap), if the sampler differs from the trainer (2.0 is common)"""
    minibatches: Count = 1
    """optimizer steps per pass over the sampled batch"""
    epochs: Count = 1
    """passes over the sampled batch"""
    lr: NotNegative | None = by_size(tiny=3e-4, small=1e-5, large=1e-6, countdown=5e-5)
    """peak learning rate of AdamW"""
    warmup_steps: Natural | None = by_size(tiny=5, small=5, large=5)
    """steps of linear warm-up; constant afterwards"""
    weight_decay: NotNegative = 0.0
    """AdamW's weight decay"""

    @property
    def tokens_of_others(self) -> dict[str, int]:
        """of a step: an attempt at each question; of each completion all sub-questions, and the question"""
        answers = self.prompts_per_step * (1 + self.group_size * (self.most_subquestions + 1))
        return {"solver": answers * self.solver_tokens}


# --- the rewards --------------------------------------------------------------------------------------------


def capitalised(text: str) -> set[str]:
    """The words that begin with a capital letter, as they stand: names, and the embedded world's variables.

    >>> sorted(capitalised("Ann has Apples, and Bob eats."))
    ['Ann', 'Apples', 'Bob']
    """
    return set(re.findall(r"\b[A-Z]\w*", text))


def word_counts(text: str) -> Counter:
    """How often each word, number and sign stands in a text."""
    return Counter(re.findall(r"\w+|[^\w\s]", text))


def cosine(first, second) -> float:
    """Of two vectors, counts of words or numbers; 0 where one of them is 0.

    >>> round(cosine(word_counts("a b"), word_counts("a b c")), 6)
    0.816497
    """
    if isinstance(first, Mapping):
        words = sorted({*first, *second})
        first, second = ([each.get(word, 0) for word in words] for each in (first, second))
    first, second = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    size = np.linalg.norm(first) * np.linalg.norm(second)
    return float(first @ second / size) if size else 0.0


def noun_reward(question: str, subquestions: list[str], nouns: Callable = capitalised) -> float:
    """R1: 1 if the sub-questions have the question's nouns and no others. It may be far below 0.

    >>> round(noun_reward("Ann has Apples and Bob eats", ["How many Apples has Ann?", "And Bob?"]), 6)
    0.333333
    """
    asked, given = nouns(" ".join(subquestions)), nouns(question)
    if not subquestions:
        return 0.0
    return 1 - len(given ^ asked) / len(given) if given else 1.0


def answer_rewards(pairs: list[tuple[str, str]], vector: Callable = word_counts) -> float:
    """R2: a quarter of how close each answer is to what was asked. pairs: (context + sub-question, answer).

    >>> round(answer_rewards([("a b", "a b c"), ("c d", "x y")]), 6)
    0.204124
    """
    return 0.25 * sum(cosine(vector(asked), vector(answer)) for asked, answer in pairs)


def with_box(text: str) -> str:
    r"""A text as graders read it: what stands in its last [[Answer: x]] in a box. Empty without "Answer:".

    >>> with_box("[[Answer: 3]], no: [[Answer: 33]]"), with_box("[[33]]"), with_box("\\boxed{33}")
    ('\\boxed{33}', '\\boxed{}', '\\boxed{33}')
    """
    found = re.findall(r"\[\[(.*?)\]\]", text, re.DOTALL)
    if not found:
        return text
    _, _, answer = found[-1].partition("Answer:")
    return f"\\boxed{{{answer.strip()}}}"


def line_reward(gold: str, attempt: str, final: str, vector: Callable = word_counts) -> float:
    """R4: over the lines that all three have, is the final one closer to the gold one than the attempt's was?

    >>> [round(line_reward("a b", "a x", final), 6) for final in ("a b", "q r")]
    [0.25, -1.25]
    """
    reward = 0.0
    for lines in zip(*(text.strip().splitlines() for text in (gold, attempt, final))):
        right, before, after = map(vector, lines)
        c1, c3 = cosine(right, before), cosine(right, after)
        reward += c1 / 2 if c3 > c1 else -1 - c1 / 2
    return reward


def operator_reward(gold: str, final: str) -> float:
    """R5: the operators that are present in each, in the order of OPERATORS, compared pair by pair.

    >>> operator_reward("3 + 4 * 2", "3 + 4"), operator_reward("1 - 2", "1 + 2")
    (0.5, -0.5)
    """
    present = ([operator for operator in OPERATORS if operator in text] for text in (gold, final))
    return sum(0.5 if ours == theirs else -0.5 for ours, theirs in zip(*present))


# --- the mathematics ----------------------------------------------------------------------------------------


def group_advantages(rewards: torch.Tensor) -> torch.Tensor:
    """Each completion's reward against its group, (R - mean) / (std + 1e-6).

    rewards [B, G] -> advantages [B, G]. The std is the unbiased one (ddof 1) that torch computes by default.

    >>> group_advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0]]))
    tensor([[ 1.5000, -0.5000, -0.5000, -0.5000]])
    """
    centred = rewards - rewards.mean(dim=1, keepdim=True)  # [B, G]
    centred = centred / (rewards.std(dim=1, keepdim=True) + 1e-6)
    no_signal = rewards.amax(1, keepdim=True) == rewards.amin(1, keepdim=True)  # [B, 1]
    return centred.masked_fill(no_signal, 0.0)  # not what rounding in the mean makes


def clipped_surrogate(logprobs, old_logprobs, advantages, clip_low: float, clip_high: float) -> torch.Tensor:
    """PPO's pessimistic loss per token, -min(ratio A, clip(ratio) A).

    logprobs [N, T], advantages [N, 1] -> [N, T]. The gradient vanishes only where a clipped ratio already
    moved the way the advantage asks for.
    """
    ratio = torch.exp(logprobs - old_logprobs)  # [N, T]
    return -torch.min(ratio * advantages, ratio.clamp(1 - clip_low, 1 + clip_high) * advantages)


def k3(logprobs, ref_logprobs) -> torch.Tensor:
    """KL(policy || reference) per token, estimated on the policy's own samples (eq. 4).

    exp(d) - 1 - d with d = ref_logprobs - logprobs: [N, T], [N, T] -> [N, T]. Unbiased and never negative as
    a value. As a loss its gradient is that of the KL in the other direction, KL(reference || policy), since
    only the value was made unbiased. Times pi / pi_old, differentiated too, it has value and gradient of
    KL(policy || reference), and is right for samples of pi_old.
    """
    difference = ref_logprobs - logprobs  # [N, T]
    return torch.expm1(difference) - difference


def truncated_importance(old_logprobs, rollout_logprobs, cap: float) -> torch.Tensor:
    """min(pi_old / sampler, cap) per token [N, T], no gradient: for a sampler that is not quite pi_old."""
    return torch.exp(old_logprobs - rollout_logprobs).clamp(max=cap).detach()


def sequence_mean(mask: torch.Tensor) -> torch.Tensor:
    """Weights of a mean over a completion's tokens, then over completions. [N, T] -> [N, T]

    The loss is the weighted sum of the tokens' losses. Completions without a token in the mask do not count.
    """
    lengths = mask.sum(dim=1, keepdim=True)  # [N, 1]
    return mask / lengths.clamp(min=1) / (lengths > 0).sum().clamp(min=1)


# --- the update ---------------------------------------------------------------------------------------------


def accumulate_gradients(model, batch: Batch, args: Args) -> Counter:
    """Backward pass of one optimizer step's loss, micro-batch by micro-batch. Returns sums for the log.

    The weights of the tokens are made before the split: loss and gradient are the same for any micro-batches.
    """
    sums = Counter()
    batch["weights"] = sequence_mean(batch["loss_mask"])  # [N, T]
    for part in micro_batches(model, batch, args.micro_batch_tokens):
        logprobs, entropy = score(model, part.prompt_ids, part.completion_ids, args.temperature)  # [n, T']
        old_logprobs = part.get("old_logprobs", logprobs.detach())  # one update: pi_old is the policy
        advantages = part["advantages"]  # [n, 1]

        loss_per_token = clipped_surrogate(logprobs, old_logprobs, advantages, args.clip_low, args.clip_high)
        clipped = loss_per_token > -torch.exp(logprobs - old_logprobs) * advantages  # the clipped term won
        if args.importance_cap is not None:
            importance = truncated_importance(old_logprobs, part["rollout_logprobs"], args.importance_cap)
            loss_per_token = loss_per_token * importance
        policy_loss = total_loss = (loss_per_token * part["weights"]).sum()
        if args.kl_coef:
            kl = k3(logprobs, part["ref_logprobs"])
            if args.kl_bias_correction:
                kl = kl * torch.exp(logprobs - old_logprobs)
            total_loss = policy_loss + args.kl_coef * (kl * part["weights"]).sum()
            sums["kl"] += (kl.detach() * part["completion_mask"]).sum().item()
        total_loss.backward()
        sums.update(update_sums(part, logprobs, old_logprobs, entropy, clipped, policy_loss, total_loss))
    return total(sums)  # over ranks


def problem_indices(args: Args, step: int) -> list[int]:
    """The training problems of a step: a pure function of its number, so resuming needs no data state."""
    first = (step - 1) * args.prompts_per_step
    indices = range(first, first + args.prompts_per_step)
    return [index % args.train_size if args.train_size else index for index in indices]


def learning_rate(args: Args, step: int) -> float:
    """Linear warm-up to `lr` over `warmup_steps`, then constant; the step counts from 1."""
    return args.lr * min(1.0, step / max(1, args.warmup_steps))


# --- the solver ---------------------------------------------------------------------------------------------


class Solver:
    """Answers prompts, and counts what it writes.

    `answer` makes of different prompts one (text, tokens) each. What is asked twice at once is answered once.
    """

    def __init__(self, answer: Callable):
        self.answer, self.spent = answer, Counter()

    def __call__(self, prompts: list[str]) -> list[str]:
        different = list(dict.fromkeys(prompts))
        answers = dict(zip(different, self.answer(different), strict=True))
        self.spent.update(calls=len(different), tokens=sum(tokens for _, tokens in answers.values()))
        return [answers[prompt][0] for prompt in prompts]


def load_solver(args: Args, run: Run, function: Callable | None) -> Solver:
    """The function that was passed to `main`, else the model of --solver."""
    if function is not None:
        args.solver = None  # config.json says that it was none

        def ask_function(prompts: list[str]) -> list[tuple[str, int]]:
            texts = list(function(prompts))
            if len(texts) != len(prompts) or not all(isinstance(text, str) for text in texts):
                fail(
                    f"solver: returned {len(texts)} things for {len(prompts)} prompts; return a text for each"
                )
            return [(text, len(run.tokenizer.encode(text, add_special_tokens=False))) for text in texts]

        return Solver(ask_function)
    args.solver = args.solver or args.model
    run.solver, tokenizer, sampler = load_asked("--solver", args.solver, args.solver_tokens)

    def ask_model(prompts: list[str]) -> list[tuple[str, int]]:
        """A prompt that has no room in the model's context gets no answer."""
        seeds = [completion_seed(SOLVER_SEED, hash_number(prompt)) for prompt in prompts]  # [D7]
        settings = (args.solver_tokens, args.solver_temperature, seeds, args.solver_top_p)
        return [each or ("", 0) for each in ask(sampler, tokenizer, prompts, *settings)]

    return Solver(ask_model)


# --- an episode ---------------------------------------------------------------------------------------------


@dataclass
class Episode:
    """A question, what the decomposer asks of it, and what the solver says."""

    question: Problem
    attempt: str  # CoT1
    subquestions: list[str]
    answers: list[str] = field(default_factory=list)
    final: str | None = None  # CoT3, None as long as there is something to ask

    def next_prompt(self) -> str:
        """The next sub-question, or after the last one the question itself."""
        prompt, asked = self.question.prompt, len(self.answers)
        if asked < len(self.subquestions):
            prompt = in_context(prompt, self.subquestions[asked])
        return with_answers(prompt, self.answers)  # [D4]

    def hear(self, text: str) -> None:
        """The solver's answer to `next_prompt`."""
        if len(self.answers) < len(self.subquestions):
            self.answers.append(text)
        else:
            self.final = text


def play(episodes: list[Episode], solver: Callable) -> None:
    """Ask until all have their final answer, one prompt of each at a time."""
    waiting = episodes
    while waiting:
        for episode, text in zip(waiting, solver([each.next_prompt() for each in waiting]), strict=True):
            episode.hear(text)
        waiting = [episode for episode in waiting if episode.final is None]


def rewards_of(episode: Episode, right: bool, nouns: Callable, vector: Callable) -> list[float]:
    """R1 to R5. Without a worked solution R4 and R5 are 0."""
    question, gold = episode.question.prompt, episode.question.solution or ""
    context = context_of(question)
    asked = [f"{context} {subquestion}".strip() for subquestion in episode.subquestions]
    return [
        noun_reward(question, episode.subquestions, nouns),
        answer_rewards(list(zip(asked, episode.answers, strict=True)), vector),
        float(right),
        line_reward(gold, episode.attempt, episode.final, vector),
        operator_reward(gold, episode.final),
    ]


@dataclass(frozen=True)
class Shown(Problem):
    """A question as the decomposer reads it: `prompt` is what it reads."""

    question: Problem | None = None
    attempt: str = ""


class InPieces:
    """A task whose questions are asked in pieces: a completion is a list of sub-questions, and its grade is
    that of the solver's final answer.

    Questions of dev and test come as the decomposer reads them, those of train as they are: `shown` makes
    all of a step ready at once.
    """

    needs_more_than_the_model = True  # its solver

    def __init__(self, task, solver: Solver, args: Args, room: PromptRoom):
        self.task, self.solver, self.args, self.room = task, solver, args, room
        self.held_out: dict[tuple, Shown] = {}
        self.played: list[tuple[Episode, Grade]] = []  # since a step began

    def __getattr__(self, name: str):
        if name == "task":  # of a copy that is not filled yet
            raise AttributeError(name)
        return getattr(self.task, name)

    def problem(self, split: str, index: int, seed: int) -> Problem:
        if split == "train":
            return self.task.problem(split, index, seed)
        if (split, index, seed) not in self.held_out:
            asked = {"dev": self.args.eval_problems, "test": self.args.test_problems}[split]
            # All that are scored are asked for soon.
            indices = sorted({index, *range(scored(self.task, split, asked))})
            questions = [self.task.problem(split, each, seed) for each in indices]
            for each, shown in zip(indices, self.shown(questions)[0]):
                self.held_out[split, each, seed] = shown
        return self.held_out[split, index, seed]

    def shown(self, questions: list[Problem]) -> tuple[list[Shown], list[bool]]:
        """The questions as the decomposer reads them, and which of them the solver answers alone."""
        prompts = [question.prompt for question in questions]
        attempts = ranks.gather(self.solver(prompts[ranks.share(len(prompts))]))
        shown = []
        for question, attempt in zip(questions, attempts):
            reasoning = {"solver": attempt, "gold": question.solution, "none": None}[self.args.condition]
            if self.args.condition == "gold" and not reasoning:
                fail(f"--condition gold: the question {question.prompt[:40]!r} has no worked solution")
            # What has no room is left out.
            longest_first = (
                decomposer_prompt(question.prompt, reasoning),
                decomposer_prompt(question.prompt),
            )
            prompt = next(filter(self.room.holds, longest_first), question.prompt)
            kept = dict(solution=question.solution, horizon=question.horizon, source=question.source)
            more = dict(index=question.index, question=question, attempt=attempt)
            shown.append(Shown(prompt, question.answer, **kept, **more))
        return shown, [grade.correct for grade in self.grades(attempts, questions)]

    def grades(self, texts: list[str], questions: list[Problem]) -> list[Grade]:
        return or_fail(grade_all, self.task, [with_box(text) for text in texts], questions)  # [D6]

    def grade_many(self, completions: list[str], problems: list[Shown]) -> list[Grade]:
        """Plays an episode of each. plainrl/grading.py calls it, on each rank for its own."""
        fewest, most = self.args.fewest_subquestions, self.args.most_subquestions
        episodes = []
        for text, problem in zip(completions, problems, strict=True):
            subquestions = read_subquestions(text, fewest, most)
            episodes.append(Episode(problem.question, problem.attempt, subquestions))
        play(episodes, self.solver)
        grades = self.grades([each.final for each in episodes], [each.question for each in episodes])
        self.played += zip(episodes, grades)
        return grades

    def begin_step(self) -> None:
        """Forget what was asked for scores."""
        self.played, self.solver.spent = [], Counter()


# --- the loop -----------------------------------------------------------------------------------------------


def main(
    args: Args,
    task=None,
    sampler=None,
    solver=None,
    nouns: Callable = capitalised,
    vector: Callable = word_counts,
) -> Path:
    """Train and return the folder of the final model. Of your own can be passed in: a task, a sampler, a
    solver that makes texts of prompts, and what the nouns and the vector of a text are.  [D5]"""
    if args.model == START and not Path(START).exists():
        fail(
            f"--model {START}: is not there yet; docs/daslam.md has the commands that make it; or give "
            "another model that writes sub-questions"
        )
    run = Run("daslam", args, task, sampler)
    room = PromptRoom(run.tokenizer, run.sampler, args)
    run.task = world = InPieces(run.task, load_solver(args, run, solver), args, room)
    reference = run.load_reference() if args.kl_coef else None
    optimizer = torch.optim.AdamW(run.model.parameters(), args.lr, weight_decay=args.weight_decay, fused=True)
    run.restore(optimizer)
    if run.solver is not None:
        ranks.gather_weights(run.solver)  # for good: from here on each rank asks when it must
    B, G = args.prompts_per_step, args.group_size
    for step in run.steps():
        # --- 1 sample, and ask the solver
        world.begin_step()
        problems = [run.task.problem("train", index, args.seed) for index in problem_indices(args, step)]
        shown, solved = world.shown(problems)  # B each
        kept = [j for j in range(B) if not solved[j]] or [0]  # [D8]; where all are solved one is shown
        seeds = [completion_seed(args.seed, step, j, 0, i) for j in kept for i in range(G)]
        rollout = run.sample([shown[j] for j in kept], seeds)  # N graded completions
        spent = total(world.solver.spent)  # over ranks
        run.state["tokens"] += spent["tokens"]

        # --- 2 reward and advantage
        played = ranks.gather(world.played)  # N episodes
        parts = [rewards_of(episode, grade.correct, nouns, vector) for episode, grade in played]  # R1 .. R5
        rewards = [sum(each) if args.reward == "full" else each[2] for each in parts]  # [D2]
        grades = [replace(grade, score=reward) for grade, reward in zip(rollout.grades, rewards, strict=True)]
        run.sampled = rollout = replace(rollout, grades=grades)  # the log, too, is about these rewards
        advantages = group_advantages(rollout.rewards())  # [B, G]  [D1]
        if all(solved):  # nothing is learned from what is only shown
            advantages = torch.zeros_like(advantages)
        batch = rollout.batch(advantages, run.model.device, args.mask_truncated)

        # --- 3 update
        optimizer.param_groups[0]["lr"] = learning_rate(args, step)
        if args.minibatches * args.epochs > 1:
            batch["old_logprobs"], _ = run.score(batch)  # [N, T], before the first of several updates
        if reference is not None:
            batch["ref_logprobs"], _ = run.score(batch, reference)  # [N, T]
        for minibatch in batch.split(args.minibatches) * args.epochs:
            run.optimizer_step(optimizer, accumulate_gradients(run.model, minibatch, args))

        # --- 4 push the weights to the sampler, log, score dev, save
        own = {f"daslam/r{i}": mean for i, mean in enumerate(np.mean(parts, axis=0).tolist(), start=1)}
        own["daslam/subquestions"] = sum(len(episode.subquestions) for episode, _ in played) / len(played)
        own["daslam/solved"] = sum(solved) / B
        own |= {"solver/calls": spent["calls"], "solver/tokens": spent["tokens"]}
        said = {"answers": [e.answers for e, _ in played], "final": [e.final for e, _ in played]}
        run.end_step(rollout, batch, own, **said)
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
