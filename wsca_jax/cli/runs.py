"""One run: train it, measure it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from wsca_jax.cli.arguments import CONFIG_HELP, Commands, add_data_dir, add_hosts, command
from wsca_jax.cli.endings import explain

TRAIN = """examples:
  wsca train --config configs/scenes.py:quickstart --workdir runs/scenes
  wsca train --config configs/celeba.py:small --data_dir ~/celeba --workdir runs/celeba \\
      --config.optimizer.learning_rate=3e-4 --config.weak_labels.known_fraction=0.1

Started again with the same --workdir, a run goes on from its last checkpoint.
Any key of the configuration can be given as --config.KEY=VALUE; `wsca inspect` lists them."""

EVALUATE = """examples:
  wsca evaluate --workdir runs/celeba
  wsca evaluate --workdir runs/celeba --data_dir ~/other_faces --split test --checkpoint best"""


def add(commands: Commands) -> None:
    """Adds these commands to the parser."""
    _add_train(commands)
    _add_evaluate(commands)


def _add_train(commands: Commands) -> None:
    parser = command(
        commands, "train", "train a model, or go on with a run that was interrupted", TRAIN, run_train
    )
    parser.add_argument("--config", required=True, metavar="FILE[:VARIANT]", help=CONFIG_HELP)
    parser.add_argument("--workdir", required=True, type=Path, help="folder of the run; made if absent")
    add_data_dir(parser)
    parser.add_argument(
        "--accept_changes",
        action="store_true",
        help="resume although the configuration differs from the one the run began with",
    )
    add_hosts(parser)


def run_train(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    from wsca_jax import allocator

    allocator.keep_freed_memory()  # before jax starts its threads
    from wsca_jax import compiled, config, train

    compiled.keep_compiled()
    with _joined(options):
        train.train(
            config.load(options.config, overrides, data_dir=options.data_dir),
            workdir=options.workdir,
            accept_changes=options.accept_changes,
            command=["wsca", *sys.argv[1:]],
            began=options.began,
        )


def _add_evaluate(commands: Commands) -> None:
    parser = command(commands, "evaluate", "measure a trained run on a split", EVALUATE, run_evaluate)
    parser.add_argument("--workdir", required=True, type=Path, help="folder of the run")
    add_data_dir(parser, "; the run's own data if left out")
    parser.add_argument("--split", default="validation", choices=("train", "validation", "test"))
    parser.add_argument(
        "--checkpoint",
        default="latest",
        choices=("latest", "best"),
        help="which checkpoint: the newest, or that of the best validation metric (default: latest)",
    )
    add_hosts(parser)


def run_evaluate(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    from wsca_jax import allocator

    allocator.keep_freed_memory()
    from wsca_jax import compiled, evaluate

    compiled.keep_compiled()
    with _joined(options):
        evaluate.evaluate(
            options.workdir, data_dir=options.data_dir, split=options.split, checkpoint=options.checkpoint
        )


def _joined(options: argparse.Namespace) -> AbstractContextManager[None]:
    from wsca_jax import cluster

    return cluster.joined(cluster.place(options.coordinator, options.processes, options.process), explain)
