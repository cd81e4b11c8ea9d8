"""COCO Attributes as a data set: objects with their surroundings, votes as labels, captions of images."""

import json

import numpy as np
import pytest
from official_coco import HEIGHT, WIDTH, OfficialCoco

from input_pipeline import coco_attributes
from input_pipeline.errors import DataError
from input_pipeline.images import Box, ImageOptions, decode, image_shape, load
from input_pipeline.pipeline import train_batches
from input_pipeline.weak_labels import WeakLabels
from wsca_jax import cli


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("WSCA_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def coco(tmp_path):
    return OfficialCoco(tmp_path / "official", train=6, val=12)


def opened(folder, split="train", **options):
    return coco_attributes.open_split(folder, split, coco_attributes.Options(**options))


def test_votes_become_labels(coco):
    source = opened(coco.write(), positive=0.6, negative=0.4)
    assert source.truth == "votes on each object: present from a share of 0.6, absent below 0.4"
    assert len(source) == 6
    for row in range(6):
        example, votes = source[row], coco.votes[row]
        assert example.key == f"train2014/{coco.file(row).removesuffix('.jpg')}_{coco.annotations[row]}"
        np.testing.assert_array_equal(example.labels, votes > 0.5)
        np.testing.assert_array_equal(example.known, np.ones(204, bool))  # 0, 1/3, 2/3 and 1
    thirds = (coco.votes[0] > 0.3) & (coco.votes[0] < 0.7)
    narrow = opened(coco.folder, positive=0.9, negative=0.1)[0]
    np.testing.assert_array_equal(narrow.known, ~thirds)


def test_every_object_is_stored_alone_and_seen_with_its_surroundings(coco):
    """A box of 20 by 10.25 pixels: a twelfth of each side is seen around it, a quarter is stored."""
    source, row = opened(coco.write()), 5
    example = source[row]
    assert image_shape(example.image)[0] <= 30
    assert image_shape(example.image)[1] <= 17
    top, left = 2.0, row + 0.5
    margin = np.array([21, 11]) / 12  # the box in whole pixels has 20 rows and 11 columns
    assert example.view.height == pytest.approx(20 + 2 * margin[0], abs=2)
    assert example.view.width == pytest.approx(11 + 2 * margin[1], abs=2)
    whole = decode(coco.images[coco.file(row)])
    assert whole.shape == (HEIGHT, WIDTH, 3)
    wide = Box(int(top - 5 / 3), int(left - 11 / 12), example.view.height, example.view.width)
    expected = load(coco.images[coco.file(row)], ImageOptions(16), box=wide).astype(int)
    found = load(example.image, ImageOptions(16), box=example.view).astype(int)
    assert np.abs(found - expected).mean() < 12  # re-encoded once, and moved by a fraction of a pixel
    alone = opened(coco.folder, context=0.0)[row].view
    assert (alone.height, alone.width) == (20, 11)


def test_prepared_smaller_it_is_the_same_data_set(coco, tmp_path):
    folder = coco_attributes.prepare(coco.write(), tmp_path / "prepared", shortest=8)
    for split in ("train", "validation", "test"):
        before, after = opened(coco.folder, split), opened(folder, split)
        assert [before[i].key for i in range(len(before))] == [after[i].key for i in range(len(after))]
        assert min(image_shape(after[0].image)) == 8
    assert coco_attributes.verify(folder, coco_attributes.Options()).ok
    assert coco_attributes.verify(coco.folder, coco_attributes.Options()).ok


def test_the_pickle_is_read_once(coco, tmp_path, monkeypatch):
    opened(coco.write())
    (short,) = (tmp_path / "cache" / "coco_attributes" / "votes").iterdir()
    assert short.suffix == ".npz"
    monkeypatch.setattr(coco_attributes.votes, "read_pickle", lambda *_: pytest.fail("read again"))
    coco_attributes.prepare(coco.folder, tmp_path / "prepared")


def write_captions(coco, split):
    rows = [row for row, its in enumerate(coco.splits) if its == split]
    numbers = sorted({coco.image_ids[row] for row in rows})
    record = {
        "images": [{"id": coco.image_ids[row], "file_name": coco.file(row)} for row in rows],
        "annotations": [
            {"id": 10 * image + k, "image_id": image, "caption": f"a {word}\nseen {image}"}
            for image in numbers
            for k, word in enumerate(("zebra", "tram"))
        ],
    }
    (coco.folder / f"captions_{split}.json").write_text(json.dumps(record))


def test_captions_are_the_images_own_where_they_are_there(coco):
    coco.write()
    assert opened(coco.folder)[0].caption is None
    write_captions(coco, "train2014")
    write_captions(coco, "val2014")
    for split in ("train", "test"):
        source = opened(coco.folder, split)
        for i in range(len(source)):
            image = int(source[i].key.split("_")[-2])
            assert source[i].caption in {f"a zebra seen {image}", f"a tram seen {image}"}
    assert {"zebra", "tram"} & {*opened(coco.folder).caption_words}


def test_captions_that_are_none_are_one_line(coco):
    (coco.write() / "captions_train2014.json").write_text('{"images": [], "annotations": [{}]}')
    with pytest.raises(DataError, match=r"captions_train2014\.json: expected COCO's captions"):
        opened(coco.folder)


def test_wrong_settings_are_one_line():
    for context in (-0.1, 0.17, float("nan")):
        with pytest.raises(DataError, match=r"context must lie in \[0, 0\.1667\]"):
            coco_attributes.Options(context=context)
    with pytest.raises(DataError, match="negative <= positive"):
        coco_attributes.Options(positive=0.2, negative=0.4)


def test_everything_is_prepared_where_the_options_say(coco, tmp_path):
    chosen = tmp_path / "chosen"
    opened(coco.write(), cache_dir=str(chosen))
    assert {path.name.split("-")[0] for path in (chosen / "coco_attributes").iterdir()} >= {"votes"}
    assert not (tmp_path / "cache").exists()


@pytest.mark.slow
def test_prepare_verify_train_and_evaluate_on_the_command_line(coco, tmp_path):
    shards, workdir = tmp_path / "shards", tmp_path / "run"
    data = ("--data", "coco_attributes", "--data_dir")
    assert cli.main(["prepare", *data, str(coco.write()), "--output", str(shards), "--resize", "16"]) == 0
    assert cli.main(["verify", *data, str(shards)]) == 0
    small = (
        *("trunk.width=8", "hidden_size=16", "attr_dim=8"),
        *("images.size=16", "options.positive=0.6", "options.negative=0.4"),
        *("batch_size=8", "epochs=3", "batch_size=8"),
    )
    sections = ("model",) * 3 + ("data",) * 3 + ("train",) * 2 + ("evaluation",)
    settings = [f"--config.{section}.{key}" for section, key in zip(sections, small, strict=True)]
    config = ["--config", "configs/coco_attributes.py:small", "--data_dir", str(shards)]
    assert cli.main(["train", *config, "--workdir", str(workdir), *settings]) == 0
    assert cli.main(["evaluate", "--workdir", str(workdir), "--split", "test"]) == 0
    figures = json.loads((workdir / "evaluation_test.json").read_text())
    assert figures["truth"] == "votes on each object: present from a share of 0.6, absent below 0.4"
    assert figures["results"]["examples"] == len(opened(shards, "test"))


def test_training_batches_may_have_the_labels_of_categories(coco):
    """Rates are counted over the training objects of a category, at the thresholds of the options."""
    source = opened(coco.write())
    weak = WeakLabels(class_level=True)
    settings = {"images": ImageOptions(8), "batch_size": 6, "seed": 0, "threads": 0}
    batch = next(train_batches(source, weak_labels=weak, **settings))
    category = coco.category_ids[:6]
    plain = [source[i] for i in range(6)]
    for row, index in enumerate(batch.index):
        same = [example for example, its in zip(plain, category, strict=True) if its == category[index]]
        known = np.sum([example.known for example in same], axis=0)
        rates = np.sum([example.labels * example.known for example in same], axis=0) / np.maximum(known, 1)
        np.testing.assert_array_equal(batch.labels[row], (rates >= 0.6) & (known > 0))
        np.testing.assert_array_equal(batch.known[row], ((rates >= 0.6) | (rates <= 0.4)) & (known > 0))
    fewer = WeakLabels(class_level=True, known_fraction=0.3)
    kept = next(train_batches(source, weak_labels=fewer, **settings)).known  # the same order of examples
    assert not (kept & ~batch.known).any()
    assert kept.sum() / batch.known.sum() == pytest.approx(
        0.3, abs=0.06
    )  # of 6 x 204 labels, less the unknown
