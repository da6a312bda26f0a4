"""What the user sees: lines on the screen, and the one line that ends a run which cannot work."""

import contextlib
import os
import sys
import time
import unicodedata

from plainrl import ranks
from plainrl.workers import WorkerError

SLOW = 5  # seconds that may pass before the screen says what takes so long
EVERY = 10  # seconds between two lines of progress
work = None  # what `working` is about now: {"what", "total", "unit", "before", "began", "said"}


# --- lines --------------------------------------------------------------------------------------------------


def shown(text: str, one_line: bool = False) -> str:
    r"""A stranger's text (a model's, a file's, a library's) as it may be printed: what would steer the
    terminal becomes its Python spelling. That is control characters, escape sequences, what turns the writing
    direction, what has no width, and halves of characters.

    Newlines and tabs stay, but for `one_line`. To split the text into lines, call this first.

    >>> print(shown("7\x1b[2J\r\u202e"))
    7\x1b[2J\r\u202e
    """
    if text.isprintable():
        return text
    kept = "" if one_line else "\n\t"
    spelt = [char if is_plain(char) or char in kept else spelling(char) for char in text]
    return "".join(spelt)


def is_plain(char: str) -> bool:
    return char.isprintable() or unicodedata.category(char) == "Zs"  # a space of any width


def spelling(char: str) -> str:
    return char.encode("unicode_escape").decode()


def say(text: str) -> None:
    """Print, once for all ranks. Nothing in the text steers the terminal."""
    if ranks.MAIN:
        write(text, sys.stdout)


def complain(text: str) -> None:
    """Print on stderr, from any rank."""
    write(text, sys.stderr)


def write(text: str, stream) -> None:
    """A stream that cannot show a letter gets its spelling; one that is gone (a closed pipe or terminal, a
    full disk) gets nothing more, and the run goes on."""
    if stream is None or stream.closed:
        return
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        print(shown(text).encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)
    except OSError:
        with contextlib.suppress(OSError):  # a stream without a file below it
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())  # else Python complains at its end of what it could not write
            os.close(nowhere)


def fail(message: str) -> None:
    """Stop with one clear line."""
    if not ranks.MAIN:
        time.sleep(2)  # most often the main rank says the same and ends the others
    line = f"error: {shown(message)}"
    if ranks.several():
        ranks.leave(line)
    sys.exit(line)


def or_fail(function, *arguments):
    """Call it. The message of a ValueError becomes the one line that the user sees, and so does that of a
    grading worker that does not start."""
    try:
        return function(*arguments)
    except (ValueError, WorkerError) as error:
        fail(str(error))


def in_one_process(script: str) -> None:
    """Refuse several processes, which would do the same thing side by side."""
    if ranks.WORLD_SIZE > 1:
        fail(f"{script} runs in one process; start one on each GPU (CUDA_VISIBLE_DEVICES) without torchrun")


@contextlib.contextmanager
def stoppable(said: str):
    """Ctrl-C ends a command with one line, which says what becomes of its work."""
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(f"\nstopped; {said}")


# --- what takes long ----------------------------------------------------------------------------------------


@contextlib.contextmanager
def working(what: str, total: int, unit: str):
    """While this lasts, `progress` says how many of `total` are done. Yields {"before": done so far}, which
    the caller counts up between two calls of what reports progress."""
    global work
    now = time.monotonic()
    work = {"what": what, "total": total, "unit": unit, "before": 0, "began": now, "said": now}
    try:
        yield work
    finally:
        work = None


def progress(done: int) -> None:
    """Say how far the work is, if there is any and the last line is some seconds old. `done` is this rank's
    part, of which every other rank has as much."""
    if work is None or time.monotonic() - work["said"] < EVERY:
        return
    work["said"] = time.monotonic()
    count = min(work["total"], work["before"] + done * ranks.WORLD_SIZE)
    took = minutes(work["said"] - work["began"])
    say(f"  {work['what']}: {count} of {work['total']} {work['unit']} after {took}")


def say_if_slow(began: float, text: str) -> None:
    """Say it where more than some seconds have passed since `began`, a time.monotonic()."""
    if time.monotonic() - began > SLOW:
        say(text)


def time_left(began: float, done: float, left: float) -> str:
    """How long work will take that is `left`, by what was `done` of it since `began`, a time.monotonic()."""
    return minutes((time.monotonic() - began) / done * left)


def minutes(seconds: float) -> str:
    """Seconds as h:mm:ss.

    >>> minutes(3725.9)
    '1:02:05'
    """
    seconds = int(seconds)
    return f"{seconds // 3600}:{seconds % 3600 // 60:02d}:{seconds % 60:02d}"
