"""Exact, masked metrics of multi-label predictions: collect rows, merge them, compute once."""

from wsca_jax.metrics.predictions import Predictions, merge

__all__ = ["Predictions", "merge"]
