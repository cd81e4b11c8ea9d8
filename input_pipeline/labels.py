"""Label codes: one byte for what a data set says of one attribute of one example."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, UInt8

ABSENT, PRESENT, UNKNOWN = range(3)


def binary_codes(
    codes: UInt8[np.ndarray, "... A"],
) -> tuple[UInt8[np.ndarray, "... A"], Bool[np.ndarray, "... A"]]:
    """(labels, known) of the codes `ABSENT`, `PRESENT` and `UNKNOWN`."""
    return (codes == PRESENT).astype(np.uint8), codes != UNKNOWN
