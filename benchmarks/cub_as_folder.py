"""A folder of images with a CSV, as a user would bring one, made of CUB-200-2011.

    python benchmarks/cub_as_folder.py --data_dir ~/cub --output ~/birds

`configs/folder.py` is measured on it. Each image is labelled like its species: present from 0.6 of its images
on, absent up to 0.4, an empty cell between. The attributes are those that a quarter to three quarters of the
images have, of those whose label is known: to call all present, or all absent, is no answer. Splits are the
official ones; `wsca` sets validation images aside itself.
"""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt8

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from input_pipeline.classes import labels_from_rates  # noqa: E402
from input_pipeline.cub import files  # noqa: E402
from input_pipeline.errors import DataError  # noqa: E402
from input_pipeline.storage.official import Official  # noqa: E402

PRESENT, ABSENT = 0.6, 0.4
LEAST = 0.25  # share of the images that have an attribute, and that do not


def labels(official: Official) -> tuple[UInt8[np.ndarray, "N A"], Bool[np.ndarray, "N A"]]:
    """(labels, known) of each image: its species'."""
    assert official.classes is not None
    assert official.classes.rates is not None
    return labels_from_rates(official.classes.rates[official.classes.of], PRESENT, ABSENT)


def divided(present: UInt8[np.ndarray, "N A"], known: Bool[np.ndarray, "N A"]) -> list[int]:
    """The attributes that divide the images, in their order."""
    share = (present * known).sum(0) / np.maximum(known.sum(0), 1)
    return np.flatnonzero((share >= LEAST) & (share <= 1 - LEAST)).tolist()


def write(official: Official, output: Path) -> tuple[int, float]:
    """Writes images and table. Returns (how many attributes, the share of empty cells)."""
    present, known = labels(official)
    chosen = divided(present, known)
    cells = np.where(known, present.astype(str), "")[:, chosen]
    output.mkdir(parents=True)
    rows = []
    for split, members in official.splits.items():
        for row in members.tolist():
            path = output / official.keys[row]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(official.read_image(row))
            rows.append([official.keys[row], split, *cells[row]])
    with (output / "attributes.csv").open("w", newline="", encoding="utf-8") as file:
        names = (official.schema.attributes[i] for i in chosen)
        csv.writer(file).writerows([["path", "split", *names], *rows])
    return len(chosen), float((cells == "").mean())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data_dir", type=Path, required=True, help="CUB-200-2011's official files")
    parser.add_argument("--output", type=Path, required=True, help="a folder that does not exist yet")
    options = parser.parse_args()
    if options.output.exists():
        sys.exit(f"{options.output}: already there; choose a folder that is not")
    try:
        attributes, empty = write(files.open_official(options.data_dir), options.output)
    except DataError as error:
        sys.exit(str(error))
    print(f"{options.output}: {attributes} attributes, {100 * empty:.0f} % of the cells empty")


if __name__ == "__main__":
    main()
