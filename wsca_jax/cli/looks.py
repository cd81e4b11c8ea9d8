"""Looking at a model: before it is trained, on a machine that is not here, and after."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from wsca_jax.cli.arguments import CONFIG_HELP, Commands, add_data_dir, at_least_one, command

INSPECT = """example:
  wsca inspect --config configs/celeba.py:small
  wsca inspect --config configs/folder.py --data_dir ~/birds

Prints the batch, the parameters, the outputs, the loss terms, what is frozen, the multiply-adds of each
module and the memory a step needs. Runs nothing and reads no images."""

COMPILE = """examples:
  wsca compile --config configs/celeba.py:full --topology v5e:16x16
  wsca compile --config configs/celeba.py:baseline configs/celeba.py:full --topology v5p:2x2x2 v5p:8x8x16 \\
      --batch_per_device 128 --json pods.json

Compiles the training step for a slice of a TPU pod, on any machine: whether it fits, its memory, what it
moves and sends, and how fast it can be at most. Needs the extra `tpu`, but no TPU. cpu:8: 8 CPU devices."""

VISUALIZE = """examples:
  wsca visualize --workdir runs/scenes_modules
  wsca visualize --workdir runs/celeba --split test --examples 16 --output figures/celeba

Draws where the model looks for each group and attribute, the pyramid, the frequency bands, the graph and the
routing, as far as the model has them, and a page that shows them: OUTPUT/figures.html."""


def add(commands: Commands) -> None:
    """Adds these commands to the parser."""
    _add_inspect(commands)
    _add_compile(commands)
    _add_visualize(commands)


def _add_inspect(commands: Commands) -> None:
    parser = command(commands, "inspect", "dry run: shapes, parameters, cost, memory", INSPECT, run_inspect)
    parser.add_argument("--config", required=True, metavar="FILE[:VARIANT]", help=CONFIG_HELP)
    add_data_dir(parser, "; needed where the folder says what the attributes are")
    parser.add_argument("--depth", type=int, default=2, help="levels of modules in the tables (default: 2)")


def run_inspect(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    from wsca_jax import config, inspection

    print(inspection.inspect(config.load(options.config, overrides, options.data_dir), depth=options.depth))


def _add_compile(commands: Commands) -> None:
    parser = command(commands, "compile", "what a training step needs on a TPU pod", COMPILE, run_compile)
    parser.add_argument(
        "--config", required=True, nargs="+", metavar="FILE[:VARIANT]", help=f"{CONFIG_HELP}; one or more"
    )
    add_data_dir(parser, "; needed where the folder says what the attributes are")
    parser.add_argument(
        "--topology", required=True, nargs="+", metavar="CHIP:SIZES", help="such as v5e:16x16; one or more"
    )
    parser.add_argument(
        "--batch_per_device",
        type=at_least_one,
        metavar="EXAMPLES",
        help="examples on each device (default: the config's global batch, divided)",
    )
    parser.add_argument(
        "--largest_batch", action="store_true", help="search the largest batch that fits; compiles often"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was found here, too")
    parser.add_argument("--programs", type=Path, metavar="FOLDER", help="write the compiled programs' text")


def run_compile(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    from wsca_jax import compilation

    request = compilation.Request(
        options.config,
        overrides,
        options.topology,
        options.batch_per_device,
        options.largest_batch,
        options.data_dir,
    )
    compilation.compile_steps(request, json_file=options.json, programs=options.programs)


def _add_visualize(commands: Commands) -> None:
    parser = command(
        commands, "visualize", "figures of what a trained model looks at", VISUALIZE, run_visualize
    )
    parser.add_argument("--workdir", required=True, type=Path, help="folder of the run")
    add_data_dir(parser, "; the run's own data if left out")
    parser.add_argument("--split", default="validation", choices=("train", "validation", "test"))
    parser.add_argument("--checkpoint", default="latest", choices=("latest", "best"))
    parser.add_argument("--examples", type=int, default=8, help="examples to draw (default: 8)")
    parser.add_argument(
        "--average_over", type=int, default=512, help="examples that averages run over (default: 512)"
    )
    parser.add_argument("--output", type=Path, help="folder for the figures (default: WORKDIR/figures)")


def run_visualize(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    from wsca_jax import allocator

    allocator.keep_freed_memory()
    from wsca_jax import visualize

    visualize.visualize(
        options.workdir,
        data_dir=options.data_dir,
        split=options.split,
        checkpoint=options.checkpoint,
        examples=options.examples,
        average_over=options.average_over,
        output=options.output,
    )
