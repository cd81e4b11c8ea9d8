"""From a feature map to visual tokens that keep their place in the image."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32

from wsca_jax.models.layers import BatchNorm


def pooling_matrix(size: int, bins: int) -> Float[np.ndarray, "bins size"]:
    """Averages `size` positions into `bins` as PyTorch's AdaptiveAvgPool does: bin i covers
    floor(i * size / bins) to ceil((i + 1) * size / bins), so neighbouring bins may share a position.
    """
    matrix = np.zeros((bins, size), np.float32)
    for i in range(bins):
        start, end = i * size // bins, -(-(i + 1) * size // bins)
        matrix[i, start:end] = 1 / (end - start)
    return matrix


def adaptive_average_pool(feature: Float[Array, "B H W C"], grid: int) -> Float[Array, "B h w C"]:
    """Pools to `grid` x `grid`; a side already at or below `grid` keeps its own size, never upsampled."""
    _, height, width, _ = feature.shape
    rows = pooling_matrix(height, min(grid, height))
    columns = pooling_matrix(width, min(grid, width))
    return jnp.einsum("hH,wW,BHWC->BhwC", rows.astype(feature.dtype), columns.astype(feature.dtype), feature)


def interpolate(feature: Float[Array, "B H W C"], grid: tuple[int, int]) -> Float[Array, "B h w C"]:
    """Bilinear interpolation onto a finer grid."""
    rows, columns = (interpolation_matrix(n, m) for n, m in zip(feature.shape[1:3], grid, strict=True))
    return jnp.einsum("hH,wW,BHWC->BhwC", rows.astype(feature.dtype), columns.astype(feature.dtype), feature)


def interpolation_matrix(size: int, places: int) -> Float[np.ndarray, "places size"]:
    """Linear interpolation of `size` positions at `places` equidistant ones; the outermost are held."""
    centres = np.clip((np.arange(places) + 0.5) * size / places - 0.5, 0, size - 1)
    return np.maximum(0, 1 - np.abs(centres[:, None] - np.arange(size))).astype(np.float32)


class VisualTokens(nn.Module):
    """Feature maps -> tokens: adaptive pooling, Dense, BatchNorm, LayerNorm, ReLU, Dropout.

    Batch normalisation takes away what all images share. Most of a feature map is that; a LayerNorm alone
    keeps it, and what tells images apart then hardly counts in what follows.

    The first map gives the grid. Coarser ones, where given, tell each token what the later stages know about
    its place: their projections are interpolated and added before the normalisation (the top-down path of
    feature pyramids, Lin et al. 2017, arXiv:1612.03144). Every token still has a content of its own.

    Attributes:
      hidden_size: width d of a token.
      grid: the largest token grid per side (7 gives 49 tokens at 224 px).
      dropout: rate of the dropout on tokens, in training.
      dtype: dtype of the matrix product; the normalisations' statistics are float32.
      norm_parts: equal parts of the batch with statistics of their own, see `BatchNorm`.
    """

    hidden_size: int
    grid: int = 7
    dropout: float = 0.1
    dtype: DTypeLike = jnp.bfloat16
    norm_parts: int = 1

    @nn.compact
    def __call__(
        self,
        feature: Float[Array, "B H W C"],
        *coarser: Float[Array, "B H W C"],
        weight: Float32[Array, "B"] | None = None,
        train: bool,
    ) -> Float[Array, "B h w d"]:
        pooled = adaptive_average_pool(feature, self.grid)
        tokens = nn.Dense(self.hidden_size, use_bias=False, dtype=self.dtype, name="projection")(pooled)
        for number, above in enumerate(coarser):
            name = f"from_above_{number}"
            above = nn.Dense(self.hidden_size, use_bias=False, dtype=self.dtype, name=name)(above)
            tokens = tokens + interpolate(above, (tokens.shape[1], tokens.shape[2]))
        centre = BatchNorm(dtype=self.dtype, parts=self.norm_parts, name="centre")
        tokens = centre(tokens, weight=weight, train=train)
        tokens = nn.relu(nn.LayerNorm(dtype=self.dtype, name="norm")(tokens))
        return nn.Dropout(self.dropout, deterministic=not train)(tokens)
