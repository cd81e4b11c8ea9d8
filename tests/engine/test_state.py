"""The state: random keys that never change, the same beginning on every layout."""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_method import Run, assert_bit_equal, make_batch, make_layout, make_method

from wsca_jax.engine import state
from wsca_jax.engine.optimizer import OptimizerOptions, make_optimizer
from wsca_jax.engine.state import rng, with_variables


def bits(key):
    return np.asarray(jax.random.key_data(key)).tolist()


def test_keys_are_the_same_in_every_process():
    program = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).resolve().parents[2])!r})\n"
        "import jax; from wsca_jax.engine.state import rng\n"
        "print(jax.random.key_data(rng(7, 'augment', 12345)).tolist())"
    )
    other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == str(bits(rng(7, "augment", 12345)))
    # Written down: a run that is resumed years later draws what it would have drawn.
    assert bits(rng(7, "augment", 12345)) == [3245195892, 3233231558]


def test_keys_differ_by_seed_name_and_step():
    keys = [rng(seed, name, step) for seed in (0, 1) for name in ("augment", "dropout") for step in (0, 1, 2)]
    assert len({tuple(bits(key)) for key in keys}) == 12


def test_a_traced_step_gives_the_same_key():
    traced = jax.jit(lambda step: jax.random.key_data(rng(3, "dropout", step)))(jnp.int32(9))
    assert np.asarray(traced).tolist() == bits(rng(3, "dropout", 9))


def test_every_layout_begins_alike():
    one = Run(ema_decay=0.9)
    for data, fsdp in ((8, 1), (2, 4)):
        other = Run(layout=make_layout(data, fsdp), ema_decay=0.9)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), other.host(), one.host())
    assert not np.array_equal(Run(seed=1).state.params["head"]["kernel"], one.state.params["head"]["kernel"])


def test_a_fresh_state():
    run = Run(layout=make_layout(2, 4), ema_decay=0.9)
    fresh = run.state
    assert (int(fresh.step), int(fresh.skipped), int(fresh.skipped_in_a_row), int(fresh.updates)) == (
        0,
        0,
        0,
        0,
    )
    assert fresh.step.dtype == np.int32
    assert_bit_equal(fresh.ema, dict(fresh.variables))
    assert all(x.dtype == np.float32 for x in jax.tree.leaves((fresh.params, fresh.batch_stats, fresh.ema)))


def test_the_abstract_state_is_the_state():
    run = Run(layout=make_layout(2, 4), ema_decay=0.9)
    assert jax.tree.structure(run.abstract) == jax.tree.structure(run.state)
    jax.tree.map(
        lambda spec, x: np.testing.assert_equal(
            (spec.shape, spec.dtype, spec.sharding), (x.shape, x.dtype, x.sharding)
        ),
        run.abstract,
        run.state,
    )


def test_shapes_of_a_batch_are_enough():
    method, layout = make_method(), make_layout()
    optimizer = make_optimizer(OptimizerOptions(), 10)
    spec = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), make_batch())
    created = state.create(method, optimizer, spec, seed=0, layout=layout)
    assert_bit_equal(created.params, Run().state.params)


def test_other_variables_can_begin_a_run():
    run = Run(layout=make_layout(2, 4), ema_decay=0.9)
    on_devices = jax.tree.map(lambda x: x + 1, dict(run.state.variables))
    loaded = jax.tree.map(np.asarray, on_devices)
    run.state = with_variables(run.state, on_devices, run.layout)
    assert_bit_equal(dict(run.state.variables), loaded)
    assert_bit_equal(run.state.ema, loaded)
    assert run.step(make_batch(0)).finite  # donates every buffer
    wrong = loaded | {"batch_stats": jax.tree.map(lambda x: x[:-1], loaded["batch_stats"])}
    with pytest.raises(ValueError, match=r"batch_stats/norm/mean is float32\[15\], expected float32\[16\]"):
        with_variables(run.state, wrong, run.layout)
