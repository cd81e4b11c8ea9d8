"""The four grounds with their backdrops: tileable textures made once, looked up row by row.

The camera never rolls, so all of a pixel row lies at one depth: the level of the texture's pyramid is
chosen by row, which keeps the far ground from flickering at the cost of one table look-up.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

from input_pipeline.scenes.camera import FOCAL_LENGTH
from input_pipeline.scenes.draws import Draws
from input_pipeline.scenes.records import Factors
from input_pipeline.scenes.vocabulary import Background

TEXELS = 256  # per side of a tile
TILE = 2.4  # world units per side of a tile
LEVELS = 7
_SEED = 20  # of the textures; they are part of the world, not of a scene

Picture = Float32[np.ndarray, "H W 3"]


@dataclasses.dataclass(frozen=True)
class Backdrop:
    """Colours (red, green, blue in 0..1) of what stands behind the ground, and of the ground from afar."""

    horizon: tuple[float, float, float]
    zenith: tuple[float, float, float]


BACKDROPS: dict[Background, Backdrop] = {
    Background.WOODEN_FLOOR: Backdrop((0.86, 0.80, 0.70), (0.78, 0.71, 0.60)),
    Background.LAWN: Backdrop((0.80, 0.90, 0.97), (0.45, 0.68, 0.93)),
    Background.TILED_FLOOR: Backdrop((0.72, 0.77, 0.80), (0.58, 0.65, 0.71)),
    Background.SAND: Backdrop((0.98, 0.90, 0.78), (0.72, 0.80, 0.86)),
}


def draw_ground(
    factors: Factors, rays: tuple[np.ndarray, np.ndarray, np.ndarray], out_size: int
) -> tuple[Picture, Float32[np.ndarray, "H"]]:
    """The scene without objects and shadows.

    Args:
      factors: the scene.
      rays: `Camera.rays(out_size)`.
      out_size: height and width.

    Returns:
      the picture, float32 [H, W, 3], about 0..1, and the depth of the ground by row, float32 [H], infinite
      above the horizon.
    """
    right, up, forward = rays
    depth = np.where(up < -1e-3, -1 / np.minimum(up, np.float32(-1e-3)), np.float32(np.inf))
    sky = int(np.count_nonzero(np.isinf(depth)))
    picture = np.empty((out_size, out_size, 3), np.float32)
    backdrop = BACKDROPS[factors.background]
    picture[:sky] = _sky(backdrop, sky)[:, None]
    picture[sky:] = _tiles(factors, right, forward[sky:], depth[sky:], out_size)
    haze = np.clip((depth[sky:] - 3) / 9, 0, 1)[:, None, None].astype(np.float32)
    picture[sky:] += haze * (_rgb(backdrop.horizon) * np.float32(0.9) - picture[sky:])
    return picture, depth


def _sky(backdrop: Backdrop, rows: int) -> Float32[np.ndarray, "R 3"]:
    ramp = np.linspace(1, 0, rows, dtype=np.float32)[:, None]
    return ramp * _rgb(backdrop.zenith) + (1 - ramp) * _rgb(backdrop.horizon)


def _rgb(colour: tuple[float, float, float]) -> Float32[np.ndarray, "3"]:
    return np.array(colour, np.float32)


def _tiles(factors: Factors, right: np.ndarray, forward: np.ndarray, depth: np.ndarray, size: int) -> Picture:
    """Texture look-up by world position, at a pyramid level chosen for each row."""
    texel = TILE / TEXELS
    footprint = depth * np.sqrt(depth) / np.float32(FOCAL_LENGTH * size * texel)
    level = np.clip(np.log2(np.maximum(footprint, 1)), 0, LEVELS - 1).astype(np.int32)
    side = TEXELS >> level
    per_unit = (side / np.float32(TILE)).astype(np.float32)
    start_x, start_z = ((offset * side).astype(np.float32) for offset in factors.ground_offset)
    x = right * (depth * per_unit)[:, None] + (start_x + 512 * side)[:, None].astype(np.float32)  # above 0
    z = forward * depth * per_unit + start_z
    columns = x.astype(np.int32) & (side - 1)[:, None]
    rows = (z.astype(np.int32) & (side - 1)) * side + _LEVEL_STARTS[level]
    return _pyramid(factors.background).take(columns + rows[:, None], axis=0)


_LEVEL_STARTS = np.cumsum([0, *((TEXELS >> level) ** 2 for level in range(LEVELS - 1))]).astype(np.int32)


@functools.lru_cache(maxsize=len(Background))
def _pyramid(background: Background) -> Float32[np.ndarray, "T 3"]:
    """All levels of a ground's texture, flattened one after another."""
    texture = ground_texture(background).astype(np.float32) / np.float32(255)
    levels = [texture]
    for _ in range(LEVELS - 1):
        levels.append(levels[-1].reshape(len(levels[-1]) // 2, 2, -1, 2, 3).mean((1, 3)))
    return np.concatenate([level.reshape(-1, 3) for level in levels])


def mean_colour(background: Background) -> Float32[np.ndarray, "3"]:
    """The ground's mean colour, as shiny things see it."""
    return _mean_colours()[background]


@functools.lru_cache(maxsize=1)
def _mean_colours() -> dict[Background, np.ndarray]:
    return {b: _pyramid(b)[: TEXELS * TEXELS].mean(0) for b in Background}


def ground_texture(background: Background) -> UInt8[np.ndarray, "256 256 3"]:
    """One tile of a ground, seamless."""
    painter = {
        Background.WOODEN_FLOOR: _paint_planks,
        Background.LAWN: _paint_lawn,
        Background.TILED_FLOOR: _paint_floor_tiles,
        Background.SAND: _paint_sand,
    }[background]
    return np.clip(np.rint(painter(Draws(_SEED, list(Background).index(background))) * 255), 0, 255).astype(
        np.uint8
    )


def smooth_noise(draws: Draws, rows: int, columns: int) -> Float32[np.ndarray, "256 256"]:
    """Seamless noise in 0..1 with so many cells each way, smoothly interpolated."""
    cells = draws.array(rows, columns)
    for axis, count in enumerate((rows, columns)):
        at = np.arange(TEXELS) * count / TEXELS
        lower = at.astype(int)
        blend = at - lower
        blend = np.expand_dims(blend * blend * (3 - 2 * blend), 1 - axis)
        after = np.take(cells, (lower + 1) % count, axis)
        cells = np.take(cells, lower, axis) * (1 - blend) + after * blend
    return cells.astype(np.float32)


def _paint_planks(draws: Draws) -> Picture:
    """Six boards with their grain along z, ends staggered."""
    rows, columns = np.mgrid[:TEXELS, :TEXELS]
    board = columns * 6 // TEXELS
    piece = ((rows + board * 97) * 2 // TEXELS) % 2
    tone = draws.array(6, 2)[board, piece]
    grain = 0.6 * smooth_noise(draws, 4, 64) + 0.4 * smooth_noise(draws, 16, 128)
    shade = 0.72 + 0.30 * tone + 0.30 * (grain - 0.5)
    gap = (columns * 6 % TEXELS < 14) | ((rows + board * 97) * 2 % TEXELS < 5)
    return np.where(gap, 0.45, shade)[..., None] * np.array([0.66, 0.44, 0.26])


def _paint_lawn(draws: Draws) -> Picture:
    """Blades: fine noise drawn out along z, over soft patches."""
    blades = smooth_noise(draws, 64, 128) * 0.5 + smooth_noise(draws, 128, 128) * 0.5
    patches = smooth_noise(draws, 6, 6)
    shade = (0.55 + 0.75 * (blades - 0.15) + 0.25 * (patches - 0.5))[..., None]
    yellowish = patches[..., None] * np.array([0.12, 0.02, -0.02])
    return shade * (np.array([0.30, 0.52, 0.17]) + yellowish)


def _paint_floor_tiles(draws: Draws) -> Picture:
    """Four by four pale tiles with dark joints."""
    rows, columns = np.mgrid[:TEXELS, :TEXELS]
    tone = draws.array(4, 4)[rows * 4 // TEXELS, columns * 4 // TEXELS]
    joint = (rows * 4 % TEXELS < 20) | (columns * 4 % TEXELS < 20)
    shade = 0.86 + 0.08 * tone + 0.05 * (smooth_noise(draws, 32, 32) - 0.5)
    return np.where(joint, 0.42, shade)[..., None] * np.array([0.80, 0.84, 0.86])


def _paint_sand(draws: Draws) -> Picture:
    """Ripples across the view, with grains."""
    rows = np.arange(TEXELS)[:, None] / TEXELS
    bend = smooth_noise(draws, 4, 4) * 5
    ripples = np.sin(2 * math.pi * rows * 9 + bend)
    grains = smooth_noise(draws, 128, 128)
    shade = 0.86 + 0.09 * ripples + 0.22 * (grains - 0.5)
    return shade[..., None] * np.array([0.92, 0.78, 0.56])


def resize(picture: np.ndarray, size: int) -> np.ndarray:
    """A smooth enlargement to size x size."""
    return cv2.resize(picture, (size, size), interpolation=cv2.INTER_LINEAR)
