"""The composite loss: named terms, their weights, their sum.

A term is a name, a function of (outputs, batch, step) and a weight. Terms with weight 0 are not computed.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from input_pipeline.batch import AttributeBatch

Scalar = Float[Array, ""]

# Every term there is. A configuration may weigh these names and no other.
TERM_NAMES = ("classification", "pseudo", "cal", "mavd", "hierarchy", "frequency", "cmdl", "graph")


@dataclasses.dataclass(frozen=True)
class Term:
    """One addend of the training loss.

    Attributes:
      name: one of `TERM_NAMES`.
      fn: (outputs, batch, step) -> scalar float32, a mean over entries.
      weight: its factor in the total; 0 removes the term from the program.
      count: batch -> the (weighted) number of entries `fn` averages over, where the batch alone decides
        it. Gradient accumulation uses it to make the sum over microbatches equal the large batch exactly.
        None for losses between the examples of a batch, which see one microbatch at a time.
    """

    name: str
    fn: Callable[[Any, AttributeBatch, Array], Scalar]
    weight: float
    count: Callable[[AttributeBatch], Scalar] | None = None

    def __post_init__(self) -> None:
        check_names([self.name])


def check_names(names: Sequence[str]) -> None:
    """Raises ValueError, with the nearest right name, for a name that is no term."""
    for name in names:
        if name not in TERM_NAMES:
            nearest = difflib.get_close_matches(name, TERM_NAMES, n=1, cutoff=0.0)[0]
            raise ValueError(
                f"unknown loss term {name!r}; did you mean {nearest!r}? (terms: {', '.join(TERM_NAMES)})"
            )


def active(terms: Sequence[Term]) -> tuple[Term, ...]:
    """The terms that are computed: weight not 0."""
    return tuple(term for term in terms if term.weight != 0)


def microbatch_shares(terms: Sequence[Term], microbatches: AttributeBatch) -> dict[str, Float[Array, "n"]]:
    """How much of each term's mean every microbatch holds; each term's shares sum to 1.

    Args:
      terms: the active terms.
      microbatches: a batch whose arrays have a leading microbatch axis n.

    Returns:
      {term name: float32 [n]}: `count_i / sum(count)` where the term counts, else 1/n.
    """
    n = microbatches.labels.shape[0]
    shares = {}
    for term in terms:
        counts = jnp.ones(n) if term.count is None else jax.vmap(term.count)(microbatches)
        shares[term.name] = (counts / jnp.maximum(counts.sum(), jnp.finfo(jnp.float32).tiny)).astype(
            jnp.float32
        )
    return shares


def combine(
    terms: Sequence[Term],
    loss_state: Any,
    outputs: Any,
    batch: AttributeBatch,
    step: Array,
    shares: Mapping[str, Scalar] | None = None,
) -> tuple[Scalar, dict[str, Scalar], Any]:
    """Computes every active term and their weighted sum.

    Args:
      terms: the active terms.
      loss_state: state of dynamic weighting, a pytree; empty while weights are fixed.
      outputs: what the model returned.
      batch: what it saw.
      step: int32 scalar, the training step.
      shares: {term name: share of this microbatch}; None means the batch is whole.

    Returns:
      (total, {name: the term's share of its raw mean}, new loss_state), all float32 scalars. Summed over
      the microbatches of one step, both equal the whole batch's.
    """
    parts = {}
    total = jnp.zeros((), jnp.float32)
    for term in terms:
        value = term.fn(outputs, batch, step)
        parts[term.name] = value if shares is None else value * shares[term.name]
        total = total + term.weight * parts[term.name]
    return total, parts, loss_state
