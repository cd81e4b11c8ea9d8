"""What each module and loss costs in a training step: time, multiply-adds and memory, in turn."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from wsca_jax.bench.prepared import prepare
from wsca_jax.bench.turns import Clock, Seconds, median, ratio, take_turns
from wsca_jax.bench.variants import BASELINE, FULL, LIGHT, ROWS, Request, configure
from wsca_jax.errors import WscaError
from wsca_jax.inspection.text import format_bytes
from wsca_jax.report.tables import format_table

HEADER = ("row", "ms / step", "ratio", "multiply-adds", "ratio", "memory", "ratio")
NOTE = """\
Each row is the configuration with other modules; those that it leaves out come in their default size. "alone"
is without CMDL and CAL. Multiply-adds are of one image's forward pass, memory is what the compiler planned
for each device. Ratios are to the baseline."""


class Cost(Protocol):
    """What a compiled row is known to cost: multiply-adds of one image's forward pass, bytes on a device."""

    multiply_adds: int
    bytes: int


class Modules(NamedTuple):
    """Rows that took turns.

    Attributes:
      costs: {row: what it costs}.
      seconds: of turns of `steps` steps.
      steps: in a turn.
    """

    costs: Mapping[str, Cost]
    seconds: Seconds
    steps: int


def check(rows: Sequence[str]) -> None:
    """Raises WscaError for a row that there is not."""
    unknown = [name for name in rows if name not in ROWS]
    if unknown:
        raise WscaError(f"--modules: there is no row {unknown[0]!r}; choose from {', '.join(ROWS)}")


def measure(request: Request, rows: Sequence[str], steps: int, rounds: int) -> Modules:
    """Compiles rows, the baseline first, and has them take turns.

    Args:
      request: the configuration.
      rows: names in `variants.ROWS`; none stands for all.
      steps: in a turn.
      rounds: turns of each.

    Raises:
      WscaError: there is no such row, or the configuration cannot be run.
    """
    check(rows)
    names = list(dict.fromkeys([BASELINE, *(rows or ROWS)]))
    prepared = {}
    for number, name in enumerate(names, 1):
        print(f"compiling {number} of {len(names)}: {name}", file=sys.stderr, flush=True)
        prepared[name] = prepare(configure(request, ROWS[name]))
    seconds = take_turns({name: row.taking(steps) for name, row in prepared.items()}, rounds)
    return Modules(prepared, seconds, steps)


def format_modules(modules: Modules, clock: Clock = "wall") -> str:
    """A table with a line for each row, its ratios to the baseline, and what the last three losses cost."""
    parts = [f"Modules, {clock} time\n\n{_table(modules, clock)}", NOTE]
    if {LIGHT, FULL} <= modules.seconds.keys():
        share = 100 * (1 - ratio(modules.seconds, LIGHT, FULL, clock))
        parts.append(f"CMDL, CAL and dynamic weights cost {share:.1f} % of a step of {FULL!r}.")
    return "\n\n".join(parts)


def _table(modules: Modules, clock: Clock) -> str:
    base = modules.costs[BASELINE]
    rows = [
        (
            name,
            f"{1e3 * median(modules.seconds, name, clock) / modules.steps:.1f}",
            f"{ratio(modules.seconds, name, BASELINE, clock):.3f}",
            f"{row.multiply_adds / 1e6:,.0f} M",
            f"{row.multiply_adds / base.multiply_adds:.2f}",
            format_bytes(row.bytes),
            f"{row.bytes / base.bytes:.2f}",
        )
        for name, row in modules.costs.items()
    ]
    return format_table(HEADER, rows)


def to_json(modules: Modules) -> dict[str, object]:
    """{row: multiply-adds, bytes, seconds of its turns}."""
    return {
        name: {
            "multiply_adds": row.multiply_adds,
            "bytes": row.bytes,
            "seconds": modules.seconds[name],
            "steps": modules.steps,
        }
        for name, row in modules.costs.items()
    }
