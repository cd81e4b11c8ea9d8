"""One scene as typed records: what generated it, what holds in it, and what is said about it."""

from __future__ import annotations

import dataclasses
import enum

import numpy as np
from jaxtyping import Bool, UInt8

from input_pipeline.scenes.camera import Camera
from input_pipeline.scenes.vocabulary import (
    Arrangement,
    Background,
    Colour,
    Lighting,
    Material,
    Shape,
    Size,
    Texture,
)


@dataclasses.dataclass(frozen=True)
class Appearance:
    """What an object looks like, wherever it stands."""

    shape: Shape
    colour: Colour
    material: Material
    texture: Texture


@dataclasses.dataclass(frozen=True)
class Box:
    """A rectangle on the screen, in fractions of the image."""

    left: float
    top: float
    right: float
    bottom: float

    @property
    def area(self) -> float:
        return max(0.0, self.right - self.left) * max(0.0, self.bottom - self.top)

    def overlap(self, other: Box) -> float:
        """Area of the intersection."""
        return Box(
            max(self.left, other.left),
            max(self.top, other.top),
            min(self.right, other.right),
            min(self.bottom, other.bottom),
        ).area


@dataclasses.dataclass(frozen=True)
class Place:
    """Where an object stands.

    Attributes:
      size: its class of apparent size.
      extent: its apparent size, as a fraction of the image's height.
      scale: its size in world units (the camera stands one unit above the ground).
      x, y, z: centre of its base; y is 0 on the ground and the support's height on a stack.
      yaw: rotation about the vertical axis, in radians.
      box: the screen rectangle that encloses it.
    """

    size: Size
    extent: float
    scale: float
    x: float
    y: float
    z: float
    yaw: float
    box: Box


@dataclasses.dataclass(frozen=True)
class Pattern:
    """How a texture lies on a surface: its direction in radians, and where it begins."""

    angle: float
    phase: tuple[float, float]


@dataclasses.dataclass(frozen=True)
class SceneObject:
    """One object of a scene."""

    look: Appearance
    place: Place
    pattern: Pattern


@dataclasses.dataclass(frozen=True)
class Light:
    """The key light: its class, and the unit vector towards it."""

    kind: Lighting
    direction: tuple[float, float, float]


@dataclasses.dataclass(frozen=True)
class Factors:
    """Everything a scene is generated from; the image, the labels and the captions follow from it.

    Attributes:
      background: the ground and backdrop; the factor that `material_background` ties materials to.
      light: the key light.
      camera: the camera.
      arrangement: whether objects 0 and 1 touch, are stacked (1 on 0), or stand apart like all others.
      objects: one to four objects.
      ground_offset: where the ground's texture begins, in [0, 1) each way.
    """

    background: Background
    light: Light
    camera: Camera
    arrangement: Arrangement
    objects: tuple[SceneObject, ...]
    ground_offset: tuple[float, float]


class Predicate(enum.StrEnum):
    """Spatial relations. `LEFT_OF` is the one that a mirrored image turns around."""

    LEFT_OF = "left_of"
    IN_FRONT_OF = "in_front_of"
    TOUCHING = "touching"
    ON_TOP_OF = "on_top_of"


@dataclasses.dataclass(frozen=True)
class Relation:
    """objects[subject] is <predicate> objects[target]. `TOUCHING` holds both ways and is listed once."""

    subject: int
    predicate: Predicate
    target: int


class Swap(enum.StrEnum):
    """The word that a hard negative exchanges between two objects."""

    SIZE = "size"
    COLOUR = "colour"
    TEXTURE = "texture"
    MATERIAL = "material"


@dataclasses.dataclass(frozen=True)
class HardNegative:
    """A caption that is false because one word of two objects changed places."""

    caption: str
    swap: Swap
    objects: tuple[int, int]


@dataclasses.dataclass(frozen=True, eq=False)
class Scene:
    """A rendered scene and the whole truth about it.

    Attributes:
      image: uint8 [H, W, 3], RGB.
      masks: bool [N, H, W], the visible pixels of each object; no pixel belongs to two.
      labels: uint8 [A], exact, whatever the option `label_noise`.
      factors: what the scene was generated from.
      relations: every spatial relation that holds.
      caption: one true sentence.
      hard_negatives: false sentences made of the same words; empty where nothing can be swapped.
    """

    image: UInt8[np.ndarray, "H W 3"]
    masks: Bool[np.ndarray, "N H W"]
    labels: UInt8[np.ndarray, "A"]
    factors: Factors
    relations: tuple[Relation, ...]
    caption: str
    hard_negatives: tuple[HardNegative, ...]
