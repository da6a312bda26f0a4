"""The output folder of a run: who may write there, its logs, and checkpoints that a kill never halves."""

import json
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from plainrl import ranks
from plainrl.models import load_weights, save_model
from plainrl.screen import fail


def check_out_dir(out_dir: Path, resume: bool) -> None:
    """A run never overwrites another."""
    if out_dir.exists() and not resume:
        fail(f"--out-dir {out_dir} exists; continue that run with --resume, or choose another --out-dir")
    if resume and not out_dir.exists():
        fail(f"--resume: there is no run in --out-dir {out_dir}")


def lock(folder: Path, message: str = "") -> FileLock:
    """Keep other processes from writing into the folder, until it is released or this process ends."""
    held = FileLock(folder / ".lock", timeout=0, is_singleton=True)
    try:
        held.acquire()
    except Timeout:
        in_use = f"--out-dir {folder}: another process is writing there"
        fail(message or f"{in_use}; wait for its end, or choose another --out-dir")
    return held


def write_text(path: Path, text: str) -> None:
    """Write aside, then rename: a kill leaves the old file or the new one, never a half. Makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".tmp")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)


def truncate_log(path: Path, last_step: int) -> None:
    """Drop what a resumed run will write again: the records after its checkpoint, and the closing test
    scores."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines(keepends=True):
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            break  # the line that the kill cut short
        closing = record["step"] > 0 and all(name == "step" or name.startswith("test/") for name in record)
        if line.endswith("\n") and record["step"] <= last_step and not closing:
            kept.append(line)
    write_text(path, "".join(kept))


def save_checkpoint(folder: Path, model, tokenizer, optimizer, state: dict) -> None:
    """Everything a run needs to go on: weights, optimizer, and a small JSON state (the step and the script's
    own)."""
    extra = {"optimizer.pt": ranks.full_optimizer(model, optimizer), "state.json": state}
    save_model(folder, model, tokenizer, extra)


def load_checkpoint(folder: Path, model, optimizer) -> dict | None:
    """Restore model and optimizer in place and return the state; None when there is no checkpoint yet."""
    old = folder.with_name(folder.name + ".old")  # all that a kill between two renames leaves
    for candidate in (folder, old):
        if (candidate / "state.json").exists():
            load_weights(candidate, model)
            saved = {}
            if ranks.MAIN:
                saved = torch.load(candidate / "optimizer.pt", map_location="cpu", weights_only=True)
            ranks.load_optimizer(model, optimizer, saved)
            return json.loads((candidate / "state.json").read_text())
    return None
