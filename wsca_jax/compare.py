"""Whether one model is better than another, from the predictions that `wsca evaluate` left."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from wsca_jax.errors import WscaError
from wsca_jax.evaluations import read_predictions
from wsca_jax.metrics import Predictions, bootstrap
from wsca_jax.metrics.bootstrap import Interval, Score
from wsca_jax.metrics.rows import in_source_order
from wsca_jax.report import format_table
from wsca_jax.report.tables import format_figure


class Spread(NamedTuple):
    """A figure over runs of one model: mean and sample standard deviation (NaN for a single run)."""

    mean: float
    deviation: float

    def __str__(self) -> str:
        return format_figure(self.mean) + ("" if math.isnan(self.deviation) else f" ± {self.deviation:.3f}")


def spread(values: Sequence[float]) -> Spread:
    """Mean and sample standard deviation; NaN where a value is, or where there is none."""
    found = np.asarray(values, np.float64)
    return Spread(
        float(found.mean()) if found.size else math.nan,
        float(found.std(ddof=1)) if found.size > 1 else math.nan,
    )


def compare(first: Sequence[Path], second: Sequence[Path], *, split: str = "validation") -> Interval:
    """Compares two models by mAP, prints what was found, and returns it.

    Args:
      first: workdirs of the first model's runs, one for each seed, each evaluated before.
      second: of the second one's.
      split: of the data that both were evaluated on.

    Raises:
      WscaError: a run was not evaluated on this split, or the runs not on the same examples.
    """
    runs = {path: read_predictions(path, split) for path in (*first, *second)}
    interval = compare_predictions([runs[path] for path in first], [runs[path] for path in second])
    rows = [
        (name, str(len(paths)), str(spread([mean_average_precision(runs[path]) for path in paths])))
        for name, paths in (("first", first), ("second", second))
    ]
    examples = int((runs[first[0]].weight > 0).sum())
    print(format_table(("model", "runs", "mAP"), rows))
    print(f"\nsecond - first, {examples} examples of {split}: {describe(interval)}")
    return interval


def describe(interval: Interval) -> str:
    """ "+0.0191, 95 % interval [+0.0102, +0.0280]: helps"."""
    low, high = signed(interval.low), signed(interval.high)
    return f"{signed(interval.difference)}, 95 % interval [{low}, {high}]: {interval.verdict}"


def signed(value: float) -> str:
    """A difference with its sign, four digits; "-" where there is none."""
    return "-" if math.isnan(value) else f"{value:+.4f}"


def compare_predictions(
    first: Sequence[Predictions], second: Sequence[Predictions], score: Score | None = None
) -> Interval:
    """`metrics.bootstrap.compare` for predictions that were read from files, by mAP or another score.

    Raises:
      WscaError: the records are not about the same examples and labels.
    """
    truths = [_truth(run) for run in (*first, *second)]
    for truth in truths[1:]:
        if not all(np.array_equal(a, b) for a, b in zip(truths[0], truth, strict=True)):
            raise WscaError(
                "the runs were evaluated on different examples or labels; evaluate all of them with one "
                "--data_dir and --split"
            )
    return bootstrap.compare(first, second, score=score)


def _truth(run: Predictions) -> tuple[np.ndarray, ...]:
    rows = in_source_order(run)
    return rows.index, rows.labels, rows.known


def mean_average_precision(run: Predictions) -> float:
    rows = in_source_order(run)
    once = np.ones((1, len(rows.index)), np.int64)
    return float(bootstrap.resampled_mAP(rows, once)[0])
