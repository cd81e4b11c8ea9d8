"""What all data sets that lie in files have in common: opened, prepared and verified the same way."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from input_pipeline.errors import DataError
from input_pipeline.schema import AttributeSchema
from input_pipeline.storage import prepared, preparing
from input_pipeline.storage.official import Official
from input_pipeline.storage.prepared import Manifest, PreparedSource, Reading, read_manifest
from input_pipeline.storage.verify import VerifyReport, verify_official, verify_prepared


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
      name: its name in `SOURCES`, in the cache and in prepared data, such as "celeba".
      files: what its folder holds, for messages, such as "CelebA's official files".
      find: finds the official files in a folder; raises DataError where there are none.
      meaning: what its labels mean; or, where every folder says so itself, how to read that from one.
      open_official: (folder, cache) -> its official files, read and cross-checked; the cache is a folder for
        what is converted once, which need not exist.
      fingerprint: hexadecimal digits that change when these files do. Quick: it reads no image.
      reading: options -> how records become examples.
    """

    name: str
    files: str
    find: Callable[[Path], object]
    meaning: AttributeSchema | Callable[[Path], AttributeSchema]
    open_official: Callable[[Path, Path], Official]
    fingerprint: Callable[[Path], str]
    reading: Callable[[Any], Reading]

    def recognises(self, folder: Path) -> bool:
        """Whether the folder holds this data set, prepared or as official files. Reads no image."""
        if prepared.is_prepared(folder):
            return read_manifest(folder).data_set == self.name
        try:
            self.find(folder)
        except DataError:
            return False
        return True

    def schema(self, data_dir: Path | None, options: FileOptions) -> AttributeSchema:
        """What the labels mean. Reads no more than it has to, and nothing where all folders mean the same.

        Raises:
          DataError: the folder is needed and is not there, is of another data set, or contradicts itself.
        """
        if isinstance(self.meaning, AttributeSchema):
            return self.meaning
        folder = self.existing(data_dir)
        return self._manifest(folder).schema if prepared.is_prepared(folder) else self.meaning(folder)

    def open_split(self, data_dir: Path | None, split: str, options: FileOptions) -> PreparedSource:
        """Opens "train", "validation" or "test" of a prepared folder or of the official files.

        Official files, which may be read-only, are prepared into the cache if they are not there yet: once,
        also where several processes ask at the same time. Changed files are a new entry of the cache.

        Raises:
          DataError: no data, damaged data, no such split.
        """
        folder = origin = self.existing(data_dir)
        if not prepared.is_prepared(folder):
            cache = self._cache(options.cache_dir)
            entry = cache / f"{self.fingerprint(folder)}-{prepared.FORMAT_VERSION}"
            folder = preparing.cached(lambda official: self.open_official(official, cache), folder, entry)
        return PreparedSource(folder, split, self.schema(folder, options), self.reading(options), origin)

    def prepare(self, source_dir: Path, output_dir: Path, *, shortest: int | None = None) -> Path:
        """Writes the official files as shards; see `preparing.prepare`."""
        cache, folder = self._cache(None), self.existing(source_dir)
        return preparing.prepare(
            lambda official: self.open_official(official, cache), folder, output_dir, shortest=shortest
        )

    def verify(self, data_dir: Path, options: FileOptions) -> VerifyReport:
        """Checks a prepared folder against its manifest, or every image of the official files.

        Raises:
          DataError: data that cannot even be listed: nothing there, contradicting lists, an absent image.
        """
        folder, reading = self.existing(data_dir), self.reading(options)
        if prepared.is_prepared(folder):
            self._manifest(folder)
            return verify_prepared(folder, reading)
        return verify_official(self.open_official(folder, self._cache(options.cache_dir)), reading)

    def _cache(self, chosen: str | None) -> Path:
        return preparing.cache_root(chosen) / self.name

    def _manifest(self, folder: Path) -> Manifest:
        """A prepared folder's. Raises DataError where it was prepared from another data set."""
        manifest = read_manifest(folder)
        if manifest.data_set != self.name:
            raise DataError(
                f"{folder}: prepared from {manifest.data_set!r}, expected {self.name!r}; choose the config "
                f"of {manifest.data_set!r}, or check --data_dir"
            )
        return manifest

    def existing(self, folder: Path | None) -> Path:
        """The folder. Raises DataError where there is none, or nothing in it."""
        if folder is None:
            raise DataError(f"{self.name}: no data folder; give the one with {self.files} with --data_dir")
        if not folder.is_dir():
            found = "a file" if folder.exists() else "nothing"
            raise DataError(f"{folder}: expected a folder with {self.files}, found {found}; check --data_dir")
        if not any(folder.iterdir()):
            raise DataError(f"{folder}: the folder is empty; put {self.files} there or check --data_dir")
        return folder
