"""CUB-200-2011 in small official folders: right ones arrive intact, wrong ones are one line."""

import itertools
import os
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from official_cub import FORMS, OfficialCub, label_line, text, write_tar
from official_files import jpeg

from input_pipeline import cub_files, cub_lists
from input_pipeline.cub_files import Options, class_disjoint, decode_labels
from input_pipeline.cub_lists import Text
from input_pipeline.cub_schema import FAMILIES, SCHEMA
from input_pipeline.errors import DataError
from input_pipeline.official import Classes
from input_pipeline.splits import with_validation

LABELS = "attributes/image_attribute_labels.txt"
RATES = "attributes/class_attribute_labels_continuous.txt"


@pytest.fixture
def cub(tmp_path):
    return OfficialCub(tmp_path / "cub")


# The schema.


def test_the_schema_has_the_official_names_in_their_order():
    assert SCHEMA.num_attributes == 312
    expected = {
        1: "has_bill_shape::curved_(up_or_down)",
        10: "has_wing_color::blue",
        24: "has_wing_color::buff",
        55: "has_breast_pattern::solid",
        79: "has_tail_shape::squared_tail",
        105: "has_head_pattern::capped",
        138: "has_eye_color::purple",
        150: "has_bill_length::about_the_same_as_head",
        217: "has_wing_shape::long-wings",
        222: "has_size::very_small_(3_-_5_in)",
        236: "has_shape::perching-like",
        263: "has_primary_color::buff",
        294: "has_crown_color::blue",
        312: "has_wing_pattern::multi-colored",
    }
    assert {number: SCHEMA.attributes[number - 1] for number in expected} == expected


def test_families_and_groups():
    assert len(FAMILIES) == 28
    assert [i for positions in FAMILIES.values() for i in positions] == list(range(312))
    for family, positions in FAMILIES.items():
        assert {SCHEMA.attributes[i].split("::")[0] for i in positions} == {family}
    groups = dict(zip(SCHEMA.groups, SCHEMA.members, strict=True))
    assert {name: len(members) for name, members in groups.items()} == {
        "colour": 239,
        "material": 31,
        "shape": 42,
    }
    assert {*FAMILIES["has_eye_color"]} <= {*groups["colour"]}
    assert {*FAMILIES["has_head_pattern"]} <= {*groups["material"]}
    assert {*FAMILIES["has_size"], *FAMILIES["has_bill_length"]} <= {*groups["shape"]}
    assert SCHEMA.hue_sensitive


@pytest.mark.parametrize(
    ("attribute", "phrase"),
    [
        ("has_bill_shape::curved_(up_or_down)", "a bird with a curved bill"),
        ("has_bill_shape::all-purpose", "a bird with an all-purpose bill"),
        ("has_wing_color::blue", "a bird with blue wings"),
        ("has_back_color::orange", "a bird with an orange back"),
        ("has_primary_color::grey", "a bird that is mostly grey"),
        ("has_tail_shape::forked_tail", "a bird with a forked tail"),
        ("has_wing_shape::long-wings", "a bird with long wings"),
        ("has_shape::owl-like", "a bird shaped like an owl"),
        ("has_size::very_small_(3_-_5_in)", "a bird that is very small (3 to 5 inches)"),
        ("has_head_pattern::unique_pattern", "a bird with a unique pattern on its head"),
        ("has_head_pattern::striped", "a bird with a striped head"),
    ],
)
def test_phrases_read_well(attribute, phrase):
    assert SCHEMA.phrases[SCHEMA.attributes.index(attribute)] == phrase


def test_phrases_are_all_different_and_none_is_left_raw():
    assert len(set(SCHEMA.phrases)) == 312
    for phrase in SCHEMA.phrases:
        assert phrase.startswith("a bird ")
        assert not set(phrase) & set("_:{}")


# What arrives.


@pytest.mark.parametrize("form", FORMS)
def test_every_form_arrives_intact(cub, form):
    opened = cub_files.open_official(cub.write(form))
    assert opened.origin == cub.folder / ("CUB_200_2011" if form == "inner" else "")
    assert sorted(opened.keys) == sorted(cub.keys)
    order = [cub.keys.index(key) for key in opened.keys]
    assert [opened.read_image(row) for row in range(7)] == [cub.images[key] for key in opened.keys]
    np.testing.assert_array_equal(opened.codes, 2 * cub.certainty[order] - 1 + cub.present[order])
    assert opened.codes.dtype == np.uint8
    np.testing.assert_array_equal(opened.splits["train"], np.flatnonzero(np.array(cub.train)[order] == 1))
    np.testing.assert_array_equal(opened.splits["test"], np.flatnonzero(np.array(cub.train)[order] == 0))
    assert list(opened.splits) == ["train", "test"]
    np.testing.assert_array_equal(opened.classes.of, np.array(cub.class_ids)[order] - 1)
    assert opened.classes.of.dtype == np.int32
    assert opened.classes.names == tuple(cub.class_names)
    np.testing.assert_allclose(opened.classes.rates, cub.percentages / 100, rtol=1e-6)
    assert opened.classes.rates.dtype == np.float32
    np.testing.assert_array_equal(opened.boxes, [[3, 2, 20, 11]] * 7)
    assert opened.captions is None


def test_rows_follow_the_archive_so_that_it_is_read_forwards(cub):
    files = cub.files()
    backwards = sorted(files, reverse=True)
    cub.folder.mkdir()
    write_tar(cub.folder / "CUB_200_2011.tgz", {name: files[name] for name in backwards})
    opened = cub_files.open_official(cub.folder)
    assert list(opened.keys) == sorted(cub.keys, reverse=True)
    assert opened.read_image(0) == cub.images[opened.keys[0]]


def test_the_unpacked_folder_comes_before_the_archive(cub):
    cub.write("unpacked")
    (cub.folder / "CUB_200_2011.tgz").write_bytes(b"half a download")
    assert len(cub_files.open_official(cub.folder).keys) == 7


@pytest.mark.parametrize("place", ["CUB_200_2011", "CUB_200_2011/attributes"])
def test_attribute_names_in_other_places(cub, place):
    folder = cub.write("unpacked")
    shutil.move(folder / "attributes.txt", folder / place / "attributes.txt")
    assert len(cub_files.open_official(folder).keys) == 7


def test_without_labels_of_images_nobody_looked(cub):
    opened = cub_files.open_official(cub.write(**{LABELS: None}))
    assert not opened.codes.any()
    assert not decode_labels(opened.codes, Options(certainty=1))[1].any()
    assert opened.classes.rates is not None
    shutil.rmtree(cub.folder)
    assert cub_files.open_official(cub.write(**{RATES: None})).classes.rates is None
    (cub.folder / "CUB_200_2011" / LABELS).unlink()
    with pytest.raises(DataError, match="nothing says which attributes the birds have"):
        cub_files.open_official(cub.folder)


def test_a_part_with_training_images_only(cub):
    cub.train = [1] * 7
    assert {name: len(rows) for name, rows in cub_files.open_official(cub.write()).splits.items()} == {
        "train": 7
    }


def test_carriage_returns_and_blank_ends_are_harmless(cub):
    lists = {name: text([*lines, ""]).replace(b"\n", b"\r\n") for name, lines in cub.lists().items()}
    opened = cub_files.open_official(cub.write(**lists))
    shutil.rmtree(cub.folder)
    np.testing.assert_array_equal(opened.codes, cub_files.open_official(cub.write()).codes)
    assert opened.classes.names == tuple(cub.class_names)


# Labels of images.


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("5 1 0 1 0.5", 1),  # absent, not visible
        ("5 1 1 1 0.5", 2),
        ("5 1 0 4 27.7", 7),
        ("5 1 1 3 0  1.509", 6),  # a stray 0 and two blanks before the time
        ("5 1 0 3 0 0 1.509", 5),  # seven columns
        ("5 1 1 2", 4),  # no time
        ("  5\t1 1  4 1.5 ", 8),
    ],
)
def test_irregular_lines(line, code):
    assert cub_lists.read_labels(Text("labels", line.encode()), {5: "a.jpg"}, 1).tolist() == [[code]]


def test_lines_in_any_order_and_ids_with_gaps():
    lines = [label_line(9, 2, 1, 4), label_line(4, 1, 1, 2), label_line(9, 1, 0, 3), label_line(4, 2, 0, 1)]
    codes = cub_lists.read_labels(Text("labels", text(lines)), {9: "b", 4: "a"}, 2)
    assert codes.tolist() == [[5, 8], [4, 1]]  # in the order of the images


def test_every_code_and_what_it_means():
    present, certainty = np.array([0, 1] * 4), np.repeat([1, 2, 3, 4], 2)
    codes = np.append(cub_lists.make_codes(present, certainty), np.uint8(0))
    assert codes.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 0]
    for least in (1, 2, 3, 4):
        labels, known = decode_labels(codes, Options(certainty=least))
        assert known.tolist() == [*(certainty >= least), False]
        assert labels.tolist() == [*(present * (certainty >= least)), 0]
        assert (labels.dtype, known.dtype) == (np.uint8, np.bool_)
    assert Options().certainty == 3
    assert decode_labels(codes.reshape(3, 3), Options())[0].shape == (3, 3)


@pytest.mark.parametrize("certainty", [0, 5, 2.5, None])
def test_there_are_four_certainties(certainty):
    with pytest.raises(DataError, match="certainty must be 1"):
        Options(certainty=certainty)


# Boxes.


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ("60.0 27.0 325.0 304.0", [27, 60, 304, 325]),
        ("10.2 20.9 5.0 5.0", [20, 10, 6, 6]),  # 10.2 to 15.2, 20.9 to 25.9
        ("-3.5 -0.2 10.0 4.0", [0, 0, 4, 7]),  # cut at the edges: to 6.5 and 3.8
        ("0 0 1 1", [0, 0, 1, 1]),
    ],
)
def test_boxes_are_whole_pixels_rounded_outward(box, expected):
    boxes = cub_lists.read_boxes(Text("boxes", f"8 {box}\n".encode()), {8: "a.jpg"})
    assert boxes.tolist() == [expected]
    assert boxes.dtype == np.int32


@pytest.mark.parametrize(
    "box", ["1 1 0 5", "1 1 5 -2.0", "-9 1 5 5", "1 1 nan 5", "1 1 inf 5", "1 1 5", "1 1 5 x", "1 1 5 5 5"]
)
def test_boxes_that_are_none(box):
    with pytest.raises(DataError, match=r"boxes, line 2: expected .*found"):
        cub_lists.read_boxes(Text("boxes", f"7 1 1 5 5\n8 {box}\n".encode()), {8: "a", 7: "b"})


# Captions.


@pytest.mark.parametrize("form", FORMS)
def test_captions_beside_and_inside(cub, form):
    key = cub.keys[0]
    cub.captions[f"{key[:-4]}.txt"] = text([f"bird \ufffd\ufffd number {i} ." for i in range(10)])
    cub.captions[f"{cub.keys[1][:-4]}.txt"] = b"\n\n"
    opened = cub_files.open_official(cub.write(form))
    caption = dict(zip(opened.keys, opened.captions, strict=True))
    assert caption.pop(key) in [f"bird number {i} ." for i in range(10)]
    assert set(caption.values()) == {None}
    assert opened.captions == cub_files.open_official(cub.folder).captions


def test_captions_in_the_folder_itself_and_unlike_choices(cub):
    for key in cub.keys:
        cub.captions[f"{key[:-4]}.txt"] = text(range(10))
    folder = cub.write("inner")
    shutil.move(cub.folder / "text_c10", folder / "text_c10")
    captions = cub_files.open_official(folder).captions
    assert len(set(captions)) > 1
    assert set(captions) <= set("0123456789")


# Splits.


def test_a_tenth_of_training_becomes_validation_whatever_else_there_is():
    keys = [f"{i}.jpg" for i in range(3000)]
    splits = {"train": np.arange(0, 2000), "test": np.arange(2000, 3000)}
    new = with_validation(splits, keys)
    assert list(new) == ["train", "test", "validation"]
    assert 150 < len(new["validation"]) < 250
    np.testing.assert_array_equal(new["test"], splits["test"])
    np.testing.assert_array_equal(np.sort(np.concatenate([new["train"], new["validation"]])), splits["train"])
    assert all((np.diff(rows) > 0).all() for rows in new.values())
    half = with_validation({"train": np.arange(1000)}, keys[1000:])
    moved = new["validation"][(new["validation"] >= 1000)] - 1000
    np.testing.assert_array_equal(half["validation"], moved)
    assert list(with_validation({"test": np.arange(5)}, keys)) == ["test"]


@pytest.mark.parametrize(
    ("species", "expected"),
    [(200, (100, 50, 50)), (50, (25, 12, 13)), (4, (2, 1, 1)), (2, (1, 0, 1)), (1, (1, 0, 0))],
)
def test_no_species_is_in_two_splits(species, expected):
    of = np.random.default_rng(0).permutation(np.repeat(np.arange(species) * 3, 3)).astype(np.int32)
    splits = class_disjoint(Classes(names=tuple(map(str, range(600))), of=of))
    names = ("train", "validation", "test")
    assert tuple(len(np.unique(of[splits[n]])) if n in splits else 0 for n in names) == expected
    assert sorted(np.concatenate(list(splits.values()))) == list(range(len(of)))
    in_order = [of[splits[n]] for n in names if n in splits]
    assert all(a.max() < b.min() for a, b in itertools.pairwise(in_order))


# Fingerprints.


def edit_list(cub):
    cub.class_ids[0] = 3


def edit_attributes_label(cub):
    cub.present[0, 0] ^= 1


def edit_image(cub):
    cub.images[cub.keys[0]] = jpeg(99)


def edit_caption(cub):
    cub.captions = {"a/b.txt": b"another caption"}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("edit", [edit_list, edit_attributes_label, edit_image, edit_caption])
def test_a_change_changes_the_fingerprint(cub, form, edit):
    folder = cub.write(form)
    before = cub_files.fingerprint(folder)
    assert before == cub_files.fingerprint(folder) == cub_files.open_official(folder).fingerprint
    edit(cub)
    cub.write(form)
    assert cub_files.fingerprint(folder) != before
    assert len(before) == 16


def test_lists_count_by_content_and_images_by_time(cub):
    folder = cub.write()
    before = cub_files.fingerprint(folder)
    os.utime(folder / "CUB_200_2011" / "images.txt", (1, 1))
    assert cub_files.fingerprint(folder) == before
    os.utime(folder / "CUB_200_2011" / "images" / cub.keys[0], (1, 1))
    assert cub_files.fingerprint(folder) != before


# What is wrong with the files, and what the one line must say.


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


# Whatever happens to a list, it is read or one line says what is wrong.

IMAGES = {3: "a/x.jpg", 1: "a/y.jpg", 20: "b/z.jpg"}
PARSERS = {
    "images": ("".join(f"{i} {path}\n" for i, path in IMAGES.items()), cub_lists.read_images),
    "classes": ("1 a\n2 b\n5 c\n", cub_lists.read_classes),
    "splits": ("3 1\n1 0\n20 1\n", lambda t: cub_lists.read_choices(t, "<image_id> <x>", IMAGES, ("0", "1"))),
    "boxes": ("3 1.5 2 3 4\n20 0 0 9.25 9\n1 3 3 1 1\n", lambda t: cub_lists.read_boxes(t, IMAGES)),
    "rates": ("0.0 12.5 100\n33.3 4 5\n", lambda t: cub_lists.read_rates(t, 2, 3)),
    "names": ("1 a\n2 not b\n", lambda t: cub_lists.check_names(t, ("a", "not b"))),
    "labels": (
        "3 1 0 4 1.5\n3 2 1 3 0  2.5\n1 1 0 1 0 0 1\n1 2 1 2 3\n20 1 1 1 1\n20 2 0 2 7\n",
        lambda t: cub_lists.read_labels(t, IMAGES, 2),
    ),
}
PIECES = st.one_of(
    st.binary(max_size=4),
    st.sampled_from(
        [b" ", b"\n", b"\r", b"-1", b"0", b"99999999999", b"1e9", b"nan", b"1_0", b"\x00", b"\x1c", b"#"]
    ),
)
EDITS = st.lists(st.tuples(st.integers(0, 100), st.integers(0, 9), PIECES), min_size=1, max_size=3)


@pytest.mark.parametrize("parser", PARSERS)
@settings(deadline=None, max_examples=150)
@given(edits=EDITS)
def test_any_edit_is_read_or_named(parser, edits):
    valid, read = PARSERS[parser]
    read(Text("list.txt", valid.encode()))
    data = valid.encode()
    for start, length, piece in edits:
        data = data[:start] + piece + data[start + length :]
    message = _complaint(read, Text("list.txt", data))
    if message is not None:
        assert "\n" not in message
        number = int(message.removeprefix("list.txt, line ").split(":")[0])
        assert 1 <= number <= data.count(b"\n") + 1


def _complaint(read, text):
    try:
        read(text)
    except DataError as error:
        return str(error)
    return None
