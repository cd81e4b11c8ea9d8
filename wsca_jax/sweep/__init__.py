"""Sweeps: rows of configurations, each trained with several seeds, and one table of what made a difference.

workdir/<row>/seed_<k>/           a run, as `wsca train` and `wsca evaluate` leave it
workdir/<row>/seed_<k>/log.txt    what they printed
workdir/sweep.html, .md, .json    the tables
"""

from __future__ import annotations

import contextlib
import fcntl
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from wsca_jax.engine.storage import storage_errors, write_atomically
from wsca_jax.errors import ExitCode, WscaError
from wsca_jax.sweep import tables
from wsca_jax.sweep.definition import Row, Sweep, load
from wsca_jax.sweep.page import render
from wsca_jax.sweep.pool import Failure, run_all
from wsca_jax.sweep.progress import SweepProgress
from wsca_jax.sweep.results import RowResult, gather
from wsca_jax.sweep.runs import SweepRun, chosen, plan

__all__ = ["Row", "RowResult", "Sweep", "SweepFailed", "load", "sweep", "write"]

NAME = "sweep"
LOCK_FILE = "sweep.lock"


class SweepFailed(WscaError):
    """Some runs failed, and the others were finished. The exit code is the first failure's own."""

    def __init__(self, failures: Sequence[Failure], runs: int) -> None:
        lines = "; ".join(f"{name}: {line.removeprefix('wsca: ')}" for name, _, line in failures)
        super().__init__(f"{len(failures)} of {runs} runs failed: {lines}")
        code = failures[0].code
        self.exit_code = ExitCode(code) if code in tuple(ExitCode) and code else ExitCode.CRASH


def sweep(
    spec: str, *, workdir: Path, data_dir: Path | None = None, only: Sequence[str] = (), jobs: int = 1
) -> dict[str, RowResult]:
    """Trains and evaluates every run that is not finished yet, and writes the tables.

    Args:
      spec: `FILE[:VARIANT]` of the sweep.
      workdir: the sweep's folder; made if absent. Started again, a sweep goes on from what lies there.
      data_dir: folder of the data set, for every row.
      only: rows to run; all of them where empty. The tables show every row with a finished run.
      jobs: processes at a time.

    Returns:
      {row: what was found} of the rows with at least one finished run.

    Raises:
      WscaError, DataError: one line, before anything is started, where the sweep cannot be run as it is.
      SweepFailed: some runs failed; raised after the tables were written.
      KeyboardInterrupt, Preempted: stopped; the runs were saved, and no table was written.
    """
    definition = load(spec)
    for name in only:
        definition.row(name)
    with _locked(workdir) as lock:
        runs = plan(definition, workdir, data_dir)
        asked = chosen(runs, definition, only)
        failures = _run(asked, jobs, lock)
        results = gather(definition, runs)
        write(workdir, definition, results)
    if results:
        print(tables.as_text(definition, results))
    print(f"\nTables: {workdir / NAME}.html, .md, .json")
    if failures:
        raise SweepFailed(failures, len(asked))
    return results


def _run(runs: Sequence[SweepRun], jobs: int, lock: int) -> list[Failure]:
    left = [run for run in runs if run.next_command() is not None]
    progress = SweepProgress(len(left))
    progress.note(f"{len(runs)} runs, {len(runs) - len(left)} of them finished before; {jobs} at a time")
    return run_all([run.job for run in left], jobs, progress, keep_open=[lock])


@contextlib.contextmanager
def _locked(workdir: Path) -> Iterator[int]:
    """Holds the sweep's folder for this process and those it starts, which inherit the descriptor.

    Were this process killed, its runs would go on by themselves; a second sweep must not write beside them.
    """
    with storage_errors(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        file = (workdir / LOCK_FILE).open("w")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise WscaError(
                f"{workdir}: a sweep, or a run that one started, is at work here; wait for it or end it first"
            ) from None
        yield file.fileno()


def write(workdir: Path, definition: Sweep, results: Mapping[str, RowResult]) -> None:
    """Writes sweep.json, sweep.md and sweep.html, each in one move."""
    texts = {
        "json": json.dumps(tables.as_json(definition, results), indent=2, allow_nan=False) + "\n",
        "md": tables.as_markdown(definition, results),
        "html": render(definition, results),
    }
    with storage_errors(workdir):
        for ending, text in texts.items():
            write_atomically(workdir / f"{NAME}.{ending}", text)
