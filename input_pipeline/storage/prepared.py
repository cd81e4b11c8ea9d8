"""Prepared data: a TensorFlow Datasets folder of ArrayRecord shards, and a manifest that can prove it whole.

`records` says what a shard holds. Beside the shards `index.npz` holds what is asked of all examples at once:
their label codes and classes, other ways to split them, and the words of the training captions.
`manifest.json` has the schema, and the size, record count and SHA-256 of every file. Reading needs neither
TensorFlow nor a tensorflow-datasets builder.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32, Int32, Int64, UInt8

from input_pipeline.batch import Example
from input_pipeline.classes import ClassRates, count_rates, labels_from_rates
from input_pipeline.errors import CorruptRecordError, DataError
from input_pipeline.images import Box
from input_pipeline.schema import AttributeSchema
from input_pipeline.storage.index import INDEX, WORDS, Index
from input_pipeline.storage.records import Record, decode_record, holds_its_image
from input_pipeline.storage.shards import Shard

MANIFEST = "manifest.json"
FORMAT_VERSION = 4

_PREPARE_AGAIN = "prepare the data again with `wsca prepare`"

Codes = UInt8[np.ndarray, "... A"]
DecodeLabels = Callable[[Codes], tuple[UInt8[np.ndarray, "... A"], Bool[np.ndarray, "... A"]]]


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a prepared folder must hold: for each split its shards, in order, and the index.

    Attributes:
      class_labels_only: whether labels are those of an example's class, for want of its own.
    """

    data_set: str
    schema: AttributeSchema
    splits: Mapping[str, tuple[Shard, ...]]
    index: Shard
    class_labels_only: bool = False


@dataclasses.dataclass(frozen=True)
class Reading:
    """How records become examples: a data set's own code, with its options filled in.

    Attributes:
      decode_labels: codes uint8 [..., A] -> (labels uint8 [..., A], known bool [..., A]).
      view: the object's box -> the part of the image that stands for the whole; None for all of it.
      splitting: the name of another way to split the examples than the data set's first.
      class_thresholds: (present, absent) of `labels_from_rates`, where nothing is known of single examples.
      truth: what labels are, for reports, where something is known of single examples.
    """

    decode_labels: DecodeLabels
    view: Callable[[Box], Box | None] = lambda box: None
    splitting: str | None = None
    class_thresholds: tuple[float, float] = (0.6, 0.4)
    truth: str = "labels of each image"


class PreparedSource:
    """Random access to one split of a prepared folder. May be read from several threads.

    Args:
      origin: what the user knows the folder by, for messages; itself where None.

    Attributes:
      schema: of the labels.

    Raises:
      DataError: no such split, another data set, or a shard that is missing or of the wrong size.
    """

    def __init__(
        self, folder: Path, split: str, schema: AttributeSchema, reading: Reading, origin: Path | None = None
    ) -> None:
        manifest = read_manifest(folder)
        if manifest.schema.attributes != schema.attributes:
            raise DataError(
                f"{folder}: prepared from {manifest.data_set!r} with {manifest.schema.num_attributes} "
                f"attributes, expected {schema.name!r} with its {schema.num_attributes}; check --data_dir"
            )
        self.schema, self._folder, self._manifest, self._reading = schema, folder, manifest, reading
        self._origin = origin or folder
        shards = [*itertools.chain.from_iterable(manifest.splits.values())]
        self._ends = np.cumsum([shard.records for shard in shards], dtype=np.int64)
        self._starts = self._ends - [shard.records for shard in shards]
        self._index, self._examples = Index(folder), int(self._ends[-1]) if shards else 0
        self._positions = self._find_positions(split)
        needed = np.unique(np.searchsorted(self._ends, self._positions, side="right"))
        self._shards = {int(i): ShardReader(folder, shards[i]) for i in needed}

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, index: int) -> Example:
        """Raises CorruptRecordError, naming shard and record, for bytes that cannot be read back."""
        return self.examples([index])[0]

    def examples(self, indices: Sequence[int]) -> list[Example]:
        """Those at `indices`: the same as one by one, sooner. Errors as there."""
        records = self._read(indices)
        labels, known = self._labels(indices, np.stack([record.codes for record in records]))
        view = self._reading.view
        return [
            Example(r.image, truth, there, r.key, r.caption, r.box and view(r.box))
            for r, truth, there in zip(records, labels, known, strict=True)
        ]

    def _read(self, indices: Sequence[int]) -> list[Record]:
        if indices and not 0 <= min(indices) <= max(indices) < len(self):
            raise IndexError(f"indices {min(indices)} to {max(indices)} are not inside 0..{len(self) - 1}")
        positions = self._positions[list(indices)]
        shards = np.searchsorted(self._ends, positions, side="right")
        places = zip(shards.tolist(), (positions - self._starts[shards]).tolist(), strict=True)
        attributes = self.schema.num_attributes
        # One by one: the reader hands several to threads of its own, which costs twice the processor time.
        return [self._shards[shard].read(position, attributes) for shard, position in places]

    def _labels(
        self, indices: Sequence[int], codes: Codes
    ) -> tuple[UInt8[np.ndarray, "n A"], Bool[np.ndarray, "n A"]]:
        if self._manifest.class_labels_only and self.class_rates is not None:
            rates = self.class_rates.rates[self.class_rates.of[indices]]
            return labels_from_rates(rates, *self._reading.class_thresholds)
        return self._reading.decode_labels(codes)

    @property
    def truth(self) -> str:
        """What its labels are, for reports."""
        if not self._manifest.class_labels_only:
            return self._reading.truth
        present, absent = self._reading.class_thresholds
        return f"rates of each image's class: present from {present:g}, absent up to {absent:g}"

    @functools.cached_property
    def caption_words(self) -> tuple[str, ...]:
        """The words of the training captions, commonest first; of every split the same."""
        name = WORDS if self._reading.splitting is None else f"{self._reading.splitting}/{WORDS}"
        words = self._index.read(name, "u", (None,))
        return () if words is None else tuple(words.tobytes().decode("utf-8", "replace").split())

    @functools.cached_property
    def class_rates(self) -> ClassRates | None:
        """How common each attribute is in each class; None where examples have no class.

        Published rates where there are some; else counted from the labels of the training split.

        Raises:
          DataError: an index that is damaged, or of something else.
        """
        rates = self._index.read("class_rates", "f", (None, self.schema.num_attributes))
        classes = 1 << 31 if rates is None else len(rates)
        of = self._index.read_positions("class_of", self._examples, classes)
        if of is None:
            return None
        if rates is None:
            of, rates = self._count_rates(of)
        return ClassRates(of[self._positions], rates)

    def _count_rates(
        self, of: Int32[np.ndarray, "N"]
    ) -> tuple[Int32[np.ndarray, "N"], Float32[np.ndarray, "C A"]]:
        """(each example's class, rates), with numbers for those classes alone that have examples."""
        there, of = np.unique(of, return_inverse=True)
        training = self._find_positions("train")
        codes = self._index.read("labels", "u", (self._examples, self.schema.num_attributes))
        if codes is None:
            raise DataError(f"{self._folder / INDEX}: expected labels, found none; {_PREPARE_AGAIN}")
        labels, known = self._reading.decode_labels(codes[training])
        return of.astype(np.int32), count_rates(labels, known, of[training], len(there))

    def _find_positions(self, split: str) -> Int64[np.ndarray, "n"]:
        """Where the split's examples stand among all of them, in the order of the shards."""
        splits, splitting = self._manifest.splits, self._reading.splitting
        if splitting is not None:
            return self._other_split(splitting, split)
        if split not in splits:
            raise DataError(f"{self._origin}: there is no split {split!r}; it holds {', '.join(splits)}")
        start = 0
        for name, shards in splits.items():
            count = sum(shard.records for shard in shards)
            if name == split:
                break
            start += count
        return np.arange(start, start + count)

    def _other_split(self, splitting: str, split: str) -> Int64[np.ndarray, "n"]:
        positions = self._index.read_positions(f"{splitting}/{split}", None, self._examples)
        if positions is None:
            there = [name for name in self._index.names() if name.startswith(f"{splitting}/")]
            raise DataError(
                f"{self._folder}: there is no split {splitting}/{split}; it holds "
                f"{', '.join(there) or 'none of that kind'}; {_PREPARE_AGAIN}, from all official files"
            )
        return positions


class ShardReader:
    """Reads records of one shard by position. Raises DataError for a shard unlike the manifest's."""

    def __init__(self, folder: Path, shard: Shard) -> None:
        from array_record.python import array_record_module  # only where data is read: imports stay cheap

        self.path, self.shard = folder / shard.file, shard
        size = self.path.stat().st_size if self.path.is_file() else None
        if size != shard.bytes:
            found = "nothing" if size is None else f"{size} bytes"
            raise DataError(f"{self.path}: expected {shard.bytes} bytes, found {found}; {_PREPARE_AGAIN}")
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
            return decode_record(self._reader.read([position])[0], attributes)
        except Exception as error:  # the C++ reader's and protobuf's types are their own
            raise self._damaged(position, error) from error

    def holds_its_image(self, position: int) -> bool:
        """Whether a record's image is the one that was written. Errors as for `read`."""
        try:
            return holds_its_image(self._reader.read([position])[0])
        except Exception as error:
            raise self._damaged(position, error) from error

    def _damaged(self, position: int, error: Exception) -> CorruptRecordError:
        return CorruptRecordError(
            f"{self.path}, record {position}: damaged ({_first_line(error)}); {_PREPARE_AGAIN}, "
            "or allow corrupt examples to be skipped and counted"
        )


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
            schema = AttributeSchema.from_json(record["schema"])
            index, class_labels_only = Shard(**record["index"]), record["class_labels_only"]
            return Manifest(record["data_set"], schema, splits, index, class_labels_only)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path}: expected a manifest of prepared data, found {error!r}; {_PREPARE_AGAIN}"
        ) from error
    raise DataError(f"{path}: expected format version {FORMAT_VERSION}, found {version}; {_PREPARE_AGAIN}")


def write_manifest(folder: Path, manifest: Manifest) -> None:
    record = {
        "format_version": FORMAT_VERSION,
        "data_set": manifest.data_set,
        "schema": manifest.schema.to_json(),
        "splits": {
            s: [dataclasses.asdict(shard) for shard in shards] for s, shards in manifest.splits.items()
        },
        "index": dataclasses.asdict(manifest.index),
        "class_labels_only": manifest.class_labels_only,
    }
    (folder / MANIFEST).write_text(json.dumps(record, indent=1) + "\n", "utf-8")
