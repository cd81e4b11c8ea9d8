"""The paired bootstrap against scikit-learn, and its verdicts on models that do and do not differ."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from wsca_jax.metrics.bootstrap import compare, resampled_mAP
from wsca_jax.metrics.predictions import Predictions


def predictions(rng, rows=80, attributes=3, signal=0.0, labels=None, known=1.0):
    labels = (rng.random((rows, attributes)) < 0.3) if labels is None else labels
    logits = np.round(signal * labels + rng.normal(size=labels.shape), 1)  # rounded, so that scores tie
    return Predictions(
        logits.astype(np.float32),
        labels.astype(np.uint8),
        rng.random(labels.shape) < known,
        np.ones(len(labels), np.float32),
        np.arange(len(labels), dtype=np.int32),
    )


def test_a_resample_s_map_is_scikit_learn_s_on_repeated_rows():
    rng = np.random.default_rng(0)
    rows = predictions(rng, signal=1.0, known=0.8)
    rows = rows._replace(weight=np.where(np.arange(80) < 70, 1.0, 0.0).astype(np.float32))
    counts = rng.multinomial(80, np.full(80, 1 / 80), 5)
    expected = []
    for count in counts:
        repeated = np.repeat(np.arange(80), count * (rows.weight > 0))
        aps = []
        for a in range(3):
            use = repeated[rows.known[repeated, a]]
            aps.append(average_precision_score(rows.labels[use, a], rows.logits[use, a]))
        expected.append(np.mean(aps))
    np.testing.assert_allclose(resampled_mAP(rows, counts), expected, rtol=1e-6)


def test_an_attribute_without_positives_is_left_out():
    rng = np.random.default_rng(1)
    labels = rng.random((50, 2)) < 0.4
    labels[:, 1] = False
    rows = predictions(rng, labels=labels, signal=1.0)
    only = rows._replace(logits=rows.logits[:, :1], labels=rows.labels[:, :1], known=rows.known[:, :1])
    counts = np.ones((1, 50), np.int64)
    np.testing.assert_allclose(resampled_mAP(rows, counts), resampled_mAP(only, counts))


def test_verdicts():
    rng = np.random.default_rng(2)
    labels = rng.random((400, 5)) < 0.3
    weak = [predictions(rng, labels=labels, signal=0.5) for _ in range(3)]
    strong = [predictions(rng, labels=labels, signal=2.0) for _ in range(3)]
    better, same = compare(weak, strong), compare(weak, weak)
    assert better.verdict == "helps"
    assert compare(strong, weak).verdict == "hurts"
    assert better.low < better.difference < better.high
    assert (same.difference, same.low, same.high) == (0, 0, 0)
    assert same.verdict == "undecided"


def test_the_interval_covers_as_often_as_it_says():
    """Two equal models, fresh images each time: 0 lies outside a 90 % interval about once in ten."""
    outside = 0
    for trial in range(60):
        rng = np.random.default_rng(100 + trial)
        labels = rng.random((120, 4)) < 0.4
        pair = [[predictions(rng, labels=labels, signal=1.0)] for _ in range(2)]
        outside += compare(*pair, resamples=200, confidence=0.9, seed=trial).verdict != "undecided"
    assert 1 <= outside <= 14


def test_rows_may_come_in_another_order_but_not_be_others():
    rng = np.random.default_rng(3)
    a, b = predictions(rng), predictions(rng, signal=1.0)
    order = rng.permutation(80)
    shuffled = Predictions(*(x[order] for x in b))
    assert compare([a], [shuffled], resamples=50) == compare([a], [b], resamples=50)
    with pytest.raises(ValueError, match="different examples"):
        compare([a], [b._replace(index=b.index + 1)])
    with pytest.raises(ValueError, match="at least one run"):
        compare([], [b])
