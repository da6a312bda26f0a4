"""Runs that are stopped with Ctrl-C after a step, and whether what they leave is that of another run."""

import contextlib
import os
import signal
from pathlib import Path

from toys import records

from plainrl.run import Run


@contextlib.contextmanager
def stopping_after(step: int):
    """Runs that begin in here get a Ctrl-C when they log this step."""
    log = Run.log

    def log_and_interrupt(self, record):
        log(self, record)
        if record["step"] == step and "reward/mean" in record:
            os.kill(os.getpid(), signal.SIGINT)

    Run.log = log_and_interrupt
    try:
        yield
    finally:
        Run.log = log


def assert_same_run(one: Path, other: Path) -> None:
    """Equal metrics, weights and state."""
    assert records(one) == records(other)
    for name in ("model.safetensors", "state.json"):
        assert (one / "last" / name).read_bytes() == (other / "last" / name).read_bytes(), name
