"""The router's losses, by hand-computed numbers and by what they may and may not touch."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsca_jax.losses import routing

LN2 = math.log(2.0)


def softplus(x):
    return math.log1p(math.exp(x))


class TestLoadBalance:
    def test_uniform_is_zero_and_collapsed_is_log_experts(self):
        weight = np.ones(6, np.float32)
        uniform = np.full((6, 4), 0.25, np.float32)
        collapsed = np.tile(np.float32([0, 1, 0, 0]), (6, 1))
        assert routing.load_balance(uniform, weight) == 0.0
        assert float(routing.load_balance(collapsed, weight)) == pytest.approx(math.log(4.0), rel=1e-6)

    def test_decided_but_different_examples_are_balanced(self):
        value = routing.load_balance(np.eye(3, dtype=np.float32), np.ones(3, np.float32))
        assert float(value) == pytest.approx(0.0, abs=1e-6)

    def test_the_mean_is_weighted(self):
        pi = np.float32([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
        value = routing.load_balance(pi, np.float32([1.0, 0.5, 0.0]))  # mean (2/3, 1/3)
        expected = 2 / 3 * math.log(4 / 3) + 1 / 3 * math.log(2 / 3)
        assert float(value) == pytest.approx(expected, rel=1e-5)

    def test_descent_spreads_a_nearly_collapsed_router(self):
        logits = np.float32([[6.0, 0.0, 0.0]] * 4)
        gradient = jax.grad(lambda x: routing.load_balance(jax.nn.softmax(x), jnp.ones(4)))(logits)
        assert np.all(gradient[:, 0] > 0.0)
        assert np.all(gradient[:, 1:] < 0.0)


class TestSparsity:
    def test_fixed_numbers(self):
        pi = np.float32([[0.5, 0.5], [1.0, 0.0], [0.25, 0.75], [0.5, 0.5]])
        weight = np.float32([1.0, 1.0, 0.5, 0.0])
        quarter = 0.25 * math.log(4.0) + 0.75 * math.log(4 / 3)
        value = routing.sparsity(pi, weight)
        assert float(value) == pytest.approx((LN2 + quarter / 2) / 2.5, rel=1e-6)

    @pytest.mark.parametrize("loss", [routing.load_balance, routing.sparsity])
    def test_a_softmax_that_rounds_to_zero_keeps_a_finite_gradient(self, loss):
        logits = np.float32([[300.0, 0.0, -300.0]] * 2)
        value, gradient = jax.value_and_grad(lambda x: loss(jax.nn.softmax(x), jnp.ones(2)))(logits)
        assert np.isfinite(value)
        assert np.all(np.isfinite(gradient))


class TestQuality:
    # votes:           right        wrong        right        known, but not judged
    VOTES = np.float32([[2.0, 0.5, -1.0, -4.0]])
    LABELS = np.uint8([[1, 0, 0, 1]])
    JUDGED = np.bool_([[1, 1, 1, 0]])
    QUALITY = np.float32([[0.0, 1.0, 3.0, 9.0]])

    def test_fixed_numbers(self):
        value = routing.quality_loss(self.QUALITY, self.VOTES, self.LABELS, self.JUDGED, np.ones(1))
        assert float(value) == pytest.approx((LN2 + softplus(1.0) + softplus(-3.0)) / 3, rel=1e-6)

    def test_only_judged_qualities_get_a_gradient(self):
        def loss(quality, votes):
            return routing.quality_loss(quality, votes, self.LABELS, self.JUDGED, jnp.ones(1))

        quality, votes = jax.grad(loss, argnums=(0, 1))(self.QUALITY, self.VOTES)
        assert np.all((quality != 0.0) == self.JUDGED)
        assert np.all(votes == 0.0)

    def test_it_is_least_at_the_share_of_right_votes(self):
        votes, labels = np.ones((10, 1), np.float32), np.uint8([[1]] * 7 + [[0]] * 3)
        quality = np.full((10, 1), math.log(0.7 / 0.3), np.float32)
        everything = np.ones((10, 1), bool)
        gradient = jax.grad(
            lambda bias: routing.quality_loss(quality + bias, votes, labels, everything, jnp.ones(10))
        )(0.0)
        assert float(gradient) == pytest.approx(0.0, abs=1e-7)


def batch(seed=0, rows=6, attributes=4, experts=3):
    rng = np.random.default_rng(seed)
    known = rng.random((rows, attributes)) < 0.7
    held_out = rng.random((rows, attributes)) < 0.4
    return {
        "votes": rng.normal(size=(rows, attributes)).astype(np.float32),
        "quality": rng.normal(size=(rows, attributes)).astype(np.float32),
        "probabilities": rng.dirichlet(np.ones(experts), rows).astype(np.float32),
        "labels": ((rng.random((rows, attributes)) < 0.4) & known).astype(np.uint8),
        "taught": known & ~held_out,
        "judged": known & held_out,
        "weight": np.float32([1.0, 0.5, 1.0, 0.0, 1.0, 0.25]),
    }


def loss_and_gradients(arguments, **coefficients):
    names = ("votes", "quality", "probabilities")
    rest = {name: value for name, value in arguments.items() if name not in names}

    def loss(learned):
        return routing.router_loss(**learned, **rest, **coefficients)

    return jax.jit(jax.value_and_grad(loss))({name: arguments[name] for name in names})


class TestRouterLoss:
    def test_is_the_weighted_sum_of_its_parts(self):
        b = batch()
        expected = (
            routing.vote_loss(b["votes"], b["labels"], b["taught"], b["weight"])
            + 2.0 * routing.quality_loss(b["quality"], b["votes"], b["labels"], b["judged"], b["weight"])
            + 3.0 * routing.load_balance(b["probabilities"], b["weight"])
            + 5.0 * routing.sparsity(b["probabilities"], b["weight"])
        )
        value = routing.router_loss(**b, quality_weight=2.0, balance_weight=3.0, sparsity_weight=5.0)
        assert float(value) == pytest.approx(float(expected), rel=1e-6)

    def test_each_entry_teaches_the_vote_or_its_quality_or_nothing(self):
        b = batch()
        _, gradients = loss_and_gradients(b)
        counts = (b["weight"] > 0)[:, None]
        np.testing.assert_array_equal(gradients["votes"] != 0, counts & b["taught"])
        np.testing.assert_array_equal(gradients["quality"] != 0, counts & b["judged"])
        np.testing.assert_array_equal(
            (gradients["probabilities"] != 0).any(-1), b["weight"] > 0, "padding touches nothing"
        )

    def test_hidden_labels_and_padding_rows_change_nothing(self):
        b = batch()
        value, _ = loss_and_gradients(b)
        hidden = b | {"labels": np.where(b["taught"] | b["judged"], b["labels"], 1 - b["labels"])}
        assert loss_and_gradients(hidden)[0] == value
        other = batch(seed=1)
        padded = {
            name: np.where((b["weight"] > 0).reshape(-1, *[1] * (array.ndim - 1)), array, other[name])
            for name, array in b.items()
        }
        padded["weight"] = b["weight"]
        assert loss_and_gradients(padded)[0] == value

    def test_an_empty_batch_is_zero_with_zero_gradient(self):
        value, gradients = loss_and_gradients(batch() | {"weight": np.zeros(6, np.float32)})
        assert value == 0.0
        assert all(np.all(gradient == 0.0) for gradient in gradients.values())

    def test_nothing_held_out_leaves_the_quality_alone(self):
        value, gradients = loss_and_gradients(batch() | {"judged": np.zeros((6, 4), bool)})
        assert np.isfinite(value)
        assert np.all(gradients["quality"] == 0.0)

    def test_is_float32_whatever_comes_in(self):
        b = batch()
        for name in ("votes", "quality", "probabilities"):
            b[name] = b[name].astype(jnp.bfloat16)
        assert routing.router_loss(**b).dtype == jnp.float32

    @pytest.mark.parametrize("name", ["quality_weight", "balance_weight", "sparsity_weight"])
    def test_settings_out_of_range_are_named(self, name):
        with pytest.raises(ValueError, match=name):
            routing.router_loss(**batch(), **{name: -0.1})
