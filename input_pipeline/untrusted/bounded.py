"""Bounds for reading a file that nobody vouches for: its size once unpacked, and the memory it may take."""

from __future__ import annotations

import bz2
import contextlib
import dataclasses
import gzip
import io
import lzma
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, Protocol, TypeVar

from input_pipeline.errors import DataError

try:
    import resource
except ImportError:  # not a Unix
    resource = None  # type: ignore[assignment]

_CHUNK = 1 << 20

Limits = TypeVar("Limits")


def from_environment(limits: type[Limits], prefix: str) -> Limits:
    """Limits as the user wants them: each from the environment variable PREFIX_FIELD, else its default.

    Args:
      limits: a dataclass of numbers, all with defaults.
      prefix: of the variables' names, such as "WSCA_ARCHIVE".

    Raises:
      DataError: a variable is no number above 0.
    """
    fields = dataclasses.fields(limits)  # type: ignore[arg-type]
    names = {field.name: f"{prefix}_{field.name.upper()}" for field in fields}
    given = {field: os.environ[name] for field, name in names.items() if name in os.environ}
    return limits(**{field: _number(names[field], text) for field, text in given.items()})


def _number(name: str, text: str) -> float:
    try:
        value = float(text) if "." in text else int(text)
    except ValueError:
        value = 0
    if not value > 0:
        raise DataError(f"{name}={text}: expected a number above 0; set it to one, or unset it")
    return value


@contextlib.contextmanager
def open_unpacked(path: Path, limit: int) -> Iterator[IO[bytes]]:
    """A file from its beginning, unpacked if its first bytes are those of zlib, gzip, bz2, xz or lzma.

    Raises:
      DataError: another form of compression that cannot be read, or more than `limit` bytes unpacked.
      OSError, EOFError, zlib.error, lzma.LZMAError: no file, or a damaged one, also while it is read.
    """
    with path.open("rb") as file:
        start = file.peek(32)
        for magic, reason in _NOT_READ.items():
            if start.startswith(magic):
                raise DataError(f"{path}: {reason}")
        unpack = next((unpack for magic, unpack in _MAGIC.items() if start.startswith(magic)), None)
        source: _Readable = unpack(file) if unpack else file
        with io.BufferedReader(_Counted(source, path, limit), _CHUNK) as stream:
            yield stream


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


class _Zlib:
    """A stream of zlib, which the standard library unpacks piece by piece only."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._zlib = zlib.decompressobj()

    def read(self, size: int, /) -> bytes:
        data = b""
        while not data and not self._zlib.eof:
            packed = self._zlib.unconsumed_tail or self._file.read(_CHUNK)
            if not packed:
                raise EOFError("cut short within compressed data")
            data = self._zlib.decompress(packed, size)
        return data


class _Counted(io.RawIOBase):
    """Passes on what the source gives until that exceeds the limit."""

    def __init__(self, source: _Readable, path: Path, limit: int) -> None:
        self._source, self._path, self._limit = source, path, limit
        self._left = limit

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._source.read(len(buffer))
        self._left -= len(data)
        if self._left < 0:
            raise DataError(
                f"{self._path}: refused as unsafe: it unpacks to more than {self._limit} bytes; "
                "get the file from its origin (docs/input-pipeline.md says how to raise the limit)"
            )
        buffer[: len(data)] = data
        return len(data)


_MAGIC: dict[bytes, Callable[[IO[bytes]], Any]] = {
    b"\x78": _Zlib,
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
    b"BZ": bz2.BZ2File,
    b"\xfd7zXZ": lzma.LZMAFile,
    b"\x5d\x00": lzma.LZMAFile,
}
_NOT_READ = {
    b"\x04\x22\x4d\x18": "is compressed by lz4; unpack it with the lz4 program",
    b"ZF": "is of joblib before 0.10; get a later version of the file",
    b"version https://git-lfs": "is Git LFS's pointer to the file, not the file; run `git lfs pull` there",
}


@contextlib.contextmanager
def memory_limit(allowance: int | None) -> Iterator[None]:
    """Lets the process's address space grow by so many bytes and no further; then comes MemoryError.

    Of the whole process, all its threads. Does nothing for None, or where the system has no such limit.
    """
    statistics = Path("/proc/self/statm")
    if allowance is None or resource is None or not statistics.exists():
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(statistics.read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    ceilings = [used + allowance, *(limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY)]
    resource.setrlimit(resource.RLIMIT_AS, (min(ceilings), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
