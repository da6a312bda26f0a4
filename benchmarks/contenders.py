"""One contender of benchmarks/compare.py, in a process of its own: for each line it reads it does its piece of work once, and answers
with a line of JSON. Contenders that need another environment (TRL, vLLM) import it here and nothing of this repository.

    python benchmarks/contenders.py NAME '{"model": .., "prompts": [text, ..], "group_size": .., "tokens": .., "forced": true}'
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
OFF = ("shared", "common", "end to end", "buffers", "finished", "refill", "inference", "blocks", "recomputed", "on-policy", "fused",
       "draw", "projection", "long rows")  # what can be taken away  # fmt: skip


def answer(**numbers) -> None:
    print(json.dumps(numbers), file=REPLIES, flush=True)


def peak_gb() -> float:
    """Peak resident memory of this process and those that it started (Linux; what they share counts in each)."""
    processes, total = [Path(f"/proc/{os.getpid()}")], 0
    while processes:
        process = processes.pop()
        peak = re.search(r"VmHWM:\s+(\d+) kB", (process / "status").read_text())
        total += 1024 * int(peak[1]) if peak else 0
        processes += [Path(f"/proc/{child}") for task in process.glob("task/*/children") for child in task.read_text().split()]
    return total / 1e9


def serve(do) -> None:
    """Ready, then one piece of work a line. `do` returns the numbers of the answer."""
    answer(ready=True)
    for _ in sys.stdin:
        started = time.perf_counter()
        numbers = do()
        answer(seconds=time.perf_counter() - started, peak_gb=peak_gb(), **numbers)


# --- ours -----------------------------------------------------------------------------------------------------------------


def ours(work: dict):
    """Model, tokenizer, ids of the prompts, and a function that samples them."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import runtime
    from rollout import HFSampler, completion_seed

    if work.get("keep_memory", True):
        runtime.keep_freed_memory()
    switch_off(work.get("off"))
    model = AutoModelForCausalLM.from_pretrained(work["model"], dtype=torch.float32).train()  # with the whole of its vocabulary
    tokenizer = AutoTokenizer.from_pretrained(work["model"])
    ids = [tokenizer.encode(prompt) for prompt in work["prompts"]]
    sampler = HFSampler(model, [-1] if work["forced"] else runtime.eos_ids(model, tokenizer), work["rows_at_once"])

    def sample(step: int = 1) -> list:
        seeds = [completion_seed(SEED, step, row, 0, 0) for row in range(len(ids) * work["group_size"])]
        return sampler.generate(ids, work["group_size"], work["tokens"], 1.0, seeds)

    return model, tokenizer, ids, sample


def make_step(work: dict):
    """An optimizer step of grpo.py with its defaults, on-policy."""
    model, tokenizer, _, sample = ours(work)
    import torch

    import grpo
    import runtime
    from rollout import pad, pad_values, score_all

    args = grpo.Args(max_new_tokens=work["tokens"], group_size=work["group_size"], micro_batch_tokens=work.get("micro_batch_tokens"))
    runtime.resolve_defaults(args, model, grpo.DEFAULTS)
    # with lr 0 all repetitions have the same work: weights, and with them samples, stay as they are
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.0, fused=work.get("off") != "fused")

    def step() -> dict:
        started = time.perf_counter()
        ids = [tokenizer.encode(prompt) for prompt in work["prompts"]]  # as every trainer does, so that its time counts
        with torch.profiler.record_function("sampling"):
            completions = sample()
        tokenizer.batch_decode([completion.ids for completion in completions], skip_special_tokens=True)
        sampling = time.perf_counter() - started
        rewards = torch.arange(len(completions)).view(len(ids), -1).remainder(2).float()
        advantages = grpo.group_advantages(rewards, args.advantage)
        completion_ids = [completion.ids for completion in completions]
        mask = pad(completion_ids, model.device)[1]
        batch = {"prompt_ids": [prompt for prompt in ids for _ in range(args.group_size)], "completion_ids": completion_ids,
                 "advantages": advantages.view(-1, 1), "completion_mask": mask, "loss_mask": mask,
                 "rollout_logprobs": pad_values([completion.logprobs for completion in completions], mask)}  # fmt: skip
        if work.get("off") == "on-policy":
            batch["old_logprobs"], _ = score_all(model, batch["prompt_ids"], completion_ids, 1.0, args.micro_batch_tokens)
        grpo.accumulate_gradients(model, batch, slice(None), args)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), args.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        return {"tokens": sum(map(len, completion_ids)), "sampling": sampling, "gradient_norm": norm.item()}

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
    """Seconds of the fifth optimizer step by kind of work, for sampling and for training: the first are slower."""
    step = make_step(work)
    import torch

    for _ in range(4):
        step()

    def profiled() -> dict:
        with torch.profiler.profile() as profile:
            tokens = step()["tokens"]
        events = profile.events()
        begin, end = min(event.time_range.start for event in events), max(event.time_range.end for event in events)
        sampled = next(event.time_range.end for event in events if event.name == "sampling")
        found = {"sampling": Counter(seconds=(sampled - begin) / 1e6), "training": Counter(seconds=(end - sampled) / 1e6)}
        for event in events:
            if event.name.startswith("aten::"):
                kind = next((kind for kind, names in KINDS.items() if re.fullmatch(names, event.name)), "other operations")
                found["sampling" if event.time_range.start < sampled else "training"][kind] += event.self_cpu_time_total / 1e6
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
    rows, known = [prompt for prompt in ids for _ in range(work["group_size"])], torch.tensor(sorted(set(sum(ids, []))))
    return rows, known[torch.randint(len(known), (len(rows), work["tokens"]))].tolist()


def score_ours(work: dict) -> None:
    """Log-probabilities of given completions, without gradient."""
    model, _, ids, _ = ours(work)
    import grpo
    import runtime
    from rollout import score_all

    args = grpo.Args()
    runtime.resolve_defaults(args, model, grpo.DEFAULTS)
    prompt_ids, completion_ids = scoring_rows(ids, work)
    serve(lambda: {"logprobs": score_all(model, prompt_ids, completion_ids, 1.0, args.micro_batch_tokens)[0].flatten().tolist(),
                   "tokens": len(completion_ids) * work["tokens"]})  # fmt: skip


def agreement_ours(work: dict) -> None:
    """How far log-probabilities of sampled completions, and the gradient of their sum, are from those of the plain padded forward."""
    model, _, ids, sample = ours(work)
    import torch

    import rollout

    def both() -> dict:
        prompt_ids, completion_ids = [prompt for prompt in ids for _ in range(work["group_size"])], [row.ids for row in sample()]
        logprobs, gradients = [], []
        for share in (True, False):
            values = []
            for first in range(0, len(prompt_ids), work["group_size"]):  # a group at a time, as memory allows
                group = slice(first, first + work["group_size"])
                scores, _ = rollout.score(model, prompt_ids[group], completion_ids[group], 1.0, share_prompts=share)
                scores.sum().backward()
                values.append(scores.detach().flatten())
            logprobs.append(torch.cat(values))
            gradients.append([parameter.grad for parameter in model.parameters()])
            model.zero_grad()
        gap = sum((one - other).square().sum() for one, other in zip(*gradients)) / sum(plain.square().sum() for plain in gradients[1])
        return {"logprob_difference": (logprobs[0] - logprobs[1]).abs().max().item(), "gradient_difference": gap.sqrt().item(),
                "tokens": sum(map(len, completion_ids))}  # fmt: skip

    serve(both)


def switch_off(what: str | None) -> None:
    """Take one optimisation away, for the table of what each brings."""
    if what not in (None, *OFF):
        raise ValueError(f"{what}: there is no such optimisation")
    import torch

    import rollout
    import shared_prompts
    from shared_prompts import GrowingStretch, follow, run_rows

    def prefill_each(model, prompts):
        model.set_attn_implementation("shared_prompts")
        different, zeros = list(set(map(tuple, prompts))), torch.zeros(len(prompts), dtype=torch.long)
        common, above = rollout.common_length(different) if len(different) > 1 else 0, []
        if common:  # with what begins all of them, this remains
            above = [(run_rows(model, [prompts[0][:common]], zeros[:1], [], keep=True)[1], zeros)]
        _, own = run_rows(model, [prompt[common:-1] for prompt in prompts], zeros + common, follow(above), keep=True)
        return [*above, (own, torch.arange(len(prompts)))]

    def micro_batches_of_each(prompt_ids, completion_ids, tokens, rows=None, micro_batches=rollout.micro_batches):
        return micro_batches([[*prompt, -1 - row] for row, prompt in enumerate(prompt_ids)], completion_ids, tokens, rows)  # none twice

    def run_padded_rows(model, ids, start, above, keep=False):
        width = max(map(len, ids))
        hidden, stretch = run_rows(model, [[*row, *[0] * (width - len(row))] for row in ids], start, above, keep)
        real = torch.arange(width) < torch.tensor([len(row) for row in ids])[:, None]
        if keep:
            stretch.filled, stretch.padding = real, ~real
        return hidden[real.flatten()], stretch

    def run_rows_and_project(model, ids, start, above, keep=False):
        hidden, stretch = run_rows(model, ids, start, above, keep)
        if keep and torch.is_grad_enabled():  # prompts, forward and backward, with a gradient of zero
            last = max(stretch.layers)
            keys, values = stretch.layers[last]
            stretch.layers[last] = keys + 0 * model.get_output_embeddings()(hidden).sum(), values
        return hidden, stretch

    def draw_and_sort(logits, temperature, uniforms, top_p, draw=rollout.draw):
        logits.sort(dim=-1, descending=True)  # alone: to draw by it would give other tokens
        return draw(logits, temperature, uniforms, top_p)

    def generate_in_batches(self, prompt_ids, n, max_new_tokens, temperature, seeds, top_p=1.0, generate=rollout.HFSampler.generate):
        size, completions = self.rows_at_once // n, []
        for first in range(0, len(prompt_ids), size):
            rows = slice(first * n, (first + size) * n)
            completions += generate(self, prompt_ids[first : first + size], n, max_new_tokens, temperature, seeds[rows], top_p)
        return completions

    def extend_by_copying(self, layer, keys, values):
        old = self.layers.get(layer)
        self.layers[layer] = (keys, values) if old is None else tuple(torch.cat(pair, dim=2) for pair in zip(old, (keys, values)))
        return self.layers[layer]

    def exchange_by_copying(self, keep, new, columns):
        def exchanged(part):
            return torch.cat([part[keep, :, columns:], part.new_zeros(new, part.shape[1], part.shape[2] - columns, part.shape[3])])

        self.layers = {layer: tuple(map(exchanged, pair)) for layer, pair in self.layers.items()}

    changes = {
        "shared": [(rollout, "prefill", prefill_each), (rollout, "micro_batches", micro_batches_of_each)],
        "common": [(module, "common_length", lambda prompts: 0) for module in (rollout, shared_prompts)],
        "end to end": [(module, "run_rows", run_padded_rows) for module in (rollout, shared_prompts)],
        "buffers": [(GrowingStretch, "extend", extend_by_copying), (GrowingStretch, "exchange", exchange_by_copying)],
        "finished": [(rollout, "DROP_AT", 2.0)],
        "refill": [(rollout.HFSampler, "generate", generate_in_batches)],
        "inference": [(rollout.HFSampler, "_generate", rollout.HFSampler._generate.__wrapped__)],  # without its decorator
        "blocks": [(rollout, "LOGITS_AT_ONCE", 1 << 62)],
        "draw": [(rollout, "draw", draw_and_sort)],
        "projection": [(shared_prompts, "run_rows", run_rows_and_project)],
        "long rows": [(shared_prompts, "LONG_ROW", math.inf)],
        "recomputed": [(rollout, "checkpoint", lambda function, *arguments, **_: function(*arguments))],
    }
    for place, name, replacement in changes.get(what, []):  # "on-policy" and "fused" are in `make_step`
        setattr(place, name, replacement)


# --- transformers ---------------------------------------------------------------------------------------------------------


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

    for option, size in ((-3, 32 << 20), (-3, 1 << 30), (-1, -1), (-2, 256 << 20)):  # as in runtime.py
        ctypes.CDLL("libc.so.6").mallopt(option, size)


SAMPLED = dict(do_sample=True, temperature=1.0, top_k=0, top_p=1.0)


def sample_generate(work: dict) -> None:
    """transformers `generate` on the batch of all rows."""
    import torch

    model, tokenizer = transformers_model(work)
    batch = tokenizer([prompt for prompt in work["prompts"] for _ in range(work["group_size"])], return_tensors="pt", padding=True)
    end = -1 if work["forced"] else model.generation_config.eos_token_id
    ends = torch.tensor(end if isinstance(end, list) else [end])

    def sample() -> dict:
        with torch.no_grad():
            new = model.generate(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], pad_token_id=tokenizer.pad_token_id,
                                 eos_token_id=end, max_new_tokens=work["tokens"], **SAMPLED)[:, batch["input_ids"].shape[1] :]  # fmt: skip
        ended = torch.isin(new, ends)
        lengths = torch.where(ended.any(1), ended.int().argmax(1) + 1, new.shape[1])
        return {"tokens": int(lengths.sum())}

    serve(sample)


def sample_generate_batch(work: dict) -> None:
    """transformers' continuous batching."""
    from transformers import ContinuousBatchingConfig, GenerationConfig

    model, tokenizer = transformers_model(work)
    tokens = sum(len(tokenizer.encode(prompt)) + work["tokens"] for prompt in work["prompts"]) * work["group_size"]
    room = ContinuousBatchingConfig(num_blocks=2 * tokens // 32 + 64, max_batch_tokens=1024, page_size=32)  # it takes 20 GB else
    inputs = [tokenizer.encode(prompt) for prompt in work["prompts"] for _ in range(work["group_size"])]
    end = -1 if work["forced"] else model.generation_config.eos_token_id
    config = GenerationConfig(max_new_tokens=work["tokens"], eos_token_id=end, pad_token_id=tokenizer.pad_token_id, **SAMPLED)

    def sample() -> dict:
        results = model.generate_batch(inputs=inputs, generation_config=config, continuous_batching_config=room, progress_bar=False,
                                       persistent_manager=True)  # fmt: skip
        return {"tokens": sum(len(result.generated_tokens) for result in results.values())}

    serve(sample)


def score_plain(work: dict) -> None:
    """One padded forward pass of all rows with full logits."""
    import torch

    model, tokenizer = transformers_model(work)
    ids = [tokenizer.encode(prompt) for prompt in work["prompts"]]
    rows, completions = scoring_rows(ids, work)
    width = max(map(len, rows))
    full = torch.tensor([[0] * (width - len(row)) + row + completion for row, completion in zip(rows, completions)])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * (len(row) + work["tokens"]) for row in rows])

    def score() -> dict:
        with torch.no_grad():
            logits = model(input_ids=full, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0), use_cache=False).logits
            logprobs = torch.log_softmax(logits[:, width - 1 : -1].float(), dim=-1).gather(-1, full[:, width:, None])
        return {"logprobs": logprobs.flatten().tolist(), "tokens": logprobs.numel()}

    serve(score)


# --- TRL, vLLM ------------------------------------------------------------------------------------------------------------


def step_trl(work: dict) -> None:
    """An optimizer step of TRL's GRPOTrainer: `batch` rows per forward pass, with or without activation checkpointing. Lengths are forced
    by `min_new_tokens`, as its loss would leave out what follows an EOS."""
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

    config = GRPOConfig(output_dir=work["scratch"], per_device_train_batch_size=batch, gradient_accumulation_steps=rows // batch,
                        num_generations=work["group_size"], max_completion_length=work["tokens"], temperature=1.0, beta=0.0,
                        learning_rate=1e-6, use_cpu=True, bf16=False, gradient_checkpointing=work["checkpointing"],
                        generation_kwargs={"min_new_tokens": work["tokens"], **SAMPLED}, max_steps=10**6, logging_steps=10**6,
                        save_strategy="no", report_to="none", disable_tqdm=True, dataloader_num_workers=0)  # fmt: skip
    trainer = GRPOTrainer(model=model, processing_class=tokenizer, args=config, callbacks=[OneStepALine()],
                          reward_funcs=reward,
                          train_dataset=Dataset.from_dict({"prompt": work["prompts"]}))  # fmt: skip
    torch.manual_seed(SEED)
    answer(ready=True)
    trainer.train()


def sample_vllm(work: dict) -> None:
    """Its worker is a process of its own, whose threads VLLM_CPU_OMP_THREADS_BIND gives."""
    from vllm import LLM, SamplingParams

    # prompts are shared in whole blocks, on CPUs of 128 tokens by default; 32 are the fewest that it takes
    engine = LLM(work["model"], dtype="float32", max_model_len=1024, enable_prefix_caching=True, disable_log_stats=True,
                 block_size=32, kv_cache_memory_bytes=2 << 30)  # fmt: skip
    prompts = [{"prompt_token_ids": engine.get_tokenizer().encode(prompt)} for prompt in work["prompts"]]
    params = SamplingParams(n=work["group_size"], temperature=1.0, top_p=1.0, top_k=0, max_tokens=work["tokens"], ignore_eos=work["forced"],
                            logprobs=0, detokenize=False)  # fmt: skip

    def sample() -> dict:
        outputs = engine.generate(prompts, params, use_tqdm=False)
        engine.reset_prefix_cache()
        return {"tokens": sum(len(completion.token_ids) for output in outputs for completion in output.outputs)}

    serve(sample)


if __name__ == "__main__":
    REPLIES = os.fdopen(os.dup(1), "w")  # what libraries print must not come between
    os.dup2(2, 1)
    globals()[sys.argv[1]](json.loads(sys.argv[2]))
