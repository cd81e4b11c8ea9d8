"""The worst group of a data set that says what its attributes may be mistaken for."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from input_pipeline.batch import SpuriousFactor
from input_pipeline.schema import AttributeSchema
from wsca_jax.metrics.predictions import Predictions
from wsca_jax.metrics.results import WorstGroup
from wsca_jax.metrics.rows import in_source_order
from wsca_jax.metrics.worst_group import find_worst_group

# The standard error of an accuracy over 50 examples is at most 0.07: a minimum over smaller cells is luck.
MIN_CELL_EXAMPLES = 50


def worst_spurious_group(
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
    worst = [
        find_worst_group(_only(rows, schema, name, factor), schema, {name: factor.values}, min_cell_examples)
        for name, factor in factors.items()
    ]
    return min((cell for cell in worst if cell is not None), key=lambda cell: cell.accuracy, default=None)


def _only(rows: Predictions, schema: AttributeSchema, name: str, factor: SpuriousFactor) -> Predictions:
    """The rows with nothing known but the factor's attributes."""
    strangers = sorted(set(factor.attributes) - set(schema.attributes))
    if strangers:
        raise ValueError(f"factor {name!r}: {schema.name} has no attribute {strangers[0]!r}")
    return rows._replace(known=rows.known & np.isin(schema.attributes, factor.attributes))
