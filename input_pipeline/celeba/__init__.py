"""CelebA: 202,599 aligned face images, 40 binary attributes in eight groups.

Reads the official files (see `files`) or a folder made by `prepare`. For non-commercial research; the
data set's terms forbid redistribution.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

from input_pipeline.celeba import files
from input_pipeline.celeba.attributes import SCHEMA
from input_pipeline.errors import DataError
from input_pipeline.labels import binary_codes
from input_pipeline.storage.file_data_set import FileDataSet
from input_pipeline.storage.prepared import Reading

__all__ = ["SCHEMA", "Options", "open_split", "prepare", "recognises", "schema", "verify"]

Splitting = Literal["official", "tuning"]


@dataclasses.dataclass(frozen=True)
class Options:
    """Settings of the data set.

    Attributes:
      split: "official", or "tuning": a tenth of the persons of the official training images is set aside to
        choose settings on, and the official validation images stay unseen. It needs identity_CelebA.txt.
      cache_dir: where official files are prepared; None for $WSCA_CACHE, or ~/.cache/wsca_jax without it.

    Raises:
      DataError: a value out of range.
    """

    split: Splitting = "official"
    cache_dir: str | None = None

    def __post_init__(self) -> None:
        if self.split not in get_args(Splitting):
            raise DataError(f"celeba: split is {self.split!r}, expected {' or '.join(get_args(Splitting))}")


def _reading(options: Options) -> Reading:
    return Reading(binary_codes, splitting=None if options.split == "official" else options.split)


_FILES = FileDataSet(
    "celeba",
    "CelebA's official files",
    files.find,
    SCHEMA,
    lambda folder, cache: files.open_official(folder),
    files.fingerprint,
    _reading,
)
recognises, schema, open_split = _FILES.recognises, _FILES.schema, _FILES.open_split
prepare, verify = _FILES.prepare, _FILES.verify
