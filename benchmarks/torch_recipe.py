"""What PyTorch trains with in the benchmarks beside it: augmentation, and the loss on known labels."""

from __future__ import annotations

import torch
from torch import Tensor

LUMA = (0.2989, 0.587, 0.114)


def masked_loss(logits: Tensor, batch) -> Tensor:
    """Mean binary cross-entropy over the known labels of an `AttributeBatch`."""
    labels, known = (torch.from_numpy(x).float() for x in (batch.labels, batch.known))
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels, known, reduction="sum")
    return loss / known.sum().clamp(min=1)


def augment(image: Tensor, jitter=None) -> Tensor:
    """Flips, and where `jitter` is given colour jitter; normalised NCHW images, channels last."""
    x = scaled(image)
    x = torch.where(torch.rand(len(x), 1, 1, 1) < 0.5, x.flip(3), x)
    if jitter is not None:
        luma = torch.tensor(LUMA).view(1, 3, 1, 1)
        x = (x * _factor(x, jitter.brightness)).clamp_(0, 1)
        grey = (x * luma).sum(1, keepdim=True).mean((2, 3), keepdim=True)
        x = (grey + _factor(x, jitter.contrast) * (x - grey)).clamp_(0, 1)
        grey = (x * luma).sum(1, keepdim=True)
        x = (grey + _factor(x, jitter.saturation) * (x - grey)).clamp_(0, 1)
    return normalise(x)


def scaled(image: Tensor) -> Tensor:
    """uint8 NHWC to floats in [0, 1], NCHW."""
    return image.permute(0, 3, 1, 2).float().div_(255)


def normalise(x: Tensor) -> Tensor:
    return (x - 0.45) / 0.225


def _factor(x: Tensor, spread: float) -> Tensor:
    return 1 + spread * (2 * torch.rand(len(x), 1, 1, 1) - 1)
