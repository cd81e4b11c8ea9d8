"""Weak supervision: which labels a training run may see, and which of them are wrong.

Every draw is a pure function of (seed, example key, attribute): the same in every epoch, on every host and
for every batch size. The draws are the output of SHAKE-128, so that attributes, examples and seeds are
independent of one another, and no draw depends on a label.
"""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
from jaxtyping import Bool, Float32, Float64, UInt8

from input_pipeline.classes import labels_from_rates
from input_pipeline.errors import DataError


def uniforms(seed: int, purpose: str, key: str, count: int) -> Float64[np.ndarray, "count"]:
    """Draws `count` independent numbers in [0, 1), the same for the same (seed, purpose, key).

    Args:
      seed: the protocol's seed.
      purpose: what the draws decide ("known", "flip"), so that two decisions never share a draw.
      key: the example's key.
      count: how many; the first k of `count` draws are the same for every count.
    """
    stream = hashlib.shake_128(f"{seed}/{purpose}/{key}".encode()).digest(8 * count)
    return (np.frombuffer(stream, "<u8") >> np.uint64(11)) * 2.0**-53


@dataclasses.dataclass(frozen=True)
class WeakLabels:
    """A weak-label protocol. Without settings it passes every label on.

    Class labels come first, then noise, then hiding: what a run sees are the labels of a careless annotator,
    who may have looked at classes only, and of which some are withheld.

    Attributes:
      seed: chooses the draws. Another seed is another, independent choice of labels.
      known_fraction: each (image, attribute) label is kept with this probability, independently.
      single_positive: one present attribute of each image is kept, chosen uniformly; all else is unknown. An
        image with no present attribute keeps nothing.
      flip_positive: probability that a present attribute is labelled absent.
      flip_negative: probability that an absent attribute is labelled present.
      class_level: labels are those of the example's class, whatever its own are: see `labels_from_rates`.
      class_present, class_absent: the share of a class's images from which on, and up to which, an attribute
        counts as present or absent in all of them; between the two it is unknown.

    Raises:
      DataError: a probability outside [0, 1], `single_positive` together with `known_fraction` below 1, or
        `class_present` not above `class_absent`.
    """

    seed: int = 0
    known_fraction: float = 1.0
    single_positive: bool = False
    flip_positive: float = 0.0
    flip_negative: float = 0.0
    class_level: bool = False
    class_present: float = 0.6
    class_absent: float = 0.4

    def __post_init__(self) -> None:
        for field in ("known_fraction", "flip_positive", "flip_negative", "class_present", "class_absent"):
            value = getattr(self, field)
            if not 0.0 <= value <= 1.0:  # also false for nan
                raise DataError(f"weak labels: {field} must be a probability in [0, 1], found {value}")
        if self.single_positive and self.known_fraction < 1.0:
            raise DataError(
                "weak labels: single_positive already hides all but one label; set known_fraction to 1, "
                f"found {self.known_fraction}"
            )
        if self.class_present <= self.class_absent:
            raise DataError(
                f"weak labels: class_present must be above class_absent, found {self.class_present} and "
                f"{self.class_absent}"
            )

    @property
    def hides(self) -> bool:
        """Whether any label becomes unknown."""
        return self.single_positive or self.known_fraction < 1.0 or self.class_level

    @property
    def noisy(self) -> bool:
        """Whether labels may be wrong."""
        return self.flip_positive > 0.0 or self.flip_negative > 0.0 or self.class_level

    @property
    def changes(self) -> bool:
        """Whether training sees anything but the truth."""
        return self.hides or self.noisy

    def apply(
        self,
        labels: UInt8[np.ndarray, "A"],
        known: Bool[np.ndarray, "A"],
        key: str,
        rates: Float32[np.ndarray, "A"] | None = None,
    ) -> tuple[UInt8[np.ndarray, "A"], Bool[np.ndarray, "A"]]:
        """What training sees of one example.

        Args:
          labels: uint8 [A] in {0, 1}, the truth.
          known: bool [A], what the data set itself knows.
          key: the example's key.
          rates: float32 [A], how common each attribute is in its class; `class_level` alone reads it.

        Returns:
          (labels, known): new arrays; labels are 0 wherever known is False.
        """
        if self.class_level:
            if rates is None:
                raise DataError(f"weak labels: class_level needs the class of {key}, which is not known")
            labels, known = labels_from_rates(rates, self.class_present, self.class_absent)
        labels = self._flip(labels, key)
        if self.single_positive:
            known = self._one_positive((labels != 0) & known, key)
        elif self.known_fraction < 1.0:
            known = known & (uniforms(self.seed, "known", key, len(known)) < self.known_fraction)
        return labels * known, known.copy()

    def _flip(self, labels: UInt8[np.ndarray, "A"], key: str) -> UInt8[np.ndarray, "A"]:
        if self.flip_positive == 0.0 and self.flip_negative == 0.0:
            return labels
        probability = np.where(labels, self.flip_positive, self.flip_negative)
        return labels ^ (uniforms(self.seed, "flip", key, len(labels)) < probability)

    def _one_positive(self, positive: Bool[np.ndarray, "A"], key: str) -> Bool[np.ndarray, "A"]:
        # The largest draw among the positives: uniform over them, and unmoved when another one disappears.
        draws = np.where(positive, uniforms(self.seed, "single", key, len(positive)), -1.0)
        kept = np.zeros(len(positive), np.bool_)
        kept[np.argmax(draws)] = True
        return kept & positive
