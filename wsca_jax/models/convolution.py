"""Two-dimensional convolution, NHWC, in the form each platform runs fastest.

GPU and TPU compilers have excellent convolutions. XLA's CPU compiler has a good forward convolution for large
feature maps, scalar loops where the map is smaller than the kernel, and slow gradients of the kernel; there
this module picks, by shape, between the native form and matrix products. The choice between platforms is made
where the program is compiled, not where it is traced: a TPU program compiled on a CPU machine gets the native
one.
"""

from __future__ import annotations

import functools
import math
from typing import Literal

import jax
from jax import lax
from jaxtyping import Array, Float

from wsca_jax.models.convolution_forms import (
    Geometry,
    Pair,
    input_gradient_by_phases,
    kernel_gradient_by_patches,
    kernel_gradient_in_turns,
    kernel_size,
    native,
    output_size,
    patches_times_matrix,
    sides,
)

Lowering = Literal["native", "cpu"]

# Below this the CPU's native convolution loses to matrix products: positions in an image's (smaller) map.
NATIVE_POSITIONS = 64

# Of patches that the kernel's gradient multiplies at a time. More fall out of a CPU core's caches; with less
# than a few kernels' worth the time goes into adding up.
PATCH_BYTES = 3 << 19
PATCH_KERNELS = 4


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
      lowering: "native" (the compiler's own) or "cpu" (what is fast on the CPU) forces a form; None takes
        "cpu" on the CPU and "native" elsewhere.

    Returns:
      The images' responses. All forms agree to rounding, gradients included. Only "native" supports
      forward-mode differentiation.

    Raises:
      TypeError: where the dtypes differ.
    """
    if x.dtype != kernel.dtype:
        raise TypeError(f"convolve: images are {x.dtype}, the kernel is {kernel.dtype}; cast one of them")
    geometry = Geometry(strides, padding)
    return native(x, kernel, geometry) if lowering == "native" else _convolve(x, kernel, geometry, lowering)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolve(x: Array, kernel: Array, geometry: Geometry, lowering: Lowering | None) -> Array:
    on_cpu = functools.partial(cpu_forward, geometry=geometry)
    if lowering == "cpu":
        return on_cpu(x, kernel)
    return lax.platform_dependent(x, kernel, cpu=on_cpu, default=functools.partial(native, geometry=geometry))


def _forward(
    x: Array, kernel: Array, geometry: Geometry, lowering: Lowering | None
) -> tuple[Array, tuple[Array, Array]]:
    return _convolve(x, kernel, geometry, lowering), (x, kernel)


def _backward(
    geometry: Geometry, lowering: Lowering | None, residuals: tuple[Array, Array], dy: Array
) -> tuple[Array, Array]:
    on_cpu = functools.partial(cpu_gradients, geometry=geometry)
    if lowering == "cpu":
        return on_cpu(*residuals, dy)
    elsewhere = functools.partial(native_gradients, geometry=geometry)
    return lax.platform_dependent(*residuals, dy, cpu=on_cpu, default=elsewhere)


_convolve.defvjp(_forward, _backward)


def native_gradients(x: Array, kernel: Array, dy: Array, geometry: Geometry) -> tuple[Array, Array]:
    """The compiler's own (d x, d kernel)."""
    return jax.vjp(functools.partial(native, geometry=geometry), x, kernel)[1](dy)


def cpu_forward(x: Array, kernel: Array, geometry: Geometry) -> Array:
    size = output_size(sides(x), kernel_size(kernel), geometry)
    if _pointwise(kernel, geometry) or not _native_is_fast(sides(x), size, kernel):
        return patches_times_matrix(x, kernel, geometry)
    return native(x, kernel, geometry)


def cpu_gradients(x: Array, kernel: Array, dy: Array, geometry: Geometry) -> tuple[Array, Array]:
    return (
        cpu_input_gradient(x, kernel, dy, geometry),
        cpu_kernel_gradient(x, kernel, dy, geometry),
    )


def cpu_input_gradient(x: Array, kernel: Array, dy: Array, geometry: Geometry) -> Array:
    if _pointwise(kernel, geometry) or not _native_is_fast(sides(dy), sides(dy), kernel):
        return input_gradient_by_phases(dy, kernel, sides(x), geometry)
    return native_gradients(x, kernel, dy, geometry)[0]


def cpu_kernel_gradient(x: Array, kernel: Array, dy: Array, geometry: Geometry) -> Array:
    size = kernel_size(kernel)
    images = _images_at_a_time(x, kernel, dy)
    if images == x.shape[0] or _pointwise(kernel, geometry):
        return kernel_gradient_by_patches(x, dy, size, geometry)
    return kernel_gradient_in_turns(x, dy, size, geometry, images)


def _images_at_a_time(x: Array, kernel: Array, dy: Array) -> int:
    """The most images whose patches are no more than they should be, or the fewest that can be.

    They divide the batch, and devices divide them, so that no image has to leave its device.
    """
    each = math.prod(sides(dy)) * math.prod(kernel.shape[:3]) * kernel.itemsize
    most = max(PATCH_BYTES, PATCH_KERNELS * kernel.nbytes)
    batch, devices = x.shape[0], jax.device_count()
    possible = [n for n in range(devices, batch + 1, devices) if batch % n == 0] or [batch]
    return max((n for n in possible if n * each <= most), default=possible[0])


def _pointwise(kernel: Array, geometry: Geometry) -> bool:
    return kernel_size(kernel) == (1, 1) and geometry.padding == (0, 0)


def _native_is_fast(read: Pair, written: Pair, kernel: Array) -> bool:
    """XLA falls back to scalar loops where the kernel is larger than the map it reads."""
    fits = all(k <= n for k, n in zip(kernel_size(kernel), read, strict=True))
    return fits and written[0] * written[1] >= NATIVE_POSITIONS
