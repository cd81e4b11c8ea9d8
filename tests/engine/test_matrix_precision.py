"""Matrix work of a training step is in bfloat16 on an accelerator: read from its compiler's input."""

import collections
import math
import re

import jax
import pytest

from wsca_jax import assembly, config
from wsca_jax.engine import state as states
from wsca_jax.engine.sharding import Layout, make_mesh
from wsca_jax.engine.step import compile_train_step
from wsca_jax.inspection.record import forward_multiply_adds

TYPES = r"\(tensor<(.*?)>, tensor<(.*?)>\) -> tensor<(.*?)>"
CONVOLUTION = re.compile(rf"stablehlo\.convolution\(.*: {TYPES}")
PRODUCT = re.compile(rf"stablehlo\.dot_general .*?contracting_dims = \[([\d, ]*)\] x.*: {TYPES}")


def lowered(spec: str, *overrides: str) -> tuple[str, int]:
    """(the step as a TPU's compiler gets it, multiply-adds of the model in it)."""
    settings = config.load(spec, overrides)
    layout = Layout(make_mesh(devices=jax.devices()[:1]))
    run = assembly.build(settings, assembly.data_schema(settings), 10**6, devices=jax.devices()[:1])
    batch = assembly.batch_spec(settings, assembly.data_schema(settings), settings.train.batch_size)
    state = states.abstract(run.method, run.optimizer, batch, seed=0, layout=layout)
    step = compile_train_step(run.method, run.optimizer, layout, state, seed=0)
    text = step.trace(state, batch).lower(lowering_platforms=("tpu",)).as_text()
    forward = sum(forward_multiply_adds(run.method, state, batch).values())
    return text, 3 * forward * settings.train.batch_size


def dtype(tensor: str) -> str:
    return tensor.split("x")[-1]


def products(text: str) -> collections.Counter:
    """{operands' types: multiply-adds} of all matrix products."""
    totals: collections.Counter = collections.Counter()
    for contracting, left, right, out in PRODUCT.findall(text):
        sizes = [int(n) for n in left.split("x")[:-1]]
        contracted = math.prod(sizes[int(axis)] for axis in contracting.split(",") if axis.strip())
        count = math.prod(int(n) for n in out.split("x")[:-1]) * contracted
        totals[dtype(left), dtype(right)] += count
    return totals


@pytest.mark.slow
def test_without_modules_everything_is_multiplied_in_bfloat16():
    text, _ = lowered("configs/scenes.py:tiny", "--config.model.dtype=bfloat16")
    convolutions = CONVOLUTION.findall(text)
    assert len(convolutions) > 50  # ResNet-18's 20, forward and twice backward, but for the first one's input
    assert {dtype(tensor) for types in convolutions for tensor in types} == {"bf16"}
    assert ("f32", "f32") not in products(text)


@pytest.mark.slow
def test_with_every_module_a_fiftieth_is_multiplied_in_float32():
    """The frequency branch's transforms, correlations and similarities, and the gradients of these."""
    text, total = lowered("configs/celeba.py:full", "--config.train.batch_size=8")
    convolutions = CONVOLUTION.findall(text)
    assert {dtype(tensor) for types in convolutions for tensor in types} == {"bf16"}
    by_type = products(text)
    assert by_type["bf16", "bf16"] > 0.2 * total
    assert 0 < by_type["f32", "f32"] < 0.02 * total
    assert by_type["f32", "bf16"] + by_type["bf16", "f32"] < 0.002 * total  # gradients of softmaxes
