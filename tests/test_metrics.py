"""Metrics against scikit-learn, against hand-computed answers, and under changes that must not matter."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
import sklearn.metrics as oracle
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from input_pipeline import celeba
from input_pipeline.batch import AttributeBatch, SpuriousFactor
from input_pipeline.schema import AttributeSchema
from wsca_jax.errors import DivergedError
from wsca_jax.metrics import Predictions, compute, merge, rows
from wsca_jax.report import format_groups

SCHEMA = AttributeSchema.from_groups("toy", ("a", "b", "c", "d"), {"first": (0, 2), "second": (1, 3)})


def predictions(logits, labels, known=None, weight=None, index=None) -> Predictions:
    logits = np.asarray(logits, np.float32)
    return Predictions(
        logits=logits,
        labels=np.asarray(labels, np.uint8),
        known=np.ones(logits.shape, bool) if known is None else np.asarray(known, bool),
        weight=np.ones(len(logits), np.float32) if weight is None else np.asarray(weight, np.float32),
        index=np.arange(len(logits), dtype=np.int32) if index is None else np.asarray(index, np.int32),
    )


def random_predictions(num_rows=300, num_attributes=4, seed=0, known=0.8, fractional=True) -> Predictions:
    """Rows with tied scores, unknown entries, weights, and every attribute both present and absent."""
    rng = np.random.default_rng(seed)
    labels = rng.random((num_rows, num_attributes)) < np.linspace(0.1, 0.6, num_attributes)
    logits = np.round(2 * rng.normal(size=labels.shape) + labels, 1)
    weight = rng.random(num_rows) if fractional else np.ones(num_rows)
    return predictions(logits, labels, rng.random(labels.shape) < known, weight)


def take(source: Predictions, order) -> Predictions:
    return Predictions(*(column[order] for column in source))


def known_column(p: Predictions, a: int):
    """(labels, logits, weight) of attribute a's known entries in float64, for the oracle."""
    keep = p.known[:, a]
    return p.labels[keep, a], p.logits[keep, a].astype(np.float64), p.weight[keep].astype(np.float64)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


# Against scikit-learn.


@pytest.mark.parametrize("fractional", [False, True])
def test_attribute_figures_equal_scikit_learn(fractional):
    p = random_predictions(fractional=fractional)
    for a, found in enumerate(compute(p, SCHEMA).attributes):
        y, s, w = known_column(p, a)
        said = s > 0
        expected = {
            "average_precision": oracle.average_precision_score(y, s, sample_weight=w),
            "accuracy": oracle.accuracy_score(y, said, sample_weight=w),
            "balanced_accuracy": oracle.balanced_accuracy_score(y, said, sample_weight=w),
            "precision": oracle.precision_score(y, said, sample_weight=w),
            "recall": oracle.recall_score(y, said, sample_weight=w),
            "f1": oracle.f1_score(y, said, sample_weight=w),
            "brier_score": oracle.brier_score_loss(y, sigmoid(s), sample_weight=w),
            "prevalence": np.average(y, weights=w),
        }
        assert {k: getattr(found, k) for k in expected} == pytest.approx(expected, abs=1e-12)
        assert (found.known, found.positives) == (len(y), y.sum())


def test_overall_figures_equal_scikit_learn():
    p = random_predictions(known=1.0, fractional=False)
    said, overall = p.logits > 0, compute(p, SCHEMA).overall
    macro = {
        name: oracle.precision_recall_fscore_support(p.labels, said, average="macro")[i]
        for i, name in enumerate(("precision", "recall", "f1"))
    }
    expected = macro | {
        "mAP": oracle.average_precision_score(p.labels, p.logits, average="macro"),
        "overall_f1": oracle.f1_score(p.labels, said, average="micro"),
        "class_f1": 2 * macro["precision"] * macro["recall"] / (macro["precision"] + macro["recall"]),
        "exact_match": oracle.accuracy_score(p.labels, said),
        "accuracy": 1 - oracle.hamming_loss(p.labels, said),
    }
    assert {k: getattr(overall, k) for k in expected} == pytest.approx(expected, abs=1e-12)


def test_micro_f1_pools_only_known_entries():
    p = random_predictions(fractional=False)
    y, s = p.labels[p.known], p.logits[p.known] > 0
    assert compute(p, SCHEMA).overall.overall_f1 == pytest.approx(oracle.f1_score(y, s), abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    scores=hnp.arrays(np.float32, 12, elements=st.sampled_from([-1.0, -0.0, 0.0, 0.5, 2.0])),
    labels=hnp.arrays(np.uint8, 12, elements=st.integers(0, 1)).filter(np.any),
)
def test_average_precision_shares_thresholds_between_ties(scores, labels):
    one = AttributeSchema.from_groups("one", ("a",), {"g": (0,)})
    found = compute(predictions(scores[:, None], labels[:, None]), one).attributes[0].average_precision
    assert found == pytest.approx(oracle.average_precision_score(labels, scores), abs=1e-12)


# By hand.


def test_calibration_error_by_hand():
    """Two bins: 0.6 said of three, two of them present; 0.9 said of one, absent."""
    logits = np.log([0.61 / 0.39] * 3 + [0.9 / 0.1])[:, None]
    one = AttributeSchema.from_groups("one", ("a",), {"g": (0,)})
    found = compute(predictions(logits, [[1], [1], [0], [0]]), one)
    expected = (3 * abs(0.61 - 2 / 3) + 1 * 0.9) / 4
    assert found.attributes[0].calibration_error == pytest.approx(expected, abs=1e-6)
    assert found.overall.calibration_error == pytest.approx(expected, abs=1e-6)


def test_pooled_calibration_error_lets_attributes_share_bins():
    """One attribute is overconfident by 0.2, the other underconfident by 0.2: pooled, they cancel."""
    two = AttributeSchema.from_groups("two", ("a", "b"), {"g": (0, 1)})
    logits = np.full((10, 2), math.log(0.7 / 0.3))
    labels = np.stack([np.arange(10) < 5, np.arange(10) < 9], 1)
    found = compute(predictions(logits, labels), two)
    assert [a.calibration_error for a in found.attributes] == pytest.approx([0.2, 0.2], abs=1e-6)
    assert found.overall.calibration_error == pytest.approx(0.0, abs=1e-6)


def test_chance_and_normalised_map_by_hand():
    """Attribute a is ranked perfectly (prevalence 1/2); b's one positive of four comes second."""
    two = AttributeSchema.from_groups("two", ("a", "b"), {"g": (0, 1)})
    logits = [[3, 4], [2, 3], [-1, 2], [-2, 1]]
    overall = compute(predictions(logits, [[1, 0], [1, 1], [0, 0], [0, 0]]), two).overall
    assert overall.mAP == pytest.approx((1 + 1 / 2) / 2)
    assert overall.chance_mAP == pytest.approx((1 / 2 + 1 / 4) / 2)
    assert overall.normalised_mAP == pytest.approx((0.75 - 0.375) / (1 - 0.375))


def test_attributes_without_positives_are_left_out_and_counted():
    labels = np.zeros((4, 4))
    labels[:2, 0] = 1
    p = predictions(np.linspace(1, -1, 16).reshape(4, 4), labels)
    found = compute(p, SCHEMA)
    absent = found.attributes[1]
    assert all(math.isnan(getattr(absent, f)) for f in ("average_precision", "precision", "recall", "f1"))
    assert (found.overall.attributes, found.overall.attributes_without_positives) == (4, 3)
    assert found.overall.mAP == found.attributes[0].average_precision == 1.0
    assert found.overall.chance_mAP == 0.5
    assert math.isnan(found.groups[1].mAP)
    assert found.groups[1].attributes_without_positives == 2
    assert absent.balanced_accuracy == absent.accuracy  # one class only


def test_nothing_predicted_present_gives_precision_zero():
    p = predictions(np.full((3, 4), -1.0), np.ones((3, 4)))
    overall = compute(p, SCHEMA).overall
    figures = (overall.precision, overall.recall, overall.f1, overall.class_f1, overall.overall_f1)
    assert figures == (0, 0, 0, 0, 0)


def test_an_attribute_never_known_is_in_no_mean():
    p = random_predictions(fractional=False)
    p.known[:, 3] = False
    found = compute(p, SCHEMA)
    assert math.isnan(found.attributes[3].accuracy)
    assert found.overall.accuracy == pytest.approx(np.mean([a.accuracy for a in found.attributes[:3]]))
    assert found.groups[1].accuracy == found.attributes[1].accuracy


def test_group_figures_are_means_over_their_attributes():
    found = compute(random_predictions(), SCHEMA)
    a, b, c, d = found.attributes
    first, second = found.groups
    assert (first.name, second.name) == ("first", "second")
    assert first.mAP == pytest.approx((a.average_precision + c.average_precision) / 2)
    assert second.balanced_accuracy == pytest.approx((b.balanced_accuracy + d.balanced_accuracy) / 2)
    assert found.mean_group_accuracy == pytest.approx((first.accuracy + second.accuracy) / 2)


def test_mean_over_groups_differs_from_mean_over_attributes():
    uneven = AttributeSchema.from_groups("uneven", ("a", "b", "c", "d"), {"big": (0, 1, 2), "small": (3,)})
    p = predictions([[1, 1, 1, -1]], [[1, 1, 1, 1]])
    found = compute(p, uneven)
    assert (found.overall.accuracy, found.mean_group_accuracy) == (0.75, 0.5)


def test_exact_match_per_group_ignores_unknown_entries():
    """Group first = (a, c): right, wrong in c, wrong in c but c unknown, nothing known."""
    logits = [[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]]
    labels = [[1, 1, 1, 1], [1, 1, 0, 1], [1, 1, 0, 1], [0, 1, 0, 1]]
    known = [[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 0, 1], [0, 1, 0, 1]]
    found = compute(predictions(logits, labels, known), SCHEMA)
    assert found.groups[0].exact_match == pytest.approx(2 / 3)
    assert found.groups[1].exact_match == 1.0
    assert found.overall.exact_match == pytest.approx(3 / 4)


def test_worst_group_by_hand():
    """Attribute a is right except where it is absent and the factor is 7: wrong in 3 of 4 there."""
    one = AttributeSchema.from_groups("one", ("a",), {"g": (0,)})
    labels = np.array([1, 1, 1, 1, 0, 0, 0, 0, 0])[:, None]
    factor = np.array([7, 7, 5, 5, 7, 7, 7, 7, 5])
    logits = np.array([1, 1, 1, 1, 1, 1, 1, -1, 1])[:, None]  # the cell (absent, 5) has one, wrong, example
    light = {"light": SpuriousFactor(factor, ("a",))}
    worst = compute(predictions(logits, labels), one, light, min_cell_examples=2).worst_group
    assert dataclasses.asdict(worst) == {
        "attribute": "a",
        "present": False,
        "factor": "light",
        "factor_value": 7,
        "accuracy": 0.25,
        "examples": 4,
    }


def test_worst_group_looks_factors_up_by_index():
    """Only some of the source's examples were evaluated, in any order."""
    whole = random_predictions(fractional=False, known=1.0)
    factor = np.random.default_rng(1).integers(0, 3, 300)
    order = np.random.default_rng(2).permutation(300)[:220]
    p = take(whole, order)
    cells = [
        ((p.logits[cell, a] > 0) == p.labels[cell, a]).mean()
        for a in range(4)
        for v in (0, 1)
        for u in range(3)
        if (cell := (p.labels[:, a] == v) & (factor[order] == u)).sum() >= 20
    ]
    f = {"f": SpuriousFactor(factor, SCHEMA.attributes)}
    worst = compute(p, SCHEMA, f, min_cell_examples=20).worst_group
    assert worst.accuracy == pytest.approx(min(cells))


def test_no_cell_large_enough_gives_no_worst_group():
    p = random_predictions(num_rows=30)
    f = {"f": SpuriousFactor(np.arange(30), SCHEMA.attributes)}
    assert compute(p, SCHEMA, f).worst_group is None


def test_legacy_group_accuracy_by_hand():
    """Hair: 8 positives said of 0 true is the same class mod 8; index 12 never matters."""
    labels, logits = np.zeros((2, 40), np.uint8), np.full((2, 40), -1.0)
    logits[0, [4, 5, 8, 9, 11, 17, 28, 32]] = 1.0
    logits[0, 12] = 1.0
    labels[1, 18] = 1
    found = compute(predictions(logits, labels), celeba.SCHEMA).legacy_group_accuracy
    assert found.groups["hair_style"] == 1.0
    assert found.groups["facial_features"] == 1.0
    assert found.groups["makeup"] == 0.5
    assert found.mean == pytest.approx(7.5 / 8)


def test_legacy_group_accuracy_is_for_celeba_only():
    assert compute(random_predictions(), SCHEMA).legacy_group_accuracy is None


# What must not matter.


def bits(results) -> str:
    """Every figure in full, NaN included."""
    return repr(dataclasses.asdict(results))


@settings(max_examples=25, deadline=None)
@given(data=st.data(), seed=st.integers(0, 1000))
def test_order_batches_padding_and_hidden_entries_change_no_bit(data, seed):
    rng = np.random.default_rng(seed)
    p = random_predictions(num_rows=67, seed=seed)
    expected = bits(compute(p, SCHEMA))

    order = data.draw(st.permutations(range(67)))
    shuffled = take(p, np.array(order))
    cuts = sorted(data.draw(st.lists(st.integers(0, 67), max_size=5)))
    parts = [take(shuffled, rows) for rows in np.split(np.arange(67), cuts)]
    padding = take(p, np.arange(5))._replace(
        weight=np.zeros(5, np.float32), index=np.full(5, -1, np.int32), logits=np.full((5, 4), np.nan)
    )
    parts.insert(data.draw(st.integers(0, len(parts))), padding)
    merged = merge(parts)
    hidden = ~merged.known
    merged.labels[hidden] = rng.integers(0, 2, hidden.sum())
    merged.logits[hidden] = rng.choice([np.nan, np.inf, -3.0, 0.5], hidden.sum())
    assert bits(compute(merged, SCHEMA)) == expected


def test_blocks_of_attributes_change_no_bit(monkeypatch):
    p = random_predictions()
    f = {"f": SpuriousFactor(np.arange(300) % 3, SCHEMA.attributes)}
    expected = bits(compute(p, SCHEMA, f))
    monkeypatch.setattr(rows, "BLOCK_ENTRIES", 1)
    assert bits(compute(p, SCHEMA, f)) == expected


def test_known_entries_do_matter():
    p = random_predictions()
    changed = p.labels.copy()
    row = int(np.flatnonzero(p.known[:, 0])[0])
    changed[row, 0] ^= 1
    assert bits(compute(p._replace(labels=changed), SCHEMA)) != bits(compute(p, SCHEMA))


def test_skipped_examples_are_counted_and_padding_is_not():
    p = random_predictions(num_rows=10)
    p.weight[[2, 5]] = 0
    p.index[5] = -1
    found = compute(p, SCHEMA)
    assert (found.examples, found.skipped) == (8, 1)


# Rows.


def test_update_and_merge_keep_every_row_of_a_batch():
    batch = AttributeBatch(
        image=np.zeros((2, 1, 1, 3), np.uint8),
        labels=np.array([[1, 0, 0, 1], [0, 0, 1, 0]], np.uint8),
        known=np.ones((2, 4), bool),
        weight=np.array([1, 0], np.float32),
        index=np.array([3, -1], np.int32),
    )
    once = Predictions.empty(4).update(np.ones((2, 4), np.float16), batch)
    twice = once.update(-np.ones((2, 4)), batch)
    assert twice.logits.dtype == np.float32
    assert twice.logits[:, 0].tolist() == [1, 1, -1, -1]
    assert twice.index.tolist() == [3, -1, 3, -1]
    assert merge([once, once]).labels.shape == (4, 4)


# What cannot be evaluated.


def test_an_example_evaluated_twice_is_an_error():
    p = random_predictions(num_rows=6)
    p.index[4] = 1
    with pytest.raises(ValueError, match="example 1 was evaluated 2 times"):
        compute(p, SCHEMA)


def test_no_rows_is_an_error():
    with pytest.raises(ValueError, match="no example was evaluated"):
        compute(Predictions.empty(4), SCHEMA)


def test_rows_of_another_schema_are_an_error():
    with pytest.raises(ValueError, match=r"shape \(300, 3\), expected \(300, 4\)"):
        compute(random_predictions(num_attributes=3), SCHEMA)


def test_logits_that_are_not_finite_are_an_error():
    p = random_predictions(num_rows=6, known=1.0)
    p.logits[4, 2] = np.nan
    with pytest.raises(DivergedError, match="example 4"):
        compute(p, SCHEMA)


def test_factors_shorter_than_the_source_are_an_error():
    with pytest.raises(ValueError, match="factor 'light' has 10 values, but example 299"):
        compute(random_predictions(), SCHEMA, {"light": SpuriousFactor(np.zeros(10, int), SCHEMA.attributes)})


# Results.


def test_json_holds_every_figure_and_no_nan():
    labels = np.zeros((4, 4))
    labels[0, 0] = 1
    record = json.loads(
        json.dumps(compute(predictions(np.ones((4, 4)), labels), SCHEMA).to_json(), allow_nan=False)
    )
    assert record["attributes"][1]["average_precision"] is None
    assert record["overall"]["name"] == "overall"
    assert [group["name"] for group in record["groups"]] == ["first", "second"]


def test_scalars_name_the_headline_figures():
    f = {"f": SpuriousFactor(np.zeros(300, int), SCHEMA.attributes)}
    found = compute(random_predictions(), SCHEMA, f)
    scalars = found.scalars()
    assert scalars["mAP"] == found.overall.mAP
    assert scalars["first/accuracy"] == found.groups[0].accuracy
    assert scalars["worst_group_accuracy"] == found.worst_group.accuracy
    assert "legacy_group_accuracy" not in scalars


def test_a_group_without_attributes_has_no_figures_and_changes_no_other():
    """COCO Attributes may leave one empty."""
    attributes, members = SCHEMA.attributes, {"first": (0, 2), "nothing": (), "second": (1, 3)}
    found = random_predictions()
    whole = compute(found, SCHEMA)
    gap = compute(found, AttributeSchema.from_groups("toy", attributes, members))
    assert gap.overall == whole.overall
    assert (gap.groups[0], gap.groups[2]) == whole.groups
    assert gap.mean_group_accuracy == whole.mean_group_accuracy
    assert math.isnan(gap.groups[1].mAP)
    assert gap.to_json()["groups"][1]["accuracy"] is None
    assert [line.split()[0] for line in format_groups(gap).splitlines()[2:]][1] == "nothing"


def test_families_are_summed_up_like_groups():
    names = ("wing::red", "wing::blue", "leg::red", "leg::blue")
    groups = {"first": (0, 1), "second": (2, 3)}
    found = compute(random_predictions(), AttributeSchema.from_groups("toy", names, groups))
    assert [family.name for family in found.families] == ["wing", "leg"]
    for family, group in zip(found.families, found.groups, strict=True):
        assert dataclasses.replace(family, name=group.name) == group
    assert compute(random_predictions(), SCHEMA).families == ()
