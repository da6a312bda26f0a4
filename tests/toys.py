"""A toy world for tests of the real loop: a random model of two layers, tasks it can solve now and then, a
quick run's flags."""

import copy
import hashlib
import itertools
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from plainrl.rollout import Completion
from plainrl.tasks import Grade, Problem
from tools import make_tiny


def with_other_weights(model: str, folder: Path) -> str:
    """Save a model with other weights, which make it as sure of its tokens as one that has learned."""
    shutil.copytree(model, folder)
    weights = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(7)
    moved = {name: w + 0.2 * torch.randn(w.shape, generator=generator) for name, w in weights.items()}
    save_file(moved, folder / "model.safetensors", {"format": "pt"})
    return str(folder)


def save_toy_model(folder: Path) -> str:
    """Save a random Llama (two layers, hidden size 32) with a tokenizer made by tools/make_tiny.py from a
    few hundred corpus texts."""
    pairs = itertools.islice(make_tiny.chain_corpus(1, make_tiny.Args(steps=1)), 100)
    tokenizer = make_tiny.build_tokenizer(
        [text for prompt, solutions in pairs for text in (prompt, *solutions)], vocab_size=288
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.1,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    model.generation_config.eos_token_id = [
        tokenizer.eos_token_id,
        *range(5, 37),
    ]  # more ways to end, so that lengths differ
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


class HashTask:
    """A completion is right when a hash of its text falls into one of four drawers: a random model is right
    one time in four."""

    name = "hash"

    def __init__(self):
        self.asked, self.horizon = [], 1  # (split, index) of every problem

    def problem(self, split: str, index: int, seed: int) -> Problem:
        self.asked.append((split, index))
        longer = f", {self.horizon} steps" * (self.horizon > 1)
        return Problem(
            f"{split} {index} of {seed}{longer}?", "0", f"word {index % 7 + 1}", horizon=self.horizon
        )

    def at_horizon(self, horizon: int) -> "HashTask":
        other = copy.copy(self)
        other.horizon = horizon
        return other

    def grade(self, completion: str, problem: Problem) -> Grade:
        drawer = hashlib.sha256(completion.encode()).digest()[0] % 4
        return graded(drawer == 0, str(drawer))


class FirstLetterTask(HashTask):
    """A completion is right when it starts with a lower-case letter: about a tenth of a random model's
    tokens do."""

    name = "letter"

    def grade(self, completion: str, problem: Problem) -> Grade:
        return graded("a" <= completion[:1] <= "z", completion[:1] or None)


class FunctionTask(HashTask):
    """The score of a completion is what a function of it and its problem says."""

    name = "function"

    def __init__(self, score):
        super().__init__()
        self.score = score

    def grade(self, completion: str, problem: Problem) -> Grade:
        return graded(self.score(completion, problem), completion)


def graded(score: float, parsed: str | None) -> Grade:
    return Grade(score == 1, float(score), parsed, "correct" if score == 1 else "wrong")


class FakeSampler:
    """Completions are what `answer(prompt_ids, sample, seed)` says: ids and a finish reason. Remembers the
    seeds it was given."""

    shares_weights = True

    def __init__(self, answer):
        self.answer, self.calls = answer, []

    def load_weights(self, model) -> None:
        pass

    def generate(self, prompt_ids, n, max_new_tokens, temperature, seeds, top_p=1.0) -> list[Completion]:
        self.calls.append(seeds)
        pairs = [
            self.answer(prompt, sample, seeds[i * n + sample])
            for i, prompt in enumerate(prompt_ids)
            for sample in range(n)
        ]
        return [Completion(ids, [0.0] * len(ids), reason) for ids, reason in pairs]


def quick_flags(toy_model: str, out_dir: Path, **changes) -> dict:
    """Flags of a run of five steps that takes less than a second; several micro-batches a step."""
    flags = dict(
        model=toy_model,
        task="toy",
        steps=5,
        prompts_per_step=2,
        group_size=4,
        max_new_tokens=8,
        micro_batch_tokens=128,
        lr=1e-3,
        warmup_steps=2,
        eval_every=2,
        eval_problems=2,
        eval_samples=2,
        test_problems=2,
        save_every=2,
        out_dir=Path(out_dir),
    )
    return flags | changes


def quick_row_flags(toy_model: str, out_dir: Path, **changes) -> dict:
    """The same of a script that trains on rows: 8 a step."""
    flags = quick_flags(toy_model, out_dir, lr=1e-2, micro_batch_tokens=100)
    for name in ("prompts_per_step", "group_size", "warmup_steps"):
        del flags[name]
    return flags | {"rows_per_step": 8, "dev_share": 0.2} | changes


def records(out_dir: Path) -> list[dict]:
    """metrics.jsonl without what the clock and the machine decide."""
    lines = (Path(out_dir) / "metrics.jsonl").read_text().splitlines()
    timed = ("time/", "perf/")
    return [
        {name: value for name, value in json.loads(line).items() if not name.startswith(timed)}
        for line in lines
    ]


def column(out_dir: Path, metric: str) -> list:
    """One metric of every training step."""
    return [record[metric] for record in records(out_dir) if "reward/mean" in record]
