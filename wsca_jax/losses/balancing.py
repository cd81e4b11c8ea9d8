"""Dynamic loss weights: what multiplies a term's own weight while a run goes on.

The classification term keeps its weight; every other term's is balanced against it. A loss that is exactly 0
(no pair, no pseudo label, a hinge at its floor) has no gradient to weigh and counts as nothing seen: neither
scheme moves on it, so a term that begins late begins with its own weight.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int32

Scalar = Float32[Array, ""]

ANCHOR = "classification"  # its weight never changes
LOWEST, HIGHEST = 0.5, 2.0  # what the trend may do to a weight
LARGEST_LOG_VARIANCE = 2.0

Kind = Literal["none", "trend", "uncertainty"]


@dataclasses.dataclass(frozen=True)
class Balancing:
    """How the weights of all terms but classification change.

    With w0 a term's own weight and L its loss:

        none:         w0 L
        trend:        w0 clip((fast average of L / slow average of L)^kappa, 1/2, 2) L
                      A loss that has stopped falling as it used to gets more weight. The averages are over
                      the steps before this one, and constants to the gradient.
        uncertainty:  w0 (exp(-s) L + s / 2), s = clip(log variance, -2, 2)
                      The log variances are parameters, which the model hands out as `outputs.log_variances`,
                      float32 [terms other than classification]. Left alone, s settles at log(2 L), whatever
                      w0 is, because w0 scales both parts.

    Attributes:
      kind: one of the three.
      kappa: exponent of the trend, at least 0; 0 keeps the weights.
      fast, slow: decays of the two averages for each optimiser step, 0 <= fast < slow < 1.

    References:
      Kendall et al., Multi-Task Learning Using Uncertainty to Weigh Losses, 2018,
      https://arxiv.org/abs/1705.07115
    """

    kind: Kind = "none"
    kappa: float = 1.0
    fast: float = 0.9
    slow: float = 0.99

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"balancing.kind is {self.kind!r}; expected {', '.join(get_args(Kind))}")
        if not 0 <= self.kappa < float("inf"):
            raise ValueError(f"balancing.kappa is {self.kappa}; expected a number of 0 or more")
        if not 0 <= self.fast < self.slow < 1:
            raise ValueError(
                f"balancing.fast is {self.fast} and balancing.slow {self.slow}; expected 0 <= fast < slow < 1"
            )


FIXED = Balancing()


class Trend(NamedTuple):
    """What `trend` remembers of one term.

    Attributes:
      seen: steps whose loss was above 0.
      fast, slow: averages of the loss over them. Each is the plain mean until its decay remembers fewer
        steps than there were, so that the first ones, often by far the largest, do not stand out.
    """

    seen: Int32[Array, ""]
    fast: Scalar
    slow: Scalar


LossState = Mapping[str, Trend]  # by term name; empty where nothing is remembered


class Scale(NamedTuple):
    """What one term enters the total with: w0 (factor L + penalty).

    Attributes:
      factor: exactly 1 where the weight stays.
      penalty: exactly 0 where there is none.
    """

    factor: Scalar
    penalty: Scalar


def balanced(names: Sequence[str]) -> tuple[str, ...]:
    """The names of the terms whose weights change, in their order."""
    return tuple(name for name in names if name != ANCHOR)


def init(balancing: Balancing, names: Sequence[str]) -> LossState:
    """The state a run begins with: nothing seen."""
    if balancing.kind != "trend":
        return {}
    return {
        name: Trend(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.float32), jnp.zeros((), jnp.float32))
        for name in balanced(names)
    }


def advance(balancing: Balancing, loss_state: LossState, terms: Mapping[str, Scalar]) -> LossState:
    """The state after a step whose raw losses over the whole batch were `terms`; called once a step."""
    return {name: _remember(balancing, trend, terms[name]) for name, trend in loss_state.items()}


def scales(
    balancing: Balancing,
    names: Sequence[str],
    loss_state: LossState,
    log_variances: Float32[Array, "T"] | None,
) -> dict[str, Scale]:
    """How each term is scaled in this step.

    Args:
      balancing: the scheme.
      names: all active terms.
      loss_state: from before the step.
      log_variances: one for each of `balanced(names)`, in their order; read by `uncertainty` alone.

    Raises:
      ValueError: `uncertainty` without a log variance for each of them.
    """
    one, nothing = jnp.float32(1), jnp.float32(0)
    found = {name: Scale(one, nothing) for name in names}
    if balancing.kind == "trend":
        return found | {name: Scale(_factor(balancing, trend), nothing) for name, trend in loss_state.items()}
    if balancing.kind == "uncertainty" and balanced(names):
        return found | _uncertainty(balanced(names), log_variances)
    return found


def seen(loss: Scalar) -> Bool[Array, ""]:
    """Whether a loss says anything; one that is exactly 0 does not."""
    return loss > 0


def _factor(balancing: Balancing, trend: Trend) -> Scalar:
    ratio = jnp.where(trend.seen > 0, trend.fast / jnp.where(trend.seen > 0, trend.slow, 1), 1)
    return jax.lax.stop_gradient(jnp.clip(ratio**balancing.kappa, LOWEST, HIGHEST))


def _remember(balancing: Balancing, trend: Trend, loss: Scalar) -> Trend:
    loss = jax.lax.stop_gradient(loss)
    mean_so_far = 1 / (trend.seen + 1).astype(jnp.float32)

    def average(old: Scalar, decay: float) -> Scalar:
        return old + jnp.maximum(1 - decay, mean_so_far) * (loss - old)

    new = Trend(trend.seen + 1, average(trend.fast, balancing.fast), average(trend.slow, balancing.slow))
    return jax.tree.map(lambda now, before: jnp.where(seen(loss), now, before), new, trend)


def _uncertainty(names: tuple[str, ...], log_variances: Float32[Array, "T"] | None) -> dict[str, Scale]:
    found = "nothing" if log_variances is None else f"shape {log_variances.shape}"
    if log_variances is None or log_variances.shape != (len(names),):
        raise ValueError(
            f"outputs.log_variances holds {found}; uncertainty needs shape ({len(names)},), "
            f"for {', '.join(names)}"
        )
    s = _bounded(log_variances.astype(jnp.float32))
    return {name: Scale(jnp.exp(-s[i]), s[i] / 2) for i, name in enumerate(names)}


@jax.custom_vjp
def _bounded(s: Float32[Array, "T"]) -> Float32[Array, "T"]:
    """Clips to +-2. Beyond a bound the gradient that leads back passes, or a parameter would stay there."""
    return jnp.clip(s, -LARGEST_LOG_VARIANCE, LARGEST_LOG_VARIANCE)


def _bounded_fwd(s: Array) -> tuple[Array, Array]:
    return _bounded(s), s


def _bounded_bwd(s: Array, gradient: Array) -> tuple[Array]:
    passes = (jnp.abs(s) < LARGEST_LOG_VARIANCE) | (s * gradient > 0)
    return (jnp.where(passes, gradient, 0),)


_bounded.defvjp(_bounded_fwd, _bounded_bwd)
