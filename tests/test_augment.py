import colorsys
import dataclasses
import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from PIL import Image, ImageEnhance

from input_pipeline import scenes
from input_pipeline.batch import AttributeBatch
from input_pipeline.schema import AttributeSchema
from input_pipeline.text import TextOptions, for_data_set
from wsca_jax import augment

OFF = augment.Options(flip_probability=0.0, brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0)
UNIT = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}  # leaves images in [0, 1]
KEY = jax.random.key(7)


def only(**steps):
    """Options with these steps on, the others off, and images left in [0, 1]."""
    return dataclasses.replace(OFF, **UNIT, **steps)


def batch_of(images):
    n = len(images)
    return AttributeBatch(
        image=np.asarray(images, np.uint8),
        labels=np.eye(n, 5, dtype=np.uint8),
        known=np.ones((n, 5), bool),
        weight=np.ones(n, np.float32),
        index=np.arange(n, dtype=np.int32),
    )


def random_images(n, height=6, width=5, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, height, width, 3), np.uint8)


@functools.lru_cache
def compiled(options):
    return jax.jit(functools.partial(augment.augment, options=options))


def augmented(images, options, key=KEY):
    return np.asarray(compiled(options)(batch_of(images), key).image)


def blend(image, other, factor):
    return np.clip(factor * image + (1.0 - factor) * other, 0.0, 1.0)


def grey(image):
    return image @ np.array([0.2989, 0.587, 0.114])


def turn_hue(image, turns):
    def turn(hue, saturation, value):
        return colorsys.hsv_to_rgb((hue + turns) % 1.0, saturation, value)

    return np.array([[turn(*colorsys.rgb_to_hsv(*pixel)) for pixel in row] for row in image])


# ColorJitter's steps on one float image [H, W, 3], restated in NumPy and colorsys.
REFERENCE = {
    "brightness": lambda image, factor: blend(image, 0.0, factor),
    "contrast": lambda image, factor: blend(image, grey(image).mean(), factor),
    "saturation": lambda image, factor: blend(image, grey(image)[..., None], factor),
    "hue": turn_hue,
}
ADJUST = {
    "brightness": augment.adjust_brightness,
    "contrast": augment.adjust_contrast,
    "saturation": augment.adjust_saturation,
    "hue": augment.adjust_hue,
}
AMOUNTS = {
    "brightness": (0.0, 0.6, 1.0, 1.9),
    "contrast": (0.0, 0.6, 1.0, 1.9),
    "saturation": (0.0, 0.6, 1.0, 1.9),
    "hue": (-0.5, -0.07, 0.0, 0.31),
}


def drawn(step, options, n, key=KEY):
    """What `augment` draws for a step under this key, read off images that show it without clipping."""
    probe = {"brightness": [128] * 3, "saturation": [150, 100, 100], "hue": [200, 50, 50]}
    image = np.tile(np.array(probe.get(step, [100] * 3), np.uint8), (n, 2, 2, 1))
    if step == "contrast":
        image[:, 0] = 150
    out = augmented(image, only(**{step: getattr(options, step)}), key).astype(np.float64)
    if step == "hue":
        return np.array([(colorsys.rgb_to_hsv(*pixel)[0] + 0.5) % 1.0 - 0.5 for pixel in out[:, 0, 0]])
    if step == "brightness":
        return out[:, 0, 0, 0] / (128 / 255)
    if step == "contrast":
        return (out[:, 0, 0, 0] - out[:, 1, 0, 0]) / (50 / 255)
    return (out[:, 0, 0, 0] - out[:, 0, 0, 1]) / (50 / 255)


class TestSteps:
    @pytest.mark.parametrize("step", ADJUST)
    def test_each_step_equals_its_reference(self, step):
        images = random_images(4, seed=1) / 255.0
        images[:, 0, 0] = [0.5, 0.5, 0.5]  # grey has no hue
        images[:, 0, 1] = [0.0, 0.0, 0.0]
        images[:, 0, 2] = [1.0, 1.0, 0.0]  # a tie for the largest channel
        amounts = np.array(AMOUNTS[step])
        result = ADJUST[step](jnp.asarray(images, jnp.float32), jnp.asarray(amounts.reshape(4, 1, 1, 1)))
        expected = [REFERENCE[step](image, amount) for image, amount in zip(images, amounts, strict=True)]
        np.testing.assert_allclose(result, expected, atol=2e-6)

    @pytest.mark.parametrize(
        ("step", "enhance"),
        [
            ("brightness", ImageEnhance.Brightness),
            ("contrast", ImageEnhance.Contrast),
            ("saturation", ImageEnhance.Color),
        ],
    )
    @pytest.mark.parametrize("factor", [0.8, 1.2])
    def test_each_factor_means_what_it_means_in_pillow(self, step, enhance, factor):
        image = random_images(1, seed=2)[0]
        expected = np.asarray(enhance(Image.fromarray(image)).enhance(factor), np.float32)
        result = ADJUST[step](jnp.asarray(image[None] / 255.0, jnp.float32), jnp.full((1, 1, 1, 1), factor))
        np.testing.assert_allclose(result[0] * 255.0, expected, atol=1.6)  # Pillow rounds to whole levels

    @pytest.mark.parametrize("step", ADJUST)
    def test_draws_fill_their_range(self, step):
        options = only(brightness=0.2, contrast=0.3, saturation=0.4, hue=0.1)
        centre, reach = (0.0, 0.1) if step == "hue" else (1.0, getattr(options, step))
        amounts = (drawn(step, options, 2000) - centre) / reach
        assert np.abs(amounts).max() <= 1.0 + 1e-4
        assert np.ptp(amounts) > 1.95
        assert abs(amounts.mean()) < 0.06  # 0.577 / sqrt(2000) = 0.013
        assert amounts.std() == pytest.approx(3**-0.5, abs=0.03)

    def test_a_factor_is_never_negative(self):
        assert augmented(random_images(64), only(brightness=3.0)).min() >= 0.0
        assert drawn("saturation", only(saturation=3.0), 64).min() >= 0.0

    def test_the_steps_run_in_the_documented_order(self):
        options = only(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.2)
        images = random_images(3, seed=3)
        expected = images / 255.0
        for step in ("brightness", "contrast", "saturation", "hue"):
            amounts = drawn(step, options, 3)
            expected = np.stack([REFERENCE[step](i, a) for i, a in zip(expected, amounts, strict=True)])
        np.testing.assert_allclose(augmented(images, options), expected, atol=1e-5)


class TestFlip:
    @pytest.mark.parametrize("probability", [0.5, 0.2])
    def test_images_flip_whole_and_as_often_as_asked(self, probability):
        images = np.tile(np.array([[0, 100, 200]], np.uint8)[..., None], (4000, 2, 1, 3))
        out = np.round(augmented(images, only(flip_probability=probability)) * 255.0).astype(np.uint8)
        kept, mirrored = (out == images), (out == images[:, :, ::-1])
        flipped = mirrored.all(axis=(1, 2, 3))
        assert np.all(flipped | kept.all(axis=(1, 2, 3)))
        assert flipped.mean() == pytest.approx(probability, abs=0.03)  # 3.8 standard deviations

    def test_probability_one_mirrors_every_image(self):
        images = random_images(8)
        np.testing.assert_allclose(
            augmented(images, only(flip_probability=1.0)), images[:, :, ::-1] / 255.0, atol=1e-6
        )

    def test_a_mirrored_caption_swaps_left_and_right_and_nothing_else(self):
        text = for_data_set(scenes, scenes.SCHEMA, TextOptions("source"))
        told = text.encode("a bright cube to the left of a cone, right at the left of sand")
        mirrored = text.encode("a bright cube to the right of a cone, left at the right of sand")
        images = np.tile(np.array([[0, 200]], np.uint8)[..., None], (64, 1, 1, 3))
        batch = batch_of(images)._replace(tokens=np.tile(told, (64, 1)))
        out = compiled(only(flip_probability=0.5))(batch, KEY)
        flipped = np.asarray(out.image)[:, 0, 0, 0] > 0.5
        assert 10 < flipped.sum() < 54
        assert out.tokens.dtype == jnp.int32
        np.testing.assert_array_equal(out.tokens, np.where(flipped[:, None], mirrored, told))

    def test_captions_stay_where_nothing_is_mirrored(self):
        tokens = np.arange(16, dtype=np.int32).reshape(2, 8)
        batch = batch_of(random_images(2))._replace(tokens=tokens)
        np.testing.assert_array_equal(compiled(OFF)(batch, KEY).tokens, tokens)
        np.testing.assert_array_equal(augment.normalise(batch, augment.Options()).tokens, tokens)

    def test_captions_change_no_image(self):
        batch = batch_of(random_images(8))
        told = compiled(augment.Options())(batch._replace(tokens=np.ones((8, 3), np.int32)), KEY)
        np.testing.assert_array_equal(told.image, compiled(augment.Options())(batch, KEY).image)


class TestAugment:
    def test_one_key_gives_one_result_and_another_key_another(self):
        images, options = random_images(8), augment.Options()
        first = augmented(images, options)
        np.testing.assert_array_equal(first, augmented(images, options))
        other = augmented(images, options, jax.random.key(8))
        assert np.all(np.abs(first - other).max(axis=(1, 2, 3)) > 1e-3)

    def test_examples_of_a_batch_are_augmented_differently(self):
        images = np.tile(random_images(1), (8, 1, 1, 1))
        out = augmented(images, augment.Options()).reshape(8, -1)
        assert len(np.unique(out, axis=0)) == 8

    def test_only_the_images_change(self):
        batch = batch_of(random_images(4))
        out = compiled(augment.Options())(batch, KEY)
        assert out.image.shape == batch.image.shape
        for field in ("labels", "known", "weight", "index"):
            np.testing.assert_array_equal(getattr(out, field), getattr(batch, field))
            assert getattr(out, field).dtype == getattr(batch, field).dtype
        assert out.tokens is None

    def test_eight_devices_augment_as_one_does(self):
        mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
        batch = batch_of(random_images(16))
        sharded = jax.device_put(batch, NamedSharding(mesh, PartitionSpec("data")))
        options = augment.Options()
        result = compiled(options)(sharded, KEY).image
        np.testing.assert_allclose(result, compiled(options)(batch, KEY).image, atol=1e-5)

    def test_padding_stays_finite(self):
        extreme = np.stack([np.zeros((4, 4, 3)), np.full((4, 4, 3), 255), np.full((4, 4, 3), 128)])
        assert np.all(np.isfinite(augmented(extreme, augment.Options())))

    def test_zeros_take_every_random_step_out_of_the_program(self):
        batch = batch_of(random_images(4))
        np.testing.assert_array_equal(
            compiled(OFF)(batch, KEY).image,
            jax.jit(functools.partial(augment.normalise, options=OFF))(batch).image,
        )

        def program(options):
            return str(jax.make_jaxpr(functools.partial(augment.augment, options=options))(batch, KEY))

        assert "random_bits" not in program(OFF)
        for step in ("flip_probability", "brightness", "contrast", "saturation", "hue"):
            assert "random_bits" in program(dataclasses.replace(OFF, **{step: 0.1}))

    @pytest.mark.parametrize("function", [augment.normalise, lambda b, o: augment.augment(b, KEY, o)])
    def test_images_that_are_not_uint8_are_refused(self, function):
        batch = batch_of(random_images(2))
        with pytest.raises(TypeError, match="uint8"):
            function(batch._replace(image=batch.image / np.float32(255.0)), OFF)


class TestNormalise:
    def test_fixed_numbers(self):
        image = np.array([[[[0, 255, 51]]]], np.uint8)
        result = augment.normalise(batch_of(image), augment.Options()).image
        np.testing.assert_allclose(
            result, [[[[-0.485 / 0.229, 0.544 / 0.224, (0.2 - 0.406) / 0.225]]]], rtol=1e-6
        )

    def test_bfloat16_rounds_only_the_result(self):
        images, options = random_images(4), augment.Options()
        half = dataclasses.replace(options, dtype=jnp.bfloat16)
        rounded = compiled(half)(batch_of(images), KEY).image
        assert rounded.dtype == jnp.bfloat16
        np.testing.assert_allclose(
            rounded.astype(jnp.float32), augmented(images, options), rtol=2.0**-8, atol=1e-6
        )


class TestOptions:
    @pytest.mark.parametrize(
        "setting", [{"flip_probability": 1.5}, {"brightness": -0.1}, {"hue": 0.6}, {"std": (1.0, 0.0, 1.0)}]
    )
    def test_settings_out_of_range_are_named(self, setting):
        (name,) = setting
        with pytest.raises(ValueError, match=name):
            augment.Options(**setting)

    def test_hue_is_switched_off_where_labels_depend_on_it(self, caplog):
        colours = AttributeSchema.from_groups(
            "cars", ("red", "orange"), {"colour": (0, 1)}, hue_sensitive=True
        )
        with caplog.at_level(logging.INFO):
            options = augment.for_schema(augment.Options(), colours)
        assert options == augment.Options(hue=0.0)
        assert "hue 0.1 is switched off" in caplog.text
        assert "cars" in caplog.text

    def test_mirroring_is_switched_off_where_labels_depend_on_sides(self, caplog):
        sides = AttributeSchema.from_groups("cars", ("left",), {"side": (0,)}, side_sensitive=True)
        with caplog.at_level(logging.INFO):
            options = augment.for_schema(augment.Options(), sides)
        assert options == augment.Options(flip_probability=0.0)
        assert "flip_probability 0.5 is switched off" in caplog.text

    def test_other_schemas_keep_their_options_in_silence(self, caplog):
        shapes = AttributeSchema.from_groups("shapes", ("round",), {"shape": (0,)})
        with caplog.at_level(logging.INFO):
            assert augment.for_schema(augment.Options(), shapes) == augment.Options()
        assert not caplog.records
