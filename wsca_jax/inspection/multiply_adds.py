"""Multiply-adds of a traced program, by module, counted from its jaxpr.

The libraries' own counts answer another question. XLA's `cost_analysis`, on which Flax's
`tabulate(compute_flops=True)` rests, counts elementwise operations too, leaves out products with a native
convolution's zero padding, and so changes with the form a convolution takes on each platform; it knows no
modules. Papers count the products of matrix multiplications and convolutions, and so does this.
"""

from __future__ import annotations

import collections
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

Path = tuple[str, ...]
Counts = collections.Counter[Path]

# A module's scope is its name, or "name.method" for a method other than __call__. Operations open scopes of
# their own, such as einsum's "ab,bc->ac".
_MODULE_SCOPE = re.compile(r"([A-Za-z_]\w*)(\.\w+)?")


def multiply_adds(fn: Callable[..., Any], *args: Any) -> dict[Path, int]:
    """Counts the multiply-adds of fn(*args) without running it.

    Matrix products and convolutions count, each product with its addition as one, zero padding included;
    elementwise operations and Fourier transforms do not. Of a conditional (a choice by platform among them)
    the costliest branch counts, of a `while` loop one turn.

    Args:
      fn: a function that applies a Flax module.
      *args: arrays or `jax.ShapeDtypeStruct`s.

    Returns:
      {module path below the outermost module: multiply-adds of its own}; () is the outermost module itself.
    """
    totals: Counts = collections.Counter()
    for path, count in _count(jax.make_jaxpr(fn)(*args).jaxpr, ()).items():
        totals[path[1:]] += count
    return dict(totals)


def roll_up(counts: dict[Path, int], depth: int) -> dict[Path, int]:
    """Adds up what lies deeper than `depth` levels into the module at that level; keeps the order."""
    totals: Counts = collections.Counter()
    for path, count in counts.items():
        totals[path[:depth]] += count
    return dict(totals)


def _count(jaxpr: Jaxpr, scope: Path) -> Counts:
    totals: Counts = collections.Counter()
    for eqn in jaxpr.eqns:
        totals.update(_of_equation(eqn, _enter(scope, str(eqn.source_info.name_stack))))
    return totals


def _enter(scope: Path, name_stack: str) -> Path:
    """Goes on from `scope` into the modules of an equation's own scope: nested jaxprs start anew."""
    for name in name_stack.split("/"):
        match = _MODULE_SCOPE.fullmatch(name)
        if match and not (match[2] and scope and scope[-1] == match[1]):  # a module calling its own method
            scope = (*scope, match[1])
    return scope


def _of_equation(eqn: JaxprEqn, scope: Path) -> Counts:
    name = eqn.primitive.name
    if name == "dot_general":
        return collections.Counter({scope: _dot(eqn)})
    if name == "conv_general_dilated":
        return collections.Counter({scope: _convolution(eqn)})
    inner = [_count(jaxpr, scope) for jaxpr in _inner_jaxprs(eqn)]
    if name == "cond":
        return max(inner, key=lambda counts: counts.total())
    times = _repeats(eqn)
    return collections.Counter({path: times * n for counts in inner for path, n in counts.items()})


def _inner_jaxprs(eqn: JaxprEqn) -> Iterator[Jaxpr]:
    """The programs inside an equation: of a jit, a loop, a conditional, a custom derivative, ..."""
    for leaf in jax.tree.leaves(list(eqn.params.values()), is_leaf=_is_jaxpr):
        if isinstance(leaf, ClosedJaxpr):
            yield leaf.jaxpr
        elif isinstance(leaf, Jaxpr):
            yield leaf


def _is_jaxpr(value: Any) -> bool:
    return isinstance(value, ClosedJaxpr | Jaxpr)


def _repeats(eqn: JaxprEqn) -> int:
    if eqn.primitive.name == "scan":
        return eqn.params["length"]
    if eqn.primitive.name == "shard_map":  # its program is one device's
        axes = next(value for name, value in eqn.params.items() if name.endswith("manual_axes"))
        return math.prod(eqn.params["mesh"].shape[axis] for axis in axes)
    return 1


def _dot(eqn: JaxprEqn) -> int:
    (contracted, _), _ = eqn.params["dimension_numbers"]
    left = _shape(eqn.invars[0])
    return math.prod(_shape(eqn.outvars[0])) * math.prod(left[axis] for axis in contracted)


def _convolution(eqn: JaxprEqn) -> int:
    """Each output is a sum over the kernel's window and its input channels (those of one group)."""
    kernel = _shape(eqn.invars[1])
    features = kernel[eqn.params["dimension_numbers"].rhs_spec[0]]
    return math.prod(_shape(eqn.outvars[0])) * math.prod(kernel) // features


def _shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape
