"""`wsca bench input`: its arithmetic by hand, its options by the command line. How fast is not tested."""

import functools
import re
import threading
import tracemalloc

import cv2
import numpy as np
import pytest
from test_cli import ROOT, expect_one_line, official, run  # noqa: F401

from input_pipeline.batch import blank_batch
from input_pipeline.images import ImageOptions, decode, image_shape, load, resize
from input_pipeline.pipeline import train_batches
from input_pipeline.weak_labels import WeakLabels
from wsca_jax.bench import contenders, memory, photographs, turns
from wsca_jax.bench.input import FULL, SCALED, Settings, in_threads, named, speed_table
from wsca_jax.bench.stream import Stream
from wsca_jax.errors import ExitCode

SMALL = ("--size", 8, "--batch_size", 4, "--steps", 2, "--rounds", 1)


def test_medians_and_ratios_by_hand():
    seconds = {
        "a": {"wall": [1.0, 2.0, 9.0], "cpu": [4.0, 4.0, 4.0]},
        "b": {"wall": [2.0, 8.0, 9.0], "cpu": [1.0, 2.0, 8.0]},
    }
    assert turns.median(seconds, "a", "wall") == 2.0
    assert turns.ratio(seconds, "b", "a", "wall") == 2.0  # of 2, 4 and 1: within a round, then the median
    assert turns.ratio(seconds, "a", "b", "cpu") == 2.0


def test_every_contender_runs_once_a_round_in_turn():
    order = []
    work = {name: lambda name=name: order.append(name) for name in "ab"}
    seconds = turns.take_turns(work, rounds=3, warm_up=1)
    assert "".join(order) == "ab" + 3 * "ab"
    assert [len(seconds[name][clock]) for name in "ab" for clock in turns.CLOCKS] == [3] * 4


def test_the_table_says_images_a_second_and_shares_of_bare_decoding():
    def taken(wall, cpu):
        return {"wall": [wall], "cpu": [cpu]}

    settings = Settings(batch_size=10, steps=10, threads=(2,))
    seconds = {
        FULL: taken(2.0, 2.0),
        SCALED: taken(1.6, 1.6),
        in_threads(FULL, 2): taken(0.5, 1.0),  # two threads stand beside two
        in_threads(SCALED, 2): taken(0.2, 0.4),
        named(2): taken(0.25, 0.5),
    }
    last = speed_table(seconds, settings).splitlines()[-1]
    assert re.split(r"\s{2,}", last) == ["pipeline, 2 threads", "400", "200", "2.00", "0.80"]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Synthetic photographs of 40 x 60 pixels."""
    folder = tmp_path_factory.mktemp("bench") / "shards"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(photographs, "EXAMPLES", 40)
        photographs.prepare(folder, 40, 60)
    return folder


def test_photographs_have_the_size_and_the_spectrum_asked_for(shards):
    source = photographs.open_split(shards)
    assert {image_shape(source[i].image) for i in range(len(source))} == {(40, 60)}
    luma = photographs.photograph(256, 256, seed=1)[..., 1].astype(float)
    power = np.abs(np.fft.fft2(luma - luma.mean()))
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(256), np.fft.fftfreq(256)))
    bands = [(0.02, 0.04), (0.08, 0.16)]
    low, high = (power[(frequency >= a) & (frequency < b)].mean() for a, b in bands)
    assert np.log(low / high) / np.log(4) == pytest.approx(photographs.FALL, abs=0.1)


def test_contenders_make_the_pictures_that_the_pipeline_makes(shards, monkeypatch):
    """Both ways of bare decoding; and a turn of the pipeline reads its batches and nothing beyond."""
    source, kept = photographs.open_split(shards), []
    images = [source[i].image for i in range(4)]
    real = cv2.resize

    def resize(pixels, shape, dst, interpolation):
        kept.append(real(pixels, shape, dst=dst, interpolation=interpolation).astype(int))

    monkeypatch.setattr(cv2, "resize", resize)
    for scaled in (True, False):
        contenders.bare(images, 16, 2, 4, scaled=scaled)()
    monkeypatch.undo()
    expected = [load(image, ImageOptions(16)).astype(int) for image in images]
    np.testing.assert_array_equal(kept[:4], expected)
    assert np.abs(np.array(kept[4:]) - expected).mean() < 6.0


def test_bare_decoding_in_threads_shares_the_images_among_them(shards, monkeypatch):
    images, by = [photographs.open_split(shards)[0].image], []
    real = cv2.resize
    monkeypatch.setattr(
        cv2, "resize", lambda *args, **kwargs: (by.append(threading.get_ident()), real(*args, **kwargs))
    )
    contenders.bare(images, 16, 2, 7, scaled=False, threads=3)()
    assert len(by) == 7
    assert threading.get_ident() not in by
    contenders.bare(images, 16, 2, 7, scaled=False)()
    assert by[7:] == 7 * [threading.get_ident()]


@pytest.mark.parametrize("threads", [0, 2])
def test_a_turn_finds_the_pipeline_running_and_leaves_nothing_at_work(shards, threads):
    class Counting:
        def __init__(self, source):
            self.schema, self.source, self.read = source.schema, source, 0

        def __len__(self):
            return len(self.source)

        def __getitem__(self, index):
            self.read += 1
            return self.source[index]

    source = Counting(photographs.open_split(shards))
    stream = contenders.pipeline(source, ImageOptions(8), WeakLabels(), 4, 3, threads)
    for turns_taken in (1, 2):
        begun = source.read
        with stream.open():
            assert source.read - begun >= 4 * stream.lead
            stream.turn()
            assert source.read - begun >= 4 * (stream.lead + 3)
        assert source.read == turns_taken * 4 * (2 * stream.lead + 3)


def test_turns_go_on_where_the_last_one_ended(shards):
    source, taken = photographs.open_split(shards), []

    class Watched(Stream):
        def take(self, count):
            taken.extend(next(self.batches).index.tolist() for _ in range(count))

    def batches(start, stop):
        return train_batches(source, start_step=start, stop_step=stop, **settings)

    settings = {"images": ImageOptions(8), "batch_size": 4, "seed": 3}
    stream = Watched(batches, threads=2, steps=3)
    for _ in range(2):
        with stream.open():
            stream.turn()
    assert taken == [batch.index.tolist() for batch in batches(0, 2 * (stream.lead + 3))]


def test_a_stream_that_stops_is_the_beginning_of_the_endless_one(shards):
    settings = {"images": ImageOptions(8), "batch_size": 4, "seed": 3, "start_step": 2}
    source = photographs.open_split(shards)
    found = list(train_batches(source, stop_step=5, **settings))
    endless = train_batches(source, **settings)
    assert len(found) == 3
    for batch in found:
        np.testing.assert_array_equal(batch.index, next(endless).index)
    endless.close()


def test_the_bound_by_hand(shards):
    example = photographs.open_split(shards)[0]
    batch = 4 * (3 * 8 * 8 + 2 * 40 + 4 + 4)
    assert sum(a.nbytes for a in blank_batch(4, 8, 40)[:5]) == batch
    worker = 4 * len(example.image) + 3 * 40 * 60
    options = ImageOptions(8)
    assert memory.bound(example, options, 4, threads=0, examples=0) == 2 * batch + worker
    assert memory.bound(example, options, 4, threads=3, examples=5) == 8 * batch + 3 * worker + 5 * 64


@pytest.mark.parametrize("threads", [0, 1, 2])
def test_the_pipeline_holds_no_more_than_the_bound(shards, threads):
    """What Python and NumPy allocate, ArrayRecord's index left out. 256 KiB are allowed for other reasons."""
    source, options = photographs.open_split(shards), ImageOptions(128)
    limit = memory.bound(source[0], options, 16, threads, len(source))
    tracemalloc.start()
    try:
        for _ in train_batches(source, images=options, batch_size=16, seed=0, stop_step=16, threads=threads):
            pass
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert 0.5 * limit < most < limit + 2**18


@pytest.mark.slow
def test_the_pipeline_grows_by_no_more_than_the_bound(shards):
    """With batches that are large beside what a process grows by for other reasons: 4 MiB are allowed it.

    And the room of one batch, whose place something small may have taken.
    """
    options, threads = ImageOptions(256), (0, 1, 2)
    opened = functools.partial(photographs.open_split, shards)
    source = opened()
    held = memory.measure(opened, options, 64, threads, 24)
    for count, found in zip(threads, held, strict=True):
        limit = memory.bound(source[0], options, 64, count, len(source))
        batch = blank_batch(64, options.size, source.schema.num_attributes).image.nbytes
        assert 0.5 * limit < found.growth < limit + batch + 2**22


@pytest.mark.slow
def test_what_grows_with_the_split_is_in_the_bound(tmp_path, monkeypatch):
    """Tiny images, and many: two epochs and the beginning of a third. 1 MiB is allowed for other reasons."""
    count, options = 100_000, ImageOptions(8)
    monkeypatch.setattr(photographs, "EXAMPLES", count)
    opened = functools.partial(photographs.open_split, photographs.prepare(tmp_path / "many", 8, 8))
    source = opened()
    (held,) = memory.measure(opened, options, 500, (2,), 2 * count // 500 + 4)
    limit = memory.bound(source[0], options, 500, 2, count)
    assert memory.EACH_EXAMPLE * count > 0.8 * limit
    assert 0.8 * limit < held.growth < limit + 2**20


def test_the_command_prints_every_figure_of_synthetic_jpegs(capsys, monkeypatch):
    monkeypatch.setattr(photographs, "EXAMPLES", 16)
    assert (
        run("bench", "input", "--source_size", "48x32", *SMALL, "--threads", "0", "1", "2") == ExitCode.DONE
    )
    text = capsys.readouterr().out
    assert "48x32 pixels" in text
    for part in (
        "whole images, every label known, no captions",
        FULL,
        SCALED,
        named(0),
        named(1),
        named(2),
        in_threads(FULL, 2),
        "Two threads over one",
        "read records",
        "MiB",
    ):
        assert part in text, part


@pytest.mark.slow
def test_the_command_takes_any_data_set(official, capsys):  # noqa: F811
    assert run("bench", "input", "--data", "scenes", *SMALL, "--threads", "0") == ExitCode.DONE
    assert "decoded" in capsys.readouterr().out
    where = ("--data", "celeba", "--data_dir", official)
    assert run("bench", "input", *where, *SMALL, "--threads", "0") == ExitCode.DONE
    text = capsys.readouterr().out
    assert "32x40 pixels" in text
    assert "Two threads" not in text


def test_bad_input_is_one_line(tmp_path, capsys):
    expect_one_line(capsys, run("bench", "input"), "--data", "--source_size")
    expect_one_line(capsys, run("bench", "input", "--data", "celebb", *SMALL), "celeba")
    code = run("bench", "input", "--data", "celeba", "--data_dir", tmp_path / "nowhere", *SMALL)
    expect_one_line(capsys, code, "nowhere")
    for option, value, expected in (
        ("--source_size", "178", "a size such as 178x218"),
        ("--source_size", "0x3", "a size such as 178x218"),
        ("--source_size", "axb", "a size such as 178x218"),
        ("--steps", "abc", "a whole number from 1 on"),
        ("--threads", "-1", "a whole number from 0 on"),
    ):
        with pytest.raises(SystemExit) as stopped:
            run("bench", "input", option, value)
        assert stopped.value.code == 2
        last = capsys.readouterr().err.splitlines()[-1]
        assert last.endswith(f"argument {option}: expected {expected}, found {value!r}"), last


@pytest.mark.parametrize(("height", "width", "size"), [(218, 178, 32), (218, 178, 64), (375, 500, 96)])
def test_decoding_at_a_scale_shows_what_decoding_in_full_shows(height, width, size):
    """Within 6 of 255 levels on average, as bright and not shifted, on detail down to the pixel."""
    data = photographs.encoded(height, width, seed=3)
    assert decode(data, shortest=size).shape[0] < height
    full, scaled = resize(decode(data), size).astype(float), load(data, ImageOptions(size)).astype(float)
    assert np.abs(scaled - full).mean() < 6.0
    assert scaled.mean() == pytest.approx(full.mean(), abs=0.5)
    for axis in (0, 1):
        for shift in (-1, 1):
            assert np.abs(scaled - full).mean() < np.abs(np.roll(scaled, shift, axis) - full).mean() / 1.5
