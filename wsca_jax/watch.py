"""What a run writes and measures, and who watches its steps."""

from __future__ import annotations

import itertools
import json
import math
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax

from input_pipeline.batch import AttributeBatch, Source
from input_pipeline.errors import DataError
from wsca_jax.assembly import Run
from wsca_jax.engine import hosts
from wsca_jax.engine.checkpoint import Checkpoints
from wsca_jax.engine.state import TrainState
from wsca_jax.engine.step import StepReport
from wsca_jax.errors import DivergedError
from wsca_jax.evaluate import Evaluator
from wsca_jax.goodput import Ledger
from wsca_jax.metrics import Results
from wsca_jax.preemption import Preemption
from wsca_jax.timing import STARTING, DataWait, Stopwatch
from wsca_jax.writers import Progress, RunWriter

# How many steps the host may be ahead of the device. Reading a report this old never makes the device wait.
STEPS_AHEAD = 2

# What may be measured during training, and how it is called in the terminal.
KINDS = {"validation": "validation", "hidden": "hidden labels of training images,"}


class Tools(NamedTuple):
    """What a run writes to and measures with."""

    workdir: Path
    checkpoints: Checkpoints
    writer: RunWriter
    progress: Progress
    clock: Stopwatch
    ledger: Ledger
    preemption: Preemption


class Taken(NamedTuple):
    """A step that was dispatched and not yet looked at. Steps are numbered from 1."""

    number: int
    batch: AttributeBatch
    report: StepReport


class Watch:
    """Looks at every step, a little after it was dispatched: logs it, and stops a run that went wrong.

    Attributes:
      skipped_examples: training examples that could not be read.
      first_step: {part: seconds} from the process's beginning until its first step was done.
      save_pauses: seconds in which each save held the loop up; steps under way are waited for before.
    """

    def __init__(self, run: Run, source: Source, tools: Tools) -> None:
        self.skipped_examples = 0
        self.first_step: dict[str, float] = {}
        self.save_pauses: list[float] = []
        self._run, self._source, self._tools = run, source, tools
        self._pending: deque[Taken] = deque()
        self._data_wait, self._waited = DataWait(tools.clock), math.nan

    def add(self, taken: Taken) -> None:
        """Looks at the steps that are old enough."""
        self._tools.checkpoints.check()
        self._pending.append(taken)
        while len(self._pending) > STEPS_AHEAD:
            self._look(self._pending.popleft())

    def catch_up(self) -> None:
        """Waits for every step that was dispatched, and looks at it."""
        with self._tools.clock.part("step"):
            while self._pending:
                self._look(self._pending.popleft())

    def evaluate(self, evaluators: Mapping[str, Evaluator], state: TrainState) -> Results:
        """Measures the state; returns what was found under "validation"."""
        self.catch_up()
        return {kind: self._measure(kind, evaluator, state) for kind, evaluator in evaluators.items()}[
            "validation"
        ]

    def _measure(self, kind: str, evaluator: Evaluator, state: TrainState) -> Results:
        """Measures the state, and writes and shows what was found."""
        with self._tools.clock.part("evaluation"), self._tools.progress.paused("evaluating"):
            results, losses = evaluator.run(state)
        number, overall = int(state.step), results.overall
        self._tools.writer.write(number, kind, results.scalars() | losses)
        self._tools.progress.note(
            f"step {number}: {KINDS[kind]} mAP {overall.mAP:.4f} (chance {overall.chance_mAP:.4f}), "
            f"accuracy {overall.accuracy:.4f}, loss {self._weighed(losses):.4f}"
        )
        return results

    def _weighed(self, losses: Mapping[str, float]) -> float:
        return sum(term.weight * losses[f"loss/{term.name}"] for term in self._run.method.terms)

    def save(self, state: TrainState, results: Results | None) -> None:
        self.catch_up()
        begun = time.perf_counter()
        with self._tools.clock.part("checkpoint"):
            self._tools.writer.flush()
            self._tools.checkpoints.save(state, None if results is None else results.scalars())
        self.save_pauses.append(time.perf_counter() - begun)
        self._tools.ledger.saved()

    def finish_saving(self) -> None:
        """Waits until the last save can be trusted."""
        with self._tools.clock.part("checkpoint"):
            self._tools.checkpoints.wait()

    def _look(self, taken: Taken) -> None:
        step = jax.device_get(taken.report)
        if not self.first_step:
            self._note_first_step()
        self._tools.ledger.looked_at(taken.number)
        self._count_skipped(taken, step)
        logged = taken.number % self._run.config.train.log_every == 0
        if logged:
            self._waited = self._data_wait.since_last()
        self._tools.progress.advance(taken.number, float(step.examples), float(step.loss), self._waited)
        if logged:
            self._log(taken.number, step)
        if not step.finite:
            self._tools.progress.note(f"step {taken.number}: loss or gradient not finite, step skipped")
            if step.skipped_in_a_row >= self._run.config.train.stop_after_non_finite:
                self._give_up(taken, step)

    def _note_first_step(self) -> None:
        parts = self._tools.clock.split()
        before = {part: parts[part] for part in (*STARTING, "data_wait")}
        total = sum(parts.values())
        # The step's own time is still being measured.
        self.first_step = before | {"step": total - sum(before.values()), "total": total}
        self._tools.progress.note(format_first_step(self.first_step))

    def _log(self, number: int, step: StepReport) -> None:
        values = {f"loss/{name}": value for name, value in step.terms.items()}
        values |= {f"weight/{name}": value for name, value in step.weights.items()} | dict(step.gauges)
        scalars = ("loss", "grad_norm", "learning_rate", "skipped")
        values |= {name: getattr(step, name) for name in scalars}
        timings = {"images_per_second": self._tools.progress.images_per_second, "data_wait": self._waited}
        self._tools.writer.write(number, "train", values, timings)

    def _count_skipped(self, taken: Taken, step: StepReport) -> None:
        config = self._run.config
        skipped = config.train.batch_size - round(float(step.examples))
        self.skipped_examples += skipped
        if skipped and self.skipped_examples > config.data.skip_budget:
            unread = taken.batch.index[taken.batch.weight == 0].tolist()
            *_, last = itertools.chain.from_iterable(hosts.gather("unread", unread))
            raise DataError(
                f"{self.skipped_examples} examples could not be read, data.skip_budget allows "
                f"{config.data.skip_budget}; the last was number {last}. `wsca verify` names them all"
            )

    def _give_up(self, taken: Taken, step: StepReport) -> None:
        indices = itertools.chain.from_iterable(hosts.gather("diverged", taken.batch.index.tolist()))
        path = self._tools.workdir / "diverged.json"
        if hosts.is_lead():
            keys = [self._source[index].key for index in indices]
            path.write_text(json.dumps({"step": taken.number, "examples": keys}, indent=1) + "\n")
        raise DivergedError(
            f"step {taken.number}: {step.skipped_in_a_row} steps in a row were not finite; the last batch's "
            f"examples are in {path}. Lower optimizer.learning_rate, or look at the examples"
        )


def format_first_step(seconds: Mapping[str, float]) -> str:
    """What a process did before its first step was done, in one line."""
    names = {
        "imports": "imports",
        "open": "opening data",
        "state": "state",
        "compile": "compiling",
        "data_wait": "first batches",
        "step": "the step and the rest",
    }
    parts = ", ".join(f"{name} {seconds[part]:.1f}" for part, name in names.items())
    return f"first step after {seconds['total']:.1f} s ({parts})"
