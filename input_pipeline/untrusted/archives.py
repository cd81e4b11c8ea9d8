"""Reading files out of zip and tar archives and folders, without unpacking and without trusting them.

An archive is inspected as a whole when it is opened, before any member is read. One bad member refuses all of
it: absolute paths, `..`, backslashes, links, devices, encrypted or sparse members, compression within a zip
other than deflate, two members of one name, or more and larger members than `Limits` allows. A member takes
no more memory than it claims. Nothing is written to disk, but for a compressed tar, which is unpacked into a
temporary file when its members are read, if there is room.
"""

from __future__ import annotations

import bz2
import dataclasses
import gzip
import io
import lzma
import os
import re
import shutil
import stat
import tarfile
import tempfile
import threading
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import IO, Protocol

from input_pipeline.errors import DataError
from input_pipeline.room import cannot_write, check_room
from input_pipeline.untrusted.bounded import from_environment

# A decompressor's own complaints about damaged input, beside OSError and EOFError.
_DAMAGE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    OSError,
    NotImplementedError,
)

_TAR_HEADER_BYTES = _TAR_FILLING_BYTES = 1 << 20
_ROOM = (
    "make room there, set TMPDIR to a folder that has it, or unpack the archive yourself and give its folder"
)
_MAGIC = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}


@dataclasses.dataclass(frozen=True)
class Limits:
    """What an archive may claim before it is taken for a bomb. The defaults leave room for large data sets.

    A user changes them by environment variables, `WSCA_ARCHIVE_MEMBERS` and so on.

    Attributes:
      members: number of files.
      member_bytes: size of one file unpacked; files are read into memory whole.
      total_bytes: size of all files unpacked.
      ratio: total unpacked size over the archive's size, once the total exceeds `ratio_from_bytes`.
    """

    members: int = 2_000_000
    member_bytes: int = 1 << 30
    total_bytes: int = 1 << 39
    ratio: float = 200.0
    ratio_from_bytes: int = 1 << 26


class Archive(Protocol):
    """Files by name. `read` may be called from several threads."""

    path: Path

    def names(self) -> tuple[str, ...]:
        """Relative paths with forward slashes, in stored order (sorted in a folder)."""

    def read(self, name: str) -> bytes:
        """The file's bytes. Raises DataError where the name is missing or the bytes are damaged."""

    def close(self) -> None: ...


def open_archive(path: Path, limits: Limits | None = None) -> Archive:
    """Opens a zip, a tar (plain, gz, bz2, xz) or a folder, told apart by content.

    Args:
      path: where it is.
      limits: what it may claim; None for what the environment says, or the defaults.

    Raises:
      DataError: nothing there, not an archive, damaged, or refused (see the module).
    """
    limits = limits or from_environment(Limits, "WSCA_ARCHIVE")
    if path.is_dir():
        return FolderArchive(path)
    if not path.is_file():
        raise DataError(f"{path}: expected a zip, a tar or a folder, found nothing; check the path")
    if zipfile.is_zipfile(path):
        return ZipArchive(path, limits)
    return TarArchive(path, limits)


class FolderArchive:
    """The files below a folder. The folder is the user's own, so links in it are followed to files."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def names(self) -> tuple[str, ...]:
        found = (os.path.join(root, file) for root, _, files in os.walk(self.path) for file in files)
        return tuple(sorted(Path(file).relative_to(self.path).as_posix() for file in found))

    def read(self, name: str) -> bytes:
        try:
            return (self.path / _safe_name(self.path, name)).read_bytes()
        except FileNotFoundError:
            raise _missing(self.path, name) from None
        except OSError as error:
            raise DataError(f"{self.path / name}: cannot be read: {error.strerror}") from error

    def close(self) -> None:
        pass


class ZipArchive:
    """The members of a zip file, in any order."""

    def __init__(self, path: Path, limits: Limits) -> None:
        self.path = path
        self._lock = threading.Lock()
        try:
            self._zip = zipfile.ZipFile(path)
        except _DAMAGE as error:
            raise _damaged(path, error) from error
        guard = _Guard(path, limits)
        self._members = {}
        for info in self._zip.infolist():
            name = guard.name(info.orig_filename)
            if not info.is_dir():
                guard.admit(name, info.file_size, _zip_complaint(info))
                self._members[name] = info
        guard.finish()

    def names(self) -> tuple[str, ...]:
        return tuple(self._members)

    def read(self, name: str) -> bytes:
        if name not in self._members:
            raise _missing(self.path, name)
        try:
            with self._lock, self._zip.open(self._members[name]) as member:
                # Without a size all that is packed would be unpacked at once, whatever the member claims. One
                # byte more than that reaches the check of its sum.
                return member.read(self._members[name].file_size + 1)
        except (*_DAMAGE, RuntimeError) as error:
            raise _damaged(self.path, error, name) from error

    def close(self) -> None:
        self._zip.close()


class TarArchive:
    """The members of a tar file. A compressed one is read to its end to see what it claims, and unpacked into
    a temporary file without a name when a member is asked for: every read backwards would start over.
    """

    def __init__(self, path: Path, limits: Limits) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._file = _HeaderReader(path)
        self._members: dict[str, tarfile.TarInfo] = {}
        try:
            self._tar = tarfile.TarFile(fileobj=self._file)  # type: ignore[arg-type]
            self._scan(_Guard(path, limits))
        except _DAMAGE as error:
            self._file.close()
            raise _damaged(path, error) from error
        except DataError:
            self._file.close()
            raise
        self._file.limit = None

    def _scan(self, guard: _Guard) -> None:
        # Each header is judged before the next is looked for, which decompresses all that lies between.
        while (info := self._tar.next()) is not None:
            name = guard.name(info.name)
            if not info.isdir():
                guard.admit(name, info.size, _tar_complaint(info))
                self._members[name] = info
        guard.finish()
        self._file.seek(self._tar.offset)
        if self._file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("cut short: the end mark is missing")
        self._file.finish()

    def names(self) -> tuple[str, ...]:
        return tuple(self._members)

    def read(self, name: str) -> bytes:
        if name not in self._members:
            raise _missing(self.path, name)
        info = self._members[name]
        try:
            with self._lock:
                if info.offset_data < self._file.tell():
                    self._file.unpack()
                self._file.seek(info.offset_data)
                data = self._file.read(info.size)
        except _DAMAGE as error:
            raise _damaged(self.path, error, name) from error
        if len(data) != info.size:
            raise _damaged(self.path, EOFError(f"{len(data)} of {info.size} bytes"), name)
        return data

    def close(self) -> None:
        self._tar.close()
        self._file.close()


class _HeaderReader:
    """The decompressed tar. While `limit` is set no read may exceed it: a header can claim any length."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            start = file.read(8)
        opener = next((opener for magic, opener in _MAGIC.items() if start.startswith(magic)), io.open)
        self._file: IO[bytes] = opener(path, "rb")  # type: ignore[operator]
        self._path, self._compressed = path, opener is not io.open
        self._size = 0  # decompressed, known once the end has been seen
        self.limit: int | None = _TAR_HEADER_BYTES

    def read(self, size: int = -1) -> bytes:
        if self.limit is not None and not 0 <= size <= self.limit:
            raise _refused(self._path, f"a header claims {size} bytes, the limit is {self.limit}")
        return self._file.read(size)

    def seek(self, offset: int) -> int:
        return self._file.seek(offset)

    def tell(self) -> int:
        return self._file.tell()

    def finish(self) -> None:
        """Reads to the end, where a compressed file has its checksum; what a tar fills up with is short."""
        left = _TAR_FILLING_BYTES
        while part := self.read(tarfile.RECORDSIZE):
            left -= len(part)
            if left < 0:
                raise _refused(self._path, f"more than {_TAR_FILLING_BYTES} bytes follow its end mark")
        self._size = self.tell()

    def unpack(self) -> None:
        """Makes reading anywhere cheap. Within the limits: the whole was decompressed to see its headers."""
        if not self._compressed:
            return
        place = tempfile.gettempdir()
        check_room(Path(place), self._size, f"{self._path}: its files, to be unpacked into {place},", _ROOM)
        unpacked: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # open as long as the archive
        try:
            self._file.seek(0)
            shutil.copyfileobj(self._file, unpacked, 1 << 20)
        except OSError as error:
            unpacked.close()
            if error.errno is None:  # a decompressor's, not the disk's
                raise
            raise cannot_write(
                error, f"{self._path}: cannot be unpacked into {place}: {error}; {_ROOM}"
            ) from error
        self._file.close()
        self._file, self._compressed = unpacked, False

    def close(self) -> None:
        self._file.close()


class _Guard:
    """Keeps count of what an archive claims, and refuses it at the first offence."""

    def __init__(self, path: Path, limits: Limits) -> None:
        self._path, self._limits = path, limits
        self._archive_bytes = path.stat().st_size
        self._files: set[str] = set()
        self._entries = 0
        self._total = 0

    def name(self, name: str) -> str:
        """The member's normal name; every entry, folders too, passes here."""
        self._entries += 1
        if self._entries > self._limits.members:
            raise _refused(self._path, f"it has more than {self._limits.members} members")
        return _safe_name(self._path, name)

    def admit(self, name: str, size: int, complaint: str | None) -> None:
        """Counts a file of `size` bytes, against which there may be a complaint."""
        if complaint is not None:
            raise _refused(self._path, f"member {name!r} is {complaint}")
        if name in self._files:
            raise _refused(self._path, f"two members are called {name!r}")
        if not 0 <= size <= self._limits.member_bytes:
            raise _refused(
                self._path, f"member {name!r} claims {size} bytes, the limit is {self._limits.member_bytes}"
            )
        self._files.add(name)
        self._total += size
        self._check_total()

    def _check_total(self) -> None:
        limits, total = self._limits, self._total
        if total > limits.total_bytes:
            raise _refused(self._path, f"it claims {total} bytes unpacked, the limit is {limits.total_bytes}")
        if total > limits.ratio_from_bytes and total > limits.ratio * self._archive_bytes:
            raise _refused(self._path, f"it unpacks to more than {limits.ratio:g} times its size")

    def finish(self) -> None:
        """Refuses a file that stands where a folder must."""
        for name in self._files:
            for parent in PurePosixPath(name).parents:
                if str(parent) in self._files:
                    raise _refused(self._path, f"{str(parent)!r} is a file and a folder at once")


def _safe_name(path: Path, name: str) -> str:
    """The name without `.` and doubled slashes. Raises DataError for one that could lead anywhere else."""
    parts = name.split("/")
    if name.startswith("/") or re.match("[A-Za-z]:", name):
        raise _refused(path, f"member {name!r} has an absolute path")
    if ".." in parts:
        raise _refused(path, f"member {name!r} leads out of the archive")
    if "\\" in name or "\0" in name:
        raise _refused(path, f"member {name!r} has a backslash or a zero byte in its name")
    return "/".join(part for part in parts if part not in ("", "."))


def _zip_complaint(info: zipfile.ZipInfo) -> str | None:
    if info.flag_bits & 0x1:
        return "encrypted"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        # bzip2 and LZMA are unpacked without a bound: half a kilobyte can take a gigabyte of memory.
        return "compressed, but not by deflate (pack the files again with it)"
    # Unix permissions travel in the upper half; zero where the archive was made elsewhere.
    kind = stat.S_IFMT(info.external_attr >> 16)
    return None if kind in (0, stat.S_IFREG) else "a link or a device"


def _tar_complaint(info: tarfile.TarInfo) -> str | None:
    if not info.isreg():
        return "a link or a device"
    return "sparse" if info.issparse() else None


def _refused(path: Path, reason: str) -> DataError:
    return DataError(
        f"{path}: refused as unsafe: {reason}; nothing of it was used, get the archive from its origin "
        "(docs/input-pipeline.md says how to raise a limit)"
    )


def _damaged(path: Path, error: BaseException, name: str | None = None) -> DataError:
    member = "" if name is None else f"member {name!r} "
    return DataError(
        f"{path}: {member}cannot be read, the archive is damaged or no archive ({error}); get it again"
    )


def _missing(path: Path, name: str) -> DataError:
    return DataError(f"{path}: {name!r} is not in it")
