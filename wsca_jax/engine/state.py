"""The whole moment of a training run, and the random keys derived from it."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int32

from input_pipeline.batch import AttributeBatch
from wsca_jax.engine.optimizer import Optimizer
from wsca_jax.engine.sharding import Layout
from wsca_jax.losses import balancing
from wsca_jax.methods.base import Method, Variables


@flax.struct.dataclass
class TrainState:
    """All that a step reads and writes; saved and restored as one.

    Attributes:
      step: int32, batches consumed. Also the position in the data: the next batch is number `step`.
      params: float32 parameters, trained and frozen.
      batch_stats: float32 running statistics; {} where the model keeps none.
      opt_state: optimiser slots of the trained parameters.
      loss_state: what the balancing of loss weights remembers; {} where it needs no memory.
      ema: {"params", "batch_stats"} averaged over steps, or None.
      skipped: int32, steps whose loss or gradients were not finite. Each left everything else as it was.
      skipped_in_a_row: int32, how many of them came last.
    """

    step: Int32[Array, ""]
    params: Any
    batch_stats: Any
    opt_state: Any
    loss_state: Any
    ema: Mapping[str, Any] | None
    skipped: Int32[Array, ""]
    skipped_in_a_row: Int32[Array, ""]

    @property
    def updates(self) -> Int32[Array, ""]:
        """Optimiser steps taken: what schedules count."""
        return self.step - self.skipped

    @property
    def variables(self) -> Variables:
        """What the model is applied to in training."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def evaluation_variables(self) -> Variables:
        """What the model is applied to in evaluation: the averages, where there are any."""
        return self.variables if self.ema is None else self.ema


def rng(seed: int, name: str, step: Int32[Array, ""] | int) -> jax.Array:
    """The key of stream `name` at `step`; the same in every process and after every restart.

    Args:
      seed: the run's seed.
      name: what is drawn ("augment", "dropout", ...). Different names give independent streams.
      step: position in the data; may be traced.
    """
    stream = jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))
    return jax.random.fold_in(stream, step)


def create(
    method: Method, optimizer: Optimizer, batch: AttributeBatch, *, seed: int, layout: Layout
) -> TrainState:
    """Initialises the state on the layout's devices, each array where it will live.

    Args:
      method: its model is initialised from `seed`.
      optimizer: gives the slots, and decides what is frozen.
      batch: any batch of the run; only its shapes and dtypes matter.
      seed: the run's seed.
      layout: the same seed gives the same parameters on every layout.

    Raises:
      WscaError: a pattern of frozen or undecayed parameters matches nothing.
    """
    shardings = layout.shardings(_shapes(method, optimizer, batch, seed))
    # It runs once: on the CPU, optimising hundreds of little random number generators would take longest.
    cpu = layout.mesh.devices.flat[0].platform == "cpu"
    options = {"xla_backend_optimization_level": 1} if cpu else None
    initial = jax.jit(
        lambda: _initial(method, optimizer, batch, seed), out_shardings=shardings, compiler_options=options
    )
    return initial()


def abstract(
    method: Method, optimizer: Optimizer, batch: AttributeBatch, *, seed: int, layout: Layout
) -> TrainState:
    """The shapes, dtypes and shardings of `create`'s result, uncomputed: a target to restore into."""
    return layout.abstract(_shapes(method, optimizer, batch, seed))


def with_variables(state: TrainState, variables: Variables, layout: Layout) -> TrainState:
    """Puts other parameters and batch statistics into a fresh state, and into its average.

    Args:
      state: as `create` returns it.
      variables: {"params", "batch_stats"} on the host or any device, of the state's shapes.
      layout: where the arrays live.

    Raises:
      ValueError: the structure, a shape or a dtype is not the state's.
    """
    chosen = {name: variables[name] for name in ("params", "batch_stats")}
    jax.tree.map_with_path(_check_same, dict(state.variables), chosen)

    def place() -> dict[str, Any]:  # copies: a buffer that stands in two places cannot be donated
        return jax.tree.map(lambda x: jax.device_put(x.copy(), layout.sharding(x.shape)), chosen)

    return dataclasses.replace(state, **place(), ema=None if state.ema is None else place())


def _check_same(path: Any, expected: Any, found: Any) -> None:
    if (found.shape, found.dtype) != (expected.shape, expected.dtype):
        raise ValueError(
            f"{jax.tree_util.keystr(path, simple=True, separator='/')} is {found.dtype}{list(found.shape)}, "
            f"expected {expected.dtype}{list(expected.shape)}"
        )


def _shapes(method: Method, optimizer: Optimizer, batch: AttributeBatch, seed: int) -> TrainState:
    return jax.eval_shape(lambda: _initial(method, optimizer, batch, seed))


def _initial(method: Method, optimizer: Optimizer, batch: AttributeBatch, seed: int) -> TrainState:
    # Only shapes of the batch reach the initialisers; zeros keep its content out of the program.
    empty = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), batch)
    variables = method.init(rng(seed, "init", 0), empty)
    params, batch_stats = variables["params"], variables.get("batch_stats", {})
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=optimizer.init(params),
        loss_state=balancing.init(method.balancing, [term.name for term in method.terms]),
        ema={"params": params, "batch_stats": batch_stats} if optimizer.options.ema_decay else None,
        skipped=jnp.zeros((), jnp.int32),
        skipped_in_a_row=jnp.zeros((), jnp.int32),
    )
