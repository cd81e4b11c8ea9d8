"""What a sweep found: figures of each row over its seeds, and how it stands beside its reference."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from wsca_jax.compare import Spread, compare_predictions, spread
from wsca_jax.errors import WscaError
from wsca_jax.evaluations import Factors, read_factors, read_predictions
from wsca_jax.metrics import Predictions
from wsca_jax.metrics.bootstrap import Interval
from wsca_jax.metrics.worst_group import resampled_worst_group
from wsca_jax.sweep.definition import Row, Sweep
from wsca_jax.sweep.runs import SPLIT, SweepRun
from wsca_jax.writers import METRICS_FILE, read_rows

# The figures of the tables: {name in sweep.json: heading}. The first decides.
FIGURES = {
    "mAP": "mAP",
    "accuracy": "mean accuracy",
    "f1": "macro F1",
    "worst_group_accuracy": "worst group",
}


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A row beside its reference.

    Attributes:
      interval: of the difference in mAP, row minus reference.
      worst_group: of the difference in worst-group accuracy; None where no factor is known or no cell is
        large enough.
      groups: {attribute group: difference of the mean mAPs}.
      time: time per training image over the reference's: 1.4 is 40 % slower. NaN where it was not logged.
    """

    interval: Interval
    worst_group: Interval | None
    groups: Mapping[str, float]
    time: float


@dataclasses.dataclass(frozen=True)
class RowResult:
    """A row's finished runs.

    Attributes:
      row: which.
      seeds: of the finished runs; the tuples below have one figure for each.
      figures: {name of `FIGURES`: figures}; NaN where there is none.
      groups: {attribute group: mAP}.
      images_per_second: in training, the median over the run's log; NaN where it was not logged.
      parameters: of the model.
      comparison: None for a row that is compared with itself, or whose reference has no finished run.
    """

    row: Row
    seeds: tuple[int, ...]
    figures: Mapping[str, tuple[float, ...]]
    groups: Mapping[str, tuple[float, ...]]
    images_per_second: tuple[float, ...]
    parameters: int
    comparison: Comparison | None = None

    def spread(self, figure: str) -> Spread:
        return spread(self.figures[figure])

    def group_mean(self, group: str) -> float:
        return spread(self.groups[group]).mean


def gather(sweep: Sweep, runs: Sequence[SweepRun]) -> dict[str, RowResult]:
    """{row: result} of the rows with at least one finished run, in the sweep's order.

    Raises:
      WscaError: a row and its reference were not evaluated on the same examples.
    """
    finished = {row.name: [run for run in runs if run.row is row and run.figures()] for row in sweep.rows}
    results = {name: _row_result(members) for name, members in finished.items() if members}
    predictions = {name: [read_predictions(run.workdir, SPLIT) for run in finished[name]] for name in results}
    factors = {name: read_factors(finished[name][0].workdir, SPLIT) for name in results}
    return {name: _compared(result, results, predictions, factors) for name, result in results.items()}


def _row_result(runs: Sequence[SweepRun]) -> RowResult:
    records = [run.figures() or {} for run in runs]
    return RowResult(
        row=runs[0].row,
        seeds=tuple(run.seed for run in runs),
        figures={name: tuple(_figure(record["results"], name) for record in records) for name in FIGURES},
        groups=_groups([record["results"] for record in records]),
        images_per_second=tuple(_images_per_second(run) for run in runs),
        parameters=records[0]["parameters"],
    )


def _figure(results: Mapping[str, Any], name: str) -> float:
    worst = results["worst_group"] or {}
    value = worst.get("accuracy") if name == "worst_group_accuracy" else results["overall"][name]
    return math.nan if value is None else value


def _groups(results: Sequence[Mapping[str, Any]]) -> dict[str, tuple[float, ...]]:
    tables = [{group["name"]: group["mAP"] for group in result["groups"]} for result in results]
    return {
        name: tuple(math.nan if table[name] is None else table[name] for table in tables)
        for name in tables[0]
    }


def _images_per_second(run: SweepRun) -> float:
    """The median of the log, which neither compiling nor a pause moves."""
    rates = [row.time.get("images_per_second", math.nan) for row in read_rows(run.workdir / METRICS_FILE)]
    defined = [rate for rate in rates if not math.isnan(rate)]
    return float(np.median(defined)) if defined else math.nan


def _compared(
    result: RowResult,
    results: Mapping[str, RowResult],
    predictions: Mapping[str, Sequence[Predictions]],
    factors: Mapping[str, Factors],
) -> RowResult:
    name, reference = result.row.name, results.get(result.row.reference)
    if reference is None or reference is result:
        return result
    both = predictions[reference.row.name], predictions[name]
    try:
        interval = compare_predictions(*both)
        worst_group = _compare_worst_groups(*both, factors[reference.row.name])
    except WscaError as error:
        raise WscaError(f"row {name!r} and its reference {reference.row.name!r}: {error}") from error
    groups = {
        group: result.group_mean(group) - reference.group_mean(group)
        for group in result.groups
        if group in reference.groups
    }
    time = spread(reference.images_per_second).mean / spread(result.images_per_second).mean
    return dataclasses.replace(result, comparison=Comparison(interval, worst_group, groups, time))


def _compare_worst_groups(
    first: Sequence[Predictions], second: Sequence[Predictions], factors: Factors
) -> Interval | None:
    score = functools.partial(resampled_worst_group, **factors._asdict())
    interval = compare_predictions(first, second, score) if factors.factors else None
    return None if interval is None or math.isnan(interval.difference) else interval
