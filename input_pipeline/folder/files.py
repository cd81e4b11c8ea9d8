"""A user's own images: a folder D with the images, anywhere below it, and one CSV.

Three commands, of which the first is the user's own way to put files there:

  mkdir D; cp -r my_images D/; cp my_table.csv D/attributes.csv
  wsca verify --data folder --data_dir D
  wsca train --config configs/folder.py --data_dir D --workdir W

The table, `attributes.csv`, `labels.csv` or the only CSV in D, has a header and a row for each image:

  path,split,blond,bald,round,caption
  my_images/001.jpg,train,1,0,,a person at the sea
  my_images/002.png,test,,0,1,

  path      relative to D, with forward slashes; .jpg, .jpeg or .png. Links that leave D are refused.
  split     train, validation (also val, valid) or test. Without the column an image's path decides, by chance
            but always the same: 80, 10 and 10 %.
  class     optional: to which class the image belongs
  caption   optional: a sentence about the image
  others    an attribute each: 1 present, 0 absent, nothing for unknown

Commas, or semicolons or tabs where the header has them. Groups and phrases: see `attributes`.

Opening reads the table once (some 150,000 rows of 40 attributes a second) and walks once through D, with one
look at each image that has a row, for its size and time. What is kept in memory: see `table`.
"""

from __future__ import annotations

import difflib
import hashlib
import logging
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int64, UInt8

from input_pipeline.errors import DataError
from input_pipeline.folder.attributes import DESCRIPTION_FILE, make_schema
from input_pipeline.folder.rows import SPLITS
from input_pipeline.folder.table import Head, Table, line_of, read_head, read_table
from input_pipeline.labels import UNKNOWN
from input_pipeline.schema import AttributeSchema
from input_pipeline.splits import present
from input_pipeline.storage.official import Official
from input_pipeline.untrusted.archives import open_archive

TABLE_FILES = ("attributes.csv", "labels.csv")

_BATCH = 10_000
_log = logging.getLogger(__name__)


def open_official(folder: Path) -> Official:
    """Opens a folder of images and its table. Warns of attributes that no training image has a label for.

    Raises:
      DataError: names the file, the line, what was expected and found: see `table`, `attributes`;
        an image that is not there, or only through a link that leaves the folder.
    """
    path = find_table(folder)
    head = read_head(path)
    schema = make_schema(head.columns, head.groups, folder / DESCRIPTION_FILE)
    table = read_table(path, head)
    stamp = _check_images(folder, path, head, table)
    splits = _rows_by_split(table.splits)
    _warn_of_unlabelled(path, schema, table.codes, splits.get("train"))
    archive, keys = open_archive(folder), table.keys
    return Official(
        data_set="folder",
        origin=folder,
        schema=schema,
        keys=keys,
        codes=table.codes,
        splits=splits,
        read_image=lambda row: archive.read(keys[row]),
        fingerprint=_fingerprint(path, folder / DESCRIPTION_FILE, stamp),
        classes=table.classes,
        captions=table.captions,
    )


def fingerprint(folder: Path) -> str:
    """Sixteen hex digits that change with the table, the schema or an image's name, size or time.

    As slow, and as particular, as `open_official`.
    """
    return open_official(folder).fingerprint


def read_schema(folder: Path) -> AttributeSchema:
    """What the labels mean. Reads the table's header, and no image. Raises DataError as `open_official`."""
    path = find_table(folder)
    head = read_head(path)
    return make_schema(head.columns, head.groups, folder / DESCRIPTION_FILE)


def find_table(folder: Path) -> Path:
    """The folder's one CSV. Raises DataError where there is none, or no telling which."""
    if not folder.is_dir():
        raise DataError(f"{folder}: expected a folder with images and a CSV, found none; check --data_dir")
    names = sorted(
        p.name for p in folder.iterdir() if p.suffix.lower() == ".csv" and not p.name.startswith(".")
    )
    if not names:
        raise DataError(
            f"{folder}: expected a table, {TABLE_FILES[0]}, found no CSV; write one with a header such as "
            "path,split,red,round and a row for each image"
        )
    chosen = [name for name in names if name in TABLE_FILES] or names
    if len(chosen) > 1:
        raise DataError(
            f"{folder}: expected one table, found {', '.join(chosen)}; call the right one {TABLE_FILES[0]}, "
            "and the others something else"
        )
    if (folder / "schema.yml").exists():
        raise DataError(f"{folder / 'schema.yml'}: call it {DESCRIPTION_FILE}; only that is read")
    return folder / chosen[0]


def _rows_by_split(splits: UInt8[np.ndarray, "N"]) -> dict[str, Int64[np.ndarray, "n"]]:
    return present({name: np.flatnonzero(splits == number) for number, name in enumerate(SPLITS)})


def _warn_of_unlabelled(
    path: Path, schema: AttributeSchema, codes: UInt8[np.ndarray, "N A"], rows: Int64[np.ndarray, "n"] | None
) -> None:
    if rows is None:
        return
    starts = range(0, len(rows), _BATCH)  # a copy of the codes of some rows at a time
    known = np.any([(codes[rows[s : s + _BATCH]] != UNKNOWN).any(axis=0) for s in starts], axis=0)
    names = [name for name, any_known in zip(schema.attributes, known, strict=True) if not any_known]
    if names:
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        _log.warning(
            "%s: no training image has a label for %s%s; nothing can be learnt of it",
            path,
            ", ".join(map(repr, names[:5])),
            more,
        )


class _Survey(NamedTuple):
    """What a walk through the folder found.

    Attributes:
      found: bool [N], which images are there.
      stamp: a sum over those of a checksum of name, size and time of change, whatever their order.
    """

    found: Bool[np.ndarray, "N"]
    stamp: int


def _check_images(folder: Path, path: Path, head: Head, table: Table) -> int:
    """The survey's stamp, if every image is there."""
    survey = _survey(folder, table.checksums)
    stamp, missing = survey.stamp, []
    for row in map(int, np.flatnonzero(~survey.found)):  # there only through a link, if at all
        key = table.keys[row]
        target = os.path.realpath(folder / key)
        if not os.path.isfile(target):
            missing.append(row)
        elif not Path(target).is_relative_to(os.path.realpath(folder)):
            raise DataError(
                f"{path}, line {line_of(path, head, row)}: {key!r} leads out of {folder} by a link, to "
                f"{target}; copy the image, or choose as --data_dir a folder that holds both"
            )
        else:
            stamp += _stamp(key, os.stat(target))
    if missing:
        key = table.keys[missing[0]]
        raise DataError(
            f"{path}, line {line_of(path, head, missing[0])}: there is no image {folder / key}"
            f"{_nearest_file(folder, key)} ({len(missing)} of {len(table.keys)} images are missing)"
        )
    return stamp


def _survey(folder: Path, checksums: Int64[np.ndarray, "N"]) -> _Survey:
    """One walk, without a step through a link and with a look at listed files only."""
    order = np.argsort(checksums)
    ascending = checksums[order]
    found, stamp = np.zeros(len(checksums), np.bool_), 0
    try:
        for files in _batches(_walk(folder)):
            theirs = np.fromiter((hash(name) for name, _ in files), np.int64, len(files))
            at = np.minimum(np.searchsorted(ascending, theirs), len(ascending) - 1)
            listed = ascending[at] == theirs
            found[order[at[listed]]] = True
            stamp += sum(
                _stamp(files[i][0], files[i][1].stat(follow_symlinks=False)) for i in np.flatnonzero(listed)
            )
    except OSError as error:
        raise DataError(f"{error.filename or folder}: cannot be read: {error.strerror}") from error
    return _Survey(found, stamp)


File = tuple[str, "os.DirEntry[str]"]


def _walk(folder: Path) -> Iterator[File]:
    """(path relative to the folder, entry) of every file below it."""
    waiting = [""]
    while waiting:
        prefix = waiting.pop()
        with os.scandir(folder / prefix) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(f"{prefix}{entry.name}/")
                elif entry.is_file(follow_symlinks=False):
                    yield prefix + entry.name, entry


def _batches(files: Iterator[File]) -> Iterator[list[File]]:
    while batch := list(islice(files, _BATCH)):
        yield batch


def _stamp(name: str, stat: os.stat_result) -> int:
    text = f"{name}\n{stat.st_size}\n{stat.st_mtime_ns}"
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16).digest())


def _nearest_file(folder: Path, key: str) -> str:
    """Which file comes nearest to an image that is not there, for a message."""
    path = folder / key
    try:
        names = [entry.name for entry in islice(os.scandir(path.parent), _BATCH)]
    except OSError:
        names = []
    same = [name for name in names if name.casefold() == path.name.casefold()]
    near = same or difflib.get_close_matches(path.name, names[:2_000], n=1, cutoff=0.8)
    if near:
        return f"; did you mean {near[0]!r}?"
    elsewhere = (name for name, _ in islice(_walk(folder), 10 * _BATCH) if name.endswith(f"/{path.name}"))
    found = next(elsewhere, None)
    return f"; is it {found!r}?" if found else "; put it there or remove its row"


def _fingerprint(table: Path, description: Path, stamp: int) -> str:
    """Sixteen hex digits that change with the table, the schema or an image's name, size or time."""
    digest = hashlib.sha256()
    for path in (table, description):
        if path.exists():
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    digest.update(f"{stamp % (1 << 128):032x}".encode())
    return digest.hexdigest()[:16]
