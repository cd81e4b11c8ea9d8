"""Looking inside from Python: rows in order, one compilation, exact averages, a number on Scenes."""

import numpy as np
import pytest
from trained_scenes import build

from input_pipeline.scenes import SCHEMA
from input_pipeline.scenes.labels import exact
from wsca_jax import inside
from wsca_jax.errors import WscaError

GROUPS, ATTRIBUTES, EXAMPLES = SCHEMA.num_groups, SCHEMA.num_attributes, 11


@pytest.fixture(scope="module")
def trained():
    return build()


@pytest.fixture(scope="module")
def maps(trained):
    return inside.attention_maps(trained, examples=EXAMPLES)


@pytest.mark.slow
def test_maps_are_rows_of_the_source_and_sum_to_one(maps):
    assert maps.groups.shape == (EXAMPLES, GROUPS, 4, 4)
    assert maps.attributes.shape == maps.evidence.shape == (EXAMPLES, ATTRIBUTES, 4, 4)
    assert [level.shape for level in maps.levels] == [(EXAMPLES, GROUPS, n, n) for n in (4, 2)]
    for found in (maps.groups, maps.attributes, *maps.levels):
        np.testing.assert_allclose(found.sum((2, 3)), 1, atol=1e-5)
    positive = np.maximum(maps.evidence, 0)
    expected = positive / positive.sum((2, 3), keepdims=True)
    np.testing.assert_allclose(maps.attributes, expected, atol=1e-5)


@pytest.mark.slow
def test_rows_do_not_depend_on_how_they_fall_into_batches(trained):
    """11 rows are two batches of 8; 3 rows are one of 3."""
    many = inside.extract_features(trained, "branches", examples=EXAMPLES)
    few = inside.extract_features(trained, "branches", examples=3)
    assert many.shape == (EXAMPLES, GROUPS, 8)
    np.testing.assert_allclose(many[:3], few, atol=1e-5)
    assert np.abs(np.diff(many, axis=0)).max((1, 2)).min() > 1e-6  # no row twice


def test_one_compilation_whatever_the_number_of_batches(trained):
    traces = []

    def read(variables, outputs, batch):
        traces.append(batch.index.shape)
        return batch.index

    rows = inside.collect(trained, read)
    np.testing.assert_array_equal(rows, np.arange(40))
    assert traces == [(8,)]


@pytest.mark.slow
def test_several_devices_read_the_same(trained, maps):
    again = inside.attention_maps(build(devices=4), examples=EXAMPLES)
    np.testing.assert_allclose(again.attributes, maps.attributes, atol=1e-4)


def test_every_named_layer_has_a_row_per_example(trained):
    layers = inside.collect(trained, lambda _, outputs, __: inside.named_layers(outputs), examples=3)
    assert {"c2", "c5", "low", "branches", "tokens", "pooled", "level_1", "edges", "logits"} <= layers.keys()
    assert all(len(layer) == 3 for layer in layers.values())


def test_a_wrong_layer_is_an_error_that_lists_the_right_ones(trained):
    with pytest.raises(WscaError, match=r"no layer 'branchs'; did you mean 'branches'.*tokens.*logits"):
        inside.extract_features(trained, "branchs")


@pytest.mark.slow
def test_routing_statistics_are_means_over_examples(trained):
    found = inside.routing_statistics(trained, examples=EXAMPLES)
    probabilities = inside.extract_features(trained, "experts", examples=EXAMPLES).astype(np.float64)
    labels = np.stack([trained.source.labels(i) for i in range(EXAMPLES)])
    np.testing.assert_allclose(found.load, probabilities.mean(0), atol=1e-6)
    entropies = [-(p * np.log(p)).sum() for p in probabilities]
    assert found.entropy == pytest.approx(np.mean(entropies), abs=1e-6)
    assert found.clusters.sum() == pytest.approx(1, abs=1e-5)
    seen = labels[:, 0] > 0
    np.testing.assert_allclose(found.by_attribute[0], probabilities[seen].mean(0), atol=1e-6)
    absent = labels.sum(0) == 0
    assert np.isnan(found.by_attribute[absent]).all()
    assert np.isfinite(found.by_attribute[~absent]).all()


@pytest.mark.slow
def test_graph_statistics_are_means_over_examples(trained):
    found = inside.graph_statistics(trained, examples=EXAMPLES)
    edges = inside.extract_features(trained, "edges", examples=EXAMPLES)
    np.testing.assert_allclose(found.edges, edges.mean(0), atol=1e-6)
    np.testing.assert_allclose(np.diag(found.edges), 1)
    assert found.gates.shape == (GROUPS, 2)


def test_bands_add_up_to_the_image_and_split_at_the_cutoff(trained):
    found = inside.band_images(trained, examples=2)
    augment = trained.run.config.augment
    pixels = np.stack([trained.source[i].image for i in range(2)]) / 255
    image = (pixels - augment.mean) / augment.std
    np.testing.assert_allclose(found.low + found.high, image, atol=1e-4)
    frequency = np.hypot.outer(np.fft.fftfreq(32), np.fft.fftfreq(32))[..., None]
    response = np.exp(-0.5 * (frequency / found.cutoff) ** 2)
    low = np.fft.ifft2(np.fft.fft2(image, axes=(1, 2)) * response, axes=(1, 2)).real
    np.testing.assert_allclose(found.low, low, atol=1e-4)
    assert found.cutoff == pytest.approx(trained.run.config.model.frequency.initial_cutoff, abs=1e-6)
    assert found.gains.shape == (GROUPS, len(found.radii))


@pytest.mark.parametrize(
    ("look", "module"),
    [
        (inside.routing_statistics, "router"),
        (inside.graph_statistics, "decomposer"),
        (inside.band_images, "frequency"),
        (inside.attention_maps, "encoder"),
    ],
)
def test_a_module_that_is_not_there_is_one_clear_line(look, module):
    baseline = build(without=("frequency", "encoder", "text", "router", "decomposer", "alignment"))
    with pytest.raises(WscaError, match=module):
        look(baseline, examples=1)


def test_nothing_asked_for(trained):
    with pytest.raises(WscaError, match="examples is 0; expected at least 1"):
        inside.attention_maps(trained, examples=0)


def test_attention_on_objects_by_hand():
    """One image, 2 x 2 tokens: object 0 fills the left column, object 1 half of the upper right token."""
    masks = np.array([[[[1, 0], [1, 0]], [[0, 0.5], [0, 0]]]])
    carries = np.zeros((1, 2, 3), bool)
    carries[0, 0, 0] = carries[0, 1, 1] = True  # attribute 2 is nobody's
    maps = np.array([[[[0.5, 0.2], [0.3, 0]], [[0, 1], [0, 0]], [[1, 0], [0, 0]]]])
    found = inside.attention_on_objects(maps, masks, carries, (0, 1, 2))
    assert found.groups[0] == pytest.approx(0.8 / 0.5)
    assert found.groups[1] == pytest.approx(0.5 / 0.125)
    assert np.isnan(found.groups[2])
    assert found.overall == pytest.approx((0.8 + 0.5) / (0.5 + 0.125))
    assert found.others == pytest.approx((0.2 * 0.5 + 0) / (0.125 + 0.5))
    assert found.entries == 2


def test_uniform_attention_is_one_and_attention_on_the_mask_is_one_over_its_share(trained):
    truth = inside.scene_truth(trained.source, 6, (4, 4))
    uniform = np.full((6, ATTRIBUTES, 4, 4), 1 / 16)
    found = inside.attention_on_objects(uniform, *truth, SCHEMA.group_of)
    assert found.overall == pytest.approx(1)
    assert np.isnan(found.groups[-1])  # whole-scene attributes lie on no object
    own = np.einsum("noa,nohw->nahw", truth.carries, truth.masks)
    perfect = own / np.maximum(own.sum((2, 3), keepdims=True), 1e-9)
    assert inside.attention_on_objects(perfect, *truth, SCHEMA.group_of).overall > 2


def test_masks_keep_their_area_and_carriers_make_the_labels(trained):
    truth = inside.scene_truth(trained.source, 6, (4, 4))
    of_objects = np.asarray(SCHEMA.group_of) < SCHEMA.groups.index("other")
    for i in range(6):
        scene = trained.source.scene(i)
        areas = truth.masks[i, : len(scene.masks)].mean((1, 2))
        np.testing.assert_allclose(areas, scene.masks.mean((1, 2)), atol=1e-6)
        carried = truth.carries[i].any(0)
        np.testing.assert_array_equal(carried[of_objects], exact(scene.factors)[of_objects])
        assert not carried[~of_objects].any()


def test_evaluation_sees_the_scene_where_its_masks_are(trained):
    """Nothing is cropped: the image that the model reads is the rendered one."""
    image = inside.collect(trained, lambda _, __, batch: batch.image, examples=2)
    np.testing.assert_array_equal(image[1], trained.source.scene(1).image)
