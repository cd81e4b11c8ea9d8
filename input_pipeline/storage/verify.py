"""Holding data against its checksums and against itself, example by example."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int64, UInt8

from input_pipeline import progress
from input_pipeline.classes import ClassRates, labels_from_rates
from input_pipeline.errors import CorruptRecordError, DataError
from input_pipeline.images import Box, check_complete, image_shape, inside
from input_pipeline.schema import AttributeSchema
from input_pipeline.storage.index import Index
from input_pipeline.storage.official import Official
from input_pipeline.storage.prepared import Manifest, Reading, ShardReader, read_manifest
from input_pipeline.storage.reencode import thumbnail
from input_pipeline.storage.repeats import Repeats
from input_pipeline.storage.shards import Shard, file_sha256

Labels = tuple[UInt8[np.ndarray, "A"], Bool[np.ndarray, "A"]]  # labels, known

# So many examples of a split are kept to look at, and no more, however large it is.
SHOWN = 24
# So many lines about images in two splits are printed; what is more is counted.
PRINTED = 20


class Seen(NamedTuple):
    """An example that was read and is whole: its name, its labels, its encoded image and its box."""

    key: str
    labels: Labels
    image: bytes
    box: Box | None

    @property
    def digest(self) -> bytes:
        """What tells an example's picture from others': several objects may lie on one image."""
        box = None if self.box is None else [*self.box]
        return hashlib.sha256(self.image + repr(box).encode()).digest()


# Or one line saying what is wrong with an example, or with the shard that held it.
Finding = Seen | str


class Shown(NamedTuple):
    """An example to look at.

    Attributes:
      key: its name.
      thumbnail: a small JPEG of its whole image.
      labels, known: uint8 and bool [A].
      box: the object, as fractions of the image: top, left, height, width; None for the whole image.
    """

    key: str
    thumbnail: bytes
    labels: UInt8[np.ndarray, "A"]
    known: Bool[np.ndarray, "A"]
    box: tuple[float, float, float, float] | None


@dataclasses.dataclass(frozen=True)
class SplitReport:
    """What was found in one split.

    Attributes:
      split: its name.
      examples: how many it must hold.
      readable: how many were read, matched their checksum where there is one, and decoded in full.
      known_rate: for each attribute, the fraction of readable examples whose label is known; nan without any.
      positive_rate: for each attribute, the fraction of those that have it; nan without any.
      content: sixteen hex digits of a SHA-256 of the names, labels and images of readable examples, in their
        order: the same for the same data, official files or prepared from them without changing an image.
      shown: at most `SHOWN` of them, evenly spaced over the split: the same ones every time.
    """

    split: str
    examples: int
    readable: int
    known_rate: tuple[float, ...]
    positive_rate: tuple[float, ...]
    content: str
    shown: tuple[Shown, ...] = ()


@dataclasses.dataclass(frozen=True)
class VerifyReport:
    """What was found in a folder.

    Attributes:
      path: the folder.
      schema: what the labels mean.
      splits: what each split holds.
      problems: one line for each damaged file, record or image.
      repeated: one line for each image that stands in two splits: what is measured on it means little.
    """

    path: Path
    schema: AttributeSchema
    splits: tuple[SplitReport, ...]
    problems: tuple[str, ...]
    repeated: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return not self.problems

    def __str__(self) -> str:
        """A table of positive and known rates, counts, every problem and the first images in two splits."""
        width = max(len(name) for name in self.schema.attributes)
        columns = [f"{s.split}{' known' * k}" for s in self.splits for k in range(1 + self._partial)]
        lines = [f"{self.path}", "", _line("present, % of known", columns, width)]
        for i, name in enumerate(self.schema.attributes):
            rates = [
                rate
                for s in self.splits
                for rate in (s.positive_rate[i], s.known_rate[i])[: 1 + self._partial]
            ]
            lines.append(_line(name, ["-" if math.isnan(r) else f"{100 * r:.1f}" for r in rates], width))
        counts = [
            ("examples", [str(s.examples) for s in self.splits]),
            ("readable", [str(s.readable) for s in self.splits]),
            ("SHA-256", [s.content for s in self.splits]),
        ]
        pad = [""] * self._partial
        lines += [
            "",
            *(_line(n, [c for v in values for c in (v, *pad)], width) for n, values in counts),
            "",
        ]
        lines += [*self.repeated[:PRINTED]]
        if len(self.repeated) > PRINTED:
            lines.append(
                f"... {len(self.repeated):,} images stand in two splits (with --output all are listed)"
            )
        lines += self.problems
        return "\n".join([*lines, self.verdict])

    @property
    def verdict(self) -> str:
        """How many problems there are, in words."""
        count = len(self.problems)
        return "no problems" if not count else "1 problem" if count == 1 else f"{count} problems"

    @property
    def _partial(self) -> bool:
        """Whether any label is unknown."""
        return any(rate < 1 for split in self.splits for rate in split.known_rate)


def _line(name: str, cells: Sequence[str], width: int) -> str:
    return f"{name:{width}s}" + "".join(f"{cell:>18s}" for cell in cells)


def verify_prepared(folder: Path, reading: Reading) -> VerifyReport:
    """Reads all of a prepared folder: every file's SHA-256, every record, every image's SHA-256 and pixels.

    Raises:
      DataError: there is no manifest to hold the folder against.
    """
    manifest = read_manifest(folder)
    counts = {split: sum(shard.records for shard in shards) for split, shards in manifest.splits.items()}
    labels, findings, first = _prepared_labels(folder, manifest, reading), {}, 0
    for split, shards in manifest.splits.items():
        findings[split] = _prepared_findings(folder, shards, first, manifest.schema.num_attributes, labels)
        first += counts[split]
    report = summarise(folder, manifest.schema, counts, findings)
    damage = _file_problems(folder, manifest.index)
    return dataclasses.replace(report, problems=(*damage, *report.problems))


def verify_official(official: Official, reading: Reading) -> VerifyReport:
    """Reads every image of official files that were opened, and so agree with each other."""
    counts = {split: len(rows) for split, rows in official.splits.items()}
    labels = _label_reader(reading, _class_rates(official))
    findings = {split: _official_findings(official, rows, labels) for split, rows in official.splits.items()}
    return summarise(official.origin, official.schema, counts, findings)


def _class_rates(official: Official) -> ClassRates | None:
    """What is true of classes, where nothing is known of single images."""
    classes = official.classes
    if not official.class_labels_only or classes is None or classes.rates is None:
        return None
    return ClassRates(classes.of, classes.rates)


# The position of an example among all, and its codes -> its labels, as a source of the data set has them.
ReadLabels = Callable[[int, UInt8[np.ndarray, "A"]], Labels]


def _prepared_labels(folder: Path, manifest: Manifest, reading: Reading) -> ReadLabels:
    if not manifest.class_labels_only:
        return _label_reader(reading, None)
    index, examples = Index(folder), sum(s.records for shards in manifest.splits.values() for s in shards)
    try:
        rates = index.read("class_rates", "f", (None, manifest.schema.num_attributes))
        of = None if rates is None else index.read_positions("class_of", examples, len(rates))
    except DataError:  # its damage is a finding of its own
        of = rates = None
    return _label_reader(reading, None if of is None or rates is None else ClassRates(of, rates))


def _label_reader(reading: Reading, classes: ClassRates | None) -> ReadLabels:
    if classes is None:
        return lambda _, codes: reading.decode_labels(codes)
    return lambda position, _: labels_from_rates(classes.of_example(position), *reading.class_thresholds)


def summarise(
    path: Path,
    schema: AttributeSchema,
    counts: Mapping[str, int],
    findings: Mapping[str, Iterator[Finding]],
) -> VerifyReport:
    """Draws the findings of each split, with a progress bar, and counts them into a report."""
    problems: list[str] = []
    reports, repeats = [], Repeats()
    for split, expected in counts.items():
        tally, chosen = _Tally(schema.num_attributes), _spread(expected)
        for position, finding in enumerate(
            progress.over_images(f"Verifying {split}", expected, findings[split])
        ):
            if isinstance(finding, str):
                problems.append(finding)
                continue
            tally.add(finding)
            if position in chosen:
                tally.shown.append(_show(finding))
            repeats.add(split, finding.key, finding.digest)
        reports.append(tally.report(split, expected))
    return VerifyReport(path, schema, tuple(reports), tuple(problems), tuple(repeats.between_splits()))


def _spread(count: int) -> set[int]:
    """At most `SHOWN` positions, evenly spaced."""
    return {*np.linspace(0, max(count - 1, 0), min(count, SHOWN)).astype(int).tolist()}


def _show(seen: Seen) -> Shown:
    height, width = image_shape(seen.image)
    box = None
    if seen.box is not None:
        part = inside(seen.box, height, width)
        box = part.top / height, part.left / width, part.height / height, part.width / width
    return Shown(seen.key, thumbnail(seen.image), *seen.labels, box)


class _Tally:
    """Counts labels, sums up contents, and keeps examples to look at."""

    def __init__(self, attributes: int) -> None:
        self.readable, self._content = 0, hashlib.sha256()
        self.shown: list[Shown] = []
        self.known, self.positive = np.zeros(attributes, np.int64), np.zeros(attributes, np.int64)

    def add(self, seen: Seen) -> None:
        labels, known = seen.labels
        self.readable += 1
        for part in (seen.key.encode(), labels.tobytes(), known.tobytes(), seen.digest):
            self._content.update(hashlib.sha256(part).digest())
        self.known += known
        self.positive += labels & known

    def report(self, split: str, expected: int) -> SplitReport:
        with np.errstate(invalid="ignore", divide="ignore"):
            known, positive = self.known / self.readable, self.positive / self.known
        rates = tuple(known.tolist()), tuple(positive.tolist())
        content = self._content.hexdigest()[:16]
        return SplitReport(split, expected, self.readable, *rates, content, tuple(self.shown))


def _official_findings(
    official: Official, rows: Int64[np.ndarray, "n"], labels: ReadLabels
) -> Iterator[Finding]:
    for row in rows:
        key = official.keys[row]
        try:
            image = official.read_image(int(row))
            check_complete(image, f"{official.origin}: image {key}")
            box = None if official.boxes is None else Box(*map(int, official.boxes[row]))
            yield Seen(key, labels(int(row), official.codes[row]), image, box)
        except DataError as error:
            yield str(error)


def _prepared_findings(
    folder: Path, shards: Sequence[Shard], first: int, attributes: int, labels: ReadLabels
) -> Iterator[Finding]:
    """Those of shards whose first example has position `first` among all."""
    starts = itertools.accumulate((shard.records for shard in shards), initial=first)
    for shard, start in zip(shards, starts, strict=False):
        try:
            reader = ShardReader(folder, shard)
        except DataError as error:
            yield str(error)
            continue
        yield from _file_problems(folder, shard)
        yield from _shard_findings(reader, start, attributes, labels)


def _file_problems(folder: Path, file: Shard) -> Iterator[str]:
    path = folder / file.file
    if not path.is_file():
        yield f"{path}: expected {file.bytes} bytes, found nothing"
    elif file_sha256(path) != file.sha256:
        yield f"{path}: its SHA-256 is not the one in the manifest"


def _shard_findings(
    reader: ShardReader, start: int, attributes: int, labels: ReadLabels
) -> Iterator[Finding]:
    for position in range(reader.shard.records):
        name = f"{reader.path}, record {position}"
        try:
            record = reader.read(position, attributes)
            if not reader.holds_its_image(position):
                raise CorruptRecordError(f"{name} ({record.key}): the image is not the one prepared")
            check_complete(record.image, f"{name} ({record.key})")
            found = labels(start + position, record.codes)
            yield Seen(record.key, found, record.image, record.box)
        except DataError as error:
            yield str(error)
