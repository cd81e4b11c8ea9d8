"""Random numbers that are the same on every machine and with every later NumPy.

NumPy promises the streams of its bit generators, not those of `Generator.normal`, `choice` and the like.
So everything here is derived from uniform doubles, which are a fixed function of the raw stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")


class Draws:
    """One named stream of random choices.

    Args:
      key: non-negative integers that name the stream; equal keys give equal streams.
    """

    def __init__(self, *key: int) -> None:
        self._generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        return low + (high - low) * self._generator.random()

    def chance(self, probability: float) -> bool:
        """True with the given probability; never at 0, always at 1."""
        return self._generator.random() < probability

    def pick(self, choices: Sequence[T]) -> T:
        """One of the choices, all alike."""
        return choices[int(self._generator.random() * len(choices))]

    def weighted(self, choices: Sequence[T], weights: Sequence[float]) -> T:
        """One of the choices, in proportion to the weights."""
        threshold = self._generator.random() * sum(weights)
        for choice, weight in zip(choices, weights, strict=True):
            threshold -= weight
            if threshold < 0:
                return choice
        return choices[-1]

    def array(self, *shape: int) -> np.ndarray:
        """Uniform float64 numbers in [0, 1)."""
        return self._generator.random(shape)
