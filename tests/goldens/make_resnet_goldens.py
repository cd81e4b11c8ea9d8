"""Writes resnet.json: figures of the independent PyTorch ResNet with seeded weights.

Run from the repository's root, with PyTorch installed:  python tests/goldens/make_resnet_goldens.py
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from seeded_weights import seeded, seeded_image  # noqa: E402

from wsca_jax.bench.torch_resnet import ReferenceResNet  # noqa: E402

WIDTH, SIZE, BATCH = 16, 64, 2


def seeded_reference(depth: int, width: int) -> ReferenceResNet:
    model = ReferenceResNet(depth, width=width).eval()
    counters = {name: x for name, x in model.state_dict().items() if name.endswith("num_batches_tracked")}
    weights = {
        name: torch.from_numpy(seeded(name, tuple(x.shape)))
        for name, x in model.state_dict().items()
        if name not in counters
    }
    model.load_state_dict(weights | counters)
    return model


@torch.no_grad()
def figures(depth: int) -> dict[str, list]:
    """Logits [BATCH, 10], and per stage its shape (NHWC), mean and mean square."""
    model = seeded_reference(depth, WIDTH)
    image = torch.from_numpy(seeded_image(BATCH, SIZE)).permute(0, 3, 1, 2)
    record: dict[str, list] = {"logits": model(image).tolist()}
    for name, x in zip(("c2", "c3", "c4", "c5"), model.stages(image), strict=True):
        b, c, h, w = x.shape
        record[name] = [[b, h, w, c], x.double().mean().item(), x.double().square().mean().item()]
    return record


if __name__ == "__main__":
    record = {"width": WIDTH, "size": SIZE, "batch": BATCH}
    record |= {str(depth): figures(depth) for depth in (18, 26, 50)}
    (HERE / "resnet.json").write_text(json.dumps(record, indent=1) + "\n")
