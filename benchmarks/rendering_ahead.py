"""Filling the cache of Scenes: by threads of one process, and by the processes that render ahead.

    python benchmarks/rendering_ahead.py [--images 2048] [--size 64] [--rounds 5]

Wall time on a machine with nothing else to do, starting the processes included; the two take turns. There are
as many threads as processes, at most one for each core.
"""

from __future__ import annotations

import argparse
import statistics
import time
from concurrent.futures import ThreadPoolExecutor

import cv2

from input_pipeline import scenes
from input_pipeline.cores import available_cores
from input_pipeline.scenes.source import IMAGES_PER_PROCESS, Source


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    options = scenes.Options(size=arguments.size, train_images=arguments.images)
    workers = min(available_cores(), arguments.images // IMAGES_PER_PROCESS)
    if not workers:
        parser.error(f"--images: expected {IMAGES_PER_PROCESS} or more, found {arguments.images}")
    rounds = [(by_threads(options, workers), by_processes(options)) for _ in range(arguments.rounds)]
    threads, processes = (
        arguments.images / statistics.median(seconds) for seconds in zip(*rounds, strict=True)
    )
    ratio = statistics.median(slow / fast for slow, fast in rounds)
    print(f"{workers} threads {threads:.0f} images/s, {workers} processes {processes:.0f}, ratio {ratio:.2f}")


def by_threads(options: scenes.Options, workers: int) -> float:
    source, start = opened(options), time.perf_counter()
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(source.__getitem__, range(len(source))))
    return time.perf_counter() - start


def by_processes(options: scenes.Options) -> float:
    source, start = opened(options), time.perf_counter()
    with source.ahead():
        while not source.filled:
            time.sleep(0.005)
    return time.perf_counter() - start


def opened(options: scenes.Options) -> Source:
    return scenes.open_split(None, "train", options)


if __name__ == "__main__":
    main()
