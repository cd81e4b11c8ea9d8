"""Factors -> the label vector: an attribute is present if any object has it, or the scene does."""

from __future__ import annotations

import numpy as np
from jaxtyping import UInt8

from input_pipeline.scenes.draws import Draws
from input_pipeline.scenes.records import Factors
from input_pipeline.scenes.vocabulary import SCHEMA

SEVERAL = 3  # objects


def present(factors: Factors) -> frozenset[str]:
    """The names of what is there; a few, such as soft light, are no attributes."""
    names = {str(factors.background), str(factors.light.kind), str(factors.arrangement)}
    for item in factors.objects:
        look = item.look
        names |= {look.colour, look.material, look.shape, look.texture, item.place.size}
    if len(factors.objects) == 1:
        names.add("single_object")
    if len(factors.objects) >= SEVERAL:
        names.add("several_objects")
    return frozenset(names)


def exact(factors: Factors) -> UInt8[np.ndarray, "A"]:
    """The true labels, uint8 [A] in {0, 1}, in the order of `SCHEMA`."""
    names = present(factors)
    return np.array([name in names for name in SCHEMA.attributes], np.uint8)


def noisy(labels: UInt8[np.ndarray, "A"], draws: Draws, probability: float) -> UInt8[np.ndarray, "A"]:
    """The labels, each flipped with the given probability."""
    return labels ^ (draws.array(len(labels)) < probability)
