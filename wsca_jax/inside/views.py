"""What the modules of a trained model look at and decide, as typed records of NumPy arrays."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float32, Float64

from wsca_jax.errors import WscaError
from wsca_jax.evaluate import Trained
from wsca_jax.inside.reading import Read, collect
from wsca_jax.models import maps
from wsca_jax.models.frequency import HIGHEST_FREQUENCY, STRIDE
from wsca_jax.models.wsca import Outputs


class AttentionMaps(NamedTuple):
    """Where the model looks; JAX arrays while they are traced, NumPy arrays in the end.

    Attributes:
      groups: float32 [N, G, h, w], the encoder's attention per attribute group; each map sums to 1. None
        without an encoder.
      attributes: float32 [N, A, h, w], where what speaks for each attribute lies: the positive part of
        `evidence`, scaled to sum to 1 (all 0 where nothing does). None without an encoder.
      contributions: float32 [N, A, h, w], what each token adds to each logit by way of the branches, with its
        sign; see `models.maps.evidence`. None without an encoder.
      evidence: float32 [N, A, h, w], the same beyond what the group reads on average. None likewise.
      levels: for each level of the decomposer's pyramid, finest first, float32 [N, G, h_l, w_l]: where each
        group's node looks on it; sums to 1. Empty without a decomposer.
    """

    groups: Float32[Array, "N G h w"] | None
    attributes: Float32[Array, "N A h w"] | None
    contributions: Float32[Array, "N A h w"] | None
    evidence: Float32[Array, "N A h w"] | None
    levels: tuple[Float32[Array, "N G _ _"], ...]


class RoutingStatistics(NamedTuple):
    """How the router spreads a data set over its experts.

    Attributes:
      load: [E], the mean probability of each expert; sums to 1.
      entropy: mean entropy of an example's probabilities, in nats; 0 is one expert for each example, log E
        all of them for every one.
      clusters: [C], the mean share of each cluster in the soft assignment; sums to 1.
      by_attribute: [A, E], the mean probabilities over examples that are known to have the attribute; NaN
        where there are none.
    """

    load: Float64[np.ndarray, "E"]
    entropy: float
    clusters: Float64[np.ndarray, "C"]
    by_attribute: Float64[np.ndarray, "A E"]


class GraphStatistics(NamedTuple):
    """The decomposer's learned structure, averaged over a data set.

    Attributes:
      edges: [G, G] in (0, 1), how much group i (row) listens to group j; 1 on the diagonal.
      gates: [G, L] in (0, 1), how much each level of the pyramid, finest first, contributes to each group.
    """

    edges: Float64[np.ndarray, "G G"]
    gates: Float64[np.ndarray, "G L"]


class BandImages(NamedTuple):
    """What the frequency branch makes of images.

    Attributes:
      low, high: float32 [N, H, W, 3], the bands of the normalised image; they add up to it.
      cutoff: the low-pass's standard deviation, in cycles per pixel.
      gains: float32 [G, R], each group's gain at R radii of the bands' feature maps; linear between them.
      radii: float64 [R], those radii, in cycles per pixel of the image.
    """

    low: Float32[np.ndarray, "N H W 3"]
    high: Float32[np.ndarray, "N H W 3"]
    cutoff: float
    gains: Float32[np.ndarray, "G R"]
    radii: Float64[np.ndarray, "R"]


def attention_maps(trained: Trained, *, examples: int | None = None) -> AttentionMaps:
    """Attention per group, per attribute and per level.

    Args:
      trained: from `load`.
      examples: how many of the split's first examples; None for all of them.

    Raises:
      WscaError: the model has neither encoder nor decomposer, and so no attention over tokens.
    """
    model: Any = trained.run.method.model
    if model.encoder is None and model.decomposer is None:
        raise WscaError("this model attends to nothing: it was trained without encoder and decomposer")
    return collect(trained, read_maps(trained), examples=examples)


def read_maps(trained: Trained) -> Read:
    """What `collect` needs to return `AttentionMaps`."""
    model: Any = trained.run.method.model

    def read(variables: Any, outputs: Outputs, batch: Any) -> AttentionMaps:
        levels = () if outputs.decomposition is None else outputs.decomposition.levels
        looks = tuple(level.attention for level in levels)
        if outputs.encoding is None:
            return AttentionMaps(None, None, None, None, looks)
        found = maps.evidence(model, variables, outputs)
        attributes = maps.positive_maps(found.evidence)
        return AttentionMaps(outputs.encoding.attention, attributes, *found, looks)

    return read


def routing_statistics(trained: Trained, *, examples: int | None = None) -> RoutingStatistics:
    """How the router spreads the split; raises WscaError where the model has none."""
    _need(trained, "router")
    return summarise_routing(collect(trained, read_routing, examples=examples))


class RoutingRows(NamedTuple):
    """Per example, what `RoutingStatistics` are made of."""

    probabilities: Float32[Array, "N E"]
    assignment: Float32[Array, "N C"]
    present: Float32[Array, "N A"]
    weight: Float32[Array, "N"]


def read_routing(variables: Any, outputs: Outputs, batch: Any) -> RoutingRows:
    """What `collect` needs to return `RoutingRows`."""
    routing, present = outputs.routing, (batch.labels > 0) & batch.known
    assert routing is not None
    return RoutingRows(routing.probabilities, routing.assignment, present, batch.weight)


def summarise_routing(rows: RoutingRows) -> RoutingStatistics:
    weight = np.asarray(rows.weight, np.float64)
    probabilities, present = np.asarray(rows.probabilities, np.float64), rows.present * weight[:, None]
    entropy = -(probabilities * np.log(np.maximum(probabilities, 1e-30))).sum(1)
    counts = present.sum(0)[:, None]
    by_attribute = np.divide(
        present.T @ probabilities,
        counts,
        out=np.full((len(counts), probabilities.shape[1]), np.nan),
        where=counts > 0,
    )
    return RoutingStatistics(
        np.average(probabilities, axis=0, weights=weight),
        float(np.average(entropy, weights=weight)),
        np.average(np.asarray(rows.assignment, np.float64), axis=0, weights=weight),
        by_attribute,
    )


def graph_statistics(trained: Trained, *, examples: int | None = None) -> GraphStatistics:
    """The decomposer's mean edges and gates; raises WscaError where the model has none."""
    _need(trained, "decomposer")
    return summarise_graph(collect(trained, read_graph, examples=examples))


class GraphRows(NamedTuple):
    """Per example, what `GraphStatistics` are made of."""

    edges: Float32[Array, "N G G"]
    gates: Float32[Array, "N G L"]
    weight: Float32[Array, "N"]


def read_graph(variables: Any, outputs: Outputs, batch: Any) -> GraphRows:
    """What `collect` needs to return `GraphRows`."""
    assert outputs.decomposition is not None
    return GraphRows(outputs.decomposition.edges, outputs.decomposition.gates, batch.weight)


def summarise_graph(rows: GraphRows) -> GraphStatistics:
    edges, gates = (
        np.average(np.asarray(values, np.float64), axis=0, weights=rows.weight)
        for values in (rows.edges, rows.gates)
    )
    return GraphStatistics(edges, gates)


def band_images(trained: Trained, *, examples: int | None = None) -> BandImages:
    """Both bands of the split's images, the cutoff and the gains; raises WscaError without the module."""
    _need(trained, "frequency")
    low, high = collect(trained, read_bands, examples=examples)
    return describe_bands(trained, low, high)


def read_bands(variables: Any, outputs: Outputs, batch: Any) -> tuple[Array, Array]:
    """What `collect` needs to return both bands."""
    assert outputs.frequency is not None
    return outputs.frequency.low, outputs.frequency.high


def describe_bands(trained: Trained, low: np.ndarray, high: np.ndarray) -> BandImages:
    """Adds what the frequency branch has learned to images of its bands."""
    learned = jax.device_get(trained.state.evaluation_variables["params"]["frequency"])
    cutoff = HIGHEST_FREQUENCY / (1 + np.exp(-np.float64(learned["theta"])))
    gains = learned["gains"]
    # The gains act on maps of stride 4, whose corner lies at sqrt(2) / 2 cycles per position.
    radii = np.linspace(0, np.sqrt(2) * HIGHEST_FREQUENCY / STRIDE, gains.shape[1])
    return BandImages(low, high, float(cutoff), gains, radii)


def _need(trained: Trained, module: str) -> None:
    if getattr(trained.run.method.model, module) is None:
        raise WscaError(
            f"this model has no {module}: train one with --config.model.{module}=default to look at it"
        )
