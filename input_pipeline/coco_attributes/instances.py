"""COCO's own annotations of 2014: where objects are, in which images, of which category.

`instances_train2014.json` and `instances_val2014.json` of https://cocodataset.org. Lin et al., "Microsoft
COCO: Common Objects in Context", ECCV 2014.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64, Int32, Int64

from input_pipeline.errors import DataError

# What is read of every record. The outlines, nearly all of the file, are dropped as they are met.
_NEEDED = frozenset(
    [
        *("images", "annotations", "categories", "id", "name", "file_name", "height", "width"),
        *("image_id", "category_id", "bbox", "caption"),
    ]
)
_GET_AGAIN = "get the official file again"
_CONTEXT = 16 / 224


class Objects(NamedTuple):
    """N annotated objects.

    Attributes:
      files: the N names of their images' files.
      boxes: int32 [N, 4], top, left, height and width in pixels, within the image.
      categories: N names.
    """

    files: tuple[str, ...]
    boxes: Int32[np.ndarray, "N 4"]
    categories: tuple[str, ...]


def read_objects(path: Path, annotations: Int64[np.ndarray, "N"]) -> Objects:
    """Reads the objects with these annotation ids out of an instances file.

    Memory: the file's text twice, once as bytes, and some 800 bytes per annotation: 1.5 GB for train2014.

    Raises:
      DataError: no such file or damaged; annotations that it lacks; a box without area or outside its image.
    """
    record = load(path)
    try:
        wanted = set(annotations.tolist())
        found = {int(a["id"]): a for a in record["annotations"] if a["id"] in wanted}
        images = {int(image["id"]): image for image in record["images"]}
        categories = {int(category["id"]): str(category["name"]) for category in record["categories"]}
        _check_all_there(path, annotations, found)
        objects = [found[annotation] for annotation in annotations.tolist()]
        of_objects = [images[int(a["image_id"])] for a in objects]
        return Objects(
            tuple(str(image["file_name"]) for image in of_objects),
            _boxes(path, annotations, [a["bbox"] for a in objects], of_objects),
            tuple(categories[int(a["category_id"])] for a in objects),
        )
    except DataError:
        raise
    except KeyError as error:
        raise DataError(
            f"{path}: no {error} where COCO's instances have one; expected images, annotations and "
            f"categories that refer to each other by id; {_GET_AGAIN}"
        ) from error
    except (TypeError, ValueError, OverflowError, AttributeError) as error:
        raise DataError(
            f"{path}: expected COCO's instances: images, annotations and categories ({error}); {_GET_AGAIN}"
        ) from error


def with_context(boxes: Int32[np.ndarray, "N 4"], context: float = _CONTEXT) -> Int32[np.ndarray, "N 4"]:
    """Boxes with some of what surrounds the objects, as the published baseline cuts them.

    Args:
      boxes: int32 [N, 4], top, left, height and width.
      context: what is added on each side, as a fraction of the new side: 16 pixels of 224 by default.

    Returns:
      int32 [N, 4], rounded outward and cut off at 0. They may reach beyond the image's right and lower edge,
      where whoever reads the image cuts them off.

    Raises:
      DataError: a context outside [0, 0.5).
    """
    if not 0.0 <= context < 0.5:
        raise DataError(f"coco_attributes: context must lie in [0, 0.5), found {context}")
    start, size = boxes[:, :2].astype(np.float64), boxes[:, 2:].astype(np.float64)
    margin = size * context / (1.0 - 2.0 * context)
    return _outward(start - margin, start + size + margin)


def _outward(start: Float64[np.ndarray, "N 2"], end: Float64[np.ndarray, "N 2"]) -> Int32[np.ndarray, "N 4"]:
    """Whole pixels that hold the windows from `start` to `end`: at least one, and none below 0."""
    # A millionth of a pixel is what a sum's rounding may come to, not a pixel to include.
    last = np.maximum(np.ceil(end - 1e-6), 1)
    first = np.clip(np.floor(start + 1e-6), 0, last - 1)
    return np.concatenate([first, last - first], axis=1).astype(np.int32)


def _boxes(
    path: Path, annotations: Int64[np.ndarray, "N"], found: Sequence[Any], images: Sequence[dict[str, Any]]
) -> Int32[np.ndarray, "N 4"]:
    """Official boxes are x, y, width, height, in fractions of pixels."""
    x_y_width_height = np.array(found, np.float64).reshape(len(annotations), 4)
    sides = np.array([(image["height"], image["width"]) for image in images], np.float64).reshape(-1, 2)
    start, size = x_y_width_height[:, 1::-1], x_y_width_height[:, :1:-1]
    end = np.minimum(start + size, sides)
    usable = (size > 0) & (end > np.maximum(start, 0)) & np.isfinite(x_y_width_height).all(1, keepdims=True)
    if not usable.all():
        row = int(np.argmin(usable.all(axis=1)))
        raise DataError(
            f"{path}: annotation {annotations[row]} has the box {found[row]}, expected x, y, width and "
            f"height within its image of {images[row]['width']}x{images[row]['height']} pixels; {_GET_AGAIN}"
        )
    return _outward(start, end)


def _check_all_there(path: Path, annotations: Int64[np.ndarray, "N"], found: dict[int, Any]) -> None:
    missing = [annotation for annotation in annotations.tolist() if annotation not in found]
    if missing:
        raise DataError(
            f"{path}: annotation {missing[0]} is not in it ({len(missing)} of {len(annotations)} are missing)"
            "; use COCO's instances of 2014"
        )


def load(path: Path) -> dict[str, Any]:
    """What is needed of one of COCO's files. Raises DataError where it is not there or no JSON."""
    try:
        with path.open(encoding="utf-8") as file:
            record = json.load(file, object_hook=_reduced)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}: not JSON: {error.msg}; {_GET_AGAIN}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON in UTF-8 ({error}); {_GET_AGAIN}") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; {_GET_AGAIN}") from error
    if not isinstance(record, dict):
        raise DataError(f"{path}: expected COCO's annotations, found a {type(record).__name__}; {_GET_AGAIN}")
    return record


def _reduced(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key in _NEEDED}
