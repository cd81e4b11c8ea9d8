"""Where objects stand. Places are drawn anew until every object lies in the frame and can be seen."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from input_pipeline.scene_world.camera import FOCAL_LENGTH, Camera
from input_pipeline.scene_world.draws import Draws
from input_pipeline.scene_world.records import Box, Place
from input_pipeline.scene_world.solids import SOLIDS
from input_pipeline.scene_world.vocabulary import EXTENT, Arrangement, Shape, Size

ROWS = (0.40, 0.95)  # screen rows of the objects' bases
MARGIN = 0.01  # of the image, kept free around every object
SCALES = (0.30, 1.0)  # world units; taller objects would hide the horizon and their own tops
CLEARANCE = 1.15  # between objects apart, as a factor on the sum of their radii
HIDDEN = 0.3  # largest part of an object's box that boxes in front of it may cover
TRIES_PER_OBJECT = 25
TRIES_BESIDE = 8  # of the second object, which depends on the first
LAYOUTS_OF_ANY_SIZE = 12  # after so many failures all objects are small, which always fits
# By the number of objects: a lone object is seldom small, and four large ones do not fit.
SIZE_WEIGHTS = {1: (0.2, 0.35, 0.45), 2: (0.10, 0.28, 0.62), 3: (0.3, 0.4, 0.3), 4: (0.6, 0.35, 0.05)}

_ROUND_OR_UPRIGHT = (Shape.SPHERE, Shape.CUBE, Shape.CYLINDER)
_SLANTED = (Shape.CONE, Shape.PYRAMID)


def can_touch(first: Shape, second: Shape) -> bool:
    """Whether two shapes on the ground can truly be in contact side by side.

    A ball stands away from a slanted side where their footprints meet, and a ring has no side.
    """
    shapes = {first, second}
    return Shape.RING not in shapes and not (Shape.SPHERE in shapes and shapes & set(_SLANTED))


def can_carry(shape: Shape) -> bool:
    """Whether another object can stand on this shape."""
    return SOLIDS[shape].platform > 0


def place_all(
    draws: Draws, camera: Camera, shapes: Sequence[Shape], arrangement: Arrangement
) -> tuple[Place, ...]:
    """A place for every shape. The arrangement is that of the first two."""
    for attempt in itertools.count():
        sizes = _sizes(draws, len(shapes), arrangement, only_small=attempt >= LAYOUTS_OF_ANY_SIZE)
        places = _try_layout(draws, camera, shapes, sizes, arrangement)
        if places is not None:
            return places
    raise AssertionError("unreachable: the loop above has no end")


def _sizes(draws: Draws, count: int, arrangement: Arrangement, only_small: bool) -> list[Size]:
    sizes = [draws.weighted(list(Size), SIZE_WEIGHTS[count]) for _ in range(count)]
    if only_small:
        sizes = [Size.SMALL] * count
    if arrangement is Arrangement.STACKED:
        sizes[0] = draws.pick((Size.MEDIUM, Size.LARGE))
        sizes[1] = Size.SMALL if sizes[0] is Size.MEDIUM else draws.pick((Size.SMALL, Size.MEDIUM))
    return sizes


def _try_layout(
    draws: Draws, camera: Camera, shapes: Sequence[Shape], sizes: Sequence[Size], arrangement: Arrangement
) -> tuple[Place, ...] | None:
    places: list[Place] = []
    for shape, size in zip(shapes, sizes, strict=True):
        place = _try_object(draws, camera, shapes, places, size, shape, arrangement)
        if place is None:
            return None
        places.append(place)
    return tuple(places)


def _try_object(
    draws: Draws,
    camera: Camera,
    shapes: Sequence[Shape],
    placed: Sequence[Place],
    size: Size,
    shape: Shape,
    arrangement: Arrangement,
) -> Place | None:
    extent = draws.uniform(*EXTENT[size])
    for _ in range(TRIES_PER_OBJECT if len(placed) != 1 else TRIES_BESIDE):
        if len(placed) == 1 and arrangement is Arrangement.STACKED:
            place = _on_top(draws, camera, shapes[0], placed[0], shape, size, extent)
        elif len(placed) == 1 and arrangement is Arrangement.TOUCHING:
            place = _beside(draws, camera, shapes[0], placed[0], shape, size, extent)
        else:
            place = _anywhere(draws, camera, shape, size, extent)
        if place is not None and _fits(camera, shapes, placed, place, shape, arrangement):
            return place
    return None


def _anywhere(draws: Draws, camera: Camera, shape: Shape, size: Size, extent: float) -> Place | None:
    depths = [scale * FOCAL_LENGTH / extent for scale in SCALES]
    rows = max(ROWS[0], camera.row(depths[1])), min(ROWS[1] - 0.2 * extent, camera.row(depths[0]))
    margin = MARGIN + 0.4 * extent  # half the width of the slimmest
    x, z, depth = camera.ground(draws.uniform(margin, 1 - margin), draws.uniform(*rows))
    return _placed(camera, shape, size, extent, depth, (x, 0.0, z), _free_yaw(draws, shape))


def _on_top(
    draws: Draws,
    camera: Camera,
    support_shape: Shape,
    support: Place,
    shape: Shape,
    size: Size,
    extent: float,
) -> Place | None:
    top = SOLIDS[support_shape].height * support.scale
    depth = camera.depth(top, support.z)
    yaw = _free_yaw(draws, shape)
    place = _placed(camera, shape, size, extent, depth, (support.x, top, support.z), yaw)
    overhang = SOLIDS[shape].contact * extent / (SOLIDS[support_shape].platform * support.extent)
    return place if overhang < 1 else None


def _beside(
    draws: Draws, camera: Camera, first_shape: Shape, first: Place, shape: Shape, size: Size, extent: float
) -> Place | None:
    """A place in contact with the first, roughly to its side, where the contact can be seen."""
    bearing = draws.uniform(-0.5, 0.5)
    if SOLIDS[first_shape].symmetry:  # it turns a flat side to its neighbour
        bearing = first.yaw
    if draws.uniform(-0.3, 0.3) < first.x:  # to the side with more room, mostly
        bearing += math.pi
    scale = first.scale * extent / first.extent
    for _ in range(4):  # the scale depends on the depth, the depth on the distance, the distance on the scale
        distance = _contact_distance(first_shape, first.scale, shape, scale)
        x, z = first.x + distance * math.cos(bearing), first.z + distance * math.sin(bearing)
        depth = camera.depth(0, z)
        scale = extent * depth / FOCAL_LENGTH
    if Shape.SPHERE in (first_shape, shape) and not _ball_meets_side(first_shape, first.scale, shape, scale):
        return None
    return _placed(
        camera, shape, size, extent, depth, (x, 0.0, z), bearing if SOLIDS[shape].symmetry else 0.0
    )


def _contact_distance(first: Shape, first_scale: float, second: Shape, second_scale: float) -> float:
    reach = SOLIDS[first].contact * first_scale, SOLIDS[second].contact * second_scale
    if first is second is Shape.SPHERE:
        return 2 * math.sqrt(reach[0] * reach[1])
    return sum(reach)


def _ball_meets_side(first: Shape, first_scale: float, second: Shape, second_scale: float) -> bool:
    """Whether a ball touches its neighbour at the ball's equator, not over the neighbour's edge."""
    if first is second:
        return True
    ball, other, other_scale = first_scale, second, second_scale
    if second is Shape.SPHERE:
        ball, other, other_scale = second_scale, first, first_scale
    return SOLIDS[Shape.SPHERE].contact * ball <= SOLIDS[other].height * other_scale


def _free_yaw(draws: Draws, shape: Shape) -> float:
    if shape is Shape.RING:
        return draws.uniform(-0.7, 0.7)  # beyond that its hole closes
    return draws.uniform(-0.5, 0.5) * SOLIDS[shape].symmetry


def _placed(
    camera: Camera,
    shape: Shape,
    size: Size,
    extent: float,
    depth: float,
    base: tuple[float, float, float],
    yaw: float,
) -> Place | None:
    scale = extent * depth / FOCAL_LENGTH
    if not SCALES[0] <= scale <= SCALES[1] and base[1] == 0:
        return None
    radius, height = SOLIDS[shape].radius * scale, SOLIDS[shape].height * scale
    return Place(size, extent, scale, *base, yaw, screen_box(camera, base, radius, height))


def screen_box(camera: Camera, base: tuple[float, float, float], radius: float, height: float) -> Box:
    """The screen rectangle around an upright cylinder, from the extreme points of its two rims."""
    x, y, z = base
    nearer = 1 / camera.depth(y, z), 1 / camera.depth(y + height, z)
    columns = [FOCAL_LENGTH * side * n for side in (x - radius, x + radius) for n in nearer]
    rows = [camera.project_row(y + dy, z + dz) for dy in (0, height) for dz in (-radius, radius)]
    return Box(0.5 + min(columns), min(rows), 0.5 + max(columns), max(rows))


def _fits(
    camera: Camera,
    shapes: Sequence[Shape],
    placed: Sequence[Place],
    place: Place,
    shape: Shape,
    arrangement: Arrangement,
) -> bool:
    box = place.box
    inside = min(box.left, box.top) >= MARGIN and max(box.right, box.bottom) <= 1 - MARGIN
    paired = len(placed) == 1 and arrangement is not Arrangement.APART
    if not inside or not (paired or _clear_of(shapes, placed, place, shape)):
        return False
    together = [*placed, place]
    stacked = paired and arrangement is Arrangement.STACKED
    return stacked or all(_hidden_part(camera, together, i) <= HIDDEN for i in range(len(together)))


def _clear_of(shapes: Sequence[Shape], placed: Sequence[Place], place: Place, shape: Shape) -> bool:
    radius = SOLIDS[shape].radius * place.scale
    return all(
        math.hypot(place.x - other.x, place.z - other.z)
        > CLEARANCE * (radius + SOLIDS[other_shape].radius * other.scale)
        for other_shape, other in zip(shapes[: len(placed)], placed, strict=True)
    )


def _hidden_part(camera: Camera, places: Sequence[Place], index: int) -> float:
    """An upper bound on the part of an object's box that lies behind others.

    What stands on a stack hides nothing of its support but the top, and counts for what is behind both.
    """
    place = places[index]
    depth = camera.depth(0, place.z)
    nearer = [p for p in places if p.z < place.z and camera.depth(0, p.z) < depth]
    return sum(place.box.overlap(p.box) for p in nearer) / place.box.area
