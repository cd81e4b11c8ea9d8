"""What a run writes while it goes: `metrics.jsonl`, TensorBoard files, and a progress bar on stderr.

A row of `metrics.jsonl` is one JSON object:

    {"step": 50, "kind": "train", "values": {"loss": 0.69, ...}, "time": {"images_per_second": 812.0, ...}}

`values` depends on configuration and data alone: a run that was killed and resumed writes the same bits.
Everything the clock decides stands under `time`. Floats are written in full; those JSON has no word for are
the strings "nan", "inf" and "-inf", which Python's `float` reads.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from tqdm import tqdm

from wsca_jax.errors import WscaError
from wsca_jax.tensorboard import EventFile

METRICS_FILE = "metrics.jsonl"
TENSORBOARD_FOLDER = "tensorboard"


class Row(NamedTuple):
    """One line of `metrics.jsonl`.

    Attributes:
      step: optimiser steps done.
      kind: "train", "validation", ...
      values: scalars by name; the same in every run of one configuration.
      time: scalars that the clock decides.
    """

    step: int
    kind: str
    values: Mapping[str, float]
    time: Mapping[str, float] = {}


class RunWriter:
    """Appends rows to a run's logs.

    Opening it cuts the logs back to `step`: what an interrupted run wrote after its last checkpoint goes, so
    that logs of the resumed run equal an uninterrupted one's. TensorBoard is told to drop the same steps.
    """

    def __init__(self, workdir: Path, step: int = 0, *, active: bool = True) -> None:
        """Opens the logs for a run that continues after `step` (0: begins).

        Args:
          workdir: the run's folder, which exists.
          step: rows of later steps are dropped.
          active: False on every process but the first: nothing is read or written.

        Raises:
          WscaError: a line of the log is not a row.
        """
        self._file: TextIO | None = None
        if not active:
            return
        path = workdir / METRICS_FILE
        cut_back(path, step)
        self._file = path.open("a", encoding="utf-8")
        self._events = EventFile(workdir / TENSORBOARD_FOLDER, step)

    def write(
        self, step: int, kind: str, values: Mapping[str, Any], time: Mapping[str, Any] | None = None
    ) -> None:
        """Writes one row, as a whole line that is out of this process when the call returns.

        Args:
          step: optimiser steps done.
          kind: "train", "validation", ...; the first part of TensorBoard's tags.
          values: scalars, also of NumPy or JAX.
          time: scalars that the clock decides.
        """
        if self._file is None:
            return
        row = Row(step, kind, _floats(values), _floats(time or {}))
        self._file.write(format_row(row) + "\n")
        self._file.flush()
        scalars = {**row.values, **{f"time/{name}": value for name, value in row.time.items()}}
        self._events.write(step, {f"{kind}/{tag}": value for tag, value in scalars.items()})

    def flush(self) -> None:
        """Brings every row onto the disk; call it before a checkpoint that must not outlive its logs."""
        if self._file is not None:
            os.fsync(self._file.fileno())
            self._events.flush()

    def close(self) -> None:
        if self._file is not None:
            self.flush()
            self._file.close()
            self._events.close()
            self._file = None

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _floats(values: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items()}


def format_row(row: Row) -> str:
    record = {
        "step": row.step,
        "kind": row.kind,
        "values": {k: encode(v) for k, v in row.values.items()},
    }
    if row.time:
        record["time"] = {k: encode(v) for k, v in row.time.items()}
    return json.dumps(record, allow_nan=False)


def encode(value: float) -> float | str:
    """A float as JSON can hold it: in full, or "nan", "inf", "-inf"."""
    return value if math.isfinite(value) else str(value)


def read_rows(path: Path) -> list[Row]:
    """Every row of a log; [] where there is none.

    A last line without its end is what a killed process leaves behind, and is left out.

    Raises:
      WscaError: any other line is not a row.
    """
    return [_parse(line, f"{path}, line {number}") for number, line in enumerate(whole_lines(path), 1)]


def whole_lines(path: Path) -> list[str]:
    """The lines of a file that grows by whole lines, without a torn last one; [] where there is no file."""
    if not path.exists():
        return []
    return path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]


def _parse(line: str, where: str) -> Row:
    try:
        record = json.loads(line)
        return Row(
            int(record["step"]), record["kind"], _floats(record["values"]), _floats(record.get("time", {}))
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WscaError(
            f"{where}: expected a row of a training log, found {line[:60]!r}; "
            "restore the file or move it away, and start again"
        ) from error


def cut_back(path: Path, step: int) -> None:
    """Drops a log's rows of later steps and a torn last line; the file is replaced in one move."""
    if not path.exists():
        return
    kept = [row for row in read_rows(path) if row.step <= step]
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        file.writelines(format_row(row) + "\n" for row in kept)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


class Progress:
    """How far a run is: a bar where stderr is a terminal, else a line now and then.

    The rate is of the last seconds, without pauses; the time left counts them at their share so far.
    """

    def __init__(
        self,
        *,
        total: int,
        start: int = 0,
        steps_per_epoch: float = 0.0,
        stream: TextIO | None = None,
        active: bool = True,
        line_every: float = 15.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begins to show progress.

        Args:
          total: steps of the whole run.
          start: steps done before.
          steps_per_epoch: for naming the epoch; 0 leaves it out.
          stream: stderr by default.
          active: False on every process but the first: shows nothing.
          line_every: seconds between lines where `stream` is no terminal.
          clock: seconds, for tests.
        """
        self._total, self._step, self._steps_per_epoch = total, start, steps_per_epoch
        self._stream = sys.stderr if stream is None else stream
        self._active, self._line_every, self._clock = active, line_every, clock
        self._first: tuple[float, int] | None = None
        self._recent: deque[tuple[float, float]] = deque(maxlen=50)
        self._images, self._last_line, self._data_wait = 0.0, -math.inf, math.nan
        self._bar = self._make_bar() if active and self._stream.isatty() else None

    def _make_bar(self) -> tqdm:
        return tqdm(
            total=self._total,
            initial=self._step,
            file=self._stream,
            dynamic_ncols=True,
            leave=False,
            miniters=1,
            bar_format="{desc} {bar} {percentage:3.0f} %{postfix}",
            desc=self._epoch() or "training",
        )

    def advance(self, step: int, images: float, loss: float, data_wait: float = math.nan) -> None:
        """Shows that `step` is done.

        Args:
          step: optimiser steps done.
          images: how many this step saw.
          loss: its loss.
          data_wait: share of step time that went into waiting for data lately; NaN shows nothing.
        """
        now, self._data_wait = self._clock(), data_wait
        self._first = self._first or (now, step)
        self._images += images
        self._recent.append((now, self._images))
        self._step = step
        if not self._active:
            return
        if self._bar is not None:
            self._bar.set_description_str(self._epoch() or "training", refresh=False)
            self._bar.set_postfix_str(", ".join(self._figures(loss)), refresh=False)
            self._bar.update(step - self._bar.n)
            if step == self._total:
                self._bar.refresh()
        elif now - self._last_line >= self._line_every or step == self._total:
            self._last_line = now
            self.note(", ".join(filter(None, [self._position(), self._epoch(), *self._figures(loss)])))

    @property
    def images_per_second(self) -> float:
        """Of the last steps, pauses left out; NaN before there are two."""
        if len(self._recent) < 2:
            return math.nan
        (begin, before), (end, after) = self._recent[0], self._recent[-1]
        return (after - before) / (end - begin) if end > begin else math.nan

    @property
    def seconds_left(self) -> float:
        """At the speed since the first step of this process; NaN before there is a second one."""
        if self._first is None or self._step == self._first[1]:
            return math.nan
        begun, first = self._first
        return (self._clock() - begun) / (self._step - first) * (self._total - self._step)

    @contextlib.contextmanager
    def paused(self, doing: str) -> Iterator[None]:
        """Says what is done instead of training ("evaluating"), and keeps its time out of the rate."""
        if self._bar is not None:
            self._bar.set_postfix_str(doing)
        try:
            yield
        finally:
            self._recent.clear()

    def note(self, text: str) -> None:
        """Prints text that stays, above the bar."""
        if not self._active:
            return
        if self._bar is not None:
            self._bar.write(text, file=self._stream)
        else:
            print(text, file=self._stream, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _position(self) -> str:
        return f"step {self._step}/{self._total}"

    def _epoch(self) -> str:
        if not self._steps_per_epoch:
            return ""
        # A run of whole epochs is rounded to steps, by half a step at most.
        last = max(1, math.ceil((self._total - 0.5) / self._steps_per_epoch))
        now = min(last, int((self._step - 1) / self._steps_per_epoch) + 1) if self._step else 1
        return f"epoch {now}/{last}"

    def _figures(self, loss: float) -> list[str]:
        rate, left = self.images_per_second, self.seconds_left
        figures = [f"loss {loss:.4f}"]
        if not math.isnan(rate):
            figures.append(f"{rate:,.0f} images/s")
        if not math.isnan(self._data_wait):
            figures.append(f"{format_share(self._data_wait)} data wait")
        if not math.isnan(left) and self._step < self._total:
            figures.append(f"{format_seconds(left)} left")
        return figures


def format_share(share: float) -> str:
    """ "1.5 %"."""
    return f"{100 * share:.1f} %"


def format_seconds(seconds: float) -> str:
    """ "8 s", "3 min 05 s", "2 h 14 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
