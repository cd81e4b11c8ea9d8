"""Batches: the step is the whole state, shards are slices, threads change nothing, errors arrive."""

import concurrent.futures
import gc
import threading
import time
import weakref
from collections import Counter
from itertools import islice

import numpy as np
import pytest
from official_files import jpeg

from input_pipeline import pipeline
from input_pipeline.batch import AttributeBatch, Example, blank_batch
from input_pipeline.errors import CorruptImageError, CorruptRecordError, DataError
from input_pipeline.images import ImageOptions, load
from input_pipeline.pipeline import eval_batches, num_eval_batches, train_batches
from input_pipeline.schema import AttributeSchema
from input_pipeline.text import Text, TextOptions, caption_from_phrases
from input_pipeline.weak_labels import WeakLabels

A = 6
SCHEMA = AttributeSchema.from_groups("toys", tuple("abcdef"), {"all": tuple(range(A))})
PLAIN = ImageOptions(8)
CROPPED = ImageOptions(8, crop_scale=(0.3, 1.0), crop_ratio=(0.8, 1.25))
WEAK = WeakLabels(seed=1, known_fraction=0.5)
OWN = Text(TextOptions("source", length=12), SCHEMA, ["toy number"])
PHRASES = Text(TextOptions("phrases", length=12), SCHEMA)


class Toys:
    """N examples in memory, every third without a caption.

    `broken` maps positions to what reading or decoding them must meet.
    """

    schema = SCHEMA
    truth = "labels of each toy"

    def __init__(self, count, broken=None):
        rng = np.random.default_rng(count)
        self.images = [jpeg(i) for i in range(count)]
        self.labels = rng.integers(0, 2, (count, A)).astype(np.uint8)
        self.known = rng.random((count, A)) < 0.8
        self.broken = broken or {}

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        fault = self.broken.get(index)
        if isinstance(fault, BaseException):
            raise fault
        image = self.images[index] if fault is None else fault
        told = self.labels[index] * self.known[index]
        caption = f"toy number {index} {told}" if index % 3 else None
        return Example(image, self.labels[index], self.known[index], f"toy-{index}", caption)


def stack(batches: list[AttributeBatch]) -> AttributeBatch:
    """Concatenates batches along the first axis. Either all of them have tokens or none has."""

    def joined(field: str) -> np.ndarray:
        return np.concatenate([getattr(batch, field) for batch in batches])

    return AttributeBatch(
        image=joined("image"),
        labels=joined("labels"),
        known=joined("known"),
        weight=joined("weight"),
        index=joined("index"),
        tokens=None if batches[0].tokens is None else joined("tokens"),
    )


@pytest.fixture(scope="module")
def toys():
    return Toys(23)


def train(source, **settings):
    settings = {"images": CROPPED, "weak_labels": WEAK, "batch_size": 8, "seed": 5} | settings
    return train_batches(source, **settings)


def take(batches, count):
    taken = list(islice(batches, count))
    batches.close()
    return taken


def assert_same(a, b):
    for name, x, y in zip(AttributeBatch._fields, a, b, strict=True):
        np.testing.assert_array_equal(x, y, err_msg=name)


def assert_all_same(a, b):
    for x, y in zip(a, b, strict=True):
        assert_same(x, y)


def test_a_batch_is_what_its_examples_say(toys):
    (batch,) = take(train(toys, images=PLAIN), 1)
    assert [x.dtype for x in batch[:5]] == [np.uint8, np.uint8, np.bool_, np.float32, np.int32]
    assert batch.image.shape == (8, 8, 8, 3)
    assert (batch.weight == 1).all()
    for row, index in enumerate(batch.index):
        example = toys[int(index)]
        labels, known = WEAK.apply(example.labels, example.known, example.key)
        np.testing.assert_array_equal(batch.image[row], load(example.image, PLAIN))
        np.testing.assert_array_equal(batch.labels[row], labels)
        np.testing.assert_array_equal(batch.known[row], known)


@pytest.mark.parametrize("text", [None, Text(TextOptions("none"), SCHEMA)])
def test_batches_of_runs_without_captions_have_no_tokens(toys, text):
    assert take(train(toys, text=text), 1)[0].tokens is None
    evaluation = eval_batches(toys, images=PLAIN, batch_size=8, text=text, captions=True)
    assert take(evaluation, 1)[0].tokens is None


def expected_tokens(text, example, labels, known):
    if text is PHRASES or (example.caption and (known != example.known).any()):
        return text.encode(caption_from_phrases(SCHEMA, labels, known))
    return text.encode(example.caption or "")


@pytest.mark.parametrize("text", [OWN, PHRASES])
def test_captions_say_what_is_left_of_the_labels(toys, text):
    """The data set's own sentence where nothing is withheld, one of the known labels elsewhere."""
    mild = WeakLabels(seed=1, known_fraction=0.9)
    batch = take(train(toys, text=text, weak_labels=mild, batch_size=23), 1)[0]
    own = [(toys[i].known == known).all() for i, known in zip(batch.index, batch.known, strict=True)]
    assert 0 < sum(own) < 23  # both kinds are there
    for row, index in enumerate(batch.index):
        expected = expected_tokens(text, toys[int(index)], batch.labels[row], batch.known[row])
        np.testing.assert_array_equal(batch.tokens[row], expected)
    assert batch.tokens.dtype == np.int32
    assert batch.tokens.shape == (23, 12)
    if text is OWN:
        assert not batch.tokens[batch.index % 3 == 0].any()  # no caption, no words


def test_without_weak_labels_training_reads_the_own_captions(toys):
    batch = take(train(toys, text=OWN, weak_labels=None, batch_size=23), 1)[0]
    for row, index in zip(batch.tokens, batch.index, strict=True):
        np.testing.assert_array_equal(row, OWN.encode(toys[int(index)].caption or ""))


@pytest.mark.parametrize("noise", ["flip_positive", "flip_negative"])
def test_under_label_noise_no_example_has_its_true_caption(toys, noise):
    """Nor does one whose labels happen to be right: that would say so."""
    batch = take(train(toys, text=OWN, weak_labels=WeakLabels(**{noise: 0.01}), batch_size=23), 1)[0]
    for row, index in enumerate(batch.index):
        sentence = caption_from_phrases(SCHEMA, batch.labels[row], batch.known[row]) if index % 3 else ""
        np.testing.assert_array_equal(batch.tokens[row], OWN.encode(sentence))


@pytest.mark.parametrize("start", [1, 2, 7, 50])
def test_starting_at_a_step_equals_having_come_there(toys, start):
    assert_all_same(
        take(train(toys, text=OWN), start + 3)[start:], take(train(toys, text=OWN, start_step=start), 3)
    )


@pytest.mark.parametrize("shards", [2, 4, 8])
@pytest.mark.parametrize("start", [0, 3])
def test_shards_concatenated_are_the_global_batch(toys, shards, start):
    pieces = [take(train(toys, text=OWN, shard=s, shards=shards, start_step=start), 6) for s in range(shards)]
    whole = take(train(toys, text=OWN, start_step=start), 6)
    assert_all_same([stack(together) for together in zip(*pieces, strict=True)], whole)


@pytest.mark.parametrize("threads", [0, 1, 3, 8])
def test_threads_change_nothing(toys, threads):
    expected = take(train(toys, text=OWN, threads=2), 12)
    assert_all_same(take(train(toys, text=OWN, threads=threads), 12), expected)


def stream(source, steps, **settings):
    return np.concatenate([batch.index for batch in take(train(source, **settings), steps)])


@pytest.mark.parametrize("batch_size", [1, 8, 23, 60])
def test_every_epoch_holds_every_example_once(toys, batch_size):
    """Whatever the batch: also where it does not divide the data set, or is larger."""
    indices = stream(toys, -(-69 // batch_size), batch_size=batch_size)
    epochs = indices[:69].reshape(3, 23)
    np.testing.assert_array_equal(np.sort(epochs, 1), np.tile(np.arange(23), (3, 1)))
    assert (epochs[0] != epochs[1]).any()
    assert (epochs[1] != epochs[2]).any()
    np.testing.assert_array_equal(indices, stream(toys, len(indices), batch_size=1))


def test_seeds_are_different_orders_and_not_shifted_epochs_of_one(toys):
    orders = [stream(toys, 46, batch_size=1, seed=seed).reshape(2, 23) for seed in (0, 1, 2, 2**40)]
    assert len({epoch.tobytes() for order in orders for epoch in order}) == 8


def test_orders_are_uniform():
    """Over many epochs every example meets every place equally often: 4 x 4 cells, 4,000 epochs."""
    order = stream(Toys(4), 4000, batch_size=4, images=ImageOptions(1)).reshape(4000, 4)
    counts = np.array([[(order[:, place] == index).sum() for index in range(4)] for place in range(4)])
    assert ((counts - 1000) ** 2 / 1000).sum() < 33.7  # the 1e-4 quantile at 9 degrees of freedom
    permutations = Counter(map(tuple, order.tolist()))
    assert len(permutations) == 24
    assert sum((n - 4000 / 24) ** 2 / (4000 / 24) for n in permutations.values()) < 57.1  # 23 degrees


def test_windows_differ_between_epochs_and_seeds_labels_do_not(toys):
    first, second = np.split(stack(take(train(toys, batch_size=46), 1)).image, 2)
    indices = stream(toys, 1, batch_size=46)
    by_index = [
        images[np.argsort(i)] for images, i in zip((first, second), np.split(indices, 2), strict=True)
    ]
    assert (by_index[0] != by_index[1]).any((1, 2, 3)).mean() > 0.9
    batch = take(train(toys, batch_size=46), 1)[0]
    for index in range(23):
        rows = np.flatnonzero(batch.index == index)
        np.testing.assert_array_equal(*batch.known[rows])
        np.testing.assert_array_equal(*batch.labels[rows])


def test_the_known_fraction_of_a_training_epoch(toys):
    """What training really receives, epoch after epoch: the requested share of what the data set knows."""
    source = Toys(400)
    batch = take(train(source, batch_size=800, images=ImageOptions(1)), 1)[0]
    assert batch.known.sum() == 2 * batch.known[:400].sum()  # a second epoch reveals nothing new
    told = source.known.sum()
    assert abs(batch.known[:400].sum() - told / 2) < 5 * np.sqrt(told / 4)


@pytest.mark.parametrize("text", [None, OWN, PHRASES])
@pytest.mark.parametrize("weak_labels", [WEAK, WeakLabels(seed=1, single_positive=True)])
def test_nothing_in_a_training_batch_depends_on_a_hidden_label(toys, text, weak_labels):
    """Not the tokens either, although every caption of `Toys` gives all labels away."""
    other = Toys(23)
    for index in range(23):
        example = other[index]
        _, known = weak_labels.apply(example.labels, example.known, example.key)
        hidden = ~known
        if weak_labels.single_positive:
            hidden &= example.labels == 1  # one more present attribute would be one more that may be kept
        other.labels[index] ^= hidden  # change every label that training must not see
    assert (other.labels != toys.labels).any(1).sum() >= 20
    settings = {"text": text, "weak_labels": weak_labels}
    assert_all_same(take(train(other, **settings), 10), take(train(toys, **settings), 10))


def test_evaluation_sees_everything_once_in_order_and_pads(toys):
    batches = take(eval_batches(toys, images=CROPPED, batch_size=8), 99)
    assert len(batches) == num_eval_batches(23, 8) == 3
    whole = stack(batches)
    np.testing.assert_array_equal(whole.index, [*range(23), -1])
    np.testing.assert_array_equal(whole.weight, [1.0] * 23 + [0.0])
    np.testing.assert_array_equal(whole.known[:23], toys.known)
    np.testing.assert_array_equal(whole.labels[:23], toys.labels * toys.known)
    np.testing.assert_array_equal(whole.image[5], load(toys.images[5], PLAIN))  # no random windows
    assert_same(AttributeBatch(*(None if x is None else x[23:] for x in whole)), blank_batch(1, 8, A))


def test_evaluation_reads_captions_only_when_asked_and_then_in_full(toys):
    def tokens(text, captions):
        batches = eval_batches(toys, images=PLAIN, batch_size=8, text=text, captions=captions)
        return stack(take(batches, 99)).tokens

    for text in (OWN, PHRASES):
        silent = tokens(text, False)
        assert silent.shape == (24, 12)
        assert not silent.any()
        told = tokens(text, True)
        for index in range(23):
            example = toys[index]
            expected = expected_tokens(text, example, example.labels, example.known)
            np.testing.assert_array_equal(told[index], expected)
        assert not told[23].any()


@pytest.mark.parametrize(("count", "batch_size"), [(23, 8), (24, 8), (1, 8), (5, 4), (23, 64)])
@pytest.mark.parametrize("shards", [1, 2, 4])
def test_evaluation_shards_have_equally_many_batches_and_miss_nothing(count, batch_size, shards):
    source = Toys(count)
    pieces = [
        take(eval_batches(source, images=PLAIN, batch_size=batch_size, shard=s, shards=shards), 99)
        for s in range(shards)
    ]
    assert {len(piece) for piece in pieces} == {num_eval_batches(count, batch_size)}
    assert {batch.index.shape for piece in pieces for batch in piece} == {(batch_size // shards,)}
    whole = take(eval_batches(source, images=PLAIN, batch_size=batch_size), 99)
    assert_all_same([stack(together) for together in zip(*pieces, strict=True)], whole)
    assert sorted(stack(whole).index[stack(whole).weight > 0]) == list(range(count))


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


class Counting(Toys):
    reads = 0

    def __getitem__(self, index):
        self.reads += 1
        return super().__getitem__(index)


def test_no_more_is_read_ahead_than_promised():
    source = Counting(23)
    batches = train(source, threads=2, batch_size=8, images=ImageOptions(1))
    next(batches)
    time.sleep(0.5)  # ample for 500 batches of this size
    assert source.reads <= 8 * (1 + 2 * 2)
    batches.close()


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


def test_one_example_makes_a_batch():
    (batch,) = take(train(Toys(1), batch_size=4), 1)
    np.testing.assert_array_equal(batch.index, 0)
    assert (batch.weight == 1).all()


def test_hidden_labels_are_those_that_training_never_sees(toys):
    batches = list(eval_batches(toys, images=PLAIN, batch_size=8, hidden_by=WEAK))
    hidden, seen = stack(batches), stack(take(train(toys, images=PLAIN), 3))
    order = np.argsort(seen.index[: len(toys)])
    known, taught = hidden.known[: len(toys)], seen.known[: len(toys)][order]
    assert taught.any()
    assert known.any()
    np.testing.assert_array_equal(known | taught, toys.known)
    assert not (known & taught).any()
    np.testing.assert_array_equal(hidden.labels[: len(toys)], toys.labels * known)


def test_an_epochs_order_is_made_once_and_two_are_kept(monkeypatch):
    """However many threads ask for it at once, and however often."""
    made, orders_made, together = [], [], threading.Barrier(4)

    def slowly(seed, examples, epoch):
        time.sleep(0.02)
        order = np.arange(examples)
        made.append(epoch)
        orders_made.append(weakref.ref(order))
        return order

    def ask(first):
        together.wait()
        return orders.examples(first, 10)

    monkeypatch.setattr(pipeline, "_epoch_order", slowly)
    orders = pipeline._Orders(0, 10)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        found = list(pool.map(ask, 8 * [5]))
    assert found == 8 * [[*range(5, 10), *range(5)]]
    assert sorted(made) == [0, 1]
    assert orders.examples(25, 10) == found[0]
    assert made == [0, 1, 2, 3]
    assert [order() is not None for order in orders_made] == [False, False, True, True]
