"""From a configuration to batches: what they hold is what was announced."""

from itertools import islice

import jax
import numpy as np
import pytest

from input_pipeline.errors import DataError
from wsca_jax import assembly
from wsca_jax import config as configs

SMALL = (
    "--config.data.options.size=16",
    "--config.data.images.size=16",
    "--config.data.options.train_images=24",
    "--config.data.options.validation_images=12",
    "--config.train.batch_size=8",
    "--config.evaluation.batch_size=8",
    "--config.data.text.length=9",
)


def load(*overrides):
    return configs.load("configs/scenes.py:tiny", [*SMALL, *overrides])


def batches(config):
    """(training batches, evaluation batches) of Scenes."""
    text = assembly.make_text(config, assembly.data_schema(config))
    train = assembly.train_batches(config, text, assembly.open_source(config, "train"), 0)
    validation = assembly.eval_batches(config, text, assembly.open_source(config, "validation"))
    return list(islice(train, 2)), list(validation)


@pytest.mark.parametrize("captions", ["none", "source", "phrases"])
@pytest.mark.parametrize("asked", ["false", "true"])
def test_batches_are_what_the_spec_announces(captions, asked):
    config = load(f"--config.data.text.captions={captions}", f"--config.evaluation.captions={asked}")
    spec = assembly.batch_spec(config, assembly.data_schema(config), 8)
    train, validation = batches(config)
    for batch in (*train, *validation):
        assert jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch) == spec
    if captions == "none":
        assert spec.tokens is None
        return
    assert spec.tokens.shape == (8, 9)
    assert all(batch.tokens.any(1).all() for batch in train)
    padding = np.concatenate([batch.weight == 0 for batch in validation])
    told = np.concatenate([batch.tokens.any(1) for batch in validation])
    np.testing.assert_array_equal(told, ~padding if asked == "true" else np.zeros_like(told))


def test_a_recorded_run_reads_the_same_tokens_again():
    config = load("--config.data.text.captions=source", "--config.weak_labels.known_fraction=0.5")
    again = configs.from_json(configs.to_json(config), "run.json")
    for one, other in zip(batches(config)[0], batches(again)[0], strict=True):
        np.testing.assert_array_equal(one.tokens, other.tokens)


def test_captions_that_do_not_exist_are_refused_at_once():
    config = load("--config.data.text.captions=own")
    with pytest.raises(DataError, match="expected one of none, source, phrases"):
        assembly.batch_spec(config, assembly.data_schema(config), 8)


def test_hidden_labels_are_judged_on_what_training_does_not_see():
    config = load("--config.weak_labels.known_fraction=0.3")
    source = assembly.open_source(config, "train")
    text = assembly.make_text(config, source.schema)
    hidden = list(assembly.eval_batches(config, text, source, hidden=True))
    seen = {int(i): known for b in batches(config)[0] for i, known in zip(b.index, b.known, strict=True)}
    judged = {int(i): known for b in hidden for i, known in zip(b.index, b.known, strict=True) if i >= 0}
    assert len(judged) == 24
    for index, known in seen.items():
        np.testing.assert_array_equal(judged[index], ~known)


@pytest.mark.parametrize(("images", "message"), [(8, "known_fraction below 1"), (-1, "expected a number")])
def test_judging_hidden_labels_where_there_are_none_is_refused_at_once(images, message):
    config = load(f"--config.evaluation.hidden_labels={images}")
    with pytest.raises(configs.ConfigError, match=message):
        assembly.build(config, assembly.data_schema(config), 24)


@pytest.mark.parametrize(
    ("variant", "peak"), [("large_batch", 0.04 / 8**0.5), ("large_batch_lars", 0.3 * 16)]
)
def test_a_pod_s_learning_rate_is_that_of_its_batch(variant, peak):
    settings = configs.load(f"configs/celeba.py:{variant}")
    run = assembly.build(settings, assembly.data_schema(settings), 162_770)
    rates = [float(run.optimizer.schedule(step)) for step in range(0, run.schedule.total, 10)]
    assert max(rates) == pytest.approx(peak, rel=1e-3)
