"""One classifier per attribute group, all groups in one batched computation."""

from __future__ import annotations

from collections.abc import Mapping

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
    Groups without attributes cost nothing and have no parameters. Each of the `linear` features adds a linear
    classifier of its own, those of groups after a LayerNorm: a deep head alone learns rare attributes slowly
    from few images, because their gradient has to find its way through three layers first. Those of groups
    start small, so that what modules add does not drown what the trunk's mean says at the start.

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
        linear: Mapping[str, Float[Array, "B *G C"]] | None = None,
        *,
        train: bool,
    ) -> Float32[Array, "B A"]:
        """Classifies.

        Args:
          pooled: [B, d], the pooled image.
          refined: [B, G, a], the groups' features.
          linear: {name: [B, C], the same for every group, or [B, G, C]}, also read by linear classifiers.
          train: whether to drop out.
        """
        members, slots = padded_members(self.group_of)
        features = nn.Dense(self.attr_dim, dtype=self.dtype, name="pooled")(pooled)[:, None]
        if refined is not None:
            features = features + refined[:, np.unique(self.group_of)]
        features = nn.LayerNorm(dtype=self.dtype, name="norm")(features)
        features = nn.Dense(self.hidden_size, dtype=self.dtype, name="projector")(features)
        features = jnp.broadcast_to(features, (len(features), len(members), self.hidden_size))
        hidden = self._hidden(features, train)
        logits = self._logits(hidden, members)[:, slots]
        return sum((self._linear(x, name) for name, x in (linear or {}).items()), logits)

    def _linear(self, features: Float[Array, "B *G C"], name: str) -> Float32[Array, "B A"]:
        if features.ndim == 2:
            classify = nn.Dense(len(self.group_of), dtype=self.dtype, use_bias=False, name=f"linear_{name}")
            return classify(features).astype(jnp.float32)
        small = nn.initializers.variance_scaling(0.01, "fan_in", "truncated_normal", in_axis=1, out_axis=0)
        shape = (len(self.group_of), features.shape[-1])
        kernel = self.param(f"linear_{name}_kernel", small, shape, jnp.float32).astype(self.dtype)
        normed = nn.LayerNorm(dtype=self.dtype, use_bias=False, name=f"linear_{name}_norm")(features)
        own = normed[:, np.asarray(self.group_of)]
        return jnp.einsum("bac,ac->ba", own, kernel, preferred_element_type=jnp.float32)

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
