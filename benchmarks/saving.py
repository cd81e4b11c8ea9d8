"""How long a save holds training up, and how long until what it wrote can be trusted.

    python benchmarks/saving.py                          # full WSCA, 224 px, 4 images a step
    python benchmarks/saving.py --config configs/celeba.py:small --batch 64

Trains on random images and labels, saves as `wsca train` does, and prints for each save

    pause     seconds in which the loop stood still for the save, once every step before it was done
    sealed    seconds from the beginning of the save until its checksums were on the disk
    beside    seconds of a step meanwhile

and their medians, beside the seconds of a step while nothing is saved. The first save, which also makes what
later ones find made, is shown and left out of the medians.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]


class Save(NamedTuple):
    pause: float
    sealed: float
    beside: float


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="configs/celeba.py:full")
    parser.add_argument("--batch", type=int, default=4, help="images in a step")
    parser.add_argument("--saves", type=int, default=4, help="how many, besides the first")
    parser.add_argument("--steps", type=int, default=4, help="steps that are timed with nothing being saved")
    parser.add_argument("--folder", type=Path, help="where to save; a temporary folder if left out")
    return parser.parse_args()


def random_batch(config: Any, schema: Any) -> Any:
    import numpy as np

    from input_pipeline.batch import blank_batch
    from wsca_jax import assembly

    columns = assembly.make_text(config, schema).options.columns
    rows, draw = config.train.batch_size, np.random.default_rng(0)
    batch = blank_batch(rows, config.data.images.size, schema.num_attributes, columns)
    return batch._replace(
        image=draw.integers(0, 256, batch.image.shape, np.uint8),
        labels=draw.integers(0, 2, batch.labels.shape, np.uint8),
        known=np.ones_like(batch.known),
        weight=np.ones_like(batch.weight),
        index=np.arange(rows, dtype=np.int32),
    )


class Training:
    """A run's state and its compiled step, and the seconds its steps take."""

    def __init__(self, config: Any) -> None:
        from wsca_jax import assembly
        from wsca_jax.engine import state as states
        from wsca_jax.engine.step import compile_train_step

        schema = assembly.data_schema(config)
        run = assembly.build(config, schema, config.train.batch_size * 1000)
        spec = assembly.batch_spec(config, schema, config.train.batch_size)
        self.state = states.create(run.method, run.optimizer, spec, seed=0, layout=run.layout)
        jitted = compile_train_step(run.method, run.optimizer, run.layout, self.state, seed=0)
        begun = time.perf_counter()
        self._step = jitted.lower(self.state, spec).compile()
        self.compile_seconds = time.perf_counter() - begun
        self._batch = run.layout.put_batch(random_batch(config, schema))

    def take(self) -> float:
        """One step, waited for; its seconds."""
        import jax

        begun = time.perf_counter()
        self.state, report = self._step(self.state, self._batch)
        jax.block_until_ready((self.state, report))
        return time.perf_counter() - begun


def save(training: Training, checkpoints: Any, workdir: Path) -> Save:
    """Saves, and trains on until the save is sealed."""
    from wsca_jax.engine import manifest

    folder = workdir / "checkpoints" / str(int(training.state.step))
    wall, begun = time.time(), time.perf_counter()
    checkpoints.save(training.state)
    pause = time.perf_counter() - begun
    steps = [training.take()]
    while not (folder / manifest.NAME).exists():
        steps.append(training.take())
    checkpoints.wait()
    return Save(pause, (folder / manifest.NAME).stat().st_mtime - wall, statistics.median(steps))


def main() -> None:
    options = arguments()
    sys.path.insert(0, str(ROOT))
    from wsca_jax.allocator import keep_freed_memory

    keep_freed_memory()
    import jax

    from wsca_jax import config as configs
    from wsca_jax.engine.checkpoint import Checkpoints

    config = configs.load(options.config, (f"--config.train.batch_size={options.batch}",))
    training = Training(config)
    stored = sum(leaf.nbytes for leaf in jax.tree.leaves(training.state))
    print(
        f"{options.config}: {config.data.images.size} px, {options.batch} images a step, compiled in "
        f"{training.compile_seconds:.0f} s; a state of {stored:,} bytes",
        flush=True,
    )
    training.take()
    step = statistics.median(training.take() for _ in range(options.steps))
    print(f"a step with nothing being saved: {step:.3f} s", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        workdir = options.folder or Path(temporary)
        with Checkpoints(workdir) as checkpoints:
            saves = []
            for number in range(options.saves + 1):
                saves.append(save(training, checkpoints, workdir))
                print(
                    f"save {number}: pause {saves[-1].pause:.3f} s, sealed after {saves[-1].sealed:.1f} s, "
                    f"a step meanwhile {saves[-1].beside:.3f} s",
                    flush=True,
                )
    pause, sealed, beside = map(statistics.median, zip(*saves[1:], strict=True))
    print(
        f"median: pause {pause:.3f} s = {100 * pause / step:.1f} % of a step, sealed after {sealed:.1f} s, "
        f"a step meanwhile {beside / step:.2f} times as long"
    )


if __name__ == "__main__":
    main()
