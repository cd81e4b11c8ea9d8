"""Many runs: train them side by side, tell which are better."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from wsca_jax.cli.arguments import Commands, add_data_dir, at_least_one, command

SWEEP = """examples:
  wsca sweep --sweep configs/sweeps/scenes.py:tiny --workdir runs/sweep
  wsca sweep --sweep configs/sweeps/scenes.py:labels --workdir runs/labels --only tenth tenth-wide --jobs 2

Trains and evaluates every row with every seed, each run in WORKDIR/ROW/seed_K, and writes sweep.html,
sweep.md and sweep.json. Started again, it goes on where it stopped; finished runs are left alone."""

COMPARE = """example:
  wsca compare --first runs/a/seed_0 runs/a/seed_1 --second runs/b/seed_0 runs/b/seed_1

Prints the difference in mAP, second minus first, with a 95 % interval: paired bootstrap over images, runs
averaged. Each run was evaluated before, by `wsca evaluate`."""


def add(commands: Commands) -> None:
    """Adds these commands to the parser."""
    _add_sweep(commands)
    _add_compare(commands)


def _add_sweep(commands: Commands) -> None:
    parser = command(commands, "sweep", "train and compare rows of configurations", SWEEP, run_sweep)
    parser.add_argument(
        "--sweep", required=True, metavar="FILE[:VARIANT]", help="such as configs/sweeps/scenes.py:tiny"
    )
    parser.add_argument("--workdir", required=True, type=Path, help="folder of the sweep; made if absent")
    add_data_dir(parser)
    parser.add_argument(
        "--only", nargs="+", default=(), metavar="ROW", help="run these rows; all if left out"
    )
    parser.add_argument("--jobs", type=at_least_one, default=1, help="runs at a time (default: 1)")


def run_sweep(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    from wsca_jax import sweep

    sweep.sweep(
        options.sweep,
        workdir=options.workdir,
        data_dir=options.data_dir,
        only=options.only,
        jobs=options.jobs,
    )


def _add_compare(commands: Commands) -> None:
    parser = command(commands, "compare", "is one model better than another?", COMPARE, run_compare)
    for name in ("first", "second"):
        parser.add_argument(
            f"--{name}",
            required=True,
            nargs="+",
            type=Path,
            metavar="WORKDIR",
            help=f"runs of the {name} model",
        )
    parser.add_argument("--split", default="validation", choices=("train", "validation", "test"))


def run_compare(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    from wsca_jax import compare

    compare.compare(options.first, options.second, split=options.split)
