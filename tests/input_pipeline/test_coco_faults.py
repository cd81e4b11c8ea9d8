"""COCO Attributes with something wrong in its files: one line says what, and nothing of theirs runs."""

import copy
import json
import os

import edits
import numpy as np
import pytest
from edits import DEPTHS, complaint, edited, edited_json, paths_in
from hypothesis import given, settings
from hypothesis import strategies as st
from official_coco import OfficialCoco

from input_pipeline.coco_attributes.captions import read_captions
from input_pipeline.coco_attributes.files import open_official
from input_pipeline.coco_attributes.votes import read_votes
from input_pipeline.errors import DataError


def assert_one_line(folder, match, **arguments):
    with pytest.raises(DataError, match=match) as caught:
        open_official(folder, **arguments)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(folder))
    assert len(message) < 700 + len(str(folder))


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
    "an endless number": (change(["attributes", 3, "id"], np.inf), "expected attributes, a list of dict"),
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


# Files that nobody vouches for.


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


# Whatever happens to a file, it is read or one line says what is wrong.

ODD = [*edits.ODD, b"x", (1,)]


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    coco = OfficialCoco(tmp_path_factory.mktemp("coco") / "official", train=2, val=2)
    coco.write()
    return coco


def assert_read_or_refused(folder, *names):
    """A complaint begins with the folder and names one of the files."""
    message = complaint(open_official, folder)
    assert message is None or message.startswith(str(folder))
    assert message is None or any(name in message for name in names), message


@pytest.mark.parametrize("examples", DEPTHS)
def test_any_mutation_of_the_votes_reads_or_is_one_line(once, examples):
    @settings(max_examples=examples, deadline=None)
    @given(st.data())
    def check(data):
        record = copy.deepcopy(data.draw(st.sampled_from([once.by_patch(), once.by_annotation()])))
        path = data.draw(st.sampled_from(paths_in(record)))
        change(path, data.draw(st.sampled_from(ODD)))(record)
        assert_read_or_refused(once.write(record=record), "eccv_version.pkl", ".json")

    check()


@pytest.mark.parametrize("examples", DEPTHS)
def test_any_mutation_of_the_instances_reads_or_is_one_line(once, examples):
    folder = once.write()
    record = once.instances("train2014")

    @settings(max_examples=examples, deadline=None)
    @given(st.one_of(edited_json(record), edited(json.dumps(record).encode())))
    def check(data):
        (folder / "instances_train2014.json").write_bytes(data)
        assert_read_or_refused(folder, "instances_train2014.json", "train2014.zip")

    check()


@pytest.mark.parametrize("examples", DEPTHS)
def test_any_mutation_of_the_captions_reads_as_text_or_is_one_line(tmp_path, examples):
    path, names = tmp_path / "captions_train2014.json", {1: "a.jpg", 2: "b.jpg"}
    record = {
        "images": [{"id": image, "file_name": name} for image, name in names.items()],
        "annotations": [{"id": 7 + image, "image_id": image, "caption": "a zebra \u00e9"} for image in names],
    }

    @settings(max_examples=examples, deadline=None)
    @given(st.one_of(edited_json(record), edited(json.dumps(record).encode())))
    def check(data):
        path.write_bytes(data)
        message = complaint(lambda: [c.encode() for c in read_captions(path, {*names.values()}).values()])
        assert message is None or message.startswith(str(path))

    check()


@pytest.mark.parametrize("place", ["images", "annotations"])
def test_a_number_without_end_in_the_captions(tmp_path, place):
    path = tmp_path / "captions_train2014.json"
    record = {"images": [{"id": 1, "file_name": "a"}], "annotations": [{"image_id": 1, "caption": "x"}]}
    record[place][0]["id"] = float("inf")
    path.write_text(json.dumps(record))
    with pytest.raises(DataError, match="expected COCO's captions"):
        read_captions(path, {"a"})


def test_half_a_character_in_a_caption_is_left_out(tmp_path):
    path = tmp_path / "captions_train2014.json"
    caption = {"id": 2, "image_id": 1, "caption": "a \ud83d zebra"}
    path.write_text(json.dumps({"images": [{"id": 1, "file_name": "a"}], "annotations": [caption]}))
    assert read_captions(path, {"a"}) == {"a": "a zebra"}


@pytest.mark.parametrize("examples", DEPTHS)
def test_any_edit_of_the_cached_votes_is_noticed_and_they_are_read_again(once, tmp_path, examples):
    pickled = once.write() / "cocottributes_eccv_version.pkl"
    right = read_votes(pickled, tmp_path)
    (short,) = tmp_path.iterdir()
    valid = short.read_bytes()

    @settings(max_examples=examples, deadline=None)
    @given(edited(valid, most=1))
    def check(data):
        short.write_bytes(data)
        for found, expected in zip(read_votes(pickled, tmp_path), right, strict=True):
            np.testing.assert_array_equal(found, expected)

    check()
