"""Training batches as a contender: a turn finds the pipeline running, and leaves it so."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Generator, Iterator

from input_pipeline.batch import AttributeBatch

OpenBatches = Callable[[int, int], Generator[AttributeBatch]]


class Stream:
    """Training batches, opened before each turn and closed after it.

    Some batches are taken before the clock starts, as many as the pipeline may hold, and as many are left
    when it stops: as much is then ready, or in the making, when a turn begins as when it ends, and a turn
    takes as many batches as are made meanwhile. Those that are left are waited for, so that nothing is at
    work in the next contender's turn, and thrown away: the stream's next turn begins with them.
    """

    def __init__(self, batches: OpenBatches, threads: int, steps: int) -> None:
        """Stands ready at the first batch.

        Args:
          batches: (first step, first step not to return) -> batches.
          threads: that make them.
          steps: batches in a turn.
        """
        self.steps = steps
        self.lead = 2 * threads + 2
        self._open = batches
        self._starts = itertools.count(step=self.lead + steps)
        self._batches: Generator[AttributeBatch] | None = None

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """What a turn stands in."""
        start = next(self._starts)
        with contextlib.closing(self._open(start, start + 2 * self.lead + self.steps)) as self._batches:
            self.take(self.lead)
            yield
            for _ in self._batches:
                pass

    @property
    def batches(self) -> Generator[AttributeBatch]:
        assert self._batches is not None, "take turns within open()"
        return self._batches

    def take(self, count: int) -> None:
        """Takes batches, and does nothing with them."""
        for _ in range(count):
            next(self.batches)

    def turn(self) -> None:
        self.take(self.steps)
