"""The figures that are watched, by hand."""

import types

import jax.numpy as jnp
import numpy as np
import pytest
from tiny_model import build, make_batch

from wsca_jax.methods.wsca_gauges import summarise


def outputs_of(votes, quality, probabilities, pseudo=None, edges=None, encoding=None):
    routing = types.SimpleNamespace(votes=votes, quality=quality, probabilities=probabilities)
    decomposition = types.SimpleNamespace(edges=edges)
    classifiers = {"groups": votes, "trunk": 2 * votes}
    return types.SimpleNamespace(
        routing=routing,
        decomposition=decomposition,
        pseudo=pseudo,
        classifiers=classifiers,
        encoding=encoding,
    )


def test_votes_routing_and_graph_by_hand():
    method = build(without=("frequency", "alignment"))
    attributes, groups = method.schema.num_attributes, method.schema.num_groups
    batch = make_batch(method, rows=4, known=1.0)._replace(weight=np.array([1, 1, 1, 0], np.float32))
    right = np.zeros((4, attributes), bool)
    right[:, : attributes // 4] = True  # a quarter of the votes is right
    votes = np.where((batch.labels > 0) == right, 1.0, -1.0).astype(np.float32)
    quality = np.where(right, 3.0, -3.0).astype(np.float32)
    probabilities = np.array([[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], np.float32)
    edges = np.full((4, groups, groups), 0.25, np.float32)
    found = method.gauges.measure(outputs_of(votes, quality, probabilities, edges=edges), batch, jnp.int32(9))
    figures = {name: float(value) for name, value in summarise(found).items()}
    sure = 1 / (1 + np.exp(-3.0))
    assert figures["vote_accuracy"] == pytest.approx(0.25)
    assert figures["confident_fraction"] == pytest.approx(0.25)
    assert figures["confident_accuracy"] == pytest.approx(1.0)
    assert figures["quality_ece"] == pytest.approx(1 - sure, rel=1e-4)
    assert figures["routing_largest_load"] == pytest.approx(2 / 3)
    assert figures["routing_entropy"] == pytest.approx(0, abs=1e-6)
    assert figures["graph_edge"] == pytest.approx(0.25)
    spread = np.sqrt(votes[:3].var(0).mean())
    assert figures["spread_groups"] == pytest.approx(spread, rel=1e-5)
    assert figures["spread_trunk"] == pytest.approx(2 * spread, rel=1e-5)


def test_accepted_pseudo_labels_are_a_share_of_the_unknown_entries():
    method = build(without=("frequency", "alignment", "decomposer"))
    batch = make_batch(method, rows=4)._replace(weight=np.array([1, 1, 0.5, 0], np.float32))
    accepted = ~batch.known & (np.arange(batch.known.shape[1]) % 3 == 0)
    shape = (4, *batch.labels.shape[1:])
    outputs = outputs_of(*np.zeros((2, *shape), np.float32), np.ones((4, 1), np.float32))
    outputs.pseudo = types.SimpleNamespace(accepted=accepted)
    found = summarise(method.gauges.measure(outputs, batch, jnp.int32(0)))["pseudo_accepted"]
    counts = batch.weight[:, None]
    assert float(found) == pytest.approx((counts * accepted).sum() / (counts * ~batch.known).sum(), rel=1e-5)


def test_in_evaluation_acceptance_is_judged_on_the_labels_that_are_known():
    """Eight examples, one attribute in two known; all votes are sure, one in four is positive: so is one in
    four of what is allowed, and all of it is taken. Attribute 0 is voted right, the others wrong."""
    method = build("--config.loss.accept.warmup_steps=0", without=("frequency", "alignment", "decomposer"))
    batch = make_batch(method, rows=8, known=1.0)
    shape, attributes = batch.labels.shape, np.arange(batch.labels.shape[1])
    positive = np.broadcast_to((np.arange(8) % 4 == 0)[:, None], shape)
    votes = np.where(positive, 40.0, -40.0).astype(np.float32)
    labels = np.where(attributes == 0, positive, ~positive).astype(np.uint8)
    known = np.broadcast_to(attributes % 2 == 0, shape)
    quality = np.where(attributes < 2, 4.0, -4.0) * np.ones(shape)  # only 0 and 1 lie above the threshold
    outputs = outputs_of(votes, quality.astype(np.float32), np.ones((8, 1), np.float32))
    batch = batch._replace(labels=labels * known, known=known)
    figures = summarise(method.gauges.measure(outputs, batch, jnp.int32(10**6)))
    assert float(figures["accepted_fraction"]) == pytest.approx(8 / known.sum())
    assert float(figures["accepted_accuracy"]) == 1.0
    wrong = batch._replace(labels=np.where(attributes == 0, 1 - labels, labels) * known)
    assert (
        float(summarise(method.gauges.measure(outputs, wrong, jnp.int32(10**6)))["accepted_accuracy"]) == 0.0
    )
    unsure = outputs_of(votes / 80, outputs.routing.quality, np.ones((8, 1), np.float32))  # q is 0.62 or 0.38
    fewer = float(summarise(method.gauges.measure(unsure, batch, jnp.int32(10**6)))["accepted_fraction"])
    assert round(fewer * known.sum()) in (6, 7)  # 2 of 3.5 positives, 4.5 of 6 negatives


def test_what_has_read_its_text_judges_no_vote():
    method = build(without=("frequency", "alignment", "decomposer"))
    batch = make_batch(method, rows=64, known=0.9)
    shape = batch.labels.shape
    read = np.arange(64) % 2 == 0
    votes = np.where((batch.labels > 0) == read[:, None], 1.0, -1.0).astype(np.float32)
    pseudo = types.SimpleNamespace(accepted=np.zeros(shape, bool))
    figures = {}
    for name, encoding in {"read": types.SimpleNamespace(read=read), "without": None}.items():
        outputs = outputs_of(
            votes, np.zeros(shape, np.float32), np.ones((64, 1), np.float32), pseudo, None, encoding
        )
        figures[name] = float(summarise(method.gauges.measure(outputs, batch, jnp.int32(0)))["vote_accuracy"])
    assert figures["read"] == 0.0
    assert 0.2 < figures["without"] < 0.8


def test_a_classifier_that_says_the_same_of_every_image_has_no_spread():
    method = build(without=("router", "decomposer", "alignment"))
    batch = make_batch(method, rows=64, known=1.0)
    still = np.random.default_rng(0).normal(-5, 1e-3, batch.labels.shape).astype(np.float32)
    outputs = types.SimpleNamespace(classifiers={"groups": still}, pseudo=None)
    figures = summarise(method.gauges.measure(outputs, batch, jnp.int32(0)))
    assert 0 <= figures["spread_groups"] < 5e-3


@pytest.mark.slow
def test_sums_of_two_batches_give_the_figures_of_both():
    method = build(without=("frequency", "alignment", "decomposer"))
    rng = np.random.default_rng(0)

    def measured(rows, seed):
        batch = make_batch(method, rows=rows, known=1.0, seed=seed)
        shape = batch.labels.shape
        probabilities = rng.dirichlet(np.ones(3), rows).astype(np.float32)
        votes, quality = rng.normal(size=(2, *shape)).astype(np.float32)
        return outputs_of(votes, quality, probabilities), batch

    (a, batch_a), (b, batch_b) = measured(3, 0), measured(5, 1)
    joined = outputs_of(
        *(
            np.concatenate([getattr(x.routing, n) for x in (a, b)])
            for n in ("votes", "quality", "probabilities")
        )
    )
    both = type(batch_a)(
        *(None if x is None else np.concatenate([x, y]) for x, y in zip(batch_a, batch_b, strict=True))
    )
    whole = method.gauges.measure(joined, both, jnp.int32(0))
    first, second = (method.gauges.measure(*pair, jnp.int32(0)) for pair in ((a, batch_a), (b, batch_b)))
    assert whole.keys() == first.keys()
    for name, value in whole.items():
        np.testing.assert_allclose(value, first[name] + second[name], rtol=1e-5, atol=1e-5)
