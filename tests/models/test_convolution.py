"""Every form of a convolution against the compiler's own, gradients included."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from wsca_jax.models import convolution_forms as forms
from wsca_jax.models.convolution import convolve
from wsca_jax.models.convolution_forms import Geometry

# kernel, stride, padding, rows: what a ResNet uses at 64 px and around it, and stranger ones.
CASES = [
    (1, 1, 0, 8),
    (1, 2, 0, 8),
    (1, 2, 0, 7),
    (1, 1, 1, 5),
    (3, 1, 1, 16),
    (3, 1, 1, 2),
    (3, 1, 1, 1),
    (3, 2, 1, 16),
    (3, 2, 1, 9),
    (3, 2, 1, 4),
    (3, 2, 1, 2),
    (3, 2, 1, 1),
    (1, 2, 0, 1),
    (7, 2, 3, 32),
    (7, 2, 3, 15),
    (5, 3, 2, 11),
    (2, 2, 0, 7),
    (2, 3, 0, 8),
]


def operands(kernel, rows, inputs=4, features=5, dtype=jnp.float32):
    rng = np.random.default_rng(rows)
    x = rng.standard_normal((2, rows, rows + 1, inputs))
    weights = rng.standard_normal((kernel, kernel, inputs, features)) / kernel
    return jnp.asarray(x, dtype), jnp.asarray(weights, dtype)


def value_and_gradients(x, kernel, strides, padding, lowering):
    def loss(x, kernel):
        y = convolve(x, kernel, strides, padding, lowering)
        return jnp.sum(y * jnp.sin(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape)), y

    (_, y), gradients = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(x, kernel)
    return y, *gradients


def assert_close(found, expected, tolerance=1e-5):
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * float(jnp.abs(b).max()))


@pytest.mark.parametrize(("kernel", "stride", "padding", "rows"), CASES)
def test_cpu_form_equals_native(kernel, stride, padding, rows):
    x, weights = operands(kernel, rows)
    arguments = (x, weights, (stride, stride), (padding, padding))
    expected = value_and_gradients(*arguments, "native")
    assert_close(value_and_gradients(*arguments, "cpu"), expected)
    assert_close(value_and_gradients(*arguments, None), expected)


@pytest.mark.parametrize(("kernel", "stride", "padding", "rows"), CASES)
def test_each_product_form_equals_native(kernel, stride, padding, rows):
    """The choice by shape hides some forms from the small cases above: here each runs on all of them."""
    x, weights = operands(kernel, rows)
    geometry = Geometry((stride, stride), (padding, padding))

    @jax.jit
    def both(x, weights):
        y, vjp = jax.vjp(functools.partial(forms.native, geometry=geometry), x, weights)
        dy = jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape)
        found = (
            forms.patches_times_matrix(x, weights, geometry),
            forms.input_gradient_by_phases(dy, weights, forms.sides(x), geometry),
            forms.kernel_gradient_by_patches(x, dy, (kernel, kernel), geometry),
            forms.kernel_gradient_in_turns(x, dy, (kernel, kernel), geometry, images=1),
        )
        dx, dkernel = vjp(dy)
        return found, (y, dx, dkernel, dkernel)

    assert_close(*both(x, weights))


def test_unequal_sides():
    x, _ = operands(3, 9)
    weights = jnp.asarray(np.random.default_rng(0).standard_normal((3, 2, 4, 5)), jnp.float32)
    arguments = (x, weights, (2, 1), (1, 0))
    assert_close(value_and_gradients(*arguments, "cpu"), value_and_gradients(*arguments, "native"))


@pytest.mark.parametrize(("inputs", "features"), [(32, 16), (16, 32)])
def test_wide_kernels_take_either_order_of_the_gradient_product(inputs, features):
    x, weights = operands(3, 10, inputs, features)
    arguments = (x, weights, (1, 1), (1, 1))
    assert_close(value_and_gradients(*arguments, "cpu"), value_and_gradients(*arguments, "native"))


@pytest.mark.parametrize(("stride", "rows"), [(1, 20), (2, 40)])
def test_a_batch_whose_patches_are_many_takes_turns(stride, rows):
    """24 images in turns of 8, one from each device: the patches of all would fill 5.5 MB."""
    x, weights = (
        jnp.tile(a, r) for a, r in zip(operands(3, rows), ((12, 1, 1, 4), (1, 1, 4, 1)), strict=True)
    )
    x = x * jnp.linspace(0.5, 1.5, len(x))[:, None, None, None]
    arguments = (x, weights, (stride, stride), (1, 1))
    assert_close(value_and_gradients(*arguments, "cpu"), value_and_gradients(*arguments, "native"))
    gradient = jax.grad(lambda k: jnp.sum(convolve(x, k, (stride, stride), (1, 1), "cpu") ** 2))
    program = jax.jit(gradient).trace(weights)
    assert "scan[" in str(program.jaxpr)
    split = jax.device_put(x, NamedSharding(data_mesh(), PartitionSpec("data")))
    spread = jax.jit(lambda x, k: jax.grad(lambda k: convolve(x, k, (stride, stride), (1, 1)).sum())(k))
    text = spread.lower(split, weights).compile().as_text()
    assert "while" in text
    assert "all-gather" not in text
    assert "collective-permute" not in text


def test_bfloat16_stays_bfloat16():
    x, weights = operands(3, 4, dtype=jnp.bfloat16)
    found = value_and_gradients(x, weights, (1, 1), (1, 1), "cpu")
    expected = value_and_gradients(
        x.astype(jnp.float32), weights.astype(jnp.float32), (1, 1), (1, 1), "native"
    )
    assert all(a.dtype == jnp.bfloat16 for a in found)
    assert_close([a.astype(jnp.float32) for a in found], expected, tolerance=3e-2)


def test_turns_in_bfloat16_add_up_in_float32():
    """512 turns of all ones: a sum in bfloat16 stops at 256, where 1 is half of its last digit."""
    x, dy = (jnp.ones((512, 1, 1, 1), jnp.bfloat16) for _ in range(2))
    found = forms.kernel_gradient_in_turns(x, dy, (1, 1), Geometry((1, 1), (0, 0)), images=1)
    assert found.dtype == jnp.bfloat16
    assert float(found.squeeze()) == 512


def test_a_program_for_another_platform_gets_the_native_form():
    """Lowered on this machine for a TPU or GPU: the convolution and its gradients, and no matrix product."""
    x, weights = operands(3, 2, inputs=16)

    def loss(x, weights):
        return convolve(x, weights, (1, 1), (1, 1)).sum()

    traced = jax.jit(jax.grad(loss, (0, 1))).trace(x, weights)
    for platform in ("tpu", "cuda"):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert text.count("stablehlo.convolution") == 2
        assert "dot_general" not in text
    here = traced.lower(lowering_platforms=("cpu",)).as_text()
    assert "stablehlo.convolution" not in here


def data_mesh():
    return jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))


def test_batch_sharded_over_devices_needs_no_gathered_image():
    x, weights = jnp.tile(operands(3, 4)[0], (4, 1, 1, 1)), operands(3, 4)[1]
    split = jax.device_put(x, NamedSharding(data_mesh(), PartitionSpec("data")))
    arguments = (weights, (1, 1), (1, 1))
    assert_close(value_and_gradients(split, *arguments, None), value_and_gradients(x, *arguments, "native"))
    gradient = jax.jit(jax.grad(lambda x, k: jnp.sum(convolve(x, k, (1, 1), (1, 1)) ** 2), (0, 1)))
    text = gradient.lower(split, weights).compile().as_text()
    assert "all-gather" not in text
    assert "all-reduce" in text  # the kernel's gradient sums over devices


def test_rematerialisation_and_vmap():
    x, weights = operands(3, 4)

    def loss(x, weights):
        return jnp.sum(convolve(x, weights, (1, 1), (1, 1)) ** 2)

    expected = jax.grad(loss, (0, 1))(x, weights)
    assert_close(jax.grad(jax.checkpoint(loss), (0, 1))(x, weights), expected)
    stacked = jax.vmap(lambda image: convolve(image[None], weights, (1, 1), (1, 1))[0])(x)
    assert_close([stacked], [convolve(x, weights, (1, 1), (1, 1))])


def test_dtypes_must_agree():
    x, weights = operands(3, 4)
    with pytest.raises(TypeError, match="images are bfloat16, the kernel is float32"):
        convolve(x.astype(jnp.bfloat16), weights, (1, 1), (1, 1))
