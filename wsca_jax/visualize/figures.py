"""The figures: each from what was gathered, none from a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from input_pipeline.schema import AttributeSchema
from wsca_jax.inside import BandImages, GraphStatistics, OnObject, RoutingStatistics
from wsca_jax.visualize.drawing import (
    ACCENT,
    CYCLE,
    LINE,
    MUTED,
    SECOND,
    TEXT,
    bars,
    heat,
    panels,
    show,
    spotlight,
    words,
)
from wsca_jax.visualize.gather import Examples

TIMES = "\N{MULTIPLICATION SIGN}"
TOP_ATTRIBUTES = 8  # maps per example, on a line of their own
PRESENT, ABSENT = ("\N{CHECK MARK}", ACCENT), ("\N{BALLOT X}", SECOND)
BAND_ROWS = 4  # examples whose bands are drawn


def attention(examples: Examples, number: int, schema: AttributeSchema) -> Figure:
    """One example: the image, where each group looks, and the maps of its likeliest attributes."""
    image, maps = examples.image[number], examples.maps
    groups = 0 if maps.groups is None else len(maps.groups[number])
    columns = max(groups + 1, TOP_ATTRIBUTES if groups else 1)
    figure, axes = panels(2 if groups else 1, columns)
    show(axes[0, 0], image, "image")
    if maps.groups is None or maps.attributes is None:
        return figure
    for panel, name, weights in zip(axes[0, 1:], schema.groups, maps.groups[number], strict=False):
        show(panel, spotlight(image, weights), words(name))
    for panel, attribute in zip(axes[1], likeliest(examples, number), strict=False):
        mark, colour = PRESENT if examples.labels[number, attribute] else ABSENT
        if not examples.known[number, attribute]:
            mark, colour = "?", MUTED
        title = f"{words(schema.attributes[attribute])}\n{examples.probability[number, attribute]:.2f} {mark}"
        show(panel, spotlight(image, np.asarray(maps.attributes[number, attribute])), title, colour)
    return figure


def likeliest(examples: Examples, number: int) -> Sequence[int]:
    """The attributes of highest probability, likeliest first."""
    return np.argsort(-examples.probability[number], kind="stable")[:TOP_ATTRIBUTES].tolist()


def levels(examples: Examples, number: int, schema: AttributeSchema) -> Figure:
    """One example: for each level of the pyramid the tokens it merges, and where each group looks."""
    assert examples.gates is not None
    image, gates = examples.image[number], examples.gates[number]
    maps = [level[number] for level in examples.maps.levels]
    figure, axes = panels(len(maps), len(schema.groups) + 1)
    for row, looks in enumerate(maps):
        if row == 0:
            show(axes[0, 0], image, "image")
        else:
            parents, children = looks.shape[1:], maps[row - 1].shape[1:]
            mixed = _mixed(examples.assignments[row - 1][number], parents, children)
            show(axes[row, 0], _tint(image, mixed), f"{_grid(children)} to {_grid(parents)}")
        for column, weights in enumerate(looks):
            name = f"{words(schema.groups[column])}\n" if row == 0 else ""
            title = f"{name}gate {gates[column, row]:.2f}"
            show(axes[row, column + 1], spotlight(image, weights), title)
    return figure


def _grid(shape: tuple[int, ...]) -> str:
    return f" {TIMES} ".join(map(str, shape))


def _mixed(assignment: np.ndarray, parents: tuple[int, ...], children: tuple[int, ...]) -> np.ndarray:
    """Each child in the mixture of its parents' colours, neighbours of different ones: [h, w, 3] in 0..1."""
    rows, columns = np.indices(parents).reshape(2, -1)
    palette = np.array([[int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)] for c in CYCLE])
    colours = palette[(columns + 3 * rows) % len(palette)]
    return (assignment.T @ colours).reshape(*children, 3)


def _tint(image: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """The image in grey under blocks of colour."""
    height, width = image.shape[:2]
    rows = np.arange(height) * len(colours) // height
    blocks = colours[rows][:, np.arange(width) * colours.shape[1] // width]
    grey = image.mean(-1, keepdims=True) / 255
    return np.clip(0.55 * blocks + 0.45 * grey, 0, 1)


def bands(
    examples: Examples,
    schema: AttributeSchema,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    initial_cutoff: float,
) -> Figure:
    """Images, their low and high bands, the learned cutoff, and each group's gain curve."""
    found = examples.bands
    assert found is not None
    rows = min(BAND_ROWS, len(examples.image))
    figure = Figure(figsize=(10, max(3.2, 1.5 * rows + 0.3)), layout="constrained")
    parts: Any = figure.subfigures(1, 2, width_ratios=(1, 1.25))
    left, right = parts
    axes = left.subplots(rows, 3, squeeze=False)
    for row in range(rows):
        low = np.clip(found.low[row] * std + mean, 0, 1)
        high = np.clip(found.high[row] * std + 0.5, 0, 1)
        for panel, image, name in zip(
            axes[row], (examples.image[row], low, high), ("image", "low", "high"), strict=True
        ):
            show(panel, image, name if row == 0 else "")
    response, gains = right.subplots(2, 1)
    _response(response, found, initial_cutoff)
    _gains(gains, found, schema)
    return figure


def _response(axes: Axes, found: BandImages, initial_cutoff: float) -> None:
    frequency = np.linspace(0, 0.5, 200)
    for cutoff, colour, style in ((initial_cutoff, MUTED, (0, (4, 3))), (found.cutoff, ACCENT, "-")):
        axes.plot(frequency, np.exp(-0.5 * (frequency / cutoff) ** 2), color=colour, linestyle=style)
    axes.set_title(
        f"low-pass: cutoff {found.cutoff:.4f} cycles per pixel, at first {initial_cutoff:g} (dashed)"
    )
    axes.set_xlabel("frequency (cycles per pixel)")
    axes.set_ylabel("response")
    axes.set_xlim(0, 0.5)
    axes.set_ylim(0, 1.05)


def _gains(axes: Axes, found: BandImages, schema: AttributeSchema) -> None:
    for number, (name, curve) in enumerate(zip(schema.groups, found.gains, strict=True)):
        colour = CYCLE[number % len(CYCLE)]
        axes.plot(found.radii, curve, color=colour, marker="o", markersize=3, label=words(name))
    axes.axhline(1, color=LINE, linewidth=1, zorder=0)
    axes.set_title("gain of each group on the bands' features")
    axes.set_xlabel("frequency (cycles per pixel)")
    axes.set_ylabel("gain")
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)


def graph(found: GraphStatistics, schema: AttributeSchema) -> Figure:
    """Who listens to whom, and which level of the pyramid each group draws on."""
    names = [words(name) for name in schema.groups]
    count, levels = found.gates.shape
    height = 1.1 + 0.38 * count
    figure = Figure(figsize=(0.9 * count + 0.85 * levels + 3.2, height), layout="constrained")
    edges, gates = figure.subplots(1, 2, width_ratios=(count, levels))
    between = np.where(np.eye(count, dtype=bool), np.nan, found.edges)
    heat(edges, between, names, names)
    edges.set_title("edge: how much a group (row) listens to another (column)")
    edges.set_facecolor("#f3f4f6")
    places = [f"level {level}" for level in range(levels)]
    heat(gates, found.gates, names, places)
    gates.set_title("gate: how much a level, finest first,\ncontributes to a group")
    for axes in (edges, gates):
        axes.tick_params(axis="x", rotation=30 if count > 6 else 0)
    return figure


def routing(found: RoutingStatistics, schema: AttributeSchema) -> Figure:
    """Load of experts and clusters, and which attributes bring an expert more than its mean load."""
    experts = [f"expert {number}" for number in range(len(found.load))]
    clusters = [f"cluster {number}" for number in range(len(found.clusters))]
    wide = max(9.0, 0.24 * schema.num_attributes + 1.5)
    tall = 1.0 + 0.24 * max(len(experts), len(clusters))
    lower = 1.9 + 0.26 * len(experts)
    figure = Figure(figsize=(wide, tall + lower), layout="constrained")
    parts: Any = figure.subfigures(2, 1, height_ratios=(tall, lower))
    upper_part, lower_part = parts
    left, right = upper_part.subplots(1, 2)
    bars(left, experts, found.load.tolist(), 1 / len(experts), "uniform")
    left.set_title(
        f"load per expert; entropy {found.entropy:.2f} of at most {np.log(len(experts)):.2f} nats", pad=16
    )
    bars(right, clusters, found.clusters.tolist(), 1 / len(clusters), "uniform")
    right.set_title("share per cluster", pad=16)
    axes = lower_part.subplots()
    names = [words(name) for name in schema.attributes]
    more = 100 * (found.by_attribute - found.load).T
    drawn = heat(axes, more, experts, names, signed=True, numbers=False)
    axes.tick_params(axis="x", rotation=90)
    axes.set_title("load when an attribute is present, against the mean (percentage points)")
    bar = lower_part.colorbar(drawn, ax=axes, pad=0.01)
    bar.outline.set_visible(False)
    return figure


def on_object(attributes: OnObject, groups: OnObject, schema: AttributeSchema) -> Figure:
    """Attention on the objects that carry an attribute, against uniform attention."""
    chosen = [number for number, value in enumerate(attributes.groups) if np.isfinite(value)]
    names = [*(words(schema.groups[number]) for number in chosen), "all", "all, on other objects"]
    figure = Figure(figsize=(10, 1.1 + 0.34 * len(names)), layout="constrained")
    both = figure.subplots(1, 2, sharey=True)
    for axes, found, title in zip(
        both, (attributes, groups), ("attribute maps", "group attention"), strict=True
    ):
        values = [*(found.groups[number] for number in chosen), found.overall, found.others]
        bars(axes, names, values, 1.0, "uniform")
        axes.set_title(f"{title}: mass on the object, over uniform", pad=16, color=TEXT)
    return figure
