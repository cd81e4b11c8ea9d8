"""What misleads about Scenes: the spurious factors against the scenes themselves, and what they cost."""

import numpy as np
import pytest
from official_files import OfficialCeleba

from input_pipeline import celeba, scenes
from input_pipeline.batch import SourceWithFactors
from input_pipeline.labels import binary_codes
from input_pipeline.scenes.vocabulary import Background, Shape
from input_pipeline.storage.prepared import PreparedSource, Reading

ATTRIBUTES = scenes.SCHEMA.attributes


def opened(split="validation", images=60, **options):
    return scenes.open_split(None, split, scenes.Options(**{f"{split}_images": images, **options}))


def labels(source):
    return np.stack([source.labels(i) for i in range(len(source))])


def test_each_factor_is_whether_an_image_shows_the_cue():
    source = opened()
    factors = source.spurious_factors()
    assert set(factors) == set(Background) | set(Shape)
    for i in range(len(source)):
        scene = source.factors(i)
        seen = {scene.background, *(item.look.shape for item in scene.objects)}
        assert {name for name, factor in factors.items() if factor.values[i]} == seen
    assert all(factor.values.shape == (60,) for factor in factors.values())
    assert all(np.issubdtype(factor.values.dtype, np.integer) for factor in factors.values())


def test_factors_name_the_attributes_they_go_with():
    factors = opened(images=1).spurious_factors()
    assert factors["lawn"].attributes == ("wood",)
    assert factors["cone"].attributes == ("orange", "yellow")
    assert {name for factor in factors.values() for name in factor.attributes} == {
        *(name for name, group in zip(ATTRIBUTES, scenes.SCHEMA.group_of, strict=True) if group < 2)
    }


@pytest.mark.parametrize(("cue", "option"), [("lawn", "material_background"), ("cube", "colour_shape")])
def test_cue_and_attribute_go_together_where_correlated_and_only_there(cue, option):
    def dependence(source):
        factor = source.spurious_factors()[cue]
        attribute = labels(source)[:, ATTRIBUTES.index(factor.attributes[0])]
        return attribute[factor.values == 1].mean() - attribute[factor.values == 0].mean()

    assert dependence(opened("train", 400, **{option: 0.9})) > 0.5
    assert abs(dependence(opened("validation", 400, **{option: 0.9}))) < 0.2


def test_noisy_labels_leave_the_factors_alone():
    clean, noisy = (opened("train", 40, label_noise=noise).spurious_factors() for noise in (0.0, 0.5))
    assert all(np.array_equal(clean[name].values, noisy[name].values) for name in clean)


def test_no_image_is_rendered(monkeypatch):
    monkeypatch.setattr("input_pipeline.scenes.source.render_image", pytest.fail)
    monkeypatch.setattr("input_pipeline.scenes.source.render", pytest.fail)
    opened().spurious_factors()


def test_every_cell_of_the_default_validation_split_is_large_enough():
    source = scenes.open_split(None, "validation", scenes.Options())
    known = labels(source)
    for factor in source.spurious_factors().values():
        for name in factor.attributes:
            cell = 2 * known[:, ATTRIBUTES.index(name)] + factor.values
            assert np.bincount(cell, minlength=4).min() >= 50


def test_prepared_data_has_no_factors(tmp_path):
    official = OfficialCeleba(tmp_path / "official", {"0": 2, "1": 1})
    folder = celeba.prepare(official.write(), tmp_path / "prepared")
    assert not isinstance(
        PreparedSource(folder, "train", celeba.SCHEMA, Reading(binary_codes)), SourceWithFactors
    )
    assert isinstance(opened(), SourceWithFactors)
