"""Load a model, save it as a plain Hugging Face folder, and what there is to know about it.

transformers takes seconds to import, so the functions that use it import it: `--help` answers at once.
"""

import ctypes
import hashlib
import json
import os
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from plainrl import lora, ranks
from plainrl.screen import fail, or_fail

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

EMBEDDED = Path(__file__).resolve().parent / "tiny"  # models/tiny, wherever plainrl/ was copied to
WAY_OUT = "give a Hugging Face folder, a hub name or a .gguf file"


def find_model(name: str) -> str:
    """The path or hub name that transformers gets. models/tiny, which lies in plainrl/, is found from any
    folder.

    What looks like a path and is none is refused at once, before transformers asks the hub for it.
    """
    if name == "models/tiny" and not os.path.isdir(name):
        return str(EMBEDDED)
    looks_like_a_path = name.startswith((".", "/", "~")) or name.count("/") > 1 or name.endswith(".gguf")
    if looks_like_a_path and not os.path.exists(name):
        fail(f"--model {name}: no such folder or file; {WAY_OUT}")
    return name


def load_model(
    name: str, activation_checkpointing: bool = False, lora_rank: int | None = None
) -> tuple["PreTrainedModel", "PreTrainedTokenizerBase"]:
    """Load a folder, a hub name or a .gguf file, in float32 whatever the file says (bfloat16 loses small
    updates).

    On a GPU the model body computes in bfloat16 autocast over these float32 weights; the head stays float32.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # one line a step is progress enough
    path = find_model(name)
    kwargs = {}
    if path.endswith(".gguf"):
        try:
            version("gguf"), version("accelerate")
        except PackageNotFoundError:
            fail(
                f"--model {name}: reading a .gguf file needs two more packages; run: pip install gguf "
                "accelerate"
            )
        path, kwargs = os.path.dirname(path) or ".", {"gguf_file": os.path.basename(path)}
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, **kwargs)
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, **kwargs)
    except (OSError, ValueError) as error:
        fail(f"--model {name}: cannot be loaded ({str(error).splitlines()[0]}); {WAY_OUT}")
    if kwargs:
        forget_quantisation(model)
    check_head(model, name)
    turn_off_dropout(model)
    tokens = max(tokenizer.get_vocab().values()) + 1
    if model.get_input_embeddings().num_embeddings > tokens:  # the rest mean nothing, and would be sampled
        model.resize_token_embeddings(tokens)
    if lora_rank:
        or_fail(lora.add_adapter, model, lora_rank, name)
    if activation_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if torch.cuda.is_available():
        model.to("cuda")
        body = model.base_model  # without a cache of casts, which would keep copies of all weights
        body.forward = torch.autocast("cuda", torch.bfloat16, cache_enabled=False)(body.forward)
    ranks.shard(model)
    return model.train(), tokenizer


def forget_quantisation(model) -> None:
    """A .gguf file was dequantised into ordinary weights. The marks that this leaves behind would forbid
    saving."""
    model.hf_quantizer, model.is_quantized = None, False
    for owner, mark in ((model, "quantization_method"), (model.config, "quantization_config")):
        if hasattr(owner, mark):
            delattr(owner, mark)


def check_head(model, name: str) -> None:
    """Refuse a model whose logits are more than head times hidden state: the scorer computes no more than
    that."""
    config = model.config.get_text_config()
    for scaling in ("final_logit_softcapping", "logit_scale", "logits_scaling"):
        if getattr(config, scaling, None) not in (None, 1, 1.0):
            fail(
                f"--model {name}: its logits are changed after the head ({scaling}), which the scorer does "
                "not do; "
                "use another model"
            )
    if model.get_output_embeddings() is None:
        fail(f"--model {name}: is no causal language model with an output head")


def turn_off_dropout(model) -> None:
    """Training and sampling must be the same policy, so nothing is dropped out."""
    for module in model.modules():
        for dropout in {"p", "dropout", "attention_dropout", "hidden_dropout"} & vars(module).keys():
            if isinstance(getattr(module, dropout), float):
                setattr(module, dropout, 0.0)


def check_model_name(name: str) -> None:
    """Find out cheaply whether there is a model of this name."""
    from transformers import AutoConfig

    path = find_model(name)
    try:
        if not path.endswith(".gguf"):
            AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        fail(f"--model {name}: cannot be loaded ({str(error).splitlines()[0]}); {WAY_OUT}")


def eos_ids(model, tokenizer) -> list[int]:
    """Every id that ends a completion; the one thing taken from the model's generation_config.json."""
    ids = {tokenizer.eos_token_id}
    for config in (model.generation_config, model.config):
        value = getattr(config, "eos_token_id", None)
        ids |= set(value) if isinstance(value, list) else {value}
    ids.discard(None)
    if not ids:
        fail("--model: neither its tokenizer nor its config names an EOS token, so no completion could end")
    return sorted(ids)


def model_hash(model) -> str:
    """The first 16 hex digits of a hash over all weights: which model a run started from."""
    digest = hashlib.sha256()
    for name, weight in sorted(lora.merged(ranks.full_weights(model), model).items()):
        digest.update(name.encode())
        digest.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy())
    return ranks.gather([digest.hexdigest()[:16]])[0]


def save_model(folder: Path, model, tokenizer, extra: dict | None = None) -> None:
    """Write a plain Hugging Face folder aside, then rename it: a kill leaves the old one or the new one,
    never a half.

    `extra` holds further files: {"name.json": what json writes, "name.pt": what torch writes}.
    """
    weights = ranks.full_weights(model)
    if not ranks.MAIN:
        return
    aside, old = folder.with_name(folder.name + ".tmp"), folder.with_name(folder.name + ".old")
    shutil.rmtree(aside, ignore_errors=True)
    model.save_pretrained(aside, state_dict=lora.merged(weights, model))
    lora.save_adapter(aside / "adapter", weights, model)
    tokenizer.save_pretrained(aside)
    for name, content in (extra or {}).items():
        if name.endswith(".json"):
            (aside / name).write_text(json.dumps(content))
        else:
            torch.save(content, aside / name)
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    aside.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def load_weights(folder: Path, model) -> None:
    """Copy the weights of a saved folder into a model of the same shape."""
    from transformers import AutoModelForCausalLM

    ranks.wait_for_all()  # until the main rank has written it
    if lora.has_adapter(model):
        saved = lora.load_adapter(folder / "adapter") if ranks.MAIN else {}
        ranks.load_weights(model, saved, strict=False)
    else:
        saved = {}
        if ranks.MAIN:
            saved = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
        ranks.load_weights(model, saved)


# --- the machine --------------------------------------------------------------------------------------------


def device_name() -> str:
    return (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"cpu, {torch.get_num_threads()} threads"
    )


def peak_gb() -> float | None:
    """Peak memory so far in GB: of the GPU where there is one, else of this process. None where nobody
    counts it."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e9


def keep_freed_memory() -> None:
    """Tell glibc to keep freed pages for the next tensor. Without it a CPU step spends much of its time in
    page faults."""
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return  # no glibc here
    M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
    mallopt(M_MMAP_THRESHOLD, 32 << 20)  # an old glibc knows no more than this
    mallopt(M_MMAP_THRESHOLD, 1 << 30)
    mallopt(M_TRIM_THRESHOLD, -1)  # never trim
    mallopt(M_TOP_PAD, 256 << 20)
