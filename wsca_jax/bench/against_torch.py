"""What PyTorch is to train beside us: the baseline of a configuration, as plain values."""

from __future__ import annotations

import numpy as np
from ml_collections import ConfigDict

from input_pipeline.batch import AttributeBatch
from input_pipeline.schema import AttributeSchema
from wsca_jax import augment
from wsca_jax.bench.figures import Device
from wsca_jax.bench.torch_step import Batch, Jitter, Recipe, Shape
from wsca_jax.engine.optimizer import OptimizerOptions
from wsca_jax.errors import WscaError

# What JAX and PyTorch call the same kind of device.
DEVICES = {"cpu": "cpu", "gpu": "cuda"}


def recipe(config: ConfigDict, schema: AttributeSchema, device: Device, *, compiled: bool) -> Recipe:
    """The recipe of a configuration without modules.

    Args:
      config: a configuration without modules.
      schema: what is predicted.
      device: what JAX runs on.
      compiled: whether torch.compile is to make the step.

    Raises:
      WscaError: PyTorch does not do that here.
    """
    check(config, device)
    jitter, optimizer = augment.for_schema(augment.Options(**config.augment), schema), config.optimizer
    return Recipe(
        model=shape(config, schema),
        jitter=Jitter(*(getattr(jitter, name) for name in Jitter._fields)),
        learning_rate=_learning_rate(config),
        weight_decay=optimizer.weight_decay,
        betas=(optimizer.b1, optimizer.b2),
        eps=optimizer.eps,
        clip_norm=optimizer.clip_norm,
        ema_decay=optimizer.ema_decay,
        bfloat16=config.model.dtype == "bfloat16",
        device=DEVICES[device.platform],
        compiled=compiled,
    )


def _learning_rate(config: ConfigDict) -> float:
    return OptimizerOptions(**config.optimizer).at_batch_size(config.train.batch_size).learning_rate


def check(config: ConfigDict, device: Device) -> None:
    """Raises WscaError where the comparison would be one of different things."""
    expected = {
        "optimizer.name": (config.optimizer.name, "adamw"),
        "loss.classification": (config.loss.classification, "binary_cross_entropy"),
        "train.accumulate": (config.train.accumulate, 1),
        "frozen": (tuple(config.frozen), ()),
        "model.trunk.remat": (tuple(config.model.trunk.remat), ()),
    }
    for key, (found, wanted) in expected.items():
        if found != wanted:
            raise WscaError(f"--against torch: {key} is {found!r}; PyTorch stands beside {wanted!r} alone")
    if device.platform not in DEVICES:
        raise WscaError(f"--against torch: expected a CPU or a GPU, found {device.platform}")
    if device.platform == "gpu" and device.count > 1:
        raise WscaError(
            f"--against torch: compares a single GPU, found {device.count}; start with CUDA_VISIBLE_DEVICES=0"
        )


def shape(config: ConfigDict, schema: AttributeSchema) -> Shape:
    """Sizes of the model, for PyTorch."""
    model = config.model
    # The start decides no cost, and on one device its statistics are the batch's.
    elsewhere = ("zero_init", "batch_norm", "remat")
    trunk = {key: value for key, value in model.trunk.items() if key not in elsewhere}
    present = sorted(set(schema.group_of))
    return Shape(
        trunk=trunk,
        group_of=tuple(present.index(group) for group in schema.group_of),
        hidden_size=model.hidden_size,
        attr_dim=model.attr_dim,
        token_stage=model.token_stage,
        top_down=model.top_down,
        token_gradient=model.token_gradient,
        linear_path=model.linear_path,
        grid=model.tokens.grid,
        token_dropout=model.tokens.dropout,
        head_dropout=model.heads.dropout,
    )


def host_batch(batch: AttributeBatch) -> Batch:
    """Our batch for PyTorch, on the host."""
    return Batch(np.asarray(batch.image), np.asarray(batch.labels), np.asarray(batch.known))
