"""One contender of benchmarks/compare.py, in a process of its own.

For each line it reads it does its piece of work once, and answers with a line of JSON. Contenders that need
another environment (TRL, vLLM) import it here and nothing of this repository.

    python benchmarks/contenders.py NAME '{"model": .., "prompts": [text, ..], "group_size": .., "tokens": ..,
                                           "forced": true}'
"""

import itertools
import json
import math
import os
import re
import sys
import time
from collections import Counter
from pathlib import Path

SEED = 0
OFF = (  # what can be taken away
    "shared",
    "common",
    "end to end",
    "buffers",
    "finished",
    "refill",
    "inference",
    "blocks",
    "recomputed",
    "on-policy",
    "fused",
    "draw",
    "projection",
    "long rows",
)


def answer(**numbers) -> None:
    print(json.dumps(numbers), file=REPLIES, flush=True)


def peak_gb() -> float:
    """Peak resident memory of this process and those that it started (on Linux; what they share, in each)."""
    processes, total = [Path(f"/proc/{os.getpid()}")], 0
    while processes:
        process = processes.pop()
        peak = re.search(r"VmHWM:\s+(\d+) kB", (process / "status").read_text())
        total += 1024 * int(peak[1]) if peak else 0
        processes += [
            Path(f"/proc/{child}")
            for task in process.glob("task/*/children")
            for child in task.read_text().split()
        ]
    return total / 1e9


def serve(do) -> None:
    """Ready, then one piece of work a line. `do` returns the numbers of the answer."""
    answer(ready=True)
    for _ in sys.stdin:
        started = time.perf_counter()
        numbers = do()
        answer(seconds=time.perf_counter() - started, peak_gb=peak_gb(), **numbers)


# --- ours ---------------------------------------------------------------------------------------------------


def ours(work: dict):
    """Model, tokenizer, ids of the prompts, and a function that samples them."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from plainrl import models
    from plainrl.rollout import completion_seed
    from plainrl.sampler import HFSampler

    if work.get("keep_memory", True):
        models.keep_freed_memory()
    switch_off(work.get("off"))
    # Not `load_model`: the others have the whole of its vocabulary too.
    model = AutoModelForCausalLM.from_pretrained(work["model"], dtype=torch.float32).train()
    tokenizer = AutoTokenizer.from_pretrained(work["model"])
    ids = [tokenizer.encode(prompt) for prompt in work["prompts"]]
    eos_ids = [-1] if work["forced"] else models.eos_ids(model, tokenizer)
    sampler = HFSampler(model, eos_ids, work["rows_at_once"])

    def sample(step: int = 1) -> list:
        seeds = [completion_seed(SEED, step, row, 0, 0) for row in range(len(ids) * work["group_size"])]
        return sampler.generate(ids, work["group_size"], work["tokens"], 1.0, seeds)

    return model, tokenizer, ids, sample


def make_step(work: dict):
    """An optimizer step of grpo.py with its defaults, on-policy."""
    model, tokenizer, _, sample = ours(work)
    import torch

    import grpo
    from plainrl.flags import resolve_defaults
    from plainrl.rollout import Rollout
    from plainrl.scoring import score_all

    args = grpo.Args(
        max_new_tokens=work["tokens"],
        group_size=work["group_size"],
        micro_batch_tokens=work.get("micro_batch_tokens"),
    )
    resolve_defaults(args, model.num_parameters())
    # with lr 0 all repetitions have the same work: weights, and with them samples, stay as they are
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=0.0, weight_decay=0.0, fused=work.get("off") != "fused"
    )

    def step() -> dict:
        started = time.perf_counter()
        ids = [
            tokenizer.encode(prompt) for prompt in work["prompts"]
        ]  # as every trainer does, so that its time counts
        with torch.profiler.record_function("sampling"):
            completions = sample()
        texts = tokenizer.batch_decode(
            [completion.ids for completion in completions], skip_special_tokens=True
        )
        sampling = time.perf_counter() - started
        prompt_ids = [prompt for prompt in ids for _ in range(args.group_size)]
        rollout = Rollout(work["prompts"], prompt_ids, completions, texts, grades=[])  # rewards are made up
        rewards = torch.arange(len(completions)).view(len(ids), -1).remainder(2).float()
        batch = rollout.batch(grpo.group_advantages(rewards), model.device)
        if work.get("off") == "on-policy":
            scoring = (batch.prompt_ids, batch.completion_ids, args.temperature, args.micro_batch_tokens)
            batch["old_logprobs"], _ = score_all(model, *scoring)
        grpo.accumulate_gradients(model, batch, args)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), args.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        return {"tokens": rollout.tokens, "sampling": sampling, "gradient_norm": norm.item()}

    return step


def step_ours(work: dict) -> None:
    serve(make_step(work))


KINDS = {  # of work, by the names of PyTorch's operations
    "products of the linear layers and the head": r"aten::(add)?mm",
    "products in attention": r"aten::(baddb|b)mm",
    "softmax and log-softmax": r"aten::_(log_)?softmax(_backward_data)?",
    "copies and gathers": r"aten::(copy_|cat|gather|fill_|zero_|index\w*|masked_\w+)",
    "optimizer": r"aten::(_fused_adamw_|_foreach_\w+|linalg_vector_norm)",
}


def profile_ours(work: dict) -> None:
    """Seconds of the fifth optimizer step by kind of work, in sampling and training. The first are slower."""
    step = make_step(work)
    import torch

    for _ in range(4):
        step()

    def profiled() -> dict:
        with torch.profiler.profile() as profile:
            tokens = step()["tokens"]
        events = profile.events()
        begin, end = (
            min(event.time_range.start for event in events),
            max(event.time_range.end for event in events),
        )
        sampled = next(event.time_range.end for event in events if event.name == "sampling")
        found = {
            "sampling": Counter(seconds=(sampled - begin) / 1e6),
            "training": Counter(seconds=(end - sampled) / 1e6),
        }
        for event in events:
            if event.name.startswith("aten::"):
                kind = next(
                    (kind for kind, names in KINDS.items() if re.fullmatch(names, event.name)),
                    "other operations",
                )
                found["sampling" if event.time_range.start < sampled else "training"][kind] += (
                    event.self_cpu_time_total / 1e6
                )
        return found | {"tokens": tokens}

    serve(profiled)


def sample_ours(work: dict) -> None:
    *_, sample = ours(work)
    steps = itertools.count(1)  # each has seeds of its own
    serve(lambda: {"tokens": sum(len(completion.ids) for completion in sample(next(steps)))})


def scoring_rows(ids: list[list[int]], work: dict) -> tuple[list, list]:
    """Prompts, and completions of random tokens of them."""
    import torch

    torch.manual_seed(SEED)
    rows, known = (
        [prompt for prompt in ids for _ in range(work["group_size"])],
        torch.tensor(sorted(set(sum(ids, [])))),
    )
    return rows, known[torch.randint(len(known), (len(rows), work["tokens"]))].tolist()


def score_ours(work: dict) -> None:
    """Log-probabilities of given completions, without gradient."""
    model, _, ids, _ = ours(work)
    import grpo
    from plainrl.flags import resolve_defaults
    from plainrl.scoring import score_all

    args = grpo.Args()
    resolve_defaults(args, model.num_parameters())
    prompt_ids, completion_ids = scoring_rows(ids, work)

    def score() -> dict:
        logprobs, _ = score_all(model, prompt_ids, completion_ids, 1.0, args.micro_batch_tokens)
        return {"logprobs": logprobs.flatten().tolist(), "tokens": len(completion_ids) * work["tokens"]}

    serve(score)


def agreement_ours(work: dict) -> None:
    """How far log-probabilities of sampled completions, and the gradient of their sum, are from those of the
    plain padded forward."""
    model, _, ids, sample = ours(work)
    import torch

    from plainrl.scoring import score

    def both() -> dict:
        prompt_ids = [prompt for prompt in ids for _ in range(work["group_size"])]
        completion_ids = [completion.ids for completion in sample()]
        logprobs, gradients = [], []
        for share in (True, False):
            values = []
            for first in range(0, len(prompt_ids), work["group_size"]):  # a group at a time, as memory allows
                group = slice(first, first + work["group_size"])
                scored = prompt_ids[group], completion_ids[group]
                scores, _ = score(model, *scored, 1.0, share_prompts=share)
                scores.sum().backward()
                values.append(scores.detach().flatten())
            logprobs.append(torch.cat(values))
            gradients.append([parameter.grad for parameter in model.parameters()])
            model.zero_grad()
        squared_gap = sum((one - other).square().sum() for one, other in zip(*gradients))
        squared_norm = sum(plain.square().sum() for plain in gradients[1])
        return {
            "logprob_difference": (logprobs[0] - logprobs[1]).abs().max().item(),
            "gradient_difference": (squared_gap / squared_norm).sqrt().item(),
            "tokens": sum(map(len, completion_ids)),
        }

    serve(both)


def switch_off(what: str | None) -> None:
    """Take one optimisation away, for the table of what each brings."""
    if what not in (None, *OFF):
        raise ValueError(f"{what}: there is no such optimisation")
    import torch

    from plainrl import sampler, scoring, shared_prompts
    from plainrl.sampler import HFSampler
    from plainrl.shared_prompts import GrowingCache, common_length, follow, run_rows, use_shared_prompts

    def prefill_each(model, prompts):
        use_shared_prompts(model)
        distinct = list(set(map(tuple, prompts)))
        zeros = torch.zeros(len(prompts), dtype=torch.long)
        common, prefixes = common_length(distinct) if len(distinct) > 1 else 0, []
        if common:  # with what begins all of them, this remains
            _, cache = run_rows(model, [prompts[0][:common]], zeros[:1], [], keep=True)
            prefixes.append((cache, zeros))
        rests = [prompt[common:-1] for prompt in prompts]
        _, cache = run_rows(model, rests, zeros + common, follow(prefixes), keep=True)
        return [*prefixes, (cache, torch.arange(len(prompts)))]

    def rows_of_each(prompt_ids, completion_ids, tokens, micro_batch_rows=scoring.micro_batch_rows):
        different = [[*prompt, -1 - row] for row, prompt in enumerate(prompt_ids)]  # no prompt is there twice
        return micro_batch_rows(different, completion_ids, tokens)

    def run_padded_rows(model, ids, start, prefixes, keep=False):
        width = max(map(len, ids))
        padded = [[*row, *[0] * (width - len(row))] for row in ids]
        hidden, cache = run_rows(model, padded, start, prefixes, keep)
        real = torch.arange(width) < torch.tensor([len(row) for row in ids])[:, None]
        if keep:
            cache.filled, cache.padding = real, ~real
        return hidden[real.flatten()], cache

    def run_rows_and_project(model, ids, start, prefixes, keep=False):
        hidden, cache = run_rows(model, ids, start, prefixes, keep)
        if keep and torch.is_grad_enabled():  # prompts, forward and backward, with a gradient of zero
            last = list(cache.layers)[-1]  # they stand in the order of the layers
            keys, values = cache.layers[last]
            cache.layers[last] = keys + 0 * model.get_output_embeddings()(hidden).sum(), values
        return hidden, cache

    def draw_and_sort(logits, temperature, uniforms, top_p, draw=sampler.draw):
        logits.sort(dim=-1, descending=True)  # alone: to draw by it would give other tokens
        return draw(logits, temperature, uniforms, top_p)

    def generate_in_batches(
        self, prompt_ids, n, max_new_tokens, temperature, seeds, top_p=1.0, generate=HFSampler.generate
    ):
        size, completions = self.rows_at_once // n, []
        for first in range(0, len(prompt_ids), size):
            prompts, own_seeds = prompt_ids[first : first + size], seeds[first * n : (first + size) * n]
            completions += generate(self, prompts, n, max_new_tokens, temperature, own_seeds, top_p)
        return completions

    def extend_by_copying(self, layer, keys, values):
        if layer in self.layers:
            old_keys, old_values = self.layers[layer]
            keys, values = torch.cat([old_keys, keys], dim=2), torch.cat([old_values, values], dim=2)
        self.layers[layer] = keys, values
        return keys, values

    def exchange_by_copying(self, keep, new, columns):
        def exchanged(part):
            kept = part[keep, :, columns:]
            return torch.cat([kept, part.new_zeros(new, *kept.shape[1:])])

        self.layers = {layer: tuple(map(exchanged, pair)) for layer, pair in self.layers.items()}

    changes = {
        "shared": [
            (sampler, "prefill", prefill_each),
            (scoring, "prefill", prefill_each),
            (scoring, "micro_batch_rows", rows_of_each),
        ],
        "common": [(module, "common_length", lambda prompts: 0) for module in (scoring, shared_prompts)],
        "end to end": [(module, "run_rows", run_padded_rows) for module in (scoring, shared_prompts)],
        "buffers": [
            (GrowingCache, "extend", extend_by_copying),
            (GrowingCache, "exchange", exchange_by_copying),
        ],
        "finished": [(sampler, "DROP_AT", 2.0)],
        "refill": [(HFSampler, "generate", generate_in_batches)],
        "inference": [(HFSampler, "_generate", HFSampler._generate.__wrapped__)],  # without its decorator
        "blocks": [(scoring, "LOGITS_AT_ONCE", 1 << 62)],
        "draw": [(sampler, "draw", draw_and_sort)],
        "projection": [(shared_prompts, "run_rows", run_rows_and_project)],
        "long rows": [(shared_prompts, "LONG_ROW", math.inf)],
        "recomputed": [(scoring, "checkpoint", lambda function, *arguments, **_: function(*arguments))],
    }
    for place, name, replacement in changes.get(what, []):  # "on-policy" and "fused" are in `make_step`
        getattr(place, name)  # an AttributeError, should it have another name by now
        setattr(place, name, replacement)


# --- transformers -------------------------------------------------------------------------------------------


def transformers_model(work: dict):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if work.get("keep_memory"):
        keep_freed_memory()
    torch.manual_seed(SEED)
    tokenizer = AutoTokenizer.from_pretrained(work["model"], padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return AutoModelForCausalLM.from_pretrained(work["model"], dtype=torch.float32).eval(), tokenizer


def keep_freed_memory() -> None:
    import ctypes

    for option, size in ((-3, 32 << 20), (-3, 1 << 30), (-1, -1), (-2, 256 << 20)):  # as in plainrl/models.py
        ctypes.CDLL("libc.so.6").mallopt(option, size)


SAMPLED = dict(do_sample=True, temperature=1.0, top_k=0, top_p=1.0)


def sample_generate(work: dict) -> None:
    """transformers `generate` on the batch of all rows."""
    import torch

    model, tokenizer = transformers_model(work)
    batch = tokenizer(
        [prompt for prompt in work["prompts"] for _ in range(work["group_size"])],
        return_tensors="pt",
        padding=True,
    )
    end = -1 if work["forced"] else model.generation_config.eos_token_id
    ends = torch.tensor(end if isinstance(end, list) else [end])

    def sample() -> dict:
        with torch.no_grad():
            new = model.generate(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=end,
                max_new_tokens=work["tokens"],
                **SAMPLED,
            )[:, batch["input_ids"].shape[1] :]
        ended = torch.isin(new, ends)
        lengths = torch.where(ended.any(1), ended.int().argmax(1) + 1, new.shape[1])
        return {"tokens": int(lengths.sum())}

    serve(sample)


def sample_generate_batch(work: dict) -> None:
    """transformers' continuous batching."""
    from transformers import ContinuousBatchingConfig, GenerationConfig

    model, tokenizer = transformers_model(work)
    longest = [len(tokenizer.encode(prompt)) + work["tokens"] for prompt in work["prompts"]]
    blocks = 2 * sum(longest) * work["group_size"] // 32 + 64  # it takes 20 GB else
    room = ContinuousBatchingConfig(num_blocks=blocks, max_batch_tokens=1024, page_size=32)
    inputs = [tokenizer.encode(prompt) for prompt in work["prompts"] for _ in range(work["group_size"])]
    end = -1 if work["forced"] else model.generation_config.eos_token_id
    config = GenerationConfig(
        max_new_tokens=work["tokens"], eos_token_id=end, pad_token_id=tokenizer.pad_token_id, **SAMPLED
    )

    def sample() -> dict:
        results = model.generate_batch(
            inputs=inputs,
            generation_config=config,
            continuous_batching_config=room,
            progress_bar=False,
            persistent_manager=True,
        )
        return {"tokens": sum(len(result.generated_tokens) for result in results.values())}

    serve(sample)


def score_plain(work: dict) -> None:
    """One padded forward pass of all rows with full logits."""
    import torch

    model, tokenizer = transformers_model(work)
    ids = [tokenizer.encode(prompt) for prompt in work["prompts"]]
    rows, completions = scoring_rows(ids, work)
    width = max(map(len, rows))
    full = torch.tensor(
        [[0] * (width - len(row)) + row + completion for row, completion in zip(rows, completions)]
    )
    mask = torch.tensor([[0] * (width - len(row)) + [1] * (len(row) + work["tokens"]) for row in rows])

    def score() -> dict:
        with torch.no_grad():
            logits = model(
                input_ids=full,
                attention_mask=mask,
                position_ids=(mask.cumsum(1) - 1).clamp(min=0),
                use_cache=False,
            ).logits
            logprobs = torch.log_softmax(logits[:, width - 1 : -1].float(), dim=-1)
            logprobs = logprobs.gather(-1, full[:, width:, None])
        return {"logprobs": logprobs.flatten().tolist(), "tokens": logprobs.numel()}

    serve(score)


# --- TRL, vLLM ----------------------------------------------------------------------------------------------


def step_trl(work: dict) -> None:
    """An optimizer step of TRL's GRPOTrainer: `batch` rows per forward pass, activation checkpointing or not.

    Lengths are forced by `min_new_tokens`, as its loss would leave out what follows an EOS.
    """
    import torch
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    model, tokenizer = transformers_model(work)
    rows = len(work["prompts"]) * work["group_size"]
    batch, lengths = rows if work["batch"] == "all" else min(work["batch"], rows), []

    class OneStepALine(TrainerCallback):
        def on_step_begin(self, *args, **kwargs):
            if not sys.stdin.readline():
                os._exit(0)
            self.started = time.perf_counter()

        def on_step_end(self, *args, **kwargs):
            answer(seconds=time.perf_counter() - self.started, peak_gb=peak_gb(), tokens=sum(lengths))

    def reward(completions, completion_ids, **_) -> list[float]:
        lengths[:] = map(len, completion_ids)
        return [float(i % 2) for i in range(len(completions))]

    config = GRPOConfig(
        output_dir=work["scratch"],
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=rows // batch,
        num_generations=work["group_size"],
        max_completion_length=work["tokens"],
        temperature=1.0,
        beta=0.0,
        learning_rate=1e-6,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=work["checkpointing"],
        generation_kwargs={"min_new_tokens": work["tokens"], **SAMPLED},
        max_steps=10**6,
        logging_steps=10**6,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_num_workers=0,
    )
    trainer = GRPOTrainer(
        model=model,
        processing_class=tokenizer,
        args=config,
        callbacks=[OneStepALine()],
        reward_funcs=reward,
        train_dataset=Dataset.from_dict({"prompt": work["prompts"]}),
    )
    torch.manual_seed(SEED)
    answer(ready=True)
    trainer.train()


def sample_vllm(work: dict) -> None:
    """Its worker is a process of its own, whose threads VLLM_CPU_OMP_THREADS_BIND gives."""
    from vllm import LLM, SamplingParams

    # prompts are shared in whole blocks, on CPUs of 128 tokens by default; 32 are the fewest that it takes
    engine = LLM(
        work["model"],
        dtype="float32",
        max_model_len=1024,
        enable_prefix_caching=True,
        disable_log_stats=True,
        block_size=32,
        kv_cache_memory_bytes=2 << 30,
    )
    prompts = [{"prompt_token_ids": engine.get_tokenizer().encode(prompt)} for prompt in work["prompts"]]
    params = SamplingParams(
        n=work["group_size"],
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        max_tokens=work["tokens"],
        ignore_eos=work["forced"],
        logprobs=0,
        detokenize=False,
    )

    def sample() -> dict:
        outputs = engine.generate(prompts, params, use_tqdm=False)
        engine.reset_prefix_cache()
        completions = [completion for output in outputs for completion in output.outputs]
        return {"tokens": sum(len(completion.token_ids) for completion in completions)}

    serve(sample)


if __name__ == "__main__":
    REPLIES = os.fdopen(os.dup(1), "w")  # what libraries print must not come between
    os.dup2(2, 1)
    globals()[sys.argv[1]](json.loads(sys.argv[2]))
