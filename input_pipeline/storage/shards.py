"""Writing shards: all cores at work, each shard whole or absent, finished ones kept when others are not."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import json
import math
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int64
from tqdm import tqdm

from input_pipeline import progress
from input_pipeline.cores import available_cores
from input_pipeline.storage.records import Record, encode_record

# A shard holds this many examples, so that several cores have something to do on a small data set, too. A
# split has so many shards at most, and then larger ones: a reader keeps all of them open.
EXAMPLES_PER_SHARD, MAX_SHARDS = 512, 256


@dataclasses.dataclass(frozen=True)
class Shard:
    """One ArrayRecord file: its name, how many records and bytes it holds, and its SHA-256.

    Raises:
      ValueError: a name that leads elsewhere, or no counts, as a wrong manifest may have them.
    """

    file: str
    records: int
    bytes: int
    sha256: str

    def __post_init__(self) -> None:
        texts = isinstance(self.file, str) and isinstance(self.sha256, str)
        counts = all(type(count) is int and count >= 0 for count in (self.records, self.bytes))
        if not (texts and counts and Path(self.file).name == self.file):
            raise ValueError(f"no shard: {self}")


@dataclasses.dataclass(frozen=True)
class PlannedShard:
    """A shard to be written: its file's name and the rows that go into it."""

    file: str
    rows: Int64[np.ndarray, "n"]


def plan_shards(
    name: str, splits: Mapping[str, Int64[np.ndarray, "n"]]
) -> dict[str, tuple[PlannedShard, ...]]:
    """Cuts each split into shards of nearly equal size, named as TensorFlow Datasets names them."""
    return {split: tuple(_cut(f"{name}-{split}.array_record", rows)) for split, rows in splits.items()}


def _cut(stem: str, rows: Int64[np.ndarray, "n"]) -> Iterator[PlannedShard]:
    count = min(MAX_SHARDS, max(1, math.ceil(len(rows) / EXAMPLES_PER_SHARD)))
    for number, part in enumerate(np.array_split(rows, count)):
        yield PlannedShard(f"{stem}-{number:05d}-of-{count:05d}", part)


def write_shards(
    folder: Path,
    planned: Sequence[PlannedShard],
    make: Callable[[int], Record],
    *,
    threads: int | None = None,
) -> dict[str, Shard]:
    """Writes the shards that are not there yet, with a progress bar.

    Args:
      folder: where they go. A shard that an earlier call finished there is left as it is.
      planned: what to write.
      make: row -> its record; called from several threads.
      threads: shards written at a time; None for one for each core.

    Returns:
      {file name: what was written}.

    Raises:
      Exception: the first that `make` or the disk raised; the shards at work are abandoned, others stay.
    """
    done = finished_shards(folder, planned)
    rest = [shard for shard in planned if shard.file not in done]
    total, before = sum(len(p.rows) for p in planned), sum(shard.records for shard in done.values())
    stop = threading.Event()
    bar = progress.over_images("Preparing", total, initial=before)
    with bar, concurrent.futures.ThreadPoolExecutor(threads or available_cores()) as pool:
        work = [pool.submit(_write, folder, shard, make, bar, stop) for shard in rest]
        try:
            for finished in concurrent.futures.as_completed(work):
                if isinstance(finished.exception(), _Stopped):
                    continue  # because of another's failure, which is raised here when its turn comes
                shard = finished.result()
                done[shard.file] = shard
        except BaseException:
            stop.set()  # Ctrl-C: nobody failed; they end at their next image
            pool.shutdown(cancel_futures=True)
            raise
    return done


class _Stopped(Exception):
    """Another shard failed."""


def _write(
    folder: Path, planned: PlannedShard, make: Callable[[int], Record], bar: tqdm, stop: threading.Event
) -> Shard:
    """Writes a shard; where that fails, the others end at their next image."""
    unfinished = folder / f"{planned.file}.tmp"
    try:
        _write_records(unfinished, _records(planned.rows, make, bar, stop))
        os.replace(unfinished, folder / planned.file)
        shard = measure(folder / planned.file, len(planned.rows))
        _note(folder, planned.file).write_text(json.dumps(dataclasses.asdict(shard)), "utf-8")
    except BaseException:
        stop.set()
        raise
    return shard


def _records(
    rows: Iterable[int], make: Callable[[int], Record], bar: tqdm, stop: threading.Event
) -> Iterator[Record]:
    for row in rows:
        if stop.is_set():
            raise _Stopped
        yield make(int(row))
        bar.update()


def _write_records(path: Path, records: Iterable[Record]) -> None:
    from array_record.python import array_record_module  # slow; reading a config needs none of it

    # One record in a group: a reader asks for single examples, in any order. Images are compressed already.
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1,uncompressed")
    count = 0
    try:
        for record in records:
            writer.write(encode_record(record))
            count += 1
    finally:
        with _written(path):
            writer.close()
    # What it wrote has to be there: not every failure is said.
    with _written(path):
        found = array_record_module.ArrayRecordReader(str(path)).num_records()
    if found != count:
        raise OSError(f"{path}: {found} of {count} records could be written; is the disk full?")


@contextlib.contextmanager
def _written(path: Path) -> Iterator[None]:
    """Turns what the C++ writer and reader raise, whose types are their own, into an OSError."""
    try:
        yield
    except Exception as error:
        raise OSError(f"{path}: could not be written in full; is the disk full?") from error


def finished_shards(folder: Path, planned: Sequence[PlannedShard]) -> dict[str, Shard]:
    """{file name: shard} of those that an earlier call wrote to the end."""
    found = ((planned, _read_note(folder, planned.file)) for planned in planned)
    return {p.file: shard for p, shard in found if shard is not None and shard.records == len(p.rows)}


def _read_note(folder: Path, file: str) -> Shard | None:
    try:
        shard = Shard(**json.loads(_note(folder, file).read_text("utf-8")))
        return shard if (folder / file).stat().st_size == shard.bytes else None
    except (OSError, ValueError, TypeError):
        return None  # not there, or not finished: it is written again


def keep_finished(folder: Path) -> int:
    """Leaves of an interrupted preparation the shards that are whole; nothing where there are none.

    Returns:
      How many there are.
    """
    for path in folder.glob("*.tmp"):
        path.unlink(missing_ok=True)
    finished = sum(1 for path in folder.glob("*.array_record-*.done.json"))
    if not finished:
        shutil.rmtree(folder, ignore_errors=True)
    return finished


def remove_notes(folder: Path) -> None:
    """Removes what only an interrupted preparation needs."""
    for path in [*folder.glob("*.done.json"), *folder.glob("*.tmp")]:
        path.unlink()


def measure(path: Path, records: int) -> Shard:
    """What a file is now."""
    return Shard(path.name, records, path.stat().st_size, file_sha256(path))


def _note(folder: Path, file: str) -> Path:
    return folder / f"{file}.done.json"


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
