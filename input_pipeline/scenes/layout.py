"""Where objects stand. Places are drawn anew until every object lies in the frame and can be seen."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence

from input_pipeline.scenes.camera import FOCAL_LENGTH, Camera
from input_pipeline.scenes.draws import Draws
from input_pipeline.scenes.records import Box, Place
from input_pipeline.scenes.solids import SOLIDS, Solid
from input_pipeline.scenes.vocabulary import EXTENT, Arrangement, Shape, Size

ROWS = (0.40, 0.95)  # screen rows of the objects' bases
MARGIN = 0.01  # of the image, kept free around every object
SCALES = (0.30, 1.0)  # world units; taller objects would hide the horizon and their own tops
CLEARANCE = 1.15  # between objects apart, as a factor on the sum of their radii
HIDDEN = 0.3  # largest part of an object's box that boxes in front of it may cover
TRIES_PER_OBJECT = 25
TRIES_BESIDE = 8  # of the second object of a pair, which depends on the first
LAYOUTS_OF_ANY_SIZE = 20  # after so many failures all objects are small, which always fits
# By the number of objects, what is tried first: large objects often fail to fit.
SIZE_WEIGHTS = {1: (0.2, 0.35, 0.45), 2: (0.04, 0.26, 0.7), 3: (0.2, 0.5, 0.3), 4: (0.6, 0.35, 0.05)}


def can_touch(first: Shape, second: Shape) -> bool:
    """Whether two shapes on the ground can truly be in contact side by side.

    A ball stands away from a slanted side where their footprints meet, and a ring has no side.
    """
    shapes = {first, second}
    ball_beside_slope = Shape.SPHERE in shapes and shapes & {Shape.CONE, Shape.PYRAMID}
    return Shape.RING not in shapes and not ball_beside_slope


def can_carry(shape: Shape) -> bool:
    """Whether another object can stand on this shape."""
    return SOLIDS[shape].platform > 0


def place_all(
    draws: Draws, camera: Camera, shapes: Sequence[Shape], arrangement: Arrangement
) -> tuple[Place, ...]:
    """A place for every shape. The arrangement is that of the first two."""
    layout = _Layout(draws, camera, tuple(shapes), arrangement)
    for attempt in itertools.count():
        places = layout.attempt(layout.sizes(only_small=attempt >= LAYOUTS_OF_ANY_SIZE))
        if places is not None:
            return places
    raise AssertionError("unreachable: the loop above has no end")


def screen_box(camera: Camera, base: tuple[float, float, float], radius: float, height: float) -> Box:
    """The screen rectangle around an upright cylinder, from the extreme points of its two rims."""
    x, y, z = base
    nearer = 1 / camera.depth(y, z), 1 / camera.depth(y + height, z)
    columns = [FOCAL_LENGTH * side * n for side in (x - radius, x + radius) for n in nearer]
    rows = [camera.project_row(y + dy, z + dz) for dy in (0, height) for dz in (-radius, radius)]
    return Box(0.5 + min(columns), min(rows), 0.5 + max(columns), max(rows))


@dataclasses.dataclass(frozen=True)
class _Layout:
    """The search for places. Objects are placed in order; each method's `placed` are those before."""

    draws: Draws
    camera: Camera
    shapes: tuple[Shape, ...]
    arrangement: Arrangement

    def sizes(self, only_small: bool) -> list[Size]:
        count = len(self.shapes)
        sizes = [self.draws.weighted(list(Size), SIZE_WEIGHTS[count]) for _ in range(count)]
        if only_small:
            sizes = [Size.SMALL] * count
        if self.arrangement is Arrangement.STACKED:  # nothing smaller carries, nothing larger fits above
            sizes[0] = self.draws.pick((Size.MEDIUM, Size.LARGE))
            sizes[1] = self.draws.pick((Size.SMALL, Size.MEDIUM))
        return sizes

    def attempt(self, sizes: Sequence[Size]) -> tuple[Place, ...] | None:
        """Places for objects of these sizes, or None where one was not found."""
        places: list[Place] = []
        for size in sizes:
            place = self._next(places, size)
            if place is None:
                return None
            places.append(place)
        return tuple(places)

    def _next(self, placed: Sequence[Place], size: Size) -> Place | None:
        extent = self.draws.uniform(*EXTENT[size])
        for _ in range(TRIES_BESIDE if len(placed) == 1 else TRIES_PER_OBJECT):
            place = self._candidate(placed, size, extent)
            if place is not None and self._fits(placed, place):
                return place
        return None

    def _candidate(self, placed: Sequence[Place], size: Size, extent: float) -> Place | None:
        shape = self.shapes[len(placed)]
        if not self._completes_pair(placed):
            return self._anywhere(shape, size, extent)
        if self.arrangement is Arrangement.STACKED:
            return self._on_top(placed[0], shape, size, extent)
        return self._beside(placed[0], shape, size, extent)

    def _completes_pair(self, placed: Sequence[Place]) -> bool:
        return len(placed) == 1 and self.arrangement is not Arrangement.APART

    def _anywhere(self, shape: Shape, size: Size, extent: float) -> Place | None:
        depths = [scale * FOCAL_LENGTH / extent for scale in SCALES]
        top, bottom = (self.camera.row(depth) for depth in reversed(depths))
        rows = max(ROWS[0], top), min(ROWS[1] - 0.2 * extent, bottom)
        margin = MARGIN + 0.4 * extent  # half the width of the slimmest
        x, z, _ = self.camera.ground(self.draws.uniform(margin, 1 - margin), self.draws.uniform(*rows))
        return self._placed(shape, size, extent, (x, 0.0, z), self._free_yaw(shape))

    def _on_top(self, support: Place, shape: Shape, size: Size, extent: float) -> Place | None:
        carrier = SOLIDS[self.shapes[0]]
        base = (support.x, carrier.height * support.scale, support.z)
        place = self._placed(shape, size, extent, base, self._free_yaw(shape))
        overhang = SOLIDS[shape].contact * extent / (carrier.platform * support.extent)
        return place if overhang < 1 or shape is Shape.SPHERE else None  # a ball stands on a point

    def _beside(self, first: Place, shape: Shape, size: Size, extent: float) -> Place | None:
        """A place in contact with the first, roughly to its side, where the contact can be seen."""
        bearing = self._bearing(first)
        scale = first.scale * extent / first.extent
        for _ in range(4):  # scale depends on depth, depth on distance, and distance on scale
            distance = _contact_distance(self.shapes[0], first.scale, shape, scale)
            x, z = first.x + distance * math.cos(bearing), first.z + distance * math.sin(bearing)
            scale = extent * self.camera.depth(0, z) / FOCAL_LENGTH
        if not _meet_below_rim(self.shapes[0], first.scale, shape, scale):
            return None
        return self._placed(shape, size, extent, (x, 0.0, z), bearing if SOLIDS[shape].symmetry else 0.0)

    def _bearing(self, first: Place) -> float:
        """The direction from the first to the second of a touching pair: mostly where more room is."""
        flat_sided = SOLIDS[self.shapes[0]].symmetry > 0
        bearing = self.draws.uniform(-0.5, 0.5)
        side = math.pi if self.draws.uniform(-0.3, 0.3) < first.x else 0.0
        return side + (first.yaw if flat_sided else bearing)

    def _free_yaw(self, shape: Shape) -> float:
        if shape is Shape.RING:
            return self.draws.uniform(-0.7, 0.7)  # beyond that its hole closes
        return self.draws.uniform(-0.5, 0.5) * SOLIDS[shape].symmetry

    def _placed(
        self, shape: Shape, size: Size, extent: float, base: tuple[float, float, float], yaw: float
    ) -> Place | None:
        scale = extent * self.camera.depth(base[1], base[2]) / FOCAL_LENGTH
        on_ground = base[1] == 0
        if on_ground and not SCALES[0] <= scale <= SCALES[1]:
            return None
        solid = SOLIDS[shape]
        box = screen_box(self.camera, base, solid.radius * scale, solid.height * scale)
        return Place(size, extent, scale, *base, yaw, box)

    def _fits(self, placed: Sequence[Place], place: Place) -> bool:
        """In the frame, clear of the others on the ground, hiding none too much and no contact at all."""
        box = place.box
        if min(box.left, box.top) < MARGIN or max(box.right, box.bottom) > 1 - MARGIN:
            return False
        together = [*placed, place]
        if self._completes_pair(placed):
            return self.arrangement is Arrangement.STACKED or _all_visible(together)
        return self._clear_of(placed, place) and _all_visible(together) and self._pair_visible(together)

    def _clear_of(self, placed: Sequence[Place], place: Place) -> bool:
        radius = SOLIDS[self.shapes[len(placed)]].radius * place.scale
        return all(
            math.hypot(place.x - other.x, place.z - other.z)
            > CLEARANCE * (radius + SOLIDS[shape].radius * other.scale)
            for shape, other in zip(self.shapes, placed, strict=False)
        )

    def _pair_visible(self, places: Sequence[Place]) -> bool:
        """Whether nothing stands before the contact of the first two: before both of their boxes."""
        if self.arrangement is Arrangement.APART:
            return True
        pair = places[:2]
        return not any(
            other.z < min(p.z for p in pair) and all(other.box.overlap(p.box) > 0 for p in pair)
            for other in places[2:]
        )


def _contact_distance(first: Shape, first_scale: float, second: Shape, second_scale: float) -> float:
    """Between the axes of two solids on the ground that touch."""
    reach = SOLIDS[first].contact * first_scale, SOLIDS[second].contact * second_scale
    if first is second is Shape.SPHERE:
        return 2 * math.sqrt(reach[0] * reach[1])
    return sum(reach)


def _meet_below_rim(first: Shape, first_scale: float, second: Shape, second_scale: float) -> bool:
    """Whether a ball touches its neighbour with its equator, not above the neighbour's upper edge."""
    if (first is Shape.SPHERE) == (second is Shape.SPHERE):
        return True
    solids: tuple[tuple[Solid, float], ...] = (SOLIDS[first], first_scale), (SOLIDS[second], second_scale)
    (ball, ball_scale), (other, other_scale) = solids if first is Shape.SPHERE else solids[::-1]
    return ball.contact * ball_scale <= other.height * other_scale


def _all_visible(places: Sequence[Place]) -> bool:
    """Whether no box is covered too much by boxes of what stands nearer."""
    return all(
        sum(place.box.overlap(other.box) for other in places if other.z < place.z) <= HIDDEN * place.box.area
        for place in places
    )
