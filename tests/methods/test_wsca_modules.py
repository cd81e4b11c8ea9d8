"""The whole model: every setting of its modules works, and what is enabled is alive."""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict
from tiny_model import COLOURFUL, build, evaluate, evaluator, make_batch, make_state, make_variables

from wsca_jax.engine.optimizer import Optimizer
from wsca_jax.engine.sharding import Layout, make_mesh
from wsca_jax.engine.state import TrainState
from wsca_jax.engine.step import _pass, compile_train_step
from wsca_jax.losses import composite
from wsca_jax.losses.pseudo_labels import held_out
from wsca_jax.methods.base import Method

# What can be switched off: a module by its section, a loss by its weight.
SWITCHES = {
    "frequency": ("--config.model.frequency=None",),
    "mavd": ("--config.model.router=None",),
    "winner": ("--config.model.decomposer=None",),
    "cmdl": ("--config.loss.weights.cmdl=0.0",),
    "cal": ("--config.model.alignment=None",),
}
TERMS_OF = {
    "frequency": {"frequency"},
    "mavd": {"mavd", "pseudo"},
    "winner": {"hierarchy", "graph"},
    "cmdl": {"cmdl"},
    "cal": {"cal"},
}
# Rows in which every pair of switches takes all four settings.
PAIRWISE = ("00000", "01111", "10110", "11001", "11100", "00011")
TEXT = " and text"
TRAINED = ("11111", *PAIRWISE, f"11111{TEXT}")


def method_of(bits, *overrides, **kwargs):
    off = [o for bit, o in zip(bits, SWITCHES.values(), strict=True) if bit == "0"]
    named = {"--config.model.frequency=None": "frequency", "--config.model.router=None": "router"}
    named |= {"--config.model.decomposer=None": "decomposer", "--config.model.alignment=None": "alignment"}
    without = tuple(named[o[0]] for o in off if o[0] in named)
    return build(*(o[0] for o in off if o[0] not in named), *overrides, without=without, **kwargs)


def test_the_chosen_rows_cover_every_pair():
    for a, b in itertools.combinations(range(5), 2):
        assert {(row[a], row[b]) for row in PAIRWISE} == set(itertools.product("01", repeat=2))


@pytest.mark.parametrize("bits", ["".join(bits) for bits in itertools.product("01", repeat=5)])
def test_every_setting_has_its_outputs_and_its_terms(bits):
    method = method_of(bits)
    batch = make_batch(method)
    variables = jax.eval_shape(lambda: method.init(jax.random.key(0), batch))

    def total(variables):
        prepared = method.augment(batch, None)
        rngs = {name: jax.random.key(0) for name in method.rng_names}
        outputs, _ = method.forward(method.model, variables, variables, prepared, jnp.int32(5), True, rngs)
        return composite.combine(method.terms, {}, outputs, prepared, jnp.int32(5)), outputs

    combined, outputs = jax.eval_shape(total, dict(variables))
    enabled = {name for name, bit in zip(SWITCHES, bits, strict=True) if bit == "1"}
    expected = {"classification"}.union(*(TERMS_OF[name] for name in enabled))
    assert set(combined.terms) == expected
    assert (outputs.frequency is not None) == ("frequency" in enabled)
    assert (outputs.routing is not None) == ("mavd" in enabled) == (outputs.pseudo is not None)
    assert (outputs.decomposition is not None) == ("winner" in enabled)
    assert (outputs.alignment is not None) == ("cal" in enabled)
    assert outputs.logits.shape == batch.labels.shape


def test_without_averaged_parameters_training_still_watches_held_out_entries():
    """Not the fitted ones, which evaluation watches with the others."""
    overrides = ("--config.loss.weights.pseudo=0.0", "--config.optimizer.ema_decay=0.0")
    method = build(*overrides, without=("frequency", "encoder", "text", "decomposer", "alignment"))
    batch = make_batch(method, known=1.0)
    variables = make_variables(method, batch)

    def measure(train):
        prepared = method.augment(batch, None)
        rngs = {name: jax.random.key(0) for name in method.rng_names}
        outputs, _ = method.forward(method.model, variables, None, prepared, jnp.int32(5), train, rngs)
        return method.gauges.measure(outputs, prepared, jnp.int32(5))["vote_entries"].sum()

    entries = held_out(batch.index, method.schema.num_attributes, 0.3)
    assert float(jax.jit(measure, static_argnums=0)(True)) == entries.sum()
    assert float(jax.jit(measure, static_argnums=0)(False)) == batch.known.size


class Run(NamedTuple):
    """A method, what a run of it begins with, and its training step, compiled once."""

    method: Method
    optimizer: Optimizer
    layout: Layout
    start: TrainState
    step: Callable[..., Any]

    def train(self, batches):
        """The state after these batches, and the reports of them."""
        state, reports = jax.tree.map(jnp.copy, self.start), []  # a step takes its state's memory
        for batch in batches:
            state, report = self.step(state, batch)
            reports.append(jax.device_get(report))
        return state, reports


def tokens_of(bits):
    """How many text tokens a batch of that setting has."""
    return 32 if bits.endswith(TEXT) else None


@functools.cache
def run_of(bits):
    """A digit for each switch; with `TEXT` behind them the model reads captions, in two blocks."""
    text = ("--config.model.encoder.depth=2",) if bits.endswith(TEXT) else ()
    method = method_of(bits.removesuffix(TEXT), *text, captions="source" if text else "none")
    batch = make_batch(method, length=tokens_of(bits))
    start, optimizer, layout = make_state(method, batch, learning_rate=1e-2)
    return Run(method, optimizer, layout, start, compile_train_step(method, optimizer, layout, start, seed=0))


@functools.cache
def trained(bits, steps=10):
    """A state after some steps, and the reports of them."""
    run = run_of(bits)
    batches = [make_batch(run.method, length=tokens_of(bits), seed=i) for i in range(3)]
    state, reports = run.train(batches[i % len(batches)] for i in range(steps))
    return run.method, state, batches, reports


@functools.cache
def gradients_of(bits):
    """(state, batch) -> the gradient of every parameter, compiled once."""
    method, optimizer, layout, _, _ = run_of(bits)
    keys = {name: jax.random.key(1) for name in ("augment", *method.rng_names)}
    return jax.jit(lambda state, batch: _pass(state, batch, method, optimizer, layout, keys).gradients)


@pytest.mark.slow
@pytest.mark.parametrize("bits", TRAINED)
def test_a_setting_trains_and_evaluates(bits):
    method, state, batches, reports = trained(bits)
    assert all(report.finite for report in reports)
    assert reports[-1].terms["classification"] < reports[0].terms["classification"]
    outputs = evaluator(method)
    first = outputs(state.evaluation_variables, batches[0])
    second = outputs(state.evaluation_variables, batches[0])
    assert np.isfinite(first.logits).all()
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(a, b)
    order = np.random.default_rng(3).permutation(len(batches[0].weight))
    shuffled = outputs(state.evaluation_variables, jax.tree.map(lambda x: x[order], batches[0]))
    np.testing.assert_allclose(shuffled.logits, first.logits[order], atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("bits", TRAINED)
def test_no_setting_learns_from_hidden_labels(bits):
    run = run_of(bits)
    batches = [make_batch(run.method, length=tokens_of(bits), seed=i) for i in range(4)]
    before, _ = run.train(batches)
    after, _ = run.train(flipped(batch, ~batch.known) for batch in batches)
    jax.tree.map(np.testing.assert_array_equal, before.params, after.params)
    known, _ = run.train(flipped(batch, batch.known) for batch in batches)
    assert not np.array_equal(known.params["heads"]["kernel"], before.params["heads"]["kernel"])


@pytest.mark.slow
@pytest.mark.parametrize("bits", TRAINED)
def test_every_parameter_of_an_enabled_module_gets_a_gradient(bits):
    """By the optimiser's second moment: a mean of squares, in which no gradient cancels another."""
    _, state, _, _ = trained(bits)
    params = flatten_dict(state.params, sep="/")
    squares = flatten_dict(optax.tree.get(state.opt_state, "nu"), sep="/")
    assert params.keys() == squares.keys()
    size = {
        path: float(jnp.sqrt(squares[path].sum()) / (jnp.linalg.norm(params[path]) + 1e-3)) for path in params
    }
    dead = {path: found for path, found in size.items() if found < 1e-7}
    assert not dead
    reads_text = ("encoder/text/", "/visual_from_text/", "/text_from_visual/", "captions/")
    assert all(any(part in path for path in params) == bits.endswith(TEXT) for part in reads_text)


@pytest.mark.slow
def test_classification_alone_reaches_every_module():
    weights = [f"--config.loss.weights.{t}=0.0" for t in composite.TERM_NAMES if t != "classification"]
    method = build(*weights, without=("alignment",))
    batch = make_batch(method)
    state, optimizer, layout = make_state(method, batch)
    keys = {name: jax.random.key(1) for name in ("augment", *method.rng_names)}
    passed = jax.jit(lambda: _pass(state, batch, method, optimizer, layout, keys))()
    for module in ("router", "decomposer", "frequency", "encoder"):
        leaves = jax.tree.leaves(passed.gradients[module])
        assert max(float(jnp.abs(leaf).max()) for leaf in leaves) > 1e-5, module
    np.testing.assert_array_equal(passed.combined.total, passed.combined.terms["classification"])


@functools.cache
def untrained():
    """Every module with random parameters, a batch, and what (variables, batch) come to, compiled once."""
    method = method_of("11111")
    batch = make_batch(method)
    return make_variables(method, batch), batch, evaluator(method)


def test_permuting_the_images_permutes_the_predictions():
    variables, batch, outputs = untrained()
    order = np.random.default_rng(3).permutation(len(batch.weight))
    shuffled = jax.tree.map(lambda x: x[order], batch)
    whole = outputs(variables, batch).logits
    np.testing.assert_allclose(outputs(variables, shuffled).logits, whole[order], atol=1e-5)


@pytest.mark.slow
def test_images_of_other_labels_lose_the_accuracy():
    """Nothing but the images can tell it, in a run of 50 steps."""
    run = run_of("11111")
    state, _ = run.train(make_batch(run.method, known=1.0, seed=seed) for seed in range(50))
    fresh = make_batch(run.method, rows=64, known=1.0, seed=50)

    outputs = evaluator(run.method)

    def accuracy(images):
        logits = outputs(state.evaluation_variables, fresh._replace(image=images)).logits
        return ((logits > 0) == (fresh.labels > 0))[:, :COLOURFUL].mean()

    assert accuracy(fresh.image) > 0.8
    assert accuracy(np.roll(fresh.image, 1, axis=0)) < 0.6


def test_routing_is_without_noise_in_evaluation_and_sums_to_one():
    variables, batch, outputs = untrained()
    routing = outputs(variables, batch).routing
    np.testing.assert_allclose(routing.probabilities.sum(-1), 1, atol=1e-6)


@pytest.mark.slow
def test_pseudo_labels_are_used_and_hidden_labels_are_not():
    _, state, batches, reports = trained("11111")
    assert reports[-1].terms["pseudo"] > 0
    changed = flipped(batches[0], ~batches[0].known)
    before, after = (gradients_of("11111")(state, batch) for batch in (batches[0], changed))
    jax.tree.map(np.testing.assert_array_equal, before, after)


@pytest.mark.slow
def test_held_out_labels_teach_the_quality_of_votes_and_nothing_else():
    """Before pseudo labels are accepted; how many may be follows all known labels, the held-out ones too."""
    run = run_of("11111")
    batch = make_batch(run.method)
    entries = batch.known & held_out(batch.index, run.method.schema.num_attributes, 0.3)
    before, after = (
        flatten_dict(jax.device_get(gradients_of("11111")(run.start, batch)), sep="/")
        for batch in (batch, flipped(batch, entries))
    )
    assert {path for path in before if np.any(before[path] != after[path])} == {
        f"router/{name}"
        for name in (
            "slope_scale",
            "sign_bias",
            *(f"quality_{layer}/{kind}" for layer in ("hidden", "output") for kind in ("kernel", "bias")),
        )
    }


def flipped(batch, entries):
    return batch._replace(labels=np.where(entries, 1 - batch.labels, batch.labels))


@pytest.mark.slow
def test_one_and_eight_devices_agree_on_the_whole_model():
    method = method_of("11111")
    batch = make_batch(method, rows=16)
    losses = []
    for layout in (Layout(make_mesh(devices=jax.devices()[:1])), Layout(make_mesh(data=4, fsdp=2))):
        state, optimizer, _ = make_state(method, batch, layout)
        step = compile_train_step(method, optimizer, layout, state, seed=0)
        found = []
        for _ in range(4):
            state, report = step(state, jax.device_put(batch, layout.batch))
            found.append(float(report.loss))
        losses.append(found)
    np.testing.assert_allclose(losses[0], losses[1], rtol=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["trend", "uncertainty"])
def test_dynamic_weights_run_with_the_whole_model(kind):
    method = build(f"--config.loss.balancing.kind={kind}", "--config.loss.balancing.fast=0.1")
    batch = make_batch(method)
    state, optimizer, layout = make_state(method, batch)
    step = compile_train_step(method, optimizer, layout, state, seed=0)
    for _ in range(5):
        state, report = step(state, batch)
    assert report.finite
    assert float(report.weights["classification"]) == 1.0
    configured = {term.name: term.weight for term in method.terms}
    assert float(report.weights["cal"]) != pytest.approx(configured["cal"])


@pytest.mark.slow
def test_text_is_read_where_there_is_some_and_not_needed():
    method = build(captions="source")
    batch = make_batch(method, length=32)
    state, _, _ = make_state(method, batch)
    named = flatten_dict(state.params, sep="/")
    assert any("text" in path for path in named)
    blank = batch._replace(tokens=np.zeros_like(batch.tokens))
    outputs = evaluator(method)
    with_text = outputs(state.variables, batch).logits
    without = outputs(state.variables, blank).logits
    never = outputs(state.variables, batch._replace(tokens=None)).logits
    assert np.abs(with_text - without).max() > 1e-4
    np.testing.assert_allclose(without, never, atol=1e-6)
    assert not any(
        "text" in path for path in flatten_dict(make_state(build(), make_batch(method))[0].params, sep="/")
    )


@pytest.mark.slow
@pytest.mark.parametrize("dropped", [0.0, 0.9])
def test_captions_teach_the_images_that_have_not_read_them(dropped):
    method = build(f"--config.model.encoder.text_dropout={dropped}", captions="source")
    batch = make_batch(method, length=32)
    batch.tokens[:3] = 0
    state, optimizer, layout = make_state(method, batch)
    method = dataclasses.replace(method, terms=[t for t in method.terms if t.name == "cal"])
    keys = {name: jax.random.key(1) for name in ("augment", *method.rng_names)}
    passed = jax.jit(lambda: _pass(state, batch, method, optimizer, layout, keys))()
    reached = {
        module: max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(passed.gradients[module]))
        for module in ("captions", "trunk")
    }
    assert (reached["captions"] > 1e-5) == (dropped > 0)
    assert reached["trunk"] == 0  # without model.token_gradient
    outputs = evaluate(method, state.variables, batch)
    assert not outputs.captions.unread.any()  # in evaluation a text that is given is read
    assert evaluate(method, state.variables, batch._replace(tokens=None)).captions is None


@pytest.mark.slow
def test_the_whole_teacher_looks_at_the_images_as_they_are_and_the_model_at_distorted_ones():
    others = ("frequency", "encoder", "text", "decomposer", "alignment")
    method = build("--config.loss.whole_teacher=True", "--config.distortion=default", without=others)
    batch = make_batch(method)
    state, _, _ = make_state(method, batch)
    teacher = jax.tree.map(lambda x: x + 0.1, state.variables)
    keys = {name: jax.random.key(1) for name in method.rng_names}

    @jax.jit
    def train(variables):
        prepared = method.augment(batch, None)
        return method.forward(method.model, variables, teacher, prepared, jnp.int32(0), True, keys)[0]

    outputs, evaluated = train(state.variables), evaluator(method)
    expected = evaluated(teacher, batch).routing
    np.testing.assert_allclose(outputs.pseudo.probability, jax.nn.sigmoid(expected.votes), atol=1e-5)
    np.testing.assert_allclose(outputs.pseudo.quality, jax.nn.sigmoid(expected.quality), atol=1e-5)
    undistorted = evaluated(state.variables, batch)  # this trunk knows no statistics of batches
    assert float(jnp.abs(outputs.stages.c2 - undistorted.stages.c2).mean()) > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("captions", ["phrases", "none"])
def test_phrases_make_the_prototypes(captions):
    """With or without captions beside the images; the tower learns from them."""
    method = build("--config.model.phrase_prototypes=True", captions=captions)
    batch = make_batch(method, length=32 if captions == "phrases" else None)
    state, optimizer, layout = make_state(method, batch)
    assert "prototypes" not in state.params["alignment"]
    reads = any("text_from" in path or "from_text" in path for path in flatten_dict(state.params, sep="/"))
    assert reads == ("captions" in state.params) == (captions == "phrases")
    prototypes = evaluate(method, state.variables, batch).alignment.prototypes
    first, *others = method.model.phrases
    changed = dataclasses.replace(method, model=method.model.clone(phrases=(first[::-1], *others)))
    moved = evaluate(changed, state.variables, batch).alignment.prototypes - prototypes
    assert prototypes.shape == (36, 8)
    assert np.abs(moved[0]).max() > 1e-4
    assert not moved[1:].any()
    only = dataclasses.replace(method, terms=[term for term in method.terms if term.name == "cal"])
    keys = {name: jax.random.key(1) for name in ("augment", *method.rng_names)}
    passed = jax.jit(lambda: _pass(state, batch, only, optimizer, layout, keys))()
    tower = flatten_dict(passed.gradients["encoder"]["text"], sep="/")
    assert all(np.abs(gradient).max() > 0 for gradient in tower.values())
