"""Smaller images to store or to show: cut to the object, no larger than asked for."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
import simplejpeg
from jaxtyping import UInt8

from input_pipeline.errors import DataError
from input_pipeline.images import Box, cut, decode, image_shape, inside

# What is stored around an object, in sides of its box: room for context and for random windows.
MARGIN = 0.25
QUALITY = 95


@dataclasses.dataclass(frozen=True)
class Storage:
    """How images are stored.

    Attributes:
      shortest: images whose shorter side is longer than this are stored with a shorter side of this many
        pixels; None keeps every pixel.
      crops: whether an image is cut to its box and a margin of `MARGIN` around it.

    Images that need neither keep their bytes. Others become JPEG of quality 95, without chroma subsampling.

    Raises:
      DataError: `shortest` is below 1.
    """

    shortest: int | None = None
    crops: bool = False

    def __post_init__(self) -> None:
        if self.shortest is not None and self.shortest < 1:
            raise DataError(f"prepare: images of {self.shortest} pixels; expected at least 1")

    def apply(self, image: bytes, box: Box | None) -> tuple[bytes, Box | None]:
        """The image as it is stored, and where its box is then. Raises CorruptImageError."""
        height, width = image_shape(image)
        window = around(box, height, width) if self.crops and box is not None else Box(0, 0, height, width)
        scale = self._scale(window)
        if scale == 1.0 and window == (0, 0, height, width):
            return image, box
        shape = round(window.height * scale), round(window.width * scale)
        pixels = cv2.resize(cut(decode(image), window), shape[::-1], interpolation=cv2.INTER_AREA)
        return _encode(pixels), None if box is None else _moved(box, window, shape)

    def _scale(self, window: Box) -> float:
        shortest = min(window.height, window.width)
        return 1.0 if self.shortest is None or shortest <= self.shortest else self.shortest / shortest


def thumbnail(image: bytes, longest: int = 128) -> bytes:
    """A JPEG of the whole image whose longer side has at most `longest` pixels. Raises CorruptImageError."""
    height, width = image_shape(image)
    scale = min(1.0, longest / max(height, width))
    shape = max(1, round(height * scale)), max(1, round(width * scale))
    pixels = cv2.resize(decode(image, shortest=min(shape)), shape[::-1], interpolation=cv2.INTER_AREA)
    return simplejpeg.encode_jpeg(pixels, quality=80, colorspace="RGB")


def around(box: Box, height: int, width: int) -> Box:
    """The box and its margin, inside an image of this size."""
    top, left = round(box.top - MARGIN * box.height), round(box.left - MARGIN * box.width)
    bottom, right = round(box.top + (1 + MARGIN) * box.height), round(box.left + (1 + MARGIN) * box.width)
    return inside(Box(top, left, bottom - top, right - left), height, width)


def _moved(box: Box, window: Box, shape: tuple[int, int]) -> Box:
    """Where the box is in the window, once that has this shape."""
    down, across = shape[0] / window.height, shape[1] / window.width
    top, left = round((box.top - window.top) * down), round((box.left - window.left) * across)
    return inside(Box(top, left, round(box.height * down), round(box.width * across)), *shape)


def _encode(pixels: UInt8[np.ndarray, "H W 3"]) -> bytes:
    return simplejpeg.encode_jpeg(
        np.ascontiguousarray(pixels), quality=QUALITY, colorspace="RGB", colorsubsampling="444"
    )
