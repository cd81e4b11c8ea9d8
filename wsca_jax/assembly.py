"""From a configuration to the objects of a run: data, method, optimiser, layout."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
from ml_collections import ConfigDict

from input_pipeline import SOURCES, pipeline
from input_pipeline import text as texts
from input_pipeline.batch import AttributeBatch, Source, SourceWithCaptions, blank_batch
from input_pipeline.errors import DataError
from input_pipeline.images import ImageOptions
from input_pipeline.schema import AttributeSchema
from input_pipeline.text import Text, TextOptions
from input_pipeline.weak_labels import WeakLabels
from wsca_jax.config import ConfigError
from wsca_jax.engine.optimizer import Optimizer, OptimizerOptions, make_optimizer
from wsca_jax.engine.sharding import Layout, make_mesh
from wsca_jax.methods import METHODS
from wsca_jax.methods.base import Method

Split = Literal["train", "validation", "test"]


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How long a run is, in steps. An epoch need not be a whole number of them.

    Attributes:
      total: optimiser steps in the run.
      steps_per_epoch: a fraction in general.
    """

    total: int
    steps_per_epoch: float

    def every(self, epochs: float) -> int:
        """A period in epochs as a period in steps, at least 1; 0 epochs means only at the end."""
        return max(1, round(epochs * self.steps_per_epoch)) if epochs else self.total


@dataclasses.dataclass(frozen=True)
class Run:
    """What a configuration describes, built. Holds no data and no state.

    Attributes:
      text: how the run's sentences become token ids.
    """

    config: ConfigDict
    text: Text
    method: Method
    optimizer: Optimizer
    layout: Layout
    schedule: Schedule


def build(
    config: ConfigDict,
    schema: AttributeSchema,
    examples: int,
    words: tuple[str, ...] = (),
    devices: Sequence[jax.Device] | None = None,
) -> Run:
    """Builds a run on a data set of this schema with this many training examples.

    Args:
      config: resolved and complete.
      schema: of the data set.
      examples: in its training split.
      words: of the data set's captions, from `caption_words` or the run's record.
      devices: that the run is for; all there are by default.

    Raises:
      WscaError: one line, for a value that something does not take.
    """
    _check_hidden_labels(config)
    schedule = make_schedule(config, examples)
    layout = Layout(make_mesh(**config.mesh, devices=devices))
    method = build_method(config, schema, schedule.total, layout.mesh.size)
    options = OptimizerOptions(**config.optimizer).at_batch_size(config.train.batch_size)
    optimizer = make_optimizer(options, schedule.total, method.frozen)
    layout.check_batch_size(config.train.batch_size, config.train.accumulate)
    layout.check_batch_size(config.evaluation.batch_size)
    return Run(config, make_text(config, schema, words), method, optimizer, layout, schedule)


def _check_hidden_labels(config: ConfigDict) -> None:
    if config.evaluation.hidden_labels < 0:
        found = config.evaluation.hidden_labels
        raise ConfigError(f"evaluation.hidden_labels is {found}; expected a number of training images, or 0")
    if config.evaluation.hidden_labels and not WeakLabels(**config.weak_labels).hides:
        raise ConfigError(
            "evaluation.hidden_labels needs labels that training does not see, but weak_labels hides none; "
            "set weak_labels.known_fraction below 1, or evaluation.hidden_labels to 0"
        )


def make_schedule(config: ConfigDict, examples: int) -> Schedule:
    if config.train.epochs <= 0:
        raise ConfigError(f"train.epochs is {config.train.epochs}; expected a number above 0")
    per_epoch = examples / config.train.batch_size
    return Schedule(max(1, round(config.train.epochs * per_epoch)), per_epoch)


def build_method(
    config: ConfigDict, schema: AttributeSchema, total_steps: int = 0, devices: int = 1
) -> Method:
    """The method of a run of this many optimiser steps on so many devices.

    Without steps no run is meant, as in a dry run.
    """
    try:
        return METHODS[config.method].build(config, schema, total_steps, devices)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"config: {' '.join(str(error).split())}") from error


def open_source(config: ConfigDict, split: Split) -> Source:
    """Opens one split of the configured data set; raises DataError."""
    data_set = SOURCES[config.data.name]
    return data_set.open_split(_folder(config), split, data_set.Options(**config.data.options))


def data_schema(config: ConfigDict) -> AttributeSchema:
    """What the data set's labels mean; raises DataError where its folder is needed to know."""
    data_set = SOURCES[config.data.name]
    return data_set.schema(_folder(config), data_set.Options(**config.data.options))


def _folder(config: ConfigDict) -> Path | None:
    return Path(config.data.dir) if config.data.dir else None


def check_protocol(config: ConfigDict, source: Source) -> None:
    """Raises DataError where the training split lacks what its weak labels are made of."""
    pipeline.class_rates(source, WeakLabels(**config.weak_labels))


def caption_words(config: ConfigDict, source: Source) -> tuple[str, ...]:
    """What a run that begins now adds to its vocabulary, where it reads the data set's captions.

    Raises:
      DataError: it is to read captions, and there are none.
    """
    if config.data.text.captions != "source" or not isinstance(source, SourceWithCaptions):
        return ()
    if not source.caption_words:
        raise DataError(
            f"{source.schema.name}: data.text.captions is 'source', but no training image has a caption; "
            "choose phrases or none, or add captions"
        )
    return source.caption_words


def make_text(config: ConfigDict, schema: AttributeSchema, words: tuple[str, ...] = ()) -> Text:
    """How the run's sentences become token ids; raises DataError."""
    return texts.for_data_set(SOURCES[config.data.name], schema, TextOptions(**config.data.text), words)


def train_batches(
    config: ConfigDict, text: Text, source: Source, start_step: int, stop_step: int = sys.maxsize
) -> Generator[AttributeBatch]:
    """This process's rows of the global batches `start_step` to `stop_step`, the last one left out."""
    return pipeline.train_batches(
        source,
        images=ImageOptions(**config.data.images),
        weak_labels=WeakLabels(**config.weak_labels),
        text=text,
        batch_size=config.train.batch_size,
        seed=config.seed,
        start_step=start_step,
        stop_step=stop_step,
        shard=jax.process_index(),
        shards=jax.process_count(),
        threads=config.data.threads,
        allow_corrupt=config.data.skip_budget > 0,
    )


def eval_batches(
    config: ConfigDict, text: Text, source: Source, *, hidden: bool = False
) -> Generator[AttributeBatch]:
    """This process's rows of the evaluation batches: the middle of each image, all of its labels.

    With `hidden` only those labels that the run's weak-label protocol hides from training.
    """
    return pipeline.eval_batches(
        source,
        images=ImageOptions(**config.data.images),
        text=text,
        captions=config.evaluation.captions,
        batch_size=config.evaluation.batch_size,
        shard=jax.process_index(),
        shards=jax.process_count(),
        threads=config.data.threads,
        allow_corrupt=config.data.skip_budget > 0,
        hidden_by=WeakLabels(**config.weak_labels) if hidden else None,
    )


def batch_spec(config: ConfigDict, schema: AttributeSchema, rows: int) -> AttributeBatch:
    """Shapes and dtypes of a global batch of this many rows, as `jax.ShapeDtypeStruct`s."""
    columns = TextOptions(**config.data.text).columns
    row = blank_batch(1, config.data.images.size, schema.num_attributes, columns)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype), row)


def checkpoint_options(config: ConfigDict) -> dict[str, Any]:
    return {key: value for key, value in config.checkpoint.items() if key != "every_epochs"}
