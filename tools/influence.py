r"""Influence of training rows by their gradients: which rows, and which sources, make a probe's loss fall.

    python tools/influence.py --data rows.jsonl --probe "chain?horizon=3" --keep-share 0.5 --out kept.jsonl
    python sft.py --data kept.jsonl
    python tools/influence.py --data mix.jsonl --probe dev.jsonl --checkpoints a b c --mixture weights.json
    python sft.py --data mix.jsonl --mixture weights.json

Sources: MobileLLM-R1 (arXiv 2509.24945, eq. 5 to 8), LESS (2402.04333). To first order, influence is what
one small step of plain SGD on row i does to the loss of the probe.

    l_i = - 1/T_i sum_t log pi(o_it | q_i, o_i<t)      sft.py's loss of this row alone
    g_i = grad l_i over the trained weights,           u_i = g_i / |g_i|
    v_k = 1/|V_k| sum_j u_j over the rows of probe group k
    influence_k(i) = <u_i, v_k>, the mean cosine;      with --no-normalise <g_i, 1/|V_k| sum_j g_j>:
                     by so much, times its step, does SGD on row i lower the probe's mean loss
    several checkpoints t = 1..T:  influence_k = sum_t alpha_t influence_k at t,    alpha_t = t / (1 + .. + T)
    several groups:                I_i = mean over k, or the largest (--over-groups)
    of a source g:                 rho_g = sum_i T_i I_i / sum_i T_i over its rows,
                                   w_g = max(rho_g, 0) / sum over sources of max(rho, 0)

Where the papers say something else, this is what it does, tagged again where it happens:
[D1] Positive is helpful. MobileLLM-R1's eq. 2 has the other sign, and its eq. 6 and 7 reward this one.
[D2] No Hessian (eq. 2) and no preconditioner of Adam (LESS): neither is what "first order" needs.
[D3] No random projection: one vector a group is kept, and every inner product is exact.
[D4] A source with rho below 0 gets 0, and where no rho is above 0 there is no mixture. The paper says nothing
     of either.
[D5] All groups are measured at all checkpoints. The paper trains a model for each domain and takes each
     group at its own; here that is one command a domain.

Letters in shapes: N rows that are scored, K probe groups, T checkpoints, T_i tokens of row i's completion.
"""

import json
import math
import os
import shlex
import sys
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import numpy as np
import torch

sys.path.append(str(Path(__file__).resolve().parents[1]))  # where plainrl/ lies

from plainrl.files import name_of, plain_name, with_progress
from plainrl.flags import (
    EVAL_SEED,
    Count,
    Length,
    Number,
    Rank,
    Share,
    check_flags,
    check_model_is_there,
    parse,
)
from plainrl.folder import (
    append_or_fail,
    claimed,
    json_lines,
    refuse_existing,
    refuse_other_settings,
    whole_lines,
    write_or_fail,
)
from plainrl.models import device_name, keep_freed_memory, load_model, model_hash, put_weights
from plainrl.rollout import check_template, set_thinking
from plainrl.rows import (
    CHATS,
    COMPLETIONS,
    PROMPTS,
    Row,
    drop_long,
    encode_rows,
    entries_with_rows,
    longest_row,
    read_rows,
    rows_hash,
)
from plainrl.scoring import score
from plainrl.screen import EVERY, fail, in_one_process, or_fail, say, shown, stoppable, time_left
from plainrl.tasks import load_task, scored

HELD_OUT = ("dev", "test")  # splits of rows that are not learned
NOTHING_LOST = "nothing is lost: the same command writes it without taking a gradient"


@dataclass
class Args:
    data: tuple[Path, ...]
    """files of rows with prompt and completion, or messages (see plainrl/rows.py); their field source says
    where a row is from"""
    probe: tuple[str, ...]
    """what the rows are to help with: files of rows, each source in them a group; or tasks, such as
    "chain?horizon=3", with the worked solutions of their dev problems"""
    out: Path | None = None
    """file to write: the rows that are kept, each with its influence; must not exist"""
    keep_share: Share = 1.0
    """the share of the rows with the highest influence that is kept"""
    keep_above: Number | None = None
    """of these, keep those alone whose influence is above this; 0 keeps the rows that help"""
    mixture: Path | None = None
    """file to write: a share for each source, for `sft.py --mixture`; must not exist"""
    model: str | None = None
    """Hugging Face folder, hub name or .gguf file at which gradients are taken (default: models/tiny, or
    models/countdown with --probe countdown)"""
    checkpoints: tuple[str, ...] = ()
    """several models in its place, in the order of a training: the t-th has the weight t"""
    normalise: bool = True
    """compare directions alone; without it short rows count more, since their mean losses have larger
    gradients"""
    over_groups: Literal["mean", "max"] = "mean"
    """of several probe groups the mean, as in MobileLLM-R1, or the largest, as in LESS"""
    probe_problems: Count = 128
    """dev problems of each task in --probe, at most"""
    lora_rank: Rank | None = None
    """gradients over adapters of this rank alone; --checkpoints are then folders of a run with --lora-rank,
    and --model is what that run started from"""
    activation_checkpointing: bool = False
    """recompute activations in the backward pass: less memory, about a third slower"""
    system_prompt: str | None = None
    """system turn put before every prompt"""
    enable_thinking: Literal["yes", "no"] | None = None
    """what the chat template is told of `enable_thinking` (default: nothing, so that its own default holds);
    a template that does not know the word ignores it"""
    loss_on: Literal["completion", "all"] = "completion"
    """the loss is that of the completions alone, or of the prompts too (continued pretraining)"""
    max_length: Length = 4096
    """most tokens of a row, prompt and completion; never more than the model's context"""
    over_length: Literal["drop", "fail"] = "drop"
    """what is done about a longer row: it is left out and counted, or nothing is done; no row is ever cut"""
    scores_dir: Path | None = None
    """folder of every row's influence, one file a checkpoint; the same command goes on from there, and one
    with another rule or mixture takes no gradient anew (default: beside --out or --mixture, with the ending
    .scores)"""


# --- the mathematics ----------------------------------------------------------------------------------------
#
# A gradient is a list of tensors, one for each trained weight.


def inner(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> float:
    """The inner product of two gradients. Millions of small terms are added, so the sum is in float64."""
    products = [(a * b).sum(dtype=torch.float64) for a, b in zip(ours, theirs, strict=True)]
    return torch.stack(products).sum().item()


def length_of(gradient: list[torch.Tensor]) -> float:
    """|g|, in which a gradient of zeros counts as 1: it has no direction, and its influence is 0."""
    return math.sqrt(inner(gradient, gradient)) or 1.0


def probe_vector(gradients: Iterable[list[torch.Tensor]], normalise: bool) -> list[torch.Tensor]:
    """v_k, the mean of a group's gradients, or of their directions. One vector is kept, however many come."""
    total, count = None, 0
    for gradient in gradients:
        scale = 1 / length_of(gradient) if normalise else 1.0
        if total is None:
            total = [torch.zeros_like(part) for part in gradient]
        for part, own in zip(total, gradient, strict=True):
            part.add_(own, alpha=scale)
        count += 1
        del gradient  # as large as the model: not two of them at once
    return [part / count for part in total]


def influence(gradient: list[torch.Tensor], vector: list[torch.Tensor], normalise: bool) -> float:
    """<u_i, v_k>, or <g_i, v_k>. Positive is helpful [D1]: a step of SGD on the row, against g_i, changes the
    probe's loss by minus the step times this."""
    return inner(gradient, vector) / (length_of(gradient) if normalise else 1.0)


def alphas(checkpoints: int) -> list[float]:
    """Weights of checkpoints 1..T, in proportion to t: later ones are closer to the model that comes out.

    >>> alphas(4)
    [0.1, 0.2, 0.3, 0.4]
    """
    total = checkpoints * (checkpoints + 1) / 2
    return [t / total for t in range(1, checkpoints + 1)]


def joint(influences: torch.Tensor, over_groups: str) -> torch.Tensor:
    """I_i of each row: the weighted sum over checkpoints, then the mean or the largest over groups.

    [T, N, K] -> [N]
    """
    weights = torch.tensor(alphas(len(influences)), dtype=influences.dtype)  # [T]
    summed = (weights[:, None, None] * influences).sum(dim=0)  # [N, K]
    return {"mean": summed.mean(dim=1), "max": summed.amax(dim=1)}[over_groups]


def rho(influences: list[float], tokens: list[int], sources: list[str]) -> dict[str, float]:
    """The mean influence of each source's tokens. Three lists of N; sources come in their order.

    The loss of a row is a mean over its tokens, so a row counts as often as it has tokens.
    """
    of_source, count = Counter(), Counter()
    for value, size, source in zip(influences, tokens, sources, strict=True):
        of_source[source] += value * size
        count[source] += size
    return {source: of_source[source] / count[source] for source in count}


def mixture(rhos: dict[str, float]) -> dict[str, float] | None:
    """w_g, the share of each source; None where no source helps [D4].

    >>> mixture({"a": 0.5, "b": -0.1, "c": 1.5})
    {'a': 0.25, 'b': 0.0, 'c': 0.75}
    """
    total = sum(max(value, 0.0) for value in rhos.values())
    return {source: max(value, 0.0) / total for source, value in rhos.items()} if total > 0 else None


def kept_rows(influences: list[float], share: float, above: float | None) -> list[int]:
    """The numbers of the rows that are kept, in their order; of equal ones the first. N numbers -> at most
    share N of them, at least one where none has to be above anything."""
    order = sorted(range(len(influences)), key=lambda row: -influences[row])
    order = order[: max(1, round(share * len(order)))]
    return sorted(row for row in order if above is None or influences[row] > above)


# --- gradients of a model -----------------------------------------------------------------------------------


def row_gradient(model, row: Row) -> list[torch.Tensor]:
    """g_i over the weights that are trained: one backward pass, of sft.py's loss of this row alone."""
    logprobs, _ = score(model, [[*row.prompt_ids]], [[*row.completion_ids]], 1.0)  # [1, T_i]
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    # [D2], [D3]: the gradient as it is. A weight that the row does not reach has a gradient of zeros.
    gradient = torch.autograd.grad(-logprobs.mean(), weights, materialize_grads=True)
    if not math.isfinite(inner(gradient, gradient)):
        fail(f"{row.place}: the gradient is not finite; leave the row out, or use another model")
    return list(gradient)


def load_checkpoint(name: str, args: Args):
    """A model of --checkpoints, or --model itself. With --lora-rank the weights of a checkpoint are those of
    its adapters, and they go onto --model."""
    base = args.model if args.lora_rank else name
    flag = "--checkpoints" if args.checkpoints and not args.lora_rank else "--model"
    model, tokenizer = load_model(base, args.activation_checkpointing, args.lora_rank, flag)
    if args.lora_rank and args.checkpoints:
        problem = "is no folder" if not Path(name).is_dir() else put_weights(Path(name), model)
        if problem:
            fail(f"--checkpoints {name}: {problem}; give folders of a run with --lora-rank {args.lora_rank}")
    B = [weight for own, weight in model.named_parameters() if ".lora_B." in own]
    if B and not any(weight.any() for weight in B):
        say(
            f"warning: --lora-rank: every B of {name} is still 0, so that A has no gradient and B's alone is "
            "measured; warm up first, with some steps of sft.py --lora-rank, and give its final/ as "
            "--checkpoints"
        )
    set_thinking(tokenizer, args.enable_thinking)
    check_template(tokenizer, args.system_prompt)
    return model, tokenizer


# --- rows ---------------------------------------------------------------------------------------------------


def read_probe(args: Args) -> dict[str, list[Row]]:
    """The rows of each probe group, without their ids. A task is a group, and so is each source of a file, or
    a file without sources."""
    groups: dict[str, list[Row]] = {}
    for spec in args.probe:
        path, name = Path(os.path.expanduser(spec)), spec.partition("?")[0]
        if path.is_file():
            for row in rows_of_file(path):
                groups.setdefault(row.source or name_of(spec), []).append(row)
        elif ":" not in name and (Path(name).suffix or "/" in name):
            fail(f"--probe {spec}: no such file")
        else:
            groups.setdefault(spec, []).extend(solutions_of_dev(spec, args))
    return groups


def rows_of_file(path: Path) -> list[Row]:
    """Those that their lines call dev, or where no line does, all but those that are called test: nothing is
    chosen by what is tested."""
    rows = or_fail(read_rows, (path,), "--probe")
    rows = [row for row in rows if row.split == "dev"] or [row for row in rows if row.split != "test"]
    if not rows:
        fail(f"--probe {path}: all of its rows are of the split test, by which nothing is chosen")
    return rows


def solutions_of_dev(spec: str, args: Args) -> list[Row]:
    """The worked solutions of a task's dev problems: those that scores of dev are taken on."""
    try:
        task = load_task(spec)
    except ValueError as error:
        fail(str(error).replace("--task", "--probe"))
    rows = []
    for index in range(or_fail(scored, task, "dev", args.probe_problems)):
        problem = or_fail(task.problem, "dev", index, EVAL_SEED)
        if problem.solution is None:
            fail(f"--probe {spec}: dev problem {index} has no worked solution; give a file of rows")
        turns = ({"role": "user", "content": problem.prompt},)
        rows.append(Row(turns, problem.solution, place=f"dev problem {index} of {spec}", is_text=True))
    if not rows:
        fail(f"--probe {spec}: has no dev problems; give a file of rows")
    return rows


def encoded(rows: list[Row], args: Args, model, tokenizer) -> list[tuple[int, Row]]:
    """The rows with their ids and their numbers, without those that are too long."""
    rows, limit = encode_rows(rows, args, model, tokenizer), longest_row(args, model)
    or_fail(drop_long, rows, limit, args.over_length)
    return [(number, row) for number, row in enumerate(rows) if row.length <= limit]


# --- scores on the disk -------------------------------------------------------------------------------------


def settings_of(args: Args, model, rows: list[Row], groups: dict[str, list[Row]]) -> dict:
    """Everything that the influences of a checkpoint depend on. What is made of them is no part of it."""
    return {
        "model_hash": model_hash(model),
        "lora_rank": args.lora_rank,
        "normalise": args.normalise,
        "rows": len(rows),
        "rows_hash": rows_hash(rows),
        "groups": {name: [len(own), rows_hash(own)] for name, own in groups.items()},
        "device": device_name(),
        "versions": {name: version(name) for name in ("torch", "transformers")},
    }


def finished_scores(path: Path, settings: dict) -> list[list[float]]:
    """The influences of the first rows, K numbers each, that are on the disk already. What a kill left of a
    line is cut off. A file of other settings ends the run: its first line has them."""
    where = f"--scores-dir: {path}"
    if not path.exists():
        write_or_fail("--scores-dir", path, json_lines([settings]), "choose another folder")
        return []
    lines, groups = whole_lines(path), len(settings["groups"])
    try:
        before, *found = map(json.loads, lines)
        influences = [[float(value) for value in line["influence"]] for line in found]
        numbers = [line["row"] for line in found]
    except (ValueError, KeyError, TypeError):
        before, influences, numbers = None, [], []
    in_order = numbers == list(range(len(numbers))) and len(numbers) <= settings["rows"]
    if not isinstance(before, dict) or not in_order or any(len(each) != groups for each in influences):
        fail(f"{where}: is damaged; delete it, and its gradients are taken anew")
    refuse_other_settings(where, before, settings, "give the old value, or another --scores-dir")
    os.truncate(path, sum(map(len, lines)))
    return influences


def score_rows(model, rows: list[Row], groups: dict[str, list[Row]], args: Args, path: Path) -> list:
    """The influence of every row on every group at one checkpoint, [N][K], those on the disk as they are
    there. Each is written as it comes."""
    found = finished_scores(path, settings_of(args, model, rows, groups))
    if found:
        say(f"{len(found):,} of {len(rows):,} rows are scored already, in {path}")
    if len(found) == len(rows):
        return found
    size = sum(map(len, groups.values()))
    say(f"{path}: gradients of {size:,} rows of the probe, then of {len(rows) - len(found):,} rows")
    vectors = []  # one for each group [D5]
    for name, own in groups.items():
        coming = with_progress(own, shown(name, one_line=True), f"of {len(own):,} probe gradients are taken")
        vectors.append(probe_vector((row_gradient(model, row) for row in coming), args.normalise))
    began = told = time.monotonic()
    done, left = 0, sum(row.length for row in rows[len(found) :])
    for number in range(len(found), len(rows)):
        row = rows[number]
        gradient = row_gradient(model, row)
        found.append([influence(gradient, vector, args.normalise) for vector in vectors])
        del gradient  # before the next one is taken
        append_or_fail(path, [{"row": number, "place": row.place, "influence": found[-1]}])
        done, left = done + row.length, left - row.length
        if time.monotonic() - told > EVERY:
            told = time.monotonic()
            say(f"{number + 1:>8} of {len(rows)} rows | left {time_left(began, done, left)}")
    return found


# --- what is shown and written ------------------------------------------------------------------------------


def show(influences: list[float], tokens: list[int], sources: list[str]) -> None:
    """The table of sources, and how the influences are spread."""
    rhos, rows, size = rho(influences, tokens, sources), Counter(sources), Counter()
    for source, own in zip(sources, tokens):
        size[source] += own
    shares = mixture(rhos)
    say(f"\n{'source':24} {'rows':>8} {'tokens':>10} {'rho':>11} {'w':>7}")
    for source in sorted(rhos, key=lambda source: -rhos[source]):
        share = f"{shares[source]:7.3f}" if shares else f"{'-':>7}"
        name = shown(source, one_line=True) or "(none)"
        say(f"{name[:24]:24} {rows[source]:8,} {size[source]:10,} {rhos[source]:11.3g} {share}")
    low, middle, high = np.quantile(influences, [0.1, 0.5, 0.9])
    positive = sum(value > 0 for value in influences)
    say(
        f"influence: a tenth of the rows is below {low:.3g}, half below {middle:.3g}, a tenth above "
        f"{high:.3g}; {positive:,} of {len(influences):,} are above 0"
    )


def line_of(entry: dict, row: Row, value: float, is_whole: bool) -> dict:
    """A line of --out: the object of --data with its influence. Where an object is a chat with several
    answers, a line for each, and in place of the chat its prompt and completion."""
    if is_whole:
        return entry | {"influence": value}
    replaced = {*CHATS, *PROMPTS, *COMPLETIONS}
    rest = {name: own for name, own in entry.items() if plain_name(name) not in replaced}
    return {"prompt": list(row.turns), "completion": row.completion} | rest | {"influence": value}


def lines_to_keep(entries: list[tuple[dict, list[Row]]], kept: dict[int, float]) -> list[dict]:
    """The lines of --out, in the order of --data. `kept` are the numbers of rows, among those that are not
    dev or test, with their influence. Rows of dev and test stay as they are."""
    lines, number = [], 0
    for entry, rows in entries:
        if rows[0].split in HELD_OUT:
            lines.append(entry)
            continue
        for row in rows:
            if number in kept:
                lines.append(line_of(entry, row, kept[number], len(rows) == 1))
            number += 1
    return lines


def check_args(args: Args) -> None:
    """Refuse what cannot work, before a model is loaded."""
    for flag, values in (("--data", args.data), ("--probe", args.probe)):
        if not values:
            fail(f"{flag}: names nothing; give one or more")
    if not (args.out or args.mixture or args.scores_dir):
        fail("--out: nothing would be kept of it; give --out FILE, --mixture FILE or --scores-dir FOLDER")
    for flag, path in (("--out", args.out), ("--mixture", args.mixture)):
        if path:
            refuse_existing(flag, path)
    if args.out and args.out == args.mixture:
        fail(f"--mixture {args.mixture}: is --out as well; give another name")
    if not args.out and (args.keep_share < 1 or args.keep_above is not None):
        fail("--keep-share, --keep-above: choose the rows of --out; give it too, or leave them out")
    if args.checkpoints and args.model and not args.lora_rank:
        fail("--model: --checkpoints are models already; leave one of them out")
    for name in args.checkpoints:
        check_model_is_there(name, "--checkpoints")
    of_countdown = any(spec.partition("?")[0] == "countdown" for spec in args.probe)
    args.model = args.model or ("models/countdown" if of_countdown else "models/tiny")


def scores_folder(args: Args) -> Path:
    """The folder of the scores: a file for each checkpoint."""
    beside = args.out or args.mixture
    return args.scores_dir or beside.with_name(f"{beside.stem}.scores")


def next_command(args: Args) -> str:
    """What to type to train on what was written."""
    data = [args.out] if args.out else args.data
    command = f"python sft.py --data {' '.join(shlex.quote(str(path)) for path in data)}"
    return command + (f" --mixture {shlex.quote(str(args.mixture))}" if args.mixture else "")


# --- the command --------------------------------------------------------------------------------------------


def at_checkpoint(name: str, rows: list[Row], probe: dict[str, list[Row]], args: Args, path: Path) -> tuple:
    """The rows that are scored, as (number, row with ids), and their influences [N][K] at one checkpoint."""
    model, tokenizer = load_checkpoint(name, args)
    numbered = encoded(rows, args, model, tokenizer)
    groups = {group: [row for _, row in encoded(own, args, model, tokenizer)] for group, own in probe.items()}
    texts = {(row.prompt_ids, row.completion_ids) for own in groups.values() for row in own}
    copies = sum((row.prompt_ids, row.completion_ids) in texts for _, row in numbered)
    if copies:
        say(f"warning: {copies:,} rows are rows of the probe too, and help themselves")
    return numbered, score_rows(model, [row for _, row in numbered], groups, args, path)


@stoppable("the same command goes on where it was")
def main(args: Args) -> list[float]:
    """Take gradients, show, write; returns I of every row that was scored."""
    in_one_process("tools/influence.py")
    args = replace(args)
    check_flags(args)
    check_args(args)
    keep_freed_memory()
    torch.manual_seed(0)  # adapters that are fresh are the same ones when the command goes on

    # --- rows
    entries = or_fail(list, entries_with_rows(args.data))  # objects, each with its rows
    rows = [row for _, own in entries for row in own if row.split not in HELD_OUT]
    if not rows:
        fail("--data: all of its rows are dev or test; let some be train")
    nameless = next((row for row in rows if not row.source), None)
    if args.mixture and nameless:
        fail(f"--mixture: {nameless.place} has no field 'source'; every row needs one")
    probe = read_probe(args)

    # --- influences at each checkpoint
    folder, numbered, found = scores_folder(args), [], []
    models = args.checkpoints or (args.model,)
    with claimed("--scores-dir", folder, "checkpoint-1.jsonl"):
        for t, name in enumerate(models, start=1):
            say(f"{name}, {t} of {len(models)}")
            before = numbered
            numbered, influences = at_checkpoint(name, rows, probe, args, folder / f"checkpoint-{t}.jsonl")
            if before and numbered != before:
                fail(f"--checkpoints {name}: makes other tokens of the rows than {args.checkpoints[0]}")
            found.append(influences)

    # --- one number a row
    influences = joint(torch.tensor(found, dtype=torch.float64), args.over_groups).tolist()  # [N]
    tokens = [len(row.completion_ids) for _, row in numbered]
    sources = [row.source for _, row in numbered]
    show(influences, tokens, sources)

    # --- write
    if args.out:
        kept = kept_rows(influences, args.keep_share, args.keep_above)
        if not kept:
            fail(f"--keep-above {args.keep_above:g}: no row's influence is above it; give a lower one")
        of_row = {numbered[i][0]: influences[i] for i in kept}
        write_or_fail("--out", args.out, json_lines(lines_to_keep(entries, of_row)), NOTHING_LOST)
        say(f"{args.out}: {len(kept):,} of {len(influences):,} rows")
    if args.mixture:
        shares = mixture(rho(influences, tokens, sources))
        if shares is None:
            fail(
                "--mixture: no source helps, since no rho is above 0, so that there are no shares; look at "
                "the rows, or take another probe"
            )
        text = json.dumps(shares, indent=1, ensure_ascii=False) + "\n"
        write_or_fail("--mixture", args.mixture, text, NOTHING_LOST)
        say(f"{args.mixture}: shares of {len(shares)} sources")
    say(f"next: {next_command(args)}")
    return influences


if __name__ == "__main__":
    main(parse(Args, __doc__))


# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "torch==2.13.0", "transformers>=5.16.1,<5.20", "safetensors", "numpy", "tyro", "filelock",
#     "math-verify>=0.9,<0.10", "antlr4-python3-runtime==4.13.2", "matplotlib", "jinja2",
# ]
# ///
