"""CelebA from small folders in the official format: right ones arrive intact, wrong ones are one line."""

import os
import signal
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from official_files import OfficialCeleba, jpeg

from input_pipeline import SOURCES, celeba
from input_pipeline.errors import DataError
from input_pipeline.images import ImageOptions
from input_pipeline.pipeline import eval_batches

SPLITS = {"train": slice(0, 6), "validation": slice(6, 9), "test": slice(9, 11)}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("WSCA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "celeba"


def open_split(folder, split="train"):
    return celeba.open_split(folder, split, celeba.Options())


def test_the_schema_is_the_papers():
    groups = dict(zip(celeba.SCHEMA.groups, celeba.SCHEMA.members, strict=True))
    assert list(map(len, groups.values())) == [9, 13, 3, 4, 2, 2, 5, 2]
    assert 12 in groups["facial_features"]
    assert celeba.SCHEMA.attributes[12] == "Bushy_Eyebrows"
    assert celeba.SCHEMA.attributes[:2] == ("5_o_Clock_Shadow", "Arched_Eyebrows")
    assert celeba.SCHEMA.attributes[39] == "Young"
    assert celeba.SCHEMA.phrases[35] == "a person wearing a hat"
    assert len(set(celeba.SCHEMA.phrases)) == 40
    assert not celeba.SCHEMA.hue_sensitive
    assert SOURCES["celeba"] is celeba


def assert_intact(official, source, split):
    part = SPLITS[split]
    keys = official.keys[part]
    assert len(source) == len(keys)
    for index, key in enumerate(keys):
        example = source[index]
        assert (example.key, example.image) == (key, official.images[key])  # the very bytes
        np.testing.assert_array_equal(example.labels, official.labels[part][index])
        assert example.known.all()


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("zipped", [False, True])
def test_every_official_layout(official, zipped, nested):
    folder = official.write(zipped=zipped, nested=nested)
    for split in SPLITS:
        assert_intact(official, open_split(folder, split), split)


def test_a_zip_without_an_inner_folder(official):
    folder = official.write()
    with zipfile.ZipFile(folder / "img_align_celeba.zip", "w") as archive:
        for key, data in official.images.items():
            archive.writestr(key, data)
    assert_intact(official, open_split(folder), "train")


def test_images_that_no_list_mentions_do_not_matter(official):
    official.images["999999.jpg"] = b"not even an image"
    assert_intact(official, open_split(official.write()), "train")


@pytest.mark.parametrize(("value", "split"), [("0", "train"), ("1", "validation"), ("2", "test")])
def test_a_folder_with_one_split(tmp_path, value, split):
    official = OfficialCeleba(tmp_path / "one", {value: 4})
    folder = official.write()
    assert len(open_split(folder, split)) == 4
    with pytest.raises(DataError, match=f"no split '{min({*SPLITS} - {split})}'; it holds {split}"):
        open_split(folder, min({*SPLITS} - {split}))


def test_a_pipeline_on_top(official):
    source = open_split(official.write(), "validation")
    (batch,) = eval_batches(source, images=ImageOptions(16), batch_size=4)
    np.testing.assert_array_equal(batch.labels[:3], official.labels[6:9])
    np.testing.assert_array_equal(batch.index, [0, 1, 2, -1])


def test_it_is_prepared_once_and_announced_once(official, cache, capfd):
    folder = official.write()
    open_split(folder)
    assert f"Preparing {folder} once, into {cache}" in capfd.readouterr().err
    (entry,) = (path for path in cache.iterdir() if path.is_dir())
    before = {path: path.stat().st_mtime_ns for path in entry.iterdir()}
    open_split(folder)
    open_split(folder, "test")
    captured = capfd.readouterr()
    assert "Preparing" not in captured.err + captured.out
    assert {path: path.stat().st_mtime_ns for path in entry.iterdir()} == before


def test_the_source_may_be_read_only(official):
    folder = official.write()
    before = sorted(folder.rglob("*"))
    for path in [folder, *before]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        open_split(folder)
    finally:
        folder.chmod(0o755)
    assert sorted(folder.rglob("*")) == before  # not even root, whom no mode stops, wrote anything


def edit_labels(official):
    official.labels[0, 0] ^= 1
    official.write()


def edit_partition(official):
    official.partition[0] = "1"
    official.write()


def edit_image(official):
    official.images["000001.jpg"] = jpeg(99)
    official.write()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("edit", [edit_labels, edit_partition, edit_image])
def test_changed_files_are_prepared_again(official, cache, edit, zipped):
    folder = official.write(zipped=zipped)
    open_split(folder)
    edit(official)
    official.write(zipped=zipped)
    source = open_split(folder)
    assert len([path for path in cache.iterdir() if path.is_dir()]) == 2
    rows = [i for i, value in enumerate(official.partition) if value == "0"]
    assert [source[i].key for i in range(len(source))] == [official.keys[i] for i in rows]
    assert source[0].image == official.images[source[0].key]
    np.testing.assert_array_equal(source[0].labels, official.labels[rows[0]])


def test_the_cache_stands_where_the_option_says(official, tmp_path, monkeypatch):
    monkeypatch.delenv("WSCA_CACHE")
    celeba.open_split(official.write(), "train", celeba.Options(cache_dir=str(tmp_path / "here")))
    assert list((tmp_path / "here" / "celeba").glob("*/manifest.json"))


def test_an_unwritable_cache_is_one_line(official, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("WSCA_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataError, match="WSCA_CACHE sets"):
        open_split(official.write())


OPEN = """
import sys, time
from pathlib import Path
from input_pipeline import celeba
while not Path(sys.argv[2]).exists(): time.sleep(0.001)
print(len(celeba.open_split(Path(sys.argv[1]), "train", celeba.Options())))
"""


def start(program, *arguments, **environment):
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}
    )


@pytest.mark.parametrize("hosts", [1, 3])
def test_processes_that_start_together_share_one_preparation(official, cache, tmp_path, hosts):
    """Those of several hosts share the cache and no folder for temporary files."""
    folder = official.write()
    places = [tmp_path / f"host{i % hosts}" for i in range(3)]
    for place in places:
        place.mkdir(exist_ok=True)
    processes = [start(OPEN, folder, tmp_path / "go", TMPDIR=str(place)) for place in places]
    (tmp_path / "go").touch()
    results = [process.communicate(timeout=120) for process in processes]
    assert [output for output, _ in results] == ["6\n"] * 3
    assert sum(errors.count("Preparing") for _, errors in results) == 1
    assert len([*cache.iterdir()]) == 1


KILLED = """
import os, signal, sys
from pathlib import Path
from input_pipeline import celeba
from input_pipeline.storage import prepared
prepared.write_manifest = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
celeba.open_split(Path(sys.argv[1]), "train", celeba.Options())
"""


def test_a_preparation_killed_halfway_is_none(official, cache):
    folder = official.write()
    process = start(KILLED, folder)
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL
    assert list(cache.glob(".*.partial")), "it was killed too early to show anything"
    assert_intact(official, open_split(folder), "train")
    assert not list(cache.glob(".*")), "the dead process's folder was left behind"


def test_prepare_writes_a_folder_that_opens_and_is_a_tfds_data_set(official, tmp_path):
    import tensorflow_datasets as tfds

    output = celeba.prepare(official.write(), tmp_path / "deep" / "prepared")
    for split in SPLITS:
        assert_intact(official, open_split(output, split), split)
        data = tfds.builder_from_directory(output).as_data_source(
            split, decoders={"image": tfds.decode.SkipDecoding()}
        )
        assert [data[i]["key"].decode() for i in range(len(data))] == official.keys[SPLITS[split]]
        assert data[0]["image"] == open_split(output, split)[0].image
        np.testing.assert_array_equal(data[0]["labels"], open_split(output, split)[0].labels)
    assert not list((tmp_path / "deep").glob(".*"))


def test_prepare_refuses_a_folder_in_use_and_leaves_nothing_behind(official, tmp_path):
    folder = official.write()
    with pytest.raises(DataError, match="already there"):
        celeba.prepare(folder, folder)
    (tmp_path / "empty").mkdir()
    celeba.prepare(folder, tmp_path / "empty")
    official.images["000007.jpg"] = b"broken"
    with pytest.raises(DataError, match=r"000007\.jpg"):
        celeba.prepare(official.write(), tmp_path / "fails")
    assert not (tmp_path / "fails").exists()
    assert not list(tmp_path.glob(".fails*"))
    with pytest.raises(DataError, match="cannot be written"):
        celeba.prepare(folder, tmp_path / "official" / "list_attr_celeba.txt" / "below")


def test_verify_reads_official_files_too(official):
    official.images["000002.jpg"] = jpeg(1)[:-5]
    report = celeba.verify(official.write(), celeba.Options())
    assert not report.ok
    assert [(s.split, s.examples, s.readable) for s in report.splits] == [
        ("train", 6, 5),
        ("validation", 3, 3),
        ("test", 2, 2),
    ]
    (problem,) = report.problems
    assert "000002.jpg" in problem
    np.testing.assert_allclose(report.splits[1].positive_rate, official.labels[6:9].mean(0))
    assert "000002.jpg" in str(report)


# What is wrong with the files, and what the one line must say.


def replaced(lines, number, line):
    """Line numbers as an editor counts them."""
    return [*lines[: number - 1], *([] if line is None else [line]), *lines[number:]]


HEADER = " ".join(celeba.SCHEMA.attributes)
ATTRIBUTE_FAULTS = {
    "missing column": (lambda s: replaced(s, 2, HEADER.replace("Bald ", "")), "line 2.*missing Bald;"),
    "extra column": (lambda s: replaced(s, 2, HEADER + " Tall"), "line 2.*found 41: unknown Tall;"),
    "renamed column": (
        lambda s: replaced(s, 2, HEADER.replace("Bald", "Bold")),
        "missing Bald; unknown Bold;",
    ),
    "repeated column": (lambda s: replaced(s, 2, HEADER + " Bald"), "line 2.*repeated Bald;"),
    "two columns swapped": (
        lambda s: replaced(s, 2, HEADER.replace("Bald Bangs", "Bangs Bald")),
        "line 2.*the order differs",
    ),
    "count too high": (lambda s: replaced(s, 1, "12"), "line 1: the count says '12', but 11 images follow"),
    "no count": (lambda s: replaced(s, 1, "images"), "line 1: the count says 'images'"),
    "a row lost": (lambda s: s[:-1], "line 1: the count says '11', but 10 images follow"),
    "a value lost": (lambda s: replaced(s, 5, s[4][:-3]), "line 5: expected .* 40 values, found 39"),
    "a value too many": (lambda s: replaced(s, 5, s[4] + " 1"), "line 5: expected .* 40 values, found 41"),
    "a zero": (lambda s: replaced(s, 4, s[3][:-2] + " 0"), "line 4: every value must be -1 or 1, found '0'"),
    "a blank line": (lambda s: replaced(s, 4, ""), "line 4: expected .* found 0 values"),
    "a duplicate": (lambda s: replaced(s, 5, s[3]), r"line 5: 000002\.jpg was listed on line 4 already"),
    "another image": (
        lambda s: replaced(s, 4, s[3].replace("000002", "000077")),
        r"list_attr_celeba\.txt: 000002\.jpg has no line here but one in list_eval_partition\.txt",
    ),
    "empty": (lambda s: [], "expected a count, a header and a line per image, found 1 lines"),
}
PARTITION_FAULTS = {
    "unknown value": (lambda s: replaced(s, 3, "000003.jpg 3"), r"line 3: .* found '000003\.jpg 3'"),
    "no value": (lambda s: replaced(s, 3, "000003.jpg"), "line 3: expected an image name and 0, 1 or 2"),
    "a duplicate": (lambda s: [*s, s[1]], r"line 12: 000002\.jpg was listed on line 2 already"),
    "an image too many": (
        lambda s: [*s, "000099.jpg 0"],
        r"list_attr_celeba\.txt: 000099\.jpg has no line here but one in list_eval_partition\.txt",
    ),
    "an image missing": (
        lambda s: s[1:],
        r"list_eval_partition\.txt: 000001\.jpg has no line here but one in list_attr_celeba\.txt",
    ),
}


def assert_one_line(folder, match, cache):
    with pytest.raises(DataError, match=match) as caught:
        open_split(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(folder))  # the file comes first
    assert not list(cache.glob("*/manifest.json"))
    assert not list(cache.glob(".*")), "a half-prepared folder was left behind"


@pytest.mark.parametrize("fault", ATTRIBUTE_FAULTS)
def test_a_faulty_attribute_file(official, cache, fault):
    change, match = ATTRIBUTE_FAULTS[fault]
    folder = official.write(attributes=change(official.attribute_lines()))
    assert_one_line(folder, match, cache)


@pytest.mark.parametrize("fault", PARTITION_FAULTS)
def test_a_faulty_partition_file(official, cache, fault):
    change, match = PARTITION_FAULTS[fault]
    folder = official.write(partition=change(official.partition_lines()))
    assert_one_line(folder, match, cache)


@pytest.mark.parametrize("zipped", [True, False])
def test_an_image_listed_but_absent(official, cache, zipped):
    del official.images["000004.jpg"]
    match = r"000004\.jpg is listed but not there \(1 of 11 images are missing\)"
    assert_one_line(official.write(zipped=zipped), match, cache)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("broken", [jpeg(3)[:-1], jpeg(3)[:200], b"", b"<html>"], ids=len)
def test_a_truncated_image(official, cache, zipped, broken):
    official.images["000004.jpg"] = broken
    assert_one_line(official.write(zipped=zipped), r"image 000004\.jpg: .*get the image again", cache)


def test_a_damaged_zip(official, cache):
    folder = official.write()
    path = folder / "img_align_celeba.zip"
    path.write_bytes(path.read_bytes()[:-500])
    assert_one_line(folder, "damaged", cache)


@pytest.mark.parametrize("name", ["list_attr_celeba.txt", "list_eval_partition.txt", "img_align_celeba.zip"])
def test_a_file_that_is_not_there(official, cache, name):
    folder = official.write()
    (folder / name).unlink()
    assert_one_line(folder, f"{name}.* is missing", cache)


def test_text_that_is_no_text(official, cache):
    folder = official.write()
    (folder / "list_attr_celeba.txt").write_bytes(b"\xff\xfe\x00" * 99)
    assert_one_line(folder, "expected plain text", cache)


def test_no_folder_an_empty_one_and_none_at_all(tmp_path, cache):
    assert_one_line(
        tmp_path / "absent",
        "expected a folder with CelebA's official files, found nothing; check --data_dir",
        cache,
    )
    (tmp_path / "empty").mkdir()
    assert_one_line(tmp_path / "empty", "the folder is empty", cache)
    with pytest.raises(DataError, match="--data_dir"):
        celeba.open_split(None, "train", celeba.Options())


def test_carriage_returns_are_harmless(official):
    folder = official.write()
    for name in ("list_attr_celeba.txt", "list_eval_partition.txt"):
        text = (folder / name).read_text()
        (folder / name).write_bytes(text.replace("\n", "\r\n").encode())
    assert_intact(official, open_split(folder), "train")
