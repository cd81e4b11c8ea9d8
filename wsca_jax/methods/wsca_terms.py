"""The WSCA method's loss terms.

The lines with `Term(...)` are the one place where the names of outputs meet the arguments of losses. A term
exists where the module it reads does, and is computed where its weight is not 0.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from input_pipeline.batch import AttributeBatch
from input_pipeline.schema import AttributeSchema
from wsca_jax.losses import (
    alignment,
    classification,
    disentanglement,
    frequency,
    hierarchy,
    pseudo_labels,
    routing,
)
from wsca_jax.losses.balancing import Balancing
from wsca_jax.losses.composite import Term
from wsca_jax.losses.image_text import image_text
from wsca_jax.models.wsca import WSCA, weigh_sides

# How `loss.classification` scores logits against known labels; each takes the section of its own name.
CLASSIFICATION_LOSSES: Mapping[str, Callable[..., Array]] = {
    "binary_cross_entropy": classification.binary_cross_entropy,
    "focal": classification.focal,
    "asymmetric": classification.asymmetric,
}


def default_config() -> dict[str, Any]:
    """The `loss` section, with every key there is: a loss's section holds its keyword arguments."""
    return {
        "classification": "binary_cross_entropy",
        "binary_cross_entropy": {},
        "focal": {"gamma": 2.0, "alpha": placeholder(float)},
        "asymmetric": settings(classification.asymmetric),
        "held_out": settings(pseudo_labels.held_out),  # known entries that teach the router's quality alone
        "accept": settings(pseudo_labels.accept),  # unknown entries that take their pseudo label
        "whole_teacher": False,  # whether pseudo labels come from a pass of the whole averaged model
        "mavd": settings(routing.router_loss),
        "hierarchy": settings(hierarchy.hierarchy),
        "frequency": settings(frequency.decoupling),
        "cmdl": settings(disentanglement.cmdl),
        "cal": settings(alignment.cal),
        "caption_factor": 1.0,  # of image-text alignment within `cal`, where captions are read
        "balancing": settings(Balancing),
        "start_fraction": 0.0,  # of the run's steps; until then classification is the only loss
        "weights": {
            "classification": 1.0,
            "pseudo": 1.0,
            "cal": 0.02,
            "mavd": 0.05,
            "hierarchy": 0.1,
            "frequency": 0.05,
            "cmdl": 0.1,
            "graph": 0.01,
        },
    }


def settings(function: Callable[..., Any]) -> dict[str, Any]:
    """The arguments of a function that have a default, and it, but for optional arrays (None)."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty and p.default is not None}


def start_step(config: ConfigDict, total_steps: int) -> int:
    """Optimiser steps before any term but classification starts. Raises ValueError for a wrong share.

    A share of the run and not a number of steps: the recipe stays the same at another batch size or length,
    and a short run trains the modules, too.
    """
    fraction = config.start_fraction
    if not 0 <= fraction < 1:
        raise ValueError(f"loss.start_fraction is {fraction}; expected a number from 0 to below 1")
    return round(fraction * total_steps)


def build_terms(config: ConfigDict, schema: AttributeSchema, model: WSCA) -> list[Term]:
    """Every loss term that this model has. Raises ValueError for a loss that does not exist."""
    fitted = entries_to_fit(config, model)
    terms = [_classification(config, schema, fitted)]
    if model.frequency is not None:
        terms.append(_frequency(config))
    if model.router is not None:
        terms += [_mavd(config, fitted), _pseudo(config)]
    if model.decomposer is not None:
        terms += [_hierarchy(config), _graph(config)]
    if model.encoder is not None or model.decomposer is not None:
        terms.append(_cmdl(config))
    if model.alignment is not None:
        terms.append(_cal(config, schema, fitted))
    return terms


Entries = Callable[[AttributeBatch], Bool[Array, "B A"]]


def entries_to_fit(config: ConfigDict, model: WSCA) -> Entries:
    """Which known entries losses may fit: all of them, unless some are held out to judge pseudo labels."""
    holds_out = model.router is not None and config.weights.mavd != 0
    return functools.partial(fitted_entries, **config.held_out) if holds_out else _known


def _known(batch: AttributeBatch) -> Bool[Array, "B A"]:
    return jnp.asarray(batch.known)


def fitted_entries(batch: AttributeBatch, *, fraction: float, seed: int) -> Bool[Array, "B A"]:
    """The known entries that losses may fit; the rest of the known ones is held out to judge pseudo labels.

    In evaluation, too, the losses are those of the fitted entries. Metrics see all of them.
    """
    index, known = jnp.asarray(batch.index), jnp.asarray(batch.known)
    return known & ~pseudo_labels.held_out(index, known.shape[1], fraction, seed)


def judged_entries(fitted: Entries, outputs: Any, batch: AttributeBatch) -> Bool[Array, "B A"]:
    """The held-out entries on which votes show how often they are right.

    Not those of an example whose text was read: it may name them, as it names no unknown label.
    """
    held_out = jnp.asarray(batch.known) & ~fitted(batch)
    read = None if outputs.encoding is None else outputs.encoding.read
    return held_out if read is None else held_out & ~read[:, None]


def _names_held_out(fitted: Entries, batch: AttributeBatch) -> Bool[Array, "B"]:
    """Whether an example's text may name a held-out attribute, beside unknown ones that it does not name."""
    known = jnp.asarray(batch.known)
    named = known & ~fitted(batch) & (jnp.asarray(batch.labels) > 0)
    return named.any(-1) & ~known.all(-1)


def _classification(config: ConfigDict, schema: AttributeSchema, fitted: Entries) -> Term:
    if config.classification not in CLASSIFICATION_LOSSES:
        known = ", ".join(CLASSIFICATION_LOSSES)
        raise ValueError(f"loss.classification is {config.classification!r}; expected one of {known}")
    score = functools.partial(
        CLASSIFICATION_LOSSES[config.classification], **config[config.classification].to_dict()
    )
    count: Callable[..., Array] = classification.count
    exclusive = exclusive_attributes(schema)
    if exclusive.size:
        score = functools.partial(classification.of_questions, score, exclusive=exclusive)
        count = functools.partial(classification.count_questions, exclusive=exclusive)
    return Term(
        "classification",
        lambda outputs, batch, step: over_classifiers(
            lambda logits: score(logits, batch.labels, fitted(batch), batch.weight), outputs
        ),
        weight=config.weights.classification,
        count=lambda batch: count(fitted(batch), jnp.asarray(batch.weight)),
    )


def exclusive_attributes(schema: AttributeSchema) -> Int[np.ndarray, "E K"]:
    """The attributes of each group of which at most one is present, filled up with -1."""
    members = [schema.members[schema.groups.index(name)] for name in schema.exclusive_groups]
    longest = max(map(len, members), default=0)
    return np.array([[*group, *[-1] * (longest - len(group))] for group in members], np.int32).reshape(
        len(members), longest
    )


def over_classifiers(score: Callable[[Array], Array], outputs: Any) -> Array:
    """A loss of each classifier by itself: half the trunk's, half the mean of the others', however many."""
    scores = {name: score(logits) for name, logits in outputs.classifiers.items()}
    return weigh_sides(scores, token_share=0.5)


def _frequency(config: ConfigDict) -> Term:
    def fn(outputs: Any, batch: Any, step: Array) -> Array:
        found = outputs.frequency
        return frequency.decoupling(found.low_features, found.high_features, batch.weight, **config.frequency)

    return Term("frequency", fn, weight=config.weights.frequency)


def _mavd(config: ConfigDict, fitted: Entries) -> Term:
    def fn(outputs: Any, batch: Any, step: Array) -> Array:
        found = outputs.routing
        return routing.router_loss(
            found.votes,
            found.quality,
            found.probabilities,
            batch.labels,
            fitted(batch),
            judged_entries(fitted, outputs, batch),
            batch.weight,
            **config.mavd,
        )

    return Term("mavd", fn, weight=config.weights.mavd)


def _pseudo(config: ConfigDict) -> Term:
    def fn(outputs: Any, batch: Any, step: Array) -> Array:
        if outputs.pseudo is None:  # evaluation, where nothing is taught
            return jnp.zeros(())
        pseudo = outputs.pseudo

        def score(logits: Array) -> Array:
            targets = (pseudo.probability, pseudo.quality, pseudo.accepted)
            return pseudo_labels.pseudo_label_loss(logits, *targets, batch.weight)

        return over_classifiers(score, outputs)

    # The loss is a mean over all entries, accepted or not.
    return Term("pseudo", fn, weight=config.weights.pseudo, count=lambda batch: jnp.sum(batch.weight))


def _hierarchy(config: ConfigDict) -> Term:
    def fn(outputs: Any, batch: Any, step: Array) -> Array:
        levels = outputs.decomposition.levels
        return hierarchy.hierarchy(
            [level.features for level in levels],
            [level.bottom_up for level in levels],
            [level.children for level in levels],
            [level.residual for level in levels],
            batch.weight,
            **config.hierarchy,
        )

    return Term("hierarchy", fn, weight=config.weights.hierarchy)


def _graph(config: ConfigDict) -> Term:
    def fn(outputs: Any, batch: Any, step: Array) -> Array:
        return hierarchy.graph(outputs.decomposition.edges, batch.weight)

    return Term("graph", fn, weight=config.weights.graph)


def _cmdl(config: ConfigDict) -> Term:
    def fn(outputs: Any, batch: Any, step: Array) -> Array:
        _, groups, dim = outputs.groups.shape
        key = jax.random.fold_in(jax.random.key(0), step)  # other directions at every step
        projection = disentanglement.projections(key, groups, dim)
        return disentanglement.cmdl(outputs.groups, batch.weight, projection, **config.cmdl)

    return Term("cmdl", fn, weight=config.weights.cmdl)


def _cal(config: ConfigDict, schema: AttributeSchema, fitted: Entries) -> Term:
    def fn(outputs: Any, batch: Any, step: Array) -> Array:
        pseudo: dict[str, Any] = {}
        if outputs.pseudo is not None and config.weights.pseudo != 0:
            pseudo = {"probability": outputs.pseudo.probability, "accepted": outputs.pseudo.accepted}
        return _captions(config, fitted, outputs, batch) + alignment.cal(
            outputs.groups,
            batch.labels,
            fitted(batch),
            batch.weight,
            group_of=schema.group_of,
            **outputs.alignment._asdict(),
            **pseudo,
            **config.cal,
        )

    return Term("cal", fn, weight=config.weights.cal)


def _captions(config: ConfigDict, fitted: Entries, outputs: Any, batch: Any) -> Array:
    pairs = outputs.captions
    if pairs is None or not config.caption_factor:
        return jnp.zeros(())
    compared = pairs.unread & ~_names_held_out(fitted, batch)
    return config.caption_factor * image_text(
        pairs.image, pairs.caption, compared, batch.weight, scale=pairs.scale, bias=pairs.bias
    )
