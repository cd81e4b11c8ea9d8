"""One classifier per attribute group, all groups in one batched computation."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32, Int


def padded_members(group_of: tuple[int, ...]) -> tuple[Int[np.ndarray, "G M"], Int[np.ndarray, "A"]]:
    """Lays attributes of unequal groups out in one rectangle.

    Returns:
      members: for each group that has attributes, their positions, padded by repeating its first one up
        to the largest group's size M.
      slots: for each attribute, its position in the flattened [G * M] rectangle.
    """
    groups = [np.flatnonzero(np.asarray(group_of) == g) for g in sorted(set(group_of))]
    size = max(len(g) for g in groups)
    members = np.stack([np.concatenate([g, np.full(size - len(g), g[0])]) for g in groups])
    slots = np.empty(len(group_of), np.int32)
    for row, group in enumerate(groups):
        slots[group] = row * size + np.arange(len(group))
    return members, slots


class GroupHeads(nn.Module):
    """Attribute logits from the pooled image and, where present, refined group features.

    Group g's classifier, Dense d/2 -> ReLU -> Dropout -> Dense A_g, reads
    projector(LayerNorm(refined_g + Dense(pooled))); without `refined` its part drops out of the sum.
    Groups without attributes cost nothing and have no parameters. A linear classifier of the trunk's own
    pooled features is added where they are given: a deep head alone learns rare attributes slowly from few
    images, because their gradient has to find its way through three layers first.

    Attributes:
      group_of: for each attribute, its group's number.
      hidden_size: width d of the classifiers' input.
      attr_dim: width a of refined group features.
      dropout: rate inside the classifiers, in training.
      dtype: dtype of the matrix products; logits are float32.
    """

    group_of: tuple[int, ...]
    hidden_size: int
    attr_dim: int
    dropout: float = 0.1
    dtype: DTypeLike = jnp.bfloat16

    @nn.compact
    def __call__(
        self,
        pooled: Float[Array, "B d"],
        refined: Float[Array, "B G a"] | None = None,
        trunk: Float[Array, "B C"] | None = None,
        *,
        train: bool,
    ) -> Float32[Array, "B A"]:
        members, slots = padded_members(self.group_of)
        features = nn.Dense(self.attr_dim, dtype=self.dtype, name="pooled")(pooled)[:, None]
        if refined is not None:
            features = features + refined[:, np.unique(self.group_of)]
        features = nn.LayerNorm(dtype=self.dtype, name="norm")(features)
        features = nn.Dense(self.hidden_size, dtype=self.dtype, name="projector")(features)
        features = jnp.broadcast_to(features, (len(features), len(members), self.hidden_size))
        hidden = self._hidden(features, train)
        logits = self._logits(hidden, members)[:, slots]
        if trunk is None:
            return logits
        linear = nn.Dense(len(self.group_of), dtype=self.dtype, use_bias=False, name="linear")
        return logits + linear(trunk).astype(jnp.float32)

    def _hidden(self, features: Float[Array, "B G d"], train: bool) -> Float[Array, "B G h"]:
        groups, width = features.shape[1], self.hidden_size // 2
        initial = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal", batch_axis=(0,))
        kernel = self.param("hidden_kernel", initial, (groups, self.hidden_size, width), jnp.float32)
        bias = self.param("hidden_bias", nn.initializers.zeros_init(), (groups, width), jnp.float32)
        hidden = jnp.einsum("bgd,gdh->bgh", features, kernel.astype(self.dtype))
        hidden = nn.relu(hidden + bias.astype(self.dtype))
        return nn.Dropout(self.dropout, deterministic=not train)(hidden)

    def _logits(
        self, hidden: Float[Array, "B G h"], members: Int[np.ndarray, "G M"]
    ) -> Float32[Array, "B GM"]:
        attributes, width = len(self.group_of), hidden.shape[-1]
        initial = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal", in_axis=1, out_axis=0)
        kernel = self.param("kernel", initial, (attributes, width), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros_init(), (attributes,), jnp.float32)
        logits = jnp.einsum(
            "bgh,gmh->bgm", hidden, kernel.astype(self.dtype)[members], preferred_element_type=jnp.float32
        )
        return (logits + bias[members]).reshape(len(hidden), -1)
