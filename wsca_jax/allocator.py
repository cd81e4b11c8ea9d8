"""Keeps memory that XLA's CPU programs free for their next run, instead of returning it to the kernel.

A training step on the CPU takes its working memory anew each time. glibc maps and unmaps blocks this large
on the spot, and the kernel then zeroes every page again: for ResNet-50 at 64 px a quarter of the step.
"""

from __future__ import annotations

import ctypes
import platform

# glibc's malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8
_NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Has malloc serve every block from one heap that never shrinks. Call it before other threads start.

    The process then holds as much memory as it ever needed at once. Does nothing, and returns False, where
    the C library is not glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = ((_M_ARENA_MAX, 1), (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _NEVER))
    return all(mallopt(name, value) == 1 for name, value in settings)
