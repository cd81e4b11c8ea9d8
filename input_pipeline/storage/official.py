"""A data set's official files, opened and cross-checked: what is prepared, verified, or read as it lies.

One module for each data set turns its files into this one record; everything after that is the same for all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int32, Int64, UInt8

from input_pipeline.schema import AttributeSchema


@dataclasses.dataclass(frozen=True)
class Classes:
    """To which class each example belongs: a species, a person, a product.

    Attributes:
      names: C class names.
      of: int32 [N], each example's class.
      rates: float32 [C, A] in [0, 1], the share of a class's images that have the attribute, nan where nobody
        said; None where the data set publishes none, and they are counted from the training labels.
    """

    names: tuple[str, ...]
    of: Int32[np.ndarray, "N"]
    rates: Float32[np.ndarray, "C A"] | None = None


@dataclasses.dataclass(frozen=True)
class Official:
    """N labelled images as a data set's distribution holds them.

    Attributes:
      data_set: the data set's name, as files of prepared data have it.
      origin: the folder, for messages.
      schema: what the labels mean.
      keys: N stable, unique names; every random choice about an example is derived from its own.
      codes: uint8 [N, A], what the files say of each label, in a code of the data set's own. How sure an
        annotator was, or how many voted, stays in it: what counts as known is decided when it is read.
      splits: {name: rows int64 [n], in order}, of the splits that are there.
      read_image: row -> the encoded bytes of its image. Raises DataError, naming the file.
      fingerprint: hexadecimal digits that change when a list changes, or an image's name, size or time.
      classes: where examples have one.
      boxes: int32 [N, 4], top, left, height and width in pixels of the object that the labels are about; None
        where they are about the whole image.
      captions: N sentences, None for an example without one; None where there are none at all.
      other_splits: {splitting: {name: rows}}, other ways to split the same examples.
      class_labels_only: whether nothing is known of single examples, so that the published rates of `classes`
        are the best truth there is.
      shared_images: whether several examples lie on one image, so that each is prepared as a crop of its own.
    """

    data_set: str
    origin: Path
    schema: AttributeSchema
    keys: Sequence[str]
    codes: UInt8[np.ndarray, "N A"]
    splits: Mapping[str, Int64[np.ndarray, "n"]]
    read_image: Callable[[int], bytes]
    fingerprint: str
    classes: Classes | None = None
    boxes: Int32[np.ndarray, "N 4"] | None = None
    captions: Sequence[str | None] | None = None
    other_splits: Mapping[str, Mapping[str, Int64[np.ndarray, "n"]]] = dataclasses.field(default_factory=dict)
    class_labels_only: bool = False
    shared_images: bool = False
