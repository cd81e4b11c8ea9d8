"""How fast examples become batches, beside bare decoding and resizing of the same images.

    python benchmarks/input.py --data_dir D [--size 64] [--batch_size 64]

Prints images per second, by the clock and per core (by processor time), of a bare loop of simplejpeg and
OpenCV over bytes in memory and of the training pipeline, in the caller's thread and with threads of its own.
They take turns, so that their ratios hold on a busy machine too. Then what one image costs in each part of
the pipeline.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import simplejpeg

from input_pipeline import celeba
from input_pipeline.images import ImageOptions, load
from input_pipeline.pipeline import train_batches
from input_pipeline.weak_labels import WeakLabels


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data_dir", type=Path, required=True)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    source = celeba.open_split(arguments.data_dir, "train", celeba.Options())
    _compare(source, arguments)
    _parts(source, arguments.size)


def _compare(source: celeba.PreparedSource, arguments: argparse.Namespace) -> None:
    plain, cropped = ImageOptions(arguments.size), ImageOptions(arguments.size, crop_scale=(0.8, 1.0))
    weak = WeakLabels(known_fraction=0.1)
    count = 16 * arguments.batch_size
    contenders = {
        "bare decode + resize": _bare(source, arguments.size, count),
        "pipeline, in the caller": _batches(source, arguments, plain, None, 0),
        "  + weak labels": _batches(source, arguments, plain, weak, 0),
        "  + random crops": _batches(source, arguments, cropped, weak, 0),
        f"pipeline, {arguments.threads} threads": _batches(source, arguments, plain, None, arguments.threads),
    }
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    for _ in range(arguments.rounds):
        for name, work in contenders.items():
            start = time.perf_counter(), time.process_time()
            work()
            times[name].append((time.perf_counter() - start[0], time.process_time() - start[1]))
    bare = times["bare decode + resize"]
    print(f"{'':28s} {'images/s':>10s} {'x bare':>7s} {'per core':>10s} {'x bare':>7s}")
    for name, taken in times.items():
        wall, cpu = (statistics.median(t[k] for t in taken) for k in (0, 1))
        ratios = [statistics.median(b[k] / t[k] for t, b in zip(taken, bare, strict=True)) for k in (0, 1)]
        print(f"{name:28s} {count / wall:10.0f} {ratios[0]:7.2f} {count / cpu:10.0f} {ratios[1]:7.2f}")


def _bare(source: celeba.PreparedSource, size: int, count: int) -> Callable[[], None]:
    images = [source[i].image for i in range(min(count, len(source)))]
    out = np.empty((size, size, 3), np.uint8)

    def work() -> None:
        for i in range(count):
            pixels = simplejpeg.decode_jpeg(images[i % len(images)])
            cv2.resize(pixels, (size, size), dst=out, interpolation=cv2.INTER_AREA)

    return work


def _batches(
    source: celeba.PreparedSource,
    arguments: argparse.Namespace,
    images: ImageOptions,
    weak_labels: WeakLabels | None,
    threads: int,
) -> Callable[[], None]:
    batches: Iterator[object] = train_batches(
        source,
        images=images,
        weak_labels=weak_labels,
        batch_size=arguments.batch_size,
        seed=0,
        threads=threads,
    )

    def work() -> None:
        for _ in range(16):
            next(batches)

    return work


def _parts(source: celeba.PreparedSource, size: int) -> None:
    examples = [source[i] for i in range(min(2000, len(source)))]
    weak, options, out = (
        WeakLabels(known_fraction=0.1),
        ImageOptions(size),
        np.empty((size, size, 3), np.uint8),
    )
    order = np.random.default_rng(0).permutation(len(examples)).tolist()
    parts: dict[str, Callable[[int], object]] = {
        "read record": lambda i: source[i],
        "decode + resize": lambda i: load(examples[i].image, options, None, out),
        "weak labels": lambda i: weak.apply(examples[i].labels, examples[i].known, examples[i].key),
    }
    for name, part in parts.items():
        start = time.process_time()
        for i in order:
            part(i)
        print(f"{name:28s} {(time.process_time() - start) / len(order) * 1e6:10.1f} us an image")


if __name__ == "__main__":
    main()
