"""CelebA's official files: two text lists and the aligned images, zipped or unpacked.

Layout, in one folder or in the `Anno/`, `Eval/` and `Img/` folders of the official distribution:
  list_attr_celeba.txt      a count, a line of 40 attribute names, then `<image> <-1|1> x 40` per line
  list_eval_partition.txt   `<image> <0|1|2>` per line: train, validation, test
  img_align_celeba.zip or img_align_celeba/
  identity_CelebA.txt       where it is there, `<image> <person>` per line: the classes of class-level labels
Reference: Liu et al., "Deep Learning Face Attributes in the Wild", ICCV 2015.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64, UInt8

from input_pipeline.celeba.attributes import SCHEMA
from input_pipeline.errors import DataError
from input_pipeline.splits import Splits, present
from input_pipeline.storage.official import Classes, Official
from input_pipeline.untrusted.archives import Archive, open_archive
from input_pipeline.untrusted.text_lists import Text, is_number

ATTRIBUTES_FILE = "list_attr_celeba.txt"
PARTITION_FILE = "list_eval_partition.txt"
IDENTITY_FILE = "identity_CelebA.txt"
IMAGES = ("img_align_celeba.zip", "img_align_celeba")
SPLITS = {"0": "train", "1": "validation", "2": "test"}

_GET_AGAIN = "get the official file again"


class Paths(NamedTuple):
    """Where the parts of the official distribution lie; not everybody has the identities."""

    attributes: Path
    partition: Path
    images: Path
    identities: Path | None


def find(folder: Path) -> Paths:
    """Finds the official files. Raises DataError naming the first that is not there."""
    return Paths(
        _find_one(folder, "Anno", (ATTRIBUTES_FILE,)),
        _find_one(folder, "Eval", (PARTITION_FILE,)),
        _find_one(folder, "Img", IMAGES),
        next((path for path in _places(folder, "Anno", IDENTITY_FILE) if path.exists()), None),
    )


def _places(folder: Path, official: str, name: str) -> tuple[Path, Path]:
    return folder / name, folder / official / name


def _find_one(folder: Path, official: str, names: tuple[str, ...]) -> Path:
    for name in names:
        for candidate in _places(folder, official, name):
            if candidate.exists():
                return candidate
    raise DataError(
        f"{folder}: {' or '.join(names)} is missing (looked here and in {official}/); "
        "point --data_dir at CelebA's official files or at a folder made by `wsca prepare`"
    )


def open_official(folder: Path) -> Official:
    """Reads and cross-checks the text files and finds every image.

    Raises:
      DataError: names the file, the line where there is one, the expected and the found.
    """
    paths = find(folder)
    keys, labels = _read_attributes(paths.attributes, SCHEMA.attributes)
    split_of = _read_partition(paths.partition)
    _check_same_images(paths, keys, split_of)
    images = _Images(paths.images, keys)
    splits = _splits(keys, split_of)
    classes = None if paths.identities is None else _read_identities(paths.identities, keys)
    return Official(
        data_set="celeba",
        origin=paths.images,
        schema=SCHEMA,
        keys=keys,
        codes=labels,
        splits=splits,
        read_image=lambda row: images.read(keys[row]),
        fingerprint=_fingerprint(paths),
        classes=classes,
        other_splits={} if classes is None else {"tuning": tuning(classes, splits)},
    )


def tuning(classes: Classes, splits: Splits) -> dict[str, Int64[np.ndarray, "n"]]:
    """Another "train" and "validation" out of the training images, with no person in both.

    About a tenth of the persons is for validation: those of whose number, in decimal digits, the SHA-256 is a
    multiple of 10. So a person's side is the same in every subset of the data.
    """
    drawn = [int(hashlib.sha256(person.encode()).hexdigest(), 16) % 10 == 0 for person in classes.names]
    train = splits.get("train", np.empty(0, np.int64))
    aside = np.array(drawn, bool)[classes.of[train]]
    return present({"train": train[~aside], "validation": train[aside]})


def _splits(keys: tuple[str, ...], split_of: dict[str, str]) -> dict[str, Int64[np.ndarray, "n"]]:
    """The rows of each split that is there."""
    names = np.array([split_of[key] for key in keys])
    return {split: np.flatnonzero(names == split) for split in SPLITS.values() if (names == split).any()}


def _read_attributes(
    path: Path, attributes: tuple[str, ...]
) -> tuple[tuple[str, ...], UInt8[np.ndarray, "N A"]]:
    text = Text.read(path)
    lines = text.lines()
    if len(lines) < 3:
        raise text.wrong(
            len(lines), f"expected a count, a header and a line per image, found {len(lines)} lines"
        )
    _check_header(text, lines[1].split(), attributes)
    rows = [_attribute_row(text, number, line, len(attributes)) for number, line in enumerate(lines[2:], 3)]
    if lines[0].strip() != str(len(rows)):
        raise text.wrong(1, f"the count says {lines[0].strip()[:40]!r}, but {len(rows)} images follow")
    keys = tuple(key for key, _ in rows)
    _check_unique(text, keys, first_line=3)
    labels = np.frombuffer(b"".join(values for _, values in rows), np.uint8)
    return keys, labels.reshape(len(rows), len(attributes))


def _check_header(text: Text, found: list[str], expected: tuple[str, ...]) -> None:
    if tuple(found) == expected:
        return
    differences = {
        "missing": [name for name in expected if name not in found],
        "unknown": [name for name in found if name not in expected],
        "repeated": [name for name in expected if found.count(name) > 1],
    }
    said = [f"{kind} {', '.join(names)}" for kind, names in differences.items() if names]
    raise text.wrong(
        2,
        f"expected the {len(expected)} official attribute names in their order, "
        f"found {len(found)}: {'; '.join(said) or 'the order differs'}",
    )


def _attribute_row(text: Text, number: int, line: str, attributes: int) -> tuple[str, bytes]:
    """(image name, one byte 0 or 1 per attribute)."""
    key, *values = line.split() or [""]
    if len(values) != attributes:
        raise text.wrong(
            number, f"expected an image name and {attributes} values, found {len(values)} values"
        )
    if not {"-1", "1"}.issuperset(values):
        found = next(value for value in values if value not in ("-1", "1"))
        raise text.wrong(number, f"every value must be -1 or 1, found {found[:60]!r}")
    return key, bytes([value == "1" for value in values])


def _read_partition(path: Path) -> dict[str, str]:
    """{image name: split name}."""
    text = Text.read(path)
    rows = [line.split() for line in text.lines()]
    for number, row in enumerate(rows, 1):
        if len(row) != 2 or row[1] not in SPLITS:
            raise text.wrong(
                number,
                "expected an image name and 0, 1 or 2 (train, validation, test), "
                f"found {' '.join(row)[:60]!r}",
            )
    _check_unique(text, tuple(key for key, _ in rows), first_line=1)
    return {key: SPLITS[value] for key, value in rows}


def _read_identities(path: Path, keys: tuple[str, ...]) -> Classes:
    """The person on each image. Images that are not among `keys` may be listed as well."""
    text = Text.read(path)
    person_of: dict[str, int] = {}
    for number, line in enumerate(text.lines(), 1):
        words = line.split()
        if len(words) != 2 or not is_number(words[1]):
            raise text.wrong(
                number, f"expected an image name and a person's number, found {line.strip()[:60]!r}"
            )
        person_of[words[0]] = int(words[1])
    missing = [key for key in keys if key not in person_of]
    if missing:
        raise DataError(f"{path}: {missing[0]} has no line here ({len(missing)} such images); {_GET_AGAIN}")
    people = sorted({person_of[key] for key in keys})
    position = {person: i for i, person in enumerate(people)}
    return Classes(tuple(map(str, people)), np.array([position[person_of[key]] for key in keys], np.int32))


def _check_unique(text: Text, keys: tuple[str, ...], first_line: int) -> None:
    seen: dict[str, int] = {}
    for number, key in enumerate(keys, first_line):
        if key in seen:
            raise text.wrong(number, f"{key} was listed on line {seen[key]} already")
        seen[key] = number


def _check_same_images(paths: Paths, keys: tuple[str, ...], split_of: dict[str, str]) -> None:
    listed = set(keys)
    for lacking, there, names in (
        (paths.attributes, paths.partition, split_of.keys() - listed),
        (paths.partition, paths.attributes, listed - split_of.keys()),
    ):
        if names:
            raise DataError(
                f"{lacking}: {min(names)} has no line here but one in {there.name} "
                f"({len(names)} such images); use the two files of one distribution"
            )


class _Images:
    """The aligned images by name, wherever they lie. All listed images are there: checked when opened."""

    def __init__(self, path: Path, keys: tuple[str, ...]) -> None:
        self._archive: Archive = open_archive(path)
        names = set(self._archive.names())
        nested = f"{IMAGES[1]}/"
        self._prefix = nested if keys and nested + keys[0] in names else ""
        missing = [key for key in keys if self._prefix + key not in names]
        if missing:
            raise DataError(
                f"{path}: {missing[0]} is listed but not there ({len(missing)} of {len(keys)} images are "
                "missing); unpack or download the images again"
            )

    def read(self, key: str) -> bytes:
        return self._archive.read(self._prefix + key)


def fingerprint(folder: Path) -> str:
    """Sixteen hex digits that change with the lists' contents or an image's name, size or time of change."""
    return _fingerprint(find(folder))


def _fingerprint(paths: Paths) -> str:
    digest = hashlib.sha256()
    for text in filter(None, (paths.attributes, paths.partition, paths.identities)):
        digest.update(hashlib.sha256(text.read_bytes()).digest())
    digest.update("\n".join(_stamps(paths.images)).encode())
    return digest.hexdigest()[:16]


def _stamps(images: Path) -> list[str]:
    entries = [images] if images.is_file() else [Path(entry.path) for entry in os.scandir(images)]
    stats = ((entry.name, entry.stat()) for entry in sorted(entries))
    return [f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in stats]
