"""Pseudo labels: which known entries are kept to judge them, which unknown ones take one, what it teaches.

A pseudo label of an entry (example, attribute) is a probability q, and its quality r the probability that
rounding q is right. Everything is float32, and every entry of an example of weight 0 stays out.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Bool, Float, Float32, Int, Int32, Num

from wsca_jax.losses.classification import Scalar

# Weyl sequences that spread evenly: 2^32 over the golden ratio, and over the plastic one.
_STEP_STRIDE, _ATTRIBUTE_STRIDE = 2654435769, 3242174889


def held_out(
    index: Int32[Array, "B"], num_attributes: int, fraction: float = 0.1, seed: int = 0
) -> Bool[Array, "B A"]:
    """A random `fraction` of all entries, always the same ones.

    Depends on (seed, index, attribute) alone: not on the batch, on an example's place in it, or on what else
    is in the program. (Hence the generator is named here, and not left to a global setting.)

    Args:
      index: the example's position in its source.
      num_attributes: A.
      fraction: expected share, in [0, 1).
      seed: another seed, another choice.

    Returns:
      bool [B, A], known or not; combine it with `known`.

    Raises:
      ValueError: fraction lies outside [0, 1).
    """
    if not 0.0 <= fraction < 1.0:
        raise ValueError(f"fraction must lie in [0, 1), found {fraction}")
    key = jax.random.key(seed, impl="threefry2x32")

    def draws(position: Int32[Array, ""]) -> Float32[Array, "A"]:
        return jax.random.uniform(jax.random.fold_in(key, position), (num_attributes,), jnp.float32)

    return jax.vmap(draws)(jnp.asarray(index)) < fraction


def accept(
    probability: Float[Array, "B A"],
    quality: Float[Array, "B A"],
    labels: Num[Array, "B A"],
    known: Bool[Array, "B A"],
    weight: Float[Array, "B"],
    step: Int[Array, ""] | int,
    *,
    warmup_steps: int = 500,
    ramp_steps: int = 2000,
    threshold_start: float = 0.95,
    threshold_end: float = 0.9,
    pseudo_counts: float = 10.0,
) -> Bool[Array, "B A"]:
    """Which unknown entries take their pseudo label.

    From `warmup_steps` on, those whose r lies above `threshold`. Of an attribute's entries, as many may take
    a positive pseudo label (q > 1/2) as its `prevalence` lets expect among the unknown ones, and as many a
    negative one as the rest; the highest r go first, equal ones in the batch's order. Such an expectation is
    no whole number: it is rounded up at some steps and down at others, so that over steps it is met on
    average and a rare attribute, with less than one expected per batch, is not told "absent" alone.

    Args:
      probability: q in [0, 1].
      quality: r in [0, 1].
      labels: 0 or 1; read only where known.
      known: which labels are known, held-out ones included: none of these is ever accepted.
      weight: each example's weight in [0, 1]; 0 for padding.
      step: optimiser steps taken.
      warmup_steps, ramp_steps, threshold_start, threshold_end: see `threshold`.
      pseudo_counts: see `prevalence`.

    Returns:
      bool [B, A].

    Raises:
      ValueError: a setting lies outside its range.
    """
    _check(warmup_steps, ramp_steps, threshold_start, threshold_end, pseudo_counts)
    step = jnp.asarray(step)
    unknown = _unknown(known, weight)
    least = threshold(step, warmup_steps, ramp_steps, threshold_start, threshold_end)
    candidates = unknown & (quality.astype(jnp.float32) > least) & (step >= warmup_steps)
    positive = probability > 0.5
    rate = prevalence(probability, labels, known, weight, pseudo_counts)
    allowed = jnp.stack([rate, 1.0 - rate]) * unknown.sum(0) + _dither(step, rate.shape[0])
    candidates = jnp.stack([candidates & positive, candidates & ~positive])
    return (candidates & (_rank(quality, candidates) < jnp.floor(allowed)[:, None])).any(0)


def threshold(
    step: Int[Array, ""] | int, warmup_steps: int, ramp_steps: int, start: float, end: float
) -> Scalar:
    """The r to exceed: `start` until warm-up is over, then linear in `ramp_steps` steps to `end`."""
    progress = (jnp.asarray(step, jnp.float32) - warmup_steps) / max(ramp_steps, 1)
    return start + (end - start) * jnp.clip(progress, 0.0, 1.0)


def prevalence(
    probability: Float[Array, "B A"],
    labels: Num[Array, "B A"],
    known: Bool[Array, "B A"],
    weight: Float[Array, "B"],
    pseudo_counts: float,
) -> Float32[Array, "A"]:
    """How common each attribute is, from this batch alone: no state to keep, or to agree on between hosts.

        (known positives + pseudo_counts * mean q) / (known entries + pseudo_counts)

    with the mean over all examples; everything weighed by `weight`.
    """
    weight = weight.astype(jnp.float32)
    counted = jnp.where(known, weight[:, None], 0.0)
    total = weight.sum()
    mean = weight @ probability.astype(jnp.float32) / jnp.where(total > 0, total, 1.0)
    positives = (counted * (labels > 0)).sum(0)
    return (positives + pseudo_counts * mean) / (counted.sum(0) + pseudo_counts)


def pseudo_label_loss(
    logits: Float[Array, "B A"],
    probability: Float[Array, "B A"],
    quality: Float[Array, "B A"],
    accepted: Bool[Array, "B A"],
    weight: Float[Array, "B"],
) -> Scalar:
    """Binary cross-entropy of the logits against q, each accepted entry weighed by r:

        sum over accepted entries of w r BCE(logit, q) / (A sum over examples of w)

    The sum is divided by the batch's entries, not by the accepted ones: an entry weighs the same whether few
    or many were accepted, and the term grows with what it has to say (as in FixMatch). q and r carry no
    gradient.

    Args:
      logits: any float dtype.
      probability: q in [0, 1].
      quality: r in [0, 1].
      accepted: which entries count.
      weight: each example's weight in [0, 1]; 0 for padding.

    Returns:
      A float32 scalar; 0 when nothing is accepted.

    References:
      Sohn et al., FixMatch, 2020, https://arxiv.org/abs/2001.07685
    """
    probability, quality = lax.stop_gradient((probability, quality))
    values = optax.sigmoid_binary_cross_entropy(logits.astype(jnp.float32), probability.astype(jnp.float32))
    weight = weight.astype(jnp.float32)
    share = jnp.where(accepted, weight[:, None] * quality.astype(jnp.float32), 0.0)
    total = weight.sum() * logits.shape[1]
    return (values * share).sum() / jnp.where(total > 0, total, 1.0)


def _unknown(known: Bool[Array, "B A"], weight: Float[Array, "B"]) -> Bool[Array, "B A"]:
    return ~known & (weight > 0)[:, None]


def _rank(quality: Float[Array, "B A"], candidates: Bool[Array, "2 B A"]) -> Int[Array, "2 B A"]:
    """Each candidate's place among the candidates of its attribute and polarity, 0 for the highest r."""
    order = jnp.argsort(jnp.where(candidates, -quality.astype(jnp.float32), jnp.inf), axis=1)
    return jnp.argsort(order, axis=1)


def _dither(step: Int[Array, ""], num_attributes: int) -> Float32[Array, "A"]:
    """Numbers in [0, 1), evenly spread over steps for each attribute and over attributes at each step.

    floor(x + dither) is x on average. Whole-number arithmetic that wraps, exact at any step.
    """
    attributes = jnp.arange(num_attributes, dtype=jnp.uint32)
    number = step.astype(jnp.uint32) * jnp.uint32(_STEP_STRIDE) + attributes * jnp.uint32(_ATTRIBUTE_STRIDE)
    return (number >> 8).astype(jnp.float32) * 2.0**-24


def _check(
    warmup_steps: int, ramp_steps: int, threshold_start: float, threshold_end: float, pseudo_counts: float
) -> None:
    for name, steps in (("warmup_steps", warmup_steps), ("ramp_steps", ramp_steps)):
        if steps < 0:
            raise ValueError(f"{name} must be at least 0, found {steps}")
    for name, value in (("threshold_start", threshold_start), ("threshold_end", threshold_end)):
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"{name} must lie in [0, 1], found {value}")
    if pseudo_counts <= 0:
        raise ValueError(f"pseudo_counts must be above 0, found {pseudo_counts}")
