"""What `wsca evaluate` leaves in a workdir: the predictions of a split, and the figures they give.

workdir/evaluation_<split>.npz    predictions: one row for each example; and what attributes may go with
workdir/evaluation_<split>.json   figures, written last: where they stand, the predictions stand too
"""

from __future__ import annotations

import contextlib
import json
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from input_pipeline.batch import SpuriousFactor
from wsca_jax.engine.storage import storage_errors, write_atomically
from wsca_jax.errors import WscaError
from wsca_jax.metrics import Predictions


class Factors(NamedTuple):
    """What a split's attributes should not depend on, for the worst group.

    Attributes:
      attributes: names of all A, in the order of the predictions' columns.
      factors: {name: factor}; empty where the data set knows of none.
    """

    attributes: tuple[str, ...]
    factors: Mapping[str, SpuriousFactor]


NO_FACTORS = Factors((), {})

_ATTRIBUTES, _FACTOR = "attributes", "factor/"


def figures_path(workdir: Path, split: str) -> Path:
    return workdir / f"evaluation_{split}.json"


def predictions_path(workdir: Path, split: str) -> Path:
    return workdir / f"evaluation_{split}.npz"


def write_evaluation(
    workdir: Path,
    split: str,
    figures: Mapping[str, Any],
    predictions: Predictions,
    factors: Factors = NO_FACTORS,
) -> Path:
    """Writes both files, each whole or not at all, and returns the path of the figures.

    Figures that stood there before are removed first: they are not of these predictions.

    Raises:
      OutOfDiskError, WscaError: the workdir cannot be written.
    """
    path = figures_path(workdir, split)
    with storage_errors(workdir):
        path.unlink(missing_ok=True)
        _write_arrays(predictions_path(workdir, split), predictions._asdict() | _as_arrays(factors))
        write_atomically(path, json.dumps(figures, indent=2) + "\n")
    return path


def _write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
    partial.replace(path)


def _as_arrays(factors: Factors) -> dict[str, np.ndarray]:
    found = {_ATTRIBUTES: np.array(factors.attributes, str)}
    for name, factor in factors.factors.items():
        found[f"{_FACTOR}{name}"] = np.asarray(factor.values)
        found[f"{_FACTOR}{name}/{_ATTRIBUTES}"] = np.array(factor.attributes, str)
    return found


def read_predictions(workdir: Path, split: str = "validation") -> Predictions:
    """The rows that `wsca evaluate` found, bit for bit.

    Raises:
      WscaError: the run was not evaluated on this split, or the file is damaged.
    """
    with _reading(workdir, split) as archive:
        return Predictions(*(archive[name] for name in Predictions._fields))


def read_factors(workdir: Path, split: str = "validation") -> Factors:
    """What the split's attributes may go with; none where an earlier version evaluated.

    Raises:
      WscaError: as `read_predictions`.
    """
    with _reading(workdir, split) as archive:
        names = [name.removeprefix(_FACTOR) for name in archive if name.startswith(_FACTOR)]
        return Factors(
            tuple(archive[_ATTRIBUTES].tolist()) if _ATTRIBUTES in archive else (),
            {
                name: SpuriousFactor(
                    archive[_FACTOR + name], tuple(archive[f"{_FACTOR}{name}/{_ATTRIBUTES}"].tolist())
                )
                for name in names
                if not name.endswith(f"/{_ATTRIBUTES}")
            },
        )


@contextlib.contextmanager
def _reading(workdir: Path, split: str) -> Iterator[Mapping[str, np.ndarray]]:
    path = predictions_path(workdir, split)
    if not path.is_file():
        raise WscaError(f"{path} does not exist; first run wsca evaluate --workdir {workdir} --split {split}")
    try:
        with np.load(path) as archive:
            yield archive
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
