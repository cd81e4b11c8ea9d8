"""CelebA as a TensorFlow Datasets builder, written to ArrayRecord. Needs no TensorFlow.

Use `input_pipeline.celeba.prepare`, which adds the checksums that `verify` needs. This module is only
imported to prepare data: tensorflow-datasets is slow to import, and reading prepared data does without it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

from input_pipeline import celeba_files
from input_pipeline.celeba import SCHEMA


class CelebaAttributes(tfds.core.GeneratorBasedBuilder):
    """Aligned face images with 40 binary attributes each; splits as far as the source has them."""

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Put list_attr_celeba.txt, list_eval_partition.txt and img_align_celeba.zip into the manual folder."
    )

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            homepage="https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html",
            disable_shuffling=True,  # records stay in the official order
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
                    "labels": tfds.features.Tensor(
                        shape=(SCHEMA.num_attributes,),
                        dtype=np.uint8,
                        encoding=tfds.features.Encoding.BYTES,
                    ),
                    "key": tfds.features.Text(),
                    "sha256": tfds.features.Text(),
                }
            ),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        paths = celeba_files.find(Path(dl_manager.manual_dir))
        listing = celeba_files.read_listing(paths, SCHEMA.attributes)
        images = celeba_files.Images(paths.images, listing.keys)
        return {
            split: self._generate_examples(paths.images, images, listing, split) for split in listing.rows
        }

    def _generate_examples(
        self, path: Path, images: celeba_files.Images, listing: celeba_files.Listing, split: str
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for row in tqdm(listing.rows[split], desc=f"Preparing {split}", unit=" images", disable=None):
            key = listing.keys[row]
            image = images.read(key)
            celeba_files.check_image(path, key, image)
            yield (
                row,
                {
                    "image": image,
                    "labels": listing.labels[row],
                    "key": key,
                    "sha256": hashlib.sha256(image).hexdigest(),
                },
            )
