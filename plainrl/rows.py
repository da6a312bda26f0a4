r"""Rows of text to train on: read from files or a task's worked solutions, and turned into tokens.

A file is JSON lines, a JSON array, CSV or Parquet, as plainrl/files.py reads them. An object is one row:

    {"prompt": "What is 6 x 7?", "completion": "6 x 7 = 42"}         or "solution"; a prompt may be turns
    {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}

Of messages every turn of the assistant is a row; its prompt is everything before it. Optional fields:

    end      false: the completion is only a beginning, and no end token follows (default true)
    split    train, dev (held out) or test (left out); without it rows are held out by --dev-share
    source   where the row comes from, for --mixture

Prompts are made by the code that sampling uses. A completion is encoded by itself, without special tokens,
and the end token follows. So both are what the sampler would see and should have written.
"""

import hashlib
import json
import random
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from plainrl.files import (
    ROLES,
    SPLITS,
    SURROGATE,
    listed,
    name_of,
    open_entries,
    plain_name,
    role_and_text,
    several,
    short,
    with_progress,
)
from plainrl.flags import EVAL_SEED, RowFlags
from plainrl.models import eos_ids
from plainrl.rollout import Batch, apply_template, check_template, encode_prompt, pad
from plainrl.sampler import context_length
from plainrl.screen import fail, or_fail, say, shown
from plainrl.tasks import BOXED_INSTRUCTION, Problem, hash_number, scored, split_size

PROMPTS = ("prompt", "problem", "question", "query", "instruction")  # the first that there is
COMPLETIONS = ("completion", "solution", "response", "output")
CHATS = ("messages", "conversations")
MADE = 512  # rows of a task that makes problems without end, without --train-size
MOST_HELD_OUT = 512  # rows: they are scored at every dev score
MOST_SHARE = 10**9  # in a file of --mixture, whose shares need not sum to 1
CHECKED = 64  # rows whose boundary between prompt and completion is compared with the template's
KEPT_NUMBERS = ("last_logprob", "last_entropy", "last_weight")  # of each token, for samples.jsonl


@dataclass(frozen=True)
class Row:
    """A prompt and the completion that is learned. The ids are filled in by `encode`."""

    turns: tuple[dict, ...]  # of the prompt, {"role", "content"} each
    completion: str
    end: bool = True  # the end token follows, and is learned
    source: str = ""
    split: str | None = None  # as its line says
    place: str = ""  # file and line, for messages
    is_text: bool = False  # the prompt is one text, not turns: the system prompt goes before it
    prompt_ids: tuple[int, ...] = ()
    completion_ids: tuple[int, ...] = ()

    @property
    def first_prompt(self) -> str:
        """The prompt up to the first answer in it: the same for all rows of a conversation."""
        texts = []
        for turn in self.turns:
            if turn["role"] == "assistant":
                break
            texts.append(turn["content"])
        return "\n\n".join(texts)

    @property
    def length(self) -> int:
        return len(self.prompt_ids) + len(self.completion_ids)


# --- from files and tasks to rows ---------------------------------------------------------------------------


def read_rows(paths: tuple[Path, ...], flag: str = "--data") -> list[Row]:
    """The rows of files. Raises ValueError with the file, the line and the field."""
    return [row for _, rows in entries_with_rows(paths, flag) for row in rows]


def entries_with_rows(paths: tuple[Path, ...], flag: str = "--data") -> Iterator[tuple[dict, list[Row]]]:
    """Every object of the files with the rows that it makes. Raises ValueError with the file, the line and
    the field."""
    for path in map(str, paths):
        which, count = f"{flag} {path}", 0
        with open_entries(path, which, {"prompt": "", "answer": ""}, None) as (unit, entries):
            for line, entry in with_progress(entries, name_of(path), "entries are read"):
                if line is not None:  # else the header of a table
                    yield entry, rows_of(entry, f"{path}, {unit} {line}")
                    count += 1
        if not count:
            raise ValueError(f"{which}: holds no row; give objects with prompt and completion, or messages")


def rows_of(entry: dict | str, place: str) -> list[Row]:
    """The rows of one object: one, or one for every turn of the assistant. Raises ValueError."""
    if isinstance(entry, str):
        raise ValueError(f"{place}: {entry}")
    fields = {plain_name(name): name for name in reversed(entry)}
    find = lambda names: next((fields[name] for name in names if name in fields), None)  # noqa: E731
    prompt, completion, chat = find(PROMPTS), find(COMPLETIONS), find(CHATS)
    text = lambda name: "" if name not in fields else str(entry[fields[name]] or "").strip()  # noqa: E731
    end, split = end_of(entry.get(fields.get("end")), place), text("split").lower()
    if split and split not in SPLITS:
        known = "must be train, dev (validation, valid, val) or test"
        raise ValueError(f"{place}: field {fields['split']!r} is {short(split)}; it {known}")
    if any(map(SURROGATE.search, texts_in(entry))):
        raise ValueError(f"{place}: half of a character (\\ud800 to \\udfff) stands alone in it")
    common = dict(end=end, source=text("source"), split=SPLITS.get(split), place=place)
    if chat is not None and (completion is None or prompt is None):
        return rows_of_chat(turns_of(entry[chat], chat, place), chat, common)
    for name, names in ((prompt, "prompt"), (completion, "completion (or solution)")):
        if name is None:
            raise ValueError(f"{place}: has no field {names}, nor messages; there are {listed(entry)}")
    answer = entry[completion]
    if isinstance(answer, list):  # of turns, as some libraries write a completion
        answer = "".join(turn["content"] for turn in turns_of(answer, completion, place))
    if not isinstance(answer, str) or not answer.strip():
        raise ValueError(f"{place}: field {completion!r} is missing or empty; it must be a text")
    asked = entry[prompt]
    if isinstance(asked, list):
        turns = turns_of(asked, prompt, place)
        if not turns or turns[-1]["role"] == "assistant":
            raise ValueError(f"{place}: field {prompt!r} must end with a turn that asks")
        return [Row(turns, answer, **common)]
    if not isinstance(asked, str) or not asked.strip():
        raise ValueError(f"{place}: field {prompt!r} is missing or empty; it must be a text or turns")
    return [Row(({"role": "user", "content": asked},), answer, is_text=True, **common)]


def texts_in(value) -> Iterator[str]:
    """All texts in a value of JSON."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from texts_in(inner)


def end_of(value, place: str) -> bool:
    """The field `end`, true where it is absent. A CSV file has it as a word. Raises ValueError."""
    if value is None or isinstance(value, bool):
        return value is not False
    if str(value).strip().lower() in ("true", "false"):
        return str(value).strip().lower() == "true"
    raise ValueError(f"{place}: field 'end' is {short(str(value))}; it must be true or false")


def turns_of(turns, field: str, place: str) -> tuple[dict, ...]:
    """A chat as {"role", "content"} a turn, whatever names it has for them. Raises ValueError."""
    found = []
    for turn in turns if isinstance(turns, list) else [turns]:
        role, text = role_and_text(turn) if isinstance(turn, dict) else (None, None)
        if not isinstance(role, str) or not isinstance(text, str):
            raise ValueError(f"{place}: field {field!r} must be a list of turns with role and content")
        found.append({"role": ROLES.get(role, role), "content": text})
    return tuple(found)


def rows_of_chat(turns: tuple[dict, ...], field: str, common: dict) -> list[Row]:
    """A row for every turn of the assistant. Its prompt is everything before it. Raises ValueError."""
    rows = []
    for i, turn in enumerate(turns):
        if turn["role"] == "assistant":
            if not turn["content"].strip():
                raise ValueError(f"{common['place']}: field {field!r}: turn {i + 1} has no text to learn")
            rows.append(Row(turns[:i], turn["content"], **common))
    if not rows:
        raise ValueError(f"{common['place']}: field {field!r} has no turn of the assistant to learn")
    return rows


def solutions_of(task, count: int | None, seed: int) -> Iterator[Row]:
    """The worked solutions of a task's training problems, one after the other. Raises ValueError where a
    problem has none."""
    size = split_size(task, "train")
    for index in range(size if size is not None else count or MADE):
        problem = task.problem("train", index, seed)
        if problem.solution is None:
            raise ValueError(
                f"--task {task.name}: training problem {index} has no worked solution to learn from; "
                "give rows with --data"
            )
        turns = ({"role": "user", "content": problem.prompt},)
        place = f"training problem {index} of {task.name}"
        yield Row(turns, problem.solution, source=source_of(problem), place=place, is_text=True)


def source_of(problem: Problem) -> str:
    """Where a problem's row is from, for --mixture: of reasoning-gym its task, without the question's place.

    >>> source_of(Problem("How many?", "3", source="gym:gsm_symbolic#0#141139"))
    'gym:gsm_symbolic'
    """
    return re.sub(r"#\d+#\d+$", "", problem.source)


# --- from rows to tokens ------------------------------------------------------------------------------------


def encode_turns(tokenizer, turns: tuple[dict, ...], system: str | None, answer: bool = True) -> list[int]:
    """Ids of a conversation, as `encode_prompt` makes those of one question. `answer`: the assistant is to
    speak next. Raises ValueError where the template cannot write it."""
    if tokenizer.chat_template is None:
        raise ValueError("--model has no chat template for turns; give prompt and completion as texts")
    if system and not any(turn["role"] == "system" for turn in turns):
        turns = ({"role": "system", "content": system}, *turns)
    try:
        return apply_template(tokenizer, list(turns), answer)
    except Exception as error:  # a template is a program of its own and raises what it likes
        said = " ".join(str(error).split())[:200]
        raise ValueError(f"the chat template of --model cannot write it ({said})") from None


def end_token(model, tokenizer) -> int:
    """The id that a completion ends with: what the chat template puts after the assistant's words, where the
    sampler stops at it, else the tokenizer's EOS."""
    stops, marker = eos_ids(model, tokenizer), "7417"
    if tokenizer.chat_template is not None:
        turns = [{"role": "user", "content": "1"}, {"role": "assistant", "content": marker}]
        text = tokenizer.apply_chat_template(turns, tokenize=False)
        after = tokenizer.encode(text.rpartition(marker)[2], add_special_tokens=False)
        if found := [id for id in after if id in stops]:
            return found[0]
    return tokenizer.eos_token_id if tokenizer.eos_token_id in stops else stops[0]


def encode(row: Row, tokenizer, end_id: int, system: str | None, loss_on: str = "completion") -> Row:
    """The row with its ids. With `loss_on` all, everything after the first token is learned.

    Raises ValueError where the template cannot write the prompt, or nothing is left to learn.
    """
    if row.is_text:
        prompt_ids = encode_prompt(tokenizer, row.turns[0]["content"], system)
    else:
        prompt_ids = or_named(row, encode_turns, tokenizer, row.turns, system)
    completion_ids = tokenizer.encode(row.completion, add_special_tokens=False)
    if not completion_ids or not prompt_ids:
        raise ValueError(f"{row.place}: its {'completion' if prompt_ids else 'prompt'} has no token")
    completion_ids = completion_ids + [end_id] * row.end
    if loss_on == "all":
        prompt_ids, completion_ids = prompt_ids[:1], prompt_ids[1:] + completion_ids
    return replace(row, prompt_ids=tuple(prompt_ids), completion_ids=tuple(completion_ids))


def or_named(row: Row, function, *arguments):
    """Call it. A ValueError says which row it is about."""
    try:
        return function(*arguments)
    except ValueError as error:
        raise ValueError(f"{row.place}: {error}") from None


def boundary_note(rows: list[Row], tokenizer, system: str | None) -> str | None:
    """Where the template would write a whole conversation with other tokens than prompt and completion have:
    the first such row, and how many of the first CHECKED. None where they are the same."""
    if tokenizer.chat_template is None:
        return None
    differing = []
    for row in rows[:CHECKED]:
        turns = (*row.turns, {"role": "assistant", "content": row.completion})
        ours = [*row.prompt_ids, *row.completion_ids]
        whole = or_named(row, encode_turns, tokenizer, turns, system, False)
        if whole[: len(ours)] != ours:
            differing.append((row, ours, whole))
    if not differing:
        return None
    row, ours, whole = differing[0]
    at = next((i for i, pair in enumerate(zip(ours, whole)) if pair[0] != pair[1]), len(whole))
    near = lambda ids: shown(repr(tokenizer.decode(ids[max(0, at - 8) : at + 8])), one_line=True)  # noqa: E731
    return (
        f"{len(differing)} of the first {min(CHECKED, len(rows))} rows are not as the chat template writes a "
        f"whole conversation. {row.place}, token {at + 1}: here {near(ours)}, there {near(whole)}. Training "
        "goes on with the former: its prompts are those that sampling uses"
    )


# --- which rows are learned and which are held out ----------------------------------------------------------


def fraction_of(text: str) -> float:
    """A number from 0 to 1 that depends on nothing but the text."""
    return hash_number(text) / 2**64


def hold_out(rows: list[Row], share: float) -> tuple[list[Row], list[Row]]:
    """Rows to learn, and rows that are held out: those that their lines call dev, else a `share` of the
    prompts, by a hash, so that rows with the same prompt stay on one side. At most MOST_HELD_OUT by hash,
    but for the last prompt's. Rows that their lines call test are in neither."""
    rows = [row for row in rows if row.split != "test"]
    if any(row.split == "dev" for row in rows):
        return [row for row in rows if row.split != "dev"], [row for row in rows if row.split == "dev"]
    sizes = Counter(row.first_prompt for row in rows)
    held, count = set(), 0
    for prompt in sorted(sizes, key=fraction_of):
        if fraction_of(prompt) >= share or count >= MOST_HELD_OUT:
            break
        held.add(prompt)
        count += sizes[prompt]
    learned = [row for row in rows if row.first_prompt not in held]
    return learned, [row for row in rows if row.first_prompt in held]


def drop_long(rows: list[Row], limit: int, over_length: str) -> list[Row]:
    """The rows of at most `limit` tokens. Raises ValueError where one is longer and none may be dropped, or
    where none is left."""
    long = [row for row in rows if row.length > limit]
    if not long:
        return rows
    first = long[0]
    said = (
        f"{len(long):,} of {len(rows):,} rows have more than {limit:,} tokens, the first is {first.place} "
        f"with {len(first.prompt_ids):,} of prompt and {len(first.completion_ids):,} of completion"
    )
    if over_length == "fail":
        raise ValueError(f"--over-length fail: {said}; raise --max-length, or leave them out with drop")
    if len(long) == len(rows):
        raise ValueError(f"--max-length: no row is left: {said}; raise it, up to the model's context")
    say(f"--over-length drop: left out: {said}")
    return [row for row in rows if row.length <= limit]


def encode_rows(rows: list[Row], args, model, tokenizer) -> list[Row]:
    """The rows with their ids, as the flags --system-prompt and --loss-on say. What cannot be encoded ends
    the run in one line."""
    end_id = end_token(model, tokenizer)
    made = with_progress(rows, "rows", f"of {len(rows):,} are made tokens")
    rows = [or_fail(encode, row, tokenizer, end_id, args.system_prompt, args.loss_on) for row in made]
    check_ids(rows, model)
    return rows


def check_ids(rows: list[Row], model) -> None:
    """Refuse tokens that the model does not have."""
    most = max(max(*row.prompt_ids, *row.completion_ids) for row in rows)
    if most >= (vocabulary := model.get_input_embeddings().num_embeddings):
        fail(
            f"--model: its tokenizer makes token {most}, and its weights have {vocabulary} tokens; the "
            "tokenizer is another model's"
        )


def longest_row(args, model) -> int:
    """Most tokens that a row may have: --max-length, and never more than the model's context."""
    return min(args.max_length, context_length(model.config) or args.max_length)


def load_rows(args: RowFlags, task, model, tokenizer) -> tuple[list[Row], list[Row]]:
    """The rows to learn and those that are held out, as the flags say; what a user should know about them
    goes to the screen. What cannot work ends the run in one line."""
    check_template(tokenizer, args.system_prompt)
    if not args.data and not hasattr(task, "problem"):
        fail("--task none: leaves nothing to learn from; give rows with --data")
    rows = or_fail(read_rows, args.data) if args.data else solutions_or_fail(args, task)
    rows = encode_rows(rows, args, model, tokenizer)
    rows = or_fail(drop_long, rows, longest_row(args, model), args.over_length)
    learned, held = hold_out(rows, args.dev_share)
    if not learned:
        fail("--data: no row is left to learn from: all are dev or test; let some rows be train")
    if not held and not hasattr(task, "problem"):
        fail(
            f"--dev-share {args.dev_share:g}: none of {len(rows):,} rows is held out, and without a --task "
            "nothing else chooses the best step; give a larger share"
        )
    random.Random(f"{args.seed}/rows").shuffle(learned)
    learned = learned[: args.train_size]
    for line in or_fail(said_of, learned, held, len(rows), args, task, tokenizer):
        say(line)
    return learned, sorted(held, key=lambda row: row.length)


def solutions_or_fail(args: RowFlags, task) -> list[Row]:
    """As many worked solutions as the flags ask for, and as many more as will be held out."""
    wanted = args.train_size or MADE
    endless = split_size(task, "train") is None
    asked = int(wanted / (1 - args.dev_share) * 1.2) + 8 if endless else None
    rows = or_fail(list, solutions_of(task, asked, args.seed))
    if asked is None:
        return rows
    learned, held = hold_out(rows, args.dev_share)
    return learned[:wanted] + held


def said_of(learned: list[Row], held: list[Row], count: int, args: RowFlags, task, tokenizer) -> list[str]:
    """What the screen says of the rows."""
    rows = learned + held
    tokens = sum(len(row.completion_ids) for row in learned)
    lines = [f"{len(learned):,} rows to learn, {len(held):,} held out; {tokens:,} tokens with loss"]
    left_out = count - len(rows)
    if left_out:
        lines[0] += f"; {left_out:,} {several('row')} are left out (--train-size, or split test)"
    copies = len(rows) - len({(row.prompt_ids, row.completion_ids) for row in rows})
    if copies:
        lines.append(f"warning: {copies:,} rows are copies of another row")
    leaked = leaks(learned, args, task)
    if leaked:
        lines.append(
            f"warning: {leaked:,} of the problems that are scored on dev or test are prompts of rows to "
            "learn; tools/decontaminate.py takes them out"
        )
    if args.loss_on == "completion":
        note = boundary_note(learned, tokenizer, args.system_prompt)
        lines += [f"warning: {note}"] if note else []
    first = learned[0]
    text = lambda ids: shown(repr(tokenizer.decode(list(ids))), one_line=True)  # noqa: E731
    prompt, completion = text(first.prompt_ids[-24:]), text(first.completion_ids[-24:])
    lines.append(
        f"the first row's prompt ends with {prompt} and is not learned; its completion ends with {completion}"
    )
    return lines


def leaks(learned: list[Row], args: RowFlags, task) -> int:
    """How many of the problems that are scored on dev and test are prompts that are learned."""
    if not hasattr(task, "problem"):
        return 0
    bare = lambda prompt: " ".join(prompt.replace(BOXED_INSTRUCTION, "").split())  # noqa: E731
    prompts, found = {bare(row.first_prompt) for row in learned}, 0
    for split, count in (("dev", args.eval_problems), ("test", args.test_problems)):
        indices = range(scored(task, split, count))
        found += sum(bare(task.problem(split, i, EVAL_SEED).prompt) in prompts for i in indices)
    return found


def read_mixture(path: Path, rows: list[Row]) -> dict[str, float]:
    """The shares of a --mixture file, {source: share}, divided by their sum, without those that are 0. What
    they mean goes to the screen. A source that the file does not name has none. Raises ValueError."""
    flag = f"--mixture {path}"
    try:
        shares = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        way_out = 'give a JSON file with {"source": share}'
        raise ValueError(f"{flag}: cannot be read ({error}); {way_out}") from None
    if not isinstance(shares, dict):
        raise ValueError(f'{flag}: must hold one JSON object, {{"source": share}}')
    for source, share in shares.items():
        if type(share) not in (int, float) or not 0 <= share <= MOST_SHARE:
            said = f"the share of {short(source)} is {short(str(share))}"
            raise ValueError(f"{flag}: {said}; it must be a number from 0 to {MOST_SHARE:,}")
    total = sum(shares.values())
    if not total:
        raise ValueError(f"{flag}: no share is above 0, so that there is nothing to learn; give one")
    for row in rows:
        if not row.source:
            raise ValueError(f"{flag}: {row.place} has no field 'source'; every row to learn needs one")
    counts = Counter(row.source for row in rows)
    for source, share in shares.items():
        if share and source not in counts:
            said = f"no row to learn has the source {short(source)}"
            raise ValueError(f"{flag}: {said}; there are {listed(counts)}")
    if abs(total - 1) > 1e-6:
        say(f"--mixture: the shares sum to {total:g} and are divided by that")
    for source, count in counts.most_common(20):
        share = shares.get(source, 0) / total
        passes = share * len(rows) / count
        said = f"{share:.3f} of the draws, {passes:.2f} passes an epoch over its {count:,} rows"
        say(f"--mixture: {shown(source, one_line=True)}: {said}")
    if len(counts) > 20:
        say(f"--mixture: and {len(counts) - 20} more sources")
    return {source: share / total for source, share in shares.items() if share}


def rows_hash(rows: list[Row]) -> str:
    """16 hex digits of a hash over the rows' tokens, in their order: a resumed run must find the same."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(repr((row.prompt_ids, row.completion_ids)).encode())
    return digest.hexdigest()[:16]


# --- the batch of a step ------------------------------------------------------------------------------------


def batch_of(rows: list[Row], device) -> Batch:
    """The rows of an optimizer step, [N, T], on every rank all of them. Masks come from lengths."""
    prompt_ids, completion_ids = [[*row.prompt_ids] for row in rows], [[*row.completion_ids] for row in rows]
    _, mask = pad(completion_ids, device)  # [N, T], the end token included
    columns = {
        "completion_mask": mask,
        "seen": torch.zeros(len(rows), 1, dtype=torch.bool, device=device),
        **{name: torch.zeros(mask.shape, device=device) for name in KEPT_NUMBERS},
    }
    return Batch(prompt_ids, completion_ids, columns, rows_per_group=[1] * len(rows))


def row_sums(part: Batch, logprobs, entropy, right, loss) -> dict[str, float]:
    """Sums over a micro-batch for the log: [n, T'] tensors and the micro-batch's part of the loss.

    The numbers of each token go into the part's columns besides, for samples.jsonl.
    """
    mask = part["completion_mask"]
    for name, values in zip(KEPT_NUMBERS, (logprobs, entropy, part["weights"]), strict=True):
        part[name][:] = values.detach()
    part["seen"][:] = True
    return {
        "tokens": mask.sum().item(),
        "nll": -(logprobs * mask).sum().item(),
        "right": (right * mask).sum().item(),
        "entropy": (entropy * mask).sum().item(),
        "total_loss": loss.item(),
    }
