"""Prepared folders, whatever has happened to their small files: read, or one line names the file."""

import io
import json

import numpy as np
import pytest
from edits import DEPTHS, complaint, edited, edited_json
from hypothesis import given, settings
from hypothesis import strategies as st
from official_cub import OfficialCub

from input_pipeline import cub
from input_pipeline.index import INDEX
from input_pipeline.prepared import MANIFEST

SPLITTINGS = ("official", "class_disjoint")


@pytest.fixture
def folder(tmp_path):
    return cub.prepare(OfficialCub(tmp_path / "official").write(), tmp_path / "prepared")


def read_everything(folder):
    """Every example of the training splits, and its class."""
    for split in SPLITTINGS:
        source = cub.open_split(folder, "train", cub.Options(split=split))
        for i in range(len(source)):
            example = source[i]
            assert example.labels.shape == example.known.shape == (312,)
            if source.class_rates is not None:
                assert source.class_rates.of_example(i).shape == (312,)


@pytest.mark.parametrize("examples", DEPTHS)
def test_any_manifest_is_read_or_named(folder, examples):
    path = folder / MANIFEST
    valid = path.read_bytes()
    read_everything(folder)

    @settings(max_examples=examples, deadline=None)
    @given(st.one_of(edited_json(json.loads(valid)), edited(valid)))
    def check(data):
        path.write_bytes(data)
        message = complaint(read_everything, folder)
        assert message is None or message.startswith(str(folder)), message

    check()


ODD_ARRAYS = (
    *(np.array(0), np.zeros(0), np.zeros((7, 312)), np.full(7, -1), np.full(7, 1 << 40), np.zeros((2, 2))),
    *(np.array("text"), np.array(["a"] * 7), np.full((6, 312), 7.0), np.zeros(7, bool)),
)


@pytest.mark.parametrize("examples", DEPTHS)
def test_any_index_is_read_or_named(folder, examples):
    path = folder / INDEX
    valid = path.read_bytes()
    with np.load(io.BytesIO(valid)) as index:
        arrays = dict(index)

    def with_an_odd_array(name, number):
        buffer = io.BytesIO()
        np.savez(buffer, **{**arrays, name: ODD_ARRAYS[number]})
        return buffer.getvalue()

    names, numbers = st.sampled_from(sorted(arrays)), st.integers(0, len(ODD_ARRAYS) - 1)

    @settings(max_examples=examples, deadline=None)
    @given(st.one_of(st.builds(with_an_odd_array, names, numbers), edited(valid, most=1)))
    def check(data):
        path.write_bytes(data)
        message = complaint(read_everything, folder)
        assert message is None or message.startswith(str(folder)), message

    check()
