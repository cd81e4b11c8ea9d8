"""Speed on this machine."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from wsca_jax.cli.arguments import (
    CONFIG_HELP,
    Commands,
    add_data_dir,
    at_least_one,
    at_least_zero,
    command,
)
from wsca_jax.errors import WscaError

BENCH = """examples:
  wsca bench input --source_size 178x218
  wsca bench step --config configs/scenes.py:quickstart"""

BENCH_INPUT = """examples:
  wsca bench input --source_size 178x218 --size 224
  wsca bench input --data celeba --data_dir ~/celeba --size 64

Images a second, by the clock and per core, of the input pipeline and of bare decoding and resizing of the
same images; they take turns. Then what each part costs, the memory held and the bytes read."""

BENCH_STEP = """examples:
  wsca bench step --config configs/celeba.py:small --data_dir ~/celeba --against torch
  wsca bench step --config configs/celeba.py:baseline --modules --steps 4      # an accelerator, no data
  wsca bench step --config configs/celeba.py:small --batch_size 8 --steps 1 --rounds 20 --modules \\
      "router alone" everything --config.data.images.size=48 --config.model.trunk.width=16   # a laptop

Images a second of the compiled step on a batch of noise that is on the devices, of the loader, and of the
loop of `wsca train`, which has both; they take turns. Then seconds to compile, and memory.

--modules: what each module costs, beside the configuration without modules.
--against torch: the configuration without modules, also in PyTorch (channels last, torch.compile; autocast
where model.dtype is bfloat16), on the same batch and kind of device, in turn."""


def add(commands: Commands) -> None:
    """Adds these commands to the parser."""
    bench = command(commands, "bench", "measure speed on this machine", BENCH)
    benches = bench.add_subparsers(title="what to measure", required=True, metavar="WHAT")
    _add_input(benches)
    _add_step(benches)


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
    try:
        width, height = (at_least_one(side) for side in text.split("x"))
    except (ValueError, argparse.ArgumentTypeError) as error:
        raise argparse.ArgumentTypeError(f"expected a size such as 178x218, found {text!r}") from error
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


def _add_step(benches: Commands) -> None:
    parser = command(
        benches, "step", "the training step, its loader, and both together", BENCH_STEP, run_bench_step
    )
    parser.add_argument("--config", required=True, metavar="FILE[:VARIANT]", help=CONFIG_HELP)
    add_data_dir(parser, "; without it the step alone is measured; not needed for scenes")
    parser.add_argument("--batch_size", type=at_least_one, help="over all devices (default: the config's)")
    parser.add_argument("--steps", type=at_least_one, default=16, help="steps in a turn (default: 16)")
    parser.add_argument("--rounds", type=at_least_one, default=5, help="turns of each (default: 5)")
    parser.add_argument(
        "--modules", nargs="*", metavar="ROW", help="a table of what each module costs (default: all rows)"
    )
    parser.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall", help="of that table; cpu: the process's CPU time"
    )
    parser.add_argument("--against", choices=("torch",), help="measure PyTorch beside it")
    parser.add_argument("--torch_eager", action="store_true", help="without torch.compile")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was found here, too")


def run_bench_step(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    if options.against:  # or JAX would take most of a GPU's memory for itself
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    from wsca_jax import allocator

    allocator.keep_freed_memory()  # as in training, before jax starts its threads
    from wsca_jax.bench import step
    from wsca_jax.bench.figures import Settings
    from wsca_jax.bench.variants import Request

    size = [] if options.batch_size is None else [f"--config.train.batch_size={options.batch_size}"]
    settings = Settings(
        options.steps,
        options.rounds,
        None if options.modules is None else tuple(options.modules),
        options.clock,
        torch=options.against == "torch",
        torch_compiled=not options.torch_eager,
    )
    request = Request(options.config, (*overrides, *size), options.data_dir)
    print(step.bench(request, settings, options.json))
