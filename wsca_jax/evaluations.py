"""What `wsca evaluate` leaves in a workdir: the predictions of a split, and the figures they give.

workdir/evaluation_<split>.npz    predictions: one row for each example
workdir/evaluation_<split>.json   figures, written last: where they stand, the predictions stand too
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from wsca_jax.engine.storage import storage_errors, write_atomically
from wsca_jax.errors import WscaError
from wsca_jax.metrics import Predictions


def figures_path(workdir: Path, split: str) -> Path:
    return workdir / f"evaluation_{split}.json"


def predictions_path(workdir: Path, split: str) -> Path:
    return workdir / f"evaluation_{split}.npz"


def write_evaluation(workdir: Path, split: str, figures: Mapping[str, Any], predictions: Predictions) -> Path:
    """Writes both files, each whole or not at all, and returns the path of the figures.

    Figures that stood there before are removed first: they are not of these predictions.

    Raises:
      OutOfDiskError, WscaError: the workdir cannot be written.
    """
    path = figures_path(workdir, split)
    with storage_errors(workdir):
        path.unlink(missing_ok=True)
        _write_predictions(predictions_path(workdir, split), predictions)
        write_atomically(path, json.dumps(figures, indent=2) + "\n")
    return path


def _write_predictions(path: Path, predictions: Predictions) -> None:
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        np.savez_compressed(file, **{name: getattr(predictions, name) for name in Predictions._fields})
    partial.replace(path)


def read_predictions(workdir: Path, split: str = "validation") -> Predictions:
    """The rows that `wsca evaluate` found, bit for bit.

    Raises:
      WscaError: the run was not evaluated on this split, or the file is damaged.
    """
    path = predictions_path(workdir, split)
    if not path.is_file():
        raise WscaError(f"{path} does not exist; first run wsca evaluate --workdir {workdir} --split {split}")
    try:
        with np.load(path) as archive:
            return Predictions(*(archive[name] for name in Predictions._fields))
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise WscaError(
            f"{path}: not the predictions of an evaluation ({error}); run wsca evaluate again"
        ) from error


def read_figures(workdir: Path, split: str = "validation") -> dict[str, Any] | None:
    """The figures `wsca evaluate` wrote; None where it should be run (again): no file, or a damaged one."""
    try:
        return dict(json.loads(figures_path(workdir, split).read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        return None
