"""Evaluation: bit-equal twice, the same for any batch size and layout, padding gone, sums exact."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_method import CLASSIFICATION, Run, assert_bit_equal, make_batch, make_layout, make_method, normalise

from input_pipeline.batch import AttributeBatch
from wsca_jax.engine import evaluate
from wsca_jax.errors import WscaError
from wsca_jax.losses.composite import Term

SPREAD = Term("graph", lambda outputs, batch, step: jnp.abs(outputs.logits).mean() + step, weight=0.5)


def batches(size, examples=40):
    """The same examples in batches of `size`, the last one padded."""
    whole = make_batch(0, size=examples)
    padding = -examples % size
    fill = AttributeBatch(*(None if x is None else np.zeros((padding, *x.shape[1:]), x.dtype) for x in whole))
    fill = fill._replace(index=np.full(padding, -1, np.int32))
    padded = jax.tree.map(lambda a, b: np.concatenate([a, b]), whole, fill)
    for start in range(0, examples, size):
        yield jax.tree.map(lambda x, start=start: x[start : start + size], padded)


def evaluated(run, size, step=0):
    variables = run.state.evaluation_variables
    compiled = evaluate.compile_eval_step(run.method, run.layout, variables)
    return evaluate.run(compiled, variables, batches(size), method=run.method, layout=run.layout, step=step)


@pytest.fixture(scope="module")
def run():
    run = Run(make_method(dropout=0.5), ema_decay=0.5)
    for number in range(3):
        run.step(make_batch(number))
    return run


def test_against_numpy(run):
    """Logits and loss of the averaged variables, worked out outside JAX."""
    variables = jax.tree.map(np.asarray, run.state.ema)
    params, statistics = variables["params"], variables["batch_stats"]["norm"]
    whole = make_batch(0, size=40)
    hidden = (whole.image / np.float32(255)).reshape(40, -1) @ params["trunk"]["kernel"]
    hidden = (hidden - statistics["mean"]) / np.sqrt(statistics["var"] + 1e-5)
    hidden = np.maximum(hidden * params["norm"]["scale"] + params["norm"]["bias"], 0)
    logits = hidden @ params["head"]["kernel"] + params["head"]["bias"]
    entries = whole.known * whole.weight[:, None]
    wrong = np.log1p(np.exp(np.where(whole.labels == 1, -logits, logits))) * entries

    found = evaluated(run, size=16)
    rows = found.predictions
    np.testing.assert_allclose(rows.logits, logits, rtol=1e-4, atol=1e-5)
    for field in ("labels", "known", "weight", "index"):
        np.testing.assert_array_equal(getattr(rows, field), getattr(whole, field))
        assert getattr(rows, field).dtype == getattr(whole, field).dtype
    assert rows.logits.dtype == np.float32
    loss = found.losses["classification"]
    assert loss.count == pytest.approx(entries.sum())
    assert loss.total == pytest.approx(wrong.sum(), rel=1e-5)
    assert loss.mean == pytest.approx(wrong.sum() / entries.sum(), rel=1e-5)


def test_two_evaluations_are_bit_equal(run):
    one, other = evaluated(run, size=16), evaluated(run, size=16)
    assert_bit_equal(one.predictions, other.predictions)
    assert one.losses == other.losses


@pytest.mark.parametrize("size", [8, 40, 64])
def test_the_batch_size_does_not_matter(run, size):
    expected, found = evaluated(run, size=16), evaluated(run, size=size)
    np.testing.assert_allclose(found.predictions.logits, expected.predictions.logits, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found.predictions.index, np.arange(40))
    one, other = found.losses["classification"], expected.losses["classification"]
    assert (one.total, one.count) == pytest.approx((other.total, other.count), rel=1e-6)


@pytest.mark.parametrize(("data", "fsdp"), [(8, 1), (2, 4)])
def test_the_layout_does_not_matter(run, data, fsdp):
    other = Run(make_method(dropout=0.5), make_layout(data, fsdp), ema_decay=0.5)
    other.state = jax.device_put(run.host(), other.layout.shardings(run.state))
    expected, found = evaluated(run, size=16), evaluated(other, size=16)
    np.testing.assert_allclose(found.predictions.logits, expected.predictions.logits, rtol=1e-5, atol=1e-6)
    assert found.losses["classification"].total == pytest.approx(
        expected.losses["classification"].total, rel=1e-6
    )


def test_without_an_average_the_parameters_themselves_are_used():
    run = Run()
    run.step(make_batch(0))
    assert dict(run.state.evaluation_variables) == dict(run.state.variables)
    before = evaluated(run, size=8).predictions.logits
    run.step(make_batch(1))
    assert not np.array_equal(evaluated(run, size=8).predictions.logits, before)


def test_a_skipped_example_keeps_its_row_and_enters_no_loss(run):
    rows = evaluated(run, size=16).predictions
    skipped = np.flatnonzero(rows.weight == 0)
    assert skipped.tolist() == [13]  # make_batch skips one

    def changed():
        for batch in batches(16):
            gone = (batch.weight == 0)[:, None, None, None]
            yield batch._replace(image=np.where(gone, 255, batch.image).astype(np.uint8))

    compiled = evaluate.compile_eval_step(run.method, run.layout, run.state.ema)
    other = evaluate.run(compiled, run.state.ema, changed(), method=run.method, layout=run.layout, step=0)
    assert other.losses == evaluated(run, size=16).losses
    assert not np.array_equal(other.predictions.logits[13], rows.logits[13])


def test_losses_between_examples_are_weighed_by_examples():
    run = Run(make_method(terms=(CLASSIFICATION, SPREAD)))
    found = evaluated(run, size=40, step=3)
    spread = found.losses["graph"]
    assert spread.count == make_batch(0, size=40).weight.sum()
    assert spread.mean == pytest.approx(np.abs(found.predictions.logits).mean() + 3, rel=1e-5)


def test_one_trace_for_all_batches():
    traces = []

    def counted(batch, key):
        traces.append(key)
        return normalise(batch, key)

    run = Run(make_method(augment=counted), make_layout(2, 2))
    compiled = evaluate.compile_eval_step(run.method, run.layout, run.state.variables)
    traces.clear()
    for step in (0, 5):
        evaluate.run(
            compiled, run.state.variables, batches(16), method=run.method, layout=run.layout, step=step
        )
    assert traces == [None]  # and no key: nothing is augmented


def test_logits_are_float32_whatever_the_model_computes_in():
    def halved(model, variables, teacher, batch, step, train, rngs):
        outputs, statistics = method.forward(model, variables, teacher, batch, step, train, rngs)
        return dataclasses.replace(outputs, logits=outputs.logits.astype(jnp.bfloat16)), statistics

    method = make_method()
    rows = evaluated(Run(dataclasses.replace(method, forward=halved)), size=8).predictions
    assert rows.logits.dtype == np.float32


def test_nothing_to_evaluate(run):
    compiled = evaluate.compile_eval_step(run.method, run.layout, run.state.ema)
    with pytest.raises(WscaError, match="the split has no examples"):
        evaluate.run(compiled, run.state.ema, [], method=run.method, layout=run.layout, step=0)
