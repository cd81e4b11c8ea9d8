"""The whole model: trunk, tokens, optional modules in their sockets, group heads."""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int32

from wsca_jax.models.resnet import Stages


class Outputs(NamedTuple):
    """Everything a forward pass knows; jit drops what nobody reads.

    Attributes:
      logits: float32 [B, A].
      tokens: [B, h, w, d], as the heads' pooling sees them.
      pooled: [B, d], the mean token after the router.
      stages: the trunk's feature maps.
      frequency, encoding, routing, decomposition: what the module in each socket returned, or None.
    """

    logits: Float32[Array, "B A"]
    tokens: Float[Array, "B h w d"]
    pooled: Float[Array, "B d"]
    stages: Stages
    frequency: Any = None
    encoding: Any = None
    routing: Any = None
    decomposition: Any = None


class WSCA(nn.Module):
    """Weakly supervised, disentangled cross-modal attribute recognition.

    The baseline is trunk, tokens and heads. Each further field is a socket: None leaves its parameters and
    its computation out, and nothing else changes.

    Attributes:
      trunk: (image, weight, train) -> `Stages`.
      tokens: (feature map, train) -> tokens [B, h, w, d].
      heads: (pooled, refined or None, trunk features [B, C] or None, train) -> logits [B, A].
      linear_path: whether the heads also see the trunk's mean feature, through one linear layer.
      token_stage: the trunk's stage that the tokens come from ("c3", "c4" or "c5").
      frequency: (image, train) -> record with `token` [B, 1, d].
      fusion: (tokens [B, h, w, d], frequency token [B, 1, d], train) -> tokens.
      encoder: (tokens, text tokens or None, train) -> record with `tokens` and `branches` [B, G, a].
      router: (pooled [B, d], train) -> record with `pooled` [B, d].
      decomposer: (tokens, branches or None, train) -> record with `refined` [B, G, a].
    """

    trunk: nn.Module
    tokens: nn.Module
    heads: nn.Module
    linear_path: bool = True
    token_stage: str = "c5"
    frequency: nn.Module | None = None
    fusion: nn.Module | None = None
    encoder: nn.Module | None = None
    router: nn.Module | None = None
    decomposer: nn.Module | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.frequency is None) != (self.fusion is None):
            raise ValueError("WSCA: frequency and fusion come together: set both, or neither")

    def __call__(
        self,
        image: Float[Array, "B H W 3"],
        text: Int32[Array, "B T"] | None = None,
        *,
        weight: Float32[Array, "B"] | None = None,
        train: bool,
    ) -> Outputs:
        stages = self.trunk(image, weight=weight, train=train)
        tokens = self.tokens(getattr(stages, self.token_stage), train=train)
        frequency = encoding = routing = decomposition = branches = refined = None
        if self.frequency is not None and self.fusion is not None:
            frequency = self.frequency(image, train=train)
            tokens = self.fusion(tokens, frequency.token, train=train)
        if self.encoder is not None:
            encoding = self.encoder(tokens, text, train=train)
            tokens, branches = encoding.tokens, encoding.branches
            refined = branches
        pooled = jnp.mean(tokens, axis=(1, 2))
        if self.router is not None:
            routing = self.router(pooled, train=train)
            pooled = routing.pooled
        if self.decomposer is not None:
            decomposition = self.decomposer(tokens, branches, train=train)
            refined = decomposition.refined
        trunk = jnp.mean(stages.c5, axis=(1, 2)) if self.linear_path else None
        logits = self.heads(pooled, refined, trunk, train=train)
        return Outputs(logits, tokens, pooled, stages, frequency, encoding, routing, decomposition)
