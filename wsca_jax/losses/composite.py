"""The composite loss: named terms, their weights, their sum.

A term is a name, a function of (outputs, batch, step) and a weight, which balancing may scale while a run
goes on. Terms with weight 0 are not computed. All but classification may start later in the run.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Int32

from input_pipeline.batch import AttributeBatch
from wsca_jax.losses import balancing as schemes
from wsca_jax.losses.balancing import FIXED, Balancing, LossState

Scalar = Float32[Array, ""]

# Every term there is. A configuration may weigh these names and no other.
TERM_NAMES = ("classification", "pseudo", "cal", "mavd", "hierarchy", "frequency", "cmdl", "graph")


@dataclasses.dataclass(frozen=True)
class Term:
    """One addend of the training loss.

    Attributes:
      name: one of `TERM_NAMES`.
      fn: (outputs, batch, step) -> scalar float32, a mean over entries; 0 where there are none.
      weight: its factor in the total, before balancing; 0 removes the term from the program.
      count: batch -> the (weighted) number of entries `fn` averages over, where the batch alone decides
        it. Gradient accumulation uses it to make the sum over microbatches equal the large batch exactly.
        None for losses between the examples of a batch, which see one microbatch at a time.
      start_step: optimiser steps taken before the term enters the total. Until then its weight is 0, it has
        no gradient and balancing does not see it; only its raw value is known.
    """

    name: str
    fn: Callable[[Any, AttributeBatch, Array], Scalar]
    weight: float
    count: Callable[[AttributeBatch], Scalar] | None = None
    start_step: int = 0

    def __post_init__(self) -> None:
        check_names([self.name])

    def once_started(self, value: Scalar, step: Int32[Array, ""]) -> Scalar:
        """The value from the term's start on, 0 before."""
        return jnp.where(step >= self.start_step, value, 0) if self.start_step else value


class Combined(NamedTuple):
    """What `combine` returns; float32 scalars.

    Attributes:
      total: the weighted sum, which is trained. Uncertainty's penalty on log variances is in it too.
      terms: {name: raw mean}, before weights.
      weights: {name: the factor it entered the total with}; 0 before the term's start.
      loss_state: what balancing remembers after these terms.
    """

    total: Scalar
    terms: dict[str, Scalar]
    weights: dict[str, Scalar]
    loss_state: LossState


def check_names(names: Sequence[str]) -> None:
    """Raises ValueError, with the nearest right name, for a name that is no term."""
    for name in names:
        if name not in TERM_NAMES:
            nearest = difflib.get_close_matches(name, TERM_NAMES, n=1, cutoff=0.0)[0]
            raise ValueError(
                f"unknown loss term {name!r}; did you mean {nearest!r}? (terms: {', '.join(TERM_NAMES)})"
            )


def active(terms: Sequence[Term]) -> tuple[Term, ...]:
    """The terms that are computed: weight not 0. Raises ValueError where a name stands twice."""
    names = [term.name for term in terms]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"loss terms repeat: {', '.join(repeated)}; each name stands once")
    return tuple(term for term in terms if term.weight != 0)


def start_later(terms: Sequence[Term], step: int) -> tuple[Term, ...]:
    """The terms, all but classification starting after `step` optimiser steps and counting steps from there.

    Schedules inside a term (pseudo labels' warm-up) thus begin with the term.
    """
    return tuple(term if term.name == schemes.ANCHOR else _starting_at(term, step) for term in terms)


def _starting_at(term: Term, start: int) -> Term:
    def fn(outputs: Any, batch: AttributeBatch, step: Array) -> Scalar:
        return term.fn(outputs, batch, step - start)

    return dataclasses.replace(term, fn=fn, start_step=start) if start else term


def microbatch_shares(terms: Sequence[Term], microbatches: AttributeBatch) -> dict[str, Float32[Array, "n"]]:
    """How much of each term's mean every microbatch holds.

    Args:
      terms: the active terms.
      microbatches: a batch whose arrays have a leading microbatch axis n.

    Returns:
      {term name: float32 [n]}: count_i / sum(count) where the term counts, else 1/n. Each sums to 1, or is
      all 0 where the whole batch has no entry to count.
    """
    n = microbatches.labels.shape[0]
    shares = {}
    for term in terms:
        counts = jnp.ones(n) if term.count is None else jax.vmap(term.count)(microbatches)
        total = counts.sum()
        shares[term.name] = (counts / jnp.where(total > 0, total, 1)).astype(jnp.float32)
    return shares


def combine(
    terms: Sequence[Term],
    loss_state: LossState,
    outputs: Any,
    batch: AttributeBatch,
    step: Int32[Array, ""],
    shares: Mapping[str, Scalar] | None = None,
    balancing: Balancing = FIXED,
) -> Combined:
    """Computes every active term and their weighted sum.

    Args:
      terms: the active terms.
      loss_state: what balancing remembers of the steps before; it alone decides the trend's weights, which
        are therefore the same in all microbatches of a step.
      outputs: what the model returned; with uncertainty it holds `log_variances`.
      batch: what it saw.
      step: optimiser steps taken, for terms with a schedule.
      shares: {term name: share of this microbatch}; None means the batch is whole.
      balancing: how weights change.

    Returns:
      The total and the raw terms, each scaled by its share: summed over the microbatches of one step, as
      `whole` does, they equal the whole batch's.

    Raises:
      ValueError: uncertainty without a log variance for each term it weighs.
    """
    log_variances = getattr(outputs, "log_variances", None)
    scales = schemes.scales(balancing, [term.name for term in terms], loss_state, log_variances)
    raw, weights = {}, {}
    total = jnp.zeros((), jnp.float32)
    for term in terms:
        share = jnp.float32(1) if shares is None else shares[term.name]
        value = share * jnp.asarray(term.fn(outputs, batch, step), jnp.float32)
        scale, own = scales[term.name], jnp.float32(term.weight)
        raw[term.name], weights[term.name] = value, term.once_started(own * scale.factor, step)
        penalty = jnp.where(schemes.seen(value), own * share * scale.penalty, 0)
        total = total + term.once_started(own * scale.factor * value + penalty, step)
    return Combined(total, raw, weights, _remember(balancing, loss_state, raw, weights))


def whole(parts: Combined, loss_state: LossState, balancing: Balancing) -> Combined:
    """One step's loss from that of its microbatches.

    Args:
      parts: `combine`'s results, stacked along a leading axis.
      loss_state: the one they all were given; it advances once, by the sum of their raw terms.
      balancing: how weights change.
    """
    terms = {name: values.sum() for name, values in parts.terms.items()}
    weights = {name: values[0] for name, values in parts.weights.items()}
    loss_state = _remember(balancing, loss_state, terms, weights)
    return Combined(parts.total.sum(), terms, weights, loss_state)


def _remember(
    balancing: Balancing, loss_state: LossState, terms: Mapping[str, Scalar], weights: Mapping[str, Scalar]
) -> LossState:
    """Balancing's state after a step; a term that had no weight in it was not seen."""
    entered = {name: jnp.where(weights[name] == 0, 0, value) for name, value in terms.items()}
    return schemes.advance(balancing, loss_state, entered)
