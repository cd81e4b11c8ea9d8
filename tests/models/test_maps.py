"""Contributions of tokens to logits: against PyTorch, one attribute at a time, and what they add up to."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxprs import operations
from methods.tiny_model import TinyTrunk

from wsca_jax.models import maps
from wsca_jax.models.cross_modal import CrossModalEncoder
from wsca_jax.models.decomposer import HierarchicalDecomposer
from wsca_jax.models.heads import GroupHeads
from wsca_jax.models.layers import FeatureNorm
from wsca_jax.models.tokens import VisualTokens
from wsca_jax.models.wsca import WSCA

HIDDEN, ATTR, GROUPS = 8, 6, 3
GROUP_OF = (0, 1, 0, 2, 2, 0, 1)
ATTRIBUTES = len(GROUP_OF)
F32 = {"dtype": jnp.float32}


def build(group_of=GROUP_OF, decomposer=False, encoder=True):
    groups = max(group_of) + 1
    return WSCA(
        trunk=TinyTrunk(),
        tokens=VisualTokens(HIDDEN, **F32),
        heads=GroupHeads(group_of, HIDDEN, ATTR, **F32),
        branch_norm=FeatureNorm(**F32, affine=False) if encoder or decomposer else None,
        encoder=CrossModalEncoder(groups, HIDDEN, ATTR, depth=1, num_heads=2, **F32) if encoder else None,
        decomposer=HierarchicalDecomposer(groups, ATTR, HIDDEN, 4, 2, **F32) if decomposer else None,
    )


def seeded(model):
    """(model, random variables, outputs, evidence): biases and scales count too."""
    rng = np.random.default_rng(0)
    image = rng.normal(size=(4, 32, 32, 3)).astype(np.float32)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), image, train=False))
    variables = jax.tree.map(lambda x: rng.normal(0.1, 0.4, x.shape).astype(x.dtype), shapes)
    variables["batch_stats"] = jax.tree.map(
        lambda x: rng.uniform(0.5, 1.5, x.shape).astype(x.dtype), shapes["batch_stats"]
    )
    outputs = jax.jit(lambda v: model.apply(v, image, train=False))(variables)
    found = jax.jit(lambda v, o: maps.evidence(model, v, o))(variables, outputs)
    return model, variables, jax.device_get(outputs), jax.device_get(found)


@pytest.fixture(scope="module")
def plain():
    return seeded(build())


@pytest.fixture(scope="module")
def decomposed():
    return seeded(build(decomposer=True))


class TorchHeads:
    """The heads for one attribute, its normalisation's scale a constant; every summand a leaf of its own."""

    def __init__(self, torch, variables, outputs):
        self.torch = torch
        params, statistics = variables["params"], variables["batch_stats"]
        p = self.p = jax.tree.map(lambda x: torch.tensor(np.asarray(x)), params["heads"])
        plain = {"norm": {"scale": np.float32(1), "bias": np.float32(0)}}
        found = {
            "of branches": (plain, statistics["branch_norm"]),
            "of all": (params["heads"]["centre"], statistics["heads"]["centre"]),
            "of refined": (plain, statistics["heads"]["linear_refined_norm"]),
        }
        self.slopes, offsets = {}, {}
        for name, (own, moments) in found.items():
            own, moments = own["norm"], moments["norm"]
            slope = own["scale"] / np.sqrt(moments["var"] + 1e-5)
            offset = own["bias"] - moments["mean"] * slope
            self.slopes[name], offsets[name] = (
                torch.tensor(x).reshape(GROUPS, ATTR) for x in (slope, offset)
            )
        self.summands = {
            "branches": torch.tensor(outputs.encoding.branches),
            "pooled": torch.tensor(outputs.pooled) @ p["pooled"]["kernel"],
            **offsets,
            "norm bias": p["norm"]["bias"],
            "projector bias": p["projector"]["bias"],
            "hidden bias": p["hidden_bias"],
            "bias": p["bias"],
            "linear": torch.tensor(outputs.stages.c5).mean((1, 2)) @ p["linear_trunk"]["kernel"],
            "linear bias": p["linear_trunk"]["bias"],
            "refined bias": p["linear_refined_bias"],
        }
        for leaf in self.summands.values():
            leaf.requires_grad_(True)

    def logit(self, attribute):
        p, s, group = self.p, self.summands, GROUP_OF[attribute]
        branches = self.centre("of branches", s["branches"][:, group], group)
        x = self.centre("of all", s["pooled"] + branches, group)
        x = self.normalise(x) * p["norm"]["scale"] + s["norm bias"]
        own = self.centre("of refined", branches, group)
        x = x @ p["projector"]["kernel"] + s["projector bias"]
        x = (x @ p["hidden_kernel"][group] + s["hidden bias"][group]).relu()
        trunk = s["linear"][:, attribute] + s["linear bias"][attribute]
        refined = own @ p["linear_refined_kernel"][attribute] + s["refined bias"][attribute]
        groups = x @ p["kernel"][attribute] + s["bias"][attribute]
        return 0.75 * trunk + 0.125 * (groups + refined)

    def centre(self, name, x, group):
        return x * self.slopes[name][group] + self.summands[name][group]

    @staticmethod
    def normalise(x):
        scale = (x.var(-1, keepdim=True, unbiased=False) + 1e-6).sqrt().detach()
        return (x - x.mean(-1, keepdim=True)) / scale


def test_equal_to_a_loop_over_attributes_in_pytorch_and_adds_up_to_the_logit(plain):
    torch = pytest.importorskip("torch")
    _, variables, outputs, found = plain
    heads = TorchHeads(torch, variables, outputs)
    attention = torch.tensor(outputs.encoding.attention).flatten(2)
    values = torch.tensor(outputs.encoding.values)
    for attribute in range(ATTRIBUTES):
        logit = heads.logit(attribute)
        np.testing.assert_allclose(logit.detach(), outputs.logits[:, attribute], rtol=1e-4, atol=1e-4)
        leaves = list(heads.summands.values())
        gradients = torch.autograd.grad(logit.sum(), leaves)
        share = torch.einsum("bgn,bgc,bgnc->bn", attention, gradients[0], values)
        np.testing.assert_allclose(
            found.contributions[:, attribute].reshape(4, -1), share, rtol=1e-3, atol=1e-5
        )
        # Biases are shared by the images: their shares, and so the sum, are those of the batch.
        shares = [(g * leaf).sum().item() for g, leaf in zip(gradients, leaves, strict=True)]
        assert found.contributions[:, attribute].sum() + sum(shares[1:]) == pytest.approx(
            logit.sum().item(), abs=1e-3
        )


def test_plain_gradients_would_add_up_to_nothing():
    """Why normalisations are held: gradient times input over all of a LayerNorm's input is 0."""
    layer, x = nn.LayerNorm(epsilon=1e-12), np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32)
    direction = np.random.default_rng(1).normal(size=8).astype(np.float32)
    variables = layer.init(jax.random.key(0), x)

    def logit(x):
        return (layer.apply(variables, x) @ direction).sum()

    np.testing.assert_allclose((x * jax.grad(logit)(x)).sum(-1), 0, atol=1e-5)


@pytest.mark.parametrize("name", ["plain", pytest.param("decomposed", marks=pytest.mark.slow)])
def test_the_logits_of_the_branches_are_the_model_s(name, request):
    model, variables, outputs, _ = request.getfixturevalue(name)

    @jax.jit
    def run(branches):
        return model.apply(variables, branches, outputs, method=WSCA.logits_from_branches)

    again = run(outputs.encoding.branches)
    np.testing.assert_allclose(again, outputs.logits, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_through_the_decomposer_equal_to_one_gradient_per_attribute(decomposed):
    """Layer norms replayed with the scales that they had, and differentiated as they then stand."""
    model, variables, outputs, found = decomposed
    scales = {}

    def record(call, args, kwargs, context):
        if isinstance(context.module, nn.LayerNorm):
            scales[context.module.path] = np.sqrt(np.var(args[0], -1, keepdims=True) + 1e-6)
        return call(*args, **kwargs)

    def replay(call, args, kwargs, context):
        if not isinstance(context.module, nn.LayerNorm):
            return call(*args, **kwargs)
        own = context.module.variables["params"]
        centred = args[0] - args[0].mean(-1, keepdims=True)
        return centred / scales[context.module.path] * own["scale"] + own.get("bias", 0)

    def logits(branches, interceptor):
        with nn.intercept_methods(interceptor):
            return model.apply(variables, branches, outputs, method=WSCA.logits_from_branches)

    branches = jnp.asarray(outputs.encoding.branches)
    np.testing.assert_allclose(logits(branches, record), outputs.logits, atol=1e-5)
    attention = outputs.encoding.attention.reshape(4, GROUPS, -1)
    gradient = jax.jit(jax.grad(lambda b, a: logits(b, replay)[:, a].sum()))
    for attribute in range(ATTRIBUTES):
        slope = gradient(branches, attribute)
        share = np.einsum("bgn,bgc,bgnc->bn", attention, slope, outputs.encoding.values)
        np.testing.assert_allclose(
            found.contributions[:, attribute].reshape(4, -1), share, rtol=1e-3, atol=1e-5
        )
    # Other groups than the attribute's own speak through the graph.
    assert np.abs(np.asarray(slope)[:, 0]).max() > 1e-5


@pytest.mark.parametrize("name", ["plain", pytest.param("decomposed", marks=pytest.mark.slow)])
def test_evidence_is_the_derivative_by_the_attention_s_scores(name, request):
    """Of the logits as linear functions of the branches; a softmax undoes whatever all tokens share."""
    model, variables, outputs, found = request.getfixturevalue(name)
    slope = jax.jit(lambda: maps.logit_gradients(model, variables, outputs))()
    scores = np.log(outputs.encoding.attention.reshape(4, GROUPS, -1))

    def logits(scores):
        branches = jnp.einsum("bgn,bgnc->bgc", jax.nn.softmax(scores), outputs.encoding.values)
        return jnp.einsum("abgc,bgc->ab", slope, branches).sum(1)

    expected = jax.jit(jax.jacobian(logits))(scores).sum(2)  # [A, B, N]: over groups
    np.testing.assert_allclose(found.evidence.reshape(4, ATTRIBUTES, -1).swapaxes(0, 1), expected, atol=1e-5)
    np.testing.assert_allclose(found.evidence.sum((2, 3)), 0, atol=1e-5)


def test_positive_maps_sum_to_one_or_are_empty():
    signed = np.float32([[[[1, -2], [3, 0]], [[-1, -1], [0, -3]]]])
    np.testing.assert_allclose(maps.positive_maps(signed), [[[[0.25, 0], [0.75, 0]], [[0, 0], [0, 0]]]])


def test_the_program_does_not_grow_with_attributes_or_groups():
    def count(group_of):
        model, image = build(group_of, decomposer=True), jnp.zeros((2, 32, 32, 3))
        variables = jax.eval_shape(lambda: model.init(jax.random.key(0), image, train=False))
        outputs = jax.eval_shape(lambda v: model.apply(v, image, train=False), variables)
        program = jax.make_jaxpr(lambda v, o: maps.evidence(model, v, o))(variables, outputs)
        return len(list(operations(program.jaxpr)))

    assert count((0, 1, 1)) == count((0, 1, 2, 3, 3, 2, 1, 0))


def test_without_an_encoder_there_is_no_map():
    model, image = build(encoder=False, decomposer=True), jnp.zeros((2, 32, 32, 3))
    outputs, variables = jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), image, train=False))
    with pytest.raises(ValueError, match="without encoder"):
        maps.evidence(model, variables, outputs)
