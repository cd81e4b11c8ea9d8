"""What a run leaves to read: history, report and page in its folder, and a table for the terminal."""

from wsca_jax.report.records import TrainingReport, environment, history, write
from wsca_jax.report.tables import format_groups, format_results, format_table

__all__ = [
    "TrainingReport",
    "environment",
    "format_groups",
    "format_results",
    "format_table",
    "history",
    "write",
]
