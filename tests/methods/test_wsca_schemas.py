"""The whole model on any schema: a branch for each of its groups, names in its order, one size of program."""

import functools
import types
from pathlib import Path

import jax
import numpy as np
import pytest
from jaxprs import operations
from tiny_model import build, make_batch

from input_pipeline import celeba, coco_attributes, cub, scenes
from input_pipeline.folder.attributes import make_schema, read_header
from input_pipeline.schema import AttributeSchema
from wsca_jax import metrics
from wsca_jax.engine import state as states
from wsca_jax.engine.optimizer import OptimizerOptions, make_optimizer
from wsca_jax.engine.sharding import Layout, make_mesh
from wsca_jax.engine.step import _pass
from wsca_jax.inside import GraphStatistics, attention_on_objects
from wsca_jax.losses.composite import TERM_NAMES
from wsca_jax.metrics import Predictions
from wsca_jax.visualize import to_json
from wsca_jax.visualize.gather import Averages
from wsca_jax.visualize.page import Facts

# Of a group whose attributes do not stand together.
TOYS = make_schema(
    read_header("toys.csv", ["path", "red", "round", "light_blue", "tiny"]),
    {"shape": ("round",), "size": ("tiny",), "colour": ("red", "light_blue")},
    Path("no schema.yaml"),
)
FACES = "hair_style facial_features makeup accessories expression demographics facial_hair quality"
THINGS = "colour material shape texture size other"
SCHEMAS = {
    "celeba": (celeba.SCHEMA, FACES, (9, 13, 3, 4, 2, 2, 5, 2)),
    "cub": (cub.SCHEMA, "colour material shape", (239, 31, 42)),
    "coco_attributes": (coco_attributes.SCHEMA, THINGS, (3, 9, 7, 15, 8, 162)),
    "scenes": (scenes.SCHEMA, THINGS, (8, 4, 6, 5, 3, 10)),
    "folder": (TOYS, "shape size colour", (1, 1, 2)),
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_branches_are_the_schema_s_groups(name):
    schema, names, sizes = SCHEMAS[name]
    groups, attributes = len(sizes), sum(sizes)
    assert schema.groups == tuple(names.split())
    method = build(schema=schema)
    batch = method.augment(make_batch(method, rows=2), None)
    outputs, variables = jax.eval_shape(
        lambda: method.model.init_with_output(jax.random.key(0), batch.image, train=False)
    )
    assert outputs.encoding.branches.shape[1] == outputs.encoding.attention.shape[1] == groups
    assert outputs.groups.shape[1] == outputs.decomposition.refined.shape[1] == groups
    assert outputs.decomposition.edges.shape[1:] == (groups, groups)
    assert outputs.frequency.groups.shape[1] == groups
    assert variables["params"]["heads"]["hidden_kernel"].shape[0] == groups
    assert {logits.shape for logits in outputs.classifiers.values()} == {(2, attributes)}
    assert outputs.alignment.prototypes.shape[0] == attributes


@pytest.mark.parametrize("name", SCHEMAS)
def test_what_is_said_of_a_branch_bears_its_group_s_name(name):
    schema, names, sizes = SCHEMAS[name]
    names, groups = names.split(), len(sizes)
    group_of = np.asarray(schema.group_of)
    assert [(group_of == g).sum() for g in range(groups)] == list(sizes)
    share = (1 + np.arange(groups)) / groups  # of group g's attention on the object, of its right predictions
    maps = np.stack([share, 1 - share], axis=-1)[group_of][None, :, None]
    mask, carried = np.array([[[[1, 0]]]]), np.ones((1, 1, len(group_of)), bool)
    found = attention_on_objects(maps, mask, carried, schema.group_of)
    edges, gates = np.arange(groups**2).reshape(groups, groups), np.zeros((groups, 2))
    averages = Averages(1, None, GraphStatistics(edges, gates), found, found)
    trained = types.SimpleNamespace(source=types.SimpleNamespace(schema=schema))
    record = to_json(Facts("run", 0, "test"), trained, averages)
    assert record["graph"] == {"groups": names, "edges": edges.tolist()}
    for kind in ("attribute_maps", "group_attention"):
        assert list(record["attention_on_object"][kind]["groups"]) == names
        assert record["attention_on_object"][kind]["groups"] == pytest.approx(
            dict(zip(names, 2 * share, strict=True))
        )

    labels = np.indices((groups, len(group_of))).sum(0) % 2
    right = np.arange(groups)[:, None] <= group_of
    predictions = Predictions(
        np.where(right, 2 * labels - 1, 1 - 2 * labels).astype(np.float32),
        labels.astype(np.uint8),
        np.ones(labels.shape, bool),
        np.ones(groups, np.float32),
        np.arange(groups, dtype=np.int32),
    )
    results = metrics.compute(predictions, schema).groups
    assert [(group.name, group.attributes) for group in results] == list(zip(names, sizes, strict=True))
    np.testing.assert_allclose([group.accuracy for group in results], share)


@functools.cache
def operations_of_a_pass(groups, experts):
    """Of a training pass with every module and term; 16 attributes in any case."""
    members = {f"group {g}": tuple(range(g, 16, groups)) for g in range(groups)}
    schema = AttributeSchema.from_groups("even", tuple(map(str, range(16))), members)
    method = build(f"--config.model.router.experts={experts}", schema=schema, captions="source")
    assert {term.name for term in method.terms} == set(TERM_NAMES)
    layout = Layout(make_mesh(devices=jax.devices()[:1]))
    optimizer = make_optimizer(OptimizerOptions(ema_decay=0.9), 100)
    batch = make_batch(method, length=32)
    state = states.abstract(method, optimizer, batch, seed=0, layout=layout)
    assert state.params["encoder"]["branches"]["query"].shape[0] == groups
    assert state.params["router"]["gate"]["bias"].shape == (experts,)
    keys = {name: jax.random.key(0) for name in ("augment", *method.rng_names)}
    program = jax.make_jaxpr(lambda *inputs: _pass(*inputs, method, optimizer, layout, keys))(state, batch)
    return len(list(operations(program.jaxpr)))


@pytest.mark.slow
@pytest.mark.parametrize(("groups", "experts"), [(8, 2), (2, 8)])
def test_the_program_of_a_pass_does_not_grow_with_groups_or_experts(groups, experts):
    assert operations_of_a_pass(groups, experts) == operations_of_a_pass(2, 2) > 1000
