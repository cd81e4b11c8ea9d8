"""From encoded bytes to a square uint8 image: decode, crop, resize. All on the host, in the calling thread.

JPEG and PNG are read. A file that does not decode in full is an error, never a partly grey image. Orientation
tags are ignored, as the data sets' annotations ignore them.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import struct
import zlib
from typing import Literal, NamedTuple

import cv2
import numpy as np
import simplejpeg
from jaxtyping import Float64, UInt8

from input_pipeline.errors import CorruptImageError, DataError
from input_pipeline.untrusted.bounded import from_environment

# The pipeline's own threads work on whole images; threads of OpenCV inside them would only compete.
cv2.setNumThreads(0)


@dataclasses.dataclass(frozen=True)
class Limits:
    """What an image may claim; `WSCA_IMAGE_PIXELS` in the environment changes it.

    Attributes:
      pixels: an image of more (16,384 squared) is refused before memory is asked for.
    """

    pixels: int = 1 << 28


@functools.cache
def limits() -> Limits:
    """As the environment had them when the first image was read. Raises DataError for no number above 0."""
    return from_environment(Limits, "WSCA_IMAGE")


_JPEG = b"\xff\xd8\xff"
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclasses.dataclass(frozen=True)
class ImageOptions:
    """How an image becomes [size, size, 3].

    The evaluation view is the whole image ("stretch", squeezed to a square) or its largest centred square
    ("crop"). Training may cut a random window instead, given relative to that view.

    Attributes:
      size: side of the result in pixels.
      fit: the evaluation view.
      crop_scale: range of the window's area as a fraction of the evaluation view's, within (0, 1].
      crop_ratio: range of the window's width-to-height ratio relative to the evaluation view's; log-uniform.

    Raises:
      DataError: a setting outside its range.
    """

    size: int
    fit: Literal["stretch", "crop"] = "stretch"
    crop_scale: tuple[float, float] = (1.0, 1.0)
    crop_ratio: tuple[float, float] = (1.0, 1.0)

    def __post_init__(self) -> None:
        if self.size < 1:
            raise DataError(f"images: size must be at least 1 pixel, found {self.size}")
        if self.fit not in ("stretch", "crop"):
            raise DataError(f"images: fit must be 'stretch' or 'crop', found {self.fit!r}")
        if not 0.0 < self.crop_scale[0] <= self.crop_scale[1] <= 1.0:
            raise DataError(f"images: crop_scale must be a range within (0, 1], found {self.crop_scale}")
        if not 0.0 < self.crop_ratio[0] <= self.crop_ratio[1]:
            raise DataError(f"images: crop_ratio must be a range above 0, found {self.crop_ratio}")

    @property
    def random_crop(self) -> bool:
        """Whether training cuts random windows at all."""
        return self.crop_scale != (1.0, 1.0) or self.crop_ratio != (1.0, 1.0)


class Box(NamedTuple):
    """A window in an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


def load(
    image: bytes | UInt8[np.ndarray, "H W 3"],
    options: ImageOptions,
    draw: Float64[np.ndarray, "4"] | None = None,
    out: UInt8[np.ndarray, "S S 3"] | None = None,
    box: Box | None = None,
) -> UInt8[np.ndarray, "S S 3"]:
    """Decodes, crops and resizes one image.

    Args:
      image: encoded bytes or decoded pixels.
      options: the geometry; S is `options.size`.
      draw: four uniform numbers in [0, 1) that decide the training window; None for the evaluation view.
      out: where to write the result, if not into a new array.
      box: the part of the image that stands for the whole; what sticks out of the image is cut off.

    Raises:
      CorruptImageError: the bytes do not decode in full.
    """
    height, width = image_shape(image)
    window = _window(height, width, options, draw, box)
    if isinstance(image, bytes):
        shortest = math.ceil(min(height, width) * options.size / min(window.height, window.width))
        image = _pixels(image, shortest)
    if window != (0, 0, height, width):
        image = cut(image, window, image.shape[0] / height, image.shape[1] / width)
    return resize(image, options.size, out)


def _window(
    height: int,
    width: int,
    options: ImageOptions,
    draw: Float64[np.ndarray, "4"] | None,
    box: Box | None,
) -> Box:
    """What `load` shows of an image of this size."""
    part = Box(0, 0, height, width) if box is None else inside(box, height, width)
    if draw is not None and options.random_crop:
        window = random_box(part.height, part.width, options, draw)
    else:
        window = evaluation_box(part.height, part.width, options.fit)
    return window if box is None else Box(part.top + window.top, part.left + window.left, *window[2:])


def inside(box: Box, height: int, width: int) -> Box:
    """The part of a box that lies in an image of this size, a pixel at least."""
    top, left = min(max(box.top, 0), height - 1), min(max(box.left, 0), width - 1)
    bottom = min(max(box.top + box.height, top + 1), height)
    right = min(max(box.left + box.width, left + 1), width)
    return Box(top, left, bottom - top, right - left)


def evaluation_box(height: int, width: int, fit: Literal["stretch", "crop"]) -> Box:
    """The whole image, or its largest centred square."""
    if fit == "stretch":
        return Box(0, 0, height, width)
    side = min(height, width)
    return Box((height - side) // 2, (width - side) // 2, side, side)


def random_box(height: int, width: int, options: ImageOptions, draw: Float64[np.ndarray, "4"]) -> Box:
    """A window of random area, shape and place, relative to the evaluation view and inside the image.

    A side that would not fit is clipped to the image, so that four numbers decide whatever the image.
    """
    view = evaluation_box(height, width, options.fit)
    area = _between(*options.crop_scale, draw[0])
    low, high = map(math.log, options.crop_ratio)
    ratio = math.exp(_between(low, high, draw[1]))
    box_height = min(height, max(1, round(view.height * math.sqrt(area / ratio))))
    box_width = min(width, max(1, round(view.width * math.sqrt(area * ratio))))
    top = int(draw[2] * (height - box_height + 1))
    left = int(draw[3] * (width - box_width + 1))
    return Box(top, left, box_height, box_width)


def _between(low: float, high: float, u: float) -> float:
    return low + (high - low) * u


def cut(
    image: UInt8[np.ndarray, "H W 3"], box: Box, down: float = 1.0, across: float = 1.0
) -> UInt8[np.ndarray, "h w 3"]:
    """The window of an image that was decoded at (down, across) times the size the box refers to."""
    top, left = round(box.top * down), round(box.left * across)
    height, width = max(1, round(box.height * down)), max(1, round(box.width * across))
    top, left = min(top, image.shape[0] - height), min(left, image.shape[1] - width)
    return image[top : top + height, left : left + width]


def resize(
    image: UInt8[np.ndarray, "H W 3"], size: int, out: UInt8[np.ndarray, "S S 3"] | None = None
) -> UInt8[np.ndarray, "S S 3"]:
    """Resizes to a square: averaging pixel areas where it shrinks, linearly where it grows."""
    height, width = image.shape[:2]
    if out is None:
        out = np.empty((size, size, 3), np.uint8)
    if height < size or width < size:
        if height > size or width > size:
            shape = min(width, size), min(height, size)
            image = cv2.resize(image, shape, interpolation=cv2.INTER_AREA)
        cv2.resize(image, (size, size), dst=out, interpolation=cv2.INTER_LINEAR)
    elif height == width == size:
        out[:] = image
    else:
        cv2.resize(image, (size, size), dst=out, interpolation=cv2.INTER_AREA)
    return out


def image_shape(image: bytes | UInt8[np.ndarray, "H W 3"]) -> tuple[int, int]:
    """(height, width) without decoding. Raises CorruptImageError where no header can be read."""
    if not isinstance(image, bytes):
        return image.shape[0], image.shape[1]
    height, width = _header_shape(image)
    if height < 1 or width < 1:
        raise CorruptImageError(f"the header claims {height} x {width} pixels")
    if height * width > limits().pixels:
        raise CorruptImageError(
            f"the header claims {height} x {width} pixels, more than {limits().pixels} in all "
            "(WSCA_IMAGE_PIXELS)"
        )
    return height, width


def _header_shape(data: bytes) -> tuple[int, int]:
    if data.startswith(_JPEG):
        try:
            height, width, _, _ = simplejpeg.decode_jpeg_header(data)
        except ValueError as error:
            raise CorruptImageError(f"the JPEG header cannot be read: {error}") from error
        except KeyError as error:  # simplejpeg knows no name for the sampling
            raise CorruptImageError(
                "the JPEG's colours are sampled as no known format has them; save it again as 4:2:0 or 4:4:4"
            ) from error
        return height, width
    if data.startswith(_PNG):
        if len(data) < 24:
            raise CorruptImageError(f"a PNG of {len(data)} bytes: it ends in its header")
        width, height = struct.unpack(">II", data[16:24])
        return height, width
    found = f"starts with {data[:4].hex()}" if data else "no bytes at all"
    raise CorruptImageError(f"neither JPEG nor PNG: {found}")


def check_complete(data: bytes, name: str) -> None:
    """Raises CorruptImageError, naming the image, unless it decodes in full.

    A JPEG is decoded at an eighth of its size: that is quick, and every coefficient is read all the same.
    """
    try:
        decode(data, shortest=1)
    except CorruptImageError as error:
        raise CorruptImageError(f"{name}: {error}") from error


def decode(data: bytes, *, shortest: int | None = None) -> UInt8[np.ndarray, "H W 3"]:
    """Decodes a JPEG or PNG in full.

    Args:
      data: the encoded image; grey, CMYK, palette, 16-bit and transparent images become RGB.
      shortest: if given, a JPEG may be decoded at a smaller scale (1/2 or less), cheaply inside the inverse
        cosine transform, as long as both sides keep this many pixels.

    Raises:
      CorruptImageError: bytes are missing, damaged, or of another format; says why, not which image.
    """
    image_shape(data)
    return _pixels(data, shortest)


def _pixels(data: bytes, shortest: int | None) -> UInt8[np.ndarray, "H W 3"]:
    """`decode` of an image whose header is known to be sound."""
    return _decode_jpeg(data, shortest) if data.startswith(_JPEG) else _decode_png(data)


def _decode_jpeg(data: bytes, shortest: int | None) -> UInt8[np.ndarray, "H W 3"]:
    # A factor between 1 and 2 would cost more than decoding in full.
    scaling = {} if shortest is None else {"min_height": shortest, "min_width": shortest, "min_factor": 2}
    try:
        return simplejpeg.decode_jpeg(data, "RGB", strict=True, **scaling)
    except ValueError as error:
        raise CorruptImageError(f"the JPEG does not decode in full: {error}") from error


def _decode_png(data: bytes) -> UInt8[np.ndarray, "H W 3"]:
    _check_png(data)
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if pixels is None:
        raise CorruptImageError("the PNG does not decode")
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)


def _check_png(data: bytes) -> None:
    """Holds every chunk against its checksum, up to the end mark: OpenCV alone forgives much."""
    start, kind = len(_PNG), b""
    while kind != b"IEND":
        if start + 12 > len(data):
            raise CorruptImageError("the PNG ends before its end mark")
        length = int.from_bytes(data[start : start + 4], "big")
        kind, end = data[start + 4 : start + 8], start + 8 + length
        if zlib.crc32(data[start + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            raise CorruptImageError(f"the PNG's chunk at byte {start} fails its checksum")
        start = end + 4
