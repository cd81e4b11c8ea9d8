"""The optimiser against figures worked out by hand."""

import jax.numpy as jnp
import numpy as np
import pytest
from tiny_method import Run, make_batch, make_method

from wsca_jax.engine.optimizer import (
    OptimizerOptions,
    decay_mask,
    make_optimizer,
    make_schedule,
    matching_paths,
    merge,
)
from wsca_jax.errors import WscaError

PARAMS = {
    "trunk": {
        "conv": {"kernel": jnp.ones((3, 3, 2, 4))},
        "norm": {"scale": jnp.ones(4), "bias": jnp.ones(4)},
    },
    "heads": {"kernel": jnp.ones((2, 4, 3)), "bias": jnp.ones((2, 3))},
    "branches": {"norm_scale": jnp.ones((2, 4)), "logit_temperature": jnp.ones((2, 1))},
    "tokens": {"position": jnp.ones((4, 8))},
    "temperature": jnp.ones(()),
}


def rates(total_steps, steps, **options):
    schedule = make_schedule(OptimizerOptions(learning_rate=0.8, **options), total_steps)
    return [float(schedule(jnp.int32(step))) for step in steps]


def test_schedule_figures():
    # Warm-up of 4 steps, then half a cosine over 8: cos(pi/4) and cos(pi/2) on the way.
    cosine = rates(12, (0, 1, 4, 6, 8, 12, 20), warmup_steps=4)
    quarter = 0.8 * (1 + np.cos(np.pi / 4)) / 2
    np.testing.assert_allclose(cosine, [0.0, 0.2, 0.8, quarter, 0.4, 0.0, 0.0], atol=1e-7)
    np.testing.assert_allclose(rates(12, (8, 12), warmup_steps=4, final_fraction=0.5), [0.6, 0.4], rtol=1e-6)
    assert rates(40, (2, 4, 22), warmup_fraction=0.1) == pytest.approx([0.4, 0.8, 0.4])
    assert rates(12, (0, 6, 12)) == pytest.approx([0.8, 0.4, 0.0])
    assert rates(12, (0, 2, 4, 12), warmup_steps=4, schedule="constant") == pytest.approx(
        [0.0, 0.4, 0.8, 0.8]
    )


def test_the_rate_that_is_reported_is_the_one_that_is_used():
    run = Run(warmup_steps=2, total_steps=10, weight_decay=0.0, clip_norm=0.0)
    before = run.host().params["head"]["kernel"]
    assert run.step(make_batch(0)).learning_rate == 0.0
    np.testing.assert_array_equal(run.state.params["head"]["kernel"], before)
    assert run.step(make_batch(0)).learning_rate == np.float32(0.025)
    # The same batch at the same parameters twice: both moments' bias corrections cancel, a step is the rate.
    moved = np.abs(np.asarray(run.state.params["head"]["kernel"]) - before)
    np.testing.assert_allclose(moved, 0.025, rtol=1e-3)


def test_decay_spares_biases_norms_and_temperatures():
    mask = decay_mask(PARAMS, undecayed=("tokens/position",))
    assert mask == {
        "trunk": {"conv": {"kernel": True}, "norm": {"scale": False, "bias": False}},
        "heads": {"kernel": True, "bias": False},
        "branches": {"norm_scale": False, "logit_temperature": False},
        "tokens": {"position": False},
        "temperature": False,
    }
    assert decay_mask(PARAMS)["tokens"]["position"]


@pytest.mark.parametrize("name", ["adamw", "lamb", "lars"])
def test_without_gradients_only_decayed_parameters_move(name):
    options = OptimizerOptions(name=name, learning_rate=0.1, weight_decay=0.5, schedule="constant")
    optimizer = make_optimizer(options, 10)
    zeros = {"layer": {"kernel": jnp.zeros((2, 2)), "bias": jnp.zeros(2)}}
    params = {"layer": {"kernel": jnp.full((2, 2), 2.0), "bias": jnp.full(2, 2.0)}}
    new, _ = optimizer.update(zeros, optimizer.init(params), params)
    np.testing.assert_array_equal(new["layer"]["bias"], params["layer"]["bias"])
    # adamw: 2 - 0.1 * 0.5 * 2. lamb: the update 1 scaled to the parameter's norm: 2 - 0.1 * 2.
    # lars: that times its trust coefficient 0.001.
    expected = {"adamw": 1.9, "lamb": 1.8, "lars": 2 - 0.1 * 0.001 * 2}[name]
    np.testing.assert_allclose(new["layer"]["kernel"], expected, rtol=1e-6)


def large_batch_steps(name, gradients, params, *, rate, decay, b1, b2, eps):
    """Steps of LARS and LAMB in NumPy; arrays of two axes are decayed and have a trust ratio."""
    params = {path: np.array(x, np.float64) for path, x in params.items()}
    first = {path: np.zeros_like(x) for path, x in params.items()}
    second = {path: np.zeros_like(x) for path, x in params.items()}
    for t, gradient in enumerate(gradients, start=1):
        for path, x in params.items():
            g, layer = np.asarray(gradient[path], np.float64), x.ndim == 2
            if name == "lamb":
                first[path] = b1 * first[path] + (1 - b1) * g
                second[path] = b2 * second[path] + (1 - b2) * g**2
                g = first[path] / (1 - b1**t) / (np.sqrt(second[path] / (1 - b2**t)) + eps)
            update = g + decay * x * layer
            ratio = np.linalg.norm(x) / np.linalg.norm(update) if layer else 1.0
            if name == "lars":
                update = (0.001 if layer else 1.0) * ratio * update
                first[path] = b1 * first[path] + rate * update
                params[path] = x - first[path]
            else:
                params[path] = x - rate * ratio * update
    return params


@pytest.mark.parametrize("name", ["lars", "lamb"])
def test_trust_ratios_by_hand(name):
    """Kernels step in proportion to their norm; a bias and a scale as if there were no ratio."""
    settings = {"b1": 0.8, "b2": 0.9, "eps": 1e-6}
    options = OptimizerOptions(
        name, learning_rate=0.3, weight_decay=0.05, schedule="constant", clip_norm=0.0, **settings
    )
    optimizer = make_optimizer(options, 10)
    random = np.random.default_rng(0)
    shapes = {"kernel": (3, 4), "bias": (4,), "scale": (4,)}

    def draw():
        return {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}

    start, gradients = draw() | {"bias": np.full(4, 1e-3, np.float32)}, [draw() for _ in range(4)]
    params = {"layer": {name: jnp.asarray(x) for name, x in start.items()}}
    state = optimizer.init(params)
    for gradient in gradients:
        params, state = optimizer.update({"layer": gradient}, state, params)
    expected = large_batch_steps(name, gradients, start, rate=0.3, decay=0.05, **settings)
    for path, x in expected.items():
        np.testing.assert_allclose(params["layer"][path], x, rtol=2e-5, atol=1e-6, err_msg=path)


def test_clipping_by_hand():
    """Gradients (3, 4) have norm 5; clipped to 1 they are (0.6, 0.8). LARS on biases shows them plainly."""
    options = OptimizerOptions(name="lars", learning_rate=1.0, weight_decay=0.0, schedule="constant", b1=0.0)
    optimizer = make_optimizer(options, 10)
    params = {"a": {"bias": jnp.zeros(1)}, "b": {"bias": jnp.zeros(1)}}
    gradients = {"a": {"bias": jnp.array([3.0])}, "b": {"bias": jnp.array([4.0])}}
    new, _ = optimizer.update(gradients, optimizer.init(params), params)
    np.testing.assert_allclose([new["a"]["bias"][0], new["b"]["bias"][0]], [-0.6, -0.8], rtol=1e-6)
    small = {"a": {"bias": jnp.array([0.3])}, "b": {"bias": jnp.array([0.4])}}
    new, _ = optimizer.update(small, optimizer.init(params), params)
    np.testing.assert_allclose([new["a"]["bias"][0], new["b"]["bias"][0]], [-0.3, -0.4], rtol=1e-6)


def test_the_clip_norm_is_that_of_trained_parameters():
    options = OptimizerOptions(name="lars", learning_rate=1.0, weight_decay=0.0, schedule="constant", b1=0.0)
    optimizer = make_optimizer(options, 10, frozen=("b/.*",))
    params = {"a": {"bias": jnp.zeros(1)}, "b": {"bias": jnp.full(1, -0.0)}}
    new, _ = optimizer.update({"a": {"bias": jnp.array([0.5])}}, optimizer.init(params), params)
    assert new["a"]["bias"][0] == -0.5
    assert new["b"]["bias"] is params["b"]["bias"]


def test_average_by_hand():
    optimizer = make_optimizer(OptimizerOptions(ema_decay=0.25), 10)
    ema = {"params": {"w": jnp.array([1.0])}, "batch_stats": {"mean": jnp.array([0.0])}}
    new = {"params": {"w": jnp.array([2.0])}, "batch_stats": {"mean": jnp.array([10.0])}}
    first = optimizer.average(ema, new, jnp.int32(0))  # decay (1 + 0) / (10 + 0) = 0.1
    np.testing.assert_allclose(first["params"]["w"], 0.1 * 1 + 0.9 * 2, rtol=1e-6)
    np.testing.assert_allclose(first["batch_stats"]["mean"], 0.1 * 0 + 0.9 * 10, rtol=1e-6)
    second = optimizer.average(ema, new, jnp.int32(1))  # 2 / 11
    np.testing.assert_allclose(second["params"]["w"], (2 * 1 + 9 * 2) / 11, rtol=1e-6)
    late = optimizer.average(ema, new, jnp.int32(1000))  # warmed up: 0.25
    np.testing.assert_allclose(late["params"]["w"], 0.25 * 1 + 0.75 * 2, rtol=1e-6)


def test_training_feeds_the_average():
    run = Run(ema_decay=0.9)
    before = run.host()
    for number in range(2):
        run.step(make_batch(number))
        after = run.host()
        decay = min(0.9, (1 + number) / (10 + number))
        for part in ("params", "batch_stats"):
            expected = (
                decay * before.ema[part]["norm"][("scale", "mean")[part == "batch_stats"]]
                + (1 - decay) * getattr(after, part)["norm"][("scale", "mean")[part == "batch_stats"]]
            )
            found = after.ema[part]["norm"][("scale", "mean")[part == "batch_stats"]]
            np.testing.assert_allclose(found, expected, rtol=1e-5)
        before = after
    assert run.state.evaluation_variables is run.state.ema
    assert Run().state.ema is None


def test_split_and_merge_are_inverse():
    optimizer = make_optimizer(OptimizerOptions(), 10, frozen=("trunk/.*", "temperature"))
    trained, frozen = optimizer.split(PARAMS)
    assert set(trained) == {"heads", "branches", "tokens"}
    assert set(frozen) == {"trunk", "temperature"}
    assert merge(trained, frozen) == PARAMS


def test_a_pattern_matches_whole_paths():
    assert matching_paths(PARAMS, ("heads/.*",), "frozen") == {"heads/kernel", "heads/bias"}
    assert matching_paths(PARAMS, ("(trunk|heads)/.*kernel",), "frozen") == {
        "trunk/conv/kernel",
        "heads/kernel",
    }
    with pytest.raises(WscaError, match="matches none"):
        matching_paths(PARAMS, ("heads",), "frozen")


def test_a_pattern_that_matches_nothing_is_named():
    with pytest.raises(
        WscaError, match=r"frozen: pattern 'trunc/\.\*' matches none of the 5 .*, such as .*kernel"
    ):
        Run(make_method(frozen=("head/.*", "trunc/.*")))
    with pytest.raises(WscaError, match=r"optimizer\.undecayed: pattern 'position' matches none"):
        Run(undecayed=("position",))
    with pytest.raises(WscaError, match=r"frozen: '\(' is no regular expression"):
        Run(make_method(frozen=("(",)))
    with pytest.raises(WscaError, match="leave no parameter to train"):
        Run(make_method(frozen=(".*",)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "adam"}, "optimizer.name is 'adam'; expected adamw, lars or lamb"),
        ({"schedule": "step"}, "optimizer.schedule is 'step'; expected cosine or constant"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0; expected a number above 0"),
        ({"clip_norm": -1.0}, "clip_norm is -1.0; expected 0 or more"),
        ({"ema_decay": 1.0}, "ema_decay is 1.0"),
        ({"warmup_fraction": 1.5}, "warmup_fraction is 1.5"),
        ({"warmup_steps": 5, "warmup_fraction": 0.1}, "both set"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(WscaError, match=message):
        OptimizerOptions(**options)


def test_warm_up_must_end_within_the_run():
    with pytest.raises(WscaError, match="warm-up takes 10 of 10 steps"):
        make_optimizer(OptimizerOptions(warmup_steps=10), 10)


@pytest.mark.parametrize(("rule", "expected"), [("linear", 0.8), ("root", 0.4)])
def test_the_rate_follows_the_batch(rule, expected):
    options = OptimizerOptions(learning_rate=0.2, base_batch_size=256, batch_scaling=rule)
    scaled = options.at_batch_size(1024)
    assert scaled.learning_rate == pytest.approx(expected)
    assert scaled.at_batch_size(1024) == scaled  # once
    assert OptimizerOptions(learning_rate=0.2).at_batch_size(1024).learning_rate == 0.2


@pytest.mark.parametrize("name", ["lars", "lamb"])
def test_large_batch_optimisers_learn(name):
    run = Run(name=name, learning_rate={"lars": 5.0, "lamb": 0.05}[name], clip_norm=0.0)
    values = [float(run.step(make_batch(0)).loss) for _ in range(25)]
    assert values[-1] < 0.9 * values[0]
