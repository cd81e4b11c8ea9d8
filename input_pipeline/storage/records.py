"""One example as it lies in a shard: a `tf.train.Example`, written and read without TensorFlow."""

from __future__ import annotations

import functools
import hashlib
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from input_pipeline.images import Box


class Record(NamedTuple):
    """What is stored of one example.

    Attributes:
      image: encoded JPEG or PNG.
      codes: uint8 [A], the labels in the data set's own code.
      key: the example's stable name.
      box: the object that the labels are about, in pixels of `image`; None for the whole image.
      caption: None where the data set has none; read back, also where it is empty.
    """

    image: bytes
    codes: UInt8[np.ndarray, "A"]
    key: str
    box: Box | None = None
    caption: str | None = None


@functools.cache
def _message() -> Any:
    """Protobuf's class for `tf.train.Example`. Imported only where data is read or written."""
    from tensorflow_datasets.proto import tf_example_pb2

    return tf_example_pb2.Example


def encode_record(record: Record) -> bytes:
    """The record's bytes, with the image's SHA-256. A missing box or caption is a missing feature."""
    example = _message()()
    feature = example.features.feature
    texts = {"key": record.key, "sha256": _sha256(record.image), "caption": record.caption}
    values = {name: text.encode() for name, text in texts.items() if text is not None}
    for name, value in {"image": record.image, "labels": record.codes.tobytes(), **values}.items():
        feature[name].bytes_list.value.append(value)
    if record.box is not None:
        feature["box"].int64_list.value.extend(record.box)
    return example.SerializeToString(deterministic=True)


def decode_record(data: bytes, attributes: int) -> Record:
    """Reads what `encode_record` wrote. It holds the interpreter's lock, so it does no more than it must.

    Raises:
      Exception: for bytes that are something else; protobuf's types are its own.
      ValueError: the labels are not `attributes` bytes, or the box is not four numbers.
    """
    feature = _message().FromString(data).features.feature
    labels = feature["labels"].bytes_list.value[0]
    if len(labels) != attributes:
        raise ValueError(f"{len(labels)} labels, expected {attributes}")
    box = feature["box"].int64_list.value if "box" in feature else ()
    if len(box) not in (0, 4):
        raise ValueError(f"a box of {len(box)} numbers, expected 4")
    return Record(
        feature["image"].bytes_list.value[0],
        np.frombuffer(labels, np.uint8),
        feature["key"].bytes_list.value[0].decode(),
        Box(*box) if box else None,
        (feature["caption"].bytes_list.value[0].decode() or None) if "caption" in feature else None,
    )


def holds_its_image(data: bytes) -> bool:
    """Whether a record's image is the one that was written, by its SHA-256. Errors as for `decode_record`."""
    feature = _message().FromString(data).features.feature
    image, sha256 = (feature[name].bytes_list.value[0] for name in ("image", "sha256"))
    return _sha256(image).encode() == sha256


def _sha256(image: bytes) -> str:
    return hashlib.sha256(image).hexdigest()
