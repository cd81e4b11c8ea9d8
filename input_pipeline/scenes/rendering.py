"""Factors -> pixels and masks: an analytic ray caster, vectorised over each object's screen rectangle.

The picture is cast at twice its size and averaged down, which is its antialiasing. Shadows are cast at
its own size: they are soft anyway.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float32, Int8, Int32, UInt8

from input_pipeline.scenes import grounds
from input_pipeline.scenes.camera import Camera
from input_pipeline.scenes.layout import screen_box
from input_pipeline.scenes.materials import LIGHT_LEVELS, Back, LightLevel, Seen, shade
from input_pipeline.scenes.records import Box, Factors, SceneObject
from input_pipeline.scenes.solids import MISS, SOLIDS
from input_pipeline.scenes.vocabulary import Arrangement, Material

SUPERSAMPLING = 2
REFRACTION = 0.10  # how far glass shifts what is behind it, as a fraction of the image
GLASS_SHADOW = 0.45  # of an opaque object's


class Rendering(NamedTuple):
    """Attributes: image, uint8 [H, W, 3] RGB; masks, bool [N, H, W], the visible pixels of each object."""

    image: UInt8[np.ndarray, "H W 3"]
    masks: Bool[np.ndarray, "N H W"]


class _Hits(NamedTuple):
    """Where an object is seen: flat pixel numbers [M], ray parameters [M], rays in its own frame [3, M]."""

    pixel: Int32[np.ndarray, "M"]
    t: Float32[np.ndarray, "M"]
    direction: Float32[np.ndarray, "3 M"]


def render(factors: Factors, size: int) -> Rendering:
    """Draws a scene, and finds out what is visible of each object.

    Args:
      factors: the scene.
      size: height and width of the image in pixels.
    """
    image, owner = _draw(factors, size)
    return Rendering(image, _masks(owner, len(factors.objects), size))


def render_image(factors: Factors, size: int) -> UInt8[np.ndarray, "H W 3"]:
    """Draws a scene: the image of `render`, without the cost of the masks."""
    return _draw(factors, size)[0]


def _draw(factors: Factors, size: int) -> tuple[UInt8[np.ndarray, "H W 3"], Int8[np.ndarray, "P"]]:
    """The image, and the number of the object seen at each of the finer pixels; -1 for none."""
    fine = size * SUPERSAMPLING
    level = LIGHT_LEVELS[factors.light.kind]
    rays = factors.camera.rays(fine)
    picture, depth = grounds.draw_ground(factors, rays, fine)
    picture *= grounds.resize(_shadows(factors, level, size), fine)[..., None]
    nearest = np.repeat(depth, fine)
    owner = np.full(fine * fine, -1, np.int8)
    for index in _far_to_near(factors):
        _draw_object(factors, index, rays, picture, nearest, owner, level)
    return _expose(picture, level, size), owner


def _far_to_near(factors: Factors) -> list[int]:
    """Objects in the order that lets glass show what is behind it; what is stacked follows its support."""
    places = [item.place for item in factors.objects]
    return sorted(range(len(places)), key=lambda i: (-places[i].z, places[i].y))


def _expose(picture: np.ndarray, level: LightLevel, size: int) -> UInt8[np.ndarray, "H W 3"]:
    gain = np.array(level.tint, np.float32) * np.float32(255 * level.exposure)
    image = cv2.resize(picture, (size, size), interpolation=cv2.INTER_AREA) * gain
    return np.clip(image + np.float32(0.5), 0, 255).astype(np.uint8)


def _masks(owner: Int8[np.ndarray, "P"], count: int, size: int) -> Bool[np.ndarray, "N H W"]:
    """A pixel belongs to the object that covers more than half of it."""
    blocks = owner.reshape(size, SUPERSAMPLING, size, SUPERSAMPLING)
    return np.stack([(blocks == i).sum((1, 3)) * 2 > SUPERSAMPLING**2 for i in range(count)])


# Objects


def _draw_object(
    factors: Factors,
    index: int,
    rays: tuple[np.ndarray, np.ndarray, np.ndarray],
    picture: np.ndarray,
    nearest: np.ndarray,
    owner: np.ndarray,
    level: LightLevel,
) -> None:
    """Casts one object into the picture, the depth buffer `nearest` and the map of owners."""
    item = factors.objects[index]
    hits = _cast(item, rays, nearest, len(rays[0]))
    seen = _seen(factors, item, hits, picture)
    colours = shade(item, seen, level)
    if factors.arrangement is Arrangement.STACKED and index == 0:
        colours = colours * _below_stacked(factors, seen)
    picture.reshape(-1, 3)[hits.pixel] = colours.T
    nearest[hits.pixel] = hits.t
    owner[hits.pixel] = index


def _cast(
    item: SceneObject, rays: tuple[np.ndarray, np.ndarray, np.ndarray], nearest: np.ndarray, fine: int
) -> _Hits:
    rows, columns = _window(item.place.box, fine)
    origin, direction = _own_rays(item, rays, rows, columns)
    t = SOLIDS[item.look.shape].hit(origin, direction)
    width = columns.stop - columns.start
    inside = np.flatnonzero(t < MISS)
    pixel = (inside // width + rows.start) * fine + inside % width + columns.start
    visible = t[inside] < nearest[pixel]
    inside, pixel = inside[visible], pixel[visible]
    return _Hits(pixel, t[inside], direction[:, inside])


def _window(box: Box, size: int) -> tuple[slice, slice]:
    """The pixel rows and columns that a screen rectangle meets."""
    low, high = max(0, math.floor(box.top * size)), min(size, math.ceil(box.bottom * size))
    left, right = max(0, math.floor(box.left * size)), min(size, math.ceil(box.right * size))
    return slice(low, high), slice(left, right)


def _into_frame(item: SceneObject, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """World directions in the object's frame: turned by its yaw, in units of its scale."""
    per_unit = 1 / item.place.scale
    cosine, sine = (np.float32(f(item.place.yaw) * per_unit) for f in (math.cos, math.sin))
    turned = np.empty((3, *np.broadcast_shapes(x.shape, y.shape, z.shape)), np.float32)
    turned[0] = cosine * x + sine * z
    turned[1] = y * np.float32(per_unit)
    turned[2] = cosine * z - sine * x
    return turned.reshape(3, -1)


def _vector(x: float, y: float, z: float) -> Float32[np.ndarray, "3 1"]:
    return np.array([[x], [y], [z]], np.float32)


def _own_rays(
    item: SceneObject, rays: tuple[np.ndarray, np.ndarray, np.ndarray], rows: slice, columns: slice
) -> tuple[np.ndarray, np.ndarray]:
    """Camera rays through a window, in the object's frame: origin [3, 1] and directions [3, h w]."""
    right, up, forward = rays[0][columns], rays[1][rows, None], rays[2][rows, None]
    place = item.place
    origin = _into_frame(item, *_vector(-place.x, 1 - place.y, -place.z))
    return origin, _into_frame(item, right[None], up, forward)


def _seen(factors: Factors, item: SceneObject, hits: _Hits, picture: np.ndarray) -> Seen:
    place = item.place
    origin = _into_frame(item, *_vector(-place.x, 1 - place.y, -place.z))
    point = origin + hits.direction * hits.t
    normal, uv = SOLIDS[item.look.shape].surface(point)
    view = hits.direction / np.sqrt((hits.direction * hits.direction).sum(0))
    light = _into_frame(item, *_vector(*factors.light.direction)) * np.float32(place.scale)
    ground = grounds.mean_colour(factors.background)[:, None]
    if item.look.material is not Material.GLASS:
        return Seen(point, normal, view, uv, None, None, light, ground)
    behind = _behind(item, hits.pixel, normal, picture)
    return Seen(point, normal, view, uv, behind, _back(item, point, view), light, ground)


def _back(item: SceneObject, point: np.ndarray, view: np.ndarray) -> Back:
    """Where lines of sight leave the object: the first hit from beyond it, looking back."""
    solid = SOLIDS[item.look.shape]
    beyond = point + view * np.float32(3)  # no solid is three units thick
    t = np.minimum(solid.hit(beyond, -view), 3)  # a grazing ray may miss: it leaves where it entered
    return Back(*solid.surface(beyond - view * t))


def _behind(
    item: SceneObject, pixel: np.ndarray, normal: np.ndarray, picture: np.ndarray
) -> Float32[np.ndarray, "3 M"]:
    """The picture so far, looked up where the normal bends the line of sight to."""
    fine = len(picture)
    shift = REFRACTION * fine * item.place.extent * 2
    cosine, sine = math.cos(item.place.yaw), math.sin(item.place.yaw)
    sideways = normal[0] * np.float32(cosine * shift) - normal[2] * np.float32(sine * shift)
    row, column = np.divmod(pixel, fine)
    column = np.clip(column - sideways.astype(np.int32), 0, fine - 1)
    row = np.clip(row + (normal[1] * np.float32(shift)).astype(np.int32), 0, fine - 1)
    return picture.reshape(-1, 3).take(row * fine + column, axis=0).T


def _below_stacked(factors: Factors, seen: Seen) -> Float32[np.ndarray, "M"]:
    """How much light reaches the support of a stack: its top is darker around what stands there."""
    support, item = factors.objects[:2]
    radius = SOLIDS[item.look.shape].contact * item.place.scale / support.place.scale
    squared = (seen.point[0] ** 2 + seen.point[2] ** 2) / np.float32(radius**2)
    return 1 - np.float32(0.45) * (seen.normal[1] > 0.9) * np.clip(np.float32(2) - squared, 0, 1)


# Shadows


def _shadows(factors: Factors, level: LightLevel, size: int) -> Float32[np.ndarray, "H W"]:
    """How much light reaches the ground: 1 in the open, less where objects stand in the key light's way."""
    light = np.ones((size, size), np.float32)
    rays = _coarse_rays(factors.camera, size)
    for item in factors.objects:
        _cast_shadow(factors, item, rays, light, level)
    blur = 2 * round(level.blur * size / 2) + 1
    if blur > 1:
        cv2.GaussianBlur(light, (blur, blur), 0, dst=light)
    for item in factors.objects:
        if item.place.y == 0:
            _darken_contact(factors, item, rays, light)
    return light


@functools.lru_cache(maxsize=1)
def _coarse_rays(camera: Camera, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return camera.rays(size)


def _cast_shadow(
    factors: Factors,
    item: SceneObject,
    rays: tuple[np.ndarray, np.ndarray, np.ndarray],
    light: np.ndarray,
    level: LightLevel,
) -> None:
    rows, columns = _window(_shadow_box(factors, item), len(light))
    x, z = _ground_points(rays, rows, columns)
    place = item.place
    origin = _into_frame(item, x - np.float32(place.x), np.full_like(x, -place.y), z - np.float32(place.z))
    towards = _into_frame(item, *_vector(*factors.light.direction))
    blocked = SOLIDS[item.look.shape].hit(origin, towards) < MISS
    strength = level.shadow * (GLASS_SHADOW if item.look.material is Material.GLASS else 1)
    light[rows, columns] *= 1 - np.float32(strength) * blocked.reshape(x.shape)


def _ground_points(
    rays: tuple[np.ndarray, np.ndarray, np.ndarray], rows: slice, columns: slice
) -> tuple[Float32[np.ndarray, "h w"], Float32[np.ndarray, "h 1"]]:
    """World x and z of the ground seen in a window below the horizon."""
    depth = -1 / np.minimum(rays[1][rows, None], np.float32(-0.02))
    return rays[0][columns][None] * depth, rays[2][rows, None] * depth


def _shadow_box(factors: Factors, item: SceneObject) -> Box:
    """The screen rectangle around an object's shadow on the ground."""
    place, solid, light = item.place, SOLIDS[item.look.shape], factors.light.direction
    boxes = []
    for height in (place.y, place.y + solid.height * place.scale):
        x, z = (
            at - towards / light[1] * height for at, towards in ((place.x, light[0]), (place.z, light[2]))
        )
        boxes.append(screen_box(factors.camera, (x, 0.0, z), solid.radius * place.scale, 0.0))
    return Box(
        min(b.left for b in boxes),
        max(min(b.top for b in boxes), factors.camera.horizon),
        max(b.right for b in boxes),
        max(b.bottom for b in boxes),
    )


def _darken_contact(
    factors: Factors, item: SceneObject, rays: tuple[np.ndarray, np.ndarray, np.ndarray], light: np.ndarray
) -> None:
    """The soft dark seam where an object meets the ground, in any light."""
    place, radius = item.place, SOLIDS[item.look.shape].contact * item.place.scale
    box = screen_box(factors.camera, (place.x, 0.0, place.z), 1.5 * radius, 0.0)
    rows, columns = _window(box, len(light))
    x, z = _ground_points(rays, rows, columns)
    squared = ((x - np.float32(place.x)) ** 2 + (z - np.float32(place.z)) ** 2) / np.float32(radius**2)
    light[rows, columns] *= 1 - np.float32(0.5) * np.clip(np.float32(2.2) - squared, 0, 1)
