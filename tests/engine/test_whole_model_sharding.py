"""The whole model's training step on eight devices, read from the program XLA made of it: it moves no images,
gathers only what is spread, reduces every gradient once and holds one state.
"""

import collections
import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec
from methods import tiny_model
from tiny_method import Run, make_batch

from wsca_jax.compilation import hlo
from wsca_jax.compilation.collectives import KINDS
from wsca_jax.engine import state as states
from wsca_jax.engine.optimizer import OptimizerOptions, make_optimizer
from wsca_jax.engine.sharding import Layout, make_mesh
from wsca_jax.engine.state import TrainState
from wsca_jax.engine.step import compile_train_step
from wsca_jax.inspection.memory import held_bytes
from wsca_jax.models.frequency import low_pass
from wsca_jax.models.resnet import ResNet

ROWS, SIDE, TOKENS, BRANCH = 56, 32, 32, 16  # 56 is the size of no axis but the batch's
OVERRIDES = (f"--config.model.attr_dim={BRANCH}", "--config.loss.balancing.kind=trend")
REDUCTIONS = ("all-reduce", "reduce-scatter")
# Whatever leaves a device as it is; reductions bring sums.
MOVES = tuple(kind for kind in KINDS if kind not in REDUCTIONS)
REPLICATED = (8, 1, 1, ())
SPREAD = [(4, 2, 1, ("--config.loss.cal.block_size=16",)), (4, 2, 2, ())]
ARGUMENTS = ("data", "fsdp", "accumulate", "overrides")


class Step(NamedTuple):
    """A compiled training step, and what it was compiled for."""

    compiled: jax.stages.Compiled
    state: TrainState
    layout: Layout

    def results(self, *operations: str) -> list[tuple[str, tuple[int, ...]]]:
        """(operation, shape) of all arrays that these operations return, each time that they run."""
        return results(self.compiled.as_text(), *operations)

    @property
    def spread(self) -> collections.Counter:
        """How many parameters of each shape the layout spreads over devices."""
        return collections.Counter(
            leaf.shape
            for leaf in jax.tree.leaves(self.state.params)
            if self.layout.sharding(leaf.shape).spec != PartitionSpec()
        )

    @property
    def kernels(self) -> collections.Counter:
        """How many convolution kernels there are of each shape: nothing else has four axes like these."""
        shapes = (leaf.shape for leaf in jax.tree.leaves(self.state.params))
        return collections.Counter(shape for shape in shapes if len(shape) == 4)


def results(program: str, *operations: str) -> list[tuple[str, tuple[int, ...]]]:
    """(operation, shape) of all arrays that these operations return, started ones included."""
    return [
        (instruction.operation.removesuffix("-start"), array.shape)
        for _, instruction, times in hlo.parse(program).executed()
        if instruction.operation.removesuffix("-start") in operations
        for array in instruction.results
        for _ in range(times)
    ]


def whole_method(*overrides: str):
    """Every module, text and loss term, on a real ResNet; convolutions as accelerators run them."""
    method = tiny_model.build(*OVERRIDES, *overrides, captions="phrases")
    frequency = method.model.frequency.clone(lowering="native")
    trunk = ResNet(18, width=8, dtype=jnp.float32, lowering="native")
    return dataclasses.replace(method, model=method.model.clone(trunk=trunk, frequency=frequency))


@functools.cache
def compiled_step(data: int, fsdp: int, accumulate: int, overrides: tuple[str, ...]) -> Step:
    method = whole_method(*overrides)
    names = {term.name for term in method.terms}
    assert names == {"classification", "pseudo", "cal", "mavd", "hierarchy", "frequency", "cmdl", "graph"}
    layout = Layout(make_mesh(data, fsdp), shard_from=2000)
    batch = tiny_model.make_batch(method, ROWS * accumulate, length=TOKENS)
    optimizer = make_optimizer(OptimizerOptions(ema_decay=0.9), 100)
    state = states.abstract(method, optimizer, batch, seed=0, layout=layout)
    step = compile_train_step(method, optimizer, layout, state, seed=0, accumulate=accumulate)
    return Step(step.lower(state, batch).compile(), state, layout)


@pytest.mark.slow
@pytest.mark.parametrize(ARGUMENTS, [REPLICATED, *SPREAD])
def test_the_whole_step_gathers_no_images(data, fsdp, accumulate, overrides):
    """No array of the batch that travels is larger than the group features, [B, G, a].

    Contrastive alignment compares each example's with every other's. Labels and pseudo labels, [B, A] and
    [2, B, A], travel for it and for ranking pseudo labels by quality. Parameters that fsdp spreads are
    gathered whole. Nothing else is: not images, feature maps, tokens or captions.
    """
    step = compiled_step(data, fsdp, accumulate, overrides)
    assert bool(step.spread) == (fsdp > 1)
    features = ROWS * whole_method().schema.num_groups * BRANCH
    image_rows_of_a_device = ROWS // 8 * SIDE * SIDE * 3
    assert features < image_rows_of_a_device
    moved = step.results(*MOVES)
    assert moved
    assert not {found for found in moved if math.prod(found[1]) > features and found[1] not in step.spread}
    # A gather can also be written as a sum over devices of arrays that are zero but for each one's rows.
    reduced = step.results(*REDUCTIONS)
    assert reduced
    assert not {found for found in reduced if ROWS in found[1] and math.prod(found[1]) > features}


@pytest.mark.slow
def test_the_whole_step_passes_nothing_from_neighbour_to_neighbour():
    """Where parameters move like this, a convolution was partitioned instead of its parameters gathered."""
    step = compiled_step(*REPLICATED)
    assert {operation for operation, _ in step.results(*MOVES)} == {"all-gather"}


@pytest.mark.slow
@pytest.mark.parametrize(ARGUMENTS, SPREAD)
def test_the_whole_step_gathers_each_spread_parameter_once(data, fsdp, accumulate, overrides):
    """Where gradients are accumulated, too: not again for each microbatch."""
    step = compiled_step(data, fsdp, accumulate, overrides)
    gathered = collections.Counter(shape for _, shape in step.results("all-gather"))
    assert {shape: gathered[shape] for shape in step.spread} == step.spread


@pytest.mark.slow
@pytest.mark.parametrize(ARGUMENTS, [REPLICATED, *SPREAD])
def test_the_whole_step_reduces_each_gradient_once(data, fsdp, accumulate, overrides):
    """For each microbatch: its gradients are summed over devices before they are added up."""
    step = compiled_step(data, fsdp, accumulate, overrides)
    reduced = collections.Counter(shape for _, shape in step.results(*REDUCTIONS))
    assert step.kernels
    assert {shape: reduced[shape] for shape in step.kernels} == {
        shape: accumulate * count for shape, count in step.kernels.items()
    }


@pytest.mark.slow
@pytest.mark.parametrize(ARGUMENTS, [REPLICATED, *SPREAD])
def test_the_whole_step_writes_the_next_state_over_this_one(data, fsdp, accumulate, overrides):
    step = compiled_step(data, fsdp, accumulate, overrides)
    assert step.compiled.memory_analysis().alias_size_in_bytes == held_bytes(step.state, step.layout)


@pytest.mark.parametrize(("data", "fsdp"), [(8, 1), (2, 4)])
def test_a_small_step_sends_its_gradients_once_and_holds_one_state(data, fsdp):
    """What the slow tests find of the whole model, of a linear one."""
    run = Run(layout=Layout(make_mesh(data, fsdp), shard_from=100), size=64, ema_decay=0.9)
    compiled = run.compiled.lower(run.abstract, make_batch(size=64)).compile()
    assert compiled.memory_analysis().alias_size_in_bytes == held_bytes(run.abstract, run.layout)
    matrices = [leaf.shape for leaf in jax.tree.leaves(run.abstract.params) if leaf.ndim == 2]
    assert matrices == [(16, 8), (12, 16)]
    reduced = [tuple(sorted(shape)) for _, shape in results(compiled.as_text(), *REDUCTIONS)]
    assert [reduced.count(tuple(sorted(shape))) for shape in matrices] == [1, 1]
    assert len(results(compiled.as_text(), *MOVES)) == (len(matrices) if fsdp > 1 else 0)


def transformed_low_pass(image, cutoff):
    """What `low_pass` computes, by the library's transform."""
    frequencies = jnp.fft.fftfreq(image.shape[1])
    square = frequencies[:, None] ** 2 + frequencies**2
    spectrum = jnp.fft.fft2(image, axes=(1, 2)) * jnp.exp(-0.5 * square / cutoff**2)[..., None]
    return jnp.fft.ifft2(spectrum, axes=(1, 2)).real


@pytest.mark.parametrize(("filtering", "gathers"), [(low_pass, False), (transformed_low_pass, True)])
def test_a_transform_by_the_library_would_gather_them(filtering, gathers):
    """The same filter both ways: why the model has its own, and that a gather of images is found."""
    layout = Layout(make_mesh(8, 1))
    image = jax.ShapeDtypeStruct((ROWS, SIDE, SIDE, 3), jnp.float32)
    step = jax.jit(
        jax.grad(lambda image: jnp.square(filtering(image, 0.1)).sum()),
        in_shardings=(layout.batch,),
        out_shardings=layout.batch,
    )
    moved = results(step.lower(image).compile().as_text(), *MOVES)
    assert any(math.prod(shape) >= ROWS * SIDE * SIDE * 3 for _, shape in moved) == gathers
    assert gathers or not moved
