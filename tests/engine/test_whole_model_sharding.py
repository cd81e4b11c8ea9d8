"""The whole model's training step on eight devices moves no images: read from the program XLA made of it."""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec
from methods import tiny_model

from wsca_jax.engine import state as states
from wsca_jax.engine.optimizer import OptimizerOptions, make_optimizer
from wsca_jax.engine.sharding import Layout, make_mesh
from wsca_jax.engine.step import compile_train_step
from wsca_jax.models.frequency import low_pass
from wsca_jax.models.resnet import ResNet

ROWS, SIDE, TOKENS, BRANCH = 56, 32, 32, 16  # 56 is the size of no axis but the batch's
OVERRIDES = (f"--config.model.attr_dim={BRANCH}", "--config.loss.balancing.kind=trend")
# Whatever leaves a device as it is; reductions bring sums.
MOVES = ("all-gather", "all-to-all", "ragged-all-to-all", "collective-permute", "collective-broadcast")


def results(program: str, *operations: str) -> list[tuple[str, tuple[int, ...]]]:
    """(operation, shape) of all arrays that these operations return, started ones included."""
    names = "|".join(map(re.escape, operations))
    lines = re.findall(rf"= (.*?) ({names})(?:-start)?\(", program)
    return [
        (operation, tuple(int(n) for n in shape.split(",") if n))
        for arrays, operation in lines
        for shape in re.findall(r"\w+\[([\d,]*)\]", arrays)
    ]


def whole_method(*overrides: str):
    """Every module, text and loss term, on a real ResNet; convolutions as accelerators run them."""
    method = tiny_model.build(*OVERRIDES, *overrides, captions="phrases")
    frequency = method.model.frequency.clone(lowering="native")
    trunk = ResNet(18, width=8, dtype=jnp.float32, lowering="native")
    return dataclasses.replace(method, model=method.model.clone(trunk=trunk, frequency=frequency))


def step_program(method, layout: Layout, accumulate: int) -> tuple[str, set[tuple[int, ...]]]:
    """(the optimised training step, the shapes of the parameters that the layout spreads)."""
    batch = tiny_model.make_batch(method, ROWS * accumulate, length=TOKENS)
    optimizer = make_optimizer(OptimizerOptions(ema_decay=0.9), 100)
    state = states.abstract(method, optimizer, batch, seed=0, layout=layout)
    step = compile_train_step(method, optimizer, layout, state, seed=0, accumulate=accumulate)
    spread = {
        leaf.shape
        for leaf in jax.tree.leaves(state.params)
        if layout.sharding(leaf.shape).spec != PartitionSpec()
    }
    return step.lower(state, batch).compile().as_text(), spread


@pytest.mark.slow
@pytest.mark.parametrize(
    ("data", "fsdp", "accumulate", "overrides"),
    [
        (8, 1, 1, ()),
        (4, 2, 1, ("--config.loss.cal.block_size=16",)),
        (8, 1, 2, ()),
    ],
)
def test_the_whole_step_gathers_no_images(data, fsdp, accumulate, overrides):
    """No array of the batch that travels is larger than the group features, [B, G, a].

    Contrastive alignment compares each example's with every other's. Labels and pseudo labels, [B, A] and
    [2, B, A], travel for it and for ranking pseudo labels by quality. Parameters that fsdp spreads are
    gathered whole. Nothing else is: not images, feature maps, tokens or captions.
    """
    method = whole_method(*overrides)
    names = {term.name for term in method.terms}
    assert names == {"classification", "pseudo", "cal", "mavd", "hierarchy", "frequency", "cmdl", "graph"}
    program, spread = step_program(method, Layout(make_mesh(data, fsdp), shard_from=2000), accumulate)
    assert bool(spread) == (fsdp > 1)
    features = ROWS * method.schema.num_groups * BRANCH
    image_rows_of_a_device = ROWS // 8 * SIDE * SIDE * 3
    assert features < image_rows_of_a_device
    moved = results(program, *MOVES)
    assert moved
    assert not {found for found in moved if math.prod(found[1]) > features and found[1] not in spread}
    # A gather can also be written as a sum over devices of arrays that are zero but for each one's rows.
    reduced = results(program, "all-reduce", "reduce-scatter")
    assert reduced
    assert not {found for found in reduced if ROWS in found[1] and math.prod(found[1]) > features}


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


def test_all_collectives_are_read():
    program = """
      %a = f32[56,32]{1,0} all-gather(%x), channel_id=1
      %b = (f32[7,32]{1,0}, f32[56,32]{1,0}) all-gather-start(%x), channel_id=2
      %c = (s32[56]{0}, s32[2,56]{1,0:T(8)}) all-to-all(%x, %y), channel_id=3
      %d = f32[] all-reduce(%x), metadata={op_name="all-gather(of nothing)"}
    """
    assert [shape for _, shape in results(program, "all-gather")] == [(56, 32), (7, 32), (56, 32)]
    assert results(program, "all-to-all", "all-reduce") == [
        ("all-to-all", (56,)),
        ("all-to-all", (2, 56)),
        ("all-reduce", ()),
    ]
