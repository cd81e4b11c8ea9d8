"""What the training engine knows of a method: everything it needs, and nothing by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import flax.linen as nn
import jax
from jaxtyping import Array, Float32

from input_pipeline.batch import AttributeBatch
from input_pipeline.schema import AttributeSchema
from wsca_jax.losses.balancing import FIXED, Balancing
from wsca_jax.losses.composite import Term

Variables = Mapping[str, Any]


class Outputs(Protocol):
    """The least a model returns. A method's own outputs hold more."""

    logits: Float32[Array, "B A"]


class Forward(Protocol):
    """(model, variables, teacher, batch, step, train, rngs) -> (outputs, batch statistics).

    `batch.image` is the augmented or normalised float image. `teacher` is the EMA's variables, or None.
    In evaluation (train=False) the statistics come back unchanged and rngs is empty.
    """

    def __call__(
        self,
        model: nn.Module,
        variables: Variables,
        teacher: Variables | None,
        batch: AttributeBatch,
        step: Array,
        train: bool,
        rngs: Mapping[str, jax.Array],
    ) -> tuple[Any, Any]: ...


@dataclasses.dataclass(frozen=True)
class Gauges:
    """Figures that are watched and not trained.

    Attributes:
      measure: (outputs, batch, step) -> a dict of float32 arrays whose sums over batches mean something.
      summarise: such sums -> {name: scalar}, for the logs.
    """

    measure: Callable[[Any, AttributeBatch, Array], Mapping[str, Array]]
    summarise: Callable[[Mapping[str, Array]], Mapping[str, Array]]


NO_GAUGES = Gauges(measure=lambda outputs, batch, step: {}, summarise=lambda sums: {})


@dataclasses.dataclass(frozen=True, eq=False)
class Method:
    """A model, its loss terms, and how a batch passes through them. Compared and hashed by identity.

    Attributes:
      name: its key in the table of methods.
      schema: the attributes it predicts.
      model: a Linen module called as model(image, tokens, train=...). It never sees a label.
      forward: see `Forward`.
      augment: (batch of uint8 images, key or None) -> batch of float images [B, H, W, 3]. With a key it
        augments for training; with None it only normalises. Pure, run on the device inside the step.
      terms: the loss terms with a weight other than 0.
      rng_names: the random streams the model draws from in training ("dropout", ...).
      frozen: regular expressions over parameter paths ("trunk/.*") that are not trained.
      pretrained: replaces initial variables by loaded ones, on the host, once as a run begins; or None.
      balancing: how the terms' weights change while a run goes on.
      gauges: what is logged beside the losses, in training and in evaluation.
    """

    name: str
    schema: AttributeSchema
    model: nn.Module
    forward: Forward
    augment: Callable[[AttributeBatch, jax.Array | None], AttributeBatch]
    terms: tuple[Term, ...]
    rng_names: tuple[str, ...] = ("dropout",)
    frozen: tuple[str, ...] = ()
    pretrained: Callable[[Variables], Variables] | None = None
    balancing: Balancing = FIXED
    gauges: Gauges = NO_GAUGES

    def init(self, rng: jax.Array, batch: AttributeBatch) -> Variables:
        """Initial variables ("params", "batch_stats") for batches of this shape."""
        names = ("params", *self.rng_names)
        rngs = dict(zip(names, jax.random.split(rng, len(names)), strict=True))
        prepared = self.augment(batch, None)
        return self.model.init(rngs, prepared.image, prepared.tokens, train=False)
