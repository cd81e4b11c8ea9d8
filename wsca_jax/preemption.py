"""SIGTERM: the first one asks the run to save and leave, the second one ends it at once."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType


class Preemption:
    """While entered, remembers that SIGTERM came instead of dying of it.

    Attributes:
      requested: whether it came to this process. The training loop looks after every step.
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
