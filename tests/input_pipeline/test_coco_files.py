"""COCO Attributes from small official folders: right ones arrive intact, and are read once."""

import os
import pickle
import zipfile

import cv2
import numpy as np
import pytest
from official_coco import HEIGHT, WIDTH, OfficialCoco

from input_pipeline.coco_attributes import votes as coco_votes
from input_pipeline.coco_attributes.files import convert, open_official, with_context
from input_pipeline.coco_attributes.lexicon import ATTRIBUTES, SCHEMA
from input_pipeline.errors import DataError, NoRoomError


def assert_intact(official, coco):
    count = len(coco.splits)
    assert official.keys == tuple(
        f"{coco.splits[i]}/{coco.file(i)[:-4]}_{coco.annotations[i]}" for i in range(count)
    )
    np.testing.assert_array_equal(official.codes, np.round(coco.votes * 254))
    assert official.codes.dtype == np.uint8
    for row in range(count):
        assert official.read_image(row) == coco.images[coco.file(row)]
    assert official.classes.names == ("dog", "person")
    np.testing.assert_array_equal(official.classes.of, [(1, 0)[i % 2] for i in range(count)])
    assert official.classes.of.dtype == np.int32
    # x from i + 0.5 to i + 10.75 is i to i + 11; y from 2 to 22 is that.
    np.testing.assert_array_equal(official.boxes, [[2, i, 20, 11] for i in range(count)])
    assert official.boxes.dtype == np.int32


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("layout", ["by_patch", "by_annotation"])
def test_every_official_layout(coco, zipped, nested, layout):
    folder = coco.write(record=getattr(coco, layout)(), nested=nested, zipped=zipped)
    official = open_official(folder)
    assert_intact(official, coco)
    assert official.schema is SCHEMA
    assert official.origin == folder
    np.testing.assert_array_equal(official.splits["train"], [0, 1, 2, 3])
    image = cv2.imdecode(np.frombuffer(official.read_image(0), np.uint8), cv2.IMREAD_COLOR)
    assert image.shape == (HEIGHT, WIDTH, 3)


@pytest.mark.parametrize("name", ["votes.jbl", "votes.joblib", "votes.pickle", "votes.PKL"])
def test_the_votes_under_any_of_their_names(coco, name):
    assert_intact(open_official(coco.write(name=name)), coco)


def test_a_file_of_joblib(coco):
    joblib = pytest.importorskip("joblib")
    folder = coco.write()
    (folder / "cocottributes_eccv_version.pkl").unlink()
    joblib.dump(coco.by_patch(), folder / "cocottributes_eccv_version.jbl", compress=3)
    assert_intact(open_official(folder), coco)


def bytes_for_text(value):
    """As Python 3 has it after reading a file of Python 2 with encoding='bytes'."""
    if isinstance(value, dict):
        return {bytes_for_text(key): bytes_for_text(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [bytes_for_text(entry) for entry in value]
    return value.encode() if isinstance(value, str) else value


@pytest.mark.parametrize("layout", ["by_patch", "by_annotation"])
def test_bytes_for_text(coco, layout):
    assert_intact(open_official(coco.write(record=bytes_for_text(getattr(coco, layout)()))), coco)


def test_images_zipped_without_an_inner_folder(coco):
    folder = coco.write()
    with zipfile.ZipFile(folder / "train2014.zip", "w") as archive:
        for name, data in coco.images.items():
            archive.writestr(name, data)
    assert_intact(open_official(folder), coco)


def test_rows_of_both_splits_may_be_mixed(coco):
    order = [4, 0, 5, 1, 6, 2, 7, 3]
    record = coco.by_patch()
    record["ann_vecs"] = {coco.patches[i]: coco.votes[i] for i in order}
    official = open_official(coco.write(record=record))
    np.testing.assert_array_equal(official.splits["train"], [1, 3, 5, 7])
    for row, i in enumerate(order):
        assert official.keys[row].endswith(f"_{coco.annotations[i]}")
        assert official.read_image(row) == coco.images[coco.file(i)]
        np.testing.assert_array_equal(official.boxes[row], [2, i, 20, 11])
        assert official.classes.names[official.classes.of[row]] == ("person", "dog")[i % 2]


def test_validation_and_test_share_no_image_and_are_about_equal(tmp_path):
    coco = OfficialCoco(tmp_path / "many", train=2, val=200)
    coco.boxes = [[1.0, 2.0, 3.0, 4.0]] * 202
    official = open_official(coco.write())
    images = {s: {official.keys[r].rsplit("_", 1)[0] for r in rows} for s, rows in official.splits.items()}
    assert list(images) == ["train", "validation", "test"]
    assert not images["validation"] & images["test"]
    assert len(images["validation"]) + len(images["test"]) == 100
    assert 30 < len(images["test"]) < 70
    rows = np.concatenate(list(official.splits.values()))
    np.testing.assert_array_equal(np.sort(rows), np.arange(202))
    assert len(official.splits["validation"]) == 2 * len(images["validation"])


def test_a_folder_with_one_split(tmp_path):
    official = open_official(OfficialCoco(tmp_path / "train", val=0).write())
    assert list(official.splits) == ["train"]


def test_an_annotation_that_comes_again_has_a_key_of_its_own(coco):
    coco.annotations[1] = coco.annotations[0]
    coco.image_ids[1] = coco.image_ids[0]
    official = open_official(coco.write())
    assert official.keys[1] == f"{official.keys[0]}_2"
    np.testing.assert_array_equal(official.codes[:2], np.round(coco.votes[:2] * 254))


def test_votes_that_nobody_gave(coco):
    coco.votes[0] = 0.0
    coco.votes[1, :3] = [np.nan, -1.0, 0.0]
    record = coco.by_patch()
    record["ann_vecs"][coco.patches[2]] = None
    record["ann_vecs"][coco.patches[3]] = [None, *coco.votes[3, 1:]]
    codes = open_official(coco.write(record=record)).codes
    assert (codes[[0, 2]] == 255).all()
    np.testing.assert_array_equal(codes[1, :3], [255, 255, 0])
    np.testing.assert_array_equal(codes[1, 3:], np.round(coco.votes[1, 3:] * 254))
    assert codes[3, 0] == 255
    np.testing.assert_array_equal(codes[3, 1:], np.round(coco.votes[3, 1:] * 254))


def test_attributes_in_another_order_are_matched_by_name(coco):
    ids = np.random.default_rng(1).permutation(204)  # ids[i]: where attribute i stands in every vector
    coco.attributes = [{"id": int(i), "name": f" {n} "} for i, n in zip(ids, ATTRIBUTES, strict=True)]
    votes = coco.votes
    coco.votes = np.empty_like(votes)
    coco.votes[:, ids] = votes
    folder = coco.write()
    coco.votes = votes
    assert_intact(open_official(folder), coco)


def test_boxes_are_rounded_outward_and_cut_off(coco):
    coco.boxes[:4] = [
        [-3.5, 1.2, 10.0, 5.0],  # x -3.5..6.5, y 1.2..6.2
        [60.2, 40.0, 9.0, 99.0],  # beyond the right and lower edge
        [5.0, 5.0, 1e-8, 0.25],  # less than a pixel
        [0.1 + 0.2, 3.0, 0.7, 2.0],  # ends at 1.0 but for rounding
    ]
    boxes = open_official(coco.write()).boxes
    np.testing.assert_array_equal(boxes[:4], [[1, 0, 6, 7], [40, 60, 8, 4], [5, 4, 1, 1], [3, 0, 2, 1]])


def test_context_is_what_the_baseline_adds():
    boxes = np.array([[100, 200, 192, 96], [10, 5, 192, 96], [7, 7, 1, 1]], np.int32)
    # 16 of 224 pixels on each side: a box of 192 gets 16, one of 96 gets 8.
    wide = with_context(boxes)
    np.testing.assert_array_equal(wide[:2], [[84, 192, 224, 112], [0, 0, 218, 109]])
    np.testing.assert_array_equal(wide[2], [6, 6, 3, 3])
    np.testing.assert_array_equal(with_context(boxes, 0.0), boxes)
    assert wide.dtype == np.int32
    assert with_context(boxes[:0]).shape == (0, 4)
    for context in (0.5, -0.1, float("nan")):
        with pytest.raises(DataError, match="context"):
            with_context(boxes, context)


# The cache.


def test_the_pickle_is_read_once(coco, tmp_path, monkeypatch):
    folder, cache = coco.write(), tmp_path / "deep" / "cache"
    first = open_official(folder, cache)
    monkeypatch.setattr(coco_votes, "read_pickle", None)
    second = open_official(folder, cache)
    assert_intact(second, coco)
    assert first.fingerprint == second.fingerprint
    (entry,) = cache.iterdir()
    with np.load(entry, allow_pickle=False) as arrays:
        assert arrays["codes"].shape == (8, 204)


def test_a_changed_or_damaged_cache_is_written_again(coco, tmp_path):
    cache = tmp_path / "cache"
    open_official(coco.write(), cache)
    (entry,) = cache.iterdir()
    for damage in (entry.read_bytes()[:-100], b"", b"PK\x03\x04", pickle.dumps(1)):
        entry.write_bytes(damage)
        assert_intact(open_official(coco.folder, cache), coco)
    np.savez(entry.with_suffix(""), fingerprint=np.array("another"), annotations=0, splits=0, codes=0)
    assert_intact(open_official(coco.folder, cache), coco)
    coco.votes = 1.0 - coco.votes
    assert_intact(open_official(coco.write(), cache), coco)


def test_a_conversion_appears_whole_or_not_at_all(coco, tmp_path, monkeypatch):
    folder = coco.write()
    output = tmp_path / "cache" / "votes.npz"

    def broken(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(NoRoomError, match=r"votes\.npz: cannot be written: No space left"):
        convert(folder / "cocottributes_eccv_version.pkl", output)
    assert list(output.parent.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        open_official(folder, tmp_path / "file" / "below")


def test_the_fingerprint_follows_every_file(coco):
    prints = [open_official(coco.write()).fingerprint]
    assert open_official(coco.folder).fingerprint == prints[0]
    coco.votes = 1.0 - coco.votes
    prints.append(open_official(coco.write()).fingerprint)
    for name in ("instances_val2014.json", "train2014.zip"):
        os.utime(coco.folder / name, ns=(1, 1))
        prints.append(open_official(coco.folder).fingerprint)
    (coco.folder / "train2014.zip").unlink()
    coco.write(zipped=False)
    prints.append(open_official(coco.folder).fingerprint)
    os.utime(coco.folder / "train2014" / coco.file(0), ns=(1, 1))
    prints.append(open_official(coco.folder).fingerprint)
    assert len(set(prints)) == len(prints)
    assert all(int(digits, 16) >= 0 for digits in prints)
