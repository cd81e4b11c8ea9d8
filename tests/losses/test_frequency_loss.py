"""The decoupling loss: NumPy's correlations, numbers by hand, padding, and what descending it does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsca_jax.losses.frequency import decoupling


@jax.jit
def correlation(low, high, weight):
    return decoupling(low, high, weight, regularisation=0.0)


value_and_gradient = jax.jit(jax.value_and_grad(decoupling, (0, 1)))


def features(rows=64, seed=0):
    rng = np.random.default_rng(seed)
    low, noise = rng.standard_normal((2, rows, 5))
    high = 0.6 * low[:, ::-1] + 0.8 * noise
    return np.float32(3.0 * low - 1.0), np.float32(0.5 * high + 2.0), np.ones(rows, np.float32)


def test_equals_numpy_s_correlations():
    low, high, weight = features()
    expected = np.mean(np.corrcoef(low.T, high.T)[:5, 5:] ** 2)
    np.testing.assert_allclose(correlation(low, high, weight), expected, rtol=1e-3)


def test_the_regulariser_equals_numpy_s_moments():
    low, high, weight = features()
    moments = [np.mean(x.mean(0) ** 2 + (x.std(0) - 1) ** 2) for x in (low, high)]
    found = decoupling(low, high, weight, regularisation=2.0) - correlation(low, high, weight)
    np.testing.assert_allclose(found, 2.0 * np.mean(moments), rtol=1e-3)


def test_numbers_by_hand():
    """Standard, centred features: the low one is high's first column and knows nothing of its second."""
    low, weight = np.float32([[1], [1], [-1], [-1]]), np.ones(4, np.float32)
    high = np.float32([[1, 1], [1, -1], [-1, 1], [-1, -1]])
    assert float(decoupling(low, high, weight)) == pytest.approx((1.0 + 0.0) / 2, rel=1e-4)
    assert float(decoupling(2 * low, high, weight)) == pytest.approx(0.5 + 0.1 * (1 + 0) / 2, rel=1e-4)
    assert float(decoupling(low + 3, high, weight)) == pytest.approx(0.5 + 0.1 * (9 + 0) / 2, rel=1e-4)


def test_weights_count_as_repetitions():
    low, high, _ = features(rows=6)
    weight = np.float32([1.0, 0.5, 0.5, 1.0, 0.5, 1.0])
    times = np.int32(2 * weight)
    repeated = (np.repeat(low, times, 0), np.repeat(high, times, 0), np.ones(times.sum(), np.float32))
    np.testing.assert_allclose(decoupling(low, high, weight), decoupling(*repeated), rtol=1e-5)


@pytest.mark.parametrize("filler", [7.0, 1e30, np.nan, np.inf])
def test_padding_touches_nothing(filler):
    low, high, weight = features(rows=12)
    padded = [np.concatenate([x, np.full((4, 5), filler, np.float32)]) for x in (low, high)]
    found = value_and_gradient(*padded, np.concatenate([weight, np.zeros(4, np.float32)]))
    expected = value_and_gradient(low, high, weight)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-6)
    for a, b in zip(found[1], expected[1], strict=True):
        np.testing.assert_allclose(a[:12], b, rtol=1e-5, atol=1e-7)
        np.testing.assert_array_equal(a[12:], 0.0)


@pytest.mark.parametrize("weight", [[1.0], [0.0], [0.0, 0.3, 0.0], [0.0, 0.0]])
def test_fewer_than_two_rows_are_zero_and_finite(weight):
    low, high, _ = features(rows=len(weight))
    value, gradients = value_and_gradient(low, high, np.float32(weight))
    assert value == 0.0
    for gradient in gradients:
        np.testing.assert_array_equal(gradient, 0.0)


def test_constant_features_are_finite_and_not_free():
    constant, weight = np.full((8, 5), 2.0, np.float32), np.ones(8, np.float32)
    value, gradients = value_and_gradient(constant, constant, weight)
    assert float(value) == pytest.approx(0.1 * (4.0 + 1.0), rel=1e-2)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_independent_features_score_their_expectation():
    rng = np.random.default_rng(0)
    low, high = rng.standard_normal((2, 256, 16)).astype(np.float32)
    found = float(correlation(low, high, np.ones(256, np.float32)))
    assert found == pytest.approx(1 / 255, rel=0.2)


def test_descending_it_removes_a_planted_dependence():
    low, high, weight = (jnp.asarray(x) for x in features())
    before = correlation(low, high, weight)

    def step(pair, _):
        gradients = jax.grad(decoupling, (0, 1))(*pair, weight)
        return jax.tree.map(lambda x, g: x - 20.0 * g, pair, gradients), None

    (low, high), _ = jax.jit(lambda pair: jax.lax.scan(step, pair, length=1000))((low, high))
    assert correlation(low, high, weight) < 0.1 * before
    for found in (low, high):  # on their way to mean 0 and deviation 1, from -1 and 3, 2 and 0.5
        assert np.abs(np.mean(found, 0)).max() < 0.2
        np.testing.assert_allclose(np.std(found, 0), 1.0, atol=0.2)


def test_bfloat16_features_are_scored_in_float32():
    low, high, weight = (jnp.asarray(x) for x in features())
    low, high = low.astype(jnp.bfloat16), high.astype(jnp.bfloat16)
    found = decoupling(low, high, weight)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(
        found, decoupling(low.astype(jnp.float32), high.astype(jnp.float32), weight), rtol=1e-6
    )


def test_a_negative_factor_is_refused():
    with pytest.raises(ValueError, match="regularisation must be at least 0, found -1"):
        decoupling(*features(), regularisation=-1.0)
