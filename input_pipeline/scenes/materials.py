"""What surfaces look like: textures painted on them, and four materials under one key light."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

from input_pipeline.scenes.draws import Draws
from input_pipeline.scenes.grounds import smooth_noise
from input_pipeline.scenes.records import Pattern, SceneObject
from input_pipeline.scenes.vocabulary import Colour, Lighting, Material, Shape, Texture

Column = Float32[np.ndarray, "3 1"]
Colours = Float32[np.ndarray, "3 M"]
Values = Float32[np.ndarray, "M"]

PAINT: dict[Colour, tuple[float, float, float]] = {
    Colour.RED: (0.80, 0.06, 0.07),
    Colour.ORANGE: (0.98, 0.46, 0.02),
    Colour.YELLOW: (0.98, 0.86, 0.06),
    Colour.GREEN: (0.05, 0.56, 0.16),
    Colour.BLUE: (0.08, 0.26, 0.86),
    Colour.PURPLE: (0.50, 0.12, 0.70),
    Colour.WHITE: (0.95, 0.95, 0.94),
    Colour.BLACK: (0.07, 0.07, 0.08),
}
_GREYS = {Colour.WHITE: 0.42, Colour.BLACK: 0.6}  # second tones of the two that have no tint
_PALE, _DEEP = 0.72, 0.58  # how far a pattern's second tone goes from the colour towards white, or black


@dataclasses.dataclass(frozen=True)
class LightLevel:
    """How a class of lighting exposes a picture.

    Attributes:
      exposure: factor on everything.
      key, ambient: strength of the key light and of the light from everywhere.
      shadow: how dark cast shadows are, 0..1.
      blur: softness of their edges, as a fraction of the image.
      tint: colour of the light.
    """

    exposure: float
    key: float
    ambient: float
    shadow: float
    blur: float
    tint: tuple[float, float, float]


LIGHT_LEVELS: dict[Lighting, LightLevel] = {
    Lighting.BRIGHT: LightLevel(1.12, 0.78, 0.40, 0.62, 0.008, (1.03, 1.0, 0.95)),
    Lighting.SOFT: LightLevel(0.84, 0.45, 0.66, 0.34, 0.05, (1.0, 1.0, 1.0)),
    Lighting.DIM: LightLevel(0.56, 0.55, 0.58, 0.45, 0.03, (0.97, 0.99, 1.05)),
}


class Back(NamedTuple):
    """The far side of a transparent object: normal [3, M] and uv [2, M]."""

    normal: Colours
    uv: Float32[np.ndarray, "2 M"]


@dataclasses.dataclass(frozen=True)
class Seen:
    """The visible points of one object, in its own frame and scale.

    Attributes:
      point: [3, M]; normal: unit [3, M]; view: unit vectors from the camera [3, M]; uv: [2, M].
      behind: [3, M], what a transparent object shows instead of itself; None for the others.
      back: the point, normal and uv where a line of sight leaves a transparent object again, or None.
      light: unit vector [3, 1] towards the key light.
      ground: mean colour [3, 1] of the ground, for reflections.
    """

    point: Colours
    normal: Colours
    view: Colours
    uv: Float32[np.ndarray, "2 M"]
    behind: Colours | None
    back: Back | None
    light: Column
    ground: Column


def shade(item: SceneObject, seen: Seen, level: LightLevel) -> Colours:
    """Colours of an object's visible points before exposure, float32 [3, M], about 0..1."""
    return _SHADERS[item.look.material](item, seen, level, painted(item, seen.uv))


def painted(item: SceneObject, uv: Float32[np.ndarray, "2 M"]) -> Float32[np.ndarray, "3 #M"]:
    """The object's colour with its texture, float32 [3, M], or [3, 1] where it is plain."""
    second = pattern(item.look.texture, item.pattern, uv)
    base, other = tones(item.look.colour)
    return base if second is None else base + (other - base) * second


def tones(colour: Colour) -> tuple[Column, Column]:
    """A colour and the second tone of its patterns: a tint or a shade, so that no other colour appears."""
    base = np.array(PAINT[colour], np.float32)[:, None]
    if colour in _GREYS:
        return base, np.full_like(base, _GREYS[colour])
    light = float(base.mean()) > 0.55
    return base, base * np.float32(1 - _DEEP) if light else base + (1 - base) * np.float32(_PALE)


# Textures: 0 where the colour shows, 1 where its second tone does, by surface coordinates.


def pattern(texture: Texture, how: Pattern, uv: Float32[np.ndarray, "2 M"]) -> Values | None:
    """Where the second tone covers the surface, float32 [M] in 0..1; None for a plain surface."""
    painter = _PATTERNS[texture]
    return None if painter is None else painter(uv, how)


def _edge(value: Values, sharpness: float) -> Values:
    return np.clip(value * np.float32(sharpness) + np.float32(0.5), 0, 1)


def _striped(uv: np.ndarray, how: Pattern) -> Values:
    across = uv[0] * np.float32(2 * math.cos(how.angle)) + uv[1] * np.float32(2 * math.sin(how.angle))
    wave = np.sin(np.float32(2 * math.pi) * (across + np.float32(how.phase[0])))
    return _edge(wave, 4)


def _dotted(uv: np.ndarray, how: Pattern) -> Values:
    x, y = (uv[i] * np.float32(3) + np.float32(how.phase[i]) for i in range(2))
    x, y = x - np.floor(x) - np.float32(0.5), y - np.floor(y) - np.float32(0.5)
    return _edge(np.float32(0.29) - np.sqrt(x * x + y * y), 8)


def _checkered(uv: np.ndarray, how: Pattern) -> Values:
    x, y = (uv[i] * np.float32(2) + np.float32(how.phase[i]) for i in range(2))
    return _edge(np.sin(np.float32(2 * math.pi) * x) * np.sin(np.float32(2 * math.pi) * y), 6)


def _speckled(uv: np.ndarray, how: Pattern) -> Values:
    """Flecks: the peaks of smooth noise."""
    column, row = ((uv[i] * 72 + 256 * (1 + how.phase[i])).astype(np.int32) & 255 for i in range(2))
    return _fleck_table().take(row * 256 + column)


@functools.lru_cache(maxsize=1)
def _fleck_table() -> Float32[np.ndarray, "65536"]:
    return _edge(smooth_noise(Draws(11), 64, 64) - np.float32(0.66), 8).ravel()


_PATTERNS: dict[Texture, Callable[[np.ndarray, Pattern], Values] | None] = {
    Texture.PLAIN: None,
    Texture.STRIPED: _striped,
    Texture.DOTTED: _dotted,
    Texture.CHECKERED: _checkered,
    Texture.SPECKLED: _speckled,
}


@functools.lru_cache(maxsize=1)
def _noise_table() -> Float32[np.ndarray, "4096"]:
    return Draws(7).array(64 * 64).astype(np.float32)


def _noise(x: Values, y: Values, how: Pattern) -> Values:
    """Uniform noise on a lattice of unit cells, float32 in 0..1."""
    column = (x + np.float32(64 * (1 + how.phase[0]))).astype(np.int32) & 63
    row = (y + np.float32(64 * (1 + how.phase[1]))).astype(np.int32) & 63
    return _noise_table().take(row * 64 + column)


# Materials


def _dot(first: np.ndarray, second: np.ndarray) -> Values:
    return first[0] * second[0] + first[1] * second[1] + first[2] * second[2]


def _irradiance(seen: Seen, level: LightLevel, wrap: float = 0.0) -> Values:
    """Key light on the surface, plus light from everywhere that fades towards the ground."""
    towards = _dot(seen.normal, seen.light)
    key = np.maximum((towards + np.float32(wrap)) * np.float32(1 / (1 + wrap)), 0)
    open_sky = np.float32(0.78) + np.float32(0.22) * seen.normal[1]
    near_ground = np.minimum(np.float32(0.6) + seen.point[1] * np.float32(2), 1)
    return np.float32(level.key) * key + np.float32(level.ambient) * open_sky * near_ground


_BULGE_CENTRE = np.array([[0], [0.45], [0]], np.float32)
_WARMTH = np.array([[0.10], [0.06], [0.025]], np.float32)


def _polished(seen: Seen, item: SceneObject, amount: float) -> Colours:
    """Normals that bulge a little on flat faces, so that reflections sweep over them."""
    if item.look.shape in (Shape.SPHERE, Shape.RING):
        return seen.normal
    bulge = seen.point - _BULGE_CENTRE
    normal = seen.normal + np.float32(amount) * bulge
    return normal / np.sqrt(_dot(normal, normal))


def _mirrored(view: Colours, normal: Colours) -> Colours:
    return view - (2 * _dot(view, normal)) * normal


def _highlight(reflected: Colours, light: Column, sharpness: float) -> Values:
    return np.exp((_dot(reflected, light) - 1) * np.float32(sharpness))


# A studio to mirror: by the height of the reflected ray, and two tall windows by its sideways direction.
_SKY = (
    (-1.0, -0.45, -0.12, 0.0, 0.04, 0.3, 0.62, 0.68, 1.0),
    (0.75, 0.5, 0.2, 0.08, 0.8, 0.5, 0.36, 1.05, 1.15),
)
_WINDOWS = (-0.85, -0.75, -0.45, -0.35, 0.1, 0.2, 0.32, 0.42), (0.5, 1.55, 1.55, 0.5, 0.5, 1.1, 1.1, 0.5)


def _rubber(item: SceneObject, seen: Seen, level: LightLevel, colour: Colours) -> Colours:
    """Matt: no highlight at all, and light that wraps around."""
    return colour * (_irradiance(seen, level, wrap=0.3) * np.float32(0.92)) + np.float32(0.015)


def _wood(item: SceneObject, seen: Seen, level: LightLevel, colour: Colours) -> Colours:
    """Stained timber: growth rings cut by the surface, fine fibres, a warm cast and a dull sheen."""
    x, y, z = seen.point
    how = item.pattern
    bent = x + np.float32(0.10) * np.sin(y * np.float32(4) + np.float32(6 * how.phase[0]))
    rings = np.sqrt((bent + np.float32(0.45)) ** 2 + (z - np.float32(0.35)) ** 2)
    rings = rings * np.float32(14) + y * np.float32(1.2) + np.float32(how.phase[1])
    rings = rings - np.floor(rings)
    fibres = _noise(bent * 26 + z * 19, y * 3, how)
    depth = np.float32(1.12) - np.float32(0.32) * rings * rings - np.float32(0.32) * fibres
    stain = colour * np.float32(0.84) + _WARMTH
    sheen = _highlight(_mirrored(seen.view, seen.normal), seen.light, 12) * np.float32(0.10 * level.key)
    return stain * (depth * _irradiance(seen, level)) + sheen


def _metal(item: SceneObject, seen: Seen, level: LightLevel, colour: Colours) -> Colours:
    """A tinted mirror of a studio: windows, bright ceiling, dark band at the horizon, the ground below."""
    normal = _polished(seen, item, 0.55)
    reflected = _mirrored(seen.view, normal)
    studio = np.interp(reflected[1], *_SKY) * np.interp(reflected[0], *_WINDOWS)
    below = np.clip(-reflected[1] * 2, 0, 1) * np.float32(0.5)
    tint = colour * np.float32(0.95) + np.float32(0.18)
    surroundings = studio.astype(np.float32) * (1 + below * (seen.ground - 1))
    glint = _highlight(reflected, seen.light, 40) * np.float32(0.9 * level.key + 0.25)
    lit = np.float32(0.85) + np.float32(0.5) * _irradiance(seen, level)
    return tint * (surroundings * lit) + glint


def _glass(item: SceneObject, seen: Seen, level: LightLevel, colour: Colours) -> Colours:
    """Coloured glass: the scene behind it, bent and tinted by both its sides, bright rims and glints."""
    assert seen.behind is not None
    assert seen.back is not None
    normal = _polished(seen, item, 0.3)
    rim = (1 - np.maximum(-_dot(normal, seen.view), 0)) ** 3
    back_lit = np.float32(0.55) + np.float32(0.45) * np.maximum(_dot(seen.back.normal, -seen.light), -0.5)
    back = painted(item, seen.back.uv) * np.float32(0.55) + np.float32(0.45)
    through = seen.behind * (colour * np.float32(0.72) + np.float32(0.28)) * back
    body = colour * back * (back_lit * np.float32(0.22 + 0.14 * level.key))
    reflected = _mirrored(seen.view, normal)
    glints = _highlight(reflected, seen.light, 90) * np.float32(1.2 * level.key + 0.3)
    glints += np.maximum(-_dot(seen.back.normal, seen.light) - np.float32(0.8), 0) * np.float32(1.2)
    return through * (1 - np.float32(0.4) * rim) + body + (glints + np.float32(0.45) * rim)


_SHADERS: dict[Material, Callable[[SceneObject, Seen, LightLevel, Colours], Colours]] = {
    Material.METAL: _metal,
    Material.GLASS: _glass,
    Material.WOOD: _wood,
    Material.RUBBER: _rubber,
}
