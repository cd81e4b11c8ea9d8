"""The training step compiled for devices that are not here: whether it fits, and what it costs."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from wsca_jax import config as configs
from wsca_jax.compilation.largest import largest
from wsca_jax.compilation.record import CompiledStep, Shortage, to_json
from wsca_jax.compilation.step import compile_or_shortage, compile_step, lower
from wsca_jax.compilation.text import format_step, format_steps
from wsca_jax.compilation.topologies import Topology, open_topologies
from wsca_jax.errors import WscaError

__all__ = ["CompiledStep", "Request", "compile_steps", "to_json"]


class Request(NamedTuple):
    """What to compile.

    Attributes:
      specs: config files and variants.
      overrides: `--config.key=value` of all of them.
      topologies: names; each configuration is compiled for each of them.
      batch_per_device: examples on each device, in training and evaluation; None leaves the config's batch.
      largest_batch: whether to search for the largest batch that fits.
      data_dir: the folder that says what the attributes are, for configurations that need one.
    """

    specs: Sequence[str]
    overrides: Sequence[str]
    topologies: Sequence[str]
    batch_per_device: int | None = None
    largest_batch: bool = False
    data_dir: Path | None = None


def compile_steps(
    request: Request, *, json_file: Path | None = None, programs: Path | None = None
) -> list[CompiledStep]:
    """Everything `wsca compile` does and prints. Reads no data and needs none of the devices.

    Args:
      request: what to compile.
      json_file: where to write the records, after each of them.
      programs: folder for the optimised programs' text.

    Raises:
      WscaError: no such topology, or what training would raise for a configuration before it reads data.
    """
    topologies = open_topologies(request.topologies)  # before anything starts JAX's devices
    if request.largest_batch and any(topology.chip is None for topology in topologies):
        raise WscaError("--largest_batch needs a chip whose memory is known; leave it out for CPU devices")
    steps: list[CompiledStep] = []
    for spec in request.specs:
        for topology in topologies:
            print(f"compiling {spec} for {topology.name} ...", file=sys.stderr, flush=True)
            steps.append(_compile(request, spec, topology, programs))
            print(format_step(steps[-1]), end="\n\n", flush=True)
            if json_file:
                json_file.write_text(json.dumps([to_json(step) for step in steps], indent=2) + "\n")
    print(format_steps(steps))
    return steps


def _compile(request: Request, spec: str, topology: Topology, programs: Path | None) -> CompiledStep:
    config = _config(request, spec, topology, request.batch_per_device)
    step, program = compile_step(config, spec, topology)
    if programs and program:
        programs.mkdir(parents=True, exist_ok=True)
        name = f"{Path(spec).name}-{topology.name}".replace(":", "-")
        (programs / f"{name}.hlo").write_text(program)
    return _with_largest_batch(step, request, spec, topology) if request.largest_batch else step


def _with_largest_batch(step: CompiledStep, request: Request, spec: str, topology: Topology) -> CompiledStep:
    unit = step.accumulate  # a device's examples split evenly over the microbatches

    def fits(microbatch: int) -> bool:
        if microbatch * unit == step.per_device:
            return step.fits
        lowered = lower(_config(request, spec, topology, microbatch * unit), topology)
        return not isinstance(compile_or_shortage(lowered.step), Shortage)

    return dataclasses.replace(step, largest_batch=unit * largest(fits, step.per_device // unit))


def _config(request: Request, spec: str, topology: Topology, per_device: int | None) -> ConfigDict:
    config = configs.load(spec, request.overrides, request.data_dir)
    if per_device is None:
        return config
    with config.unlocked():
        config.train.batch_size = per_device * len(topology.devices)
        config.evaluation.batch_size = per_device * len(topology.devices)
    return config.lock()
