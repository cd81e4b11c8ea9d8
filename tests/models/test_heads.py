"""Group heads: every attribute is scored by its own group's classifier, all in one computation."""

import functools

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsca_jax.models.heads import GroupHeads, padded_members

GROUP_OF = (0, 2, 0, 2, 2, 3)  # group 1 is empty; groups hold 2, 3 and 1 attributes


@pytest.fixture(scope="module")
def heads():
    module = GroupHeads(GROUP_OF, hidden_size=8, attr_dim=6, dropout=0.5, dtype=jnp.float32)
    pooled = jax.random.normal(jax.random.key(1), (5, 10))
    refined = jax.random.normal(jax.random.key(2), (5, 4, 6))
    variables = jax.jit(lambda key: module.init(key, pooled, refined, train=False))(jax.random.key(0))
    return module, with_statistics(variables), pooled, refined


@functools.partial(jax.jit, static_argnums=0)
def evaluate(module, variables, pooled, *more):
    return module.apply(variables, pooled, *more, train=False)


def with_statistics(variables):
    """Running statistics other than 0 and 1."""
    rng = np.random.default_rng(0)
    found = jax.tree.map(
        lambda x: rng.uniform(0.5, 1.5, x.shape).astype(np.float32), variables["batch_stats"]
    )
    return {**variables, "batch_stats": found}


def centred(variables, name, x):
    """Batch normalisation in evaluation of [B, ...], by hand."""
    found = jax.device_get(variables["batch_stats"][name]["norm"])
    own = jax.device_get(variables["params"]).get(name, {}).get("norm", {"scale": 1.0, "bias": 0.0})
    flat = np.asarray(x).reshape(len(x), -1)
    flat = (flat - found["mean"]) / np.sqrt(found["var"] + 1e-5) * own["scale"] + own["bias"]
    return flat.reshape(x.shape)


def test_slots_lead_back_to_the_attribute():
    members, slots = padded_members(GROUP_OF)
    assert members.shape == (3, 3)
    np.testing.assert_array_equal(members.reshape(-1)[slots], np.arange(6))


def test_logits_equal_a_loop_over_attributes(heads):
    module, variables, pooled, refined = heads
    p = flax.core.unfreeze(variables)["params"]
    expected = np.zeros((5, 6))
    read = (pooled @ p["pooled"]["kernel"])[:, None] + refined[:, [0, 2, 3]]
    read = dict(zip((0, 2, 3), np.moveaxis(centred(variables, "centre", read), 1, 0), strict=True))
    for attribute, group in enumerate(GROUP_OF):
        x = read[group]
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        x = (x * p["norm"]["scale"] + p["norm"]["bias"]) @ p["projector"]["kernel"] + p["projector"]["bias"]
        row = {0: 0, 2: 1, 3: 2}[group]
        hidden = np.maximum(x @ p["hidden_kernel"][row] + p["hidden_bias"][row], 0)
        expected[:, attribute] = hidden @ p["kernel"][attribute] + p["bias"][attribute]
    found = evaluate(module, variables, pooled, refined)
    assert set(found) == {"groups"}
    np.testing.assert_allclose(found["groups"], expected, atol=1e-5)


def test_an_absent_part_drops_out_of_the_sum(heads):
    module, variables, pooled, refined = heads
    alone = jax.jit(lambda key: module.init(key, pooled, None, train=False))(jax.random.key(0))
    without = evaluate(module, alone, pooled)["groups"]
    zero = evaluate(
        module,
        {
            **variables,
            "params": alone["params"] | {"centre": variables["params"]["centre"]},
            "batch_stats": {"centre": jax.tree.map(lambda x: np.tile(x, 3), alone["batch_stats"]["centre"])},
        },
        pooled,
        jnp.zeros_like(refined),
    )["groups"]
    np.testing.assert_allclose(without, zero, rtol=1e-5, atol=1e-6)  # two programs: sums in another order


@pytest.mark.parametrize(("dtype", "atol"), [(jnp.float32, 1e-3), (jnp.bfloat16, 0.15)])
def test_what_all_images_share_reaches_no_classifier(heads, dtype, atol):
    """Twenty times what tells images apart, and the logits stay as they are, in training and after it."""
    module, variables, pooled, refined = heads
    module = module.clone(dtype=dtype)

    @jax.jit
    def train(shared):
        found, updated = module.apply(
            variables,
            pooled,
            refined + shared,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(3)},
        )
        return found["groups"], updated["batch_stats"]

    first, statistics = train(0.0)
    second, moved = train(20.0)
    np.testing.assert_allclose(first, second, atol=atol)
    means = [s["centre"]["norm"]["mean"] for s in (statistics, moved)]
    np.testing.assert_allclose(means[1] - means[0], 2.0, rtol=1e-4)  # a tenth of it at each step


def test_examples_of_weight_0_stay_out_of_the_statistics(heads):
    module, variables, pooled, refined = heads
    weight = jnp.array([1.0, 1, 1, 0, 0])

    @jax.jit
    def train(pooled):
        found, updated = module.apply(
            variables,
            pooled,
            refined,
            weight=weight,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(3)},
        )
        return found["groups"][:3], updated["batch_stats"]

    for first, second in zip(
        *map(jax.tree.leaves, (train(pooled), train(pooled.at[3:].set(50.0)))), strict=True
    ):
        np.testing.assert_allclose(first, second, atol=1e-5)


@pytest.fixture(scope="module")
def linear():
    return {
        "trunk": jax.random.normal(jax.random.key(4), (5, 7)),
        "refined": 3 + 2 * jax.random.normal(jax.random.key(5), (5, 4, 9)),
    }


@pytest.fixture(scope="module")
def with_linear(heads, linear):
    module, _, pooled, refined = heads
    return with_statistics(
        jax.jit(lambda: module.init(jax.random.key(0), pooled, refined, linear, train=False))()
    )


def test_linear_classifiers_by_hand(heads, linear, with_linear):
    module, _, pooled, refined = heads
    p = jax.device_get(with_linear["params"])
    found = evaluate(module, with_linear, pooled, refined, linear)
    assert set(found) == {"groups", "trunk", "refined"}
    alone = evaluate(module, with_linear, pooled, refined)["groups"]
    np.testing.assert_allclose(found["groups"], alone, atol=1e-6)
    expected = np.asarray(linear["trunk"]) @ p["linear_trunk"]["kernel"] + p["linear_trunk"]["bias"]
    np.testing.assert_allclose(found["trunk"], expected, atol=1e-5)
    read = centred(with_linear, "linear_refined_norm", linear["refined"])
    for attribute, group in enumerate(GROUP_OF):
        expected = (
            read[:, group] @ p["linear_refined_kernel"][attribute] + p["linear_refined_bias"][attribute]
        )
        np.testing.assert_allclose(found["refined"][:, attribute], expected, atol=1e-5)


def test_every_parameter_has_a_gradient(heads, linear, with_linear):
    module, _, pooled, refined = heads
    weights = jax.random.normal(jax.random.key(3), (5, 6))

    def loss(params):
        variables = {**with_linear, "params": params}
        return sum(
            jnp.sum(weights * x)
            for x in module.apply(variables, pooled, refined, linear, train=False).values()
        )

    gradient = jax.jit(jax.grad(loss))(with_linear["params"])
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert np.abs(leaf).max() > 1e-4, path


def test_a_group_only_moves_its_own_logits(heads):
    module, variables, pooled, refined = heads
    base = evaluate(module, variables, pooled, refined)["groups"]
    moved = evaluate(module, variables, pooled, refined.at[:, 2, 0].add(1.0))["groups"]
    changed = np.abs(moved - base).max(axis=0) > 1e-6
    np.testing.assert_array_equal(changed, np.asarray(GROUP_OF) == 2)


def test_logits_are_float32_in_bfloat16_compute():
    module = GroupHeads(GROUP_OF, hidden_size=8, attr_dim=6)
    linear = {"trunk": jnp.ones((2, 5), jnp.bfloat16), "bands": jnp.ones((2, 4, 3), jnp.bfloat16)}
    pooled = jnp.ones((2, 4), jnp.bfloat16)
    found, _ = jax.eval_shape(
        lambda key: module.init_with_output(key, pooled, None, linear, train=False), jax.random.key(0)
    )
    assert {logits.dtype for logits in found.values()} == {jnp.dtype(jnp.float32)}


def test_logits_have_more_digits_than_bfloat16():
    """Scores that are rounded tie, and average precision counts ties."""
    rng = np.random.default_rng(0)
    module = GroupHeads(GROUP_OF, hidden_size=8, attr_dim=6)
    pooled = jnp.asarray(rng.normal(size=(16, 4)), jnp.bfloat16)
    linear = {
        "trunk": jnp.asarray(rng.normal(size=(16, 5)), jnp.bfloat16),
        "bands": jnp.asarray(rng.normal(size=(16, 4, 3)), jnp.bfloat16),
    }
    initialise = jax.jit(lambda key: module.init_with_output(key, pooled, None, linear, train=False))
    found, _ = initialise(jax.random.key(0))
    for name, logits in found.items():
        assert (logits != logits.astype(jnp.bfloat16)).mean() > 0.9, name
