"""Weights of saved models, read and written tensor by tensor, so that a model may be larger than the memory.

A model is a Hugging Face folder: config.json and one or several safetensors files. What cannot be used raises
a ValueError that names the flag by which the user gave the model.
"""

import contextlib
import json
import math
import shutil
import struct
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import SafetensorError, safe_open

from plainrl.models import CHECKSUMS, find_model
from plainrl.results import aligned
from plainrl.screen import say, shown

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}
HEAD = "lm_head.weight"  # the output head, as every model of transformers calls it that may tie it
INDEX = "model.safetensors.index.json"
COPIED = (".json", ".jinja", ".txt", ".model", ".tiktoken", ".py")  # config, tokenizer, template, code
NOT_COPIED = {INDEX, CHECKSUMS, "reasoning_vector.json", "adapter_config.json", "chosen.json", "state.json"}
LISTED = 8  # tensors that differ, on the screen


class Weights:
    """The tensors of a model by name. They stay on the disk until one is asked for."""

    def __init__(self, flag: str, folder: Path, files: dict[str, str]):
        """`files` says in which file of the folder each tensor is. Raises ValueError where one is missing."""
        self.flag, self.folder, self.files = flag, folder, files
        self.opened = {}  # by file
        self.shapes, self.codes = {}, {}  # by tensor; codes are dtypes as the file calls them
        for name, file in files.items():
            with self.or_named(file):
                if file not in self.opened:
                    self.opened[file] = safe_open(folder / file, "pt")
                on_disk = self.opened[file].get_slice(name)
                self.shapes[name], self.codes[name] = tuple(on_disk.get_shape()), on_disk.get_dtype()

    @contextlib.contextmanager
    def or_named(self, file: str):
        try:
            yield
        except (OSError, SafetensorError) as error:
            said = str(error).splitlines()[0]
            raise ValueError(f"{self.flag}: {self.folder / file} cannot be read ({said})") from None

    def read(self, name: str) -> torch.Tensor:
        """One tensor, in the dtype of its file. Raises ValueError where it has a number that is none."""
        with self.or_named(self.files[name]):
            tensor = self.opened[self.files[name]].get_tensor(name)
        if self.codes[name] in DTYPES and not torch.isfinite(tensor).all():
            raise ValueError(f"{self.flag}: {shown(name, True)} has nan or inf; that model is broken")
        return tensor

    def shape(self, name: str) -> str:
        return str(list(self.shapes[name])) if name in self.shapes else "missing"


# --- reading ------------------------------------------------------------------------------------------------


def find_folder(name: str, flag: str) -> Path:
    """The folder of a model, loaded from the hub if it is not here."""
    folder = Path(find_model(name, flag))
    if folder.is_file():
        raise ValueError(f"{flag} {name}: is a file; give a Hugging Face folder (see tools/convert_gguf.py)")
    if not folder.is_dir():
        folder = from_the_hub(name, flag)
    if (folder / "model.safetensors").exists() or (folder / INDEX).exists():
        return folder
    if (folder / "adapter_config.json").exists():
        raise ValueError(
            f"{flag} {name}: is an adapter (LoRA) without its model; merge the two first, with "
            "peft: PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(folder); the "
            "final/ of a run is merged already"
        )
    if (folder / "final").is_dir():
        raise ValueError(f"{flag} {name}: is the folder of a run; its model is {folder / 'final'}")
    raise ValueError(
        f"{flag} {name}: has no model.safetensors; transformers writes one (from_pretrained, save_pretrained)"
    )


def from_the_hub(name: str, flag: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(snapshot_download(name, allow_patterns=["*.safetensors", *(f"*{end}" for end in COPIED)]))
    except (OSError, ValueError, HfHubHTTPError) as error:
        said = str(error).splitlines()[0]
        raise ValueError(f"{flag} {name}: cannot be loaded ({said}); give a Hugging Face folder") from None


def open_model(name: str, flag: str) -> Weights:
    """The tensors of a model, a tied head left out."""
    folder = find_folder(name, flag)
    try:
        config = json.loads((folder / "config.json").read_text())
        if (folder / INDEX).exists():
            files = json.loads((folder / INDEX).read_text())["weight_map"]
        else:
            with safe_open(folder / "model.safetensors", "pt") as file:
                files = dict.fromkeys(file.keys(), "model.safetensors")
    except (OSError, ValueError, LookupError, SafetensorError) as error:
        raise ValueError(f"{flag} {name}: cannot be read ({str(error).splitlines()[0]})") from None
    if not all(Path(file).name == file for file in files.values()):
        raise ValueError(f"{flag} {name}: {INDEX} names files of other folders")
    if "quantization_config" in config:
        raise ValueError(f"{flag} {name}: its weights are quantised; give the model in bfloat16 or float32")
    weights = Weights(flag, folder, files)
    if HEAD in files and is_tied(folder, flag):
        head = weights.read(HEAD)
        like_it = [other for other, shape in weights.shapes.items() if shape == head.shape and other != HEAD]
        if not any(torch.equal(weights.read(other), head) for other in like_it):
            raise ValueError(f"{flag} {name}: its config ties {HEAD} to the embedding, its weights do not")
        for column in (weights.files, weights.shapes, weights.codes):
            del column[HEAD]
    return weights


def is_tied(folder: Path, flag: str) -> bool:
    """Whether the head is the embedding. The config alone may not say: each kind has its own default."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder).get_text_config().tie_word_embeddings
    except (OSError, ValueError) as error:
        raise ValueError(f"{flag}: {folder / 'config.json'}: {str(error).splitlines()[0]}") from None


def names_in_common(models: list[Weights], skip: list[str]) -> list[str]:
    """The tensors that all models have: those with floating-point numbers that `skip` does not name a part
    of.

    Each must be in all models, with one shape. What is not goes to the screen, and the first of it into a
    ValueError.
    """
    names = sorted(set().union(*(model.files for model in models)))
    names = [name for name in names if not any(part in name for part in skip)]
    differing = [name for name in names if len({model.shape(name) for model in models}) > 1]
    if differing:
        rows = [["tensor", *(model.flag for model in models)]]
        rows += [[shown(name, True), *(model.shape(name) for model in models)] for name in differing[:LISTED]]
        say(aligned(rows))
        first = differing[0]
        other = next(model for model in models if model.shape(first) != models[0].shape(first))
        raise ValueError(
            f"{other.flag}: differs from {models[0].flag} in {len(differing)} of {len(names)} tensors, first "
            f"in {shown(first, True)}: {other.shape(first)}, there {models[0].shape(first)}; give models of "
            "one family, or --skip such tensors"
        )
    names = [name for name in names if models[-1].codes[name] in DTYPES]
    if not names:
        raise ValueError("--skip: leaves no tensor to work on")
    return names


# --- writing ------------------------------------------------------------------------------------------------


def write_header(file: BinaryIO, entries: list[tuple[str, str, tuple[int, ...]]], about: dict) -> None:
    """The beginning of a safetensors file: 8 bytes with the length of the header, and the header in JSON. The
    numbers of all tensors follow without a gap, by `write_tensor`. (safetensors' own writer wants all tensors
    in memory.)

    `entries` are (name, dtype, shape) in the order of the tensors, `about` is the file's metadata.
    """
    header, end = {"__metadata__": about}, 0
    for name, code, shape in entries:
        begin, end = end, end + math.prod(shape) * bytes_of(code)
        header[name] = {"dtype": code, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # so that the numbers begin at a multiple of 8
    file.write(struct.pack("<Q", len(text)) + text)


def write_tensor(file: BinaryIO, tensor: torch.Tensor) -> None:
    file.write(tensor.contiguous().flatten().view(torch.uint8).numpy())


def bytes_of(code: str) -> int:
    """Bytes of one number of a dtype, as a safetensors file calls it.

    >>> [bytes_of(code) for code in ("F32", "BF16", "I64", "F8_E4M3", "BOOL")]
    [4, 2, 8, 1, 1]
    """
    return 1 if code == "BOOL" else int(code.partition("_")[0].strip("BFIU")) // 8


def names_by_file(model: Weights, codes: dict[str, str]) -> dict[str, list[str]]:
    """Which tensors each file of a model has. Those with more bytes a number come first, so that each begins
    at a multiple of its bytes."""
    names: dict[str, list[str]] = {}
    for name in sorted(model.files, key=lambda name: -bytes_of(codes[name])):
        names.setdefault(model.files[name], []).append(name)
    return names


def write_all_but_weights(folder: Path, model: Weights, codes: dict[str, str]) -> None:
    """A new folder with config, tokenizer and template of a model, and with its index, if it has one, for
    tensors of these dtypes. The files of the weights are still to come."""
    folder.mkdir()
    for path in [*model.folder.glob("*"), *model.folder.glob("additional_chat_templates/*")]:
        is_copied = path.suffix in COPIED or path.name.startswith("LICENSE")
        if path.is_file() and is_copied and path.name not in NOT_COPIED:
            copy = folder / path.relative_to(model.folder)
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, copy)
    if (model.folder / INDEX).exists():
        size = sum(math.prod(shape) * bytes_of(codes[name]) for name, shape in model.shapes.items())
        index = {"metadata": {"total_size": size}, "weight_map": model.files}
        (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n")


def set_dtype(config: Path, dtype: str) -> None:
    """In a model's config.json, under the name that it has there."""
    content = json.loads(config.read_text())
    content["torch_dtype" if "torch_dtype" in content else "dtype"] = dtype
    config.write_text(json.dumps(content, indent=2) + "\n")
