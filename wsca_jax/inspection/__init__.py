"""The dry run: what a configuration builds and costs, from shapes alone."""

from __future__ import annotations

from typing import cast

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh
from ml_collections import ConfigDict

from wsca_jax import assembly
from wsca_jax import config as configs
from wsca_jax.engine.optimizer import OptimizerOptions, make_optimizer
from wsca_jax.engine.sharding import AXES, Layout
from wsca_jax.errors import WscaError
from wsca_jax.inspection import cost
from wsca_jax.inspection.multiply_adds import multiply_adds
from wsca_jax.inspection.record import Inspection, inspect_run
from wsca_jax.inspection.text import format_costs, format_inspection
from wsca_jax.report.tables import format_table

__all__ = ["Inspection", "dry_run", "format_inspection", "inspect", "inspect_run", "multiply_adds"]

# The schedule's length decides no shape; any that holds the warm-up will do.
STEPS = 10**9


def inspect(config: ConfigDict, *, depth: int = 2) -> str:
    """Everything `wsca inspect` prints. Reads no images, allocates nothing, and needs no device of the mesh.

    Args:
      config: resolved and complete, from `wsca_jax.config.load`.
      depth: levels of modules in the tables.

    Raises:
      WscaError: what training would raise for this configuration before it reads data.
    """
    found, plain = dry_run(config), cost.without_modules(config)
    costs = format_costs(cost.compare(found, found if plain == config else dry_run(plain)))
    return f"Configuration\n\n{_keys(config)}\n\n{format_inspection(found, depth)}\n\n{costs}"


def dry_run(config: ConfigDict) -> Inspection:
    """What `inspect` finds of a configuration, before it is text."""
    schema = assembly.data_schema(config)
    method = assembly.build_method(config, schema)
    optimizer = make_optimizer(OptimizerOptions(**config.optimizer), STEPS, method.frozen)
    batch = assembly.batch_spec(config, schema, config.train.batch_size)
    layout = abstract_layout(**config.mesh)
    return inspect_run(method, optimizer, batch, layout, accumulate=config.train.accumulate)


def abstract_layout(data: int, fsdp: int) -> Layout:
    """The layout of a run, without its devices; data -1 takes those that are here.

    Raises:
      WscaError: there is no such mesh.
    """
    if fsdp < 1 or data == 0 or data < -1:
        raise WscaError(f"mesh of data {data} x fsdp {fsdp}: expected 1 or more of each, or data -1 for all")
    data = max(1, jax.device_count() // fsdp) if data == -1 else data
    mesh = AbstractMesh((data, fsdp), AXES, axis_types=(AxisType.Auto,) * 2)
    return Layout(cast(Mesh, mesh))  # shapes and shardings ask no more of it


def _keys(config: ConfigDict) -> str:
    rows = [(f"--config.{key}", repr(value)) for key, value in configs.flat(config).items()]
    return format_table(("key", "value"), rows, left=(0, 1))
