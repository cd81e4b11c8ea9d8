"""Scalars in a file of events that TensorBoard reads.

The bytes are tensorboardX's. Its `SummaryWriter` is not used: it hands events to a thread through a queue,
for which its `flush` does not wait: what a process took to be on the disk could be lost when it was killed.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path

# Where torch is installed, tensorboardX imports it for a type in signatures: half the imports' time.
_torch_before = sys.modules.get("torch")
sys.modules["torch"] = None  # type: ignore[assignment]
try:
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event, SessionLog
    from tensorboardX.proto.summary_pb2 import Summary
finally:
    del sys.modules["torch"]
    if _torch_before is not None:
        sys.modules["torch"] = _torch_before


class EventFile:
    """One process's events of a run."""

    def __init__(self, folder: Path, step: int) -> None:
        """Begins a file; readers drop what earlier files say of steps after `step`."""
        folder.mkdir(parents=True, exist_ok=True)
        # The suffix keeps files of one second apart, and in order.
        self._writer = EventsWriter(str(folder / "events"), filename_suffix=f".{step:012d}")
        self._append(step + 1, session_log=SessionLog(status=SessionLog.START))

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Adds {tag: value} of a step, as float32; it may stay in a buffer of some KiB until `flush`."""
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
        self._append(step, summary=Summary(value=values))

    def flush(self) -> None:
        """Returns when everything written is on the disk."""
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()

    def _append(self, step: int, **what: Summary | SessionLog) -> None:
        self._writer.write_event(Event(step=step, wall_time=time.time(), **what))
