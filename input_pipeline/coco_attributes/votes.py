"""The votes of COCO Attributes: the published pickle, its short form in a cache, and what counts as a label.

The pickle holds a dictionary in one of two layouts. Both have `attributes`, a list of {"id", "name", ...}: in
the order of the ids, their names are the order of every vector of votes.
  ann_vecs {patch: votes}, patch_id_to_ann_id {patch: annotation}, split {patch: "train2014" or "val2014"}
  ann_attrs {annotation: {"attrs_vector": votes, "split": ...}}
A vote is the share of annotators who said that the attribute is present, in [0, 1]; nan or -1 where nobody
was asked. A vector of zeros alone, or none at all, is an object on which nobody voted.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import reprlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int64, UInt8

from input_pipeline.coco_attributes.lexicon import ATTRIBUTES
from input_pipeline.errors import DataError
from input_pipeline.room import cannot_write
from input_pipeline.untrusted.unpickling import Limits, read_pickle

SPLITS = ("train2014", "val2014")
UNKNOWN = 255

_STEPS = 254
_TOLERANCE = 1e-6  # what the mean of a few votes may be off by
_ENDS = 1 << 20
_GET_AGAIN = "get the official file again"


@dataclasses.dataclass(frozen=True)
class Options:
    """What counts as a label. The published baseline parts present from absent at half of the votes.

    Attributes:
      positive: an attribute with this share of the votes, or more, is present.
      negative: one with less than this share is absent. A share between the two is unknown. Shares and both
        limits are rounded to a 254th before they are compared.

    Raises:
      DataError: limits that are not 0 <= negative <= positive <= 1, or a positive of 0.
    """

    positive: float = 0.5
    negative: float = 0.5

    def __post_init__(self) -> None:
        if not (0.0 <= self.negative <= self.positive <= 1.0 and self.positive > 0.0):
            raise DataError(
                "coco_attributes: expected shares of the votes 0 <= negative <= positive <= 1 and positive "
                f"above 0, found negative {self.negative} and positive {self.positive}"
            )


def decode_labels(
    codes: UInt8[np.ndarray, "*any A"], options: Options
) -> tuple[UInt8[np.ndarray, "*any A"], Bool[np.ndarray, "*any A"]]:
    """Labels out of codes.

    Args:
      codes: uint8, 255 where nobody voted, else the share of votes for the attribute in 254ths.
      options: which shares are labels.

    Returns:
      (labels, known): uint8 in {0, 1}, 0 wherever unknown; bool.
    """
    positive, negative = np.round(np.array([options.positive, options.negative]) * _STEPS)
    voted = codes != UNKNOWN
    present = voted & (codes >= positive)
    return present.astype(np.uint8), present | (voted & (codes < negative))


class Votes(NamedTuple):
    """N objects, in the file's order.

    Attributes:
      annotations: int64 [N], COCO's ids. One may come more than once.
      splits: uint8 [N], positions in SPLITS.
      codes: uint8 [N, 204], see `decode_labels`, in the order of ATTRIBUTES.
    """

    annotations: Int64[np.ndarray, "N"]
    splits: UInt8[np.ndarray, "N"]
    codes: UInt8[np.ndarray, "N 204"]


def read_votes(path: Path, cache: Path | None = None) -> Votes:
    """The votes of the pickle at `path`, by way of their short form in `cache`, which is written if need be.

    Raises:
      DataError: see `convert`.
    """
    if cache is None:
        return _read_pickle(path, None)
    short = cache / f"coco_attributes_{fingerprint(path)}.npz"
    votes = _read_short(short, fingerprint(path))
    return convert(path, short) if votes is None else votes


def convert(annotation: Path, output: Path, limits: Limits | None = None) -> Votes:
    """Reads the published pickle once and writes what is needed of it as an npz, whole or not at all.

    Memory: that of `unpickling.read_pickle`; about 8 GB where every vote was pickled as a NumPy scalar.

    Raises:
      DataError: an unsafe, damaged or unexpected pickle; an output that cannot be written.
    """
    votes = _read_pickle(annotation, limits)
    scratch = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with scratch.open("wb") as file:
            np.savez(file, fingerprint=np.array(fingerprint(annotation)), **votes._asdict())
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, output)
    except OSError as error:
        raise cannot_write(
            error, f"{output}: cannot be written: {error.strerror}; choose a folder that can"
        ) from error
    finally:
        with contextlib.suppress(OSError):  # where it could not be made, or was moved into place
            scratch.unlink()
    return votes


def fingerprint(path: Path) -> str:
    """Sixteen hexadecimal digits of a file's size and time and of its first and last MiB."""
    try:
        stat = path.stat()
        digest = hashlib.sha256(f"{stat.st_size} {stat.st_mtime_ns}".encode())
        with path.open("rb") as file:
            digest.update(file.read(_ENDS))
            file.seek(max(0, stat.st_size - _ENDS))
            digest.update(file.read(_ENDS))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    return digest.hexdigest()[:16]


def _read_short(path: Path, expected: str) -> Votes | None:
    """What `convert` wrote. None where that is not there, of another file or damaged: it is written again."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            votes = Votes(*(arrays[name] for name in Votes._fields))
            intact = str(arrays["fingerprint"]) == expected and _is_whole(votes)
    except Exception:  # whatever a mangled zip can provoke
        return None
    return votes if intact else None


def _is_whole(votes: Votes) -> bool:
    count = len(votes.annotations)
    shapes = ((count,), (count,), (count, len(ATTRIBUTES)))
    types = (np.int64, np.uint8, np.uint8)
    return all(a.shape == s and a.dtype == t for a, s, t in zip(votes, shapes, types, strict=True))


def _read_pickle(path: Path, limits: Limits | None) -> Votes:
    record = _text_keys(read_pickle(path, limits))
    if not isinstance(record, dict) or not ("ann_vecs" in record or "ann_attrs" in record):
        raise DataError(
            f"{path}: expected a dictionary with ann_vecs or ann_attrs, found {_described(record)}; "
            f"{_GET_AGAIN}"
        )
    columns = _columns(path, record.get("attributes"))
    patches = record["ann_vecs" if "ann_vecs" in record else "ann_attrs"]
    if not isinstance(patches, dict) or not patches:
        raise DataError(f"{path}: expected objects with votes, found {_described(patches)}; {_GET_AGAIN}")
    codes = np.full((len(patches), len(ATTRIBUTES)), UNKNOWN, np.uint8)
    annotations = np.empty(len(patches), np.int64)
    splits = np.empty(len(patches), np.uint8)
    for row, (patch, annotation, split, votes) in enumerate(_rows(record)):
        annotations[row] = _annotation(path, patch, annotation)
        splits[row] = _split(path, patch, split)
        if votes is not None:
            codes[row, columns] = _codes(path, patch, votes)
    return Votes(annotations, splits, codes)


def _rows(record: dict[str, Any]) -> Iterator[tuple[Any, Any, Any, Any]]:
    """(name in the file, annotation, split, votes) of each object; None for what is not there."""
    if "ann_vecs" in record:
        of_patch, splits = _as_dict(record.get("patch_id_to_ann_id")), _as_dict(record.get("split"))
        for patch, votes in record["ann_vecs"].items():
            yield patch, of_patch.get(patch), splits.get(patch), votes
        return
    for annotation, entry in record["ann_attrs"].items():
        fields = _as_dict(_text_keys(entry))
        yield annotation, annotation, fields.get("split"), fields.get("attrs_vector")


def _columns(path: Path, attributes: Any) -> Int64[np.ndarray, "204"]:
    """For each of the file's attributes, in the order of its vectors, its position in ATTRIBUTES."""
    try:
        entries = [_text_keys(entry) for entry in attributes]
        names = [
            _text(entry["name"]).strip() for entry in sorted(entries, key=lambda entry: int(entry["id"]))
        ]
    except (TypeError, ValueError, OverflowError, KeyError, AttributeError) as error:
        raise DataError(
            f"{path}: expected attributes, a list of dictionaries with id and name ({_brief(error)}); "
            f"{_GET_AGAIN}"
        ) from error
    if sorted(names) != sorted(ATTRIBUTES):
        differences = {
            "missing": [name for name in ATTRIBUTES if name not in names],
            "unknown": [name for name in names if name not in ATTRIBUTES],
            "repeated": sorted({name for name in names if names.count(name) > 1}),
        }
        said = [f"{kind} {ascii(', '.join(some))[1:200]}" for kind, some in differences.items() if some]
        raise DataError(
            f"{path}: expected the {len(ATTRIBUTES)} published attributes, found {len(names)}: "
            f"{'; '.join(said)}; {_GET_AGAIN}"
        )
    return np.array([ATTRIBUTES.index(name) for name in names], np.int64)


def _annotation(path: Path, patch: Any, annotation: Any) -> int:
    whole = isinstance(annotation, int) or (isinstance(annotation, float) and annotation.is_integer())
    if not whole or not 0 <= annotation < 1 << 62:
        raise DataError(
            f"{path}: object {_brief(patch)} has the annotation id {_brief(annotation)}, expected one of "
            f"COCO's; {_GET_AGAIN}"
        )
    return int(annotation)


def _split(path: Path, patch: Any, split: Any) -> int:
    name = _text(split)
    if not isinstance(name, str) or name not in SPLITS:
        raise DataError(
            f"{path}: object {_brief(patch)} has the split {_brief(name)}, expected {' or '.join(SPLITS)}; "
            f"{_GET_AGAIN}"
        )
    return SPLITS.index(name)


def _codes(path: Path, patch: Any, votes: Any) -> UInt8[np.ndarray, "204"]:
    shares = _shares(votes)
    if shares is None:
        raise DataError(
            f"{path}: object {_brief(patch)} has {_described(votes)} for votes, expected {len(ATTRIBUTES)} "
            f"numbers; {_GET_AGAIN}"
        )
    voted = ~(np.isnan(shares) | (shares == -1.0))
    wrong = voted & ~((shares >= -_TOLERANCE) & (shares <= 1.0 + _TOLERANCE))
    if wrong.any():
        raise DataError(
            f"{path}: object {_brief(patch)} has a vote of {shares[wrong][0]:g}, expected a share in 0..1, "
            f"or -1 or nan where nobody voted; {_GET_AGAIN}"
        )
    if not shares[voted].any():
        return np.full(len(ATTRIBUTES), UNKNOWN, np.uint8)
    steps = np.round(np.clip(np.where(voted, shares, 0.0), 0.0, 1.0) * _STEPS)
    return np.where(voted, steps, UNKNOWN).astype(np.uint8)


def _shares(votes: Any) -> Float64[np.ndarray, "204"] | None:
    """None where they are not 204 numbers; a None among them is a vote that nobody gave."""
    try:
        shares = np.asarray(votes, np.float64).reshape(-1)
    except (TypeError, ValueError, OverflowError):
        return None
    return shares if shares.shape == (len(ATTRIBUTES),) else None


def _as_dict(value: Any) -> dict[Any, Any]:
    return value if isinstance(value, dict) else {}


def _text_keys(record: Any) -> Any:
    """The dictionary with text for keys: files of Python 2 that Python 3 wrote again may have bytes."""
    return {_text(key): value for key, value in record.items()} if isinstance(record, dict) else record


def _text(value: Any) -> Any:
    return value.decode("latin1") if isinstance(value, bytes) else value


def _brief(value: Any) -> str:
    """One short line, whatever it is."""
    return " ".join(reprlib.repr(value).split())[:80]


def _described(value: Any) -> str:
    """A short word on an unexpected value."""
    if isinstance(value, dict):
        return f"a dictionary of {', '.join(map(_brief, list(value)[:5])) or 'nothing'}"
    return f"{type(value).__name__} of {len(value)}" if hasattr(value, "__len__") else type(value).__name__
