"""Two-dimensional convolution, NHWC, in the form each platform runs fastest.

GPU and TPU compilers have excellent convolutions; XLA's CPU convolutions are several times slower than its
matrix products. So on the CPU a convolution becomes patches (shifted slices, concatenated along the
channels) times a matrix, in the backward pass too. The choice is made where the program is compiled for a
platform, not where it is traced: a TPU program compiled on a CPU machine gets the native convolution.
"""

from __future__ import annotations

import functools
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

Lowering = Literal["native", "patches"]
Pair = tuple[int, int]


class Geometry(NamedTuple):
    """How a kernel walks over an image: static, hashable.

    Attributes:
      strides: step (rows, columns).
      padding: zeros added on both sides of (rows, columns), PyTorch's convention.
    """

    strides: Pair
    padding: Pair


def convolve(
    x: Float[Array, "B H W Cin"],
    kernel: Float[Array, "kh kw Cin Cout"],
    strides: Pair,
    padding: Pair,
    lowering: Lowering | None = None,
) -> Float[Array, "B h w Cout"]:
    """Cross-correlates images with a kernel; h = (H + 2 padding - kh) // stride + 1.

    Args:
      x: images; `kernel` has the same dtype, which is also the result's.
      kernel: HWIO weights.
      strides: step over (rows, columns).
      padding: zeros added on both sides of (rows, columns).
      lowering: "native" or "patches" forces a form; None takes patches on the CPU, native elsewhere.

    Returns:
      The images' responses. Both forms agree to rounding, gradients included.
    """
    if x.dtype != kernel.dtype:
        raise TypeError(f"convolve: images are {x.dtype}, the kernel is {kernel.dtype}; cast one of them")
    geometry = Geometry(strides, padding)
    if lowering == "native":
        return native(x, kernel, geometry)
    if lowering == "patches":
        return patches_times_matrix(x, kernel, geometry)
    return _by_platform(x, kernel, geometry)


def native(x: Array, kernel: Array, geometry: Geometry) -> Array:
    """The compiler's own convolution."""
    return lax.conv_general_dilated(
        x,
        kernel,
        geometry.strides,
        [(p, p) for p in geometry.padding],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def patches_times_matrix(x: Array, kernel: Array, geometry: Geometry) -> Array:
    """The same as patches [B h w, kh kw Cin] times a matrix [kh kw Cin, Cout]."""
    kh, kw, _, features = kernel.shape
    columns = patches(x, (kh, kw), geometry)
    return columns @ kernel.reshape(-1, features)


def _patches_fwd(x: Array, kernel: Array, geometry: Geometry) -> tuple[Array, tuple[Array, Array]]:
    return patches_times_matrix(x, kernel, geometry), (x, kernel)


def _patches_bwd(geometry: Geometry, residuals: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = residuals
    return input_gradient(dy, kernel, x.shape, geometry), kernel_gradient(x, dy, kernel.shape, geometry)


patches_times_matrix.defvjp(_patches_fwd, _patches_bwd)


def patches(x: Float[Array, "B H W C"], size: Pair, geometry: Geometry) -> Float[Array, "B h w khkwC"]:
    """Every window that a kernel of `size` sees, flattened in (row, column, channel) order."""
    x = _pad(x, geometry.padding, geometry.padding)
    out = [(n - k) // s + 1 for n, k, s in zip(x.shape[1:3], size, geometry.strides, strict=True)]
    slices = [_window(x, (i, j), out, geometry.strides) for i in range(size[0]) for j in range(size[1])]
    return slices[0] if len(slices) == 1 else jnp.concatenate(slices, axis=-1)


def kernel_gradient(x: Array, dy: Array, shape: tuple[int, ...], geometry: Geometry) -> Array:
    """d loss / d kernel: patches, transposed, times the cotangent."""
    columns = patches(x, shape[:2], geometry)
    return jnp.einsum("bhwk,bhwf->kf", columns, dy).reshape(shape)


def input_gradient(dy: Array, kernel: Array, shape: tuple[int, ...], geometry: Geometry) -> Array:
    """d loss / d x.

    With stride s the input's rows fall into s phases, each seen by every s-th row of the kernel only (columns
    alike): one stride-1 convolution of the cotangent for each phase, without a multiplication by zero.
    """
    strides, (height, width) = geometry.strides, shape[1:3]
    rows = [_phase(p, height, 0, dy, kernel, geometry) for p in range(strides[0])]
    columns = [_phase(p, width, 1, dy, kernel, geometry) for p in range(strides[1])]
    phases = [[_phase_gradient(dy, kernel, r, c, shape) for c in columns] for r in rows]
    return _interleave(phases, (height, width))


class _Phase(NamedTuple):
    """One phase along one side: kernel taps, the first cotangent it reads, and how many inputs it has."""

    taps: tuple[int, ...]
    first: int
    count: int


def _phase(p: int, size: int, axis: int, dy: Array, kernel: Array, geometry: Geometry) -> _Phase:
    """Input s q + p is seen by tap k from output (s q + p + padding - k) / s, where that is whole."""
    stride, padding = geometry.strides[axis], geometry.padding[axis]
    taps = tuple(k for k in reversed(range(kernel.shape[axis])) if (p + padding - k) % stride == 0)
    first = (p + padding - taps[0]) // stride if taps else 0
    return _Phase(taps, first, -(-(size - p) // stride))


def _phase_gradient(dy: Array, kernel: Array, row: _Phase, column: _Phase, shape: tuple[int, ...]) -> Array:
    """The input gradient at one phase [B, row.count, column.count, Cin]."""
    if not row.taps or not column.taps:
        return jnp.zeros((shape[0], row.count, column.count, shape[3]), dy.dtype)
    dy = _extent(_extent(dy, 1, row), 2, column)
    columns = patches(dy, (len(row.taps), len(column.taps)), Geometry((1, 1), (0, 0)))
    matrix = jnp.concatenate([kernel[r, c] for r in row.taps for c in column.taps], axis=-1)
    return jnp.einsum("bhwk,ck->bhwc", columns, matrix)


def _extent(dy: Array, axis: int, phase: _Phase) -> Array:
    """Crops or zero-pads the cotangent to exactly what a phase reads along one axis."""
    low, size = -phase.first, dy.shape[axis]
    high = phase.first + phase.count + len(phase.taps) - 1 - size
    config = [(0, 0, 0)] * dy.ndim
    config[axis] = (low, high, 0)
    return dy if low == high == 0 else lax.pad(dy, jnp.zeros((), dy.dtype), config)


def _interleave(phases: list[list[Array]], size: Pair) -> Array:
    """Puts phase (p, q) at rows p, p + s, ... and columns q, q + s, ..."""
    if len(phases) == len(phases[0]) == 1:
        return phases[0][0]
    counts = [phases[0][0].shape[1], phases[0][0].shape[2]]
    padded = [[_grow(x, counts) for x in row] for row in phases]
    rows = [jnp.stack(row, axis=3) for row in padded]  # [B, h, w, s, C]
    full = jnp.stack(rows, axis=2)  # [B, h, s, w, s, C]
    b, h, s, w, t, c = full.shape
    return full.reshape(b, h * s, w * t, c)[:, : size[0], : size[1]]


def _grow(x: Array, counts: list[int]) -> Array:
    return jnp.pad(x, [(0, 0), (0, counts[0] - x.shape[1]), (0, counts[1] - x.shape[2]), (0, 0)])


def _pad(x: Array, low: Pair, high: Pair) -> Array:
    if not any(low) and not any(high):
        return x
    return jnp.pad(x, [(0, 0), (low[0], high[0]), (low[1], high[1]), (0, 0)])


def _window(x: Array, start: Pair, size: list[int], strides: Pair) -> Array:
    limits = [i + (n - 1) * s + 1 for i, n, s in zip(start, size, strides, strict=True)]
    return lax.slice(x, (0, *start, 0), (x.shape[0], *limits, x.shape[3]), (1, *strides, 1))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _by_platform(x: Array, kernel: Array, geometry: Geometry) -> Array:
    return lax.platform_dependent(
        x,
        kernel,
        cpu=lambda x, kernel: patches_times_matrix(x, kernel, geometry),
        default=lambda x, kernel: native(x, kernel, geometry),
    )


def _by_platform_fwd(x: Array, kernel: Array, geometry: Geometry) -> tuple[Array, tuple[Array, Array]]:
    return _by_platform(x, kernel, geometry), (x, kernel)


def _by_platform_bwd(geometry: Geometry, residuals: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    return lax.platform_dependent(
        *residuals,
        dy,
        cpu=lambda x, kernel, dy: _patches_bwd(geometry, (x, kernel), dy),
        default=lambda x, kernel, dy: jax.vjp(lambda x, k: native(x, k, geometry), x, kernel)[1](dy),
    )


_by_platform.defvjp(_by_platform_fwd, _by_platform_bwd)
