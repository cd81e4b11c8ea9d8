"""Which output reaches which argument of which loss, and what the teacher makes of the student's features."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_model import build, make_batch, make_variables

from input_pipeline.batch import AttributeBatch
from wsca_jax import config
from wsca_jax.losses import (
    alignment,
    classification,
    disentanglement,
    frequency,
    hierarchy,
    pseudo_labels,
    routing,
)
from wsca_jax.losses.composite import TERM_NAMES
from wsca_jax.losses.image_text import image_text
from wsca_jax.methods import wsca_terms
from wsca_jax.models.wsca import PseudoLabels

STEP = 5
# Settings of the losses, none of which is the default.
MAVD = {"quality_weight": 0.7, "balance_weight": 0.3, "sparsity_weight": 0.02}
HIERARCHY = {"consistency_scale": 0.8, "diversity_scale": 0.6, "structure_scale": 0.9}
CMDL = {"variance": 0.2, "sparsity": 0.03, "floor": 0.6}
CAL = {"pair_factor": 0.7, "prototype_factor": 0.4}
FREQUENCY = {"regularisation": 0.4}
FOCAL = {"gamma": 1.5}
SECTIONS = {"mavd": MAVD, "hierarchy": HIERARCHY, "cmdl": CMDL, "cal": CAL, "frequency": FREQUENCY}
SECTIONS |= {"focal": FOCAL}


class Found(NamedTuple):
    """A batch with examples of little and of no weight, and every term of random outputs."""

    batch: AttributeBatch
    terms: dict[str, float]
    expected: dict[str, float]


@functools.cache
def found():
    settings = [f"{name}.{key}={value}" for name, loss in SECTIONS.items() for key, value in loss.items()]
    settings += ["classification=focal", "caption_factor=0.5", "held_out.seed=4"]
    method = build(*(f"--config.loss.{setting}" for setting in settings), captions="source")
    batch = make_batch(method, length=32)
    batch = batch._replace(weight=np.array([1, 1, 0.5, 1, 1, 0, 1, 1], np.float32))

    @jax.jit
    def both(outputs, batch):
        terms = {term.name: term.fn(outputs, batch, jnp.int32(STEP)) for term in method.terms}
        return terms, expected_terms(outputs, batch, method.schema.group_of)

    return Found(batch, *jax.device_get(both(random_outputs(method, batch), batch)))


def random_outputs(method, batch):
    """As the whole method in training returns them, but random: no two are alike, and nothing is compiled."""

    def train():
        variables = method.init(jax.random.key(0), batch)
        rngs = dict.fromkeys(method.rng_names, jax.random.key(1))
        prepared = method.augment(batch, None)
        return method.forward(method.model, variables, variables, prepared, jnp.int32(STEP), True, rngs)[0]

    rng, shapes = np.random.default_rng(0), jax.eval_shape(train)
    finest, top = shapes.decomposition.levels
    levels = (finest, finest, top)  # two of them with a residual, which are compared
    shapes = shapes._replace(decomposition=shapes.decomposition._replace(levels=levels))
    outputs = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)
    routing, pairs, encoding = outputs.routing, outputs.captions, outputs.encoding
    read, unread = rng.random((2, len(batch.weight))) < [[0.4], [0.7]]
    share = np.exp(routing.probabilities)
    chances = rng.random((2, *batch.labels.shape)).astype(np.float32)
    return outputs._replace(
        routing=routing._replace(probabilities=share / share.sum(1, keepdims=True)),
        pseudo=PseudoLabels(*chances, ~batch.known & (rng.random(batch.known.shape) < 0.5)),
        encoding=encoding._replace(read=read),
        captions=pairs._replace(unread=unread),
    )


def fitted_of(batch):
    """Known labels that are not held out to judge pseudo labels."""
    return batch.known & ~pseudo_labels.held_out(batch.index, batch.known.shape[1], 0.3, 4)


def both_sides(score, classifiers):
    """Half the trunk's, half the mean of the three others'."""
    others = [score(classifiers[name]) for name in ("groups", "refined", "frequency")]
    return score(classifiers["trunk"]) / 2 + sum(others) / 6


def expected_terms(outputs, batch, group_of):
    known, weight = batch.known, batch.weight
    fitted = fitted_of(batch)
    router, pseudo, levels = outputs.routing, outputs.pseudo, outputs.decomposition.levels
    held_out = known & ~fitted
    may_name = (held_out & (batch.labels > 0)).any(1) & ~known.all(1)
    aligned, pairs = outputs.alignment, outputs.captions
    key = jax.random.fold_in(jax.random.key(0), STEP)
    projection = disentanglement.projections(key, *outputs.groups.shape[1:], 8)
    return {
        "classification": both_sides(
            lambda logits: classification.focal(logits, batch.labels, fitted, weight, **FOCAL),
            outputs.classifiers,
        ),
        "pseudo": both_sides(
            lambda logits: pseudo_labels.pseudo_label_loss(
                logits, pseudo.probability, pseudo.quality, pseudo.accepted, weight
            ),
            outputs.classifiers,
        ),
        "cal": alignment.cal(
            outputs.groups,
            batch.labels,
            fitted,
            weight,
            group_of=group_of,
            prototypes=aligned.prototypes,
            pair_scale=aligned.pair_scale,
            pair_bias=aligned.pair_bias,
            prototype_scale=aligned.prototype_scale,
            prototype_bias=aligned.prototype_bias,
            probability=pseudo.probability,
            accepted=pseudo.accepted,
            **CAL,
        )
        + 0.5
        * image_text(
            pairs.image,
            pairs.caption,
            pairs.unread & ~may_name,
            weight,
            scale=pairs.scale,
            bias=pairs.bias,
        ),
        "mavd": routing.router_loss(
            router.votes,
            router.quality,
            router.probabilities,
            batch.labels,
            fitted,
            held_out & ~outputs.encoding.read[:, None],
            weight,
            **MAVD,
        ),
        "hierarchy": hierarchy.hierarchy(
            [level.features for level in levels],
            [level.bottom_up for level in levels],
            [level.children for level in levels],
            [level.residual for level in levels],
            weight,
            **HIERARCHY,
        ),
        "frequency": frequency.decoupling(
            outputs.frequency.low_features, outputs.frequency.high_features, weight, **FREQUENCY
        ),
        "cmdl": disentanglement.cmdl(outputs.groups, weight, projection, **CMDL),
        "graph": hierarchy.graph(outputs.decomposition.edges, weight),
    }


def test_every_weight_is_its_own_term_s():
    weights = {name: 0.1 + 0.01 * place for place, name in enumerate(TERM_NAMES)}
    method = build(*(f"--config.loss.weights.{name}={weight}" for name, weight in weights.items()))
    assert {term.name: term.weight for term in method.terms} == pytest.approx(weights)


def test_labels_are_held_out_only_where_quality_is_learned_from_them():
    method = build()
    batch = make_batch(method)
    for weight in (0.0, 1.0):
        settings = config.load("configs/scenes.py:tiny", [f"--config.loss.weights.mavd={weight}"])
        fitted = wsca_terms.entries_to_fit(settings.loss, method.model)(batch)
        assert (fitted.sum() == batch.known.sum()) == (weight == 0)


def test_every_term_has_something_to_say():
    batch, terms, _ = found()
    assert set(terms) == set(TERM_NAMES)
    assert all(terms.values())
    assert 0 < fitted_of(batch).sum() < batch.known.sum()


@pytest.mark.parametrize("name", TERM_NAMES)
def test_a_term_is_its_loss_on_the_outputs_that_it_names(name):
    assert found().terms[name] == pytest.approx(found().expected[name], rel=1e-5)


# The teacher


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def voted(params, features):
    """Probability and quality of the votes on router features, without noise or dropout."""

    def dense(name, x):
        return x @ params[name]["kernel"] + params[name]["bias"]

    share = softmax(dense("gate", features))
    hidden = np.einsum("bd,edh->beh", features, params["hidden_kernel"]) + params["hidden_bias"]
    votes = np.einsum("be,beh,eha->ba", share, np.maximum(hidden, 0), params["vote_kernel"])
    votes = votes + params["vote_bias"]
    seen = dense("quality_output", np.maximum(dense("quality_hidden", features), 0))
    quality = params["slope_scale"] * np.abs(votes) + params["sign_bias"] * np.sign(votes) + seen
    return sigmoid(votes), sigmoid(quality)


@functools.cache
def taught():
    """Parameters, the averaged ones, what a student in training hears of them, and its gradient of that."""
    method = build(without=("frequency", "encoder", "text", "decomposer", "alignment"))
    batch = make_batch(method)
    variables = make_variables(method, batch)
    rngs = dict.fromkeys(method.rng_names, jax.random.key(1))
    averaged = jax.tree.map(lambda x: x + np.float32(0.1), variables)

    def heard(params, averaged):
        prepared = method.augment(batch, None)
        outputs, _ = method.forward(
            method.model, {**variables, "params": params}, averaged, prepared, jnp.int32(STEP), True, rngs
        )
        return outputs.pseudo.probability.sum() + (outputs.pseudo.quality**2).sum(), outputs

    found = jax.jit(jax.grad(heard, argnums=(0, 1), has_aux=True))(variables["params"], averaged)
    return jax.device_get((variables["params"], averaged["params"], *found))


def test_pseudo_labels_are_the_averaged_heads_votes_on_the_student_s_features():
    params, averaged, _, outputs = taught()
    features = outputs.routing.features.astype(np.float64)
    probability, quality = voted(averaged["router"], features)
    np.testing.assert_allclose(outputs.pseudo.probability, probability, atol=1e-5)
    np.testing.assert_allclose(outputs.pseudo.quality, quality, atol=1e-5)
    own, _ = voted(params["router"], features)
    np.testing.assert_allclose(sigmoid(outputs.routing.votes), own, atol=1e-5)
    assert np.abs(own - probability).max() > 0.01


def test_pseudo_labels_carry_no_gradient():
    for leaf in jax.tree.leaves(taught()[2]):
        np.testing.assert_array_equal(leaf, 0)
