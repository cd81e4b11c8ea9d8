"""Whether one model is better than another, or the images just happened to suit it: paired bootstrap."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

from wsca_jax.metrics.predictions import Predictions
from wsca_jax.metrics.rows import in_source_order

CHUNK = 250  # resamples at a time, which bounds memory

# (predictions, counts int64 [R, M]) -> float64 [R]: a figure of each resample, in which row i stands
# counts[r, i] times.
Score = Callable[[Predictions, Int64[np.ndarray, "R M"]], Float64[np.ndarray, "R"]]


class Interval(NamedTuple):
    """A difference in a figure, and where it lies with the given confidence.

    Attributes:
      difference: the second model's figure minus the first one's, on the images as they are.
      low, high: percentiles of the difference over resampled images.
    """

    difference: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """ "helps" or "hurts" where the interval excludes 0, else "undecided"."""
        if self.low > 0:
            return "helps"
        return "hurts" if self.high < 0 else "undecided"


def compare(
    first: Sequence[Predictions],
    second: Sequence[Predictions],
    *,
    score: Score | None = None,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Compares two models by a figure on the same images, drawn again with replacement.

    The same draw of images judges both models and all of their runs, so that what is hard about an image
    cancels out. It says how far the result depends on these images; runs with other seeds are averaged, not
    resampled.

    Args:
      first: predictions of the first model, one record per run.
      second: of the second one, of the same examples.
      score: the figure; mAP by default.
      resamples: how many draws.
      confidence: of the interval, in (0, 1).
      seed: of the draws.

    Raises:
      ValueError: the records are not about the same examples, or there are none.
    """
    runs = [in_source_order(predictions) for predictions in (*first, *second)]
    if not first or not second:
        raise ValueError("paired bootstrap: both models need at least one run")
    if any(not np.array_equal(runs[0].index, run.index) for run in runs[1:]):
        raise ValueError("paired bootstrap: the runs were evaluated on different examples")
    rows = len(runs[0].index)
    draws = np.random.default_rng(seed).multinomial(rows, np.full(rows, 1 / rows), resamples)
    counts = np.concatenate([np.ones((1, rows), np.int64), draws])
    scores = np.stack([(score or resampled_mAP)(run, counts) for run in runs])
    differences = scores[len(first) :].mean(0) - scores[: len(first)].mean(0)
    tail = 50 * (1 - confidence)
    low, high = np.percentile(differences[1:], [tail, 100 - tail])
    return Interval(float(differences[0]), float(low), float(high))


def resampled_mAP(predictions: Predictions, counts: Int64[np.ndarray, "R M"]) -> Float64[np.ndarray, "R"]:
    """mAP of each resample; row i stands counts[r, i] times in resample r.

    Attributes without a positive in a resample are left out of its mean.
    """
    chunks = [counts[start : start + CHUNK] for start in range(0, len(counts), CHUNK)]
    return np.concatenate([_mAP(predictions, chunk) for chunk in chunks])


def _mAP(predictions: Predictions, counts: Int64[np.ndarray, "R M"]) -> Float64[np.ndarray, "R"]:
    weights = counts * predictions.weight.astype(np.float64)
    columns = range(predictions.logits.shape[1])
    return np.nanmean(np.stack([_average_precision(predictions, i, weights) for i in columns]), axis=0)


def _average_precision(
    predictions: Predictions, attribute: int, weights: Float64[np.ndarray, "R M"]
) -> Float64[np.ndarray, "R"]:
    order = np.argsort(-predictions.logits[:, attribute], kind="stable")
    scores = predictions.logits[order, attribute]
    known = weights[:, order] * predictions.known[order, attribute]
    positive = known * predictions.labels[order, attribute]
    # Equal scores share the precision at the last of them.
    last = np.searchsorted(-scores, -scores, side="right") - 1
    found, seen = positive.cumsum(1)[:, last], known.cumsum(1)[:, last]
    with np.errstate(invalid="ignore"):  # no positive: nan, left out of the mean
        precision = np.divide(found, seen, out=np.zeros_like(found), where=seen > 0)
        return (positive * precision).sum(1) / positive.sum(1)
