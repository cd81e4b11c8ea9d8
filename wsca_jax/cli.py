"""The `wsca` command: train, evaluate, sweep, compare, inspect, compile, visualize, prepare, verify, bench.

Nothing heavy is imported until a command needs it, so that --help answers at once.
"""

from __future__ import annotations

import argparse
import logging
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from wsca_jax.errors import Ending, ExitCode, WscaError

Command = Callable[[argparse.Namespace, Sequence[str]], None]
CONFIG_HELP = "config file and variant, such as configs/celeba.py:small"
EXAMPLES = {
    "train": """examples:
  wsca train --config configs/scenes.py:quickstart --workdir runs/scenes
  wsca train --config configs/celeba.py:small --data_dir ~/celeba --workdir runs/celeba \\
      --config.optimizer.learning_rate=3e-4 --config.weak_labels.known_fraction=0.1

Started again with the same --workdir, a run goes on from its last checkpoint.
Any key of the configuration can be given as --config.KEY=VALUE; `wsca inspect` lists them.""",
    "evaluate": """examples:
  wsca evaluate --workdir runs/celeba
  wsca evaluate --workdir runs/celeba --data_dir ~/other_faces --split test --checkpoint best""",
    "sweep": """examples:
  wsca sweep --sweep configs/sweeps/scenes.py:tiny --workdir runs/sweep
  wsca sweep --sweep configs/sweeps/scenes.py:labels --workdir runs/labels --only tenth tenth-wide --jobs 2

Trains and evaluates every row with every seed, each run in WORKDIR/ROW/seed_K, and writes sweep.html,
sweep.md and sweep.json. Started again, it goes on where it stopped; finished runs are left alone.""",
    "compare": """example:
  wsca compare --first runs/a/seed_0 runs/a/seed_1 --second runs/b/seed_0 runs/b/seed_1

Prints the difference in mAP, second minus first, with a 95 % interval: paired bootstrap over images, runs
averaged. Each run was evaluated before, by `wsca evaluate`.""",
    "inspect": """example:
  wsca inspect --config configs/celeba.py:small
  wsca inspect --config configs/folder.py --data_dir ~/birds

Prints the batch, the parameters, the outputs, the loss terms, what is frozen, the multiply-adds of each
module and the memory a step needs. Runs nothing and reads no images.""",
    "compile": """examples:
  wsca compile --config configs/celeba.py:full --topology v5e:16x16
  wsca compile --config configs/celeba.py:baseline configs/celeba.py:full --topology v5p:2x2x2 v5p:8x8x16 \\
      --batch_per_device 128 --json pods.json

Compiles the training step for a slice of a TPU pod, on any machine: whether it fits, its memory, what it
moves and sends, and how fast it can be at most. Needs the extra `tpu`, but no TPU. cpu:8: 8 CPU devices.""",
    "visualize": """examples:
  wsca visualize --workdir runs/scenes
  wsca visualize --workdir runs/celeba --split test --examples 16 --output figures/celeba

Draws where the model looks for each group and attribute, the pyramid, the frequency bands, the graph and the
routing, as far as the model has them, and a page that shows them: OUTPUT/figures.html.""",
    "prepare": """example:
  wsca prepare --data celeba --data_dir ~/celeba --output ~/prepared/celeba""",
    "verify": """examples:
  wsca verify --data celeba --data_dir ~/prepared/celeba
  wsca verify --data celeba --data_dir ~/celeba --output ~/celeba_looked_at

With --output, OUTPUT/verify.html shows what was found, with pictures and their labels.""",
    "bench": """example:
  wsca bench input --source_size 178x218""",
    "bench input": """examples:
  wsca bench input --source_size 178x218 --size 224
  wsca bench input --data celeba --data_dir ~/celeba --size 64

Images a second, by the clock and per core, of the input pipeline and of bare decoding and resizing of the
same images; they take turns. Then what each part costs, the memory held and the bytes read.""",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code (see `wsca_jax.errors.ExitCode`)."""
    parser = build_parser()
    options, rest = parser.parse_known_args(sys.argv[1:] if arguments is None else arguments)
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


def explain(error: BaseException) -> Ending:
    """How a command that raised this ends."""
    from input_pipeline.errors import DataError
    from input_pipeline.schema import SchemaError

    if isinstance(error, WscaError):
        return Ending(error.exit_code, str(error))
    if isinstance(error, KeyboardInterrupt):
        return Ending(ExitCode.INTERRUPTED, "interrupted")
    if isinstance(error, DataError | SchemaError):
        return Ending(ExitCode.BAD_INPUT, str(error))
    return Ending(ExitCode.CRASH, None)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="wsca",
        description="Weakly supervised attribute recognition: train, evaluate and look inside.",
        epilog="exit codes: "
        + ", ".join(f"{code.value} {code.name.lower().replace('_', ' ')}" for code in ExitCode),
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    train = _command(commands, "train", "train a model, or go on with a run that was interrupted", run_train)
    train.add_argument("--config", required=True, metavar="FILE[:VARIANT]", help=CONFIG_HELP)
    train.add_argument("--workdir", required=True, type=Path, help="folder of the run; made if absent")
    _add_data_dir(train)
    train.add_argument(
        "--accept_changes",
        action="store_true",
        help="resume although the configuration differs from the one the run began with",
    )
    _add_hosts(train)

    evaluate = _command(commands, "evaluate", "measure a trained run on a split", run_evaluate)
    evaluate.add_argument("--workdir", required=True, type=Path, help="folder of the run")
    _add_data_dir(evaluate, "; the run's own data if left out")
    evaluate.add_argument("--split", default="validation", choices=("train", "validation", "test"))
    evaluate.add_argument(
        "--checkpoint",
        default="latest",
        choices=("latest", "best"),
        help="which checkpoint: the newest, or that of the best validation metric (default: latest)",
    )
    _add_hosts(evaluate)

    sweep = _command(commands, "sweep", "train and compare rows of configurations", run_sweep)
    sweep.add_argument(
        "--sweep", required=True, metavar="FILE[:VARIANT]", help="such as configs/sweeps/scenes.py:tiny"
    )
    sweep.add_argument("--workdir", required=True, type=Path, help="folder of the sweep; made if absent")
    _add_data_dir(sweep)
    sweep.add_argument("--only", nargs="+", default=(), metavar="ROW", help="run these rows; all if left out")
    sweep.add_argument("--jobs", type=_at_least_one, default=1, help="runs at a time (default: 1)")

    compare = _command(commands, "compare", "is one model better than another?", run_compare)
    for name in ("first", "second"):
        compare.add_argument(
            f"--{name}",
            required=True,
            nargs="+",
            type=Path,
            metavar="WORKDIR",
            help=f"runs of the {name} model",
        )
    compare.add_argument("--split", default="validation", choices=("train", "validation", "test"))

    visualize = _command(commands, "visualize", "figures of what a trained model looks at", run_visualize)
    visualize.add_argument("--workdir", required=True, type=Path, help="folder of the run")
    _add_data_dir(visualize, "; the run's own data if left out")
    visualize.add_argument("--split", default="validation", choices=("train", "validation", "test"))
    visualize.add_argument("--checkpoint", default="latest", choices=("latest", "best"))
    visualize.add_argument("--examples", type=int, default=8, help="examples to draw (default: 8)")
    visualize.add_argument(
        "--average_over", type=int, default=512, help="examples that averages run over (default: 512)"
    )
    visualize.add_argument("--output", type=Path, help="folder for the figures (default: WORKDIR/figures)")

    inspect = _command(commands, "inspect", "dry run: shapes, parameters, cost, memory", run_inspect)
    inspect.add_argument("--config", required=True, metavar="FILE[:VARIANT]", help=CONFIG_HELP)
    _add_data_dir(inspect, "; needed where the folder says what the attributes are")
    inspect.add_argument("--depth", type=int, default=2, help="levels of modules in the tables (default: 2)")

    compile_ = _command(commands, "compile", "what a training step needs on a TPU pod", run_compile)
    compile_.add_argument(
        "--config", required=True, nargs="+", metavar="FILE[:VARIANT]", help=f"{CONFIG_HELP}; one or more"
    )
    compile_.add_argument(
        "--topology", required=True, nargs="+", metavar="CHIP:SIZES", help="such as v5e:16x16; one or more"
    )
    compile_.add_argument(
        "--batch_per_device",
        type=_at_least_one,
        metavar="EXAMPLES",
        help="examples on each device (default: the config's global batch, divided)",
    )
    compile_.add_argument(
        "--largest_batch", action="store_true", help="search the largest batch that fits; compiles often"
    )
    compile_.add_argument("--json", type=Path, metavar="FILE", help="write what was found here, too")
    compile_.add_argument("--programs", type=Path, metavar="FOLDER", help="write the compiled programs' text")

    prepare = _command(commands, "prepare", "turn official files into shards, once", run_prepare)
    _add_data_set(prepare)
    prepare.add_argument("--output", required=True, type=Path, help="folder for the shards; made if absent")

    prepare.add_argument(
        "--resize",
        type=_at_least_one,
        metavar="PIXELS",
        help="store images with a shorter side of at most this (default: as they are)",
    )

    verify = _command(commands, "verify", "read everything in a data folder and check it", run_verify)
    _add_data_set(verify)
    verify.add_argument("--output", type=Path, help="folder for a page to look at; made if absent")

    bench = _command(commands, "bench", "measure speed on this machine")
    _add_bench_input(bench.add_subparsers(title="what to measure", required=True, metavar="WHAT"))
    return parser


def _add_bench_input(benches: Any) -> None:
    bench = _command(benches, "input", "the input pipeline, beside bare decoding", run_bench_input, "bench ")
    bench.add_argument("--data", metavar="NAME", help="name of the data set, such as celeba")
    _add_data_dir(bench)
    bench.add_argument("--split", default="train", choices=("train", "validation", "test"))
    bench.add_argument(
        "--source_size",
        type=_width_and_height,
        metavar="WxH",
        help="instead of a data set: synthetic JPEGs of this size",
    )
    bench.add_argument("--size", type=_at_least_one, default=224, help="side of the results (default: 224)")
    bench.add_argument("--batch_size", type=_at_least_one, default=64, help="(default: 64)")
    bench.add_argument(
        "--threads", type=_at_least_zero, nargs="+", default=(0, 1, 2), help="(default: 0 1 2)"
    )
    bench.add_argument("--steps", type=_at_least_one, default=8, help="batches in a turn (default: 8)")
    bench.add_argument("--rounds", type=_at_least_one, default=7, help="turns of each (default: 7)")


def _command(
    commands: Any, name: str, summary: str, run: Command | None = None, group: str = ""
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=EXAMPLES[group + name],
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(run=run)
    return parser


def _add_hosts(parser: argparse.ArgumentParser) -> None:
    hosts = parser.add_argument_group(
        "several hosts",
        "The same command on each. SLURM, Open MPI, TPU slices and indexed Kubernetes jobs need no flags.",
    )
    hosts.add_argument("--coordinator", metavar="HOST:PORT", help="host of process 0, and a free port there")
    hosts.add_argument("--processes", type=int, metavar="N", help="how many processes there are")
    hosts.add_argument("--process", type=int, metavar="K", help="which of them this is, from 0")


def _add_data_dir(parser: argparse.ArgumentParser, note: str = "; not needed for scenes") -> None:
    parser.add_argument(
        "--data_dir", type=Path, help=f"folder of the data set, official files or shards{note}"
    )


def _at_least_one(text: str) -> int:
    return _at_least(1, int(text))


def _at_least_zero(text: str) -> int:
    return _at_least(0, int(text))


def _at_least(least: int, number: int) -> int:
    if number < least:
        raise argparse.ArgumentTypeError(f"{number} is less than {least}")
    return number


def _width_and_height(text: str) -> tuple[int, int]:
    width, height = (_at_least_one(side) for side in text.split("x"))
    return width, height


def _add_data_set(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", required=True, metavar="NAME", help="name of the data set, such as celeba")
    parser.add_argument("--data_dir", required=True, type=Path, help="folder of the data set")


def run_train(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    from wsca_jax import allocator

    allocator.keep_freed_memory()  # before jax starts its threads
    from wsca_jax import config, train

    with _joined(options):
        train.train(
            config.load(options.config, overrides, data_dir=options.data_dir),
            workdir=options.workdir,
            accept_changes=options.accept_changes,
            command=["wsca", *sys.argv[1:]],
        )


def _joined(options: argparse.Namespace) -> AbstractContextManager[None]:
    from wsca_jax import cluster

    return cluster.joined(cluster.place(options.coordinator, options.processes, options.process), explain)


def run_evaluate(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    from wsca_jax import allocator

    allocator.keep_freed_memory()
    from wsca_jax import evaluate

    with _joined(options):
        evaluate.evaluate(
            options.workdir, data_dir=options.data_dir, split=options.split, checkpoint=options.checkpoint
        )


def run_sweep(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    from wsca_jax import sweep

    sweep.sweep(
        options.sweep,
        workdir=options.workdir,
        data_dir=options.data_dir,
        only=options.only,
        jobs=options.jobs,
    )


def run_compare(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    from wsca_jax import compare

    compare.compare(options.first, options.second, split=options.split)


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


def run_inspect(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    from wsca_jax import config, inspection

    print(inspection.inspect(config.load(options.config, overrides, options.data_dir), depth=options.depth))


def run_compile(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    from wsca_jax import compilation

    request = compilation.Request(
        options.config, overrides, options.topology, options.batch_per_device, options.largest_batch
    )
    compilation.compile_steps(request, json_file=options.json, programs=options.programs)


def run_prepare(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    from wsca_jax.config import data_set

    chosen = data_set(options.data, "prepare")
    folder = chosen.prepare(options.data_dir, options.output, shortest=options.resize)
    print(f"{folder}: ready; give it as --data_dir")


def run_verify(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    from wsca_jax.config import data_set

    chosen = data_set(options.data, "verify")
    found = chosen.verify(options.data_dir, chosen.Options())
    print(found)
    if options.output is not None:
        from wsca_jax.report import data_page

        print(f"\nPage: {data_page.write(options.output, found)}")
    if not found.ok:
        raise WscaError(
            f"{options.data_dir}: {len(found.problems)} problems, listed above; restore these files"
        )


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


if __name__ == "__main__":
    sys.exit(main())
