"""SIGTERM: the first one asks the run to save and leave, the second one ends it at once."""

from __future__ import annotations

import functools
import signal
from collections import deque
from types import FrameType, TracebackType

import jax
import jax.numpy as jnp
import numpy as np

from wsca_jax.engine import hosts
from wsca_jax.engine.sharding import Layout


class Preemption:
    """While entered, remembers that SIGTERM came instead of dying of it.

    Attributes:
      requested: whether it came to this process.
    """

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> Preemption:
        self._before = signal.signal(signal.SIGTERM, self._remember)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.signal(signal.SIGTERM, self._before)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


class Vote:
    """Whether any process of a run asks for something, with one answer for all of them after the same step.

    With several processes an answer is some calls old: nobody waits for the others, or for a device that is
    still at work on the step before.
    """

    def __init__(self, layout: Layout, calls_behind: int) -> None:
        """Begins to count calls.

        Args:
          layout: of the run's devices.
          calls_behind: how old an answer is, where there are several processes.
        """
        self._layout, self._behind = layout, calls_behind
        self._pending: deque[jax.Array] = deque()

    def any(self, asks: bool) -> bool:
        """Called after every step, by every process; `asks` says what this one wants."""
        if not hosts.several():
            return asks
        mine = np.full(jax.local_device_count(), asks, np.int32)
        self._pending.append(self._most(jax.make_array_from_process_local_data(self._layout.batch, mine)))
        return len(self._pending) > self._behind and bool(self._pending.popleft())

    @functools.cached_property
    def _most(self) -> jax.stages.Wrapped:
        return jax.jit(jnp.max, out_shardings=self._layout.replicated)
