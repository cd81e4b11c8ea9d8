"""Many strings in little memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import overload

import numpy as np


class CompactStrings(Sequence[str]):
    """N strings as their UTF-8 bytes, end to end, and 8 bytes each for where one ends.

    A million image names of 30 characters are 38 MB, where a list of them is 90. Strings are added at the
    end; reading is safe from several threads once all are there.
    """

    def __init__(self, strings: Iterable[str] = ()) -> None:
        self._text = bytearray()
        self._ends = bytearray(8)  # int64 [N + 1]: N ends, after the first one's beginning
        self.extend(strings)

    def extend(self, strings: Iterable[str]) -> None:
        encoded = [string.encode() for string in strings]
        ends = accumulate(map(len, encoded), initial=len(self._text))
        next(ends)
        self._ends += np.fromiter(ends, np.int64, len(encoded)).tobytes()
        self._text += b"".join(encoded)

    @property
    def has_text(self) -> bool:
        """Whether any string is not empty."""
        return len(self._text) > 0

    @property
    def nbytes(self) -> int:
        """Bytes of the strings and their ends."""
        return len(self._text) + len(self._ends)

    def __len__(self) -> int:
        return len(self._ends) // 8 - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        row = range(len(self))[index]  # negative ones count from the end; raises IndexError
        start, end = np.frombuffer(self._ends, np.int64, 2, 8 * row)
        return self._text[start:end].decode()


class OptionalStrings(Sequence[str | None]):
    """N strings of which an empty one reads as None."""

    def __init__(self, strings: Sequence[str]) -> None:
        self._strings = strings

    def __len__(self) -> int:
        return len(self._strings)

    @overload
    def __getitem__(self, index: int) -> str | None: ...
    @overload
    def __getitem__(self, index: slice) -> list[str | None]: ...
    def __getitem__(self, index: int | slice) -> str | list[str | None] | None:
        if isinstance(index, slice):
            return [string or None for string in self._strings[index]]
        return self._strings[index] or None
