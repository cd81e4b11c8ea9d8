"""CUB-200-2011 from small official folders: right ones arrive intact, split, and with a fingerprint."""

import itertools
import os
import shutil

import numpy as np
import pytest
from official_cub import FORMS, LABELS, RATES, text, write_tar
from official_files import jpeg

from input_pipeline.cub import files as cub_files
from input_pipeline.cub.files import Options, class_disjoint, decode_labels
from input_pipeline.errors import DataError
from input_pipeline.splits import with_validation
from input_pipeline.storage.official import Classes


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


def test_rows_follow_the_archive(cub):
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
    assert list(new) == ["train", "validation", "test"]
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
