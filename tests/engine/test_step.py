"""The step: the same losses on any devices, exact accumulation, exact rollback, one trace."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_method import (
    CLASSIFICATION,
    Run,
    assert_bit_equal,
    make_batch,
    make_layout,
    make_method,
    noisy,
    normalise,
)

from wsca_jax.engine.step import train_step
from wsca_jax.errors import WscaError
from wsca_jax.losses.composite import Term

POISON = Term(
    "mavd", lambda outputs, batch, step: jnp.where((batch.index == 77).any(), jnp.nan, 0.0), weight=1.0
)


def losses(run, steps=5):
    return np.array([run.step(make_batch(i)).loss for i in range(steps)])


@pytest.fixture(scope="module")
def one_device():
    run = Run(make_method(dropout=0.2, augment=noisy), ema_decay=0.9)
    return losses(run), run.host()


@pytest.mark.parametrize(
    ("data", "fsdp"),
    [(8, 1), (2, 4), *(pytest.param(*x, marks=pytest.mark.slow) for x in [(4, 1), (1, 4), (1, 8)])],
)
def test_every_layout_trains_alike(one_device, data, fsdp):
    run = Run(make_method(dropout=0.2, augment=noisy), make_layout(data, fsdp), ema_decay=0.9)
    expected_losses, expected = one_device
    np.testing.assert_allclose(losses(run), expected_losses, rtol=2e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-5), run.host(), expected)
    if fsdp > 1:
        spread = run.state.params["trunk"]["kernel"]
        assert spread.addressable_shards[0].data.size == spread.size // fsdp
        slot = run.state.opt_state[1][0].mu["trunk"]["kernel"]
        assert slot.sharding == spread.sharding == run.state.ema["params"]["trunk"]["kernel"].sharding


def test_training_learns():
    run = Run(learning_rate=0.02)
    values = [float(run.step(make_batch(0)).loss) for _ in range(40)]
    assert values[-1] < 0.5 * values[0]


def test_first_update_by_hand():
    """AdamW's first step moves each parameter by the rate against its gradient's sign, and decays kernels."""
    run = Run(make_method(batch_norm=False), clip_norm=0.0, schedule="constant")
    before, batch = run.host().params, make_batch(0)

    def loss(params):
        prepared = normalise(batch, None)
        hidden = jax.nn.relu(
            prepared.image.reshape(32, -1) @ params["trunk"]["kernel"] + params["trunk"]["bias"]
        )
        logits = hidden @ params["head"]["kernel"] + params["head"]["bias"]
        entries = batch.known * batch.weight[:, None]
        wrong = jnp.log1p(jnp.exp(jnp.where(batch.labels == 1, -logits, logits)))
        return (wrong * entries).sum() / entries.sum()

    value, gradients = jax.value_and_grad(loss)(before)
    report = run.step(batch)
    np.testing.assert_allclose(report.loss, value, rtol=1e-6)
    np.testing.assert_allclose(report.terms["classification"], value, rtol=1e-6)
    squares = sum(float((g**2).sum()) for g in jax.tree.leaves(gradients))
    np.testing.assert_allclose(report.grad_norm, np.sqrt(squares), rtol=1e-5)
    np.testing.assert_allclose(report.examples, batch.weight.sum())
    for layer in ("trunk", "head"):
        for name, decay in (("kernel", 0.01), ("bias", 0.0)):
            old, g = before[layer][name], gradients[layer][name]
            expected = old - 0.05 * (g / (np.abs(g) + 1e-8) + decay * old)
            np.testing.assert_allclose(run.state.params[layer][name], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("devices", [(1, 1), (2, 2)])
def test_accumulation_equals_the_large_batch(devices):
    """Microbatches hold unequal numbers of known labels; shares make up for it."""
    method = make_method(batch_norm=False)
    whole = Run(method, make_layout(*devices), clip_norm=0.0)
    parts = Run(method, make_layout(*devices), accumulate=4, clip_norm=0.0)
    for i in range(3):
        one, other = whole.step(make_batch(i)), parts.step(make_batch(i))
        np.testing.assert_allclose(other.loss, one.loss, rtol=1e-6)
        np.testing.assert_allclose(other.grad_norm, one.grad_norm, rtol=2e-6)
        np.testing.assert_allclose(other.terms["classification"], one.terms["classification"], rtol=1e-6)
        assert other.weights == one.weights
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        parts.host().params,
        whole.host().params,
    )


def test_accumulation_survives_a_microbatch_without_known_labels():
    batch = make_batch(0)
    known = batch.known.copy()
    known[1::4] = False
    batch = batch._replace(known=known)
    method = make_method(batch_norm=False)
    whole, parts = Run(method).step(batch), Run(method, accumulate=4).step(batch)
    assert parts.finite
    np.testing.assert_allclose(parts.grad_norm, whole.grad_norm, rtol=2e-6)


@pytest.mark.parametrize("accumulate", [1, 4])
def test_a_poisoned_batch_changes_nothing_but_counters(accumulate):
    method = make_method(dropout=0.2, augment=noisy, terms=(CLASSIFICATION, POISON))
    run = Run(method, make_layout(2, 2), accumulate=accumulate, ema_decay=0.9)
    for i in range(2):
        run.step(make_batch(i))
    before = run.host()
    poisoned = make_batch(2)  # holds example 77
    for in_a_row in (1, 2):
        report = run.step(poisoned)
        assert not report.finite
        assert np.isnan(report.loss)
        assert report.skipped_in_a_row == report.skipped == in_a_row
    after = run.host()
    counters = {"step": before.step, "skipped": before.skipped, "skipped_in_a_row": before.skipped_in_a_row}
    assert_bit_equal(dataclasses.replace(after, **counters), before)
    assert (after.step, after.skipped, after.skipped_in_a_row) == (4, 2, 2)

    report = run.step(make_batch(3))
    assert report.finite
    assert report.skipped == 2
    assert report.skipped_in_a_row == 0
    assert run.state.updates == 3


def test_the_schedule_waits_for_skipped_steps():
    run = Run(make_method(terms=(CLASSIFICATION, POISON)), warmup_steps=10)
    rates = [run.step(make_batch(i)).learning_rate for i in (0, 2, 2, 1)]
    np.testing.assert_allclose(rates, [0.0, 0.005, 0.005, 0.005], rtol=1e-6)
    assert run.state.opt_state[1][0].count == 2


@pytest.mark.parametrize("where", ["gradient", "batch_stats"])
def test_other_non_finite_values_roll_back_too(where):
    """A finite loss is not enough: sqrt at 0 has an infinite gradient; a statistic can overflow alone."""

    def root(outputs, batch, step):
        return jnp.sqrt(jnp.abs(outputs.logits * 0.0)).sum()

    def overflow(model, variables, teacher, batch, step, train, rngs):
        outputs, statistics = method.forward(model, variables, teacher, batch, step, train, rngs)
        return outputs, jax.tree.map(lambda x: x * jnp.inf, statistics)

    method = make_method(
        terms=(CLASSIFICATION, Term("graph", root, 1.0)) if where == "gradient" else (CLASSIFICATION,)
    )
    faulty = method if where == "gradient" else dataclasses.replace(method, forward=overflow)
    run = Run(faulty)
    before = run.host()
    report = run.step(make_batch(0))
    assert np.isfinite(report.loss)
    assert not report.finite
    assert_bit_equal(run.host().params, before.params)
    assert_bit_equal(run.host().batch_stats, before.batch_stats)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_examples_of_weight_zero_influence_nothing(accumulate):
    batch = make_batch(0)
    skipped = batch.weight == 0
    assert skipped.any()
    other = batch._replace(
        image=np.where(skipped[:, None, None, None], 255, batch.image).astype(np.uint8),
        labels=np.where(skipped[:, None], 1, batch.labels).astype(np.uint8),
        known=batch.known | skipped[:, None],
    )
    one, two = Run(accumulate=accumulate, ema_decay=0.9), Run(accumulate=accumulate, ema_decay=0.9)
    one.step(batch)
    two.step(other)
    assert_bit_equal(two.host(), one.host())


def test_a_run_traces_each_function_once():
    traces = []

    def counted(batch, key):
        traces.append("augment")
        return normalise(batch, key)

    run = Run(make_method(augment=counted), make_layout(2, 4), accumulate=2, ema_decay=0.9, warmup_steps=2)
    traces.clear()
    for i in range(4):
        run.step(make_batch(i))
    assert len(traces) == 1
    assert run.compiled._cache_size() == 1


def test_the_state_is_donated_and_the_batch_is_not():
    run = Run()
    old, batch = run.state, run.layout.put_batch(make_batch(0))
    run.compiled(old, batch)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(old))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(batch))


def test_frozen_parameters_stay_bit_equal_without_slots():
    run = Run(make_method(frozen=("trunk/.*",)), ema_decay=0.9)
    before = run.host()
    reports = [run.step(make_batch(i)) for i in range(3)]
    after = run.host()
    assert_bit_equal(after.params["trunk"], before.params["trunk"])
    assert_bit_equal(after.ema["params"]["trunk"], before.params["trunk"])
    assert not np.array_equal(after.params["head"]["kernel"], before.params["head"]["kernel"])
    assert set(after.opt_state[1][0].mu) == {"norm", "head"}
    free = Run()
    assert reports[0].grad_norm < free.step(make_batch(0)).grad_norm  # the norm of what is trained alone


def test_dropout_and_augmentation_differ_from_step_to_step_and_repeat_from_the_seed():
    method = make_method(dropout=0.5, augment=noisy)
    first, second, other = Run(method), Run(method), Run(method, seed=1)
    same = [float(run.step(make_batch(0)).loss) for run in (first, second)]
    assert same[0] == same[1]
    assert float(other.step(make_batch(0)).loss) != same[0]
    still = Run(dataclasses.replace(method), learning_rate=1e-30, weight_decay=0.0)
    assert float(still.step(make_batch(0)).loss) != float(still.step(make_batch(0)).loss)


def test_a_batch_that_does_not_divide_is_named():
    run = Run(layout=make_layout(2, 2), accumulate=4)
    batch = make_batch(0, size=24)
    with pytest.raises(
        WscaError,
        match="24 examples does not divide over 4 devices x 4 microbatches; make it a multiple of 16",
    ):
        train_step(
            run.state,
            batch,
            method=run.method,
            optimizer=run.optimizer,
            layout=run.layout,
            seed=0,
            accumulate=4,
        )
