"""What a pipeline does about broken examples, wrong settings and workers that end."""

import gc
import threading
import time

import numpy as np
import pytest
from official_files import jpeg
from toys import PHRASES, PLAIN, Toys, stack, take, train

from input_pipeline.errors import CorruptImageError, CorruptRecordError, DataError
from input_pipeline.pipeline import eval_batches


@pytest.fixture(scope="module")
def toys():
    return Toys(23)


FAULTS = {
    "truncated image": jpeg(0)[:-30],
    "not an image": b"<html>",
    "unreadable record": CorruptRecordError("shard-1, record 7: damaged"),
}


def drain(source, evaluation, **settings):
    if evaluation:
        return list(eval_batches(source, images=PLAIN, batch_size=8, **settings))
    return take(train(source, **settings), 9)


@pytest.mark.parametrize("evaluation", [True, False])
@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_example_is_an_error_that_names_it(fault, threads, evaluation):
    source = Toys(23, {7: FAULTS[fault]})
    name = "shard-1, record 7" if fault == "unreadable record" else "toy-7"
    with pytest.raises(DataError, match=name) as caught:
        drain(source, evaluation, threads=threads)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, CorruptRecordError if "record" in fault else CorruptImageError)


@pytest.mark.parametrize("evaluation", [True, False])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_example_may_be_skipped_and_counted(fault, evaluation):
    text = {"text": PHRASES} | ({"captions": True} if evaluation else {})
    whole = stack(drain(Toys(23), evaluation, **text))
    skipped = stack(drain(Toys(23, {7: FAULTS[fault]}), evaluation, allow_corrupt=True, **text))
    rows = whole.index == 7
    assert rows.any()
    np.testing.assert_array_equal(skipped.index, whole.index)  # it keeps its place
    np.testing.assert_array_equal(skipped.weight[rows], 0.0)
    assert not skipped.known[rows].any()
    assert not skipped.labels[rows].any()
    assert not skipped.image[rows].any()
    assert not skipped.tokens[rows].any()
    for x, y in zip(skipped, whole, strict=True):
        np.testing.assert_array_equal(x[~rows], y[~rows])


@pytest.mark.parametrize("fault", [MemoryError("no room"), SystemExit(3), ZeroDivisionError()])
def test_whatever_ends_a_worker_reaches_the_caller(fault):
    """Never a hang: not an error of ours, not even a worker that exits."""
    with pytest.raises(type(fault)):
        drain(Toys(23, {7: fault}), False, allow_corrupt=True)


def workers():
    return [t for t in threading.enumerate() if t.name.startswith("grain-prefetch")]


def assert_no_workers():
    deadline = time.monotonic() + 10
    while workers() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not workers()


def test_closing_dropping_finishing_and_failing_all_end_the_threads(toys):
    assert_no_workers()
    batches = train(toys, threads=3)
    next(batches)
    assert workers()
    batches.close()
    assert_no_workers()
    batches = train(toys, threads=3)
    next(batches)
    del batches
    gc.collect()
    assert_no_workers()
    list(eval_batches(toys, images=PLAIN, batch_size=8))
    assert_no_workers()
    failing = train(Toys(23, {7: b"broken"}), threads=3)
    with pytest.raises(DataError):
        list(failing)
    assert_no_workers()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 6, "shards": 4}, "6 does not divide into 4"),
        ({"batch_size": 0}, "0 does not divide"),
        ({"shards": 2, "shard": 2}, "0..1, found 2"),
        ({"start_step": -1}, "start_step"),
    ],
)
def test_settings_that_do_not_fit_are_refused_at_once(toys, settings, message):
    with pytest.raises(DataError, match=message):
        train(toys, **settings)


def test_an_empty_split_is_refused_at_once():
    with pytest.raises(DataError, match="holds no examples"):
        train(Toys(0))
    with pytest.raises(DataError, match="holds no examples"):
        eval_batches(Toys(0), images=PLAIN, batch_size=8)
