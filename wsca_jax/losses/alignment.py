"""Contrastive alignment (CAL): features of a group agree where its attributes do.

Arrays in, one float32 scalar out. A score s = scale * cos + bias is pulled up by softplus(-s) and pushed down
by softplus(s); what is pulled and what is pushed are averaged apart, so that the few are not drowned by the
many. Everything runs in float32 and over the global batch. Only known labels and, where given, accepted
pseudo labels decide; an example of weight 0 touches nothing, whatever its features hold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Float32, Int32, Num

from wsca_jax.losses.directions import counted, unit

Scalar = Float32[Array, ""]

# Accelerators otherwise round the operands of float32 products to 10 bits or fewer.
_EXACT = lax.Precision.HIGHEST


class _Sums(NamedTuple):
    """Weighted sums of what is pulled together and of what is pushed apart, and what they are divided by."""

    pulled: Scalar
    pulled_weight: Scalar
    pushed: Scalar
    pushed_weight: Scalar


class _Side(NamedTuple):
    """One side of the pairs.

    Attributes:
      direction: unit features, [B, G, a].
      positive, negative: 1 where an attribute is decided and present, or absent.
      weight: [B].
      position: [B], the example's place in the batch.
    """

    direction: Float32[Array, "B G a"]
    positive: Float32[Array, "B A"]
    negative: Float32[Array, "B A"]
    weight: Float32[Array, "B"]
    position: Int32[Array, "B"]


def cal(
    branches: Float[Array, "B G a"],
    labels: Num[Array, "B A"],
    known: Bool[Array, "B A"],
    weight: Float[Array, "B"],
    *,
    group_of: Sequence[int],
    prototypes: Float[Array, "A a"],
    pair_scale: Scalar,
    pair_bias: Scalar,
    prototype_scale: Scalar,
    prototype_bias: Scalar,
    pair_factor: float = 1.0,
    prototype_factor: float = 1.0,
    probability: Float[Array, "B A"] | None = None,
    accepted: Bool[Array, "B A"] | None = None,
    block_size: int = 1024,
) -> Scalar:
    """pair_factor * `pair_alignment` + prototype_factor * `prototype_alignment`.

    Args:
      branches, labels, known, weight, group_of, probability, accepted, block_size: as in `pair_alignment`.
      prototypes: as in `prototype_alignment`.
      pair_scale, pair_bias, prototype_scale, prototype_bias: scale and bias of the two scores.
      pair_factor, prototype_factor: at least 0; a part with factor 0 is not computed.

    Raises:
      ValueError: a negative factor, or what the two parts raise.
    """
    for name, factor in (("pair_factor", pair_factor), ("prototype_factor", prototype_factor)):
        if factor < 0.0:
            raise ValueError(f"{name} must be at least 0, found {factor}")
    total = jnp.zeros((), jnp.float32)
    if pair_factor:
        total += pair_factor * pair_alignment(
            branches,
            labels,
            known,
            weight,
            group_of=group_of,
            scale=pair_scale,
            bias=pair_bias,
            probability=probability,
            accepted=accepted,
            block_size=block_size,
        )
    if prototype_factor:
        total += prototype_factor * prototype_alignment(
            branches,
            prototypes,
            labels,
            known,
            weight,
            group_of=group_of,
            scale=prototype_scale,
            bias=prototype_bias,
        )
    return total


def pair_alignment(
    branches: Float[Array, "B G a"],
    labels: Num[Array, "B A"],
    known: Bool[Array, "B A"],
    weight: Float[Array, "B"],
    *,
    group_of: Sequence[int],
    scale: Scalar,
    bias: Scalar,
    probability: Float[Array, "B A"] | None = None,
    accepted: Bool[Array, "B A"] | None = None,
    block_size: int = 1024,
) -> Scalar:
    """Pulls two examples' features of a group together as far as they share its attributes.

    With P_i the attributes of group g present in example i, N_i the absent ones, both among what is decided
    (the known labels, completed by accepted pseudo labels where there are any), and rare attributes counting
    more, mass_c = -log prevalence_c, the weighted Jaccard similarity over what is decided in both examples,
    and the share of the group that it rests on, are

        J_ij = mass(P_i & P_j) / (mass(P_i & P_j) + mass(P_i & N_j) + mass(N_i & P_j))
        c_ij = mass((P_i | N_i) & (P_j | N_j)) / mass(group)

    and s_ij = scale cos(f_i, f_j) + bias gives the loss, sums running over groups and pairs i != j:

        sum w c J softplus(-s) / sum w J  +  sum w c (1 - J) softplus(s) / sum w (1 - J),    w = w_i w_j

    Attributes absent from both say nothing of J. A pair with no attribute decided in both and present in one
    has no evidence in that group and is left out. With one label in ten known, most pairs that have any have
    it from one attribute of many, which says little of how alike the two are in the others: by c the loss is
    as strong as what it rests on.

    Args:
      branches: features of every group, any float dtype.
      labels: 0 or 1.
      known: which labels count.
      weight: each example's weight in [0, 1]; 0 for padding.
      group_of: for each of the A attributes, its group's number.
      scale, bias: of the score.
      probability: pseudo labels, as probabilities; above 1/2 is present.
      accepted: which pseudo labels may be used. They never overrule a known label.
      block_size: at most that many rows of the B x B pairs are in memory at a time; the result is the same.

    Returns:
      A float32 scalar, at least 0; 0 where no pair has evidence.

    Raises:
      ValueError: the groups do not fit the arrays, pseudo labels are half given, or block_size is below 1.
    """
    if (probability is None) != (accepted is None):
        raise ValueError("pseudo labels need both probability and accepted, found one of them")
    membership = _membership(group_of, branches, labels)
    weight = weight.astype(jnp.float32)
    branches = counted(branches, weight)
    known = known & (weight > 0.0)[:, None]
    present = known & (labels > 0)
    mass = _rarity(present, known, weight)[:, None] * membership
    decided = known
    if probability is not None and accepted is not None:
        present, decided = jnp.where(known, present, accepted & (probability > 0.5)), known | accepted
    positive, negative = ((decided & y).astype(jnp.float32) for y in (present, ~present))
    side = _Side(unit(branches), positive, negative, weight, jnp.arange(len(weight)))
    return _means(_sum_over_rows(lambda rows: _pair_sums(rows, side, mass, scale, bias), side, block_size))


def prototype_alignment(
    branches: Float[Array, "B G a"],
    prototypes: Float[Array, "A a"],
    labels: Num[Array, "B A"],
    known: Bool[Array, "B A"],
    weight: Float[Array, "B"],
    *,
    group_of: Sequence[int],
    scale: Scalar,
    bias: Scalar,
) -> Scalar:
    """Pulls a group's feature to the prototypes of its present attributes and off those of its absent ones.

    With s_ic = scale cos(f_i,group(c), prototype_c) + bias: the weighted mean of softplus(-s) over known
    present attributes, plus that of softplus(s) over known absent ones. Unknown entries are left out.

    Args:
      branches, labels, known, weight, group_of: as in `pair_alignment`.
      prototypes: one vector per attribute, any float dtype.
      scale, bias: of the score.

    Returns:
      A float32 scalar, at least 0; 0 where nothing is known.

    Raises:
      ValueError: the groups do not fit the arrays.
    """
    membership = _membership(group_of, branches, labels)
    weight = weight.astype(jnp.float32)
    branches = counted(branches, weight)
    directions = unit(prototypes.astype(jnp.float32))
    every = jnp.einsum("bga,ca->bgc", unit(branches), directions, precision=_EXACT)
    score = scale * (every * membership.T).sum(1) + bias
    entry = jnp.where(known, weight[:, None], 0.0)
    pulled, pushed = jnp.where(labels > 0, entry, 0.0), jnp.where(labels > 0, 0.0, entry)
    return _means(_weighted_sums(score, pulled, pushed))


def _pair_sums(
    rows: _Side, columns: _Side, mass: Float32[Array, "A G"], scale: Scalar, bias: Scalar
) -> _Sums:
    cosine = jnp.einsum("iga,jga->gij", rows.direction, columns.direction, precision=_EXACT)
    found = _similarity(rows, columns, mass)
    pair = rows.weight[:, None] * columns.weight * (rows.position[:, None] != columns.position)
    pair = jnp.where(found.evidence, pair, 0.0)
    pulled, pushed = pair * found.similarity, pair * (1.0 - found.similarity)
    sums = _weighted_sums(scale * cosine + bias, found.coverage * pulled, found.coverage * pushed)
    return sums._replace(pulled_weight=pulled.sum(), pushed_weight=pushed.sum())


class _Similarity(NamedTuple):
    """Of pairs: the Jaccard similarity J, whether there is any evidence of it, and coverage c."""

    similarity: Float32[Array, "G I J"]
    evidence: Bool[Array, "G I J"]
    coverage: Float32[Array, "G I J"]


def _similarity(rows: _Side, columns: _Side, mass: Float32[Array, "A G"]) -> _Similarity:
    present, absent = (jnp.einsum("ic,cg->gic", x, mass) for x in (rows.positive, rows.negative))

    def shared(here: Float32[Array, "G I A"], there: Float32[Array, "J A"]) -> Float32[Array, "G I J"]:
        return jnp.einsum("gic,jc->gij", here, there, precision=_EXACT)

    both = shared(present, columns.positive)
    union = both + shared(present, columns.negative) + shared(absent, columns.positive)
    evidence = union > 0.0
    group = mass.sum(0)[:, None, None]
    decided = union + shared(absent, columns.negative)
    return _Similarity(
        both / jnp.where(evidence, union, 1.0), evidence, decided / jnp.where(group > 0.0, group, 1.0)
    )


def _sum_over_rows(sums: Callable[[_Side], _Sums], rows: _Side, block_size: int) -> _Sums:
    """The sums over all rows, in blocks; a block's intermediates are computed again for the gradient."""
    if block_size < 1:
        raise ValueError(f"block_size must be at least 1, found {block_size}")
    count = -(-len(rows.weight) // block_size)
    if count <= 1:
        return sums(rows)
    blocks = jax.tree.map(lambda x: _blocks(x, count), rows)
    recomputed = jax.checkpoint(sums, prevent_cse=False)

    def add(total: _Sums, block: _Side) -> tuple[_Sums, None]:
        return jax.tree.map(jnp.add, total, recomputed(block)), None

    zero = jnp.zeros((), jnp.float32)
    return lax.scan(add, _Sums(zero, zero, zero, zero), blocks)[0]


def _blocks(x: Array, count: int) -> Array:
    """[B, ...] -> [count, rows, ...], padded with zeros (of weight 0).

    A block takes every count-th row: of a batch sharded over devices, each holds its part of every block.
    """
    x = jnp.pad(x, [(0, -len(x) % count)] + [(0, 0)] * (x.ndim - 1))
    return jnp.moveaxis(x.reshape(-1, count, *x.shape[1:]), 1, 0)


def _weighted_sums(score: Array, pulled: Array, pushed: Array) -> _Sums:
    return _Sums(
        (pulled * jax.nn.softplus(-score)).sum(),
        pulled.sum(),
        (pushed * jax.nn.softplus(score)).sum(),
        pushed.sum(),
    )


def _means(sums: _Sums) -> Scalar:
    """The two weighted means added; a mean over nothing is 0."""
    pulled = sums.pulled / jnp.where(sums.pulled_weight > 0.0, sums.pulled_weight, 1.0)
    return pulled + sums.pushed / jnp.where(sums.pushed_weight > 0.0, sums.pushed_weight, 1.0)


def _rarity(
    present: Bool[Array, "B A"], known: Bool[Array, "B A"], weight: Float32[Array, "B"]
) -> Float32[Array, "A"]:
    """-log of every attribute's prevalence among the batch's known entries, one of each kind added."""
    positives = jnp.where(present, weight[:, None], 0.0).sum(0)
    entries = jnp.where(known, weight[:, None], 0.0).sum(0)
    return jnp.log(entries + 2.0) - jnp.log(positives + 1.0)


def _membership(group_of: Sequence[int], branches: Array, labels: Array) -> Float32[np.ndarray, "A G"]:
    """One-hot groups of the attributes."""
    groups, attributes = branches.shape[1], labels.shape[1]
    if len(group_of) != attributes:
        raise ValueError(f"group_of must name the group of {attributes} attributes, found {len(group_of)}")
    if not all(0 <= group < groups for group in group_of):
        raise ValueError(f"groups in group_of must lie in [0, {groups}), found {max(group_of)}")
    return np.eye(groups, dtype=np.float32)[np.asarray(group_of)]
