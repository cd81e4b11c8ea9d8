"""COCO Attributes' official files, small, made from nothing."""

import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
from official_files import jpeg

from input_pipeline.coco_attributes.lexicon import ATTRIBUTES

HEIGHT, WIDTH = 48, 64


class OfficialCoco:
    """Writes a folder in the official layout. Change the fields, then `write`.

    Objects have annotation ids 900, 901, ... and patch ids 10, 11, ...; two stand in each image.
    """

    def __init__(self, folder: Path, train: int = 4, val: int = 4) -> None:
        self.folder = folder
        self.splits = ["train2014"] * train + ["val2014"] * val
        count = len(self.splits)
        self.annotations = [900 + i for i in range(count)]
        self.patches = [10 + i for i in range(count)]
        self.votes = np.random.default_rng(0).integers(0, 4, (count, 204)) / 3.0
        self.boxes = [[float(i) + 0.5, 2.0, 10.25, 20.0] for i in range(count)]  # x, y, width, height
        self.image_ids = [500 + i // 2 for i in range(count)]
        self.category_ids = [(1, 18)[i % 2] for i in range(count)]
        self.categories = [{"id": 1, "name": "person"}, {"id": 18, "name": "dog"}]
        # Ids that neither start at 0 nor stand in order: vectors follow their order, not the list's.
        self.attributes = [{"id": 7 + 2 * i, "name": name, "more": i} for i, name in enumerate(ATTRIBUTES)]
        self.attributes.reverse()
        self.images = {self.file(i): jpeg(self.image_ids[i], HEIGHT, WIDTH) for i in range(count)}

    def file(self, row):
        return f"COCO_{self.splits[row]}_{self.image_ids[row]:012d}.jpg"

    def by_patch(self):
        """The first published layout."""
        return {
            "ann_vecs": {patch: votes.copy() for patch, votes in zip(self.patches, self.votes, strict=True)},
            "patch_id_to_ann_id": dict(zip(self.patches, self.annotations, strict=True)),
            "split": dict(zip(self.patches, self.splits, strict=True)),
            "attributes": self.attributes,
        }

    def by_annotation(self):
        """The second published layout."""
        rows = zip(self.annotations, self.votes, self.splits, strict=True)
        return {
            "ann_attrs": {ann: {"attrs_vector": list(votes), "split": split} for ann, votes, split in rows},
            "attributes": self.attributes,
        }

    def instances(self, split):
        rows = [row for row, its in enumerate(self.splits) if its == split]
        images = {self.image_ids[row]: self.file(row) for row in rows}
        return {
            "info": {"year": 2014},
            "images": [
                {"id": i, "file_name": file, "height": HEIGHT, "width": WIDTH} for i, file in images.items()
            ],
            "annotations": [
                {
                    "id": self.annotations[row],
                    "image_id": self.image_ids[row],
                    "category_id": self.category_ids[row],
                    "bbox": self.boxes[row],
                    "segmentation": [[1.5, 2.5, 3.5, 4.5]],
                    "area": 1.0,
                    "iscrowd": 0,
                }
                for row in [*rows, *rows[:1]]
            ],
            "categories": [{"supercategory": "any", **category} for category in self.categories],
        }

    def write(self, *, record=None, name="cocottributes_eccv_version.pkl", nested=False, zipped=True):
        """Writes everything; `record` replaces what is pickled."""
        instances = self.folder / "annotations" if nested else self.folder
        instances.mkdir(parents=True, exist_ok=True)
        (self.folder / name).write_bytes(pickle.dumps(record or self.by_patch(), protocol=2))
        for split in sorted(set(self.splits)):
            (instances / f"instances_{split}.json").write_text(json.dumps(self.instances(split), indent=1))
            self._write_images(split, zipped)
        return self.folder

    def _write_images(self, split, zipped):
        images = {name: data for name, data in self.images.items() if split in name}
        if zipped:
            with zipfile.ZipFile(self.folder / f"{split}.zip", "w") as archive:
                for name, data in images.items():
                    archive.writestr(f"{split}/{name}", data)
            return
        (self.folder / split).mkdir(exist_ok=True)
        for name, data in images.items():
            (self.folder / split / name).write_bytes(data)
