"""Scenes rendered ahead, by real processes."""

import subprocess
import threading
import time

import numpy as np
import pytest

from input_pipeline import scenes
from input_pipeline.scenes import ahead


def opened(**options):
    return scenes.open_split(None, "train", scenes.Options(size=16, train_images=600, **options))


@pytest.fixture
def processes(monkeypatch):
    """Those that are started."""
    started, start = [], subprocess.Popen

    def remembered(*args, **kwargs):
        started.append(start(*args, **kwargs))
        return started[-1]

    monkeypatch.setattr(ahead.subprocess, "Popen", remembered)
    return started


def wait_until(reached, seconds=60):
    until = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < until, f"not reached in {seconds} s"
        time.sleep(0.02)


def assert_same(one, other):
    assert (one.key, one.caption) == (other.key, other.caption)
    for field in ("image", "labels", "known"):
        np.testing.assert_array_equal(getattr(one, field), getattr(other, field))


def test_the_same_examples_and_none_rendered_here(monkeypatch, processes):
    source, alone, here = opened(label_noise=0.2, seed=3), opened(label_noise=0.2, seed=3), []
    monkeypatch.setattr(source, "rendered", here.append)
    with source.ahead():
        wait_until(lambda: source.filled)
        for index in (0, 311, 599):
            assert_same(source[index], alone[index])
            assert not source[index].image.flags.writeable
    assert here == []
    assert len(processes) == 1  # 512 images each


def test_what_is_asked_for_in_between_is_there_at_once(processes):
    source, alone = opened(), opened()
    with source.ahead():
        assert_same(source[599], alone[599])
        wait_until(lambda: source.filled)
        assert_same(source[599], alone[599])


def test_a_process_that_is_killed_costs_time_alone(processes):
    source, alone = opened(), opened()
    with source.ahead():
        processes[0].kill()
        processes[0].wait()
        assert_same(source[599], alone[599])
    assert not source.filled


def test_processes_and_threads_end_with_the_context(processes):
    source = opened(seed=1)
    with pytest.raises(KeyError), source.ahead():
        raise KeyError
    assert [process.poll() for process in processes] == [-9]
    assert not source.filled
    assert not [thread for thread in threading.enumerate() if thread.name == "scenes ahead"]


def test_a_process_ends_when_nobody_listens(processes):
    source = opened()
    process = ahead_process(source)
    process.stdin.close()
    assert process.wait(60) == 0


def ahead_process(source):
    process = subprocess.Popen(ahead.COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    ahead.send(process.stdin, (source.split, source.options))
    return process


@pytest.mark.parametrize(("size", "megabytes"), [(16, 0), (256, 90)])  # room for 0 and 480 images
def test_few_images_are_not_worth_a_process(processes, size, megabytes):
    options = scenes.Options(size=size, train_images=600, cache_megabytes=megabytes)
    with scenes.open_split(None, "train", options).ahead():
        assert processes == []


def test_no_more_processes_than_cores(monkeypatch, processes):
    monkeypatch.setattr(scenes.source, "available_cores", lambda: 2)
    with scenes.open_split(None, "train", scenes.Options(train_images=4096)).ahead():
        assert len(processes) == 2
