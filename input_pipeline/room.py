"""Whether a disk has room for what is about to be written, asked before anything is."""

from __future__ import annotations

import shutil
from pathlib import Path

from input_pipeline.errors import DataError


def check_room(folder: Path, needed: int, what: str, advice: str) -> None:
    """Raises DataError where the disk of `folder` has fewer than `needed` bytes free.

    Args:
      what: who needs them, the beginning of the message.
      advice: what the user can do, its end.
    """
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(f"{what} need about {_size(needed)} and {_size(free)} are free; {advice}")


def _size(count: int) -> str:
    unit, power = ("GiB", 30) if count >= 1 << 30 else ("MiB", 20) if count >= 1 << 20 else ("KiB", 10)
    return f"{count / 2**power:,.1f} {unit}"
