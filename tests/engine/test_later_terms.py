"""Classification first, then the other terms: by hand, in a run, in microbatches, across a checkpoint."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_method import CLASSIFICATION, Run, assert_bit_equal, make_batch, make_layout, make_method

from wsca_jax import assembly, config
from wsca_jax.engine.checkpoint import Checkpoints
from wsca_jax.errors import WscaError
from wsca_jax.losses import classification
from wsca_jax.losses.balancing import Balancing
from wsca_jax.losses.composite import Term, start_later

START = 3
TREND = Balancing("trend", kappa=2.0, fast=0.5, slow=0.9)
UNCERTAINTY = Balancing("uncertainty")


def of_positives(outputs, batch, step):
    """A second loss that counts its entries: the cross-entropy of known positives."""
    positive = batch.known & (batch.labels == 1)
    return classification.binary_cross_entropy(outputs.logits, batch.labels, positive, batch.weight)


POSITIVES = Term(
    "mavd",
    of_positives,
    weight=0.5,
    count=lambda batch: classification.count(batch.known & (batch.labels == 1), batch.weight),
)
AT_ONCE = (CLASSIFICATION, POSITIVES)
LATER = start_later(AT_ONCE, START)

schemes = pytest.mark.parametrize("balancing", [TREND, UNCERTAINTY], ids=lambda balancing: balancing.kind)


def staged_run(balancing=TREND, terms=LATER, **options):
    method = make_method(batch_norm=False, terms=terms, balancing=balancing)
    return Run(method, **({"clip_norm": 0.0} | options))


def take(run, numbers):
    return [run.step(make_batch(number)) for number in numbers]


def close(one, other, rtol=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-6), one, other)


@schemes
def test_until_the_start_classification_is_alone(balancing):
    run = staged_run(balancing)
    alone = Run(make_method(batch_norm=False), clip_norm=0.0)
    for number in range(START):
        before, report, expected = run.host(), run.step(make_batch(number)), alone.step(make_batch(number))
        assert report.weights == {"classification": 1.0, "mavd": 0.0}
        assert report.loss == report.terms["classification"]
        assert report.terms["mavd"] > 0  # its raw value is reported all the same
        np.testing.assert_allclose(report.loss, expected.loss, rtol=1e-6)
        np.testing.assert_allclose(report.grad_norm, expected.grad_norm, rtol=1e-5)
        assert_bit_equal(run.host().loss_state, before.loss_state)
    params = dict(run.host().params)
    np.testing.assert_array_equal(params.pop("log_variances", 0), 0)
    close(params, alone.host().params)
    report = run.step(make_batch(START))
    assert report.weights["mavd"] == 0.5
    np.testing.assert_allclose(report.loss, report.terms["classification"] + 0.5 * report.terms["mavd"])


def test_from_the_start_on_the_trend_knows_nothing_of_before():
    """What it remembers then are the losses of the steps since, the first with rate 1."""
    run = staged_run(TREND)
    take(run, range(START))
    reports = take(run, range(START, START + 3))
    losses = [float(report.terms["mavd"]) for report in reports]
    fast = slow = losses[0]
    fast, slow = (fast + losses[1]) / 2, (slow + losses[1]) / 2
    ratio = fast / slow
    np.testing.assert_allclose(reports[2].weights["mavd"], 0.5 * ratio**2, rtol=1e-5)
    fast, slow = (fast + losses[2]) / 2, slow + (losses[2] - slow) / 3
    np.testing.assert_allclose(run.host().loss_state["mavd"], (3, fast, slow), rtol=1e-5)


@schemes
def test_microbatches_equal_the_large_batch_across_the_start(balancing):
    whole, parts = staged_run(balancing), staged_run(balancing, accumulate=2)
    close(take(parts, range(START + 2)), take(whole, range(START + 2)))
    close(parts.host().loss_state, whole.host().loss_state)
    close(parts.host().params, whole.host().params, rtol=1e-4)


@schemes
@pytest.mark.parametrize("saved_at", [START - 1, START, START + 1])
def test_a_resumed_run_equals_the_uninterrupted_one(balancing, saved_at, tmp_path):
    layout = make_layout(2, 4)
    run = staged_run(balancing, layout=layout)
    take(run, range(saved_at))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(run.state)
    resumed = staged_run(balancing, layout=layout)
    with Checkpoints(tmp_path) as checkpoints:
        resumed.state = checkpoints.restore_latest(resumed.abstract).state
    rest = range(saved_at, START + 3)
    assert_bit_equal(take(resumed, rest), take(run, rest))
    assert_bit_equal(resumed.host(), run.host())


def test_the_start_counts_steps_that_were_taken():
    """A step that was not finite moves the start on: schedules count optimiser steps, not batches."""
    run = staged_run()
    bad = make_batch(9)
    bad = bad._replace(weight=np.full_like(bad.weight, np.nan))
    take(run, range(START - 1))
    assert not run.step(bad).finite
    assert run.step(make_batch(START)).weights["mavd"] == 0.0
    assert run.step(make_batch(START + 1)).weights["mavd"] == 0.5


def test_a_configured_share_of_the_run_becomes_steps():
    overrides = ["--config.model.router=default", "--config.loss.start_fraction=0.3"]
    overrides += ["--config.optimizer.ema_decay=0.9", "--config.loss.accept.warmup_steps=2"]
    settings = config.load("configs/scenes.py:tiny", overrides)
    schema = assembly.data_schema(settings)
    run = assembly.build(settings, schema, 160)  # 2 epochs of 10 steps
    assert run.schedule.total == 20
    starts = {term.name: term.start_step for term in run.method.terms}
    assert starts == {"classification": 0, "mavd": 6, "pseudo": 6}
    assert {t.start_step for t in assembly.build_method(settings, schema).terms} == {0}


@pytest.mark.parametrize("wrong", [-0.1, 1.0, 1.5])
def test_a_share_that_leaves_nothing_is_refused(wrong):
    settings = config.load("configs/scenes.py:tiny", [f"--config.loss.start_fraction={wrong}"])
    with pytest.raises(WscaError, match=rf"loss\.start_fraction is {wrong}; expected a number from 0 to be"):
        assembly.build(settings, assembly.data_schema(settings), 160)


@pytest.mark.slow
def test_pseudo_labels_warm_up_from_the_start_of_their_term():
    """Gauges count as the terms do: the first pseudo labels come two steps after a start at step 6."""
    overrides = ["--config.model.router=default", "--config.optimizer.ema_decay=0.9"]
    overrides += [f"--config.loss.accept.{key}" for key in ("warmup_steps=2", "threshold_start=0.0")]
    settings = config.load("configs/scenes.py:tiny", [*overrides, "--config.loss.start_fraction=0.3"])
    method = assembly.build(settings, assembly.data_schema(settings), 160).method
    spec = assembly.batch_spec(settings, method.schema, 4)
    batch = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), spec)._replace(weight=jnp.ones(4))
    prepared = method.augment(batch, None)
    variables = jax.jit(method.init)(jax.random.key(0), batch)
    rngs = dict.fromkeys(method.rng_names, jax.random.key(1))

    @jax.jit
    def accepted(variables, step):
        outputs, _ = method.forward(method.model, variables, variables, prepared, step, True, rngs)
        pseudo = next(term for term in method.terms if term.name == "pseudo")
        sums = method.gauges.measure(outputs, prepared, step)
        return sums["pseudo_accepted"], pseudo.fn(outputs, prepared, step)

    found = [accepted(variables, jnp.int32(step)) for step in (0, 7, 8, 9)]
    assert [(count > 0, loss > 0) for count, loss in found] == [(False, False)] * 2 + [(True, True)] * 2


def test_terms_that_start_at_once_are_left_as_they_are():
    assert start_later(AT_ONCE, 0) == AT_ONCE
    assert [dataclasses.replace(term, fn=None).start_step for term in LATER] == [0, START]
