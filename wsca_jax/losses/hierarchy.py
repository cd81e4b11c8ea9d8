"""Losses on a pyramid of tokens and on the graph between groups: arrays in, one float32 scalar out.

Levels come finest first, each a feature map [B, h, w, c]; what a level does not have is None. Every loss is
a mean over examples by `weight`, in float32, and 0 where nothing has weight or there is nothing to compare.
Zero vectors have cosine 0, and a finite gradient.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32

Scalar = Float32[Array, ""]
Map = Float[Array, "B h w c"]

SMALLEST_SQUARE = 1e-6  # floor of squared lengths and variances


def hierarchy(
    features: Sequence[Map],
    bottom_up: Sequence[Map],
    children: Sequence[Map | None],
    residuals: Sequence[Map | None],
    weight: Float[Array, "B"],
    *,
    consistency_scale: float = 1.0,
    diversity_scale: float = 1.0,
    structure_scale: float = 1.0,
) -> Scalar:
    """consistency_scale * consistency + diversity_scale * diversity + structure_scale * structure.

    Args:
      features: each level after what came down from above.
      bottom_up: each level before.
      children: for each level the mean of the level below; None at the finest.
      residuals: for each level what came down from above; None at the top.
      weight: each example's weight in [0, 1]; 0 for padding.
      consistency_scale, diversity_scale, structure_scale: factors; a loss with factor 0 is not computed.
    """
    parts = (
        (consistency_scale, lambda: consistency(bottom_up, children, weight)),
        (diversity_scale, lambda: diversity(residuals, weight)),
        (structure_scale, lambda: structure(features, weight)),
    )
    return sum((scale * loss() for scale, loss in parts if scale), jnp.zeros((), jnp.float32))


def consistency(
    bottom_up: Sequence[Map], children: Sequence[Map | None], weight: Float[Array, "B"]
) -> Scalar:
    """1 - cos(parent, mean of its children), over the tokens of every level that has children.

    The children's side carries no gradient: a parent answers for its children, not they for it.

    Args:
      bottom_up: [B, h, w, c] of each level, the finest first.
      children: for each level the mean of what it merged, of its own shape; None at the finest.
      weight: each example's weight in [0, 1]; 0 for padding.

    Returns:
      A float32 scalar in [0, 2].
    """
    per_level = [
        (1.0 - _cosine(_f32(parent), jax.lax.stop_gradient(_f32(mean)))).mean((1, 2))
        for parent, mean in zip(bottom_up, children, strict=True)
        if mean is not None
    ]
    return _mean(per_level, weight)


def diversity(residuals: Sequence[Map | None], weight: Float[Array, "B"], *, margin: float = 0.3) -> Scalar:
    """max(cos(r_i, r_j) - margin, 0) over pairs of levels, r_i the mean of level i's residual over tokens.

    Only what the levels add is held apart, for their features are meant to agree (`consistency`).

    Args:
      residuals: [B, h, w, c] of each level; None at the top.
      weight: each example's weight in [0, 1]; 0 for padding.
      margin: cosines up to this cost nothing.

    Returns:
      A float32 scalar in [0, 1 - margin].

    Raises:
      ValueError: margin lies outside [-1, 1).
    """
    if not -1.0 <= margin < 1.0:
        raise ValueError(f"margin must lie in [-1, 1), found {margin}")
    means = [_f32(residual).mean((1, 2)) for residual in residuals if residual is not None]
    pairs = itertools.combinations(means, 2)
    return _mean([jnp.maximum(_cosine(one, other) - margin, 0.0) for one, other in pairs], weight)


def structure(features: Sequence[Map], weight: Float[Array, "B"]) -> Scalar:
    """max(var_above - var_below, 0) over neighbouring levels: a higher level varies less over its tokens.

    var is the variance over tokens of features normalised over channels (LayerNorm without parameters),
    averaged over channels; it lies in [0, 1].

    Args:
      features: [B, h, w, c] of each level, the finest first.
      weight: each example's weight in [0, 1]; 0 for padding.

    Returns:
      A float32 scalar in [0, 1].
    """
    spread = [_normalise(_f32(level)).var((1, 2)).mean(-1) for level in features]
    return _mean([jnp.maximum(above - below, 0.0) for below, above in itertools.pairwise(spread)], weight)


def graph(edges: Float[Array, "B G G"], weight: Float[Array, "B"]) -> Scalar:
    """The mean edge between different groups, edges being in [0, 1]; 0 for a single group."""
    groups = edges.shape[-1]
    between = jnp.where(np.eye(groups, dtype=bool), 0.0, _f32(edges))
    return _mean([between.sum((1, 2)) / max(groups * (groups - 1), 1)], weight)


def _cosine(x: Float32[Array, "... c"], y: Float32[Array, "... c"]) -> Float32[Array, "..."]:
    return (_unit(x) * _unit(y)).sum(-1)


def _unit(x: Float32[Array, "... c"]) -> Float32[Array, "... c"]:
    return x * jax.lax.rsqrt(jnp.maximum((x * x).sum(-1, keepdims=True), SMALLEST_SQUARE))


def _normalise(x: Float32[Array, "... c"]) -> Float32[Array, "... c"]:
    centred = x - x.mean(-1, keepdims=True)
    return centred * jax.lax.rsqrt((centred * centred).mean(-1, keepdims=True) + SMALLEST_SQUARE)


def _f32(x: Array) -> Float32[Array, "..."]:
    return x.astype(jnp.float32)


def _mean(comparisons: list[Float32[Array, "B"]], weight: Float[Array, "B"]) -> Scalar:
    """The weighted mean over examples of the mean over comparisons; 0 without any."""
    if not comparisons:
        return jnp.zeros((), jnp.float32)
    weight = _f32(weight)
    total = weight.sum()
    values = sum(comparisons[1:], comparisons[0]) / len(comparisons)
    return (values * weight).sum() / jnp.where(total > 0.0, total, 1.0)
