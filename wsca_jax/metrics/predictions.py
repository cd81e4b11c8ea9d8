"""The rows that metrics are computed from: one per evaluated example."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int32, UInt8

from input_pipeline.batch import AttributeBatch


class Predictions(NamedTuple):
    """What a model said about M examples, beside what is true of them. Host arrays.

    Rows of weight 0 are padding or skipped examples: no metric ever reads them.

    Attributes:
      logits: float32 [M, A].
      labels: uint8 [M, A] in {0, 1}.
      known: bool [M, A]; entries that are False are never read.
      weight: float32 [M] in [0, 1].
      index: int32 [M], the example's position in its source; -1 for padding.
    """

    logits: Float32[np.ndarray, "M A"]
    labels: UInt8[np.ndarray, "M A"]
    known: Bool[np.ndarray, "M A"]
    weight: Float32[np.ndarray, "M"]
    index: Int32[np.ndarray, "M"]  # type: ignore[assignment]  # hides tuple.index on purpose

    @classmethod
    def empty(cls, num_attributes: int) -> Predictions:
        """No rows, of `num_attributes` attributes."""
        return cls(
            logits=np.zeros((0, num_attributes), np.float32),
            labels=np.zeros((0, num_attributes), np.uint8),
            known=np.zeros((0, num_attributes), bool),
            weight=np.zeros(0, np.float32),
            index=np.zeros(0, np.int32),
        )

    @classmethod
    def from_batch(cls, logits: Any, batch: AttributeBatch) -> Predictions:
        """The rows of one batch; fetches what still lies on a device.

        Args:
          logits: [B, A], any float type.
          batch: the batch they were computed from.
        """
        return cls(
            logits=np.asarray(logits).astype(np.float32),
            labels=np.asarray(batch.labels, np.uint8),
            known=np.asarray(batch.known, bool),
            weight=np.asarray(batch.weight, np.float32),
            index=np.asarray(batch.index, np.int32),
        )

    def update(self, logits: Any, batch: AttributeBatch) -> Predictions:
        """These rows and those of one more batch. Over many batches, `merge` a list: it copies once."""
        return merge([self, Predictions.from_batch(logits, batch)])


def merge(parts: Sequence[Predictions]) -> Predictions:
    """Concatenates rows of batches or hosts, in any order."""
    if not parts:
        raise ValueError("nothing to merge: no predictions were made")
    return Predictions(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))
