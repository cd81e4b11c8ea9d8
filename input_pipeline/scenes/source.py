"""The door to Scenes: one split as a source of examples and of whole scenes."""

from __future__ import annotations

import contextlib
import functools
import operator
import threading
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from jaxtyping import Int32, UInt8

from input_pipeline.batch import Example, SpuriousFactor
from input_pipeline.classes import ClassRates, count_rates
from input_pipeline.cores import available_cores
from input_pipeline.errors import DataError
from input_pipeline.scenes import ahead, captions, labels
from input_pipeline.scenes.options import SPLITS, Options, Split
from input_pipeline.scenes.records import Factors, Scene
from input_pipeline.scenes.rendering import render, render_image
from input_pipeline.scenes.sampling import Stream, background_of, sample, stream
from input_pipeline.scenes.vocabulary import SCHEMA, SPURIOUS_CUES, Background
from input_pipeline.schema import AttributeSchema
from input_pipeline.text import caption_from_phrases


def schema(data_dir: Path | None, options: Options) -> AttributeSchema:
    """What the labels mean: the same for all options."""
    return SCHEMA


def open_split(data_dir: Path | None, split: Split, options: Options) -> Source:
    """Opens one split of Scenes.

    Args:
      data_dir: None; there is nothing to read.
      split: "train", "validation" or "test".
      options: the knobs.

    Raises:
      DataError: a data folder was given, or no such split exists.
    """
    if data_dir is not None:
        raise DataError(f"scenes are rendered and read no data folder, found {data_dir}: leave data_dir out")
    if split not in SPLITS:
        raise DataError(f"scenes have no split {split!r}, expected one of {', '.join(SPLITS)}")
    return Source(split, options)


# Starting a process that renders takes as long as rendering a hundred images or two.
IMAGES_PER_PROCESS = 512
# So many training images say how common an attribute is in a class; about a millisecond each.
RATED = 4096


class Source:
    """Random access to one split, safe to read from several threads.

    Rendered images stay in memory up to `Options.cache_megabytes`: those of the lowest indices, so that a
    shuffled epoch finds the same share of its images whatever its order. Images are read-only arrays.

    Attributes:
      schema: the schema of the labels.
      truth: what the labels are, for reports.
      split: the split's name.
      options: the knobs.
    """

    schema = SCHEMA
    truth = "what each scene was rendered from"

    def __init__(self, split: Split, options: Options) -> None:
        self.split = split
        self.options = options
        self._room = min(len(self), options.cache_megabytes * 2**20 // (3 * options.size**2))
        self._cache: dict[int, Example] = {}

    def __len__(self) -> int:
        return self.options.images(self.split)

    def __getitem__(self, index: int) -> Example:
        """Example `index`: image uint8 [H, W, 3], all labels known, with `label_noise` in the train split."""
        index = self._checked(index)
        example = self._cache.get(index)
        return self._kept(index, self.rendered(index)) if example is None else example

    @contextlib.contextmanager
    def ahead(self) -> Iterator[None]:
        """Meanwhile processes render what the cache has room for, on all cores, until it is there.

        What is asked for in between is rendered at once. Few images are not worth a process.
        """
        missing = (i for i in range(self._room) if i not in self._cache)
        turn = threading.Lock()

        def following() -> list[int]:
            with turn:
                return list(islice(missing, ahead.IMAGES_AT_A_TIME))

        count = min(available_cores(), self._room // IMAGES_PER_PROCESS)
        with ahead.rendering(self.split, self.options, count, following, self._kept):
            yield

    @property
    def filled(self) -> bool:
        """Whether every image that the cache has room for is there."""
        return len(self._cache) == self._room

    def __reduce__(self) -> tuple[type[Source], tuple[Split, Options]]:
        """Another process gets the recipe, not the cache."""
        return Source, (self.split, self.options)

    def factors(self, index: int) -> Factors:
        """What scene `index` is generated from, without rendering it."""
        return sample(self.options, self.split, self._checked(index))

    def spurious_factors(self) -> dict[str, SpuriousFactor]:
        """Whether each background and each shape is seen, with the materials or colours it may go with.

        One yes or no per image, for images of several objects too: a colour is present if any object has
        it, and a shape misleads about it if any object has that. So every pair of a cue and an attribute has
        four cells, among them the two where the correlation of training does not hold, and each is large
        (56 images or more of the 1,024 that a validation split has by default). Given whether or not
        training is correlated, so that runs can be compared. About a millisecond per image.
        """
        seen = [labels.present(self.factors(index)) for index in range(len(self))]
        return {
            cue: SpuriousFactor(np.array([cue in names for names in seen], np.int32), attributes)
            for cue, attributes in SPURIOUS_CUES.items()
        }

    @functools.cached_property
    def class_rates(self) -> ClassRates:
        """A scene's class is its background; rates are those of the first `RATED` training images' labels."""
        training = Source("train", self.options)
        rated = range(min(len(training), RATED))
        found = np.stack([training.labels(index) for index in rated])
        known = np.ones(found.shape, bool)
        return ClassRates(
            self._classes(range(len(self))),
            count_rates(found, known, training._classes(rated), len(Background)),
        )

    def _classes(self, indices: range) -> Int32[np.ndarray, "n"]:
        numbers = {name: number for number, name in enumerate(Background)}
        return np.array([numbers[background_of(self.options, self.split, i)] for i in indices], np.int32)

    def scene(self, index: int) -> Scene:
        """Scene `index` rendered, with masks, relations, captions and true labels."""
        factors = self.factors(index)
        image, masks = render(factors, self.options.size)
        return Scene(
            image=image,
            masks=masks,
            labels=labels.exact(factors),
            factors=factors,
            relations=captions.relations(factors),
            caption=captions.caption(factors),
            hard_negatives=captions.hard_negatives(factors),
        )

    def labels(self, index: int) -> UInt8[np.ndarray, "A"]:
        """The labels of example `index`, uint8 [A], without rendering it."""
        return self._labels(self._checked(index), self.factors(index))

    def rendered(self, index: int) -> Example:
        """Example `index`, rendered anew."""
        factors = self.factors(index)
        image = render_image(factors, self.options.size)
        found, known = self._labels(index, factors), np.ones(SCHEMA.num_attributes, bool)
        return Example(
            image=image,
            labels=found,
            known=known,
            key=f"scenes/{self.split}/{index:06d}",
            # Beside noisy labels the true caption would show which of them are wrong.
            caption=caption_from_phrases(SCHEMA, found, known) if self._noisy else captions.caption(factors),
        )

    def _kept(self, index: int, example: Example) -> Example:
        """The example to hand out: the cache's, where there is room for it."""
        assert isinstance(example.image, np.ndarray)
        example.image.setflags(write=False)
        return self._cache.setdefault(index, example) if index < self._room else example

    @property
    def _noisy(self) -> bool:
        return self.split == "train" and self.options.label_noise > 0

    def _labels(self, index: int, factors: Factors) -> UInt8[np.ndarray, "A"]:
        exact = labels.exact(factors)
        if not self._noisy:
            return exact
        draws = stream(self.options, self.split, index, Stream.LABEL_NOISE)
        return labels.noisy(exact, draws, self.options.label_noise)

    def _checked(self, index: int) -> int:
        index = operator.index(index)
        if not 0 <= index < len(self):
            raise IndexError(f"scenes {self.split} has images 0 to {len(self) - 1}, asked for {index}")
        return index
