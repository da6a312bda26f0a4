"""A small module that a script adds to a model, as papers/quiet_star.py does: trained with the model, kept in
its checkpoints, and saved in a folder of its own beside the weights.

Without it the saved model is a plain Hugging Face folder, which all others load as such.
"""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

WEIGHTS = "weights.safetensors"


def add(model, name: str, module: torch.nn.Module) -> None:
    """From now on it is `model.<name>`, and its weights are among the model's."""
    model.add_module(name, module.to(model.device))
    model.added = name


def split(weights: dict[str, torch.Tensor], model) -> tuple[dict, dict]:
    """The weights of the model alone, and those of what was added: {} where nothing was."""
    prefix = f"{getattr(model, 'added', '')}."
    added = {name: weight for name, weight in weights.items() if name.startswith(prefix)}
    return {name: weight for name, weight in weights.items() if name not in added}, added


def save(folder: Path, added: dict[str, torch.Tensor], model) -> None:
    """folder/<name>/weights.safetensors, of what `split` says was added; nothing where nothing was."""
    if added:
        (folder / model.added).mkdir()
        added = {name: weight.detach().cpu().contiguous() for name, weight in added.items()}
        save_file(added, folder / model.added / WEIGHTS)


def load(folder: Path, model) -> dict[str, torch.Tensor]:
    """What `save` has written, {} where nothing was added. Raises ValueError where it is missing or
    damaged."""
    if not hasattr(model, "added"):
        return {}
    path = folder / model.added / WEIGHTS
    if not path.exists():
        raise ValueError(f"{model.added}/{WEIGHTS} is missing")
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{model.added}/{WEIGHTS}: {str(error).splitlines()[0]}") from None
