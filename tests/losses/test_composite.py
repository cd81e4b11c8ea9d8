"""The composite loss: exact sums, exact shares, names that are checked."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from input_pipeline.batch import AttributeBatch
from wsca_jax.losses.balancing import Balancing, init
from wsca_jax.losses.composite import (
    Combined,
    Term,
    active,
    check_names,
    combine,
    microbatch_shares,
    start_later,
    whole,
)

STEP = jnp.int32(3)


def batch(known, weight):
    known, weight = np.asarray(known, bool), np.asarray(weight, np.float32)
    rows = len(weight)
    return AttributeBatch(
        np.zeros((rows, 1, 1, 3), np.uint8),
        known.astype(np.uint8),
        known,
        weight,
        np.arange(rows, dtype=np.int32),
    )


def constant(name, value, weight):
    return Term(name, lambda outputs, batch, step: jnp.float32(value), weight)


def counted(weight=1.0):
    """The mean of `outputs` over known entries."""

    def entries(batch):
        return batch.known * batch.weight[:, None]

    def mean(outputs, batch, step):
        count = entries(batch).sum()
        return (outputs * entries(batch)).sum() / jnp.where(count > 0, count, 1)

    return Term("classification", mean, weight, count=lambda batch: entries(batch).sum())


def test_the_total_by_hand():
    terms = [constant("classification", 2.0, 1.0), constant("cal", 3.0, 0.5), constant("graph", 4.0, 0.01)]
    total, raw, weights, loss_state = combine(terms, {}, None, None, STEP)
    np.testing.assert_allclose(total, 2 + 1.5 + 0.04, rtol=1e-6)
    assert raw == {"classification": 2.0, "cal": 3.0, "graph": 4.0}
    assert weights == {"classification": 1.0, "cal": 0.5, "graph": np.float32(0.01)}
    assert loss_state == {}


def test_weight_zero_is_not_computed_and_leaves_the_rest_exact():
    def explode(outputs, batch, step):
        raise AssertionError("computed")

    only = [constant("classification", 0.1, 1.0)]
    terms = active([*only, Term("mavd", explode, 0.0), Term("cal", explode, 0)])
    assert [term.name for term in terms] == ["classification"]
    assert combine(terms, {}, None, None, STEP).total == combine(only, {}, None, None, STEP).total


def test_terms_see_outputs_batch_and_step():
    seen = Term("cal", lambda outputs, batch, step: outputs.sum() + batch.weight.sum() + step, 2.0)
    total = combine([seen], {}, jnp.ones(4), batch([[1], [1]], [1, 0.5]), STEP).total
    np.testing.assert_allclose(total, 2 * (4 + 1.5 + 3))


def test_shares_follow_the_counts():
    whole = batch([[1, 1], [0, 1], [1, 1], [0, 0]], [1.0, 0.5, 1.0, 1.0])
    parts = jax.tree.map(lambda x: x.reshape(2, 2, *x.shape[1:]), whole)
    shares = microbatch_shares([counted(), constant("cal", 1.0, 1.0)], parts)
    np.testing.assert_allclose(shares["classification"], [2.5 / 4.5, 2.0 / 4.5], rtol=1e-6)
    np.testing.assert_allclose(shares["cal"], [0.5, 0.5])
    assert shares["classification"].dtype == shares["cal"].dtype == jnp.float32


def test_shared_parts_add_up_to_the_whole_and_so_do_gradients():
    random = np.random.default_rng(0)
    whole = batch(random.random((8, 5)) < 0.4, random.random(8))
    whole.known[4:6] = False  # a microbatch without any known entry
    values = jnp.asarray(random.normal(size=(8, 5)), jnp.float32)
    parts = jax.tree.map(lambda x: x.reshape(4, 2, *x.shape[1:]), whole)
    terms = [counted(0.7), constant("cal", 2.0, 0.5)]

    def in_parts(values):
        shares = microbatch_shares(terms, parts)
        total = 0.0
        for i in range(4):
            part, share = jax.tree.map(lambda x, i=i: x[i], (parts, shares))
            total += combine(terms, {}, values.reshape(4, 2, 5)[i], part, STEP, share).total
        return total

    one, gradient = jax.value_and_grad(lambda v: combine(terms, {}, v, whole, STEP).total)(values)
    other, other_gradient = jax.value_and_grad(in_parts)(values)
    np.testing.assert_allclose(other, one, rtol=1e-6)
    np.testing.assert_allclose(other_gradient, gradient, rtol=1e-5, atol=1e-9)


def test_shares_of_nothing_are_zero():
    parts = jax.tree.map(lambda x: x[:, None], batch([[0, 0], [0, 0]], [1, 1]))
    np.testing.assert_array_equal(microbatch_shares([counted()], parts)["classification"], [0, 0])


def test_everything_is_float32():
    term = Term("cal", lambda outputs, batch, step: jnp.bfloat16(1.5), 2.0)
    combined = combine([term], {}, None, None, STEP)
    assert {leaf.dtype for leaf in jax.tree.leaves(combined)} == {jnp.dtype("float32")}


def test_no_terms_give_zero():
    assert combine([], {}, None, None, STEP).total == 0


def reading(name, weight):
    """A term whose value is `outputs[name]` plus the step it is told."""
    return Term(name, lambda outputs, batch, step: outputs[name] + step, weight)


def test_a_term_that_starts_later_by_hand():
    """From step 5 on; its own steps count from there."""
    terms = start_later([reading("classification", 1.0), reading("cal", 0.5)], 5)
    outputs = {"classification": jnp.float32(2), "cal": jnp.float32(10)}

    def total(outputs, step):
        found = combine(terms, {}, outputs, None, jnp.int32(step))
        return found.total, found

    for step, weight in ((0, 0), (4, 0), (5, 0.5), (7, 0.5)):
        (value, found), gradient = jax.value_and_grad(total, has_aux=True)(outputs, step)
        assert found.terms == {"classification": 2 + step, "cal": 10 + step - 5}
        assert found.weights == {"classification": 1, "cal": weight}
        assert value == (2 + step) + weight * (10 + step - 5)
        assert gradient == {"classification": 1, "cal": weight}


def test_what_has_not_started_cannot_spoil_the_total():
    terms = start_later([constant("classification", 2.0, 1.0), constant("cal", np.nan, 1.0)], 5)
    assert combine(terms, {}, None, None, jnp.int32(4)).total == 2
    assert jnp.isnan(combine(terms, {}, None, None, jnp.int32(5)).total)


def test_balancing_does_not_see_what_has_not_started():
    trend = Balancing("trend")
    terms = start_later([constant("classification", 2.0, 1.0), constant("cal", 3.0, 1.0)], 5)
    state = init(trend, ("classification", "cal"))
    for step, seen in ((4, 0), (5, 1)):
        parts = [combine(terms, state, None, None, jnp.int32(step), balancing=trend) for _ in range(2)]
        stacked: Combined = jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts)
        assert parts[0].loss_state["cal"] == (seen, 3.0 * seen, 3.0 * seen)
        assert whole(stacked, state, trend).loss_state["cal"] == (seen, 6.0 * seen, 6.0 * seen)


@pytest.mark.parametrize(
    ("wrong", "right"), [("clasification", "classification"), ("pseudo_label", "pseudo")]
)
def test_an_unknown_name_is_answered_with_the_nearest(wrong, right):
    with pytest.raises(ValueError, match=f"unknown loss term '{wrong}'; did you mean '{right}'"):
        check_names(["cal", wrong])
    with pytest.raises(ValueError, match="unknown loss term"):
        constant(wrong, 0.0, 1.0)


def test_a_name_stands_once():
    with pytest.raises(ValueError, match="loss terms repeat: cal; each name stands once"):
        active([constant("cal", 1.0, 1.0), constant("cal", 1.0, 0.0)])
