"""The six shapes as solids: where a ray meets them, and the normal and surface coordinates there.

Each solid stands on y = 0, centred on the y axis, about one unit tall. All but the ring are convex, so a
ray's stay inside is an interval: the latest entry to the earliest exit of the parts that bound the solid.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import numpy as np
from jaxtyping import Float32

from input_pipeline.scenes.vocabulary import Shape

Rays = Float32[np.ndarray, "3 #N"]  # one column per ray; a single column stands for all
Interval = tuple[Float32[np.ndarray, "N"], Float32[np.ndarray, "N"]]
Points = Float32[np.ndarray, "3 M"]
Surface = tuple[Float32[np.ndarray, "3 M"], Float32[np.ndarray, "2 M"]]

MISS = np.float32(np.inf)
CUBE_HALF, CUBE_HEIGHT = 0.41, 0.82
SPHERE_RADIUS = 0.49
CYLINDER_RADIUS, CYLINDER_HEIGHT = 0.38, 0.92
CONE_RADIUS, CONE_HEIGHT = 0.47, 1.06
PYRAMID_HALF, PYRAMID_HEIGHT = 0.46, 0.92
_SPHERE_CENTRE = np.array([[0], [SPHERE_RADIUS], [0]], np.float32)
RING_RADIUS, RING_TUBE = 0.34, 0.16
RING_HEIGHT = 2 * (RING_RADIUS + RING_TUBE)
RING_STEPS = 14


def _slab(origin: np.ndarray, direction: np.ndarray, low: float, high: float) -> Interval:
    inverse = 1 / direction
    first, second = (low - origin) * inverse, (high - origin) * inverse
    return np.minimum(first, second), np.maximum(first, second)


def _quadric(square: np.ndarray, half_linear: np.ndarray, constant: np.ndarray) -> Interval:
    """Where square t^2 + 2 half_linear t + constant < 0, for square > 0."""
    discriminant = half_linear * half_linear - square * constant
    root = np.sqrt(np.maximum(discriminant, 0))
    entry = np.where(discriminant > 0, (-half_linear - root) / square, MISS)
    return entry, (root - half_linear) / square


def _half_space(distance: np.ndarray, slope: np.ndarray) -> Interval:
    """Where distance + slope t < 0."""
    crossing = -distance / slope
    return np.where(slope < 0, crossing, -MISS), np.where(slope < 0, MISS, crossing)


def _first_hit(*intervals: Interval) -> np.ndarray:
    entry = functools.reduce(np.maximum, (interval[0] for interval in intervals))
    leave = functools.reduce(np.minimum, (interval[1] for interval in intervals))
    return np.where((entry < leave) & (leave > 0), entry, MISS)


def _hit_cube(origin: Rays, direction: Rays) -> np.ndarray:
    return _first_hit(
        _slab(origin[0], direction[0], -CUBE_HALF, CUBE_HALF),
        _slab(origin[1], direction[1], 0, CUBE_HEIGHT),
        _slab(origin[2], direction[2], -CUBE_HALF, CUBE_HALF),
    )


def _hit_sphere(origin: Rays, direction: Rays) -> np.ndarray:
    y = origin[1] - np.float32(SPHERE_RADIUS)
    return _first_hit(
        _quadric(
            direction[0] ** 2 + direction[1] ** 2 + direction[2] ** 2,
            origin[0] * direction[0] + y * direction[1] + origin[2] * direction[2],
            origin[0] ** 2 + y**2 + origin[2] ** 2 - np.float32(SPHERE_RADIUS**2),
        )
    )


def _hit_cylinder(origin: Rays, direction: Rays) -> np.ndarray:
    side = _quadric(
        direction[0] ** 2 + direction[2] ** 2,
        origin[0] * direction[0] + origin[2] * direction[2],
        origin[0] ** 2 + origin[2] ** 2 - np.float32(CYLINDER_RADIUS**2),
    )
    return _first_hit(side, _slab(origin[1], direction[1], 0, CYLINDER_HEIGHT))


def _hit_cone(origin: Rays, direction: Rays) -> np.ndarray:
    """Holds for rays less steep than the cone's side: the camera's and the light's are."""
    slope = np.float32((CONE_RADIUS / CONE_HEIGHT) ** 2)
    below_tip = np.float32(CONE_HEIGHT) - origin[1]
    side = _quadric(
        direction[0] ** 2 + direction[2] ** 2 - slope * direction[1] ** 2,
        origin[0] * direction[0] + origin[2] * direction[2] + slope * below_tip * direction[1],
        origin[0] ** 2 + origin[2] ** 2 - slope * below_tip**2,
    )
    return _first_hit(side, _slab(origin[1], direction[1], 0, CONE_HEIGHT))


def _hit_pyramid(origin: Rays, direction: Rays) -> np.ndarray:
    slope = np.float32(PYRAMID_HALF / PYRAMID_HEIGHT)
    width = slope * origin[1] - np.float32(PYRAMID_HALF)
    rise = slope * direction[1]
    sides = [_half_space(width + s * origin[a], rise + s * direction[a]) for a in (0, 2) for s in (-1, 1)]
    return _first_hit(*sides, _slab(origin[1], direction[1], 0, PYRAMID_HEIGHT))


def _hit_ring(origin: Rays, direction: Rays) -> np.ndarray:
    """Sphere tracing of the torus, for rays that meet the disc around it."""
    centred = np.stack([origin[0], origin[1] - np.float32(RING_HEIGHT / 2), origin[2]])
    disc = _first_hit(
        _quadric(
            direction[0] ** 2 + direction[1] ** 2,
            centred[0] * direction[0] + centred[1] * direction[1],
            centred[0] ** 2 + centred[1] ** 2 - np.float32((RING_RADIUS + RING_TUBE) ** 2),
        ),
        _slab(centred[2], direction[2], -RING_TUBE, RING_TUBE),
    )
    inside = np.flatnonzero(disc < MISS)
    start, step = (np.broadcast_to(a, (3, disc.size))[:, inside] for a in (centred, direction))
    hit = disc.copy()
    hit[inside] = _trace_ring(start, step, np.maximum(disc[inside], 0))
    return hit


def _trace_ring(origin: Points, direction: Points, t: np.ndarray) -> np.ndarray:
    per_unit = 1 / np.sqrt((direction * direction).sum(0))
    for _ in range(RING_STEPS):
        distance = _ring_distance(origin + direction * t)
        t = t + distance * per_unit
    return np.where(np.abs(distance) < 0.02, t, MISS)


def _ring_distance(point: Points) -> np.ndarray:
    outward = np.sqrt(point[0] ** 2 + point[1] ** 2) - np.float32(RING_RADIUS)
    return np.sqrt(outward**2 + point[2] ** 2) - np.float32(RING_TUBE)


def _cube_surface(point: Points) -> Surface:
    x, y, z = point
    height = y - np.float32(CUBE_HALF)
    ax, ay, az = np.abs(x), np.abs(height), np.abs(z)
    on_top, on_side = (ay >= ax) & (ay >= az), ax > az
    on_side &= ~on_top
    on_front = ~(on_top | on_side)
    normal = np.stack([np.sign(x) * on_side, np.sign(height) * on_top, np.sign(z) * on_front])
    return normal.astype(np.float32), np.stack([np.where(on_side, z, x), np.where(on_top, z, height)])


def _sphere_surface(point: Points) -> Surface:
    """Surface coordinates by Lambert's equal-area projection around the side that faces the camera."""
    normal = (point - _SPHERE_CENTRE) / np.float32(SPHERE_RADIUS)
    towards, up = normal[1] * np.float32(0.4) - normal[2] * np.float32(0.917), normal[1] * np.float32(0.917)
    up += normal[2] * np.float32(0.4)
    stretch = np.float32(SPHERE_RADIUS) * np.sqrt(2 / np.maximum(1 + towards, np.float32(0.05)))
    return normal, np.stack([normal[0] * stretch, up * stretch])


def _cylinder_surface(point: Points) -> Surface:
    x, y, z = point
    on_top = y > np.float32(CYLINDER_HEIGHT - 1e-3)
    side, radius = ~on_top, np.float32(CYLINDER_RADIUS)
    normal = np.stack([x / radius * side, on_top.astype(np.float32), z / radius * side])
    around = np.arctan2(x, -z) * radius
    return normal, np.stack([np.where(on_top, x, around), np.where(on_top, z, y)])


def _cone_surface(point: Points) -> Surface:
    x, y, z = point
    radius = np.maximum(np.sqrt(x * x + z * z), np.float32(1e-4))
    length = np.hypot(CONE_RADIUS, CONE_HEIGHT)
    outward, upward = np.float32(CONE_HEIGHT / length), np.float32(CONE_RADIUS / length)
    normal = np.stack([x / radius * outward, np.full_like(y, upward), z / radius * outward])
    return normal, np.stack([np.arctan2(x, -z) * np.float32(CONE_RADIUS * 0.6), y])


def _pyramid_surface(point: Points) -> Surface:
    x, y, z = point
    on_side = np.abs(x) > np.abs(z)
    length = np.hypot(PYRAMID_HALF, PYRAMID_HEIGHT)
    outward, upward = np.float32(PYRAMID_HEIGHT / length), np.float32(PYRAMID_HALF / length)
    normal = np.stack(
        [np.sign(x) * outward * on_side, np.full_like(y, upward), np.sign(z) * outward * ~on_side]
    )
    return normal, np.stack([np.where(on_side, z, x), y])


def _ring_surface(point: Points) -> Surface:
    """The tube unrolled: two units around the ring and one around the tube, so that patterns close."""
    x, y, z = point[0], point[1] - np.float32(RING_HEIGHT / 2), point[2]
    radius = np.sqrt(x * x + y * y)
    outward = radius - np.float32(RING_RADIUS)
    flat = outward / (radius * np.float32(RING_TUBE))
    around, across = np.arctan2(x, y), np.arctan2(-z, outward)
    normal = np.stack([x * flat, y * flat, z / np.float32(RING_TUBE)])
    return normal, np.stack([around * np.float32(1 / np.pi), across * np.float32(0.5 / np.pi)])


@dataclasses.dataclass(frozen=True)
class Solid:
    """A shape's geometry, in units of an object's scale.

    Attributes:
      height: from the ground to its top.
      radius: of the upright cylinder that encloses it.
      contact: distance from its axis to the side it turns to a neighbour.
      platform: half-width of a flat top that can carry another object; 0 where there is none.
      symmetry: rotation about the vertical that maps it onto itself, in radians; 0 for any.
      hit: (origins, directions) -> the ray parameter of the first hit, infinite where there is none.
      surface: points on it -> (unit normals, surface coordinates (u, v) with about unit arc length).
    """

    height: float
    radius: float
    contact: float
    platform: float
    symmetry: float
    hit: Callable[[Rays, Rays], np.ndarray]
    surface: Callable[[Points], Surface]


_QUARTER = np.pi / 2
SOLIDS: dict[Shape, Solid] = {
    Shape.CUBE: Solid(
        CUBE_HEIGHT, CUBE_HALF * 2**0.5, CUBE_HALF, CUBE_HALF, _QUARTER, _hit_cube, _cube_surface
    ),
    Shape.SPHERE: Solid(2 * SPHERE_RADIUS, SPHERE_RADIUS, SPHERE_RADIUS, 0, 0, _hit_sphere, _sphere_surface),
    Shape.CYLINDER: Solid(
        CYLINDER_HEIGHT,
        CYLINDER_RADIUS,
        CYLINDER_RADIUS,
        CYLINDER_RADIUS,
        0,
        _hit_cylinder,
        _cylinder_surface,
    ),
    Shape.CONE: Solid(CONE_HEIGHT, CONE_RADIUS, CONE_RADIUS, 0, 0, _hit_cone, _cone_surface),
    Shape.PYRAMID: Solid(
        PYRAMID_HEIGHT, PYRAMID_HALF * 2**0.5, PYRAMID_HALF, 0, _QUARTER, _hit_pyramid, _pyramid_surface
    ),
    Shape.RING: Solid(
        RING_HEIGHT, RING_RADIUS + RING_TUBE, RING_TUBE, 0, 2 * np.pi, _hit_ring, _ring_surface
    ),
}
