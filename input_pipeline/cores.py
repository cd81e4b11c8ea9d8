"""How many processor cores there are to use."""

from __future__ import annotations

import os


def available_cores() -> int:
    """That this process may use; fewer than the machine has where it is held to some of them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
