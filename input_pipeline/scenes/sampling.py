"""(options, split, index) -> Factors, whatever the number of images and their size."""

from __future__ import annotations

import enum
import math

from input_pipeline.scenes import layout
from input_pipeline.scenes.camera import Camera
from input_pipeline.scenes.draws import Draws
from input_pipeline.scenes.options import SPLITS, Options, Split
from input_pipeline.scenes.records import Appearance, Factors, Light, Pattern, SceneObject
from input_pipeline.scenes.vocabulary import (
    COLOURS_OF_SHAPE,
    MATERIAL_OF_BACKGROUND,
    Arrangement,
    Background,
    Colour,
    Lighting,
    Material,
    Shape,
    Texture,
)

COUNT_WEIGHTS = {1: 0.34, 2: 0.42, 3: 0.19, 4: 0.05}
ARRANGEMENT_WEIGHTS = {Arrangement.APART: 0.36, Arrangement.TOUCHING: 0.33, Arrangement.STACKED: 0.31}
PITCH = (0.27, 0.32)  # radians


class Stream(enum.IntEnum):
    """What a stream of random numbers is for. Streams are independent, so that one knob moves one thing."""

    SCENE = 0
    LOOKS = 1
    LAYOUT = 2
    LABEL_NOISE = 3


def stream(options: Options, split: Split, index: int, purpose: Stream) -> Draws:
    """The random numbers of one purpose for one image."""
    return Draws(options.seed, SPLITS.index(split), index, purpose)


def background_of(options: Options, split: Split, index: int) -> Background:
    """The background of an image: the first thing that is drawn of it, and quick to know."""
    return stream(options, split, index, Stream.SCENE).pick(list(Background))


def sample(options: Options, split: Split, index: int) -> Factors:
    """The generating factors of image `index` of a split.

    Args:
      options: the knobs; sizes, counts, noise and cache play no part.
      split: "train", "validation" or "test".
      index: the image, from 0; not bounded by the split's size.
    """
    scene = stream(options, split, index, Stream.SCENE)
    background = scene.pick(list(Background))
    light = _light(scene)
    camera = Camera(scene.uniform(*PITCH))
    count = _count(scene, options)
    arrangement = _arrangement(scene, count)
    offset = (scene.uniform(), scene.uniform())
    looks = _looks(
        stream(options, split, index, Stream.LOOKS), options, split, background, arrangement, count
    )
    return Factors(
        background,
        light,
        camera,
        arrangement,
        _objects(options, split, index, camera, arrangement, looks),
        offset,
    )


def _light(draws: Draws) -> Light:
    """A key light from the front, left or right, high enough that no shadow leaves its object."""
    kind = draws.pick(list(Lighting))
    side = 1 if draws.chance(0.5) else -1
    azimuth, elevation = draws.uniform(0.5, 1.2), draws.uniform(0.75, 0.95)
    flat = math.cos(elevation)
    return Light(kind, (side * flat * math.sin(azimuth), math.sin(elevation), -flat * math.cos(azimuth)))


def _count(draws: Draws, options: Options) -> int:
    counts = range(options.min_objects, options.max_objects + 1)
    return draws.weighted(counts, [COUNT_WEIGHTS[count] for count in counts])


def _arrangement(draws: Draws, count: int) -> Arrangement:
    arrangement = draws.weighted(list(ARRANGEMENT_WEIGHTS), list(ARRANGEMENT_WEIGHTS.values()))
    return arrangement if count > 1 else Arrangement.APART


def _shapes(draws: Draws, arrangement: Arrangement, count: int) -> list[Shape]:
    """Shapes, all alike, but that the first two allow their arrangement."""
    while True:
        shapes = [draws.pick(list(Shape)) for _ in range(count)]
        if arrangement is Arrangement.TOUCHING and not layout.can_touch(*shapes[:2]):
            continue
        if arrangement is Arrangement.STACKED and not layout.can_carry(shapes[0]):
            continue
        return shapes


def _looks(
    draws: Draws, options: Options, split: Split, background: Background, arrangement: Arrangement, count: int
) -> list[Appearance]:
    """Colours and materials follow the spurious partner with the option's probability.

    The free choice and the coin are drawn either way, so a stronger correlation changes some objects and
    leaves all others as they were.
    """
    correlated = options.correlated(split)
    looks = []
    for shape in _shapes(draws, arrangement, count):
        colour, material, texture = (
            draws.pick(list(Colour)),
            draws.pick(list(Material)),
            draws.pick(list(Texture)),
        )
        partner, colour_coin, material_coin = (
            draws.pick(COLOURS_OF_SHAPE[shape]),
            draws.uniform(),
            draws.uniform(),
        )
        if correlated and colour_coin < options.colour_shape:
            colour = partner
        if correlated and material_coin < options.material_background:
            material = MATERIAL_OF_BACKGROUND[background]
        looks.append(Appearance(shape, colour, material, texture))
    return looks


def _objects(
    options: Options,
    split: Split,
    index: int,
    camera: Camera,
    arrangement: Arrangement,
    looks: list[Appearance],
) -> tuple[SceneObject, ...]:
    draws = stream(options, split, index, Stream.LAYOUT)
    places = layout.place_all(draws, camera, [look.shape for look in looks], arrangement)
    return tuple(
        SceneObject(look, place, Pattern(_angle(draws, look), (draws.uniform(), draws.uniform())))
        for look, place in zip(looks, places, strict=True)
    )


def _angle(draws: Draws, look: Appearance) -> float:
    """A pattern's direction: level or slanting bands. Around a ring only bands across the tube close."""
    angle = draws.pick((math.pi / 2, math.pi / 4))
    return 0.0 if look.shape is Shape.RING else angle
