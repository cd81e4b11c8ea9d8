"""What contrastive alignment learns beside the features: prototypes, temperatures and biases."""

from __future__ import annotations

import math
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32


class AlignmentHead(NamedTuple):
    """Prototypes, and the scores' scale * cos + bias; all float32.

    Attributes:
      prototypes: [A, a], one per attribute, of any length.
      pair_scale, pair_bias: scalars, for the score of two examples; scales are positive.
      prototype_scale, prototype_bias: scalars, for the score of an example and a prototype.
    """

    prototypes: Float32[Array, "A a"]
    pair_scale: Float32[Array, ""]
    pair_bias: Float32[Array, ""]
    prototype_scale: Float32[Array, ""]
    prototype_bias: Float32[Array, ""]


class Alignment(nn.Module):
    """Learned prototypes of the attributes, or projections of their phrases, with the scores' scales.

    scale = exp(temperature). The scales start at 10 as in SigLIP (https://arxiv.org/abs/2303.15343), the
    biases not at its -10: that stands for many negatives per positive, and here both kinds are averaged
    apart. The biases put the border between the kinds, cos = -bias / scale: at 1/2 for pairs, so that two
    unrelated examples need not be opposites, and at 0 for prototypes, so that "absent" can be.

    Parameters: `prototypes` [A, a] without phrases, or `projection` with them; `pair_temperature`,
    `pair_bias`, `prototype_temperature`, `prototype_bias`, scalars.

    Attributes:
      num_attributes: how many attributes A there are.
      attr_dim: width a of a group's features.
      initial_scale: initial scale of both scores, above 0.
      initial_pair_bias, initial_prototype_bias: initial biases.
      dtype: dtype of the phrases' projection.
    """

    num_attributes: int
    attr_dim: int
    initial_scale: float = 10.0
    initial_pair_bias: float = -5.0
    initial_prototype_bias: float = 0.0
    dtype: DTypeLike = jnp.bfloat16

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.initial_scale <= 0.0:
            raise ValueError(f"Alignment: initial_scale must be above 0, found {self.initial_scale}")

    @nn.compact
    def __call__(self, phrases: Float[Array, "A d"] | None = None, *, train: bool) -> AlignmentHead:
        """`train` changes nothing here; every module of the model is called with it."""
        temperature = math.log(self.initial_scale)
        return AlignmentHead(
            self._prototypes(phrases),
            jnp.exp(self._scalar("pair_temperature", temperature)),
            self._scalar("pair_bias", self.initial_pair_bias),
            jnp.exp(self._scalar("prototype_temperature", temperature)),
            self._scalar("prototype_bias", self.initial_prototype_bias),
        )

    def _prototypes(self, phrases: Float[Array, "A d"] | None) -> Float32[Array, "A a"]:
        shape = (self.num_attributes, self.attr_dim)
        if phrases is None:
            unit_length = nn.initializers.normal(self.attr_dim**-0.5)
            return self.param("prototypes", unit_length, shape, jnp.float32)
        if len(phrases) != self.num_attributes:
            raise ValueError(f"Alignment: expected {self.num_attributes} phrases, found {len(phrases)}")
        return nn.Dense(self.attr_dim, dtype=self.dtype, name="projection")(phrases).astype(jnp.float32)

    def _scalar(self, name: str, value: float) -> Float32[Array, ""]:
        return self.param(name, nn.initializers.constant(value), (), jnp.float32)
