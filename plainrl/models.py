"""Load a model, save it as a plain Hugging Face folder, and what there is to know about it.

transformers takes seconds to import, so the functions that use it import it: `--help` answers at once.
"""

import contextlib
import ctypes
import hashlib
import json
import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open

from plainrl import added, lora, ranks
from plainrl.flags import EMBEDDED, looks_like_a_path
from plainrl.screen import fail, or_fail, say, shown

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CHECKSUMS = "checksums.json"
WAY_OUT = "give a Hugging Face folder, a hub name or a .gguf file"


def find_model(name: str, flag: str = "--model") -> str:
    """The path or hub name that transformers gets. The embedded models, which lie in plainrl/, are found from
    any folder.

    What looks like a path and is none is refused at once, before transformers asks the hub for it. `flag` is
    how the user named the model, here and below.
    """
    if name in EMBEDDED and not os.path.isdir(name):
        return str(EMBEDDED[name])
    if looks_like_a_path(name) and not os.path.exists(name):
        fail(f"{flag} {name}: no such folder or file; {WAY_OUT}")
    return name


def path_and_options(name: str, flag: str) -> tuple[str, dict]:
    """What `from_pretrained` of transformers gets for a model. Of a .gguf file its folder, and its name."""
    path = find_model(name, flag)
    if not path.endswith(".gguf"):
        return path, {}
    try:
        version("gguf"), version("accelerate")
    except PackageNotFoundError:
        fail(f"{flag} {name}: reading a .gguf file needs two more packages; run: pip install gguf accelerate")
    return os.path.dirname(path) or ".", {"gguf_file": os.path.basename(path)}


def load_tokenizer(name: str, flag: str = "--model") -> "PreTrainedTokenizerBase":
    """The tokenizer of a folder, a hub name or a .gguf file."""
    from transformers import AutoTokenizer

    path, options = path_and_options(name, flag)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, **options)
    except (OSError, ValueError) as error:
        fail(f"{flag} {name}: cannot be loaded ({str(error).splitlines()[0]}); {WAY_OUT}")
    # No warning of a text longer than the context: `plainrl.rollout.check_prompt` looks at each prompt.
    tokenizer.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
    return tokenizer


def check_same_tokens(
    flag: str, theirs: dict[str, int], other_flag: str, ours: dict[str, int], may_miss: bool = False
) -> None:
    """Raises ValueError where an id stands for two tokens in two vocabularies, {token: id}. An id that one of
    them does not have is as bad, unless it `may_miss` it."""
    mine, other = ({id: token for token, id in vocabulary.items()} for vocabulary in (theirs, ours))
    ids = mine.keys() & other.keys() if may_miss else mine.keys() | other.keys()
    differing = sorted(id for id in ids if mine.get(id) != other.get(id))
    if differing:
        first = differing[0]
        here, there = (
            shown(repr(tokens[first]), True) if first in tokens else "no token" for tokens in (mine, other)
        )
        raise ValueError(
            f"{flag}: differs from {other_flag} in {len(differing):,} of {len(ids):,} token ids, first in "
            f"{first}: {here}, there {there}; give models with the same tokens"
        )


def load_model(
    name: str,
    activation_checkpointing: bool = False,
    lora_rank: int | None = None,
    flag: str = "--model",
    new_weights: int | None = None,
    bf16: bool = False,
) -> tuple["PreTrainedModel", "PreTrainedTokenizerBase"]:
    """Load a folder, a hub name or a .gguf file, in float32 whatever the file says (bfloat16 loses small
    updates). `new_weights` is the seed of random ones, which take the place of those in the file.

    On a GPU, and with `bf16` on a CPU, the model body computes in bfloat16 autocast over these float32
    weights; the head stays float32.
    """
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # one line a step is progress enough
    path, options = path_and_options(name, flag)
    tokenizer = load_tokenizer(name, flag)
    try:
        model = (
            read_model(path, **options) if new_weights is None else new_model(path, new_weights, **options)
        )
    except (OSError, ValueError) as error:
        if new_weights is None and is_architecture_alone(path):
            fail(f"{flag} {name}: has no weights, only an architecture; train it with --init random")
        fail(f"{flag} {name}: cannot be loaded ({str(error).splitlines()[0]}); {WAY_OUT}")
    if options and new_weights is None:
        forget_quantisation(model)
    check_head(model, name, flag)
    turn_off_dropout(model)
    tokens = max(tokenizer.get_vocab().values()) + 1
    if model.get_input_embeddings().num_embeddings > tokens:  # the rest mean nothing, and would be sampled
        model.resize_token_embeddings(tokens)
    if lora_rank:
        or_fail(lora.add_adapter, model, lora_rank, name)
    if activation_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device)
    if bf16 or device == "cuda":
        compute_in_bfloat16(model.base_model, device)
    ranks.shard(model)
    return model.train(), tokenizer


def compute_in_bfloat16(body, device: str) -> None:
    """Autocast around the forward pass of a model's body.

    It is hooks that do it: a `forward` in the place of the model's would hold the model, whose memory then
    stays taken when nobody uses it any more.
    """

    def enter(body, *inputs) -> None:
        # Without a cache of casts, which would keep copies of all weights.
        body.casting = torch.autocast(device, torch.bfloat16, enabled=body.bf16, cache_enabled=False)
        body.casting.__enter__()

    def leave(body, *inputs_and_output) -> None:
        body.casting.__exit__(None, None, None)

    body.bf16 = True
    body.register_forward_pre_hook(enter)
    body.register_forward_hook(leave, always_call=True)


@contextlib.contextmanager
def in_float32(model):
    """In here nothing of the model is computed in bfloat16."""
    bodies = [module for module in model.modules() if getattr(module, "bf16", False)]
    for body in bodies:
        body.bf16 = False
    try:
        yield
    finally:
        for body in bodies:
            body.bf16 = True


def forget_quantisation(model) -> None:
    """A .gguf file was dequantised into ordinary weights. The marks that this leaves behind would forbid
    saving."""
    model.hf_quantizer, model.is_quantized = None, False
    for owner, mark in ((model, "quantization_method"), (model.config, "quantization_config")):
        if hasattr(owner, mark):
            delattr(owner, mark)


def check_head(model, name: str, flag: str) -> None:
    """Refuse a model whose logits are more than head times hidden state: the scorer computes no more than
    that."""
    config = model.config.get_text_config()
    for scaling in ("final_logit_softcapping", "logit_scale", "logits_scaling"):
        if getattr(config, scaling, None) not in (None, 1, 1.0):
            fail(
                f"{flag} {name}: its logits are changed after the head ({scaling}), which the scorer does "
                "not do; use another model"
            )
    if model.get_output_embeddings() is None:
        fail(f"{flag} {name}: is no causal language model with an output head")


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
    """The first 16 hex digits of a hash over all weights: which model a run started from. What a script has
    added to it does not count."""
    digest = hashlib.sha256()
    weights, _ = added.split(ranks.full_weights(model), model)
    for name, weight in sorted(lora.merged(weights, model).items()):
        digest.update(name.encode())
        digest.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy())
    return ranks.gather([digest.hexdigest()[:16]])[0]


def save_model(
    folder: Path, model, tokenizer, extra: dict | None = None, keep_previous: bool = False
) -> None:
    """Write a plain Hugging Face folder aside, then rename it: a kill leaves the old one or the new one,
    never a half. Its files' checksums are written last. A disk that is full ends the run in one line, but
    only after last.old/ beside it has made room.

    `extra` holds further files: {"name.json": what json writes, "name.pt": what torch writes}. With
    `keep_previous` the folder that was there stays as folder.old. A link leads to where all this is done.
    """
    weights = ranks.full_weights(model)
    if not ranks.MAIN:
        return
    spare, folder = folder.with_name("last.old"), real_folder(folder)
    aside, old = folder.with_name(folder.name + ".tmp"), folder.with_name(folder.name + ".old")
    try:
        take_back(folder)
        shutil.rmtree(old, ignore_errors=True)  # room for the new one
        try:
            write_folder(aside, model, tokenizer, weights, extra or {})
        except Exception as error:
            if not (is_full(error) and spare.is_dir() and spare.with_name("last").is_dir()):
                raise
            say(f"{folder}: the disk is full; {spare.name}/ is removed, and it is written once more")
            shutil.rmtree(spare)
            write_folder(aside, model, tokenizer, weights, extra or {})
        if folder.exists():
            folder.rename(old)
        aside.rename(folder)
    except Exception as error:
        if not is_of_the_disk(error):
            raise
        shutil.rmtree(aside, ignore_errors=True)  # what was half written needs the room
        fail(
            f"{folder}: cannot be written ({reason(error)}); what was saved before is whole; mend this, then "
            "go on with --resume"
        )
    if not keep_previous:
        shutil.rmtree(old, ignore_errors=True)


def write_folder(folder: Path, model, tokenizer, weights: dict, extra: dict) -> None:
    """All files of `save_model` anew, in a folder of their own."""
    shutil.rmtree(folder, ignore_errors=True)
    plain, own = added.split(weights, model)
    model.save_pretrained(folder, state_dict=lora.merged(plain, model))
    lora.save_adapter(folder / "adapter", weights, model)
    added.save(folder, own, model)
    for path in folder.rglob("*.safetensors"):  # they come with rights for their owner alone
        shutil.copymode(folder / "config.json", path)
    tokenizer.save_pretrained(folder)
    for name, content in extra.items():
        if name.endswith(".json"):
            (folder / name).write_text(json.dumps(content))
        else:
            torch.save(content, folder / name)
    (folder / CHECKSUMS).write_text(json.dumps(checksums(folder)))


def take_back(folder: Path) -> None:
    """A kill between the two renames of `save_model` left folder.old alone: it gets its name again."""
    folder = real_folder(folder)
    old = folder.with_name(folder.name + ".old")
    if old.is_dir() and not folder.exists():
        old.rename(folder)


def real_folder(folder: Path) -> Path:
    """Where a link leads, so that what is written beside and renamed is on the same disk."""
    return folder.resolve() if folder.is_symlink() else folder


def is_of_the_disk(error: Exception) -> bool:
    """Whether a file could not be written. Of the libraries that write, each has an error of its own for
    it."""
    text = str(error)
    written = ("os error", "Os {", "PytorchStreamWriter", "unexpected pos")  # tokenizers, safetensors, torch
    return isinstance(error, OSError) or any(part in text for part in written)


def is_full(error: Exception) -> bool:
    """Whether it was for want of room. torch's writer does not say why."""
    signs = ("No space left", "quota", "os error 28", "StorageFull", "PytorchStreamWriter", "unexpected pos")
    return any(sign in str(error) for sign in signs)


def reason(error: Exception) -> str:
    """Why a file could not be written, in words."""
    if is_full(error) and not isinstance(error, OSError):
        return "the disk seems to be full"
    return str(error).splitlines()[0]


def checksums(folder: Path) -> dict[str, str]:
    """{file: SHA-256} of everything in the folder but the list itself, several files at once."""
    names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
    names = [name for name in names if name != CHECKSUMS]
    with ThreadPoolExecutor(4) as pool:
        return dict(zip(names, pool.map(lambda name: sha256(folder / name), names)))


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def damage(folder: Path) -> str | None:
    """What is wrong with a saved folder, None where nothing is. Of one without checksums (older, or of
    others) no more is known than that its files of weights are whole."""
    if not folder.is_dir():
        return "is missing"
    if not (folder / CHECKSUMS).exists():
        return damage_without_checksums(folder)
    try:
        listed = json.loads((folder / CHECKSUMS).read_text())
        here = checksums(folder)
        changed = [name for name, digest in listed.items() if here.get(name) != digest]
    except (OSError, ValueError, AttributeError) as error:
        return f"is damaged ({CHECKSUMS} or a file beside it cannot be read: {type(error).__name__})"
    if not changed and {"config.json", "tokenizer.json"} & listed.keys():
        return None
    missing = "is missing" if changed and changed[0] not in here else "is not what was written"
    return f"is damaged ({(changed or [CHECKSUMS])[0]} {missing})"


def damage_without_checksums(folder: Path) -> str | None:
    if (folder / "chosen.json").exists():  # only written with them
        return f"is damaged ({CHECKSUMS} is missing)"
    files = [*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")]
    if not files or not (folder / "config.json").exists():
        return "is damaged (its weights or config.json are missing)"
    for path in files:
        try:
            if path.suffix == ".safetensors":
                safe_open(path, "pt")  # compares the sizes of all tensors with that of the file
        except (OSError, SafetensorError) as error:
            return f"is damaged ({path.name}: {str(error).splitlines()[0]})"
    return None


def load_weights(folder: Path, model) -> None:
    """Copy the weights of a saved folder into a model of the same shape. One that is damaged ends the run."""
    ranks.wait_for_all()  # until the main rank has written it
    problem = ranks.gather([damage(folder) if ranks.MAIN else None])[0] or put_weights(folder, model)
    if problem:
        fail(f"{folder}: {problem}; put a copy of it back, or start anew with another --out-dir")


def put_weights(folder: Path, model) -> str | None:
    """Copy the weights of a saved folder into a model; returns what is wrong with them, None where nothing
    is. Every weight of the model must be there: none is left as it was."""
    ranks.wait_for_all()
    saved, problem = {}, None
    if ranks.MAIN:
        try:
            saved = read_weights(folder, model)
        except ValueError as error:
            problem = f"is damaged ({error})"
    problem = ranks.gather([problem])[0]
    if problem is None:
        ranks.load_weights(model, saved, strict=not lora.has_adapter(model))
    return problem


def read_weights(folder: Path, model) -> dict[str, torch.Tensor]:
    """The weights of a saved folder by this model's names. Raises ValueError where they are not all there,
    or of another shape."""
    if lora.has_adapter(model):
        try:
            saved = lora.load_adapter(folder / "adapter")
        except (OSError, SafetensorError) as error:
            raise ValueError(f"adapter: {str(error).splitlines()[0]}") from None
        needed = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    else:
        saved = read_model(folder).state_dict() | added.load(folder, model)
        needed = model.state_dict()
    for name, weight in needed.items():
        if name not in saved or saved[name].shape != weight.shape:
            raise ValueError(f"{name} is missing or of another shape")
    return saved


def read_model(path: str | Path, **kwargs):
    """The model in a folder or of a hub name, in float32. Raises ValueError where a weight is missing, which
    transformers would fill with random numbers."""
    from transformers import AutoModelForCausalLM

    settings = {"dtype": torch.float32, "output_loading_info": True} | kwargs
    try:
        model, found = AutoModelForCausalLM.from_pretrained(path, **settings)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ValueError(str(error).splitlines()[0]) from None
    missing = sorted(found["missing_keys"])
    if missing:
        raise ValueError(f"{len(missing)} of its weights are missing, {missing[0]} among them")
    return model


def new_model(path: str | Path, seed: int, **kwargs):
    """A model of the architecture in a folder or of a hub name, with weights that its class draws from the
    seed, in float32. The random numbers of the caller go on as if nothing had been drawn."""
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    config = AutoConfig.from_pretrained(path, **kwargs)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    try:
        model.generation_config = GenerationConfig.from_pretrained(path)  # `eos_ids` looks into it
    except OSError:
        pass  # not every model has one: what config.json says stands
    return model


def is_architecture_alone(path: str | Path) -> bool:
    """Is it a folder of a model whose weights are not there?"""
    folder = Path(path)
    weights = [*folder.glob("*.safetensors*"), *folder.glob("*.bin*"), *folder.glob("*.gguf")]
    return (folder / "config.json").exists() and not weights


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
