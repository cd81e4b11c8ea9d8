"""Contenders that take turns, so that ratios between them hold on a busy machine, too."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}  # cpu: of all threads of this process

Seconds = dict[str, list[float]]


def take_turns(
    contenders: Mapping[str, Callable[[], object]],
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
    *,
    warm_up: int = 2,
) -> Seconds:
    """{name: seconds of each round}. In every round each runs once; `warm_up` unmeasured runs come first."""
    for work in contenders.values():
        for _ in range(warm_up):
            work()
    seconds: Seconds = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, work in contenders.items():
            start = clock()
            work()
            seconds[name].append(clock() - start)
    return seconds


def median(seconds: Seconds, name: str) -> float:
    return statistics.median(seconds[name])


def ratio(seconds: Seconds, name: str, to: str) -> float:
    """Median over rounds of one's time over the other's in the same round."""
    return statistics.median(a / b for a, b in zip(seconds[name], seconds[to], strict=True))
