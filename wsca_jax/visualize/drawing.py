"""The parts that figures are put together from: panels, overlays, bars, tables of numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

TEXT, MUTED, LINE, ACCENT, SECOND = "#1d2127", "#667080", "#e4e6ea", "#2f6fdb", "#c2571a"
# Colours that a reader can tell apart, for groups and for parents of an assignment map.
CYCLE = (
    *("#2f6fdb", "#e0803a", "#3c9d5b", "#c43d55", "#8b62c9", "#8a6d4b"),
    *("#d77cb5", "#5f6b7a", "#b0a52c", "#35a7b8"),
)
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titlecolor": TEXT,
    "text.color": TEXT,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "savefig.facecolor": "white",
    "savefig.dpi": 130,
}
PALE = 226.0  # grey of what no attention falls on


def spotlight(image: UInt8[np.ndarray, "H W 3"], weights: Float[np.ndarray, "h w"]) -> np.ndarray:
    """The image, faded to pale grey where a map is low; full colour at the map's maximum, none at 0.

    A map that is 0 everywhere fades all of it; a uniform one fades nothing.
    """
    height, width = image.shape[:2]
    scaled = weights.astype(np.float32) / max(float(weights.max()), 1e-12)
    light = cv2.resize(scaled, (width, height), interpolation=cv2.INTER_LINEAR)[..., None]
    faded = PALE + 0.12 * (image.mean(-1, keepdims=True) - 128)
    return np.clip(light * image + (1 - light) * faded, 0, 255).astype(np.uint8)


def show(axes: Axes, image: np.ndarray, title: str = "", colour: str = TEXT) -> None:
    """An image without axes, its pixels as they are where it is small."""
    axes.imshow(image, interpolation="nearest" if image.shape[0] < 48 else "antialiased")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.set_title(title, color=colour, pad=3)


def panels(rows: int, columns: int, side: float = 1.35) -> tuple[Figure, np.ndarray]:
    """A figure of square panels [rows, columns], each `side` inches; all of them empty until drawn in."""
    engine = ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.03)
    figure = Figure(figsize=(columns * side, rows * (side + 0.3)), layout=engine)
    axes = figure.subplots(rows, columns, squeeze=False)
    for panel in axes.flat:
        panel.axis("off")
    return figure, axes


def bars(axes: Axes, names: Sequence[str], values: Sequence[float], mark: float, of_mark: str) -> None:
    """Horizontal bars with their values written beside them, and a line at `mark`."""
    places = np.arange(len(names))[::-1]
    axes.barh(places, np.nan_to_num(values), color=ACCENT, height=0.62)
    for place, value in zip(places, values, strict=True):
        axes.annotate(
            f"{value:.2f}",
            (value, place),
            (4, 0),
            textcoords="offset points",
            va="center",
            bbox={"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none"},
        )
    axes.axvline(mark, color=SECOND, linewidth=1.2, linestyle=(0, (4, 3)), zorder=1.5)
    axes.annotate(
        of_mark, (mark, 1), (3, 2), xycoords=("data", "axes fraction"), textcoords="offset points",
        color=SECOND,
    )  # fmt: skip
    axes.set_yticks(places, names, color=TEXT)
    axes.set_xlim(0, 1.18 * max(float(np.nanmax(values)), mark))
    axes.spines["left"].set_visible(False)


def heat(
    axes: Axes,
    values: Float[np.ndarray, "R C"],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    signed: bool = False,
    numbers: bool = True,
) -> Any:
    """A table of numbers as colours; NaN is left blank. Returns what a colour bar needs."""
    top = max(float(np.nanmax(np.abs(values))), 1e-12) if np.isfinite(values).any() else 1.0
    drawn = axes.imshow(
        values, cmap="RdBu_r" if signed else "Blues", vmin=-top if signed else 0, vmax=top, aspect="auto"
    )
    axes.set_xticks(range(len(columns)), columns, color=TEXT)
    axes.set_yticks(range(len(rows)), rows, color=TEXT)
    axes.spines[:].set_visible(False)
    digits = 2 if top >= 0.1 else 3
    for (row, column), value in np.ndenumerate(values) if numbers else ():
        if math.isfinite(value):
            colour = "white" if abs(value) > 0.6 * top else TEXT
            text = f"{value:.{digits}f}"
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)
    return drawn


def words(name: str) -> str:
    return name.replace("_", " ")
