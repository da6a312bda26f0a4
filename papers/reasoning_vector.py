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

import hashlib
import json
import math
import shlex
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError, safe_open

sys.path.append(str(Path(__file__).resolve().parents[1]))  # where plainrl/ lies

from plainrl.flags import Number, check_flags, parse
from plainrl.folder import refuse_existing, written_aside
from plainrl.models import CHECKSUMS, check_same_tokens, checksums, load_tokenizer
from plainrl.results import aligned
from plainrl.screen import fail, in_one_process, or_fail, say, shown, stoppable
from plainrl.weight_files import (
    DTYPES,
    HEAD,
    Weights,
    names_by_file,
    names_in_common,
    open_model,
    set_dtype,
    write_all_but_weights,
    write_header,
    write_tensor,
)

TOP = 8  # tensors in the table on the screen
MUCH = 0.5  # share of the weights that is worth a warning
CHUNK = 2**22  # numbers that are summed in float64 at once
TOKEN_TENSORS = ("embed", "wte", HEAD)  # parts of the names of tensors that have a row for every token
REPORT = "reasoning_vector.json"
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


def sums_of(v, theta, minus=None, saved=None) -> dict[str, float]:
    """Sums over the weights of one tensor, of which the report is made: of v^2, theta^2 and, with l = theta -
    minus, of l^2 and v l; how many weights of v are 0, and how many are saved as they would be without v.

    `theta` is that of --to, or of --minus where there is no --to; then there is no `minus` and no `saved`.
    """
    theta = theta.float()
    sums = {"weights": v.numel(), "zeros": (v == 0).sum().item(), "vv": dot(v, v), "tt": dot(theta, theta)}
    if saved is not None:
        sums["stayed"] = (saved == theta.to(saved.dtype)).sum().item()
    if minus is not None:
        learned = theta - minus.float()  # by --to since --minus
        sums["ll"], sums["vl"] = dot(learned, learned), dot(v, learned)
    return sums


def measures(sums: dict[str, float]) -> dict[str, float]:
    """The columns of the report, without those that would divide by nothing."""
    found = {"|v|": math.sqrt(sums["vv"]), "zeros": sums["zeros"] / sums["weights"]}
    if sums["tt"]:
        found["|v|/|theta|"] = math.sqrt(sums["vv"] / sums["tt"])
    if sums["vv"] * sums.get("ll", 0):
        found["cos"] = sums["vl"] / math.sqrt(sums["vv"] * sums["ll"])
    if "stayed" in sums:
        found["not moved"] = sums["stayed"] / sums["weights"]
    return found


def in_all(report: dict[str, dict]) -> Counter:
    """The sums of all tensors together."""
    total = Counter()
    for sums in report.values():
        total.update(sums)
    return total


# --- one tensor after the other -----------------------------------------------------------------------------


def write_vector(path: Path, plus: Weights, minus: Weights, names: list[str], about: dict) -> dict[str, dict]:
    """A file with v of all tensors, in float32. Returns the sums of each."""
    report = {}
    with open(path, "wb") as file:
        write_header(file, [(name, "F32", minus.shapes[name]) for name in names], about)
        for name in names:
            theta = minus.read(name)
            v = difference(plus.read(name), theta)
            report[name] = sums_of(v, theta)
            write_tensor(file, v)
    return report


def write_sum(
    folder: Path, donors: list[Weights], to: Weights, names: list[str], alpha: float, codes: dict[str, str]
) -> dict[str, dict]:
    """The folder of --to anew, its tensors in the dtypes `codes`, those of `names` with alpha v added.
    Returns the sums of each. `donors` are plus and minus, or the vector."""
    report = {}
    write_all_but_weights(folder, to, codes)
    for file_name, inside in names_by_file(to, codes).items():
        with open(folder / file_name, "wb") as file:
            write_header(file, [(name, codes[name], to.shapes[name]) for name in inside], {"format": "pt"})
            for name in inside:
                if name in names:
                    saved, report[name] = sum_of(name, donors, to, alpha, DTYPES[codes[name]])
                else:  # m is 0
                    theta = to.read(name)
                    saved = theta.to(DTYPES.get(codes[name], theta.dtype))
                write_tensor(file, saved)
    return report


def sum_of(name: str, donors: list[Weights], to: Weights, alpha: float, dtype: torch.dtype) -> tuple:
    """theta_to + alpha v of one tensor, in the dtype that it is saved in, and its sums for the report."""
    theta, minus = to.read(name), None
    if len(donors) == 2:
        minus = donors[1].read(name)
        v = difference(donors[0].read(name), minus)
    else:
        v = donors[0].read(name)
    saved = added(theta, v, alpha).to(dtype)
    if not torch.isfinite(saved).all():
        raise ValueError(f"--to: {shown(name, True)} is too large for {dtype}; give --dtype float32")
    return saved, sums_of(v, theta, minus, saved)


# --- the report ---------------------------------------------------------------------------------------------


def show_report(report: dict[str, dict]) -> None:
    """All tensors together and those with the largest |v|, in a table."""
    forms = {"|v|": ".4g", "|v|/|theta|": ".2e", "cos": ".3f", "zeros": ".3f", "not moved": ".3f"}
    largest = sorted(report, key=lambda name: -report[name]["vv"])[:TOP]
    found = {f"all {len(report)}": measures(in_all(report))}
    found |= {name: measures(report[name]) for name in largest}
    columns = [column for column in forms if any(column in row for row in found.values())]
    rows = [["tensor", *columns]]
    for name, row in found.items():
        cells = [f"{row[column]:{forms[column]}}" if column in row else "-" for column in columns]
        rows.append([shown(name, True), *cells])
    say(aligned(rows))


def warnings_about(total: dict[str, float], dtypes: str, saved_in: str) -> list[str]:
    """Lines about a vector that is mostly rounding, and about a sum that was mostly rounded away."""
    found, lines = measures(total), []
    if found["zeros"] > MUCH:
        lines.append(
            f"warning: {found['zeros']:.0%} of v is exactly 0, and the donors were saved in {dtypes}; if "
            "they had more bits in training, most of what RL did is lost, and much of the rest is rounding"
        )
    if found.get("not moved", 0) - found["zeros"] > MUCH:
        lines.append(
            f"warning: {found['not moved']:.0%} of the weights did not move, and only {found['zeros']:.0%} "
            f"of v is 0: the rest is below the spacing of {saved_in}; --dtype float32 keeps it"
        )
    return lines


# --- what is refused ----------------------------------------------------------------------------------------


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
    refuse_existing("--out", args.out)


def check_skip(skip: tuple[str, ...], model: Weights) -> None:
    for part in skip:
        if not any(part in name for name in model.files):
            name = shown(min(model.files), True)
            raise ValueError(f"--skip {part}: is in no tensor's name; one of them is {name}")


def open_vector(path: Path) -> tuple[Weights, dict[str, str]]:
    """A vector that was kept, and what its file says of it. Raises ValueError for any other file."""
    try:
        with safe_open(path, "pt") as file:
            names, about = file.keys(), file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise ValueError(f"--vector {path}: cannot be read ({str(error).splitlines()[0]})") from None
    if not {"plus", "minus", "skip", "tokens", "dtypes"} <= about.keys():
        raise ValueError(f"--vector {path}: is no vector that this script kept")
    return Weights("--vector", path.parent, dict.fromkeys(names, path.name)), about


def check_tokens(models: list[Weights], names: list[str]) -> str:
    """Raises ValueError where an id stands for another token in one of the models. Returns a hash of their
    vocabulary."""
    vocabularies = [load_tokenizer(str(model.folder), model.flag).get_vocab() for model in models]
    rows_are_skipped = not any(part in name for name in names for part in TOKEN_TENSORS)
    for model, vocabulary in zip(models[1:], vocabularies[1:]):
        check_same_tokens(model.flag, vocabulary, models[0].flag, vocabularies[0], rows_are_skipped)
    return hashlib.sha256(repr(sorted(vocabularies[-1].items())).encode()).hexdigest()[:16]


# --- the whole ----------------------------------------------------------------------------------------------


@stoppable("nothing is written")
def main(args: Args) -> Path:
    """Write the sum, or the vector. Returns where it is."""
    in_one_process("papers/reasoning_vector.py")
    check_args(args)
    try:
        return or_fail(write, args)
    except OSError as error:
        fail(f"--out {args.out}: cannot be written ({error}); nothing was left there")


def write(args: Args) -> Path:
    """What `main` does. Raises ValueError for what cannot be used, OSError for what cannot be written."""
    # --- 1 open the models
    if args.vector is not None:
        vector, about = open_vector(args.vector)
        donors = [vector]
    else:
        donors = [open_model(args.plus, "--plus"), open_model(args.minus, "--minus")]
        dtypes = {code for donor in donors for code in donor.codes.values()}
        about = {"plus": args.plus, "minus": args.minus, "skip": json.dumps(args.skip)}
        about["dtypes"] = ", ".join(sorted(dtypes))
    models = [*donors, open_model(args.to, "--to")] if args.to is not None else donors

    # --- 2 do they go together?
    check_skip(args.skip, models[-1])
    skip = [*args.skip, *json.loads(about["skip"])]
    names = names_in_common(models, skip)
    tokens = check_tokens([model for model in models if model.flag != "--vector"], names)
    if about.setdefault("tokens", tokens) != tokens:
        raise ValueError(
            "--vector: was made of models with other token ids than --to has; --plus and --minus instead of "
            "it show which"
        )

    # --- 3 tensor by tensor
    with written_aside(args.out) as aside:
        if args.to is None:
            saved_in = "float32"
            report = write_vector(aside, *donors, names, about)
        else:
            to = models[-1]
            codes = dict(to.codes)
            if args.dtype:
                codes |= {name: CODES[args.dtype] for name, code in codes.items() if code in DTYPES}
            saved_in = ", ".join(sorted({codes[name] for name in names}))
            report = write_sum(aside, donors, to, names, args.alpha, codes)
            if args.dtype:
                set_dtype(aside / "config.json", args.dtype)
            of_tensors = {f"all {len(report)}": measures(in_all(report))}
            of_tensors |= {name: measures(sums) for name, sums in report.items()}
            found = about | {"skip": skip, "to": args.to, "alpha": args.alpha, "tensors": of_tensors}
            (aside / REPORT).write_text(json.dumps(found, indent=1) + "\n")
            (aside / CHECKSUMS).write_text(json.dumps(checksums(aside)))
        if in_all(report)["vv"] == 0:
            raise ValueError(
                "--plus, --minus: have the same weights, so the vector is 0; nothing was written"
            )

    # --- 4 say what it is
    show_report(report)
    for line in warnings_about(in_all(report), about["dtypes"], saved_in):
        say(line)
    out = shlex.quote(str(args.out))
    if args.to is None:
        say(f"the vector: {args.out}; add it: python papers/reasoning_vector.py --vector {out} --to ...")
    else:
        compare = f"python eval.py --model {out} --baseline {shlex.quote(args.to)}"
        say(f"the sum: {args.out}; compare it: {compare}")
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
