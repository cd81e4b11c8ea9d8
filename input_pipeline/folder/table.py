"""The table of a user's own images: a CSV with a row for each, read in blocks, checked, kept small.

UTF-8 with or without a byte order mark, any line ends, quoted cells with delimiters and line breaks, blank
lines and blanks around a cell are all fine. A row stands in the file where an error says it does. Which
columns there are: `attributes`.

What is kept of a million rows with 40 attributes: 40 MB of labels, 1 MB of splits, the characters of the
image names and of the captions with 8 MB each for where they end, and while a folder is opened 8 MB of
checksums.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32, Int64, UInt8

from input_pipeline.errors import DataError
from input_pipeline.folder.attributes import Columns, Groups, is_group_row, read_group_row, read_header
from input_pipeline.folder.rows import Block, Wrong, WrongValue, advice, convert
from input_pipeline.storage.compact import CompactStrings, OptionalStrings
from input_pipeline.storage.official import Classes

_BLOCK = 10_000
_DELIMITERS = MappingProxyType({",": "commas", ";": "semicolons", "\t": "tabs"})


class Line(NamedTuple):
    """A row of cells, and the line of the file where it begins, from 1."""

    number: int
    cells: list[str]


class Head(NamedTuple):
    """What stands above the images.

    Attributes:
      delimiter: between two cells.
      columns: of the header.
      groups: of the row of groups, where there is one.
      line: where the header stands.
      rows: how many rows that are not blank stand above the images: 1 or 2.
    """

    delimiter: str
    columns: Columns
    groups: Groups | None
    line: int
    rows: int


class Table(NamedTuple):
    """N rows.

    Attributes:
      keys: N image names, relative, in normal form.
      codes: uint8 [N, A]: 0 absent, 1 present, 2 unknown.
      splits: uint8 [N], positions in SPLITS.
      checksums: int64 [N], Python's own hash of each key: equal for equal ones, within this process.
      classes: where the table has a column for them.
      captions: None for an empty one; None without any.
    """

    keys: CompactStrings
    codes: UInt8[np.ndarray, "N A"]
    splits: UInt8[np.ndarray, "N"]
    checksums: Int64[np.ndarray, "N"]
    classes: Classes | None
    captions: Sequence[str | None] | None


def read_head(path: Path) -> Head:
    """Reads the delimiter, the header and the row of groups.

    The delimiter is the one, of comma, semicolon and tab, by which the first line that is not blank has a
    cell `path` among others; without one, the most frequent there. No other line is looked at.

    Raises:
      DataError: see `attributes.read_header` and `read_group_row`.
    """
    delimiter = _find_delimiter(path)
    lines = list(islice(_lines(path, delimiter), 2))
    if not lines:
        raise DataError(
            f"{path}, line 1: expected a header such as path,split,red,round, found nothing; write one"
        )
    columns = read_header(f"{path}, line {lines[0].number}", lines[0].cells)
    groups = None
    if len(lines) == 2 and is_group_row(columns, lines[1].cells):
        groups = read_group_row(f"{path}, line {lines[1].number}", columns, lines[1].cells)
    return Head(delimiter, columns, groups, lines[0].number, 1 if groups is None else 2)


def _find_delimiter(path: Path) -> str:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            line = next(filter(str.strip, file), "")
        cells = {d: [c.strip() for c in next(csv.reader([line], delimiter=d))] for d in _DELIMITERS}
    except (UnicodeDecodeError, OSError, csv.Error) as error:
        raise _unreadable(path, 1, error) from error
    fitting = [d for d, found in cells.items() if "path" in found and len(found) > 1]
    if len(fitting) > 1:
        names = " and by ".join(_DELIMITERS[d] for d in fitting)
        raise DataError(f"{path}, line 1 or below: a column 'path' both by {names}; quote the columns' names")
    return fitting[0] if fitting else max(_DELIMITERS, key=lambda d: len(cells[d]))


def read_table(path: Path, head: Head) -> Table:
    """Reads all rows.

    Without a column `split` each image draws its own: train, validation or test with probabilities 0.8, 0.1
    and 0.1, always the same for the same path.

    Raises:
      DataError: names the line, what was expected and what was found: a wrong value, number of cells, split
        or path, a path that stands twice, a class left out, no rows.
    """
    keys, captions = CompactStrings(), CompactStrings()
    codes, splits, checksums, of = bytearray(), bytearray(), bytearray(), bytearray()
    numbers: dict[str, int] = {}
    for block in _blocks(path, head):
        keys.extend(block.keys)
        captions.extend(block.captions)
        codes += block.codes.tobytes()
        splits += block.splits.tobytes()
        checksums += np.fromiter(map(hash, block.keys), np.int64, len(block.keys)).tobytes()
        of += np.array([numbers.setdefault(name, len(numbers)) for name in block.classes], np.int32).tobytes()
    if not len(keys):
        raise DataError(f"{path}, line {head.line}: no image has a row below the header; add one for each")
    table = Table(
        keys,
        np.frombuffer(codes, np.uint8).reshape(len(keys), -1),
        np.frombuffer(splits, np.uint8),
        np.frombuffer(checksums, np.int64),
        _classes(numbers, np.frombuffer(of, np.int32)) if numbers else None,
        OptionalStrings(captions) if captions.has_text else None,
    )
    _check_unique(path, head, table)
    return table


def line_of(path: Path, head: Head, row: int) -> int:
    """Where the table has its row number `row`, from 0. Reads the file up to there."""
    return next(islice(_lines(path, head.delimiter), head.rows + row, None)).number


def _blocks(path: Path, head: Head) -> Iterator[Block]:
    rows = islice(_lines(path, head.delimiter), head.rows, None)
    while lines := list(islice(rows, _BLOCK)):
        try:
            yield convert([cells for _, cells in lines], head.columns)
        except Wrong:
            raise _first_wrong(path, lines, head.columns) from None


def _lines(path: Path, delimiter: str) -> Iterator[Line]:
    """The rows that are not blank."""
    number = 1
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            for cells in reader:
                if any(map(str.strip, cells)):
                    yield Line(number, cells)
                number = reader.line_num + 1
    except (UnicodeDecodeError, OSError, csv.Error) as error:
        raise _unreadable(path, number, error) from error


def _unreadable(path: Path, number: int, error: Exception) -> DataError:
    if isinstance(error, UnicodeDecodeError):
        return DataError(
            f"{path}, line {_undecodable_line(path)}: expected UTF-8 text; save the table as 'CSV UTF-8'"
        )
    if isinstance(error, csv.Error):
        return DataError(
            f"{path}, line {number}: the row that begins here is no CSV ({error}); look for a quotation mark "
            'that is not closed, and write one inside a quoted cell as ""'
        )
    return DataError(f"{path}: cannot be read: {error}")


def _undecodable_line(path: Path) -> int:
    number = 1
    with path.open("rb") as file:
        for line in file:
            try:
                line.decode()
            except UnicodeDecodeError as error:
                # A bare carriage return ends a line too.
                return number + max(0, len((line[: error.start] + b".").splitlines()) - 1)
            number += len(line.splitlines())
    return number


def _first_wrong(path: Path, lines: list[Line], columns: Columns) -> DataError:
    """What is wrong with the first row that has something wrong, among some of which one has."""
    for number, cells in lines:
        try:
            convert([cells], columns)
        except WrongValue as wrong:
            # What else the column holds tells what its writer meant.
            column = {row[wrong.position].strip() for _, row in lines if len(row) == len(cells)}
            return DataError(f"{path}, line {number}: {wrong}; {advice(column)}")
        except Wrong as wrong:
            return DataError(f"{path}, line {number}: {wrong}")
    raise AssertionError("some rows cannot be wrong where each of them is right")


def _check_unique(path: Path, head: Head, table: Table) -> None:
    order = np.argsort(table.checksums, kind="stable")
    again = np.flatnonzero(np.diff(table.checksums[order]) == 0)
    pairs = ((int(order[i]), int(order[i + 1])) for i in again[np.argsort(order[again + 1])])
    for first, second in pairs:
        if table.keys[first] == table.keys[second]:
            line, before = line_of(path, head, second), line_of(path, head, first)
            raise DataError(
                f"{path}, line {line}: {table.keys[first]!r} has a row on line {before} already; keep one"
            )


def _classes(numbers: dict[str, int], of: Int32[np.ndarray, "N"]) -> Classes:
    """Renumbers classes from the order in which they were met to that of their names."""
    names = tuple(sorted(numbers))
    position = np.empty(len(names), np.int32)
    position[[numbers[name] for name in names]] = np.arange(len(names), dtype=np.int32)
    return Classes(names, position[of])
