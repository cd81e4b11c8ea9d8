"""Speed on this machine."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from wsca_jax.cli.arguments import Commands, add_data_dir, at_least_one, at_least_zero, command
from wsca_jax.errors import WscaError

BENCH = """example:
  wsca bench input --source_size 178x218"""

BENCH_INPUT = """examples:
  wsca bench input --source_size 178x218 --size 224
  wsca bench input --data celeba --data_dir ~/celeba --size 64

Images a second, by the clock and per core, of the input pipeline and of bare decoding and resizing of the
same images; they take turns. Then what each part costs, the memory held and the bytes read."""


def add(commands: Commands) -> None:
    """Adds these commands to the parser."""
    bench = command(commands, "bench", "measure speed on this machine", BENCH)
    _add_input(bench.add_subparsers(title="what to measure", required=True, metavar="WHAT"))


def _add_input(benches: Commands) -> None:
    parser = command(
        benches, "input", "the input pipeline, beside bare decoding", BENCH_INPUT, run_bench_input
    )
    parser.add_argument("--data", metavar="NAME", help="name of the data set, such as celeba")
    add_data_dir(parser)
    parser.add_argument("--split", default="train", choices=("train", "validation", "test"))
    parser.add_argument(
        "--source_size",
        type=_width_and_height,
        metavar="WxH",
        help="instead of a data set: synthetic JPEGs of this size",
    )
    parser.add_argument("--size", type=at_least_one, default=224, help="side of the results (default: 224)")
    parser.add_argument("--batch_size", type=at_least_one, default=64, help="(default: 64)")
    parser.add_argument(
        "--threads", type=at_least_zero, nargs="+", default=(0, 1, 2), help="(default: 0 1 2)"
    )
    parser.add_argument("--steps", type=at_least_one, default=64, help="batches in a turn (default: 64)")
    parser.add_argument("--rounds", type=at_least_one, default=5, help="turns of each (default: 5)")


def _width_and_height(text: str) -> tuple[int, int]:
    width, height = (at_least_one(side) for side in text.split("x"))
    return width, height


def run_bench_input(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    from wsca_jax import allocator

    allocator.keep_freed_memory()  # as in training
    from wsca_jax.bench import input as bench

    if (options.data is None) == (options.source_size is None):
        raise WscaError("bench input: give either --data, the name of a data set, or --source_size")
    settings = bench.Settings(
        options.size, options.batch_size, tuple(sorted(options.threads)), options.steps, options.rounds
    )
    if options.data is not None:
        print(bench.bench_data(options.data, options.data_dir, options.split, settings))
    else:
        width, height = options.source_size
        print(bench.bench_photographs(height, width, settings))
