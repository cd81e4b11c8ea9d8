"""Attribute branches: each group by itself in PyTorch, all of them at once here."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsca_jax.models.branches import AttributeBranches

GROUPS, ATTR, HIDDEN = 3, 4, 8
NAMES = ("tokens", "branches", "values", "attention")


def seeded(init):
    """Random parameters of the shapes that `init` declares: biases and scales count too."""
    rng = np.random.default_rng(7)
    return jax.tree.map(lambda x: rng.normal(0.1, 0.3, x.shape).astype(x.dtype), jax.eval_shape(init))


@pytest.fixture(scope="module")
def branches():
    module = AttributeBranches(GROUPS, ATTR, dropout=0.5, dtype=jnp.float32)
    tokens = np.random.default_rng(1).normal(size=(5, 2, 3, HIDDEN)).astype(np.float32)
    variables = seeded(lambda: module.init(jax.random.key(0), tokens, train=False))
    return variables, tokens, jax.jit(lambda v: module.apply(v, tokens, train=False))


def test_equal_to_a_loop_over_groups_in_pytorch(branches):
    torch = pytest.importorskip("torch")
    variables, tokens, apply = branches
    p = jax.tree.map(lambda x: torch.tensor(np.asarray(x)), variables["params"])
    x = torch.tensor(np.asarray(tokens)).flatten(1, 2)
    gates = torch.sigmoid(x @ p["gate"]["kernel"] + p["gate"]["bias"])
    expected = {"tokens": x, "branches": [], "values": [], "attention": []}
    for g in range(GROUPS):
        hidden = x @ p["input_kernel"][g] + p["input_bias"][g]
        hidden = torch.nn.functional.layer_norm(
            hidden, (ATTR,), p["norm"]["scale"][g], p["norm"]["bias"][g], eps=1e-6
        ).relu()
        values = hidden @ p["output_kernel"][g] + p["output_bias"][g]
        attention = torch.softmax(hidden @ p["query"][g] / ATTR**0.5, dim=1)
        branch = (attention[..., None] * values).sum(1)
        flow = (branch @ p["feedback_kernel"][g])[:, None] * gates[..., g, None]
        expected["tokens"] = expected["tokens"] + flow
        expected["branches"].append(branch)
        expected["values"].append(values)
        expected["attention"].append(attention.unflatten(1, (2, 3)))
    expected["tokens"] = expected["tokens"].unflatten(1, (2, 3))
    result = apply(variables)
    for name in NAMES:
        value = expected[name]
        value = torch.stack(value, 1) if isinstance(value, list) else value
        np.testing.assert_allclose(getattr(result, name), value, atol=1e-5, err_msg=name)


def test_attention_is_what_pools_the_values_and_sums_to_one(branches):
    variables, _, apply = branches
    result = apply(variables)
    np.testing.assert_allclose(result.attention.sum((2, 3)), 1.0, rtol=1e-6)
    pooled = np.einsum("bgn,bgna->bga", result.attention.reshape(5, GROUPS, 6), result.values)
    np.testing.assert_allclose(result.branches, pooled, atol=1e-5)


def test_a_channel_is_dropped_at_every_place_of_an_image(branches):
    variables, tokens, apply = branches
    plain = jax.tree.map(lambda x: x, variables)
    plain["params"]["output_kernel"] = np.broadcast_to(np.eye(ATTR, dtype=np.float32), (GROUPS, ATTR, ATTR))
    plain["params"]["output_bias"] = np.zeros((GROUPS, ATTR), np.float32)
    module = AttributeBranches(GROUPS, ATTR, dropout=0.5, dtype=jnp.float32)
    rngs = {"dropout": jax.random.key(3)}
    dropped, whole = module.apply(plain, tokens, train=True, rngs=rngs).branches, apply(plain).branches
    kept = np.abs(dropped) > 0
    np.testing.assert_allclose(dropped, np.where(kept, 2 * whole, 0), rtol=1e-5)
    assert 0.25 < kept[np.abs(whole) > 0].mean() < 0.75


def test_every_parameter_of_every_group_has_a_gradient(branches):
    variables, tokens, apply = branches
    weights = np.random.default_rng(2).normal(size=tokens.shape)

    def from_tokens(v):
        return jnp.sum(weights * apply(v).tokens)

    def from_branches(v):
        return jnp.sum(jnp.sin(apply(v).branches))

    for read, unread in ((from_tokens, set()), (from_branches, {"gate", "feedback_kernel"})):
        for path, leaf in jax.tree_util.tree_leaves_with_path(jax.jit(jax.grad(read))(variables)["params"]):
            if path[0].key not in unread:
                groups = np.moveaxis(leaf, -1, 0) if path[0].key == "gate" else leaf
                assert np.abs(groups).reshape(GROUPS, -1).max(1).min() > 1e-4, path


def test_groups_differ_from_the_first_step():
    """Fresh weights: neither the maps nor the features of two groups are copies of each other."""
    module = AttributeBranches(GROUPS, ATTR, dtype=jnp.float32)
    tokens = np.random.default_rng(1).normal(size=(4, 3, 3, HIDDEN)).astype(np.float32)
    result, _ = jax.jit(lambda: module.init_with_output(jax.random.key(0), tokens, train=False))()
    for name in ("branches", "attention"):
        value = np.asarray(getattr(result, name))
        assert np.abs(value[:, 0] - value[:, 1]).max() > 0.01, name


def test_a_group_keeps_to_its_own_weights(branches):
    variables, _, apply = branches
    moved = jax.tree.map(lambda x: x, variables)
    moved["params"]["query"] = moved["params"]["query"] + np.float32([[0], [1], [0]])
    before, after = apply(variables).branches, apply(moved).branches
    changed = np.abs(after - before).max((0, 2)) > 1e-5
    np.testing.assert_array_equal(changed, [False, True, False])


def test_the_program_does_not_grow_with_the_groups():
    def operations(groups):
        module = AttributeBranches(groups, ATTR)
        tokens = jnp.zeros((2, 3, 3, HIDDEN))
        variables = jax.eval_shape(lambda: module.init(jax.random.key(0), tokens, train=False))
        rngs = {"dropout": jax.random.key(0)}
        program = jax.make_jaxpr(lambda v: module.apply(v, tokens, train=True, rngs=rngs))
        return str(program(variables)).count("\n")

    assert operations(2) == operations(8)


def test_scores_and_maps_are_float32_in_bfloat16_compute():
    module = AttributeBranches(GROUPS, ATTR)
    tokens = jnp.ones((2, 3, 3, HIDDEN), jnp.bfloat16)
    result, variables = jax.eval_shape(
        lambda: module.init_with_output(jax.random.key(0), tokens, train=False)
    )
    assert result.attention.dtype == jnp.float32
    assert {result.tokens.dtype, result.branches.dtype, result.values.dtype} == {jnp.dtype(jnp.bfloat16)}
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
