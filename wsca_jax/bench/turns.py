"""Contenders that take turns, so that ratios between them hold on a busy machine, too."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Literal

from tqdm import tqdm

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
    """{name: {clock: seconds of each round}}. In every round each runs once; a bar counts the turns.

    Args:
      contenders: by name.
      rounds: how often each is measured.
      warm_up: unmeasured runs that come first.
      around: what some contenders need ready before each turn and put away after it, unmeasured.
    """
    ready = around or {}
    seconds: Seconds = {name: {clock: [] for clock in CLOCKS} for name in contenders}
    unmeasured = [name for name in contenders for _ in range(warm_up)]
    measured = [name for _ in range(rounds) for name in contenders]
    with tqdm(desc="Taking turns", total=len(unmeasured) + len(measured), unit="turn", disable=None) as bar:
        for number, name in enumerate([*unmeasured, *measured]):
            bar.set_postfix_str(name)
            with ready.get(name, contextlib.nullcontext)():
                took = _timed(contenders[name])
            bar.update()
            if number >= len(unmeasured):
                for clock in CLOCKS:
                    seconds[name][clock].append(took[clock])
    return seconds


def _timed(work: Callable[[], object]) -> dict[Clock, float]:
    start = {clock: now() for clock, now in CLOCKS.items()}
    work()
    return {clock: now() - start[clock] for clock, now in CLOCKS.items()}


def median(seconds: Seconds, name: str, clock: Clock) -> float:
    return statistics.median(seconds[name][clock])


def ratio(seconds: Seconds, name: str, to: str, clock: Clock) -> float:
    """Median over rounds of one's time over the other's in the same round."""
    pairs = zip(seconds[name][clock], seconds[to][clock], strict=True)
    return statistics.median(a / b for a, b in pairs)
