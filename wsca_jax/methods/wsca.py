"""The WSCA method: a configuration becomes a model, its loss terms, and how a batch passes through them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array
from ml_collections import ConfigDict

from input_pipeline import SOURCES, text
from input_pipeline.batch import AttributeBatch
from input_pipeline.schema import AttributeSchema
from wsca_jax import augment
from wsca_jax.distortion import Distortion, distort
from wsca_jax.losses import composite, pseudo_labels
from wsca_jax.losses.balancing import Balancing, balanced
from wsca_jax.losses.composite import Term
from wsca_jax.methods import wsca_gauges, wsca_model, wsca_terms
from wsca_jax.methods.base import Gauges, Method, Variables
from wsca_jax.methods.wsca_teacher import Teacher
from wsca_jax.models.pretrained import load_resnet
from wsca_jax.models.wsca import Outputs

Distorted = Callable[[Array, Array], Array]

# Sections of the configuration that may be None, and their settings where they are not. None leaves the
# module out, with the loss terms that read it.
OPTIONAL = {
    **{f"model.{name}": section for name, section in wsca_model.optional_sections().items()},
    "distortion": dataclasses.asdict(Distortion()),
}


def default_config() -> ConfigDict:
    """The `model`, `loss` and `frozen` sections of a configuration, with every key there is."""
    return ConfigDict(
        {
            "model": wsca_model.default_config(),
            "loss": wsca_terms.default_config(),
            "distortion": None,  # of what the model in training sees, beyond `augment`
            "frozen": (),  # regular expressions over parameter paths, such as ("trunk/.*",)
        }
    )


def build(config: ConfigDict, schema: AttributeSchema, total_steps: int = 0, devices: int = 1) -> Method:
    """Builds the method of a resolved configuration.

    Args:
      config: resolved and complete.
      schema: what is predicted.
      total_steps: optimiser steps of the run, for loss terms that start at a share of it; 0 where no run is
        meant.
      devices: over which a batch is spread.

    Raises:
      TypeError: for a field that a module does not have.
      ValueError: for a value that a module or loss does not take.
    """
    balancing = Balancing(**config.loss.balancing)
    words = text.for_data_set(SOURCES[config.data.name], schema, text.TextOptions(**config.data.text))
    model = wsca_model.build_model(config.model, schema, words, devices)
    start = wsca_terms.start_step(config.loss, total_steps)
    terms = composite.start_later(composite.active(wsca_terms.build_terms(config.loss, schema, model)), start)
    if balancing.kind == "uncertainty":
        model = model.clone(uncertain_terms=len(balanced([term.name for term in terms])))
    _check_teacher(config, terms)
    return Method(
        name="wsca",
        schema=schema,
        model=model,
        forward=functools.partial(
            forward, teach=build_teacher(config, start), distorted=build_distortion(config, schema)
        ),
        augment=build_augment(config, schema),
        terms=terms,
        rng_names=_random_streams(config),
        frozen=tuple(config.frozen),
        pretrained=functools.partial(load_trunk, config.model.pretrained)
        if config.model.pretrained
        else None,
        balancing=balancing,
        gauges=_counted_from(
            start,
            wsca_gauges.build_gauges(config.loss, model, wsca_terms.entries_to_fit(config.loss, model)),
        ),
    )


def build_teacher(config: ConfigDict, start_step: int) -> Teacher:
    accept = functools.partial(pseudo_labels.accept, **config.loss.accept)
    return Teacher(accept, config.loss.whole_teacher, start_step)


def _counted_from(start: int, gauges: Gauges) -> Gauges:
    """The gauges with steps counted as the terms that they watch count them."""

    def measure(outputs: Any, batch: AttributeBatch, step: Array) -> Mapping[str, Array]:
        return gauges.measure(outputs, batch, step - start)

    return dataclasses.replace(gauges, measure=measure) if start else gauges


def _check_teacher(config: ConfigDict, terms: tuple[Term, ...]) -> None:
    if any(term.name == "pseudo" for term in terms) and not config.optimizer.ema_decay:
        raise ValueError(
            "pseudo labels come from the averaged parameters: set optimizer.ema_decay, such as 0.999, or "
            "loss.weights.pseudo to 0"
        )


def load_trunk(path: str, variables: Variables) -> Variables:
    """Replaces the trunk's initial weights by those of a torchvision or timm checkpoint."""
    trunk = {collection: variables[collection]["trunk"] for collection in variables}
    loaded = load_resnet(path, trunk)
    return {collection: {**variables[collection], "trunk": loaded[collection]} for collection in variables}


def _random_streams(config: ConfigDict) -> tuple[str, ...]:
    optional = {"router": config.model.router, "distortion": config.distortion}
    return ("dropout", *(name for name, section in optional.items() if section is not None))


def _augment_options(config: ConfigDict, schema: AttributeSchema) -> augment.Options:
    options = augment.Options(**config.augment, dtype=jnp.dtype(config.model.dtype))
    return augment.for_schema(options, schema)


def build_distortion(config: ConfigDict, schema: AttributeSchema) -> Distorted | None:
    """(normalised images, key) -> what the model in training sees of them; None where that is the same."""
    if config.distortion is None:
        return None
    return functools.partial(
        distort, distortion=Distortion(**config.distortion), options=_augment_options(config, schema)
    )


def build_augment(
    config: ConfigDict, schema: AttributeSchema
) -> Callable[[AttributeBatch, jax.Array | None], AttributeBatch]:
    options = _augment_options(config, schema)

    def apply(batch: AttributeBatch, key: jax.Array | None) -> AttributeBatch:
        return augment.normalise(batch, options) if key is None else augment.augment(batch, key, options)

    return apply


def forward(
    model: nn.Module,
    variables: Variables,
    teacher: Variables | None,
    batch: AttributeBatch,
    step: Array,
    train: bool,
    rngs: Mapping[str, jax.Array],
    *,
    teach: Teacher,
    distorted: Distorted | None = None,
) -> tuple[Outputs, Any]:
    """One pass through the model; see `wsca_jax.methods.base.Forward`.

    In training the model sees `distorted` images, and a teacher that looks at images sees the batch's own.
    Without averaged parameters votes are the model's own: nothing learns from them (`_check_teacher`), but
    what training watches are still pseudo labels of held-out entries.
    """
    if not train:
        outputs: Any = model.apply(variables, batch.image, batch.tokens, train=False)
        return outputs, variables["batch_stats"]
    image = jnp.asarray(batch.image)
    outputs, updated = model.apply(
        variables,
        image if distorted is None else distorted(image, rngs["distortion"]),
        batch.tokens,
        weight=batch.weight,
        train=True,
        rngs={name: rngs[name] for name in rngs if name != "distortion"},
        mutable=["batch_stats"],
    )
    if outputs.routing is not None:
        averaged = variables if teacher is None else teacher
        outputs = outputs._replace(pseudo=teach(model, averaged, outputs, batch, step))
    return outputs, updated["batch_stats"]
