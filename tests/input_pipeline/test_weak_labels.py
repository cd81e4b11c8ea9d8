"""Weak labels: the requested statistics, from draws that depend on (seed, key) alone."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest

from input_pipeline.errors import DataError
from input_pipeline.weak_labels import WeakLabels, uniforms

A, N = 40, 4000
KEYS = [f"{i:06d}.jpg" for i in range(N)]
ALL = np.ones(A, np.bool_)
SIGMAS = 5.0  # the draws are fixed, so a bound that holds once holds always


@pytest.fixture(scope="module")
def labels():
    """Correlated labels: half of the variance is shared within an example."""
    rng = np.random.default_rng(0)
    return (rng.normal(size=(N, A)) + rng.normal(size=(N, 1)) > 0.8).astype(np.uint8)


def apply(protocol, labels, known=None):
    pairs = [
        protocol.apply(row, ALL if known is None else k, key)
        for row, key, k in zip(labels, KEYS, labels if known is None else known, strict=True)
    ]
    return tuple(np.stack(part) for part in zip(*pairs, strict=True))


def assert_rate(hits, p, axis=None):
    """Every mean along the axis lies within SIGMAS standard errors of p, with room for many means at once."""
    count = hits.size if axis is None else hits.shape[axis]
    error = np.abs(hits.mean(axis) - p).max()
    assert error <= SIGMAS * np.sqrt(p * (1 - p) / count), (error, p, count)


def assert_uncorrelated(a, b):
    """Every column of a against every column of b, as independent variables would be."""
    a, b = (x - x.mean(0) for x in (a.astype(float), b.astype(float)))
    scale = np.sqrt((a**2).sum(0))[:, None] * np.sqrt((b**2).sum(0))[None]
    correlation = np.abs(a.T @ b / scale)
    if a.shape == b.shape and (a == b).all():
        np.fill_diagonal(correlation, 0.0)
    assert correlation.max() <= SIGMAS / np.sqrt(len(a)), correlation.max()


@pytest.mark.parametrize("p", [0.01, 0.1, 0.5, 0.9])
def test_the_known_fraction_is_the_requested_one(labels, p):
    _, known = apply(WeakLabels(seed=3, known_fraction=p), labels)
    assert_rate(known, p)
    assert_rate(known, p, axis=0)  # of every attribute
    # Binomial within an image too. The variance of 4,000 counts is known to 2.3 %: five times that.
    assert known.sum(1).var() == pytest.approx(A * p * (1 - p), rel=0.12)
    for value in (0, 1):  # and of present and absent labels alike: nothing leaks through the mask
        assert_rate(known[labels == value], p)


def test_what_is_known_is_independent_of_everything_else(labels):
    _, known = apply(WeakLabels(seed=3, known_fraction=0.3), labels)
    _, other = apply(WeakLabels(seed=4, known_fraction=0.3), labels)
    assert_uncorrelated(known, known)  # between attributes
    assert_uncorrelated(known, labels)  # of the labels
    assert_uncorrelated(known, other)  # of another seed's choice
    assert_uncorrelated(known[1:], known[:-1])  # between neighbours


def test_the_joint_distribution_of_attribute_triples_is_a_product(labels):
    _, known = apply(WeakLabels(seed=1, known_fraction=0.5), labels)
    for first in range(0, A - 2, 5):
        cells = np.bincount(known[:, first : first + 3] @ np.array([4, 2, 1]), minlength=8)
        chi_square = ((cells - N / 8) ** 2 / (N / 8)).sum()
        assert chi_square < 29.9  # the 1e-4 quantile at 7 degrees of freedom


def test_the_mask_ignores_the_labels(labels):
    protocol = WeakLabels(seed=3, known_fraction=0.3)
    _, known = apply(protocol, labels)
    _, same = apply(protocol, 1 - labels)
    np.testing.assert_array_equal(known, same)


def test_unknown_is_zero_and_known_is_the_truth(labels):
    weak, known = apply(WeakLabels(known_fraction=0.3), labels)
    assert not weak[~known].any()
    np.testing.assert_array_equal(weak[known], labels[known])


def test_what_the_data_set_does_not_know_stays_unknown(labels):
    told = np.random.default_rng(1).random((N, A)) < 0.7
    for protocol in (WeakLabels(known_fraction=0.5), WeakLabels(single_positive=True), WeakLabels()):
        weak, known = apply(protocol, labels, told)
        assert not known[~told].any()
        assert not weak[~known].any()
    assert_rate(apply(WeakLabels(known_fraction=0.5), labels, told)[1][told], 0.5)


def test_single_positive_keeps_one_present_attribute_chosen_uniformly(labels):
    weak, known = apply(WeakLabels(seed=5, single_positive=True), labels)
    np.testing.assert_array_equal(known.sum(1), labels.any(1))  # an image with none keeps none
    np.testing.assert_array_equal(weak, known)
    assert not (known & (labels == 0)).any()
    for count in (2, 3, 5):
        rows = labels.sum(1) == count
        rank = (np.cumsum(labels[rows], 1) - 1)[known[rows]]
        for position in range(count):
            assert_rate(rank == position, 1 / count)


def test_removing_another_positive_does_not_move_the_single_one(labels):
    protocol = WeakLabels(seed=5, single_positive=True)
    for row, key in zip(labels[:200], KEYS, strict=False):
        _, known = protocol.apply(row, ALL, key)
        for other in np.flatnonzero(row & ~known):
            fewer = row.copy()
            fewer[other] = 0
            np.testing.assert_array_equal(protocol.apply(fewer, ALL, key)[1], known)


def test_flips_have_the_requested_rates(labels):
    weak, known = apply(WeakLabels(seed=2, flip_positive=0.3, flip_negative=0.05), labels)
    assert known.all()
    assert_rate(weak[labels == 1] == 0, 0.3)
    assert_rate(weak[labels == 0] == 1, 0.05)


def test_noise_and_hiding_are_drawn_apart(labels):
    noisy, _ = apply(WeakLabels(seed=2, flip_positive=0.4, flip_negative=0.4), labels)
    _, known = apply(WeakLabels(seed=2, known_fraction=0.4), labels)
    assert_uncorrelated(noisy != labels, known)
    assert_uncorrelated(noisy != labels, noisy != labels)
    assert_uncorrelated(noisy != labels, labels)
    both, kept = apply(WeakLabels(seed=2, flip_positive=0.4, flip_negative=0.4, known_fraction=0.4), labels)
    np.testing.assert_array_equal(both, noisy * known)
    np.testing.assert_array_equal(kept, known)


def test_inputs_are_left_alone(labels):
    told = ALL.copy()
    row = labels[0].copy()
    weak, known = WeakLabels().apply(row, told, "a")
    weak[:], known[:] = 7, False
    assert told.all()
    np.testing.assert_array_equal(row, labels[0])


def test_draws_are_the_digits_of_shake_128():
    """The definition, spelt out: a change of it would silently change every published weak-label run."""
    digits = hashlib.shake_128(b"9/known/000001.jpg").digest(16)
    expected = [int.from_bytes(digits[i : i + 8], "little") // 2**11 / 2**53 for i in (0, 8)]
    np.testing.assert_array_equal(uniforms(9, "known", "000001.jpg", 2), expected)
    np.testing.assert_array_equal(uniforms(9, "known", "000001.jpg", 40)[:2], expected)


def test_another_process_draws_the_same():
    program = "from input_pipeline.weak_labels import uniforms; print(uniforms(1, 'flip', 'k', 3).tolist())"
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert output.stdout.strip() == str(uniforms(1, "flip", "k", 3).tolist())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"known_fraction": 1.5}, "known_fraction must be a probability"),
        ({"known_fraction": -0.1}, "known_fraction must be a probability"),
        ({"flip_positive": float("nan")}, "flip_positive must be a probability"),
        ({"flip_negative": 2}, "flip_negative must be a probability"),
        ({"single_positive": True, "known_fraction": 0.5}, "set known_fraction to 1"),
    ],
)
def test_impossible_settings_are_one_clear_line(settings, message):
    with pytest.raises(DataError, match=message) as caught:
        WeakLabels(**settings)
    assert "\n" not in str(caught.value)
