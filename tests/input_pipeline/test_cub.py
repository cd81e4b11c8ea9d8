"""CUB-200-2011 as a data set: its two ways to split, boxes, and labels that only classes have."""

import json

import numpy as np
import pytest
from official_cub import OfficialCub

from input_pipeline import cub
from input_pipeline.errors import DataError
from input_pipeline.images import ImageOptions
from input_pipeline.pipeline import eval_batches, train_batches
from input_pipeline.weak_labels import WeakLabels
from wsca_jax import cli


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("WSCA_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def official(tmp_path):
    return OfficialCub(tmp_path / "official")


def examples(folder, name, **options):
    source = cub.open_split(folder, name, cub.Options(**options))
    return {example.key: example for example in (source[i] for i in range(len(source)))}


def species(found):
    return {key.split("/")[0] for key in found}


@pytest.mark.parametrize("form", ["archive", "unpacked"])
def test_every_image_arrives_with_its_labels(official, form):
    folder = official.write(form)
    found = {}
    for split in ("train", "validation", "test"):
        found |= examples(folder, split, certainty=3)
    assert found.keys() == set(official.keys)
    for row, key in enumerate(official.keys):
        assert found[key].image == official.images[key]
        certain = official.certainty[row] >= 3
        np.testing.assert_array_equal(found[key].known, certain)
        np.testing.assert_array_equal(found[key].labels, official.present[row] * certain)


def test_no_species_stands_in_two_splits(official):
    folder = official.write()
    splits = [
        species(examples(folder, name, split="class_disjoint")) for name in ("train", "validation", "test")
    ]
    assert all(splits)
    assert sum(map(len, splits)) == len(set.union(*splits)) == 4


def test_the_birds_box_is_cut_out_where_asked_for(official):
    folder = official.write()
    assert all(example.view is None for example in examples(folder, "train").values())
    (view,) = {example.view for example in examples(folder, "train", crop=True).values()}
    assert view == (3, 2, 20, 11)  # 2.5 .. 12.75 across and 3 .. 23 down, rounded outward


def test_without_labels_of_images_those_of_classes_are_the_truth(official):
    folder = official.write(**{"attributes/image_attribute_labels.txt": None})
    source = cub.open_split(folder, "test", cub.Options())
    assert source.truth == "rates of each image's class: present from 0.6, absent up to 0.4"
    for example in examples(folder, "test").values():
        rates = official.percentages[official.class_names.index(example.key.split("/")[0])] / 100
        np.testing.assert_array_equal(example.labels, rates >= 0.6)
        np.testing.assert_array_equal(example.known, (rates >= 0.6) | (rates <= 0.4))


def test_class_level_labels_in_training_and_the_truth_in_evaluation(official):
    folder = official.write()
    source = cub.open_split(folder, "train", cub.Options(certainty=1))
    assert source.truth == "labels of each image, from certainty 1 (not visible) on"
    assert cub.open_split(folder, "test", cub.Options()).truth.endswith("from certainty 3 (probably) on")
    weak = WeakLabels(class_level=True, class_present=0.7, class_absent=0.2)
    settings = {"images": ImageOptions(16), "batch_size": len(source), "threads": 0}
    training = next(train_batches(source, weak_labels=weak, seed=0, **settings))
    truth = next(eval_batches(source, **settings))
    for row, index in enumerate(training.index):
        key = source[int(index)].key
        rates = official.percentages[official.class_names.index(key.split("/")[0])] / 100
        np.testing.assert_array_equal(training.labels[row], rates >= 0.7)
        np.testing.assert_array_equal(training.known[row], (rates >= 0.7) | (rates <= 0.2))
        np.testing.assert_array_equal(truth.labels[index], official.present[official.keys.index(key)])


def test_wrong_settings_are_one_line():
    with pytest.raises(DataError, match="split is 'zero_shot', expected official or class_disjoint"):
        cub.Options(split="zero_shot")
    with pytest.raises(DataError, match="certainty"):
        cub.Options(certainty=5)


@pytest.mark.parametrize("labels_of", ["images", "classes"])
def test_verify_counts_the_labels_that_a_source_hands_out(official, tmp_path, labels_of):
    missing = {} if labels_of == "images" else {"attributes/image_attribute_labels.txt": None}
    folder = official.write(**missing)
    prepared = cub.prepare(folder, tmp_path / "prepared")
    for place in (folder, prepared):
        for split in cub.verify(place, cub.Options()).splits:
            found = examples(folder, split.split).values()
            known = np.array([example.known for example in found])
            positive = np.array([example.labels for example in found])
            assert split.readable == len(known)
            assert known.any()
            np.testing.assert_allclose(split.known_rate, known.mean(0))
            with np.errstate(invalid="ignore"):
                np.testing.assert_allclose(split.positive_rate, positive.sum(0) / known.sum(0))
            for shown in split.shown:
                example = next(example for example in found if example.key == shown.key)
                np.testing.assert_array_equal(shown.labels, example.labels)
                np.testing.assert_array_equal(shown.known, example.known)


def test_prepared_it_is_a_tfds_data_set_with_its_boxes(official, tmp_path):
    import tensorflow_datasets as tfds

    output = cub.prepare(official.write(), tmp_path / "prepared")
    data = tfds.builder_from_directory(output).as_data_source("test")
    boxes = {data[i]["key"].decode(): data[i]["box"].tolist() for i in range(len(data))}
    assert boxes == {key: [3, 2, 20, 11] for key in examples(output, "test")}  # top, left, height, width


@pytest.mark.slow
def test_prepare_verify_train_and_evaluate_on_the_command_line(official, tmp_path):
    """Labels of species, images cut to their birds, the official split; each step of what prepare wrote."""
    shards, workdir = tmp_path / "shards", tmp_path / "run"
    assert cli.main(["prepare", "--data_dir", str(official.write("archive")), "--output", str(shards)]) == 0
    assert cli.main(["verify", "--data_dir", str(shards)]) == 0
    small = (
        *("model.trunk.width=8", "model.hidden_size=16", "model.attr_dim=8", "data.images.size=16"),
        *("train.batch_size=8", "train.epochs=3", "evaluation.batch_size=8"),
    )
    config = ["--config", "configs/cub.py:small_official", "--data_dir", str(shards)]
    settings = [f"--config.{setting}" for setting in small]
    assert cli.main(["train", *config, "--workdir", str(workdir), *settings]) == 0
    assert cli.main(["evaluate", "--workdir", str(workdir), "--split", "test"]) == 0
    figures = json.loads((workdir / "evaluation_test.json").read_text())
    assert figures["truth"] == "labels of each image, from certainty 3 (probably) on"
    assert figures["results"]["examples"] == len(examples(shards, "test"))
