"""What a run needs before it is begun: tokens, memory and hours (--plan), and how long its steps will take.

Tokens are counted from the flags: what a run comes to at most. Memory is a formula, `memory`, which needs
nothing but the sizes of a model. Time is measured: a few tokens are sampled, one full micro-batch is scored,
forward and backward, and once more without gradients. The rest is multiplication.
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from plainrl import ranks
from plainrl.flags import EVAL_SEED, FROZEN
from plainrl.folder import is_unused
from plainrl.models import peak_gb
from plainrl.rollout import Batch, completion_seed, encode_prompt
from plainrl.rows import batch_of
from plainrl.sampler import PROMPT_TOKENS_AT_ONCE, ROWS_AT_ONCE
from plainrl.scoring import LOGITS_AT_ONCE, micro_batches, score
from plainrl.screen import fail, minutes, or_fail, say
from plainrl.shared_prompts import LONG_ROW
from plainrl.tasks import scored

FEW = 16  # tokens of each completion that are sampled to see how long they take
SHORTER = (
    "shorter steps: --max-new-tokens, --group-size, --prompts-per-step\n"
    "shorter scores: --eval-problems, --test-problems, --eval-samples"
)
LESS_MEMORY = "less memory: --micro-batch-tokens, --activation-checkpointing, --lora-rank"


# --- memory, by formula -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sizes:
    """Of a model, as in its config.json."""

    parameters: int
    layers: int
    hidden: int
    inner: int  # of the feed-forward layers
    heads: int
    key_heads: int
    head: int  # numbers of one head
    vocabulary: int


def sizes_of(model) -> Sizes:
    """Those of a model that is loaded. Adapters are no part of them."""
    config = model.config.get_text_config()
    hidden, heads = config.hidden_size, config.num_attention_heads
    adapters = sum(weight.numel() for name, weight in model.named_parameters() if ".lora_" in name)
    return Sizes(
        parameters=model.num_parameters() - adapters,
        layers=config.num_hidden_layers,
        hidden=hidden,
        inner=getattr(config, "intermediate_size", None) or 4 * hidden,
        heads=heads,
        key_heads=getattr(config, "num_key_value_heads", None) or heads,
        head=getattr(config, "head_dim", None) or hidden // heads,
        vocabulary=model.get_input_embeddings().num_embeddings,
    )


def memory(
    sizes: Sizes,
    tokens: int,
    prompt: int,
    length: int,
    rows: int,
    trained: int | None = None,
    checkpointing: bool = False,
    gpus: int = 1,
    reference: bool = False,
    vllm: bool = False,
) -> tuple[dict[str, float], dict[str, float]]:
    """Bytes on each GPU, or in the process on a CPU: while it trains, and while it samples.

    With P parameters, A of them trained (all, or the adapters'), N GPUs, L layers of hidden size d and inner
    size f, q = heads x head size, k = key heads x head size, M = `tokens` of a micro-batch in rows of S =
    `prompt` + `length` tokens, V words, and R = `rows` that are sampled at once:

        weights       4 P              float32; on several GPUs 4 P / N, and all of them (4 P) for a batch
        gradients     4 A
        moments       8 A / N          AdamW's two
        reference     4 P              a frozen copy, with --kl-coef
        activations   4 M a L          a numbers a token and layer are kept for the backward pass
                      4 M d L          with checkpointing: what each layer began with
                      4 M d 3          besides: from the last layer to the head
                      4 M a 3          besides: the layer that is worked on, its gradients, what comes between
        logits        20 min(2^25, M V)     one block of them and what is made of it (plainrl/scoring.py)

        vLLM          2 P + 4 k L R S       bfloat16 weights, keys and values of all that is sampled at once
        transformers  8 k L (R T + prompts) keys and values in float32; T: room for `length`, which doubles
                      16 V R                logits and what a draw makes of them

    a = 6 d + 2 q + 2 k S / length + 4 f, and the attention's: S for the mask of a long row, 2 heads S for the
    scores of a row of at most 2 head sizes (plainrl/shared_prompts.py).

    Not in it: Python and its libraries (half a GB on a CPU), and what an allocator loses between its blocks.
    """
    P, A = sizes.parameters, sizes.parameters if trained is None else trained
    d, L, S = sizes.hidden, sizes.layers, prompt + length
    q, k = sizes.heads * sizes.head, sizes.key_heads * sizes.head
    attention = S if length > LONG_ROW * sizes.head else 2 * sizes.heads * S
    a = 6 * d + 2 * q + 2 * k * S / length + 4 * sizes.inner + attention
    kept = (d if checkpointing else a) * L + 3 * d
    both = {
        "weights": 4 * P if gpus == 1 else 4 * P / gpus + 4 * P,
        "moments": 8 * A / gpus,
        "reference": 4 * P if reference else 0,
    }
    training = both | {
        "gradients": 4 * A,
        "activations": 4 * tokens * (kept + 3 * a),
        "logits": 20 * min(LOGITS_AT_ONCE, tokens * sizes.vocabulary),
    }
    if vllm:
        return training, both | {"vLLM": 2 * P + 4 * k * L * rows * S}
    room = 32
    while room < length:
        room *= 2
    prompts = min(PROMPT_TOKENS_AT_ONCE, rows * prompt)
    sampling = {"keys and values": 8 * k * L * (rows * room + prompts), "draws": 16 * sizes.vocabulary * rows}
    return training, both | sampling


def has_reference(args) -> bool:
    """Is a frozen copy of the starting model there, to compare with?"""
    return args.kl_to_start and getattr(args, "kl_coef", 0) > 0


def memory_of(run) -> tuple[dict[str, float], dict[str, float]]:
    """`memory` for the flags of a run."""
    args, prompt = run.args, longest_prompt(run)
    one_row = prompt + args.max_new_tokens
    a_batch = args.prompts_per_step * (prompt + args.group_size * args.max_new_tokens)  # equal prompts once
    problems = max(scored(run.task, "dev", args.eval_problems), scored(run.task, "test", args.test_problems))
    return memory(
        sizes_of(run.model),
        tokens=max(one_row, min(args.micro_batch_tokens, a_batch)),  # a micro-batch has at least a row
        prompt=prompt,
        length=args.max_new_tokens,
        rows=min(ROWS_AT_ONCE, max(args.prompts_per_step * args.group_size, problems * args.eval_samples)),
        trained=sum(weight.numel() for weight in run.model.parameters() if weight.requires_grad),
        checkpointing=args.activation_checkpointing,
        gpus=ranks.WORLD_SIZE,
        reference=has_reference(args),
        vllm=not run.sampler.shares_weights and not args.vllm_server,
    )


def terms(parts: dict[str, float]) -> str:
    """`5.1 GB = weights 0.54 + ...`, without what is nothing."""
    named = " + ".join(f"{name} {size / 1e9:.2g}" for name, size in parts.items() if size)
    return f"{sum(parts.values()) / 1e9:.2g} GB = {named}"


# --- tokens -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tokens:
    """The most that a run can come to, where every completion is as long as it may be.

    A step of DAPO or Guide samples further rounds of prompts until its batch is full, and Guide samples again
    with hints. `rounds` counts all of it, the first round too.
    """

    # of one step
    step: int  # tokens sampled in its first round
    rounds: int  # how many rounds it may sample, each as large as the first
    batch: int  # tokens in the batch that it trains on
    epochs: int  # passes over the batch with gradients, forward and backward
    passes: int  # passes over the batch without gradients
    # of all steps
    sampled: int  # in their first rounds
    in_rounds: int  # in all rounds
    batches: int  # in their batches
    # of scores
    first_scores: int  # before the first step, on dev and test
    scores: int  # these, those on dev every --eval-every steps, and test again at the end

    @property
    def trained(self) -> int:
        """In all steps: a token counts in every pass over its batch."""
        return self.epochs * self.batches


def tokens_of(args, task=None) -> Tokens:
    """Those of a run with these flags on this task, or on one that makes problems without end. A flag that
    its script does not have is as good as off."""
    step = args.prompts_per_step * args.group_size * args.max_new_tokens
    guided = getattr(args, "trigger", "never") != "never"
    refilled = getattr(args, "dynamic_sampling", True)  # DAPO's switch of the further rounds; Guide has none
    rounds = 1 + (getattr(args, "max_refills", 0) if refilled else 0)
    if guided:
        rounds *= 2  # a group without a right completion is sampled once more, with a hint
    joined = getattr(args, "group", "replace") == "join"  # and both are trained on
    batch = 2 * step if joined else step

    def in_all_steps(a_step: int) -> int:
        """--token-budget is looked at between steps: the last one may begin when one token of it is left."""
        if args.token_budget is None:
            return a_step * args.steps
        return min(a_step * args.steps, args.token_budget - 1 + a_step)

    epochs = getattr(args, "epochs", 1)
    updates = epochs * getattr(args, "minibatches", 1)
    old_logprobs = guided or updates > 1  # one pass before the first update
    # The passes before the updates of an epoch are one over the whole batch together.
    before_updates = epochs if guided or args.pass_before_update else 0
    first_scores, scores = tokens_of_scores(args, task)
    return Tokens(
        step=step,
        rounds=rounds,
        batch=batch,
        epochs=epochs,
        passes=old_logprobs + has_reference(args) + before_updates,
        sampled=in_all_steps(step),
        in_rounds=in_all_steps(step * rounds),
        batches=in_all_steps(batch),
        first_scores=first_scores,
        scores=scores,
    )


def number_of_scores(args) -> int:
    """Scores on dev, that of the start included."""
    times = 1 + -(-args.steps // args.eval_every)  # rounded up: the last step is scored in any case
    if getattr(args, "schedule", None) == "curriculum":
        times += args.max_horizon - 1  # h1: so is the last step of each stage
    return times


def tokens_of_scores(args, task=None) -> tuple[int, int]:
    """Tokens that are sampled at most for the scores before the first step, and for all scores."""
    a_sample = args.eval_samples * args.max_new_tokens  # tokens for a problem of a score
    dev = scored(task, "dev", args.eval_problems) * a_sample
    test = scored(task, "test", args.test_problems) * a_sample
    times = number_of_scores(args)
    return dev + test, times * dev + 2 * test  # test before the first step and after the last


# --- time, measured -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Seconds:
    """Of one token of a completion that is as long as it may be."""

    sampling: float
    training: float  # forward and backward, in one pass over the batch
    scoring: float  # in one pass without gradients


def clock(device: torch.device) -> float:
    """time.monotonic(), after the device has done what it was asked to do. A GPU is asked and works on by
    itself, while Python is already at the next line."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.monotonic()


def can_be_timed(run) -> bool:
    return not run.own_sampler and ranks.WORLD_SIZE == 1


def time_tokens(run) -> Seconds:
    """Samples a few tokens of each completion of the first step, makes them as long as they may be by
    repeating them, and scores one micro-batch of that. Weights and random numbers of the run stay."""
    args, device = run.args, run.model.device
    few, prompts = min(FEW, args.max_new_tokens), first_prompts(run)
    seeds = [completion_seed(args.seed, 0, row) for row in range(len(prompts) * args.group_size)]
    began = clock(device)
    found = run.sampler.generate(prompts, args.group_size, few, args.temperature, seeds)
    sampling = (clock(device) - began) / tokens_in(found)

    long = [(found[i].ids * args.max_new_tokens)[: args.max_new_tokens] for i in range(len(found))]
    batch = Batch([prompt for prompt in prompts for _ in range(args.group_size)], long)
    part = next(iter(micro_batches(run.policy, batch, args.micro_batch_tokens)))
    inputs = (run.policy, part.prompt_ids, part.completion_ids, args.temperature)
    tokens = len(part) * args.max_new_tokens
    began = clock(device)
    logprobs, _ = score(*inputs)
    logprobs.sum().backward()
    run.optimizer.zero_grad()
    training = (clock(device) - began) / tokens

    began = clock(device)
    with torch.no_grad():
        score(*inputs)
    scoring = (clock(device) - began) / tokens
    return Seconds(sampling, training, scoring)


def seconds_for(seconds: Seconds, tokens: Tokens, sampled: int, batches: int) -> dict[str, float]:
    """What so many sampled tokens, and so many in batches, take: {"sampling": ..., ...}."""
    return {
        "sampling": sampled * seconds.sampling,
        "training": batches * tokens.epochs * seconds.training,
        "scoring": batches * tokens.passes * seconds.scoring,
    }


def first_prompts(run) -> list[list[int]]:
    """Ids of the prompts of about the first step."""
    args = run.args
    indices = [index % (args.train_size or index + 1) for index in range(args.prompts_per_step)]
    problems = [or_fail(run.task.problem, "train", index, args.seed) for index in indices]
    return [encode_prompt(run.tokenizer, problem.prompt, args.system_prompt) for problem in problems]


def longest_prompt(run) -> int:
    return max(map(len, first_prompts(run)))


def say_how_long(run) -> None:
    """What a step, and the scores before the first one, take at most."""
    if not run.samples_its_batch:
        step, first_scores, _ = seconds_on_rows(run)
        say(
            f"a step takes about {step:.1f} s, the scores before the first one {minutes(first_scores)}, if "
            "completions are as long as they may"
        )
        return
    seconds, tokens = time_tokens(run), tokens_of(run.args, run.task)
    step = seconds_for(seconds, tokens, tokens.step, tokens.batch)
    parts = ", ".join(f"{name} {minutes(value)}" for name, value in step.items() if value)
    scores = tokens.first_scores * seconds.sampling
    on_top = "; further rounds of a step come on top" * (tokens.rounds > 1)
    say(
        f"if completions are as long as they may, a step takes {minutes(sum(step.values()))} ({parts}), and "
        f"the scores before the first one take {minutes(scores)}{on_top}\n{SHORTER}"
    )


# --- --plan -------------------------------------------------------------------------------------------------


def check_folder(out_dir: Path) -> None:
    """Refuse a folder in which no run could be. Makes none. One that has a run is no hindrance to a plan."""
    # The folder, or the nearest one above it that exists: there it would be made.
    there = next(path for path in (out_dir, *out_dir.absolute().parents) if path.exists())
    if not there.is_dir():
        fail(f"--out-dir {out_dir}: {there} is a file; choose a folder")
    if not os.access(there, os.W_OK):
        fail(f"--out-dir {out_dir}: cannot be written; choose another --out-dir")


def say_plan(run) -> None:
    """Tokens, memory and hours of a run with these flags, at most; and whether its folder is free."""
    if run.samples_its_batch:
        say_tokens_and_hours(run)
    else:
        say_rows_and_hours(run)
    if not is_unused(run.dir):
        say(f"note: --out-dir {run.dir} exists; the run itself needs another --out-dir, or --resume")


def say_tokens_and_hours(run) -> None:
    args, tokens, sizes = run.args, tokens_of(run.args, run.task), sizes_of(run.model)
    shape = f"{args.prompts_per_step} prompts x {args.group_size} completions x {args.max_new_tokens} tokens"
    with_rounds = f"with all further rounds, {tokens.rounds} times as many tokens a step"
    say(
        f"plan of {run.script}: {sizes.parameters:,} parameters, task {run.task.name}, {args.steps} steps; "
        f"nothing is written\n"
        f"tokens: {tokens.step:,} a step at most ({shape})\n"
        f"        {tokens.sampled:,} sampled and {tokens.trained:,} trained in all at most"
    )
    if tokens.rounds > 1:
        say(f"        {with_rounds}: {tokens.in_rounds:,} sampled at most")
    say(f"        {tokens.scores:,} for scores on dev and test at most")
    for other, count in args.tokens_of_others.items():
        say(f"        {count:,} a step of the {other} at most")
    training, sampling = (parts | frozen_models(run) for parts in memory_of(run))
    say(f"memory by formula: training {terms(training)}\n                   sampling {terms(sampling)}")
    if not can_be_timed(run):
        say("time: is measured only in one process, with a sampler of this project")
        return
    seconds = time_tokens(run)
    step = seconds_for(seconds, tokens, tokens.step, tokens.batch)
    named = ", ".join(f"{name} {value:.1f}" for name, value in step.items() if value)
    scores = tokens.scores * seconds.sampling
    peak = peak_gb()
    if peak is not None:
        say(f"a full micro-batch was tried: {peak:.2g} GB at its peak, still without AdamW's moments")

    def in_all(sampled: int) -> str:
        return minutes(sum(seconds_for(seconds, tokens, sampled, tokens.batches).values()) + scores)

    say(
        f"time, measured: {sum(step.values()):.1f} s a step at most ({named}), {minutes(scores)} for all "
        f"scores, {in_all(tokens.sampled)} in all"
    )
    if tokens.rounds > 1:
        say(f"                {with_rounds}: {in_all(tokens.in_rounds)} in all")
    passes = f"{tokens.passes} x {tokens.batch * seconds.scoring:.1f} s, the time of a pass without gradients"
    scoring = f"; scoring is {passes}" if tokens.passes else ""
    pushed = "" if run.sampler.shares_weights else ", weights on their way to the sampler"
    say(
        f"                sampling is that of the first {min(FEW, args.max_new_tokens)} tokens, multiplied"
        f"{scoring}\n"
        f"                not in it: AdamW, grading{pushed}\n{SHORTER}\n{LESS_MEMORY}"
    )


# --- the same for a run on rows of text ---------------------------------------------------------------------


def tokens_in(completions: list) -> int:
    """Those that were really sampled: some completions end by themselves."""
    return sum(len(completion.ids) for completion in completions)


def tokens_of_its_scores(run) -> tuple[int, int]:
    """`tokens_of_scores`, none where no task is sampled."""
    return tokens_of_scores(run.args, run.task) if run.has_task else (0, 0)


def seconds_on_rows(run) -> tuple[float, float, float]:
    """What a step, the scores before the first one and all scores take: one micro-batch of the first rows is
    trained on without an update, and a few tokens are sampled. Weights stay."""
    args, device = run.args, run.model.device
    batch = batch_of(run.rows[: args.rows_per_step], device)
    part = next(iter(micro_batches(run.model, batch, args.micro_batch_tokens)))
    inputs = (part.prompt_ids, part.completion_ids, 1.0)
    began = clock(device)
    score(run.model, *inputs)[0].sum().backward()
    run.optimizer.zero_grad()
    a_row = (clock(device) - began) / len(part) * args.runs_of_a_token
    held = len(run.dev_rows) * a_row / 3  # a forward pass is a third of the work
    if args.pass_before_update:
        a_row += a_row / 3
    if run.teacher is not None:
        began = clock(device)
        with torch.no_grad():
            score(run.teacher, *inputs)
        a_row += (clock(device) - began) / len(part)
    first, in_all, a_token = *tokens_of_its_scores(run), 0.0
    if first:
        prompts = dev_prompts(run)
        seeds = [completion_seed(args.seed, 0, row) for row in range(len(prompts) * args.eval_samples)]
        few = min(FEW, args.max_new_tokens)
        began = clock(device)
        found = run.sampler.generate(prompts, args.eval_samples, few, args.temperature, seeds)
        a_token = (clock(device) - began) / tokens_in(found)
    times = number_of_scores(args)
    return args.rows_per_step * a_row, first * a_token + held, in_all * a_token + times * held


def dev_prompts(run, count: int = 8) -> list[list[int]]:
    """Ids of the prompts of the first problems of dev."""
    count = scored(run.task, "dev", min(count, run.args.eval_problems))
    problems = [or_fail(run.task.problem, "dev", index, EVAL_SEED) for index in range(count)]
    return [encode_prompt(run.tokenizer, problem.prompt, run.args.system_prompt) for problem in problems]


def frozen_models(run) -> dict[str, float]:
    """Bytes of the models that stay as they are, beside the one that is trained."""
    models = {name: getattr(run, attribute) for attribute, name in FROZEN.items()}
    return {name: 4 * model.num_parameters() for name, model in models.items() if model is not None}


def memory_on_rows(run) -> tuple[dict[str, float], dict[str, float]]:
    """`memory` for the flags of a run on rows: training on the longest, sampling for scores."""
    args, longest = run.args, max(run.rows, key=lambda row: row.length)
    common = dict(
        trained=sum(weight.numel() for weight in run.model.parameters() if weight.requires_grad),
        checkpointing=args.activation_checkpointing,
        gpus=ranks.WORLD_SIZE,
    )
    a_row = longest.length * args.runs_of_a_token
    a_batch = args.rows_per_step * a_row
    training, nothing = memory(
        sizes_of(run.model),
        tokens=max(a_row, min(args.micro_batch_tokens, a_batch)),  # a micro-batch has at least a row
        prompt=len(longest.prompt_ids),
        length=len(longest.completion_ids),
        rows=0,
        **common,
    )
    if not run.has_task:
        return training, nothing
    problems = max(scored(run.task, "dev", args.eval_problems), scored(run.task, "test", args.test_problems))
    _, sampling = memory(
        sizes_of(run.model),
        tokens=0,
        prompt=max(map(len, dev_prompts(run))),
        length=args.max_new_tokens,
        rows=min(ROWS_AT_ONCE, problems * args.eval_samples),
        vllm=not run.sampler.shares_weights and not args.vllm_server,
        **common,
    )
    return training, sampling


def say_rows_and_hours(run) -> None:
    args, rows = run.args, run.rows
    with_loss = sum(len(row.completion_ids) for row in rows) / len(rows) * args.rows_per_step * args.steps
    seen = sum(row.length for row in rows) / len(rows) * args.rows_per_step * args.steps
    say(
        f"plan of {run.script}: {sizes_of(run.model).parameters:,} parameters, {len(rows):,} rows, "
        f"{args.steps} steps of {args.rows_per_step}; nothing is written\n"
        f"tokens: about {with_loss:,.0f} with loss and {seen:,.0f} with their prompts in all\n"
        f"        {tokens_of_its_scores(run)[1]:,} sampled for scores on dev and test at most"
    )
    training, sampling = (parts | frozen_models(run) for parts in memory_on_rows(run))
    say(f"memory by formula: training {terms(training)}\n                   scoring {terms(sampling)}")
    if not can_be_timed(run):
        say("time: is measured only in one process, with a sampler of this project")
        return
    step, _, scores = seconds_on_rows(run)
    say(
        f"time, measured: {step:.1f} s a step, {minutes(scores)} for all scores at most, "
        f"{minutes(step * args.steps + scores)} in all\n"
        f"                not in it: AdamW, grading\n"
        f"shorter scores: --eval-problems, --test-problems, --eval-samples, --max-new-tokens\n{LESS_MEMORY}"
    )
