"""Two-dimensional neighbourhoods on token grids, and attention inside them.

Who neighbours whom is decided from rows and columns, in NumPy, before anything is traced. In a flattened
7 x 7 grid token (1, 6) stands next to (2, 0), at the other edge of the image; here they never meet.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Float32, Int

from wsca_jax.models.attention import attend

Grid = tuple[int, int]  # rows, columns


def grid_of(x: Float[Array, "B h w c"]) -> Grid:
    return x.shape[1], x.shape[2]


def grid_pyramid(grid: Grid) -> tuple[Grid, ...]:
    """Token grids from `grid` upwards, each half the one before (rounded up) until no side exceeds 2."""
    pyramid = [grid]
    while max(pyramid[-1]) > 2:
        pyramid.append((_halved(pyramid[-1][0]), _halved(pyramid[-1][1])))
    return tuple(pyramid)


def _halved(side: int) -> int:
    return side if side <= 2 else -(-side // 2)


def neighbour_weights(parents: Grid, children: Grid) -> Float32[np.ndarray, "P C"]:
    """How much each child lies under each parent: the weights of bilinear interpolation, in [0, 1].

    A cell's centre on the unit square is ((row + 1/2) / rows, (column + 1/2) / columns). Along each axis the
    weight falls linearly from 1 at the parent's centre to 0 at the next parent's, so a child has one or two
    neighbours per axis, at most four in all; every other weight is exactly 0. Tokens are numbered row by row.
    """
    rows, columns = (_tents(p, c) for p, c in zip(parents, children, strict=True))
    return np.kron(rows, columns)


def _tents(parents: int, children: int) -> Float32[np.ndarray, "P C"]:
    # Integers, so that a child exactly one cell away has weight 0 and not a rounding error.
    centres = (2 * np.arange(children) + 1) * parents
    distance = np.abs(centres - (2 * np.arange(parents)[:, None] + 1) * children)
    return (np.maximum(2 * children - distance, 0) / (2 * children)).astype(np.float32)


def window_offsets(grid: Grid, window: int | None) -> tuple[Bool[np.ndarray, "N N"], Int[np.ndarray, "N N"]]:
    """Which tokens see each other, and how they lie to each other.

    Args:
      grid: rows and columns.
      window: odd side of the square window centred on each token; None sees the whole grid.

    Returns:
      inside: whether the second token lies in the first one's window.
      offset: the number of the step (down, right) from the first token to the second, counted row by row
        over the steps that the window and the grid allow; 0 outside the window.
    """
    reach = max(grid) if window is None else window // 2
    down, right = (min(reach, side - 1) for side in grid)
    row, column = (axis.reshape(-1) for axis in np.indices(grid))
    rows, columns = row[None] - row[:, None], column[None] - column[:, None]
    inside = (np.abs(rows) <= down) & (np.abs(columns) <= right)
    offset = (rows + down) * (2 * right + 1) + columns + right
    return inside, np.where(inside, offset, 0)


def flatten(x: Float[Array, "B h w c"]) -> Float[Array, "B N c"]:
    """Tokens row by row."""
    return x.reshape(len(x), -1, x.shape[-1])


class Attention(nn.Module):
    """Multi-head attention, softmax(q k / sqrt(c / heads) + bias) v, with the softmax in float32.

    Queries and keys have no bias: a key's would leave the softmax as it is. Over a single key the softmax is
    1 whatever is asked, so then neither queries nor keys have parameters.

    Attributes:
      num_heads: must divide the width c.
      dtype: dtype of the matrix products.
    """

    num_heads: int
    dtype: DTypeLike = jnp.bfloat16

    @nn.compact
    def __call__(
        self,
        queries: Float[Array, "B Q c"],
        keys: Float[Array, "B K c"],
        bias: Float32[Array, "H Q K"] | None = None,
    ) -> tuple[Float[Array, "B Q c"], Float32[Array, "B H Q K"]]:
        """Returns the attended features and each head's attention, which sums to 1 over the keys."""
        values = self._heads("value", keys)
        if keys.shape[1] == 1:
            shape = (len(queries), self.num_heads, queries.shape[1], 1)
            attention = jnp.ones(shape, jnp.float32)
            attended = jnp.broadcast_to(values, (*queries.shape[:2], *values.shape[2:]))
        else:
            asked, offered = self._heads("query", queries), self._heads("key", keys)
            attended, attention = attend(asked, offered, values, bias=bias)
        attended = attended.reshape(*queries.shape[:2], -1)
        return nn.Dense(keys.shape[-1], dtype=self.dtype, name="output")(attended), attention

    def _heads(self, name: str, x: Float[Array, "B N c"]) -> Float[Array, "B N H f"]:
        width = x.shape[-1]
        x = nn.Dense(width, use_bias=False, dtype=self.dtype, name=name)(x)
        return x.reshape(*x.shape[:2], self.num_heads, width // self.num_heads)


class WindowBlock(nn.Module):
    """Pre-norm transformer block whose attention stays inside a 2-D window around each token.

    x = x + Attention(LN x);  x = x + Dense(gelu(Dense(LN x)))

    The attention's logits have a learned bias per head and relative position. All windows are one masked
    product: at 49 tokens of width 128 the projections cost six times what the mask throws away.
    A single token has no attention.

    Attributes:
      num_heads: heads of the attention.
      window: odd side of the window; None for attention over the whole grid.
      dropout: rate on both branches, in training.
      dtype: dtype of the matrix products.
    """

    num_heads: int
    window: int | None = None
    dropout: float = 0.1
    dtype: DTypeLike = jnp.bfloat16

    @nn.compact
    def __call__(self, x: Float[Array, "B h w c"], *, train: bool) -> Float[Array, "B h w c"]:
        grid, width = grid_of(x), x.shape[-1]
        drop = nn.Dropout(self.dropout, deterministic=not train)
        if grid != (1, 1):
            normal = flatten(nn.LayerNorm(dtype=self.dtype, name="attention_norm")(x))
            attention = Attention(self.num_heads, self.dtype, name="attention")
            x = x + drop(attention(normal, normal, self._bias(grid))[0]).reshape(x.shape)
        hidden = nn.LayerNorm(dtype=self.dtype, name="hidden_norm")(x)
        hidden = nn.gelu(nn.Dense(2 * width, dtype=self.dtype, name="hidden")(hidden))
        return x + drop(nn.Dense(width, dtype=self.dtype, name="output")(hidden))

    def _bias(self, grid: Grid) -> Float32[Array, "H N N"]:
        inside, offset = window_offsets(grid, self.window)
        shape = (self.num_heads, int(offset.max()) + 1)
        relative = self.param("relative_bias", nn.initializers.zeros, shape, jnp.float32)
        return jnp.where(inside, relative[:, offset], -jnp.inf)
