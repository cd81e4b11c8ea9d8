"""What can go wrong for a user, and the exit code each answers with. The command line's contract."""

from __future__ import annotations

import enum
from typing import NamedTuple


class ExitCode(enum.IntEnum):
    """Exit codes of the `wsca` command. Documented in docs/exit-codes.md; numbers never change meaning."""

    DONE = 0
    CRASH = 1  # a fault of ours: a traceback was printed
    BAD_INPUT = 2  # config, data or workdir: one line says what to do
    DIVERGED = 3  # too many non-finite steps in a row
    OUT_OF_DISK = 4  # a checkpoint or prepared data did not fit; the last good step is intact
    DAMAGED = 5  # no checkpoint of the workdir passes its checksums
    PREEMPTED = 75  # SIGTERM: saved, start again with the same command
    INTERRUPTED = 130  # Ctrl-C; the last saved checkpoint is intact


class Ending(NamedTuple):
    """How a process ends.

    Attributes:
      code: its exit code.
      line: for the user; None where a traceback has to say it.
    """

    code: ExitCode
    line: str | None


class WscaError(Exception):
    """An error with one clear line for the user: file, expected, found, what to do."""

    exit_code = ExitCode.BAD_INPUT


class DivergedError(WscaError):
    exit_code = ExitCode.DIVERGED


class OutOfDiskError(WscaError):
    exit_code = ExitCode.OUT_OF_DISK


class DamagedCheckpointError(WscaError):
    exit_code = ExitCode.DAMAGED


class Preempted(WscaError):
    """Raised after the state was saved on SIGTERM."""

    exit_code = ExitCode.PREEMPTED
