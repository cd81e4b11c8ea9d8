"""`wsca bench input`: how fast examples become batches, beside bare decoding and resizing of the images."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from input_pipeline.batch import Source
from input_pipeline.cores import available_cores
from input_pipeline.images import ImageOptions, image_shape, load
from input_pipeline.weak_labels import WeakLabels
from wsca_jax.bench import contenders, memory, photographs
from wsca_jax.bench.turns import Seconds, median, ratio, take_turns
from wsca_jax.config import data_set
from wsca_jax.report.tables import format_figure, format_table

MEMORY_STEPS = 32
FULL, SCALED = "bare decode + resize", "bare, at the pipeline's scale"


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is measured.

    Attributes:
      size: side of the results in pixels.
      batch_size: rows of a batch.
      threads: one contender for each; 0 is the caller's own thread.
      steps: batches in a turn.
      rounds: turns of each contender, of which medians are taken.
    """

    size: int = 224
    batch_size: int = 64
    threads: Sequence[int] = (0, 1, 2)
    steps: int = 64
    rounds: int = 5

    @property
    def count(self) -> int:
        """Images in a turn."""
        return self.batch_size * self.steps

    @property
    def images(self) -> ImageOptions:
        return ImageOptions(self.size)


def bench_data(name: str, folder: Path | None, split: str, settings: Settings) -> str:
    """The report on a split of a data set. Raises DataError or WscaError."""
    data_set(name, "open_split")
    opened = functools.partial(contenders.open_split, name, folder, split)
    return report(opened, f"{name}, {split}", settings)


def bench_photographs(height: int, width: int, settings: Settings) -> str:
    """The report on synthetic JPEGs of this size; see `photographs`."""
    with tempfile.TemporaryDirectory() as folder:
        photographs.prepare(Path(folder) / "shards", height, width)
        opened = functools.partial(photographs.open_split, Path(folder) / "shards")
        return report(opened, "synthetic photographs", settings)


def report(open_source: Callable[[], Source], title: str, settings: Settings) -> str:
    """Measures and says what was found, as text.

    Args:
      open_source: opens the images; it must be picklable, for a process of its own.
      title: what they are.
      settings: what is measured.
    """
    source = open_source()
    images = [source[i].image for i in range(min(settings.count, len(source)))]
    seconds = _take_turns(source, images, settings)
    parts = (
        _header(title, images, settings),
        speed_table(seconds, settings),
        _two_cores(seconds, settings.threads),
        f"Where it goes, processor time in us an image:\n{_parts(source, seconds, settings)}",
        f"Memory: at most {memory.FORMULA}.\n{_memory(open_source, source, settings)}",
    )
    return "\n\n".join(part for part in parts if part)


def _take_turns(source: Source, images: Sequence[contenders.Image], settings: Settings) -> Seconds:
    """Of bare decoding in one thread and in as many as the pipeline has, and of the pipeline."""
    sizes = settings.size, settings.batch_size, settings.count
    bare = {
        in_threads(name, threads): contenders.bare(images, *sizes, scaled=scaled, threads=threads)
        for threads in sorted({1, *(max(threads, 1) for threads in settings.threads)})
        for name, scaled in ((FULL, False), (SCALED, True))
    }
    streams = {
        named(threads): contenders.pipeline(
            source, settings.images, WeakLabels(), settings.batch_size, settings.steps, threads
        )
        for threads in settings.threads
    }
    turns = {name: stream.turn for name, stream in streams.items()}
    around = {name: stream.open for name, stream in streams.items()}
    return take_turns({**bare, **turns}, settings.rounds, warm_up=1, around=around)


def in_threads(bare: str, threads: int) -> str:
    """What bare decoding in so many threads is called."""
    return bare if threads <= 1 else f"{bare}, {threads} threads"


def named(threads: int) -> str:
    """What the pipeline with so many threads is called."""
    return "pipeline, in the caller" if threads == 0 else f"pipeline, {threads} thread{'s' * (threads > 1)}"


def _header(title: str, images: Sequence[contenders.Image], settings: Settings) -> str:
    shapes = [image_shape(image) for image in images]
    sizes = [len(image) if isinstance(image, bytes) else image.nbytes for image in images]
    height, width = (statistics.median(side) for side in zip(*shapes, strict=True))
    kind = "encoded" if isinstance(images[0], bytes) else "decoded"
    return (
        f"{title}: {width:g}x{height:g} pixels, {statistics.mean(sizes) / 1e3:.1f} kB {kind}, to "
        f"{settings.size}x{settings.size}, batches of {settings.batch_size}; whole images, every label "
        "known, no captions\n"
        f"Medians of {settings.rounds} turns of {settings.count:,} images; {available_cores()} cores, "
        f"load {os.getloadavg()[0]:.1f}"
    )


def speed_table(seconds: Seconds, settings: Settings) -> str:
    """Images a second by the clock and per core, and the ratio per core to both ways of bare decoding.

    The pipeline with several threads stands beside bare decoding in as many: cores that work at once share
    caches, memory and perhaps more, and each is slower for it.
    """
    header = ("", "images/s", "per core", "x bare", "x bare, same scale")
    busy = {named(threads): threads for threads in settings.threads}
    rows = [
        (
            name,
            f"{settings.count / median(seconds, name, 'wall'):,.0f}",
            f"{settings.count / median(seconds, name, 'cpu'):,.0f}",
            *(
                f"{ratio(seconds, in_threads(bare, busy.get(name, 1)), name, 'cpu'):.2f}"
                for bare in (FULL, SCALED)
            ),
        )
        for name in seconds
    ]
    return format_table(header, rows)


def _two_cores(seconds: Seconds, threads: Sequence[int]) -> str:
    """What a second thread adds; it can add something where there is a second core alone."""
    if not {1, 2} <= set(threads):
        return ""
    ours = ratio(seconds, named(1), named(2), "wall")
    bare = ratio(seconds, FULL, in_threads(FULL, 2), "wall")
    return f"Two threads over one, by the clock: {ours:.2f}x; bare decoding: {bare:.2f}x"


def _parts(source: Source, seconds: Seconds, settings: Settings) -> str:
    """The parts of the pipeline, each alone; what they leave of the whole is batching and cold caches."""
    examples = [source[i] for i in range(min(settings.count, len(source)))]
    weak, options = WeakLabels(known_fraction=0.1), settings.images
    parts: dict[str, Callable[[], object]] = {
        "read records": lambda: [source[i] for i in range(len(examples))],
        "decode + resize": lambda: [load(example.image, options, box=example.view) for example in examples],
        "hide labels, if asked to": lambda: [weak.apply(e.labels, e.known, e.key) for e in examples],
    }
    each = {name: 1e6 * _processor_seconds(part) / len(examples) for name, part in parts.items()}
    each |= {
        f"all of it: {named(threads)}": 1e6 * median(seconds, named(threads), "cpu") / settings.count
        for threads in settings.threads
    }
    return format_table(("", "us"), [(name, f"{value:,.0f}") for name, value in each.items()])


def _processor_seconds(work: Callable[[], object]) -> float:
    def once() -> float:
        start = time.process_time()
        work()
        return time.process_time() - start

    return statistics.median(once() for _ in range(3))


def _memory(open_source: Callable[[], Source], source: Source, settings: Settings) -> str:
    some = [source[i] for i in range(min(256, len(source)))]
    example = max(some, key=lambda example: math.prod(image_shape(example.image)))
    measured = memory.measure(
        open_source, settings.images, settings.batch_size, settings.threads, MEMORY_STEPS
    )
    rows = []
    for threads, held in zip(settings.threads, measured, strict=True):
        limit = memory.bound(example, settings.images, settings.batch_size, threads, len(source))
        read = format_figure(held.read_per_image / 1e3, 1)
        rows.append((named(threads), _mib(limit), _mib(held.growth), read))
    return format_table(("", "may hold, MiB", "grew by, MiB", "read, kB an image"), rows)


def _mib(count: float) -> str:
    return format_figure(count / 2**20, 1)
