"""Scenes side by side with their captions, to look at."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import UInt8

from input_pipeline.scenes.records import Scene
from input_pipeline.scenes.vocabulary import SCHEMA

TILE = 288  # pixels across; images are enlarged to it without smoothing
LINE = 13
CAPTION_LINES, LABEL_LINES = 5, 4
CHARACTERS = 46
_PAPER, _INK, _FAINT = 255, (30, 30, 30), (120, 100, 80)


def draw(scenes: Sequence[Scene], columns: int) -> UInt8[np.ndarray, "H W 3"]:
    """A sheet of scenes with captions and labels.

    Args:
      scenes: what to show, row by row.
      columns: how many go in a row.

    Returns:
      uint8 [H, W, 3], RGB.
    """
    tiles = [_tile(scene) for scene in scenes]
    tiles += [np.full_like(tiles[0], _PAPER)] * (-len(tiles) % columns)
    rows = [np.concatenate(tiles[i : i + columns], axis=1) for i in range(0, len(tiles), columns)]
    return np.concatenate(rows)


def _tile(scene: Scene) -> UInt8[np.ndarray, "h w 3"]:
    picture = cv2.resize(scene.image, (TILE, TILE), interpolation=cv2.INTER_NEAREST)
    text = np.full((LINE * (CAPTION_LINES + LABEL_LINES) + 12, TILE, 3), _PAPER, np.uint8)
    names = ", ".join(name for name, label in zip(SCHEMA.attributes, scene.labels, strict=True) if label)
    _write(text, scene.caption, 0, CAPTION_LINES, _INK)
    _write(text, names, CAPTION_LINES, LABEL_LINES, _FAINT)
    border = ((4, 4), (4, 4), (0, 0))
    return np.pad(np.concatenate([picture, text]), border, constant_values=_PAPER)


def _write(paper: np.ndarray, text: str, first_line: int, lines: int, ink: tuple[int, int, int]) -> None:
    wrapped = textwrap.wrap(text, CHARACTERS, max_lines=lines, placeholder=" ...")
    for number, line in enumerate(wrapped, first_line + 1):
        at = (2, number * LINE + 2)
        cv2.putText(paper, line, at, cv2.FONT_HERSHEY_SIMPLEX, 0.36, ink, 1, cv2.LINE_AA)
