"""Prepared data that is damaged says where: in a real folder, really damaged."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from official_files import OfficialCeleba

from input_pipeline import celeba
from input_pipeline.errors import CorruptRecordError, DataError
from input_pipeline.images import ImageOptions
from input_pipeline.labels import binary_codes
from input_pipeline.pipeline import eval_batches
from input_pipeline.schema import AttributeSchema
from input_pipeline.storage.prepared import PreparedSource, Reading, read_manifest, write_manifest
from input_pipeline.storage.shards import file_sha256, measure

SHARD = "celeba-train.array_record-00000-of-00001"
COUNT = 12


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("celeba")
    official = OfficialCeleba(folder / "official", {"0": COUNT, "1": 2})
    return official, celeba.prepare(official.write(), folder / "prepared")


@pytest.fixture
def folder(made, tmp_path):
    return shutil.copytree(made[1], tmp_path / "prepared")


def source(folder):
    return PreparedSource(folder, "train", celeba.SCHEMA, Reading(binary_codes))


def flip(path, position):
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(bytes(data))


def unreadable(folder):
    """The positions that cannot be read; all of them where the shard cannot be opened."""
    try:
        data = source(folder)
    except DataError:
        return [*range(COUNT)]
    found = []
    for index in range(COUNT):
        try:
            data[index]
        except CorruptRecordError:
            found.append(index)
    return found


def damage_one_record(folder):
    """Flips a bit that only one record feels, and returns that record. Most bits of a full block are such."""
    whole = (folder / SHARD).read_bytes()
    for position in range(2000, len(whole), 501):
        flip(folder / SHARD, position)
        if len(found := unreadable(folder)) == 1:
            return found[0]
        (folder / SHARD).write_bytes(whole)
    raise AssertionError("no bit of the shard belongs to one record")


def test_a_whole_folder_verifies(made, folder):
    report = celeba.verify(folder, celeba.Options())
    assert report.ok
    assert report.problems == ()
    assert [(s.split, s.examples, s.readable) for s in report.splits] == [
        ("train", COUNT, COUNT),
        ("validation", 2, 2),
    ]
    np.testing.assert_allclose(report.splits[0].positive_rate, made[0].labels[:COUNT].mean(0))
    assert "no problems" in str(report)


def test_a_flipped_bit_is_found_in_its_record_and_nowhere_else(made, folder):
    record = damage_one_record(folder)
    report = celeba.verify(folder, celeba.Options())
    assert not report.ok
    assert report.splits[0].readable == COUNT - 1
    assert [line.split(":")[0] for line in report.problems] == [
        str(folder / SHARD),  # the shard's own SHA-256
        f"{folder / SHARD}, record {record}",
    ]
    with pytest.raises(CorruptRecordError, match=f"{SHARD}, record {record}: damaged"):
        source(folder)[record]


def test_no_flipped_bit_anywhere_passes_verify_or_changes_an_example(made, folder):
    whole = (folder / SHARD).read_bytes()
    expected = [source(folder)[i] for i in range(COUNT)]
    for position in np.random.default_rng(0).integers(0, len(whole), 150):
        flip(folder / SHARD, int(position))
        assert not celeba.verify(folder, celeba.Options()).ok
        for index in {*range(COUNT)} - {*unreadable(folder)}:
            example = source(folder)[index]
            assert (example.key, example.image) == (expected[index].key, expected[index].image)
            np.testing.assert_array_equal(example.labels, expected[index].labels)
        (folder / SHARD).write_bytes(whole)


@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 0.999])
def test_a_truncated_shard_is_refused_when_opened_and_named_by_verify(folder, keep):
    whole = (folder / SHARD).read_bytes()
    (folder / SHARD).write_bytes(whole[: int(keep * len(whole))])
    with pytest.raises(DataError, match=f"{SHARD}: expected {len(whole)} bytes, found"):
        source(folder)
    report = celeba.verify(folder, celeba.Options())
    assert (report.splits[0].readable, report.splits[1].readable) == (0, 2)
    assert np.isnan(report.splits[0].positive_rate).all()
    assert SHARD in report.problems[0]


def test_a_shard_that_is_gone(folder):
    (folder / SHARD).unlink()
    with pytest.raises(DataError, match=f"{SHARD}: expected .* found nothing"):
        source(folder)
    assert not celeba.verify(folder, celeba.Options()).ok


def test_a_shard_of_zeros_of_the_right_size(folder):
    size = (folder / SHARD).stat().st_size
    (folder / SHARD).write_bytes(bytes(size))
    with pytest.raises(DataError, match=f"{SHARD}: damaged"):
        source(folder)
    assert SHARD in celeba.verify(folder, celeba.Options()).problems[0]


def rewrite(folder, change):
    """Writes the training shard anew with changed records, and a manifest that believes it."""
    from array_record.python import array_record_module
    from tensorflow_datasets.proto import tf_example_pb2

    path = str(folder / SHARD)
    reader = array_record_module.ArrayRecordReader(path)
    records = [tf_example_pb2.Example.FromString(r) for r in reader.read([*range(COUNT)])]
    reader.close()
    writer = array_record_module.ArrayRecordWriter(path, "group_size:1")
    for row, record in enumerate(records):
        change(row, record.features.feature)
        writer.write(record.SerializeToString())
    writer.close()
    believe(folder, {**read_manifest(folder).splits, "train": (measure(folder / SHARD, COUNT),)})


def believe(folder, splits):
    """Writes a manifest of these shards."""
    write_manifest(folder, dataclasses.replace(read_manifest(folder), splits=splits))


def test_an_image_that_is_not_the_one_prepared(made, folder):
    """Flipped bits mostly decode all the same: only the hash taken when the data was prepared can tell."""

    def change(row, features):
        if row == 3:
            image = bytearray(features["image"].bytes_list.value[0])
            image[-30] ^= 1
            features["image"].bytes_list.value[0] = bytes(image)

    rewrite(folder, change)
    (problem,) = celeba.verify(folder, celeba.Options()).problems
    assert f"record 3 ({made[0].keys[3]}): the image is not the one prepared" in problem


def test_a_record_without_its_labels(folder):
    def change(row, features):
        if row == 3:
            features["labels"].bytes_list.value[0] = b"\0" * 39

    rewrite(folder, change)
    with pytest.raises(CorruptRecordError, match=r"record 3: damaged .*39 labels, expected 40"):
        source(folder)[3]
    assert len(celeba.verify(folder, celeba.Options()).problems) == 1


def test_positions_outside(folder):
    for index in (-1, COUNT):
        with pytest.raises(IndexError):
            source(folder)[index]


def test_labels_cannot_be_changed_through_an_example(folder):
    data = source(folder)
    expected = data[0].labels.copy()
    data[0].labels[:] = 1 - expected
    data[0].known[:] = False
    np.testing.assert_array_equal(data[0].labels, expected)
    assert data[0].known.all()


def test_data_of_another_schema_is_refused(folder):
    other = AttributeSchema.from_groups("toys", ("red",), {"colour": (0,)})
    with pytest.raises(
        DataError, match="prepared from 'celeba' with 40 attributes, expected 'toys' with its 1"
    ):
        PreparedSource(folder, "train", other, Reading(binary_codes))


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{", "expected a manifest"),
        ("[]", "expected a manifest"),
        ('{"format_version": 4}', "expected a manifest"),
        ('{"format_version": 2}', "expected format version 4, found 2; prepare the data again"),
    ],
)
def test_a_manifest_that_is_none(folder, text, match):
    (folder / "manifest.json").write_text(text)
    with pytest.raises(DataError, match=match):
        source(folder)


def test_the_manifest_holds_what_it_says(folder):
    manifest = read_manifest(folder)
    assert manifest.schema == celeba.SCHEMA
    (shard,) = manifest.splits["train"]
    assert (shard.file, shard.records) == (SHARD, COUNT)
    assert shard.bytes == (folder / SHARD).stat().st_size
    assert shard.sha256 == file_sha256(folder / SHARD)
    assert json.loads((folder / "manifest.json").read_text())["format_version"] == 4


def test_many_shards_read_as_one(made, folder):
    """Positions run on from shard to shard."""
    from array_record.python import array_record_module

    reader = array_record_module.ArrayRecordReader(str(folder / SHARD))
    records = reader.read([*range(COUNT)])
    reader.close()
    shards = []
    for number, (start, stop) in enumerate([(0, 5), (5, 6), (6, COUNT)]):
        writer = array_record_module.ArrayRecordWriter(str(folder / f"part-{number}"), "group_size:1")
        for record in records[start:stop]:
            writer.write(record)
        writer.close()
        shards.append(measure(folder / f"part-{number}", stop - start))
    believe(folder, {"train": (*shards,)})
    data = source(folder)
    assert [data[i].key for i in range(len(data))] == made[0].keys[:COUNT]
    assert celeba.verify(folder, celeba.Options()).ok


def test_a_damaged_record_costs_its_own_row_of_a_batch_and_no_other(folder):
    def batch(**settings):
        return next(eval_batches(source(folder), images=ImageOptions(8), batch_size=COUNT, **settings))

    whole = batch()
    record = damage_one_record(folder)
    with pytest.raises(CorruptRecordError, match=f"record {record}: damaged"):
        batch()
    rest = np.arange(COUNT) != record
    for found, expected in zip(batch(allow_corrupt=True)[:5], whole[:5], strict=True):
        np.testing.assert_array_equal(found[rest], expected[rest])
    assert batch(allow_corrupt=True).weight.tolist() == rest.tolist()


def test_many_examples_at_once_are_those_read_one_by_one(folder):
    indices = [3, 0, 3, 1]
    for found, expected in zip(
        source(folder).examples(indices), map(source(folder).__getitem__, indices), strict=True
    ):
        assert (found.key, found.image, found.view) == (expected.key, expected.image, expected.view)
        np.testing.assert_array_equal(found.labels, expected.labels)
        np.testing.assert_array_equal(found.known, expected.known)
