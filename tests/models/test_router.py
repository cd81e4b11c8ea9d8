"""The router: experts refine the pooled image and vote; a head says how often the vote is right."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxprs import operations

from wsca_jax.losses import routing
from wsca_jax.models.router import PseudoLabelRouter

B, D, A, E, C = 8, 12, 5, 3, 4
SETTINGS = {"experts": E, "clusters": C, "dropout": 0.5, "dtype": jnp.float32}
STREAMS = {"router": jax.random.key(7), "dropout": jax.random.key(8)}
QUALITY = {"quality_hidden", "quality_output", "slope_scale", "sign_bias"}


@pytest.fixture(scope="module")
def pooled():
    return jax.random.normal(jax.random.key(1), (B, D))


@pytest.fixture(scope="module")
def router():
    return PseudoLabelRouter(A, D, **SETTINGS)


@pytest.fixture(scope="module")
def initial(router, pooled):
    return jax.jit(functools.partial(router.init, train=False))(jax.random.key(0), pooled)


@pytest.fixture(scope="module")
def variables(initial):
    """Initial parameters, moved a little so that biases are not zero."""
    rng = np.random.default_rng(2)
    return jax.tree.map(lambda x: x + 0.1 * rng.normal(size=x.shape).astype(np.float32), initial)


@pytest.fixture(scope="module")
def evaluate(router):
    return jax.jit(functools.partial(router.apply, train=False))


@pytest.fixture(scope="module")
def train(router):
    return jax.jit(lambda variables, pooled, rngs: router.apply(variables, pooled, train=True, rngs=rngs))


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def dense(p, x):
    return x @ p["kernel"] + p["bias"]


def restated(p, x):
    """The router in evaluation, image by image and expert by expert."""
    normed = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    normed = normed * p["norm"]["scale"] + p["norm"]["bias"]
    assignment = softmax(normed @ p["centres"].T / np.sqrt(D))
    features = normed + assignment @ p["centres"]
    pi = softmax(dense(p["gate"], features))
    refined, votes = x.copy(), np.zeros((B, A)) + p["vote_bias"]
    for b in range(B):
        for k in range(E):
            hidden = np.maximum(features[b] @ p["hidden_kernel"][k] + p["hidden_bias"][k], 0)
            refined[b] += pi[b, k] * (hidden @ p["output_kernel"][k] + p["output_bias"][k])
            votes[b] += pi[b, k] * (hidden @ p["vote_kernel"][k])
    seen = dense(p["quality_output"], np.maximum(dense(p["quality_hidden"], features), 0))
    quality = p["slope_scale"] * np.abs(votes) + p["sign_bias"] * np.sign(votes) + seen
    return refined, pi, assignment, votes, quality, features


def test_equals_a_loop_over_images_and_experts(variables, pooled, evaluate):
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), variables["params"])
    expected = restated(params, np.asarray(pooled, np.float64))
    result = evaluate(variables, pooled)
    for name, value, reference in zip(result._fields, result, expected, strict=True):
        np.testing.assert_allclose(value, reference, atol=2e-5, err_msg=name)


def test_evaluation_is_bit_equal_and_needs_no_random_stream(variables, pooled, evaluate):
    jax.tree.map(np.testing.assert_array_equal, evaluate(variables, pooled), evaluate(variables, pooled))


def test_noise_in_training_moves_the_routing_alone(variables, pooled, evaluate, train):
    quiet = evaluate(variables, pooled)
    noisy = [train(variables, pooled, STREAMS | {"router": jax.random.key(n)}) for n in (1, 2)]
    for result in noisy:
        assert np.abs(result.probabilities - quiet.probabilities).max() > 0.02
        np.testing.assert_allclose(result.probabilities.sum(-1), 1.0, rtol=1e-6)
        for name in ("assignment", "votes", "quality", "features"):
            np.testing.assert_allclose(getattr(result, name), getattr(quiet, name), atol=1e-6, err_msg=name)
    assert np.abs(noisy[0].probabilities - noisy[1].probabilities).max() > 0.02
    assert np.abs(noisy[0].pooled - noisy[1].pooled).max() > 1e-3


def test_the_noise_starts_at_its_setting_and_scales_with_its_parameter(variables, pooled, evaluate, train):
    flat = jax.tree.map(lambda x: x, variables)
    flat["params"]["gate"] = jax.tree.map(jnp.zeros_like, flat["params"]["gate"])
    streams = [STREAMS | {"router": key} for key in jax.random.split(jax.random.key(5), 60)]

    def spread(scale):
        flat["params"]["noise_scale"] = np.full(E, scale, np.float32)
        log_pi = np.log(np.concatenate([train(flat, pooled, rngs).probabilities for rngs in streams]))
        return (log_pi - log_pi.mean(-1, keepdims=True)).std() / np.sqrt(1 - 1 / E)

    router = PseudoLabelRouter(A, D, **SETTINGS, gate_noise=0.7)
    initial = jax.jit(functools.partial(router.init, train=False))(jax.random.key(0), pooled)
    assert spread(initial["params"]["noise_scale"][0]) == pytest.approx(0.7, rel=0.08)
    assert spread(2.0) == pytest.approx(np.log1p(np.exp(2.0)), rel=0.08)


def test_probabilities_and_assignments_sum_to_one(variables, pooled, evaluate):
    result = evaluate(variables, 50.0 * pooled)
    np.testing.assert_allclose(result.probabilities.sum(-1), 1.0, rtol=1e-6)
    np.testing.assert_allclose(result.assignment.sum(-1), 1.0, rtol=1e-6)


def test_votes_on_given_features_are_the_forward_pass_own(router, variables, pooled, train):
    result = train(variables, pooled, STREAMS)
    again = jax.jit(functools.partial(router.apply, method="votes"))(variables, result.features)
    np.testing.assert_allclose(again[0], result.votes, atol=1e-6)
    np.testing.assert_allclose(again[1], result.quality, atol=1e-6)


def test_quality_starts_as_the_confidence_of_the_vote(initial, pooled, evaluate):
    result = evaluate(initial, pooled)
    np.testing.assert_allclose(result.quality, np.abs(result.votes), atol=0.5)
    assert np.corrcoef(result.quality.ravel(), np.abs(result.votes).ravel())[0, 1] > 0.9


def test_features_keep_more_directions_than_there_are_clusters(pooled):
    router = PseudoLabelRouter(A, D, **SETTINGS | {"clusters": 2})
    result, _ = jax.jit(functools.partial(router.init_with_output, train=False))(jax.random.key(0), pooled)
    assert np.linalg.matrix_rank(np.asarray(result.features), tol=1e-2) > 2 + 1


def gradient(router, variables, pooled, loss):
    """Gradient with respect to (parameters, pooled) of a loss of the routing in training."""

    def objective(variables, pooled):
        return loss(router.apply(variables, pooled, train=True, rngs=STREAMS))

    parameters, inputs = jax.jit(jax.grad(objective, argnums=(0, 1)))(variables, pooled)
    return parameters["params"], inputs


def reached(gradients):
    """Names of the parameters whose gradient is not 0."""
    paths = jax.tree_util.tree_leaves_with_path(gradients)
    return {path[0].key for path, leaf in paths if np.abs(leaf).max() > 1e-6}


def predicted(result):
    """A loss of the refined pooled image alone."""
    return jnp.mean((result.pooled - 1.0) ** 2)


def mavd(result, **coefficients):
    labels = jax.random.bernoulli(jax.random.key(3), 0.4, (B, A))
    held_out = jnp.arange(B * A).reshape(B, A) % 3 == 0
    return routing.router_loss(
        result.votes,
        result.quality,
        result.probabilities,
        labels,
        ~held_out,
        held_out,
        jnp.ones(B),
        **coefficients,
    )


def test_the_prediction_alone_trains_gate_clusters_and_experts(router, variables, pooled):
    parameters, _ = gradient(router, variables, pooled, predicted)
    expected = {"norm", "centres", "gate", "noise_scale", "hidden_kernel", "hidden_bias"}
    assert reached(parameters) == expected | {"output_kernel", "output_bias"}


def test_quality_learns_from_its_own_loss_alone_and_teaches_nothing_else(router, variables, pooled):
    others, _ = gradient(
        router, variables, pooled, lambda r: predicted(r) + mavd(r, quality_weight=0.0) + r.votes.sum()
    )
    assert not reached(others) & QUALITY
    own, inputs = gradient(router, variables, pooled, lambda r: r.quality.sum())
    assert reached(own) == QUALITY
    assert np.all(inputs == 0.0)


def test_every_parameter_has_a_gradient_from_the_start(router, initial, pooled):
    parameters, _ = gradient(router, initial, pooled, lambda r: predicted(r) + mavd(r))
    for path, leaf in jax.tree_util.tree_leaves_with_path(parameters):
        assert np.abs(leaf).max() > 1e-5, path
        # Entry by entry too, but for units that a ReLU holds shut in this small batch.
        assert np.mean(leaf != 0) > 0.5, path


@pytest.mark.slow
def test_a_training_run_of_the_losses_tells_good_votes_from_bad():
    """Attribute 0 shows in the image, attribute 1 is a coin: r must learn to say so."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=(512, D)).astype(np.float32)
    labels = np.stack([images[:, 0] > images[:, 1], rng.random(512) < 0.5], axis=1)
    held_out = rng.random((512, 2)) < 0.3
    router = PseudoLabelRouter(2, D, **SETTINGS)

    def loss(variables, key):
        streams = {"router": key, "dropout": key}
        r = router.apply(variables, images, train=True, rngs=streams)
        return routing.router_loss(
            r.votes, r.quality, r.probabilities, labels, ~held_out, held_out, jnp.ones(512)
        )

    @jax.jit
    def trained(variables):
        def step(state, key):
            variables, mean, square = state
            gradients = jax.grad(loss)(variables, key)
            mean = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, mean, gradients)
            square = jax.tree.map(lambda s, g: 0.99 * s + 0.01 * g * g, square, gradients)
            update = jax.tree.map(lambda m, s: 3e-3 * m / (jnp.sqrt(s) + 1e-6), mean, square)
            return (jax.tree.map(jnp.subtract, variables, update), mean, square), None

        zeros = jax.tree.map(jnp.zeros_like, variables)
        keys = jax.random.split(jax.random.key(1), 300)
        return jax.lax.scan(step, (variables, zeros, zeros), keys)[0][0]

    fresh = rng.normal(size=(2000, D)).astype(np.float32)
    variables = trained(jax.jit(functools.partial(router.init, train=False))(jax.random.key(0), images))
    result = jax.jit(functools.partial(router.apply, train=False))(variables, fresh)
    quality = np.asarray(jax.nn.sigmoid(result.quality))
    right = np.asarray(result.votes[:, 0] > 0) == (fresh[:, 0] > fresh[:, 1])
    assert right.mean() > 0.85
    assert quality[:, 0].mean() == pytest.approx(right.mean(), abs=0.06)
    assert quality[:, 1].mean() == pytest.approx(0.5, abs=0.12)
    np.testing.assert_allclose(result.probabilities.mean(0), 1 / E, atol=0.2)


def test_permuting_images_permutes_everything(variables, pooled, evaluate):
    order = jax.random.permutation(jax.random.key(4), B)
    moved, still = evaluate(variables, pooled[order]), evaluate(variables, pooled)
    jax.tree.map(lambda m, s: np.testing.assert_allclose(m, s[order], atol=1e-6), moved, still)


def test_a_batch_spread_over_devices_gives_what_one_device_gives(variables, pooled, train):
    mesh = Mesh(np.asarray(jax.devices()), ("batch",))
    spread = jax.device_put(pooled, NamedSharding(mesh, PartitionSpec("batch")))
    variables = jax.device_put(variables, NamedSharding(mesh, PartitionSpec()))
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6),
        train(variables, spread, STREAMS),
        train(jax.device_get(variables), jax.device_get(pooled), STREAMS),
    )


def count_operations(function, *arguments):
    return len(list(operations(jax.make_jaxpr(function)(*arguments).jaxpr)))


def test_the_program_does_not_grow_with_experts_attributes_or_clusters(pooled):
    def size(attributes, experts, clusters):
        router = PseudoLabelRouter(attributes, D, **SETTINGS | {"experts": experts, "clusters": clusters})
        shapes = jax.eval_shape(functools.partial(router.init, train=False), jax.random.key(0), pooled)
        return count_operations(lambda v: router.apply(v, pooled, train=True, rngs=STREAMS), shapes)

    assert size(5, 2, 2) == size(50, 16, 32) > 20


def test_dtypes_in_bfloat16_compute(pooled):
    router = PseudoLabelRouter(A, D)
    initialise = functools.partial(router.init_with_output, train=False)
    result, variables = jax.eval_shape(initialise, jax.random.key(0), pooled.astype(jnp.bfloat16))
    assert result.pooled.dtype == result.features.dtype == jnp.bfloat16
    for name in ("probabilities", "assignment", "votes", "quality"):
        assert getattr(result, name).dtype == jnp.float32, name
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize(
    "setting",
    [{"experts": 1}, {"clusters": 1}, {"quality_size": 0}, {"expert_ratio": 0.0}, {"gate_noise": 0.0}],
)
def test_settings_out_of_range_are_named(setting):
    (name,) = setting
    with pytest.raises(ValueError, match=name):
        PseudoLabelRouter(A, D, **setting)
