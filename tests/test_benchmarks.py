"""The reference that our scores stand beside: it learns from known labels alone, and runs as it says."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from input_pipeline.batch import blank_batch

ROOT = Path(__file__).resolve().parent.parent
torch = pytest.importorskip("torch")


@pytest.fixture
def recipe(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import torch_recipe

    return torch_recipe


def test_the_loss_is_the_mean_over_known_labels(recipe):
    batch = blank_batch(2, 8, 3)
    labels, known = np.array([[1, 0, 1], [0, 1, 0]], np.uint8), np.array([[1, 1, 0], [0, 0, 1]], bool)
    logits = torch.tensor([[2.0, -1.0, 9.0], [9.0, -9.0, 0.5]])
    expected = np.log1p(np.exp([-2.0, -1.0, 0.5])).mean()
    for other in (labels, np.where(known, labels, 1 - labels)):
        found = recipe.masked_loss(logits, batch._replace(labels=other.astype(np.uint8), known=known))
        assert found.item() == pytest.approx(expected, rel=1e-6)
    nothing = batch._replace(labels=labels, known=np.zeros_like(known))
    assert recipe.masked_loss(logits, nothing).item() == 0.0


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
