"""Whether attention lies on what it should: on rendered scenes, masks and factors say where that is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32

from input_pipeline.scenes import SCHEMA, Source
from input_pipeline.scenes.records import Scene, SceneObject
from wsca_jax.models.tokens import pooling_matrix


class SceneTruth(NamedTuple):
    """Which part of each image shows which object, and what the object is like.

    Attributes:
      masks: float32 [N, O, h, w] in [0, 1], the share of each token that shows each object; 0 for objects
        that a scene does not have.
      carries: bool [N, O, A], which object has which attribute. Nobody has those of the whole scene.
    """

    masks: Float32[np.ndarray, "N O h w"]
    carries: Bool[np.ndarray, "N O A"]


class OnObject(NamedTuple):
    """How much more of the attention lies on an object than of the image's area.

    1 is what uniform attention has, 0 none at all; the highest possible is one over the object's share of
    the image. NaN where nothing was counted.

    Attributes:
      overall: over all present attributes, on the objects that carry them.
      groups: the same for each group's attributes; NaN for a group of which no object carries any.
      others: over all present attributes, on the objects that do not carry them.
      entries: how many (image, attribute) entries were counted.
    """

    overall: float
    groups: tuple[float, ...]
    others: float
    entries: int


def attention_on_objects(
    maps: Float[np.ndarray, "N A h w"],
    masks: Float[np.ndarray, "N O h w"],
    carries: Bool[np.ndarray, "N O A"],
    group_of: Sequence[int],
) -> OnObject:
    """Holds attribute maps against the objects that carry the attributes.

    Counted is every (image, attribute) of which some object is a carrier: the map's mass on the carriers,
    over the mass that a uniform map would have there. Both are summed before they are divided, so that a
    sliver of an object does not weigh as much as a large one.

    Args:
      maps: not negative, each summing to 1; one that is 0 everywhere counts as attention on nothing.
      masks: in [0, 1], the share of each token that shows each object; objects do not overlap.
      carries: which object has which attribute.
      group_of: for each attribute, its group's number.
    """
    on, area = _mass(maps, masks, carries)
    present = carries.any(1, keepdims=True)
    off, rest = _mass(maps, masks, present & ~carries)
    members = np.asarray(group_of)
    groups = (members == group for group in range(max(group_of) + 1))
    return OnObject(
        _ratio(on, area),
        tuple(_ratio(on[:, group], area[:, group]) for group in groups),
        _ratio(off, rest),
        int(present.sum()),
    )


def _mass(
    maps: Float[np.ndarray, "N A h w"], masks: Float[np.ndarray, "N O h w"], chosen: Bool[np.ndarray, "N O A"]
) -> tuple[Float[np.ndarray, "N A"], Float[np.ndarray, "N A"]]:
    """The mass of each map, and of a uniform one, on the chosen objects."""
    mask = np.einsum("noa,nohw->nahw", chosen.astype(np.float64), masks)
    return (maps * mask).sum((2, 3)), mask.mean((2, 3))


def _ratio(mass: np.ndarray, area: np.ndarray) -> float:
    return float(mass.sum() / area.sum()) if area.sum() else math.nan


def scene_truth(source: Source, examples: int, grid: tuple[int, int]) -> SceneTruth:
    """Masks and carriers of the first scenes of a split.

    An evaluation image is the whole scene, resized; the masks are averaged as tokens are pooled.

    Args:
      source: a split of Scenes.
      examples: how many.
      grid: rows and columns of the token grid.
    """
    scenes = [source.scene(index) for index in range(examples)]
    most = max(len(scene.masks) for scene in scenes)
    masks = np.zeros((examples, most, *grid), np.float32)
    carries = np.zeros((examples, most, SCHEMA.num_attributes), bool)
    for row, scene in enumerate(scenes):
        masks[row, : len(scene.masks)] = _at_tokens(scene, grid)
        for column, item in enumerate(scene.factors.objects):
            carries[row, column] = [name in attributes_of(item) for name in SCHEMA.attributes]
    return SceneTruth(masks, carries)


def attributes_of(item: SceneObject) -> frozenset[str]:
    """The names of the attributes that an object carries."""
    look = item.look
    return frozenset((look.colour, look.material, look.shape, look.texture, item.place.size))


def _at_tokens(scene: Scene, grid: tuple[int, int]) -> Float32[np.ndarray, "N h w"]:
    """The share of each token that shows each object."""
    height, width = scene.masks.shape[1:]
    rows, columns = pooling_matrix(height, grid[0]), pooling_matrix(width, grid[1])
    return np.einsum("hH,wW,nHW->nhw", rows, columns, scene.masks.astype(np.float32))
