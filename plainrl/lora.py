"""LoRA (arXiv 2106.09685) by the library peft: only small matrices beside each linear layer are trained
(--lora-rank).

    y = W x + (alpha / r) B A x        A [r, in] random, B [out, r] zero at first, alpha = 2 r

Saved models and pushed weights have W + (alpha / r) B A in place of W, so they are plain folders that need
no peft; the adapter is kept beside, in adapter/, in peft's own format.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

SCALING = 2.0  # alpha / r
PREFIX = "base_model.model."  # of names in a file of peft


def add_adapter(model, rank: int, name: str) -> None:
    """Put A and B beside every linear layer but the head, and freeze everything else."""
    from transformers.pytorch_utils import Conv1D

    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise ValueError("--lora-rank: the package peft is not installed; run: pip install peft") from None
    if any(isinstance(module, Conv1D) for module in model.modules()):
        raise ValueError(
            f"--lora-rank: {name} keeps its weights transposed (as GPT-2 does), which is not supported; "
            "leave it out"
        )
    config = LoraConfig(
        r=rank,
        lora_alpha=round(SCALING * rank),
        target_modules="all-linear",
        base_model_name_or_path=name,
        task_type="CAUSAL_LM",
    )
    inject_adapter_in_model(config, model)
    for parameter, weight in model.named_parameters():
        weight.requires_grad_("lora_" in parameter)


def has_adapter(model) -> bool:
    return hasattr(model, "peft_config")


def merged(weights: dict[str, torch.Tensor], model) -> dict[str, torch.Tensor]:
    """The weights of a plain model; `weights` are all of this one, under the names that they have with
    adapters (or none of them: {})."""
    if not has_adapter(model):
        return weights
    weights = {name: weight.detach().cpu() for name, weight in weights.items()}
    plain = {
        name.replace(".base_layer", ""): weight for name, weight in weights.items() if ".lora_" not in name
    }
    for name in weights:
        if ".lora_A." in name:
            update = weights[name.replace(".lora_A.", ".lora_B.")] @ weights[name]  # [out, in]
            layer = name.split(".lora_A.")[0] + ".weight"
            plain[layer] = plain[layer] + SCALING * update
    return plain


def save_adapter(folder: Path, weights: dict[str, torch.Tensor], model) -> None:
    """adapter_model.safetensors and adapter_config.json, as peft reads them."""
    if has_adapter(model):
        folder.mkdir()
        adapter = {
            PREFIX + name.replace(".default", ""): weight
            for name, weight in weights.items()
            if ".lora_" in name
        }
        save_file(
            {name: weight.detach().cpu().contiguous() for name, weight in adapter.items()},
            folder / "adapter_model.safetensors",
        )
        model.peft_config["default"].save_pretrained(folder)


def load_adapter(folder: Path) -> dict[str, torch.Tensor]:
    """A saved adapter under the names that it has in a model."""
    saved = load_file(folder / "adapter_model.safetensors")
    return {
        name.removeprefix(PREFIX).replace(".weight", ".default.weight"): weight
        for name, weight in saved.items()
    }
