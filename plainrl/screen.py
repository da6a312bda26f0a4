"""What the user sees: lines on the screen, and the one line that ends a run which cannot work."""

import sys
import time

from plainrl import ranks


def say(text: str) -> None:
    """Print, once for all ranks."""
    if ranks.MAIN:
        print(text, flush=True)


def fail(message: str) -> None:
    """Stop with one clear line."""
    if not ranks.MAIN:
        time.sleep(2)  # most often the main rank says the same and ends the others
    if ranks.several():
        ranks.leave(f"error: {message}")
    sys.exit(f"error: {message}")


def or_fail(function, *arguments):
    """Call it. The message of a ValueError becomes the one line that the user sees."""
    try:
        return function(*arguments)
    except ValueError as error:
        fail(str(error))


def in_one_process(script: str) -> None:
    """Refuse several processes, which would do the same thing side by side."""
    if ranks.WORLD_SIZE > 1:
        fail(f"{script} runs in one process; start one on each GPU (CUDA_VISIBLE_DEVICES) without torchrun")


def minutes(seconds: float) -> str:
    """Seconds as h:mm:ss.

    >>> minutes(3725.9)
    '1:02:05'
    """
    seconds = int(seconds)
    return f"{seconds // 3600}:{seconds % 3600 // 60:02d}:{seconds % 60:02d}"
