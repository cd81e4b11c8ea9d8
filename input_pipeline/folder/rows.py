"""Rows of a user's table as arrays. Many at once, as long as nothing is wrong; then one, to say what.

A label costs no Python object that outlives its block of rows.
"""

from __future__ import annotations

from itertools import chain
from operator import itemgetter
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from input_pipeline.folder.attributes import SUFFIXES, Columns, nearest
from input_pipeline.labels import ABSENT, PRESENT, UNKNOWN
from input_pipeline.weak_labels import uniforms

SPLITS = ("train", "validation", "test")

_SPLIT_NAMES = MappingProxyType({"train": 0, "validation": 1, "val": 1, "valid": 1, "test": 2})
_NEWLINE = ord("\n")
_WRONG_CODE = 255
# By a cell's last character; before an empty cell stands the end of the one before it.
_CODES = np.full(256, _WRONG_CODE, np.uint8)
_CODES[[ord("0"), ord("1"), _NEWLINE]] = ABSENT, PRESENT, UNKNOWN
# Where Python ends a line, and what else would tear the lines that name an image.
_BREAKS = "\t\n\v\f\r\0\x1c\x1d\x1e\x85\u2028\u2029"
# What the paths of a block, each between two line ends, hold where one may be wrong or not in normal form.
_DOUBTFUL = ("\n\n", "\n/", "\n.", "//", "/.", "\\", ":", *_BREAKS.replace("\n", ""))
# How other tables write what is 1, 0 and nothing here.
_MEANT = MappingProxyType(
    dict.fromkeys(("true", "t", "yes", "y", "+1", "1.0"), "1")
    | dict.fromkeys(("false", "f", "no", "n", "-1", "0.0"), "0")
    | dict.fromkeys(("nan", "na", "n/a", "none", "null", "?", "unknown"), "nothing")
)


class Block(NamedTuple):
    """Some rows of a table, by column.

    Attributes:
      keys: n paths in normal form.
      codes: uint8 [n, A]: ABSENT, PRESENT or UNKNOWN.
      splits: uint8 [n], positions in SPLITS.
      classes, captions: n strings, or none where the table has no such column.
    """

    keys: list[str]
    codes: UInt8[np.ndarray, "n A"]
    splits: UInt8[np.ndarray, "n"]
    classes: list[str]
    captions: list[str]


class Wrong(ValueError):
    """What is wrong with a row. About a block it says only that something is wrong with one of its rows."""


class WrongValue(Wrong):
    """A value that is no label, in the column at `position`."""

    def __init__(self, column: str, found: str, position: int) -> None:
        super().__init__(f"column {column!r}: expected 1, 0 or nothing (unknown), found {found[:60]!r}")
        self.position = position


def convert(rows: list[list[str]], columns: Columns) -> Block:
    """Raises Wrong, whose message is about the first row and right where there is only one."""
    if set(map(len, rows)) != {len(columns.names)}:
        raise Wrong(
            f"expected {len(columns.names)} cells as in the header, found {len(rows[0])}; "
            "a cell that holds the delimiter stands in quotation marks"
        )
    keys = _normal_keys([row[columns.path].strip() for row in rows])
    splits = _read_splits(rows, columns, keys)
    codes = _read_codes(rows, columns)
    classes = _stripped(rows, columns.class_name)
    if not all(classes):
        raise Wrong("the class is empty; name one, or remove the column 'class'")
    return Block(keys, codes, splits, classes, _stripped(rows, columns.caption))


def _stripped(rows: list[list[str]], position: int | None) -> list[str]:
    return [] if position is None else [row[position].strip() for row in rows]


def _normal_keys(keys: list[str]) -> list[str]:
    """Normal form of relative paths. Most are in it already: looking at all of them at once is quicker."""
    together = "\n" + "\n".join(keys) + "\n"
    doubtful = together.count("\n") != len(keys) + 1 or any(sign in together for sign in _DOUBTFUL)
    if doubtful or not all(key.lower().endswith(SUFFIXES) for key in keys):
        return [_normal_key(key) for key in keys]
    return keys


def _normal_key(key: str) -> str:
    parts = key.split("/")
    for complaint, wrong in (
        ("is empty; write the image's name", not key),
        ("is absolute; write it relative to the table's folder", not parts[0] or key[1:2] == ":"),
        ("has backslashes; write forward slashes", "\\" in key),
        ("leads out of the folder; put the image below it", ".." in parts),
        ("has a tab, a line break or a zero byte; rename the image", bool(set(key) & set(_BREAKS))),
        ("is no .jpg, .jpeg or .png; convert the image", not key.lower().endswith(SUFFIXES)),
    ):
        if wrong:
            raise Wrong(f"the path {key!r} {complaint}")
    return "/".join(part for part in parts if part not in ("", "."))


def _read_splits(rows: list[list[str]], columns: Columns, keys: list[str]) -> UInt8[np.ndarray, "n"]:
    if columns.split is None:
        draws = np.array([uniforms(0, "split", key, 1)[0] for key in keys])
        return np.searchsorted([0.8, 0.9], draws, side="right").astype(np.uint8)
    cells = _stripped(rows, columns.split)
    splits = np.array([_SPLIT_NAMES.get(cell.lower(), _WRONG_CODE) for cell in cells], np.uint8)
    if (splits == _WRONG_CODE).any():
        raise Wrong(f"there is no split {cells[0]!r}{nearest(cells[0].lower(), SPLITS)}")
    return splits


def _read_codes(rows: list[list[str]], columns: Columns) -> UInt8[np.ndarray, "n A"]:
    attributes = columns.attributes
    pick = itemgetter(*attributes) if len(attributes) > 1 else lambda row: (row[attributes[0]],)
    cells = list(chain.from_iterable(map(pick, rows)))
    codes = _to_codes(cells)
    if codes is None:
        cells = [cell.strip() for cell in cells]
        codes = _to_codes(cells)
    if codes is None:
        wrong = next(i for i, cell in enumerate(cells) if cell not in ("0", "1", ""))
        position = attributes[wrong % len(attributes)]
        raise WrongValue(columns.names[position], cells[wrong], position)
    return codes.reshape(len(rows), len(attributes))


def _to_codes(cells: list[str]) -> UInt8[np.ndarray, "n"] | None:
    """The codes of cells that hold one character or none, None where one of them means nothing."""
    text = np.frombuffer(("\n".join(cells) + "\n").encode(), np.uint8)
    ends = np.flatnonzero(text == _NEWLINE)
    if len(ends) != len(cells) or np.diff(ends, prepend=-1).max() > 2:
        return None
    codes = _CODES[text[ends - 1]]
    return None if (codes == _WRONG_CODE).any() else codes


def advice(column: set[str]) -> str:
    """What to do about a wrong value.

    Args:
      column: all values that stand in the column, at least those of some thousand rows.
    """
    odd = sorted(value for value in column if value not in ("0", "1", ""))
    meant = [_MEANT.get(value.lower()) for value in odd]
    if "-1" in odd and "0" in column:
        return "beside 0, -1 may mean absent or unknown: write 0 for absent and nothing for unknown"
    if None in meant:
        return "leave the cell empty where nobody knows, or remove the column if it is no attribute"
    return "write " + ", ".join(f"{meaning} for {value}" for value, meaning in zip(odd, meant, strict=True))
