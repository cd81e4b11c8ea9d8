"""The pyramid's losses against numbers worked out by hand."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsca_jax.losses import hierarchy

WEIGHT = np.float32([1.0, 0.5, 0.0])
ONE = np.float32([1.0])


def level(*tokens):
    """One image's level with the given tokens in a row: [1, 1, w, c]."""
    return np.float32(tokens)[None, None]


def random_pyramid(batch=3, dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    shapes = [(batch, 4, 4, 6), (batch, 2, 2, 6), (batch, 1, 1, 6)]
    features, bottom_up, children, residuals = (
        [rng.normal(size=shape).astype(dtype) for shape in shapes] for _ in range(4)
    )
    # A shared direction brings the hinges of diversity and structure to life.
    residuals = [residual + 1 for residual in residuals[:-1]] + [None]
    features[0] = (features[0] + 3 * np.arange(6)).astype(dtype)
    return features, bottom_up, [None, *children[1:]], residuals


@functools.cache
def compiled(loss, **settings):
    return jax.jit(functools.partial(loss, **settings))


LOSSES = {
    "consistency": lambda f, b, c, r, w: hierarchy.consistency(b, c, w),
    "diversity": lambda f, b, c, r, w: hierarchy.diversity(r, w),
    "structure": lambda f, b, c, r, w: hierarchy.structure(f, w),
    "hierarchy": hierarchy.hierarchy,
}
every = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())


class TestFixedNumbers:
    def test_consistency(self):
        parent = level([3.0, 4.0], [1.0, 0.0])
        children = level([4.0, 3.0], [-2.0, 0.0])  # cosines 24/25 and -1
        value = compiled(hierarchy.consistency)([parent, parent], [None, children], ONE)
        assert float(value) == pytest.approx((1 / 25 + 2) / 2, rel=1e-6)

    def test_diversity(self):
        first = level([1.0, 0.0], [1.0, 2.0])  # mean (1, 1)
        second = level([0.0, 3.0])
        opposite = level([-1.0, -1.0])
        value = compiled(hierarchy.diversity)([first, second, opposite, None], ONE)
        # cosines 1/sqrt 2, -1 and -1/sqrt 2: only the first pair exceeds 0.3
        assert float(value) == pytest.approx((1 / math.sqrt(2) - 0.3) / 3, rel=1e-6)
        wide = compiled(hierarchy.diversity, margin=0.5)([first, second, None], ONE)
        assert float(wide) == pytest.approx(1 / math.sqrt(2) - 0.5, rel=1e-6)

    def test_structure(self):
        # LayerNormed over two channels a token is (1, -1) or (-1, 1).
        steady = level([5.0, 1.0], [3.0, 2.0])  # variance 0
        split = level([5.0, 1.0], [2.0, 3.0])  # variance 1
        three = level([5.0, 1.0], [2.0, 3.0], [2.0, 3.0])  # values 1, -1, -1: variance 8/9
        loss = compiled(hierarchy.structure)
        assert float(loss([steady, split], ONE)) == pytest.approx(1.0, rel=1e-4)
        assert float(loss([split, steady], ONE)) == 0.0
        assert float(loss([steady, three, split], ONE)) == pytest.approx((8 / 9 + 1 / 9) / 2, rel=1e-4)

    def test_graph(self):
        edges = np.float32([[[1.0, 0.2], [0.4, 1.0]], [[0.5, 0.6], [0.8, 0.5]], [[1.0, 9.0], [9.0, 1.0]]])
        assert float(compiled(hierarchy.graph)(edges, WEIGHT)) == pytest.approx((0.3 + 0.5 * 0.7) / 1.5)

    def test_a_single_group_has_no_edges(self):
        assert float(compiled(hierarchy.graph)(np.ones((3, 1, 1), np.float32), WEIGHT)) == 0.0

    def test_examples_count_by_weight(self):
        parent = np.concatenate([level([1.0, 0.0]), level([0.0, 1.0]), level([-1.0, 0.0])])
        children = np.concatenate([level([1.0, 0.0])] * 3)  # losses 0, 1, 2
        value = compiled(hierarchy.consistency)([parent, parent], [None, children], WEIGHT)
        assert float(value) == pytest.approx(0.5 / 1.5, rel=1e-6)

    def test_hierarchy_is_the_scaled_sum(self):
        pyramid = random_pyramid()
        parts = [
            float(jax.jit(LOSSES[name])(*pyramid, WEIGHT))
            for name in ("consistency", "diversity", "structure")
        ]
        assert min(parts) > 1e-3
        scales = (2.0, 3.0, 5.0)
        names = ("consistency_scale", "diversity_scale", "structure_scale")
        value = compiled(hierarchy.hierarchy, **dict(zip(names, scales, strict=True)))(*pyramid, WEIGHT)
        assert float(value) == pytest.approx(np.dot(parts, scales), rel=1e-6)
        nothing = compiled(hierarchy.hierarchy, **dict.fromkeys(names, 0.0))(*pyramid, WEIGHT)
        assert float(nothing) == 0.0


class TestProperties:
    def test_a_parent_answers_for_its_children_and_not_they_for_it(self):
        _, bottom_up, children, _ = random_pyramid()
        by_parent, by_children = jax.jit(jax.grad(hierarchy.consistency, argnums=(0, 1)))(
            bottom_up, children, WEIGHT
        )
        assert all(np.all(gradient == 0) for gradient in by_children if gradient is not None)
        assert np.all(by_parent[0] == 0)  # the finest level has no children
        assert all(np.abs(gradient[0]).max() > 1e-3 for gradient in by_parent[1:])

    @every
    def test_padding_touches_nothing(self, loss):
        pyramid = random_pyramid()
        changed = jax.tree.map(lambda x: np.concatenate([x[:2], 100 + x[2:]]), pyramid)
        cut = jax.tree.map(lambda x: x[:2], pyramid)
        value = jax.jit(loss)(*pyramid, WEIGHT)
        assert float(value) > 1e-3
        np.testing.assert_array_equal(value, jax.jit(loss)(*changed, WEIGHT))
        np.testing.assert_allclose(value, jax.jit(loss)(*cut, WEIGHT[:2]), rtol=1e-6)
        gradient = jax.jit(jax.grad(lambda pyramid: loss(*pyramid, WEIGHT)))(pyramid)
        assert all(np.all(leaf[2] == 0) for leaf in jax.tree.leaves(gradient))

    @every
    def test_zeros_and_a_batch_without_weight_are_finite(self, loss):
        pyramid = random_pyramid()
        gradient = jax.jit(jax.value_and_grad(lambda pyramid, weight: loss(*pyramid, weight)))
        for arrays, weight in (
            (jax.tree.map(np.zeros_like, pyramid), WEIGHT),
            (pyramid, np.zeros_like(WEIGHT)),
        ):
            value, slopes = gradient(arrays, weight)
            assert np.isfinite(value)
            assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slopes))
        assert float(value) == 0.0
        assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(slopes))

    @every
    def test_a_single_level_has_nothing_to_compare(self, loss):
        only = level([1.0, 2.0])
        assert float(jax.jit(loss)([only], [only], [None], [None], ONE)) == 0.0

    @every
    def test_bfloat16_is_compared_in_float32(self, loss):
        pyramid = random_pyramid(dtype=jnp.bfloat16)
        exact = jax.tree.map(np.float32, pyramid)
        value = jax.jit(loss)(*pyramid, WEIGHT)
        assert value.dtype == jnp.float32
        np.testing.assert_allclose(value, jax.jit(loss)(*exact, WEIGHT), rtol=1e-6)

    def test_lengths_do_not_matter_to_directions(self):
        _, bottom_up, children, residuals = random_pyramid()
        longer = [residual if residual is None else 7 * residual for residual in residuals]
        before = hierarchy.diversity(residuals, WEIGHT), hierarchy.consistency(bottom_up, children, WEIGHT)
        after = (
            hierarchy.diversity([longer[0], *residuals[1:]], WEIGHT),
            hierarchy.consistency([9 * x for x in bottom_up], children, WEIGHT),
        )
        np.testing.assert_allclose(before, after, rtol=1e-5)

    @pytest.mark.parametrize("margin", [1.0, -1.5])
    def test_a_margin_out_of_range_is_named(self, margin):
        with pytest.raises(ValueError, match="margin"):
            hierarchy.diversity([level([1.0])], ONE, margin=margin)


class TestAgainstPyTorch:
    def test_values_and_gradients(self):
        torch = pytest.importorskip("torch")
        functional = torch.nn.functional
        pyramid = random_pyramid(seed=4)
        weight = np.float32([1.0, 0.5, 0.25])
        value, gradient = jax.jit(jax.value_and_grad(lambda pyramid: hierarchy.hierarchy(*pyramid, weight)))(
            pyramid
        )
        features, bottom_up, children, residuals = (
            [None if x is None else torch.tensor(x, requires_grad=True) for x in part] for part in pyramid
        )
        near = [
            (1 - functional.cosine_similarity(bottom_up[n], children[n].detach(), dim=-1)).mean((1, 2))
            for n in (1, 2)
        ]
        means = [residual.mean((1, 2)) for residual in residuals[:2]]
        apart = functional.relu(functional.cosine_similarity(*means, dim=-1) - 0.3)
        spread = [
            functional.layer_norm(x, (6,), eps=1e-6).flatten(1, 2).var(1, correction=0).mean(-1)
            for x in features
        ]
        steps = [functional.relu(spread[n + 1] - spread[n]) for n in (0, 1)]
        per_example = sum(near) / 2 + apart + sum(steps) / 2
        expected = (per_example * torch.tensor(weight)).sum() / weight.sum()
        expected.backward()
        np.testing.assert_allclose(value, expected.item(), rtol=1e-5)
        for ours, theirs in zip(gradient, (features, bottom_up, children, residuals), strict=True):
            for slope, tensor in zip(ours, theirs, strict=True):
                if slope is not None:
                    reference = np.zeros_like(slope) if tensor.grad is None else tensor.grad.numpy()
                    np.testing.assert_allclose(slope, reference, rtol=1e-3, atol=1e-6)
