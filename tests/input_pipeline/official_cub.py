"""Small data sets in CUB-200-2011's official layout, made from nothing."""

import tarfile
from io import BytesIO
from pathlib import Path

import numpy as np
from official_files import jpeg

from input_pipeline.cub.attributes import SCHEMA
from input_pipeline.cub.lists import CERTAINTIES

FORMS = ("archive", "unpacked", "inner")
LABELS = "attributes/image_attribute_labels.txt"
RATES = "attributes/class_attribute_labels_continuous.txt"


class OfficialCub:
    """Writes a folder in the official layout. Change the fields, then `write`.

    Six classes are named; the seven images, in no order, belong to four of them. Each has an irregular line.
    """

    def __init__(self, folder: Path) -> None:
        random = np.random.default_rng(0)
        self.folder = folder
        self.class_names = [f"{i:03d}.Bird_{'abcdef'[i - 1]}" for i in range(1, 7)]
        self.ids = [3, 4, 7, 12, 9, 2275, 9364]
        self.class_ids = [2, 2, 5, 3, 3, 6, 6]
        names = ("b", "a", "c", "f", "d", "g", "e")
        self.keys = [
            f"{self.class_names[c - 1]}/Bird_{n}.jpg" for c, n in zip(self.class_ids, names, strict=True)
        ]
        self.train = [1, 0, 1, 1, 0, 1, 0]
        self.boxes = [(2.5, 3.0, 10.25, 20.0)] * len(self.ids)
        self.present = random.integers(0, 2, (len(self.ids), 312))
        self.certainty = random.integers(1, 5, (len(self.ids), 312))
        self.percentages = np.round(random.uniform(0, 100, (6, 312)), 4)
        self.images = {key: jpeg(i) for i, key in enumerate(self.keys)}
        self.captions: dict[str, bytes] = {}

    def lists(self) -> dict[str, list[str]]:
        """{name in the layout: lines} of every list."""
        per_image = {
            "images.txt": self.keys,
            "image_class_labels.txt": self.class_ids,
            "train_test_split.txt": self.train,
            "bounding_boxes.txt": [" ".join(map(str, box)) for box in self.boxes],
        }
        return {
            **{n: [f"{i} {v}" for i, v in zip(self.ids, rows, strict=True)] for n, rows in per_image.items()},
            "classes.txt": numbered(self.class_names),
            "attributes/certainties.txt": numbered(CERTAINTIES),
            RATES: [" ".join(map(str, row)) for row in self.percentages],
            LABELS: self.label_lines(),
            "attributes.txt": numbered(SCHEMA.attributes),
        }

    def label_lines(self) -> list[str]:
        return [
            label_line(image, a + 1, self.present[row, a], self.certainty[row, a])
            for row, image in enumerate(self.ids)
            for a in range(312)
        ]

    def files(self, **lists: list[str] | bytes | None) -> dict[str, bytes]:
        """{name in the official archive: bytes}; `lists` replaces lines or bytes, None leaves a list out."""
        files = {}
        for name, lines in {**self.lists(), **lists}.items():
            place = name if name == "attributes.txt" else f"CUB_200_2011/{name}"
            if lines is not None:
                files[place] = lines if isinstance(lines, bytes) else text(lines)
        files |= {f"CUB_200_2011/images/{key}": data for key, data in self.images.items()}
        return files | {f"text_c10/{name}": data for name, data in self.captions.items()}

    def write(self, form="unpacked", **lists) -> Path:
        """Writes the archive, what unpacking it gives, or the latter; "inner" returns CUB_200_2011 itself."""
        files = self.files(**lists)
        self.folder.mkdir(parents=True, exist_ok=True)
        if form == "archive":
            write_tar(self.folder / "CUB_200_2011.tgz", files)
            return self.folder
        for name, data in files.items():
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / name).write_bytes(data)
        return self.folder / "CUB_200_2011" if form == "inner" else self.folder


def label_line(image, attribute, present, certainty):
    """The images 2275 and 9364 have a stray 0 and two blanks on some lines of the official file."""
    stray = " 0 " if image in (2275, 9364) and attribute % 5 == 0 else ""
    return f"{image} {attribute} {present} {certainty}{stray} {attribute / 8:.3f}"


def numbered(names):
    return [f"{i} {name}" for i, name in enumerate(names, 1)]


def text(lines) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


def write_tar(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, BytesIO(data))
