"""Meshes and layouts: where arrays go, and what does not fit."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from tiny_method import Run, make_batch, make_layout

from wsca_jax.engine.sharding import Layout, make_mesh
from wsca_jax.errors import WscaError


def test_meshes():
    assert dict(make_mesh().shape) == {"data": 8, "fsdp": 1}
    assert dict(make_mesh(fsdp=4).shape) == {"data": 2, "fsdp": 4}
    assert dict(make_mesh(1, 2, jax.devices()[:2]).shape) == {"data": 1, "fsdp": 2}


@pytest.mark.parametrize(
    ("data", "fsdp", "message"),
    [
        (-1, 3, "mesh.fsdp is 3; expected a divisor of the 8 devices"),
        (-1, 0, "mesh.fsdp is 0"),
        (3, 2, "mesh of data 3 x fsdp 2 needs 6 devices, found 8"),
    ],
)
def test_meshes_that_do_not_fit(data, fsdp, message):
    with pytest.raises(WscaError, match=re.escape(message)):
        make_mesh(data, fsdp)


def test_large_arrays_lie_along_their_largest_divisible_axis():
    layout = Layout(make_mesh(2, 4), shard_from=1000)
    spec = {
        shape: layout.sharding(shape).spec
        for shape in ((), (999,), (1000,), (3, 3, 64, 128), (128, 8, 6), (999, 8), (7, 333))
    }
    assert spec == {
        (): PartitionSpec(),
        (999,): PartitionSpec(),
        (1000,): PartitionSpec("fsdp"),
        (3, 3, 64, 128): PartitionSpec(None, None, None, "fsdp"),
        (128, 8, 6): PartitionSpec("fsdp"),
        (999, 8): PartitionSpec(None, "fsdp"),
        (7, 333): PartitionSpec(),
    }
    assert Layout(make_mesh(8, 1), shard_from=1).sharding((8, 8)).spec == PartitionSpec()


def test_each_device_gets_its_rows():
    layout = make_layout(2, 4)
    batch = make_batch(size=16)
    placed = layout.put_batch(batch)
    assert placed.tokens is None
    for field in ("image", "labels", "weight"):
        array = getattr(placed, field)
        assert array.sharding == layout.batch
        assert [shard.data.shape[0] for shard in array.addressable_shards] == [2] * 8
        np.testing.assert_array_equal(array, getattr(batch, field))


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(
        WscaError, match="global batch of 12 examples does not divide over 8 devices; make it a multiple of 8"
    ):
        make_layout(2, 4).put_batch(make_batch(size=12))


def test_fsdp_gathers_parameters_and_never_the_batch():
    """The optimised program gathers the kernels, which are spread, and nothing else."""
    run = Run(layout=Layout(make_mesh(1, 8), shard_from=100), size=64)
    program = run.compiled.lower(run.abstract, make_batch(size=64)).compile().as_text()
    gathered = set(re.findall(r"= \w+\[([\d,]*)\][^=]* all-gather\(", program))
    assert gathered == {"12,16", "16,8"}
    assert " collective-permute(" not in program
    assert " all-to-all(" not in program


def test_gathered_convolutions_move_kernels_only():
    """Left ungathered, a spread kernel makes XLA move images and activations between the devices."""
    layout = Layout(make_mesh(1, 8), shard_from=100)
    kernels = [jax.ShapeDtypeStruct((3, 3, 8, 16), "float32"), jax.ShapeDtypeStruct((3, 3, 16, 8), "float32")]

    def loss(kernels, image):
        for kernel in layout.gather(kernels):
            image = jax.nn.relu(
                jax.lax.conv_general_dilated(
                    image, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
                )
            )
        return image.mean()

    shardings = layout.shardings(kernels)
    step = jax.jit(jax.grad(loss), in_shardings=(shardings, layout.batch), out_shardings=shardings)
    program = step.lower(kernels, jax.ShapeDtypeStruct((16, 4, 4, 8), "float32")).compile().as_text()
    gathered = re.findall(r"= \w+\[([\d,]*)\][^=]* all-gather\(", program)
    assert sorted(gathered) == ["3,3,16,8", "3,3,8,16"]
    assert " collective-permute(" not in program
    assert " all-to-all(" not in program


def test_microbatches_stay_on_their_devices():
    """A strided split: no rows of the batch travel between devices."""
    run = Run(layout=make_layout(8, 1), size=64, accumulate=4)
    program = run.compiled.lower(run.abstract, make_batch(size=64)).compile().as_text()
    for collective in ("all-gather", "all-to-all", "collective-permute"):
        assert f" {collective}(" not in program
    assert " all-reduce(" in program


def test_batch_statistics_are_global():
    """Eight devices see one batch: the running mean moves towards the mean over all rows."""
    run = Run(layout=make_layout(8, 1), learning_rate=1e-30, weight_decay=0.0)
    batch = make_batch(0, weight=np.ones(32))
    before = run.host()
    run.step(batch)
    hidden = (batch.image / np.float32(255)).reshape(32, -1) @ before.params["trunk"]["kernel"]
    np.testing.assert_allclose(
        run.state.batch_stats["norm"]["mean"], 0.1 * hidden.mean(0), rtol=1e-4, atol=1e-6
    )
    assert jnp.isfinite(run.state.batch_stats["norm"]["var"]).all()
