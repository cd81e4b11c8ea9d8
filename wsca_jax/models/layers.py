"""Convolution, batch normalisation and pooling: what the trunks are built from."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32

from wsca_jax.models.convolution import Lowering, convolve
from wsca_jax.models.convolution_forms import Pair

Initializer = Callable[..., Array]

# He et al. 2015 (arXiv:1502.01852), as torchvision initialises its ResNets: normal, by fan-out.
he_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class Conv(nn.Module):
    """Two-dimensional convolution in the form the platform runs fastest; see `convolution.convolve`.

    Parameters: `kernel` [kh, kw, Cin, features], `bias` [features] where used.

    Attributes:
      features: output channels.
      kernel_size: (rows, columns).
      strides: step over (rows, columns).
      padding: zeros on both sides of (rows, columns), as in PyTorch; None keeps the size of an odd
        kernel at stride 1, (k - 1) // 2.
      use_bias: whether a bias is added.
      dtype: compute dtype.
      param_dtype: dtype of the parameters.
      lowering: None lets the platform decide; "native" or "cpu" forces a form.
    """

    features: int
    kernel_size: Pair = (3, 3)
    strides: Pair = (1, 1)
    padding: Pair | None = None
    use_bias: bool = False
    dtype: DTypeLike = jnp.bfloat16
    param_dtype: DTypeLike = jnp.float32
    lowering: Lowering | None = None
    kernel_init: Initializer = he_normal

    @nn.compact
    def __call__(self, x: Float[Array, "B H W Cin"]) -> Float[Array, "B h w features"]:
        shape = (*self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        rows, columns = self.kernel_size
        padding = ((rows - 1) // 2, (columns - 1) // 2) if self.padding is None else self.padding
        y = convolve(x.astype(self.dtype), kernel.astype(self.dtype), self.strides, padding, self.lowering)
        if not self.use_bias:
            return y
        bias = self.param("bias", nn.initializers.zeros, (self.features,), self.param_dtype)
        return y + bias.astype(self.dtype)


class BatchNorm(nn.Module):
    """Batch normalisation over (B, H, W), its statistics in float32 and over the examples that count.

    Under `jit` with a batch sharded over devices the statistics are the global batch's, or those of each of
    its `parts`. With one part to a device nothing is sent (Goyal et al. 2017, arXiv:1706.02677); on one
    device this is ghost batch normalisation (Hoffer et al. 2017, arXiv:1705.08741). The running statistics
    then move to the mean over parts, each counted by its positions.

    Normalisation in training uses the biased variance; the running variance receives the unbiased one (times
    n / (n - 1)), both as PyTorch does. A batch of weight 0 leaves the running statistics as they are.

    Parameters: `scale`, `bias` [C]; batch statistics: `mean`, `var` [C]; all float32.

    Attributes:
      momentum: share of the new batch in the running statistics (PyTorch's convention, not Flax's).
      epsilon: added to the variance.
      dtype: dtype of the result.
      scale_init: initial `scale`; zeros make a residual block start as the identity.
      parts: equal parts of consecutive examples that have statistics of their own; they divide the batch.
      affine: whether there are `scale` and `bias`; without them, 1 and 0.
    """

    momentum: float = 0.1
    epsilon: float = 1e-5
    dtype: DTypeLike = jnp.bfloat16
    scale_init: Initializer = nn.initializers.ones
    parts: int = 1
    affine: bool = True

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W C"], *, train: bool, weight: Float32[Array, "B"] | None = None
    ) -> Float[Array, "B H W C"]:
        """Normalises; `weight` (None: all 1) weighs the examples in the statistics, 0 leaves one out."""
        x, shape = x.astype(self.dtype), (x.shape[-1],)
        scale, bias = jnp.ones(shape, jnp.float32), jnp.zeros(shape, jnp.float32)
        if self.affine:
            scale = self.param("scale", self.scale_init, shape, jnp.float32)
            bias = self.param("bias", nn.initializers.zeros, shape, jnp.float32)
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        if not train:
            return _normalise(x, Moments(mean.value, var.value, jnp.ones(())), scale, bias, self.epsilon)
        weight = jnp.ones(x.shape[0], jnp.float32) if weight is None else weight.astype(jnp.float32)
        if self.is_initializing():
            return batch_normalise(x, scale, bias, weight, self.epsilon)[0]
        y, batch = normalise_parts(x, scale, bias, weight, self.epsilon, self.parts)
        batch = jax.tree.map(lax.stop_gradient, batch)
        unbiased = batch.var * (batch.positions / jnp.maximum(batch.positions - 1, 1))[:, None]
        share = (batch.positions / _at_least_tiny(batch.positions.sum()))[:, None]
        rate = jnp.where(batch.positions.sum() > 0, self.momentum, 0.0)
        mean.value += rate * ((share * batch.mean).sum(0) - mean.value)
        var.value += rate * ((share * unbiased).sum(0) - var.value)
        return y


class FeatureNorm(nn.Module):
    """Batch normalisation of features [B, ...], each of their entries by statistics of its own.

    Takes away what all images have in common, which a normalisation over channels keeps. Computed in
    float32: where images have much in common, little else would be left of bfloat16's digits. Statistics of
    a few examples say little, and a single one becomes 0: let a batch, or a part of it, have eight or more.

    Attributes:
      dtype: dtype of the result.
      parts, affine: as in `BatchNorm`, whose parameters and statistics these are, as `norm`.
    """

    dtype: DTypeLike = jnp.bfloat16
    parts: int = 1
    affine: bool = True

    @nn.compact
    def __call__(
        self, x: Float[Array, "B ..."], *, train: bool, weight: Float32[Array, "B"] | None = None
    ) -> Float[Array, "B ..."]:
        norm = BatchNorm(dtype=jnp.float32, parts=self.parts, affine=self.affine, name="norm")
        normed = norm(x.reshape(len(x), 1, 1, -1), train=train, weight=weight)
        return normed.reshape(x.shape).astype(self.dtype)


class Moments(NamedTuple):
    """Statistics of a batch, float32.

    Attributes:
      mean, var: [C]; the variance is biased.
      positions: how many stand behind them, sum(weight) H W.
    """

    mean: Float32[Array, "C"]
    var: Float32[Array, "C"]
    positions: Float32[Array, ""]


def moments(x: Float[Array, "B H W C"], weight: Float32[Array, "B"]) -> Moments:
    """Weighted mean and variance over (B, H, W), in one pass: var = E[x^2] - E[x]^2, clipped at 0."""
    count = weight.sum() * (x.shape[1] * x.shape[2])
    x = x.astype(jnp.float32)
    weighted = x * weight[:, None, None, None]
    mean = weighted.sum((0, 1, 2)) / _at_least_tiny(count)
    square = (weighted * x).sum((0, 1, 2)) / _at_least_tiny(count)
    return Moments(mean, jnp.maximum(square - mean * mean, 0), count)


def _at_least_tiny(count: Array) -> Array:
    return jnp.maximum(count, jnp.finfo(jnp.float32).tiny)


def _normalise(x: Array, over: Moments, scale: Array, bias: Array, epsilon: float) -> Array:
    slope = scale * lax.rsqrt(over.var + epsilon)
    return (x.astype(jnp.float32) * slope + (bias - over.mean * slope)).astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def batch_normalise(
    x: Float[Array, "B H W C"],
    scale: Float32[Array, "C"],
    bias: Float32[Array, "C"],
    weight: Float32[Array, "B"],
    epsilon: float,
) -> tuple[Float[Array, "B H W C"], Moments]:
    """Normalises a batch by its own weighted moments, and returns them.

    The moments and `weight` carry no gradient. The gradient keeps `x` alone, where autodiff would keep its
    float32 and centred copies, and reads it twice: once for the two sums, once for the result.
    """
    over = moments(x, weight)
    return _normalise(x, over, scale, bias, epsilon), over


def normalise_parts(
    x: Float[Array, "B H W C"],
    scale: Float32[Array, "C"],
    bias: Float32[Array, "C"],
    weight: Float32[Array, "B"],
    epsilon: float,
    parts: int,
) -> tuple[Float[Array, "B H W C"], Moments]:
    """`batch_normalise` of each of `parts` equal parts; the moments have a leading axis of that length."""
    if parts == 1:
        y, over = batch_normalise(x, scale, bias, weight, epsilon)
        return y, jax.tree.map(lambda moment: moment[None], over)

    def each(x: Array, weight: Array) -> tuple[Array, Moments]:
        return batch_normalise(x, scale, bias, weight, epsilon)

    y, over = jax.vmap(each)(*(array.reshape(parts, -1, *array.shape[1:]) for array in (x, weight)))
    return y.reshape(x.shape), over


def _batch_normalise_fwd(
    x: Array, scale: Array, bias: Array, weight: Array, epsilon: float
) -> tuple[tuple[Array, Moments], tuple[Array, Array, Array, Moments]]:
    y, over = batch_normalise(x, scale, bias, weight, epsilon)
    return (y, over), (x, scale, weight, over)


def _batch_normalise_bwd(
    epsilon: float, residuals: tuple[Array, Array, Array, Moments], cotangents: tuple[Array, Moments]
) -> tuple[Array, Array, Array, Array]:
    """dx = slope (dy - weight / count (dbias + z dscale)), with z the normalised x."""
    x, scale, weight, over = residuals
    dy, x32 = cotangents[0].astype(jnp.float32), x.astype(jnp.float32)
    inverse = lax.rsqrt(over.var + epsilon)
    dbias = dy.sum((0, 1, 2))
    dscale = ((dy * x32).sum((0, 1, 2)) - over.mean * dbias) * inverse
    slope, count = scale * inverse, _at_least_tiny(over.positions)
    by_x = slope * inverse * dscale / count
    constant = slope * dbias / count - by_x * over.mean
    dx = dy * slope - weight[:, None, None, None] * (x32 * by_x + constant)
    return dx.astype(x.dtype), dscale, dbias, jnp.zeros_like(weight)


batch_normalise.defvjp(_batch_normalise_fwd, _batch_normalise_bwd)


@jax.custom_vjp
def add_relu(x: Float[Array, "..."], y: Float[Array, "..."]) -> Float[Array, "..."]:
    """relu(x + y), exactly, as max(x, -y) + y.

    A residual network's blocks end here. XLA's CPU compiler copies cheap one-operand producers such as relu
    into each of their readers, and then every block would recompute all blocks before it; a sum of two
    arrays is computed once.
    """
    return jnp.maximum(x, -y) + y


def _add_relu_fwd(x: Array, y: Array) -> tuple[Array, Array]:
    out = add_relu(x, y)
    return out, out


def _add_relu_bwd(out: Array, dout: Array) -> tuple[Array, Array]:
    dx = jnp.where(out > 0, dout, 0)
    return dx, dx


add_relu.defvjp(_add_relu_fwd, _add_relu_bwd)


def max_pool(x: Float[Array, "B H W C"]) -> Float[Array, "B h w C"]:
    """Maximum over 3x3 windows at stride 2, padded by 1; of equal values the first receives the gradient."""
    return lax.platform_dependent(x, cpu=_max_of_slices, default=_reduce_window)


def _reduce_window(x: Array) -> Array:
    window, strides = (1, 3, 3, 1), (1, 2, 2, 1)
    return lax.reduce_window(x, -jnp.inf, lax.max, window, strides, [(0, 0), (1, 1), (1, 1), (0, 0)])


@jax.custom_vjp
def _max_of_slices(x: Array) -> Array:
    """XLA's CPU code for reduce-window and select-and-scatter is scalar; slices are vectors."""
    return _maximum_and_tap(x)[0]


def _maximum_and_tap(x: Array) -> tuple[Array, Array]:
    """The maxima, and which of the nine taps each came from, uint8."""
    h, w = (x.shape[1] + 1) // 2, (x.shape[2] + 1) // 2
    x = jnp.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)], constant_values=-jnp.inf)
    best = x[:, : 2 * h - 1 : 2, : 2 * w - 1 : 2]
    tap = jnp.zeros(best.shape, jnp.uint8)
    for k in range(1, 9):
        i, j = divmod(k, 3)
        value = x[:, i : i + 2 * h - 1 : 2, j : j + 2 * w - 1 : 2]
        tap = jnp.where((value > best) | jnp.isnan(value), jnp.uint8(k), tap)
        best = jnp.maximum(best, value)
    return best, tap


def _max_fwd(x: Array) -> tuple[Array, tuple[Array, Array]]:
    best, tap = _maximum_and_tap(x)
    return best, (tap, x[:0])


def _max_bwd(residuals: tuple[Array, Array], dy: Array) -> tuple[Array]:
    """Input row 2q is tap 1 of window q; row 2q + 1 is tap 2 of window q and tap 0 of window q + 1."""
    tap, like = residuals
    grown = [(0, 0), (0, 1), (0, 1), (0, 0)]
    dy, tap = jnp.pad(dy, grown), jnp.pad(tap, grown, constant_values=9)
    even, odd = [(1, 0)], [(2, 0), (0, 1)]
    rows = [jnp.stack([_received(dy, tap, r, c) for c in (even, odd)], axis=3) for r in (even, odd)]
    full = jnp.stack(rows, axis=2)  # [B, h, 2, w, 2, C]
    b, h, _, w, _, c = full.shape
    return (full.reshape(b, 2 * h, 2 * w, c)[:, : like.shape[1], : like.shape[2]],)


def _received(dy: Array, tap: Array, rows: list[tuple[int, int]], columns: list[tuple[int, int]]) -> Array:
    """Sum, over (tap, window offset) pairs, of the cotangents whose maximum that tap was."""
    h, w = dy.shape[1] - 1, dy.shape[2] - 1
    total = jnp.zeros((), dy.dtype)
    for (i, m), (j, n) in itertools.product(rows, columns):
        window = np.s_[:, m : m + h, n : n + w]
        total = total + jnp.where(tap[window] == 3 * i + j, dy[window], 0)
    return total


_max_of_slices.defvjp(_max_fwd, _max_bwd)
