"""CUB-200-2011's official files: 11,788 images of 200 species of birds, 312 attributes.

Layout, in `CUB_200_2011.tgz` or unpacked (the folder that holds `CUB_200_2011/`, or that folder itself):
  CUB_200_2011/images.txt               `<image_id> <path below images/>`
  CUB_200_2011/image_class_labels.txt   `<image_id> <class_id>`
  CUB_200_2011/train_test_split.txt     `<image_id> <1: train, 0: test>`
  CUB_200_2011/bounding_boxes.txt       `<image_id> <x> <y> <width> <height>`
  CUB_200_2011/classes.txt              `<class_id> <name>`
  CUB_200_2011/attributes/class_attribute_labels_continuous.txt   for each class, 312 percentages
  CUB_200_2011/attributes/image_attribute_labels.txt   see `lists.read_labels`; may be absent
  CUB_200_2011/attributes/certainties.txt              what its certainties mean
  CUB_200_2011/images/<class>/<name>.jpg
  attributes.txt                        `<attribute_id> <name>`; may lie in CUB_200_2011/ or its attributes/
  text_c10/<class>/<name>.txt           ten captions of an image, one per line; beside or in CUB_200_2011/
References: Wah et al., "The Caltech-UCSD Birds-200-2011 Dataset", 2011,
https://www.vision.caltech.edu/datasets/cub_200_2011/. Captions: Reed et al., "Learning Deep Representations
of Fine-Grained Visual Descriptions", CVPR 2016.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int64, UInt8

from input_pipeline.cub import lists
from input_pipeline.cub.attributes import SCHEMA
from input_pipeline.cub.lists import CERTAINTIES
from input_pipeline.errors import DataError
from input_pipeline.splits import present
from input_pipeline.storage.official import Classes, Official
from input_pipeline.untrusted.archives import Archive, open_archive
from input_pipeline.untrusted.text_lists import Text
from input_pipeline.weak_labels import uniforms

_NAME = "CUB_200_2011"
_ARCHIVES = tuple(f"{_NAME}.{ending}" for ending in ("tgz", "tar.gz", "tar", "zip"))
_CAPTIONS = "text_c10"

_ATTRIBUTES = "attributes.txt"
_CERTAINTIES = "attributes/certainties.txt"
_LABELS = "attributes/image_attribute_labels.txt"
_RATES = "attributes/class_attribute_labels_continuous.txt"
_REQUIRED = (
    *("images.txt", "image_class_labels.txt", "train_test_split.txt", "bounding_boxes.txt", "classes.txt"),
    _ATTRIBUTES,
)
_LISTS = (*_REQUIRED, _CERTAINTIES, _LABELS, _RATES)
_ELSEWHERE = {"attributes/attributes.txt": _ATTRIBUTES}  # where unpacked copies often have it


@dataclasses.dataclass(frozen=True)
class Options:
    """Settings of the data set.

    Attributes:
      certainty: how sure an annotator must have been for a label of an image to count as known: 1 not visible
        (so every label), 2 guessing, 3 probably, 4 definitely.

    Raises:
      DataError: no such certainty.
    """

    certainty: int = 3

    def __post_init__(self) -> None:
        if self.certainty not in range(1, len(CERTAINTIES) + 1):
            raise DataError(
                "cub: certainty must be 1 (not visible), 2 (guessing), 3 (probably) or 4 (definitely), "
                f"found {self.certainty!r}"
            )


def decode_labels(
    codes: UInt8[np.ndarray, "... A"], options: Options
) -> tuple[UInt8[np.ndarray, "... A"], Bool[np.ndarray, "... A"]]:
    """What codes made by `lists.make_codes` say to someone who asks for that certainty.

    Returns:
      (labels uint8 in {0, 1}, known): labels are 0 wherever known is False.
    """
    known = (codes + 1) // 2 >= options.certainty  # a certainty c is 2c - 1 or 2c, and nobody's look is 0
    return (codes % 2 == 0) * known.astype(np.uint8), known


class Place(NamedTuple):
    """Where the data set lies.

    Attributes:
      main: the archive, or the unpacked folder CUB_200_2011.
      beside: the folder that holds it.
    """

    main: Path
    beside: Path


def find(folder: Path) -> Place:
    """Finds the unpacked folder or else the archive. Raises DataError where there is neither."""
    if (folder / "images.txt").is_file():
        return Place(folder, folder.absolute().parent)
    if (folder / _NAME / "images.txt").is_file():
        return Place(folder / _NAME, folder)
    for name in _ARCHIVES:
        if (folder / name).is_file():
            return Place(folder / name, folder)
    raise DataError(
        f"{folder}: expected {_ARCHIVES[0]} or the unpacked folder {_NAME} with its images.txt, found "
        "neither; point --data_dir at the folder that holds one of them"
    )


def open_official(folder: Path) -> Official:
    """Opens and cross-checks the official files.

    Examples follow the order in which the images are stored (by path in a folder). Keys are the paths below
    `images/`. The splits are the official "train" and "test"; `splits.with_validation` and `class_disjoint`
    give others.

    Without image_attribute_labels.txt every code is 0: only the classes' rates tell of attributes.

    A caption is one of an image's ten, drawn by the image's key: the same for every reader, and neither one
    annotator's style nor a place in the file is preferred.

    Memory: 312 bytes per image are kept (3.7 MB); 300 MB are needed while the labels are read.

    Raises:
      DataError: a file that is absent, damaged, or contradicts another one; names the file and the line.
    """
    place = find(folder)
    archive = open_archive(place.main)
    stored = {name.removeprefix(f"{_NAME}/"): name for name in archive.names()}
    texts = _read_texts(place, archive, stored)
    _check_meanings(texts)
    images = _in_stored_order(texts["images.txt"], stored)
    keys = tuple(images.values())
    return Official(
        data_set="cub",
        origin=folder,
        schema=SCHEMA,
        keys=keys,
        codes=_codes(texts, images),
        splits=_splits(texts["train_test_split.txt"], images),
        read_image=lambda row: archive.read(stored[f"images/{keys[row]}"]),
        fingerprint=fingerprint(folder),
        classes=_classes(texts, images),
        boxes=lists.read_boxes(texts["bounding_boxes.txt"], images),
        captions=_captions(texts, keys),
    )


def _read_texts(place: Place, archive: Archive, stored: Mapping[str, str]) -> dict[str, Text]:
    """{name in the layout: text} of all lists and captions that are there, read in stored order."""
    texts: dict[str, Text] = {}
    for name, member in stored.items():
        official = _ELSEWHERE.get(name, name)
        if official in _LISTS or official.startswith(f"{_CAPTIONS}/"):
            texts.setdefault(official, Text(str(place.main / member), archive.read(member)))
    for name, path in _beside(place):
        texts.setdefault(name, Text(str(path), open_archive(path.parent).read(path.name)))
    for name in _REQUIRED:
        if name not in texts:
            raise DataError(f"{place.main}: {name} is missing; get the official archive again")
    if _LABELS not in texts and _RATES not in texts:
        raise DataError(
            f"{place.main}: neither {_LABELS} nor {_RATES} is there, so nothing says which attributes the "
            "birds have; get the official archive again"
        )
    return texts


def _beside(place: Place) -> Iterator[tuple[str, Path]]:
    """(name in the layout, path) of what may lie outside the archive or the unpacked folder."""
    if (place.beside / _ATTRIBUTES).is_file():
        yield _ATTRIBUTES, place.beside / _ATTRIBUTES
    yield from _below(place.beside, _CAPTIONS)


def _below(folder: Path, part: str) -> Iterator[tuple[str, Path]]:
    if (folder / part).is_dir():
        for name in open_archive(folder / part).names():
            yield f"{part}/{name}", folder / part / name


def _check_meanings(texts: Mapping[str, Text]) -> None:
    lists.check_names(texts[_ATTRIBUTES], SCHEMA.attributes)
    if _CERTAINTIES in texts:
        lists.check_names(texts[_CERTAINTIES], CERTAINTIES)


def _in_stored_order(text: Text, stored: Mapping[str, str]) -> dict[int, str]:
    """{image id: key}, in the order in which the images are stored. All of them are there."""
    position = {name: number for number, name in enumerate(stored)}
    images = lists.read_images(text)
    absent = [path for path in images.values() if f"images/{path}" not in position]
    if absent:
        line = list(images.values()).index(absent[0]) + 1
        raise DataError(
            f"{text.where}, line {line}: images/{absent[0]} is listed but not there ({len(absent)} of "
            f"{len(images)} images are missing); unpack or download the official archive again"
        )
    return dict(sorted(images.items(), key=lambda image: position[f"images/{image[1]}"]))


def _codes(texts: Mapping[str, Text], images: Mapping[int, str]) -> UInt8[np.ndarray, "N A"]:
    if _LABELS not in texts:
        return np.zeros((len(images), SCHEMA.num_attributes), np.uint8)
    return lists.read_labels(texts[_LABELS], images, SCHEMA.num_attributes)


def _splits(text: Text, images: Mapping[int, str]) -> dict[str, Int64[np.ndarray, "n"]]:
    train = lists.read_choices(text, "<image_id> <is_training_image>", images, ("0", "1"))
    return present({"train": np.flatnonzero(train == 1), "test": np.flatnonzero(train == 0)})


def _classes(texts: Mapping[str, Text], images: Mapping[int, str]) -> Classes:
    classes = lists.read_classes(texts["classes.txt"])
    text, numbers = texts["image_class_labels.txt"], tuple(map(str, classes))
    rates = None
    if _RATES in texts:
        rates = lists.read_rates(texts[_RATES], len(classes), SCHEMA.num_attributes)
    of = lists.read_choices(text, "<image_id> <class_id>", images, numbers)
    return Classes(names=tuple(classes.values()), of=of, rates=rates)


def _captions(texts: Mapping[str, Text], keys: Sequence[str]) -> tuple[str | None, ...] | None:
    captions = tuple(_caption(texts.get(f"{_CAPTIONS}/{key.rpartition('.')[0]}.txt"), key) for key in keys)
    return captions if any(captions) else None


def _caption(text: Text | None, key: str) -> str | None:
    # The published files hold replacement characters for what could not be decoded when they were made.
    lines = () if text is None else (line.replace("\ufffd", " ").split() for line in text.lines())
    sentences = [" ".join(words) for words in lines if words]
    if not sentences:
        return None
    return sentences[int(uniforms(0, "caption", key, 1)[0] * len(sentences))]


def class_disjoint(classes: Classes) -> dict[str, Int64[np.ndarray, "n"]]:
    """Splits by species: none is in two of "train", "validation" and "test".

    Of the species that have images, in their order, the first half (rounded up) is for training, as metric
    learning on this data set has it (Oh Song et al., "Deep Metric Learning via Lifted Structured Feature
    Embedding", CVPR 2016: the first 100 of 200), the next quarter (rounded down) for validation, the rest for
    testing. A split that would be empty is left out.
    """
    species = np.unique(classes.of)
    parts = np.split(species, [(len(species) + 1) // 2, (len(species) + 1) // 2 + len(species) // 4])
    rows = [np.flatnonzero(np.isin(classes.of, part)) for part in parts]
    return present(dict(zip(("train", "validation", "test"), rows, strict=True)))


def fingerprint(folder: Path) -> str:
    """Sixteen hex digits that change with a list's contents, or the name, size or time of any other file.

    Nothing is parsed, and of an archive nothing is read. Raises DataError where the data set is not there.
    """
    digest = hashlib.sha256()
    for name, path in _files(find(folder)):
        digest.update(f"{name} {_content(path) if name in _LISTS else _stamp(path)}\n".encode())
    return digest.hexdigest()[:16]


def _files(place: Place) -> Iterator[tuple[str, Path]]:
    if place.main.is_file():
        yield place.main.name, place.main
    else:
        names = (*_LISTS, *_ELSEWHERE)
        yield from ((name, place.main / name) for name in names if (place.main / name).is_file())
        yield from _below(place.main, "images")
        yield from _below(place.main, _CAPTIONS)
    yield from _beside(place)


def _content(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _stamp(path: Path) -> str:
    stat = path.stat()
    return f"{stat.st_size} {stat.st_mtime_ns}"
