"""The loss that keeps an image's low and high frequency features apart: arrays in, one float32 scalar out."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Float32

Scalar = Float32[Array, ""]

EPSILON = 1e-5  # added to variances


def decoupling(
    low_features: Float[Array, "B K"],
    high_features: Float[Array, "B L"],
    weight: Float[Array, "B"],
    *,
    regularisation: float = 0.1,
) -> Scalar:
    """Mean squared cross-correlation between two sets of features, over the batch.

    With z the features standardised by their weighted mean mu and standard deviation sigma, and
    C = sum_i w_i z_low,i z_high,i^T / sum_i w_i:

        mean(C^2) + regularisation * (mean of mu^2 + (sigma - 1)^2 over both sets)

    Correlations do not change when a feature is moved or scaled, and those of a constant are 0: without the
    second part features could drift anywhere, or satisfy the loss by falling silent. Independent features
    leave mean(C^2) near 1 / (B - 1).

    Args:
      low_features, high_features: any float dtype.
      weight: each example's weight in [0, 1]; what stands in a row of weight 0 changes nothing.
      regularisation: factor of the second part, at least 0.

    Returns:
      A float32 scalar >= 0; 0 with gradient 0 where fewer than two rows have weight.

    Raises:
      ValueError: regularisation is negative.
    """
    if regularisation < 0.0:
        raise ValueError(f"regularisation must be at least 0, found {regularisation}")
    weight = weight.astype(jnp.float32)
    share = weight / jnp.maximum(weight.sum(), jnp.finfo(jnp.float32).tiny)
    low, low_moments = _standardise(low_features, share)
    high, high_moments = _standardise(high_features, share)
    correlation = jnp.einsum("bk,bl->kl", share[:, None] * low, high, precision=lax.Precision.HIGHEST)
    loss = jnp.mean(jnp.square(correlation)) + regularisation * 0.5 * (low_moments + high_moments)
    return jnp.where(jnp.sum(weight > 0) >= 2, loss, 0.0)


def _standardise(
    features: Float[Array, "B K"], share: Float32[Array, "B"]
) -> tuple[Float32[Array, "B K"], Scalar]:
    """Standardised features, and how far their moments are from mean 0 and standard deviation 1."""
    share = share[:, None]
    features = jnp.where(share > 0, features.astype(jnp.float32), 0.0)  # padding may hold anything, even nan
    mean = jnp.sum(share * features, axis=0)
    centred = features - mean
    deviation = jnp.sqrt(jnp.sum(share * jnp.square(centred), axis=0) + EPSILON)
    return centred / deviation, jnp.mean(jnp.square(mean) + jnp.square(deviation - 1.0))
