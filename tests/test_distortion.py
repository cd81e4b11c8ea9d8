"""Distortion: what it does to an image, against NumPy, and who gets to see it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsca_jax import augment
from wsca_jax.distortion import Distortion, distort

OFF = Distortion(brightness=0.0, contrast=0.0, saturation=0.0, shift=0.0, erase=0.0)
OPTIONS = augment.Options()
KEY = jax.random.key(3)


def only(**steps):
    return dataclasses.replace(OFF, **steps)


def distorted(image, distortion, key=KEY):
    return np.asarray(jax.jit(functools.partial(distort, distortion=distortion, options=OPTIONS))(image, key))


def pixels_of(normalised):
    return normalised * np.array(OPTIONS.std) + np.array(OPTIONS.mean)


@pytest.fixture(scope="module")
def images():
    """Normalised images, float32 [64, 20, 30, 3], that no two rows, columns or examples share."""
    pixels = np.random.default_rng(0).uniform(0.0, 1.0, (64, 20, 30, 3))
    return ((pixels - np.array(OPTIONS.mean)) / np.array(OPTIONS.std)).astype(np.float32)


def test_nothing_asked_for_is_nothing_done(images):
    np.testing.assert_allclose(distorted(images, OFF), images, atol=1e-6)


def test_images_move_by_whole_pixels_within_the_limit_and_repeat_their_border(images):
    found = distorted(images, only(shift=0.1))
    padded = np.pad(images, ((0, 0), (2, 2), (3, 3), (0, 0)), mode="edge")
    moves = [
        (down, right)
        for image, moved in zip(padded, found, strict=True)
        for down in range(-2, 3)
        for right in range(-3, 4)
        if np.allclose(moved, image[2 - down : 22 - down, 3 - right : 33 - right], atol=1e-6)
    ]
    assert len(moves) == len(images)  # each is one of the moves there may be
    assert {down for down, _ in moves} == {-2, -1, 0, 1, 2}
    assert {right for _, right in moves} == {-3, -2, -1, 0, 1, 2, 3}


def test_a_square_is_painted_over_with_the_mean_colour(images):
    found = distorted(images, only(erase=0.5))
    gone = (found == 0).all(-1)
    np.testing.assert_allclose(found[~gone], images[~gone], atol=1e-6)
    rows, columns = gone.any(2), gone.any(1)
    np.testing.assert_array_equal(gone, rows[:, :, None] & columns[:, None, :])  # a rectangle,
    for sides in (rows, columns):
        assert (np.abs(np.diff(sides.astype(int), axis=1)).sum(1) <= 2).all()  # in one piece,
        assert 7 <= sides.sum(1).max() <= 10  # half of the shorter side at most
    whole = rows[:, 0] | rows[:, -1] | columns[:, 0] | columns[:, -1]
    assert (np.abs(rows.sum(1) - columns.sum(1)) <= 1)[~whole].all()  # a square where no border cuts it
    assert (rows.sum(1) < 4).any()


def test_light_and_colour_change_in_pixels_and_each_image_by_its_own_factor(images):
    before, after = pixels_of(images), pixels_of(distorted(images, only(brightness=0.4)))
    inside = (after > 0.01) & (after < 0.99) & (before > 0.05)
    factors = [np.unique(np.round((a / b)[i], 3)) for a, b, i in zip(after, before, inside, strict=True)]
    assert all(np.ptp(factor) < 5e-3 for factor in factors)
    assert 0.6 <= min(map(np.min, factors)) < 0.7 < 1.3 < max(map(np.max, factors)) <= 1.4
    everything = pixels_of(distorted(images, Distortion()))
    assert everything.min() > -1e-5
    assert everything.max() < 1 + 1e-5


def test_the_key_decides_and_the_dtype_stays(images):
    half = jnp.asarray(images, jnp.bfloat16)
    first, again = distorted(half, Distortion()), distorted(half, Distortion())
    assert first.dtype == jnp.bfloat16
    np.testing.assert_array_equal(first, again)
    assert (first != distorted(half, Distortion(), jax.random.key(4))).any()


@pytest.mark.parametrize(
    "wrong", [{"brightness": -0.1}, {"shift": 0.6}, {"erase": 1.2}, {"erase": float("nan")}]
)
def test_a_setting_out_of_range_is_named(wrong):
    with pytest.raises(ValueError, match=f"distortion: {next(iter(wrong))} must lie in"):
        Distortion(**wrong)
