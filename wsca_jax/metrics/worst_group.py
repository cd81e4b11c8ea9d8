"""The worst group: where an attribute meets what it should not depend on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float64, Int, Int64

from input_pipeline.batch import SpuriousFactor
from input_pipeline.schema import AttributeSchema
from wsca_jax.metrics import measures
from wsca_jax.metrics.measures import ratio
from wsca_jax.metrics.predictions import Predictions
from wsca_jax.metrics.results import WorstGroup
from wsca_jax.metrics.rows import blocks, in_source_order

# The standard error of an accuracy over 50 examples is at most 0.07: a minimum over smaller cells is luck.
MIN_CELL_EXAMPLES = 50


def find_worst_group(
    predictions: Predictions,
    schema: AttributeSchema,
    factors: Mapping[str, SpuriousFactor],
    *,
    min_cell_examples: int = MIN_CELL_EXAMPLES,
) -> WorstGroup | None:
    """The cell of lowest accuracy over (factor value, attribute, present or absent).

    A factor meets only the attributes it may go with. Over all attributes the minimum would name whichever
    is hardest to see, and say nothing about what the model leans on.

    Args:
      predictions: rows of every batch, each example once.
      schema: the attributes.
      factors: {name: factor}, with a value for every example of the source.
      min_cell_examples: smallest cell that counts.

    Returns:
      The cell; of equal ones the first in order of factor and attribute. None where no cell is large enough.

    Raises:
      ValueError: a factor names an attribute that the schema does not have, or has too few values.
    """
    rows = in_source_order(predictions)
    cells = [
        _worst_cell(
            _only(rows, schema.attributes, name, factor),
            schema,
            name,
            np.asarray(factor.values),
            min_cell_examples,
        )
        for name, factor in factors.items()
    ]
    return min((cell for cell in cells if cell is not None), key=lambda cell: cell.accuracy, default=None)


def resampled_worst_group(
    predictions: Predictions,
    counts: Int64[np.ndarray, "R M"],
    *,
    attributes: Sequence[str],
    factors: Mapping[str, SpuriousFactor],
    min_cell_examples: int = MIN_CELL_EXAMPLES,
) -> Float64[np.ndarray, "R"]:
    """Accuracy of the worst cell of each resample; row i stands counts[r, i] times in resample r.

    The cells are those that are large enough on the images as they are; NaN where none is.

    Args:
      predictions: of M examples, each once, in the source's order.
      counts: how often each stands in a resample.
      attributes: the schema's A names.
      factors, min_cell_examples: as for `find_worst_group`.

    Raises:
      ValueError: as `find_worst_group`.
    """
    rows = in_source_order(predictions)
    found = [
        _resampled_cells(_only(rows, attributes, name, factor), name, factor, counts, min_cell_examples)
        for name, factor in factors.items()
    ]
    accuracy = np.concatenate([np.full((len(counts), 1), np.inf), *found], axis=1)
    lowest = np.nanmin(accuracy, axis=1)
    return np.where(np.isinf(lowest), np.nan, lowest)


def _resampled_cells(
    rows: Predictions,
    name: str,
    factor: SpuriousFactor,
    counts: Int64[np.ndarray, "R M"],
    min_examples: int,
) -> Float64[np.ndarray, "R C"]:
    """Accuracy of the factor's cells that are large enough; NaN where a resample has none of one."""
    values, codes = _codes(rows, name, np.asarray(factor.values))
    members, hits = [], []
    for entries in blocks(rows):
        cell = codes + len(values) * entries.positive
        there = (cell[:, None] == np.arange(2 * len(values))[:, None]) & (entries.weight > 0)[:, None]
        correct = there & (measures.predict(entries.logits) == entries.positive)[:, None]
        large = there.sum(-1) >= min_examples
        members.append(there[large])
        hits.append(correct[large])
    weighted = counts * rows.weight.astype(np.float64)
    return ratio(weighted @ _rows(hits).T, weighted @ _rows(members).T)


def _rows(parts: Sequence[Bool[np.ndarray, "_ M"]]) -> Float64[np.ndarray, "C M"]:
    return np.concatenate(parts).astype(np.float64)


def _only(rows: Predictions, attributes: Sequence[str], name: str, factor: SpuriousFactor) -> Predictions:
    """The rows with nothing known but the factor's attributes."""
    strangers = sorted(set(factor.attributes) - set(attributes))
    if strangers:
        raise ValueError(f"factor {name!r}: there is no attribute {strangers[0]!r}")
    return rows._replace(known=rows.known & np.isin(attributes, factor.attributes))


def _codes(
    rows: Predictions, factor: str, values: np.ndarray
) -> tuple[Int[np.ndarray, "K"], Int[np.ndarray, "M"]]:
    """(the factor's values that there are, for each row the position of its value among them)."""
    if rows.index[-1] >= len(values):
        raise ValueError(
            f"factor {factor!r} has {len(values)} values, but example {rows.index[-1]} was evaluated; "
            "expected one value for each example of the source"
        )
    there, codes = np.unique(values[rows.index], return_inverse=True)
    return there, codes


def _worst_cell(
    rows: Predictions, schema: AttributeSchema, factor: str, values: np.ndarray, min_examples: int
) -> WorstGroup | None:
    factor_values, codes = _codes(rows, factor, values)
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
