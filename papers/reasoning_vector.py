r"""Reasoning vectors: what RL added to one model, as a difference of weights, added to another one.

Reasoning Vectors (arXiv 2509.01363). Nothing is trained:

    v      = theta_plus - theta_minus            plus: a model after RL, minus: its sibling after SFT
    theta' = theta_to + alpha m v                m is 1, and 0 for the tensors that --skip names

The models need the same tensors, the same token ids and one ancestor, so that they lie in one basin: on the
line between two of them the loss stays below that of the worse end. Names, shapes and token ids are checked
here. Whether there is such a basin nobody sees from the weights alone.

Everything is read in float32, v and the sum are float32, and the sum is saved in the dtype that the tensor
has in --to. This goes tensor by tensor, so that models may be larger than the memory. A tied weight counts
once. The result is a Hugging Face folder with everything else copied from --to.

The paper takes alpha = 1 and m = 1, and alpha = -1 for an ablation. Two things to know:
[D1] The paper's abstract says that both donors begin at the same model, others read that RL goes on from the
     SFT model. Either way v is a vector, and the command is the same.
[D2] What counts is what was saved. A donor in bfloat16 is known to 2^-8 of each weight, and RL at a small
     learning rate moves most weights by less: v is then zeros and rounding. The report says how much of it.

    python papers/reasoning_vector.py --plus runs/grpo/chain-seed0/final --minus runs/sft/chain-seed0/final \
        --to runs/other/final --out models/sum
    python papers/reasoning_vector.py --plus A --minus B --out vector.safetensors             keeps the vector
    python papers/reasoning_vector.py --vector vector.safetensors --to C --alpha 0.5 --out models/half

Every formula is about one tensor of any shape: theta is what it holds in one of the models.
"""

import contextlib
import hashlib
import json
import math
import os
import shutil
import struct
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError, safe_open

sys.path.append(str(Path(__file__).resolve().parents[1]))  # where plainrl/ lies

from plainrl.flags import Number, check_flags, check_model_is_there, looks_like_a_path, parse
from plainrl.models import CHECKSUMS, EMBEDDED, checksums
from plainrl.results import aligned
from plainrl.screen import fail, in_one_process, or_fail, say, shown

TOP = 8  # tensors in the table on the screen
MUCH = 0.5  # share of the weights that is worth a warning
CHUNK = 2**22  # numbers that are summed in float64 at once
HEAD = "lm_head.weight"  # the output head, as every model of transformers calls it that may tie it
TOKEN_TENSORS = ("embed", "wte", HEAD)  # parts of the names of tensors that have a row for every token
INDEX = "model.safetensors.index.json"
REPORT = "reasoning_vector.json"
COPIED = (".json", ".jinja", ".txt", ".model", ".tiktoken", ".py")  # config, tokenizer, template, code
NOT_COPIED = {INDEX, CHECKSUMS, REPORT, "adapter_config.json", "chosen.json", "state.json"}
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}
CODES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}  # what a safetensors file calls --dtype


@dataclass
class Args:
    plus: str | None = None
    """model after RL: a Hugging Face folder or hub name"""
    minus: str | None = None
    """its sibling after SFT, which is subtracted"""
    vector: Path | None = None
    """a vector that was kept before, instead of --plus and --minus"""
    to: str | None = None
    """model that the vector is added to; without it the vector is kept"""
    alpha: Number = 1.0
    """how much of the vector is added; -1 takes it away"""
    skip: tuple[str, ...] = ()
    """tensors that stay as they are in --to, by parts of their names: `embed lm_head` where vocabularies are
    padded to different sizes, `layers.0.` for a layer"""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """what the sum is saved in (default: each tensor in its dtype in --to)"""
    out: Path | None = None
    """folder for the sum, or file NAME.safetensors for the vector; must not exist"""


# --- the mathematics ----------------------------------------------------------------------------------------


def difference(plus: torch.Tensor, minus: torch.Tensor) -> torch.Tensor:
    """v = theta_plus - theta_minus, in float32.

    >>> plus, minus = torch.tensor([1.004, -0.501]), torch.tensor([1.0, -0.5])
    >>> [round(number, 4) for number in difference(plus, minus).tolist()]
    [0.004, -0.001]
    >>> difference(plus.bfloat16(), minus.bfloat16()).tolist()  # [D2]: the spacing above 1 is 0.0078125
    [0.0078125, 0.0]
    """
    return plus.float() - minus.float()


def added(theta: torch.Tensor, v: torch.Tensor, alpha: float) -> torch.Tensor:
    """theta_to + alpha v, in float32."""
    return theta.float() + alpha * v


def dot(a: torch.Tensor, b: torch.Tensor) -> float:
    """The sum over a * b, in float64: over 10^8 weights float32 would lose half of its digits."""
    pairs = zip(a.flatten().split(CHUNK), b.flatten().split(CHUNK))
    return sum((x.double() @ y.double()).item() for x, y in pairs)


@dataclass
class Sums:
    """Of the weights of one tensor, or of all: what the report is made of."""

    tensor: str
    weights: int = 0
    vv: float = 0.0  # |v|^2
    tt: float = 0.0  # |theta|^2, of --to, or of --minus where there is no --to
    dd: float = 0.0  # |theta_to - theta_minus|^2
    vd: float = 0.0  # <v, theta_to - theta_minus>
    zeros: int = 0  # weights of v that are exactly 0
    stayed: int = 0  # weights that are saved as they would be without v


def sums_of(name: str, v, theta, minus=None, saved=None) -> Sums:
    """Those of one tensor. `minus` and `saved` are None where there is none."""
    theta = theta.float()
    found = Sums(name, v.numel(), vv=dot(v, v), tt=dot(theta, theta), zeros=(v == 0).sum().item())
    if saved is not None:
        found.stayed = (saved == theta.to(saved.dtype)).sum().item()
        if minus is not None:
            apart = theta - minus.float()
            found.dd, found.vd = dot(apart, apart), dot(v, apart)
    return found


def in_all(report: list[Sums]) -> Sums:
    """Of all tensors together."""
    columns = [field.name for field in fields(Sums)][1:]
    totals = {column: sum(getattr(sums, column) for sums in report) for column in columns}
    return Sums(f"all {len(report)}", **totals)


def measures(sums: Sums) -> dict[str, float | None]:
    """The columns of the report; None where there is nothing to divide by."""
    across = math.sqrt(sums.vv * sums.dd)
    return {
        "|v|": math.sqrt(sums.vv),
        "|v|/|theta|": math.sqrt(sums.vv / sums.tt) if sums.tt else None,
        "cos": sums.vd / across if across else None,
        "zeros": sums.zeros / sums.weights,
        "not moved": sums.stayed / sums.weights,
    }


# --- weights on the disk ------------------------------------------------------------------------------------


class Weights:
    """The tensors of a model, or of a vector, by name. They stay on the disk until one is asked for."""

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


def find_folder(name: str, flag: str) -> Path:
    """The folder of a model, loaded from the hub if it is not here. Raises ValueError with the way out."""
    folder = Path(name).expanduser()
    if name in EMBEDDED and not folder.is_dir():
        folder = Path(EMBEDDED[name])
    if folder.is_file():
        raise ValueError(f"{flag} {name}: is a file; give a Hugging Face folder (see tools/convert_gguf.py)")
    if not folder.is_dir():
        check_model_is_there(name, flag)
        if looks_like_a_path(name):
            raise ValueError(f"{flag} {name}: no such folder; give a Hugging Face folder or a hub name")
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
    """The tensors of a model, a tied head left out. Raises ValueError where they cannot be used."""
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


def open_vector(path: Path) -> tuple[Weights, dict[str, str]]:
    """A vector that was kept, and what its file says of it. Raises ValueError for any other file."""
    try:
        with safe_open(path, "pt") as file:
            names, said = file.keys(), file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise ValueError(f"--vector {path}: cannot be read ({str(error).splitlines()[0]})") from None
    if not {"plus", "minus", "skip", "tokens", "dtypes"} <= said.keys():
        raise ValueError(f"--vector {path}: is no vector that this script kept")
    return Weights("--vector", path.parent, dict.fromkeys(names, path.name)), said


# --- do the models go together? -----------------------------------------------------------------------------


def names_in_common(models: list[Weights], skip: list[str]) -> list[str]:
    """The tensors that are worked on: all that `skip` does not name and that are floating-point numbers.

    They must be in all models, with one shape. What is not goes to the screen as a table, and the first of it
    into a ValueError.
    """
    names = sorted(set().union(*(model.files for model in models)))
    names = [name for name in names if not any(part in name for part in skip)]
    differing = [name for name in names if len({model.shape(name) for model in models}) > 1]
    if differing:
        show_table(
            ["tensor", *(model.flag for model in models)],
            [[name, *(model.shape(name) for model in models)] for name in differing],
        )
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


def check_skip(skip: tuple[str, ...], model: Weights) -> None:
    for part in skip:
        if not any(part in name for name in model.files):
            name = shown(min(model.files), True)
            raise ValueError(f"--skip {part}: is in no tensor's name; one of them is {name}")


def check_tokens(vocabularies: dict[str, dict[str, int]], names: list[str]) -> None:
    """Raises ValueError where an id stands for two tokens in two models. An id that one of them does not have
    is as bad, unless the tensors that have a row for it are not in `names`: they are skipped.

    `vocabularies` are {token: id}, by the flag of their model.
    """
    by_id = [{id: token for token, id in vocabulary.items()} for vocabulary in vocabularies.values()]
    ids = sorted(set().union(*by_id))
    if not any(part in name for name in names for part in TOKEN_TENSORS):
        ids = [id for id in ids if all(id in tokens for tokens in by_id)]
    differing = [id for id in ids if len({tokens.get(id) for tokens in by_id}) > 1]
    if not differing:
        return
    cells = {id: [repr(tokens[id]) if id in tokens else "no token" for tokens in by_id] for id in differing}
    show_table(["id", *vocabularies], [[str(id), *row] for id, row in cells.items()])
    first, *others = zip(vocabularies, cells[differing[0]])  # (flag, its token) each
    other = next(pair for pair in others if pair[1] != first[1])
    raise ValueError(
        f"{other[0]}: differs from {first[0]} in {len(differing)} of {len(ids)} token ids, first in "
        f"{differing[0]}: {shown(other[1], True)}, there {shown(first[1], True)}; give models with one "
        "tokenizer, or, where tokens are missing and none is another, --skip embed lm_head"
    )


def vocabulary_of(model: Weights) -> dict[str, int]:
    """{token: id}. Raises ValueError where there is no tokenizer."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(model.folder).get_vocab()
    except (OSError, ValueError) as error:
        said = str(error).splitlines()[0]
        raise ValueError(f"{model.flag}: the tokenizer in {model.folder} cannot be read ({said})") from None


def hash_of(vocabulary: dict[str, int]) -> str:
    """16 hex digits that two vocabularies share where they have the same tokens with the same ids."""
    return hashlib.sha256(repr(sorted(vocabulary.items())).encode()).hexdigest()[:16]


def show_table(head: list[str], rows: list[list[str]]) -> None:
    say(aligned([head, *([shown(cell, True) for cell in row] for row in rows[:TOP])]))
    if len(rows) > TOP:
        say(f"and {len(rows) - TOP} more")


# --- writing ------------------------------------------------------------------------------------------------


def write_tensors(
    path: Path, entries: list[tuple[str, str, tuple[int, ...]]], tensors: Iterable[torch.Tensor], said: dict
) -> None:
    """A safetensors file, tensor by tensor; safetensors' own writer wants all of them in memory.

    `entries` are (name, dtype, shape) in the order of `tensors`, `said` is the file's metadata. The format: 8
    bytes with the length of the header, the header in JSON, then the numbers of all tensors without a gap.
    """
    header, end = {"__metadata__": said}, 0
    for name, code, shape in entries:
        begin, end = end, end + math.prod(shape) * bytes_of(code)
        header[name] = {"dtype": code, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # so that the numbers begin at a multiple of 8
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors:
            file.write(tensor.contiguous().flatten().view(torch.uint8).numpy())


def bytes_of(code: str) -> int:
    """Bytes of one number of a dtype, as a safetensors file calls it.

    >>> [bytes_of(code) for code in ("F32", "BF16", "I64", "F8_E4M3", "BOOL")]
    [4, 2, 8, 1, 1]
    """
    return 1 if code == "BOOL" else int(code.partition("_")[0].strip("BFIU")) // 8


@contextlib.contextmanager
def written_aside(out: Path):
    """A path beside `out` to write to, which becomes `out` at the end. Whatever ends the script earlier
    leaves nothing behind."""
    aside = out.with_name(f"{out.name}.{os.getpid()}.tmp")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        yield aside
        if out.exists():
            raise FileExistsError("it has come into being meanwhile")
        aside.rename(out)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        aside.unlink(missing_ok=True)
        raise


def write_model(folder: Path, to: Weights, codes: dict[str, str], new_tensor: Callable) -> None:
    """The folder of --to anew: `new_tensor(name)` takes the place of each of its tensors, in the dtype that
    `codes` says."""
    folder.mkdir()
    for path in [*to.folder.glob("*"), *to.folder.glob("additional_chat_templates/*")]:
        is_copied = path.suffix in COPIED or path.name.startswith("LICENSE")
        if path.is_file() and is_copied and path.name not in NOT_COPIED:
            copy = folder / path.relative_to(to.folder)
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, copy)
    for file in sorted(set(to.files.values())):
        inside = [name for name, own_file in to.files.items() if own_file == file]
        inside.sort(key=lambda name: -bytes_of(codes[name]))  # so that each begins at a multiple of its bytes
        entries = [(name, codes[name], to.shapes[name]) for name in inside]
        write_tensors(folder / file, entries, map(new_tensor, inside), {"format": "pt"})
    if (to.folder / INDEX).exists():
        size = sum(math.prod(shape) * bytes_of(codes[name]) for name, shape in to.shapes.items())
        index = {"metadata": {"total_size": size}, "weight_map": to.files}
        (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n")


def set_dtype(config: Path, dtype: str) -> None:
    """In a model's config.json, under the name that it has there."""
    content = json.loads(config.read_text())
    content["torch_dtype" if "torch_dtype" in content else "dtype"] = dtype
    config.write_text(json.dumps(content, indent=2) + "\n")


# --- the report ---------------------------------------------------------------------------------------------


def show_report(report: list[Sums], has_minus: bool, has_to: bool) -> None:
    """All tensors together and those with the largest |v|, in a table."""
    columns = [("|v|", ".4g"), ("|v|/|theta|", ".2e"), ("cos", ".3f"), ("zeros", ".3f"), ("not moved", ".3f")]
    if not (has_minus and has_to):
        columns = [column for column in columns if column[0] != "cos"]
    if not has_to:
        columns = [column for column in columns if column[0] != "not moved"]
    rows = [["tensor", *(name for name, _ in columns)]]
    for sums in [in_all(report), *sorted(report, key=lambda sums: -sums.vv)[:TOP]]:
        found = measures(sums)
        cells = ["-" if found[name] is None else f"{found[name]:{form}}" for name, form in columns]
        rows.append([shown(sums.tensor, True), *cells])
    say(aligned(rows))


def warnings_about(total: Sums, dtypes: str, saved_in: str) -> list[str]:
    """Lines about a vector that is mostly rounding, and about a sum that was mostly rounded away."""
    found, lines = measures(total), []
    if found["zeros"] > MUCH:
        lines.append(
            f"warning: {found['zeros']:.0%} of v is exactly 0, and the donors were saved in {dtypes}; if "
            "they had more bits in training, most of what RL did is lost, and much of the rest is rounding"
        )
    if found["not moved"] - found["zeros"] > MUCH:
        lines.append(
            f"warning: {found['not moved']:.0%} of the weights did not move, and only {found['zeros']:.0%} "
            f"of v is 0: the rest is below the spacing of {saved_in}; --dtype float32 keeps it"
        )
    return lines


# --- the whole ----------------------------------------------------------------------------------------------


def check_args(args: Args) -> None:
    """What can be refused before any file is opened."""
    check_flags(args)
    if args.vector is None and (args.plus is None or args.minus is None):
        fail(
            "--plus, --minus: give both, such as --plus runs/grpo/chain-seed0/final --minus "
            "runs/sft/chain-seed0/final, or --vector with a vector that was kept"
        )
    if args.vector is not None and (args.plus or args.minus or args.to is None):
        fail("--vector: takes the place of --plus and --minus, and needs --to")
    if args.out is None:
        fail("--out: give a folder for the sum, or NAME.safetensors to keep the vector")
    if args.to is None and args.out.suffix != ".safetensors":
        fail("--to: give the model that the vector is added to, or --out NAME.safetensors to keep the vector")
    if args.to is not None and args.out.suffix == ".safetensors":
        fail(f"--out {args.out}: the sum is a folder; leave --to out to keep the vector in a file")
    if args.to is None and (args.alpha != 1 or args.dtype):
        fail("--alpha, --dtype: are about the sum; without --to the vector is kept as it is, in float32")
    if args.out.exists():
        fail(f"--out {args.out}: exists; choose another name, or remove it")


def main(args: Args) -> Path:
    """Write the sum, or the vector. Returns where it is."""
    in_one_process("reasoning_vector.py")
    check_args(args)
    try:
        return or_fail(write, args)
    except OSError as error:
        fail(f"--out {args.out}: cannot be written ({error}); nothing was left there")


def write(args: Args) -> Path:
    """What `main` does. Raises ValueError for what cannot be used, OSError for what cannot be written."""
    # --- 1 open the models
    plus = minus = vector = to = None
    if args.vector is not None:
        vector, about = open_vector(args.vector)
    else:
        plus, minus = open_model(args.plus, "--plus"), open_model(args.minus, "--minus")
        about = {"plus": args.plus, "minus": args.minus, "skip": json.dumps(args.skip)}
        about["dtypes"] = ", ".join(sorted({*plus.codes.values(), *minus.codes.values()}))
    if args.to is not None:
        to = open_model(args.to, "--to")
    models = [model for model in (plus, minus, vector, to) if model is not None]

    # --- 2 do they go together?
    check_skip(args.skip, models[-1])
    skip = [*args.skip, *json.loads(about["skip"])]
    names = names_in_common(models, skip)
    vocabularies = {model.flag: vocabulary_of(model) for model in models if model is not vector}
    check_tokens(vocabularies, names)
    tokens = hash_of(vocabularies[models[-1].flag])
    if about.setdefault("tokens", tokens) != tokens:
        raise ValueError(
            f"--vector {args.vector}: was made of models with other token ids than --to has; --plus and "
            "--minus instead of it show which"
        )

    # --- 3 one tensor: the vector, or the sum
    report: list[Sums] = []

    def v_of(name: str) -> torch.Tensor:
        return vector.read(name) if vector is not None else difference(plus.read(name), minus.read(name))

    def only_v(name: str) -> torch.Tensor:
        v = v_of(name)
        report.append(sums_of(name, v, theta=minus.read(name)))
        return v

    def sum_of(name: str) -> torch.Tensor:
        theta = to.read(name)
        dtype = DTYPES.get(codes[name], theta.dtype)
        if name not in names:  # m is 0
            return theta.to(dtype)
        v = v_of(name)
        saved = added(theta, v, args.alpha).to(dtype)
        if not torch.isfinite(saved).all():
            raise ValueError(f"--to: {shown(name, True)} is too large for {dtype}; give --dtype float32")
        report.append(sums_of(name, v, theta, None if minus is None else minus.read(name), saved))
        return saved

    # --- 4 write them, one after the other
    with written_aside(args.out) as aside:
        if to is None:
            entries = [(name, "F32", minus.shapes[name]) for name in names]
            write_tensors(aside, entries, map(only_v, names), about)
        else:
            codes = dict(to.codes)
            if args.dtype:
                codes |= {name: CODES[args.dtype] for name, code in codes.items() if code in DTYPES}
            write_model(aside, to, codes, sum_of)
            if args.dtype:
                set_dtype(aside / "config.json", args.dtype)
            tensors = {sums.tensor: measures(sums) for sums in [in_all(report), *report]}
            found = about | {"skip": skip, "to": args.to, "alpha": args.alpha, "tensors": tensors}
            (aside / REPORT).write_text(json.dumps(found, indent=1) + "\n")
            (aside / CHECKSUMS).write_text(json.dumps(checksums(aside)))
        if in_all(report).vv == 0:
            raise ValueError(
                "--plus, --minus: have the same weights, so the vector is 0; nothing was written"
            )

    # --- 5 say what it is
    show_report(report, has_minus=minus is not None, has_to=to is not None)
    saved_in = "float32" if to is None else ", ".join(sorted({codes[name] for name in names}))
    for line in warnings_about(in_all(report), about["dtypes"], saved_in):
        say(line)
    if to is None:
        say(f"the vector: {args.out}; add it: python papers/reasoning_vector.py --vector {args.out} --to ...")
    else:
        say(f"the sum: {args.out}; compare it: python eval.py --model {args.out} --baseline {args.to}")
    return args.out


if __name__ == "__main__":
    main(parse(Args, __doc__))


# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "torch==2.13.0", "transformers>=5.16.1,<5.20", "safetensors", "numpy", "tyro", "filelock",
#     "math-verify>=0.9,<0.10", "antlr4-python3-runtime==4.13.2", "matplotlib", "jinja2",
# ]
# ///
