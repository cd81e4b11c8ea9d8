"""What the input pipeline holds in memory: measured in a process of its own, beside what it may hold."""

from __future__ import annotations

import ctypes
import functools
import gc
import multiprocessing
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from input_pipeline.batch import Example, First, Source, blank_batch
from input_pipeline.images import ImageOptions, image_shape
from input_pipeline.pipeline import train_batches
from input_pipeline.weak_labels import WeakLabels
from wsca_jax import allocator

FORMULA = (
    "(2 threads + 2) batches, for each worker a batch of encoded images and one decoded image, and 64 bytes "
    "for each example of the split"
)


class Held(NamedTuple):
    """Bytes of one process.

    Attributes:
      growth: by how much its resident memory, files left out, grew at most; NaN where it cannot be read. It
        can be a batch more than what is held: where something small has come to lie in the room that a batch
        has left, the next batch takes fresh room. Further small things go there first, so one it stays.
      read_per_image: what it read from files for each image; NaN where it cannot be read.
    """

    growth: float
    read_per_image: float


# Of each example: its place in the orders of two epochs, and in one that is being made from its random number
# with half a place for sorting; where it lies, for us; and the same for ArrayRecord, which took 18 bytes.
EACH_EXAMPLE = 2 * 8 + (8 + 8 + 4) + 8 + 20


def bound(example: Example, options: ImageOptions, batch_size: int, threads: int, examples: int) -> int:
    """Bytes that the pipeline may hold; see `FORMULA`.

    Of batches, two for each thread wait or are in the making, the caller has one and is given another. A
    worker reads a batch's images before it decodes the first.

    Args:
      example: stands for all: its image is taken for the largest.
      options: geometry of the results.
      batch_size: rows of a batch.
      threads: as for `train_batches`; 0 is one worker, the caller.
      examples: in the split.
    """
    batch = blank_batch(batch_size, options.size, len(example.labels))
    arrays = sum(array.nbytes for array in batch if array is not None)
    height, width = image_shape(example.image)
    encoded = len(example.image) if isinstance(example.image, bytes) else example.image.nbytes
    workers = max(threads, 1) * (batch_size * encoded + 3 * height * width)
    return (2 * threads + 2) * arrays + workers + EACH_EXAMPLE * examples


def measure(
    open_source: Callable[[], Source],
    options: ImageOptions,
    batch_size: int,
    threads: Sequence[int],
    steps: int,
) -> list[Held]:
    """Takes training batches in a new process, which keeps what memory it once held, as in training.

    Args:
      open_source: what that process calls; it must be picklable.
      options, batch_size: as for `train_batches`.
      threads: how many, one after the other. The growth of each includes that of those before it.
      steps: how many batches are taken with each.
    """
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_take, (open_source, options, batch_size, threads, steps))


def _take(
    open_source: Callable[[], Source],
    options: ImageOptions,
    batch_size: int,
    threads: Sequence[int],
    steps: int,
) -> list[Held]:
    allocator.keep_freed_memory()
    _load_code(open_source, options)
    before, found = _resident(), []
    batches = functools.partial(
        train_batches, open_source(), images=options, weak_labels=WeakLabels(), seed=0
    )
    for count in threads:
        read = _read()
        most = max([_resident() for _ in batches(batch_size=batch_size, stop_step=steps, threads=count)])
        found.append(Held(most - before, (_read() - read) / (steps * batch_size)))
    return found


def _load_code(open_source: Callable[[], Source], options: ImageOptions) -> None:
    """Loads what is loaded once, which is no growth, and gives the memory of the split back."""
    for _ in train_batches(First(open_source(), 1), images=options, batch_size=1, seed=0, stop_step=1):
        pass
    gc.collect()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def _resident() -> float:
    return _field("status", "RssAnon:") * 1024


def _read() -> float:
    return _field("io", "rchar:")


def _field(file: str, name: str) -> float:
    """A number that Linux knows of this process; NaN elsewhere."""
    try:
        lines = Path(f"/proc/self/{file}").read_text().splitlines()
    except OSError:
        return np.nan
    return next((float(line.split()[1]) for line in lines if line.startswith(name)), np.nan)
