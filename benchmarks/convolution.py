"""ResNet in three hands: XLA's own convolutions, ours, and PyTorch eager, timed in turn on the CPU.

    python benchmarks/convolution.py                                    # everything
    python benchmarks/convolution.py --depth 50 --size 64 --dtype float32
    python benchmarks/convolution.py --threads 1 --clock cpu            # robust on a busy machine

Each engine runs once in every round; figures are medians over rounds. Other load on the machine slows
PyTorch's OpenMP threads more than XLA's, since each of its operations waits for the slower thread: there,
trust one thread's CPU time. A training step is forward, backward and AdamW on a cross-entropy.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

ENGINES = ("native", "ours", "torch")
CLASSES = 10


class Case(NamedTuple):
    """One row of the table."""

    depth: int
    size: int
    batch: int
    dtype: str
    mode: str


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--depth", type=int, nargs="+", default=[50, 18], choices=[18, 26, 50])
    parser.add_argument("--size", type=int, nargs="+", default=[64, 224])
    parser.add_argument("--batch", type=int, help="default: 32 up to 64 px, 8 above")
    parser.add_argument(
        "--dtype", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16"]
    )
    parser.add_argument("--mode", nargs="+", default=["forward", "train"], choices=["forward", "train"])
    parser.add_argument("--engine", nargs="+", default=list(ENGINES), choices=ENGINES)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2, help="cores for all engines")
    parser.add_argument(
        "--clock", choices=["wall", "cpu"], default="wall", help="cpu: the process's CPU time"
    )
    parser.add_argument(
        "--allocator",
        choices=["keep", "default"],
        default="keep",
        help="keep: as `wsca train` does, freed memory stays with the process (all engines)",
    )
    return parser.parse_args()


def jax_case(case: Case, lowering: str | None) -> Callable[[], None]:
    """One forward pass or training step of ours, blocking."""
    import jax
    import jax.numpy as jnp
    import optax

    from wsca_jax.models.resnet import ResNet

    image, labels = (jnp.asarray(x) for x in data(case))
    model = ResNet(case.depth, dtype=jnp.dtype(case.dtype), lowering=lowering)
    variables = jax.jit(lambda: model.init(jax.random.key(0), image[:1], train=False))()
    width = jax.eval_shape(lambda: model.apply(variables, image, train=False)).c5.shape[-1]
    params = {"trunk": variables["params"], "fc": jnp.zeros((width, CLASSES))}
    optimizer = optax.adamw(1e-4)

    def logits(params, c5):
        return c5.astype(jnp.float32).mean((1, 2)) @ params["fc"]

    def loss(params, stats, image):
        trunk = {"params": params["trunk"], "batch_stats": stats}
        stages, updated = model.apply(trunk, image, train=True, mutable=["batch_stats"])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits(params, stages.c5), labels)
        return losses.mean(), updated["batch_stats"]

    @jax.jit
    def forward(params, stats, image):
        trunk = {"params": params["trunk"], "batch_stats": stats}
        return logits(params, model.apply(trunk, image, train=False).c5)

    def train(state, image):
        params, stats, moments = state
        (value, stats), gradients = jax.value_and_grad(loss, has_aux=True)(params, stats, image)
        updates, moments = optimizer.update(gradients, moments, params)
        return (optax.apply_updates(params, updates), stats, moments), value

    if case.mode == "forward":
        return lambda: forward(params, variables["batch_stats"], image).block_until_ready()
    step = jax.jit(train, donate_argnums=0)
    state = [(params, variables["batch_stats"], optimizer.init(params))]

    def run() -> None:
        state[0], value = step(state[0], image)
        value.block_until_ready()

    return run


def torch_case(case: Case) -> Callable[[], None]:
    """One forward pass or training step of the reference in PyTorch eager, channels last."""
    import torch

    from wsca_jax.bench.torch_resnet import ReferenceResNet

    image, labels = (torch.from_numpy(x) for x in data(case))
    image = image.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
    model = ReferenceResNet(case.depth, CLASSES).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)

    def precision() -> contextlib.AbstractContextManager:
        if case.dtype == "float32":
            return contextlib.nullcontext()
        return torch.autocast("cpu", dtype=torch.bfloat16)

    def forward() -> None:
        with torch.inference_mode(), precision():
            model(image)

    def train() -> None:
        optimizer.zero_grad()
        with precision():
            logits = model(image)
        torch.nn.functional.cross_entropy(logits.float(), labels).backward()
        optimizer.step()

    model.train(case.mode == "train")
    return forward if case.mode == "forward" else train


def data(case: Case):
    import numpy as np

    rng = np.random.default_rng(0)
    image = rng.standard_normal((case.batch, case.size, case.size, 3)).astype(np.float32)
    return image, rng.integers(0, CLASSES, case.batch)


def build(case: Case, engine: str) -> Callable[[], None]:
    if engine == "torch":
        return torch_case(case)
    return jax_case(case, "native" if engine == "native" else None)


def medians(runs: dict[str, Callable[[], None]], rounds: int, clock: Callable[[], float]) -> dict[str, float]:
    """Milliseconds per run of each engine; two unmeasured runs each come first."""
    for run in runs.values():
        run(), run()
    times: dict[str, list[float]] = {engine: [] for engine in runs}
    for _ in range(rounds):
        for engine, run in runs.items():
            start = clock()
            run()
            times[engine].append(clock() - start)
    return {engine: 1e3 * statistics.median(values) for engine, values in times.items()}


def row(case: Case, found: dict[str, float]) -> str:
    cells = [f"{found[e]:9.0f}" if e in found else f"{'-':>9}" for e in ENGINES]
    ratios = [
        f"{found[e] / found['ours']:9.2f}" if {e, "ours"} <= found.keys() else f"{'-':>9}"
        for e in ("native", "torch")
    ]
    name = f"{case.depth:5d} {case.size:4d} {case.batch:5d} {case.dtype:>8} {case.mode:>7}"
    return name + "".join(cells + ratios)


def main() -> None:
    options = arguments()
    os.sched_setaffinity(0, set(list(os.sched_getaffinity(0))[: options.threads]))
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    root = Path(__file__).resolve().parents[1]
    sys.path.insert(0, str(root))
    from wsca_jax.allocator import keep_freed_memory

    if options.allocator == "keep":
        keep_freed_memory()
    if "torch" in options.engine:
        import torch

        torch.set_num_threads(options.threads)
    clock = time.perf_counter if options.clock == "wall" else time.process_time
    print(f"{options.clock} time in ms, {options.threads} thread(s), allocator {options.allocator}")
    print("depth size batch    dtype    mode   native     ours    torch nat/ours  pt/ours")
    for dtype in options.dtype:
        for depth in options.depth:
            for size in options.size:
                for mode in options.mode:
                    case = Case(depth, size, options.batch or (32 if size <= 64 else 8), dtype, mode)
                    runs = {engine: build(case, engine) for engine in options.engine}
                    print(row(case, medians(runs, options.rounds, clock)), flush=True)


if __name__ == "__main__":
    main()
