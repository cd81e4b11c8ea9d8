"""What the modules cost at 224 px, in multiply-adds, beside ResNet-50 alone."""

import pytest

from wsca_jax import assembly, config
from wsca_jax.engine.optimizer import OptimizerOptions, make_optimizer
from wsca_jax.engine.sharding import Layout, make_mesh
from wsca_jax.inspection.record import inspect_run

MODULES = ("frequency", "encoder", "text", "router", "decomposer", "alignment")


def multiply_adds(*modules: str, captions: str = "none") -> dict[str, int]:
    """By top-level module, with these modules at their default sizes: d 768, six layers."""
    overrides = [f"--config.model.{name}={'default' if name in modules else 'None'}" for name in MODULES]
    settings = config.load(
        "configs/celeba.py:baseline", [*overrides, f"--config.data.text.captions={captions}"]
    )
    schema = assembly.data_schema(settings)
    assert (settings.model.hidden_size, settings.data.images.size) == (768, 224)
    if "encoder" in modules:
        assert (settings.model.encoder.depth, settings.model.encoder.ffn_ratio) == (6, 2.0)
    assert captions == "none" or settings.data.text.length == 32
    optimizer = make_optimizer(OptimizerOptions(**settings.optimizer), 1000)
    spec = assembly.batch_spec(settings, schema, 8)
    method = assembly.build_method(settings, schema)
    found = inspect_run(method, optimizer, spec, Layout(make_mesh())).multiply_adds
    totals: dict[str, int] = {}
    for path, count in found.items():
        totals[path[0] if path else ""] = totals.get(path[0] if path else "", 0) + count
    return totals


@pytest.fixture(scope="module")
def trunk():
    return multiply_adds()["trunk"]


@pytest.mark.slow
def test_the_whole_model_costs_at_most_three_fifths_more_than_its_trunk(trunk):
    assert sum(multiply_adds(*MODULES).values()) <= 1.6 * trunk


@pytest.mark.slow
def test_with_thirty_two_text_tokens_it_stays_near_twice(trunk):
    with_text = multiply_adds(*MODULES, captions="phrases")
    assert sum(with_text.values()) <= 2.1 * trunk
    assert with_text["encoder"] > multiply_adds(*MODULES)["encoder"]


@pytest.mark.slow
def test_the_frequency_branch_costs_a_twentieth(trunk):
    found = multiply_adds("frequency")
    assert 0 < found["frequency"] + found["fusion"] <= 0.05 * trunk
