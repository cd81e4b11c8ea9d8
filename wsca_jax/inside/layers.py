"""Layers by name: what the model says at any place of its way from image to logits."""

from __future__ import annotations

import difflib

import jax
import numpy as np
from jaxtyping import Array

from wsca_jax import assembly
from wsca_jax.errors import WscaError
from wsca_jax.evaluate import Trained
from wsca_jax.inside.reading import collect, forward
from wsca_jax.models.decomposer import Decomposition
from wsca_jax.models.wsca import Outputs


def named_layers(outputs: Outputs) -> dict[str, Array]:
    """Every layer that a model has, by name, in the order of the computation; each has a row per example.

    c2, c3, c4, c5 (the trunk's stages); low, high, frequency_groups, frequency (the bands, their description
    per group, and its mean); values, attention, branches (the encoder's groups); tokens, as the pooling sees
    them; clusters, experts, routed, votes, quality (the router's assignment, probabilities, features and
    votes); pooled; groups (the group features, normalised over the batch); level_0, level_1, ... (the
    pyramid, finest first), assignment_1, ..., gates, edges, refined (the decomposer); logits_trunk,
    logits_groups, ... (each classifier's); logits.
    """
    found: dict[str, Array] = dict(outputs.stages._asdict())
    if outputs.frequency is not None:
        bands = outputs.frequency
        found |= {"low": bands.low, "high": bands.high}
        found |= {"frequency_groups": bands.groups, "frequency": bands.token}
    if outputs.encoding is not None:
        branches = outputs.encoding
        found |= {"values": branches.values, "attention": branches.attention, "branches": branches.branches}
    found["tokens"] = outputs.tokens
    if outputs.routing is not None:
        routing = outputs.routing
        found |= {"clusters": routing.assignment, "experts": routing.probabilities}
        found |= {"routed": routing.features, "votes": routing.votes, "quality": routing.quality}
    found["pooled"] = outputs.pooled
    if outputs.groups is not None:
        found["groups"] = outputs.groups
    if outputs.decomposition is not None:
        found |= _decomposition(outputs.decomposition)
    found |= {f"logits_{name}": logits for name, logits in outputs.classifiers.items()}
    return found | {"logits": outputs.logits}


def _decomposition(parts: Decomposition) -> dict[str, Array]:
    levels = {f"level_{number}": level.features for number, level in enumerate(parts.levels)}
    assignments = {f"assignment_{number}": level.assignment for number, level in enumerate(parts.levels)}
    merged = {name: assignment for name, assignment in assignments.items() if assignment is not None}
    return levels | merged | {"gates": parts.gates, "edges": parts.edges, "refined": parts.refined}


def extract_features(trained: Trained, layer: str, *, examples: int | None = None) -> np.ndarray:
    """One layer of the model over a split.

    Args:
      trained: from `load`.
      layer: a name out of `named_layers`.
      examples: how many of the split's first examples; None for all of them.

    Returns:
      Array [N, ...] in the layer's own dtype; row i belongs to the source's example i.

    Raises:
      WscaError: the model has no layer of this name; the message lists those it has.
    """
    names = layer_names(trained)
    if layer not in names:
        near = difflib.get_close_matches(layer, names, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise WscaError(f"this model has no layer {layer!r}{hint}; its layers are {', '.join(names)}")
    return collect(trained, lambda _, outputs, __: named_layers(outputs)[layer], examples=examples)


def layer_names(trained: Trained) -> tuple[str, ...]:
    """The names that this model's layers have. Nothing is computed."""
    run = trained.run
    spec = assembly.batch_spec(run.config, run.method.schema, run.layout.mesh.size)
    variables = trained.state.evaluation_variables
    outputs = jax.eval_shape(lambda variables, batch: forward(trained, variables, batch), variables, spec)
    return tuple(named_layers(outputs))
