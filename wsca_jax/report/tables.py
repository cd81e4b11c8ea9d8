"""Results as text, for a terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence

from wsca_jax.metrics import Results, Summary, WorstGroup

GROUP_COLUMNS = ("group", "attributes", "prevalence", "mAP", "accuracy", "balanced accuracy", "F1")


def format_groups(results: Results) -> str:
    """A line per attribute group and one over all attributes, aligned, at most 100 columns wide.

    Prevalence is what mAP would be by chance. Undefined figures are a dash.
    """
    rows = [_cells(group) for group in results.groups]
    total = ("all attributes", *_cells(results.overall)[1:])
    return format_table(GROUP_COLUMNS, [*rows, total], rule_before_last=True)


def format_results(results: Results) -> str:
    """`format_groups`, and beneath it the worst group where there is one."""
    worst = results.worst_group
    return format_groups(results) + ("" if worst is None else f"\n\n{describe_worst_group(worst)}")


def describe_worst_group(worst: WorstGroup) -> str:
    """A sentence that names the cell, its size and its accuracy."""
    return (
        f"Worst group: accuracy {format_figure(worst.accuracy)} on the {worst.examples:,} examples "
        f"{'with' if worst.present else 'without'} {worst.attribute} "
        f"whose {worst.factor} is {worst.factor_value}."
    )


def _cells(summary: Summary) -> tuple[str, ...]:
    figures = (summary.prevalence, summary.mAP, summary.accuracy, summary.balanced_accuracy, summary.f1)
    return (summary.name, str(summary.attributes), *(format_figure(value) for value in figures))


def format_figure(value: float, digits: int = 3) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def format_table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    left: Sequence[int] = (0,),
    rule_before_last: bool = False,
) -> str:
    """Aligns cells in columns, to the right but for those in `left`, under a ruled header."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]

    def line(row: Sequence[str]) -> str:
        cells = (
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        return "  ".join(cells).rstrip()

    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    lines = [line(header), rule, *(line(row) for row in rows)]
    if rule_before_last:
        lines.insert(-1, rule)
    return "\n".join(lines)
