"""Whether a disk has room for what is about to be written, asked before anything is."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

from input_pipeline.errors import DataError, NoRoomError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def cannot_write(error: OSError, message: str) -> DataError:
    """What to raise for an error of writing: a full disk, or a path that cannot be written."""
    return NoRoomError(message) if error.errno in FULL else DataError(message)


def check_room(folder: Path, needed: int, what: str, advice: str) -> None:
    """Raises NoRoomError where the disk of `folder` has fewer than `needed` bytes free.

    Args:
      what: who needs them, the beginning of the message.
      advice: what the user can do, its end.
    """
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise NoRoomError(f"{what} need about {_size(needed)} and {_size(free)} are free; {advice}")


def _size(count: int) -> str:
    unit, power = ("GiB", 30) if count >= 1 << 30 else ("MiB", 20) if count >= 1 << 20 else ("KiB", 10)
    return f"{count / 2**power:,.1f} {unit}"
