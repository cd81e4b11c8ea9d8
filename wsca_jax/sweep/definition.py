"""What a sweep is: rows, each a configuration with a name, and the seeds that every row is trained with.

A sweep file is a short Python file whose `get_sweep(variant)` returns a dict; docs/sweeps.md shows one.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import runpy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wsca_jax.config import ConfigError

SWEEP_KEYS = ("base", "reference", "seeds", "rows")
ROW_KEYS = ("base", "reference", "description")  # everything else in a row is a key of the configuration
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


@dataclasses.dataclass(frozen=True)
class Row:
    """One configuration of a sweep.

    Attributes:
      name: also the name of its folder.
      base: config file and variant, as `--config` takes them.
      overrides: {"model.router": None, "loss.weights.cal": 0.0, ...}, what differs from the base.
      reference: the row that this one is compared with; its own name where it is compared with none.
      description: for the tables.
    """

    name: str
    base: str
    overrides: Mapping[str, Any]
    reference: str
    description: str = ""

    @property
    def arguments(self) -> list[str]:
        """The overrides as words of the command line."""
        return [f"--config.{key}={_as_text(value)}" for key, value in self.overrides.items()]


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Rows in the order of the file; each is trained once for every seed.

    Attributes:
      origin: the file and variant it was read from.
      rows: with distinct names; every reference is one of them.
      seeds: distinct.
    """

    origin: str
    rows: tuple[Row, ...]
    seeds: tuple[int, ...]

    def row(self, name: str) -> Row:
        """The row of this name.

        Raises:
          ConfigError: there is none; names the nearest.
        """
        for row in self.rows:
            if row.name == name:
                return row
        names = [row.name for row in self.rows]
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(names)}"
        raise ConfigError(f"{self.origin}: no row {name!r}; {hint}")

    @property
    def blocks(self) -> dict[str, list[Row]]:
        """{reference: it and the rows compared with it}: what stands in one table."""
        members: dict[str, list[Row]] = {row.reference: [self.row(row.reference)] for row in self.rows}
        for row in self.rows:
            if row.name != row.reference:
                members[row.reference].append(row)
        return members


def load(spec: str) -> Sweep:
    """Reads `FILE[:VARIANT]`. Configurations are not resolved yet.

    Raises:
      ConfigError: one line naming the file, the row and what was expected.
    """
    path, _, variant = spec.partition(":")
    return parse(_run_file(Path(path), variant), spec)


def _run_file(path: Path, variant: str) -> Any:
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.py")], n=1)
        raise ConfigError(
            f"no sweep file {path}" + (f"; did you mean {path.parent / near[0]}?" if near else "")
        )
    try:
        get_sweep = runpy.run_path(str(path)).get("get_sweep")
        if get_sweep is None:
            raise ConfigError(f"{path}: defines no get_sweep(variant) function")
        return get_sweep(variant) if variant else get_sweep()
    except ConfigError:
        raise
    except Exception as error:
        chosen = f"variant {variant!r}: " if variant else ""
        message = " ".join(str(error).split())
        raise ConfigError(f"{path}: {chosen}{type(error).__name__}: {message}") from error


def parse(found: Any, origin: str) -> Sweep:
    """Checks what a sweep file returned and makes a record of it.

    Raises:
      ConfigError: one line.
    """
    if not isinstance(found, Mapping):
        raise ConfigError(f"{origin}: get_sweep returned a {type(found).__name__}, expected a dict")
    unknown = [key for key in found if key not in SWEEP_KEYS]
    if unknown:
        raise ConfigError(f"{origin}: unknown key {unknown[0]!r}; a sweep has {', '.join(SWEEP_KEYS)}")
    rows = found.get("rows")
    if not isinstance(rows, Mapping) or not rows:
        raise ConfigError(f"{origin}: there are no rows; expected 'rows': {{name: {{key: value}}}}")
    defaults = {key: found.get(key) for key in ("base", "reference")}
    parsed = tuple(_row(name, row, defaults, origin) for name, row in rows.items())
    sweep = Sweep(origin, parsed, _seeds(found.get("seeds"), origin))
    _check_references(sweep)
    return sweep


def _row(name: Any, found: Any, defaults: Mapping[str, Any], origin: str) -> Row:
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ConfigError(
            f"{origin}: row {name!r} would not make a folder; expected letters, digits and any of . _ + -"
        )
    if not isinstance(found, Mapping):
        raise ConfigError(f"{origin}: row {name!r} is {found!r}, expected {{key: value}}, or {{}}")
    chosen = {**defaults, "description": "", **found}
    for key in ROW_KEYS:
        if not isinstance(chosen[key], str):
            raise ConfigError(
                f"{origin}: row {name!r} needs a {key!r}, its own or the sweep's; found {chosen[key]!r}"
            )
    overrides = {key: value for key, value in found.items() if key not in ROW_KEYS}
    for key, value in overrides.items():
        _check_override(key, value, f"{origin}: row {name!r}")
    return Row(name, chosen["base"], overrides, chosen["reference"], " ".join(chosen["description"].split()))


def _check_override(key: Any, value: Any, where: str) -> None:
    if key == "seed":
        raise ConfigError(f"{where} sets seed; the sweep's 'seeds' do that for every row")
    if isinstance(value, Mapping):
        raise ConfigError(f"{where}: {key} is a section; write each of its keys as '{key}.name': value")


def _seeds(found: Any, origin: str) -> tuple[int, ...]:
    good = isinstance(found, Sequence) and not isinstance(found, str) and len(found) > 0
    if not good or not all(type(seed) is int for seed in found) or len(set(found)) < len(found):
        raise ConfigError(f"{origin}: seeds is {found!r}, expected distinct whole numbers such as (0, 1, 2)")
    return tuple(found)


def _check_references(sweep: Sweep) -> None:
    names = [row.name for row in sweep.rows]
    for row in sweep.rows:
        if row.reference not in names:
            raise ConfigError(
                f"{sweep.origin}: row {row.name!r} is compared with {row.reference!r}, which is no row; "
                f"there are: {', '.join(names)}"
            )


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else repr(value)
