"""The order in which rows are learned: which rows each optimizer step has.

It is a function of the rows and the seed, so that a run that goes on finds the same steps, and one with more
of them begins alike.
"""

import itertools
import math
import random
from collections.abc import Iterator

from plainrl.flags import RowFlags
from plainrl.rows import Row
from plainrl.screen import say

WINDOW = 16  # steps whose rows are sorted by length together


def number_of_steps(args: RowFlags, rows: int) -> int:
    """As many as --epochs need, or --steps, whichever is less."""
    needed = math.ceil(args.epochs * rows / args.rows_per_step)
    if args.steps is not None and args.steps > needed:
        say(f"--epochs {args.epochs} ends the run after {needed} steps, before --steps {args.steps}")
    return min(needed, args.steps or needed)


def rows_of_steps(
    rows: list[Row], shares: dict[str, float] | None, rows_per_step: int, seed: int, steps: int
) -> list[list[Row]]:
    """The rows of steps 1, 2, ..., `steps`. Without `shares` of sources each row is learned once an epoch,
    and the epochs follow one another without a gap."""
    lengths = tuple(row.length for row in rows)
    if shares:
        sources = tuple(row.source for row in rows)
        order = order_of_mixture(sources, lengths, shares, rows_per_step, seed, steps)
    else:
        order, epochs = [], itertools.count()
        while len(order) < steps * rows_per_step:
            order += order_of_epoch(lengths, rows_per_step, seed, next(epochs))
    firsts = range(0, steps * rows_per_step, rows_per_step)
    return [[rows[number] for number in order[first : first + rows_per_step]] for first in firsts]


def order_of_epoch(lengths: tuple[int, ...], rows_per_step: int, seed: int, epoch: int) -> list[int]:
    """All rows once, by number, in the order of an epoch: a function of the seed and the epoch.

    `lengths` are those of the rows, in tokens. Within WINDOW steps rows are sorted by length and the steps
    shuffled. The step that the epoch before has begun, and the one that the next will end, take rows as they
    come.
    """
    rng = random.Random(f"{seed}/epoch {epoch}")
    rows = list(range(len(lengths)))
    rng.shuffle(rows)
    begun = min(-epoch * len(rows) % rows_per_step, len(rows))  # rows that fill the step begun before
    end = begun + (len(rows) - begun) // rows_per_step * rows_per_step  # of the last whole step
    order = rows[:begun]
    for start in range(begun, end, WINDOW * rows_per_step):
        window = rows[start : min(start + WINDOW * rows_per_step, end)]
        order += steps_of_one_length(window, lengths, rows_per_step, rng)
    return order + rows[end:]


def steps_of_one_length(
    window: list[int], lengths: tuple[int, ...], rows_per_step: int, rng: random.Random
) -> list[int]:
    """The rows of a window's steps, sorted by length, and then the steps shuffled."""
    window = sorted(window, key=lambda row: lengths[row])
    steps = [window[first : first + rows_per_step] for first in range(0, len(window), rows_per_step)]
    rng.shuffle(steps)
    return [row for step in steps for row in step]


def order_of_mixture(
    sources: tuple[str, ...],
    lengths: tuple[int, ...],
    shares: dict[str, float],
    rows_per_step: int,
    seed: int,
    steps: int,
) -> list[int]:
    """The numbers of the rows of steps 1, 2, ... with --mixture, at least for `steps` steps.

    Each draw first draws a source, with the probabilities `shares`, and then takes the next row of that
    source's own endless stream of epochs. So the shares hold on average, and over a window better than in a
    step, since the rows of WINDOW steps are sorted by length here too. More steps begin with the same rows.
    `sources` and `lengths` are those of all rows.
    """
    rng = random.Random(f"{seed}/mixture")
    rows_of = {source: [row for row, own in enumerate(sources) if own == source] for source in shares}
    streams = {source: epochs_of_source(rows, f"{seed}/{source}") for source, rows in rows_of.items()}
    order = []
    while len(order) < steps * rows_per_step:  # whole windows, whatever `steps` is
        drawn = rng.choices(list(shares), list(shares.values()), k=WINDOW * rows_per_step)
        window = [next(streams[source]) for source in drawn]
        order += steps_of_one_length(window, lengths, rows_per_step, rng)
    return order


def epochs_of_source(rows: list[int], key: str) -> Iterator[int]:
    """The rows over and over, each once an epoch, in an order that depends on the key and the epoch."""
    for epoch in itertools.count():
        yield from random.Random(f"{key}/epoch {epoch}").sample(rows, len(rows))
