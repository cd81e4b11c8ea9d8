"""A run's record: what stands beside the checkpoints and says what they are checkpoints of. JSON only."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from input_pipeline.schema import AttributeSchema, SchemaError
from wsca_jax.engine.storage import storage_errors, write_atomically
from wsca_jax.errors import WscaError

NAME = "run.json"
FORMAT_VERSION = 1


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """What a run was started with.

    Attributes:
      config: the resolved configuration, as JSON.
      schema: the attributes it predicts.
      words: of its training captions, that have an id in its vocabulary; see `input_pipeline.text`. Kept
        here because other data has others.
    """

    config: dict[str, Any]
    schema: AttributeSchema
    words: tuple[str, ...] = ()


def write_run_record(
    workdir: Path, config: Mapping[str, Any], schema: AttributeSchema, words: Sequence[str] = ()
) -> float:
    """Writes `workdir`/run.json, all of it or nothing; makes the workdir where there is none.

    Returns:
      `written_at` of the new record.

    Raises:
      WscaError: the workdir cannot be written.
      OutOfDiskError: the disk is full.
    """
    record = {
        "format_version": FORMAT_VERSION,
        "config": dict(config),
        "schema": schema.to_json(),
        "words": " ".join(words),
    }
    text = json.dumps(record, indent=2)
    with storage_errors(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        write_atomically(workdir / NAME, text + "\n")
        return (workdir / NAME).stat().st_mtime


def written_at(workdir: Path) -> float | None:
    """When the run's record was last written, by its file system's clock; None where there is none."""
    try:
        return (workdir / NAME).stat().st_mtime
    except FileNotFoundError:
        return None


def has_run_record(workdir: Path) -> bool:
    """Whether a run was started in this workdir."""
    return (workdir / NAME).is_file()


def read_run_record(workdir: Path, schema: AttributeSchema | None = None) -> RunRecord:
    """Reads `workdir`/run.json.

    Args:
      workdir: a run's folder.
      schema: the attributes of the data at hand, where the run must have the same.

    Raises:
      WscaError: there is no record, it is of a newer format, damaged, or of another schema.
    """
    path = workdir / NAME
    if not path.is_file():
        raise WscaError(f"{path} does not exist; expected the workdir of a run that `wsca train` started")
    found = _parse(path)
    if schema is not None and schema != found.schema:
        raise WscaError(
            f"{path}: {_difference(found.schema, schema)}; choose another workdir or the run's data"
        )
    return found


def _parse(path: Path) -> RunRecord:
    try:
        record = json.loads(path.read_text())
        version = int(record["format_version"])
        if version > FORMAT_VERSION:
            raise WscaError(
                f"{path}: format version {version}, this wsca reads up to {FORMAT_VERSION}; update wsca"
            )
        schema = AttributeSchema.from_json(dict(record["schema"]))
        return RunRecord(dict(record["config"]), schema, tuple(record.get("words", "").split()))
    except (SchemaError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise WscaError(f"{path}: not the record of a run ({error}); bring it back from a copy") from error


def _difference(stored: AttributeSchema, given: AttributeSchema) -> str:
    if stored.name != given.name or stored.num_attributes != given.num_attributes:
        return (
            f"this run predicts the {stored.num_attributes} attributes of {stored.name!r}, "
            f"the data has the {given.num_attributes} of {given.name!r}"
        )
    names = zip(stored.attributes, given.attributes, strict=True)
    for number, (old, new) in enumerate(names):
        if old != new:
            return f"attribute {number} of schema {stored.name!r} was {old!r}, the data has {new!r}"
    fields = [f.name for f in dataclasses.fields(stored)]
    changed = [name for name in fields if getattr(stored, name) != getattr(given, name)]
    return f"schema {stored.name!r} has changed in {', '.join(changed)} since the run was started"
