"""The text lists of CUB-200-2011, from bytes to arrays, each line checked.

Every function takes a `Text` and raises DataError with the file, the line, the expected and the found.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int32, UInt8

from input_pipeline.untrusted.text_lists import Text, is_number

CERTAINTIES = ("not visible", "guessing", "probably", "definitely")
"""How sure an annotator was, from 1 to 4."""


class Entry(NamedTuple):
    """The line of a list that speaks of one id, and what it says."""

    line: int
    values: tuple[str, ...]


def read_table(text: Text, form: str) -> dict[int, Entry]:
    """Reads lines of an id and one or more values.

    Args:
      text: the list.
      form: the columns as in "<image_id> <x> <y>". The last one may hold blanks.

    Returns:
      {id: its line}, in the file's order.
    """
    columns = form.count("<")
    table: dict[int, Entry] = {}
    for number, line in enumerate(text.lines(), 1):
        first, *values = line.split(None, columns - 1) or [""]
        if len(values) != columns - 1 or not is_number(first):
            raise text.wrong(number, f"expected {form}, found {line[:60]!r}")
        if (key := int(first)) in table:
            raise text.wrong(number, f"{key} was listed on line {table[key].line} already")
        table[key] = Entry(number, tuple(value.strip() for value in values))
    return table


def read_images(text: Text) -> dict[int, str]:
    """{image id: its path below `images/`}, in the file's order."""
    table = read_table(text, "<image_id> <path>")
    lines: dict[str, int] = {}
    for line, (path,) in table.values():
        if not path.isprintable():
            raise text.wrong(line, f"expected the path of an image, found {path[:60]!r}")
        if path in lines:
            raise text.wrong(line, f"{path} was listed on line {lines[path]} already")
        lines[path] = line
    return {number: entry.values[0] for number, entry in table.items()}


def read_per_image(text: Text, form: str, images: Mapping[int, str]) -> list[Entry]:
    """Reads a list with one line for every image: the lines, in the order of `images`."""
    table = read_table(text, form)
    for number, entry in table.items():
        if number not in images:
            raise text.wrong(entry.line, f"image {number} is not in images.txt")
    for number, path in images.items():
        if number not in table:
            end = len(text.lines())
            raise text.wrong(end, f"the list ends without a line for image {number} ({path}) of images.txt")
    return [table[number] for number in images]


def read_choices(
    text: Text, form: str, images: Mapping[int, str], choices: Sequence[str]
) -> Int32[np.ndarray, "N"]:
    """Reads a list with one of `choices` for every image: int32 [N] positions in `choices`."""
    position = {choice: i for i, choice in enumerate(choices)}
    entries = read_per_image(text, form, images)
    for entry in entries:
        if entry.values[0] not in position:
            raise text.wrong(entry.line, f"expected {form}, {_from_to(choices)}, found {entry.values[0]!r}")
    return np.array([position[entry.values[0]] for entry in entries], np.int32)


def read_boxes(text: Text, images: Mapping[int, str]) -> Int32[np.ndarray, "N 4"]:
    """Reads the boxes: int32 [N, 4], top, left, height and width in whole pixels.

    Rounded outward, and cut at the image's top and left edge. Its size is known only to who reads the image,
    and cuts at the bottom and the right.
    """
    form = "<image_id> <x> <y> <width> <height>"
    entries = read_per_image(text, form, images)
    left, top, width, height = np.array([_numbers(text, entry, form) for entry in entries]).T
    start = np.floor(np.maximum([top, left], 0.0))
    size = np.ceil([top + height, left + width]) - start
    wrong = (size <= 0.0).any(axis=0) | (width <= 0.0) | (height <= 0.0)
    if wrong.any():
        entry = entries[int(np.argmax(wrong))]
        raise text.wrong(
            entry.line, f"expected a box with pixels in the image, found {' '.join(entry.values)!r}"
        )
    return np.concatenate([start, size]).T.astype(np.int32)


def _numbers(text: Text, entry: Entry, form: str) -> list[float]:
    try:
        values = [float(value) for value in entry.values]
    except ValueError:
        values = [float("nan")]
    if not all(abs(value) < 1e6 for value in values):  # also false for nan
        raise text.wrong(entry.line, f"expected {form} in pixels, found {' '.join(entry.values)!r}")
    return values


def read_classes(text: Text) -> dict[int, str]:
    """{class id: its name}, ids ascending."""
    table = read_table(text, "<class_id> <name>")
    for before, after in zip(table, list(table)[1:], strict=False):
        if after < before:
            raise text.wrong(
                table[after].line, f"expected class ids that ascend, found {after} after {before}"
            )
    return {number: entry.values[0] for number, entry in table.items()}


def read_rates(text: Text, classes: int, attributes: int) -> Float32[np.ndarray, "C A"]:
    """Reads a row of percentages for every class, in their order: float32 [C, A] in [0, 1]."""
    lines = text.lines()
    if len(lines) != classes:
        raise text.wrong(len(lines), f"expected a row for each of {classes} classes, found {len(lines)} rows")
    rates = np.empty((classes, attributes), np.float32)
    for number, line in enumerate(lines, 1):
        rates[number - 1] = _percentages(text, number, line, attributes)
    return rates / np.float32(100.0)


def _percentages(text: Text, number: int, line: str, count: int) -> Float32[np.ndarray, "A"]:
    values = line.split()
    if len(values) != count:
        raise text.wrong(number, f"expected {count} percentages, found {len(values)}")
    try:
        row = np.array(values, np.float64)
    except ValueError as error:
        raise text.wrong(number, f"expected {count} percentages, found a word: {error}") from error
    if not ((row >= 0.0) & (row <= 100.0)).all():  # also false for nan
        raise text.wrong(number, "expected percentages from 0 to 100, found one that is not")
    return row.astype(np.float32)


def check_names(text: Text, names: Sequence[str]) -> None:
    """Holds a list of numbered names against the names that are expected, in their order."""
    lines = text.lines()
    for number, name in enumerate(names, 1):
        found = lines[number - 1] if number <= len(lines) else "the end of the file"
        if found.split() != [str(number), *name.split()]:
            raise text.wrong(number, f"expected '{number} {name}', found {found[:60]!r}")
    if len(lines) > len(names):
        raise text.wrong(len(names) + 1, f"expected no more than {len(names)} names, found another line")


def make_codes(
    present: Int32[np.ndarray, "..."], certainty: Int32[np.ndarray, "..."]
) -> UInt8[np.ndarray, "..."]:
    """What an annotator said, as one byte.

    Args:
      present: 0 or 1.
      certainty: 1 to 4, see CERTAINTIES.

    Returns:
      uint8 in 1..8: 1 + 2 * (certainty - 1) + present. 0 is left for a label that nobody looked at.
    """
    return (2 * certainty - 1 + present).astype(np.uint8)


def read_labels(text: Text, images: Mapping[int, str], attributes: int) -> UInt8[np.ndarray, "N A"]:
    """Reads the labels of single images: a line for every image and attribute, in any order.

    A line is `<image_id> <attribute_id> <is_present> <certainty_id> <time>`.
    The official file has lines with more columns, where a stray 0 and a doubled blank stand before the time
    ("2275 10 0 1 0  1.509"). Their first four columns are in their places, as on every other line: these are
    read, and what follows them is not.

    The official 3.7 million lines (70 MB) take about 2 s and 300 MB; finding a wrong one takes longer.

    Returns:
      uint8 [N, A], see `make_codes`; no label is 0.
    """
    rows = _first_four(text)
    ids = np.array(sorted(images), np.int32)
    of_id = np.argsort(np.array(list(images), np.int32)).astype(np.int32)
    place = np.minimum(np.searchsorted(ids, rows[:, 0]), len(ids) - 1)
    _require(text, rows, ids[place] == rows[:, 0], "an image_id of images.txt")
    _require(text, rows, _within(rows[:, 1], 1, attributes), f"an attribute_id from 1 to {attributes}")
    _require(text, rows, _within(rows[:, 2], 0, 1), "an is_present of 0 or 1")
    _require(text, rows, _within(rows[:, 3], 1, len(CERTAINTIES)), "a certainty_id from 1 to 4")
    codes = np.zeros(len(ids) * attributes, np.uint8)
    pairs = of_id[place].astype(np.int64) * attributes + rows[:, 1] - 1
    codes[pairs] = make_codes(rows[:, 2], rows[:, 3])
    _check_every_pair_once(text, rows, pairs, codes, list(images), attributes)
    return codes.reshape(len(ids), attributes)


def _check_every_pair_once(
    text: Text,
    rows: Int32[np.ndarray, "L 4"],
    pairs: np.ndarray,
    codes: np.ndarray,
    ids: list[int],
    attributes: int,
) -> None:
    if np.count_nonzero(codes) < len(pairs):
        first = np.zeros(len(pairs), np.bool_)
        first[np.unique(pairs, return_index=True)[1]] = True
        _require(text, rows, first, "every pair of an image and an attribute once")
    if not codes.all():
        image, attribute = divmod(int(np.argmin(codes)), attributes)
        raise text.wrong(
            len(rows), f"the list ends without a line for image {ids[image]}, attribute {attribute + 1}"
        )


def _require(text: Text, rows: Int32[np.ndarray, "L 4"], fine: np.ndarray, expected: str) -> None:
    if not fine.all():
        line = int(np.argmin(fine))
        found = " ".join(map(str, rows[line]))
        raise text.wrong(line + 1, f"expected {expected}, found {found!r}")


def _within(values: np.ndarray, low: int, high: int) -> np.ndarray:
    return (values >= low) & (values <= high)


def _first_four(text: Text) -> Int32[np.ndarray, "L 4"]:
    """The first four columns of every line, which must be numbers. A line's number is its row's plus one."""
    data = text.data.rstrip() or b"nothing"
    # Line by line from bytes: as one string the file would take four times its size.
    lines = io.TextIOWrapper(io.BytesIO(data), "ascii", newline="\n")
    try:
        rows = np.loadtxt(lines, np.int32, comments=None, usecols=range(4), ndmin=2)
        if len(rows) == data.count(b"\n") + 1:  # else there are blank lines
            return rows
    except ValueError:  # says which row, but not which line
        pass
    values = itertools.chain.from_iterable(_careful_rows(text, data))
    return np.fromiter(values, np.int32).reshape(-1, 4)


def _careful_rows(text: Text, data: bytes) -> Iterable[list[int]]:
    for number, line in enumerate(io.BytesIO(data), 1):
        values = line.split()[:4]
        if len(values) < 4 or not all(is_number(value) for value in values):
            raise text.wrong(
                number,
                "expected <image_id> <attribute_id> <is_present> <certainty_id> <time>, "
                f"found {line[:60].rstrip().decode('ascii', 'backslashreplace')!r}",
            )
        yield [int(value) for value in values]


def _from_to(choices: Sequence[str]) -> str:
    return (
        " or ".join(choices)
        if len(choices) <= 4
        else f"one of {len(choices)} from {choices[0]} to {choices[-1]}"
    )
