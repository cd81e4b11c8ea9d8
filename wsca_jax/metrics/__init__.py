"""Exact, masked metrics of multi-label predictions: collect rows, merge them, compute once."""

from wsca_jax.metrics.compute import compute
from wsca_jax.metrics.predictions import Predictions, merge
from wsca_jax.metrics.results import AttributeResult, LegacyGroupAccuracy, Results, Summary, WorstGroup

__all__ = [
    "AttributeResult",
    "LegacyGroupAccuracy",
    "Predictions",
    "Results",
    "Summary",
    "WorstGroup",
    "compute",
    "merge",
]
