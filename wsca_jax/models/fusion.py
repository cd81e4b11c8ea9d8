"""Gated fusion: each visual token takes from the frequency token what its gate lets in."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float


class GatedFusion(nn.Module):
    """Blends every token v with a function of itself and the image's frequency token f.

        g = sigmoid(W [v; f]),  out = g * MLP([v; f]) + (1 - g) * v

    A product with [v; f] is the sum of a product with v and one with f, and the second, being the same for
    all tokens of an image, is computed once. The gate's bias starts negative (as in highway networks,
    Srivastava et al. 2015, arXiv:1505.00387), so that fusion begins near the identity and does not blur
    tokens before the MLP has learned anything.

    Attributes:
      hidden_size: width d of tokens.
      mlp_ratio: width of the MLP's hidden layer, as a multiple of d.
      gate_bias: initial bias of the gate; sigmoid(-2) = 0.12.
      dropout: rate inside the MLP, in training.
      dtype: dtype of the matrix products; the sigmoid is float32.

    Raises:
      ValueError: mlp_ratio leaves no hidden layer.
    """

    hidden_size: int
    mlp_ratio: float = 0.5
    gate_bias: float = -2.0
    dropout: float = 0.1
    dtype: DTypeLike = jnp.bfloat16

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mlp_ratio * self.hidden_size < 1:
            raise ValueError(f"mlp_ratio is {self.mlp_ratio}; expected at least 1 / {self.hidden_size}")

    @nn.compact
    def __call__(
        self, tokens: Float[Array, "B h w d"], token: Float[Array, "B 1 d"], *, train: bool
    ) -> Float[Array, "B h w d"]:
        width, initial = self.hidden_size, nn.initializers.constant(self.gate_bias)
        gate = nn.sigmoid(self._joint(tokens, token, width, "gate", initial).astype(jnp.float32))
        hidden = self._joint(tokens, token, int(width * self.mlp_ratio), "hidden", nn.initializers.zeros)
        hidden = nn.Dropout(self.dropout, deterministic=not train)(nn.relu(hidden))
        proposal = nn.Dense(width, dtype=self.dtype, name="output")(hidden)
        gate = gate.astype(self.dtype)
        return gate * proposal + (1 - gate) * tokens.astype(self.dtype)

    def _joint(
        self,
        tokens: Float[Array, "B h w d"],
        token: Float[Array, "B 1 d"],
        width: int,
        name: str,
        bias_init: nn.initializers.Initializer,
    ) -> Float[Array, "B h w n"]:
        """Dense([v; f]) with f broadcast over the tokens."""
        # One kernel over [v; f] has a fan-in of 2 d; its halves are initialised as parts of it.
        half = nn.initializers.variance_scaling(0.5, "fan_in", "truncated_normal")
        of_tokens = nn.Dense(
            width, dtype=self.dtype, kernel_init=half, bias_init=bias_init, name=f"{name}_tokens"
        )
        of_frequency = nn.Dense(
            width, use_bias=False, dtype=self.dtype, kernel_init=half, name=f"{name}_frequency"
        )
        return of_tokens(tokens) + of_frequency(token)[:, None]
