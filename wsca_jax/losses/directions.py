"""Unit vectors for losses that compare directions."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Float32

# Added to a squared norm: a zero vector has cosine 0 to everything, and a finite gradient.
_SQUARED_NORM = 1e-6


def unit(x: Float32[Array, "... a"]) -> Float32[Array, "... a"]:
    """x at length 1; zeros stay zeros."""
    return x * lax.rsqrt((x**2).sum(-1, keepdims=True) + _SQUARED_NORM)


def counted(x: Float[Array, "B *rest"], weight: Float32[Array, "B"]) -> Float32[Array, "B *rest"]:
    """In float32, with zeros for examples of weight 0: not even a NaN of theirs gets through."""
    counts = weight.reshape(-1, *[1] * (x.ndim - 1)) > 0.0
    return jnp.where(counts, x.astype(jnp.float32), 0.0)
