"""The baseline model, trunk to group heads, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from wsca_jax.bench.torch_resnet import ReferenceResNet
from wsca_jax.bench.torch_step import Shape

STAGES = ("c2", "c3", "c4", "c5")
EPSILON = 1e-6  # of Flax's LayerNorm


class Baseline(nn.Module):
    """image [B, 3, H, W] -> logits of each classifier [P, B, A], as `wsca_jax.models.wsca.WSCA` without
    modules.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.trunk = ReferenceResNet(num_classes=1, **shape.trunk)
        del self.trunk.fc
        self.tokens, self.heads = Tokens(shape, self._widths()), GroupHeads(shape)
        attributes = len(shape.group_of)
        self.linear = nn.Linear(self._widths()[-1], attributes) if shape.linear_path else None
        self.token_gradient = shape.token_gradient if shape.linear_path else 1.0

    def _widths(self) -> list[int]:
        """Channels of the trunk's stages."""
        with torch.no_grad():
            mode = self.trunk.training
            found = [len(x[0]) for x in self.trunk.eval().stages(torch.zeros(1, 3, 64, 64))]
            self.trunk.train(mode)
        return found

    def forward(self, image: Tensor) -> Tensor:
        stages = self.trunk.stages(image)
        path = [_scale_gradient(stage, self.token_gradient) for stage in stages]
        logits = [self.heads(self.tokens(path).mean((2, 3)))]
        if self.linear is not None:
            logits.append(self.linear(stages[-1].mean((2, 3))))
        return torch.stack(logits)


class Tokens(nn.Module):
    """Stages -> tokens [B, d, h, w]: pooling, projection, what later stages add, norms, ReLU, dropout."""

    def __init__(self, shape: Shape, widths: list[int]) -> None:
        super().__init__()
        self.first, self.grid = STAGES.index(shape.token_stage), shape.grid
        above = widths[self.first + 1 :] if shape.top_down else []
        self.projection = nn.Conv2d(widths[self.first], shape.hidden_size, 1, bias=False)
        self.from_above = nn.ModuleList(nn.Conv2d(n, shape.hidden_size, 1, bias=False) for n in above)
        self.centre = nn.BatchNorm2d(shape.hidden_size)
        self.norm = nn.LayerNorm(shape.hidden_size, EPSILON)
        self.dropout = nn.Dropout(shape.token_dropout)

    def forward(self, stages: list[Tensor]) -> Tensor:
        feature = stages[self.first]
        height, width = (min(self.grid, side) for side in feature.shape[2:])
        tokens = self.projection(functional.adaptive_avg_pool2d(feature, (height, width)))
        for project, above in zip(self.from_above, stages[self.first + 1 :], strict=False):
            tokens = tokens + functional.interpolate(project(above), (height, width), mode="bilinear")
        normed = self.norm(self.centre(tokens).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.dropout(functional.relu(normed))


class GroupHeads(nn.Module):
    """Pooled image [B, d] -> logits [B, A], a classifier for each group."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        groups, width = max(shape.group_of) + 1, shape.hidden_size // 2
        self.pooled = nn.Linear(shape.hidden_size, shape.attr_dim, bias=False)
        self.centre = nn.BatchNorm1d(shape.attr_dim)
        self.norm = nn.LayerNorm(shape.attr_dim, EPSILON)
        self.projector = nn.Linear(shape.attr_dim, shape.hidden_size)
        self.hidden_kernel = _weights(groups, shape.hidden_size, width, fan_in=shape.hidden_size)
        self.hidden_bias = nn.Parameter(torch.zeros(groups, width))
        self.kernel = _weights(len(shape.group_of), width, fan_in=width)
        self.bias = nn.Parameter(torch.zeros(len(shape.group_of)))
        self.dropout = nn.Dropout(shape.head_dropout)
        self.register_buffer("group_of", torch.tensor(shape.group_of), persistent=False)

    def forward(self, pooled: Tensor) -> Tensor:
        features = self.projector(self.norm(self.centre(self.pooled(pooled))))
        hidden = torch.einsum("bd,gdh->bgh", features, self.hidden_kernel) + self.hidden_bias
        own = self.dropout(functional.relu(hidden))[:, self.group_of]
        return torch.einsum("bah,ah->ba", own, self.kernel) + self.bias


def _weights(*shape: int, fan_in: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape) / fan_in**0.5)


def _scale_gradient(x: Tensor, scale: float) -> Tensor:
    stopped = x.detach()
    return stopped + scale * (x - stopped) if scale else stopped
