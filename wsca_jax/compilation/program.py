"""The text of a compiled program: from the compiler itself or, where it wrote none, from jax."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import jax

# What libtpu calls the program that it generates code for.
WRITTEN = "*.after_optimizations.txt"


class Unreadable(NamedTuple):
    """A program that compiled and whose text nobody gives.

    Attributes:
      reason: one line.
    """

    reason: str


def written_to(folder: Path) -> dict[str, str | bool]:
    """Compiler options that have a TPU's compiler write its programs to a folder."""
    return {"xla_dump_to": str(folder), "xla_dump_hlo_as_text": True}


def program_text(compiled: jax.stages.Compiled, folder: Path) -> str | Unreadable:
    """The optimised program.

    For its text, jax would read a TPU's program back from a protocol buffer. Its own copy of XLA may be
    another version than the compiler's and refuse what that one made: so the compiler's text comes first.

    Args:
      compiled: by `compile_or_shortage`.
      folder: where the compiler was told to write its program, or an empty one.
    """
    written = list(folder.glob(WRITTEN))
    if len(written) == 1:
        return written[0].read_text()
    try:
        return compiled.as_text() or Unreadable("jax has no text of it")
    except jax.errors.JaxRuntimeError as error:
        return Unreadable(" ".join(str(error).split()))
