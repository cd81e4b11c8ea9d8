"""The frequency branch against NumPy's Fourier transform, its symmetries, its cost and its sharding."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxprs import operations

from wsca_jax.inspection.multiply_adds import multiply_adds
from wsca_jax.models.frequency import FrequencyBranch, fourier_basis, low_pass, radial_bands, spectrum
from wsca_jax.models.fusion import GatedFusion

SIZES = [(32, 32), (33, 33), (7, 12), (48, 31), (224, 224)]


def gaussian_by_fft(image, cutoff):
    rows, columns = (np.fft.fftfreq(n) for n in image.shape[1:3])
    response = np.exp(-(rows[:, None] ** 2 + columns**2) / (2 * cutoff**2))[None, :, :, None]
    return np.fft.ifft2(np.fft.fft2(image, axes=(1, 2)) * response, axes=(1, 2)).real


def gain_by_fft(maps, gains):
    """Filters [B, h, w, K] by a curve through `gains`, knots spread from radius 0 to the corner."""
    rows, columns = (np.fft.fftfreq(n) for n in maps.shape[1:3])
    radius = np.hypot(rows[:, None], columns)
    curve = np.interp(radius, np.linspace(0, np.sqrt(0.5), len(gains)), gains)[None, :, :, None]
    return np.fft.ifft2(np.fft.fft2(maps, axes=(1, 2)) * curve, axes=(1, 2)).real


def periodic_convolution(x, kernel, bias):
    """3x3, stride 2, the image continued periodically: one roll per tap."""
    shifted = lambda i, j: np.roll(x, (1 - i, 1 - j), axis=(1, 2))[:, ::2, ::2]  # noqa: E731
    return sum(shifted(i, j) @ kernel[i, j] for i in range(3) for j in range(3)) + bias


def random_images(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


@functools.cache
def branch(groups=3, size=32, dtype=jnp.float32):
    """A module, its variables and images."""
    module = FrequencyBranch(groups, hidden_size=16, width=8, dtype=dtype)
    image = jnp.asarray(random_images(4, size, size, 3), jnp.float32)
    variables = jax.jit(functools.partial(module.init, train=False))(jax.random.key(0), image)
    return module, variables, image


@functools.cache
def compiled(module):
    return jax.jit(functools.partial(module.apply, train=False))


class TestSpectrum:
    @pytest.mark.parametrize("size", [1, 2, 7, 8, 56, 225])
    def test_basis_is_orthonormal_and_sorted(self, size):
        basis, frequencies = fourier_basis(size)
        np.testing.assert_allclose(basis.T @ basis, np.eye(size), atol=1e-5)
        np.testing.assert_allclose(frequencies, np.sort(np.abs(np.fft.fftfreq(size))), atol=1e-7)

    @pytest.mark.parametrize("size", SIZES)
    @pytest.mark.parametrize("cutoff", [0.02, 0.1, 0.4])
    def test_low_equals_numpy(self, size, cutoff):
        image = random_images(2, *size, 3)
        found = jax.jit(low_pass)(jnp.asarray(image, jnp.float32), jnp.float32(cutoff))
        np.testing.assert_allclose(found, gaussian_by_fft(image, cutoff), atol=1e-5)

    def test_low_keeps_the_mean_and_damps_a_wave_by_the_gaussian(self):
        wave = np.cos(2 * np.pi * 4 * np.arange(32) / 32)  # 1/8 cycle per pixel
        image = jnp.asarray(np.broadcast_to(2 + wave, (1, 5, 32))[..., None], jnp.float32)
        expected = 2 + np.exp(-0.5 * (0.125 / 0.1) ** 2) * wave
        np.testing.assert_allclose(low_pass(image, jnp.float32(0.1))[0, 3, :, 0], expected, atol=1e-6)

    def test_spectrum_holds_the_energy_at_each_radius(self):
        maps = random_images(2, 9, 14, 3)
        found = np.square(spectrum(jnp.asarray(maps, jnp.float32))).sum((0, 3))
        expected = (np.abs(np.fft.fft2(maps, axes=(1, 2))) ** 2).sum((0, 3)) / (9 * 14)
        ours = np.hypot.outer(fourier_basis(9)[1], fourier_basis(14)[1])
        theirs = np.hypot.outer(np.fft.fftfreq(9), np.fft.fftfreq(14))
        for radius in np.unique(ours.round(5)):
            at = lambda radii, radius=radius: np.isclose(radii, radius, atol=2e-5)  # noqa: E731
            np.testing.assert_allclose(found[at(ours)].sum(), expected[at(theirs)].sum(), rtol=1e-4)

    @pytest.mark.parametrize("size", [4, 6, 8, 12, 16, 25, 28, 40, 56])
    def test_bands_share_every_frequency_out_and_none_is_empty(self, size):
        bands = radial_bands(size, size, 6)
        assert bands.shape == (6, size, size)
        assert bands.min() >= 0.0
        np.testing.assert_allclose(bands.sum(0), 1.0, atol=1e-6)
        assert bands.max((1, 2)).min() > 0.1
        np.testing.assert_array_equal(bands[:, 0, 0], np.eye(6)[0])


class TestBranch:
    def test_equals_a_restatement_by_fft(self):
        module, variables, image = branch()
        found = compiled(module)(variables, image)
        p = jax.tree.map(lambda x: np.asarray(x, np.float64), variables["params"])
        image = np.asarray(image, np.float64)
        low = gaussian_by_fft(image, 0.5 / (1 + np.exp(-p["theta"])))
        maps = []
        for name, band in (("low", low), ("high", image - low)):
            first, second = p[name]["first"], p[name]["second"]
            hidden = np.maximum(periodic_convolution(band, first["kernel"], first["bias"]), 0)
            maps.append(periodic_convolution(hidden, second["kernel"], second["bias"]))
        scores = np.concatenate([m.mean((1, 2)) for m in maps], -1) @ p["scores"]["kernel"]
        weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
        groups = []
        for gains in p["gains"]:
            parts = []
            for b, feature in enumerate(maps):
                filtered = gain_by_fft(feature, gains)
                mean, rms = filtered.mean((1, 2)), np.sqrt((filtered**2).mean((1, 2)) + 1e-6)
                parts += [weights[:, b : b + 1] * mean, weights[:, b : b + 1] * rms]
            x = np.concatenate(parts, -1)
            x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
            hidden = np.maximum(x @ p["hidden"]["kernel"], 0)  # all biases are 0 and all scales 1 at first
            groups.append(hidden @ p["output"]["kernel"])
        np.testing.assert_allclose(found.low, low, atol=1e-5)
        np.testing.assert_allclose(found.low_features, maps[0].mean((1, 2)), atol=1e-5)
        np.testing.assert_allclose(found.high_features, maps[1].mean((1, 2)), atol=1e-5)
        np.testing.assert_allclose(found.band_weights, weights, atol=1e-5)
        np.testing.assert_allclose(found.groups, np.stack(groups, 1), atol=1e-4)
        np.testing.assert_allclose(found.token, np.mean(groups, 0)[:, None], atol=1e-4)

    def test_shapes_dtypes_and_ranges(self):
        module, variables, image = branch(dtype=jnp.bfloat16)
        found = compiled(module)(variables, image.astype(jnp.bfloat16))
        assert found.token.shape == (4, 1, 16)
        assert found.groups.shape == (4, 3, 16)
        assert found.groups.dtype == found.token.dtype == jnp.bfloat16
        assert found.low_features.shape == found.high_features.shape == (4, 8)
        assert {x.dtype for x in found[2:]} == {jnp.dtype("float32")}
        assert float(found.cutoff) == pytest.approx(0.1, rel=1e-6)
        np.testing.assert_allclose(found.low + found.high, image.astype(jnp.bfloat16), atol=1e-5)
        np.testing.assert_allclose(found.band_weights.sum(-1), 1.0, atol=1e-6)

    def test_gains_commute_with_a_circular_shift(self):
        """In the basis of the module's own spectrum, with gains of its own bands."""
        maps = random_images(2, 9, 12, 3)
        curve = np.random.default_rng(1).standard_normal(6) @ radial_bands(9, 12, 6).reshape(6, -1)
        rows, columns = fourier_basis(9)[0], fourier_basis(12)[0]

        def filtered(x):
            coefficients = spectrum(jnp.asarray(x, jnp.float32)) * curve.reshape(9, 12, 1)
            return np.einsum("yu,xv,buvc->byxc", rows, columns, coefficients)

        shift = functools.partial(np.roll, shift=(4, -5), axis=(1, 2))
        np.testing.assert_allclose(filtered(shift(maps)), shift(filtered(maps)), atol=1e-5)

    @pytest.mark.parametrize("size", [32, 48])
    def test_a_circular_shift_of_the_image_moves_the_bands_and_nothing_else(self, size):
        module, variables, image = branch(size=size)
        shift = functools.partial(jnp.roll, shift=(8, -12), axis=(1, 2))
        base, moved = compiled(module)(variables, image), compiled(module)(variables, shift(image))
        np.testing.assert_allclose(moved.low, shift(base.low), atol=1e-5)
        np.testing.assert_allclose(moved.high, shift(base.high), atol=1e-5)
        for field in ("groups", "token", "band_weights", "low_features", "high_features"):
            np.testing.assert_allclose(getattr(moved, field), getattr(base, field), atol=2e-5)

    def test_the_token_alone_trains_every_parameter(self):
        """The cutoff among them: it learns without the decoupling loss."""
        module, variables, image = branch()
        weights = jax.random.normal(jax.random.key(2), (4, 1, 16))

        def loss(variables):
            return jnp.sum(weights * module.apply(variables, image, train=False).token)

        gradient = jax.jit(jax.grad(loss))(variables)
        for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
            assert np.abs(leaf).max() > 1e-4, path
        rows = np.abs(gradient["params"]["gains"])
        assert rows.min() > 1e-5  # every band of every group

    def test_the_cutoff_s_gradient_is_that_of_finite_differences(self):
        image = jnp.asarray(random_images(1, 12, 17, 2), jnp.float32)
        target = random_images(1, 12, 17, 2, seed=1)

        def by_fft(cutoff):
            return np.sum(target * gaussian_by_fft(np.asarray(image, np.float64), cutoff))

        expected = (by_fft(0.1001) - by_fft(0.0999)) / 0.0002
        found = jax.grad(lambda s: jnp.sum(target * low_pass(image, s)))(jnp.float32(0.1))
        np.testing.assert_allclose(found, expected, rtol=1e-4)

    def test_groups_differ_from_the_start(self):
        module, variables, image = branch()
        groups = compiled(module)(variables, image).groups
        assert np.abs(groups[:, 0] - groups[:, 1]).max() > 1e-2

    def test_only_training_is_random(self):
        module, variables, image = branch()
        train = jax.jit(
            lambda key: module.apply(variables, image, train=True, rngs={"dropout": jax.random.key(key)})
        )
        assert np.abs(train(0).groups - train(1).groups).max() > 1e-3
        first, second = (compiled(module)(variables, image) for _ in range(2))
        jax.tree.map(np.testing.assert_array_equal, first, second)

    def test_a_constant_image_is_finite(self):
        module, variables, image = branch()
        value, gradient = jax.jit(
            jax.value_and_grad(lambda v: module.apply(v, jnp.zeros_like(image), train=False).token.sum())
        )(variables)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves((value, gradient)))

    @pytest.mark.parametrize("size", [(16, 16), (30, 45), (224, 224)])
    def test_takes_images_of_any_size_from_16(self, size):
        module, _, _ = branch()
        image = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
        found, _ = jax.eval_shape(
            functools.partial(module.init_with_output, train=False), jax.random.key(0), image
        )
        assert found.groups.shape == (2, 3, 16)
        assert found.low.shape == image.shape

    @pytest.mark.parametrize(
        ("setting", "size", "message"),
        [
            ({"initial_cutoff": 0.5}, 32, r"initial_cutoff is 0.5; expected a number in \(0, 0.5\)"),
            ({"width": 7}, 32, "width is 7; expected an even number"),
            ({"num_bands": 1}, 32, "num_bands is 1; expected at least 2"),
            ({"num_bands": 8}, 16, "num_bands is 8, but a feature map of 4 x 4 has no frequency in band 1"),
        ],
    )
    def test_settings_that_do_not_fit_are_named(self, setting, size, message):
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(
                lambda: FrequencyBranch(3, 16, **setting).init(
                    jax.random.key(0), jnp.zeros((1, size, size, 3)), train=False
                )
            )


def trace(module, *shapes):
    """The variables' shapes and the module's inputs, neither of which is ever computed."""
    inputs = [jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in shapes]
    variables = jax.eval_shape(functools.partial(module.init, train=False), jax.random.key(0), *inputs)
    return functools.partial(module.apply, train=False), variables, *inputs


def test_costs_a_twentieth_of_a_resnet50_at_most():
    """At 224 px, d 768 and 8 groups, the fusion that goes with it included; a ResNet-50 has 4.09 G."""
    found = multiply_adds(*trace(FrequencyBranch(8, 768), (1, 224, 224, 3)))
    low = 2 * 224 * 224 * 224 * 3 + 224**3  # both sides of each image, and the circulant matrix
    spectra = 2 * 2 * 56**3 * 24
    assert found[()] == low + spectra + 8 * 56 * 56 * (6 + 2 * 24)
    fusion = multiply_adds(*trace(GatedFusion(768), (1, 7, 7, 768), (1, 1, 768)))
    assert sum(found.values()) < 0.035 * 4.09e9
    assert sum(found.values()) + sum(fusion.values()) < 0.05 * 4.09e9


def test_the_program_does_not_grow_with_the_groups():
    def count(groups):
        apply, *arguments = trace(FrequencyBranch(groups, 16), (2, 32, 32, 3))
        return len(list(operations(jax.make_jaxpr(apply)(*arguments).jaxpr)))

    assert count(2) == count(9)


def test_a_batch_sharded_over_devices_stays_where_it_is():
    module, variables, image = branch()
    image = jnp.tile(image, (2, 1, 1, 1)) * jnp.arange(1.0, 9.0)[:, None, None, None]
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    rows, whole = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())

    def loss(variables, image):
        found = module.apply(variables, image, train=False)
        return jnp.sum(found.token * jnp.cos(jnp.arange(16.0))), (found.low, found.groups)

    step = jax.value_and_grad(loss, has_aux=True)
    shardings = ((whole, (rows, rows)), whole)
    sharded = jax.jit(step, in_shardings=(whole, rows), out_shardings=shardings)
    program = sharded.lower(variables, image).compile()
    for collective in ("all-gather", "all-to-all", "collective-permute"):
        assert collective not in program.as_text()
    assert "all-reduce" in program.as_text()  # of the gradients
    found = program(jax.device_put(variables, whole), jax.device_put(image, rows))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * float(np.abs(b).max())),
        jax.device_get(found),
        jax.device_get(jax.jit(step)(variables, image)),
    )
