"""What the input pipeline holds in memory: measured in a process of its own, beside what it may hold."""

from __future__ import annotations

import functools
import multiprocessing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from input_pipeline.batch import Example, Source, blank_batch
from input_pipeline.images import ImageOptions, image_shape
from input_pipeline.pipeline import train_batches
from input_pipeline.weak_labels import WeakLabels
from wsca_jax import allocator

FORMULA = (
    "(2 threads + 2) batches, for each worker a batch of encoded images and one decoded image, and 40 bytes "
    "for each example of the split"
)


class Held(NamedTuple):
    """Bytes of one process.

    Attributes:
      growth: by how much its resident memory, files left out, grew at most; NaN where it cannot be read.
      read_per_image: what it read from files for each image; NaN where it cannot be read.
    """

    growth: float
    read_per_image: float


# Of each example: where it lies, its place in the orders of two epochs, and in one that is being made, beside
# the random number that it is sorted by.
ORDERS = 5 * 8


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
    return (2 * threads + 2) * arrays + workers + ORDERS * examples


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
    batches = functools.partial(
        train_batches, open_source(), images=options, weak_labels=WeakLabels(), seed=0
    )
    for _ in batches(batch_size=1, stop_step=1):
        pass  # what is loaded once is no growth
    before, found = _resident(), []
    for count in threads:
        read = _read()
        most = max([_resident() for _ in batches(batch_size=batch_size, stop_step=steps, threads=count)])
        found.append(Held(most - before, (_read() - read) / (steps * batch_size)))
    return found


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
