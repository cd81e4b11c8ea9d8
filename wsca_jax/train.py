"""Training: from a configuration to a workdir with checkpoints, logs and a report."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
from ml_collections import ConfigDict

from input_pipeline.batch import AttributeBatch, Source
from input_pipeline.errors import DataError
from wsca_jax import assembly, report
from wsca_jax import config as configs
from wsca_jax.assembly import Run
from wsca_jax.engine import hosts
from wsca_jax.engine import state as states
from wsca_jax.engine.checkpoint import Checkpoints
from wsca_jax.engine.record import has_run_record, read_run_record, write_run_record, written_at
from wsca_jax.engine.state import TrainState
from wsca_jax.engine.step import StepReport, compile_train_step
from wsca_jax.errors import DivergedError, Preempted, WscaError
from wsca_jax.evaluate import Evaluator
from wsca_jax.metrics import Results
from wsca_jax.preemption import Preemption
from wsca_jax.report.records import REPORT_FILE
from wsca_jax.timing import DataWait, Stopwatch
from wsca_jax.writers import Progress, RunWriter, format_share

# How many steps the host may be ahead of the device. Reading a report this old never makes the device wait.
STEPS_AHEAD = 2

# Seconds in which a shared file system shows one host what another wrote.
SHARED_WITHIN = 60

# What may be measured during training, and how it is called in the terminal.
KINDS = {"validation": "validation", "hidden": "hidden labels of training images,"}


class Sources(NamedTuple):
    train: Source
    validation: Source


class Tools(NamedTuple):
    """What a run writes to and measures with."""

    workdir: Path
    checkpoints: Checkpoints
    writer: RunWriter
    progress: Progress
    clock: Stopwatch
    preemption: Preemption


class Finished(NamedTuple):
    """What a training loop leaves: the last state, its evaluation, and how many examples were skipped."""

    state: TrainState
    results: Results
    skipped_examples: int


def train(
    config: ConfigDict, *, workdir: Path, accept_changes: bool = False, command: Sequence[str] = ()
) -> Results:
    """Trains to the end of the schedule, from the workdir's last good checkpoint where there is one.

    Args:
      config: resolved and complete, from `wsca_jax.config.load`.
      workdir: folder of the run; made if absent.
      accept_changes: go on although the workdir's run began with another configuration.
      command: how the run was started, for the report.

    Returns:
      The last evaluation's results on the validation split.

    Raises:
      WscaError, DataError: each with one line for the user; see `wsca_jax.errors.ExitCode`.
    """
    clock = Stopwatch(("compile", "data_wait", "step", "checkpoint", "evaluation"))
    with hosts.lead_first("data"):  # what is prepared on first use is prepared once
        sources = Sources(assembly.open_source(config, "train"), assembly.open_source(config, "validation"))
    assembly.check_protocol(config, sources.train)
    words = hosts.tell("words", lambda: vocabulary_words(config, sources.train, workdir))
    run = assembly.build(config, sources.train.schema, len(sources.train), tuple(words))
    check_same_run(run, sources)
    check_shared(workdir, hosts.tell("record", lambda: keep_record(run, workdir, accept_changes)))
    with contextlib.ExitStack() as stack:
        checkpoints = stack.enter_context(Checkpoints(workdir, **assembly.checkpoint_options(config)))
        state = begin(run, checkpoints)
        first = int(state.step)
        tools = open_tools(stack, run, workdir, checkpoints, first, clock)
        announce(run, sources, state, tools.progress)
        finished = run_steps(run, sources, state, tools)
    if hosts.is_lead():
        print(report.format_results(finished.results))
        if first < run.schedule.total:
            described = describe(run, sources, finished, first, clock, command)
            page = report.write(workdir, described)
            print(f"\nWaited for data: {format_share(described.data_wait)} of step time")
            print(f"Report: {page}\nFigures: {workdir / REPORT_FILE}")
    return finished.results


def vocabulary_words(config: ConfigDict, source: Source, workdir: Path) -> tuple[str, ...]:
    """The words of the workdir's run, whose ids its parameters know; of a new run, the training captions'."""
    if has_run_record(workdir):
        return read_run_record(workdir).words
    return assembly.caption_words(config, source)


def keep_record(run: Run, workdir: Path, accept_changes: bool) -> float:
    """Writes the run's record, after holding this configuration against the one that is there; returns when.

    Raises:
      WscaError: the workdir's run has another schema, or a configuration that means something else.
    """
    schema = run.method.schema
    if has_run_record(workdir):
        stored = configs.from_json(read_run_record(workdir, schema).config, f"{workdir}/run.json")
        changes = configs.difference(stored, run.config)
        if changes and not accept_changes:
            raise WscaError(
                f"{workdir}: its run began with another configuration ({'; '.join(changes)}); "
                "give that one, choose another --workdir, or add --accept_changes"
            )
    return write_run_record(workdir, configs.to_json(run.config), schema, run.text.words)


def check_same_run(run: Run, sources: Sources) -> None:
    """Raises WscaError where this process and the leading one were not given the same run."""
    config = {key: value for key, value in configs.flat(run.config).items() if key != "data.dir"}
    images = {f"number of {split} images": len(source) for split, source in sources._asdict().items()}
    hosts.check_same({**config, **images, "schema": run.method.schema.to_json()})


def check_shared(workdir: Path, written: float) -> None:
    """Raises WscaError where this workdir is not the leading process's, whose record is of `written`."""
    limit = time.monotonic() + SHARED_WITHIN
    while written_at(workdir) != written:
        if time.monotonic() > limit:
            raise WscaError(
                f"{workdir}: process {jax.process_index()} does not find in it what process 0 wrote; choose "
                "a --workdir on a file system that all hosts share"
            )
        time.sleep(0.1)


def begin(run: Run, checkpoints: Checkpoints) -> TrainState:
    """The last good checkpoint's state, or a fresh one with the method's pretrained weights in place."""
    config, method, layout = run.config, run.method, run.layout
    spec = assembly.batch_spec(config, method.schema, config.train.batch_size)
    restored = checkpoints.restore_latest(
        states.abstract(method, run.optimizer, spec, seed=config.seed, layout=layout)
    )
    if restored is not None:
        return restored.state
    state = states.create(method, run.optimizer, spec, seed=config.seed, layout=layout)
    if method.pretrained is None:
        return state
    return states.with_variables(state, method.pretrained(state.variables), layout)


def open_tools(
    stack: contextlib.ExitStack,
    run: Run,
    workdir: Path,
    checkpoints: Checkpoints,
    first: int,
    clock: Stopwatch,
) -> Tools:
    lead, schedule = hosts.is_lead(), run.schedule
    writer = RunWriter(workdir, first, active=lead)
    progress = Progress(
        total=schedule.total, start=first, steps_per_epoch=schedule.steps_per_epoch, active=lead
    )
    return Tools(
        workdir,
        checkpoints,
        stack.enter_context(writer),
        stack.enter_context(progress),
        clock,
        stack.enter_context(Preemption()),
    )


def announce(run: Run, sources: Sources, state: TrainState, progress: Progress) -> None:
    """Two lines before the long work: what is trained, on what, from where."""
    schema, first = run.method.schema, int(state.step)
    parameters = sum(x.size for x in jax.tree.leaves(state.params))
    progress.note(
        f"{run.method.name} on {schema.name}: {len(sources.train):,} training and "
        f"{len(sources.validation):,} validation images, {schema.num_attributes} attributes in "
        f"{schema.num_groups} groups, {parameters:,} parameters, {jax.device_count()} "
        f"{jax.devices()[0].device_kind} device(s)"
    )
    progress.note(
        f"resuming after step {first:,} of {run.schedule.total:,}"
        if first
        else f"training for {run.schedule.total:,} steps; compiling first"
    )


def run_steps(run: Run, sources: Sources, state: TrainState, tools: Tools) -> Finished:
    """Trains from `state` to the end of the schedule, evaluating and saving on the way and at the end.

    A step's rows are written before a checkpoint holds that step, so that logs cut back to a restored step
    are those of an uninterrupted run.

    Raises:
      DataError: an example cannot be read, or more of them than the budget allows.
      DivergedError: too many non-finite steps in a row.
      Preempted: SIGTERM came; the state was saved.
    """
    config, clock, last = run.config, tools.clock, run.schedule.total
    evaluate_every = run.schedule.every(config.evaluation.every_epochs)
    save_every = run.schedule.every(config.checkpoint.every_epochs)
    first = int(state.step)
    with clock.part("compile"):
        take = compile_step(run, state)
        evaluators = make_evaluators(run, sources, state)
        hosts.wait_for_all("compiled")  # devices that first meet wait less long than a compilation may take
    watch, vote = Watch(run, sources.train, tools), hosts.Vote(run.layout, STEPS_AHEAD)
    results = evaluators["validation"].run(state)[0] if first == last else None
    with contextlib.closing(assembly.train_batches(config, run.text, sources.train, first, last)) as batches:
        for number in range(first + 1, last + 1):
            with clock.part("data_wait"):
                batch = next(batches)
            with clock.part("step"):
                state, step_report = take(state, run.layout.put_batch(batch))
                watch.add(Taken(number, batch, step_report))
            results = None
            if number == last or number % evaluate_every == 0:
                results = watch.evaluate(evaluators, state)
            leave = vote.any(tools.preemption.requested)
            if number == last or number % save_every == 0 or leave:
                watch.save(state, results)
            if leave and number < last:
                tools.checkpoints.wait()
                raise Preempted(
                    f"SIGTERM: saved step {number} of {last}; the same command goes on from there"
                )
    assert results is not None
    return Finished(state, results, watch.skipped_examples)


def make_evaluators(run: Run, sources: Sources, state: TrainState) -> dict[str, Evaluator]:
    """What each evaluation measures, by the kind of its rows in the log."""
    validation = Evaluator(run, sources.validation, state)
    images = run.config.evaluation.hidden_labels
    if not images:
        return {"validation": validation}
    return {"validation": validation, "hidden": validation.on_hidden_labels(sources.train, images)}


def compile_step(run: Run, state: TrainState) -> jax.stages.Compiled:
    """Traces and compiles the train step once, ahead of the loop, so that its cost is known."""
    config = run.config
    step = compile_train_step(
        run.method, run.optimizer, run.layout, state, seed=config.seed, accumulate=config.train.accumulate
    )
    return step.lower(
        state, assembly.batch_spec(config, run.method.schema, config.train.batch_size)
    ).compile()


class Taken(NamedTuple):
    """A step that was dispatched and not yet looked at. Steps are numbered from 1."""

    number: int
    batch: AttributeBatch
    report: StepReport


class Watch:
    """Looks at every step, a little after it was dispatched: logs it, and stops a run that went wrong.

    Attributes:
      skipped_examples: training examples that could not be read.
    """

    def __init__(self, run: Run, source: Source, tools: Tools) -> None:
        self.skipped_examples = 0
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
        with self._tools.clock.part("checkpoint"):
            self._tools.writer.flush()
            self._tools.checkpoints.save(state, None if results is None else results.scalars())

    def _look(self, taken: Taken) -> None:
        step = jax.device_get(taken.report)
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


def describe(
    run: Run, sources: Sources, finished: Finished, first: int, clock: Stopwatch, command: Sequence[str]
) -> report.TrainingReport:
    """The report of a run that this process took from step `first` to its end."""
    config, schedule = run.config, run.schedule
    trained, _ = run.optimizer.split(finished.state.params)
    return report.TrainingReport(
        config=configs.to_json(config),
        defaults=configs.to_json(configs.defaults(config.method, config.data.name)),
        schema=run.method.schema,
        environment=report.environment(),
        parameters=sum(x.size for x in jax.tree.leaves(finished.state.params)),
        trained=sum(x.size for x in jax.tree.leaves(trained)),
        first_step=first,
        last_step=schedule.total,
        images=(schedule.total - first) * config.train.batch_size,
        timings=clock.seconds | {"total": clock.total},
        results=finished.results,
        truth=sources.validation.truth,
        skipped_examples=finished.skipped_examples,
        skipped_steps=int(finished.state.skipped),
        command=command,
    )
