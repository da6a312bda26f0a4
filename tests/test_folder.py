"""The output folder: who gets it, what a damaged, missing or linked checkpoint does, and a log with a broken
line. Whole runs that are killed are in test_resume.py."""

import json
import os
import shutil
import signal
import tracemalloc
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from mutants import mutant
from safetensors.torch import load_file, save_file
from toys import HashTask, quick_flags, records

import grpo
from plainrl import models, run as run_module
from plainrl.folder import (
    last_records,
    last_step,
    lines_from_the_end,
    or_one_line,
    put_optimizer,
    read_state,
    remove_if_unused,
    truncate_log,
)
from tools import make_tiny

pytestmark = pytest.mark.usefixtures("quick")


def go(toy_model, folder: Path, task=None, **changes) -> Path:
    grpo.main(grpo.Args(**quick_flags(toy_model, folder, **changes)), task=task or HashTask())
    return folder


@pytest.fixture(scope="module")
def quietly():
    """No pictures in fixtures of a module either."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("plainrl.curves.plot_run", lambda run: None)
        yield


@pytest.fixture(scope="module")
def four_steps(quietly, toy_model, tmp_path_factory) -> Path:
    """A run of four steps: last/ is of step 4, last.old/ of step 2."""
    return go(toy_model, tmp_path_factory.mktemp("four") / "run", steps=4)


@pytest.fixture(scope="module")
def five_steps(quietly, toy_model, tmp_path_factory) -> Path:
    """The same and a step more, without a break."""
    return go(toy_model, tmp_path_factory.mktemp("five") / "run", steps=5)


@pytest.fixture
def copy(four_steps, tmp_path) -> Path:
    return shutil.copytree(four_steps, tmp_path / "run")


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_same(one: Path, other: Path) -> None:
    assert records(one) == records(other)
    for name in ("last/model.safetensors", "last/state.json", "final/model.safetensors", "samples.jsonl"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


# --- damage -------------------------------------------------------------------------------------------------


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@mutant(
    "files that nobody compares", "plainrl/models.py", "if here.get(name) != digest", "if name not in here"
)
@mutant(
    "files that may be missing",
    "plainrl/models.py",
    "here.get(name) != digest",
    "here.get(name, digest) != digest",
)
@mutant(
    "a list of files that may be missing",
    "plainrl/folder.py",
    'if "run" in state and not (folder / "checksums.json").exists():',
    "if False:",
)
def test_every_kind_of_damage_to_every_file_is_noticed(copy):
    """Catches a file that is left out of the checksums, a list of them that can itself be damaged, and one
    kind of damage that passes."""
    for name in ("last", "best"):
        folder = copy / name
        assert not problem_of(folder)
        for path in sorted(folder.iterdir()):
            before = path.read_bytes()
            for harm in (flip, truncate, lambda path: path.write_bytes(b"{}"), Path.unlink):
                harm(path)
                assert problem_of(folder), (path.name, harm)
                path.write_bytes(before)
        assert not problem_of(folder)


def problem_of(folder: Path) -> str | None:
    """What a resume sees of the folder before it loads it."""
    return read_state(folder, "")[1] if folder.name == "last" else models.damage(folder)


def another_model(last: Path) -> None:
    weights = load_file(last / "model.safetensors")
    save_file(
        {name: weight + 1 for name, weight in weights.items()}, last / "model.safetensors", {"format": "pt"}
    )


def missing_tensor(last: Path) -> None:
    """As an older run may have it: without checksums."""
    weights = load_file(last / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, last / "model.safetensors", {"format": "pt"})
    forget_checksums(last)


def forget_checksums(last: Path) -> None:
    (last / "checksums.json").unlink()
    state = json.loads((last / "state.json").read_text())
    del state["run"]
    (last / "state.json").write_text(json.dumps(state))


def half_an_optimizer(last: Path) -> None:
    forget_checksums(last)
    truncate(last / "optimizer.pt")


def empty_optimizer(last: Path) -> None:
    torch.save({"state": {}, "param_groups": []}, last / "optimizer.pt")


def empty_state(last: Path) -> None:
    forget_checksums(last)
    (last / "state.json").write_text("{}")


DAMAGES = {
    another_model: "model.safetensors is not what was written",
    missing_tensor: "1 of its weights are missing, model.layers.1.mlp.up_proj.weight",
    half_an_optimizer: "optimizer.pt: ",
    empty_optimizer: "optimizer.pt is not what was written",
    empty_state: "state.json is not the state of a run",
    shutil.rmtree: "is missing",
}


@mutant(
    "random weights for missing ones",
    "plainrl/models.py",
    "    if missing:\n",
    "    if False:\n",
    case="missing_tensor",
)
@mutant(
    "a state of nothing",
    "plainrl/folder.py",
    'not state.keys() >= {"step", "tokens", "best", "test_before"}',
    "False",
    case="empty_state",
)
@pytest.mark.parametrize("harm", DAMAGES, ids=lambda harm: harm.__name__)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(toy_model, five_steps, copy, capsys, harm):
    """Catches a run that goes on from random weights, from another model or without its optimizer, starts
    again, or loses what went before; and one that says nothing about it."""
    harm(copy / "last")
    go(toy_model, copy, steps=5, resume=True)
    said = next(line for line in capsys.readouterr().out.splitlines() if "going on from last.old" in line)
    assert DAMAGES[harm] in said and "step 2" in said
    assert_same(copy, five_steps)
    assert (copy / "last.damaged").exists() == (harm is not shutil.rmtree)


@mutant("previous checkpoint that nobody keeps", "plainrl/folder.py", ", keep_previous=True", "")
def test_an_older_checkpoint_goes_on(toy_model, five_steps, copy, capsys):
    """Catches a checkpoint from before the checksums that is refused, and one checkpoint alone."""
    forget_checksums(copy / "last")
    shutil.rmtree(copy / "last.old")
    go(toy_model, copy, steps=5, resume=True)
    assert "damaged" not in capsys.readouterr().out and (copy / "last.old").exists()
    assert_same(copy, five_steps)


def without(name: str, kind: str = ""):
    """An optimizer's file that lacks a weight, or one of its moments."""

    def harm(saved: dict) -> dict:
        (saved["state"][name] if kind else saved["state"]).pop(kind or name)
        return saved

    return harm


WEIGHT = "model.layers.1.mlp.up_proj.weight"
OPTIMIZERS = {
    "nothing": (lambda saved: {"state": {}, "param_groups": []}, "is missing"),
    "a weight": (without(WEIGHT), f"{WEIGHT} is missing"),
    "a moment": (without(WEIGHT, "exp_avg_sq"), f"{WEIGHT} has no exp_avg_sq"),
    "groups": (lambda saved: saved | {"param_groups": []}, "its groups are not"),
    "entries": (lambda saved: saved | {"state": {WEIGHT: 3}}, "'int' object has no attribute"),
    "a list": (lambda saved: [saved], "list indices"),
    "no groups": (lambda saved: {"state": saved["state"]}, "param_groups"),
}


@mutant(
    "optimizer of some weights", "plainrl/folder.py", "if not any_part and (missing", "if False and (missing"
)
@mutant("optimizer of some moments", "plainrl/folder.py", "if missing := needed - entry.keys():", "if False:")
def test_an_older_optimizer_is_whole_or_refused(toy_model, four_steps, tmp_path):
    """Catches a file without a checksum, of which a part is gone, that goes on as if there were no moments
    yet; and a traceback."""
    model = models.load_model(toy_model)[0]
    optimizer = torch.optim.AdamW(model.parameters())
    saved = torch.load(four_steps / "last" / "optimizer.pt")
    for harm, problem in OPTIMIZERS.values():
        torch.save(harm(deepcopy(saved)), tmp_path / "optimizer.pt")
        found = put_optimizer(tmp_path, model, optimizer, {})
        assert found.startswith("is damaged (optimizer.pt: ") and problem in found, found
        assert not optimizer.state
    torch.save({"state": {}, "param_groups": []}, tmp_path / "optimizer.pt")
    assert put_optimizer(tmp_path, model, optimizer, {"stage_step": 0}) is None  # h1's, of a new stage
    torch.save(saved, tmp_path / "optimizer.pt")
    assert put_optimizer(tmp_path, model, optimizer, {}) is None and optimizer.state


def both_damaged(run: Path) -> None:
    flip(run / "last" / "model.safetensors")
    truncate(run / "last.old" / "optimizer.pt")


def both_missing(run: Path) -> None:
    shutil.rmtree(run / "last")
    shutil.rmtree(run / "last.old")


def of_another_seed(run: Path) -> None:
    """Everything in it fits together."""
    for folder in (run / "last", run / "last.old"):
        state = json.loads((folder / "state.json").read_text())
        state["run"] = state["run"].replace("seed 0", "seed 1")
        (folder / "state.json").write_text(json.dumps(state))
        (folder / "checksums.json").write_text(json.dumps(models.checksums(folder)))


def no_config(run: Path) -> None:
    (run / "config.json").write_text("")


REFUSED = {
    both_damaged: "last: is damaged .model.safe.*, and last.old: is damaged .optimizer.pt is not",
    both_missing: "the checkpoint is missing, though the log goes to step 4",
    of_another_seed: "last: belongs to another run .*seed 1, not .*seed 0",
    no_config: "config.json is missing or damaged",
}


@mutant(
    "start again where a checkpoint is lost",
    "plainrl/run.py",
    'if before.get("saved", ',
    'if False and ("saved", ',
    case="both_missing",
)
@mutant(
    "checkpoint of another run",
    "plainrl/folder.py",
    'if run and state.get("run", run) != run:',
    "if False:",
    case="of_another_seed",
)
@pytest.mark.parametrize("harm", REFUSED, ids=lambda harm: harm.__name__)
def test_what_cannot_be_gone_on_from_is_refused_and_left_alone(toy_model, copy, harm):
    """Catches a resume that starts again and wipes the logs, or goes on with another run's checkpoint."""
    harm(copy)
    before = contents(copy)
    with pytest.raises(SystemExit, match=f"^error: --resume: .*{REFUSED[harm]}"):
        go(toy_model, copy, steps=5, resume=True)
    assert contents(copy) == before


@mutant(
    "best that is missed at the end",
    "plainrl/run.py",
    "        if self.saved:\n            self.set_best_right()\n",
    "",
    case="missing",
)
@pytest.mark.parametrize(
    "harm", [shutil.rmtree, lambda best: flip(best / "model.safetensors")], ids=["missing", "flipped"]
)
def test_a_lost_best_model_is_noticed_before_the_training(toy_model, copy, capsys, harm):
    """Catches a run that finds out after all training that it has no best model."""
    harm(copy / "best")
    go(toy_model, copy, steps=5, resume=True)
    out = capsys.readouterr().out
    assert "/best: is " in out and "the model of step 4 is scored and takes its place" in out
    assert out.index("takes its place") < out.index("   5/5 ") and models.damage(copy / "best") is None


def chosen_anew(best: Path, **changes) -> None:
    """Another step or score in chosen.json, as if the run had written it."""
    chosen = json.loads((best / "chosen.json").read_text()) | changes
    (best / "chosen.json").write_text(json.dumps(chosen))
    (best / "checksums.json").write_text(json.dumps(models.checksums(best)))


def score_of_state(last: Path, score: float) -> None:
    """Another score of the best model."""
    forget_checksums(last)
    state = json.loads((last / "state.json").read_text())
    (last / "state.json").write_text(json.dumps(state | {"best": score}))


def between_renames(best: Path) -> None:
    best.rename(best.with_name("best.old"))


def of_an_older_run(best: Path) -> None:
    for name in ("chosen.json", "checksums.json"):
        (best / name).unlink()
    score_of_state(best.parent / "last", -1.0)  # by another measure


@mutant(
    "best that a kill put aside",
    "plainrl/run.py",
    "                take_back(folder)\n",
    "                pass\n",
    case="between_renames",
)
@mutant(
    "best of an older measure",
    "plainrl/run.py",
    "            self.score_best_anew()\n",
    "            pass\n",
    case="of_an_older_run",
)
@mutant(
    "weights of best go on",
    "plainrl/run.py",
    '        put_weights(self.dir / "last", self.model)\n',
    "",
    case="of_an_older_run",
)
@pytest.mark.parametrize("harm", [between_renames, of_an_older_run], ids=lambda harm: harm.__name__)
def test_the_best_model_is_kept(toy_model, five_steps, copy, capsys, harm):
    """Catches a best model that a kill or an older version costs, and a run that goes on from it."""
    harm(copy / "best")
    go(toy_model, copy, steps=5, resume=True)
    out = capsys.readouterr().out
    assert "takes its place" not in out and ("its score is measured" in out) == (harm is of_an_older_run)
    assert_same(copy, five_steps)
    assert not (copy / "best.old").exists()


@mutant(
    "score of a best that is newer",
    "plainrl/run.py",
    'state |= {"best": chosen["score"], "best_step": chosen["step"]}',
    "pass",
    case="6",
)
@mutant("best of another step", "plainrl/run.py", 'chosen["step"] != state["best_step"]:', "False:", case="1")
@pytest.mark.parametrize("step", [6, 1])
def test_best_is_of_the_step_that_the_checkpoint_says(toy_model, copy, capsys, step):
    """Catches a model of a step that is made again whose score is forgotten, and one of an earlier step that
    passes for the best."""
    best = (copy / "best" / "model.safetensors").read_bytes()
    chosen_anew(copy / "best", step=step, score=2.0)
    score_of_state(copy / "last", -1.0)
    go(toy_model, copy, steps=5, resume=True)
    chosen = json.loads((copy / "best" / "chosen.json").read_text())
    assert (chosen["score"] == 2.0) == (step == 6)
    assert ((copy / "final" / "model.safetensors").read_bytes() == best) == (step == 6)
    assert ("best: is of step 1, not of step" in capsys.readouterr().out) == (step == 1)


def test_a_link_to_another_disk(toy_model, five_steps, copy, tmp_path):
    """Catches a checkpoint that cannot be replaced twice where last/ is a link, or that replaces the link."""
    elsewhere = tmp_path / "disk"
    elsewhere.mkdir()
    (copy / "last").rename(elsewhere / "last")
    (copy / "last").symlink_to(elsewhere / "last")
    go(toy_model, copy, steps=5, resume=True, save_every=1)
    assert (copy / "last").is_symlink() and {path.name for path in elsewhere.iterdir()} == {
        "last",
        "last.old",
    }
    assert_same(copy, five_steps)


# --- logs ---------------------------------------------------------------------------------------------------


@mutant(
    "broken line kept, end cut off",
    "plainrl/folder.py",
    "if gone == set(range(count - len(gone) + 1, count + 1)):",
    "if True:",
)
@mutant(
    "a broken line ends the log",
    "plainrl/folder.py",
    "            broken += spoiled\n            spoiled = []\n",
    "",
)
def test_a_broken_line_in_the_middle_costs_itself_alone(tmp_path, capsys):
    """Catches records that are dropped because an earlier line is broken, a broken line that is lost, and a
    cut that nobody is told of."""
    log = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step, "reward/mean": 0.5}).encode() + b"\n" for step in range(6)]
    lines[2:2] = [b'{"step": 1, \xff\n', b"{}\n"]
    log.write_bytes(b"".join(lines) + b'{"step": 6')
    truncate_log(log, 3)
    assert [record["step"] for record in records(tmp_path)] == [0, 1, 2, 3]
    assert (tmp_path / "metrics.jsonl.broken").read_bytes() == b'{"step": 1, \xff\n{}\n'
    out = capsys.readouterr().out
    assert "line 3, 4 cannot be read" in out and "3 lines after step 3 are dropped" in out
    truncate_log(log, 3)
    assert capsys.readouterr().out == ""


@mutant(
    "lines that lie in two blocks", "plainrl/folder.py", "end, rest = begin, first", 'end, rest = begin, b""'
)
@mutant(
    "lines of a block in their order", "plainrl/folder.py", "yield from reversed(others)", "yield from others"
)
@mutant(
    "half a record for the last",
    "plainrl/folder.py",
    "found += [record] if record else []",
    "found += [record]",
)
@mutant("rows of earlier steps too", "plainrl/folder.py", 'record["step"] != found[0]["step"]:', "False:")
def test_the_end_of_a_log_is_read_from_its_end(tmp_path):
    """Catches lines that are cut where two blocks meet, another order, rows of an earlier step, and a last
    line that a kill has cut and that counts."""
    log, rows = tmp_path / "samples.jsonl", [{"step": i // 3, "completion": i * "é\r"} for i in range(30)]
    assert last_records(log) == [] and last_step(log) == -1
    lines = [json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows]
    for end in (b"", b'{"step": 12, "comp'):
        log.write_bytes(b"".join(lines) + end)
        for size in (1, 7, 64, len(b"".join(lines)), 1 << 20):
            assert list(lines_from_the_end(log, size)) == ([end] if end else []) + lines[::-1]
        assert last_records(log) == rows[-3:] and last_step(log) == 9
    log.write_bytes(b"")
    assert last_records(log) == []


@mutant(
    "a whole log in the memory",
    "plainrl/folder.py",
    "for count, line in enumerate(file, start=1):",
    "for count, line in enumerate(file.readlines(), start=1):",
)
@mutant(
    "a whole log in the memory for its end",
    "plainrl/folder.py",
    "size: int = 1 << 20)",
    "size: int = 1 << 40)",
)
def test_a_log_may_be_larger_than_the_memory(tmp_path):
    """Catches a log of which all is in the memory at once, as bytes or as records."""
    log = tmp_path / "samples.jsonl"
    with open(log, "w") as file:
        file.writelines(json.dumps({"step": i, "completion": 20_000 * "x"}) + "\n" for i in range(500))
    tracemalloc.start()
    truncate_log(log, 400)
    assert last_step(log) == 400
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4_000_000 < log.stat().st_size / 2


@mutant(
    "log written in its place",
    "plainrl/folder.py",
    'copy = path.with_name(path.name + ".tmp")',
    "copy = path",
)
def test_a_kill_while_a_log_is_cut_costs_nothing(tmp_path, monkeypatch):
    """Catches a log that is half written, or gone, for a moment."""
    log = tmp_path / "groups.jsonl"
    lines = [json.dumps({"step": step, "split": "train"}) + "\n" for step in range(5)]
    for content in (lines, [lines[0], "broken\n", *lines[1:]]):
        log.write_text("".join(content))
        for owner, name in ((os, "truncate"), (Path, "replace")):
            monkeypatch.setattr(owner, name, lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            truncate_log(log, 2)
        assert log.read_text() == "".join(content)
        monkeypatch.undo()
        truncate_log(log, 2)
        assert log.read_text() == "".join(lines[:3])


def test_a_log_that_ends_before_the_checkpoint_is_said(toy_model, copy, capsys):
    """Catches a gap in the log that nobody is told of."""
    lines = (copy / "metrics.jsonl").read_text().splitlines(keepends=True)
    (copy / "metrics.jsonl").write_text("".join(lines[:3]))
    go(toy_model, copy, steps=4, resume=True)
    assert "ends at step 2: the records up to the checkpoint's step 4 are lost" in capsys.readouterr().out


def test_a_resume_without_a_folder_names_those_beside_it(toy_model, copy):
    """Catches a default folder that has another name now, and nobody who says where the run lies."""
    with pytest.raises(SystemExit, match="there is no run in --out-dir .*other; beside it are run$"):
        go(toy_model, copy.with_name("other"), resume=True)


# --- who gets the folder ------------------------------------------------------------------------------------


@mutant(
    "a folder that is claimed after the loading",
    "plainrl/run.py",
    "            self.claim_folder()\n            check_task(self.task, args)\n",
    "            check_task(self.task, args)\n",
)
def test_a_second_fresh_run_is_refused_before_it_loads_anything(toy_model, tmp_path, monkeypatch):
    """Catches two runs that both find no folder, load their models and then overwrite each other."""
    (tmp_path / "run").mkdir()
    monkeypatch.setattr(run_module, "load_model", None)
    with FileLock(tmp_path / "run" / ".lock", is_singleton=False):
        with pytest.raises(SystemExit, match="--out-dir .*run: another process is writing there"):
            go(toy_model, tmp_path / "run")


class Breaks(HashTask):
    """Its problems of one split cannot be made; the last is asked for before the folder is opened."""

    def problem(self, split, index, seed):
        if (split, index) == ("dev", 0):
            self.break_down()
        return super().problem(split, index, seed)


@mutant(
    "a folder that bars the next try",
    "plainrl/run.py",
    "                self.give_back()\n",
    "                pass\n",
)
@mutant(
    "folder of a run removed",
    "plainrl/folder.py",
    "if folder.exists() and is_unused(folder):",
    "if folder.exists():",
)
def test_a_run_that_fails_before_its_first_record_leaves_no_folder(toy_model, tmp_path, copy):
    """Catches an empty folder that bars the same command the next time, and a resumed run's that goes too."""
    task = Breaks()
    task.break_down = lambda: 1 / 0
    with pytest.raises(ZeroDivisionError):
        go(toy_model, tmp_path / "new", task)
    assert not (tmp_path / "new").exists()
    before = contents(copy)
    with pytest.raises(ZeroDivisionError):
        go(toy_model, copy, task, steps=6, resume=True)
    assert contents(copy).keys() == before.keys()
    remove_if_unused(copy, FileLock(copy / ".lock"))
    assert contents(copy).keys() == before.keys()
    (tmp_path / "new").mkdir()  # as a kill leaves it
    (tmp_path / "new" / "config.json").write_text('{"script": "grpo", "flags": {}}')
    go(toy_model, tmp_path / "new", steps=1)


@mutant(
    "a model's folder is taken for an unused one",
    "plainrl/folder.py",
    '"config.json" not in names or is_config_of_a_run(folder / "config.json")',
    "True",
)
@pytest.mark.parametrize(
    "name, content", [("config.json", '{"model_type": "llama"}'), ("notes.tmp", "precious")]
)
def test_files_of_others_are_refused_and_stay(toy_model, tmp_path, name, content):
    """Catches a fresh run that takes a folder with somebody's files for one of its own, and empties it."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / name).write_text(content)
    with pytest.raises(SystemExit, match="--out-dir .*mine exists"):
        grpo.main(grpo.Args(**quick_flags(toy_model, folder)), task=HashTask())
    assert (folder / name).read_text() == content


@pytest.mark.parametrize(
    "error", [PermissionError(13, "Permission denied"), OSError(28, "No space left on device")]
)
def test_a_folder_that_cannot_be_written_is_one_line(toy_model, tmp_path, monkeypatch, error):
    """Catches a traceback, or minutes of loading, before a folder that nobody may write."""
    monkeypatch.setattr(run_module, "load_model", None)

    def acquire(self):
        raise error

    monkeypatch.setattr(FileLock, "acquire", acquire)
    with pytest.raises(SystemExit, match=f"^error: --out-dir .*run: cannot be written .{error.strerror}."):
        go(toy_model, tmp_path / "run")
    assert not list((tmp_path / "run").iterdir())


def no_room(model) -> bool:
    raise OSError(28, "No space left on device")


def no_room_for_tensors(content, path) -> None:
    raise RuntimeError("[enforce fail at inline_container.cc:668] . PytorchStreamWriter failed writing file")


@mutant(
    "half a checkpoint fills the disk",
    "plainrl/models.py",
    "        shutil.rmtree(aside, ignore_errors=True)  # what",
    "        # what",
)
@mutant("no room is made", "plainrl/models.py", "            shutil.rmtree(spare)\n", "")
def test_a_full_disk_is_one_line_and_the_last_checkpoint_stays(
    toy_model, five_steps, copy, monkeypatch, capsys
):
    """Catches a traceback, a half checkpoint that takes the last free room, or a good one that is lost; and
    a run that ends though an older checkpoint could make room."""
    one_line = (
        r"^error: .*cannot be written \(.*(?:seems to be full|No space left).*\); what was saved before"
    )
    for owner, name, full in ((torch, "save", no_room_for_tensors), (models.lora, "save_adapter", no_room)):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, full if owner is torch else lambda *args: no_room(args))
            with pytest.raises(SystemExit, match=one_line):
                go(toy_model, copy, steps=5, resume=True)
        assert not (copy / "last.tmp").exists()
    with pytest.raises(SystemExit, match=one_line), or_one_line(copy), open("/dev/full", "w") as log:
        log.write("a record")
    original = models.write_folder

    def write_folder(folder, *args):
        if folder.name == "final.tmp" and (copy / "last.old").exists():
            no_room(folder)
        original(folder, *args)

    monkeypatch.setattr(models, "write_folder", write_folder)
    go(toy_model, copy, steps=5, resume=True)
    assert "final: the disk is full; last.old/ is removed" in capsys.readouterr().out
    assert_same(copy, five_steps)


# --- signals ------------------------------------------------------------------------------------------------


class Signalled(HashTask):
    """Sends signals to this process when a problem is asked for the `count`-th time."""

    def __init__(self, at: tuple, *signals, count=1):
        super().__init__()
        self.at, self.signals, self.count = at, signals, count

    def problem(self, split, index, seed):
        self.count -= (split, index) == self.at
        if (split, index) == self.at and self.count == 0:
            for each in self.signals:
                os.kill(os.getpid(), each)
        return super().problem(split, index, seed)


@mutant("SIGTERM kills", "plainrl/run.py", '("SIGINT", "SIGTERM", "SIGHUP")', '("SIGINT", "SIGHUP")')
def test_sigterm_saves_as_ctrl_c_does(toy_model, five_steps, tmp_path):
    """Catches a scheduler's end that loses the step, and handlers that stay when the run is over."""
    handler = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        folder = go(toy_model, tmp_path / "run", Signalled(("train", 5), signal.SIGTERM))
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert json.loads((folder / "last" / "state.json").read_text())["step"] == 3
    go(toy_model, folder, resume=True)
    assert_same(folder, five_steps)


@mutant(
    "signal while a checkpoint is written",
    "plainrl/run.py",
    "stopping = stopping or (saving and self.stop.requested)",
    "pass",
)
def test_a_signal_while_a_checkpoint_is_written(toy_model, tmp_path, monkeypatch):
    """Catches another step, which takes longer than a scheduler waits."""
    original = run_module.save_checkpoint

    def save_checkpoint(*args):
        original(*args)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(run_module, "save_checkpoint", save_checkpoint)
    assert go(toy_model, tmp_path / "run").name == "run" and not (tmp_path / "run" / "final").exists()
    assert records(tmp_path / "run")[-1]["step"] == 2


@mutant("SIGHUP of nohup heard", "plainrl/run.py", "signal.getsignal(number) == signal.SIG_IGN:", "False:")
@pytest.mark.parametrize("handler", [signal.SIG_DFL, signal.SIG_IGN], ids=["terminal", "nohup"])
def test_sighup_is_heard_unless_it_is_ignored(monkeypatch, handler):
    """Catches a closed terminal that loses the step, and a run under nohup that stops at it."""
    before = signal.signal(signal.SIGHUP, handler)
    stop = run_module.StopRequest()
    stop.in_step = True
    try:
        os.kill(os.getpid(), signal.SIGHUP)
        assert stop.requested == (handler == signal.SIG_DFL)
    finally:
        stop.forget()
        assert signal.signal(signal.SIGHUP, before) == handler


def test_ctrl_c_before_the_first_step_and_twice(toy_model, tmp_path, capsys):
    """Catches a Ctrl-C during the first scores that waits for a step, a second one that does, and a
    traceback."""
    with pytest.raises(SystemExit) as stop:
        go(toy_model, tmp_path / "first", Signalled(("dev", 0), signal.SIGINT))
    assert stop.value.code == 130 and not (tmp_path / "first").exists()
    assert "stopped at once; there was no checkpoint yet" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        go(toy_model, tmp_path / "twice", Signalled(("train", 5), signal.SIGINT, signal.SIGINT))
    assert stop.value.code == 130 and "--resume goes on from its last checkpoint" in capsys.readouterr().out
    assert json.loads((tmp_path / "twice" / "last" / "state.json").read_text())["step"] == 2


def test_ctrl_c_while_a_tiny_model_is_made(tmp_path, monkeypatch):
    """Catches a traceback, and half a model."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    monkeypatch.setitem(make_tiny.CORPORA, "chain", lambda *args: iter([]))
    monkeypatch.setattr(make_tiny, "build_tokenizer", lambda texts: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit) as stop:
        make_tiny.main(make_tiny.Args(out_dir=tmp_path / "tiny"))
    for number, handler in before.items():
        signal.signal(number, handler)
    assert stop.value.code == 128 + signal.SIGTERM and not list(tmp_path.iterdir())
