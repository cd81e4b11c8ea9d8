"""Gated fusion against its equation, written out token by token."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsca_jax.models.fusion import GatedFusion


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@pytest.fixture(scope="module")
def fusion():
    """A module, variables with biases that are not zero, tokens and a frequency token."""
    module = GatedFusion(8, mlp_ratio=1.5, dropout=0.5, dtype=jnp.float32)
    tokens = jax.random.normal(jax.random.key(1), (3, 2, 4, 8))
    token = jax.random.normal(jax.random.key(2), (3, 1, 8))
    variables = jax.jit(functools.partial(module.init, train=False))(jax.random.key(0), tokens, token)
    variables = jax.tree.map(lambda x: x + 0.1 * jnp.cos(jnp.arange(x.shape[-1])), variables)
    return module, variables, tokens, token


def test_equals_the_equation_token_by_token(fusion):
    module, variables, tokens, token = fusion
    p = variables["params"]
    joint = {
        name: np.concatenate([p[f"{name}_tokens"]["kernel"], p[f"{name}_frequency"]["kernel"]])
        for name in ("gate", "hidden")
    }
    expected = np.zeros(tokens.shape)
    for place in np.ndindex(3, 2, 4):
        v, f = tokens[place], token[place[0], 0]
        both = np.concatenate([v, f])
        gate = sigmoid(both @ joint["gate"] + p["gate_tokens"]["bias"])
        hidden = np.maximum(both @ joint["hidden"] + p["hidden_tokens"]["bias"], 0)
        expected[place] = gate * (hidden @ p["output"]["kernel"] + p["output"]["bias"]) + (1 - gate) * v
    found = module.apply(variables, tokens, token, train=False)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_begins_near_the_identity(fusion):
    """By default a token moves far less than through an open gate; shut, the gate lets nothing in."""
    _, _, tokens, token = fusion

    @functools.partial(jax.jit, static_argnums=0)
    def moved(gate_bias):
        module = GatedFusion(8, mlp_ratio=1.5, gate_bias=gate_bias, dtype=jnp.float32)
        found, _ = module.init_with_output(jax.random.key(0), tokens, token, train=False)
        return jnp.sqrt(jnp.mean(jnp.square(found - tokens)))

    default = GatedFusion(8).gate_bias
    assert 0.0 < moved(default) < 0.4 * moved(30.0)
    assert moved(-30.0) < 1e-6


def test_every_parameter_and_both_inputs_have_a_gradient(fusion):
    module, variables, tokens, token = fusion
    weights = jax.random.normal(jax.random.key(3), tokens.shape)

    def loss(variables, tokens, token):
        return jnp.sum(weights * module.apply(variables, tokens, token, train=False))

    gradient = jax.jit(jax.grad(loss, (0, 1, 2)))(variables, tokens, token)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert np.abs(leaf).max() > 1e-3, path


def test_an_image_s_frequency_token_reaches_its_own_tokens_alone(fusion):
    module, variables, tokens, token = fusion
    apply = jax.jit(functools.partial(module.apply, train=False))
    moved = apply(variables, tokens, token.at[1].add(1.0)) - apply(variables, tokens, token)
    changed = np.abs(moved).max(-1) > 1e-6
    np.testing.assert_array_equal(changed, np.arange(3)[:, None, None] == np.full((3, 2, 4), 1))


def test_only_training_is_random(fusion):
    module, variables, tokens, token = fusion
    train = jax.jit(
        lambda key: module.apply(variables, tokens, token, train=True, rngs={"dropout": jax.random.key(key)})
    )
    assert np.abs(train(0) - train(1)).max() > 1e-3
    evaluate = jax.jit(functools.partial(module.apply, train=False))
    np.testing.assert_array_equal(*(evaluate(variables, tokens, token) for _ in range(2)))


def test_bfloat16_stays_close_to_float32(fusion):
    module, variables, tokens, token = fusion
    half = GatedFusion(8, mlp_ratio=1.5)
    found = half.apply(variables, tokens.astype(jnp.bfloat16), token.astype(jnp.bfloat16), train=False)
    assert found.dtype == jnp.bfloat16
    expected = module.apply(variables, tokens, token, train=False)
    np.testing.assert_allclose(found.astype(jnp.float32), expected, atol=0.05)


def test_a_hidden_layer_of_nothing_is_refused():
    with pytest.raises(ValueError, match=r"mlp_ratio is 0.1; expected at least 1 / 8"):
        GatedFusion(8, mlp_ratio=0.1)
