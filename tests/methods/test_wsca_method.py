"""The WSCA method: what the configuration says is what is built, and labels only reach the loss."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors.numpy import save_file
from seeded_weights import seeded_variables

from wsca_jax import assembly, config
from wsca_jax.config import ConfigError
from wsca_jax.models.pretrained import torchvision_name

TINY = "configs/scenes.py:tiny"


def build(*overrides):
    settings = config.load(TINY, overrides)
    return assembly.build_method(settings, assembly.data_schema(settings)), settings


@pytest.fixture(scope="module")
def batch():
    settings = config.load(TINY)
    source = assembly.open_source(settings, "validation")
    return next(assembly.eval_batches(settings, assembly.make_text(settings, source.schema), source))


@pytest.fixture(scope="module")
def method():
    return build()[0]


@pytest.fixture(scope="module")
def variables(method, batch):
    return jax.jit(lambda: method.init(jax.random.key(0), batch))()


def test_the_loss_is_masked_binary_cross_entropy(method, variables, batch):
    batch = batch._replace(known=np.random.default_rng(0).random(batch.known.shape) < 0.3)
    prepared = method.augment(batch, None)

    @jax.jit
    def forward(variables, prepared):
        return method.forward(method.model, variables, None, prepared, jnp.int32(0), False, {})[0]

    outputs = forward(variables, prepared)
    (term,) = method.terms
    mask = batch.known & (batch.weight > 0)[:, None]
    logits = {name: np.asarray(x, np.float64) for name, x in outputs.classifiers.items()}
    expected = {name: (np.logaddexp(0, x) - batch.labels * x)[mask].mean() for name, x in logits.items()}
    found = term.fn(outputs, prepared, 0)
    np.testing.assert_allclose(found, (expected["trunk"] + expected["groups"]) / 2, rtol=1e-5)
    np.testing.assert_allclose(outputs.logits, 0.75 * logits["trunk"] + 0.25 * logits["groups"], atol=1e-5)
    assert term.count(prepared) == mask.sum()


def test_the_trunk_s_share_of_the_loss_is_the_same_whatever_the_modules_say(method, batch):
    """One of two classifiers or one of four: half of it."""
    (term,) = method.terms
    zero = jnp.zeros(batch.labels.shape)
    for others in (("groups",), ("groups", "refined", "frequency")):
        outputs = types.SimpleNamespace(classifiers=dict.fromkeys(others, zero) | {"trunk": zero + 1})
        expected = np.logaddexp(0, 1) - batch.labels[batch.known & (batch.weight > 0)[:, None]].mean()
        np.testing.assert_allclose(term.fn(outputs, batch, 0), (np.log(2) + expected) / 2, rtol=1e-5)


def test_an_exclusive_group_of_the_schema_is_one_question(method, batch):
    schema = dataclasses.replace(method.schema, exclusive_groups=("shape", "material"))
    settings = config.load(TINY)
    term = assembly.build_method(settings, schema).terms[0]
    zero = jnp.zeros(batch.labels.shape)
    outputs = types.SimpleNamespace(classifiers={"trunk": zero, "groups": zero})
    members = [schema.members[schema.groups.index(name)] for name in schema.exclusive_groups]
    alone = np.delete(batch.known, np.concatenate(members), axis=1)
    rows = np.concatenate(
        [batch.labels[:, group].any(1) for group in members]
    )  # else "none" of them is right
    expected = alone.sum() * np.log(2) + sum(len(batch.labels) * np.log(len(group) + 1) for group in members)
    several = np.concatenate([batch.labels[:, group].sum(1) for group in members])
    expected -= np.log(several[rows]).sum()  # any of several that are present
    total = alone.sum() + len(rows)
    assert batch.known.all()
    np.testing.assert_allclose(term.fn(outputs, batch, 0), expected / total, rtol=1e-5)
    assert term.count(batch) == total


def test_batch_statistics_are_global_or_of_each_device():
    settings = config.load(TINY, ["--config.model.trunk.batch_norm=per_device"])
    schema = assembly.data_schema(settings)
    run = assembly.build(settings, schema, 160, devices=jax.devices()[:4])
    for model, parts in ((run.method.model, 4), (build()[0].model, 1)):
        assert model.trunk.norm_parts == model.tokens.norm_parts == model.heads.norm_parts == parts
    with pytest.raises(ConfigError, match="batch_norm is 'local'; expected 'global' or 'per_device'"):
        build("--config.model.trunk.batch_norm=local")


def test_gradients_do_not_change_with_hidden_labels(method, variables, batch):
    known = np.random.default_rng(0).random(batch.known.shape) < 0.5

    @jax.jit
    def gradient_norm(labels):
        def loss(params):
            hidden = method.augment(batch._replace(labels=labels, known=known), None)
            outputs, _ = method.forward(
                method.model, {**variables, "params": params}, None, hidden, jnp.int32(0), False, {}
            )
            return method.terms[0].fn(outputs, hidden, 0)

        return optax.tree.norm(jax.grad(loss)(variables["params"]))

    first = gradient_norm(batch.labels)
    np.testing.assert_array_equal(first, gradient_norm(np.where(known, batch.labels, 1 - batch.labels)))
    assert first > 1e-4


def test_focal_and_asymmetric_losses_are_a_setting_away(batch):
    for name in ("focal", "asymmetric"):
        (term,) = build(f"--config.loss.classification={name}")[0].terms
        outputs = type("Outputs", (), {"classifiers": {"groups": jnp.zeros(batch.labels.shape)}})
        assert 0 < term.fn(outputs, batch, 0) < np.log(2)


def test_weight_zero_removes_the_term():
    assert build("--config.loss.weights.classification=0.0")[0].terms == ()


def test_trunk_settings_reach_the_trunk():
    method, _ = build("--config.model.trunk.depth=26", "--config.model.trunk.last_stride=1")
    assert method.model.trunk.depth == 26
    assert method.model.trunk.last_stride == 1


def test_hue_jitter_is_off_where_labels_depend_on_hue(batch):
    method, _ = build("--config.augment.hue=0.5", "--config.augment.flip_probability=0.0")
    still = method.augment(batch, jax.random.key(0)).image
    np.testing.assert_array_equal(still, method.augment(batch, None).image)


def test_a_torchvision_checkpoint_becomes_the_trunk(tmp_path, variables):
    trunk = {collection: variables[collection]["trunk"] for collection in variables}
    expected = seeded_variables(trunk)
    tensors = {
        torchvision_name(tuple(key.key for key in path)): np.ascontiguousarray(
            leaf.transpose(3, 2, 0, 1) if leaf.ndim == 4 else leaf
        )
        for path, leaf in jax.tree_util.tree_leaves_with_path(expected)
    }
    save_file(tensors, tmp_path / "resnet18.safetensors")
    method, _ = build(f"--config.model.pretrained={tmp_path / 'resnet18.safetensors'}")
    loaded = method.pretrained(variables)
    for collection, tree in expected.items():
        jax.tree.map(np.testing.assert_array_equal, loaded[collection]["trunk"], tree)
    jax.tree.map(np.testing.assert_array_equal, loaded["params"]["heads"], variables["params"]["heads"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "--config.loss.classification=bce",
            "loss.classification is 'bce'; expected one of binary_cross_entropy",
        ),
        ("--config.model.dtype=float33", "float33"),
        ("--config.augment.flip_probability=2.0", "flip_probability"),
    ],
)
def test_values_that_nothing_takes_are_one_line(override, message):
    with pytest.raises(ConfigError, match=message) as caught:
        build(override)
    assert "\n" not in str(caught.value)
