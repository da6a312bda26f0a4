"""LoRA: what is saved and pushed is the model that was trained, and nothing but the adapter moves."""

import peft
import pytest
import torch
import toys
from mutants import mutant
from random_model import random_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import grpo
from plainrl import lora, models


@mutant(
    "adapter without its scaling",
    "plainrl/lora.py",
    "plain[layer] + SCALING * update",
    "plain[layer] + update",
)
@mutant(
    "a base that is trained beside its adapter",
    "plainrl/lora.py",
    'weight.requires_grad_("lora_" in parameter)',
    "weight.requires_grad_(True)",
)
def test_merged_weights_are_those_of_the_adapted_model(tmp_path):
    """Catches another scaling, A and B the wrong way round, layers left out, and a base that is trained."""
    model = random_model(torch.float64, kind="qwen2")
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    lora.add_adapter(model, 4, "somewhere")
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if ".lora_" in name}
    for name, weight in model.named_parameters():
        if ".lora_" in name:
            torch.nn.init.normal_(weight, std=0.1)
    ids = torch.tensor([[3, 0, 1, 7, 9, 20, 33]])
    adapted = model.double()(ids).logits
    plain = random_model(torch.float64, kind="qwen2")
    plain.load_state_dict(lora.merged(model.state_dict(), model))
    assert torch.allclose(plain(ids).logits, adapted, rtol=0, atol=1e-10)
    moved = {name for name, weight in plain.state_dict().items() if not torch.equal(weight, before[name])}
    assert moved == {name for name in before if "_proj.weight" in name}

    lora.save_adapter(tmp_path / "adapter", model.state_dict(), model)
    plain.load_state_dict(before)
    theirs = peft.PeftModel.from_pretrained(plain, tmp_path / "adapter")  # peft reads it, and gives the same
    assert torch.allclose(theirs(ids).logits, adapted, rtol=0, atol=1e-6)


def test_a_run_trains_the_adapter_alone_and_goes_on(toy_model, tmp_path, quick):
    """Catches a base that moves, a final model without its adapter, and a resumed run that begins with
    another adapter."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    flags = toys.quick_flags(toy_model, whole, lora_rank=4, lr=1e-2)
    grpo.main(grpo.Args(**flags), task=toys.HashTask())
    grpo.main(grpo.Args(**flags | {"out_dir": broken, "steps": 4}), task=toys.HashTask())
    grpo.main(grpo.Args(**flags | {"out_dir": broken, "resume": True}), task=toys.HashTask())
    for name in ("model.safetensors", "adapter/adapter_model.safetensors"):
        ours, theirs = load_file(whole / "last" / name), load_file(broken / "last" / name)
        assert all(torch.equal(ours[key], theirs[key]) for key in ours), name
    first, last = load_file(f"{toy_model}/model.safetensors"), load_file(whole / "last/model.safetensors")
    moved = {name for name in first if not torch.equal(first[name], last[name])}
    assert first.keys() == last.keys() and moved == {name for name in first if "_proj.weight" in name}

    base, adapter = AutoModelForCausalLM.from_pretrained(toy_model), whole / "final/adapter"
    theirs = peft.PeftModel.from_pretrained(base, adapter).merge_and_unload().state_dict()
    ours = load_file(whole / "final/model.safetensors")
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-6) for name in ours)


def test_peft_is_asked_for_by_name(toy_model, monkeypatch):
    """Catches a traceback where one package is missing."""
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(SystemExit, match="pip install peft"):
        models.load_model(toy_model, lora_rank=2)
