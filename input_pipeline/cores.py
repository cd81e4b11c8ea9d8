"""The processor cores there are to use, and how processes side by side share them."""

from __future__ import annotations

import itertools
import os


def available_cores() -> int:
    """That this process may use; fewer than the machine has where it is held to some of them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def core_shares(parts: int) -> list[frozenset[int]]:
    """The cores this process may use, dealt out to `parts` processes side by side, neighbours together.

    Returns:
      Disjoint sets of core numbers, for `os.sched_setaffinity`; empty where there is nothing to deal out: one
      part, fewer cores than parts, or a platform that cannot hold a process to cores.
    """
    if parts < 2 or not hasattr(os, "sched_getaffinity"):
        return []
    cores = sorted(os.sched_getaffinity(0))
    bounds = [len(cores) * part // parts for part in range(parts + 1)]
    return [frozenset(cores[a:b]) for a, b in itertools.pairwise(bounds)] if len(cores) >= parts else []
