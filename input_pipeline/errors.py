"""What a data set can be guilty of. Each message names the file, the expected, the found, and what to do."""

from __future__ import annotations


class DataError(ValueError):
    """Data, or a setting about it, that cannot be used as it stands. The message is one line for the user."""


class NoRoomError(DataError):
    """A disk that is full, or too small for what is about to be written. Nothing is wrong with the data."""


class CorruptExampleError(DataError):
    """One example cannot be read. The rest of the data set may be fine, so a run may choose to skip it."""


class CorruptImageError(CorruptExampleError):
    """An image whose bytes do not decode in full."""


class CorruptRecordError(CorruptExampleError):
    """A record of prepared data that cannot be read back. The message names the shard and the record."""
