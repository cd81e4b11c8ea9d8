"""Balanced loss weights in a run: alike on any devices and in microbatches, rolled back, saved, frozen."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_method import CLASSIFICATION, Run, assert_bit_equal, make_batch, make_layout, make_method, normalise

from wsca_jax.engine import evaluate
from wsca_jax.engine.checkpoint import Checkpoints
from wsca_jax.errors import WscaError
from wsca_jax.losses import classification
from wsca_jax.losses.balancing import FIXED, Balancing
from wsca_jax.losses.composite import Term

TREND = Balancing("trend", kappa=2.0, fast=0.5, slow=0.9)
UNCERTAINTY = Balancing("uncertainty")


def of_positives(outputs, batch, step):
    """A second loss that counts its entries: the cross-entropy of known positives, poisoned by example 77."""
    positive = batch.known & (batch.labels == 1)
    loss = classification.binary_cross_entropy(outputs.logits, batch.labels, positive, batch.weight)
    return jnp.where((batch.index == 77).any(), jnp.nan, loss)


POSITIVES = Term(
    "mavd",
    of_positives,
    weight=0.5,
    count=lambda batch: classification.count(batch.known & (batch.labels == 1), batch.weight),
)
LARGE = Term("graph", lambda outputs, batch, step: (outputs.logits**2).mean(), weight=0.1)
EXACT, ALL = (CLASSIFICATION, POSITIVES), (CLASSIFICATION, POSITIVES, LARGE)
GOOD = (0, 1, 3, 4, 5)  # batch 2 holds example 77

schemes = pytest.mark.parametrize("balancing", [TREND, UNCERTAINTY], ids=lambda balancing: balancing.kind)


def balanced_run(balancing=TREND, layout=None, *, terms=ALL, **options):
    method = make_method(batch_norm=False, terms=terms, balancing=balancing)
    return Run(method, layout, **({"ema_decay": 0.9} | options))


def reports(run, numbers=GOOD):
    return [run.step(make_batch(number)) for number in numbers]


def close(one, other, rtol=2e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-6), one, other)


def test_the_trend_follows_the_reported_losses():
    """Weights of every step, recomputed from the raw terms of the steps before it."""
    run = balanced_run()
    fast, slow = {}, {}
    for seen, report in enumerate(reports(run)):
        total = report.terms["classification"]
        assert report.weights["classification"] == 1.0
        for term in (POSITIVES, LARGE):
            name, loss = term.name, float(report.terms[term.name])
            ratio = fast[name] / slow[name] if seen else 1.0
            expected = term.weight * np.clip(ratio**2.0, 0.5, 2.0)
            np.testing.assert_allclose(report.weights[name], expected, rtol=1e-5)
            total = total + expected * loss
            for average, decay in ((fast, 0.5), (slow, 0.9)):
                old = average.get(name, 0.0)
                average[name] = old + max(1 - decay, 1 / (seen + 1)) * (loss - old)
        np.testing.assert_allclose(report.loss, total, rtol=1e-5)
    assert report.weights["graph"] != np.float32(0.1)  # something moved
    for name, trend in run.host().loss_state.items():
        np.testing.assert_allclose(trend, (5, fast[name], slow[name]), rtol=1e-5)


def test_log_variances_are_trained():
    run = balanced_run(UNCERTAINTY)
    first, *_, last = reports(run)
    assert first.weights["mavd"] == np.float32(0.5)
    s = run.host().params["log_variances"]
    assert s.shape == (2,)
    assert np.all(s != 0)
    assert last.weights["mavd"] != first.weights["mavd"]
    assert run.host().loss_state == {}


@schemes
def test_one_device_and_eight_agree(balancing):
    one, eight = balanced_run(balancing), balanced_run(balancing, make_layout(2, 4))
    close(reports(eight), reports(one))
    close(eight.host().loss_state, one.host().loss_state)
    close(eight.host().params, one.host().params, rtol=2e-3)
    for leaf in jax.tree.leaves(eight.state.loss_state):
        copies = [np.asarray(shard.data).tobytes() for shard in leaf.addressable_shards]
        assert len(copies) == 8
        assert len(set(copies)) == 1


@schemes
def test_two_microbatches_equal_the_large_batch(balancing):
    whole = balanced_run(balancing, terms=EXACT, clip_norm=0.0)
    parts = balanced_run(balancing, terms=EXACT, clip_norm=0.0, accumulate=2)
    close(reports(parts), reports(whole), rtol=1e-5)
    close(parts.host().loss_state, whole.host().loss_state, rtol=1e-5)
    close(parts.host().params, whole.host().params, rtol=1e-4)
    assert all(trend.seen == len(GOOD) for trend in parts.host().loss_state.values())


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_that_is_not_finite_leaves_the_trend(accumulate):
    run = balanced_run(accumulate=accumulate)
    reports(run, (0, 1))
    before = run.host().loss_state
    assert not run.step(make_batch(2)).finite
    assert_bit_equal(run.host().loss_state, before)
    assert run.step(make_batch(3)).finite
    assert run.host().loss_state["mavd"].seen == 3


@schemes
def test_a_resumed_run_equals_the_uninterrupted_one(balancing, tmp_path):
    layout = make_layout(2, 4)
    run = balanced_run(balancing, layout)
    reports(run, (0, 1))
    saved = run.host()
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(run.state)
    resumed = balanced_run(balancing, layout)
    with Checkpoints(tmp_path) as checkpoints:
        resumed.state = checkpoints.restore_latest(resumed.abstract).state
    assert_bit_equal(resumed.host().loss_state, saved.loss_state)
    assert_bit_equal(reports(resumed, (3, 4)), reports(run, (3, 4)))
    assert_bit_equal(resumed.host(), run.host())


def test_a_checkpoint_without_the_trend_is_refused(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(balanced_run(FIXED).state)
    with (
        Checkpoints(tmp_path) as checkpoints,
        pytest.raises(WscaError, match="loss_state/graph/fast is missing"),
    ):
        checkpoints.restore_latest(balanced_run(TREND).abstract)


@schemes
def test_evaluation_neither_weighs_nor_advances(balancing):
    run = balanced_run(balancing)
    reports(run)
    before, found = run.host(), []
    fixed = dataclasses.replace(run.method, balancing=FIXED)
    for method in (run.method, fixed):
        variables = run.state.evaluation_variables
        compiled = evaluate.compile_eval_step(method, run.layout, variables)
        batches = [make_batch(number) for number in (0, 1)]
        found.append(
            evaluate.run(compiled, variables, batches, method=run.method, layout=run.layout, step=5).losses
        )
    assert found[0] == found[1]
    assert_bit_equal(run.host(), before)


def test_a_run_compiles_once_and_donates_the_trend():
    traces = []

    def counted(batch, key):
        traces.append(key)
        return normalise(batch, key)

    method = make_method(augment=counted, terms=ALL, balancing=TREND)
    run = Run(method, make_layout(2, 4), accumulate=2)
    traces.clear()
    old = run.state
    reports(run)
    assert len(traces) == 1
    assert run.compiled._cache_size() == 1
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(old.loss_state))


@schemes
def test_classification_alone_is_exactly_the_loss(balancing):
    alone, plain = balanced_run(balancing, terms=EXACT[:1]), balanced_run(FIXED, terms=EXACT[:1])
    for number in (0, 1):
        report = alone.step(make_batch(number))
        assert report.loss == report.terms["classification"] == plain.step(make_batch(number)).loss
