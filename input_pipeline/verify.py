"""Holding data against its checksums, example by example."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from input_pipeline.errors import CorruptRecordError, DataError
from input_pipeline.images import check_complete
from input_pipeline.prepared import Shard, ShardReader, file_sha256, read_manifest

# One example's labels, or one line saying what is wrong with it (or with the shard that held it).
Finding = UInt8[np.ndarray, "A"] | str


@dataclasses.dataclass(frozen=True)
class SplitReport:
    """What was found in one split.

    Attributes:
      split: its name.
      examples: how many it must hold.
      readable: how many were read, matched their checksum where there is one, and decoded in full.
      positive_rate: for each attribute, the fraction of readable examples that have it; nan without any.
    """

    split: str
    examples: int
    readable: int
    positive_rate: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class VerifyReport:
    """What was found in a folder. `problems` has one line for each damaged shard, record or image."""

    path: Path
    attributes: tuple[str, ...]
    splits: tuple[SplitReport, ...]
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return not self.problems

    def __str__(self) -> str:
        """A table of positive rates, counts, and every problem, for a person to read."""
        width = max(len(name) for name in self.attributes)
        lines = [f"{self.path}", "", _line("present, %", [s.split for s in self.splits], width)]
        for i, name in enumerate(self.attributes):
            lines.append(_line(name, [f"{100 * s.positive_rate[i]:.1f}" for s in self.splits], width))
        lines += ["", _line("examples", [str(s.examples) for s in self.splits], width)]
        lines += [_line("readable", [str(s.readable) for s in self.splits], width), "", *self.problems]
        return "\n".join([*lines, f"{len(self.problems)} problems" if self.problems else "no problems"])


def _line(name: str, cells: Sequence[str], width: int) -> str:
    return f"{name:{width}s}" + "".join(f"{cell:>12s}" for cell in cells)


def verify_prepared(folder: Path) -> VerifyReport:
    """Reads all of a prepared folder: every shard's SHA-256, every record, every image's SHA-256 and pixels.

    Raises:
      DataError: there is no manifest to hold the folder against.
    """
    manifest = read_manifest(folder)
    examples = {split: sum(shard.records for shard in shards) for split, shards in manifest.splits.items()}
    findings = {
        split: _prepared_findings(folder, shards, len(manifest.attributes))
        for split, shards in manifest.splits.items()
    }
    return summarise(folder, manifest.attributes, examples, findings)


def summarise(
    path: Path,
    attributes: tuple[str, ...],
    examples: dict[str, int],
    findings: dict[str, Iterator[Finding]],
) -> VerifyReport:
    """Draws the findings of each split, with a progress bar, and counts them into a report."""
    problems: list[str] = []
    reports = []
    for split, expected in examples.items():
        positives, readable = np.zeros(len(attributes), np.int64), 0
        bar = tqdm(findings[split], desc=f"Verifying {split}", total=expected, unit=" images", disable=None)
        for finding in bar:
            if isinstance(finding, str):
                problems.append(finding)
            else:
                positives, readable = positives + finding, readable + 1
        rates = positives / readable if readable else np.full(len(attributes), np.nan)
        reports.append(SplitReport(split, expected, readable, tuple(rates.tolist())))
    return VerifyReport(path, attributes, tuple(reports), tuple(problems))


def _prepared_findings(folder: Path, shards: Sequence[Shard], attributes: int) -> Iterator[Finding]:
    for shard in shards:
        try:
            reader = ShardReader(folder, shard)
        except DataError as error:
            yield str(error)
            continue
        if file_sha256(reader.path) != shard.sha256:
            yield f"{reader.path}: its SHA-256 is not the one in the manifest"
        yield from _shard_findings(reader, attributes)


def _shard_findings(reader: ShardReader, attributes: int) -> Iterator[Finding]:
    for position in range(reader.shard.records):
        try:
            record = reader.read(position, attributes)
            if hashlib.sha256(record.image).hexdigest() != record.sha256:
                raise CorruptRecordError(
                    f"{reader.path}, record {position} ({record.key}): the image is not the one prepared"
                )
            check_complete(record.image, f"{reader.path}, record {position} ({record.key})")
            yield record.labels
        except DataError as error:
            yield str(error)
