"""Writing to disk: all of a file or nothing, and what goes wrong as one clear line."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from input_pipeline.room import FULL
from wsca_jax.errors import OutOfDiskError, WscaError

# Array storage reports the same conditions as text.
_FULL_MESSAGES = ("No space left on device", "Disk quota exceeded", "File too large")


@contextlib.contextmanager
def storage_errors(path: Path, detail: str = "") -> Iterator[None]:
    """Turns what storage raises about `path` into an error for the user.

    Raises:
      OutOfDiskError: the disk, a quota or a size limit is full.
      WscaError: the path cannot be written for another reason.
    """
    try:
        yield
    except Exception as error:
        if is_full(error):
            raise OutOfDiskError(
                f"{path}: the disk is full ({free_bytes(path)} bytes free){detail}"
            ) from error
        if isinstance(error, OSError):
            reason = error.strerror or str(error)
            raise WscaError(
                f"{path}: cannot be written ({reason}); choose a workdir you can write to"
            ) from error
        raise


def is_full(error: BaseException) -> bool:
    """Whether an error, or one that caused it, says that nothing more can be stored."""
    if isinstance(error, OSError) and error.errno in FULL:
        return True
    if any(message in str(error) for message in _FULL_MESSAGES):
        return True
    cause = error.__cause__ or error.__context__
    return cause is not None and is_full(cause)


def check_space(path: Path, needed: int, detail: str = "") -> None:
    """Raises OutOfDiskError where fewer than `needed` bytes are free at `path`."""
    free = free_bytes(path)
    if free < needed:
        raise OutOfDiskError(f"{path}: a save needs {needed} bytes, {free} are free{detail}")


def free_bytes(path: Path) -> int:
    """Bytes a user may still write to the file system that holds `path`, which need not exist yet."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def write_atomically(path: Path, text: str) -> None:
    """Writes a text file that is either complete or not there, even if the machine stops halfway."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)  # a rename lasts once the folder itself is on disk
    finally:
        os.close(descriptor)
