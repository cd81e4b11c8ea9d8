"""One compiled pass over examples, from which anything that the model knows can be read."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Generator
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from input_pipeline.batch import AttributeBatch
from wsca_jax import assembly
from wsca_jax.errors import WscaError
from wsca_jax.evaluate import Trained
from wsca_jax.methods.base import Variables
from wsca_jax.models.wsca import Outputs

Tree = Any  # of arrays, each with a row per example
Read = Callable[[Variables, Outputs, AttributeBatch], Tree]


def collect(trained: Trained, read: Read, *, examples: int | None = None) -> Tree:
    """Runs the model in evaluation over a split and keeps what `read` takes from it.

    The model and `read` are compiled together, once, for batches of one shape: what `read` does not return
    is not computed.

    Args:
      trained: from `load`.
      read: (variables, outputs, batch of uint8 images) -> any tree of arrays with a row per example; traced
        under `jit`.
      examples: how many of the split's first examples to read; None for all of them.

    Returns:
      The same tree of NumPy arrays; row i is the source's example i.

    Raises:
      WscaError: no example was asked for.
    """
    count = len(trained.source) if examples is None else min(examples, len(trained.source))
    if count < 1:
        raise WscaError(f"examples is {examples}; expected at least 1")
    layout, variables = trained.run.layout, trained.state.evaluation_variables
    compiled = jax.jit(
        lambda variables, batch: read(variables, forward(trained, variables, batch), batch),
        in_shardings=(layout.shardings(variables), layout.batch),
        out_shardings=layout.replicated,
    )
    config = _in_batches_for(trained, count)
    rows = config.evaluation.batch_size
    parts = []
    with contextlib.closing(_batches(trained, config)) as batches:
        for batch in itertools.islice(batches, -(-count // rows)):
            parts.append(jax.device_get(compiled(variables, layout.put_batch(batch))))
    return jax.tree.map(lambda *arrays: np.concatenate(arrays)[:count], *parts)


def forward(trained: Trained, variables: Variables, batch: AttributeBatch) -> Outputs:
    """What the model makes of a batch of uint8 images, without noise or augmentation; to be traced."""
    method, layout = trained.run.method, trained.run.layout
    variables = {**variables, "params": layout.gather(variables["params"])}
    prepared = method.augment(batch, None)
    step = jax.numpy.int32(trained.step)
    outputs, _ = method.forward(method.model, variables, None, prepared, step, False, {})
    return outputs


def _in_batches_for(trained: Trained, examples: int) -> ConfigDict:
    """The run's configuration, with no larger batches than a few examples need."""
    config, devices = trained.run.config.copy_and_resolve_references(), trained.run.layout.mesh.size
    config.evaluation.batch_size = min(config.evaluation.batch_size, -(-examples // devices) * devices)
    return config


def _batches(trained: Trained, config: ConfigDict) -> Generator[AttributeBatch]:
    return assembly.eval_batches(config, trained.run.text, trained.source)
