"""An independent ResNet v1.5 in plain PyTorch, with torchvision's parameter names.

Written from the papers (He et al. 2016, arXiv:1512.03385; the stride of a bottleneck on its 3x3, as in
torchvision) for the benchmarks and the tests; nothing else of `wsca_jax` is used here.
"""

from __future__ import annotations

import torch
from torch import nn

BLOCKS = {18: (2, 2, 2, 2), 26: (2, 2, 2, 2), 50: (3, 4, 6, 3)}


class BasicBlock(nn.Module):
    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = shortcut(inputs, width, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(x)) + identity)


class Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = shortcut(inputs, 4 * width, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        return self.relu(self.bn3(self.conv3(x)) + identity)


def shortcut(inputs: int, outputs: int, stride: int) -> nn.Module | None:
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


class ReferenceResNet(nn.Module):
    """image [B, 3, H, W] -> logits [B, num_classes]; `stages(image)` gives C2..C5.

    What comes after `width` is that of `wsca_jax.models.resnet.ResNet`.
    """

    def __init__(
        self,
        depth: int,
        num_classes: int = 10,
        width: int = 64,
        *,
        stem_kernel: int = 7,
        stem_stride: int = 2,
        max_pool: bool = True,
        last_stride: int = 2,
    ) -> None:
        super().__init__()
        block = BasicBlock if depth == 18 else Bottleneck
        self.conv1 = nn.Conv2d(3, width, stem_kernel, stem_stride, (stem_kernel - 1) // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1) if max_pool else nn.Identity()
        strides = (1, 2, 2, last_stride)
        inputs = width
        for i, count in enumerate(BLOCKS[depth]):
            features, blocks = width * 2**i, list[nn.Module]()
            for j in range(count):
                blocks.append(block(inputs, features, strides[i] if j == 0 else 1))
                inputs = features * block.expansion
            setattr(self, f"layer{i + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(inputs, num_classes)

    def stages(self, image: torch.Tensor) -> list[torch.Tensor]:
        x = self.maxpool(self.relu(self.bn1(self.conv1(image))))
        stages = []
        for number in range(1, 5):
            x = getattr(self, f"layer{number}")(x)
            stages.append(x)
        return stages

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.fc(self.stages(image)[-1].mean(dim=(2, 3)))
