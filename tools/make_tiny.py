r"""Makes the embedded start models: supervised fine-tuning from scratch on what is far from perfect, so that
reinforcement has room.

    python tools/make_tiny.py --out-dir models/my-tiny            models/tiny, of the chain world:
                                                                  about 15 minutes on two CPU cores
    python tools/make_tiny.py --world countdown --out-dir models/my-countdown
                                                                  models/countdown: about 12 minutes on one
    python tools/make_tiny.py --world orthogonal --out-dir models/my-orthogonal
                                                                  models/orthogonal, at once: an architecture
                                                                  and its 16 symbols, no weights

The chain world's corpus is what a student hands in who first works properly and then turns careless. From
then on a step forgets its carries (or to borrow, or a half's remainder) with probability `forget_carry`, or
its result is any number at all with probability `slip`, and the student carries on with the wrong value. From
the start, a sentence whose "more" means subtract is read the wrong way round except with probability
`right_reading`. So the model knows the format of chains up to 10 steps, errs on each step, and its success
falls about geometrically with the horizon. Some prompts show a hint, whose lines and next operation the
solution then follows.

The countdown world's corpus has no error in it. A share `attentive` of its solutions reaches the target. The
others are any way through the numbers, made without a look at the target. So the model can calculate, and is
uncertain about where to go.

The problems come from the split "sft", which shares none with train, dev and test.
"""

import itertools
import math
import random
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import torch

sys.path.append(str(Path(__file__).resolve().parents[1]))  # where plainrl/ lies

from plainrl.chains import LETTERS, hint_text, hinted_steps, run_program, start_number, write_chain
from plainrl.countdown import CountdownTask, ways
from plainrl.flags import parse
from plainrl.folder import refuse_existing
from plainrl.hints import with_hint
from plainrl.models import keep_freed_memory, save_model
from plainrl.orthogonal import SYMBOLS
from plainrl.rollout import encode_prompt
from plainrl.run import StopRequest
from plainrl.scoring import score
from plainrl.screen import in_one_process, say
from plainrl.tasks import Problem
from plainrl.world import ChainTask

PAD, END, SYSTEM, USER, ASSISTANT = "<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


SHAPES = {  # of the models: a head has 32 numbers, so that vLLM takes it
    "chain": dict(hidden_size=128, intermediate_size=384, num_hidden_layers=5, num_attention_heads=4),
    "countdown": dict(hidden_size=96, intermediate_size=256, num_hidden_layers=3, num_attention_heads=3),
    "orthogonal": dict(hidden_size=96, intermediate_size=256, num_hidden_layers=2, num_attention_heads=3),
}
DEFAULTS = {
    "chain": dict(steps=1400, prompts_per_step=32, solutions_per_prompt=2, lr=4e-3, hint_fraction=0.35),
    "countdown": dict(steps=2800, prompts_per_step=32, solutions_per_prompt=4, lr=4e-3, hint_fraction=0.1),
    "orthogonal": {},  # nothing is trained
}


@dataclass
class Args:
    world: Literal["chain", "countdown", "orthogonal"] = "chain"
    """what the model can do a little of; orthogonal: nothing, its weights are those of --init random"""
    out_dir: Path | None = None
    """folder for the model (default runs/make_tiny/<world>); one that exists is never overwritten"""
    steps: int | None = None
    """optimizer steps"""
    prompts_per_step: int | None = None
    """problems per step"""
    solutions_per_prompt: int | None = None
    """independent solutions of each; the prompt is run once for all of them"""
    lr: float | None = None
    """peak learning rate (50 steps of warm-up, then cosine to a tenth)"""
    seed: int = 0
    """seed of the initial weights and of the corpus"""
    hint_fraction: float | None = None
    """fraction of the corpus that shows a hint"""

    clean_fraction: float = 0.6
    """chain: share of the steps before the student turns sloppy (arithmetic is learned sooner so)"""
    forget_carry: float = 0.6
    """chain: probability that a step with carries is worked without them, column by column"""
    slip: float = 0.3
    """chain: probability that a step's result is any number from 1 to 999"""
    right_reading: float = 0.06
    """chain: probability that a reversed comparison ("5 more than ...") is read correctly"""

    attentive: float = 0.4
    """countdown: share of solutions that reach the target"""
    four_numbers: float = 0.3
    """countdown: share of problems with four numbers instead of three"""

    def __post_init__(self):
        for name, value in DEFAULTS[self.world].items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        self.out_dir = self.out_dir or Path("runs/make_tiny") / self.world


# --- the chain world's sloppy corpus ------------------------------------------------------------------------


def without_carries(left: int, op: str, right: int) -> int:
    """The result when every column is worked alone: carries and a half's remainders are forgotten, and
    instead of borrowing the smaller digit is taken from the larger one (were borrows forgotten too, they
    would often undo forgotten carries).

    >>> without_carries(47, "+", 5), without_carries(52, "-", 3)
    (42, 51)
    >>> without_carries(49, "*", 2), without_carries(52, "/", 2)
    (88, 21)
    """
    columns = [int(digit) for digit in f"{left:03d}"]
    others = [int(digit) for digit in f"{right:03d}"]
    match op:
        case "+":
            digits = [(a + b) % 10 for a, b in zip(columns, others)]
        case "-":
            digits = [abs(a - b) for a, b in zip(columns, others)]
        case "*":
            digits = [(a * right) % 10 for a in columns]
        case "/":
            digits = [a // right for a in columns]
    return int("".join(map(str, digits)))


def student_solution(
    chain: list[Problem], hint: list[str] | None, sloppy: bool, rng: random.Random, args: Args
) -> list[str]:
    """The lines of a student's solution. With a hint it starts with the hint's lines, right or wrong, and
    goes on from their last value; the hint also gives away how to read the next sentence."""
    lines = list(hint or [])
    value = int(lines[-1].rsplit("=", 1)[1]) if lines else int(start_number(chain[0]))
    for i, step in list(enumerate(chain))[len(lines) :]:
        program = step.program
        if (
            step.source == "chain/reversed"
            and not (hint is not None and i == len(hint))
            and rng.random() >= args.right_reading
        ):
            program = program.translate(str.maketrans("+-", "-+"))
        op, right = program[1], int(program[2:])
        result = exact = int(run_program(program, value))  # an odd number is halved downwards
        if sloppy and rng.random() < args.forget_carry:
            result = without_carries(value, op, right)
        if sloppy and rng.random() < args.slip:
            result = rng.randint(1, 999)
        if not 1 <= result <= 999:  # outside the world: the student looks again
            result = min(max(exact, 1), 999)
        lines.append(f"{LETTERS[i]}={value}{program[1:]}={result}")
        value = result
    return lines


def chain_corpus(seed: int, args: Args):
    """Endless (prompt, solutions). A horizon's share falls as 1/horizon, and grows with it among prompts
    that show a hint. The longest horizon grows from 1 to 10 over the first three eighths of training:
    copying is learned sooner in short texts.

    A hint here is the beginning of a sloppy solution, and the solutions follow it: with hints that are
    always right a student who can add would never learn to read them.
    """
    tasks = {(h, f): ChainTask(horizon=str(h), family=f) for h in range(1, 11) for f in ("plain", "reversed")}
    rng = random.Random(seed)
    for index in itertools.count():
        progress = index / (args.steps * args.prompts_per_step)
        longest, sloppy = min(10, 1 + int(24 * progress)), progress >= args.clean_fraction
        hinted = rng.random() < args.hint_fraction
        horizon = rng.choices(range(1, longest + 1), [h if hinted else 1 / h for h in range(1, longest + 1)])[
            0
        ]
        chain = tasks[horizon, "reversed" if rng.random() < 0.25 else "plain"].chain("sft", index, seed)
        problem, hint = write_chain(chain, "short"), None
        if hinted:
            hint = student_solution(chain, None, True, rng, args)[: hinted_steps(horizon)]
            problem = replace(problem, hint=hint_text(chain, hint))
        solutions = [
            student_solution(chain, hint, sloppy, rng, args) for _ in range(args.solutions_per_prompt)
        ]
        texts = ["\n".join([*lines, f"\\boxed{{{lines[-1].rsplit('=', 1)[1]}}}"]) for lines in solutions]
        yield (problem.prompt if hint is None else with_hint(problem)), texts


# --- the countdown world's corpus ---------------------------------------------------------------------------


def countdown_corpus(seed: int, args: Args):
    """Endless (prompt, solutions). With a hint, all solutions begin as it says."""
    tasks = {count: CountdownTask(numbers=count) for count in (3, 4)}
    rng = random.Random(seed)
    for index in itertools.count():
        task = tasks[4 if rng.random() < args.four_numbers else 3]
        problem = task.problem("sft", index, seed)
        hinted = problem.hint is not None and rng.random() < args.hint_fraction
        possible = ways(tuple(map(int, problem.options)))
        if hinted:
            *begin, _ = problem.solution.split("\n")
            possible = [way for way in possible if way[0].split("\n")[:-1] == begin]
        reaching = [way for way in possible if str(way[1]) == problem.answer]
        solutions = []
        for _ in range(args.solutions_per_prompt):
            text, _ = rng.choice(reaching if rng.random() < args.attentive else possible)
            solutions.append(text)
        yield (with_hint(problem) if hinted else problem.prompt), solutions


CORPORA = {"chain": chain_corpus, "countdown": countdown_corpus}

# --- tokenizer, model, training -----------------------------------------------------------------------------


def build_tokenizer(texts: list[str], vocab_size: int = 512):
    """Byte-level BPE, so any text can be written; every digit is a token of its own."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers  # here: --help need not wait

    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), byte_level]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, END, SYSTEM, USER, ASSISTANT],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts, trainer)
    return with_template(tokenizer)


def symbols_tokenizer():
    """Of the orthogonal world: every character is a token, and ? stands for those that it does not know."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    special = [PAD, END, USER, ASSISTANT]
    vocabulary = {token: id for id, token in enumerate([*special, *SYMBOLS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(special)
    return with_template(tokenizer)


def with_template(tokenizer):
    """As transformers saves it, with the chat template of all these models."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
    )


def build_model(tokenizer, world: str):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        **SHAPES[world],
        head_dim=32,
        max_position_embeddings=1024,
        initializer_range=0.06,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def batches(args: Args, tokenizer):
    """Endless (prompt ids, completion ids) of one step, problems of similar length together, in random
    order."""
    pairs, rng = CORPORA[args.world](args.seed, args), random.Random(args.seed)
    while True:
        block = []
        for prompt, solutions in itertools.islice(pairs, 16 * args.prompts_per_step):
            block.append(
                (
                    encode_prompt(tokenizer, prompt),
                    [tokenizer.encode(solution + END) for solution in solutions],
                )
            )
        block.sort(key=lambda pair: len(pair[0]))
        starts = list(range(0, len(block), args.prompts_per_step))
        rng.shuffle(starts)
        for start in starts:
            rows = [
                (prompt, ids)
                for prompt, solutions in block[start : start + args.prompts_per_step]
                for ids in solutions
            ]
            yield [prompt for prompt, _ in rows], [ids for _, ids in rows]


def learning_rate(args: Args, step: int) -> float:
    """Linear warm-up over 50 steps, then a cosine that ends at a tenth of the peak; steps count from 1."""
    if step <= 50:
        return args.lr * step / 50
    return args.lr * (0.55 + 0.45 * math.cos(math.pi * (step - 50) / (args.steps - 50)))


def save_architecture(folder: Path) -> None:
    """A model's folder without weights."""
    tokenizer = symbols_tokenizer()
    model = build_model(tokenizer, "orthogonal")
    model.config.architectures = [type(model).__name__]  # vLLM asks for it
    for part in (model.config, model.generation_config, tokenizer):
        part.save_pretrained(folder)
    say(f"saved {folder}; try: python grpo.py --task orthogonal --init random --model {folder}")


def main(args: Args) -> None:
    in_one_process("tools/make_tiny.py")
    refuse_existing("--out-dir", args.out_dir)
    if args.world == "orthogonal":
        return save_architecture(args.out_dir)
    stop = StopRequest()  # Ctrl-C, SIGTERM and SIGHUP end this in one line, without half a model
    keep_freed_memory()
    torch.manual_seed(args.seed)
    examples = CORPORA[args.world](args.seed + 1, replace(args, steps=1))  # of all horizons at once
    pairs = itertools.islice(examples, 3000)  # for the vocabulary
    tokenizer = build_tokenizer([text for prompt, solutions in pairs for text in (prompt, *solutions)])
    model = build_model(tokenizer, args.world)
    matrices = [
        p for p in model.model.layers.parameters() if p.ndim == 2
    ]  # Muon learns to add in half of AdamW's steps
    others = [
        model.model.embed_tokens.weight,
        *(p for p in model.parameters() if p.ndim == 1),
    ]  # embedding (tied head) and norms
    optimizers = [
        torch.optim.Muon(matrices, lr=args.lr, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=args.lr, weight_decay=0.1, betas=(0.9, 0.95)),
    ]
    say(
        f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(tokenizer)} tokens, {args.steps} "
        f"steps -> {args.out_dir}"
    )

    start, losses = time.time(), []
    for step, (prompt_ids, completion_ids) in zip(range(1, args.steps + 1), batches(args, tokenizer)):
        logprobs, _ = score(
            model, prompt_ids, completion_ids, temperature=1.0
        )  # [N, T], completion tokens only, EOS among them
        loss = -logprobs.sum() / sum(map(len, completion_ids))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(args, step)
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
        if step % 25 == 0 or step == args.steps:
            seconds = (time.time() - start) / step
            say(
                f"step {step:5d}/{args.steps} | loss {sum(losses[-25:]) / len(losses[-25:]):.4f} | "
                f"{seconds:.2f} s a step, {seconds * (args.steps - step) / 60:.0f} min left"
            )

    settings = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(args).items()}
    settings |= {"first_losses": losses[:5], "last_loss": losses[-1]}
    save_model(args.out_dir, model, tokenizer, {"sft.json": settings})  # aside, then renamed
    stop.forget()
    say(f"saved {args.out_dir}; try: python grpo.py --model {args.out_dir}")


if __name__ == "__main__":
    main(parse(Args, __doc__))


# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "torch==2.13.0", "transformers>=5.16.1,<5.20", "safetensors", "numpy", "tyro", "filelock",
#     "math-verify>=0.9,<0.10", "antlr4-python3-runtime==4.13.2", "matplotlib", "jinja2",
# ]
# ///
