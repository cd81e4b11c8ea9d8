"""The WSCA method: builds the model from a configuration and wires its outputs to the losses.

The lines with `Term(...)` are the one place where the names of outputs meet the arguments of losses.
"""

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
from ml_collections.config_dict import placeholder

from input_pipeline.batch import AttributeBatch
from input_pipeline.schema import AttributeSchema
from wsca_jax import augment
from wsca_jax.losses import classification, composite
from wsca_jax.losses.composite import Term
from wsca_jax.methods.base import Method, Variables
from wsca_jax.models.heads import GroupHeads
from wsca_jax.models.pretrained import load_resnet
from wsca_jax.models.resnet import ResNet
from wsca_jax.models.tokens import VisualTokens
from wsca_jax.models.wsca import WSCA, Outputs

# How `loss.classification` scores logits against known labels; each takes the section of its own name.
CLASSIFICATION_LOSSES: Mapping[str, Callable[..., Array]] = {
    "binary_cross_entropy": classification.binary_cross_entropy,
    "focal": classification.focal,
    "asymmetric": classification.asymmetric,
}


def default_config() -> ConfigDict:
    """The `model`, `loss` and `frozen` sections of a configuration, with every key there is.

    A module's section holds the module's own fields: a field that does not exist is an unknown key.
    """
    return ConfigDict(
        {
            "model": {
                "dtype": "bfloat16",
                "hidden_size": 768,
                "attr_dim": 128,
                "token_stage": "c5",
                "linear_path": True,
                "pretrained": "",  # torchvision or timm weights for the trunk: .safetensors or .pth
                "trunk": fields(ResNet),
                "tokens": fields(VisualTokens),
                "heads": fields(GroupHeads),
            },
            "loss": {
                "classification": "binary_cross_entropy",
                "binary_cross_entropy": {},
                "focal": {"gamma": 2.0, "alpha": placeholder(float)},
                "asymmetric": {"gamma_positive": 1.0, "gamma_negative": 4.0, "margin": 0.05},
                "weights": {"classification": 1.0},
            },
            "frozen": (),  # regular expressions over parameter paths, such as ("trunk/.*",)
        }
    )


def fields(module: type[nn.Module]) -> dict[str, Any]:
    """A module's settings and their defaults, but for what the model decides for all of its modules."""
    shared = {"parent", "name", "dtype", "lowering"}
    return {
        field.name: field.default
        for field in dataclasses.fields(module)
        if field.name not in shared and field.default is not dataclasses.MISSING
    }


def build(config: ConfigDict, schema: AttributeSchema) -> Method:
    """Builds the method of a resolved configuration.

    Raises:
      TypeError: for a field that a module does not have.
      ValueError: for a value that a module or loss does not take.
    """
    return Method(
        name="wsca",
        schema=schema,
        model=build_model(config.model, schema),
        forward=forward,
        augment=build_augment(config, schema),
        terms=composite.active(build_terms(config.loss)),
        frozen=tuple(config.frozen),
        pretrained=functools.partial(load_trunk, config.model.pretrained)
        if config.model.pretrained
        else None,
    )


def load_trunk(path: str, variables: Variables) -> Variables:
    """Replaces the trunk's initial weights by those of a torchvision or timm checkpoint."""
    trunk = {collection: variables[collection]["trunk"] for collection in variables}
    loaded = load_resnet(path, trunk)
    return {collection: {**variables[collection], "trunk": loaded[collection]} for collection in variables}


def build_model(config: ConfigDict, schema: AttributeSchema) -> WSCA:
    dtype = jnp.dtype(config.dtype)
    return WSCA(
        trunk=ResNet(**config.trunk, dtype=dtype),
        tokens=VisualTokens(config.hidden_size, **config.tokens, dtype=dtype),
        heads=GroupHeads(schema.group_of, config.hidden_size, config.attr_dim, **config.heads, dtype=dtype),
        token_stage=config.token_stage,
        linear_path=config.linear_path,
    )


def build_augment(
    config: ConfigDict, schema: AttributeSchema
) -> Callable[[AttributeBatch, jax.Array | None], AttributeBatch]:
    options = augment.for_schema(
        augment.Options(**config.augment, dtype=jnp.dtype(config.model.dtype)), schema
    )

    def apply(batch: AttributeBatch, key: jax.Array | None) -> AttributeBatch:
        return augment.normalise(batch, options) if key is None else augment.augment(batch, key, options)

    return apply


def build_terms(config: ConfigDict) -> list[Term]:
    """Every loss term of the method. Raises ValueError for a loss that does not exist."""
    if config.classification not in CLASSIFICATION_LOSSES:
        known = ", ".join(CLASSIFICATION_LOSSES)
        raise ValueError(f"loss.classification is {config.classification!r}; expected one of {known}")
    score = functools.partial(
        CLASSIFICATION_LOSSES[config.classification], **config[config.classification].to_dict()
    )
    return [
        Term(
            "classification",
            lambda outputs, batch, step: score(outputs.logits, batch.labels, batch.known, batch.weight),
            weight=config.weights.classification,
            count=lambda batch: classification.count(jnp.asarray(batch.known), jnp.asarray(batch.weight)),
        ),
    ]


def forward(
    model: nn.Module,
    variables: Variables,
    teacher: Variables | None,
    batch: AttributeBatch,
    step: Array,
    train: bool,
    rngs: Mapping[str, jax.Array],
) -> tuple[Outputs, Any]:
    """One pass through the model; see `wsca_jax.methods.base.Forward`."""
    if not train:
        outputs: Any = model.apply(variables, batch.image, batch.tokens, train=False)
        return outputs, variables["batch_stats"]
    outputs, updated = model.apply(
        variables,
        batch.image,
        batch.tokens,
        weight=batch.weight,
        train=True,
        rngs=dict(rngs),
        mutable=["batch_stats"],
    )
    return outputs, updated["batch_stats"]
