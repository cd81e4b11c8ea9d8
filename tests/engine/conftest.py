"""A tiny run, and a workdir that holds three of its checkpoints."""

import shutil

import jax
import numpy as np
import pytest
from saved_states import at_step
from tiny_method import Run, make_batch, make_layout

from wsca_jax.engine.checkpoint import Checkpoints


@pytest.fixture(scope="module")
def run():
    run = Run(layout=make_layout(2, 4), ema_decay=0.9)
    run.step(make_batch(0))
    return run


@pytest.fixture(scope="module")
def saved(run, tmp_path_factory):
    """A workdir with steps 10, 20 and 30, all different, and what was in them."""
    workdir = tmp_path_factory.mktemp("saved")
    states = {step: at_step(run, step) for step in (10, 20, 30)}
    with Checkpoints(workdir, keep_latest=3) as checkpoints:
        for step, state in states.items():
            checkpoints.save(state, {"mAP": 1 / step})
    return workdir, jax.tree.map(np.asarray, states)


@pytest.fixture
def workdir(saved, tmp_path):
    shutil.copytree(saved[0], tmp_path / "run")
    return tmp_path / "run"
