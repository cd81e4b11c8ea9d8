"""Group heads: every attribute is scored by its own group's classifier, all in one computation."""

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
    return module, module.init(jax.random.key(0), pooled, refined, train=False), pooled, refined


def test_slots_lead_back_to_the_attribute():
    members, slots = padded_members(GROUP_OF)
    assert members.shape == (3, 3)
    np.testing.assert_array_equal(members.reshape(-1)[slots], np.arange(6))


def test_logits_equal_a_loop_over_attributes(heads):
    module, variables, pooled, refined = heads
    p = flax.core.unfreeze(variables)["params"]
    expected = np.zeros((5, 6))
    for attribute, group in enumerate(GROUP_OF):
        x = pooled @ p["pooled"]["kernel"] + p["pooled"]["bias"] + refined[:, group]
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        x = (x * p["norm"]["scale"] + p["norm"]["bias"]) @ p["projector"]["kernel"] + p["projector"]["bias"]
        row = {0: 0, 2: 1, 3: 2}[group]
        hidden = np.maximum(x @ p["hidden_kernel"][row] + p["hidden_bias"][row], 0)
        expected[:, attribute] = hidden @ p["kernel"][attribute] + p["bias"][attribute]
    np.testing.assert_allclose(module.apply(variables, pooled, refined, train=False), expected, atol=1e-5)


def test_an_absent_part_drops_out_of_the_sum(heads):
    module, variables, pooled, refined = heads
    without = module.apply(variables, pooled, None, train=False)
    zero = module.apply(variables, pooled, jnp.zeros_like(refined), train=False)
    np.testing.assert_allclose(without, zero, rtol=1e-5, atol=1e-6)  # two programs: sums in another order


@pytest.fixture(scope="module")
def linear():
    return {
        "trunk": jax.random.normal(jax.random.key(4), (5, 7)),
        "refined": 3 + 2 * jax.random.normal(jax.random.key(5), (5, 4, 9)),
    }


@pytest.fixture(scope="module")
def with_linear(heads, linear):
    module, _, pooled, refined = heads
    return jax.jit(lambda: module.init(jax.random.key(0), pooled, refined, linear, train=False))()


def test_linear_classifiers_add_up_by_hand(heads, linear, with_linear):
    module, _, pooled, refined = heads
    p = jax.device_get(with_linear["params"])
    expected = np.array(module.apply(with_linear, pooled, refined, train=False))
    expected += np.asarray(linear["trunk"]) @ p["linear_trunk"]["kernel"]
    for attribute, group in enumerate(GROUP_OF):
        x = np.asarray(linear["refined"][:, group])
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        x = x * p["linear_refined_norm"]["scale"]
        expected[:, attribute] += x @ p["linear_refined_kernel"][attribute]
    found = module.apply(with_linear, pooled, refined, linear, train=False)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_every_parameter_has_a_gradient(heads, linear, with_linear):
    module, _, pooled, refined = heads
    weights = jax.random.normal(jax.random.key(3), (5, 6))

    def loss(variables):
        return jnp.sum(weights * module.apply(variables, pooled, refined, linear, train=False))

    gradient = jax.jit(jax.grad(loss))(with_linear)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert np.abs(leaf).max() > 1e-4, path


def test_a_group_only_moves_its_own_logits(heads):
    module, variables, pooled, refined = heads
    base = module.apply(variables, pooled, refined, train=False)
    moved = module.apply(variables, pooled, refined.at[:, 2, 0].add(1.0), train=False)
    changed = np.abs(moved - base).max(axis=0) > 1e-6
    np.testing.assert_array_equal(changed, np.asarray(GROUP_OF) == 2)


def test_logits_are_float32_in_bfloat16_compute():
    module = GroupHeads(GROUP_OF, hidden_size=8, attr_dim=6)
    logits, _ = module.init_with_output(jax.random.key(0), jnp.ones((2, 4), jnp.bfloat16), train=False)
    assert logits.dtype == jnp.float32
