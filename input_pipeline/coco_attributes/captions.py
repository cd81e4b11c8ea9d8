"""COCO's own captions: five sentences about each image, of which one is used.

`captions_train2014.json` and `captions_val2014.json` of https://cocodataset.org. Chen et al., "Microsoft COCO
Captions: Data Collection and Evaluation Server", arXiv:1504.00325.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Set
from pathlib import Path

from input_pipeline.coco_attributes.instances import load
from input_pipeline.errors import DataError
from input_pipeline.weak_labels import uniforms


def read_captions(path: Path, files: Set[str]) -> dict[str, str]:
    """{file: caption} of the images that are in these files and have one.

    Which of an image's captions it is, is drawn by the file's name: the same for every reader, and no
    annotator's style and no place in the list is preferred.

    Raises:
      DataError: no such file, or none with captions.
    """
    try:
        record = load(path)
        names = {int(image["id"]): str(image["file_name"]) for image in record["images"]}
        captions: defaultdict[str, list[tuple[int, str]]] = defaultdict(list)
        for entry in record["annotations"]:
            name, sentence = names[int(entry["image_id"])], _one_line(entry["caption"])
            if name in files and sentence:
                captions[name].append((int(entry["id"]), sentence))
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise DataError(
            f"{path}: expected COCO's captions: images, and annotations with an image_id and a caption "
            f"({error!r}); get the official file again, or take it away to do without"
        ) from error
    return {name: _drawn(name, sorted(found)) for name, found in captions.items()}


def _one_line(caption: str) -> str:
    """Without line breaks, and without the half characters that JSON can write and nothing else can."""
    return " ".join(caption.encode("utf-8", "ignore").decode().split())


def _drawn(name: str, captions: list[tuple[int, str]]) -> str:
    return captions[int(uniforms(0, "caption", name, 1)[0] * len(captions))][1]
