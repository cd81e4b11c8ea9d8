"""A recipe's training throughput beside the same recipe in PyTorch eager, in turn, in one run on the CPU.

    python benchmarks/training.py                                       # rendered scenes
    python benchmarks/training.py --config configs/celeba.py:small --data_dir ~/celeba

Three trainings of one ResNet take turns, a few steps at a time, each fed by an input pipeline of its own:

    ours    the step that `wsca train` runs: augmentation, loss, clipping, AdamW, moving average, rollback
    same    PyTorch: the same flips and colour jitter, clipping, AdamW and moving average
    plain   PyTorch: flips and AdamW only

PyTorch runs channels last, with its multi-tensor optimiser. Figures are medians over rounds.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
REST = 0.5  # seconds: the engine before lets its threads sleep and its pipeline fill its buffer


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="configs/scenes.py:quickstart")
    parser.add_argument("--data_dir", type=Path)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=16, help="steps in a round of each engine")
    return parser.parse_args()


def jax_steps(config, source) -> Callable[[int], None]:
    """Ours: takes this many training steps and waits for the last."""
    import jax

    from wsca_jax import assembly
    from wsca_jax.engine import state as states
    from wsca_jax.engine.step import compile_train_step

    run = assembly.build(config, source.schema, len(source))
    spec = assembly.batch_spec(config, source.schema, config.train.batch_size)
    state = states.create(run.method, run.optimizer, spec, seed=0, layout=run.layout)
    step = compile_train_step(run.method, run.optimizer, run.layout, state, seed=0)
    batches = assembly.train_batches(config, run.text, source, 0)
    held = [state]

    def take(count: int) -> None:
        before = None
        for _ in range(count):
            held[0], report = step(held[0], jax.device_put(next(batches), run.layout.batch))
            jax.block_until_ready(before)  # one step ahead of the device, no further
            before = report
        jax.block_until_ready(held[0])

    return take


def torch_steps(config, source, same: bool) -> Callable[[int], None]:
    """PyTorch eager: takes this many training steps on batches of the same input pipeline."""
    import torch
    from reference_resnet import ReferenceResNet
    from torch_recipe import augment, masked_loss

    from wsca_jax import assembly

    recipe = config.optimizer
    model = ReferenceResNet(config.model.trunk.depth, source.schema.num_attributes)
    model = model.to(memory_format=torch.channels_last).train()
    parameters = list(model.parameters())
    average = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.AdamW(
        parameters, recipe.learning_rate, weight_decay=recipe.weight_decay, foreach=True
    )
    batches = assembly.train_batches(config, assembly.make_text(config, source.schema), source, 0)

    def take(count: int) -> None:
        for _ in range(count):
            batch = next(batches)
            image = augment(torch.from_numpy(batch.image), config.augment if same else None)
            optimizer.zero_grad()
            masked_loss(model(image), batch).backward()
            if same and recipe.clip_norm:
                torch.nn.utils.clip_grad_norm_(parameters, recipe.clip_norm)
            optimizer.step()
            if same and recipe.ema_decay:
                torch._foreach_lerp_(average, [p.detach() for p in parameters], 1 - recipe.ema_decay)

    return take


def main() -> None:
    options = arguments()
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    from wsca_jax.allocator import keep_freed_memory

    keep_freed_memory()
    from wsca_jax import assembly
    from wsca_jax import config as configs

    config = configs.load(options.config, (), options.data_dir)
    source = assembly.open_source(config, "train")
    engines = {
        "ours": jax_steps(config, source),
        "same": torch_steps(config, source, same=True),
        "plain": torch_steps(config, source, same=False),
    }
    for take in engines.values():
        take(3)
    rates: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(options.rounds):
        for name, take in engines.items():
            time.sleep(REST)
            start = time.perf_counter()
            take(options.steps)
            rates[name].append(options.steps * config.train.batch_size / (time.perf_counter() - start))
    found = {name: statistics.median(values) for name, values in rates.items()}
    print(f"{options.config}: ResNet-{config.model.trunk.depth}, {config.data.images.size} px")
    for name, rate in found.items():
        print(f"{name:>6}: {rate:5.0f} images/s, ours / {name}: {found['ours'] / rate:.2f}")


if __name__ == "__main__":
    main()
