"""The whole WSCA method at tiny sizes, on a trunk that compiles in no time."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from input_pipeline.batch import AttributeBatch
from input_pipeline.schema import AttributeSchema
from wsca_jax import assembly, config
from wsca_jax.engine import state as states
from wsca_jax.engine.optimizer import Optimizer, OptimizerOptions, make_optimizer
from wsca_jax.engine.sharding import Layout, make_mesh
from wsca_jax.methods.base import Method
from wsca_jax.models.resnet import Stages

SMALL = (
    "--config.model.encoder.depth=1",
    "--config.model.encoder.num_heads=2",
    "--config.model.text.depth=1",
    "--config.model.text.num_heads=2",
    "--config.model.router.experts=3",
    "--config.model.router.clusters=4",
    "--config.model.decomposer.width=8",
    "--config.model.decomposer.num_heads=2",
    "--config.model.frequency.width=6",
    "--config.loss.accept.warmup_steps=2",
    "--config.loss.accept.threshold_start=0.5",
    "--config.loss.accept.threshold_end=0.5",
    "--config.loss.held_out.fraction=0.3",
)
COLOURFUL = 18  # labels of `make_batch` that depend on its images
MODULES = ("frequency", "encoder", "text", "router", "decomposer", "alignment")


class TinyTrunk(nn.Module):
    """Four stages of one linear layer each, on patches of 4 to 8 pixels."""

    @nn.compact
    def __call__(self, image, *, train, weight=None):
        b, h, w, c = image.shape
        x = image.reshape(b, h // 8, 8, w // 8, 8, c).transpose(0, 1, 3, 2, 4, 5)
        x = x.reshape(b, h // 8, w // 8, -1)
        stages = []
        for i in range(4):
            x = nn.relu(nn.Dense(16, name=f"c{i + 2}")(x))
            stages.append(x)
        return Stages(*stages)


def build(
    *overrides: str,
    without: tuple[str, ...] = (),
    captions: str = "none",
    schema: AttributeSchema | None = None,
) -> Method:
    """The method of these overrides, with every module but those left out; None is the schema of Scenes."""
    base = config.load("configs/scenes.py:tiny")
    named = [f"--config.model.{name}={'None' if name in without else 'default'}" for name in MODULES]
    small = [o for o in SMALL if not any(o.startswith(f"--config.model.{name}.") for name in without)]
    settings = config.load(
        "configs/scenes.py:tiny", [*named, *small, f"--config.data.text.captions={captions}", *overrides]
    )
    assert base.data == settings.data or captions != "none"
    method = assembly.build_method(settings, schema or assembly.data_schema(settings))
    return dataclasses.replace(method, model=method.model.clone(trunk=TinyTrunk()))


def make_batch(method: Method, rows: int = 8, known: float = 0.5, length: int | None = None, seed: int = 0):
    """Noise whose first labels say which of red, green and blue are bright; `known` of the labels are."""
    rng = np.random.default_rng(seed)
    attributes = method.schema.num_attributes
    bright = rng.random((rows, 3)) < 0.5
    image = (rng.integers(0, 128, (rows, 32, 32, 3)) + 128 * bright[:, None, None]).astype(np.uint8)
    mask = rng.random((rows, attributes)) < known
    labels = rng.random((rows, attributes)) < 0.4
    labels[:, :COLOURFUL] = bright[:, np.arange(min(COLOURFUL, attributes)) % 3]
    labels &= mask
    tokens = None if length is None else rng.integers(1, 60, (rows, length)).astype(np.int32)
    return AttributeBatch(
        image,
        labels.astype(np.uint8),
        mask,
        np.ones(rows, np.float32),
        np.arange(rows, dtype=np.int32),
        tokens,
    )


def make_variables(method: Method, batch: AttributeBatch, seed: int = 0):
    """Random parameters and statistics: nothing is compiled, no bias is 0 and no scale 1."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        deviation = 0.2 if leaf.ndim < 2 else np.prod(leaf.shape[:-1]) ** -0.5
        positive = path[-1].key.endswith(("scale", "var"))
        return (positive + deviation * rng.standard_normal(leaf.shape)).astype(np.float32)

    shapes = jax.eval_shape(lambda: method.init(jax.random.key(0), batch))
    return jax.tree.map_with_path(draw, dict(shapes))


def make_state(
    method: Method, batch: AttributeBatch, layout: Layout | None = None, learning_rate: float = 1e-3
) -> tuple[states.TrainState, Optimizer, Layout]:
    layout = layout or Layout(make_mesh(devices=jax.devices()[:1]))
    optimizer = make_optimizer(OptimizerOptions(learning_rate=learning_rate, ema_decay=0.9), 100)
    return states.create(method, optimizer, batch, seed=0, layout=layout), optimizer, layout


def evaluator(method: Method):
    """(variables, batch) -> outputs in evaluation, compiled once per shape."""

    @jax.jit
    def run(variables, batch):
        prepared = method.augment(batch, None)
        return method.forward(method.model, variables, None, prepared, jnp.int32(0), False, {})[0]

    return run


def evaluate(method: Method, variables, batch: AttributeBatch):
    """Outputs in evaluation, where they are asked for once."""
    return evaluator(method)(variables, batch)
