"""Training batches: the step is the whole state, shards are slices, threads change nothing."""

import concurrent.futures
import threading
import time
import weakref
from collections import Counter

import numpy as np
import pytest
from toys import (
    OWN,
    PHRASES,
    PLAIN,
    SCHEMA,
    WEAK,
    ClassedToys,
    Toys,
    assert_all_same,
    expected_tokens,
    stack,
    take,
    train,
)

from input_pipeline import pipeline
from input_pipeline.images import ImageOptions, load
from input_pipeline.pipeline import eval_batches
from input_pipeline.text import Text, TextOptions, caption_from_phrases
from input_pipeline.weak_labels import WeakLabels


@pytest.fixture(scope="module")
def toys():
    return Toys(23)


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


PROTOCOLS = {
    "known fraction": WeakLabels(seed=3, known_fraction=0.4),
    "single positive": WeakLabels(seed=3, single_positive=True),
    "flips": WeakLabels(seed=3, flip_positive=0.3, flip_negative=0.2),
    "class level": WeakLabels(seed=3, class_level=True, known_fraction=0.7),
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_protocol_says_the_same_of_an_example_wherever_it_stands(protocol):
    """In every epoch, order, batch, shard and thread, and however far the stream has come."""
    toys, weak = ClassedToys(23), PROTOCOLS[protocol]
    once = np.zeros((2, 23, 6), np.uint8)
    first = take(train(toys, weak_labels=weak, batch_size=23, threads=0), 1)[0]
    once[:, first.index] = first.labels, first.known
    full = np.stack([toys.labels * toys.known, toys.known])
    assert (once != full).any()  # it does withhold or change something
    ways = [{}, {"seed": 9}, {"batch_size": 5}, {"start_step": 7}, {"threads": 8}]
    ways += [{"shards": 4, "shard": shard} for shard in range(4)]
    for way in ways:
        for batch in take(train(toys, **{"weak_labels": weak, **way}), 9):
            np.testing.assert_array_equal(
                np.stack([batch.labels, batch.known]), once[:, batch.index], str(way)
            )


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


def test_one_example_makes_a_batch():
    (batch,) = take(train(Toys(1), batch_size=4), 1)
    np.testing.assert_array_equal(batch.index, 0)
    assert (batch.weight == 1).all()


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
