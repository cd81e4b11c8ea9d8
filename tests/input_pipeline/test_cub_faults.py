"""CUB-200-2011's official files with something wrong in them: one line says what, and where."""

import re

import pytest
from edits import DEPTHS, complaint, edited
from hypothesis import given, settings
from hypothesis import strategies as st
from official_cub import LABELS, RATES

from input_pipeline.cub import files as cub_files
from input_pipeline.errors import DataError


def changed(number, line):
    """Replaces a line, numbers as an editor counts them; None removes it, 0 adds one at the end."""

    def change(lines):
        new = [] if line is None else [line]
        return [*lines, *new] if number == 0 else [*lines[: number - 1], *new, *lines[number:]]

    return change


FAULTS = {
    "an image twice": ("images.txt", changed(2, "3 x/y.jpg"), "line 2: 3 was listed on line 1 already"),
    "a path twice": (
        "images.txt",
        changed(2, "4 002.Bird_b/Bird_b.jpg"),
        r"line 2: 002\.Bird_b/Bird_b\.jpg was listed on line 1 already",
    ),
    "an image without a file": (
        "images.txt",
        changed(2, "4 x/y.jpg"),
        r"line 2: images/x/y\.jpg is listed but not there \(1 of 7",
    ),
    "no path": ("images.txt", changed(3, "7"), "line 3: expected <image_id> <path>, found '7'"),
    "an id that is no number": ("images.txt", changed(3, "x7 a"), "line 3: expected <image_id> <path>"),
    "a blank line": ("images.txt", changed(3, ""), "line 3: expected <image_id> <path>, found ''"),
    "an image without a class": (
        "image_class_labels.txt",
        changed(4, None),
        r"line 6: the list ends without a line for image 12 \(003\.Bird_c/Bird_f\.jpg\) of images\.txt",
    ),
    "a class of an unknown image": (
        "image_class_labels.txt",
        changed(0, "5 1"),
        r"line 8: image 5 is not in images\.txt",
    ),
    "an unknown class": (
        "image_class_labels.txt",
        changed(2, "4 7"),
        "line 2: expected <image_id> <class_id>, one of 6 from 1 to 6, found '7'",
    ),
    "an unknown split": (
        "train_test_split.txt",
        changed(5, "9 2"),
        "line 5: expected <image_id> <is_training_image>, 0 or 1, found '2'",
    ),
    "a line break in a path": (
        "images.txt",
        changed(3, "7 005.Bird_e/\x0bBird_c.jpg"),
        r"line 3: expected the path of an image, found '005.Bird_e/\\x0bBird_c.jpg'",
    ),
    "a split twice": ("train_test_split.txt", changed(0, "3 1"), "line 8: 3 was listed on line 1 already"),
    "an empty box": ("bounding_boxes.txt", changed(6, "2275 1 1 0 5"), "line 6: expected a box with pixels"),
    "no box": ("bounding_boxes.txt", changed(7, None), "line 6: .* without a line for image 9364"),
    "classes in disorder": (
        "classes.txt",
        changed(2, "9 name"),
        "line 3: expected class ids that ascend, found 3 after 9",
    ),
    "a class twice": ("classes.txt", changed(2, "1 name"), "line 2: 1 was listed on line 1 already"),
    "a class without rates": (RATES, changed(6, None), "line 5: expected a row for each of 6 classes"),
    "too few rates": (RATES, changed(3, "0.0 1.0"), "line 3: expected 312 percentages, found 2"),
    "a rate too large": (RATES, changed(3, "100.1 " * 312), "line 3: expected percentages from 0 to 100"),
    "a rate of nan": (RATES, changed(3, "nan " * 312), "line 3: expected percentages from 0 to 100"),
    "a word for a rate": (RATES, changed(3, "x " * 312), "line 3: expected 312 percentages, found a word"),
    "another attribute": (
        "attributes.txt",
        changed(2, "2 has_bill_shape::sword"),
        "line 2: expected '2 has_bill_shape::dagger', found '2 has_bill_shape::sword'",
    ),
    "attributes in another order": (
        "attributes.txt",
        changed(2, "3 has_bill_shape::dagger"),
        "line 2: expected '2 has_bill_shape::dagger'",
    ),
    "an attribute too few": (
        "attributes.txt",
        changed(312, None),
        "line 312: expected .*found 'the end of the file'",
    ),
    "an attribute too many": (
        "attributes.txt",
        changed(0, "313 tall"),
        "line 313: expected no more than 312",
    ),
    "other certainties": (
        "attributes/certainties.txt",
        changed(2, "2 sure"),
        "line 2: expected '2 guessing', found '2 sure'",
    ),
    "a label of an unknown image": (
        LABELS,
        changed(5, "99 5 1 4 1.0"),
        "line 5: expected an image_id of images",
    ),
    "a label of an image beyond": (LABELS, changed(5, "99999 5 1 4 1.0"), "line 5: expected an image_id"),
    "a label of attribute 313": (
        LABELS,
        changed(312, "3 313 1 4 1.0"),
        "line 312: .* from 1 to 312, found '3 313",
    ),
    "a label of attribute 0": (LABELS, changed(312, "3 0 1 4 1.0"), "line 312: expected an attribute_id"),
    "present twice over": (LABELS, changed(7, "3 7 2 4 1.0"), "line 7: expected an is_present of 0 or 1"),
    "a certainty of 5": (LABELS, changed(7, "3 7 1 5 1.0"), "line 7: expected a certainty_id from 1 to 4"),
    "a certainty of 0": (LABELS, changed(7, "3 7 1 0 1.0"), "line 7: expected a certainty_id from 1 to 4"),
    "a label twice": (
        LABELS,
        changed(0, "3 7 1 4 1.0"),
        "line 2185: expected every pair .* once, found '3 7 1 4'",
    ),
    "a label missing": (LABELS, changed(314, None), "line 2183: .* without a line for image 4, attribute 2"),
    "a label cut short": (LABELS, changed(9, "3 9 1"), "line 9: expected <image_id> .*found '3 9 1'"),
    "a label that is no number": (LABELS, changed(9, "3 9 yes 4 1.0"), "line 9: .*found '3 9 yes 4 1.0'"),
    "a blank line among labels": (LABELS, changed(9, ""), "line 9: expected <image_id> .*found ''"),
}


def assert_one_line(folder, match, part):
    with pytest.raises(DataError, match=match) as caught:
        cub_files.open_official(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(folder))  # the file comes first
    assert part in message.split(",")[0]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_list(cub, fault):
    name, change, match = FAULTS[fault]
    assert_one_line(cub.write(**{name: change(cub.lists()[name])}), match, name)


def test_a_fault_inside_the_archive_names_both(cub):
    folder = cub.write("archive", **{"train_test_split.txt": ["3 1"]})
    assert_one_line(folder, "line 1: the list ends", "CUB_200_2011.tgz/CUB_200_2011/train_test_split.txt")


@pytest.mark.parametrize("name", ["images.txt", "classes.txt", "bounding_boxes.txt", "attributes.txt"])
def test_a_list_that_is_not_there(cub, name):
    match = "point --data_dir" if name == "images.txt" else f"{name} is missing; get"
    assert_one_line(cub.write(**{name: None}), match, "")


@pytest.mark.parametrize("name", ["images.txt", "classes.txt", RATES, LABELS])
@pytest.mark.parametrize("data", [b"", b"\n\n", b"1 \xff\xfe 2\n"])
def test_lists_that_are_empty_or_no_text(cub, name, data):
    assert_one_line(cub.write(**{name: data}), "line 1: expected", name)


def test_captions_that_are_no_text(cub):
    cub.captions[f"{cub.keys[0][:-4]}.txt"] = b"a bird\n\xff\n"
    assert_one_line(cub.write(), "line 2: expected plain text", "text_c10/002.Bird_b/Bird_b.txt")


def test_an_image_that_is_not_there(cub):
    del cub.images[cub.keys[2]]
    assert_one_line(cub.write("archive"), r"line 3: images/005.* \(1 of 7 images are missing\)", "images.txt")


def test_neither_archive_nor_folder(tmp_path):
    assert_one_line(tmp_path, "expected CUB_200_2011.tgz or the unpacked folder CUB_200_2011", "")
    (tmp_path / "CUB_200_2011.tgz").write_bytes(b"no archive")
    assert_one_line(tmp_path, "damaged", "")


@pytest.mark.parametrize("examples", DEPTHS)
def test_any_edit_of_any_list_is_read_or_named(cub, examples):
    cub.captions[f"{cub.keys[0][:-4]}.txt"] = b"a bird\nanother\n"
    folder = cub.write()
    valid = {name: data for name, data in cub.files().items() if name.endswith(".txt")}

    @settings(max_examples=examples, deadline=None)
    @given(st.data())
    def check(data):
        name = data.draw(st.sampled_from(sorted(valid)))
        (folder / name).write_bytes(data.draw(edited(valid[name])))
        message = complaint(cub_files.open_official, folder)
        (folder / name).write_bytes(valid[name])
        assert message is None or re.match(rf"{re.escape(str(folder))}/\S+\.txt, line \d+: ", message), (
            message
        )

    check()
