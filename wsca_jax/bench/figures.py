"""What `wsca bench step` finds, and the figures made of it."""

from __future__ import annotations

import dataclasses
import statistics
from typing import Any, NamedTuple

from wsca_jax.bench import modules
from wsca_jax.bench.modules import Modules
from wsca_jax.bench.peaks import PEAKS
from wsca_jax.bench.turns import Clock, Seconds, median, ratio
from wsca_jax.compilation.roofline import PASSES

STEP, LOADER, END_TO_END = "step alone, on a batch that is there", "loader alone", "end to end"
OURS_BASELINE, TORCH = "baseline, step alone", "PyTorch, step alone"

# NVIDIA's ResNet-50 in MLPerf Training v4.0 (MLCommons, 2024), images a second for each H200.
PUBLISHED_H200 = 7940


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is measured.

    Attributes:
      steps: in a turn.
      rounds: turns of each contender, of which medians are taken.
      modules: rows of the table of modules; () for all of them, None for no table.
      clock: of that table.
      torch: whether PyTorch takes turns, too.
      torch_compiled: whether torch.compile makes its step.
    """

    steps: int = 16
    rounds: int = 5
    modules: tuple[str, ...] | None = None
    clock: Clock = "wall"
    torch: bool = False
    torch_compiled: bool = True


@dataclasses.dataclass(frozen=True)
class Device:
    """What the step ran on: how many devices, their kind and platform."""

    count: int
    kind: str
    platform: str


class Model(NamedTuple):
    """What was trained, as far as published figures depend on it."""

    depth: int
    width: int
    size: int
    dtype: str


@dataclasses.dataclass(frozen=True)
class Measured:
    """What was found.

    Attributes:
      spec: config file and variant.
      model: what was trained.
      device: on what.
      batch_size: images of a step, over all devices.
      settings: what was asked for.
      seconds: of turns of `settings.steps` steps, by contender; `STEP` is always one.
      data_waits: of each turn end to end, the share of it that was spent waiting for data.
      lowering, compiling: seconds, without the persistent cache.
      planned: bytes on each device, by the compiler.
      seen: bytes on a device at their peak, as it counts them; None where it does not.
      multiply_adds: of one image's forward pass.
      modules: the table's rows, or None.
      load: of the machine, when the turns began.
      torch: PyTorch's version, where it stands beside us.
    """

    spec: str
    model: Model
    device: Device
    batch_size: int
    settings: Settings
    seconds: Seconds
    data_waits: list[float]
    lowering: float
    compiling: float
    planned: int
    seen: int | None
    multiply_adds: int
    modules: Modules | None
    load: float
    torch: str | None = None

    def rate(self, name: str) -> float:
        """Images a second of a contender."""
        return self.settings.steps * self.batch_size / median(self.seconds, name, "wall")

    @property
    def has_data(self) -> bool:
        return LOADER in self.seconds


def slower_over_both(seconds: Seconds) -> float:
    """min(step, loader) / end to end, in images a second: the median over rounds."""
    turns = zip(*(seconds[name]["wall"] for name in (STEP, LOADER, END_TO_END)), strict=True)
    return statistics.median(both / max(step, loader) for step, loader, both in turns)


def one_after_the_other(seconds: Seconds) -> float:
    """End to end over step plus loader, in seconds: median over rounds; without overlap 1."""
    turns = zip(*(seconds[name]["wall"] for name in (STEP, LOADER, END_TO_END)), strict=True)
    return statistics.median(both / (step + loader) for step, loader, both in turns)


def utilisation(measured: Measured) -> float | None:
    """The model's operations a second over what the devices could do; None where that is not known.

    Three times those of the forward pass; known in bfloat16 only.
    """
    peak = PEAKS.get(measured.device.kind)
    if peak is None or measured.model.dtype != "bfloat16":
        return None
    operations = 2 * PASSES * measured.multiply_adds * measured.rate(STEP)
    return operations / (peak.matrix_rate * measured.device.count)


def ours(seconds: Seconds) -> str:
    """The contender that PyTorch stands beside: our step without modules."""
    return OURS_BASELINE if OURS_BASELINE in seconds else STEP


def over_torch(measured: Measured) -> float | None:
    """How many times as fast as PyTorch our step without modules is; None where PyTorch took no turns."""
    if TORCH not in measured.seconds:
        return None
    return ratio(measured.seconds, TORCH, ours(measured.seconds), "wall")


def of_published(measured: Measured) -> float | None:
    """The share of MLPerf's images a second; None for another card, model, size or precision."""
    if "H200" not in measured.device.kind or measured.model != Model(50, 64, 224, "bfloat16"):
        return None
    return measured.rate(ours(measured.seconds)) / (PUBLISHED_H200 * measured.device.count)


def to_json(measured: Measured) -> dict[str, Any]:
    """Everything that was measured, and the figures made of it."""
    fields = {
        field.name: getattr(measured, field.name)
        for field in dataclasses.fields(measured)
        if field.name not in ("model", "device", "settings", "modules")
    }
    return {
        **fields,
        "model": measured.model._asdict(),
        "device": dataclasses.asdict(measured.device),
        "settings": dataclasses.asdict(measured.settings),
        "images_per_second": {name: measured.rate(name) for name in measured.seconds},
        "slower_over_end_to_end": slower_over_both(measured.seconds) if measured.has_data else None,
        "utilisation": utilisation(measured),
        "torch": measured.torch,
        "over_torch": over_torch(measured),
        "of_published": of_published(measured),
        "modules": None if measured.modules is None else modules.to_json(measured.modules),
    }
