"""Distortion on the device: what the model in training has to make sense of, and its teacher does not see.

A teacher of pseudo labels that looks at images (`loss.whole_teacher`; vote heads read the model's features)
sees one as `augment` leaves it, the model in training the same image distorted: other light and colours,
moved, a square painted over. What the teacher says of the one is the target for the other, which teaches even
where both agree on undistorted images. (Tarvainen and Valpola, Mean Teachers, 2017,
https://arxiv.org/abs/1703.01780; Sohn et al., FixMatch, 2020, https://arxiv.org/abs/2001.07685; the square:
DeVries and Taylor, Cutout, 2017, https://arxiv.org/abs/1708.04552.)
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int32

from wsca_jax import augment


@dataclasses.dataclass(frozen=True)
class Distortion:
    """How far images are distorted. Hashable; a 0 takes its step out of the program.

    Attributes:
      brightness, contrast, saturation: as in `augment.Options`: factors uniform in [max(0, 1 - x), 1 + x].
      shift: how far an image moves at most, up or down and to a side, as a share of its side; in [0, 0.5].
        What is laid bare repeats the border.
      erase: the largest side of the square that is painted over with the mean colour, as a share of the
        image's shorter side; in [0, 1]. Sides are uniform from 0 on, centres anywhere in the image.
    """

    brightness: float = 0.3
    contrast: float = 0.3
    saturation: float = 0.3
    shift: float = 0.08
    erase: float = 0.4

    def __post_init__(self) -> None:
        limits = {"shift": 0.5, "erase": 1.0}
        for name, value in dataclasses.asdict(self).items():
            limit = limits.get(name, math.inf)
            if not 0.0 <= value <= limit:
                raise ValueError(f"distortion: {name} must lie in [0, {limit}], found {value}")


def distort(
    image: Float[Array, "B H W 3"], rng: jax.Array, distortion: Distortion, options: augment.Options
) -> Float[Array, "B H W 3"]:
    """Distorts each image of a batch in its own way.

    Args:
      image: normalised, as `augment.augment` returns it.
      rng: a PRNG key; the same key gives the same images, on any number of devices.
      distortion: static under `jit`.
      options: what the images were normalised with.

    Returns:
      Images of the same shape and dtype, colours within what a pixel can hold.
    """
    keys = jax.random.split(rng, 3)
    colours = {name: getattr(distortion, name) for name in ("brightness", "contrast", "saturation")}
    image = augment.recolour(image, keys[0], dataclasses.replace(options, hue=0.0, **colours))
    if distortion.shift:
        image = _moved(image, keys[1], distortion.shift)
    if distortion.erase:
        image = _erased(image, keys[2], distortion.erase)
    return image


def _moved(image: Float[Array, "B H W 3"], rng: jax.Array, share: float) -> Float[Array, "B H W 3"]:
    examples, *sides, _ = image.shape
    furthest = jnp.array([round(share * side) for side in sides])
    moves = jax.random.randint(rng, (examples, 2), -furthest, furthest + 1)
    return jax.vmap(_move)(image, moves)


def _move(image: Float[Array, "H W 3"], move: Int32[Array, "2"]) -> Float[Array, "H W 3"]:
    rows, columns = (
        jnp.clip(jnp.arange(side) - move[i], 0, side - 1) for i, side in enumerate(image.shape[:2])
    )
    return image[rows][:, columns]


def _erased(image: Float[Array, "B H W 3"], rng: jax.Array, share: float) -> Float[Array, "B H W 3"]:
    examples, height, width, _ = image.shape
    of_size, of_centre = jax.random.split(rng)
    reach = 0.5 * share * min(height, width) * jax.random.uniform(of_size, (examples, 1))
    centre = jax.random.uniform(of_centre, (examples, 2)) * jnp.array([height, width])
    rows = jnp.abs(_middles(height) - centre[:, :1]) < reach
    columns = jnp.abs(_middles(width) - centre[:, 1:]) < reach
    inside = rows[:, :, None] & columns[:, None, :]
    return jnp.where(inside[..., None], jnp.zeros((), image.dtype), image)


def _middles(side: int) -> Float32[Array, "side"]:
    return jnp.arange(side) + 0.5
