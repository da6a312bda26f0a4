"""The output folder of a run: who may write there, its logs, and checkpoints that neither a kill nor a bad
disk turns into another run without a word. Besides, the files and folders that tools write."""

import contextlib
import io
import json
import os
import pickle
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from plainrl import ranks
from plainrl.models import damage, put_weights, real_folder, save_model
from plainrl.screen import fail, say, shown

LOGS = ("metrics.jsonl", "samples.jsonl", "dev_samples.jsonl", "groups.jsonl")
# What a run may have written before its first record.
NO_RECORD_YET = {
    ".lock",
    "config.json",
    "config.json.tmp",
    *(f"{name}.tmp" for name in LOGS),
    "best.tmp",
}
ANEW = "or use another --out-dir"
# What reading an optimizer.pt may raise that is damaged, or something else.
MALFORMED = (
    OSError, RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError,
    pickle.UnpicklingError,
)  # fmt: skip


def claim(out_dir: Path, resume: bool) -> FileLock:
    """Make the folder of a fresh run, or find the one to go on with, and keep other processes out of it.

    A run never overwrites another: a fresh one takes no folder in which there is a record.
    """
    with or_one_line(out_dir):
        if resume and not out_dir.exists():
            others = [path.parent.name for path in sorted(out_dir.parent.glob("*/config.json"))]
            beside = f"; beside it are {', '.join(others)}" if others else ""
            fail(f"--resume: there is no run in --out-dir {out_dir}{beside}")
        if out_dir.exists() and not out_dir.is_dir():
            fail(f"--out-dir {out_dir}: is a file; choose a folder")
        refuse_another_run(out_dir, resume)  # before anything is written there
        out_dir.mkdir(parents=True, exist_ok=True)
        held = lock(out_dir)
        refuse_another_run(out_dir, resume)  # one that began and ended in between
    return held


def refuse_another_run(out_dir: Path, resume: bool) -> None:
    """A fresh run needs an unused folder, a resumed one that of a run."""
    if is_unused(out_dir):
        return
    if not resume:
        fail(f"--out-dir {out_dir} exists; continue that run with --resume, or choose another --out-dir")
    if not is_config_of_a_run(out_dir / "config.json"):
        fail(
            f"--resume: {out_dir / 'config.json'} is missing or damaged, so that nobody can tell whose run "
            f"this is; put it back, {ANEW}"
        )


def is_unused(folder: Path) -> bool:
    """Whether there is no such folder, or nothing in it but what a run leaves that has no record yet."""
    if not folder.exists():
        return True
    names = {path.name for path in folder.iterdir()}
    return names <= NO_RECORD_YET and (
        "config.json" not in names or is_config_of_a_run(folder / "config.json")
    )


def is_config_of_a_run(path: Path) -> bool:
    """Not that of a model, say: what is unused is removed, and nobody else's file may be."""
    try:
        return {"script", "flags"} <= json.loads(path.read_text()).keys()
    except (OSError, ValueError, AttributeError):
        return False


def remove_if_unused(folder: Path, held: FileLock) -> None:
    """A fresh run that fails before its first record leaves no folder that would bar the next try."""
    if folder.exists() and is_unused(folder):
        with contextlib.suppress(OSError):  # then an empty folder stays, which bars nobody either
            for path in folder.iterdir():
                path.unlink()
            folder.rmdir()
    held.release(force=True)


def lock(folder: Path, message: str = "", flag: str = "--out-dir") -> FileLock:
    """Keep other processes from writing into the folder, until it is released or this process ends. `flag`
    is how a user names the folder, `message` what is said where another process has it."""
    held = FileLock(folder / ".lock", timeout=0, is_singleton=True)
    try:
        held.acquire()
    except Timeout:
        in_use = f"{flag} {folder}: another process is writing there"
        fail(message or f"{in_use}; wait for its end, or choose another {flag}")
    except OSError as error:
        fail(f"{flag} {folder}: cannot be written ({error.strerror or error}); choose another {flag}")
    return held


@contextlib.contextmanager
def or_one_line(folder: Path):
    """A full disk, missing rights or a folder that is gone end the run with one line."""
    try:
        yield
    except OSError as error:
        fail(
            f"--out-dir {folder}: cannot be written ({error.strerror or error}); what was saved before is "
            "untouched; mend this, then go on with --resume, or choose another --out-dir"
        )


def write_text(path: Path, text: str) -> None:
    """Write aside, then rename: a kill leaves the old file or the new one, never a half. Makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".tmp")
    aside.write_bytes(text.encode("utf-8"))
    aside.replace(path)


# --- what tools write ---------------------------------------------------------------------------------------


def refuse_existing(flag: str, path: Path) -> None:
    """Nothing that is there is written over."""
    if path.exists():
        fail(f"{flag} {path}: exists and is never overwritten; give another name or delete it")


@contextlib.contextmanager
def writing(flag: str, path: Path, way_out: str):
    """A full disk, missing rights or a folder that is gone end the command with one line."""
    try:
        yield
    except OSError as error:
        fail(f"{flag} {path}: cannot be written ({error.strerror or error}); {way_out}")


def write_or_fail(flag: str, path: Path, text: str, way_out: str) -> None:
    """`write_text`, or one line that says why not."""
    with writing(flag, path, way_out):
        write_text(path, text)


def json_lines(rows: Iterable[dict]) -> str:
    """One object a line. What JSON has no word for, such as a date of a Parquet file, becomes a text."""
    return "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)


@contextlib.contextmanager
def written_aside(path: Path):
    """A path beside this one to write a file or a folder to. At the end it gets the name. Whatever ends the
    work earlier leaves nothing behind."""
    aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield aside
        if path.exists():
            raise FileExistsError(f"{path} has come into being meanwhile")
        aside.rename(path)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        with contextlib.suppress(OSError):  # where nothing may be written, there is nothing to remove
            aside.unlink(missing_ok=True)
        raise


# Work of hours goes into a folder as it comes, a line for each result, and the same command goes on from
# there.


@contextlib.contextmanager
def claimed(flag: str, folder: Path, own: str):
    """Make the folder, or find that it is empty or has the tool's `own` file. While this lasts, other
    processes are kept out of it."""
    if folder.exists() and not folder.is_dir():
        fail(f"{flag} {folder}: is a file; choose a folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        names = {path.name for path in folder.iterdir()}
        if names - {".lock"} and own not in names:
            fail(f"{flag} {folder}: has files, and no {own} of this tool; choose another folder")
    except OSError as error:
        fail(f"{flag} {folder}: cannot be used ({error.strerror or error}); choose another")
    held = lock(folder, flag=flag)
    try:
        yield
    finally:
        held.release()


def refuse_other_settings(where: str, before: dict, now: dict, way_out: str) -> None:
    """What was begun with some settings goes on with the same ones. Names the first that is another."""
    for name, value in now.items():
        if value != before.get(name):
            old, new = (shown(str(each), one_line=True) for each in (before.get(name), value))
            fail(f"{where}: {name} was {old} and is now {new}; {way_out}")


def keep_settings(flag: str, folder: Path, settings: dict, way_out: str, **noted: str | None) -> None:
    """Write the settings of some work into its folder, as config.json, or find that it was begun with the
    same ones. What is `noted` beside them may change."""
    path = folder / "config.json"
    if path.exists():
        try:
            before = dict(json.loads(path.read_text()))
        except (OSError, ValueError, TypeError):
            fail(f"{flag} {folder}: its config.json is damaged; put it back, or choose another folder")
        refuse_other_settings(f"{flag} {folder}", before, settings, way_out)
    text = json.dumps(settings | noted, indent=1) + "\n"
    write_or_fail(flag, path, text, "choose another folder")


def whole_lines(path: Path) -> list[bytes]:
    """The lines of a file, without a half one that a kill left at its end; none where there is no file."""
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    return lines[:-1] if lines and not lines[-1].endswith(b"\n") else lines


def append_or_fail(path: Path, rows: list[dict]) -> None:
    """Add rows to a file of JSON lines."""
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write("".join(json.dumps(row) + "\n" for row in rows))
    except OSError as error:
        fail(f"{path}: cannot be written ({error.strerror or error}); the same command goes on from here")


# --- logs ---------------------------------------------------------------------------------------------------
#
# A log of a long run may be larger than the memory: it is read line by line, or from its end.


def record_of(line: bytes) -> dict | None:
    """The record in a line of a log; None for a line that a kill or a bad disk has spoiled."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    whole = isinstance(record, dict) and isinstance(record.get("step"), int) and line.endswith(b"\n")
    return record if whole else None


def records_of(path: Path) -> Iterator[dict]:
    """The records of a log, one by one; none where there is no log yet."""
    if path.exists():
        with open(path, "rb") as file:
            yield from filter(None, map(record_of, file))


def lines_from_the_end(path: Path, size: int = 1 << 20) -> Iterator[bytes]:
    """The lines of a file, the last one first. Of the file `size` bytes at a time are read, and no more than
    is asked for."""
    with open(path, "rb") as file:
        end, rest = file.seek(0, os.SEEK_END), b""
        while end > 0:
            begin = max(0, end - size)
            file.seek(begin)
            first, *others = io.BytesIO(file.read(end - begin) + rest).readlines()
            yield from reversed(others)
            end, rest = begin, first  # of the first line the beginning may lie before
        if rest:
            yield rest


def last_records(path: Path) -> list[dict]:
    """The records of the last step in a log, in their order; none where there is no log yet."""
    found: list[dict] = []
    for line in lines_from_the_end(path) if path.exists() else ():
        record = record_of(line)
        if record and found and record["step"] != found[0]["step"]:
            break
        found += [record] if record else []
    return found[::-1]


def last_step(path: Path) -> int:
    """The highest step in a log, which is that of its last record; -1 where there is none."""
    return next((record["step"] for record in last_records(path)), -1)


def truncate_log(path: Path, last_step: int) -> None:
    """Drop what a resumed run will write again: the records after its checkpoint, and the closing test
    scores. Says how many. A spoiled line in the middle goes to a file of its own, and the rest stays."""
    if not path.exists():
        return
    broken, closing, after = [], [], []  # numbers of lines that go
    spoiled = []  # of lines that cannot be read, and are broken if a record follows
    count = end = 0  # lines so far, and bytes up to the end of the last line that stays
    with open(path, "rb") as file:
        for count, line in enumerate(file, start=1):
            record = record_of(line)
            if record is None:
                spoiled.append(count)
                continue
            broken += spoiled
            spoiled = []
            if is_closing(record):
                closing.append(count)
            elif record["step"] > last_step:
                after.append(count)
            else:
                end = file.tell()
    gone = {*broken, *closing, *after, *spoiled}
    if not gone:
        return
    if broken:
        aside, lost = path.with_name(path.name + ".broken"), set(broken)
        with open(path, "rb") as file, open(aside, "ab") as other:
            other.writelines(line for number, line in enumerate(file, start=1) if number in lost)
        numbers = ", ".join(map(str, broken[:5])) + ", ..." * (len(broken) > 5)
        say(f"{path}: line {numbers} cannot be read and went to {aside.name}; all others are kept")
    if after or spoiled:
        where = f"after step {last_step}" if last_step >= 0 else "without a checkpoint"
        say(f"{path}: {len(after + spoiled)} lines {where} are dropped; the run writes them again")
    # A kill leaves the log as it was, or as it should be: a file is cut, or replaced, at once.
    if gone == set(range(count - len(gone) + 1, count + 1)):
        os.truncate(path, end)
    else:
        copy = path.with_name(path.name + ".tmp")
        with open(path, "rb") as file, open(copy, "wb") as other:
            other.writelines(line for number, line in enumerate(file, start=1) if number not in gone)
        copy.replace(path)


def is_closing(record: dict) -> bool:
    """Whether it holds the test scores that end a run, and nothing else."""
    return record["step"] > 0 and all(name == "step" or name.startswith("test/") for name in record)


# --- checkpoints --------------------------------------------------------------------------------------------


def previous(folder: Path) -> Path:
    """The checkpoint before the one in this folder. It is all that a kill between two renames leaves."""
    return folder.with_name(folder.name + ".old")


def save_checkpoint(folder: Path, model, tokenizer, optimizer, state: dict) -> None:
    """Everything a run needs to go on: weights, optimizer, and a small JSON state (the step and the script's
    own). The one before stays as last.old/: the disk never holds more than two, as while one is written."""
    extra = {"optimizer.pt": ranks.full_optimizer(model, optimizer), "state.json": state}
    save_model(folder, model, tokenizer, extra, keep_previous=True)


def load_checkpoint(folder: Path, model, optimizer, run: str = "") -> dict | None:
    """Restore model and optimizer in place and return the state; None when there is no checkpoint yet.

    A damaged checkpoint is kept aside and the one before takes its place, in one line. Where there is none
    either, the run ends in one line, before anything is changed. `run` is what `state["run"]` must be.
    """
    folder, problems = real_folder(folder), []
    for candidate in (folder, previous(folder)):
        state, problem = ranks.gather([read_state(candidate, run) if ranks.MAIN else None])[0]
        problem = (
            problem or put_weights(candidate, model) or put_optimizer(candidate, model, optimizer, state)
        )
        if problem is None:
            if problems:
                step = f"{candidate.name}/, step {state['step']}"
                kept = set_right(folder) if ranks.MAIN else ""
                say(f"{folder}: {problems[0]}; going on from {step}{kept}")
            return state
        problems.append(problem)
    if not ranks.any_rank(folder.exists() or previous(folder).exists()):
        return None
    fail(
        f"--resume: {folder}: {problems[0]}, and {folder.name}.old: {problems[1]}; nothing was changed; put "
        f"a copy of it back, {ANEW}"
    )


def set_right(folder: Path) -> str:
    """Let the checkpoint before take the place of a damaged one, which is kept. Returns what to say."""
    aside, kept = folder.with_name(folder.name + ".damaged"), ""
    with or_one_line(folder):
        if folder.exists():
            number = 1
            while aside.exists():
                number += 1
                aside = folder.with_name(f"{folder.name}.damaged{number}")
            folder.rename(aside)
            kept = f"; the damaged one is kept as {aside.name}/"
        previous(folder).rename(folder)
    return kept


def read_state(folder: Path, run: str) -> tuple[dict, str | None]:
    """The state of a checkpoint, and what is wrong with the folder; None where nothing is."""
    problem = damage(folder)
    if problem:
        return {}, problem
    try:
        state = json.loads((folder / "state.json").read_text())
    except (OSError, ValueError):
        return {}, "is damaged (state.json cannot be read)"
    if not isinstance(state, dict) or not state.keys() >= {"step", "tokens", "best", "test_before"}:
        return {}, "is damaged (state.json is not the state of a run)"
    if "run" in state and not (folder / "checksums.json").exists():
        return {}, "is damaged (checksums.json is missing)"
    if run and state.get("run", run) != run:
        return {}, f"belongs to another run ({state['run']}, not {run})"
    return state, None


def put_optimizer(folder: Path, model, optimizer, state: dict) -> str | None:
    """Restore the optimizer in place; returns what is wrong with the file, None where nothing is."""
    saved, problem = {}, None
    if ranks.MAIN:
        try:
            saved = torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True)
            # Of an older file, without a checksum, nobody knows whether it is all that was written.
            any_part = (folder / "checksums.json").exists() or state.get("stage_step") == 0
            problem = optimizer_problem(saved, model, optimizer, any_part)
        except MALFORMED as error:
            problem = (str(error).splitlines() or [type(error).__name__])[0]
    problem = ranks.gather([problem and f"is damaged (optimizer.pt: {problem})"])[0]
    if problem is None:
        ranks.load_optimizer(model, optimizer, saved)
    return problem


def optimizer_problem(saved, model, optimizer, any_part: bool) -> str | None:
    """Whether these are the moments of the weights that this model trains; None where they are.

    `any_part` of them may be there: a weight has none before its first gradient. Raises one of MALFORMED
    where the file holds anything else.
    """
    shapes = {name: weight.shape for name, weight in model.named_parameters() if weight.requires_grad}
    moments, groups = saved["state"], saved["param_groups"]
    needed = {"step", "exp_avg", "exp_avg_sq"} if isinstance(optimizer, torch.optim.AdamW) else set()
    for name, entry in moments.items():
        if name not in shapes or any(part.ndim and part.shape != shapes[name] for part in entry.values()):
            return f"{name} is none of this model's"
        if missing := needed - entry.keys():
            return f"{name} has no {min(missing)}"
    if moments and not shapes.keys() <= {name for group in groups for name in group["params"]}:
        return "its groups are not those of this model"
    if not any_part and (missing := shapes.keys() - moments.keys()):
        return f"{min(missing)} is missing"
    return None
