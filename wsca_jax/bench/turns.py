"""Contenders that take turns, so that ratios between them hold on a busy machine, too."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Literal

Clock = Literal["wall", "cpu"]
CLOCKS: Mapping[Clock, Callable[[], float]] = {
    "wall": time.perf_counter,
    "cpu": time.process_time,  # of all threads of this process
}

Seconds = dict[str, dict[Clock, list[float]]]


Around = Mapping[str, Callable[[], contextlib.AbstractContextManager[object]]]


def take_turns(
    contenders: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    warm_up: int = 2,
    around: Around | None = None,
) -> Seconds:
    """{name: {clock: seconds of each round}}. In every round each runs once.

    Args:
      contenders: by name.
      rounds: how often each is measured.
      warm_up: unmeasured runs that come first.
      around: what some contenders need ready before each turn and put away after it, unmeasured.
    """
    ready = around or {}
    for name, work in contenders.items():
        for _ in range(warm_up):
            with ready.get(name, contextlib.nullcontext)():
                work()
    seconds: Seconds = {name: {clock: [] for clock in CLOCKS} for name in contenders}
    for _ in range(rounds):
        for name, work in contenders.items():
            with ready.get(name, contextlib.nullcontext)():
                start = {clock: now() for clock, now in CLOCKS.items()}
                work()
                for clock, now in CLOCKS.items():
                    seconds[name][clock].append(now() - start[clock])
    return seconds


def median(seconds: Seconds, name: str, clock: Clock) -> float:
    return statistics.median(seconds[name][clock])


def ratio(seconds: Seconds, name: str, to: str, clock: Clock) -> float:
    """Median over rounds of one's time over the other's in the same round."""
    pairs = zip(seconds[name][clock], seconds[to][clock], strict=True)
    return statistics.median(a / b for a, b in pairs)
