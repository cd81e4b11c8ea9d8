"""Convolution, batch normalisation and pooling: what the trunks are built from."""

from __future__ import annotations

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32

from wsca_jax.models.convolution import Lowering, Pair, convolve

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
      lowering: None lets the platform decide; "native" or "patches" forces a form.
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

    Under `jit` with a batch sharded over devices the statistics are the global batch's. Normalisation in
    training uses the biased variance; the running variance receives the unbiased one (times n / (n - 1)),
    both as PyTorch does. A batch of weight 0 leaves the running statistics as they are.

    Parameters: `scale`, `bias` [C]; batch statistics: `mean`, `var` [C]; all float32.

    Attributes:
      momentum: share of the new batch in the running statistics (PyTorch's convention, not Flax's).
      epsilon: added to the variance.
      dtype: dtype of the result.
      scale_init: initial `scale`; zeros make a residual block start as the identity.
    """

    momentum: float = 0.1
    epsilon: float = 1e-5
    dtype: DTypeLike = jnp.bfloat16
    scale_init: Initializer = nn.initializers.ones

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W C"], *, train: bool, weight: Float32[Array, "B"] | None = None
    ) -> Float[Array, "B H W C"]:
        """Normalises; `weight` (None: all 1) weighs the examples in the statistics, 0 leaves one out."""
        shape = (x.shape[-1],)
        scale = self.param("scale", self.scale_init, shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, shape, jnp.float32)
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        if not train:
            slope = scale * jax.lax.rsqrt(var.value + self.epsilon)
            return _affine(x, slope, bias - mean.value * slope).astype(self.dtype)
        weight = jnp.ones(x.shape[0], jnp.float32) if weight is None else weight.astype(jnp.float32)
        y, statistics = normalise(x, scale, bias, weight, self.epsilon)
        if not self.is_initializing():
            mean.value, var.value = self._updated(statistics, weight.sum() * x[0, ..., 0].size, mean, var)
        return y.astype(self.dtype)

    def _updated(self, statistics, count, mean, var):
        batch_mean, batch_var = statistics
        unbiased = batch_var * count / jnp.maximum(count - 1, 1)
        rate = jnp.where(count > 0, self.momentum, 0.0)
        return (
            mean.value + rate * (batch_mean - mean.value),
            var.value + rate * (unbiased - var.value),
        )


def _affine(x: Array, slope: Array, offset: Array) -> Array:
    return x.astype(jnp.float32) * slope + offset


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def normalise(
    x: Float[Array, "B H W C"],
    scale: Float32[Array, "C"],
    bias: Float32[Array, "C"],
    weight: Float32[Array, "B"],
    epsilon: float,
) -> tuple[Float[Array, "B H W C"], tuple[Float32[Array, "C"], Float32[Array, "C"]]]:
    """(x - mean) / sqrt(var + epsilon) * scale + bias, and (mean, biased var) over the weighted batch.

    The statistics carry no gradient of their own; `weight` gets none.
    """
    return _normalise_fwd(x, scale, bias, weight, epsilon)[0]


def _statistics(x: Array, weight: Array) -> tuple[Array, Array]:
    count = jnp.maximum(weight.sum() * (x.shape[1] * x.shape[2]), jnp.finfo(jnp.float32).tiny)
    x32 = x.astype(jnp.float32)
    weighted = x32 * weight[:, None, None, None]
    mean = weighted.sum((0, 1, 2)) / count
    square = (weighted * x32).sum((0, 1, 2)) / count
    return mean, jnp.maximum(square - mean * mean, 0)


def _normalise_fwd(x, scale, bias, weight, epsilon):
    mean, var = _statistics(x, weight)
    inverse = jax.lax.rsqrt(var + epsilon)
    slope = scale * inverse
    y = _affine(x, slope, bias - mean * slope).astype(x.dtype)
    return (y, (mean, var)), (x, scale, weight, mean, inverse)


def _normalise_bwd(epsilon, residuals, cotangents):
    x, scale, weight, mean, inverse = residuals
    dy = cotangents[0].astype(jnp.float32)
    x32 = x.astype(jnp.float32)
    count = jnp.maximum(weight.sum() * (x.shape[1] * x.shape[2]), jnp.finfo(jnp.float32).tiny)
    dbias = dy.sum((0, 1, 2))
    dscale = ((dy * x32).sum((0, 1, 2)) - mean * dbias) * inverse
    slope = scale * inverse
    # dx = slope * (dy - weight / count * (dbias + normalised x * dscale))
    a = slope * inverse * dscale / count
    b = slope * dbias / count - a * mean
    dx = dy * slope - weight[:, None, None, None] * (x32 * a + b)
    return dx.astype(x.dtype), dscale, dbias, jnp.zeros_like(weight)


normalise.defvjp(_normalise_fwd, _normalise_bwd)


def max_pool(x: Float[Array, "B H W C"], size: int = 3, stride: int = 2, padding: int = 1) -> Array:
    """Maximum over windows, as a maximum of strided slices (select-and-scatter is slow on the CPU)."""
    return _pool(x, size, stride, padding)


def _windows(x, size, stride, padding):
    low = jnp.finfo(x.dtype).min
    x = jnp.pad(x, [(0, 0), (padding,) * 2, (padding,) * 2, (0, 0)], constant_values=-jnp.inf)
    del low
    h = (x.shape[1] - size) // stride + 1
    w = (x.shape[2] - size) // stride + 1
    return [
        x[:, i : i + (h - 1) * stride + 1 : stride, j : j + (w - 1) * stride + 1 : stride]
        for i in range(size)
        for j in range(size)
    ]


def _pool(x, size, stride, padding):
    return functools.reduce(jnp.maximum, _windows(x, size, stride, padding))
