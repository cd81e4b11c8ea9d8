"""Cross-modal encoder: transformer blocks over visual tokens that read a text where there is one."""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Float32, Int32

from wsca_jax.models.attention import attend
from wsca_jax.models.branches import AttributeBranches

# Cycles per image side of the position code. A grid of 7 resolves 3.5; the lowest tells the far ends apart.
LOWEST_CYCLES, HIGHEST_CYCLES = 0.25, 4.0


class TextTokens(NamedTuple):
    """Text as the encoder reads it.

    Attributes:
      tokens: [B, T, d]; meaningless where nothing is present.
      present: bool [B, T], False where padded. An example without any True has no text.
    """

    tokens: Float[Array, "B T d"]
    present: Bool[Array, "B T"]


class Encoding(NamedTuple):
    """What the encoder returns.

    Attributes:
      tokens: [B, h, w, d].
      branches: [B, G, a], the attribute groups' features.
      values: [B, G, N, a], what the branches' attention averages; N = h w, rows first.
      attention: float32 [B, G, h, w], the weights that pooled the branches; they sum to 1 over (h, w).
      text: [B, d], the text tower's mean token: of the text alone, whatever the image, in the space of the
        phrases; 0 for an example without text, None for a call without text.
      read: bool [B], whether the tokens have read a text; None for a call without text.
      unread: bool [B], whether there is a text that they have not read, because it was dropped in training;
        None for a call without text.
    """

    tokens: Float[Array, "B h w d"]
    branches: Float[Array, "B G a"]
    values: Float[Array, "B G N a"]
    attention: Float32[Array, "B G h w"]
    text: Float[Array, "B d"] | None = None
    read: Bool[Array, "B"] | None = None
    unread: Bool[Array, "B"] | None = None


class Attention(nn.Module):
    """Multi-head attention: out(softmax(q(x) . k(m) / sqrt(c)) v(m)) over the memory's present tokens.

    Keys have no bias: it would shift all of a query's scores alike, which softmax ignores. Values have none
    either: weights that sum to 1 hand it on unchanged, and the output's bias says it already. (Flax's own
    attention has all four biases or none; a query's bias, a preference for certain keys, is worth having.)

    Attributes:
      num_heads: heads of c = d / num_heads channels each.
      output_variance: variance of the output kernel at initialisation, times its fan-in.
      dtype: dtype of the matrix products; the softmax is float32.
    """

    num_heads: int
    output_variance: float = 1.0
    dtype: DTypeLike = jnp.bfloat16

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B Q d"],
        memory: Float[Array, "B K d"],
        present: Bool[Array, "B K"] | None = None,
    ) -> Float[Array, "B Q d"]:
        """Reads `memory` for each x. Where nothing is present the result is finite and means nothing."""
        query = self._heads(x, "query", use_bias=True)
        key, value = self._heads(memory, "key"), self._heads(memory, "value")
        mixed, _ = attend(query, key, value, present=present)
        initial = nn.initializers.variance_scaling(self.output_variance, "fan_in", "truncated_normal")
        out = nn.DenseGeneral(x.shape[-1], axis=(-2, -1), kernel_init=initial, dtype=self.dtype, name="out")
        return out(mixed)

    def _heads(self, x: Float[Array, "B K d"], name: str, use_bias: bool = False) -> Float[Array, "B K H c"]:
        features = (self.num_heads, x.shape[-1] // self.num_heads)
        return nn.DenseGeneral(features, use_bias=use_bias, dtype=self.dtype, name=name)(x)


class SelfAttention(nn.Module):
    """x + Dropout(Attention(n, n)) with n = LayerNorm(x); fields as in `Attention`."""

    num_heads: int
    dropout: float = 0.1
    output_variance: float = 1.0
    dtype: DTypeLike = jnp.bfloat16

    @nn.compact
    def __call__(
        self, x: Float[Array, "B K d"], present: Bool[Array, "B K"] | None = None, *, train: bool
    ) -> Float[Array, "B K d"]:
        normed = nn.LayerNorm(dtype=self.dtype, name="norm")(x)
        attention = Attention(self.num_heads, self.output_variance, self.dtype, name="attention")
        update = attention(normed, normed, present)
        return x + nn.Dropout(self.dropout, deterministic=not train, name="drop")(update)


class FeedForward(nn.Module):
    """x + Dropout(Dense_d(GELU(Dense_rd(LayerNorm(x)))))."""

    ratio: float = 2.0
    dropout: float = 0.1
    output_variance: float = 1.0
    dtype: DTypeLike = jnp.bfloat16

    @nn.compact
    def __call__(self, x: Float[Array, "B K d"], *, train: bool) -> Float[Array, "B K d"]:
        width = x.shape[-1]
        normed = nn.LayerNorm(dtype=self.dtype, name="norm")(x)
        hidden = nn.gelu(nn.Dense(round(self.ratio * width), dtype=self.dtype, name="expand")(normed))
        initial = nn.initializers.variance_scaling(self.output_variance, "fan_in", "truncated_normal")
        update = nn.Dense(width, kernel_init=initial, dtype=self.dtype, name="contract")(hidden)
        return x + nn.Dropout(self.dropout, deterministic=not train, name="drop")(update)


class CrossModalBlock(nn.Module):
    """One pre-norm block: self-attention, an exchange between the two modalities, feed-forward.

    In the exchange both sides read each other as they stood before it. What a visual token receives from
    the text is 0 for an example without text, exactly, whatever the padding holds.

    Attributes:
      num_heads, dropout, output_variance, dtype: as in `SelfAttention`.
      ffn_ratio: hidden width of the feed-forward layers, over d.
      updates_text: whether the text changes too; in the last block nobody would read it.
    """

    num_heads: int
    ffn_ratio: float = 2.0
    dropout: float = 0.1
    output_variance: float = 1.0
    updates_text: bool = True
    dtype: DTypeLike = jnp.bfloat16

    @nn.compact
    def __call__(
        self, visual: Float[Array, "B N d"], text: TextTokens | None = None, *, train: bool
    ) -> tuple[Float[Array, "B N d"], TextTokens | None]:
        visual = self._self_attention("visual")(visual, train=train)
        if text is not None:
            visual, text = self._exchange(visual, self._attend_within(text, train), train)
        visual = self._feed_forward("visual")(visual, train=train)
        if text is not None and self.updates_text:
            text = text._replace(tokens=self._feed_forward("text")(text.tokens, train=train))
        return visual, text

    def _attend_within(self, text: TextTokens, train: bool) -> TextTokens:
        if not self.updates_text:
            return text
        return text._replace(tokens=self._self_attention("text")(text.tokens, text.present, train=train))

    def _exchange(
        self, visual: Float[Array, "B N d"], text: TextTokens, train: bool
    ) -> tuple[Float[Array, "B N d"], TextTokens]:
        seen = nn.LayerNorm(dtype=self.dtype, name="visual_norm")(visual)
        read = nn.LayerNorm(dtype=self.dtype, name="text_norm")(text.tokens)
        from_text = self._attend("visual_from_text", seen, read, text.present, train=train)
        has_text = text.present.any(axis=-1)[:, None, None]
        visual = visual + jnp.where(has_text, from_text, 0)
        if self.updates_text:
            from_visual = self._attend("text_from_visual", read, seen, train=train)
            text = text._replace(tokens=text.tokens + from_visual)
        return visual, text

    def _attend(self, name: str, *inputs: Array, train: bool) -> Float[Array, "B Q d"]:
        update = Attention(self.num_heads, self.output_variance, self.dtype, name=name)(*inputs)
        return nn.Dropout(self.dropout, deterministic=not train, name=f"{name}_drop")(update)

    def _self_attention(self, name: str) -> SelfAttention:
        return SelfAttention(
            self.num_heads, self.dropout, self.output_variance, self.dtype, name=f"{name}_attention"
        )

    def _feed_forward(self, name: str) -> FeedForward:
        return FeedForward(self.ffn_ratio, self.dropout, self.output_variance, self.dtype, name=f"{name}_ffn")


class CrossModalEncoder(nn.Module):
    """Visual tokens, informed by each other and by a text where there is one, then the attribute branches.

        x_0 = tokens + positions;  x_l = block_l(x_{l-1}, text_{l-1});  tokens = LayerNorm(x_L)

    Text is optional per call (None) and per example (all padding), and an example without text comes out as
    if there were none. In training a whole text is dropped with probability `text_dropout`, so that vision
    learns to stand alone; the pooled text is not dropped, because no visual token reads it.

    Draws from the "dropout" stream in training. A text tower's parameters exist whether or not `init` is
    given a text.

    Attributes:
      num_groups: attribute groups G.
      hidden_size: width d of a token, a multiple of 4 and of num_heads.
      attr_dim: width a of a branch.
      depth: number of blocks L, at least 1.
      num_heads: heads of every attention.
      ffn_ratio: hidden width of the feed-forward layers, over d.
      dropout: rate on every update and inside the branches, in training.
      text_dropout: probability in [0, 1) with which a whole text is dropped, in training.
      text: the tower, ids [B, T] -> `TextTokens`, of width d; None leaves everything about text out, and
        ids that are given all the same are not read.
      reads_captions: whether tokens read the texts of their images. If not, the tower serves
        `encode_phrases` alone, and ids that are given are not read.
      dtype: dtype of the matrix products; softmaxes and normalisation statistics are float32.

    Raises:
      ValueError: for settings that do not fit together.
    """

    num_groups: int
    hidden_size: int
    attr_dim: int
    depth: int = 6
    num_heads: int = 8
    ffn_ratio: float = 2.0
    dropout: float = 0.1
    text_dropout: float = 0.5
    text: nn.Module | None = None
    reads_captions: bool = True
    dtype: DTypeLike = jnp.bfloat16

    def __post_init__(self) -> None:
        super().__post_init__()
        check_width("CrossModalEncoder", "hidden_size", self.hidden_size, self.num_heads)
        _check(self.hidden_size % 4 == 0, "hidden_size", self.hidden_size, "a multiple of 4")
        _check(self.depth >= 1, "depth", self.depth, "at least 1")
        _check(0 <= self.text_dropout < 1, "text_dropout", self.text_dropout, "0 <= rate < 1")
        if self.text is not None:
            width = self.text.width
            _check(width == self.hidden_size, "text.width", width, f"hidden_size, {self.hidden_size}")

    @nn.compact
    def __call__(
        self, tokens: Float[Array, "B h w d"], text: Int32[Array, "B T"] | None = None, *, train: bool
    ) -> Encoding:
        batch, height, width, channels = tokens.shape
        positions = grid_positions(height, width, channels)
        visual = (tokens + positions).astype(self.dtype).reshape(batch, height * width, channels)
        words = self._read(text, batch, train)
        kept = self._drop_texts(words, train)
        visual = self._blocks(visual, kept, train)
        visual = nn.LayerNorm(dtype=self.dtype, name="norm")(visual).reshape(tokens.shape)
        branches = AttributeBranches(
            self.num_groups, self.attr_dim, self.dropout, self.dtype, name="branches"
        )(visual, train=train)
        if words is None or kept is None:
            return Encoding(*branches)
        read = kept.present.any(-1)
        unread = words.present.any(-1) & ~read
        return Encoding(*branches, text=mean_token(words), read=read, unread=unread)

    def encode_phrases(self, ids: Int32[Array, "P T"], *, train: bool) -> Float[Array, "P d"]:
        """The text tower's mean token of each phrase; raises ValueError where there is no tower."""
        if self.text is None:
            raise ValueError("CrossModalEncoder: phrases need a text tower; text is None")
        return self.text.pool(ids, train=train)

    def _read(self, ids: Int32[Array, "B T"] | None, batch: int, train: bool) -> TextTokens | None:
        if self.text is None or not self.reads_captions:
            return None
        if ids is None and self.is_initializing():
            ids = jnp.zeros((batch, self.text.length), jnp.int32)  # a run may start on images alone
        return None if ids is None else self.text(ids, train=train)

    def _drop_texts(self, words: TextTokens | None, train: bool) -> TextTokens | None:
        if words is None or not train or not self.text_dropout:
            return words
        shape = (len(words.present), 1)
        kept = jax.random.bernoulli(self.make_rng("dropout"), 1 - self.text_dropout, shape)
        return words._replace(present=words.present & kept)

    def _blocks(
        self, visual: Float[Array, "B N d"], words: TextTokens | None, train: bool
    ) -> Float[Array, "B N d"]:
        for layer in range(self.depth):
            block = CrossModalBlock(
                self.num_heads,
                self.ffn_ratio,
                self.dropout,
                # 2 L updates add up: each starts small enough that the trunk's features still carry the sum.
                output_variance=1 / (2 * self.depth),
                updates_text=layer < self.depth - 1,
                dtype=self.dtype,
                name=f"block_{layer}",
            )
            visual, words = block(visual, words, train=train)
        return visual


def grid_positions(height: int, width: int, channels: int) -> Float32[np.ndarray, "h w d"]:
    """Where on the image a token lies: half of the channels for its row, half for its column.

    Sines and cosines of the place as a fraction of the image, at geometrically spaced frequencies. Fixed, not
    learned: every grid has a code, and one place in the image keeps its code when the grid changes.
    """
    cycles = np.geomspace(LOWEST_CYCLES, HIGHEST_CYCLES, channels // 4)

    def code(size: int) -> np.ndarray:
        angle = 2 * np.pi * (np.arange(size)[:, None] + 0.5) / size * cycles
        return np.concatenate([np.sin(angle), np.cos(angle)], axis=-1)

    rows = np.broadcast_to(code(height)[:, None], (height, width, channels // 2))
    columns = np.broadcast_to(code(width)[None], (height, width, channels // 2))
    return np.concatenate([rows, columns], axis=-1).astype(np.float32)


def mean_token(text: TextTokens) -> Float[Array, "B d"]:
    """The mean over present tokens; 0 where there are none."""
    share = text.present / jnp.maximum(text.present.sum(axis=-1, keepdims=True), 1)
    tokens = jnp.where(text.present[..., None], text.tokens, 0)
    mean = jnp.einsum("btd,bt->bd", tokens.astype(jnp.float32), share)
    return mean.astype(text.tokens.dtype)


def check_width(module: str, field: str, width: int, num_heads: int) -> None:
    """Raises ValueError where heads do not divide a width."""
    if num_heads < 1 or width % num_heads:
        raise ValueError(f"{module}: {field} is {width}; expected a multiple of num_heads, {num_heads}")


def _check(right: bool, field: str, found: float, expected: str) -> None:
    if not right:
        raise ValueError(f"CrossModalEncoder: {field} is {found}; expected {expected}")
