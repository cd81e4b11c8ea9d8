"""Batch normalisation, pooling and the residual sum against plain formulas and PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from wsca_jax.models import layers
from wsca_jax.models.layers import BatchNorm, Conv


def batch(b=6, h=3, w=4, c=5, seed=0):
    rng = np.random.default_rng(seed)
    return jnp.asarray(
        rng.standard_normal((b, h, w, c)) * rng.uniform(0.5, 2, c) + rng.uniform(-2, 2, c), jnp.float32
    )


def norm_variables(c=5, seed=1):
    rng = np.random.default_rng(seed)
    return {
        "params": {
            "scale": jnp.asarray(rng.uniform(0.5, 2, c), jnp.float32),
            "bias": jnp.asarray(rng.normal(size=c), jnp.float32),
        },
        "batch_stats": {
            "mean": jnp.asarray(rng.normal(size=c), jnp.float32),
            "var": jnp.asarray(rng.uniform(0.5, 2, c), jnp.float32),
        },
    }


def train(x, variables, weight=None, dtype=jnp.float32, parts=1):
    norm = BatchNorm(dtype=dtype, parts=parts)
    y, updated = norm.apply(variables, x, train=True, weight=weight, mutable=["batch_stats"])
    return y, updated["batch_stats"]


def plain_batch_norm(x, scale, bias, weight):
    """The definition, differentiated by JAX."""
    w = weight[:, None, None, None] / (weight.sum() * x.shape[1] * x.shape[2])
    mean = (w * x).sum((0, 1, 2))
    var = (w * (x - mean) ** 2).sum((0, 1, 2))
    return (x - mean) / jnp.sqrt(var + 1e-5) * scale + bias


def test_conv_adds_its_bias_and_keeps_its_size():
    x = batch()
    conv = Conv(7, (3, 3), use_bias=True, dtype=jnp.float32)
    variables = conv.init(jax.random.key(0), x)
    assert variables["params"]["kernel"].shape == (3, 3, 5, 7)
    y = conv.apply(variables, x)
    assert y.shape == (6, 3, 4, 7)
    shifted = {"params": variables["params"] | {"bias": jnp.arange(7.0)}}
    np.testing.assert_allclose(
        conv.apply(shifted, x) - y, jnp.broadcast_to(jnp.arange(7.0), y.shape), atol=1e-5
    )


@pytest.mark.parametrize("weight", [(1, 1, 1, 1, 1, 1), (1, 0, 0.5, 1, 0.25, 0)])
def test_batch_norm_and_its_gradient_equal_the_definition(weight):
    x, weight = batch(), jnp.asarray(weight, jnp.float32)
    params = norm_variables()["params"]
    probe = jnp.sin(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape)

    def ours(x, scale, bias):
        return jnp.sum(probe * layers.batch_normalise(x, scale, bias, weight, 1e-5)[0])

    def plain(x, scale, bias):
        return jnp.sum(probe * plain_batch_norm(x, scale, bias, weight))

    arguments = (x, params["scale"], params["bias"])
    found, expected = (jax.value_and_grad(f, (0, 1, 2))(*arguments) for f in (ours, plain))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5)


def test_batch_norm_equals_pytorch():
    torch = pytest.importorskip("torch")
    x, variables = batch(), norm_variables()
    reference = torch.nn.BatchNorm2d(5)
    ours = {**variables["params"], **variables["batch_stats"]}
    names = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
    state = {name: torch.from_numpy(np.array(ours[key])) for name, key in names.items()}
    reference.load_state_dict(state | {"num_batches_tracked": torch.tensor(0)})
    image = torch.from_numpy(np.array(x)).permute(0, 3, 1, 2)
    evaluated = BatchNorm(dtype=jnp.float32).apply(variables, x, train=False)
    np.testing.assert_allclose(evaluated, reference.eval()(image).detach().permute(0, 2, 3, 1), atol=1e-5)
    y, statistics = train(x, variables)
    np.testing.assert_allclose(y, reference.train()(image).detach().permute(0, 2, 3, 1), atol=1e-5)
    np.testing.assert_allclose(statistics["mean"], reference.running_mean, atol=1e-6)
    np.testing.assert_allclose(statistics["var"], reference.running_var, rtol=1e-5)


def test_rows_of_weight_zero_change_nothing():
    x, variables = batch(), norm_variables()
    weight = jnp.asarray([1, 1, 0, 1, 0, 1.0])
    y, statistics = train(x, variables, weight)
    other = jnp.where(weight[:, None, None, None] == 0, 100.0, x)
    y_other, statistics_other = train(other, variables, weight)
    kept = np.flatnonzero(weight)
    y_alone, statistics_alone = train(x[kept], variables)
    for found in (statistics_other, statistics_alone):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, statistics)
    np.testing.assert_allclose(y[kept], y_other[kept], atol=1e-5)
    np.testing.assert_allclose(y[kept], y_alone, atol=1e-5)


def test_an_empty_batch_leaves_the_running_statistics():
    variables = norm_variables()
    y, statistics = train(batch(), variables, jnp.zeros(6))
    assert bool(jnp.isfinite(y).all())
    jax.tree.map(np.testing.assert_array_equal, statistics, variables["batch_stats"])


def test_statistics_are_float32_under_bfloat16():
    """A mean of 4096 bfloat16 ones and small noise would drift if it were summed in bfloat16."""
    x = (1 + 0.01 * batch(4, 32, 32, 5)).astype(jnp.bfloat16)
    y, statistics = train(x, norm_variables(), dtype=jnp.bfloat16)
    assert y.dtype == jnp.bfloat16
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(statistics))
    x64 = np.asarray(x, np.float64)
    expected = 0.9 * np.asarray(norm_variables()["batch_stats"]["mean"]) + 0.1 * x64.mean((0, 1, 2))
    np.testing.assert_allclose(statistics["mean"], expected, rtol=1e-5)


def test_statistics_are_the_global_batch_s_when_it_is_sharded():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    x, variables = batch(b=16), norm_variables()
    weight = jnp.asarray([1.0] * 13 + [0.0] * 3)
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    split = jax.jit(train)(jax.device_put(x, sharding), variables, jax.device_put(weight, sharding))
    whole = jax.jit(train)(x, variables, weight)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), split, whole)


@pytest.mark.parametrize("weight", [(1, 1, 1, 1, 1, 1), (1, 0, 0.5, 1, 0, 0)])
def test_parts_are_normalised_as_batches_of_their_own(weight):
    """The third part of the second case is empty: it counts for nothing."""
    x, variables, weight = batch(), norm_variables(), jnp.asarray(weight, jnp.float32)
    y, statistics = train(x, variables, weight, parts=3)
    alone = [train(x[i : i + 2], variables, weight[i : i + 2]) for i in (0, 2, 4)]
    np.testing.assert_allclose(y, jnp.concatenate([y for y, _ in alone]), atol=1e-5)
    counts = weight.reshape(3, 2).sum(1)
    for name, found in statistics.items():
        each = jnp.stack([statistics[name] for _, statistics in alone])
        np.testing.assert_allclose(found, counts / counts.sum() @ each, rtol=1e-5, atol=1e-6)


def test_the_gradient_of_parts_is_that_of_the_parts():
    x, params, weight = batch(), norm_variables()["params"], jnp.asarray([1, 1, 0, 1, 0.5, 1.0])
    probe = jnp.sin(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape)

    def ours(x, scale, bias):
        return jnp.sum(probe * layers.normalise_parts(x, scale, bias, weight, 1e-5, 2)[0])

    def plain(x, scale, bias):
        halves = [plain_batch_norm(x[i : i + 3], scale, bias, weight[i : i + 3]) for i in (0, 3)]
        return jnp.sum(probe * jnp.concatenate(halves))

    arguments = (x, params["scale"], params["bias"])
    found, expected = (jax.grad(f, (0, 1, 2))(*arguments) for f in (ours, plain))
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(("parts", "sends"), [(1, True), (8, False)])
def test_a_part_for_each_device_is_normalised_where_it_lies(parts, sends):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    x = jax.device_put(batch(b=16), sharding)
    norm = BatchNorm(dtype=jnp.float32, parts=parts)

    def normalise(x):
        return norm.apply(norm_variables(), x, train=True, mutable=["batch_stats"])[0]

    program = jax.jit(normalise).lower(x).compile().as_text()
    assert any(name in program for name in ("all-reduce", "all-gather", "all-to-all")) == sends


def test_initialisation_leaves_mean_zero_and_variance_one():
    variables = BatchNorm(dtype=jnp.float32).init(jax.random.key(0), batch(), train=True)
    np.testing.assert_array_equal(variables["batch_stats"]["mean"], np.zeros(5))
    np.testing.assert_array_equal(variables["batch_stats"]["var"], np.ones(5))


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (1, 1), (2, 3)])
def test_max_pool_and_its_gradient_equal_reduce_window(size):
    """Integers, so that windows hold ties: the first of them receives the gradient."""
    x = jnp.asarray(np.random.default_rng(0).integers(0, 4, (2, *size, 3)), jnp.float32)

    def native(x):
        window, padding = (1, 3, 3, 1), [(0, 0), (1, 1), (1, 1), (0, 0)]
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, (1, 2, 2, 1), padding)

    expected, native_vjp = jax.vjp(native, x)
    found, vjp = jax.vjp(layers.max_pool, x)
    np.testing.assert_array_equal(found, expected)
    dy = jnp.asarray(np.random.default_rng(1).standard_normal(found.shape), jnp.float32)
    np.testing.assert_allclose(vjp(dy)[0], native_vjp(dy)[0], atol=1e-6)


def test_max_pool_does_not_hide_a_nan():
    assert bool(jnp.isnan(layers.max_pool(jnp.zeros((1, 4, 4, 1)).at[0, 1, 1, 0].set(jnp.nan))[0, 0, 0, 0]))


def test_add_relu_is_exactly_relu_of_the_sum():
    x, y = batch(seed=2), batch(seed=3)
    np.testing.assert_array_equal(layers.add_relu(x, y), jax.nn.relu(x + y))
    probe = batch(seed=4)
    found = jax.grad(lambda x, y: jnp.sum(probe * layers.add_relu(x, y)), (0, 1))(x, y)
    expected = jax.grad(lambda x, y: jnp.sum(probe * jax.nn.relu(x + y)), (0, 1))(x, y)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
