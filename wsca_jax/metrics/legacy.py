"""The one figure that earlier CelebA work reports per group, reproduced so that it can stand beside ours."""

from __future__ import annotations

import numpy as np

from input_pipeline.schema import AttributeSchema
from wsca_jax.metrics.measures import predict, ratio
from wsca_jax.metrics.predictions import Predictions
from wsca_jax.metrics.results import LegacyGroupAccuracy

# Number of classes per CelebA group: a group's labels were collapsed to "number of positives mod K".
CLASSES = {
    "hair_style": 8,
    "facial_features": 10,
    "makeup": 4,
    "accessories": 5,
    "expression": 3,
    "demographics": 4,
    "facial_hair": 6,
    "quality": 3,
}
LEFT_OUT = 12  # Bushy_Eyebrows, which the grouping had forgotten


def legacy_group_accuracy(predictions: Predictions, schema: AttributeSchema) -> LegacyGroupAccuracy | None:
    """Share of examples whose collapsed class is right, per group, and the groups' mean.

    An example counts for a group where all of the group's labels are known. None for a schema that does
    not have CelebA's 40 attributes and 8 groups.
    """
    if schema.num_attributes != 40 or set(schema.groups) != set(CLASSES):
        return None
    accuracy = {
        group: _accuracy(predictions, [i for i in members if i != LEFT_OUT], CLASSES[group])
        for group, members in zip(schema.groups, schema.members, strict=True)
    }
    return LegacyGroupAccuracy(accuracy, float(np.mean(list(accuracy.values()))))


def _accuracy(predictions: Predictions, members: list[int], num_classes: int) -> float:
    weight = predictions.weight.astype(np.float64) * predictions.known[:, members].all(1)
    said = predict(predictions.logits[:, members]).sum(1) % num_classes
    true = (predictions.labels[:, members] > 0).sum(1) % num_classes
    return float(ratio((weight * (said == true)).sum(), weight.sum()))
