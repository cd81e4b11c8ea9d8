"""The pinhole camera, one unit above the ground plane, looking forward and down.

World axes: x right, y up, z away from the camera; the ground is y = 0. Screen coordinates run from (0, 0)
at the top left to (1, 1). The camera never rolls, so a ray's y and z depend on the row alone and its x on
the column alone: most of what the renderer needs is a row or a column, not a picture.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from jaxtyping import Float32

FOCAL_LENGTH = 1.3  # in image heights


@dataclasses.dataclass(frozen=True)
class Camera:
    """Attributes: pitch, the downward tilt in radians; sine and cosine of it, which follow."""

    pitch: float
    sine: float = dataclasses.field(init=False, repr=False)
    cosine: float = dataclasses.field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sine", math.sin(self.pitch))
        object.__setattr__(self, "cosine", math.cos(self.pitch))

    @property
    def horizon(self) -> float:
        """Screen row of the horizon."""
        return 0.5 - FOCAL_LENGTH * self.sine / self.cosine

    def ground(self, column: float, row: float) -> tuple[float, float, float]:
        """The ground point (x, z) seen at a screen point below the horizon, and its depth."""
        upward = (0.5 - row) / FOCAL_LENGTH
        depth = 1 / (self.sine - upward * self.cosine)
        return (column - 0.5) / FOCAL_LENGTH * depth, (self.cosine + upward * self.sine) * depth, depth

    def row(self, depth: float) -> float:
        """The screen row at which the ground has a depth."""
        return 0.5 + FOCAL_LENGTH * (1 / depth - self.sine) / self.cosine

    def depth(self, y: float, z: float) -> float:
        """Distance of a world point along the viewing axis; it does not depend on x."""
        return (1 - y) * self.sine + z * self.cosine

    def project_row(self, y: float, z: float) -> float:
        """Screen row of a world point; it does not depend on x."""
        return 0.5 - FOCAL_LENGTH * ((y - 1) * self.cosine + z * self.sine) / self.depth(y, z)

    def rays(
        self, size: int
    ) -> tuple[Float32[np.ndarray, "W"], Float32[np.ndarray, "H"], Float32[np.ndarray, "H"]]:
        """Ray directions of a size x size image: x by column, y and z by row. Their depth component is 1."""
        centres = (np.arange(size, dtype=np.float32) + np.float32(0.5)) / np.float32(size) - np.float32(0.5)
        right = centres / np.float32(FOCAL_LENGTH)
        sine, cosine = np.float32(self.sine), np.float32(self.cosine)
        return right, -right * cosine - sine, cosine - right * sine
