"""Classification losses over known labels: arrays in, one float32 mean out.

An entry (example, attribute) counts with its example's weight where it is known, and not at all where it is
unknown: its logit then gets a gradient of exactly 0 (only in `softmax_cross_entropy` do known entries speak
for their unknown neighbours). Every loss is computed in float32, whatever the logits' precision. `count`,
`count_rows` and `count_questions` give the denominators, for averaging over several batches exactly.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Float32, Int, Num

Scalar = Float32[Array, ""]


def count(known: Bool[Array, "B A"], weight: Float[Array, "B"]) -> Scalar:
    """The weighted number of known entries: what the entrywise losses divide by."""
    return _entry_weight(known, weight).sum()


def count_rows(known: Bool[Array, "B *E K"], weight: Float[Array, "B"]) -> Scalar:
    """The weighted number of groups with any known entry: what `softmax_cross_entropy` divides by."""
    return _row_weight(known, weight).sum()


def count_questions(
    known: Bool[Array, "B A"], weight: Float[Array, "B"], exclusive: Int[np.ndarray, "E K"]
) -> Scalar:
    """What `of_questions` divides by: known entries and exclusive groups with any, weighted."""
    alone, inside = _split(known, exclusive)
    return count(alone, weight) + count_rows(inside, weight)


def binary_cross_entropy(
    logits: Float[Array, "B A"],
    labels: Num[Array, "B A"],
    known: Bool[Array, "B A"],
    weight: Float[Array, "B"],
) -> Scalar:
    """Binary cross-entropy, averaged over the known entries.

    Args:
      logits: any float dtype.
      labels: 0 or 1, or a probability in [0, 1].
      known: which entries count; unknown is not negative.
      weight: each example's weight in [0, 1]; 0 for padding.

    Returns:
      A float32 scalar; 0 when no entry is known.
    """
    values = optax.sigmoid_binary_cross_entropy(_f32(logits), _f32(labels))
    return _mean(values, _entry_weight(known, weight))


def focal(
    logits: Float[Array, "B A"],
    labels: Num[Array, "B A"],
    known: Bool[Array, "B A"],
    weight: Float[Array, "B"],
    *,
    gamma: float = 2.0,
    alpha: float | None = None,
) -> Scalar:
    """Focal loss, averaged over the known entries: cross-entropy times (1 - p_t)^gamma.

    p_t is the probability given to the true answer, so entries the model is sure and right about fade out.

    Args:
      logits, labels, known, weight: as in `binary_cross_entropy`.
      gamma: focusing exponent, at least 0; 0 gives binary cross-entropy.
      alpha: weight in (0, 1) of positive entries, negatives get 1 - alpha; None weighs both by 1.

    Returns:
      A float32 scalar; 0 when no entry is known.

    Raises:
      ValueError: gamma or alpha lies outside its range.

    References:
      Lin et al., Focal Loss for Dense Object Detection, 2017, https://arxiv.org/abs/1708.02002
    """
    _check_exponents(gamma=gamma)
    if alpha is not None and not 0.0 < alpha < 1.0:
        raise ValueError(f"alpha must lie in (0, 1) or be None, found {alpha}")
    values = optax.sigmoid_focal_loss(_f32(logits), _f32(labels), alpha=alpha, gamma=gamma)
    return _mean(values, _entry_weight(known, weight))


def asymmetric(
    logits: Float[Array, "B A"],
    labels: Num[Array, "B A"],
    known: Bool[Array, "B A"],
    weight: Float[Array, "B"],
    *,
    gamma_positive: float = 1.0,
    gamma_negative: float = 4.0,
    margin: float = 0.05,
) -> Scalar:
    """Asymmetric loss (ASL), averaged over the known entries.

    With p = sigmoid(logit) and p_m = max(p - margin, 0):

        positive entry:  -(1 - p)^gamma_positive log(p)
        negative entry:  -p_m^gamma_negative log(1 - p_m)

    A negative the model already puts below the margin costs nothing. The gradient passes through the focusing
    factors, as the paper derives it (its published code stops it there).

    Args:
      logits, labels, known, weight: as in `binary_cross_entropy`.
      gamma_positive, gamma_negative: focusing exponents, at least 0.
      margin: probability shift in [0, 1).

    Returns:
      A float32 scalar; 0 when no entry is known. Zero exponents and margin give binary cross-entropy.

    Raises:
      ValueError: an exponent or the margin lies outside its range.

    References:
      Ridnik et al., Asymmetric Loss For Multi-Label Classification, 2021, https://arxiv.org/abs/2009.14119
    """
    _check_exponents(gamma_positive=gamma_positive, gamma_negative=gamma_negative)
    if not 0.0 <= margin < 1.0:
        raise ValueError(f"margin must lie in [0, 1), found {margin}")
    logits, labels = _f32(logits), _f32(labels)
    log_p, log_not_p = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
    positive = jnp.exp(gamma_positive * log_not_p) * log_p
    negative = _shifted_negative(log_p, log_not_p, gamma_negative, margin)
    return _mean(-labels * positive - (1.0 - labels) * negative, _entry_weight(known, weight))


def of_questions(
    score: Callable[..., Scalar],
    logits: Float[Array, "B A"],
    labels: Num[Array, "B A"],
    known: Bool[Array, "B A"],
    weight: Float[Array, "B"],
    exclusive: Int[np.ndarray, "E K"],
) -> Scalar:
    """The mean over what is asked of each example: each entry by itself, each exclusive group as a whole.

    Args:
      score: the loss of entries outside of exclusive groups, such as `binary_cross_entropy`.
      logits, labels, known, weight: its arguments.
      exclusive: the attributes of each of E groups of which at most one attribute is present, filled up with
        -1; `softmax_cross_entropy` scores them.

    Returns:
      A float32 scalar; 0 when no entry is known.
    """
    alone, inside = _split(known, exclusive)
    entries, groups = count(alone, weight), count_rows(inside, weight)
    total = entries + groups
    summed = entries * score(logits, labels, alone, weight) + groups * softmax_cross_entropy(
        logits[:, exclusive], labels[:, exclusive], inside, weight, exclusive >= 0
    )
    return summed / jnp.where(total > 0.0, total, 1.0)


def _split(
    known: Bool[Array, "B A"], exclusive: Int[np.ndarray, "E K"]
) -> tuple[Bool[Array, "B A"], Bool[Array, "B E K"]]:
    """(known entries outside of exclusive groups, known entries of each of these groups)."""
    outside = ~np.isin(np.arange(known.shape[1]), exclusive)
    return known & outside, known[:, exclusive] & (exclusive >= 0)


def softmax_cross_entropy(
    logits: Float[Array, "B *E K"],
    labels: Num[Array, "B *E K"],
    known: Bool[Array, "B *E K"],
    weight: Float[Array, "B"],
    there: Bool[np.ndarray, "*E K"] | bool = True,
) -> Scalar:
    """Softmax cross-entropy of exclusive groups, averaged over the groups of examples with any known entry.

    At most one of the K attributes is present, so the softmax runs over K + 1 answers: the attributes and
    "none of them", whose logit is 0. (One attribute then wins over "none" where its own logit is positive,
    the threshold a sigmoid has; K = 1 is binary cross-entropy.) The loss is the negative log probability of
    the answers that the known labels leave open:

        a known positive:     that attribute (with label noise, any of the known positives);
        known negatives only: the unknown attributes and "none".

    Args:
      logits: the K logits of one group or of each of E, any float dtype.
      labels: 0 or 1.
      known: which entries are known. Beside a known positive an unknown entry is as good as negative, because
        the group is exclusive; in a row without any known entry the gradient is exactly 0.
      weight: each example's weight in [0, 1]; 0 for padding.
      there: which of a group's K attributes exist, where groups differ in size; the others are never known.

    Returns:
      A float32 scalar; 0 when no entry is known.
    """
    none = jnp.zeros((*logits.shape[:-1], 1))
    answers = jnp.concatenate([jnp.where(there, _f32(logits), -jnp.inf), none], axis=-1)
    values = jax.nn.logsumexp(answers, axis=-1) - jax.nn.logsumexp(
        answers, axis=-1, where=_open_answers(labels, known)
    )
    return _mean(values, _row_weight(known, weight))


def _open_answers(labels: Num[Array, "*B K"], known: Bool[Array, "*B K"]) -> Bool[Array, "*B K+1"]:
    """Which of the K attributes and "none" the known labels leave open; never nothing."""
    positive = known & (labels > 0)
    decided = positive.any(axis=-1, keepdims=True)
    return jnp.concatenate([jnp.where(decided, positive, ~known), ~decided], axis=-1)


def _shifted_negative(
    log_p: Float32[Array, "B A"], log_not_p: Float32[Array, "B A"], gamma: float, margin: float
) -> Float32[Array, "B A"]:
    """p_m^gamma log(1 - p_m); gradients stay finite at p_m = 0 for every gamma."""
    if margin == 0.0:  # in log space, because log(1 - p) of a rounded p loses confident mistakes
        return jnp.exp(gamma * log_p) * log_not_p
    shifted = jnp.exp(log_p) - margin
    above = shifted > 0.0
    inside = jnp.where(above, shifted, 0.5)
    return jnp.where(above, inside**gamma * jnp.log1p(-inside), 0.0)


def _f32(values: Num[Array, "..."]) -> Float32[Array, "..."]:
    return values.astype(jnp.float32)


def _entry_weight(known: Bool[Array, "B A"], weight: Float[Array, "B"]) -> Float32[Array, "B A"]:
    return jnp.where(known, _f32(weight)[:, None], 0.0)


def _row_weight(known: Bool[Array, "B *E K"], weight: Float[Array, "B"]) -> Float32[Array, "B *E"]:
    found = known.any(axis=-1)
    return jnp.where(found, _f32(weight).reshape(-1, *[1] * (found.ndim - 1)), 0.0)


def _mean(values: Float32[Array, "..."], weight: Float32[Array, "..."]) -> Scalar:
    """The weighted mean; 0 with gradient 0 where nothing has weight."""
    total = weight.sum()
    return (values * weight).sum() / jnp.where(total > 0.0, total, 1.0)


def _check_exponents(**exponents: float) -> None:
    for name, value in exponents.items():
        if value < 0.0:
            raise ValueError(f"{name} must be at least 0, found {value}")
