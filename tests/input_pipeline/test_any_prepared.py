"""Prepared folders, whatever has happened to their small files: read, or one line names the file."""

import io
import json
import re

import numpy as np
import pytest
from edits import DEPTHS, complaint, edited, edited_json
from hypothesis import given, settings
from hypothesis import strategies as st
from official_cub import OfficialCub

from input_pipeline import cub
from input_pipeline.storage.index import INDEX
from input_pipeline.storage.prepared import MANIFEST

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


ODD_MANIFESTS = [
    *(
        (("splits", "train", 0, key), odd)
        for key in ("records", "bytes")
        for odd in (None, "4", -1, 1.5, True)
    ),
    *((("splits", "train", 0, "file"), odd) for odd in (None, "../elsewhere", "/etc/passwd", 3)),
    *((("schema", "group_of", 0), odd) for odd in ("x", 0.5, None)),
    *((("schema", "attributes"), odd) for odd in (None, "x" * 312, [1] * 312)),
    *((("splits",), odd) for odd in ([], {"train": 3}, {"train": [[]]})),
]


@pytest.mark.parametrize(("path", "odd"), ODD_MANIFESTS, ids=str)
def test_a_manifest_with_something_odd_is_named(folder, path, odd):
    record = json.loads((folder / MANIFEST).read_text())
    *above, last = path
    place = record
    for key in above:
        place = place[key]
    place[last] = odd
    (folder / MANIFEST).write_text(json.dumps(record))
    assert complaint(read_everything, folder).startswith(f"{folder / MANIFEST}: expected a manifest")


ODD_ARRAYS = (
    *(np.array(0), np.zeros(0), np.zeros((7, 312)), np.full(7, -1), np.full(7, 1 << 40), np.zeros((2, 2))),
    *(np.array("text"), np.array(["a"] * 7), np.full((6, 312), 7.0), np.zeros(7, bool)),
)


@pytest.mark.parametrize(
    ("name", "odd", "match"),
    [
        ("class_of", np.full(7, 6), r"class_of to hold numbers in 0\.\.5, found 6 to 6"),
        ("class_of", np.full(7, -1), r"class_of to hold numbers in 0\.\.5, found -1 to -1"),
        ("class_of", np.zeros(8, np.int32), r"class_of to be i \[7\], found i \[8\]"),
        ("class_of", np.zeros(7), r"class_of to be i \[7\], found f \[7\]"),
        ("class_rates", np.zeros((6, 311)), r"class_rates to be f \['any', 312\], found f \[6, 311\]"),
        (
            "class_disjoint/train",
            np.array([7]),
            r"class_disjoint/train to hold numbers in 0\.\.6, found 7 to 7",
        ),
        ("class_disjoint/train", np.array(0), r"class_disjoint/train to be i \['any'\], found i \[\]"),
    ],
)
def test_an_index_with_something_odd_is_named(folder, name, odd, match):
    with np.load(folder / INDEX) as arrays:
        changed = {**arrays, name: odd}
    np.savez(folder / INDEX, **changed)
    assert re.search(f"index.npz: expected {match}; prepare", complaint(read_everything, folder))


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
