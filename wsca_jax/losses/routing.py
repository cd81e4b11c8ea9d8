"""The router's losses: what its experts vote, how good the vote is, and how it spreads the load.

An entry (example, attribute) with a known label teaches the vote or the vote's quality, never both. Held-out
entries (see `pseudo_labels.held_out`) are the quality's, because only on labels that nothing was fitted to
does the vote show how often it is right. All losses are float32 means; examples count by weight.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Num

from wsca_jax.losses.classification import Scalar, binary_cross_entropy


def router_loss(
    votes: Float[Array, "B A"],
    quality: Float[Array, "B A"],
    probabilities: Float[Array, "B E"],
    labels: Num[Array, "B A"],
    taught: Bool[Array, "B A"],
    judged: Bool[Array, "B A"],
    weight: Float[Array, "B"],
    *,
    quality_weight: float = 1.0,
    balance_weight: float = 0.1,
    sparsity_weight: float = 0.01,
) -> Scalar:
    """Everything the router learns from, apart from the predictions it helps:

        vote_loss + quality_weight quality_loss + balance_weight load_balance + sparsity_weight sparsity

    Args:
      votes: vote logits.
      quality: logits of r, the probability that rounding the vote is right.
      probabilities: routing probabilities, rows summing to 1.
      labels: 0 or 1.
      taught: the known entries that teach the vote.
      judged: the known entries that teach its quality: others than those.
      weight: each example's weight in [0, 1]; 0 for padding.
      quality_weight, balance_weight, sparsity_weight: at least 0.

    Returns:
      A float32 scalar; 0 when no example has weight.

    Raises:
      ValueError: a coefficient is negative.
    """
    _check(quality_weight=quality_weight, balance_weight=balance_weight, sparsity_weight=sparsity_weight)
    return (
        vote_loss(votes, labels, taught, weight)
        + quality_weight * quality_loss(quality, votes, labels, judged, weight)
        + balance_weight * load_balance(probabilities, weight)
        + sparsity_weight * sparsity(probabilities, weight)
    )


def vote_loss(
    votes: Float[Array, "B A"],
    labels: Num[Array, "B A"],
    taught: Bool[Array, "B A"],
    weight: Float[Array, "B"],
) -> Scalar:
    """Binary cross-entropy of the votes, averaged over the entries that teach them."""
    return binary_cross_entropy(votes, labels, taught, weight)


def quality_loss(
    quality: Float[Array, "B A"],
    votes: Float[Array, "B A"],
    labels: Num[Array, "B A"],
    judged: Bool[Array, "B A"],
    weight: Float[Array, "B"],
) -> Scalar:
    """Binary cross-entropy of r against "rounding the vote gives the label", averaged over `judged` entries.

    A proper score: r is pulled towards the frequency with which such votes are right. The votes enter by
    their sign alone and get no gradient.
    """
    right = (votes > 0) == (labels > 0)
    return binary_cross_entropy(quality, right, judged, weight)


def load_balance(probabilities: Float[Array, "B E"], weight: Float[Array, "B"]) -> Scalar:
    """KL(mean over examples of pi || uniform): 0 for equal load, log E where one expert has it all.

    For what it is good for see Shazeer et al., Outrageously Large Neural Networks: The Sparsely-Gated
    Mixture-of-Experts Layer, 2017, https://arxiv.org/abs/1701.06538 (there with another measure of spread).
    """
    mean = _mean(probabilities.astype(jnp.float32), weight)
    return (mean * _log(mean * probabilities.shape[-1])).sum()


def sparsity(probabilities: Float[Array, "B E"], weight: Float[Array, "B"]) -> Scalar:
    """The entropy of each example's pi, averaged: 0 for a decided router, log E for an undecided one."""
    probabilities = probabilities.astype(jnp.float32)
    return _mean(-(probabilities * _log(probabilities)).sum(-1), weight)


def _log(values: Float32[Array, "..."]) -> Float32[Array, "..."]:
    """log, kept finite with its gradient at 0, which a softmax reaches by rounding."""
    return jnp.log(jnp.maximum(values, jnp.finfo(jnp.float32).tiny))


def _mean(values: Float32[Array, "B ..."], weight: Float[Array, "B"]) -> Float32[Array, "..."]:
    """The weighted mean over examples; 0 where none has weight."""
    weight = weight.astype(jnp.float32)
    total = weight.sum()
    return jnp.tensordot(weight, values, axes=1) / jnp.where(total > 0, total, 1.0)


def _check(**coefficients: float) -> None:
    for name, value in coefficients.items():
        if value < 0:
            raise ValueError(f"{name} must be at least 0, found {value}")
