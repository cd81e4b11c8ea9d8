"""A folder of one's own images as a data set: its schema, its splits, its captions' words."""

import logging

import numpy as np
import pytest
from official_files import OfficialCeleba
from official_folder import OfficialFolder

from input_pipeline import celeba, folder
from input_pipeline.errors import DataError
from input_pipeline.images import ImageOptions
from input_pipeline.pipeline import train_batches
from input_pipeline.text import Text, TextOptions
from input_pipeline.weak_labels import WeakLabels

OPTIONS = folder.Options()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("WSCA_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def mine(tmp_path):
    (tmp_path / "mine").mkdir()
    return OfficialFolder(tmp_path / "mine")


def keys(data_dir, split):
    source = folder.open_split(data_dir, split, OPTIONS)
    return [source[i].key for i in range(len(source))]


def test_every_image_arrives_with_its_labels(mine):
    source = folder.open_split(mine.write(), "train", OPTIONS)
    first = source[0]
    assert (first.key, first.image) == ("a.jpg", mine.images["a.jpg"])
    assert (first.labels.tolist(), first.known.tolist()) == ([1, 0, 0], [True, True, False])
    assert source.truth == "labels of each image"
    assert keys(mine.folder, "test") == ["deep/d, e.jpg"]


def test_the_schema_is_the_folders_before_and_after_preparing(mine, tmp_path):
    mine.schema = "name: my toys/2024\ngroups: {form: [round], hue: [red, light_blue]}"
    schema = folder.schema(mine.write(), OPTIONS)
    assert (schema.name, schema.groups) == ("my toys/2024", ("form", "hue"))
    prepared = folder.prepare(mine.folder, tmp_path / "prepared")
    assert folder.schema(prepared, OPTIONS) == schema
    assert folder.open_split(prepared, "train", OPTIONS).schema == schema
    assert folder.verify(prepared, OPTIONS).ok


def test_the_schema_is_read_without_a_look_at_the_images(mine):
    mine.images = {}
    assert folder.schema(mine.write(), OPTIONS).attributes == ("red", "round", "light_blue")
    with pytest.raises(DataError, match="no data folder; give the one with your images and a CSV"):
        folder.schema(None, OPTIONS)


def test_without_validation_images_some_of_training_are_set_aside(mine, caplog):
    for row in mine.rows:
        row[1] = "test" if row[1] == "test" else "train"
    with caplog.at_level(logging.WARNING):
        training, validation = keys(mine.write(), "train"), keys(mine.folder, "validation")
    assert "no image is for validation, so 1 of 4 training images are set aside" in caplog.text
    assert len(validation) == 1
    assert {*training, *validation} == mine.images.keys() - {"deep/d, e.jpg"}


def test_a_split_that_is_not_there(mine):
    mine.rows = [row for row in mine.rows if row[1] != "test"]
    with pytest.raises(DataError, match="there is no split 'test'; it holds train, validation"):
        keys(mine.write(), "test")


def test_data_prepared_from_another_data_set_is_refused(tmp_path):
    faces = celeba.prepare(
        OfficialCeleba(tmp_path / "official", {"0": 2}).write(), tmp_path / "prepared_faces"
    )
    for use in (folder.schema, folder.verify, lambda *given: folder.open_split(given[0], "train", OPTIONS)):
        with pytest.raises(DataError, match="prepared from 'celeba', expected 'folder'"):
            use(faces, OPTIONS)


def test_a_changed_table_is_another_entry_of_the_cache(mine):
    assert keys(mine.write(), "train") == ["a.jpg", "b.png"]
    mine.rows[1][1] = "test"
    assert keys(mine.write(), "train") == ["a.jpg"]


@pytest.fixture
def captioned(mine):
    mine.header.append("caption")
    said = ("A red zebra!", "a zebra on wheels", "a giraffe", "an elephant", "")
    mine.rows = [[*row, caption] for row, caption in zip(mine.rows, said, strict=True)]
    return mine


def test_words_of_training_captions_are_known_and_no_others(captioned, tmp_path):
    prepared = folder.prepare(captioned.write(), tmp_path / "prepared")
    for data_dir, split in ((captioned.folder, "train"), (prepared, "train"), (prepared, "validation")):
        source = folder.open_split(data_dir, split, OPTIONS)
        assert source.caption_words == ("zebra", "on", "red", "wheels")


def test_a_caption_gives_way_where_a_label_is_hidden(captioned):
    captioned.rows = [[path, "train", "1", "1", "1", said] for path, _, *_, said in captioned.rows]
    source = folder.open_split(captioned.write(), "train", OPTIONS)
    text = Text(TextOptions("source", vocabulary=200), source.schema, words=source.caption_words)
    zebra = text.encode("zebra")[0]
    settings = {"images": ImageOptions(8), "text": text, "batch_size": len(source), "seed": 0, "threads": 0}
    told = next(train_batches(source, **settings))
    assert np.isin(told.tokens, zebra).any()
    hidden = next(train_batches(source, weak_labels=WeakLabels(known_fraction=0.5), **settings))
    whole = hidden.known.all(axis=1)
    assert not whole.all()
    assert not np.isin(hidden.tokens[~whole], zebra).any()


def test_prepared_it_is_a_tfds_data_set_with_its_captions(mine, tmp_path):
    """What TensorFlow Datasets reads; an image without a caption has an empty one there."""
    import tensorflow_datasets as tfds

    mine.header.append("caption")
    mine.rows = [[*row, "" if row[0] == "b.png" else f"seen in {row[0]}"] for row in mine.rows]
    output = folder.prepare(mine.write(), tmp_path / "prepared")
    data = tfds.builder_from_directory(output).as_data_source("train")
    found = {data[i]["key"].decode(): data[i] for i in range(len(data))}
    assert (found["a.jpg"]["caption"], found["b.png"]["caption"]) == (b"seen in a.jpg", b"")
    source = folder.open_split(output, "train", OPTIONS)
    assert {source[i].caption for i in range(len(source))} == {"seen in a.jpg", None}
    assert found["a.jpg"]["labels"].tolist() == [1, 0, 2]  # present, absent, unknown
    assert found["b.png"]["image"].shape[2] == 3


def test_training_batches_may_have_the_labels_of_the_column_class(mine):
    """The class alone decides: "round" is true of half of the training images of "toy", "red" of all."""
    mine.header.insert(2, "class")
    mine.rows = [[*row[:2], "toy" if row[0] in ("a.jpg", "b.png") else "tool", *row[2:]] for row in mine.rows]
    mine.rows[1][3] = "1"
    source = folder.open_split(mine.write(), "train", OPTIONS)
    settings = {"images": ImageOptions(8), "batch_size": 2, "seed": 0, "threads": 0}
    batch = next(train_batches(source, weak_labels=WeakLabels(class_level=True), **settings))
    assert batch.labels.tolist() == [[1, 0, 0]] * 2
    assert batch.known.tolist() == [[True, False, False]] * 2
