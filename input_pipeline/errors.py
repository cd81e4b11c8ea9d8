"""What a data set can be guilty of. Each message names the file, the expected, the found, and what to do."""

from __future__ import annotations


class DataError(ValueError):
    """Data that cannot be used as it stands. The message is one line for the user."""


class CorruptImageError(DataError):
    """An image whose bytes do not decode in full."""
