"""A run with every module, from a checkpoint on: bit for bit the run that was not interrupted."""

import jax
import numpy as np
import pytest
from methods.tiny_model import build, make_batch, make_state
from tiny_method import assert_bit_equal

from wsca_jax.engine import state as states
from wsca_jax.engine.checkpoint import Checkpoints
from wsca_jax.engine.step import compile_train_step


@pytest.mark.slow
def test_a_resumed_run_of_the_whole_model_equals_the_uninterrupted_one(tmp_path):
    """Trend, average, routing noise and pseudo labels, which warm up before and are accepted after it."""
    trend = ("kind=trend", "fast=0.1", "slow=0.5")
    method = build(*(f"--config.loss.balancing.{setting}" for setting in trend), captions="source")
    batches = [make_batch(method, length=32, seed=number) for number in range(5)]
    state, optimizer, layout = make_state(method, batches[0], learning_rate=1e-2)
    step = compile_train_step(method, optimizer, layout, state, seed=0)

    def train(state, numbers):
        reports = []
        for number in numbers:
            state, report = step(state, batches[number])
            reports.append(jax.device_get(report))
        return state, reports

    state, _ = train(state, range(3))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state)
    whole, expected = train(state, (3, 4))
    target = states.abstract(method, optimizer, batches[0], seed=0, layout=layout)
    with Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore_latest(target)
    assert restored.step == int(restored.state.step) == 3
    resumed, found = train(restored.state, (3, 4))
    assert_bit_equal(found, expected)
    assert_bit_equal(resumed, whole)
    assert int(resumed.step) == 5
    assert all(report.gauges["pseudo_accepted"] > 0 for report in found)
    own = {term.name: np.float32(term.weight) for term in method.terms}
    assert {name for name, weight in found[-1].weights.items() if weight == own[name]} == {"classification"}
