"""Searches the largest batch that fits."""

from __future__ import annotations

from collections.abc import Callable


def largest(fits: Callable[[int], bool], start: int, limit: int = 2**16) -> int:
    """The largest power of two, or three quarters of one, for which `fits` holds; 0 where it never does.

    Whatever fits, fits at half its size, too. Each trial may take minutes, so the answer is exact to a third,
    not to one: between powers of two one more is tried.

    Args:
      fits: of a number of examples on each device.
      start: where to begin: a number that is likely to fit.
      limit: where to stop asking for more.
    """
    size = 1 << max(0, start.bit_length() - 1)
    if fits(size):
        while size < limit and fits(2 * size):
            size *= 2
    else:
        size //= 2
        while size and not fits(size):
            size //= 2
    between = size + size // 2
    return between if size > 1 and size < limit and fits(between) else size
