"""The `wsca` command.

runs      train, evaluate
sweeps    sweep, compare
looks     inspect, compile, visualize
data      prepare, verify
benches   bench input, bench step

Each file has its commands' arguments, the examples that --help shows, and what they call. Nothing heavy is
imported until a command needs it, so that --help answers at once.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
import traceback
from collections.abc import Sequence

from wsca_jax.cli import benches, data, looks, runs, sweeps
from wsca_jax.cli.endings import explain
from wsca_jax.errors import ExitCode
from wsca_jax.timing import process_began

__all__ = ["build_parser", "explain", "main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code (see `wsca_jax.errors.ExitCode`)."""
    parser = build_parser()
    # Called by another program, a command is not all that its process did.
    began = process_began() if arguments is None else time.perf_counter()
    options, rest = parser.parse_known_args(
        sys.argv[1:] if arguments is None else arguments, argparse.Namespace(began=began)
    )
    overrides = [word for word in rest if word.startswith("--config.")]
    if rest != overrides or (overrides and not hasattr(options, "config")):
        strange = next(word for word in rest if word not in overrides or not hasattr(options, "config"))
        parser.error(f"unrecognised argument {strange!r}; overrides read --config.key=value")
    logging.basicConfig(format="%(message)s")  # a warning is a line for the user, not for a log
    try:
        options.run(options, overrides)
    except (Exception, KeyboardInterrupt) as error:
        ending = explain(error)
        if ending.line is None:
            traceback.print_exc()
        else:
            print(f"wsca: {ending.line}", file=sys.stderr)
        return ending.code
    return ExitCode.DONE


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="wsca",
        description="Weakly supervised attribute recognition: train, evaluate and look inside.",
        epilog="exit codes: "
        + ", ".join(f"{code.value} {code.name.lower().replace('_', ' ')}" for code in ExitCode),
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for room in (runs, sweeps, looks, data, benches):
        room.add(commands)
    return parser
