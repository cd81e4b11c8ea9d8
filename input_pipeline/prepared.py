"""Prepared data: a TensorFlow Datasets folder of ArrayRecord shards, and a manifest that can prove it whole.

A record is a `tf.train.Example` with the features image (encoded, the bytes as they came), labels (A bytes, 0
or 1), key, and sha256 (of the image's bytes). `manifest.json` lists every shard with its size, record count
and SHA-256. Reading needs neither TensorFlow nor a tensorflow-datasets builder.
"""

from __future__ import annotations

import bisect
import dataclasses
import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from input_pipeline.batch import Example
from input_pipeline.errors import CorruptRecordError, DataError
from input_pipeline.schema import AttributeSchema

MANIFEST = "manifest.json"
FORMAT_VERSION = 1

_PREPARE_AGAIN = "prepare the data again with `wsca prepare`"


@dataclasses.dataclass(frozen=True)
class Shard:
    """One ArrayRecord file: its name, how many records and bytes it holds, and its SHA-256."""

    file: str
    records: int
    bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a prepared folder must hold: for each split its shards, in order."""

    data_set: str
    attributes: tuple[str, ...]
    splits: Mapping[str, tuple[Shard, ...]]


class PreparedSource:
    """Random access to one split of a prepared folder. May be read from several threads.

    Raises:
      DataError: no such split, another data set, or a shard that is missing or of the wrong size.
    """

    def __init__(self, folder: Path, split: str, schema: AttributeSchema) -> None:
        manifest = read_manifest(folder)
        if manifest.attributes != schema.attributes:
            raise DataError(
                f"{folder}: prepared from {manifest.data_set!r} with {len(manifest.attributes)} attributes, "
                f"expected {schema.name!r} with its {schema.num_attributes}; check --data_dir"
            )
        if split not in manifest.splits:
            raise DataError(f"{folder}: there is no split {split!r}; it holds {', '.join(manifest.splits)}")
        self.schema = schema
        self._shards = [ShardReader(folder, shard) for shard in manifest.splits[split]]
        self._ends = list(itertools.accumulate(shard.records for shard in manifest.splits[split]))
        self._known = np.ones(schema.num_attributes, np.bool_)
        self._known.flags.writeable = False  # shared by all examples

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Example:
        """Raises CorruptRecordError, naming shard and record, for bytes that cannot be read back."""
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is outside 0..{len(self) - 1}")
        shard = bisect.bisect_right(self._ends, index)
        start = self._ends[shard - 1] if shard else 0
        record = self._shards[shard].read(index - start, len(self._known))
        return Example(record.image, record.labels, self._known, record.key)


@dataclasses.dataclass(frozen=True)
class Record:
    """One record as it lies on disk; see the module."""

    image: bytes
    labels: np.ndarray
    key: str
    sha256: str


class ShardReader:
    """Reads records of one shard by position. Raises DataError for a shard unlike the manifest's."""

    def __init__(self, folder: Path, shard: Shard) -> None:
        from array_record.python import array_record_module  # only where data is read: imports stay cheap
        from tensorflow_datasets.proto import tf_example_pb2

        self.path, self.shard = folder / shard.file, shard
        size = self.path.stat().st_size if self.path.is_file() else None
        if size != shard.bytes:
            found = "nothing" if size is None else f"{size} bytes"
            raise DataError(f"{self.path}: expected {shard.bytes} bytes, found {found}; {_PREPARE_AGAIN}")
        self._parse = tf_example_pb2.Example.FromString
        try:
            # Random access: read-ahead would fetch neighbours that nobody asked for.
            options = "readahead_buffer_size:0"
            self._reader = array_record_module.ArrayRecordReader(str(self.path), options=options)
            if self._reader.num_records() != shard.records:
                raise ValueError(f"{self._reader.num_records()} records, expected {shard.records}")
        except Exception as error:  # the C++ reader's types are its own
            raise DataError(
                f"{self.path}: damaged, cannot be opened ({_first_line(error)}); {_PREPARE_AGAIN}"
            ) from error

    def read(self, position: int, attributes: int) -> Record:
        """Raises CorruptRecordError, naming shard and record."""
        try:
            features = self._parse(self._reader.read([position])[0]).features.feature
            image, labels, key, sha256 = (
                features[name].bytes_list.value[0] for name in ("image", "labels", "key", "sha256")
            )
            if len(labels) != attributes:
                raise ValueError(f"{len(labels)} labels, expected {attributes}")
            return Record(image, np.frombuffer(labels, np.uint8), key.decode(), sha256.decode())
        except Exception as error:  # the C++ reader's and protobuf's types are their own
            raise CorruptRecordError(
                f"{self.path}, record {position}: damaged ({_first_line(error)}); {_PREPARE_AGAIN}, "
                "or allow corrupt examples to be skipped and counted"
            ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def is_prepared(folder: Path) -> bool:
    """Whether the folder has a manifest."""
    return (folder / MANIFEST).is_file()


def read_manifest(folder: Path) -> Manifest:
    """Raises DataError for a manifest that is missing, broken or of another format version."""
    path = folder / MANIFEST
    try:
        record = json.loads(path.read_text("utf-8"))
        version = record["format_version"]
        if version == FORMAT_VERSION:
            splits = {s: tuple(Shard(**shard) for shard in shards) for s, shards in record["splits"].items()}
            return Manifest(record["data_set"], tuple(record["attributes"]), splits)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path}: expected a manifest of prepared data, found {error!r}; {_PREPARE_AGAIN}"
        ) from error
    raise DataError(f"{path}: expected format version {FORMAT_VERSION}, found {version}; {_PREPARE_AGAIN}")


def write_manifest(
    folder: Path, schema: AttributeSchema, shards: Mapping[str, Sequence[tuple[str, int]]]
) -> None:
    """Records what the folder holds now.

    Args:
      folder: holds the shards.
      schema: of the data set.
      shards: for each split, (file name, number of records) of each shard in order.
    """
    splits = {
        split: [dataclasses.asdict(_measure(folder, file, records)) for file, records in files]
        for split, files in shards.items()
    }
    record = {
        "format_version": FORMAT_VERSION,
        "data_set": schema.name,
        "attributes": schema.attributes,
        "splits": splits,
    }
    (folder / MANIFEST).write_text(json.dumps(record, indent=1) + "\n", "utf-8")


def _measure(folder: Path, file: str, records: int) -> Shard:
    path = folder / file
    return Shard(file, records, path.stat().st_size, file_sha256(path))


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
