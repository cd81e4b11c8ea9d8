"""Progress of long work over images: a bar where someone looks, and a line now and then where nobody does."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TypeVar

from tqdm import tqdm

EVERY = 30.0  # seconds between two lines in a file; work that takes less says nothing there
_LINE = "{desc}: {n:,} of {total:,} images, {rate_fmt}, {remaining} left\n"

T = TypeVar("T")


def over_images(task: str, total: int, images: Iterator[T] | None = None, *, initial: int = 0) -> tqdm[T]:
    """What has been done of `total` images, on stderr.

    Args:
      task: words for it, such as "Preparing".
      total: images in all.
      images: what is passed on, one by one; None where the caller says `update()`.
      initial: images that an earlier call did.
    """
    look = {} if sys.stderr.isatty() else {"bar_format": _LINE, "mininterval": EVERY, "delay": EVERY}
    return tqdm(images, desc=task, total=total, initial=initial, unit=" images", maxinterval=EVERY, **look)
