"""What a dry run finds: everything about a training run that follows from shapes alone."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from input_pipeline.batch import AttributeBatch
from wsca_jax.engine import state as states
from wsca_jax.engine.optimizer import Optimizer, decay_mask, matching_paths
from wsca_jax.engine.sharding import Layout
from wsca_jax.engine.state import TrainState
from wsca_jax.inspection import memory
from wsca_jax.inspection.multiply_adds import Path, multiply_adds
from wsca_jax.losses.composite import TERM_NAMES
from wsca_jax.methods.base import Method


@dataclasses.dataclass(frozen=True)
class ArrayInfo:
    """An array that does not exist yet."""

    path: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def bytes(self) -> int:
        return memory.array_bytes(self.shape, self.dtype)


@dataclasses.dataclass(frozen=True)
class Parameter(ArrayInfo):
    """A parameter; `decayed` by the optimiser's weight decay, `frozen` or trained."""

    decayed: bool
    frozen: bool

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclasses.dataclass(frozen=True)
class LossTerm:
    """A loss term there could be; weight 0 means that it is not computed.

    `exact` says whether gradient accumulation gives the large batch's value; None where it is not computed.
    """

    name: str
    weight: float
    exact: bool | None


@dataclasses.dataclass(frozen=True)
class Inspection:
    """A training run before it runs.

    Attributes:
      batch: the fields of the global batch.
      parameters: every parameter, by path.
      outputs: what the model returns in training, for the global batch.
      terms: every loss term there is.
      frozen: {pattern: number of parameters it freezes}.
      multiply_adds: {module path: multiply-adds of its own} in the forward pass of one image.
      without_text: the same of an image without text; None where the batch has none.
      memory: {purpose: bytes on each device}; see `memory.per_device`.
      mesh: {axis: devices}.
    """

    batch: tuple[ArrayInfo, ...]
    parameters: tuple[Parameter, ...]
    outputs: tuple[ArrayInfo, ...]
    terms: tuple[LossTerm, ...]
    frozen: dict[str, int]
    multiply_adds: dict[Path, int]
    without_text: dict[Path, int] | None
    memory: dict[str, int]
    mesh: dict[str, int]


def inspect_run(
    method: Method, optimizer: Optimizer, batch: AttributeBatch, layout: Layout, *, accumulate: int = 1
) -> Inspection:
    """Traces a run; computes, allocates and reads nothing.

    Args:
      method: the model and its loss terms.
      optimizer: what it trains and decays.
      batch: shapes and dtypes of the global batch, as `jax.ShapeDtypeStruct`s.
      layout: of the devices the run is meant for; an abstract mesh will do.
      accumulate: microbatches per optimiser step.

    Raises:
      WscaError: a pattern of frozen or undecayed parameters matches nothing, or the batch does not divide.
    """
    layout.check_batch_size(len(batch.weight), accumulate)
    state = states.abstract(method, optimizer, batch, seed=0, layout=layout)
    return Inspection(
        batch=_arrays(batch),
        parameters=_parameters(state.params, optimizer),
        outputs=_arrays(_outputs(method, state, batch)),
        terms=_terms(method),
        frozen=_frozen(state.params, optimizer),
        multiply_adds=forward_multiply_adds(method, state, batch),
        without_text=None
        if batch.tokens is None
        else forward_multiply_adds(method, state, batch._replace(tokens=None)),
        memory=memory.per_device(method, optimizer, state, batch, layout, accumulate),
        mesh=dict(layout.mesh.shape),
    )


def _arrays(tree: Any) -> tuple[ArrayInfo, ...]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return tuple(
        ArrayInfo(jax.tree_util.keystr(path, simple=True, separator="/"), leaf.shape, str(leaf.dtype))
        for path, leaf in leaves
    )


def _parameters(params: Any, optimizer: Optimizer) -> tuple[Parameter, ...]:
    decays = optimizer.options.weight_decay > 0
    mask = flatten_dict(decay_mask(params, optimizer.options.undecayed), sep="/")
    frozen = matching_paths(params, optimizer.frozen, "frozen")
    return tuple(
        Parameter(
            path,
            leaf.shape,
            str(leaf.dtype),
            decayed=decays and mask[path] and path not in frozen,
            frozen=path in frozen,
        )
        for path, leaf in flatten_dict(params, sep="/").items()
    )


def _frozen(params: Any, optimizer: Optimizer) -> dict[str, int]:
    flat = flatten_dict(params, sep="/")
    return {
        pattern: sum(flat[path].size for path in matching_paths(params, [pattern], "frozen"))
        for pattern in optimizer.frozen
    }


def _terms(method: Method) -> tuple[LossTerm, ...]:
    active = {term.name: term for term in method.terms}
    return tuple(
        LossTerm(name, active[name].weight, active[name].count is not None)
        if name in active
        else LossTerm(name, 0.0, None)
        for name in TERM_NAMES
    )


def _outputs(method: Method, state: TrainState, batch: AttributeBatch) -> Any:
    def forward(variables: Any, ema: Any, batch: AttributeBatch) -> Any:
        rngs = dict.fromkeys(method.rng_names, jax.random.key(0))
        prepared = method.augment(batch, None)
        step = jnp.zeros((), jnp.int32)
        return method.forward(method.model, variables, ema, prepared, step, True, rngs)[0]

    return jax.eval_shape(forward, state.variables, state.ema, batch)


def forward_multiply_adds(method: Method, state: TrainState, batch: AttributeBatch) -> dict[Path, int]:
    """{module path: multiply-adds of its own} in the evaluation of one image of such a batch."""

    def forward(variables: Any, batch: AttributeBatch) -> Any:
        step = jnp.zeros((), jnp.int32)
        return method.forward(method.model, variables, None, batch, step, False, {})[0]

    one = memory.rows(batch, 1)
    prepared = jax.eval_shape(lambda batch: method.augment(batch, None), one)
    return multiply_adds(forward, state.variables, prepared)
