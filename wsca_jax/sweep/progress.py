"""How far a sweep is, as lines on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TextIO

from wsca_jax.writers import format_seconds


class SweepProgress:
    """A line when a run begins, ends or fails, and now and then one that says what the running ones do."""

    def __init__(
        self,
        total: int,
        *,
        stream: TextIO | None = None,
        line_every: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begins to show progress.

        Args:
          total: number of runs to do.
          stream: stderr by default.
          line_every: seconds between the lines about running ones.
          clock: seconds, for tests.
        """
        self._total, self._stream = total, sys.stderr if stream is None else stream
        self._line_every, self._clock = line_every, clock
        self._begun = self._last_line = clock()
        self._since: dict[str, float] = {}
        self._ended = 0

    def began(self, name: str) -> None:
        """A run's next process starts; the first one is announced."""
        if name not in self._since:
            self._since[name] = self._clock()
            self.note(f"{name}: started")

    def finished(self, name: str) -> None:
        self._end(name, "done")

    def failed(self, name: str, line: str) -> None:
        self._end(name, f"failed: {line}")

    def tick(self, running: Sequence[tuple[str, Path]]) -> None:
        """Shows the last line of each running log, unless a line was shown a moment ago.

        Args:
          running: (name, log) of each run.
        """
        if running and self._clock() - self._last_line >= self._line_every:
            doing = "; ".join(f"{name}: {last_line(log) or 'starting'}" for name, log in running)
            self.note(f"{self._position()} {doing}")

    def note(self, text: str) -> None:
        self._last_line = self._clock()
        print(text, file=self._stream, flush=True)

    def _end(self, name: str, outcome: str) -> None:
        self._ended += 1
        took = format_seconds(self._clock() - self._since.get(name, self._clock()))
        self.note(f"{self._position()} {name}: {outcome} ({took})")

    def _position(self) -> str:
        left = self._seconds_left()
        return f"[{self._ended}/{self._total}" + (f", {format_seconds(left)} left]" if left > 0 else "]")

    def _seconds_left(self) -> float:
        """At the pace of the runs that ended; 0 before the first and after the last."""
        if not self._ended or self._ended == self._total:
            return 0.0
        return (self._clock() - self._begun) / self._ended * (self._total - self._ended)


def last_line(log: Path) -> str:
    """The last line of a file with anything in it; "" where there is none. Reads its end only."""
    if not log.is_file():
        return ""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 8192))
        lines = file.read().decode("utf-8", errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
