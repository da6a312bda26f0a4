"""Where the metrics go besides metrics.jsonl: --track wandb or --track tensorboard.

A tracker is opened with the first record of a run and has two methods:

    log(record)     one record of metrics.jsonl: {"step": 7, "reward/mean": 0.25, ...}
    close(failed)   nothing more comes, after an error if it `failed`: attach what lies in the run's folder

One of your own is a class with these two, a line for it in `open_tracker`, and its name in the type of
--track (plainrl/flags.py).
"""

import os
import secrets
import shlex
import shutil
from pathlib import Path

from plainrl import ranks
from plainrl.folder import LOGS, is_closing, last_records, or_one_line, records_of, write_text
from plainrl.screen import fail, say, shown

SAMPLE_COLUMNS = ("step", "prompt", "completion", "parsed", "reward", "why")
FILES = ("report.html", "curves.png", *LOGS)
MOST_ATTACHED = 50_000_000  # bytes of a file that wandb gets


def check_tracker(kind: str) -> None:
    """Refuse a tracker that cannot work: for a run to call before it loads anything."""
    try:
        if kind == "wandb":
            import wandb
        elif kind == "tensorboard":
            import torch.utils.tensorboard  # noqa: F401
    except ImportError:
        fail(f"--track {kind}: the package is not installed; run: pip install {kind}")
    if kind == "wandb" and ranks.MAIN and wandb.setup().settings.mode == "online":
        way_out = "set WANDB_MODE=offline, and `wandb sync` sends the run later"
        try:
            wandb.login()  # asks for a key at a terminal where there is none
        except wandb.Error as error:
            fail(f"--track wandb: {str(error).splitlines()[0]} Or {way_out}")


def open_tracker(kind: str, out_dir: Path, config: dict, first_step: int):
    """The tracker that --track names. `first_step` is the step of the checkpoint that the run goes on from,
    0 where there is none."""
    if kind == "wandb":
        return WandB(out_dir, config)
    if kind == "tensorboard":
        return TensorBoard(out_dir, first_step)
    raise ValueError(f"--track {kind}: there is no such tracker")


class WandB:
    """Weights & Biases. Its own variables hold as anywhere: WANDB_MODE, WANDB_PROJECT, WANDB_ENTITY, ...

    The id stays in the run's folder, so that a run that is resumed goes on under it. wandb refuses steps that
    go back, and offline each process writes a log of its own, of which a kill may lose the end. So whatever
    of metrics.jsonl wandb does not have is sent first: each offline log holds the whole run.
    """

    def __init__(self, out_dir: Path, config: dict):
        import wandb

        self.wandb, self.out_dir = wandb, out_dir
        path, new_id = out_dir / "wandb-id", os.environ.get("WANDB_RUN_ID", secrets.token_hex(4))
        if not path.exists():
            with or_one_line(out_dir):
                write_text(path, new_id)
        ours = {"dir": out_dir, "config": config, "id": path.read_text(), "resume": "allow"}
        defaults = {"project": "plainrl", "name": f"{config['script']} {out_dir.name}"}
        # What is given to wandb.init wins over its variables: so nothing is given where one is set.
        ours |= {key: value for key, value in defaults.items() if f"WANDB_{key.upper()}" not in os.environ}
        quiet = wandb.Settings(quiet=True)  # the screen has shown every step
        try:
            self.run = wandb.init(**ours, allow_val_change=True, settings=quiet)  # --steps may have changed
        except wandb.Error as error:
            fail(f"--track wandb: {str(error).splitlines()[0]}; go on with --resume, and WANDB_MODE=offline")
        self.next_step = self.run.step  # of those that wandb takes; 0 unless wandb.ai knows the run
        for record in records_of(out_dir / "metrics.jsonl"):
            self.log(record)

    def log(self, record: dict) -> None:
        if self.run is None:  # it broke before
            return
        try:
            self.send(record)
        except (self.wandb.Error, OSError) as error:  # its process is gone
            self.run = None
            rest = f"all is in {self.out_dir}, and --resume sends it"
            say(f"--track wandb: gets nothing more ({reason(error)}); {rest}")

    def send(self, record: dict) -> None:
        metrics = {name: value for name, value in record.items() if name != "step" and value is not None}
        if record["step"] >= self.next_step:
            self.run.log(metrics, step=record["step"])
        elif is_closing(record):  # the last step was sent before a kill, and its scores were not
            self.run.summary.update(metrics)

    def close(self, failed: bool = False) -> None:
        """The report and the curves as media, the last samples as a table, and all of them as files too,
        unless they are large. Then how to look at it."""
        if self.run is None:
            return
        media = {}
        try:
            if (self.out_dir / "report.html").exists():
                media["report"] = self.wandb.Html(str(self.out_dir / "report.html"), inject=False)
            if (self.out_dir / "curves.png").exists():
                media["curves"] = self.wandb.Image(str(self.out_dir / "curves.png"))
            rows = last_records(self.out_dir / "samples.jsonl")
            if rows:
                cells = [[str(row.get(column)) for column in SAMPLE_COLUMNS] for row in rows]
                media["samples"] = self.wandb.Table(columns=list(SAMPLE_COLUMNS), data=cells)
            if media:
                self.run.log(media)
            large = []
            for path in [self.out_dir / name for name in FILES if (self.out_dir / name).exists()]:
                if path.stat().st_size > MOST_ATTACHED:
                    large.append(f"{path.name} ({path.stat().st_size / 1e6:.0f} MB)")
                    continue
                copy = shutil.copy(path, self.run.dir)  # wandb sends what lies in a folder of its own
                self.run.save(copy, base_path=self.run.dir, policy="now")
            if large:
                said = f"{', '.join(large)} not attached, above {MOST_ATTACHED / 1e6:.0f} MB"
                say(f"--track wandb: {said}; all is in {self.out_dir}")
            self.run.finish(exit_code=int(failed))
            if self.run.offline:
                say(f"send it to wandb: wandb sync {shlex.quote(self.run.sync_dir)}")
            elif self.run.url:
                say(f"look at its metrics in wandb: {self.run.url}")
        except (self.wandb.Error, OSError) as error:  # no attachment is worth a run
            say(f"--track wandb: not everything was attached ({reason(error)})")


def reason(error: Exception) -> str:
    """In one line, without the number that a system's error has."""
    return getattr(error, "strerror", None) or (str(error) or type(error).__name__).splitlines()[0]


class TensorBoard:
    """Event files in the run's folder. Steps that a resumed run makes again take the places of the earlier
    ones. `tensorboard --logdir runs` shows all runs beside each other."""

    def __init__(self, out_dir: Path, first_step: int):
        from torch.utils.tensorboard import SummaryWriter

        self.out_dir, self.step = out_dir, first_step
        self.writer = SummaryWriter(out_dir, purge_step=first_step + 1 if first_step else 0)

    def log(self, record: dict) -> None:
        self.step = record["step"]
        for name, value in record.items():
            if name != "step" and value is not None:
                self.writer.add_scalar(name, value, self.step)
        self.writer.flush()  # a run that is killed leaves all its steps

    def close(self, failed: bool = False) -> None:
        """The curves as a picture, the last samples and the path of the report as text. Then how to look at
        it."""
        if (self.out_dir / "curves.png").exists():
            from matplotlib.image import imread

            self.writer.add_image("curves", imread(self.out_dir / "curves.png"), self.step, dataformats="HWC")
        rows = last_records(self.out_dir / "samples.jsonl")
        texts = [f"{key}: {row.get(key)}" for row in rows for key in SAMPLE_COLUMNS]
        if texts:
            self.writer.add_text("samples", as_code("\n".join(texts)), self.step)
        if (self.out_dir / "report.html").exists():
            self.writer.add_text("report", as_code(str(self.out_dir / "report.html")), self.step)
        self.writer.close()
        say(f"look at its metrics: tensorboard --logdir {shlex.quote(str(self.out_dir))}")


def as_code(text: str) -> str:
    """A stranger's text for a page that reads markdown: four spaces before a line leave it as it is."""
    return "\n".join(f"    {line}" for line in shown(text).splitlines())
