"""Looking inside a trained model: what it attends to, how it routes, and what any of its layers says.

from pathlib import Path
from wsca_jax import inside

trained = inside.load(Path("runs/scenes_modules"))
maps = inside.attention_maps(trained, examples=16)
features = inside.extract_features(trained, "branches")
"""

from wsca_jax.evaluate import Trained, load
from wsca_jax.inside.layers import extract_features, named_layers
from wsca_jax.inside.on_object import OnObject, SceneTruth, attention_on_objects, scene_truth
from wsca_jax.inside.reading import collect
from wsca_jax.inside.views import (
    AttentionMaps,
    BandImages,
    GraphStatistics,
    RoutingStatistics,
    attention_maps,
    band_images,
    graph_statistics,
    routing_statistics,
)

__all__ = [
    "AttentionMaps",
    "BandImages",
    "GraphStatistics",
    "OnObject",
    "RoutingStatistics",
    "SceneTruth",
    "Trained",
    "attention_maps",
    "attention_on_objects",
    "band_images",
    "collect",
    "extract_features",
    "graph_statistics",
    "load",
    "named_layers",
    "routing_statistics",
    "scene_truth",
]
