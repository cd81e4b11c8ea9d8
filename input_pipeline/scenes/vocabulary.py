"""The words of the rendered world, and the attribute schema made of them.

The value of every enum member is its attribute's name, so a factor and its label cannot drift apart.
"""

from __future__ import annotations

import enum

from input_pipeline.schema import AttributeSchema


class Colour(enum.StrEnum):
    RED = "red"
    ORANGE = "orange"
    YELLOW = "yellow"
    GREEN = "green"
    BLUE = "blue"
    PURPLE = "purple"
    WHITE = "white"
    BLACK = "black"


class Material(enum.StrEnum):
    METAL = "metal"
    GLASS = "glass"
    WOOD = "wood"
    RUBBER = "rubber"


class Shape(enum.StrEnum):
    CUBE = "cube"
    SPHERE = "sphere"
    CYLINDER = "cylinder"
    CONE = "cone"
    PYRAMID = "pyramid"
    RING = "ring"


class Texture(enum.StrEnum):
    PLAIN = "plain"
    STRIPED = "striped"
    DOTTED = "dotted"
    CHECKERED = "checkered"
    SPECKLED = "speckled"


class Size(enum.StrEnum):
    """Apparent size: the object's extent as a fraction of the image's height. See `EXTENT`."""

    SMALL = "small"
    MEDIUM = "medium"
    LARGE = "large"


class Background(enum.StrEnum):
    WOODEN_FLOOR = "wooden_floor"
    LAWN = "lawn"
    TILED_FLOOR = "tiled_floor"
    SAND = "sand"


class Lighting(enum.StrEnum):
    BRIGHT = "bright_light"
    SOFT = "soft_light"
    DIM = "dim_light"


class Arrangement(enum.StrEnum):
    """What the first two objects do: the only contact in a scene."""

    APART = "apart"
    TOUCHING = "touching"
    STACKED = "stacked"


# The classes leave gaps, so that no object lies between two of them.
EXTENT: dict[Size, tuple[float, float]] = {
    Size.SMALL: (0.26, 0.30),
    Size.MEDIUM: (0.38, 0.44),
    Size.LARGE: (0.52, 0.61),
}

# The partners of the two spurious correlations (options `material_background`, `colour_shape`).
MATERIAL_OF_BACKGROUND: dict[Background, Material] = {
    Background.WOODEN_FLOOR: Material.METAL,
    Background.LAWN: Material.WOOD,
    Background.TILED_FLOOR: Material.GLASS,
    Background.SAND: Material.RUBBER,
}
COLOURS_OF_SHAPE: dict[Shape, tuple[Colour, ...]] = {
    Shape.CUBE: (Colour.RED,),
    Shape.SPHERE: (Colour.BLUE,),
    Shape.CYLINDER: (Colour.GREEN,),
    Shape.CONE: (Colour.ORANGE, Colour.YELLOW),
    Shape.PYRAMID: (Colour.PURPLE,),
    Shape.RING: (Colour.WHITE, Colour.BLACK),
}

# {what is seen: the attributes it goes with where these correlations are on}. Both are names of attributes.
SPURIOUS_CUES: dict[str, tuple[str, ...]] = {
    **{str(background): (str(material),) for background, material in MATERIAL_OF_BACKGROUND.items()},
    **{str(shape): tuple(map(str, colours)) for shape, colours in COLOURS_OF_SHAPE.items()},
}

# Scene-level attributes. None of them changes when the image is mirrored: training flips images.
OTHER: dict[str, str] = {
    Lighting.BRIGHT: "in bright light with hard shadows",
    Lighting.DIM: "in dim light",
    Background.WOODEN_FLOOR: "on a wooden floor",
    Background.LAWN: "on a lawn",
    Background.TILED_FLOOR: "on a tiled floor",
    Background.SAND: "on sand",
    "single_object": "a single object",
    "several_objects": "three or more objects",
    Arrangement.TOUCHING: "two objects touching side by side",
    Arrangement.STACKED: "one object stacked on another",
}


def _groups() -> dict[str, dict[str, str]]:
    """{group: {attribute: phrase}}: the table that the schema is made of."""
    return {
        "colour": {c: f"a {c} object" if c is not Colour.ORANGE else "an orange object" for c in Colour},
        "material": {m: f"an object made of {m}" for m in Material},
        "shape": {s: f"a {s}" for s in Shape},
        "texture": {t: f"an object with a {t} surface" for t in Texture},
        "size": {s: f"a {s} object" for s in Size},
        "other": OTHER,
    }


def _schema() -> AttributeSchema:
    groups = _groups()
    attributes = tuple(str(name) for table in groups.values() for name in table)
    position = {name: i for i, name in enumerate(attributes)}
    return AttributeSchema.from_groups(
        "scenes",
        attributes,
        {group: tuple(position[str(name)] for name in table) for group, table in groups.items()},
        phrases=tuple(phrase for table in groups.values() for phrase in table.values()),
        hue_sensitive=True,
    )


SCHEMA = _schema()
