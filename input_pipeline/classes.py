"""Labels that come from an example's class: what is true of a species, a person or a product on the whole."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Bool, Float32, Int32, UInt8


@dataclasses.dataclass(frozen=True)
class ClassRates:
    """How common each attribute is in each class.

    Attributes:
      of: int32 [n], each example's class, by position in its source.
      rates: float32 [C, A] in [0, 1]; nan where nothing is known.
    """

    of: Int32[np.ndarray, "n"]
    rates: Float32[np.ndarray, "C A"]

    def of_example(self, index: int) -> Float32[np.ndarray, "A"]:
        return self.rates[self.of[index]]


def labels_from_rates(
    rates: Float32[np.ndarray, "... A"], present: float, absent: float
) -> tuple[UInt8[np.ndarray, "... A"], Bool[np.ndarray, "... A"]]:
    """(labels, known): present from a rate of `present` on, absent up to `absent`, unknown otherwise."""
    labels = rates >= present
    return labels.astype(np.uint8), labels | (rates <= absent)


def count_rates(
    labels: UInt8[np.ndarray, "n A"], known: Bool[np.ndarray, "n A"], of: Int32[np.ndarray, "n"], classes: int
) -> Float32[np.ndarray, "C A"]:
    """The share of a class's known labels that are positive; nan where it has none."""
    positives = np.zeros((classes, labels.shape[1]), np.int64)
    counts = np.zeros_like(positives)
    np.add.at(positives, of, labels & known)
    np.add.at(counts, of, known)
    with np.errstate(invalid="ignore"):
        return (positives / np.where(counts > 0, counts, np.nan)).astype(np.float32)
