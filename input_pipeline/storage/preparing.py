"""Official files become prepared data: by all cores, whole or not at all, and resumed after a kill."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import functools
import hashlib
import io
import itertools
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from jaxtyping import UInt8

from input_pipeline import text
from input_pipeline.errors import CorruptImageError, DataError
from input_pipeline.images import Box, check_complete
from input_pipeline.room import cannot_write, check_room
from input_pipeline.storage import prepared
from input_pipeline.storage.index import INDEX, WORDS
from input_pipeline.storage.official import Official
from input_pipeline.storage.prepared import Manifest
from input_pipeline.storage.records import Record, encode_record
from input_pipeline.storage.reencode import Storage
from input_pipeline.storage.shards import (
    PlannedShard,
    Shard,
    finished_shards,
    keep_finished,
    measure,
    plan_shards,
    remove_notes,
    write_shards,
)

# From so many examples the room that all of them take is estimated, and this much is added to it.
SAMPLE, SPARE = 64, 1.1

# What a file system without locks answers.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)

OpenOfficial = Callable[[Path], Official]


def prepare(
    open_official: OpenOfficial,
    source_dir: Path,
    output_dir: Path,
    *,
    shortest: int | None = None,
    threads: int | None = None,
) -> Path:
    """Writes official files as a TFDS data set in ArrayRecord, with a manifest of checksums.

    The folder appears whole or not at all. Every image is decoded once on the way. Killed, or stopped by a
    disk, and called again with the same arguments, it goes on with the shards that are not finished.

    Args:
      open_official: reads the data set's official files.
      source_dir: where they are.
      output_dir: must not exist yet, or be empty, and then neither where a disk is mounted nor the current
        folder: it is put in place in one move.
      shortest: store images with a shorter side of at most this many pixels; None keeps every pixel.
      threads: shards written at a time; None for one for each core.

    Returns:
      `output_dir`.

    Raises:
      DataError: bad input, no room on the disk, or a folder that cannot be written.
    """
    _check_free(output_dir)
    print(f"Reading what {source_dir} holds", file=sys.stderr)
    official, target = open_official(source_dir), Path(os.path.realpath(output_dir))
    with _locked(target):
        _check_free(output_dir)  # another process may have been first
        _prepare(official, target, Storage(shortest, official.shared_images), threads)
    return output_dir


def cached(open_official: OpenOfficial, source_dir: Path, entry: Path) -> Path:
    """A cache's entry for official files, prepared now if it is not there.

    Once, also where several processes ask at the same time.
    """
    if not prepared.is_prepared(entry):
        with _locked(entry):
            if not prepared.is_prepared(entry):  # another process may have been first
                print(f"Preparing {source_dir} once, into {entry}", file=sys.stderr)
                official = open_official(source_dir)
                _prepare(official, entry, Storage(crops=official.shared_images), None)
    return entry


def cache_root(chosen: str | None) -> Path:
    """Where data sets are prepared into: `chosen`, $WSCA_CACHE, or ~/.cache/wsca_jax, in that order."""
    chosen = chosen or os.environ.get("WSCA_CACHE")
    return Path(chosen) if chosen else Path.home() / ".cache" / "wsca_jax"


def _check_free(output_dir: Path) -> None:
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise DataError(f"{output_dir}: already there and not an empty folder; choose a new one")
    if output_dir.exists() and (os.path.ismount(output_dir) or output_dir.samefile(os.curdir)):
        raise DataError(
            f"{output_dir}: expected a folder that can be replaced, found where a disk is mounted or the "
            f"current one; choose a new one in it, such as {output_dir / 'prepared'}"
        )


@contextlib.contextmanager
def _locked(output_dir: Path) -> Iterator[None]:
    """Waits until no other process writes the folder, here or on a host that shares the file system.

    Where the file system has no locks, only until none of this user on this machine does.
    """
    path = output_dir.with_name(f".{output_dir.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = _take(path)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise _unwritable(output_dir, error) from error
        name = hashlib.sha256(str(output_dir.absolute()).encode()).hexdigest()[:16]
        path = Path(tempfile.gettempdir()) / f"wsca-{os.getuid()}-{name}.lock"
        file = _take(path)
    with file:
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _take(path: Path) -> IO[str]:
    """The file at `path`, locked. Who held it before may have removed it on leaving: then another is made."""
    while True:
        file = path.open("w")
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(path.stat(), os.fstat(file.fileno())):
                    return file
        except BaseException:
            file.close()
            raise
        file.close()


def _unwritable(output_dir: Path, error: OSError, kept: int = 0) -> DataError:
    goes_on = f", or try again: {kept:,} finished shards are kept" if kept else ""
    return cannot_write(
        error,
        f"{output_dir}: cannot be written: {error}; choose another folder (WSCA_CACHE sets the cache's)"
        f"{goes_on}",
    )


def _prepare(official: Official, output_dir: Path, storage: Storage, threads: int | None) -> None:
    work = output_dir.with_name(f".{output_dir.name}.partial")
    try:
        _start_or_go_on(work, official, storage)
        _build(official, storage, work, threads)
        os.replace(work, output_dir)
    except OSError as error:  # nothing is wrong with the official files: what is finished will serve
        kept = keep_finished(work)
        raise _unwritable(output_dir, error, kept) from error
    except Exception:  # not an interruption, from which it can go on
        shutil.rmtree(work, ignore_errors=True)
        raise


def _start_or_go_on(work: Path, official: Official, storage: Storage) -> None:
    """Keeps what an interrupted preparation of the same files left, and nothing else."""
    purpose = json.dumps([official.fingerprint, official.schema.fingerprint, dataclasses.asdict(storage)])
    note = work / "purpose.done.json"
    if work.exists() and not (note.is_file() and note.read_text("utf-8") == purpose):
        shutil.rmtree(work)
    work.mkdir(parents=True, exist_ok=True)
    note.write_text(purpose, "utf-8")


def _build(official: Official, storage: Storage, work: Path, threads: int | None) -> None:
    planned = plan_shards(official.data_set, official.splits)
    make = functools.partial(_make_record, official, storage)
    shards = [*itertools.chain.from_iterable(planned.values())]
    _check_room(work, shards, make)
    written = write_shards(work, shards, make, threads=threads)
    splits = {split: tuple(written[p.file] for p in parts) for split, parts in planned.items()}
    _write_index(work / INDEX, official)
    _write_tfds_metadata(work, official, splits)
    index, only = measure(work / INDEX, len(official.keys)), official.class_labels_only
    prepared.write_manifest(
        work, Manifest(official.data_set, official.schema, splits, index, class_labels_only=only)
    )
    remove_notes(work)


def _check_room(work: Path, shards: Sequence[PlannedShard], make: Callable[[int], Record]) -> None:
    """Raises DataError where the disk cannot hold what is still to be written, before anything is."""
    finished = finished_shards(work, shards)
    rows = np.concatenate([np.zeros(0, np.int64), *(s.rows for s in shards if s.file not in finished)])
    if not len(rows):
        return
    sample = rows[np.linspace(0, len(rows) - 1, min(SAMPLE, len(rows))).astype(int)]
    each = sum(len(encode_record(make(int(row)))) for row in sample) / len(sample)
    check_room(
        work,
        int(SPARE * each * len(rows)),
        f"{work.parent}: {len(rows):,} images",
        "make room, choose another disk, or store smaller images",
    )


def _make_record(official: Official, storage: Storage, row: int) -> Record:
    """Reads an image, checks that it decodes in full, and makes what is stored of it."""
    key, image = official.keys[row], official.read_image(row)
    try:
        check_complete(image, f"{official.origin}: image {key}")
    except CorruptImageError as error:
        raise CorruptImageError(
            f"{error}; get the image again, or take it out of the list (`wsca verify` names them all)"
        ) from error
    box = None if official.boxes is None else Box(*map(int, official.boxes[row]))
    stored, box = storage.apply(image, box)
    # Of the features that are declared no record may lack one: an empty caption is none.
    caption = None if official.captions is None else official.captions[row] or ""
    return Record(stored, official.codes[row], key, box, caption)


def _write_index(path: Path, official: Official) -> None:
    """What is asked of all examples at once, in the order of the shards."""
    order = np.concatenate([*official.splits.values()])
    arrays: dict[str, Any] = {"labels": official.codes[order]}
    if official.classes is not None:
        arrays["class_of"] = official.classes.of[order]
        if official.classes.rates is not None:
            arrays["class_rates"] = official.classes.rates
    if official.captions is not None:
        arrays |= _caption_words(official, official.captions)
    place = np.full(len(official.keys), -1, np.int64)
    place[order] = np.arange(len(order))
    for splitting, splits in official.other_splits.items():
        arrays |= {f"{splitting}/{split}": place[rows] for split, rows in splits.items()}
    np.savez(path, allow_pickle=False, **arrays)


def _caption_words(official: Official, captions: Sequence[str | None]) -> dict[str, UInt8[np.ndarray, "n"]]:
    """The words of the training captions, commonest first, parted by spaces: for each way to split."""
    splittings = {
        "": official.splits,
        **{f"{name}/": splits for name, splits in official.other_splits.items()},
    }
    texts = {
        name: " ".join(text.caption_words(captions[row] or "" for row in splits.get("train", ())))
        for name, splits in splittings.items()
    }
    return {f"{name}{WORDS}": np.frombuffer(words.encode(), np.uint8) for name, words in texts.items()}


def _write_tfds_metadata(work: Path, official: Official, splits: Mapping[str, tuple[Shard, ...]]) -> None:
    """Makes the folder one that `tfds.builder_from_directory` opens."""
    import tensorflow_datasets as tfds  # slow to import, and needed nowhere else

    attributes = official.schema.num_attributes
    features = {
        "image": tfds.features.Image(shape=(None, None, 3)),
        "labels": tfds.features.Tensor(
            shape=(attributes,), dtype=np.uint8, encoding=tfds.features.Encoding.BYTES
        ),
        "key": tfds.features.Text(),
        "sha256": tfds.features.Text(),
    }
    if official.boxes is not None:
        features["box"] = tfds.features.Tensor(shape=(4,), dtype=np.int64)
    if official.captions is not None:
        features["caption"] = tfds.features.Text()
    infos = [
        tfds.core.SplitInfo(
            name=split,
            shard_lengths=[shard.records for shard in shards],
            num_bytes=sum(shard.bytes for shard in shards),
            filename_template=tfds.core.ShardedFileTemplate(
                dataset_name=official.data_set, data_dir=work, split=split, filetype_suffix="array_record"
            ),
        )
        for split, shards in splits.items()
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        tfds.folder_dataset.write_metadata(
            data_dir=work, features=features, split_infos=infos, check_data=False, version="2.0.0"
        )
