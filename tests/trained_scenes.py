"""A tiny model of Scenes, as `inside.load` returns one, without training or a workdir."""

import dataclasses

import jax
from methods.tiny_model import MODULES, SMALL, TinyTrunk

from wsca_jax import assembly, config
from wsca_jax.engine import state as states
from wsca_jax.engine.sharding import Layout, make_mesh
from wsca_jax.evaluate import Trained


def build(without: tuple[str, ...] = (), devices: int = 1) -> Trained:
    """Random weights, every module but those left out, the first images of the validation split."""
    named = [f"--config.model.{name}={'None' if name in without else 'default'}" for name in MODULES]
    small = [o for o in SMALL if not any(o.startswith(f"--config.model.{name}.") for name in without)]
    settings = config.load("configs/scenes.py:tiny", [*named, *small, "--config.evaluation.batch_size=8"])
    source = assembly.open_source(settings, "validation")
    run = assembly.build(settings, source.schema, len(source))
    layout = Layout(make_mesh(devices=jax.devices()[:devices]))
    method = dataclasses.replace(run.method, model=run.method.model.clone(trunk=TinyTrunk()))
    run = dataclasses.replace(run, method=method, layout=layout)
    spec = assembly.batch_spec(settings, source.schema, 8)
    return Trained(run, source, states.create(method, run.optimizer, spec, seed=0, layout=layout), 0)
