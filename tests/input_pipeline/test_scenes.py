"""Scenes as a data set: determinism, labels, knobs, cache, and the contact sheet command."""

import dataclasses
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest

from input_pipeline import scenes
from input_pipeline.errors import DataError
from input_pipeline.scenes.__main__ import main
from input_pipeline.scenes.vocabulary import COLOURS_OF_SHAPE, MATERIAL_OF_BACKGROUND

SCHEMA = scenes.SCHEMA


def opened(split="train", **options):
    return scenes.open_split(None, split, scenes.Options(**options))


def looks(source, count=300):
    """(factors, object) for every object of the first scenes."""
    return [(f, item) for f in map(source.factors, range(count)) for item in f.objects]


def column(source, name, count):
    return np.array([source.labels(i)[SCHEMA.attributes.index(name)] for i in range(count)])


def test_schema_has_the_six_groups_of_coco_attributes():
    assert SCHEMA.groups == ("colour", "material", "shape", "texture", "size", "other")
    assert 30 <= SCHEMA.num_attributes <= 40
    assert SCHEMA.hue_sensitive
    assert all(phrase != name for phrase, name in zip(SCHEMA.phrases, SCHEMA.attributes, strict=True))


def test_example_is_complete_and_read_only():
    example = opened(size=48)[3]
    assert example.image.shape == (48, 48, 3)
    assert example.image.dtype == np.uint8
    assert example.labels.dtype == np.uint8
    assert example.known.all()
    assert example.key == "scenes/train/000003"
    with pytest.raises(ValueError, match="read-only"):
        example.image[0, 0, 0] = 1


# Determinism


def test_pinned_scene():
    """Factors, labels and words exactly; pixels as means of blocks, since OpenCV may round differently."""
    scene = opened("validation", seed=7, size=64).scene(2)
    assert scene.caption == PINNED_CAPTION
    assert "".join(map(str, scene.labels)) == PINNED_LABELS
    place = scene.factors.objects[0].place
    np.testing.assert_allclose(
        (place.extent, place.scale, place.x, place.z, place.yaw), PINNED_PLACE, atol=1e-6
    )
    blocks = scene.image.reshape(4, 16, 4, 16, 3).mean((1, 3)).reshape(16, 3)
    np.testing.assert_allclose(blocks, PINNED_BLOCKS, atol=2)


def test_same_in_another_process():
    code = (
        "import hashlib; from input_pipeline import scenes;"
        "e = scenes.open_split(None, 'train', scenes.Options(seed=3))[11];"
        "print(hashlib.sha256(e.image.tobytes() + e.labels.tobytes() + e.caption.encode()).hexdigest())"
    )
    run = [sys.executable, "-c", code]
    hashes = {
        subprocess.run(run, env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True).stdout
        for seed in ("1", "2")
    }
    assert len(hashes) == 1


def test_an_image_does_not_depend_on_how_many_there_are():
    few, many = opened(train_images=8), opened(train_images=100_000, cache_megabytes=0)
    assert few.factors(7) == many.factors(7)
    np.testing.assert_array_equal(few[7].image, many[7].image)


def test_a_scene_does_not_depend_on_the_image_size():
    small, large = opened(size=64), opened(size=128)
    for i in range(5):
        assert small.factors(i) == large.factors(i)
        shrunk = cv2.resize(large[i].image, (64, 64), interpolation=cv2.INTER_AREA)
        assert np.abs(shrunk.astype(float) - small[i].image).mean() < 6


def test_splits_and_seeds_share_no_scene():
    worlds = [opened(split) for split in ("train", "validation", "test")] + [opened(seed=1)]
    everything = {repr(world.factors(i)) for world in worlds for i in range(20)}
    assert len(everything) == 80


# Labels


def test_labels_follow_from_the_factors():
    source = opened()
    for i in range(50):
        factors, labels = source.factors(i), source.labels(i)
        named = {name for name, present in zip(SCHEMA.attributes, labels, strict=True) if present}
        colours = {item.look.colour.value for item in factors.objects}
        assert colours == named & {SCHEMA.attributes[a] for a in SCHEMA.members[0]}
        assert ("single_object" in named) == (len(factors.objects) == 1)
        assert ("several_objects" in named) == (len(factors.objects) >= 3)
        assert factors.background.value in named


def test_prevalences_leave_something_to_learn():
    source = opened()
    prevalence = np.mean([source.labels(i) for i in range(600)], axis=0)
    assert prevalence.min() > 0.1
    assert prevalence.max() < 0.7
    assert 0.2 < prevalence.mean() < 0.45


def test_labels_match_the_example():
    source = opened(label_noise=0.2)
    for i in range(5):
        np.testing.assert_array_equal(source.labels(i), source[i].labels)


# Knobs


@pytest.mark.parametrize(("low", "high"), [(1, 1), (2, 3), (4, 4)])
def test_number_of_objects(low, high):
    counts = {len(opened(min_objects=low, max_objects=high).factors(i).objects) for i in range(60)}
    assert counts == set(range(low, high + 1))


def test_full_correlation_ties_material_to_background_and_colour_to_shape():
    source = opened(material_background=1.0, colour_shape=1.0)
    for factors, item in looks(source, 60):
        assert item.look.material is MATERIAL_OF_BACKGROUND[factors.background]
        assert item.look.colour in COLOURS_OF_SHAPE[item.look.shape]


@pytest.mark.parametrize("strength", [0.0, 0.6])
def test_correlation_has_the_strength_asked_for(strength):
    pairs = looks(opened(material_background=strength), 900)
    tied = np.mean([item.look.material is MATERIAL_OF_BACKGROUND[f.background] for f, item in pairs])
    expected = strength + (1 - strength) / 4
    assert abs(tied - expected) < 4 * np.sqrt(expected * (1 - expected) / len(pairs))


def test_correlation_changes_nothing_else():
    free, tied = looks(opened(), 80), looks(opened(material_background=0.5), 80)
    materials = [(a.look.material, b.look.material) for (_, a), (_, b) in zip(free, tied, strict=True)]
    assert any(a is not b for a, b in materials)
    for (_, a), (factors, b) in zip(free, tied, strict=True):
        assert b.look.material in (a.look.material, MATERIAL_OF_BACKGROUND[factors.background])
        assert dataclasses.replace(b.look, material=a.look.material) == a.look
        assert b.place == a.place


@pytest.mark.parametrize("split", ["validation", "test"])
def test_evaluation_is_uncorrelated_unless_asked(split):
    strong = {"material_background": 1.0, "colour_shape": 1.0}
    assert looks(opened(split, **strong), 40) == looks(opened(split), 40)
    correlated = opened(split, correlated_evaluation=True, **strong)
    assert all(i.look.material is MATERIAL_OF_BACKGROUND[f.background] for f, i in looks(correlated, 40))


def test_label_noise_flips_train_labels_and_nothing_else():
    clean, noisy = opened(size=16), opened(size=16, label_noise=0.15)
    flipped = [clean.labels(i) != noisy.labels(i) for i in range(300)]
    assert abs(np.mean(flipped) - 0.15) < 4 * np.sqrt(0.15 * 0.85 / np.size(flipped))
    np.testing.assert_array_equal(clean[4].image, noisy[4].image)
    np.testing.assert_array_equal(noisy.scene(4).labels, clean[4].labels)
    evaluation = opened("validation", label_noise=0.15)
    np.testing.assert_array_equal(evaluation.labels(4), opened("validation").labels(4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"material_background": 1.5}, "material_background is 1.5, expected a number from 0 to 1"),
        ({"colour_shape": -0.1}, "colour_shape is -0.1"),
        ({"label_noise": float("nan")}, "label_noise is nan"),
        ({"label_noise": "much"}, "label_noise is 'much'"),
        ({"size": 8}, "size is 8, expected a whole number from 16 to 1024"),
        ({"size": 64.0}, "size is 64.0"),
        ({"train_images": 0}, "train_images is 0"),
        ({"min_objects": 3, "max_objects": 2}, "max_objects is 2, expected a whole number from 3 to 4"),
        ({"max_objects": 5}, "max_objects is 5"),
        ({"seed": -1}, "seed is -1"),
        ({"cache_megabytes": True}, "cache_megabytes is True"),
    ],
)
def test_options_that_do_not_fit(options, message):
    with pytest.raises(DataError, match=message):
        scenes.Options(**options)


def test_open_split_refuses_a_data_folder_and_an_unknown_split(tmp_path):
    with pytest.raises(DataError, match="read no data folder"):
        scenes.open_split(tmp_path, "train", scenes.Options())
    with pytest.raises(DataError, match="no split 'dev', expected one of train, validation, test"):
        opened("dev")


def test_indices_outside_the_split():
    source = opened(train_images=4)
    for index in (4, -1):
        with pytest.raises(IndexError, match="images 0 to 3"):
            source[index]
    assert source[np.int64(3)].key.endswith("3")


# The cache


def test_cache_is_bounded_and_returns_the_same_image():
    source = opened(size=256, cache_megabytes=1, train_images=20)  # room for 5 images
    first = [source[i] for i in range(8)]
    again = [source[i] for i in range(8)]
    assert [a is b for a, b in zip(first, again, strict=True)] == [True] * 5 + [False] * 3
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a.image, b.image)


def test_threads_see_the_same_images():
    shared, alone = opened(train_images=24), opened(train_images=24, cache_megabytes=0)
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(shared.__getitem__, [*range(24)] * 4))
    for i, example in enumerate(read):
        np.testing.assert_array_equal(example.image, alone[i % 24].image)
        assert example is shared[i % 24]


def test_another_process_gets_the_recipe_not_the_cache():
    source = opened(seed=5)
    image = source[0].image
    pickled = pickle.dumps(source)
    assert len(pickled) < 2000
    np.testing.assert_array_equal(pickle.loads(pickled)[0].image, image)


# The command


def test_contact_sheet(tmp_path):
    path = tmp_path / "sheet.png"
    main(["--contact_sheet", str(path), "--rows", "2", "--columns", "3", "--size", "32", "--seed", "4"])
    sheet = cv2.imread(str(path))
    height, width, _ = sheet.shape
    assert height > 600
    assert width == 3 * (width // 3)
    expected = opened(seed=4, size=32)[0].image[16, 16, ::-1]
    np.testing.assert_array_equal(sheet[4 + 16 * 9 + 4, 4 + 16 * 9 + 4], expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--colour_shape", "1.5"], "colour_shape is 1.5"),
        (["--rows", "0"], "no image to show"),
    ],
)
def test_contact_sheet_errors(tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit, match="2"):
        main(["--contact_sheet", str(tmp_path / "sheet.png"), *arguments])
    assert message in capsys.readouterr().err


def test_contact_sheet_into_a_folder_that_is_not_there(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["--contact_sheet", str(tmp_path / "none" / "sheet.png"), "--rows", "1", "--columns", "1"])
    assert "cannot be written: No such file or directory" in capsys.readouterr().err


PINNED_CAPTION = (
    "A small checkered purple wood sphere on top of a medium-sized plain yellow wood cube,"
    " with a medium-sized striped blue metal cylinder, on sand in dim light."
)
PINNED_LABELS = "001011001010111000110101100100010101"
PINNED_PLACE = (0.4349503, 0.730702, -0.1099532, 1.9871847, 0.3596953)
PINNED_BLOCKS = [  # red, green, blue of sixteen blocks, row by row
    [119.7, 117.8, 114.6],
    [96.6, 87.5, 102.7],
    [108.5, 105.5, 109.7],
    [115.2, 114.3, 114.0],
    [110.8, 98.9, 78.6],
    [61.9, 49.9, 31.2],
    [48.2, 46.7, 42.7],
    [56.4, 54.7, 59.4],
    [78.3, 67.8, 48.8],
    [80.1, 69.3, 7.1],
    [74.2, 65.5, 19.1],
    [76.9, 68.8, 59.3],
    [97.1, 84.0, 64.0],
    [87.4, 75.6, 40.5],
    [95.6, 82.7, 54.8],
    [108.7, 94.0, 71.6],
]
