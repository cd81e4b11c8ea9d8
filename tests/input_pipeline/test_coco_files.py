"""COCO Attributes from small official folders: right ones arrive intact, wrong ones are one line."""

import copy
import json
import os
import pickle
import zipfile

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from official_coco import HEIGHT, WIDTH, OfficialCoco

from input_pipeline import coco_votes
from input_pipeline.coco_files import Options, convert, decode_labels, open_official, with_context
from input_pipeline.coco_lexicon import ATTRIBUTES, GROUPS, SCHEMA
from input_pipeline.errors import DataError
from input_pipeline.schema import AttributeSchema


@pytest.fixture
def coco(tmp_path):
    return OfficialCoco(tmp_path / "official")


def assert_one_line(folder, match, **arguments):
    with pytest.raises(DataError, match=match) as caught:
        open_official(folder, **arguments)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(folder))
    assert len(message) < 700 + len(str(folder))


# The tables.


def test_each_name_stands_in_one_group():
    assert len(ATTRIBUTES) == len(set(ATTRIBUTES)) == 204
    assert sorted(name for names in GROUPS.values() for name in names) == sorted(ATTRIBUTES)
    assert SCHEMA.groups == ("colour", "material", "shape", "texture", "size", "other")
    assert (ATTRIBUTES[0], ATTRIBUTES[75], ATTRIBUTES[203]) == ("standing", "dirty", "family-friendly")
    assert SCHEMA.groups[SCHEMA.group_of[ATTRIBUTES.index("furry")]] == "texture"


def test_phrases_read_well():
    said = dict(zip(ATTRIBUTES, SCHEMA.phrases, strict=True))
    assert said["furry"] == "an object that is furry"
    assert said["cute / adorable"] == "an object that is cute or adorable"
    assert said["wood / wooden"] == "an object that is made of wood"
    assert said["on"] == "an object that is switched on"
    assert len(set(SCHEMA.phrases)) == 204
    assert not any("/" in phrase or "  " in phrase for phrase in SCHEMA.phrases)


def test_a_schema_may_have_an_empty_group():
    schema = AttributeSchema.from_groups("any", ("round",), {"colour": (), "shape": (0,)})
    assert schema.members == ((), (0,))


# Codes and labels.


def test_shares_become_codes_and_codes_labels():
    codes = np.array([[0, 84, 85, 126, 127, 169, 254, 255]], np.uint8)
    labels, known = decode_labels(codes, Options())
    np.testing.assert_array_equal(labels, [[0, 0, 0, 0, 1, 1, 1, 0]])
    np.testing.assert_array_equal(known, [[True] * 7 + [False]])
    # Thirds are 85 and 169 of 254: a limit of a third or two is met by a vote of exactly that.
    labels, known = decode_labels(codes, Options(positive=2 / 3, negative=1 / 3))
    np.testing.assert_array_equal(labels, [[0, 0, 0, 0, 0, 1, 1, 0]])
    np.testing.assert_array_equal(known, [[True, True, False, False, False, True, True, False]])
    assert labels.dtype == np.uint8
    assert known.dtype == np.bool_


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 255), min_size=1, max_size=20),
    st.lists(st.floats(0, 1), min_size=2, max_size=2).map(sorted).filter(lambda limits: limits[1] > 0),
)
def test_labels_are_zero_where_unknown_and_grow_with_the_votes(codes, limits):
    labels, known = decode_labels(np.array(codes, np.uint8), Options(limits[1], limits[0]))
    assert labels.max() <= 1
    assert not labels[~known].any()
    voted = sorted((code, label) for code, label in zip(codes, labels, strict=True) if code != 255)
    assert [label for _, label in voted] == sorted(label for _, label in voted)
    assert not known[np.array(codes) == 255].any()


@pytest.mark.parametrize(
    "limits", [(0.0, 0.0), (1.1, 0.5), (0.5, 0.6), (0.5, -0.1), (float("nan"), 0.5), (0.5, float("nan"))]
)
def test_limits_that_make_no_sense(limits):
    with pytest.raises(DataError, match="negative <= positive"):
        Options(*limits)


# Right files.


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
    with pytest.raises(DataError, match=r"votes\.npz: cannot be written: No space left"):
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


# What is wrong with the files, and what the one line must say.


def change(path, value):
    """A fault in the record: the entry at a path of keys becomes `value`, or goes where that is None."""

    def apply(record):
        *above, last = path
        for key in above:
            record = record[key]
        record[last] = value
        if value is None:
            del record[last]

    return apply


PATCH = "object 12"
VOTE_FAULTS = {
    "no votes at all": (
        change(["ann_vecs"], None),
        "expected a dictionary with ann_vecs or ann_attrs, found",
    ),
    "an empty dictionary": (change(["ann_vecs"], {}), "expected objects with votes"),
    "a list of votes": (change(["ann_vecs"], [1]), "expected objects with votes, found list of 1"),
    "too few votes": (
        change(["ann_vecs", 12], [0.5] * 203),
        f"{PATCH} has list of 203 for votes, expected 204",
    ),
    "text for votes": (change(["ann_vecs", 12], "votes"), f"{PATCH} has str of 5 for votes"),
    "a vote above 1": (change(["ann_vecs", 12], [1.5] * 204), f"{PATCH} has a vote of 1.5, expected a share"),
    "a vote below 0": (change(["ann_vecs", 12], [-0.5] * 204), f"{PATCH} has a vote of -0.5"),
    "an infinite vote": (change(["ann_vecs", 12], [np.inf] * 204), f"{PATCH} has a vote of inf"),
    "no annotation": (change(["patch_id_to_ann_id", 12], None), f"{PATCH} has the annotation id None"),
    "no annotations": (change(["patch_id_to_ann_id"], None), "object 10 has the annotation id None"),
    "an odd annotation": (change(["patch_id_to_ann_id", 12], 1.5), f"{PATCH} has the annotation id 1.5"),
    "an array of one": (change(["patch_id_to_ann_id", 12], np.zeros((2, 2))), f"{PATCH} has the annotation"),
    "no split": (change(["split", 12], None), f"{PATCH} has the split None, expected train2014 or val2014"),
    "another split": (change(["split", 12], "test2015"), f"{PATCH} has the split 'test2015'"),
    "a split of arrays": (change(["split", 12], np.zeros(9)), f"{PATCH} has the split .*rray"),
    "no attributes": (change(["attributes"], None), "expected attributes, a list of dictionaries"),
    "a nameless attribute": (change(["attributes", 3, "name"], None), "expected attributes, a list of dict"),
    "an attribute renamed": (
        change(["attributes", 0, "name"], "blue"),
        "expected the 204 published attributes, found 204: missing family-friendly.*unknown blue",
    ),
    "an attribute repeated": (
        change(["attributes", 0, "name"], "standing"),
        "missing family-friendly.*repeated standing",
    ),
    "an attribute less": (lambda record: record["attributes"].pop(), "found 203: missing standing"),
}


@pytest.mark.parametrize("fault", VOTE_FAULTS)
def test_a_faulty_votes_file(coco, fault):
    spoil, match = VOTE_FAULTS[fault]
    record = copy.deepcopy(coco.by_patch())
    spoil(record)
    assert_one_line(coco.write(record=record), f"eccv_version.pkl: .*{match}")


@pytest.mark.parametrize("entry", [None, 3, {"split": "val2014"}, {"attrs_vector": [0.5] * 204}])
def test_an_object_of_the_second_layout_that_lacks_something(coco, entry):
    record = coco.by_annotation()
    record["ann_attrs"][901] = entry
    folder = coco.write(record=record)
    if entry == {"split": "val2014"}:  # annotation 901 is of train2014
        assert_one_line(
            folder, r"instances_val2014\.json: annotation 901 is not in it \(1 of 5 are missing\)"
        )
    else:
        assert_one_line(folder, "object 901 has the split None")


INSTANCE_FAULTS = {
    "an annotation less": (
        lambda r: r["annotations"].__delitem__(1),
        r"annotation 901 is not .*\(1 of 4 are",
    ),
    "no annotations": (lambda r: r.pop("annotations"), "no 'annotations' where"),
    "an image less": (lambda r: r["images"].pop(), "no 501 where"),
    "a category less": (lambda r: r["categories"].pop(), "no 18 where"),
    "no width of a box": (
        change(["annotations", 1, "bbox"], [1, 2, 0, 4]),
        r"annotation 901 has the box \[1, 2, 0, 4\]",
    ),
    "a negative height": (change(["annotations", 1, "bbox"], [1, 2, 3, -4]), "annotation 901 has the box"),
    "a box elsewhere": (change(["annotations", 1, "bbox"], [64.0, 2, 3, 4]), "its image of 64x48 pixels"),
    "a box to the left": (change(["annotations", 1, "bbox"], [-9, 2, 3, 4]), "annotation 901 has the box"),
    "an infinite box": (change(["annotations", 1, "bbox"], [1, 2, np.inf, 4]), "annotation 901 has the box"),
    "a box of three": (change(["annotations", 1, "bbox"], [1, 2, 3]), "expected COCO's instances"),
    "text for annotations": (change(["annotations"], "text"), "expected COCO's instances"),
    "an image without a size": (change(["images", 0, "width"], None), "no 'width' where"),
}


@pytest.mark.parametrize("fault", INSTANCE_FAULTS)
def test_a_faulty_instances_file(coco, fault):
    spoil, match = INSTANCE_FAULTS[fault]
    folder = coco.write()
    record = coco.instances("train2014")
    del record["annotations"][-1]  # the repetition, so that each stands once
    spoil(record)
    (folder / "instances_train2014.json").write_text(json.dumps(record))
    assert_one_line(folder, rf"instances_train2014\.json: .*{match}")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("[1]", "found a list"),
        ('{\n"images": [}', "line 2: not JSON"),
        ("[" * 100_000, "not JSON"),
        ("", "line 1"),
    ],
    ids=["list", "comma", "deep", "empty"],
)
def test_an_instances_file_that_is_something_else(coco, text, match):
    folder = coco.write()
    (folder / "instances_val2014.json").write_text(text)
    assert_one_line(folder, match)


def test_an_instances_file_of_undecodable_bytes(coco):
    folder = coco.write()
    (folder / "instances_val2014.json").write_bytes(b"\xff\xfe{}")
    assert_one_line(folder, "not JSON in UTF-8")


@pytest.mark.parametrize(
    "name", ["instances_train2014.json", "instances_val2014.json", "train2014.zip", "val2014.zip"]
)
def test_a_file_that_is_not_there(coco, name):
    folder = coco.write()
    (folder / name).unlink()
    assert_one_line(folder, f"{name}.* is missing, and cocottributes_eccv_version.pkl has objects of")


@pytest.mark.parametrize("zipped", [True, False])
def test_an_image_that_is_not_there(coco, zipped):
    del coco.images[coco.file(2)]
    assert_one_line(
        coco.write(zipped=zipped), rf"{coco.file(2)} has objects but is not there \(1 of 2 images"
    )


def test_no_votes_or_two_of_them(coco):
    folder = coco.write()
    (folder / "other.jbl").write_bytes(b"")
    assert_one_line(folder, r"2 files may hold the votes: .*other\.jbl; keep one")
    (folder / "other.jbl").unlink()
    (folder / "cocottributes_eccv_version.pkl").unlink()
    assert_one_line(folder, "the votes are missing")
    assert_one_line(folder / "absent", "cannot be listed")


class Touches:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("cached", [True, False])
def test_hostile_votes_run_nothing(coco, tmp_path, cached):
    record = coco.by_patch()
    record["ann_vecs"][12] = Touches(tmp_path / "marker")
    folder = coco.write(record=record)
    cache = tmp_path / "cache" if cached else None
    assert_one_line(folder, r"eccv_version\.pkl: refused as unsafe: it asks for posix\.system", cache=cache)
    assert not (tmp_path / "marker").exists()
    assert not (tmp_path / "cache").exists()


def paths_in(record, path=()):
    """Every path of keys in nested dictionaries and lists."""
    entries = (
        record.items() if isinstance(record, dict) else enumerate(record) if isinstance(record, list) else ()
    )
    return [path, *(deeper for key, value in entries for deeper in paths_in(value, (*path, key)))]


ODD = [None, 1.5, -1, 1 << 70, float("nan"), "x", b"x", [], {}, [[1]], {1: 2}, (1,), True]


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    coco = OfficialCoco(tmp_path_factory.mktemp("coco") / "official", train=2, val=2)
    coco.write()
    return coco


def outcome(folder):
    """None where the folder reads, else the line that it gives."""
    try:
        open_official(folder)
    except DataError as error:
        return str(error)
    return None


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_any_mutation_of_the_votes_reads_or_is_one_line(once, data):
    record = copy.deepcopy(data.draw(st.sampled_from([once.by_patch(), once.by_annotation()])))
    *above, last = data.draw(st.sampled_from(paths_in(record)[1:]))
    change([*above, last], data.draw(st.sampled_from(ODD)))(record)
    line = outcome(once.write(record=record))
    assert line is None or ("\n" not in line and line.startswith(str(once.folder)))
    assert line is None or "eccv_version.pkl" in line or ".json" in line


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_any_mutation_of_the_instances_reads_or_is_one_line(once, data):
    folder = once.write()
    record = copy.deepcopy(once.instances("train2014"))
    *above, last = data.draw(st.sampled_from(paths_in(record)[1:]))
    change([*above, last], data.draw(st.sampled_from([odd for odd in ODD if not isinstance(odd, bytes)])))(
        record
    )
    (folder / "instances_train2014.json").write_text(json.dumps(record))
    line = outcome(folder)
    assert line is None or ("\n" not in line and line.startswith(str(folder)))
