"""Goodput: which share of a run's wall time went into steps that its final state is made of.

`workdir`/lives.jsonl says where the time of each process that trained the run went. A process is one life
of the run; it appends what it has spent: before its first step, after every save, now and then, at its end.

    {"life": 2, "began": 1764150000.0, "first_step": 6, "step": 9, "event": "saved", "seconds": {"step": 8.1}}

A killed process leaves its last line. Where the next one went on says what of that life the run still has:
what was spent up to the save that was restored. What each figure means: docs/reliability.md, "Goodput".
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self, TextIO

from wsca_jax.engine.storage import write_atomically
from wsca_jax.errors import WscaError
from wsca_jax.timing import STARTING, Stopwatch
from wsca_jax.writers import format_seconds, format_share, whole_lines

LEDGER_FILE = "lives.jsonl"
BEGUN, RUNNING, SAVED, ENDED = "begun", "running", "saved", "ended"

# Of a life, so that weeks fit into a thousand lines; and in seconds, for its beginning.
_LINE_EVERY_SHARE, _LINE_EVERY = 0.01, 1.0

# The parts that a run's wall time is split into, each with the life's own parts that it is made of.
PARTS = {
    "productive": ("step",),
    "compile": ("compile",),
    "data": ("data_wait",),
    "checkpoint": ("checkpoint",),
    "evaluation": ("evaluation",),
    "start": ("imports", "open", "state"),
    "other": ("other",),
}
LOST = "lost"


class Entry(NamedTuple):
    """One line of the ledger: what a life had spent when it was written.

    Attributes:
      life: counted from 1.
      began: when its process began, in seconds since 1970.
      first_step: it went on after this one; 0 where it began the run.
      step: the last one that was done and looked at.
      event: why the line was written: "begun", "running", "saved" (that step, just now), "ended" (in order).
      seconds: {part: seconds so far}; they sum to the life's wall time so far.
    """

    life: int
    began: float
    first_step: int
    step: int
    event: str
    seconds: Mapping[str, float]

    @property
    def written(self) -> float:
        """Seconds since 1970."""
        return self.began + sum(self.seconds.values())


class Ledger:
    """Writes one life's lines. A context manager; leaving it writes the last one, whatever the reason."""

    def __init__(self, workdir: Path, first_step: int, clock: Stopwatch, *, active: bool = True) -> None:
        """Begins a life.

        Args:
          workdir: the run's folder, which exists.
          first_step: that it goes on after.
          clock: measures this life from its process's beginning.
          active: False on every process but the first: nothing is read or written.

        Raises:
          WscaError: a line of the ledger is none.
        """
        self._first, self._step, self._clock = first_step, first_step, clock
        self._began = time.time() - clock.total
        self._file: TextIO | None = None
        self._due = 0.0
        if active:
            before = read_ledger(workdir)
            self._life = before[-1].life + 1 if before else 1
            self._file = _open(workdir / LEDGER_FILE)
            self._write(BEGUN)

    def looked_at(self, step: int) -> None:
        """A step is done; writes a line where the last one is old."""
        self._step = step
        if self._clock.total >= self._due:
            self._write(RUNNING)

    def saved(self) -> None:
        """The last step that was looked at was handed over to be saved; the line is on the disk on return."""
        self._write(SAVED)
        if self._file is not None:
            os.fsync(self._file.fileno())

    def _write(self, event: str) -> None:
        if self._file is None:
            return
        entry = Entry(self._life, self._began, self._first, self._step, event, self._clock.split())
        self._file.write(json.dumps(entry._asdict()) + "\n")
        self._file.flush()
        total = self._clock.total
        self._due = total + max(_LINE_EVERY, _LINE_EVERY_SHARE * total)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._write(ENDED)
            self._file.close()
            self._file = None


def _open(path: Path) -> TextIO:
    """Opens a ledger for more lines, without a last one that is torn."""
    if path.exists() and not path.read_bytes().endswith(b"\n"):
        write_atomically(path, "".join(line + "\n" for line in whole_lines(path)))
    return path.open("a", encoding="utf-8")


def read_ledger(workdir: Path) -> list[Entry]:
    """Every whole line of a run's ledger; [] where there is none.

    Raises:
      WscaError: a line is no entry of a ledger.
    """
    path = workdir / LEDGER_FILE
    return [_parse(line, f"{path}, line {number}") for number, line in enumerate(whole_lines(path), 1)]


def _parse(line: str, where: str) -> Entry:
    try:
        entry = Entry(**json.loads(line))
        seconds = {name: float(value) for name, value in entry.seconds.items()}
        return Entry(
            int(entry.life), float(entry.began), int(entry.first_step), int(entry.step), entry.event, seconds
        )
    except (ValueError, TypeError, AttributeError) as error:
        raise WscaError(
            f"{where}: expected what a process spent on this run, found {line[:60]!r}; "
            "restore the file or move it away, and start again"
        ) from error


@dataclasses.dataclass(frozen=True)
class Goodput:
    """Where the wall time of a run went, over all its lives.

    Attributes:
      seconds: {part: seconds}, the keys of PARTS and "lost"; they sum to `wall`.
      lives: how many processes worked on the run.
      kept_steps: that the final state is made of.
      lost_steps: that were trained and, because they were not saved, done again. At least: of what a killed
        life did after its last line nothing is known.
      redone_seconds: of "lost": all that a life spent after the save from which the next one went on.
      restart_seconds: of "lost": imports, opening, restoring and compiling of every life but one.
      unrecorded_seconds: at most so long did killed lives live after their last lines; no part of `wall`.
      between_seconds: from the end of a life that ended in order to the next one's beginning.
    """

    seconds: Mapping[str, float]
    lives: int
    kept_steps: int
    lost_steps: int
    redone_seconds: float
    restart_seconds: float
    unrecorded_seconds: float
    between_seconds: float

    @property
    def wall(self) -> float:
        """Seconds that the run's processes are known to have lived, one after the other."""
        return sum(self.seconds.values())

    @property
    def share(self) -> float:
        """The goodput, in [0, 1]."""
        return self.part_share("productive")

    def part_share(self, part: str) -> float:
        """Of the wall time, in [0, 1]."""
        return self.seconds[part] / self.wall if self.wall else 0.0

    def to_json(self) -> dict[str, Any]:
        return {"goodput": self.share, "wall_seconds": self.wall, **dataclasses.asdict(self)}


def account(entries: Sequence[Entry]) -> Goodput:
    """Adds up a ledger with at least one line; its last life, which nothing has followed, counts whole."""
    lives = [list(lines) for _, lines in itertools.groupby(entries, key=lambda entry: entry.life)]
    firsts = [lines[0].first_step for lines in lives]
    # Of lives before the one that last began where the run begins, nothing is left.
    beginning = max(number for number, first in enumerate(firsts) if first == min(firsts))
    until = [min(firsts[number + 1 :], default=None) for number in range(len(lives))]
    held = [_held(lines, step) for lines, step in zip(lives, until, strict=True)]
    spent = [lines[-1].seconds for lines in lives]
    kept = [
        entry.seconds if number == beginning else _without_start(entry.seconds)
        for number, entry in enumerate(held)
    ]
    parts = {part: sum(_sum(seconds, names) for seconds in kept) for part, names in PARTS.items()}
    restart = sum(_sum(seconds, STARTING) for number, seconds in enumerate(spent) if number != beginning)
    lost = sum(sum(seconds.values()) for seconds in spent) - sum(parts.values())
    return Goodput(
        seconds=parts | {LOST: lost},
        lives=len(lives),
        kept_steps=sum(entry.step - entry.first_step for entry in held),
        lost_steps=sum(lines[-1].step - entry.step for lines, entry in zip(lives, held, strict=True)),
        redone_seconds=lost - restart,
        restart_seconds=restart,
        unrecorded_seconds=_gaps(lives, after_order=False),
        between_seconds=_gaps(lives, after_order=True),
    )


def _held(lines: Sequence[Entry], until: int | None) -> Entry:
    """What a life had spent when it had done what the run still has of it; nothing, where it has nothing.

    Args:
      lines: the life's.
      until: the earliest step after which a later life went on; None where none did.
    """
    first, last = lines[0], lines[-1]
    if until is None or (last.event == ENDED and last.step == until):
        return last
    if until <= first.first_step:
        return first._replace(step=first.first_step, seconds={})
    saves = [line for line in lines if line.event == SAVED and line.step == until]
    # A process may die between a save and its line: what it did since the line before then counts as lost.
    return saves[0] if saves else [line for line in lines if line.step <= until][-1]


def _without_start(seconds: Mapping[str, float]) -> dict[str, float]:
    return {part: value for part, value in seconds.items() if part not in STARTING}


def _sum(seconds: Mapping[str, float], parts: Sequence[str]) -> float:
    return sum(seconds.get(part, 0.0) for part in parts)


def _gaps(lives: Sequence[Sequence[Entry]], *, after_order: bool) -> float:
    """Seconds from a life's last line to the next one's beginning, after lives that ended (not) in order."""
    return sum(
        max(0.0, after[0].began - before[-1].written)
        for before, after in itertools.pairwise(lives)
        if (before[-1].event == ENDED) == after_order
    )


def format_goodput(found: Goodput) -> str:
    """One line for the terminal, and one more where lives were lost."""
    parts = ", ".join(f"{part} {format_share(found.part_share(part))}" for part in found.seconds)
    line = f"Goodput: {format_share(found.share)} of {format_seconds(found.wall)} ({parts})"
    return f"{line}\n{format_lives(found)}" if found.lives > 1 else line


def format_lives(found: Goodput) -> str:
    """What interruptions cost, in one line."""
    return (
        f"{found.lives} lives: {found.lost_steps:,} steps lost, {format_seconds(found.redone_seconds)}; "
        f"starting again {format_seconds(found.restart_seconds)}; besides, killed processes lived at most "
        f"{format_seconds(found.unrecorded_seconds)} after what they last wrote"
    )
