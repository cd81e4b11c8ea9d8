"""Compiles the training step of a configuration for a topology, from shapes alone."""

from __future__ import annotations

import re
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from wsca_jax import assembly
from wsca_jax.compilation import hlo, roofline, traffic
from wsca_jax.compilation.collectives import collectives
from wsca_jax.compilation.program import Unreadable, program_text, written_to
from wsca_jax.compilation.record import CompiledStep, Cost, Memory, Shortage
from wsca_jax.compilation.topologies import Topology
from wsca_jax.engine import state as states
from wsca_jax.engine.step import compile_train_step
from wsca_jax.inspection.record import forward_multiply_adds

# The length of a run decides no shape; any that holds its warm-up will do.
STEPS_PER_EPOCH = 10**6

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE = r"([\d.]+)([KMGT]?)"
# Two stages of the TPU compiler find out, each in words of its own.
_SHORTAGES = (
    re.compile(rf"\({_SIZE}\) exceeds available HBM \({_SIZE}\)"),
    re.compile(rf"Used {_SIZE} of {_SIZE} hbm"),
)


class Lowered(NamedTuple):
    """A training step, traced for a topology."""

    step: jax.stages.Lowered
    multiply_adds: int
    mesh: dict[str, int]


def compile_step(config: ConfigDict, name: str, topology: Topology) -> tuple[CompiledStep, str]:
    """What the training step of a configuration needs on a topology.

    Args:
      config: resolved and complete.
      name: of the configuration.
      topology: of `topologies.open_topologies`.

    Returns:
      (what was found, the text of the optimised program; "" where it does not fit or cannot be read).

    Raises:
      WscaError: what training would raise for this configuration on these devices before it reads data.
    """
    start = time.perf_counter()
    lowered = lower(config, topology)
    with tempfile.TemporaryDirectory() as folder:
        compiled = compile_or_shortage(lowered.step, Path(folder) if topology.chip else None)
        fits = isinstance(compiled, jax.stages.Compiled)
        text: str | Unreadable = program_text(compiled, Path(folder)) if fits else ""
    cost = _cost(text, lowered.multiply_adds, topology) if fits else None
    step = CompiledStep(
        config=name,
        topology=topology.name,
        devices=len(topology.devices),
        mesh=lowered.mesh,
        batch_size=config.train.batch_size,
        accumulate=config.train.accumulate,
        seconds=time.perf_counter() - start,
        memory=_memory(compiled) if fits else None,
        shortage=None if fits else compiled,
        cost=cost,
        estimate=_estimate(cost, topology) if cost else None,
        unreadable=text.reason if isinstance(text, Unreadable) else None,
    )
    return step, "" if isinstance(text, Unreadable) else text


def lower(config: ConfigDict, topology: Topology) -> Lowered:
    """Traces the step that `wsca train` would run; allocates nothing."""
    schema = assembly.data_schema(config)
    examples = STEPS_PER_EPOCH * config.train.batch_size
    run = assembly.build(config, schema, examples, devices=topology.devices)
    batch = assembly.batch_spec(config, schema, config.train.batch_size)
    state = states.abstract(run.method, run.optimizer, batch, seed=config.seed, layout=run.layout)
    step = compile_train_step(
        run.method,
        run.optimizer,
        run.layout,
        state,
        seed=config.seed,
        accumulate=config.train.accumulate,
    )
    forward = sum(forward_multiply_adds(run.method, state, batch).values())
    rows = config.train.batch_size // len(topology.devices)
    return Lowered(step.lower(state, batch), roofline.PASSES * forward * rows, dict(run.layout.mesh.shape))


def compile_or_shortage(step: jax.stages.Lowered, write_to: Path | None = None) -> Any:
    """The compiled step (`jax.stages.Compiled`), or by how much it does not fit (`Shortage`).

    Args:
      step: traced.
      write_to: a folder where the compiler writes its program, too (`program.program_text`).
    """
    try:
        return step.compile(compiler_options=written_to(write_to) if write_to else None)
    except jax.errors.JaxRuntimeError as error:
        shortage = read_shortage(str(error))
        if shortage is None:
            raise
        return shortage


def read_shortage(message: str) -> Shortage | None:
    """The numbers in the compiler's complaint about too little memory; None where it complains of another."""
    for pattern in _SHORTAGES:
        if found := pattern.search(message):
            needed, needed_unit, available, available_unit = found.groups()
            return Shortage(
                round(float(needed) * _UNITS[needed_unit]), round(float(available) * _UNITS[available_unit])
            )
    return None


def _memory(compiled: jax.stages.Compiled) -> Memory:
    found: Any = compiled.memory_analysis()
    return Memory(
        arguments=found.argument_size_in_bytes,
        outputs=found.output_size_in_bytes,
        aliased=found.alias_size_in_bytes,
        temporaries=found.temp_size_in_bytes,
        code=found.generated_code_size_in_bytes,
    )


def _cost(text: str | Unreadable, multiply_adds: int, topology: Topology) -> Cost:
    if isinstance(text, Unreadable):
        return Cost(multiply_adds, bytes_moved=None, collectives=None)
    program = hlo.parse(text)
    return Cost(
        multiply_adds=multiply_adds,
        bytes_moved=traffic.bytes_moved(program),
        collectives=collectives(program, len(topology.devices)),
    )


def _estimate(cost: Cost, topology: Topology) -> roofline.Estimate | None:
    if topology.chip is None or cost.bytes_moved is None or cost.bytes_sent is None:
        return None
    return roofline.estimate(topology.chip, cost.multiply_adds, cost.bytes_moved, cost.bytes_sent)
