"""Checksums of a folder's files: the difference between a checkpoint and something that looks like one.

The storage library restores flipped bits without a word and lists a half-copied folder as a checkpoint. So
every finished step gets a `manifest.json`, and is only ever read if its files are the very ones listed.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from wsca_jax.engine.storage import write_atomically

NAME = "manifest.json"
FORMAT_VERSION = 1


def write(folder: Path) -> None:
    """Lists every file below `folder` with its size and SHA-256. The last thing that happens to a folder."""
    files = [
        {"path": path, "size": size, "sha256": _sha256(folder / path)}
        for path, size in _sizes(folder).items()
    ]
    record = {"format_version": FORMAT_VERSION, "files": files}
    write_atomically(folder / NAME, json.dumps(record, indent=1))


def damage(folder: Path) -> str | None:
    """What is wrong with the files below `folder`, in a few words; None where all are as written."""
    try:
        return _difference(folder, _read(folder / NAME))
    except (ValueError, KeyError, TypeError) as error:
        return f"its {NAME} cannot be read ({error})"
    except FileNotFoundError as error:
        if Path(error.filename) == folder / NAME:
            return f"it has no {NAME}: a partial copy, or a save that never finished"
        return f"{error.filename} is missing"
    except OSError as error:
        return f"{error.filename} cannot be read ({error.strerror})"


def _difference(folder: Path, listed: dict[str, tuple[int, str]]) -> str | None:
    found = _sizes(folder)
    for path in sorted(listed.keys() ^ found.keys()):
        return f"{path} is missing" if path in listed else f"{path} is not in its manifest"
    for path, (size, digest) in listed.items():
        if found[path] != size:
            return f"{path} holds {found[path]} bytes, expected {size}"
        if _sha256(folder / path) != digest:
            return f"{path} is not what was written: its SHA-256 differs"
    return None


def _read(path: Path) -> dict[str, tuple[int, str]]:
    record: Any = json.loads(path.read_text())
    if record["format_version"] != FORMAT_VERSION:
        raise ValueError(f"format version {record['format_version']}, expected {FORMAT_VERSION}")
    return {file["path"]: (file["size"], file["sha256"]) for file in record["files"]}


def _sizes(folder: Path) -> dict[str, int]:
    """{path relative to the folder: size} of every file but the manifest itself."""
    files = sorted(path for path in folder.rglob("*") if not path.is_dir() or path.is_symlink())
    return {
        path.relative_to(folder).as_posix(): path.lstat().st_size for path in files if path != folder / NAME
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
