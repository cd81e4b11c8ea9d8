"""What a training step holds in memory, from shapes alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr, Literal

from input_pipeline.batch import AttributeBatch
from wsca_jax.engine.optimizer import Optimizer, merge
from wsca_jax.engine.sharding import Layout
from wsca_jax.engine.state import TrainState
from wsca_jax.losses import composite
from wsca_jax.methods.base import Method

Tree = Any


def per_device(
    method: Method,
    optimizer: Optimizer,
    state: TrainState,
    batch: AttributeBatch,
    layout: Layout,
    accumulate: int = 1,
) -> dict[str, int]:
    """Bytes on each device in a training step, by what they are for.

    Parameters, optimiser state, averages, gradients and batch are exact. Activations are what the backward
    pass asks for, before the compiler fuses, recomputes or overlaps any of it; temporary buffers are not in.

    Args:
      method, optimizer: of the run.
      state: its abstract state (`wsca_jax.engine.state.abstract`).
      batch: shapes and dtypes of the global batch.
      layout: how many devices there are and what lies where; its mesh may be abstract.
      accumulate: microbatches per step; one at a time is held.
    """
    trained, _ = optimizer.split(state.params)
    microbatch = rows(batch, len(batch.weight) // (layout.mesh.size * accumulate))
    found = {
        "parameters": held_bytes(state.params, layout),
        "batch statistics": held_bytes(state.batch_stats, layout),
        "optimiser state": held_bytes(state.opt_state, layout),
        "average (EMA)": held_bytes(state.ema, layout),
        "gradients": held_bytes(trained, layout),
        "gathered parameters": _gathered_bytes(state.params, layout),
        "batch": tree_bytes(rows(batch, len(batch.weight) // layout.mesh.size)),
        "activations": activation_bytes(method, optimizer, state, microbatch),
    }
    if accumulate > 1:
        found["gradients of a microbatch"] = held_bytes(trained, layout)
    return found


def compiled_bytes(step: jax.stages.Compiled) -> int:
    """The most that each device holds while a compiled step runs, as the compiler planned it.

    Arguments, results that take no argument's place, and temporary buffers at their peak.
    """
    found: Any = step.memory_analysis()
    arguments, results = found.argument_size_in_bytes, found.output_size_in_bytes
    return arguments + results - found.alias_size_in_bytes + found.temp_size_in_bytes


def tree_bytes(tree: Tree) -> int:
    """Bytes of all arrays of a tree, whole."""
    return sum(array_bytes(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree))


def array_bytes(shape: tuple[int, ...], dtype: Any) -> int:
    return math.prod(shape) * jnp.dtype(dtype).itemsize


def held_bytes(tree: Tree, layout: Layout) -> int:
    """Bytes that each device holds of a tree's arrays, as the layout spreads them."""
    return sum(
        array_bytes(layout.sharding(leaf.shape).shard_shape(leaf.shape), leaf.dtype)
        for leaf in jax.tree.leaves(tree)
    )


def _gathered_bytes(params: Tree, layout: Layout) -> int:
    """Whole copies, for the length of the step, of the parameters that are spread over devices."""
    spread = [
        leaf
        for leaf in jax.tree.leaves(params)
        if layout.sharding(leaf.shape).shard_shape(leaf.shape) != leaf.shape
    ]
    return tree_bytes(spread)


def rows(batch: AttributeBatch, count: int) -> AttributeBatch:
    """The abstract batch with this many examples."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((count, *x.shape[1:]), x.dtype), batch)


def activation_bytes(method: Method, optimizer: Optimizer, state: TrainState, batch: AttributeBatch) -> int:
    """Bytes that the forward pass of a training step keeps for the backward pass.

    Every array counts once. Parameters and the batch do not, for they are held anyway, nor do constants,
    such as the zeros that a ReLU's derivative is made of.
    """
    trained, frozen = optimizer.split(state.params)

    def residuals(trained: Tree, inputs: Mapping[str, Any]) -> list[jax.Array]:
        def loss(trained: Tree) -> jax.Array:
            return _loss(method, merge(trained, inputs["frozen"]), inputs)

        return jax.tree.leaves(jax.vjp(loss, trained)[1])

    inputs = {
        "frozen": frozen,
        "batch_stats": state.batch_stats,
        "ema": state.ema,
        "loss_state": state.loss_state,
        "batch": batch,
        "key": jax.eval_shape(lambda: jax.random.key(0)),
    }
    jaxpr = jax.make_jaxpr(residuals)(trained, inputs).jaxpr
    kept = _computed(jaxpr) & {v for v in jaxpr.outvars if not isinstance(v, Literal)}
    return sum(array_bytes(v.aval.shape, v.aval.dtype) for v in kept)


def _computed(jaxpr: Jaxpr) -> set[Any]:
    """The variables that a program computes from its inputs, and not from constants alone."""
    inputs, computed = set(jaxpr.invars), set[Any]()
    for eqn in jaxpr.eqns:
        if any(not isinstance(v, Literal) and (v in inputs or v in computed) for v in eqn.invars):
            computed.update(eqn.outvars)
    return computed


def _loss(method: Method, params: Tree, inputs: Mapping[str, Any]) -> jax.Array:
    """The training loss of one batch, as a step computes it."""
    step = jnp.zeros((), jnp.int32)
    batch = method.augment(inputs["batch"], inputs["key"])
    variables = {"params": params, "batch_stats": inputs["batch_stats"]}
    rngs = dict.fromkeys(method.rng_names, inputs["key"])
    outputs, _ = method.forward(method.model, variables, inputs["ema"], batch, step, True, rngs)
    return composite.combine(
        method.terms, inputs["loss_state"], outputs, batch, step, balancing=method.balancing
    ).total
