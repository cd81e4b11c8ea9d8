"""Whether a checkpoint's arrays are those that a state has a place for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax

from wsca_jax.engine.state import TrainState
from wsca_jax.errors import WscaError

APART = (
    "the run's configuration and this checkpoint do not belong together, or another version of wsca wrote it"
)


def check_fit(path: Path, metadata: Any, target: Any) -> None:
    """Raises WscaError unless the target's arrays are the stored ones; Orbax would pass over a difference.

    Args:
      path: of the checkpoint, for the message.
      metadata: a tree of what it holds, with shapes and dtypes.
      target: a `TrainState` of abstract arrays, or a dict with some of its fields.
    """
    stored, wanted = _leaves(metadata), _leaves(target)
    extra = stored.keys() - wanted.keys() if isinstance(target, TrainState) else set()
    for name in sorted((wanted.keys() - stored.keys()) | extra):
        state = "is in the checkpoint and not in the model" if name in extra else "is missing"
        raise WscaError(f"{path}: {name} {state}; {APART}")
    for name, expected in wanted.items():
        if stored[name] != expected:
            raise WscaError(
                f"{path}: {name} is {_described(stored[name])}, expected {_described(expected)}; {APART}"
            )


def _described(leaf: tuple[tuple[int, ...], str]) -> str:
    shape, dtype = leaf
    return f"{dtype}[{','.join(map(str, shape))}]"


def _leaves(tree: Any) -> dict[str, tuple[tuple[int, ...], str]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): (tuple(leaf.shape), str(leaf.dtype))
        for path, leaf in leaves
    }
