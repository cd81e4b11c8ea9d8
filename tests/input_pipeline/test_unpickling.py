"""Pickles and files of joblib that are right: data comes out as it went in."""

import bz2
import gzip
import lzma
import pickle
import subprocess
import sys
import zlib

import numpy as np
import pytest
from pickles import FLOATS, JOBLIB, OLD_JOBLIB, RECORD, assert_refused, assert_same, wrapped, write

from input_pipeline.errors import DataError
from input_pipeline.untrusted.unpickling import read_pickle


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_data_comes_out_as_it_went_in(tmp_path, protocol):
    assert_same(read_pickle(write(tmp_path, pickle.dumps(RECORD, protocol))), RECORD)


def test_the_same_array_twice_is_one_array(tmp_path):
    votes = np.arange(3.0)
    first, second = read_pickle(write(tmp_path, pickle.dumps([votes, votes], 2)))
    assert first is second


@pytest.mark.parametrize(
    "pack", [zlib.compress, gzip.compress, bz2.compress, lzma.compress], ids=lambda f: f.__module__
)
def test_compressed_files(tmp_path, pack):
    packed = pack(pickle.dumps(RECORD, 2))
    assert_same(read_pickle(write(tmp_path, packed)), RECORD)
    with pytest.raises(DataError, match="cannot be read") as caught:
        read_pickle(write(tmp_path, packed[: len(packed) // 2]))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("compress", [0, 1, ("gzip", 3), ("bz2", 3), ("lzma", 1), ("xz", 1)], ids=str)
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_files_that_joblib_wrote(tmp_path, compress, protocol):
    joblib = pytest.importorskip("joblib")
    joblib.dump(RECORD, tmp_path / "data.jbl", compress=compress, protocol=protocol)
    assert_same(read_pickle(tmp_path / "data.jbl"), RECORD)


@pytest.mark.parametrize("wrapper", [JOBLIB, OLD_JOBLIB], ids=["joblib", "sklearn"])
def test_an_array_of_older_joblib_under_python_2(tmp_path, wrapper):
    values = np.array([[0.5, 0.25]])
    array = read_pickle(write(tmp_path, wrapped((1, 2), wrapper=wrapper) + values.tobytes() + b"."))
    np.testing.assert_array_equal(array, values)


def test_an_array_longer_than_one_read(tmp_path):
    values = np.arange((2 << 20) + 1.0)
    data = zlib.compress(wrapped(values.shape) + values.tobytes() + b".", 1)
    np.testing.assert_array_equal(read_pickle(write(tmp_path, data)), values)


def test_an_aligned_array(tmp_path):
    aligned = wrapped((2,), more=b"S'numpy_array_alignment_bytes'\nI16\n")
    values = np.array([0.5, 0.25])
    array = read_pickle(write(tmp_path, aligned + b"\x03\xff\xff\xff" + values.tobytes() + b"."))
    np.testing.assert_array_equal(array, values)


def test_python_2_wrote_text_and_arrays_as_bytes(tmp_path):
    # {'votes': array([0.5]), 'scalar': numpy.float64(0.25)} of Python 2.7, protocol 2.
    half, quarter = (np.float64(value).tobytes() for value in (0.5, 0.25))
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x01\x85" + FLOATS + b"\x89U\x08" + half + b"tb"
    )
    scalar = b"cnumpy.core.multiarray\nscalar\n" + FLOATS + b"U\x08" + quarter + b"\x86R"
    data = b"\x80\x02}(U\x05votes" + array + b"U\x06scalar" + scalar + b"u."
    assert_same(read_pickle(write(tmp_path, data)), {"votes": np.array([0.5]), "scalar": 0.25})


OTHERS = {
    b"": "no pickle",
    b"version https://git-lfs.github.com/spec/v1\noid sha256:56\n": "git lfs pull",
    b"\x04\x22\x4d\x18rest": "lz4",
    b"ZF0x12": "joblib before 0.10",
    b"<html>": "no pickle",
    pickle.dumps(RECORD, 2)[:-9]: "damaged",
}


@pytest.mark.parametrize("data", OTHERS, ids=OTHERS.values())
def test_files_that_are_something_else(tmp_path, data):
    assert_refused(tmp_path, data, OTHERS[data])
    with pytest.raises(DataError, match="cannot be read"):
        read_pickle(tmp_path / "absent.pkl")


def test_joblib_is_not_imported(tmp_path):
    path = write(tmp_path, wrapped((1,)) + np.array([0.5]).tobytes() + b".")
    program = (
        "import sys; from pathlib import Path; from input_pipeline.untrusted.unpickling import read_pickle; "
        f"read_pickle(Path({str(path)!r})); assert 'joblib' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
