"""A plain PyTorch ResNet trained on the very batches of a recipe, and judged by the same metrics.

    python benchmarks/torch_reference.py --config configs/celeba.py:small --data_dir ~/celeba
    python benchmarks/torch_reference.py --config configs/cub.py:small --data_dir ~/cub --split test

What a score of ours is worth, on any data set: the recipe's depth, width, image size, batch size, epochs,
weak labels, random crops and learning rate, but one linear layer on the pooled trunk, AdamW with a one-cycle
schedule, flips, no moving average. `--jitter` adds the recipe's colour jitter. The last step is measured.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from wsca_jax import assembly, report  # noqa: E402
from wsca_jax import config as configs  # noqa: E402
from wsca_jax.bench.torch_recipe import augment, masked_loss, normalise, scaled  # noqa: E402
from wsca_jax.bench.torch_resnet import ReferenceResNet  # noqa: E402
from wsca_jax.metrics import Predictions, compute, merge  # noqa: E402


def arguments() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="configs/scenes.py:quickstart")
    parser.add_argument("--data_dir", type=Path)
    parser.add_argument("--split", default="validation", choices=("train", "validation", "test"))
    parser.add_argument("--jitter", action="store_true", help="the recipe's colour jitter, too")
    return parser.parse_known_args()


def train(config, source, jitter) -> torch.nn.Module:
    """The model after the recipe's last step."""
    torch.manual_seed(config.seed)
    trunk, recipe = config.model.trunk, config.optimizer
    model = ReferenceResNet(trunk.depth, source.schema.num_attributes, trunk.width)
    model = model.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay, foreach=True
    )
    steps = assembly.make_schedule(config, len(source)).total
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.learning_rate, steps, pct_start=max(recipe.warmup_fraction, 2 / steps)
    )
    batches = assembly.train_batches(config, assembly.make_text(config, source.schema), source, 0)
    for step, batch in zip(range(steps), batches, strict=False):
        optimizer.zero_grad()
        image, labels, known = (torch.from_numpy(x) for x in (batch.image, batch.labels, batch.known))
        loss = masked_loss(model(augment(image, jitter)), labels, known)
        loss.backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % max(1, steps // 10) == 0:
            print(f"step {step + 1} of {steps}: loss {loss.item():.4f}", file=sys.stderr)
    return model


@torch.inference_mode()
def predict(config, source, model: torch.nn.Module) -> Predictions:
    """Logits of every image of the split, beside all that is known of it."""
    model.eval()
    batches = assembly.eval_batches(config, assembly.make_text(config, source.schema), source)
    return merge(
        [
            Predictions.from_batch(model(normalise(scaled(torch.from_numpy(batch.image)))).numpy(), batch)
            for batch in batches
        ]
    )


def main() -> None:
    options, overrides = arguments()
    config = configs.load(options.config, overrides, options.data_dir)
    source = assembly.open_source(config, "train")
    start = time.perf_counter()
    model = train(config, source, config.augment if options.jitter else None)
    seconds = time.perf_counter() - start
    judged = assembly.open_source(config, options.split)
    results = compute(predict(config, judged, model), judged.schema)
    overall = results.overall
    print(f"PyTorch ResNet-{config.model.trunk.depth} on {options.config}, {config.data.images.size} px")
    print(report.format_results(results))
    print(
        f"\n{options.split}, {results.examples:,} images: mAP {overall.mAP:.4f} (chance "
        f"{overall.chance_mAP:.4f}), mean accuracy {overall.accuracy:.4f}, macro F1 {overall.f1:.4f}; "
        f"trained in {seconds:.0f} s"
    )


if __name__ == "__main__":
    main()
