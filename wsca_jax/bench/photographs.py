"""A data set of synthetic JPEGs of a given size, for measuring the input pipeline without data.

Noise whose amplitude falls with spatial frequency as f^-1.2, as photographs' does on average (Tolhurst,
Tadmor and Chao 1992, "Amplitude spectra of natural images"), coloured weakly, quality 75, chroma at half
resolution. It compresses to about 0.3 bytes a pixel. A larger file would take longer to decode and make the
pipeline look better.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import simplejpeg
from jaxtyping import UInt8

from input_pipeline.labels import binary_codes
from input_pipeline.schema import AttributeSchema
from input_pipeline.storage import preparing
from input_pipeline.storage.official import Official
from input_pipeline.storage.prepared import PreparedSource, Reading

EXAMPLES, DISTINCT, ATTRIBUTES = 2048, 32, 40
FALL, CONTRAST, COLOUR, QUALITY = 1.2, 40.0, 0.3, 75

SCHEMA = AttributeSchema.from_groups(
    "photographs", tuple(f"attribute_{i}" for i in range(ATTRIBUTES)), {"all": tuple(range(ATTRIBUTES))}
)


def prepare(folder: Path, height: int, width: int) -> Path:
    """Writes shards of `EXAMPLES` JPEGs, `DISTINCT` different ones, as `wsca prepare` would."""
    images = [encoded(height, width, seed) for seed in range(DISTINCT)]
    rng = np.random.default_rng(0)
    official = Official(
        data_set=SCHEMA.name,
        origin=folder,
        schema=SCHEMA,
        keys=[f"{i:06d}.jpg" for i in range(EXAMPLES)],
        codes=(rng.random((EXAMPLES, ATTRIBUTES)) < 0.25).astype(np.uint8),
        splits={"train": np.arange(EXAMPLES)},
        read_image=lambda row: images[row % DISTINCT],
        fingerprint=f"{height:x}{width:x}",
    )
    return preparing.prepare(lambda _: official, folder, folder)


def open_split(folder: Path) -> PreparedSource:
    return PreparedSource(folder, "train", SCHEMA, Reading(binary_codes))


def photograph(height: int, width: int, seed: int) -> UInt8[np.ndarray, "H W 3"]:
    """Noise with the spectrum of a photograph."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    amplitude = np.where(frequency > 0, frequency, np.inf) ** -FALL
    planes = [
        np.fft.irfft2(amplitude * np.fft.rfft2(rng.normal(size=(height, width))), (height, width))
        for _ in range(3)
    ]
    light, red, blue = (plane / max(plane.std(), 1e-12) for plane in planes)
    pixels = np.stack([light + COLOUR * red, light, light + COLOUR * blue], -1)
    return np.clip(120 + CONTRAST * pixels, 0, 255).astype(np.uint8)


def encoded(height: int, width: int, seed: int) -> bytes:
    """A photograph as JPEG."""
    pixels = photograph(height, width, seed)
    return simplejpeg.encode_jpeg(pixels, quality=QUALITY, colorsubsampling="420")
