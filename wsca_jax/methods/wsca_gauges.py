"""What is watched of the WSCA method beside its losses: classifiers, routing, pseudo labels, the graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool
from ml_collections import ConfigDict

from wsca_jax.losses import hierarchy, pseudo_labels, routing
from wsca_jax.methods.base import Gauges
from wsca_jax.methods.wsca_terms import Entries, judged_entries
from wsca_jax.models.wsca import WSCA

BINS = 10  # of quality, for its calibration error

Sums = dict[str, Array]


def build_gauges(config: ConfigDict, model: WSCA, fitted: Entries) -> Gauges:
    """The figures of the modules that this model has.

    spread_trunk, spread_groups, ...: of each classifier's logits, the standard deviation over images, root
      mean square over attributes. Near 0 a classifier says the same of every image.
    routing_entropy, routing_largest_load: nats per example; the share of the most used expert.
    pseudo_accepted: share of the unknown entries that take their pseudo label (in training).
    vote_accuracy, confident_fraction, confident_accuracy, quality_ece: of the votes on entries that nothing
      was fitted to (in training the held-out ones, in evaluation all known ones): how many are right; the
      share whose quality lies above the threshold, and how many of those are right; the expected calibration
      error of quality, over 10 bins.
    accepted_fraction, accepted_accuracy: in evaluation, of the same entries the share that would take their
      pseudo label if the batch were a training batch without known labels, and how many of these are right.
    graph_edge: mean edge between two groups.
    """
    measures: list[Callable[[Any, Any, Array], Sums]] = [_spread]
    if model.router is not None:
        measures += [
            _routing,
            lambda *args: _votes(config, fitted, *args),
            lambda *args: _accepted(config, *args),
        ]
    if model.decomposer is not None:
        measures.append(_graph)

    def measure(outputs: Any, batch: Any, step: Array) -> Sums:
        found: Sums = {}
        for part in measures:
            found |= part(outputs, batch, step)
        return jax.lax.stop_gradient(found)

    return Gauges(measure, summarise)


def summarise(sums: Mapping[str, Any]) -> dict[str, Any]:
    """From sums over any number of batches to figures."""
    found: dict[str, Any] = {}
    for name in [name for name in sums if name.startswith("square_")]:
        part, examples = name.removeprefix("square_"), sums["examples"]
        mean = _ratio(sums[f"sum_{part}"], examples)
        variance = jnp.maximum(_ratio(sums[name], examples) - mean**2, 0)
        found[f"spread_{part}"] = jnp.sqrt(variance.mean())
    if "routing_load" in sums:
        found["routing_entropy"] = _ratio(sums["routing_entropy"], sums["routing_examples"])
        found["routing_largest_load"] = _ratio(sums["routing_load"].max(), sums["routing_examples"])
    if "vote_entries" in sums:
        entries, right, quality = sums["vote_entries"], sums["vote_right"], sums["vote_quality"]
        found["vote_accuracy"] = _ratio(right.sum(), entries.sum())
        found["quality_ece"] = _ratio(abs(right - quality).sum(), entries.sum())
        found["confident_fraction"] = _ratio(sums["confident"], entries.sum())
        found["confident_accuracy"] = _ratio(sums["confident_right"], sums["confident"])
    if "pseudo_accepted" in sums:
        found["pseudo_accepted"] = _ratio(sums["pseudo_accepted"], sums["pseudo_unknown"])
    if "accepted" in sums:
        found["accepted_fraction"] = _ratio(sums["accepted"], sums["vote_entries"].sum())
        found["accepted_accuracy"] = _ratio(sums["accepted_right"], sums["accepted"])
    if "graph_edge" in sums:
        found["graph_edge"] = _ratio(sums["graph_edge"], sums["graph_examples"])
    return found


def _ratio(total: Any, count: Any) -> Any:
    """total / count; 0 where nothing was counted."""
    return total / jnp.where(count > 0, count, 1)


def _spread(outputs: Any, batch: Any, step: Array) -> Sums:
    found, weight = {"examples": batch.weight.sum()}, batch.weight[:, None]
    for name, logits in outputs.classifiers.items():  # sums and not products, which devices would round
        found[f"sum_{name}"] = (weight * logits).sum(0)
        found[f"square_{name}"] = (weight * jnp.square(logits)).sum(0)
    return found


def _routing(outputs: Any, batch: Any, step: Array) -> Sums:
    examples = batch.weight.sum()
    probabilities = outputs.routing.probabilities
    return {
        "routing_entropy": routing.sparsity(probabilities, batch.weight) * examples,
        "routing_load": batch.weight @ probabilities,
        "routing_examples": examples,
    }


def _votes(config: ConfigDict, fitted: Entries, outputs: Any, batch: Any, step: Array) -> Sums:
    judged = _judged(fitted, outputs, batch)
    counts = jnp.where(judged, batch.weight[:, None], 0.0)
    right = counts * _right(outputs, batch)
    quality = jax.nn.sigmoid(outputs.routing.quality)
    bins = jax.nn.one_hot(jnp.clip(quality * BINS, 0, BINS - 1).astype(jnp.int32), BINS)
    accept = config.accept
    confident = quality > pseudo_labels.threshold(
        step, accept.warmup_steps, accept.ramp_steps, accept.threshold_start, accept.threshold_end
    )
    return {
        "vote_entries": jnp.einsum("ba,bak->k", counts, bins),
        "vote_right": jnp.einsum("ba,bak->k", right, bins),
        "vote_quality": jnp.einsum("ba,bak->k", counts * quality, bins),
        "confident": (counts * confident).sum(),
        "confident_right": (right * confident).sum(),
    }


def _judged(fitted: Entries, outputs: Any, batch: Any) -> Bool[Array, "B A"]:
    """Known entries that nothing was fitted to: held-out ones in training, all in evaluation."""
    return jnp.asarray(batch.known) if outputs.pseudo is None else judged_entries(fitted, outputs, batch)


def _right(outputs: Any, batch: Any) -> Bool[Array, "B A"]:
    return (outputs.routing.votes > 0) == (batch.labels > 0)


def _accepted(config: ConfigDict, outputs: Any, batch: Any, step: Array) -> Sums:
    weight = batch.weight[:, None]
    if outputs.pseudo is None:
        entries = (jax.nn.sigmoid(outputs.routing.votes), jax.nn.sigmoid(outputs.routing.quality))
        none_known = jnp.zeros(batch.known.shape, bool)
        taken = pseudo_labels.accept(*entries, batch.labels, none_known, batch.weight, step, **config.accept)
        counts = weight * (taken & jnp.asarray(batch.known))
        return {"accepted": counts.sum(), "accepted_right": (counts * _right(outputs, batch)).sum()}
    return {
        "pseudo_accepted": (weight * outputs.pseudo.accepted).sum(),
        "pseudo_unknown": (weight * ~batch.known).sum(),
    }


def _graph(outputs: Any, batch: Any, step: Array) -> Sums:
    examples = batch.weight.sum()
    edges = hierarchy.graph(outputs.decomposition.edges, batch.weight)
    return {"graph_edge": edges * examples, "graph_examples": examples}
