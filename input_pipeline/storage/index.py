"""`index.npz` of prepared data: arrays about all examples at once, each read when asked for, and checked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Int

from input_pipeline.errors import DataError

INDEX = "index.npz"
WORDS = "words"  # of training captions, commonest first, parted by blanks

_PREPARE_AGAIN = "prepare the data again with `wsca prepare`"


class Index:
    """The index of one folder. May be read from several threads."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / INDEX

    def names(self) -> tuple[str, ...]:
        """Of all arrays. Raises DataError for a file that is no index."""
        try:
            with np.load(self._path, allow_pickle=False) as arrays:
                return tuple(arrays)
        except Exception as error:  # whatever a mangled zip can provoke
            raise self._damaged(error) from error

    def read(self, name: str, kind: str, shape: tuple[int | None, ...]) -> np.ndarray | None:
        """An array; None where there is none of that name.

        Args:
          kind: of its dtype: "i", "u" or "f".
          shape: None for a length that may be any.

        Raises:
          DataError: a file that is no index, or an array of another kind or shape.
        """
        try:
            with np.load(self._path, allow_pickle=False) as arrays:
                array = arrays.get(name)
        except Exception as error:  # whatever a mangled zip, or an array's header in it, can provoke
            raise self._damaged(error) from error
        if array is None:
            return None
        fits = array.ndim == len(shape) and all(
            n in (None, m) for n, m in zip(shape, array.shape, strict=True)
        )
        if array.dtype.kind != kind or not fits:
            expected = f"{kind} {['any' if n is None else n for n in shape]}"
            found = f"{array.dtype.kind} {list(array.shape)}"
            raise DataError(
                f"{self._path}: expected {name} to be {expected}, found {found}; {_PREPARE_AGAIN}"
            )
        return array

    def read_positions(self, name: str, length: int | None, below: int) -> Int[np.ndarray, "n"] | None:
        """An array of whole numbers from 0 on. Raises DataError as `read`, and for one outside."""
        positions = self.read(name, "i", (length,))
        if positions is not None and len(positions) and not 0 <= positions.min() <= positions.max() < below:
            raise DataError(
                f"{self._path}: expected {name} to hold numbers in 0..{below - 1}, found "
                f"{positions.min()} to {positions.max()}; {_PREPARE_AGAIN}"
            )
        return positions

    def _damaged(self, error: Exception) -> DataError:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        return DataError(f"{self._path}: damaged, cannot be read ({reason}); {_PREPARE_AGAIN}")
