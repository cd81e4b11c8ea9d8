"""A training step, compiled, with a state and a batch of noise on the devices."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.experimental.compilation_cache import compilation_cache
from ml_collections import ConfigDict

from input_pipeline.batch import AttributeBatch
from wsca_jax import assembly, train
from wsca_jax.assembly import Run
from wsca_jax.engine import state as states
from wsca_jax.engine.state import TrainState
from wsca_jax.inspection.memory import compiled_bytes
from wsca_jax.inspection.record import forward_multiply_adds

# The length of a run decides no shape; any that holds its warm-up will do.
EXAMPLES = 10**6


class Prepared:
    """A run's step, ready to be taken.

    Attributes:
      run: what the configuration describes.
      compiled: the step.
      state: the present state; whoever takes a step puts the next one here.
      batch: noise, on the devices.
      lowering, compiling: seconds.
      multiply_adds: of one image's forward pass.
      bytes: the most that each device holds in a step, as the compiler planned it.
    """

    def __init__(self, run: Run, *, cached: bool) -> None:
        """Compiles; with `cached`, through the persistent compilation cache where there is one."""
        config, method = run.config, run.method
        spec = assembly.batch_spec(config, method.schema, config.train.batch_size)
        self.run = run
        self.batch = run.layout.put_batch(noise(spec))
        self.state: TrainState = states.create(
            method, run.optimizer, spec, seed=config.seed, layout=run.layout
        )
        self.multiply_adds: int = sum(forward_multiply_adds(method, self.state, spec).values())
        with contextlib.nullcontext() if cached else without_cache():
            start = time.perf_counter()
            lowered = train.lower_step(run, self.state)
            self.lowering = time.perf_counter() - start
            self.compiled = lowered.compile()
            self.compiling = time.perf_counter() - start - self.lowering
        self.bytes = compiled_bytes(self.compiled)

    def taking(self, steps: int) -> Callable[[], None]:
        """A turn of so many steps on the batch of noise; it waits for the last."""

        def take() -> None:
            report = None
            for _ in range(steps):
                self.state, report = self.compiled(self.state, self.batch)
            jax.block_until_ready((self.state, report))

        return take


def prepare(config: ConfigDict) -> Prepared:
    """The step of a configuration, without data. Raises WscaError or DataError."""
    return Prepared(assembly.build(config, assembly.data_schema(config), EXAMPLES), cached=True)


@contextlib.contextmanager
def without_cache() -> Iterator[None]:
    """Compiles what is compiled inside anew, and keeps none of it."""
    before = jax.config.values["jax_enable_compilation_cache"]
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # whether there is a cache is looked up once, and kept
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()


def noise(spec: AttributeBatch) -> AttributeBatch:
    """A batch of these shapes: random pixels, labels and token ids, one label in ten known."""
    rng = np.random.default_rng(0)
    known = rng.random(spec.known.shape) < 0.1
    ids = None if spec.tokens is None else rng.integers(1, 60, spec.tokens.shape).astype(np.int32)
    blank = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), spec)
    return blank._replace(
        image=rng.integers(0, 256, spec.image.shape).astype(np.uint8),
        labels=(known & (rng.random(known.shape) < 0.3)).astype(np.uint8),
        known=known,
        weight=np.ones(spec.weight.shape, np.float32),
        index=np.arange(len(spec.index), dtype=np.int32),
        tokens=ids,
    )
