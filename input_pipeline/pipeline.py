"""Batches: deterministic, elastic, decoded by host threads.

Training sees one endless stream of examples: the data set in a fresh order, then again in another, without a
gap (an epoch need not be a whole number of batches, and a batch may be larger than the data set). Position k
of the stream is fixed by the seed alone. Step t of a run takes positions [t * B, (t + 1) * B), where B is the
global batch, and shard s of n takes the s-th of its n equal pieces. So the step is the whole state of the
stream, and any number of hosts sees the same global batches in the same order.

A training batch says nothing about a label that is withheld from training, not in its captions either. A data
set's own caption may give away any label, so it is used where the weak-label protocol takes nothing from the
example: no label hidden, no noise. Elsewhere a sentence of the labels that are left takes its place.

Workers are threads: decoding releases the interpreter's lock, and none of them can be killed on its own.
Whatever ends one, be it bad data or a fault of ours, is raised where the batch was due.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
import threading
from collections.abc import Generator, Sequence

import grain
import numpy as np
from jaxtyping import Bool, Float64, Int64, UInt8

from input_pipeline.batch import (
    AttributeBatch,
    Example,
    Source,
    SourceOfMany,
    SourceWithClasses,
    batch_around,
)
from input_pipeline.classes import ClassRates
from input_pipeline.errors import CorruptExampleError, CorruptImageError, DataError
from input_pipeline.images import ImageOptions, load
from input_pipeline.text import Text, caption_from_phrases
from input_pipeline.weak_labels import WeakLabels

# Second words of the generators' keys: one for each thing that is drawn.
_ORDER, _CROP = 0, 1


def train_batches(
    source: Source,
    *,
    images: ImageOptions,
    weak_labels: WeakLabels | None = None,
    text: Text | None = None,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    stop_step: int = sys.maxsize,
    shard: int = 0,
    shards: int = 1,
    threads: int = 2,
    allow_corrupt: bool = False,
) -> Generator[AttributeBatch]:
    """Training batches of one shard, from `start_step` on: endless, unless they are to stop.

    Each epoch's examples come exactly once. At most 2 * threads batches are held ready or in the making.
    Closing the iterator, or dropping it, ends its threads.

    Args:
      source: the split to read, at least one example.
      images: geometry; random windows are drawn from (seed, position in the stream).
      weak_labels: what is hidden from training; None hides nothing.
      text: captions and their ids; None, or captions "none", for batches without tokens.
      batch_size: the global batch, a multiple of `shards`. The batches returned hold batch_size / shards
        examples.
      seed: fixes order and windows.
      start_step: the first step to return; the same as skipping that many batches.
      stop_step: the first step not to return; nothing is read for it.
      shard: which of the `shards` equal pieces of every global batch to return.
      threads: host threads, each working on a batch of its own; 0 works in the caller's thread.
      allow_corrupt: an example that cannot be read becomes a black row of weight 0 with its own index and no
        known label, for the caller to count, instead of an error.

    Raises:
      DataError: settings that do not fit together (at once); an example that cannot be read, named by its key
        (when its batch is due).
    """
    _check(source, batch_size, shard, shards)
    if start_step < 0:
        raise DataError(f"start_step must be 0 or more, found {start_step}")
    piece = batch_size // shards
    orders = _Orders(seed, len(source))
    rates = class_rates(source, weak_labels)
    protocol = weak_labels if weak_labels is not None and weak_labels.changes else None
    reader = _Reader(source, images, protocol, text, True, allow_corrupt, rates)

    def build(step: int) -> AttributeBatch:
        first = step * batch_size + shard * piece
        draws = _crop_draws(seed, first, piece) if images.random_crop else None
        return reader.batch(orders.examples(first, piece), piece, draws)

    return _iterate(grain.MapDataset.range(start_step, stop_step).map(build), threads)


def eval_batches(
    source: Source,
    *,
    images: ImageOptions,
    text: Text | None = None,
    captions: bool = False,
    batch_size: int,
    shard: int = 0,
    shards: int = 1,
    threads: int = 2,
    allow_corrupt: bool = False,
    hidden_by: WeakLabels | None = None,
) -> Generator[AttributeBatch]:
    """Every example exactly once, in the source's order, with all its labels.

    A caption names the very attributes that are to be predicted. So the tokens are all padding, unless
    `captions` asks for captions with everything in them. With `hidden_by` only those labels are known that
    this protocol hides from training: of a training split, what nothing can have been fitted to.

    All shards return the same number of batches of batch_size / shards rows; what is left over is padded with
    black rows of weight 0 and index -1. Arguments and errors as for `train_batches`.
    """
    _check(source, batch_size, shard, shards)
    piece = batch_size // shards
    rates = class_rates(source, hidden_by)
    reader = _Reader(source, images, None, text, captions, allow_corrupt, rates, hidden_by)

    def build(step: int) -> AttributeBatch:
        first = step * batch_size + shard * piece
        return reader.batch(range(first, min(first + piece, len(source))), piece, None)

    steps = grain.MapDataset.range(num_eval_batches(len(source), batch_size))
    return _iterate(steps.map(build), threads)


def num_eval_batches(examples: int, batch_size: int) -> int:
    """How many batches `eval_batches` returns, on every shard."""
    return -(-examples // batch_size)


def _check(source: Source, batch_size: int, shard: int, shards: int) -> None:
    if len(source) == 0:
        raise DataError(
            f"{source.schema.name}: the split holds no examples; choose another, or prepare it again"
        )
    if batch_size < 1 or shards < 1 or batch_size % shards:
        raise DataError(f"a global batch of {batch_size} does not divide into {shards} equal pieces")
    if not 0 <= shard < shards:
        raise DataError(f"shard must lie in 0..{shards - 1}, found {shard}")


def class_rates(source: Source, weak_labels: WeakLabels | None) -> ClassRates | None:
    """What the source knows of its examples' classes, where the protocol asks for it.

    Raises:
      DataError: it asks, and the examples have none.
    """
    if weak_labels is None or not weak_labels.class_level:
        return None
    found = source.class_rates if isinstance(source, SourceWithClasses) else None
    if found is None:
        raise DataError(
            f"{source.schema.name}: weak_labels.class_level needs examples with classes, and these have "
            "none; choose another protocol"
        )
    return found


@dataclasses.dataclass(frozen=True)
class _Reader:
    """Reads examples into batches. Without `captions` tokens are all padding."""

    source: Source
    images: ImageOptions
    weak_labels: WeakLabels | None
    text: Text | None
    captions: bool
    allow_corrupt: bool
    rates: ClassRates | None = None
    hidden_by: WeakLabels | None = None

    def batch(
        self, indices: Sequence[int], rows: int, draws: Float64[np.ndarray, "B 4"] | None
    ) -> AttributeBatch:
        """A batch of `rows` rows: the examples at `indices`, then padding.

        Stage by stage, not row by row: so the code that reads, and that which decodes, stays in the
        processor's caches.
        """
        size, columns = self.images.size, None if self.text is None else self.text.options.columns
        images = np.empty((rows, size, size, 3), np.uint8)
        images[len(indices) :] = 0
        batch = batch_around(images, self.source.schema.num_attributes, columns)
        batch.index[: len(indices)] = indices
        examples = self._examples(indices)
        whole = [
            self._load(example, images[row], None if draws is None else draws[row])
            for row, example in enumerate(examples)
        ]
        for row, example in enumerate(examples):
            if example is not None and whole[row]:
                self._label(batch, row, example)
        return batch

    def _examples(self, indices: Sequence[int]) -> Sequence[Example | None]:
        """None in place of one that cannot be read, where that is allowed."""
        try:
            if isinstance(self.source, SourceOfMany):
                return self.source.examples(indices)
        except CorruptExampleError:
            if not self.allow_corrupt:
                raise
        return [self._read(index) for index in indices]

    def _read(self, index: int) -> Example | None:
        """None for an example that cannot be read, where that is allowed."""
        try:
            return self.source[index]
        except CorruptExampleError:
            if not self.allow_corrupt:
                raise
            return None

    def _load(
        self,
        example: Example | None,
        out: UInt8[np.ndarray, "S S 3"],
        draw: Float64[np.ndarray, "4"] | None,
    ) -> bool:
        """Writes the example's image; black and False for one that cannot be read, where that is allowed."""
        if example is not None:
            try:
                load(example.image, self.images, draw, out, example.view)
                return True
            except CorruptImageError as error:
                if not self.allow_corrupt:
                    raise self._named(error, example) from error
        out[:] = 0
        return False

    def _named(self, error: CorruptImageError, example: Example) -> CorruptImageError:
        return CorruptImageError(
            f"{self.source.schema.name}: image {example.key}: {error}; replace the file and prepare the data "
            "again, or allow corrupt examples to be skipped and counted"
        )

    def _label(self, batch: AttributeBatch, row: int, example: Example) -> None:
        """Writes all but the image, and gives the row its weight."""
        index = int(batch.index[row])
        labels, known = example.labels * example.known, example.known
        rates = None if self.rates is None else self.rates.of_example(index)
        if self.weak_labels is not None:
            labels, known = self.weak_labels.apply(labels, known, example.key, rates)
        if self.hidden_by is not None:
            known = known & ~self.hidden_by.apply(labels, known, example.key, rates)[1]
            labels = labels * known
        batch.labels[row] = labels
        batch.known[row] = known
        if self.text is not None and batch.tokens is not None and self.captions:
            batch.tokens[row] = self.text.encode(self._caption(self.text, example, labels, known))
        batch.weight[row] = 1.0

    def _caption(
        self, text: Text, example: Example, labels: UInt8[np.ndarray, "A"], known: Bool[np.ndarray, "A"]
    ) -> str:
        """What may be said of an example that the batch labels so."""
        if text.options.captions == "source":
            if example.caption is None:
                return ""
            if not self._noisy and np.array_equal(known, example.known):
                return example.caption
        return caption_from_phrases(self.source.schema, labels, known)

    @property
    def _noisy(self) -> bool:
        """Whether labels may be wrong. Asked of the protocol: per example the answer would tell which are."""
        return self.weak_labels is not None and self.weak_labels.noisy


class _Orders:
    """Which example stands where in the stream. The orders of two epochs are kept, for batches that are made
    at once may stand on both sides of an epoch's end. May be asked from several threads.
    """

    def __init__(self, seed: int, examples: int) -> None:
        self._order = functools.lru_cache(maxsize=2)(functools.partial(_epoch_order, seed, examples))
        self._examples, self._lock = examples, threading.Lock()

    def examples(self, first: int, count: int) -> list[int]:
        """The examples at `count` positions of the stream, from position `first` on."""
        found: list[int] = []
        while len(found) < count:
            epoch, offset = divmod(first + len(found), self._examples)
            with self._lock:  # threads that ask at once would each make the order
                order = self._order(epoch)
            found += order[offset : offset + count - len(found)].tolist()
        return found


def _epoch_order(seed: int, examples: int, epoch: int) -> Int64[np.ndarray, "examples"]:
    """The epoch's order. NumPy guarantees Philox's raw output for good, and so this order."""
    return np.argsort(_philox(seed, _ORDER, epoch, 0).random_raw(examples), kind="stable")


def _crop_draws(seed: int, first: int, count: int) -> Float64[np.ndarray, "count 4"]:
    """Four draws in [0, 1) for each of `count` positions of the stream, from position `first` on.

    One tick of Philox's counter yields exactly four numbers, so a position's draws do not depend on where the
    batch it falls into begins.
    """
    return np.random.Generator(_philox(seed, _CROP, 0, first)).random((count, 4))


def _philox(seed: int, purpose: int, stream: int, tick: int) -> np.random.Philox:
    """Independent for each (seed, purpose, stream), wound forward by `tick` ticks."""
    key = np.array([seed % 2**64, purpose], np.uint64)
    return np.random.Philox(key=key, counter=np.array([tick, stream, 0, 0], np.uint64))


def _iterate(batches: grain.MapDataset, threads: int) -> Generator[AttributeBatch]:
    # Grain's default holds 500 elements ready; our elements are whole batches.
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    return _closing(batches.to_iter_dataset(options))


def _closing(dataset: grain.IterDataset) -> Generator[AttributeBatch]:
    """A generator, so that close() and garbage collection both reach Grain's iterator and its threads."""
    iterator = iter(dataset)
    try:
        yield from iterator
    finally:
        iterator.close()
