"""A small data set in memory, and batches of it taken and compared."""

from itertools import islice

import numpy as np
from official_files import jpeg

from input_pipeline.batch import AttributeBatch, Example
from input_pipeline.classes import ClassRates
from input_pipeline.images import ImageOptions
from input_pipeline.pipeline import train_batches
from input_pipeline.schema import AttributeSchema
from input_pipeline.text import Text, TextOptions, caption_from_phrases
from input_pipeline.weak_labels import WeakLabels

A = 6
SCHEMA = AttributeSchema.from_groups("toys", tuple("abcdef"), {"all": tuple(range(A))})
PLAIN = ImageOptions(8)
CROPPED = ImageOptions(8, crop_scale=(0.3, 1.0), crop_ratio=(0.8, 1.25))
WEAK = WeakLabels(seed=1, known_fraction=0.5)
OWN = Text(TextOptions("source", length=12), SCHEMA, ["toy number"])
PHRASES = Text(TextOptions("phrases", length=12), SCHEMA)


class Toys:
    """N examples in memory, every third without a caption.

    `broken` maps positions to what reading or decoding them must meet.
    """

    schema = SCHEMA
    truth = "labels of each toy"

    def __init__(self, count, broken=None):
        rng = np.random.default_rng(count)
        self.images = [jpeg(i) for i in range(count)]
        self.labels = rng.integers(0, 2, (count, A)).astype(np.uint8)
        self.known = rng.random((count, A)) < 0.8
        self.broken = broken or {}

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        fault = self.broken.get(index)
        if isinstance(fault, BaseException):
            raise fault
        image = self.images[index] if fault is None else fault
        told = self.labels[index] * self.known[index]
        caption = f"toy number {index} {told}" if index % 3 else None
        return Example(image, self.labels[index], self.known[index], f"toy-{index}", caption)


class ClassedToys(Toys):
    """Toys of four kinds, each with rates for every attribute."""

    def __init__(self, count):
        super().__init__(count)
        rng = np.random.default_rng(1)
        rates = np.where(rng.random((4, A)) < 0.2, np.nan, rng.random((4, A))).astype(np.float32)
        self.class_rates = ClassRates(np.arange(count, dtype=np.int32) % 4, rates)


def stack(batches: list[AttributeBatch]) -> AttributeBatch:
    """Concatenates batches along the first axis. Either all of them have tokens or none has."""

    def joined(field: str) -> np.ndarray:
        return np.concatenate([getattr(batch, field) for batch in batches])

    return AttributeBatch(
        image=joined("image"),
        labels=joined("labels"),
        known=joined("known"),
        weight=joined("weight"),
        index=joined("index"),
        tokens=None if batches[0].tokens is None else joined("tokens"),
    )


def train(source, **settings):
    settings = {"images": CROPPED, "weak_labels": WEAK, "batch_size": 8, "seed": 5} | settings
    return train_batches(source, **settings)


def take(batches, count):
    taken = list(islice(batches, count))
    batches.close()
    return taken


def assert_same(a, b):
    for name, x, y in zip(AttributeBatch._fields, a, b, strict=True):
        np.testing.assert_array_equal(x, y, err_msg=name)


def assert_all_same(a, b):
    for x, y in zip(a, b, strict=True):
        assert_same(x, y)


def expected_tokens(text, example, labels, known):
    if text is PHRASES or (example.caption and (known != example.known).any()):
        return text.encode(caption_from_phrases(SCHEMA, labels, known))
    return text.encode(example.caption or "")
