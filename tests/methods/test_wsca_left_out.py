"""A module taken out takes its own parameters, outputs and terms, and leaves the others as they were."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from tiny_model import MODULES, build, make_batch, make_variables

from wsca_jax.losses import composite

# Where the parameters lie that go with a module: its own and those of what reads it alone.
TEXT_OF_ENCODER = tuple(f"encoder/{name}/" for name in ("text", "block_0/text_norm", "block_0/visual_norm"))
TAKEN = {
    "frequency": ("frequency/", "fusion/", "heads/linear_frequency_"),
    "encoder": ("encoder/", "captions/"),
    "text": (*TEXT_OF_ENCODER, "encoder/block_0/visual_from_text/", "captions/"),
    "router": ("router/",),
    "decomposer": ("decomposer/",),
    "alignment": ("alignment/", "captions/"),
}


@functools.cache
def initial(find, *without):
    """{path: initial parameter}, found with or without computing it."""
    method = build(without=without, captions="source")
    batch = make_batch(method, length=32)
    key = jax.random.key(0, impl="unsafe_rbg")  # it compiles faster
    return flatten_dict(find(lambda key: method.init(key, batch)["params"], key), sep="/")


def compute(function, *arguments):
    return jax.device_get(jax.jit(function)(*arguments))


@pytest.mark.parametrize("module", MODULES)
def test_a_module_left_out_takes_its_own_parameters_and_no_others(module):
    whole, part = initial(jax.eval_shape), initial(jax.eval_shape, module)
    assert whole.keys() - part.keys() == {path for path in whole if path.startswith(TAKEN[module])}
    added = {"decomposer/queries"} if module == "encoder" else set()  # its nodes begin with something
    assert part.keys() - whole.keys() == added
    assert all(part[path].shape == whole[path].shape for path in part.keys() - added)


@pytest.mark.slow
@pytest.mark.parametrize("module", MODULES)
def test_a_module_left_out_leaves_the_others_as_they_begin(module):
    whole, part = initial(compute), initial(compute, module)
    for path in part.keys() & whole.keys():
        np.testing.assert_array_equal(part[path], whole[path], err_msg=path)


class Passed(NamedTuple):
    """A training pass: what the model returned, and every loss term."""

    outputs: Any
    terms: dict[str, Any]


@functools.cache
def passed_without(*without):
    """With the whole model's random parameters, as far as they are there, and the same random streams."""
    method = build("--config.model.dtype=float32", without=without)
    batch = make_batch(method)
    whole = build("--config.model.dtype=float32")
    drawn = make_variables(whole, batch)
    shapes = jax.eval_shape(lambda: method.init(jax.random.key(0), batch))
    needed = {kind: flatten_dict(tree).keys() for kind, tree in shapes.items()}
    variables = {
        kind: unflatten_dict({p: x for p, x in flatten_dict(tree).items() if p in needed[kind]})
        for kind, tree in drawn.items()
    }
    assert all(flatten_dict(variables[kind]).keys() == paths for kind, paths in needed.items())

    def run(variables, batch):
        prepared = method.augment(batch, None)
        rngs = dict(
            zip(whole.rng_names, jax.random.split(jax.random.key(1), len(whole.rng_names)), strict=True)
        )
        rngs = {name: rngs[name] for name in method.rng_names}
        outputs, _ = method.forward(method.model, variables, variables, prepared, jnp.int32(5), True, rngs)
        return Passed(outputs, composite.combine(method.terms, {}, outputs, prepared, jnp.int32(5)).terms)

    return compute(run, variables, batch)


ALWAYS = {"stages", "classifiers/trunk"}
# What does not read a module, directly or through others: it has to be what it was without it.
UNTOUCHED = {
    "frequency": (ALWAYS | {"alignment"}, set()),
    "router": (
        ALWAYS
        | {"tokens", "groups", "frequency", "encoding", "decomposition", "alignment"}
        | {"classifiers/refined", "classifiers/frequency"},
        {"frequency", "hierarchy", "graph", "cmdl"},
    ),
    "decomposer": (
        ALWAYS
        | {"tokens", "pooled", "groups", "frequency", "encoding", "routing", "pseudo", "alignment"}
        | {"classifiers/frequency"},
        {"frequency", "mavd", "cmdl", "cal"},
    ),
    "alignment": (
        ALWAYS
        | {"tokens", "pooled", "groups", "frequency", "encoding", "routing", "pseudo", "decomposition"}
        | {"logits", "classifiers/groups", "classifiers/refined", "classifiers/frequency"},
        set(composite.TERM_NAMES) - {"cal"},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("module", UNTOUCHED)
def test_a_module_left_out_leaves_what_does_not_read_it_as_it_was(module):
    whole, part = passed_without(), passed_without(module)
    outputs, terms = UNTOUCHED[module]
    for path in sorted(outputs):
        name, _, key = path.partition("/")
        before, after = getattr(whole.outputs, name), getattr(part.outputs, name)
        before, after = (before[key], after[key]) if key else (before, after)
        assert jax.tree.leaves(before), path
        for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5, err_msg=path)
    for name in terms:
        np.testing.assert_allclose(part.terms[name], whole.terms[name], rtol=1e-5, err_msg=name)
    if module != "alignment":  # it does change what reads it
        assert np.abs(part.outputs.logits - whole.outputs.logits).max() > 1e-3
