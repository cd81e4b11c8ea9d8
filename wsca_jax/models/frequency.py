"""Frequency decoupling: an image's low and high bands, and what each attribute group hears of them.

Every Fourier transform here is a product with a real, orthonormal Fourier basis, one side of the image at a
time. XLA's own transform of a batch that is spread over devices gathers the whole batch on each of them; a
matrix product leaves every image where it is.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32

from wsca_jax.models.convolution import Lowering
from wsca_jax.models.layers import Conv

# "f32" on every platform: by default a GPU would round the factors of a product to TF32, a TPU to bfloat16.
einsum = functools.partial(jnp.einsum, precision=lax.Precision.HIGHEST)

HIGHEST_FREQUENCY = 0.5  # cycles per pixel along one side
STRIDE = 4  # of the bands' feature maps
FLOOR = 1e-6  # keeps the gradient of a root finite where a channel is silent


class Frequency(NamedTuple):
    """What the frequency branch returns.

    Attributes:
      token: [B, 1, d], the mean of `groups`.
      groups: [B, G, d], the bands as each attribute group weighs their spectrum.
      low, high: float32 [B, H, W, 3], the image's two bands; they add up to the image.
      low_features, high_features: float32 [B, K], each band's mean feature.
      band_weights: float32 [B, 2], how much (low, high) count; each row sums to 1.
      cutoff: float32 scalar in (0, 0.5), the low-pass's standard deviation in cycles per pixel.
    """

    token: Float[Array, "B 1 d"]
    groups: Float[Array, "B G d"]
    low: Float32[Array, "B H W 3"]
    high: Float32[Array, "B H W 3"]
    low_features: Float32[Array, "B K"]
    high_features: Float32[Array, "B K"]
    band_weights: Float32[Array, "B 2"]
    cutoff: Float32[Array, ""]


@functools.cache
def fourier_basis(size: int) -> tuple[Float32[np.ndarray, "n k"], Float32[np.ndarray, "k"]]:
    """The real Fourier basis of a periodic signal of `size` samples.

    Returns:
      basis: orthonormal columns 1, cos f_1, sin f_1, cos f_2, ..., so that basis.T @ x is the spectrum of x
        and basis @ spectrum is x again.
      frequencies: each column's frequency in cycles per sample, from 0 to 1/2.
    """
    cycles = (np.arange(size) + 1) // 2
    # Whole turns are taken off while they are integers: cos of a large number loses digits.
    phase = 2 * np.pi * (np.outer(np.arange(size), cycles) % size) / size
    basis = np.where(np.arange(size) % 2 == 1, np.cos(phase), np.sin(phase))
    basis[:, 0] = 1.0
    return (basis / np.linalg.norm(basis, axis=0)).astype(np.float32), (cycles / size).astype(np.float32)


def gaussian_matrix(size: int, cutoff: Float32[Array, ""]) -> Float32[Array, "n n"]:
    """The circulant matrix that multiplies a signal's spectrum by exp(-f^2 / (2 cutoff^2))."""
    basis, frequencies = fourier_basis(size)
    response = jnp.exp(-0.5 * jnp.square(frequencies / cutoff))
    return einsum("nk,mk->nm", basis * response, basis)


@jax.custom_jvp
def low_pass(image: Float32[Array, "B H W C"], cutoff: Float32[Array, ""]) -> Float32[Array, "B H W C"]:
    """Multiplies each channel's spectrum by exp(-(f_y^2 + f_x^2) / (2 cutoff^2)), f in cycles per pixel.

    A Gaussian of two variables is a product of two, so the filter is a matrix product along each side.
    """
    _, height, width, _ = image.shape
    rows = gaussian_matrix(height, cutoff)
    columns = rows if height == width else gaussian_matrix(width, cutoff)
    return einsum("wx,bhxc->bhwc", columns, einsum("hy,bywc->bhwc", rows, image))


@low_pass.defjvp
def _low_pass_jvp(
    primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Float32[Array, "B H W C"], Float32[Array, "B H W C"]]:
    """The cutoff is one number, so forwards is the cheap way to its derivative.

    Backwards leads through both matrices, for whose gradients images are copied with one side in front.
    """
    image, cutoff = primals
    filtered = functools.partial(low_pass.fun, image)
    low, slope = jax.jvp(filtered, (cutoff,), (jnp.ones_like(cutoff),))
    return low, low_pass(tangents[0], cutoff) + slope * tangents[1]


def spectrum(maps: Float32[Array, "*batch h w c"]) -> Float32[Array, "*batch h w c"]:
    """Each channel's coefficients in the real Fourier basis of both sides; their squares keep the energy."""
    height, width = maps.shape[-3:-1]
    coefficients = einsum("yu,...yxc->...uxc", fourier_basis(height)[0], maps)
    return einsum("xv,...uxc->...uvc", fourier_basis(width)[0], coefficients)


@functools.cache
def radial_bands(height: int, width: int, bands: int) -> Float32[np.ndarray, "R h w"]:
    """Overlapping bands of the radius (f_y^2 + f_x^2)^1/2, over the coefficients of `spectrum`.

    Band r is a triangle around the r-th of R equidistant radii from 0 to the corner of the spectrum; at every
    frequency the bands sum to 1, so gains per band are a gain curve with straight pieces between them. It
    depends on the radius alone, which makes the filter a circular convolution: it commutes with shifts.

    Raises:
      ValueError: there are fewer than two bands, or a band holds no frequency of so small a map.
    """
    if bands < 2:
        raise ValueError(f"num_bands is {bands}; expected at least 2")
    radius = np.hypot.outer(fourier_basis(height)[1], fourier_basis(width)[1])
    corner = math.sqrt(2) * HIGHEST_FREQUENCY
    place = np.minimum(radius / corner, 1.0) * (bands - 1)
    triangles = np.maximum(0.0, 1.0 - np.abs(place - np.arange(bands)[:, None, None]))
    empty = np.flatnonzero(triangles.max((1, 2)) < 1e-3)
    if len(empty):
        raise ValueError(
            f"num_bands is {bands}, but a feature map of {height} x {width} has no frequency in "
            f"band {empty[0]}; expected fewer bands or an image of more than {STRIDE * min(height, width)} px"
        )
    return triangles.astype(np.float32)


class BandFeatures(nn.Module):
    """A light branch: two 3x3 convolutions of stride 2 with a ReLU between them.

    The image is continued periodically, as it is for the Fourier transform: a circular shift of it by 4
    pixels shifts the map by one position. Nothing normalises the map, because a band's strength says
    something (a blurred image has a weak high band).

    Attributes:
      width: channels K of the map; half of them inside.
      dtype: dtype of the convolutions.
      lowering: the convolutions' form; None lets the platform decide.
    """

    width: int
    dtype: DTypeLike = jnp.bfloat16
    lowering: Lowering | None = None

    @nn.compact
    def __call__(self, band: Float[Array, "B H W 3"]) -> Float[Array, "B h w K"]:
        hidden = nn.relu(self._convolve(band, self.width // 2, "first"))
        return self._convolve(hidden, self.width, "second")

    def _convolve(self, x: Float[Array, "B H W C"], features: int, name: str) -> Float[Array, "B h w F"]:
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="wrap")
        options = {"padding": (0, 0), "use_bias": True, "dtype": self.dtype, "lowering": self.lowering}
        return Conv(features, (3, 3), (2, 2), **options, name=name)(x)  # type: ignore[arg-type]


class FrequencyBranch(nn.Module):
    """Splits images into two frequency bands and describes them once per attribute group.

        low = F^-1(exp(-|f|^2 / (2 s^2)) F image),  high = image - low,  s = sigmoid(theta) / 2
        m_b = features of band b,  (w_low, w_high) = softmax(Dense([mean m_low; mean m_high]))
        y_gb = F^-1(gain_g(|f|) F m_b)                           for each group g, gain_g a learned curve
        groups_g = MLP(LayerNorm([w_b mean(y_gb); w_b rms(y_gb)] over both bands)),  token = mean_g groups_g

    Mean and root mean square run over positions. A mean alone would only hear the gain at frequency 0, and
    the filtered maps themselves are never built: by Parseval's theorem mean(y^2) = sum gain^2 |F m|^2 / N^2,
    which is one matrix product for all groups.

    Parameters (float32): `theta` []; `gains` [G, R], which start near 1 but unequal, or else equal groups
    would get equal gradients and stay equal; the bands' convolutions; Dense and LayerNorm.

    Attributes:
      num_groups: number G of attribute groups.
      hidden_size: width d of the descriptions.
      width: channels K of each band's feature map; even.
      num_bands: number R >= 2 of radial bands; 6 fit images of 16 px and more.
      initial_cutoff: initial s in (0, 0.5), cycles per pixel.
      dropout: rate inside the MLP, in training.
      dtype: dtype of convolutions and MLP; filters, spectra and softmax are float32.
      lowering: the convolutions' form; None lets the platform decide.

    Raises:
      ValueError: a setting lies outside its range, or the image is too small for `num_bands`.
    """

    num_groups: int
    hidden_size: int
    width: int = 24
    num_bands: int = 6
    initial_cutoff: float = 0.1
    dropout: float = 0.1
    dtype: DTypeLike = jnp.bfloat16
    lowering: Lowering | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.initial_cutoff < HIGHEST_FREQUENCY:
            raise ValueError(
                f"initial_cutoff is {self.initial_cutoff}; expected a number in (0, {HIGHEST_FREQUENCY})"
            )
        if self.width < 2 or self.width % 2:
            raise ValueError(f"width is {self.width}; expected an even number of at least 2")

    @nn.compact
    def __call__(self, image: Float[Array, "B H W 3"], *, train: bool) -> Frequency:
        image = image.astype(jnp.float32)
        cutoff = self._cutoff()
        low = low_pass(image, cutoff)
        high = image - low
        maps = self._maps(low, high)
        features = maps.mean((2, 3))
        weights = self._band_weights(features)
        groups = self._describe(self._statistics(maps, features), weights, train)
        token = groups.mean(1, keepdims=True)
        return Frequency(token, groups, low, high, features[:, 0], features[:, 1], weights, cutoff)

    def _cutoff(self) -> Float32[Array, ""]:
        share = self.initial_cutoff / HIGHEST_FREQUENCY
        initial = nn.initializers.constant(math.log(share / (1.0 - share)))
        return HIGHEST_FREQUENCY * nn.sigmoid(self.param("theta", initial, (), jnp.float32))

    def _maps(self, low: Float32[Array, "B H W 3"], high: Float32[Array, "B H W 3"]) -> Array:
        """Both bands' feature maps, float32 [B, 2, h, w, K]."""
        of_low = BandFeatures(self.width, self.dtype, self.lowering, name="low")(low)
        of_high = BandFeatures(self.width, self.dtype, self.lowering, name="high")(high)
        return jnp.stack([of_low, of_high], axis=1).astype(jnp.float32)

    def _band_weights(self, features: Float32[Array, "B 2 K"]) -> Float32[Array, "B 2"]:
        scores = nn.Dense(2, dtype=jnp.float32, precision=lax.Precision.HIGHEST, name="scores")
        return nn.softmax(scores(features.reshape(len(features), -1)))

    def _statistics(
        self, maps: Float32[Array, "B 2 h w K"], features: Float32[Array, "B 2 K"]
    ) -> Float32[Array, "B G 2 2K"]:
        """Mean and root mean square, over positions, of the maps as each group's gains filter them."""
        _, _, height, width, _ = maps.shape
        shape = (self.num_groups, self.num_bands)
        gains = self.param("gains", _near_one, shape, jnp.float32)
        curves = einsum("gr,rhw->ghw", gains, radial_bands(height, width, self.num_bands))
        power = jnp.square(spectrum(maps)) / (height * width)
        energy = einsum("ghw,bnhwk->bgnk", jnp.square(curves), power)
        mean = curves[:, 0, 0][:, None, None] * features[:, None]
        return jnp.concatenate([mean, jnp.sqrt(energy + FLOOR)], axis=-1)

    def _describe(
        self, statistics: Float32[Array, "B G 2 2K"], weights: Float32[Array, "B 2"], train: bool
    ) -> Float[Array, "B G d"]:
        weighted = statistics * weights[:, None, :, None]
        x = nn.LayerNorm(dtype=self.dtype, name="norm")(weighted.reshape(*weighted.shape[:2], -1))
        x = nn.relu(nn.Dense(self.hidden_size, dtype=self.dtype, name="hidden")(x))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(self.hidden_size, dtype=self.dtype, name="output")(x)


def _near_one(key: Array, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    return 1.0 + nn.initializers.normal(0.3)(key, shape, dtype)
