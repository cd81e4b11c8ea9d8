"""The rendered world: geometry against independent formulas, and pictures that show what the labels say."""

import dataclasses
import math

import cv2
import numpy as np
import pytest

from input_pipeline import scenes
from input_pipeline.scenes import labels, rendering
from input_pipeline.scenes.camera import Camera
from input_pipeline.scenes.grounds import ground_texture
from input_pipeline.scenes.layout import can_touch, screen_box
from input_pipeline.scenes.materials import PAINT
from input_pipeline.scenes.rendering import render, render_image
from input_pipeline.scenes.solids import SOLIDS
from input_pipeline.scenes.vocabulary import (
    Arrangement,
    Background,
    Colour,
    Lighting,
    Material,
    Shape,
    Texture,
)

WORLD = scenes.open_split(None, "train", scenes.Options(train_images=100_000, cache_megabytes=0))
CAMERA = Camera(0.3)


def some(count, predicate=lambda factors: True):
    """The first scenes of the world for which something holds."""
    found = []
    for i in range(len(WORLD)):
        factors = WORLD.factors(i)
        if predicate(factors):
            found.append(factors)
        if len(found) == count:
            return found
    raise AssertionError("the world has too few such scenes")


def plain(factors, **look):
    """A scene's first object alone, repainted."""
    item = factors.objects[0]
    item = dataclasses.replace(item, look=dataclasses.replace(item.look, **look))
    return dataclasses.replace(factors, objects=(item,), arrangement=Arrangement.APART)


# Solids: signed distances or inequalities, written independently of the ray intersections


def outside(shape, p):
    """Positive outside a solid, negative inside, 0 on its surface; not a distance everywhere."""
    x, y, z = p
    flat = np.hypot(x, z)
    return {
        Shape.CUBE: lambda: np.max([np.abs(x) - 0.41, np.abs(y - 0.41) - 0.41, np.abs(z) - 0.41], axis=0),
        Shape.SPHERE: lambda: np.sqrt(x**2 + (y - 0.49) ** 2 + z**2) - 0.49,
        Shape.CYLINDER: lambda: np.max([flat - 0.38, -y, y - 0.92], axis=0),
        Shape.CONE: lambda: np.max([flat - 0.47 * (1 - y / 1.06), -y], axis=0),
        Shape.PYRAMID: lambda: np.max([np.maximum(np.abs(x), np.abs(z)) - 0.46 * (1 - y / 0.92), -y], axis=0),
        Shape.RING: lambda: np.hypot(np.hypot(x, y - 0.5) - 0.34, z) - 0.16,
    }[shape]()


def rays_from_the_camera_side(count=2000):
    generator = np.random.default_rng(0)
    origin = np.array([[0.3], [1.2], [-3.0]])
    target = generator.uniform(-0.6, 0.6, (3, count)) + np.array([[0], [0.5], [0]])
    return origin.astype(np.float32), (target - origin).astype(np.float32)


@pytest.mark.parametrize("shape", list(Shape))
def test_rays_stop_at_the_surface_and_nowhere_before(shape):
    origin, direction = rays_from_the_camera_side()
    t = SOLIDS[shape].hit(origin, direction)
    hit = np.isfinite(t)
    assert 0.1 < hit.mean() < 0.9
    surface = outside(shape, origin + direction[:, hit] * t[hit])
    assert np.abs(surface).max() < (0.03 if shape is Shape.RING else 1e-3)
    along = np.linspace(0, 2, 400)[:, None]
    inside = np.array([outside(shape, origin + direction * step) for step in along]) < -0.01
    first = np.where(inside.any(0), along[inside.argmax(0), 0], np.inf)
    assert (t <= first + 1e-3).all()


@pytest.mark.parametrize("shape", list(Shape))
def test_normals_are_the_gradient(shape):
    origin, direction = rays_from_the_camera_side()
    t = SOLIDS[shape].hit(origin, direction)
    point = (origin + direction * np.where(np.isfinite(t), t, 0))[:, np.isfinite(t)]
    normal, uv = SOLIDS[shape].surface(point)
    np.testing.assert_allclose(
        np.linalg.norm(normal, axis=0), 1, atol=0.02 if shape is not Shape.RING else 0.2
    )
    gradient = np.stack(
        [
            outside(shape, point + 1e-3 * axis) - outside(shape, point - 1e-3 * axis)
            for axis in np.eye(3)[..., None]
        ]
    )
    gradient /= np.maximum(np.linalg.norm(gradient, axis=0), 1e-9)
    agreement = (gradient * normal).sum(0)
    assert np.mean(agreement > 0.99) > 0.97  # all but points on an edge
    assert np.isfinite(uv).all()


@pytest.mark.parametrize("shape", list(Shape))
def test_solids_keep_to_their_measures(shape):
    generator = np.random.default_rng(1)
    points = generator.uniform([[-1], [-0.2], [-1]], [[1], [1.5], [1]], (3, 20_000))
    x, y, z = points[:, outside(shape, points) < 0]
    solid = SOLIDS[shape]
    assert np.hypot(x, z).max() <= solid.radius
    assert y.max() <= solid.height
    axis = np.linspace(0, 1.5, 1501)
    assert axis[outside(shape, (0 * axis, axis, 0 * axis)) < 1e-6].max() == pytest.approx(
        solid.height, abs=2e-3
    )
    assert y.min() >= 0


# Camera


def test_projection_inverts_the_ground_look_up():
    for column, row in [(0.1, 0.5), (0.5, 0.9), (0.8, 0.7)]:
        x, z, depth = CAMERA.ground(column, row)
        assert CAMERA.depth(0, z) == pytest.approx(depth)
        assert CAMERA.row(depth) == pytest.approx(row)
        box = screen_box(CAMERA, (x, 0.0, z), 0.0, 0.0)
        assert (box.left, box.top) == pytest.approx((column, row))


def test_rays_reach_the_ground_points_of_their_pixels():
    right, up, forward = CAMERA.rays(10)
    t = -1 / up[7]
    x, z, depth = CAMERA.ground(0.25, 0.75)
    assert (right[2] * t, forward[7] * t, t) == pytest.approx((x, z, depth), rel=1e-5)


# Pictures


def test_masks_are_disjoint_and_lie_in_their_boxes():
    for factors in some(12, lambda f: len(f.objects) > 1):
        masks = render(factors, 96).masks
        assert masks.sum(0).max() == 1
        for mask, item in zip(masks, factors.objects, strict=True):
            rows, columns = np.nonzero(mask)
            box = item.place.box
            assert box.left * 96 - 1 <= columns.min() <= columns.max() <= box.right * 96 + 1
            assert box.top * 96 - 1 <= rows.min() <= rows.max() <= box.bottom * 96 + 1


def test_every_object_is_seen():
    """No label speaks of something hidden: half of each object and 100 pixels of 64 x 64 at least."""
    for factors in some(40, lambda f: len(f.objects) > 1):
        for item, mask in zip(factors.objects, render(factors, 64).masks, strict=True):
            alone = render(
                dataclasses.replace(factors, objects=(item,), arrangement=Arrangement.APART), 64
            ).masks[0]
            assert mask.sum() >= 0.5 * alone.sum()
            assert mask.sum() >= 100


def test_what_is_nearer_is_seen_whatever_is_drawn_first(monkeypatch):
    for factors in some(12, lambda f: len(f.objects) > 2):
        masks = render(factors, 48).masks
        with monkeypatch.context() as patched:
            patched.setattr(rendering, "_far_to_near", lambda f: range(len(f.objects)))
            np.testing.assert_array_equal(render(factors, 48).masks, masks)


@pytest.mark.parametrize("fewest", [2, 3])
def test_touching_objects_are_seen_to_touch(fewest):
    """Also where a third object could stand before the contact."""
    touching = some(70, lambda f: f.arrangement is Arrangement.TOUCHING and len(f.objects) >= fewest)
    for factors in touching:
        first, second = render(factors, 96).masks[:2]
        assert cv2.distanceTransform((~first).astype(np.uint8), cv2.DIST_L2, 5)[second].min() <= 2


def test_touching_balls_touch_in_space():
    def two_balls(factors):
        looks = [item.look.shape for item in factors.objects[:2]]
        return factors.arrangement is Arrangement.TOUCHING and looks == [Shape.SPHERE] * 2

    for factors in some(4, two_balls):
        a, b = (item.place for item in factors.objects[:2])
        radii = 0.49 * a.scale, 0.49 * b.scale
        apart = math.dist((a.x, radii[0], a.z), (b.x, radii[1], b.z))
        assert apart == pytest.approx(sum(radii), rel=1e-3)


def test_a_side_that_touches_is_turned_to_its_neighbour():
    def two_cubes(factors):
        looks = [item.look.shape for item in factors.objects[:2]]
        return factors.arrangement is Arrangement.TOUCHING and looks == [Shape.CUBE] * 2

    for factors in some(4, two_cubes):
        a, b = (item.place for item in factors.objects[:2])
        towards = np.array([math.cos(a.yaw), math.sin(a.yaw)]) * 0.41 * a.scale
        step = np.array([b.x - a.x, b.z - a.z])
        towards *= np.sign(step @ towards)
        corner_ray = np.array([[(a.x + towards[0] * 0.99)], [0.3], [(a.z + towards[1] * 0.99)]])
        turned = rendering._into_frame(
            factors.objects[0], *(corner_ray - [[a.x], [0], [a.z]]).astype(np.float32)
        )
        assert np.abs(turned[[0, 2], 0]).max() == pytest.approx(0.41 * 0.99, abs=1e-3)


def test_stacked_objects_stand_on_each_other():
    for factors in some(20, lambda f: f.arrangement is Arrangement.STACKED):
        below, above = render(factors, 64).masks[:2]
        assert np.nonzero(above)[0].mean() < np.nonzero(below)[0].mean()
        assert cv2.distanceTransform((~below).astype(np.uint8), cv2.DIST_L2, 5)[above].min() <= 1.5


@pytest.mark.parametrize(("shape", "other"), [(Shape.SPHERE, Shape.CONE), (Shape.RING, Shape.CUBE)])
def test_shapes_that_cannot_touch_are_never_said_to(shape, other):
    assert not can_touch(shape, other)
    assert not can_touch(other, shape)
    for factors in some(60, lambda f: f.arrangement is Arrangement.TOUCHING):
        assert {item.look.shape for item in factors.objects[:2]} != {shape, other}


def mirrored(factors):
    """The same scene seen in a mirror."""

    def flip(item):
        place, box = item.place, item.place.box
        box = dataclasses.replace(box, left=1 - box.right, right=1 - box.left)
        place = dataclasses.replace(place, x=-place.x, yaw=-place.yaw, box=box)
        return dataclasses.replace(item, place=place)

    x, y, z = factors.light.direction
    light = dataclasses.replace(factors.light, direction=(-x, y, z))
    return dataclasses.replace(factors, light=light, objects=tuple(map(flip, factors.objects)))


def test_labels_survive_the_mirror():
    for factors in some(12):
        flipped = mirrored(factors)
        np.testing.assert_array_equal(labels.exact(flipped), labels.exact(factors))
        straight, mirror = render(factors, 64).masks, render(flipped, 64).masks
        assert np.mean(straight != mirror[:, :, ::-1]) < 0.002


@pytest.mark.parametrize("material", [Material.RUBBER, Material.WOOD])
def test_objects_have_the_colour_they_are_said_to_have(material):
    chromatic = [c for c in Colour if c not in (Colour.WHITE, Colour.BLACK)]
    palette = np.array([PAINT[c] for c in chromatic])
    palette /= np.linalg.norm(palette, axis=1, keepdims=True)
    for factors, colour in zip(some(18), chromatic * 3, strict=True):
        scene = plain(factors, colour=colour, material=material, texture=Texture.PLAIN)
        image, masks = render(scene, 64)
        seen = image[masks[0]].mean(0)
        assert chromatic[np.argmax(palette @ seen)] is colour


def test_materials_differ_on_one_and_the_same_object():
    (factors,) = some(1, lambda f: f.objects[0].place.extent > 0.5)
    images = {m: render_image(plain(factors, material=m), 64).astype(float) for m in Material}
    mask = render(plain(factors), 64).masks[0]
    for a in Material:
        for b in Material:
            if a is not b:
                assert np.abs(images[a] - images[b])[mask].mean() > 12


def test_textures_differ_on_one_and_the_same_object():
    (factors,) = some(1, lambda f: f.objects[0].place.extent > 0.5)
    images = {t: render_image(plain(factors, texture=t), 64).astype(float) for t in Texture}
    mask = render(plain(factors), 64).masks[0]
    for a in Texture:
        for b in Texture:
            if a is not b:
                assert np.abs(images[a] - images[b])[mask].mean() > 8


def test_glass_shows_what_is_behind_it():
    for factors in some(6, lambda f: f.objects[0].place.extent > 0.3):
        shifted = (
            dataclasses.replace(factors, background=Background.LAWN),
            dataclasses.replace(factors, background=Background.TILED_FLOOR),
        )
        for material, least, most in ((Material.GLASS, 12, 255), (Material.RUBBER, 0, 4)):
            lawn, tiles = (plain(f, material=material, colour=Colour.WHITE) for f in shifted)
            core = cv2.erode(render(lawn, 64).masks[0].astype(np.uint8), np.ones((3, 3))).astype(bool)
            change = np.abs(render_image(lawn, 64).astype(float) - render_image(tiles, 64))[core].mean()
            assert least <= change <= most


def test_light_levels_are_apart_in_every_picture():
    for factors in some(8):
        means = {
            kind: render_image(
                dataclasses.replace(factors, light=dataclasses.replace(factors.light, kind=kind)), 32
            )
            .astype(float)
            .mean()
            for kind in Lighting
        }
        assert means[Lighting.DIM] * 1.3 < means[Lighting.SOFT] < means[Lighting.BRIGHT] / 1.05


def test_shadows_fall_away_from_the_light():
    (factors,) = some(1, lambda f: f.objects[0].place.extent > 0.5 and len(f.objects) == 1)
    sides = []
    for side in (-1, 1):
        direction = (side * 0.55, 0.75, -math.sqrt(1 - 0.55**2 - 0.75**2))
        light = dataclasses.replace(factors.light, kind=Lighting.BRIGHT, direction=direction)
        sides.append(render_image(dataclasses.replace(factors, light=light), 64).astype(float).mean(2))
    middle = round(64 * (factors.objects[0].place.box.left + factors.objects[0].place.box.right) / 2)
    outside_object = ~render(factors, 64).masks[0]
    darker_on_the_right = np.where(
        outside_object, sides[1] - sides[0], 0
    )  # light from the left minus from the right
    assert darker_on_the_right[:, middle:].sum() > 0 > darker_on_the_right[:, :middle].sum()


@pytest.mark.parametrize("background", list(Background))
def test_grounds_are_seamless(background):
    texture = ground_texture(background).astype(float)
    seam = np.abs(texture[0] - texture[-1]).mean()
    inside = np.abs(np.diff(texture, axis=0)).mean((1, 2)).max()
    assert seam <= inside + 1
