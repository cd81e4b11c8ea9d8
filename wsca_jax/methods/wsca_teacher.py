"""Pseudo labels of a batch: what the averaged parameters say of it, and which unknown entries take it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
from jaxtyping import Array

from input_pipeline.batch import AttributeBatch
from wsca_jax.methods.base import Variables
from wsca_jax.models.wsca import WSCA, Outputs, PseudoLabels


@dataclasses.dataclass(frozen=True)
class Teacher:
    """Makes pseudo labels.

    Attributes:
      accept: (q, r, labels, known, weight, step) -> bool [B, A]; see `losses.pseudo_labels.accept`.
      whole: whether the whole averaged model looks at the images, without noise or text, for about a third of
        a step more. Otherwise its vote heads read the student's features, which costs nothing.
      start_step: optimiser steps before `accept` begins to count.
    """

    accept: Callable[..., Array]
    whole: bool = False
    start_step: int = 0

    def __call__(
        self, model: nn.Module, averaged: Variables, outputs: Outputs, batch: AttributeBatch, step: Array
    ) -> PseudoLabels:
        """Pseudo labels of the student's `outputs` for a batch, from the averaged variables. No gradient."""
        votes, quality = self._votes(model, averaged, outputs, batch)
        probability, quality = jax.nn.sigmoid(votes), jax.nn.sigmoid(quality)
        entries = (probability, quality, batch.labels, batch.known, batch.weight)
        accepted = self.accept(*entries, step - self.start_step)
        return jax.lax.stop_gradient(PseudoLabels(probability, quality, accepted))

    def _votes(
        self, model: nn.Module, averaged: Variables, outputs: Outputs, batch: AttributeBatch
    ) -> tuple[Array, Array]:
        if self.whole:
            seen: Any = model.apply(averaged, batch.image, None, train=False)
            return seen.routing.votes, seen.routing.quality
        routing: Any = outputs.routing  # there is no teacher without a router
        found: Any = model.apply(averaged, routing.features, method=WSCA.votes)
        return found
