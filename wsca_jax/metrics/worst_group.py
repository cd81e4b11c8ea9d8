"""The worst group: where an attribute meets what it should not depend on."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float64, Int

from input_pipeline.schema import AttributeSchema
from wsca_jax.metrics import measures
from wsca_jax.metrics.measures import ratio
from wsca_jax.metrics.predictions import Predictions
from wsca_jax.metrics.results import WorstGroup
from wsca_jax.metrics.rows import blocks


def find_worst_group(
    rows: Predictions,
    schema: AttributeSchema,
    factors: Mapping[str, Int[np.ndarray, "N"]],
    min_examples: int,
) -> WorstGroup | None:
    """The worst cell over all factors; of equal ones the first in order of factor and attribute."""
    cells = [
        cell
        for name, values in factors.items()
        if (cell := _worst_cell(rows, schema, name, np.asarray(values), min_examples)) is not None
    ]
    return min(cells, key=lambda cell: cell.accuracy, default=None)


def _worst_cell(
    rows: Predictions, schema: AttributeSchema, factor: str, values: np.ndarray, min_examples: int
) -> WorstGroup | None:
    if rows.index[-1] >= len(values):
        raise ValueError(
            f"factor {factor!r} has {len(values)} values, but example {rows.index[-1]} was evaluated; "
            "expected one value for each example of the source"
        )
    factor_values, codes = np.unique(values[rows.index], return_inverse=True)
    counts, accuracy = _cell_accuracy(rows, codes, len(factor_values))
    eligible = np.where((counts >= min_examples) & ~np.isnan(accuracy), accuracy, np.inf)
    if np.isinf(eligible).all():
        return None
    attribute, cell = np.unravel_index(np.argmin(eligible), eligible.shape)
    present, value = divmod(int(cell), len(factor_values))
    return WorstGroup(
        attribute=schema.attributes[attribute],
        present=bool(present),
        factor=factor,
        factor_value=int(factor_values[value]),
        accuracy=float(accuracy[attribute, cell]),
        examples=int(counts[attribute, cell]),
    )


def _cell_accuracy(
    rows: Predictions, codes: Int[np.ndarray, "M"], num_codes: int
) -> tuple[Float64[np.ndarray, "A cells"], Float64[np.ndarray, "A cells"]]:
    """Examples and accuracy of each cell; cell = label * num_codes + factor code."""
    counts, accuracy = [], []
    for entries in blocks(rows):
        cell = codes + num_codes * entries.positive
        correct = measures.predict(entries.logits) == entries.positive
        weight = measures.sum_by(cell, 2 * num_codes, entries.weight)
        hits = measures.sum_by(cell, 2 * num_codes, entries.weight * correct)
        counts.append(measures.sum_by(cell, 2 * num_codes, (entries.weight > 0).astype(np.float64)))
        accuracy.append(ratio(hits, weight))
    return np.concatenate(counts), np.concatenate(accuracy)
