"""Small images and data sets in the official file formats, made from nothing."""

import zipfile
from pathlib import Path

import cv2
import numpy as np
import simplejpeg

from input_pipeline.celeba import SCHEMA


def smooth_image(seed, height=27, width=22):
    """A picture of soft blotches: compresses like a photograph, and no two seeds agree."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 4, 3), np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def jpeg(seed, height=27, width=22, **settings):
    return simplejpeg.encode_jpeg(smooth_image(seed, height, width), **settings)


class OfficialCeleba:
    """Writes a folder in CelebA's official layout. Change the fields, then `write`."""

    def __init__(self, folder: Path, splits: dict[str, int]) -> None:
        self.folder = folder
        self.keys = [f"{i + 1:06d}.jpg" for i in range(sum(splits.values()))]
        self.labels = np.random.default_rng(0).integers(0, 2, (len(self.keys), 40)).astype(np.uint8)
        self.partition = [value for value, count in splits.items() for _ in range(count)]
        self.images = {key: jpeg(i) for i, key in enumerate(self.keys)}
        self.header = list(SCHEMA.attributes)
        self.count = str(len(self.keys))

    def attribute_lines(self):
        rows = (" ".join("1" if v else "-1" for v in row) for row in self.labels)
        return [
            self.count,
            " ".join(self.header) + " ",  # the official header ends in a blank
            *(f"{key}  {row}" for key, row in zip(self.keys, rows, strict=True)),
        ]

    def partition_lines(self):
        return [f"{key} {value}" for key, value in zip(self.keys, self.partition, strict=True)]

    def write(self, *, zipped=True, nested=False, attributes=None, partition=None):
        """Writes everything; `attributes` and `partition` replace the lines of the text files."""
        places = {name: self.folder / name if nested else self.folder for name in ("Anno", "Eval", "Img")}
        for place in places.values():
            place.mkdir(parents=True, exist_ok=True)
        attributes = self.attribute_lines() if attributes is None else attributes
        partition = self.partition_lines() if partition is None else partition
        (places["Anno"] / "list_attr_celeba.txt").write_text("\n".join(attributes) + "\n")
        (places["Eval"] / "list_eval_partition.txt").write_text("\n".join(partition) + "\n")
        self._write_images(places["Img"], zipped)
        return self.folder

    def _write_images(self, place, zipped):
        if zipped:
            with zipfile.ZipFile(place / "img_align_celeba.zip", "w") as archive:
                for key, data in self.images.items():
                    archive.writestr(f"img_align_celeba/{key}", data)
            return
        (place / "img_align_celeba").mkdir(exist_ok=True)
        for key, data in self.images.items():
            (place / "img_align_celeba" / key).write_bytes(data)
