"""CMDL against loops, U-statistics by enumeration, and the properties it is chosen for."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxprs import operations

from wsca_jax.losses.disentanglement import (
    absolute_mean,
    cmdl,
    cross_correlation,
    hsic,
    projections,
    unbiased_hsic,
    variance_floor,
)

MEASURES = ("correlation", "hsic_linear", "hsic_rbf")
measures = pytest.mark.parametrize("measure", MEASURES)
IDENTITY = np.ones((2, 1, 1), np.float32)  # projects two groups of one dimension onto themselves

compiled_floor = jax.jit(variance_floor, static_argnames="floor")
draw = jax.jit(projections, static_argnums=(1, 2, 3))


@functools.cache
def compiled(measure):
    return jax.jit(jax.value_and_grad(functools.partial(cmdl, measure=measure)))


@functools.cache
def total(measure):
    return jax.jit(functools.partial(cmdl, measure=measure))


@functools.cache
def dependence(measure):
    return jax.jit(functools.partial(cmdl, measure=measure, variance=0.0, sparsity=0.0))


def subspaces(seed, groups=3, dim=12, width=8):
    return draw(jax.random.key(seed), groups, dim, width)


def planted(seed, strength, shape=(64, 3, 12)):
    """Features whose groups share a part of that strength."""
    rng = np.random.default_rng(seed)
    shared, own = rng.normal(size=(shape[0], 1, shape[2])), rng.normal(size=shape)
    return np.float32(strength * shared + np.sqrt(1.0 - strength**2) * own)


def ones(rows):
    return np.ones(rows, np.float32)


def program(measure, branches):
    """The operations of the loss and its gradient for features of that kind."""
    projection = jnp.ones((branches.shape[1], branches.shape[2], 4))
    function = jax.grad(functools.partial(cmdl, measure=measure))
    return list(operations(jax.make_jaxpr(function)(branches, ones(len(branches)), projection).jaxpr))


class TestCrossCorrelation:
    def test_by_hand(self):
        # Variances 5/4, covariance 1: correlation 0.8. Chance with four examples: 1/3.
        branches = np.float32([[0, 0], [1, 1], [2, 3], [3, 2]])[..., None]
        value = jax.jit(cross_correlation)(branches, ones(4), IDENTITY)
        assert float(value) == pytest.approx(0.64 - 1 / 3, rel=5e-4)

    def test_equals_a_loop_over_pairs(self):
        branches, weight = planted(0, 0.6) + 1.0, np.float32(np.random.default_rng(0).random(64))
        weight[5:9] = 0.0
        projection = np.asarray(subspaces(1))
        share = weight / weight.sum()
        chance = 1 / (weight.sum() ** 2 / (weight**2).sum() - 1)
        values = []
        for pair in itertools.combinations(range(3), 2):
            sides = []
            for group in pair:
                z = branches[:, group] @ projection[group]
                z = z - share @ z
                sides.append(z / np.sqrt(share @ z**2))
            squares = [(share @ (x * y)) ** 2 for x in sides[0].T for y in sides[1].T]
            values.append(max(np.mean(squares) - chance, 0.0))
        value = dependence("correlation")(branches, weight, projection)
        assert np.mean(values) > 0.005
        np.testing.assert_allclose(value, np.mean(values), rtol=2e-3)

    def test_what_chance_explains_costs_nothing(self):
        # Orthogonal columns: no correlation at all, where chance gives a third.
        branches = np.float32([[1, 1], [1, -1], [-1, 1], [-1, -1]])[..., None]
        assert float(jax.jit(cross_correlation)(branches, ones(4), IDENTITY)) == 0.0


class TestHsic:
    def test_equals_the_mean_over_all_quadruples(self):
        x, counts = planted(1, 0.5, (3, 9, 2)), np.bool_([1, 1, 0, 1, 1, 1, 0, 1, 1])
        kernels = np.float32(np.exp(-((x[:, :, None] - x[:, None]) ** 2).sum(-1)))
        kernels[1] += kernels[0]
        expected = np.zeros((3, 3))
        quadruples = list(itertools.permutations(np.flatnonzero(counts), 4))
        for i, j, q, r in quadruples:
            second = kernels[:, i, j] + kernels[:, q, r] - 2 * kernels[:, i, q]
            expected += np.outer(kernels[:, i, j], second)
        value = jax.jit(unbiased_hsic)(kernels, counts)
        np.testing.assert_allclose(value, expected / len(quadruples), rtol=1e-3, atol=1e-6)

    def test_is_unbiased(self):
        x = planted(2, 0.0, (4000, 2, 6))  # many batches of two independent features
        kernels = np.exp(-((x[..., :, None] - x[..., None, :]) ** 2))
        values = jax.jit(jax.vmap(lambda k: unbiased_hsic(k, np.ones(6, bool))[0, 1]))(kernels)
        assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(4000)

    @pytest.mark.parametrize("measure", ["hsic_linear", "hsic_rbf"])
    def test_a_feature_depends_fully_on_itself(self, measure):
        branches = planted(3, 0.0)[:, :1].repeat(3, axis=1)
        projection = np.repeat(subspaces(3)[:1], 3, axis=0)
        assert float(dependence(measure)(branches, ones(64), projection)) == pytest.approx(1.0, rel=1e-4)

    def test_the_rbf_kernel_sees_what_correlation_cannot(self):
        x = np.random.default_rng(4).normal(size=(256, 1)).astype(np.float32)
        branches = np.stack([x, x**2], axis=1)
        blind = dependence("hsic_linear")(branches, ones(256), IDENTITY)
        assert float(dependence("hsic_rbf")(branches, ones(256), IDENTITY)) > float(blind) + 0.2


class TestVarianceFloorAndSparsity:
    def test_by_hand(self):
        # Mean square 1. Dimension 0 varies with std 1, dimension 1 is constant: only it is below the floor.
        branches = np.float32([[[1, 1]], [[-1, 1]]])
        expected = (0.5 - np.sqrt(1e-5)) / 2
        assert float(compiled_floor(branches, ones(2))) == pytest.approx(expected, rel=1e-4)
        assert float(jax.jit(absolute_mean)(branches, ones(2))) == pytest.approx(1.0, rel=1e-5)
        # One entry in four: root mean square 1/2, mean 1/4.
        sparse = np.float32([[[1, 0]], [[0, 0]]])
        assert float(jax.jit(absolute_mean)(sparse, ones(2))) == pytest.approx(0.5, rel=1e-5)

    def test_healthy_features_pay_nothing_and_collapsed_ones_do(self):
        healthy = planted(5, 0.0)
        assert float(compiled_floor(healthy, ones(64))) == 0.0
        values = [float(compiled_floor(healthy * s + 1.0, ones(64))) for s in (0.5, 0.2, 0.05, 0.0)]
        assert values == sorted(values)
        assert values[-1] > 0.49


class TestProperties:
    @measures
    def test_falls_with_the_planted_dependence(self, measure):
        features = [planted(6, strength) for strength in (1.0, 0.9, 0.75, 0.6, 0.0)]
        values = [float(dependence(measure)(x, ones(64), subspaces(2))) for x in features]
        assert values == sorted(values, reverse=True)
        assert values[-1] < 0.1 * values[0]

    @measures
    def test_independent_features_pay_at_most_two_hundredths(self, measure):
        for seed in range(5):
            branches = 0.3 + 2.0 * planted(seed, 0.0, (256, 4, 128))
            value = float(total(measure)(branches, ones(256), subspaces(seed, 4, 128)))
            assert 0.0 <= value <= 0.02

    @measures
    def test_a_thousand_steps_stay_finite_and_disentangle(self, measure):
        before = jnp.asarray(planted(7, 0.9))

        def descend(step, branches):
            projection = projections(jax.random.fold_in(jax.random.key(3), step), 3, 12, 3)
            return branches - 20.0 * jax.grad(cmdl)(branches, ones(64), projection, measure=measure)

        after = jax.jit(lambda x: jax.lax.fori_loop(0, 1000, descend, x))(before)
        assert np.isfinite(after).all()
        left, start = (float(dependence(measure)(x, ones(64), subspaces(4))) for x in (after, before))
        assert left < 0.3 * start
        assert float(compiled_floor(after, ones(64))) < 0.05

    @measures
    @pytest.mark.parametrize("value", [0.0, 3.0, 1e-20, 1e12])
    def test_constant_features_are_finite_with_their_gradients(self, measure, value):
        branches = planted(8, 0.5)
        branches[:, 1:] = value
        loss, gradient = compiled(measure)(branches, ones(64), subspaces(5))
        assert np.isfinite(loss)
        assert loss >= 0.0
        assert np.isfinite(gradient).all()

    @measures
    def test_examples_of_weight_zero_touch_nothing(self, measure):
        branches, weight = planted(9, 0.8), ones(64)
        weight[40:] = 0.0
        whole = compiled(measure)(branches, weight, subspaces(6))
        branches[40:] = np.nan
        loss, gradient = compiled(measure)(branches, weight, subspaces(6))
        jax.tree.map(np.testing.assert_array_equal, (loss, gradient), whole)
        assert (gradient[40:] == 0.0).all()
        short = total(measure)(branches[:40], weight[:40], subspaces(6))
        np.testing.assert_allclose(loss, short, rtol=1e-4)

    @measures
    @pytest.mark.parametrize("count", [0, 1])
    def test_fewer_than_two_examples_give_zero(self, measure, count):
        weight = np.zeros(64, np.float32)
        weight[:count] = 1.0
        loss, gradient = compiled(measure)(planted(10, 0.8), weight, subspaces(7))
        assert loss == 0.0
        assert (gradient == 0.0).all()

    def test_a_batch_of_one(self):
        loss, gradient = compiled("correlation")(np.ones((1, 3, 12), np.float32), ones(1), subspaces(7))
        assert loss == 0.0
        assert (gradient == 0.0).all()

    def test_a_group_alone_depends_on_nothing(self):
        branches = planted(11, 0.8, (64, 1, 12))
        assert float(dependence("correlation")(branches, ones(64), subspaces(8, 1))) == 0.0

    @measures
    def test_scale_does_not_matter(self, measure):
        branches = planted(12, 0.8)
        scaled = branches * np.float32([1e-2, 1.0, 1e3])[:, None]
        value, _ = compiled(measure)(branches, ones(64), subspaces(9))
        np.testing.assert_allclose(compiled(measure)(scaled, ones(64), subspaces(9))[0], value, rtol=2e-3)

    @measures
    def test_products_are_exact_float32_whatever_the_features_are(self, measure):
        products = [
            operation
            for operation in program(measure, jnp.ones((8, 3, 12), jnp.bfloat16))
            if operation.primitive.name == "dot_general"
        ]
        assert products
        for product in products:
            assert product.params["precision"] == (jax.lax.Precision.HIGHEST,) * 2
            assert all(operand.aval.dtype == jnp.float32 for operand in product.invars)

    @measures
    def test_operations_do_not_grow_with_the_groups(self, measure):
        few, many = (len(program(measure, jnp.ones((8, groups, 12)))) for groups in (2, 7))
        assert few == many

    @measures
    def test_a_batch_over_eight_devices_gives_the_same(self, measure):
        branches, weight = planted(13, 0.8), ones(64)
        weight[40:] = 0.0
        projection = np.asarray(subspaces(10))
        expected = compiled(measure)(branches, weight, projection)
        rows = NamedSharding(Mesh(np.array(jax.devices()), ("data",)), PartitionSpec("data"))
        sharded = compiled(measure)(*jax.device_put((branches, weight), rows), projection)
        np.testing.assert_allclose(sharded[0], expected[0], rtol=1e-5)
        np.testing.assert_allclose(sharded[1], expected[1], rtol=1e-3, atol=1e-6)


class TestProjections:
    def test_columns_are_orthonormal_and_new_for_every_key_and_group(self):
        first, second = (np.asarray(subspaces(seed)) for seed in (0, 1))
        for matrix in first:
            np.testing.assert_allclose(matrix.T @ matrix, np.eye(8), atol=1e-5)
        assert np.abs(first - second).max() > 0.1
        assert np.abs(first[0] - first[1]).max() > 0.1

    def test_all_directions_are_seen_over_steps(self):
        seen = np.concatenate([subspaces(seed) for seed in range(400)])
        mean = np.einsum("nik,njk->ij", seen, seen) / len(seen)
        np.testing.assert_allclose(mean, np.eye(12) * 8 / 12, atol=0.05)

    def test_narrow_features_keep_their_width(self):
        assert jax.eval_shape(lambda key: projections(key, 2, 3, 8), jax.random.key(0)).shape == (2, 3, 3)


class TestSettings:
    def test_factors_compose_the_parts(self):
        branches, weight = planted(14, 0.8) + 2.0, ones(64)
        composed = jax.jit(functools.partial(cmdl, variance=0.3, sparsity=0.7, floor=0.6))
        parts = dependence("correlation")(branches, weight, subspaces(11))
        parts += 0.3 * compiled_floor(branches, weight, floor=0.6)
        parts += 0.7 * jax.jit(absolute_mean)(branches, weight)
        np.testing.assert_allclose(composed(branches, weight, subspaces(11)), parts, rtol=1e-5)

    @pytest.mark.parametrize(
        ("setting", "message"),
        [
            ({"measure": "cka"}, "measure must be"),
            ({"variance": -1.0}, "variance must be at least 0, found -1.0"),
            ({"sparsity": -1.0}, "sparsity must be at least 0, found -1.0"),
            ({"floor": 1.0}, "floor must lie in"),
        ],
    )
    def test_settings_out_of_range_are_named(self, setting, message):
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(functools.partial(cmdl, **setting), jnp.ones((4, 2, 1)), ones(4), IDENTITY)

    def test_other_settings_out_of_range_are_named(self):
        with pytest.raises(ValueError, match="width"):
            projections(jax.random.key(0), 2, 3, 0)
        with pytest.raises(ValueError, match="kernel must be"):
            jax.eval_shape(functools.partial(hsic, kernel="cubic"), jnp.ones((4, 2, 1)), ones(4), IDENTITY)
