"""The lab pages of Scenes: what is compared differs in what is asked about, and in nothing else."""

from pathlib import Path

import pytest

from wsca_jax import config
from wsca_jax.sweep import load, plan

MODULES = ("model.frequency", "model.encoder", "model.router", "model.decomposer", "model.alignment")


def variant(name):
    return config.flat(config.load(f"configs/scenes.py:{name}"))


def differing(first, second):
    first, second = variant(first), variant(second)
    keys = first.keys() | second.keys()
    return {key for key in keys if first.get(key, "absent") != second.get(key, "absent")}


def test_spurious_pair_differs_in_modules_alone():
    differences = differing("spurious", "spurious_modules")
    assert {key for key in differences if not key.startswith(MODULES)} == {"loss.balancing.kind"}
    assert {key.split(".")[1] for key in differences} == {
        *(name.removeprefix("model.") for name in MODULES),
        "balancing",
    }


@pytest.mark.parametrize("name", ["captions", "sentences"])
def test_text_pairs_differ_in_text_alone(name):
    differences = differing(name, f"{name}_off")
    assert {key for key in differences if not key.startswith("model.text")} == {
        "data.text.captions",
        "data.text.length",
    }
    assert not variant(name)["evaluation.captions"]


def test_training_is_correlated_and_evaluation_is_not():
    found = variant("spurious")
    assert found["data.options.material_background"] == found["data.options.colour_shape"] == 0.5
    assert not found["data.options.correlated_evaluation"]


@pytest.mark.parametrize("sweep", ["scenes_spurious", "scenes_text"])
@pytest.mark.parametrize("size", ["full", "tiny"])
def test_every_row_of_the_sweeps_is_a_configuration(sweep, size, tmp_path):
    definition = load(f"configs/sweeps/{sweep}.py:{size}")
    runs = plan(definition, Path(tmp_path), None)
    assert len(runs) == len(definition.rows) * len(definition.seeds)
