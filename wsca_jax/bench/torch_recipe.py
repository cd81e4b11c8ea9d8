"""What PyTorch trains with where it stands beside us: augmentation, and the loss on known labels."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

LUMA = (0.2989, 0.587, 0.114)


class Jitter(Protocol):
    """As the section `augment` of a configuration."""

    @property
    def flip_probability(self) -> float: ...
    @property
    def brightness(self) -> float: ...
    @property
    def contrast(self) -> float: ...
    @property
    def saturation(self) -> float: ...
    @property
    def hue(self) -> float: ...


def masked_loss(logits: Tensor, labels: Tensor, known: Tensor) -> Tensor:
    """Mean binary cross-entropy over the known entries; 0 where there are none. All are [B, A]."""
    loss = torch.nn.functional.binary_cross_entropy_with_logits(
        logits.float(), labels.float(), known.float(), reduction="sum"
    )
    return loss / known.sum().clamp(min=1)


def augment(image: Tensor, jitter: Jitter | None = None) -> Tensor:
    """Flips, and where `jitter` is given colour jitter; normalised NCHW images, channels last.

    Args:
      image: uint8 [B, H, W, 3].
      jitter: without it half of the images are flipped.
    """
    x = scaled(image)
    x = torch.where(_uniform(x, 0, 1) < (0.5 if jitter is None else jitter.flip_probability), x.flip(3), x)
    return normalise(x if jitter is None else _jitter(x, jitter))


def scaled(image: Tensor) -> Tensor:
    """uint8 NHWC to floats in [0, 1], NCHW."""
    return image.permute(0, 3, 1, 2).float().div_(255)


def normalise(x: Tensor) -> Tensor:
    return (x - 0.45) / 0.225


def _jitter(x: Tensor, jitter: Jitter) -> Tensor:
    """The colour steps that are on, each with a factor per image."""
    luma = torch.tensor(LUMA, device=x.device).view(1, 3, 1, 1)
    if jitter.brightness:
        x = (x * _factor(x, jitter.brightness)).clamp_(0, 1)
    if jitter.contrast:
        grey = (x * luma).sum(1, keepdim=True).mean((2, 3), keepdim=True)
        x = (grey + _factor(x, jitter.contrast) * (x - grey)).clamp_(0, 1)
    if jitter.saturation:
        grey = (x * luma).sum(1, keepdim=True)
        x = (grey + _factor(x, jitter.saturation) * (x - grey)).clamp_(0, 1)
    return turn_hue(x, _uniform(x, -jitter.hue, jitter.hue)) if jitter.hue else x


def turn_hue(x: Tensor, turns: Tensor) -> Tensor:
    """Turns the hue of HSV by [B, 1, 1, 1] parts of the colour circle, leaving saturation and value."""
    red, green, blue = x.unbind(1)
    value, chroma = x.amax(1), x.amax(1) - x.amin(1)
    per_chroma = 1 / torch.where(chroma > 0, chroma, 1)
    of_red, of_green, of_blue = (
        (green - blue) * per_chroma,
        (blue - red) * per_chroma + 2,
        (red - green) * per_chroma + 4,
    )
    sixths = torch.where(value == red, of_red, torch.where(value == green, of_green, of_blue))
    starts = torch.tensor((5.0, 3.0, 1.0), device=x.device).view(1, 3, 1, 1)
    k = (sixths[:, None] + 6 * turns + starts).remainder(6)
    return value[:, None] - chroma[:, None] * torch.minimum(k, 4 - k).clamp(0, 1)


def _factor(x: Tensor, spread: float) -> Tensor:
    return _uniform(x, max(0.0, 1 - spread), 1 + spread)


def _uniform(x: Tensor, low: float, high: float) -> Tensor:
    """A number in [low, high) for each image."""
    return low + (high - low) * torch.rand(len(x), 1, 1, 1, device=x.device)
