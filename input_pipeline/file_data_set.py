"""What all data sets that lie in files have in common: opened, prepared and verified the same way."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from input_pipeline import prepared, preparing
from input_pipeline.errors import DataError
from input_pipeline.official import Official
from input_pipeline.prepared import PreparedSource, Reading
from input_pipeline.schema import AttributeSchema
from input_pipeline.verify import VerifyReport, verify_official, verify_prepared


class FileOptions(Protocol):
    """Settings that every data set of files has.

    Attributes:
      cache_dir: where official files are prepared; None for $WSCA_CACHE, or ~/.cache/wsca_jax without it.
    """

    cache_dir: str | None


@dataclasses.dataclass(frozen=True)
class FileDataSet:
    """A data set of official files.

    Attributes:
      title: its name in messages, such as "CelebA".
      schema: what its labels mean.
      open_official: reads and cross-checks the official files of a folder.
      fingerprint: hexadecimal digits that change when these files do. Quick: it reads no image.
      reading: options -> how records become examples.
    """

    title: str
    schema: AttributeSchema
    open_official: Callable[[Path], Official]
    fingerprint: Callable[[Path], str]
    reading: Callable[[Any], Reading]

    def open_split(self, data_dir: Path | None, split: str, options: FileOptions) -> PreparedSource:
        """Opens "train", "validation" or "test" of a prepared folder or of the official files.

        Official files, which may be read-only, are prepared into the cache if they are not there yet: once,
        also where several processes ask at the same time. Changed files are a new entry of the cache.

        Raises:
          DataError: no data, damaged data, no such split.
        """
        folder = self.existing(data_dir)
        if not prepared.is_prepared(folder):
            root = preparing.cache_root(options.cache_dir) / self.schema.name
            entry = root / f"{self.fingerprint(folder)}-{prepared.FORMAT_VERSION}"
            folder = preparing.cached(self.open_official, folder, entry)
        return PreparedSource(folder, split, self.schema, self.reading(options))

    def prepare(self, source_dir: Path, output_dir: Path, *, shortest: int | None = None) -> Path:
        """Writes the official files as shards; see `preparing.prepare`."""
        return preparing.prepare(self.open_official, self.existing(source_dir), output_dir, shortest=shortest)

    def verify(self, data_dir: Path, options: FileOptions) -> VerifyReport:
        """Checks a prepared folder against its manifest, or every image of the official files.

        Raises:
          DataError: data that cannot even be listed: nothing there, contradicting lists, an absent image.
        """
        folder, reading = self.existing(data_dir), self.reading(options)
        if prepared.is_prepared(folder):
            return verify_prepared(folder, reading)
        return verify_official(self.open_official(folder), reading)

    def existing(self, folder: Path | None) -> Path:
        """The folder. Raises DataError where there is none, or nothing in it."""
        if folder is None:
            raise DataError(f"{self.schema.name} is read from files: give their folder with --data_dir")
        if not folder.is_dir():
            raise DataError(f"{folder}: expected a folder with {self.title}, found nothing; check --data_dir")
        if not any(folder.iterdir()):
            raise DataError(
                f"{folder}: the folder is empty; put {self.title}'s official files there or check --data_dir"
            )
        return folder
