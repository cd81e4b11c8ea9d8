"""Evaluation: of a state during training, and of a run's checkpoint on any folder of the same schema."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Literal

import jax

from input_pipeline.batch import First, Source, SourceWithFactors
from wsca_jax import assembly, config, report
from wsca_jax.assembly import Run, Split
from wsca_jax.engine import evaluate as engine
from wsca_jax.engine import hosts
from wsca_jax.engine import state as states
from wsca_jax.engine.checkpoint import Checkpoints
from wsca_jax.engine.record import read_run_record
from wsca_jax.engine.state import TrainState
from wsca_jax.errors import WscaError
from wsca_jax.evaluations import Factors, write_evaluation
from wsca_jax.metrics import Results, compute


class Evaluator:
    """One split and the compiled function that measures a state on it.

    Attributes:
      factors: what the split's attributes should not depend on.
    """

    def __init__(self, run: Run, source: Source, state: TrainState) -> None:
        """Compiles for states like `state` (arrays or their abstract shapes)."""
        self._run = run
        self._look_at(source, hidden=False)
        variables = state.evaluation_variables
        spec = assembly.batch_spec(run.config, source.schema, run.config.evaluation.batch_size)
        step = jax.ShapeDtypeStruct((), "int32")
        self._compiled = (
            engine.compile_eval_step(run.method, run.layout, variables).lower(variables, spec, step).compile()
        )

    def on_hidden_labels(self, source: Source, images: int) -> Evaluator:
        """Another one, compiled no second time, for the first `images` images of a training split.

        Of their labels it sees those that the run's weak-label protocol hides from training: what the model
        says of them was never fitted, and is what its pseudo labels are made of.
        """
        other = copy.copy(self)
        other._look_at(First(source, min(images, len(source))), hidden=True)
        return other

    def _look_at(self, source: Source, hidden: bool) -> None:
        self._source, self._hidden = source, hidden
        factors = source.spurious_factors() if isinstance(source, SourceWithFactors) else {}
        self.factors = Factors(source.schema.attributes, factors)

    def run(self, state: TrainState) -> tuple[Results, dict[str, float]]:
        """Measures the state on the whole split.

        Returns:
          (results, {"loss/<term>": mean, "<gauge>": figure}).
        """
        return self.measure(self.predict(state))

    def predict(self, state: TrainState) -> engine.Evaluation:
        """What the state says of every example of the split."""
        return engine.run(
            self._compiled,
            state.evaluation_variables,
            assembly.eval_batches(self._run.config, self._run.text, self._source, hidden=self._hidden),
            method=self._run.method,
            layout=self._run.layout,
            step=state.updates,
        )

    def measure(self, found: engine.Evaluation) -> tuple[Results, dict[str, float]]:
        """The figures of what `predict` found, as `run` returns them."""
        losses = {f"loss/{name}": loss.mean for name, loss in found.losses.items()}
        return compute(found.predictions, self._source.schema, self.factors.factors), losses | found.gauges


@dataclasses.dataclass(frozen=True)
class Trained:
    """A run rebuilt from its workdir, with one of its checkpoints and one split of its data.

    Attributes:
      run: what its configuration describes.
      source: the split.
      state: the checkpoint's.
      step: the checkpoint's.
    """

    run: Run
    source: Source
    state: TrainState
    step: int


def load(
    workdir: Path,
    *,
    data_dir: Path | None = None,
    split: Split = "validation",
    checkpoint: Literal["latest", "best"] = "latest",
) -> Trained:
    """Rebuilds a run with nothing but what the workdir holds, and the data; arguments as for `evaluate`.

    Raises:
      WscaError, DataError: each with one line for the user.
    """
    record = read_run_record(workdir)
    settings = config.from_json(record.config, f"{workdir}/run.json", data_dir)
    with hosts.lead_first("data"):
        source = assembly.open_source(settings, split)
    hosts.check_same({"number of images": len(source), "schema": source.schema.to_json()})
    read_run_record(workdir, source.schema)
    run = assembly.build(settings, source.schema, len(source), record.words)
    spec = assembly.batch_spec(settings, source.schema, settings.train.batch_size)
    target = states.abstract(run.method, run.optimizer, spec, seed=settings.seed, layout=run.layout)
    with Checkpoints(workdir, **assembly.checkpoint_options(settings), read_only=True) as checkpoints:
        restore = checkpoints.restore_best if checkpoint == "best" else checkpoints.restore_latest
        restored = restore(target)
    if restored is None:
        raise WscaError(f"{workdir}: no checkpoint was saved yet; train the run first")
    return Trained(run, source, restored.state, restored.step)


def evaluate(
    workdir: Path,
    *,
    data_dir: Path | None = None,
    split: Split = "validation",
    checkpoint: Literal["latest", "best"] = "latest",
) -> Results:
    """Measures a checkpoint with nothing but what the workdir holds, and the data.

    Prints a table per attribute group and writes `evaluation_<split>.json` and the predictions it is of,
    `evaluation_<split>.npz` (see `wsca_jax.evaluations`), into the workdir.

    Args:
      workdir: a run's folder. It may still be training.
      data_dir: a folder of the same schema; None for the run's own data.
      split: which of its splits; the others need not exist.
      checkpoint: the newest, or the one with the best validation metric.

    Raises:
      WscaError, DataError: each with one line for the user.
    """
    trained = load(workdir, data_dir=data_dir, split=split, checkpoint=checkpoint)
    settings, source = trained.run.config, trained.source
    evaluator = Evaluator(trained.run, source, trained.state)
    found = evaluator.predict(trained.state)
    results, losses = evaluator.measure(found)
    if not hosts.is_lead():
        return results
    print(f"{workdir}, step {trained.step}, {len(source)} examples of {source.schema.name}'s {split} split")
    print(f"Truth: {source.truth}\n")
    print(report.format_results(results))
    figures = {
        "workdir": str(workdir),
        "step": trained.step,
        "split": split,
        "truth": source.truth,
        "data_dir": settings.data.dir,
        "captions": settings.evaluation.captions,
        "parameters": sum(x.size for x in jax.tree.leaves(trained.state.params)),
        "losses": losses,
        "results": results.to_json(),
    }
    path = write_evaluation(workdir, split, figures, found.predictions, evaluator.factors)
    print(f"\nAll figures: {path}")
    return results
