"""The knobs of Scenes."""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

from input_pipeline.errors import DataError

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
MAX_OBJECTS = 4


@dataclasses.dataclass(frozen=True)
class Options:
    """Settings of Scenes. A value that does not fit raises `DataError`.

    Attributes:
      size: height and width of the images, in pixels.
      train_images, validation_images, test_images: images per split. Image i does not depend on them.
      min_objects, max_objects: how many objects an image shows, within 1..4; four are rare.
      material_background: strength in 0..1 of a spurious correlation. With this probability an object takes
        the material that goes with the scene's background, otherwise any material, all alike.
      colour_shape: likewise, with this probability an object takes a colour that goes with its shape.
      correlated_evaluation: whether the validation and test splits have these correlations too. Off by
        default: a model that leans on a spurious correlation is then found out.
      label_noise: probability in 0..1 that a label of the train split is flipped, i.i.d. per image and
        attribute. `Scene.labels` keeps the truth, and evaluation splits are always exact.
      seed: another seed is another world. Splits of one seed never share an image's random numbers.
      cache_megabytes: memory for rendered images, per split; 0 renders anew each time.
    """

    size: int = 64
    train_images: int = 4096
    validation_images: int = 1024
    test_images: int = 1024
    min_objects: int = 1
    max_objects: int = MAX_OBJECTS
    material_background: float = 0.0
    colour_shape: float = 0.0
    correlated_evaluation: bool = False
    label_noise: float = 0.0
    seed: int = 0
    cache_megabytes: int = 256

    def __post_init__(self) -> None:
        _expect_integer(self, "size", 16, 1024)
        for split in SPLITS:
            _expect_integer(self, f"{split}_images", 1, 2**31 - 1)
        _expect_integer(self, "min_objects", 1, MAX_OBJECTS)
        _expect_integer(self, "max_objects", self.min_objects, MAX_OBJECTS)
        for name in ("material_background", "colour_shape", "label_noise"):
            _expect_fraction(self, name)
        _expect_integer(self, "seed", 0, 2**32 - 1)
        _expect_integer(self, "cache_megabytes", 0, 2**20)

    def images(self, split: Split) -> int:
        """The number of images in a split."""
        return {
            "train": self.train_images,
            "validation": self.validation_images,
            "test": self.test_images,
        }[split]

    def correlated(self, split: Split) -> bool:
        """Whether the spurious correlations apply to a split."""
        return split == "train" or self.correlated_evaluation


def _expect_integer(options: Options, name: str, low: int, high: int) -> None:
    value = getattr(options, name)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise DataError(f"scenes: option {name} is {value!r}, expected a whole number from {low} to {high}")


def _expect_fraction(options: Options, name: str) -> None:
    value = getattr(options, name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise DataError(f"scenes: option {name} is {value!r}, expected a number from 0 to 1")
