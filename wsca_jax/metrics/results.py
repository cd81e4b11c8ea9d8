"""What an evaluation found: typed, with a flat view for logs and a nested one for JSON."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class AttributeResult:
    """Figures of one attribute over its known entries; NaN where a figure is not defined.

    Attributes:
      name, group: as in the schema.
      known: number of examples whose label is known; positives: of those, how many have it.
      prevalence: weighted share of positives, which is also the average precision of a random ranking.
      accuracy: at probability 0.5, as everything down to f1.
      balanced_accuracy: mean recall of the classes (present, absent) that occur.
      precision: 0 where nothing is predicted present.
      recall, f1, average_precision: and precision, not defined without positives.
      calibration_error: expected calibration error over 15 bins of equal width.
      brier_score: mean squared error of the probability.
    """

    name: str
    group: str
    known: int
    positives: int
    prevalence: float
    accuracy: float
    balanced_accuracy: float
    precision: float
    recall: float
    f1: float
    average_precision: float
    calibration_error: float
    brier_score: float


@dataclasses.dataclass(frozen=True)
class Summary:
    """Figures of several attributes: a group, or all of them. NaN where a figure is not defined.

    Means run over attributes, each counting once; attributes without a known label are in none of them.

    Attributes:
      name: the group's, or "overall".
      attributes: how many there are.
      attributes_without_positives: how many of them stay out of mAP, precision, recall, f1 and class_f1.
      known, positives: numbers of (example, attribute) entries.
      prevalence, accuracy, balanced_accuracy, brier_score: means over attributes.
      precision, recall, f1: macro means over attributes with positives.
      mAP: mean average precision of the attributes with positives.
      chance_mAP: mean prevalence of the same attributes, what random scores reach.
      normalised_mAP: (mAP - chance_mAP) / (1 - chance_mAP): 0 is chance, 1 is perfect.
      class_f1: CF1, the harmonic mean of macro precision and macro recall.
      overall_f1: OF1, from precision and recall over all entries pooled.
      exact_match: share of examples, of those with a known label here, with no known label wrong.
      calibration_error: over all entries pooled.
    """

    name: str
    attributes: int
    attributes_without_positives: int
    known: int
    positives: int
    prevalence: float
    accuracy: float
    balanced_accuracy: float
    precision: float
    recall: float
    f1: float
    mAP: float
    chance_mAP: float
    normalised_mAP: float
    class_f1: float
    overall_f1: float
    exact_match: float
    calibration_error: float
    brier_score: float


@dataclasses.dataclass(frozen=True)
class WorstGroup:
    """The (attribute value, factor value) cell of lowest accuracy, of those with enough examples."""

    attribute: str
    present: bool
    factor: str
    factor_value: int
    accuracy: float
    examples: int


@dataclasses.dataclass(frozen=True)
class LegacyGroupAccuracy:
    """Accuracy of "number of positives mod K" per CelebA group, for comparison with older figures only."""

    groups: Mapping[str, float]
    mean: float


@dataclasses.dataclass(frozen=True)
class Results:
    """One evaluation.

    Attributes:
      examples: how many were evaluated.
      skipped: how many had weight 0 without being padding: images that could not be read.
      overall: over all attributes.
      mean_group_accuracy: accuracy averaged over the groups, each counting once.
      groups: in the schema's order.
      attributes: in the schema's order.
      families: of attributes whose names say to which they belong (`AttributeSchema.families`).
      worst_group: None where no factors were given or no cell was large enough.
      legacy_group_accuracy: None except for CelebA.
    """

    examples: int
    skipped: int
    overall: Summary
    mean_group_accuracy: float
    groups: tuple[Summary, ...]
    attributes: tuple[AttributeResult, ...]
    families: tuple[Summary, ...] = ()
    worst_group: WorstGroup | None = None
    legacy_group_accuracy: LegacyGroupAccuracy | None = None

    def scalars(self) -> dict[str, float]:
        """The headline figures by name, for logs and for choosing the best checkpoint.

        Keys: the float fields of `Summary` ("mAP", "accuracy", ...) over all attributes,
        "mean_group_accuracy", "<group>/mAP" and "<group>/accuracy" per group, and "worst_group_accuracy"
        and "legacy_group_accuracy" where they exist.
        """
        values = _floats(self.overall) | {"mean_group_accuracy": self.mean_group_accuracy}
        for group in self.groups:
            values |= {f"{group.name}/mAP": group.mAP, f"{group.name}/accuracy": group.accuracy}
        if self.worst_group is not None:
            values["worst_group_accuracy"] = self.worst_group.accuracy
        if self.legacy_group_accuracy is not None:
            values["legacy_group_accuracy"] = self.legacy_group_accuracy.mean
        return values

    def to_json(self) -> dict[str, Any]:
        """Nested records of plain values; what is not defined (NaN) becomes None."""
        return _without_nan(dataclasses.asdict(self))


def _floats(record: Summary) -> dict[str, float]:
    return {k: v for k, v in dataclasses.asdict(record).items() if isinstance(v, float)}


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_nan(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(v) for v in value]
    return None if isinstance(value, float) and math.isnan(value) else value
