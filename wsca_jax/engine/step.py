"""The training step: pure, traced once, the same for every method and any number of devices."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float32, Int32

from input_pipeline.batch import AttributeBatch
from wsca_jax.engine.optimizer import Optimizer, merge
from wsca_jax.engine.sharding import Layout
from wsca_jax.engine.state import TrainState, rng
from wsca_jax.losses import composite
from wsca_jax.methods.base import Method

Tree = Any
Scalar = Float32[Array, ""]


class StepReport(NamedTuple):
    """What one step did. Scalars on the device: reading one waits for the step.

    Attributes:
      loss: what was trained: the weighted sum of the terms, and any penalty of balancing them.
      terms: {term name: raw mean}.
      weights: {term name: its factor in the loss, in this step}.
      gauges: {name: figure} of the method's gauges.
      grad_norm: global norm of the trained parameters' gradients, before clipping.
      learning_rate: of this step.
      finite: whether the step was taken; otherwise the state was left as it was.
      examples: sum of the batch's weights.
      skipped: steps not taken, since the run began.
      skipped_in_a_row: how many of them came last, this one included.
    """

    loss: Scalar
    terms: Mapping[str, Scalar]
    weights: Mapping[str, Scalar]
    gauges: Mapping[str, Scalar]
    grad_norm: Scalar
    learning_rate: Scalar
    finite: Bool[Array, ""]
    examples: Scalar
    skipped: Int32[Array, ""]
    skipped_in_a_row: Int32[Array, ""]


class _Pass(NamedTuple):
    """Forward and backward through a batch or a microbatch."""

    gradients: Tree
    combined: composite.Combined
    measured: Mapping[str, Array]
    batch_stats: Tree


def train_step(
    state: TrainState,
    batch: AttributeBatch,
    *,
    method: Method,
    optimizer: Optimizer,
    layout: Layout,
    seed: int,
    accumulate: int = 1,
) -> tuple[TrainState, StepReport]:
    """Takes one optimiser step on a global batch.

    Compiled by `compile_train_step`, which donates `state`: its buffers become the result's, and the
    caller must not read it again. The batch is not donated.

    Where the loss, a gradient or a new batch statistic is not finite, everything but the counters is
    returned as it came in.

    Args:
      state: the whole moment.
      batch: B examples, uint8 images. Rows of weight 0 touch nothing, as far as the method's model, its
        augmentation and its terms honour the weight.
      method: augments, applies the model, names the loss terms.
      optimizer: the trained parameters, the update, the average.
      layout: where the arrays live.
      seed: of the run; every key is derived from (seed, name, state.step).
      accumulate: microbatches per step. Terms that count their entries give the large batch's loss and
        gradients; the others are averaged over microbatches. Running statistics advance once for each
        microbatch; all else, loss weights included, once for each step.

    Returns:
      (the next state, report).
    """
    layout.check_batch_size(len(batch.weight), accumulate)
    passed = _differentiate(state, batch, method, optimizer, layout, seed, accumulate)
    grad_norm = optax.tree.norm(passed.gradients)
    finite = _all_finite((passed.combined.total, grad_norm, passed.batch_stats))
    new = _advance_where(finite, state, passed, optimizer)
    new = dataclasses.replace(
        new,
        step=state.step + 1,
        skipped=state.skipped + jnp.where(finite, 0, 1),
        skipped_in_a_row=jnp.where(finite, 0, state.skipped_in_a_row + 1),
    )
    report = StepReport(
        loss=passed.combined.total,
        terms=passed.combined.terms,
        weights=passed.combined.weights,
        gauges=method.gauges.summarise(passed.measured),
        grad_norm=grad_norm,
        learning_rate=jnp.asarray(optimizer.schedule(state.updates), jnp.float32),
        finite=finite,
        examples=batch.weight.sum(),
        skipped=new.skipped,
        skipped_in_a_row=new.skipped_in_a_row,
    )
    return new, report


def compile_train_step(
    method: Method, optimizer: Optimizer, layout: Layout, state: TrainState, *, seed: int, accumulate: int = 1
) -> jax.stages.Wrapped:
    """Jits `train_step` for states like `state` (arrays or their abstract shapes), which it donates."""
    shardings = layout.shardings(state)
    step = functools.partial(
        train_step, method=method, optimizer=optimizer, layout=layout, seed=seed, accumulate=accumulate
    )
    return jax.jit(
        step,
        donate_argnums=0,
        in_shardings=(shardings, layout.batch),
        out_shardings=(shardings, layout.replicated),
    )


def _advance_where(
    finite: Bool[Array, ""], state: TrainState, passed: _Pass, optimizer: Optimizer
) -> TrainState:
    """The advanced state, or `state` itself where something is not finite.

    A branch saves the CPU a third of the traffic over parameters and moments. On a GPU it would make the
    host wait for `finite`, so there both are computed and one is chosen.
    """

    def branch(finite: Array) -> TrainState:
        return jax.lax.cond(finite, lambda: _advance(state, passed, optimizer), lambda: state)

    def select(finite: Array) -> TrainState:
        new = _advance(state, passed, optimizer)
        return jax.tree.map(lambda now, before: jnp.where(finite, now, before), new, state)

    return jax.lax.platform_dependent(finite, cpu=branch, default=select)


def _advance(state: TrainState, passed: _Pass, optimizer: Optimizer) -> TrainState:
    params, opt_state = optimizer.update(passed.gradients, state.opt_state, state.params)
    new = dataclasses.replace(
        state,
        params=params,
        batch_stats=passed.batch_stats,
        opt_state=opt_state,
        loss_state=passed.combined.loss_state,
    )
    if state.ema is None:
        return new
    return dataclasses.replace(new, ema=optimizer.average(state.ema, dict(new.variables), state.updates))


def _differentiate(
    state: TrainState,
    batch: AttributeBatch,
    method: Method,
    optimizer: Optimizer,
    layout: Layout,
    seed: int,
    accumulate: int,
) -> _Pass:
    """Loss and gradients of a global batch: whole, or microbatch by microbatch."""
    keys = {name: rng(seed, name, state.step) for name in ("augment", *method.rng_names)}
    if accumulate == 1:
        return _pass(state, batch, method, optimizer, layout, keys)
    microbatches = _microbatches(batch, accumulate, layout)
    shares = composite.microbatch_shares(method.terms, microbatches)

    def body(carry: tuple[Tree, Tree], xs: Any) -> tuple[tuple[Tree, Tree], tuple[composite.Combined, Any]]:
        gradients, batch_stats = carry
        number, part, share = xs
        rngs = {name: jax.random.fold_in(key, number) for name, key in keys.items()}
        here = dataclasses.replace(state, batch_stats=batch_stats)
        passed = _pass(here, part, method, optimizer, layout, rngs, share)
        carry = (jax.tree.map(jnp.add, gradients, passed.gradients), passed.batch_stats)
        return carry, (passed.combined, passed.measured)

    trained, _ = optimizer.split(state.params)
    start = (layout.scatter(jax.tree.map(jnp.zeros_like, trained)), state.batch_stats)
    xs = (jnp.arange(accumulate), microbatches, shares)
    (gradients, batch_stats), (parts, measured) = jax.lax.scan(body, start, xs)
    combined = composite.whole(parts, state.loss_state, method.balancing)
    return _Pass(gradients, combined, jax.tree.map(lambda x: x.sum(0), measured), batch_stats)


def _pass(
    state: TrainState,
    batch: AttributeBatch,
    method: Method,
    optimizer: Optimizer,
    layout: Layout,
    rngs: Mapping[str, jax.Array],
    shares: Mapping[str, Scalar] | None = None,
) -> _Pass:
    trained, frozen = optimizer.split(state.params)
    batch = method.augment(batch, rngs["augment"])
    model_rngs = {name: rngs[name] for name in method.rng_names}

    def loss(trained: Tree) -> tuple[Scalar, tuple[composite.Combined, Mapping[str, Array], Tree]]:
        params = layout.gather(merge(trained, frozen))
        variables = {"params": params, "batch_stats": state.batch_stats}
        outputs, batch_stats = method.forward(
            method.model, variables, state.ema, batch, state.updates, True, model_rngs
        )
        combined = composite.combine(
            method.terms, state.loss_state, outputs, batch, state.updates, shares, method.balancing
        )
        measured = method.gauges.measure(outputs, batch, state.updates)
        return combined.total, (combined, measured, batch_stats)

    gradients, (combined, measured, batch_stats) = jax.grad(loss, has_aux=True)(trained)
    return _Pass(layout.scatter(gradients), combined, measured, batch_stats)


def _microbatches(batch: AttributeBatch, count: int, layout: Layout) -> AttributeBatch:
    """Splits [B, ...] into [count, B / count, ...]: microbatch i takes rows i, i + count, ...

    Strided, so that every device finds its share of each microbatch among the rows it already holds.
    """

    def split(rows: Array) -> Array:
        strided = rows.reshape(-1, count, *rows.shape[1:]).swapaxes(0, 1)
        return jax.lax.with_sharding_constraint(strided, layout.microbatches)

    return jax.tree.map(split, batch)


def _all_finite(tree: Tree) -> Bool[Array, ""]:
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()
