"""Augmentation on the device: uint8 images in, normalised float images out, one pure function of a key.

The order is fixed: flip, brightness, contrast, saturation, hue, normalise. The colour steps are those of
torchvision's ColorJitter, each factor drawn per example, each result clipped to [0, 1]. ColorJitter shuffles
its steps; here they keep one order, because under `jit` a random order per example computes every step at
every place, four times the work, for images that hardly differ. What is geometric beyond the flip (crop,
resize) happens on the host, where images differ in size.
"""

from __future__ import annotations

import dataclasses
import logging

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Float32, Int32, UInt8

from input_pipeline.batch import AttributeBatch
from input_pipeline.schema import AttributeSchema
from input_pipeline.text import LEFT, RIGHT

_LOGGER = logging.getLogger(__name__)

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
_LUMA = (0.2989, 0.587, 0.114)  # ITU-R BT.601, in torchvision's rounding

Images = Float32[Array, "B H W 3"]
PerExample = Float32[Array, "B 1 1 1"]


@dataclasses.dataclass(frozen=True)
class Options:
    """How images are augmented and normalised. Hashable; a 0 takes its step out of the program.

    Attributes:
      flip_probability: chance in [0, 1] that an image is mirrored left to right.
      brightness, contrast, saturation: the factor of each is uniform in [max(0, 1 - x), 1 + x]; x >= 0.
      hue: the rotation of the hue circle is uniform in [-x, x] turns; x in [0, 0.5].
      mean, std: per channel (R, G, B), of images scaled to [0, 1].
      dtype: of the images returned. The arithmetic is float32.
    """

    flip_probability: float = 0.5
    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.2
    hue: float = 0.1
    mean: tuple[float, float, float] = _IMAGENET_MEAN
    std: tuple[float, float, float] = _IMAGENET_STD
    dtype: DTypeLike = jnp.float32

    def __post_init__(self) -> None:
        limits = {
            "flip_probability": 1.0,
            "brightness": float("inf"),
            "contrast": float("inf"),
            "saturation": float("inf"),
            "hue": 0.5,
        }
        for name, limit in limits.items():
            if not 0.0 <= getattr(self, name) <= limit:
                raise ValueError(
                    f"augmentation: {name} must lie in [0, {limit}], found {getattr(self, name)}"
                )
        if min(self.std) <= 0.0:
            raise ValueError(f"augmentation: std must be positive, found {self.std}")


def for_schema(options: Options, schema: AttributeSchema) -> Options:
    """The options with what would make this schema's labels wrong switched off, and a log line saying so.

    Where a label depends on hue (`schema.hue_sensitive`), hue jitter would turn a red car into an orange one
    that is still labelled red; where one depends on sides (`schema.side_sensitive`), a mirrored car would
    still be labelled as facing left.
    """
    safe = dataclasses.replace(
        options,
        hue=0.0 if schema.hue_sensitive else options.hue,
        flip_probability=0.0 if schema.side_sensitive else options.flip_probability,
    )
    for name in ("hue", "flip_probability"):
        if getattr(safe, name) != getattr(options, name):
            found = getattr(options, name)
            _LOGGER.info(
                "augmentation: %s %g is switched off, it makes labels of %s wrong", name, found, schema.name
            )
    return safe


def augment(batch: AttributeBatch, rng: jax.Array, options: Options) -> AttributeBatch:
    """Augments and normalises the images of a training batch.

    Where an image is mirrored, the words left and right change places in its caption.

    Args:
      batch: with uint8 images [B, H, W, 3].
      rng: a PRNG key; the same key gives the same images, on any number of devices.
      options: static under `jit`.

    Returns:
      The batch with float images [B, H, W, 3] of `options.dtype` and captions that fit them; everything else
      is untouched.

    Raises:
      TypeError: the images are not uint8.
    """
    image = _uint8(batch)
    keys = jax.random.split(rng, 5)
    if options.flip_probability:
        mirrored = jax.random.bernoulli(keys[0], options.flip_probability, image.shape[:1])
        image = _flip(image, mirrored)
        if batch.tokens is not None:
            batch = _with_tokens(batch, _swap_sides(jnp.asarray(batch.tokens), mirrored))
    pixels = _jitter(_to_unit(image), keys[1:], options)
    return _with_image(batch, _standardise(pixels, options))


def normalise(batch: AttributeBatch, options: Options) -> AttributeBatch:
    """Scales the images to [0, 1], subtracts the mean and divides by the standard deviation; nothing random.

    Args:
      batch: with uint8 images [B, H, W, 3].
      options: its mean, std and dtype are used.

    Returns:
      The batch with float images [B, H, W, 3] of `options.dtype`.

    Raises:
      TypeError: the images are not uint8.
    """
    return _with_image(batch, _standardise(_to_unit(_uint8(batch)), options))


def recolour(image: Float[Array, "B H W 3"], rng: jax.Array, options: Options) -> Float[Array, "B H W 3"]:
    """The colour steps alone, on images that are normalised already; shape and dtype stay."""
    pixels = image.astype(jnp.float32) * jnp.array(options.std) + jnp.array(options.mean)
    return _standardise(_jitter(pixels, jax.random.split(rng, 4), options), options).astype(image.dtype)


def adjust_brightness(image: Images, factor: PerExample) -> Images:
    """Scales images [B, H, W, 3] in [0, 1] by a factor per example [B, 1, 1, 1], clipped to [0, 1]."""
    return jnp.clip(image * factor, 0.0, 1.0)


def adjust_contrast(image: Images, factor: PerExample) -> Images:
    """Moves images away from (factor > 1) or towards the mean grey of each, clipped to [0, 1]."""
    return _blend(image, _grey(image).mean(axis=(1, 2, 3), keepdims=True), factor)


def adjust_saturation(image: Images, factor: PerExample) -> Images:
    """Moves images away from (factor > 1) or towards the grey of each pixel, clipped to [0, 1]."""
    return _blend(image, _grey(image), factor)


def adjust_hue(image: Images, turns: PerExample) -> Images:
    """Turns the hue of HSV by so many turns of the colour circle, leaving saturation and value.

    With value v, chroma c and hue h in sixths of a turn, a channel of an HSV colour is
    v - c clip(min(k, 4 - k), 0, 1), where k = (n + h) mod 6 and n is 5 for red, 3 for green, 1 for blue.
    """
    red, green, blue = image[..., 0:1], image[..., 1:2], image[..., 2:3]
    value = image.max(axis=-1, keepdims=True)
    chroma = value - image.min(axis=-1, keepdims=True)
    per_chroma = 1.0 / jnp.where(chroma > 0.0, chroma, 1.0)  # grey has no hue and keeps its channels
    sixths = jnp.where(
        value == red,
        (green - blue) * per_chroma,
        jnp.where(value == green, (blue - red) * per_chroma + 2.0, (red - green) * per_chroma + 4.0),
    )
    k = sixths + 6.0 * turns + jnp.array([5.0, 3.0, 1.0])
    k = k - 6.0 * jnp.floor(k / 6.0)  # k mod 6, without jnp.mod's library call per element
    return value - chroma * jnp.clip(jnp.minimum(k, 4.0 - k), 0.0, 1.0)


def _jitter(image: Images, keys: jax.Array, options: Options) -> Images:
    """The colour steps that are on, each with a factor per example."""
    if options.brightness:
        image = adjust_brightness(image, _factors(keys[0], image, options.brightness))
    if options.contrast:
        image = adjust_contrast(image, _factors(keys[1], image, options.contrast))
    if options.saturation:
        image = adjust_saturation(image, _factors(keys[2], image, options.saturation))
    if options.hue:
        turns = jax.random.uniform(keys[3], _per_example(image), minval=-options.hue, maxval=options.hue)
        image = adjust_hue(image, turns)
    return image


def _flip(image: UInt8[Array, "B H W 3"], mirrored: Bool[Array, "B"]) -> UInt8[Array, "B H W 3"]:
    return jnp.where(mirrored[:, None, None, None], image[:, :, ::-1], image)


def _swap_sides(tokens: Int32[Array, "B T"], mirrored: Bool[Array, "B"]) -> Int32[Array, "B T"]:
    swapped = jnp.where(tokens == LEFT, RIGHT, jnp.where(tokens == RIGHT, LEFT, tokens))
    return jnp.where(mirrored[:, None], swapped, tokens)


def _blend(image: Images, other: Float32[Array, "B ..."], factor: PerExample) -> Images:
    return jnp.clip(factor * image + (1.0 - factor) * other, 0.0, 1.0)


def _grey(image: Images) -> Float32[Array, "B H W 1"]:
    return (image * jnp.array(_LUMA)).sum(axis=-1, keepdims=True)


def _factors(key: jax.Array, image: Images, strength: float) -> PerExample:
    low, high = max(0.0, 1.0 - strength), 1.0 + strength
    return jax.random.uniform(key, _per_example(image), minval=low, maxval=high)


def _per_example(image: Images) -> tuple[int, int, int, int]:
    return (image.shape[0], 1, 1, 1)


def _to_unit(image: UInt8[Array, "B H W 3"]) -> Images:
    return image.astype(jnp.float32) / 255.0


def _standardise(image: Images, options: Options) -> Float[Array, "B H W 3"]:
    scale = 1.0 / jnp.array(options.std, jnp.float32)
    return ((image - jnp.array(options.mean, jnp.float32)) * scale).astype(options.dtype)


def _with_image(batch: AttributeBatch, image: Float[Array, "B H W 3"]) -> AttributeBatch:
    return batch._replace(image=image)  # type: ignore[arg-type]  # the record names the host's arrays


def _with_tokens(batch: AttributeBatch, tokens: Int32[Array, "B T"]) -> AttributeBatch:
    return batch._replace(tokens=tokens)  # type: ignore[arg-type]  # the record names the host's arrays


def _uint8(batch: AttributeBatch) -> UInt8[Array, "B H W 3"]:
    """The batch's images, refused where a second normalisation would spoil them in silence."""
    image = jnp.asarray(batch.image)
    if image.dtype != jnp.uint8:
        raise TypeError(f"augmentation: images must be uint8 straight from the pipeline, found {image.dtype}")
    return image
