"""A sweep's results as text and as JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from wsca_jax.compare import signed, spread
from wsca_jax.metrics.bootstrap import Interval
from wsca_jax.report import format_table
from wsca_jax.sweep.definition import Sweep
from wsca_jax.sweep.results import FIGURES, Comparison, RowResult
from wsca_jax.sweep.runs import SPLIT

FORMAT_VERSION = 1
HOW_TO_READ = (
    "Figures are means over seeds, ± their sample standard deviation, of the last step on the validation "
    "split. The interval is a paired bootstrap over images, 95 %, of the difference in mAP to the reference, "
    "seeds averaged: a row helps or hurts where it excludes 0. So is that of worst-group accuracy, where "
    "there is one. Time is per training image, as a multiple of the reference's, from the logs; runs that "
    "shared a machine slowed each other down."
)


WORST_GROUP_HEADER = ("row", "worst group - reference", "95 % interval", "verdict")


class Block(NamedTuple):
    """Rows that are compared with one reference, which is the first of them.

    A row without a finished run is left out.
    """

    reference: str
    results: tuple[RowResult, ...]


def blocks(sweep: Sweep, results: Mapping[str, RowResult]) -> list[Block]:
    found = [
        Block(reference, tuple(results[row.name] for row in rows if row.name in results))
        for reference, rows in sweep.blocks.items()
    ]
    return [block for block in found if block.results]


def shown_figures(results: Sequence[RowResult]) -> list[str]:
    """Names of the figures that any of these rows has."""
    return [name for name in FIGURES if any(not math.isnan(result.spread(name).mean) for result in results)]


def header(figures: Sequence[str]) -> list[str]:
    named = [FIGURES[name] for name in figures]
    return ["row", "seeds", *named, "parameters", "time", "mAP - reference", "95 % interval", "verdict"]


def cells(result: RowResult, block: Block, figures: Sequence[str]) -> list[str]:
    """One line of a block's table."""
    return [
        result.row.name,
        str(len(result.seeds)),
        *(str(result.spread(name)) for name in figures),
        format_count(result.parameters),
        *_comparison_cells(comparison_in(block, result)),
    ]


def comparison_in(block: Block, result: RowResult) -> Comparison | None:
    """A reference may have a reference of its own, and stands in that one's block with its comparison."""
    return None if result.row.name == block.reference else result.comparison


def _comparison_cells(comparison: Comparison | None) -> list[str]:
    if comparison is None:
        return [format_time(1.0), "-", "-", "reference"]
    return [format_time(comparison.time), *_interval_cells(comparison.interval)]


def _interval_cells(interval: Interval) -> list[str]:
    bounds = f"[{signed(interval.low)}, {signed(interval.high)}]"
    return [signed(interval.difference), bounds, interval.verdict]


def worst_group_cells(block: Block) -> list[list[str]]:
    """A line for each row of a block whose worst group was compared."""
    found = [(result.row.name, comparison_in(block, result)) for result in block.results]
    return [
        [name, *_interval_cells(comparison.worst_group)]
        for name, comparison in found
        if comparison is not None and comparison.worst_group is not None
    ]


def format_time(time: float) -> str:
    return "-" if math.isnan(time) else f"{time:.2f}x"


def format_count(count: int) -> str:
    """ "11.4 M", "812 k"."""
    return f"{count / 1e6:,.1f} M" if count >= 1e6 else f"{count / 1e3:,.0f} k"


def as_text(sweep: Sweep, results: Mapping[str, RowResult]) -> str:
    """The tables for a terminal."""
    figures = shown_figures(list(results.values()))
    parts = []
    for block in blocks(sweep, results):
        rows = [cells(result, block, figures) for result in block.results]
        parts.append(f"compared with {block.reference}\n\n{format_table(header(figures), rows)}")
        if worst := worst_group_cells(block):
            parts.append(format_table(WORST_GROUP_HEADER, worst))
    return "\n\n".join(parts)


def as_markdown(sweep: Sweep, results: Mapping[str, RowResult]) -> str:
    """The same tables with the rows' descriptions, for a note or a README."""
    figures = shown_figures(list(results.values()))
    parts = [f"# Sweep `{sweep.origin}`", HOW_TO_READ]
    for block in blocks(sweep, results):
        head = [*header(figures), "what it is"]
        rows = [[*cells(result, block, figures), result.row.description] for result in block.results]
        parts += [f"## Compared with {block.reference}", _markdown_table(head, rows)]
        if worst := worst_group_cells(block):
            parts.append(_markdown_table(WORST_GROUP_HEADER, worst))
    missing = unfinished(sweep, results)
    return "\n\n".join([*parts, *([f"Not finished: {', '.join(missing)}."] if missing else [])]) + "\n"


def _markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(head) - 3), "---", "---"]
    lines = [head, rule, *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def unfinished(sweep: Sweep, results: Mapping[str, RowResult]) -> list[str]:
    """Runs that no figure of a row holds, as "row/seed_0"."""
    return [
        f"{row.name}/seed_{seed}"
        for row in sweep.rows
        for seed in sweep.seeds
        if row.name not in results or seed not in results[row.name].seeds
    ]


def as_json(sweep: Sweep, results: Mapping[str, RowResult]) -> dict[str, Any]:
    """Everything as plain values; what is not defined is None."""
    return {
        "format_version": FORMAT_VERSION,
        "sweep": sweep.origin,
        "split": SPLIT,
        "seeds": list(sweep.seeds),
        "unfinished": unfinished(sweep, results),
        "rows": [_row_json(result) for result in results.values()],
    }


def _row_json(result: RowResult) -> dict[str, Any]:
    row, comparison = result.row, result.comparison
    return {
        "name": row.name,
        "description": row.description,
        "base": row.base,
        "overrides": dict(row.overrides),
        "reference": row.reference,
        "seeds": list(result.seeds),
        "figures": {name: _values(values) for name, values in result.figures.items()},
        "groups": {name: _values(values) for name, values in result.groups.items()},
        "images_per_second": _values(result.images_per_second),
        "parameters": result.parameters,
        "comparison": None if comparison is None else _comparison_json(comparison),
    }


def _values(values: Sequence[float]) -> dict[str, Any]:
    mean, deviation = spread(values)
    return {"mean": _number(mean), "deviation": _number(deviation), "runs": [_number(v) for v in values]}


def _comparison_json(comparison: Comparison) -> dict[str, Any]:
    worst = comparison.worst_group
    return {
        "mAP": _interval_json(comparison.interval),
        "worst_group": None if worst is None else _interval_json(worst),
        "groups": {name: _number(value) for name, value in comparison.groups.items()},
        "time": _number(comparison.time),
    }


def _interval_json(interval: Interval) -> dict[str, Any]:
    bounds = {name: _number(value) for name, value in interval._asdict().items()}
    return {**bounds, "verdict": interval.verdict}


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
