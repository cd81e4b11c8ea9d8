"""What a finished run leaves behind: `training_history.json`, `training_report.json`, `report.html`."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import platform
import shlex
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from input_pipeline.cores import available_cores
from input_pipeline.schema import AttributeSchema
from wsca_jax.goodput import Goodput
from wsca_jax.metrics import Results
from wsca_jax.timing import data_wait_share
from wsca_jax.writers import METRICS_FILE, Row, encode, read_rows

FORMAT_VERSION = 1
HISTORY_FILE = "training_history.json"
REPORT_FILE = "training_report.json"
PAGE_FILE = "report.html"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "wsca-jax")


@dataclasses.dataclass(frozen=True)
class TrainingReport:
    """What a training run was, cost and found.

    Attributes:
      config: the whole configuration, as JSON values.
      defaults: the configuration nobody changed, for showing what is different.
      schema: the attributes.
      environment: from `environment()`.
      parameters: number of parameters; trained: how many of them are not frozen.
      first_step, last_step: what this process ran; a resumed run does not begin at 0.
      images: how many training examples this process saw.
      timings: {part: seconds} of this process: of `timing.STARTING`, `timing.RUNNING`, and the total.
      first_step_seconds: {part: seconds} until this process's first step was done, and the total.
      save_pauses: seconds in which each of this process's saves held training up.
      goodput: where the time of all the run's processes went.
      results: of the last evaluation.
      truth: what they are measured against: "labels of each image".
      skipped_examples: unreadable training examples; skipped_steps: steps that were not finite.
      command: the command line that reproduces the run.
    """

    config: Mapping[str, Any]
    defaults: Mapping[str, Any]
    schema: AttributeSchema
    environment: Mapping[str, Any]
    parameters: int
    trained: int
    first_step: int
    last_step: int
    images: int
    timings: Mapping[str, float]
    first_step_seconds: Mapping[str, float]
    save_pauses: Sequence[float]
    goodput: Goodput
    results: Results
    truth: str
    skipped_examples: int
    skipped_steps: int
    command: Sequence[str]

    @property
    def images_per_second(self) -> float:
        """Of the training loop: images over the seconds of steps and of waiting for data; 0 without any."""
        seconds = self.timings["step"] + self.timings["data_wait"]
        return self.images / seconds if seconds else 0.0

    @property
    def data_wait(self) -> float:
        """Waiting for data as a share of the same seconds; NaN without any."""
        return data_wait_share(self.timings)

    def _save_pause(self) -> dict[str, float]:
        pauses = self.save_pauses
        if not pauses:
            return {"saves": 0}
        return {"saves": len(pauses), "median": statistics.median(pauses), "largest": max(pauses)}

    @property
    def changes(self) -> dict[str, tuple[Any, Any]]:
        """{dotted key: (default, chosen)} where the two differ."""
        default, chosen = flatten(self.defaults), flatten(self.config)
        return {
            key: (default.get(key), value)
            for key, value in chosen.items()
            if key not in default or default[key] != value
        }

    def to_json(self) -> dict[str, Any]:
        return {
            "format_version": FORMAT_VERSION,
            "command": shlex.join(self.command),
            "config": self.config,
            "schema": self.schema.to_json(),
            "environment": self.environment,
            "parameters": {"total": self.parameters, "trained": self.trained},
            "steps": {"first": self.first_step, "last": self.last_step},
            "images": self.images,
            "images_per_second": self.images_per_second,
            "data_wait": encode(self.data_wait),
            "timings": self.timings,
            "first_step_seconds": self.first_step_seconds,
            "save_pause_seconds": self._save_pause(),
            "goodput": self.goodput.to_json(),
            "skipped": {"examples": self.skipped_examples, "steps": self.skipped_steps},
            "truth": self.truth,
            "results": self.results.to_json(),
        }


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"optimizer": {"name": ...}} to {"optimizer.name": ...}; tuples to lists, as JSON has them."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return flat


def environment() -> dict[str, Any]:
    """Versions, devices and cores: what a figure of speed or a last bit may depend on."""
    devices = jax.devices()
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "backend": jax.default_backend(),
        "device_kind": devices[0].device_kind,
        "devices": len(devices),
        "processes": jax.process_count(),
        "host_cores": available_cores(),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def history(rows: Sequence[Row]) -> dict[str, Any]:
    """The rows of a log by kind, in order of step; numbers JSON has no word for as in the log."""
    kinds = dict.fromkeys(row.kind for row in rows)
    return {
        "format_version": FORMAT_VERSION,
        **{kind: [_record(row) for row in rows if row.kind == kind] for kind in kinds},
    }


def _record(row: Row) -> dict[str, Any]:
    return {
        "step": row.step,
        "values": {name: encode(value) for name, value in row.values.items()},
        "time": {name: encode(value) for name, value in row.time.items()},
    }


def write(workdir: Path, report: TrainingReport) -> Path:
    """Writes the two JSON files and the page, each in one move; returns the page's path.

    The history is what the run's log holds.
    """
    from wsca_jax.report.page import render  # matplotlib: seconds that only a finished run should pay

    rows = read_rows(workdir / METRICS_FILE)
    _replace(workdir / HISTORY_FILE, json.dumps(history(rows), indent=1, allow_nan=False) + "\n")
    _replace(workdir / REPORT_FILE, json.dumps(report.to_json(), indent=2, allow_nan=False) + "\n")
    _replace(workdir / PAGE_FILE, render(report, rows))
    return workdir / PAGE_FILE


def _replace(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
