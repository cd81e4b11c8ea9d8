"""Worst-group accuracy from the scenes to the table: by hand, and on the real command line."""

import dataclasses
import json

import numpy as np
import pytest

from input_pipeline.batch import SpuriousFactor
from input_pipeline.schema import AttributeSchema
from wsca_jax import assembly, cli
from wsca_jax.errors import ExitCode
from wsca_jax.evaluate import evaluate
from wsca_jax.metrics import Predictions
from wsca_jax.metrics.worst_group import find_worst_group, resampled_worst_group

SCHEMA = AttributeSchema.from_groups(
    "toy", ("wood", "rubber", "dotted"), {"material": (0, 1), "texture": (2,)}
)


def rows(logits, labels, known=None, weight=None):
    labels = np.array(labels, np.uint8)
    return Predictions(
        np.array(logits, np.float32),
        labels,
        np.ones(labels.shape, bool) if known is None else np.array(known, bool),
        np.ones(len(labels), np.float32) if weight is None else np.array(weight, np.float32),
        np.arange(len(labels), dtype=np.int32),
    )


# Wood is found on the lawn (0 and 1) and missed elsewhere (3, but not 2). Dotted is never found.
LABELS = [[1, 0, 1], [1, 0, 1], [1, 0, 1], [1, 0, 1], [0, 1, 1], [0, 1, 1]]
LOGITS = [[9, -9, -9], [9, -9, -9], [9, -9, -9], [-9, -9, -9], [-9, 9, -9], [-9, 9, -9]]
LAWN = np.array([1, 1, 0, 0, 0, 1])


@pytest.mark.parametrize("least", [1, 2])
def test_the_worst_cell_of_a_resample_by_repeating_rows(least):
    """A resample is the images themselves, some of them several times."""
    rng = np.random.default_rng(0)
    found = rows(rng.normal(size=(40, 3)), rng.integers(0, 2, (40, 3)), rng.random((40, 3)) < 0.9)
    values = {name: rng.integers(0, 3, 40) for name in ("lawn", "light")}
    factors = {name: SpuriousFactor(v, ("wood", "dotted")) for name, v in values.items()}
    counts = np.stack([np.ones(40, np.int64), *rng.multinomial(40, np.full(40, 1 / 40), 5)])
    scores = resampled_worst_group(
        found, counts, attributes=SCHEMA.attributes, factors=factors, min_cell_examples=least
    )
    assert scores[0] == find_worst_group(found, SCHEMA, factors, min_cell_examples=least).accuracy
    for score, times in zip(scores[1:], counts[1:], strict=True):
        accuracy = []
        for codes in values.values():
            for attribute in (0, 2):
                known = found.known[:, attribute]
                right = (found.logits[:, attribute] > 0) == (found.labels[:, attribute] > 0)
                for label in (0, 1):
                    for value in range(3):
                        cell = known & (found.labels[:, attribute] == label) & (codes == value)
                        if cell.sum() >= least and times[cell].sum():
                            accuracy.append(np.average(right[cell], weights=times[cell]))
        assert score == pytest.approx(min(accuracy))


def test_without_a_large_cell_a_resample_has_no_worst_group():
    lawn = {"lawn": SpuriousFactor(LAWN, ("wood",))}
    scores = resampled_worst_group(
        rows(LOGITS, LABELS), np.ones((2, 6), np.int64), attributes=SCHEMA.attributes, factors=lawn
    )
    assert np.isnan(scores).all()


def test_a_factor_meets_only_the_attributes_it_may_go_with():
    lawn = {"lawn": SpuriousFactor(LAWN, ("wood",))}
    worst = find_worst_group(rows(LOGITS, LABELS), SCHEMA, lawn, min_cell_examples=1)
    assert dataclasses.asdict(worst) == {
        "attribute": "wood",
        "present": True,
        "factor": "lawn",
        "factor_value": 0,
        "accuracy": 0.5,
        "examples": 2,
    }


def test_the_worst_of_several_factors():
    factors = {
        "lawn": SpuriousFactor(LAWN, ("wood",)),
        "light": SpuriousFactor(np.array([4, 4, 7, 7, 7, 7]), ("rubber", "dotted")),
    }
    worst = find_worst_group(rows(LOGITS, LABELS), SCHEMA, factors, min_cell_examples=2)
    assert (worst.attribute, worst.present, worst.factor, worst.factor_value) == ("dotted", True, "light", 4)
    assert (worst.accuracy, worst.examples) == (0.0, 2)


def test_unknown_entries_and_skipped_examples_are_in_no_cell():
    lawn = {"lawn": SpuriousFactor(LAWN, ("wood",))}
    known = np.ones((6, 3), bool)
    known[3, 0] = False
    for found in (rows(LOGITS, LABELS, known=known), rows(LOGITS, LABELS, weight=[1, 1, 1, 0, 1, 1])):
        assert find_worst_group(found, SCHEMA, lawn, min_cell_examples=1).accuracy == 1.0


def test_small_cells_and_no_factors_give_nothing():
    lawn = {"lawn": SpuriousFactor(LAWN, ("wood",))}
    assert find_worst_group(rows(LOGITS, LABELS), SCHEMA, lawn) is None
    assert find_worst_group(rows(LOGITS, LABELS), SCHEMA, {}) is None


def test_a_factor_of_an_attribute_that_is_not_there():
    lawn = {"lawn": SpuriousFactor(LAWN, ("wood", "moss"))}
    with pytest.raises(ValueError, match="factor 'lawn': there is no attribute 'moss'"):
        find_worst_group(rows(LOGITS, LABELS), SCHEMA, lawn)


# The real command line.

IMAGES = 320  # of which 16 or so fall into the smallest cell, and most cells have 50


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    overrides = (
        f"--config.data.options.validation_images={IMAGES}",
        "--config.data.options.colour_shape=0.9",
        "--config.train.epochs=0.2",
    )
    code = cli.main(["train", "--config=configs/scenes.py:tiny", f"--workdir={folder}", *overrides])
    assert code == ExitCode.DONE
    return folder


@pytest.mark.slow
def test_training_logs_and_reports_it(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    logged = [row["values"]["worst_group_accuracy"] for row in lines if row["kind"] == "validation"]
    worst = json.loads((workdir / "training_report.json").read_text())["results"]["worst_group"]
    assert logged[-1] == worst["accuracy"]
    assert worst["examples"] >= 50
    sentence = f"on the {worst['examples']} examples {'with' if worst['present'] else 'without'} "
    assert sentence + worst["attribute"] in (workdir / "report.html").read_text()


@pytest.mark.slow
def test_evaluation_prints_and_stores_what_the_predictions_say(workdir, capsys):
    assert cli.main(["evaluate", f"--workdir={workdir}"]) == ExitCode.DONE
    printed = capsys.readouterr().out
    worst = json.loads((workdir / "evaluation_validation.json").read_text())["results"]["worst_group"]
    assert f"Worst group: accuracy {worst['accuracy']:.3f} on the {worst['examples']} examples" in printed
    assert f"{worst['attribute']} whose {worst['factor']} is {worst['factor_value']}." in printed


class Plain:
    """A data set that knows nothing of factors."""

    def __init__(self, source):
        self._source, self.schema, self.truth = source, source.schema, source.truth

    def __len__(self):
        return len(self._source)

    def __getitem__(self, index):
        return self._source[index]


@pytest.mark.slow
def test_a_data_set_without_factors_has_no_worst_group(workdir, monkeypatch, capsys):
    opened = assembly.open_source
    monkeypatch.setattr(assembly, "open_source", lambda *arguments: Plain(opened(*arguments)))
    results = evaluate(workdir)
    assert results.worst_group is None
    assert "worst_group_accuracy" not in results.scalars()
    assert "Worst group" not in capsys.readouterr().out
