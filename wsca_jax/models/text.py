"""Text tower: token ids to token features, a small transformer trained end to end."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int32

from wsca_jax.models.cross_modal import FeedForward, SelfAttention, TextTokens, check_width, mean_token


class TextTower(nn.Module):
    """Embedding + learned positions, `depth` pre-norm blocks, LayerNorm. Id 0 is padding and is never read.

    Attributes:
      vocabulary: number of ids, padding included; ids lie in [0, vocabulary).
      length: the longest text, in tokens.
      width: channels d of a token, a multiple of num_heads.
      depth: number of blocks.
      num_heads: heads of every attention.
      ffn_ratio: hidden width of the feed-forward layers, over d.
      dropout: rate on embeddings and on every update, in training.
      dtype: dtype of the matrix products; softmaxes and normalisation statistics are float32.

    Raises:
      ValueError: heads do not divide the width, or a text is longer than `length`.
    """

    vocabulary: int
    length: int
    width: int
    depth: int = 2
    num_heads: int = 8
    ffn_ratio: float = 2.0
    dropout: float = 0.1
    dtype: DTypeLike = jnp.bfloat16

    def __post_init__(self) -> None:
        super().__post_init__()
        check_width("TextTower", "width", self.width, self.num_heads)

    @nn.compact
    def __call__(self, ids: Int32[Array, "B T"], *, train: bool) -> TextTokens:
        present = ids != 0
        x = self._embed(ids)
        x = nn.Dropout(self.dropout, deterministic=not train, name="drop")(x)
        variance = 1 / (2 * max(self.depth, 1))
        for layer in range(self.depth):
            attention = SelfAttention(
                self.num_heads, self.dropout, variance, self.dtype, name=f"attention_{layer}"
            )
            ffn = FeedForward(self.ffn_ratio, self.dropout, variance, self.dtype, name=f"ffn_{layer}")
            x = ffn(attention(x, present, train=train), train=train)
        return TextTokens(nn.LayerNorm(dtype=self.dtype, name="norm")(x), present)

    def pool(self, ids: Int32[Array, "B T"], *, train: bool) -> Float[Array, "B d"]:
        """One vector for each text: the mean over its tokens; 0 where all is padding."""
        return mean_token(self(ids, train=train))

    def _embed(self, ids: Int32[Array, "B T"]) -> Float[Array, "B T d"]:
        size = ids.shape[-1]
        if size > self.length:
            raise ValueError(f"TextTower: texts have {size} tokens; expected at most {self.length}")
        initial = nn.initializers.normal(0.02)
        words = nn.Embed(
            self.vocabulary, self.width, embedding_init=initial, dtype=self.dtype, name="embedding"
        )
        position = self.param("position", initial, (self.length, self.width), jnp.float32)
        return words(ids) + position[:size].astype(self.dtype)
