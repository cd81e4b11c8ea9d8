"""What compiling a training step for a topology finds."""

from __future__ import annotations

import dataclasses
from typing import Any

from wsca_jax.compilation.collectives import Collective
from wsca_jax.compilation.roofline import Estimate


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on each device while a step runs, as the compiler planned them.

    Attributes:
      arguments: state and batch.
      outputs: the next state and the step's report.
      aliased: outputs that lie where an argument did: the donated state.
      temporaries: everything in between, at its peak.
      code: the program.
    """

    arguments: int
    outputs: int
    aliased: int
    temporaries: int
    code: int

    @property
    def total(self) -> int:
        return self.arguments + self.outputs - self.aliased + self.temporaries + self.code


@dataclasses.dataclass(frozen=True)
class Shortage:
    """A step that does not fit: the compiler says what each device needs and what it has, in bytes."""

    needed: int
    available: int


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one device's share of a step costs.

    Attributes:
      multiply_adds: of the model: `roofline.PASSES` times those of the forward pass, by our own count.
      bytes_moved: between the device and its main memory (`traffic.bytes_moved`); None where the program
        cannot be read.
      collectives: what it sends to other devices; None likewise.
    """

    multiply_adds: int
    bytes_moved: int | None
    collectives: tuple[Collective, ...] | None

    @property
    def intensity(self) -> float | None:
        """Floating-point operations of the model for each byte moved."""
        return None if self.bytes_moved is None else 2 * self.multiply_adds / self.bytes_moved

    @property
    def bytes_sent(self) -> int | None:
        return None if self.collectives is None else sum(found.sent for found in self.collectives)


@dataclasses.dataclass(frozen=True)
class CompiledStep:
    """A training step, compiled for devices that need not be here.

    Attributes:
      config: the config file and variant.
      topology: name of the topology.
      devices: how many there are.
      mesh: {axis: devices}.
      batch_size: examples in the global batch.
      accumulate: microbatches in a step.
      seconds: that tracing and compiling took.
      memory: what each device holds; None where it does not fit.
      shortage: by how much it does not fit; None where it does.
      cost: what a step costs; None where it does not fit.
      estimate: how long a step takes at least; None where it does not fit, the program cannot be read or
        nothing is known of the device.
      largest_batch: examples per device in the largest batch that fits; None where nobody asked, 0 where
        none fits.
      unreadable: why the compiled program cannot be read; None where it can or does not fit.
    """

    config: str
    topology: str
    devices: int
    mesh: dict[str, int]
    batch_size: int
    accumulate: int
    seconds: float
    memory: Memory | None
    shortage: Shortage | None
    cost: Cost | None
    estimate: Estimate | None
    largest_batch: int | None = None
    unreadable: str | None = None

    @property
    def per_device(self) -> int:
        """Examples of the global batch on each device."""
        return self.batch_size // self.devices

    @property
    def fits(self) -> bool:
        return self.shortage is None

    @property
    def images_per_second(self) -> float | None:
        """Over all devices, at most."""
        return None if self.estimate is None else self.batch_size / self.estimate.step


def to_json(step: CompiledStep) -> dict[str, Any]:
    """The record and what follows from it, for a file."""
    found = dataclasses.asdict(step)
    if step.cost:
        found["cost"] |= {"intensity": step.cost.intensity, "bytes_sent": step.cost.bytes_sent}
    if step.memory:
        found["memory"]["total"] = step.memory.total
    if step.estimate:
        found["estimate"] = step.estimate._asdict() | {
            "step": step.estimate.step,
            "bound": step.estimate.bound,
            "efficiency": step.estimate.efficiency,
            "images_per_second": step.images_per_second,
        }
    return found
