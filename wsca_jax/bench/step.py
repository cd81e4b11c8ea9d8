"""`wsca bench step`: images a second of the training step, of its loader, and of both together."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import jax
from ml_collections import ConfigDict

from input_pipeline import SOURCES
from input_pipeline.batch import Source
from wsca_jax import assembly
from wsca_jax.bench import against_torch, modules, torch_step
from wsca_jax.bench.figures import (
    END_TO_END,
    LOADER,
    OURS_BASELINE,
    STEP,
    TORCH,
    Device,
    Measured,
    Model,
    Settings,
    to_json,
)
from wsca_jax.bench.loop import end_to_end, loader
from wsca_jax.bench.prepared import EXAMPLES, Prepared, prepare
from wsca_jax.bench.text import format_measured
from wsca_jax.bench.torch_step import Recipe
from wsca_jax.bench.turns import Seconds, take_turns
from wsca_jax.bench.variants import BASELINE, ROWS, Request, configure, is_baseline


def bench(request: Request, settings: Settings, json_file: Path | None = None) -> str:
    """Measures, and says what was found, as text.

    Args:
      request: the configuration.
      settings: what is measured.
      json_file: where to write everything that was found, too.

    Raises:
      WscaError, DataError: the configuration or the data cannot be trained on, or PyTorch cannot be asked.
    """
    rows = settings.modules
    if rows is not None:
        modules.check(rows)
    measured = measure(request, settings)
    if rows is not None:
        table = modules.measure(request, rows, settings.steps, settings.rounds)
        measured = dataclasses.replace(measured, modules=table)
    if json_file is not None:
        json_file.write_text(json.dumps(to_json(measured), indent=2) + "\n")
    return format_measured(measured)


def measure(request: Request, settings: Settings) -> Measured:
    """All but the table of modules; see `bench`."""
    config = request.load()
    recipe = _torch_recipe(request, config, settings)  # before anything long
    source = open_source(config)
    _say("compiling")
    prepared = prepare_on(config, source)
    prepared.taking(1)()
    seen, load = peak_seen(), os.getloadavg()[0]
    with contextlib.ExitStack() as stack:
        contenders = Contenders(stack, settings)
        contenders.add_step(prepared)
        if source is not None:
            contenders.add_data(prepared, source)
        if recipe is not None:
            _say("preparing PyTorch")
            if is_baseline(config):
                contenders.add_torch(recipe, prepared)
            else:
                baseline = prepare(configure(request, ROWS[BASELINE]))
                contenders.add_step(baseline, OURS_BASELINE)
                contenders.add_torch(recipe, baseline)
        _say("taking turns")
        seconds = contenders.take_turns()
    return Measured(
        spec=request.spec,
        model=_model(config),
        device=_device(),
        batch_size=config.train.batch_size,
        settings=settings,
        seconds=seconds,
        data_waits=contenders.data_waits(),
        lowering=prepared.lowering,
        compiling=prepared.compiling,
        planned=prepared.bytes,
        seen=seen,
        multiply_adds=prepared.multiply_adds,
        modules=None,
        load=load,
        torch=torch_step.version() if settings.torch else None,
    )


class Contenders:
    """What takes turns, and what it needs open."""

    def __init__(self, stack: contextlib.ExitStack, settings: Settings) -> None:
        self._stack, self._settings = stack, settings
        self._work: dict[str, Callable[[], object]] = {}
        self._around: dict[str, Callable[[], contextlib.AbstractContextManager[object]]] = {}
        self._data_waits: list[float] = []

    def add_step(self, prepared: Prepared, name: str = STEP) -> None:
        self._work[name] = prepared.taking(self._settings.steps)

    def add_data(self, prepared: Prepared, source: Source) -> None:
        """The loader, and the loop that `wsca train` runs, which writes to a folder that goes away."""
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        alone = loader(prepared, source, self._settings.steps)
        loop = self._stack.enter_context(end_to_end(prepared, source, self._settings.steps, folder))
        self._work |= {LOADER: alone.turn, END_TO_END: loop.turn}
        self._around |= {LOADER: alone.open, END_TO_END: loop.open}
        self._data_waits = loop.data_waits

    def add_torch(self, recipe: Recipe, baseline: Prepared) -> None:
        """PyTorch, on the batch of our step without modules."""
        batch = against_torch.host_batch(baseline.batch)
        opened = torch_step.contender(recipe, batch, self._settings.steps)
        self._work[TORCH] = self._stack.enter_context(opened)

    def take_turns(self) -> Seconds:
        return take_turns(self._work, self._settings.rounds, warm_up=1, around=self._around)

    def data_waits(self) -> list[float]:
        """Of each measured turn end to end, the share that was spent waiting for data."""
        return self._data_waits[-self._settings.rounds :]


def _torch_recipe(request: Request, config: ConfigDict, settings: Settings) -> Recipe | None:
    """What PyTorch is to do, if anything. Raises WscaError where it cannot."""
    if not settings.torch:
        return None
    baseline = config if is_baseline(config) else configure(request, ROWS[BASELINE])
    compiled = settings.torch_compiled
    recipe = against_torch.recipe(baseline, assembly.data_schema(config), _device(), compiled=compiled)
    torch_step.check(recipe)
    return recipe


def open_source(config: ConfigDict) -> Source | None:
    """The training split, or None where no folder was given for a data set that needs one."""
    if not config.data.dir and hasattr(SOURCES[config.data.name], "prepare"):
        return None
    source = assembly.open_source(config, "train")
    assembly.check_protocol(config, source)
    return source


def prepare_on(config: ConfigDict, source: Source | None) -> Prepared:
    """The step of a run on this data, compiled without the persistent cache."""
    if source is None:
        return Prepared(assembly.build(config, assembly.data_schema(config), EXAMPLES), cached=False)
    words = assembly.caption_words(config, source)
    return Prepared(assembly.build(config, source.schema, len(source), words), cached=False)


def peak_seen() -> int | None:
    """The most bytes in use on any device since the process began, as the devices count them."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    return max((found["peak_bytes_in_use"] for found in stats if "peak_bytes_in_use" in found), default=None)


def _device() -> Device:
    first = jax.devices()[0]
    return Device(jax.device_count(), first.device_kind, first.platform)


def _model(config: ConfigDict) -> Model:
    trunk = config.model.trunk
    return Model(trunk.depth, trunk.width, config.data.images.size, config.model.dtype)


def _say(what: str) -> None:
    print(f"{what} ...", file=sys.stderr, flush=True)
