"""Batches of evaluation: every example once, in order, with all its labels, whatever the number of shards."""

import numpy as np
import pytest
from toys import (
    CROPPED,
    OWN,
    PHRASES,
    PLAIN,
    WEAK,
    A,
    Toys,
    assert_all_same,
    assert_same,
    expected_tokens,
    stack,
    take,
    train,
)

from input_pipeline.batch import AttributeBatch, blank_batch
from input_pipeline.images import load
from input_pipeline.pipeline import eval_batches, num_eval_batches


@pytest.fixture(scope="module")
def toys():
    return Toys(23)


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
