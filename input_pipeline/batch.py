"""The records that travel: one example on the host, one batch to the device."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float32, Int, Int32, UInt8

from input_pipeline.classes import ClassRates
from input_pipeline.images import Box
from input_pipeline.schema import AttributeSchema


@dataclasses.dataclass(frozen=True)
class Example:
    """One labelled image as a source hands it out: the truth, before any weak-label protocol.

    Attributes:
      image: encoded JPEG or PNG bytes, or a decoded uint8 array [H, W, 3].
      labels: uint8 [A] in {0, 1}; 0 where unknown.
      known: bool [A]; False where the data set itself does not say.
      key: stable name of the example ("000123.jpg"), from which every random choice about it is derived.
      caption: a true sentence about the image, or None. It may give away any label: see `pipeline` for when a
        training batch holds it.
      view: the part of the image that stands for the whole of it; None for all of it.
    """

    image: bytes | UInt8[np.ndarray, "H W 3"]
    labels: UInt8[np.ndarray, "A"]
    known: Bool[np.ndarray, "A"]
    key: str
    caption: str | None = None
    view: Box | None = None


class Source(Protocol):
    """Random access to one split of a data set. Reading position i twice gives the same example.

    A source that knows what misleads about its images says so: see `SourceWithFactors`.

    Attributes:
      schema: of the labels.
      truth: what the labels are, for reports: "labels of each image".
    """

    schema: AttributeSchema

    @property
    def truth(self) -> str: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


class SpuriousFactor(NamedTuple):
    """Something seen in the images that may go with an attribute in training and does not make it present.

    Attributes:
      values: whole numbers [N], one for each example by position in its source.
      attributes: names of the attributes that it may go with.
    """

    values: Int[np.ndarray, "N"]
    attributes: tuple[str, ...]


@runtime_checkable
class SourceWithFactors(Source, Protocol):
    """A source that can say where a model may have learnt the wrong thing: worst-group accuracy needs it."""

    def spurious_factors(self) -> Mapping[str, SpuriousFactor]:
        """{name: factor}, for the whole split. Reads no image."""
        ...


@runtime_checkable
class SourceWithClasses(Source, Protocol):
    """A source that may know its examples' classes: labels of class level need them."""

    @property
    def class_rates(self) -> ClassRates | None:
        """How common each attribute is in each class; None where examples have no class."""
        ...


@runtime_checkable
class SourceWithCaptions(Source, Protocol):
    """A source that knows which words its captions are made of."""

    @property
    def caption_words(self) -> tuple[str, ...]:
        """The words of the training captions, commonest first; of every split the same."""
        ...


@runtime_checkable
class SourceOfMany(Source, Protocol):
    """A source that reads many examples sooner than one after the other."""

    def examples(self, indices: Sequence[int]) -> list[Example]:
        """The same as [source[index] for index in indices], errors included."""
        ...


@runtime_checkable
class SourceAhead(Source, Protocol):
    """A source whose first reading is slow, and that can begin with it before it is asked."""

    def ahead(self) -> AbstractContextManager[None]:
        """Within this context examples are made ready in the background; their order does not matter."""
        ...


class First:
    """The first `count` examples of a source."""

    def __init__(self, source: Source, count: int) -> None:
        self.schema, self.truth = source.schema, source.truth
        self._source, self._count = source, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < self._count:
            raise IndexError(f"there are {self._count} examples, asked for {index}")
        return self._source[index]


class AttributeBatch(NamedTuple):
    """B examples, ready for the device. A NamedTuple, and therefore a JAX pytree.

    Attributes:
      image: uint8 [B, H, W, 3], RGB.
      labels: uint8 [B, A] in {0, 1}; 0 wherever `known` is False.
      known: bool [B, A]; unknown is not negative.
      weight: float32 [B] in [0, 1]; 0 for padding and for skipped examples.
      index: int32 [B], the example's position in its source; -1 for padding.
      tokens: int32 [B, T] caption token ids, 0 where padded, all 0 for an example without a caption; None
        where the run uses no text.
    """

    image: UInt8[np.ndarray, "B H W 3"]
    labels: UInt8[np.ndarray, "B A"]
    known: Bool[np.ndarray, "B A"]
    weight: Float32[np.ndarray, "B"]
    index: Int32[np.ndarray, "B"]  # type: ignore[assignment]  # hides tuple.index, which nobody needs
    tokens: Int32[np.ndarray, "B T"] | None = None


def blank_batch(
    batch_size: int, image_size: int, num_attributes: int, text_length: int | None = None
) -> AttributeBatch:
    """A batch of padding: shapes and dtypes as every batch has them, black images, weight 0, index -1.

    With a `text_length` it has tokens, all padding.
    """
    images = np.zeros((batch_size, image_size, image_size, 3), np.uint8)
    return batch_around(images, num_attributes, text_length)


def batch_around(
    images: UInt8[np.ndarray, "B S S 3"], num_attributes: int, text_length: int | None = None
) -> AttributeBatch:
    """A batch of these images, and otherwise of padding."""
    rows = len(images)
    return AttributeBatch(
        image=images,
        labels=np.zeros((rows, num_attributes), np.uint8),
        known=np.zeros((rows, num_attributes), np.bool_),
        weight=np.zeros(rows, np.float32),
        index=np.full(rows, -1, np.int32),
        tokens=None if text_length is None else np.zeros((rows, text_length), np.int32),
    )
