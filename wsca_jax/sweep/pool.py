"""Processes side by side: each job is a chain of commands, every next one read off the disk.

Each process has its own share of the cores: processes that all compute with a thread for every core wait for
each other's threads.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from input_pipeline.cores import core_shares
from wsca_jax.engine.storage import storage_errors
from wsca_jax.errors import Preempted
from wsca_jax.preemption import Preemption
from wsca_jax.sweep.progress import SweepProgress, last_line

POLL_SECONDS = 0.1


class Job(NamedTuple):
    """Commands to run one after the other.

    Attributes:
      name: for people.
      log: file that gets what the commands print, after what is there; its folder is made if absent.
      next_command: looks at the disk and says what to run next; None where nothing is left.
    """

    name: str
    log: Path
    next_command: Callable[[], list[str] | None]


class Failure(NamedTuple):
    """A job that could not be finished: its exit code, and the last line it printed."""

    name: str
    code: int
    line: str


class _Running(NamedTuple):
    job: Job
    command: list[str]
    process: subprocess.Popen[bytes]
    share: frozenset[int]


def run_all(
    jobs: Iterable[Job], at_once: int, progress: SweepProgress, keep_open: Sequence[int] = ()
) -> list[Failure]:
    """Takes every job to its end; one that fails does not stop the others.

    Args:
      jobs: in the order in which to begin them.
      at_once: how many processes may run at a time.
      progress: is told what begins and ends.
      keep_open: file descriptors that every process inherits.

    Returns:
      The jobs that failed, in the order in which they did.

    Raises:
      KeyboardInterrupt, Preempted: Ctrl-C or SIGTERM came. Every process was asked to save, and has ended.
    """
    waiting, running, failures = deque(jobs), list[_Running](), list[Failure]()
    free = core_shares(min(at_once, len(waiting))) or [frozenset[int]()] * at_once
    with Preemption() as preemption:
        try:
            while waiting or running:
                while waiting and len(running) < at_once:
                    if begun := _begin(waiting.popleft(), free[-1], progress, keep_open):
                        running.append(begun)
                        free.pop()
                for done in [one for one in running if one.process.poll() is not None]:
                    running.remove(done)
                    free.append(done.share)
                    _finish(done, waiting, failures, progress)
                if preemption.requested:
                    raise Preempted("SIGTERM: the runs were saved; the same command goes on from there")
                progress.tick([(one.job.name, one.job.log) for one in running])
                time.sleep(POLL_SECONDS if running else 0)
        finally:
            _stop([one.process for one in running], progress)
    return failures


def _begin(
    job: Job, share: frozenset[int], progress: SweepProgress, keep_open: Sequence[int]
) -> _Running | None:
    """Starts the next command on this share of the cores, any where it is empty; None where none is left."""
    command = job.next_command()
    if command is None:
        progress.finished(job.name)
        return None
    progress.began(job.name)
    with storage_errors(job.log.parent):
        job.log.parent.mkdir(parents=True, exist_ok=True)
        with job.log.open("ab") as log, _on_cores(share):
            # A session of its own: Ctrl-C reaches this process alone, which then asks the others to save.
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=tuple(keep_open),
            )
    return _Running(job, command, process, share)


@contextlib.contextmanager
def _on_cores(share: frozenset[int]) -> Iterator[None]:
    """A process that is started inside has these cores from its first moment; any, where `share` is empty.

    It has those of the thread that starts it, and so have its own threads.
    """
    if not share:
        yield
        return
    mine = os.sched_getaffinity(0)
    os.sched_setaffinity(0, share)
    try:
        yield
    finally:
        os.sched_setaffinity(0, mine)


def _finish(done: _Running, waiting: deque[Job], failures: list[Failure], progress: SweepProgress) -> None:
    job, code = done.job, done.process.returncode
    if code == 0 and job.next_command() != done.command:
        waiting.appendleft(job)
        return
    # A command that says it is done and is needed again would be started for ever.
    line = last_line(job.log) if code else f"it ended without an error, and is not done; see {job.log}"
    failures.append(Failure(job.name, code, line))
    progress.failed(job.name, line)


def _stop(processes: Sequence[subprocess.Popen[bytes]], progress: SweepProgress) -> None:
    """Asks processes to save and leave, and waits for them; Ctrl-C once more ends them at once."""
    alive = [process for process in processes if process.poll() is None]
    if alive:
        progress.note(f"stopping {len(alive)} running: each saves first; Ctrl-C once more does not wait")
    try:
        for process in alive:
            process.terminate()
        for process in alive:
            process.wait()
    except KeyboardInterrupt:
        for process in alive:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        raise
