"""The runs of a sweep: a row with a seed, in its own folder, and how far it is by what lies on the disk."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from wsca_jax import assembly, evaluations
from wsca_jax import config as configs
from wsca_jax.assembly import Split
from wsca_jax.config import ConfigError
from wsca_jax.engine import manifest
from wsca_jax.engine.checkpoint import Checkpoints
from wsca_jax.engine.record import has_run_record, read_run_record, write_run_record
from wsca_jax.errors import WscaError
from wsca_jax.sweep.definition import Row, Sweep
from wsca_jax.sweep.pool import Job

SPLIT: Split = "validation"
LOG_FILE = "log.txt"


@dataclasses.dataclass(frozen=True)
class SweepRun:
    """One training run of a sweep.

    Attributes:
      row, seed: what it is.
      config: the whole configuration, resolved.
      steps: of its schedule; the run is trained where a checkpoint of this step is whole.
      workdir: `<sweep's workdir>/<row>/seed_<seed>`.
      data_dir: as the sweep was given it.
    """

    row: Row
    seed: int
    config: ConfigDict
    steps: int
    workdir: Path
    data_dir: Path | None

    @property
    def name(self) -> str:
        return f"{self.row.name}/seed_{self.seed}"

    @property
    def job(self) -> Job:
        return Job(self.name, self.workdir / LOG_FILE, self.next_command)

    def next_command(self) -> list[str] | None:
        """What is left to do first, by what is on the disk; None where the run is trained and evaluated."""
        if not self.is_trained():
            return self.train_command()
        if self.figures() is None:
            self._keep_record()
            return _wsca("evaluate", "--workdir", str(self.workdir), "--split", SPLIT)
        return None

    def train_command(self) -> list[str]:
        folder = [] if self.data_dir is None else ["--data_dir", str(self.data_dir)]
        where = ["--config", self.row.base, *folder, "--workdir", str(self.workdir)]
        return _wsca("train", *where, *self.row.arguments, f"--config.seed={self.seed}")

    def is_trained(self) -> bool:
        """Whether the last step's checkpoint is there and is what was written."""
        with Checkpoints(self.workdir, read_only=True) as checkpoints:
            saved = self.steps in checkpoints.steps()
        return saved and manifest.damage(self.workdir / "checkpoints" / str(self.steps)) is None

    def figures(self) -> dict[str, Any] | None:
        """What `wsca evaluate` wrote about the last step, on this run's data; None where it did not yet."""
        found = evaluations.read_figures(self.workdir, SPLIT)
        expected = {
            "step": self.steps,
            "data_dir": self.config.data.dir,
            "captions": self.config.evaluation.captions,
        }
        if found is None or any(found.get(key) != value for key, value in expected.items()):
            return None
        return found

    def check_record(self) -> None:
        """Raises WscaError where the folder holds a run of another configuration; names the keys."""
        if not has_run_record(self.workdir):
            return
        changes = configs.difference(self._stored(), self.config)
        if changes:
            raise WscaError(
                f"{self.workdir}: its run began with another configuration than the sweep file now gives "
                f"({'; '.join(changes)}); mend the file, move this folder away, or choose another --workdir"
            )

    def _keep_record(self) -> None:
        """Takes over what may change in a finished run, such as its data's folder, as resuming it would."""
        if configs.flat(self._stored()) != configs.flat(self.config):
            record = read_run_record(self.workdir)
            write_run_record(self.workdir, configs.to_json(self.config), record.schema, record.words)

    def _stored(self) -> ConfigDict:
        return configs.from_json(read_run_record(self.workdir).config, f"{self.workdir}/run.json")


def _wsca(*words: str) -> list[str]:
    return [sys.executable, "-m", "wsca_jax.cli", *words]


def plan(sweep: Sweep, workdir: Path, data_dir: Path | None = None) -> tuple[SweepRun, ...]:
    """Resolves every run of a sweep, so that what is wrong shows before anything is trained.

    Opens the data and builds each row's model, but leaves the accelerator to the runs.

    Args:
      sweep: from `definition.load`.
      workdir: the sweep's folder; runs of an earlier start are held against their configuration here.
      data_dir: folder of the data set, for every row.

    Raises:
      WscaError, DataError: one line that names the row.
    """
    lengths: dict[str, int] = {}
    return tuple(
        _plan_run(sweep, row, seed, workdir, data_dir, lengths) for row in sweep.rows for seed in sweep.seeds
    )


def _plan_run(
    sweep: Sweep, row: Row, seed: int, workdir: Path, data_dir: Path | None, lengths: dict[str, int]
) -> SweepRun:
    try:
        config = configs.load(row.base, [*row.arguments, f"--config.seed={seed}"], data_dir)
        assembly.build_method(config, assembly.data_schema(config))
        steps = assembly.make_schedule(config, _training_examples(config, lengths)).total
    except WscaError as error:
        raise ConfigError(f"{sweep.origin}: row {row.name!r}: {error}") from error
    run = SweepRun(row, seed, config, steps, workdir / row.name / f"seed_{seed}", data_dir)
    run.check_record()
    return run


def _training_examples(config: ConfigDict, lengths: dict[str, int]) -> int:
    """How many there are; `lengths` remembers, because opening a data set takes a while."""
    data = config.data
    key = json.dumps([data.name, data.dir, data.options.to_dict()], sort_keys=True)
    if key not in lengths:
        assembly.open_source(config, SPLIT)
        lengths[key] = len(assembly.open_source(config, "train"))
    return lengths[key]


def chosen(runs: Iterable[SweepRun], sweep: Sweep, only: Sequence[str]) -> list[SweepRun]:
    """The runs of these rows; of all rows where none is named.

    In the order to make them: each row with the first seed, then with the next, so that rows can be compared
    long before a sweep is through.

    Raises:
      ConfigError: a name is no row's.
    """
    names = [sweep.row(name).name for name in only]
    found = [run for run in runs if not names or run.row.name in names]
    return sorted(found, key=lambda run: sweep.seeds.index(run.seed))
