"""The WSCA method's model, from the `model` section of a configuration."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from ml_collections import ConfigDict

from input_pipeline.schema import AttributeSchema
from input_pipeline.text import Text
from wsca_jax.models.alignment import Alignment
from wsca_jax.models.captions import CaptionAlignment
from wsca_jax.models.cross_modal import CrossModalEncoder
from wsca_jax.models.decomposer import HierarchicalDecomposer
from wsca_jax.models.frequency import FrequencyBranch
from wsca_jax.models.fusion import GatedFusion
from wsca_jax.models.heads import GroupHeads
from wsca_jax.models.layers import FeatureNorm
from wsca_jax.models.resnet import ResNet
from wsca_jax.models.router import PseudoLabelRouter
from wsca_jax.models.text import TextTower
from wsca_jax.models.tokens import VisualTokens
from wsca_jax.models.wsca import WSCA


def default_config() -> dict[str, Any]:
    """The `model` section, with every key there is: a module's section holds the module's own fields."""
    return {
        "dtype": "bfloat16",
        "hidden_size": 768,
        "attr_dim": 128,
        "token_stage": "c5",
        "top_down": False,
        "linear_path": True,
        "token_gradient": 0.0,  # how much of the tokens' and modules' gradient reaches the trunk
        "token_share": 0.25,  # how much their classifiers count beside the trunk's
        "pretrained": "",  # torchvision or timm weights for the trunk: .safetensors or .pth
        # Statistics, of whatever reads the trunk, too: "global" or "per_device".
        "trunk": fields(ResNet) | {"batch_norm": "global"},
        "tokens": fields(VisualTokens),
        "heads": fields(GroupHeads),
        "fusion": fields(GatedFusion),
        "captions": fields(CaptionAlignment),
        **dict.fromkeys(optional_sections()),
        "phrase_prototypes": False,  # alignment's prototypes from phrases, through the text tower `text`
    }


def optional_sections() -> dict[str, dict[str, Any]]:
    """The modules a model may have, and their settings. Each section is None until it is asked for."""
    return {
        "frequency": fields(FrequencyBranch),
        "encoder": fields(CrossModalEncoder),
        "text": fields(TextTower),
        "router": fields(PseudoLabelRouter),
        "decomposer": fields(HierarchicalDecomposer),
        "alignment": fields(Alignment),
    }


def fields(module: type[nn.Module]) -> dict[str, Any]:
    """A module's settings and their defaults, but for what the model decides for all of its modules."""
    shared = {"parent", "name", "dtype", "lowering", "text", "reads_captions", "norm_parts"}
    return {
        field.name: field.default
        for field in dataclasses.fields(module)
        if field.name not in shared and field.default is not dataclasses.MISSING
    }


def build_model(config: ConfigDict, schema: AttributeSchema, text: Text, devices: int = 1) -> WSCA:
    """Builds trunk, tokens, heads and the modules whose section is not None.

    Args:
      config: the `model` section.
      schema: what is predicted.
      text: how captions and phrases become token ids. Where neither is used there is no text tower, whatever
        its section says.
      devices: over which a batch is spread.

    Raises:
      TypeError, ValueError: for a field or a value that a module does not take.
    """
    common = {"dtype": jnp.dtype(config.dtype)}
    width, branch, groups = config.hidden_size, config.attr_dim, schema.num_groups
    attributes = schema.num_attributes
    frequency = config.frequency
    parts = _norm_parts(config.trunk, devices)
    grouped = config.encoder is not None or config.decomposer is not None
    tower, captions = _text_tower(config, text), text.options.columns is not None
    compared = captions and None not in (config.alignment, config.encoder, tower)
    return WSCA(
        trunk=_trunk(config.trunk, norm_parts=parts, **common),
        tokens=VisualTokens(width, **config.tokens, **common, norm_parts=parts),
        heads=GroupHeads(schema.group_of, width, branch, **config.heads, **common, norm_parts=parts),
        branch_norm=FeatureNorm(**common, parts=parts, affine=False) if grouped else None,
        token_gradient=config.token_gradient,
        token_share=config.token_share,
        token_stage=config.token_stage,
        top_down=config.top_down,
        linear_path=config.linear_path,
        frequency=_optional(frequency, FrequencyBranch, groups, width, **common),
        fusion=None if frequency is None else GatedFusion(width, **config.fusion, **common),
        encoder=_optional(
            config.encoder,
            CrossModalEncoder,
            *(groups, width, branch),
            text=tower,
            reads_captions=captions,
            **common,
        ),
        router=_optional(config.router, PseudoLabelRouter, attributes, width, **common),
        decomposer=_optional(config.decomposer, HierarchicalDecomposer, groups, branch, width, **common),
        alignment=_optional(config.alignment, Alignment, attributes, branch, **common),
        captions=CaptionAlignment(branch, **config.captions, **common) if compared else None,
        phrases=_phrases(config, schema, text, tower),
    )


def _norm_parts(trunk: ConfigDict, devices: int) -> int:
    """Parts of the batch with statistics of their own, in the trunk and in what reads it."""
    if trunk.batch_norm not in ("global", "per_device"):
        raise ValueError(f"model.trunk.batch_norm is {trunk.batch_norm!r}; expected 'global' or 'per_device'")
    return devices if trunk.batch_norm == "per_device" else 1


def _trunk(config: ConfigDict, **shared: Any) -> ResNet:
    return ResNet(**{key: value for key, value in config.items() if key != "batch_norm"}, **shared)


def _text_tower(config: ConfigDict, text: Text) -> TextTower | None:
    options = text.options
    if config.text is None or (options.columns is None and not config.phrase_prototypes):
        return None
    return TextTower(
        options.vocabulary, options.length, config.hidden_size, **config.text, dtype=jnp.dtype(config.dtype)
    )


def _phrases(
    config: ConfigDict, schema: AttributeSchema, text: Text, tower: TextTower | None
) -> tuple[tuple[int, ...], ...] | None:
    if not config.phrase_prototypes or config.alignment is None:
        return None
    if config.encoder is None or tower is None:
        raise ValueError(
            "model.phrase_prototypes needs the text tower, which reads the phrases: model.encoder and "
            "model.text must not be None"
        )
    return tuple(tuple(row) for row in text.encode_phrases(schema).tolist())


def _optional(
    section: ConfigDict | None, module: type[nn.Module], *sizes: int, **shared: Any
) -> nn.Module | None:
    return None if section is None else module(*sizes, **section, **shared)
