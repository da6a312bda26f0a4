"""plainrl/weight_files.py: tensors of every kind, written and read again, and models that cannot be used."""

import doctest
import json
import shutil
from pathlib import Path

import pytest
import torch
from mutants import mutant
from safetensors.torch import load_file, save_file

from plainrl import weight_files


def test_doctests():
    """Catches examples that are wrong."""
    assert doctest.testmod(weight_files).failed == 0


@mutant(
    "vector: tensors where others are said to be",
    "plainrl/weight_files.py",
    "begin, end = end, end + math.prod(shape) * bytes_of(code)",
    "begin, end = end, end + math.prod(shape[:1]) * bytes_of(code)",
)
def test_numbers_of_every_kind_come_back_as_they_were(tmp_path):
    """Catches a header that safetensors does not read, or tensors that are shifted in the file."""
    given = {
        "f": torch.randn(3, 5),
        "scalar": torch.tensor(2.5),
        "h": torch.randn(7).half(),
        "b": torch.randn(2, 2, 2).bfloat16(),
        "i": torch.arange(3),
        "none": torch.zeros(0, 4),
        "mask": torch.tensor([True, False, True]),
    }
    codes = dict(f="F32", scalar="F32", h="F16", b="BF16", i="I64", none="F32", mask="BOOL")
    entries = [(name, codes[name], tuple(tensor.shape)) for name, tensor in given.items()]
    with open(tmp_path / "x", "wb") as file:
        weight_files.write_header(file, entries, {"format": "pt"})
        for tensor in given.values():
            weight_files.write_tensor(file, tensor)
    found = load_file(tmp_path / "x")
    assert found.keys() == given.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in given.items())
    save_file(given, tmp_path / "theirs", {"format": "pt"})
    assert (tmp_path / "x").stat().st_size == pytest.approx((tmp_path / "theirs").stat().st_size, abs=64)
    weights = weight_files.Weights("--to", tmp_path, dict.fromkeys(given, "x"))
    assert weights.codes == codes and all(torch.equal(weights.read(name), given[name]) for name in given)


def broken(kind: str, good: str, folder: Path) -> Path:
    """A model that cannot be used."""
    shutil.copytree(good, folder)
    path, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    weights = load_file(path)
    config = json.loads((folder / "config.json").read_text())
    if kind == "file":
        return folder / "config.json"
    if kind == "run":
        folder.rename(folder.with_name("final"))
        return folder.parent
    if kind == "adapter":
        path.rename(folder / "adapter_model.safetensors")
        (folder / "adapter_config.json").write_text("{}")
    if kind == "pickle":
        path.rename(folder / "pytorch_model.bin")
    if kind == "half":
        path.write_bytes(path.read_bytes()[:-8])
    if kind == "outside":
        index.write_text(json.dumps({"weight_map": dict.fromkeys(weights, "../model/model.safetensors")}))
    if kind == "shard":
        file = "model-00001-of-00002.safetensors"
        index.write_text(json.dumps({"weight_map": dict.fromkeys(weights, file)}))
    if kind == "no index":
        index.write_text("{}")
    if kind == "quantised":
        (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {}}))
    if kind == "tied":
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"] + 1
        save_file(weights, path, {"format": "pt"})
    return folder


@mutant(
    "vector: files outside of the folder",
    "plainrl/weight_files.py",
    "if not all(Path(file).name == file for file in files.values()):",
    "if False:",
    case="outside-names files of other folders",
)
@mutant(
    "vector: a head of its own, unseen",
    "plainrl/weight_files.py",
    "if HEAD in files and is_tied(folder, flag):",
    "if False:",
    case="tied-its config ties lm_head.weight to the embedding, its weights do not",
)
@pytest.mark.parametrize(
    "kind, said",
    [
        ("file", "is a file; give a Hugging Face folder"),
        ("run", "is the folder of a run; its model is .*final"),
        ("adapter", r"is an adapter \(LoRA\) without its model; merge the two first"),
        ("pickle", "has no model.safetensors"),
        ("half", "cannot be read"),
        ("outside", "names files of other folders"),
        ("shard", "model-00001-of-00002.safetensors cannot be read"),
        ("no index", "cannot be read .'weight_map'"),
        ("quantised", "its weights are quantised"),
        ("tied", "its config ties lm_head.weight to the embedding, its weights do not"),
    ],
)
def test_a_model_that_cannot_be_used_is_named(toy_model, tmp_path, kind, said):
    """Catches a traceback, and a message that does not say by which flag the model was given."""
    with pytest.raises(ValueError, match=f"^--plus.*{said}"):
        weight_files.open_model(str(broken(kind, toy_model, tmp_path / "model")), "--plus")


def test_models_of_the_hub(toy_model, tmp_path, monkeypatch):
    """Catches a hub name that is taken for a folder, and an error of the hub that is no line."""
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, allow_patterns: toy_model)
    assert len(weight_files.open_model("org/model", "--to").files) == 20

    def fails(name, allow_patterns):
        raise OSError("not found\nand more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fails)
    with pytest.raises(ValueError, match=r"^--to org/model: cannot be loaded \(not found\); give a Hugging"):
        weight_files.open_model("org/model", "--to")
