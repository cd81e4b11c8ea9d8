"""Experts that refine the pooled image and vote on its attributes, and how far to trust their vote."""

from __future__ import annotations

import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32

_per_expert = nn.initializers.lecun_normal(batch_axis=(0,))
# A residual branch starts small, so that the predictor first sees the image much as it was.
_per_expert_small = nn.initializers.variance_scaling(0.1, "fan_in", "truncated_normal", batch_axis=(0,))
_small = nn.initializers.variance_scaling(0.01, "fan_in", "truncated_normal")


class Routing(NamedTuple):
    """What the router returns.

    Attributes:
      pooled: [B, d], x + sum_k pi_k e_k, for the predictor.
      probabilities: float32 [B, E], pi, rows summing to 1; from noisy gate logits in training.
      assignment: float32 [B, C], how much of each cluster's centre the features hold, rows summing to 1.
      votes: float32 [B, A], vote logits weighed by the noiseless pi.
      quality: float32 [B, A], the logit of r, the probability that rounding the vote is right.
      features: [B, d], what gate, experts and quality head read.
    """

    pooled: Float[Array, "B d"]
    probabilities: Float32[Array, "B E"]
    assignment: Float32[Array, "B C"]
    votes: Float32[Array, "B A"]
    quality: Float32[Array, "B A"]
    features: Float[Array, "B d"]


class PseudoLabelRouter(nn.Module):
    """Soft mixture of experts over the pooled image, whose experts also vote attribute logits.

    With n = LayerNorm(x), learned centres c [C, d], and E experts:

        s = softmax(n c^T / sqrt(d))          assignment to clusters
        f = n + s c                           features; n is kept, so that their rank is not bound by C
        pi = softmax(gate(f) + noise)         routing; the noise, of learned scale, in training only
        h_k = relu(U_k f)                     what expert k computes
        x' = x + sum_k pi_k V_k dropout(h_k)
        votes = sum_k pi_k W_k h_k + b        pi without noise, h without dropout
        r = sigmoid(slope |votes| + bias sign(votes) + g(f)),   g a narrow two-layer perceptron

    Votes are the same function of the features in training and in evaluation, so r speaks in training of
    exactly what a teacher will say. r starts near sigmoid(|votes|), which is right where the votes are
    calibrated; slope and bias (per attribute) correct them by Platt's rule, and g, narrow because the entries
    that teach r are few, corrects them by what the image shows. Neither features nor votes get a gradient
    from r.

    Random streams: "router" for the gate's noise and "dropout", both in training only.

    Attributes:
      num_attributes: A.
      hidden_size: width d of the pooled image.
      experts: E, at least 2.
      clusters: C, at least 2.
      expert_ratio: an expert's inner width as a multiple of d.
      quality_size: inner width of g.
      gate_noise: initial standard deviation of the noise on gate logits, above 0.
      dropout: rate inside the experts, on their way to x'.
      dtype: dtype of the matrix products; gate, softmaxes, votes and quality are float32.

    Raises:
      ValueError: a setting lies outside its range.

    References:
      Shazeer et al., Outrageously Large Neural Networks, 2017, https://arxiv.org/abs/1701.06538 (noisy gate);
      Platt, Probabilistic Outputs for Support Vector Machines, 1999.
    """

    num_attributes: int
    hidden_size: int
    experts: int = 4
    clusters: int = 8
    expert_ratio: float = 0.5
    quality_size: int = 8
    gate_noise: float = 0.5
    dropout: float = 0.1
    dtype: DTypeLike = jnp.bfloat16

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("experts", 2), ("clusters", 2), ("quality_size", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"router: {name} must be at least {least}, found {getattr(self, name)}")
        for name in ("expert_ratio", "gate_noise"):
            if getattr(self, name) <= 0:
                raise ValueError(f"router: {name} must be above 0, found {getattr(self, name)}")

    def setup(self) -> None:
        experts, width, attributes = self.experts, self.hidden_size, self.num_attributes
        inner = max(1, round(self.expert_ratio * width))
        zeros, ones = nn.initializers.zeros, nn.initializers.ones
        noise = nn.initializers.constant(math.log(math.expm1(self.gate_noise)))  # softplus undoes it
        self.norm = nn.LayerNorm(dtype=self.dtype)
        self.centres = self.param("centres", nn.initializers.normal(1.0), (self.clusters, width), jnp.float32)
        self.gate = nn.Dense(experts, dtype=jnp.float32)
        self.noise_scale = self.param("noise_scale", noise, (experts,), jnp.float32)
        self.hidden_kernel = self.param("hidden_kernel", _per_expert, (experts, width, inner), jnp.float32)
        self.hidden_bias = self.param("hidden_bias", zeros, (experts, inner), jnp.float32)
        self.drop = nn.Dropout(self.dropout)
        self.output_kernel = self.param(
            "output_kernel", _per_expert_small, (experts, inner, width), jnp.float32
        )
        self.output_bias = self.param("output_bias", zeros, (experts, width), jnp.float32)
        self.vote_kernel = self.param("vote_kernel", _per_expert, (experts, inner, attributes), jnp.float32)
        self.vote_bias = self.param("vote_bias", zeros, (attributes,), jnp.float32)
        self.quality_hidden = nn.Dense(self.quality_size, dtype=jnp.float32)
        self.quality_output = nn.Dense(attributes, dtype=jnp.float32, kernel_init=_small)
        self.slope_scale = self.param("slope_scale", ones, (attributes,), jnp.float32)
        self.sign_bias = self.param("sign_bias", zeros, (attributes,), jnp.float32)

    def __call__(self, pooled: Float[Array, "B d"], *, train: bool) -> Routing:
        normed = self.norm(pooled)
        assignment = self._assign(normed)
        features = normed + assignment.astype(self.dtype) @ self.centres.astype(self.dtype)
        gate, hidden = self.gate(features), self._hidden(features)
        probabilities = nn.softmax(gate + self._noise(gate) if train else gate)
        refinement = self._refine(self.drop(hidden, deterministic=not train), probabilities)
        votes, quality = self._vote(features, hidden, nn.softmax(gate))
        return Routing(
            pooled + refinement.astype(pooled.dtype), probabilities, assignment, votes, quality, features
        )

    def votes(self, features: Float[Array, "B d"]) -> tuple[Float32[Array, "B A"], Float32[Array, "B A"]]:
        """Votes on given features, such as another copy of the model computed. Nothing random.

        Args:
          features: [B, d], as in `Routing.features`.

        Returns:
          votes: float32 [B, A], logits.
          quality: float32 [B, A], logits.
        """
        return self._vote(features, self._hidden(features), nn.softmax(self.gate(features)))

    def _assign(self, normed: Float[Array, "B d"]) -> Float32[Array, "B C"]:
        similarity = normed.astype(jnp.float32) @ self.centres.T
        return nn.softmax(similarity / math.sqrt(self.hidden_size))

    def _noise(self, gate: Float32[Array, "B E"]) -> Float32[Array, "B E"]:
        return nn.softplus(self.noise_scale) * jax.random.normal(self.make_rng("router"), gate.shape)

    def _hidden(self, features: Float[Array, "B d"]) -> Float[Array, "B E h"]:
        features = features.astype(self.dtype)
        hidden = jnp.einsum("bd,edh->beh", features, self.hidden_kernel.astype(self.dtype))
        return nn.relu(hidden + self.hidden_bias.astype(self.dtype))

    def _refine(
        self, hidden: Float[Array, "B E h"], probabilities: Float32[Array, "B E"]
    ) -> Float32[Array, "B d"]:
        return self._mix(hidden, probabilities, self.output_kernel) + probabilities @ self.output_bias

    def _vote(
        self,
        features: Float[Array, "B d"],
        hidden: Float[Array, "B E h"],
        probabilities: Float32[Array, "B E"],
    ) -> tuple[Float32[Array, "B A"], Float32[Array, "B A"]]:
        votes = self._mix(hidden, probabilities, self.vote_kernel) + self.vote_bias
        return votes, self._quality(features, votes)

    def _mix(
        self,
        hidden: Float[Array, "B E h"],
        probabilities: Float32[Array, "B E"],
        kernel: Float32[Array, "E h n"],
    ) -> Float32[Array, "B n"]:
        """sum_k pi_k kernel_k h_k as one matrix product."""
        weighed = (hidden * probabilities[:, :, None]).astype(self.dtype)
        return jnp.einsum(
            "beh,ehn->bn", weighed, kernel.astype(self.dtype), preferred_element_type=jnp.float32
        )

    def _quality(self, features: Float[Array, "B d"], votes: Float32[Array, "B A"]) -> Float32[Array, "B A"]:
        features, votes = lax.stop_gradient((features, votes))
        seen = self.quality_output(nn.relu(self.quality_hidden(features)))
        return self.slope_scale * jnp.abs(votes) + self.sign_bias * jnp.sign(votes) + seen
