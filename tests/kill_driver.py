"""Kills an evaluation with SIGKILL ten times and lets it go on each time. `python kill_driver.py TOY_MODEL
OUT`

One process imports torch and transformers once and forks each life of the evaluation. Leaves
OUT/undisturbed/, OUT/killed/ and OUT/report.json.
"""

import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM  # noqa: E402, F401  (once, before the forks)
from transformers.conversion_mapping import get_checkpoint_conversion_mapping  # noqa: E402

import eval as evaluation  # noqa: E402

KILLS = 10


def start(toy_model: str, folder: Path) -> int:
    """Fork a life of the evaluation; returns its process id."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            flags = dict(
                task="chain?horizon=1-2", problems=24, samples=8, max_new_tokens=16, rows_at_once=8
            )  # 48 batches
            evaluation.main(evaluation.Args(model=toy_model, out_dir=folder, **flags))
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return child


def end_of(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def written(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def main(toy_model: str, out: Path) -> None:
    get_checkpoint_conversion_mapping("llama")  # which every model that is loaded needs
    started = time.time()
    assert end_of(start(toy_model, out / "undisturbed")) == 0
    seconds, rng = time.time() - started, random.Random(0)
    killed, on_disk, folder = 0, [], out / "killed"
    while killed < KILLS:
        before = written(folder / "config.json")
        child = start(toy_model, folder)
        deadline = time.time() + 60
        while written(folder / "config.json") == before:  # until the model is loaded and sampling begins
            assert time.time() < deadline, "the evaluation does not begin"
            time.sleep(0.001)
        time.sleep(rng.uniform(0, seconds / 6))
        os.kill(child, signal.SIGKILL)
        killed += end_of(child) == -signal.SIGKILL
        on_disk.append(lines(folder / "samples.jsonl"))
        if (folder / "results.json").exists():  # it came to its end before the kill: from the start again
            (folder / "results.json").unlink()
            (folder / "samples.jsonl").unlink()
    ended = end_of(start(toy_model, folder)) == 0
    (out / "report.json").write_text(
        json.dumps({"killed": killed, "samples_on_disk": on_disk, "ended": ended, "seconds": seconds})
    )


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
