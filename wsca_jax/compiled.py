"""Keeps what XLA compiled, so that the next process that runs the same program starts sooner."""

from __future__ import annotations

import contextlib
import hashlib
import platform
from pathlib import Path

import jax

from input_pipeline.storage.preparing import cache_root

MOST_BYTES = 2 * 2**30


def keep_compiled() -> Path | None:
    """Turns jax's compilation cache on, below $WSCA_CACHE or ~/.cache/wsca_jax. Call it before jax compiles.

    What was last compiled longest ago goes where there is too much of it. Jax has a limit of its own, but a
    process killed at the wrong moment leaves that unable to write any more.

    Returns:
      The folder; None where nothing was done, because jax was told otherwise (JAX_COMPILATION_CACHE_DIR, or
      JAX_ENABLE_COMPILATION_CACHE=false) or nothing can be written there.
    """
    told = jax.config.values
    if told["jax_compilation_cache_dir"] or not told["jax_enable_compilation_cache"]:
        return None
    folder = cache_root(None) / "compiled" / _processor()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        prune(folder, MOST_BYTES)
    except OSError:
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    return folder


def prune(folder: Path, most: int) -> None:
    """Removes the oldest files of a folder until what is left has at most so many bytes."""
    files = [(path, path.stat()) for path in folder.iterdir()]
    left = sum(found.st_size for _, found in files)
    for path, found in sorted(files, key=lambda file: file[1].st_mtime):
        if left <= most:
            return
        with contextlib.suppress(FileNotFoundError):  # another process prunes, too
            path.unlink()
        left -= found.st_size


def _processor() -> str:
    """Names what CPU programs are compiled for: machines of one cluster may share a home and differ."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        able = next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        able = platform.processor()
    return f"{platform.machine()}-{hashlib.sha256(able.encode()).hexdigest()[:12]}"
