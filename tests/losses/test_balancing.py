"""Balanced weights: the trend and the uncertainty by hand, bounds, losses that are exactly 0."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsca_jax.losses.balancing import Balancing, advance, init, scales
from wsca_jax.losses.composite import Combined, Term, combine, whole

STEP = jnp.int32(0)
TREND = Balancing("trend", kappa=1.0, fast=0.5, slow=0.75)
UNCERTAINTY = Balancing("uncertainty")


class Outputs(NamedTuple):
    """A model's: one loss for each name, and its log variances."""

    losses: dict[str, jax.Array]
    log_variances: jax.Array | None = None


def term(name, weight, count=None):
    return Term(name, lambda outputs, batch, step: outputs.losses[name], weight, count)


TERMS = [term("classification", 2.0), term("cal", 0.5), term("graph", 0.01)]
NAMES = [term.name for term in TERMS]


def outputs(classification, cal, graph, log_variances=None):
    losses = {"classification": classification, "cal": cal, "graph": graph}
    return Outputs({name: jnp.float32(value) for name, value in losses.items()}, log_variances)


def weights_over(values, balancing=TREND, names=("classification", "cal")):
    """The factor of `cal` before each of these losses and after the last, and the state then."""
    state, factors = init(balancing, names), []
    for value in [*values, None]:
        factors.append(float(scales(balancing, names, state, None)["cal"].factor))
        if value is not None:
            losses = {"classification": jnp.float32(1), "cal": jnp.float32(value)}
            state = jax.jit(advance, static_argnums=0)(balancing, state, losses)
    return factors, state


class TestTrend:
    def test_by_hand(self):
        # The averages are means at first (rates 1, 1/2, 1/3, ...), then no slower than 1 - decay:
        #   fast 0.5:  8, 6, then half:      (6 + 3) / 2 = 4.5, (4.5 + 3) / 2 = 3.75, (3.75 + 9) / 2 = 6.375
        #   slow 0.75: 8, 6, then a third:   5, then a quarter:  4.5, then a quarter:  5.625
        factors, state = weights_over([8.0, 4.0, 3.0, 3.0, 9.0])
        np.testing.assert_allclose(factors, [1, 1, 1, 4.5 / 5, 3.75 / 4.5, 6.375 / 5.625], rtol=1e-6)
        np.testing.assert_allclose(jax.tree.leaves(state), [5, 6.375, 5.625], rtol=1e-6)

    def test_in_the_total(self):
        state = init(TREND, NAMES)
        first = combine(TERMS, state, outputs(1.0, 8.0, 4.0), None, STEP, balancing=TREND)
        assert first.weights == {"classification": 2.0, "cal": 0.5, "graph": np.float32(0.01)}
        state = first.loss_state
        for values in ((1.0, 4.0, 4.0), (9.0, 3.0, 4.0)):
            state = combine(TERMS, state, outputs(*values), None, STEP, balancing=TREND).loss_state
        found = combine(TERMS, state, outputs(3.0, 5.0, 7.0), None, STEP, balancing=TREND)
        np.testing.assert_allclose(found.weights["cal"], 0.5 * 4.5 / 5, rtol=1e-6)
        assert found.weights["classification"] == 2.0
        assert found.weights["graph"] == np.float32(0.01)  # a loss that stands still
        assert found.terms == {"classification": 3.0, "cal": 5.0, "graph": 7.0}
        np.testing.assert_allclose(found.total, 6 + 5 * 0.45 + 0.07, rtol=1e-6)

    @pytest.mark.parametrize("kappa", [0.0, 0.5, 2.0])
    def test_the_exponent(self, kappa):
        balancing = Balancing("trend", kappa=kappa, fast=0.5, slow=0.75)
        factors, _ = weights_over([8.0, 4.0, 3.0], balancing)
        assert factors[-1] == pytest.approx(0.9**kappa, rel=1e-6)

    def test_bounds(self):
        risen, _ = weights_over([1.0] * 9 + [1e6])
        assert risen[-1] == pytest.approx((5e5 + 0.5) / (2.5e5 + 0.75), rel=1e-5)  # the rates' ratio, below 2
        steeper = Balancing("trend", kappa=3.0, fast=0.5, slow=0.75)
        assert weights_over([1.0] * 9 + [1e6], steeper)[0][-1] == 2.0
        assert weights_over([1.0] * 9 + [1e-6] * 9)[0][-1] == 0.5
        extremes = Balancing("trend", kappa=50.0, fast=0.0, slow=0.9)
        assert weights_over([1e-30, 1e30], extremes)[0][-1] == 2.0
        assert weights_over([1e30] * 9 + [1e-30], extremes)[0][-1] == 0.5

    def test_zeros_are_finite_and_say_nothing(self):
        factors, state = weights_over([0.0, 0.0, 0.0])
        assert factors == [1.0] * 4
        assert all(leaf == 0 for leaf in jax.tree.leaves(state))
        factors, _ = weights_over([0.0, 8.0, 0.0, 4.0, 0.0, 3.0, 0.0])
        np.testing.assert_allclose(factors, [1, 1, 1, 1, 1, 1, 0.9, 0.9], rtol=1e-6)

    def test_the_averages_forget_the_first_losses(self):
        """The slow average is not held up for its whole length by the large losses a run begins with."""
        _, state = weights_over([100.0] + [1.0] * 99, Balancing("trend", fast=0.9, slow=0.999))
        np.testing.assert_allclose(state["cal"].slow, (100 + 99) / 100, rtol=1e-5)

    def test_the_weight_is_a_constant_to_the_gradient(self):
        _, state = weights_over([8.0, 4.0, 3.0])

        def total(cal, state):
            losses = outputs(1.0, 0.0, 0.0)._replace(losses={"classification": 1.0, "cal": cal})
            return combine(TERMS[:2], state, losses, None, STEP, balancing=TREND).total

        by_cal, by_state = jax.grad(total, (0, 1), allow_int=True)(jnp.float32(5), state)
        assert by_cal == pytest.approx(0.5 * 0.9, rel=1e-6)
        assert by_state["cal"].fast == by_state["cal"].slow == 0

    def test_only_classification_has_no_state_and_is_exact(self):
        found = combine(
            TERMS[:1], init(TREND, NAMES[:1]), outputs(0.1, 9.0, 9.0), None, STEP, balancing=TREND
        )
        assert found.loss_state == {}
        assert found.total == np.float32(2.0) * np.float32(0.1)


class TestUncertainty:
    LOG_VARIANCES = jnp.array([0.3, -1.2], jnp.float32)

    @staticmethod
    def total(log_variances, values=(3.0, 5.0, 7.0)):
        found = combine(TERMS, {}, outputs(*values, log_variances), None, STEP, balancing=UNCERTAINTY)
        return found.total, found

    def test_by_hand(self):
        (total, found), gradient = jax.value_and_grad(self.total, has_aux=True)(self.LOG_VARIANCES)
        expected = 6 + 0.5 * (np.exp(-0.3) * 5 + 0.15) + 0.01 * (np.exp(1.2) * 7 - 0.6)
        assert total == pytest.approx(expected, rel=1e-6)
        by_hand = [0.5 * (0.5 - np.exp(-0.3) * 5), 0.01 * (0.5 - np.exp(1.2) * 7)]
        np.testing.assert_allclose(gradient, by_hand, rtol=1e-5)
        assert found.weights["classification"] == 2.0
        np.testing.assert_allclose(found.weights["cal"], 0.5 * np.exp(-0.3), rtol=1e-6)
        np.testing.assert_allclose(found.weights["graph"], 0.01 * np.exp(1.2), rtol=1e-6)
        assert found.loss_state == init(UNCERTAINTY, NAMES) == {}

    def test_against_pytorch(self):
        torch = pytest.importorskip("torch")
        s = torch.tensor([0.3, -1.2], requires_grad=True)
        own, losses = torch.tensor([0.5, 0.01]), torch.tensor([5.0, 7.0])
        expected = 2.0 * 3.0 + (own * (losses * torch.exp(-s) + torch.log(torch.exp(s / 2)))).sum()
        expected.backward()
        total, gradient = jax.value_and_grad(lambda s: self.total(s)[0])(self.LOG_VARIANCES)
        np.testing.assert_allclose(total, expected.item(), rtol=1e-6)
        np.testing.assert_allclose(gradient, s.grad.numpy(), rtol=1e-5)

    def test_it_begins_as_the_fixed_weights(self):
        fixed = combine(TERMS, {}, outputs(3.0, 5.0, 7.0), None, STEP)
        assert self.total(jnp.zeros(2))[0] == fixed.total

    def test_it_settles_at_the_logarithm_of_twice_the_loss_whatever_the_weight(self):
        s = jnp.log(2 * jnp.array([0.9, 1.7]))
        gradient = jax.grad(lambda s: self.total(s, (1.0, 0.9, 1.7))[0])(s)
        np.testing.assert_allclose(gradient, 0, atol=1e-7)

    def test_beyond_the_bounds_only_the_way_back_has_a_gradient(self):
        (total, found), gradient = jax.value_and_grad(self.total, has_aux=True)(jnp.array([-3.0, 3.0]))
        np.testing.assert_allclose(found.weights["cal"], 0.5 * np.exp(2), rtol=1e-6)
        np.testing.assert_allclose(found.weights["graph"], 0.01 * np.exp(-2), rtol=1e-6)
        assert total == pytest.approx(6 + 0.5 * (np.exp(2) * 5 - 1) + 0.01 * (np.exp(-2) * 7 + 1), rel=1e-6)
        np.testing.assert_allclose(gradient[0], 0.5 * (0.5 - np.exp(2) * 5), rtol=1e-5)  # upwards, inside
        assert gradient[1] == 0  # the loss of 7 asks for more than exp(2) still
        back = jax.grad(lambda s: self.total(s, (3.0, 0.01, 0.5))[0])(jnp.array([-3.0, 3.0]))
        assert back[0] == 0
        np.testing.assert_allclose(back[1], 0.01 * (0.5 - np.exp(-2) * 0.5), rtol=1e-5)

    def test_a_loss_of_zero_moves_no_log_variance(self):
        (total, _), gradient = jax.value_and_grad(self.total, has_aux=True)(
            self.LOG_VARIANCES, (3.0, 0.0, 0.0)
        )
        assert total == 6.0
        assert jnp.all(gradient == 0)

    @pytest.mark.parametrize("given", [None, jnp.zeros(3), jnp.zeros((2, 1))])
    def test_log_variances_that_do_not_fit_are_named(self, given):
        with pytest.raises(ValueError, match=r"uncertainty needs shape \(2,\), for cal, graph"):
            self.total(given)

    def test_only_classification_needs_none_and_is_exact(self):
        found = combine(TERMS[:1], {}, outputs(0.1, 9.0, 9.0), None, STEP, balancing=UNCERTAINTY)
        assert found.total == np.float32(2.0) * np.float32(0.1)


@pytest.mark.parametrize("balancing", [TREND, UNCERTAINTY], ids=lambda balancing: balancing.kind)
@pytest.mark.parametrize("shares", [[0.25, 0.75], [0.0, 1.0], [0.0, 0.0]])
def test_microbatches_put_together_are_the_whole(balancing, shares):
    """Shares [0, 0] stand for a whole batch in which the term has nothing to count."""
    _, state = weights_over([8.0, 4.0, 3.0])
    state = state if balancing.kind == "trend" else {}
    values, shares = jnp.array([5.0, 2.0]), jnp.array(shares)
    terms = TERMS[:2]

    def at(cal, log_variances, share=None):
        given = Outputs({"classification": jnp.float32(1), "cal": cal}, log_variances)
        given_shares = None if share is None else {"classification": jnp.float32(0.5), "cal": share}
        return combine(terms, state, given, None, STEP, given_shares, balancing)

    def in_parts(log_variances):
        parts = [at(value, log_variances, share) for value, share in zip(values, shares, strict=True)]
        stacked: Combined = jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts)
        found = whole(stacked, state, balancing)
        return found.total, found

    def at_once(log_variances):
        found = at((values * shares).sum(), log_variances)
        return found.total, found

    one, gradient = jax.grad(at_once, has_aux=True)(jnp.array([0.7]))[::-1]
    other, other_gradient = jax.grad(in_parts, has_aux=True)(jnp.array([0.7]))[::-1]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), other, one)
    np.testing.assert_allclose(other_gradient, gradient, rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "gradnorm"}, "balancing.kind is 'gradnorm'; expected none, trend, uncertainty"),
        ({"kappa": -1.0}, "balancing.kappa is -1.0; expected a number of 0 or more"),
        ({"kappa": float("nan")}, "balancing.kappa is nan"),
        ({"fast": 0.99, "slow": 0.9}, "balancing.fast is 0.99 and balancing.slow 0.9; expected 0 <= fast"),
        ({"slow": 1.0}, "expected 0 <= fast < slow < 1"),
    ],
)
def test_wrong_settings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Balancing(**options)


def test_everything_is_float32():
    bf16 = Outputs(dict.fromkeys(NAMES, jnp.bfloat16(1.5)), jnp.zeros(2, jnp.bfloat16))
    for balancing in (TREND, UNCERTAINTY):
        found = combine(TERMS, init(balancing, NAMES), bf16, None, STEP, balancing=balancing)
        floats = [leaf.dtype for leaf in jax.tree.leaves(found) if leaf.dtype != jnp.int32]
        assert set(floats) == {jnp.dtype("float32")}
