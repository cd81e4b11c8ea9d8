"""The alignment head: prototypes learned or projected from phrases, scales and biases."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsca_jax.models.alignment import Alignment

MODULE = Alignment(num_attributes=5, attr_dim=4, dtype=jnp.float32)
PHRASES = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)


@functools.cache
def initialised(with_phrases):
    phrases = PHRASES if with_phrases else None
    return jax.jit(lambda key: MODULE.init(key, phrases, train=False))(jax.random.key(0))


def test_the_parameters_are_those_named():
    learned, projected = (set(initialised(flag)["params"]) for flag in (False, True))
    scalars = {"pair_temperature", "pair_bias", "prototype_temperature", "prototype_bias"}
    assert learned == scalars | {"prototypes"}
    assert projected == scalars | {"projection"}


def test_initial_scores_have_their_border_where_it_belongs():
    head = MODULE.apply(initialised(False), train=False)
    assert float(head.pair_scale) == pytest.approx(10.0)
    assert float(head.prototype_scale) == pytest.approx(10.0)
    assert float(-head.pair_bias / head.pair_scale) == pytest.approx(0.5)
    assert float(head.prototype_bias) == 0.0


def test_learned_prototypes_are_the_parameter_at_about_unit_length():
    variables = jax.jit(Alignment(300, 64).init, static_argnames="train")(jax.random.key(1), train=True)
    prototypes = Alignment(300, 64).apply(variables, train=True).prototypes
    np.testing.assert_array_equal(prototypes, variables["params"]["prototypes"])
    np.testing.assert_allclose(np.linalg.norm(prototypes, axis=1), 1.0, atol=0.35)


def test_phrases_are_projected():
    projection = initialised(True)["params"]["projection"]
    head = MODULE.apply(initialised(True), PHRASES, train=False)
    expected = PHRASES @ np.asarray(projection["kernel"]) + np.asarray(projection["bias"])
    np.testing.assert_allclose(head.prototypes, expected, rtol=1e-5, atol=1e-6)


def test_scales_are_exponentials_of_their_temperatures():
    params = dict(
        initialised(False)["params"], pair_temperature=jnp.log(3.0), prototype_bias=jnp.float32(2.0)
    )
    head = MODULE.apply({"params": params}, train=False)
    assert float(head.pair_scale) == pytest.approx(3.0)
    assert float(head.prototype_scale) == pytest.approx(10.0)
    assert float(head.prototype_bias) == 2.0


@pytest.mark.parametrize("with_phrases", [False, True])
def test_every_parameter_has_a_gradient(with_phrases):
    phrases = PHRASES if with_phrases else None

    def total(variables):
        return sum(jnp.sum(jnp.sin(x)) for x in MODULE.apply(variables, phrases, train=True))

    gradient = jax.jit(jax.grad(total))(initialised(with_phrases))
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert np.abs(leaf).max() > 1e-3, path


def test_everything_is_float32_in_bfloat16_compute():
    module = Alignment(num_attributes=5, attr_dim=4)
    head, _ = jax.eval_shape(
        lambda key: module.init_with_output(key, jnp.asarray(PHRASES, jnp.bfloat16), train=True),
        jax.random.key(0),
    )
    assert all(array.dtype == jnp.float32 for array in head)
    assert head.prototypes.shape == (5, 4)


def test_wrong_settings_are_named():
    with pytest.raises(ValueError, match="expected 5 phrases, found 3"):
        MODULE.apply(initialised(True), PHRASES[:3], train=False)
    with pytest.raises(ValueError, match=r"initial_scale must be above 0, found 0\.0"):
        Alignment(num_attributes=5, attr_dim=4, initial_scale=0.0)
