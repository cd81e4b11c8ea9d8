"""From rows of predictions to results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int

from input_pipeline.batch import SpuriousFactor
from input_pipeline.schema import AttributeSchema
from wsca_jax.metrics import measures
from wsca_jax.metrics.legacy import legacy_group_accuracy
from wsca_jax.metrics.measures import Sums, ratio
from wsca_jax.metrics.predictions import Predictions
from wsca_jax.metrics.results import AttributeResult, Results, Summary
from wsca_jax.metrics.rows import blocks, check, in_source_order
from wsca_jax.metrics.worst_group import MIN_CELL_EXAMPLES, find_worst_group


def compute(
    predictions: Predictions,
    schema: AttributeSchema,
    factors: Mapping[str, SpuriousFactor] | None = None,
    *,
    min_cell_examples: int = MIN_CELL_EXAMPLES,
) -> Results:
    """Computes every metric, exactly, over all rows at once.

    Equal sets of evaluated examples give equal bits, in whatever batches, order and host split the rows
    came. Unknown entries and rows of weight 0 are never read.

    Args:
      predictions: rows of every batch and host, each example once.
      schema: the A attributes.
      factors: {name: what attributes should not depend on, and which of them}, for the worst group.
      min_cell_examples: smallest cell that the worst group may be.

    Raises:
      ValueError: for rows that do not fit the schema, no row at all, or an example evaluated twice.
      DivergedError: for a logit of a known entry that is not finite.
    """
    check(predictions, schema)
    counted = _count(in_source_order(predictions))
    rows, everything = counted.rows, range(schema.num_attributes)
    groups = tuple(
        _summary(name, members, counted) for name, members in zip(schema.groups, schema.members, strict=True)
    )
    return Results(
        examples=len(rows.index),
        skipped=int(((predictions.weight == 0) & (predictions.index >= 0)).sum()),
        overall=_summary("overall", everything, counted),
        mean_group_accuracy=_mean(np.array([group.accuracy for group in groups])),
        groups=groups,
        attributes=tuple(_attribute(i, schema, counted) for i in everything),
        families=tuple(_summary(name, members, counted) for name, members in schema.families.items()),
        worst_group=find_worst_group(rows, schema, factors or {}, min_cell_examples=min_cell_examples),
        legacy_group_accuracy=legacy_group_accuracy(rows, schema),
    )


class _Counted(NamedTuple):
    """What the figures of any set of attributes are made of."""

    rows: Predictions
    sums: Sums
    known: Int[np.ndarray, "A"]
    positives: Int[np.ndarray, "A"]
    figures: Mapping[str, Float64[np.ndarray, "A"]]


def _count(rows: Predictions) -> _Counted:
    parts = [measures.sums(entries) for entries in blocks(rows)]
    sums = Sums(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))
    return _Counted(rows, sums, rows.known.sum(0), (rows.labels > 0).sum(0), _figures(sums))


def _figures(s: Sums) -> dict[str, Float64[np.ndarray, "A"]]:
    """Per-attribute figures, by the names of `AttributeResult`'s fields."""
    present, absent = s.true_positive + s.false_negative, s.true_negative + s.false_positive
    predicted = s.true_positive + s.false_positive
    recall, specificity = ratio(s.true_positive, present), ratio(s.true_negative, absent)
    precision = np.where(present > 0, np.nan_to_num(ratio(s.true_positive, predicted)), np.nan)
    f1 = np.where(present > 0, ratio(2 * s.true_positive, predicted + present), np.nan)
    weight = present + absent
    return {
        "prevalence": ratio(present, weight),
        "accuracy": ratio(s.true_positive + s.true_negative, weight),
        "balanced_accuracy": _mean_of_defined(recall, specificity),
        "precision": precision,
        "recall": recall,
        "f1": f1,
        "average_precision": s.average_precision,
        "calibration_error": measures.calibration_error(s.bin_weight, s.bin_probability, s.bin_positive),
        "brier_score": ratio(s.squared_error, weight),
    }


def _mean_of_defined(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return ratio(np.nan_to_num(a) + np.nan_to_num(b), (~np.isnan(a)).astype(float) + ~np.isnan(b))


def _mean(values: np.ndarray) -> float:
    """Mean of what is defined; NaN where nothing is."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else float("nan")


def _attribute(i: int, schema: AttributeSchema, counted: _Counted) -> AttributeResult:
    return AttributeResult(
        name=schema.attributes[i],
        group=schema.groups[schema.group_of[i]],
        known=int(counted.known[i]),
        positives=int(counted.positives[i]),
        **{field: float(values[i]) for field, values in counted.figures.items()},
    )


def _summary(name: str, attributes: Sequence[int], counted: _Counted) -> Summary:
    """Figures of the attributes at these positions."""
    members = list(attributes)
    known, positives = counted.known[members], counted.positives[members]
    pooled = Sums(*(column[members].sum(0) for column in counted.sums))
    of = {field: values[members] for field, values in counted.figures.items()}
    precision, recall = _mean(of["precision"]), _mean(of["recall"])
    mean_ap = _mean(of["average_precision"])
    chance = _mean(of["prevalence"][positives > 0])
    return Summary(
        name=name,
        attributes=len(members),
        attributes_without_positives=int((positives == 0).sum()),
        known=int(known.sum()),
        positives=int(positives.sum()),
        **{f: _mean(of[f]) for f in ("prevalence", "accuracy", "balanced_accuracy", "f1", "brier_score")},
        precision=precision,
        recall=recall,
        mAP=mean_ap,
        chance_mAP=chance,
        normalised_mAP=_divide(mean_ap - chance, 1 - chance),
        class_f1=_harmonic_mean(precision, recall),
        overall_f1=_overall_f1(pooled),
        exact_match=_exact_match(counted.rows, members),
        calibration_error=float(
            measures.calibration_error(pooled.bin_weight, pooled.bin_probability, pooled.bin_positive)
        ),
    )


def _divide(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else float("nan")


def _harmonic_mean(a: float, b: float) -> float:
    """0 where both are 0."""
    return 0.0 if a == b == 0 else 2 * a * b / (a + b)


def _overall_f1(pooled: Sums) -> float:
    """Micro F1; NaN where there is neither a positive nor a prediction of one."""
    hits = 2 * pooled.true_positive
    return float(ratio(hits, hits + pooled.false_positive + pooled.false_negative))


def _exact_match(rows: Predictions, members: list[int]) -> float:
    known = rows.known[:, members]
    wrong = known & (measures.predict(rows.logits[:, members]) != (rows.labels[:, members] > 0))
    weight = rows.weight.astype(np.float64) * known.any(1)
    return float(ratio((weight * ~wrong.any(1)).sum(), weight.sum()))
