"""Visual tokens: pooling as PyTorch's, never upsampled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsca_jax.models.tokens import VisualTokens, adaptive_average_pool, interpolate, pooling_matrix


def test_pooling_bins_by_hand():
    # 5 positions into 2 bins: floor(0)..ceil(2.5) and floor(2.5)..5, so position 2 is in both.
    np.testing.assert_allclose(
        pooling_matrix(5, 2), [[1 / 3, 1 / 3, 1 / 3, 0, 0], [0, 0, 1 / 3, 1 / 3, 1 / 3]], rtol=1e-6
    )


@pytest.mark.parametrize(("height", "width", "grid"), [(14, 14, 7), (10, 9, 7), (8, 12, 3)])
def test_pooling_equals_pytorch(height, width, grid):
    torch = pytest.importorskip("torch")
    feature = np.random.default_rng(0).normal(size=(2, height, width, 5)).astype(np.float32)
    expected = torch.nn.functional.adaptive_avg_pool2d(torch.tensor(feature).permute(0, 3, 1, 2), grid)
    np.testing.assert_allclose(
        adaptive_average_pool(jnp.asarray(feature), grid), expected.permute(0, 2, 3, 1), atol=1e-6
    )


@pytest.mark.parametrize(("size", "expected"), [((2, 2), (2, 2)), ((7, 7), (7, 7)), ((4, 12), (4, 7))])
def test_small_maps_keep_their_own_grid(size, expected):
    feature = jnp.ones((1, *size, 4))
    module = VisualTokens(hidden_size=8)
    tokens, _ = jax.eval_shape(
        lambda key: module.init_with_output(key, feature, train=False), jax.random.key(0)
    )
    assert tokens.shape == (1, *expected, 8)


@pytest.mark.parametrize(
    ("size", "grid"), [((2, 2), (6, 6)), ((3, 5), (7, 11)), ((4, 4), (4, 4)), ((1, 1), (3, 3))]
)
def test_interpolation_equals_pytorch(size, grid):
    torch = pytest.importorskip("torch")
    feature = np.random.default_rng(0).normal(size=(2, *size, 5)).astype(np.float32)
    channels_first = torch.tensor(feature).permute(0, 3, 1, 2)
    expected = torch.nn.functional.interpolate(channels_first, grid, mode="bilinear", align_corners=False)
    found = interpolate(jnp.asarray(feature), grid)
    np.testing.assert_allclose(found, expected.permute(0, 2, 3, 1), atol=1e-6)


def test_coarser_maps_tell_each_token_of_its_own_place():
    fine, coarse = jax.random.normal(jax.random.key(1), (1, 6, 6, 4)), jnp.ones((1, 3, 3, 8))
    module = VisualTokens(hidden_size=16, dtype=jnp.float32)
    variables = jax.jit(lambda key: module.init(key, fine, coarse, train=False))(jax.random.key(0))
    see = jax.jit(lambda above: module.apply(variables, fine, above, train=False))
    changed = np.abs(see(coarse.at[0, 0, 0].add(1.0)) - see(coarse)).max((0, -1)) > 1e-6
    assert changed[:2, :2].all()
    assert not changed[3:].any()
    assert not changed[:, 3:].any()
    assert see(coarse).shape == (1, 6, 6, 16)


def test_dropout_only_in_training():
    feature = jax.random.normal(jax.random.key(1), (4, 3, 3, 8))
    module = VisualTokens(hidden_size=64, dropout=0.5)
    variables = jax.jit(lambda key: module.init(key, feature, train=False))(jax.random.key(0))
    evaluate = jax.jit(lambda: module.apply(variables, feature, train=False))
    first, second = evaluate(), evaluate()
    np.testing.assert_array_equal(first, second)

    @jax.jit
    def train(key):
        return module.apply(variables, feature, train=True, rngs={"dropout": key}, mutable=["batch_stats"])[0]

    dropped = train(jax.random.key(2))
    assert jnp.mean(dropped == 0) > jnp.mean(first == 0) + 0.2
