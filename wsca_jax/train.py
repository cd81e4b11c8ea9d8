"""Training: from a configuration to a workdir with checkpoints, logs and a report."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
from ml_collections import ConfigDict

from input_pipeline.batch import AttributeBatch, Source, SourceAhead
from wsca_jax import assembly, report
from wsca_jax import config as configs
from wsca_jax.assembly import Run
from wsca_jax.engine import hosts
from wsca_jax.engine import state as states
from wsca_jax.engine.checkpoint import Checkpoints
from wsca_jax.engine.record import has_run_record, read_run_record, write_run_record, written_at
from wsca_jax.engine.sharding import Layout
from wsca_jax.engine.state import TrainState
from wsca_jax.engine.step import compile_train_step
from wsca_jax.errors import Preempted, WscaError
from wsca_jax.evaluate import Evaluator
from wsca_jax.goodput import Ledger, account, format_goodput, read_ledger
from wsca_jax.metrics import Results
from wsca_jax.preemption import Preemption
from wsca_jax.report.records import REPORT_FILE
from wsca_jax.timing import RUNNING, STARTING, Stopwatch
from wsca_jax.watch import STEPS_AHEAD, Taken, Tools, Watch
from wsca_jax.writers import Progress, RunWriter, format_share

# Seconds in which a shared file system shows one host what another wrote.
SHARED_WITHIN = 60


class Sources(NamedTuple):
    train: Source
    validation: Source


class Loop(NamedTuple):
    """What takes one step after the other: in training, and where its speed is measured.

    Attributes:
      take: the compiled step.
      layout: where batches go.
      watch: looks at every step.
      clock: counts "data_wait" and "step".
    """

    take: jax.stages.Compiled
    layout: Layout
    watch: Watch
    clock: Stopwatch

    def step(self, state: TrainState, number: int, batches: Iterator[AttributeBatch]) -> TrainState:
        """Waits for the next batch and dispatches step `number` on it; donates `state`."""
        with self.clock.part("data_wait"):
            batch = next(batches)
        with self.clock.part("step"):
            state, step_report = self.take(state, self.layout.put_batch(batch))
            self.watch.add(Taken(number, batch, step_report))
        return state


class Finished(NamedTuple):
    """What a training loop leaves: the last state, its evaluation, and what was seen on the way."""

    state: TrainState
    results: Results
    watch: Watch


def train(
    config: ConfigDict,
    *,
    workdir: Path,
    accept_changes: bool = False,
    command: Sequence[str] = (),
    began: float | None = None,
) -> Results:
    """Trains to the end of the schedule, from the workdir's last good checkpoint where there is one.

    Args:
      config: resolved and complete, from `wsca_jax.config.load`.
      workdir: folder of the run; made if absent.
      accept_changes: go on although the workdir's run began with another configuration.
      command: how the run was started, for the report.
      began: when that was, on the clock of `time.perf_counter`; now by default.

    Returns:
      The last evaluation's results on the validation split.

    Raises:
      WscaError, DataError: each with one line for the user; see `wsca_jax.errors.ExitCode`.
    """
    clock = Stopwatch((*STARTING, *RUNNING), began)
    clock.seconds["imports"] = clock.total
    # What is prepared on first use is prepared once.
    with clock.part("open"), hosts.lead_first("data"):
        sources = Sources(assembly.open_source(config, "train"), assembly.open_source(config, "validation"))
    assembly.check_protocol(config, sources.train)
    words = hosts.tell("words", lambda: vocabulary_words(config, sources.train, workdir))
    run = assembly.build(config, sources.train.schema, len(sources.train), tuple(words))
    check_same_run(run, sources)
    check_shared(workdir, hosts.tell("record", lambda: keep_record(run, workdir, accept_changes)))
    with contextlib.ExitStack() as stack:
        checkpoints = stack.enter_context(Checkpoints(workdir, **assembly.checkpoint_options(config)))
        if isinstance(sources.train, SourceAhead) and run.schedule.total not in checkpoints.steps():
            stack.enter_context(sources.train.ahead())
        with clock.part("state"):
            state = begin(run, checkpoints)
        first = int(state.step)
        tools = open_tools(stack, run, workdir, checkpoints, first, clock)
        announce(run, sources, state, tools.progress)
        finished = run_steps(run, sources, state, tools)
    if hosts.is_lead():
        print(report.format_results(finished.results))
        if first < run.schedule.total:
            described = describe(run, sources, finished, first, clock, command, workdir)
            page = report.write(workdir, described)
            print(f"\nWaited for data: {format_share(described.data_wait)} of step time")
            print(format_goodput(described.goodput))
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
        stack.enter_context(Ledger(workdir, first, clock, active=lead and first < schedule.total)),
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
    loop = Loop(take, run.layout, watch, clock)
    results = evaluators["validation"].run(state)[0] if first == last else None
    with contextlib.closing(assembly.train_batches(config, run.text, sources.train, first, last)) as batches:
        for number in range(first + 1, last + 1):
            state, results = loop.step(state, number, batches), None
            if number == last or number % evaluate_every == 0:
                results = watch.evaluate(evaluators, state)
            leave = vote.any(tools.preemption.requested)
            if number == last or number % save_every == 0 or leave:
                watch.save(state, results)
            if number == last or leave:
                watch.finish_saving()
            if leave and number < last:
                raise Preempted(
                    f"SIGTERM: saved step {number} of {last}; the same command goes on from there"
                )
    assert results is not None
    return Finished(state, results, watch)


def make_evaluators(run: Run, sources: Sources, state: TrainState) -> dict[str, Evaluator]:
    """What each evaluation measures, by the kind of its rows in the log."""
    validation = Evaluator(run, sources.validation, state)
    images = run.config.evaluation.hidden_labels
    if not images:
        return {"validation": validation}
    return {"validation": validation, "hidden": validation.on_hidden_labels(sources.train, images)}


def compile_step(run: Run, state: TrainState) -> jax.stages.Compiled:
    """Traces and compiles the train step once, ahead of the loop, so that its cost is known."""
    return lower_step(run, state).compile()


def lower_step(run: Run, state: TrainState) -> jax.stages.Lowered:
    """Traces the run's train step; `state` may be abstract."""
    config = run.config
    step = compile_train_step(
        run.method, run.optimizer, run.layout, state, seed=config.seed, accumulate=config.train.accumulate
    )
    return step.lower(state, assembly.batch_spec(config, run.method.schema, config.train.batch_size))


def describe(
    run: Run,
    sources: Sources,
    finished: Finished,
    first: int,
    clock: Stopwatch,
    command: Sequence[str],
    workdir: Path,
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
        first_step_seconds=finished.watch.first_step,
        save_pauses=finished.watch.save_pauses,
        goodput=account(read_ledger(workdir)),
        skipped_examples=finished.watch.skipped_examples,
        skipped_steps=int(finished.state.skipped),
        command=command,
    )
