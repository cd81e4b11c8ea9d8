"""Rows made ready for counting: checked, in the source's order, attributes first."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from input_pipeline.schema import AttributeSchema
from wsca_jax.errors import DivergedError
from wsca_jax.metrics.measures import Entries
from wsca_jax.metrics.predictions import Predictions

BLOCK_ENTRIES = 2**22  # bounds the memory of one pass over attributes; changes no result


def check(predictions: Predictions, schema: AttributeSchema) -> None:
    rows, shape = len(predictions.index), (len(predictions.index), schema.num_attributes)
    for field, expected in (("logits", shape), ("labels", shape), ("known", shape), ("weight", (rows,))):
        found = getattr(predictions, field).shape
        if found != expected:
            raise ValueError(f"predictions.{field} has shape {found}, expected {expected} ({schema.name})")
    counted = predictions.index[predictions.weight > 0]
    if not counted.size:
        raise ValueError("no example was evaluated: every row is padding or skipped")
    index, times = np.unique(counted, return_counts=True)
    if (times > 1).any():
        raise ValueError(f"example {index[times > 1][0]} was evaluated {times.max()} times, expected once")
    broken = (~np.isfinite(predictions.logits) & predictions.known).any(1) & (predictions.weight > 0)
    if broken.any():
        raise DivergedError(
            f"the logits of {broken.sum()} of {counted.size} evaluated examples are not finite (first: "
            f"example {predictions.index[broken].min()}); the parameters have diverged: restore an earlier "
            "checkpoint or lower the learning rate"
        )


def in_source_order(predictions: Predictions) -> Predictions:
    """Rows that count, ordered by index; labels and logits 0 where not known."""
    rows = np.flatnonzero(predictions.weight > 0)
    rows = rows[np.argsort(predictions.index[rows])]
    known = predictions.known[rows]
    return Predictions(
        logits=np.where(known, predictions.logits[rows], np.float32(0)),
        labels=np.where(known, predictions.labels[rows], np.uint8(0)),
        known=known,
        weight=predictions.weight[rows],
        index=predictions.index[rows],
    )


def blocks(rows: Predictions) -> Iterator[Entries]:
    """Attributes a block at a time, as arrays [attributes, examples]."""
    num_rows, num_attributes = rows.logits.shape
    step = max(1, BLOCK_ENTRIES // num_rows)
    for start in range(0, num_attributes, step):
        block = slice(start, start + step)
        yield Entries(
            logits=np.ascontiguousarray(rows.logits[:, block].T),
            positive=np.ascontiguousarray(rows.labels[:, block].T > 0),
            weight=np.multiply(rows.known[:, block].T, rows.weight, dtype=np.float64, order="C"),
        )
