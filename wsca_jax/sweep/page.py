"""The page a person opens after a sweep: one file, no network."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from wsca_jax.compare import Spread, signed
from wsca_jax.metrics.bootstrap import Interval
from wsca_jax.report.elements import document
from wsca_jax.sweep.definition import Row, Sweep
from wsca_jax.sweep.results import FIGURES, RowResult
from wsca_jax.sweep.tables import (
    HOW_TO_READ,
    WORST_GROUP_HEADER,
    Block,
    blocks,
    comparison_in,
    format_count,
    format_time,
    shown_figures,
    unfinished,
    worst_group_cells,
)

SWEEP_CSS = """
main { max-width: 1280px; }
.name { white-space: normal; min-width: 170px; }
.name b { font-weight: 600; display: block; }
.name span { display: block; font-size: 13px; color: var(--muted); line-height: 1.35; max-width: 34ch; }
small { font-size: 12px; color: var(--muted); }
.interval { position: relative; width: 120px; height: 18px; flex: none; }
.interval u { position: absolute; left: 50%; top: 0; bottom: 0; width: 1px; background: var(--muted); }
.interval i { position: absolute; top: 7px; height: 4px; border-radius: 2px; background: var(--muted); }
.interval b {
  position: absolute; top: 5px; width: 8px; height: 8px; margin-left: -4px; border-radius: 50%;
  background: var(--muted);
}
.helps :is(i, b) { background: var(--accent); }
.hurts :is(i, b) { background: var(--second); }
em { font-style: normal; color: var(--muted); }
em.helps { color: var(--accent); font-weight: 600; }
em.hurts { color: var(--second); font-weight: 600; }
"""


def render(sweep: Sweep, results: Mapping[str, RowResult]) -> str:
    """The whole page as HTML; see `wsca_jax.sweep.results.gather`."""
    found = list(results.values())
    scale = _scale(found)
    body = [_header(sweep, found), *(_block(block, found, scale) for block in blocks(sweep, results))]
    missing = unfinished(sweep, results)
    if missing:
        body.append(
            f'<p class="muted" style="margin-top:24px">Not finished: {escape(", ".join(missing))}.</p>'
        )
    body.append(_overrides(sweep.rows))
    return document(sweep.origin, body, css=SWEEP_CSS)


def _header(sweep: Sweep, results: Sequence[RowResult]) -> str:
    runs = sum(len(result.seeds) for result in results)
    facts = f"{len(sweep.rows)} rows, seeds {', '.join(map(str, sweep.seeds))}, {runs} finished runs"
    return (
        f'<header><h1>{escape(sweep.origin)}</h1><p class="muted">{facts}</p>'
        f'<p class="muted" style="max-width:90ch">{escape(HOW_TO_READ)}</p></header>'
    )


def _scale(results: Sequence[RowResult]) -> float:
    """The difference at the end of an interval's track: the farthest of all, so that blocks compare."""
    ends = [
        abs(end)
        for result in results
        if result.comparison is not None
        for end in result.comparison.interval
        if not math.isnan(end)
    ]
    return max(ends, default=0.0) * 1.05 or 1.0


def _block(block: Block, results: Sequence[RowResult], scale: float) -> str:
    figures = shown_figures(results)
    named = [FIGURES[name] for name in figures]
    head = "".join(f"<th>{name}</th>" for name in ["row", *named, "parameters", "time", "mAP difference"])
    body = "".join(_line(result, block, figures, scale) for result in block.results)
    return (
        f"<h2>Compared with {escape(block.reference)}</h2>"
        f'<div class="card wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        f"{_worst_groups(block)}{_groups(block)}"
    )


def _line(result: RowResult, block: Block, figures: Sequence[str], scale: float) -> str:
    comparison = comparison_in(block, result)
    cells = [_spread(result.spread(name)) for name in figures]
    cells.append(format_count(result.parameters))
    reference = [format_time(1.0), "<em>reference</em>"]
    cells += (
        [format_time(comparison.time), _interval(comparison.interval, scale)] if comparison else reference
    )
    return f"<tr>{_name(result)}{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _name(result: RowResult) -> str:
    notes = (result.row.description, f"{len(result.seeds)} run{'s' * (len(result.seeds) != 1)}")
    lines = "".join(f"<span>{escape(note)}</span>" for note in notes if note)
    return f'<td class="name"><b>{escape(result.row.name)}</b>{lines}</td>'


def _spread(value: Spread) -> str:
    mean, *deviation = str(value).split(" ± ")
    return mean + (f" <small>± {deviation[0]}</small>" if deviation else "")


def _interval(interval: Interval, scale: float) -> str:
    """The difference as a number and as a dot on its interval, with a line where there is none."""
    low, middle, high = (50 + 50 * x / scale for x in (interval.low, interval.difference, interval.high))
    verdict = interval.verdict
    bounds = f"{signed(interval.low)} to {signed(interval.high)}"
    return (
        f'<div class="with-bar"><span><em class="{verdict}">{verdict}</em> {signed(interval.difference)}<br>'
        f'<small>{bounds}</small></span><div class="interval {verdict}"><u></u>'
        f'<i style="left:{low:.1f}%;width:{high - low:.1f}%"></i><b style="left:{middle:.1f}%"></b>'
        "</div></div>"
    )


def _worst_groups(block: Block) -> str:
    """The difference in worst-group accuracy, where there is one."""
    lines = worst_group_cells(block)
    if not lines:
        return ""
    head = "".join(f"<th>{escape(name)}</th>" for name in WORST_GROUP_HEADER)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in line)}</tr>" for line in lines)
    return (
        '<p class="muted" style="margin:16px 0 8px">Difference in worst-group accuracy</p>'
        f'<div class="card wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _groups(block: Block) -> str:
    """The difference in mAP of each attribute group; deeper colours are larger differences."""
    compared = [
        (result, comparison)
        for result in block.results
        if (comparison := comparison_in(block, result)) is not None
    ]
    if not compared:
        return ""
    groups = list(dict.fromkeys(group for _, comparison in compared for group in comparison.groups))
    values = [abs(v) for _, c in compared for v in c.groups.values() if not math.isnan(v)]
    head = "".join(f"<th>{escape(group.replace('_', ' '))}</th>" for group in groups)
    body = "".join(
        f"<tr><td>{escape(result.row.name)}</td>"
        + "".join(
            _tinted(comparison.groups.get(group, math.nan), max(values, default=1.0)) for group in groups
        )
        + "</tr>"
        for result, comparison in compared
    )
    return (
        '<p class="muted" style="margin:16px 0 8px">Difference in mAP by attribute group</p>'
        f'<div class="card wide"><table><thead><tr><th>row</th>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _tinted(value: float, largest: float) -> str:
    if math.isnan(value):
        return "<td>-</td>"
    share = 45 * abs(value) / (largest or 1.0)
    colour = "var(--accent)" if value > 0 else "var(--second)"
    tint = f"color-mix(in srgb, {colour} {share:.0f}%, transparent)"
    return f'<td style="background:{tint}">{signed(value)}</td>'


def _overrides(rows: Sequence[Row]) -> str:
    """What each row is, as the command line would say it."""
    body = "".join(
        f"<tr><td>{escape(row.name)}</td><td class='left'><code>{escape(row.base)}</code></td>"
        f"<td class='left'><code>{escape(' '.join(row.arguments)) or '-'}</code></td></tr>"
        for row in rows
    )
    return (
        '<h2>Configurations</h2><div class="card wide"><table class="wrap"><thead><tr><th>row</th>'
        '<th class="left">config</th><th class="left">what differs</th></tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )
