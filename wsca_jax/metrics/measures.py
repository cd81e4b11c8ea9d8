"""Sums over examples from which every metric follows, for many attributes at a time.

Arrays run attributes first, [A, M], so that a row is contiguous and its sum does not depend on its
neighbours. Everything is summed in float64 in the order of the rows: the same rows give the same bits.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Float64

CALIBRATION_BINS = 15


class Entries(NamedTuple):
    """(attribute, example) entries; those of weight 0 are not known and count for nothing.

    Attributes:
      logits: float32 [A, M], finite, 0 where not known.
      positive: bool [A, M], False where not known.
      weight: float64 [A, M], 0 where not known.
    """

    logits: Float32[np.ndarray, "A M"]
    positive: Bool[np.ndarray, "A M"]
    weight: Float64[np.ndarray, "A M"]


class Sums(NamedTuple):
    """Weighted sums over examples, one row per attribute, all float64.

    Attributes:
      true_positive, false_positive, false_negative, true_negative: [A], at probability 0.5.
      average_precision: [A], NaN without positives.
      squared_error: [A], of the probability.
      bin_weight, bin_probability, bin_positive: [A, CALIBRATION_BINS].
    """

    true_positive: Float64[np.ndarray, "A"]
    false_positive: Float64[np.ndarray, "A"]
    false_negative: Float64[np.ndarray, "A"]
    true_negative: Float64[np.ndarray, "A"]
    average_precision: Float64[np.ndarray, "A"]
    squared_error: Float64[np.ndarray, "A"]
    bin_weight: Float64[np.ndarray, "A bins"]
    bin_probability: Float64[np.ndarray, "A bins"]
    bin_positive: Float64[np.ndarray, "A bins"]


def sums(entries: Entries) -> Sums:
    """Every sum of `Sums`."""
    probability = sigmoid(entries.logits)
    predicted, positive, weight = predict(entries.logits), entries.positive, entries.weight
    return Sums(
        true_positive=(weight * (predicted & positive)).sum(1),
        false_positive=(weight * (predicted & ~positive)).sum(1),
        false_negative=(weight * (~predicted & positive)).sum(1),
        true_negative=(weight * ~(predicted | positive)).sum(1),
        average_precision=average_precision(entries),
        squared_error=(weight * (probability - positive) ** 2).sum(1),
        **calibration_sums(probability, positive, weight),
    )


def predict(logits: Float32[np.ndarray, "..."]) -> Bool[np.ndarray, "..."]:
    """Present or not: a probability above 0.5, so that a logit of exactly 0 says absent."""
    return logits > 0


def sigmoid(logits: Float32[np.ndarray, "..."]) -> Float64[np.ndarray, "..."]:
    """Probabilities in float64, without overflow at either end."""
    return 0.5 + 0.5 * np.tanh(0.5 * logits.astype(np.float64))


def average_precision(entries: Entries) -> Float64[np.ndarray, "A"]:
    """Area under the precision-recall steps, sum over thresholds of (R_n - R_{n-1}) P_n.

    Equal scores share one threshold, as in scikit-learn's `average_precision_score`; NaN without positives.
    """
    order = np.argsort(-entries.logits, axis=1)
    scores = np.take_along_axis(entries.logits, order, 1)
    weight = np.take_along_axis(entries.weight, order, 1)
    hits = np.cumsum(weight * np.take_along_axis(entries.positive, order, 1), axis=1)
    seen = np.cumsum(weight, axis=1)

    is_threshold = np.ones(scores.shape, bool)
    is_threshold[:, :-1] = scores[:, :-1] != scores[:, 1:]
    # `hits` never falls, so the running maximum over thresholds is its value at the latest one.
    hits_at_threshold = np.maximum.accumulate(np.where(is_threshold, hits, 0.0), axis=1)
    new_hits = np.diff(hits_at_threshold, axis=1, prepend=0.0)
    precision = ratio(hits_at_threshold, seen)
    return ratio((new_hits * np.nan_to_num(precision)).sum(1), hits[:, -1])


def calibration_sums(
    probability: Float64[np.ndarray, "A M"],
    positive: Bool[np.ndarray, "A M"],
    weight: Float64[np.ndarray, "A M"],
) -> dict[str, Float64[np.ndarray, "A bins"]]:
    """Weight, weighted probability and weighted positives in bins of equal width over [0, 1]."""
    bins = np.minimum((probability * CALIBRATION_BINS).astype(np.int64), CALIBRATION_BINS - 1)
    return {
        "bin_weight": sum_by(bins, CALIBRATION_BINS, weight),
        "bin_probability": sum_by(bins, CALIBRATION_BINS, weight * probability),
        "bin_positive": sum_by(bins, CALIBRATION_BINS, weight * positive),
    }


def sum_by(
    codes: np.ndarray, num_codes: int, values: Float64[np.ndarray, "A M"]
) -> Float64[np.ndarray, "A codes"]:
    """Sums each row's values by their code, an integer in [0, num_codes)."""
    rows = values.shape[0]
    flat = codes + num_codes * np.arange(rows)[:, None]
    return np.bincount(flat.ravel(), values.ravel(), minlength=rows * num_codes).reshape(rows, num_codes)


def calibration_error(
    weight: Float64[np.ndarray, "... bins"],
    probability: Float64[np.ndarray, "... bins"],
    positive: Float64[np.ndarray, "... bins"],
) -> Float64[np.ndarray, "..."]:
    """Expected calibration error from binned sums: the weighted mean of |mean probability - prevalence|.

    Guo et al., On Calibration of Modern Neural Networks, 2017, for the probability that an attribute
    is present.
    """
    return ratio(np.abs(probability - positive).sum(-1), weight.sum(-1))


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """numerator / denominator, NaN where the denominator is 0."""
    undefined = np.full(np.broadcast_shapes(numerator.shape, denominator.shape), np.nan)
    return np.divide(numerator, denominator, out=undefined, where=denominator != 0)
