"""The reference that our scores stand beside: it learns from known labels alone, and runs as it says."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
torch = pytest.importorskip("torch")


def test_the_loss_is_the_mean_over_known_labels():
    from wsca_jax.bench.torch_recipe import masked_loss

    labels, known = np.array([[1, 0, 1], [0, 1, 0]], np.uint8), np.array([[1, 1, 0], [0, 0, 1]], bool)
    logits = torch.tensor([[2.0, -1.0, 9.0], [9.0, -9.0, 0.5]])
    expected = np.log1p(np.exp([-2.0, -1.0, 0.5])).mean()
    for other in (labels, np.where(known, labels, 1 - labels)):
        found = masked_loss(logits, torch.from_numpy(other.astype(np.uint8)), torch.from_numpy(known))
        assert found.item() == pytest.approx(expected, rel=1e-6)
    assert masked_loss(logits, torch.from_numpy(labels), torch.zeros(2, 3, dtype=bool)).item() == 0.0


@pytest.mark.slow
def test_the_reference_runs_on_a_recipe():
    command = [sys.executable, "benchmarks/torch_reference.py", "--config", "configs/scenes.py:tiny"]
    out = subprocess.run(
        [*command, "--config.train.epochs=1"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    figures = re.search(
        r"validation, 40 images: mAP (0\.\d+) \(chance (0\.\d+)\), mean accuracy (0\.\d+)", out
    )
    assert all(0 < float(figure) < 1 for figure in figures.groups())
