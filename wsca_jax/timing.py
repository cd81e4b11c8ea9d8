"""Where the wall time of a run goes."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

# What a process is at before its first step, and what it then does. What belongs to none of them is "other".
STARTING = ("imports", "open", "state", "compile")
RUNNING = ("data_wait", "step", "checkpoint", "evaluation")


class Stopwatch:
    """Splits wall time into named parts. Parts do not nest.

    Attributes:
      seconds: {part: seconds so far}.
    """

    def __init__(self, parts: tuple[str, ...], began: float | None = None) -> None:
        """Begins to measure; or began then, on the clock of `time.perf_counter`."""
        self.seconds = dict.fromkeys(parts, 0.0)
        self._started = time.perf_counter() if began is None else began

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - begun

    @property
    def total(self) -> float:
        """Seconds since it began."""
        return time.perf_counter() - self._started

    def split(self) -> dict[str, float]:
        """{part: seconds so far}, with the rest as "other": they sum to the total."""
        total = self.total
        return self.seconds | {"other": total - sum(self.seconds.values())}


def process_began() -> float:
    """When this process began, on the clock of `time.perf_counter`; now, where the system does not tell."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, IndexError, ValueError):
        age = 0.0
    return time.perf_counter() - max(0.0, age)


class DataWait:
    """Which share of the training loop's time was spent waiting for data, from one asking to the next.

    Wall time of the host alone; asking does not wait for the device.
    """

    def __init__(self, clock: Stopwatch) -> None:
        self._clock, self._before = clock, dict(clock.seconds)

    def since_last(self) -> float:
        """In [0, 1]; NaN where no time has passed."""
        now = dict(self._clock.seconds)
        passed = {part: seconds - self._before[part] for part, seconds in now.items()}
        self._before = now
        return data_wait_share(passed)


def data_wait_share(seconds: Mapping[str, float]) -> float:
    """Waiting for data over waiting and steps together; NaN where there was neither."""
    both = seconds["data_wait"] + seconds["step"]
    return seconds["data_wait"] / both if both else math.nan
