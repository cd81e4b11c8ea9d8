"""CUB-200-2011: 11,788 images of 200 species of birds, 312 binary attributes in 28 families and three groups.

Reads the official files (see `files`) or a folder made by `prepare`. For non-commercial research; the
images may not be redistributed.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Literal, get_args

from input_pipeline.cub import files
from input_pipeline.cub.attributes import SCHEMA
from input_pipeline.cub.lists import CERTAINTIES
from input_pipeline.errors import DataError
from input_pipeline.images import Box
from input_pipeline.splits import with_validation
from input_pipeline.storage.file_data_set import FileDataSet
from input_pipeline.storage.official import Official
from input_pipeline.storage.prepared import Reading

__all__ = ["SCHEMA", "Options", "open_split", "prepare", "recognises", "schema", "verify"]

Splitting = Literal["official", "class_disjoint"]


@dataclasses.dataclass(frozen=True)
class Options:
    """Settings of the data set.

    Attributes:
      certainty: the least certainty of an annotator, 1 (not visible) to 4 (definitely), at which the label of
        an image counts as known.
      split: "official", where a tenth of the training images is set aside for validation, or
        "class_disjoint", where no species stands in two splits. With labels of class level the official one
        measures how well species are told apart, and only the other one how well attributes are.
      crop: whether an image is cut to the bird's box.
      cache_dir: where official files are prepared; None for $WSCA_CACHE, or ~/.cache/wsca_jax without it.

    Raises:
      DataError: a value out of range.
    """

    certainty: int = 3
    split: Splitting = "official"
    crop: bool = False
    cache_dir: str | None = None

    def __post_init__(self) -> None:
        files.Options(self.certainty)
        if self.split not in get_args(Splitting):
            known = " or ".join(get_args(Splitting))
            raise DataError(f"cub: split is {self.split!r}, expected {known}")


def _open_official(folder: Path, cache: Path) -> Official:
    """The official files, with validation images and the split that keeps species apart."""
    official = files.open_official(folder)
    splits = with_validation(official.splits, official.keys)
    if official.classes is None:
        return dataclasses.replace(official, splits=splits)
    return dataclasses.replace(
        official,
        splits=splits,
        other_splits={"class_disjoint": files.class_disjoint(official.classes)},
        class_labels_only=not official.codes.any(),
    )


def _reading(options: Options) -> Reading:
    certainty, sure = files.Options(options.certainty), CERTAINTIES[options.certainty - 1]
    return Reading(
        decode_labels=functools.partial(files.decode_labels, options=certainty),
        view=_bird if options.crop else _everything,
        splitting=None if options.split == "official" else options.split,
        truth=f"labels of each image, from certainty {options.certainty} ({sure}) on",
    )


def _bird(box: Box) -> Box | None:
    return box


def _everything(box: Box) -> Box | None:
    return None


_FILES = FileDataSet(
    "cub",
    "CUB-200-2011's official files",
    files.find,
    SCHEMA,
    _open_official,
    files.fingerprint,
    _reading,
)
recognises, schema, open_split = _FILES.recognises, _FILES.schema, _FILES.open_split
prepare, verify = _FILES.prepare, _FILES.verify
