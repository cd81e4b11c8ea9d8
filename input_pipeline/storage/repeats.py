"""Which images stand in two splits, found among millions in little memory."""

from __future__ import annotations

from array import array
from collections.abc import Iterator

import numpy as np

from input_pipeline.storage.compact import CompactStrings

_BYTES = 16  # of a digest: two of 10^9 images share these by chance once in 10^20 times


class Repeats:
    """Takes images one by one; keeps 25 bytes and the name of each, and no objects."""

    def __init__(self) -> None:
        self._splits: list[str] = []
        self._split_of, self._keys, self._digests = array("B"), CompactStrings(), bytearray()

    def add(self, split: str, key: str, digest: bytes) -> None:
        """An image of a split. The digest is of its content, at least 16 bytes; splits are at most 256."""
        if split not in self._splits:
            self._splits.append(split)
        self._split_of.append(self._splits.index(split))
        self._keys.extend([key])
        self._digests += digest[:_BYTES]

    def between_splits(self) -> Iterator[str]:
        """A line for each image that was added of another split first."""
        if not self._digests:
            return
        digests = np.frombuffer(self._digests, f"S{_BYTES}")
        _, first, group = np.unique(digests, return_index=True, return_inverse=True)
        before, split_of = first[group], np.frombuffer(self._split_of, np.uint8)
        for position in np.flatnonzero(split_of != split_of[before]).tolist():
            yield f"{self._name(position)} is the same image as {self._name(int(before[position]))}"

    def _name(self, position: int) -> str:
        return f"{self._keys[position]} in {self._splits[self._split_of[position]]}"
