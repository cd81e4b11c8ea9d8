"""Evaluation: of a state during training, and of a run's checkpoint on any folder of the same schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import jax

from input_pipeline.batch import Source
from wsca_jax import assembly, config, report
from wsca_jax.assembly import Run, Split
from wsca_jax.engine import evaluate as engine
from wsca_jax.engine import state as states
from wsca_jax.engine.checkpoint import Checkpoints
from wsca_jax.engine.record import read_run_record
from wsca_jax.engine.state import TrainState
from wsca_jax.errors import WscaError
from wsca_jax.metrics import Results, compute


class Evaluator:
    """One split and the compiled function that measures a state on it."""

    def __init__(self, run: Run, source: Source, state: TrainState) -> None:
        """Compiles for states like `state` (arrays or their abstract shapes)."""
        self._run, self._source = run, source
        variables = state.evaluation_variables
        spec = assembly.batch_spec(run.config, source.schema, run.config.evaluation.batch_size)
        step = jax.ShapeDtypeStruct((), "int32")
        self._compiled = (
            engine.compile_eval_step(run.method, run.layout, variables).lower(variables, spec, step).compile()
        )

    def run(self, state: TrainState) -> tuple[Results, dict[str, float]]:
        """Measures the state on the whole split.

        Returns:
          (results, {"loss/<term>": mean, "<gauge>": figure}).
        """
        found = engine.run(
            self._compiled,
            state.evaluation_variables,
            assembly.eval_batches(self._run.config, self._source),
            method=self._run.method,
            layout=self._run.layout,
            step=state.updates,
        )
        losses = {f"loss/{name}": loss.mean for name, loss in found.losses.items()}
        return compute(found.predictions, self._source.schema), losses | found.gauges


def evaluate(
    workdir: Path,
    *,
    data_dir: Path | None = None,
    split: Split = "validation",
    checkpoint: Literal["latest", "best"] = "latest",
) -> Results:
    """Measures a checkpoint with nothing but what the workdir holds, and the data.

    Prints a table per attribute group and writes `evaluation_<split>.json` into the workdir.

    Args:
      workdir: a run's folder. It may still be training.
      data_dir: a folder of the same schema; None for the run's own data.
      split: which of its splits; the others need not exist.
      checkpoint: the newest, or the one with the best validation metric.

    Raises:
      WscaError, DataError: each with one line for the user.
    """
    record = read_run_record(workdir)
    settings = config.from_json(record.config, f"{workdir}/run.json", data_dir)
    source = assembly.open_source(settings, split)
    read_run_record(workdir, source.schema)
    run = assembly.build(settings, source.schema, len(source))
    spec = assembly.batch_spec(settings, source.schema, settings.train.batch_size)
    target = states.abstract(run.method, run.optimizer, spec, seed=settings.seed, layout=run.layout)
    with Checkpoints(workdir, **assembly.checkpoint_options(settings), read_only=True) as checkpoints:
        restore = checkpoints.restore_best if checkpoint == "best" else checkpoints.restore_latest
        restored = restore(target)
    if restored is None:
        raise WscaError(f"{workdir}: no checkpoint was saved yet; train the run first")
    results, losses = Evaluator(run, source, restored.state).run(restored.state)
    print(
        f"{workdir}, step {restored.step}, {len(source)} examples of {source.schema.name}'s {split} split\n"
    )
    print(report.format_groups(results))
    path = workdir / f"evaluation_{split}.json"
    path.write_text(
        json.dumps(
            {
                "workdir": str(workdir),
                "step": restored.step,
                "split": split,
                "data_dir": settings.data.dir,
                "losses": losses,
                "results": results.to_json(),
            },
            indent=2,
        )
        + "\n"
    )
    print(f"\nAll figures: {path}")
    return results
