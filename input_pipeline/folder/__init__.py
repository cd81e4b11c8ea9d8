"""Your own images: a folder with the images and one CSV that says what is in them.

Reads the folder (see `files`) or what `prepare` made of it. What the labels mean is read from the
folder, too: see `attributes`.
"""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

from input_pipeline.folder import files
from input_pipeline.labels import binary_codes
from input_pipeline.splits import with_validation
from input_pipeline.storage.file_data_set import FileDataSet
from input_pipeline.storage.official import Official
from input_pipeline.storage.prepared import Reading

__all__ = ["Options", "open_split", "prepare", "recognises", "schema", "verify"]

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Options:
    """Settings of the data set.

    Attributes:
      cache_dir: where the images are prepared; None for $WSCA_CACHE, or ~/.cache/wsca_jax without it.
    """

    cache_dir: str | None = None


def _open_official(folder: Path, cache: Path) -> Official:
    """The folder, with validation images."""
    official = files.open_official(folder)
    splits = with_validation(official.splits, official.keys)
    if splits.keys() != official.splits.keys():
        _log.warning(
            "%s: no image is for validation, so %d of %d training images are set aside for it",
            folder,
            len(splits["validation"]),
            len(official.splits["train"]),
        )
    return dataclasses.replace(official, splits=splits)


def _reading(options: Options) -> Reading:
    return Reading(binary_codes)


_FILES = FileDataSet(
    "folder",
    "your images and a CSV of their attributes",
    files.find_table,
    files.read_schema,
    _open_official,
    files.fingerprint,
    _reading,
)
recognises, schema, open_split = _FILES.recognises, _FILES.schema, _FILES.open_split
prepare, verify = _FILES.prepare, _FILES.verify
