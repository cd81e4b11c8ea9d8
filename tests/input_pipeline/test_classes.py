"""Labels of class level, counted and thresholded."""

import hashlib

import numpy as np
import pytest
from official_files import OfficialCeleba

from input_pipeline import celeba, scenes
from input_pipeline.batch import First
from input_pipeline.classes import count_rates, labels_from_rates
from input_pipeline.errors import DataError
from input_pipeline.images import ImageOptions
from input_pipeline.pipeline import train_batches
from input_pipeline.scenes import source as scenes_source
from input_pipeline.weak_labels import WeakLabels


def test_rates_by_hand():
    labels = np.array([[1, 0, 1], [1, 1, 0], [0, 1, 0]], np.uint8)
    known = np.array([[1, 1, 0], [1, 0, 0], [1, 1, 1]], bool)
    rates = count_rates(labels, known, np.array([0, 0, 2], np.int32), 3)
    np.testing.assert_array_equal(rates, [[1.0, 0.0, np.nan], [np.nan] * 3, [0.0, 1.0, 0.0]])


def test_labels_from_rates_leave_the_middle_and_nan_unknown():
    labels, known = labels_from_rates(np.array([0.0, 0.4, 0.41, 0.59, 0.6, 1.0, np.nan]), 0.6, 0.4)
    assert labels.tolist() == [0, 0, 0, 0, 1, 1, 0]
    assert known.tolist() == [True, True, False, False, True, True, False]


def persons(official, of):
    lines = [f"{key} {person}" for key, person in zip(official.keys, of, strict=True)]
    (official.folder / "identity_CelebA.txt").write_text("\n".join(lines))


def test_a_persons_training_images_decide(tmp_path, monkeypatch):
    """Rates are counted from the training split alone: validation images of the same person say nothing."""
    monkeypatch.setenv("WSCA_CACHE", str(tmp_path / "cache"))
    official = OfficialCeleba(tmp_path / "official", {"0": 5, "1": 2})
    folder = official.write()
    persons(official, [7, 7, 7, 3, 3, 7, 3])
    source = celeba.open_split(folder, "train", celeba.Options())
    means = {7: official.labels[:3].mean(0), 3: official.labels[3:5].mean(0)}
    weak = WeakLabels(class_level=True)
    batch = next(
        train_batches(source, images=ImageOptions(8), weak_labels=weak, batch_size=5, seed=0, threads=0)
    )
    for row, index in enumerate(batch.index):
        rates = means[7 if index < 3 else 3]
        np.testing.assert_array_equal(batch.labels[row], rates >= 0.6)
        np.testing.assert_array_equal(batch.known[row], (rates >= 0.6) | (rates <= 0.4))


def test_settings_are_chosen_on_other_persons_than_they_are_trained_on(tmp_path, monkeypatch):
    monkeypatch.setenv("WSCA_CACHE", str(tmp_path / "cache"))
    official = OfficialCeleba(tmp_path / "official", {"0": 40, "1": 4})
    folder = official.write()
    of = [row % 20 + 1 for row in range(44)]
    persons(official, of)
    person = dict(zip(official.keys, of, strict=True))
    found = {}
    for split in ("train", "validation"):
        source = celeba.open_split(folder, split, celeba.Options(split="tuning"))
        found[split] = {source[i].key for i in range(len(source))}
    assert found["train"] | found["validation"] == set(official.keys[:40])
    aside = {n for n in range(1, 21) if int(hashlib.sha256(b"%d" % n).hexdigest(), 16) % 10 == 0}
    assert {person[key] for key in found["validation"]} == aside != set()
    assert not {person[key] for key in found["train"]} & aside
    with pytest.raises(DataError, match="no split tuning/test"):
        celeba.open_split(folder, "test", celeba.Options(split="tuning"))
    with pytest.raises(DataError, match="split is 'half', expected official or tuning"):
        celeba.Options(split="half")


def test_without_persons_there_is_no_tuning_split(tmp_path, monkeypatch):
    monkeypatch.setenv("WSCA_CACHE", str(tmp_path / "cache"))
    folder = OfficialCeleba(tmp_path / "official", {"0": 5}).write()
    with pytest.raises(DataError, match="no split tuning/train; it holds none of that kind"):
        celeba.open_split(folder, "train", celeba.Options(split="tuning"))


def test_data_without_classes_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("WSCA_CACHE", str(tmp_path / "cache"))
    source = celeba.open_split(
        OfficialCeleba(tmp_path / "official", {"0": 5}).write(), "train", celeba.Options()
    )
    for without in (source, First(source, 3)):
        with pytest.raises(DataError, match="needs examples with classes, and these have none"):
            train_batches(
                without,
                images=ImageOptions(8),
                weak_labels=WeakLabels(class_level=True),
                batch_size=2,
                seed=0,
            )


def test_a_scenes_class_is_its_background(monkeypatch):
    """Rates are counted from as many training images as are looked at, for every split alike."""
    monkeypatch.setattr(scenes_source, "RATED", 150)
    options = scenes.Options(train_images=200, validation_images=20, material_background=0.9)
    train, validation = (scenes.open_split(None, split, options) for split in ("train", "validation"))
    backgrounds = [train.factors(index).background for index in range(200)]
    labels = np.stack([train.labels(index) for index in range(150)])
    np.testing.assert_array_equal(validation.class_rates.rates, train.class_rates.rates)
    assert len(train.class_rates.rates) == len({*backgrounds})
    for index, name in enumerate(backgrounds):
        like = [other == name for other in backgrounds[:150]]
        np.testing.assert_allclose(train.class_rates.of_example(index), labels[like].mean(0), rtol=1e-6)
    weak = WeakLabels(class_level=True)
    batch = next(train_batches(train, images=ImageOptions(16), weak_labels=weak, batch_size=8, seed=0))
    rates = train.class_rates.rates[train.class_rates.of[batch.index]]
    np.testing.assert_array_equal(batch.labels, rates >= 0.6)
    np.testing.assert_array_equal(batch.known, (rates >= 0.6) | (rates <= 0.4))
    assert batch.labels[:, scenes.SCHEMA.members[scenes.SCHEMA.groups.index("material")]].sum() > 0
    seen = [validation.factors(index).background for index in range(20)]
    first = {name: seen.index(name) for name in seen}
    of = validation.class_rates.of
    assert [int(of[first[name]]) for name in seen] == of.tolist()
    assert len({*of.tolist()}) == len(first)


def test_thresholds_that_cross_are_refused():
    with pytest.raises(DataError, match="class_present must be above class_absent"):
        WeakLabels(class_present=0.4, class_absent=0.4)


@pytest.mark.parametrize("line", ["000001.jpg", "000001.jpg x", "000001.jpg 1 2"])
def test_a_wrong_identity_line_is_named(tmp_path, line):
    official = OfficialCeleba(tmp_path / "official", {"0": 3})
    folder = official.write()
    (folder / "identity_CelebA.txt").write_text(f"000002.jpg 1\n{line}\n")
    with pytest.raises(DataError, match=r"identity_CelebA.txt, line 2: expected an image name and a person"):
        celeba.verify(folder, celeba.Options())
