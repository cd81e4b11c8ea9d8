"""Preparing official files: all of it or nothing, gone on with after a kill, refused without room."""

import concurrent.futures
import errno
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
import simplejpeg
from official_files import OfficialCeleba, smooth_image

from input_pipeline import celeba
from input_pipeline.errors import DataError, NoRoomError
from input_pipeline.images import Box, ImageOptions, load
from input_pipeline.storage import preparing, shards
from input_pipeline.storage.records import Record
from input_pipeline.storage.reencode import Storage, around

COUNT = 30


@pytest.fixture
def many_shards(monkeypatch):
    monkeypatch.setattr(shards, "EXAMPLES_PER_SHARD", 4)


@pytest.fixture
def official(tmp_path):
    return OfficialCeleba(tmp_path / "official", {"0": COUNT, "1": 3})


def keys(folder, split="train"):
    source = celeba.open_split(folder, split, celeba.Options())
    return [source[i].key for i in range(len(source))]


def test_many_shards_hold_the_official_order(official, tmp_path, many_shards):
    folder = celeba.prepare(official.write(), tmp_path / "prepared")
    assert len(list(folder.glob("celeba-train.array_record-*-of-00008"))) == 8
    assert keys(folder) == official.keys[:COUNT]
    assert keys(folder, "validation") == official.keys[COUNT:]
    left = {path.name for path in folder.iterdir()} - {"manifest.json", "index.npz", "features.json"}
    assert all(name.startswith(("celeba-", "dataset_info")) for name in left)


def test_shards_are_written_side_by_side(tmp_path):
    """Each of two waits in its first record for the other; one after the other they would wait in vain."""
    both = threading.Barrier(2, timeout=60)

    def make(row):
        if row % 3 == 0:
            both.wait()
        return Record(b"image", np.zeros(4, np.uint8), str(row))

    planned = [shards.PlannedShard("a", np.arange(3)), shards.PlannedShard("b", np.arange(3, 6))]
    written = shards.write_shards(tmp_path, planned, make, threads=2)
    assert {name: shard.records for name, shard in written.items()} == {"a": 3, "b": 3}


def test_a_data_set_of_a_thousand_has_work_for_two_cores():
    (planned,) = shards.plan_shards("birds", {"train": np.arange(1000)}).values()
    assert [len(shard.rows) for shard in planned] == [500, 500]


FULL = """
import resource, sys
from pathlib import Path
from input_pipeline import celeba
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
try:
    celeba.prepare(Path(sys.argv[1]), Path(sys.argv[2]))
except celeba.files.DataError as error:
    sys.exit(f"refused: {error}")
"""


def test_a_disk_that_fills_up_on_the_way(official, tmp_path):
    """The system refuses to write more than 20 kB into a file. ArrayRecord's writer does not say so."""
    command = [sys.executable, "-c", FULL, str(official.write()), str(tmp_path / "prepared")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    said = [line for line in done.stderr.splitlines() if line.startswith("refused: ")]
    assert len(said) == 1, done.stderr[-2000:]
    assert f"{tmp_path / 'prepared'}: cannot be written" in said[0]
    assert "is the disk full?" in said[0]
    assert not (tmp_path / "prepared").exists()


KILLED = """
import os, signal, sys
from pathlib import Path
from input_pipeline import celeba
from input_pipeline.storage import preparing
from input_pipeline.storage import shards
shards.EXAMPLES_PER_SHARD = 4
make, count = preparing._make_record, 0
def counted(*arguments):
    global count
    count += 1
    if count > int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
    return make(*arguments)
preparing._make_record = counted
preparing.prepare(celeba.files.open_official, Path(sys.argv[1]), Path(sys.argv[2]), threads=1)
"""


@pytest.mark.parametrize(("images", "done", "rows"), [(20, 0, 0), (50, 4, 16), (64, 8, 30)])
def test_a_killed_preparation_goes_on_with_the_shards_it_lacks(
    official, tmp_path, many_shards, monkeypatch, images, done, rows
):
    """All 33 are read to estimate the room, then into six shards of four and three of three."""
    folder, output = official.write(), tmp_path / "prepared"
    command = [sys.executable, "-c", KILLED, str(folder), str(output), str(images)]
    assert subprocess.run(command, capture_output=True, timeout=120).returncode == -signal.SIGKILL
    assert not output.exists()
    assert len(list((tmp_path / ".prepared.partial").glob("*.array_record-*.done.json"))) == done
    read, make = [], preparing._make_record
    monkeypatch.setattr(preparing, "_check_room", lambda *_: None)
    monkeypatch.setattr(
        preparing, "_make_record", lambda *arguments: read.append(arguments[-1]) or make(*arguments)
    )
    celeba.prepare(folder, output)
    assert sorted(read) == [*range(rows, COUNT + 3)]
    assert keys(output) == official.keys[:COUNT]
    assert celeba.verify(output, celeba.Options()).ok
    assert not (tmp_path / ".prepared.partial").exists()


@pytest.mark.parametrize(("images", "done"), [(2, 0), (17, 4)])
def test_a_disk_that_fails_on_the_way_costs_the_unfinished_shards_alone(
    official, tmp_path, many_shards, monkeypatch, images, done
):
    """Nor are other shards written until somebody looks whether one failed, however late that is."""
    monkeypatch.setattr(
        concurrent.futures, "as_completed", lambda work: list(concurrent.futures.wait(work).done)
    )
    folder, output = official.write(), tmp_path / "prepared"
    make, read = preparing._make_record, []
    monkeypatch.setattr(preparing, "_check_room", lambda *_: None)

    def failing(*arguments):
        read.append(arguments[-1])
        if len(read) == images:
            raise OSError(errno.EIO, "Input/output error")
        return make(*arguments)

    monkeypatch.setattr(preparing, "_make_record", failing)
    kept = f"try again: {done} finished shards are kept" if done else "sets the cache's\\)$"
    with pytest.raises(DataError, match=f"prepared: cannot be written: .*Input/output error; .*{kept}"):
        preparing.prepare(celeba.files.open_official, folder, output, threads=1)
    assert bool([*tmp_path.glob(".prepared.partial/*")]) == bool(done)
    assert not [*tmp_path.glob(".prepared.partial/*.tmp")]
    read.clear()
    images = 0  # mended
    celeba.prepare(folder, output)
    assert sorted(read) == [*range(4 * done, COUNT + 3)]
    assert celeba.verify(output, celeba.Options()).ok


def test_what_a_killed_preparation_of_other_files_left_is_not_used(official, tmp_path, many_shards):
    folder, output = official.write(), tmp_path / "prepared"
    command = [sys.executable, "-c", KILLED, str(folder), str(output), str(COUNT + 20)]
    subprocess.run(command, capture_output=True, timeout=120)
    official.labels = 1 - official.labels
    celeba.prepare(official.write(), output)
    source = celeba.open_split(output, "train", celeba.Options())
    np.testing.assert_array_equal([source[i].labels for i in range(COUNT)], official.labels[:COUNT])


def test_a_disk_without_room_is_refused_before_anything_is_written(official, tmp_path, monkeypatch):
    folder = official.write()
    total = sum(len(image) for image in official.images.values())

    def disk_usage(path):
        return type(shutil_usage(path))(10**9, 10**9, free)

    shutil_usage = preparing.shutil.disk_usage
    monkeypatch.setattr(preparing.shutil, "disk_usage", disk_usage)
    free = total // 2
    has = f"{free / 2**10:.1f}"
    with pytest.raises(
        NoRoomError, match=rf"33 images need about [1-9]\d\.\d KiB and {has} KiB are free; make room"
    ):
        celeba.prepare(folder, tmp_path / "prepared")
    assert not list(tmp_path.glob("*prepared*"))
    free = 2 * total + 2**16
    assert keys(celeba.prepare(folder, tmp_path / "prepared")) == official.keys[:COUNT]


def test_a_file_system_without_locks_will_do(official, tmp_path, monkeypatch):
    take = preparing._take

    def no_locks(path):
        if path.parent == tmp_path:
            raise OSError(errno.ENOLCK, "no locks")
        return take(path)

    monkeypatch.setattr(preparing, "_take", no_locks)
    assert keys(celeba.prepare(official.write(), tmp_path / "prepared")) == official.keys[:COUNT]


def test_a_lock_that_was_removed_meanwhile_is_taken_anew(tmp_path, monkeypatch):
    path, calls = tmp_path / "lock", []

    def flock(file, how):
        calls.append(file.fileno())
        if len(calls) == 1:
            path.unlink()

    monkeypatch.setattr(preparing.fcntl, "flock", flock)
    with preparing._take(path) as file:
        assert len(calls) == 2
        assert os.path.samestat(path.stat(), os.fstat(file.fileno()))


def test_an_empty_folder_behind_a_link_is_filled(official, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    celeba.prepare(official.write(), tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert keys(tmp_path / "disk") == official.keys[:COUNT]


@pytest.mark.parametrize("which", ["current", "mounted"])
def test_a_folder_that_no_move_can_replace_is_refused_before_anything_is_written(
    official, tmp_path, monkeypatch, which
):
    official.write()
    output = tmp_path / "output"
    output.mkdir()
    if which == "current":
        monkeypatch.chdir(output)
        output = Path(".")
    else:
        monkeypatch.setattr(preparing.os.path, "ismount", lambda path: Path(path) == output)
    monkeypatch.setattr(preparing, "_build", None)
    with pytest.raises(DataError, match=r"choose a new one in it, such as .*prepared"):
        celeba.prepare(official.folder, output)


def test_smaller_images_are_stored_where_asked_for(official, tmp_path):
    official.images = {
        key: simplejpeg.encode_jpeg(smooth_image(i, 40, 60), quality=95)
        for i, key in enumerate(official.images)
    }
    folder = celeba.prepare(official.write(), tmp_path / "prepared", shortest=20)
    source = celeba.open_split(folder, "train", celeba.Options())
    stored = simplejpeg.decode_jpeg(source[3].image)
    assert stored.shape == (20, 30, 3)
    expected = cv2.resize(smooth_image(3, 40, 60), (30, 20), interpolation=cv2.INTER_AREA)
    assert np.abs(stored.astype(int) - expected).mean() < 3
    assert celeba.verify(folder, celeba.Options()).ok


def test_images_that_are_small_enough_keep_their_bytes():
    image = simplejpeg.encode_jpeg(smooth_image(0, 30, 20))
    assert Storage(shortest=20).apply(image, None) == (image, None)
    assert Storage().apply(image, Box(1, 2, 3, 4)) == (image, Box(1, 2, 3, 4))
    with pytest.raises(DataError, match="at least 1"):
        Storage(shortest=0)


@pytest.mark.parametrize("shortest", [None, 12])
def test_a_crop_shows_its_object_where_the_new_box_says(shortest):
    """A bright square on black is found by its box before and after."""
    pixels = np.zeros((100, 120, 3), np.uint8)
    box = Box(30, 50, 24, 32)
    pixels[box.top : box.top + box.height, box.left : box.left + box.width] = 255
    stored, moved = Storage(shortest, crops=True).apply(simplejpeg.encode_jpeg(pixels, quality=98), box)
    found = simplejpeg.decode_jpeg(stored).astype(int)
    assert min(found.shape[:2]) == (shortest or 36)  # 24 and a quarter of it on either side
    inner = found[moved.top : moved.top + moved.height, moved.left : moved.left + moved.width]
    assert inner.mean() > 235
    assert abs(found.sum() - inner.sum()) < 0.15 * found.sum()


def test_a_margin_ends_at_the_edge():
    assert around(Box(30, 50, 24, 32), 100, 120) == Box(24, 42, 36, 48)
    assert around(Box(0, 100, 40, 20), 50, 120) == Box(0, 95, 50, 25)


def test_a_box_stands_for_the_whole_image():
    """With a box, an image looks as if it had been cut before; windows stay inside it."""
    pixels = smooth_image(1, 60, 80)
    box = Box(10, 20, 30, 40)
    cut = pixels[10:40, 20:60]
    plain, random = ImageOptions(16), ImageOptions(16, crop_scale=(0.3, 0.8), crop_ratio=(0.8, 1.2))
    np.testing.assert_array_equal(load(pixels, plain, box=box), load(cut, plain))
    for seed in range(20):
        draw = np.random.default_rng(seed).random(4)
        np.testing.assert_array_equal(load(pixels, random, draw, box=box), load(cut, random, draw))
    beyond = Box(10, 20, 300, 400)
    np.testing.assert_array_equal(load(pixels, plain, box=beyond), load(pixels[10:, 20:], plain))
