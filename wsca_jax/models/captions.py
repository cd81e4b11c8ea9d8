"""Images and their captions in one space, for the images that did not read theirs."""

from __future__ import annotations

import math
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Float32


class CaptionPairs(NamedTuple):
    """What image-text alignment compares.

    Attributes:
      image, caption: [B, k], of any length.
      unread: bool [B], whether there is a caption that the image's tokens have not read.
      scale, bias: float32 scalars, of the score scale * cos + bias.
    """

    image: Float[Array, "B k"]
    caption: Float[Array, "B k"]
    unread: Bool[Array, "B"]
    scale: Float32[Array, ""]
    bias: Float32[Array, ""]


class CaptionAlignment(nn.Module):
    """Projects the pooled image and the text tower's mean token into one space.

    An image that has read its caption holds it already; only where the caption was dropped (the encoder's
    `text_dropout`) does the comparison teach the visual path anything.

    Attributes:
      width: k.
      initial_scale: initial scale of the score, above 0; the bias starts at 0.
      dtype: dtype of the projections.
    """

    width: int
    initial_scale: float = 10.0
    dtype: DTypeLike = jnp.bfloat16

    @nn.compact
    def __call__(
        self,
        pooled: Float[Array, "B d"],
        text: Float[Array, "B d"],
        unread: Bool[Array, "B"],
        *,
        train: bool,
    ) -> CaptionPairs:
        """`train` changes nothing here; every module of the model is called with it."""
        constant = nn.initializers.constant
        temperature = self.param("temperature", constant(math.log(self.initial_scale)), (), jnp.float32)
        bias = self.param("bias", constant(0.0), (), jnp.float32)
        image = nn.Dense(self.width, use_bias=False, dtype=self.dtype, name="image")(pooled)
        caption = nn.Dense(self.width, use_bias=False, dtype=self.dtype, name="caption")(text)
        return CaptionPairs(image, caption, unread, jnp.exp(temperature), bias)
