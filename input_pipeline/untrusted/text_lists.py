"""Text lists of official distributions: their lines, and how a wrong one is named."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from input_pipeline.errors import DataError

_GET_AGAIN = "get the official file again"


class Text(NamedTuple):
    """A text file: where it lies, for messages, and its bytes."""

    where: str
    data: bytes

    @classmethod
    def read(cls, path: Path) -> Text:
        """Raises DataError where the file cannot be read."""
        try:
            return cls(str(path), path.read_bytes())
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from error

    def wrong(self, line: int, complaint: str) -> DataError:
        return DataError(f"{self.where}, line {line}: {complaint}; {_GET_AGAIN}")

    def lines(self) -> list[str]:
        """Blank lines at the end do not count; there is always a first line."""
        data = self.data.rstrip()
        try:
            return [line.rstrip("\r") for line in data.decode().split("\n")]
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            raise self.wrong(line, "expected plain text, found bytes that are none") from error


def is_number(value: str | bytes) -> bool:
    """Whether it is a whole number that fits 32 bits: digits, and nothing else."""
    return value.isascii() and value.isdigit() and len(value) < 10
