"""States of a tiny run as if it had taken so many steps."""

import dataclasses

import jax
import numpy as np


def at_step(run, step):
    state = jax.tree.map(lambda x: x + step if x.ndim else x, run.state)
    return dataclasses.replace(state, step=jax.device_put(np.int32(step), run.layout.replicated))
