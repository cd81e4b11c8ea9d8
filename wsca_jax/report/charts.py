"""Curves of a run as inline SVG that takes its colours from the page."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from wsca_jax.writers import Row

# Matplotlib writes colours as numbers; these stand for the page's own, which differ in light and dark.
COLOURS = {
    "#010203": "var(--muted)",
    "#010204": "var(--line)",
    "#010205": "var(--accent)",
    "#010206": "var(--second)",
}
MUTED, LINE, ACCENT, SECOND = COLOURS
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "wsca",
    "font.size": 9,
    "axes.edgecolor": LINE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.labelcolor": MUTED,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
}


class Series(NamedTuple):
    """Points of one curve, finite ones only."""

    steps: np.ndarray
    values: np.ndarray


def series(rows: Sequence[Row], kind: str, name: str) -> Series:
    """The finite values of one scalar over steps; may be empty."""
    points = [
        (row.step, row.values[name])
        for row in rows
        if row.kind == kind and math.isfinite(row.values.get(name, math.nan))
    ]
    steps, values = zip(*points, strict=True) if points else ((), ())
    return Series(np.array(steps, float), np.array(values, float))


def smooth(curve: Series) -> Series:
    """A centred mean over about a twentieth of the points, shorter at the ends."""
    reach = max(1, len(curve.values) // 40)
    padded = np.concatenate([[0.0], np.cumsum(curve.values)])
    i = np.arange(len(curve.values))
    low, high = np.maximum(i - reach, 0), np.minimum(i + reach + 1, len(i))
    return Series(curve.steps, (padded[high] - padded[low]) / (high - low))


def loss_chart(rows: Sequence[Row], name: str = "loss") -> str:
    """A loss in training, smoothed where there are many points, and in validation where it was logged."""
    with rc_context(STYLE):
        figure, axes = _figure()
        train, validation = series(rows, "train", name), series(rows, "validation", name)
        if len(train.values) > 40:
            axes.plot(*train, color=ACCENT, alpha=0.25, linewidth=0.8)
            train = smooth(train)
        axes.plot(*train, color=ACCENT, linewidth=1.8)
        axes.plot(*validation, color=SECOND, linewidth=1.8, marker="o", markersize=3.5)
        upper, lower = sorted(
            ((train, "train", ACCENT), (validation, "validation", SECOND)), key=_last, reverse=True
        )
        _mark_end(axes, *upper, align="bottom")
        _mark_end(axes, *lower, align="top")
        return _svg(figure, "Loss over training steps")


def map_chart(rows: Sequence[Row], chance: float) -> str:
    """Validation mAP over steps, beside chance."""
    with rc_context(STYLE):
        figure, axes = _figure()
        curve = series(rows, "validation", "mAP")
        axes.plot(*curve, color=ACCENT, linewidth=1.8, marker="o", markersize=3.5)
        _mark_end(axes, curve, "mAP", ACCENT)
        if math.isfinite(chance):
            axes.axhline(chance, color=MUTED, linewidth=1.2, linestyle=(0, (4, 3)))
            axes.annotate(
                f"chance {chance:.3f}",
                (1, chance),
                (0, 4),
                xycoords=("axes fraction", "data"),
                textcoords="offset points",
                ha="right",
                color=MUTED,
            )
        return _svg(figure, "Validation mAP over training steps")


def share_chart(rows: Sequence[Row], curves: Sequence[tuple[str, str, str]], title: str) -> str:
    """Up to two figures between 0 and 1 over steps, each given as (kind of rows, name, words for it)."""
    with rc_context(STYLE):
        figure, axes = _figure()
        axes.set_ylim(0, 1.02)
        named = [(series(rows, kind, name), words) for kind, name, words in curves]
        ends = [curve.values[-1] if len(curve.values) else 0.0 for curve, _ in named]
        for (curve, words), colour, end in zip(named, (ACCENT, SECOND), ends, strict=False):
            axes.plot(*curve, color=colour, linewidth=1.8)
            _mark_end(axes, curve, words, colour, align="bottom" if end == max(ends) else "top")
        return _svg(figure, title)


def _figure() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5.4, 2.7), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel("step")
    axes.margins(x=0.02)
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    return figure, axes


def _last(named: tuple[Series, str, str]) -> float:
    values = named[0].values
    return values[-1] if len(values) else -math.inf


def _mark_end(axes: Axes, curve: Series, name: str, colour: str, align: str = "center") -> None:
    """Writes a curve's name and last value beside its last point; no legend to look up."""
    if len(curve.values):
        axes.annotate(
            f"{name} {curve.values[-1]:.3f}",
            (curve.steps[-1], curve.values[-1]),
            (6, 0),
            textcoords="offset points",
            va=align,
            color=colour,
            annotation_clip=False,
        )


def _svg(figure: Figure, title: str) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    for number, name in COLOURS.items():
        text = text.replace(number, name)
    return text.replace("<svg", f'<svg role="img" aria-label="{title}"', 1)
