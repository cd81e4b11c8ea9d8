"""Data: prepared once, verified at any time."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from wsca_jax.cli.arguments import Commands, add_data_set, at_least_one, command
from wsca_jax.errors import WscaError

PREPARE = """example:
  wsca prepare --data celeba --data_dir ~/celeba --output ~/prepared/celeba"""

VERIFY = """examples:
  wsca verify --data celeba --data_dir ~/prepared/celeba
  wsca verify --data celeba --data_dir ~/celeba --output ~/celeba_looked_at

With --output, OUTPUT/verify.html shows what was found, with pictures and their labels."""


def add(commands: Commands) -> None:
    """Adds these commands to the parser."""
    _add_prepare(commands)
    _add_verify(commands)


def _add_prepare(commands: Commands) -> None:
    parser = command(commands, "prepare", "turn official files into shards, once", PREPARE, run_prepare)
    add_data_set(parser)
    parser.add_argument("--output", required=True, type=Path, help="folder for the shards; made if absent")
    parser.add_argument(
        "--resize",
        type=at_least_one,
        metavar="PIXELS",
        help="store images with a shorter side of at most this (default: as they are)",
    )


def run_prepare(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    chosen = _data_set(options, "prepare")
    folder = chosen.prepare(options.data_dir, options.output, shortest=options.resize)
    print(f"{folder}: ready; give it as --data_dir")


def _add_verify(commands: Commands) -> None:
    parser = command(commands, "verify", "read everything in a data folder and check it", VERIFY, run_verify)
    add_data_set(parser)
    parser.add_argument("--output", type=Path, help="folder for a page to look at; made if absent")


def run_verify(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    chosen = _data_set(options, "verify")
    found = chosen.verify(options.data_dir, chosen.Options())
    print(found)
    if options.output is not None:
        from wsca_jax.report import data_page

        print(f"\nPage: {data_page.write(options.output, found)}")
    if not found.ok:
        raise WscaError(f"{options.data_dir}: {found.verdict}, listed above; restore these files")


def _data_set(options: argparse.Namespace, ability: str) -> ModuleType:
    from wsca_jax.config import data_set, recognised

    return data_set(options.data or recognised(options.data_dir), ability)
