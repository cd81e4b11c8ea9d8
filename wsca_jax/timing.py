"""Where the wall time of a run goes."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Mapping


class Stopwatch:
    """Splits wall time into named parts. Parts do not nest.

    Attributes:
      seconds: {part: seconds so far}.
    """

    def __init__(self, parts: tuple[str, ...]) -> None:
        self.seconds = dict.fromkeys(parts, 0.0)
        self._started = time.perf_counter()

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - begun

    @property
    def total(self) -> float:
        """Seconds since the stopwatch was made."""
        return time.perf_counter() - self._started


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
