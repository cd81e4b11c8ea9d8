"""What takes turns in `wsca bench input`: bare decoding and resizing, and the pipeline with some threads."""

from __future__ import annotations

import concurrent.futures
import itertools
from collections.abc import Callable, Generator, Sequence
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
from jaxtyping import UInt8

from input_pipeline import SOURCES
from input_pipeline.batch import AttributeBatch, Source
from input_pipeline.images import ImageOptions, decode
from input_pipeline.pipeline import train_batches
from input_pipeline.weak_labels import WeakLabels
from wsca_jax.bench.stream import Stream

Image = bytes | UInt8[np.ndarray, "H W 3"]

SEED = 0


def open_split(name: str, folder: Path | None, split: str) -> Source:
    """A split of a data set as its own options have it."""
    return SOURCES[name].open_split(folder, split, SOURCES[name].Options())


def bare(
    images: Sequence[Image], size: int, batch_size: int, count: int, *, scaled: bool, threads: int = 1
) -> Callable[[], None]:
    """Loops over `count` images in memory: simplejpeg and OpenCV, nothing around them.

    The results go into an array of a batch, over and over: one image's place would never leave the caches.

    Args:
      images: encoded or decoded, used over and over.
      size: side of the result.
      batch_size: results that are kept.
      count: images in a turn.
      scaled: whether a JPEG is decoded at the smallest scale that covers the result, as the pipeline does.
      threads: loops at a time, each over its share of the images; one runs in the caller's thread.
    """
    shares = [count // threads + (i < count % threads) for i in range(threads)]
    loops = [_bare_loop(images, size, batch_size, share, scaled=scaled) for share in shares]
    if threads == 1:
        return loops[0]

    def work() -> None:
        with concurrent.futures.ThreadPoolExecutor(threads) as pool:
            for finished in [pool.submit(loop) for loop in loops]:
                finished.result()

    return work


def _bare_loop(
    images: Sequence[Image], size: int, batch_size: int, count: int, *, scaled: bool
) -> Callable[[], None]:
    out = np.empty((batch_size, size, size, 3), np.uint8)
    scaling = {"min_height": size, "min_width": size, "min_factor": 2} if scaled else {}

    def work() -> None:
        for number, image in enumerate(itertools.islice(itertools.cycle(images), count)):
            if not isinstance(image, bytes):
                pixels = image
            elif simplejpeg.is_jpeg(image):
                pixels = simplejpeg.decode_jpeg(image, **scaling)
            else:
                pixels = decode(image)
            shrinks = min(pixels.shape[:2]) >= size
            way = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
            cv2.resize(pixels, (size, size), dst=out[number % batch_size], interpolation=way)

    return work


def pipeline(
    source: Source, images: ImageOptions, weak_labels: WeakLabels, batch_size: int, steps: int, threads: int
) -> Stream:
    """Training batches, `steps` in a turn."""

    def batches(start: int, stop: int) -> Generator[AttributeBatch]:
        return train_batches(
            source,
            images=images,
            weak_labels=weak_labels,
            batch_size=batch_size,
            seed=SEED,
            start_step=start,
            stop_step=stop,
            threads=threads,
        )

    return Stream(batches, threads, steps)
