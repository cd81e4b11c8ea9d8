"""COCO Attributes: 204 attributes of people, animals and objects in COCO's images, in six groups.

Reads the official files (see `files`) or a folder made by `prepare`. Each example is one object, cut out
of its image.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import numpy as np

from input_pipeline.coco_attributes import files, votes
from input_pipeline.coco_attributes.lexicon import SCHEMA
from input_pipeline.errors import DataError
from input_pipeline.images import Box
from input_pipeline.storage.file_data_set import FileDataSet
from input_pipeline.storage.official import Official
from input_pipeline.storage.prepared import Reading
from input_pipeline.storage.reencode import MARGIN

__all__ = ["SCHEMA", "Options", "open_split", "prepare", "recognises", "schema", "verify"]

# With that much on each side of the view, what is stored around an object is just used up.
_MOST_CONTEXT = MARGIN / (1 + 2 * MARGIN)


@dataclasses.dataclass(frozen=True)
class Options:
    """Settings of the data set.

    Attributes:
      positive: an attribute with this share of an object's votes, or more, is present.
      negative: one with less than this share is absent. Between the two, and without a vote, it is unknown.
      context: what surrounds the object in its view, on each side, as a fraction of the view's side: 16
        pixels of 224 in the published baseline.
      cache_dir: where official files are prepared; None for $WSCA_CACHE, or ~/.cache/wsca_jax without it.

    Raises:
      DataError: a value out of range.
    """

    positive: float = 0.5
    negative: float = 0.5
    context: float = 16 / 224
    cache_dir: str | None = None

    def __post_init__(self) -> None:
        votes.Options(self.positive, self.negative)
        if not 0.0 <= self.context <= _MOST_CONTEXT:
            raise DataError(
                f"coco_attributes: context must lie in [0, {_MOST_CONTEXT:.4f}], found {self.context}: no "
                "more is stored around an object"
            )


def _open_official(folder: Path, cache: Path) -> Official:
    """The official files, by way of the votes' short form; each object becomes an image of its own."""
    official = files.open_official(folder, cache / "votes")
    return dataclasses.replace(official, shared_images=True)


def _reading(options: Options) -> Reading:
    thresholds = votes.Options(options.positive, options.negative)
    return Reading(
        decode_labels=functools.partial(votes.decode_labels, options=thresholds),
        view=functools.partial(_with_context, options.context),
        truth=(
            "votes on each object: present from a share of "
            f"{options.positive:g}, absent below {options.negative:g}"
        ),
    )


def _with_context(context: float, box: Box) -> Box:
    return Box(*files.with_context(np.array([box], np.int32), context)[0].tolist())


_FILES = FileDataSet(
    "coco_attributes",
    "COCO Attributes' and COCO's official files",
    files.find,
    SCHEMA,
    _open_official,
    files.fingerprint,
    _reading,
)
recognises, schema, open_split = _FILES.recognises, _FILES.schema, _FILES.open_split
prepare, verify = _FILES.prepare, _FILES.verify
