"""What a run needs, planned before it is started: tables of docs/gpus.md, by the formula of plainrl/plan.py.

    python benchmarks/memory.py                 the tables
    python benchmarks/memory.py --check-here    a step of SmolLM2-135M on this machine beside its plan
                                                (--no-keep: freed memory goes back)

The host's memory is not in the formula: 4 bytes a parameter on each rank while the model is loaded, 16 on the
main rank when a run is resumed.
"""

import sys
from pathlib import Path

import torch
import tyro

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
import grpo  # noqa: E402
from plainrl import plan  # noqa: E402
from plainrl.models import keep_freed_memory, load_model, peak_gb  # noqa: E402
from plainrl.plan import Sizes  # noqa: E402
from plainrl.rollout import Batch  # noqa: E402

FITS = 64e9  # bytes: a GPU of 80 GB, since a plan that was measured was a fifth of it short
SMOL = "runs/SmolLM2-135M-Instruct"
PROMPT, LENGTH = 200, 1024  # tokens of a row, where nothing else is said
RANK = 32  # of --lora-rank

MODELS = {
    "SmolLM2-135M": Sizes(134_515_008, 30, 576, 1536, 9, 3, 64, 49152),
    "Qwen2.5-0.5B": Sizes(494_000_000, 24, 896, 4864, 14, 2, 64, 151936),
    "Qwen2.5-1.5B": Sizes(1_544_000_000, 28, 1536, 8960, 12, 2, 128, 151936),
    "Qwen2.5-3B": Sizes(3_086_000_000, 36, 2048, 11008, 16, 2, 128, 151936),
    "Qwen2.5-7B": Sizes(7_616_000_000, 28, 3584, 18944, 28, 4, 128, 152064),
}
CARDS = [  # GB of the GPU, model, with LoRA, micro-batch
    (24, "Qwen2.5-0.5B", False, 8192),
    (24, "Qwen2.5-1.5B", True, 8192),
    (80, "Qwen2.5-1.5B", False, 16384),
    (80, "Qwen2.5-3B", True, 16384),
]


def adapters(model: Sizes) -> int:
    """Numbers of LoRA's two matrices beside every linear layer but the head."""
    d, f, q, k = model.hidden, model.inner, model.heads * model.head, model.key_heads * model.head
    return model.layers * RANK * (2 * (d + q) + 2 * (d + k) + 3 * (d + f))


def training(model: Sizes, gpus: int, tokens: int, lora: bool = False) -> float:
    """Bytes on each GPU while a micro-batch of so many tokens is worked on, with activation checkpointing."""
    trained = adapters(model) if lora else None
    parts, _ = plan.memory(model, tokens, PROMPT, LENGTH, 1, trained, checkpointing=True, gpus=gpus)
    return sum(parts.values())


def sampling(model: Sizes, rows: int, length: int, vllm: bool) -> float:
    """Bytes that a sampler needs besides the trainer's weights and moments."""
    both, parts = plan.memory(model, 1, 0, length, rows, vllm=vllm)
    return sum(size for name, size in parts.items() if name not in both)


def table() -> str:
    """Planned memory by layout, in GB of each GPU; struck out what does not fit."""
    layouts = {
        "1 GPU": (1, 16384, False),
        "1 GPU, LoRA": (1, 16384, True),
        "2 GPUs": (2, 16384, False),
        "8 GPUs": (8, 16384, False),
    }
    samplers = {"sampling 512 rows of 256 tokens: vLLM": True, "transformers": False}
    titles = ["GB of each GPU", *layouts, *samplers]
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for name, model in MODELS.items():
        needs = [training(model, *layout) for layout in layouts.values()]
        needs += [sampling(model, 512, 256, vllm) for vllm in samplers.values()]
        cells = [f"{need / 1e9:.1f}" if need < FITS else f"~~{need / 1e9:.0f}~~" for need in needs]
        lines.append("| " + " | ".join([name, *cells]) + " |")
    return "\n".join(lines)


def cards_table() -> str:
    """What fits one GPU of 24 GB and one of 80 GB, by formula."""
    lines = [
        "| one GPU | model | trained | `--micro-batch-tokens` | weights, gradients, moments | activations, "
        "logits | trains in | transformers samples in | vLLM samples in |",
        "|---" * 9 + "|",
    ]
    for card, name, lora, tokens in CARDS:
        model, rows = MODELS[name], 128
        trained = adapters(model) if lora else None
        sizes = (model, tokens, PROMPT, LENGTH, rows, trained, True)
        train, hf = plan.memory(*sizes)
        _, vllm = plan.memory(*sizes, vllm=True)
        passing = train["activations"] + train["logits"]
        whole = sum(train.values())
        cells = [whole - passing, passing, whole, sum(hf.values()), sum(vllm.values())]
        gb = " | ".join(f"{cell / 1e9:.1f}" for cell in cells)
        lines.append(f"| {card} GB | {name} | {f'LoRA {RANK}' if lora else 'all'} | {tokens:,} | {gb} |")
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
    parts, _ = plan.memory(plan.sizes_of(model), tokens, 256, 256, 1, checkpointing=True)
    planned = sum(parts.values()) / 1e9
    return (
        f"SmolLM2-135M, {tokens} tokens, one process: {peak_gb() - before:.1f} GB, planned {planned:.1f} GB"
    )


def main(check_here: tyro.conf.FlagCreatePairsOff[bool] = False, keep: bool = True) -> None:
    print(check(keep) if check_here else f"{table()}\n\n{cards_table()}")


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
