"""COCO Attributes: 204 attributes of people, animals and objects, voted on by annotators.

Layout, in one folder:
  cocottributes_eccv_version.jbl (or .joblib, .pkl, .pickle)   the votes; see `votes`
  instances_train2014.json, instances_val2014.json             COCO's objects, here or in `annotations/`
  captions_train2014.json, captions_val2014.json               COCO's captions, beside them; may be absent
  train2014.zip or train2014/, val2014.zip or val2014/         COCO's images
Patterson and Hays, "COCO Attributes: Attributes for People, Animals, and Objects", ECCV 2016,
https://github.com/genp/cocottributes; COCO of 2014, https://cocodataset.org.

The data set has no split for choosing a model. The rows of train2014 are for training; of val2014's images
one half is for validation and one for test, by a draw from each image's name, so that no image is in both.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from input_pipeline.coco_attributes import votes
from input_pipeline.coco_attributes.captions import read_captions
from input_pipeline.coco_attributes.instances import Objects, read_objects, with_context
from input_pipeline.coco_attributes.lexicon import SCHEMA
from input_pipeline.coco_attributes.votes import SPLITS, Options, Votes, convert, decode_labels, read_votes
from input_pipeline.errors import DataError
from input_pipeline.storage.official import Classes, Official
from input_pipeline.untrusted.archives import Archive, open_archive
from input_pipeline.weak_labels import uniforms

__all__ = ["SCHEMA", "Options", "convert", "decode_labels", "find", "open_official", "with_context"]

_SUFFIXES = (".jbl", ".joblib", ".pkl", ".pickle")
_POINT = "point --data_dir at the folder with COCO Attributes' and COCO's files"


class Paths(NamedTuple):
    """Where the official files lie.

    Attributes:
      votes: the pickle.
      instances: {COCO's split: its annotations}, of the splits that are there.
      captions: {COCO's split: its captions}, of the splits that have them.
      images: {COCO's split: its images, a zip, a tar or a folder}, of the splits that are there.
    """

    votes: Path
    instances: dict[str, Path]
    captions: dict[str, Path]
    images: dict[str, Path]


class _Part(NamedTuple):
    """The objects of one of COCO's splits: `rows` are theirs among all, and `names` theirs in the archive."""

    rows: Int64[np.ndarray, "n"]
    objects: Objects
    archive: Archive
    names: tuple[str, ...]


def find(folder: Path) -> Paths:
    """Finds the official files. Raises DataError where there is no votes file or more than one."""
    found = sorted(path for path in _listed(folder) if path.suffix.lower() in _SUFFIXES and path.is_file())
    if not found:
        raise DataError(
            f"{folder}: the votes are missing, a file that ends in {', '.join(_SUFFIXES)} "
            f"(officially cocottributes_eccv_version.jbl); {_POINT}"
        )
    if len(found) > 1:
        raise DataError(
            f"{folder}: {len(found)} files may hold the votes: {', '.join(path.name for path in found[:5])}; "
            "keep one of them here"
        )
    return Paths(
        found[0],
        _each_split(folder, ("instances_{}.json", "annotations/instances_{}.json")),
        _each_split(folder, ("captions_{}.json", "annotations/captions_{}.json")),
        _each_split(folder, ("{}.zip", "{}.tar", "{}", "images/{}.zip", "images/{}")),
    )


def open_official(folder: Path, cache: Path | None = None) -> Official:
    """Opens the official files and checks them against each other. Each row is one annotated object.

    Keys are "train2014/COCO_train2014_000000123456_987654": split, image and annotation id; where the votes
    list an annotation again, "_2" and so on follow. `codes` are the votes, as `decode_labels` reads them.
    `boxes` are the objects' own; `with_context` widens them as the published baseline does. Captions are of
    the whole image, one of its five.

    Memory: that of `instances.read_objects` and, without the cache, of `votes.convert`, at their
    times; what stays is 204 bytes of votes and a few strings per object.

    Args:
      folder: see the module.
      cache: where the votes are kept in a form that opens in a second; None reads the pickle each time.

    Raises:
      DataError: names the file, the expected, the found.
    """
    paths = find(folder)
    votes = read_votes(paths.votes, cache)
    parts = [_open_part(folder, paths, votes, split) for split in np.unique(votes.splits).tolist()]
    place = np.empty((len(votes.annotations), 2), np.int64)  # each row's part, and its position in that
    for number, part in enumerate(parts):
        place[part.rows] = np.stack([np.full(len(part.rows), number), np.arange(len(part.rows))], axis=1)

    def read_image(row: int) -> bytes:
        number, position = place[row]
        return parts[number].archive.read(parts[number].names[position])

    order = np.argsort(np.concatenate([part.rows for part in parts]))
    files = _in_order([part.objects.files for part in parts], order)
    keys = _keys(votes, files)
    return Official(
        data_set="coco_attributes",
        origin=folder,
        schema=SCHEMA,
        keys=keys,
        codes=votes.codes,
        splits=_splits(votes, files),
        read_image=read_image,
        fingerprint=_fingerprint(paths),
        classes=_classes(_in_order([part.objects.categories for part in parts], order)),
        boxes=np.concatenate([part.objects.boxes for part in parts])[order],
        captions=_captions(paths, votes, files),
    )


def _listed(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed: {error.strerror}; {_POINT}") from error


def _each_split(folder: Path, patterns: Sequence[str]) -> dict[str, Path]:
    """{split: the first of the places that is there}."""
    places = {split: [folder / pattern.format(split) for pattern in patterns] for split in SPLITS}
    there = {split: [path for path in paths if path.exists()] for split, paths in places.items()}
    return {split: paths[0] for split, paths in there.items() if paths}


def _open_part(folder: Path, paths: Paths, votes: Votes, number: int) -> _Part:
    split = SPLITS[number]
    for there, name in (
        (paths.instances, f"instances_{split}.json"),
        (paths.images, f"{split}.zip or {split}/"),
    ):
        if split not in there:
            raise DataError(
                f"{folder}: {name} is missing, and {paths.votes.name} has objects of {split}; {_POINT}"
            )
    rows = np.flatnonzero(votes.splits == number)
    objects = read_objects(paths.instances[split], votes.annotations[rows])
    archive = open_archive(paths.images[split])
    return _Part(rows, objects, archive, _names_in(archive, split, objects.files))


def _names_in(archive: Archive, split: str, files: tuple[str, ...]) -> tuple[str, ...]:
    """The images' names in the archive, which holds them in a folder of the split's name or without one."""
    there = set(archive.names())
    prefix = f"{split}/" if f"{split}/{files[0]}" in there else ""
    missing = {file for file in files if prefix + file not in there}
    if missing:
        raise DataError(
            f"{archive.path}: {min(missing)} has objects but is not there ({len(missing)} of "
            f"{len(set(files))} images are missing); get the images again"
        )
    return tuple(prefix + file for file in files)


def _in_order(parts: Sequence[tuple[str, ...]], order: Int64[np.ndarray, "N"]) -> tuple[str, ...]:
    joined = [value for part in parts for value in part]
    return tuple(joined[i] for i in order.tolist())


def _keys(votes: Votes, files: tuple[str, ...]) -> tuple[str, ...]:
    times: dict[str, int] = {}
    keys = []
    for split, file, annotation in zip(votes.splits.tolist(), files, votes.annotations.tolist(), strict=True):
        key = f"{SPLITS[split]}/{Path(file).stem}_{annotation}"
        times[key] = times.get(key, 0) + 1
        keys.append(key if times[key] == 1 else f"{key}_{times[key]}")
    return tuple(keys)


def _splits(votes: Votes, files: tuple[str, ...]) -> dict[str, Int64[np.ndarray, "n"]]:
    """Rows of the splits that are there."""
    first_half = {file: uniforms(0, "coco_attributes/validation", file, 1)[0] < 0.5 for file in set(files)}
    validation = np.array([first_half[file] for file in files])
    training = votes.splits == SPLITS.index("train2014")
    members = {"train": training, "validation": ~training & validation, "test": ~training & ~validation}
    return {split: np.flatnonzero(mask) for split, mask in members.items() if mask.any()}


def _captions(paths: Paths, votes: Votes, files: tuple[str, ...]) -> tuple[str | None, ...] | None:
    if not paths.captions:
        return None
    captions: dict[str, str] = {}
    for split, path in paths.captions.items():
        captions |= read_captions(
            path, {files[row] for row in np.flatnonzero(votes.splits == SPLITS.index(split))}
        )
    return tuple(captions.get(file) for file in files)


def _classes(categories: tuple[str, ...]) -> Classes:
    names = tuple(sorted(set(categories)))
    number = {name: i for i, name in enumerate(names)}
    return Classes(names, np.array([number[name] for name in categories], np.int32))


def fingerprint(folder: Path) -> str:
    """Sixteen hexadecimal digits of all files' names, sizes and times, and of some of the votes' contents.

    Quick: reads two MiB of the votes, and no other file. Raises DataError as `find`.
    """
    return _fingerprint(find(folder))


def _fingerprint(paths: Paths) -> str:
    places = [*paths.instances.values(), *paths.captions.values(), *paths.images.values()]
    stamps = ((path.name, path.stat()) for place in places for path in _files(place))
    lines = [
        votes.fingerprint(paths.votes),
        *(f"{name} {s.st_size} {s.st_mtime_ns}" for name, s in stamps),
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def _files(place: Path) -> list[Path]:
    return [place] if place.is_file() else sorted(place.iterdir())
