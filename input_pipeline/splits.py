"""Validation images for a data set that has none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int64

from input_pipeline.weak_labels import uniforms

SHARE = 0.1

Splits = Mapping[str, Int64[np.ndarray, "n"]]


def with_validation(splits: Splits, keys: Sequence[str]) -> dict[str, Int64[np.ndarray, "n"]]:
    """Moves about a tenth of the training images to a split "validation", where there is none.

    Whether an image moves depends on its key alone: it is the same in every run, and for every subset of the
    data. Only where none would move, of two or more, one does. Other images stay where they are, and a split
    that would be empty is left out.
    """
    train = splits.get("train", np.empty(0, np.int64))
    if "validation" in splits or not len(train):
        return dict(splits)
    draws = np.array([uniforms(0, "validation", keys[row], 1)[0] for row in train.tolist()])
    moves = draws < SHARE
    if len(train) > 1 and not moves.any():
        moves[np.argmin(draws)] = True
    others = {name: rows for name, rows in splits.items() if name != "train"}
    return present({"train": train[~moves], "validation": train[moves], **others})


def present(splits: Splits) -> dict[str, Int64[np.ndarray, "n"]]:
    """The splits that hold any image."""
    return {name: rows for name, rows in splits.items() if len(rows)}
