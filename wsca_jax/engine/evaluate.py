"""Evaluation: rows of predictions and exact sums of losses, the same for any batch size and device count."""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int32

from input_pipeline.batch import AttributeBatch
from wsca_jax.engine.sharding import Layout
from wsca_jax.errors import WscaError
from wsca_jax.methods.base import Method, Variables
from wsca_jax.metrics.predictions import Predictions, merge

Scalar = Float32[Array, ""]


@dataclasses.dataclass(frozen=True)
class LossSum:
    """A loss over many batches: `total / count` is its mean.

    Attributes:
      total: sum over entries, or over examples for a loss between the examples of a batch.
      count: the (weighted) number of entries or examples.
    """

    total: float
    count: float

    @property
    def mean(self) -> float:
        """The mean; 0 where nothing was counted."""
        return self.total / self.count if self.count else 0.0


class Evaluation(NamedTuple):
    """What `run` returns.

    Attributes:
      predictions: one row for each example; padding is gone, skipped examples keep their row at weight 0.
      losses: {term name: its sum and count}, before weights. Terms that count their entries are exact; those
        between the examples of a batch depend on how the examples fell into batches.
      gauges: {name: figure} of the method's gauges.
    """

    predictions: Predictions
    losses: dict[str, LossSum]
    gauges: dict[str, float]


class EvalReport(NamedTuple):
    """What `eval_step` returns, on the device and whole on every process."""

    rows: Predictions
    totals: dict[str, Scalar]
    counts: dict[str, Scalar]
    measured: Mapping[str, Array]


def eval_step(
    variables: Variables, batch: AttributeBatch, step: Int32[Array, ""], *, method: Method, layout: Layout
) -> EvalReport:
    """One batch through the model, without noise or augmentation. Nothing is donated.

    Args:
      variables: `TrainState.evaluation_variables`.
      batch: uint8 images; rows of weight 0 enter no loss.
      step: optimiser steps taken, for terms with a schedule.
      method: normalises, applies the model, names the loss terms.
      layout: where the arrays live.
    """
    variables = {**variables, "params": layout.gather(variables["params"])}
    prepared = method.augment(batch, None)
    outputs, _ = method.forward(method.model, variables, None, prepared, step, False, {})
    totals, counts = {}, {}
    for term in method.terms:
        count = batch.weight.sum() if term.count is None else term.count(prepared)
        counts[term.name] = jnp.asarray(count, jnp.float32)
        totals[term.name] = term.fn(outputs, prepared, step) * counts[term.name]
    logits = outputs.logits.astype(jnp.float32)
    measured = method.gauges.measure(outputs, prepared, step)
    return EvalReport(Predictions(logits, *batch[1:5]), totals, counts, measured)


CompiledEval = Callable[[Variables, AttributeBatch, Any], EvalReport]


def compile_eval_step(method: Method, layout: Layout, variables: Variables) -> jax.stages.Wrapped:
    """Jits `eval_step` for variables like these (arrays or their abstract shapes)."""
    return jax.jit(
        functools.partial(eval_step, method=method, layout=layout),
        in_shardings=(layout.shardings(variables), layout.batch, layout.replicated),
        out_shardings=layout.replicated,
    )


def run(
    compiled: CompiledEval,
    variables: Variables,
    batches: Iterable[AttributeBatch],
    *,
    method: Method,
    layout: Layout,
    step: Int32[Array, ""] | int,
) -> Evaluation:
    """Evaluates every batch.

    Args:
      compiled: from `compile_eval_step`; compiled once for all batches of one shape.
      variables: `TrainState.evaluation_variables`.
      batches: this process's rows of each global batch, all of one shape, padded with rows of index -1.
      method: the one that was compiled; its gauges are read.
      layout: where the arrays live.
      step: optimiser steps taken.

    Raises:
      WscaError: there are no batches, or they do not divide over the devices.
    """
    step = jax.device_put(np.int32(step), layout.replicated)
    parts, sums, measured = [], collections.defaultdict(list), []
    for report in _one_behind(compiled(variables, layout.put_batch(batch), step) for batch in batches):
        host = jax.device_get(report)
        parts.append(_without_padding(host.rows))
        measured.append(host.measured)
        for name in host.totals:
            sums[name].append((host.totals[name], host.counts[name]))
    if not parts:
        raise WscaError("nothing to evaluate: the split has no examples")
    whole = jax.tree.map(lambda *values: np.sum(np.stack(values), axis=0), *measured)
    gauges = {name: float(value) for name, value in method.gauges.summarise(whole).items()}
    return Evaluation(merge(parts), {name: _sum(values) for name, values in sums.items()}, gauges)


def _one_behind(reports: Iterable[EvalReport]) -> Iterable[EvalReport]:
    """Holds one report back, so that the device works on the next batch while the last is fetched."""
    held: EvalReport | None = None
    for report in reports:
        if held is not None:
            yield held
        held = report
    if held is not None:
        yield held


def _without_padding(rows: Predictions) -> Predictions:
    real = rows.index >= 0
    return Predictions(*(column[real] for column in rows))


def _sum(values: list[tuple[Any, Any]]) -> LossSum:
    totals, counts = np.asarray(values, np.float64).sum(axis=0)
    return LossSum(float(totals), float(counts))
