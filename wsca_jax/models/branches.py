"""One attribute branch per group, all groups in one batched computation."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32

_PER_GROUP = nn.initializers.lecun_normal(batch_axis=(0,))
# A token hears all groups at once: the fan-in of what flows back is G a.
_OVER_GROUPS = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal", in_axis=(0, 1))


class Branches(NamedTuple):
    """What the branches saw and said.

    Attributes:
      tokens: [B, h, w, d], with what flowed back from the branches.
      branches: [B, G, a], the groups' features: `attention` times `values`, summed over tokens, up to
        dropout in training.
      values: [B, G, N, a], what the attention averages; N = h w, rows first.
      attention: float32 [B, G, h, w], the weights that pooled the branches; they sum to 1 over (h, w).
    """

    tokens: Float[Array, "B h w d"]
    branches: Float[Array, "B G a"]
    values: Float[Array, "B G N a"]
    attention: Float32[Array, "B G h w"]


class AttributeBranches(nn.Module):
    """Features and attention maps of the attribute groups.

    With its own weights for each group g, and n running over tokens:

        hidden_gn = ReLU(LayerNorm(Dense_g(token_n)))
        weight_g  = softmax over n of query_g . hidden_gn / sqrt(a)
        branch_g  = Dense_g(Dropout(sum_n weight_gn hidden_gn))
        token_n  += sum_g sigmoid(Dense(token_n))_g W_g branch_g

    The query reads the hidden features, not the values: where to look and what to say are then separate
    linear functions of one representation. The mean of values Dense_g(hidden_gn) is the value of the mean, as
    the weights sum to 1, so a channel that is dropped is dropped at every place of an image, as for feature
    maps (Tompson et al. 2015, arXiv:1411.4280), and nothing is drawn for each token. Each token has its own
    gate for each group.

    Attributes:
      num_groups: G.
      attr_dim: width a of a branch.
      dropout: rate of the dropout between the two layers, in training; one draw for each image and channel.
      dtype: dtype of the matrix products; softmax and normalisation statistics are float32.
    """

    num_groups: int
    attr_dim: int
    dropout: float = 0.1
    dtype: DTypeLike = jnp.bfloat16

    @nn.compact
    def __call__(self, tokens: Float[Array, "B h w d"], *, train: bool) -> Branches:
        batch, height, width, channels = tokens.shape
        flat = tokens.reshape(batch, height * width, channels).astype(self.dtype)
        hidden = nn.relu(self._normalise(self._hidden(flat)))
        speak = self._output()
        attention = self._attention(hidden)
        seen = jnp.sum(attention[..., None].astype(self.dtype) * hidden, axis=1)
        branches = speak(nn.Dropout(self.dropout, deterministic=not train, name="drop")(seen))
        values = jnp.swapaxes(speak(hidden), 1, 2)
        flat = flat + self._feedback(flat, branches)
        maps = jnp.swapaxes(attention, 1, 2).reshape(batch, self.num_groups, height, width)
        return Branches(flat.reshape(tokens.shape), branches, values, maps)

    def _hidden(self, tokens: Float[Array, "B N d"]) -> Float[Array, "B N G a"]:
        shape = (self.num_groups, tokens.shape[-1], self.attr_dim)
        kernel, bias = self._dense("input", shape)
        return jnp.einsum("bnd,gda->bnga", tokens, kernel) + bias

    def _output(self) -> Callable[[Float[Array, "... G a"]], Float[Array, "... G a"]]:
        kernel, bias = self._dense("output", (self.num_groups, self.attr_dim, self.attr_dim))
        return lambda x: jnp.einsum("...gc,gca->...ga", x, kernel) + bias

    def _dense(self, name: str, shape: tuple[int, int, int]) -> tuple[Array, Array]:
        """Kernel [G, in, a] and bias [G, a] of a linear function for each group."""
        kernel = self.param(f"{name}_kernel", _PER_GROUP, shape, jnp.float32)
        bias = self.param(f"{name}_bias", nn.initializers.zeros, (shape[0], shape[2]), jnp.float32)
        return kernel.astype(self.dtype), bias.astype(self.dtype)

    def _normalise(self, x: Float[Array, "B N G a"]) -> Float[Array, "B N G a"]:
        """Over a, with a scale and a bias [G, a] of each group's own."""
        return nn.LayerNorm(reduction_axes=-1, feature_axes=(2, 3), dtype=self.dtype, name="norm")(x)

    def _attention(self, hidden: Float[Array, "B N G a"]) -> Float32[Array, "B N G"]:
        # Unit-variance queries: the maps differ between groups from the first step, and are not yet sharp.
        shape = (self.num_groups, self.attr_dim)
        query = self.param("query", nn.initializers.normal(1.0), shape, jnp.float32)
        query = (query / self.attr_dim**0.5).astype(self.dtype)
        # A sum and not a product of matrices, for which each group's rows would be copied together first.
        return jax.nn.softmax(jnp.sum(hidden * query, axis=-1, dtype=jnp.float32), axis=1)

    def _feedback(
        self, tokens: Float[Array, "B N d"], branches: Float[Array, "B G a"]
    ) -> Float[Array, "B N d"]:
        shape = (self.num_groups, self.attr_dim, tokens.shape[-1])
        kernel = self.param("feedback_kernel", _OVER_GROUPS, shape, jnp.float32)
        message = jnp.einsum("bga,gad->bgd", branches, kernel.astype(self.dtype))
        gate = nn.sigmoid(nn.Dense(self.num_groups, dtype=self.dtype, name="gate")(tokens))
        return jnp.einsum("bng,bgd->bnd", gate, message)
