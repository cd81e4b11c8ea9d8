"""Pickles, good and bad, made from nothing, and what reading one must give."""

import collections

import numpy as np
import pytest

from input_pipeline.errors import DataError
from input_pipeline.untrusted.unpickling import Limits, read_pickle

SMALL = Limits(memory_bytes=1 << 30)
RECORD = {
    "arrays": [
        np.arange(204) / 204,
        np.asfortranarray(np.arange(12.0).reshape(3, 4)),
        np.zeros((0, 3)),
        np.array(3),
    ],
    "orders": [np.array([1.5, -2.0], ">f4"), np.array([1, 2], "<i2"), np.array([True, False])],
    "text": np.array(["ab", "c"]),
    "ordered": collections.OrderedDict(b=1, a=2),
    "default": collections.defaultdict(float, {3: 0.5}),
    "sets": [{1, 2}, frozenset([3])],
    "scalars": [np.float64(0.25), np.float64(0.25), np.int64(-3), np.bool_(True), np.float32(0.5)],
    "bytes": [b"", b"\x00\xff", bytearray(b"xy")],
    "plain": (None, True, 1 << 70, 0.5, "näive", [1, [2, {"three": ()}]]),
}


def assert_same(found, expected):
    if isinstance(expected, dict):
        assert type(found) is dict
        assert list(found) == list(expected)
        expected = dict(expected)
    if isinstance(expected, np.ndarray):
        assert isinstance(found, np.ndarray)
        assert found.dtype == expected.dtype.newbyteorder("=")  # the machine's own
        np.testing.assert_array_equal(found, expected)
    elif isinstance(expected, (list, tuple, dict)):
        assert len(found) == len(expected)
        for key in expected if isinstance(expected, dict) else range(len(expected)):
            assert_same(found[key], expected[key])
    else:
        assert found == expected
        assert not isinstance(found, np.generic)  # Python's own numbers


def write(tmp_path, data):
    path = tmp_path / "data.pkl"
    path.write_bytes(data)
    return path


def assert_refused(tmp_path, data, match, marker=None):
    with pytest.raises(DataError, match=match) as caught:
        read_pickle(write(tmp_path, data), SMALL)
    message = str(caught.value)
    assert message.startswith(str(tmp_path / "data.pkl"))
    assert "\n" not in message
    assert len(message) < 500 + len(str(tmp_path))
    assert marker is None or not marker.exists()
    return message


# Files of joblib, by hand: the description of an array, then its bytes.

OLD_JOBLIB = b"csklearn.externals.joblib.numpy_pickle\nNumpyArrayWrapper\n"
JOBLIB = b"cjoblib.numpy_pickle\nNumpyArrayWrapper\n"
FLOATS = b"cnumpy\ndtype\n(S'f8'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntb"


def wrapped(shape, dtype=FLOATS, wrapper=JOBLIB, more=b"", subclass=b"cnumpy\nndarray\n"):
    """A wrapper of protocol 2 without alignment, as joblib wrote it up to 1.1."""
    sides = b"".join(b"L%dL\n" % side for side in shape)
    state = (
        b"S'shape'\n(" + sides + b"tS'order'\nS'C'\nS'dtype'\n" + dtype + b"S'subclass'\n" + subclass + more
    )
    return b"\x80\x02" + wrapper + b")\x81}(" + state + b"ub"
