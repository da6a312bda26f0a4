"""Kills runs of the training scripts with SIGKILL at chosen points and resumes them. `python
resume_driver.py TOY_MODEL OUT`

One process imports torch once and forks each life of each run (it never computes itself, so nothing but
memory is inherited). Leaves OUT/<script>/<point>/, OUT/<script>/uninterrupted/ and OUT/<script>/report.json:
the exit status of each life and what lay on the disk between them.
"""

import gc
import json
import os
import signal
import sys
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch  # noqa: E402
import toys  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from transformers.conversion_mapping import get_checkpoint_conversion_mapping  # noqa: E402

import grpo  # noqa: E402
import guide  # noqa: E402
import h1_curriculum  # noqa: E402
import siren  # noqa: E402
from papers import adaptive_bonus, dapo  # noqa: E402
from plainrl import curves, run  # noqa: E402
from plainrl.rollout import completion_seed  # noqa: E402

SEED = 10
SCRIPTS = (
    (grpo, {}),
    (dapo, {"max_refills": 3, "overlong_buffer": 4}),
    (siren, {"beta": 1.0}),
    (guide, {"max_refills": 2}),
    (adaptive_bonus, {"bonus": 0.1, "bonus_rate": 1e-3, "target_share": 1.1}),
    (h1_curriculum, {"max_horizon": 3, "steps_per_stage": 2, "eval_problems": 3}),
)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def kill_on_call(owner, name: str, number: int, after: bool = False, when=lambda *args: True) -> None:
    """Replace owner.name by itself with a SIGKILL before (or after) its `number`-th call for which `when`
    holds."""
    original, calls = getattr(owner, name), 0

    def function(*args, **kwargs):
        nonlocal calls
        calls += when(*args)
        last_call = calls == number and when(*args)
        if last_call and not after:
            die()
        result = original(*args, **kwargs)
        if last_call:
            die()
        return result

    setattr(owner, name, function)


def write_half_a_line(self, record):
    """What a kill in the middle of a write leaves."""
    if record["step"] == 3:
        with open(self.dir / "metrics.jsonl", "a") as file:
            file.write(json.dumps(record)[:40])
        die()
    original_log(self, record)


def first_round_of_step_3(sampler, tokenizer, task, problems, prompts, seeds) -> bool:
    return seeds[0] == completion_seed(SEED, 3, 0, 0, 0)


original_log = run.Run.log

# Checkpoints are due after steps 2, 4 and 5, scores on dev after each: best/ is often newer than last/. A
# step makes two updates, of papers/dapo.py at most two.
POINTS = {
    "before the first checkpoint": lambda script: kill_on_call(script, "accumulate_gradients", 2, after=True),
    "in the middle of a log line": lambda script: setattr(run.Run, "log", write_half_a_line),
    "during a step": lambda script: kill_on_call(run.Run, "optimizer_step", 5, after=True),
    "while sampling": lambda script: kill_on_call(
        run, "sample_rollout", 1, after=True, when=first_round_of_step_3
    ),
    "while a checkpoint is written": lambda script: kill_on_call(torch, "save", 2),
    "between the renames": lambda script: kill_on_call(
        Path, "rename", 1, True, lambda old, new: new.name == "last.old"
    ),
    "after last, before best": lambda script: kill_on_call(run, "save_checkpoint", 2, after=True),
}


# What lies on the disk is the same for every script, but for the curriculum's stage. The others have a state
# of their own. It must come back where one step is made again, and where several are.
ALL_POINTS, OWN_STATE = ("grpo", "h1_curriculum"), ("during a step", "between the renames")


def points_of(script: str) -> list[str]:
    """The points that a script is killed at."""
    return [point for point in POINTS if script in ALL_POINTS or point in OWN_STATE]


def score_that_rises(toy_model: str):
    """In place of metrics.evaluate: the distance from the first weights, so that every score writes best/
    anew."""

    def evaluate(sampler, tokenizer, task, *rest) -> tuple[dict, list]:
        first = load_file(Path(toy_model) / "model.safetensors")
        weights = sampler.model.named_parameters()
        distance = sum((weight - first[name]).abs().sum().item() for name, weight in weights)
        return {"score": distance, "avg@2": distance}, []

    return evaluate


def flags_of(toy_model: str, out_dir: Path, extra: dict) -> dict:
    """Of a run of five steps that takes a second."""
    common = dict(minibatches=2, max_new_tokens=6, micro_batch_tokens=200, seed=SEED, eval_every=1)
    return toys.quick_flags(toy_model, out_dir, **common, **extra)


def start(script, flags: dict, prepare=lambda script: None, screen: Path | None = None) -> int:
    """Run main in a forked process, which calls `prepare` first; its screen may go to a file. Returns its
    process id."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            if screen:
                file = os.open(screen, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                os.dup2(file, 1), os.dup2(file, 2)
            curves.plot_run = lambda folder: None
            run.git_commit = lambda: None
            run.evaluate = score_that_rises(flags["model"])
            prepare(script)
            script.main(script.Args(**flags), task=toys.HashTask())
            status = 0
        except SystemExit as stop:  # as the interpreter ends
            if isinstance(stop.code, int):
                status = stop.code
            else:
                print(stop.code, file=sys.stderr, flush=True)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(status)
    return child


def end_of(child: int) -> int:
    """The exit status (-9: killed)."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def on_disk(folder: Path) -> dict:
    state = folder / "last" / "state.json"
    records = (folder / "metrics.jsonl").read_text()
    return {
        "checkpoint": json.loads(state.read_text())["step"] if state.exists() else None,
        "log_lines": records.count("\n"),
        "half_line": not records.endswith("\n"),
        "folders": sorted(path.name for path in folder.iterdir() if path.is_dir()),
    }


def rehearse(script, extra: dict, toy_model: str, out: Path) -> None:
    """The uninterrupted run of one script, and a killed and resumed one for each point."""
    flags = flags_of(toy_model, out, extra)
    report = {"uninterrupted": end_of(start(script, flags | {"out_dir": out / "uninterrupted"}))}
    for point in points_of(out.name):
        folder = out / point
        killed = end_of(start(script, flags | {"out_dir": folder}, POINTS[point]))
        between = on_disk(folder)
        resumed = end_of(start(script, flags | {"out_dir": folder, "resume": True}))
        report[point] = {"killed": killed, "between": between, "resumed": resumed}
    (out / "report.json").write_text(json.dumps(report, indent=1))


def main(toy_model: str, out: Path) -> None:
    get_checkpoint_conversion_mapping("llama")  # which the first model that is loaded needs
    gc.freeze()  # what was imported here need not be looked through in every life
    children = []
    for script, extra in SCRIPTS:
        children.append(os.fork())
        if children[-1] == 0:
            rehearse(script, extra, toy_model, out / script.__name__.split(".")[-1])
            os._exit(0)
    sys.exit(max(map(end_of, children)))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
