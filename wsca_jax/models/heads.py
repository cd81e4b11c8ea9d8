"""The classifiers: one per attribute group, all groups in one batched computation, and linear ones."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32, Int

from wsca_jax.models.layers import FeatureNorm


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
    projector(LayerNorm(FeatureNorm(refined_g + Dense(pooled)))); without `refined` its part drops out of the
    sum. Groups without attributes cost nothing and have no parameters. Each of the `linear` features has a
    linear classifier of its own beside it, those of groups after a FeatureNorm: a deep head alone learns rare
    attributes slowly from few images, because their gradient has to find its way through three layers first.

    Features are normalised over the batch first. What all images share would fill a LayerNorm's output and
    leave hidden units that are on for every image or for none.

    Attributes:
      group_of: for each attribute, its group's number.
      hidden_size: width d of the classifiers' input.
      attr_dim: width a of refined group features.
      dropout: rate inside the classifiers, in training.
      dtype: dtype of the matrix products; logits are float32.
      norm_parts: equal parts of the batch with statistics of their own, see `BatchNorm`.
    """

    group_of: tuple[int, ...]
    hidden_size: int
    attr_dim: int
    dropout: float = 0.1
    dtype: DTypeLike = jnp.bfloat16
    norm_parts: int = 1

    @nn.compact
    def __call__(
        self,
        pooled: Float[Array, "B d"],
        refined: Float[Array, "B G a"] | None = None,
        linear: Mapping[str, Float[Array, "B *G C"]] | None = None,
        *,
        weight: Float32[Array, "B"] | None = None,
        train: bool,
    ) -> dict[str, Float32[Array, "B A"]]:
        """Every classifier's logits: "groups", and one for each of `linear` by its name.

        Args:
          pooled: [B, d], the pooled image.
          refined: [B, G, a], the groups' features.
          linear: {name: [B, C], the same for every group, or [B, G, C]}, read by linear classifiers.
          weight: the examples' weights in the batch's statistics; None: all 1.
          train: whether to drop out, and to normalise by the batch's own statistics.
        """
        members, slots = padded_members(self.group_of)
        features = self._dense(self.attr_dim, "pooled", use_bias=False)(pooled)[:, None]
        if refined is not None:
            features = features + refined[:, np.unique(self.group_of)]
        features = FeatureNorm(self.dtype, self.norm_parts, name="centre")(
            features, weight=weight, train=train
        )
        features = nn.LayerNorm(dtype=self.dtype, name="norm")(features)
        features = nn.Dense(self.hidden_size, dtype=self.dtype, name="projector")(features)
        features = jnp.broadcast_to(features, (len(features), len(members), self.hidden_size))
        hidden = self._hidden(features, train)
        found = {"groups": self._logits(hidden, members)[:, slots]}
        for name, x in (linear or {}).items():
            if x.ndim == 2:
                found[name] = self._dense(len(self.group_of), f"linear_{name}")(x)
                continue
            norm = FeatureNorm(self.dtype, self.norm_parts, affine=False, name=f"linear_{name}_norm")
            found[name] = self._linear(norm(x, weight=weight, train=train), name)
        return found

    def _dense(self, width: int, name: str, use_bias: bool = True) -> nn.Dense:
        """A linear layer whose result stays in float32, as it adds up."""
        product = functools.partial(lax.dot_general, preferred_element_type=jnp.float32)
        return nn.Dense(width, use_bias, dtype=self.dtype, dot_general=product, name=name)

    def _linear(self, features: Float[Array, "B G C"], name: str) -> Float32[Array, "B A"]:
        attributes, width = len(self.group_of), features.shape[-1]
        initial = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal", in_axis=1, out_axis=0)
        kernel = self.param(f"linear_{name}_kernel", initial, (attributes, width), jnp.float32)
        bias = self.param(f"linear_{name}_bias", nn.initializers.zeros_init(), (attributes,), jnp.float32)
        own = features[:, np.asarray(self.group_of)]
        logits = jnp.einsum("bac,ac->ba", own, kernel.astype(self.dtype), preferred_element_type=jnp.float32)
        return logits + bias

    def _hidden(self, features: Float[Array, "B G d"], train: bool) -> Float[Array, "B G h"]:
        groups, width = features.shape[1], self.hidden_size // 2
        initial = nn.initializers.lecun_normal(batch_axis=(0,))
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
