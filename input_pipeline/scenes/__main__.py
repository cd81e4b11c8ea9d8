"""Draws a contact sheet: python -m input_pipeline.scenes --contact_sheet scenes.png --size 128"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

import cv2

from input_pipeline.errors import DataError
from input_pipeline.scenes import contact_sheet
from input_pipeline.scenes.options import SPLITS, Options
from input_pipeline.scenes.records import Scene
from input_pipeline.scenes.source import open_split


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m input_pipeline.scenes",
        description="Draws a contact sheet of Scenes with captions and labels.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--contact_sheet", type=Path, required=True, metavar="FILE.png")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--columns", type=int, default=6)
    parser.add_argument("--split", choices=SPLITS, default="train")
    parser.add_argument("--first", type=int, default=0, help="index of the first image")
    for field in dataclasses.fields(Options):
        parser.add_argument(
            f"--{field.name}",
            type=_boolean if isinstance(field.default, bool) else type(field.default),
            default=field.default,
        )
    return parser


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"expected true or false, found {text!r}")
    return text.lower() == "true"


def main(arguments: list[str] | None = None) -> None:
    """Writes a contact sheet."""
    chosen = _parser().parse_args(arguments)
    try:
        options = Options(**{f.name: getattr(chosen, f.name) for f in dataclasses.fields(Options)})
        source = open_split(None, chosen.split, options)
        last = min(chosen.first + chosen.rows * chosen.columns, len(source))
        if chosen.columns < 1 or chosen.first < 0 or last <= chosen.first:
            raise DataError(f"no image to show: {chosen.split} has images 0 to {len(source) - 1}")
        _write(chosen.contact_sheet, [source.scene(i) for i in range(chosen.first, last)], chosen.columns)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def _write(path: Path, scenes: list[Scene], columns: int) -> None:
    sheet = contact_sheet.draw(scenes, columns)
    written, encoded = cv2.imencode(".png", cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))
    assert written, "OpenCV encodes every uint8 picture as PNG"
    try:
        path.write_bytes(encoded.tobytes())
    except OSError as error:
        raise DataError(f"{path}: the contact sheet cannot be written: {error.strerror}") from error


if __name__ == "__main__":
    main()
