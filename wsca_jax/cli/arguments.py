"""What the commands' arguments have in common."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# What argparse returns from `add_subparsers`; its class has no public name.
Commands = Any
Run = Callable[[argparse.Namespace, Sequence[str]], None]

CONFIG_HELP = "config file and variant, such as configs/celeba.py:small"


def command(
    commands: Commands, name: str, summary: str, examples: str, run: Run | None = None
) -> argparse.ArgumentParser:
    """Adds a command.

    Args:
      commands: where to.
      name: what the user types.
      summary: one line of what it does, without its full stop.
      examples: what --help ends with.
      run: called with the options and the words that begin with --config; None for a command of commands.
    """
    parser = commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(run=run)
    return parser


def add_data_dir(parser: argparse.ArgumentParser, note: str = "; not needed for scenes") -> None:
    parser.add_argument(
        "--data_dir", type=Path, help=f"folder of the data set, official files or shards{note}"
    )


def add_data_set(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data", metavar="NAME", help="name of the data set, such as celeba (default: told by its files)"
    )
    parser.add_argument("--data_dir", required=True, type=Path, help="folder of the data set")


def add_hosts(parser: argparse.ArgumentParser) -> None:
    hosts = parser.add_argument_group(
        "several hosts",
        "The same command on each. SLURM, Open MPI, TPU slices and indexed Kubernetes jobs need no flags.",
    )
    hosts.add_argument("--coordinator", metavar="HOST:PORT", help="host of process 0, and a free port there")
    hosts.add_argument("--processes", type=int, metavar="N", help="how many processes there are")
    hosts.add_argument("--process", type=int, metavar="K", help="which of them this is, from 0")


def at_least_one(text: str) -> int:
    return _at_least(1, text)


def at_least_zero(text: str) -> int:
    return _at_least(0, text)


def _at_least(least: int, text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if number < least:
        raise argparse.ArgumentTypeError(f"expected a whole number from {least} on, found {text!r}")
    return number
