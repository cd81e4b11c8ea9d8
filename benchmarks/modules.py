"""What each module and loss costs in a training step: time, multiply-adds and memory, in turn, in one run.

    python benchmarks/modules.py                                                # an accelerator
    python benchmarks/modules.py --config configs/celeba.py:small --size 48 --batch 8 --rounds 5 \\
        --config.model.trunk.width=16                                           # a laptop

Every row is the configuration with other modules: those that it leaves out come in their default size. The
default configuration is ResNet-50 at 224 px, d 768, six layers, bfloat16. A step is the one that `wsca train`
runs, on a batch of noise with one label in ten known; no data is read. "alone" is without CMDL and CAL.
Multiply-adds are those of one image's forward pass. Memory is what the compiler planned for a step on each
device. Ratios are to the baseline, those of times medians over rounds.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from wsca_jax.bench.turns import CLOCKS, Clock, Seconds, median, ratio, take_turns  # noqa: E402

MODULES = ("frequency", "encoder", "router", "decomposer")


class Variant(NamedTuple):
    """A row: which modules and losses it has."""

    modules: tuple[str, ...] = ()
    cmdl: bool = False
    cal: bool = False
    dynamic_weights: bool = False
    text: bool = False


BASELINE, LIGHT, FULL = "baseline", "all but CMDL, CAL, dynamic weights", "everything"
ROWS = {
    BASELINE: Variant(),
    **{f"{name} alone": Variant((name,)) for name in MODULES},
    "encoder + CMDL": Variant(("encoder",), cmdl=True),
    "encoder + CAL": Variant(("encoder",), cal=True),
    LIGHT: Variant(MODULES),
    FULL: Variant(MODULES, cmdl=True, cal=True, dynamic_weights=True),
    "everything, with text": Variant(MODULES, cmdl=True, cal=True, dynamic_weights=True, text=True),
}


class Prepared(NamedTuple):
    """A compiled row.

    Attributes:
      take: runs some steps, and waits.
      multiply_adds: of the forward pass of one image.
      bytes: peak memory of the step on each device.
    """

    take: Callable[[], None]
    multiply_adds: int
    bytes: int


def arguments() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--config", default="configs/celeba.py:baseline")
    parser.add_argument("--size", type=int, help="pixels (default: those of the configuration)")
    parser.add_argument("--batch", type=int, default=32, help="examples of a step, over all devices")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--steps", type=int, default=1, help="steps of each row in a round")
    parser.add_argument(
        "--rows", nargs="+", metavar="ROW", default=list(ROWS), help="some rows, such as 'router alone'"
    )
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: the process's CPU time")
    options, rest = parser.parse_known_args()
    if any(not word.startswith("--config.") for word in rest):
        parser.error(f"unrecognised arguments {rest}; overrides read --config.key=value")
    unknown = set(options.rows) - {*ROWS}
    if unknown:
        parser.error(f"no row {', '.join(unknown)}; rows: {', '.join(ROWS)}")
    return options, rest


def configure(options: argparse.Namespace, overrides: list[str], variant: Variant):
    """The configuration of a row: its sections from the file or else by default, then what is overridden."""
    from wsca_jax import config as configs

    base = configs.load(options.config)
    asked = (*variant.modules, *["alignment"] * variant.cal, *["text"] * variant.text)
    absent = [f"--config.model.{name}" for name in (*MODULES, "alignment", "text") if name not in asked]
    missing = [f"--config.model.{name}" for name in asked if base.model[name] is None]
    fitting = [word for word in overrides if not word.partition("=")[0].startswith(tuple(absent))]
    sections = [f"{key}=None" for key in absent] + [f"{key}=default" for key in missing]
    return configs.load(options.config, [*sections, *fitting, *settings(options, base, variant)])


def settings(options: argparse.Namespace, base, variant: Variant) -> list[str]:
    """What a row sets beside its sections."""
    kind = base.loss.balancing.kind
    dynamic = "trend" if kind == "none" else kind
    captions = "phrases" if base.data.text.captions == "none" else base.data.text.captions
    return [
        *([] if options.size is None else [f"--config.data.images.size={options.size}"]),
        f"--config.train.batch_size={options.batch}",
        f"--config.data.text.captions={captions if variant.text else 'none'}",
        f"--config.loss.balancing.kind={dynamic if variant.dynamic_weights else 'none'}",
        *([] if variant.cmdl else ["--config.loss.weights.cmdl=0.0"]),
        *([] if variant.text else ["--config.model.phrase_prototypes=False"]),
    ]


def prepare(config, steps: int) -> Prepared:
    """Compiles a row's training step and gives it a state and a batch of its own."""
    import jax

    from wsca_jax import assembly
    from wsca_jax.engine import state as states
    from wsca_jax.engine.step import compile_train_step
    from wsca_jax.inspection.memory import compiled_bytes
    from wsca_jax.inspection.record import forward_multiply_adds

    schema = assembly.data_schema(config)
    run = assembly.build(config, schema, 10**6)
    spec = assembly.batch_spec(config, schema, config.train.batch_size)
    batch = run.layout.put_batch(noise(spec))
    held = [states.create(run.method, run.optimizer, spec, seed=0, layout=run.layout)]
    count = sum(forward_multiply_adds(run.method, held[0], spec).values())
    step = compile_train_step(run.method, run.optimizer, run.layout, held[0], seed=0)
    compiled = step.lower(held[0], batch).compile()

    def take() -> None:
        for _ in range(steps):
            held[0], report = compiled(held[0], batch)
        jax.block_until_ready((held[0], report))

    return Prepared(take, count, compiled_bytes(compiled))


def noise(spec):
    """A batch of these shapes: random pixels, labels and token ids, one label in ten known."""
    import numpy as np

    rng = np.random.default_rng(0)
    known = rng.random(spec.known.shape) < 0.1
    ids = None if spec.tokens is None else rng.integers(1, 60, spec.tokens.shape).astype(np.int32)
    blank = type(spec)(*(None if x is None else np.zeros(x.shape, x.dtype) for x in spec))
    return blank._replace(
        image=rng.integers(0, 256, spec.image.shape).astype(np.uint8),
        labels=(known & (rng.random(known.shape) < 0.3)).astype(np.uint8),
        known=known,
        weight=np.ones(spec.weight.shape, np.float32),
        index=np.arange(len(spec.index), dtype=np.int32),
        tokens=ids,
    )


def table(prepared: dict[str, Prepared], seconds: Seconds, steps: int, clock: Clock) -> str:
    from wsca_jax.inspection.text import format_bytes
    from wsca_jax.report.tables import format_table

    base = prepared[BASELINE]
    rows = [
        (
            name,
            f"{1e3 * median(seconds, name, clock) / steps:.1f}",
            f"{ratio(seconds, name, BASELINE, clock):.3f}",
            f"{row.multiply_adds / 1e6:,.0f} M",
            f"{row.multiply_adds / base.multiply_adds:.2f}",
            format_bytes(row.bytes),
            f"{row.bytes / base.bytes:.2f}",
        )
        for name, row in prepared.items()
    ]
    return format_table(("row", "ms / step", "ratio", "multiply-adds", "ratio", "memory", "ratio"), rows)


def main() -> None:
    options, overrides = arguments()
    from wsca_jax.allocator import keep_freed_memory

    keep_freed_memory()
    import jax

    from wsca_jax.errors import WscaError

    prepared = {}
    try:
        for name in dict.fromkeys([BASELINE, *options.rows]):
            print(f"compiling: {name}", file=sys.stderr, flush=True)
            prepared[name] = prepare(configure(options, overrides, ROWS[name]), options.steps)
    except WscaError as error:
        sys.exit(f"benchmarks/modules.py: {error}")
    takes = {name: row.take for name, row in prepared.items()}
    seconds = take_turns(takes, options.rounds)
    device = jax.devices()[0]
    print(f"{options.config}, {options.size or 'its own'} px, batch {options.batch}, {options.rounds} rounds")
    print(f"{jax.device_count()} x {device.device_kind} ({device.platform}), {options.clock} time\n")
    print(table(prepared, seconds, options.steps, options.clock))
    if {LIGHT, FULL} <= seconds.keys():
        share = 100 * (1 - ratio(seconds, LIGHT, FULL, options.clock))
        print(f"\nCMDL + CAL + dynamic weights cost {share:.1f} % of a step of {FULL!r}.")


if __name__ == "__main__":
    main()
