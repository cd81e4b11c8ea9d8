"""The whole model: sockets are optional, what is plugged in is used and gets a gradient, rows stay apart."""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float
from methods.tiny_model import TinyTrunk

from wsca_jax.models.heads import GroupHeads
from wsca_jax.models.layers import FeatureNorm
from wsca_jax.models.resnet import ResNet
from wsca_jax.models.tokens import VisualTokens
from wsca_jax.models.wsca import WSCA, weigh_sides

HIDDEN, ATTR, GROUPS = 8, 4, 2
GROUP_OF = (0, 1, 0)


class FrequencyRecord(NamedTuple):
    token: Float[Array, "B 1 d"]
    groups: Float[Array, "B G d"]


class Frequency(nn.Module):
    @nn.compact
    def __call__(self, image, *, train):
        groups = nn.Dense(GROUPS * HIDDEN)(image.mean((1, 2))).reshape(-1, GROUPS, HIDDEN)
        return FrequencyRecord(groups.mean(1, keepdims=True), groups)


class Fusion(nn.Module):
    @nn.compact
    def __call__(self, tokens, token, *, train):
        return tokens + nn.Dense(HIDDEN)(token)[:, None]


class EncoderRecord(NamedTuple):
    tokens: Float[Array, "B h w d"]
    branches: Float[Array, "B G a"]


class Encoder(nn.Module):
    @nn.compact
    def __call__(self, tokens, text, *, train):
        branches = nn.Dense(GROUPS * ATTR)(tokens.mean((1, 2))).reshape(-1, GROUPS, ATTR)
        return EncoderRecord(tokens + nn.Dense(HIDDEN)(tokens), branches)


class RouterRecord(NamedTuple):
    pooled: Float[Array, "B d"]


class Router(nn.Module):
    @nn.compact
    def __call__(self, pooled, *, train):
        return RouterRecord(pooled + nn.Dense(HIDDEN)(pooled))


class DecomposerRecord(NamedTuple):
    refined: Float[Array, "B G a"]


class Decomposer(nn.Module):
    @nn.compact
    def __call__(self, tokens, branches, *, train):
        return DecomposerRecord(
            branches + nn.Dense(GROUPS * ATTR)(tokens.mean((1, 2))).reshape(branches.shape)
        )


PLUGS = {
    "frequency": {"frequency": Frequency(), "fusion": Fusion()},
    "encoder": {"encoder": Encoder()},
    "router": {"router": Router()},
    "decomposer": {"encoder": Encoder(), "decomposer": Decomposer()},
}


def make_model(**sockets) -> WSCA:
    return WSCA(
        trunk=TinyTrunk(),
        tokens=VisualTokens(HIDDEN, dtype=jnp.float32),
        heads=GroupHeads(GROUP_OF, HIDDEN, ATTR, dtype=jnp.float32),
        branch_norm=FeatureNorm(dtype=jnp.float32, affine=False) if "encoder" in sockets else None,
        **sockets,
    )


@pytest.fixture(scope="module")
def image():
    return jax.random.normal(jax.random.key(1), (4, 16, 16, 3))


def test_empty_sockets_have_no_parameters(image):
    model = make_model()
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), image, train=False))
    assert set(variables["params"]) == {"trunk", "tokens", "heads"}
    outputs = jax.eval_shape(lambda v: model.apply(v, image, train=False), variables)
    assert outputs.logits.shape == (4, 3)
    assert outputs.frequency is outputs.encoding is outputs.routing is outputs.decomposition is None


@pytest.mark.parametrize("plug", PLUGS)
def test_plugged_modules_get_a_gradient_from_the_logits_alone(image, plug):
    model = make_model(**PLUGS[plug])
    variables = jax.jit(lambda: model.init(jax.random.key(0), image, train=False))()
    weights = jax.random.normal(jax.random.key(2), (4, 3))

    def loss(params):
        return jnp.sum(weights * model.apply({**variables, "params": params}, image, train=False).logits)

    gradients = jax.jit(jax.grad(loss))(variables["params"])
    for socket in PLUGS[plug]:
        norm = np.sqrt(sum(np.sum(np.square(g)) for g in jax.tree.leaves(gradients[socket])))
        assert norm > 1e-5, f"{socket} has gradient norm {norm}"


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_the_trunk_hears_as_much_of_the_path_as_it_should(image, share):
    """Of the path's classifiers alone; the trunk's own classifier teaches it in any case."""
    model = make_model(token_gradient=share, **PLUGS["encoder"])
    variables = jax.jit(lambda: model.init(jax.random.key(0), image, train=False))()
    weights = jax.random.normal(jax.random.key(2), (4, 3))

    @functools.partial(jax.jit, static_argnums=1)
    def gradient(params, name):
        def loss(params):
            outputs = model.apply({**variables, "params": params}, image, train=False)
            return jnp.sum(weights * outputs.classifiers[name])

        return jax.grad(loss)(params)

    everything = model.clone(token_gradient=1.0)
    expected = jax.jit(
        jax.grad(
            lambda p: jnp.sum(
                weights
                * everything.apply({**variables, "params": p}, image, train=False).classifiers["groups"]
            )
        )
    )(variables["params"])
    found = gradient(variables["params"], "groups")
    for ours, full in zip(*(jax.tree.leaves(g["trunk"]) for g in (found, expected)), strict=True):
        np.testing.assert_allclose(ours, share * full, rtol=1e-4, atol=1e-6)
    for ours, full in zip(*(jax.tree.leaves(g["encoder"]) for g in (found, expected)), strict=True):
        np.testing.assert_allclose(ours, full, rtol=1e-4, atol=1e-6)
    assert (
        max(np.abs(g).max() for g in jax.tree.leaves(gradient(variables["params"], "trunk")["trunk"])) > 1e-4
    )


def test_without_a_linear_path_the_tokens_teach_the_trunk(image):
    model = make_model(linear_path=False)
    variables = jax.jit(lambda: model.init(jax.random.key(0), image, train=False))()

    def loss(params):
        return jnp.sum(model.apply({**variables, "params": params}, image, train=False).logits ** 2)

    gradients = jax.jit(jax.grad(loss))(variables["params"])
    assert max(np.abs(g).max() for g in jax.tree.leaves(gradients["trunk"])) > 1e-4


@pytest.mark.parametrize("name", ["token_gradient", "token_share"])
def test_a_share_beyond_1_is_refused(name):
    with pytest.raises(ValueError, match=rf"{name} is 1\.5"):
        make_model(**{name: 1.5})


def test_branches_without_their_normalisation_are_refused():
    with pytest.raises(ValueError, match="need branch_norm"):
        make_model(encoder=Encoder()).clone(branch_norm=None)


def test_a_side_s_share_is_the_same_however_many_classifiers_it_has():
    classifiers = {
        name: jnp.full((1, 2), value) for name, value in (("groups", 1.0), ("trunk", 4.0), ("refined", 3.0))
    }
    np.testing.assert_allclose(weigh_sides(classifiers, 0.25), 3.5)
    del classifiers["trunk"]
    np.testing.assert_allclose(weigh_sides(classifiers, 0.25), 2.0)


def test_frequency_without_fusion_is_refused():
    with pytest.raises(ValueError, match="come together"):
        make_model(frequency=Frequency())


def test_alignment_without_group_features_is_refused():
    with pytest.raises(ValueError, match="alignment needs group features: set encoder or decomposer"):
        make_model(alignment=Encoder())


def test_images_of_a_batch_do_not_see_each_other(image):
    model = make_model().clone(trunk=ResNet(depth=18, width=4, dtype=jnp.float32))
    variables = jax.jit(lambda: model.init(jax.random.key(0), image, train=False))()
    predict = jax.jit(lambda x: model.apply(variables, x, train=False).logits)
    order = np.array([2, 0, 3, 1])
    np.testing.assert_allclose(predict(image[order]), predict(image)[order], atol=1e-5)
    np.testing.assert_array_equal(predict(image), predict(image))
