"""The training loop and its loader as contenders, on the configured data."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Iterator
from pathlib import Path

from input_pipeline.batch import Source
from wsca_jax import assembly
from wsca_jax.bench.prepared import Prepared
from wsca_jax.bench.stream import OpenBatches, Stream
from wsca_jax.engine.checkpoint import Checkpoints
from wsca_jax.goodput import Ledger
from wsca_jax.preemption import Preemption
from wsca_jax.timing import RUNNING, STARTING, Stopwatch, data_wait_share
from wsca_jax.train import Loop
from wsca_jax.watch import Tools, Watch
from wsca_jax.writers import Progress, RunWriter


def loader(prepared: Prepared, source: Source, steps: int) -> Stream:
    """The batches that a run trains on."""
    return Stream(_batches(prepared, source), prepared.run.config.data.threads, steps)


def _batches(prepared: Prepared, source: Source) -> OpenBatches:
    return functools.partial(assembly.train_batches, prepared.run.config, prepared.run.text, source)


class EndToEnd(Stream):
    """The loop that `wsca train` runs: loader, devices, step, and a watch that logs to a folder.

    The host waits for no device but at the end of a turn; it looks at reports of steps long done, as in
    training.

    Attributes:
      data_waits: of each turn so far, the share that was spent waiting for data.
    """

    def __init__(self, prepared: Prepared, source: Source, steps: int, tools: Tools) -> None:
        run = prepared.run
        super().__init__(_batches(prepared, source), run.config.data.threads, steps)
        self._prepared, self._clock = prepared, tools.clock
        self._watch = Watch(run, source, tools)
        self._loop = Loop(prepared.compiled, run.layout, self._watch, self._clock)
        self._numbers = itertools.count(1)
        self.data_waits: list[float] = []

    def take(self, count: int) -> None:
        """Takes steps, and waits for the last."""
        for number in itertools.islice(self._numbers, count):
            self._prepared.state = self._loop.step(self._prepared.state, number, self.batches)
        self._watch.catch_up()

    def turn(self) -> None:
        before = dict(self._clock.seconds)
        super().turn()
        passed = {part: seconds - before[part] for part, seconds in self._clock.seconds.items()}
        self.data_waits.append(data_wait_share(passed))


@contextlib.contextmanager
def end_to_end(prepared: Prepared, source: Source, steps: int, workdir: Path) -> Iterator[EndToEnd]:
    """The loop, with its tools open; what they write goes to `workdir`."""
    options = assembly.checkpoint_options(prepared.run.config)
    clock, silent = Stopwatch((*STARTING, *RUNNING)), Progress(total=0, active=False)
    with (
        Checkpoints(workdir, **options) as checkpoints,
        RunWriter(workdir, 0) as writer,
        Ledger(workdir, 0, clock) as ledger,
    ):
        tools = Tools(workdir, checkpoints, writer, silent, clock, ledger, Preemption())
        yield EndToEnd(prepared, source, steps, tools)
