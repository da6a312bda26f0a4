"""--track: what wandb and TensorBoard get of a run, of one that is stopped and of one that goes on.

Both packages are stand-ins here; the last test is for where they are installed.
"""

import json
import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from mutants import mutant
from toys import HashTask, quick_flags, records

import grpo
from plainrl import run as run_module, trackers

pytestmark = pytest.mark.usefixtures("quick")


class Stop(HashTask):
    """Asks the run to stop, as Ctrl-C does, while the second step is graded."""

    def grade(self, completion, problem):
        if problem.prompt.startswith("train 2 "):
            os.kill(os.getpid(), signal.SIGINT)
        return super().grade(completion, problem)


@pytest.fixture
def run(toy_model, tmp_path):
    """run(name, task=None, **flags) -> the output folder of a quick run."""

    def function(name="run", task=None, **changes) -> Path:
        flags = quick_flags(toy_model, tmp_path / name, **({"steps": 2, "save_every": 1} | changes))
        grpo.main(grpo.Args(**flags), task=task or HashTask())
        return tmp_path / name

    return function


class FakeRun:
    """A run of wandb as far as it is used. `step` is the next that it takes; earlier ones it drops."""

    def __init__(self, folder: Path, step: int, mode: str):
        self.dir, self.step, self.summary = str(folder), step, {}
        self.offline, self.sync_dir = mode == "offline", f"{folder}/offline run"
        self.url = "https://wandb.invalid/run" if mode == "online" else None
        self.logged, self.saved, self.finished, self.exit_code = [], [], False, None

    def log(self, metrics, step=None) -> None:
        assert not self.finished and (step is None or step >= self.step), "a step that goes back is lost"
        self.logged.append((step, metrics))

    def save(self, path, base_path, policy) -> None:
        self.saved.append(Path(path).name)

    def finish(self, exit_code: int) -> None:
        self.finished, self.exit_code = True, exit_code


@pytest.fixture
def wandb(monkeypatch, tmp_path):
    """Stands in for the package: `runs` holds what was opened, `settings` what it was opened with."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    media = lambda kind: lambda data=None, **options: (kind, data or options)  # noqa: E731
    fake = SimpleNamespace(runs=[], settings=[], next_step=0, mode="offline", logins=0)
    fake.folder = tmp_path / "wandb"

    def init(**settings):
        folder = Path(f"{fake.folder}{len(fake.runs)}")
        folder.mkdir()
        fake.settings.append(settings)
        fake.runs.append(FakeRun(folder, fake.next_step, fake.mode))
        return fake.runs[-1]

    def login():
        fake.logins += 1

    fake.init, fake.login, fake.Error = init, login, type("Error", (Exception,), {})
    fake.Html, fake.Image, fake.Table, fake.Settings = map(media, ("html", "image", "table", "settings"))
    fake.setup = lambda: SimpleNamespace(settings=SimpleNamespace(mode=fake.mode))
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


@pytest.fixture
def writers(monkeypatch):
    """Stands in for TensorBoard: the writers that were opened."""
    opened = []

    class SummaryWriter:
        def __init__(self, folder, purge_step):
            self.purge_step, self.scalars, self.texts, self.images = purge_step, [], {}, {}
            self.flushed, self.closed = 0, False
            opened.append(self)

        def add_scalar(self, name, value, step):
            assert isinstance(value, int | float)
            self.scalars.append((name, step))

        def add_text(self, name, text, step):
            self.texts[name] = (text, step)

        def add_image(self, name, image, step, dataformats):
            self.images[name] = (image.shape, step, dataformats)

        def flush(self):
            self.flushed = len(self.scalars)

        def close(self):
            self.closed = True

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=SummaryWriter))
    return opened


def steps_of(fake_run: FakeRun) -> list[int]:
    return [step for step, _ in fake_run.logged if step is not None]


# --- refused before anything is loaded ----------------------------------------------------------------------


@mutant("tracker that is missed too late", "plainrl/run.py", "        check_tracker(args.track)\n", "")
@pytest.mark.parametrize("kind, module", [("wandb", "wandb"), ("tensorboard", "torch.utils.tensorboard")])
def test_missing_tracker_says_what_to_install(run, monkeypatch, tmp_path, kind, module):
    """Catches a run that goes on without the log that was asked for, or one that loads a model first."""
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr(run_module, "load_model", None)
    with pytest.raises(SystemExit, match=f"^error: --track {kind}: .* pip install {kind}$"):
        run(track=kind)
    assert not (tmp_path / "run").exists()


@mutant(
    "key that wandb misses after an hour",
    "plainrl/trackers.py",
    'wandb.setup().settings.mode == "online"',
    "False",
)
def test_wandb_asks_for_its_key_first(run, wandb, monkeypatch):
    """Catches a key that is missed when the model is loaded and scored, and an offline run that needs one."""

    def no_key():
        raise wandb.Error("No API key configured.\nUse `wandb login`.")

    run("offline", track="wandb")
    assert wandb.logins == 0
    wandb.mode, wandb.login = "online", no_key
    monkeypatch.setattr(run_module, "load_model", None)
    with pytest.raises(SystemExit, match="^error: --track wandb: No API key configured. Or set WANDB_MODE="):
        run(track="wandb")


# --- wandb --------------------------------------------------------------------------------------------------


@mutant(
    "wandb without steps",
    "plainrl/trackers.py",
    'self.run.log(metrics, step=record["step"])',
    "self.run.log(metrics)",
)
def test_wandb_gets_every_record(run, wandb):
    """Catches records that are missed, other names or steps than in metrics.jsonl, and entries of None."""
    folder = run(track="wandb")
    sent = [(step, metrics) for step, metrics in wandb.runs[0].logged if step is not None]
    logged = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    expected = [
        (record.pop("step"), {name: value for name, value in record.items() if value is not None})
        for record in logged
    ]
    assert sent == expected and [step for step, _ in sent] == [0, 1, 2, 2]
    assert wandb.settings[0]["config"]["flags"]["steps"] == 2


@mutant(
    "resumed run under a new id",
    "plainrl/trackers.py",
    "        if not path.exists():\n",
    "        if True:\n",
)
@mutant(
    "log of wandb that begins in the middle",
    "plainrl/trackers.py",
    '        for record in records_of(out_dir / "metrics.jsonl"):\n            self.log(record)\n',
    "",
)
def test_offline_each_log_of_wandb_holds_the_whole_run(run, wandb):
    """Catches a resumed run that is another one for wandb, and steps that a kill took with it."""
    run(track="wandb")
    run(track="wandb", steps=3, resume=True)
    one, other = wandb.settings
    assert one["id"] == other["id"] and other["resume"] == "allow"
    assert steps_of(wandb.runs[0]) == [0, 1, 2, 2] and steps_of(wandb.runs[1]) == [0, 1, 2, 3, 3]


@mutant(
    "steps that wandb refuses",
    "plainrl/trackers.py",
    'if record["step"] >= self.next_step',
    "if True",
)
@mutant("last scores that wandb never gets", "plainrl/trackers.py", "elif is_closing(record):", "elif False:")
def test_online_wandb_gets_what_it_does_not_have(run, wandb):
    """Catches steps that are sent twice (the stand-in refuses them), and test scores that are lost where the
    last step had been sent before a kill."""
    run(track="wandb")
    wandb.next_step = 3  # as wandb.ai says: it has 0, 1 and 2
    folder = run(track="wandb", resume=True)  # nothing is left to do but the test scores
    assert steps_of(wandb.runs[1]) == []
    closing = {name: value for name, value in records(folder)[-1].items() if name != "step"}
    assert closing and wandb.runs[1].summary == closing
    run(track="wandb", steps=3, resume=True)
    assert steps_of(wandb.runs[2]) == [3, 3]


@mutant(
    "project that --track forgets",
    "plainrl/trackers.py",
    'if f"WANDB_{key.upper()}" not in os.environ}',
    "}",
)
def test_variables_of_wandb_hold(run, wandb, monkeypatch):
    """Catches a project or name of ours over the user's, and an entity that nobody asked for."""
    run("plain", track="wandb")
    monkeypatch.setenv("WANDB_PROJECT", "theirs")
    monkeypatch.setenv("WANDB_NAME", "their run")
    monkeypatch.setenv("WANDB_RUN_ID", "their-id")
    run(track="wandb")
    ours, theirs = wandb.settings
    assert (ours["project"], ours["name"]) == ("plainrl", "grpo plain")
    assert not {"project", "name", "entity", "mode"} & theirs.keys() and theirs["id"] == "their-id"


@mutant(
    "tracker that is not closed",
    "plainrl/run.py",
    "tracker.close(failed=not self.over)",
    "pass",
)
@pytest.mark.parametrize("stopped", [False, True])
def test_wandb_gets_report_curves_and_samples(run, wandb, monkeypatch, stopped):
    """Catches a run, ended or stopped, that leaves wandb open, or without what lies in its folder."""
    original = trackers.WandB.close

    def close(self, failed):  # the real report and curves take seconds
        (self.out_dir / "report.html").write_text("<html>")
        (self.out_dir / "curves.png").write_bytes(b"png")
        original(self, failed)

    monkeypatch.setattr(trackers.WandB, "close", close)
    folder = run(task=Stop() if stopped else None, track="wandb", steps=3)
    fake = wandb.runs[0]
    assert fake.finished and fake.exit_code == 0 and max(steps_of(fake)) == (2 if stopped else 3)
    step, media = fake.logged[-1]
    assert step is None and media["report"] == ("html", str(folder / "report.html"))
    assert media["curves"] == ("image", str(folder / "curves.png"))
    rows = media["samples"][1]
    assert len(rows) == 4 and {row[0] for row in rows} == {str(max(steps_of(fake)))}
    assert {"report.html", "curves.png", "metrics.jsonl", "samples.jsonl"} <= set(fake.saved)
    assert (Path(fake.dir) / "samples.jsonl").read_bytes() == (folder / "samples.jsonl").read_bytes()


class Breaks(HashTask):
    """Has no problem of this split and index, once it was asked for training problems."""

    def __init__(self, split: str, index: int):
        super().__init__()
        self.missing = (split, index)

    def problem(self, split, index, seed):
        if (split, index) == self.missing and ("train", 1) in self.asked:
            raise ZeroDivisionError
        return super().problem(split, index, seed)


@mutant("tracker that stays open after an error", "plainrl/run.py", "if not at_the_end:", "if False:")
@mutant(
    "error in the last scores that leaves all open",
    "plainrl/run.py",
    "with contextlib.closing(self):",
    "with contextlib.nullcontext():",
)
@mutant("broken run that wandb calls finished", "plainrl/run.py", "failed=not self.over", "failed=False")
def test_an_error_closes_the_tracker(run, wandb, writers):
    """Catches an error in a step, or in the scores at the end, that leaves the tracker open, and a broken run
    that looks like one that came to its end."""
    for missing in (("train", 2), ("test", 0)):
        for kind in ("wandb", "tensorboard"):
            with pytest.raises(ZeroDivisionError):
                run(f"{missing[0]} {kind}", task=Breaks(*missing), track=kind)
    assert [(fake.finished, fake.exit_code) for fake in wandb.runs] == [(True, 1)] * 2
    assert len(writers) == 2 and all(writer.closed for writer in writers)


@mutant(
    "file of any size attached",
    "plainrl/trackers.py",
    "if path.stat().st_size > MOST_ATTACHED:",
    "if False:",
)
def test_a_large_file_is_not_attached(run, wandb, monkeypatch, capsys):
    """Catches gigabytes of samples that a run copies and sends at its end, and one that keeps them without a
    word."""
    monkeypatch.setattr(trackers, "MOST_ATTACHED", 2000)
    folder = run(track="wandb")
    sizes = {name: (folder / name).stat().st_size for name in trackers.LOGS}
    kept = {name for name in sizes if sizes[name] > 2000}
    assert set(wandb.runs[0].saved) == sizes.keys() - kept
    assert 0 < len(kept) < 4, sizes
    (said,) = [line for line in capsys.readouterr().out.splitlines() if "--track wandb:" in line]
    assert all(f"{name} (0 MB)" in said for name in kept) and f"all is in {folder}" in said


@mutant(
    "run that ends with its tracker",
    "plainrl/trackers.py",
    "except (self.wandb.Error, OSError) as error:  # its process",
    "except self.wandb.Error as error:  # its process",
)
@mutant("a number for a reason", "plainrl/trackers.py", 'getattr(error, "strerror", None) or ', "")
def test_a_tracker_that_dies_ends_no_run(run, wandb, monkeypatch, capsys):
    """Catches hours of training that end because the process of wandb was killed."""

    def log(self, metrics, step=None):
        if step == 1:
            raise ConnectionResetError(104, "Connection lost")

    monkeypatch.setattr(FakeRun, "log", log)
    folder = run(track="wandb")
    assert len(records(folder)) == 4 and not wandb.runs[0].finished
    assert (
        capsys.readouterr().out.count("--track wandb: gets nothing more (Connection lost); all is in ") == 1
    )


@mutant("offline run that nobody can send", "plainrl/trackers.py", "if self.run.offline:", "if False:")
@mutant("page of wandb that nobody finds", "plainrl/trackers.py", "elif self.run.url:", "elif False:")
def test_the_screen_says_where_to_look(run, wandb, writers, capsys):
    """Catches metrics that were sent, and nobody is told how to look at them, a folder that a shell takes for
    two, and an address of a run that wandb does not have."""
    for mode, said in (
        ("offline", f"send it to wandb: wandb sync '{wandb.folder}0/offline run'"),
        ("online", "look at its metrics in wandb: https://wandb.invalid/run"),
        ("disabled", None),
    ):
        wandb.mode = mode
        run(mode, track="wandb")
        lines = [line for line in capsys.readouterr().out.splitlines() if "wandb:" in line]
        assert lines == ([said] if said else [])
    folder = run("its metrics", track="tensorboard")
    assert f"look at its metrics: tensorboard --logdir '{folder}'\n" in capsys.readouterr().out


# --- TensorBoard --------------------------------------------------------------------------------------------


@mutant(
    "steps that TensorBoard shows twice",
    "plainrl/trackers.py",
    "purge_step=first_step + 1 if first_step else 0",
    "purge_step=first_step + 2 if first_step else 1",
)
@mutant(
    "steps that a kill takes",
    "plainrl/trackers.py",
    "        self.writer.flush()  # a run",
    "        # a run",
)
def test_tensorboard_gets_every_record(run, writers):
    """Catches records that are missed, and steps that stand there twice after a resume."""
    folder = run(track="tensorboard")
    expected = [
        (name, record["step"])
        for record in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        for name, value in record.items()
        if name != "step" and value is not None
    ]
    first = writers[0]
    assert first.scalars == expected and first.flushed == len(expected) and first.closed
    assert first.purge_step == 0
    run(track="tensorboard", steps=3, resume=True)
    assert writers[1].purge_step == 3 and {step for _, step in writers[1].scalars} == {3}


@mutant(
    "markdown of a stranger",
    "plainrl/trackers.py",
    'return "\\n".join(f"    {line}"',
    'return "\\n".join(line',
)
def test_tensorboard_shows_text_as_text(writers, tmp_path):
    """Catches a completion that TensorBoard reads as markdown or that steers a terminal, and rows of an
    earlier step."""
    completion = "# Big\n<b>bold</b> \x1b[2J\u202e"
    rows = [{"step": 1, "completion": "of before"}, {"step": 2, "completion": completion, "reward": 1.0}]
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tracker = trackers.open_tracker("tensorboard", tmp_path, {}, 0)
    tracker.log({"step": 2, "reward/mean": 0.5, "eval/x/avg@2": None})
    tracker.close()
    text, step = writers[0].texts["samples"]
    assert step == 2 and "of before" not in text and "    <b>bold</b> \\x1b[2J\\u202e" in text
    assert all(line.startswith("    ") for line in text.splitlines())
    assert "report" not in writers[0].texts and not writers[0].images


# --- the packages themselves --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["wandb", "tensorboard"])
def test_the_package_itself(run, monkeypatch, kind):
    """Catches a package that takes other arguments than the stand-ins. Skipped where it is not installed."""
    package = pytest.importorskip(kind)
    monkeypatch.setenv("WANDB_MODE", "offline")
    folder = run(track=kind)
    if kind == "wandb":
        package.teardown()  # waits, as the end of a process does, for its own process to write the rest
    logs = list(
        folder.glob("wandb/offline-run-*/run-*.wandb" if kind == "wandb" else "events.out.tfevents.*")
    )
    assert len(logs) == 1 and logs[0].stat().st_size > 1000
    if kind == "tensorboard":
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(folder)).Reload()
        assert [event.step for event in events.Scalars("reward/mean")] == [1, 2]
