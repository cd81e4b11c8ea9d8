"""What every attention here computes, once queries, keys and values are there."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32


def attend(
    query: Float[Array, "B Q H c"],
    key: Float[Array, "B K H c"],
    value: Float[Array, "B K H c"],
    *,
    present: Bool[Array, "B K"] | None = None,
    bias: Float32[Array, "H Q K"] | None = None,
) -> tuple[Float[Array, "B Q H c"], Float32[Array, "B H Q K"]]:
    """softmax(q . k / sqrt(c) + bias) v, for each head (Vaswani et al. 2017, arXiv:1706.03762, equation 1).

    `jax.nn.dot_product_attention` does not return the weights, and these are looked at.

    Args:
      present: keys that may be read. Where none is, the result is finite and means nothing.
      bias: added to the scores; -inf, but not for all keys, keeps a query from a key.

    Returns:
      What each query reads, in the values' dtype, and how much of each key: float32, summing to 1 over K.
    """
    scores = jnp.einsum("bqhc,bkhc->bhqk", query, key, preferred_element_type=jnp.float32)
    scores = scores / query.shape[-1] ** 0.5
    if bias is not None:
        scores = scores + bias
    if present is not None:
        # Finite, so that a row without any present token becomes uniform instead of 0 / 0.
        scores = jnp.where(present[:, None, None], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1)
    return jnp.einsum("bhqk,bkhc->bqhc", weights.astype(value.dtype), value), weights
