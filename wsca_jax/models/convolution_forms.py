"""Forms of a convolution and of its two gradients that XLA's CPU compiler runs fast.

Each computes exactly what `lax.conv_general_dilated` or its derivative does, through matrix products.
NHWC images, HWIO kernels, symmetric zero padding.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

Pair = tuple[int, int]


class Geometry(NamedTuple):
    """How a kernel walks over an image: static, hashable.

    Attributes:
      strides: step (rows, columns).
      padding: zeros added on both sides of (rows, columns), PyTorch's convention.
    """

    strides: Pair
    padding: Pair


def native(x: Array, kernel: Array, geometry: Geometry) -> Float[Array, "B h w Cout"]:
    """The compiler's own convolution."""
    padding = [(p, p) for p in geometry.padding]
    names = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, geometry.strides, padding, dimension_numbers=names)


def patches_times_matrix(x: Array, kernel: Array, geometry: Geometry) -> Float[Array, "B h w Cout"]:
    """[B h w, kh kw Cin] @ [kh kw Cin, Cout]; the patches of a 1x1 kernel are the image."""
    columns = patches(x, kernel_size(kernel), geometry)
    return columns @ kernel.reshape(-1, kernel.shape[-1])


def patches(x: Float[Array, "B H W C"], size: Pair, geometry: Geometry) -> Float[Array, "B h w khkwC"]:
    """Every window that a kernel of `size` sees, flattened in (row, column, channel) order.

    Stacked along one side, then the other: the compiler fuses each stack of few slices into one loop, while
    a single concatenation of all kh kw slices copies everything twice.
    """
    x = _pad(x, geometry.padding)
    h, w = output_size(sides(x), size, Geometry(geometry.strides, (0, 0)))
    if size == (1, 1):
        return _window(x, (0, 0), (h, w), geometry.strides)
    rows = x.shape[1]
    columns = jnp.stack([_window(x, (0, j), (rows, w), (1, geometry.strides[1])) for j in range(size[1])], 3)
    columns = columns.reshape(*columns.shape[:3], -1)
    windows = [_window(columns, (i, 0), (h, w), (geometry.strides[0], 1)) for i in range(size[0])]
    return jnp.stack(windows, axis=3).reshape(x.shape[0], h, w, -1)


def kernel_size(kernel: Array) -> Pair:
    """Rows and columns of a kernel [kh, kw, Cin, Cout]."""
    return kernel.shape[0], kernel.shape[1]


def sides(x: Array) -> Pair:
    """Rows and columns of images [B, H, W, C]."""
    return x.shape[1], x.shape[2]


def output_size(size: Pair, kernel: Pair, geometry: Geometry) -> Pair:
    """Rows and columns of the result for an image of `size`."""
    h, w = (
        (n + 2 * p - k) // s + 1
        for n, k, s, p in zip(size, kernel, geometry.strides, geometry.padding, strict=True)
    )
    return h, w


def kernel_gradient_by_patches(x: Array, dy: Array, size: Pair, geometry: Geometry) -> Array:
    """d loss / d kernel [kh, kw, Cin, Cout]: every window of the images times its cotangent, one product."""
    inputs, features = x.shape[-1], dy.shape[-1]
    columns = patches(x, size, geometry).reshape(-1, size[0] * size[1] * inputs)
    return _contract_rows(columns, dy.reshape(-1, features)).reshape(*size, inputs, features)


def kernel_gradient_in_turns(x: Array, dy: Array, size: Pair, geometry: Geometry, images: int) -> Array:
    """`kernel_gradient_by_patches` of so many images at a time, a divisor of B, summed in float32.

    The patches of a few images stay in the processor's cache, those of a batch do not. Each turn takes images
    that lie B / `images` apart: a batch that is spread over devices then has some on every one.
    """
    turns = x.shape[0] // images
    x, dy = (a.reshape(images, turns, *a.shape[1:]) for a in (x, dy))

    def add(turn: Array, total: Array) -> Array:
        few, dfew = (lax.dynamic_index_in_dim(a, turn, axis=1, keepdims=False) for a in (x, dy))
        return total + kernel_gradient_by_patches(few, dfew, size, geometry)

    nothing = jnp.zeros((*size, x.shape[-1], dy.shape[-1]), jnp.float32)
    return lax.fori_loop(0, turns, add, nothing).astype(dy.dtype)


def _contract_rows(a: Float[Array, "n k"], b: Float[Array, "n f"]) -> Float[Array, "k f"]:
    """a.T @ b, with the narrower factor on the left: the product transposes its left factor as it reads it.

    The barrier keeps the compiler from folding the transposed result back into the other order.
    """
    if a.shape[1] <= b.shape[1]:
        return jnp.einsum("nk,nf->kf", a, b)
    return lax.optimization_barrier(jnp.einsum("nf,nk->fk", b, a)).T


def input_gradient_by_phases(dy: Array, kernel: Array, size: Pair, geometry: Geometry) -> Array:
    """d loss / d x [B, H, W, Cin], (H, W) = `size`.

    With stride s the input's rows fall into s phases, each seen by every s-th row of the kernel only (columns
    alike): one stride-1 convolution of the cotangent for each phase, without a multiplication by zero.
    """
    axes = [
        [_phase(p, size[axis], axis, kernel, geometry) for p in range(geometry.strides[axis])]
        for axis in (0, 1)
    ]
    phases = [[_phase_gradient(dy, kernel, row, column) for column in axes[1]] for row in axes[0]]
    return _interleave(phases, size)


class _Phase(NamedTuple):
    """One phase along one side: kernel taps, the first cotangent it reads, and its number of inputs."""

    taps: tuple[int, ...]
    first: int
    inputs: int


def _phase(p: int, size: int, axis: int, kernel: Array, geometry: Geometry) -> _Phase:
    """Input s q + p is seen by tap k from output (s q + p + padding - k) / s, where that is whole."""
    stride, padding = geometry.strides[axis], geometry.padding[axis]
    taps = tuple(k for k in reversed(range(kernel.shape[axis])) if (p + padding - k) % stride == 0)
    first = (p + padding - taps[0]) // stride if taps else 0
    return _Phase(taps, first, -(-(size - p) // stride))


def _phase_gradient(dy: Array, kernel: Array, row: _Phase, column: _Phase) -> Array:
    """The input gradient at one phase [B, row.inputs, column.inputs, Cin]."""
    if not (row.taps and column.taps and row.inputs and column.inputs):
        return jnp.zeros((dy.shape[0], row.inputs, column.inputs, kernel.shape[2]), dy.dtype)
    dy = _extent(_extent(dy, 1, row), 2, column)
    columns = patches(dy, (len(row.taps), len(column.taps)), Geometry((1, 1), (0, 0)))
    matrix = jnp.concatenate([kernel[r, c] for r in row.taps for c in column.taps], axis=1)
    return jnp.einsum("bhwk,ck->bhwc", columns, matrix)


def _extent(dy: Array, axis: int, phase: _Phase) -> Array:
    """Crops or zero-pads the cotangent to exactly what a phase reads along one axis."""
    low, high = -phase.first, phase.first + phase.inputs + len(phase.taps) - 1 - dy.shape[axis]
    config = [(0, 0, 0)] * dy.ndim
    config[axis] = (low, high, 0)
    return dy if low == high == 0 else lax.pad(dy, jnp.zeros((), dy.dtype), config)


def _interleave(phases: list[list[Array]], size: Pair) -> Array:
    """Puts phase (p, q) at rows p, p + s, ... and columns q, q + s, ..."""
    if len(phases) == len(phases[0]) == 1:
        return phases[0][0]
    counts = phases[0][0].shape[1:3]
    grown = [[_grow(x, counts) for x in row] for row in phases]
    full = jnp.stack([jnp.stack(row, axis=3) for row in grown], axis=2)  # [B, h, s, w, s, C]
    b, h, s, w, t, c = full.shape
    return full.reshape(b, h * s, w * t, c)[:, : size[0], : size[1]]


def _grow(x: Array, counts: tuple[int, ...]) -> Array:
    return jnp.pad(x, [(0, 0), (0, counts[0] - x.shape[1]), (0, counts[1] - x.shape[2]), (0, 0)])


def _pad(x: Array, padding: Pair) -> Array:
    if padding == (0, 0):
        return x
    return jnp.pad(x, [(0, 0), (padding[0],) * 2, (padding[1],) * 2, (0, 0)])


def _window(x: Array, start: Pair, size: tuple[int, ...], strides: Pair) -> Array:
    limits = [i + (n - 1) * s + 1 for i, n, s in zip(start, size, strides, strict=True)]
    return lax.slice(x, (0, *start, 0), (x.shape[0], *limits, x.shape[3]), (1, *strides, 1))
