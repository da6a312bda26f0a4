"""What a run needs, planned before it is started: memory of a GPU by the model's size, GPUs and flags.

    python benchmarks/memory.py                 the table of docs/gpus.md
    python benchmarks/memory.py --check-here    a step of SmolLM2-135M on this machine beside its plan
                                                (--no-keep: freed memory goes back)

P parameters, L layers of hidden size d and inner size f, k = key heads x head size, N GPUs,
T = --micro-batch-tokens, with --activation-checkpointing, bytes:

    one GPU         16 P                   weights, gradients and two moments of AdamW, float32
    N GPUs          12 P / N + 8 P         a part of weights and moments; all weights and gradients while a
                                           batch is worked on
    --lora-rank     4 P / N (+ 4 P)        frozen weights (all of them, if N > 1, while a batch is worked on);
                                           the adapter is small
    activations     4 T (L d + 40 d + 8 f) what each layer began with; one layer anew, with its gradients
    logits          5 x 4 x 2^25           one block of them, and what is made of it (plainrl/scoring.py)
    vLLM            2 P + 4 L k a token    bfloat16 weights, keys and values of everything that is sampled at
                                           once
    transformers    8 L k a token          keys and values in float32; up to twice that, since buffers double
                    16 V a row             logits of V tokens and what a draw makes of them, of 512 rows
                                           (plainrl/sampler.py)
    host            4 P a rank             while the model is loaded; the main rank 16 P when a run is resumed

Attention scores are not in it. Rows longer than twice a head's size leave them to the GPU's kernel, which
keeps none; shorter ones, and a CPU, have those of one layer: 32 T H S for H heads and rows of S tokens.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
import grpo  # noqa: E402
from plainrl.models import keep_freed_memory, load_model, peak_gb  # noqa: E402
from plainrl.rollout import Batch  # noqa: E402
from plainrl.sampler import ROWS_AT_ONCE  # noqa: E402
from plainrl.scoring import LOGITS_AT_ONCE  # noqa: E402

FITS = 64e9  # bytes: a GPU of 80 GB, since a plan that was measured was a fifth of it short
SMOL = "runs/SmolLM2-135M-Instruct"


@dataclass(frozen=True)
class Model:
    """Sizes as in the model's config.json."""

    parameters: float
    layers: int
    hidden: int
    inner: int
    keys: int  # key heads x head size
    vocabulary: int


MODELS = {
    "SmolLM2-135M": Model(0.1345e9, 30, 576, 1536, 3 * 64, 49152),
    "Qwen2.5-0.5B": Model(0.494e9, 24, 896, 4864, 2 * 64, 151936),
    "Qwen2.5-1.5B": Model(1.544e9, 28, 1536, 8960, 2 * 128, 151936),
    "Qwen2.5-3B": Model(3.086e9, 36, 2048, 11008, 2 * 128, 151936),
    "Qwen2.5-7B": Model(7.616e9, 28, 3584, 18944, 4 * 128, 152064),
}


def training(model: Model, gpus: int, tokens: int, lora: bool = False) -> float:
    """Bytes on each GPU while a micro-batch of so many tokens is worked on."""
    P = model.parameters
    if lora:
        weights = 4 * P / gpus + (4 * P if gpus > 1 else 0)
    else:
        weights = 16 * P if gpus == 1 else 12 * P / gpus + 8 * P
    activations = 4 * tokens * (model.layers * model.hidden + 40 * model.hidden + 8 * model.inner)
    return weights + activations + 5 * 4 * LOGITS_AT_ONCE


def sampling(model: Model, tokens: int, vllm: bool) -> float:
    """Bytes of a sampler's keys and values for so many tokens, and of vLLM's weights or all rows' draws."""
    keys_and_values = 2 * model.layers * model.keys * tokens
    if vllm:
        return 2 * keys_and_values + 2 * model.parameters
    return 4 * keys_and_values + 16 * ROWS_AT_ONCE * model.vocabulary


def table() -> str:
    """Planned memory by layout, in GB of each GPU; struck out what does not fit."""
    layouts = {
        "1 GPU": (1, 16384, False),
        "1 GPU, LoRA": (1, 16384, True),
        "2 GPUs": (2, 16384, False),
        "8 GPUs": (8, 16384, False),
    }
    samplers = {"sampling 100k tokens at once: vLLM": True, "transformers": False}
    titles = ["GB of each GPU", *layouts, *samplers]
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for name, model in MODELS.items():
        needs = [training(model, *layout) for layout in layouts.values()]
        needs += [sampling(model, 100_000, vllm) for vllm in samplers.values()]
        cells = [f"{need / 1e9:.1f}" if need < FITS else f"~~{need / 1e9:.0f}~~" for need in needs]
        lines.append("| " + " | ".join([name, *cells]) + " |")
    return "\n".join(lines)


def check(keep: bool) -> str:
    """Peak memory of two updates on this machine, less that of the bare process, beside the plan."""
    if keep:
        keep_freed_memory()
    before, tokens = peak_gb(), 4096
    model, _ = load_model(str(ROOT / SMOL), activation_checkpointing=True)
    args = grpo.Args(max_new_tokens=256, micro_batch_tokens=tokens)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
    mask = torch.ones(15, 256, dtype=torch.bool)  # with the prompt 16 x 256 tokens
    columns = {
        "completion_mask": mask,
        "loss_mask": mask,
        "advantages": torch.randn(15, 1),
        "rollout_logprobs": torch.zeros(mask.shape),
    }
    batch = Batch([[5] * 256] * 15, torch.randint(5, 4000, mask.shape).tolist(), columns)
    for _ in range(2):
        optimizer.zero_grad()
        grpo.accumulate_gradients(model, batch, args)
        optimizer.step()
    scores = 32 * tokens * 9 * 511  # of 9 heads, rows of 511 tokens
    plan = (training(MODELS["SmolLM2-135M"], 1, tokens) + scores) / 1e9
    return f"SmolLM2-135M, {tokens} tokens, one process: {peak_gb() - before:.1f} GB, planned {plan:.1f} GB"


def main(check_here: tyro.conf.FlagCreatePairsOff[bool] = False, keep: bool = True) -> None:
    print(check(keep) if check_here else table())


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
