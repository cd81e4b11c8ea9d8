"""How fast Scenes are rendered: images per second of one core, by image size.

    python benchmarks/scenes.py [--sizes 64 128] [--images 200] [--rounds 5]

Counts processor time, so that the figures hold on a busy machine; the sizes take turns. Caches are off.
"Sampling" is the share of a scene's factors alone. "Cached" is what reading an image costs later on.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import cv2

from input_pipeline import scenes


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 96, 128, 224])
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    print(
        f"{'pixels':>6} {'image/s':>9} {'ms':>7} {'sampling ms':>12} {'with masks ms':>14} {'cached µs':>10}"
    )
    for size, costs in measure(arguments.sizes, arguments.images, arguments.rounds).items():
        image, sampling, scene, cached = costs
        print(f"{size:6} {1 / image:9.0f} {image * 1e3:7.2f} {sampling * 1e3:12.2f}", end="")
        print(f" {scene * 1e3:14.2f} {cached * 1e6:10.1f}")


def measure(sizes: list[int], images: int, rounds: int) -> dict[int, list[float]]:
    """{size: best seconds per image of rendering, sampling, whole scenes and cached reads}."""
    work = {size: _contenders(size, images) for size in sizes}
    best = {size: [float("inf")] * 4 for size in sizes}
    for _ in range(rounds):
        for size, contenders in work.items():
            times = [_seconds(contender, images) for contender in contenders]
            best[size] = [min(pair) for pair in zip(best[size], times, strict=True)]
    return best


def _contenders(size: int, images: int) -> tuple[Callable[[int], object], ...]:
    fresh = scenes.open_split(
        None, "train", scenes.Options(size=size, train_images=images, cache_megabytes=0)
    )
    cached = scenes.open_split(None, "train", scenes.Options(size=size, train_images=images))
    for i in range(images):
        cached[i]
    return fresh.__getitem__, fresh.factors, fresh.scene, cached.__getitem__


def _seconds(read: Callable[[int], object], images: int) -> float:
    start = time.process_time()
    for i in range(images):
        read(i)
    return (time.process_time() - start) / images


if __name__ == "__main__":
    main()
