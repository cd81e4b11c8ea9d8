"""What the figures show, in two passes: everything about a few examples, averages over many."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Bool, Float32, UInt8

from input_pipeline import scenes
from wsca_jax.evaluate import Trained
from wsca_jax.inside import on_object, views
from wsca_jax.inside.on_object import OnObject
from wsca_jax.inside.reading import collect
from wsca_jax.inside.views import AttentionMaps, BandImages, GraphStatistics, RoutingStatistics
from wsca_jax.models.wsca import Outputs


class Examples(NamedTuple):
    """A few examples and all that the model does with them; None or empty where it lacks the module.

    Attributes:
      image: uint8 [N, H, W, 3].
      labels, known: [N, A], the truth and whether it is known.
      probability: float32 [N, A].
      maps: where the model looks.
      assignments: for each merge of the pyramid, finest first, float32 [N, P, C].
      gates: float32 [N, G, L].
      bands: the frequency branch's images, cutoff and gains.
    """

    image: UInt8[np.ndarray, "N H W 3"]
    labels: UInt8[np.ndarray, "N A"]
    known: Bool[np.ndarray, "N A"]
    probability: Float32[np.ndarray, "N A"]
    maps: AttentionMaps
    assignments: tuple[Float32[np.ndarray, "N P C"], ...]
    gates: Float32[np.ndarray, "N G L"] | None
    bands: BandImages | None


class Averages(NamedTuple):
    """Figures over many examples; None where the model lacks the module or the data say nothing.

    Attributes:
      examples: how many.
      routing, graph: as `inside` returns them.
      attributes_on_object: of the attribute maps; on Scenes, with an encoder.
      groups_on_object: of each attribute's group's attention; likewise.
    """

    examples: int
    routing: RoutingStatistics | None
    graph: GraphStatistics | None
    attributes_on_object: OnObject | None
    groups_on_object: OnObject | None


def gather_examples(trained: Trained, examples: int) -> Examples:
    """Runs the model over the split's first examples and keeps everything."""
    read_maps = views.read_maps(trained)

    def read(variables: Any, outputs: Outputs, batch: Any) -> Examples:
        bands = None if outputs.frequency is None else views.read_bands(variables, outputs, batch)
        pyramid = outputs.decomposition
        levels = () if pyramid is None else pyramid.levels[1:]
        return Examples(
            batch.image,
            batch.labels,
            batch.known,
            jax.nn.sigmoid(outputs.logits),  # type: ignore[arg-type]  # NumPy once collected
            read_maps(variables, outputs, batch),
            tuple(level.assignment for level in levels),  # type: ignore[misc]  # all but the first have one
            None if pyramid is None else pyramid.gates,  # type: ignore[arg-type]
            bands,  # type: ignore[arg-type]  # completed below
        )

    found: Examples = collect(trained, read, examples=examples)
    if found.bands is None:
        return found
    return found._replace(bands=views.describe_bands(trained, *found.bands[:2]))


class _Rows(NamedTuple):
    routing: views.RoutingRows | None
    graph: views.GraphRows | None
    groups: Float32[Array, "N G h w"] | None
    attributes: Float32[Array, "N A h w"] | None


def gather_averages(trained: Trained, examples: int) -> Averages:
    """Runs the model over more examples and keeps what averages are made of."""
    read_maps, on_scenes = views.read_maps(trained), isinstance(trained.source, scenes.Source)

    def read(variables: Any, outputs: Outputs, batch: Any) -> _Rows:
        maps = read_maps(variables, outputs, batch) if on_scenes else None
        return _Rows(
            None if outputs.routing is None else views.read_routing(variables, outputs, batch),
            None if outputs.decomposition is None else views.read_graph(variables, outputs, batch),
            None if maps is None else maps.groups,
            None if maps is None else maps.attributes,
        )

    count = min(examples, len(trained.source))
    rows: _Rows = collect(trained, read, examples=count)
    attributes, groups = _on_object(trained, rows)
    return Averages(
        count,
        None if rows.routing is None else views.summarise_routing(rows.routing),
        None if rows.graph is None else views.summarise_graph(rows.graph),
        attributes,
        groups,
    )


def _on_object(trained: Trained, rows: _Rows) -> tuple[OnObject | None, OnObject | None]:
    source = trained.source
    if rows.groups is None or rows.attributes is None or not isinstance(source, scenes.Source):
        return None, None
    _, _, height, width = rows.groups.shape
    truth = on_object.scene_truth(source, len(rows.groups), (height, width))
    group_of = source.schema.group_of
    of_group = rows.groups[:, np.asarray(group_of)]
    return (
        on_object.attention_on_objects(np.asarray(rows.attributes), *truth, group_of),
        on_object.attention_on_objects(np.asarray(of_group), *truth, group_of),
    )
